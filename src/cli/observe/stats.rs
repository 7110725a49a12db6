//! `--stats`: who talks most, what is dropped most, and which policy is missing.

use std::collections::HashMap;

use super::text;
use crate::api::hubble::pb::flow as pb;
use crate::api::hubble::pb::sluice::flow::v1::Decision;
use crate::cli::print::{Output, plain, rows};

/// Lines of each table.
const TOP: usize = 10;
/// Different pairs that are counted; the rest is one number.
const KEPT: usize = 100_000;

/// A conversation without its client port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct Edge {
    pub source: String,
    pub destination: String,
    pub port: u32,
    pub protocol: String,
}

impl Edge {
    pub fn of(flow: &pb::Flow) -> Edge {
        let (mut source, mut destination) = text::ends(flow, text::Addresses::Names);
        let (mut source_port, mut port) = text::ports(flow).unwrap_or((0, 0));
        if flow.is_reply == Some(true) {
            std::mem::swap(&mut source, &mut destination);
            std::mem::swap(&mut source_port, &mut port);
        }
        Edge { source, destination, port, protocol: text::protocol(flow) }
    }

    pub fn target(&self) -> String {
        match self.port {
            0 => self.destination.clone(),
            port if self.destination.contains(':') => format!("[{}]:{port}", self.destination),
            port => format!("{}:{port}", self.destination),
        }
    }

    /// The command that says why.
    pub fn explain(&self) -> String {
        let protocol =
            if self.protocol == "TCP" { String::new() } else { format!(" --protocol {}", self.protocol) };
        format!("sluice policy explain {} {}{protocol}", self.source, self.target())
    }
}

/// A drop of one kind between two ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct Drop {
    #[serde(flatten)]
    pub edge: Edge,
    pub reason: String,
    /// What would have to be different.
    pub missing: String,
    pub explain: String,
}

impl Drop {
    pub fn of(flow: &pb::Flow) -> Option<Drop> {
        let reason = text::drop_reason(flow)?;
        let edge = Edge::of(flow);
        let explain = edge.explain();
        Some(Drop { missing: missing(flow, &edge), edge, reason, explain })
    }
}

/// Packets or requests that the flow stands for.
pub fn count(flow: &pb::Flow) -> u64 {
    flow.aggregate.map_or(1, |aggregate| {
        let sum = aggregate.ingress_flow_count + aggregate.egress_flow_count;
        u64::from((sum + aggregate.unknown_direction_flow_count).max(1))
    })
}

fn missing(flow: &pb::Flow, edge: &Edge) -> String {
    let decision = flow.sluice.as_ref().map_or(Decision::NoPolicy, |detail| detail.decision());
    let policies: Vec<String> = text::policies(flow).map(text::policy_path).collect();
    let policies = policies.join(", ");
    let (direction, pod, from_to, peer) = match flow.traffic_direction() {
        pb::TrafficDirection::Egress => ("egress", &edge.source, "to", &edge.destination),
        _ => ("ingress", &edge.destination, "from", &edge.source),
    };
    let what = match edge.port {
        0 => edge.protocol.clone(),
        port => format!("{port}/{}", edge.protocol),
    };
    match decision {
        Decision::DefaultDeny => {
            let by = if policies.is_empty() { "the enforcement mode".to_owned() } else { policies };
            format!("an {direction} rule for {pod} {from_to} {peer} on {what} (default deny by {by})")
        }
        Decision::Rules => format!("nothing: {policies} denies it"),
        Decision::NoPolicy => "nothing: no policy decided".to_owned(),
    }
}

/// See the module.
#[derive(Debug, Default, serde::Serialize)]
pub struct Stats {
    flows: u64,
    verdicts: HashMap<&'static str, u64>,
    #[serde(skip)]
    edges: HashMap<Edge, (u64, u64)>,
    #[serde(skip)]
    drops: HashMap<Drop, u64>,
    /// Flows between pairs beyond those that are counted one by one.
    uncounted: u64,
}

impl Stats {
    pub fn add(&mut self, flow: &pb::Flow) {
        let count = count(flow);
        self.flows += count;
        *self.verdicts.entry(flow.verdict().as_str_name()).or_default() += count;
        let edge = Edge::of(flow);
        let bytes = flow.sluice.as_ref().map_or(0, |detail| u64::from(detail.length));
        if self.edges.len() < KEPT || self.edges.contains_key(&edge) {
            let talk = self.edges.entry(edge).or_default();
            talk.0 += count;
            talk.1 += bytes * count;
        } else {
            self.uncounted += count;
        }
        if flow.verdict() == pb::Verdict::Dropped
            && let Some(drop) = Drop::of(flow)
            && (self.drops.len() < KEPT || self.drops.contains_key(&drop))
        {
            *self.drops.entry(drop).or_default() += count;
        }
    }

    /// Most first; equals in the order of their names.
    fn top<K: Clone + Ord, V: Copy + Ord>(map: &HashMap<K, V>) -> Vec<(K, V)> {
        let mut all: Vec<_> = map.iter().map(|(key, value)| (key.clone(), *value)).collect();
        all.sort_by(|(a, x), (b, y)| y.cmp(x).then(a.cmp(b)));
        all.truncate(TOP);
        all
    }

    /// Everything as JSON.
    pub fn json(&self) -> serde_json::Value {
        let talkers: Vec<_> = Stats::top(&self.edges)
            .into_iter()
            .map(|(edge, (flows, bytes))| serde_json::json!({"edge": edge, "flows": flows, "bytes": bytes}))
            .collect();
        let drops: Vec<_> = Stats::top(&self.drops)
            .into_iter()
            .map(|(drop, flows)| serde_json::json!({"drop": drop, "flows": flows}))
            .collect();
        serde_json::json!({
            "flows": self.flows, "verdicts": self.verdicts, "uncounted": self.uncounted,
            "top_talkers": talkers, "top_drops": drops,
        })
    }

    /// Tables for people.
    pub fn print(&self) -> anyhow::Result<()> {
        let mut verdicts: Vec<_> = self.verdicts.iter().collect();
        verdicts.sort();
        let verdicts: Vec<_> = verdicts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        anstream::println!("{} flows: {}", self.flows, verdicts.join(", "));
        if self.uncounted > 0 {
            anstream::println!("{} of them between pairs beyond the first {KEPT}", self.uncounted);
        }
        anstream::println!("\nTop talkers");
        let talkers = Stats::top(&self.edges).into_iter().map(|(edge, (flows, bytes))| {
            vec![edge.source.clone(), edge.target(), edge.protocol, flows.to_string(), bytes.to_string()]
        });
        rows(Output::Table, &(), &["source", "destination", "protocol", "flows", "bytes seen"], talkers)?;
        let drops = Stats::top(&self.drops);
        if drops.is_empty() {
            anstream::println!("\nNothing was dropped");
            return Ok(());
        }
        anstream::println!("\nTop drops");
        for (drop, count) in drops {
            anstream::println!(
                "{count:>8}  {} -> {} {} \x1b[31m{}\x1b[0m\n          missing: {}\n          why:     {}",
                plain(&drop.edge.source),
                plain(&drop.edge.target()),
                drop.edge.protocol,
                plain(&drop.reason),
                plain(&drop.missing),
                plain(&drop.explain)
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::hubble::convert::{self, Naming};
    use crate::flow::tests::flow as example;
    use crate::flow::{DecidedBy, Decision as Decided, Flow, Verdict};
    use crate::model::{Direction, DropReason, Kind, ObjectRef};

    fn message(flow: &Flow) -> pb::Flow {
        convert::flow(flow, &Naming { cluster: "default".into() })
    }

    #[test]
    fn a_drop_by_default_deny_says_which_rule_is_missing_and_how_to_ask() {
        let objects = vec![ObjectRef::new(Kind::NetworkPolicy, "shop", "deny-all")];
        let flow = message(&Flow {
            verdict: Verdict::Dropped(DropReason::PolicyDenied),
            direction: Direction::Ingress,
            decision: Decided { by: DecidedBy::DefaultDeny(objects), revision: 1, matched: None }.into(),
            count: 5,
            ..example(80)
        });
        let drop = Drop::of(&flow).unwrap();
        assert_eq!(
            drop.missing,
            "an ingress rule for shop/backend from shop/frontend on 80/TCP (default deny by shop/deny-all)"
        );
        assert_eq!(drop.explain, "sluice policy explain shop/frontend shop/backend:80");
        assert_eq!(count(&flow), 5);
    }

    #[test]
    fn replies_count_for_the_conversation() {
        let request = message(&example(80));
        let mut reply = request.clone();
        std::mem::swap(&mut reply.source, &mut reply.destination);
        std::mem::swap(&mut reply.ip.as_mut().unwrap().source, &mut request.ip.clone().unwrap().destination);
        if let Some(pb::layer4::Protocol::Tcp(tcp)) = reply.l4.as_mut().and_then(|l4| l4.protocol.as_mut()) {
            (tcp.source_port, tcp.destination_port) = (80, 40000);
        }
        reply.is_reply = Some(true);
        assert_eq!(Edge::of(&request), Edge::of(&reply));
    }
}
