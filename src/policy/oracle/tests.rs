//! Sentences of the policy semantics, one by one.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::model::{ContainerPort, Direction, Kind, KubeLabels, Namespace, Node, ObjectRef, Pod, PortRange};
use crate::policy::decision::{Because, Outcome};
use crate::policy::l7::{DnsPattern, HttpRule, L7Rules};
use crate::policy::rule::{
    Action, CidrSet, Entity, Peer, Peers, Policy, PortMatch, Ports, Rule, Spec, Subject, Tier,
};
use crate::policy::selector::{LabelSelector, Operator, Requirement, SelectorKey};

fn pod(name: &str, address: &str) -> Pod {
    Pod {
        namespace: "shop".into(),
        name: name.into(),
        labels: [("app".to_owned(), name.to_owned())].into(),
        node: Some("n1".into()),
        addresses: vec![address.parse().unwrap()],
        host_network: false,
        service_account: "default".into(),
        controller: None,
        ports: vec![ContainerPort { name: Some("http".into()), port: 80, protocol: Protocol::Tcp }],
    }
}

fn state(policies: Vec<Policy>) -> State {
    let mut state = State::default();
    for (name, address) in [("n1", "172.18.0.1"), ("n2", "172.18.0.2")] {
        let node = Node {
            name: name.into(),
            labels: KubeLabels::default(),
            addresses: vec![address.parse().unwrap()],
        };
        state.nodes.insert(name.into(), node);
    }
    let namespace = Namespace { name: "shop".into(), labels: [("team".to_owned(), "a".to_owned())].into() };
    state.namespaces.insert("shop".into(), namespace);
    for pod in [pod("web", "10.0.0.1"), pod("db", "10.0.0.2")] {
        state.pods.insert((pod.namespace.clone(), pod.name.clone()), pod);
    }
    state.policies = policies.into_iter().map(|policy| (policy.object.clone(), policy)).collect();
    state
}

fn app(name: &str) -> LabelSelector {
    LabelSelector::new(vec![Requirement {
        key: SelectorKey::parse("app"),
        operator: Operator::In([name.into()].into()),
    }])
}

fn rule(action: Action, peers: Peers) -> Rule {
    Rule { direction: Direction::Ingress, action, peers, ports: Ports::Any, l7: None, path: "spec".into() }
}

fn policy(name: &str, tier: Tier, default_deny: bool, rules: Vec<Rule>) -> Policy {
    let spec = Spec {
        subject: Subject::Pods(Some(app("db"))),
        tier,
        default_deny_ingress: default_deny,
        default_deny_egress: false,
        rules,
    };
    Policy { object: ObjectRef::new(Kind::CiliumNetworkPolicy, "shop", name), specs: vec![spec] }
}

fn ingress(state: &State, source: &str, port: u16) -> (Outcome, Because) {
    let flow = Flow {
        source: source.parse().unwrap(),
        destination: "10.0.0.2".parse().unwrap(),
        protocol: Protocol::Tcp,
        port,
    };
    let side = state.judge(&flow).ingress.unwrap();
    (side.decision.outcome, side.decision.because)
}

const WEB: &str = "10.0.0.1";
const WORLD: &str = "203.0.113.1";

fn named(because: Because) -> String {
    match because {
        Because::Rules(rules) => {
            rules.iter().map(|rule| rule.object.name.to_string()).collect::<Vec<_>>().join(" ")
        }
        Because::DefaultDeny(objects) => {
            format!("default-deny {}", objects.iter().map(ObjectRef::path).collect::<Vec<_>>().join(" "))
        }
        other => format!("{other:?}"),
    }
}

#[test]
fn without_a_policy_everything_is_allowed() {
    assert_eq!(ingress(&state(vec![]), WORLD, 80), (Outcome::Allow, Because::NoPolicy));
}

#[test]
fn a_deny_beats_an_allow_and_both_leave_the_rest_to_default_deny() {
    let pods = || Peers::OneOf(vec![Peer::Pods(app("web"))]);
    let state = state(vec![
        policy("allow", Tier::Normal, true, vec![rule(Action::Allow, pods())]),
        policy(
            "deny",
            Tier::Normal,
            false,
            vec![Rule {
                ports: Ports::OneOf(vec![PortMatch::Range(Protocol::Tcp, PortRange::single(22).unwrap())]),
                ..rule(Action::Deny, Peers::Any)
            }],
        ),
    ]);
    let (outcome, because) = ingress(&state, WEB, 80);
    assert_eq!((outcome, named(because)), (Outcome::Allow, "allow".to_owned()));
    let (outcome, because) = ingress(&state, WEB, 22);
    assert_eq!((outcome, named(because)), (Outcome::Deny, "deny".to_owned()));
    let (outcome, because) = ingress(&state, WORLD, 80);
    assert_eq!((outcome, named(because)), (Outcome::Deny, "default-deny shop/allow".to_owned()));
}

#[test]
fn admin_rules_go_by_priority_then_name_then_order_and_pass_leaves_the_tier() {
    let admin = |name, priority, action| {
        policy(
            name,
            Tier::Admin { priority },
            false,
            vec![rule(action, Peers::Any), rule(Action::Deny, Peers::Any)],
        )
    };
    let normal = || policy("normal", Tier::Normal, true, vec![rule(Action::Allow, Peers::Any)]);
    let passed = state(vec![admin("b", 5, Action::Deny), admin("a", 5, Action::Pass), normal()]);
    assert_eq!(named(ingress(&passed, WEB, 80).1), "normal");
    let accepted = state(vec![admin("z", 4, Action::Allow), admin("a", 5, Action::Deny), normal()]);
    assert_eq!(named(ingress(&accepted, WEB, 80).1), "z");
}

#[test]
fn pass_in_the_baseline_tier_leaves_it_to_the_default() {
    let rules = vec![rule(Action::Pass, Peers::Any), rule(Action::Deny, Peers::Any)];
    let mut state = state(vec![policy("baseline", Tier::Baseline { priority: 0 }, false, rules)]);
    assert_eq!(ingress(&state, WEB, 80).1, Because::NoPolicy);
    state.switches.mode = Mode::Always;
    assert_eq!(ingress(&state, WEB, 80).1, Because::DefaultDeny(vec![]));
}

#[test]
fn baseline_counts_only_where_nothing_else_decided() {
    let baseline = || {
        let closed = vec![rule(Action::Deny, Peers::OneOf(vec![Peer::Pods(LabelSelector::default())]))];
        policy("baseline", Tier::Baseline { priority: 0 }, false, closed)
    };
    assert_eq!(named(ingress(&state(vec![baseline()]), WEB, 80).1), "baseline");
    assert_eq!(ingress(&state(vec![baseline()]), WORLD, 80).1, Because::NoPolicy);
    let isolated = state(vec![baseline(), policy("isolate", Tier::Normal, true, vec![])]);
    assert_eq!(named(ingress(&isolated, WEB, 80).1), "default-deny shop/isolate");
    let mut always = state(vec![baseline()]);
    always.switches.mode = Mode::Always;
    assert_eq!(named(ingress(&always, WEB, 80).1), "baseline");
    assert_eq!(ingress(&always, WORLD, 80), (Outcome::Deny, Because::DefaultDeny(vec![])));
    always.switches.mode = Mode::Never;
    assert_eq!(ingress(&always, WEB, 80).0, Outcome::Allow);
}

#[test]
fn cidr_rules_see_the_world_and_address_rules_see_everybody() {
    let everything =
        CidrSet { cidr: "0.0.0.0/0".parse().unwrap(), except: vec!["10.0.0.0/30".parse().unwrap()] };
    let with = |peer| {
        state(vec![policy("p", Tier::Normal, true, vec![rule(Action::Allow, Peers::OneOf(vec![peer]))])])
    };
    let cidr = with(Peer::Cidr(everything.clone()));
    assert_eq!(ingress(&cidr, WORLD, 80).0, Outcome::Allow);
    assert_eq!(ingress(&cidr, "172.18.0.2", 80).0, Outcome::Deny);
    let address = with(Peer::Address(everything));
    assert_eq!(ingress(&address, "172.18.0.2", 80).0, Outcome::Allow);
    assert_eq!(ingress(&address, WEB, 80).0, Outcome::Deny);
    let mut nodes = cidr;
    nodes.switches.nodes = NodeMode::ByCidr;
    assert_eq!(ingress(&nodes, "172.18.0.2", 80).0, Outcome::Allow);
}

#[test]
fn the_local_node_reaches_its_pods_unless_policy_says() {
    let mut state = state(vec![policy("isolate", Tier::Normal, true, vec![])]);
    assert_eq!(ingress(&state, "172.18.0.1", 80), (Outcome::Allow, Because::AllowLocalhost));
    assert_eq!(ingress(&state, "172.18.0.2", 80).0, Outcome::Deny);
    state.switches.localhost = LocalhostMode::Policy;
    assert_eq!(ingress(&state, "172.18.0.1", 80).0, Outcome::Deny);
    assert_eq!(ingress(&state, "10.0.0.2", 80), (Outcome::Allow, Because::Hairpin));
}

#[test]
fn entities_are_what_section_3_says() {
    let with = |entity| {
        let peers = Peers::OneOf(vec![Peer::Entity(entity)]);
        state(vec![policy("p", Tier::Normal, true, vec![rule(Action::Allow, peers)])])
    };
    for (entity, allowed) in [
        (Entity::World, [false, false, true]),
        (Entity::Cluster, [true, true, false]),
        (Entity::RemoteNode, [false, true, false]),
        (Entity::Host, [false, false, false]),
        (Entity::All, [true, true, true]),
        (Entity::None, [false, false, false]),
    ] {
        let state = with(entity);
        for (source, allowed) in [WEB, "172.18.0.2", WORLD].into_iter().zip(allowed) {
            let outcome = if allowed { Outcome::Allow } else { Outcome::Deny };
            assert_eq!(ingress(&state, source, 80).0, outcome, "{entity:?} {source}");
        }
    }
}

#[test]
fn learned_names_open_an_address_until_they_expire_and_never_one_of_the_cluster() {
    let pattern = DnsPattern::Pattern("*.example".into());
    let mut out = policy(
        "fqdn",
        Tier::Normal,
        false,
        vec![Rule {
            direction: Direction::Egress,
            ..rule(Action::Allow, Peers::OneOf(vec![Peer::Fqdn(pattern)]))
        }],
    );
    out.specs[0].default_deny_egress = true;
    let mut state = state(vec![out]);
    let answer = |address: &str| Answer {
        node: "n1".into(),
        name: "a.example".into(),
        address: address.parse().unwrap(),
        expires: Duration::from_secs(10),
    };
    state.answers = vec![answer(WORLD), answer(WEB)];
    let outcome = |state: &State, to: &str, names: &[&str]| {
        let (source, destination): (IpAddr, IpAddr) = ("10.0.0.2".parse().unwrap(), to.parse().unwrap());
        let flow = Flow { source, destination, protocol: Protocol::Tcp, port: 443 };
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        state.judge_with_names(&flow, &names).egress.unwrap().decision.outcome
    };
    assert_eq!(outcome(&state, WORLD, &[]), Outcome::Allow);
    assert_eq!(outcome(&state, WEB, &[]), Outcome::Deny);
    state.now = Duration::from_secs(10);
    assert_eq!(outcome(&state, WORLD, &[]), Outcome::Deny);
    assert_eq!(outcome(&state, WORLD, &["a.example"]), Outcome::Allow, "an open connection goes on");
}

#[test]
fn l7_rules_refuse_only_under_default_deny_and_when_nothing_lifts_them() {
    let http = L7Rules::Http(vec![HttpRule { path: Some("/a".into()), ..HttpRule::default() }]);
    let l7 = Rule { l7: Some(Arc::new(http)), ..rule(Action::Allow, Peers::Any) };
    let request = |state: &State, path: &str| {
        let flow = Flow {
            source: WEB.parse().unwrap(),
            destination: "10.0.0.2".parse().unwrap(),
            protocol: Protocol::Tcp,
            port: 80,
        };
        let side = state.judge(&flow).ingress.unwrap();
        let request = HttpRequest { method: "GET", path, host: "x", headers: &[], secret: &|_, _, _| None };
        matches!(side.http(&request), Layer7::Allow(_))
    };
    let enforced = state(vec![policy("l7", Tier::Normal, true, vec![l7.clone()])]);
    assert!(request(&enforced, "/a") && !request(&enforced, "/ab"));
    let observed = state(vec![policy("l7", Tier::Normal, false, vec![l7.clone()])]);
    assert!(request(&observed, "/ab"));
    let lifted = state(vec![policy("l7", Tier::Normal, true, vec![l7, rule(Action::Allow, Peers::Any)])]);
    assert!(request(&lifted, "/ab"));
}

#[test]
fn server_names_are_not_lifted() {
    let tls = L7Rules::Tls(vec![DnsPattern::Name("a.example".into())]);
    let sni = Rule { l7: Some(Arc::new(tls)), ..rule(Action::Allow, Peers::Any) };
    let state = state(vec![policy("sni", Tier::Normal, true, vec![sni, rule(Action::Allow, Peers::Any)])]);
    let flow = Flow {
        source: WEB.parse().unwrap(),
        destination: "10.0.0.2".parse().unwrap(),
        protocol: Protocol::Tcp,
        port: 443,
    };
    let side = state.judge(&flow).ingress.unwrap();
    assert!(matches!(side.server_name(Some("a.example")), Layer7::Allow(_)));
    assert!(matches!(side.server_name(Some("b.example")), Layer7::Refuse(_)));
    assert!(matches!(side.server_name(None), Layer7::Refuse(_)));
}
