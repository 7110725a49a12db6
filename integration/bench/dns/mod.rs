//! The bars of the DNS proxy: queries a second, latency, learning, and the promise that an address is open before
//! the answer with it arrives.
//!
//! Each alternative has a node of its own with a client pod, a server pod and, outside, everybody else. Between
//! client and server stands our proxy (transparently), or a peer that forwards without a cache, with the same
//! rule: one suffix is allowed. Proxy and agent run on the last CPU; dnsperf and the server on the first one.

mod check;
mod forwarder;
mod load;
mod server;
mod site;

use std::time::Duration;

use super::place::Place;
use super::report::{Bar, Report, Row};
use super::stats::interleaved;
use forwarder::Forwarder;
use load::{Throughput, latency, throughput};
use server::Rotation;
use site::{Learning, Site};

/// Names that are looked up.
pub const NAMES: u32 = 10_000;
/// Zones below [`SUFFIX`]: each has a `toFQDNs` selector where names are learned.
pub const ZONES: u32 = 1_000;
pub const SUFFIX: &str = "bench.example";
/// Of one run.
const SECONDS: u32 = 4;
/// Background load while latency is measured, queries a second.
const BACKGROUND: u32 = 5_000;

/// A count from the environment.
fn count(variable: &str, default: u32) -> u32 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[derive(Default)]
struct Runs {
    rate: Vec<f64>,
    p99: Vec<f64>,
    p50: Vec<f64>,
}

pub fn run(place: &Place, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    if std::env::var_os("DNS_ONLY_CHECK").is_none() {
        forwarding(place, rounds, report)?;
    }
    promise(place, report)
}

fn forwarding(place: &Place, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("{NAMES} names through a forwarder");
    let sites = [
        Site::new(place, 1, Some(Learning::Nothing))?,
        Site::new(place, 2, Some(Learning::EveryZone))?,
        Site::new(place, 3, None)?,
        Site::new(place, 4, None)?,
    ];
    let _unbound = Forwarder::unbound(&sites[2])?;
    let _dnsdist = Forwarder::dnsdist(&sites[3])?;
    let mut runs = [(); 4].map(|()| Runs::default());
    let mut lost = [0; 4];
    interleaved(rounds, sites.len(), |which| -> anyhow::Result<()> {
        let site = &sites[which];
        // Addresses that nobody has seen: every run of the second site learns all of them.
        site.server.next_addresses();
        let Throughput { rate, lost: missing } = throughput(site, SECONDS)?;
        lost[which] += missing;
        if missing > 0 {
            eprintln!("  {missing} lost on the way of alternative {which}:{}", site.losses()?);
        }
        runs[which].rate.push(rate);
        let seen = latency(site, BACKGROUND, Duration::from_secs(2))?;
        runs[which].p50.push(seen.p50);
        runs[which].p99.push(seen.p99);
        Ok(())
    })?;
    let [plain, learning, unbound, dnsdist] = &runs;
    let each = "q/s";
    report.add(Row::compared(
        "DNS proxy: queries a second",
        &plain.rate,
        ("unbound", &unbound.rate),
        each,
        Bar::AtLeast(2.0),
    ));
    report.add(Row::compared("the same", &plain.rate, ("dnsdist", &dnsdist.rate), each, Bar::AtLeast(0.9)));
    report.add(Row::compared("p99", &plain.p99, ("dnsdist", &dnsdist.p99), "us", Bar::AtMost(1.1)));
    report.add(Row::compared("p50", &plain.p50, ("dnsdist", &dnsdist.p50), "us", Bar::Shown));
    report.add(Row::compared("p99", &plain.p99, ("unbound", &unbound.p99), "us", Bar::Shown));
    report.add(Row::compared(
        "1,000 toFQDNs selectors learn 50,000 addresses",
        &learning.rate,
        ("no learning", &plain.rate),
        each,
        Bar::AtLeast(0.9),
    ));
    eprintln!("  lost: {lost:?}");
    report.add(Row::absolute(
        "lookups lost by the proxy in all runs",
        f64::from(lost[0] + lost[1]),
        "lookups",
        Bar::AtMost(0.0),
        2 * rounds,
    ));
    let restarts = count("DNS_RESTARTS", 10);
    let missing = load::restarts(&sites[1], restarts)?;
    report.add(Row::absolute(
        format!("lookups lost while {restarts} processes take over from each other"),
        f64::from(missing),
        "lookups",
        Bar::AtMost(0.0),
        1,
    ));
    Ok(())
}

/// Every answer brings an address that was never seen, and is connected to at once.
fn promise(place: &Place, report: &mut Report) -> anyhow::Result<()> {
    let answers = count("DNS_ANSWERS", 20_000);
    eprintln!("{answers} answers with new addresses, connected to at once");
    let site = Site::new(place, 5, Some(Learning::EveryZone))?;
    site.server.rotate(Rotation::EveryAnswer { ttl: 2 });
    let outcome = check::connect_at_once(&site, answers)?;
    eprintln!("  {outcome:?}");
    report.add(Row::absolute(
        format!("addresses closed when their answers arrived, of {} answers", outcome.answers),
        f64::from(outcome.closed),
        "addresses",
        Bar::AtMost(0.0),
        1,
    ));
    report.add(Row::absolute(
        "new addresses learned and connected to",
        outcome.rate,
        "answers/s",
        Bar::Shown,
        1,
    ));
    Ok(())
}
