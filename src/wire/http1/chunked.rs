//! Chunked bodies (RFC 9112 §7.1): data is split off the read buffer without a copy, everything else is checked and
//! thrown away.
//!
//! The size line is the favourite place for smuggling, because parsers differ in what they skip there. Ours skips
//! nothing: hex digits, then CRLF or an extension; an extension is text up to CRLF, is bounded and is never
//! forwarded. Trailers are fields like those of a head, minus the names that must not arrive late.
//!
//! Invariants: nothing is returned that a stricter parser would frame differently; splitting the input into other
//! reads changes neither the bytes nor the error; a chunk line or trailer byte is searched once.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, header};

use super::head::HeadError;
use super::scan::{self, LineEnds};

/// What a peer may make us read without getting any data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one chunk line, its CRLF included.
    pub line_bytes: usize,
    /// Bytes of all extensions of one body.
    pub extension_bytes: usize,
    /// Bytes of the trailer section.
    pub trailer_bytes: usize,
    /// Trailer fields.
    pub trailers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            line_bytes: 1024,
            extension_bytes: 16 * 1024,
            trailer_bytes: 16 * 1024,
            trailers: 64,
        }
    }
}

/// A step of a body.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded {
    /// At least one byte.
    Data(Bytes),
    /// The body is complete; what is left in the buffer belongs to the next message.
    End(Option<HeaderMap>),
}

/// Why a chunked body cannot be read on. The connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ChunkError {
    /// No digit, a sign, a space, or anything but CRLF or `;` behind the digits.
    #[error("a chunk size is not a plain hexadecimal number")]
    BadSize,
    /// More than 16 digits.
    #[error("a chunk size does not fit 64 bits")]
    SizeTooLarge,
    /// The limit [`Limits::line_bytes`].
    #[error("a chunk line is longer than the limit")]
    LineTooLong,
    /// A line ends in LF without CR.
    #[error("a chunk line ends in LF without CR")]
    BareLf,
    /// A CR stands inside a chunk line.
    #[error("a CR stands inside a chunk line")]
    BareCr,
    /// A control byte in a chunk extension.
    #[error("a chunk extension holds a control byte")]
    BadExtension,
    /// The limit [`Limits::extension_bytes`].
    #[error("the chunk extensions are larger than the limit")]
    ExtensionsTooLarge,
    /// The data of a chunk is longer or shorter than its size.
    #[error("chunk data is not followed by CRLF")]
    MissingCrlf,
    /// The trailer section is not valid or above its limits.
    #[error("trailer: {0}")]
    Trailer(HeadError),
}

impl ChunkError {
    /// The word in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadSize => "bad_chunk_size",
            Self::SizeTooLarge => "chunk_size_too_large",
            Self::LineTooLong => "chunk_line_too_long",
            Self::BareLf => "chunk_bare_lf",
            Self::BareCr => "chunk_bare_cr",
            Self::BadExtension => "bad_chunk_extension",
            Self::ExtensionsTooLarge => "chunk_extensions_too_large",
            Self::MissingCrlf => "chunk_missing_crlf",
            Self::Trailer(_) => "bad_trailer",
        }
    }
}

/// Where in the body the next byte belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Line,
    Data(u64),
    AfterData,
    Trailers,
    Done,
}

/// Reads one chunked body.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    limits: Limits,
    /// Bytes of an incomplete line or trailer section that have been searched already.
    scanned: usize,
    extension_bytes: usize,
    dropped: usize,
}

impl Decoder {
    /// A decoder in front of the first chunk.
    pub const fn new(limits: Limits) -> Self {
        Self {
            state: State::Line,
            limits,
            scanned: 0,
            extension_bytes: 0,
            dropped: 0,
        }
    }

    /// Whether [`Decoded::End`] has been returned.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// How many trailer fields were dropped because their names must not arrive late. A peer that sends such is up
    /// to something: do not reuse its connection.
    pub const fn dropped_trailers(&self) -> usize {
        self.dropped
    }

    /// Takes the next step off the front of `buf`; `None` when more bytes are needed. After the end it returns
    /// `End(None)` again and takes nothing.
    ///
    /// # Errors
    /// The first offence found; it is the same whenever asked again.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<Decoded>, ChunkError> {
        loop {
            match self.state {
                State::Line => {
                    let Some(size) = self.line(buf)? else {
                        return Ok(None);
                    };
                    self.state = if size == 0 {
                        State::Trailers
                    } else {
                        State::Data(size)
                    };
                }
                State::Data(left) => {
                    if buf.is_empty() {
                        return Ok(None);
                    }
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
                    let left = left - take as u64;
                    self.state = if left == 0 {
                        State::AfterData
                    } else {
                        State::Data(left)
                    };
                    return Ok(Some(Decoded::Data(buf.split_to(take).freeze())));
                }
                State::AfterData => match &buf[..] {
                    [] | b"\r" => return Ok(None),
                    [b'\r', b'\n', ..] => {
                        buf.advance(2);
                        self.state = State::Line;
                    }
                    [..] => return Err(ChunkError::MissingCrlf),
                },
                State::Trailers => {
                    let Some(trailers) = self.trailers(buf)? else {
                        return Ok(None);
                    };
                    self.state = State::Done;
                    return Ok(Some(Decoded::End(trailers)));
                }
                State::Done => return Ok(Some(Decoded::End(None))),
            }
        }
    }

    /// Reads a chunk line and takes it off the buffer.
    fn line(&mut self, buf: &mut BytesMut) -> Result<Option<u64>, ChunkError> {
        // Garbage is told from its first byte, without waiting for a line end that may never come.
        if buf.first().is_some_and(|byte| !byte.is_ascii_hexdigit()) {
            return Err(ChunkError::BadSize);
        }
        let window = &buf[..buf.len().min(self.limits.line_bytes)];
        let end = match scan::line_end(window, self.scanned) {
            Ok(Some(end)) => end,
            Ok(None) if buf.len() >= self.limits.line_bytes => return Err(ChunkError::LineTooLong),
            Ok(None) => {
                self.scanned = buf.len();
                return Ok(None);
            }
            Err(_bare) => return Err(ChunkError::BareLf),
        };
        self.scanned = 0;
        let line = &window[..end - 1];
        let digits = line
            .iter()
            .position(|byte| !byte.is_ascii_hexdigit())
            .unwrap_or(line.len());
        let (size, extension) = line.split_at(digits);
        if size.is_empty() {
            return Err(ChunkError::BadSize);
        }
        if size.len() > 16 {
            return Err(ChunkError::SizeTooLarge);
        }
        match extension.first() {
            None => {}
            Some(b';') => {
                if !scan::is_text(extension) {
                    let cr = extension.contains(&b'\r');
                    return Err(if cr {
                        ChunkError::BareCr
                    } else {
                        ChunkError::BadExtension
                    });
                }
                self.extension_bytes += extension.len();
                if self.extension_bytes > self.limits.extension_bytes {
                    return Err(ChunkError::ExtensionsTooLarge);
                }
            }
            Some(b'\r') => return Err(ChunkError::BareCr),
            Some(_) => return Err(ChunkError::BadSize),
        }
        let size = size.iter().fold(0_u64, |sum, &digit| {
            let value = match digit {
                b'0'..=b'9' => digit - b'0',
                _ => (digit | 0x20) - b'a' + 10,
            };
            (sum << 4) | u64::from(value)
        });
        buf.advance(end + 1);
        Ok(Some(size))
    }

    /// Reads the trailer section, which is often just its empty line, and takes it off the buffer.
    fn trailers(&mut self, buf: &mut BytesMut) -> Result<Option<Option<HeaderMap>>, ChunkError> {
        if buf.starts_with(b"\r\n") {
            buf.advance(2);
            return Ok(Some(None));
        }
        let window = &buf[..buf.len().min(self.limits.trailer_bytes)];
        let mut at = self.scanned;
        let length = loop {
            match scan::line_end(window, at).map_err(ChunkError::Trailer)? {
                Some(end) if scan::is_blank(window, 0, end) => break end + 1,
                Some(end) => at = end + 1,
                None if buf.len() >= self.limits.trailer_bytes => {
                    return Err(ChunkError::Trailer(HeadError::HeadTooLarge));
                }
                None => {
                    self.scanned = buf.len();
                    return Ok(None);
                }
            }
        };
        self.scanned = 0;
        let section = buf.split_to(length).freeze();
        let mut ends = LineEnds::new();
        at = 0;
        while let Some(end) = scan::line_end(&section, at).map_err(ChunkError::Trailer)? {
            at = end + 1;
            if at < length && ends.len() <= self.limits.trailers {
                ends.push(u32::try_from(end).map_err(|_huge| ChunkError::Trailer(HeadError::HeadTooLarge))?);
            }
        }
        let mut map = HeaderMap::new();
        let dropped = &mut self.dropped;
        scan::fields(
            &section,
            0,
            &ends,
            self.limits.trailers,
            &mut map,
            |name, _value| {
                let allowed = !is_forbidden_trailer(name);
                *dropped += usize::from(!allowed);
                Ok(allowed)
            },
        )
        .map_err(ChunkError::Trailer)?;
        Ok(Some((!map.is_empty()).then_some(map)))
    }
}

/// Whether a field must not come in a trailer section (RFC 9110 §6.5.1): it frames, routes, authenticates, controls
/// or describes a message that is already half processed, or only we write it. Of the fields about content, only the
/// digest can be known no earlier (RFC 9530 §2).
pub fn is_forbidden_trailer(name: &HeaderName) -> bool {
    const FORBIDDEN: [HeaderName; 25] = [
        header::AGE,
        header::AUTHORIZATION,
        header::CACHE_CONTROL,
        header::CONNECTION,
        header::COOKIE,
        header::DATE,
        header::EXPECT,
        header::EXPIRES,
        header::FORWARDED,
        header::HOST,
        header::LOCATION,
        header::MAX_FORWARDS,
        header::PRAGMA,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::RANGE,
        header::RETRY_AFTER,
        header::SET_COOKIE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::VARY,
        header::WARNING,
        header::WWW_AUTHENTICATE,
    ];
    let text = name.as_str();
    FORBIDDEN.contains(name)
        || matches!(
            text,
            "keep-alive" | "proxy-connection" | "http2-settings" | "x-real-ip" | "x-request-id"
        )
        || (text.starts_with("content-") && text != "content-digest")
        || text.starts_with("x-forwarded-")
        || text.starts_with("x-bellwether-")
        || text.starts_with("if-")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The data of a body, its trailers and what is left over.
    type Body = (Vec<u8>, Option<HeaderMap>, BytesMut);

    fn read(bytes: &[u8]) -> Result<Option<Body>, ChunkError> {
        let mut decoder = Decoder::new(Limits::default());
        let mut buf = BytesMut::from(bytes);
        let mut data = Vec::new();
        loop {
            match decoder.decode(&mut buf)? {
                Some(Decoded::Data(bytes)) => data.extend_from_slice(&bytes),
                Some(Decoded::End(trailers)) => return Ok(Some((data, trailers, buf))),
                None => return Ok(None),
            }
        }
    }

    #[track_caller]
    fn refused(bytes: impl AsRef<[u8]>, expected: ChunkError) {
        assert_eq!(read(bytes.as_ref()), Err(expected));
    }

    #[test]
    fn chunks_are_joined_and_the_next_message_is_left_alone() {
        let (data, trailers, rest) = read(b"5\r\nhello\r\n00B;a=\"b c\"\r\n, big world\r\n0\r\n\r\nGET")
            .unwrap()
            .unwrap();
        assert_eq!(data, b"hello, big world");
        assert_eq!(trailers, None);
        assert_eq!(&rest[..], b"GET");
    }

    #[test]
    fn data_is_handed_on_before_its_chunk_is_complete_and_without_a_copy() {
        let mut decoder = Decoder::new(Limits::default());
        let mut buf = BytesMut::from("ff\r\nabc");
        let range = buf.as_ptr_range();
        let Ok(Some(Decoded::Data(data))) = decoder.decode(&mut buf) else {
            panic!("three bytes are there");
        };
        assert_eq!(&data[..], b"abc");
        assert!(range.contains(&data.as_ptr()));
        assert_eq!(decoder.decode(&mut buf), Ok(None));
    }

    #[test]
    fn a_size_is_hexadecimal_digits_and_nothing_else() {
        for bad in [
            "0x5\r\n",
            "+5\r\n",
            "-5\r\n",
            " 5\r\n",
            "\t5\r\n",
            "5 \r\n",
            "5 ;a\r\n",
            "5\t\r\n",
            "\r\n",
            ";a\r\n",
            "g\r\n",
            "5g\r\n",
            "5,5\r\n",
            "5\0\r\n",
            "\u{665}\r\n",
            "5.\r\n",
            "\"5\"\r\n",
        ] {
            refused(bad, ChunkError::BadSize);
        }
        // Told from the first byte already.
        refused("x", ChunkError::BadSize);
        refused("\n", ChunkError::BadSize);
        refused("10000000000000000\r\n", ChunkError::SizeTooLarge);
        refused("00000000000000000\r\n", ChunkError::SizeTooLarge);
        refused("fffffffffffffffff\r\n", ChunkError::SizeTooLarge);
        assert_eq!(read(b"ffffffffffffffff\r\nabc"), Ok(None));
        assert_eq!(read(b"0000000000000000\r\n\r\n").unwrap().unwrap().0, b"");
    }

    #[test]
    fn lines_end_in_crlf() {
        refused("5\nhello\r\n0\r\n\r\n", ChunkError::BareLf);
        refused("5;a\nhello\r\n", ChunkError::BareLf);
        refused("5\r\r\n", ChunkError::BareCr);
        refused("5;a\rb\r\n", ChunkError::BareCr);
        refused("5;a=\"\r\"\r\n", ChunkError::BareCr);
        refused("5\rX\r\n", ChunkError::BareCr);
        refused("5\r\nhello\n0\r\n\r\n", ChunkError::MissingCrlf);
        refused("5\r\nhello0\r\n\r\n", ChunkError::MissingCrlf);
        refused("5\r\nhello\rx", ChunkError::MissingCrlf);
        refused("5\r\nhello!\r\n", ChunkError::MissingCrlf);
        refused("5\r\nhello\r\n0\r\n\n", ChunkError::Trailer(HeadError::BareLf));
        refused(
            "5\r\nhello\r\n0\r\nX: a\n\r\n",
            ChunkError::Trailer(HeadError::BareLf),
        );
    }

    #[test]
    fn extensions_are_text_and_bounded() {
        refused("5;\0\r\n", ChunkError::BadExtension);
        refused("5;\x7f\r\n", ChunkError::BadExtension);
        refused(format!("5;{}\r\n", "a".repeat(2000)), ChunkError::LineTooLong);
        refused("5;".to_owned() + &"a".repeat(2000), ChunkError::LineTooLong);
        refused(
            format!("1;{}\r\na\r\n", "a".repeat(1000)).repeat(17),
            ChunkError::ExtensionsTooLarge,
        );
    }

    #[test]
    fn trailers_are_fields_without_the_forbidden_ones() {
        let mut decoder = Decoder::new(Limits::default());
        let mut buf = BytesMut::from(
            "0\r\nGrpc-Status: 0\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nHost: a\r\nAuthorization: b\r\n\
             X-Forwarded-For: c\r\ngrpc-message: ok\r\n\r\n",
        );
        let Ok(Some(Decoded::End(Some(trailers)))) = decoder.decode(&mut buf) else {
            panic!("the body ends");
        };
        assert_eq!(trailers.len(), 2);
        assert_eq!(trailers["grpc-status"], "0");
        assert_eq!(decoder.dropped_trailers(), 5);
        assert_eq!(read(b"0\r\nHost: a\r\n\r\n").unwrap().unwrap().1, None);
        refused(
            "0\r\nX : a\r\n\r\n",
            ChunkError::Trailer(HeadError::SpaceBeforeColon),
        );
        refused("0\r\nX: a\r\n b\r\n\r\n", ChunkError::Trailer(HeadError::ObsFold));
        refused("0\r\nX: \0\r\n\r\n", ChunkError::Trailer(HeadError::BadValue));
        // Dropped, but not unread.
        refused("0\r\nHost: \0\r\n\r\n", ChunkError::Trailer(HeadError::BadValue));
        refused("0\r\nnocolon\r\n\r\n", ChunkError::Trailer(HeadError::BadName));
        refused(
            format!("0\r\n{}\r\n", "X: a\r\n".repeat(65)),
            ChunkError::Trailer(HeadError::TooManyHeaders),
        );
        refused(
            format!("0\r\nX: {}\r\n\r\n", "a".repeat(20_000)),
            ChunkError::Trailer(HeadError::HeadTooLarge),
        );
    }

    #[test]
    fn after_the_end_nothing_more_is_taken() {
        let mut decoder = Decoder::new(Limits::default());
        let mut buf = BytesMut::from("0\r\n\r\n5\r\nhello");
        assert_eq!(decoder.decode(&mut buf), Ok(Some(Decoded::End(None))));
        assert!(decoder.is_done());
        assert_eq!(decoder.decode(&mut buf), Ok(Some(Decoded::End(None))));
        assert_eq!(&buf[..], b"5\r\nhello");
    }
}
