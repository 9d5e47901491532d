//! Position: the number that orders the states of one history.
//!
//! "Has this replica seen my write?" is answered by comparing two positions, and every system counts them differently: one
//! integer, a pair, a set of intervals, a map. What they share is an algebra, and it is all that the rest of the proxy
//! knows: a position **covers** another if everything up to the other is contained in it, and the **join** of two is the
//! least that covers both. Where positions are sets or maps the order is partial: neither of two need cover the other.
//!
//! Comparing positions of different types, or of different histories, means nothing. Types are checked here; histories
//! ([`lineage`](super::lineage)) by whoever compares.
//!
//! Some upstreams hand out a text that only they can compare ([`Type::OpaqueOrdered`]): it is passed back to them, covers
//! nothing but itself and has no join.
//!
//! Invariants, as laws of the tests: covers is reflexive and transitive; join is commutative, associative, idempotent and
//! covers both; what is rendered or encoded reads back as the same. Sets and maps are kept in one canonical order, and
//! all of them are bounded ([`MAX_TEXT`], [`MAX_PARTS`]), because positions come from peers.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;

use super::bytes::{Malformed, Reader, put_text, put_varint};
use super::epoch::decimal;

/// How positions of a group are written and compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Type {
    /// One integer: a revision, an index, an offset.
    U64 = 1,
    /// A PostgreSQL log position: `16/B374D848`, or its bytes as one integer.
    Lsn = 2,
    /// A ZooKeeper transaction: the epoch in the upper 32 bits, a counter in the lower.
    Zxid = 3,
    /// A set of MySQL's GTIDs: `uuid:1-5:7,uuid:tag:3`.
    GtidMysql = 4,
    /// MariaDB's, the last of each domain: `0-1-100,1-2-50`.
    GtidMariadb = 5,
    /// A hybrid logical clock: `wall.logical`.
    Hlc = 6,
    /// A counter per node: `a=3,b=7`.
    Vector = 7,
    /// A text that only the upstream can compare.
    OpaqueOrdered = 8,
}

/// A point in a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Position {
    /// See [`Type::U64`].
    U64(u64),
    /// See [`Type::Lsn`].
    Lsn(u64),
    /// See [`Type::Zxid`].
    Zxid(u64),
    /// See [`Type::GtidMysql`].
    GtidMysql(GtidSet),
    /// See [`Type::GtidMariadb`].
    GtidMariadb(Domains),
    /// See [`Type::Hlc`].
    Hlc {
        /// The physical part, in the unit of the system.
        wall: u64,
        /// What orders events of one `wall`.
        logical: u32,
    },
    /// See [`Type::Vector`].
    Vector(Vector),
    /// See [`Type::OpaqueOrdered`].
    OpaqueOrdered(Box<str>),
}

/// Transactions by the server (and tag) that made them: intervals, both ends included, apart from each other and in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GtidSet {
    sources: BTreeMap<Source, Intervals>,
}

/// A server and, where its transactions are tagged, the tag.
type Source = (u128, Box<str>);

/// First and last of each.
type Intervals = Vec<(u64, u64)>;

/// The last transaction of each MariaDB domain: its sequence number, and the server that made it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Domains {
    last: BTreeMap<u32, (u64, u32)>,
}

/// How much of each node's events is contained. A node that is not named stands at 0.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Vector {
    counters: BTreeMap<Box<str>, u64>,
}

/// Why a text is no position of its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAPosition {
    /// It is longer than [`MAX_TEXT`] bytes.
    TooLong,
    /// It has more than [`MAX_PARTS`] parts.
    TooManyParts,
    /// It is not written as the type is.
    Form(Type),
}

impl Type {
    /// Every type.
    pub const ALL: [Self; 8] = [
        Self::U64,
        Self::Lsn,
        Self::Zxid,
        Self::GtidMysql,
        Self::GtidMariadb,
        Self::Hlc,
        Self::Vector,
        Self::OpaqueOrdered,
    ];

    /// The word in the configuration and in explanations.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::U64 => "u64",
            Self::Lsn => "lsn",
            Self::Zxid => "zxid",
            Self::GtidMysql => "gtid_mysql",
            Self::GtidMariadb => "gtid_mariadb",
            Self::Hlc => "hlc",
            Self::Vector => "vector",
            Self::OpaqueOrdered => "opaque_ordered",
        }
    }

    /// The type of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// How a position of this type looks.
    #[must_use]
    pub const fn example(self) -> &'static str {
        match self {
            Self::U64 => "184467",
            Self::Lsn => "16/B374D848 or 97500059720",
            Self::Zxid => "0x500000012 or 21474836498",
            Self::GtidMysql => "3E11FA47-71CA-11E1-9E33-C80AA9429562:1-5:7",
            Self::GtidMariadb => "0-1-100,1-2-50",
            Self::Hlc => "1700000000000.3",
            Self::Vector => "a=3,b=7",
            Self::OpaqueOrdered => "1 to 256 visible ASCII characters",
        }
    }

    /// Reads a position as this type is written.
    ///
    /// # Errors
    /// Where the text is not one, or larger than a peer may send.
    pub fn parse(self, text: &str) -> Result<Position, NotAPosition> {
        if text.len() > MAX_TEXT {
            return Err(NotAPosition::TooLong);
        }
        let form = NotAPosition::Form(self);
        let position = match self {
            Self::U64 => Position::U64(decimal(text).ok_or(form)?),
            Self::Lsn => Position::Lsn(lsn(text).ok_or(form)?),
            Self::Zxid => Position::Zxid(zxid(text).ok_or(form)?),
            Self::GtidMysql => Position::GtidMysql(GtidSet::parse(text).ok_or(form)?),
            Self::GtidMariadb => Position::GtidMariadb(Domains::parse(text).ok_or(form)?),
            Self::Hlc => hlc(text).ok_or(form)?,
            Self::Vector => Position::Vector(Vector::parse(text).ok_or(form)?),
            Self::OpaqueOrdered => Position::OpaqueOrdered(opaque(text).ok_or(form)?),
        };
        if position.parts() > MAX_PARTS {
            return Err(NotAPosition::TooManyParts);
        }
        Ok(position)
    }

    /// The position of a JSON number, for the types that are one integer.
    #[must_use]
    pub const fn of_number(self, number: u64) -> Option<Position> {
        match self {
            Self::U64 => Some(Position::U64(number)),
            Self::Lsn => Some(Position::Lsn(number)),
            Self::Zxid => Some(Position::Zxid(number)),
            Self::GtidMysql | Self::GtidMariadb | Self::Hlc | Self::Vector | Self::OpaqueOrdered => None,
        }
    }
}

impl Position {
    /// Its type.
    #[must_use]
    pub const fn kind(&self) -> Type {
        match self {
            Self::U64(_) => Type::U64,
            Self::Lsn(_) => Type::Lsn,
            Self::Zxid(_) => Type::Zxid,
            Self::GtidMysql(_) => Type::GtidMysql,
            Self::GtidMariadb(_) => Type::GtidMariadb,
            Self::Hlc { .. } => Type::Hlc,
            Self::Vector(_) => Type::Vector,
            Self::OpaqueOrdered(_) => Type::OpaqueOrdered,
        }
    }

    /// Whether everything up to `other` is contained in this. Positions of different types do not cover each other.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::U64(a), Self::U64(b)) | (Self::Lsn(a), Self::Lsn(b)) | (Self::Zxid(a), Self::Zxid(b)) => {
                a >= b
            }
            (Self::GtidMysql(a), Self::GtidMysql(b)) => a.contains(b),
            (Self::GtidMariadb(a), Self::GtidMariadb(b)) => a.contains(b),
            (Self::Hlc { wall, logical }, Self::Hlc { wall: w, logical: l }) => (wall, logical) >= (w, l),
            (Self::Vector(a), Self::Vector(b)) => a.contains(b),
            (Self::OpaqueOrdered(a), Self::OpaqueOrdered(b)) => a == b,
            _ => false,
        }
    }

    /// The least position that covers both; `None` for positions of different types and for two different opaque ones,
    /// which only the upstream can order.
    #[must_use]
    pub fn join(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::U64(a), Self::U64(b)) => Some(Self::U64(*a.max(b))),
            (Self::Lsn(a), Self::Lsn(b)) => Some(Self::Lsn(*a.max(b))),
            (Self::Zxid(a), Self::Zxid(b)) => Some(Self::Zxid(*a.max(b))),
            (Self::GtidMysql(a), Self::GtidMysql(b)) => Some(Self::GtidMysql(a.union(b))),
            (Self::GtidMariadb(a), Self::GtidMariadb(b)) => Some(Self::GtidMariadb(a.union(b))),
            (Self::Vector(a), Self::Vector(b)) => Some(Self::Vector(a.union(b))),
            (Self::Hlc { .. }, Self::Hlc { .. }) | (Self::OpaqueOrdered(_), Self::OpaqueOrdered(_)) => {
                if self.covers(other) {
                    Some(self.clone())
                } else if other.covers(self) {
                    Some(other.clone())
                } else {
                    None
                }
            }
            _ => None,
        }
    }

    /// How far this is ahead of `other`, where the type counts: replication lag in positions or bytes.
    #[must_use]
    pub const fn distance(&self, other: &Self) -> Option<u64> {
        match (self, other) {
            (Self::U64(a), Self::U64(b)) | (Self::Lsn(a), Self::Lsn(b)) => Some(a.saturating_sub(*b)),
            _ => None,
        }
    }

    /// How many parts it has, which is what its size grows with.
    #[must_use]
    pub fn parts(&self) -> usize {
        match self {
            Self::U64(_) | Self::Lsn(_) | Self::Zxid(_) | Self::Hlc { .. } | Self::OpaqueOrdered(_) => 1,
            Self::GtidMysql(set) => set.sources.values().map(Vec::len).sum(),
            Self::GtidMariadb(domains) => domains.last.len(),
            Self::Vector(vector) => vector.counters.len(),
        }
    }

    /// Its bytes: the type, then the content in canonical order.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.kind() as u8);
        self.encode_content(out);
    }

    /// The position of [`Position::encode`]'s bytes and how many of them there were.
    ///
    /// # Errors
    /// Where they are not the bytes of any position.
    pub fn decode(bytes: &[u8]) -> Result<(Self, usize), Malformed> {
        let mut reader = Reader::new(bytes);
        let kind = type_of(reader.byte()?)?;
        let position = Self::decode_content(kind, &mut reader)?;
        Ok((position, bytes.len() - reader.left()))
    }

    pub(super) fn encode_content(&self, out: &mut Vec<u8>) {
        match self {
            Self::U64(value) | Self::Lsn(value) | Self::Zxid(value) => put_varint(out, *value),
            Self::GtidMysql(set) => set.encode(out),
            Self::GtidMariadb(domains) => domains.encode(out),
            Self::Hlc { wall, logical } => {
                put_varint(out, *wall);
                put_varint(out, u64::from(*logical));
            }
            Self::Vector(vector) => vector.encode(out),
            Self::OpaqueOrdered(text) => put_text(out, text),
        }
    }

    pub(super) fn decode_content(kind: Type, reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let position = match kind {
            Type::U64 => Self::U64(reader.varint()?),
            Type::Lsn => Self::Lsn(reader.varint()?),
            Type::Zxid => Self::Zxid(reader.varint()?),
            Type::GtidMysql => Self::GtidMysql(GtidSet::decode(reader)?),
            Type::GtidMariadb => Self::GtidMariadb(Domains::decode(reader)?),
            Type::Hlc => Self::Hlc {
                wall: reader.varint()?,
                logical: small(reader)?,
            },
            Type::Vector => Self::Vector(Vector::decode(reader)?),
            Type::OpaqueOrdered => Self::OpaqueOrdered(opaque(text(reader)?).ok_or(Malformed::Content)?),
        };
        if position.parts() > MAX_PARTS {
            return Err(Malformed::Content);
        }
        Ok(position)
    }
}

/// As the upstream writes it; [`Type::parse`] reads it.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::U64(value) => write!(f, "{value}"),
            Self::Lsn(value) => write!(f, "{:X}/{:X}", value >> 32, value & u64::from(u32::MAX)),
            Self::Zxid(value) => write!(f, "{value:#x}"),
            Self::GtidMysql(set) => set.fmt(f),
            Self::GtidMariadb(domains) => {
                let each = domains.last.iter();
                separated(
                    f,
                    each.map(|(domain, (sequence, server))| format_args_of(*domain, *server, *sequence)),
                )
            }
            Self::Hlc { wall, logical } => write!(f, "{wall}.{logical}"),
            Self::Vector(vector) => {
                let each = vector.counters.iter();
                separated(f, each.map(|(node, counter)| format!("{node}={counter}")))
            }
            Self::OpaqueOrdered(text) => f.write_str(text),
        }
    }
}

fn format_args_of(domain: u32, server: u32, sequence: u64) -> String {
    format!("{domain}-{server}-{sequence}")
}

fn separated(f: &mut fmt::Formatter<'_>, parts: impl Iterator<Item = String>) -> fmt::Result {
    for (i, part) in parts.enumerate() {
        if i > 0 {
            f.write_char(',')?;
        }
        f.write_str(&part)?;
    }
    Ok(())
}

impl GtidSet {
    fn parse(text: &str) -> Option<Self> {
        let mut set = Self::default();
        if text.trim().is_empty() {
            // What a server without any transaction says.
            return Some(set);
        }
        for source in text.split(',') {
            // MySQL breaks long sets into lines.
            let mut items = source.trim().split(':');
            let uuid = uuid(items.next()?)?;
            let mut tag: Box<str> = "".into();
            let mut any = false;
            for item in items {
                if item.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_') {
                    tag = tag_of(item)?;
                    any = false;
                    continue;
                }
                let (first, last) = item.split_once('-').unwrap_or((item, item));
                set.add((uuid, tag.clone()), decimal(first)?, decimal(last)?)?;
                any = true;
            }
            if !any {
                return None;
            }
        }
        set.merge();
        Some(set)
    }

    fn add(&mut self, source: Source, first: u64, last: u64) -> Option<()> {
        if first == 0 || first > last {
            return None;
        }
        self.sources.entry(source).or_default().push((first, last));
        Some(())
    }

    /// Brings intervals into their canonical form.
    fn merge(&mut self) {
        for intervals in self.sources.values_mut() {
            intervals.sort_unstable();
            let mut merged: Intervals = Vec::with_capacity(intervals.len());
            for &(first, last) in intervals.iter() {
                match merged.last_mut() {
                    Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                    _ => merged.push((first, last)),
                }
            }
            *intervals = merged;
        }
    }

    fn contains(&self, other: &Self) -> bool {
        other.sources.iter().all(|(source, wanted)| {
            let Some(had) = self.sources.get(source) else {
                return false;
            };
            wanted.iter().all(|&(first, last)| {
                let after = had.partition_point(|had| had.0 <= first);
                after > 0 && had[after - 1].1 >= last
            })
        })
    }

    fn union(&self, other: &Self) -> Self {
        let mut all = self.clone();
        for (source, intervals) in &other.sources {
            all.sources.entry(source.clone()).or_default().extend(intervals);
        }
        all.merge();
        all
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.sources.len() as u64);
        for ((uuid, tag), intervals) in &self.sources {
            out.extend_from_slice(&uuid.to_be_bytes());
            put_text(out, tag);
            put_varint(out, intervals.len() as u64);
            let mut end = 0;
            for (first, last) in intervals {
                put_varint(out, first - end);
                put_varint(out, last - first);
                end = *last;
            }
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut sources = BTreeMap::new();
        let mut parts = 0;
        // A UUID, the length of a tag, a count and one interval.
        for _ in 0..reader.count(20)? {
            let uuid = u128::from_be_bytes(reader.array()?);
            let tag = text(reader)?;
            let tag = if tag.is_empty() {
                "".into()
            } else {
                tag_of(tag)
                    .filter(|canonical| **canonical == *tag)
                    .ok_or(Malformed::Content)?
            };
            let count = reader.count(2)?;
            parts += count;
            if count == 0 || parts > MAX_PARTS {
                return Err(Malformed::Content);
            }
            let mut intervals = Vec::with_capacity(count);
            let mut end = 0u64;
            for _ in 0..count {
                // At least 2 after another interval, else the two would be one; at least 1 from the beginning.
                let gap = reader.varint()?;
                let first = end.checked_add(gap).ok_or(Malformed::Number)?;
                if gap < if intervals.is_empty() { 1 } else { 2 } {
                    return Err(Malformed::Content);
                }
                end = first.checked_add(reader.varint()?).ok_or(Malformed::Number)?;
                intervals.push((first, end));
            }
            ascending(&sources, &(uuid, tag.clone()))?;
            sources.insert((uuid, tag), intervals);
        }
        Ok(Self { sources })
    }
}

impl fmt::Display for GtidSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, ((uuid, tag), intervals)) in self.sources.iter().enumerate() {
            if i > 0 {
                f.write_char(',')?;
            }
            let part = |shift: u32, bits: u32| (uuid >> shift) & ((1 << bits) - 1);
            write!(f, "{:08x}-{:04x}-", part(96, 32), part(80, 16))?;
            write!(
                f,
                "{:04x}-{:04x}-{:012x}",
                part(64, 16),
                part(48, 16),
                part(0, 48)
            )?;
            if !tag.is_empty() {
                write!(f, ":{tag}")?;
            }
            for (first, last) in intervals {
                write!(f, ":{first}")?;
                if last > first {
                    write!(f, "-{last}")?;
                }
            }
        }
        Ok(())
    }
}

impl Domains {
    fn parse(text: &str) -> Option<Self> {
        let mut last = BTreeMap::new();
        if text.trim().is_empty() {
            return Some(Self { last });
        }
        for gtid in text.split(',') {
            let mut numbers = gtid.trim().split('-').map(decimal);
            let (domain, server, sequence) = (numbers.next()??, numbers.next()??, numbers.next()??);
            let id = (u32::try_from(domain).ok()?, u32::try_from(server).ok()?);
            // A domain is named once: two numbers for it would be two answers.
            if numbers.next().is_some() || last.insert(id.0, (sequence, id.1)).is_some() {
                return None;
            }
        }
        Some(Self { last })
    }

    /// Within a domain sequence numbers order everything; which server made the last one is for people.
    fn contains(&self, other: &Self) -> bool {
        let had = |domain| self.last.get(domain).map(|(sequence, _)| *sequence);
        let mut wanted = other.last.iter();
        wanted.all(|(domain, (sequence, _))| had(domain) >= Some(*sequence))
    }

    fn union(&self, other: &Self) -> Self {
        let mut last = self.last.clone();
        for (domain, &theirs) in &other.last {
            let ours = last.entry(*domain).or_insert(theirs);
            *ours = theirs.max(*ours);
        }
        Self { last }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.last.len() as u64);
        for (domain, (sequence, server)) in &self.last {
            put_varint(out, u64::from(*domain));
            put_varint(out, *sequence);
            put_varint(out, u64::from(*server));
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut last = BTreeMap::new();
        for _ in 0..reader.count(3)? {
            let domain = small(reader)?;
            let sequence = reader.varint()?;
            let server = small(reader)?;
            ascending(&last, &domain)?;
            last.insert(domain, (sequence, server));
        }
        Ok(Self { last })
    }
}

impl Vector {
    fn parse(text: &str) -> Option<Self> {
        let mut counters = BTreeMap::new();
        if text.trim().is_empty() {
            return Some(Self { counters });
        }
        for pair in text.split(',') {
            let (node, counter) = pair.trim().split_once('=')?;
            let counter = decimal(counter)?;
            if !is_node(node) || counters.contains_key(node) {
                return None;
            }
            // 0 is what a node has that is not named, and one position has one spelling.
            if counter > 0 {
                counters.insert(node.into(), counter);
            }
        }
        Some(Self { counters })
    }

    fn contains(&self, other: &Self) -> bool {
        let mut wanted = other.counters.iter();
        wanted.all(|(node, counter)| self.counters.get(node) >= Some(counter))
    }

    fn union(&self, other: &Self) -> Self {
        let mut counters = self.counters.clone();
        for (node, &theirs) in &other.counters {
            let ours = counters.entry(node.clone()).or_insert(theirs);
            *ours = theirs.max(*ours);
        }
        Self { counters }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.counters.len() as u64);
        for (node, counter) in &self.counters {
            put_text(out, node);
            put_varint(out, *counter);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut counters = BTreeMap::new();
        for _ in 0..reader.count(3)? {
            let node: Box<str> = text(reader)?.into();
            let counter = reader.varint()?;
            if !is_node(&node) || counter == 0 {
                return Err(Malformed::Content);
            }
            ascending(&counters, &node)?;
            counters.insert(node, counter);
        }
        Ok(Self { counters })
    }
}

impl fmt::Display for NotAPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "a position of more than {MAX_TEXT} bytes is not accepted"),
            Self::TooManyParts => write!(f, "a position of more than {MAX_PARTS} parts is not accepted"),
            Self::Form(kind) => write!(f, "not a position of type `{}`: {}", kind.name(), kind.example()),
        }
    }
}

impl std::error::Error for NotAPosition {}

/// The type of this byte of a token or file.
pub(super) fn type_of(byte: u8) -> Result<Type, Malformed> {
    let known = Type::ALL.into_iter().find(|kind| *kind as u8 == byte);
    known.ok_or(Malformed::Unknown)
}

fn lsn(text: &str) -> Option<u64> {
    let Some((high, low)) = text.split_once('/') else {
        return decimal(text);
    };
    Some(hex(high, 8)? << 32 | hex(low, 8)?)
}

fn zxid(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => hex(digits, 16),
        None => decimal(text),
    }
}

fn hlc(text: &str) -> Option<Position> {
    let (wall, logical) = text.split_once('.')?;
    Some(Position::Hlc {
        wall: decimal(wall)?,
        logical: u32::try_from(decimal(logical)?).ok()?,
    })
}

fn opaque(text: &str) -> Option<Box<str>> {
    let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
    ((1..=MAX_OPAQUE).contains(&text.len()) && visible).then(|| text.into())
}

/// With or without dashes, as MySQL takes it.
fn uuid(text: &str) -> Option<u128> {
    let dashes = text.bytes().enumerate().filter(|(_, byte)| *byte == b'-');
    let places = [8, 13, 18, 23];
    let plain = match text.len() {
        32 => dashes.count() == 0,
        36 => dashes.map(|(at, _)| at).eq(places),
        _ => false,
    };
    let digits = || text.bytes().filter(|byte| *byte != b'-');
    if !plain || !digits().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let value = |digit| char::from(digit).to_digit(16).map(u128::from);
    digits().try_fold(0, |sum, digit| Some(sum << 4 | value(digit)?))
}

/// MySQL normalises tags to lower case.
fn tag_of(text: &str) -> Option<Box<str>> {
    let first = text.bytes().next()?;
    let word = text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let fits = word && !first.is_ascii_digit() && text.len() <= 32;
    fits.then(|| text.to_ascii_lowercase().into())
}

fn is_node(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(plain)
}

fn hex(digits: &str, most: usize) -> Option<u64> {
    let plain = (1..=most).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

fn text<'a>(reader: &mut Reader<'a>) -> Result<&'a str, Malformed> {
    let length = reader.count(1)?;
    let Ok(text) = std::str::from_utf8(reader.take(length)?) else {
        return Err(Malformed::Content);
    };
    Ok(text)
}

fn small(reader: &mut Reader<'_>) -> Result<u32, Malformed> {
    match u32::try_from(reader.varint()?) {
        Ok(value) => Ok(value),
        Err(_) => Err(Malformed::Number),
    }
}

/// Canonical order: each key is greater than all before it.
fn ascending<K: Ord, V>(map: &BTreeMap<K, V>, next: &K) -> Result<(), Malformed> {
    match map.last_key_value() {
        Some((last, _)) if last >= next => Err(Malformed::Content),
        _ => Ok(()),
    }
}

/// The longest text that is read, in bytes: room for a set of MySQL GTIDs of a hundred servers.
pub const MAX_TEXT: usize = 16 * 1024;

/// The most intervals, domains or nodes of one position.
pub const MAX_PARTS: usize = 1024;

/// The longest opaque position.
pub const MAX_OPAQUE: usize = 256;

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    const UUID: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";

    fn position(kind: Type, text: &str) -> Position {
        kind.parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn mysql(text: &str) -> Position {
        position(Type::GtidMysql, &text.replace('U', UUID))
    }

    #[test]
    fn a_log_position_is_a_pair_of_hexadecimal_numbers_or_its_bytes() {
        assert_eq!(position(Type::Lsn, "16/B374D848"), Position::Lsn(0x16_b374_d848));
        assert_eq!(position(Type::Lsn, "97500059720"), Position::Lsn(97_500_059_720));
        assert_eq!(Position::Lsn(0x16_b374_d848).to_string(), "16/B374D848");
        assert_eq!(Position::Lsn(1).to_string(), "0/1");
    }

    #[test]
    fn a_zxid_orders_by_epoch_and_then_by_counter() {
        let earlier = position(Type::Zxid, "0x5ffffffff");
        let later = position(Type::Zxid, "0x600000000");
        assert!(later.covers(&earlier) && !earlier.covers(&later));
        assert_eq!(position(Type::Zxid, "25769803776"), later);
    }

    #[test]
    fn a_set_of_gtids_covers_what_it_contains() {
        let had = mysql("U:1-5:7-9");
        for inside in ["", "U:1", "U:5", "U:1-5", "U:7-9", "U:2-3:8"] {
            assert!(had.covers(&mysql(inside)), "{inside}");
        }
        for outside in ["U:6", "U:5-7", "U:1-9", "U:10", "U:tag:1"] {
            assert!(!had.covers(&mysql(outside)), "{outside}");
        }
        let other = mysql("3e11fa47-71ca-11e1-9e33-000000000000:1");
        assert!(!had.covers(&other) && !other.covers(&had), "neither is older");
    }

    #[test]
    fn intervals_that_touch_are_one() {
        assert_eq!(mysql("U:6:1-3:4-5").to_string(), format!("{UUID}:1-6"));
        assert_eq!(mysql("U:1,U:3,U:2").to_string(), format!("{UUID}:1-3"));
        let joined = mysql("U:1-3").join(&mysql("U:5-9"));
        assert_eq!(joined, Some(mysql("U:1-3:5-9")));
    }

    #[test]
    fn tags_are_sources_of_their_own() {
        let tagged = mysql("U:1-2:Blue:4:green:1");
        assert_eq!(
            tagged.to_string(),
            format!("{UUID}:1-2,{UUID}:blue:4,{UUID}:green:1")
        );
        assert!(tagged.covers(&mysql("U:blue:4")) && !tagged.covers(&mysql("U:4")));
    }

    #[test]
    fn domains_cover_each_other_domain_by_domain() {
        let had = position(Type::GtidMariadb, "0-1-100,1-2-50");
        assert!(
            had.covers(&position(Type::GtidMariadb, "0-9-100")),
            "whoever made it"
        );
        assert!(!had.covers(&position(Type::GtidMariadb, "0-1-101")));
        assert!(!had.covers(&position(Type::GtidMariadb, "2-1-1")));
    }

    #[test]
    fn a_node_that_is_not_named_stands_at_zero() {
        let had = position(Type::Vector, "a=3,b=7");
        assert!(had.covers(&position(Type::Vector, "a=3,c=0")));
        assert!(!had.covers(&position(Type::Vector, "c=1")));
        assert_eq!(position(Type::Vector, "c=0"), position(Type::Vector, ""));
    }

    #[test]
    fn concurrent_vectors_do_not_cover_each_other_and_their_join_covers_both() {
        let (one, other) = (
            position(Type::Vector, "a=2,b=1"),
            position(Type::Vector, "a=1,b=2"),
        );
        assert!(!one.covers(&other) && !other.covers(&one));
        assert_eq!(one.join(&other), Some(position(Type::Vector, "a=2,b=2")));
    }

    #[test]
    fn what_only_the_upstream_can_compare_is_not_compared() {
        let (one, other) = (
            position(Type::OpaqueOrdered, "v1:9"),
            position(Type::OpaqueOrdered, "v1:10"),
        );
        assert!(one.covers(&one) && !one.covers(&other) && !other.covers(&one));
        assert_eq!(one.join(&other), None);
    }

    #[test]
    fn different_types_neither_cover_nor_join() {
        assert!(!Position::U64(9).covers(&Position::Lsn(1)));
        assert_eq!(Position::U64(9).join(&Position::Lsn(1)), None);
    }

    #[test]
    fn what_is_no_position_is_told_so() {
        let wrong = [
            (Type::U64, "+1"),
            (Type::U64, ""),
            (Type::U64, "18446744073709551616"),
            (Type::Lsn, "16/"),
            (Type::Lsn, "/1"),
            (Type::Lsn, "1/123456789"),
            (Type::Lsn, "1/2/3"),
            (Type::Zxid, "0x"),
            (Type::Zxid, "0x12345678123456781"),
            (Type::GtidMysql, "3e11fa47:1"),
            (Type::GtidMysql, "3e11fa47-71ca-11e1-9e33-c80aa9429562"),
            (Type::GtidMysql, "3e11fa47-71ca-11e1-9e33-c80aa9429562:"),
            (Type::GtidMysql, "3e11fa47-71ca-11e1-9e33-c80aa9429562:0"),
            (Type::GtidMysql, "3e11fa47-71ca-11e1-9e33-c80aa9429562:5-1"),
            (Type::GtidMysql, "3e11fa47-71ca-11e1-9e33-c80aa9429562:tag"),
            (Type::GtidMysql, "3e11fa4771ca-11e1-9e33-c80aa94295621-:1"),
            (Type::GtidMariadb, "0-1"),
            (Type::GtidMariadb, "0-1-1-1"),
            (Type::GtidMariadb, "0-1-1,0-1-2"),
            (Type::GtidMariadb, "4294967296-1-1"),
            (Type::Hlc, "1"),
            (Type::Hlc, "1.4294967296"),
            (Type::Vector, "a"),
            (Type::Vector, "a=1,a=2"),
            (Type::Vector, "=1"),
            (Type::OpaqueOrdered, ""),
            (Type::OpaqueOrdered, "a b"),
        ];
        for (kind, text) in wrong {
            assert_eq!(
                kind.parse(text),
                Err(NotAPosition::Form(kind)),
                "{} {text:?}",
                kind.name()
            );
        }
        let message = NotAPosition::Form(Type::Lsn).to_string();
        assert_eq!(
            message,
            "not a position of type `lsn`: 16/B374D848 or 97500059720"
        );
    }

    #[test]
    fn what_a_peer_may_send_is_bounded() {
        let long = "9".repeat(MAX_TEXT + 1);
        assert_eq!(Type::U64.parse(&long), Err(NotAPosition::TooLong));
        let many: Vec<String> = (0..=MAX_PARTS).map(|n| format!("n{n}=1")).collect();
        assert_eq!(
            Type::Vector.parse(&many.join(",")),
            Err(NotAPosition::TooManyParts)
        );
        assert_eq!(
            Type::OpaqueOrdered.parse(&"x".repeat(257)),
            Err(NotAPosition::Form(Type::OpaqueOrdered))
        );
    }

    pub(in crate::group) fn any_of(kind: Type) -> BoxedStrategy<Position> {
        // Few values, so that equal, covering and concurrent ones all come up; now and then the largest.
        let number = prop_oneof![8 => 0u64..6, 1 => Just(u64::MAX)];
        match kind {
            Type::U64 => number.prop_map(Position::U64).boxed(),
            Type::Lsn => number.prop_map(Position::Lsn).boxed(),
            Type::Zxid => number.prop_map(Position::Zxid).boxed(),
            Type::GtidMysql => {
                let interval = (prop_oneof![8 => 1u64..30, 1 => u64::MAX - 3..=u64::MAX], 0u64..4);
                let source = (prop_oneof![0u128..3, Just(u128::MAX)], "(|a|b_1)");
                btree_map(source, vec(interval, 1..5), 0..4)
                    .prop_map(|sources| {
                        let mut set = GtidSet::default();
                        for ((uuid, tag), intervals) in sources {
                            for (first, more) in intervals {
                                set.add((uuid, tag.as_str().into()), first, first.saturating_add(more));
                            }
                        }
                        set.merge();
                        Position::GtidMysql(set)
                    })
                    .boxed()
            }
            Type::GtidMariadb => btree_map(0u32..4, (number, 1u32..3), 0..4)
                .prop_map(|last| Position::GtidMariadb(Domains { last }))
                .boxed(),
            Type::Hlc => (number, 0u32..3)
                .prop_map(|(wall, logical)| Position::Hlc { wall, logical })
                .boxed(),
            Type::Vector => btree_map("[a-c]", 1u64..5, 0..4)
                .prop_map(|counters| {
                    let counters = counters.into_iter();
                    Position::Vector(Vector {
                        counters: counters.map(|(node, counter)| (node.into(), counter)).collect(),
                    })
                })
                .boxed(),
            Type::OpaqueOrdered => "[!-~]{1,3}"
                .prop_map(|text| Position::OpaqueOrdered(text.into()))
                .boxed(),
        }
    }

    pub(in crate::group) fn any_type() -> impl Strategy<Value = Type> {
        (0..Type::ALL.len()).prop_map(|i| Type::ALL[i])
    }

    pub(in crate::group) fn any_position() -> impl Strategy<Value = Position> {
        any_type().prop_flat_map(any_of)
    }

    /// Three of one type that can be joined.
    fn three() -> impl Strategy<Value = [Position; 3]> {
        (0..Type::ALL.len() - 1).prop_flat_map(|i| {
            let kind = Type::ALL[i];
            (any_of(kind), any_of(kind), any_of(kind)).prop_map(|(a, b, c)| [a, b, c])
        })
    }

    fn joined(a: &Position, b: &Position) -> Position {
        a.join(b).expect("positions of one type join")
    }

    proptest! {
        #[test]
        fn covering_is_reflexive(a in any_position()) {
            prop_assert!(a.covers(&a));
        }

        #[test]
        fn covering_is_transitive([a, b, c] in three()) {
            prop_assert!(!(a.covers(&b) && b.covers(&c)) || a.covers(&c));
        }

        #[test]
        fn joining_is_commutative_associative_and_idempotent([a, b, c] in three()) {
            prop_assert_eq!(joined(&a, &b), joined(&b, &a));
            prop_assert_eq!(joined(&joined(&a, &b), &c), joined(&a, &joined(&b, &c)));
            prop_assert_eq!(joined(&a, &a), a);
        }

        #[test]
        fn a_join_is_the_least_that_covers_both([a, b, c] in three()) {
            let join = joined(&a, &b);
            prop_assert!(join.covers(&a) && join.covers(&b));
            prop_assert!(!(c.covers(&a) && c.covers(&b)) || c.covers(&join));
        }

        #[test]
        fn text_comes_back(a in any_position()) {
            prop_assert_eq!(a.kind().parse(&a.to_string()), Ok(a));
        }

        #[test]
        fn bytes_come_back(a in any_position(), after: Vec<u8>) {
            let mut out = Vec::new();
            a.encode(&mut out);
            let length = out.len();
            out.extend(after);
            prop_assert_eq!(Position::decode(&out), Ok((a, length)));
        }

        #[test]
        fn any_bytes_are_read_or_refused(kind in 1u8..=8, bytes: Vec<u8>) {
            let mut all = vec![kind];
            all.extend(bytes);
            if let Ok((position, length)) = Position::decode(&all) {
                let mut out = Vec::new();
                position.encode(&mut out);
                prop_assert_eq!(&all[..length], &out[..], "one position has one spelling");
            }
        }

        #[test]
        fn any_text_is_read_or_refused(kind in any_type(), text: String) {
            if let Ok(position) = kind.parse(&text) {
                prop_assert_eq!(kind.parse(&position.to_string()), Ok(position));
            }
        }
    }
}
