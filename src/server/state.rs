//! The cluster's state: objects, identities and nodes, and the updates that tell agents about them.
//!
//! Everything that changes is changed under one lock and announced under it, so that every agent sees
//! the same updates in the same order, and a stream that starts sees each of them exactly once, in its
//! snapshot or after it. Methods block (SQLite): asynchronous callers use `spawn_blocking`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::broadcast;

use super::event::{ManifestObject, Peer, Update, UpdateKind};
use crate::cluster::{Change, View, ViewError, ViewOptions};
use crate::model::{Identity, Labels, ObjectRef};
use crate::store::objects::{Applied, ApplyError, ApplyMode, LoadError, ObjectStore, Problem};
use crate::store::{
    Clock, Holder, IdentityChange, IdentityRow, IdentityStore, IdentityStoreError, NodeReport, NodeRow,
    ObjectChanges, StoreAllocator, StoreError, StoredObject,
};

/// Updates that an agent may be behind. One that is slower is disconnected and comes back.
const BACKLOG: usize = 256;

/// Why the state could not be brought up.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The stored objects contradict each other for this release.
    #[error("the stored objects are refused: {}", .0.iter().map(Problem::to_string).collect::<Vec<_>>().join("; "))]
    Refused(Vec<Problem>),
}

pub(super) struct State {
    objects: ObjectStore,
    epoch: Arc<str>,
    clock: Clock,
    options: ViewOptions,
    allocator: StoreAllocator,
    updates: broadcast::Sender<Arc<Update>>,
    inner: Mutex<Inner>,
}

struct Inner {
    /// The derivation that every agent runs too: it refuses what they would refuse, and allocates what
    /// they will need, so that an update carries the numbers of its objects. `None` after a
    /// transaction that it took in and that was not stored; it is then made anew before it is used.
    view: Option<View>,
    nodes: BTreeMap<String, NodeRow>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// A new stream: what is true now, and what happens from now on.
pub(super) type Subscription = (Update, broadcast::Receiver<Arc<Update>>);

impl State {
    pub(super) fn open(
        objects: ObjectStore,
        options: ViewOptions,
        clock: Clock,
        grace: Duration,
    ) -> Result<State, StateError> {
        let store = objects.store().clone();
        let epoch = store.epoch()?.into();
        let identities = IdentityStore::open(store.clone(), clock.clone(), grace)?;
        let nodes = store.nodes()?.into_iter().map(|node| (node.name.clone(), node)).collect();
        let (updates, _) = broadcast::channel(BACKLOG);
        let inner = Mutex::new(Inner { view: None, nodes });
        let allocator = StoreAllocator::new(identities, Holder::Server);
        let state = State { objects, epoch, clock, options, allocator, updates, inner };
        state.view(&mut state.inner.lock())?;
        Ok(state)
    }

    pub(super) fn objects(&self) -> &ObjectStore {
        &self.objects
    }

    /// The view of what is stored.
    fn view<'a>(&self, inner: &'a mut Inner) -> Result<&'a mut View, StateError> {
        let view = match inner.view.take() {
            Some(view) => view,
            None => {
                let loaded = self.objects.load()?;
                self.allocator.start_over();
                let mut view = View::new(self.options.clone(), Box::new(self.allocator.clone()));
                let outcome = view.apply(loaded.resources.into_iter().map(Change::Upsert).collect());
                self.announce_assigned()?;
                outcome.map_err(|errors| StateError::Refused(problems(errors)))?;
                self.allocator.release_unclaimed()?;
                view
            }
        };
        Ok(inner.view.insert(view))
    }

    /// Applies manifests and tells every agent.
    pub(super) fn apply(&self, text: &str, mode: ApplyMode) -> Result<Applied, ApplyError> {
        self.change(mode, text, |admit| self.objects.apply(text, mode, admit).map(Some))?
            .ok_or_else(|| ApplyError::Store(StoreError::Stopped))
    }

    /// Deletes an object and tells every agent; `None` when there is none.
    pub(super) fn delete(&self, reference: &ObjectRef) -> Result<Option<Applied>, ApplyError> {
        self.change(ApplyMode::Commit, "", |admit| self.objects.delete(reference, admit))
    }

    /// `text` is what the change was read from, if it was.
    fn change(
        &self,
        mode: ApplyMode,
        text: &str,
        run: impl FnOnce(
            &mut dyn FnMut(&[Change]) -> Result<(), Vec<Problem>>,
        ) -> Result<Option<Applied>, ApplyError>,
    ) -> Result<Option<Applied>, ApplyError> {
        let mut inner = self.inner.lock();
        let view = self.view(&mut inner).map_err(|error| match error {
            StateError::Store(error) | StateError::Load(LoadError::Store(error)) => ApplyError::Store(error),
            StateError::Load(LoadError::Unreadable { problems, .. }) | StateError::Refused(problems) => {
                ApplyError::Rejected(problems)
            }
        })?;
        let (mut taken_in, mut warnings) = (false, Vec::new());
        let mut outcome = run(&mut |changes| {
            if changes.is_empty() {
                return Ok(());
            }
            let refused = |error: &_| Problem::of_view(error, self.objects.parser(), text);
            view.apply(changes.to_vec()).map_err(|errors| errors.iter().map(refused).collect::<Vec<_>>())?;
            taken_in = true;
            warnings = Problem::of_crowds(view, changes, self.objects.parser(), text);
            Ok(())
        });
        if let Ok(Some(applied)) = &mut outcome {
            applied.warnings.append(&mut warnings);
        }
        let stored = outcome.as_ref().ok().and_then(Option::as_ref).filter(|_| mode == ApplyMode::Commit);
        if taken_in && stored.is_none() {
            inner.view = None;
        }
        match stored {
            Some(applied) if taken_in => self.announce(Update {
                revision: applied.revision,
                upserts: applied
                    .manifests
                    .iter()
                    .map(|(reference, manifest)| ManifestObject {
                        reference: reference.clone(),
                        manifest: manifest.clone(),
                    })
                    .collect(),
                deletes: applied.changes.iter().filter_map(deleted).collect(),
                identities: self.allocator.take_assigned(),
                ..Update::default()
            }),
            // Numbers that were given are stored, whatever became of the transaction.
            _ => self.announce_assigned()?,
        }
        outcome
    }

    /// What is true now and a receiver of what follows. `resume` is the epoch and revision that the
    /// agent has reached.
    pub(super) fn subscribe(&self, resume: Option<(&str, u64)>) -> Result<Subscription, StoreError> {
        let inner = self.inner.lock();
        // The lock is held until the state is read: nothing can be announced in between.
        let updates = self.updates.subscribe();
        let store = self.objects.store();
        let resumed = match resume {
            Some((epoch, revision)) if *epoch == *self.epoch => store.changes_since(revision)?,
            _ => None,
        };
        let (kind, objects) = match resumed {
            Some(changes) => (UpdateKind::Resumed, changes),
            None => (UpdateKind::Snapshot, store.objects()?),
        };
        let ObjectChanges { revision, upserts, deletes } = objects;
        let object =
            |object: StoredObject| ManifestObject { reference: object.reference, manifest: object.manifest };
        let update = Update {
            kind,
            revision,
            epoch: self.epoch.clone(),
            upserts: upserts.into_iter().map(object).collect(),
            deletes: deletes.into_iter().map(|deleted| deleted.reference).collect(),
            identities: self.allocator.identities().rows().map(|row| (row.labels.clone(), row.id)).collect(),
            removed_identities: Vec::new(),
            nodes: inner.nodes.values().filter_map(peer).collect(),
            removed_nodes: Vec::new(),
        };
        Ok((update, updates))
    }

    pub(super) fn allocate(&self, node: &str, sets: &[Labels]) -> Result<Vec<Identity>, IdentityStoreError> {
        let _inner = self.inner.lock();
        let holder = Holder::Node(node.to_owned());
        let (ids, change) = self.allocator.identities().allocate_all(sets, &holder)?;
        self.announce_identities(change)?;
        Ok(ids)
    }

    pub(super) fn release(&self, node: &str, ids: &[Identity]) -> Result<(), StoreError> {
        let _inner = self.inner.lock();
        let holder = Holder::Node(node.to_owned());
        let mut identities = self.allocator.identities();
        ids.iter().try_for_each(|id| identities.release(*id, &holder))
    }

    /// Stores what a node says. False: the node is not registered any more.
    pub(super) fn report(
        &self,
        node: &str,
        report: NodeReport,
        held: Option<&BTreeSet<Identity>>,
    ) -> Result<bool, IdentityStoreError> {
        let mut inner = self.inner.lock();
        let now = (self.clock)();
        if !self.objects.store().report_node(node, &report, now)? {
            return Ok(false);
        }
        if let Some(held) = held {
            self.allocator.identities().hold_only(held, &Holder::Node(node.to_owned()))?;
        }
        let Some(row) = inner.nodes.get_mut(node) else { return Ok(false) };
        let before = peer(row);
        row.report = Some(report);
        row.last_seen = now;
        let after = peer(row);
        if before != after {
            self.announce_now(Update { nodes: after.into_iter().collect(), ..Update::default() })?;
        }
        Ok(true)
    }

    /// Binds a node name to a key; false when it belongs to another key.
    pub(super) fn join(&self, node: &str, key: [u8; 32]) -> Result<bool, StoreError> {
        let mut inner = self.inner.lock();
        let now = (self.clock)();
        if self.objects.store().bind_node(node, key, now)? != key {
            return Ok(false);
        }
        inner.nodes.entry(node.to_owned()).or_insert_with(|| NodeRow {
            name: node.to_owned(),
            key,
            joined: now,
            last_seen: now,
            report: None,
        });
        Ok(true)
    }

    /// The key is the one that the name is bound to.
    pub(super) fn is_current(&self, node: &str, key: &[u8; 32]) -> bool {
        self.inner.lock().nodes.get(node).is_some_and(|row| row.key == *key)
    }

    /// Releases a node's name and whatever it held; false when there was none.
    pub(super) fn remove_node(&self, node: &str) -> Result<bool, StoreError> {
        let mut inner = self.inner.lock();
        if !self.objects.store().remove_node(node)? {
            return Ok(false);
        }
        inner.nodes.remove(node);
        self.allocator.identities().release_holder(&Holder::Node(node.to_owned()))?;
        self.announce_now(Update { removed_nodes: vec![node.to_owned()], ..Update::default() })?;
        Ok(true)
    }

    pub(super) fn nodes(&self) -> Vec<NodeRow> {
        self.inner.lock().nodes.values().cloned().collect()
    }

    pub(super) fn identities(&self) -> Vec<IdentityRow> {
        self.allocator.identities().rows().cloned().collect()
    }

    pub(super) fn watchers(&self) -> usize {
        self.updates.receiver_count()
    }

    /// What is due from time to time: looks whether a failing store works again, and collects.
    pub(super) fn tend(&self, now: std::time::SystemTime) -> Result<(), StoreError> {
        let store = self.objects.store();
        if store.health().failing.is_some() {
            store.probe(now)?;
        }
        self.collect()
    }

    /// Forgets identities whose grace period has ended.
    pub(super) fn collect(&self) -> Result<(), StoreError> {
        let _inner = self.inner.lock();
        let change = self.allocator.collect()?;
        self.announce_identities(change)
    }

    fn announce_assigned(&self) -> Result<(), StoreError> {
        self.announce_identities(IdentityChange {
            added: self.allocator.take_assigned(),
            removed: Vec::new(),
        })
    }

    fn announce_identities(&self, change: IdentityChange) -> Result<(), StoreError> {
        if change.added.is_empty() && change.removed.is_empty() {
            return Ok(());
        }
        self.announce(Update {
            revision: self.objects.store().revision()?,
            identities: change.added,
            removed_identities: change.removed,
            ..Update::default()
        });
        Ok(())
    }

    fn announce_now(&self, update: Update) -> Result<(), StoreError> {
        self.announce(Update { revision: self.objects.store().revision()?, ..update });
        Ok(())
    }

    /// The caller holds the lock.
    fn announce(&self, update: Update) {
        // An error means that nobody listens.
        let _ = self.updates.send(Arc::new(Update { epoch: self.epoch.clone(), ..update }));
    }
}

fn problems(errors: Vec<ViewError>) -> Vec<Problem> {
    errors.into_iter().map(|error| Problem { message: error.to_string(), ..Problem::default() }).collect()
}

fn deleted(change: &Change) -> Option<ObjectRef> {
    match change {
        Change::Delete(reference) => Some(reference.clone()),
        Change::Upsert(_) => None,
    }
}

fn peer(node: &NodeRow) -> Option<Peer> {
    let report = node.report.as_ref()?;
    Some(Peer { name: node.name.clone(), addresses: report.addresses.clone() })
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
