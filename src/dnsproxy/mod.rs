//! The DNS proxy: judges queries by name, and opens addresses before answers arrive.
//!
//! Contract (policy semantics, section 6): a query that the datapath redirected is released to the
//! server that the pod addressed, or refused. What is forwarded are the pod's own bytes under a fresh
//! id, from a port that was drawn for this query alone, so that a reply can be forged only by who sees the query. A
//! reply that gives addresses reaches the pod after they were learned. A server that does not answer costs its own
//! client time, nobody else.
//!
//! - [`wire`], [`message`]: reading and making messages. PURE.
//! - [`outside`]: what the proxy needs from the rest of sluice, as traits.
//! - [`sockets`]: how the proxy speaks for others; [`raw`] datagrams, [`unreachable`] servers.
//! - [`proxy`]: what happens to one query. `worker` carries datagrams ([`batch`], `exchange`), `tcp` and `upstream`
//!   connections.
//! - [`counters`].

mod answers;
pub mod batch;
pub mod counters;
mod exchange;
mod lead;
pub mod message;
pub mod outside;
pub mod proxy;
mod random;
pub mod raw;
pub mod sockets;
mod tcp;
pub mod unreachable;
mod upstream;
pub mod wire;
pub mod worker;

#[cfg(test)]
mod tests;

pub use counters::{Counters, CountersSnapshot};
pub use outside::{Ask, Decision, Judge, Learner, QueryRecord, Reach, Records, Ruling};
pub use proxy::{Options, Proxy};
pub use sockets::{Outgoing, Replies, Sockets, TransparentSockets};
pub use worker::Workers;
