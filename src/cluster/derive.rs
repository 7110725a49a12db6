//! From objects to identities, claims about addresses and news for the engine.
//!
//! Contract: [`Derived::derive`] brings everything in a [`Dirty`] set up to date with the objects
//! as they are, and may be repeated. After a failure the caller puts the old objects back and
//! derives the same set again: numbers are only given back in [`Ids::settle`], so the old state
//! comes back exactly, and what the engine was to be told is dropped.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::classes::ClassKey;
use super::counted::{Counted, Presence};
use super::delta::{AddressKind, IpcacheEntry};
use super::dirty::{Dirty, api_server_service};
use super::expand::{References, expand, prefix_scope};
use super::ids::{EngineOp, ExternalKey, Ids};
use super::objects::Objects;
use super::options::{MissingNamespaces, ViewError, ViewOptions};
use super::reserve::Reserved;
use super::uses::{AllUses, Uses};
use crate::fqdn::NameManager;
use crate::identity::pod::{has_own_addresses, identity_labels, is_meta_key};
use crate::identity::reserved::{ApiServer, node_record};
use crate::ipcache::{Layers, PrefixMap, Source};
use crate::model::{CidrScope, Family, Identity, Labels, Namespace, Node, ObjectRef, Pod};
use crate::policy::rule::Policy;
use crate::service::slice_addresses;

#[derive(Debug)]
pub(super) struct PolicyState {
    expanded: Arc<Policy>,
    pub(super) references: References,
    uses: Uses,
}

/// A pod with addresses of its own.
#[derive(Debug)]
pub(super) struct PodState {
    pub(super) pod: Arc<Pod>,
    /// `None` while the namespace is not known: then the labels are not either.
    pub(super) labels: Option<Labels>,
    pub(super) identity: Identity,
    /// Lives on this node, and its labels are known: it is a subject of policy.
    pub(super) is_endpoint: bool,
}

#[derive(Debug)]
struct NodeState {
    node: Arc<Node>,
    identity: Identity,
    api_server: ApiServer,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Derived {
    pub(super) ids: Ids,
    pub(super) uses: AllUses,
    pub(super) layers: Layers<IpcacheEntry>,
    pub(super) policies: HashMap<ObjectRef, PolicyState>,
    pub(super) pods: HashMap<ObjectRef, PodState>,
    nodes: HashMap<Arc<str>, NodeState>,
    /// Prefixes that CIDR rules name, with the identity they hold (none inside the cluster).
    named: PrefixMap<Option<ExternalKey>>,
    /// Single addresses of the world of which more is known.
    external: PrefixMap<ExternalKey>,
    reserved: Reserved,
    /// Prefixes of `ipBlock` and `networks` rules.
    pub(super) class_prefixes: PrefixMap<()>,
    /// The address class trie.
    pub(super) classes: PrefixMap<ClassKey>,
    subjects: Counted<Identity>,
    pub(super) names: NameManager,
}

/// A claim about a prefix without a tunnel.
fn entry(identity: Identity, class: AddressKind) -> Option<IpcacheEntry> {
    Some(IpcacheEntry { identity, tunnel_endpoint: None, class })
}

impl Derived {
    pub(super) fn new(ids: Ids, names: NameManager) -> Derived {
        Derived {
            ids,
            uses: AllUses::default(),
            layers: Layers::default(),
            policies: HashMap::new(),
            pods: HashMap::new(),
            nodes: HashMap::new(),
            named: PrefixMap::default(),
            external: PrefixMap::default(),
            reserved: Reserved::default(),
            class_prefixes: PrefixMap::default(),
            classes: PrefixMap::default(),
            subjects: Counted::default(),
            names,
        }
    }

    /// See the module.
    pub(super) fn derive(
        &mut self,
        objects: &Objects,
        options: &ViewOptions,
        dirty: &mut Dirty,
    ) -> Result<Vec<EngineOp>, ViewError> {
        let mut ops = Vec::new();
        let api_servers = slice_addresses(&objects.slices_of(&api_server_service()));
        self.derive_policies(objects, dirty, &mut ops);
        self.find_relabelled_pods(objects, options, dirty);
        self.withdraw(dirty);
        self.derive_nodes(objects, options, &api_servers, dirty, &mut ops)?;
        self.derive_pods(objects, options, dirty, &mut ops)?;
        self.derive_patterns(dirty);
        self.derive_prefixes(options, dirty, &mut ops)?;
        self.derive_reserved(dirty, &mut ops)?;
        self.derive_addresses(objects, options, &api_servers, dirty, &mut ops)?;
        self.derive_classes(objects, dirty, &mut ops)?;
        for (id, presence) in self.subjects.take_changes() {
            ops.push(match presence {
                Presence::Present => EngineOp::AddSubject(id),
                Presence::Absent => EngineOp::RemoveSubject(id),
            });
        }
        ops.extend(self.ids.idle());
        Ok(ops)
    }

    fn claim(&mut self, prefix: IpNet, source: Source, entry: Option<IpcacheEntry>, dirty: &mut Dirty) {
        if self.layers.set(prefix, source, entry) {
            dirty.ipcache.insert(prefix);
        }
    }

    fn derive_policies(&mut self, objects: &Objects, dirty: &Dirty, ops: &mut Vec<EngineOp>) {
        for reference in &dirty.policies {
            let new = objects.policy(reference).map(|policy| {
                let references = References::of(policy);
                let expanded = expand(policy, &references, objects);
                PolicyState { uses: Uses::of(&expanded), references, expanded }
            });
            if let Some(new) = &new {
                self.uses.add(&new.uses);
            }
            let old = match new {
                Some(new) => {
                    let expanded = new.expanded.clone();
                    let old = self.policies.insert(reference.clone(), new);
                    if old.as_ref().is_none_or(|old| old.expanded != expanded) {
                        ops.push(EngineOp::UpsertPolicy(expanded));
                    }
                    old
                }
                None => {
                    let old = self.policies.remove(reference);
                    if old.is_some() {
                        ops.push(EngineOp::RemovePolicy(reference.clone()));
                    }
                    old
                }
            };
            if let Some(old) = old {
                self.uses.remove(&old.uses);
            }
        }
    }

    /// Label keys and port names that begin or cease to matter change the identities of the pods
    /// that have them.
    fn find_relabelled_pods(&mut self, objects: &Objects, options: &ViewOptions, dirty: &mut Dirty) {
        let keys: Vec<Arc<str>> = self
            .uses
            .keys
            .take_changes()
            .into_iter()
            .map(|(key, _)| key)
            .filter(|key| !options.label_filter.is_relevant(key) && !is_meta_key(key))
            .collect();
        let ports: Vec<Arc<str>> =
            self.uses.port_names.take_changes().into_iter().map(|(name, _)| name).collect();
        if keys.is_empty() && ports.is_empty() {
            return;
        }
        let has_key = |pod: &Pod| keys.iter().any(|key| pod.labels.contains_key(key));
        let has_port = |pod: &Pod| {
            pod.ports
                .iter()
                .filter_map(|port| port.name.as_deref())
                .any(|name| ports.iter().any(|p| **p == *name))
        };
        let touched = objects.pods().filter(|(_, pod)| has_key(pod) || has_port(pod));
        dirty.pods.extend(touched.map(|(reference, _)| reference.clone()));
    }

    /// Takes the claims of changed pods and nodes back first, so that an address can move from
    /// one to another in one transaction, whatever the order.
    fn withdraw(&mut self, dirty: &mut Dirty) {
        let pods: Vec<Arc<Pod>> =
            dirty.pods.iter().filter_map(|pod| Some(self.pods.get(pod)?.pod.clone())).collect();
        let nodes: Vec<Arc<Node>> =
            dirty.nodes.iter().filter_map(|node| Some(self.nodes.get(node)?.node.clone())).collect();
        for address in pods.iter().flat_map(|pod| &pod.addresses) {
            self.claim(IpNet::from(*address), Source::Pod, None, dirty);
        }
        for address in nodes.iter().flat_map(|node| &node.addresses) {
            self.claim(IpNet::from(*address), Source::Node, None, dirty);
        }
    }

    fn derive_nodes(
        &mut self,
        objects: &Objects,
        options: &ViewOptions,
        api_servers: &BTreeSet<IpAddr>,
        dirty: &mut Dirty,
        ops: &mut Vec<EngineOp>,
    ) -> Result<(), ViewError> {
        for name in dirty.nodes.clone() {
            let is_local = *name == *options.node;
            let Some(node) = objects.node(&name) else {
                if self.nodes.remove(&name).is_some() {
                    if is_local {
                        let record = node_record(Identity::HOST, None, ApiServer::Elsewhere);
                        ops.push(EngineOp::UpsertIdentity(record));
                    } else {
                        self.ids.release_node(&name);
                    }
                }
                continue;
            };
            let identity = match self.nodes.get(&name) {
                Some(state) => state.identity,
                None if is_local => Identity::HOST,
                None => self.ids.acquire_node(&name)?,
            };
            let api_server = if node.addresses.iter().any(|address| api_servers.contains(address)) {
                ApiServer::Here
            } else {
                ApiServer::Elsewhere
            };
            let new = NodeState { node: node.clone(), identity, api_server };
            let old = self.nodes.insert(name.clone(), new);
            if old.is_none_or(|old| (&old.node, old.api_server) != (node, api_server)) {
                ops.push(EngineOp::UpsertIdentity(node_record(identity, Some(node), api_server)));
            }
            for address in &node.addresses {
                self.claim(IpNet::from(*address), Source::Node, entry(identity, AddressKind::Node), dirty);
            }
        }
        Ok(())
    }

    fn derive_pods(
        &mut self,
        objects: &Objects,
        options: &ViewOptions,
        dirty: &mut Dirty,
        ops: &mut Vec<EngineOp>,
    ) -> Result<(), ViewError> {
        for reference in dirty.pods.clone() {
            let new = match objects.pod(&reference).filter(|pod| has_own_addresses(pod)) {
                Some(pod) => Some(self.pod_state(&reference, pod, objects, options, ops)?),
                None => None,
            };
            if let Some(new) = &new {
                if new.is_endpoint {
                    self.subjects.add(&new.identity);
                }
                let node = new.pod.node.as_deref().filter(|node| *node != options.node);
                let node = node.and_then(|node| objects.node(node)).map(|node| &node.addresses[..]);
                self.mark_classes(&new.pod.addresses, dirty);
                for address in new.pod.clone().addresses.iter() {
                    let claim = IpcacheEntry {
                        identity: new.identity,
                        tunnel_endpoint: node.and_then(|addresses| nearest(addresses, *address)),
                        class: AddressKind::Pod,
                    };
                    self.claim(IpNet::from(*address), Source::Pod, Some(claim), dirty);
                }
            }
            let old = match new {
                Some(new) => self.pods.insert(reference, new),
                None => self.pods.remove(&reference),
            };
            if let Some(old) = old {
                self.mark_classes(&old.pod.addresses, dirty);
                if old.is_endpoint {
                    self.subjects.remove(&old.identity);
                }
                if let Some(labels) = &old.labels {
                    self.ids.release_pod(labels);
                }
            }
        }
        Ok(())
    }

    fn pod_state(
        &mut self,
        reference: &ObjectRef,
        pod: &Arc<Pod>,
        objects: &Objects,
        options: &ViewOptions,
        ops: &mut Vec<EngineOp>,
    ) -> Result<PodState, ViewError> {
        let undescribed;
        let namespace = match (objects.namespace(&pod.namespace), options.missing_namespaces) {
            (Some(namespace), _) => namespace.as_ref(),
            (None, MissingNamespaces::Exist) => {
                undescribed = Namespace::undescribed(&pod.namespace);
                &undescribed
            }
            (None, MissingNamespaces::Wait) => {
                // Not `init`, which rules for the whole cluster allow: a rule that denies by a label of the namespace
                // could not hold yet.
                let (labels, identity) = (None, Identity::UNKNOWN);
                return Ok(PodState { pod: pod.clone(), labels, identity, is_endpoint: false });
            }
        };
        let labels =
            identity_labels(pod, namespace, &options.cluster_name, &options.label_filter, &self.uses);
        let (labels, identity) = self
            .ids
            .acquire_pod(labels, ops)
            .map_err(|source| ViewError::Identity { pod: reference.clone(), source })?;
        let is_endpoint = pod.node.as_deref() == Some(&*options.node);
        Ok(PodState { pod: pod.clone(), labels: Some(labels), identity, is_endpoint })
    }

    fn derive_patterns(&mut self, dirty: &mut Dirty) {
        for (pattern, presence) in self.uses.patterns.take_changes() {
            dirty.patterns.extend(self.reserved.change(&pattern, presence));
            dirty.addresses.extend(match presence {
                Presence::Present => self.names.add_pattern(&pattern),
                Presence::Absent => self.names.remove_pattern(&pattern),
            });
        }
    }

    fn derive_prefixes(
        &mut self,
        options: &ViewOptions,
        dirty: &mut Dirty,
        ops: &mut Vec<EngineOp>,
    ) -> Result<(), ViewError> {
        dirty.prefixes.extend(self.uses.prefixes.take_changes().into_iter().map(|(prefix, _)| prefix));
        for prefix in dirty.prefixes.clone() {
            let is_named = self.uses.prefixes.contains(&prefix);
            if is_named == self.named.get(prefix).is_some() {
                continue;
            }
            // A longer prefix around an address changes what rules can tell about it.
            dirty.addresses.extend(self.external.within(prefix).map(|(address, _)| address.addr()));
            if is_named {
                let key = (!in_cluster(options, prefix))
                    .then(|| ExternalKey { scope: prefix_scope(prefix), api_server: ApiServer::Elsewhere });
                if let Some(key) = &key {
                    let id = self.ids.acquire_external(key, ops)?;
                    self.claim(prefix, Source::Cidr, entry(id, AddressKind::World), dirty);
                }
                self.named.insert(prefix, key);
            } else if let Some(key) = self.named.remove(prefix) {
                self.claim(prefix, Source::Cidr, None, dirty);
                key.iter().for_each(|key| self.ids.release_external(key));
            }
        }
        Ok(())
    }

    /// Numbers that no address has yet; see [`Reserved`].
    fn derive_reserved(&mut self, dirty: &mut Dirty, ops: &mut Vec<EngineOp>) -> Result<(), ViewError> {
        if dirty.patterns.is_empty() && dirty.prefixes.is_empty() {
            return Ok(());
        }
        if self.reserved.place(&self.named) {
            dirty.patterns.extend(self.reserved.patterns().cloned());
        }
        for pattern in &dirty.patterns {
            let wanted = self.reserved.wanted(pattern);
            let held = self.reserved.held.entry(pattern.clone()).or_default();
            for key in &wanted {
                if !held.contains(key) {
                    self.ids.acquire_external(key, ops)?;
                    held.insert(key.clone());
                }
            }
            for key in held.extract_if(.., |key| !wanted.contains(key)) {
                self.ids.release_external(&key);
            }
            if wanted.is_empty() {
                self.reserved.held.remove(pattern);
            }
        }
        Ok(())
    }

    fn derive_addresses(
        &mut self,
        objects: &Objects,
        options: &ViewOptions,
        api_servers: &BTreeSet<IpAddr>,
        dirty: &mut Dirty,
        ops: &mut Vec<EngineOp>,
    ) -> Result<(), ViewError> {
        for address in dirty.addresses.clone() {
            let prefix = IpNet::from(address);
            let key = self.external_key(address, objects, options, api_servers);
            if self.external.get(prefix) == key.as_ref() {
                continue;
            }
            let claim = match &key {
                Some(key) => {
                    let learned = !key.scope.fqdns.is_empty();
                    let kind = if learned { AddressKind::Learned } else { AddressKind::World };
                    entry(self.ids.acquire_external(key, ops)?, kind)
                }
                None => None,
            };
            self.claim(prefix, Source::Address, claim, dirty);
            let old = match key {
                Some(key) => self.external.insert(prefix, key),
                None => self.external.remove(prefix),
            };
            if let Some(old) = old {
                self.ids.release_external(&old);
            }
        }
        Ok(())
    }

    /// What is known about a single address beyond the prefixes around it. Neither DNS answers nor
    /// EndpointSlices say anything about the cluster's own addresses, nor about ones that are no
    /// host of the world.
    fn external_key(
        &self,
        address: IpAddr,
        objects: &Objects,
        options: &ViewOptions,
        api_servers: &BTreeSet<IpAddr>,
    ) -> Option<ExternalKey> {
        if objects.owners(address).next().is_some()
            || options.fixed_addresses.contains_key(&address)
            || in_cluster(options, IpNet::from(address))
            || !is_host_of_the_world(address)
        {
            return None;
        }
        let fqdns = self.names.patterns_of(address);
        let api_server = if api_servers.contains(&address) { ApiServer::Here } else { ApiServer::Elsewhere };
        if fqdns.is_empty() && api_server == ApiServer::Elsewhere {
            return None;
        }
        let prefix = self.named.lookup(address).map(|(prefix, _)| prefix);
        let ipv6 = Family::of(address) == Family::IPv6;
        Some(ExternalKey { scope: CidrScope { prefix, fqdns, ipv6 }, api_server })
    }
}

fn in_cluster(options: &ViewOptions, prefix: IpNet) -> bool {
    options.pod_cidrs.iter().any(|range| range.contains(&prefix))
}

/// `::ffff:a.b.c.d` is none: it would stand for whoever has the IPv4 address, a pod for example.
fn is_host_of_the_world(address: IpAddr) -> bool {
    address.to_canonical() == address
        && !address.is_unspecified()
        && !address.is_loopback()
        && !address.is_multicast()
}

/// The address of a node that a tunnel goes to: of the same family where there is one.
fn nearest(node: &[IpAddr], address: IpAddr) -> Option<IpAddr> {
    let same = node.iter().find(|candidate| Family::of(**candidate) == Family::of(address));
    same.or_else(|| node.first()).copied()
}
