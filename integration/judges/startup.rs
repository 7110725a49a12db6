//! What is known at the start comes in any order (CVE-2024-42488 in a peer): with some of it missing, what the
//! policy forbids is not delivered, from the moment at which the policy is known.

use sluice::cluster::{Change, View, ViewOptions};
use sluice::identity::MemoryAllocator;
use sluice::k8s::{self, ParseOptions};
use sluice::model::Protocol;
use sluice::policy::oracle::Flow;

use crate::kernel::KernelJudge;

/// The policy is the first of them: see [`POLICY`].
const ALLOWED_BY_LABEL: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: server}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress: [{from: [{namespaceSelector: {matchLabels: {team: a}}}], ports: [{port: 80}]}]
"#;
/// Everybody may, but one team.
const DENIED_BY_LABEL: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {namespace: shop, name: server}
spec:
  endpointSelector: {matchLabels: {app: server}}
  ingress: [{fromEntities: [all]}]
  ingressDeny:
  - fromEndpoints: [{matchLabels: {"k8s:io.cilium.k8s.namespace.labels.team": a, "k8s:io.kubernetes.pod.namespace": web}}]
    toPorts: [{ports: [{port: "81"}]}]
"#;
const OBJECTS: &str = r#"
---
apiVersion: v1
kind: Namespace
metadata: {name: web, labels: {team: a}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Node
metadata: {name: node1}
status: {addresses: [{type: InternalIP, address: 172.18.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: web, name: client, labels: {app: client}}
spec: {nodeName: node1}
status: {podIPs: [{ip: 10.244.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: server, labels: {app: server}}
spec: {nodeName: node1}
status: {podIPs: [{ip: 10.244.0.2}]}
"#;
const POLICY: usize = 0;
const ALL: usize = 6;

fn orders(rest: &[usize]) -> Vec<Vec<usize>> {
    if rest.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for first in rest {
        let others: Vec<usize> = rest.iter().copied().filter(|other| other != first).collect();
        all.extend(orders(&others).into_iter().map(|order| [&[*first], order.as_slice()].concat()));
    }
    all
}

#[test]
fn what_no_rule_allows_is_not_delivered_in_any_order_of_start_up() {
    nothing_forbidden_is_delivered(ALLOWED_BY_LABEL);
}

#[test]
fn what_a_rule_denies_by_label_is_not_delivered_in_any_order_of_start_up() {
    nothing_forbidden_is_delivered(DENIED_BY_LABEL);
}

/// The policy lets the client reach port 80 and not port 81.
#[track_caller]
fn nothing_forbidden_is_delivered(policy: &str) {
    let manifest = k8s::parse("startup.yaml", &format!("{policy}{OBJECTS}"), &ParseOptions::default());
    assert!(manifest.problems.is_empty(), "{:?}", manifest.problems);
    let changes: Vec<Change> =
        manifest.documents.iter().map(|document| Change::Upsert(document.resource.clone())).collect();
    assert_eq!(changes.len(), ALL);
    let kernel = KernelJudge::new();
    let flow = |port| Flow {
        source: [10, 244, 0, 1].into(),
        destination: [10, 244, 0, 2].into(),
        protocol: Protocol::Tcp,
        port,
    };
    for order in orders(&[0, 1, 2, 3, 4, 5]) {
        let options = ViewOptions {
            node: "node1".into(),
            cluster_name: "default".into(),
            pod_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            ..ViewOptions::default()
        };
        let grace = std::time::Duration::from_secs(900);
        let mut view = View::new(options, Box::new(MemoryAllocator::new(grace)));
        for (known, index) in order.iter().enumerate() {
            view.apply(vec![changes[*index].clone()]).unwrap();
            if order[..=known].contains(&POLICY) {
                assert!(!kernel.delivers(&view, &flow(81)), "{:?} of {order:?}", &order[..=known]);
            }
        }
        assert!(kernel.delivers(&view, &flow(80)), "all is known, and the policy allows it");
    }
}
