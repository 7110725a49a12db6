//! The identity allocator of an agent that has a server: what the stream has told, and a question to
//! the server for the rest.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::event::{Update, UpdateKind};
use crate::identity::{AllocateError, IdentityAllocator};
use crate::model::{Identity, Labels};

/// How long a question may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Assignments that this node knows, shared by the stream and the allocator.
#[derive(Debug, Default)]
pub(super) struct Known {
    by_labels: HashMap<Labels, Identity>,
    by_id: BTreeMap<Identity, Labels>,
    /// What this node uses, and how often. The server keeps a number for as long as a node says that
    /// it uses it, also when the objects that made the server assign it are gone.
    uses: BTreeMap<Identity, usize>,
}

impl Known {
    /// Takes in what an update says about identities, before the agent sees the update.
    pub(super) fn learn(&mut self, update: &Update) {
        if update.kind != UpdateKind::Change {
            self.by_labels.clear();
            self.by_id.clear();
        }
        for id in &update.removed_identities {
            if let Some(labels) = self.by_id.remove(id) {
                self.by_labels.remove(&labels);
            }
        }
        for (labels, id) in &update.identities {
            self.put(labels.clone(), *id);
        }
    }

    fn put(&mut self, labels: Labels, id: Identity) {
        self.by_id.insert(id, labels.clone());
        self.by_labels.insert(labels, id);
    }

    /// What the server shall keep for this node.
    pub(super) fn held(&self) -> BTreeSet<Identity> {
        self.uses.keys().copied().collect()
    }
}

/// A question to the task that talks to the server.
#[derive(Debug)]
pub(super) enum Question {
    Allocate { labels: Labels, answer: SyncSender<Result<Identity, String>> },
    Release(Identity),
}

/// Allocates through the server. [`IdentityAllocator::allocate`] of a set that no update has named
/// blocks until the server has answered, at most five seconds: call it on a thread of its own or from
/// `spawn_blocking`, never on the thread of a single-threaded runtime.
#[derive(Clone, Debug)]
pub struct RemoteAllocator {
    known: Arc<Mutex<Known>>,
    questions: mpsc::UnboundedSender<Question>,
}

impl RemoteAllocator {
    pub(super) fn new(
        known: Arc<Mutex<Known>>,
        questions: mpsc::UnboundedSender<Question>,
    ) -> RemoteAllocator {
        RemoteAllocator { known, questions }
    }

    /// The number that an update has named, without asking.
    pub fn known(&self, labels: &Labels) -> Option<Identity> {
        self.known.lock().by_labels.get(labels).copied()
    }
}

impl IdentityAllocator for RemoteAllocator {
    fn shared(&self, labels: &Labels) -> Option<Labels> {
        self.known.lock().by_labels.get_key_value(labels).map(|(labels, _)| labels.clone())
    }

    fn allocate(&mut self, labels: &Labels) -> Result<Identity, AllocateError> {
        {
            let mut known = self.known.lock();
            if let Some(id) = known.by_labels.get(labels).copied() {
                *known.uses.entry(id).or_default() += 1;
                return Ok(id);
            }
        }
        let unavailable = |reason: String| AllocateError::Unavailable { labels: labels.clone(), reason };
        let (answer, receiver) = sync_channel(1);
        self.questions
            .send(Question::Allocate { labels: labels.clone(), answer })
            .map_err(|_| unavailable("the connection to the server has been closed".to_owned()))?;
        let id = match receiver.recv_timeout(PATIENCE) {
            Ok(outcome) => outcome.map_err(unavailable)?,
            Err(RecvTimeoutError::Timeout) => return Err(unavailable("no answer in time".to_owned())),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(unavailable("the client has stopped".to_owned()));
            }
        };
        let mut known = self.known.lock();
        known.put(labels.clone(), id);
        *known.uses.entry(id).or_default() += 1;
        Ok(id)
    }

    fn release(&mut self, id: Identity) {
        let mut known = self.known.lock();
        match known.uses.get_mut(&id) {
            Some(uses) if *uses > 1 => *uses -= 1,
            Some(_) => {
                known.uses.remove(&id);
                // Should it get lost, the next report says the same.
                let _ = self.questions.send(Question::Release(id));
            }
            None => {}
        }
    }
}
