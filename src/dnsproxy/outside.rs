//! What the proxy needs from the rest of sluice: a judge, a place to learn, and one for records.
//!
//! Traits, so that the proxy runs in tests on loopback sockets without a kernel to enforce anything.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::fqdn::Learned;
use crate::model::{Direction, Identity, Protocol};
use crate::policy::rule::RuleRef;

/// A future that borrows what made it.
pub type Wait<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Who asks whom for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask<'a> {
    pub client: SocketAddr,
    /// The server that the query was sent to, after Service translation.
    pub server: SocketAddr,
    pub protocol: Protocol,
    /// Canonical name; empty is the root.
    pub name: &'a str,
    /// When the query arrived.
    pub at: Instant,
}

/// What becomes of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Release,
    Refuse,
}

/// A decision with its grounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    pub decision: Decision,
    /// The side whose policy decided.
    pub direction: Direction,
    /// Rules that governed the query; for a refusal those that none matched.
    pub rules: Arc<[RuleRef]>,
    pub client_identity: Identity,
    pub server_identity: Identity,
}

/// Policy.
pub trait Judge: Send + Sync + 'static {
    /// Called for every query: never waits.
    fn judge(&self, ask: &Ask<'_>) -> Ruling;
}

/// Whether pods may reach the addresses of an answer that policy allows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The kernel knows them, or nobody has a rule for the name.
    Ready,
    /// They could not be made known: they stay closed.
    Closed,
}

/// Where answers are learned.
pub trait Learner: Send + Sync + 'static {
    /// What is known of an answer to this client without waiting: the same addresses were learned for the name, and
    /// will stay open until a later answer has been learned. Called for every answer that has addresses.
    fn known(&self, learned: &Learned, client: IpAddr) -> Option<Reach>;

    /// Returns in bounded time, with the addresses open if they can be.
    fn learn(&self, learned: Learned, client: IpAddr) -> Wait<'_, Reach>;
}

/// One query and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryRecord {
    /// When the answer left.
    pub time: SystemTime,
    pub client: SocketAddr,
    pub server: SocketAddr,
    pub protocol: Protocol,
    /// Canonical name; empty for the root and for what could not be read.
    pub name: Arc<str>,
    /// Number of the record type.
    pub kind: u16,
    /// Response code that the client got; none if it got nothing.
    pub rcode: Option<u8>,
    pub answers: Vec<IpAddr>,
    pub latency: Duration,
    /// Absent for what was never judged.
    pub ruling: Option<Ruling>,
    /// What was wrong with the query or its reply.
    pub fault: Option<String>,
}

/// Where records go.
pub trait Records: Send + Sync + 'static {
    /// Whether there is room for one more record; if not, that is counted. Called before one is made.
    fn admits(&self) -> bool;

    /// Never waits; may drop, and counts what it drops.
    fn record(&self, record: QueryRecord);
}
