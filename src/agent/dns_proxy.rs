//! `sluice dns-proxy`: where the DNS proxy meets the policy feed, the kernel and the agent.
//!
//! A process of its own, started by the agent, that works on the feed and the pinned maps alone: it goes on
//! when the agent does not run. A new process takes over the listeners of an old one, which finishes what it has
//! begun.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::Context as _;

use super::dns_judge::PolicyJudge;
use super::names_client::NamesClient;
use super::offline_names::OfflineNames;
use super::outgoing::Ports;
use super::proxy_host::{ProxyHost, raise_descriptor_limit};
use super::records::Sender;
use crate::datapath::abi::{MARK_PROXY_ASKS, MARK_PROXY_OUT};
use crate::datapath::learned::LearnedAddresses;
use crate::datapath::proxy::{IdentityLookup, ListenerKind, ListenerPlace, Listeners};
use crate::dnsproxy::proxy::{Options, Parts};
use crate::dnsproxy::sockets::{listen_tcp, listen_udp};
use crate::dnsproxy::{
    Decision, Outgoing, Proxy, QueryRecord, Records, Replies, TransparentSockets, Workers,
};
use crate::flow::L7;
use crate::flow::record::{Record, RecordVerdict};
use crate::fqdn::TtlBounds;
use crate::model::{Direction, Family, Identity};
use crate::policy::engine::PeerView;

/// Name of the subcommand and of the files in the agent's directory.
pub const NAME: &str = "dns-proxy";

/// How long a process that is told to stop waits for the next one.
const SUCCESSION: Duration = Duration::from_secs(5);

/// How long a process waits for a place for its replies.
const PLACE_PATIENCE: Duration = Duration::from_secs(10);

/// What the process is told.
#[derive(Clone, Debug)]
pub struct Settings {
    pub run_dir: PathBuf,
    pub bpffs: PathBuf,
    pub options: Options,
    /// How long answers are fresh, as for the agent.
    pub ttl: TtlBounds,
    /// Threads that serve datagrams.
    pub workers: usize,
    pub records_per_second: u32,
}

/// Serves until it is told to stop or replaced.
pub fn run(settings: Settings) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("sluice-dns")
        .enable_all()
        .build()
        .context("start the runtime")?;
    raise_descriptor_limit();
    runtime.block_on(serve(settings))
}

async fn serve(settings: Settings) -> anyhow::Result<()> {
    let host = ProxyHost::start(NAME, &settings.run_dir, settings.records_per_second)?;
    let identities = IdentityLookup::open(&settings.bpffs)?;
    let addresses = LearnedAddresses::open(&settings.bpffs)?;
    let offline = OfflineNames::new(&settings.run_dir, addresses, settings.ttl);
    let lookup = identities.clone();
    let judge = PolicyJudge::new(Arc::clone(&host.newest), move |address| lookup.resolve(address));
    let names = NamesClient::start(&settings.run_dir, Arc::clone(&host.feed), offline, settings.ttl);
    let places = Listeners::open(&settings.bpffs)?;
    let sockets = TransparentSockets::new(MARK_PROXY_OUT, replies(&places).await?, outgoing());
    let sockets = sockets.context("open sockets")?;
    let proxy = Proxy::new(
        settings.options,
        Parts {
            judge: Arc::new(judge),
            learner: names.clone(),
            records: Arc::new(FlowRecords { sender: Arc::clone(&host.records), identities }),
            sockets: Arc::new(sockets),
        },
    );
    let (mut workers, mut tasks) = listen(&settings, &places, &proxy)?;
    let (counted, learned, records) = (Arc::clone(&proxy), Arc::clone(&names), Arc::clone(&host.records));
    host.announce(move || {
        let (records_limited, records_lost) = records.dropped();
        let counters = Counters {
            queries: counted.counters.snapshot(),
            open_queries: counted.open_queries(),
            names: learned.counts(),
            records_limited,
            records_lost,
        };
        serde_json::to_value(counters).unwrap_or_default()
    })
    .await?;
    tokio::select! {
        stopped = host.stopped() => stopped?,
        error = workers.failed() => return Err(error).context("a worker failed"),
        ended = tasks.join_next() => {
            if let Some(ended) = ended {
                ended?.context("a listener failed")?;
            }
            anyhow::bail!("a listener ended");
        }
    }
    // Without a successor, queries go on for a moment: the agent starts one.
    host.succeeded(SUCCESSION).await;
    // Listeners go on until the workers have found nothing more.
    let longest = settings.options.upstream_timeout + Duration::from_secs(1);
    if tokio::time::timeout(longest, workers.drain()).await.is_err() {
        tracing::warn!("workers are stopped before they have finished");
    }
    drain(&proxy, longest).await;
    if tokio::time::timeout(longest, names.settle()).await.is_err() {
        tracing::warn!("the agent was not told how long some addresses stay fresh");
    }
    host.records.flush();
    Ok(())
}

/// What the process tells about itself.
#[derive(serde::Serialize)]
struct Counters {
    #[serde(flatten)]
    queries: crate::dnsproxy::CountersSnapshot,
    open_queries: usize,
    #[serde(flatten)]
    names: super::names_client::CountsSnapshot,
    records_limited: u64,
    records_lost: u64,
}

/// Nobody sends to the port itself: the programs hand over what is for others.
fn anywhere(family: Family) -> SocketAddr {
    let address = match family {
        Family::IPv4 => IpAddr::from(Ipv4Addr::LOCALHOST),
        Family::IPv6 => IpAddr::from(Ipv6Addr::LOCALHOST),
    };
    SocketAddr::new(address, 0)
}

/// Where the replies to this process's queries arrive.
async fn replies(places: &Listeners) -> anyhow::Result<Replies> {
    let listen = |family| {
        let address = anywhere(family);
        listen_udp(address).with_context(|| format!("listen on {address}/UDP"))
    };
    let listeners = [listen(Family::IPv4)?, listen(Family::IPv6)?];
    let begin = Instant::now();
    loop {
        if let Some(place) = places.claim(&listeners[0], &listeners[1])? {
            return Ok(Replies {
                mark: MARK_PROXY_ASKS,
                is_own: Box::new(move |port| place.has(port)),
                listeners,
            });
        }
        // Processes that are being replaced end within seconds.
        anyhow::ensure!(begin.elapsed() < PLACE_PATIENCE, "too many processes wait for replies");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The proxy's leg has the client's address: a port of the client's own would be a connection of the client's own.
fn outgoing() -> Outgoing {
    let ports = Arc::new(Ports::new());
    Box::new(move |client, server| {
        let ports = Arc::clone(&ports);
        Box::pin(async move { ports.connect(client, server).await })
    })
}

type Tasks = tokio::task::JoinSet<std::io::Result<()>>;

/// Opens the listeners and puts them into their places, both families.
fn listen(settings: &Settings, places: &Listeners, proxy: &Arc<Proxy>) -> anyhow::Result<(Workers, Tasks)> {
    let mut tasks = Tasks::new();
    let mut datagrams = Vec::new();
    for (family, address) in [Family::IPv4, Family::IPv6].map(|family| (family, anywhere(family))) {
        let udp = listen_udp(address).with_context(|| format!("listen on {address}/UDP"))?;
        datagrams.push((ListenerPlace { kind: ListenerKind::DnsUdp, family }, udp));
        let tcp = listen_tcp(address, MARK_PROXY_OUT).with_context(|| format!("listen on {address}/TCP"))?;
        places.insert(ListenerPlace { kind: ListenerKind::DnsTcp, family }, &tcp)?;
        tasks.spawn(Arc::clone(proxy).serve_tcp(tcp));
    }
    for (place, udp) in &datagrams {
        places.insert(*place, udp)?;
    }
    let datagrams = datagrams.into_iter().map(|(_, udp)| udp).collect();
    let workers = proxy.serve_udp(datagrams, settings.workers).context("start the workers")?;
    Ok((workers, tasks))
}

/// Lets open queries end; none takes longer than `longest`.
async fn drain(proxy: &Proxy, longest: Duration) {
    let ended = async {
        while proxy.open_queries() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(longest, ended).await.is_err() {
        tracing::warn!(open = proxy.open_queries(), "stopping with queries open");
    }
}

/// Records on their way to the agent.
#[derive(Debug)]
struct FlowRecords {
    sender: Arc<Sender>,
    identities: IdentityLookup,
}

impl Records for FlowRecords {
    fn admits(&self) -> bool {
        self.sender.admits()
    }

    fn record(&self, record: QueryRecord) {
        let who = |address| {
            self.identities.resolve(address).map_or(Identity::UNKNOWN, |peer: PeerView| peer.identity)
        };
        let verdict = match (&record.ruling, &record.fault) {
            (Some(ruling), None) if ruling.decision == Decision::Refuse => RecordVerdict::Denied,
            (Some(_), None) => RecordVerdict::Forwarded,
            // Released, and the answer is there, if not for the kernel.
            (Some(_), Some(_)) if !record.answers.is_empty() => RecordVerdict::Forwarded,
            (_, Some(_)) | (None, None) => RecordVerdict::Failed,
        };
        let (direction, rules, client_identity, server_identity) = match record.ruling {
            Some(ruling) => (ruling.direction, ruling.rules, ruling.client_identity, ruling.server_identity),
            None => (Direction::Egress, Arc::from([]), who(record.client.ip()), who(record.server.ip())),
        };
        self.sender.put(Record {
            time_ns: record
                .time
                .duration_since(UNIX_EPOCH)
                .ok()
                .and_then(|since| u64::try_from(since.as_nanos()).ok())
                .unwrap_or_default(),
            direction,
            verdict,
            protocol: record.protocol.number(),
            client: record.client,
            server: record.server,
            client_identity,
            server_identity,
            rules,
            l7: L7::Dns {
                query: if record.name.is_empty() { ".".into() } else { record.name },
                query_type: type_name(record.kind),
                rcode: rcode_name(record.rcode),
                answers: record.answers,
                latency_us: u64::try_from(record.latency.as_micros()).unwrap_or(u64::MAX),
            },
        });
    }
}

/// The name of a record type, or `TYPEn` (RFC 3597).
fn type_name(kind: u16) -> Arc<str> {
    use hickory_proto::rr::RecordType;
    /// Of most queries: A, AAAA, HTTPS, SRV, PTR.
    const USUAL: [u16; 5] = [1, 28, 65, 33, 12];
    static NAMES: LazyLock<[Arc<str>; 5]> = LazyLock::new(|| USUAL.map(name));
    fn name(kind: u16) -> Arc<str> {
        match RecordType::from(kind) {
            RecordType::Unknown(_) => format!("TYPE{kind}").into(),
            known => known.to_string().into(),
        }
    }
    match USUAL.iter().position(|usual| *usual == kind) {
        Some(place) => Arc::clone(&NAMES[place]),
        None => name(kind),
    }
}

/// RFC 1035, section 4.1.1, and RFC 2136, section 2.2.
fn rcode_name(code: Option<u8>) -> Arc<str> {
    const NAMES: [&str; 14] = [
        "NOERROR",
        "FORMERR",
        "SERVFAIL",
        "NXDOMAIN",
        "NOTIMP",
        "REFUSED",
        "YXDOMAIN",
        "YXRRSET",
        "NXRRSET",
        "NOTAUTH",
        "NOTZONE",
        "DSOTYPENI",
        "RESERVED",
        "none",
    ];
    static SHARED: LazyLock<[Arc<str>; 14]> = LazyLock::new(|| NAMES.map(Arc::from));
    let [named @ .., reserved, none] = &*SHARED;
    Arc::clone(code.map_or(none, |code| named.get(usize::from(code)).unwrap_or(reserved)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel drew one of the ports that the client's own kernel draws: now and then the client was on such a
    /// connection to the server already, and the datapath took the two for one.
    #[cfg(feature = "root-tests")]
    #[tokio::test]
    async fn connections_to_servers_leave_from_no_port_that_a_client_draws() {
        let outgoing = outgoing();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = tokio::net::TcpListener::bind(address).await.unwrap();
            let server = listener.local_addr().unwrap();
            for _ in 0..64 {
                let stream = outgoing(server.ip(), server).await.unwrap();
                let from = stream.local_addr().unwrap();
                assert!((1024..32768).contains(&from.port()) && from.ip() == server.ip(), "{from}");
            }
        }
    }

    #[test]
    fn codes_and_types_have_their_usual_names() {
        assert_eq!((&*rcode_name(Some(5)), &*rcode_name(Some(15))), ("REFUSED", "RESERVED"));
        assert_eq!(&*rcode_name(None), "none");
        assert_eq!((&*type_name(1), &*type_name(65280)), ("A", "TYPE65280"));
    }
}
