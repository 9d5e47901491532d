//! One request as one line, text or JSON.
//!
//! Whatever a client or an upstream wrote is hostile here: it must not end the line, leave its quotes or reach a
//! terminal as a control sequence. Text lines are printable ASCII, everything else is `\xNN`. JSON lines are valid JSON
//! and valid UTF-8: control characters are `\u00NN`, and so is a byte that is not UTF-8 (read as Latin-1). A value is cut
//! at 2 KiB.
//!
//! Nothing is allocated: numbers and text go straight into the worker's buffer, and the date is formatted once per
//! second.
//!
//! Query strings are left out: they carry tokens and signatures more often than anything an operator needs, and a log is
//! kept longer and read by more people than a request. Who wants them adds a field.

use std::net::IpAddr;
use std::time::Duration;

use bellwether_core::{Phase, Reason, TerminatedBy};

/// What is known about a request at its end. Empty strings and `None` are left out of the line.
#[derive(Clone, Copy, Debug)]
pub struct AccessRecord<'a> {
    /// When the head of the request had arrived, in microseconds since 1970.
    pub time: u64,
    /// As sent on in `x-request-id`.
    pub request_id: &'a [u8],
    /// Of the W3C trace context, if there was one.
    pub trace_id: &'a [u8],
    /// Name of the listener.
    pub listener: &'a str,
    /// Name of the route; empty when none matched.
    pub route: &'a str,
    /// Name of the cluster.
    pub cluster: &'a str,
    /// Address of the endpoint asked last.
    pub endpoint: &'a str,
    /// As received.
    pub method: &'a [u8],
    /// As received, not decoded; what follows a `?` is left out of the line.
    pub path: &'a [u8],
    /// As `HTTP/1.1`, `HTTP/2`.
    pub protocol: &'a str,
    /// The status sent; 0 when none was.
    pub status: u16,
    /// The gRPC status sent.
    pub grpc_status: Option<u32>,
    /// Why we answered ourselves or broke off.
    pub reason: Option<Reason>,
    /// Who ended the request.
    pub terminated_by: TerminatedBy,
    /// How far it had come.
    pub phase: Phase,
    /// Attempts made.
    pub attempts: u32,
    /// Some of them were copies, sent beside another one.
    pub hedged: bool,
    /// The client, as far as the trusted proxies let us know.
    pub client: Option<IpAddr>,
    /// Bytes of the request body received.
    pub bytes_in: u64,
    /// Bytes of the response body sent.
    pub bytes_out: u64,
    /// As received.
    pub user_agent: &'a [u8],
    /// From the first byte of the request to the end of its head.
    pub t_headers: Option<Duration>,
    /// Dialling; none when a pooled connection was used.
    pub t_connect: Option<Duration>,
    /// The TLS handshake with the endpoint.
    pub t_tls: Option<Duration>,
    /// From the end of the request head to the head of the answer.
    pub t_ttfb: Option<Duration>,
    /// From the end of the request head to the last byte of the answer.
    pub t_total: Duration,
    /// Fields of the configuration, rendered.
    pub fields: &'a [(&'a str, &'a [u8])],
}

impl Default for AccessRecord<'_> {
    fn default() -> Self {
        Self {
            time: 0,
            request_id: b"",
            trace_id: b"",
            listener: "",
            route: "",
            cluster: "",
            endpoint: "",
            method: b"",
            path: b"",
            protocol: "",
            status: 0,
            grpc_status: None,
            reason: None,
            terminated_by: TerminatedBy::None,
            phase: Phase::Done,
            attempts: 0,
            hedged: false,
            client: None,
            bytes_in: 0,
            bytes_out: 0,
            user_agent: b"",
            t_headers: None,
            t_connect: None,
            t_tls: None,
            t_ttfb: None,
            t_total: Duration::ZERO,
            fields: &[],
        }
    }
}

/// The longest value of a field, in bytes before escaping.
const MAX_VALUE: usize = 2048;

/// What a cut value ends with.
const CUT: &[u8] = b"...";

/// The date of the second written last.
#[derive(Debug, Default)]
pub(crate) struct DateCache {
    second: Option<u64>,
    text: Vec<u8>,
}

impl DateCache {
    /// RFC 3339 in UTC with milliseconds.
    fn write(&mut self, out: &mut Vec<u8>, micros: u64) {
        let second = micros / 1_000_000;
        if self.second != Some(second) {
            self.second = Some(second);
            self.text.clear();
            let stamp = i64::try_from(second)
                .ok()
                .and_then(|second| jiff::Timestamp::from_second(second).ok());
            let text = stamp.unwrap_or(jiff::Timestamp::MAX).to_string();
            self.text
                .extend_from_slice(text.as_bytes().get(..19).unwrap_or_default());
        }
        out.extend_from_slice(&self.text);
        // Fits: below 1000.
        let millis = ((micros / 1000) % 1000) as u16;
        out.push(b'.');
        three_digits(out, millis);
        out.push(b'Z');
    }
}

fn three_digits(out: &mut Vec<u8>, n: u16) {
    out.extend_from_slice(&[
        b'0' + (n / 100 % 10) as u8,
        b'0' + (n / 10 % 10) as u8,
        b'0' + (n % 10) as u8,
    ]);
}

fn number(out: &mut Vec<u8>, n: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
}

/// Milliseconds with three digits after the point.
fn millis(out: &mut Vec<u8>, duration: Duration) {
    number(
        out,
        duration
            .as_secs()
            .saturating_mul(1000)
            .saturating_add(u64::from(duration.subsec_millis())),
    );
    out.push(b'.');
    // Fits: below 1000.
    three_digits(out, (duration.subsec_micros() % 1000) as u16);
}

/// `1.2.3.4` without the machinery of `Display`, which costs more than the rest of a line.
fn address(out: &mut Vec<u8>, address: IpAddr) {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            for (index, byte) in v4.octets().into_iter().enumerate() {
                if index > 0 {
                    out.push(b'.');
                }
                number(out, u64::from(byte));
            }
        }
        IpAddr::V6(v6) => {
            use std::io::Write as _;
            // Writing into a Vec cannot fail.
            _ = write!(out, "{v6}");
        }
    }
}

/// The path without its query.
fn without_query(path: &[u8]) -> &[u8] {
    memchr::memchr(b'?', path).map_or(path, |end| &path[..end])
}

const HEX: &[u8; 16] = b"0123456789abcdef";

fn hex(out: &mut Vec<u8>, byte: u8) {
    out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
}

/// Printable ASCII that means nothing in a quoted string.
const fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\'
}

/// [`is_plain`] for all bytes: one load instead of four comparisons.
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        plain[byte] = is_plain(byte as u8);
        byte += 1;
    }
    plain
};

/// As much of a value as is written, and what follows it.
fn cut(value: &[u8]) -> (&[u8], &'static [u8]) {
    if value.len() > MAX_VALUE {
        (&value[..MAX_VALUE], CUT)
    } else {
        (value, b"")
    }
}

/// Copies runs of plain bytes and hands every other byte to `escape`.
fn escaped(out: &mut Vec<u8>, value: &[u8], mut escape: impl FnMut(&mut Vec<u8>, u8)) {
    let (mut rest, end) = cut(value);
    loop {
        let run = rest
            .iter()
            .position(|byte| !PLAIN[usize::from(*byte)])
            .unwrap_or(rest.len());
        out.extend_from_slice(&rest[..run]);
        let Some((byte, after)) = rest[run..].split_first() else {
            break;
        };
        escape(out, *byte);
        rest = after;
    }
    out.extend_from_slice(end);
}

fn text_value(out: &mut Vec<u8>, value: &[u8]) {
    escaped(out, value, |out, byte| match byte {
        b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
        _ => {
            out.extend_from_slice(b"\\x");
            hex(out, byte);
        }
    });
}

fn json_value(out: &mut Vec<u8>, value: &[u8]) {
    if value.is_ascii() {
        return escaped(out, value, json_byte);
    }
    let (value, end) = cut(value);
    for chunk in value.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_ascii() {
                escaped(out, &[c as u8], json_byte);
            } else if c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
                // C1 controls and the marks that turn the direction of writing fool terminals and readers alike.
                let unit = c as u32;
                out.extend_from_slice(b"\\u");
                hex(out, (unit >> 8) as u8);
                hex(out, unit as u8);
            } else {
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        chunk.invalid().iter().for_each(|byte| json_byte(out, *byte));
    }
    out.extend_from_slice(end);
}

fn json_byte(out: &mut Vec<u8>, byte: u8) {
    match byte {
        b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        _ => {
            out.extend_from_slice(b"\\u00");
            hex(out, byte);
        }
    }
}

/// A line of JSON, with its end.
pub(crate) fn json(out: &mut Vec<u8>, date: &mut DateCache, record: &AccessRecord<'_>) {
    // `key` ends with a colon and begins with what separates it from the field before.
    let string = |out: &mut Vec<u8>, key: &str, value: &[u8]| {
        if !value.is_empty() {
            out.extend_from_slice(key.as_bytes());
            out.push(b'"');
            json_value(out, value);
            out.push(b'"');
        }
    };
    // Words of our own need no look at their bytes.
    let word = |out: &mut Vec<u8>, key: &str, value: &str| {
        out.extend_from_slice(key.as_bytes());
        out.push(b'"');
        out.extend_from_slice(value.as_bytes());
        out.push(b'"');
    };
    let count = |out: &mut Vec<u8>, key: &str, value: u64| {
        out.extend_from_slice(key.as_bytes());
        number(out, value);
    };
    let time = |out: &mut Vec<u8>, key: &str, value: Option<Duration>| {
        if let Some(value) = value {
            out.extend_from_slice(key.as_bytes());
            millis(out, value);
        }
    };

    out.extend_from_slice(b"{\"time\":\"");
    date.write(out, record.time);
    out.push(b'"');
    string(out, ",\"request_id\":", record.request_id);
    string(out, ",\"trace_id\":", record.trace_id);
    string(out, ",\"listener\":", record.listener.as_bytes());
    string(out, ",\"route\":", record.route.as_bytes());
    string(out, ",\"cluster\":", record.cluster.as_bytes());
    string(out, ",\"endpoint\":", record.endpoint.as_bytes());
    string(out, ",\"method\":", record.method);
    string(out, ",\"path\":", without_query(record.path));
    string(out, ",\"protocol\":", record.protocol.as_bytes());
    count(out, ",\"status\":", u64::from(record.status));
    if let Some(status) = record.grpc_status {
        count(out, ",\"grpc_status\":", u64::from(status));
    }
    if let Some(reason) = record.reason {
        word(out, ",\"reason\":", reason.name());
    }
    word(out, ",\"terminated_by\":", record.terminated_by.name());
    word(out, ",\"phase\":", record.phase.name());
    count(out, ",\"attempts\":", u64::from(record.attempts));
    if record.hedged {
        out.extend_from_slice(b",\"hedged\":true");
    }
    if let Some(client) = record.client {
        out.extend_from_slice(b",\"client\":\"");
        address(out, client);
        out.push(b'"');
    }
    count(out, ",\"bytes_in\":", record.bytes_in);
    count(out, ",\"bytes_out\":", record.bytes_out);
    string(out, ",\"user_agent\":", record.user_agent);
    time(out, ",\"t_headers\":", record.t_headers);
    time(out, ",\"t_connect\":", record.t_connect);
    time(out, ",\"t_tls\":", record.t_tls);
    time(out, ",\"t_ttfb\":", record.t_ttfb);
    time(out, ",\"t_total\":", Some(record.t_total));
    if !record.fields.is_empty() {
        // Under a key of their own, so that no field can pose as one of ours.
        out.extend_from_slice(b",\"fields\":{");
        for (index, (name, value)) in record.fields.iter().enumerate() {
            out.extend_from_slice(if index > 0 { b",\"" } else { b"\"" });
            json_value(out, name.as_bytes());
            out.extend_from_slice(b"\":\"");
            json_value(out, value);
            out.push(b'"');
        }
        out.push(b'}');
    }
    out.extend_from_slice(b"}\n");
}

/// A line for people, with its end: time, client, request, status, bytes, milliseconds, then `key=value`.
pub(crate) fn text(out: &mut Vec<u8>, date: &mut DateCache, record: &AccessRecord<'_>) {
    let name = |out: &mut Vec<u8>, key: &str, value: &[u8]| {
        if !value.is_empty() {
            out.extend_from_slice(key.as_bytes());
            // Names of the configuration are usually one plain word.
            if value
                .iter()
                .all(|byte| PLAIN[usize::from(*byte)] && *byte != b' ' && *byte != b'=')
            {
                out.extend_from_slice(value.get(..MAX_VALUE).unwrap_or(value));
            } else {
                out.push(b'"');
                text_value(out, value);
                out.push(b'"');
            }
        }
    };
    let time = |out: &mut Vec<u8>, key: &str, value: Option<Duration>| {
        if let Some(value) = value {
            out.extend_from_slice(key.as_bytes());
            millis(out, value);
        }
    };

    date.write(out, record.time);
    out.push(b' ');
    match record.client {
        Some(client) => address(out, client),
        None => out.push(b'-'),
    }
    out.extend_from_slice(b" \"");
    text_value(out, record.method);
    out.push(b' ');
    text_value(out, without_query(record.path));
    out.push(b' ');
    out.extend_from_slice(record.protocol.as_bytes());
    out.extend_from_slice(b"\" ");
    number(out, u64::from(record.status));
    out.push(b' ');
    number(out, record.bytes_out);
    out.push(b' ');
    millis(out, record.t_total);
    out.extend_from_slice(b"ms");
    name(out, " reason=", record.reason.map_or("", Reason::name).as_bytes());
    if record.terminated_by != TerminatedBy::None || record.phase != Phase::Done {
        name(out, " terminated_by=", record.terminated_by.name().as_bytes());
        name(out, " phase=", record.phase.name().as_bytes());
    }
    name(out, " listener=", record.listener.as_bytes());
    name(out, " route=", record.route.as_bytes());
    name(out, " cluster=", record.cluster.as_bytes());
    name(out, " endpoint=", record.endpoint.as_bytes());
    if let Some(status) = record.grpc_status {
        out.extend_from_slice(b" grpc_status=");
        number(out, u64::from(status));
    }
    if record.attempts != 1 {
        out.extend_from_slice(b" attempts=");
        number(out, u64::from(record.attempts));
    }
    if record.hedged {
        out.extend_from_slice(b" hedged");
    }
    if record.bytes_in > 0 {
        out.extend_from_slice(b" bytes_in=");
        number(out, record.bytes_in);
    }
    time(out, " t_headers=", record.t_headers);
    time(out, " t_connect=", record.t_connect);
    time(out, " t_tls=", record.t_tls);
    time(out, " t_ttfb=", record.t_ttfb);
    name(out, " user_agent=", record.user_agent);
    name(out, " id=", record.request_id);
    name(out, " trace=", record.trace_id);
    for (field, value) in record.fields {
        out.push(b' ');
        escaped(out, field.as_bytes(), |out, _| out.push(b'_'));
        name(out, "=", if value.is_empty() { b"-" } else { value });
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> AccessRecord<'static> {
        AccessRecord {
            time: 1_763_836_200_123_456,
            request_id: b"01J9Z3",
            listener: "web",
            route: "api",
            cluster: "app",
            endpoint: "10.0.0.1:8080",
            method: b"GET",
            path: b"/a/b?token=secret",
            protocol: "HTTP/1.1",
            status: 503,
            reason: Some(Reason::NoEndpoint),
            terminated_by: TerminatedBy::Upstream,
            phase: Phase::Queue,
            attempts: 2,
            hedged: true,
            client: Some("::ffff:192.0.2.7".parse().unwrap()),
            bytes_in: 5,
            bytes_out: 1234,
            user_agent: b"curl/8.5 \"x\"",
            t_ttfb: Some(Duration::from_micros(12_045)),
            t_total: Duration::from_micros(1_012_345),
            fields: &[("tenant", b"blue")],
            ..AccessRecord::default()
        }
    }

    fn lines(record: &AccessRecord<'_>) -> (String, String) {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        let mut date = DateCache::default();
        text(&mut a, &mut date, record);
        json(&mut b, &mut date, record);
        (String::from_utf8(a).unwrap(), String::from_utf8(b).unwrap())
    }

    #[test]
    fn a_text_line_reads_like_this() {
        assert_eq!(
            lines(&record()).0,
            "2025-11-22T18:30:00.123Z 192.0.2.7 \"GET /a/b HTTP/1.1\" 503 1234 1012.345ms reason=no_endpoint \
             terminated_by=upstream phase=queue listener=web route=api cluster=app endpoint=10.0.0.1:8080 attempts=2 hedged \
             bytes_in=5 t_ttfb=12.045 user_agent=\"curl/8.5 \\\"x\\\"\" id=01J9Z3 tenant=blue\n"
        );
    }

    #[test]
    fn a_json_line_reads_like_this() {
        assert_eq!(
            lines(&record()).1,
            "{\"time\":\"2025-11-22T18:30:00.123Z\",\"request_id\":\"01J9Z3\",\"listener\":\"web\",\"route\":\"api\",\
             \"cluster\":\"app\",\"endpoint\":\"10.0.0.1:8080\",\"method\":\"GET\",\"path\":\"/a/b\",\
             \"protocol\":\"HTTP/1.1\",\"status\":503,\"reason\":\"no_endpoint\",\"terminated_by\":\"upstream\",\
             \"phase\":\"queue\",\"attempts\":2,\"hedged\":true,\"client\":\"192.0.2.7\",\"bytes_in\":5,\"bytes_out\":1234,\
             \"user_agent\":\"curl/8.5 \\\"x\\\"\",\"t_ttfb\":12.045,\"t_total\":1012.345,\
             \"fields\":{\"tenant\":\"blue\"}}\n"
        );
    }

    #[test]
    fn the_date_changes_with_the_second() {
        let mut date = DateCache::default();
        let mut out = Vec::new();
        for micros in [999_999, 1_000_000, 0, u64::MAX] {
            date.write(&mut out, micros);
            out.push(b' ');
        }
        let text = String::from_utf8(out).unwrap();
        let dates: Vec<&str> = text.split(' ').collect();
        assert_eq!(
            dates[..3],
            [
                "1970-01-01T00:00:00.999Z",
                "1970-01-01T00:00:01.000Z",
                "1970-01-01T00:00:00.000Z"
            ]
        );
        assert!(dates[3].starts_with("9999-"), "{}", dates[3]);
    }

    #[test]
    fn hostile_bytes_stay_inside_their_value() {
        let hostile = "\r\n{\"status\":200}\u{1b}[2J\u{9b}\u{202e}\0é\\".as_bytes();
        let hostile: Vec<u8> = [hostile, b"\xff\xfe"].concat();
        let (text, json) = lines(&AccessRecord {
            user_agent: &hostile,
            ..record()
        });
        assert!(text.contains(
            "\"\\x0d\\x0a{\\\"status\\\":200}\\x1b[2J\\xc2\\x9b\\xe2\\x80\\xae\\x00\\xc3\\xa9\\\\\\xff\\xfe\""
        ));
        assert!(
            json.contains("\"\\r\\n{\\\"status\\\":200}\\u001b[2J\\u009b\\u202e\\u0000é\\\\\\u00ff\\u00fe\"")
        );
    }

    #[test]
    fn long_values_are_cut() {
        let long = vec![b'a'; 100_000];
        let (text, json) = lines(&AccessRecord {
            path: &long,
            user_agent: &long,
            request_id: &long,
            ..record()
        });
        assert!(
            text.len() < 8000 && json.len() < 8000,
            "{} {}",
            text.len(),
            json.len()
        );
    }

    proptest! {
        #[test]
        fn every_record_is_one_line_of_printable_text_and_of_valid_json(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), name in "\\PC{0,20}", micros: u64, status: u16
        ) {
            let fields = [(name.as_str(), bytes.as_slice())];
            let record = AccessRecord {
                time: micros, method: &bytes, path: &bytes, user_agent: &bytes, request_id: &bytes, trace_id: &bytes,
                listener: &name, route: &name, cluster: &name, endpoint: &name, status,
                t_total: Duration::from_micros(micros), t_tls: Some(Duration::from_micros(micros)),
                fields: &fields, ..AccessRecord::default()
            };
            let (text, json) = lines(&record);
            prop_assert_eq!(text.find('\n'), Some(text.len() - 1));
            prop_assert!(text.trim_end().bytes().all(|b| (b' '..=b'~').contains(&b)));
            prop_assert_eq!(json.find('\n'), Some(json.len() - 1));
            prop_assert!(!json.trim_end().chars().any(char::is_control));
            let value: serde_json::Value = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(&value["status"], &serde_json::json!(status));
            if let Ok(valid) = std::str::from_utf8(&bytes) && !bytes.is_empty() {
                prop_assert_eq!(&value["user_agent"], &serde_json::json!(valid));
            }
        }
    }
}
