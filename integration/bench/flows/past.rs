//! Ten million flows of the past: a question about one pod and one hour, against reading everything.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice::flow::{Decision, EventKind, Flow, Observation, Party, Verdict};
use sluice::model::{Direction, Identity, Protocol, Workload};
use sluice::store::history::{Archive, History, Limits, Query, SharedStatus};

use crate::place::Place;
use crate::report::{Bar, Report, Row};
use crate::stats::median;

const FLOWS: u64 = 10_000_000;
const BLOCK: u64 = 4096;
const PODS: u64 = 500;
const HOUR_NS: u64 = 3_600_000_000_000;
const WEEK_NS: u64 = 7 * 24 * HOUR_NS;
const START_NS: u64 = 472_222 * HOUR_NS;

fn party(number: u64) -> Arc<Party> {
    let address = std::net::Ipv4Addr::from(0x0af4_0000 + number as u32);
    Arc::new(Party {
        namespace: Some(format!("team-{}", number % 20).into()),
        pod: Some(format!("service-{number}").into()),
        workload: Some(Workload::new("Deployment", &format!("service-{number}"))),
        ..Party::unknown(address.into(), Identity(256 + number as u32))
    })
}

fn flow(number: u64, parties: &[Arc<Party>], decision: &Arc<Decision>, node: &Arc<str>) -> Flow {
    // A fixed sequence without a pattern (Knuth's multiplicative hash).
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Flow {
        time_ns: START_NS + (u128::from(number) * u128::from(WEEK_NS) / u128::from(FLOWS)) as u64,
        sequence: number,
        node: Arc::clone(node),
        kind: EventKind::PolicyVerdict,
        verdict: Verdict::Forwarded,
        direction: Direction::Egress,
        source: Arc::clone(&parties[((mixed >> 20) % PODS) as usize]),
        source_port: Some(32_768 + (mixed >> 40) as u16 % 28_000),
        source_name: None,
        destination: Arc::clone(&parties[((mixed >> 30) % PODS) as usize]),
        destination_port: Some(8080),
        destination_name: None,
        protocol: Protocol::Tcp,
        tcp_flags: 2,
        icmp: None,
        is_reply: false,
        is_established: false,
        service: None,
        decision: Arc::clone(decision),
        length: 74,
        count: 1,
        observation: Observation::FromEndpoint,
        interface: None,
        l7: None,
    }
}

fn count(archive: &Archive, since_ns: u64, until_ns: u64, is_indexed: bool) -> anyhow::Result<(u64, f64)> {
    let pods = |_: &str, name: &str| name == "service-7";
    let matches = |flow: &Flow| {
        [&flow.source, &flow.destination].iter().any(|party| party.pod.as_deref() == Some("service-7"))
    };
    let query = Query {
        since_ns,
        until_ns,
        pods: is_indexed.then_some(&pods as &dyn Fn(&str, &str) -> bool),
        matches: &matches,
        newest: None,
    };
    let (begin, mut found) = (Instant::now(), 0);
    archive.read(&query, &mut |flows| {
        found += flows.len() as u64;
        ControlFlow::Continue(())
    })?;
    Ok((found, begin.elapsed().as_secs_f64() * 1000.0))
}

/// Runs it.
pub fn run(place: &Place, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("history of {FLOWS} flows");
    let limits = Limits { bytes: 8 << 30, age: Duration::MAX, detail: Duration::MAX };
    let mut history = History::open(&place.dir().join("history/flows.db"), limits, SharedStatus::default())?;
    let parties: Vec<_> = (0..PODS).map(party).collect();
    let (decision, node) = (Arc::new(Decision::none()), Arc::from("bench"));
    let begin = Instant::now();
    for block in 0..FLOWS.div_ceil(BLOCK) {
        let numbers = block * BLOCK..((block + 1) * BLOCK).min(FLOWS);
        let flows: Vec<_> =
            numbers.map(|number| Arc::new(flow(number, &parties, &decision, &node))).collect();
        history.append(&flows, || ())?;
    }
    let rate = FLOWS as f64 / begin.elapsed().as_secs_f64();
    let archive = history.archive();
    report.add(Row::absolute("history: flows written on one core", rate, "1/s", Bar::AtLeast(150_000.0), 1));
    let bytes = archive.status().bytes as f64 / FLOWS as f64;
    report.add(Row::absolute("history: size of a flow", bytes, "bytes", Bar::Shown, 1));
    let hour = (START_NS + 100 * HOUR_NS, START_NS + 101 * HOUR_NS - 1);
    let (mut asked, mut scanned) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let (found, took) = count(&archive, hour.0, hour.1, true)?;
        anyhow::ensure!((100..1000).contains(&found), "{found} flows of the pod in that hour");
        asked.push(took);
        scanned.push(count(&archive, 0, u64::MAX, false)?.1);
    }
    report.add(Row::compared(
        "history: one pod, one hour",
        &asked,
        ("a scan", &scanned),
        "ms",
        Bar::AtMost(1.0 / 50.0),
    ));
    report.add(Row::absolute("history: a scan", median(&scanned), "ms", Bar::Shown, scanned.len()));
    Ok(())
}
