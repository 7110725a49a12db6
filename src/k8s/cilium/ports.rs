//! The L4 part of a rule: `toPorts`, with the L7 rules below it.

use std::sync::Arc;

use super::Context;
use super::l7::{self, L7};
use crate::k8s::cursor::{Cursor, Fields};
use crate::k8s::meta::port_name;
use crate::k8s::tree::{Value, quoted};
use crate::model::{Family, PortRange, Protocol};
use crate::policy::l7::L7Rules;
use crate::policy::lint::Code;
use crate::policy::rule::{Action, PortMatch};

/// Most ports in one `toPorts` element (upstream).
const MAX_PORTS: usize = 40;

/// One `toPorts` element that matches something.
#[derive(Debug)]
pub(super) struct PortRule {
    /// Never empty.
    pub ports: Vec<PortMatch>,
    pub l7: Option<L7Rules>,
    pub path: String,
}

/// What `protocol` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WireProtocol {
    /// ANY, or nothing: TCP, UDP and SCTP.
    Any,
    One(Protocol),
}

impl WireProtocol {
    fn each(self) -> Vec<Protocol> {
        match self {
            WireProtocol::Any => vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp],
            WireProtocol::One(protocol) => vec![protocol],
        }
    }
}

const PROTOCOLS: &[(&str, WireProtocol)] = &[
    ("TCP", WireProtocol::One(Protocol::Tcp)),
    ("UDP", WireProtocol::One(Protocol::Udp)),
    ("SCTP", WireProtocol::One(Protocol::Sctp)),
    ("ICMP", WireProtocol::One(Protocol::Icmp)),
    ("ICMPv6", WireProtocol::One(Protocol::Icmpv6)),
    ("VRRP", WireProtocol::One(Protocol::Vrrp)),
    ("IGMP", WireProtocol::One(Protocol::Igmp)),
    ("ANY", WireProtocol::Any),
];

/// What `port` and `endPort` say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PortNumbers {
    /// "0", or a protocol that has no ports.
    All,
    Range(PortRange),
    Named(Arc<str>),
}

/// One entry of `ports`.
#[derive(Clone, Debug)]
pub(super) struct PortEntry<'a> {
    pub cursor: Cursor<'a>,
    pub protocol: WireProtocol,
    pub numbers: PortNumbers,
}

/// The elements that match something; `None` where the rule has no `toPorts` (an empty list is none).
pub(super) fn read(fields: &Fields<'_>, context: Context<'_>) -> Option<Vec<PortRule>> {
    let cursor = fields.get("toPorts")?;
    let elements = cursor.list()?;
    if elements.is_empty() {
        cursor.warning("an empty list is the same as no toPorts: every port");
        return None;
    }
    Some(
        elements
            .iter()
            .filter_map(|element| element.object(|fields| read_element(fields, context))?)
            .collect(),
    )
}

fn read_element(fields: &Fields<'_>, context: Context<'_>) -> Option<PortRule> {
    let list = fields.list("ports");
    if list.len() > MAX_PORTS {
        fields
            .cursor()
            .error(format!("found {} ports, at most {MAX_PORTS} may stand in one element", list.len()));
    }
    let entries: Vec<PortEntry<'_>> =
        list.iter().filter_map(|port| port.object(|fields| read_port(fields))?).collect();
    for name in ["listener", "terminatingTLS", "originatingTLS"] {
        if let Some(field) = fields.get(name) {
            field.error(format!("{name} is not supported"));
        }
    }
    let l7 = match context.action {
        Action::Allow => l7::read(fields, &entries, context),
        Action::Deny | Action::Pass => {
            for name in ["rules", "serverNames"] {
                if let Some(field) = fields.get(name) {
                    field.error(format!("{name} may not stand in a deny rule"));
                }
            }
            None
        }
    };
    if list.is_empty() {
        fields.cursor().warning("an element without ports matches nothing");
        return None;
    }
    let carries = |protocol: &Protocol| match &l7 {
        None => true,
        Some(L7 { carriers, .. }) => carriers.contains(protocol),
    };
    let mut ports: Vec<PortMatch> = entries
        .iter()
        .flat_map(|entry| {
            entry.protocol.each().into_iter().filter(carries).map(|protocol| entry.numbers.of(protocol))
        })
        .collect();
    ports.sort_unstable();
    ports.dedup();
    (!ports.is_empty()).then(|| PortRule { ports, l7: l7.map(|l7| l7.rules), path: fields.cursor().path() })
}

impl PortNumbers {
    fn of(&self, protocol: Protocol) -> PortMatch {
        let icmp_type = |range: PortRange| u8::try_from(range.first()).unwrap_or(u8::MAX);
        match (self, protocol) {
            (PortNumbers::All, _) => PortMatch::Protocol(protocol),
            (PortNumbers::Named(name), _) => PortMatch::Named(protocol, name.clone()),
            // `read_port` lets single types up to 255 through only.
            (PortNumbers::Range(range), Protocol::Icmp) => {
                PortMatch::IcmpType(Family::IPv4, icmp_type(*range))
            }
            (PortNumbers::Range(range), Protocol::Icmpv6) => {
                PortMatch::IcmpType(Family::IPv6, icmp_type(*range))
            }
            (PortNumbers::Range(range), _) => PortMatch::Range(protocol, *range),
        }
    }
}

fn read_port<'a>(fields: &Fields<'a>) -> Option<PortEntry<'a>> {
    let protocol = match fields.get("protocol").filter(|field| field.node.as_str() != Some("")) {
        Some(field) => field.one_of(PROTOCOLS),
        None => Some(WireProtocol::Any),
    };
    let end = fields.get("endPort");
    let last = end.as_ref().and_then(|end| end.integer(0..=65535)).filter(|last| *last != 0);
    let port = fields.get("port").filter(|field| field.node.as_str() != Some(""));
    let protocol = protocol?;
    let cursor = *fields.cursor();
    let Some(port) = port else {
        return match protocol {
            WireProtocol::One(Protocol::Vrrp | Protocol::Igmp) => {
                Some(PortEntry { cursor, protocol, numbers: PortNumbers::All })
            }
            _ => {
                cursor.error("the field port is missing or empty (\"0\" is every port)");
                None
            }
        };
    };
    let numbers = match number_or_name(&port)? {
        First::Name(name) => {
            if let Some(end) = &end {
                end.warning("endPort does nothing beside a port name");
            }
            PortNumbers::Named(name)
        }
        First::Number(0) => {
            if let Some(end) = end.filter(|_| last.is_some()) {
                end.error("endPort may not stand beside port \"0\", which is every port");
            }
            PortNumbers::All
        }
        First::Number(first) => {
            let last = last.map_or(Some(first), |last| u16::try_from(last).ok())?;
            match PortRange::new(first, last) {
                Some(range) => PortNumbers::Range(range),
                None => {
                    end.unwrap_or(port)
                        .trap(Code::EndPortBelowPort, format!("endPort {last} is below port {first}"));
                    return None;
                }
            }
        }
    };
    fits(&cursor, protocol, &numbers).then_some(PortEntry { cursor, protocol, numbers })
}

/// Does the protocol have what the port says?
fn fits(cursor: &Cursor<'_>, protocol: WireProtocol, numbers: &PortNumbers) -> bool {
    let WireProtocol::One(protocol) = protocol else { return true };
    let why = match (protocol, numbers) {
        (protocol, _) if protocol.has_ports() => return true,
        (_, PortNumbers::All) => return true,
        (Protocol::Icmp | Protocol::Icmpv6, PortNumbers::Range(range))
            if range.first() == range.last() && range.last() <= 255 =>
        {
            return true;
        }
        (Protocol::Icmp | Protocol::Icmpv6, _) => "has types from 0 to 255 and no port names",
        _ => "has no ports",
    };
    cursor.error(format!("{protocol} {why}"));
    false
}

enum First {
    Number(u16),
    Name(Arc<str>),
}

/// `port`: a string with a number or a name. An integer is a common slip and read as its text.
fn number_or_name(port: &Cursor<'_>) -> Option<First> {
    let text = match &port.node.value {
        Value::Integer(number) => {
            port.trap(
                Code::IntegerPort,
                format!("found the number {number}, expected a string: write \"{number}\""),
            );
            number.to_string()
        }
        _ => port.string()?.to_owned(),
    };
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        // Leading zeros would be octal upstream.
        let number = text.parse::<u16>().ok().filter(|number| number.to_string() == text);
        if number.is_none() {
            port.error(format!("found {}, expected a port from \"0\" to \"65535\"", quoted(&text)));
        }
        return number.map(First::Number);
    }
    let name = text.to_ascii_lowercase();
    match port_name(&name) {
        Ok(()) => Some(First::Name(name.into())),
        Err(why) => {
            port.error(format!("found {}, which is no port number or name: {why}", quoted(&text)));
            None
        }
    }
}
