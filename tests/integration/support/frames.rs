//! HTTP/2 written by hand, for what no library lets one send: fields that must not exist, floods, frames out of place.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::soon;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// One frame as it came.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// A client that has said hello.
#[derive(Debug)]
pub(crate) struct Frames {
    io: TcpStream,
}

impl Frames {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let io = soon("a connection", TcpStream::connect(address))
            .await
            .expect("the proxy accepts");
        io.set_nodelay(true).expect("a socket");
        let mut frames = Self { io };
        let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        hello.extend(frame(SETTINGS, 0, 0, &[]));
        frames.try_send(&hello).await.expect("the proxy reads");
        // Its settings come first, and are done with: nothing may stand between the parts of a head later on.
        let settings = soon("settings", read(&mut frames.io)).await.expect("settings");
        assert_eq!(
            (settings.kind, settings.flags & ACK),
            (SETTINGS, 0),
            "{settings:?}"
        );
        let acknowledged = frame(SETTINGS, ACK, 0, &[]);
        frames.try_send(&acknowledged).await.expect("the proxy reads");
        frames
    }

    /// Writes bytes; fails once the connection has ended, or when nobody reads for long.
    pub(crate) async fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        soon("the proxy to read", self.io.write_all(bytes)).await
    }

    /// The next frame. `None` is the end of the connection.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        soon("a frame", read(&mut self.io)).await.ok()
    }

    /// The first frame of this kind, or `None` where the connection ends before.
    pub(crate) async fn first(&mut self, kind: u8) -> Option<Frame> {
        while let Some(frame) = self.next().await {
            if frame.kind == kind {
                return Some(frame);
            }
        }
        None
    }

    /// What became of a request: the status of its answer, or `None` for a stream or a connection that was ended.
    pub(crate) async fn outcome(&mut self, stream: u32) -> Option<u16> {
        while let Some(frame) = self.next().await {
            match frame.kind {
                HEADERS if frame.stream == stream => return status(&frame.payload),
                RST_STREAM if frame.stream == stream => return None,
                GOAWAY if frame.payload.get(4..8) != Some(&[0; 4]) => return None,
                _ => {}
            }
        }
        None
    }
}

async fn read(io: &mut TcpStream) -> io::Result<Frame> {
    let mut head = [0; 9];
    io.read_exact(&mut head).await?;
    let [a, b, c, kind, flags, stream @ ..] = head;
    let mut payload = vec![0; usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)];
    io.read_exact(&mut payload).await?;
    Ok(Frame {
        kind,
        flags,
        stream: u32::from_be_bytes(stream),
        payload,
    })
}

/// The bytes of a frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header block of literals that nobody remembers (RFC 7541 §6.2.2): whatever bytes, in this order.
pub(crate) fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            integer(text.len(), &mut bytes);
            bytes.extend(*text);
        }
    }
    bytes
}

/// An integer with a prefix of seven bits (RFC 7541 §5.1).
fn integer(value: usize, bytes: &mut Vec<u8>) {
    let Some(mut rest) = value.checked_sub(127) else {
        bytes.push(u8::try_from(value).expect("below 127"));
        return;
    };
    bytes.push(127);
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128).expect("seven bits") | 128);
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).expect("seven bits"));
}

/// The status that opens a header block: an entry of the static table, or a literal under its name.
fn status(block: &[u8]) -> Option<u16> {
    // A change of the table's size may stand before.
    let start = block.iter().position(|byte| byte & 0xe0 != 0x20)?;
    let block = &block[start..];
    const KNOWN: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    match block {
        [first @ 0x88..=0x8e, ..] => Some(KNOWN[usize::from(first - 0x88)]),
        // Three digits, plain or by the Huffman code, where every digit has five or six bits.
        [_, 0x03, digits @ ..] => std::str::from_utf8(digits.get(..3)?).ok()?.parse().ok(),
        [_, length, digits @ ..] if length & 0x80 != 0 => huffman(digits.get(..usize::from(length & 0x7f))?),
        _ => None,
    }
}

/// Digits of RFC 7541 appendix B: 0 to 2 have five bits, 3 to 9 six.
fn huffman(bytes: &[u8]) -> Option<u16> {
    let bits: Vec<u8> = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |shift| byte >> shift & 1))
        .collect();
    let number = |bits: &[u8]| bits.iter().fold(0_u16, |sum, bit| sum << 1 | u16::from(*bit));
    let (mut at, mut status) = (0, 0);
    for _ in 0..3 {
        let short = number(bits.get(at..at + 5)?);
        let digit = if short < 3 {
            at += 5;
            short
        } else {
            let long = number(bits.get(at..at + 6)?);
            at += 6;
            long.checked_sub(0x19 - 3)?
        };
        status = status * 10 + digit;
    }
    Some(status)
}
