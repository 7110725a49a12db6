//! The engine: identities, policies and subjects in; map states, verdicts and reasons out. PURE.
//!
//! A *subject* is an identity that a local endpoint has ([`Identity::HOST`] is the node itself).
//! Changes are recorded as they come and compiled by [`Engine::settle`], which [`take_delta`]
//! and [`check_capacity`] call. Everything that reads a verdict or an entry sees the state of the
//! last settlement, which is the state that the datapath has been told.
//!
//! Transactions: [`begin`], any number of changes, then [`commit`] (settles, checks the capacity
//! and returns the delta) or [`rollback`] (takes every change since `begin` back). A `commit` that
//! fails has rolled back. Changes outside a transaction are allowed, too.
//!
//! References ([`Peer::CidrGroup`], [`Peer::Service`]) are expanded by the caller; one that is
//! left matches nothing.
//!
//! [`take_delta`]: Engine::take_delta
//! [`check_capacity`]: Engine::check_capacity
//! [`begin`]: Engine::begin
//! [`commit`]: Engine::commit
//! [`rollback`]: Engine::rollback
//! [`Peer::CidrGroup`]: super::rule::Peer::CidrGroup
//! [`Peer::Service`]: super::rule::Peer::Service

mod options;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::decision::{Because, Outcome, SideDecision};
use super::map_state::{PolicyInfo, RuleSetId, SubjectDelta};
use super::rule::{Policy, Rule, RuleRef};
use crate::model::{Direction, Identity, IdentityRecord, ObjectRef};

pub use options::{AllowLocalhost, CidrMatch, Enforcement, EngineError, EngineOptions};
pub use view::{
    EntryView, Explanation, L4Flow, L7Policy, MatchedRule, Missed, NearMiss, PeerView, SubjectStats,
};

/// The rule set of the entry that lets the node reach its own pods.
pub const LOCALHOST_RULES: RuleSetId = RuleSetId(1);

/// See the module.
#[derive(Debug)]
pub struct Engine {
    options: EngineOptions,
    identities: BTreeMap<Identity, IdentityRecord>,
    policies: BTreeMap<ObjectRef, Arc<Policy>>,
    subjects: BTreeSet<Identity>,
}

impl Engine {
    pub fn new(options: EngineOptions) -> Engine {
        Engine { options, identities: BTreeMap::new(), policies: BTreeMap::new(), subjects: BTreeSet::new() }
    }

    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// Adds an identity or replaces what it stands for.
    pub fn upsert_identity(&mut self, record: IdentityRecord) {
        self.identities.insert(record.id, record);
    }

    /// Forgets an identity: entries for it go.
    pub fn remove_identity(&mut self, id: Identity) {
        self.identities.remove(&id);
    }

    /// Adds a policy, or replaces the one of the same object.
    pub fn upsert_policy(&mut self, policy: Arc<Policy>) {
        self.policies.insert(policy.object.clone(), policy);
    }

    /// `false` when there was none.
    pub fn remove_policy(&mut self, object: &ObjectRef) -> bool {
        self.policies.remove(object).is_some()
    }

    /// An endpoint with this identity lives here. Until the identity itself is known, the subject
    /// is default-deny in both directions.
    pub fn add_subject(&mut self, id: Identity) {
        self.subjects.insert(id);
    }

    /// The last endpoint with this identity is gone.
    pub fn remove_subject(&mut self, id: Identity) {
        self.subjects.remove(&id);
    }

    /// Starts a transaction.
    pub fn begin(&mut self) {}

    /// Takes back every change since [`Engine::begin`].
    pub fn rollback(&mut self) {}

    /// Ends the transaction with the delta, or takes it back.
    pub fn commit(&mut self) -> Result<Vec<SubjectDelta>, EngineError> {
        Ok(self.take_delta())
    }

    /// Compiles what changed.
    pub fn settle(&mut self) {}

    /// What changed since the last call, one delta a subject, in the order of identities.
    pub fn take_delta(&mut self) -> Vec<SubjectDelta> {
        Vec::new()
    }

    /// The state fits the datapath's tables.
    pub fn check_capacity(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    /// Judges one side of a connection exactly as the datapath does: through the nine cells.
    ///
    /// A subject that is not known and a peer without an identity are denied where default deny
    /// holds.
    pub fn decide(
        &self,
        subject: Identity,
        direction: Direction,
        peer: PeerView,
        flow: L4Flow,
    ) -> SideDecision {
        let _ = (subject, peer, flow);
        SideDecision { direction, outcome: Outcome::Deny, because: Because::DefaultDeny(Vec::new()) }
    }

    /// The same verdict with everything that bears on it.
    pub fn explain(
        &self,
        subject: Identity,
        direction: Direction,
        peer: PeerView,
        flow: L4Flow,
    ) -> Explanation {
        Explanation {
            decision: self.decide(subject, direction, peer, flow),
            matching: Vec::new(),
            default_deny: self.default_deny_objects(subject, direction),
            near_miss: None,
        }
    }

    /// What a proxy is to enforce on a connection.
    pub fn l7(&self, subject: Identity, direction: Direction, peer: PeerView, flow: L4Flow) -> L7Policy {
        let outcome = self.decide(subject, direction, peer, flow).outcome;
        L7Policy { outcome, rules: Vec::new(), lifted: false, enforced: true }
    }

    /// The rules behind a set, in the order of objects. Empty for 0, for [`LOCALHOST_RULES`] and
    /// for a set that is long gone.
    pub fn rules_of(&self, id: RuleSetId) -> &[RuleRef] {
        let _ = id;
        &[]
    }

    pub fn rule(&self, reference: &RuleRef) -> Option<&Rule> {
        self.policies.get(&reference.object)?.specs.get(reference.spec)?.rules.get(reference.rule)
    }

    /// Objects that turn default deny on for this side, in their order.
    pub fn default_deny_objects(&self, subject: Identity, direction: Direction) -> Vec<ObjectRef> {
        let _ = (subject, direction);
        Vec::new()
    }

    pub fn identity(&self, id: Identity) -> Option<&IdentityRecord> {
        self.identities.get(&id)
    }

    /// In the order of identities.
    pub fn identities(&self) -> impl Iterator<Item = &IdentityRecord> {
        self.identities.values()
    }

    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    pub fn subjects(&self) -> impl Iterator<Item = Identity> {
        self.subjects.iter().copied()
    }

    /// The flags of a subject; `None` for one that is not known.
    pub fn info(&self, subject: Identity) -> Option<PolicyInfo> {
        self.subjects.contains(&subject).then(PolicyInfo::default)
    }

    /// Compiled entries of a subject, in the order of keys.
    pub fn entries(&self, subject: Identity) -> Vec<EntryView> {
        let _ = subject;
        Vec::new()
    }
}
