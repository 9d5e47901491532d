//! The invariants that take the whole cluster.

use std::time::Duration;

use bellwether_core::arbiter::{Opinion, Source};
use bellwether_core::breaker::State;
use bellwether_core::ejection::Standing;
use bellwether_core::pick::{NoPick, Picked, Role};
use bellwether_core::{Mode, Moment, panic};

use super::{IDLE, Request, Rights, Sim};
use crate::invariants::{TICK, most_out};

/// Who failed on our side this recently is not asked in panic.
const REFUSES: Duration = Duration::from_secs(5);

/// Picks that may probe until one that is due must have been probed, whoever else is. The chance that seven others come
/// first each time is below 10^-11.
const PASSED_OVER: u32 = 200;

impl Sim {
    /// Who must be probed by the next pick that may.
    pub(super) fn due(&self, request: &Request) -> Vec<usize> {
        let by_others = |index: usize| {
            let grounds = &self.endpoints[index].arbiter.availability();
            let (ejection, breaker) = (Source::Ejection, Source::Breaker);
            grounds
                .removers()
                .any(|source| source != ejection && source != breaker)
        };
        let timeout = self.settings.outlier.as_ref().map(|s| s.ejection.probe_timeout);
        (0..self.endpoints.len())
            .filter(|&index| {
                let endpoint = &self.endpoints[index];
                let server = &self.servers[index];
                if !server.listed || server.drained || endpoint.weight == 0 || by_others(index) {
                    return false;
                }
                let exile = endpoint.exile.borrow();
                let out = exile.until.is_some();
                let open = endpoint.breaker.as_ref().is_some_and(|b| b.borrow().refuses());
                let ejection = !out || timeout.is_some_and(|timeout| exile.is_due(timeout, self.now));
                let breaker = !open
                    || endpoint
                        .breaker
                        .as_ref()
                        .is_some_and(|b| b.borrow().is_due(self.now));
                (out || open) && ejection && breaker && !request.tried.contains(&index)
            })
            .collect()
    }

    /// A probe that is due comes with one of the next picks. Of several that are due one is asked, by chance.
    pub(super) fn mind_the_due(
        &self,
        due: &[usize],
        may_probe: bool,
        picked: &Result<Picked<Rights, ()>, NoPick>,
    ) {
        if !may_probe {
            return;
        }
        let most = PASSED_OVER;
        for &index in due {
            let mut exile = self.endpoints[index].exile.borrow_mut();
            let probed =
                matches!(picked, Ok(Picked { index: asked, role: Role::Probe(_), .. }) if *asked == index);
            exile.passed_over = if probed { 0 } else { exile.passed_over + 1 };
            let passed = exile.passed_over;
            assert!(
                passed <= most,
                "an endpoint that is due gets its probe: {index} did not in {passed} picks"
            );
        }
    }

    /// Panic is when nobody is left, and then everybody who could help is asked.
    pub(super) fn mind_panic(&self, picked: &Result<Picked<Rights, ()>, NoPick>, request: &Request) {
        let settings = &self.settings.panic;
        let candidates = |index: &usize| {
            let server = &self.servers[*index];
            let agent = self.endpoints[*index].arbiter.availability();
            let said = agent.is_down_by(Source::Agent);
            server.listed && !server.drained && !said && self.endpoints[*index].weight > 0
        };
        let asked: Vec<usize> = (0..self.endpoints.len()).filter(candidates).collect();
        let available = |index: &usize| self.endpoints[*index].arbiter.availability().is_available();
        let serving = asked.iter().filter(|index| available(index)).count();
        match picked {
            Ok(Picked {
                role: Role::Panic,
                index,
                ..
            }) => {
                let share = settings.threshold * asked.len() as f64;
                assert!(
                    serving as f64 <= share + 1e-9,
                    "panic only when hardly anybody is left"
                );
                let refused = self.endpoints[*index].local;
                let out = !available(index);
                let refused =
                    out && refused.is_some_and(|at| self.now.since(at) < REFUSES - Duration::from_millis(50));
                assert!(!refused, "who refuses is not asked in panic");
            }
            Err(NoPick::NoneAvailable) => {
                assert_eq!(serving, 0, "who is in service is found");
                let refuses = |index: &usize| {
                    let local = self.endpoints[*index].local;
                    local.is_some_and(|at| self.now.since(at) < REFUSES)
                };
                let nobody = settings.to == panic::To::Reject || asked.iter().all(refuses);
                assert!(nobody, "nobody is refused while somebody could be asked");
            }
            Err(NoPick::AllTried) => {
                let untried = |index: &&usize| available(index) && !request.tried.contains(index);
                assert!(asked.iter().find(untried).is_none(), "somebody was not tried");
            }
            Ok(_) | Err(NoPick::AtLimit | NoPick::BreakersOpen(_)) => {}
        }
    }

    /// One more is about to be out.
    pub(super) fn mind_ejection(&self, server: usize, compared: &[usize]) {
        let Some(settings) = &self.settings.outlier else {
            return;
        };
        assert_eq!(settings.mode, Mode::Enforce, "who observes ejects nobody");
        assert!(!self.score.suspends(), "an unwell proxy ejects nobody");
        let group = self.endpoints[server].priority;
        let of_group = || {
            compared
                .iter()
                .filter(move |index| self.endpoints[**index].priority == group)
        };
        let out = of_group()
            .filter(|index| **index != server && self.endpoints[**index].exile.borrow().until.is_some())
            .count();
        let most = most_out(of_group().count(), settings.max_ejection_percent);
        assert!(
            out < most,
            "no more are ejected than may be: {out} are out, {most} may"
        );
        let others = of_group()
            .filter(|index| {
                **index != server && self.endpoints[**index].arbiter.availability().is_available()
            })
            .count();
        assert!(others > 0, "the last one is never ejected");
        // What it is ejected for happened while it was in service and unwell.
        let (known, exile) = (&self.servers[server], self.endpoints[server].exile.borrow());
        let unwell = known.last_unwell(self.now);
        assert!(
            unwell >= exile.returned && unwell > Moment::ZERO,
            "what went wrong before the last return ejects nobody: {server} was unwell until {:.3}, back at {:.3}",
            unwell.as_nanos() as f64 / 1e9,
            exile.returned.as_nanos() as f64 / 1e9
        );
        let memory = settings.window + self.settings.timeout + IDLE + TICK;
        assert!(
            self.now.since(unwell) <= memory,
            "who is well for a whole window is not ejected"
        );
    }

    /// The word of each arbiter is the sum of the opinions, and each opinion is what its source thinks.
    pub(super) fn mind_the_arbiters(&self) {
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let availability = endpoint.arbiter.availability();
            let mut against = 0;
            for (source, ground) in endpoint.arbiter.grounds() {
                let down = ground.opinion == Opinion::Down;
                let draining = ground.opinion == Opinion::Draining;
                assert_eq!(
                    availability.is_down_by(source),
                    down,
                    "availability agrees with its grounds: {source:?}"
                );
                assert_eq!(
                    availability.is_drained_by(source),
                    draining,
                    "availability agrees with its grounds: {source:?}"
                );
                against += usize::from(down || draining);
            }
            assert_eq!(
                availability.is_available(),
                against == 0,
                "one is enough, all must agree"
            );
            if endpoint.ejection.standing(self.now) == Standing::Probing {
                let held = endpoint.exile.borrow().probing;
                assert!(held.is_some(), "no probe leaks from an ejection");
            }
            let server = &self.servers[index];
            assert_eq!(
                availability.is_down_by(Source::Discovery),
                !server.listed,
                "discovery is heard"
            );
            let removed = availability.is_down_by(Source::Admin) || availability.is_drained_by(Source::Admin);
            assert_eq!(removed, server.drained, "operators are heard");
            let open = endpoint.breaker.as_ref().is_some_and(|b| b.borrow().refuses());
            assert_eq!(
                availability.is_down_by(Source::Breaker),
                open,
                "breakers are heard"
            );
        }
    }

    /// In a world where one endpoint at a time is unwell, and others stand by, hardly a GET fails.
    pub(super) fn mind_the_gentle(&mut self, request: &Request, how: &'static str) {
        let bound = self.settings.gentle;
        let certain = request.order.get && !request.hurried && self.settings.retry.num_retries > 0;
        if !bound || !certain || matches!(how, "ok" | "left") {
            return;
        }
        let allowed = match how {
            // Bytes had reached the client.
            "cut" => true,
            _ if matches!(request.veto, Some("budget" | "in_flight")) => true,
            // An application's own failure, which the settings do not repeat; or pushback.
            "status" if request.status == 500 => !self.settings.retry.server_error,
            "status" => request.status == 429,
            _ => false,
        };
        assert!(
            allowed,
            "a GET finds the endpoints that are well: {how}, veto {:?}",
            request.veto
        );
        self.gentle_losses += u32::from(how != "cut");
    }

    /// After the storm: everybody is back, nothing is held.
    pub fn mind_the_end(&mut self) {
        let breakers = self
            .endpoints
            .iter()
            .filter_map(|endpoint| endpoint.breaker.as_ref());
        let opened: u64 = breakers.map(|breaker| breaker.borrow().openings).sum();
        let route = self.breaker.as_ref().map_or(0, |breaker| breaker.openings);
        self.tally.openings = opened + route;
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            assert_eq!(endpoint.load.in_flight(), 0, "no attempt leaks");
            assert!(
                endpoint.exile.borrow().probing.is_none(),
                "no probe leaks from an ejection"
            );
            if let Some(breaker) = &endpoint.breaker {
                let breaker = breaker.borrow();
                breaker.is_quiet(self.now);
                assert!(
                    !breaker.refuses(),
                    "no breaker wedges: {index} is {:?}",
                    breaker.state()
                );
            }
            let availability = endpoint.arbiter.availability();
            let against: Vec<_> = availability.removers().collect();
            let back = against.is_empty() || !self.servers[index].listed;
            assert!(back, "everybody comes back: {index} is out by {against:?}");
        }
        if let Some(breaker) = &self.breaker {
            breaker.is_quiet(self.now);
            assert_eq!(breaker.state(), State::Closed, "no breaker wedges");
        }
        if let (Some((budget, _)), Some(settings)) = (&self.budget, &self.settings.budget) {
            assert_eq!(
                budget.left(settings, self.now).1,
                0,
                "no retry leaks from the budget"
            );
        }
        assert_eq!(self.seats.in_flight(), 0, "no seat leaks");
        assert_eq!(self.panic.since(), None, "panic ends by itself");
    }
}
