//! Tests of the view, by what they are about, and the small vocabulary that they share.

mod addresses;
mod names;
mod pods;
mod properties;
mod services;
mod transactions;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::delta::Delta;
use super::*;
use crate::identity::MemoryAllocator;
use crate::model::{
    ContainerPort, Direction, EndpointSlice, Identity, IdentityKind, InternalTraffic, KubeLabels, Namespace,
    Node, Object, Pod, Protocol, Service, ServicePort, SliceEndpoint, SlicePort, TargetPort,
};
use crate::policy::rule::{Action, CidrSet, Peer, Peers, PortMatch, Ports, Rule, Spec, Subject, Tier};
use crate::policy::selector::{LabelSelector, Operator, Requirement, SelectorKey};

pub(super) const LOCAL: &str = "node1";

pub(super) fn options() -> ViewOptions {
    ViewOptions {
        node: LOCAL.into(),
        cluster_name: "default".into(),
        pod_cidrs: vec![net("10.244.0.0/16"), net("fd00:244::/48")],
        ..ViewOptions::default()
    }
}

pub(super) fn allocator() -> Box<MemoryAllocator> {
    Box::new(MemoryAllocator::new(Duration::from_secs(600)))
}

pub(super) fn view() -> View {
    View::new(options(), allocator())
}

/// A view with both nodes and the namespaces `a` and `b`.
pub(super) fn small_cluster() -> View {
    let mut view = view();
    view.apply(cluster_objects()).unwrap();
    view
}

pub(super) fn cluster_objects() -> Vec<Change> {
    vec![
        node(LOCAL, &["172.18.0.11", "fd00:18::11"]),
        node("node2", &["172.18.0.12", "fd00:18::12"]),
        namespace("a", &[]),
        namespace("b", &[("team", "b")]),
    ]
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(super) fn kube(labels: &[(&str, &str)]) -> KubeLabels {
    labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub(super) fn upsert(object: Object) -> Change {
    Change::Upsert(Resource::Object(object))
}

pub(super) fn namespace(name: &str, labels: &[(&str, &str)]) -> Change {
    let mut labels = kube(labels);
    labels.insert("kubernetes.io/metadata.name".into(), name.into());
    upsert(Object::Namespace(Namespace { name: name.into(), labels }))
}

pub(super) fn node(name: &str, addresses: &[&str]) -> Change {
    let addresses = addresses.iter().map(|text| ip(text)).collect();
    upsert(Object::Node(Node { name: name.into(), labels: kube(&[("zone", name)]), addresses }))
}

/// `namespace/name`, on a node, with addresses and labels.
pub(super) fn a_pod(path: &str, on: &str, addresses: &[&str], labels: &[(&str, &str)]) -> Pod {
    let (namespace, name) = path.split_once('/').unwrap();
    Pod {
        namespace: namespace.into(),
        name: name.into(),
        labels: kube(labels),
        node: Some(on.into()),
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        host_network: false,
        service_account: "default".into(),
        controller: None,
        ports: vec![],
    }
}

pub(super) fn pod(path: &str, on: &str, addresses: &[&str], labels: &[(&str, &str)]) -> Change {
    upsert(Object::Pod(a_pod(path, on, addresses, labels)))
}

pub(super) fn pod_with_port(path: &str, address: &str, name: &str, port: u16) -> Change {
    let mut pod = a_pod(path, LOCAL, &[address], &[("app", "x")]);
    pod.ports.push(ContainerPort { name: Some(name.into()), port, protocol: Protocol::Tcp });
    upsert(Object::Pod(pod))
}

pub(super) fn delete(kind: Kind, namespace: &str, name: &str) -> Change {
    Change::Delete(ObjectRef::new(kind, namespace, name))
}

pub(super) fn slice(path: &str, service: &str, addresses: &[&str]) -> Change {
    let (namespace, name) = path.split_once('/').unwrap();
    upsert(Object::EndpointSlice(EndpointSlice {
        namespace: namespace.into(),
        name: name.into(),
        service: service.into(),
        endpoints: vec![SliceEndpoint {
            addresses: addresses.iter().map(|text| ip(text)).collect(),
            ready: true,
            node: None,
        }],
        ports: vec![SlicePort { name: None, port: 8080, protocol: Protocol::Tcp }],
    }))
}

pub(super) fn a_service(path: &str, cluster_ip: &str, selector: Option<&[(&str, &str)]>) -> Service {
    let (namespace, name) = path.split_once('/').unwrap();
    Service {
        namespace: namespace.into(),
        name: name.into(),
        labels: kube(&[("tier", "data")]),
        cluster_ips: vec![ip(cluster_ip)],
        headless: false,
        selector: selector.map(kube),
        ports: vec![ServicePort {
            name: None,
            port: 80,
            protocol: Protocol::Tcp,
            target: TargetPort::Number(8080),
        }],
        affinity_secs: None,
        internal_traffic: InternalTraffic::Cluster,
    }
}

pub(super) fn service(path: &str, cluster_ip: &str, selector: Option<&[(&str, &str)]>) -> Change {
    upsert(Object::Service(a_service(path, cluster_ip, selector)))
}

/// `key=value` requirements.
pub(super) fn selector(requirements: &[(&str, &str)]) -> LabelSelector {
    let requirement = |(key, value): &(&str, &str)| Requirement {
        key: SelectorKey::parse(key),
        operator: Operator::In(BTreeSet::from([(*value).into()])),
    };
    LabelSelector::new(requirements.iter().map(requirement).collect())
}

pub(super) fn cidr(cidr: &str, except: &[&str]) -> CidrSet {
    CidrSet { cidr: net(cidr), except: except.iter().map(|text| net(text)).collect() }
}

pub(super) fn rule(direction: Direction, action: Action, peers: Vec<Peer>, ports: Ports) -> Rule {
    Rule { direction, action, peers: Peers::OneOf(peers), ports, l7: None, path: "rule".into() }
}

pub(super) fn tcp(name: &str) -> Ports {
    Ports::OneOf(vec![PortMatch::Named(Protocol::Tcp, name.into())])
}

/// A normal policy of namespace `a` that selects pods by labels and is default-deny both ways.
pub(super) fn policy(name: &str, subject: &[(&str, &str)], rules: Vec<Rule>) -> Change {
    let subject = selector(&[&[("k8s:io.kubernetes.pod.namespace", "a")], subject].concat());
    Change::Upsert(Resource::Policy(Policy {
        object: ObjectRef::new(Kind::CiliumNetworkPolicy, "a", name),
        specs: vec![Spec {
            subject: Subject::Pods(Some(subject)),
            tier: Tier::Normal,
            default_deny_ingress: true,
            default_deny_egress: true,
            rules,
        }],
    }))
}

/// A policy whose pods may send to these peers on every port.
pub(super) fn egress(name: &str, subject: &[(&str, &str)], peers: Vec<Peer>) -> Change {
    policy(name, subject, vec![rule(Direction::Egress, Action::Allow, peers, Ports::Any)])
}

pub(super) fn delete_policy(name: &str) -> Change {
    delete(Kind::CiliumNetworkPolicy, "a", name)
}

pub(super) fn group(name: &str, labels: &[(&str, &str)], cidrs: &[&str]) -> Change {
    Change::Upsert(Resource::CidrGroup(CidrGroup {
        name: name.into(),
        labels: kube(labels),
        cidrs: cidrs.iter().map(|text| net(text)).collect(),
    }))
}

/// The labels of the identity that an address has.
pub(super) fn labels_of(view: &View, address: &str) -> String {
    let identity = view.resolve(ip(address)).identity;
    view.engine().identity(identity).map(|record| record.labels.to_string()).unwrap_or_default()
}

/// The scope of the identity that an address has: its prefix and patterns.
pub(super) fn scope_of(view: &View, address: &str) -> Option<(String, Vec<String>)> {
    let identity = view.resolve(ip(address)).identity;
    match &view.engine().identity(identity)?.kind {
        IdentityKind::Cidr(scope) => Some((
            scope.prefix.map(|prefix| prefix.to_string()).unwrap_or_default(),
            scope.fqdns.iter().map(|text| text.to_string()).collect(),
        )),
        _ => None,
    }
}

pub(super) fn identity_of(view: &View, address: &str) -> Identity {
    view.resolve(ip(address)).identity
}

/// The policy as the engine has it.
pub(super) fn peers_of(view: &View, name: &str) -> Vec<Peer> {
    let object = ObjectRef::new(Kind::CiliumNetworkPolicy, "a", name);
    let policy: &Arc<Policy> = view.engine().policies().find(|policy| policy.object == object).unwrap();
    match &policy.specs[0].rules[0].peers {
        Peers::OneOf(peers) => peers.clone(),
        Peers::Any => panic!("any peer"),
    }
}

/// Without the revision.
pub(super) fn state(view: &View) -> Delta {
    Delta { revision: 0, ..view.full() }
}
