//! What a change of an identity, a policy or a subject touches: it updates the tables and marks
//! columns; `settle` compiles them.

use std::sync::Arc;

use super::Engine;
use super::identities::{Known, PortName};
use super::precedence::{self, Rebase};
use super::repository::{RuleState, SpecId, SpecState, peer_keys, rule_state};
use super::selectors::SelectorId;
use crate::model::{Direction, GroupSet, Identity, IdentityRecord, ObjectRef};
use crate::policy::named_port::NamedPort;
use crate::policy::rule::Policy;

impl Engine {
    /// Replaces, adds or removes an identity. Returns what was there.
    pub(super) fn put_identity(
        &mut self,
        id: Identity,
        record: Option<IdentityRecord>,
    ) -> Option<IdentityRecord> {
        let (old, shrunk) = match self.identities.remove(id) {
            Some((known, shrunk)) => (Some(known), shrunk),
            None => (None, Vec::new()),
        };
        let old_selectors = old.as_ref().map_or(&[][..], |known| &known.selectors);
        let mut grown = Vec::new();
        if let Some(record) = record {
            grown = self.identities.insert(record);
            if let Some(known) = self.identities.get_mut(id) {
                known.selectors = self.selectors.matching(known, self.options.cidr_match);
            }
        }
        let new = self.identities.get(id);
        let new_selectors = new.map_or(&[][..], |known| &known.selectors);
        let (old_groups, new_groups) = (groups(old.as_ref()), groups(new));
        let regrouped = old_groups != new_groups;
        if let Some(old) = &old {
            let gone = |selector: &&SelectorId| regrouped || new_selectors.binary_search(selector).is_err();
            old_selectors.iter().filter(gone).for_each(|gone| self.selectors.remove_member(*gone, old));
        }
        if let Some(new) = new {
            let come = |selector: &&SelectorId| regrouped || old_selectors.binary_search(selector).is_err();
            new_selectors.iter().filter(come).for_each(|come| self.selectors.add_member(*come, new));
        }
        let turned = self.selectors.refresh_groups(&self.identities);
        let (old_ports, new_ports) = (ports(old.as_ref()), ports(new));
        let renumbered = old_ports != new_ports;
        let has_names = old_ports.is_some() || new_ports.is_some();
        let mut touched: Vec<(SpecId, Direction)> = old_selectors
            .iter()
            .chain(new_selectors)
            .filter(|selector| {
                renumbered
                    || regrouped
                    || old_selectors.binary_search(selector).is_ok()
                        != new_selectors.binary_search(selector).is_ok()
            })
            .map(|selector| self.selectors.get(*selector))
            // The cells of a group are there already; only names have cells of their own.
            .filter(|selector| {
                let covered = selector.wide.covered;
                let reached = |groups: GroupSet| groups.is_empty() || !(covered & groups).is_empty();
                let inherits = !covered.is_empty()
                    && (!old_groups.is_empty() || !new_groups.is_empty())
                    && reached(old_groups)
                    && reached(new_groups);
                has_names || !inherits
            })
            .flat_map(|selector| selector.users())
            .collect();
        touched.sort_unstable();
        touched.dedup();
        for (spec, direction) in touched {
            for subject in &self.repository.spec(spec).subjects {
                if let Some(state) = self.subjects.get_mut(subject) {
                    state.side_mut(direction).dirty.peers.insert(id);
                    self.unsettled.insert(*subject);
                }
            }
        }
        self.mark_turned(&turned);
        self.mark_port_names(&grown, &shrunk);
        if self.subjects.contains_key(&id) {
            self.reselect(id);
        }
        old.map(|known| known.record)
    }

    /// Rules of selectors that gained or lost a group move between its cells and those of its members.
    fn mark_turned(&mut self, turned: &[SelectorId]) {
        for (spec, direction) in turned.iter().flat_map(|selector| self.selectors.get(*selector).users()) {
            for subject in &self.repository.spec(spec).subjects {
                if let Some(state) = self.subjects.get_mut(subject) {
                    state.side_mut(direction).dirty.all = true;
                    self.unsettled.insert(*subject);
                }
            }
        }
    }

    /// Egress classes hold the numbers that names stand for somewhere.
    fn mark_port_names(&mut self, grown: &[PortName], shrunk: &[PortName]) {
        if grown.is_empty() && shrunk.is_empty() {
            return;
        }
        for (id, state) in &mut self.subjects {
            let side = state.side_mut(Direction::Egress);
            if side.has_ranges() && grown.iter().chain(shrunk).any(|name| side.names.contains_key(name)) {
                side.dirty.classes = true;
                self.unsettled.insert(*id);
            }
        }
    }

    /// Adds or removes a subject. Returns whether it was there.
    pub(super) fn put_subject(&mut self, id: Identity, alive: bool) -> bool {
        let was = self.subjects.get(&id).is_some_and(|state| state.alive);
        if was != alive {
            self.subjects.entry(id).or_default().alive = alive;
            self.reselect(id);
        }
        was
    }

    /// Finds anew which specs govern a subject.
    fn reselect(&mut self, id: Identity) {
        let Some(state) = self.subjects.get_mut(&id) else { return };
        let known = self.identities.get(id).filter(|_| state.alive);
        let wanted = known.map_or_else(Vec::new, |known| self.repository.selecting(&known.record));
        state.known = known.is_some();
        let ports = known.and_then(|known| known.named_ports.clone());
        if state.named_ports != ports {
            state.named_ports = ports;
            let side = state.side_mut(Direction::Ingress);
            side.dirty.all = true;
            side.dirty.classes |= side.has_ranges();
        }
        for spec in state.specs.iter().copied().collect::<Vec<_>>() {
            if !wanted.contains(&spec) {
                state.detach(spec, &self.repository, &self.selectors);
                self.repository.specs.get_mut(spec.0).subjects.remove(&id);
            }
        }
        for spec in wanted {
            state.attach(spec, &self.repository, &self.selectors);
            self.repository.specs.get_mut(spec.0).subjects.insert(id);
        }
        if !state.known {
            // Nothing is attached: the columns go.
            state.sides.iter_mut().for_each(|side| side.dirty.all = true);
        }
        self.unsettled.insert(id);
    }

    /// Replaces, adds or removes a policy. Returns what was there.
    pub(super) fn put_policy(
        &mut self,
        object: &ObjectRef,
        policy: Option<Arc<Policy>>,
    ) -> Option<Arc<Policy>> {
        let (old, old_specs) = match self.repository.policies.get(object) {
            Some(state) => (Some(state.policy.clone()), state.specs.clone()),
            None => (None, Vec::new()),
        };
        let mut specs = Vec::new();
        if let Some(policy) = &policy {
            self.repository.enter(policy);
            for index in 0..policy.specs.len() {
                let same = old.as_ref().and_then(|old| old.specs.get(index)) == policy.specs.get(index);
                specs.push(match old_specs.get(index).filter(|_| same) {
                    Some(kept) => {
                        self.repository.specs.get_mut(kept.0).policy = policy.clone();
                        *kept
                    }
                    None => self.prepare_spec(policy, index),
                });
            }
        }
        // New selectors are in use by now, so that those in common keep their members.
        for gone in old_specs.iter().filter(|spec| !specs.contains(spec)) {
            self.remove_spec(*gone);
        }
        for come in specs.iter().filter(|spec| !old_specs.contains(spec)) {
            self.enforce_spec(*come);
        }
        match policy {
            Some(policy) => {
                let state = self.repository.enter(&policy);
                state.policy = policy;
                state.specs = specs;
            }
            None => {
                self.repository.leave(object);
            }
        }
        old
    }

    /// Gives a spec and its rules numbers and selectors. Nobody is governed by it yet.
    fn prepare_spec(&mut self, policy: &Arc<Policy>, index: usize) -> SpecId {
        let spec = &policy.specs[index];
        let id = SpecId(self.repository.specs.insert(SpecState {
            policy: policy.clone(),
            index,
            rules: Vec::with_capacity(spec.rules.len()),
            subjects: Default::default(),
        }));
        for (position, rule) in spec.rules.iter().enumerate() {
            let (any_peer, keys) = peer_keys(rule);
            let user = (id, rule.direction);
            let selectors = keys
                .into_iter()
                .map(|key| self.selectors.acquire(key, user, &mut self.identities, self.options.cidr_match))
                .collect();
            let number = self.repository.number(&policy.object, index, position);
            let state: RuleState = rule_state(rule, spec.tier, (id, position), number, any_peer, selectors);
            let rule = super::repository::RuleId(self.repository.rules.insert(state));
            self.repository.specs.get_mut(id.0).rules.push(rule);
        }
        id
    }

    /// Puts a prepared spec in force.
    fn enforce_spec(&mut self, id: SpecId) {
        self.repository.file(id);
        let state = self.repository.spec(id);
        let (tier, rules) = (state.spec().tier, state.rules.len());
        let (policy, index) = (state.policy.clone(), state.index);
        let rebased = self.repository.ranks.insert(tier, &policy.object, index, id, rules);
        self.rebase(rebased);
        let subject = &policy.specs[index].subject;
        for (subject_id, state) in self.subjects.iter_mut().filter(|(_, state)| state.alive) {
            let Some(known) = self.identities.get(*subject_id) else { continue };
            if super::matching::subject_matches(subject, &known.record) {
                self.repository.specs.get_mut(id.0).subjects.insert(*subject_id);
                state.attach(id, &self.repository, &self.selectors);
                self.unsettled.insert(*subject_id);
            }
        }
    }

    fn remove_spec(&mut self, id: SpecId) {
        self.repository.unfile(id);
        let state = self.repository.spec(id);
        let tier = state.spec().tier;
        let (policy, index) = (state.policy.clone(), state.index);
        for subject in &state.subjects {
            if let Some(state) = self.subjects.get_mut(subject) {
                state.detach(id, &self.repository, &self.selectors);
                self.unsettled.insert(*subject);
            }
        }
        let rebased = self.repository.ranks.remove(tier, &policy.object, index);
        self.rebase(rebased);
        for rule in self.repository.specs.remove(id.0).rules {
            let rule = self.repository.rules.remove(rule.0);
            for selector in rule.selectors {
                self.selectors.release(selector, (id, rule.direction), &mut self.identities);
            }
        }
    }

    /// Ranked specs have new numbers: their columns are compiled again.
    fn rebase(&mut self, rebased: Vec<Rebase>) {
        for Rebase { spec, priority, base } in rebased {
            for (index, rule) in self.repository.spec(spec).rules.clone().into_iter().enumerate() {
                self.repository.rules.get_mut(rule.0).precedence = precedence::ranked(priority, base + index);
            }
            for subject in &self.repository.spec(spec).subjects {
                if let Some(state) = self.subjects.get_mut(subject) {
                    // A column is filed under its rules, not their numbers, so all of them go.
                    state.sides.iter_mut().for_each(|side| side.dirty.all = true);
                    self.unsettled.insert(*subject);
                }
            }
        }
    }
}

fn groups(known: Option<&Known>) -> GroupSet {
    known.map_or(GroupSet::EMPTY, |known| known.groups)
}

fn ports(known: Option<&Known>) -> Option<&Arc<[NamedPort]>> {
    known?.named_ports.as_ref()
}
