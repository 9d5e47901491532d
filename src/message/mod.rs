//! HTTP semantics of a forwarded message: hygiene, forwarding fields, bodies, replies of our own.
//!
//! Everything here looks at one message and knows nothing of routes, clusters or connections. Functions take what
//! they need and change a head in place; those on the way of every request cost nothing when there is nothing to do.

pub mod deadline;
pub mod direct_response;
pub mod edits;
pub mod fail;
pub mod forwarded;
pub mod grpc;
pub mod hygiene;
pub mod path;
pub mod pushback;
pub mod redirect;
pub mod repeatable;
pub mod replay;
pub mod reply;
pub mod request_id;
pub mod rewrite;
pub mod template;
pub mod trace;
