//! What a process leaves to its successor besides sockets: all that was learned, and what operators ordered.
//!
//! A proxy that forgets with every new binary opens its breakers again by letting requests fail, and asks endpoints
//! that it had set aside. So the state goes through the exchange of `upgrade`, as one JSON document: its version first,
//! then the registry by identity, and the endpoints that operators drained. The successor recalls it before it compiles
//! anything.
//!
//! What must stay true: a state that cannot be used (another version, nonsense, too much) is refused whole, with the
//! reason, and the successor starts without; the sockets change hands all the same.

use std::sync::Arc;

use bellwether_core::Moment;
use bellwether_core::arbiter::{Opinion, Source};
use serde::{Deserialize, Serialize};

use super::supervisor::Supervisor;
use crate::admin::Context;
use crate::admin::overrides::{self, SavedOverride};
use crate::cluster::health::reason;
use crate::snapshot::Registry;
use crate::snapshot::memory::{Memory, Recalled, address_of};

/// Version of the content. Another one is not read: a successor that starts afresh is better than one that guesses.
const VERSION: u32 = 1;
/// The most that is handed over, bytes. Five thousand endpoints take some two million.
const MOST: usize = 32 << 20;

/// The state of a process as its successor reads it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Legacy {
    version: u32,
    memory: Memory,
    overrides: Vec<SavedOverride>,
}

/// Why a state is not taken over.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    /// Written by a binary that writes it in another way.
    #[error("it is of version {0}, this binary reads version {VERSION}")]
    Version(u32),
    /// No state at all.
    #[error("it cannot be read: {0}")]
    Nonsense(#[from] serde_json::Error),
    /// Too much.
    #[error("it has {0} bytes, the most is {MOST}")]
    Large(usize),
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

impl Supervisor {
    /// All that a successor has to know; nothing, with a word in the log, when that cannot be said.
    pub(super) fn legacy(&self) -> Vec<u8> {
        let legacy = Legacy {
            version: VERSION,
            memory: self.registry.save(self.clock.now()),
            overrides: overrides::save(&self.admin),
        };
        legacy.write().unwrap_or_else(|error| {
            tracing::warn!("what was learned is not handed over: {error}");
            Vec::new()
        })
    }
}

impl Legacy {
    fn write(&self) -> Result<Vec<u8>, Unusable> {
        let bytes = serde_json::to_vec(self)?;
        if bytes.len() > MOST {
            return Err(Unusable::Large(bytes.len()));
        }
        Ok(bytes)
    }

    /// Reads what a predecessor left.
    ///
    /// # Errors
    /// Why it is of no use.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Unusable> {
        if bytes.len() > MOST {
            return Err(Unusable::Large(bytes.len()));
        }
        let Versioned { version } = serde_json::from_slice(bytes)?;
        if version != VERSION {
            return Err(Unusable::Version(version));
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    /// Puts everything where the first snapshot will look for it; it was saved at the moment that is `then` here.
    pub(super) fn recall(&self, registry: &Registry, then: Moment) -> Recalled {
        let recalled = registry.recall(&self.memory, then);
        for entry in &self.overrides {
            if let Some(address) = address_of(&entry.address) {
                let endpoint = registry.endpoint(&entry.cluster.as_str().into(), &address, Moment::ZERO);
                let evidence = "as the process before was told".to_owned();
                let said = (Source::Admin, Opinion::Draining, reason::DRAINED);
                endpoint.arbiter.set(said.0, said.1, said.2, evidence, then);
            }
        }
        recalled
    }

    /// Goes on with what operators ordered, in a process that is otherwise ready.
    pub(super) fn go_on(self, admin: &Arc<Context>) {
        overrides::recall(admin, self.overrides);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bellwether_core::balance::Load;
    use bellwether_core::breaker::{self, Force, State};
    use bellwether_core::health::{Checks, Verdict};
    use bellwether_core::mode::Mode;
    use bellwether_core::outcome::{Origin, Outcome};
    use bellwether_core::{Dice, budget, ejection};
    use proptest::prelude::*;

    use super::*;
    use crate::cluster::discovery::Member;
    use crate::net::SocketAddress;
    use crate::net::clock::Clock;
    use crate::telemetry::{Recorder, RecorderSettings};

    const FAILURE: Outcome = Outcome::Failure(Origin::Remote);

    fn registry() -> Registry {
        let recorder = Recorder::new(RecorderSettings::default());
        Registry::new(Arc::new(recorder), Clock::start())
    }

    fn address(port: u16) -> SocketAddress {
        SocketAddress::Ip(([127, 0, 0, 1], port).into())
    }

    fn attempt(load: &Load, millis: u64, outcome: Outcome, now: Moment) {
        load.begin(now);
        load.unheard();
        load.finish(Duration::from_millis(millis), outcome, now);
    }

    /// A world in which something of everything has been learned.
    fn lived(now: Moment) -> Legacy {
        let (registry, mut dice) = (registry(), Dice::new(3));
        let settings = breaker::Settings::default();
        let route = registry.route(&"orders".into()).breaker(&settings, now);
        for _ in 0..20 {
            let permit = route.admit(&settings, now, &mut dice).verdict.expect("closed");
            route.record(&settings, permit, FAILURE, now, &mut dice);
        }
        assert_eq!(route.state(), State::Open);
        let cluster = registry.cluster(&"app".into());
        let shared = cluster.breaker(&settings, now);
        shared.force(Force::Closed, now.plus(Duration::from_secs(30)), now);
        let retries = budget::Settings::default();
        for _ in 0..50 {
            cluster.budget(&retries).offer(now);
        }
        let endpoint = registry.endpoint(&"app".into(), &address(1), now.minus(Duration::from_secs(4)));
        attempt(&endpoint.load, 70, Outcome::Success, now);
        attempt(&endpoint.load, 1, FAILURE, now);
        let out = ejection::Settings::default();
        endpoint.ejection.eject(&out, Mode::Enforce, now, &mut dice);
        *endpoint.checks.lock() = Some(Checks::with(Verdict::Down));
        let own = [
            endpoint.breaker(&settings, now),
            registry
                .route(&"orders".into())
                .breaker_of(&endpoint, &settings, now),
        ];
        for breaker in own {
            breaker.force(Force::Open, now.plus(Duration::from_secs(20)), now);
        }
        let unix = SocketAddress::Unix(std::path::Path::new("/run/app.sock").into());
        registry.endpoint(&"app".into(), &unix, Moment::ZERO);
        registry.remember_members(&"app".into(), &[Member::new(address(1)), Member::new(unix)]);
        Legacy {
            version: VERSION,
            memory: registry.save(now),
            overrides: Vec::new(),
        }
    }

    #[test]
    fn what_was_learned_is_found_by_the_first_snapshot_of_the_successor() {
        let now = Clock::start().now();
        let bytes = lived(now).write().expect("small");
        // The successor's clock is another one.
        let (registry, there) = (registry(), Moment::from_nanos(3_600_000_000_000));
        let legacy = Legacy::read(&bytes).expect("our own version");
        let recalled = legacy.recall(&registry, there);
        assert_eq!(
            recalled,
            Recalled {
                breakers: 4,
                ejected: 1,
                endpoints: 2
            }
        );

        let settings = breaker::Settings::default();
        let route = registry.route(&"orders".into()).breaker(&settings, there);
        let report = route.report(&settings, there);
        assert_eq!((report.state, report.openings), (State::Open, 1));
        let left = report.until.since(there);
        assert!(
            left >= settings.open && left <= settings.open.mul_f64(1.5),
            "{left:?}"
        );
        let cluster = registry.cluster(&"app".into());
        let order = cluster.breaker(&settings, there).report(&settings, there);
        assert_eq!(order.state, State::ForcedClosed);
        assert_eq!(order.until, there.plus(Duration::from_secs(30)));
        let retries = budget::Settings::default();
        assert_eq!(
            cluster.budget(&retries).left(&retries, there).0,
            50.0 * 0.2 + 30.0
        );

        let endpoint = registry.endpoint(&"app".into(), &address(1), Moment::ZERO);
        for breaker in [
            endpoint.breaker(&settings, there),
            registry
                .route(&"orders".into())
                .breaker_of(&endpoint, &settings, there),
        ] {
            let order = breaker.report(&settings, there);
            let until = there.plus(Duration::from_secs(20));
            assert_eq!((order.state, order.until), (State::ForcedOpen, until));
        }
        assert!(endpoint.ejection.is_out());
        assert_eq!(endpoint.ejection.view(there).nth, 1);
        assert_eq!(there.since(endpoint.arbiter.entered()), Duration::from_secs(4));
        let removers: Vec<_> = endpoint.availability().removers().collect();
        assert_eq!(removers.len(), 2, "{removers:?}");
        assert!(endpoint.availability().is_down_by(Source::Check));
        assert!(endpoint.availability().is_down_by(Source::Ejection));
        let estimate = endpoint.load.estimate(there, 0.0).expect("known");
        assert!((estimate - 0.07).abs() < 0.001, "{estimate}");
        assert!(endpoint.load.success() < 1.0);
        assert_eq!(registry.members("app").map(|members| members.len()), Some(2));
    }

    #[test]
    fn another_version_is_refused_with_the_reason_and_so_is_nonsense() {
        let refused = |bytes: &[u8]| Legacy::read(bytes).expect_err("refused").to_string();
        assert_eq!(
            refused(br#"{"version":7,"engine":"steam"}"#),
            "it is of version 7, this binary reads version 1"
        );
        assert!(refused(b"hello").starts_with("it cannot be read"));
        assert!(refused(br#"{"version":1}"#).contains("missing field"));
        let bytes = lived(Clock::start().now()).write().expect("small");
        let text = String::from_utf8(bytes).expect("JSON");
        for (from, to) in [
            ("\"open\"", "\"ajar\""),
            ("\"openings\":1", "\"openings\":-1"),
            ("\"success\":", "\"failure\":"),
        ] {
            assert!(text.contains(from), "{from} in {text}");
            refused(text.replacen(from, to, 1).as_bytes());
        }
        assert!(refused(&vec![b' '; MOST + 1]).contains("the most is"));
    }

    proptest! {
        /// A byte here and there, or none of ours at all: refused or recalled, and nobody panics.
        #[test]
        fn whatever_arrives_is_refused_or_recalled(
            changes in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(&b"0123456789-e.\"{}[],:nulltrue "[..])), 0..12),
            noise in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let now = Moment::from_nanos(3_600_000_000_000);
            let mut bytes = lived(now).write().expect("small");
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            for bytes in [bytes, noise] {
                if let Ok(legacy) = Legacy::read(&bytes) {
                    let registry = registry();
                    legacy.recall(&registry, now);
                    let again = Legacy { memory: registry.save(now), ..legacy };
                    prop_assert!(again.write().is_ok());
                }
            }
        }
    }
}
