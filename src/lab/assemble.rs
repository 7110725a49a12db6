//! Cluster objects -> [`Topology`]. PURE.
//!
//! The objects are complete: every pod has a node and addresses, every Service its ClusterIPs.

use std::net::IpAddr;

use super::topology::{
    ExternalSpec, ListenPort, NodeSpec, PodSpec, Role, ServiceAnswer, ServiceSpec, Topology, Transport,
};
use crate::model::{ContainerPort, EndpointSlice, Object, Pod, Protocol, Service};

/// What a pod listens on when it declares nothing.
const DEFAULT_PORT: ListenPort = ListenPort { port: 80, transport: Transport::Tcp };

/// Builds the topology of these objects, with the hosts outside.
pub fn topology<'a>(objects: impl IntoIterator<Item = &'a Object>, externals: Vec<ExternalSpec>) -> Topology {
    let objects: Vec<&Object> = objects.into_iter().collect();
    let mut topology = Topology { externals, ..Topology::default() };
    for object in &objects {
        if let Object::Node(node) = object {
            topology.nodes.push(NodeSpec { name: node.name.clone(), addresses: node.addresses.clone() });
        }
    }
    for object in &objects {
        match object {
            Object::Pod(pod) => topology.pods.extend(pod_spec(pod)),
            Object::Service(service) => {
                let answer = ServiceAnswer::Addresses(service_addresses(service, &objects));
                topology.services.push(ServiceSpec {
                    namespace: service.namespace.clone(),
                    name: service.name.clone(),
                    answer,
                });
            }
            Object::Node(_) | Object::Namespace(_) | Object::EndpointSlice(_) => {}
        }
    }
    topology
}

/// `None` for a pod that runs nowhere yet.
fn pod_spec(pod: &Pod) -> Option<PodSpec> {
    let ports: Vec<ListenPort> = pod.ports.iter().filter_map(listen_port).collect();
    let serves_dns =
        pod.namespace == "kube-system" && pod.labels.get("k8s-app").is_some_and(|app| app == "kube-dns");
    Some(PodSpec {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        node: pod.node.clone()?,
        addresses: pod.addresses.clone(),
        host_network: pod.host_network,
        ports: if ports.is_empty() { vec![DEFAULT_PORT] } else { ports },
        role: if serves_dns { Role::ClusterDns } else { Role::Workload },
    })
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

/// The ClusterIPs; of a headless Service its pods, by selector or by EndpointSlices.
fn service_addresses(service: &Service, objects: &[&Object]) -> Vec<IpAddr> {
    if !service.headless {
        return service.cluster_ips.clone();
    }
    objects
        .iter()
        .flat_map(|object| match (object, &service.selector) {
            (Object::Pod(pod), Some(selector)) if pod.namespace == service.namespace => {
                let selected = selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value));
                if selected { pod.addresses.clone() } else { Vec::new() }
            }
            (Object::EndpointSlice(slice), None) if belongs(slice, service) => slice
                .endpoints
                .iter()
                .filter(|endpoint| endpoint.ready)
                .flat_map(|endpoint| endpoint.addresses.clone())
                .collect(),
            _ => Vec::new(),
        })
        .collect()
}

fn belongs(slice: &EndpointSlice, service: &Service) -> bool {
    slice.namespace == service.namespace && slice.service == service.name
}
