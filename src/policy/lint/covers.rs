//! Does one condition hold wherever another one does? Decided by what is written; a `false` may
//! mean "cannot tell".

use ipnet::IpNet;

use crate::model::{LabelSource, Protocol};
use crate::policy::rule::{CidrSet, Entity, Peer, Peers, PortMatch, Ports};
use crate::policy::selector::LabelSelector;

/// `wide` asks for nothing that `narrow` does not ask for, too.
pub(super) fn selector(wide: &LabelSelector, narrow: &LabelSelector) -> bool {
    wide.requirements().iter().all(|requirement| narrow.requirements().contains(requirement))
}

pub(super) fn peers(wide: &Peers, narrow: &Peers) -> bool {
    match (wide, narrow) {
        (Peers::Any, _) => true,
        (Peers::OneOf(wide), Peers::Any) => wide.contains(&Peer::Entity(Entity::All)),
        (Peers::OneOf(wide), Peers::OneOf(narrow)) => {
            !narrow.is_empty() && narrow.iter().all(|narrow| wide.iter().any(|wide| peer(wide, narrow)))
        }
    }
}

/// Some peer of `narrow` is covered.
pub(super) fn any_peer(wide: &Peers, narrow: &Peers) -> bool {
    match (wide, narrow) {
        (Peers::OneOf(wide), Peers::OneOf(narrow)) => {
            narrow.iter().any(|narrow| wide.iter().any(|wide| peer(wide, narrow)))
        }
        _ => peers(wide, narrow),
    }
}

pub(super) fn peer(wide: &Peer, narrow: &Peer) -> bool {
    if wide == narrow || *wide == Peer::Entity(Entity::All) {
        return true;
    }
    match (wide, narrow) {
        (Peer::Entity(Entity::World), Peer::Cidr(_) | Peer::Fqdn(_) | Peer::CidrGroup(_)) => true,
        (Peer::Entity(Entity::World), Peer::Entity(Entity::WorldIpv4 | Entity::WorldIpv6)) => true,
        (Peer::Entity(Entity::Cluster), Peer::Nodes(_)) => true,
        (Peer::Entity(Entity::Cluster), Peer::Pods(selector)) => {
            !selector.names_key(|key| key.source == Some(LabelSource::Reserved))
        }
        (
            Peer::Entity(Entity::Cluster),
            Peer::Entity(
                Entity::Host
                | Entity::RemoteNode
                | Entity::Ingress
                | Entity::Health
                | Entity::Init
                | Entity::Unmanaged,
            ),
        ) => true,
        (Peer::Pods(wide), Peer::Pods(narrow)) => {
            let reserved = |selector: &LabelSelector| {
                selector.names_key(|key| key.source == Some(LabelSource::Reserved))
            };
            reserved(wide) == reserved(narrow) && selector(wide, narrow)
        }
        (Peer::Nodes(wide), Peer::Nodes(narrow)) => selector(wide, narrow),
        (Peer::Cidr(wide), Peer::Cidr(narrow))
        | (Peer::Address(wide), Peer::Address(narrow) | Peer::Cidr(narrow)) => cidr(wide, narrow),
        _ => false,
    }
}

fn cidr(wide: &CidrSet, narrow: &CidrSet) -> bool {
    let excepted = |except: &IpNet| narrow.except.iter().any(|other| other.contains(except));
    let meets = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
    wide.cidr.contains(&narrow.cidr)
        && wide.except.iter().all(|except| !meets(except, &narrow.cidr) || excepted(except))
}

pub(super) fn ports(wide: &Ports, narrow: &Ports) -> bool {
    match (wide, narrow) {
        (Ports::Any, _) => true,
        (Ports::OneOf(_), Ports::Any) => false,
        (Ports::OneOf(wide), Ports::OneOf(narrow)) => {
            narrow.iter().all(|narrow| wide.iter().any(|wide| port(wide, narrow)))
        }
    }
}

/// Some port of `narrow` is covered, whole or in part.
pub(super) fn ports_meet(one: &Ports, other: &Ports) -> bool {
    match (one, other) {
        (Ports::Any, _) | (_, Ports::Any) => true,
        (Ports::OneOf(one), Ports::OneOf(other)) => {
            one.iter().any(|one| other.iter().any(|other| port_meets(one, other)))
        }
    }
}

fn port(wide: &PortMatch, narrow: &PortMatch) -> bool {
    match (wide, narrow) {
        (PortMatch::Protocol(protocol), narrow) => protocol_of(narrow) == Some(*protocol),
        (PortMatch::Range(a, wide), PortMatch::Range(b, narrow)) => {
            a == b && wide.first() <= narrow.first() && narrow.last() <= wide.last()
        }
        _ => wide == narrow,
    }
}

fn port_meets(one: &PortMatch, other: &PortMatch) -> bool {
    match (one, other) {
        (PortMatch::Range(a, one), PortMatch::Range(b, other)) => {
            a == b && one.first() <= other.last() && other.first() <= one.last()
        }
        _ => port(one, other) || port(other, one),
    }
}

fn protocol_of(port: &PortMatch) -> Option<Protocol> {
    match port {
        PortMatch::Protocol(protocol) | PortMatch::Range(protocol, _) | PortMatch::Named(protocol, _) => {
            Some(*protocol)
        }
        PortMatch::IcmpType(..) => None,
    }
}
