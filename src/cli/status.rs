//! `sluice status`: is everything well, and if not, what.

use super::connect::{Connection, block_on};
use super::print::{self, Output, plain};
use super::{CliResult, Exit};
use crate::api::types::Status;

#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    connection: Connection,
    /// Output form
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Wait until everything is ok, this many seconds at most
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "60")]
    wait: Option<u64>,
}

pub fn run(args: StatusArgs) -> CliResult {
    let status = block_on(async {
        let client = args.connection.client();
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(args.wait.unwrap_or(0));
        loop {
            let answer = client.get::<Status>("/v1/status").await;
            let settled = matches!(&answer, Ok(status) if status.health == "ok" && status.revision.realized == status.revision.desired);
            if settled || tokio::time::Instant::now() >= deadline {
                return Ok(answer?);
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    })?;
    let healthy = status.health == "ok";
    match args.output {
        Output::Json => {
            anstream::println!("{}", serde_json::to_string_pretty(&status).map_err(anyhow::Error::from)?)
        }
        Output::Table => show(&status),
    }
    Ok(if healthy { Exit::Done } else { Exit::Negative })
}

fn mark(state: &str) -> &'static str {
    match state {
        "ok" => "\x1b[32mok\x1b[0m      ",
        "degraded" => "\x1b[33mdegraded\x1b[0m",
        _ => "\x1b[31mfailed\x1b[0m  ",
    }
}

fn show(status: &Status) {
    let line = |name: &str, text: String| anstream::println!("{name:<12} {text}");
    line(
        "sluice",
        format!("{} on node {} of cluster {}", status.version, plain(&status.node), plain(&status.cluster)),
    );
    line("health", mark(&status.health).trim_end().to_owned());
    line("objects", format!("from {}", plain(&status.source)));
    let revision = status.revision;
    let behind = if revision.desired == revision.realized { "" } else { " (applying)" };
    line("revision", format!("{} desired, {} realized{behind}", revision.desired, revision.realized));
    let counts = &status.counts;
    line("endpoints", format!("{} of {} ready", counts.endpoints_ready, counts.endpoints));
    line(
        "knows",
        format!(
            "{} identities, {} policies ({} map entries), {} Services, {} address prefixes",
            counts.identities, counts.policies, counts.policy_entries, counts.services, counts.ipcache
        ),
    );
    line("flows", format!("{} seen, {} lost", counts.flows_seen, counts.flows_lost));
    let names = status.names;
    let lost = [
        (names.evicted_addresses, "addresses above the limit of their name"),
        (names.evicted_names, "names that made room for other pods'"),
        (names.evicted_spare_names, "names without a rule that made room"),
        (names.refused_names, "answers above the limit of names"),
        (names.refused_addresses, "answers above the limit of all addresses"),
        (names.refused_answers, "answers that did not fit the kernel"),
    ];
    let lost: String = lost
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!(", {count} {what}"))
        .collect();
    line(
        "names",
        format!("{} with {} addresses, {} expired{lost}", names.names, names.addresses, names.expired),
    );
    line("memory", format!("{} resident", print::bytes(status.resident_bytes)));
    if let Some(url) = &status.ui {
        line("web ui", plain(url));
    }
    line("up", print::age(status.uptime_seconds));
    anstream::println!();
    for component in &status.components {
        anstream::println!("{} {:<12} {}", mark(&component.state), component.name, plain(&component.message));
    }
    for proxy in &status.proxies {
        let counters = proxy.counters.iter().filter(|(_, count)| **count > 0);
        let counters: Vec<String> =
            counters.map(|(name, count)| format!("{} {count}", plain(name))).collect();
        let counters = if counters.is_empty() { "nothing yet".to_owned() } else { counters.join(", ") };
        anstream::println!("\n{}, process {}\n  {counters}", plain(&proxy.name), proxy.pid);
    }
    if !status.features.is_empty() {
        anstream::println!("\nkernel features");
        for feature in &status.features {
            anstream::println!("  {:<16} {:<10} {}", feature.name, feature.state, plain(&feature.detail));
        }
    }
    if !status.options.is_empty() {
        anstream::println!("\noptions");
        for (name, value) in &status.options {
            anstream::println!("  {name:<20} {}", plain(value));
        }
    }
}
