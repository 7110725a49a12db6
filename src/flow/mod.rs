//! Flows: what happened to traffic, in our own words. PURE.
//!
//! The datapath and the proxies report bare events (addresses, numbers); the agent enriches them
//! with what the node knows (pods, policies, names) into a [`Flow`]. Kept in a [`ring::Ring`],
//! selected by a [`filter::Filter`]. Wire formats are the business of `api`.

pub mod filter;
pub mod record;
pub mod ring;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{Direction, DropReason, Identity, Labels, ObjectRef, Protocol};

/// What was done with the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    Forwarded,
    Dropped(DropReason),
    /// Handed to a proxy, which reports its own verdict.
    Redirected,
    /// Would have been dropped if it were enforced.
    Audit,
    Error,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Forwarded => "FORWARDED",
            Verdict::Dropped(_) => "DROPPED",
            Verdict::Redirected => "REDIRECTED",
            Verdict::Audit => "AUDIT",
            Verdict::Error => "ERROR",
        })
    }
}

/// Where on the node the event was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Observation {
    FromEndpoint,
    ToEndpoint,
    FromNetwork,
    ToNetwork,
    FromOverlay,
    Proxy,
}

/// What kind of event it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A packet was dropped.
    Drop,
    /// A new connection was judged.
    PolicyVerdict,
    /// A packet of a known connection.
    Trace,
    /// A request, a query or a handshake, from a proxy.
    L7,
}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    pub address: IpAddr,
    /// Absent for protocols without ports.
    pub port: Option<u16>,
    pub identity: Identity,
    pub labels: Labels,
    pub namespace: Option<Arc<str>>,
    pub pod: Option<Arc<str>>,
    /// Name of the node whose own address this is.
    pub node: Option<Arc<str>>,
    /// DNS names that a pod used for this address.
    pub names: Vec<Arc<str>>,
}

impl Party {
    /// `ns/pod`, the node's name, a DNS name, a reserved name, or the address.
    pub fn display(&self) -> String {
        if let (Some(namespace), Some(pod)) = (&self.namespace, &self.pod) {
            return format!("{namespace}/{pod}");
        }
        if let Some(node) = &self.node {
            return node.to_string();
        }
        self.names.first().map_or_else(|| self.address.to_string(), |name| name.to_string())
    }
}

/// A policy object, and which of its rules (field paths) had a part in the verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyPart {
    pub object: ObjectRef,
    pub rules: Vec<Arc<str>>,
}

/// What the verdict rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecidedBy {
    /// These policies' rules.
    Rules(Vec<PolicyPart>),
    /// Nothing matched, and these objects turned default deny on (none: the enforcement mode).
    DefaultDeny(Vec<ObjectRef>),
    /// No policy had a say.
    NoPolicy,
}

/// The Service that the client addressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRef {
    /// `namespace/name`; absent when the frontend has gone meanwhile.
    pub name: Option<Arc<str>>,
    pub address: IpAddr,
    pub port: u16,
}

/// What a proxy saw.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum L7 {
    Http { method: Arc<str>, path: Arc<str>, host: Arc<str>, status: u16, latency_us: u64 },
    Dns { query: Arc<str>, query_type: Arc<str>, rcode: Arc<str>, answers: Vec<IpAddr>, latency_us: u64 },
    Tls { server_name: Option<Arc<str>> },
}

/// One observed event with everything that the node knows about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Nanoseconds since 1970, UTC.
    pub time_ns: u64,
    pub node: Arc<str>,
    pub kind: EventKind,
    pub verdict: Verdict,
    /// Direction of the policy that decided, seen from the local endpoint.
    pub direction: Direction,
    pub source: Party,
    pub destination: Party,
    pub protocol: Protocol,
    /// TCP header flags, 0 for other protocols.
    pub tcp_flags: u8,
    /// ICMP type and code.
    pub icmp: Option<(u8, u8)>,
    pub is_reply: bool,
    pub service: Option<ServiceRef>,
    pub decided_by: DecidedBy,
    /// Bytes of the packet (0 for L7 records).
    pub length: u32,
    pub observation: Observation,
    pub l7: Option<L7>,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::Label;

    /// A forwarded TCP connection from shop/frontend to this port of shop/backend.
    pub(crate) fn flow(port: u16) -> Flow {
        let party = |address: &str, pod: &str, port| Party {
            address: address.parse().unwrap(),
            port: Some(port),
            identity: Identity(300),
            labels: [Label::k8s("app", "web")].into_iter().collect(),
            namespace: Some("shop".into()),
            pod: Some(pod.into()),
            node: None,
            names: Vec::new(),
        };
        Flow {
            time_ns: 1_700_000_000_000_000_000 + u64::from(port),
            node: "node1".into(),
            kind: EventKind::PolicyVerdict,
            verdict: Verdict::Forwarded,
            direction: Direction::Egress,
            source: party("10.244.0.5", "frontend", 40000),
            destination: party("10.244.0.6", "backend", port),
            protocol: Protocol::Tcp,
            tcp_flags: 2,
            icmp: None,
            is_reply: false,
            service: None,
            decided_by: DecidedBy::NoPolicy,
            length: 60,
            observation: Observation::FromEndpoint,
            l7: None,
        }
    }
}
