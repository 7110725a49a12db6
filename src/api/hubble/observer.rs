//! `observer.Observer` of one agent.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use tonic::service::RoutesBuilder;
use tonic::{Request, Response, Status};

use super::pb::observer::observer_server::{Observer, ObserverServer};
use super::pb::observer::{
    GetAgentEventsRequest, GetAgentEventsResponse, GetDebugEventsRequest, GetDebugEventsResponse,
    GetFlowsRequest, GetFlowsResponse, GetNamespacesRequest, GetNamespacesResponse, GetNodesRequest,
    GetNodesResponse, Namespace, Node, ServerStatusRequest, ServerStatusResponse,
};
use super::pb::peer::peer_server::PeerServer;
use super::pb::relay::NodeState;
use super::peers::PeerService;
use super::source::Observed;
use super::stream::{Query, Reader, now_ns};
use super::{events, serve};

const MINUTE_NS: u64 = 60_000_000_000;
const CHUNK: usize = 4096;

/// A stream of responses.
pub type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// See the module.
#[derive(Clone)]
pub struct ObserverService {
    source: Arc<dyn Observed>,
}

impl std::fmt::Debug for ObserverService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObserverService").finish_non_exhaustive()
    }
}

/// The services of an agent, ready for [`serve::serve`].
pub fn observer_services(source: Arc<dyn Observed>) -> RoutesBuilder {
    let mut routes = RoutesBuilder::default();
    let peers = PeerService::new(source.peers(), source.naming().clone());
    routes
        .add_service(
            ObserverServer::new(ObserverService { source }).max_decoding_message_size(serve::MAX_REQUEST),
        )
        .add_service(PeerServer::new(peers).max_decoding_message_size(serve::MAX_REQUEST));
    routes
}

impl ObserverService {
    /// All flows in memory, a chunk at a time, the newest chunk first; until `visit` has seen enough.
    async fn scan(&self, mut visit: impl FnMut(&crate::flow::Flow) -> Scan) {
        let mut below = self.source.counts().seen + 1;
        while below > 1 {
            let from = below.saturating_sub(CHUNK as u64).max(1);
            let batch = self.source.read(from, usize::try_from(below - from).unwrap_or(CHUNK));
            let is_oldest = batch.flows.is_empty() || batch.cursor - batch.flows.len() as u64 > from;
            for flow in batch.flows.iter().rev() {
                if visit(flow) == Scan::Enough {
                    return;
                }
            }
            if is_oldest {
                return;
            }
            below = from;
            tokio::task::yield_now().await;
        }
    }

    /// Flows a second over the last minute, or since the start.
    async fn rate(&self) -> f64 {
        let now = now_ns();
        let (mut count, mut oldest) = (0_u64, now);
        self.scan(|flow| {
            if now.saturating_sub(flow.time_ns) > MINUTE_NS {
                return Scan::Enough;
            }
            count += 1;
            oldest = oldest.min(flow.time_ns);
            Scan::More
        })
        .await;
        let counts = self.source.counts();
        // A ring that is full of younger flows knows nothing of the rest of the minute.
        let seconds = if count >= counts.capacity {
            (now - oldest) as f64 / 1e9
        } else {
            self.source.uptime().as_secs_f64().min(60.0)
        };
        if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scan {
    More,
    Enough,
}

fn nanoseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[tonic::async_trait]
impl Observer for ObserverService {
    type GetFlowsStream = Responses<GetFlowsResponse>;
    type GetAgentEventsStream = Responses<GetAgentEventsResponse>;
    type GetDebugEventsStream = Responses<GetDebugEventsResponse>;

    async fn get_flows(
        &self,
        request: Request<GetFlowsRequest>,
    ) -> Result<Response<Self::GetFlowsStream>, Status> {
        let query = Query::new(request.get_ref(), self.source.naming())?;
        let reader = Reader::new(Arc::clone(&self.source), query);
        Ok(Response::new(Box::pin(reader.into_stream())))
    }

    async fn get_agent_events(
        &self,
        request: Request<GetAgentEventsRequest>,
    ) -> Result<Response<Self::GetAgentEventsStream>, Status> {
        let stream = events::stream(Arc::clone(&self.source), request.get_ref())?;
        Ok(Response::new(Box::pin(stream)))
    }

    async fn get_debug_events(
        &self,
        _: Request<GetDebugEventsRequest>,
    ) -> Result<Response<Self::GetDebugEventsStream>, Status> {
        Err(Status::unimplemented("sluice's datapath has no debug events"))
    }

    /// An agent knows of itself; a relay of all.
    async fn get_nodes(&self, _: Request<GetNodesRequest>) -> Result<Response<GetNodesResponse>, Status> {
        let counts = self.source.counts();
        let address = self
            .source
            .peers()
            .borrow()
            .iter()
            .find(|peer| peer.node == self.source.node())
            .map(|peer| std::net::SocketAddr::new(peer.address, peer.port).to_string());
        Ok(Response::new(GetNodesResponse {
            nodes: vec![Node {
                name: self.source.naming().node(self.source.node()),
                version: self.source.version(),
                address: address.unwrap_or_default(),
                state: NodeState::NodeConnected.into(),
                tls: None,
                uptime_ns: nanoseconds(self.source.uptime()),
                num_flows: counts.held,
                max_flows: counts.capacity,
                seen_flows: counts.seen,
            }],
        }))
    }

    /// Those of the flows in memory.
    async fn get_namespaces(
        &self,
        _: Request<GetNamespacesRequest>,
    ) -> Result<Response<GetNamespacesResponse>, Status> {
        let mut found = BTreeSet::new();
        self.scan(|flow| {
            for namespace in [&flow.source.namespace, &flow.destination.namespace].into_iter().flatten() {
                if !found.contains(namespace) {
                    found.insert(Arc::clone(namespace));
                }
            }
            Scan::More
        })
        .await;
        let cluster = self.source.naming().cluster.to_string();
        let namespaces = found
            .into_iter()
            .map(|namespace| Namespace { cluster: cluster.clone(), namespace: namespace.to_string() })
            .collect();
        Ok(Response::new(GetNamespacesResponse { namespaces }))
    }

    async fn server_status(
        &self,
        _: Request<ServerStatusRequest>,
    ) -> Result<Response<ServerStatusResponse>, Status> {
        let counts = self.source.counts();
        Ok(Response::new(ServerStatusResponse {
            num_flows: counts.held,
            max_flows: counts.capacity,
            seen_flows: counts.seen,
            uptime_ns: nanoseconds(self.source.uptime()),
            version: self.source.version(),
            flows_rate: self.rate().await,
            ..ServerStatusResponse::default()
        }))
    }
}
