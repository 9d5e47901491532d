//! The world: servers that work or do not, and what becomes of a request that is sent to one.
//!
//! What is true here is known to the invariants and not to the proxy, which sees only what a proxy would see.

use std::time::Duration;

use bellwether_core::health::{CheckResult, Failure};
use bellwether_core::heartbeat;
use bellwether_core::{Dice, Moment};

/// What is wrong with a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Nothing.
    None,
    /// Answers are late by so many milliseconds, those to checks too.
    Slow(u16),
    /// So many of a hundred requests are answered with this status; checks are green.
    Failing { percent: u8, status: u16 },
    /// All requests are answered with 503, checks are green.
    HalfDead,
    /// Takes requests and says nothing.
    Hanging,
    /// Refuses connections.
    Refusing,
    /// Resets so many of a hundred before the answer.
    ResetsHead(u8),
    /// Cuts so many of a hundred answers short.
    ResetsBody(u8),
    /// Begins its answers and never ends them.
    Stalling,
    /// Asks for less: 429 with so many seconds, 0 for none.
    Overloaded(u8),
    /// Says that it has not processed the request.
    GoingAway,
    /// Refuses and works in turns of so many milliseconds.
    Flapping(u16),
    /// The process is gone, and its beats with it.
    Dead,
}

/// One server.
#[derive(Debug)]
pub struct Server {
    fault: Fault,
    since: Moment,
    /// When it was last unwell, while it is well.
    unwell: Moment,
    /// The middle of its response times.
    pub pace: Duration,
    /// Connections in the proxy's pool that ended with the last process.
    stale: u32,
    /// Until when the pool has not noticed.
    unnoticed: Moment,
    /// Discovery names it.
    pub listed: bool,
    /// An operator took it out.
    pub drained: bool,
    /// Its beats get lost.
    pub muted: bool,
    pub incarnation: u64,
    pub seq: u64,
    pub wants: heartbeat::State,
}

/// What is seen of a request after it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// No connection.
    Refused,
    /// The pooled connection was gone; whether anything of the request had left.
    Stale { sent: bool },
    /// The server has it from here on, and may act.
    Seen,
    /// It says that it did nothing about it.
    GoingAway,
    /// The connection broke before an answer.
    Reset,
    /// The head of the answer, with the seconds it asks to wait.
    Head { status: u16, wait: Option<u8> },
    /// The end of the answer.
    End,
    /// The answer broke off.
    Cut,
}

/// The steps of one request, each with the time since it was sent.
pub type Plan = [Option<(Duration, Step)>; 3];

impl Server {
    pub fn new(pace: Duration, listed: bool) -> Self {
        Self {
            fault: Fault::None,
            since: Moment::ZERO,
            unwell: Moment::ZERO,
            pace,
            stale: 0,
            unnoticed: Moment::ZERO,
            listed,
            drained: false,
            muted: false,
            incarnation: 1,
            seq: 0,
            wants: heartbeat::State::Up,
        }
    }

    /// What is wrong at this moment.
    pub fn fault(&self, now: Moment) -> Fault {
        match self.fault {
            Fault::Flapping(period) => {
                let turn = now.since(self.since).as_millis() / u128::from(period.max(1));
                if turn.is_multiple_of(2) {
                    Fault::Refusing
                } else {
                    Fault::None
                }
            }
            fault => fault,
        }
    }

    /// Whether nothing is wrong, also not in turns.
    pub fn is_well(&self) -> bool {
        self.fault == Fault::None
    }

    pub fn lives(&self) -> bool {
        self.fault != Fault::Dead
    }

    /// When something was last wrong.
    pub fn last_unwell(&self, now: Moment) -> Moment {
        if self.is_well() { self.unwell } else { now }
    }

    pub fn set(&mut self, fault: Fault, now: Moment) {
        if self.fault == Fault::Dead && fault != Fault::Dead {
            self.incarnation += 1;
            self.seq = 0;
        }
        if !self.is_well() {
            self.unwell = now;
        }
        self.fault = fault;
        self.since = now;
    }

    /// A new process takes over from a dead one: pooled connections are gone, and for a moment nobody knows.
    pub fn restarted(&mut self, now: Moment) {
        self.stale = 3;
        self.unnoticed = now.plus(Duration::from_secs(1));
    }

    /// What will become of a request sent now.
    pub fn serve(&mut self, now: Moment, dice: &mut Dice) -> Plan {
        let connect = Duration::from_micros(100 + u64::from(dice.below(400)));
        if self.stale > 0 && now < self.unnoticed && dice.chance(0.7) {
            self.stale -= 1;
            let sent = dice.chance(0.7);
            // Of what had left the proxy the dead process has seen nothing.
            return [Some((connect, Step::Stale { sent })), None, None];
        }
        let answer = connect + self.pace.mul_f64(0.5 + dice.unit());
        let end = answer + self.pace.mul_f64(0.5 * dice.unit());
        let mut percent = |share: u8| dice.below(100) < u32::from(share);
        let seen = Some((connect, Step::Seen));
        let head = |after, status| Some((after, Step::Head { status, wait: None }));
        let whole = |status| [seen, head(answer, status), Some((end, Step::End))];
        match self.fault(now) {
            Fault::Refusing | Fault::Dead | Fault::Flapping(_) => {
                [Some((connect, Step::Refused)), None, None]
            }
            Fault::Hanging => [seen, None, None],
            Fault::GoingAway => [Some((connect, Step::GoingAway)), None, None],
            Fault::HalfDead => whole(503),
            Fault::Failing {
                percent: share,
                status,
            } if percent(share) => whole(status),
            Fault::ResetsHead(share) if percent(share) => [seen, Some((answer, Step::Reset)), None],
            Fault::ResetsBody(share) if percent(share) => [seen, head(answer, 200), Some((end, Step::Cut))],
            Fault::Stalling => [seen, head(answer, 200), None],
            Fault::Overloaded(seconds) => {
                let wait = (seconds > 0).then_some(seconds);
                let said = Step::Head { status: 429, wait };
                [seen, Some((answer, said)), Some((end, Step::End))]
            }
            Fault::Slow(late) => {
                let late = Duration::from_millis(late.into());
                [seen, head(answer + late, 200), Some((end + late, Step::End))]
            }
            Fault::None | Fault::Failing { .. } | Fault::ResetsHead(_) | Fault::ResetsBody(_) => whole(200),
        }
    }

    /// How a check that is sent now ends, and when.
    pub fn check(&self, timeout: Duration, now: Moment) -> (Duration, CheckResult) {
        let soon = Duration::from_millis(2);
        match self.fault(now) {
            Fault::Refusing | Fault::Dead | Fault::Flapping(_) => {
                (soon, CheckResult::Failed(Failure::Refused))
            }
            Fault::Hanging => (timeout, CheckResult::Failed(Failure::TimedOut)),
            Fault::Slow(late) if Duration::from_millis(late.into()) >= timeout => {
                (timeout, CheckResult::Failed(Failure::TimedOut))
            }
            Fault::Slow(late) => (Duration::from_millis(late.into()), CheckResult::Passed),
            Fault::Stalling => (soon, CheckResult::Failed(Failure::Unfit)),
            Fault::None
            | Fault::Failing { .. }
            | Fault::HalfDead
            | Fault::ResetsHead(_)
            | Fault::ResetsBody(_)
            | Fault::Overloaded(_)
            | Fault::GoingAway => (soon, CheckResult::Passed),
        }
    }
}

impl Fault {
    /// Any fault.
    pub fn draw(dice: &mut Dice) -> Self {
        let percent = 10 + 10 * dice.below(10) as u8;
        match dice.below(12) {
            0 => Self::Slow(100 + 100 * dice.below(40) as u16),
            1 | 2 => Self::Failing {
                percent,
                status: [500, 502, 503, 504][dice.below(4) as usize],
            },
            3 => Self::HalfDead,
            4 => Self::Hanging,
            5 => Self::Refusing,
            6 => Self::ResetsHead(percent),
            7 => Self::ResetsBody(percent),
            8 => Self::Stalling,
            9 => Self::Overloaded(dice.below(6) as u8),
            10 => Self::GoingAway,
            _ => match dice.below(2) {
                0 => Self::Dead,
                _ => Self::Flapping(200 + 200 * dice.below(20) as u16),
            },
        }
    }
}
