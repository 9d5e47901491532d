//! The header itself: bytes to meaning and back, without a socket.
//!
//! The parser is a pure function of the bytes so far: it says "more", "this and so many bytes", or "never", and it
//! can say so at the earliest byte that decides. It stands alone in this file so that a fuzz target can take it in.
//! Invariants: a prefix of a valid header is never an error; no header above [`MAX_HEADER`] bytes is waited for; a
//! verdict does not change when more bytes arrive.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// The connection that a proxy in front of us accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proxied {
    /// The client.
    pub source: SocketAddr,
    /// What the client connected to.
    pub destination: SocketAddr,
}

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// The proxy speaks for itself, as in its health checks: the socket's addresses are the true ones.
    Local,
    /// Somebody without an IP address, or whom the proxy does not know: the socket's addresses have to do.
    Unknown,
    /// A TCP connection.
    Tcp(Proxied),
}

/// Which form to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// One line of text.
    V1,
    /// Binary.
    V2,
}

/// Why bytes are not a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// They do not begin like one.
    #[error("no PROXY header")]
    Absent,
    /// They begin like one and then break the grammar.
    #[error("malformed PROXY header: {0}")]
    Malformed(&'static str),
    /// It would be longer than we read.
    #[error("the PROXY header is too long")]
    TooLong,
}

/// Looks for a header at the beginning of `bytes`: none yet, or the header and its length.
///
/// # Errors
/// When no continuation of `bytes` can be one.
pub fn parse(bytes: &[u8]) -> Result<Option<(Header, usize)>, ParseError> {
    if begins_like(bytes, V2_SIGNATURE) {
        parse_v2(bytes)
    } else if begins_like(bytes, V1_SIGNATURE) {
        parse_v1(bytes)
    } else {
        Err(ParseError::Absent)
    }
}

/// Writes a header. A version 1 header cannot say [`Header::Local`]; it says `UNKNOWN`, which means the same to a reader.
pub fn encode(version: Version, header: &Header, out: &mut Vec<u8>) {
    match version {
        Version::V1 => encode_v1(header, out),
        Version::V2 => encode_v2(header, out),
    }
}

/// The longest header that is read, in bytes.
pub const MAX_HEADER: usize = V2_FIXED + V2_MAX_PAYLOAD;

const V1_SIGNATURE: &[u8] = b"PROXY ";
/// Section 2.1: the longest line, with its CRLF.
const V1_MAX: usize = 107;

const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const V2_FIXED: usize = 16;
/// Addresses take 216 bytes at most; the rest is for extensions such as certificates' names, which we skip.
const V2_MAX_PAYLOAD: usize = 4096;

/// Whether `bytes` and `signature` agree as far as both go.
fn begins_like(bytes: &[u8], signature: &[u8]) -> bool {
    bytes
        .iter()
        .zip(signature)
        .all(|(byte, expected)| byte == expected)
}

/// Whether `bytes` hold a whole signature: what comes can only be a header, or an error.
pub(super) fn is_certain(bytes: &[u8]) -> bool {
    bytes.starts_with(V1_SIGNATURE) || bytes.starts_with(V2_SIGNATURE)
}

fn parse_v1(bytes: &[u8]) -> Result<Option<(Header, usize)>, ParseError> {
    let window = &bytes[..bytes.len().min(V1_MAX)];
    let Some(end) = memchr::memmem::find(window, b"\r\n") else {
        return if window.len() == V1_MAX {
            Err(ParseError::TooLong)
        } else {
            Ok(None)
        };
    };
    let malformed = |_not_utf8| ParseError::Malformed("not ASCII");
    let line = std::str::from_utf8(&window[V1_SIGNATURE.len()..end]).map_err(malformed)?;
    let length = end + 2;
    let mut fields = line.split(' ');
    let header = match fields.next() {
        // "The receiver must ignore anything presented before the CRLF."
        Some("UNKNOWN") => Header::Unknown,
        Some("TCP4") => v1_addresses::<Ipv4Addr>(&mut fields)?,
        Some("TCP6") => v1_addresses::<Ipv6Addr>(&mut fields)?,
        Some(_) | None => return Err(ParseError::Malformed("unknown protocol")),
    };
    Ok(Some((header, length)))
}

fn v1_addresses<A: FromStr + Into<IpAddr>>(
    fields: &mut std::str::Split<'_, char>,
) -> Result<Header, ParseError> {
    let mut ip = || {
        let parsed = fields.next().and_then(|field| field.parse::<A>().ok());
        parsed
            .map(Into::into)
            .ok_or(ParseError::Malformed("not an address"))
    };
    let (source, destination): (IpAddr, IpAddr) = (ip()?, ip()?);
    let mut port = || {
        fields
            .next()
            .and_then(v1_port)
            .ok_or(ParseError::Malformed("not a port"))
    };
    let (source_port, destination_port) = (port()?, port()?);
    if fields.next().is_some() {
        return Err(ParseError::Malformed("too many fields"));
    }
    Ok(tcp(source, source_port, destination, destination_port))
}

/// Decimal without sign or leading zeros, as the specification writes it.
fn v1_port(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

fn parse_v2(bytes: &[u8]) -> Result<Option<(Header, usize)>, ParseError> {
    // Each byte is judged as soon as it is there: a peer that is wrong need not finish first.
    let command = match bytes.get(12) {
        None => return Ok(None),
        Some(0x20) => Command::Local,
        Some(0x21) => Command::Proxy,
        Some(byte) if byte >> 4 != 2 => return Err(ParseError::Malformed("unknown version")),
        Some(_) => return Err(ParseError::Malformed("unknown command")),
    };
    let family = match bytes.get(13) {
        None => return Ok(None),
        Some(0x11) => Family::Tcp4,
        Some(0x21) => Family::Tcp6,
        // Unspecified, UDP, and Unix sockets: nobody with an address that means anything to a TCP connection.
        Some(0x00..=0x02 | 0x10 | 0x12 | 0x20 | 0x22 | 0x30..=0x32) => Family::Other,
        Some(_) => return Err(ParseError::Malformed("unknown address family")),
    };
    let Some(length) = bytes.get(14..16) else {
        return Ok(None);
    };
    let payload_length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    if payload_length > V2_MAX_PAYLOAD {
        return Err(ParseError::TooLong);
    }
    let needed = match (command, family) {
        (Command::Proxy, Family::Tcp4) => 12,
        (Command::Proxy, Family::Tcp6) => 36,
        (Command::Proxy, Family::Other) | (Command::Local, _) => 0,
    };
    if payload_length < needed {
        return Err(ParseError::Malformed("too short for its addresses"));
    }
    let length = V2_FIXED + payload_length;
    let Some(payload) = bytes.get(V2_FIXED..length) else {
        return Ok(None);
    };
    let header = match (command, family) {
        (Command::Local, _) => Header::Local,
        (Command::Proxy, Family::Other) => Header::Unknown,
        (Command::Proxy, Family::Tcp4) => v2_addresses::<4>(payload),
        (Command::Proxy, Family::Tcp6) => v2_addresses::<16>(payload),
    };
    Ok(Some((header, length)))
}

#[derive(Clone, Copy)]
enum Command {
    Local,
    Proxy,
}

#[derive(Clone, Copy)]
enum Family {
    Tcp4,
    Tcp6,
    Other,
}

/// Two addresses of `N` bytes, then two ports; the caller checked the length.
fn v2_addresses<const N: usize>(payload: &[u8]) -> Header
where
    IpAddr: From<[u8; N]>,
{
    let mut ips = [[0; N]; 2];
    for (ip, bytes) in ips.iter_mut().zip(payload.chunks_exact(N)) {
        ip.copy_from_slice(bytes);
    }
    let port = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
    tcp(ips[0].into(), port(2 * N), ips[1].into(), port(2 * N + 2))
}

/// `::ffff:a.b.c.d` is `a.b.c.d`: access lists and logs must not see two spellings of one client.
fn tcp(source: IpAddr, source_port: u16, destination: IpAddr, destination_port: u16) -> Header {
    Header::Tcp(Proxied {
        source: SocketAddr::new(source.to_canonical(), source_port),
        destination: SocketAddr::new(destination.to_canonical(), destination_port),
    })
}

/// The addresses in one family: both IPv4, or both IPv6 with IPv4 mapped into it.
enum Pair {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

impl Pair {
    fn of(proxied: &Proxied) -> Self {
        let mapped = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        match (proxied.source.ip(), proxied.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Self::V4(source, destination),
            (source, destination) => Self::V6(mapped(source), mapped(destination)),
        }
    }
}

fn encode_v1(header: &Header, out: &mut Vec<u8>) {
    let line = match header {
        Header::Local | Header::Unknown => "PROXY UNKNOWN\r\n".to_owned(),
        Header::Tcp(proxied) => {
            let (from, to) = (proxied.source.port(), proxied.destination.port());
            match Pair::of(proxied) {
                Pair::V4(source, destination) => format!("PROXY TCP4 {source} {destination} {from} {to}\r\n"),
                Pair::V6(source, destination) => format!("PROXY TCP6 {source} {destination} {from} {to}\r\n"),
            }
        }
    };
    out.extend_from_slice(line.as_bytes());
}

fn encode_v2(header: &Header, out: &mut Vec<u8>) {
    out.extend_from_slice(V2_SIGNATURE);
    let proxied = match header {
        Header::Local => return out.extend_from_slice(&[0x20, 0x00, 0, 0]),
        Header::Unknown => return out.extend_from_slice(&[0x21, 0x00, 0, 0]),
        Header::Tcp(proxied) => proxied,
    };
    match Pair::of(proxied) {
        Pair::V4(source, destination) => {
            out.extend_from_slice(&[0x21, 0x11, 0, 12]);
            out.extend_from_slice(&source.octets());
            out.extend_from_slice(&destination.octets());
        }
        Pair::V6(source, destination) => {
            out.extend_from_slice(&[0x21, 0x21, 0, 36]);
            out.extend_from_slice(&source.octets());
            out.extend_from_slice(&destination.octets());
        }
    }
    out.extend_from_slice(&proxied.source.port().to_be_bytes());
    out.extend_from_slice(&proxied.destination.port().to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(source: &str, destination: &str) -> Header {
        Header::Tcp(Proxied {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        })
    }

    fn v2(version: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [V2_SIGNATURE, &[version, family], &length, payload].concat()
    }

    #[test]
    fn version_1_is_one_line() {
        let parsed = |text: &str| parse(text.as_bytes());
        assert_eq!(
            parsed("PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\nGET /"),
            Ok(Some((header("192.0.2.1:56324", "192.0.2.2:443"), 42)))
        );
        assert_eq!(
            parsed("PROXY TCP6 2001:db8::1 ::1 1 65535\r\n")
                .unwrap()
                .unwrap()
                .0,
            header("[2001:db8::1]:1", "[::1]:65535")
        );
        assert_eq!(parsed("PROXY UNKNOWN\r\n"), Ok(Some((Header::Unknown, 15))));
        assert_eq!(
            parsed("PROXY UNKNOWN what ever\r\n").unwrap().unwrap().0,
            Header::Unknown
        );
        let longest = format!("PROXY UNKNOWN {}\r\n", "f".repeat(91));
        assert_eq!(parsed(&longest), Ok(Some((Header::Unknown, 107))));
    }

    #[test]
    fn a_broken_line_is_refused() {
        for line in [
            "PROXY \r\n",
            "PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
            "PROXY TCP4 1.2.3.4  1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 ::1 1 2\r\n",
            "PROXY TCP4 1.2.3.04 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 \u{b2}\r\n",
        ] {
            assert!(
                matches!(parse(line.as_bytes()), Err(ParseError::Malformed(_))),
                "{line:?}"
            );
        }
        assert_eq!(
            parse(format!("PROXY UNKNOWN {}", "f".repeat(93)).as_bytes()),
            Err(ParseError::TooLong)
        );
    }

    #[test]
    fn version_2_skips_what_it_does_not_need() {
        let mut tcp4 = vec![192, 0, 2, 1, 192, 0, 2, 2, 0xdc, 0x04, 0x01, 0xbb];
        let expected = header("192.0.2.1:56324", "192.0.2.2:443");
        assert_eq!(parse(&v2(0x21, 0x11, &tcp4)), Ok(Some((expected, 28))));
        tcp4.extend_from_slice(&[0x04, 0x00, 0x01, 0x00]);
        assert_eq!(parse(&v2(0x21, 0x11, &tcp4)), Ok(Some((expected, 32))));
        assert_eq!(parse(&v2(0x20, 0x11, &tcp4)), Ok(Some((Header::Local, 32))));
        assert_eq!(parse(&v2(0x20, 0x00, &[])), Ok(Some((Header::Local, 16))));
        assert_eq!(
            parse(&v2(0x21, 0x31, &[0; 216])),
            Ok(Some((Header::Unknown, 232)))
        );
        assert_eq!(parse(&v2(0x21, 0x12, &tcp4)), Ok(Some((Header::Unknown, 32))));
    }

    #[test]
    fn a_broken_binary_header_is_refused_at_the_first_wrong_byte() {
        assert_eq!(
            parse(&v2(0x11, 0x11, &[])[..13]),
            Err(ParseError::Malformed("unknown version"))
        );
        assert_eq!(
            parse(&v2(0x22, 0x11, &[])[..13]),
            Err(ParseError::Malformed("unknown command"))
        );
        assert_eq!(
            parse(&v2(0x21, 0x41, &[])[..14]),
            Err(ParseError::Malformed("unknown address family"))
        );
        assert_eq!(
            parse(&v2(0x21, 0x21, &[0; 35])[..16]),
            Err(ParseError::Malformed("too short for its addresses"))
        );
        assert_eq!(parse(&v2(0x20, 0x00, &[0; 4097])[..16]), Err(ParseError::TooLong));
    }

    #[test]
    fn one_client_has_one_spelling() {
        let mapped = "PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.2 1 2\r\n";
        assert_eq!(
            parse(mapped.as_bytes()).unwrap().unwrap().0,
            header("192.0.2.1:1", "192.0.2.2:2")
        );
    }

    fn any_header() -> impl Strategy<Value = Header> {
        prop_oneof![
            Just(Header::Local),
            Just(Header::Unknown),
            any::<(IpAddr, u16, IpAddr, u16)>().prop_map(|(a, b, c, d)| tcp(a, b, c, d)),
        ]
    }

    fn any_version() -> impl Strategy<Value = Version> {
        prop_oneof![Just(Version::V1), Just(Version::V2)]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_a_prefix_asks_for_more(
            version in any_version(), header in any_header(), behind: Vec<u8>,
        ) {
            let mut bytes = Vec::new();
            encode(version, &header, &mut bytes);
            let length = bytes.len();
            for end in 0..length {
                prop_assert_eq!(parse(&bytes[..end]), Ok(None));
            }
            bytes.extend_from_slice(&behind);
            let expected = match (version, header) {
                (Version::V1, Header::Local) => Header::Unknown,
                (_, header) => header,
            };
            prop_assert_eq!(parse(&bytes), Ok(Some((expected, length))));
        }

        #[test]
        fn no_bytes_panic_and_every_verdict_is_final(
            start in prop_oneof![
                Just(Vec::new()),
                Just(V1_SIGNATURE.to_vec()),
                Just(b"PROXY TCP4 1.2.3.4 ".to_vec()),
                Just(V2_SIGNATURE.to_vec()),
                Just([V2_SIGNATURE, &[0x21, 0x11, 0]].concat()),
            ],
            rest in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let bytes = [start, rest].concat();
            let mut verdict = Ok(None);
            for end in 0..=bytes.len() {
                let now = parse(&bytes[..end]);
                if verdict != Ok(None) {
                    prop_assert_eq!(&now, &verdict);
                }
                if let Ok(Some((_, length))) = now {
                    prop_assert!(length <= end);
                }
                verdict = now;
            }
        }

        #[test]
        fn no_header_is_waited_for_beyond_the_bound(length: u16, command in prop_oneof![Just(0x20_u8), Just(0x21)]) {
            let length = length.to_be_bytes();
            let head = [V2_SIGNATURE, &[command, 0x00], &length].concat();
            let bytes = [head, vec![0; MAX_HEADER - V2_FIXED]].concat();
            prop_assert_ne!(parse(&bytes), Ok(None));
        }
    }
}
