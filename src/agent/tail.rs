//! Consumers of all flows: history, metrics, export. Each reads the ring at its own pace, on a thread of its own.
//!
//! Nothing waits for them. One that falls so far behind that the ring goes over what it has not read is told how
//! much it lost.

use std::sync::Arc;
use std::time::Duration;

use super::hub::Hub;
use crate::api::hubble::convert::Naming;
use crate::flow::Flow;

/// Flows that are taken at a time.
pub const BATCH: usize = 8192;
/// How often a consumer looks for more. The ring of 65,536 flows takes 400 ms to go round at 150,000/s.
pub const PAUSE: Duration = Duration::from_millis(100);

/// A place in the stream of flows.
#[derive(Debug)]
pub struct Tail {
    hub: Arc<Hub>,
    cursor: u64,
}

impl Tail {
    /// Everything from the first flow on.
    pub fn new(hub: Arc<Hub>) -> Tail {
        Tail { hub, cursor: 1 }
    }

    /// How flows name this node and its cluster.
    pub fn naming(&self) -> &Naming {
        self.hub.naming()
    }

    /// The next flows, and how many before them were lost.
    pub fn next(&mut self) -> (Vec<Arc<Flow>>, u64) {
        let batch = self.hub.read(self.cursor, BATCH);
        self.cursor = batch.cursor;
        (batch.flows, batch.lost)
    }
}
