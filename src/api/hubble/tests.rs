//! The flow API as clients meet it: real sockets, an observer that is a double, good and bad clients.

mod follow;
mod page;
mod relays;
mod select;
mod service;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::client::{ClientTls, MAX_RESPONSE, ServerAddress, connect};
use super::convert::Naming;
use super::observer_services;
use super::pb::flow as pb;
use super::pb::observer::get_flows_response::ResponseTypes;
use super::pb::observer::observer_client::ObserverClient;
use super::pb::observer::{GetFlowsRequest, GetFlowsResponse, ServerStatusRequest};
use super::relay::pool::{PeerAddress, Pool};
use super::relay::relay_services;
use super::serve::{self, Places};
use super::source::{Observed, PeerInfo, RingCounts};
use super::stream::now_ns;
use crate::api::past::{Past, PastFlows, PastQuery};
use crate::flow::Flow;
use crate::flow::journal::{self, Journal};
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

/// A filter with one expression.
fn expression(source: &str) -> pb::FlowFilter {
    let experimental = pb::flow_filter::Experimental { cel_expression: vec![source.to_owned()] };
    pb::FlowFilter { experimental: Some(experimental), ..Default::default() }
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
