//! L4: does a rule's port part match? (Semantics, section 5.)

use super::Flow;
use super::state::Party;
use crate::model::{Family, Protocol};
use crate::policy::rule::{PortMatch, Ports};

/// `destination` is the end whose container ports give names a number.
pub(super) fn ports_match(ports: &Ports, flow: &Flow, destination: Party<'_>) -> bool {
    match ports {
        Ports::Any => true,
        Ports::OneOf(matches) => matches.iter().any(|one| port_matches(one, flow, destination)),
    }
}

fn port_matches(wanted: &PortMatch, flow: &Flow, destination: Party<'_>) -> bool {
    match wanted {
        PortMatch::Protocol(protocol) => flow.protocol == *protocol,
        PortMatch::Range(protocol, range) => flow.protocol == *protocol && range.contains(flow.port),
        PortMatch::Named(protocol, name) => {
            flow.protocol == *protocol
                && match destination {
                    Party::Pod(pod) => pod.ports.iter().any(|port| {
                        port.name.as_deref() == Some(name)
                            && port.port == flow.port
                            && port.protocol == *protocol
                    }),
                    // Only containers name ports, and those of the host network are the node's.
                    Party::Node(_) | Party::Gateway { .. } | Party::World | Party::Unknown => false,
                }
        }
        PortMatch::IcmpType(family, kind) => {
            let protocol = match family {
                Family::IPv4 => Protocol::Icmp,
                Family::IPv6 => Protocol::Icmpv6,
            };
            flow.protocol == protocol && flow.port == u16::from(*kind)
        }
    }
}
