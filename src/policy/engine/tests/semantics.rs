//! What a verdict is made of: allow, deny, default deny, and the reasons given. One test for each sentence of the policy
//! semantics that the engine decides, here and in the files beside.

use super::support::*;
use crate::model::{Direction, Identity, Protocol};
use crate::policy::decision::{Because, Outcome};
use crate::policy::engine::{AllowLocalhost, Enforcement, EngineOptions, Missed};
use crate::policy::rule::{Action, Entity, Peers, PortMatch, Tier};

#[test]
fn without_a_policy_everything_passes() {
    let engine = with(vec![]);
    assert_eq!(from(&engine, CLIENT, 80).because, Because::NoPolicy);
    assert!(allowed(&to(&engine, Identity::WORLD, 443)));
}

#[test]
fn a_subject_that_is_not_known_is_denied() {
    let mut engine = with(vec![]);
    let stranger = Identity(4000);
    let verdict = |engine: &crate::policy::engine::Engine| {
        engine.decide(stranger, Direction::Egress, CLIENT.into(), flow(Protocol::Tcp, 80)).outcome
    };
    assert_eq!(verdict(&engine), Outcome::Deny);
    engine.add_subject(stranger);
    engine.settle();
    assert_eq!(verdict(&engine), Outcome::Deny);
    engine.upsert_identity(pod(stranger, &["k8s:app=new"]));
    engine.settle();
    assert_eq!(verdict(&engine), Outcome::Allow);
}

#[test]
fn an_allow_admits_its_peers_and_ports_and_nothing_else() {
    let engine = with(one(ingress(Action::Allow, client(), &[tcp(80, 80)])));
    assert_eq!(by(&from(&engine, CLIENT, 80)), ["p"]);
    assert_eq!(from(&engine, CLIENT, 81).because, Because::DefaultDeny(vec![object("p")]));
    assert!(!allowed(&from(&engine, OTHER, 80)));
    assert!(!allowed(&from(&engine, Identity::WORLD, 80)));
    assert!(allowed(&to(&engine, CLIENT, 80)), "the other direction is not governed");
}

#[test]
fn a_policy_with_only_deny_rules_turns_default_deny_on() {
    let engine = with(one(ingress(Action::Deny, client(), &[])));
    assert_eq!(by(&from(&engine, CLIENT, 80)), ["p"]);
    assert_eq!(from(&engine, OTHER, 80).because, Because::DefaultDeny(vec![object("p")]));
}

#[test]
fn a_policy_without_default_deny_allows_and_denies_without_isolating() {
    let mut open = spec(vec![ingress(Action::Deny, Peers::Any, &[tcp(22, 22)])]);
    open.default_deny_ingress = false;
    let engine = with(vec![policy("open", vec![open])]);
    assert_eq!(by(&from(&engine, CLIENT, 22)), ["open"]);
    assert_eq!(from(&engine, CLIENT, 80).because, Because::NoPolicy);
}

#[test]
fn deny_wins_in_whatever_object_and_at_whatever_layer() {
    let allow = policy("allow", vec![spec(vec![ingress(Action::Allow, client(), &[])])]);
    for (peers, ports) in [
        (client(), vec![]),
        (client(), vec![tcp(80, 80)]),
        (client(), vec![tcp(1, 1000)]),
        (client(), vec![PortMatch::Protocol(Protocol::Tcp)]),
        (Peers::Any, vec![]),
        (Peers::Any, vec![tcp(80, 80)]),
        (Peers::Any, vec![tcp(79, 81)]),
        (Peers::Any, vec![PortMatch::Protocol(Protocol::Tcp)]),
        (entity(Entity::Cluster), vec![]),
    ] {
        let deny = policy("deny", vec![spec(vec![ingress(Action::Deny, peers.clone(), &ports)])]);
        let engine = with(vec![allow.clone(), deny]);
        assert_eq!(by(&from(&engine, CLIENT, 80)), ["deny"], "{peers:?} {ports:?}");
    }
}

#[test]
fn a_peer_without_identity_is_denied_where_policy_applies() {
    let engine = with(one(ingress(Action::Allow, Peers::Any, &[])));
    assert!(allowed(&from(&engine, CLIENT, 80)));
    assert!(!allowed(&from(&engine, Identity::UNKNOWN, 80)));
    assert!(allowed(&to(&engine, Identity::UNKNOWN, 80)));
}

#[test]
fn the_node_reaches_its_own_pods_unless_policy_is_asked() {
    let policies = vec![
        policy("p", vec![spec(vec![ingress(Action::Deny, Peers::Any, &[])])]),
        policy("a", vec![tiered(Tier::Admin { priority: 0 }, vec![ingress(Action::Deny, Peers::Any, &[])])]),
    ];
    let engine = with(policies.clone());
    assert_eq!(from(&engine, Identity::HOST, 80).because, Because::AllowLocalhost);
    assert_eq!(by(&from(&engine, CLIENT, 80)), ["a"]);
    let options = EngineOptions { allow_localhost: AllowLocalhost::Policy, ..EngineOptions::default() };
    assert_eq!(by(&from(&with_options(options, policies), Identity::HOST, 80)), ["a"]);
    let egress_only = with(one(egress(Action::Deny, Peers::Any, &[])));
    assert!(!allowed(&to(&egress_only, Identity::HOST, 80)), "egress to the node is not exempt");
    assert_eq!(from(&egress_only, CLIENT, 80).because, Because::NoPolicy);
}

#[test]
fn the_node_reaches_its_own_pods_for_the_same_reason_with_and_without_a_policy() {
    let options = |allow_localhost| EngineOptions { allow_localhost, ..EngineOptions::default() };
    let because = |engine: &crate::policy::engine::Engine| from(engine, Identity::HOST, 80).because;
    assert_eq!(because(&with(vec![])), Because::AllowLocalhost);
    assert_eq!(because(&with(one(egress(Action::Deny, Peers::Any, &[])))), Because::AllowLocalhost);
    assert_eq!(because(&with_options(options(AllowLocalhost::Policy), vec![])), Because::NoPolicy);
    let never = EngineOptions { enforcement: Enforcement::Never, ..EngineOptions::default() };
    assert_eq!(because(&with_options(never, vec![])), Because::AllowLocalhost);
    assert_eq!(to(&with(vec![]), Identity::HOST, 80).because, Because::NoPolicy, "egress is not exempt");
}

#[test]
fn an_entry_names_every_rule_that_made_it() {
    let rule = || ingress(Action::Allow, client(), &[tcp(80, 80)]);
    let engine =
        with(vec![policy("a", vec![spec(vec![rule()])]), policy("b", vec![spec(vec![rule(), rule()])])]);
    assert_eq!(by(&from(&engine, CLIENT, 80)), ["a", "b", "b"]);
}

#[test]
fn explanations_name_what_matched_and_what_came_closest() {
    let engine = with(vec![
        policy("peer", vec![spec(vec![ingress(Action::Allow, client(), &[tcp(80, 80)])])]),
        policy("deny", vec![spec(vec![ingress(Action::Deny, client(), &[tcp(80, 80)])])]),
    ]);
    let explain = |peer: Identity, protocol, port| {
        engine.explain(SERVER, Direction::Ingress, peer.into(), flow(protocol, port))
    };
    let overruled = explain(CLIENT, Protocol::Tcp, 80);
    let names: Vec<_> = overruled.matching.iter().map(|m| (&*m.rule.object.name, m.decided)).collect();
    assert_eq!(names, [("deny", true), ("peer", false)]);
    let missed = |peer, protocol, port| explain(peer, protocol, port).near_miss.unwrap().missed;
    assert_eq!(missed(CLIENT, Protocol::Tcp, 81), Missed::Port);
    assert_eq!(missed(CLIENT, Protocol::Udp, 80), Missed::Protocol);
    assert_eq!(missed(OTHER, Protocol::Tcp, 80), Missed::Peer);
    assert_eq!(missed(OTHER, Protocol::Tcp, 81), Missed::PeerAndPort);
    assert_eq!(explain(OTHER, Protocol::Tcp, 80).default_deny, [object("deny"), object("peer")]);
}
