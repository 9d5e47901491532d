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

/// Whether a request begins with HEAD, whatever follows: the answer to it carries no content (RFC 9110 §9.3.2), also
/// when it is refused.
#[must_use]
pub fn is_to_head(buf: &[u8]) -> bool {
    buf.strip_prefix(b"\r\n").unwrap_or(buf).starts_with(b"HEAD ")
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
    let written = head.slice(start + line.target.0..start + line.target.1);
    let uri = target(&line.method, &written).map_err(|error| scan::blame(&written, error))?;
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
    let most = limits.headers.saturating_add(2);
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
    // Growing a map costs as much as the rest of it; but `http` panics when asked for more than it can.
    let mut map = HeaderMap::with_capacity(ends.len().min(1024));
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

    fn request_with(bytes: &[u8], limits: &Limits) -> Result<Option<RequestHead>, HeadError> {
        parse_request(&mut BytesMut::from(bytes), limits, &mut 0)
    }

    fn request(bytes: impl AsRef<[u8]>) -> Result<RequestHead, HeadError> {
        request_with(bytes.as_ref(), &Limits::default()).map(|head| head.expect("the head is complete"))
    }

    /// A request with these bytes behind a good request line and host.
    fn with(fields: &str) -> Result<RequestHead, HeadError> {
        request(format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"))
    }

    fn response_to(method: &Method, bytes: impl AsRef<[u8]>) -> Result<ResponseHead, HeadError> {
        parse_response(
            &mut BytesMut::from(bytes.as_ref()),
            &Limits::default(),
            &mut 0,
            method,
        )
        .map(|head| head.expect("the head is complete"))
    }

    fn response(bytes: impl AsRef<[u8]>) -> Result<ResponseHead, HeadError> {
        response_to(&Method::GET, bytes)
    }

    #[track_caller]
    fn refused<T: std::fmt::Debug>(result: Result<T, HeadError>, expected: HeadError) {
        assert_eq!(result.map(|_| ()), Err(expected));
    }

    #[test]
    fn a_request_is_read_with_its_framing() {
        let mut buf =
            BytesMut::from("POST /a?b=c HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nX-A:\t b \t\r\n\r\nabc");
        let head = parse_request(&mut buf, &Limits::default(), &mut 0)
            .unwrap()
            .unwrap();
        assert_eq!(head.method, Method::POST);
        assert_eq!(head.uri, "/a?b=c");
        assert_eq!(head.version, Version::HTTP_11);
        assert_eq!(head.framing, Framing::Length(3));
        assert!(head.keep_alive && !head.expect_continue && !head.upgrade);
        assert_eq!(head.headers.len(), 3);
        assert_eq!(head.headers["x-a"], "b");
        assert_eq!(&buf[..], b"abc");
    }

    #[test]
    fn values_share_the_bytes_that_were_read() {
        let mut buf = BytesMut::from("GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n");
        let range = buf.as_ptr_range();
        let head = parse_request(&mut buf, &Limits::default(), &mut 0)
            .unwrap()
            .unwrap();
        assert!(range.contains(&head.headers[header::HOST].as_bytes().as_ptr()));
    }

    // reliability.md, messages, line 1.
    #[test]
    fn length_and_encoding_together_are_refused_in_any_order() {
        refused(
            with("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"),
            HeadError::ContentLengthAndTransferEncoding,
        );
        refused(
            with("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n"),
            HeadError::ContentLengthAndTransferEncoding,
        );
        refused(
            with("tRANSFER-eNCODING: chunked\r\nX: y\r\ncONTENT-lENGTH: 0\r\n"),
            HeadError::ContentLengthAndTransferEncoding,
        );
    }

    #[test]
    fn a_length_is_plain_digits_once() {
        assert_eq!(with("Content-Length: 0\r\n").unwrap().framing, Framing::Length(0));
        assert_eq!(
            with("Content-Length:  42\t\r\n").unwrap().framing,
            Framing::Length(42)
        );
        assert_eq!(
            with("Content-Length: 9999999999999999999\r\n").unwrap().framing,
            Framing::Length(9_999_999_999_999_999_999)
        );
        for bad in [
            "",
            "+3",
            "-3",
            "0x3",
            "3 3",
            "3,3",
            "3, 3",
            "3;",
            "a",
            "3.0",
            "1e3",
            "\u{664}",
            "\"3\"",
            "10000000000000000000",
            "00000000000000000003",
            "99999999999999999999999999",
        ] {
            refused(
                with(&format!("Content-Length: {bad}\r\n")),
                HeadError::BadContentLength,
            );
        }
        refused(
            with("Content-Length: 3\r\nContent-Length: 3\r\n"),
            HeadError::DuplicateContentLength,
        );
        refused(
            with("Content-Length: 3\r\ncontent-length: 4\r\n"),
            HeadError::DuplicateContentLength,
        );
    }

    #[test]
    fn an_encoding_is_exactly_chunked() {
        assert_eq!(
            with("Transfer-Encoding: chunked\r\n").unwrap().framing,
            Framing::Chunked
        );
        assert_eq!(
            with("Transfer-Encoding: ChUnKeD\r\n").unwrap().framing,
            Framing::Chunked
        );
        assert_eq!(
            with("Transfer-Encoding:\tchunked \r\n").unwrap().framing,
            Framing::Chunked
        );
        for bad in [
            "",
            "xchunked",
            "chunkedx",
            "chunked,",
            ",chunked",
            "chunked, chunked",
            "gzip, chunked",
            "chunked, identity",
            "identity",
            "identity, chunked",
            "gzip",
            "chunked;q=1",
            "\"chunked\"",
            "chunked\u{a0}",
            "chun ked",
            "trailers",
        ] {
            refused(
                with(&format!("Transfer-Encoding: {bad}\r\n")),
                HeadError::BadTransferEncoding,
            );
        }
        for twice in ["chunked", "identity", "gzip", ""] {
            refused(
                with(&format!(
                    "Transfer-Encoding: chunked\r\nTransfer-Encoding: {twice}\r\n"
                )),
                HeadError::BadTransferEncoding,
            );
        }
        refused(
            with("Transfer-Encoding: chunked\x0b\r\n"),
            HeadError::BadTransferEncoding,
        );
        refused(
            request("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"),
            HeadError::TransferEncodingIn10,
        );
        refused(
            response("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
            HeadError::TransferEncodingIn10,
        );
    }

    // Line 2.
    #[test]
    fn lines_end_in_crlf() {
        for bad in [
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: b\n\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: b\nTransfer-Encoding: chunked\r\n\r\n",
            "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            refused(request(bad), HeadError::BareLf);
        }
        for bad in [
            "GET / HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX\r: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: b\rTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\r\nHost: a\r\n\r\n",
            "GET /\r HTTP/1.1\r\nHost: a\r\n\r\n",
            "\rGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\r\r\n\r\n",
        ] {
            refused(request(bad), HeadError::BareCr);
        }
    }

    #[test]
    fn a_bare_lf_is_refused_before_the_head_is_complete() {
        refused(
            request_with(b"GET / HTTP/1.1\r\nHost: a\n", &Limits::default()),
            HeadError::BareLf,
        );
    }

    #[test]
    fn values_hold_text_only() {
        for byte in 0..=255_u8 {
            let bytes = [b"GET / HTTP/1.1\r\nHost: a\r\nX: b", &[byte][..], b"c\r\n\r\n"].concat();
            let result = request(bytes);
            match byte {
                b'\t' | b' '..=b'~' | 0x80..=0xff => {
                    assert_eq!(
                        result.unwrap().headers["x"].as_bytes(),
                        [b'b', byte, b'c'],
                        "{byte:#x}"
                    );
                }
                b'\n' => refused(result, HeadError::BareLf),
                b'\r' => refused(result, HeadError::BareCr),
                _ => refused(result, HeadError::BadValue),
            }
        }
    }

    #[test]
    fn names_are_tokens() {
        for byte in 0..=255_u8 {
            let bytes = [b"GET / HTTP/1.1\r\nHost: a\r\nX", &[byte][..], b"y: b\r\n\r\n"].concat();
            let result = request(bytes);
            let token = byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            match byte {
                _ if token => {
                    let name = [b'x', byte.to_ascii_lowercase(), b'y'];
                    assert!(
                        result
                            .unwrap()
                            .headers
                            .contains_key(std::str::from_utf8(&name).unwrap()),
                        "{byte:#x}"
                    );
                }
                // `X:y: b` is a field named `x`.
                b':' => assert_eq!(result.unwrap().headers["x"], "y: b"),
                b'\n' => refused(result, HeadError::BareLf),
                b'\r' => refused(result, HeadError::BareCr),
                _ => refused(result, HeadError::BadName),
            }
        }
        refused(with(": b\r\n"), HeadError::BadName);
        refused(with("nocolon\r\n"), HeadError::BadName);
        refused(with("\u{fe0f}X: b\r\n"), HeadError::BadName);
    }

    #[test]
    fn white_space_around_names_is_refused() {
        refused(
            with("Transfer-Encoding : chunked\r\n"),
            HeadError::SpaceBeforeColon,
        );
        refused(
            with("Transfer-Encoding\t: chunked\r\n"),
            HeadError::SpaceBeforeColon,
        );
        refused(with("Content-Length : 3\r\n"), HeadError::SpaceBeforeColon);
        refused(with("Transfer Encoding: chunked\r\n"), HeadError::BadName);
        refused(with("X: b\r\n folded\r\n"), HeadError::ObsFold);
        refused(with("X: b\r\n\tfolded: c\r\n"), HeadError::ObsFold);
        refused(
            with("Transfer-Encoding:\r\n chunked\r\n"),
            HeadError::BadTransferEncoding,
        );
        refused(with("X:\r\n chunked\r\n"), HeadError::ObsFold);
        refused(request("GET / HTTP/1.1\r\n Host: a\r\n\r\n"), HeadError::ObsFold);
        refused(response("HTTP/1.1 200 OK\r\n X: a\r\n\r\n"), HeadError::ObsFold);
        refused(
            response("HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n"),
            HeadError::ObsFold,
        );
    }

    // Line 3.
    #[test]
    fn one_valid_host_is_needed() {
        refused(request("GET / HTTP/1.1\r\n\r\n"), HeadError::MissingHost);
        refused(
            request("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
            HeadError::DuplicateHost,
        );
        refused(
            request("GET / HTTP/1.0\r\nHost: a\r\nhost: b\r\n\r\n"),
            HeadError::DuplicateHost,
        );
        request("GET / HTTP/1.0\r\n\r\n").unwrap();
        for good in [
            "a",
            "a.b-c_d~e",
            "A.EXAMPLE.:443",
            "127.0.0.1:1",
            "[::1]",
            "[::ffff:1.2.3.4]:65535",
            "0",
        ] {
            request(format!("GET / HTTP/1.1\r\nHost: {good}\r\n\r\n")).unwrap();
        }
        let long = "a".repeat(256);
        for bad in [
            "",
            "u@a",
            "u:p@a",
            "a/b",
            "/",
            "a b",
            "a\tb",
            "a,b",
            "a, a",
            "a:",
            "a:x",
            "a:+1",
            "a:65536",
            "a:000080",
            "a:80:80",
            ":80",
            "[::1",
            "::1",
            "[]",
            "[::1%25eth0]",
            "[::1]x",
            "[v1.a]",
            "a%41",
            "a?b",
            "a#b",
            "a\\b",
            "*",
            "a;b",
            "\u{e9}",
            "a\"",
            "<a>",
            &long,
        ] {
            refused(
                request(format!("GET / HTTP/1.1\r\nHost: {bad}\r\n\r\n")),
                HeadError::BadHost,
            );
        }
        refused(
            request("GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n"),
            HeadError::BadHost,
        );
    }

    #[test]
    fn an_absolute_target_names_the_same_host() {
        let head = request("GET http://A.b:80/c?d HTTP/1.1\r\nHost: a.B:80\r\n\r\n").unwrap();
        assert_eq!(head.uri.authority().unwrap(), "a.b:80");
        assert_eq!(head.uri.path_and_query().unwrap(), "/c?d");
        assert_eq!(
            request("GET HTTPS://a HTTP/1.1\r\nHost: a\r\n\r\n")
                .unwrap()
                .uri
                .path(),
            "/"
        );
        let head = request("GET http://a?b HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert_eq!(head.uri.path_and_query().unwrap().as_str(), "/?b");
        request("GET http://a/ HTTP/1.0\r\n\r\n").unwrap();
        refused(
            request("GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n"),
            HeadError::HostMismatch,
        );
        refused(
            request("GET http://a:80/ HTTP/1.1\r\nHost: a\r\n\r\n"),
            HeadError::HostMismatch,
        );
        refused(
            request("GET http://a/ HTTP/1.0\r\nHost: b\r\n\r\n"),
            HeadError::HostMismatch,
        );
        refused(request("GET http://a/ HTTP/1.1\r\n\r\n"), HeadError::MissingHost);
        for bad in [
            "http://",
            "http:///b",
            "http://u@a/",
            "http:a",
            "ftp://a/",
            "a",
            "a/b",
            "http://a#b",
            "http://a:/",
        ] {
            refused(
                request(format!("GET {bad} HTTP/1.1\r\nHost: a\r\n\r\n")),
                HeadError::BadTarget,
            );
        }
    }

    // Line 4.
    #[test]
    fn methods_are_tokens() {
        for byte in 0..=255_u8 {
            let bytes = [b"G", &[byte][..], b"T / HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
            let result = request(bytes);
            let token = byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            match byte {
                _ if token => assert_eq!(result.unwrap().method.as_str().as_bytes(), [b'G', byte, b'T']),
                b' ' => refused(result, HeadError::BadTarget),
                b'\n' => refused(result, HeadError::BareLf),
                b'\r' => refused(result, HeadError::BareCr),
                _ => refused(result, HeadError::BadMethod),
            }
        }
        refused(
            request(" GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
            HeadError::BadMethod,
        );
        refused(
            request("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
            HeadError::BadMethod,
        );
        // The first record of a TLS handshake.
        refused(
            request_with(b"\x16\x03\x01", &Limits::default()),
            HeadError::BadMethod,
        );
    }

    #[test]
    fn targets_hold_what_may_stand_there() {
        for byte in 0..=255_u8 {
            let path = request([b"GET /x", &[byte][..], b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat());
            let query = request([b"GET /?", &[byte][..], b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat());
            match byte {
                b'\n' => {
                    refused(path, HeadError::BareLf);
                    refused(query, HeadError::BareLf);
                }
                b'\r' => {
                    refused(path, HeadError::BareCr);
                    refused(query, HeadError::BareCr);
                }
                b'"' | b'#' | b'<' | b'>' => {
                    refused(path, HeadError::BadTarget);
                    refused(query, HeadError::BadTarget);
                }
                b'\\' | b'`' => {
                    refused(path, HeadError::BadTarget);
                    assert_eq!(query.unwrap().uri.query().unwrap().as_bytes(), [byte]);
                }
                b'!'..=b'~' => {
                    let kept = path
                        .unwrap()
                        .uri
                        .path_and_query()
                        .unwrap()
                        .as_str()
                        .as_bytes()
                        .to_vec();
                    assert_eq!(kept, [b'/', b'x', byte]);
                    assert_eq!(query.unwrap().uri.query().unwrap().as_bytes(), [byte]);
                }
                _ => {
                    refused(path, HeadError::BadTarget);
                    refused(query, HeadError::BadTarget);
                }
            }
        }
        assert_eq!(
            request("GET //a/../b HTTP/1.1\r\nHost: a\r\n\r\n")
                .unwrap()
                .uri
                .path(),
            "//a/../b"
        );
        refused(
            request("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n"),
            HeadError::BadTarget,
        );
        refused(
            request("GET ?a HTTP/1.1\r\nHost: a\r\n\r\n"),
            HeadError::BadTarget,
        );
        refused(
            request("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"),
            HeadError::BadTarget,
        );
    }

    #[test]
    fn the_star_belongs_to_options_and_an_authority_to_connect() {
        assert_eq!(request("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").unwrap().uri, "*");
        refused(request("GET * HTTP/1.1\r\nHost: a\r\n\r\n"), HeadError::BadTarget);
        refused(
            request("OPTIONS ** HTTP/1.1\r\nHost: a\r\n\r\n"),
            HeadError::BadTarget,
        );
        let head = request("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n").unwrap();
        assert_eq!(head.uri.authority().unwrap(), "a:443");
        request("CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n\r\n").unwrap();
        for bad in [
            "a",
            "/",
            "*",
            "http://a:443/",
            "a:443/",
            "a:",
            ":443",
            "u@a:443",
            "[::1]",
            "::1",
        ] {
            refused(
                request(format!("CONNECT {bad} HTTP/1.1\r\nHost: a\r\n\r\n")),
                HeadError::BadTarget,
            );
        }
        refused(
            request("CONNECT a:1 HTTP/1.1\r\nHost: a:2\r\n\r\n"),
            HeadError::HostMismatch,
        );
        refused(
            request("GET a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"),
            HeadError::BadTarget,
        );
    }

    #[test]
    fn other_versions_are_refused_as_soon_as_the_first_line_is_there() {
        for bad in [
            "GET /\r\n",
            "GET\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "GET / HTTP/2.0\r\n",
            "GET / HTTP/0.9\r\n",
            "GET / HTTP/1.2\r\n",
            "GET / HTTP/1.10\r\n",
            "GET / http/1.1\r\n",
            "GET / HTTP/1,1\r\n",
            "GET / HTTP/ 1.1\r\n",
            "GET / HTTP/1.1 \r\n",
            "GET /\tHTTP/1.1\r\n",
            "GET HTTP/1.1\r\n",
            "GET / HTTP/1.1x\r\n",
            "GET / HTTP/11\r\n",
        ] {
            refused(
                request_with(bad.as_bytes(), &Limits::default()),
                HeadError::BadVersion,
            );
        }
        refused(request("GET  HTTP/1.1\r\nHost: a\r\n\r\n"), HeadError::BadTarget);
        refused(
            request("GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
            HeadError::BadTarget,
        );
        refused(
            request("GET /  HTTP/1.1\r\nHost: a\r\n\r\n"),
            HeadError::BadTarget,
        );
    }

    // Line 6.
    #[test]
    fn limits_are_exact() {
        let head = b"GET /12345 HTTP/1.1\r\nHost: a\r\nX: b\r\n\r\n";
        let exact = Limits {
            head_bytes: head.len(),
            headers: 2,
            target_bytes: 6,
        };
        request_with(head, &exact).unwrap().unwrap();
        let result = |limits| request_with(head, &limits);
        refused(
            result(Limits {
                head_bytes: head.len() - 1,
                ..exact
            }),
            HeadError::HeadTooLarge,
        );
        refused(result(Limits { headers: 1, ..exact }), HeadError::TooManyHeaders);
        refused(
            result(Limits {
                target_bytes: 5,
                ..exact
            }),
            HeadError::TargetTooLong,
        );
        // A first line without an end is a target without one.
        refused(
            result(Limits {
                head_bytes: 10,
                ..exact
            }),
            HeadError::TargetTooLong,
        );
        assert_eq!(HeadError::HeadTooLarge.status(), 431);
        assert_eq!(HeadError::TooManyHeaders.status(), 431);
        assert_eq!(HeadError::TargetTooLong.status(), 414);
    }

    #[test]
    fn more_fields_than_a_map_holds_are_an_error_and_not_a_panic() {
        let fields: String = (0..40_000).map(|index| format!("x{index}:\r\n")).collect();
        let bytes = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let limits = Limits {
            head_bytes: 1 << 20,
            headers: usize::MAX - 2,
            target_bytes: 1 << 20,
        };
        refused(request_with(bytes.as_bytes(), &limits), HeadError::TooManyHeaders);
    }

    #[test]
    fn a_target_longer_than_a_uri_can_hold_is_an_error_and_not_a_panic() {
        let limits = Limits {
            head_bytes: 1 << 20,
            headers: 10,
            target_bytes: 1 << 20,
        };
        let with = |length: usize| {
            let path = "a".repeat(length - 1);
            request_with(
                format!("GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes(),
                &limits,
            )
        };
        with(65_534).unwrap().unwrap();
        refused(with(65_535), HeadError::TargetTooLong);
        let query = "a".repeat(65_534 - "http://a?".len());
        refused(
            request_with(
                format!("GET http://a?{query} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes(),
                &limits,
            ),
            HeadError::BadTarget,
        );
    }

    // Line 7.
    #[test]
    fn a_connection_lives_as_its_version_and_options_say() {
        let lives = |version: &str, connection: &str| {
            request(format!("GET / {version}\r\nHost: a\r\n{connection}\r\n"))
                .unwrap()
                .keep_alive
        };
        assert!(lives("HTTP/1.1", ""));
        assert!(lives("HTTP/1.1", "Connection: keep-alive\r\n"));
        assert!(!lives("HTTP/1.1", "Connection: close\r\n"));
        assert!(!lives("HTTP/1.1", "Connection: x , CLOSE\t,y\r\n"));
        assert!(!lives(
            "HTTP/1.1",
            "Connection: keep-alive\r\nConnection: close\r\n"
        ));
        assert!(lives("HTTP/1.1", "Connection: closed, x-close\r\n"));
        assert!(!lives("HTTP/1.0", ""));
        assert!(lives("HTTP/1.0", "Connection: Keep-Alive\r\n"));
        assert!(!lives("HTTP/1.0", "Connection: keep-alive, close\r\n"));
    }

    #[test]
    fn expectation_and_upgrade_are_told_apart_from_noise() {
        assert!(
            with("Expect: 100-Continue\r\nContent-Length: 3\r\n")
                .unwrap()
                .expect_continue
        );
        assert!(
            with("Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n")
                .unwrap()
                .expect_continue
        );
        assert!(!with("Expect: 100-continue\r\n").unwrap().expect_continue);
        assert!(
            !with("Expect: 100-continue\r\nContent-Length: 0\r\n")
                .unwrap()
                .expect_continue
        );
        assert!(
            !with("Expect: 200-ok\r\nContent-Length: 3\r\n")
                .unwrap()
                .expect_continue
        );
        assert!(
            with("Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n")
                .unwrap()
                .upgrade
        );
        assert!(!with("Upgrade: websocket\r\n").unwrap().upgrade);
        assert!(!with("Connection: upgrade\r\n").unwrap().upgrade);
        let old = "POST / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
        let old = request(old).unwrap();
        assert!(!old.upgrade && !old.expect_continue);
    }

    #[test]
    fn pipelined_requests_are_read_one_by_one() {
        let mut buf =
            BytesMut::from("GET /1 HTTP/1.1\r\nHost: a\r\n\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n\r\n");
        let mut scanned = 0;
        let mut next = || parse_request(&mut buf, &Limits::default(), &mut scanned).unwrap();
        assert_eq!(next().unwrap().uri, "/1");
        assert_eq!(next().unwrap().uri, "/2");
        assert!(next().is_none());
        assert!(!has_begun(&buf));
        assert!(has_begun(b"G") && has_begun(b"\r\nG"));
    }

    #[test]
    fn smuggling_attempts_are_refused() {
        for attempt in [
            // CL.TE, TE.CL, TE.TE
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n1\r\nZ\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: cow\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\n Transfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nX: X\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nX: X\rTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\r\n: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\x0bchunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \0chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: 'chunked'\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding;: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\n\0Transfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5,6\r\n\r\nhello",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n 6\r\n\r\nhello",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1 HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            let refusal = request(attempt).expect_err(attempt);
            assert_eq!(refusal.status(), 400, "{attempt}");
        }
    }

    #[test]
    fn slow_input_is_searched_once() {
        // What the parser remembers points behind everything seen, so nothing is searched again.
        let mut buf = BytesMut::new();
        let mut scanned = 0;
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for (index, &byte) in head.iter().enumerate() {
            buf.extend_from_slice(&[byte]);
            let result = parse_request(&mut buf, &Limits::default(), &mut scanned).unwrap();
            assert_eq!(result.is_some(), index + 1 == head.len());
            if result.is_none() {
                assert_eq!(scanned & !FIRST_LINE, index + 1);
            }
        }
    }

    // Line 10.
    #[test]
    fn hostile_responses_are_refused() {
        for (bad, error) in [
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                HeadError::ContentLengthAndTransferEncoding,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
                HeadError::ContentLengthAndTransferEncoding,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
                HeadError::DuplicateContentLength,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
                HeadError::BadTransferEncoding,
            ),
            ("HTTP/1.1 200 OK\nX: a\n\n", HeadError::BareLf),
            ("HTTP/1.1 200 O\rK\r\n\r\n", HeadError::BareCr),
            ("HTTP/1.1 200 O\0K\r\n\r\n", HeadError::BadStatus),
            ("HTTP/1.1 200 OK\r\nX: \0\r\n\r\n", HeadError::BadValue),
            ("HTTP/1.1 099 x\r\n\r\n", HeadError::BadStatus),
            ("HTTP/1.1 600 x\r\n\r\n", HeadError::BadStatus),
            ("HTTP/1.1 999 x\r\n\r\n", HeadError::BadStatus),
            ("HTTP/1.1 2000 x\r\n\r\n", HeadError::BadStatus),
            ("HTTP/1.1 20 x\r\n\r\n", HeadError::BadStatus),
            ("HTTP/1.1 2x0 x\r\n\r\n", HeadError::BadStatus),
            ("HTTP/1.1  200 x\r\n\r\n", HeadError::BadStatus),
            ("HTTP/1.1 -20 x\r\n\r\n", HeadError::BadStatus),
            ("HTTP/1.1\r\n\r\n", HeadError::BadVersion),
            ("HTTP/2 200 OK\r\n\r\n", HeadError::BadVersion),
            ("HTTP/1.2 200 OK\r\n\r\n", HeadError::BadVersion),
            ("ICY 200 OK\r\n\r\n", HeadError::BadVersion),
            ("\r\nHTTP/1.1 200 OK\r\n\r\n", HeadError::BadVersion),
            (
                "HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n",
                HeadError::BodyOnInformational,
            ),
            (
                "HTTP/1.1 103 x\r\nTransfer-Encoding: chunked\r\n\r\n",
                HeadError::BodyOnInformational,
            ),
        ] {
            assert_eq!(response(bad).map(|_| ()), Err(error), "{bad}");
        }
    }

    #[test]
    fn a_response_ends_where_its_status_method_and_fields_say() {
        let framing = |method: &Method, text: &str| {
            let head = response_to(method, format!("HTTP/1.1 {text}\r\n\r\n")).unwrap();
            (head.framing, head.keep_alive)
        };
        let get = |text| framing(&Method::GET, text);
        assert_eq!(get("200 OK\r\nContent-Length: 3"), (Framing::Length(3), true));
        assert_eq!(
            get("200 OK\r\nTransfer-Encoding: chunked"),
            (Framing::Chunked, true)
        );
        assert_eq!(
            get("200 OK\r\nContent-Length: 3\r\nConnection: close"),
            (Framing::Length(3), false)
        );
        assert_eq!(get("200 OK"), (Framing::UntilClose, false));
        assert_eq!(get("200\r\nConnection: keep-alive"), (Framing::UntilClose, false));
        assert_eq!(get("204 No Content"), (Framing::None, true));
        assert_eq!(get("204 No Content\r\nContent-Length: 0"), (Framing::None, true));
        // A body where none may be: whatever follows must not become the next response.
        assert_eq!(get("204 No Content\r\nContent-Length: 5"), (Framing::None, false));
        assert_eq!(
            get("204 No Content\r\nTransfer-Encoding: chunked"),
            (Framing::None, false)
        );
        assert_eq!(
            get("304 Not Modified\r\nContent-Length: 5"),
            (Framing::None, true)
        );
        assert_eq!(get("100 Continue"), (Framing::None, true));
        assert_eq!(
            get("101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade"),
            (Framing::None, true)
        );
        assert_eq!(
            framing(&Method::HEAD, "200 OK\r\nContent-Length: 5"),
            (Framing::None, true)
        );
        assert_eq!(
            framing(&Method::HEAD, "200 OK\r\nTransfer-Encoding: chunked"),
            (Framing::None, true)
        );
        assert_eq!(framing(&Method::HEAD, "200 OK"), (Framing::None, true));
        assert_eq!(
            framing(&Method::CONNECT, "200 OK\r\nContent-Length: 5"),
            (Framing::None, true)
        );
        assert_eq!(
            framing(&Method::CONNECT, "403 No\r\nContent-Length: 5"),
            (Framing::Length(5), true)
        );
        let old = |connection: &str| {
            response(format!(
                "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n{connection}\r\n"
            ))
            .unwrap()
            .keep_alive
        };
        assert!(!old(""));
        assert!(old("Connection: keep-alive\r\n"));
    }

    #[test]
    fn every_refusal_has_a_word_of_its_own() {
        let all = [
            HeadError::BareLf,
            HeadError::BareCr,
            HeadError::ObsFold,
            HeadError::SpaceBeforeColon,
            HeadError::BadMethod,
            HeadError::BadTarget,
            HeadError::TargetTooLong,
            HeadError::BadVersion,
            HeadError::BadStatus,
            HeadError::HeadTooLarge,
            HeadError::TooManyHeaders,
            HeadError::BadName,
            HeadError::BadValue,
            HeadError::ContentLengthAndTransferEncoding,
            HeadError::BadContentLength,
            HeadError::DuplicateContentLength,
            HeadError::BadTransferEncoding,
            HeadError::TransferEncodingIn10,
            HeadError::BodyOnInformational,
            HeadError::MissingHost,
            HeadError::DuplicateHost,
            HeadError::BadHost,
            HeadError::HostMismatch,
        ];
        let words: std::collections::BTreeSet<_> = all.iter().map(|error| error.name()).collect();
        assert_eq!(words.len(), all.len());
        assert!(all.iter().all(|error| error.status().is_client_error()));
    }
}
