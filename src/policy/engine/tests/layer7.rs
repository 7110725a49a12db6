//! Rules with L7 parts: what goes to a proxy, and what lifts it.

use std::sync::Arc;

use super::support::*;
use crate::model::{Direction, Protocol};
use crate::policy::decision::Outcome;
use crate::policy::l7::{HttpRule, L7Rules};
use crate::policy::map_state::Proxy;
use crate::policy::rule::{Action, Peers, Rule};

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
