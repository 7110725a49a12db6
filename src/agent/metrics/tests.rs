//! Both pages of an agent.

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
        "sluice_restored_total 0",
        "sluice_failures_total{place=\"devices\"} 0",
        "cilium_endpoint_state{endpoint_state=\"waiting-for-device\"} 0",
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
        serde_json::from_str(include_str!("../../../assets/dashboards/sluice.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let queries = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let mut expressions: Vec<String> =
        queries.map(|query| query["expr"].as_str().unwrap().to_owned()).collect();
    let alerts: serde_json::Value =
        serde_saphyr::from_str(include_str!("../../../assets/alerts/sluice.yaml")).unwrap();
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
