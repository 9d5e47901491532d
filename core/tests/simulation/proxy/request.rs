//! One request: its tries, and what each of them tells whom. After `src/proxy/attempts.rs` and `attempt.rs`.

use std::sync::Arc;
use std::time::Duration;

use bellwether_core::arbiter::Source;
use bellwether_core::budget::Denied;
use bellwether_core::ejection::{Conclusion, Probe};
use bellwether_core::hedge::Share;
use bellwether_core::limit::Seat;
use bellwether_core::outlier::Kind;
use bellwether_core::panic;
use bellwether_core::pick::{self, NoPick, Picked, Role, Wish};
use bellwether_core::{Moment, Origin, Outcome};

use super::{Attempt, Event, IDLE, Last, Request, Rights, Sim, View};
use crate::trace::Note;
use crate::world::Step;

/// Endpoints that may be tried beyond `num_retries` as long as none has seen anything.
const UNSEEN_TRIES: u32 = 5;
/// The share of requests that cannot be sent twice and probe all the same.
const SACRIFICE: f64 = 0.05;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Exposure {
    Nothing,
    Stale,
    Refused,
    Maybe,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Trigger {
    Connect,
    Refused,
    Stale,
    Reset,
    PerTry,
    Status,
}

impl Sim {
    pub(super) fn arrive(&mut self) {
        if self.now >= self.closes {
            return;
        }
        let pause = self.settings.clients.pause(&mut self.dice);
        self.schedule(pause, Event::Arrive);
        let order = self.settings.clients.order(&mut self.dice);
        let id = self.requests.len() as u32;
        self.note(Note::Arrived {
            request: id,
            get: order.get,
        });
        self.tally.requests += 1;
        self.alive += 1;
        let timeout = self.settings.timeout;
        let length = order.deadline.map_or(timeout, |asked| asked.min(timeout));
        let mut request = Box::new(Request {
            order,
            deadline: self.now.plus(length),
            hurried: length < Duration::from_millis(500) && length != timeout,
            permit: None,
            seat: None,
            paid: None,
            repeatable: order.repeatable,
            attempts: Vec::new(),
            last: Last::None,
            tried: Vec::new(),
            spent: 0,
            unseen: 0,
            stale: 0,
            tries: 0,
            again_on: None,
            answered_by: None,
            forwarded: false,
            status: 0,
            veto: None,
            seen: 0,
        });
        self.requests.push(None);
        if let Some(breaker) = &mut self.breaker {
            match breaker.admit(self.now, &mut self.dice, self.trace.get_mut()) {
                Ok(held) => {
                    // A probe is sent once.
                    request.repeatable &= !held.is_probe();
                    request.permit = Some(held);
                }
                Err(_) => return self.end(id, request, "breaker_open"),
            }
        }
        if let Some((budget, ledger)) = &mut self.budget {
            budget.offer(self.now);
            ledger.offer(self.now);
        }
        if let Some(most) = self.settings.max_in_flight {
            match Seat::take(Arc::clone(&self.seats), most) {
                Some(seat) => request.seat = Some(seat),
                None => return self.end(id, request, "overflow"),
            }
            assert!(self.seats.in_flight() <= most, "no more seats than there are");
        }
        self.schedule(length, Event::Deadline(id));
        if let Some(leaves) = order.leaves {
            self.schedule(leaves, Event::Leave(id));
        }
        self.next(id, request);
    }

    /// The next try.
    fn next(&mut self, id: u32, mut request: Box<Request>) {
        let picked = match request.again_on.take() {
            // Somebody may have taken it out since.
            Some(same) if self.may_be_asked(same) => Ok((same, None, "again")),
            _ => self.pick(&request),
        };
        let picked = match (picked, request.answered_by.take()) {
            (Err(NoPick::AllTried), Some(same)) if self.may_be_asked(same) => Ok((same, None, "same")),
            (picked, _) => picked,
        };
        let (server, rights, role) = match picked {
            Ok(picked) => picked,
            Err(no_pick) => {
                return match std::mem::replace(&mut request.last, Last::None) {
                    Last::Answer(attempt) => self.forward(id, request, attempt),
                    Last::Failure(how) => self.end(id, request, how),
                    Last::None => {
                        let how = match no_pick {
                            NoPick::NoneAvailable => "no_endpoint",
                            NoPick::AllTried => "all_tried",
                            NoPick::AtLimit | NoPick::BreakersOpen(_) => "overflow",
                        };
                        self.end(id, request, how);
                    }
                };
            }
        };
        if let Last::Answer(attempt) = std::mem::replace(&mut request.last, Last::None) {
            self.close(attempt);
        }
        self.send(id, &mut request, server, rights, role);
        self.requests[id as usize] = Some(request);
    }

    fn may_be_asked(&self, index: usize) -> bool {
        !panic::is_taken_out(self.endpoints[index].arbiter.availability())
    }

    fn pick(&mut self, request: &Request) -> Result<(usize, Option<Rights>, &'static str), NoPick> {
        let may_probe = (request.repeatable && request.spent < self.settings.retry.num_retries)
            || self.dice.chance(SACRIFICE);
        let wish = Wish {
            hash: Some(request.order.key),
            may_probe,
        };
        let mut dice = self.dice.split();
        let due = self.due(request);
        let view = View {
            sim: self,
            tried: &request.tried,
        };
        let picked = pick::pick(
            &self.balancer,
            &view,
            Some(&self.settings.panic),
            wish,
            self.now,
            &mut dice,
        );
        let census = pick::census(&view);
        self.mind_the_due(&due, may_probe, &picked);
        self.mind_panic(&picked, request);
        if let Some(edge) = self
            .panic
            .observe(&self.settings.panic, census.available, census.total, self.now)
        {
            let began = edge == panic::Edge::Began;
            self.tally.panics += u64::from(began);
            self.note(Note::Panic { began });
        }
        let Picked { index, role, .. } = picked?;
        self.sync_breaker(index);
        Ok(match role {
            Role::Usual => (index, None, "usual"),
            Role::Probe(rights) => (index, Some(rights), "probe"),
            Role::Panic => (index, None, "panic"),
        })
    }

    fn send(
        &mut self,
        id: u32,
        request: &mut Request,
        server: usize,
        rights: Option<Rights>,
        role: &'static str,
    ) {
        let known = &self.servers[server];
        assert!(known.listed, "nothing is sent to an endpoint that is gone");
        assert!(
            !known.drained,
            "nothing is sent to an endpoint that an operator took out"
        );
        self.tally.probes += u64::from(role == "probe");
        self.note(Note::Sent {
            request: id,
            server,
            role,
        });
        let endpoint = &mut self.endpoints[server];
        let is_available = endpoint.arbiter.availability().is_available();
        match role {
            "usual" => assert!(is_available, "only those in service get ordinary requests"),
            "probe" | "panic" => assert!(!is_available, "{role} is for those who are out"),
            _ => {}
        }
        let rights = rights.unwrap_or_else(|| Rights {
            ejection: None,
            breaker: endpoint.breaker.as_ref().and_then(|breaker| {
                let mut breaker = breaker.borrow_mut();
                // Who is asked although its breaker is open (panic, the same again) finds out nothing for it.
                let closed = !breaker.refuses();
                closed.then(|| breaker.admit(self.now, &mut self.dice, self.trace.get_mut()).ok())?
            }),
        });
        endpoint.load.begin(self.now);
        endpoint.active += 1;
        assert_eq!(endpoint.active, endpoint.load.in_flight(), "loads are exact");
        let first = request.tries == 0;
        request.tries += 1;
        let number = request.tries;
        request.attempts.push(Attempt {
            number,
            server,
            started: self.now,
            rights,
            outcome: None,
            kind: Kind::Other,
            rtt: None,
            sent: false,
            first,
        });
        for (after, step) in self.servers[server]
            .serve(self.now, &mut self.dice)
            .into_iter()
            .flatten()
        {
            let request = id;
            self.schedule(
                after,
                Event::Step {
                    request,
                    number,
                    step,
                },
            );
        }
        if let Some(share) = self.share_of_a_try(request) {
            let request = id;
            self.schedule(share, Event::PerTry { request, number });
        }
        if first && let Some((delay, share)) = self.settings.hedge {
            self.begun += 1;
            self.hedge.begin(Share::new(share));
            if request.repeatable
                && let Some(delay) = self.hedge.delay(delay, self.now)
            {
                let request = id;
                self.schedule(delay, Event::Hedge { request, number });
            }
        }
    }

    fn share_of_a_try(&self, request: &Request) -> Option<Duration> {
        let retry = &self.settings.retry;
        let left = retry
            .num_retries
            .checked_sub(request.spent)
            .filter(|left| *left > 0)?;
        let wanted = retry.per_try && request.repeatable;
        wanted.then(|| request.deadline.since(self.now) / (left + 1))
    }

    pub(super) fn step(&mut self, id: u32, number: u16, step: Step) {
        let Some(mut request) = self.take(id) else { return };
        let Some(place) = request.attempts.iter().position(|a| a.number == number) else {
            self.requests[id as usize] = Some(request);
            return;
        };
        let server = request.attempts[place].server;
        self.note(Note::Step {
            request: id,
            server,
            step,
        });
        let local = Some(Outcome::Failure(Origin::Local));
        let sent = request.attempts[place].sent;
        match step {
            Step::Seen => {
                request.attempts[place].sent = true;
                request.seen += 1;
                let once = request.order.repeatable || request.seen == 1;
                assert!(once, "a request that must not be repeated is seen once");
            }
            Step::Head { status, wait } => return self.head(id, request, place, status, wait),
            Step::Refused => {
                return self.failed(
                    id,
                    request,
                    place,
                    local,
                    Exposure::Nothing,
                    Trigger::Connect,
                    "connect",
                );
            }
            Step::Stale { sent } => {
                let exposure = if sent { Exposure::Maybe } else { Exposure::Stale };
                return self.failed(id, request, place, None, exposure, Trigger::Stale, "closed");
            }
            Step::GoingAway => {
                return self.failed(
                    id,
                    request,
                    place,
                    local,
                    Exposure::Refused,
                    Trigger::Refused,
                    "reset",
                );
            }
            Step::Reset => {
                let exposure = if sent { Exposure::Maybe } else { Exposure::Nothing };
                return self.failed(id, request, place, local, exposure, Trigger::Reset, "reset");
            }
            Step::End => {
                let attempt = request.attempts.swap_remove(place);
                self.close(attempt);
                let how = if request.status < 400 { "ok" } else { "status" };
                return self.end(id, request, how);
            }
            Step::Cut => {
                let mut attempt = request.attempts.swap_remove(place);
                attempt.outcome = local;
                self.close(attempt);
                return self.end(id, request, "cut");
            }
        }
        self.requests[id as usize] = Some(request);
    }

    fn head(&mut self, id: u32, mut request: Box<Request>, place: usize, status: u16, wait: Option<u8>) {
        let hint = wait.map(|seconds| Duration::from_secs(seconds.into()));
        let attempt = &mut request.attempts[place];
        let took = self.now.since(attempt.started);
        attempt.rtt = Some(took);
        self.endpoints[attempt.server].load.heard(self.now);
        attempt.kind = match status {
            502..=504 => Kind::Gateway,
            500.. => Kind::ServerError,
            _ => Kind::Other,
        };
        attempt.outcome = Some(match status {
            503 if hint.is_some() => Outcome::Pushback(hint),
            500 | 502..=504 => Outcome::Failure(Origin::Remote),
            429 => Outcome::Pushback(hint),
            _ => Outcome::Success,
        });
        if attempt.first && status < 400 {
            self.hedge.answered(took, self.now);
        }
        let server = attempt.server;
        let retry = &self.settings.retry;
        let gateway = (502..=504).contains(&status);
        let again = gateway || (retry.server_error && status >= 500) || (retry.on_429 && status == 429);
        let free = hint.is_none_or(|hint| hint <= retry.retry_after_max);
        if again && free && request.attempts.len() == 1 {
            if self.allow(id, &mut request, server, Exposure::Maybe, Trigger::Status) {
                let attempt = request.attempts.swap_remove(place);
                request.last = Last::Answer(attempt);
                return self.back_off(id, request, hint);
            }
        } else if again && request.attempts.len() > 1 {
            // The other one may do better.
            let attempt = request.attempts.swap_remove(place);
            request.tried.push(attempt.server);
            self.close(attempt);
            self.requests[id as usize] = Some(request);
            return;
        }
        let attempt = request.attempts.swap_remove(place);
        for loser in request.attempts.drain(..) {
            self.close(loser);
        }
        self.forward(id, request, attempt);
    }

    /// This is the answer; what remains is its body.
    fn forward(&mut self, id: u32, mut request: Box<Request>, attempt: Attempt) {
        request.forwarded = true;
        request.status = match attempt.outcome {
            Some(Outcome::Success) => 200,
            Some(Outcome::Pushback(_)) => 429,
            _ if attempt.kind == Kind::Gateway => 503,
            _ => 500,
        };
        let (request_id, number) = (id, attempt.number);
        self.schedule(
            IDLE,
            Event::Idle {
                request: request_id,
                number,
            },
        );
        if attempt.started.plus(attempt.rtt.unwrap_or_default()) < self.now {
            // It waited for another endpoint in vain; its body has arrived meanwhile.
            self.schedule(
                Duration::ZERO,
                Event::Step {
                    request: request_id,
                    number,
                    step: Step::End,
                },
            );
        }
        request.attempts.push(attempt);
        self.requests[id as usize] = Some(request);
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "as many as there is to know of a failure"
    )]
    fn failed(
        &mut self,
        id: u32,
        mut request: Box<Request>,
        place: usize,
        outcome: Option<Outcome>,
        exposure: Exposure,
        trigger: Trigger,
        how: &'static str,
    ) {
        let mut attempt = request.attempts.swap_remove(place);
        let server = attempt.server;
        attempt.outcome = outcome;
        self.close(attempt);
        if !request.attempts.is_empty() {
            request.tried.push(server);
            self.requests[id as usize] = Some(request);
        } else if self.allow(id, &mut request, server, exposure, trigger) {
            request.last = Last::Failure(how);
            self.back_off(id, request, None);
        } else {
            self.end(id, request, how);
        }
    }

    /// Whether there is another try after this one.
    fn allow(
        &mut self,
        id: u32,
        request: &mut Request,
        server: usize,
        exposure: Exposure,
        trigger: Trigger,
    ) -> bool {
        if matches!(exposure, Exposure::Stale | Exposure::Refused) && request.stale == 0 {
            request.stale += 1;
            request.again_on = Some(server);
            return true;
        }
        let retry = &self.settings.retry;
        let veto = |request: &mut Request, why| {
            request.veto = Some(why);
            false
        };
        if trigger == Trigger::PerTry && !retry.per_try {
            return false;
        }
        if exposure == Exposure::Maybe {
            if !request.repeatable {
                return veto(request, "method");
            }
            if request.spent >= retry.num_retries {
                return veto(request, "attempts");
            }
            if trigger != Trigger::Stale
                && let Err(why) = self.pay(request)
            {
                self.tally.vetoed += 1;
                return veto(request, why);
            }
            request.spent += 1;
            request.answered_by = Some(server);
        } else {
            if request.unseen >= UNSEEN_TRIES.max(retry.num_retries) || retry.num_retries == 0 {
                return veto(request, "attempts");
            }
            request.unseen += 1;
        }
        request.tried.push(server);
        self.tally.retries += 1;
        self.note(Note::Retry {
            request: id,
            why: trigger.name(),
        });
        true
    }

    fn pay(&mut self, request: &mut Request) -> Result<(), &'static str> {
        self.give_back(request);
        let active = self.endpoints.iter().map(|endpoint| endpoint.active).sum();
        let (Some((budget, ledger)), Some(settings)) = (&mut self.budget, &self.settings.budget) else {
            return Ok(());
        };
        match budget.spend(settings, active, self.now) {
            Ok(spent) => {
                ledger.granted(self.now);
                request.paid = Some(spent);
                Ok(())
            }
            Err(Denied::Spent) => Err("budget"),
            Err(Denied::InFlight) => Err("in_flight"),
        }
    }

    fn give_back(&mut self, request: &mut Request) {
        if let (Some(spent), Some((budget, ledger))) = (request.paid.take(), &mut self.budget) {
            drop(spent);
            ledger.in_flight -= 1;
            if let Some(settings) = &self.settings.budget {
                let said = budget.left(settings, self.now).1;
                assert_eq!(said, ledger.in_flight, "no retry leaks from the budget");
            }
        }
    }

    fn back_off(&mut self, id: u32, request: Box<Request>, asked_for: Option<Duration>) {
        let wait = match asked_for {
            Some(asked_for) => asked_for.mul_f64(1.0 + 0.2 * self.dice.unit()),
            None if request.spent <= 1 => Duration::ZERO,
            None => Duration::from_millis(25)
                .saturating_mul(1 << request.spent.min(16))
                .min(Duration::from_millis(250))
                .mul_f64(self.dice.unit()),
        };
        self.requests[id as usize] = Some(request);
        self.schedule(wait, Event::BackOff(id));
    }

    pub(super) fn again(&mut self, id: u32) {
        if let Some(request) = self.take(id) {
            if request.attempts.is_empty() {
                self.next(id, request);
            } else {
                self.requests[id as usize] = Some(request);
            }
        }
    }

    pub(super) fn deadline(&mut self, id: u32) {
        let Some(mut request) = self.take(id) else { return };
        if request.forwarded {
            self.requests[id as usize] = Some(request);
            return;
        }
        if let Last::Answer(attempt) = std::mem::replace(&mut request.last, Last::None) {
            return self.forward(id, request, attempt);
        }
        let outcome = self.blame(&request);
        for mut attempt in std::mem::take(&mut request.attempts) {
            attempt.outcome = outcome;
            self.close(attempt);
        }
        self.end(id, request, "timeout");
    }

    /// A client that gives hardly any time says nothing about who did not answer in it.
    fn blame(&self, request: &Request) -> Option<Outcome> {
        (!request.hurried).then_some(Outcome::Failure(Origin::Local))
    }

    pub(super) fn per_try(&mut self, id: u32, number: u16) {
        let Some(request) = self.take(id) else { return };
        let waits = |attempt: &Attempt| attempt.number == number && attempt.rtt.is_none();
        let Some(place) = request.attempts.iter().position(waits) else {
            self.requests[id as usize] = Some(request);
            return;
        };
        let outcome = self.blame(&request);
        let exposure = if request.attempts[place].sent {
            Exposure::Maybe
        } else {
            Exposure::Nothing
        };
        self.failed(id, request, place, outcome, exposure, Trigger::PerTry, "per_try");
    }

    pub(super) fn idle(&mut self, id: u32, number: u16) {
        let waits = |request: &Request| request.attempts.iter().any(|attempt| attempt.number == number);
        if self.requests[id as usize].as_deref().is_some_and(waits) {
            let step = Step::Cut;
            self.step(id, number, step);
        }
    }

    pub(super) fn leave(&mut self, id: u32) {
        let Some(mut request) = self.take(id) else { return };
        for attempt in std::mem::take(&mut request.attempts) {
            self.close(attempt);
        }
        if let Last::Answer(attempt) = std::mem::replace(&mut request.last, Last::None) {
            self.close(attempt);
        }
        self.end(id, request, "left");
    }

    pub(super) fn hedge(&mut self, id: u32, number: u16) {
        let Some(mut request) = self.take(id) else { return };
        let waits = request.attempts.len() == 1
            && request.attempts[0].number == number
            && request.attempts[0].rtt.is_none();
        if waits && self.hedge.pay() {
            self.hedged += 1;
            let Some((_, share)) = self.settings.hedge else {
                unreachable!("it was scheduled by the settings")
            };
            let most = share * self.begun as f64;
            assert!(
                self.hedged as f64 <= most + 1e-6,
                "hedges stay within their share"
            );
            let first = request.attempts[0].server;
            request.tried.push(first);
            let picked = self.pick(&request);
            request.tried.pop();
            if let Ok((server, rights, role)) = picked {
                self.tally.hedges += 1;
                self.note(Note::Hedged { request: id });
                self.send(id, &mut request, server, rights, role);
            }
        }
        self.requests[id as usize] = Some(request);
    }

    fn take(&mut self, id: u32) -> Option<Box<Request>> {
        self.requests[id as usize].take()
    }

    /// The request is over.
    fn end(&mut self, id: u32, mut request: Box<Request>, how: &'static str) {
        self.note(Note::Ended { request: id, how });
        assert!(request.attempts.is_empty(), "no attempt outlives its request");
        self.give_back(&mut request);
        self.alive -= 1;
        let success = matches!(how, "ok" | "left");
        self.tally.failed += u64::from(!success);
        if let (Some(held), Some(breaker)) = (request.permit.take(), &mut self.breaker) {
            let outcome = match how {
                "ok" => Outcome::Success,
                "status" if request.status >= 500 => Outcome::Failure(Origin::Remote),
                "status" => Outcome::Pushback(None),
                "timeout" if request.hurried => Outcome::Ignored,
                "no_endpoint" | "all_tried" | "overflow" | "left" => Outcome::Ignored,
                _ => Outcome::Failure(Origin::Local),
            };
            // A request that ends without a word drops its permit; one that says it was nobody's fault records that.
            if how == "left" {
                breaker.drop(held, self.now);
            } else {
                breaker.record(held, outcome, self.now, &mut self.dice, self.trace.get_mut());
            }
        }
        self.mind_the_gentle(&request, how);
    }

    // --- One attempt ---

    /// The attempt is over; who has to know is told.
    fn close(&mut self, attempt: Attempt) {
        let Attempt {
            server,
            started,
            rights,
            outcome,
            kind,
            rtt,
            ..
        } = attempt;
        let now = self.now;
        let endpoint = &mut self.endpoints[server];
        if rtt.is_none() {
            endpoint.load.unheard();
        }
        match outcome {
            Some(outcome) => endpoint
                .load
                .finish(rtt.unwrap_or_else(|| now.since(started)), outcome, now),
            None => endpoint.load.end_ignored(),
        }
        endpoint.active -= 1;
        assert_eq!(endpoint.active, endpoint.load.in_flight(), "loads are exact");
        let verdict = outcome.unwrap_or(Outcome::Ignored);
        endpoint.pulse.record(verdict, now);
        if verdict == Outcome::Failure(Origin::Local) {
            endpoint.local = Some(now);
        }
        let Rights { ejection, breaker } = rights;
        if let (Some(held), Some(watched)) = (breaker, &endpoint.breaker) {
            let mut watched = watched.borrow_mut();
            match outcome {
                Some(outcome) => watched.record(held, outcome, now, &mut self.dice, self.trace.get_mut()),
                None => watched.drop(held, now),
            }
        }
        self.sync_breaker(server);
        match ejection {
            Some((probe, _, ticket)) if outcome.is_none() => {
                drop(probe);
                self.endpoints[server].exile.borrow_mut().released(ticket);
            }
            Some((probe, epoch, ticket)) => self.judge(server, probe, epoch, ticket, verdict),
            None => self.count(server, started, verdict, kind),
        }
    }

    fn judge(&mut self, server: usize, probe: Probe, epoch: u64, ticket: u64, outcome: Outcome) {
        let Some(settings) = &self.settings.outlier else {
            return;
        };
        let conclusion = probe.judge(&settings.ejection, outcome, self.now, &mut self.dice);
        let endpoint = &self.endpoints[server];
        endpoint
            .exile
            .borrow_mut()
            .judged(epoch, ticket, conclusion, outcome, self.now);
        let name = match conclusion {
            Conclusion::Returned => {
                endpoint.tally.clear(self.now);
                "returned"
            }
            Conclusion::Again(_) => "again",
            Conclusion::Released => "released",
            Conclusion::Stale => "stale",
        };
        self.note(Note::Probed {
            server,
            conclusion: name,
        });
        self.sync_ejection(server);
    }

    fn count(&mut self, server: usize, began: Moment, outcome: Outcome, kind: Kind) {
        let Some(settings) = &self.settings.outlier else {
            return;
        };
        let endpoint = &self.endpoints[server];
        // Of one that is out only the probe's verdict counts.
        if endpoint.arbiter.availability().is_down_by(Source::Ejection) {
            return;
        }
        if endpoint
            .tally
            .record(settings, outcome, kind, began, self.now)
            .is_none()
        {
            return;
        }
        let indices = self.compared();
        let Some(place) = indices.iter().position(|index| *index == server) else {
            return;
        };
        let mut dice = self.dice.split();
        let verdict = self.referee.strike(
            settings,
            &self.members(&indices),
            place,
            self.score,
            self.now,
            &mut dice,
        );
        if let Some(verdict) = verdict {
            self.announce(&indices, &verdict);
        }
    }
}

impl Trigger {
    const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Refused => "refused",
            Self::Stale => "stale",
            Self::Reset => "reset",
            Self::PerTry => "per_try",
            Self::Status => "status",
        }
    }
}
