//! Kernel events -> flows: reads batches, has the core name what is in them, fills the hub.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use super::core::{Core, CoreHandle};
use super::hub::Hub;
use crate::datapath::events::{EventReader, FlowEvent, FlowEventKind, ObservationPoint};
use crate::flow::{DecidedBy, EventKind, Flow, Observation, ServiceRef, Verdict};
use crate::model::Protocol;
use crate::policy::map_state::{RuleSetId, SlotAction};

/// Runs until the core is gone.
pub async fn run(mut reader: EventReader, core: CoreHandle, hub: Arc<Hub>) {
    let mut events = Vec::new();
    loop {
        if let Err(error) = reader.read(&mut events).await {
            tracing::error!(%error, "flow events cannot be read; enforcement goes on");
            return;
        }
        let batch = std::mem::take(&mut events);
        if batch.is_empty() {
            continue;
        }
        let flows =
            core.call(move |core| batch.into_iter().map(|event| core.flow(event)).collect::<Vec<_>>()).await;
        let Ok(flows) = flows else { return };
        hub.push(flows);
    }
}

impl Core {
    /// An event with everything that the node knows about it.
    pub fn flow(&self, event: FlowEvent) -> Flow {
        let has_ports = event.protocol.has_ports();
        let port = |port: u16| has_ports.then_some(port);
        let decided_by = match event.policy_subject {
            Some(subject) if event.default_deny => self.default_deny(subject, event.direction),
            _ if event.rules == RuleSetId(0) => DecidedBy::NoPolicy,
            _ => self.decided_by_rules(event.rules),
        };
        let service = event.frontend.map(|(address, port)| ServiceRef {
            name: self
                .view
                .translate(address, port, event.protocol)
                .map(|entry| entry.service.as_str().into()),
            address,
            port,
        });
        let is_icmp = matches!(event.protocol, Protocol::Icmp | Protocol::Icmpv6);
        Flow {
            time_ns: event
                .time
                .duration_since(UNIX_EPOCH)
                .ok()
                .and_then(|since| u64::try_from(since.as_nanos()).ok())
                .unwrap_or_default(),
            node: self.config.node_name.as_str().into(),
            kind: match event.kind {
                FlowEventKind::Dropped(_) => EventKind::Drop,
                FlowEventKind::Verdict => EventKind::PolicyVerdict,
                FlowEventKind::Trace => EventKind::Trace,
            },
            verdict: match (event.kind, event.action) {
                (FlowEventKind::Dropped(reason), _) => Verdict::Dropped(reason),
                (_, Some(SlotAction::Redirect(_))) => Verdict::Redirected,
                (_, Some(SlotAction::Deny)) => Verdict::Audit,
                _ => Verdict::Forwarded,
            },
            direction: event.direction,
            source: self.party(event.source, port(event.source_port), event.source_identity),
            destination: self.party(
                event.destination,
                port(event.destination_port),
                event.destination_identity,
            ),
            protocol: event.protocol,
            tcp_flags: event.tcp_flags,
            icmp: is_icmp.then_some((event.icmp_type, event.icmp_code)),
            is_reply: event.reply,
            service,
            decided_by,
            length: event.length,
            observation: match event.observation {
                ObservationPoint::FromContainer => Observation::FromEndpoint,
                ObservationPoint::ToContainer => Observation::ToEndpoint,
                ObservationPoint::FromNetwork => Observation::FromNetwork,
                ObservationPoint::ToNetwork => Observation::ToNetwork,
                ObservationPoint::FromOverlay => Observation::FromOverlay,
            },
            l7: None,
        }
    }
}
