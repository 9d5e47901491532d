//! Coarse timers of one worker.
//!
//! A request sets several deadlines and almost never meets one. A timer here is a slot in a slab; moving a deadline
//! *later* writes one word, because an entry that comes up early is simply queued again. Only an earlier deadline
//! relinks the entry. One task per worker sleeps until the next occupied slot, so an idle worker is not woken.
//!
//! Resolution is [`TICK`]; a timer never fires early and at most one tick (plus scheduling) late.
//! Invariant: an armed entry is linked in exactly one slot, whose tick is not later than its deadline's tick.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bellwether_core::Moment;

use super::clock::Clock;

/// Width of one slot.
pub const TICK: Duration = Duration::from_millis(10);
const TICK_NANOS: u64 = 10_000_000;
const SLOTS: usize = 1024;
const WORDS: usize = SLOTS / 64;
const NIL: u32 = u32::MAX;
const UNARMED: u64 = u64::MAX;

/// The timers of one worker. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Wheel {
    inner: Rc<RefCell<Inner>>,
    recent: Rc<Cell<Moment>>,
    clock: Clock,
}

/// One deadline that can be moved. Dropping it disarms it.
#[derive(Debug)]
pub struct Timer {
    wheel: Wheel,
    key: u32,
}

#[derive(Debug)]
struct Inner {
    nodes: Vec<Node>,
    free: u32,
    heads: Box<[u32; SLOTS]>,
    occupied: [u64; WORDS],
    /// Every slot up to and including this tick has been served.
    served: u64,
    driver: Option<Waker>,
    /// The tick for which the driver sleeps; `u64::MAX` while it waits for any timer at all.
    sleeping_until: u64,
}

#[derive(Debug)]
struct Node {
    deadline: u64,
    queued: u64,
    prev: u32,
    next: u32,
    fired: bool,
    waker: Option<Waker>,
}

impl Wheel {
    /// An empty wheel; [`Wheel::drive`] must run on the same worker.
    pub fn new(clock: Clock) -> Self {
        let inner = Inner {
            nodes: Vec::new(),
            free: NIL,
            heads: Box::new([NIL; SLOTS]),
            occupied: [0; WORDS],
            served: clock.now().as_nanos() / TICK_NANOS,
            driver: None,
            sleeping_until: u64::MAX,
        };
        Self {
            inner: Rc::new(RefCell::new(inner)),
            recent: Rc::new(Cell::new(clock.now())),
            clock,
        }
    }

    /// The clock that this wheel follows.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Reads the clock, and remembers the value for [`Wheel::recent`].
    pub fn now(&self) -> Moment {
        let now = self.clock.now();
        self.recent.set(now);
        now
    }

    /// The last value of [`Wheel::now`]: good enough to start a timeout of seconds without another clock read.
    pub fn recent(&self) -> Moment {
        self.recent.get()
    }

    /// A new, disarmed timer.
    pub fn timer(&self) -> Timer {
        Timer {
            key: self.inner.borrow_mut().allocate(),
            wheel: self.clone(),
        }
    }

    /// Completes at `deadline`, at the wheel's resolution.
    pub async fn sleep_until(&self, deadline: Moment) {
        let timer = self.timer();
        timer.set(deadline);
        poll_fn(|cx| timer.poll_expired(cx)).await;
    }

    /// Serves due timers for ever; spawn it once per worker.
    pub async fn drive(self) {
        loop {
            let next = self.inner.borrow_mut().serve(self.now().as_nanos() / TICK_NANOS);
            let until = next.map(|tick| {
                self.clock.instant(Moment::from_nanos(
                    tick.saturating_add(1).saturating_mul(TICK_NANOS),
                ))
            });
            self.inner.borrow_mut().sleeping_until = next.unwrap_or(u64::MAX);
            let earlier = poll_fn(|cx| {
                let mut inner = self.inner.borrow_mut();
                if inner.sleeping_until == 0 {
                    return Poll::Ready(());
                }
                match &mut inner.driver {
                    Some(waker) if waker.will_wake(cx.waker()) => {}
                    slot => *slot = Some(cx.waker().clone()),
                }
                Poll::Pending
            });
            match until {
                Some(instant) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(instant) => {}
                        () = earlier => {}
                    }
                }
                None => earlier.await,
            }
        }
    }

    /// How many timers exist, armed or not; for tests and leak checks.
    pub fn timers(&self) -> usize {
        let inner = self.inner.borrow();
        let mut free = 0;
        let mut at = inner.free;
        while at != NIL {
            free += 1;
            at = inner.nodes[at as usize].next;
        }
        inner.nodes.len() - free
    }
}

impl Timer {
    /// Arms the timer, or moves it. A deadline in the past fires at the next tick.
    pub fn set(&self, deadline: Moment) {
        self.wheel.inner.borrow_mut().set(self.key, deadline.as_nanos());
    }

    /// Disarms the timer.
    pub fn clear(&self) {
        let mut inner = self.wheel.inner.borrow_mut();
        let node = &mut inner.nodes[self.key as usize];
        node.deadline = UNARMED;
        node.fired = false;
    }

    /// Whether a deadline is set (it may have passed).
    pub fn is_armed(&self) -> bool {
        self.wheel.inner.borrow().nodes[self.key as usize].deadline != UNARMED
    }

    /// Ready once the deadline has passed; stays ready until set or cleared.
    pub fn poll_expired(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.wheel.inner.borrow_mut();
        let node = &mut inner.nodes[self.key as usize];
        if node.fired {
            return Poll::Ready(());
        }
        match &node.waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            Some(_) | None => node.waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// The wheel that this timer belongs to.
    pub fn wheel(&self) -> &Wheel {
        &self.wheel
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.wheel.inner.borrow_mut().release(self.key);
    }
}

impl Inner {
    fn allocate(&mut self) -> u32 {
        let blank = Node {
            deadline: UNARMED,
            queued: UNARMED,
            prev: NIL,
            next: NIL,
            fired: false,
            waker: None,
        };
        if self.free == NIL {
            self.nodes.push(blank);
            return u32::try_from(self.nodes.len() - 1).unwrap_or(NIL - 1);
        }
        let key = self.free;
        self.free = self.nodes[key as usize].next;
        self.nodes[key as usize] = blank;
        key
    }

    fn release(&mut self, key: u32) {
        self.unlink(key);
        let free = self.free;
        let node = &mut self.nodes[key as usize];
        node.waker = None;
        node.next = free;
        self.free = key;
    }

    fn set(&mut self, key: u32, deadline: u64) {
        let served = self.served;
        let node = &mut self.nodes[key as usize];
        node.deadline = deadline.min(UNARMED - 1);
        node.fired = false;
        let tick = (node.deadline / TICK_NANOS).max(served + 1);
        if node.queued != UNARMED && node.queued <= tick {
            return;
        }
        self.unlink(key);
        self.link(key, tick);
        let tick = self.nodes[key as usize].queued;
        if tick < self.sleeping_until {
            self.sleeping_until = 0;
            if let Some(waker) = self.driver.take() {
                waker.wake();
            }
        }
    }

    fn link(&mut self, key: u32, tick: u64) {
        // Beyond the horizon the entry waits in the farthest slot and is queued again from there.
        let tick = tick.min(self.served + SLOTS as u64 - 1);
        let slot = (tick % SLOTS as u64) as usize;
        let head = self.heads[slot];
        if head != NIL {
            self.nodes[head as usize].prev = key;
        }
        let node = &mut self.nodes[key as usize];
        node.queued = tick;
        node.prev = NIL;
        node.next = head;
        self.heads[slot] = key;
        self.occupied[slot / 64] |= 1 << (slot % 64);
    }

    fn unlink(&mut self, key: u32) {
        let node = &mut self.nodes[key as usize];
        if node.queued == UNARMED {
            return;
        }
        let slot = (node.queued % SLOTS as u64) as usize;
        let (prev, next) = (node.prev, node.next);
        node.queued = UNARMED;
        node.prev = NIL;
        node.next = NIL;
        if prev == NIL {
            self.heads[slot] = next;
        } else {
            self.nodes[prev as usize].next = next;
        }
        if next != NIL {
            self.nodes[next as usize].prev = prev;
        }
        if self.heads[slot] == NIL {
            self.occupied[slot / 64] &= !(1 << (slot % 64));
        }
    }

    /// Fires everything due before the end of tick `now - 1` and returns the next occupied tick.
    ///
    /// A slot is served only when its whole tick has passed, hence no timer fires early.
    fn serve(&mut self, now: u64) -> Option<u64> {
        // After a long sleep each slot needs one visit only.
        let first = (self.served + 1).max(now.saturating_sub(SLOTS as u64));
        let last = now.saturating_sub(1);
        for tick in first..=last {
            self.served = tick;
            let slot = (tick % SLOTS as u64) as usize;
            while self.heads[slot] != NIL {
                let key = self.heads[slot];
                self.unlink(key);
                let node = &mut self.nodes[key as usize];
                if node.deadline == UNARMED {
                    continue;
                }
                let due = node.deadline / TICK_NANOS;
                if due <= tick || due < now {
                    node.fired = true;
                    if let Some(waker) = node.waker.take() {
                        waker.wake();
                    }
                } else {
                    self.link(key, due.max(tick + 1));
                }
            }
        }
        self.served = self.served.max(last);
        self.next_occupied()
    }

    fn next_occupied(&self) -> Option<u64> {
        let start = self.served + 1;
        let first = (start % SLOTS as u64) as usize;
        let mut offset = 0;
        while offset < SLOTS {
            let slot = (first + offset) % SLOTS;
            let word = self.occupied[slot / 64] >> (slot % 64);
            if word != 0 {
                let found = offset + word.trailing_zeros() as usize;
                return (found < SLOTS).then(|| start + found as u64);
            }
            offset += 64 - slot % 64;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use tokio::time::Instant;

    fn run<F: Future>(test: impl FnOnce(Wheel) -> F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime for tests");
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async {
            let wheel = Wheel::new(Clock::start());
            tokio::task::spawn_local(wheel.clone().drive());
            test(wheel).await
        })
    }

    async fn elapsed(wheel: &Wheel, wait: Duration) -> Duration {
        let start = Instant::now();
        wheel.sleep_until(wheel.clock().now().plus(wait)).await;
        start.elapsed()
    }

    #[test]
    fn a_timer_never_fires_early_and_at_most_two_ticks_late() {
        run(|wheel| async move {
            for millis in [
                0, 1, 9, 10, 11, 250, 999, 10_230, 10_240, 10_250, 75_000, 3_600_000,
            ] {
                let wait = Duration::from_millis(millis);
                let took = elapsed(&wheel, wait).await;
                assert!(
                    took >= wait && took <= wait + 2 * TICK + Duration::from_millis(1),
                    "{wait:?} took {took:?}"
                );
            }
            assert_eq!(wheel.timers(), 0);
        });
    }

    #[test]
    fn a_deadline_that_moves_later_waits_for_the_later_one() {
        run(|wheel| async move {
            let start = Instant::now();
            let timer = wheel.timer();
            let now = wheel.clock().now();
            timer.set(now.plus(Duration::from_millis(100)));
            timer.set(now.plus(Duration::from_secs(30)));
            poll_fn(|cx| timer.poll_expired(cx)).await;
            assert!(start.elapsed() >= Duration::from_secs(30));
        });
    }

    #[test]
    fn a_deadline_that_moves_earlier_wakes_the_sleeping_driver() {
        run(|wheel| async move {
            let start = Instant::now();
            let timer = wheel.timer();
            let now = wheel.clock().now();
            timer.set(now.plus(Duration::from_secs(300)));
            tokio::task::yield_now().await;
            timer.set(now.plus(Duration::from_millis(40)));
            poll_fn(|cx| timer.poll_expired(cx)).await;
            assert!(start.elapsed() < Duration::from_millis(80));
        });
    }

    #[test]
    fn a_cleared_timer_stays_silent() {
        run(|wheel| async move {
            let timer = wheel.timer();
            timer.set(wheel.clock().now().plus(Duration::from_millis(20)));
            timer.clear();
            elapsed(&wheel, Duration::from_secs(60)).await;
            poll_fn(|cx| {
                assert!(timer.poll_expired(cx).is_pending());
                Poll::Ready(())
            })
            .await;
        });
    }

    #[test]
    fn thousands_of_timers_of_every_length_fire_in_their_order() {
        run(|wheel| async move {
            let mut dice = bellwether_core::Dice::new(7);
            let mut tasks = Vec::new();
            for _ in 0..3_000 {
                let wait = Duration::from_millis(u64::from(dice.below(120_000)));
                let wheel = wheel.clone();
                tasks.push(tokio::task::spawn_local(async move {
                    let took = elapsed(&wheel, wait).await;
                    assert!(took >= wait && took <= wait + 3 * TICK, "{wait:?} took {took:?}");
                }));
            }
            for task in tasks {
                task.await.expect("no timer is early or late");
            }
        });
    }
}
