//! Known identities, and the ways to find the ones that a selector can match.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashMap;
use ipnet::IpNet;

use super::matching;
use super::selectors::{SelectorId, SelectorKey};
use crate::model::{Family, GroupSet, Identity, IdentityGroup, IdentityKind, IdentityRecord, Protocol};
use crate::policy::named_port::{self, NamedPort};
use crate::policy::rule::Peer;
use crate::policy::selector::{LabelSelector, Operator, Requirement};

/// An identity with what was derived from it.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) record: IdentityRecord,
    /// Selectors that match it; ascending.
    pub(super) selectors: Vec<SelectorId>,
    /// Groups that its addresses can be in: more than one only where the record is not what its number says.
    pub(super) groups: GroupSet,
    /// What port names mean there; `None` when it has none.
    pub(super) named_ports: Option<Arc<[NamedPort]>>,
}

/// A port name with its protocol.
pub(super) type PortName = (Arc<str>, Protocol);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct IdentityTable {
    known: HashMap<Identity, Known>,
    /// By key and value, whatever the source; each ascending.
    by_label: HashMap<Arc<str>, HashMap<Arc<str>, Vec<Identity>>>,
    by_prefix: BTreeMap<IpNet, Vec<Identity>>,
    by_fqdn: HashMap<Arc<str>, Vec<Identity>>,
    by_port_name: HashMap<PortName, BTreeMap<u16, Vec<Identity>>>,
    nodes: BTreeSet<Identity>,
    group_sizes: [usize; IdentityGroup::ALL.len()],
}

impl IdentityTable {
    pub(super) fn get(&self, id: Identity) -> Option<&Known> {
        self.known.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: Identity) -> Option<&mut Known> {
        self.known.get_mut(&id)
    }

    /// Known identities that can be in the group.
    pub(super) fn group_size(&self, group: IdentityGroup) -> usize {
        self.group_sizes[group as usize]
    }

    /// The group that packets of a peer are looked up in; of one that is not known, by its number alone.
    pub(super) fn group_of(&self, id: Identity) -> Option<IdentityGroup> {
        match self.known.get(&id) {
            Some(known) => known.groups.single(),
            None => IdentityGroup::of(id, Family::IPv4)
                .filter(|group| matches!(group, IdentityGroup::Pods | IdentityGroup::RemoteNodes)),
        }
    }

    /// In the order of numbers.
    pub(super) fn sorted(&self) -> Vec<&Known> {
        let mut all: Vec<&Known> = self.known.values().collect();
        all.sort_unstable_by_key(|known| known.record.id);
        all
    }

    /// Adds an identity that is not there yet. Returns the port names whose set of numbers grew.
    pub(super) fn insert(&mut self, record: IdentityRecord) -> Vec<PortName> {
        let id = record.id;
        for label in record.labels.iter() {
            let values = self.by_label.entry(label.key.clone()).or_default();
            let holders = values.entry(label.value.clone()).or_default();
            if let Err(position) = holders.binary_search(&id) {
                holders.insert(position, id);
            }
        }
        for prefix in matching::prefixes(&record) {
            self.by_prefix.entry(prefix).or_default().push(id);
        }
        match &record.kind {
            IdentityKind::Cidr(scope) => {
                for pattern in &scope.fqdns {
                    self.by_fqdn.entry(pattern.clone()).or_default().push(id);
                }
            }
            IdentityKind::Node { .. } => {
                self.nodes.insert(id);
            }
            IdentityKind::Labels | IdentityKind::AddressClass(_) => {}
        }
        let ports = named_port::decode(&record.labels);
        let mut grown = Vec::new();
        for port in &ports {
            let name = (port.name.clone(), port.protocol);
            let holders = self.by_port_name.entry(name.clone()).or_default().entry(port.port).or_default();
            if holders.is_empty() {
                grown.push(name);
            }
            holders.push(id);
        }
        let named_ports = (!ports.is_empty()).then(|| ports.into());
        let groups = IdentityGroup::of_record(&record);
        groups.iter().for_each(|group| self.group_sizes[group as usize] += 1);
        self.known.insert(id, Known { record, selectors: Vec::new(), groups, named_ports });
        grown
    }

    /// Removes an identity. Returns it, and the port names whose set of numbers shrank.
    pub(super) fn remove(&mut self, id: Identity) -> Option<(Known, Vec<PortName>)> {
        let known = self.known.remove(&id)?;
        known.groups.iter().for_each(|group| self.group_sizes[group as usize] -= 1);
        for label in known.record.labels.iter() {
            if let Some(values) = self.by_label.get_mut(&label.key) {
                if let Some(holders) = values.get_mut(&label.value) {
                    if let Ok(position) = holders.binary_search(&id) {
                        holders.remove(position);
                    }
                    if holders.is_empty() {
                        values.remove(&label.value);
                    }
                }
                if values.is_empty() {
                    self.by_label.remove(&label.key);
                }
            }
        }
        for prefix in matching::prefixes(&known.record) {
            if let Some(holders) = self.by_prefix.get_mut(&prefix) {
                holders.retain(|holder| *holder != id);
                if holders.is_empty() {
                    self.by_prefix.remove(&prefix);
                }
            }
        }
        if let IdentityKind::Cidr(scope) = &known.record.kind {
            for pattern in &scope.fqdns {
                drop_from(&mut self.by_fqdn, pattern, id);
            }
        }
        self.nodes.remove(&id);
        let mut shrunk = Vec::new();
        for port in known.named_ports.iter().flat_map(|ports| ports.iter()) {
            let name = (port.name.clone(), port.protocol);
            let Some(numbers) = self.by_port_name.get_mut(&name) else { continue };
            if let Some(holders) = numbers.get_mut(&port.port) {
                holders.retain(|holder| *holder != id);
                if holders.is_empty() {
                    numbers.remove(&port.port);
                    shrunk.push(name.clone());
                }
            }
            if numbers.is_empty() {
                self.by_port_name.remove(&name);
            }
        }
        Some((known, shrunk))
    }

    /// Every number that a port name stands for somewhere.
    pub(super) fn numbers_of(&self, name: &PortName) -> impl Iterator<Item = u16> {
        self.by_port_name.get(name).into_iter().flat_map(|numbers| numbers.keys().copied())
    }

    /// A superset of the identities that the selector matches, ascending.
    pub(super) fn candidates(&self, key: &SelectorKey) -> Vec<Identity> {
        let mut found: Vec<Identity> = match key {
            SelectorKey::NamedPort(name, protocol) => self
                .by_port_name
                .get(&(name.clone(), *protocol))
                .into_iter()
                .flat_map(|numbers| numbers.values().flatten().copied())
                .collect(),
            SelectorKey::Peer(Peer::Pods(selector)) => self.pod_candidates(selector),
            SelectorKey::Peer(Peer::Nodes(_)) => self.nodes.iter().copied().collect(),
            SelectorKey::Peer(Peer::Entity(_)) => self.known.keys().copied().collect(),
            // Prefixes sort by address, then length: all that lie inside are neighbours.
            SelectorKey::Peer(Peer::Cidr(set) | Peer::Address(set)) => self
                .by_prefix
                .range(set.cidr..)
                .take_while(|(prefix, _)| set.cidr.contains(&prefix.network()))
                .flat_map(|(_, holders)| holders)
                .copied()
                .collect(),
            SelectorKey::Peer(Peer::Fqdn(pattern)) => {
                self.by_fqdn.get(pattern.text()).into_iter().flatten().copied().collect()
            }
            SelectorKey::Peer(Peer::CidrGroup(_) | Peer::Service(_)) => Vec::new(),
        };
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Those that meet every requirement that needs a label to be there, sources aside.
    fn pod_candidates(&self, selector: &LabelSelector) -> Vec<Identity> {
        let holders = |requirement: &Requirement| -> Option<Vec<&Vec<Identity>>> {
            let pairs = self.by_label.get(&requirement.key.key);
            match &requirement.operator {
                Operator::In(values) => Some(values.iter().filter_map(|value| pairs?.get(value)).collect()),
                Operator::Exists => Some(pairs.into_iter().flat_map(|pairs| pairs.values()).collect()),
                Operator::NotIn(_) | Operator::DoesNotExist => None,
            }
        };
        let mut needed: Vec<Vec<&Vec<Identity>>> =
            selector.requirements().iter().filter_map(holders).collect();
        needed.sort_by_key(|lists| lists.iter().map(|list| list.len()).sum::<usize>());
        let Some((fewest, others)) = needed.split_first() else {
            return self.known.keys().copied().collect();
        };
        let meets_others = |id: &Identity| {
            others.iter().all(|lists| lists.iter().any(|list| list.binary_search(id).is_ok()))
        };
        fewest.iter().flat_map(|list| list.iter()).copied().filter(meets_others).collect()
    }
}

fn drop_from(lists: &mut HashMap<Arc<str>, Vec<Identity>>, key: &Arc<str>, id: Identity) {
    if let Some(list) = lists.get_mut(key) {
        if let Some(position) = list.iter().position(|other| *other == id) {
            list.swap_remove(position);
        }
        if list.is_empty() {
            lists.remove(key);
        }
    }
}
