//! The agent's numbers under the names that Cilium's dashboards know.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::Sources;
use super::numbers::{Numbers, PolicyHits};
use crate::agent::history::Recorder;
use crate::agent::telemetry::logged;
use crate::api::metrics::{Family, Format, Kind, Page};
use crate::datapath::inspect::MetricRow;
use crate::model::Direction;

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

pub(super) fn agent_page(format: Format, numbers: &Numbers, sources: &Sources) -> String {
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
        numbers.failures.map(|(place, count)| (vec![("place", place.to_owned())], count as f64)),
    );
    p.single(
        &counter(
            "sluice_restored_total",
            "Programs, rules and settings that others took away and the agent put back.",
        ),
        numbers.restored as f64,
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
