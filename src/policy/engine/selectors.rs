//! The selector cache: every distinct peer element once, with the identities that it matches.
//!
//! Policies share selectors; a change of an identity is tested against the selectors that can
//! match it, and tells which specs it touches.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashMap;
use ipnet::IpNet;

use super::identities::{IdentityTable, Known};
use super::label_index::LabelIndex;
use super::matching::{self, peer_matches};
use super::options::CidrMatch;
use super::repository::SpecId;
use super::slab::Slab;
use crate::model::{Direction, Identity, Protocol};
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
    /// Ascending.
    pub(super) members: Vec<Identity>,
    /// Specs with rules that have it, with the number of those rules.
    users: BTreeMap<(SpecId, Direction), u32>,
}

impl Selector {
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
        let selector = Selector { key: key.clone(), members, users: BTreeMap::from([(user, 1)]) };
        let id = SelectorId(self.selectors.insert(selector));
        for member in &self.selectors.get(id.0).members {
            if let Some(known) = identities.get_mut(*member)
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
        for member in &selector.members {
            if let Some(known) = identities.get_mut(*member) {
                known.selectors.retain(|other| *other != id);
            }
        }
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

    /// Enters an identity into the selectors that match it, or takes it out of those.
    pub(super) fn add_member(&mut self, id: SelectorId, identity: Identity) {
        let members = &mut self.selectors.get_mut(id.0).members;
        if let Err(position) = members.binary_search(&identity) {
            members.insert(position, identity);
        }
    }

    pub(super) fn remove_member(&mut self, id: SelectorId, identity: Identity) {
        let members = &mut self.selectors.get_mut(id.0).members;
        if let Ok(position) = members.binary_search(&identity) {
            members.remove(position);
        }
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
