//! What the operating system says about this process, read when somebody asks.
//!
//! Linux only: elsewhere there is no `/proc`, the answer is `None` and the series are absent, which is better than a
//! zero that looks like a measurement.

use std::fs;

/// One look at `/proc/self`.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessUsage {
    /// User and system time, in seconds.
    pub cpu: f64,
    /// Resident memory, in bytes.
    pub resident: u64,
    /// Virtual memory, in bytes.
    pub virtual_: u64,
    /// Threads.
    pub threads: u64,
    /// When the process started, in seconds since 1970.
    pub started: f64,
    /// Open descriptors, the one that counts them not included.
    pub open_fds: Option<u64>,
    /// The soft limit of descriptors; none when there is no limit.
    pub max_fds: Option<u64>,
}

impl ProcessUsage {
    /// Reads it; a few system calls and as many descriptors as are open, so not for the request path.
    pub fn read() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let boot = fs::read_to_string("/proc/stat").ok()?;
        let page = rustix::param::page_size() as u64;
        let tick = rustix::param::clock_ticks_per_second();
        let mut usage = parse(&stat, &boot, page, tick)?;
        usage.open_fds = fs::read_dir("/proc/self/fd")
            .ok()
            .map(|dir| (dir.count() as u64).saturating_sub(1));
        usage.max_fds = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        Some(usage)
    }
}

/// How many descriptors are open, and how many may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    /// Open now.
    pub open: u64,
    /// The soft limit; none when there is no limit.
    pub max: Option<u64>,
}

impl Descriptors {
    /// Counts them. Since Linux 6.2 the size of `/proc/self/fd` is their number; before, they are counted one by one.
    pub fn read() -> Option<Self> {
        let folder = "/proc/self/fd";
        let open = match fs::metadata(folder).ok()?.len() {
            0 => (fs::read_dir(folder).ok()?.count() as u64).saturating_sub(1),
            known => known,
        };
        let max = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        Some(Self { open, max })
    }

    /// The share of them that is in use; 0 without a limit.
    pub fn share(&self) -> f32 {
        self.max.map_or(0.0, |max| self.open as f32 / max.max(1) as f32)
    }
}

/// proc_pid_stat(5) and the line `btime` of proc_stat(5).
fn parse(stat: &str, boot: &str, page: u64, tick: u64) -> Option<ProcessUsage> {
    // Field 2 is the name of the program in parentheses and may contain both spaces and parentheses.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // `rest` begins with field 3.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let boot = boot
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse::<u64>()
        .ok()?;
    let seconds = |ticks: u64| ticks as f64 / tick.max(1) as f64;
    Some(ProcessUsage {
        cpu: seconds(field(14)? + field(15)?),
        threads: field(20)?,
        started: boot as f64 + seconds(field(22)?),
        virtual_: field(23)?,
        resident: field(24)?.saturating_mul(page),
        open_fds: None,
        max_fds: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let stat =
            "42 (a ) b) S 1 42 42 0 -1 4194560 1 2 3 4 150 50 7 8 20 0 9 0 1000 8192 3 18446744073709551615";
        let usage = parse(stat, "cpu 1\nbtime 1700000000\n", 4096, 100).unwrap();
        assert_eq!(usage.cpu, 2.0);
        assert_eq!(usage.threads, 9);
        assert_eq!(usage.started, 1_700_000_010.0);
        assert_eq!((usage.virtual_, usage.resident), (8192, 12288));
        assert_eq!(parse("nonsense", "", 4096, 100), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_memory_threads_and_descriptors() {
        let usage = ProcessUsage::read().unwrap();
        assert!(usage.resident > 0 && usage.virtual_ > usage.resident && usage.threads > 0);
        assert!(usage.open_fds > Some(0) && usage.started > 1.6e9);
        let descriptors = Descriptors::read().unwrap();
        assert!(descriptors.open > 0 && descriptors.share() < 1.0);
    }
}
