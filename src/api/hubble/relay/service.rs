//! `observer.Observer` over all peers.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::future::join_all;
use tonic::service::RoutesBuilder;
use tonic::{Request, Response, Status};

use super::merge::{Event, Merge, Responses as NodeResponses, Silence};
use super::pool::{Peer, PeerState, Pool};
use crate::api::hubble::client::{Security, ServerAddress};
use crate::api::hubble::convert::timestamp;
use crate::api::hubble::observer::Responses;
use crate::api::hubble::pb::observer::get_flows_response::ResponseTypes;
use crate::api::hubble::pb::observer::observer_server::{Observer, ObserverServer};
use crate::api::hubble::pb::observer::{
    GetAgentEventsRequest, GetAgentEventsResponse, GetDebugEventsRequest, GetDebugEventsResponse,
    GetFlowsRequest, GetFlowsResponse, GetNamespacesRequest, GetNamespacesResponse, GetNodesRequest,
    GetNodesResponse, Node, ServerStatusRequest, ServerStatusResponse, Tls,
};
use crate::api::hubble::pb::relay::{NodeState, NodeStatusEvent};
use crate::api::hubble::serve::MAX_REQUEST;
use crate::api::hubble::stream::now_ns;

/// How long one node may keep the flows of the past waiting.
const PAST_PATIENCE: Duration = Duration::from_secs(2);
/// How long live flows wait for earlier ones of other nodes.
const LIVE_PATIENCE: Duration = Duration::from_millis(100);
/// An answer of one node to a short question.
const ANSWER: Duration = Duration::from_secs(5);
/// Clocks that differ by more are mentioned.
const SKEW_NS: u64 = 5_000_000_000;
/// Flows that `--last` may ask for through a relay, in all.
const MOST_LAST: u64 = 1_000_000;
/// Names in `unavailable_nodes`.
const NAMED: usize = 10;

/// See the module.
#[derive(Debug)]
pub struct RelayService {
    pool: Arc<Pool>,
    version: String,
    started: Instant,
}

/// The services of a relay, ready for [`crate::api::hubble::serve`].
pub fn relay_services(pool: Arc<Pool>, version: String) -> RoutesBuilder {
    let service = RelayService { pool, version, started: Instant::now() };
    let mut routes = RoutesBuilder::default();
    routes.add_service(ObserverServer::new(service).max_decoding_message_size(MAX_REQUEST));
    routes
}

/// The flows of one node for this request, from the moment it is polled.
fn open(peer: &Peer, request: GetFlowsRequest) -> NodeResponses {
    let mut client = peer.client();
    Box::pin(
        futures::stream::once(async move {
            client.get_flows(request).await.map(|response| response.into_inner())
        })
        .flat_map(|opened| match opened {
            Ok(stream) => stream.left_stream(),
            Err(status) => futures::stream::iter([Err(status)]).right_stream(),
        }),
    )
}

fn node_status(state: NodeState, names: Vec<String>, message: String) -> GetFlowsResponse {
    GetFlowsResponse {
        node_name: String::new(),
        time: Some(timestamp(now_ns())),
        response_types: Some(ResponseTypes::NodeStatus(NodeStatusEvent {
            state_change: state.into(),
            node_names: names,
            message,
        })),
    }
}

/// One call of a client.
pub(super) struct Joined {
    pool: Arc<Pool>,
    request: GetFlowsRequest,
    phase: Phase,
    ready: VecDeque<GetFlowsResponse>,
    /// Flows of the past that may come again when following begins.
    told: HashSet<String>,
    skewed: HashSet<Arc<str>>,
    /// When the latest flow of each node was, by its clock: where a broken stream goes on.
    reached: HashMap<Arc<str>, u64>,
}

enum Phase {
    /// The past; `left` is how many may still come, `newest` collects those that may be the last.
    Past {
        merge: Merge,
        left: Option<u64>,
        newest: Option<VecDeque<GetFlowsResponse>>,
        then: Option<Merge>,
    },
    Live {
        merge: Merge,
        peers: tokio::sync::watch::Receiver<Arc<BTreeMap<Arc<str>, Peer>>>,
    },
    Done,
}

impl Joined {
    pub(super) async fn new(pool: Arc<Pool>, mut request: GetFlowsRequest) -> Result<Joined, Status> {
        if request.first && request.follow {
            return Err(Status::invalid_argument("first cannot be specified with follow"));
        }
        // `hubble observe --all` asks for as many as there can be.
        request.number = request.number.min(MOST_LAST);
        // The order needs times, and telling flows apart their names.
        if let Some(mask) = request.field_mask.as_mut().filter(|mask| !mask.paths.is_empty()) {
            for path in ["time", "uuid", "node_name"] {
                if !mask.paths.iter().any(|wanted| wanted == path) {
                    mask.paths.push(path.to_owned());
                }
            }
        }
        let peers = pool.peers();
        let mut ready = VecDeque::new();
        let names = |state: fn(&Peer) -> bool| -> Vec<String> {
            peers.values().filter(|peer| state(peer)).map(|peer| peer.name.to_string()).collect()
        };
        let connected = names(Peer::is_available);
        let missing = names(|peer| !peer.is_available());
        if !connected.is_empty() {
            ready.push_back(node_status(NodeState::NodeConnected, connected, String::new()));
        }
        if !missing.is_empty() {
            ready.push_back(node_status(NodeState::NodeUnavailable, missing, "they do not answer".into()));
        }
        let available = || peers.values().filter(|peer| peer.is_available());
        // What is to come is asked for before what was, so that nothing falls between the two.
        let mut then = None;
        if request.follow {
            let live = GetFlowsRequest { number: 0, since: None, ..request.clone() };
            let mut merge = Merge::new(LIVE_PATIENCE, Silence::Usual);
            let opened = join_all(available().map(|peer| {
                let (mut client, live) = (peer.client(), live.clone());
                async move {
                    let opened = tokio::time::timeout(ANSWER, client.get_flows(live)).await;
                    (Arc::clone(&peer.name), opened)
                }
            }))
            .await;
            for (name, opened) in opened {
                let stream: NodeResponses = match opened {
                    Ok(Ok(response)) => Box::pin(response.into_inner()),
                    // A refusal of the request itself is one of all nodes, and the caller's to know.
                    Ok(Err(status)) if status.code() == tonic::Code::InvalidArgument => return Err(status),
                    Ok(Err(status)) => Box::pin(futures::stream::iter([Err(status)])),
                    Err(_) => Box::pin(futures::stream::iter([Err(Status::deadline_exceeded("no answer"))])),
                };
                merge.put(name, stream);
            }
            then = Some(merge);
        }
        let only_live = request.follow && request.number == 0 && request.since.is_none();
        let mut merge = Merge::new(PAST_PATIENCE, Silence::Late);
        if !only_live {
            let past = GetFlowsRequest { follow: false, ..request.clone() };
            for peer in available() {
                merge.put(Arc::clone(&peer.name), open(peer, past.clone()));
            }
        }
        let (left, newest) = match (request.number, request.first) {
            (0, _) => (None, None),
            (number, true) => (Some(number), None),
            (_, false) => (None, Some(VecDeque::new())),
        };
        let phase = Phase::Past { merge, left, newest, then };
        Ok(Joined {
            pool,
            request,
            phase,
            ready,
            told: HashSet::new(),
            skewed: HashSet::new(),
            reached: HashMap::new(),
        })
    }

    /// What is told from here on happens now.
    pub(super) fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live { .. }) && self.ready.is_empty()
    }

    /// May be dropped and asked again: nothing is lost.
    pub(super) async fn next(&mut self) -> Option<Result<GetFlowsResponse, Status>> {
        loop {
            if let Some(response) = self.ready.pop_front() {
                return Some(Ok(response));
            }
            match &mut self.phase {
                Phase::Past { .. } => {
                    if let Err(status) = self.past().await {
                        self.phase = Phase::Done;
                        return Some(Err(status));
                    }
                }
                Phase::Live { .. } => self.live().await,
                Phase::Done => return None,
            }
        }
    }

    async fn past(&mut self) -> Result<(), Status> {
        let Phase::Past { merge, left, newest, then } = &mut self.phase else { return Ok(()) };
        let event = if *left == Some(0) { None } else { merge.next().await };
        match event {
            Some(Event::Flow { response, .. }) => {
                if then.is_some()
                    && let Some(ResponseTypes::Flow(flow)) = &response.response_types
                {
                    self.told.insert(flow.uuid.clone());
                }
                if let Some(left) = left {
                    *left -= 1;
                }
                match newest {
                    None => self.ready.push_back(response),
                    Some(newest) => {
                        newest.push_back(response);
                        if newest.len() as u64 > self.request.number {
                            newest.pop_front();
                        }
                    }
                }
            }
            Some(Event::Other(response)) => self.ready.push_back(response),
            Some(Event::Late(node)) => self.ready.push_back(node_status(
                NodeState::NodeUnavailable,
                vec![node.to_string()],
                "it is late; what it still sends comes out of order".into(),
            )),
            Some(Event::Ended(_, None)) => {}
            Some(Event::Ended(_, Some(status))) if status.code() == tonic::Code::InvalidArgument => {
                return Err(status);
            }
            Some(Event::Ended(node, Some(status))) => self.ready.push_back(node_status(
                NodeState::NodeError,
                vec![node.to_string()],
                status.message().to_owned(),
            )),
            None => {
                self.ready.extend(newest.take().into_iter().flatten());
                self.phase = match then.take() {
                    Some(merge) => {
                        // Those that came while the past was read.
                        let mut peers = self.pool.watch();
                        peers.mark_changed();
                        Phase::Live { merge, peers }
                    }
                    None => Phase::Done,
                };
            }
        }
        Ok(())
    }

    async fn live(&mut self) {
        let Phase::Live { merge, peers } = &mut self.phase else { return };
        let event = tokio::select! {
            event = merge.next(), if !merge.is_empty() => event,
            changed = peers.changed() => {
                if changed.is_err() {
                    self.phase = Phase::Done;
                    return;
                }
                let now = Arc::clone(&peers.borrow_and_update());
                // Nodes that have come, or have come back; those that have left.
                let (mut come, mut left) = (Vec::new(), Vec::new());
                for (name, peer) in now.iter() {
                    if matches!(peer.state, PeerState::Connected(_)) && !merge.has(name) {
                        let since = self.reached.get(name).map(|time_ns| timestamp(time_ns + 1));
                        let live = GetFlowsRequest { number: 0, since, ..self.request.clone() };
                        merge.put(Arc::clone(name), open(peer, live));
                        come.push(name.to_string());
                    }
                }
                for name in merge.nodes().filter(|name| !now.contains_key(&**name)) {
                    left.push(name.to_string());
                }
                for name in &left {
                    merge.remove(name);
                }
                if !come.is_empty() {
                    self.ready.push_back(node_status(NodeState::NodeConnected, come, String::new()));
                }
                if !left.is_empty() {
                    self.ready.push_back(node_status(NodeState::NodeGone, left, String::new()));
                }
                return;
            }
        };
        match event {
            Some(Event::Flow { node, time_ns, response }) => {
                if let Some(ResponseTypes::Flow(flow)) = &response.response_types
                    && !self.told.is_empty()
                    && self.told.remove(&flow.uuid)
                {
                    return;
                }
                self.notice_skew(&node, time_ns);
                self.reached.insert(node, time_ns);
                self.ready.push_back(response);
            }
            Some(Event::Other(response)) => self.ready.push_back(response),
            Some(Event::Ended(node, status)) => {
                let message = status.map(|status| status.message().to_owned()).unwrap_or_default();
                // A request with an end in time ends at every node, and then here.
                let state = if message.is_empty() { NodeState::NodeGone } else { NodeState::NodeUnavailable };
                self.ready.push_back(node_status(state, vec![node.to_string()], message));
                if self.request.until.is_some() && merge.is_empty() {
                    self.phase = Phase::Done;
                }
            }
            Some(Event::Late(_)) | None => {}
        }
    }

    fn notice_skew(&mut self, node: &Arc<str>, time_ns: u64) {
        let now = now_ns();
        let difference = now.abs_diff(time_ns);
        if difference > SKEW_NS && self.skewed.insert(Arc::clone(node)) {
            let seconds = difference / 1_000_000_000;
            let side = if time_ns > now { "ahead of" } else { "behind" };
            self.ready.push_back(node_status(
                NodeState::NodeConnected,
                vec![node.to_string()],
                format!("its clock is {seconds} s {side} the relay's, or its flows are late"),
            ));
        }
    }
}

#[tonic::async_trait]
impl Observer for RelayService {
    type GetFlowsStream = Responses<GetFlowsResponse>;
    type GetAgentEventsStream = Responses<GetAgentEventsResponse>;
    type GetDebugEventsStream = Responses<GetDebugEventsResponse>;

    async fn get_flows(
        &self,
        request: Request<GetFlowsRequest>,
    ) -> Result<Response<Self::GetFlowsStream>, Status> {
        let joined = Joined::new(Arc::clone(&self.pool), request.into_inner()).await?;
        Ok(Response::new(Box::pin(futures::stream::unfold(joined, |mut joined| async move {
            let next = joined.next().await?;
            Some((next, joined))
        }))))
    }

    async fn get_agent_events(
        &self,
        _: Request<GetAgentEventsRequest>,
    ) -> Result<Response<Self::GetAgentEventsStream>, Status> {
        Err(Status::unimplemented("ask the node's agent for its events"))
    }

    async fn get_debug_events(
        &self,
        _: Request<GetDebugEventsRequest>,
    ) -> Result<Response<Self::GetDebugEventsStream>, Status> {
        Err(Status::unimplemented("sluice's datapath has no debug events"))
    }

    async fn get_nodes(&self, _: Request<GetNodesRequest>) -> Result<Response<GetNodesResponse>, Status> {
        let nodes = self.pool.peers().values().map(node).collect();
        Ok(Response::new(GetNodesResponse { nodes }))
    }

    async fn get_namespaces(
        &self,
        _: Request<GetNamespacesRequest>,
    ) -> Result<Response<GetNamespacesResponse>, Status> {
        let peers = self.pool.peers();
        let answers = join_all(peers.values().filter(|peer| peer.is_available()).map(|peer| async {
            tokio::time::timeout(ANSWER, peer.client().get_namespaces(GetNamespacesRequest {})).await
        }))
        .await;
        let found: BTreeSet<(String, String)> = answers
            .into_iter()
            .filter_map(|answer| Some(answer.ok()?.ok()?.into_inner().namespaces))
            .flatten()
            .map(|namespace| (namespace.cluster, namespace.namespace))
            .collect();
        let namespaces = found
            .into_iter()
            .map(|(cluster, namespace)| crate::api::hubble::pb::observer::Namespace { cluster, namespace })
            .collect();
        Ok(Response::new(GetNamespacesResponse { namespaces }))
    }

    /// Sums over the nodes that answer; those that do not are named.
    async fn server_status(
        &self,
        _: Request<ServerStatusRequest>,
    ) -> Result<Response<ServerStatusResponse>, Status> {
        let peers = self.pool.peers();
        let answers = join_all(peers.values().map(|peer| async {
            match tokio::time::timeout(ANSWER, peer.client().server_status(ServerStatusRequest {})).await {
                Ok(Ok(status)) => Ok(status.into_inner()),
                _ => Err(peer.name.to_string()),
            }
        }))
        .await;
        let mut sum = ServerStatusResponse {
            version: self.version.clone(),
            uptime_ns: u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX),
            ..ServerStatusResponse::default()
        };
        let (mut connected, mut missing) = (0_u32, Vec::new());
        for answer in answers {
            match answer {
                Ok(status) => {
                    connected += 1;
                    sum.num_flows += status.num_flows;
                    sum.max_flows += status.max_flows;
                    sum.seen_flows += status.seen_flows;
                    sum.flows_rate += status.flows_rate;
                }
                Err(name) => missing.push(name),
            }
        }
        sum.num_connected_nodes = Some(connected);
        sum.num_unavailable_nodes = Some(u32::try_from(missing.len()).unwrap_or(u32::MAX));
        missing.truncate(NAMED);
        sum.unavailable_nodes = missing;
        Ok(Response::new(sum))
    }
}

fn node(peer: &Peer) -> Node {
    let (state, status) = match &peer.state {
        PeerState::Connected(status) => (NodeState::NodeConnected, status.as_ref().clone()),
        PeerState::Unavailable(_) => (NodeState::NodeUnavailable, ServerStatusResponse::default()),
        PeerState::Unknown => (NodeState::UnknownNodeState, ServerStatusResponse::default()),
    };
    let is_tls = matches!(peer.address.server, ServerAddress::Tcp { security: Security::Tls, .. });
    Node {
        name: peer.name.to_string(),
        version: status.version,
        address: peer.address.server.to_string().trim_start_matches("tls://").to_owned(),
        state: state.into(),
        tls: Some(Tls { enabled: is_tls, server_name: peer.address.server_name.clone().unwrap_or_default() }),
        uptime_ns: status.uptime_ns,
        num_flows: status.num_flows,
        max_flows: status.max_flows,
        seen_flows: status.seen_flows,
    }
}
