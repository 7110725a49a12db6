//! The flow API as clients meet it: real sockets, an observer that is a double, good and bad clients.

mod page;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use parking_lot::Mutex;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::client::{ClientTls, MAX_RESPONSE, ServerAddress, connect};
use super::convert::{Naming, timestamp};
use super::observer_services;
use super::pb::flow as pb;
use super::pb::observer::get_flows_response::ResponseTypes;
use super::pb::observer::observer_client::ObserverClient;
use super::pb::observer::{
    GetAgentEventsRequest, GetFlowsRequest, GetFlowsResponse, GetNamespacesRequest, GetNodesRequest,
    ServerStatusRequest,
};
use super::pb::relay::NodeState;
use super::relay::pool::{PeerAddress, Pool};
use super::relay::relay_services;
use super::serve::{self, Places};
use super::source::{Observed, PeerInfo, RingCounts};
use super::stream::now_ns;
use super::tls::{Clients, Credentials, TlsFiles};
use crate::api::past::{Past, PastFlows, PastQuery};
use crate::flow::Flow;
use crate::flow::journal::{self, AgentEvent, Entry, Journal};
use crate::flow::ring::{Batch, Ring};
use crate::flow::tests::flow as example;

/// An observer whose flows are given.
struct Double {
    node: String,
    naming: Naming,
    ring: Mutex<Ring>,
    grown: watch::Sender<u64>,
    journal: Mutex<Journal>,
    journal_grown: watch::Sender<u64>,
    lost: std::sync::atomic::AtomicU64,
    history: Mutex<Vec<Flow>>,
}

/// Flows of the past, oldest first.
struct OnDisk(Vec<Flow>);

impl PastFlows for OnDisk {
    fn past(&self, query: PastQuery) -> mpsc::Receiver<Past> {
        let mut flows: Vec<_> = self
            .0
            .iter()
            .filter(|flow| (query.since_ns..=query.until_ns).contains(&flow.time_ns) && (query.matches)(flow))
            .cloned()
            .collect();
        if let Some(newest) = query.newest {
            flows.drain(..flows.len().saturating_sub(newest));
        }
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move { sender.send(Ok(flows)).await });
        receiver
    }
}

impl Double {
    fn new(node: &str, capacity: usize) -> Arc<Double> {
        Arc::new(Double {
            node: node.into(),
            naming: Naming { cluster: "default".into() },
            ring: Mutex::new(Ring::new(capacity)),
            grown: watch::channel(0).0,
            journal: Mutex::default(),
            journal_grown: watch::channel(0).0,
            lost: 0.into(),
            history: Mutex::default(),
        })
    }

    fn push(&self, flows: impl IntoIterator<Item = Flow>) {
        let mut ring = self.ring.lock();
        for flow in flows {
            let sequence = ring.end();
            ring.push(Arc::new(Flow { sequence, node: self.node.as_str().into(), ..flow }));
        }
        self.grown.send_replace(ring.seen());
    }
}

impl Observed for Double {
    fn naming(&self) -> &Naming {
        &self.naming
    }

    fn node(&self) -> &str {
        &self.node
    }

    fn version(&self) -> String {
        "test".into()
    }

    fn uptime(&self) -> Duration {
        Duration::from_secs(60)
    }

    fn read(&self, cursor: u64, limit: usize) -> Batch {
        self.ring.lock().read(cursor, limit)
    }

    fn counts(&self) -> RingCounts {
        let ring = self.ring.lock();
        RingCounts {
            held: ring.len() as u64,
            capacity: ring.capacity() as u64,
            seen: ring.seen(),
            lost: self.lost.load(std::sync::atomic::Ordering::Relaxed),
        }
    }

    fn past(&self) -> Option<Arc<dyn PastFlows>> {
        let flows = self.history.lock().clone();
        (!flows.is_empty()).then(|| Arc::new(OnDisk(flows)) as _)
    }

    fn grown(&self) -> watch::Receiver<u64> {
        self.grown.subscribe()
    }

    fn journal(&self, cursor: u64) -> journal::Batch {
        self.journal.lock().read(cursor)
    }

    fn journal_grown(&self) -> watch::Receiver<u64> {
        self.journal_grown.subscribe()
    }

    fn peers(&self) -> watch::Receiver<Arc<Vec<PeerInfo>>> {
        watch::channel(Arc::default()).1
    }
}

/// Sockets and tasks that end with the test.
struct Bench {
    directory: tempfile::TempDir,
    stop: CancellationToken,
}

impl Bench {
    fn new() -> Bench {
        Bench { directory: tempfile::tempdir().unwrap(), stop: CancellationToken::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn observer(&self, double: &Arc<Double>) -> ServerAddress {
        let source: Arc<dyn Observed> = Arc::clone(double) as _;
        self.serve(&double.node, observer_services(source), self.stop.clone()).await
    }

    async fn serve(
        &self,
        name: &str,
        services: tonic::service::RoutesBuilder,
        stop: CancellationToken,
    ) -> ServerAddress {
        let path = self.path(&format!("{name}.sock"));
        let listener = UnixListener::bind(&path).unwrap();
        let routes = serve::routes(services).await;
        tokio::spawn(serve::unix(listener, routes, Places::default(), stop));
        ServerAddress::Unix(path)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn client(server: &ServerAddress) -> ObserverClient<Channel> {
    let channel = connect(server, &ClientTls::default()).await.unwrap();
    ObserverClient::new(channel).max_decoding_message_size(MAX_RESPONSE)
}

fn ports(responses: &[GetFlowsResponse]) -> Vec<u32> {
    responses.iter().filter_map(port).collect()
}

fn port(response: &GetFlowsResponse) -> Option<u32> {
    let Some(ResponseTypes::Flow(flow)) = &response.response_types else { return None };
    match flow.l4.as_ref()?.protocol.as_ref()? {
        pb::layer4::Protocol::Tcp(tcp) => Some(tcp.destination_port),
        _ => None,
    }
}

async fn flows(server: &ServerAddress, request: GetFlowsRequest) -> Vec<GetFlowsResponse> {
    let stream = client(server).await.get_flows(request).await.unwrap().into_inner();
    stream.map(|response| response.unwrap()).collect().await
}

#[tokio::test]
async fn first_last_since_until_and_all() {
    let bench = Bench::new();
    let double = Double::new("node1", 5000);
    double.push((1..=3000).map(example));
    let server = bench.observer(&double).await;
    let at = |port: u64| Some(timestamp(1_700_000_000_000_000_000 + port));
    let request = GetFlowsRequest::default();
    assert_eq!(flows(&server, request.clone()).await.len(), 3000);
    let last = flows(&server, GetFlowsRequest { number: 2, ..request.clone() }).await;
    assert_eq!(ports(&last), [2999, 3000]);
    let first = flows(&server, GetFlowsRequest { number: 2, first: true, ..request.clone() }).await;
    assert_eq!(ports(&first), [1, 2]);
    let range = GetFlowsRequest { since: at(10), until: at(12), ..request.clone() };
    assert_eq!(ports(&flows(&server, range.clone()).await), [10, 11, 12]);
    assert_eq!(ports(&flows(&server, GetFlowsRequest { number: 1, ..range }).await), [12]);
    let filter = pb::FlowFilter { destination_port: vec!["5".into(), "7".into()], ..Default::default() };
    let only = GetFlowsRequest { number: 20, whitelist: vec![filter.clone()], ..request.clone() };
    assert_eq!(ports(&flows(&server, only).await), [5, 7]);
    let without = GetFlowsRequest { blacklist: vec![filter], until: at(8), ..request };
    assert_eq!(ports(&flows(&server, without).await), [1, 2, 3, 4, 6, 8]);
}

#[tokio::test]
async fn history_goes_before_what_is_in_memory() {
    let bench = Bench::new();
    let double = Double::new("node1", 100);
    *double.history.lock() = (1..=50).map(example).collect();
    double.push((41..=60).map(example));
    let server = bench.observer(&double).await;
    let at = |port: u64| Some(timestamp(1_700_000_000_000_000_000 + port));
    let request = GetFlowsRequest::default();
    // What is in both is in the answer once.
    let since = flows(&server, GetFlowsRequest { since: at(38), ..request.clone() }).await;
    assert_eq!(ports(&since), (38..=60).collect::<Vec<u32>>());
    let last = flows(&server, GetFlowsRequest { number: 22, ..request.clone() }).await;
    assert_eq!(ports(&last), (39..=60).collect::<Vec<u32>>());
    let first = GetFlowsRequest { since: at(10), number: 2, first: true, ..request.clone() };
    assert_eq!(ports(&flows(&server, first).await), [10, 11]);
    // Everything in memory is just that.
    assert_eq!(flows(&server, request).await.len(), 20);
}

/// A filter with one expression.
fn expression(source: &str) -> pb::FlowFilter {
    let experimental = pb::flow_filter::Experimental { cel_expression: vec![source.to_owned()] };
    pb::FlowFilter { experimental: Some(experimental), ..Default::default() }
}

#[tokio::test]
async fn expressions_select_flows_in_memory_and_in_history() {
    let bench = Bench::new();
    let double = Double::new("node1", 1000);
    *double.history.lock() = (1..=50).map(example).collect();
    double.push((51..=600).map(example));
    let server = bench.observer(&double).await;
    let source = "_flow.l4.TCP.destination_port % 100u == 7u && _flow.verdict == Verdict.FORWARDED";
    let only = GetFlowsRequest { whitelist: vec![expression(source)], ..Default::default() };
    assert_eq!(ports(&flows(&server, only.clone()).await), [107, 207, 307, 407, 507]);
    let last = GetFlowsRequest { number: 2, ..only.clone() };
    assert_eq!(ports(&flows(&server, last).await), [407, 507]);
    let since = GetFlowsRequest { since: Some(timestamp(1)), ..only.clone() };
    assert_eq!(ports(&flows(&server, since).await), [7, 107, 207, 307, 407, 507]);
    let late = expression("_flow.l4.TCP.destination_port < 599u");
    let without = GetFlowsRequest { blacklist: vec![late], ..Default::default() };
    assert_eq!(ports(&flows(&server, without).await), [599, 600]);
}

#[tokio::test]
async fn a_relay_hands_expressions_on_and_says_why_they_are_refused() {
    let bench = Bench::new();
    let doubles: Vec<_> = ["node1", "node2"].iter().map(|node| Double::new(node, 100)).collect();
    for port in 1..=20 {
        doubles[usize::from(port) % 2].push([example(port)]);
    }
    let (server, _gone) = relay(&bench, &doubles).await;
    let request = |source| GetFlowsRequest { whitelist: vec![expression(source)], ..Default::default() };
    let wanted = request("_flow.l4.TCP.destination_port in [7u, 8u] || _flow.node_name == 'node3'");
    assert_eq!(ports(&flows(&server, wanted).await), [7, 8]);
    for (source, message) in [
        ("_flow.sauce == 1", "experimental.cel_expression[0]: flow.Flow has no member sauce"),
        ("(", "experimental.cel_expression[0]: 1:2: "),
    ] {
        let stream = client(&server).await.get_flows(request(source)).await.unwrap().into_inner();
        // The states of the nodes come first.
        let responses: Vec<_> = stream.collect().await;
        let status = responses.into_iter().find_map(Result::err).unwrap();
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(message), "{status:?}");
    }
}

#[tokio::test]
async fn following_goes_on_where_the_past_ends() {
    let bench = Bench::new();
    let double = Double::new("node1", 100);
    double.push((1..=10).map(example));
    let server = bench.observer(&double).await;
    let request = GetFlowsRequest { number: 2, follow: true, ..Default::default() };
    let mut stream = client(&server).await.get_flows(request).await.unwrap().into_inner();
    let mut next = async || port(&stream.message().await.unwrap().unwrap()).unwrap();
    assert_eq!([next().await, next().await], [9, 10]);
    double.push((11..=12).map(example));
    assert_eq!([next().await, next().await], [11, 12]);
}

#[tokio::test]
async fn a_mask_leaves_out_what_nobody_wants() {
    let bench = Bench::new();
    let double = Double::new("node1", 100);
    double.push([example(80)]);
    let server = bench.observer(&double).await;
    let mask = |path: &str| Some(prost_types::FieldMask { paths: vec![path.to_owned()] });
    let request = GetFlowsRequest { field_mask: mask("source.pod_name"), ..Default::default() };
    let response = flows(&server, request).await.remove(0);
    let Some(ResponseTypes::Flow(flow)) = response.response_types else { panic!("no flow") };
    assert_eq!(flow.source.unwrap().pod_name, "frontend");
    assert!(flow.destination.is_none() && response.node_name == "node1");
    let request = GetFlowsRequest { field_mask: mask("nothing"), ..Default::default() };
    let status = client(&server).await.get_flows(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn a_slow_reader_loses_flows_is_told_how_many_and_costs_no_memory() {
    let bench = Bench::new();
    let double = Double::new("node1", 1000);
    let server = bench.observer(&double).await;
    let request = GetFlowsRequest { follow: true, ..Default::default() };
    let mut stream = client(&server).await.get_flows(request).await.unwrap().into_inner();
    let total = 60_000_u64;
    // Nothing is read meanwhile, and everybody else goes on.
    for _ in 0..total / 1000 {
        double.push((1..=1000).map(example));
        tokio::task::yield_now().await;
        flows(&server, GetFlowsRequest { number: 1, ..Default::default() }).await;
    }
    let (mut seen, mut lost) = (0, 0);
    while seen + lost < total {
        match stream.message().await.unwrap().unwrap().response_types.unwrap() {
            ResponseTypes::Flow(_) => seen += 1,
            ResponseTypes::LostEvents(event) => {
                assert_eq!(event.source(), pb::LostEventSource::HubbleRingBuffer);
                lost += event.num_events_lost;
            }
            ResponseTypes::NodeStatus(_) => panic!("from a node"),
        }
    }
    assert!(lost > 0, "all of {seen} were buffered somewhere");
    assert_eq!(seen + lost, total);
}

#[tokio::test]
async fn what_the_kernel_lost_is_said() {
    let bench = Bench::new();
    let double = Double::new("node1", 100);
    let server = bench.observer(&double).await;
    let request = GetFlowsRequest { follow: true, ..Default::default() };
    let mut stream = client(&server).await.get_flows(request).await.unwrap().into_inner();
    double.lost.store(7, std::sync::atomic::Ordering::Relaxed);
    double.push([example(80)]);
    let Some(ResponseTypes::LostEvents(lost)) = stream.message().await.unwrap().unwrap().response_types
    else {
        panic!("nothing was said to be lost")
    };
    assert_eq!((lost.num_events_lost, lost.source()), (7, pb::LostEventSource::PerfEventRingBuffer));
}

#[tokio::test]
async fn absurd_requests_are_refused_and_the_next_one_is_served() {
    let bench = Bench::new();
    let double = Double::new("node1", 100);
    double.push([example(80)]);
    let server = bench.observer(&double).await;
    let mut client = client(&server).await;
    let filter = |edit: fn(&mut pb::FlowFilter)| {
        let mut filter = pb::FlowFilter::default();
        edit(&mut filter);
        GetFlowsRequest { whitelist: vec![filter], ..Default::default() }
    };
    for request in [
        filter(|f| f.http_path = vec!["(a{999}){999}".into()]),
        filter(|f| f.source_fqdn = vec!["a b".into()]),
        filter(|f| f.source_pod = vec!["x".into(); 5000]),
        GetFlowsRequest { whitelist: vec![pb::FlowFilter::default(); 1000], ..Default::default() },
        GetFlowsRequest { first: true, follow: true, ..Default::default() },
        GetFlowsRequest {
            since: Some(prost_types::Timestamp { seconds: i64::MAX, nanos: -1 }),
            ..Default::default()
        },
    ] {
        let status = client.get_flows(request).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
        assert!(!status.message().is_empty());
    }
    // Larger than any request may be: not even decoded.
    let status = client.get_flows(filter(|f| f.source_pod = vec!["x".repeat(1 << 20)])).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::OutOfRange, "{status:?}");
    assert_eq!(flows(&server, GetFlowsRequest::default()).await.len(), 1);
}

#[tokio::test]
async fn members_of_newer_clients_are_ignored() {
    use prost::Message as _;
    let mut bytes = GetFlowsRequest { number: 1, ..Default::default() }.encode_to_vec();
    // Field 4000, a string.
    bytes.extend([0x82, 0xfa, 0x01, 0x03, b'n', b'e', b'w']);
    let request = GetFlowsRequest::decode(bytes.as_slice()).unwrap();
    assert_eq!(request, GetFlowsRequest { number: 1, ..Default::default() });
}

#[tokio::test]
async fn status_nodes_namespaces_and_agent_events() {
    let bench = Bench::new();
    let double = Double::new("node1", 100);
    double.push([Flow { time_ns: now_ns(), ..example(80) }]);
    for event in [AgentEvent::Started, AgentEvent::Regenerated { revision: 3 }] {
        double.journal.lock().push(Entry { time_ns: 1, event });
    }
    let server = bench.observer(&double).await;
    let mut client = client(&server).await;
    let status = client.server_status(ServerStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.num_flows, status.max_flows, status.seen_flows), (1, 100, 1));
    assert!(status.flows_rate > 0.0 && status.uptime_ns > 0);
    let nodes = client.get_nodes(GetNodesRequest {}).await.unwrap().into_inner().nodes;
    assert_eq!((nodes.len(), nodes[0].name.as_str()), (1, "node1"));
    let namespaces = client.get_namespaces(GetNamespacesRequest {}).await.unwrap().into_inner().namespaces;
    assert_eq!((namespaces.len(), namespaces[0].namespace.as_str()), (1, "shop"));
    let events = client.get_agent_events(GetAgentEventsRequest::default()).await.unwrap().into_inner();
    let events: Vec<_> = events.map(|event| event.unwrap().agent_event.unwrap().r#type()).collect().await;
    assert_eq!(events, [pb::AgentEventType::AgentStarted, pb::AgentEventType::EndpointRegenerateSuccess]);
    let channel = connect(&server, &ClientTls::default()).await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let request = tonic_health::pb::HealthCheckRequest { service: "hubble.server.Observer".into() };
    let answer = health.check(request).await.unwrap().into_inner();
    assert_eq!(answer.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);
}

/// Certificates of a test authority, as files.
fn certificates(directory: &Path) {
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&authority_key).unwrap();
    std::fs::write(directory.join("ca.crt"), authority.pem()).unwrap();
    let issuer = rcgen::Issuer::new(params, authority_key);
    for name in ["server", "client"] {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(directory.join(format!("{name}.crt")), certificate.pem()).unwrap();
        std::fs::write(directory.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

#[tokio::test]
async fn only_clients_of_the_authority_see_flows() {
    let bench = Bench::new();
    certificates(bench.directory.path());
    let double = Double::new("node1", 100);
    double.push([example(80)]);
    let credentials = Credentials::load(TlsFiles {
        certificate: bench.path("server.crt"),
        key: bench.path("server.key"),
        clients: Clients::SignedBy(bench.path("ca.crt")),
    })
    .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let source: Arc<dyn Observed> = Arc::clone(&double) as _;
    let routes = serve::routes(observer_services(source)).await;
    tokio::spawn(serve::tcp(listener, Some(credentials), routes, Places::default(), bench.stop.clone()));
    let server: ServerAddress = format!("tls://127.0.0.1:{port}").parse().unwrap();
    let ask = async |tls: ClientTls| -> Result<u64, String> {
        let channel = connect(&server, &tls).await.map_err(|error| error.to_string())?;
        let status = ObserverClient::new(channel).server_status(ServerStatusRequest {}).await;
        Ok(status.map_err(|status| status.to_string())?.into_inner().num_flows)
    };
    let good = ClientTls {
        authorities: vec![bench.path("ca.crt")],
        identity: Some((bench.path("client.crt"), bench.path("client.key"))),
        server_name: Some("server".into()),
    };
    assert_eq!(ask(good.clone()).await, Ok(1));
    assert!(ask(ClientTls { identity: None, ..good.clone() }).await.is_err());
    assert!(ask(ClientTls { server_name: Some("other".into()), ..good.clone() }).await.is_err());
    // A client that never finishes its handshake keeps nobody out.
    let _silent = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    assert_eq!(ask(good).await, Ok(1));
}

#[tokio::test]
async fn services_tell_what_they_are() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

    let bench = Bench::new();
    let server = bench.observer(&Double::new("node1", 100)).await;
    // What the first question builds answers the second one too.
    for _ in 0..2 {
        let channel = connect(&server, &ClientTls::default()).await.unwrap();
        let request = ServerReflectionRequest {
            message_request: Some(MessageRequest::ListServices(String::new())),
            ..ServerReflectionRequest::default()
        };
        let asked = ServerReflectionClient::new(channel)
            .server_reflection_info(tokio_stream::once(request))
            .await
            .unwrap();
        let ServerReflectionResponse { message_response, .. } =
            asked.into_inner().message().await.unwrap().unwrap();
        let Some(MessageResponse::ListServicesResponse(list)) = message_response else {
            panic!("{message_response:?}")
        };
        assert!(list.service.iter().any(|service| service.name == "observer.Observer"), "{list:?}");
    }
}

/// A pool of these observers; the token ends the last one.
async fn pool(bench: &Bench, doubles: &[Arc<Double>]) -> (Arc<Pool>, CancellationToken) {
    let pool = Pool::new(ClientTls::default());
    let gone = CancellationToken::new();
    for (at, double) in doubles.iter().enumerate() {
        let source: Arc<dyn Observed> = Arc::clone(double) as _;
        let stop = if at + 1 == doubles.len() { gone.clone() } else { bench.stop.clone() };
        let mut services = observer_services(source);
        services.add_service(super::explain::service(Arc::clone(double) as _));
        let server = bench.serve(&double.node, services, stop).await;
        pool.put(&double.node, PeerAddress { server, server_name: None });
    }
    (pool, gone)
}

/// A relay over these observers.
async fn relay(bench: &Bench, doubles: &[Arc<Double>]) -> (ServerAddress, CancellationToken) {
    let (pool, gone) = pool(bench, doubles).await;
    let server =
        bench.serve("relay", relay_services(Arc::clone(&pool), "test".into()), bench.stop.clone()).await;
    let mut peers = pool.watch();
    peers.wait_for(|peers| peers.values().all(|peer| peer.is_available())).await.unwrap();
    (server, gone)
}

#[tokio::test]
async fn a_relay_joins_nodes_in_time_order() {
    let bench = Bench::new();
    let doubles: Vec<_> = ["node1", "node2", "node3"].iter().map(|node| Double::new(node, 1000)).collect();
    for port in 1..=300 {
        doubles[usize::from(port) % 3].push([example(port)]);
    }
    let (server, _gone) = relay(&bench, &doubles).await;
    let all = flows(&server, GetFlowsRequest::default()).await;
    assert_eq!(ports(&all), (1..=300).collect::<Vec<u32>>());
    let last = flows(&server, GetFlowsRequest { number: 5, ..Default::default() }).await;
    assert_eq!(ports(&last), [296, 297, 298, 299, 300]);
    let first = flows(&server, GetFlowsRequest { number: 3, first: true, ..Default::default() }).await;
    assert_eq!(ports(&first), [1, 2, 3]);
    let status = client(&server).await.server_status(ServerStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.num_connected_nodes, status.num_flows), (Some(3), 300));
    let absurd = pb::FlowFilter { source_port: vec!["x".into()], ..Default::default() };
    let request = GetFlowsRequest { whitelist: vec![absurd], ..Default::default() };
    let mut stream = client(&server).await.get_flows(request).await.unwrap().into_inner();
    let status = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("an absurd filter was accepted"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
}

#[tokio::test]
async fn a_relay_goes_on_without_a_node_that_dies_and_says_so() {
    let bench = Bench::new();
    let doubles: Vec<_> = ["node1", "node2", "node3"].iter().map(|node| Double::new(node, 1000)).collect();
    let (server, gone) = relay(&bench, &doubles).await;
    let request = GetFlowsRequest { follow: true, ..Default::default() };
    let mut stream = client(&server).await.get_flows(request).await.unwrap().into_inner();
    doubles[2].push([Flow { time_ns: now_ns(), ..example(3) }]);
    let mut next = async || stream.message().await.unwrap().unwrap();
    while port(&next().await) != Some(3) {}
    gone.cancel();
    let missing = loop {
        if let Some(ResponseTypes::NodeStatus(status)) = next().await.response_types
            && status.state_change() != NodeState::NodeConnected
        {
            break status.node_names;
        }
    };
    assert_eq!(missing, ["node3"]);
    doubles[0].push([Flow { time_ns: now_ns(), ..example(1) }]);
    while port(&next().await) != Some(1) {}
    let status = client(&server).await.server_status(ServerStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.num_connected_nodes, Some(2));
    assert_eq!(
        (status.num_unavailable_nodes, &status.unavailable_nodes[..]),
        (Some(1), &["node3".to_owned()][..])
    );
    let past = flows(&server, GetFlowsRequest::default()).await;
    assert!(ports(&past).contains(&1));
}

#[tokio::test]
async fn a_node_with_another_clock_delays_nobody_and_is_named() {
    let bench = Bench::new();
    let doubles: Vec<_> = ["node1", "node2", "skewed"].iter().map(|node| Double::new(node, 1000)).collect();
    let (server, _gone) = relay(&bench, &doubles).await;
    let request = GetFlowsRequest { follow: true, ..Default::default() };
    let mut stream = client(&server).await.get_flows(request).await.unwrap().into_inner();
    let hour = 3600 * 1_000_000_000;
    doubles[2].push([Flow { time_ns: now_ns() + hour, ..example(9) }]);
    doubles[0].push([Flow { time_ns: now_ns(), ..example(1) }]);
    let (mut seen, mut said) = (Vec::new(), Vec::new());
    while seen.len() < 2 || said.is_empty() {
        let response = stream.message().await.unwrap().unwrap();
        seen.extend(port(&response));
        if let Some(ResponseTypes::NodeStatus(status)) = response.response_types
            && status.message.contains("ahead of")
        {
            said = status.node_names;
        }
    }
    seen.sort_unstable();
    assert_eq!((seen, said), (vec![1, 9], vec!["skewed".to_owned()]));
}
