//! Made-up clusters as manifests: what people would apply.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use sluice::cluster::{Change, MissingNamespaces, ViewOptions};
use sluice::k8s;

/// Name of the node that is measured.
pub const NODE: &str = "node0";
/// Pods with one `app` label are replicas of an application; there are this many applications.
pub const APPS: usize = 200;
const OTHER_NODES: usize = 50;

/// How large.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Pods of [`NODE`].
    pub local: usize,
    /// Pods of all nodes. Each has labels of its own, so this is the number of identities.
    pub pods: usize,
    pub policies: usize,
}

/// The size that the bars of the issue name.
pub const FULL: Size = Size { local: 200, pods: 10_000, policies: 1_000 };

pub fn pod_name(index: usize) -> String {
    format!("pod-{index}")
}

pub fn pod_address(index: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0a40_0100 + index as u32))
}

pub fn node_address(index: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0xac12_0002 + index as u32))
}

/// A pod; its labels are `app`, `instance` and what `extra` says.
pub fn pod(index: usize, local: usize, extra: &str) -> String {
    let node = if index < local { 0 } else { 1 + index % OTHER_NODES };
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  namespace: bench\n  name: {}\n  labels: {{app: a{}, instance: i{index}{extra}}}\nspec:\n  nodeName: node{node}\n  containers: [{{name: main}}]\nstatus:\n  podIPs: [{{ip: {}}}]\n",
        pod_name(index),
        index % APPS,
        pod_address(index),
    )
}

/// A policy for the pods of one application: those of another may come in.
pub fn policy(index: usize) -> String {
    policy_of(index, (index * 7 + 3) % APPS)
}

/// The same with the other application given.
pub fn policy_of(index: usize, from: usize) -> String {
    format!(
        "---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{namespace: bench, name: p{index}}}\nspec:\n  endpointSelector: {{matchLabels: {{app: a{}}}}}\n  ingress:\n  - fromEndpoints: [{{matchLabels: {{app: a{from}}}}}]\n    toPorts: [{{ports: [{{port: \"{}\", protocol: TCP}}]}}]\n",
        index % APPS,
        8000 + index % 50,
    )
}

pub fn nodes() -> String {
    (0..=OTHER_NODES)
        .map(|index| {
            format!(
                "---\napiVersion: v1\nkind: Node\nmetadata: {{name: node{index}}}\nstatus:\n  addresses: [{{type: InternalIP, address: {}}}]\n",
                node_address(index)
            )
        })
        .collect()
}

pub fn pods(size: Size) -> String {
    (0..size.pods).map(|index| pod(index, size.local, "")).collect()
}

pub fn policies(range: std::ops::Range<usize>) -> String {
    range.map(policy).collect()
}

/// The prefix and the port of the rule with this number.
pub fn cidr_rule(index: usize) -> (String, u16) {
    let (high, low) = (index / 250, index % 250);
    (format!("192.{}.{}.0/24", high % 200, low + 1), 1000 + (index % 5000) as u16)
}

/// One policy for one pod with `rules` rules: a prefix and a port each.
pub fn cidr_policy(name: &str, pod: usize, rules: std::ops::Range<usize>) -> String {
    let mut text = format!(
        "---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{namespace: bench, name: {name}}}\nspec:\n  endpointSelector: {{matchLabels: {{instance: i{pod}}}}}\n  ingress:\n",
    );
    for index in rules {
        let (prefix, port) = cidr_rule(index);
        writeln!(
            text,
            "  - {{fromCIDR: [{prefix}], toPorts: [{{ports: [{{port: \"{port}\", protocol: TCP}}]}}]}}"
        )
        .expect("a string grows");
    }
    text
}

/// The objects of a text as changes.
pub fn changes(text: &str) -> anyhow::Result<Vec<Change>> {
    let manifest = k8s::parse("bench", text, &k8s::ParseOptions::default());
    let problems: Vec<String> = manifest.problems.iter().take(3).map(|p| p.message.clone()).collect();
    anyhow::ensure!(manifest.is_valid(), "the made-up cluster is invalid: {}", problems.join("; "));
    Ok(manifest.documents.into_iter().map(|document| Change::Upsert(document.resource)).collect())
}

pub fn view_options() -> ViewOptions {
    ViewOptions {
        node: NODE.to_owned(),
        cluster_name: "default".to_owned(),
        missing_namespaces: MissingNamespaces::Exist,
        ..ViewOptions::default()
    }
}
