//! The selector cache: every distinct peer element once, with the identities that it matches.
//!
//! Policies share selectors; a change of an identity is tested against the selectors that can
//! match it, and tells which specs it touches.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashMap;
use ipnet::IpNet;

use super::groups::Wide;
use super::identities::{IdentityTable, Known};
use super::label_index::LabelIndex;
use super::matching::{self, peer_matches};
use super::options::CidrMatch;
use super::repository::SpecId;
use super::slab::Slab;
use crate::model::{Direction, Identity, IdentityGroup, Protocol};
use crate::policy::rule::Peer;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SelectorId(pub(super) u32);

/// What selects identities.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum SelectorKey {
    Peer(Peer),
    /// Identities that have a port of this name: where an egress rule without peers names a port.
    NamedPort(Arc<str>, Protocol),
}

impl SelectorKey {
    fn matches(&self, known: &Known, cidr_match: CidrMatch) -> bool {
        match self {
            SelectorKey::Peer(peer) => peer_matches(peer, &known.record, cidr_match),
            SelectorKey::NamedPort(name, protocol) => known
                .named_ports
                .iter()
                .flat_map(|ports| ports.iter())
                .any(|port| port.name == *name && port.protocol == *protocol),
        }
    }
}

#[derive(Debug)]
pub(super) struct Selector {
    key: SelectorKey,
    /// Those in no group that the selector may cover; ascending.
    pub(super) members: Vec<Identity>,
    /// The others; ascending.
    pub(super) grouped: Vec<Identity>,
    pub(super) wide: Wide,
    /// Specs with rules that have it, with the number of those rules.
    users: BTreeMap<(SpecId, Direction), u32>,
}

impl Selector {
    /// Everybody that it matches.
    pub(super) fn everybody(&self) -> impl Iterator<Item = Identity> {
        self.members.iter().chain(&self.grouped).copied()
    }

    /// Members that have cells of their own for all rules: the cells of no group reach them.
    pub(super) fn single<'a>(&'a self, identities: &'a IdentityTable) -> impl Iterator<Item = Identity> + 'a {
        let grouped = if self.wide.covered == self.wide.groups { &[][..] } else { &self.grouped };
        let uncovered =
            move |id: &Identity| !identities.get(*id).is_some_and(|known| self.wide.covers(known));
        self.members.iter().copied().chain(grouped.iter().copied().filter(uncovered))
    }

    /// Members that the cells of a group reach and that have port names: cells of their own for those.
    pub(super) fn naming<'a>(&'a self, identities: &'a IdentityTable) -> impl Iterator<Item = Identity> + 'a {
        let named = move |id: &Identity| {
            identities.get(*id).is_some_and(|known| known.named_ports.is_some() && self.wide.covers(known))
        };
        self.grouped.iter().copied().filter(named)
    }

    fn enter(&mut self, known: &Known) {
        let id = known.record.id;
        let list = if self.wide.holds(known) { &mut self.grouped } else { &mut self.members };
        if let Err(position) = list.binary_search(&id) {
            list.insert(position, id);
            self.wide.count(known, 1);
        }
    }

    fn leave(&mut self, known: &Known) {
        let id = known.record.id;
        let list = if self.wide.holds(known) { &mut self.grouped } else { &mut self.members };
        if let Ok(position) = list.binary_search(&id) {
            list.remove(position);
            self.wide.count(known, -1);
        }
    }

    pub(super) fn users(&self) -> impl Iterator<Item = (SpecId, Direction)> {
        self.users.keys().copied()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct SelectorTable {
    selectors: Slab<Selector>,
    by_key: HashMap<SelectorKey, SelectorId>,
    pods: LabelIndex,
    by_prefix: HashMap<IpNet, Vec<u32>>,
    by_fqdn: HashMap<Arc<str>, Vec<u32>>,
    by_port_name: HashMap<Arc<str>, Vec<u32>>,
    /// Entities and node selectors: few, tested always.
    others: Vec<u32>,
    /// Those that may cover a group: few.
    wide: Vec<SelectorId>,
}

impl SelectorTable {
    pub(super) fn get(&self, id: SelectorId) -> &Selector {
        self.selectors.get(id.0)
    }

    /// One more rule of `spec` uses the selector.
    pub(super) fn acquire(
        &mut self,
        key: SelectorKey,
        user: (SpecId, Direction),
        identities: &mut IdentityTable,
        cidr_match: CidrMatch,
    ) -> SelectorId {
        if let Some(&id) = self.by_key.get(&key) {
            *self.selectors.get_mut(id.0).users.entry(user).or_default() += 1;
            return id;
        }
        let members: Vec<Identity> = identities
            .candidates(&key)
            .into_iter()
            .filter(|id| identities.get(*id).is_some_and(|known| key.matches(known, cidr_match)))
            .collect();
        let mut selector = Selector {
            wide: Wide::of(&key),
            key: key.clone(),
            members: Vec::new(),
            grouped: Vec::new(),
            users: BTreeMap::from([(user, 1)]),
        };
        members.iter().filter_map(|member| identities.get(*member)).for_each(|known| selector.enter(known));
        selector.wide.refresh(identities);
        let may_cover = !selector.wide.groups.is_empty();
        let id = SelectorId(self.selectors.insert(selector));
        if may_cover {
            self.wide.push(id);
        }
        for member in members {
            if let Some(known) = identities.get_mut(member)
                && let Err(position) = known.selectors.binary_search(&id)
            {
                known.selectors.insert(position, id);
            }
        }
        self.file(id.0, &key);
        self.by_key.insert(key, id);
        id
    }

    /// One rule less uses it.
    pub(super) fn release(
        &mut self,
        id: SelectorId,
        user: (SpecId, Direction),
        identities: &mut IdentityTable,
    ) {
        let selector = self.selectors.get_mut(id.0);
        if let Some(count) = selector.users.get_mut(&user) {
            *count -= 1;
            if *count == 0 {
                selector.users.remove(&user);
            }
        }
        if !selector.users.is_empty() {
            return;
        }
        let selector = self.selectors.remove(id.0);
        for member in selector.everybody() {
            if let Some(known) = identities.get_mut(member) {
                known.selectors.retain(|other| *other != id);
            }
        }
        self.wide.retain(|other| *other != id);
        self.by_key.remove(&selector.key);
        self.unfile(id.0, &selector.key);
    }

    fn file(&mut self, number: u32, key: &SelectorKey) {
        match key {
            SelectorKey::NamedPort(name, _) => {
                self.by_port_name.entry(name.clone()).or_default().push(number)
            }
            SelectorKey::Peer(Peer::Pods(selector)) => self.pods.insert(number, selector),
            SelectorKey::Peer(Peer::Cidr(set) | Peer::Address(set)) => {
                self.by_prefix.entry(set.cidr).or_default().push(number);
            }
            SelectorKey::Peer(Peer::Fqdn(pattern)) => {
                self.by_fqdn.entry(pattern.text().clone()).or_default().push(number);
            }
            SelectorKey::Peer(_) => self.others.push(number),
        }
    }

    fn unfile(&mut self, number: u32, key: &SelectorKey) {
        match key {
            SelectorKey::NamedPort(name, _) => unfile_from(&mut self.by_port_name, name, number),
            SelectorKey::Peer(Peer::Pods(selector)) => self.pods.remove(number, selector),
            SelectorKey::Peer(Peer::Cidr(set) | Peer::Address(set)) => {
                unfile_from(&mut self.by_prefix, &set.cidr, number);
            }
            SelectorKey::Peer(Peer::Fqdn(pattern)) => unfile_from(&mut self.by_fqdn, pattern.text(), number),
            SelectorKey::Peer(_) => self.others.retain(|other| *other != number),
        }
    }

    /// The selectors that match an identity, ascending.
    pub(super) fn matching(&self, known: &Known, cidr_match: CidrMatch) -> Vec<SelectorId> {
        let record = &known.record;
        let mut candidates = self.pods.candidates(&record.labels);
        candidates.extend_from_slice(&self.others);
        for prefix in matching::prefixes(record) {
            let wider = std::iter::successors(Some(prefix), IpNet::supernet);
            candidates.extend(wider.filter_map(|prefix| self.by_prefix.get(&prefix)).flatten());
        }
        if let crate::model::IdentityKind::Cidr(scope) = &record.kind {
            candidates.extend(scope.fqdns.iter().filter_map(|text| self.by_fqdn.get(text)).flatten());
        }
        for port in known.named_ports.iter().flat_map(|ports| ports.iter()) {
            candidates.extend(self.by_port_name.get(&port.name).into_iter().flatten());
        }
        candidates.sort_unstable();
        candidates.dedup();
        candidates.retain(|number| self.selectors.get(*number).key.matches(known, cidr_match));
        candidates.into_iter().map(SelectorId).collect()
    }

    /// Enters an identity into a selector that matches it, or takes it out.
    pub(super) fn add_member(&mut self, id: SelectorId, known: &Known) {
        self.selectors.get_mut(id.0).enter(known);
    }

    pub(super) fn remove_member(&mut self, id: SelectorId, known: &Known) {
        self.selectors.get_mut(id.0).leave(known);
    }

    /// Selectors that cover the group.
    pub(super) fn covering(&self, group: IdentityGroup) -> impl Iterator<Item = SelectorId> {
        self.wide.iter().copied().filter(move |id| self.get(*id).wide.covered.contains(group))
    }

    /// Finds anew which groups are covered, after identities came or went. Returns the selectors that
    /// cover more or fewer groups than before.
    pub(super) fn refresh_groups(&mut self, identities: &IdentityTable) -> Vec<SelectorId> {
        let selectors = &mut self.selectors;
        let turned = |id: &SelectorId| selectors.get_mut(id.0).wide.refresh(identities);
        self.wide.iter().copied().filter(turned).collect()
    }

    pub(super) fn reclaim(&mut self) {
        self.selectors.reclaim();
    }
}

fn unfile_from<K: std::hash::Hash + Eq>(lists: &mut HashMap<K, Vec<u32>>, key: &K, number: u32) {
    if let Some(list) = lists.get_mut(key) {
        list.retain(|other| *other != number);
        if list.is_empty() {
            lists.remove(key);
        }
    }
}
