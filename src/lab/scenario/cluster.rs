//! The cluster that a scenario describes, with everything that the file leaves out.
//!
//! Contract (scenario-format.md, "Objects read"): the same input gives the same cluster. What is
//! written is kept as written; [`Cluster::resources`] is what a cluster would hold: used
//! namespaces exist, every node, pod and Service has addresses, every pod has a node and a port,
//! and there is a cluster DNS. A pod that is replaced without saying so keeps its node, addresses
//! and ports: it is the same pod with other labels.
//!
//! Cloning is cheap enough to make every change a transaction: change a clone, ask the judges,
//! keep it or drop it. [`Cluster::changes_from`] says what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::defaults::Addresses;
use super::{External, ExternalChange, NodeDeclaration, Scenario, Step};
use crate::cluster::{Change, Resource};
use crate::k8s::Document;
use crate::k8s::tree::{Node as Tree, Value};
use crate::lab::topology::{
    ExternalSpec, ListenPort, NodeSpec, PodSpec, Role, ServiceAnswer, ServiceSpec, Topology, Transport,
};
use crate::model::{
    ContainerPort, EndpointSlice, Family, Kind, Node, Object, ObjectRef, Pod, Protocol, Service,
};
use crate::service::selects;

pub use super::defaults::{NODE_RANGES, POD_RANGES, SERVICE_RANGES, pod_ranges};

pub const DNS_NAMESPACE: &str = "kube-system";
pub const DNS_NAME: &str = "kube-dns";

/// An object as it was written.
#[derive(Clone, Debug)]
pub(super) struct Declared {
    pub(super) resource: Resource,
    /// Where it stood among all that was ever declared.
    pub(super) order: usize,
    /// Members that the model has no place for.
    pub(super) extra: Extra,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Extra {
    /// `spec.externalName` of a Service.
    pub(super) external_name: Option<String>,
    /// `status.hostIP(s)` of a pod.
    pub(super) host_addresses: Vec<IpAddr>,
    /// The pod has run to its end.
    pub(super) finished: bool,
    /// The pod's containers are written out, and with them all of its ports.
    pub(super) lists_containers: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub(super) node_declarations: Vec<NodeDeclaration>,
    pub(super) declared: BTreeMap<ObjectRef, Declared>,
    /// Defaults that a step has deleted.
    pub(super) deleted: BTreeSet<ObjectRef>,
    pub(super) externals: Vec<External>,
    pub(super) addresses: Addresses,
    pub(super) next_order: usize,
    /// Filled in from all of the above.
    pub(super) resources: BTreeMap<ObjectRef, Resource>,
    pub(super) node_order: Vec<String>,
    pub(super) gateways: BTreeMap<String, Vec<IpAddr>>,
    /// Nodes whose gateway a step speaks as.
    speaking_gateways: BTreeSet<String>,
}

/// A step speaks of something that is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} does not exist")]
pub struct Absent(pub String);

impl Cluster {
    /// The cluster at the beginning of a scenario.
    pub fn new(scenario: &Scenario, documents: &[Document]) -> Cluster {
        let mut cluster = Cluster {
            node_declarations: scenario.nodes.clone(),
            declared: BTreeMap::new(),
            deleted: BTreeSet::new(),
            externals: scenario.externals.clone(),
            addresses: Addresses::default(),
            next_order: 0,
            resources: BTreeMap::new(),
            node_order: Vec::new(),
            gateways: BTreeMap::new(),
            speaking_gateways: scenario.steps.iter().filter_map(Step::gateway).collect(),
        };
        cluster.apply(documents);
        cluster
    }

    /// Creates or replaces objects.
    pub fn apply(&mut self, documents: &[Document]) {
        self.forget_surplus(documents);
        for document in documents {
            let reference = document.resource.reference();
            let mut declared = Declared {
                resource: document.resource.clone(),
                order: self.next_order,
                extra: Extra::of(&document.node),
            };
            self.next_order += 1;
            if let Some(old) = self.declared.get(&reference) {
                declared.order = old.order;
                keep(&mut declared, &old.resource);
            } else if let Some(old) = self.resources.get(&reference) {
                keep(&mut declared, old);
            }
            self.deleted.remove(&reference);
            self.declared.insert(reference, declared);
        }
        self.fill();
    }

    /// Endpoints that are applied again have the slices of their new subsets, and no others.
    fn forget_surplus(&mut self, documents: &[Document]) {
        let endpoints: BTreeSet<ObjectRef> = documents
            .iter()
            .filter_map(|document| EndpointSlice::made_of(&document.resource.reference()))
            .collect();
        self.declared
            .retain(|known, _| EndpointSlice::made_of(known).is_none_or(|of| !endpoints.contains(&of)));
    }

    /// Deletes an object; a namespace goes with everything in it.
    pub fn delete(&mut self, reference: &ObjectRef) -> Result<(), Absent> {
        let gone: Vec<ObjectRef> = self
            .resources
            .keys()
            .chain(self.declared.keys())
            .filter(|other| {
                *other == reference
                    || (reference.kind == Kind::Namespace && other.namespace == reference.name)
                    // v1 Endpoints are kept as slices: one for each subset.
                    || EndpointSlice::made_of(other).as_ref() == Some(reference)
            })
            .cloned()
            .collect();
        if gone.is_empty() {
            return Err(Absent(reference.to_string()));
        }
        for reference in gone {
            self.declared.remove(&reference);
            self.deleted.insert(reference);
        }
        self.fill();
        Ok(())
    }

    /// Replaces the members of an external that are given.
    pub fn change_external(&mut self, change: &ExternalChange) -> Result<(), Absent> {
        let external = self
            .externals
            .iter_mut()
            .find(|external| external.name == change.name)
            .ok_or_else(|| Absent(format!("external {}", change.name)))?;
        fn set<T: Clone>(place: &mut T, value: &Option<T>) {
            if let Some(value) = value {
                *place = value.clone();
            }
        }
        set(&mut external.addresses, &change.addresses);
        set(&mut external.names, &change.names);
        set(&mut external.aliases, &change.aliases);
        set(&mut external.ttl, &change.ttl);
        set(&mut external.ports, &change.ports);
        Ok(())
    }

    /// Everything that the cluster holds.
    pub fn resources(&self) -> &BTreeMap<ObjectRef, Resource> {
        &self.resources
    }

    /// What turns `before` into this cluster: deletions first, then what the rest depends on.
    pub fn changes_from(&self, before: &BTreeMap<ObjectRef, Resource>) -> Vec<Change> {
        let gone = before.keys().filter(|reference| !self.resources.contains_key(*reference));
        let mut changes: Vec<Change> = gone.map(|reference| Change::Delete(reference.clone())).collect();
        let mut new: Vec<&Resource> = self
            .resources
            .iter()
            .filter(|(reference, resource)| before.get(*reference) != Some(*resource))
            .map(|(_, resource)| resource)
            .collect();
        new.sort_by_key(|resource| rank(resource));
        changes.extend(new.into_iter().map(|resource| Change::Upsert(resource.clone())));
        changes
    }

    /// Names of the nodes; the first one is where pods run that name none.
    pub fn nodes(&self) -> &[String] {
        &self.node_order
    }

    pub fn node(&self, name: &str) -> Option<&Node> {
        match self.resources.get(&ObjectRef::new(Kind::Node, "", name))? {
            Resource::Object(Object::Node(node)) => Some(node),
            _ => None,
        }
    }

    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Pod> {
        match self.resources.get(&ObjectRef::new(Kind::Pod, namespace, name))? {
            Resource::Object(Object::Pod(pod)) => Some(pod),
            _ => None,
        }
    }

    pub fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        match self.resources.get(&ObjectRef::new(Kind::Service, namespace, name))? {
            Resource::Object(Object::Service(service)) => Some(service),
            _ => None,
        }
    }

    pub fn external(&self, name: &str) -> Option<&External> {
        self.externals.iter().find(|external| external.name == name)
    }

    /// Addresses of the gateway entity (`ingress:NODE`) on each node.
    pub fn gateways(&self) -> &BTreeMap<String, Vec<IpAddr>> {
        &self.gateways
    }

    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.resources.values().filter_map(|resource| match resource {
            Resource::Object(Object::Pod(pod)) => Some(pod),
            _ => None,
        })
    }

    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.resources.values().filter_map(|resource| match resource {
            Resource::Object(Object::Service(service)) => Some(service),
            _ => None,
        })
    }

    /// The pods that a Service selects.
    pub fn backing_pods<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = &'a Pod> {
        self.pods().filter(|pod| selects(service, pod))
    }

    /// The value of a Secret: of the named key, or of the only one.
    pub fn secret(&self, namespace: &str, name: &str, key: Option<&str>) -> Option<Vec<u8>> {
        let Resource::Secret(secret) = self.resources.get(&ObjectRef::new(Kind::Secret, namespace, name))?
        else {
            return None;
        };
        match key {
            Some(key) => secret.data.get(key).cloned(),
            None if secret.data.len() == 1 => secret.data.values().next().cloned(),
            None => None,
        }
    }

    /// Addresses at which a headless Service is known: those of its slices, or of its pods.
    pub fn headless_addresses(&self, service: &Service) -> Vec<IpAddr> {
        let mut addresses: Vec<IpAddr> = self
            .resources
            .values()
            .filter_map(|resource| match resource {
                Resource::Object(Object::EndpointSlice(slice)) => Some(slice),
                _ => None,
            })
            .filter(|slice| slice.namespace == service.namespace && slice.service == service.name)
            .flat_map(|slice| &slice.endpoints)
            .filter(|endpoint| endpoint.ready)
            .flat_map(|endpoint| endpoint.addresses.iter().copied())
            .collect();
        if addresses.is_empty() {
            addresses = self.backing_pods(service).flat_map(|pod| pod.addresses.iter().copied()).collect();
        }
        addresses
    }

    /// The cluster as sites with links, listeners and names.
    pub fn topology(&self) -> Topology {
        let dns_pods: BTreeSet<&str> = self
            .service(DNS_NAMESPACE, DNS_NAME)
            .map(|service| self.backing_pods(service).map(|pod| pod.name.as_str()).collect())
            .unwrap_or_default();
        let nodes = self.node_order.iter().filter_map(|name| {
            let addresses = self.node(name)?.addresses.clone();
            Some(NodeSpec { name: name.clone(), addresses })
        });
        let pods = self.pods().filter_map(|pod| {
            let serves_dns = pod.namespace == DNS_NAMESPACE && dns_pods.contains(pod.name.as_str());
            let mut ports: Vec<ListenPort> = pod.ports.iter().filter_map(listen_port).collect();
            if serves_dns {
                ports.extend(
                    [Transport::Udp, Transport::Tcp].map(|transport| ListenPort { port: 53, transport }),
                );
            }
            ports.sort_unstable();
            ports.dedup();
            Some(PodSpec {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                node: pod.node.clone()?,
                addresses: pod.addresses.clone(),
                host_network: pod.host_network,
                ports,
                role: if serves_dns { Role::ClusterDns } else { Role::Workload },
            })
        });
        let services = self.services().map(|service| {
            let reference = ObjectRef::new(Kind::Service, &service.namespace, &service.name);
            let alias =
                self.declared.get(&reference).and_then(|declared| declared.extra.external_name.clone());
            let answer = match alias {
                Some(target) => ServiceAnswer::Alias(target),
                None if service.headless => ServiceAnswer::Addresses(self.headless_addresses(service)),
                None => ServiceAnswer::Addresses(service.cluster_ips.clone()),
            };
            ServiceSpec { namespace: service.namespace.clone(), name: service.name.clone(), answer }
        });
        let externals = self.externals.iter().map(|external| ExternalSpec {
            name: external.name.clone(),
            addresses: external.addresses.clone(),
            ports: external.ports.clone(),
            names: external.names.clone(),
            aliases: external.aliases.clone(),
            ttl: u32::try_from(external.ttl.as_secs()).unwrap_or(u32::MAX),
        });
        let gateways = self.gateways.iter().filter(|(node, _)| self.speaking_gateways.contains(*node)).map(
            |(node, addresses)| ExternalSpec {
                name: gateway_site(node),
                addresses: addresses.clone(),
                ports: Vec::new(),
                names: Vec::new(),
                aliases: Vec::new(),
                ttl: 0,
            },
        );
        Topology {
            nodes: nodes.collect(),
            pods: pods.collect(),
            externals: externals.chain(gateways).collect(),
            services: services.collect(),
        }
    }
}

/// Name of the namespace that a node's gateway has in the lab: beside the node, like an external host. No
/// external can have such a name.
pub fn gateway_site(node: &str) -> String {
    format!("ingress@{node}")
}

/// Members that a replacement leaves open are those of the object before.
fn keep(new: &mut Declared, old: &Resource) {
    let Declared { resource, extra, .. } = new;
    match (resource, old) {
        (Resource::Object(Object::Pod(new)), Resource::Object(Object::Pod(old))) => {
            if new.node.is_none() {
                new.node.clone_from(&old.node);
            }
            if new.addresses.is_empty() && !new.host_network && new.node == old.node {
                new.addresses.clone_from(&old.addresses);
            }
            if new.ports.is_empty() && !extra.lists_containers {
                new.ports.clone_from(&old.ports);
            }
        }
        (Resource::Object(Object::Service(new)), Resource::Object(Object::Service(old)))
            if new.cluster_ips.is_empty() && !new.headless =>
        {
            new.cluster_ips.clone_from(&old.cluster_ips);
        }
        (Resource::Object(Object::Node(new)), Resource::Object(Object::Node(old)))
            if new.addresses.is_empty() =>
        {
            new.addresses.clone_from(&old.addresses);
        }
        _ => {}
    }
}

/// Nodes and namespaces before pods, pods before Services, policies last.
fn rank(resource: &Resource) -> u8 {
    match resource {
        Resource::Object(Object::Node(_)) => 0,
        Resource::Object(Object::Namespace(_)) => 1,
        Resource::Object(Object::Pod(_)) => 2,
        Resource::Object(Object::Service(_)) => 3,
        Resource::Object(Object::EndpointSlice(_)) => 4,
        Resource::CidrGroup(_) | Resource::Secret(_) => 5,
        Resource::Policy(_) => 6,
    }
}

fn listen_port(port: &ContainerPort) -> Option<ListenPort> {
    let transport = match port.protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
        Protocol::Sctp => Transport::Sctp,
        _ => return None,
    };
    Some(ListenPort { port: port.port, transport })
}

/// The first address of a family.
pub fn of_family(addresses: &[IpAddr], family: Family) -> Option<IpAddr> {
    addresses.iter().copied().find(|address| Family::of(*address) == family)
}

impl Extra {
    fn of(tree: &Tree) -> Extra {
        let text =
            |path: &[&str]| path.iter().try_fold(tree, |node, key| node.get(key)).and_then(Tree::as_str);
        let mut host_addresses: Vec<IpAddr> =
            text(&["status", "hostIP"]).and_then(|text| text.parse().ok()).into_iter().collect();
        let listed = tree.get("status").and_then(|status| status.get("hostIPs"));
        if let Some(Value::Sequence(items)) = listed.map(|list| &list.value) {
            let more = items.iter().filter_map(|item| item.get("ip")?.as_str()?.parse::<IpAddr>().ok());
            host_addresses.extend(more);
        }
        Extra {
            external_name: text(&["spec", "externalName"])
                .filter(|_| text(&["spec", "type"]) == Some("ExternalName"))
                .map(str::to_owned),
            host_addresses,
            finished: text(&["kind"]) == Some("Pod")
                && matches!(text(&["status", "phase"]), Some("Succeeded" | "Failed")),
            lists_containers: tree.get("spec").and_then(|spec| spec.get("containers")).is_some(),
        }
    }
}
