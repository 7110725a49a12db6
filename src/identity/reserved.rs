//! The identities that every node knows, and the records of nodes and of the world.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{
    CidrScope, Family, Identity, IdentityKind, IdentityRecord, Label, LabelSource, Labels, LabelsBuilder,
    Node,
};

/// Records of the fixed identities other than `unknown` and `host` (which has the node's labels).
pub fn fixed_records() -> Vec<IdentityRecord> {
    Identity::RESERVED
        .iter()
        .filter(|(id, _)| ![Identity::UNKNOWN, Identity::HOST].contains(id))
        .map(|(id, name)| {
            let mut labels = vec![Label::reserved(name)];
            if [Identity::WORLD_IPV4, Identity::WORLD_IPV6].contains(id) {
                labels.push(Label::reserved("world"));
            }
            IdentityRecord { id: *id, labels: labels.into_iter().collect(), kind: IdentityKind::Labels }
        })
        .collect()
}

/// The identity of an address outside of the cluster about which nothing more is known.
pub fn world(family: Family) -> Identity {
    match family {
        Family::IPv4 => Identity::WORLD_IPV4,
        Family::IPv6 => Identity::WORLD_IPV6,
    }
}

/// Whether the API server answers at an address or on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ApiServer {
    Here,
    Elsewhere,
}

/// The record of a node; `id` is [`Identity::HOST`] for the local one.
pub fn node_record(id: Identity, node: Option<&Node>, api_server: ApiServer) -> IdentityRecord {
    let mut labels = LabelsBuilder::default();
    labels.set(Label::reserved(if id == Identity::HOST { "host" } else { "remote-node" }));
    if api_server == ApiServer::Here {
        labels.set(Label::reserved("kube-apiserver"));
    }
    for (key, value) in node.into_iter().flat_map(|node| &node.labels) {
        labels.set(Label::new(LabelSource::Node, key, value));
    }
    let addresses: BTreeSet<IpAddr> =
        node.into_iter().flat_map(|node| node.addresses.iter().copied()).collect();
    IdentityRecord { id, labels: labels.build(), kind: IdentityKind::Node { addresses } }
}

/// The record of a set of addresses outside of the cluster.
pub fn cidr_record(id: Identity, scope: &CidrScope, api_server: ApiServer) -> IdentityRecord {
    IdentityRecord { id, labels: cidr_labels(scope, api_server), kind: IdentityKind::Cidr(scope.clone()) }
}

fn cidr_labels(scope: &CidrScope, api_server: ApiServer) -> Labels {
    let mut labels = LabelsBuilder::default();
    labels.set(Label::reserved("world"));
    labels.set(Label::reserved(if scope.ipv6 { "world-ipv6" } else { "world-ipv4" }));
    if api_server == ApiServer::Here {
        labels.set(Label::reserved("kube-apiserver"));
    }
    if let Some(prefix) = scope.prefix {
        labels.set(Label::new(LabelSource::Cidr, &prefix.to_string(), ""));
    }
    for pattern in &scope.fqdns {
        labels.set(Label::new(LabelSource::Fqdn, pattern, ""));
    }
    labels.build()
}

/// The record of an address class; `ports` are the port names of the pod there, as labels.
pub fn class_record(id: Identity, prefix: IpNet, ports: &[Label]) -> IdentityRecord {
    let labels = ports.iter().cloned().collect();
    IdentityRecord { id, labels, kind: IdentityKind::AddressClass(prefix) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_local_node_is_host_and_others_are_remote_nodes() {
        let node = Node {
            name: "n".into(),
            labels: [("zone".to_owned(), "a".to_owned())].into(),
            addresses: vec!["10.0.0.1".parse().unwrap()],
        };
        let local = node_record(Identity::HOST, Some(&node), ApiServer::Elsewhere);
        assert_eq!(local.labels.to_string(), "node:zone=a,reserved:host");
        let remote = node_record(Identity(Identity::REMOTE_NODE_MIN), Some(&node), ApiServer::Here);
        assert_eq!(remote.labels.to_string(), "node:zone=a,reserved:kube-apiserver,reserved:remote-node");
    }

    #[test]
    fn the_world_keeps_its_labels_whatever_else_is_known() {
        let scope =
            CidrScope { prefix: "10.0.0.0/8".parse().ok(), fqdns: ["a.example".into()].into(), ipv6: false };
        let record = cidr_record(Identity(Identity::LOCAL_CIDR_MIN), &scope, ApiServer::Here);
        for name in ["world", "world-ipv4", "kube-apiserver"] {
            assert!(record.labels.has_reserved(name), "{name}");
        }
        for record in fixed_records() {
            assert!(record.labels.is_reserved(), "{record:?}");
        }
    }
}
