//! `sluice dns-proxy`: where the DNS proxy meets the policy feed, the kernel and the agent.
//!
//! A process of its own, started by the agent, that works on the feed and the pinned maps alone: it goes on
//! when the agent does not run. A query is judged for the client's egress if the client is a local pod, and
//! for the server's ingress if the server is one. Who is unknown is refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context as _;

use super::l7feed::Feed;
use super::names_client::NamesClient;
use super::offline_names::OfflineNames;
use super::proxy_host::ProxyHost;
use super::records::Sender;
use crate::datapath::abi::MARK_PROXY_OUT;
use crate::datapath::learned::LearnedAddresses;
use crate::datapath::proxy::{IdentityLookup, ListenerKind, ListenerPlace, Listeners};
use crate::dnsproxy::proxy::{Options, Parts};
use crate::dnsproxy::sockets::{listen_tcp, listen_udp};
use crate::dnsproxy::{Ask, Decision, Judge, Proxy, QueryRecord, Records, Ruling, TransparentSockets};
use crate::flow::L7;
use crate::flow::record::{Record, RecordVerdict};
use crate::model::{Direction, Family, Identity};
use crate::policy::decision::Outcome;
use crate::policy::engine::{L4Flow, L7Policy, PeerView};
use crate::policy::l7::L7Rules;
use crate::policy::l7::snapshot::Snapshot;
use crate::policy::map_state::Proxy as ProxyKind;
use crate::policy::rule::RuleRef;

/// Name of the subcommand and of the files in the agent's directory.
pub const NAME: &str = "dns-proxy";

/// What the process is told.
#[derive(Clone, Debug)]
pub struct Settings {
    pub run_dir: PathBuf,
    pub bpffs: PathBuf,
    pub options: Options,
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

/// Every open query holds a socket.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

async fn serve(settings: Settings) -> anyhow::Result<()> {
    let host = ProxyHost::start(NAME, &settings.run_dir, settings.records_per_second)?;
    let identities = IdentityLookup::open(&settings.bpffs)?;
    let offline = OfflineNames::new(&settings.run_dir, LearnedAddresses::open(&settings.bpffs)?);
    let judge = Arc::new(PolicyJudge { feed: Arc::clone(&host.feed), identities: identities.clone() });
    let proxy = Proxy::new(
        settings.options,
        Parts {
            judge,
            learner: NamesClient::start(&settings.run_dir, Arc::clone(&host.feed), offline),
            records: Arc::new(FlowRecords { sender: Arc::clone(&host.records), identities }),
            sockets: Arc::new(TransparentSockets::new(MARK_PROXY_OUT)),
        },
    );
    let mut tasks = listen(&settings.bpffs, &proxy)?;
    let counted = Arc::clone(&proxy);
    host.announce(move || serde_json::to_value(counted.counters.snapshot()).unwrap_or_default()).await?;
    tokio::select! {
        stopped = host.stopped() => stopped?,
        ended = tasks.join_next() => {
            if let Some(ended) = ended {
                ended?.context("a listener failed")?;
            }
            anyhow::bail!("a listener ended");
        }
    }
    drain(&proxy, settings.options.upstream_timeout).await;
    Ok(())
}

type Tasks = tokio::task::JoinSet<std::io::Result<()>>;

/// Opens the listeners and puts them into their places, both families.
fn listen(bpffs: &Path, proxy: &Arc<Proxy>) -> anyhow::Result<Tasks> {
    let places = Listeners::open(bpffs)?;
    let mut tasks = Tasks::new();
    let loopbacks = [
        (Family::IPv4, IpAddr::from(Ipv4Addr::LOCALHOST)),
        (Family::IPv6, IpAddr::from(Ipv6Addr::LOCALHOST)),
    ];
    for (family, address) in loopbacks {
        // Nobody connects to the port itself: the programs hand connections over.
        let address = SocketAddr::new(address, 0);
        let udp = listen_udp(address).with_context(|| format!("listen on {address}/UDP"))?;
        places.insert(ListenerPlace { kind: ListenerKind::DnsUdp, family }, &udp)?;
        tasks.spawn(Arc::clone(proxy).serve_udp(udp));
        let tcp = listen_tcp(address, MARK_PROXY_OUT).with_context(|| format!("listen on {address}/TCP"))?;
        places.insert(ListenerPlace { kind: ListenerKind::DnsTcp, family }, &tcp)?;
        tasks.spawn(Arc::clone(proxy).serve_tcp(tcp));
    }
    Ok(tasks)
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

/// Policy as the feed and the kernel's identities say.
#[derive(Debug)]
struct PolicyJudge {
    feed: Feed,
    identities: IdentityLookup,
}

impl Judge for PolicyJudge {
    fn judge(&self, ask: &Ask<'_>) -> Ruling {
        let snapshot = self.feed.load();
        let peers = [ask.client.ip(), ask.server.ip()].map(|address| {
            self.identities.resolve(address).unwrap_or_else(|error| {
                tracing::error!(%error, %address, "the kernel does not say who this is");
                PeerView { identity: Identity::UNKNOWN, address_class: None }
            })
        });
        rule(&snapshot, ask, peers)
    }
}

/// One side's part in a ruling.
struct Part {
    decision: Decision,
    direction: Direction,
    rules: Vec<RuleRef>,
}

/// Both sides must release. Where both do, the client's side is named.
fn rule(snapshot: &Snapshot, ask: &Ask<'_>, [client, server]: [PeerView; 2]) -> Ruling {
    let flow = L4Flow { protocol: ask.protocol, port: ask.server.port() };
    let sides = [(ask.client.ip(), Direction::Egress, server), (ask.server.ip(), Direction::Ingress, client)];
    let parts: Vec<Part> = sides
        .into_iter()
        .filter_map(|(subject, direction, peer)| {
            let subject = snapshot.local(subject)?;
            let policy = snapshot.policy(subject.identity, direction, peer, flow)?;
            Some(judge_side(&policy, direction, ask.name))
        })
        .collect();
    // No side knows why the query is here: the policy that sent it has gone.
    let nobody = Part { decision: Decision::Refuse, direction: Direction::Egress, rules: Vec::new() };
    let refused = parts.iter().position(|part| part.decision == Decision::Refuse);
    let Part { decision, direction, rules } = parts.into_iter().nth(refused.unwrap_or(0)).unwrap_or(nobody);
    Ruling { decision, direction, rules, client_identity: client.identity, server_identity: server.identity }
}

fn judge_side(policy: &L7Policy, direction: Direction, name: &str) -> Part {
    let all = || policy.rules.iter().map(|(rule, _)| rule.clone()).collect::<Vec<_>>();
    let matching: Vec<RuleRef> = (policy.rules.iter())
        .filter(|(_, l7)| match l7.as_deref() {
            Some(L7Rules::Dns(patterns)) => patterns.iter().any(|pattern| pattern.matches(name)),
            Some(L7Rules::Http(_) | L7Rules::Tls(_)) => false,
            None => true,
        })
        .map(|(rule, _)| rule.clone())
        .collect();
    let decision = match policy.outcome {
        Outcome::Allow => Decision::Release,
        Outcome::Redirect(ProxyKind::Dns) if !matching.is_empty() || !policy.refuses_requests() => {
            Decision::Release
        }
        Outcome::Redirect(_) | Outcome::Deny => Decision::Refuse,
    };
    let rules = if matching.is_empty() { all() } else { matching };
    Part { decision, direction, rules }
}

/// Records on their way to the agent.
#[derive(Debug)]
struct FlowRecords {
    sender: Arc<Sender>,
    identities: IdentityLookup,
}

impl Records for FlowRecords {
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
            None => (Direction::Egress, Vec::new(), who(record.client.ip()), who(record.server.ip())),
        };
        self.sender.send(&Record {
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
                query: if record.name.is_empty() { ".".into() } else { record.name.into() },
                query_type: type_name(record.kind).into(),
                rcode: record.rcode.map_or("none", rcode_name).into(),
                answers: record.answers,
                latency_us: u64::try_from(record.latency.as_micros()).unwrap_or(u64::MAX),
            },
        });
    }
}

/// The name of a record type, or `TYPEn` (RFC 3597).
fn type_name(kind: u16) -> String {
    use hickory_proto::rr::RecordType;
    match RecordType::from(kind) {
        RecordType::Unknown(_) => format!("TYPE{kind}"),
        known => known.to_string(),
    }
}

/// RFC 1035, section 4.1.1, and RFC 2136, section 2.2.
fn rcode_name(code: u8) -> &'static str {
    const NAMES: [&str; 12] = [
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
    ];
    NAMES.get(usize::from(code)).copied().unwrap_or("RESERVED")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    fn policy(outcome: Outcome, enforced: bool, patterns: &[&str]) -> L7Policy {
        use crate::model::{Kind, ObjectRef};
        use crate::policy::l7::DnsPattern;
        let object = ObjectRef::new(Kind::CiliumNetworkPolicy, "shop", "names");
        let patterns = patterns.iter().map(|text| DnsPattern::Pattern((*text).into())).collect();
        let rule = RuleRef { object, spec: 0, rule: 0 };
        L7Policy {
            outcome,
            rules: vec![(rule, Some(Arc::new(L7Rules::Dns(patterns))))],
            lifted: false,
            enforced,
        }
    }

    #[test]
    fn a_name_that_no_rule_lists_is_refused_where_policy_is_enforced() {
        let judge = |policy: &L7Policy, name| judge_side(policy, Direction::Egress, name).decision;
        let dns = Outcome::Redirect(ProxyKind::Dns);
        let enforced = policy(dns, true, &["*.example"]);
        assert_eq!(judge(&enforced, "a.example"), Decision::Release);
        assert_eq!(judge(&enforced, "a.b.example"), Decision::Refuse);
        assert_eq!(judge(&policy(dns, false, &["*.example"]), "x.org"), Decision::Release);
        assert_eq!(judge(&policy(Outcome::Deny, true, &["*"]), "a"), Decision::Refuse);
        assert_eq!(judge(&policy(Outcome::Redirect(ProxyKind::Http), true, &["*"]), "a"), Decision::Refuse);
    }

    #[test]
    fn a_query_that_no_policy_knows_is_refused() {
        let ask = Ask {
            client: "10.0.0.1:5000".parse().unwrap(),
            server: "10.0.0.2:53".parse().unwrap(),
            protocol: Protocol::Udp,
            name: "a.example",
        };
        let peer = PeerView { identity: Identity(300), address_class: None };
        assert_eq!(rule(&Snapshot::default(), &ask, [peer, peer]).decision, Decision::Refuse);
    }

    #[test]
    fn codes_and_types_have_their_usual_names() {
        assert_eq!((rcode_name(5), rcode_name(15)), ("REFUSED", "RESERVED"));
        assert_eq!((&*type_name(1), &*type_name(65280)), ("A", "TYPE65280"));
    }
}
