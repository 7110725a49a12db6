//! Cilium selectors: sources, namespaces, and what can never be selected.

use proptest::prelude::*;

use super::{cnp, peer_selector, pod_labels, policy, read, rejected, reserved_labels, warnings};
use crate::model::{Label, LabelSource, Labels};
use crate::policy::rule::Subject;
use crate::policy::selector::LabelSelector;

fn subject_of(kind: &str, selector: &str) -> LabelSelector {
    let namespace = if kind == "CiliumNetworkPolicy" { "namespace: shop, " } else { "" };
    let text = format!(
        "apiVersion: cilium.io/v2\nkind: {kind}\nmetadata: {{{namespace}name: p}}\nspec: {{endpointSelector: {selector}, ingress: [{{}}]}}\n"
    );
    match &policy(&text).specs[0].subject {
        Subject::Pods(Some(selector)) => selector.clone(),
        other => panic!("{other:?}"),
    }
}

fn cnp_peer(selector: &str) -> LabelSelector {
    peer_selector(&cnp(&format!("ingress: [{{fromEndpoints: [{selector}]}}]")))
}

fn ccnp_peer(selector: &str) -> LabelSelector {
    peer_selector(&format!(
        "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {{name: p}}\nspec: {{endpointSelector: {{}}, ingress: [{{fromEndpoints: [{selector}]}}]}}\n"
    ))
}

fn web(namespace: &str) -> Labels {
    pod_labels(namespace, "a", &[("app", "web")])
}

#[test]
fn a_key_without_a_source_matches_every_source() {
    let labels: Labels = [Label::new(LabelSource::Unspec, "app", "web")].into_iter().collect();
    assert!(subject_of("CiliumClusterwideNetworkPolicy", "{matchLabels: {app: web}}").matches(&labels));
    assert!(
        subject_of("CiliumClusterwideNetworkPolicy", "{matchLabels: {\"any:app\": web}}").matches(&labels)
    );
    assert!(
        !subject_of("CiliumClusterwideNetworkPolicy", "{matchLabels: {\"k8s:app\": web}}").matches(&labels)
    );
}

#[test]
fn only_a_colon_separates_a_source() {
    let subject = subject_of("CiliumNetworkPolicy", "{matchLabels: {k8s.app: web}}");
    assert!(!subject.matches(&web("shop")));
    assert!(subject.matches(&pod_labels("shop", "a", &[("k8s.app", "web")])));
    rejected(
        &cnp("ingress: [{fromEndpoints: [{matchLabels: {\"container:app\": web}}]}]"),
        &["found the label source \"container\""],
    );
}

#[test]
fn the_misprint_of_the_namespace_label_is_read_with_a_warning() {
    let text = cnp("ingress: [{fromEndpoints: [{matchLabels: {k8s.io.kubernetes.pod.namespace: other}}]}]");
    assert!(peer_selector(&text).matches(&web("other")));
    assert!(!peer_selector(&text).matches(&web("shop")));
    assert!(warnings(&text).contains("is read as k8s:io.kubernetes.pod.namespace"));
}

#[test]
fn a_namespace_in_an_endpoint_selector_is_ignored_with_a_warning() {
    for selector in [
        "{matchLabels: {\"k8s:io.kubernetes.pod.namespace\": other}}",
        "{matchLabels: {io.kubernetes.pod.namespace: other}}",
        "{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: In, values: [other, third]}]}",
    ] {
        let subject = subject_of("CiliumNetworkPolicy", selector);
        assert!(subject.matches(&web("shop")), "{selector}");
        assert!(!subject.matches(&web("other")), "{selector}");
    }
    let text = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {namespace: shop, name: p}\nspec: {endpointSelector: {matchLabels: {io.kubernetes.pod.namespace: other}}, ingress: [{}]}\n";
    assert!(warnings(text).contains("is ignored, shop holds"));
    let own = text.replace("other", "shop");
    assert!(warnings(&own).is_empty());
}

#[test]
fn a_peer_without_a_namespace_stays_in_the_policys_namespace() {
    for selector in
        ["{}", "{matchLabels: {app: web}}", "{matchExpressions: [{key: x, operator: DoesNotExist}]}"]
    {
        assert!(cnp_peer(selector).matches(&web("shop")), "{selector}");
        assert!(!cnp_peer(selector).matches(&web("other")), "{selector}");
        for name in ["world", "host", "remote-node"] {
            assert!(!cnp_peer(selector).matches(&reserved_labels(name)), "{selector} {name}");
        }
    }
}

#[test]
fn a_peer_may_name_namespaces_by_name_or_label() {
    assert!(cnp_peer("{matchLabels: {\"k8s:io.kubernetes.pod.namespace\": other}}").matches(&web("other")));
    assert!(!cnp_peer("{matchLabels: {\"k8s:io.kubernetes.pod.namespace\": other}}").matches(&web("shop")));
    let labelled = cnp_peer("{matchLabels: {\"k8s:io.cilium.k8s.namespace.labels.team\": a}}");
    assert!(labelled.matches(&web("other")));
    assert!(!labelled.matches(&pod_labels("other", "b", &[])));
}

#[test]
fn a_namespace_key_of_another_source_does_not_lift_the_scope() {
    let peer =
        cnp_peer("{matchExpressions: [{key: \"cidr:io.kubernetes.pod.namespace\", operator: DoesNotExist}]}");
    assert!(peer.matches(&web("shop")));
    assert!(!peer.matches(&web("other")));
}

#[test]
fn a_reserved_key_is_left_as_it_is() {
    let peer = cnp_peer("{matchLabels: {\"reserved:host\": \"\"}}");
    assert!(peer.matches(&reserved_labels("host")));
    assert!(!peer.matches(&reserved_labels("world")) && !peer.matches(&web("shop")));
    assert!(
        warnings(&cnp("ingress: [{fromEndpoints: [{matchLabels: {\"reserved:hosts\": \"\"}}]}]"))
            .contains("no reserved identity \"hosts\"")
    );
}

#[test]
fn the_empty_peer_of_a_clusterwide_policy_is_every_pod_and_nothing_else() {
    for selector in ["{}", "{matchExpressions: [{key: x, operator: DoesNotExist}]}"] {
        let peer = ccnp_peer(selector);
        assert!(peer.matches(&web("shop")) && peer.matches(&web("other")), "{selector}");
        assert!(!peer.matches(&reserved_labels("world")) && !peer.matches(&reserved_labels("host")));
        let stray: Labels = [Label::k8s("app", "web")].into_iter().collect();
        assert!(!peer.matches(&stray), "a namespace is required");
    }
    assert!(ccnp_peer("{matchLabels: {\"reserved:world\": \"\"}}").matches(&reserved_labels("world")));
}

#[test]
fn a_null_selector_in_a_list_selects_nothing() {
    let text = cnp("ingress: [{fromEndpoints: [null]}]");
    assert!(super::peers(&super::rule(&text)).is_empty());
    assert!(warnings(&text).contains("selects nothing"));
}

#[test]
fn long_namespace_label_keys_are_accepted() {
    let key = format!("io.cilium.k8s.namespace.labels.{}", "a".repeat(63));
    assert!(read(&cnp(&format!("ingress: [{{fromEndpoints: [{{matchLabels: {{{key}: x}}}}]}}]"))).is_valid());
}

#[test]
fn equal_selectors_are_equal_values() {
    let one = cnp_peer("{matchLabels: {a: x, b: y}}");
    let other = cnp_peer(
        "{matchExpressions: [{key: b, operator: In, values: [y, y]}, {key: a, operator: In, values: [x]}]}",
    );
    assert_eq!(one, other);
}

proptest! {
    /// CVE-2023-41333 of a peer: whatever a CNP's endpointSelector says, it selects inside its own
    /// namespace only.
    #[test]
    fn a_cnp_never_selects_outside_its_namespace(
        requirements in prop::collection::vec(
            (
                prop::sample::select(vec!["", "k8s:", "any:", "reserved:", "node:", "unspec:"]),
                prop::sample::select(vec![
                    "io.kubernetes.pod.namespace", "io.cilium.k8s.namespace.labels.team", "app", "host",
                    "io.cilium.k8s.policy.cluster",
                ]),
                prop::sample::select(vec!["In", "NotIn", "Exists", "DoesNotExist"]),
                prop::sample::select(vec!["other", "shop", "a", "web"]),
            ),
            0..4,
        ),
    ) {
        let expressions: Vec<String> = requirements
            .iter()
            .map(|(source, key, operator, value)| {
                let values = if operator.ends_with("In") { format!(", values: [{value}]") } else { String::new() };
                format!("{{key: \"{source}{key}\", operator: {operator}{values}}}")
            })
            .collect();
        let subject = subject_of("CiliumNetworkPolicy", &format!("{{matchExpressions: [{}]}}", expressions.join(", ")));
        for labels in [web("other"), pod_labels("third", "other", &[]), reserved_labels("host"), reserved_labels("world")] {
            prop_assert!(!subject.matches(&labels), "{labels}");
        }
    }
}
