//! Does a peer element match an identity, does a subject select one? (Semantics 2 and 3.)
//!
//! Pure tests of one against one; `selectors` decides which tests are worth making.

use std::net::IpAddr;

use ipnet::IpNet;

use super::options::CidrMatch;
use crate::model::{Family, Identity, IdentityKind, IdentityRecord, LabelSource, Labels};
use crate::policy::rule::{CidrSet, Entity, Peer, Subject};

/// The peer element matches what the identity stands for.
pub(in crate::policy) fn peer_matches(peer: &Peer, record: &IdentityRecord, cidr_match: CidrMatch) -> bool {
    use IdentityKind::{AddressClass, Cidr, Labels, Node};
    match (peer, &record.kind) {
        (Peer::Address(set), AddressClass(prefix)) => covers(set, prefix),
        // A class is looked up beside the label identity and stands for addresses alone.
        (Peer::Address(_), _) | (_, AddressClass(_)) => false,

        (Peer::Pods(selector), Labels) => selector.matches(&record.labels),
        (Peer::Pods(selector), Node { .. } | Cidr(_)) => {
            selector.names_key(|key| key.source == Some(LabelSource::Reserved))
                && selector.matches_any_scope(&record.labels)
        }

        (Peer::Nodes(selector), Node { .. }) => selector.matches_node(&record.labels),
        (Peer::Nodes(_), _) => false,

        (Peer::Cidr(set), Cidr(scope)) => scope.prefix.is_some_and(|prefix| covers(set, &prefix)),
        (Peer::Cidr(set), Node { addresses }) => {
            cidr_match == CidrMatch::WorldAndNodes
                && addresses.iter().any(|address| covers(set, &IpNet::from(*address)))
        }
        (Peer::Cidr(_), Labels) => false,

        (Peer::Fqdn(pattern), Cidr(scope)) => scope.fqdns.contains(pattern.text()),
        (Peer::Fqdn(_), _) => false,

        (Peer::Entity(entity), _) => entity_matches(*entity, record),

        // References that the caller should have expanded.
        (Peer::CidrGroup(_) | Peer::Service(_), _) => false,
    }
}

/// `prefix` lies inside the set and inside no exception.
fn covers(set: &CidrSet, prefix: &IpNet) -> bool {
    set.cidr.contains(prefix) && !set.except.iter().any(|except| except.contains(prefix))
}

fn entity_matches(entity: Entity, record: &IdentityRecord) -> bool {
    let labels = &record.labels;
    match entity {
        Entity::All => true,
        Entity::None => false,
        Entity::World => is_world(record),
        Entity::WorldIpv4 => is_world_of(record, Family::IPv4),
        Entity::WorldIpv6 => is_world_of(record, Family::IPv6),
        Entity::Cluster => is_cluster(record),
        Entity::Host => labels.has_reserved("host"),
        Entity::RemoteNode => labels.has_reserved("remote-node"),
        Entity::KubeApiserver => labels.has_reserved("kube-apiserver"),
        Entity::Ingress => labels.has_reserved("ingress"),
        Entity::Health => labels.has_reserved("health"),
        Entity::Init => labels.has_reserved("init"),
        Entity::Unmanaged => labels.has_reserved("unmanaged"),
    }
}

fn has_world_label(labels: &Labels) -> bool {
    ["world", "world-ipv4", "world-ipv6"].into_iter().any(|name| labels.has_reserved(name))
}

fn is_world(record: &IdentityRecord) -> bool {
    match record.kind {
        IdentityKind::Cidr(_) => true,
        IdentityKind::Labels => has_world_label(&record.labels),
        IdentityKind::Node { .. } | IdentityKind::AddressClass(_) => false,
    }
}

fn is_world_of(record: &IdentityRecord, family: Family) -> bool {
    match &record.kind {
        IdentityKind::Cidr(scope) => {
            let ipv6 = scope.prefix.map_or(scope.ipv6, |prefix| matches!(prefix, IpNet::V6(_)));
            ipv6 == (family == Family::IPv6)
        }
        IdentityKind::Labels => record.labels.has_reserved(match family {
            Family::IPv4 => "world-ipv4",
            Family::IPv6 => "world-ipv6",
        }),
        IdentityKind::Node { .. } | IdentityKind::AddressClass(_) => false,
    }
}

fn is_cluster(record: &IdentityRecord) -> bool {
    let labels = &record.labels;
    match record.kind {
        IdentityKind::Node { .. } => true,
        IdentityKind::Cidr(_) | IdentityKind::AddressClass(_) => false,
        IdentityKind::Labels if record.id.is_cluster_scope() => !has_world_label(labels),
        IdentityKind::Labels => {
            let inside = ["host", "remote-node", "init", "health", "unmanaged", "ingress", "kube-apiserver"];
            inside.into_iter().any(|name| labels.has_reserved(name)) && !has_world_label(labels)
        }
    }
}

/// The spec governs endpoints with this identity. A host is governed by node selectors alone, and
/// they govern nothing else.
pub(in crate::policy) fn subject_matches(subject: &Subject, record: &IdentityRecord) -> bool {
    match subject {
        Subject::Pods(None) => false,
        Subject::Pods(Some(selector)) => {
            record.id != Identity::HOST
                && record.kind == IdentityKind::Labels
                && selector.matches(&record.labels)
        }
        Subject::Nodes(selector) => {
            record.id == Identity::HOST
                && matches!(record.kind, IdentityKind::Node { .. })
                && selector.matches_node(&record.labels)
        }
    }
}

/// The prefixes by which CIDR rules can find an identity.
pub(super) fn prefixes(record: &IdentityRecord) -> Vec<IpNet> {
    match &record.kind {
        IdentityKind::Cidr(scope) => scope.prefix.into_iter().collect(),
        IdentityKind::AddressClass(prefix) => vec![*prefix],
        IdentityKind::Node { addresses } => addresses.iter().copied().map(host_prefix).collect(),
        IdentityKind::Labels => Vec::new(),
    }
}

fn host_prefix(address: IpAddr) -> IpNet {
    IpNet::from(address)
}
