//! One HTTP/2 connection to an endpoint, shared by the exchanges of one worker.
//!
//! The h2 crate multiplexes behind one lock and drives frames from a task of its own; here that task lives on the
//! worker that opened the connection, so nothing is contended. The crate queues requests without bound when the peer
//! allows no more streams, hence [`Connection::has_room`] is asked before an exchange is started.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::OnceCell;

use super::batch::{Batch, Batched};
use super::{PumpError, RecvBody, SendPump, StreamTunnel};
use crate::net::Io;
use crate::wire::{BodyError, Tunnel};

const STREAM_WINDOW: u32 = 512 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
const SEND_BUFFER: usize = 128 * 1024;
const HEADER_LIST: u32 = 64 * 1024;
/// What small DATA frames may cost in bookkeeping while nobody reads them. One client that reads slowly must not end
/// the connection of all others, so this is above what the window of the connection can hold of them.
const SMALL_FRAMES: usize = 32 * 1024 * 1024;
/// Interim responses that are tolerated before the final one.
const MAX_INTERIM: u8 = 16;

/// A connection that several exchanges share. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Connection {
    send: SendRequest<Bytes>,
    state: Rc<State>,
}

#[derive(Debug)]
struct State {
    closed: Cell<bool>,
    active: Cell<usize>,
    exchanges: Cell<u32>,
    /// Signs of life of the peer, counted; wraps.
    heard: Cell<u32>,
    ping: RefCell<Option<PingPong>>,
    settled: OnceCell<()>,
}

/// Opens a connection; the returned value is usable once the settings of the peer are known or assumed.
///
/// # Errors
/// When the stream fails before the preface is out.
pub async fn handshake(io: Io) -> Result<Connection, h2::Error> {
    let batch = Batch::new(io);
    let (send, mut connection) = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(HEADER_LIST)
        .initial_max_send_streams(100)
        .data_frame_budget(SMALL_FRAMES)
        .handshake::<_, Bytes>(Batched(Rc::clone(&batch)))
        .await?;
    let state = Rc::new(State {
        closed: Cell::new(false),
        active: Cell::new(0),
        exchanges: Cell::new(0),
        heard: Cell::new(0),
        ping: RefCell::new(connection.ping_pong()),
        settled: OnceCell::new(),
    });
    let seen = Rc::clone(&state);
    tokio::task::spawn_local(async move {
        let ended = poll_fn(|cx| {
            loop {
                let polled = Pin::new(&mut connection).poll(cx);
                // What failed is told by the connection when it reads.
                if polled.is_ready() || batch.poll_flush(cx) != Poll::Ready(false) {
                    return polled;
                }
            }
        });
        if let Err(error) = ended.await {
            tracing::debug!(%error, "an HTTP/2 connection to an endpoint ended");
        }
        seen.closed.set(true);
    });
    Ok(Connection { send, state })
}

impl Connection {
    /// Whether the connection has ended or takes no more exchanges.
    pub fn is_closed(&self) -> bool {
        self.state.closed.get()
    }

    /// Whether the peer allows another stream right now. One that has said GOAWAY does not, ever.
    pub fn has_room(&mut self) -> bool {
        // Answers at once: it waits only behind a request of this very handle.
        let asked = self.send.poll_ready(&mut Context::from_waker(Waker::noop()));
        if let Poll::Ready(Err(_)) = asked {
            self.state.closed.set(true);
        }
        !self.is_closed() && self.state.active.get() < self.send.current_max_send_streams()
    }

    /// Exchanges that run now.
    pub fn active(&self) -> usize {
        self.state.active.get()
    }

    /// Exchanges that were ever started.
    pub fn exchanges(&self) -> u32 {
        self.state.exchanges.get()
    }

    fn heard(&self) {
        self.state.heard.set(self.state.heard.get().wrapping_add(1));
    }

    /// Waits until the settings of the peer are known. They precede its answer to anything (RFC 9113 §3.4), so one PING
    /// is enough; it is sent only for those who have to know.
    pub async fn settled(&self) {
        let ask = || async {
            let ping = self.state.ping.borrow_mut().take();
            if let Some(mut ping) = ping {
                // A connection that fails here will say so when it is used.
                drop(ping.ping(Ping::opaque()).await);
            }
        };
        self.state.settled.get_or_init(ask).await;
    }

    /// Whether the peer takes extended CONNECT (RFC 8441); certain once it is [`Connection::settled`].
    pub fn takes_extended_connect(&self) -> bool {
        self.send.is_extended_connect_protocol_enabled()
    }
}

/// Why an exchange failed before the final response head.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The peer said that it did not process the request (RFC 9113 §8.7), or it was never sent.
    #[error("not processed: {0}")]
    NotProcessed(h2::Error),
    /// The connection failed.
    #[error("connection lost: {0}")]
    Lost(io::Error),
    /// The peer reset the stream.
    #[error("stream reset: {0}")]
    Reset(Reason),
    /// The peer broke the protocol.
    #[error("invalid answer: {0}")]
    Protocol(&'static str),
    /// The request's own body failed; not the endpoint's fault.
    #[error("request body: {0}")]
    Request(BodyError),
}

fn classify(error: h2::Error) -> ExchangeError {
    let refused = error.is_remote()
        && (error.reason() == Some(Reason::REFUSED_STREAM) || (error.is_go_away() && error.is_remote()));
    if refused {
        return ExchangeError::NotProcessed(error);
    }
    if error.is_io() {
        return ExchangeError::Lost(
            error
                .into_io()
                .unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()),
        );
    }
    match error.reason() {
        Some(reason) if error.is_remote() => ExchangeError::Reset(reason),
        Some(_) => ExchangeError::Protocol("http2"),
        None => ExchangeError::Lost(io::ErrorKind::ConnectionReset.into()),
    }
}

/// One request and its answer on a stream.
#[derive(Debug)]
pub struct Exchange<B> {
    connection: Connection,
    response: Option<ResponseFuture>,
    upload: Option<SendPump<B>>,
    /// After an accepted extended CONNECT the sending half becomes part of a tunnel.
    connect: Option<SendStream<Bytes>>,
    recv: Option<RecvBody>,
    raw: Option<RecvStream>,
    interim: u8,
    /// What had been heard of the peer when this exchange began.
    heard_before: u32,
}

/// What the endpoint said.
#[derive(Debug)]
pub enum Answer {
    /// A 1xx response.
    Interim(Response<()>),
    /// The final response.
    Final(Response<()>),
}

impl<B: Body<Data = Bytes, Error = BodyError> + Unpin> Exchange<B> {
    /// Starts the request. `connect` keeps the stream open as a tunnel.
    ///
    /// # Errors
    /// [`ExchangeError::NotProcessed`] when the connection takes no more requests; nothing was sent then.
    pub fn start(
        connection: &Connection,
        request: Request<()>,
        body: B,
        connect: bool,
    ) -> Result<Self, ExchangeError> {
        let mut connection = connection.clone();
        let ended = body.is_end_stream() && !connect;
        let (response, stream) = connection
            .send
            .send_request(request, ended)
            .map_err(ExchangeError::NotProcessed)?;
        connection.state.active.set(connection.state.active.get() + 1);
        connection
            .state
            .exchanges
            .set(connection.state.exchanges.get().saturating_add(1));
        let (upload, connect) = match (connect, ended) {
            (true, _) => (None, Some(stream)),
            (false, true) => (None, None),
            (false, false) => (Some(SendPump::new(stream, body)), None),
        };
        let heard_before = connection.state.heard.get();
        Ok(Self {
            connection,
            heard_before,
            response: Some(response),
            upload,
            connect,
            recv: None,
            raw: None,
            interim: 0,
        })
    }

    /// Sends, and waits for the next response head.
    pub fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answer, ExchangeError>> {
        if let Err(error) = self.drive_upload(cx) {
            // That says nothing about the peer.
            self.heard_before = self.heard_before.wrapping_sub(1);
            return Poll::Ready(Err(ExchangeError::Request(error)));
        }
        let Some(response) = self.response.as_mut() else {
            return Poll::Ready(Err(ExchangeError::Protocol("answered_twice")));
        };
        if let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
            self.connection.heard();
            self.interim += 1;
            if self.interim > MAX_INTERIM {
                return Poll::Ready(Err(ExchangeError::Protocol("too_many_interim_responses")));
            }
            return Poll::Ready(Ok(Answer::Interim(interim)));
        }
        match Pin::new(response).poll(cx) {
            Poll::Ready(Ok(response)) => {
                self.connection.heard();
                self.response = None;
                let (parts, recv) = response.into_parts();
                if self.connect.is_some() && parts.status.is_success() {
                    self.raw = Some(recv);
                } else {
                    self.recv = Some(RecvBody::new(recv, &parts.headers, None));
                }
                Poll::Ready(Ok(Answer::Final(Response::from_parts(parts, ()))))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(classify(error))),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Polls the content of the final answer, and goes on uploading.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.drive_upload(cx).is_err() {
            // An upload that fails now cannot change an answer that has begun.
            self.upload = None;
        }
        match self.recv.as_mut() {
            Some(recv) => recv.poll_frame(cx).map(|frame| {
                self.connection.heard();
                frame
            }),
            None => Poll::Ready(None),
        }
    }

    /// Whether the answer has been read to its end.
    pub fn is_end_stream(&self) -> bool {
        self.recv.as_ref().is_none_or(RecvBody::is_end_stream)
    }

    /// Length of what is left of the answer.
    pub fn size_hint(&self) -> SizeHint {
        self.recv
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), RecvBody::size_hint)
    }

    /// Gives up waiting for the peer. A connection on which nothing was heard of it since this exchange began is
    /// used no more: nothing else notices a peer that has vanished, and everybody would wait for it in turn.
    pub fn time_out(self) {
        let state = &self.connection.state;
        if state.heard.get() == self.heard_before {
            state.closed.set(true);
        }
    }

    /// The stream as a tunnel, after an accepted extended CONNECT.
    pub fn into_tunnel(mut self) -> Option<Tunnel> {
        let (send, recv) = (self.connect.take()?, self.raw.take()?);
        Some(Tunnel::Http2(Box::new(StreamTunnel::new(send, recv))))
    }

    fn drive_upload(&mut self, cx: &mut Context<'_>) -> Result<(), BodyError> {
        let Some(upload) = self.upload.as_mut() else {
            return Ok(());
        };
        match upload.poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(Ok(()) | Err(PumpError::Reset | PumpError::Connection)) => {
                // What ended the stream is told by the response.
                self.upload = None;
                Ok(())
            }
            Poll::Ready(Err(PumpError::Body(error))) => {
                upload.stream.send_reset(Reason::CANCEL);
                self.upload = None;
                Err(error)
            }
        }
    }
}

impl<B> Drop for Exchange<B> {
    fn drop(&mut self) {
        let state = &self.connection.state;
        state.active.set(state.active.get() - 1);
    }
}

/// Waits until the connection takes another request.
///
/// # Errors
/// When it has ended.
pub async fn ready(connection: &Connection) -> Result<(), h2::Error> {
    let mut send = connection.send.clone();
    poll_fn(|cx| send.poll_ready(cx)).await
}
