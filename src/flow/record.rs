//! What a proxy reports about one request, query or handshake, before the agent knows more about it.

use std::net::SocketAddr;
use std::sync::Arc;

use super::L7;
use crate::model::{Direction, Identity};
use crate::policy::rule::RuleRef;

/// See the module. Travels with others ([`super::record_batch`]).
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Nanoseconds since 1970, UTC.
    pub time_ns: u64,
    /// The side whose rules decided.
    pub direction: Direction,
    pub verdict: RecordVerdict,
    /// IP protocol number.
    pub protocol: u8,
    pub client: SocketAddr,
    pub server: SocketAddr,
    pub client_identity: Identity,
    pub server_identity: Identity,
    /// Rules that governed; for a refusal those that none matched.
    pub rules: Arc<[RuleRef]>,
    pub l7: L7,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordVerdict {
    Forwarded,
    /// By L7 rules.
    Denied,
    /// Malformed, or the other side failed.
    Failed,
}
