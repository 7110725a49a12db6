//! The objects that the evaluator reads, and what an address is to them (semantics, sections 2, 3).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::model::{
    EndpointSlice, Family, KubeLabels, Label, LabelSource, Labels, LabelsBuilder, Namespace, Node, ObjectRef,
    Pod, Service,
};
use crate::policy::rule::{CidrGroup, Policy};

/// `--policy-enforcement`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Default,
    Always,
    Never,
}

/// `--allow-localhost`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LocalhostMode {
    #[default]
    Always,
    Policy,
}

/// What CIDR rules of CNP and CCNP say about nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeMode {
    #[default]
    NeverByCidr,
    ByCidr,
}

/// What the operator chose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Switches {
    pub mode: Mode,
    pub localhost: LocalhostMode,
    pub nodes: NodeMode,
    /// Nodes are endpoints of CCNPs with `nodeSelector`.
    pub host_firewall: HostFirewall,
    /// `io.cilium.k8s.policy.cluster`.
    pub cluster: String,
    /// Where pods get their addresses from: an address in here that no pod has is unknown.
    pub pod_ranges: Vec<IpNet>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostFirewall {
    #[default]
    Off,
    On,
}

/// An address that a node's DNS proxy released to a pod in an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub node: String,
    /// The queried name; lower case, no trailing dot.
    pub name: String,
    pub address: IpAddr,
    /// First moment at which it is no longer fresh.
    pub expires: Duration,
}

/// Everything that bears on a verdict.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub switches: Switches,
    pub namespaces: BTreeMap<String, Namespace>,
    pub nodes: BTreeMap<String, Node>,
    /// By namespace and name.
    pub pods: BTreeMap<(String, String), Pod>,
    pub services: BTreeMap<(String, String), Service>,
    pub slices: BTreeMap<(String, String), EndpointSlice>,
    pub groups: BTreeMap<String, CidrGroup>,
    pub policies: BTreeMap<ObjectRef, Policy>,
    /// Addresses of the gateway entity (`reserved:ingress`), with the node it is on.
    pub gateways: BTreeMap<IpAddr, String>,
    pub answers: Vec<Answer>,
    pub now: Duration,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug)]
pub enum Party<'a> {
    Pod(&'a Pod),
    /// A node; also every host-network pod on it.
    Node(&'a Node),
    /// The gateway entity on a node.
    Gateway {
        node: &'a str,
    },
    /// Outside of the cluster.
    World,
    /// In the cluster's range, but of nobody that we know.
    Unknown,
}

impl Party<'_> {
    /// The node that the party is on.
    pub fn node(&self) -> Option<&str> {
        match self {
            Party::Pod(pod) => pod.node.as_deref(),
            Party::Node(node) => Some(&node.name),
            Party::Gateway { node } => Some(node),
            Party::World | Party::Unknown => None,
        }
    }
}

impl State {
    /// Pod addresses first, then nodes, then the world.
    pub fn party(&self, address: IpAddr) -> Party<'_> {
        let own = |pod: &&Pod| !pod.host_network && pod.addresses.contains(&address);
        if let Some(pod) = self.pods.values().find(own) {
            return Party::Pod(pod);
        }
        if let Some(node) = self.nodes.values().find(|node| node.addresses.contains(&address)) {
            return Party::Node(node);
        }
        if let Some(node) = self.gateways.get(&address) {
            return Party::Gateway { node };
        }
        if self.switches.pod_ranges.iter().any(|range| range.contains(&address)) {
            return Party::Unknown;
        }
        Party::World
    }

    /// The API server answers at this address.
    pub fn is_api_server(&self, address: IpAddr) -> bool {
        self.slices
            .values()
            .filter(|slice| slice.namespace == "default" && slice.service == "kubernetes")
            .flat_map(|slice| &slice.endpoints)
            .any(|endpoint| endpoint.addresses.contains(&address))
    }

    /// The labels of a party as a policy on `viewer` (a node) sees them. Pods have their own
    /// labels, and those that only the cluster may say, which they cannot override.
    pub fn labels(&self, party: Party<'_>, address: IpAddr, viewer: &str) -> Labels {
        let mut labels = LabelsBuilder::default();
        match party {
            Party::Pod(pod) => {
                for (key, value) in &pod.labels {
                    if key != "io.kubernetes.pod.namespace"
                        && !key.starts_with("io.cilium.k8s.")
                        && !key.starts_with("io.sluice.")
                    {
                        labels.set(Label::k8s(key, value));
                    }
                }
                let implicit = KubeLabels::from([("kubernetes.io/metadata.name", &pod.namespace)]);
                let of_namespace =
                    self.namespaces.get(&pod.namespace).map_or(&implicit, |found| &found.labels);
                for (key, value) in of_namespace {
                    labels.set(Label::k8s(&format!("io.cilium.k8s.namespace.labels.{key}"), value));
                }
                labels.set(Label::k8s("io.kubernetes.pod.namespace", &pod.namespace));
                labels.set(Label::k8s("io.cilium.k8s.policy.serviceaccount", &pod.service_account));
                labels.set(Label::k8s("io.cilium.k8s.policy.cluster", &self.switches.cluster));
            }
            Party::Node(node) => {
                labels.set(Label::reserved(if node.name == viewer { "host" } else { "remote-node" }));
                if node.addresses.iter().any(|address| self.is_api_server(*address)) {
                    labels.set(Label::reserved("kube-apiserver"));
                }
                for (key, value) in &node.labels {
                    labels.set(Label::new(LabelSource::Node, key, value));
                }
            }
            Party::Gateway { .. } => labels.set(Label::reserved("ingress")),
            Party::World => {
                labels.set(Label::reserved("world"));
                labels.set(Label::reserved(match Family::of(address) {
                    Family::IPv4 => "world-ipv4",
                    Family::IPv6 => "world-ipv6",
                }));
                if self.is_api_server(address) {
                    labels.set(Label::reserved("kube-apiserver"));
                }
            }
            Party::Unknown => labels.set(Label::reserved("unknown")),
        }
        labels.build()
    }

    /// The names that own `address` on this node now: fresh answers that its DNS proxy released.
    pub fn fresh_names(&self, node: &str, address: IpAddr) -> BTreeSet<String> {
        self.answers
            .iter()
            .filter(|answer| answer.node == node && answer.address == address && self.now < answer.expires)
            .map(|answer| answer.name.clone())
            .collect()
    }
}
