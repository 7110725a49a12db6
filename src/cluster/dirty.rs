//! What a transaction has to look at again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::delta::Presence;
use super::expand::References;
use super::objects::{Objects, Stored, service_of};
use crate::identity::pod::has_own_addresses;
use crate::model::{Identity, Kind, ObjectRef};
use crate::policy::l7::DnsPattern;
use crate::service::selects;

/// Sets of things whose derived state may be out of date. Too much in it costs time; too little
/// would be a fault.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    pub(super) policies: BTreeSet<ObjectRef>,
    pub(super) pods: BTreeSet<ObjectRef>,
    pub(super) nodes: BTreeSet<Arc<str>>,
    pub(super) services: BTreeSet<ObjectRef>,
    /// Single addresses of the world, or ones that pods and nodes took or left.
    pub(super) addresses: BTreeSet<IpAddr>,
    /// Prefixes of CIDR rules.
    pub(super) prefixes: BTreeSet<IpNet>,
    /// `toFQDNs` patterns whose reserved identities may differ.
    pub(super) patterns: BTreeSet<DnsPattern>,
    /// Prefixes of the address class trie.
    pub(super) classes: BTreeSet<IpNet>,
    /// Identities of pods that the engine was told of, or told to forget: filled in when it has accepted.
    pub(super) identities: BTreeMap<Identity, Presence>,
    /// Prefixes of the ipcache whose entry may differ from the published one.
    pub(super) ipcache: BTreeSet<IpNet>,
}

/// The Service whose endpoints are the API servers.
pub(super) fn api_server_service() -> ObjectRef {
    ObjectRef::new(Kind::Service, "default", "kubernetes")
}

impl Dirty {
    /// An object appeared, changed or went; `side` is one of what was and what is.
    pub(super) fn mark<'a>(
        &mut self,
        reference: &ObjectRef,
        side: &Stored,
        objects: &Objects,
        policies: impl Iterator<Item = (&'a ObjectRef, &'a References)>,
    ) {
        match side {
            Stored::Policy(_) => {
                self.policies.insert(reference.clone());
            }
            Stored::Namespace(_) => self.pods.extend(objects.pods_in(&reference.name).cloned()),
            Stored::Pod(pod) => {
                self.pods.insert(reference.clone());
                if has_own_addresses(pod) {
                    self.addresses.extend(&pod.addresses);
                }
                for service in objects.services_in(&reference.namespace) {
                    if objects.service(service).is_some_and(|object| selects(object, pod)) {
                        self.services.insert(service.clone());
                    }
                }
            }
            Stored::Node(node) => {
                self.nodes.insert(reference.name.clone());
                self.addresses.extend(&node.addresses);
                for pod in objects.pods_on(&reference.name) {
                    self.pods.insert(pod.clone());
                    self.host_network_services(pod, objects);
                }
            }
            Stored::Service(_) => {
                self.services.insert(reference.clone());
                self.policies_naming(policies, |references| references.may_name_service(reference));
            }
            Stored::Slice(slice) => {
                let service = service_of(slice);
                if service == api_server_service() {
                    self.api_servers(slice.endpoints.iter().flat_map(|e| &e.addresses).copied(), objects);
                }
                self.policies_naming(policies, |references| references.may_name_service(&service));
                self.services.insert(service);
            }
            Stored::Group(group) => {
                self.policies_naming(policies, |references| references.may_name_group(&group.name));
            }
            Stored::Secret(_) => {}
        }
    }

    fn policies_naming<'a>(
        &mut self,
        policies: impl Iterator<Item = (&'a ObjectRef, &'a References)>,
        names: impl Fn(&References) -> bool,
    ) {
        self.policies
            .extend(policies.filter(|(_, references)| names(references)).map(|(policy, _)| policy.clone()));
    }

    /// The addresses of a host-network pod are those of its node.
    fn host_network_services(&mut self, reference: &ObjectRef, objects: &Objects) {
        let Some(pod) = objects.pod(reference).filter(|pod| pod.host_network) else { return };
        for service in objects.services_in(&reference.namespace) {
            if objects.service(service).is_some_and(|object| selects(object, pod)) {
                self.services.insert(service.clone());
            }
        }
    }

    fn api_servers(&mut self, addresses: impl Iterator<Item = IpAddr>, objects: &Objects) {
        for address in addresses {
            self.addresses.insert(address);
            let nodes = objects.owners(address).filter(|owner| owner.kind == Kind::Node);
            self.nodes.extend(nodes.map(|node| node.name.clone()));
        }
    }
}
