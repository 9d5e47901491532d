//! The present snapshot: one writer, many readers.
//!
//! Workers do not touch the shared pointer per request: each keeps the last snapshot it saw behind a worker-local
//! reference count ([`Reader`]) and compares one version number.

use std::cell::{Cell as LocalCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use super::Snapshot;

/// Holds the present snapshot.
#[derive(Debug)]
pub struct Cell {
    current: ArcSwap<Snapshot>,
    version: AtomicU64,
}

impl Cell {
    /// A cell with its first snapshot.
    pub fn new(first: Arc<Snapshot>) -> Self {
        Self {
            current: ArcSwap::new(first),
            version: AtomicU64::new(1),
        }
    }

    /// The present snapshot, for the control plane.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Replaces the snapshot. Only the publisher calls this.
    pub fn store(&self, next: Arc<Snapshot>) {
        self.current.store(next);
        // Ordering: Release pairs with the Acquire in `current`, so whoever sees the new number finds the new snapshot.
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Counts the changes.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }
}

/// A snapshot as the requests of one worker hold it: the outer count is the worker's own, no other core touches it.
pub type World = Rc<Arc<Snapshot>>;

/// One worker's view of the cell.
#[derive(Debug)]
pub struct Reader {
    cell: Arc<Cell>,
    version: LocalCell<u64>,
    current: RefCell<World>,
}

impl Reader {
    /// A reader for one worker.
    pub fn new(cell: Arc<Cell>) -> Self {
        let version = cell.version();
        let current = RefCell::new(Rc::new(cell.load()));
        Self {
            cell,
            version: LocalCell::new(version),
            current,
        }
    }

    /// The present snapshot: one atomic load, and a reference count that no other core touches.
    pub fn current(&self) -> World {
        let version = self.cell.version();
        if version != self.version.get() {
            self.version.set(version);
            *self.current.borrow_mut() = Rc::new(self.cell.load());
        }
        Rc::clone(&self.current.borrow())
    }

    /// Counts the changes this reader has seen.
    pub fn version(&self) -> u64 {
        self.version.get()
    }
}
