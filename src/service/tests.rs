//! Behaviour of Service resolution.

use super::*;
use crate::model::{ContainerPort, InternalTraffic, SliceEndpoint, SlicePort};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pod(name: &str, addresses: &[&str], http: u16) -> Pod {
    Pod {
        namespace: "s".into(),
        name: name.into(),
        labels: [("app".to_owned(), "web".to_owned())].into(),
        node: None,
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        host_network: false,
        service_account: "default".into(),
        controller: None,
        ports: vec![ContainerPort { name: Some("http".into()), port: http, protocol: Protocol::Tcp }],
    }
}

fn service() -> Service {
    Service {
        namespace: "s".into(),
        name: "web".into(),
        labels: Default::default(),
        cluster_ips: vec![ip("10.96.0.1"), ip("fd00:96::1")],
        headless: false,
        selector: Some([("app".to_owned(), "web".to_owned())].into()),
        ports: vec![ServicePort {
            name: Some("http".into()),
            port: 80,
            protocol: Protocol::Tcp,
            target: TargetPort::Name("http".into()),
        }],
        affinity_secs: None,
        internal_traffic: InternalTraffic::Cluster,
    }
}

fn slice(ready: bool) -> EndpointSlice {
    EndpointSlice {
        namespace: "s".into(),
        name: "web-1".into(),
        service: "web".into(),
        endpoints: vec![SliceEndpoint { addresses: vec![ip("192.0.2.1")], ready, node: None }],
        ports: vec![SlicePort { name: Some("http".into()), port: 8443, protocol: Protocol::Tcp }],
    }
}

fn run(service: &Service, slices: &[&EndpointSlice], pods: &[Pod]) -> Vec<(String, Vec<String>)> {
    resolve(service, slices, pods.iter().map(|pod| ReachablePod { pod, addresses: &pod.addresses }))
        .iter()
        .map(|resolved| {
            let backends = resolved.backends.iter().map(|b| format!("{} {}", b.address, b.port)).collect();
            (format!("{} {} {}", resolved.address, resolved.port, resolved.protocol), backends)
        })
        .collect()
}

#[test]
fn a_named_target_port_is_the_one_of_each_pod_and_families_do_not_mix() {
    let pods = [pod("a", &["10.0.0.1", "fd00::1"], 8080), pod("b", &["10.0.0.2"], 9090)];
    assert_eq!(
        run(&service(), &[], &pods),
        [
            ("10.96.0.1 80 TCP".to_owned(), vec!["10.0.0.1 8080".to_owned(), "10.0.0.2 9090".to_owned()]),
            ("fd00:96::1 80 TCP".to_owned(), vec!["fd00::1 8080".to_owned()]),
        ]
    );
}

#[test]
fn slices_win_over_pods_and_only_ready_endpoints_serve() {
    let pods = [pod("a", &["10.0.0.1"], 8080)];
    assert_eq!(run(&service(), &[&slice(true)], &pods)[0].1, ["192.0.2.1 8443"]);
    assert!(run(&service(), &[&slice(false)], &pods)[0].1.is_empty());
    assert_eq!(slice_addresses(&[&slice(false)]), [ip("192.0.2.1")].into());
}

#[test]
fn no_backend_is_an_entry_and_headless_is_none() {
    let mut service = service();
    assert_eq!(run(&service, &[], &[]).len(), 2);
    service.headless = true;
    assert!(run(&service, &[], &[]).is_empty());
}

#[test]
fn a_service_selects_only_in_its_namespace_and_never_with_an_empty_selector() {
    let mut other = pod("a", &["10.0.0.1"], 80);
    other.namespace = "t".into();
    assert!(!selects(&service(), &other));
    let empty = Service { selector: Some(Default::default()), ..service() };
    assert!(!selects(&empty, &pod("a", &[], 80)));
}
