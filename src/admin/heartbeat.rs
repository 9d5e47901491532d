//! `POST /v1/heartbeat`: an endpoint says how it is.
//!
//! Who sends must be the endpoint that it speaks for. Its certificate proves that where there is one; else the address it
//! sends from does. The operators' token may speak for everybody, the heartbeat token opens nothing but this path and
//! proves no more than that its bearer is one of ours. What is refused changes nothing and is counted.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use bellwether_core::heartbeat::{Beat, Nonsense, Received, Sender, State as Word, Weight};
use http::HeaderMap;
use serde::{Deserialize, Serialize};

use super::operate::{Content, read};
use super::{Context, Problem, problem};
use crate::cluster::outliers::Witness;
use crate::cluster::{Cluster, Endpoint};
use crate::net::{PeerInfo, SocketAddress};
use crate::telemetry::{HeartbeatResult, WorkerId};

/// Where beats are sent.
pub(super) const PATH: &str = "/v1/heartbeat";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    /// The address, as the API shows it.
    endpoint: String,
    /// Where several clusters have such an endpoint.
    cluster: Option<String>,
    seq: u64,
    incarnation: u64,
    state: String,
    /// `128`, or `"75%"`.
    weight: Option<serde_json::Value>,
    load: Option<f32>,
    max_in_flight: Option<u32>,
    ttl_ms: Option<u64>,
}

impl Said {
    fn beat(&self) -> Result<Beat, Problem> {
        let Some(state) = Word::from_name(&self.state) else {
            return Err(
                Problem::new(400, format!("`{}` is no state", self.state.escape_default()))
                    .help("states: up, drain, maint, down"),
            );
        };
        let weight = match &self.weight {
            None => None,
            Some(weight) => Some(read_weight(weight).ok_or_else(|| nonsense(Nonsense::Weight))?),
        };
        Ok(Beat {
            incarnation: self.incarnation,
            seq: self.seq,
            state,
            weight,
            load: self.load,
            max_in_flight: self.max_in_flight,
            ttl: self.ttl_ms.map(Duration::from_millis),
        })
    }
}

fn read_weight(written: &serde_json::Value) -> Option<Weight> {
    let number = |number: u64| u16::try_from(number).ok();
    match written {
        serde_json::Value::Number(weight) => Some(Weight::Absolute(number(weight.as_u64()?)?)),
        serde_json::Value::String(percent) => {
            let percent = percent.strip_suffix('%')?.trim_end().parse().ok()?;
            Some(Weight::Percent(number(percent)?))
        }
        _ => None,
    }
}

fn nonsense(what: Nonsense) -> Problem {
    Problem::new(
        400,
        match what {
            Nonsense::Weight => "`weight` is a number from 0 to 256, or a share like \"75%\"",
            Nonsense::Load => "`load` is a number from 0 to 1",
            Nonsense::Ttl => "`ttl_ms` is above 0",
        },
    )
}

#[derive(Debug, Serialize)]
struct Answer {
    result: &'static str,
    /// Where the endpoint is a member.
    clusters: Vec<String>,
}

pub(super) async fn receive(
    State(context): State<Arc<Context>>,
    peer: Option<Extension<PeerInfo>>,
    headers: HeaderMap,
    body: Content,
) -> Result<Response, Problem> {
    let nobody = |problem: Problem| {
        context
            .recorder
            .process()
            .heartbeat_received(WorkerId::CONTROL, HeartbeatResult::Rejected);
        problem
    };
    let said: Said = read(&body).map_err(nobody)?;
    let beat = said.beat().map_err(nobody)?;
    let snapshot = context.cell.load();
    let witness = Witness {
        worker: WorkerId::CONTROL,
        events: &context.events,
        generation: snapshot.generation,
        now: context.clock.now(),
        score: context.vitals.score(),
    };
    let is_operator = context.security.load().is_operator(&headers);
    let mut heard: Vec<(&Cluster, Received)> = Vec::new();
    for cluster in &snapshot.clusters {
        let is_meant = said.cluster.as_ref().is_none_or(|name| **name == *cluster.name);
        let listens = cluster
            .settings
            .heartbeat
            .is_some_and(|settings| settings.signs.hears_beats());
        let index = cluster.endpoints.iter().position(|e| *e.label == *said.endpoint);
        match index {
            Some(index) if is_meant && listens => {
                let sender = match is_operator || is_endpoint(peer.as_deref(), &cluster.endpoints[index]) {
                    true => Sender::Verified,
                    false => Sender::Forged,
                };
                heard.push((cluster, cluster.receive(index, sender, &beat, witness)));
            }
            _ => {}
        }
    }
    let Some((_, received)) = heard.first() else {
        let process = context.recorder.process();
        process.heartbeat_received(WorkerId::CONTROL, HeartbeatResult::Unknown);
        return Err(Problem::new(
            404,
            format!(
                "no cluster listens to heartbeats of `{}`",
                said.endpoint.escape_default()
            ),
        )
        .help("a cluster does with `heartbeat: { source: push }` or `any`"));
    };
    // One that is news anywhere is news.
    let received = heard
        .iter()
        .map(|(_, received)| *received)
        .find(|received| *received == Received::Accepted)
        .unwrap_or(*received);
    match received {
        Received::Accepted => Ok(problem::ok(&Answer {
            result: received.name(),
            clusters: heard
                .iter()
                .map(|(cluster, _)| cluster.name.to_string())
                .collect(),
        })),
        Received::Stale => Err(Problem::new(
            409,
            "a newer beat came before: `incarnation` grows with every start, `seq` with every beat",
        )),
        Received::Unknown => Err(Problem::new(404, "there is no such endpoint")),
        Received::Forged => Err(Problem::new(403, "the sender is not this endpoint")
            .help("send from the endpoint's own address, or with a certificate for its name")),
        Received::Invalid(what) => Err(nonsense(what)),
    }
}

/// Whether a sender has proven to be this endpoint: by a name in its certificate where the endpoint has a name and the
/// sender a certificate, else by the address that it sends from.
fn is_endpoint(peer: Option<&PeerInfo>, endpoint: &Endpoint) -> bool {
    let Some(peer) = peer else { return false };
    let names = peer.tls.as_ref().map_or(&[][..], |tls| &tls.peer_names[..]);
    let has_name = endpoint.host.parse::<std::net::IpAddr>().is_err() && &*endpoint.host != "localhost";
    if !names.is_empty() && has_name {
        return names.iter().any(|name| name.eq_ignore_ascii_case(&endpoint.host));
    }
    match (&peer.peer, &endpoint.address) {
        (SocketAddress::Ip(sender), SocketAddress::Ip(endpoint)) => {
            sender.ip().to_canonical() == endpoint.ip().to_canonical()
        }
        // A socket of this machine is spoken for by this machine.
        (SocketAddress::Ip(sender), SocketAddress::Unix(_)) => sender.ip().is_loopback(),
        (SocketAddress::Unix(_), SocketAddress::Unix(_)) => true,
        (SocketAddress::Unix(_), SocketAddress::Ip(endpoint)) => endpoint.ip().is_loopback(),
    }
}
