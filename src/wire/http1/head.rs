//! Heads: from bytes to a request or response line with its fields, or a precise refusal.
//!
//! Whatever two parsers could read differently is refused here, before anything is forwarded: a proxy is the one
//! place where such a difference becomes somebody else's breach. The reading of RFC 9112 and RFC 9110 is the narrow
//! one throughout; what is tolerated beyond the grammar is listed: one empty line before a request (RFC 9112 §2.2),
//! a missing space behind a status code without a reason, and the few bytes that browsers leave unescaped in targets.
//!
//! Invariants: a head that is returned has exactly one framing; splitting the input into other reads changes neither
//! the result nor the error; no byte of an incomplete head is searched twice; field values share the bytes read.

use bytes::{Bytes, BytesMut};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, Method, StatusCode, Uri, Version, header};

use super::scan::{self, LineEnds};

/// What a peer may make us hold before a head is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the whole head, from the first to the empty line.
    pub head_bytes: usize,
    /// Field lines.
    pub headers: usize,
    /// Bytes of the request target; 65,534 at most.
    pub target_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: 64 * 1024,
            headers: 100,
            target_bytes: 16 * 1024,
        }
    }
}

/// How the end of a body is known (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body, and no field that announces one.
    None,
    /// Exactly this many bytes; zero is a body that was announced and is empty.
    Length(u64),
    /// Chunks, read by [`super::chunked::Decoder`].
    Chunked,
    /// Everything until the connection closes: responses only.
    UntilClose,
}

impl Framing {
    /// Whether no body byte follows the head.
    pub const fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Length(0))
    }
}

/// A request as it was read. `headers` holds every field of the head, those about framing and connection included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// Case-sensitive, extension methods included.
    pub method: Method,
    /// As written: origin-form, absolute-form, `*` for `OPTIONS`, or authority-form for `CONNECT`.
    pub uri: Uri,
    /// HTTP/1.0 or HTTP/1.1.
    pub version: Version,
    /// In the order they came, grouped by name.
    pub headers: HeaderMap,
    /// Never [`Framing::UntilClose`].
    pub framing: Framing,
    /// Whether the client is willing to send another request on this connection.
    pub keep_alive: bool,
    /// Whether the client may be waiting for a 100 before it sends its body.
    pub expect_continue: bool,
    /// Whether the client asks to switch protocols, in both of the fields that this takes.
    pub upgrade: bool,
}

/// A response as it was read. The reason phrase is checked and dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// 100 to 599.
    pub status: StatusCode,
    /// HTTP/1.0 or HTTP/1.1.
    pub version: Version,
    /// In the order they came, grouped by name.
    pub headers: HeaderMap,
    /// [`Framing::None`] for 1xx, 204, 304, answers to `HEAD` and 2xx answers to `CONNECT`.
    pub framing: Framing,
    /// Whether the connection may carry another request once the body has been read.
    pub keep_alive: bool,
}

/// Why a head was refused. The connection it came on cannot be used any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum HeadError {
    /// RFC 9112 §2.2 lets a recipient take it for a line end; the next one may not.
    #[error("a line ends in LF without CR")]
    BareLf,
    /// RFC 9112 §2.2.
    #[error("a CR stands inside a line")]
    BareCr,
    /// RFC 9112 §5.2, and white space before the first field (§2.2).
    #[error("a field is folded over two lines")]
    ObsFold,
    /// RFC 9112 §5.1.
    #[error("there is white space between a field name and its colon")]
    SpaceBeforeColon,
    /// RFC 9110 §9.1.
    #[error("the method is not a token")]
    BadMethod,
    /// RFC 9112 §3.2.
    #[error("the request target is in none of the four forms, or in one that its method does not take")]
    BadTarget,
    /// RFC 9112 §3.
    #[error("the request target is longer than the limit")]
    TargetTooLong,
    /// Not `HTTP/1.0` or `HTTP/1.1`: also HTTP/0.9 and the HTTP/2 preface.
    #[error("the version is neither HTTP/1.0 nor HTTP/1.1")]
    BadVersion,
    /// RFC 9112 §4: three digits from 100 to 599, and text behind them.
    #[error("the status line is not valid")]
    BadStatus,
    /// The limit [`Limits::head_bytes`].
    #[error("the head is larger than the limit")]
    HeadTooLarge,
    /// The limit [`Limits::headers`].
    #[error("there are more header fields than the limit")]
    TooManyHeaders,
    /// RFC 9110 §5.1: empty, not a token, or a line without a colon.
    #[error("a field name is not a token")]
    BadName,
    /// RFC 9110 §5.5: NUL or another control byte.
    #[error("a field value holds a control byte")]
    BadValue,
    /// RFC 9112 §6.1.
    #[error("content-length and transfer-encoding are both present")]
    ContentLengthAndTransferEncoding,
    /// RFC 9110 §8.6: other than 1 to 19 digits, lists of equal ones included.
    #[error("content-length is not a plain number")]
    BadContentLength,
    /// RFC 9110 §8.6, equal ones included.
    #[error("content-length is present more than once")]
    DuplicateContentLength,
    /// RFC 9112 §6.1: anything but one `chunked`.
    #[error("transfer-encoding is not exactly chunked")]
    BadTransferEncoding,
    /// RFC 9112 §6.1.
    #[error("transfer-encoding is present in an HTTP/1.0 message")]
    TransferEncodingIn10,
    /// RFC 9110 §15.2: a 1xx answer announces a body.
    #[error("an informational response announces a body")]
    BodyOnInformational,
    /// RFC 9112 §3.2.
    #[error("host is missing")]
    MissingHost,
    /// RFC 9112 §3.2.
    #[error("host is present more than once")]
    DuplicateHost,
    /// RFC 9112 §3.2, RFC 9110 §7.2.
    #[error("host is not a host with an optional port")]
    BadHost,
    /// RFC 9112 §3.2.2 would let the target win; whoever looks at `host` would not.
    #[error("host differs from the authority of the request target")]
    HostMismatch,
}

impl HeadError {
    /// The word in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BareLf => "bare_lf",
            Self::BareCr => "bare_cr",
            Self::ObsFold => "obs_fold",
            Self::SpaceBeforeColon => "space_before_colon",
            Self::BadMethod => "bad_method",
            Self::BadTarget => "bad_target",
            Self::TargetTooLong => "target_too_long",
            Self::BadVersion => "bad_version",
            Self::BadStatus => "bad_status",
            Self::HeadTooLarge => "head_too_large",
            Self::TooManyHeaders => "too_many_headers",
            Self::BadName => "bad_name",
            Self::BadValue => "bad_value",
            Self::ContentLengthAndTransferEncoding => "content_length_and_transfer_encoding",
            Self::BadContentLength => "bad_content_length",
            Self::DuplicateContentLength => "duplicate_content_length",
            Self::BadTransferEncoding => "bad_transfer_encoding",
            Self::TransferEncodingIn10 => "transfer_encoding_in_10",
            Self::BodyOnInformational => "body_on_informational",
            Self::MissingHost => "missing_host",
            Self::DuplicateHost => "duplicate_host",
            Self::BadHost => "bad_host",
            Self::HostMismatch => "host_mismatch",
        }
    }

    /// The status a client gets whose request head was refused. (For a response head the answer is always 502.)
    pub const fn status(self) -> StatusCode {
        match self {
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLarge | Self::TooManyHeaders => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            // Not 501 and 505: what is refused here is not a feature that we lack but bytes that we do not trust.
            Self::BareLf
            | Self::BareCr
            | Self::ObsFold
            | Self::SpaceBeforeColon
            | Self::BadMethod
            | Self::BadTarget
            | Self::BadVersion
            | Self::BadStatus
            | Self::BadName
            | Self::BadValue
            | Self::ContentLengthAndTransferEncoding
            | Self::BadContentLength
            | Self::DuplicateContentLength
            | Self::BadTransferEncoding
            | Self::TransferEncodingIn10
            | Self::BodyOnInformational
            | Self::MissingHost
            | Self::DuplicateHost
            | Self::BadHost
            | Self::HostMismatch => StatusCode::BAD_REQUEST,
        }
    }
}

/// Whether `buf`, in which no request is complete, holds the beginning of one, and not just the empty line that may
/// stand before it. Tells a slow request from an idle connection.
pub fn has_begun(buf: &[u8]) -> bool {
    !matches!(buf, [] | b"\r" | b"\r\n")
}

/// Takes one request head off the front of `buf`; `None` when more bytes are needed.
///
/// `scanned` is the parser's memory of an incomplete head: 0 before the first call, handed back unchanged with each
/// further one while `buf` only grows at its end, and 0 again when a head has been returned. Its value means nothing
/// to the caller.
///
/// # Errors
/// The first offence found; `buf` is then in no state to be parsed again.
pub fn parse_request(
    buf: &mut BytesMut,
    limits: &Limits,
    scanned: &mut usize,
) -> Result<Option<RequestHead>, HeadError> {
    let start = match &buf[..] {
        [] | b"\r" => return Ok(None),
        // RFC 9112 §2.2: at least one empty line before a request is to be ignored. It stays in the buffer, so that
        // there is never more than one.
        [b'\r', b'\n', ..] => 2,
        [b'\r', ..] => return Err(HeadError::BareCr),
        [b'\n', ..] => return Err(HeadError::BareLf),
        [..] => 0,
    };
    // A TLS handshake on a plain port should not have to wait for the time limit.
    if buf.get(start).is_some_and(|&first| !scan::is_token(first)) {
        return Err(HeadError::BadMethod);
    }
    let read = |line: &[u8]| request_line(line, limits).map_err(|error| scan::blame(line, error));
    let Some((line, ends, length)) = search(buf, start, limits, scanned, read, HeadError::TargetTooLong)?
    else {
        return Ok(None);
    };

    let head = buf.split_to(length).freeze();
    let uri = target(
        &line.method,
        &head.slice(start + line.target.0..start + line.target.1),
    )?;
    let (fields, facts) = read_fields(&head, &ends, limits, line.version, Role::Request)?;

    let host = fields.get(header::HOST);
    if host.is_none() && line.version == Version::HTTP_11 {
        return Err(HeadError::MissingHost);
    }
    if let (Some(authority), Some(host)) = (uri.authority(), host)
        && !authority
            .as_str()
            .as_bytes()
            .eq_ignore_ascii_case(host.as_bytes())
    {
        return Err(HeadError::HostMismatch);
    }
    let framing = facts.framing.unwrap_or(Framing::None);
    let modern = line.version == Version::HTTP_11;
    Ok(Some(RequestHead {
        method: line.method,
        uri,
        version: line.version,
        keep_alive: facts.keep_alive(line.version),
        // RFC 9110 §10.1.1: meaningless in 1.0 and without a body.
        expect_continue: modern && facts.seen(EXPECT_CONTINUE) && !framing.is_empty(),
        // RFC 9110 §7.8: to be ignored in 1.0.
        upgrade: modern && facts.seen(OPTION_UPGRADE) && facts.seen(FIELD_UPGRADE),
        headers: fields,
        framing,
    }))
}

/// Takes one response head off the front of `buf`, informational ones like all others; `None` when more bytes are
/// needed. `request_method` is that of the request being answered; `scanned` as in [`parse_request`].
///
/// # Errors
/// The first offence found: the upstream cannot be trusted with this connection any more.
pub fn parse_response(
    buf: &mut BytesMut,
    limits: &Limits,
    scanned: &mut usize,
    request_method: &Method,
) -> Result<Option<ResponseHead>, HeadError> {
    match buf.first() {
        None => return Ok(None),
        Some(b'H') => {}
        Some(_) => return Err(HeadError::BadVersion),
    }
    let read = |line: &[u8]| status_line(line).map_err(|error| scan::blame(line, error));
    let Some(((version, status), ends, length)) =
        search(buf, 0, limits, scanned, read, HeadError::HeadTooLarge)?
    else {
        return Ok(None);
    };

    let head = buf.split_to(length).freeze();
    let (fields, facts) = read_fields(&head, &ends, limits, version, Role::Response)?;

    let mut keep_alive = facts.keep_alive(version);
    // RFC 9112 §6.3, in its order.
    let announced = facts.framing.is_some_and(|framing| !framing.is_empty());
    let framing = if status.is_informational() {
        if announced {
            return Err(HeadError::BodyOnInformational);
        }
        Framing::None
    } else if status == StatusCode::NO_CONTENT {
        // RFC 9110 §8.6 forbids the announcement. If a body follows, it would be taken for the next response.
        keep_alive &= !announced;
        Framing::None
    } else if status == StatusCode::NOT_MODIFIED
        || *request_method == Method::HEAD
        || (*request_method == Method::CONNECT && status.is_success())
    {
        Framing::None
    } else {
        facts.framing.unwrap_or(Framing::UntilClose)
    };
    keep_alive &= framing != Framing::UntilClose;
    Ok(Some(ResponseHead {
        status,
        version,
        headers: fields,
        framing,
        keep_alive,
    }))
}

/// The length that `headers` announce, if they announce one: for answers to `HEAD` and for 304, whose framing is
/// [`Framing::None`] and whose `content-length` says what the body would have been.
pub fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| scan::length(value.as_bytes()))
}

/// The bit of `scanned` that says the first line has been found and accepted.
const FIRST_LINE: usize = 1 << (usize::BITS - 1);

/// Searches the empty line that ends a head, reading the first line as soon as it is there: what is wrong with it
/// is said at once, even to a peer that speaks HTTP/0.9 and will not send another byte.
fn search<T>(
    buf: &[u8],
    start: usize,
    limits: &Limits,
    scanned: &mut usize,
    read: impl Fn(&[u8]) -> Result<T, HeadError>,
    too_long: HeadError,
) -> Result<Option<(T, LineEnds, usize)>, HeadError> {
    let window = &buf[..buf.len().min(limits.head_bytes)];
    let resumed = *scanned & !FIRST_LINE > start;
    let mut at = (*scanned & !FIRST_LINE).max(start);
    let mut begun = *scanned & FIRST_LINE != 0;
    let mut first = None;
    // One more than allowed is enough to see that there are too many.
    let most = limits.headers + 2;
    let mut ends = LineEnds::new();
    let length = loop {
        let Some(end) = scan::line_end(window, at)? else {
            if buf.len() >= limits.head_bytes {
                return Err(if begun { HeadError::HeadTooLarge } else { too_long });
            }
            *scanned = window.len() | if begun { FIRST_LINE } else { 0 };
            return Ok(None);
        };
        at = end + 1;
        if !begun {
            first = Some(read(&window[start..end - 1])?);
            begun = true;
        } else if scan::is_blank(window, start, end) {
            break at;
        }
        if ends.len() < most {
            ends.push(u32::try_from(end).map_err(|_huge| HeadError::HeadTooLarge)?);
        }
    };
    *scanned = 0;
    let head = &window[..length];
    if resumed {
        // The lines found by earlier calls were not kept: once more over the whole, once per head.
        ends.clear();
        at = start;
        while let Some(end) = scan::line_end(head, at)? {
            at = end + 1;
            if at < length && ends.len() < most {
                ends.push(u32::try_from(end).map_err(|_huge| HeadError::HeadTooLarge)?);
            }
        }
    }
    let first = match (first, ends.first()) {
        (Some(first), _) => first,
        (None, Some(&end)) => read(&head[start..end as usize - 1])?,
        (None, None) => return Err(HeadError::BadVersion),
    };
    Ok(Some((first, ends, length)))
}

/// The parts of a request line; the target as offsets into it.
struct RequestLine {
    method: Method,
    target: (usize, usize),
    version: Version,
}

/// RFC 9112 §3: `method SP request-target SP HTTP-version`, single spaces, nothing around them.
fn request_line(line: &[u8], limits: &Limits) -> Result<RequestLine, HeadError> {
    let space = line
        .iter()
        .position(|&byte| !scan::is_token(byte))
        .unwrap_or(line.len());
    if line.get(space).is_some_and(|&byte| byte != b' ') {
        return Err(HeadError::BadMethod);
    }
    let begin = space + 1;
    // The version is told from the end, so that no target can be mistaken for one.
    let end = line
        .len()
        .checked_sub(" HTTP/1.1".len())
        .filter(|&end| end >= begin)
        .ok_or(HeadError::BadVersion)?;
    let version = match &line[end..] {
        b" HTTP/1.1" => Version::HTTP_11,
        b" HTTP/1.0" => Version::HTTP_10,
        _ => return Err(HeadError::BadVersion),
    };
    let method = Method::from_bytes(&line[..space]).map_err(|_invalid| HeadError::BadMethod)?;
    // `http::Uri` holds no more than 65,534 bytes.
    if end - begin > limits.target_bytes.min(65_534) {
        return Err(HeadError::TargetTooLong);
    }
    Ok(RequestLine {
        method,
        target: (begin, end),
        version,
    })
}

/// RFC 9112 §3.2: the four forms, each for the methods that it is meant for.
fn target(method: &Method, target: &Bytes) -> Result<Uri, HeadError> {
    if *method == Method::CONNECT {
        // Authority-form, whose port is not optional (RFC 9110 §9.3.6).
        let has_port = target.last().is_some_and(u8::is_ascii_digit) && {
            let digits = target
                .iter()
                .rev()
                .take_while(|byte| byte.is_ascii_digit())
                .count();
            target.len() > digits && target[target.len() - digits - 1] == b':'
        };
        if !has_port || !scan::is_host(target) {
            return Err(HeadError::BadTarget);
        }
        return Uri::from_maybe_shared(target.clone()).map_err(|_invalid| HeadError::BadTarget);
    }
    match &target[..] {
        [b'/', ..] if scan::is_path_and_query(target) => PathAndQuery::from_maybe_shared(target.clone())
            .map(Uri::from)
            .map_err(|_invalid| HeadError::BadTarget),
        b"*" if *method == Method::OPTIONS => Ok(Uri::from_static("*")),
        _ => absolute(target),
    }
}

/// Absolute-form, of the two schemes that we serve (RFC 9110 §7.4 tells us to refuse others).
fn absolute(target: &Bytes) -> Result<Uri, HeadError> {
    let scheme = [&b"http://"[..], b"https://"]
        .into_iter()
        .find(|scheme| {
            target
                .get(..scheme.len())
                .is_some_and(|text| text.eq_ignore_ascii_case(scheme))
        })
        .ok_or(HeadError::BadTarget)?;
    let rest = &target[scheme.len()..];
    let authority = rest
        .iter()
        .position(|&byte| matches!(byte, b'/' | b'?'))
        .unwrap_or(rest.len());
    let (authority, path) = rest.split_at(authority);
    if !scan::is_host(authority) || !scan::is_path_and_query(path) {
        return Err(HeadError::BadTarget);
    }
    let uri = if path.first() == Some(&b'?') {
        // RFC 9112 §3.2.1: an empty path is `/`. `http::Uri` would keep it empty and hand out `?query` as origin-form.
        Uri::from_maybe_shared(Bytes::from([scheme, authority, b"/", path].concat()))
    } else {
        Uri::from_maybe_shared(target.clone())
    };
    uri.map_err(|_invalid| HeadError::BadTarget)
}

/// RFC 9112 §4: `HTTP-version SP 3DIGIT SP [reason]`; the second space may be missing with the reason.
fn status_line(line: &[u8]) -> Result<(Version, StatusCode), HeadError> {
    let version = match line.get(..9) {
        Some(b"HTTP/1.1 ") => Version::HTTP_11,
        Some(b"HTTP/1.0 ") => Version::HTTP_10,
        _ => return Err(HeadError::BadVersion),
    };
    let digits = line.get(9..12).ok_or(HeadError::BadStatus)?;
    if !(b'1'..=b'5').contains(&digits[0]) {
        return Err(HeadError::BadStatus);
    }
    let status = StatusCode::from_bytes(digits).map_err(|_invalid| HeadError::BadStatus)?;
    match &line[12..] {
        [] => {}
        [b' ', reason @ ..] if scan::is_text(reason) => {}
        _ => return Err(HeadError::BadStatus),
    }
    Ok((version, status))
}

/// Which rules beyond those of every message apply.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Request,
    Response,
}

/// What the fields about framing and connection said.
#[derive(Default)]
struct Facts {
    framing: Option<Framing>,
    seen: u8,
}

const OPTION_CLOSE: u8 = 1;
const OPTION_KEEP_ALIVE: u8 = 2;
const OPTION_UPGRADE: u8 = 4;
const FIELD_UPGRADE: u8 = 8;
const FIELD_HOST: u8 = 16;
const EXPECT_CONTINUE: u8 = 32;

impl Facts {
    const fn seen(&self, bit: u8) -> bool {
        self.seen & bit != 0
    }

    /// RFC 9112 §9.3.
    fn keep_alive(&self, version: Version) -> bool {
        !self.seen(OPTION_CLOSE) && (version == Version::HTTP_11 || self.seen(OPTION_KEEP_ALIVE))
    }

    /// Notes one field. Lengths first: most fields are told from the interesting ones by that alone.
    #[inline]
    fn note(
        &mut self,
        name: &HeaderName,
        value: &[u8],
        version: Version,
        role: Role,
    ) -> Result<(), HeadError> {
        match name.as_str().len() {
            4 if role == Role::Request && *name == header::HOST => {
                if self.seen(FIELD_HOST) {
                    return Err(HeadError::DuplicateHost);
                }
                self.seen |= FIELD_HOST;
                if !scan::is_host(value) {
                    return Err(HeadError::BadHost);
                }
            }
            6 if *name == header::EXPECT && value.eq_ignore_ascii_case(b"100-continue") => {
                self.seen |= EXPECT_CONTINUE;
            }
            7 if *name == header::UPGRADE => self.seen |= FIELD_UPGRADE,
            10 if *name == header::CONNECTION => self.seen |= options(value),
            14 if *name == header::CONTENT_LENGTH => match self.framing {
                Some(Framing::Length(_)) => return Err(HeadError::DuplicateContentLength),
                Some(_) => return Err(HeadError::ContentLengthAndTransferEncoding),
                None => {
                    let length = scan::length(value).ok_or(HeadError::BadContentLength)?;
                    self.framing = Some(Framing::Length(length));
                }
            },
            17 if *name == header::TRANSFER_ENCODING => {
                if version == Version::HTTP_10 {
                    return Err(HeadError::TransferEncodingIn10);
                }
                match self.framing {
                    Some(Framing::Length(_)) => return Err(HeadError::ContentLengthAndTransferEncoding),
                    None if value.eq_ignore_ascii_case(b"chunked") => self.framing = Some(Framing::Chunked),
                    // Twice `chunked` is not once either.
                    Some(_) | None => return Err(HeadError::BadTransferEncoding),
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// The connection options that matter to us (RFC 9110 §7.6.1).
fn options(value: &[u8]) -> u8 {
    value
        .split(|&byte| byte == b',')
        .map(scan::trim)
        .fold(0, |seen, option| {
            seen | match option.len() {
                5 if option.eq_ignore_ascii_case(b"close") => OPTION_CLOSE,
                7 if option.eq_ignore_ascii_case(b"upgrade") => OPTION_UPGRADE,
                10 if option.eq_ignore_ascii_case(b"keep-alive") => OPTION_KEEP_ALIVE,
                _ => 0,
            }
        })
}

/// Reads the fields behind the first line.
fn read_fields(
    head: &Bytes,
    ends: &[u32],
    limits: &Limits,
    version: Version,
    role: Role,
) -> Result<(HeaderMap, Facts), HeadError> {
    let (start, ends) = ends
        .split_first()
        .map_or((0, ends), |(&first, rest)| (first as usize + 1, rest));
    // Room for what a proxy adds, so that the map is built once.
    let mut map = HeaderMap::with_capacity(ends.len().min(limits.headers) + 4);
    let mut facts = Facts::default();
    scan::fields(head, start, ends, limits.headers, &mut map, |name, value| {
        facts.note(name, value, version, role)?;
        Ok(true)
    })?;
    Ok((map, facts))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(bytes: &[u8]) -> Result<Option<RequestHead>, HeadError> {
        parse_request(&mut BytesMut::from(bytes), &Limits::default(), &mut 0)
    }

    #[test]
    fn a_request_is_read_with_its_framing() {
        let head = request(b"POST /a?b=c HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc")
            .unwrap()
            .unwrap();
        assert_eq!(head.method, Method::POST);
        assert_eq!(head.uri, "/a?b=c");
        assert_eq!(head.framing, Framing::Length(3));
        assert!(head.keep_alive);
        assert_eq!(head.headers.len(), 2);
    }
}
