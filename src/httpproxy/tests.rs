//! The proxy over loopback: the network and the judge are ours, the rest is what runs in production.

mod both;
mod compile;
mod edits;
mod http1;
mod http2;
mod http2_raw;
mod http2_timing;
mod rule_changes;
mod smuggling;
mod timing;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::crew::Crew;
use super::judge::{Judge, Judged};
use super::policy::{ConnectionPolicy, SidePolicy};
use super::serve::{self, Protocol};
use super::{Context, Counters, Ends, Limits, Network, RecordedPath, Recorder};
use crate::flow::L7;
use crate::flow::record::{Record, RecordVerdict};
use crate::model::{Identity, Kind, ObjectRef};
use crate::policy::decision::Outcome;
use crate::policy::engine::L7Policy;
use crate::policy::l7::{DnsPattern, HttpRule, L7Rules};
use crate::policy::map_state::Proxy;
use crate::policy::rule::RuleRef;

/// Longer than anything here takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The server is fixed; the client's address is what it is.
struct Loopback {
    server: SocketAddr,
    /// Whoever connects hears nothing.
    is_away: Arc<AtomicBool>,
}

impl Network for Loopback {
    fn ends(&self, accepted: &TcpStream) -> std::io::Result<Ends> {
        Ok(Ends { client: accepted.peer_addr()?, server: self.server })
    }

    fn connect(&self, ends: Ends) -> BoxFuture<'_, std::io::Result<TcpStream>> {
        if self.is_away.load(Ordering::Relaxed) {
            return Box::pin(std::future::pending());
        }
        Box::pin(TcpStream::connect(ends.server))
    }
}

/// Egress is what the test says at the moment, ingress is always the same.
struct Fixed(Mutex<(u64, Arc<SidePolicy>)>, Arc<SidePolicy>);

impl Judge for Fixed {
    fn policy(&self, _: SocketAddr, _: SocketAddr) -> Judged {
        let (generation, egress) = self.0.lock().clone();
        let policy = ConnectionPolicy {
            client_identity: Identity(300),
            server_identity: Identity(301),
            egress,
            ingress: Arc::clone(&self.1),
        };
        Judged { policy, generation, at: Instant::now() }
    }

    fn is_current(&self, judged: &Judged) -> bool {
        judged.generation == self.0.lock().0
    }
}

fn rule_ref() -> RuleRef {
    RuleRef { object: ObjectRef::new(Kind::CiliumNetworkPolicy, "shop", "l7"), spec: 0, rule: 0 }
}

/// Default deny, these rules.
fn under(proxy: Proxy, rules: L7Rules) -> L7Policy {
    L7Policy {
        outcome: Outcome::Redirect(proxy),
        rules: vec![(rule_ref(), Some(Arc::new(rules)))],
        lifted: false,
        enforced: true,
    }
}

fn http(rules: &[(&str, &str)]) -> L7Policy {
    let rules = rules.iter().map(|(method, path)| HttpRule {
        method: Some((*method).into()),
        path: Some((*path).into()),
        ..HttpRule::default()
    });
    under(Proxy::Http, L7Rules::Http(rules.collect()))
}

fn server_names(names: &[&str]) -> L7Policy {
    let names = names.iter().map(|name| DnsPattern::Pattern((*name).into()));
    under(Proxy::Tls, L7Rules::Tls(names.collect()))
}

/// Keeps all.
struct Kept(Arc<Mutex<Vec<Record>>>);

impl Recorder for Kept {
    fn admits(&self) -> bool {
        true
    }

    fn record(&self, record: Record) {
        self.0.lock().push(record);
    }
}

/// A running proxy in front of a listener.
struct Rig {
    address: SocketAddr,
    upstream: TcpListener,
    is_away: Arc<AtomicBool>,
    judge: Arc<Fixed>,
    records: Arc<Mutex<Vec<Record>>>,
    counters: Arc<Counters>,
    rules_changed: watch::Sender<u64>,
    drain: watch::Sender<bool>,
    running: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Rig {
    async fn new(policy: L7Policy) -> Rig {
        Rig::with(policy, Protocol::Http, Limits::default()).await
    }

    async fn with(policy: L7Policy, protocol: Protocol, limits: Limits) -> Rig {
        Rig::start(&policy, SidePolicy::open(), protocol, limits).await
    }

    /// Both pods are on this node.
    async fn between(egress: &L7Policy, ingress: &L7Policy) -> Rig {
        let ingress = SidePolicy::compile(ingress, &|_, _, _| None).unwrap();
        Rig::start(egress, ingress, Protocol::Http, Limits::default()).await
    }

    async fn start(egress: &L7Policy, ingress: SidePolicy, protocol: Protocol, limits: Limits) -> Rig {
        let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = upstream.local_addr().unwrap();
        Rig::in_front_of(server, upstream, (egress, ingress), protocol, limits).await
    }

    /// `upstream` is the server's, unless what the proxy calls is another proxy.
    async fn in_front_of(
        server: SocketAddr,
        upstream: TcpListener,
        (egress, ingress): (&L7Policy, SidePolicy),
        protocol: Protocol,
        limits: Limits,
    ) -> Rig {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let egress = Arc::new(SidePolicy::compile(egress, &|_, _, _| None).unwrap());
        let judge = Arc::new(Fixed(Mutex::new((1, egress)), Arc::new(ingress)));
        let records: Arc<Mutex<Vec<Record>>> = Arc::default();
        let counters: Arc<Counters> = Arc::default();
        let is_away: Arc<AtomicBool> = Arc::default();
        let (rules_changed, changes) = watch::channel(0);
        let (drain, draining) = watch::channel(false);
        let context = Context {
            judge: Arc::clone(&judge) as Arc<dyn Judge>,
            network: Arc::new(Loopback { server, is_away: Arc::clone(&is_away) }),
            recorder: Arc::new(Kept(Arc::clone(&records))),
            recorded_path: RecordedPath::WithoutQuery,
            limits,
            counters: Arc::clone(&counters),
            changes,
            draining,
        };
        let crew = Arc::new(Crew::start(1).unwrap());
        let listener = listener.into_std().unwrap();
        let running = tokio::spawn(serve::run(listener, protocol, Arc::new(context), crew));
        Rig { address, upstream, is_away, judge, records, counters, rules_changed, drain, running }
    }

    async fn client(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn server(&self) -> TcpStream {
        patiently(self.upstream.accept()).await.unwrap().0
    }

    /// New rules, from now on.
    fn swap(&self, policy: &L7Policy) {
        let mut judge = self.judge.0.lock();
        *judge = (judge.0 + 1, Arc::new(SidePolicy::compile(policy, &|_, _, _| None).unwrap()));
        drop(judge);
        self.rules_changed.send_modify(|count| *count += 1);
    }
}

/// Verdicts and status codes of all requests so far, of which there are so many.
async fn outcomes(rig: &Rig, count: usize) -> Vec<(RecordVerdict, u16)> {
    patiently(async {
        while rig.records.lock().len() < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let records = rig.records.lock();
    let outcome = |record: &Record| match &record.l7 {
        L7::Http { status, .. } => (record.verdict, *status),
        other => panic!("{other:?}"),
    };
    records.iter().map(outcome).collect()
}

async fn patiently<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("in time")
}

async fn send(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
}

/// Reads exactly this.
async fn expect(stream: &mut TcpStream, text: &str) {
    let mut bytes = vec![0; text.len()];
    let mut count = 0;
    while count < bytes.len() && bytes[..count] == text.as_bytes()[..count] {
        match patiently(stream.read(&mut bytes[count..])).await {
            Ok(0) | Err(_) => break,
            Ok(read) => count += read,
        }
    }
    assert_eq!(String::from_utf8_lossy(&bytes[..count]), text);
}

/// Reads to the end; a reset is an end too.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    patiently(stream.read_to_end(&mut bytes)).await.ok();
    String::from_utf8_lossy(&bytes).into_owned()
}

const DENIED: &str =
    "HTTP/1.1 403 Forbidden\r\nContent-Length: 15\r\nContent-Type: text/plain\r\n\r\nAccess denied\r\n";
