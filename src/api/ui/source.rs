//! What the web UI shows: implemented by whoever has flows (an agent, a relay), and by a double in tests.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::api::backend::Answer;
use crate::api::types::{Enforcement, ExplainSide};
use crate::flow::Flow;
use crate::model::{ObjectRef, Protocol};

/// Whose flows these are, and whether all is well there.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct About {
    pub version: String,
    pub cluster: String,
    /// Nodes that report, in order.
    pub nodes: Vec<String>,
    /// `ok`, `degraded` or `failed`.
    pub health: String,
    /// What is not well, a line each.
    pub trouble: Vec<String>,
    pub flows_seen: u64,
    pub flows_lost: u64,
    pub scope: Scope,
}

/// Of how much of the cluster flows, policies and pods are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Scope {
    /// One node, by its agent.
    #[default]
    Node,
    /// Every node that answers, by a relay.
    Cluster,
}

/// A pod that is on the map before it has said a word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KnownPod {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// Name of what it is an instance of.
    pub workload: Arc<str>,
}

/// A connection that somebody asks about, by the addresses of a flow.
#[derive(Clone, Debug)]
pub struct Question {
    pub from: IpAddr,
    pub to: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
    /// What a proxy was asked, where one refused.
    pub request: Option<ProxyRequest>,
}

/// What of a request a proxy judges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProxyRequest {
    Http { method: Arc<str>, path: Arc<str>, host: Arc<str> },
    Dns { query: Arc<str> },
    Tls { server_name: Arc<str> },
}

/// Why a connection is allowed or denied, and what would allow it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Why {
    /// `allowed`, `denied` or `redirected`.
    pub verdict: String,
    pub sides: Vec<ExplainSide>,
    pub suggestion: Option<Suggestion>,
    /// Nodes that were asked and did not answer, each with the reason: a side that one of them decides is not here.
    pub missing: Vec<String>,
}

/// The smallest addition that lets a connection pass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Suggestion {
    /// Manifests; absent where no additional policy can allow it.
    pub yaml: Option<String>,
    /// What a reader should know before applying it.
    pub notes: Vec<String>,
    /// The engine allowed the connection with these manifests (tried and taken back).
    pub verified: bool,
}

/// A policy object and the use that is made of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyUse {
    pub object: ObjectRef,
    /// Endpoints of the [`Scope`] that it selects.
    pub selects: Vec<String>,
    pub default_deny: Vec<crate::model::Direction>,
    pub rules: Vec<RuleUse>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleUse {
    /// Field path inside the object.
    pub path: String,
    pub direction: crate::model::Direction,
    /// `allow`, `deny` or `pass`.
    pub action: String,
    /// Connections and drops that it decided (alone or with others); absent where the kernel was not asked.
    pub hits: Option<u64>,
    /// It has no entry in the kernel: no peer matches, or something else always decides.
    pub idle: bool,
}

/// What governs a pod of the [`Scope`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Governed {
    pub pod: String,
    pub identity: u32,
    pub labels: Vec<String>,
    pub ingress: Enforcement,
    pub egress: Enforcement,
}

/// See the module.
pub trait UiSource: Send + Sync + 'static {
    fn about(&self) -> Answer<'_, About>;
    fn pods(&self) -> Answer<'_, Vec<KnownPod>>;
    /// The newest flows in memory, oldest first.
    fn recent(&self, limit: usize) -> Vec<Arc<Flow>>;
    /// Flows as they come. A reader that is too slow is told how many it lost.
    fn follow(&self) -> broadcast::Receiver<Arc<Flow>>;
    fn why(&self, question: Question) -> Answer<'_, Why>;
    fn policies(&self) -> Answer<'_, Vec<PolicyUse>>;
    /// The text of an object as it was applied.
    fn manifest(&self, object: ObjectRef) -> Answer<'_, String>;
    /// Pods of the [`Scope`].
    fn governed(&self) -> Answer<'_, Vec<Governed>>;
}
