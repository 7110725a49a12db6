//! L3: does a rule's peer part match the other end? (Semantics, sections 2 to 4.)

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::state::{NodeMode, Party, State};
use crate::model::{Family, Label, Labels, LabelsBuilder, Service};
use crate::policy::l7::DnsPattern;
use crate::policy::rule::{CidrGroupRef, CidrSet, Entity, GroupSelect, Peer, Peers, ServiceRef};

/// The other end as one side's policy sees it.
#[derive(Clone, Debug)]
pub(super) struct Other<'a> {
    pub party: Party<'a>,
    pub address: IpAddr,
    /// From the point of view of the node where the policy is enforced.
    pub labels: Labels,
    /// The node where the policy is enforced.
    pub viewer: &'a str,
    /// Names that own the address there, by fresh answers or by those that were fresh when an
    /// established connection began.
    pub names: BTreeSet<String>,
}

impl State {
    pub(super) fn peers_match(&self, peers: &Peers, other: &Other<'_>) -> bool {
        match peers {
            Peers::Any => true,
            Peers::OneOf(peers) => peers.iter().any(|peer| self.peer_matches(peer, other)),
        }
    }

    fn peer_matches(&self, peer: &Peer, other: &Other<'_>) -> bool {
        match peer {
            Peer::Pods(selector) => selector.matches(&other.labels),
            Peer::Nodes(selector) => {
                matches!(other.party, Party::Node(_)) && selector.matches_any_scope(&other.labels)
            }
            Peer::Entity(entity) => self.entity_matches(*entity, other),
            Peer::Cidr(set) => self.cidr_may_match(other) && in_set(set, other.address),
            Peer::Address(set) => in_set(set, other.address),
            Peer::Fqdn(pattern) => {
                matches!(other.party, Party::World)
                    && other.names.iter().any(|name| name_matches(pattern, name))
            }
            Peer::CidrGroup(reference) => {
                self.cidr_may_match(other)
                    && self.group_cidrs(reference).any(|cidr| cidr.contains(&other.address))
                    && !reference.except.iter().any(|except| except.contains(&other.address))
            }
            Peer::Service(reference) => self.service_matches(reference, other),
        }
    }

    /// CIDR rules speak of the world, and of nodes where the operator says so.
    fn cidr_may_match(&self, other: &Other<'_>) -> bool {
        match other.party {
            Party::World => true,
            Party::Node(_) => self.switches.nodes == NodeMode::ByCidr,
            Party::Pod(_) | Party::Gateway { .. } | Party::Unknown => false,
        }
    }

    fn entity_matches(&self, entity: Entity, other: &Other<'_>) -> bool {
        let api_server = || other.labels.has_reserved("kube-apiserver");
        let local_node =
            |here: bool| matches!(other.party, Party::Node(node) if (node.name == other.viewer) == here);
        let world = matches!(other.party, Party::World);
        match entity {
            Entity::All => !matches!(other.party, Party::Unknown),
            Entity::None => false,
            Entity::World => world,
            Entity::WorldIpv4 => world && Family::of(other.address) == Family::IPv4,
            Entity::WorldIpv6 => world && Family::of(other.address) == Family::IPv6,
            Entity::Cluster => matches!(other.party, Party::Pod(_) | Party::Node(_) | Party::Gateway { .. }),
            Entity::Host => local_node(true),
            Entity::RemoteNode => local_node(false),
            Entity::KubeApiserver => api_server(),
            Entity::Ingress => matches!(other.party, Party::Gateway { .. }),
            // Nobody in a scenario is one of these.
            Entity::Health | Entity::Init | Entity::Unmanaged => false,
        }
    }

    fn group_cidrs<'a>(&'a self, reference: &'a CidrGroupRef) -> impl Iterator<Item = &'a IpNet> {
        self.groups
            .values()
            .filter(|group| match &reference.groups {
                GroupSelect::Name(name) => *group.name == **name,
                GroupSelect::Labels(selector) => {
                    let labels = group.labels.iter().map(|(key, value)| Label::k8s(key, value)).collect();
                    selector.matches(&labels)
                }
            })
            .flat_map(|group| &group.cidrs)
    }

    /// The pods that the Service selects, or the addresses of its EndpointSlices if it selects
    /// none.
    fn service_matches(&self, reference: &ServiceRef, other: &Other<'_>) -> bool {
        self.services.values().filter(|service| service_is(reference, service)).any(|service| match &service
            .selector
        {
            Some(selector) => match other.party {
                Party::Pod(pod) => {
                    pod.namespace == service.namespace
                        && !selector.is_empty()
                        && selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
                }
                _ => false,
            },
            None => {
                self.cidr_may_match(other)
                    && self
                        .slices
                        .values()
                        .filter(|slice| slice.namespace == service.namespace && slice.service == service.name)
                        .flat_map(|slice| &slice.endpoints)
                        .any(|endpoint| endpoint.addresses.contains(&other.address))
            }
        })
    }
}

fn service_is(reference: &ServiceRef, service: &Service) -> bool {
    let here = |namespace: &Option<std::sync::Arc<str>>| {
        namespace.as_ref().is_none_or(|namespace| **namespace == *service.namespace)
    };
    match reference {
        ServiceRef::Name { namespace, name } => here(namespace) && **name == *service.name,
        ServiceRef::Labels { namespace, selector } => {
            let mut labels = LabelsBuilder::default();
            service.labels.iter().for_each(|(key, value)| labels.set(Label::k8s(key, value)));
            here(namespace) && selector.matches(&labels.build())
        }
    }
}

fn in_set(set: &CidrSet, address: IpAddr) -> bool {
    set.cidr.contains(&address) && !set.except.iter().any(|except| except.contains(&address))
}

/// The words of section 6, by recursion over the characters.
pub(super) fn name_matches(pattern: &DnsPattern, name: &str) -> bool {
    match pattern {
        DnsPattern::Name(wanted) => **wanted == *name,
        DnsPattern::Pattern(pattern) => match &**pattern {
            "*" | "**" => true,
            pattern => match pattern.strip_prefix("**.") {
                Some(rest) => {
                    let labels: Vec<&str> = name.split('.').collect();
                    !labels.contains(&"")
                        && (1..labels.len()).any(|from| characters_match(rest, &labels[from..].join(".")))
                }
                None => !name.split('.').any(str::is_empty) && characters_match(pattern, name),
            },
        },
    }
}

fn characters_match(pattern: &str, name: &str) -> bool {
    let mut characters = pattern.chars();
    match characters.next() {
        None => name.is_empty(),
        Some('*') => {
            characters_match(characters.as_str(), name)
                || (name.starts_with(|first| first != '.') && characters_match(pattern, &name[1..]))
        }
        Some(wanted) => {
            name.strip_prefix(wanted).is_some_and(|rest| characters_match(characters.as_str(), rest))
        }
    }
}
