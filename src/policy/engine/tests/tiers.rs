//! Tiers and their priorities, and the modes of enforcement.

use std::sync::Arc;

use super::support::*;
use crate::model::Identity;
use crate::policy::decision::Because;
use crate::policy::engine::{Enforcement, EngineOptions};
use crate::policy::rule::{Action, Peers, Rule, Tier};

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
