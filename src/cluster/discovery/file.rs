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
