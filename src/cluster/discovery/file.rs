//! A file as a source: a YAML or JSON list of endpoints, read again whenever the watcher says that it changed.
//!
//! The watching itself is `app::watch`, which also knows when a file is complete; this task is told. What the file says
//! is meant: an empty list empties the cluster at once. What it cannot say (missing, not a list, cut off) changes
//! nothing and is reported once until the file is good again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Asked, Event, Member, SourceKind, Task, entry};

/// Yields whenever watched files changed; the paths are not looked at.
pub type Changes = mpsc::Receiver<BTreeSet<PathBuf>>;

/// A file source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The list.
    pub path: PathBuf,
}

/// A longer file is not read.
pub const MAX_BYTES: u64 = 4 << 20;

/// Runs until the watcher or the receiver of the events is gone.
pub async fn run(settings: Settings, mut changes: Changes, task: Task) {
    let mut in_force: Option<Vec<Member>> = None;
    let mut reported: Option<Arc<str>> = None;
    loop {
        let read = read(&settings.path).await;
        let mut event = Event {
            cluster: task.cluster.clone(),
            source: SourceKind::File,
            at: Instant::now(),
            asked: Asked::Unchanged,
            detail: None,
            stale: false,
            members: None,
        };
        let mut news = true;
        match read {
            Ok(members) => {
                reported = None;
                if in_force.as_ref() != Some(&members) {
                    event.asked = Asked::Changed;
                    event.members = Some(members.clone());
                    in_force = Some(members);
                }
            }
            Err(why) => {
                let why: Arc<str> = format!("{}: {why}", settings.path.display()).into();
                news = reported.as_ref() != Some(&why);
                reported = Some(why.clone());
                event.asked = Asked::Failed;
                event.stale = in_force.is_some();
                event.detail = Some(why);
            }
        }
        if news && task.events.send(event).await.is_err() {
            return;
        }
        if changes.recv().await.is_none() {
            return;
        }
    }
}

async fn read(path: &Path) -> Result<Vec<Member>, String> {
    let file = tokio::fs::File::open(path)
        .await
        .map_err(|error| error.to_string())?;
    let mut text = String::new();
    file.take(MAX_BYTES + 1)
        .read_to_string(&mut text)
        .await
        .map_err(|error| error.to_string())?;
    if text.len() as u64 > MAX_BYTES {
        return Err(format!("longer than {MAX_BYTES} bytes"));
    }
    entry::read_yaml(&text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio_util::sync::CancellationToken;

    use super::super::{Source, run as run_source};
    use super::*;

    struct Scene {
        directory: tempfile::TempDir,
        changed: mpsc::Sender<BTreeSet<PathBuf>>,
        heard: mpsc::Receiver<Event>,
        _stop: tokio_util::sync::DropGuard,
    }

    impl Scene {
        fn new(content: Option<&str>) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("list.yaml");
            if let Some(content) = content {
                fs::write(&path, content).unwrap();
            }
            // Room for what a test does not hear at once: it writes and hears on one task.
            let ((changed, changes), (events, heard)) = (mpsc::channel(1), mpsc::channel(16));
            let cancel = CancellationToken::new();
            let task = Task {
                cluster: "app".into(),
                events,
                seed: 1,
                cancel: cancel.clone(),
            };
            tokio::spawn(run_source(Source::File(Settings { path }, changes), task));
            Self {
                directory,
                changed,
                heard,
                _stop: cancel.drop_guard(),
            }
        }

        async fn write(&mut self, content: &str) {
            // Renamed, so that a reading in between sees the one or the other.
            fs::write(self.directory.path().join("new"), content).unwrap();
            fs::rename(
                self.directory.path().join("new"),
                self.directory.path().join("list.yaml"),
            )
            .unwrap();
            self.changed.send(BTreeSet::new()).await.unwrap();
        }

        async fn hear(&mut self) -> (Asked, Option<usize>, bool) {
            let event = self.heard.recv().await.unwrap();
            assert_eq!(event.detail.is_some(), event.asked == Asked::Failed);
            (
                event.asked,
                event.members.map(|members| members.len()),
                event.stale,
            )
        }
    }

    #[tokio::test]
    async fn the_list_is_read_at_the_start_and_with_every_change() {
        let mut scene = Scene::new(Some("- 10.0.0.1:80\n- 10.0.0.2:80\n"));
        assert_eq!(scene.hear().await, (Asked::Changed, Some(2), false));
        scene.write("- 10.0.0.2:80\n- 10.0.0.1:80 # other order\n").await;
        assert_eq!(scene.hear().await, (Asked::Unchanged, None, false));
        scene.write("- {address: 10.0.0.1:80, weight: 2}\n").await;
        assert_eq!(scene.hear().await, (Asked::Changed, Some(1), false));
        scene.write("[]").await;
        assert_eq!(scene.hear().await, (Asked::Changed, Some(0), false));
    }

    #[tokio::test]
    async fn a_damaged_file_keeps_the_last_good_list_and_is_reported_once() {
        let mut scene = Scene::new(Some("- 10.0.0.1:80\n"));
        scene.hear().await;
        for _ in 0..3 {
            scene.write("- 10.0.0.1:80\n- {addr").await;
        }
        scene.write("- 10.0.0.1:80\n").await;
        assert_eq!(scene.hear().await, (Asked::Failed, None, true));
        assert_eq!(scene.hear().await, (Asked::Unchanged, None, false));
        scene.write("").await;
        let damaged = loop {
            // The last change may have been read twice: with the one before it and by itself.
            match scene.hear().await {
                (Asked::Unchanged, None, false) => {}
                other => break other,
            }
        };
        assert_eq!(damaged, (Asked::Failed, None, true));
    }

    #[tokio::test]
    async fn a_missing_file_is_a_failure_until_it_is_there() {
        let mut scene = Scene::new(None);
        assert_eq!(scene.hear().await, (Asked::Failed, None, false));
        scene.write("[\"10.0.0.1:80\"]").await;
        assert_eq!(scene.hear().await, (Asked::Changed, Some(1), false));
    }
}
