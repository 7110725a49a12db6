//! Flows summed up to a map: who talks to whom, on which port, and whether it is allowed.
//!
//! Bounded: at most [`MAX_NODES`] nodes and [`MAX_EDGES`] edges. What finds no room takes the place of the
//! edges that were silent for longest, and a reader that looked at the old map is given a new one.

use std::sync::Arc;

use hashbrown::HashMap;
use serde::Serialize;
use serde_json::{Value, json};

use super::source::KnownPod;
use crate::flow::{EventKind, Flow, L7, Party, Verdict};
use crate::model::{Direction, Identity, LabelSource, Protocol};

pub const MAX_NODES: usize = 10_000;
pub const MAX_EDGES: usize = 20_000;
/// Ports told apart between one pair; a scanner's others are one edge with port 0.
const MAX_PORTS: u16 = 48;
/// DNS names and prefixes told apart; the others are the world.
const MAX_OUTSIDERS: usize = 2_000;
/// Methods, query types and the like told apart on one edge.
const MAX_L7: usize = 12;

/// What a node of the map stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum NodeKey {
    /// Pods that are instances of one thing.
    Workload(Arc<str>, Arc<str>),
    /// A machine of the cluster.
    Machine(Arc<str>),
    /// Outside, by the DNS name that a pod used.
    Name(Arc<str>),
    /// Outside, by a prefix that a policy names.
    Prefix(Arc<str>),
    /// A reserved identity: `world`, `host` ...
    Reserved(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    Workload,
    Machine,
    Name,
    Prefix,
    Reserved,
}

#[derive(Debug)]
struct Node {
    key: NodeKey,
    /// Instances seen (bounded); more than one for a workload with replicas.
    pods: Vec<Arc<str>>,
    changed: u64,
}

type EdgeKey = (u32, u32, Protocol, u16);

#[derive(Debug)]
struct Edge {
    key: EdgeKey,
    /// Connections and requests let pass, as each end saw them: a connection between two observed pods is one.
    passed: [u64; 2],
    /// As each end saw them.
    dropped: [u64; 2],
    /// Of the newest drop.
    reason: &'static str,
    last_ns: u64,
    /// What proxies saw: method or query type -> passed, refused.
    l7: Vec<(Arc<str>, u64, u64)>,
    /// The newest flow of each kind, for questions about the edge.
    allowed: Option<Arc<Flow>>,
    denied: Option<Arc<Flow>>,
    changed: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Graph {
    /// Grows with every flow that counts.
    version: u64,
    /// Another number: ids mean something else.
    epoch: u64,
    nodes: Vec<Node>,
    by_node: HashMap<NodeKey, u32>,
    edges: Vec<Edge>,
    by_edge: HashMap<EdgeKey, u32>,
    ports: HashMap<(u32, u32), u16>,
    outsiders: usize,
    /// Flows that followers never saw.
    pub missed: u64,
}

/// Where a reader stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    pub epoch: u64,
    pub version: u64,
}

impl Graph {
    pub fn new(epoch: u64) -> Graph {
        Graph { epoch, ..Graph::default() }
    }

    pub fn cursor(&self) -> Cursor {
        Cursor { epoch: self.epoch, version: self.version }
    }

    /// A pod that exists, whether it talks or not.
    pub fn know_pod(&mut self, pod: &KnownPod) {
        self.version += 1;
        let key = NodeKey::Workload(Arc::clone(&pod.namespace), Arc::clone(&pod.workload));
        if let Some(id) = self.node(key) {
            self.instance(id, &pod.name);
        }
    }

    /// Counts a flow.
    pub fn add(&mut self, flow: &Arc<Flow>) {
        if flow.is_reply {
            return;
        }
        let (passed, dropped) = match (flow.kind, flow.verdict) {
            (_, Verdict::Dropped(_)) => (false, true),
            (EventKind::PolicyVerdict | EventKind::L7, Verdict::Forwarded | Verdict::Redirected) => {
                (true, false)
            }
            (EventKind::PolicyVerdict | EventKind::L7, Verdict::Audit | Verdict::Error) => (false, true),
            _ => return,
        };
        self.version += 1;
        let from = self.party(&flow.source, flow.source_name.as_ref());
        let to = self.party(&flow.destination, flow.destination_name.as_ref());
        let (Some(from), Some(to)) = (from, to) else { return };
        let port = flow.destination_port.unwrap_or(0);
        let id = self.edge(from, to, flow.protocol, port);
        let version = self.version;
        let edge = &mut self.edges[id as usize];
        edge.changed = version;
        edge.last_ns = edge.last_ns.max(flow.time_ns);
        let count = u64::from(flow.count);
        edge.passed[flow.direction as usize] += if passed { count } else { 0 };
        edge.dropped[flow.direction as usize] += if dropped { count } else { 0 };
        if let Verdict::Dropped(reason) = flow.verdict {
            edge.reason = reason.text();
        }
        if let Some(l7) = flow.l7.as_deref() {
            edge.count_l7(l7, passed);
        }
        *(if dropped { &mut edge.denied } else { &mut edge.allowed }) = Some(Arc::clone(flow));
    }

    /// `used`: the name by which the other end looked the address up.
    fn party(&mut self, party: &Party, used: Option<&Arc<str>>) -> Option<u32> {
        let key = key_of(party, used);
        let outside = matches!(key, NodeKey::Name(_) | NodeKey::Prefix(_));
        let key = if outside && self.outsiders >= MAX_OUTSIDERS && !self.by_node.contains_key(&key) {
            NodeKey::Reserved("world")
        } else {
            key
        };
        let id = self.node(key)?;
        if let Some(pod) = &party.pod {
            self.instance(id, pod);
        }
        Some(id)
    }

    fn node(&mut self, key: NodeKey) -> Option<u32> {
        if let Some(id) = self.by_node.get(&key) {
            return Some(*id);
        }
        if self.nodes.len() >= MAX_NODES {
            return None;
        }
        self.outsiders += usize::from(matches!(key, NodeKey::Name(_) | NodeKey::Prefix(_)));
        let id = self.nodes.len() as u32;
        self.nodes.push(Node { key: key.clone(), pods: Vec::new(), changed: self.version });
        self.by_node.insert(key, id);
        Some(id)
    }

    fn instance(&mut self, id: u32, pod: &Arc<str>) {
        let node = &mut self.nodes[id as usize];
        if node.pods.len() < 64 && !node.pods.contains(pod) {
            node.pods.push(Arc::clone(pod));
            node.changed = self.version;
        }
    }

    fn edge(&mut self, from: u32, to: u32, protocol: Protocol, port: u16) -> u32 {
        let key = (from, to, protocol, port);
        if let Some(id) = self.by_edge.get(&key) {
            return *id;
        }
        let ports = self.ports.entry((from, to)).or_default();
        let key = if *ports >= MAX_PORTS { (from, to, protocol, 0) } else { key };
        if let Some(id) = self.by_edge.get(&key) {
            return *id;
        }
        *ports += 1;
        if self.edges.len() >= MAX_EDGES {
            self.forget_silent_edges();
        }
        let id = self.edges.len() as u32;
        self.edges.push(Edge {
            key,
            passed: [0; 2],
            dropped: [0; 2],
            reason: "",
            last_ns: 0,
            l7: Vec::new(),
            allowed: None,
            denied: None,
            changed: self.version,
        });
        self.by_edge.insert(key, id);
        id
    }

    /// Makes room: a tenth of the edges goes, those that were silent for longest.
    fn forget_silent_edges(&mut self) {
        let mut times: Vec<u64> = self.edges.iter().map(|edge| edge.last_ns).collect();
        let cut = times.len() / 10;
        let (_, limit, _) = times.select_nth_unstable(cut);
        let limit = *limit;
        let mut left = cut + 1;
        self.edges.retain(|edge| {
            let goes = left > 0 && edge.last_ns <= limit;
            left -= usize::from(goes);
            !goes
        });
        self.by_edge = self.edges.iter().enumerate().map(|(id, edge)| (edge.key, id as u32)).collect();
        self.ports.clear();
        for edge in &self.edges {
            *self.ports.entry((edge.key.0, edge.key.1)).or_default() += 1;
        }
        self.epoch += 1;
    }

    /// What changed since, as the page reads it: the whole map for a cursor of another epoch.
    pub fn since(&self, cursor: Cursor) -> Option<Value> {
        let whole = cursor.epoch != self.epoch || cursor.version > self.version;
        let from = if whole { 0 } else { cursor.version };
        if !whole && from == self.version {
            return None;
        }
        let is_new = |changed: u64| whole || changed > from;
        let nodes: Vec<Value> = (self.nodes.iter().enumerate())
            .filter(|(_, node)| is_new(node.changed))
            .map(|(id, node)| node.json(id))
            .collect();
        let edges: Vec<Value> = (self.edges.iter().enumerate())
            .filter(|(_, edge)| is_new(edge.changed))
            .map(|(id, edge)| edge.json(id))
            .collect();
        Some(json!({
            "cursor": format!("{}.{}", self.epoch, self.version),
            "whole": whole,
            "nodes": nodes,
            "edges": edges,
            "missed": self.missed,
        }))
    }

    /// The newest denied and the newest allowed flow of an edge.
    pub fn samples(&self, edge: u32) -> Option<[Option<Arc<Flow>>; 2]> {
        self.edges.get(edge as usize).map(|edge| [edge.denied.clone(), edge.allowed.clone()])
    }
}

impl Node {
    fn json(&self, id: usize) -> Value {
        let (kind, namespace, name): (NodeKind, &str, &str) = match &self.key {
            NodeKey::Workload(namespace, name) => (NodeKind::Workload, namespace, name),
            NodeKey::Machine(name) => (NodeKind::Machine, "", name),
            NodeKey::Name(name) => (NodeKind::Name, "", name),
            NodeKey::Prefix(prefix) => (NodeKind::Prefix, "", prefix),
            NodeKey::Reserved(name) => (NodeKind::Reserved, "", name),
        };
        let pods: Vec<&str> = self.pods.iter().map(|pod| &**pod).collect();
        json!({"id": id, "kind": kind, "namespace": namespace, "name": name, "pods": pods})
    }
}

impl Edge {
    fn count_l7(&mut self, l7: &L7, passed: bool) {
        let what: Arc<str> = match l7 {
            L7::Http { method, .. } => Arc::clone(method),
            L7::Dns { query_type, .. } => format!("DNS {query_type}").into(),
            L7::Tls { server_name } => {
                format!("TLS {}", server_name.as_deref().unwrap_or("without a name")).into()
            }
        };
        let place = self.l7.iter().position(|(known, ..)| *known == what);
        let index = place.unwrap_or_else(|| {
            if self.l7.len() < MAX_L7 {
                self.l7.push((what, 0, 0));
            } else if let Some(last) = self.l7.last_mut() {
                last.0 = "others".into();
            }
            self.l7.len() - 1
        });
        let (_, allowed, refused) = &mut self.l7[index];
        *(if passed { allowed } else { refused }) += 1;
    }

    fn json(&self, id: usize) -> Value {
        let (from, to, protocol, port) = self.key;
        // What the caller's side let go and the called side did not take is not allowed.
        let [left, arrived] = [Direction::Egress, Direction::Ingress].map(|side| self.passed[side as usize]);
        let passed = arrived.max(left.saturating_sub(self.dropped[Direction::Ingress as usize]));
        let l7: Vec<Value> =
            self.l7.iter().map(|(what, passed, refused)| json!([&**what, passed, refused])).collect();
        json!([
            id,
            from,
            to,
            protocol.to_string(),
            port,
            passed,
            self.dropped.iter().sum::<u64>(),
            self.last_ns / 1_000_000,
            self.reason,
            l7
        ])
    }
}

fn key_of(party: &Party, used: Option<&Arc<str>>) -> NodeKey {
    if let (Some(namespace), Some(pod)) = (&party.namespace, &party.pod) {
        let workload = party.workload.as_ref().map_or(pod, |workload| &workload.name);
        return NodeKey::Workload(Arc::clone(namespace), Arc::clone(workload));
    }
    if let Some(node) = &party.node {
        return NodeKey::Machine(Arc::clone(node));
    }
    if let Some(name) = used.or(party.names.first()) {
        return NodeKey::Name(Arc::clone(name));
    }
    // The prefix that a policy names; the widest one says no more than "world".
    let prefix =
        party.labels.iter().find(|label| label.source == LabelSource::Cidr && !label.key.ends_with("/0"));
    match (prefix, party.identity.reserved_name()) {
        (Some(label), _) => NodeKey::Prefix(Arc::clone(&label.key)),
        (None, Some("world-ipv4" | "world-ipv6") | None) => NodeKey::Reserved("world"),
        (None, Some("unknown")) if party.identity == Identity::UNKNOWN => NodeKey::Reserved("unknown"),
        (None, Some(name)) => NodeKey::Reserved(name),
    }
}

#[cfg(test)]
#[path = "graph_tests.rs"]
mod tests;
