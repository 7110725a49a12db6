//! What an agent has to offer to be observed.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::convert::Naming;
use crate::api::past::PastFlows;
use crate::flow::journal;
use crate::flow::ring::Batch;

/// Numbers of the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingCounts {
    /// Flows in memory.
    pub held: u64,
    pub capacity: u64,
    /// Since the start; also the sequence number of the newest flow.
    pub seen: u64,
    /// What the kernel could not hand over.
    pub lost: u64,
}

/// Another observer of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerInfo {
    pub node: String,
    /// Where it is reached, where its port is known.
    pub address: IpAddr,
    pub port: u16,
    pub tls: PeerTls,
}

/// Whether the peers of a cluster speak TLS (all of them do, or none).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerTls {
    /// The name in the certificate is the node's.
    ByNodeName,
    Plain,
}

/// Implemented by the agent, and by a double in tests.
pub trait Observed: Send + Sync + 'static {
    fn naming(&self) -> &Naming;
    /// Name of this node.
    fn node(&self) -> &str;
    /// Of the program.
    fn version(&self) -> String;
    fn uptime(&self) -> Duration;
    /// Flows in memory with sequence numbers from `cursor` on.
    fn read(&self, cursor: u64, limit: usize) -> Batch;
    fn counts(&self) -> RingCounts;
    /// Flows that are no longer in memory; none where no history is kept.
    fn past(&self) -> Option<Arc<dyn PastFlows>>;
    /// Changes when flows have come.
    fn grown(&self) -> watch::Receiver<u64>;
    /// Events of the agent itself with sequence numbers from `cursor` on.
    fn journal(&self, cursor: u64) -> journal::Batch;
    fn journal_grown(&self) -> watch::Receiver<u64>;
    /// Every node that this one knows, itself included.
    fn peers(&self) -> watch::Receiver<Arc<Vec<PeerInfo>>>;
}
