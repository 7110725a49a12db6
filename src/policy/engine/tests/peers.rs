//! Whom a rule means: prefixes, addresses, selectors, entities, names, nodes.

use super::support::*;
use crate::model::{Direction, Identity, IdentityKind, IdentityRecord, Protocol};
use crate::policy::decision::{Because, Outcome};
use crate::policy::engine::{AllowLocalhost, CidrMatch, EngineOptions, PeerView};
use crate::policy::l7::DnsPattern;
use crate::policy::map_state::{Basis, SlotAction};
use crate::policy::rule::{Action, Entity, Peer, Peers, Rule, Spec, Subject, Tier};
use crate::policy::selector::{LabelSelector, Operator};

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

#[test]
fn a_slot_says_whether_a_rule_about_a_name_made_it() {
    let name = || Peers::OneOf(vec![Peer::Fqdn(DnsPattern::Name("a.example".into()))]);
    let prefix = || Peers::OneOf(vec![Peer::Cidr(cidr_set("192.0.2.0/24", &[]))]);
    let learned = cidr_identity(0, Some("192.0.2.0/24"), &["a.example"]);
    let basis = |rules: Vec<Rule>| {
        let mut engine = with(vec![policy("p", vec![spec(rules)])]);
        engine.upsert_identity(learned.clone());
        engine.settle();
        let entries = engine.entries(SERVER).into_iter();
        let slots =
            entries.filter(|view| view.key.identity == learned.id).filter_map(|view| view.entry.normal);
        slots.map(|slot| (slot.action, slot.basis)).collect::<Vec<_>>()
    };
    let egress = |action, peers| egress(action, peers, &[tcp(443, 443)]);
    let allow = |basis| vec![(SlotAction::Allow, basis)];
    assert_eq!(basis(vec![egress(Action::Allow, prefix())]), allow(Basis::Peer));
    assert_eq!(basis(vec![egress(Action::Allow, name())]), allow(Basis::Name));
    let both = vec![egress(Action::Allow, prefix()), egress(Action::Allow, name())];
    assert_eq!(basis(both), allow(Basis::Name));
    let denied = vec![egress(Action::Deny, prefix()), egress(Action::Allow, name())];
    assert_eq!(basis(denied), [(SlotAction::Deny, Basis::Peer)]);
}
