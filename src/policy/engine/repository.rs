//! Loaded policies, taken apart into specs and rules with numbers of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::label_index::LabelIndex;
use super::precedence::{self, Ranks};
use super::rule_sets::RuleNumber;
use super::selectors::{SelectorId, SelectorKey};
use super::slab::Slab;
use crate::model::{Direction, Identity, IdentityRecord, ObjectRef};
use crate::policy::l7::L7Rules;
use crate::policy::map_state::{Basis, Precedence, Proxy, SlotAction};
use crate::policy::rule::{
    Action, Entity, Peer, Peers, Policy, PortMatch, Ports, Rule, RuleRef, Spec, Subject, Tier,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SpecId(pub(super) u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RuleId(pub(super) u32);

#[derive(Debug)]
pub(super) struct SpecState {
    pub(super) policy: Arc<Policy>,
    pub(super) index: usize,
    pub(super) rules: Vec<RuleId>,
    /// Known subjects that it selects.
    pub(super) subjects: BTreeSet<Identity>,
}

impl SpecState {
    pub(super) fn spec(&self) -> &Spec {
        &self.policy.specs[self.index]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SlotKind {
    Admin,
    Normal,
}

/// A rule with what is the same for all subjects and peers.
#[derive(Debug)]
pub(super) struct RuleState {
    pub(super) spec: SpecId,
    pub(super) index: usize,
    pub(super) number: RuleNumber,
    pub(super) direction: Direction,
    pub(super) slot: SlotKind,
    pub(super) baseline: bool,
    pub(super) action: SlotAction,
    pub(super) precedence: Precedence,
    pub(super) basis: Basis,
    /// Matches every peer.
    pub(super) any_peer: bool,
    /// Some port is a name.
    pub(super) names_ports: bool,
    pub(super) selectors: Vec<SelectorId>,
}

#[derive(Debug)]
pub(super) struct PolicyState {
    pub(super) policy: Arc<Policy>,
    pub(super) specs: Vec<SpecId>,
    /// By spec and rule; survives updates of the object.
    numbers: Vec<Vec<RuleNumber>>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Repository {
    pub(super) policies: BTreeMap<ObjectRef, PolicyState>,
    pub(super) specs: Slab<SpecState>,
    pub(super) rules: Slab<RuleState>,
    pub(super) ranks: Ranks,
    pod_specs: LabelIndex,
    node_specs: BTreeSet<SpecId>,
    next_number: u64,
    /// Numbers of policies that went since the last delta: one that comes back has them again.
    departed: BTreeMap<ObjectRef, Vec<Vec<RuleNumber>>>,
}

impl Repository {
    pub(super) fn spec(&self, id: SpecId) -> &SpecState {
        self.specs.get(id.0)
    }

    pub(super) fn rule_state(&self, id: RuleId) -> &RuleState {
        self.rules.get(id.0)
    }

    pub(super) fn rule(&self, id: RuleId) -> &Rule {
        let state = self.rule_state(id);
        &self.spec(state.spec).spec().rules[state.index]
    }

    pub(super) fn reference(&self, id: RuleId) -> RuleRef {
        let state = self.rule_state(id);
        let spec = self.spec(state.spec);
        RuleRef { object: spec.policy.object.clone(), spec: spec.index, rule: state.index }
    }

    /// The policy's entry, made if need be, with numbers for all its rules.
    pub(super) fn enter(&mut self, policy: &Arc<Policy>) -> &mut PolicyState {
        let departed = &mut self.departed;
        let state = self.policies.entry(policy.object.clone()).or_insert_with(|| PolicyState {
            policy: policy.clone(),
            specs: Vec::new(),
            numbers: departed.remove(&policy.object).unwrap_or_default(),
        });
        state.numbers.resize_with(policy.specs.len().max(state.numbers.len()), Vec::new);
        for (numbers, spec) in state.numbers.iter_mut().zip(&policy.specs) {
            while numbers.len() < spec.rules.len() {
                self.next_number += 1;
                numbers.push(RuleNumber(self.next_number));
            }
        }
        state
    }

    /// Forgets a policy whose specs are gone.
    pub(super) fn leave(&mut self, object: &ObjectRef) {
        if let Some(state) = self.policies.remove(object) {
            self.departed.insert(object.clone(), state.numbers);
        }
    }

    pub(super) fn delta_taken(&mut self) {
        self.departed.clear();
    }

    pub(super) fn number(&self, object: &ObjectRef, spec: usize, rule: usize) -> RuleNumber {
        self.policies[object].numbers[spec][rule]
    }

    /// Files a spec so that [`Repository::selecting`] finds it.
    pub(super) fn file(&mut self, id: SpecId) {
        match &self.specs.get(id.0).spec().subject {
            Subject::Pods(Some(selector)) => self.pod_specs.insert(id.0, selector),
            Subject::Pods(None) => {}
            Subject::Nodes(_) => {
                self.node_specs.insert(id);
            }
        }
    }

    pub(super) fn unfile(&mut self, id: SpecId) {
        match &self.specs.get(id.0).spec().subject {
            Subject::Pods(Some(selector)) => self.pod_specs.remove(id.0, selector),
            Subject::Pods(None) => {}
            Subject::Nodes(_) => {
                self.node_specs.remove(&id);
            }
        }
    }

    /// The specs that select an endpoint with this identity.
    pub(super) fn selecting(&self, record: &IdentityRecord) -> Vec<SpecId> {
        let pods = self.pod_specs.candidates(&record.labels).into_iter().map(SpecId);
        pods.chain(self.node_specs.iter().copied())
            .filter(|id| super::matching::subject_matches(&self.spec(*id).spec().subject, record))
            .collect()
    }

    pub(super) fn reclaim(&mut self) {
        self.specs.reclaim();
        self.rules.reclaim();
    }
}

/// What a rule puts into a slot.
pub(super) fn slot_action(rule: &Rule, tier: Tier) -> SlotAction {
    match (rule.action, &rule.l7, tier) {
        (Action::Deny, ..) => SlotAction::Deny,
        (Action::Pass, ..) => SlotAction::Pass,
        (Action::Allow, Some(l7), Tier::Normal) => SlotAction::Redirect(match **l7 {
            L7Rules::Http(_) => Proxy::Http,
            L7Rules::Dns(_) => Proxy::Dns,
            L7Rules::Tls(_) => Proxy::Tls,
        }),
        (Action::Allow, ..) => SlotAction::Allow,
    }
}

/// What a rule's peers are selected by: every peer, or these.
pub(super) fn peer_keys(rule: &Rule) -> (bool, Vec<SelectorKey>) {
    let any = match &rule.peers {
        Peers::Any => true,
        Peers::OneOf(peers) => peers.contains(&Peer::Entity(Entity::All)),
    };
    let mut keys: Vec<SelectorKey> = Vec::new();
    if any {
        // A name is a number at each destination: those that have the name get entries.
        if rule.direction == Direction::Egress {
            keys.extend(named_ports(rule).map(|(name, protocol)| SelectorKey::NamedPort(name, protocol)));
        }
    } else if let Peers::OneOf(peers) = &rule.peers {
        for peer in peers {
            debug_assert!(
                !matches!(peer, Peer::CidrGroup(_) | Peer::Service(_)),
                "references are expanded before the engine sees them"
            );
            keys.push(SelectorKey::Peer(peer.clone()));
        }
    }
    let mut distinct: Vec<SelectorKey> = Vec::with_capacity(keys.len());
    let mut seen = hashbrown::HashSet::with_capacity(keys.len());
    for key in keys {
        if seen.insert(key.clone()) {
            distinct.push(key);
        }
    }
    (any, distinct)
}

/// The port names of a rule.
pub(super) fn named_ports(rule: &Rule) -> impl Iterator<Item = super::identities::PortName> {
    let ports = match &rule.ports {
        Ports::Any => &[][..],
        Ports::OneOf(ports) => ports,
    };
    ports.iter().filter_map(|port| match port {
        PortMatch::Named(protocol, name) => Some((name.clone(), *protocol)),
        _ => None,
    })
}

/// Some peer of the rule is a name.
fn basis(rule: &Rule) -> Basis {
    match &rule.peers {
        Peers::OneOf(peers) if peers.iter().any(|peer| matches!(peer, Peer::Fqdn(_))) => Basis::Name,
        _ => Basis::Peer,
    }
}

/// A rule's state before its precedence among ranked rules is known.
pub(super) fn rule_state(
    rule: &Rule,
    tier: Tier,
    (spec, index): (SpecId, usize),
    number: RuleNumber,
    any_peer: bool,
    selectors: Vec<SelectorId>,
) -> RuleState {
    let action = slot_action(rule, tier);
    RuleState {
        spec,
        index,
        number,
        direction: rule.direction,
        slot: if matches!(tier, Tier::Admin { .. }) { SlotKind::Admin } else { SlotKind::Normal },
        baseline: matches!(tier, Tier::Baseline { .. }),
        action,
        precedence: precedence::normal(action),
        basis: basis(rule),
        any_peer,
        names_ports: named_ports(rule).next().is_some(),
        selectors,
    }
}
