//! A naive evaluator of the policy semantics: the judge that the compiled policy is compared with.
//!
//! Contract: every answer is computed from plain objects for one connection at a time, in the
//! order and the words of the policy semantics. There are no identities, no caches, no
//! precedences and no compiled form, and nothing is shared with [`super::engine`]: what the two
//! have in common is the vocabulary of rules and selectors. It is slow on purpose; it is for
//! tests and for the offline judge.
//!
//! - [`state`]: the objects, and what an address is;
//! - `peers`: L3; `ports`: L4; `tiers`: section 4; `layer7`: section 6.

mod layer7;
mod peers;
mod ports;
pub mod state;
mod tiers;

#[cfg(test)]
mod tests;

pub use layer7::{HttpRequest, Layer7};
pub use state::{Answer, HostFirewall, LocalhostMode, Mode, NodeMode, Party, State, Switches};
pub use tiers::Side;

use std::net::IpAddr;

use crate::model::Protocol;

/// A new connection, after Service translation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: Protocol,
    /// Destination port; the type for ICMP and ICMPv6; 0 for protocols without ports.
    pub port: u16,
}

/// What both ends say. `None`: no policy governs that end.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub egress: Option<Side>,
    pub ingress: Option<Side>,
}
