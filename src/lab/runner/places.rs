//! Where a step's traffic starts and where it goes: names of a scenario as namespaces and addresses.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{DNS_PORT, Run};
use crate::lab::dns::Carrier;
use crate::lab::probe::{DnsQuestion, Observed, Source, lookup};
use crate::lab::scenario::cluster::{gateway_site, of_family};
use crate::lab::scenario::{Connect, Destination, Endpoint, Place, StepProtocol};
use crate::lab::topology::{Role, Site};
use crate::model::{Family, Protocol, TargetPort};

/// Where a step's traffic goes.
pub(super) enum Target {
    Address(SocketAddr),
    /// There is no such address in this family.
    OtherFamily,
    /// The name did not resolve; that is the step's outcome.
    Outcome(Observed),
    Skip(String),
}

impl Run {
    pub(super) fn source(&self, from: &Endpoint) -> Option<Source> {
        let topology = self.session.lab().topology();
        let (site, owner) = match from {
            Endpoint::Pod { namespace, name } => {
                let pod = topology.pod(namespace, name)?;
                (pod.site(), pod.site())
            }
            Endpoint::Node(name) => (Site::Node(name.clone()), Site::Node(name.clone())),
            Endpoint::External(name) => (Site::External(name.clone()), Site::External(name.clone())),
            Endpoint::Gateway(name) => {
                let site = Site::External(gateway_site(name));
                (site.clone(), site)
            }
        };
        Some(Source {
            netns: self.session.lab().netns(&site),
            address: topology.address(&owner, self.family),
        })
    }

    pub(super) async fn target(&self, connect: &Connect, source: &Source, patience: Duration) -> Target {
        let Some(port) = connect.to.port.or((connect.transport == StepProtocol::Icmp).then_some(0)) else {
            return Target::Skip("the step has no port".to_owned());
        };
        if source.address.is_none() {
            return Target::OtherFamily;
        }
        match &connect.to.place {
            Place::Name(name) => {
                let Some(server) = self.dns_server() else {
                    return Target::Skip("the cluster has no DNS in this family".to_owned());
                };
                let question =
                    DnsQuestion { name: name.clone(), kind: self.address_record(), carrier: Carrier::Udp };
                let (observed, addresses) = lookup(source, server, &question, patience).await;
                match (observed, addresses.first()) {
                    (Observed::Answered, Some(address)) => Target::Address(SocketAddr::new(*address, port)),
                    (Observed::Answered, None) => {
                        Target::Outcome(Observed::Strange(format!("{name} has no address")))
                    }
                    (observed, _) => Target::Outcome(observed),
                }
            }
            Place::Service { namespace, name } if self.session.control().is_none() => {
                self.open_backend(namespace, name, port)
            }
            _ => match self.place(&connect.to) {
                Some(address) => Target::Address(SocketAddr::new(address, port)),
                None => Target::OtherFamily,
            },
        }
    }

    /// Without agents nobody translates Services: the first backend stands for them.
    pub(super) fn open_backend(&self, namespace: &str, name: &str, port: u16) -> Target {
        let Some(service) = self.cluster.service(namespace, name) else {
            return Target::Skip(format!("there is no Service {namespace}/{name}"));
        };
        let Some(pod) = self.cluster.backing_pods(service).next() else {
            return Target::Skip("without agents, only Services with pods can be reached".to_owned());
        };
        let Some(entry) = service.ports.iter().find(|entry| entry.port == port) else {
            return Target::Skip(format!("the Service has no port {port}"));
        };
        let target = match &entry.target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => {
                pod.ports.iter().find(|port| port.name.as_ref() == Some(name)).map(|port| port.port)
            }
        };
        match (of_family(&pod.addresses, self.family), target) {
            (Some(address), Some(port)) => Target::Address(SocketAddr::new(address, port)),
            _ => Target::OtherFamily,
        }
    }

    /// The address of a destination that is no DNS name; `None` when it has none in this family.
    pub(super) fn place(&self, destination: &Destination) -> Option<IpAddr> {
        let topology = self.session.lab().topology();
        match &destination.place {
            Place::Pod { namespace, name } => {
                topology.address(&topology.pod(namespace, name)?.site(), self.family)
            }
            Place::Service { namespace, name } => {
                let service = self.cluster.service(namespace, name)?;
                let pods = self.cluster.backing_pods(service).flat_map(|pod| pod.addresses.iter().copied());
                let addresses: Vec<IpAddr> =
                    if service.headless { pods.collect() } else { service.cluster_ips.clone() };
                of_family(&addresses, self.family)
            }
            Place::Node(name) => topology.address(&Site::Node(name.clone()), self.family),
            Place::External(name) => topology.address(&Site::External(name.clone()), self.family),
            Place::Address(address) => Some(*address).filter(|address| Family::of(*address) == self.family),
            Place::Name(_) => None,
        }
    }

    pub(super) fn is_cluster_dns(&self, place: &Place) -> bool {
        match place {
            Place::Pod { namespace, name } => {
                let topology = self.session.lab().topology();
                topology.pod(namespace, name).is_some_and(|pod| pod.role == Role::ClusterDns)
            }
            Place::Service { namespace, name } => {
                (namespace.as_str(), name.as_str()) == ("kube-system", "kube-dns")
            }
            _ => false,
        }
    }

    pub(super) fn dns_server(&self) -> Option<SocketAddr> {
        self.session.lab().state().dns_server(self.family).map(|address| SocketAddr::new(address, DNS_PORT))
    }

    pub(super) fn address_record(&self) -> String {
        match self.family {
            Family::IPv4 => "A".to_owned(),
            Family::IPv6 => "AAAA".to_owned(),
        }
    }

    pub(super) fn protocol(&self, transport: StepProtocol) -> Protocol {
        match (transport, self.family) {
            (StepProtocol::Tcp, _) => Protocol::Tcp,
            (StepProtocol::Udp, _) => Protocol::Udp,
            (StepProtocol::Sctp, _) => Protocol::Sctp,
            (StepProtocol::Icmp, Family::IPv4) => Protocol::Icmp,
            (StepProtocol::Icmp, Family::IPv6) => Protocol::Icmpv6,
        }
    }
}
