//! Random clusters, written as people write them: manifests of every kind of policy, in both families.
//!
//! The seed is fixed, so that a failure here is a failure everywhere; `PROPTEST_RNG_SEED` chooses another
//! and `PROPTEST_CASES` how many.

use std::fmt::Write as _;
use std::rc::Rc;

use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use serde_json::{Value, json};
use sluice::lab::judge::{self, DISAGREE};
use sluice::lab::report::Status;
use sluice::lab::scenario;

use crate::kernel::KernelJudge;

/// Prefixes that contain one another and that pods, nodes and the world are in.
const CIDRS: &[(&str, &[&str])] = &[
    ("0.0.0.0/0", &["203.0.113.0/24", "10.244.0.0/16"]),
    ("203.0.113.0/24", &["203.0.113.0/28"]),
    ("203.0.113.0/28", &["203.0.113.10/32"]),
    ("203.0.113.10/32", &[]),
    ("10.0.0.0/8", &["10.244.0.0/16"]),
    ("172.18.0.0/16", &[]),
    ("::/0", &["2001:db8::/32", "fd00:244::/48"]),
    ("::/64", &[]),
    ("2001:db8::/32", &["2001:db8:1::/48"]),
    ("2001:db8:1::/48", &[]),
    ("fd00::/8", &["fd00:18::/64"]),
];

fn one_of<T: Clone + std::fmt::Debug + 'static>(values: Vec<T>) -> impl Strategy<Value = T> + Clone {
    prop::sample::select(values)
}

/// A list with its length.
fn list<S: Strategy>(of: S, length: std::ops::Range<usize>) -> impl Strategy<Value = Vec<S::Value>> {
    prop::collection::vec(of, length)
}

fn pod_selector() -> impl Strategy<Value = Value> + Clone {
    one_of(vec![
        json!({}),
        json!({"matchLabels": {"app": "a"}}),
        json!({"matchLabels": {"app": "b"}}),
        json!({"matchLabels": {"app": "a", "tier": "x"}}),
        json!({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["x"]}]}),
        json!({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}),
    ])
}

fn namespace_selector() -> impl Strategy<Value = Value> + Clone {
    one_of(vec![
        json!({}),
        json!({"matchLabels": {"team": "red"}}),
        json!({"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}),
    ])
}

fn endpoint_selector() -> impl Strategy<Value = Value> + Clone {
    prop_oneof![
        4 => pod_selector(),
        1 => one_of(vec![
            json!({"matchLabels": {"k8s:io.kubernetes.pod.namespace": "blue"}}),
            json!({"matchLabels": {"k8s:io.cilium.k8s.namespace.labels.team": "red"}}),
            json!({"matchExpressions": [{"key": "reserved:host", "operator": "Exists"}]}),
            json!({"matchExpressions": [{"key": "reserved:world", "operator": "Exists"}]}),
        ]),
    ]
}

fn cidr_set() -> impl Strategy<Value = Value> + Clone {
    (one_of(CIDRS.to_vec()), any::<bool>()).prop_map(|((cidr, except), holes)| match holes {
        true if !except.is_empty() => json!({"cidr": cidr, "except": except}),
        _ => json!({"cidr": cidr}),
    })
}

/// `networking.k8s.io/v1` NetworkPolicy.
fn network_policy() -> impl Strategy<Value = Value> {
    let peer = prop_oneof![
        pod_selector().prop_map(|pods| json!({"podSelector": pods})),
        namespace_selector().prop_map(|namespaces| json!({"namespaceSelector": namespaces})),
        (pod_selector(), namespace_selector())
            .prop_map(|(pods, namespaces)| json!({"podSelector": pods, "namespaceSelector": namespaces})),
        cidr_set().prop_map(|set| json!({"ipBlock": set})),
    ];
    let port = one_of(vec![
        json!({"port": 80}),
        json!({"port": "http"}),
        json!({"port": 79, "endPort": 8000}),
        json!({"protocol": "UDP"}),
        json!({"protocol": "UDP", "port": 53}),
        json!({"protocol": "SCTP", "port": 80}),
    ]);
    // A port name and an address meet in no rule: see `without_named_addresses` of the offline judge.
    let named = |rule: &Value| {
        let text = rule.to_string();
        text.contains("\"http\"") && text.contains("ipBlock")
    };
    let rule = move |peers: &'static str| {
        (list(peer.clone(), 0..3), list(port.clone(), 0..3))
            .prop_map(move |(from, ports)| match (from.is_empty(), ports.is_empty()) {
                (true, true) => json!({}),
                (true, false) => json!({"ports": ports}),
                (false, true) => json!({peers: from}),
                (false, false) => json!({peers: from, "ports": ports}),
            })
            .prop_filter("a named port with ipBlock", move |rule| !named(rule))
    };
    let types = one_of(vec![json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"])]);
    (pod_selector(), types, list(rule("from"), 0..3), list(rule("to"), 0..3)).prop_map(
        |(pods, types, ingress, egress)| {
            json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "spec": {"podSelector": pods, "policyTypes": types, "ingress": ingress, "egress": egress},
            })
        },
    )
}

/// L3 members of a Cilium rule; `side` is `from` or `to`.
fn cilium_peers(side: &'static str) -> impl Strategy<Value = Value> {
    let entity = one_of(vec![
        "world",
        "world-ipv4",
        "world-ipv6",
        "host",
        "remote-node",
        "cluster",
        "all",
        "none",
        "ingress",
    ]);
    let key = move |member: &str| format!("{side}{member}");
    prop_oneof![
        4 => list(endpoint_selector(), 0..3).prop_map(move |peers| json!({key("Endpoints"): peers})),
        2 => list(entity, 1..3).prop_map(move |peers| json!({key("Entities"): peers})),
        2 => list(one_of(CIDRS.to_vec()), 1..3).prop_map(move |sets| {
            json!({key("CIDR"): sets.iter().map(|(cidr, _)| *cidr).collect::<Vec<_>>()})
        }),
        2 => list(cidr_set(), 1..3).prop_map(move |sets| json!({key("CIDRSet"): sets})),
        1 => Just(json!({key("Nodes"): [{"matchLabels": {"role": "worker"}}]})),
        2 => Just(json!({})),
    ]
}

/// What goes with the L3 members: ports, ICMP types or nothing.
fn cilium_ports() -> impl Strategy<Value = Value> + Clone {
    one_of(vec![
        json!({}),
        json!({"toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}]}]}),
        json!({"toPorts": [{"ports": [{"port": "80"}, {"port": "53", "protocol": "UDP"}]}]}),
        json!({"toPorts": [{"ports": [{"port": "http", "protocol": "TCP"}]}]}),
        json!({"toPorts": [{"ports": [{"port": "60", "endPort": 8080, "protocol": "TCP"}]}]}),
        json!({"toPorts": [{"ports": [{"port": "0", "protocol": "UDP"}]}]}),
        json!({"icmps": [{"fields": [{"type": 8, "family": "IPv4"}, {"type": 128, "family": "IPv6"}]}]}),
    ])
}

fn merged(mut one: Value, other: Value) -> Value {
    if let (Value::Object(one), Value::Object(other)) = (&mut one, other) {
        one.extend(other);
    }
    one
}

/// CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy; on nodes: host firewall rules.
fn cilium_policy() -> impl Strategy<Value = Value> {
    let rule = |side| (cilium_peers(side), cilium_ports()).prop_map(|(peers, ports)| merged(peers, ports));
    let allow = move |side| {
        let http = json!({"toPorts": [{
            "ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"method": "GET"}]},
        }]});
        prop_oneof![6 => rule(side), 1 => cilium_peers(side).prop_map(move |peers| merged(peers, http.clone()))]
    };
    let section = |name: &'static str, present: bool, rules: Vec<Value>| match present {
        true => json!({name: rules}),
        false => json!({}),
    };
    let sections = (
        any::<[bool; 4]>(),
        list(allow("from"), 1..3),
        list(rule("from"), 1..2),
        list(allow("to"), 1..3),
        list(rule("to"), 1..2),
    )
        .prop_map(move |(present, from, deny_from, to, deny_to)| {
            let none = !present.contains(&true);
            let mut spec = section("ingress", present[0] || none, from);
            spec = merged(spec, section("ingressDeny", present[1], deny_from));
            spec = merged(spec, section("egress", present[2], to));
            merged(spec, section("egressDeny", present[3], deny_to))
        });
    let subject = prop_oneof![
        6 => pod_selector().prop_map(|pods| json!({"endpointSelector": pods})),
        1 => Just(json!({"nodeSelector": {"matchLabels": {"role": "worker"}}})),
    ];
    let default_deny = prop_oneof![
        3 => Just(json!({})),
        1 => any::<(bool, bool)>().prop_map(|(ingress, egress)| {
            json!({"enableDefaultDeny": {"ingress": ingress, "egress": egress}})
        }),
    ];
    (subject, default_deny, sections, any::<bool>()).prop_map(|(subject, default_deny, sections, wide)| {
        let on_nodes = subject.get("nodeSelector").is_some();
        let kind = if wide || on_nodes { "CiliumClusterwideNetworkPolicy" } else { "CiliumNetworkPolicy" };
        let mut text = merged(merged(subject, default_deny), sections).to_string();
        if on_nodes {
            // L7 rules are for pods.
            text = text.replace(r#","rules":{"http":[{"method":"GET"}]}"#, "");
        }
        let spec: Value = serde_json::from_str(&text).unwrap();
        json!({"apiVersion": "cilium.io/v2", "kind": kind, "spec": spec})
    })
}

/// `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.
fn cluster_network_policy() -> impl Strategy<Value = Value> {
    let pods = (namespace_selector(), pod_selector())
        .prop_map(|(namespaces, pods)| json!({"namespaceSelector": namespaces, "podSelector": pods}));
    let inside = prop_oneof![
        namespace_selector().prop_map(|namespaces| json!({"namespaces": namespaces})),
        pods.clone().prop_map(|pods| json!({"pods": pods})),
    ];
    let outside = prop_oneof![
        2 => inside.clone(),
        1 => one_of(CIDRS.to_vec()).prop_map(|(cidr, _)| json!({"networks": [cidr]})),
        1 => Just(json!({"nodes": {"matchLabels": {"role": "worker"}}})),
    ];
    let protocols = one_of(vec![
        json!({}),
        json!({"protocols": [{"tcp": {"destinationPort": {"number": 80}}}]}),
        json!({"protocols": [{"tcp": {"destinationPort": {"range": {"start": 70, "end": 8080}}}}]}),
        json!({"protocols": [{"udp": {"destinationPort": {"number": 53}}}]}),
    ]);
    let action = one_of(vec!["Accept", "Deny", "Pass"]);
    let from = (action.clone(), list(inside.clone(), 1..3), protocols.clone())
        .prop_map(|(action, peers, ports)| merged(json!({"action": action, "from": peers}), ports));
    let to = (action, list(outside, 1..3), protocols)
        .prop_map(|(action, peers, ports)| merged(json!({"action": action, "to": peers}), ports));
    let tier = one_of(vec!["Admin", "Admin", "Baseline"]);
    (tier, one_of(vec![0, 1, 999, 1000]), inside, list(from, 0..3), list(to, 0..3)).prop_map(
        |(tier, priority, subject, ingress, egress)| {
            json!({
                "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
                "spec": {"tier": tier, "priority": priority, "subject": subject, "ingress": ingress, "egress": egress},
            })
        },
    )
}

fn policies() -> impl Strategy<Value = Vec<Value>> {
    let policy = prop_oneof![3 => network_policy(), 4 => cilium_policy(), 3 => cluster_network_policy()];
    list((policy, one_of(vec!["red", "blue"])), 1..6).prop_map(|policies| {
        policies
            .into_iter()
            .enumerate()
            .map(|(index, (policy, namespace))| {
                let name = format!("p{index}");
                let namespaced =
                    matches!(policy["kind"].as_str(), Some("NetworkPolicy" | "CiliumNetworkPolicy"));
                let metadata = match namespaced {
                    true => json!({"name": name, "namespace": namespace}),
                    false => json!({"name": name}),
                };
                merged(policy, json!({"metadata": metadata}))
            })
            .collect()
    })
}

fn pods() -> impl Strategy<Value = Vec<Value>> {
    let labels = one_of(vec![
        json!({"app": "a"}),
        json!({"app": "b"}),
        json!({"app": "a", "tier": "x"}),
        json!({"app": "b", "tier": "y"}),
    ]);
    let port = one_of(vec![80, 8080]);
    list((labels, port), 4..5).prop_map(|pods| {
        let places = [("red", "node1"), ("red", "node2"), ("blue", "node1"), ("blue", "node2")];
        pods.into_iter()
            .zip(places)
            .map(|((labels, port), (namespace, node))| {
                // Pods of blue may share an identity; those of red have a Service each.
                let labels = match namespace {
                    "red" => merged(labels, json!({"only": node})),
                    _ => labels,
                };
                json!({
                    "apiVersion": "v1", "kind": "Pod",
                    "metadata": {"namespace": namespace, "name": format!("on-{node}"), "labels": labels},
                    "spec": {"nodeName": node, "containers": [
                        {"name": "c", "ports": [{"name": "http", "containerPort": port}]},
                    ]},
                })
            })
            .collect()
    })
}

/// Without `cidrMatchMode: nodes`: a node is one identity, so a prefix that holds one of its addresses matches all
/// of them, and nodes have two here.
fn options() -> impl Strategy<Value = Value> {
    (
        one_of(vec!["default", "default", "default", "always", "never"]),
        any::<bool>(),
        one_of(vec!["always", "policy"]),
    )
        .prop_map(|(enforcement, firewall, localhost)| {
            json!({"policyEnforcement": enforcement, "hostFirewall": firewall, "allowLocalhost": localhost})
        })
}

/// Everybody tries everything; a policy is deleted; everybody tries again.
fn scenario_text(options: &Value, pods: &[Value], objects: &[Value], deleted: &Value) -> String {
    let from = ["red/on-node1", "red/on-node2", "blue/on-node1", "blue/on-node2"];
    let outside = ["external:one", "external:two", "node:node1", "node:node2", "ingress:node1"];
    let mut steps = String::new();
    let all = |steps: &mut String| {
        for source in from.iter().chain(&outside) {
            for target in from.iter().chain(&outside).filter(|target| !target.starts_with("ingress")) {
                for port in ["80", "8080"] {
                    writeln!(steps, "  - {{from: \"{source}\", to: \"{target}:{port}\", expect: allowed}}")
                        .unwrap();
                }
                writeln!(
                    steps,
                    "  - {{from: \"{source}\", to: \"{target}\", protocol: ICMP, expect: allowed}}"
                )
                .unwrap();
            }
        }
        for protocol in ["UDP", "SCTP"] {
            for (source, target) in [(from[0], from[3]), (from[2], outside[0]), (outside[1], from[1])] {
                for port in [53, 80] {
                    writeln!(
                        steps,
                        "  - {{from: \"{source}\", to: \"{target}:{port}\", protocol: {protocol}, expect: allowed}}"
                    )
                    .unwrap();
                }
            }
        }
    };
    all(&mut steps);
    let namespace =
        deleted["metadata"].get("namespace").map_or(String::new(), |name| format!("namespace: {name}, "));
    let (kind, name) = (&deleted["kind"], &deleted["metadata"]["name"]);
    writeln!(steps, "  - {{delete: {{kind: {kind}, {namespace}name: {name}}}}}").unwrap();
    all(&mut steps);
    let mut text = format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: Scenario\nmetadata: {{name: random}}\nspec:\n  options: {options}\n  \
         nodes: [{{name: node1, labels: {{role: worker}}}}, node2]\n  externals:\n  \
         - {{name: one, addresses: [203.0.113.10, \"2001:db8:1::10\"]}}\n  \
         - {{name: two, addresses: [203.0.113.77, \"2001:db8:2::77\"]}}\n  steps:\n{steps}---\n\
         apiVersion: v1\nkind: Namespace\nmetadata: {{name: red, labels: {{team: red}}}}\n"
    );
    for object in pods.iter().chain(objects) {
        writeln!(text, "---\n{object}").unwrap();
    }
    for node in ["node1", "node2"] {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "red", "name": format!("to-{node}")},
            "spec": {"selector": {"only": node}, "ports": [{"port": 1000, "targetPort": 80}]},
        });
        writeln!(text, "---\n{service}").unwrap();
    }
    text
}

/// More than a few only where somebody asks for them.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(32)
}

#[test]
fn the_kernel_agrees_on_random_clusters() {
    let kernel = Rc::new(KernelJudge::new());
    let config = ProptestConfig {
        cases: cases(),
        rng_seed: RngSeed::Fixed(0x511ce),
        max_shrink_iters: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let clusters = (options(), pods(), policies(), any::<prop::sample::Index>());
    let outcome = TestRunner::new(config).run(&clusters, |(options, pods, policies, deleted)| {
        let deleted = deleted.get(&policies).clone();
        let text = scenario_text(&options, &pods, &policies, &deleted);
        let file = scenario::read("random.yaml", &text);
        let problems: Vec<String> = file.problems.iter().map(ToString::to_string).collect();
        prop_assert!(problems.is_empty(), "{problems:#?}");
        let result = judge::run_with("random.yaml", &file.scenarios[0], kernel.clone());
        let result = result.map_err(|refused| TestCaseError::fail(refused.to_string()))?;
        for step in result.steps {
            if let Status::Failed { got, because, .. } = &step.status {
                prop_assert!(got != DISAGREE, "{}: {because}\n{text}", step.title);
            }
        }
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    assert!(kernel.grouped() > 2 * cases() as usize, "{} entries for groups", kernel.grouped());
    assert!(kernel.judged() > 2000 * cases() as usize, "{} packets", kernel.judged());
}
