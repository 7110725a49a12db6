//! `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.

use super::{peers, pod_labels, rejected, reserved_labels, rule, spec};
use crate::model::{PortRange, Protocol};
use crate::policy::l7::DnsPattern;
use crate::policy::rule::{Action, Peer, PortMatch, Ports, Subject, Tier};

fn text(lines: &str) -> String {
    format!(
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: p}}\nspec:\n  tier: Admin\n  priority: 10\n  subject: {{namespaces: {{}}}}\n{lines}\n"
    )
}

fn egress(peer: &str, more: &str) -> String {
    text(&format!("  egress: [{{action: Accept, to: [{peer}]{more}}}]"))
}

#[test]
fn tiers_and_priorities() {
    let admin = spec(&text(""));
    assert_eq!(admin.tier, Tier::Admin { priority: 10 });
    assert!(!admin.default_deny_ingress && !admin.default_deny_egress);
    let baseline = spec(&text("").replace("Admin", "Baseline").replace("10", "0"));
    assert_eq!(baseline.tier, Tier::Baseline { priority: 0 });
    rejected(&text("").replace("10", "1001"), &["spec.priority", "from 0 to 1000"]);
    rejected(&text("").replace("Admin", "Application"), &["spec.tier", "expected one of Admin, Baseline"]);
    rejected(&text("").replace("  priority: 10\n", ""), &["the field priority is missing"]);
}

#[test]
fn the_subject_is_pods_by_namespace_or_by_both() {
    let Subject::Pods(Some(all)) = spec(&text("")).subject else { panic!() };
    assert!(all.matches(&pod_labels("a", "x", &[])) && !all.matches(&reserved_labels("host")));
    let pods =
        "{pods: {namespaceSelector: {matchLabels: {team: red}}, podSelector: {matchLabels: {app: web}}}}";
    let Subject::Pods(Some(both)) = spec(&text("").replace("{namespaces: {}}", pods)).subject else {
        panic!()
    };
    assert!(both.matches(&pod_labels("a", "red", &[("app", "web")])));
    assert!(!both.matches(&pod_labels("a", "blue", &[("app", "web")])));
    assert!(!both.matches(&pod_labels("a", "red", &[("app", "db")])));
    for subject in ["{}", "{namespaces: {}, pods: {podSelector: {}}}"] {
        rejected(&text("").replace("{namespaces: {}}", subject), &["spec.subject", "exactly one of"]);
    }
}

#[test]
fn actions_keep_their_order() {
    let spec = spec(&text(
        "  ingress:\n  - {action: Pass, from: [{namespaces: {}}]}\n  - {action: Deny, from: [{namespaces: {}}]}\n  - {name: last, action: Accept, from: [{namespaces: {}}]}",
    ));
    let actions: Vec<Action> = spec.rules.iter().map(|rule| rule.action).collect();
    assert_eq!(actions, [Action::Pass, Action::Deny, Action::Allow]);
    assert_eq!(&*spec.rules[2].path, "spec.ingress[2]");
    rejected(
        &text("  ingress: [{action: Allow, from: [{namespaces: {}}]}]"),
        &["expected one of Accept, Deny, Pass"],
    );
}

#[test]
fn egress_peers_of_every_kind() {
    let one = |peer: &str| peers(&rule(&egress(peer, ""))).to_vec();
    assert!(matches!(&one("{nodes: {}}")[..], [Peer::Nodes(_)]));
    let networks = one("{networks: [10.0.0.0/8, \"fd00::/8\"]}");
    assert!(matches!(&networks[..], [Peer::Address(_), Peer::Address(_)]));
    assert_eq!(
        one("{domainNames: [Example.com, \"*.example.com\"]}"),
        [
            Peer::Fqdn(DnsPattern::Name("example.com".into())),
            Peer::Fqdn(DnsPattern::Pattern("**.example.com".into()))
        ]
    );
}

#[test]
fn egress_only_peers_are_unknown_to_ingress() {
    rejected(
        &text("  ingress: [{action: Deny, from: [{networks: [10.0.0.0/8]}]}]"),
        &["unknown field \"networks\""],
    );
}

#[test]
fn peers_are_checked() {
    for (peer, words) in [
        ("{}", "found 0 kinds of peer"),
        ("{namespaces: {}, nodes: {}}", "found 2 kinds of peer"),
        ("{networks: []}", "at least one element"),
        ("{networks: [10.0.0.0]}", "expected a prefix"),
        ("{domainNames: [\"a.*.com\"]}", "expected a DNS name"),
        ("{domainNames: [com]}", "two or more labels"),
        ("{domainNames: [\"*\"]}", "expected a DNS name"),
        ("{pods: {namespaceSelector: {}}}", "the field podSelector is missing"),
    ] {
        rejected(&egress(peer, ""), &[words]);
    }
    rejected(&text("  egress: [{action: Accept, to: []}]"), &["spec.egress[0].to", "at least one"]);
    rejected(&text("  egress: [{action: Accept}]"), &["the field to is missing"]);
}

#[test]
fn domain_names_are_for_accept_only() {
    for action in ["Deny", "Pass"] {
        rejected(
            &egress("{domainNames: [a.example]}", "").replace("Accept", action),
            &["spec.egress[0].to[0]", "action Accept only"],
        );
    }
}

#[test]
fn protocols_are_numbers_ranges_or_names() {
    let ports =
        |protocols: &str| rule(&egress("{namespaces: {}}", &format!(", protocols: {protocols}"))).ports;
    let range = |first, last| PortRange::new(first, last).unwrap();
    assert_eq!(
        ports(
            "[{tcp: {destinationPort: {number: 80}}}, {udp: {destinationPort: {range: {start: 1, end: 9}}}}]"
        ),
        Ports::OneOf(vec![
            PortMatch::Range(Protocol::Tcp, range(80, 80)),
            PortMatch::Range(Protocol::Udp, range(1, 9))
        ])
    );
    let Ports::OneOf(named) = ports("[{destinationNamedPort: http}]") else { panic!() };
    assert_eq!(named.len(), 3);
    assert_eq!(rule(&egress("{namespaces: {}}", "")).ports, Ports::Any);
}

#[test]
fn protocols_are_checked() {
    for (protocols, words) in [
        ("[]", "at least one element"),
        ("[{}]", "exactly one of tcp, udp, sctp"),
        ("[{tcp: {}}]", "the field destinationPort is missing"),
        ("[{tcp: {destinationPort: {number: 0}}}]", "from 1 to 65535"),
        ("[{tcp: {destinationPort: {}}}]", "exactly one of number and range"),
        ("[{tcp: {destinationPort: {range: {start: 9, end: 9}}}}]", "start must be below end"),
        ("[{tcp: {destinationPort: {number: 1}}, udp: {destinationPort: {number: 1}}}]", "exactly one of"),
    ] {
        rejected(&egress("{namespaces: {}}", &format!(", protocols: {protocols}")), &[words]);
    }
    rejected(
        &egress("{networks: [10.0.0.0/8]}", ", protocols: [{destinationNamedPort: http}]"),
        &["have no port names"],
    );
}

#[test]
fn lists_have_upstreams_limits() {
    let many = vec!["{action: Deny, from: [{namespaces: {}}]}"; 26].join(", ");
    rejected(&text(&format!("  ingress: [{many}]")), &["found 26 elements in ingress, at most 25"]);
    let name = "n".repeat(101);
    rejected(
        &text(&format!("  ingress: [{{name: {name}, action: Deny, from: [{{namespaces: {{}}}}]}}]")),
        &["100 characters"],
    );
}
