//! The bars of observation: what it costs traffic, what it holds, how fast it is.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use sluice::datapath::net::Namespace;

use super::agent::{Agent, Home, program};
use super::cluster;
use super::load::{Latency, Pair};
use super::place::{self, Place};
use super::pods::{self, Pod};
use super::report::{Bar, Report, Row};
use super::stats::{interleaved, percentile};

mod flood;
mod followed;
mod past;

const MIB: f64 = 1024.0 * 1024.0;
/// How long a flood lasts.
const FLOOD: Duration = Duration::from_secs(10);
/// Packets whose way to the terminal is measured.
const SEEN: usize = 500;

/// A node with two pods, under an agent.
struct Rig {
    home: Home,
    node: Namespace,
    pods: [Pod; 2],
    agent: Agent,
}

impl Rig {
    fn new(place: &Place, name: &str, events: &str) -> anyhow::Result<Rig> {
        let node = place::new_node()?;
        let pods =
            [pods::add(&node, 1, cluster::pod_address(0))?, pods::add(&node, 2, cluster::pod_address(1))?];
        let home = Home::new(&place.dir().join(name), place.bpffs(name))?;
        let (agent, _) = Agent::start_with(&node, &home, &["--flow-events", events])?;
        agent.apply(&(cluster::nodes() + &cluster::pod(0, 2, "") + &cluster::pod(1, 2, "")))?;
        for (index, pod) in pods.iter().enumerate() {
            agent.add_endpoint(&super::policy::endpoint_request(index, pod))?;
        }
        Ok(Rig { home, node, pods, agent })
    }

    fn pair(&self) -> Pair<'_> {
        let [client, server] = &self.pods;
        Pair { client: &client.namespace, server: &server.namespace, address: server.address }
    }

    /// Sends from the first pod to the second until `FLOOD` is over; packets a second.
    fn flood(&self, mut next: impl FnMut(u64) -> (u16, Renew) + Send) -> anyhow::Result<f64> {
        let to = self.pods[1].address;
        self.pods[0].namespace.run(move || -> anyhow::Result<f64> {
            let bind = || UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)).context("a socket");
            let mut socket = bind()?;
            let (begin, mut sent) = (Instant::now(), 0_u64);
            while begin.elapsed() < FLOOD {
                for _ in 0..64 {
                    let (port, renew) = next(sent);
                    if renew == Renew::Socket {
                        socket = bind()?;
                    }
                    // A full queue and the refusals of closed ports are part of a flood.
                    socket.send_to(b"flood", SocketAddr::new(to, port)).ok();
                    sent += 1;
                }
            }
            Ok(sent as f64 / begin.elapsed().as_secs_f64())
        })?
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Renew {
    Socket,
    Nothing,
}

/// Runs all of it.
pub fn run(place: &Place, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    past::run(place, report)?;
    cost(place, rounds, report)?;
    let rig = Rig::new(place, "events", "verdicts")?;
    to_the_terminal(&rig, report)?;
    followed::run(&rig, report)?;
    events(&rig, report)?;
    drops(&rig, report)
}

/// Latency with observation on, against off.
fn cost(place: &Place, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("what observation costs");
    let rigs = [Rig::new(place, "off", "drops")?, Rig::new(place, "on", "verdicts")?];
    let mut runs = vec![(Vec::new(), Vec::new()); 2];
    let mut measure = |which: usize| -> anyhow::Result<()> {
        let round_trips: Latency = rigs[which].pair().round_trips()?;
        let connections: Latency = rigs[which].pair().connections()?;
        runs[which].0.push(round_trips.p50);
        runs[which].1.push(connections.p50);
        Ok(())
    };
    interleaved(rounds, 2, &mut measure)?;
    let [off, on] = &runs[..] else { unreachable!("two alternatives") };
    let bar = Bar::AtMost(1.02);
    report.add(Row::compared("observed: TCP_RR p50", &on.0, ("not observed", &off.0), "us", bar));
    report.add(Row::compared("observed: connect+RR p50", &on.1, ("not observed", &off.1), "us", bar));
    Ok(())
}

/// From the kernel to a line of `observe --follow`.
fn to_the_terminal(rig: &Rig, report: &mut Report) -> anyhow::Result<()> {
    let socket = rig.home.socket();
    let mut observe = rig
        .node
        .run(|| {
            Command::new(program())
                .args(["observe", "--follow", "--protocol", "udp", "-o", "json", "--socket"])
                .arg(&socket)
                .stdout(Stdio::piped())
                .stdin(Stdio::null())
                .spawn()
        })?
        .context("start observe")?;
    let lines = BufReader::new(observe.stdout.take().context("its output")?).lines();
    let done = AtomicBool::new(false);
    let [client, server] = &rig.pods;
    let (client, server) = (&client.namespace, server.address);
    let samples = std::thread::scope(|scope| -> anyhow::Result<Vec<f64>> {
        let sending = scope.spawn(|| -> anyhow::Result<()> {
            let mut port = 1000;
            while !done.load(Ordering::Relaxed) {
                let to = SocketAddr::new(server, port);
                client.run(|| -> std::io::Result<()> {
                    UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?.send_to(b"x", to).map(drop)
                })??;
                port = if port == u16::MAX { 1000 } else { port + 1 };
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        });
        let samples = latencies(lines);
        done.store(true, Ordering::Relaxed);
        sending.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        samples
    });
    observe.kill()?;
    observe.wait()?;
    let mut samples = samples?;
    let runs = samples.len();
    report.add(Row::absolute(
        "kernel to `observe --follow`, p50",
        percentile(&mut samples, 0.5),
        "ms",
        Bar::Shown,
        runs,
    ));
    let p99 = percentile(&mut samples, 0.99);
    report.add(Row::absolute("the same, p99", p99, "ms", Bar::AtMost(50.0), runs));
    Ok(())
}

/// Milliseconds from the time that the kernel gave each flow to its line.
fn latencies(lines: impl Iterator<Item = std::io::Result<String>>) -> anyhow::Result<Vec<f64>> {
    let mut samples = Vec::new();
    for line in lines {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as i128;
        let flow: serde_json::Value = serde_json::from_str(&line?)?;
        let Some(time) = flow.pointer("/flow/time").and_then(|time| time.as_str()) else { continue };
        samples.push((now - time.parse::<jiff::Timestamp>()?.as_nanosecond()) as f64 / 1e6);
        if samples.len() == SEEN {
            break;
        }
    }
    Ok(samples)
}

/// New flows as fast as one core sends them.
fn events(rig: &Rig, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("a flood of new flows");
    let before = rig.agent.status()?.counts;
    let cpu = rig.agent.cpu()?;
    let begin = Instant::now();
    // A port a packet; another source port whenever all have been used.
    let sent = rig.flood(|number| {
        let port = 1024 + (number % 60_000) as u16;
        (port, if number % 60_000 == 0 { Renew::Socket } else { Renew::Nothing })
    })?;
    let after = rig.agent.status()?.counts;
    let seconds = begin.elapsed().as_secs_f64();
    let seen = (after.flows_seen - before.flows_seen) as f64 / seconds;
    let lost = (after.flows_lost - before.flows_lost) as f64 / seconds;
    report.add(Row::absolute("packets of new flows sent", sent, "1/s", Bar::Shown, 1));
    report.add(Row::absolute("flows enriched, in the ring", seen, "1/s", Bar::AtLeast(150_000.0), 1));
    report.add(Row::absolute("flows lost and counted", lost, "1/s", Bar::Shown, 1));
    let cores = (rig.agent.cpu()? - cpu).as_secs_f64() / seconds;
    report.add(Row::absolute("agent processor time meanwhile", cores, "cores", Bar::Shown, 1));
    let (resident, _) = rig.agent.memory()?;
    report.add(Row::absolute(
        "agent memory with a full ring of 65,536 flows",
        resident as f64 / MIB,
        "MiB",
        Bar::AtMost(96.0),
        1,
    ));
    Ok(())
}

/// Packets that policy drops, to a hundred ports.
fn drops(rig: &Rig, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("a flood of drops");
    rig.agent.apply(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {namespace: bench, name: deny-all}\nspec: {podSelector: {}, policyTypes: [Ingress]}\n",
    )?;
    let cpu = rig.agent.cpu()?;
    let begin = Instant::now();
    let started_ns = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
    let rate = flood::send(&rig.pods[0], rig.pods[1].address, 2000..2100, FLOOD)?;
    let cores = (rig.agent.cpu()? - cpu).as_secs_f64() / begin.elapsed().as_secs_f64();
    let late = rig.agent.drops_seen_after(started_ns, 2000..2100)?;
    report.add(Row::absolute("packets sent that policy drops", rate, "1/s", Bar::AtLeast(1_000_000.0), 1));
    report.add(Row::absolute(
        "of 100 flows dropped, the last was seen after",
        late.as_secs_f64(),
        "s",
        Bar::AtMost(1.0),
        1,
    ));
    report.add(Row::absolute("agent processor time meanwhile", cores, "cores", Bar::AtMost(0.5), 1));
    Ok(())
}
