//! Each code is found where the trap is, and not beside it.

use std::sync::Arc;

use super::*;
use crate::model::{Label, PortRange, Protocol};
use crate::policy::l7::{DnsPattern, HttpRule, L7Rules};
use crate::policy::rule::{CidrSet, Entity, Peer, Peers, PortMatch, Ports};
use crate::policy::selector::{LabelSelector, Operator, Requirement, SelectorKey};

const EGRESS: Direction = Direction::Egress;
const INGRESS: Direction = Direction::Ingress;

fn selector(pairs: &[(&str, &str)]) -> LabelSelector {
    LabelSelector::new(
        pairs
            .iter()
            .map(|(key, value)| Requirement {
                key: SelectorKey::parse(key),
                operator: Operator::In([Arc::from(*value)].into()),
            })
            .collect(),
    )
}

fn rule(direction: Direction, action: Action, peers: Peers, ports: &[(Protocol, u16)]) -> Rule {
    let ports: Vec<PortMatch> = ports
        .iter()
        .map(|(protocol, port)| PortMatch::Range(*protocol, PortRange::single(*port).unwrap()))
        .collect();
    let ports = if ports.is_empty() { Ports::Any } else { Ports::OneOf(ports) };
    Rule { direction, action, peers, ports, l7: None, path: "spec.rule".into() }
}

fn entity(entity: Entity) -> Peers {
    Peers::OneOf(vec![Peer::Entity(entity)])
}

fn pods(key: &str, value: &str) -> Peers {
    Peers::OneOf(vec![Peer::Pods(selector(&[(key, value)]))])
}

fn cidr(text: &str, except: &[&str]) -> CidrSet {
    CidrSet { cidr: text.parse().unwrap(), except: except.iter().map(|text| text.parse().unwrap()).collect() }
}

fn dns() -> Rule {
    rule(EGRESS, Action::Allow, pods("k8s-app", "kube-dns"), &[(Protocol::Udp, 53)])
}

fn l7(rule: Rule, l7: L7Rules) -> Rule {
    Rule { l7: Some(Arc::new(l7)), ..rule }
}

fn policy_for(name: &str, subject: &[(&str, &str)], rules: Vec<Rule>) -> Arc<Policy> {
    let has = |direction| rules.iter().any(|rule| rule.direction == direction);
    let spec = Spec {
        subject: Subject::Pods(Some(selector(subject))),
        tier: Tier::Normal,
        default_deny_ingress: has(INGRESS),
        default_deny_egress: has(EGRESS),
        rules,
    };
    Arc::new(Policy { object: ObjectRef::new(Kind::CiliumNetworkPolicy, "ns", name), specs: vec![spec] })
}

fn policy(name: &str, rules: Vec<Rule>) -> Arc<Policy> {
    policy_for(name, &[("app", "a")], rules)
}

fn codes(policies: &[Arc<Policy>]) -> Vec<&'static str> {
    lint(policies, Enforcement::Default, None).iter().map(|finding| finding.code.as_str()).collect()
}

#[test]
fn numbers_are_unique_and_in_order() {
    let numbers: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b));
}

#[test]
fn every_code_is_documented() {
    let page = include_str!("../../../docs/lint.md");
    for code in Code::ALL {
        assert!(page.contains(&format!("## {code}: ")), "{code}");
    }
}

#[test]
fn egress_without_dns_is_named_unless_another_policy_allows_it() {
    let web = || rule(EGRESS, Action::Allow, pods("app", "b"), &[(Protocol::Tcp, 80)]);
    assert_eq!(codes(&[policy("p", vec![web()])]), ["SL001"]);
    assert_eq!(codes(&[policy("p", vec![web(), dns()])]), [""; 0]);
    assert_eq!(codes(&[policy("p", vec![web()]), policy_for("dns", &[], vec![dns(), web()])]), [""; 0]);
    let elsewhere = policy_for("dns", &[("app", "z")], vec![dns(), web()]);
    assert_eq!(codes(&[policy("p", vec![web()]), elsewhere]), ["SL001"]);
}

#[test]
fn a_deny_only_policy_isolates_by_accident() {
    let deny = rule(INGRESS, Action::Deny, Peers::Any, &[(Protocol::Tcp, 22)]);
    assert_eq!(codes(&[policy("p", vec![deny.clone()])]), ["SL002"]);
    let mut said = (*policy("p", vec![deny])).clone();
    said.specs[0].default_deny_ingress = false;
    assert_eq!(codes(&[Arc::new(said)]), [""; 0]);
}

#[test]
fn names_need_a_dns_rule_that_covers_them() {
    let fqdn = |pattern| {
        rule(EGRESS, Action::Allow, Peers::OneOf(vec![Peer::Fqdn(pattern)]), &[(Protocol::Tcp, 443)])
    };
    let name = |text: &str| DnsPattern::Name(text.into());
    let pattern = |text: &str| DnsPattern::Pattern(text.into());
    let internal = || rule(EGRESS, Action::Allow, pods("app", "b"), &[]);
    let found = |wanted, rules: Vec<DnsPattern>| {
        let proxied = l7(dns(), L7Rules::Dns(rules));
        codes(&[policy("p", vec![fqdn(wanted), proxied, internal()])]).contains(&"SL003")
    };
    assert!(codes(&[policy("p", vec![fqdn(name("api.stripe.com")), dns(), internal()])]).contains(&"SL003"));
    assert!(!found(name("api.stripe.com"), vec![pattern("*.stripe.com")]));
    assert!(found(name("a.b.stripe.com"), vec![pattern("*.stripe.com")]));
    assert!(!found(pattern("*.stripe.com"), vec![pattern("*")]));
    assert!(!found(pattern("api-*.stripe.com"), vec![pattern("*.stripe.com")]));
    assert!(found(pattern("*.stripe.com"), vec![name("api.stripe.com")]));
}

#[test]
fn an_allow_of_names_under_a_deny_of_the_world_is_shadowed() {
    let allow = rule(
        EGRESS,
        Action::Allow,
        Peers::OneOf(vec![Peer::Fqdn(DnsPattern::Name("vault.example.com".into()))]),
        &[(Protocol::Tcp, 443)],
    );
    let deny = |port: &[(Protocol, u16)]| rule(EGRESS, Action::Deny, entity(Entity::World), port);
    let shadowed = |rules| codes(&[policy("p", rules)]).contains(&"SL004");
    assert!(shadowed(vec![allow.clone(), deny(&[])]));
    assert!(!shadowed(vec![allow.clone(), deny(&[(Protocol::Tcp, 80)])]));
    let narrow = rule(EGRESS, Action::Deny, pods("app", "b"), &[]);
    assert!(!shadowed(vec![allow, narrow]));
}

#[test]
fn a_deny_with_an_exception_does_not_shadow_what_it_excepts() {
    let set = |set| Peers::OneOf(vec![Peer::Cidr(set)]);
    let allow = rule(EGRESS, Action::Allow, set(cidr("10.1.0.0/16", &[])), &[]);
    let shadowed = |deny| {
        codes(&[policy("p", vec![allow.clone(), rule(EGRESS, Action::Deny, set(deny), &[])])])
            .contains(&"SL004")
    };
    assert!(shadowed(cidr("10.0.0.0/8", &[])));
    assert!(!shadowed(cidr("10.0.0.0/8", &["10.1.2.0/24"])));
    assert!(shadowed(cidr("10.0.0.0/8", &["10.2.0.0/16"])));
}

#[test]
fn selectors_that_match_no_known_pod_are_named() {
    let policies =
        [policy("p", vec![rule(INGRESS, Action::Allow, pods("app", "ghost"), &[(Protocol::Tcp, 80)])])];
    assert_eq!(lint(&policies, Enforcement::Default, None), []);
    let labels: Labels = [Label::k8s("app", "a")].into_iter().collect();
    let known = KnownObjects { pods: Some(vec![labels]), ..KnownObjects::default() };
    let found = lint(&policies, Enforcement::Default, Some(&known));
    assert_eq!((found.len(), found[0].code, &*found[0].path), (1, Code::SelectsNothing, "spec.rule"));
    let empty = KnownObjects { pods: Some(Vec::new()), ..KnownObjects::default() };
    assert_eq!(lint(&policies, Enforcement::Default, Some(&empty)).len(), 2, "the subject, too");
    assert_eq!(
        lint(&policies, Enforcement::Default, Some(&KnownObjects::default())),
        [],
        "without the pods nothing is said"
    );
}

#[test]
fn a_rule_for_everyone_narrows_nothing() {
    assert_eq!(codes(&[policy("p", vec![rule(INGRESS, Action::Allow, Peers::Any, &[])])]), ["SL007"]);
    let one_port = rule(INGRESS, Action::Allow, Peers::Any, &[(Protocol::Tcp, 80)]);
    assert_eq!(codes(&[policy("p", vec![one_port])]), [""; 0]);
}

#[test]
fn a_cluster_ip_is_never_seen_by_policy() {
    let to = |text| {
        let peers = Peers::OneOf(vec![Peer::Address(cidr(text, &[]))]);
        policy("p", vec![rule(EGRESS, Action::Allow, peers, &[(Protocol::Tcp, 443)]), dns()])
    };
    let known = KnownObjects {
        cluster_ips: vec![("10.96.0.1".parse().unwrap(), "default/kubernetes".into())],
        ..KnownObjects::default()
    };
    let found = |text| {
        lint(&[to(text)], Enforcement::Default, Some(&known))
            .iter()
            .any(|finding| finding.code == Code::ServiceAddress)
    };
    assert!(found("10.96.0.1/32") && !found("10.96.0.2/32") && !found("10.96.0.0/12"));
}

#[test]
fn a_plain_allow_widens_l7_rules_for_the_same_peer_and_port() {
    let http = |path: &str| {
        let rules = vec![HttpRule { path: Some(path.into()), ..HttpRule::default() }];
        l7(rule(INGRESS, Action::Allow, pods("app", "web"), &[(Protocol::Tcp, 8080)]), L7Rules::Http(rules))
    };
    let plain = |value, port| {
        policy("q", vec![rule(INGRESS, Action::Allow, pods("app", value), &[(Protocol::Tcp, port)])])
    };
    let narrow = policy("p", vec![http("/items/.*")]);
    assert_eq!(codes(&[narrow.clone(), plain("web", 8080)]), ["SL012"]);
    assert_eq!(codes(&[narrow.clone(), plain("web", 9090)]), [""; 0]);
    assert_eq!(codes(&[narrow, plain("crawler", 8080)]), [""; 0]);
}

#[test]
fn a_path_without_room_for_a_query_is_named() {
    let found = |path: &str| {
        let rules = vec![HttpRule { path: Some(path.into()), ..HttpRule::default() }];
        let http =
            l7(rule(INGRESS, Action::Allow, pods("app", "b"), &[(Protocol::Tcp, 80)]), L7Rules::Http(rules));
        codes(&[policy("p", vec![http])]) == ["SL013"]
    };
    assert!(found("/api") && found("/items/[0-9]+") && found("/api$"));
    assert!(!found("/api/.*") && !found(r"/api(\?.*)?") && !found("(/a|/b).*"));
}

#[test]
fn misspelt_namespace_labels_are_named() {
    let found = |key: &str| {
        let from = rule(INGRESS, Action::Allow, pods(key, "x"), &[(Protocol::Tcp, 80)]);
        codes(&[policy("p", vec![from])]) == ["SL015"]
    };
    for key in [
        "io.kubernetes.pod.namespaces",
        "k8s:io.kubernetes.pod.name",
        "io.cilium.k8s.namespace.label.team",
        "io.cilium.k8s.namespace.team",
        "kubernetes.io/metadata.name",
    ] {
        assert!(found(key), "{key}");
    }
    for key in ["io.kubernetes.pod.namespace", "io.cilium.k8s.namespace.labels.team", "app", "namespace"] {
        assert!(!found(key), "{key}");
    }
}

#[test]
fn wide_ranges_reach_the_metadata_service_unless_excepted_or_denied() {
    let to = |peers: Peers| rule(EGRESS, Action::Allow, peers, &[]);
    let set = |set| Peers::OneOf(vec![Peer::Cidr(set)]);
    let found = |rules: Vec<Rule>| codes(&[policy("p", [rules, vec![dns()]].concat())]).contains(&"SL016");
    assert!(found(vec![to(set(cidr("0.0.0.0/0", &[])))]));
    assert!(found(vec![to(entity(Entity::World))]));
    assert!(!found(vec![to(set(cidr("0.0.0.0/0", &["169.254.0.0/16"])))]));
    assert!(!found(vec![to(set(cidr("10.0.0.0/8", &[])))]));
    assert!(!found(vec![to(set(cidr("169.254.169.254/32", &[])))]));
    let deny = rule(EGRESS, Action::Deny, set(cidr("169.254.169.254/32", &[])), &[]);
    assert!(!found(vec![to(entity(Entity::World)), deny]));
}

#[test]
fn internal_traffic_is_not_allowed_by_default() {
    assert_eq!(codes(&[policy("np14", vec![dns()])]), ["SL017"]);
    let internal = rule(EGRESS, Action::Allow, pods("app", "b"), &[(Protocol::Tcp, 80)]);
    assert_eq!(codes(&[policy("p", vec![dns(), internal])]), [""; 0]);
}

#[test]
fn a_finding_says_where_what_and_how() {
    let finding =
        Finding::new(Code::IntegerPort, &ObjectRef::new(Kind::CiliumNetworkPolicy, "n", "p"), "spec.x", "80");
    let text = finding.to_string();
    assert!(text.starts_with("warning: SL009 CiliumNetworkPolicy n/p: spec.x: "), "{text}");
    assert!(text.ends_with("Suggestion: put the number in quotes."), "{text}");
}

/// The agent's `--policy-enforcement` was not looked at.
#[test]
fn what_default_deny_by_a_policy_comes_to_depends_on_the_enforcement() {
    let found = |policies: &[Arc<Policy>], enforcement| -> Vec<&str> {
        lint(policies, enforcement, None).iter().map(|finding| finding.code.as_str()).collect()
    };
    let wide = [policy("wide", vec![rule(INGRESS, Action::Allow, Peers::Any, &[])])];
    assert_eq!(found(&wide, Enforcement::Default), ["SL007"]);
    assert_eq!(found(&wide, Enforcement::Always), ["SL001"], "it opens what is closed, and lookups fail");
    let denies = [policy("denies", vec![rule(EGRESS, Action::Deny, entity(Entity::World), &[]), dns()])];
    let denies = [Arc::new(Policy {
        specs: vec![Spec { default_deny_egress: false, ..denies[0].specs[0].clone() }],
        ..(*denies[0]).clone()
    })];
    assert_eq!(found(&denies, Enforcement::Default), [""; 0]);
    assert_eq!(found(&denies, Enforcement::Always), ["SL017"]);
    assert_eq!(found(&wide, Enforcement::Never), ["SL007"], "as it would be by default");
}
