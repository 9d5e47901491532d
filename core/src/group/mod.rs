//! Group: who leads endpoints that replicate one state, and what may be read where.
//!
//! A replicated service has one endpoint that may be written to, for a time, and others that have what it had a moment
//! ago. Both change while requests run, and the ways to be wrong are quiet: a write that a deposed leader acknowledges, a
//! read that misses what its client has just written, a position that another history gave to other data. This module is
//! what the proxy knows about such a group and what follows from it, as values and functions.
//!
//! It has three layers. **Words:** [`epoch`] orders leaders, [`position`] orders states of one history, [`lineage`] tells
//! histories apart, [`observation`] is what somebody said of an endpoint. **Knowledge:** [`state`] makes one picture of all
//! observations, by rules that have names, and publishes it as a [`view`]; [`staleness`] dates replicas without comparing
//! clocks. **Decisions**, of a view and a request: [`consistency`] says who may answer, [`token`] is what a session has
//! seen, [`hold`] says who waits for a leader, [`fence`] what became of a write.
//!
//! What must stay true: no request is sent to a leader whose claim has run out, whose epoch is not durable, or that anybody
//! has outbid; nothing is served below the level that was promised without saying so; nothing that may have been executed
//! is sent again. The proxy promotes nobody: it believes what is claimed, or it does not.

pub mod bytes;
pub mod consistency;
pub mod epoch;
pub mod fence;
pub mod hold;
pub mod lineage;
pub mod observation;
pub mod position;
pub mod set;
pub mod staleness;
pub mod state;
pub mod token;
pub mod view;

pub use consistency::{Choice, Level, Need, Policy, Read, Verdict, Write, place_read, place_write};
pub use epoch::{Epoch, Kind};
pub use lineage::{Answer, Fork, Forks, Lineage};
pub use observation::{Authority, Member, Observation, Role, Source};
pub use position::Position;
pub use set::Set;
pub use state::{Durability, Effect, Event, GroupState, Settings};
pub use view::{Leader, Phase, View};
