//! DNS answers and the identities that they make.

use super::*;
use crate::cluster::delta::Cause;
use crate::fqdn::Learned;
use crate::policy::l7::DnsPattern;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn answer(name: &str, ttl: u64, addresses: &[&str]) -> Learned {
    Learned { name: name.into(), addresses: addresses.iter().map(|text| (ip(text), seconds(ttl))).collect() }
}

fn fqdn(pattern: &str) -> Peer {
    Peer::Fqdn(if pattern.contains('*') {
        DnsPattern::Pattern(pattern.into())
    } else {
        DnsPattern::Name(pattern.into())
    })
}

#[test]
fn an_address_is_allowed_from_the_answer_to_its_end() {
    let mut view = small_cluster();
    view.apply(vec![egress("p", &[], vec![fqdn("a.example")])]).unwrap();
    let delta = view.learn(seconds(0), &answer("a.example", 10, &["192.0.2.1", "2001:db8::1"]));
    assert_eq!((delta.ipcache.len(), delta.cause), (2, Cause::Names));
    assert_eq!(scope_of(&view, "192.0.2.1").unwrap().1, ["a.example"]);
    assert_ne!(identity_of(&view, "192.0.2.1"), identity_of(&view, "2001:db8::1"), "families differ");
    assert!(view.learn(seconds(5), &answer("a.example", 10, &["192.0.2.1"])).is_empty(), "only the TTL");
    assert_eq!(view.next_expiry(), Some(seconds(10)));
    assert_eq!(view.expire(seconds(10)).ipcache, [(net("2001:db8::1/128"), None)]);
    view.expire(seconds(15));
    assert_eq!(identity_of(&view, "192.0.2.1"), Identity::WORLD_IPV4);
}

#[test]
fn names_that_no_rule_can_tell_apart_share_one_identity() {
    let mut view = small_cluster();
    view.apply(vec![egress("p", &[], vec![fqdn("*.example")])]).unwrap();
    view.learn(seconds(0), &answer("a.example", 10, &["192.0.2.1"]));
    view.learn(seconds(0), &answer("b.example", 10, &["192.0.2.2"]));
    view.learn(seconds(0), &answer("other", 10, &["192.0.2.3"]));
    assert_eq!(identity_of(&view, "192.0.2.1"), identity_of(&view, "192.0.2.2"));
    assert_eq!(identity_of(&view, "192.0.2.3"), Identity::WORLD_IPV4);
    view.apply(vec![egress("q", &[], vec![fqdn("a.example")])]).unwrap();
    assert_eq!(scope_of(&view, "192.0.2.1").unwrap().1, ["*.example", "a.example"], "fresh answers count");
    assert_ne!(identity_of(&view, "192.0.2.1"), identity_of(&view, "192.0.2.2"));
    view.apply(vec![delete_policy("q"), delete_policy("p")]).unwrap();
    assert_eq!(identity_of(&view, "192.0.2.1"), Identity::WORLD_IPV4);
}

#[test]
fn an_address_carries_the_longest_prefix_around_it_as_rules_come_and_go() {
    let mut view = small_cluster();
    view.apply(vec![egress("p", &[], vec![fqdn("a.example")])]).unwrap();
    view.learn(seconds(0), &answer("a.example", 10, &["192.0.2.1"]));
    let prefix = |view: &View| scope_of(view, "192.0.2.1").unwrap().0;
    assert_eq!(prefix(&view), "");
    view.apply(vec![egress("q", &[], vec![Peer::Cidr(cidr("192.0.0.0/8", &["192.0.2.0/24"]))])]).unwrap();
    assert_eq!(prefix(&view), "192.0.2.0/24");
    view.apply(vec![egress("q", &[], vec![Peer::Cidr(cidr("192.0.0.0/8", &[]))])]).unwrap();
    assert_eq!(prefix(&view), "192.0.0.0/8");
    view.apply(vec![delete_policy("q")]).unwrap();
    assert_eq!(prefix(&view), "");
}

#[test]
fn an_answer_never_speaks_about_the_cluster() {
    let mut view = small_cluster();
    view.apply(vec![
        egress("p", &[], vec![fqdn("evil.example")]),
        pod("b/victim", LOCAL, &["10.50.0.1"], &[]),
    ])
    .unwrap();
    let before = state(&view);
    let mut own =
        vec!["10.50.0.1", "10.244.7.7", "172.18.0.11", "172.18.0.12", "127.0.0.1", "224.0.0.1", "0.0.0.0"];
    // To the kernel those are the same.
    own.extend(["::ffff:10.50.0.1", "::ffff:10.244.7.7", "::ffff:172.18.0.12"]);
    assert!(view.learn(seconds(0), &answer("evil.example", 100, &own)).is_empty());
    assert_eq!(state(&view), before);
    // What leaves the cluster is the world's again, and what joins it is the cluster's.
    view.apply(vec![delete(Kind::Pod, "b", "victim")]).unwrap();
    assert_eq!(scope_of(&view, "10.50.0.1").unwrap().1, ["evil.example"]);
    view.apply(vec![pod("b/victim", LOCAL, &["10.50.0.1"], &[])]).unwrap();
    assert!(identity_of(&view, "10.50.0.1").is_cluster_scope());
}

#[test]
fn answers_survive_a_restart() {
    let mut view = small_cluster();
    view.apply(vec![egress("p", &[], vec![fqdn("a.example")])]).unwrap();
    view.learn(seconds(0), &answer("a.example", 30, &["192.0.2.1"]));
    let snapshot = view.names_snapshot(seconds(10));
    let mut restarted = small_cluster();
    restarted.restore_names(seconds(1000), seconds(5), &snapshot);
    restarted.apply(vec![egress("p", &[], vec![fqdn("a.example")])]).unwrap();
    assert_eq!(scope_of(&restarted, "192.0.2.1").unwrap().1, ["a.example"]);
    assert_eq!(restarted.next_expiry(), Some(seconds(1015)));
}
