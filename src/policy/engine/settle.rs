//! Compiling what changed: columns that are marked, or whole sides where a fact changed on which
//! every column depends (port classes, whether baseline rules count).

use std::collections::BTreeSet;
use std::sync::Arc;

use hashbrown::HashMap;

use super::column::{Column, ColumnKey, Compiler, PeerScope};
use super::identities::IdentityTable;
use super::options::{AllowLocalhost, Enforcement, EngineOptions};
use super::ports::TooManyClasses;
use super::repository::{Repository, RuleId, SpecId};
use super::rule_sets::RuleSets;
use super::selectors::{SelectorId, SelectorTable};
use super::subject::{Settled, Side, SubjectState, for_ranges};
use crate::model::{Direction, Identity, IdentityGroup, PortRange, Protocol};
use crate::policy::named_port::NamedPort;

/// The rest of the engine, as settling a subject sees it.
pub(super) struct Context<'a> {
    pub(super) options: &'a EngineOptions,
    pub(super) identities: &'a IdentityTable,
    pub(super) selectors: &'a SelectorTable,
    pub(super) repository: &'a Repository,
    pub(super) rule_sets: &'a mut RuleSets,
}

/// The subject, as settling one of its sides sees it.
struct Owner<'a> {
    id: Identity,
    alive: bool,
    known: bool,
    ports: Option<&'a [NamedPort]>,
    direction: Direction,
}

/// The rules of a column; see [`ColumnKey`].
#[derive(Default)]
struct Bearing {
    rules: Vec<RuleId>,
    names: Vec<RuleId>,
}

impl Bearing {
    /// Of a rule for every peer only the names are here.
    fn add(&mut self, rules: &[RuleId], cx: &Context<'_>) {
        for rule in rules {
            let list =
                if cx.repository.rule_state(*rule).any_peer { &mut self.names } else { &mut self.rules };
            list.push(*rule);
        }
    }

    fn add_names(&mut self, rules: &[RuleId], cx: &Context<'_>) {
        self.names.extend(rules.iter().filter(|rule| cx.repository.rule_state(**rule).names_ports));
    }
}

/// Compiles what is marked in a subject.
pub(super) fn settle(id: Identity, subject: &mut SubjectState, cx: &mut Context<'_>) {
    let ports = subject.named_ports.clone();
    let (alive, known) = (subject.alive, subject.known);
    for direction in Direction::BOTH {
        let side = &mut subject.sides[direction as usize];
        let owner = Owner { id, alive, known, ports: ports.as_deref(), direction };
        if side.dirty.classes {
            side.refresh_classes(&subject.specs, &owner, cx);
        }
        side.settle(&owner, cx);
    }
}

impl Side {
    /// Cuts the ports anew.
    fn refresh_classes(&mut self, specs: &BTreeSet<SpecId>, owner: &Owner<'_>, cx: &Context<'_>) {
        let mut ranges: BTreeSet<(Protocol, PortRange)> = BTreeSet::new();
        if self.has_ranges() {
            let rules = specs.iter().flat_map(|spec| &cx.repository.spec(*spec).rules);
            for rule in rules.filter(|rule| cx.repository.rule_state(**rule).direction == owner.direction) {
                for_ranges(*rule, cx.repository, |protocol, range| {
                    ranges.insert((protocol, range));
                });
            }
            for name in self.names.keys() {
                let numbers: Vec<u16> = match owner.direction {
                    Direction::Egress => cx.identities.numbers_of(name).collect(),
                    Direction::Ingress => owner
                        .ports
                        .unwrap_or(&[])
                        .iter()
                        .filter(|port| (&port.name, port.protocol) == (&name.0, name.1))
                        .map(|port| port.port)
                        .collect(),
                };
                ranges.extend(numbers.into_iter().filter_map(PortRange::single).map(|range| (name.1, range)));
            }
        }
        match self.classes.rebuild(&ranges) {
            Ok(changed) => {
                self.dirty.all |= changed || self.settled.overflow;
                self.settled.overflow = false;
            }
            Err(TooManyClasses) => {
                self.dirty.all = true;
                self.settled.overflow = true;
            }
        }
    }

    fn settle(&mut self, owner: &Owner<'_>, cx: &mut Context<'_>) {
        self.dirty.classes = false;
        let wanted = self.wanted(owner, cx.options);
        if wanted.baseline != self.settled.baseline && self.baseline_rules > 0 {
            self.dirty.all = true;
        }
        if wanted.localhost != self.settled.localhost {
            self.dirty.peers.insert(Identity::HOST);
        }
        self.settled = wanted;
        let dirty = std::mem::take(&mut self.dirty);
        if self.is_silent(owner, cx.options) {
            self.clear(cx);
        } else if dirty.all {
            self.compile_all(owner, cx);
        } else {
            let mut peers: Vec<Identity> = dirty.peers.into_iter().collect();
            peers.sort_unstable();
            for peer in peers {
                let bearing = self.bearing(peer, owner, cx);
                self.set_column(peer, bearing, owner, cx);
            }
        }
    }

    /// There are no entries: only the default of the direction.
    fn is_silent(&self, owner: &Owner<'_>, options: &EngineOptions) -> bool {
        !owner.alive || !owner.known || self.settled.overflow || options.enforcement == Enforcement::Never
    }

    fn wanted(&self, owner: &Owner<'_>, options: &EngineOptions) -> Settled {
        let overflow = self.settled.overflow;
        let turned_on = !self.deny_specs.is_empty();
        let default_deny = match options.enforcement {
            Enforcement::Never => false,
            Enforcement::Always => true,
            Enforcement::Default => turned_on || overflow || !owner.known,
        };
        let enforced = default_deny || self.rules > 0;
        let localhost = options.allow_localhost == AllowLocalhost::Always
            && owner.direction == Direction::Ingress
            && owner.id != Identity::HOST
            && enforced
            && !self.is_silent(owner, options);
        Settled { default_deny, baseline: !turned_on, localhost, overflow }
    }

    /// The rules that match a peer, in no order.
    pub(super) fn rules_for(
        &self,
        peer: Identity,
        identities: &IdentityTable,
        selectors: &SelectorTable,
    ) -> Vec<RuleId> {
        if peer == Identity::UNKNOWN {
            return self.any.clone();
        }
        let of = |selector: SelectorId| self.by_selector.get(&selector).into_iter().flatten().copied();
        match identities.get(peer) {
            Some(known) => known.selectors.iter().flat_map(|selector| of(*selector)).collect(),
            None => {
                let group = identities.group_of(peer).into_iter();
                group.flat_map(|group| selectors.covering(group)).flat_map(of).collect()
            }
        }
    }

    /// What a column is made of: see [`ColumnKey`]. In no order.
    fn bearing(&self, peer: Identity, owner: &Owner<'_>, cx: &Context<'_>) -> Bearing {
        let of = |selector: SelectorId| self.by_selector.get(&selector).map_or(&[][..], |rules| rules);
        let mut bearing = Bearing::default();
        if peer == Identity::UNKNOWN {
            bearing.rules.clone_from(&self.any);
        } else if let Some(group) = IdentityGroup::of_key(peer) {
            bearing.rules.extend(cx.selectors.covering(group).flat_map(of));
        } else if let Some(known) = cx.identities.get(peer) {
            for selector in &known.selectors {
                let rules = of(*selector);
                if !cx.selectors.get(*selector).wide.covers(known) {
                    bearing.add(rules, cx);
                } else if owner.direction == Direction::Egress && known.named_ports.is_some() {
                    bearing.add_names(rules, cx);
                }
            }
        }
        bearing
    }

    fn column_key(&self, peer: Identity, bearing: Bearing, owner: &Owner<'_>, cx: &Context<'_>) -> ColumnKey {
        let Bearing { mut rules, mut names } = bearing;
        for list in [&mut rules, &mut names] {
            if !self.settled.baseline {
                list.retain(|rule| !cx.repository.rule_state(*rule).baseline);
            }
            list.sort_unstable();
            list.dedup();
        }
        let scope = if peer == Identity::UNKNOWN || IdentityGroup::of_key(peer).is_some() {
            PeerScope::Many
        } else {
            let resolved_here = owner.direction == Direction::Egress
                && rules.iter().chain(&names).any(|rule| cx.repository.rule_state(*rule).names_ports);
            let known = cx.identities.get(peer).filter(|_| resolved_here);
            PeerScope::Identity(known.and_then(|known| known.named_ports.clone()))
        };
        let localhost = self.settled.localhost && peer == Identity::HOST;
        ColumnKey { rules: rules.into(), names: names.into(), peer: scope, localhost }
    }

    /// Makes the column of a peer what its rules say.
    fn set_column(&mut self, peer: Identity, bearing: Bearing, owner: &Owner<'_>, cx: &mut Context<'_>) {
        let key = self.column_key(peer, bearing, owner, cx);
        let old = self.columns.get(&peer).copied();
        let new = (!key.is_empty()).then(|| {
            let mut compiler = Compiler {
                repository: cx.repository,
                rule_sets: cx.rule_sets,
                classes: &self.classes,
                direction: owner.direction,
                subject_ports: owner.ports,
            };
            self.pool.acquire(key, &mut compiler)
        });
        if old != new {
            let was = old.map(|number| self.pool.get(number).clone());
            let is = new.map(|number| self.pool.get(number).clone());
            self.record(peer, was, is);
            match new {
                Some(number) => self.columns.insert(peer, number),
                None => self.columns.remove(&peer),
            };
        }
        if let Some(number) = old {
            self.pool.release(number, cx.rule_sets);
        }
    }

    fn record(&mut self, peer: Identity, was: Option<Arc<Column>>, is: Option<Arc<Column>>) {
        if let Some(column) = &was {
            self.count(peer, column, -1);
        }
        if let Some(column) = &is {
            self.count(peer, column, 1);
        }
        self.before.entry(peer).or_insert(was);
    }

    /// Every column anew, from an empty pool.
    fn compile_all(&mut self, owner: &Owner<'_>, cx: &mut Context<'_>) {
        let mut columns: HashMap<Identity, Bearing> = HashMap::new();
        if !self.any.is_empty() {
            columns.insert(Identity::UNKNOWN, Bearing { rules: self.any.clone(), names: Vec::new() });
        }
        if self.settled.localhost {
            columns.entry(Identity::HOST).or_default();
        }
        for (selector, rules) in &self.by_selector {
            let selector = cx.selectors.get(*selector);
            for peer in
                selector.single(cx.identities).chain(selector.wide.covered.iter().map(IdentityGroup::key))
            {
                columns.entry(peer).or_default().add(rules, cx);
            }
            let names_ports = |rule: &RuleId| cx.repository.rule_state(*rule).names_ports;
            if owner.direction == Direction::Egress && rules.iter().any(names_ports) {
                for peer in selector.naming(cx.identities) {
                    columns.entry(peer).or_default().add_names(rules, cx);
                }
            }
        }
        let mut old_pool = std::mem::take(&mut self.pool);
        let mut old_columns = std::mem::take(&mut self.columns);
        // In order, so that numbers of rule sets depend on what is loaded alone.
        let mut peers: Vec<(Identity, Bearing)> = columns.into_iter().collect();
        peers.sort_unstable_by_key(|(peer, _)| *peer);
        for (peer, bearing) in peers {
            let was = old_columns.remove(&peer);
            if let Some(number) = was {
                let column = old_pool.get(number).clone();
                self.record(peer, Some(column), None);
            }
            self.set_column(peer, bearing, owner, cx);
            if let Some(number) = was {
                old_pool.release(number, cx.rule_sets);
            }
        }
        for (peer, number) in old_columns {
            self.record(peer, Some(old_pool.get(number).clone()), None);
            old_pool.release(number, cx.rule_sets);
        }
    }

    fn clear(&mut self, cx: &mut Context<'_>) {
        for (peer, number) in std::mem::take(&mut self.columns) {
            self.record(peer, Some(self.pool.get(number).clone()), None);
            self.pool.release(number, cx.rule_sets);
        }
    }
}
