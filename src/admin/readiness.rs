//! Whether traffic should come here: nothing is waited for, and we are not on our way out.
//!
//! `app` says what is missing in words an operator understands; `/readyz` repeats them. Not ready is different from not
//! alive: a process that waits or drains must be left alone, not restarted.

use std::collections::BTreeSet;

use parking_lot::Mutex;

/// What is still missing, and whether we drain. Starts as ready: say what is waited for before serving.
#[derive(Debug, Default)]
pub struct Readiness {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: BTreeSet<String>,
    draining: bool,
}

impl Readiness {
    /// Not ready until `what` has arrived, for example `cluster app: first discovery answer`.
    pub fn wait_for(&self, what: impl Into<String>) {
        self.inner.lock().waiting.insert(what.into());
    }

    /// What was waited for is there.
    pub fn arrived(&self, what: &str) {
        self.inner.lock().waiting.remove(what);
    }

    /// Exactly these are waited for, whatever was waited for before.
    pub fn set_waiting(&self, waiting: impl IntoIterator<Item = String>) {
        self.inner.lock().waiting = waiting.into_iter().collect();
    }

    /// Whether we are on our way out.
    pub fn set_draining(&self, draining: bool) {
        self.inner.lock().draining = draining;
    }

    /// Whether we are on our way out.
    pub fn is_draining(&self) -> bool {
        self.inner.lock().draining
    }

    /// Whether traffic should come here.
    pub fn is_ready(&self) -> bool {
        let inner = self.inner.lock();
        inner.waiting.is_empty() && !inner.draining
    }

    /// What is waited for; empty also while draining.
    pub fn missing(&self) -> Vec<String> {
        self.inner.lock().waiting.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_nothing_is_missing_and_we_stay() {
        let readiness = Readiness::default();
        assert!(readiness.is_ready());
        readiness.wait_for("cluster app: first discovery answer");
        readiness.wait_for("cluster app: first discovery answer");
        readiness.wait_for("listener web");
        readiness.arrived("listener web");
        assert_eq!(readiness.missing(), ["cluster app: first discovery answer"]);
        assert!(!readiness.is_ready());
        readiness.set_waiting([]);
        assert!(readiness.is_ready());
        readiness.set_draining(true);
        assert!(!readiness.is_ready() && readiness.is_draining() && readiness.missing().is_empty());
        readiness.set_draining(false);
        assert!(readiness.is_ready());
    }
}
