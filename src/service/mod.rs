//! Services and EndpointSlices -> frontends and backends. PURE.
//!
//! Contract: a frontend is a ClusterIP, port and protocol; its backends are of the same family,
//! sorted and without duplicates. EndpointSlices of a Service say everything; a Service without
//! any gets the pods that its selector matches, so that a cluster without an endpoint controller
//! works. No backend is an entry without backends, which rejects connections; a headless Service
//! has no frontend.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::model::{Backend, EndpointSlice, Family, Pod, Protocol, Service, ServicePort, TargetPort};

/// A pod with the addresses at which it is reached (those of its node for host-network pods).
#[derive(Clone, Copy, Debug)]
pub struct ReachablePod<'a> {
    pub pod: &'a Pod,
    pub addresses: &'a [IpAddr],
}

/// A frontend with its backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub address: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
    pub backends: Vec<Backend>,
}

/// The selector of a Service matches the pod. No selector and an empty one match nothing.
pub fn selects(service: &Service, pod: &Pod) -> bool {
    service.namespace == pod.namespace
        && service.selector.as_ref().is_some_and(|selector| {
            !selector.is_empty() && selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
        })
}

/// All frontends of a Service. `pods` are those of its namespace; they count only while there are
/// no `slices`.
pub fn resolve<'a>(
    service: &Service,
    slices: &[&EndpointSlice],
    pods: impl Iterator<Item = ReachablePod<'a>> + Clone,
) -> Vec<Resolved> {
    if service.headless {
        return vec![];
    }
    let mut resolved = vec![];
    for port in &service.ports {
        let backends = if slices.is_empty() {
            pods.clone()
                .filter(|reachable| selects(service, reachable.pod))
                .flat_map(|reachable| pod_backends(port, reachable))
                .collect()
        } else {
            slice_backends(port, slices)
        };
        for address in &service.cluster_ips {
            resolved.push(Resolved {
                address: *address,
                port: port.port,
                protocol: port.protocol,
                backends: of_family(&backends, Family::of(*address)),
            });
        }
    }
    resolved
}

/// The addresses behind a Service without a selector, for `toServices`.
pub fn slice_addresses(slices: &[&EndpointSlice]) -> BTreeSet<IpAddr> {
    slices
        .iter()
        .flat_map(|slice| &slice.endpoints)
        .flat_map(|endpoint| endpoint.addresses.iter().copied())
        .collect()
}

fn slice_backends(port: &ServicePort, slices: &[&EndpointSlice]) -> BTreeSet<Backend> {
    let mut backends = BTreeSet::new();
    for slice in slices {
        let ports = slice.ports.iter().filter(|p| p.protocol == port.protocol && p.name == port.name);
        for target in ports {
            let ready = slice.endpoints.iter().filter(|endpoint| endpoint.ready);
            for address in ready.flat_map(|endpoint| &endpoint.addresses) {
                backends.insert(Backend { address: *address, port: target.port });
            }
        }
    }
    backends
}

fn pod_backends(port: &ServicePort, reachable: ReachablePod<'_>) -> Vec<Backend> {
    let target = match &port.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => reachable
            .pod
            .ports
            .iter()
            .find(|p| p.name.as_deref() == Some(name) && p.protocol == port.protocol)
            .map(|p| p.port),
    };
    let backend = |port| reachable.addresses.iter().map(move |address| Backend { address: *address, port });
    target.into_iter().flat_map(backend).collect()
}

fn of_family(backends: &BTreeSet<Backend>, family: Family) -> Vec<Backend> {
    backends.iter().filter(|backend| Family::of(backend.address) == family).cloned().collect()
}

#[cfg(test)]
mod tests;
