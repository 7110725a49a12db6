//! Rules for everybody of a group: one entry a subject and port, with the verdicts of single entries.

use super::support::*;
use crate::model::{Direction, Identity, IdentityGroup, IdentityRecord, Label, LabelSource};
use crate::policy::decision::Outcome;
use crate::policy::engine::{AllowLocalhost, Engine, EngineOptions, PeerView};
use crate::policy::rule::{Action, Entity, Peer, Peers, PortMatch, Spec, Subject};
use crate::policy::selector::{LabelSelector, Operator};

const SUBJECTS: u32 = 200;
const IDENTITIES: u32 = 10_000;
const NAMESPACE: &str = "k8s:io.kubernetes.pod.namespace=shop";

fn every_pod() -> Peers {
    Peers::OneOf(vec![Peer::Pods(LabelSelector::default())])
}

fn everybody_in_a_namespace() -> Peers {
    let anywhere = requirement("k8s:io.kubernetes.pod.namespace", Operator::Exists);
    Peers::OneOf(vec![Peer::Pods(LabelSelector::new(vec![anywhere]))])
}

fn cidr(cidr: &str, except: &[&str]) -> Peers {
    Peers::OneOf(vec![Peer::Cidr(cidr_set(cidr, except))])
}

fn for_all(rules: Vec<crate::policy::rule::Rule>) -> Spec {
    Spec { subject: Subject::Pods(Some(LabelSelector::default())), ..spec(rules) }
}

fn numbered_pod(index: u32) -> IdentityRecord {
    pod(Identity(Identity::CLUSTER_MIN + index), &[NAMESPACE, &format!("k8s:app=a{index}")])
}

/// 10,000 pods, 200 of which live here.
fn large() -> Engine {
    let mut engine = Engine::new(EngineOptions {
        max_total_entries: 100_000,
        allow_localhost: AllowLocalhost::Policy,
        ..EngineOptions::default()
    });
    engine.upsert_identity(host(&[]));
    (0..IDENTITIES).map(numbered_pod).for_each(|record| engine.upsert_identity(record));
    (0..SUBJECTS).for_each(|index| engine.add_subject(numbered_pod(index).id));
    engine.take_delta();
    engine
}

fn entries(engine: &Engine) -> usize {
    engine.subjects().map(|subject| engine.entries(subject).len()).sum()
}

#[test]
fn a_rule_for_every_pod_costs_one_entry_a_subject_and_not_one_an_identity() {
    let mut engine = large();
    engine.begin();
    let rules = vec![
        ingress(Action::Allow, every_pod(), &[tcp(80, 80)]),
        ingress(Action::Deny, everybody_in_a_namespace(), &[tcp(81, 81)]),
    ];
    engine.upsert_policy(policy("all", vec![for_all(rules)]));
    let delta = engine.commit().expect("two million entries would not fit; these do");
    assert_eq!(entries(&engine), 2 * SUBJECTS as usize);
    assert_eq!(delta.iter().map(|delta| delta.upserts.len()).sum::<usize>(), 2 * SUBJECTS as usize);
    let peer = Identity(Identity::CLUSTER_MIN + IDENTITIES - 1);
    for (port, wanted) in [(80, Outcome::Allow), (81, Outcome::Deny), (82, Outcome::Deny)] {
        let subject = Identity(Identity::CLUSTER_MIN);
        let flow = flow(crate::model::Protocol::Tcp, port);
        assert_eq!(engine.decide(subject, Direction::Ingress, peer.into(), flow).outcome, wanted, "{port}");
    }
}

#[test]
fn a_pod_more_or_less_changes_no_entry_of_a_rule_for_every_pod() {
    let mut engine = large();
    engine.upsert_policy(policy("all", vec![for_all(vec![egress(Action::Allow, every_pod(), &[])])]));
    engine.take_delta();
    engine.upsert_identity(numbered_pod(IDENTITIES));
    assert_eq!(engine.take_delta(), []);
    let last = numbered_pod(IDENTITIES - 1);
    let labels = last.labels.iter().cloned().chain([Label::new(LabelSource::K8s, "tier", "web")]).collect();
    engine.upsert_identity(IdentityRecord { labels, ..last });
    engine.remove_identity(numbered_pod(IDENTITIES).id);
    assert_eq!(engine.take_delta(), []);
}

#[test]
fn the_cluster_is_its_pods_its_nodes_and_a_few_fixed_numbers() {
    let mut engine = large();
    for index in 0..1000 {
        let id = Identity(Identity::REMOTE_NODE_MIN + index);
        engine.upsert_identity(node(id, "remote-node", &[], &[]));
    }
    engine.upsert_identity(reserved(Identity::HEALTH));
    engine.upsert_policy(policy(
        "all",
        vec![for_all(vec![egress(Action::Allow, entity(Entity::Cluster), &[])])],
    ));
    engine.take_delta();
    let keys: Vec<Identity> =
        engine.entries(numbered_pod(0).id).into_iter().map(|view| view.key.identity).collect();
    let groups = [IdentityGroup::Pods.key(), IdentityGroup::RemoteNodes.key()];
    assert_eq!(keys, [&[Identity::HOST, Identity::HEALTH][..], &groups].concat());
}

#[test]
fn a_rule_on_every_address_is_one_entry_for_all_prefixes_and_names_of_the_world() {
    let mut engine = cluster(EngineOptions::default());
    for index in 0..1000u32 {
        let prefix = format!("10.{}.{}.0/24", index / 256, index % 256);
        engine.upsert_identity(cidr_identity(index, Some(&prefix), &[]));
    }
    engine.upsert_identity(cidr_identity(5000, Some("2001:db8::/32"), &[]));
    let rules = vec![
        egress(Action::Allow, cidr("0.0.0.0/0", &[]), &[tcp(443, 443)]),
        egress(Action::Deny, cidr("10.0.7.0/24", &[]), &[]),
    ];
    engine.upsert_policy(policy("p", vec![spec(rules)]));
    engine.settle();
    assert_eq!(engine.entries(SERVER).len(), 2);
    let world = |offset: u32| Identity(Identity::LOCAL_CIDR_MIN + offset);
    assert!(allowed(&to(&engine, world(8), 443)));
    assert!(!allowed(&to(&engine, world(7), 443)), "deny beats the group's allow");
    assert!(!allowed(&to(&engine, world(5000), 443)), "the other family");
    assert!(!allowed(&to(&engine, CLIENT, 443)), "a CIDR rule never sees pods");

    // An address that no prefix covers is not what the rule says: single entries, until it goes.
    engine.upsert_identity(cidr_identity(6000, None, &["a.example"]));
    engine.settle();
    assert_eq!(engine.entries(SERVER).len(), 1001);
    assert!(!allowed(&to(&engine, world(6000), 443)));
    assert!(allowed(&to(&engine, world(8), 443)));
    engine.remove_identity(world(6000));
    engine.settle();
    assert_eq!(engine.entries(SERVER).len(), 2);
}

#[test]
fn an_exception_has_single_entries() {
    let mut engine = cluster(EngineOptions::default());
    engine.upsert_identity(cidr_identity(0, Some("10.0.0.0/8"), &[]));
    engine.upsert_identity(cidr_identity(1, Some("0.0.0.0/0"), &[]));
    let except = cidr("0.0.0.0/0", &["10.0.0.0/8"]);
    engine.upsert_policy(policy("p", vec![spec(vec![egress(Action::Allow, except, &[])])]));
    engine.settle();
    let world = |offset: u32| Identity(Identity::LOCAL_CIDR_MIN + offset);
    assert!(allowed(&to(&engine, world(1), 443)) && !allowed(&to(&engine, world(0), 443)));
}

#[test]
fn every_class_of_addresses_is_one_entry_and_is_looked_up() {
    let mut engine = cluster(EngineOptions::default());
    for index in 0..100 {
        engine.upsert_identity(address_class(index, &format!("10.{index}.0.0/16")));
    }
    let any = Peers::OneOf(vec![Peer::Address(cidr_set("0.0.0.0/0", &[]))]);
    engine.upsert_policy(policy("p", vec![spec(vec![egress(Action::Allow, any, &[])])]));
    engine.settle();
    assert_eq!(engine.entries(SERVER).len(), 1);
    let info = engine.info(SERVER).unwrap().egress;
    assert!(info.address_classes && info.cells.group_any && !info.cells.id_any);
    let peer = PeerView { identity: CLIENT, address_class: Some(Identity(Identity::ADDRESS_CLASS_MIN + 5)) };
    assert!(allowed(&to(&engine, peer, 80)));
    assert!(!allowed(&to(&engine, CLIENT, 80)), "an address in no class");
}

#[test]
fn a_port_name_for_every_pod_is_a_number_at_each() {
    let web = PortMatch::Named(crate::model::Protocol::Tcp, "http".into());
    let rules = vec![egress(Action::Allow, every_pod(), &[web, tcp(443, 443)])];
    let engine = with(vec![policy("p", vec![spec(rules)])]);
    // 443 for the group; 8080 at the server itself; 80 and 81 at the client.
    assert_eq!(engine.entries(SERVER).len(), 4);
    assert!(allowed(&to(&engine, CLIENT, 80)) && allowed(&to(&engine, CLIENT, 81)));
    assert!(!allowed(&to(&engine, CLIENT, 8080)) && allowed(&to(&engine, SERVER, 8080)));
    assert!(!allowed(&to(&engine, OTHER, 80)) && allowed(&to(&engine, OTHER, 443)));
}

#[test]
fn deny_of_one_beats_allow_of_all_and_the_other_way_round() {
    let one = || Peers::OneOf(vec![pods(&["app=client"])]);
    for (all, single) in [(Action::Allow, Action::Deny), (Action::Deny, Action::Allow)] {
        let rules = vec![ingress(all, every_pod(), &[tcp(80, 80)]), ingress(single, one(), &[])];
        let engine = with(vec![policy("p", vec![spec(rules)])]);
        assert!(!allowed(&from(&engine, CLIENT, 80)));
        assert_eq!(allowed(&from(&engine, OTHER, 80)), all == Action::Allow);
        assert_eq!(allowed(&from(&engine, CLIENT, 81)), single == Action::Allow);
    }
}

#[test]
fn a_pod_that_is_not_known_yet_is_a_pod() {
    let engine = with(vec![policy("p", vec![spec(vec![ingress(Action::Deny, every_pod(), &[])])])]);
    let stranger = Identity(Identity::CLUSTER_MAX);
    let verdict = from(&engine, stranger, 80);
    assert_eq!(by(&verdict), ["p"], "the deny for every pod meets it");
    assert_eq!(
        by(&from(&engine, Identity::WORLD, 80)),
        [r#"DefaultDeny([ObjectRef { kind: CiliumClusterwideNetworkPolicy, namespace: "", name: "p" }])"#]
    );
}
