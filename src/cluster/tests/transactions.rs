//! All or nothing.

use super::*;
use crate::fqdn::Learned;
use crate::policy::engine::EngineOptions;
use crate::policy::l7::DnsPattern;

fn app(name: &str) -> [(&str, &str); 1] {
    [("app", name)]
}

#[test]
fn an_address_has_one_owner() {
    let mut view = small_cluster();
    view.apply(vec![pod("a/one", LOCAL, &["10.244.1.1"], &[])]).unwrap();
    let before = state(&view);
    let errors =
        view.apply(vec![pod("a/two", LOCAL, &["10.244.1.1"], &[]), egress("p", &[], vec![])]).unwrap_err();
    assert_eq!(errors[0].to_string(), "Pod a/two: address 10.244.1.1 is already that of Pod a/one");
    assert_eq!(state(&view), before);
    let errors = view.apply(vec![node("node3", &["172.18.0.12"])]).unwrap_err();
    assert_eq!(errors[0].to_string(), "Node node3: address 172.18.0.12 is already that of Node node2");
    assert_eq!(state(&view), before);
}

#[test]
fn an_address_moves_to_another_pod_in_any_order_of_the_transaction() {
    for delete_first in [true, false] {
        let mut view = small_cluster();
        view.apply(vec![pod("a/one", LOCAL, &["10.244.1.1"], &app("one"))]).unwrap();
        let mut changes = vec![pod("a/two", "node2", &["10.244.1.1"], &app("two"))];
        changes.insert(usize::from(!delete_first), delete(Kind::Pod, "a", "one"));
        view.apply(changes).unwrap();
        assert!(labels_of(&view, "10.244.1.1").contains("k8s:app=two"));
        assert_eq!(view.endpoints().count(), 0);
    }
}

#[test]
fn running_out_of_identities_changes_nothing() {
    let allocator = MemoryAllocator::new(Duration::from_secs(600)).limited_to(Identity::CLUSTER_MIN + 1);
    let mut view = View::new(options(), Box::new(allocator));
    view.apply(cluster_objects()).unwrap();
    view.apply(vec![pod("a/one", LOCAL, &["10.244.1.1"], &app("one"))]).unwrap();
    let before = state(&view);
    let errors = view
        .apply(vec![
            delete(Kind::Pod, "a", "one"),
            namespace("a", &[("new", "label")]),
            pod("a/two", LOCAL, &["10.244.1.2"], &app("two")),
            pod("a/three", LOCAL, &["10.244.1.3"], &app("three")),
            egress("p", &[], vec![Peer::Cidr(cidr("10.0.0.0/8", &[]))]),
            service("a/web", "10.96.0.1", Some(&app("two"))),
        ])
        .unwrap_err();
    assert!(matches!(&errors[..], [ViewError::Identity { .. }]), "{errors:?}");
    assert_eq!(state(&view), before);
    assert!(labels_of(&view, "10.244.1.1").contains("app=one"));
    let delta = view.apply(vec![]).unwrap();
    assert!(delta.is_empty(), "nothing of the failure is left to be told: {delta:?}");
}

#[test]
fn what_does_not_fit_the_datapath_changes_nothing() {
    let engine = EngineOptions { max_entries: 3, ..EngineOptions::default() };
    let mut view = View::new(ViewOptions { engine, ..options() }, allocator());
    view.apply(cluster_objects()).unwrap();
    let prefixes = |n: u8| (0..n).map(|n| Peer::Cidr(cidr(&format!("192.0.{n}.0/24"), &[]))).collect();
    view.apply(vec![pod("a/one", LOCAL, &["10.244.1.1"], &[]), egress("p", &[], prefixes(2))]).unwrap();
    let before = state(&view);
    let errors = view
        .apply(vec![egress("p", &[], prefixes(9)), pod("a/two", LOCAL, &["10.244.1.2"], &app("two"))])
        .unwrap_err();
    assert!(matches!(&errors[..], [ViewError::Capacity(_)]), "{errors:?}");
    assert_eq!(state(&view), before);
    assert!(view.apply(vec![]).unwrap().is_empty());
    assert_eq!(identity_of(&view, "192.0.5.1"), Identity::WORLD_IPV4);
}

#[test]
fn an_answer_that_does_not_fit_is_not_learned() {
    // The rules themselves take two entries a pattern; answers that share an address need more.
    let engine = EngineOptions { max_entries: 15, ..EngineOptions::default() };
    let mut view = View::new(ViewOptions { engine, ..options() }, allocator());
    view.apply(cluster_objects()).unwrap();
    let patterns = ["a", "b", "c", "d", "e", "f"];
    let peers = patterns.map(|name| Peer::Fqdn(DnsPattern::Name(name.into()))).into();
    view.apply(vec![pod("a/one", LOCAL, &["10.244.1.1"], &[]), egress("p", &[], peers)]).unwrap();
    let shared = |n: u8| {
        let addresses = (0..6).filter(move |other| *other != n);
        addresses.map(move |other| {
            (IpAddr::from([192, 0, 2, n.min(other) * 8 + n.max(other)]), Duration::from_secs(10))
        })
    };
    let learned = patterns
        .iter()
        .enumerate()
        .filter(|(n, name)| {
            let addresses = shared(*n as u8).collect();
            !view.learn(Duration::ZERO, &Learned { name: (**name).into(), addresses }).is_empty()
        })
        .count();
    assert!(learned > 0 && learned < patterns.len(), "{learned} learned");
    assert_eq!(view.refused_answers() as usize, patterns.len() - learned);
    view.expire(Duration::from_secs(10));
    assert_eq!(identity_of(&view, "192.0.2.5"), Identity::WORLD_IPV4);
    let addresses = vec![(ip("192.0.2.5"), Duration::from_secs(10))];
    view.learn(Duration::from_secs(10), &Learned { name: "f".into(), addresses });
    assert_eq!(scope_of(&view, "192.0.2.5").unwrap().1, ["f"], "there is room again");
}

#[test]
fn the_first_delta_carries_the_world_even_after_a_refused_one() {
    let mut view = view();
    view.apply(vec![pod("a/one", LOCAL, &["10.244.1.1"], &[]), pod("a/two", LOCAL, &["10.244.1.1"], &[])])
        .unwrap_err();
    let mut delta = view.apply(vec![]).unwrap();
    delta.ipcache.sort_by_key(|(prefix, _)| *prefix);
    let mut full = view.full().ipcache;
    full.sort_by_key(|(prefix, _)| *prefix);
    assert_eq!(delta.ipcache, full);
    assert!(delta.ipcache.iter().any(|(prefix, _)| *prefix == net("0.0.0.0/0")));
    assert!(delta.node.is_some());
    assert_eq!(delta.revision, 1);
    let delta = view.apply(vec![]).unwrap();
    assert!(delta.is_empty());
    assert_eq!(delta.revision, 1, "nothing changed");
}

#[test]
fn the_last_change_of_an_object_in_a_transaction_counts() {
    let mut view = small_cluster();
    let before = state(&view);
    view.apply(vec![pod("a/one", LOCAL, &["10.244.1.1"], &[]), delete(Kind::Pod, "a", "one")]).unwrap();
    assert_eq!(state(&view), before);
    view.apply(vec![delete(Kind::Pod, "a", "never-was")]).unwrap();
    assert_eq!(state(&view), before);
}
