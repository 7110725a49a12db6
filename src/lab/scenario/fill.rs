//! Fills in what a scenario leaves out: see [`super::cluster`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::cluster::{Cluster, DNS_NAME, DNS_NAMESPACE, Declared, Extra};
use super::defaults::Owner;
use crate::cluster::Resource;
use crate::model::{
    ContainerPort, InternalTraffic, Kind, Namespace, Node, Object, ObjectRef, Pod, Protocol, Service,
    ServicePort, TargetPort,
};

const DNS_LABEL: (&str, &str) = ("k8s-app", "kube-dns");
const DEFAULT_NODE: &str = "node1";

impl Cluster {
    /// Computes `resources` anew.
    pub(super) fn fill(&mut self) {
        self.reserve_explicit_addresses();
        self.resources = self
            .declared
            .iter()
            .filter(|(_, declared)| !declared.extra.finished)
            .map(|(reference, declared)| (reference.clone(), declared.resource.clone()))
            .collect();
        self.fill_dns();
        self.fill_nodes();
        self.fill_pods();
        self.fill_services();
        self.fill_namespaces();
    }

    fn reserve_explicit_addresses(&mut self) {
        for declared in self.declared.values() {
            let explicit: &[IpAddr] = match &declared.resource {
                Resource::Object(Object::Pod(pod)) => &pod.addresses,
                Resource::Object(Object::Node(node)) => &node.addresses,
                Resource::Object(Object::Service(service)) => &service.cluster_ips,
                _ => &[],
            };
            for address in explicit {
                self.addresses.reserve(*address);
            }
        }
        for external in &self.externals {
            for address in &external.addresses {
                self.addresses.reserve(*address);
            }
        }
    }

    fn add_default(&mut self, resource: Resource) {
        let reference = resource.reference();
        if !self.deleted.contains(&reference) {
            self.resources.entry(reference).or_insert(resource);
        }
    }

    /// `kube-dns`, unless the file brings its own.
    fn fill_dns(&mut self) {
        let own_service = self.service(DNS_NAMESPACE, DNS_NAME);
        let labelled = |pod: &Pod| {
            pod.namespace == DNS_NAMESPACE
                && pod.labels.get(DNS_LABEL.0).is_some_and(|value| value == DNS_LABEL.1)
        };
        let served = match own_service {
            Some(service) => self.backing_pods(service).next().is_some(),
            None => self.pods().any(labelled),
        };
        let has_service = own_service.is_some();
        if !served {
            let port =
                |name: &str, protocol| ContainerPort { name: Some(name.to_owned()), port: 53, protocol };
            self.add_default(Resource::Object(Object::Pod(Pod {
                namespace: DNS_NAMESPACE.to_owned(),
                name: DNS_NAME.to_owned(),
                labels: [DNS_LABEL].into(),
                node: None,
                addresses: Vec::new(),
                host_network: false,
                service_account: "default".to_owned(),
                controller: None,
                ports: vec![port("dns", Protocol::Udp), port("dns-tcp", Protocol::Tcp)],
            })));
        }
        if !has_service {
            let port = |name: &str, protocol| ServicePort {
                name: Some(name.to_owned()),
                port: 53,
                protocol,
                target: TargetPort::Number(53),
            };
            self.add_default(Resource::Object(Object::Service(Service {
                namespace: DNS_NAMESPACE.to_owned(),
                name: DNS_NAME.to_owned(),
                labels: [DNS_LABEL].into(),
                cluster_ips: Vec::new(),
                headless: false,
                selector: Some([DNS_LABEL].into()),
                ports: vec![port("dns", Protocol::Udp), port("dns-tcp", Protocol::Tcp)],
                affinity_secs: None,
                internal_traffic: InternalTraffic::Cluster,
            })));
        }
    }

    /// Declared objects of a kind, in the order of their declaration.
    fn in_order(&self) -> Vec<&Declared> {
        let mut declared: Vec<&Declared> = self.declared.values().collect();
        declared.sort_by_key(|declared| declared.order);
        declared
    }

    /// Nodes: those of `nodes`, Node objects, `node1` if there is neither, and those that pods name.
    fn fill_nodes(&mut self) {
        let mut order: Vec<String> = self.node_declarations.iter().map(|node| node.name.clone()).collect();
        let mut add = |name: &str| {
            if !order.iter().any(|known| known == name) {
                order.push(name.to_owned());
            }
        };
        for declared in self.in_order() {
            if let Resource::Object(Object::Node(node)) = &declared.resource {
                add(&node.name);
            }
        }
        let in_order = self.in_order();
        let pods = in_order.iter().filter_map(|declared| match &declared.resource {
            Resource::Object(Object::Pod(pod)) if !declared.extra.finished => Some((pod, &declared.extra)),
            _ => None,
        });
        let pods: Vec<(Pod, Extra)> = pods.map(|(pod, extra)| (pod.clone(), extra.clone())).collect();
        if order.is_empty() {
            order.push(DEFAULT_NODE.to_owned());
        }
        for (pod, _) in &pods {
            if let Some(name) = &pod.node
                && !order.contains(name)
            {
                order.push(name.clone());
            }
        }
        for name in &order {
            let reference = ObjectRef::new(Kind::Node, "", name);
            let written = self.node(name).cloned();
            let mut labels = BTreeMap::from([("kubernetes.io/hostname".to_owned(), name.clone())]);
            let declaration = self.node_declarations.iter().find(|node| node.name == *name);
            labels.extend(declaration.into_iter().flat_map(|node| node.labels.clone()));
            let mut addresses = Vec::new();
            if let Some(written) = written {
                labels.extend(written.labels.iter().map(|(key, value)| (key.to_owned(), value.to_owned())));
                addresses = written.addresses;
            }
            if addresses.is_empty() {
                // What the pods say about their node.
                for (pod, extra) in pods.iter().filter(|(pod, _)| pod.node.as_ref() == Some(name)) {
                    addresses.extend(&extra.host_addresses);
                    if pod.host_network {
                        addresses.extend(&pod.addresses);
                    }
                }
                addresses.sort_unstable();
                addresses.dedup();
            }
            if addresses.is_empty() {
                addresses = self.addresses.give(Owner::Node(name.clone())).to_vec();
            }
            let gateway = self.addresses.give(Owner::Gateway(name.clone())).to_vec();
            self.gateways.insert(name.clone(), gateway);
            let node = Node { name: name.clone(), labels: labels.into(), addresses };
            self.resources.insert(reference, Resource::Object(Object::Node(node)));
        }
        self.gateways.retain(|name, _| order.contains(name));
        self.node_order = order;
    }

    fn fill_pods(&mut self) {
        let first = self.node_order[0].clone();
        let mut filled: Vec<Pod> = self.pods().cloned().collect();
        for pod in &mut filled {
            let node = pod.node.get_or_insert_with(|| first.clone()).clone();
            if pod.host_network {
                pod.addresses = self.node(&node).map(|node| node.addresses.clone()).unwrap_or_default();
            } else if pod.addresses.is_empty() {
                pod.addresses =
                    self.addresses.give(Owner::Pod(pod.namespace.clone(), pod.name.clone())).to_vec();
            }
            if pod.ports.is_empty() {
                pod.ports.push(ContainerPort { name: None, port: 80, protocol: Protocol::Tcp });
            }
        }
        for pod in filled {
            let resource = Resource::Object(Object::Pod(pod));
            self.resources.insert(resource.reference(), resource);
        }
    }

    fn fill_services(&mut self) {
        let mut filled: Vec<Service> = self.services().cloned().collect();
        for service in filled.iter_mut().filter(|service| !service.headless && service.cluster_ips.is_empty())
        {
            let owner = Owner::Service(service.namespace.clone(), service.name.clone());
            service.cluster_ips = self.addresses.give(owner).to_vec();
        }
        for service in filled {
            let resource = Resource::Object(Object::Service(service));
            self.resources.insert(resource.reference(), resource);
        }
    }

    fn fill_namespaces(&mut self) {
        let mut used: BTreeSet<Arc<str>> =
            self.resources.keys().map(|reference| reference.namespace.clone()).collect();
        used.insert(DNS_NAMESPACE.into());
        used.remove("");
        for name in used {
            let labels = [("kubernetes.io/metadata.name", &*name)].into();
            let namespace = Resource::Object(Object::Namespace(Namespace { name: name.to_string(), labels }));
            self.resources.entry(namespace.reference()).or_insert(namespace);
        }
    }
}
