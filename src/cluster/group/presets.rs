//! Known systems: what they are asked, and where their answers say what.
//!
//! Each is nothing but the data that could be written in the configuration; where a cluster sets a key itself, that wins.

use std::ops::RangeInclusive;

use bellwether_core::group::observation::Authority;
use bellwether_core::group::position::Type;
use bellwether_core::group::{Durability, Kind};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};

use super::question::{Condition, Place, Question, Reading, Test};

/// A known system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Preset {
    /// PostgreSQL under Patroni, by its REST API.
    Patroni,
    /// etcd, by its JSON gateway.
    Etcd,
    /// Consul's servers.
    Consul,
    /// Vault and OpenBao.
    Vault,
    /// rqlite.
    Rqlite,
    /// Redis behind webdis.
    Webdis,
    /// Orchestrator.
    Orchestrator,
}

impl Preset {
    /// Every known system.
    pub const ALL: [Self; 7] = [
        Self::Patroni,
        Self::Etcd,
        Self::Consul,
        Self::Vault,
        Self::Rqlite,
        Self::Webdis,
        Self::Orchestrator,
    ];

    /// What an acknowledged write is worth there.
    pub const fn durability(self) -> Durability {
        match self {
            Self::Etcd | Self::Consul | Self::Vault | Self::Rqlite => Durability::Quorum,
            Self::Patroni | Self::Webdis | Self::Orchestrator => Durability::Async,
        }
    }

    /// What its endpoints are asked.
    pub fn question(self) -> Question {
        match self {
            // `role` is `master` before version 4. The timeline can go back; a key of etcd is the better epoch.
            Self::Patroni => Question {
                port: Some(8008),
                ..get(
                    "/patroni",
                    Reading {
                        leader_when: vec![
                            one_of("/role", &["master", "primary"]),
                            one_of("/state", &["running"]),
                        ],
                        replica_when: Some(vec![
                            one_of("/role", &["replica"]),
                            one_of("/state", &["running", "streaming"]),
                        ]),
                        epoch: epoch(Kind::Timeline, &["/timeline"]),
                        position: position(Type::U64, &["/xlog/location", "/xlog/replayed_location"]),
                        cluster_id: json(&["/database_system_identifier"]),
                        timeline: json(&["/timeline"]),
                        seen: json(&["/dcs_last_seen"]),
                        authority: Authority::SelfClaim,
                        ..nothing()
                    },
                )
            },
            Self::Etcd => Question {
                method: Method::POST,
                body: Bytes::from_static(b"{}"),
                headers: HeaderMap::from_iter([(
                    header::CONTENT_TYPE,
                    HeaderValue::from_static("application/json"),
                )]),
                ..get(
                    "/v3/maintenance/status",
                    Reading {
                        leader_when: vec![
                            Condition::value(
                                Place::json("/leader"),
                                Test::Equals(Place::json("/header/member_id")),
                            ),
                            Condition::value(Place::json("/errors"), Test::Unset),
                        ],
                        epoch: epoch(Kind::RaftTerm, &["/raftTerm"]),
                        position: position(Type::U64, &["/header/revision"]),
                        cluster_id: json(&["/header/cluster_id"]),
                        // A leader that has lost its quorum says so for a while: it is its word, checked by its own clock.
                        authority: Authority::QuorumClaim,
                        ..nothing()
                    },
                )
            },
            Self::Consul => Question {
                port: Some(8500),
                ..get(
                    "/v1/agent/self",
                    Reading {
                        leader_when: vec![one_of("/Stats/consul/leader", &["true"])],
                        replica_when: Some(vec![one_of("/Stats/consul/leader", &["false"])]),
                        epoch: epoch(Kind::RaftTerm, &["/Stats/raft/term"]),
                        position: position(Type::U64, &["/Stats/raft/applied_index"]),
                        authority: Authority::QuorumClaim,
                        ..nothing()
                    },
                )
            },
            Self::Vault => get(
                "/v1/sys/health",
                Reading {
                    leader_when: vec![Condition::status([200..=200])],
                    replica_when: Some(vec![Condition::status([429..=429, 473..=473])]),
                    cluster_id: json(&["/cluster_id"]),
                    authority: Authority::QuorumClaim,
                    ..nothing()
                },
            ),
            Self::Rqlite => get(
                "/status",
                Reading {
                    leader_when: vec![one_of("/store/raft/state", &["Leader"])],
                    replica_when: Some(vec![one_of("/store/raft/state", &["Follower"])]),
                    epoch: epoch(Kind::RaftTerm, &["/store/raft/term"]),
                    position: position(Type::U64, &["/store/raft/applied_index"]),
                    authority: Authority::QuorumClaim,
                    ..nothing()
                },
            ),
            Self::Webdis => get(
                "/ROLE",
                Reading {
                    leader_when: vec![one_of("/ROLE/0", &["master"])],
                    replica_when: Some(vec![
                        one_of("/ROLE/0", &["slave"]),
                        one_of("/ROLE/3", &["connected"]),
                    ]),
                    position: position(Type::U64, &["/ROLE/4", "/ROLE/1"]),
                    authority: Authority::SelfClaim,
                    ..nothing()
                },
            ),
            Self::Orchestrator => get(
                "/api/leader-check",
                Reading {
                    leader_when: vec![Condition::status([200..=200])],
                    replica_when: Some(vec![Condition::status([404..=404])]),
                    authority: Authority::QuorumClaim,
                    ..nothing()
                },
            ),
        }
    }
}

/// `GET path`, and 200 to 299 of exactly one endpoint: what readiness probes that fail on replicas are.
pub fn plain(path: Uri) -> Question {
    let ok: RangeInclusive<u16> = 200..=299;
    let reading = Reading {
        leader_when: vec![Condition::status([ok])],
        // Who is no leader and answers at all follows.
        replica_when: Some(Vec::new()),
        ..nothing()
    };
    Question {
        path,
        ..get("/", reading)
    }
}

fn get(path: &'static str, reading: Reading) -> Question {
    Question {
        port: None,
        tls: None,
        method: Method::GET,
        path: Uri::from_static(path),
        headers: HeaderMap::new(),
        body: Bytes::new(),
        reading,
    }
}

const fn nothing() -> Reading {
    Reading {
        leader_when: Vec::new(),
        replica_when: None,
        fresh_when: None,
        epoch: None,
        position: None,
        cluster_id: Vec::new(),
        timeline: Vec::new(),
        lag: Vec::new(),
        seen: Vec::new(),
        authority: Authority::SelfClaim,
    }
}

fn one_of(pointer: &str, values: &[&str]) -> Condition {
    let values = values.iter().map(|value| (*value).into()).collect();
    Condition::value(Place::json(pointer), Test::OneOf(values))
}

fn json(pointers: &[&str]) -> Vec<Place> {
    pointers.iter().map(|pointer| Place::json(pointer)).collect()
}

fn epoch(kind: Kind, pointers: &[&str]) -> Option<(Kind, Vec<Place>)> {
    Some((kind, json(pointers)))
}

fn position(kind: Type, pointers: &[&str]) -> Option<(Type, Vec<Place>)> {
    Some((kind, json(pointers)))
}

/// A field, for facts that do not stand in the content.
pub fn field(name: HeaderName) -> Place {
    Place::Header(name)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bellwether_core::Moment;
    use bellwether_core::group::observation::{Member, Observation, Role};
    use bellwether_core::group::{Epoch, Lineage, Position};
    use http::StatusCode;

    use super::super::question::{Answer, Asked, Unreadable};
    use super::*;

    fn read(
        preset: Preset,
        status: u16,
        headers: &[(&'static str, &str)],
        body: &str,
    ) -> Result<Observation, Unreadable> {
        let headers = headers.iter().map(|(name, value)| {
            let value = HeaderValue::from_str(value).unwrap();
            (HeaderName::from_static(name), value)
        });
        let answer = Answer::new(
            StatusCode::from_u16(status).unwrap(),
            headers.collect(),
            body.as_bytes(),
        );
        let asked = Asked {
            member: Member(1),
            generation: 3,
            host: "10.0.0.2:8080",
            sent_at: Moment::from_nanos(1),
            received_at: Moment::from_nanos(2),
            ttl: Duration::from_secs(5),
        };
        preset.question().reading.read(&answer, asked)
    }

    #[test]
    fn etcd_leads_if_it_names_itself_and_has_no_errors() {
        let status = |leader: &str, errors: &str| {
            format!(
                r#"{{"header":{{"cluster_id":"14841639068965178418","member_id":"10276657743932975437","revision":"7","raft_term":"2"}},"version":"3.4.23","dbSize":"20480","leader":"{leader}","raftIndex":"12","raftTerm":"2"{errors}}}"#
            )
        };
        let leads = read(Preset::Etcd, 200, &[], &status("10276657743932975437", "")).unwrap();
        assert_eq!(
            (
                leads.role,
                leads.epoch,
                leads.position,
                leads.cluster_id.as_deref()
            ),
            (
                Role::Leader,
                Some(Epoch::new(Kind::RaftTerm, 2)),
                Some(Position::U64(7)),
                Some("14841639068965178418")
            )
        );
        assert_eq!(
            (leads.member, leads.generation, leads.sent_at),
            (Member(1), 3, Moment::from_nanos(1))
        );
        let follows = read(Preset::Etcd, 200, &[], &status("1", "")).unwrap();
        assert_eq!(follows.role, Role::Follower);
        let lost = r#","errors":["etcdserver: no leader"]"#;
        let alone = read(Preset::Etcd, 200, &[], &status("10276657743932975437", lost)).unwrap();
        assert_eq!(alone.role, Role::Follower, "it leads nobody");
    }

    #[test]
    fn patroni_says_how_old_its_knowledge_is_by_its_own_clock() {
        let status = |role: &str, state: &str, place: &str| {
            format!(
                r#"{{"state":"{state}","role":"{role}","server_version":150006,"xlog":{{"{place}":67419584}},"timeline":2,"dcs_last_seen":1764122400,"database_system_identifier":"7576","patroni":{{"version":"3.0.2","scope":"demo"}}}}"#
            )
        };
        let date = [("date", "Wed, 26 Nov 2025 02:00:03 GMT")];
        for role in ["master", "primary"] {
            let said = read(Preset::Patroni, 200, &date, &status(role, "running", "location")).unwrap();
            assert_eq!(
                (said.role, said.epoch, said.position, said.lineage, said.age),
                (
                    Role::Leader,
                    Some(Epoch::new(Kind::Timeline, 2)),
                    Some(Position::U64(67_419_584)),
                    Some(Lineage::of("7576", "2")),
                    Duration::from_secs(3)
                )
            );
        }
        let replica = status("replica", "running", "replayed_location");
        assert_eq!(
            read(Preset::Patroni, 200, &date, &replica).unwrap().role,
            Role::Follower
        );
        let starting = status("master", "starting", "location");
        assert_eq!(
            read(Preset::Patroni, 503, &date, &starting),
            Err(Unreadable::Neither(503))
        );
    }

    #[test]
    fn the_others_lead_by_their_own_words() {
        let role = |preset, status, body: &str| read(preset, status, &[], body).map(|said| said.role);
        let cases = [
            (
                Preset::Consul,
                200,
                r#"{"Stats":{"consul":{"leader":"true"},"raft":{"term":"4","applied_index":"9"}}}"#,
                Ok(Role::Leader),
            ),
            (
                Preset::Consul,
                200,
                r#"{"Stats":{"consul":{"leader":"false"},"raft":{"term":"4","applied_index":"9"}}}"#,
                Ok(Role::Follower),
            ),
            (Preset::Vault, 200, r#"{"cluster_id":"c"}"#, Ok(Role::Leader)),
            (Preset::Vault, 429, "{}", Ok(Role::Follower)),
            (Preset::Vault, 473, "{}", Ok(Role::Follower)),
            (Preset::Vault, 503, "{}", Err(Unreadable::Neither(503))),
            (
                Preset::Rqlite,
                200,
                r#"{"store":{"raft":{"state":"Leader","term":2,"applied_index":8}}}"#,
                Ok(Role::Leader),
            ),
            (
                Preset::Rqlite,
                200,
                r#"{"store":{"raft":{"state":"Candidate","term":99,"applied_index":8}}}"#,
                Err(Unreadable::Neither(200)),
            ),
            (
                Preset::Webdis,
                200,
                r#"{"ROLE":["master",3129659,[["127.0.0.1","9001","3129242"]]]}"#,
                Ok(Role::Leader),
            ),
            (
                Preset::Webdis,
                200,
                r#"{"ROLE":["slave","127.0.0.1",9000,"connected",3167038]}"#,
                Ok(Role::Follower),
            ),
            (
                Preset::Webdis,
                200,
                r#"{"ROLE":["slave","127.0.0.1",9000,"connect",-1]}"#,
                Err(Unreadable::Neither(200)),
            ),
            (Preset::Orchestrator, 200, "OK", Ok(Role::Leader)),
            (Preset::Orchestrator, 404, "no", Ok(Role::Follower)),
        ];
        for (preset, status, body, expected) in cases {
            assert_eq!(role(preset, status, body), expected, "{preset:?} {status} {body}");
        }
    }

    #[test]
    fn garbage_makes_nobody_a_leader() {
        let no_epoch = r#"{"header":{"member_id":"1"},"leader":"1"}"#;
        assert_eq!(
            read(Preset::Etcd, 200, &[], no_epoch),
            Err(Unreadable::NoEpoch("/raftTerm".into()))
        );
        let absurd = r#"{"header":{"member_id":"1","revision":"4"},"leader":"1","raftTerm":"-3"}"#;
        assert_eq!(
            read(Preset::Etcd, 200, &[], absurd),
            Err(Unreadable::BadEpoch("-3".into()))
        );
        let nowhere = r#"{"header":{"member_id":"1","revision":"four"},"leader":"1","raftTerm":"3"}"#;
        assert_eq!(
            read(Preset::Etcd, 200, &[], nowhere),
            Err(Unreadable::BadPosition("four".into()))
        );
        assert_eq!(
            read(Preset::Etcd, 200, &[], "<html>"),
            Err(Unreadable::NotJson(200))
        );
        for preset in Preset::ALL {
            for body in ["", "null", "[]", "\"leader\"", "{}"] {
                let said = read(preset, 500, &[], body);
                assert!(said.is_err(), "{preset:?} {body}: {said:?}");
            }
        }
    }
}
