//! The bars of the datapath on real traffic between pods.

use super::load::Latency;
use super::node::{Between, Node, between};
use super::place::Place;
use super::report::{Bar, Report, Row};
use super::stats::interleaved;
use super::verdict;

/// Figures of one alternative, a value a round.
#[derive(Clone, Debug, Default)]
struct Runs {
    round_trip: Vec<f64>,
    round_trip_p99: Vec<f64>,
    connection: Vec<f64>,
    connection_p99: Vec<f64>,
    stream: Vec<f64>,
}

impl Runs {
    fn round_trip(&mut self, latency: Latency) {
        self.round_trip.push(latency.p50);
        self.round_trip_p99.push(latency.p99);
    }

    fn connection(&mut self, latency: Latency) {
        self.connection.push(latency.p50);
        self.connection_p99.push(latency.p99);
    }
}

/// Runs all of it.
pub fn run(place: &Place, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    same_node(place, rounds, report)?;
    across_nodes(place, rounds, report)?;
    verdict::run(rounds, report)
}

fn same_node(place: &Place, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("two pods of one node");
    let nodes = (1..)
        .zip(Between::ALL)
        .map(|(number, between)| Node::with(place, number, between))
        .collect::<anyhow::Result<Vec<Node>>>()?;
    let mut runs = vec![Runs::default(); nodes.len()];
    interleaved(rounds, nodes.len(), |which| -> anyhow::Result<()> {
        runs[which].round_trip(nodes[which].pair().round_trips()?);
        Ok(())
    })?;
    interleaved(rounds, nodes.len(), |which| -> anyhow::Result<()> {
        runs[which].connection(nodes[which].pair().connections()?);
        Ok(())
    })?;
    interleaved(rounds, nodes.len(), |which| -> anyhow::Result<()> {
        runs[which].stream.push(nodes[which].pair().stream()?);
        Ok(())
    })?;

    let of = |wanted: Between| &runs[Between::ALL.iter().position(|b| *b == wanted).expect("one of all")];
    let (plain, one, full) = (of(Between::Routing), of(Between::Sluice), of(Between::SluiceFull));
    let routing = Between::Routing.name();
    let mut compare = |what: &str, bar: Bar, of: &Runs, name: &str, to: &Runs| {
        let latency = if let Bar::AtLeast(_) = bar { None } else { Some(bar) };
        if let Some(bar) = latency {
            let row = |kind: &str, of: &[f64], to: &[f64], bar| {
                Row::compared(&format!("{what}: {kind}"), of, (name, to), "us", bar)
            };
            report.add(row("TCP_RR p50", &of.round_trip, &to.round_trip, bar));
            report.add(row("TCP_RR p99", &of.round_trip_p99, &to.round_trip_p99, Bar::Shown));
            report.add(row("connect+RR p50", &of.connection, &to.connection, bar));
            report.add(row("connect+RR p99", &of.connection_p99, &to.connection_p99, Bar::Shown));
        } else {
            report.add(Row::compared(
                &format!("{what}: TCP stream"),
                &of.stream,
                (name, &to.stream),
                "Gbit/s",
                bar,
            ));
        }
    };
    let ours = Between::Sluice.name();
    compare(ours, Bar::AtMost(0.95), one, routing, plain);
    compare(ours, Bar::AtLeast(0.97), one, routing, plain);
    compare(Between::SluiceFull.name(), Bar::AtMost(1.03), full, ours, one);
    compare(Between::SluiceFull.name(), Bar::AtLeast(1.0 / 1.03), full, ours, one);
    for peer in [Between::Nftables, Between::Iptables] {
        compare(peer.name(), Bar::Shown, of(peer), routing, plain);
    }
    Ok(())
}

fn across_nodes(place: &Place, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("two pods, VXLAN between their nodes");
    let nodes = [Node::across(place, 101, Between::Routing)?, Node::across(place, 111, Between::Sluice)?];
    let mut runs = vec![Runs::default(); nodes.len()];
    interleaved(rounds, nodes.len(), |which| -> anyhow::Result<()> {
        let [from, to] = &nodes[which];
        runs[which].round_trip(between(from, to).round_trips()?);
        Ok(())
    })?;
    let [plain, ours] = &runs[..] else { unreachable!("two alternatives") };
    let plain_name = "plain VXLAN";
    report.add(Row::compared(
        "over VXLAN: TCP_RR p50",
        &ours.round_trip,
        (plain_name, &plain.round_trip),
        "us",
        Bar::AtMost(1.05),
    ));
    report.add(Row::compared(
        "over VXLAN: TCP_RR p99",
        &ours.round_trip_p99,
        (plain_name, &plain.round_trip_p99),
        "us",
        Bar::Shown,
    ));
    Ok(())
}
