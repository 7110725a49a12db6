//! JSON forms of the admin API, used by the agent to answer and by the command line to read.
//!
//! Names are camelCase. Members are only ever added; an absent optional member means "not known".

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::model::{Direction, Labels, ObjectRef};

/// `GET /v1/status`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    pub version: String,
    pub node: String,
    pub cluster: String,
    /// `standalone`, `server URL` or `kubernetes`.
    pub source: String,
    /// Seconds since the agent started.
    pub uptime_seconds: u64,
    pub revision: Revision,
    /// Worst of the components: `ok`, `degraded` or `failed`.
    pub health: String,
    pub components: Vec<Component>,
    pub counts: Counts,
    /// Kernel features and whether they are used.
    pub features: Vec<Feature>,
    pub options: BTreeMap<String, String>,
    /// The L7 proxies that answer.
    #[serde(default)]
    pub proxies: Vec<Proxy>,
    pub resident_bytes: u64,
    /// Where the web UI is; absent where it is off or could not be opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ui: Option<String>,
    /// Names that pods looked up, as `toFQDNs` needs them.
    pub names: Names,
}

/// Names and what was counted about them since the start.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Names {
    /// Now.
    pub names: usize,
    /// Now.
    pub addresses: usize,
    pub expired: u64,
    /// Dropped early, because their name had too many addresses.
    pub evicted_addresses: u64,
    /// Dropped early, to make room for those of clients that had fewer, though a rule wants them.
    pub evicted_names: u64,
    /// The same, of names that no rule wants.
    pub evicted_spare_names: u64,
    /// Answers that were not learned, because there were too many names.
    pub refused_names: u64,
    /// Answers that were not learned whole, because there were too many addresses of all names.
    pub refused_addresses: u64,
    /// Answers that were not learned, because their addresses did not fit the kernel's tables.
    pub refused_answers: u64,
}

/// A proxy process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Proxy {
    /// `http-proxy` or `dns-proxy`.
    pub name: String,
    pub pid: u32,
    /// Since its start, by name.
    pub counters: BTreeMap<String, u64>,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Revision {
    /// Revision of the objects that the agent knows.
    pub desired: u64,
    /// Revision that the kernel enforces.
    pub realized: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Component {
    pub name: String,
    /// `ok`, `degraded` or `failed`.
    pub state: String,
    pub message: String,
    /// Failures since the start.
    pub failures: u64,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Counts {
    pub endpoints: usize,
    pub endpoints_ready: usize,
    pub identities: usize,
    pub policies: usize,
    pub services: usize,
    pub ipcache: usize,
    pub policy_entries: usize,
    pub flows_seen: u64,
    pub flows_lost: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Feature {
    pub name: String,
    pub state: String,
    pub detail: String,
}

/// One line of `POST /v1/objects` or `DELETE`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ObjectResult {
    pub object: ObjectRef,
    /// `created`, `configured`, `unchanged` or `deleted`.
    pub action: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Applied {
    pub revision: u64,
    pub results: Vec<ObjectResult>,
    pub warnings: Vec<String>,
}

/// Body of every answer that is not 2xx.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Failure {
    pub error: String,
    /// For invalid input: every problem, with file, line, column and field path.
    pub problems: Vec<String>,
}

/// An object of the store.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredObject {
    pub object: ObjectRef,
    /// The text that was applied.
    pub manifest: String,
    /// Policies: local endpoints that it selects.
    #[serde(default)]
    pub selects: Option<usize>,
}

/// `PUT /v1/endpoints`: a local pod's device.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointRequest {
    /// `namespace/name`.
    pub pod: String,
    /// Network namespace of the pod (a path); its device `interface` is a veth whose other end is in the
    /// agent's namespace.
    #[serde(default)]
    pub netns: Option<String>,
    /// Device in the pod's namespace [eth0].
    #[serde(default)]
    pub interface: Option<String>,
    /// Or: the device on the node's side.
    #[serde(default)]
    pub host_interface: Option<String>,
    /// Whether the device is there already.
    #[serde(default)]
    pub device: DeviceOrigin,
    /// For pods that no object describes: their labels and addresses.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// Where the device of a new endpoint comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DeviceOrigin {
    #[default]
    Existing,
    /// A veth pair is made, with the pod's addresses and routes, and deleted with the endpoint.
    Create,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    pub id: u16,
    pub pod: String,
    pub interface: String,
    pub ifindex: u32,
    pub mac: String,
    pub addresses: Vec<IpAddr>,
    pub identity: u32,
    pub labels: Labels,
    /// `ready`, `waiting-for-identity`, `waiting-for-device` or `failed`.
    pub state: String,
    pub ingress: Enforcement,
    pub egress: Enforcement,
    pub policy_entries: usize,
}

/// How one direction of an endpoint is governed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Enforcement {
    pub default_deny: bool,
    /// Objects that select the endpoint in this direction.
    pub policies: Vec<ObjectRef>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdentityInfo {
    pub id: u32,
    pub labels: Labels,
    /// `reserved`, `cluster`, `cidr`, `node` or `address-class`.
    pub scope: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpcacheInfo {
    pub prefix: String,
    pub identity: u32,
    pub labels: Labels,
    pub tunnel_endpoint: Option<IpAddr>,
}

/// An address that a DNS answer gave for a name.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NameInfo {
    pub name: String,
    pub address: IpAddr,
    /// What is left of the answer's TTL.
    pub ttl_seconds: u64,
    /// `toFQDNs` patterns for which some fresh answer holds the address.
    pub patterns: Vec<String>,
    pub identity: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceInfo {
    pub service: String,
    pub frontend: String,
    pub protocol: String,
    pub backends: Vec<String>,
    pub affinity_seconds: Option<u32>,
}

/// `GET /v1/explain`: what happens to a connection, and why.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainAnswer {
    /// `allowed`, `denied` or `redirected`.
    pub verdict: String,
    pub sides: Vec<ExplainSide>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainSide {
    pub direction: Direction,
    pub verdict: String,
    /// `rules`, `default-deny`, `no-policy`, `allow-localhost` or `hairpin`.
    pub because: String,
    /// Deciding objects (for default deny: those that turned it on).
    pub objects: Vec<ObjectRef>,
    pub rules: Vec<String>,
    /// The rule that came closest, and what it missed by.
    pub near_miss: Option<String>,
    /// The node that decides it; absent where that is the node that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}
