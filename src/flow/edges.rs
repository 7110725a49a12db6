//! Flows counted by edge: what is left of a span of time when its flows are no longer kept one by one.
//!
//! An edge is who talked to whom over which port with which verdict and by which policy (and with which
//! request, answer or name). It is itself a [`Flow`] that stands for `count` packets. The number of edges is
//! bounded: beyond it addresses of the world and requests are no longer told apart, then nothing is, and every
//! packet is still counted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hashbrown::HashMap;

use super::{DecidedBy, EventKind, Flow, HttpVersion, L7, Observation, Party, Verdict};
use crate::model::{Direction, Family, Identity, Protocol};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct End {
    address: IpAddr,
    identity: Identity,
    pod: Option<Arc<str>>,
    port: Option<u16>,
    name: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    node: Arc<str>,
    source: End,
    destination: End,
    protocol: Protocol,
    icmp: Option<(u8, u8)>,
    verdict: Verdict,
    direction: Direction,
    kind: EventKind,
    observation: Observation,
    is_reply: bool,
    by: DecidedBy,
    l7: Option<Asked>,
}

/// What tells requests apart that are counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Asked {
    Http(Arc<str>, Arc<str>, u16, HttpVersion),
    Dns(Arc<str>, Arc<str>, Arc<str>),
    Tls(Option<Arc<str>>),
}

/// Edges of one span of time.
#[derive(Debug)]
pub struct Edges {
    flows: HashMap<Key, Flow>,
    most: usize,
}

impl Edges {
    /// At most this many edges, and a few more for what does not fit.
    pub fn new(most: usize) -> Edges {
        Edges { flows: HashMap::new(), most: most.max(1) }
    }

    /// Counts a flow, or an edge that was counted earlier.
    pub fn add(&mut self, flow: &Flow) {
        let mut edge = edge(flow);
        let mut key = key(&edge);
        if self.flows.len() >= self.most && !self.flows.contains_key(&key) {
            coarsen(&mut edge);
            key = self::key(&edge);
            if self.flows.len() >= 2 * self.most && !self.flows.contains_key(&key) {
                blur(&mut edge);
                key = self::key(&edge);
            }
        }
        match self.flows.get_mut(&key) {
            Some(known) => merge(known, edge),
            None => {
                self.flows.insert(key, edge);
            }
        }
    }

    pub fn len(&self) -> usize {
        self.flows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// In the order of their first packets.
    pub fn into_flows(self) -> Vec<Arc<Flow>> {
        let mut flows: Vec<_> = self.flows.into_values().map(Arc::new).collect();
        flows.sort_by_key(|flow| (flow.time_ns, flow.sequence));
        flows
    }
}

/// A flow without what only one of many has.
fn edge(flow: &Flow) -> Flow {
    let mut edge = flow.clone();
    if flow.source_port.is_some() && flow.destination_port.is_some() {
        // The client's port means nothing beyond the connection.
        if flow.is_reply { edge.destination_port = None } else { edge.source_port = None }
    }
    match edge.l7.as_deref_mut() {
        Some(L7::Http { path, mismatches, .. }) => {
            *path = "".into();
            mismatches.clear();
        }
        Some(L7::Dns { answers, .. }) => answers.clear(),
        _ => {}
    }
    edge
}

fn key(edge: &Flow) -> Key {
    let end = |party: &Party, port, name: &Option<Arc<str>>| End {
        address: party.address,
        identity: party.identity,
        pod: party.pod.clone(),
        port,
        name: name.clone(),
    };
    Key {
        node: Arc::clone(&edge.node),
        source: end(&edge.source, edge.source_port, &edge.source_name),
        destination: end(&edge.destination, edge.destination_port, &edge.destination_name),
        protocol: edge.protocol,
        icmp: edge.icmp,
        verdict: edge.verdict,
        direction: edge.direction,
        kind: edge.kind,
        observation: edge.observation,
        is_reply: edge.is_reply,
        by: edge.decision.by.clone(),
        l7: edge.l7.as_deref().map(|l7| match l7 {
            L7::Http { method, host, status, version, .. } => {
                Asked::Http(Arc::clone(method), Arc::clone(host), *status, *version)
            }
            L7::Dns { query, query_type, rcode, .. } => {
                Asked::Dns(Arc::clone(query), Arc::clone(query_type), Arc::clone(rcode))
            }
            L7::Tls { server_name } => Asked::Tls(server_name.clone()),
        }),
    }
}

fn unspecified(address: IpAddr) -> IpAddr {
    match Family::of(address) {
        Family::IPv4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::IPv6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Addresses that are of no pod and no node, names and requests are no longer told apart.
fn coarsen(edge: &mut Flow) {
    for party in [&mut edge.source, &mut edge.destination] {
        if party.pod.is_none() && party.node.is_none() {
            let labels = party.labels.clone();
            let unknown = Party::unknown(unspecified(party.address), party.identity);
            *party = Arc::new(Party { labels, ..unknown });
        }
    }
    (edge.source_name, edge.destination_name) = (None, None);
    edge.l7 = None;
}

/// Only the verdict is left.
fn blur(edge: &mut Flow) {
    for party in [&mut edge.source, &mut edge.destination] {
        *party = Arc::new(Party::unknown(unspecified(party.address), Identity::UNKNOWN));
    }
    (edge.source_port, edge.destination_port, edge.icmp) = (None, None, None);
    edge.decision = Arc::new(super::Decision::none());
    (edge.service, edge.interface) = (None, None);
}

fn merge(known: &mut Flow, other: Flow) {
    if let (Some(mine), Some(theirs)) = (known.l7.as_deref_mut(), other.l7.as_deref()) {
        mean_latency(mine, known.count, theirs, other.count);
    }
    known.count = known.count.saturating_add(other.count);
    known.length = known.length.saturating_add(other.length);
    known.tcp_flags |= other.tcp_flags;
    if (other.time_ns, other.sequence) < (known.time_ns, known.sequence) {
        (known.time_ns, known.sequence) = (other.time_ns, other.sequence);
    }
}

fn mean_latency(mine: &mut L7, of: u32, theirs: &L7, more: u32) {
    let (
        L7::Http { latency_us: mean, .. } | L7::Dns { latency_us: mean, .. },
        L7::Http { latency_us: other, .. } | L7::Dns { latency_us: other, .. },
    ) = (mine, theirs)
    else {
        return;
    };
    let (of, more) = (u128::from(of), u128::from(more));
    let sum = u128::from(*mean) * of + u128::from(*other) * more;
    *mean = u64::try_from(sum / (of + more).max(1)).unwrap_or(u64::MAX);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests::flow;

    fn total(flows: &[Arc<Flow>]) -> u64 {
        flows.iter().map(|flow| u64::from(flow.count)).sum()
    }

    #[test]
    fn connections_of_one_edge_are_counted_together() {
        let mut edges = Edges::new(100);
        for port in [40000, 40001, 40002] {
            edges.add(&Flow { source_port: Some(port), ..flow(80) });
        }
        edges.add(&flow(81));
        let flows = edges.into_flows();
        assert_eq!(flows.iter().map(|flow| flow.count).collect::<Vec<_>>(), [3, 1]);
        assert_eq!((flows[0].source_port, flows[0].destination_port), (None, Some(80)));
        assert_eq!(flows[0].length, 180);
    }

    #[test]
    fn counting_in_two_steps_is_counting_in_one() {
        let all: Vec<Flow> =
            (0..100_u16).map(|n| Flow { sequence: n.into(), source_port: Some(n), ..flow(n % 7) }).collect();
        let mut at_once = Edges::new(100);
        all.iter().for_each(|flow| at_once.add(flow));
        let mut first = Edges::new(100);
        all[..50].iter().for_each(|flow| first.add(flow));
        let mut second = Edges::new(100);
        first.into_flows().iter().for_each(|edge| second.add(edge));
        all[50..].iter().for_each(|flow| second.add(flow));
        assert_eq!(at_once.into_flows(), second.into_flows());
    }

    #[test]
    fn a_scan_of_the_world_is_bounded_and_every_packet_counted() {
        let mut edges = Edges::new(50);
        for number in 0..10_000_u32 {
            let address = IpAddr::from(Ipv4Addr::from(0x0100_0000 + number));
            let destination = Arc::new(Party::unknown(address, Identity::WORLD));
            let flow = flow((number % 1000) as u16);
            edges.add(&Flow { destination, ..flow });
        }
        assert!(edges.len() <= 102, "{}", edges.len());
        assert_eq!(total(&edges.into_flows()), 10_000);
    }

    #[test]
    fn latency_becomes_the_mean() {
        let dns = |latency_us| L7::Dns {
            query: "a.example".into(),
            query_type: "A".into(),
            rcode: "NOERROR".into(),
            answers: vec![],
            latency_us,
        };
        let mut edges = Edges::new(10);
        for latency in [100, 200, 600] {
            edges.add(&Flow { l7: Some(Box::new(dns(latency))), ..flow(53) });
        }
        assert_eq!(edges.into_flows()[0].latency_us(), Some(300));
    }
}
