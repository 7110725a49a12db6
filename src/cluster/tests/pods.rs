//! Identities of pods and nodes.

use super::super::delta::{AddressKind, EndpointChange};
use super::*;
use crate::policy::decision::{Because, Outcome};
use crate::policy::engine::L4Flow;

const WEB: &[(&str, &str)] = &[("app", "web"), ("pod-template-hash", "1")];
const FLOW: L4Flow = L4Flow { protocol: Protocol::Tcp, port: 80 };

#[test]
fn replicas_share_one_identity_and_namespaces_do_not() {
    let mut view = small_cluster();
    view.apply(vec![
        pod("a/web-1", LOCAL, &["10.244.1.1"], WEB),
        pod("a/web-2", "node2", &["10.244.2.1"], &[("app", "web"), ("pod-template-hash", "2")]),
        pod("b/web", LOCAL, &["10.244.1.2"], WEB),
    ])
    .unwrap();
    let one = identity_of(&view, "10.244.1.1");
    assert!(one.is_cluster_scope());
    assert_eq!(identity_of(&view, "10.244.2.1"), one);
    assert_ne!(identity_of(&view, "10.244.1.2"), one);
}

#[test]
fn only_local_pods_are_endpoints_and_remote_ones_are_behind_their_node() {
    let mut view = small_cluster();
    let delta = view
        .apply(vec![
            pod("a/local", LOCAL, &["10.244.1.1"], WEB),
            pod("a/remote", "node2", &["10.244.2.1", "fd00:244::2"], WEB),
        ])
        .unwrap();
    let identity = identity_of(&view, "10.244.1.1");
    assert_eq!(
        delta.endpoints,
        [EndpointChange::Upsert { pod: "a/local".into(), addresses: vec![ip("10.244.1.1")], identity }]
    );
    let tunnel = |address: &str| {
        let prefix = IpNet::from(ip(address));
        view.ipcache().find(|(other, _)| *other == prefix).unwrap().1.tunnel_endpoint
    };
    assert_eq!(tunnel("10.244.1.1"), None);
    assert_eq!(tunnel("10.244.2.1"), Some(ip("172.18.0.12")));
    assert_eq!(tunnel("fd00:244::2"), Some(ip("fd00:18::12")));
}

#[test]
fn a_node_that_comes_or_moves_later_is_the_tunnel_of_its_pods() {
    let mut view = view();
    view.apply(vec![namespace("a", &[]), pod("a/remote", "node2", &["fd00:244::2"], WEB)]).unwrap();
    let tunnel = |view: &View| {
        view.ipcache().find(|(prefix, _)| *prefix == net("fd00:244::2/128")).unwrap().1.tunnel_endpoint
    };
    assert_eq!(tunnel(&view), None);
    view.apply(vec![node("node2", &["172.18.0.12"])]).unwrap();
    assert_eq!(tunnel(&view), Some(ip("172.18.0.12")), "another family is better than none");
    view.apply(vec![node("node2", &["172.18.0.99"])]).unwrap();
    assert_eq!(tunnel(&view), Some(ip("172.18.0.99")));
    view.apply(vec![delete(Kind::Node, "", "node2")]).unwrap();
    assert_eq!(tunnel(&view), None);
}

#[test]
fn host_network_pods_are_their_node_and_pods_without_address_are_nowhere() {
    let mut view = small_cluster();
    let before = state(&view);
    let mut host = a_pod("a/host", LOCAL, &["172.18.0.11"], WEB);
    host.host_network = true;
    view.apply(vec![upsert(Object::Pod(host)), pod("a/pending", LOCAL, &[], WEB)]).unwrap();
    assert_eq!(state(&view), before);
    assert_eq!(identity_of(&view, "172.18.0.11"), Identity::HOST);
}

#[test]
fn a_label_that_a_selector_names_counts_while_the_policy_is_there() {
    let mut view = small_cluster();
    view.apply(vec![
        pod("a/one", LOCAL, &["10.244.1.1"], &[("app", "web"), ("pod-template-hash", "1")]),
        pod("a/two", LOCAL, &["10.244.1.2"], &[("app", "web"), ("pod-template-hash", "2")]),
    ])
    .unwrap();
    let one_identity = |view: &View| identity_of(view, "10.244.1.1") == identity_of(view, "10.244.1.2");
    assert!(one_identity(&view));
    view.apply(vec![egress("p", &[("pod-template-hash", "1")], vec![])]).unwrap();
    assert!(!one_identity(&view));
    assert!(labels_of(&view, "10.244.1.2").contains("k8s:pod-template-hash=2"));
    view.apply(vec![delete_policy("p")]).unwrap();
    assert!(one_identity(&view));
    view.apply(vec![egress("p", &[], vec![Peer::Pods(selector(&[("any:pod-template-hash", "2")]))])])
        .unwrap();
    assert!(!one_identity(&view), "a peer selector names keys too");
}

#[test]
fn a_port_name_that_a_rule_uses_is_part_of_the_identity() {
    let mut view = small_cluster();
    view.apply(vec![
        pod_with_port("a/one", "10.244.1.1", "http", 80),
        pod_with_port("a/two", "10.244.1.2", "http", 8080),
    ])
    .unwrap();
    let one_identity = |view: &View| identity_of(view, "10.244.1.1") == identity_of(view, "10.244.1.2");
    assert!(one_identity(&view));
    let named = rule(Direction::Ingress, Action::Allow, vec![Peer::Pods(selector(&[]))], tcp("http"));
    view.apply(vec![policy("p", &[], vec![named])]).unwrap();
    assert!(!one_identity(&view));
    assert!(labels_of(&view, "10.244.1.2").contains("k8s:io.sluice.named-port.http=8080.tcp"));
    view.apply(vec![delete_policy("p")]).unwrap();
    assert!(one_identity(&view));
}

#[test]
fn a_pod_that_comes_again_without_ports_has_none_of_those_before() {
    let mut view = small_cluster();
    let named = rule(Direction::Ingress, Action::Allow, vec![Peer::Pods(selector(&[]))], tcp("http"));
    view.apply(vec![policy("p", &[], vec![named]), pod_with_port("a/one", "10.244.1.1", "http", 80)])
        .unwrap();
    let before = identity_of(&view, "10.244.1.1");
    for changes in [
        vec![pod("a/one", LOCAL, &["10.244.1.1"], &[("app", "x")])],
        vec![pod_with_port("a/one", "10.244.1.1", "http", 80)],
        vec![delete(Kind::Pod, "a", "one"), pod("a/one", LOCAL, &["10.244.1.1"], &[("app", "x")])],
    ] {
        let has_port = matches!(&changes[0], Change::Upsert(Resource::Object(Object::Pod(pod))) if !pod.ports.is_empty());
        view.apply(changes).unwrap();
        assert_eq!(labels_of(&view, "10.244.1.1").contains("named-port"), has_port);
        assert_eq!(identity_of(&view, "10.244.1.1") == before, has_port);
    }
}

#[test]
fn namespace_labels_are_part_of_the_identity_and_follow_changes() {
    let mut view = small_cluster();
    view.apply(vec![pod("a/web", LOCAL, &["10.244.1.1"], WEB)]).unwrap();
    let delta = view.apply(vec![namespace("a", &[("trusted", "yes")])]).unwrap();
    assert!(labels_of(&view, "10.244.1.1").contains("namespace.labels.trusted=yes"));
    assert_eq!(delta.endpoints.len(), 1, "the endpoint has a new identity");
}

#[test]
fn cve_2023_39347_no_label_of_a_pod_moves_it_out_of_its_namespace() {
    let mut view = small_cluster();
    view.apply(vec![pod("b/evil", LOCAL, &["10.244.1.1"], &[("app", "web")])]).unwrap();
    let honest = labels_of(&view, "10.244.1.1");
    view.apply(vec![
        egress("p", &[("io.kubernetes.pod.namespace", "a")], vec![]),
        pod(
            "b/evil",
            LOCAL,
            &["10.244.1.1"],
            &[
                ("app", "web"),
                ("io.kubernetes.pod.namespace", "a"),
                ("io.cilium.k8s.namespace.labels.team", "a"),
                ("io.sluice.named-port.http", "80.tcp"),
            ],
        ),
    ])
    .unwrap();
    assert_eq!(labels_of(&view, "10.244.1.1"), honest);
}

#[test]
fn a_pod_whose_namespace_is_not_known_yet_is_closed() {
    let mut view = view();
    view.apply(vec![node(LOCAL, &["172.18.0.11"]), pod("a/web", LOCAL, &["10.244.1.1"], WEB)]).unwrap();
    assert_eq!(identity_of(&view, "10.244.1.1"), Identity::UNKNOWN);
    assert_eq!(view.endpoints().count(), 0);
    let sides = view.decide(ip("10.244.1.1"), ip("192.0.2.1"), FLOW);
    assert_eq!(sides.denied().unwrap().direction, Direction::Egress);
    view.apply(vec![namespace("a", &[])]).unwrap();
    assert!(identity_of(&view, "10.244.1.1").is_cluster_scope());
    assert_eq!(view.endpoints().count(), 1);
}

#[test]
fn a_pod_that_reaches_itself_is_never_judged() {
    let mut view = small_cluster();
    view.apply(vec![
        pod("a/web", LOCAL, &["10.244.1.1", "10.244.1.9"], WEB),
        pod("a/far", "node2", &["10.244.2.1"], WEB),
        egress("deny", &[], vec![]),
    ])
    .unwrap();
    let sides = view.decide(ip("10.244.1.1"), ip("10.244.1.9"), FLOW);
    assert!(sides.iter().all(|side| (side.outcome, &side.because) == (Outcome::Allow, &Because::Hairpin)));
    assert_eq!(sides.iter().count(), 2);
    let far = view.decide(ip("10.244.1.1"), ip("10.244.2.1"), FLOW);
    assert!(far.egress.is_some() && far.ingress.is_none(), "the other node judges its own side");
}

#[test]
fn the_node_is_judged_only_with_the_host_firewall() {
    let with = |host_firewall| {
        let mut view = View::new(ViewOptions { host_firewall, ..options() }, allocator());
        let delta = view.apply(cluster_objects()).unwrap();
        assert_eq!(delta.node.unwrap().host_firewall, host_firewall);
        view.decide(ip("192.0.2.1"), ip("172.18.0.11"), FLOW).ingress.is_some()
    };
    assert!(with(true));
    assert!(!with(false));
}

#[test]
fn node_labels_follow_the_node_under_one_number() {
    let mut view = small_cluster();
    let number = identity_of(&view, "172.18.0.12");
    assert_eq!(labels_of(&view, "172.18.0.12"), "node:zone=node2,reserved:remote-node");
    assert_eq!(labels_of(&view, "fd00:18::11"), "node:zone=node1,reserved:host");
    let changed =
        Node { name: "node2".into(), labels: kube(&[("gpu", "yes")]), addresses: vec![ip("172.18.0.12")] };
    view.apply(vec![upsert(Object::Node(changed))]).unwrap();
    assert_eq!(identity_of(&view, "172.18.0.12"), number);
    assert_eq!(labels_of(&view, "172.18.0.12"), "node:gpu=yes,reserved:remote-node");
    view.apply(vec![delete(Kind::Node, "", "node2"), delete(Kind::Node, "", LOCAL)]).unwrap();
    assert_eq!(identity_of(&view, "172.18.0.12"), Identity::WORLD_IPV4);
    assert_eq!(view.engine().identity(Identity::HOST).unwrap().labels.to_string(), "reserved:host");
}

#[test]
fn a_gateway_address_has_its_fixed_identity() {
    let fixed = ip("10.244.1.250");
    let options = ViewOptions { fixed_addresses: [(fixed, Identity::INGRESS)].into(), ..options() };
    let mut view = View::new(options, allocator());
    view.apply(cluster_objects()).unwrap();
    let resolved = view.resolve(fixed);
    assert_eq!((resolved.identity, resolved.kind), (Identity::INGRESS, AddressKind::Node));
}
