//! Hostile texts cost a bounded amount and never a panic.

use proptest::prelude::*;

use super::{cnp, knp, read, rejected, shown};
use crate::k8s::{MAX_DEPTH, MAX_INPUT_BYTES, MAX_OBJECT_BYTES};

#[test]
fn an_alias_bomb_is_refused_early() {
    let mut text = "a: &a [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for (previous, name) in "abcdefghi".chars().zip("bcdefghij".chars()) {
        let uses = vec![format!("*{previous}"); 10].join(",");
        text.push_str(&format!("{name}: &{name} [{uses}]\n"));
    }
    rejected(&text, &["aliases add more than", "5:"]);
}

#[test]
fn merge_keys_count_as_aliases() {
    let mut text = "base: &base {a: 1, b: 2, c: 3, d: 4}\nlist:\n".to_owned();
    text.push_str(&"- {<<: *base}\n".repeat(30_000));
    rejected(&text, &["aliases add more than"]);
}

#[test]
fn deep_nesting_is_refused() {
    rejected(&"[".repeat(100_000), &["test.yaml:1:"]);
    let blocks: String = (0..MAX_DEPTH + 2).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    rejected(&blocks, &["test.yaml:"]);
}

#[test]
fn an_object_of_ten_megabytes_is_refused() {
    let filler = "x".repeat(99);
    let lines: String = (0..100_000).map(|index| format!("    k{index}: {filler}\n")).collect();
    let text = format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  annotations:\n{lines}");
    assert!(text.len() > 10 << 20);
    rejected(&text, &["test.yaml:1:1", "bytes, at most", &MAX_OBJECT_BYTES.to_string()]);
}

/// The parser counts characters, and the API server what it is sent.
#[test]
fn an_object_of_long_characters_is_measured_in_bytes() {
    let lines: String =
        (0..40_000).map(|index| format!("    k{index}: {}\n", "\u{1f6b0}".repeat(20))).collect();
    let text = format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  annotations:\n{lines}");
    assert!(text.chars().count() < MAX_OBJECT_BYTES && text.len() > MAX_OBJECT_BYTES);
    let said = read(&text).problems[0].to_string();
    let size = text.len().to_string();
    assert!(said.contains("bytes, at most") && said.contains(&size[..3]), "{said}");
}

#[test]
fn an_input_without_end_is_refused() {
    rejected(&" ".repeat(MAX_INPUT_BYTES + 1), &["at most"]);
}

#[test]
fn anchors_inside_each_other_are_kept_within_a_budget() {
    let text = format!("{}{}{}", "&a [".repeat(60), "[],".repeat(50_000), "]".repeat(60));
    // Not an object, and not a memory bomb either.
    assert!(shown(&read(&text)).contains("expected a mapping"));
}

#[test]
fn an_alias_inside_its_own_value_is_refused() {
    rejected("a: &a [*a]\n", &["1:8", "alias"]);
}

#[test]
fn tags_and_binary_do_not_confuse_the_types() {
    rejected(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {app: !!int 5}}\n",
        &["metadata.labels[app]", "expected a string"],
    );
    assert!(read("apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {app: !!str 5}}\n").is_valid());
}

fn corpus() -> Vec<String> {
    vec![
        cnp("ingress:\n- fromEndpoints: [{matchLabels: {app: a}}]\n  toPorts: [{ports: [{port: \"80\", protocol: TCP}], rules: {http: [{path: \"/a\"}]}}]\negressDeny:\n- toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]"),
        cnp("egress:\n- toFQDNs: [{matchPattern: \"*.example.com\"}]\n- icmps: [{fields: [{type: 8}]}]\n- toServices: [{k8sService: {serviceName: a}}]"),
        knp("podSelector: {}\npolicyTypes: [Egress]\negress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: 80, endPort: 90}]}]"),
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: a}\nspec: {tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Accept, to: [{networks: [10.0.0.0/8]}], protocols: [{tcp: {destinationPort: {number: 1}}}]}]}\n".to_owned(),
        "apiVersion: v1\nkind: List\nitems:\n- &pod {apiVersion: v1, kind: Pod, metadata: {name: a}, status: {podIPs: [{ip: 10.0.0.1}]}}\n- *pod\n".to_owned(),
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: None, ports: [{port: 1, targetPort: http}]}\n".to_owned(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn mutated_manifests_never_panic_and_errors_have_a_place(
        which in 0..6_usize,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..12_usize), 1..6),
    ) {
        const PIECES: [&str; 12] =
            ["", "\n", "{", "]", ": ", "&a ", "*a", "<<: ", "- ", "99999999999999999999", "~", "\u{0}\u{fffd}\""];
        let mut text = corpus()[which].clone();
        for (at, until, piece) in &edits {
            let places: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
            let (one, two) = (*at.get(&places), *until.get(&places));
            let end = one.max(two).min(one.min(two) + 12);
            let end = places.iter().copied().find(|place| *place >= end).unwrap_or(text.len());
            text.replace_range(one.min(two)..end, PIECES[*piece]);
        }
        let manifest = read(&text);
        for problem in &manifest.problems {
            prop_assert!(problem.position.line >= 1 && problem.position.column >= 1, "{}", problem);
        }
    }

    #[test]
    fn any_text_at_all_never_panics(text in "\\PC{0,200}") {
        read(&text);
    }
}
