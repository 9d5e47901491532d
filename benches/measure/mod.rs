//! The loop that the micro-benchmarks share.

use std::hint::black_box;

/// Prints what `operation` costs: the best of eleven batches, because noise only ever adds.
#[expect(clippy::disallowed_types, reason = "a benchmark measures real time")]
pub(crate) fn measure<T>(what: &str, mut operation: impl FnMut() -> T) {
    const BATCH: u32 = 20_000;
    let best = (0..11)
        .map(|_| {
            let start = std::time::Instant::now();
            for _ in 0..BATCH {
                black_box(operation());
            }
            start.elapsed()
        })
        .min()
        .expect("eleven batches");
    println!(
        "{what:<52} {:>8.1} ns",
        best.as_secs_f64() * 1e9 / f64::from(BATCH)
    );
}
