//! Kernel events -> flows: reads batches, names what is in them, fills the hub.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use super::enrich::{Enricher, Event, Ground, Known, used_names};
use super::hub::Hub;
use crate::cluster::delta::ServiceFrontend;
use crate::datapath::events::{EventReader, FlowEvent, FlowEventKind, ObservationPoint};
use crate::flow::directory::Directory;
use crate::flow::{EventKind, Flow, Observation, Verdict};
use crate::model::Protocol;
use crate::policy::map_state::{RuleSetId, SlotAction};

/// Runs until the core is gone.
pub async fn run(mut reader: EventReader, mut enricher: Enricher, hub: Arc<Hub>) {
    let mut events = Vec::new();
    loop {
        if let Err(error) = reader.read(&mut events).await {
            tracing::error!(%error, "flow events cannot be read; enforcement goes on");
            return;
        }
        let Ok(flows) = enricher.flows(std::mem::take(&mut events)).await else { return };
        hub.push(flows);
    }
}

impl Event for FlowEvent {
    fn ground(&self) -> Option<Ground> {
        match self.policy_subject {
            Some(subject) if self.default_deny => Some(Ground::DefaultDeny(subject, self.direction)),
            _ if self.rules == RuleSetId(0) => None,
            _ => Some(Ground::RuleSet(self.rules)),
        }
    }

    fn frontend(&self) -> Option<ServiceFrontend> {
        self.frontend.map(|(address, port)| ServiceFrontend { address, port, protocol: self.protocol })
    }

    fn note(&self, _: &mut Directory) {}

    fn into_flow(self, known: Known<'_>) -> Flow {
        let has_ports = self.protocol.has_ports();
        let port = |port: u16| has_ports.then_some(port);
        let is_icmp = matches!(self.protocol, Protocol::Icmp | Protocol::Icmpv6);
        let directory = known.directory;
        let (source_name, destination_name) = used_names(directory, self.source, self.destination);
        Flow {
            time_ns: self
                .time
                .duration_since(UNIX_EPOCH)
                .ok()
                .and_then(|since| u64::try_from(since.as_nanos()).ok())
                .unwrap_or_default(),
            sequence: 0,
            node: known.node,
            kind: match self.kind {
                FlowEventKind::Dropped(_) => EventKind::Drop,
                FlowEventKind::Verdict => EventKind::PolicyVerdict,
                FlowEventKind::Trace => EventKind::Trace,
            },
            verdict: match (self.kind, self.action) {
                (FlowEventKind::Dropped(reason), _) => Verdict::Dropped(reason),
                (_, Some(SlotAction::Redirect(_))) => Verdict::Redirected,
                (_, Some(SlotAction::Deny)) => Verdict::Audit,
                _ => Verdict::Forwarded,
            },
            direction: self.direction,
            source: directory.party(self.source, self.source_identity),
            source_port: port(self.source_port),
            source_name,
            destination: directory.party(self.destination, self.destination_identity),
            destination_port: port(self.destination_port),
            destination_name,
            protocol: self.protocol,
            tcp_flags: self.tcp_flags,
            icmp: is_icmp.then_some((self.icmp_type, self.icmp_code)),
            is_reply: self.reply,
            is_established: self.established,
            service: known.service,
            decision: known.decision,
            length: self.length,
            count: self.repeats.saturating_add(1),
            observation: match self.observation {
                ObservationPoint::FromContainer => Observation::FromEndpoint,
                ObservationPoint::ToContainer => Observation::ToEndpoint,
                ObservationPoint::FromNetwork => Observation::FromNetwork,
                ObservationPoint::ToNetwork => Observation::ToNetwork,
                ObservationPoint::FromOverlay => Observation::FromOverlay,
            },
            interface: Some(directory.interface(self.ifindex, || interface_name(self.ifindex))),
            l7: None,
        }
    }
}

fn interface_name(index: u32) -> Option<Arc<str>> {
    let name = nix::net::if_::if_indextoname(index).ok()?;
    Some(name.to_str().ok()?.into())
}
