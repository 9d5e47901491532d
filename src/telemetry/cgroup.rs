//! What the control group of this process allows: memory, and CPU time that was withheld.
//!
//! A group's own limit is rarely the only one, so each group above it is asked too and the tightest counts. Both
//! versions of the interface are read; a machine without either has no limits, and nothing here is an error.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the files of the groups of this process are, from its own upwards.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cgroup {
    memory: Vec<(PathBuf, Version)>,
    cpu: Vec<(PathBuf, Version)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Cgroup {
    /// Finds them.
    pub fn find() -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::of(&own, Path::new("/sys/fs/cgroup"))
    }

    /// `own` is proc_pid_cgroup(5).
    fn of(own: &str, root: &Path) -> Self {
        let mut found = Self::default();
        for line in own.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
                continue;
            };
            let up = |root: PathBuf| -> Vec<PathBuf> {
                let own = root.join(path.trim_start_matches('/'));
                let within: Vec<PathBuf> = own
                    .ancestors()
                    .take_while(|path| path.starts_with(&root))
                    .map(Path::to_path_buf)
                    .collect();
                // Inside a container the path may be that of the host, and only the root is there.
                within.into_iter().filter(|path| path.is_dir()).collect()
            };
            let one = |controller: &str| {
                let folder = up(root.join(controllers));
                let folder = if folder.is_empty() {
                    up(root.join(controller))
                } else {
                    folder
                };
                folder.into_iter().map(|path| (path, Version::One))
            };
            if controllers.is_empty() {
                for path in up(root.to_path_buf()) {
                    found.memory.push((path.clone(), Version::Two));
                    found.cpu.push((path, Version::Two));
                }
            } else if controllers.split(',').any(|name| name == "memory") {
                found.memory.extend(one("memory"));
            } else if controllers.split(',').any(|name| name == "cpu") {
                found.cpu.extend(one("cpu"));
            }
        }
        found
    }

    /// The share of the tightest memory limit that is in use; pages that can be dropped are not in use. None without a
    /// limit.
    pub fn memory(&self) -> Option<f32> {
        let shares = self.memory.iter().filter_map(|(path, version)| {
            let (limit, used, droppable) = match version {
                Version::One => (
                    "memory.limit_in_bytes",
                    "memory.usage_in_bytes",
                    "total_inactive_file",
                ),
                Version::Two => ("memory.max", "memory.current", "inactive_file"),
            };
            let limit = number(&path.join(limit)).filter(|limit| (1..UNLIMITED).contains(limit))?;
            let used = number(&path.join(used))?;
            let droppable = row(&path.join("memory.stat"), droppable).unwrap_or(0);
            Some(used.saturating_sub(droppable) as f32 / limit as f32)
        });
        shares.max_by(f32::total_cmp)
    }

    /// For how long the CPU was withheld so far, by the group that withheld it longest. Summed over all CPUs.
    pub fn throttled(&self) -> Option<Duration> {
        let times = self.cpu.iter().filter_map(|(path, version)| {
            let path = path.join("cpu.stat");
            match version {
                Version::One => row(&path, "throttled_time").map(Duration::from_nanos),
                Version::Two => row(&path, "throttled_usec").map(Duration::from_micros),
            }
        });
        times.max()
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The value of one row of a table of names and numbers.
fn row(path: &Path, name: &str) -> Option<u64> {
    let table = fs::read_to_string(path).ok()?;
    let mut rows = table.lines().filter_map(|line| line.split_once(' '));
    rows.find(|(key, _)| *key == name)?.1.trim().parse().ok()
}

/// What version 1 says for no limit is the largest page-aligned number.
const UNLIMITED: u64 = 1 << 62;

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn the_tightest_limit_of_version_2_counts_and_dropped_pages_do_not() {
        let root = tempfile::tempdir().unwrap();
        let files = [
            ("a/b/memory.max", "max\n"),
            ("a/b/memory.current", "100\n"),
            ("a/b/cpu.stat", "usage_usec 9\nthrottled_usec 10\n"),
            ("a/memory.max", "1000\n"),
            ("a/memory.current", "900\n"),
            ("a/memory.stat", "anon 5\ninactive_file 400\n"),
            ("a/cpu.stat", "throttled_usec 2500000\n"),
        ];
        write(root.path(), &files);
        let cgroup = Cgroup::of("0::/a/b\n", root.path());
        assert_eq!(cgroup.memory(), Some(0.5));
        assert_eq!(cgroup.throttled(), Some(Duration::from_millis(2_500)));
    }

    #[test]
    fn version_1_is_read_too() {
        let root = tempfile::tempdir().unwrap();
        let files = [
            ("memory/x/memory.limit_in_bytes", "200\n"),
            ("memory/x/memory.usage_in_bytes", "50\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/memory.usage_in_bytes", "50\n"),
            ("cpu,cpuacct/x/cpu.stat", "nr_periods 1\nthrottled_time 7000\n"),
        ];
        write(root.path(), &files);
        let own = "4:memory:/x\n3:cpu,cpuacct:/x\n1:name=systemd:/x\n";
        let cgroup = Cgroup::of(own, root.path());
        assert_eq!(cgroup.memory(), Some(0.25));
        assert_eq!(cgroup.throttled(), Some(Duration::from_micros(7)));
    }

    #[test]
    fn where_there_is_none_there_is_no_limit() {
        let root = tempfile::tempdir().unwrap();
        for own in ["", "nonsense", "0::/gone\n"] {
            let cgroup = Cgroup::of(own, root.path());
            assert_eq!((cgroup.memory(), cgroup.throttled()), (None, None), "{own:?}");
        }
    }
}
