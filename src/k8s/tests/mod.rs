//! Tests of whole manifests: text in, model types or problems out.

mod budgets;
mod cilium;
mod cluster_network_policy;
mod definitions;
mod manifest;
mod network_policy;
mod objects;
mod scenarios;
mod selectors;

use super::{Manifest, ParseOptions, parse};
use crate::cluster::Resource;
use crate::model::{Label, LabelSource, Labels};
use crate::policy::rule::{Peer, Peers, Policy, Rule, Spec};
use crate::policy::selector::LabelSelector;

fn read(text: &str) -> Manifest {
    parse("test.yaml", text, &ParseOptions::default())
}

/// The one resource of a valid text.
fn resource(text: &str) -> Resource {
    let manifest = read(text);
    assert!(manifest.is_valid(), "{}", shown(&manifest));
    assert_eq!(manifest.documents.len(), 1, "{text}");
    manifest.documents.into_iter().next().unwrap().resource
}

fn policy(text: &str) -> Policy {
    match resource(text) {
        Resource::Policy(policy) => policy,
        other => panic!("{other:?} is no policy"),
    }
}

/// The warnings of a valid text.
fn warnings(text: &str) -> String {
    let manifest = read(text);
    assert!(manifest.is_valid(), "{}", shown(&manifest));
    manifest.warnings().map(|problem| format!("{problem}\n")).collect()
}

/// Every problem of a text that must be rejected whole.
fn problems(text: &str) -> String {
    let manifest = read(text);
    assert!(!manifest.is_valid(), "accepted: {text}");
    assert!(manifest.documents.is_empty(), "a document was kept: {text}");
    shown(&manifest)
}

fn shown(manifest: &Manifest) -> String {
    manifest.problems.iter().map(|problem| format!("{problem}\n")).collect()
}

/// Asserts that a text is rejected with a problem that holds all of these words.
#[track_caller]
fn rejected(text: &str, words: &[&str]) {
    let found = problems(text);
    assert!(
        found.lines().any(|line| words.iter().all(|word| line.contains(word))),
        "no problem with {words:?} in:\n{found}"
    );
}

/// A CNP `shop/p` that selects everything, with these lines under `spec`.
fn cnp(lines: &str) -> String {
    let body: String = lines.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{namespace: shop, name: p}}\nspec:\n  endpointSelector: {{}}\n{body}"
    )
}

/// A NetworkPolicy `shop/p` with these lines under `spec`.
fn knp(lines: &str) -> String {
    let body: String = lines.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: shop, name: p}}\nspec:\n{body}"
    )
}

/// The only spec of a policy.
fn spec(text: &str) -> Spec {
    let mut policy = policy(text);
    assert_eq!(policy.specs.len(), 1);
    policy.specs.remove(0)
}

/// The only rule of a policy.
fn rule(text: &str) -> Rule {
    let mut spec = spec(text);
    assert_eq!(spec.rules.len(), 1, "{:?}", spec.rules);
    spec.rules.remove(0)
}

fn peers(rule: &Rule) -> &[Peer] {
    match &rule.peers {
        Peers::OneOf(peers) => peers,
        Peers::Any => panic!("every peer"),
    }
}

/// The only peer of a rule, a selector of pods.
fn peer_selector(text: &str) -> LabelSelector {
    match peers(&rule(text)) {
        [Peer::Pods(selector)] => selector.clone(),
        other => panic!("{other:?}"),
    }
}

/// Identity labels of a pod in a namespace that has the label `team=<team>`.
fn pod_labels(namespace: &str, team: &str, own: &[(&str, &str)]) -> Labels {
    let meta = [
        Label::k8s("io.kubernetes.pod.namespace", namespace),
        Label::k8s("io.cilium.k8s.namespace.labels.team", team),
    ];
    own.iter().map(|(key, value)| Label::k8s(key, value)).chain(meta).collect()
}

fn reserved_labels(name: &str) -> Labels {
    [Label::new(LabelSource::Reserved, name, "")].into_iter().collect()
}
