//! Where flows meet: producers push, the ring remembers, followers get a copy.
//!
//! A push never waits. A follower that cannot keep up is told how many it lost by its own channel.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};

use crate::api::hubble::convert::Naming;
use crate::api::hubble::source::{PeerInfo, RingCounts};
use crate::flow::Flow;
use crate::flow::journal::{self, AgentEvent, Journal};
use crate::flow::ring::{Batch, Ring};

/// Flows a follower may lag behind before it loses some.
const FOLLOWER_QUEUE: usize = 8192;

#[derive(Debug)]
pub struct Hub {
    /// How flows name this node and its cluster.
    naming: Naming,
    ring: Mutex<Ring>,
    live: broadcast::Sender<Arc<Flow>>,
    /// Flows so far: wakes those who read the ring.
    grown: watch::Sender<u64>,
    /// What the agent itself did.
    journal: Mutex<Journal>,
    journal_grown: watch::Sender<u64>,
    /// The observers of the cluster.
    peers: watch::Sender<Arc<Vec<PeerInfo>>>,
    /// Events that never reached user space, by the kernel's own count.
    lost: AtomicU64,
}

impl Hub {
    pub fn new(capacity: usize, cluster: &str) -> Hub {
        Hub {
            naming: Naming { cluster: cluster.into() },
            ring: Mutex::new(Ring::new(capacity)),
            live: broadcast::channel(FOLLOWER_QUEUE).0,
            grown: watch::channel(0).0,
            journal: Mutex::default(),
            journal_grown: watch::channel(0).0,
            peers: watch::channel(Arc::default()).0,
            lost: AtomicU64::new(0),
        }
    }

    pub fn push(&self, flows: impl IntoIterator<Item = Flow>) {
        let followed = self.live.receiver_count() > 0;
        let mut ring = self.ring.lock();
        for mut flow in flows {
            flow.sequence = ring.end();
            let flow = Arc::new(flow);
            if followed {
                // The last follower may just have gone; the ring has the flow all the same.
                self.live.send(Arc::clone(&flow)).ok();
            }
            ring.push(flow);
        }
        let seen = ring.seen();
        drop(ring);
        self.grown.send_replace(seen);
    }

    pub fn naming(&self) -> &Naming {
        &self.naming
    }

    /// Changes when flows have come.
    pub fn grown(&self) -> watch::Receiver<u64> {
        self.grown.subscribe()
    }

    pub fn counts(&self) -> RingCounts {
        let ring = self.ring.lock();
        RingCounts {
            held: ring.len() as u64,
            capacity: ring.capacity() as u64,
            seen: ring.seen(),
            lost: self.lost(),
        }
    }

    /// Something that the agent itself did, now.
    pub fn note(&self, event: AgentEvent) {
        let time_ns = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .ok()
            .and_then(|since| u64::try_from(since.as_nanos()).ok())
            .unwrap_or_default();
        let mut journal = self.journal.lock();
        journal.push(journal::Entry { time_ns, event });
        let seen = journal.seen();
        drop(journal);
        self.journal_grown.send_replace(seen);
    }

    pub fn journal(&self, cursor: u64) -> journal::Batch {
        self.journal.lock().read(cursor)
    }

    pub fn journal_grown(&self) -> watch::Receiver<u64> {
        self.journal_grown.subscribe()
    }

    pub fn set_peers(&self, peers: Vec<PeerInfo>) {
        self.peers.send_if_modified(|known| {
            let is_new = **known != peers;
            if is_new {
                *known = Arc::new(peers);
            }
            is_new
        });
    }

    pub fn peers(&self) -> watch::Receiver<Arc<Vec<PeerInfo>>> {
        self.peers.subscribe()
    }

    pub fn read(&self, cursor: u64, limit: usize) -> Batch {
        self.ring.lock().read(cursor, limit)
    }

    /// The newest flows, oldest first.
    pub fn newest(&self, limit: usize) -> Vec<Arc<Flow>> {
        let ring = self.ring.lock();
        let mut flows: Vec<_> = ring.newest().take(limit).cloned().collect();
        flows.reverse();
        flows
    }

    pub fn follow(&self) -> broadcast::Receiver<Arc<Flow>> {
        self.live.subscribe()
    }

    pub fn seen(&self) -> u64 {
        self.ring.lock().seen()
    }

    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Takes over the kernel's count of lost events.
    pub fn set_lost(&self, total: u64) {
        self.lost.store(total, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests::flow;

    #[tokio::test]
    async fn a_follower_sees_what_the_ring_remembers() {
        let hub = Hub::new(2, "default");
        let mut follower = hub.follow();
        hub.push((1..=3).map(flow));
        assert_eq!(follower.recv().await.unwrap().destination_port, Some(1));
        assert_eq!(hub.read(0, 10).flows.len(), 2);
        assert_eq!(hub.seen(), 3);
    }
}
