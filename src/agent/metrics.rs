//! Metrics of the agent: `cilium_*` on one port, `hubble_*` on another.
//!
//! Flows are counted by a consumer of the ring on a thread of its own. The agent's numbers are asked of the core when
//! somebody scrapes, once for all of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use parking_lot::Mutex;

use super::core::{Core, CoreHandle};
use super::export::ExportCounters;
use super::history::Recorder;
use super::hub::Hub;
use super::tail::{PAUSE, Tail};
use super::telemetry::{Telemetry, logged};
use crate::api::metrics::context::Context;
use crate::api::metrics::flows::{FlowMetrics, LostAt};
use crate::api::metrics::{Family, Format, Kind, Page};
use crate::datapath::inspect::MetricRow;
use crate::model::{Direction, IdentityKind, ObjectRef};
use crate::policy::engine::Enforcement;
use crate::policy::map_state::RuleSetId;

/// Counts flows from now on; the counters are behind what is returned.
///
/// # Errors
/// No thread could be started.
pub fn count_flows(context: Context, most: usize, hub: Arc<Hub>) -> std::io::Result<Arc<Mutex<FlowMetrics>>> {
    let metrics = Arc::new(Mutex::new(FlowMetrics::new(context, most)));
    let counted = Arc::clone(&metrics);
    std::thread::Builder::new().name("sluice-metrics".into()).spawn(move || {
        let mut tail = Tail::new(Arc::clone(&hub));
        let mut lost_in_kernel = 0;
        loop {
            let (flows, lost) = tail.next();
            let in_kernel = hub.lost();
            {
                let mut metrics = counted.lock();
                metrics.lose(LostAt::Ring, lost);
                metrics.lose(LostAt::Kernel, in_kernel.saturating_sub(lost_in_kernel));
            }
            lost_in_kernel = in_kernel;
            // A scrape never waits long.
            for some in flows.chunks(256) {
                let mut metrics = counted.lock();
                some.iter().for_each(|flow| metrics.count(flow));
            }
            if flows.len() < super::tail::BATCH {
                std::thread::sleep(PAUSE);
            }
        }
    })?;
    Ok(metrics)
}

/// Where the numbers come from.
#[derive(Clone, Debug)]
pub struct Sources {
    pub core: CoreHandle,
    pub history: Option<Arc<Recorder>>,
    pub export: Arc<ExportCounters>,
    pub flows: Arc<Mutex<FlowMetrics>>,
}

/// Serves `GET /metrics` with the agent's numbers.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve_agent(listen: SocketAddr, sources: Sources) -> anyhow::Result<()> {
    let page = move |headers: HeaderMap| {
        let sources = sources.clone();
        async move {
            let format = format(&headers);
            match sources.core.call(Core::numbers).await {
                Ok(numbers) => answer(format, agent_page(format, &numbers, &sources)),
                Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
            }
        }
    };
    serve(listen, Router::new().route("/metrics", get(page))).await
}

/// Serves `GET /metrics` with what flows were counted.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve_flows(listen: SocketAddr, sources: Sources) -> anyhow::Result<()> {
    let page = move |headers: HeaderMap| {
        let sources = sources.clone();
        async move {
            // The kernel's own count of what it lost is read along.
            sources
                .core
                .call(|core| {
                    let lost = core.kernel.lost_events();
                    core.hub.set_lost(lost)
                })
                .await
                .ok();
            let format = format(&headers);
            answer(format, sources.flows.lock().page(format))
        }
    };
    serve(listen, Router::new().route("/metrics", get(page))).await
}

async fn serve(listen: SocketAddr, router: Router) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(listen).await?;
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, %listen, "metrics are no longer served");
        }
    });
    Ok(())
}

fn format(headers: &HeaderMap) -> Format {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    Format::accepted(accept.unwrap_or_default())
}

fn answer(format: Format, page: String) -> Response {
    ([(header::CONTENT_TYPE, format.content_type())], page).into_response()
}

/// How often rules of a policy decided.
#[derive(Debug)]
struct PolicyHits {
    object: ObjectRef,
    count: u64,
}

/// The core's numbers at one moment.
#[derive(Debug)]
pub struct Numbers {
    telemetry: Telemetry,
    traffic: Vec<MetricRow>,
    /// Map name, entries, most.
    pressure: Vec<(String, u64, u64)>,
    endpoints: BTreeMap<&'static str, usize>,
    /// Endpoints by the directions in which policy is enforced.
    enforcement: BTreeMap<&'static str, usize>,
    identities: BTreeMap<&'static str, usize>,
    addresses: BTreeMap<&'static str, usize>,
    policies: usize,
    services: usize,
    names: usize,
    refused_answers: u64,
    desired: u64,
    realized: u64,
    waiting: usize,
    kernel_failures: u64,
    store_errors: u64,
    flows: u64,
    flows_lost: u64,
    redirects: BTreeMap<&'static str, usize>,
    hits: Vec<PolicyHits>,
    resident: u64,
}

impl Core {
    /// See [`Numbers`].
    pub fn numbers(&mut self) -> Numbers {
        let lost = self.kernel.lost_events();
        self.hub.set_lost(lost);
        let mut endpoints = BTreeMap::from([("ready", 0), ("waiting-for-identity", 0), ("disconnected", 0)]);
        for (pod, _) in self.endpoints.iter() {
            *endpoints.entry(self.endpoint_state(pod)).or_default() += 1;
        }
        let engine = self.view.engine();
        let mut enforcement = BTreeMap::from([("none", 0), ("egress", 0), ("ingress", 0), ("both", 0)]);
        for endpoint in self.view.endpoints() {
            let is_on = |direction| {
                self.config.enforcement == Enforcement::Always
                    || !engine.default_deny_objects(endpoint.identity, direction).is_empty()
            };
            let key = match (is_on(Direction::Egress), is_on(Direction::Ingress)) {
                (true, true) => "both",
                (true, false) => "egress",
                (false, true) => "ingress",
                (false, false) => "none",
            };
            *enforcement.entry(key).or_default() += 1;
        }
        let mut identities = BTreeMap::new();
        for record in self.view.identities() {
            let kind = match &record.kind {
                _ if record.id.is_cluster_scope() => "cluster_local",
                IdentityKind::Cidr(_) => "node_local",
                IdentityKind::AddressClass(_) => "address_class",
                IdentityKind::Node { .. } => "remote_node",
                IdentityKind::Labels => "reserved",
            };
            *identities.entry(kind).or_default() += 1;
        }
        let mut addresses = BTreeMap::from([("ipv4", 0), ("ipv6", 0)]);
        for (prefix, _) in self.view.ipcache() {
            *addresses.entry(if prefix.addr().is_ipv4() { "ipv4" } else { "ipv6" }).or_default() += 1;
        }
        let (hits, redirects) = self.rule_hits();
        Numbers {
            traffic: self.kernel.inspect().and_then(|inspector| inspector.metrics()).unwrap_or_default(),
            pressure: self.kernel.pressure(),
            telemetry: self.telemetry.clone(),
            endpoints,
            enforcement,
            identities,
            addresses,
            policies: self.view.engine().policies().count(),
            services: self.view.services().count(),
            names: self.view.names().names().count(),
            refused_answers: self.view.refused_answers(),
            desired: self.desired,
            realized: self.realized,
            waiting: self.waiting(),
            kernel_failures: self.kernel_failures,
            store_errors: self.store.health().errors.values().sum(),
            flows: self.hub.seen(),
            flows_lost: lost,
            redirects,
            hits,
            resident: super::tables::resident_bytes(),
        }
    }

    /// Packets that each policy decided, and redirects by protocol.
    fn rule_hits(&self) -> (Vec<PolicyHits>, BTreeMap<&'static str, usize>) {
        use crate::policy::map_state::{Proxy, SlotAction};
        let engine = self.view.engine();
        let mut sets: BTreeMap<RuleSetId, ()> = BTreeMap::new();
        let mut redirects = BTreeMap::from([("http", 0), ("dns", 0), ("tls", 0)]);
        for subject in engine.subjects() {
            for entry in engine.entries(subject) {
                for slot in [entry.entry.admin, entry.entry.normal].into_iter().flatten() {
                    sets.insert(slot.rules, ());
                    if let SlotAction::Redirect(proxy) = slot.action {
                        let protocol = match proxy {
                            Proxy::Http => "http",
                            Proxy::Dns => "dns",
                            Proxy::Tls => "tls",
                        };
                        *redirects.entry(protocol).or_default() += 1;
                    }
                }
            }
        }
        let sets: Vec<RuleSetId> = sets.into_keys().collect();
        let counted =
            self.kernel.inspect().and_then(|inspector| inspector.rule_hits(&sets)).unwrap_or_default();
        // Objects without a hit are there with 0: an unused rule is what people look for.
        let mut hits: BTreeMap<_, u64> = engine.policies().map(|policy| (&policy.object, 0)).collect();
        for (set, count) in counted {
            let objects: std::collections::BTreeSet<_> =
                engine.rules_of(set).iter().map(|rule| &rule.object).collect();
            for object in objects {
                *hits.entry(object).or_default() += count;
            }
        }
        let rows = hits.into_iter().map(|(object, count)| PolicyHits { object: object.clone(), count });
        (rows.collect(), redirects)
    }
}

const fn counter(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Counter, help }
}

const fn gauge(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Gauge, help }
}

const fn histogram(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Histogram, help }
}

fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "EGRESS",
        Direction::Ingress => "INGRESS",
    }
}

fn agent_page(format: Format, numbers: &Numbers, sources: &Sources) -> String {
    let mut page = Page::new(format);
    let p = &mut page;
    let by = |label: &'static str, counts: &BTreeMap<&'static str, usize>| {
        counts
            .iter()
            .map(|(name, count)| (vec![(label, (*name).to_owned())], *count as f64))
            .collect::<Vec<_>>()
    };
    let version = concat!("v", env!("CARGO_PKG_VERSION")).to_owned();
    p.all(&gauge("cilium_version", "Version of the agent."), [(vec![("version", version)], 1.0)]);
    traffic(p, &numbers.traffic);
    p.all(&gauge("cilium_endpoint_state", "Endpoints by state."), by("endpoint_state", &numbers.endpoints));
    p.single(
        &gauge("cilium_endpoint", "Endpoints of this node."),
        numbers.endpoints.values().sum::<usize>() as f64,
    );
    p.all(
        &gauge("cilium_policy_endpoint_enforcement_status", "Endpoints by the directions under policy."),
        by("enforcement", &numbers.enforcement),
    );
    p.all(&gauge("cilium_identity", "Identities by their type."), by("type", &numbers.identities));
    p.all(
        &gauge("cilium_ip_addresses", "Address prefixes that have an identity."),
        by("family", &numbers.addresses),
    );
    p.single(&gauge("cilium_policy", "Policies that are loaded."), numbers.policies as f64);
    p.single(
        &gauge("cilium_policy_max_revision", "Highest revision of policies in use."),
        numbers.realized as f64,
    );
    p.single(
        &gauge("sluice_policy_desired_revision", "Revision of policies that is wanted."),
        numbers.desired as f64,
    );
    p.single(
        &gauge("sluice_policy_waiting_changes", "Changes that the kernel has not taken yet."),
        numbers.waiting as f64,
    );
    let telemetry = &numbers.telemetry;
    p.all(
        &counter("cilium_policy_change_total", "Changes of policies and objects by outcome."),
        [("success", telemetry.changes), ("fail", telemetry.changes_refused)]
            .map(|(outcome, count)| (vec![("outcome", outcome.to_owned())], count as f64)),
    );
    let delay = histogram(
        "cilium_policy_implementation_delay",
        "Seconds from a change being known to the kernel enforcing it.",
    );
    p.family(&delay);
    p.histogram(&delay, &[("source", "all")], &telemetry.implementation_delay);
    p.all(
        &counter(
            "cilium_endpoint_regenerations_total",
            "Changes that were brought to the kernel, by outcome.",
        ),
        [("success", telemetry.regeneration.count()), ("failure", telemetry.regenerations_failed)]
            .map(|(outcome, count)| (vec![("outcome", outcome.to_owned())], count as f64)),
    );
    let times = histogram(
        "cilium_endpoint_regeneration_time_stats_seconds",
        "Seconds the kernel needed for a change.",
    );
    p.family(&times);
    p.histogram(&times, &[("scope", "total"), ("status", "success")], &telemetry.regeneration);
    p.all(
        &gauge(
            "cilium_agent_bootstrap_seconds",
            "Seconds from the start to the first full state in the kernel.",
        ),
        telemetry.bootstrap.map(|took| (vec![("scope", "overall".to_owned())], took.as_secs_f64())),
    );
    let share = |(map, entries, most): &(String, u64, u64)| {
        (
            vec![("map_name", map.trim_start_matches("sl_").to_owned())],
            *entries as f64 / (*most).max(1) as f64,
        )
    };
    p.all(
        &gauge("cilium_bpf_map_pressure", "Fill of each kernel table, from 0 to 1."),
        numbers.pressure.iter().map(share),
    );
    p.all(
        &gauge("cilium_proxy_redirects", "Entries of policy that lead to a proxy."),
        by("protocol", &numbers.redirects),
    );
    p.all(
        &counter("sluice_policy_rule_hits_total", "Connections that rules of a policy decided."),
        numbers.hits.iter().map(|PolicyHits { object, count }| {
            let labels = vec![
                ("kind", object.kind.to_string()),
                ("namespace", object.namespace.to_string()),
                ("name", object.name.to_string()),
            ];
            (labels, *count as f64)
        }),
    );
    p.single(&gauge("cilium_services", "Frontends of Services."), numbers.services as f64);
    p.single(&gauge("cilium_fqdn_active_names", "DNS names with fresh answers."), numbers.names as f64);
    p.single(
        &counter("sluice_fqdn_refused_answers_total", "DNS answers whose addresses did not fit the tables."),
        numbers.refused_answers as f64,
    );
    p.all(
        &counter("cilium_errors_warnings_total", "Errors and warnings in the log."),
        logged().map(|(level, count)| {
            (vec![("level", level.to_owned()), ("subsystem", "agent".to_owned())], count as f64)
        }),
    );
    p.all(
        &counter("sluice_failures_total", "Failed operations by where."),
        [("kernel", numbers.kernel_failures), ("store", numbers.store_errors)]
            .map(|(place, count)| (vec![("place", place.to_owned())], count as f64)),
    );
    p.single(&counter("sluice_flows_total", "Flows that were enriched."), numbers.flows as f64);
    p.single(
        &counter("sluice_flows_lost_total", "Events that found the kernel's ring full."),
        numbers.flows_lost as f64,
    );
    history(p, sources.history.as_deref());
    let export = &sources.export;
    p.all(
        &counter("sluice_export_flows_total", "Flows that were to be exported, by outcome."),
        [("written", &export.written), ("lost", &export.lost)].map(|(outcome, count)| {
            (vec![("outcome", outcome.to_owned())], count.load(Ordering::Relaxed) as f64)
        }),
    );
    p.single(
        &counter("sluice_export_errors_total", "Attempts to export that failed."),
        export.errors.load(Ordering::Relaxed) as f64,
    );
    p.single(
        &gauge("cilium_process_resident_memory_bytes", "Resident memory of the agent."),
        numbers.resident as f64,
    );
    p.single(&counter("cilium_process_cpu_seconds_total", "Processor time of the agent."), cpu_seconds());
    page.finish()
}

fn traffic(page: &mut Page, rows: &[MetricRow]) {
    let dropped = || rows.iter().filter_map(|row| Some((row, row.reason?)));
    let forwarded = || rows.iter().filter(|row| row.reason.is_none());
    page.all(
        &counter("cilium_drop_count_total", "Packets that were dropped, by reason and direction."),
        dropped().map(|(row, reason)| {
            let labels = vec![
                ("reason", reason.text().to_owned()),
                ("direction", direction(row.direction).to_owned()),
            ];
            (labels, row.count.packets as f64)
        }),
    );
    page.all(
        &counter("cilium_drop_bytes_total", "Bytes of packets that were dropped, by reason and direction."),
        dropped().map(|(row, reason)| {
            let labels = vec![
                ("reason", reason.text().to_owned()),
                ("direction", direction(row.direction).to_owned()),
            ];
            (labels, row.count.bytes as f64)
        }),
    );
    page.all(
        &counter("cilium_forward_count_total", "Packets that were forwarded, by direction."),
        forwarded()
            .map(|row| (vec![("direction", direction(row.direction).to_owned())], row.count.packets as f64)),
    );
    page.all(
        &counter("cilium_forward_bytes_total", "Bytes of packets that were forwarded, by direction."),
        forwarded()
            .map(|row| (vec![("direction", direction(row.direction).to_owned())], row.count.bytes as f64)),
    );
}

fn history(page: &mut Page, recorder: Option<&Recorder>) {
    let Some(recorder) = recorder else { return };
    let status = recorder.status();
    page.single(
        &gauge("sluice_history_stopped", "1 while history cannot be written."),
        if status.stopped.is_some() { 1.0 } else { 0.0 },
    );
    page.single(&gauge("sluice_history_bytes", "Size of history in use."), status.bytes as f64);
    page.all(
        &counter("sluice_history_flows_total", "Flows by what became of them in history."),
        [
            ("written", status.written),
            ("lost", status.lost),
            ("folded", status.folded),
            ("expired", status.expired),
        ]
        .map(|(outcome, count)| (vec![("outcome", outcome.to_owned())], count as f64)),
    );
    page.single(
        &counter("sluice_history_unreadable_blocks_total", "Blocks of history that were damaged."),
        status.unreadable as f64,
    );
}

/// User and system time of this process.
fn cpu_seconds() -> f64 {
    nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).map_or(0.0, |usage| {
        let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        seconds(usage.user_time()) + seconds(usage.system_time())
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::agent::tests::{PODS, rig};
    use crate::api::backend::{ApplyMode, Backend as _};
    use crate::api::metrics::problems;
    use crate::store::history::Limits;

    /// Both pages of an agent that knows two pods.
    async fn pages() -> (String, String) {
        let rig = rig();
        rig.backend.apply(PODS.into(), ApplyMode::Commit).await.unwrap();
        let hub = Arc::new(Hub::new(16, "default"));
        let path = rig.directory.path().join("flows.db");
        let history = Some(Recorder::start(path, Limits::default(), hub).unwrap());
        let mut flows = FlowMetrics::new(Context::default(), 100);
        flows.count(&crate::flow::tests::flow(80));
        let flows = Arc::new(Mutex::new(flows));
        let sources = Sources { core: rig.backend.core.clone(), history, export: Arc::default(), flows };
        let numbers = sources.core.call(Core::numbers).await.unwrap();
        let page = sources.flows.lock().page(Format::Prometheus);
        (agent_page(Format::Prometheus, &numbers, &sources), page)
    }

    fn families(page: &str) -> BTreeSet<String> {
        let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        types.filter_map(|line| Some(line.split_once(' ')?.0.to_owned())).collect()
    }

    #[tokio::test]
    async fn the_pages_are_well_formed_and_say_what_the_agent_knows() {
        let (agent, flows) = pages().await;
        assert_eq!(problems(&agent), Vec::<String>::new());
        assert_eq!(problems(&flows), Vec::<String>::new());
        for line in [
            "cilium_ip_addresses{family=\"ipv6\"} 1",
            "cilium_policy_change_total{outcome=\"success\"} 1",
            "cilium_endpoint_regenerations_total{outcome=\"failure\"} 0",
            "sluice_history_stopped 0",
        ] {
            assert!(agent.lines().any(|other| other == line), "{line}\nis not in\n{agent}");
        }
    }

    /// What dashboards rely on: a name that goes breaks somebody's board.
    #[tokio::test]
    async fn the_names_that_dashboards_know_are_there() {
        let (agent, flows) = pages().await;
        let known: BTreeSet<String> = families(&agent).union(&families(&flows)).cloned().collect();
        for name in [
            "cilium_agent_bootstrap_seconds",
            "cilium_bpf_map_pressure",
            "cilium_drop_bytes_total",
            "cilium_drop_count_total",
            "cilium_endpoint_regeneration_time_stats_seconds",
            "cilium_endpoint_regenerations_total",
            "cilium_endpoint_state",
            "cilium_errors_warnings_total",
            "cilium_forward_bytes_total",
            "cilium_forward_count_total",
            "cilium_identity",
            "cilium_policy",
            "cilium_policy_change_total",
            "cilium_policy_endpoint_enforcement_status",
            "cilium_policy_implementation_delay",
            "cilium_policy_max_revision",
            "cilium_process_cpu_seconds_total",
            "cilium_process_resident_memory_bytes",
            "cilium_proxy_redirects",
            "cilium_version",
            "hubble_dns_queries_total",
            "hubble_dns_response_types_total",
            "hubble_dns_responses_total",
            "hubble_drop_total",
            "hubble_flows_processed_total",
            "hubble_flows_to_world_total",
            "hubble_http_request_duration_seconds",
            "hubble_http_requests_total",
            "hubble_icmp_total",
            "hubble_lost_events_total",
            "hubble_policy_verdicts_total",
            "hubble_port_distribution_total",
            "hubble_tcp_flags_total",
        ] {
            assert!(known.contains(name), "{name}");
        }
    }

    #[tokio::test]
    async fn the_dashboard_and_the_alerts_use_metrics_that_exist() {
        let (agent, flows) = pages().await;
        let mut known: BTreeSet<String> = families(&agent).union(&families(&flows)).cloned().collect();
        for name in known.clone() {
            known.extend(["_bucket", "_sum", "_count"].map(|suffix| format!("{name}{suffix}")));
        }
        let name = regex::Regex::new(r"\b(?:cilium|hubble|sluice)_[a-z0-9_]+").unwrap();
        let dashboard: serde_json::Value =
            serde_json::from_str(include_str!("../../assets/dashboards/sluice.json")).unwrap();
        let panels = dashboard["panels"].as_array().unwrap();
        let queries = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
        let mut expressions: Vec<String> =
            queries.map(|query| query["expr"].as_str().unwrap().to_owned()).collect();
        let alerts: serde_json::Value =
            serde_saphyr::from_str(include_str!("../../assets/alerts/sluice.yaml")).unwrap();
        for rule in alerts["groups"][0]["rules"].as_array().unwrap() {
            assert!(rule["annotations"]["summary"].is_string() && rule["labels"]["severity"].is_string());
            expressions.push(rule["expr"].as_str().unwrap().to_owned());
        }
        assert!(expressions.len() > 30);
        for expression in &expressions {
            let used: Vec<_> = name.find_iter(expression).map(|found| found.as_str()).collect();
            assert!(!used.is_empty(), "{expression}");
            for metric in used {
                assert!(known.contains(metric), "{metric} in {expression}");
            }
        }
    }
}
