//! What a handle is made of: cells with one writer each, added up when somebody asks.
//!
//! A shared atomic counter costs one locked instruction and, with two workers, one cache miss per event. Here every
//! worker has its own block of cells and is the only one to write it, so an event is a plain load, add and store, and a
//! scrape adds the blocks up without stopping anybody. Measured with `benches/metrics.rs` on a busy two-core virtual
//! machine: 4 ns for a counter, 5 ns for a histogram, 45 ns for the 21 adds of a whole request (150 ns through the shared
//! block).
//!
//! Blocks are made at the first event of a worker: a thousand idle routes cost a thousand empty slots, not a thousand
//! histograms per worker.
//!
//! Invariant: one [`WorkerId`] is used by one thread. Breaking it loses counts; it cannot break anything else.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_utils::CachePadded;

use super::labels::{Label, OutcomeLabel};

/// Which block of cells a thread may write without asking anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WorkerId(u16);

impl WorkerId {
    /// Everybody who is not a data-plane worker.
    pub const CONTROL: Self = Self(u16::MAX);

    /// The worker with this index, counted from 0. One index belongs to one thread.
    pub const fn new(index: u16) -> Self {
        Self(index)
    }

    /// The index; for [`WorkerId::CONTROL`] one that no worker has.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Whether the writer of a block is alone with it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    /// Only this thread writes: load, add, store.
    Own,
    /// Several threads write: one locked add.
    Shared,
}

/// One number. Gauges are kept the same way: ups minus downs, each block for itself, meaningful only in sum.
#[derive(Debug, Default)]
pub(crate) struct Cell64(AtomicU64);

impl Cell64 {
    /// Adds with wrap-around.
    #[inline]
    pub(crate) fn add(&self, access: Access, n: u64) {
        // Ordering: relaxed everywhere. A cell publishes nothing but itself, and a scrape may see one counter of an
        // event and not yet the other.
        match access {
            Access::Own => self
                .0
                .store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed),
            Access::Shared => {
                self.0.fetch_add(n, Ordering::Relaxed);
            }
        }
    }

    /// Subtracts with wrap-around; the sum over all blocks is what counts.
    #[inline]
    pub(crate) fn sub(&self, access: Access, n: u64) {
        self.add(access, n.wrapping_neg());
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the cells of one worker for one handle look like when nothing has happened yet.
pub(crate) trait Block: Sized {
    fn empty(layout: &Layout) -> Self;
}

/// A block and how this thread may write it.
#[derive(Debug)]
pub(crate) struct Slot<'a, B> {
    pub(crate) block: &'a B,
    pub(crate) access: Access,
}

/// One block per worker, one shared.
#[derive(Debug)]
pub(crate) struct Sharded<B> {
    layout: Arc<Layout>,
    /// Own blocks by worker index; the last one is shared.
    blocks: Box<[Lazy<B>]>,
}

/// Boxed and padded, so that two workers never write the same cache line.
type Lazy<B> = OnceLock<Box<CachePadded<B>>>;

impl<B: Block> Sharded<B> {
    pub(crate) fn new(layout: &Arc<Layout>) -> Self {
        let blocks = (0..=layout.workers).map(|_| OnceLock::new()).collect();
        Self {
            layout: Arc::clone(layout),
            blocks,
        }
    }

    #[inline]
    pub(crate) fn at(&self, worker: WorkerId) -> Slot<'_, B> {
        let shared = self.blocks.len() - 1;
        // An index nobody planned for is counted correctly, only slower.
        let (index, access) = if worker.index() < shared {
            (worker.index(), Access::Own)
        } else {
            (shared, Access::Shared)
        };
        let block = match self.blocks[index].get() {
            Some(block) => block,
            None => self.first(index),
        };
        Slot { block, access }
    }

    #[cold]
    fn first(&self, index: usize) -> &B {
        self.blocks[index].get_or_init(|| Box::new(CachePadded::new(B::empty(&self.layout))))
    }

    /// What the blocks are made by.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The blocks that exist.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = &B> {
        self.blocks.iter().filter_map(|block| block.get().map(|b| &***b))
    }

    /// The block of one worker, if it exists.
    pub(crate) fn block(&self, worker: usize) -> Option<&B> {
        self.blocks.get(worker).and_then(OnceLock::get).map(|b| &***b)
    }

    /// One counter over all blocks.
    pub(crate) fn sum(&self, cell: impl Fn(&B) -> &Cell64) -> u64 {
        self.blocks()
            .fold(0, |sum, block| sum.wrapping_add(cell(block).get()))
    }

    /// One up-and-down gauge over all blocks. A scrape in the middle of a move between workers may see -1: shown as 0.
    pub(crate) fn level(&self, cell: impl Fn(&B) -> &Cell64) -> f64 {
        let level = self.sum(cell).cast_signed().max(0);
        level as f64
    }

    /// One histogram over all blocks.
    pub(crate) fn histogram(&self, cell: impl Fn(&B) -> &HistogramCells) -> HistogramSum {
        let mut sum = HistogramSum::default();
        for block in self.blocks() {
            sum.add(cell(block));
        }
        sum
    }
}

/// What all handles of a recorder have in common.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Number of workers.
    pub(crate) workers: usize,
    /// Durations of requests, attempts and connects.
    pub(crate) latency: Bounds,
    /// Time spent in the proxy itself, and lag of a worker.
    pub(crate) overhead: Bounds,
    /// Attempts per request.
    pub(crate) attempts: Bounds,
}

/// Upper bounds of histogram buckets, with a table that finds the bucket of a value in a step or two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// Ascending and distinct, in nanoseconds (or in pieces, for counts).
    upper: Box<[u64]>,
    /// For each bit length of a value: the first bucket that can hold it.
    start: [u8; 65],
}

impl Bounds {
    /// At most this many bounds; more would be more series than any dashboard reads.
    pub const MAX: usize = 64;

    /// Bounds of durations. Sorted, distinct, and cut to [`Bounds::MAX`].
    pub fn of_durations(bounds: &[Duration]) -> Self {
        Self::of_counts(bounds.iter().copied().map(nanos).collect())
    }

    /// Bounds of plain numbers.
    pub fn of_counts(mut upper: Vec<u64>) -> Self {
        upper.sort_unstable();
        upper.dedup();
        upper.truncate(Self::MAX);
        let mut start = [0; 65];
        for (bits, first) in start.iter_mut().enumerate() {
            // The smallest value with this many bits.
            let least = if bits == 0 { 0 } else { 1_u64 << (bits - 1) };
            let index = upper.partition_point(|bound| *bound < least);
            // Cannot be cut: there are at most MAX bounds.
            *first = u8::try_from(index).unwrap_or(u8::MAX);
        }
        Self {
            upper: upper.into_boxed_slice(),
            start,
        }
    }

    /// The default of `telemetry.metrics.buckets`: 1 ms to 10 s, dense where a proxy's answers are.
    pub fn latency() -> Self {
        const MICROS: [u64; 16] = [
            1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 75_000, 100_000, 250_000, 500_000, 750_000,
            1_000_000, 2_500_000, 5_000_000, 7_500_000, 10_000_000,
        ];
        Self::of_durations(&MICROS.map(Duration::from_micros))
    }

    /// 25 us to 1 s: what the proxy itself adds.
    pub(crate) fn overhead() -> Self {
        const MICROS: [u64; 12] = [
            25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 50_000, 250_000, 1_000_000,
        ];
        Self::of_durations(&MICROS.map(Duration::from_micros))
    }

    /// The bounds, ascending.
    pub(crate) fn upper(&self) -> &[u64] {
        &self.upper
    }

    /// The first bucket whose bound is not below `value`; the last one has no bound.
    #[inline]
    fn bucket(&self, value: u64) -> usize {
        let bits = (u64::BITS - value.leading_zeros()) as usize;
        let mut index = self.start[bits] as usize;
        while self.upper.get(index).is_some_and(|bound| *bound < value) {
            index += 1;
        }
        index
    }
}

/// Nanoseconds, ending at 584 years.
#[inline]
pub(crate) fn nanos(duration: Duration) -> u64 {
    duration
        .as_secs()
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::from(duration.subsec_nanos()))
}

/// Counts per bucket, and the sum of all values.
#[derive(Debug)]
pub(crate) struct HistogramCells {
    /// One per bound, one without bound, then the sum.
    cells: Box<[Cell64]>,
}

impl HistogramCells {
    pub(crate) fn new(bounds: &Bounds) -> Self {
        Self {
            cells: (0..bounds.upper.len() + 2).map(|_| Cell64::default()).collect(),
        }
    }

    /// Two adds. `bounds` are the ones it was made with.
    #[inline]
    pub(crate) fn record(&self, bounds: &Bounds, access: Access, value: u64) {
        let Some((sum, buckets)) = self.cells.split_last() else {
            return;
        };
        if let Some(bucket) = buckets.get(bounds.bucket(value)) {
            bucket.add(access, 1);
        }
        sum.add(access, value);
    }
}

/// The blocks of a histogram, added up.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct HistogramSum {
    /// Per bucket, not cumulative; empty when nobody has a block yet.
    pub(crate) buckets: Vec<u64>,
    /// Of all values.
    pub(crate) sum: u64,
}

impl HistogramSum {
    pub(crate) fn add(&mut self, cells: &HistogramCells) {
        let Some((sum, buckets)) = cells.cells.split_last() else {
            return;
        };
        self.buckets.resize(buckets.len(), 0);
        for (total, bucket) in self.buckets.iter_mut().zip(buckets) {
            *total = total.wrapping_add(bucket.get());
        }
        self.sum = self.sum.wrapping_add(sum.get());
    }
}

/// Counts by status code and outcome.
///
/// Codes are exact, but a page of a hundred is only made when a class is first seen with an outcome: most routes know
/// two pages. What is not a status in 100..=599 shares one cell, and so does "no status at all".
#[derive(Debug, Default)]
pub(crate) struct CodeCells {
    pages: [[OnceLock<Box<[Cell64; PAGE]>>; CLASSES]; OUTCOMES],
    none: [Cell64; OUTCOMES],
    other: [Cell64; OUTCOMES],
}

const OUTCOMES: usize = OutcomeLabel::COUNT;
const PAGE: usize = 100;
const CLASSES: usize = 5;

impl CodeCells {
    /// `code` 0 is "no status".
    #[inline]
    pub(crate) fn add(&self, access: Access, code: u16, outcome: OutcomeLabel) {
        let outcome = outcome.index();
        let code = usize::from(code);
        match self.pages[outcome].get((code / PAGE).wrapping_sub(1)) {
            Some(page) => {
                let page = match page.get() {
                    Some(page) => page,
                    None => first_page(page),
                };
                page[code % PAGE].add(access, 1);
            }
            None if code == 0 => self.none[outcome].add(access, 1),
            None => self.other[outcome].add(access, 1),
        }
    }

    /// Adds what was counted to `total`.
    pub(crate) fn collect(&self, total: &mut CodeSums) {
        for outcome in 0..OUTCOMES {
            for (class, page) in self.pages[outcome].iter().enumerate() {
                let Some(page) = page.get() else { continue };
                for (rest, cell) in page.iter().enumerate() {
                    // Fits: at most 599.
                    total.add(
                        Code::Status(((class + 1) * PAGE + rest) as u16),
                        outcome,
                        cell.get(),
                    );
                }
            }
            total.add(Code::None, outcome, self.none[outcome].get());
            total.add(Code::Other, outcome, self.other[outcome].get());
        }
    }
}

#[cold]
fn first_page(page: &OnceLock<Box<[Cell64; PAGE]>>) -> &[Cell64; PAGE] {
    page.get_or_init(|| Box::new(std::array::from_fn(|_| Cell64::default())))
}

/// Label `code`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Code {
    /// There was no answer.
    None,
    /// Not a status RFC 9110 (section 15) knows a class for.
    Other,
    /// 100 to 599.
    Status(u16),
}

/// Counts by code and outcome that are not zero.
#[derive(Debug, Default)]
pub(crate) struct CodeSums(pub(crate) std::collections::BTreeMap<(Code, usize), u64>);

impl CodeSums {
    fn add(&mut self, code: Code, outcome: usize, n: u64) {
        if n > 0 {
            let total = self.0.entry((code, outcome)).or_default();
            *total = total.wrapping_add(n);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Default)]
    struct One(Cell64);

    impl Block for One {
        fn empty(_: &Layout) -> Self {
            Self::default()
        }
    }

    fn layout(workers: usize) -> Arc<Layout> {
        Arc::new(Layout {
            workers,
            latency: Bounds::latency(),
            overhead: Bounds::overhead(),
            attempts: Bounds::of_counts(vec![1, 2, 3, 4, 5]),
        })
    }

    #[test]
    fn every_worker_has_its_own_block_and_everybody_else_shares_one() {
        let cells = Sharded::<One>::new(&layout(4));
        std::thread::scope(|scope| {
            let cells = &cells;
            for worker in [0, 1, 2, 3, 4, 9, u16::MAX] {
                scope.spawn(move || {
                    for _ in 0..10_000 {
                        let slot = cells.at(WorkerId::new(worker));
                        slot.block.0.add(slot.access, 1);
                    }
                });
            }
        });
        assert_eq!(cells.sum(|block| &block.0), 70_000);
        assert_eq!(cells.block(3).unwrap().0.get(), 10_000);
        assert_eq!(
            cells.block(4).unwrap().0.get(),
            30_000,
            "4, 9 and CONTROL share the last block"
        );
    }

    #[test]
    fn a_handle_nobody_used_has_no_blocks() {
        let cells = Sharded::<One>::new(&layout(8));
        assert_eq!(cells.blocks().count(), 0);
        assert_eq!(cells.sum(|block| &block.0), 0);
        let _first = cells.at(WorkerId::new(7));
        assert_eq!(cells.blocks().count(), 1);
    }

    #[test]
    fn a_value_on_a_bound_is_inside_of_it() {
        let bounds = Bounds::of_counts(vec![5, 1, 3, 3]);
        assert_eq!(bounds.upper(), [1, 3, 5]);
        assert_eq!(
            [0, 1, 2, 3, 4, 5, 6, u64::MAX].map(|value| bounds.bucket(value)),
            [0, 0, 1, 1, 2, 2, 3, 3]
        );
        assert_eq!(Bounds::of_counts(Vec::new()).bucket(7), 0);
    }

    proptest! {
        #[test]
        fn the_bucket_table_agrees_with_a_search(upper in proptest::collection::vec(any::<u64>(), 0..70), value: u64, shift in 0u32..64) {
            let bounds = Bounds::of_counts(upper);
            for value in [value, value >> shift] {
                prop_assert_eq!(bounds.bucket(value), bounds.upper().partition_point(|bound| *bound < value));
            }
            for bound in bounds.upper() {
                prop_assert_eq!(bounds.bucket(*bound), bounds.upper().partition_point(|b| b < bound));
            }
        }
    }
}
