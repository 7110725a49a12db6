//! `networking.k8s.io/v1` NetworkPolicy.

use super::{knp, peers, pod_labels, read, rejected, reserved_labels, rule, spec, warnings};
use crate::model::{Direction, Labels, PortRange, Protocol};
use crate::policy::rule::{Peer, Peers, PortMatch, Ports, Subject, Tier};
use crate::policy::selector::LabelSelector;

fn subject(text: &str) -> LabelSelector {
    match spec(text).subject {
        Subject::Pods(Some(selector)) => selector,
        other => panic!("{other:?}"),
    }
}

fn isolates(lines: &str) -> (bool, bool) {
    let spec = spec(&knp(lines));
    (spec.default_deny_ingress, spec.default_deny_egress)
}

fn from(peer: &str) -> LabelSelector {
    super::peer_selector(&knp(&format!("podSelector: {{}}\ningress: [{{from: [{peer}]}}]")))
}

fn web(namespace: &str, team: &str) -> Labels {
    pod_labels(namespace, team, &[("app", "web")])
}

#[test]
fn more_than_two_policy_types_are_refused() {
    rejected(
        &knp("podSelector: {}\npolicyTypes: [Ingress, Egress, Ingress]"),
        &["spec.policyTypes[2]", "found 3 policyTypes, expected 2 at most"],
    );
}

#[test]
fn policy_types_default_to_ingress_and_to_egress_where_there_are_rules() {
    assert_eq!(isolates("podSelector: {}"), (true, false));
    assert_eq!(isolates("podSelector: {}\negress: []"), (true, false));
    assert_eq!(isolates("podSelector: {}\negress: [{}]"), (true, true));
    assert_eq!(isolates("podSelector: {}\npolicyTypes: []\negress: [{}]"), (true, true));
    assert_eq!(isolates("podSelector: {}\npolicyTypes: [Egress]"), (false, true));
    assert_eq!(isolates("podSelector: {}\npolicyTypes: [Ingress]"), (true, false));
    assert_eq!(isolates("podSelector: {}\npolicyTypes: [Ingress, Egress]"), (true, true));
    assert_eq!(isolates("podSelector: {}\npolicyTypes: [Egress, Egress]"), (false, true));
    rejected(
        &knp("podSelector: {}\npolicyTypes: [egress]"),
        &["spec.policyTypes[0]", "did you mean Egress?"],
    );
}

#[test]
fn rules_of_a_direction_that_policy_types_leave_out_do_nothing() {
    let text = knp("podSelector: {}\npolicyTypes: [Egress]\ningress: [{}]");
    assert!(spec(&text).rules.is_empty());
    assert!(warnings(&text).contains("spec.ingress[0]: policyTypes does not list ingress"));
}

#[test]
fn the_subject_stays_in_the_namespace_of_the_policy() {
    for selector in ["{}", "null", "{matchLabels: {app: web}}", "{matchLabels: null, matchExpressions: null}"]
    {
        let subject = subject(&knp(&format!("podSelector: {selector}")));
        assert!(subject.matches(&web("shop", "a")), "{selector}");
        assert!(!subject.matches(&web("other", "a")), "{selector}");
        assert!(!subject.matches(&reserved_labels("world")), "{selector}");
    }
    assert!(!subject(&knp("podSelector: {matchLabels: {app: db}}")).matches(&web("shop", "a")));
    assert_eq!(
        subject(&knp("policyTypes: [Ingress]")),
        subject(&knp("podSelector: {}")),
        "absent is every pod"
    );
}

#[test]
fn a_policy_without_spec_isolates_its_namespace() {
    let text =
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: shop, name: p}\n";
    assert_eq!((spec(text).default_deny_ingress, spec(text).tier), (true, Tier::Normal));
}

#[test]
fn a_pod_selector_alone_looks_in_the_policys_namespace() {
    let peer = from("{podSelector: {matchLabels: {app: web}}}");
    assert!(peer.matches(&web("shop", "a")));
    assert!(!peer.matches(&web("other", "a")));
}

#[test]
fn a_namespace_selector_alone_is_every_pod_of_the_matching_namespaces() {
    let peer = from("{namespaceSelector: {matchLabels: {team: ops}}}");
    assert!(peer.matches(&web("x", "ops")));
    assert!(!peer.matches(&web("x", "dev")));
    // A label of the pod is not a label of its namespace.
    assert!(!peer.matches(&pod_labels("x", "dev", &[("team", "ops")])));
    let every = from("{namespaceSelector: {}}");
    assert!(every.matches(&web("x", "dev")));
    assert!(!every.matches(&reserved_labels("world")) && !every.matches(&reserved_labels("host")));
}

#[test]
fn two_selectors_in_one_element_are_anded() {
    let peer =
        from("{namespaceSelector: {matchLabels: {team: ops}}, podSelector: {matchLabels: {app: web}}}");
    assert!(peer.matches(&web("x", "ops")));
    assert!(!peer.matches(&web("x", "dev")));
    assert!(!peer.matches(&pod_labels("x", "ops", &[("app", "db")])));
}

#[test]
fn elements_are_ored_and_an_empty_list_is_every_peer() {
    let two = rule(&knp("ingress: [{from: [{podSelector: {}}, {ipBlock: {cidr: 10.0.0.0/8}}]}]"));
    assert_eq!(peers(&two).len(), 2);
    for lines in ["ingress: [{}]", "ingress: [{from: []}]", "ingress: [{from: null, ports: []}]"] {
        let rule = rule(&knp(lines));
        assert_eq!((&rule.peers, &rule.ports), (&Peers::Any, &Ports::Any), "{lines}");
        assert_eq!(&*rule.path, "spec.ingress[0]");
    }
    assert_eq!(rule(&knp("policyTypes: [Egress]\negress: [{}]")).direction, Direction::Egress);
}

#[test]
fn ip_blocks_are_address_rules_with_exceptions() {
    let rule =
        rule(&knp("ingress: [{from: [{ipBlock: {cidr: 10.1.2.3/8, except: [10.2.0.0/16, 10.1.0.0/16]}}]}]"));
    let [Peer::Address(set)] = peers(&rule) else { panic!("{rule:?}") };
    assert_eq!(set.cidr.to_string(), "10.0.0.0/8");
    assert_eq!(
        set.except.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.1.0.0/16", "10.2.0.0/16"]
    );
    let text = knp("ingress: [{from: [{ipBlock: {cidr: 10.1.2.3/8}}]}]");
    assert!(warnings(&text).contains("read as 10.0.0.0/8"));
}

#[test]
fn ip_blocks_are_checked() {
    for (block, words) in [
        ("{cidr: 10.0.0.0/33}", "expected a prefix"),
        ("{cidr: 10.0.0.1}", "expected a prefix"),
        ("{cidr: \"::ffff:10.0.0.0/104\"}", "without ::ffff:"),
        ("{}", "the field cidr is missing"),
        ("{cidr: 10.0.0.0/8, except: [11.0.0.0/16]}", "11.0.0.0/16 lies outside of 10.0.0.0/8"),
        ("{cidr: 10.0.0.0/8, except: [10.0.0.0/8]}", "lies outside"),
        ("{cidr: 10.0.0.0/8, except: [0.0.0.0/0]}", "lies outside"),
        ("{cidr: 10.0.0.0/8, except: [\"fd00::/8\"]}", "lies outside"),
    ] {
        rejected(&knp(&format!("ingress: [{{from: [{{ipBlock: {block}}}]}}]")), &[words]);
    }
}

#[test]
fn a_peer_is_a_selector_or_a_block_and_not_nothing() {
    rejected(
        &knp("ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]"),
        &["spec.ingress[0].from[0]", "may not stand beside a selector"],
    );
    rejected(&knp("ingress: [{from: [{}]}]"), &["a peer needs one of"]);
    rejected(&knp("egress: [{from: [{podSelector: {}}]}]"), &["spec.egress[0].from", "unknown field"]);
}

#[test]
fn ports_are_tcp_unless_they_say_otherwise() {
    let ports = |list: &str| match rule(&knp(&format!("ingress: [{{ports: [{list}]}}]"))).ports {
        Ports::OneOf(ports) => ports,
        Ports::Any => panic!(),
    };
    let range = |first, last| PortRange::new(first, last).unwrap();
    assert_eq!(ports("{port: 80}"), [PortMatch::Range(Protocol::Tcp, range(80, 80))]);
    assert_eq!(ports("{}"), [PortMatch::Protocol(Protocol::Tcp)]);
    assert_eq!(ports("{protocol: SCTP}"), [PortMatch::Protocol(Protocol::Sctp)]);
    assert_eq!(ports("{port: http}"), [PortMatch::Named(Protocol::Tcp, "http".into())]);
    assert_eq!(ports("{port: 1, endPort: 9, protocol: UDP}"), [PortMatch::Range(Protocol::Udp, range(1, 9))]);
    assert_eq!(ports("{port: 7, endPort: 7}"), [PortMatch::Range(Protocol::Tcp, range(7, 7))]);
}

#[test]
fn ports_are_checked() {
    for (port, words) in [
        ("{port: 0}", "from 1 to 65535"),
        ("{port: 65536}", "from 1 to 65535"),
        ("{port: \"80\"}", "without quotes"),
        ("{port: 80, endPort: 79}", "endPort 79 is below port 80"),
        ("{endPort: 79}", "endPort needs port"),
        ("{port: http, endPort: 79}", "found a port name"),
        ("{port: 80, protocol: ICMP}", "expected one of TCP, UDP, SCTP"),
        ("{port: Http}", "not a port name"),
    ] {
        rejected(&knp(&format!("ingress: [{{ports: [{port}]}}]")), &["spec.ingress[0].ports[0]", words]);
    }
}

#[test]
fn selectors_are_plain_kubernetes_selectors() {
    for (selector, words) in [
        ("{matchLabels: {\"k8s:app\": web}}", "no label key"),
        ("{matchLabels: {app: 5}}", "put it in quotes"),
        ("{matchExpressions: [{key: app, operator: in, values: [a]}]}", "did you mean In?"),
        ("{matchExpressions: [{key: app, operator: In}]}", "need at least one of values"),
        ("{matchExpressions: [{key: app, operator: Exists, values: [a]}]}", "take no values"),
        ("{matchExpressions: [{operator: Exists}]}", "the field key is missing"),
        ("{matchLabel: {app: web}}", "did you mean matchLabels?"),
    ] {
        rejected(&knp(&format!("podSelector: {selector}")), &[words]);
    }
    assert!(
        read(&knp("podSelector: {matchExpressions: [{key: a, operator: NotIn, values: [x]}]}")).is_valid()
    );
}
