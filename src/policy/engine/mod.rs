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

mod capacity;
mod changes;
mod column;
mod decide;
mod delta;
mod explain;
mod export;
mod groups;
mod identities;
mod label_index;
mod matching;
mod options;
mod ports;
mod precedence;
mod repository;
mod rule_sets;
mod selectors;
mod settle;
mod slab;
mod subject;
#[cfg(test)]
mod tests;
mod transaction;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use self::identities::IdentityTable;
use self::repository::Repository;
use self::rule_sets::RuleSets;
use self::selectors::SelectorTable;
use self::subject::SubjectState;
use self::transaction::Undo;
use super::map_state::{PolicyInfo, PolicyKey, PortClassRange, RuleSetId, SubjectDelta};
use super::rule::{Policy, Rule, RuleRef};
use crate::model::{Direction, Identity, IdentityRecord, ObjectRef};

pub use options::{AllowLocalhost, CidrMatch, Culprit, Enforcement, EngineError, EngineOptions};
pub use view::{
    EntryView, Explanation, L4Flow, L7Policy, MatchedRule, Missed, NearMiss, PeerView, SubjectStats,
};

/// The rule set of the entry that lets the node reach its own pods.
pub const LOCALHOST_RULES: RuleSetId = RuleSetId(1);

/// See the module.
#[derive(Debug)]
pub struct Engine {
    options: EngineOptions,
    identities: IdentityTable,
    selectors: SelectorTable,
    repository: Repository,
    rule_sets: RuleSets,
    subjects: BTreeMap<Identity, SubjectState>,
    /// Subjects with something to compile.
    unsettled: BTreeSet<Identity>,
    /// Subjects that may differ from what was announced.
    changed: BTreeSet<Identity>,
    journal: Option<Vec<Undo>>,
}

impl Engine {
    pub fn new(options: EngineOptions) -> Engine {
        Engine {
            options,
            identities: IdentityTable::default(),
            selectors: SelectorTable::default(),
            repository: Repository::default(),
            rule_sets: RuleSets::default(),
            subjects: BTreeMap::new(),
            unsettled: BTreeSet::new(),
            changed: BTreeSet::new(),
            journal: None,
        }
    }

    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// Adds an identity or replaces what it stands for. Identity 0 is refused: it stands for every
    /// peer in compiled entries, and nothing is ever known about it.
    pub fn upsert_identity(&mut self, record: IdentityRecord) {
        let id = record.id;
        if id == Identity::UNKNOWN || self.identity(id) == Some(&record) {
            return;
        }
        let old = self.put_identity(id, Some(record));
        self.note(Undo::Identity(id, old));
    }

    /// Forgets an identity: entries for it go.
    pub fn remove_identity(&mut self, id: Identity) {
        if let Some(old) = self.put_identity(id, None) {
            self.note(Undo::Identity(id, Some(old)));
        }
    }

    /// Adds a policy, or replaces the one of the same object.
    pub fn upsert_policy(&mut self, policy: Arc<Policy>) {
        let object = policy.object.clone();
        let old = self.put_policy(&object, Some(policy));
        self.note(Undo::Policy(object, old));
    }

    /// `false` when there was none.
    pub fn remove_policy(&mut self, object: &ObjectRef) -> bool {
        let old = self.put_policy(object, None);
        let removed = old.is_some();
        if removed {
            self.note(Undo::Policy(object.clone(), old));
        }
        removed
    }

    /// An endpoint with this identity lives here. Until the identity itself is known, the subject
    /// is default-deny in both directions.
    pub fn add_subject(&mut self, id: Identity) {
        if !self.put_subject(id, true) {
            self.note(Undo::Subject(id, false));
        }
    }

    /// The last endpoint with this identity is gone.
    pub fn remove_subject(&mut self, id: Identity) {
        if self.put_subject(id, false) {
            self.note(Undo::Subject(id, true));
        }
    }

    /// Compiles what changed.
    pub fn settle(&mut self) {
        let mut context = settle::Context {
            options: &self.options,
            identities: &self.identities,
            selectors: &self.selectors,
            repository: &self.repository,
            rule_sets: &mut self.rule_sets,
        };
        for id in std::mem::take(&mut self.unsettled) {
            if let Some(subject) = self.subjects.get_mut(&id) {
                settle::settle(id, subject, &mut context);
                self.changed.insert(id);
            }
        }
        // Nothing compiled names what was removed any more.
        self.repository.reclaim();
        self.selectors.reclaim();
    }

    /// What changed since the last call, one delta a subject, in the order of identities. Ends a
    /// transaction.
    pub fn take_delta(&mut self) -> Vec<SubjectDelta> {
        self.settle();
        self.journal = None;
        let mut deltas = Vec::new();
        for id in std::mem::take(&mut self.changed) {
            let Some(subject) = self.subjects.get_mut(&id) else { continue };
            deltas.extend(delta::take(id, subject));
            if !subject.alive {
                self.subjects.remove(&id);
            }
        }
        self.rule_sets.delta_taken();
        self.repository.delta_taken();
        deltas
    }

    /// Compiles everything anew, as if it had just been loaded. The result is what it was: this
    /// is for tests, and for whoever doubts it.
    pub fn recompute(&mut self) {
        let records: Vec<IdentityRecord> = self.identities().cloned().collect();
        let policies: Vec<Arc<Policy>> = self.policies().cloned().collect();
        let journal = self.journal.take();
        for policy in &policies {
            self.put_policy(&policy.object, None);
        }
        for record in &records {
            self.put_identity(record.id, None);
        }
        for record in records {
            self.put_identity(record.id, Some(record));
        }
        for policy in policies {
            self.put_policy(&policy.object.clone(), Some(policy));
        }
        for (id, subject) in &mut self.subjects {
            subject.sides.iter_mut().for_each(|side| side.dirty.all = true);
            self.unsettled.insert(*id);
        }
        self.journal = journal;
        self.settle();
    }

    /// The rules behind a set, in the order of objects. Empty for 0, for [`LOCALHOST_RULES`] and
    /// for a number that was never given out. A set that is no longer used keeps its meaning
    /// for a while, so that late events can be read.
    pub fn rules_of(&self, id: RuleSetId) -> &[RuleRef] {
        self.rule_sets.rules(id)
    }

    pub fn policy(&self, object: &ObjectRef) -> Option<&Arc<Policy>> {
        self.repository.policies.get(object).map(|state| &state.policy)
    }

    pub fn rule(&self, reference: &RuleRef) -> Option<&Rule> {
        self.policy(&reference.object)?.specs.get(reference.spec)?.rules.get(reference.rule)
    }

    pub fn identity(&self, id: Identity) -> Option<&IdentityRecord> {
        self.identities.get(id).map(|known| &known.record)
    }

    /// In the order of identities.
    pub fn identities(&self) -> impl Iterator<Item = &IdentityRecord> {
        self.identities.sorted().into_iter().map(|known| &known.record)
    }

    /// In the order of objects.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.repository.policies.values().map(|state| &state.policy)
    }

    /// In the order of identities.
    pub fn subjects(&self) -> impl Iterator<Item = Identity> {
        self.subjects.iter().filter(|(_, state)| state.alive).map(|(id, _)| *id)
    }

    /// The flags of a subject; `None` for one that is not known.
    pub fn info(&self, subject: Identity) -> Option<PolicyInfo> {
        self.subjects.get(&subject).filter(|state| state.alive).map(SubjectState::info)
    }

    /// Numbers of a subject, for tables.
    pub fn stats(&self, subject: Identity) -> Option<SubjectStats> {
        let state = self.subjects.get(&subject).filter(|state| state.alive)?;
        let sides = Direction::BOTH.map(|direction| state.side(direction));
        Some(SubjectStats {
            subject,
            entries: state.entries(),
            rules: sides.map(|side| side.rules),
            default_deny: sides.map(|side| side.settled.default_deny),
        })
    }

    /// Compiled entries of a subject, in the order of keys.
    pub fn entries(&self, subject: Identity) -> Vec<EntryView> {
        let Some(state) = self.subjects.get(&subject) else { return Vec::new() };
        let mut entries = Vec::with_capacity(state.entries());
        for direction in Direction::BOTH {
            let side = state.side(direction);
            for (peer, number) in &side.columns {
                let cells = side.pool.get(*number).cells.iter();
                entries.extend(cells.map(|(cell, entry)| EntryView {
                    subject,
                    key: PolicyKey { direction, identity: *peer, protocol: cell.protocol, port: cell.port },
                    entry: *entry,
                }));
            }
        }
        entries.sort_unstable_by_key(|view| view.key);
        entries
    }

    /// Port classes of a subject: aligned blocks, each one prefix of the datapath's trie.
    pub fn port_classes(&self, subject: Identity) -> Vec<PortClassRange> {
        let state = self.subjects.get(&subject);
        Direction::BOTH
            .into_iter()
            .flat_map(|direction| {
                state.map_or_else(Vec::new, |state| state.side(direction).classes.blocks(direction))
            })
            .collect()
    }
}
