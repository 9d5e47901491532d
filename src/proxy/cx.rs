//! Everything about one request that more than one step needs, and what is owed at its end.
//!
//! The context is the record: steps write into it, and dropping it, wherever that happens, counts the request and
//! writes the access line. A request cancelled by its client therefore leaves the same trace as any other.

use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bellwether_core::breaker::Permit;
use bellwether_core::shed::Priority;
use bellwether_core::{Moment, Origin, Outcome, Phase, Reason, TerminatedBy};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, Version, header};

use super::attempt::{Answered, Exposure, Failed};
use super::{View, Worker, fresh_id};
use crate::cluster::Seat;
use crate::message::forwarded::Trust;
use crate::message::replay::Replay;
use crate::message::reply::{self, Format, WriteOutcome};
use crate::message::request_id::RequestId;
use crate::message::template::Values;
use crate::message::trace::TraceContext;
use crate::net::PeerInfo;
use crate::net::wheel::Timer;
use crate::snapshot::rate::Standing;
use crate::snapshot::{ClusterId, FailureWhen, Guarded, Route, RouteSeat};
use crate::telemetry::{AccessRecord, BreakerCall, OutcomeLabel, RequestEnd, RouteMetrics};
use crate::wire::{Early, Inbound};

/// One request.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts that have nothing to do with each other, each noted by another step"
)]
pub(crate) struct RequestCx {
    pub(super) worker: Rc<Worker>,
    pub(super) view: Rc<View>,
    pub(super) peer: Rc<PeerInfo>,
    pub(super) started: Moment,
    /// From when on the time of the route counts: later than `started` after a delay on purpose, and for a fallback.
    pub(super) began: Moment,
    /// The route's fallback is at work.
    pub(super) fell_back: bool,
    pub(super) client_ip: IpAddr,
    pub(super) request_id: RequestId,
    pub(super) trace: Option<TraceContext>,
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) version: Version,
    user_agent: Option<HeaderValue>,
    /// Kept only where the access log has fields of its own.
    pub(super) host: Option<Box<str>>,
    /// Index into the snapshot's routes.
    route: Option<u32>,
    /// How the client stands with the rate limits of the route.
    pub(super) standing: Option<Standing>,
    pub(super) seat: Option<RouteSeat>,
    pub(super) cluster_seat: Option<Seat>,
    /// How much the request matters.
    pub(super) priority: Priority,
    /// The answer may turn out to be a stream without end, which is then counted as one.
    pub(super) may_last: bool,
    pub(super) cluster: Option<ClusterId>,
    /// The right to pass the breaker in the way; owed a verdict.
    permit: Option<Permit>,
    /// How long the client is willing to wait, if it says so.
    pub(super) asked: Option<Duration>,
    /// That is less than the route gives.
    pub(super) limited: bool,
    /// So little that nobody is to blame.
    pub(super) hurried: bool,
    /// The status of a refusal, where it is not that of its reason.
    pub(super) refused_with: Option<StatusCode>,
    /// How long the answer asks to stay away.
    pub(super) asked_to_wait: Option<Duration>,
    /// When it is worth asking again.
    pub(super) retry_after: Option<Duration>,
    pub(super) endpoint: Option<u32>,
    pub(super) replay: Replay,
    /// Deadlines of the route: until the answer's head, then between bytes.
    pub(super) timer: Timer,
    pub(super) attempts: u32,
    /// Some of them were copies, sent beside another one.
    pub(super) hedged: bool,
    pub(super) status: u16,
    pub(super) grpc_status: Option<u8>,
    pub(super) reason: Option<Reason>,
    /// The answer is the refusal of a proxy of ours further on.
    pub(super) refused_beyond: bool,
    /// How a refusal is to be written, where the fields that say so are no longer the client's.
    pub(super) format: Option<Format>,
    /// The most that an endpoint can have seen of the request.
    exposure: Exposure,
    /// Where it is; a try that is under way writes it too.
    pub(super) phase: Cell<Phase>,
    /// More about `reason`, for those who may see it.
    pub(super) detail: Option<Arc<str>>,
    pub(super) bytes_out: u64,
    pub(super) connect: Option<Duration>,
    pub(super) ttfb: Option<Duration>,
    /// Time spent waiting for endpoints.
    pub(super) upstream: Duration,
    pub(super) done: bool,
}

impl RequestCx {
    pub(super) fn new(
        worker: &Rc<Worker>,
        view: &Rc<View>,
        peer: &Rc<PeerInfo>,
        client: IpAddr,
        inbound: &Inbound,
    ) -> Self {
        let started = worker.tools.wheel.now();
        let head = &inbound.request;
        let millis = u64::try_from(worker.since_epoch(started).as_millis()).unwrap_or(0);
        let request_id = RequestId::keep_or_make(
            head.headers(),
            view.hop.trust(),
            millis,
            &mut worker.dice.borrow_mut(),
        );
        let client_ip = match view.hop.trust() {
            Trust::Trusted => view.listener.trusted.client_ip(client, head.headers()),
            Trust::Untrusted => client,
        };
        let logged = view.snapshot.access_log.is_some() && view.listener.access_log;
        Self {
            started,
            began: started,
            fell_back: false,
            client_ip,
            request_id,
            trace: None,
            method: head.method().clone(),
            uri: head.uri().clone(),
            version: head.version(),
            user_agent: if logged {
                head.headers().get(header::USER_AGENT).cloned()
            } else {
                None
            },
            host: None,
            route: None,
            standing: None,
            seat: None,
            cluster_seat: None,
            priority: Priority::Normal,
            may_last: false,
            cluster: None,
            permit: None,
            asked: None,
            limited: false,
            hurried: false,
            refused_with: None,
            refused_beyond: false,
            asked_to_wait: None,
            retry_after: None,
            endpoint: None,
            replay: Replay::none(),
            timer: worker.tools.wheel.timer(),
            attempts: 0,
            hedged: false,
            status: 0,
            grpc_status: None,
            reason: None,
            format: None,
            exposure: Exposure::Nothing,
            phase: Cell::new(Phase::Request),
            detail: None,
            bytes_out: 0,
            connect: None,
            ttfb: None,
            upstream: Duration::ZERO,
            done: false,
            worker: Rc::clone(worker),
            view: Rc::clone(view),
            peer: Rc::clone(peer),
        }
    }

    /// The route of this request in its snapshot.
    pub(super) fn route<'v>(&self, view: &'v View) -> Option<&'v Arc<Route>> {
        view.snapshot.routes.get(self.route? as usize)
    }

    /// Its index, or one that no route has.
    pub(super) fn route_index(&self) -> usize {
        self.route.map_or(usize::MAX, |index| index as usize)
    }

    /// The route was found: from here on the request counts there.
    pub(super) fn enter_route(&mut self, index: u32) {
        self.route = Some(index);
        if let Some(route) = self.view.snapshot.routes.get(index as usize) {
            route.metrics.request_started(self.worker.id);
        }
    }

    /// The identity in the client's certificate.
    pub(super) fn tls_peer(&self) -> Option<&str> {
        self.peer.tls.as_ref()?.peer_names.first().map(|name| &**name)
    }

    /// Asks the breaker in the way, if there is one.
    pub(super) fn ask_breaker(&mut self, guarded: &Guarded) -> Result<(), Reason> {
        let worker = &self.worker;
        let now = worker.tools.wheel.recent();
        let admission = guarded
            .breaker
            .admit(&guarded.settings, now, &mut worker.dice.borrow_mut());
        if let Some(change) = &admission.change {
            guarded.changed(worker.id, &worker.events, self.view.snapshot.generation, change);
        }
        match admission.verdict {
            Ok(permit) => {
                guarded.metrics.passed(worker.id, &permit);
                self.permit = Some(permit);
                Ok(())
            }
            Err(refused) => {
                guarded.metrics.called(worker.id, BreakerCall::Rejected);
                // Whole seconds are sent, and 0 would mean at once.
                self.retry_after = Some(refused.retry_after.max(Duration::from_secs(1)));
                Err(Reason::BreakerOpen)
            }
        }
    }

    /// Whether this request finds out for a breaker: it is sent once, and no copy of it.
    pub(super) fn is_probe(&self) -> bool {
        self.permit.as_ref().is_some_and(Permit::is_probe)
    }

    /// Tells the breaker how the request went.
    fn tell_breaker(&mut self, now: Moment) {
        let Some(permit) = self.permit.take() else { return };
        let route = self.route(&self.view);
        let Some((route, guarded)) = route
            .zip(self.cluster)
            .and_then(|(route, cluster)| Some((route, route.breakers.toward(cluster)?)))
        else {
            return;
        };
        let waited = self.ttfb.unwrap_or_else(|| now.since(self.started));
        // What we have delayed ourselves is nobody's slowness.
        let waited = waited.saturating_sub(self.began.since(self.started));
        let slow = guarded.slow.is_some_and(|slow| waited > slow);
        let outcome = match self.verdict(&route.failure_when) {
            Outcome::Success if slow => Outcome::Slow,
            // A client that gave up on a slow answer says as much as the slow answer would have.
            Outcome::Ignored if slow && self.reason == Some(Reason::ClientClosed) => Outcome::Slow,
            outcome => outcome,
        };
        let worker = &self.worker;
        let mut dice = worker.dice.borrow_mut();
        let change = guarded
            .breaker
            .record(&guarded.settings, permit, outcome, now, &mut dice);
        if let Some(change) = &change {
            guarded.changed(worker.id, &worker.events, self.view.snapshot.generation, change);
        }
    }

    /// How the request went, for its breaker: what we refused ourselves says nothing.
    fn verdict(&self, when: &FailureWhen) -> Outcome {
        match self.reason {
            Some(Reason::NoEndpoint) => Outcome::Ignored,
            Some(Reason::UpstreamTimeout) if self.hurried => Outcome::Ignored,
            Some(reason) => match reason.fault() {
                TerminatedBy::Upstream | TerminatedBy::Timeout => Outcome::Failure(Origin::Local),
                _ => Outcome::Ignored,
            },
            None if self.refused_beyond => Outcome::Ignored,
            None => {
                let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::OK);
                match (when.of_status(status, self.asked_to_wait), self.grpc_status) {
                    (Outcome::Success, Some(code)) => when.of_grpc(code),
                    (outcome, _) => outcome,
                }
            }
        }
    }

    /// The fallback begins: what went before is judged now.
    pub(super) fn start_over(&mut self, reason: Reason, began: Moment) {
        self.reason = Some(reason);
        self.tell_breaker(self.worker.tools.wheel.recent());
        self.reason = None;
        self.retry_after = None;
        self.cluster_seat = None;
        self.endpoint = None;
        self.fell_back = true;
        self.began = began;
        self.timer.clear();
    }

    /// Whether an endpoint may have executed the request.
    pub(super) fn may_have_acted(&self) -> bool {
        self.exposure == Exposure::Maybe
    }

    /// What a refusal says besides its reason.
    pub(super) fn explain(&self, reason: Reason, headers: &mut HeaderMap) {
        reply::Reply {
            outcome: self.write_outcome(),
            retry_after: self.retry_after,
            ..reply::Reply::new(reason, &self.request_id)
        }
        .explain(headers);
    }

    /// The request ends here, for this reason.
    pub(super) fn end(&mut self, reason: Reason) {
        self.reason = Some(reason);
        self.metrics().request_rejected(self.worker.id, reason);
    }

    /// A try ended: how long its parts took.
    pub(super) fn took(&mut self, result: &Result<Answered, Failed>) {
        let (Ok(Answered { took, .. }) | Err(Failed { took, .. })) = result;
        self.connect = took.connect.or(self.connect);
        self.upstream += took.upstream;
    }

    /// A try ended, and its endpoint can have seen this much.
    pub(super) fn exposed(&mut self, exposure: Exposure) {
        self.exposure = match (self.exposure, exposure) {
            (Exposure::Maybe, _) | (_, Exposure::Maybe) => Exposure::Maybe,
            (Exposure::Refused, _) | (_, Exposure::Refused) => Exposure::Refused,
            (_, nothing) => nothing,
        };
    }

    /// What became of the request, for the one who must decide whether to send it again: only a write is worth asking.
    fn write_outcome(&self) -> Option<WriteOutcome> {
        if self.method.is_safe() || self.method == Method::CONNECT {
            return None;
        }
        Some(match self.exposure {
            Exposure::Nothing | Exposure::Stale => WriteOutcome::NotExecuted,
            Exposure::Refused => WriteOutcome::Refused,
            Exposure::Maybe => WriteOutcome::Unknown,
        })
    }

    /// The head of the answer is decided.
    pub(super) fn answered(&mut self) {
        self.ttfb = Some(self.worker.tools.wheel.recent().since(self.started));
    }

    /// Everything the client is to get has been handed over.
    pub(super) fn complete(&mut self) {
        self.done = true;
        // A request that ended for a reason ended where it was, even though its refusal was delivered.
        if self.reason.is_none() {
            self.phase.set(Phase::Done);
        }
    }

    /// The answer that says why the request ended.
    pub(super) fn refusal(&self, view: &View, reason: Reason, format: Format) -> Response<Bytes> {
        let route = self.route(view);
        let cluster = self.cluster.and_then(|id| view.snapshot.cluster(id));
        reply::Reply {
            status: self.refused_with,
            route: route.map(|route| &*route.name),
            cluster: cluster.map(|cluster| &*cluster.name),
            detail: self.detail.as_deref(),
            attempts: self.attempts,
            outcome: self.write_outcome(),
            retry_after: self.retry_after,
            ..reply::Reply::new(reason, &self.request_id)
        }
        .response(format, view.listener.detail)
    }

    /// How long ago it came.
    pub(super) fn age(&self) -> Duration {
        self.worker.tools.wheel.recent().since(self.started)
    }

    /// Whether this exchange ends so that the process can go on: it is one of the large ones, and the process is in
    /// critical danger. One at a time, so that no more are cut than must be.
    pub(super) fn is_to_be_cut(&self) -> bool {
        let worker = &self.worker;
        if !worker.tools.level().resets_streams() || self.bytes_out + self.replay.received() < LARGE {
            return false;
        }
        let now = worker.tools.wheel.now();
        let due = now.since(worker.cut.get()) >= CUT_AFTER;
        if due {
            worker.cut.set(now);
        }
        due
    }

    /// The exchange turns out to last: it no longer takes a place of those that end soon.
    pub(super) fn lasts(&mut self) {
        self.may_last = false;
        if let Some(seat) = &mut self.seat {
            seat.lasts();
        }
        if let Some(seat) = &mut self.cluster_seat {
            seat.lasts();
        }
    }

    /// Tells the client how it stands with the limits that were asked.
    pub(super) fn tell_standing(&self, headers: &mut HeaderMap) {
        if let (Some(standing), Some(route)) = (&self.standing, self.route(&self.view)) {
            standing.tell(&route.rate_limits, headers);
        }
    }

    fn metrics(&self) -> &RouteMetrics {
        match self.route(&self.view) {
            Some(route) => &route.metrics,
            None => &self.view.snapshot.unrouted,
        }
    }

    /// How the request went, for its route.
    fn outcome(&self) -> Outcome {
        match self.reason {
            Some(reason) => match reason.fault() {
                TerminatedBy::Client | TerminatedBy::Admin => Outcome::Ignored,
                _ if self.status != 0 && self.status < 500 => Outcome::Ignored,
                TerminatedBy::Upstream | TerminatedBy::Timeout => Outcome::Failure(Origin::Local),
                _ => Outcome::Failure(Origin::Remote),
            },
            None if self.status >= 500 => Outcome::Failure(Origin::Remote),
            None if self
                .grpc_status
                .is_some_and(|code| matches!(code, 2 | 4 | 13 | 14 | 15)) =>
            {
                Outcome::Failure(Origin::Remote)
            }
            None if self.status == 429 || self.grpc_status == Some(8) => Outcome::Pushback(None),
            None => Outcome::Success,
        }
    }

    fn write_line(&self, total: Duration) {
        let Some(settings) = self
            .view
            .snapshot
            .access_log
            .as_ref()
            .filter(|_| self.view.listener.access_log)
        else {
            return;
        };
        let cluster = self.cluster.and_then(|id| self.view.snapshot.cluster(id));
        let endpoint = cluster.and_then(|cluster| cluster.endpoints.get(self.endpoint? as usize));
        let route = self.route(&self.view);
        let terminated_by = self.reason.map_or(TerminatedBy::None, Reason::fault);
        let time = u64::try_from(self.worker.since_epoch(self.started).as_micros()).unwrap_or(0);
        let values = Values {
            client_ip: self.client_ip,
            host: self.host.as_deref().unwrap_or(""),
            path: self.uri.path(),
            request_id: self.request_id.as_str(),
            route: route.map_or("", |route| &route.name),
            cluster: cluster.map_or("", |cluster| &cluster.name),
            endpoint: endpoint.map_or("", |endpoint| &endpoint.label),
            tls_peer: self.tls_peer().unwrap_or(""),
        };
        let wanted = &self.view.snapshot.access_fields;
        let rendered: Vec<String> = wanted
            .iter()
            .map(|(_, template)| template.render(&values))
            .collect();
        let fields: Vec<(&str, &[u8])> = wanted
            .iter()
            .zip(&rendered)
            .map(|((name, _), value)| (&**name, value.as_bytes()))
            .collect();
        let record = AccessRecord {
            time,
            request_id: self.request_id.as_str().as_bytes(),
            trace_id: self
                .trace
                .as_ref()
                .map_or(b"", |trace| trace.trace_id().as_bytes()),
            listener: &self.view.listener.name,
            route: route.map_or("", |route| &route.name),
            cluster: cluster.map_or("", |cluster| &cluster.name),
            endpoint: endpoint.map_or("", |endpoint| &endpoint.label),
            method: self.method.as_str().as_bytes(),
            path: self.uri.path().as_bytes(),
            protocol: match self.version {
                Version::HTTP_2 => "HTTP/2",
                Version::HTTP_10 => "HTTP/1.0",
                _ => "HTTP/1.1",
            },
            status: self.status,
            grpc_status: self.grpc_status.map(u32::from),
            reason: self.reason,
            terminated_by,
            phase: self.phase.get(),
            attempts: self.attempts,
            hedged: self.hedged,
            client: Some(self.client_ip),
            bytes_in: self.replay.received(),
            bytes_out: self.bytes_out,
            user_agent: self.user_agent.as_ref().map_or(b"", HeaderValue::as_bytes),
            t_headers: None,
            t_connect: self.connect,
            t_tls: None,
            t_ttfb: self.ttfb,
            t_total: total,
            fields: &fields,
        };
        self.worker.log.write(settings, &record);
    }
}

impl Drop for RequestCx {
    fn drop(&mut self) {
        if !self.done && self.reason.is_none() {
            // Nobody waits for the answer any more.
            self.reason = Some(Reason::ClientClosed);
            self.metrics()
                .request_rejected(self.worker.id, Reason::ClientClosed);
            if self.status == 0 {
                self.status = Reason::ClientClosed.status();
            }
        }
        let now = self.worker.tools.wheel.now();
        let total = now.since(self.started);
        self.tell_breaker(now);
        let metrics = self.metrics();
        if self.route.is_none() {
            metrics.request_started(self.worker.id);
        }
        metrics.request_ended(
            self.worker.id,
            &RequestEnd {
                code: self.status,
                outcome: OutcomeLabel::from(self.outcome()),
                duration: total,
                ttfb: self.ttfb,
                overhead: (self.attempts > 0)
                    .then(|| self.ttfb.unwrap_or(total).saturating_sub(self.upstream)),
                attempts: self.attempts,
            },
        );
        self.write_line(total);
    }
}

/// What has moved so much content is large.
const LARGE: u64 = 1024 * 1024;

/// The least time between two large exchanges that are cut on one worker: as often as the danger is looked at.
const CUT_AFTER: Duration = Duration::from_millis(250);

/// Counts and answers what was not a request at all.
pub(super) fn record_refusal(
    worker: &Rc<Worker>,
    view: &Rc<View>,
    client: IpAddr,
    reason: Reason,
    detail: &'static str,
) -> Response<Bytes> {
    let inbound = Inbound {
        request: Box::default(),
        early: Early::None,
        head_bytes: 0,
    };
    let peer = PeerInfo {
        peer: std::net::SocketAddr::new(client, 0).into(),
        local: std::net::SocketAddr::new(client, 0).into(),
        tls: None,
        proxied: None,
    };
    let mut cx = RequestCx::new(worker, view, &Rc::new(peer), client, &inbound);
    cx.request_id = fresh_id(worker, cx.started);
    cx.detail = Some(detail.into());
    cx.end(reason);
    let response = cx.refusal(view, reason, Format::Text);
    cx.status = response.status().as_u16();
    cx.bytes_out = response.body().len() as u64;
    cx.done = true;
    response
}
