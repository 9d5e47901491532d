//! Budget: how many extra requests a cluster may be sent because the first ones failed.
//!
//! Retries help while few requests fail and finish a cluster off when many do. So retries are paid for: over any window
//! they are at most a share of the requests that were offered, plus a few per second so that a quiet service can be
//! retried at all. A layer of proxies with a budget of 20 % multiplies the load of a failing service by 1.2; one that
//! allows three tries without a budget, by three.
//!
//! Offering a request is one addition. Retries are rare, and deciding about one takes a lock, so the limit is exact: two
//! workers cannot both take the last one. A retry is paid for when it is scheduled, so those that wait count too, and
//! it holds a [`Spent`] until it ends, because retries that hang are more load than their number says.
//!
//! Invariant: over any window, granted ≤ `share` × offered + `per_second` × length. A request that nobody has seen is not
//! paid for: a refused connection is no load, and one dead endpoint of three must not fail a third of the requests. Nor is
//! one that met a connection which ended while it was idle: that says nothing of how the endpoint does.
//!
//! After the retry budget of Finagle and tower; Gateway API GEP-3388 has the same three numbers.

use std::sync::Arc;
use std::time::Duration;

use crate::moment::Moment;
use crate::sync::{AtomicU32, Mutex, Ordering};
use crate::window::{self, Sample, Window};

/// How much may be spent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Retries per offered request, 0.0 to 1.0 and more.
    pub share: f64,
    /// Retries per second that are always allowed.
    pub per_second: u32,
    /// How far back is looked.
    pub window: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            share: 0.2,
            per_second: 3,
            window: Duration::from_secs(10),
        }
    }
}

/// Why a retry is not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// The window is spent.
    Spent,
    /// Too many retries are under way.
    InFlight,
}

/// The budget of one cluster, shared by all workers and routes.
#[derive(Debug)]
pub struct Budget {
    offered: Window,
    granted: Window,
    deciding: Mutex<()>,
    in_flight: AtomicU32,
}

/// What was offered and granted, in a form that another process can take over.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Saved {
    /// Requests.
    pub offered: window::Saved,
    /// Retries.
    pub granted: window::Saved,
}

/// A retry that was granted; dropping it says that it ended.
#[derive(Debug)]
#[must_use = "the retry is over when this is dropped"]
pub struct Spent(Arc<Budget>);

impl Drop for Spent {
    fn drop(&mut self) {
        // Ordering: Relaxed; a count of its own.
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Retries that may always be under way at once: an endpoint that hangs lets go of all its requests together, and none of
/// them should fail for it.
const ALWAYS_IN_FLIGHT: u32 = 10;

impl Budget {
    /// An unspent budget that looks back over `window`.
    #[must_use]
    pub fn new(window: Duration) -> Self {
        Self {
            offered: Window::new(window),
            granted: Window::new(window),
            deciding: Mutex::new(()),
            in_flight: AtomicU32::new(0),
        }
    }

    /// What another process has to know. Retries under way end here.
    #[must_use]
    pub fn save(&self, now: Moment) -> Saved {
        Saved {
            offered: self.offered.save(now),
            granted: self.granted.save(now),
        }
    }

    /// A budget as spent as another one was.
    #[must_use]
    pub fn restored(saved: &Saved, now: Moment) -> Self {
        let granted = window::Saved {
            length: saved.offered.length,
            periods: saved.granted.periods.clone(),
        };
        Self {
            offered: Window::restored(&saved.offered, now),
            granted: Window::restored(&granted, now),
            deciding: Mutex::new(()),
            in_flight: AtomicU32::new(0),
        }
    }

    /// Whether it looks back as far as the settings ask for.
    #[must_use]
    pub fn fits(&self, settings: &Settings) -> bool {
        self.offered.is_over(settings.window)
    }

    /// A request arrived that is not itself a retry.
    pub fn offer(&self, now: Moment) {
        self.offered.record(Sample::Good, now);
    }

    /// Asks for a retry while `active` requests of the cluster are under way.
    ///
    /// # Errors
    /// Why it is not granted.
    pub fn spend(self: &Arc<Self>, settings: &Settings, active: u32, now: Moment) -> Result<Spent, Denied> {
        // A panic while it was held left nothing half done.
        let deciding = self
            .deciding
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        // Ordering: Relaxed; only ever raised under the lock.
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        let most = (f64::from(active) * settings.share).max(f64::from(ALWAYS_IN_FLIGHT));
        if f64::from(in_flight) >= most {
            return Err(Denied::InFlight);
        }
        if f64::from(self.granted.counts(now).total) + 1.0 > self.most(settings, now) {
            return Err(Denied::Spent);
        }
        self.granted.record(Sample::Good, now);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        drop(deciding);
        Ok(Spent(Arc::clone(self)))
    }

    /// What is left, in retries, and how many are under way.
    #[must_use]
    pub fn left(&self, settings: &Settings, now: Moment) -> (f64, u32) {
        let left = self.most(settings, now) - f64::from(self.granted.counts(now).total);
        (left.max(0.0), self.in_flight.load(Ordering::Relaxed))
    }

    fn most(&self, settings: &Settings, now: Moment) -> f64 {
        let offered = f64::from(self.offered.counts(now).total);
        settings.share * offered + f64::from(settings.per_second) * settings.window.as_secs_f64()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(millis: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_millis(millis))
    }

    fn budget(settings: &Settings) -> Arc<Budget> {
        Arc::new(Budget::new(settings.window))
    }

    #[test]
    fn scenario_28_a_fifth_of_the_requests_and_three_a_second() {
        let settings = Settings::default();
        let budget = budget(&settings);
        let mut granted = Vec::new();
        // 100 requests a second for a minute, all of which want a retry.
        for request in 0..6_000u64 {
            let now = request * 10;
            budget.offer(at(now));
            if budget.spend(&settings, 10, at(now)).is_ok() {
                granted.push(now);
            }
        }
        for start in (0..50_000).step_by(1_000) {
            let in_window = granted
                .iter()
                .filter(|t| (start..start + 10_000).contains(*t))
                .count();
            assert!(
                in_window <= 200 + 30,
                "{in_window} in the ten seconds from {start}"
            );
        }
        assert!(
            granted.len() > 6_000 / 5,
            "and not much less than allowed: {}",
            granted.len()
        );
    }

    #[test]
    fn retries_that_hang_stop_further_ones() {
        let settings = Settings::default();
        let budget = budget(&settings);
        let held: Vec<_> = (0..20)
            .filter_map(|_| budget.spend(&settings, 0, at(0)).ok())
            .collect();
        assert_eq!(held.len(), 10);
        assert_eq!(budget.spend(&settings, 0, at(0)).err(), Some(Denied::InFlight));
        drop(held);
        assert!(budget.spend(&settings, 0, at(0)).is_ok());
        assert_eq!(budget.left(&settings, at(0)).1, 0);
    }

    #[test]
    fn a_successor_has_what_is_left() {
        let settings = Settings::default();
        let old = budget(&settings);
        for request in 0..100u64 {
            old.offer(at(request * 10));
            drop(old.spend(&settings, 10, at(request * 10)));
        }
        let new = Arc::new(Budget::restored(&old.save(at(1_000)), at(50_000)));
        assert!(new.fits(&settings));
        assert_eq!(new.left(&settings, at(50_000)), old.left(&settings, at(1_000)));
        assert_eq!(
            new.spend(&settings, 10, at(50_000)).err(),
            old.spend(&settings, 10, at(1_000)).err()
        );
    }

    proptest! {
        #[test]
        fn it_is_never_overspent(steps in prop::collection::vec((0u64..300, any::<bool>()), 1..400), percent in 0u32..100, least in 0u32..5) {
            let settings = Settings { share: f64::from(percent) / 100.0, per_second: least, window: Duration::from_secs(10) };
            let budget = budget(&settings);
            let (mut now, mut offered, mut granted) = (0, Vec::new(), Vec::new());
            for (wait, retry) in steps {
                now += wait;
                if !retry {
                    budget.offer(at(now));
                    offered.push(now / 1_000);
                } else if budget.spend(&settings, 1_000, at(now)).is_ok() {
                    granted.push(now / 1_000);
                    let recent = |list: &[u64]| list.iter().filter(|second| now / 1_000 - *second < 10).count() as f64;
                    let most = settings.share * recent(&offered) + f64::from(least) * 10.0;
                    prop_assert!(recent(&granted) <= most + 1e-9);
                }
            }
        }
    }

    #[test]
    fn scenario_45_threads_cannot_overspend() {
        let settings = Settings {
            share: 0.0,
            per_second: 10,
            window: Duration::from_secs(10),
        };
        let budget = budget(&settings);
        let granted: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        (0..1_000)
                            .filter(|_| budget.spend(&settings, 0, at(5)).is_ok())
                            .count()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or(0)).sum()
        });
        // Those that came while three were under way were refused, so there may be fewer.
        assert!(granted <= 100, "{granted}");
    }
}

#[cfg(loom)]
mod loom_tests {
    use super::*;

    #[test]
    fn loom_the_last_retry_is_granted_once() {
        loom::model(|| {
            let settings = Settings {
                share: 0.0,
                per_second: 1,
                window: Duration::from_secs(1),
            };
            let budget = Arc::new(Budget::new(settings.window));
            let other = Arc::clone(&budget);
            let thread =
                loom::thread::spawn(move || other.spend(&settings, 0, Moment::from_nanos(1)).is_ok());
            let mine = budget.spend(&settings, 0, Moment::from_nanos(1)).is_ok();
            assert!(mine != thread.join().expect("no panic"));
        });
    }
}
