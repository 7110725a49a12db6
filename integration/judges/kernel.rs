//! The third judge: a node's full state in real maps, and a packet through the program that would meet it.
//!
//! Contract: for a view and a new connection, every hook of that node on which its first packet can be
//! is run with such a packet. What the program did, and what its events say (direction, rules, drop
//! reason), must be what [`View::decide`] says. The maps are written by the agent's own writer, which
//! takes them over as they are: each state is also a test of what a restarted agent does.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;

use sluice::cluster::View;
use sluice::cluster::delta::Delta;
use sluice::datapath::EndpointDevice;
use sluice::datapath::abi::{self, NodeConfig};
use sluice::datapath::config::ROUTER_MAC;
use sluice::datapath::testrun::{Action, Context, Frame, Hook, Kernel, L4, Outcome, TcpFlags};
use sluice::datapath::writer::Writer;
use sluice::lab::judge::{Disagreement, ThirdJudge};
use sluice::model::{Direction, DropReason, Identity, IdentityGroup, Protocol};
use sluice::policy::decision::{Because, Outcome as Decided, SideDecision};
use sluice::policy::map_state::{Proxy, RuleSetId};
use sluice::policy::oracle::Flow;

use crate::travel::every_form;

/// Local pods that have a device of their own; more share devices, which only spoofing would tell.
const DEVICES: usize = 12;
/// Source ports that [`every_form`] uses, and the most ways that a flow has.
const FORMS: usize = 4;
const WAYS: u16 = 2;
const UPLINK_MAC: [u8; 6] = [2, 0xff, 0, 0, 0, 2];

/// See the module.
#[derive(Debug)]
pub struct KernelJudge {
    nodes: RefCell<BTreeMap<String, Node>>,
    devices: Vec<u32>,
    uplink: u32,
    judged: RefCell<usize>,
    grouped: RefCell<usize>,
}

/// The maps of one node.
#[derive(Debug)]
struct Node {
    kernel: Kernel,
    state: Delta,
    places: BTreeMap<IpAddr, EndpointDevice>,
    next_port: u16,
}

/// A hook on which the first packet of a flow can be met, and the device there.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub hook: Hook,
    pub ifindex: u32,
    pub source_mac: [u8; 6],
}

/// What one side did in the kernel: the same words for what is wanted and what was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Side {
    direction: Direction,
    action: u8,
    reason: Option<DropReason>,
    default_deny: bool,
}

/// The node forwards: with its firewall on, it matters whether the stack would keep a packet.
fn route_everything(uplink: &str) {
    for switch in ["ipv4/ip_forward", "ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{switch}"), "1").expect("forwarding");
    }
    for command in [
        format!("link set {uplink} up"),
        format!("addr add 172.31.255.1/30 dev {uplink}"),
        format!("-6 addr add fd00:ffff::1/126 dev {uplink} nodad"),
        format!("route add default via 172.31.255.2 dev {uplink}"),
        format!("-6 route add default via fd00:ffff::2 dev {uplink}"),
    ] {
        let status = std::process::Command::new("ip").args(command.split(' ')).status().expect("iproute2");
        assert!(status.success(), "ip {command}");
    }
}

impl KernelJudge {
    /// Moves the thread into a network namespace of its own.
    pub fn new() -> KernelJudge {
        let names: Vec<String> = (0..=DEVICES).map(|n| format!("jd{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut devices = Kernel::isolate(&names);
        let uplink = devices.pop().expect("the uplink");
        route_everything(names.last().expect("the uplink"));
        KernelJudge {
            nodes: RefCell::default(),
            devices,
            uplink,
            judged: RefCell::default(),
            grouped: RefCell::default(),
        }
    }

    /// Packets judged so far.
    pub fn judged(&self) -> usize {
        *self.judged.borrow()
    }

    /// Entries for whole groups of identities in the states that packets were judged by.
    pub fn grouped(&self) -> usize {
        *self.grouped.borrow()
    }

    /// The first packet of `flow` gets into a pod, by some hook: those where this node meets it, and the
    /// device of a pod that the node knows nothing about.
    pub fn delivers(&self, view: &View, flow: &Flow) -> bool {
        let stray =
            Way { hook: Hook::ToContainer, ifindex: self.devices[DEVICES - 1], source_mac: ROUTER_MAC };
        self.on_node(view, flow, |send, ways, port| {
            ways.iter().chain([&stray]).zip(port..).any(|(way, port)| {
                let frame = Frame::new(flow.source, flow.destination, first_packet(flow, port));
                match send(*way, &frame).action {
                    Action::Redirect => true,
                    Action::Pass => way.hook == Hook::ToContainer,
                    Action::Drop(_) => false,
                }
            })
        })
    }

    /// Runs `visit` with the kernel that holds the state of `view`, the ways of `flow`, and its first free
    /// source port.
    fn on_node<T>(
        &self,
        view: &View,
        flow: &Flow,
        visit: impl FnOnce(&mut dyn FnMut(Way, &Frame) -> Outcome, &[Way], u16) -> T,
    ) -> T {
        let mut nodes = self.nodes.borrow_mut();
        let node = nodes.entry(view.options().node.clone()).or_insert_with(|| Node {
            kernel: Kernel::load().expect("the programs load (root is needed)"),
            state: Delta::default(),
            places: BTreeMap::new(),
            next_port: 0,
        });
        if node.hold(view, &self.devices, self.uplink) {
            let keys = node.state.policies.iter().flat_map(|policy| &policy.upserts).map(|(key, _)| key);
            *self.grouped.borrow_mut() +=
                keys.filter(|key| IdentityGroup::of_key(key.identity).is_some()).count();
        }
        let ways = node.ways(view, flow, self.uplink);
        let port = node.fresh_port();
        let kernel = &mut node.kernel;
        let is_own = view.resolve(flow.source).identity == Identity::HOST;
        let mut send = |way: Way, frame: &Frame| {
            *self.judged.borrow_mut() += 1;
            // What the node's stack sends to a pod is the node's own, or came from somewhere.
            let arrived_by = if way.hook == Hook::ToContainer && !is_own { self.uplink } else { 0 };
            let frame = Frame { src_mac: way.source_mac, dst_mac: ROUTER_MAC, ..frame.clone() };
            kernel.run(way.hook, &frame.bytes(), Context { ifindex: way.ifindex, mark: 0, arrived_by })
        };
        visit(&mut send, &ways, port)
    }
}

impl ThirdJudge for KernelJudge {
    fn judge(&self, view: &View, flow: &Flow) -> Result<(), Disagreement> {
        self.on_node(view, flow, |send, ways, port| {
            let mut ports = (port..).step_by(FORMS);
            ways.iter().zip(&mut ports).try_for_each(|(way, port)| every_form(view, flow, *way, port, send))
        })
    }
}

/// What opens a connection.
pub fn first_packet(flow: &Flow, port: u16) -> L4 {
    match flow.protocol {
        Protocol::Tcp => L4::Tcp { sport: port, dport: flow.port, flags: TcpFlags::SYN },
        Protocol::Udp => L4::Udp { sport: port, dport: flow.port },
        Protocol::Sctp => L4::Sctp { sport: port, dport: flow.port },
        Protocol::Icmp | Protocol::Icmpv6 => L4::Icmp { kind: flow.port as u8, code: 0, id: port },
        other => L4::Raw { protocol: other.number(), bytes: vec![0; 16] },
    }
}

/// The packet met what the compiled policy says, side by side.
pub fn agree(view: &View, flow: &Flow, way: Way, outcome: &Outcome) -> Result<(), Disagreement> {
    let sides = view.decide(flow.source, flow.destination, l4(flow));
    let mut judged: Vec<(Side, &SideDecision)> = Vec::new();
    for side in sides.iter().filter(|side| side.because != Because::Hairpin) {
        let wanted = wanted_side(view, flow, side);
        let ends = wanted.reason.is_some();
        // Of a flow that is dropped only the drop is told.
        if ends {
            judged.clear();
        }
        judged.push((wanted, side));
        if ends {
            break;
        }
    }
    let wanted: Vec<Side> = judged.iter().map(|(side, _)| side.clone()).collect();
    let seen: Vec<Side> = outcome.events.iter().map(seen_side).collect();
    let dropped = wanted.last().and_then(|side| side.reason);
    let fits = match (outcome.action, dropped) {
        (Action::Pass | Action::Redirect, None) => true,
        (Action::Drop(number), Some(reason)) => number == reason as u8,
        _ => false,
    };
    let differ = |compiled: String, kernel: String| Disagreement {
        subject: format!(
            "{:?} of {} for {} -> {} {} {}",
            way.hook,
            view.options().node,
            flow.source,
            flow.destination,
            flow.protocol,
            flow.port
        ),
        one: format!("the compiled policy says {compiled}"),
        other: format!("the kernel says {kernel}"),
    };
    if !fits || seen != wanted {
        return Err(differ(format!("{wanted:?}"), format!("{:?} {seen:?}", outcome.action)));
    }
    for (event, (_, side)) in outcome.events.iter().zip(&judged) {
        let rules = view.engine().rules_of(RuleSetId(event.rule_set));
        let same = match &side.because {
            Because::Rules(all) => !rules.is_empty() && rules.iter().all(|rule| all.contains(rule)),
            _ => rules.is_empty(),
        };
        if !same {
            return Err(differ(
                format!("{:?}", side.because),
                format!("rule set {} {rules:?}", event.rule_set),
            ));
        }
    }
    Ok(())
}

fn l4(flow: &Flow) -> sluice::policy::engine::L4Flow {
    sluice::policy::engine::L4Flow { protocol: flow.protocol, port: flow.port }
}

fn wanted_side(view: &View, flow: &Flow, side: &SideDecision) -> Side {
    let peer = match side.direction {
        Direction::Egress => flow.destination,
        Direction::Ingress => flow.source,
    };
    let redirect = |proxy| match proxy {
        Proxy::Http => abi::ACTION_REDIRECT_HTTP,
        Proxy::Dns => abi::ACTION_REDIRECT_DNS,
        Proxy::Tls => abi::ACTION_REDIRECT_TLS,
    };
    let (action, reason) = match (&side.outcome, &side.because) {
        (Decided::Allow, _) => (abi::ACTION_ALLOW, None),
        // No proxy listens here.
        (Decided::Redirect(proxy), _) => (redirect(*proxy), Some(DropReason::ProxyNotFound)),
        (Decided::Deny, Because::Rules(_)) => (abi::ACTION_DENY, Some(DropReason::PolicyDeny)),
        (Decided::Deny, _) if view.resolve(peer).identity == Identity::UNKNOWN => {
            (abi::ACTION_DENY, Some(DropReason::UnknownIdentity))
        }
        (Decided::Deny, _) => (abi::ACTION_DENY, Some(DropReason::PolicyDenied)),
    };
    let default_deny = reason == Some(DropReason::PolicyDenied);
    Side { direction: side.direction, action: action as u8, reason, default_deny }
}

fn seen_side(event: &abi::RawFlowEvent) -> Side {
    let direction =
        if u32::from(event.direction) == abi::DIR_EGRESS { Direction::Egress } else { Direction::Ingress };
    let reason = DropReason::ALL.iter().find(|reason| **reason as u8 == event.reason).copied();
    let default_deny = u32::from(event.flags) & abi::EVF_DEFAULT_DENY != 0;
    Side { direction, action: event.action, reason, default_deny }
}

impl Node {
    /// Writes the view's state into the maps, as a restarted agent would, if it is not there. Returns whether
    /// it was not.
    fn hold(&mut self, view: &View, devices: &[u32], uplink: u32) -> bool {
        let state = view.full();
        if state == self.state {
            return false;
        }
        let base = NodeConfig {
            flags: abi::CFG_REDIRECT_PEER | abi::CFG_TRACE,
            uplink_ifindex: uplink,
            router_mac: ROUTER_MAC,
            nat_port_min: 32768,
            nat_port_max: 60999,
            ..NodeConfig::default()
        };
        let tables = self.kernel.tables().expect("handles to the maps");
        let mut writer = Writer::take_over(tables, base).expect("the maps are taken over");
        self.places.clear();
        for (index, endpoint) in view.endpoints().enumerate() {
            let id = index as u16 + 1;
            let device = EndpointDevice {
                ifindex: devices[index % devices.len()],
                mac: [2, 0, 0, 0, (id >> 8) as u8, id as u8],
                id,
                ..NO_DEVICE
            };
            writer.set_device(&endpoint.pod.path(), device).expect("a device for each pod");
            self.places.extend(endpoint.addresses.iter().map(|address| (*address, device)));
        }
        writer.reconcile(&state).expect("the state is written");
        self.state = state;
        self.forget_connections();
        true
    }

    fn forget_connections(&mut self) {
        self.kernel.forget_connections();
    }

    /// The first of the source ports of one flow's packets: no connection has them.
    fn fresh_port(&mut self) -> u16 {
        self.next_port += FORMS as u16 * WAYS;
        if !(1024..60000).contains(&self.next_port) {
            self.next_port = 1024;
            self.forget_connections();
        }
        self.next_port
    }

    /// Every hook on which this node meets the first packet of `flow`. None when no end is here.
    fn ways(&self, view: &View, flow: &Flow, uplink: u32) -> Vec<Way> {
        let here = |address: IpAddr| self.places.get(&address).copied();
        let node_addresses = self.state.node.as_ref().map_or(&[][..], |node| &node.addresses);
        let is_host = |address: IpAddr| node_addresses.contains(&address);
        let is_gateway = |address: IpAddr| view.options().fixed_addresses.contains_key(&address);
        let way = |hook, ifindex, source_mac| Way { hook, ifindex, source_mac };
        if let Some(source) = here(flow.source) {
            return vec![way(Hook::FromContainer, source.ifindex, source.mac)];
        }
        let from_stack = |pod: EndpointDevice| way(Hook::ToContainer, pod.ifindex, ROUTER_MAC);
        let from_wire = way(Hook::FromNetwork, uplink, UPLINK_MAC);
        match here(flow.destination) {
            Some(pod) if is_host(flow.source) || is_gateway(flow.source) => vec![from_stack(pod)],
            // The node's stack may have got it by another device.
            Some(pod) => vec![from_wire, from_stack(pod)],
            None if is_host(flow.source) && is_host(flow.destination) => vec![],
            None if is_host(flow.source) => vec![way(Hook::ToNetwork, uplink, ROUTER_MAC)],
            None if is_host(flow.destination) && !is_gateway(flow.source) => vec![from_wire],
            None => vec![],
        }
    }
}

const NO_DEVICE: EndpointDevice =
    EndpointDevice { ifindex: 0, mac: [0; 6], id: 0, link_layer: sluice::datapath::LinkLayer::Ethernet };
