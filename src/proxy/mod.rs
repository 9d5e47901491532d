//! One request, top to bottom.
//!
//! ```text
//! enter     is it sane, whose is it, which route          (enter.rs)
//! admit     may it be worked on                           (admit.rs)
//! attempts  one try after another, until one may be kept  (attempts.rs, attempt.rs)
//!           or what the route does where there is none    (fallback.rs)
//! settle    what is owed at the end: metrics, log line    (cx.rs, by drop)
//! ```
//!
//! Each step returns the [`Reason`] for which the request ends here; only [`Frontend::call`] turns a reason into an
//! answer. Everything acquired on the way is a guard inside the request's context, which travels with the answer's
//! body, so a client that leaves at any point leaves nothing behind.
//!
//! Invariant: a request sees exactly one snapshot.

mod admit;
mod attempt;
mod attempts;
mod body;
mod copy;
mod cx;
mod enter;
mod fallback;
mod hedge;
mod upgrade;

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bellwether_core::shed::Level;
use bellwether_core::{Dice, Moment, Phase, Reason};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};

pub use body::Body;
use cx::RequestCx;

use crate::cluster::pool::Pools;
use crate::message::forwarded::{Hop, Scheme, Trust};
use crate::message::hygiene::BadAuthority;
use crate::message::reply;
use crate::message::request_id::RequestId;
use crate::message::template::Values;
use crate::net::PeerInfo;
use crate::snapshot::cell::{Reader, World};
use crate::snapshot::{Action, Listener, Route, Snapshot};
use crate::telemetry::{AccessWriter, Events, ProcessMetrics, Vitals, WorkerId};
use crate::wire::{Early, Inbound, Refusal, Reply, RequestBody, Service, Toolbox};

/// What one worker's requests share. Made by `app`, once per worker.
#[derive(Debug)]
pub struct Worker {
    /// Which one.
    pub id: WorkerId,
    /// Timers, clock, `date`.
    pub tools: Toolbox,
    /// Connections to endpoints.
    pub pools: Pools,
    /// The only source of chance on this worker.
    pub dice: RefCell<Dice>,
    /// The present snapshot.
    pub reader: Reader,
    /// The access log.
    pub log: AccessWriter,
    /// Series of the process.
    pub metrics: Arc<ProcessMetrics>,
    /// What changes.
    pub events: Arc<Events>,
    /// How the process is doing.
    pub vitals: Arc<Vitals>,
    /// When the last large exchange was cut for want of memory.
    pub cut: Cell<Moment>,
    /// Wall clock minus monotonic clock, and when it was last compared.
    pub wall: Cell<(Duration, Moment)>,
}

impl Worker {
    /// Time since 1970 at `now`; the clocks are compared once a second.
    pub fn since_epoch(&self, now: Moment) -> Duration {
        const COMPARE_AFTER: Duration = Duration::from_secs(1);
        let (offset, compared) = self.wall.get();
        if offset != Duration::ZERO && now.since(compared) < COMPARE_AFTER {
            return offset + now.since(Moment::ZERO);
        }
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.wall.set((wall.saturating_sub(now.since(Moment::ZERO)), now));
        wall
    }
}

/// A listener of one snapshot as one connection sees it.
#[derive(Debug)]
pub(crate) struct View {
    source: World,
    snapshot: Arc<Snapshot>,
    listener: Arc<Listener>,
    hop: Hop,
}

/// The service of one downstream connection.
#[derive(Debug)]
pub struct Frontend {
    worker: Rc<Worker>,
    peer: Rc<PeerInfo>,
    client: IpAddr,
    view: RefCell<Rc<View>>,
}

impl Frontend {
    /// The service of a connection that was accepted by `listener` of `source`.
    pub fn new(worker: Rc<Worker>, source: World, listener: Arc<Listener>, peer: PeerInfo) -> Self {
        let client = peer
            .client()
            .map_or(IpAddr::from([127, 0, 0, 1]), |address| address.ip());
        let view = View::new(source, listener, &peer, client);
        Self {
            worker,
            peer: Rc::new(peer),
            client,
            view: RefCell::new(Rc::new(view)),
        }
    }

    /// The present world. A connection whose listener has left the configuration keeps the last one that had it.
    fn view(&self) -> Rc<View> {
        let current = self.worker.reader.current();
        let mut view = self.view.borrow_mut();
        if !Rc::ptr_eq(&view.source, &current)
            && let Some(listener) = current.listener(&view.listener.name)
        {
            *view = Rc::new(View::new(
                Rc::clone(&current),
                Arc::clone(listener),
                &self.peer,
                self.client,
            ));
        }
        Rc::clone(&view)
    }

    async fn answer(
        view: &View,
        cx: &mut RequestCx,
        request: &mut Request<RequestBody>,
        early: &Early,
    ) -> Result<Answered, Reason> {
        let entered = enter::enter(view, cx, request)?;
        let headers = request.headers_mut();
        cx.phase.set(Phase::Route);
        let route = cx.route(view).ok_or(Reason::NoRoute)?;
        // What goes out is edited on the way; another cluster gets what came in.
        let kept = route.falls_back_to_cluster().then(|| headers.clone());
        match Self::act(view, cx, route, &entered, headers, early).await {
            Err(reason) if route.fallback.is_some() => {
                if let Some(kept) = kept {
                    *headers = kept;
                }
                Box::pin(fallback::fall_back(
                    view, cx, route, &entered, headers, early, reason,
                ))
                .await
            }
            done => done,
        }
    }

    async fn act(
        view: &View,
        cx: &mut RequestCx,
        route: &Arc<Route>,
        entered: &enter::Entered,
        headers: &mut HeaderMap,
        early: &Early,
    ) -> Result<Answered, Reason> {
        admit::admit(cx, route, entered, headers)?;
        if let Some(fault) = &route.fault {
            admit::inject(cx, fault, headers).await?;
        }
        match &route.action {
            Action::Direct(direct) => {
                let response = direct.response(headers, &entered.values(cx, &route.name));
                Ok(Answered::Local(response))
            }
            Action::Redirect(redirect) => {
                let values = entered.values(cx, &route.name);
                match redirect.response(&entered.asked(view, route), &values) {
                    Some(response) => Ok(Answered::Local(response)),
                    None => Err(enter::bad_request(cx, &BadAuthority::Missing)),
                }
            }
            Action::Forward(target) => attempts::attempts(view, cx, route, target, entered, headers, early)
                .await
                .map(Answered::Forwarded),
        }
    }
}

/// What the steps arrived at.
enum Answered {
    Local(Response<Bytes>),
    Forwarded(attempts::Forwarded),
}

impl View {
    fn new(source: World, listener: Arc<Listener>, peer: &PeerInfo, client: IpAddr) -> Self {
        let scheme = if peer.tls.is_some() {
            Scheme::Https
        } else {
            Scheme::Http
        };
        let port = peer.destination().map_or(0, |address| address.port());
        let trust = if listener.trusts(Some(client)) {
            Trust::Trusted
        } else {
            Trust::Untrusted
        };
        Self {
            snapshot: Arc::clone(&source),
            source,
            hop: Hop::new(client, scheme, port, trust),
            listener,
        }
    }
}

impl Service for Frontend {
    type Body = Body;

    fn call(&self, inbound: Inbound) -> impl Future<Output = Reply<Body>> + 'static {
        let view = self.view();
        let mut cx = Box::new(RequestCx::new(
            &self.worker,
            &view,
            &self.peer,
            self.client,
            &inbound,
        ));
        let Inbound {
            mut request, early, ..
        } = inbound;
        async move {
            let outcome = Self::answer(&view, &mut cx, &mut request, &early).await;
            let worker = Rc::clone(&cx.worker);
            let mut reply = match outcome {
                Ok(Answered::Forwarded(mut forwarded)) => {
                    cx.tell_standing(&mut forwarded.head.headers);
                    forwarded.into_reply(cx)
                }
                Ok(Answered::Local(response)) => local(&view, cx, response),
                Err(reason) => {
                    cx.end(reason);
                    let format = cx.format.unwrap_or_else(|| reply::format(request.headers()));
                    let response = cx.refusal(&view, reason, format);
                    local(&view, cx, response)
                }
            };
            let level = worker.tools.level();
            if level >= Level::High && !level.keeps_alive(&mut worker.dice.borrow_mut()) {
                // HTTP/1.1 ends the connection behind it; HTTP/2 has no such field and leaves it out.
                let close = HeaderValue::from_static("close");
                reply.head.headers.insert(header::CONNECTION, close);
            }
            reply
        }
    }

    fn refuse(&self, refusal: Refusal) -> Response<Bytes> {
        let view = self.view();
        let reason = match refusal {
            Refusal::HeadTimeout => Reason::ClientTimeout,
            Refusal::Head(error) => match error.status().as_u16() {
                414 => Reason::UriTooLong,
                431 => Reason::HeadersTooLarge,
                _ => Reason::ClientProtocol,
            },
        };
        let detail = match refusal {
            Refusal::Head(error) => error.name(),
            Refusal::HeadTimeout => "head_timeout",
        };
        cx::record_refusal(&self.worker, &view, self.client, reason, detail)
    }
}

/// Sends an answer of our own.
fn local(view: &View, mut cx: Box<RequestCx>, response: Response<Bytes>) -> Reply<Body> {
    let (head, content) = response.into_parts();
    let mut head = Box::new(head);
    cx.status = head.status.as_u16();
    cx.answered();
    if let Some(route) = cx.route(view) {
        let values = Values {
            client_ip: cx.client_ip,
            host: "",
            path: cx.uri.path(),
            request_id: cx.request_id.as_str(),
            route: &route.name,
            cluster: "",
            endpoint: "",
            tls_peer: "",
        };
        route.response_headers.apply(&mut head.headers, &values);
        cx.tell_standing(&mut head.headers);
    }
    if cx.method == Method::HEAD
        && content.is_empty()
        && !matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
    {
        // An empty body leaves open what GET would have had; here it is known.
        head.headers
            .insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    Reply {
        head,
        body: Body::local(content, cx),
        tunnel: None,
        idle: Some(LOCAL_IDLE),
    }
}

/// How long a client may take to read an answer of our own.
const LOCAL_IDLE: Duration = Duration::from_secs(30);

/// An id for what is not even a request.
fn fresh_id(worker: &Worker, now: Moment) -> RequestId {
    let millis = u64::try_from(worker.since_epoch(now).as_millis()).unwrap_or(0);
    RequestId::make(millis, &mut worker.dice.borrow_mut())
}

/// Where interim answers go while a request is forwarded.
type Interim<'a> = &'a Early;
