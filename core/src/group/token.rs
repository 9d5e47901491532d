//! Token: what a client has written and read, carried by the client.
//!
//! A session's guarantees need memory, and the proxy keeps none: it hands the client a token and believes it when it comes
//! back, at whichever proxy of the fleet, after whatever restart. What is believed is signed, because an epoch out of a
//! token can depose a leader; a forged position would only hurt whoever forged it. The signature is the shell's: this file
//! gives the bytes to sign ([`Token::body`]) and where the signature was ([`Signed`]).
//!
//! ```text
//! base64url( version 1 | key u8 | issued u32 | session 6 | groups varint |
//!            groups x ( group 4 | lineage 4 | epoch | what u8 | written? | read? ) | mac 16 )
//! epoch      kind u8, then term and tie as varints; kind 0 for none, and nothing behind it
//! what       the type of position in the lower 4 bits; 16: written follows, 32: read follows, 64: only the leader will do
//! ```
//!
//! `issued` counts seconds since 2024 and does nothing but age the token. The kind of an epoch is in the token because
//! epochs of different kinds do not compare, and another proxy may count by another one.
//!
//! Joining two tokens never loses anything on one history. On different ones there is nothing to join: the later leader's
//! is kept, and the other is evidence of a fork.
//!
//! Invariants: decoding never panics, whatever comes; a token is at most [`MAX_BYTES`] long, by giving up what costs least
//! (reads of other groups, then their positions for a note that only the leader will do); decoding what was encoded gives
//! the same.

use crate::hash;

use super::bytes::{Malformed, Reader, from_base64url, put_varint, to_base64url};
use super::epoch::Epoch;
use super::lineage::Lineage;
use super::position::{Position, type_of};

/// The name of a group in a token: four bytes of the hash of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId([u8; 4]);

impl GroupId {
    /// Of the group of that name.
    #[must_use]
    pub const fn of(name: &str) -> Self {
        let hash = (hash::of_key(name.as_bytes()) >> 32) as u32;
        Self(hash.to_be_bytes())
    }
}

/// What a session has seen of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Which group.
    pub group: GroupId,
    /// The history of the positions.
    pub lineage: Lineage,
    /// The epoch of the leader that served it last.
    pub epoch: Option<Epoch>,
    /// Everything up to here it has written.
    pub written: Option<Position>,
    /// Everything up to here it has read.
    pub read: Option<Position>,
    /// Positions did not fit: only the leader will do.
    pub pinned: bool,
}

/// What a session has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Which key signs it.
    pub key: u8,
    /// When it was made, in seconds since 2024.
    pub issued: u32,
    /// Whose it is: random.
    pub session: [u8; 6],
    /// Groups in the order of their names in it, each once.
    groups: Vec<Entry>,
}

/// A token as it came, with what must be checked before it is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// What it says.
    pub token: Token,
    /// The bytes that were signed, [`DOMAIN`] not included.
    pub body: Vec<u8>,
    /// The signature, to compare in constant time.
    pub mac: [u8; MAC],
}

/// Why a token is not believed. It is then treated as if there were none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Longer than a token can be; it was not looked at.
    TooLong,
    /// Not a token.
    Malformed(Malformed),
}

impl Refused {
    /// The word in counters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::Malformed(why) => why.name(),
        }
    }
}

impl Token {
    /// One that has seen nothing.
    #[must_use]
    pub const fn new(key: u8, issued: u32, session: [u8; 6]) -> Self {
        Self {
            key,
            issued,
            session,
            groups: Vec::new(),
        }
    }

    /// What it has seen, group by group.
    #[must_use]
    pub fn groups(&self) -> &[Entry] {
        &self.groups
    }

    /// What it has seen of a group.
    #[must_use]
    pub fn of(&self, group: GroupId) -> Option<&Entry> {
        self.groups.iter().find(|entry| entry.group == group)
    }

    /// Forgets a group: what it had seen is lost, or the group is gone.
    pub fn forget(&mut self, group: GroupId) {
        self.groups.retain(|entry| entry.group != group);
    }

    /// Adds what was seen of a group. The history that had to give way to another one, if one had.
    ///
    /// A token that has [`MAX_GROUPS`] groups forgets none for a new one: what the client was promised comes first.
    pub fn see(&mut self, seen: Entry) -> Option<Lineage> {
        match self.groups.iter().position(|entry| entry.group == seen.group) {
            Some(place) => {
                let (joined, gone) = self.groups[place].join(&seen);
                self.groups[place] = joined;
                gone
            }
            None => {
                if self.groups.len() < MAX_GROUPS {
                    let place = self.groups.partition_point(|entry| entry.group < seen.group);
                    self.groups.insert(place, seen);
                }
                None
            }
        }
    }

    /// Everything that either has seen, as a token of this one's session. The histories that had to give way, by group.
    #[must_use]
    pub fn join(&self, other: &Self) -> (Self, Vec<(GroupId, Lineage)>) {
        let mut all = self.clone();
        all.issued = self.issued.max(other.issued);
        let mut gone = Vec::new();
        for entry in &other.groups {
            if let Some(lineage) = all.see(entry.clone()) {
                gone.push((entry.group, lineage));
            }
        }
        (all, gone)
    }

    /// Whether it is too old to be believed. One from the future is not: clocks differ.
    #[must_use]
    pub const fn is_older_than(&self, seconds: u32, now: u32) -> bool {
        now.saturating_sub(self.issued) > seconds
    }

    /// The bytes to sign, behind [`DOMAIN`]. What does not fit is given up, of the group `own` last.
    #[must_use]
    pub fn body(&self, own: GroupId) -> Vec<u8> {
        let mut out = self.bytes();
        if out.len() <= MAX_BYTES - MAC {
            return out;
        }
        let mut smaller = self.clone();
        let others = |entry: &&mut Entry| entry.group != own;
        for step in [Self::drop_reads, Self::pin] {
            smaller.groups.iter_mut().filter(others).for_each(step);
            out = smaller.bytes();
            if out.len() <= MAX_BYTES - MAC {
                return out;
            }
        }
        smaller
            .groups
            .iter_mut()
            .filter(|entry| entry.group == own)
            .for_each(Self::pin);
        smaller.bytes()
    }

    /// What was read of a group matters less than what was written: at worst the session reads an older state again.
    fn drop_reads(entry: &mut Entry) {
        if entry.written.is_some() {
            entry.read = None;
        }
    }

    fn pin(entry: &mut Entry) {
        entry.written = None;
        entry.read = None;
        entry.pinned = true;
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        out.extend_from_slice(&[VERSION, self.key]);
        out.extend_from_slice(&self.issued.to_be_bytes());
        out.extend_from_slice(&self.session);
        put_varint(&mut out, self.groups.len() as u64);
        for entry in &self.groups {
            entry.encode(&mut out);
        }
        out
    }

    /// Reads a token; **believe it only if the signature holds**.
    ///
    /// # Errors
    /// Where it is too long, or no token.
    pub fn decode(text: &[u8]) -> Result<Signed, Refused> {
        if text.len() > MAX_TEXT {
            return Err(Refused::TooLong);
        }
        let mut body = from_base64url(text).map_err(Refused::Malformed)?;
        let truncated = Refused::Malformed(Malformed::Truncated);
        let mac = *body.last_chunk::<MAC>().ok_or(truncated)?;
        body.truncate(body.len() - MAC);
        let token = Self::read(&body).map_err(Refused::Malformed)?;
        Ok(Signed { token, body, mac })
    }

    fn read(body: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        if reader.byte()? != VERSION {
            return Err(Malformed::Unknown);
        }
        let mut token = Self::new(
            reader.byte()?,
            u32::from_be_bytes(reader.array()?),
            reader.array()?,
        );
        // A group, a lineage, no epoch and no position.
        let count = reader.count(10)?;
        if count > MAX_GROUPS {
            return Err(Malformed::Content);
        }
        for _ in 0..count {
            let entry = Entry::decode(&mut reader)?;
            if token.groups.last().is_some_and(|last| last.group >= entry.group) {
                return Err(Malformed::Content);
            }
            token.groups.push(entry);
        }
        reader.end()?;
        Ok(token)
    }
}

impl Entry {
    /// Nothing seen yet of a group on a history.
    #[must_use]
    pub const fn new(group: GroupId, lineage: Lineage, epoch: Option<Epoch>) -> Self {
        Self {
            group,
            lineage,
            epoch,
            written: None,
            read: None,
            pinned: false,
        }
    }

    /// What a node must have so that the session sees its own writes and never goes back.
    #[must_use]
    pub fn needed(&self) -> Option<Position> {
        join(self.written.as_ref(), self.read.as_ref())
    }

    /// Everything that either has seen; and the history that had to give way.
    ///
    /// On different histories that of the later leader counts; where epochs do not tell, `other`, which was heard later.
    #[must_use]
    pub fn join(&self, other: &Self) -> (Self, Option<Lineage>) {
        if self.lineage != other.lineage {
            let ours_is_later = match (self.epoch, other.epoch) {
                (Some(ours), Some(theirs)) => ours > theirs,
                (Some(_), None) => true,
                (None, _) => false,
            };
            let (kept, gone) = if ours_is_later {
                (self, other)
            } else {
                (other, self)
            };
            return (kept.clone(), Some(gone.lineage));
        }
        let higher = match (self.epoch, other.epoch) {
            (Some(ours), Some(theirs)) if ours > theirs => self.epoch,
            (_, Some(_)) => other.epoch,
            (ours, None) => ours,
        };
        let joined = Self {
            group: self.group,
            lineage: self.lineage,
            epoch: higher,
            written: join(self.written.as_ref(), other.written.as_ref()),
            read: join(self.read.as_ref(), other.read.as_ref()),
            pinned: self.pinned || other.pinned,
        };
        (joined, None)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.group.0);
        out.extend_from_slice(&self.lineage.to_bytes());
        match self.epoch {
            Some(epoch) => epoch.encode(out),
            None => out.push(0),
        }
        let kind = self.written.as_ref().or(self.read.as_ref()).map(Position::kind);
        // Both are of one type: what is not of it is not part of the promise any more.
        let fits = |position: &&Position| Some(position.kind()) == kind;
        let (written, read) = (self.written.as_ref(), self.read.as_ref().filter(fits));
        let mut what = kind.map_or(0, |kind| kind as u8);
        what |= if written.is_some() { WRITTEN } else { 0 };
        what |= if read.is_some() { READ } else { 0 };
        what |= if self.pinned { PINNED } else { 0 };
        out.push(what);
        for position in [written, read].into_iter().flatten() {
            position.encode_content(out);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let group = GroupId(reader.array()?);
        let lineage = Lineage::from_bytes(reader.array()?);
        let mut ahead = *reader;
        let epoch = if ahead.byte()? == 0 {
            *reader = ahead;
            None
        } else {
            Some(Epoch::decode(reader)?)
        };
        let what = reader.byte()?;
        let mut entry = Self::new(group, lineage, epoch);
        entry.pinned = what & PINNED != 0;
        if what & !(WRITTEN | READ | PINNED | TYPE) != 0 {
            return Err(Malformed::Unknown);
        }
        // A type stands there exactly if there is a position of it.
        if what & (WRITTEN | READ) == 0 {
            return if what & TYPE == 0 {
                Ok(entry)
            } else {
                Err(Malformed::Content)
            };
        }
        let kind = type_of(what & TYPE)?;
        if what & WRITTEN != 0 {
            entry.written = Some(Position::decode_content(kind, reader)?);
        }
        if what & READ != 0 {
            entry.read = Some(Position::decode_content(kind, reader)?);
        }
        Ok(entry)
    }
}

/// A body and its signature, as the client carries them.
#[must_use]
pub fn seal(body: &[u8], mac: [u8; MAC]) -> String {
    to_base64url(&[body, &mac].concat())
}

/// The least that covers both. Of two that have no join (another type, or only the upstream can order them) the second,
/// which was heard later.
fn join(one: Option<&Position>, other: Option<&Position>) -> Option<Position> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.join(other).unwrap_or_else(|| other.clone())),
        (one, other) => one.or(other).cloned(),
    }
}

/// What is signed begins with this, so that no other signature of the same key fits.
pub const DOMAIN: &[u8] = b"bellwether session token\0";

/// The length of a signature: HMAC-SHA256, its first half.
pub const MAC: usize = 16;

/// The longest token, in bytes before base64.
pub const MAX_BYTES: usize = 1024;

/// The longest text of a token; what is longer is not looked at.
pub const MAX_TEXT: usize = MAX_BYTES.div_ceil(3) * 4;

/// The most groups in one token: pinned, that many fit.
pub const MAX_GROUPS: usize = 16;

const VERSION: u8 = 1;
const TYPE: u8 = 0x0f;
const WRITTEN: u8 = 0x10;
const READ: u8 = 0x20;
const PINNED: u8 = 0x40;

#[cfg(test)]
mod tests {
    use super::super::epoch::Kind;
    use super::super::epoch::tests::any_epoch;
    use super::super::position::Type;
    use super::super::position::tests::{any_of, any_type};
    use super::*;
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    fn entry(name: &str, lineage: &str, term: u64, written: u64, read: u64) -> Entry {
        let epoch = Some(Epoch::new(Kind::RaftTerm, term));
        Entry {
            written: Some(Position::U64(written)),
            read: Some(Position::U64(read)),
            ..Entry::new(GroupId::of(name), Lineage::of(lineage, ""), epoch)
        }
    }

    fn token(entries: Vec<Entry>) -> Token {
        let mut token = Token::new(1, 60_000_000, *b"abcdef");
        for entry in entries {
            token.see(entry);
        }
        token
    }

    fn text(token: &Token) -> String {
        seal(&token.body(GroupId::of("own")), [7; MAC])
    }

    #[test]
    fn a_token_of_one_group_takes_about_seventy_characters() {
        let text = text(&token(vec![entry(
            "ledger",
            "1",
            41,
            1_000_000_000,
            1_000_000_000,
        )]));
        assert!(text.len() <= 72, "{}", text.len());
    }

    #[test]
    fn the_format_never_changes() {
        let text = text(&token(vec![entry("ledger", "1", 41, 184_467, 184_460)]));
        assert_eq!(text, FIXED);
        let signed = Token::decode(text.as_bytes()).expect("our own");
        assert_eq!(signed.mac, [7; MAC]);
    }

    #[test]
    fn joining_never_loses_anything_on_one_history() {
        let one = token(vec![entry("a", "1", 3, 10, 50), entry("b", "1", 1, 1, 1)]);
        let other = token(vec![entry("a", "1", 4, 30, 20), entry("c", "1", 1, 1, 1)]);
        let (all, gone) = one.join(&other);
        assert_eq!(gone, []);
        assert_eq!(all.of(GroupId::of("a")), Some(&entry("a", "1", 4, 30, 50)));
        assert_eq!(all.groups().len(), 3);
    }

    #[test]
    fn of_two_histories_that_of_the_later_leader_is_kept_and_the_other_is_evidence() {
        let (early, late) = (entry("a", "1", 3, 99, 99), entry("a", "2", 4, 5, 5));
        let gone = Some(Lineage::of("1", ""));
        assert_eq!(early.join(&late), (late.clone(), gone));
        assert_eq!(late.join(&early), (late, gone));
    }

    #[test]
    fn a_session_needs_what_it_has_written_and_what_it_has_read() {
        assert_eq!(entry("a", "1", 3, 10, 50).needed(), Some(Position::U64(50)));
        assert_eq!(entry("a", "1", 3, 60, 50).needed(), Some(Position::U64(60)));
    }

    #[test]
    fn what_is_too_long_is_not_looked_at() {
        assert_eq!(Token::decode(&[b'A'; 4096]), Err(Refused::TooLong));
        assert_eq!(Token::decode(&[b'A'; MAX_TEXT + 1]), Err(Refused::TooLong));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let whole = text(&token(vec![entry("a", "1", 3, 10, 50)]));
        for length in 0..whole.len() {
            assert!(Token::decode(&whole.as_bytes()[..length]).is_err(), "{length}");
        }
        let malformed = |bytes: &[u8]| Token::decode(to_base64url(bytes).as_bytes());
        assert_eq!(malformed(&[9; 40]), Err(Refused::Malformed(Malformed::Unknown)));
        assert_eq!(
            Token::decode(b"not a token"),
            Err(Refused::Malformed(Malformed::Alphabet))
        );
    }

    #[test]
    fn a_token_gives_up_reads_of_other_groups_first_and_its_own_group_last() {
        let vector = |nodes: usize| {
            let nodes: Vec<String> = (0..nodes).map(|n| format!("a-long-name-of-node-{n}=7")).collect();
            Type::Vector.parse(&nodes.join(",")).ok()
        };
        let large = |name: &str, nodes: usize| Entry {
            written: vector(nodes),
            read: vector(nodes),
            ..Entry::new(GroupId::of(name), Lineage::of("1", ""), None)
        };
        let again = |entries: Vec<Entry>| {
            let text = text(&token(entries));
            assert!(text.len() <= MAX_TEXT);
            Token::decode(text.as_bytes()).expect("our own").token
        };
        let (own, other) = (GroupId::of("own"), GroupId::of("other"));

        let kept = again(vec![large("own", 12), large("other", 12)]);
        let of_other = kept.of(other).expect("it is in it");
        assert_eq!((&of_other.read, &of_other.written), (&None, &vector(12)));
        assert_eq!(kept.of(own), Some(&large("own", 12)));

        let kept = again(vec![large("own", 18), large("other", 18)]);
        let of_other = kept.of(other).expect("it is in it");
        assert!(of_other.pinned && of_other.written.is_none());
        assert_eq!(kept.of(own), Some(&large("own", 18)));

        let kept = again(vec![large("own", 100)]);
        assert!(kept.of(own).is_some_and(|own| own.pinned));
    }

    #[test]
    fn a_full_token_keeps_what_it_promised() {
        let entries = (0..100).map(|n| entry(&format!("g{n}"), "1", 1, 1, 1)).collect();
        let full = token(entries);
        assert_eq!(full.groups().len(), MAX_GROUPS);
        assert!(full.of(GroupId::of("g0")).is_some());
        assert!(Token::decode(text(&full).as_bytes()).is_ok());
    }

    #[test]
    fn age_is_all_that_its_time_is_for() {
        let token = token(vec![]);
        assert!(!token.is_older_than(3600, 60_003_600));
        assert!(token.is_older_than(3600, 60_003_601));
        assert!(!token.is_older_than(3600, 0), "clocks differ");
    }

    fn any_entry() -> impl Strategy<Value = Entry> {
        let name = (
            any::<[u8; 4]>(),
            any::<[u8; 4]>(),
            option::of(any_epoch()),
            any::<bool>(),
        );
        let positions = any_type().prop_flat_map(|kind| (option::of(any_of(kind)), option::of(any_of(kind))));
        (name, positions).prop_map(|((group, lineage, epoch, pinned), (written, read))| Entry {
            group: GroupId(group),
            lineage: Lineage::from_bytes(lineage),
            epoch,
            written,
            read,
            pinned,
        })
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(
            key: u8, issued: u32, session: [u8; 6], entries in vec(any_entry(), 0..4), mac: [u8; MAC],
        ) {
            let mut token = Token::new(key, issued, session);
            for entry in entries {
                token.see(entry);
            }
            let body = token.body(GroupId([0; 4]));
            // What had to be given up is another test's.
            prop_assume!(body == token.bytes());
            let signed = Token::decode(seal(&body, mac).as_bytes());
            prop_assert_eq!(signed, Ok(Signed { token, body, mac }));
        }

        #[test]
        fn any_text_is_decoded_or_refused(text: Vec<u8>) {
            if let Ok(signed) = Token::decode(&text) {
                prop_assert_eq!(seal(&signed.body, signed.mac).into_bytes(), text);
            }
        }

        #[test]
        fn any_bytes_are_decoded_or_refused_and_one_token_has_one_spelling(
            rest in vec(any::<u8>(), 0..80), groups in 0u8..4,
        ) {
            let bytes = [&[VERSION, 1, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, groups][..], &rest].concat();
            if let Ok(token) = Token::read(&bytes) {
                prop_assert_eq!(token.bytes(), bytes);
            }
        }

        #[test]
        fn any_change_of_a_token_changes_what_was_signed(
            entries in vec(any_entry(), 1..3), place in any::<proptest::sample::Index>(), bit in 0u32..8,
        ) {
            let mut token = Token::new(0, 0, [0; 6]);
            for entry in entries {
                token.see(entry);
            }
            let body = token.body(GroupId([0; 4]));
            let mut bytes = [&body[..], &[7; MAC]].concat();
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
            if let Ok(signed) = Token::decode(to_base64url(&bytes).as_bytes()) {
                prop_assert!(signed.body != body || signed.mac != [7; MAC]);
            }
        }

        #[test]
        fn a_join_needs_at_least_what_each_needed((a, b) in two_positions(), terms: [u8; 2], seed in any_entry()) {
            let epoch = |term| Some(Epoch::new(Kind::RaftTerm, u64::from(term)));
            let of = |position: &Position, term| Entry {
                written: Some(position.clone()),
                read: None,
                epoch: epoch(term),
                ..seed.clone()
            };
            let (joined, gone) = of(&a, terms[0]).join(&of(&b, terms[1]));
            prop_assert_eq!(gone, None);
            let needed = joined.needed().expect("both need something");
            prop_assert!(needed.covers(&a) && needed.covers(&b));
            prop_assert_eq!(joined.epoch, epoch(terms[0].max(terms[1])));
        }
    }

    /// Of one type that has a join.
    fn two_positions() -> impl Strategy<Value = (Position, Position)> {
        (0usize..7).prop_flat_map(|kind| (any_of(Type::ALL[kind]), any_of(Type::ALL[kind])))
    }

    const FIXED: &str = "AQEDk4cAYWJjZGVmAcK6qHObbmgIBikAMZOhC4yhCwcHBwcHBwcHBwcHBwcHBwc";
}
