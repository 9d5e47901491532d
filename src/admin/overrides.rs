//! What operators have set aside by hand, and until when.
//!
//! An override that nobody remembers is an outage waiting for its day, so each one ends by itself: after ten minutes
//! unless asked otherwise, after a day at most. It says who wanted it and why. It survives a reload, because the
//! endpoint's state does, and it is handed to a successor; it does not survive a restart.
//!
//! Invariant: every endpoint that was drained through the API has an entry here with a running timer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::{Context, operate};

/// Without a `ttl`.
pub(super) const DEFAULT_TTL: Duration = Duration::from_secs(600);
/// The longest `ttl`.
pub(super) const MAX_TTL: Duration = Duration::from_secs(86_400);
/// Overrides at once.
const MAX_OVERRIDES: usize = 1024;

/// What may be done to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum DoneTo {
    /// No new requests.
    Drain,
}

/// An override as the API shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Shown {
    pub(super) action: DoneTo,
    pub(super) reason: String,
    pub(super) author: String,
    /// Seconds since 1970.
    pub(super) since: u64,
    /// Seconds since 1970.
    pub(super) until: u64,
}

impl Shown {
    pub(super) fn new(action: DoneTo, reason: String, author: String, ttl: Duration) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            action,
            reason,
            author,
            since: since.as_secs(),
            until: since.saturating_add(ttl).as_secs(),
        }
    }
}

/// An override as a successor is told of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedOverride {
    /// Of which cluster.
    pub cluster: String,
    /// Which endpoint.
    pub address: String,
    shown: Shown,
    left: Duration,
}

/// All that are in force, for a successor.
pub fn save(context: &Context) -> Vec<SavedOverride> {
    let (now, entries) = (Instant::now(), context.kept.overrides.entries.lock());
    let saved = entries.iter().map(|((cluster, address), entry)| SavedOverride {
        cluster: cluster.clone(),
        address: address.clone(),
        shown: entry.shown.clone(),
        left: entry.ends.saturating_duration_since(now),
    });
    saved.collect()
}

/// Goes on with what a predecessor had set aside, as far as there is room. The endpoints are drained already.
pub fn recall(context: &Arc<Context>, saved: Vec<SavedOverride>) {
    for SavedOverride {
        cluster,
        address,
        shown,
        left,
    } in saved.into_iter().take(MAX_OVERRIDES)
    {
        keep(context, cluster, address, shown, left.min(MAX_TTL));
    }
}

/// All that are in force, by cluster and address.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    entries: Mutex<BTreeMap<(String, String), Entry>>,
    serial: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    /// Tells it from an earlier one for the same endpoint.
    serial: u64,
    shown: Shown,
    ends: Instant,
    /// Dropping it stops the timer.
    _timer: AbortOnDropHandle<()>,
}

impl Overrides {
    pub(super) fn get(&self, cluster: &str, address: &str) -> Option<Shown> {
        let key = (cluster.to_owned(), address.to_owned());
        self.entries.lock().get(&key).map(|entry| entry.shown.clone())
    }

    pub(super) fn is_full(&self) -> bool {
        self.entries.lock().len() >= MAX_OVERRIDES
    }

    /// Forgets it and stops its timer.
    pub(super) fn remove(&self, cluster: &str, address: &str) -> Option<Shown> {
        let key = (cluster.to_owned(), address.to_owned());
        self.entries.lock().remove(&key).map(|entry| entry.shown)
    }

    /// Forgets it unless it has been replaced.
    fn remove_this(&self, key: &(String, String), serial: u64) {
        let mut entries = self.entries.lock();
        if entries.get(key).is_some_and(|entry| entry.serial == serial) {
            entries.remove(key);
        }
    }
}

/// Remembers an override; one for the same endpoint is replaced, timer included.
pub(super) fn keep(context: &Arc<Context>, cluster: String, address: String, shown: Shown, ttl: Duration) {
    let (key, weak) = ((cluster, address), Arc::downgrade(context));
    let overrides = &context.kept.overrides;
    // Ordering: only uniqueness matters.
    let serial = overrides.serial.fetch_add(1, Ordering::Relaxed);
    let timer = AbortOnDropHandle::new(tokio::spawn(end_after(weak, key.clone(), serial, ttl)));
    let entry = Entry {
        serial,
        shown,
        ends: Instant::now() + ttl,
        _timer: timer,
    };
    overrides.entries.lock().insert(key, entry);
}

async fn end_after(context: Weak<Context>, key: (String, String), serial: u64, ttl: Duration) {
    tokio::time::sleep(ttl).await;
    let Some(context) = context.upgrade() else {
        return;
    };
    let (cluster, address) = (&key.0, &key.1);
    // First the endpoint, then the entry: removing the entry ends this task.
    let restored =
        operate::set_endpoint(&context, cluster, address, false, "the override's time is over").await;
    if restored.is_err() {
        tracing::warn!(
            cluster,
            address,
            "an override is over, but nobody executes commands any more"
        );
    }
    context.kept.overrides.remove_this(&key, serial);
}
