//! Watching files: says which of a set of files have new content, once, and only when they are complete.
//!
//! Serves configuration reload, certificates and file discovery. Directories are watched, not files: a ConfigMap is
//! swapped by renaming `..data`, editors write a new file and rename it, and a file may not exist yet. So any event in
//! a directory may matter and none means anything by itself: it only starts a look. A look reads all the files, waits
//! for [`Options::settle`], reads them again, and repeats that until two readings agree. What then differs from what
//! was last said is sent.
//!
//! Invariants: equal content is never sent; a file that is missing, unreadable or empty is never sent (it is on its way
//! to something, or an accident, and nobody may act on either); a noisy directory costs at most one reading per
//! `settle`, and a silent one is read every [`Options::rescan`] in case the kernel's events do not reach us (network
//! file systems, no watches left).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use xxhash_rust::xxh3::Xxh3;

/// How patient to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Content must stay the same for this long.
    pub settle: Duration,
    /// Look at least this often.
    pub rescan: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            settle: Duration::from_millis(250),
            rescan: Duration::from_secs(30),
        }
    }
}

/// The watched files that have new content. The receiver sees one set per change; slow receivers get them merged.
pub type Changes = mpsc::Receiver<BTreeSet<PathBuf>>;

/// Watches files until it is dropped.
#[derive(Debug)]
pub struct Watch {
    looks: Looks,
    files: Files,
    options: Options,
}

impl Watch {
    /// Starts to watch; what the files hold now is the content that later changes are compared with. Read them *after*
    /// this, then no change can slip through between. Blocks for as long as reading the files takes.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>, options: Options) -> Self {
        let paths: BTreeSet<PathBuf> = paths.into_iter().collect();
        let mut looks = Looks::new();
        looks.follow(&paths);
        let files = Files::new(Prints::read(&paths));
        Self {
            looks,
            files,
            options,
        }
    }

    /// Sends changes until cancelled or until the receiver is gone; run it on the control runtime.
    pub fn run(self, cancel: CancellationToken) -> (Changes, impl Future<Output = ()> + Send + 'static) {
        let (changes, receiver) = mpsc::channel(1);
        let work = async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = self.work(changes) => {}
            }
        };
        (receiver, work)
    }

    async fn work(self, changes: mpsc::Sender<BTreeSet<PathBuf>>) {
        let Self {
            mut looks,
            mut files,
            options,
        } = self;
        loop {
            // An elapsed wait is the rescan.
            let _event_or_time = timeout_at(Instant::now() + options.rescan, looks.asked.notified())
                .await
                .is_ok();
            let changed = loop {
                let look = tokio::task::spawn_blocking(move || {
                    looks.follow(&files.paths());
                    let prints = Prints::read(&files.paths());
                    (looks, files, prints)
                });
                let prints;
                // The closure only reads files; it ends early only when the runtime does.
                (looks, files, prints) = match look.await {
                    Ok(look) => look,
                    Err(_shut_down) => return,
                };
                match files.see(prints) {
                    Seen::Moving => tokio::time::sleep(options.settle).await,
                    Seen::Still(changed) => break changed,
                }
            };
            if !changed.is_empty() && changes.send(changed).await.is_err() {
                return;
            }
            // A log in the same directory rings with every line. The bell is heard after this all the same.
            tokio::time::sleep(options.settle).await;
        }
    }
}

/// What was said and what was seen last: decides when a change is complete. Pure.
#[derive(Debug)]
struct Files {
    said: Prints,
    seen: Option<Prints>,
}

#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// Something is new or still changing: look again after a while.
    Moving,
    /// Two looks agree; these files have new content.
    Still(BTreeSet<PathBuf>),
}

impl Files {
    const fn new(said: Prints) -> Self {
        Self { said, seen: None }
    }

    fn paths(&self) -> BTreeSet<PathBuf> {
        self.said.0.keys().cloned().collect()
    }

    fn see(&mut self, prints: Prints) -> Seen {
        if self.said == prints {
            self.seen = None;
            return Seen::Still(BTreeSet::new());
        }
        if self.seen.as_ref() != Some(&prints) {
            self.seen = Some(prints);
            return Seen::Moving;
        }
        self.seen = None;
        let mut changed = BTreeSet::new();
        for (path, print) in prints.0 {
            // Absent files keep the print of what they last held: the same content coming back is no news.
            if print.is_some() && self.said.0.get(&path) != Some(&print) {
                self.said.0.insert(path.clone(), print);
                changed.insert(path);
            }
        }
        Seen::Still(changed)
    }
}

/// What each file holds; `None` for one that is missing, unreadable or empty.
#[derive(Debug, PartialEq, Eq)]
struct Prints(BTreeMap<PathBuf, Option<u128>>);

impl Prints {
    fn read(paths: &BTreeSet<PathBuf>) -> Self {
        Self(
            paths
                .iter()
                .map(|path| (path.clone(), print(path).ok().flatten()))
                .collect(),
        )
    }
}

/// The hash of a file's content, read in pieces; of a longer one than [`MAX_BYTES`], of its beginning, length and time.
fn print(path: &Path) -> io::Result<Option<u128>> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(None);
    }
    let mut hash = Xxh3::new();
    let mut piece = vec![0; 64 << 10];
    let mut length = 0;
    while length < MAX_BYTES {
        match file.read(&mut piece) {
            Ok(0) if length == 0 => return Ok(None),
            Ok(0) => return Ok(Some(hash.digest128())),
            Ok(read) => {
                hash.update(&piece[..read]);
                length += read;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    hash.update(&metadata.len().to_le_bytes());
    hash.update(&metadata.mtime().to_le_bytes());
    hash.update(&metadata.mtime_nsec().to_le_bytes());
    Ok(Some(hash.digest128()))
}

/// More than this of a file is not read.
const MAX_BYTES: usize = 16 << 20;

/// The kernel's events: which directories they are asked of, and the bell they ring.
#[derive(Debug)]
struct Looks {
    asked: Arc<Notify>,
    watcher: Option<notify::RecommendedWatcher>,
    /// Watched directories with device and inode: another directory may come to stand at the same path.
    watched: BTreeMap<PathBuf, (u64, u64)>,
    /// Said once, not with every look.
    warned: bool,
}

impl Looks {
    fn new() -> Self {
        let asked = Arc::new(Notify::new());
        let bell = asked.clone();
        // One pending ring is enough however many events there are, so this cannot grow.
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading is an event too, and we read.
            if event.is_ok_and(|event| event.kind.is_access()) {
                return;
            }
            bell.notify_one();
        });
        let mut looks = Self {
            asked,
            watcher: None,
            watched: BTreeMap::new(),
            warned: false,
        };
        match watcher {
            Ok(watcher) => looks.watcher = Some(watcher),
            Err(error) => looks.warn(&error),
        }
        looks
    }

    /// Watches the directories that decide what `paths` hold now: they change with every swapped symlink.
    fn follow(&mut self, paths: &BTreeSet<PathBuf>) {
        // What was created before its directory was watched sent no event: ask again until nothing is new.
        for _ in 0..MAX_LINKS {
            let wanted = wanted(paths);
            if wanted == self.watched {
                return;
            }
            self.adopt(wanted);
        }
    }

    fn adopt(&mut self, wanted: BTreeMap<PathBuf, (u64, u64)>) {
        let mut trouble = None;
        if let Some(watcher) = &mut self.watcher {
            for (directory, inode) in &self.watched {
                if wanted.get(directory) != Some(inode) {
                    // Fails when the directory is gone, and the watch with it.
                    let _gone = watcher.unwatch(directory).is_err();
                }
            }
            for (directory, inode) in &wanted {
                if self.watched.get(directory) != Some(inode)
                    && let Err(error) = watcher.watch(directory, RecursiveMode::NonRecursive)
                {
                    trouble = Some(error);
                }
            }
        }
        self.watched = wanted;
        if let Some(error) = trouble {
            self.warn(&error);
        }
    }

    fn warn(&mut self, error: &notify::Error) {
        if !self.warned {
            self.warned = true;
            warn!(%error, "cannot watch for file changes; files are looked at from time to time instead");
        }
    }
}

/// The existing directories to watch for `paths`, with device and inode.
fn wanted(paths: &BTreeSet<PathBuf>) -> BTreeMap<PathBuf, (u64, u64)> {
    let directories = paths.iter().flat_map(|path| directories(path));
    directories
        .filter_map(|directory| {
            let metadata = fs::metadata(&directory).ok()?;
            Some((directory, (metadata.dev(), metadata.ino())))
        })
        .collect()
}

/// Where a change to `path` shows: the directory that names it, and those that name what its symlinks lead to. Of a
/// directory that does not exist, the nearest one above that does.
fn directories(path: &Path) -> Vec<PathBuf> {
    let mut directories = Vec::new();
    let mut next = Some(path.to_path_buf());
    for _ in 0..MAX_LINKS {
        let Some(path) = next.take() else { break };
        let parent = match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => break,
        };
        let existing = parent
            .ancestors()
            .find(|above| above.is_dir())
            .unwrap_or_else(|| Path::new("."));
        directories.push(existing.to_path_buf());
        if let Ok(target) = fs::read_link(&path) {
            next = Some(parent.join(target));
        }
    }
    // Also where a directory on the way is a symlink, such as `..data`.
    if let Ok(real) = fs::canonicalize(path)
        && let Some(parent) = real.parent()
    {
        directories.push(parent.to_path_buf());
    }
    directories.sort();
    directories.dedup();
    directories
}

/// As many symlinks in a row as the kernel follows.
const MAX_LINKS: usize = 40;

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    fn prints(list: &[(&str, Option<u128>)]) -> Prints {
        Prints(
            list.iter()
                .map(|(path, print)| (PathBuf::from(path), *print))
                .collect(),
        )
    }

    fn still(list: &[&str]) -> Seen {
        Seen::Still(list.iter().map(PathBuf::from).collect())
    }

    #[test]
    fn content_that_is_still_changing_is_not_sent() {
        let mut files = Files::new(prints(&[("a", Some(1))]));
        assert_eq!(files.see(prints(&[("a", None)])), Seen::Moving, "truncated");
        assert_eq!(files.see(prints(&[("a", Some(2))])), Seen::Moving, "half of it");
        assert_eq!(files.see(prints(&[("a", Some(3))])), Seen::Moving, "all of it");
        assert_eq!(files.see(prints(&[("a", Some(3))])), still(&["a"]));
        assert_eq!(files.see(prints(&[("a", Some(3))])), still(&[]));
    }

    #[test]
    fn a_file_that_is_gone_is_not_sent_and_may_come_back_unchanged() {
        let mut files = Files::new(prints(&[("a", Some(1))]));
        files.see(prints(&[("a", None)]));
        assert_eq!(files.see(prints(&[("a", None)])), still(&[]));
        assert_eq!(files.see(prints(&[("a", Some(1))])), still(&[]));
        files.see(prints(&[("a", None)]));
        files.see(prints(&[("a", None)]));
        assert_eq!(files.see(prints(&[("a", Some(2))])), Seen::Moving);
        assert_eq!(files.see(prints(&[("a", Some(2))])), still(&["a"]));
    }

    #[test]
    fn files_that_change_together_are_sent_together() {
        let mut files = Files::new(prints(&[("cert", Some(1)), ("key", Some(1)), ("other", Some(1))]));
        files.see(prints(&[("cert", Some(2)), ("key", Some(1)), ("other", Some(1))]));
        files.see(prints(&[("cert", Some(2)), ("key", Some(2)), ("other", Some(1))]));
        let seen = files.see(prints(&[("cert", Some(2)), ("key", Some(2)), ("other", Some(1))]));
        assert_eq!(seen, still(&["cert", "key"]));
    }

    /// A directory with a watched file `file` and a second one, `fence`, whose change shows that nothing else was sent
    /// before it.
    struct Scene {
        directory: TempDir,
        changes: Changes,
        fences: u32,
        _stop: tokio_util::sync::DropGuard,
    }

    impl Scene {
        async fn new(prepare: impl FnOnce(&Path)) -> Self {
            let directory = TempDir::new().unwrap();
            prepare(directory.path());
            fs::write(directory.path().join("fence"), "0").unwrap();
            let paths = ["file", "fence"].map(|name| directory.path().join(name));
            // The rescan is out of reach: what arrives was an event.
            let options = Options {
                settle: Duration::from_millis(20),
                rescan: Duration::from_secs(3600),
            };
            let cancel = CancellationToken::new();
            let (changes, work) = Watch::new(paths, options).run(cancel.clone());
            tokio::spawn(work);
            Self {
                directory,
                changes,
                fences: 0,
                _stop: cancel.drop_guard(),
            }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        async fn expect(&mut self, name: &str) {
            let changed = self.changes.recv().await.unwrap();
            assert_eq!(changed, BTreeSet::from([self.path(name)]));
        }

        async fn expect_nothing_more(&mut self) {
            self.fences += 1;
            fs::write(self.path("fence"), self.fences.to_string()).unwrap();
            self.expect("fence").await;
        }

        async fn expect_once(&mut self) {
            self.expect("file").await;
            self.expect_nothing_more().await;
        }
    }

    fn hello(directory: &Path) {
        fs::write(directory.join("file"), "hello").unwrap();
    }

    #[tokio::test]
    async fn a_write_is_sent_once() {
        let mut scene = Scene::new(hello).await;
        fs::write(scene.path("file"), "world").unwrap();
        scene.expect_once().await;
    }

    #[tokio::test]
    async fn the_same_content_again_is_not_sent() {
        let mut scene = Scene::new(hello).await;
        fs::write(scene.path("file"), "hello").unwrap();
        scene.expect_nothing_more().await;
    }

    #[tokio::test]
    async fn a_rename_over_the_file_is_sent_once_each_time() {
        let mut scene = Scene::new(hello).await;
        for content in ["world", "again"] {
            fs::write(scene.path(".file.swp"), content).unwrap();
            fs::rename(scene.path(".file.swp"), scene.path("file")).unwrap();
            scene.expect_once().await;
        }
    }

    #[tokio::test]
    async fn truncating_and_writing_in_pieces_is_sent_once() {
        let mut scene = Scene::new(hello).await;
        let mut file = File::create(scene.path("file")).unwrap();
        for piece in ["wo", "rl", "d"] {
            file.write_all(piece.as_bytes()).unwrap();
            file.sync_all().unwrap();
        }
        scene.expect_once().await;
    }

    #[tokio::test]
    async fn deleting_and_creating_is_sent_once() {
        let mut scene = Scene::new(hello).await;
        fs::remove_file(scene.path("file")).unwrap();
        scene.expect_nothing_more().await;
        fs::write(scene.path("file"), "world").unwrap();
        scene.expect_once().await;
    }

    #[tokio::test]
    async fn a_file_created_later_is_sent_once() {
        let mut scene = Scene::new(|_| {}).await;
        fs::write(scene.path("file"), "hello").unwrap();
        scene.expect_once().await;
    }

    /// As the kubelet does: `file` -> `..data/file`, `..data` -> a directory by time, replaced by a rename.
    #[tokio::test]
    async fn a_swapped_config_map_is_sent_once_each_time() {
        let mut scene = Scene::new(|directory| {
            fs::create_dir(directory.join("..1")).unwrap();
            fs::write(directory.join("..1/file"), "1").unwrap();
            symlink("..1", directory.join("..data")).unwrap();
            symlink("..data/file", directory.join("file")).unwrap();
        })
        .await;
        for generation in 2..5 {
            let (old, new) = (format!("..{}", generation - 1), format!("..{generation}"));
            fs::create_dir(scene.path(&new)).unwrap();
            fs::write(scene.path(&new).join("file"), generation.to_string()).unwrap();
            symlink(&new, scene.path("..data_tmp")).unwrap();
            fs::rename(scene.path("..data_tmp"), scene.path("..data")).unwrap();
            fs::remove_dir_all(scene.path(&old)).unwrap();
            scene.expect_once().await;
        }
    }

    #[tokio::test]
    async fn a_write_behind_a_symlink_is_seen() {
        let elsewhere = TempDir::new().unwrap();
        let target = elsewhere.path().join("real");
        fs::write(&target, "hello").unwrap();
        let mut scene = Scene::new(|directory| symlink(&target, directory.join("file")).unwrap()).await;
        fs::write(&target, "world").unwrap();
        scene.expect_once().await;
    }

    #[tokio::test]
    async fn a_file_in_a_directory_created_later_is_sent() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("a/b/file");
        let options = Options {
            settle: Duration::from_millis(20),
            rescan: Duration::from_secs(3600),
        };
        let (mut changes, work) = Watch::new([path.clone()], options).run(CancellationToken::new());
        tokio::spawn(work);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "hello").unwrap();
        assert_eq!(changes.recv().await.unwrap(), BTreeSet::from([path]));
    }

    #[tokio::test]
    async fn without_events_the_rescan_finds_changes() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "hello").unwrap();
        let options = Options {
            settle: Duration::from_millis(5),
            rescan: Duration::from_millis(20),
        };
        let mut watch = Watch::new([path.clone()], options);
        watch.looks.watcher = None;
        let (mut changes, work) = watch.run(CancellationToken::new());
        tokio::spawn(work);
        fs::write(&path, "world").unwrap();
        assert_eq!(changes.recv().await.unwrap(), BTreeSet::from([path]));
    }
}
