//! A quorum of nodes that replicate one state: Raft, small enough to be read, with the manners of etcd.
//!
//! Election with randomised timeouts, log matching, commitment of entries of the own term only, an empty entry at the
//! beginning of each term, a leader that steps down when it has not heard from a majority (so it claims to lead for at most
//! one election timeout after it was cut off), reads that ask a majority first. Followers forward what they may not answer.
//! A request that is not answered in time times out and may still be executed.
//!
//! Not modelled: changes of membership, snapshots, loss of what was written to disk.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    history::{Applied, Value},
    model::{Chance, MS, Request, Response, Time},
};

/// How long a request may take; etcd's limit.
pub const TIMEOUT: Time = 7_000 * MS;
/// A leader speaks up at least this often.
pub const HEARTBEAT: Time = 100 * MS;
/// A follower waits for so long, and up to twice as long, before it stands for election.
pub const ELECTION: Time = 1_000 * MS;

/// Whose answer is meant.
pub type Ticket = u64;

/// What a node says of itself when asked, as etcd's maintenance status does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Who answers.
    pub member: usize,
    /// Whom it takes for the leader; none: "etcdserver: no leader".
    pub leader: Option<usize>,
    /// Its term; a candidate's may be absurdly high.
    pub term: u64,
    /// The revision that it has applied.
    pub revision: u64,
}

/// What is done to the network and the nodes, beside letting time pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGSTOP: what arrives waits.
    Pause(usize),
    /// SIGCONT: what waited is taken up, in any order.
    Resume(usize),
    /// SIGKILL: only what is on disk is left.
    Kill(usize),
    /// It starts again with what is on disk.
    Start(usize),
    /// Messages of one node to another get lost.
    Cut(usize, usize),
    /// No message gets lost any more.
    Heal,
    /// It stands for election at once (etcd: move-leader).
    Campaign(usize),
}

/// The cluster.
#[derive(Debug)]
pub struct Raft {
    nodes: Vec<Node>,
    /// Messages under way, by arrival and number.
    wire: BTreeMap<(Time, u64), Letter>,
    sent: u64,
    cut: BTreeSet<(usize, usize)>,
    waiting: BTreeMap<Ticket, Waiting>,
    answers: Vec<(Ticket, Response)>,
    tickets: Ticket,
    now: Time,
    /// What the first node to get so far has applied, and how far that is.
    writes: Vec<Applied>,
    furthest: usize,
}

impl Raft {
    /// So many nodes, three to five, none of which leads yet.
    #[must_use]
    pub fn new(nodes: usize, chance: &mut Chance<'_>) -> Self {
        Self {
            nodes: (0..nodes).map(|_| Node::new(nodes, 0, chance)).collect(),
            wire: BTreeMap::new(),
            sent: 0,
            cut: BTreeSet::new(),
            waiting: BTreeMap::new(),
            answers: Vec::new(),
            tickets: 0,
            now: 0,
            writes: Vec::new(),
            furthest: 0,
        }
    }

    /// Asks a node; the answer comes from a later [`Raft::tick`].
    pub fn handle(&mut self, node: usize, request: Request) -> Ticket {
        self.tickets += 1;
        let ticket = self.tickets;
        let until = self.now + TIMEOUT;
        self.waiting.insert(ticket, Waiting { node, until });
        if self.nodes[node].life == Life::Dead {
            self.settle(ticket, Response::NotLeader);
        } else {
            self.nodes[node].inbox.push_back(Letter {
                from: node,
                to: node,
                term: 0,
                message: Message::Client { request, ticket },
            });
        }
        ticket
    }

    /// What a node says of itself; nothing while it is paused or dead.
    #[must_use]
    pub fn status(&self, node: usize) -> Option<Status> {
        let Node {
            life,
            leader,
            term,
            revision,
            ..
        } = &self.nodes[node];
        (*life == Life::Runs).then_some(Status {
            member: node,
            leader: *leader,
            term: *term,
            revision: *revision,
        })
    }

    /// What the cluster has applied, in its one order.
    #[must_use]
    pub fn applied(&self) -> &[Applied] {
        &self.writes
    }

    /// When something will happen by itself, at the latest: the time for the next [`Raft::tick`].
    #[must_use]
    pub fn next(&self) -> Time {
        let wire = self.wire.keys().next().map(|(at, _)| *at);
        let timers = self
            .nodes
            .iter()
            .filter(|node| node.life == Life::Runs)
            .map(|node| {
                if !node.inbox.is_empty() {
                    self.now
                } else if node.role == Role::Leader {
                    node.heartbeat
                } else {
                    node.election
                }
            });
        let waits = |waiting: &&Waiting| self.nodes[waiting.node].life == Life::Runs;
        let until = self.waiting.values().filter(waits).map(|waiting| waiting.until);
        let next = timers.chain(wire).chain(until).min();
        next.unwrap_or(Time::MAX).max(self.now + 1)
    }

    /// Plays nemesis.
    pub fn fault(&mut self, fault: Fault, chance: &mut Chance<'_>) {
        match fault {
            Fault::Pause(node) if self.nodes[node].life == Life::Runs => self.nodes[node].life = Life::Paused,
            Fault::Resume(node) if self.nodes[node].life == Life::Paused => {
                self.nodes[node].life = Life::Runs;
                // A process that wakes up takes its sockets in whichever order it likes; each keeps its own.
                if chance(2) == 0 {
                    let inbox = &mut self.nodes[node].inbox;
                    inbox
                        .make_contiguous()
                        .sort_by_key(|letter| letter.from == letter.to);
                }
            }
            Fault::Kill(node) => {
                self.nodes[node].life = Life::Dead;
                let of = |(ticket, waiting): (&Ticket, &Waiting)| (waiting.node == node).then_some(*ticket);
                let gone: Vec<Ticket> = self.waiting.iter().filter_map(of).collect();
                for ticket in gone {
                    self.settle(ticket, Response::TimedOut);
                }
            }
            Fault::Start(node) if self.nodes[node].life == Life::Dead => {
                let fresh = Node::new(self.nodes.len(), self.now, chance);
                let old = std::mem::replace(&mut self.nodes[node], fresh);
                let Node { term, voted, log, .. } = old;
                let node = &mut self.nodes[node];
                (node.term, node.voted, node.log) = (term, voted, log);
            }
            Fault::Cut(from, to) => {
                self.cut.insert((from, to));
            }
            Fault::Heal => self.cut.clear(),
            Fault::Campaign(node) if self.nodes[node].life == Life::Runs => self.campaign(node, true, chance),
            Fault::Pause(_) | Fault::Resume(_) | Fault::Start(_) | Fault::Campaign(_) => {}
        }
    }

    /// Lets everything happen that is due, and gives the answers that came of it.
    pub fn tick(&mut self, now: Time, chance: &mut Chance<'_>) -> Vec<(Ticket, Response)> {
        while let Some(first) = self.wire.first_entry().filter(|first| first.key().0 <= now) {
            self.now = self.now.max(first.key().0);
            let letter = first.remove();
            let lost = self.cut.contains(&(letter.from, letter.to));
            match self.nodes[letter.to].life {
                _ if lost => {}
                Life::Runs => self.receive(letter, chance),
                Life::Paused => self.nodes[letter.to].inbox.push_back(letter),
                Life::Dead => {}
            }
        }
        self.now = self.now.max(now);
        for node in 0..self.nodes.len() {
            while self.nodes[node].life == Life::Runs
                && let Some(letter) = self.nodes[node].inbox.pop_front()
            {
                self.receive(letter, chance);
            }
            self.timers(node, chance);
        }
        let nodes = &self.nodes;
        let late = |(ticket, waiting): (&Ticket, &Waiting)| {
            (waiting.until <= now && nodes[waiting.node].life == Life::Runs).then_some(*ticket)
        };
        let late: Vec<Ticket> = self.waiting.iter().filter_map(late).collect();
        for ticket in late {
            self.settle(ticket, Response::TimedOut);
        }
        std::mem::take(&mut self.answers)
    }

    fn timers(&mut self, at: usize, chance: &mut Chance<'_>) {
        let node = &mut self.nodes[at];
        if node.life != Life::Runs {
            return;
        }
        if node.role != Role::Leader {
            if node.election <= self.now {
                self.campaign(at, false, chance);
            }
        } else if node.heartbeat <= self.now {
            let now = self.now;
            let heard = |peer: &Peer| peer.heard + ELECTION > now;
            if node.majority(at, heard) {
                self.broadcast(at, chance);
            } else {
                node.follow(None, now, chance);
            }
        }
    }

    fn campaign(&mut self, at: usize, forced: bool, chance: &mut Chance<'_>) {
        let node = &mut self.nodes[at];
        node.follow(None, self.now, chance);
        node.role = Role::Candidate;
        node.term += 1;
        node.voted = Some(at);
        node.votes = BTreeSet::from([at]);
        let last = node.last();
        for to in 0..self.nodes.len() {
            self.send(at, to, Message::Vote { last, forced }, chance);
        }
    }

    /// The next round: tells everybody who leads and what they do not have yet.
    fn broadcast(&mut self, at: usize, chance: &mut Chance<'_>) {
        self.nodes[at].round += 1;
        self.nodes[at].heartbeat = self.now + HEARTBEAT;
        for to in 0..self.nodes.len() {
            self.append(at, to, chance);
        }
    }

    fn append(&mut self, at: usize, to: usize, chance: &mut Chance<'_>) {
        let node = &self.nodes[at];
        let before = node.peers[to].next - 1;
        let message = Message::Append {
            before: (node.term_of(before), before),
            entries: node.log[before..].to_vec(),
            commit: node.commit,
            round: node.round,
        };
        self.send(at, to, message, chance);
    }

    fn send(&mut self, from: usize, to: usize, message: Message, chance: &mut Chance<'_>) {
        if from == to {
            return;
        }
        self.sent += 1;
        let arrives = self.now + MS / 5 + Time::from(chance(2_000)) * (MS / 1_000);
        let term = self.nodes[from].term;
        self.wire.insert(
            (arrives, self.sent),
            Letter {
                from,
                to,
                term,
                message,
            },
        );
    }

    fn receive(&mut self, letter: Letter, chance: &mut Chance<'_>) {
        let Letter {
            from,
            to: at,
            term,
            message,
        } = letter;
        let now = self.now;
        let node = &mut self.nodes[at];
        // Whoever hears of its leader lets nobody depose it, or one that was cut off would when it comes back.
        let loyal = node.role == Role::Leader || node.leader.is_some() && node.election > now + ELECTION / 2;
        if matches!(message, Message::Vote { forced: false, .. }) && loyal {
            return;
        }
        if term > node.term {
            node.term = term;
            node.voted = None;
            node.follow(None, now, chance);
        }
        match message {
            Message::Vote { last, .. } => {
                let free = node.voted.is_none_or(|voted| voted == from);
                if term == node.term && free && last >= node.last() {
                    node.voted = Some(from);
                    node.follow(None, now, chance);
                    self.send(at, from, Message::Granted, chance);
                }
            }
            Message::Granted => {
                if term == node.term && node.role == Role::Candidate {
                    node.votes.insert(from);
                    if node.votes.len() > node.peers.len() / 2 {
                        node.lead(at, now);
                        self.broadcast(at, chance);
                    }
                }
            }
            Message::Append {
                before,
                entries,
                commit,
                round,
            } => {
                if term < node.term {
                    let hint = node.log.len();
                    self.send(at, from, Message::Rejected { hint }, chance);
                    return;
                }
                node.follow(Some(from), now, chance);
                let answer = match node.accept(before, entries, commit) {
                    Some(upto) => Message::Appended { upto, round },
                    None => Message::Rejected {
                        hint: node.log.len().min(before.1 - 1),
                    },
                };
                self.send(at, from, answer, chance);
                self.apply(at, chance);
            }
            Message::Appended { upto, round } => {
                if term == node.term && node.role == Role::Leader {
                    let peer = &mut node.peers[from];
                    peer.has = peer.has.max(upto);
                    peer.next = peer.has + 1;
                    peer.round = peer.round.max(round);
                    peer.heard = now;
                    let committed = node.commit;
                    node.advance(at);
                    if node.commit > committed {
                        self.broadcast(at, chance);
                    }
                    self.apply(at, chance);
                }
            }
            Message::Rejected { hint } => {
                if term == node.term && node.role == Role::Leader {
                    let peer = &mut node.peers[from];
                    peer.next = peer.next.min(hint + 1).max(peer.has + 1);
                    peer.heard = now;
                    self.append(at, from, chance);
                }
            }
            Message::Client { request, ticket } => self.client(at, from, request, ticket, chance),
            Message::Answer { ticket, response } => self.settle(ticket, response),
        }
    }

    fn client(&mut self, at: usize, from: usize, request: Request, ticket: Ticket, chance: &mut Chance<'_>) {
        let node = &mut self.nodes[at];
        match request {
            Request::Read { key, local: true } => {
                let response = node.read(&key);
                self.settle(ticket, response);
            }
            request if node.role != Role::Leader => {
                // Without a leader the request is lost, and its client learns that in time.
                if let Some(leader) = node.leader.filter(|_| from == at) {
                    self.send(at, leader, Message::Client { request, ticket }, chance);
                }
            }
            Request::Read { key, .. } => {
                let (round, index) = (node.round + 1, node.commit.max(node.first_of_term()));
                node.reads.push(Read {
                    key,
                    ticket,
                    from,
                    round,
                    index,
                });
                self.broadcast(at, chance);
            }
            request @ (Request::Write { .. } | Request::Cas { .. }) => {
                let (term, command) = (node.term, Some((request, ticket)));
                node.log.push(Entry { term, command });
                self.broadcast(at, chance);
            }
        }
    }

    /// Applies what is committed; whoever asked is answered by the node that it asked.
    fn apply(&mut self, at: usize, chance: &mut Chance<'_>) {
        let node = &mut self.nodes[at];
        let mut settled = Vec::new();
        while node.applied < node.commit {
            let entry = node.log[node.applied].clone();
            node.applied += 1;
            let Some((request, ticket)) = entry.command else {
                continue;
            };
            let (response, write) = node.execute(&request);
            if node.applied > self.furthest {
                self.writes.extend(write);
            }
            if self
                .waiting
                .get(&ticket)
                .is_some_and(|waiting| waiting.node == at)
            {
                settled.push((ticket, response));
            }
        }
        self.furthest = self.furthest.max(node.applied);
        let reads = std::mem::take(&mut node.reads);
        let mut answers = Vec::new();
        for read in reads {
            let confirmed = node.majority(at, |peer| peer.round >= read.round);
            if node.role == Role::Leader && confirmed && node.applied >= read.index {
                answers.push((read.from, read.ticket, node.read(&read.key)));
            } else if node.role == Role::Leader {
                node.reads.push(read);
            }
        }
        for (ticket, response) in settled {
            self.settle(ticket, response);
        }
        for (to, ticket, response) in answers {
            if to == at {
                self.settle(ticket, response);
            } else {
                self.send(at, to, Message::Answer { ticket, response }, chance);
            }
        }
    }

    fn settle(&mut self, ticket: Ticket, response: Response) {
        if self.waiting.remove(&ticket).is_some() {
            self.answers.push((ticket, response));
        }
    }
}

#[derive(Debug)]
struct Letter {
    from: usize,
    to: usize,
    /// The term of who sent it.
    term: u64,
    message: Message,
}

/// A request that has no answer yet.
#[derive(Debug)]
struct Waiting {
    node: usize,
    until: Time,
}

#[derive(Debug, Clone)]
struct Entry {
    term: u64,
    /// What is to be done, for whom; none at the beginning of a term.
    command: Option<(Request, Ticket)>,
}

#[derive(Debug, Clone)]
enum Message {
    /// `forced`: although there is a leader.
    Vote {
        last: (u64, usize),
        forced: bool,
    },
    Granted,
    Append {
        before: (u64, usize),
        entries: Vec<Entry>,
        commit: usize,
        round: u64,
    },
    Appended {
        upto: usize,
        round: u64,
    },
    Rejected {
        hint: usize,
    },
    Client {
        request: Request,
        ticket: Ticket,
    },
    Answer {
        ticket: Ticket,
        response: Response,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Follower,
    Candidate,
    Leader,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Runs,
    Paused,
    Dead,
}

#[derive(Debug)]
struct Node {
    // On disk.
    term: u64,
    voted: Option<usize>,
    log: Vec<Entry>,
    // In memory.
    life: Life,
    role: Role,
    leader: Option<usize>,
    votes: BTreeSet<usize>,
    commit: usize,
    applied: usize,
    revision: u64,
    registers: BTreeMap<String, Value>,
    election: Time,
    heartbeat: Time,
    peers: Vec<Peer>,
    round: u64,
    reads: Vec<Read>,
    inbox: VecDeque<Letter>,
}

/// What a leader knows of another.
#[derive(Debug, Clone, Copy, Default)]
struct Peer {
    next: usize,
    has: usize,
    round: u64,
    heard: Time,
}

/// A read that waits until a majority has confirmed the leader.
#[derive(Debug)]
struct Read {
    key: String,
    ticket: Ticket,
    from: usize,
    round: u64,
    index: usize,
}

impl Node {
    fn new(nodes: usize, now: Time, chance: &mut Chance<'_>) -> Self {
        Self {
            term: 0,
            voted: None,
            log: Vec::new(),
            life: Life::Runs,
            role: Role::Follower,
            leader: None,
            votes: BTreeSet::new(),
            commit: 0,
            applied: 0,
            revision: 0,
            registers: BTreeMap::new(),
            election: patience(now, chance),
            heartbeat: 0,
            peers: vec![Peer::default(); nodes],
            round: 0,
            reads: Vec::new(),
            inbox: VecDeque::new(),
        }
    }

    fn follow(&mut self, leader: Option<usize>, now: Time, chance: &mut Chance<'_>) {
        self.role = Role::Follower;
        self.leader = leader;
        self.reads.clear();
        self.election = patience(now, chance);
    }

    fn lead(&mut self, own: usize, now: Time) {
        self.role = Role::Leader;
        self.leader = Some(own);
        let peer = Peer {
            next: self.log.len() + 1,
            has: 0,
            round: 0,
            heard: now,
        };
        self.peers.fill(peer);
        self.round = 0;
        let (term, command) = (self.term, None);
        self.log.push(Entry { term, command });
    }

    /// Takes entries over if what is before them agrees, and says up to where it has them.
    fn accept(&mut self, before: (u64, usize), entries: Vec<Entry>, commit: usize) -> Option<usize> {
        let (term, mut index) = before;
        if index > self.log.len() || self.term_of(index) != term {
            return None;
        }
        for entry in entries {
            if self.log.get(index).is_some_and(|own| own.term != entry.term) {
                self.log.truncate(index);
            }
            if index == self.log.len() {
                self.log.push(entry);
            }
            index += 1;
        }
        self.commit = self.commit.max(commit.min(index));
        Some(index)
    }

    /// Commits what a majority has, if it is of this term.
    fn advance(&mut self, own: usize) {
        for index in (self.commit + 1..=self.log.len()).rev() {
            if self.term_of(index) == self.term && self.majority(own, |peer| peer.has >= index) {
                self.commit = index;
                return;
            }
        }
    }

    /// Whether a majority, this node among them, is as asked.
    fn majority(&self, own: usize, is: impl Fn(&Peer) -> bool) -> bool {
        let others = self.peers.iter().enumerate();
        let count = 1 + others.filter(|(at, peer)| *at != own && is(peer)).count();
        count > self.peers.len() / 2
    }

    fn last(&self) -> (u64, usize) {
        (self.term_of(self.log.len()), self.log.len())
    }

    /// The term of an entry, counted from 1; 0 is before all.
    fn term_of(&self, index: usize) -> u64 {
        index.checked_sub(1).map_or(0, |at| self.log[at].term)
    }

    fn first_of_term(&self) -> usize {
        1 + self.log.partition_point(|entry| entry.term < self.term)
    }

    fn read(&self, key: &str) -> Response {
        Response::Saw {
            value: self.registers.get(key).copied(),
            position: self.revision,
        }
    }

    fn execute(&mut self, request: &Request) -> (Response, Option<Applied>) {
        let (key, value) = match request {
            Request::Write { key, value } => (key, *value),
            Request::Cas { key, expected, new } if self.registers.get(key).copied() == *expected => {
                (key, *new)
            }
            Request::Cas { .. } => {
                let position = self.revision;
                return (Response::CasFailed { position }, None);
            }
            // Reads are never written to the log.
            Request::Read { key, .. } => return (self.read(key), None),
        };
        self.revision += 1;
        let position = self.revision;
        self.registers.insert(key.clone(), value);
        let key = key.clone();
        (
            Response::Done { position },
            Some(Applied { position, key, value }),
        )
    }
}

fn patience(now: Time, chance: &mut Chance<'_>) -> Time {
    now + ELECTION + Time::from(chance(1_000)) * (ELECTION / 1_000)
}

#[cfg(test)]
mod tests;
