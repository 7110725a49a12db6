//! The view: transactions over objects and DNS answers, each with its delta for the datapath.
//!
//! Contract: a transaction is applied whole or not at all, and a change costs what it touches,
//! not what the cluster holds. After every transaction the deltas so far, applied in order, make
//! the same state as [`View::full`].

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use smallvec::smallvec;

use super::delta::{AddressKind, Cause, Delta, IpcacheEntry, Presence, ServiceEntry, ServiceFrontend};
use super::derive::Derived;
use super::dirty::Dirty;
use super::ids::{EngineOp, Ids, commit, presences};
use super::objects::{Objects, Stored};
use super::options::{ViewError, ViewOptions};
use super::publish::{LocalEndpoint, Published};
use super::{Change, Secret};
use crate::fqdn::name_manager::{Learnt, Lost};
use crate::fqdn::{Given, Learned, NameManager, Snapshot};
use crate::identity::IdentityAllocator;
use crate::identity::reserved::{ApiServer, fixed_records, node_record, world};
use crate::ipcache::Source;
use crate::model::{Family, Identity, IdentityRecord, Kind, Labels, ObjectRef};
use crate::policy::engine::Engine;
use crate::policy::l7::fit::{self, Misfit};
use crate::policy::map_state::SubjectDelta;

/// To look at one takes as long as to compile a proxy's largest set of rules.
const MOST_CROWDS: usize = 16;

/// One node's view of the cluster; see the module.
#[derive(Debug)]
pub struct View {
    pub(super) options: ViewOptions,
    pub(super) objects: Objects,
    pub(super) derived: Derived,
    pub(super) engine: Engine,
    pub(super) published: Published,
    revision: u64,
    /// What the start made, until the first transaction carries it.
    start: Option<(Dirty, Vec<SubjectDelta>)>,
    refused_answers: u64,
}

impl View {
    /// A view of an empty cluster.
    pub fn new(options: ViewOptions, allocator: Box<dyn IdentityAllocator + Send>) -> View {
        let mut engine = Engine::new(options.engine.clone());
        let mut ops: Vec<EngineOp> = fixed_records().into_iter().map(EngineOp::UpsertIdentity).collect();
        ops.push(EngineOp::UpsertIdentity(node_record(Identity::HOST, None, ApiServer::Elsewhere)));
        if options.host_firewall {
            ops.push(EngineOp::AddSubject(Identity::HOST));
        }
        let policies = commit(&mut engine, ops).expect("a dozen identities fit any table");
        let ids = Ids::new(allocator, options.local_number_offset);
        let mut derived = Derived::new(ids, NameManager::new(options.names));
        let mut dirty = Dirty::default();
        for (prefix, source, entry) in fixed_claims(&options) {
            derived.layers.set(prefix, source, Some(entry));
            dirty.ipcache.insert(prefix);
        }
        let mut view = View {
            objects: Objects::default(),
            derived,
            engine,
            published: Published::default(),
            revision: 0,
            start: None,
            refused_answers: 0,
            options,
        };
        // Tables are right from the start; the first delta carries it all the same.
        view.publish(&dirty, policies.clone());
        view.start = Some((dirty, policies));
        view
    }

    /// One transaction: on error nothing has changed.
    ///
    /// Upserts replace, deletes of what is not there do nothing. The order inside a transaction
    /// does not matter, except that the last change of an object counts.
    pub fn apply(&mut self, changes: Vec<Change>) -> Result<Delta, Vec<ViewError>> {
        let mut dirty = Dirty::default();
        let mut undo: Vec<(ObjectRef, Option<Stored>)> = Vec::with_capacity(changes.len());
        for change in changes {
            let (references, new) = match change {
                Change::Upsert(resource) => (smallvec![resource.reference()], Some(Stored::from(resource))),
                Change::Delete(reference) => (self.objects.kept_as(reference), None),
            };
            for reference in references {
                let old = self.swap(&reference, new.clone(), &mut dirty);
                undo.push((reference, old));
            }
        }
        let errors = self.conflicts(&undo);
        if !errors.is_empty() {
            // Nothing was derived yet: the objects alone go back.
            for (reference, old) in undo.into_iter().rev() {
                self.objects.swap(&reference, old);
            }
            return Err(errors);
        }
        match self.derive_and_commit(&mut dirty) {
            Ok(policies) => Ok(self.publish_with_start(dirty, policies)),
            Err(error) => {
                for (reference, old) in undo.into_iter().rev() {
                    self.swap(&reference, old, &mut dirty);
                }
                self.roll_back(&mut dirty);
                Err(vec![error])
            }
        }
    }

    /// Replaces an object and marks what its old and new form touch.
    fn swap(&mut self, reference: &ObjectRef, new: Option<Stored>, dirty: &mut Dirty) -> Option<Stored> {
        let old = self.objects.swap(reference, new.clone());
        for side in [&old, &new].into_iter().flatten() {
            let policies = self.derived.policies.iter().map(|(policy, state)| (policy, &state.references));
            dirty.mark(reference, side, &self.objects, policies);
        }
        old
    }

    /// Two owners of one address, two Services with one ClusterIP.
    fn conflicts(&self, changed: &[(ObjectRef, Option<Stored>)]) -> Vec<ViewError> {
        let mut errors = Vec::new();
        for (reference, _) in changed {
            if let Some(service) = self.objects.service(reference) {
                for address in &service.cluster_ips {
                    if let Some(first) = self.objects.services_at(*address).find(|other| *other != reference)
                    {
                        errors.push(ViewError::DuplicateClusterIp {
                            address: *address,
                            first: first.clone(),
                            second: reference.clone(),
                        });
                    }
                }
            }
            let addresses = match reference.kind {
                Kind::Pod => self.objects.pod(reference).map(|pod| &pod.addresses[..]),
                Kind::Node => self.objects.node(&reference.name).map(|node| &node.addresses[..]),
                _ => None,
            };
            for address in addresses.unwrap_or_default() {
                let mut owners = self.objects.owners(*address);
                if !owners.clone().any(|owner| owner == reference) {
                    continue;
                }
                let same_kind = |other: &&ObjectRef| other.kind == reference.kind && *other != reference;
                if let Some(first) = owners.find(same_kind) {
                    errors.push(ViewError::DuplicateAddress {
                        address: *address,
                        first: first.clone(),
                        second: reference.clone(),
                    });
                }
            }
        }
        errors
    }

    fn derive_and_commit(&mut self, dirty: &mut Dirty) -> Result<Vec<SubjectDelta>, ViewError> {
        let ops = self.derived.derive(&self.objects, &self.options, dirty)?;
        let identities = presences(&ops);
        let policies = commit(&mut self.engine, ops)?;
        dirty.identities.extend(identities);
        self.derived.ids.settle();
        Ok(policies)
    }

    /// The objects (and names) are the old ones again; the engine never learned of the new ones.
    fn roll_back(&mut self, dirty: &mut Dirty) {
        self.derived
            .derive(&self.objects, &self.options, dirty)
            .expect("numbers of the old state are kept until a transaction has succeeded");
        self.derived.ids.settle();
    }

    fn publish(&mut self, dirty: &Dirty, policies: Vec<SubjectDelta>) -> Delta {
        self.published.advance(&self.derived, &self.objects, &self.options, dirty, policies)
    }

    fn publish_with_start(&mut self, dirty: Dirty, policies: Vec<SubjectDelta>) -> Delta {
        let mut delta = self.publish(&dirty, policies);
        if let Some((start, mut policies)) = self.start.take() {
            let told = |prefix: &IpNet, delta: &Delta| delta.ipcache.iter().any(|(other, _)| other == prefix);
            for prefix in start.ipcache {
                if !told(&prefix, &delta) {
                    delta.ipcache.push((prefix, self.published.ipcache.get(prefix).copied()));
                }
            }
            policies.append(&mut delta.policies);
            delta.policies = policies;
            delta.node.clone_from(&self.published.node);
        }
        if !delta.is_empty() {
            self.revision += 1;
        }
        delta.revision = self.revision;
        delta
    }

    fn publish_names(&mut self, dirty: Dirty, policies: Vec<SubjectDelta>) -> Delta {
        // The start is about objects, whatever it is carried by.
        let cause = if self.start.is_some() { Cause::Objects } else { Cause::Names };
        Delta { cause, ..self.publish_with_start(dirty, policies) }
    }

    /// Takes in a DNS answer that is about to be released to a pod. The pod may have the answer
    /// once the datapath has realized the delta. Expires nothing: see [`View::expire`].
    ///
    /// An answer whose addresses do not fit the datapath's tables is not learned (and counted in
    /// [`View::refused_answers`]): its addresses stay closed.
    pub fn learn(&mut self, now: Duration, answer: &Learned) -> Delta {
        self.learn_one(now, answer, &[]).0
    }

    fn learn_one(&mut self, now: Duration, answer: &Learned, clients: &[IpAddr]) -> (Delta, Lost) {
        let learnt = self.derived.names.learn(now, answer, clients);
        let mut dirty = Dirty { addresses: learnt.touched.clone(), ..Dirty::default() };
        match self.derive_and_commit(&mut dirty) {
            Ok(policies) => (self.publish_names(dirty, policies), learnt.lost),
            Err(_) => {
                dirty.addresses.extend(self.derived.names.take_back(&learnt));
                self.roll_back(&mut dirty);
                self.refused_answers += 1;
                (Delta { revision: self.revision, ..Delta::default() }, Lost::new())
            }
        }
    }

    /// Takes in several answers at once, with who is given them; see [`View::learn`]. When they do not fit together,
    /// each is tried for itself. Deltas go to `realize` in their order. Returns what was dropped early to make room;
    /// some of it may have been learned again.
    pub fn learn_all(&mut self, now: Duration, answers: &[Given], mut realize: impl FnMut(Delta)) -> Lost {
        let learnt: Vec<Learnt> = answers
            .iter()
            .map(|Given { learned, clients }| self.derived.names.learn(now, learned, clients))
            .collect();
        let touched = learnt.iter().flat_map(|learnt| &learnt.touched).copied().collect();
        let mut dirty = Dirty { addresses: touched, ..Dirty::default() };
        if let Ok(policies) = self.derive_and_commit(&mut dirty) {
            realize(self.publish_names(dirty, policies));
            return learnt.into_iter().flat_map(|learnt| learnt.lost).collect();
        }
        // The last one first: a name may be there twice.
        for learnt in learnt.iter().rev() {
            dirty.addresses.extend(self.derived.names.take_back(learnt));
        }
        self.roll_back(&mut dirty);
        let mut all_lost = Lost::new();
        for Given { learned, clients } in answers {
            let (delta, lost) = self.learn_one(now, learned, clients);
            all_lost.extend(lost);
            realize(delta);
        }
        all_lost
    }

    /// Drops addresses whose answers ended at `now` or before.
    ///
    /// An address that other names still hold moves to another identity, which may need room that
    /// the datapath's tables do not have. Then it is dropped for every name: closed, until a new
    /// answer brings it back.
    pub fn expire(&mut self, now: Duration) -> Delta {
        let expired = self.derived.names.expire(now);
        let mut dirty = Dirty { addresses: expired.touched.clone(), ..Dirty::default() };
        let policies = self.derive_and_commit(&mut dirty).unwrap_or_else(|_| {
            self.derived.names.reinstate(&expired);
            self.roll_back(&mut dirty);
            self.derived.names.forget_addresses(&expired.touched);
            self.refused_answers += 1;
            self.derive_and_commit(&mut dirty).expect("identities only go, and nothing new is needed")
        });
        self.publish_names(dirty, policies)
    }

    /// When [`View::expire`] has something to do.
    pub fn next_expiry(&self) -> Option<Duration> {
        self.derived.names.next_expiry()
    }

    /// Fresh answers, for [`View::restore_names`] after a restart.
    pub fn names_snapshot(&self, now: Duration) -> Snapshot {
        self.derived.names.snapshot(now)
    }

    /// Takes in the answers of an earlier run; `elapsed` is the time since the snapshot.
    pub fn restore_names(&mut self, now: Duration, elapsed: Duration, snapshot: &Snapshot) -> Delta {
        let touched = self.derived.names.restore(now, elapsed, snapshot);
        let mut dirty = Dirty { addresses: touched, ..Dirty::default() };
        match self.derive_and_commit(&mut dirty) {
            Ok(policies) => self.publish_with_start(dirty, policies),
            Err(_) => {
                for name in snapshot.names.keys() {
                    dirty.addresses.extend(self.derived.names.forget_name(name));
                }
                self.roll_back(&mut dirty);
                self.refused_answers += 1;
                Delta { revision: self.revision, ..Delta::default() }
            }
        }
    }

    /// The whole state as a delta from nothing, for a datapath of which nothing is known.
    pub fn full(&self) -> Delta {
        let policies = self.engine.subjects().map(|subject| self.full_policy(subject)).collect();
        let known = self.engine.identities().map(|record| record.id).filter(|id| id.is_cluster_scope());
        let identities = known.map(|id| (id, Presence::Known)).collect();
        Delta { revision: self.revision, policies, identities, ..self.published.full() }
    }

    /// What is known of single addresses, as a delta: for a datapath in which somebody else has changed them.
    pub fn restate(&self, addresses: &[IpAddr]) -> Delta {
        let entry = |prefix: IpNet| (prefix, self.published.ipcache.get(prefix).copied());
        let ipcache = addresses.iter().map(|address| entry(IpNet::from(*address))).collect();
        Delta { revision: self.revision, cause: Cause::Names, ipcache, ..Delta::default() }
    }

    fn full_policy(&self, subject: Identity) -> SubjectDelta {
        SubjectDelta {
            subject,
            info: self.engine.info(subject).unwrap_or_default(),
            upserts: self.engine.entries(subject).into_iter().map(|view| (view.key, view.entry)).collect(),
            deletes: vec![],
            class_upserts: self.engine.port_classes(subject),
            class_deletes: vec![],
            removed: false,
        }
    }

    /// Grows with every transaction that changed something.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn options(&self) -> &ViewOptions {
        &self.options
    }

    /// Verdicts, explanations and L7 rules by identity.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Where rules of these policies are too large for the proxies together with those of others, on whichever node the
    /// pods are.
    pub fn l7_misfits(&mut self, policies: &[ObjectRef]) -> Vec<Misfit> {
        let crowds = self.engine.http_crowds(policies).into_iter().take(MOST_CROWDS).collect::<BTreeSet<_>>();
        if crowds.is_empty() {
            return Vec::new();
        }
        let mut found = fit::misfits(&self.engine.l7_rules_at(&crowds));
        found.retain(|misfit| misfit.rules.iter().any(|(object, _)| policies.contains(object)));
        found
    }

    /// Names, their addresses and counters.
    pub fn names(&self) -> &NameManager {
        &self.derived.names
    }

    /// Answers that were not learned because their addresses did not fit.
    pub fn refused_answers(&self) -> u64 {
        self.refused_answers
    }

    /// For housekeeping of the allocator (its clock, its state).
    pub fn allocator_mut(&mut self) -> &mut (dyn IdentityAllocator + Send) {
        self.derived.ids.allocator_mut()
    }

    /// See [`ViewOptions::local_number_offset`].
    pub fn local_number_offset(&self) -> u32 {
        self.derived.ids.offset()
    }

    /// Local pods that policy governs, in the order of their names.
    pub fn endpoints(&self) -> impl Iterator<Item = &LocalEndpoint> {
        self.published.endpoints.values()
    }

    /// Every identity in use, in the order of numbers.
    pub fn identities(&self) -> impl Iterator<Item = &IdentityRecord> {
        self.engine.identities()
    }

    /// The nodes that are known, in no particular order.
    pub fn nodes(&self) -> impl Iterator<Item = &crate::model::Node> {
        self.objects.nodes().map(|node| &**node)
    }

    pub fn ipcache(&self) -> impl Iterator<Item = (IpNet, &IpcacheEntry)> {
        self.published.ipcache.iter()
    }

    pub fn services(&self) -> impl Iterator<Item = (&ServiceFrontend, &ServiceEntry)> {
        self.published.services.iter()
    }

    /// The identity labels and number of a pod with addresses of its own.
    pub fn pod_identity(&self, namespace: &str, name: &str) -> Option<(Identity, Option<&Labels>)> {
        let state = self.derived.pods.get(&ObjectRef::new(Kind::Pod, namespace, name))?;
        Some((state.identity, state.labels.as_ref()))
    }

    /// There is an object of this pod.
    pub fn has_pod(&self, pod: &ObjectRef) -> bool {
        self.objects.pod(pod).is_some()
    }

    /// A Secret that rules may refer to.
    pub fn secret(&self, namespace: &str, name: &str) -> Option<&Arc<Secret>> {
        self.objects.secret(namespace, name)
    }
}

/// What is known about addresses before the first object.
fn fixed_claims(options: &ViewOptions) -> Vec<(IpNet, Source, IpcacheEntry)> {
    let entry = |identity, class| IpcacheEntry { identity, tunnel_endpoint: None, class };
    let everything = [(Family::IPv4, IpAddr::from([0u8; 4])), (Family::IPv6, IpAddr::from([0u8; 16]))];
    let worlds = everything.into_iter().map(|(family, address)| {
        let prefix = IpNet::new(address, 0).expect("zero is a prefix length of both families");
        (prefix, Source::World, entry(world(family), AddressKind::World))
    });
    let ranges = options.pod_cidrs.iter().map(|range| {
        (range.trunc(), Source::ClusterRange, entry(Identity::UNKNOWN, AddressKind::ClusterRange))
    });
    let fixed = options.fixed_addresses.iter().map(|(address, identity)| {
        (IpNet::from(*address), Source::Fixed, entry(*identity, AddressKind::Node))
    });
    worlds.chain(ranges).chain(fixed).collect()
}
