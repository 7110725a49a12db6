//! A subject: the rules that bear on it, and its compiled columns.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use smallvec::SmallVec;

use super::column::{Column, Kinds, Pool};
use super::identities::PortName;
use super::ports::PortClasses;
use super::repository::{Repository, RuleId, SpecId, named_ports};
use super::selectors::{SelectorId, SelectorTable};
use crate::model::{Direction, Identity, IdentityGroup, PortRange, Protocol};
use crate::policy::map_state::{CellKinds, DirectionInfo, PolicyInfo, PortClassRange};
use crate::policy::named_port::NamedPort;
use crate::policy::rule::{PortMatch, Ports};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct SubjectState {
    /// Endpoints have it; `false` until the delta of its removal was taken.
    pub(super) alive: bool,
    /// The identity is known.
    pub(super) known: bool,
    pub(super) specs: BTreeSet<SpecId>,
    pub(super) named_ports: Option<Arc<[NamedPort]>>,
    /// By [`Direction`].
    pub(super) sides: [Side; 2],
    /// What the last delta said; `None`: nothing yet.
    pub(super) announced: Option<PolicyInfo>,
}

/// One direction of a subject.
#[derive(Debug, Default)]
pub(super) struct Side {
    /// Specs that turn default deny on.
    pub(super) deny_specs: BTreeSet<SpecId>,
    /// All its rules, and how many of them are baseline rules.
    pub(super) rules: usize,
    pub(super) baseline_rules: usize,
    /// Rules for every peer; ascending.
    pub(super) any: Vec<RuleId>,
    /// Rules by what selects their peers; each ascending.
    pub(super) by_selector: HashMap<SelectorId, SmallVec<[RuleId; 2]>>,
    /// Ranges of more than one port, with the number of rules that have them.
    wide: BTreeMap<(Protocol, PortRange), u32>,
    /// Port names, likewise.
    pub(super) names: BTreeMap<PortName, u32>,
    pub(super) classes: PortClasses,

    pub(super) columns: HashMap<Identity, u32>,
    pub(super) pool: Pool,
    pub(super) entries: usize,
    /// Columns of single peers that have each kind of cell: exact, protocol, any.
    kinds: [usize; 3],
    /// The same of columns of groups.
    group_kinds: [usize; 3],
    /// Columns of address classes and of groups of them.
    address_columns: usize,

    pub(super) settled: Settled,
    pub(super) dirty: Dirty,
    /// Columns that changed since the last delta, as they were then.
    pub(super) before: HashMap<Identity, Option<Arc<Column>>>,
    /// Classes as of the last delta.
    pub(super) announced_classes: Vec<PortClassRange>,
}

/// What the columns were compiled for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Settled {
    pub(super) default_deny: bool,
    /// Baseline rules count.
    pub(super) baseline: bool,
    pub(super) localhost: bool,
    /// Too many port classes: no rules at all, and default deny.
    pub(super) overflow: bool,
}

/// What is to be compiled again.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    pub(super) all: bool,
    pub(super) peers: HashSet<Identity>,
    pub(super) classes: bool,
}

impl SubjectState {
    pub(super) fn side(&self, direction: Direction) -> &Side {
        &self.sides[direction as usize]
    }

    pub(super) fn side_mut(&mut self, direction: Direction) -> &mut Side {
        &mut self.sides[direction as usize]
    }

    pub(super) fn entries(&self) -> usize {
        self.sides.iter().map(|side| side.entries).sum()
    }

    pub(super) fn info(&self) -> PolicyInfo {
        PolicyInfo {
            ingress: self.side(Direction::Ingress).info(),
            egress: self.side(Direction::Egress).info(),
        }
    }

    /// The spec begins to govern the subject.
    pub(super) fn attach(&mut self, id: SpecId, repository: &Repository, selectors: &SelectorTable) {
        if !self.specs.insert(id) {
            return;
        }
        let spec = repository.spec(id);
        for direction in Direction::BOTH {
            if spec.spec().default_deny(direction) {
                self.side_mut(direction).deny_specs.insert(id);
            }
        }
        for rule in &spec.rules {
            let direction = repository.rule_state(*rule).direction;
            self.side_mut(direction).add_rule(*rule, repository, selectors);
        }
    }

    /// The spec no longer governs it.
    pub(super) fn detach(&mut self, id: SpecId, repository: &Repository, selectors: &SelectorTable) {
        if !self.specs.remove(&id) {
            return;
        }
        for side in &mut self.sides {
            side.deny_specs.remove(&id);
        }
        for rule in &repository.spec(id).rules {
            let direction = repository.rule_state(*rule).direction;
            self.side_mut(direction).remove_rule(*rule, repository, selectors);
        }
    }
}

impl Side {
    fn add_rule(&mut self, id: RuleId, repository: &Repository, selectors: &SelectorTable) {
        let state = repository.rule_state(id);
        self.rules += 1;
        self.baseline_rules += usize::from(state.baseline);
        if state.any_peer {
            insert_sorted(&mut self.any, id);
        }
        for selector in &state.selectors {
            let rules = self.by_selector.entry(*selector).or_default();
            if let Err(position) = rules.binary_search(&id) {
                rules.insert(position, id);
            }
        }
        self.mark_rule(id, repository, selectors);
        let had_classes = !self.wide.is_empty();
        let mut numbered = false;
        for_ranges(id, repository, |protocol, range| {
            numbered = true;
            if super::ports::is_wide(&range) {
                *self.wide.entry((protocol, range)).or_default() += 1;
            }
        });
        for name in named_ports(repository.rule(id)) {
            numbered = true;
            *self.names.entry(name).or_default() += 1;
        }
        self.dirty.classes |= numbered && (had_classes || !self.wide.is_empty());
    }

    fn remove_rule(&mut self, id: RuleId, repository: &Repository, selectors: &SelectorTable) {
        let state = repository.rule_state(id);
        self.rules -= 1;
        self.baseline_rules -= usize::from(state.baseline);
        if state.any_peer
            && let Ok(position) = self.any.binary_search(&id)
        {
            self.any.remove(position);
        }
        for selector in &state.selectors {
            if let Some(rules) = self.by_selector.get_mut(selector) {
                rules.retain(|other| *other != id);
                if rules.is_empty() {
                    self.by_selector.remove(selector);
                }
            }
        }
        self.mark_rule(id, repository, selectors);
        let had_classes = !self.wide.is_empty();
        let mut numbered = false;
        for_ranges(id, repository, |protocol, range| {
            numbered = true;
            count_down(&mut self.wide, &(protocol, range));
        });
        for name in named_ports(repository.rule(id)) {
            numbered = true;
            count_down(&mut self.names, &name);
        }
        self.dirty.classes |= numbered && had_classes;
    }

    /// The columns of a rule are to be compiled again.
    pub(super) fn mark_rule(&mut self, id: RuleId, repository: &Repository, selectors: &SelectorTable) {
        let state = repository.rule_state(id);
        if state.any_peer {
            self.dirty.peers.insert(Identity::UNKNOWN);
        }
        for selector in &state.selectors {
            let selector = selectors.get(*selector);
            let covered = selector.wide.covered;
            self.dirty.peers.extend(&selector.members);
            self.dirty.peers.extend(covered.iter().map(IdentityGroup::key));
            // Members that a group covers have cells of their own for port names alone.
            let names = state.names_ports && state.direction == Direction::Egress;
            if names || covered != selector.wide.groups {
                self.dirty.peers.extend(&selector.grouped);
            }
        }
    }

    /// Some range has more than one port, so that single ports may fall into classes.
    pub(super) fn has_ranges(&self) -> bool {
        !self.wide.is_empty()
    }

    pub(super) fn column(&self, peer: Identity) -> Option<&Arc<Column>> {
        self.columns.get(&peer).map(|number| self.pool.get(*number))
    }

    /// Counts a column that comes or goes.
    pub(super) fn count(&mut self, peer: Identity, column: &Column, change: isize) {
        self.entries = self.entries.wrapping_add_signed(column.cells.len() as isize * change);
        if peer == Identity::UNKNOWN {
            return;
        }
        let group = IdentityGroup::of_key(peer);
        let Kinds { exact, protocol, any } = column.kinds;
        let kinds = if group.is_some() { &mut self.group_kinds } else { &mut self.kinds };
        for (count, has) in kinds.iter_mut().zip([exact, protocol, any]) {
            if has {
                *count = count.wrapping_add_signed(change);
            }
        }
        let of_addresses = match group {
            Some(group) => matches!(group, IdentityGroup::AddressesIpv4 | IdentityGroup::AddressesIpv6),
            None => peer.0 >= Identity::ADDRESS_CLASS_MIN,
        };
        if of_addresses {
            self.address_columns = self.address_columns.wrapping_add_signed(change);
        }
    }

    pub(super) fn info(&self) -> DirectionInfo {
        let any = self.column(Identity::UNKNOWN).map_or(Kinds::default(), |column| column.kinds);
        DirectionInfo {
            default_deny: self.settled.default_deny,
            address_classes: self.address_columns > 0,
            ranges: !self.classes.is_empty(),
            cells: CellKinds {
                id_exact: self.kinds[0] > 0,
                id_protocol: self.kinds[1] > 0,
                id_any: self.kinds[2] > 0,
                group_exact: self.group_kinds[0] > 0,
                group_protocol: self.group_kinds[1] > 0,
                group_any: self.group_kinds[2] > 0,
                any_exact: any.exact,
                any_protocol: any.protocol,
                any_any: any.any,
            },
        }
    }
}

/// Every numbered range of a rule, single ports included.
pub(super) fn for_ranges(id: RuleId, repository: &Repository, mut visit: impl FnMut(Protocol, PortRange)) {
    if let Ports::OneOf(ports) = &repository.rule(id).ports {
        for port in ports {
            if let PortMatch::Range(protocol, range) = port {
                visit(*protocol, *range);
            }
        }
    }
}

fn insert_sorted(list: &mut Vec<RuleId>, id: RuleId) {
    if let Err(position) = list.binary_search(&id) {
        list.insert(position, id);
    }
}

fn count_down<K: Ord>(counts: &mut BTreeMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
