//! Flows: what happened to traffic, in our own words. PURE.
//!
//! The datapath and the proxies report bare events (addresses, numbers); the agent enriches them
//! with what the node knows (pods, policies, names) into a [`Flow`]. Kept in a [`ring::Ring`],
//! selected by a [`filter::Filter`]. Wire formats are the business of `api`.

pub mod block;
pub mod directory;
pub mod edges;
pub mod filter;
pub mod journal;
mod memo;
mod recent;
pub mod record;
pub mod record_batch;
pub mod ring;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{Direction, DropReason, Identity, Labels, ObjectRef, Protocol, Workload};
use crate::policy::rule::RuleMatch;

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

/// Who one end of a flow is: everything that the node knows about an address under an identity.
///
/// Shared: flows of one address hold the same `Party`, so that a full ring stays small.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Party {
    pub address: IpAddr,
    pub identity: Identity,
    /// Of the identity.
    pub labels: Labels,
    pub namespace: Option<Arc<str>>,
    pub pod: Option<Arc<str>>,
    /// What the pod belongs to.
    pub workload: Option<Workload>,
    /// Number of the endpoint, for pods of this node.
    pub endpoint: Option<u16>,
    /// Name of the node whose own address this is.
    pub node: Option<Arc<str>>,
    /// DNS names whose answers held this address, newest first.
    pub names: Vec<Arc<str>>,
}

impl Party {
    /// An address of which nothing else is known.
    pub fn unknown(address: IpAddr, identity: Identity) -> Party {
        Party {
            address,
            identity,
            labels: Labels::default(),
            namespace: None,
            pod: None,
            workload: None,
            endpoint: None,
            node: None,
            names: Vec::new(),
        }
    }

    /// `ns/pod`, the node's name, a DNS name, or the address.
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
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct PolicyPart {
    pub object: ObjectRef,
    pub rules: Vec<Arc<str>>,
}

/// What the verdict rests on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum DecidedBy {
    /// These policies' rules.
    Rules(Vec<PolicyPart>),
    /// Nothing matched, and these objects turned default deny on (none: the enforcement mode).
    DefaultDeny(Vec<ObjectRef>),
    /// No policy had a say.
    NoPolicy,
}

/// What the verdict rests on, and since which revision of the policies.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Decision {
    pub by: DecidedBy,
    /// Of the objects that the kernel enforced when this was looked up.
    pub revision: u64,
    /// What the rules matched on, where rules decided.
    #[serde(default)]
    pub matched: Option<RuleMatch>,
}

impl Decision {
    /// No policy had a say.
    pub fn none() -> Decision {
        Decision { by: DecidedBy::NoPolicy, revision: 0, matched: None }
    }
}

/// The device that the packet was seen on.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Interface {
    pub index: u32,
    /// Absent when the device has gone meanwhile.
    pub name: Option<Arc<str>>,
}

/// The Service that the client addressed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ServiceRef {
    /// `namespace/name`; absent when the frontend has gone meanwhile.
    pub name: Option<Arc<str>>,
    pub address: IpAddr,
    pub port: u16,
}

/// The version of HTTP that the client spoke.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum HttpVersion {
    Http10,
    /// Also of records that were written before versions were told.
    #[default]
    Http11,
    Http2,
}

impl fmt::Display for HttpVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HttpVersion::Http10 => "HTTP/1.0",
            HttpVersion::Http11 => "HTTP/1.1",
            HttpVersion::Http2 => "HTTP/2",
        })
    }
}

/// What a proxy saw.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum L7 {
    Http {
        method: Arc<str>,
        path: Arc<str>,
        host: Arc<str>,
        status: u16,
        latency_us: u64,
        #[serde(default)]
        version: HttpVersion,
        /// Names of headers that were not as a rule wants them (`mismatch: LOG`), in lower case; never values.
        #[serde(default)]
        mismatches: Vec<Arc<str>>,
    },
    Dns {
        query: Arc<str>,
        query_type: Arc<str>,
        rcode: Arc<str>,
        answers: Vec<IpAddr>,
        latency_us: u64,
    },
    Tls {
        server_name: Option<Arc<str>>,
    },
}

/// One observed event with everything that the node knows about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Nanoseconds since 1970, UTC.
    pub time_ns: u64,
    /// Counts the flows of one run of the agent, from 1; 0 before the hub has taken the flow.
    pub sequence: u64,
    /// The node that observed it.
    pub node: Arc<str>,
    pub kind: EventKind,
    pub verdict: Verdict,
    /// Direction of the policy that decided, seen from the local endpoint.
    pub direction: Direction,
    pub source: Arc<Party>,
    /// Absent for protocols without ports.
    pub source_port: Option<u16>,
    /// The name by which the other end last looked the source up (replies of outside servers).
    pub source_name: Option<Arc<str>>,
    pub destination: Arc<Party>,
    pub destination_port: Option<u16>,
    /// The name by which the source last looked the destination up.
    pub destination_name: Option<Arc<str>>,
    pub protocol: Protocol,
    /// TCP header flags, 0 for other protocols.
    pub tcp_flags: u8,
    /// ICMP type and code.
    pub icmp: Option<(u8, u8)>,
    pub is_reply: bool,
    /// A packet of a connection that was known already.
    pub is_established: bool,
    pub service: Option<Arc<ServiceRef>>,
    pub decision: Arc<Decision>,
    /// Bytes of the packet (0 for L7 records).
    pub length: u32,
    /// Packets or requests that this stands for: identical drops and old history are counted together.
    pub count: u32,
    pub observation: Observation,
    pub interface: Option<Arc<Interface>>,
    pub l7: Option<Box<L7>>,
}

impl Flow {
    /// DNS names of the source, the one that was used first.
    pub fn source_names(&self) -> impl Iterator<Item = &Arc<str>> {
        names(self.source_name.as_ref(), &self.source)
    }

    /// DNS names of the destination, the one that was used first.
    pub fn destination_names(&self) -> impl Iterator<Item = &Arc<str>> {
        names(self.destination_name.as_ref(), &self.destination)
    }

    /// A version 8 UUID (RFC 9562, section 5.8): time, node and sequence. The same flow always has the same.
    pub fn uuid(&self) -> u128 {
        let millis = u128::from(self.time_ns / 1_000_000) & 0xffff_ffff_ffff;
        let below = u128::from((self.time_ns % 1_000_000) >> 8);
        // FNV-1a: stable across versions, and short names differ.
        let node = self.node.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let rest = (u128::from(node & 0x3fff_ffff) << 32) | u128::from(self.sequence & 0xffff_ffff);
        (millis << 80) | (8 << 76) | (below << 64) | (2 << 62) | rest
    }

    /// Microseconds that the answer took, where a proxy measured it.
    pub fn latency_us(&self) -> Option<u64> {
        match self.l7.as_deref()? {
            L7::Http { latency_us, .. } | L7::Dns { latency_us, .. } => Some(*latency_us),
            L7::Tls { .. } => None,
        }
    }
}

/// 8-4-4-4-12 hexadecimal digits.
pub fn uuid_text(uuid: u128) -> String {
    let hex = format!("{uuid:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

fn names<'a>(used: Option<&'a Arc<str>>, party: &'a Party) -> impl Iterator<Item = &'a Arc<str>> {
    used.into_iter().chain(party.names.iter().filter(move |name| Some(*name) != used))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::Label;

    /// A forwarded TCP connection from shop/frontend to this port of shop/backend.
    pub(crate) fn flow(port: u16) -> Flow {
        let party = |address: &str, pod: &str| {
            Arc::new(Party {
                labels: [Label::k8s("app", "web")].into_iter().collect(),
                namespace: Some("shop".into()),
                pod: Some(pod.into()),
                workload: Some(Workload::new("Deployment", pod)),
                endpoint: Some(7),
                ..Party::unknown(address.parse().unwrap(), Identity(300))
            })
        };
        Flow {
            time_ns: 1_700_000_000_000_000_000 + u64::from(port),
            node: "node1".into(),
            kind: EventKind::PolicyVerdict,
            verdict: Verdict::Forwarded,
            direction: Direction::Egress,
            sequence: 0,
            source: party("10.244.0.5", "frontend"),
            source_port: Some(40000),
            source_name: None,
            destination: party("10.244.0.6", "backend"),
            destination_port: Some(port),
            destination_name: None,
            protocol: Protocol::Tcp,
            tcp_flags: 2,
            icmp: None,
            is_reply: false,
            service: None,
            is_established: false,
            decision: Arc::new(Decision::none()),
            length: 60,
            count: 1,
            interface: None,
            observation: Observation::FromEndpoint,
            l7: None,
        }
    }

    #[test]
    fn a_uuid_is_of_version_8_and_tells_flows_apart() {
        let one = Flow { sequence: 1, ..flow(80) };
        let two = Flow { sequence: 2, ..flow(80) };
        let text = uuid_text(one.uuid());
        assert_eq!((text.len(), &text[14..15], text.matches('-').count()), (36, "8", 4), "{text}");
        assert!("89ab".contains(&text[19..20]), "{text}");
        assert_ne!(one.uuid(), two.uuid());
        assert_eq!(one.uuid(), one.clone().uuid());
    }

    #[test]
    fn a_flow_is_small() {
        assert!(std::mem::size_of::<Flow>() <= 256, "{}", std::mem::size_of::<Flow>());
    }
}
