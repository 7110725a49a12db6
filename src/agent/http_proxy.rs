//! The process `sluice http-proxy`: the HTTP proxy on the kernel's redirected connections.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use futures::future::BoxFuture;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::outgoing::{Ports, transparent};
use super::proxies::ProxyProcess;
use super::proxy_host::{ProxyHost, raise_descriptor_limit};
use super::records::Sender;
use crate::datapath::DatapathError;
use crate::datapath::net::sysctl;
use crate::datapath::proxy::{IdentityLookup, ListenerKind, ListenerPlace, Listeners};
use crate::flow::record::Record;
use crate::httpproxy::crew::Crew;
use crate::httpproxy::judge::SnapshotJudge;
use crate::httpproxy::options::Options;
use crate::httpproxy::serve::{self, Protocol};
use crate::httpproxy::{Context, Counters, Ends, Network, Recorder};
use crate::model::{Family, Identity};
use crate::policy::engine::PeerView;

/// How the process runs.
#[derive(Clone, Debug)]
pub struct HttpProxyConfig {
    pub run_dir: PathBuf,
    pub bpffs: PathBuf,
    pub options: Options,
}

/// Runs until another process has taken over, or it is told to stop; then finishes what it has begun. This
/// thread accepts and watches; the threads of the [`Crew`] serve.
pub fn run(config: HttpProxyConfig) -> anyhow::Result<()> {
    raise_descriptor_limit();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().context("start the runtime")?;
    runtime.block_on(serve(config))
}

async fn serve(config: HttpProxyConfig) -> anyhow::Result<()> {
    let options = config.options;
    let host = ProxyHost::start(ProxyProcess::Http.name(), &config.run_dir, options.records_per_second)?;
    let lookup = IdentityLookup::open(&config.bpffs)?;
    let places = Listeners::open(&config.bpffs)?;
    let (servers, newest) = (lookup.clone(), Arc::clone(&host.newest));
    let counters = Arc::new(Counters::default());
    let judge = SnapshotJudge::new(
        Arc::clone(&host.feed),
        move || newest.load(),
        move |address| resolve(address, lookup.resolve(address)),
        move |client, server| resolve(server.ip(), servers.resolve_server(client, server)),
        Arc::clone(&counters),
    );
    let (drain, draining) = watch::channel(false);
    let mut families = vec![Family::IPv4];
    if sysctl::has_ipv6() {
        families.push(Family::IPv6);
    }
    let mut listeners = Vec::new();
    let mut own = Vec::new();
    for family in families {
        for (kind, protocol) in [(ListenerKind::Http, Protocol::Http), (ListenerKind::Tls, Protocol::Tls)] {
            let listener = listen(family).with_context(|| format!("listen for {family:?}"))?;
            own.push(listener.local_addr()?);
            listeners.push((ListenerPlace { kind, family }, protocol, listener));
        }
    }
    let context = Arc::new(Context {
        judge: Arc::new(judge),
        network: Arc::new(Transparent { own, ports: Ports::new() }),
        recorder: Arc::clone(&host.records) as Arc<dyn Recorder>,
        recorded_path: options.recorded_path,
        limits: options.limits,
        counters: Arc::clone(&counters),
        changes: host.changes.clone(),
        draining,
    });
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let crew = Arc::new(Crew::start(threads).context("start the threads")?);
    let mut running = JoinSet::new();
    for (place, protocol, listener) in listeners {
        places.insert(place, &listener)?;
        running.spawn(serve::run(listener, protocol, Arc::clone(&context), Arc::clone(&crew)));
    }
    let records = Arc::clone(&host.records);
    host.announce(move || {
        let (limited, lost) = records.dropped();
        let all = counters.all().into_iter().chain([("records_limited", limited), ("records_lost", lost)]);
        all.map(|(name, count)| (name.to_owned(), serde_json::Value::from(count))).collect()
    })
    .await?;
    tracing::info!(threads, "listening");
    host.stopped().await?;
    tracing::info!("stopping; what runs is finished");
    drain.send_replace(true);
    while let Some(served) = running.join_next().await {
        served.context("a listener's task")??;
    }
    crew.end();
    host.records.flush();
    Ok(())
}

impl Recorder for Sender {
    fn admits(&self) -> bool {
        Sender::admits(self)
    }

    fn record(&self, record: Record) {
        self.put(record);
    }
}

/// An address that the kernel's tables cannot tell is unknown, and unknown is denied.
fn resolve(address: IpAddr, found: Result<PeerView, DatapathError>) -> PeerView {
    found.unwrap_or_else(|error| {
        tracing::error!(%error, %address, "identity not found");
        Identity::UNKNOWN.into()
    })
}

/// On the loopback address: nobody reaches it but through the programs.
fn listen(family: Family) -> io::Result<std::net::TcpListener> {
    let address: IpAddr = match family {
        Family::IPv4 => Ipv4Addr::LOCALHOST.into(),
        Family::IPv6 => Ipv6Addr::LOCALHOST.into(),
    };
    let socket = transparent(family)?;
    socket.bind(&SocketAddr::new(address, 0).into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// Connections as the kernel redirects them.
#[derive(Debug)]
struct Transparent {
    /// Addresses of our listeners: what was really sent to one of them was not redirected.
    own: Vec<SocketAddr>,
    ports: Ports,
}

impl Network for Transparent {
    fn ends(&self, accepted: &TcpStream) -> io::Result<Ends> {
        let (client, server) = (accepted.peer_addr()?, accepted.local_addr()?);
        if self.own.contains(&server) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(Ends { client, server })
    }

    fn connect(&self, ends: Ends) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(self.ports.connect(ends.client.ip(), ends.server))
    }
}
