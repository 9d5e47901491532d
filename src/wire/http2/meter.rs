//! Meters the frames of a client that ask for nothing: PING, SETTINGS, PRIORITY, WINDOW_UPDATE, RST_STREAM,
//! CONTINUATION, empty DATA and whatever is unknown.
//!
//! Each is small and legal, and a stream of nothing else keeps a core busy without a single request. So they are paid
//! for: from a credit to begin with, from what requests and content earn, and from time. Only a connection whose
//! credit is gone reads the clock. The walk over frame headers (RFC 9113 §4.1) looks at nine bytes per frame and skips
//! the rest; on its way it learns whether a head has begun that is not complete, for which there is a deadline.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bellwether_core::Moment;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::batch::Batched;
use crate::net::wheel::Wheel;

/// What a request may bring along: priorities, window updates, its own reset.
pub(super) const FRAMES_PER_REQUEST: u64 = 16;
/// Frames to begin with.
const CREDIT: u64 = 2_000;
/// Most that can be saved up.
const MOST: u64 = 10_000;
/// Frames per second that nothing has to be done for. Reading this many is expected to be far below a percent of a core.
const PER_SECOND: u64 = 200;
/// Content in either direction that earns a frame: a client may answer every DATA frame with two window updates.
const BYTES_PER_FRAME: u64 = 256;
/// What stands before the first frame.
const PREFACE: u64 = 24;
const HEADER: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// What a connection may still send for nothing.
#[derive(Debug)]
pub(super) struct Meter {
    wheel: Wheel,
    credit: Cell<u64>,
    /// Content bytes that have not earned a whole frame.
    rest: Cell<u64>,
    refilled: Cell<Moment>,
    exhausted: Cell<bool>,
    /// Heads that have begun; wraps.
    heads: Cell<u32>,
    in_head: Cell<bool>,
}

impl Meter {
    pub(super) fn new(wheel: Wheel) -> Self {
        Self {
            refilled: Cell::new(wheel.recent()),
            wheel,
            credit: Cell::new(CREDIT),
            rest: Cell::new(0),
            exhausted: Cell::new(false),
            heads: Cell::new(0),
            in_head: Cell::new(false),
        }
    }

    /// Whether more came than may.
    pub(super) fn exhausted(&self) -> bool {
        self.exhausted.get()
    }

    /// Which head has begun and is not complete. Until it is, nothing else can be read (RFC 9113 §4.3).
    pub(super) fn unfinished_head(&self) -> Option<u32> {
        self.in_head.get().then(|| self.heads.get())
    }

    pub(super) fn earn(&self, frames: u64) {
        self.credit.set((self.credit.get() + frames).min(MOST));
    }

    fn carried(&self, bytes: u64) {
        let rest = self.rest.get() + bytes;
        self.rest.set(rest % BYTES_PER_FRAME);
        self.earn(rest / BYTES_PER_FRAME);
    }

    fn spend(&self) {
        if self.credit.get() == 0 {
            let now = self.wheel.now();
            let since = now.since(self.refilled.replace(now));
            let earned = u64::try_from(since.as_millis()).unwrap_or(u64::MAX).min(60_000) * PER_SECOND / 1000;
            self.earn(earned);
            if self.credit.get() == 0 {
                self.exhausted.set(true);
                return;
            }
        }
        self.credit.set(self.credit.get() - 1);
    }
}

/// A stream whose frames are metered.
#[derive(Debug)]
pub(super) struct Metered {
    io: Batched,
    meter: Rc<Meter>,
    /// Bytes to skip before the next frame header.
    skip: u64,
    header: [u8; HEADER],
    filled: usize,
    /// The head is complete with the bytes that are skipped.
    ends_head: bool,
}

impl Metered {
    pub(super) fn new(io: Batched, meter: Rc<Meter>) -> Self {
        Self {
            io,
            meter,
            skip: PREFACE,
            header: [0; HEADER],
            filled: 0,
            ends_head: false,
        }
    }

    fn skip(&mut self, count: u64) {
        self.skip -= count;
        if self.skip == 0 && std::mem::take(&mut self.ends_head) {
            self.meter.in_head.set(false);
        }
    }

    /// Walks over what was read.
    fn walk(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let count = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
                self.skip(count as u64);
                bytes = &bytes[count..];
                continue;
            }
            let count = (HEADER - self.filled).min(bytes.len());
            self.header[self.filled..self.filled + count].copy_from_slice(&bytes[..count]);
            self.filled += count;
            bytes = &bytes[count..];
            if self.filled == HEADER {
                self.filled = 0;
                let [high, middle, low, kind, flags, ..] = self.header;
                let length = u64::from(u32::from_be_bytes([0, high, middle, low]));
                self.skip = length;
                match (kind, length) {
                    // DATA, however small, is content; the crate bounds what is small and unread.
                    (0, 1..) => {
                        self.meter.spend();
                        self.meter.earn(1);
                        self.meter.carried(length);
                    }
                    // Requests earn when they are accepted.
                    (HEADERS, _) => self.meter.heads.set(self.meter.heads.get().wrapping_add(1)),
                    _ => self.meter.spend(),
                }
                if matches!(kind, HEADERS | CONTINUATION) {
                    self.meter.in_head.set(true);
                    self.ends_head = flags & END_HEADERS != 0;
                    self.skip(0);
                }
            }
        }
    }
}

impl AsyncRead for Metered {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.meter.exhausted() {
            // Nothing more is read; the connection is about to be ended.
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let read = &buf.filled()[before..];
        this.walk(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.io).poll_write(cx, buf))?;
        this.meter.carried(count as u64);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
