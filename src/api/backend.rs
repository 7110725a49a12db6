//! What the admin API serves: implemented by the agent, and by a double in tests.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::broadcast;

use super::hubble::convert::Naming;
use super::types::*;
use crate::flow::Flow;
use crate::flow::ring::Batch;
use crate::model::{Kind, ObjectRef};

/// A boxed answer.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Refusal>> + Send + 'a>>;

/// Why a request was not done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refusal {
    /// The input is invalid; nothing was changed.
    #[error("{message}")]
    Invalid { message: String, problems: Vec<String> },
    #[error("{0}")]
    NotFound(String),
    /// The agent cannot do this in its mode or state.
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    Failed(String),
}

/// Which kernel table to dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelTable {
    Policy,
    Conntrack,
    Ipcache,
    Services,
    Metrics,
    /// What is in the kernel and should not be, and what is not and should.
    Diff,
}

/// A connection to explain: `ns/pod`, an address, or a name the agent knows.
#[derive(Clone, Debug)]
pub struct ExplainQuery {
    pub from: String,
    pub to: String,
    pub port: u16,
    pub protocol: crate::model::Protocol,
}

pub trait Backend: Send + Sync + 'static {
    fn status(&self) -> Answer<'_, Status>;
    /// All or nothing.
    fn apply(&self, manifest: String, mode: ApplyMode) -> Answer<'_, Applied>;
    fn delete(&self, object: ObjectRef) -> Answer<'_, Applied>;
    fn objects(&self, kind: Option<Kind>, namespace: Option<String>) -> Answer<'_, Vec<StoredObject>>;
    fn endpoints(&self) -> Answer<'_, Vec<Endpoint>>;
    fn add_endpoint(&self, request: EndpointRequest) -> Answer<'_, Endpoint>;
    fn remove_endpoint(&self, pod: String) -> Answer<'_, ()>;
    fn identities(&self) -> Answer<'_, Vec<IdentityInfo>>;
    fn ipcache(&self) -> Answer<'_, Vec<IpcacheInfo>>;
    /// Fresh DNS answers.
    fn names(&self) -> Answer<'_, Vec<NameInfo>>;
    fn services(&self) -> Answer<'_, Vec<ServiceInfo>>;
    /// Rows of column name -> value.
    fn kernel(
        &self,
        table: KernelTable,
        endpoint: Option<String>,
    ) -> Answer<'_, Vec<serde_json::Map<String, serde_json::Value>>>;
    fn explain(&self, query: ExplainQuery) -> Answer<'_, ExplainAnswer>;
    /// Flows in memory from this cursor on.
    fn flows(&self, cursor: u64, limit: usize) -> Batch;
    /// Flows that are no longer in memory; none where no history is kept.
    fn history(&self) -> Option<Arc<dyn super::past::PastFlows>> {
        None
    }
    /// How flows name this node and its cluster.
    fn naming(&self) -> Naming;
    /// Flows as they come. A reader that is too slow is told how many it lost.
    fn follow(&self) -> broadcast::Receiver<Arc<Flow>>;
}

/// Try, or do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApplyMode {
    Commit,
    /// Validate only.
    DryRun,
}
