//! One test for each sentence of the policy semantics that the engine decides.

use std::sync::Arc;

use super::support::*;
use crate::model::{Direction, Family, Identity, IdentityKind, IdentityRecord, PortRange, Protocol};
use crate::policy::decision::{Because, Outcome};
use crate::policy::engine::{AllowLocalhost, CidrMatch, Enforcement, EngineOptions, Missed, PeerView};
use crate::policy::l7::{DnsPattern, HttpRule, L7Rules};
use crate::policy::map_state::{PortClass, Proxy};
use crate::policy::rule::{Action, Entity, Peer, Peers, PortMatch, Rule, Spec, Subject, Tier};
use crate::policy::selector::{LabelSelector, Operator};

fn one(rule: Rule) -> Vec<Arc<crate::policy::rule::Policy>> {
    vec![policy("p", vec![spec(vec![rule])])]
}

fn client() -> Peers {
    Peers::OneOf(vec![pods(&["app=client"])])
}

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
fn a_wide_cidr_deny_beats_a_narrow_allow() {
    let cidr = |text| Peers::OneOf(vec![Peer::Cidr(cidr_set(text, &[]))]);
    for (wide, narrow) in [("10.0.0.0/8", "10.1.0.0/16"), ("2001:db8::/32", "2001:db8:1::/48")] {
        let mut engine = with(vec![policy(
            "p",
            vec![spec(vec![
                egress(Action::Deny, cidr(wide), &[]),
                egress(Action::Allow, cidr(narrow), &[tcp(443, 443)]),
            ])],
        )]);
        let record = cidr_identity(0, Some(narrow), &[]);
        let id = record.id;
        engine.upsert_identity(record);
        engine.settle();
        assert_eq!(to(&engine, id, 443).outcome, Outcome::Deny);
    }
}

#[test]
fn an_exception_is_a_difference_and_not_a_hole() {
    let set = |cidr, except: &[&str]| Peers::OneOf(vec![Peer::Cidr(cidr_set(cidr, except))]);
    let mut engine = with(vec![
        policy("a", vec![spec(vec![egress(Action::Allow, set("10.0.0.0/8", &["10.5.0.0/16"]), &[])])]),
        policy("b", vec![spec(vec![egress(Action::Allow, set("10.5.7.0/24", &[]), &[])])]),
    ]);
    for (offset, prefix) in ["10.0.0.0/8", "10.5.0.0/16", "10.5.7.0/24"].into_iter().enumerate() {
        engine.upsert_identity(cidr_identity(offset as u32, Some(prefix), &[]));
    }
    engine.settle();
    let verdict = |offset| to(&engine, Identity(Identity::LOCAL_CIDR_MIN + offset), 80);
    assert_eq!(by(&verdict(0)), ["a"]);
    assert!(!allowed(&verdict(1)));
    assert_eq!(by(&verdict(2)), ["b"]);
}

#[test]
fn cidr_rules_do_not_select_pods_and_nodes_unless_the_mode_says_so() {
    let all = Peers::OneOf(vec![Peer::Cidr(cidr_set("0.0.0.0/0", &[]))]);
    let policies = one(ingress(Action::Allow, all, &[]));
    let options = EngineOptions { allow_localhost: AllowLocalhost::Policy, ..EngineOptions::default() };
    let engine = with_options(options.clone(), policies.clone());
    assert!(!allowed(&from(&engine, CLIENT, 80)));
    assert!(!allowed(&from(&engine, Identity::HOST, 80)));
    let engine = with_options(EngineOptions { cidr_match: CidrMatch::WorldAndNodes, ..options }, policies);
    assert!(!allowed(&from(&engine, CLIENT, 80)));
    assert!(allowed(&from(&engine, Identity::HOST, 80)));
}

#[test]
fn address_rules_match_classes_beside_any_identity() {
    let block = Peers::OneOf(vec![Peer::Address(cidr_set("10.1.7.0/24", &["10.1.7.9/32"]))]);
    let mut engine = with(one(egress(Action::Allow, block, &[tcp(80, 80)])));
    engine.upsert_identity(address_class(0, "10.1.7.0/24"));
    engine.upsert_identity(address_class(1, "10.1.7.9/32"));
    engine.settle();
    let class = |offset| Some(Identity(Identity::ADDRESS_CLASS_MIN + offset));
    for identity in [CLIENT, Identity::HOST, Identity::WORLD] {
        assert!(allowed(&to(&engine, PeerView { identity, address_class: class(0) }, 80)));
        assert!(!allowed(&to(&engine, PeerView { identity, address_class: class(1) }, 80)));
        assert!(!allowed(&to(&engine, PeerView { identity, address_class: None }, 80)));
    }
    assert!(engine.info(SERVER).unwrap().egress.address_classes);
}

#[test]
fn a_peer_without_identity_is_denied_where_policy_applies() {
    let engine = with(one(ingress(Action::Allow, Peers::Any, &[])));
    assert!(allowed(&from(&engine, CLIENT, 80)));
    assert!(!allowed(&from(&engine, Identity::UNKNOWN, 80)));
    assert!(allowed(&to(&engine, Identity::UNKNOWN, 80)));
}

#[test]
fn any_peer_and_no_peer_are_not_confused() {
    let engine = with(one(ingress(Action::Allow, Peers::OneOf(vec![]), &[])));
    assert!(!allowed(&from(&engine, CLIENT, 80)));
    let engine = with(one(ingress(Action::Allow, Peers::Any, &[])));
    assert!(allowed(&from(&engine, CLIENT, 80)));
    let ids: Vec<_> = engine.entries(SERVER).iter().map(|view| view.key.identity).collect();
    assert_eq!(ids, [Identity::UNKNOWN, Identity::HOST], "every peer is one entry, besides localhost");
}

#[test]
fn an_empty_pod_selector_is_every_pod_and_nothing_else() {
    let every_pod = Peers::OneOf(vec![Peer::Pods(LabelSelector::default())]);
    let negative = LabelSelector::new(vec![requirement("app", Operator::DoesNotExist)]);
    for peers in [every_pod, Peers::OneOf(vec![Peer::Pods(negative)])] {
        let mut engine = with(one(egress(Action::Allow, peers.clone(), &[])));
        engine.upsert_identity(pod(Identity(2000), &["k8s:tier=db"]));
        let cidr = cidr_identity(0, Some("10.0.0.0/8"), &[]);
        let unlabelled = IdentityRecord { labels: labels(&[]), ..cidr_identity(1, Some("11.0.0.0/8"), &[]) };
        let outside = [Identity::WORLD, Identity::HOST, Identity::INIT, cidr.id, unlabelled.id];
        engine.upsert_identity(cidr);
        engine.upsert_identity(unlabelled);
        engine.upsert_identity(address_class(0, "10.0.0.0/8"));
        engine.settle();
        assert!(allowed(&to(&engine, Identity(2000), 80)), "{peers:?}");
        for id in outside {
            assert!(!allowed(&to(&engine, id, 80)), "{id} {peers:?}");
        }
        assert!(!engine.info(SERVER).unwrap().egress.address_classes);
    }
}

#[test]
fn a_selector_that_names_a_reserved_key_selects_it() {
    let peers = Peers::OneOf(vec![pods(&["reserved:health="])]);
    let engine = with(one(egress(Action::Allow, peers, &[])));
    assert!(allowed(&to(&engine, Identity::HEALTH, 80)));
    assert!(!allowed(&to(&engine, Identity::INIT, 80)));
}

#[test]
fn entities_are_what_their_names_say() {
    let remote = node(Identity(Identity::REMOTE_NODE_MIN), "remote-node", &[], &["172.18.0.2"]);
    let api = IdentityRecord {
        labels: labels(&["reserved:kube-apiserver", "reserved:world"]),
        ..cidr_identity(7, Some("198.51.100.250/32"), &[])
    };
    let v6 = cidr_identity(8, Some("2001:db8::/32"), &[]);
    let peers: Vec<(&str, Identity)> = vec![
        ("pod", CLIENT),
        ("host", Identity::HOST),
        ("remote", remote.id),
        ("init", Identity::INIT),
        ("health", Identity::HEALTH),
        ("world", Identity::WORLD),
        ("world4", Identity::WORLD_IPV4),
        ("api", api.id),
        ("v6", v6.id),
    ];
    for (name, expected) in [
        (Entity::All, vec!["pod", "host", "remote", "init", "health", "world", "world4", "api", "v6"]),
        (Entity::None, vec![]),
        (Entity::World, vec!["world", "world4", "api", "v6"]),
        (Entity::WorldIpv4, vec!["world4", "api"]),
        (Entity::WorldIpv6, vec!["v6"]),
        (Entity::Cluster, vec!["pod", "host", "remote", "init", "health"]),
        (Entity::Host, vec!["host"]),
        (Entity::RemoteNode, vec!["remote"]),
        (Entity::KubeApiserver, vec!["api"]),
        (Entity::Ingress, vec![]),
        (Entity::Health, vec!["health"]),
        (Entity::Init, vec!["init"]),
        (Entity::Unmanaged, vec![]),
    ] {
        let mut engine = with(one(egress(Action::Allow, entity(name), &[])));
        for record in [&remote, &api, &v6] {
            engine.upsert_identity(record.clone());
        }
        engine.settle();
        let found: Vec<&str> =
            peers.iter().filter(|(_, id)| allowed(&to(&engine, *id, 80))).map(|(name, _)| *name).collect();
        assert_eq!(found, expected, "{name:?}");
    }
}

#[test]
fn a_node_that_runs_the_api_server_is_both() {
    let mut record = node(Identity(Identity::REMOTE_NODE_MIN), "remote-node", &[], &["172.18.0.2"]);
    record.labels = labels(&["reserved:remote-node", "reserved:kube-apiserver"]);
    for name in [Entity::KubeApiserver, Entity::RemoteNode, Entity::Cluster] {
        let mut engine = with(one(egress(Action::Allow, entity(name), &[])));
        engine.upsert_identity(record.clone());
        engine.settle();
        assert!(allowed(&to(&engine, record.id, 6443)));
    }
}

#[test]
fn learned_names_match_by_the_text_of_the_pattern() {
    let peers = Peers::OneOf(vec![Peer::Fqdn(DnsPattern::Name("api.stripe.com".into()))]);
    let mut engine = with(one(egress(Action::Allow, peers, &[tcp(443, 443)])));
    let learned = cidr_identity(0, None, &["api.stripe.com", "*.stripe.com"]);
    let another = cidr_identity(1, None, &["*.stripe.com"]);
    engine.upsert_identity(learned.clone());
    engine.upsert_identity(another.clone());
    engine.settle();
    assert!(allowed(&to(&engine, learned.id, 443)));
    assert!(!allowed(&to(&engine, another.id, 443)));
    engine.remove_identity(learned.id);
    engine.settle();
    assert!(!allowed(&to(&engine, learned.id, 443)));
}

#[test]
fn node_selectors_match_the_labels_of_nodes_alone() {
    let peers = Peers::OneOf(vec![Peer::Nodes(selector(&["role=worker"]))]);
    let mut engine = with(one(egress(Action::Allow, peers, &[])));
    let worker = node(Identity(Identity::REMOTE_NODE_MIN), "remote-node", &["role=worker"], &[]);
    let master = node(Identity(Identity::REMOTE_NODE_MIN + 1), "remote-node", &["role=master"], &[]);
    engine.upsert_identity(worker.clone());
    engine.upsert_identity(master.clone());
    engine.upsert_identity(pod(Identity(2000), &["k8s:role=worker"]));
    engine.settle();
    assert!(allowed(&to(&engine, worker.id, 80)));
    assert!(allowed(&to(&engine, Identity::HOST, 80)));
    assert!(!allowed(&to(&engine, master.id, 80)));
    assert!(!allowed(&to(&engine, Identity(2000), 80)));
}

#[test]
fn node_selectors_govern_the_host_and_pod_selectors_never_do() {
    let host_spec = Spec {
        subject: Subject::Nodes(selector(&["role=worker"])),
        ..spec(vec![ingress(Action::Allow, client(), &[tcp(22, 22)])])
    };
    let every_pod = Spec {
        subject: Subject::Pods(Some(LabelSelector::default())),
        ..spec(vec![egress(Action::Deny, Peers::Any, &[])])
    };
    let admin = Spec {
        subject: Subject::Pods(Some(LabelSelector::default())),
        ..tiered(Tier::Admin { priority: 0 }, vec![ingress(Action::Deny, Peers::Any, &[])])
    };
    let mut engine = with(vec![
        policy("host", vec![host_spec]),
        policy("pods", vec![every_pod]),
        policy("admin", vec![admin]),
    ]);
    engine.add_subject(Identity::HOST);
    engine.settle();
    let host = |direction, peer: Identity, port| {
        engine.decide(Identity::HOST, direction, peer.into(), flow(Protocol::Tcp, port))
    };
    assert_eq!(by(&host(Direction::Ingress, CLIENT, 22)), ["host"]);
    assert!(!allowed(&host(Direction::Ingress, OTHER, 22)));
    assert!(allowed(&host(Direction::Egress, OTHER, 22)));
    assert!(engine.entries(Identity::HOST).iter().all(|view| view.entry.admin.is_none()));
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

fn admin(name: &str, priority: u16, rules: Vec<Rule>) -> Arc<crate::policy::rule::Policy> {
    policy(name, vec![tiered(Tier::Admin { priority }, rules)])
}

#[test]
fn admin_ends_the_evaluation_and_pass_leaves_it_to_the_normal_tier() {
    let engine = with(vec![
        admin("accept", 10, vec![ingress(Action::Allow, client(), &[tcp(80, 80)])]),
        admin("pass", 20, vec![ingress(Action::Pass, client(), &[tcp(81, 81)])]),
        admin("deny", 30, vec![ingress(Action::Deny, client(), &[])]),
        policy(
            "normal",
            vec![spec(vec![
                ingress(Action::Deny, client(), &[tcp(80, 80)]),
                ingress(Action::Allow, client(), &[tcp(81, 82)]),
            ])],
        ),
    ]);
    assert_eq!(by(&from(&engine, CLIENT, 80)), ["accept"]);
    assert_eq!(by(&from(&engine, CLIENT, 81)), ["normal"]);
    assert!(allowed(&from(&engine, CLIENT, 81)));
    assert_eq!(by(&from(&engine, CLIENT, 82)), ["deny"]);
}

#[test]
fn lower_priority_numbers_go_first_then_names_then_the_order_of_rules() {
    let deny = || vec![ingress(Action::Deny, client(), &[])];
    let allow = || vec![ingress(Action::Allow, client(), &[])];
    for (low, high) in [(0, 1), (999, 1000), (0, u16::MAX), (u16::MAX - 1, u16::MAX), (255, 256)] {
        let engine = with(vec![admin("z", low, allow()), admin("a", high, deny())]);
        assert_eq!(by(&from(&engine, CLIENT, 80)), ["z"], "{low} {high}");
        let engine = with(vec![admin("z", low, deny()), admin("a", high, allow())]);
        assert_eq!(by(&from(&engine, CLIENT, 80)), ["z"], "{low} {high}");
    }
    let engine = with(vec![admin("z", 5, deny()), admin("a", 5, allow())]);
    assert_eq!(by(&from(&engine, CLIENT, 80)), ["a"]);
    let engine = with(vec![admin("x", 5, [allow(), deny()].concat())]);
    assert!(allowed(&from(&engine, CLIENT, 80)));
    let engine = with(vec![admin("x", 5, [deny(), allow()].concat())]);
    assert!(!allowed(&from(&engine, CLIENT, 80)));
}

#[test]
fn order_holds_between_narrow_and_wide_cells() {
    let engine = with(vec![
        admin("first", 1, vec![ingress(Action::Allow, Peers::Any, &[])]),
        admin("second", 2, vec![ingress(Action::Deny, client(), &[tcp(80, 80)])]),
    ]);
    assert_eq!(by(&from(&engine, CLIENT, 80)), ["first"]);
}

#[test]
fn a_policy_that_arrives_at_the_same_priority_moves_the_others() {
    let mut engine = with(vec![admin("m", 5, vec![ingress(Action::Deny, client(), &[])])]);
    engine.upsert_policy(admin("a", 5, vec![ingress(Action::Allow, client(), &[tcp(80, 80)])]));
    engine.settle();
    assert_eq!(by(&from(&engine, CLIENT, 80)), ["a"]);
    engine.upsert_policy(admin("a", 6, vec![ingress(Action::Allow, client(), &[tcp(80, 80)])]));
    engine.settle();
    assert_eq!(by(&from(&engine, CLIENT, 80)), ["m"]);
}

fn baseline(name: &str, priority: u16, rules: Vec<Rule>) -> Arc<crate::policy::rule::Policy> {
    policy(name, vec![tiered(Tier::Baseline { priority }, rules)])
}

#[test]
fn baseline_applies_where_no_policy_turned_default_deny_on() {
    let mut engine = with(vec![baseline("base", 0, vec![ingress(Action::Deny, client(), &[])])]);
    assert_eq!(by(&from(&engine, CLIENT, 80)), ["base"]);
    assert_eq!(from(&engine, OTHER, 80).because, Because::NoPolicy);
    engine.upsert_policy(policy("knp", vec![spec(vec![ingress(Action::Allow, client(), &[tcp(80, 80)])])]));
    engine.settle();
    assert_eq!(by(&from(&engine, CLIENT, 80)), ["knp"]);
    assert_eq!(from(&engine, CLIENT, 81).because, Because::DefaultDeny(vec![object("knp")]));
    engine.remove_policy(&object("knp"));
    engine.settle();
    assert_eq!(by(&from(&engine, CLIENT, 80)), ["base"]);
}

#[test]
fn normal_rules_without_default_deny_stand_above_baseline() {
    let mut open = spec(vec![ingress(Action::Allow, client(), &[tcp(80, 80)])]);
    open.default_deny_ingress = false;
    for priority in [0, u16::MAX] {
        let base = baseline("base", priority, vec![ingress(Action::Deny, Peers::Any, &[])]);
        let engine = with(vec![policy("open", vec![open.clone()]), base]);
        assert_eq!(by(&from(&engine, CLIENT, 80)), ["open"]);
        assert_eq!(by(&from(&engine, CLIENT, 81)), ["base"]);
    }
}

#[test]
fn mode_always_denies_by_default_after_baseline() {
    let options = EngineOptions { enforcement: Enforcement::Always, ..EngineOptions::default() };
    let engine =
        with_options(options, vec![baseline("base", 0, vec![ingress(Action::Allow, client(), &[])])]);
    assert_eq!(by(&from(&engine, CLIENT, 80)), ["base"]);
    assert_eq!(from(&engine, OTHER, 80).because, Because::DefaultDeny(vec![]));
    assert!(!allowed(&to(&engine, CLIENT, 80)));
    assert_eq!(from(&engine, Identity::HOST, 80).because, Because::AllowLocalhost);
}

#[test]
fn mode_never_allows_everything() {
    let options = EngineOptions { enforcement: Enforcement::Never, ..EngineOptions::default() };
    let engine = with_options(options, one(ingress(Action::Deny, Peers::Any, &[])));
    assert_eq!(from(&engine, CLIENT, 80).because, Because::NoPolicy);
    assert_eq!(engine.entries(SERVER), []);
}

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

fn with_l7(rule: Rule, l7: L7Rules) -> Rule {
    Rule { l7: Some(Arc::new(l7)), ..rule }
}

fn http() -> L7Rules {
    L7Rules::Http(vec![HttpRule { method: Some("GET".into()), ..HttpRule::default() }])
}

#[test]
fn rules_with_l7_redirect_and_a_plain_allow_lifts_them_but_not_the_proxy() {
    let narrow =
        policy("l7", vec![spec(vec![with_l7(ingress(Action::Allow, client(), &[tcp(80, 80)]), http())])]);
    let mut engine = with(vec![narrow]);
    assert_eq!(from(&engine, CLIENT, 80).outcome, Outcome::Redirect(Proxy::Http));
    let l7 = engine.l7(SERVER, Direction::Ingress, CLIENT.into(), flow(Protocol::Tcp, 80));
    assert!(l7.refuses_requests() && l7.rules.len() == 1 && l7.rules[0].1.is_some());
    engine
        .upsert_policy(policy("plain", vec![spec(vec![ingress(Action::Allow, Peers::Any, &[tcp(1, 100)])])]));
    engine.settle();
    assert_eq!(from(&engine, CLIENT, 80).outcome, Outcome::Redirect(Proxy::Http));
    let l7 = engine.l7(SERVER, Direction::Ingress, CLIENT.into(), flow(Protocol::Tcp, 80));
    assert!(!l7.refuses_requests() && l7.rules.len() == 2);
    assert!(l7.refuses_server_names());
}

#[test]
fn deny_and_admin_accept_end_the_evaluation_before_l7() {
    let l7 =
        policy("l7", vec![spec(vec![with_l7(ingress(Action::Allow, client(), &[tcp(80, 80)]), http())])]);
    let deny = policy("deny", vec![spec(vec![ingress(Action::Deny, client(), &[])])]);
    let engine = with(vec![l7.clone(), deny]);
    assert_eq!(from(&engine, CLIENT, 80).outcome, Outcome::Deny);
    let engine = with(vec![l7, admin("a", 1, vec![ingress(Action::Allow, client(), &[])])]);
    assert_eq!(from(&engine, CLIENT, 80).outcome, Outcome::Allow);
    let view = engine.l7(SERVER, Direction::Ingress, CLIENT.into(), flow(Protocol::Tcp, 80));
    assert_eq!(view.rules, []);
}

#[test]
fn cve_2024_52529_a_port_range_does_not_skip_l7() {
    let judged = |engine: &crate::policy::engine::Engine, port| {
        let l7 = engine.l7(SERVER, Direction::Ingress, CLIENT.into(), flow(Protocol::Tcp, port));
        (from(engine, CLIENT, port).outcome, l7.refuses_requests())
    };
    let enforced = (Outcome::Redirect(Proxy::Http), true);
    let range = with_l7(ingress(Action::Allow, client(), &[tcp(80, 90)]), http());
    let exact = with_l7(ingress(Action::Allow, client(), &[tcp(85, 85)]), http());
    // For others, or for other ports: none of these is about the client on port 85.
    let beside = [
        ingress(Action::Allow, Peers::OneOf(vec![pods(&["app=other"])]), &[tcp(1, 100)]),
        ingress(Action::Allow, client(), &[tcp(86, 65535)]),
    ];
    for l7 in [vec![range.clone()], vec![exact.clone()], vec![range.clone(), exact.clone()]] {
        let engine = with(vec![policy("l7", vec![spec(l7)]), policy("beside", vec![spec(beside.to_vec())])]);
        assert_eq!(judged(&engine, 85), enforced);
        let (outcome, refuses) = judged(&engine, 86);
        assert!(outcome == Outcome::Allow || !refuses, "a plain allow for the same peer and port");
    }
    let engine = with(vec![policy("l7", vec![spec(vec![range])])]);
    for port in [80, 81, 89, 90] {
        assert_eq!(judged(&engine, port), enforced, "{port}");
    }
    assert_eq!(judged(&engine, 91).0, Outcome::Deny);
}

#[test]
fn cve_2023_30851_merged_rules_of_one_port_are_each_asked() {
    let rule = |method: &str| {
        let l7 = L7Rules::Http(vec![HttpRule { method: Some(method.into()), ..HttpRule::default() }]);
        with_l7(ingress(Action::Allow, client(), &[tcp(80, 80)]), l7)
    };
    let engine = with(vec![
        policy("a", vec![spec(vec![rule("GET")])]),
        policy("b", vec![spec(vec![rule("PUT"), rule("HEAD")])]),
    ]);
    let l7 = engine.l7(SERVER, Direction::Ingress, CLIENT.into(), flow(Protocol::Tcp, 80));
    assert!(l7.refuses_requests());
    let methods: Vec<_> = l7
        .rules
        .iter()
        .map(|(_, l7)| match l7.as_deref() {
            Some(L7Rules::Http(rules)) => rules[0].method.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(methods, [Some("GET".into()), Some("PUT".into()), Some("HEAD".into())]);
}

#[test]
fn l7_rules_refuse_nothing_while_default_deny_is_off() {
    let mut open = spec(vec![with_l7(ingress(Action::Allow, client(), &[tcp(80, 80)]), http())]);
    open.default_deny_ingress = false;
    let engine = with(vec![policy("open", vec![open])]);
    let l7 = engine.l7(SERVER, Direction::Ingress, CLIENT.into(), flow(Protocol::Tcp, 80));
    assert_eq!(l7.outcome, Outcome::Redirect(Proxy::Http));
    assert!(!l7.refuses_requests() && !l7.refuses_server_names());
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

#[test]
fn an_absent_subject_selector_selects_nothing() {
    let nobody = Spec { subject: Subject::Pods(None), ..spec(vec![ingress(Action::Deny, Peers::Any, &[])]) };
    let engine = with(vec![policy("p", vec![nobody])]);
    assert_eq!(from(&engine, CLIENT, 80).because, Because::NoPolicy);
}

#[test]
fn a_pod_that_pretends_to_be_a_node_kind_is_still_a_pod() {
    let mut engine = with(one(egress(Action::Allow, entity(Entity::Cluster), &[])));
    let record = IdentityRecord {
        id: Identity(3000),
        labels: labels(&["k8s:reserved=host"]),
        kind: IdentityKind::Labels,
    };
    engine.upsert_identity(record);
    engine.settle();
    assert!(allowed(&to(&engine, Identity(3000), 80)));
}
