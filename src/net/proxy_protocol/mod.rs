//! The PROXY protocol, versions 1 and 2: a header in front of a connection that says who the client was.
//!
//! Source: "The PROXY protocol", Willy Tarreau, haproxy.org/download/3.0/doc/proxy-protocol.txt. What a header means
//! is said in `header`; here it is read from a connection. Whether a peer may be believed is not asked: callers read
//! a header from trusted peers only, because whoever may send one can claim to be anybody.
//! Invariant: nothing that stands behind a header is lost.

mod header;

use std::io;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;

use super::io::Io;

pub use header::{Header, MAX_HEADER, ParseError, Proxied, Version, encode, parse};

/// Whether a connection may come without a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// A connection that does not begin with one is passed on as it is.
    Optional,
    /// A connection that does not begin with one is an error.
    Required,
}

/// Why no header could be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// What arrived is not a header.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// The peer left in the middle of it, or before it.
    #[error("the connection closed before the PROXY header was complete")]
    Closed,
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads the header of a new connection and returns the connection behind it; nothing after the header is lost. The
/// caller bounds the time.
///
/// # Errors
/// See [`ReadError`]; the connection is closed then.
pub async fn read_header(mut io: Io, presence: Presence) -> Result<(Option<Header>, Io), ReadError> {
    let mut bytes = BytesMut::with_capacity(512);
    loop {
        let read = io.read_buf(&mut bytes).await?;
        match (parse(&bytes), presence) {
            (Ok(Some((header, length))), _) => {
                let rest = bytes.split_off(length);
                return Ok((Some(header), io.prefixed(rest.freeze())));
            }
            (Err(ParseError::Absent), Presence::Optional) => return Ok((None, io.prefixed(bytes.freeze()))),
            // Too short to tell and nothing more to come: that is no header either.
            (Ok(None), Presence::Optional) if read == 0 && !header::is_certain(&bytes) => {
                return Ok((None, io.prefixed(bytes.freeze())));
            }
            (Ok(None), _) if read == 0 => return Err(ReadError::Closed),
            (Ok(None), _) => {}
            (Err(error), _) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory;
    use super::*;
    use tokio::io::AsyncWriteExt;

    fn header(source: &str, destination: &str) -> Header {
        Header::Tcp(Proxied {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        })
    }

    #[tokio::test]
    async fn what_follows_the_header_is_still_there() {
        let (mut near, far) = memory::pair(1024);
        near.write_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\n")
            .await
            .unwrap();
        drop(near);
        let (found, mut io) = read_header(far, Presence::Required).await.unwrap();
        assert_eq!(found, Some(header("192.0.2.1:1", "192.0.2.2:2")));
        let mut rest = String::new();
        io.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "GET / HTTP/1.1\r\n");
    }

    #[tokio::test]
    async fn a_header_may_come_byte_by_byte_through_a_narrow_pipe() {
        let (mut near, far) = memory::pair(1);
        let mut bytes = Vec::new();
        encode(Version::V2, &header("[2001:db8::1]:1", "[::1]:2"), &mut bytes);
        bytes.extend_from_slice(b"x");
        let (sent, read) = tokio::join!(near.write_all(&bytes), async {
            let (found, mut io) = read_header(far, Presence::Required).await?;
            Ok::<_, ReadError>((found, io.read_u8().await?))
        });
        sent.unwrap();
        assert_eq!(read.unwrap(), (Some(header("[2001:db8::1]:1", "[::1]:2")), b'x'));
    }

    #[tokio::test]
    async fn without_a_header_the_mode_decides() {
        for (sent, optional_passes) in [
            ("POST / HTTP/1.1\r\n", true),
            ("PRO", true),
            ("", true),
            ("PROXY TCP4 1.2", false),
            ("PROXY x\r\n", false),
        ] {
            for presence in [Presence::Optional, Presence::Required] {
                let (mut near, far) = memory::pair(1024);
                near.write_all(sent.as_bytes()).await.unwrap();
                drop(near);
                let read = read_header(far, presence).await;
                if presence == Presence::Optional && optional_passes {
                    let (found, mut io) = read.unwrap();
                    let mut rest = String::new();
                    io.read_to_string(&mut rest).await.unwrap();
                    assert_eq!((found, rest.as_str()), (None, sent));
                } else {
                    assert!(read.is_err(), "{sent:?} {presence:?}");
                }
            }
        }
    }
}
