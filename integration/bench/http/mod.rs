//! The HTTP proxy against nginx and haproxy with the same method and path rules.
//!
//! The proxy that is measured is the real one: a process that the agent started, on redirected connections of a
//! pod, under a policy that was applied. The peers run on a node without our programs, and their clients name
//! them. Every proxy has CPU 0 for itself with one thread; load and server have the last CPU. So the figures say
//! what a core of a proxy can do, and ours pay for the redirect.

mod load;
mod proxies;

use anyhow::Context as _;

use load::{Answers, Idle, Rate};
use proxies::{Peer, Sluice};

use super::place::Place;
use super::report::{Bar, Report, Row};
use super::stats::{interleaved, median};

/// What is asked for: the last of all rules allows it.
pub const PATH: &str = "/api/v1/items/42";
/// Servers: HTTP/1.1 with small answers, HTTP/2, HTTP/1.1 with one large answer.
pub const SMALL: u16 = 8080;
pub const HTTP2: u16 = 8082;
pub const LARGE: u16 = 8081;
/// Two descriptors each in the proxy, and two here: as many as fit below the usual hard limit of 20,000.
const IDLE: usize = 8_000;

/// One alternative's runs.
#[derive(Default)]
struct Series {
    rate: Vec<f64>,
    p99: Vec<f64>,
    cpu: Vec<f64>,
    share: Vec<f64>,
}

impl Series {
    fn add(&mut self, run: &Rate) {
        self.rate.push(run.per_second);
        self.p99.push(run.p99_us);
        self.cpu.push(run.cpu_us);
        self.share.push(run.share);
    }
}

/// The one of two that does better.
fn better<'a>(
    series: [(&'static str, &'a Series); 2],
    figure: impl Fn(&Series) -> f64,
) -> (&'static str, &'a Series) {
    let [first, second] = series;
    if figure(first.1) >= figure(second.1) { first } else { second }
}

pub fn run(place: &Place, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let one = Sluice::start(place, "one", 1)?;
    let many = Sluice::start(place, "many", 1_000)?;
    let peers = Peer::start(place)?;
    let ([nginx, haproxy], [nginx2, haproxy2]) = (&peers.http1, &peers.http2);
    // For trials: some of the four.
    let parts = std::env::var("HTTP_PARTS").unwrap_or_else(|_| "keep-alive,http2,bulk,idle".to_owned());
    for part in parts.split(',') {
        match part {
            "keep-alive" => keep_alive(&one, &many, [nginx, haproxy], rounds, report)?,
            "http2" => http2(&one, [nginx2, haproxy2], rounds, report)?,
            "bulk" => bulk(&one, rounds, report)?,
            "idle" => idle(&one, report)?,
            other => anyhow::bail!("HTTP_PARTS: found {other}, expected keep-alive, http2, bulk or idle"),
        }
    }
    Ok(())
}

/// Compares with the better peer: requests a second, the slowest hundredth, CPU.
fn compare(
    what: &str,
    bars: [Bar; 3],
    ours: &Series,
    peers: [(&'static str, &Series); 2],
    report: &mut Report,
) {
    let (name, best) = better(peers, |series| median(&series.rate));
    report.add(Row::compared(&format!("{what}: requests/s"), &ours.rate, (name, &best.rate), "/s", bars[0]));
    let (name, best) = better(peers, |series| -median(&series.p99));
    if !ours.p99.iter().any(|value| value.is_nan()) {
        report.add(Row::compared("the same, p99", &ours.p99, (name, &best.p99), "us", bars[1]));
    }
    let (name, best) = better(peers, |series| -median(&series.cpu));
    report.add(Row::compared("the same, CPU a request", &ours.cpu, (name, &best.cpu), "us", bars[2]));
    for (name, series) in [("sluice", ours), peers[0], peers[1]] {
        let what = format!("the same, {name}: requests/s");
        report.add(Row::absolute(what, median(&series.rate), "/s", Bar::Shown, series.rate.len()));
        let what = format!("the same, {name}: share of its CPU used");
        report.add(Row::absolute(what, median(&series.share), "", Bar::Shown, series.share.len()));
    }
}

fn keep_alive(
    one: &Sluice,
    many: &Sluice,
    peers: [&Peer; 2],
    rounds: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    eprintln!("HTTP/1.1, keep-alive");
    let mut series: [Series; 4] = Default::default();
    for proxy in [one, many] {
        proxy.expect_policy()?;
    }
    for peer in peers {
        peer.expect_policy()?;
    }
    interleaved(rounds, 4, |kind| -> anyhow::Result<()> {
        let run = match kind {
            0 => load::http1(&one.client, &one.url(SMALL), &one.pids()?)?,
            1 => load::http1(&many.client, &many.url(SMALL), &many.pids()?)?,
            _ => {
                let peer = peers[kind - 2];
                load::http1(&peer.client, &peer.url, &peer.pids()?)?
            }
        };
        series[kind].add(&run);
        Ok(())
    })?;
    let [ours, thousand, nginx, haproxy] = &series;
    let bars = [Bar::AtLeast(1.05), Bar::AtMost(1.0), Bar::AtMost(1.1)];
    compare(
        "transparent, HTTP/1.1 keep-alive, 64 connections",
        bars,
        ours,
        [("nginx", nginx), ("haproxy", haproxy)],
        report,
    );
    report.add(Row::compared(
        "1,000 path rules: requests/s",
        &thousand.rate,
        ("one rule", &ours.rate),
        "/s",
        Bar::AtLeast(0.95),
    ));
    Ok(())
}

fn http2(one: &Sluice, peers: [&Peer; 2], rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("HTTP/2");
    let mut series: [Series; 3] = Default::default();
    interleaved(rounds, 3, |kind| -> anyhow::Result<()> {
        let run = match kind {
            0 => load::http2(&one.client, &one.url(HTTP2), &one.pids()?)?,
            _ => {
                let peer = peers[kind - 1];
                load::http2(&peer.client, &peer.url, &peer.pids()?)?
            }
        };
        series[kind].add(&run);
        Ok(())
    })?;
    let [ours, nginx, haproxy] = &series;
    let bars = [Bar::AtLeast(0.9), Bar::Shown, Bar::AtMost(1.1)];
    compare(
        "transparent, HTTP/2 prior knowledge, 16 connections, 16 streams each",
        bars,
        ours,
        [("nginx h2c, HTTP/1.1 to the server", nginx), ("haproxy h2c to h2c", haproxy)],
        report,
    );
    Ok(())
}

fn bulk(one: &Sluice, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("1 GiB body");
    let before = one.resident()?;
    let (mut through, mut direct, mut extra) = (Vec::new(), Vec::new(), Vec::new());
    interleaved(rounds.min(5), 2, |kind| -> anyhow::Result<()> {
        if kind == 0 {
            through.push(one.download(LARGE)?);
            extra.push(one.peak()?.saturating_sub(before) as f64 / f64::from(1 << 20));
        } else {
            // The same pods, a port without L7 rules.
            direct.push(one.download(proxies::LARGE_DIRECT)?);
        }
        Ok(())
    })?;
    let what = "transparent, 1 GiB body";
    report.add(Row::compared(what, &through, ("direct, L4 policy", &direct), "GB/s", Bar::AtLeast(0.5)));
    let most = extra.iter().copied().fold(0.0, f64::max);
    report.add(Row::absolute("the same, memory above idle", most, "MiB", Bar::AtMost(8.0), extra.len()));
    Ok(())
}

fn idle(one: &Sluice, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("idle connections");
    let before = one.resident()?;
    let idle = Idle::open(&one.client, &one.address(SMALL), IDLE)?;
    let after = one.resident()?;
    let each = after.saturating_sub(before) as f64 / idle.count() as f64 / 1024.0;
    anyhow::ensure!(idle.count() == IDLE, "only {} of {IDLE} connections came about", idle.count());
    report.add(Row::absolute(
        "8,000 idle connections that asked once: resident memory each",
        each,
        "KiB",
        Bar::AtMost(24.0),
        1,
    ));
    drop(idle);
    Ok(())
}

/// Ends a process that we started.
struct Owned(std::process::Child);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A server that says nothing but this.
fn answers(space: &sluice::datapath::net::Namespace, address: std::net::IpAddr) -> anyhow::Result<Answers> {
    Answers::start(space, address).context("start the servers")
}
