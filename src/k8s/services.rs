//! Service, Endpoints and EndpointSlice.

use std::net::IpAddr;

use super::ParseOptions;
use super::cursor::{Cursor, Fields};
use super::meta::{checked, dns_label, labels, port_name};
use super::objects::{address, namespaced, transport};
use super::tree::{Value, quoted};
use crate::cluster::Resource;
use crate::model::{
    EndpointSlice, InternalTraffic, KubeLabels, Object, Service, ServicePort, SliceEndpoint, SlicePort,
    TargetPort,
};

const SERVICE_SPEC_FIELDS: &[&str] = &[
    "allocateLoadBalancerNodePorts",
    "externalIPs",
    "externalName",
    "externalTrafficPolicy",
    "healthCheckNodePort",
    "ipFamilies",
    "ipFamilyPolicy",
    "loadBalancerClass",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "publishNotReadyAddresses",
    "topologyKeys",
    "trafficDistribution",
];

/// Default of `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_SECS: u32 = 10_800;

#[derive(Clone, Copy, PartialEq)]
enum ServiceType {
    Cluster,
    ExternalName,
}

#[derive(Clone, Copy)]
enum Affinity {
    None,
    ClientIp,
}

pub fn service(fields: &Fields<'_>, options: &ParseOptions) -> Option<Resource> {
    fields.accept(&["status"]);
    let meta = namespaced(fields, options);
    if let Some(meta) = &meta
        && let Err(why) = dns_label(&meta.name)
    {
        fields.cursor().error(format!("{} is not the name of a Service: {why}", quoted(&meta.name)));
    }
    let spec = fields.get("spec").and_then(|spec| spec.object(service_spec)).unwrap_or_default();
    let meta = meta?;
    Some(Resource::Object(Object::Service(Service {
        namespace: meta.namespace,
        name: meta.name,
        labels: meta.labels,
        cluster_ips: spec.cluster_ips,
        headless: spec.headless,
        selector: spec.selector,
        ports: spec.ports,
        affinity_secs: spec.affinity_secs,
        internal_traffic: spec.internal_traffic,
    })))
}

#[derive(Default)]
struct ServiceSpec {
    cluster_ips: Vec<IpAddr>,
    headless: bool,
    selector: Option<KubeLabels>,
    ports: Vec<ServicePort>,
    affinity_secs: Option<u32>,
    internal_traffic: InternalTraffic,
}

fn service_spec(spec: &Fields<'_>) -> ServiceSpec {
    spec.accept(SERVICE_SPEC_FIELDS);
    let kind = spec.get("type").and_then(|field| {
        field.one_of(&[
            ("ClusterIP", ServiceType::Cluster),
            ("NodePort", ServiceType::Cluster),
            ("LoadBalancer", ServiceType::Cluster),
            ("ExternalName", ServiceType::ExternalName),
        ])
    });
    let mut headless = kind == Some(ServiceType::ExternalName);
    let mut cluster_ips: Vec<IpAddr> = Vec::new();
    let given = spec.list("clusterIPs").into_iter().chain(spec.get("clusterIP"));
    for field in given {
        match field.node.as_str() {
            Some("None") => headless = true,
            Some("") => {}
            _ => {
                if let Some(address) = address(&field)
                    && !cluster_ips.contains(&address)
                {
                    cluster_ips.push(address);
                }
            }
        }
    }
    if headless {
        cluster_ips.clear();
    }
    let affinity = spec
        .get("sessionAffinity")
        .and_then(|field| field.one_of(&[("None", Affinity::None), ("ClientIP", Affinity::ClientIp)]));
    let timeout = spec.get("sessionAffinityConfig").and_then(|config| affinity_timeout(&config));
    let affinity_secs = match affinity {
        Some(Affinity::ClientIp) => Some(timeout.unwrap_or(AFFINITY_SECS)),
        Some(Affinity::None) | None => None,
    };
    let internal_traffic = spec.get("internalTrafficPolicy").and_then(|field| {
        field.one_of(&[("Cluster", InternalTraffic::Cluster), ("Local", InternalTraffic::Local)])
    });
    ServiceSpec {
        cluster_ips,
        headless,
        selector: spec.get("selector").map(|field| labels(&field)).filter(|labels| !labels.is_empty()),
        ports: service_ports(spec),
        affinity_secs,
        internal_traffic: internal_traffic.unwrap_or_default(),
    }
}

fn affinity_timeout(config: &Cursor<'_>) -> Option<u32> {
    const DAY: i64 = 86_400;
    let client_ip = config.object(|config| config.get("clientIP"))??;
    let timeout = client_ip.object(|client_ip| client_ip.get("timeoutSeconds"))??;
    timeout.integer(1..=DAY).and_then(|secs| u32::try_from(secs).ok())
}

fn service_ports(spec: &Fields<'_>) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::new();
    let given = spec.list("ports");
    let several = given.len() > 1;
    for entry in given {
        entry.object(|port| {
            port.accept(&["nodePort", "appProtocol"]);
            let name = port.get("name").and_then(|name| checked(&name, "a port name", dns_label));
            if several && name.is_none() {
                port.cursor().error("the field name is missing: each of several ports needs one");
            }
            let number = port.require("port").and_then(|number| number.port());
            let target = port.get("targetPort").map(|target| target_port(&target));
            let protocol = transport(port);
            let (Some(number), Some(protocol)) = (number, protocol) else { return };
            let Some(target) = target.unwrap_or(Some(TargetPort::Number(number))) else { return };
            if ports.iter().any(|other| other.port == number && other.protocol == protocol) {
                port.cursor().error(format!("port {number}/{protocol} is listed twice"));
            }
            if name.is_some() && ports.iter().any(|other| other.name.as_deref() == name) {
                port.cursor().error("the name of this port is used by another one");
            }
            ports.push(ServicePort { name: name.map(str::to_owned), port: number, protocol, target });
        });
    }
    ports
}

fn target_port(target: &Cursor<'_>) -> Option<TargetPort> {
    match target.node.value {
        Value::Text(_) => {
            checked(target, "a port name", port_name).map(|name| TargetPort::Name(name.to_owned()))
        }
        _ => target.port().map(TargetPort::Number),
    }
}

#[derive(Clone, Copy)]
enum AddressType {
    Ip,
    Name,
}

pub fn endpoint_slice(fields: &Fields<'_>, options: &ParseOptions) -> Option<Resource> {
    const SERVICE_LABEL: &str = "kubernetes.io/service-name";
    let meta = namespaced(fields, options);
    let address_type = fields.require("addressType").and_then(|kind| {
        kind.one_of(&[("IPv4", AddressType::Ip), ("IPv6", AddressType::Ip), ("FQDN", AddressType::Name)])
    });
    let mut endpoints = Vec::new();
    for endpoint in fields.list("endpoints") {
        endpoint.object(|endpoint| {
            endpoint.accept(&["hostname", "targetRef", "zone", "hints", "deprecatedTopology"]);
            let ready = endpoint.get("conditions").and_then(|conditions| {
                conditions.object(|conditions| {
                    let condition = |name| conditions.get(name).and_then(|field| field.boolean());
                    condition("serving");
                    condition("terminating");
                    condition("ready")
                })
            });
            let given = endpoint.list("addresses");
            let addresses: Vec<IpAddr> = match address_type {
                Some(AddressType::Ip) => given.iter().filter_map(address).collect(),
                Some(AddressType::Name) | None => Vec::new(),
            };
            let node = endpoint.get("nodeName").and_then(|node| node.string()).map(str::to_owned);
            // An absent condition means ready.
            endpoints.push(SliceEndpoint { addresses, ready: ready.flatten().unwrap_or(true), node });
        });
    }
    let ports = fields.list("ports").iter().filter_map(slice_port).collect();
    let meta = meta?;
    // A slice without the label belongs to no Service.
    let service = meta.labels.get(SERVICE_LABEL).unwrap_or_default().to_owned();
    Some(Resource::Object(Object::EndpointSlice(EndpointSlice {
        namespace: meta.namespace,
        name: meta.name,
        service,
        endpoints,
        ports,
    })))
}

/// A port without a number stands for every port (upstream); no Service of ours routes that, so it
/// is left out.
fn slice_port(port: &Cursor<'_>) -> Option<SlicePort> {
    port.object(|port| {
        port.accept(&["appProtocol"]);
        let name = port.get("name").and_then(|name| name.string()).filter(|name| !name.is_empty());
        let protocol = transport(port);
        let number = port.get("port")?.port()?;
        Some(SlicePort { name: name.map(str::to_owned), port: number, protocol: protocol? })
    })?
}

/// `v1` Endpoints: one slice for each subset, because each has its own ports.
pub fn endpoints(fields: &Fields<'_>, options: &ParseOptions) -> Vec<Resource> {
    let meta = namespaced(fields, options);
    let subsets: Vec<(Vec<SliceEndpoint>, Vec<SlicePort>)> = fields
        .list("subsets")
        .iter()
        .filter_map(|subset| {
            subset.object(|subset| {
                let endpoints = [("addresses", true), ("notReadyAddresses", false)]
                    .into_iter()
                    .flat_map(|(name, ready)| {
                        let entries = subset.list(name);
                        let found: Vec<_> = entries.iter().filter_map(subset_address).collect();
                        found.into_iter().map(move |endpoint| SliceEndpoint { ready, ..endpoint })
                    })
                    .collect();
                (endpoints, subset.list("ports").iter().filter_map(slice_port).collect())
            })
        })
        .collect();
    let Some(meta) = meta else { return Vec::new() };
    let subsets = if subsets.is_empty() { vec![(Vec::new(), Vec::new())] } else { subsets };
    let slice = |(index, (endpoints, ports)): (usize, _)| {
        Resource::Object(Object::EndpointSlice(EndpointSlice {
            namespace: meta.namespace.clone(),
            name: EndpointSlice::subset_name(&meta.name, index + 1),
            service: meta.name.clone(),
            endpoints,
            ports,
        }))
    };
    subsets.into_iter().enumerate().map(slice).collect()
}

fn subset_address(entry: &Cursor<'_>) -> Option<SliceEndpoint> {
    entry.object(|entry| {
        entry.accept(&["hostname", "targetRef"]);
        let node = entry.get("nodeName").and_then(|node| node.string()).map(str::to_owned);
        let address = entry.require("ip").and_then(|ip| address(&ip))?;
        Some(SliceEndpoint { addresses: vec![address], ready: true, node })
    })?
}
