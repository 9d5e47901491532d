//! One HTTP/1.1 connection to an endpoint, and one exchange on it.
//!
//! An idle connection is a plain value in a pool: no task watches it, because readiness that the reactor has already
//! noticed is free to ask for at checkout ([`Connection::is_reusable`]). During an exchange the request is uploaded by
//! the same polls that wait for the answer, so an early answer, a slow upload and back-pressure need no extra task.
//!
//! What a retry must know is kept exact: whether any byte was accepted by the socket, whether the connection had been
//! used before, and whether a byte of an answer arrived.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body::{Body, Frame, SizeHint};

use super::head::{self, Framing, ResponseHead};
use super::{Decoder, HEAD_READ, Output, encode, poll_fill};
use crate::net::{IdleState, Io};
use crate::wire::{BodyError, Tunnel};

/// Interim responses that are tolerated before the final one.
const MAX_INTERIM: u8 = 16;

/// A connection that carries no exchange.
#[derive(Debug)]
pub struct Connection {
    io: Io,
    input: BytesMut,
    output: Output,
    exchanges: u32,
}

impl Connection {
    /// Wraps a fresh stream.
    pub fn new(io: Io) -> Self {
        Self {
            io,
            input: BytesMut::new(),
            output: Output::default(),
            exchanges: 0,
        }
    }

    /// How many exchanges this connection has completed.
    pub fn exchanges(&self) -> u32 {
        self.exchanges
    }

    /// Whether the peer has neither closed nor sent anything unasked. Costs no system call in the usual case.
    pub fn is_reusable(&mut self) -> bool {
        self.input.is_empty() && self.io.idle_state() == IdleState::Quiet
    }
}

/// The request line and fields of one request as they go out.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// Method.
    pub method: &'a Method,
    /// Origin-form target (path and query), or `*`.
    pub target: &'a [u8],
    /// Fields; framing and connection management in it are ignored.
    pub headers: &'a HeaderMap,
    /// Further fields, which follow them.
    pub added: &'a [(HeaderName, HeaderValue)],
    /// The protocol to switch to, for an upgrade.
    pub upgrade: Option<&'a HeaderValue>,
}

/// Why an exchange failed before the final response head.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The connection ended or failed.
    #[error("connection lost: {0}")]
    Lost(io::Error),
    /// The answer breaks the protocol.
    #[error("invalid answer: {0}")]
    Protocol(&'static str),
    /// The request's own body failed; not the endpoint's fault.
    #[error("request body: {0}")]
    Request(BodyError),
}

/// One request and its answer on one connection.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "four facts that are true or not on their own"
)]
pub struct Exchange<B> {
    connection: Connection,
    /// `None` once everything is sent.
    upload: Option<B>,
    upload_chunked: bool,
    upload_left: Option<u64>,
    method: Method,
    upgrade: bool,
    scanned: usize,
    interim: u8,
    decoder: Decoder,
    keep_alive: bool,
    answered: bool,
    /// Sending failed; the answer may still be there to read.
    broken: Option<io::Error>,
}

/// What the endpoint said.
#[derive(Debug)]
pub enum Answer {
    /// A 1xx response, 101 excepted.
    Interim(ResponseHead),
    /// The final response, or 101 after a request to upgrade.
    Final(ResponseHead),
}

impl<B: Body<Data = Bytes, Error = BodyError> + Unpin> Exchange<B> {
    /// Prepares the request; nothing is sent before the first poll.
    pub fn start(mut connection: Connection, outgoing: &Outgoing<'_>, body: B) -> Self {
        let ended = body.is_end_stream();
        let framing = match body.size_hint().exact() {
            // A method that defines content announces its absence (RFC 9110 §8.6).
            Some(0) if matches!(*outgoing.method, Method::POST | Method::PUT | Method::PATCH) => {
                Framing::Length(0)
            }
            Some(0) => Framing::None,
            Some(length) => Framing::Length(length),
            None if ended => Framing::None,
            None => Framing::Chunked,
        };
        connection.output.written = 0;
        encode::request_head(
            &mut connection.output.flat,
            outgoing.method,
            outgoing.target,
            outgoing.headers,
            outgoing.added,
            framing,
            outgoing
                .upgrade
                .map_or(encode::Connection::KeepAlive, encode::Connection::Upgrade),
        );
        Self {
            connection,
            upload: (!ended && !framing.is_empty()).then_some(body),
            upload_chunked: framing == Framing::Chunked,
            upload_left: if let Framing::Length(length) = framing {
                Some(length)
            } else {
                None
            },
            method: outgoing.method.clone(),
            upgrade: outgoing.upgrade.is_some(),
            scanned: 0,
            interim: 0,
            decoder: Decoder::Done,
            keep_alive: false,
            answered: false,
            broken: None,
        }
    }

    /// Whether the connection had carried an exchange before this one.
    pub fn is_reused(&self) -> bool {
        self.connection.exchanges > 0
    }

    /// Whether the socket accepted any byte of the request.
    pub fn is_sent(&self) -> bool {
        self.connection.output.written > 0
    }

    /// Whether any byte of an answer arrived.
    pub fn is_answered(&self) -> bool {
        self.answered
    }

    /// Sends, and waits for the next response head.
    pub fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answer, ExchangeError>> {
        if let Err(error) = self.drive_upload(cx) {
            return Poll::Ready(Err(ExchangeError::Request(error)));
        }
        loop {
            let Connection { io, input, .. } = &mut self.connection;
            if !input.is_empty() {
                match head::parse_response(input, &RESPONSE_LIMITS, &mut self.scanned, &self.method) {
                    Ok(Some(response)) => {
                        self.scanned = 0;
                        return Poll::Ready(self.accept(response));
                    }
                    Ok(None) => {}
                    Err(error) => return Poll::Ready(Err(ExchangeError::Protocol(error.name()))),
                }
            }
            match ready!(poll_fill(cx, io, input, HEAD_READ)) {
                Ok(0) => {
                    let error = self
                        .broken
                        .take()
                        .unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
                    return Poll::Ready(Err(ExchangeError::Lost(error)));
                }
                Ok(_) => self.answered = true,
                Err(error) => return Poll::Ready(Err(ExchangeError::Lost(error))),
            }
        }
    }

    fn accept(&mut self, response: ResponseHead) -> Result<Answer, ExchangeError> {
        if response.status == StatusCode::SWITCHING_PROTOCOLS {
            // RFC 9110 §15.2.2: only in answer to a request that asked for it.
            if !self.upgrade {
                return Err(ExchangeError::Protocol("unasked_101"));
            }
            // The switch happens behind the request, and there is a rest of it that the other protocol would swallow.
            if self.upload.is_some() || self.broken.is_some() || !self.connection.output.is_empty() {
                return Err(ExchangeError::Protocol("early_101"));
            }
            self.keep_alive = false;
            return Ok(Answer::Final(response));
        }
        if response.status.is_informational() {
            self.interim += 1;
            if self.interim > MAX_INTERIM {
                return Err(ExchangeError::Protocol("too_many_interim_responses"));
            }
            return Ok(Answer::Interim(response));
        }
        self.keep_alive = response.keep_alive && response.framing != Framing::UntilClose;
        self.decoder = Decoder::new(response.framing);
        Ok(Answer::Final(response))
    }

    /// Polls the content of the final answer, and goes on uploading.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.upload.is_some() || !self.connection.output.is_empty() {
            match self.drive_upload(cx) {
                Ok(()) => {}
                // Nobody is there to read the answer.
                Err(error @ (BodyError::Truncated | BodyError::Io(_) | BodyError::Reset(_))) => {
                    return Poll::Ready(Some(Err(error)));
                }
                // An upload that fails otherwise cannot change an answer that has begun.
                Err(_) => {
                    self.upload = None;
                    self.keep_alive = false;
                }
            }
        }
        let Connection { io, input, .. } = &mut self.connection;
        self.decoder.poll_frame(cx, io, input)
    }

    /// Whether the answer has been read to its end.
    pub fn is_end_stream(&self) -> bool {
        self.decoder.is_done()
    }

    /// Length of what is left of the answer.
    pub fn size_hint(&self) -> SizeHint {
        self.decoder.size_hint()
    }

    /// The connection, if another exchange may follow on it.
    pub fn into_connection(mut self) -> Option<Connection> {
        let clean = self.decoder.is_reusable()
            && self.keep_alive
            && self.upload.is_none()
            && self.broken.is_none()
            && self.connection.output.is_empty()
            && self.connection.input.is_empty();
        if !clean {
            return None;
        }
        // The buffers of a large answer would otherwise be held as long as the connection is idle.
        if self.connection.input.capacity() > HEAD_READ {
            self.connection.input = BytesMut::new();
        }
        self.connection.output.shrink(HEAD_READ);
        self.connection.exchanges = self.connection.exchanges.saturating_add(1);
        Some(self.connection)
    }

    /// The raw stream after 101.
    pub fn into_tunnel(self) -> Tunnel {
        Tunnel::stream(self.connection.io, self.connection.input.freeze())
    }

    /// Moves request bytes towards the endpoint without waiting.
    fn drive_upload(&mut self, cx: &mut Context<'_>) -> Result<(), BodyError> {
        if self.broken.is_some() {
            return Ok(());
        }
        let Connection { io, output, .. } = &mut self.connection;
        loop {
            let mut waiting = false;
            while let Some(body) = self.upload.as_mut().filter(|_| output.has_room()) {
                match Pin::new(body).poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) => {
                            if let Some(left) = self.upload_left.as_mut() {
                                let Some(rest) = left.checked_sub(data.len() as u64) else {
                                    return Err(BodyError::Malformed("longer than its content-length"));
                                };
                                *left = rest;
                            }
                            output.push_data(data, self.upload_chunked);
                            // All that was announced is on its way; the body need not say that it has ended.
                            if self.upload_left == Some(0) {
                                self.upload = None;
                            }
                        }
                        Err(frame) => {
                            if let (true, Ok(trailers)) = (self.upload_chunked, frame.into_trailers()) {
                                encode::last_chunk(&mut output.flat, Some(&trailers));
                                self.upload = None;
                            }
                        }
                    },
                    Poll::Ready(Some(Err(error))) => return Err(error),
                    Poll::Ready(None) => {
                        self.upload = None;
                        if self.upload_left.is_some_and(|left| left > 0) {
                            return Err(BodyError::Truncated);
                        }
                        if self.upload_chunked {
                            encode::last_chunk(&mut output.flat, None);
                        }
                    }
                    Poll::Pending => {
                        waiting = true;
                        break;
                    }
                }
            }
            match output.poll_flush(cx, io) {
                Poll::Ready(Ok(())) if self.upload.is_some() && !waiting => {}
                Poll::Ready(Ok(())) | Poll::Pending => return Ok(()),
                Poll::Ready(Err(error)) => {
                    // The endpoint may have answered before it closed; that answer counts.
                    self.broken = Some(error);
                    self.upload = None;
                    return Ok(());
                }
            }
        }
    }
}

/// What an endpoint's head may take.
const RESPONSE_LIMITS: head::Limits = head::Limits {
    head_bytes: 64 * 1024,
    headers: 256,
    target_bytes: 0,
};
