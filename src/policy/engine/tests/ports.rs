//! Ports, names of ports, and protocols without them.

use super::support::*;
use crate::model::{Direction, Family, Identity, PortRange, Protocol};
use crate::policy::map_state::PortClass;
use crate::policy::rule::{Action, Peer, Peers, PortMatch};
use crate::policy::selector::LabelSelector;

#[test]
fn icmp_is_allowed_by_rules_without_ports_and_by_its_type() {
    let ping = |engine: &crate::policy::engine::Engine, kind| {
        allowed(&engine.decide(SERVER, Direction::Ingress, CLIENT.into(), flow(Protocol::Icmp, kind)))
    };
    assert!(ping(&with(one(ingress(Action::Allow, client(), &[]))), 8));
    let ports = [tcp(1, 65535), PortMatch::Protocol(Protocol::Udp)];
    assert!(!ping(&with(one(ingress(Action::Allow, client(), &ports))), 8));
    let engine = with(one(ingress(Action::Allow, client(), &[PortMatch::IcmpType(Family::IPv4, 8)])));
    assert!(ping(&engine, 8));
    assert!(!ping(&engine, 3));
    assert!(!allowed(&engine.decide(SERVER, Direction::Ingress, CLIENT.into(), flow(Protocol::Icmpv6, 8))));
}

#[test]
fn ranges_are_inclusive_and_meet_single_ports() {
    let engine = with(vec![
        policy("range", vec![spec(vec![ingress(Action::Allow, client(), &[tcp(8000, 8099)])])]),
        policy("deny", vec![spec(vec![ingress(Action::Deny, Peers::Any, &[tcp(8080, 8080)])])]),
        policy("last", vec![spec(vec![ingress(Action::Allow, client(), &[tcp(65000, 65535)])])]),
    ]);
    for (port, expected) in
        [(7999, false), (8000, true), (8079, true), (8080, false), (8099, true), (8100, false), (65535, true)]
    {
        assert_eq!(allowed(&from(&engine, CLIENT, port)), expected, "{port}");
    }
    assert_eq!(by(&from(&engine, CLIENT, 8080)), ["deny"]);
}

#[test]
fn single_ports_without_ranges_need_no_classes() {
    let engine = with(one(ingress(Action::Allow, client(), &[tcp(80, 80)])));
    assert!(!engine.info(SERVER).unwrap().ingress.ranges);
    assert!(engine.entries(SERVER).iter().any(|view| view.key.port == PortClass::Exact(80)));
}

fn named(name: &str) -> PortMatch {
    PortMatch::Named(Protocol::Tcp, name.into())
}

#[test]
fn port_names_at_ingress_are_the_subjects_own() {
    let engine = with(one(ingress(Action::Allow, Peers::Any, &[named("http")])));
    assert!(allowed(&from(&engine, CLIENT, 8080)));
    assert!(!allowed(&from(&engine, CLIENT, 80)));
    let ids: Vec<_> = engine.entries(SERVER).iter().map(|view| view.key.identity).collect();
    assert_eq!(ids, [Identity::UNKNOWN, Identity::HOST]);
}

#[test]
fn port_names_at_egress_are_each_peers() {
    for peers in [Peers::Any, Peers::OneOf(vec![Peer::Pods(LabelSelector::default())])] {
        let engine = with(one(egress(Action::Allow, peers, &[named("http")])));
        assert!(allowed(&to(&engine, CLIENT, 80)));
        assert!(allowed(&to(&engine, CLIENT, 81)));
        assert!(!allowed(&to(&engine, CLIENT, 8080)));
        assert!(allowed(&to(&engine, SERVER, 8080)));
        assert!(!allowed(&to(&engine, OTHER, 80)));
        assert!(!allowed(&to(&engine, Identity::WORLD, 80)));
    }
}

#[test]
fn a_rule_for_every_peer_with_names_and_numbers_is_both() {
    let engine = with(one(egress(Action::Allow, Peers::Any, &[named("http"), tcp(443, 443)])));
    assert!(allowed(&to(&engine, Identity::WORLD, 443)));
    assert!(allowed(&to(&engine, CLIENT, 443)));
    assert!(allowed(&to(&engine, CLIENT, 80)));
    assert!(!allowed(&to(&engine, OTHER, 80)));
    let keys: Vec<_> = engine.entries(SERVER).iter().map(|v| (v.key.identity, v.key.port)).collect();
    assert!(!keys.contains(&(CLIENT, PortClass::Exact(443))), "numbers are not repeated for each peer");
}

#[test]
fn port_names_meet_ranges_at_egress() {
    let mut engine = with(vec![policy(
        "p",
        vec![spec(vec![
            egress(Action::Deny, Peers::Any, &[named("http")]),
            egress(Action::Allow, Peers::Any, &[tcp(1, 9000)]),
        ])],
    )]);
    assert!(!allowed(&to(&engine, CLIENT, 80)));
    assert!(allowed(&to(&engine, OTHER, 80)));
    engine.upsert_identity(pod(OTHER, &["k8s:app=other", "k8s:io.sluice.named-port.http=7000.tcp"]));
    engine.settle();
    assert!(!allowed(&to(&engine, OTHER, 7000)));
    assert!(allowed(&to(&engine, OTHER, 80)));
    assert!(allowed(&to(&engine, CLIENT, 7000)));
}

#[test]
fn protocols_without_ports_match_by_protocol() {
    let engine = with(one(ingress(Action::Allow, client(), &[PortMatch::Protocol(Protocol::Vrrp)])));
    let verdict =
        |protocol| allowed(&engine.decide(SERVER, Direction::Ingress, CLIENT.into(), flow(protocol, 0)));
    assert!(verdict(Protocol::Vrrp));
    assert!(!verdict(Protocol::Igmp));
    assert!(!verdict(Protocol::Other(47)));
}

#[test]
fn sctp_is_a_protocol_of_its_own() {
    let range = PortRange::single(38412).unwrap();
    let engine = with(one(ingress(Action::Allow, client(), &[PortMatch::Range(Protocol::Sctp, range)])));
    let verdict =
        |protocol| allowed(&engine.decide(SERVER, Direction::Ingress, CLIENT.into(), flow(protocol, 38412)));
    assert!(verdict(Protocol::Sctp) && !verdict(Protocol::Tcp));
}
