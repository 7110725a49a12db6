//! What a sender sees: routes, verdicts on both sides, proxies, and whether anybody listens.
//!
//! The order is that of a packet: Service translation, the sender's side (first L3/L4, then its
//! proxy), the receiver's side likewise, the listener. On one node one proxy judges for both sides, and sees to it that this
//! makes no difference. A connection that no policy refuses and that
//! nobody answers is neither allowed nor denied.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Disagreement;
use super::layer7::{Payload, ProxyAnswer};
use super::verdict::{JudgedSide, because_text};
use super::world::World;
use crate::cluster::delta::DenyResponse;
use crate::lab::scenario::cluster::{DNS_NAME, DNS_NAMESPACE, of_family};
use crate::lab::scenario::{Destination, Endpoint, Expect, Place, StepProtocol};
use crate::lab::topology::{ListenPort, PodSpec, Role, Transport};
use crate::model::{Direction, Family, Protocol};
use crate::policy::decision::{Because, Outcome};
use crate::policy::map_state::Proxy;
use crate::policy::oracle::Flow;
use crate::policy::rule::RuleRef;

/// Why a step has no outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    Disagree(Disagreement),
    /// The step speaks of something that is not there.
    Broken(String),
    /// An end has no address of the run's family.
    OtherFamily,
}

impl From<Disagreement> for Trouble {
    fn from(disagreement: Disagreement) -> Trouble {
        Trouble::Disagree(disagreement)
    }
}

/// What the sender saw, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) got: Got,
    /// The side that decided; both sides where both allowed.
    pub(super) sides: Vec<SeenSide>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Got {
    Expectable(Expect),
    /// No policy refused it, and nobody answered.
    NoAnswer(String),
}

/// Why one side decided as it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SeenSide {
    pub(super) direction: Direction,
    pub(super) by: SeenBy,
    pub(super) text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SeenBy {
    DefaultDeny,
    /// `NAME` or `NS/NAME`; empty where no rule was needed.
    Objects(BTreeSet<String>),
}

impl Seen {
    fn without_policy(got: Got) -> Seen {
        Seen { got, sides: Vec::new() }
    }

    pub(super) fn is_allowed(&self) -> bool {
        self.got == Got::Expectable(Expect::Allowed)
    }
}

/// Where a step's traffic comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sender {
    pub(super) address: IpAddr,
    /// `None` outside of the cluster.
    pub(super) node: Option<String>,
}

/// Where a packet goes after Service translation.
pub(super) enum Route {
    To(IpAddr, u16),
    /// The Service has no backend: the packet is rejected.
    NoBackend,
    /// There is no way there.
    None(String),
}

fn missing<T>(what: &impl std::fmt::Display) -> Result<T, Trouble> {
    Err(Trouble::Broken(format!("{what} does not exist")))
}

impl World {
    pub(super) fn sender(&self, from: &Endpoint, family: Family) -> Result<Sender, Trouble> {
        let (addresses, node): (&[IpAddr], _) = match from {
            Endpoint::Pod { namespace, name } => match self.cluster.pod(namespace, name) {
                Some(pod) => (&pod.addresses, pod.node.clone()),
                None => return missing(from),
            },
            Endpoint::Node(name) => match self.cluster.node(name) {
                Some(node) => (&node.addresses, Some(name.clone())),
                None => return missing(from),
            },
            Endpoint::Gateway(name) => match self.cluster.gateways().get(name) {
                Some(addresses) => (addresses, Some(name.clone())),
                None => return missing(from),
            },
            Endpoint::External(name) => match self.cluster.external(name) {
                Some(external) => (&external.addresses, None),
                None => return missing(from),
            },
        };
        let address = of_family(addresses, family).ok_or(Trouble::OtherFamily)?;
        Ok(Sender { address, node })
    }

    /// The address that a sender would use; DNS names are resolved elsewhere.
    pub(super) fn address_of(&self, place: &Place, family: Family) -> Result<IpAddr, Trouble> {
        let topology_addresses;
        let addresses: &[IpAddr] = match place {
            Place::Pod { namespace, name } => match self.cluster.pod(namespace, name) {
                Some(pod) => &pod.addresses,
                None => return missing(place),
            },
            Place::Service { namespace, name } => match self.cluster.service(namespace, name) {
                Some(service) if service.headless => {
                    topology_addresses = self.cluster.headless_addresses(service);
                    &topology_addresses
                }
                Some(service) => &service.cluster_ips,
                None => return missing(place),
            },
            Place::Node(name) => match self.cluster.node(name) {
                Some(node) => &node.addresses,
                None => return missing(place),
            },
            Place::External(name) => match self.cluster.external(name) {
                Some(external) => &external.addresses,
                None => return missing(place),
            },
            Place::Address(address) => std::slice::from_ref(address),
            Place::Name(name) => return Err(Trouble::Broken(format!("{name} is not resolved"))),
        };
        if addresses.is_empty() {
            return Err(Trouble::Broken(format!("{place} has no address")));
        }
        of_family(addresses, family).ok_or(Trouble::OtherFamily)
    }

    /// Service translation on the sender's node. The first backend is as good as any other.
    pub(super) fn route(&self, sender: &Sender, address: IpAddr, port: u16, protocol: Protocol) -> Route {
        let is_cluster_ip = self.cluster.services().any(|service| service.cluster_ips.contains(&address));
        let Some(view) = sender.node.as_deref().and_then(|node| self.view(node)) else {
            return match is_cluster_ip {
                true => {
                    Route::None(format!("{address} is a ClusterIP, which exists inside of the cluster only"))
                }
                false => Route::To(address, port),
            };
        };
        match view.translate(address, port, protocol) {
            Some(entry) => match entry.backends.first() {
                Some(backend) => Route::To(backend.address, backend.port),
                None => Route::NoBackend,
            },
            None => Route::To(address, port),
        }
    }

    /// The answer to one exchange on a connection, which is judged as it would be now.
    pub(super) fn exchange(
        &self,
        flow: &Flow,
        payload: &Payload,
        names: &BTreeSet<String>,
    ) -> Result<Seen, Trouble> {
        let judged = self.judge(flow, names)?;
        let sides: Vec<JudgedSide> = [judged.egress, judged.ingress].into_iter().flatten().collect();
        // The receiver's side judges what the sender's side sends on.
        let mut payload = payload.clone();
        for side in &sides {
            if side.decision.outcome == Outcome::Deny {
                return Ok(self.denied(side));
            }
            if let Some(answer) = self.proxied(side, &mut payload)?
                && answer != ProxyAnswer::Pass
            {
                // Who asks a DNS proxy hears from it, whoever refuses.
                let asks_proxy = matches!(payload, Payload::Dns { .. })
                    && sides.iter().any(|side| side.decision.outcome == Outcome::Redirect(Proxy::Dns));
                let answer = if asks_proxy { ProxyAnswer::DnsRefused } else { answer };
                return Ok(self.refused(side, answer));
            }
        }
        let got = match self.nobody_answers(flow) {
            Some(why) => Got::NoAnswer(why),
            None => Got::Expectable(Expect::Allowed),
        };
        Ok(Seen { got, sides: sides.iter().map(allowed_side).collect() })
    }

    fn deny_result(&self) -> Got {
        Got::Expectable(match self.options().deny_response {
            DenyResponse::Drop => Expect::Denied,
            DenyResponse::Reject => Expect::Rejected,
        })
    }

    fn denied(&self, side: &JudgedSide) -> Seen {
        let because = &side.oracle.decision.because;
        let by = match because {
            Because::Rules(rules) => SeenBy::Objects(paths(rules)),
            _ => SeenBy::DefaultDeny,
        };
        let text = because_text(because);
        Seen {
            got: self.deny_result(),
            sides: vec![SeenSide { direction: side.decision.direction, by, text }],
        }
    }

    fn refused(&self, side: &JudgedSide, answer: ProxyAnswer) -> Seen {
        let got = match answer {
            ProxyAnswer::Pass => Got::Expectable(Expect::Allowed),
            ProxyAnswer::HttpForbidden => Got::Expectable(Expect::Http403),
            ProxyAnswer::HttpMalformed => Got::Expectable(Expect::Http400),
            ProxyAnswer::HttpRedirect => Got::Expectable(Expect::Http307),
            ProxyAnswer::DnsRefused => Got::Expectable(Expect::DnsRefused),
            ProxyAnswer::TlsReset => Got::Expectable(Expect::TlsReset),
            ProxyAnswer::Silence => Got::Expectable(Expect::Denied),
        };
        let governing = side.oracle.allows.iter().filter(|(_, l7)| l7.is_some()).map(|(rule, _)| rule);
        let objects: BTreeSet<String> = governing.map(|rule| rule.object.path()).collect();
        let text = format!("the L7 rules of {}", objects.iter().cloned().collect::<Vec<_>>().join(", "));
        let by = SeenBy::Objects(objects);
        Seen { got, sides: vec![SeenSide { direction: side.decision.direction, by, text }] }
    }

    fn nobody_answers(&self, flow: &Flow) -> Option<String> {
        let transport = match flow.protocol {
            Protocol::Tcp => Transport::Tcp,
            Protocol::Udp => Transport::Udp,
            Protocol::Sctp => Transport::Sctp,
            // Every host answers an echo request.
            _ => {
                return (!self.has_owner(flow.destination))
                    .then(|| format!("nobody has {}", flow.destination));
            }
        };
        if !self.has_owner(flow.destination) {
            return Some(format!("nobody has {}", flow.destination));
        }
        let wanted = ListenPort { port: flow.port, transport };
        let pods = self.topology.pods.iter().filter(|pod| pod.addresses.contains(&flow.destination));
        let externals = self.topology.externals.iter();
        let mut listening = pods.flat_map(|pod| &pod.ports).chain(
            externals
                .filter(|external| external.addresses.contains(&flow.destination))
                .flat_map(|e| &e.ports),
        );
        (!listening.any(|port| *port == wanted))
            .then(|| format!("nothing listens on {} {}/{transport}", flow.destination, flow.port))
    }

    fn has_owner(&self, address: IpAddr) -> bool {
        let topology = &self.topology;
        topology.pods.iter().any(|pod| pod.addresses.contains(&address))
            || topology.nodes.iter().any(|node| node.addresses.contains(&address))
            || topology.externals.iter().any(|external| external.addresses.contains(&address))
    }

    /// The address is that of a pod that serves the cluster's DNS.
    pub(super) fn is_cluster_dns(&self, address: IpAddr) -> bool {
        let serves = |pod: &&PodSpec| pod.role == Role::ClusterDns;
        self.topology.pods.iter().filter(serves).any(|pod| pod.addresses.contains(&address))
    }

    /// Where the cluster's DNS is asked.
    pub(super) fn cluster_dns(&self) -> Destination {
        let place = Place::Service { namespace: DNS_NAMESPACE.to_owned(), name: DNS_NAME.to_owned() };
        Destination { place, port: Some(53) }
    }
}

/// Where a packet of this step goes, or what the sender sees at once.
pub(super) fn flow_to(
    world: &World,
    sender: &Sender,
    address: IpAddr,
    port: Option<u16>,
    transport: StepProtocol,
) -> Result<Flow, Seen> {
    let family = Family::of(address);
    let (protocol, port) = match (transport, family) {
        (StepProtocol::Tcp, _) => (Protocol::Tcp, port.unwrap_or_default()),
        (StepProtocol::Udp, _) => (Protocol::Udp, port.unwrap_or_default()),
        (StepProtocol::Sctp, _) => (Protocol::Sctp, port.unwrap_or_default()),
        // Echo requests: RFC 792 and RFC 4443.
        (StepProtocol::Icmp, Family::IPv4) => (Protocol::Icmp, 8),
        (StepProtocol::Icmp, Family::IPv6) => (Protocol::Icmpv6, 128),
    };
    match world.route(sender, address, port, protocol) {
        Route::To(destination, port) => Ok(Flow { source: sender.address, destination, protocol, port }),
        Route::NoBackend => Err(Seen::without_policy(Got::Expectable(Expect::Rejected))),
        Route::None(why) => Err(Seen::without_policy(Got::NoAnswer(why))),
    }
}

fn allowed_side(side: &JudgedSide) -> SeenSide {
    let because = &side.oracle.decision.because;
    let objects = match because {
        Because::Rules(rules) => paths(rules),
        _ => BTreeSet::new(),
    };
    SeenSide { direction: side.decision.direction, by: SeenBy::Objects(objects), text: because_text(because) }
}

fn paths(rules: &[RuleRef]) -> BTreeSet<String> {
    rules.iter().map(|rule| rule.object.path()).collect()
}
