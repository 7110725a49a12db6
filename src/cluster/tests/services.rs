//! Services in the tables of the datapath and in rules.

use super::*;
use crate::policy::rule::ServiceRef;

const WEB: &[(&str, &str)] = &[("app", "web")];

fn backends(view: &View, address: &str) -> Vec<String> {
    let entry = view.translate(ip(address), 80, Protocol::Tcp).unwrap();
    entry.backends.iter().map(|backend| format!("{}:{}", backend.address, backend.port)).collect()
}

fn named(name: &str) -> Peer {
    Peer::Service(ServiceRef::Name { namespace: Some("b".into()), name: name.into() })
}

#[test]
fn backends_follow_pods_labels_and_nodes() {
    let mut view = small_cluster();
    let mut host = a_pod("b/host", "node2", &[], WEB);
    host.host_network = true;
    view.apply(vec![
        service("b/web", "10.96.0.1", Some(WEB)),
        pod("b/one", LOCAL, &["10.244.1.1", "fd00:244::1"], WEB),
        pod("b/other", LOCAL, &["10.244.1.2"], &[]),
        pod("a/elsewhere", LOCAL, &["10.244.1.3"], WEB),
        upsert(Object::Pod(host)),
    ])
    .unwrap();
    assert_eq!(backends(&view, "10.96.0.1"), ["10.244.1.1:8080", "172.18.0.12:8080"]);
    view.apply(vec![node("node2", &["172.18.0.99"]), pod("b/other", LOCAL, &["10.244.1.2"], WEB)]).unwrap();
    assert_eq!(backends(&view, "10.96.0.1"), ["10.244.1.1:8080", "10.244.1.2:8080", "172.18.0.99:8080"]);
    let delta =
        view.apply(vec![pod("b/one", LOCAL, &["10.244.1.1"], &[]), delete(Kind::Pod, "b", "other")]).unwrap();
    assert_eq!(delta.services.len(), 1);
    assert_eq!(backends(&view, "10.96.0.1"), ["172.18.0.99:8080"]);
    view.apply(vec![delete(Kind::Pod, "b", "host")]).unwrap();
    assert!(backends(&view, "10.96.0.1").is_empty(), "an entry without backends rejects");
    view.apply(vec![delete(Kind::Service, "b", "web")]).unwrap();
    assert!(view.translate(ip("10.96.0.1"), 80, Protocol::Tcp).is_none());
}

#[test]
fn slices_replace_pods_and_come_in_any_order() {
    let mut view = small_cluster();
    view.apply(vec![slice("b/web-1", "web", &["192.0.2.1"]), pod("b/one", LOCAL, &["10.244.1.1"], WEB)])
        .unwrap();
    view.apply(vec![service("b/web", "10.96.0.1", Some(WEB))]).unwrap();
    assert_eq!(backends(&view, "10.96.0.1"), ["192.0.2.1:8080"]);
    view.apply(vec![delete(Kind::EndpointSlice, "b", "web-1")]).unwrap();
    assert_eq!(backends(&view, "10.96.0.1"), ["10.244.1.1:8080"]);
}

#[test]
fn a_cluster_ip_moves_in_one_transaction_and_is_never_shared() {
    let mut view = small_cluster();
    view.apply(vec![service("b/web", "10.96.0.1", None)]).unwrap();
    let errors = view.apply(vec![service("a/thief", "10.96.0.1", None)]).unwrap_err();
    assert_eq!(
        errors[0].to_string(),
        "Service a/thief: ClusterIP 10.96.0.1 is already that of Service b/web"
    );
    let delta =
        view.apply(vec![service("a/heir", "10.96.0.1", None), delete(Kind::Service, "b", "web")]).unwrap();
    assert_eq!(delta.services.len(), 1);
    assert_eq!(view.translate(ip("10.96.0.1"), 80, Protocol::Tcp).unwrap().service, "a/heir");
}

#[test]
fn a_rule_on_a_service_means_its_pods_or_its_addresses() {
    let mut view = small_cluster();
    view.apply(vec![
        egress("pods", &[], vec![named("web")]),
        egress("addresses", &[], vec![named("legacy")]),
        egress(
            "labels",
            &[],
            vec![Peer::Service(ServiceRef::Labels {
                namespace: None,
                selector: selector(&[("tier", "data")]),
            })],
        ),
    ])
    .unwrap();
    assert!(["pods", "addresses", "labels"].iter().all(|name| peers_of(&view, name).is_empty()));
    view.apply(vec![
        service("b/web", "10.96.0.1", Some(WEB)),
        service("b/legacy", "10.96.0.2", None),
        slice("b/legacy-1", "legacy", &["192.0.2.33"]),
    ])
    .unwrap();
    let pods = Peer::Pods(selector(&[("k8s:app", "web"), ("k8s:io.kubernetes.pod.namespace", "b")]));
    let address = Peer::Cidr(cidr("192.0.2.33/32", &[]));
    assert_eq!(peers_of(&view, "pods"), [pods]);
    assert_eq!(peers_of(&view, "addresses"), [address]);
    assert_eq!(peers_of(&view, "labels").len(), 2);
    view.apply(vec![slice("b/legacy-1", "legacy", &["192.0.2.34"])]).unwrap();
    assert_eq!(peers_of(&view, "addresses"), [Peer::Cidr(cidr("192.0.2.34/32", &[]))]);
    view.apply(vec![delete(Kind::Service, "b", "web")]).unwrap();
    assert!(peers_of(&view, "pods").is_empty(), "none is not any (CVE-2025-64715)");
}

#[test]
fn an_empty_selector_of_a_service_means_no_pod() {
    let mut view = small_cluster();
    view.apply(vec![service("b/web", "10.96.0.1", Some(&[])), egress("p", &[], vec![named("web")])]).unwrap();
    assert!(peers_of(&view, "p").is_empty());
}

#[test]
fn a_local_service_has_the_backends_of_this_node_only() {
    let mut view = small_cluster();
    let mut host = a_pod("b/host", LOCAL, &[], WEB);
    host.host_network = true;
    let mut local = a_service("b/web", "10.96.0.1", Some(WEB));
    local.internal_traffic = InternalTraffic::Local;
    view.apply(vec![
        upsert(Object::Service(local)),
        pod("b/here", LOCAL, &["10.244.1.1"], WEB),
        pod("b/there", "node2", &["10.244.2.1"], WEB),
    ])
    .unwrap();
    assert_eq!(backends(&view, "10.96.0.1"), ["10.244.1.1:8080"]);
    view.apply(vec![upsert(Object::Pod(host)), delete(Kind::Pod, "b", "here")]).unwrap();
    assert_eq!(backends(&view, "10.96.0.1"), ["172.18.0.11:8080"]);
    view.apply(vec![delete(Kind::Pod, "b", "host")]).unwrap();
    assert!(backends(&view, "10.96.0.1").is_empty(), "the backend of another node is none");
}
