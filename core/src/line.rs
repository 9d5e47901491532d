//! Line: who waits at a full limit, and who of them is next.
//!
//! One [`Queue`] for each [`Priority`]: whoever matters more is next, and within a class the queue decides. A place that
//! becomes free is not handed over; the one who is next is told and takes it itself, because only it knows whether that
//! place serves it (an endpoint may have gone, or have been tried). So it stays in the line until it has one.
//!
//! Whoever frees a place must not pay for the line while nobody stands in it: [`Waiting`] counts them beside the lock.
//!
//! What must stay true: at most `capacity` wait over all classes; whoever is told to be next is the one that
//! [`Line::next`] names for as long as nobody comes or leaves.

use crate::limit::{Queue, Ticket};
use crate::moment::Moment;
use crate::shed::Priority;
use crate::sync::{AtomicU32, Ordering, fence};

/// Those who wait. `T` is a handle of the waiter.
#[derive(Debug)]
pub struct Line<T> {
    /// By [`Priority`].
    classes: [Queue<T>; Priority::ALL.len()],
}

/// How many stand in a line, shared by all threads.
///
/// A place that becomes free between the last try of one who joins and its sleep must not be lost. The one joins and then
/// tries, the other releases and then looks; with a fence between the two on either side, one of them sees what the other
/// did.
#[derive(Debug)]
pub struct Waiting {
    count: AtomicU32,
}

impl Waiting {
    /// Nobody.
    #[must_use]
    pub fn new() -> Self {
        Self {
            count: AtomicU32::new(0),
        }
    }

    /// One more stands in the line, and has to try once more before it sleeps.
    pub fn join(&self) {
        // Ordering: Relaxed; the fence orders it before the try.
        self.count.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// One is out of the line.
    pub fn leave(&self) {
        // Ordering: Relaxed; too high a number costs a look.
        self.count.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether somebody may have to be told that a place was released just now.
    #[must_use]
    pub fn any_after_release(&self) -> bool {
        fence(Ordering::SeqCst);
        // Ordering: Relaxed; the fence orders it behind the release.
        self.count.load(Ordering::Relaxed) > 0
    }

    /// How many there are, for gauges, and to keep newcomers from overtaking: one who reads it late is one place further
    /// ahead.
    #[must_use]
    pub fn count(&self) -> u32 {
        // Ordering: Relaxed, as said.
        self.count.load(Ordering::Relaxed)
    }
}

impl Default for Waiting {
    fn default() -> Self {
        Self::new()
    }
}

/// Names one who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    class: Priority,
    ticket: Ticket,
}

impl Spot {
    /// Its class.
    #[must_use]
    pub const fn class(self) -> Priority {
        self.class
    }

    /// When its time is over.
    #[must_use]
    pub const fn until(self) -> Moment {
        self.ticket.until()
    }
}

impl<T> Line<T> {
    /// Nobody waits.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            classes: [Queue::new(), Queue::new(), Queue::new(), Queue::new()],
        }
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.classes.iter().map(Queue::len).sum()
    }

    /// Whether nobody does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.classes.iter().all(Queue::is_empty)
    }

    /// Waits until `until` at most; see [`Queue::push`]. When the room is needed, those whose time is over go to `out`, and
    /// if that does not help the last one of the least important class, if that is below this one.
    ///
    /// # Errors
    /// The handle, if `capacity` wait already who matter as much.
    pub fn push(
        &mut self,
        handle: T,
        class: Priority,
        until: Moment,
        capacity: usize,
        now: Moment,
        mut out: impl FnMut(T),
    ) -> Result<Spot, T> {
        if self.len() >= capacity {
            for queue in &mut self.classes {
                queue.expire(now, &mut out);
            }
        }
        if self.len() >= capacity {
            let below = &mut self.classes[..class as usize];
            match below.iter_mut().find_map(Queue::pop_last) {
                Some(last) if capacity > 0 => out(last),
                Some(_) | None => return Err(handle),
            }
        }
        let ticket = self.classes[class as usize].push(handle, until, capacity, now)?;
        Ok(Spot { class, ticket })
    }

    /// Who is next. Those met on the way whose time is over go to `late`.
    pub fn next(&mut self, now: Moment, mut late: impl FnMut(T)) -> Option<(Spot, &T)> {
        let classes = Priority::ALL.into_iter().zip(&mut self.classes).rev();
        for (class, queue) in classes {
            if let Some((ticket, handle)) = queue.front(now, &mut late) {
                return Some((Spot { class, ticket }, handle));
            }
        }
        None
    }

    /// Takes one out; `None` if it was late before.
    pub fn remove(&mut self, spot: Spot) -> Option<T> {
        self.classes[spot.class as usize].remove(spot.ticket)
    }
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::{dice::Dice, limit::Limit};
    use proptest::prelude::*;
    use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

    fn at(millis: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_millis(millis))
    }

    fn next(line: &mut Line<u32>, now: u64) -> Option<u32> {
        line.next(at(now), drop).map(|(_, who)| *who)
    }

    #[test]
    fn who_matters_more_is_next() {
        let mut line = Line::new();
        let mut push = |who, class| line.push(who, class, at(1000), 9, at(0), drop).unwrap();
        push(0, Priority::Low);
        let normal = push(1, Priority::Normal);
        push(2, Priority::Normal);
        let critical = push(3, Priority::Critical);
        assert_eq!(next(&mut line, 0), Some(3));
        assert_eq!(next(&mut line, 0), Some(3), "it stays until it has a place");
        assert_eq!(line.remove(critical), Some(3));
        assert_eq!(next(&mut line, 0), Some(1));
        assert_eq!(line.remove(normal), Some(1));
        assert_eq!(line.remove(normal), None);
        assert_eq!(next(&mut line, 0), Some(2));
    }

    #[test]
    fn one_capacity_holds_for_all_classes_and_the_late_make_room() {
        let mut line = Line::new();
        assert!(line.push(0, Priority::High, at(10), 2, at(0), drop).is_ok());
        assert!(line.push(1, Priority::High, at(20), 2, at(0), drop).is_ok());
        assert_eq!(line.push(2, Priority::High, at(20), 2, at(9), drop), Err(2));
        let mut late = Vec::new();
        let pushed = line.push(3, Priority::Normal, at(20), 2, at(10), |who| late.push(who));
        assert_eq!((pushed.is_ok(), late), (true, vec![0]));
    }

    #[test]
    fn who_matters_more_takes_the_room_of_who_matters_least() {
        let mut line = Line::new();
        let mut out = Vec::new();
        let mut push = |line: &mut Line<u32>, who, class| {
            line.push(who, class, at(1000), 3, at(0), |who| out.push(who))
                .is_ok()
        };
        assert!(push(&mut line, 0, Priority::Normal));
        assert!(push(&mut line, 1, Priority::Low));
        assert!(push(&mut line, 2, Priority::Low));
        assert!(!push(&mut line, 3, Priority::Low), "not of its own class");
        assert!(push(&mut line, 4, Priority::High));
        assert!(push(&mut line, 5, Priority::Normal));
        assert!(!push(&mut line, 6, Priority::Normal));
        assert_eq!(out, [2, 1]);
        assert_eq!(
            line.push(7, Priority::Critical, at(9), 0, at(0), drop),
            Err(7),
            "no room at all"
        );
    }

    /// Who has a place gives it back at that moment.
    struct Service {
        limit: Limit,
        line: Line<u32>,
        ends: BinaryHeap<Reverse<Moment>>,
        dice: Dice,
        refused: u32,
        waited: u32,
    }

    impl Service {
        const PLACES: u32 = 100;

        fn new() -> Self {
            Self {
                limit: Limit::new(),
                line: Line::new(),
                ends: BinaryHeap::new(),
                dice: Dice::new(7),
                refused: 0,
                waited: 0,
            }
        }

        /// An exponentially distributed time with this mean.
        fn span(&mut self, mean: f64) -> Duration {
            Duration::from_secs_f64(-(1.0 - self.dice.unit()).ln() * mean)
        }

        fn enter(&mut self, now: Moment) -> bool {
            let entered = self.limit.try_acquire(Priority::Normal.share(Self::PLACES));
            if entered {
                let end = now.plus(self.span(1.0));
                self.ends.push(Reverse(end));
            }
            entered
        }

        fn until(&mut self, now: Moment) {
            while let Some(Reverse(end)) = self.ends.pop() {
                if end > now {
                    self.ends.push(Reverse(end));
                    return;
                }
                self.limit.release();
                let mut late = 0;
                let next = self.line.next(end, |_| late += 1).map(|(spot, _)| spot);
                self.refused += late;
                if let Some(spot) = next
                    && self.enter(end)
                {
                    self.line.remove(spot);
                }
            }
        }

        fn arrive(&mut self, now: Moment) {
            self.until(now);
            if self.line.is_empty() && self.enter(now) {
                return;
            }
            self.waited += 1;
            let until = now.plus(Duration::from_secs(1));
            let mut late = 0;
            let pushed = self
                .line
                .push(0, Priority::Normal, until, 1024, now, |_| late += 1);
            self.refused += late + u32::from(pushed.is_err());
        }
    }

    /// Arrivals and ends by chance, a second each on average, at three fifths of what there is room for.
    #[test]
    fn scenario_34_below_capacity_nobody_is_refused_for_an_hour() {
        let mut service = Service::new();
        let mut now = at(0);
        let mut came = 0;
        while now < at(3_600_000) {
            now = now.plus(service.span(1.0 / 60.0));
            service.arrive(now);
            came += 1;
        }
        service.until(Moment::FAR_FUTURE);
        assert!(came > 200_000, "{came}");
        assert_eq!(service.refused, 0, "{} waited", service.waited);
    }

    /// And at three times of it, the places do not stand empty for the waiting.
    #[test]
    fn scenario_34_above_capacity_the_places_are_used() {
        let mut service = Service::new();
        let mut now = at(0);
        let (mut looks, mut taken) = (0_u64, 0_u64);
        while now < at(120_000) {
            now = now.plus(service.span(1.0 / 300.0));
            service.arrive(now);
            if now > at(10_000) {
                looks += 1;
                taken += u64::from(service.limit.in_flight());
            }
        }
        let used = taken as f64 / looks as f64;
        assert!(
            used >= 0.95 * f64::from(Priority::Normal.share(Service::PLACES)),
            "{used}"
        );
        assert!(service.refused > 0);
    }

    proptest! {
        #[test]
        fn everybody_leaves_once_and_nobody_overtakes_who_matters_more(
            steps in proptest::collection::vec((0usize..4, 0u64..300, 0u64..40, proptest::bool::ANY), 1..200),
        ) {
            let mut line = Line::new();
            let (mut now, mut out, mut waiting) = (0, 0_u32, Vec::new());
            let mut pushed = 0_u32;
            for (class, patience, pause, leave) in steps {
                now += pause;
                if leave {
                    let served = line.next(at(now), |_| out += 1).map(|(spot, who)| (spot, *who));
                    if let Some((spot, who)) = served {
                        let class = spot.class;
                        prop_assert!(spot.until() > at(now));
                        let alive = |(other, until): &(Priority, u64)| *other > class && at(*until) > at(now);
                        prop_assert!(!waiting.iter().flatten().any(alive));
                        prop_assert_eq!(line.remove(spot), Some(who));
                        waiting[who as usize] = None;
                        out += 1;
                    }
                } else {
                    let class = Priority::ALL[class];
                    let leave = |who: u32| {
                        out += 1;
                        waiting[who as usize] = None;
                    };
                    match line.push(pushed, class, at(now + patience), 6, at(now), leave) {
                        // A standing queue shortens the wait.
                        Ok(spot) => waiting.push(Some((class, spot.until().as_nanos() / 1_000_000))),
                        Err(_) => {
                            waiting.push(None);
                            out += 1;
                        }
                    }
                    pushed += 1;
                }
                prop_assert!(line.len() <= 6);
            }
            for _ in 0..=6 {
                line.next(Moment::FAR_FUTURE, |_| out += 1);
            }
            prop_assert_eq!(out, pushed);
            prop_assert!(line.is_empty());
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::limit::Limit;
    use loom::{sync::Arc, thread};

    #[test]
    fn loom_a_place_that_is_freed_is_taken_or_told() {
        loom::model(|| {
            let shared = Arc::new((Limit::new(), Waiting::new()));
            assert!(shared.0.try_acquire(1));
            let other = Arc::clone(&shared);
            let thread = thread::spawn(move || {
                other.0.release();
                other.1.any_after_release()
            });
            shared.1.join();
            let taken = shared.0.try_acquire(1);
            let told = thread.join().unwrap();
            assert!(taken || told, "it sleeps beside a free place");
        });
    }
}
