//! A bounded memory of the latest flows.
//!
//! Every flow gets a sequence number; a reader asks for what came after the last number that it
//! has seen and is told how many it missed. Overwriting is never silent.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Flow;

/// The latest `capacity` flows.
#[derive(Debug)]
pub struct Ring {
    flows: VecDeque<Arc<Flow>>,
    capacity: usize,
    /// Sequence number of the next flow; the first is 1.
    next: u64,
}

/// What a reader gets.
#[derive(Debug)]
pub struct Batch {
    pub flows: Vec<Arc<Flow>>,
    /// Flows that were overwritten before this reader came.
    pub lost: u64,
    /// Sequence number to read on from.
    pub cursor: u64,
}

impl Ring {
    /// Holds at least one flow.
    pub fn new(capacity: usize) -> Ring {
        Ring { flows: VecDeque::new(), capacity: capacity.max(1), next: 1 }
    }

    pub fn push(&mut self, flow: Arc<Flow>) {
        if self.flows.len() == self.capacity {
            self.flows.pop_front();
        }
        self.flows.push_back(flow);
        self.next += 1;
    }

    pub fn len(&self) -> usize {
        self.flows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// All flows that were ever pushed.
    pub fn seen(&self) -> u64 {
        self.next - 1
    }

    /// The cursor that a reader of only new flows starts with.
    pub fn end(&self) -> u64 {
        self.next
    }

    /// Up to `limit` flows with sequence numbers from `cursor` on.
    pub fn read(&self, cursor: u64, limit: usize) -> Batch {
        let oldest = self.next - self.flows.len() as u64;
        let from = cursor.max(oldest);
        let flows: Vec<_> = self.flows.iter().skip((from - oldest) as usize).take(limit).cloned().collect();
        let lost = if cursor == 0 { 0 } else { oldest.saturating_sub(cursor) };
        Batch { cursor: from + flows.len() as u64, lost, flows }
    }

    /// Newest first.
    pub fn newest(&self) -> impl Iterator<Item = &Arc<Flow>> {
        self.flows.iter().rev()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests::flow;

    #[test]
    fn a_slow_reader_is_told_what_it_missed() {
        let mut ring = Ring::new(3);
        for port in 1..=5 {
            ring.push(Arc::new(flow(port)));
        }
        let batch = ring.read(1, 10);
        assert_eq!(batch.lost, 2);
        assert_eq!(
            batch.flows.iter().map(|flow| flow.destination_port).collect::<Vec<_>>(),
            [Some(3), Some(4), Some(5)]
        );
        assert_eq!(ring.read(batch.cursor, 10).flows.len(), 0);
        assert_eq!(ring.seen(), 5);
    }

    #[test]
    fn reading_goes_on_where_it_stopped() {
        let mut ring = Ring::new(10);
        (1..=5).for_each(|port| ring.push(Arc::new(flow(port))));
        let first = ring.read(0, 2);
        let second = ring.read(first.cursor, 10);
        assert_eq!((first.flows.len(), second.flows.len(), second.lost), (2, 3, 0));
    }
}
