//! What the agent itself did, for those who watch flows: a bounded memory like that of flows.

use std::collections::VecDeque;
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::{Identity, ObjectRef};

/// Events that are remembered.
const CAPACITY: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentEvent {
    Started,
    PolicyUpdated {
        object: ObjectRef,
        revision: u64,
        rules: usize,
    },
    PolicyDeleted {
        object: ObjectRef,
        revision: u64,
    },
    /// `namespace/name`.
    EndpointCreated {
        pod: Arc<str>,
        id: u16,
    },
    EndpointDeleted {
        pod: Arc<str>,
        id: u16,
    },
    /// The kernel enforces this revision.
    Regenerated {
        revision: u64,
    },
    RegenerationFailed {
        revision: u64,
        error: Arc<str>,
    },
    AddressLearned {
        prefix: IpNet,
        identity: Identity,
    },
    AddressForgotten {
        prefix: IpNet,
    },
}

/// An event and when it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Nanoseconds since 1970, UTC.
    pub time_ns: u64,
    pub event: AgentEvent,
}

/// See the module.
#[derive(Debug)]
pub struct Journal {
    entries: VecDeque<Arc<Entry>>,
    /// Sequence number of the next entry; the first is 1.
    next: u64,
}

/// What a reader gets.
#[derive(Debug)]
pub struct Batch {
    pub entries: Vec<Arc<Entry>>,
    /// Sequence number to read on from.
    pub cursor: u64,
}

impl Default for Journal {
    fn default() -> Journal {
        Journal { entries: VecDeque::new(), next: 1 }
    }
}

impl Journal {
    pub fn push(&mut self, entry: Entry) {
        if self.entries.len() == CAPACITY {
            self.entries.pop_front();
        }
        self.entries.push_back(Arc::new(entry));
        self.next += 1;
    }

    /// Everything with sequence numbers from `cursor` on that is still here.
    pub fn read(&self, cursor: u64) -> Batch {
        let oldest = self.next - self.entries.len() as u64;
        let skipped = usize::try_from(cursor.saturating_sub(oldest)).unwrap_or(usize::MAX);
        Batch { entries: self.entries.iter().skip(skipped).cloned().collect(), cursor: self.next }
    }

    /// Entries so far.
    pub fn seen(&self) -> u64 {
        self.next - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first_and_reading_goes_on_where_it_stopped() {
        let mut journal = Journal::default();
        for time_ns in 0..CAPACITY as u64 + 10 {
            journal.push(Entry { time_ns, event: AgentEvent::Started });
        }
        let all = journal.read(0);
        assert_eq!((all.entries.len(), all.entries[0].time_ns), (CAPACITY, 10));
        assert!(journal.read(all.cursor).entries.is_empty());
        journal.push(Entry { time_ns: 1, event: AgentEvent::Started });
        assert_eq!(journal.read(all.cursor).entries.len(), 1);
    }
}
