//! Numbers for everything that needs one, and the engine's news about them.
//!
//! Contract: a number that nothing refers to any more is only given back when the transaction has
//! succeeded ([`Ids::settle`]); after a failed one, the old references find their old numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::classes::ClassKey;
use super::delta::Presence;
use crate::identity::registry::{Acquired, LocalExhausted, LocalNumbers, Registry};
use crate::identity::reserved::{ApiServer, cidr_record, class_record};
use crate::identity::{AllocateError, IdentityAllocator};
use crate::model::{CidrScope, Identity, IdentityKind, IdentityRecord, Interner, Labels, ObjectRef};
use crate::policy::engine::{Engine, EngineError};
use crate::policy::map_state::SubjectDelta;
use crate::policy::rule::Policy;

/// What the engine is told at the end of a transaction.
#[derive(Debug)]
pub(super) enum EngineOp {
    UpsertIdentity(IdentityRecord),
    RemoveIdentity(Identity),
    UpsertPolicy(Arc<Policy>),
    RemovePolicy(ObjectRef),
    AddSubject(Identity),
    RemoveSubject(Identity),
}

/// What of this is about identities of pods; the last word counts, and forgetting comes last.
pub(super) fn presences(ops: &[EngineOp]) -> BTreeMap<Identity, Presence> {
    let told = ops.iter().filter_map(|op| match op {
        EngineOp::UpsertIdentity(record) => Some((record.id, Presence::Known)),
        EngineOp::RemoveIdentity(id) => Some((*id, Presence::Gone)),
        _ => None,
    });
    told.filter(|(id, _)| id.is_cluster_scope()).collect()
}

/// Tells the engine everything, or nothing when the result does not fit.
pub(super) fn commit(engine: &mut Engine, mut ops: Vec<EngineOp>) -> Result<Vec<SubjectDelta>, EngineError> {
    // Its lists of identities are sorted: in order, ten thousand of them are appended and not inserted.
    ops.sort_by_key(|op| match op {
        EngineOp::UpsertIdentity(record) => (0, record.id),
        _ => (1, Identity::UNKNOWN),
    });
    engine.begin();
    for op in ops {
        match op {
            EngineOp::UpsertIdentity(record) => engine.upsert_identity(record),
            EngineOp::RemoveIdentity(id) => engine.remove_identity(id),
            EngineOp::UpsertPolicy(policy) => engine.upsert_policy(policy),
            EngineOp::RemovePolicy(object) => {
                engine.remove_policy(&object);
            }
            EngineOp::AddSubject(id) => engine.add_subject(id),
            EngineOp::RemoveSubject(id) => engine.remove_subject(id),
        }
    }
    engine.commit()
}

/// Addresses of the world that no rule can tell apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ExternalKey {
    pub(super) scope: CidrScope,
    pub(super) api_server: ApiServer,
}

/// See the module.
pub(super) struct Ids {
    allocator: Box<dyn IdentityAllocator + Send>,
    pods: Registry<Labels>,
    strings: Interner,
    external: Registry<ExternalKey>,
    nodes: Registry<Arc<str>>,
    classes: Registry<ClassKey>,
    external_numbers: LocalNumbers,
    node_numbers: LocalNumbers,
    class_numbers: LocalNumbers,
}

impl std::fmt::Debug for Ids {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ids").field("pods", &self.pods.len()).field("external", &self.external.len()).finish()
    }
}

impl Ids {
    pub(super) fn new(allocator: Box<dyn IdentityAllocator + Send>, offset: u32) -> Ids {
        Ids {
            allocator,
            pods: Registry::default(),
            strings: Interner::default(),
            external: Registry::default(),
            nodes: Registry::default(),
            classes: Registry::default(),
            external_numbers: LocalNumbers::new(Identity::LOCAL_CIDR_MIN, offset),
            node_numbers: LocalNumbers::new(Identity::REMOTE_NODE_MIN, offset),
            class_numbers: LocalNumbers::new(Identity::ADDRESS_CLASS_MIN, offset),
        }
    }

    /// Also returns the one shared copy of the labels.
    pub(super) fn acquire_pod(
        &mut self,
        labels: Labels,
        ops: &mut Vec<EngineOp>,
    ) -> Result<(Labels, Identity), AllocateError> {
        let labels = match self.pods.key(&labels) {
            Some(shared) => shared.clone(),
            None => self.allocator.shared(&labels).unwrap_or_else(|| self.strings.labels(&labels)),
        };
        let acquired = self.pods.acquire(&labels, || self.allocator.allocate(&labels))?;
        if let Acquired::New(id) = acquired {
            let record = IdentityRecord { id, labels: labels.clone(), kind: IdentityKind::Labels };
            ops.push(EngineOp::UpsertIdentity(record));
        }
        Ok((labels, acquired.id()))
    }

    pub(super) fn release_pod(&mut self, labels: &Labels) {
        self.pods.release(labels);
    }

    pub(super) fn acquire_external(
        &mut self,
        key: &ExternalKey,
        ops: &mut Vec<EngineOp>,
    ) -> Result<Identity, LocalExhausted> {
        let acquired = self.external.acquire(key, || self.external_numbers.allocate())?;
        if let Acquired::New(id) = acquired {
            ops.push(EngineOp::UpsertIdentity(cidr_record(id, &key.scope, key.api_server)));
        }
        Ok(acquired.id())
    }

    pub(super) fn release_external(&mut self, key: &ExternalKey) {
        self.external.release(key);
    }

    /// The caller tells the engine: a node's record changes while its number stays.
    pub(super) fn acquire_node(&mut self, name: &Arc<str>) -> Result<Identity, LocalExhausted> {
        Ok(self.nodes.acquire(name, || self.node_numbers.allocate())?.id())
    }

    pub(super) fn release_node(&mut self, name: &Arc<str>) {
        self.nodes.release(name);
    }

    pub(super) fn acquire_class(
        &mut self,
        key: &ClassKey,
        ops: &mut Vec<EngineOp>,
    ) -> Result<Identity, LocalExhausted> {
        let acquired = self.classes.acquire(key, || self.class_numbers.allocate())?;
        if let Acquired::New(id) = acquired {
            ops.push(EngineOp::UpsertIdentity(class_record(id, key.prefix, &key.ports)));
        }
        Ok(acquired.id())
    }

    pub(super) fn release_class(&mut self, key: &ClassKey) {
        self.classes.release(key);
    }

    pub(super) fn class(&self, key: &ClassKey) -> Option<Identity> {
        self.classes.get(key)
    }

    /// What the engine may forget.
    pub(super) fn idle(&self) -> Vec<EngineOp> {
        let pods = self.pods.idle().map(|(_, id)| id);
        let external = self.external.idle().map(|(_, id)| id);
        let nodes = self.nodes.idle().map(|(_, id)| id);
        let classes = self.classes.idle().map(|(_, id)| id);
        pods.chain(external).chain(nodes).chain(classes).map(EngineOp::RemoveIdentity).collect()
    }

    /// Ends a transaction: numbers without references go back.
    pub(super) fn settle(&mut self) {
        for id in self.pods.settle() {
            self.allocator.release(id);
        }
        self.external.settle().into_iter().for_each(|id| self.external_numbers.free(id));
        self.nodes.settle().into_iter().for_each(|id| self.node_numbers.free(id));
        self.classes.settle().into_iter().for_each(|id| self.class_numbers.free(id));
    }

    /// Beyond every node-local number that was given out since the wrap.
    pub(super) fn offset(&self) -> u32 {
        [&self.external_numbers, &self.node_numbers, &self.class_numbers]
            .into_iter()
            .map(LocalNumbers::offset)
            .max()
            .unwrap_or_default()
    }

    pub(super) fn allocator_mut(&mut self) -> &mut (dyn IdentityAllocator + Send) {
        &mut *self.allocator
    }
}
