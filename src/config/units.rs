//! Values that have a form: `250ms`, `64KiB`, `20%`, `100/s`, `host:port`, a regex.
//!
//! Each type's parser is its validation, and its error says what to write instead. Every parser works on the text after
//! `${…}` has been filled in; an error inside the text is mapped back to the place in the YAML where possible.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::diagnostic::{Diagnostic, Span};
use super::interpolate;
use super::suggest;
use super::table::{Cx, Lower, Shown, Type, words};
use super::yaml::{Kind, Node};

/// What a parser says about a text it does not accept.
///
/// Boxed, because a parser that succeeds should not pay for it.
#[derive(Debug)]
pub struct Refusal(Box<Said>);

#[derive(Debug)]
struct Said {
    code: &'static str,
    message: String,
    label: String,
    help: Option<String>,
    note: Option<String>,
    /// Bytes of the text that the caret goes under; all of it when `None`.
    part: Option<(usize, usize)>,
}

impl Refusal {
    fn new(code: &'static str, message: impl Into<String>, label: impl Into<String>) -> Self {
        Self(Box::new(Said {
            code,
            message: message.into(),
            label: label.into(),
            help: None,
            note: None,
            part: None,
        }))
    }

    fn note(mut self, text: impl Into<String>) -> Self {
        self.0.note = Some(text.into());
        self
    }
}

/// A value written as one text.
pub trait Scalar: Sized + Clone + std::fmt::Debug {
    /// For schema, reference and messages.
    fn text_type() -> Type;
    /// From the text.
    ///
    /// # Errors
    /// What to write instead.
    fn parse(text: &str) -> Result<Self, Refusal>;
    /// As it would be written.
    fn written(&self) -> String;
    /// What a range counts.
    const RANGE_UNIT: &'static str = "";
    /// The number a range speaks of.
    fn range_number(&self) -> Option<u32> {
        None
    }
}

/// The text of a node with `${…}` filled in; says what is wrong when it is not a text.
pub fn text(node: &Node, ty: &Type, cx: &mut Cx<'_>) -> Option<String> {
    let Kind::Scalar(scalar) = &node.kind else {
        cx.wrong_shape(node, ty);
        return None;
    };
    interpolate::fill(&scalar.text, scalar.style, node.span, cx)
}

impl<T: Scalar> Lower for T {
    fn ty() -> Type {
        T::text_type()
    }
    fn lower(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let text = text(node, &T::text_type(), cx)?;
        match T::parse(&text) {
            Ok(value) => Some(value),
            Err(Refusal(refusal)) => {
                let at = refusal.part.map_or(node.span, |(from, to)| {
                    interpolate::locate(node, &text, from, to, cx.out)
                });
                let at = super::table::clip(cx.out, at);
                let mut diagnostic = Diagnostic::error(refusal.code, refusal.message).at(at, refusal.label);
                diagnostic.help = refusal.help;
                diagnostic.note = refusal.note;
                cx.out.push(diagnostic);
                None
            }
        }
    }
    fn show(&self) -> Shown {
        Shown::Text(self.written())
    }
    const UNIT: &'static str = T::RANGE_UNIT;
    fn number(&self) -> Option<u32> {
        self.range_number()
    }
}

const fn text_type(noun: &'static str, pattern: &'static str, example: &'static str) -> Type {
    Type::Text {
        noun,
        pattern,
        example,
    }
}

/// Splits `12.5ms` into `12.5` and `ms`.
fn number_and_unit(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    text.split_at(end)
}

// ---- text, numbers, booleans ----------------------------------------------------------------------------------------

impl Scalar for String {
    fn text_type() -> Type {
        text_type("text", "", "text")
    }
    fn parse(text: &str) -> Result<Self, Refusal> {
        Ok(text.to_owned())
    }
    fn written(&self) -> String {
        self.clone()
    }
}

impl Lower for bool {
    fn ty() -> Type {
        Type::Bool
    }
    fn lower(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let text = text(node, &Type::Bool, cx)?;
        let meant = match &*text {
            "true" => return Some(true),
            "false" | "off" => return Some(false),
            "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" | "1" | "enabled"
            | "enable" => "true",
            "False" | "FALSE" | "no" | "No" | "NO" | "Off" | "OFF" | "n" | "N" | "0" | "disabled"
            | "disable" | "none" => "false",
            _ => "true or false",
        };
        let message = format!("`{text}` is not true or false");
        cx.out
            .push(Diagnostic::error("E0313", message).at(node.span, format!("write {meant}")));
        None
    }
    fn show(&self) -> Shown {
        Shown::Text(self.to_string())
    }
}

impl Lower for u32 {
    fn ty() -> Type {
        Type::Int
    }
    fn lower(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let text = text(node, &Type::Int, cx)?;
        let field = cx.field().to_owned();
        let (message, label) = match text.parse::<i128>() {
            Ok(number) => match Self::try_from(number) {
                Ok(number) => return Some(number),
                Err(_) if number < 0 => (
                    format!("`{field}` cannot be {number}"),
                    "write a number of at least 0".to_owned(),
                ),
                Err(_) => (
                    format!("`{field}` cannot be {number}"),
                    format!("write a number up to {}", Self::MAX),
                ),
            },
            Err(_) if text.parse::<f64>().is_ok() => (
                format!("`{text}` is not a whole number"),
                format!("write {:.0}", text.parse::<f64>().unwrap_or(0.0).ceil()),
            ),
            Err(_) => (
                format!("`{text}` is not a number"),
                format!("`{field}` wants a whole number, for example 3"),
            ),
        };
        cx.out
            .push(Diagnostic::error("E0312", message).at(node.span, label));
        None
    }
    fn show(&self) -> Shown {
        Shown::Text(self.to_string())
    }
    fn number(&self) -> Option<u32> {
        Some(*self)
    }
}

/// Any single value, compared as text: `equals:` of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnyValue(pub String);

impl Lower for AnyValue {
    fn ty() -> Type {
        Type::Any
    }
    fn lower(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        text(node, &Type::Any, cx).map(Self)
    }
    fn show(&self) -> Shown {
        Shown::Text(self.0.clone())
    }
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The secret itself.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(***)")
    }
}

impl Lower for Secret {
    fn ty() -> Type {
        String::ty()
    }
    fn lower(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        text(node, &String::ty(), cx).map(Self)
    }
    fn show(&self) -> Shown {
        if self.0.is_empty() {
            Shown::Text(String::new())
        } else {
            Shown::Secret
        }
    }
}

// ---- durations, sizes, percents, rates --------------------------------------------------------------------------------

impl Scalar for Duration {
    const RANGE_UNIT: &'static str = "ms";

    fn range_number(&self) -> Option<u32> {
        Some(u32::try_from(self.as_millis()).unwrap_or(u32::MAX))
    }

    fn text_type() -> Type {
        text_type("duration", "^([0-9]+(\\.[0-9]+)?(us|ms|s|m|h|d))+$", "5s")
    }

    fn parse(text: &str) -> Result<Self, Refusal> {
        let mut nanos: u128 = 0;
        let mut rest = text;
        while !rest.is_empty() {
            let (number, after) = number_and_unit(rest);
            let unit_end = after
                .find(|c: char| !c.is_ascii_alphabetic())
                .unwrap_or(after.len());
            let (unit, next) = after.split_at(unit_end);
            let unit_nanos: u128 = match unit {
                "us" => 1_000,
                "ms" => 1_000_000,
                "s" => 1_000_000_000,
                "m" => 60_000_000_000,
                "h" => 3_600_000_000_000,
                "d" => 86_400_000_000_000,
                _ => return Err(bad_duration(text)),
            };
            nanos = nanos
                .checked_add(decimal(number, unit_nanos).ok_or_else(|| bad_duration(text))?)
                .ok_or_else(|| bad_duration(text))?;
            rest = next;
        }
        // A hundred years: longer is a mistake, and all arithmetic stays far from its limits.
        if text.is_empty() || nanos > 100 * 365 * 86_400 * 1_000_000_000 {
            return Err(bad_duration(text));
        }
        let seconds = u64::try_from(nanos / 1_000_000_000).unwrap_or(u64::MAX);
        let below = u32::try_from(nanos % 1_000_000_000).unwrap_or(0);
        Ok(Self::new(seconds, below))
    }

    fn written(&self) -> String {
        let mut nanos = self.as_nanos();
        if nanos == 0 {
            return "0s".to_owned();
        }
        let mut out = String::new();
        let units = [
            ("d", 86_400_000_000_000_u128),
            ("h", 3_600_000_000_000),
            ("m", 60_000_000_000),
            ("s", 1_000_000_000),
            ("ms", 1_000_000),
            ("us", 1_000),
        ];
        for (unit, size) in units {
            if nanos >= size {
                out.push_str(&format!("{}{unit}", nanos / size));
                nanos %= size;
            }
        }
        out
    }
}

/// `12.5` times `unit`, exactly.
fn decimal(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > 9 || number.len() > 24 || number.ends_with('.') {
        return None;
    }
    let mut value = whole.parse::<u128>().ok()?.checked_mul(unit)?;
    if !fraction.is_empty() {
        let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        value = value.checked_add(fraction.parse::<u128>().ok()?.checked_mul(unit)? / scale)?;
    }
    Some(value)
}

fn bad_duration(text: &str) -> Refusal {
    const UNITS: &str = "units: us ms s m h d";
    let trimmed = text.trim();
    if let Some(positive) = trimmed.strip_prefix('-') {
        return Refusal::new(
            "E0301",
            format!("a duration cannot be negative: `{text}`"),
            format!("write `{positive}`, or `off` where that is allowed"),
        );
    }
    if !trimmed.is_empty() && trimmed.parse::<f64>().is_ok() {
        if trimmed.parse::<f64>().is_ok_and(|number| number == 0.0) {
            let label = "write a time such as `5s`, or `off` where that is allowed";
            return Refusal::new("E0301", format!("duration `{text}` has no unit"), label);
        }
        let label = format!("write `{trimmed}s` or `{trimmed}ms`");
        return Refusal::new("E0301", format!("duration `{text}` has no unit"), label);
    }
    // ISO 8601: PT1M30S.
    if let Some(iso) = trimmed.strip_prefix("PT") {
        let fixed = iso.to_ascii_lowercase();
        if Duration::parse(&fixed).is_ok() {
            return Refusal::new(
                "E0301",
                format!("`{text}` is not a duration"),
                format!("write `{fixed}` ({UNITS})"),
            );
        }
    }
    let mut fixed = String::new();
    let mut rest = trimmed;
    while !rest.is_empty() {
        let (number, after) = number_and_unit(rest);
        let after = after.trim_start();
        let end = after.find(|c: char| !c.is_alphabetic()).unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let unit = match unit.to_lowercase().as_str() {
            "us" | "µs" | "usec" | "micros" | "microseconds" => "us",
            "ms" | "msec" | "millis" | "millisecond" | "milliseconds" => "ms",
            "s" | "sec" | "secs" | "second" | "seconds" => "s",
            "m" | "min" | "mins" | "minute" | "minutes" => "m",
            "h" | "hr" | "hrs" | "hour" | "hours" => "h",
            "d" | "day" | "days" => "d",
            _ => "",
        };
        if unit.is_empty() || number.is_empty() {
            fixed.clear();
            break;
        }
        fixed.push_str(number);
        fixed.push_str(unit);
        rest = next.trim_start_matches([' ', ',']);
    }
    let label = if fixed.is_empty() || fixed == text {
        format!("write for example `5s` or `1m30s` ({UNITS})")
    } else {
        format!("write `{fixed}` ({UNITS})")
    };
    Refusal::new("E0301", format!("`{text}` is not a duration"), label)
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
    ("B", 1),
];

impl Scalar for Size {
    fn text_type() -> Type {
        text_type(
            "size",
            "^[0-9]+(\\.[0-9]+)?(B|KB|KiB|MB|MiB|GB|GiB|TB|TiB)$",
            "64KiB",
        )
    }

    fn parse(text: &str) -> Result<Self, Refusal> {
        let (number, unit) = number_and_unit(text);
        let refuse = |label: String| Refusal::new("E0302", format!("`{text}` is not a size"), label);
        if let Some((_, bytes)) = SIZE_UNITS.iter().find(|(name, _)| *name == unit) {
            let bytes = decimal(number, u128::from(*bytes)).and_then(|bytes| u64::try_from(bytes).ok());
            return bytes
                .filter(|bytes| *bytes <= 1 << 50)
                .map(Self)
                .ok_or_else(|| refuse("write for example `64KiB`".to_owned()));
        }
        if text.starts_with('-') {
            return Err(refuse("a size cannot be negative".to_owned()));
        }
        if number.is_empty() {
            return Err(refuse("write for example `64KiB` or `10MiB`".to_owned()));
        }
        Err(match unit.trim() {
            "" => Refusal::new(
                "E0302",
                format!("size `{text}` has no unit"),
                format!("write `{number}KiB`, `{number}MiB` or `{number}B`"),
            ),
            "m" => refuse(format!("`m` is minutes; for mebibytes write `{number}MiB`")),
            "k" | "K" => refuse(format!("write `{number}KiB` (1024) or `{number}KB` (1000)")),
            "M" => refuse(format!(
                "write `{number}MiB` (1024 * 1024) or `{number}MB` (1000 * 1000)"
            )),
            "g" | "G" => refuse(format!("write `{number}GiB` or `{number}GB`")),
            other => {
                let known = SIZE_UNITS
                    .iter()
                    .find(|(name, _)| name.eq_ignore_ascii_case(other));
                let unit = known.map_or("KiB", |(name, _)| name);
                refuse(format!("write `{number}{unit}` (units: B KB KiB MB MiB GB GiB)"))
            }
        })
    }

    fn written(&self) -> String {
        if self.0 == 0 {
            return "0B".to_owned();
        }
        let unit = SIZE_UNITS
            .iter()
            .filter(|(name, _)| name.ends_with("iB") || *name == "B")
            .find(|(_, size)| self.0.is_multiple_of(*size));
        unit.map_or_else(
            || format!("{}B", self.0),
            |(name, size)| format!("{}{name}", self.0 / size),
        )
    }
}

/// A share from 0 % to 100 %, exact to a ten-thousandth of a percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percent {
    /// Parts per million: 1 000 000 is 100 %.
    pub ppm: u32,
}

impl Percent {
    /// As a number from 0 to 1.
    #[must_use]
    pub fn fraction(self) -> f64 {
        f64::from(self.ppm) / 1e6
    }
}

impl Scalar for Percent {
    fn text_type() -> Type {
        text_type("percentage", "^[0-9]+(\\.[0-9]+)?%$", "5%")
    }

    fn parse(text: &str) -> Result<Self, Refusal> {
        let trimmed = text.trim();
        if let Some(number) = trimmed.strip_suffix('%') {
            let number = number.trim();
            if number.starts_with('-') {
                return Err(Refusal::new(
                    "E0303",
                    format!("a percentage cannot be negative: `{text}`"),
                    "write 0% to 100%",
                ));
            }
            if let Some(ppm) = decimal(number, 10_000) {
                if ppm > 1_000_000 {
                    return Err(Refusal::new(
                        "E0303",
                        format!("`{text}` is more than everything"),
                        "write 0% to 100%",
                    ));
                }
                if text.contains(' ') {
                    return Err(Refusal::new(
                        "E0303",
                        format!("`{text}` is not a percentage"),
                        format!("write `{number}%`"),
                    ));
                }
                return Ok(Self {
                    ppm: u32::try_from(ppm).unwrap_or(1_000_000),
                });
            }
        }
        if let Ok(number) = trimmed.parse::<f64>() {
            let label = if number < 0.0 {
                "write 0% to 100%".to_owned()
            } else if number > 0.0 && number < 1.0 {
                let percent = format!("{:.4}", number * 100.0);
                format!(
                    "write `{}%` (or `{trimmed}%`, if you mean that little)",
                    percent.trim_end_matches('0').trim_end_matches('.')
                )
            } else {
                format!("write `{trimmed}%`")
            };
            return Err(Refusal::new(
                "E0303",
                format!("percentage `{text}` has no `%`"),
                label,
            ));
        }
        Err(Refusal::new(
            "E0303",
            format!("`{text}` is not a percentage"),
            "write for example `5%`",
        ))
    }

    fn written(&self) -> String {
        let (whole, below) = (self.ppm / 10_000, self.ppm % 10_000);
        if below == 0 {
            format!("{whole}%")
        } else {
            format!("{whole}.{}%", format!("{below:04}").trim_end_matches('0'))
        }
    }
}

/// So many per time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    /// How many.
    pub count: u32,
    /// Per second, minute or hour.
    pub per: Duration,
}

impl Scalar for Rate {
    fn text_type() -> Type {
        text_type("rate", "^[0-9]+/(s|m|h)$", "100/s")
    }

    fn parse(text: &str) -> Result<Self, Refusal> {
        let (number, unit) = number_and_unit(text);
        let per = match unit {
            "/s" => 1,
            "/m" => 60,
            "/h" => 3600,
            _ => 0,
        };
        if per > 0
            && let Ok(count) = number.parse::<u32>()
        {
            if count == 0 {
                return Err(Refusal::new(
                    "E0304",
                    format!("`{text}` lets nothing through"),
                    "write at least `1/h`",
                ));
            }
            return Ok(Self {
                count,
                per: Duration::from_secs(per),
            });
        }
        let number = if number.is_empty() { "100" } else { number };
        let unit = match unit.trim().trim_start_matches('/').trim() {
            "m" | "min" | "minute" | "rpm" => "m",
            "h" | "hour" => "h",
            _ => "s",
        };
        let label = format!("write `{number}/{unit}` (units: /s /m /h)");
        Err(Refusal::new("E0304", format!("`{text}` is not a rate"), label))
    }

    fn written(&self) -> String {
        let unit = match self.per.as_secs() {
            3600 => "h",
            60 => "m",
            _ => "s",
        };
        format!("{}/{unit}", self.count)
    }
}

// ---- addresses ----------------------------------------------------------------------------------------------------

/// Where to listen or connect.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// An address of the machine, or all of them.
    Tcp {
        /// `None` for all interfaces.
        host: Option<Host>,
        /// 0 for any free port.
        port: u16,
    },
    /// A unix domain socket.
    Unix(PathBuf),
}

/// The host of an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A number.
    Ip(IpAddr),
    /// A name to resolve.
    Name(String),
}

impl Address {
    /// The socket address, when the host is a number; `[::]` (which includes IPv4) for all interfaces.
    #[must_use]
    pub fn socket(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp {
                host: Some(Host::Ip(ip)),
                port,
            } => Some(SocketAddr::new(*ip, *port)),
            Self::Tcp { host: None, port } => {
                Some(SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), *port))
            }
            Self::Tcp { .. } | Self::Unix(_) => None,
        }
    }

    /// True when only this machine can reach it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp {
                host: Some(Host::Ip(ip)),
                ..
            } => ip.is_loopback(),
            Self::Tcp {
                host: Some(Host::Name(name)),
                ..
            } => name == "localhost",
            Self::Tcp { host: None, .. } => false,
            Self::Unix(_) => true,
        }
    }
}

impl Scalar for Address {
    fn text_type() -> Type {
        text_type("address", "", "127.0.0.1:8080")
    }

    fn parse(text: &str) -> Result<Self, Refusal> {
        let refuse = |label: String| Refusal::new("E0306", format!("`{text}` is not an address"), label);
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err(refuse("write `unix:/run/app.sock`".to_owned()));
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            let bare = rest.trim_end_matches('/');
            let hint = if scheme == "https" {
                ", and `tls: true` for https"
            } else {
                ""
            };
            let bare = if bare.contains(':') {
                bare.to_owned()
            } else {
                format!("{bare}:{}", if scheme == "https" { 443 } else { 80 })
            };
            return Err(refuse(format!(
                "write `{bare}` (the scheme belongs to `tls:`{hint})"
            )));
        }
        if text.starts_with('/') {
            return Err(refuse(format!("write `unix:{text}` for a socket file")));
        }
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let Some((ip, port)) = rest.split_once(']') else {
                return Err(refuse("the `[` is never closed: write \"[::1]:8080\"".to_owned()));
            };
            let Ok(ip) = ip.parse::<std::net::Ipv6Addr>() else {
                return Err(refuse(format!("`{ip}` is not an IPv6 address")));
            };
            let Some(port) = port.strip_prefix(':') else {
                return Err(refuse(format!("no port: write \"[{ip}]:8080\"")));
            };
            (Some(Host::Ip(ip.into())), port)
        } else {
            if let Some((ip, port)) = text.rsplit_once(':')
                && ip.parse::<std::net::Ipv6Addr>().is_ok()
                && port.parse::<u16>().is_ok_and(|port| port > 9)
            {
                return Err(refuse(format!("IPv6 needs brackets: write \"[{ip}]:{port}\"")));
            }
            if text.parse::<std::net::Ipv6Addr>().is_ok() {
                return Err(refuse(format!(
                    "IPv6 needs brackets and a port: write \"[{text}]:8080\""
                )));
            }
            let Some((host, port)) = text.rsplit_once(':') else {
                if text.parse::<u32>().is_ok() {
                    return Err(refuse(format!(
                        "write `:{text}` for all interfaces, or `127.0.0.1:{text}`"
                    )));
                }
                return Err(refuse(format!("no port: write `{text}:8080`")));
            };
            if host.contains(':') {
                return Err(refuse(format!("IPv6 needs brackets: write \"[{host}]:{port}\"")));
            }
            (parse_host(host).map_err(refuse)?, port)
        };
        match port.parse::<u32>() {
            Ok(number) => match u16::try_from(number) {
                Ok(port) => Ok(Self::Tcp { host, port }),
                Err(_) => {
                    let from = text.len() - port.len();
                    let mut refusal = Refusal::new(
                        "E0306",
                        format!("port {port} does not exist"),
                        "ports are 1 to 65535",
                    );
                    refusal.0.part = Some((from, text.len()));
                    Err(refusal)
                }
            },
            Err(_) if port.is_empty() => Err(refuse("no port after the `:`".to_owned())),
            Err(_) => Err(refuse(format!(
                "`{port}` is not a port: write for example `:8080`"
            ))),
        }
    }

    fn written(&self) -> String {
        match self {
            Self::Tcp { host: None, port } => format!(":{port}"),
            Self::Tcp {
                host: Some(Host::Ip(IpAddr::V6(ip))),
                port,
            } => format!("[{ip}]:{port}"),
            Self::Tcp {
                host: Some(Host::Ip(ip)),
                port,
            } => format!("{ip}:{port}"),
            Self::Tcp {
                host: Some(Host::Name(name)),
                port,
            } => format!("{name}:{port}"),
            Self::Unix(path) => format!("unix:{}", path.display()),
        }
    }
}

fn parse_host(host: &str) -> Result<Option<Host>, String> {
    if host.is_empty() {
        return Ok(None);
    }
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(Some(Host::Ip(ip)));
    }
    if host == "*" {
        return Err("all interfaces are written `:PORT`".to_owned());
    }
    if host.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return Err(format!("`{host}` is not an IPv4 address"));
    }
    if let Some(bad) = host
        .chars()
        .find(|c| !(c.is_ascii_alphanumeric() || *c == '-' || *c == '.'))
    {
        let why = if bad == '_' {
            "a host name has no `_`"
        } else {
            "a host name has letters, digits, `-` and `.` only"
        };
        return Err(format!("{why}: `{host}`"));
    }
    if host.len() > 253
        || host
            .split('.')
            .any(|label| label.len() > 63 || label.starts_with('-') || label.ends_with('-'))
    {
        return Err(format!("`{host}` is not a host name"));
    }
    Ok(Some(Host::Name(host.to_ascii_lowercase())))
}

/// A block of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr(pub ipnet::IpNet);

impl Lower for Cidr {
    fn ty() -> Type {
        text_type("address block", "", "10.0.0.0/8")
    }
    fn lower(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let text = text(node, &Self::ty(), cx)?;
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Some(Self(ipnet::IpNet::from(ip)));
        }
        match text.parse::<ipnet::IpNet>() {
            Ok(net) => {
                if net.addr() != net.network() {
                    cx.out.push(
                        Diagnostic::warning("E0308", format!("`{text}` has bits set beyond its length"))
                            .at(node.span, format!("did you mean {}?", net.trunc())),
                    );
                }
                Some(Self(net.trunc()))
            }
            Err(_) => {
                let label = match text.split_once('/') {
                    Some((ip, _)) if ip.parse::<std::net::Ipv4Addr>().is_ok() => {
                        "the length after `/` is 0 to 32".to_owned()
                    }
                    Some((ip, _)) if ip.parse::<std::net::Ipv6Addr>().is_ok() => {
                        "the length after `/` is 0 to 128".to_owned()
                    }
                    _ => "write for example `10.0.0.0/8` or `fd00::/8`".to_owned(),
                };
                cx.out.push(
                    Diagnostic::error("E0308", format!("`{text}` is not an address block"))
                        .at(node.span, label),
                );
                None
            }
        }
    }
    fn show(&self) -> Shown {
        Shown::Text(self.0.to_string())
    }
}

// ---- words of HTTP --------------------------------------------------------------------------------------------------

/// What to group requests by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RequestKey {
    /// The client's address, after `trusted_proxies`.
    ClientIp,
    /// The host.
    Host,
    /// The path.
    Path,
    /// All requests of the route.
    Route,
    /// The name in the client's certificate.
    TlsPeer,
    /// A header, lower case.
    Header(String),
    /// A cookie.
    Cookie(String),
    /// A query parameter.
    Query(String),
}

impl Scalar for RequestKey {
    fn text_type() -> Type {
        text_type(
            "key",
            "^(client_ip|host|path|route|tls_peer|(header|cookie|query):.+)$",
            "client_ip",
        )
    }
    fn parse(text: &str) -> Result<Self, Refusal> {
        const LIST: &str =
            "keys: client_ip, host, path, route, tls_peer, header:NAME, cookie:NAME, query:NAME";
        Ok(match text {
            "client_ip" => Self::ClientIp,
            "host" => Self::Host,
            "path" => Self::Path,
            "route" => Self::Route,
            "tls_peer" => Self::TlsPeer,
            _ => {
                let (kind, name) = text.split_once(':').unwrap_or((text, ""));
                let known = matches!(kind, "header" | "cookie" | "query");
                if known && name.is_empty() {
                    let label = format!("name it: `{kind}:NAME`");
                    return Err(Refusal::new("E0311", format!("`{text}` has no name"), label).note(LIST));
                }
                match kind {
                    "header" if is_token(name) => Self::Header(name.to_ascii_lowercase()),
                    "header" => {
                        return Err(Refusal::new(
                            "E0311",
                            format!("`{name}` is not a header name"),
                            "letters, digits and `-`",
                        ));
                    }
                    "cookie" => Self::Cookie(name.to_owned()),
                    "query" => Self::Query(name.to_owned()),
                    _ => {
                        let known = [
                            "client_ip",
                            "host",
                            "path",
                            "route",
                            "tls_peer",
                            "header:",
                            "cookie:",
                            "query:",
                        ];
                        let label = match text {
                            "ip" | "remote_addr" | "source_ip" | "src" => {
                                "did you mean `client_ip`?".to_owned()
                            }
                            _ => suggest::nearest(text, known)
                                .map_or_else(String::new, |word| format!("did you mean `{word}`?")),
                        };
                        return Err(Refusal::new("E0311", format!("`{text}` is not a key"), label).note(LIST));
                    }
                }
            }
        })
    }
    fn written(&self) -> String {
        match self {
            Self::ClientIp => "client_ip".to_owned(),
            Self::Host => "host".to_owned(),
            Self::Path => "path".to_owned(),
            Self::Route => "route".to_owned(),
            Self::TlsPeer => "tls_peer".to_owned(),
            Self::Header(name) => format!("header:{name}"),
            Self::Cookie(name) => format!("cookie:{name}"),
            Self::Query(name) => format!("query:{name}"),
        }
    }
}

/// RFC 9110 §5.6.2.
#[must_use]
pub fn is_token(text: &str) -> bool {
    let special = |b: u8| b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || special(b))
}

/// A header name, lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HeaderName(pub String);

impl Scalar for HeaderName {
    fn text_type() -> Type {
        text_type("header name", "", "x-tenant")
    }
    fn parse(text: &str) -> Result<Self, Refusal> {
        let refuse = |label: String| Refusal::new("E0314", format!("`{text}` is not a header name"), label);
        if text.starts_with(':') {
            return Err(refuse(
                "pseudo headers cannot be named here; `host`, `path` and `method` have their own keys"
                    .to_owned(),
            ));
        }
        if text.ends_with(':') {
            return Err(refuse(format!(
                "write `{}` without the colon",
                text.trim_end_matches(':')
            )));
        }
        if !is_token(text) {
            return Err(refuse(
                "a header name has letters, digits and `-`, no spaces".to_owned(),
            ));
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
    fn written(&self) -> String {
        self.0.clone()
    }
}

/// A method.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Method(pub String);

impl Scalar for Method {
    fn text_type() -> Type {
        text_type("method", "^[A-Z-]+$", "GET")
    }
    fn parse(text: &str) -> Result<Self, Refusal> {
        if !is_token(text) {
            return Err(Refusal::new(
                "E0305",
                format!("`{text}` is not a method"),
                "write for example `GET`",
            ));
        }
        if text.bytes().any(|b| b.is_ascii_lowercase()) {
            let upper = text.to_ascii_uppercase();
            return Err(Refusal::new(
                "E0305",
                format!("`{text}` is not a method"),
                format!("write `{upper}` (methods are upper case)"),
            ));
        }
        Ok(Self(text.to_owned()))
    }
    fn written(&self) -> String {
        self.0.clone()
    }
}

/// Which methods: a name, or a set that has a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum MethodSet {
    /// RFC 9110 §9.2.2.
    Idempotent,
    /// Every method.
    All,
    /// One.
    One(String),
}

impl Scalar for MethodSet {
    fn text_type() -> Type {
        text_type(
            "method, `idempotent` or `all`",
            "^(idempotent|all|[A-Z-]+)$",
            "GET",
        )
    }
    fn parse(text: &str) -> Result<Self, Refusal> {
        match text {
            "idempotent" => Ok(Self::Idempotent),
            "all" | "any" | "*" if text != "all" => Err(Refusal::new(
                "E0305",
                format!("`{text}` is not a method"),
                "write `all` for every method",
            )),
            "all" => Ok(Self::All),
            _ => Method::parse(text).map(|method| Self::One(method.0)),
        }
    }
    fn written(&self) -> String {
        match self {
            Self::Idempotent => "idempotent".to_owned(),
            Self::All => "all".to_owned(),
            Self::One(method) => method.clone(),
        }
    }
}

/// One status or a range of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Statuses {
    /// First.
    pub from: u16,
    /// Last, included.
    pub to: u16,
}

impl Statuses {
    /// True when the status is one of them.
    #[must_use]
    pub const fn contains(self, status: u16) -> bool {
        self.from <= status && status <= self.to
    }
}

impl Scalar for Statuses {
    fn text_type() -> Type {
        text_type(
            "status",
            "^([1-5][0-9][0-9](-[1-5][0-9][0-9])?|[1-5][xX][xX])$",
            "503",
        )
    }
    fn parse(text: &str) -> Result<Self, Refusal> {
        const RANGE: &str = "statuses are 100 to 599; write `503`, \"500-599\" or \"5xx\"";
        let refuse = || Refusal::new("E0309", format!("`{text}` is not a status"), RANGE);
        let status = |text: &str| {
            text.trim()
                .parse::<u16>()
                .ok()
                .filter(|status| (100..=599).contains(status))
        };
        if let Some(hundred) = text.strip_suffix("xx").or_else(|| text.strip_suffix("XX")) {
            let hundred = hundred
                .parse::<u16>()
                .ok()
                .filter(|h| (1..=5).contains(h))
                .ok_or_else(refuse)?;
            return Ok(Self {
                from: hundred * 100,
                to: hundred * 100 + 99,
            });
        }
        if let Some((from, to)) = text.split_once('-') {
            let (from, to) = (status(from).ok_or_else(refuse)?, status(to).ok_or_else(refuse)?);
            if from > to {
                return Err(Refusal::new(
                    "E0309",
                    format!("`{text}` is empty"),
                    format!("write \"{to}-{from}\""),
                ));
            }
            return Ok(Self { from, to });
        }
        let status = status(text).ok_or_else(refuse)?;
        Ok(Self {
            from: status,
            to: status,
        })
    }
    fn written(&self) -> String {
        if self.from == self.to {
            self.from.to_string()
        } else {
            format!("{}-{}", self.from, self.to)
        }
    }
}

/// The names of gRPC's status codes, by number.
pub const GRPC_STATUS: [&str; 17] = [
    "ok",
    "cancelled",
    "unknown",
    "invalid_argument",
    "deadline_exceeded",
    "not_found",
    "already_exists",
    "permission_denied",
    "resource_exhausted",
    "failed_precondition",
    "aborted",
    "out_of_range",
    "unimplemented",
    "internal",
    "unavailable",
    "data_loss",
    "unauthenticated",
];

/// A gRPC status by name or number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GrpcStatus(pub u8);

impl Scalar for GrpcStatus {
    fn text_type() -> Type {
        text_type("gRPC status", "", "unavailable")
    }
    fn parse(text: &str) -> Result<Self, Refusal> {
        let lower = text.to_ascii_lowercase();
        let by_name = GRPC_STATUS.iter().position(|name| *name == lower);
        let code = by_name
            .or_else(|| text.parse::<usize>().ok())
            .filter(|code| *code < GRPC_STATUS.len());
        match code.and_then(|code| u8::try_from(code).ok()) {
            Some(code) => Ok(Self(code)),
            None => {
                let near = suggest::nearest(&lower, GRPC_STATUS);
                let label = near.map_or_else(String::new, |word| format!("did you mean `{word}`?"));
                Err(
                    Refusal::new("E0305", format!("`{text}` is not a gRPC status"), label)
                        .note(format!("statuses: {}", GRPC_STATUS.join(", "))),
                )
            }
        }
    }
    fn written(&self) -> String {
        GRPC_STATUS
            .get(usize::from(self.0))
            .map_or_else(String::new, |name| (*name).to_owned())
    }
}

words! {
    /// A failure that may be retried.
    RetryCondition: "retry condition", "conditions" {
        ConnectFailure = "connect_failure", RefusedStream = "refused_stream", Reset = "reset",
        GatewayError = "gateway_error", PerTryTimeout = "per_try_timeout", FiveXx = "5xx", NotLeader = "not_leader",
    }
}

/// What to retry on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RetryOn {
    /// A named failure.
    Condition(RetryCondition),
    /// An answer with one of these statuses.
    Status(Statuses),
    /// A gRPC status.
    Grpc(GrpcStatus),
}

impl Scalar for RetryOn {
    fn text_type() -> Type {
        text_type("retry condition, status or `grpc:NAME`", "", "gateway_error")
    }
    fn parse(text: &str) -> Result<Self, Refusal> {
        use RetryCondition as C;
        let all = [
            C::ConnectFailure,
            C::RefusedStream,
            C::Reset,
            C::GatewayError,
            C::PerTryTimeout,
            C::FiveXx,
            C::NotLeader,
        ];
        if let Some(condition) = all.into_iter().find(|condition| condition.word() == text) {
            return Ok(Self::Condition(condition));
        }
        if let Some(name) = text.strip_prefix("grpc:") {
            return GrpcStatus::parse(name).map(Self::Grpc);
        }
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            return Statuses::parse(text).map(Self::Status);
        }
        let near = suggest::nearest(text, RetryCondition::WORDS.iter().copied());
        let label = near.map_or_else(String::new, |word| format!("did you mean `{word}`?"));
        Err(
            Refusal::new("E0305", format!("`{text}` is not a retry condition"), label).note(format!(
                "conditions: {}, a status, grpc:NAME",
                RetryCondition::WORDS.join(", ")
            )),
        )
    }
    fn written(&self) -> String {
        match self {
            Self::Condition(condition) => condition.word().to_owned(),
            Self::Status(statuses) => statuses.written(),
            Self::Grpc(status) => format!("grpc:{}", status.written()),
        }
    }
}

/// An absolute path of a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UrlPath(pub String);

impl Scalar for UrlPath {
    fn text_type() -> Type {
        text_type("path", "^/", "/healthz")
    }
    fn parse(text: &str) -> Result<Self, Refusal> {
        if !text.starts_with('/') {
            let bare = text.rsplit("://").next().unwrap_or(text);
            let bare = if text.contains("://") {
                bare.split_once('/').map_or("", |(_, path)| path)
            } else {
                bare
            };
            return Err(Refusal::new(
                "E0316",
                format!("`{text}` is not a path"),
                format!("write `/{bare}`"),
            ));
        }
        if let Some(at) = text.find(|c: char| c.is_ascii_control() || c == ' ' || c == '#') {
            let mut refusal = Refusal::new(
                "E0316",
                format!("`{text}` is not a path"),
                "this cannot stand in a path; percent-encode it",
            );
            refusal.0.part = Some((at, at + 1));
            return Err(refusal);
        }
        Ok(Self(text.to_owned()))
    }
    fn written(&self) -> String {
        self.0.clone()
    }
}

/// A host to match: exact, or `*.example.com`; lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPattern(pub String);

impl Scalar for HostPattern {
    fn text_type() -> Type {
        text_type("host", "", "shop.example")
    }
    fn parse(text: &str) -> Result<Self, Refusal> {
        let refuse = |label: String| Refusal::new("E0306", format!("`{text}` is not a host"), label);
        if text.is_empty() {
            return Err(refuse("write for example shop.example".to_owned()));
        }
        if let Some((_, rest)) = text.split_once("://") {
            return Err(refuse(format!(
                "write `{}` (no scheme, no path)",
                rest.split('/').next().unwrap_or(rest)
            )));
        }
        let name = text.strip_prefix("*.").unwrap_or(text);
        if name.contains('*') {
            let label = if text == "*" {
                "every host matches without `host:`; remove the line"
            } else {
                "a `*` can only stand first, as in \"*.example.com\""
            };
            return Err(refuse(label.to_owned()));
        }
        if let Some((host, port)) = name.rsplit_once(':')
            && !host.contains(':')
            && port.bytes().all(|b| b.is_ascii_digit())
        {
            return Err(refuse(format!(
                "write `{}` (the port of a request is not compared)",
                text.trim_end_matches(port).trim_end_matches(':')
            )));
        }
        if text.contains(['/', ' ', '\t']) {
            return Err(refuse("a host has letters, digits, `-` and `.`".to_owned()));
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
    fn written(&self) -> String {
        self.0.clone()
    }
}

/// A regex that must match the whole value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pattern(pub String);

impl Scalar for Pattern {
    fn text_type() -> Type {
        text_type("regex", "", "/api/v[0-9]+/.*")
    }
    fn parse(text: &str) -> Result<Self, Refusal> {
        let syntax = regex_syntax::Parser::new().parse(text);
        let (what, span): (String, Option<(usize, usize)>) = match &syntax {
            Ok(_) => match regex::Regex::new(text) {
                Ok(_) => return Ok(Self(text.to_owned())),
                Err(regex::Error::CompiledTooBig(limit)) => {
                    (format!("it needs more than {limit} bytes when compiled"), None)
                }
                Err(other) => (other.to_string().lines().last().unwrap_or("").to_owned(), None),
            },
            Err(regex_syntax::Error::Parse(error)) => (
                error.kind().to_string(),
                Some((error.span().start.offset, error.span().end.offset)),
            ),
            Err(regex_syntax::Error::Translate(error)) => (
                error.kind().to_string(),
                Some((error.span().start.offset, error.span().end.offset)),
            ),
            Err(other) => (other.to_string(), None),
        };
        let (label, help) = explain_regex(&what);
        let mut refusal = Refusal::new("E0307", format!("the regex does not compile: {what}"), label);
        refusal.0.part = span.map(|(from, to)| (from, to.max(from + 1)));
        refusal.0.help = help.map(str::to_owned);
        Err(refusal)
    }
    fn written(&self) -> String {
        self.0.clone()
    }
}

fn explain_regex(what: &str) -> (&'static str, Option<&'static str>) {
    match what {
        "unclosed group" => (
            "this group is never closed",
            Some("a literal bracket is written `\\(`"),
        ),
        "unopened group" => (
            "nothing is opened that this could close",
            Some("a literal bracket is written `\\)`"),
        ),
        "unclosed character class" => (
            "this class is never closed",
            Some("a literal bracket is written `\\[`"),
        ),
        "repetition operator missing expression" => (
            "there is nothing before this to repeat",
            Some("a literal sign is written with a backslash: `\\*`"),
        ),
        _ if what.contains("look-around") => (
            "look-around is not supported",
            Some("use two routes: the exception first, then the rule"),
        ),
        _ if what.contains("backreferences") => ("backreferences are not supported", None),
        _ if what.contains("escape") => (
            "no such escape",
            Some("a literal backslash is written `\\\\`; use single quotes around the value"),
        ),
        _ => ("here", None),
    }
}

/// Where to find a value in an answer: a JSON pointer or a header.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pointer {
    /// RFC 6901.
    Json(String),
    /// A header, lower case.
    Header(String),
}

impl Scalar for Pointer {
    fn text_type() -> Type {
        text_type("JSON pointer", "^(/|header:)", "/role")
    }
    fn parse(text: &str) -> Result<Self, Refusal> {
        if let Some(name) = text.strip_prefix("header:") {
            return HeaderName::parse(name).map(|name| Self::Header(name.0));
        }
        if text.starts_with('/') {
            return Ok(Self::Json(text.to_owned()));
        }
        let fixed = text.trim_start_matches("$.").replace('.', "/");
        Err(Refusal::new(
            "E0315",
            format!("`{text}` is not a JSON pointer"),
            format!("write `/{fixed}`"),
        ))
    }
    fn written(&self) -> String {
        match self {
            Self::Json(pointer) => pointer.clone(),
            Self::Header(name) => format!("header:{name}"),
        }
    }
}

/// An `http://` or `https://` URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Url(pub String);

impl Scalar for Url {
    fn text_type() -> Type {
        text_type("URL", "^[a-z]+://", "http://catalog.internal/endpoints")
    }
    fn parse(text: &str) -> Result<Self, Refusal> {
        let refuse = |label: String| Refusal::new("E0306", format!("`{text}` is not a URL"), label);
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(refuse(format!("write `http://{text}`")));
        };
        if !matches!(scheme, "http" | "https" | "grpc" | "redis" | "rediss") {
            return Err(refuse(format!("`{scheme}` is not a scheme that is known here")));
        }
        if rest.is_empty() || rest.starts_with('/') || rest.contains(' ') {
            return Err(refuse("there is no host in it".to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
    fn written(&self) -> String {
        self.0.clone()
    }
}

/// How old a replica may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staleness {
    /// In time.
    Time(Duration),
    /// In bytes of log.
    Bytes(Size),
    /// In positions.
    Positions(u32),
}

impl Scalar for Staleness {
    fn text_type() -> Type {
        text_type("duration, size or number of positions", "", "2s")
    }
    fn parse(text: &str) -> Result<Self, Refusal> {
        if let Ok(number) = text.parse::<u32>() {
            return Ok(Self::Positions(number));
        }
        if text.ends_with('B') {
            return Size::parse(text).map(Self::Bytes);
        }
        Duration::parse(text).map(Self::Time)
    }
    fn written(&self) -> String {
        match self {
            Self::Time(time) => time.written(),
            Self::Bytes(size) => size.written(),
            Self::Positions(number) => number.to_string(),
        }
    }
}

/// One of some words, or a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WordOr<W, T> {
    /// The word.
    Word(W),
    /// The value.
    Value(T),
}

impl<W: Lower, T: Lower> Lower for WordOr<W, T> {
    const UNIT: &'static str = T::UNIT;
    fn ty() -> Type {
        Type::Either(Box::new(T::ty()), Box::new(W::ty()))
    }
    fn lower(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let is_word = match (W::ty(), &node.kind) {
            (Type::Words(words), Kind::Scalar(scalar)) => words.contains(&&*scalar.text),
            _ => false,
        };
        if is_word {
            W::lower(node, cx).map(Self::Word)
        } else {
            T::lower(node, cx).map(Self::Value)
        }
    }
    fn show(&self) -> Shown {
        match self {
            Self::Word(word) => word.show(),
            Self::Value(value) => value.show(),
        }
    }
    fn number(&self) -> Option<u32> {
        match self {
            Self::Word(_) => None,
            Self::Value(value) => value.number(),
        }
    }
}

words! {
    /// Decide by yourself.
    Auto: "value", "values" { Auto = "auto" }
}

// ---- files ------------------------------------------------------------------------------------------------------------

/// A file that must be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePath {
    /// As written.
    pub written: String,
    /// Where it is read: relative paths start at the directory of the file that names them.
    pub path: PathBuf,
}

impl Lower for FilePath {
    fn ty() -> Type {
        text_type("file", "", "tls/cert.pem")
    }
    fn lower(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let written = text(node, &Self::ty(), cx)?;
        let (path, shown) = resolve(&written, node.span, cx);
        if !cx.reader.exists(&path) {
            let noun = match cx.field() {
                "cert" => "certificate file",
                "key" => "key file",
                "ca" => "certificate file of the authority",
                "crl" => "revocation list",
                _ => "file",
            };
            let mut diagnostic = Diagnostic::error("E0601", format!("{noun} not found"))
                .at(node.span, format!("no such file: {}", shown.display()));
            let near = cx.reader.similar(&path).map(|name| {
                let folder = std::path::Path::new(&written)
                    .parent()
                    .unwrap_or_else(|| std::path::Path::new(""));
                folder.join(name).display().to_string()
            });
            let relative = std::path::Path::new(&written).is_relative();
            let from = cx
                .out
                .sources
                .of(node.span)
                .map_or(Cow::Borrowed("the file"), |source| {
                    let name = std::path::Path::new(&source.name)
                        .file_name()
                        .map(|name| name.to_string_lossy().into_owned());
                    Cow::Owned(name.unwrap_or_else(|| source.name.clone()))
                });
            diagnostic.note = match (relative, near) {
                (true, Some(near)) => Some(format!(
                    "relative paths start at the directory of {from}; did you mean `{near}`?"
                )),
                (true, None) => Some(format!("relative paths start at the directory of {from}")),
                (false, Some(near)) => Some(format!("did you mean `{near}`?")),
                (false, None) => Some("create the file, or name another".to_owned()),
            };
            cx.out.push(diagnostic);
            // Go on: the rest of the configuration can still be checked.
        }
        Some(Self { written, path })
    }
    fn show(&self) -> Shown {
        Shown::Text(self.written.clone())
    }
}

/// A file or directory that may be made later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputPath {
    /// As written.
    pub written: String,
    /// Where it is: relative paths start at the directory of the file that names them.
    pub path: PathBuf,
}

impl Lower for OutputPath {
    fn ty() -> Type {
        text_type("file", "", "/var/lib/bellwether/state.json")
    }
    fn lower(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let written = text(node, &Self::ty(), cx)?;
        let (path, _) = resolve(&written, node.span, cx);
        Some(Self { written, path })
    }
    fn show(&self) -> Shown {
        Shown::Text(self.written.clone())
    }
}

/// Where a path leads: (as opened, as shown to people).
fn resolve(written: &str, span: Span, cx: &Cx<'_>) -> (PathBuf, PathBuf) {
    let shown = cx.out.sources.directory(span).join(written);
    let shown = std::path::absolute(&shown).unwrap_or(shown);
    let opened = if std::path::Path::new(written).is_absolute() {
        cx.reader.rooted(&shown)
    } else {
        shown.clone()
    };
    (opened, shown)
}
