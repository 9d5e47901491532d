//! The gate of a cluster: places under its limits, and who waits for one.
//!
//! A [`Seat`] is a place at the cluster or at one of its endpoints. All workers share the counts, and dropping a seat
//! tells the one who waits longest (or matters most) that it may try again; it is not handed the place, because only it
//! knows which endpoint serves it. Waiting costs a lock and an allocation, which only a full limit makes anybody pay; a
//! seat costs two atomic operations, and where no limit is set there is no seat.
//!
//! Invariants: what is told to nobody is lost, so whoever leaves the line, served or not, tells the next one; and a place
//! that becomes free between a try and the wait is seen by the one or by the other ([`Waiting`]).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bellwether_core::Moment;
use bellwether_core::limit::{Places, Stay};
use bellwether_core::line::{Line, Spot, Waiting};
use bellwether_core::shed::Priority;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{ClusterState, EndpointState};
use crate::net::clock::Clock;
use crate::net::wheel::Wheel;

/// Who waits for a place in a cluster.
#[derive(Debug, Default)]
pub struct Gate {
    /// How many stand in the line: without it every release would have to look.
    waiting: Waiting,
    line: Mutex<Line<Arc<Told>>>,
    /// Left by the first who waited, for those who tell.
    clock: OnceLock<Clock>,
}

/// What one who waits hears.
#[derive(Debug, Default)]
struct Told {
    something: Notify,
    /// It is out of the line.
    out: AtomicBool,
}

impl Told {
    fn try_again(&self) {
        self.something.notify_one();
    }

    fn put_out(this: &Arc<Self>) {
        // Ordering: the notification behind it publishes it.
        this.out.store(true, Ordering::Relaxed);
        this.something.notify_one();
    }
}

/// Why somebody need not wait any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnedAway {
    /// Too many wait already.
    Full,
    /// It was not its turn in time.
    Late,
}

/// How somebody waits.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Who goes before whom.
    pub priority: Priority,
    /// How long.
    pub until: Moment,
    /// Not if so many wait already.
    pub capacity: u32,
}

impl Gate {
    /// How many wait.
    pub fn waiting(&self) -> u32 {
        self.waiting.count()
    }

    /// Waits until `enter` finds a place. `enter` is called on this worker only.
    ///
    /// # Errors
    /// Why there was none. Dropping the future leaves the line.
    pub async fn wait<T>(
        &self,
        patience: Patience,
        wheel: &Wheel,
        mut enter: impl FnMut() -> Option<T>,
    ) -> Result<T, TurnedAway> {
        self.clock.get_or_init(|| wheel.clock());
        let now = wheel.now();
        if self.outranks_all(patience.priority, now)
            && let Some(entered) = enter()
        {
            return Ok(entered);
        }
        let standing = self.stand(patience, now).ok_or(TurnedAway::Full)?;
        let timer = wheel.timer();
        timer.set(standing.spot.until());
        // A newcomer tries only if nobody is before it; one who was told tries whoever has come since.
        let mut may_try = standing.is_next(now);
        loop {
            if may_try && let Some(entered) = enter() {
                return Ok(entered);
            }
            let told = standing.told.something.notified();
            let mut told = std::pin::pin!(told);
            may_try = std::future::poll_fn(|task| {
                if timer.poll_expired(task).is_ready() {
                    return std::task::Poll::Ready(false);
                }
                told.as_mut().poll(task).map(|()| true)
            })
            .await;
            if !may_try || wheel.now() >= standing.spot.until() {
                return Err(TurnedAway::Late);
            }
            if standing.told.out.load(Ordering::Relaxed) {
                return Err(TurnedAway::Full);
            }
        }
    }

    /// A place has become free.
    fn freed(&self) {
        if self.waiting.any_after_release() {
            self.tell();
        }
    }

    #[cold]
    fn tell(&self) {
        let now = self.clock.get().map_or(Moment::ZERO, Clock::now);
        let mut line = self.line.lock();
        if let Some((_, told)) = line.next(now, |late| Told::put_out(&late)) {
            told.try_again();
        }
    }

    /// Whether nobody waits who matters as much.
    fn outranks_all(&self, priority: Priority, now: Moment) -> bool {
        let mut line = self.line.lock();
        line.next(now, |late| Told::put_out(&late))
            .is_none_or(|(spot, _)| spot.class() < priority)
    }

    fn stand(&self, patience: Patience, now: Moment) -> Option<Standing<'_>> {
        let told = Arc::<Told>::default();
        let Patience {
            priority,
            until,
            capacity,
        } = patience;
        let spot = self
            .line
            .lock()
            .push(
                Arc::clone(&told),
                priority,
                until,
                capacity as usize,
                now,
                |out| Told::put_out(&out),
            )
            .ok()?;
        self.waiting.join();
        Some(Standing {
            gate: self,
            spot,
            told,
        })
    }
}

/// One who stands in the line, until it is dropped.
struct Standing<'a> {
    gate: &'a Gate,
    spot: Spot,
    told: Arc<Told>,
}

impl Standing<'_> {
    fn is_next(&self, now: Moment) -> bool {
        let mut line = self.gate.line.lock();
        line.next(now, |late| Told::put_out(&late))
            .is_some_and(|(spot, _)| spot == self.spot)
    }
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        self.gate.line.lock().remove(self.spot);
        self.gate.waiting.leave();
        // Whatever it was told is for the next one, and there may be room for two.
        self.gate.tell();
    }
}

/// A place under a limit of a cluster, or of one of its endpoints; dropping it gives the place back.
#[derive(Debug)]
#[must_use = "dropping a seat gives the place back at once"]
pub struct Seat {
    cluster: Arc<ClusterState>,
    /// Whose place it is; none for the cluster's own.
    endpoint: Option<Arc<EndpointState>>,
    stay: Stay,
    limit: u32,
    then: Then,
}

/// What follows when a place is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Tell,
    Nothing,
}

impl Seat {
    /// A place at the cluster, if fewer than `limit` are taken.
    pub(super) fn of_cluster(cluster: &Arc<ClusterState>, stay: Stay, limit: u32) -> Option<Self> {
        cluster.places.of(stay).try_acquire(limit).then(|| Self {
            cluster: Arc::clone(cluster),
            endpoint: None,
            stay,
            limit,
            then: Then::Tell,
        })
    }

    /// A place at an endpoint.
    pub(super) fn of_endpoint(
        cluster: &Arc<ClusterState>,
        endpoint: &Arc<EndpointState>,
        stay: Stay,
        limit: u32,
    ) -> Option<Self> {
        endpoint.places.of(stay).try_acquire(limit).then(|| Self {
            cluster: Arc::clone(cluster),
            endpoint: Some(Arc::clone(endpoint)),
            stay,
            limit,
            then: Then::Tell,
        })
    }

    fn places(&self) -> &Places {
        match &self.endpoint {
            Some(endpoint) => &endpoint.places,
            None => &self.cluster.places,
        }
    }

    /// The exchange turns out to last: from here on it is counted with those.
    pub fn lasts(&mut self) {
        if self.stay == Stay::Brief && self.places().move_to_lasting(self.limit) {
            self.stay = Stay::Lasting;
            self.cluster.gate.freed();
        }
    }

    /// Gives the place back and tells nobody: it was taken by the one who is next and cannot use it.
    pub(super) fn give_back_quietly(mut self) {
        self.then = Then::Nothing;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.places().of(self.stay).release();
        if self.then == Then::Tell {
            self.cluster.gate.freed();
        }
    }
}
