//! Hold: requests that need a leader wait for one, within limits, and go on in good order.
//!
//! A failover takes seconds, and most of its errors can be waits instead: a write that was *never sent* loses nothing by
//! waiting, so this works for failovers that nobody planned. Limits keep it from becoming a queue that outlives its use:
//! so many, so large, so long; a failover that takes too long, or comes too soon after the last, is not waited for.
//!
//! When a leader is there, not all go at once: one goes first (the canary), and only if it succeeds the others follow,
//! more and more at a time. Who comes while others wait goes behind them.
//!
//! An operator may hold a group on purpose ([`Hold::pause`]): writes wait, those under way finish, the leader is moved, and
//! nobody has seen an error.
//!
//! The waiting itself, its order among classes and the deadlines of requests are the shell's; it reports each waiter that
//! goes ([`Hold::went`]) or gives up ([`Hold::left`]). With [`Mode::Observe`] nobody waits, and what would have waited is
//! counted.
//!
//! Invariants: waiters and their bytes never exceed the limits; before the canary has succeeded at most one is on its way.

use std::time::Duration;

use crate::mode::Mode;
use crate::moment::Moment;

/// Settings of a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long one request waits.
    pub max_wait: Duration,
    /// How many wait.
    pub max_requests: u32,
    /// How many bytes of bodies are kept.
    pub max_bytes: u64,
    /// The largest body that is kept.
    pub max_body: u64,
    /// A failover that takes longer is not waited for; `None` for any.
    pub max_failover: Option<Duration>,
    /// A failover that begins so soon after the end of the last is not waited for.
    pub min_between: Duration,
    /// How many go at a time in the end.
    pub drain_concurrency: u32,
    /// How long that takes.
    pub drain_ramp: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_wait: Duration::from_secs(10),
            max_requests: 1000,
            max_bytes: 16 << 20,
            max_body: 64 << 10,
            max_failover: Some(Duration::from_secs(20)),
            min_between: Duration::from_secs(60),
            drain_concurrency: 8,
            drain_ramp: Duration::from_secs(1),
        }
    }
}

/// Why a request does not wait, or not any more. Part of the public contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// Too many wait.
    BufferFull,
    /// Too much is kept.
    BytesFull,
    /// Its body is too large to be kept, or nobody knows how large it is.
    BodyTooLarge,
    /// It waited as long as it may.
    WindowExceeded,
    /// The failover takes too long.
    FailoverTooLong,
    /// The last failover was too recent.
    TooRecent,
    /// Its client left.
    ClientGone,
    /// The proxy stops.
    Shutdown,
}

/// What becomes of a request that needs the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It goes on.
    Go,
    /// It waits, at most until then; its own deadline may come earlier.
    Wait(Moment, Why),
    /// It does not wait.
    Refuse(Why),
    /// It would have waited, if this were not only observed.
    Would,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// There is a leader, or nobody has asked for one yet.
    #[default]
    Idle,
    /// There is none.
    Holding(Moment),
    /// There is none, and nobody waits for one.
    Declined,
    /// There is one again; whether the first is on its way.
    Canary(Moment, Way),
    /// The first has succeeded then.
    Ramp(Moment, Moment),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Waiting,
    Sent,
}

/// Who waits for the leader of one group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hold {
    state: State,
    paused_until: Option<Moment>,
    waiting: u32,
    bytes: u64,
    ended: Option<Moment>,
    counts: [u64; Why::ALL.len()],
    held: u64,
    would: u64,
}

impl Hold {
    /// Nobody.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// There is no leader to write to: the phase is not steady any more, it cannot be reached, it refuses.
    pub fn leaderless(&mut self, limits: &Limits, now: Moment) {
        self.state = match self.state {
            State::Idle => {
                let recent = self
                    .ended
                    .is_some_and(|ended| now.since(ended) < limits.min_between);
                if recent {
                    State::Declined
                } else {
                    State::Holding(now)
                }
            }
            // The same failover goes on.
            State::Canary(since, _) | State::Ramp(since, _) => State::Holding(since),
            state @ (State::Holding(_) | State::Declined) => state,
        };
    }

    /// A leader can be written to, says a claim that was just heard.
    pub fn leader(&mut self, now: Moment) {
        if self.is_paused(now) {
            return;
        }
        self.state = match self.state {
            State::Holding(_) if self.waiting == 0 => self.end(now),
            State::Holding(since) => State::Canary(since, Way::Waiting),
            State::Declined => State::Idle,
            state @ (State::Idle | State::Canary(..) | State::Ramp(..)) => state,
        };
    }

    /// Holds whatever comes from now on, for `most` at most, whether or not there is a leader.
    pub fn pause(&mut self, most: Duration, now: Moment) {
        self.paused_until = Some(now.plus(most));
        self.state = match self.state {
            State::Idle | State::Declined => State::Holding(now),
            State::Canary(since, _) | State::Ramp(since, _) | State::Holding(since) => State::Holding(since),
        };
    }

    /// Ends a pause; tell of the [`leader`](Self::leader) next, if there is one.
    pub fn resume(&mut self) {
        self.paused_until = None;
    }

    /// Whether it is held on purpose.
    #[must_use]
    pub fn is_paused(&self, now: Moment) -> bool {
        self.paused_until.is_some_and(|until| now < until)
    }

    /// Whether a request that comes now would have to wait.
    #[must_use]
    pub const fn is_holding(&self) -> bool {
        !matches!(self.state, State::Idle)
    }

    /// A request that needs the leader has come, with a body of this size if that is known.
    pub fn admit(&mut self, limits: &Limits, mode: Mode, body: Option<u64>, now: Moment) -> Admission {
        let since = match self.state {
            State::Idle => return Admission::Go,
            State::Declined => return self.refuse(Why::TooRecent),
            State::Holding(since) | State::Canary(since, _) | State::Ramp(since, _) => since,
        };
        let Some(body) = body.filter(|body| *body <= limits.max_body) else {
            return self.refuse(Why::BodyTooLarge);
        };
        let end = match limits.max_failover {
            // Whoever pauses a group knows for how long.
            Some(most) if !self.is_paused(now) => since.plus(most),
            _ => Moment::FAR_FUTURE,
        };
        if now >= end {
            return self.refuse(Why::FailoverTooLong);
        }
        if self.waiting >= limits.max_requests {
            return self.refuse(Why::BufferFull);
        }
        if self.bytes.saturating_add(body) > limits.max_bytes {
            return self.refuse(Why::BytesFull);
        }
        if mode == Mode::Observe {
            self.would += 1;
            return Admission::Would;
        }
        self.waiting += 1;
        self.bytes += body;
        self.held += 1;
        let window = now.plus(limits.max_wait);
        if end < window {
            Admission::Wait(end, Why::FailoverTooLong)
        } else {
            Admission::Wait(window, Why::WindowExceeded)
        }
    }

    /// How many of those who wait may go now, while `under_way` of those who went have not ended.
    #[must_use]
    pub fn release(&self, limits: &Limits, under_way: u32, now: Moment) -> u32 {
        let most = match self.state {
            State::Canary(_, Way::Waiting) => 1,
            State::Ramp(_, from) => {
                let more = f64::from(limits.drain_concurrency.max(1) - 1);
                let part =
                    now.since(from).as_secs_f64() / limits.drain_ramp.as_secs_f64().max(f64::MIN_POSITIVE);
                1 + (more * part.min(1.0)) as u32
            }
            State::Idle | State::Holding(_) | State::Declined | State::Canary(_, Way::Sent) => 0,
        };
        most.saturating_sub(under_way).min(self.waiting)
    }

    /// One who waited has gone to the leader, with a body of this size. Of the first that goes it must be told how it ended:
    /// [`succeeded`](Self::succeeded), or [`failed`](Self::failed) for anything else.
    pub fn went(&mut self, body: u64, now: Moment) {
        self.forget(body);
        self.state = match self.state {
            State::Canary(since, Way::Waiting) => State::Canary(since, Way::Sent),
            State::Ramp(..) if self.waiting == 0 => self.end(now),
            state => state,
        };
    }

    /// The first that went has succeeded: the leader answers.
    pub fn succeeded(&mut self, now: Moment) {
        if let State::Canary(since, Way::Sent) = self.state {
            self.state = if self.waiting == 0 {
                self.end(now)
            } else {
                State::Ramp(since, now)
            };
        }
    }

    /// The first that went has failed: whoever waits goes on waiting until a leader is heard of again.
    pub fn failed(&mut self) {
        if let State::Canary(since, _) | State::Ramp(since, _) = self.state {
            self.state = State::Holding(since);
        }
    }

    /// One who waited has given up, with a body of this size.
    pub fn left(&mut self, body: u64, why: Why) {
        self.forget(body);
        self.counts[why as usize] += 1;
    }

    /// How many wait.
    #[must_use]
    pub const fn waiting(&self) -> u32 {
        self.waiting
    }

    /// How many bytes they keep.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many have ever waited.
    #[must_use]
    pub const fn held(&self) -> u64 {
        self.held
    }

    /// How many would have.
    #[must_use]
    pub const fn would(&self) -> u64 {
        self.would
    }

    /// How many did not wait, or not to the end, for this reason.
    #[must_use]
    pub const fn count(&self, why: Why) -> u64 {
        self.counts[why as usize]
    }

    fn refuse(&mut self, why: Why) -> Admission {
        self.counts[why as usize] += 1;
        Admission::Refuse(why)
    }

    fn forget(&mut self, body: u64) {
        self.waiting = self.waiting.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(body);
    }

    fn end(&mut self, now: Moment) -> State {
        self.ended = Some(now);
        State::Idle
    }
}

impl Why {
    /// Every reason.
    pub const ALL: [Self; 8] = [
        Self::BufferFull,
        Self::BytesFull,
        Self::BodyTooLarge,
        Self::WindowExceeded,
        Self::FailoverTooLong,
        Self::TooRecent,
        Self::ClientGone,
        Self::Shutdown,
    ];

    /// The word in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::BufferFull => "buffer_full",
            Self::BytesFull => "bytes_full",
            Self::BodyTooLarge => "body_too_large",
            Self::WindowExceeded => "window_exceeded",
            Self::FailoverTooLong => "failover_too_long",
            Self::TooRecent => "too_recent",
            Self::ClientGone => "client_gone",
            Self::Shutdown => "shutdown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(millis: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_millis(millis))
    }

    fn limits() -> Limits {
        Limits {
            max_requests: 3,
            max_bytes: 100,
            max_body: 60,
            ..Limits::default()
        }
    }

    fn come(hold: &mut Hold, body: u64, now: u64) -> Admission {
        hold.admit(&limits(), Mode::Enforce, Some(body), at(now))
    }

    fn holding() -> Hold {
        let mut hold = Hold::new();
        hold.leaderless(&limits(), at(0));
        hold
    }

    #[test]
    fn with_a_leader_nobody_waits() {
        assert_eq!(come(&mut Hold::new(), 10, 0), Admission::Go);
    }

    #[test]
    fn without_one_requests_wait_for_so_long() {
        let mut hold = holding();
        assert_eq!(
            come(&mut hold, 10, 100),
            Admission::Wait(at(10_100), Why::WindowExceeded)
        );
        let late = come(&mut hold, 10, 15_000);
        assert_eq!(late, Admission::Wait(at(20_000), Why::FailoverTooLong));
        assert_eq!(
            come(&mut hold, 10, 20_000),
            Admission::Refuse(Why::FailoverTooLong)
        );
    }

    #[test]
    fn limits_are_limits() {
        let mut hold = holding();
        assert_eq!(come(&mut hold, 61, 0), Admission::Refuse(Why::BodyTooLarge));
        let unknown = hold.admit(&limits(), Mode::Enforce, None, at(0));
        assert_eq!(unknown, Admission::Refuse(Why::BodyTooLarge));
        come(&mut hold, 60, 0);
        assert_eq!(come(&mut hold, 41, 0), Admission::Refuse(Why::BytesFull));
        come(&mut hold, 40, 0);
        come(&mut hold, 0, 0);
        assert_eq!(come(&mut hold, 0, 0), Admission::Refuse(Why::BufferFull));
        hold.left(60, Why::ClientGone);
        assert!(matches!(come(&mut hold, 60, 0), Admission::Wait(..)));
        assert_eq!((hold.waiting(), hold.bytes()), (3, 100));
        assert_eq!((hold.count(Why::BufferFull), hold.count(Why::ClientGone)), (1, 1));
    }

    #[test]
    fn one_goes_first_and_the_others_follow_if_it_succeeds() {
        let mut hold = holding();
        for _ in 0..3 {
            come(&mut hold, 10, 0);
        }
        assert_eq!(hold.release(&limits(), 0, at(0)), 0, "there is no leader");
        hold.leader(at(1000));
        assert_eq!(hold.release(&limits(), 0, at(1000)), 1);
        hold.went(10, at(1000));
        assert_eq!(hold.release(&limits(), 1, at(1001)), 0);
        assert!(
            matches!(come(&mut hold, 10, 1001), Admission::Wait(..)),
            "behind those who wait"
        );
        hold.succeeded(at(1100));
        assert_eq!(hold.release(&limits(), 0, at(1100)), 1);
        assert_eq!(hold.release(&limits(), 0, at(1400)), 3);
        for _ in 0..3 {
            hold.went(10, at(1400));
        }
        assert_eq!(come(&mut hold, 10, 1401), Admission::Go);
    }

    #[test]
    fn a_drain_grows_to_its_concurrency() {
        let limits = Limits::default();
        let mut hold = Hold::new();
        hold.leaderless(&limits, at(0));
        for _ in 0..100 {
            hold.admit(&limits, Mode::Enforce, Some(0), at(0));
        }
        hold.leader(at(1000));
        hold.went(0, at(1000));
        hold.succeeded(at(1000));
        let of = |now| hold.release(&limits, 0, at(now));
        assert_eq!((of(1000), of(1500), of(2000), of(9000)), (1, 4, 8, 8));
        assert_eq!(hold.release(&limits, 5, at(9000)), 3);
    }

    #[test]
    fn a_canary_that_fails_burns_nobody_else() {
        let mut hold = holding();
        come(&mut hold, 10, 0);
        come(&mut hold, 10, 0);
        hold.leader(at(1000));
        hold.went(10, at(1000));
        hold.failed();
        assert_eq!(hold.release(&limits(), 0, at(1001)), 0);
        hold.leader(at(1500));
        assert_eq!(hold.release(&limits(), 0, at(1500)), 1);
    }

    #[test]
    fn a_failover_that_goes_on_is_one_failover() {
        let mut hold = holding();
        come(&mut hold, 10, 0);
        hold.leader(at(12_000));
        hold.leaderless(&limits(), at(13_000));
        assert_eq!(
            come(&mut hold, 10, 20_000),
            Admission::Refuse(Why::FailoverTooLong)
        );
    }

    #[test]
    fn a_failover_too_soon_after_the_last_is_not_waited_for() {
        let mut hold = holding();
        hold.leader(at(1000));
        hold.leaderless(&limits(), at(60_999));
        assert_eq!(come(&mut hold, 10, 61_000), Admission::Refuse(Why::TooRecent));
        hold.leader(at(62_000));
        assert_eq!(come(&mut hold, 10, 62_000), Admission::Go);
        hold.leaderless(&limits(), at(63_000));
        assert!(matches!(come(&mut hold, 10, 63_000), Admission::Wait(..)));
    }

    #[test]
    fn an_operator_may_hold_a_group_that_has_a_leader() {
        let mut hold = Hold::new();
        hold.pause(Duration::from_secs(5), at(0));
        assert!(matches!(come(&mut hold, 10, 100), Admission::Wait(..)));
        hold.leader(at(200));
        assert_eq!(hold.release(&limits(), 0, at(200)), 0, "paused");
        hold.resume();
        hold.leader(at(300));
        assert_eq!(hold.release(&limits(), 0, at(300)), 1);
    }

    #[test]
    fn a_pause_ends_by_itself() {
        let mut hold = Hold::new();
        hold.pause(Duration::from_secs(5), at(0));
        hold.leader(at(5000));
        assert_eq!(come(&mut hold, 10, 5000), Admission::Go);
    }

    #[test]
    fn observing_counts_and_holds_nobody() {
        let mut hold = holding();
        for _ in 0..10 {
            assert_eq!(
                hold.admit(&limits(), Mode::Observe, Some(1), at(1)),
                Admission::Would
            );
        }
        assert_eq!((hold.would(), hold.waiting()), (10, 0));
        hold.leader(at(2));
        assert!(!hold.is_holding());
    }

    proptest! {
        #[test]
        fn limits_hold_and_one_goes_first_whatever_happens(
            steps in proptest::collection::vec((0u8..8, 0u64..70, 0u64..3000), 1..100),
        ) {
            let limits = limits();
            let mut hold = Hold::new();
            let (mut now, mut waiting, mut under_way) = (0, Vec::new(), 0u32);
            let mut proven = false;
            for (step, body, millis) in steps {
                now += millis;
                match step {
                    0 => { hold.leaderless(&limits, at(now)); proven = false; }
                    1 => hold.leader(at(now)),
                    2 => if under_way > 0 { under_way -= 1; hold.succeeded(at(now)); proven = true; },
                    3 => if under_way > 0 { under_way -= 1; hold.failed(); proven = false; },
                    4 => if let Some(body) = waiting.pop() { hold.left(body, Why::WindowExceeded); },
                    5 => {
                        let may = hold.release(&limits, under_way, at(now));
                        prop_assert!(proven || may <= 1);
                        for _ in 0..may {
                            let body = waiting.remove(0);
                            hold.went(body, at(now));
                            under_way += 1;
                        }
                    }
                    _ => if let Admission::Wait(..) = hold.admit(&limits, Mode::Enforce, Some(body), at(now)) {
                        waiting.push(body);
                    },
                }
                prop_assert_eq!(hold.waiting() as usize, waiting.len());
                prop_assert_eq!(hold.bytes(), waiting.iter().sum::<u64>());
                prop_assert!(hold.waiting() <= limits.max_requests && hold.bytes() <= limits.max_bytes);
            }
        }
    }
}
