//! What addresses of the world are: CIDR identities, classes, API servers.

use super::super::delta::AddressKind;
use super::*;
use crate::policy::decision::Outcome;
use crate::policy::engine::L4Flow;
use crate::policy::rule::{CidrGroupRef, GroupSelect};

#[test]
fn what_is_not_known_is_world_outside_and_unknown_inside_the_cluster() {
    let view = small_cluster();
    assert_eq!(identity_of(&view, "192.0.2.1"), Identity::WORLD_IPV4);
    assert_eq!(identity_of(&view, "2001:db8::1"), Identity::WORLD_IPV6);
    let inside = view.resolve(ip("10.244.77.1"));
    assert_eq!((inside.identity, inside.kind), (Identity::UNKNOWN, AddressKind::ClusterRange));
    assert_eq!(identity_of(&view, "fd00:244::77"), Identity::UNKNOWN);
}

#[test]
fn every_prefix_that_a_rule_names_is_an_identity_and_the_longest_counts() {
    let mut view = small_cluster();
    view.apply(vec![
        egress("p", &[], vec![Peer::Cidr(cidr("10.0.0.0/8", &["10.9.0.0/16"]))]),
        egress("q", &[], vec![Peer::Cidr(cidr("10.9.1.0/24", &[]))]),
    ])
    .unwrap();
    for (address, prefix) in
        [("10.1.1.1", "10.0.0.0/8"), ("10.9.2.1", "10.9.0.0/16"), ("10.9.1.1", "10.9.1.0/24")]
    {
        assert_eq!(scope_of(&view, address).unwrap().0, prefix);
    }
    let number = identity_of(&view, "10.1.1.1");
    assert!(number.0 >= Identity::LOCAL_CIDR_MIN && number.0 < Identity::REMOTE_NODE_MIN);
    view.apply(vec![delete_policy("q"), egress("r", &[], vec![Peer::Cidr(cidr("10.0.0.0/8", &[]))])])
        .unwrap();
    assert_eq!(scope_of(&view, "10.9.1.1").unwrap().0, "10.9.0.0/16");
    view.apply(vec![delete_policy("p")]).unwrap();
    assert_eq!(identity_of(&view, "10.9.1.1"), number, "a number is stable while in use");
    view.apply(vec![delete_policy("r")]).unwrap();
    assert_eq!(identity_of(&view, "10.1.1.1"), Identity::WORLD_IPV4);
    assert!(view.engine().identity(number).is_none());
}

#[test]
fn cidr_rules_never_relabel_the_cluster() {
    let mut view = small_cluster();
    view.apply(vec![
        pod("a/web", LOCAL, &["10.244.1.1"], &[]),
        egress(
            "p",
            &[],
            ["10.244.0.0/16", "10.244.9.0/24", "10.244.1.1/32", "172.18.0.12/32", "0.0.0.0/0"]
                .map(|text| Peer::Cidr(cidr(text, &[])))
                .into(),
        ),
    ])
    .unwrap();
    assert!(identity_of(&view, "10.244.1.1").is_cluster_scope());
    assert_eq!(identity_of(&view, "10.244.9.1"), Identity::UNKNOWN);
    assert!(labels_of(&view, "172.18.0.12").contains("reserved:remote-node"));
    assert_eq!(scope_of(&view, "192.0.2.1").unwrap().0, "0.0.0.0/0");
    view.apply(vec![delete(Kind::Node, "", "node2")]).unwrap();
    assert_eq!(scope_of(&view, "172.18.0.12").unwrap().0, "172.18.0.12/32", "nobody's any more");
}

#[test]
fn address_rules_make_classes_beside_the_identities() {
    let mut view = small_cluster();
    view.apply(vec![
        pod("a/web", LOCAL, &["10.244.1.1"], &[]),
        egress("p", &[], vec![Peer::Address(cidr("10.244.0.0/16", &["10.244.2.0/24"]))]),
    ])
    .unwrap();
    let class = |view: &View, address: &str| view.resolve(ip(address)).address_class;
    let (inside, except) = (class(&view, "10.244.1.1").unwrap(), class(&view, "10.244.2.1").unwrap());
    assert_ne!(inside, except);
    assert!(inside.0 >= Identity::ADDRESS_CLASS_MIN);
    assert!(identity_of(&view, "10.244.1.1").is_cluster_scope(), "the label identity stays");
    assert_eq!(class(&view, "10.1.1.1"), None);
    let delta = view.apply(vec![delete_policy("p")]).unwrap();
    assert_eq!(delta.address_classes.len(), 2);
    assert_eq!(class(&view, "10.244.1.1"), None);
}

#[test]
fn a_group_that_does_not_exist_matches_nothing_until_it_does() {
    let mut view = small_cluster();
    let reference = |groups, except: &[&str]| {
        Peer::CidrGroup(CidrGroupRef { groups, except: except.iter().map(|text| net(text)).collect() })
    };
    view.apply(vec![
        egress("name", &[], vec![reference(GroupSelect::Name("g".into()), &["10.1.0.0/16", "10.7.0.0/16"])]),
        egress("label", &[], vec![reference(GroupSelect::Labels(selector(&[("env", "x")])), &[])]),
    ])
    .unwrap();
    assert!(peers_of(&view, "name").is_empty() && peers_of(&view, "label").is_empty());
    let delta = view.apply(vec![group("g", &[("env", "x")], &["10.0.0.0/8", "10.7.7.0/24"])]).unwrap();
    assert!(!delta.ipcache.is_empty());
    assert_eq!(
        peers_of(&view, "name"),
        [Peer::Cidr(cidr("10.0.0.0/8", &["10.1.0.0/16", "10.7.0.0/16"]))],
        "a group's prefix inside an except is gone"
    );
    assert_eq!(peers_of(&view, "label").len(), 2);
    view.apply(vec![group("g", &[("env", "y")], &["10.0.0.0/8"])]).unwrap();
    assert!(peers_of(&view, "label").is_empty());
    view.apply(vec![delete(Kind::CiliumCIDRGroup, "", "g")]).unwrap();
    assert!(peers_of(&view, "name").is_empty());
    assert_eq!(identity_of(&view, "10.2.0.1"), Identity::WORLD_IPV4);
}

#[test]
fn the_api_server_outside_is_world_and_api_server() {
    let mut view = small_cluster();
    view.apply(vec![
        slice("default/kubernetes", "kubernetes", &["198.51.100.250"]),
        egress("p", &[], vec![Peer::Cidr(cidr("198.51.100.0/24", &[]))]),
    ])
    .unwrap();
    let labels = labels_of(&view, "198.51.100.250");
    assert!(labels.contains("reserved:kube-apiserver") && labels.contains("reserved:world"), "{labels}");
    assert_eq!(scope_of(&view, "198.51.100.250").unwrap().0, "198.51.100.0/24", "CIDR rules see it");
    assert!(!labels_of(&view, "198.51.100.251").contains("kube-apiserver"));
    view.apply(vec![slice("default/kubernetes", "kubernetes", &["198.51.100.251"])]).unwrap();
    assert!(!labels_of(&view, "198.51.100.250").contains("kube-apiserver"));
    assert!(labels_of(&view, "198.51.100.251").contains("kube-apiserver"));
    // Clusters have Endpoints of that name beside the slice.
    let subsets = ["kubernetes:1", "kubernetes:2"]
        .map(|name| slice(&format!("default/{name}"), "kubernetes", &["198.51.100.252"]));
    view.apply(subsets.into()).unwrap();
    view.apply(vec![delete(Kind::Endpoints, "default", "kubernetes")]).unwrap();
    assert!(!labels_of(&view, "198.51.100.252").contains("kube-apiserver"));
    assert!(labels_of(&view, "198.51.100.251").contains("kube-apiserver"), "the slice stays");
    view.apply(vec![delete(Kind::EndpointSlice, "default", "kubernetes")]).unwrap();
    assert!(!labels_of(&view, "198.51.100.251").contains("kube-apiserver"));
}

#[test]
fn a_node_with_the_api_server_carries_both_labels_in_any_order() {
    let api_server = || slice("default/kubernetes", "kubernetes", &["172.18.0.12", "172.18.0.11"]);
    let mut first = view();
    first.apply(vec![api_server()]).unwrap();
    assert!(labels_of(&first, "172.18.0.12").contains("reserved:world"));
    first.apply(cluster_objects()).unwrap();
    let mut last = small_cluster();
    last.apply(vec![api_server()]).unwrap();
    for view in [&mut first, &mut last] {
        assert_eq!(
            labels_of(view, "172.18.0.12"),
            "node:zone=node2,reserved:kube-apiserver,reserved:remote-node"
        );
        assert!(labels_of(view, "172.18.0.11").contains("reserved:host"));
        assert!(labels_of(view, "172.18.0.11").contains("reserved:kube-apiserver"));
        view.apply(vec![delete(Kind::EndpointSlice, "default", "kubernetes")]).unwrap();
        assert!(!labels_of(view, "172.18.0.12").contains("kube-apiserver"));
    }
}

#[test]
fn other_services_named_kubernetes_are_no_api_server() {
    let mut view = small_cluster();
    view.apply(vec![slice("a/kubernetes", "kubernetes", &["198.51.100.250"])]).unwrap();
    assert_eq!(identity_of(&view, "198.51.100.250"), Identity::WORLD_IPV4);
}

/// A rule for addresses matches pods too, and then a port name is the pod's own: it was taken for nobody's.
#[test]
fn a_port_name_at_an_address_is_that_of_the_pod_there() {
    let mut view = small_cluster();
    let with_port = |name: &str, address: &str, number: u16| pod_with_port(name, address, "http", number);
    let allow_http = |name: &str, set: CidrSet| {
        let http = Ports::OneOf(vec![PortMatch::Named(Protocol::Tcp, "http".into())]);
        let peers = vec![Peer::Address(set)];
        policy(name, &[], vec![rule(Direction::Egress, Action::Allow, peers, http)])
    };
    view.apply(vec![
        pod("a/client", LOCAL, &["10.244.1.9"], &[]),
        with_port("a/web", "10.244.1.1", 8080),
        with_port("a/api", "10.244.1.2", 9090),
        with_port("a/far", "10.244.2.2", 9090),
        allow_http("p", cidr("10.244.1.0/24", &[])),
    ])
    .unwrap();
    let allowed = |view: &View, to: &str, port: u16| {
        let sides = view.decide(ip("10.244.1.9"), ip(to), L4Flow { protocol: Protocol::Tcp, port });
        sides.egress.unwrap().outcome == Outcome::Allow
    };
    for (to, port, expected) in [
        ("10.244.1.1", 8080, true),
        ("10.244.1.1", 9090, false),
        ("10.244.1.2", 9090, true),
        ("10.244.1.2", 8080, false),
        ("10.244.2.2", 9090, false),
    ] {
        assert_eq!(allowed(&view, to, port), expected, "{to}:{port}");
    }
    view.apply(vec![with_port("a/web", "10.244.1.1", 9090)]).unwrap();
    assert!(allowed(&view, "10.244.1.1", 9090) && !allowed(&view, "10.244.1.1", 8080));
    view.apply(vec![allow_http("p", cidr("10.244.1.0/24", &["10.244.1.1/32"]))]).unwrap();
    assert!(!allowed(&view, "10.244.1.1", 9090) && allowed(&view, "10.244.1.2", 9090));
    view.apply(vec![delete_policy("p")]).unwrap();
    assert!(view.full().address_classes.is_empty());
}
