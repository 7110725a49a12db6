//! A node with two pods, a remote node with a pod, and the world, in the maps of a loaded object.

use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use sluice::datapath::abi::{self, Addr};
use sluice::datapath::testrun::{Action, Context, Frame, Hook, Kernel, L4, Outcome, TcpFlags};
use sluice::model::DropReason;

pub use sluice::model::{Direction, Family};

pub const ROUTER_MAC: [u8; 6] = [2, 0xff, 0, 0, 0, 1];
pub const GATEWAY_MAC: [u8; 6] = [2, 0xff, 0, 0, 0, 2];

/// Identities.
pub const ALICE: u32 = 1001;
pub const BOB: u32 = 1002;
pub const CAROL: u32 = 1003;
/// Policies, one for each subject.
pub const HOST_POLICY: u32 = 1;
pub const ALICE_POLICY: u32 = 2;
pub const BOB_POLICY: u32 = 3;

/// A party of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Pod of this node.
    Alice,
    /// Another pod of this node.
    Bob,
    /// Pod of the other node.
    Carol,
    /// This node.
    Host,
    /// The other node.
    OtherNode,
    /// A host outside the cluster.
    World,
}

pub const FAMILIES: [Family; 2] = [Family::IPv4, Family::IPv6];

impl Who {
    pub fn address(self, family: Family) -> IpAddr {
        let (v4, v6) = match self {
            Who::Alice => ("10.244.1.10", "fd00:244:0:1::10"),
            Who::Bob => ("10.244.1.11", "fd00:244:0:1::11"),
            Who::Carol => ("10.244.2.12", "fd00:244:0:2::12"),
            Who::Host => ("172.18.0.2", "fd00:18::2"),
            Who::OtherNode => ("172.18.0.3", "fd00:18::3"),
            Who::World => ("203.0.113.10", "2001:db8::10"),
        };
        match family {
            Family::IPv4 => v4.parse().unwrap(),
            Family::IPv6 => v6.parse().unwrap(),
        }
    }

    /// Of the pod's side of its device; of the next hop for those who are not here.
    pub fn mac(self) -> [u8; 6] {
        match self {
            Who::Alice => [2, 0, 0, 0, 0, 0x10],
            Who::Bob => [2, 0, 0, 0, 0, 0x11],
            Who::Host => ROUTER_MAC,
            Who::Carol | Who::OtherNode | Who::World => GATEWAY_MAC,
        }
    }
}

/// Cells of a policy in short: who may what.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    pub identity: u32,
    pub protocol: u8,
    pub port_class: u32,
    pub admin: abi::PolicySlot,
    pub normal: abi::PolicySlot,
}

pub fn slot(action: u32, precedence: u32, rule_set: u32) -> abi::PolicySlot {
    abi::PolicySlot { precedence, rule_set, action }
}

impl Cell {
    /// A rule of the normal tier.
    pub fn normal(identity: u32, protocol: u8, port_class: u32, slot: abi::PolicySlot) -> Cell {
        Cell { identity, protocol, port_class, admin: abi::PolicySlot::default(), normal: slot }
    }

    /// `identity` may reach TCP port `port`.
    pub fn allow_tcp(identity: u32, port: u16) -> Cell {
        Cell::normal(identity, 6, abi::PORT_EXACT | u32::from(port), slot(abi::ACTION_ALLOW, 10, 7))
    }

    /// `identity` may not.
    pub fn deny_tcp(identity: u32, port: u16) -> Cell {
        Cell::normal(identity, 6, abi::PORT_EXACT | u32::from(port), slot(abi::ACTION_DENY, 20, 8))
    }
}

pub struct Node {
    pub kernel: Kernel,
    pub alice: u32,
    pub bob: u32,
    pub uplink: u32,
    epoch: u32,
    identities: Vec<u64>,
    pub config: abi::NodeConfig,
}

/// Every kind of cell may be there: the lookups skip nothing.
pub const ALL_CELLS: u32 = abi::PF_ID_EXACT
    | abi::PF_ID_PROTO
    | abi::PF_ID_ANY
    | abi::PF_GROUP_EXACT
    | abi::PF_GROUP_PROTO
    | abi::PF_GROUP_ANY
    | abi::PF_ANY_EXACT
    | abi::PF_ANY_PROTO
    | abi::PF_ANY_ANY
    | abi::PF_ENFORCED;
pub const GROUP_CELLS: u32 = abi::PF_GROUP_EXACT | abi::PF_GROUP_PROTO | abi::PF_GROUP_ANY;
pub const DEFAULT_DENY: u32 = ALL_CELLS | abi::PF_DEFAULT_DENY;

impl Node {
    /// Both pods have a policy that has no rules and allows everything.
    pub fn new() -> Node {
        Node::with(|| Kernel::load().expect("the programs load (root is needed)"))
    }

    /// The same with a table of connections that has so many sets.
    pub fn with_sets(sets: u32) -> Node {
        Node::with(|| Kernel::load_with_sets(sets).expect("the programs load (root is needed)"))
    }

    fn with(load: impl FnOnce() -> Kernel) -> Node {
        let devices = Kernel::isolate(&["bpf-alice", "bpf-bob", "bpf-up"]);
        let mut node = Node {
            kernel: load(),
            alice: devices[0],
            bob: devices[1],
            uplink: devices[2],
            epoch: 1,
            identities: vec![0; abi::IDENTITY_WORDS as usize],
            config: abi::NodeConfig {
                flags: abi::CFG_REDIRECT_PEER,
                uplink_ifindex: devices[2],
                host_policy_id: HOST_POLICY,
                node_v4: Who::Host.address(Family::IPv4).into(),
                node_v6: Who::Host.address(Family::IPv6).into(),
                nat_port_min: 32768,
                nat_port_max: 60999,
                router_mac: ROUTER_MAC,
                tunnel_port: 8472,
                ..abi::NodeConfig::default()
            },
        };
        node.set_flags(0);
        for family in FAMILIES {
            node.add_pod(Who::Alice.address(family), devices[0], ALICE, ALICE_POLICY, 10, Who::Alice.mac());
            node.add_pod(Who::Bob.address(family), devices[1], BOB, BOB_POLICY, 11, Who::Bob.mac());
            let host = abi::EndpointInfo {
                identity: abi::ID_HOST,
                policy_id: HOST_POLICY,
                flags: abi::EP_HOST,
                ..abi::EndpointInfo::default()
            };
            node.kernel.put("sl_endpoints", Addr::from(Who::Host.address(family)), host);
            let other_node: Addr = Who::OtherNode.address(Family::IPv4).into();
            node.know(Who::Carol.address(family), CAROL, abi::IPC_REMOTE | abi::IPC_CLUSTER, other_node);
            node.know(Who::OtherNode.address(family), abi::ID_REMOTE_NODE, abi::IPC_NODE, other_node);
        }
        node.know_prefix("0.0.0.0", 96, abi::ID_WORLD, 0);
        node.know_prefix("::", 0, abi::ID_WORLD, 0);
        node.know_prefix("10.244.0.0", 96 + 16, abi::ID_UNKNOWN, abi::IPC_CLUSTER);
        node.know_prefix("fd00:244::", 48, abi::ID_UNKNOWN, abi::IPC_CLUSTER);
        for policy in [HOST_POLICY, ALICE_POLICY, BOB_POLICY] {
            node.policy(policy, [0, 0], &[]);
        }
        node
    }

    /// Addresses and routes in the kernel, for verdicts that depend on them: the uplink has a second address, and
    /// everything that is not here is behind it.
    pub fn routes(&self) {
        let script = "link set bpf-alice up\nlink set bpf-bob up\nlink set bpf-up up\nlink set bpf-up-p up\n\
            addr add 172.18.0.2/16 brd + dev bpf-up\naddr add 172.18.0.99/16 dev bpf-up\n\
            addr add fd00:18::2/64 dev bpf-up nodad\naddr add fd00:18::99/64 dev bpf-up nodad\n\
            route add default via 172.18.0.1 dev bpf-up\nroute add ::/0 via fd00:18::1 dev bpf-up\n";
        for switch in ["ipv4/ip_forward", "ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{switch}"), "1").expect(switch);
        }
        let mut ip =
            Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("iproute2");
        ip.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(ip.wait().unwrap().success(), "ip -batch");
    }

    /// Switches on top of redirect_peer.
    pub fn set_flags(&mut self, flags: u32) {
        self.config.flags = abi::CFG_REDIRECT_PEER | flags;
        self.kernel.set("sl_config", 0, self.config);
    }

    pub fn add_pod(
        &mut self,
        address: IpAddr,
        ifindex: u32,
        identity: u32,
        policy_id: u32,
        id: u16,
        mac: [u8; 6],
    ) {
        let info = abi::EndpointInfo { ifindex, identity, policy_id, flags: 0, id, mac, pad: 0 };
        self.kernel.put("sl_endpoints", Addr::from(address), info);
    }

    pub fn know(&mut self, address: IpAddr, identity: u32, flags: u32, tunnel_ep: Addr) {
        self.kernel.put(
            "sl_ipcache_exact",
            Addr::from(address),
            abi::IpcacheValue { identity, flags, tunnel_ep },
        );
    }

    /// Says that policies know this identity.
    pub fn know_identity(&mut self, identity: u32) {
        self.identities[(identity / 64) as usize] |= 1 << (identity % 64);
        let word = identity / 64;
        self.kernel.set("sl_identities", word, self.identities[word as usize]);
    }

    pub fn know_prefix(&mut self, prefix: &str, prefix_len: u32, identity: u32, flags: u32) {
        let address: IpAddr = prefix.parse().unwrap();
        let value = abi::IpcacheValue { identity, flags, tunnel_ep: Addr::NONE };
        self.kernel.put_prefix("sl_ipcache_lpm", prefix_len, Addr::from(address), value);
    }

    pub fn class_prefix(&mut self, prefix: &str, prefix_len: u32, class: u32) {
        let address: IpAddr = prefix.parse().unwrap();
        self.kernel.put_prefix("sl_addr_class", prefix_len, Addr::from(address), class);
    }

    /// Gives a policy flags (by direction) and adds cells for both directions' use; a new epoch.
    pub fn policy(&mut self, policy_id: u32, flags: [u32; 2], cells: &[(Direction, Cell)]) {
        for (direction, cell) in cells {
            let key = abi::PolicyMapKey {
                policy_id,
                identity: cell.identity,
                port_class: cell.port_class,
                protocol: cell.protocol,
                direction: *direction as u8,
                pad: 0,
            };
            let entry = abi::PolicyMapEntry { admin: cell.admin, normal: cell.normal };
            self.kernel.put("sl_policy", key, entry);
        }
        self.epoch += 1;
        let info = abi::PolicyInfoValue { epoch: self.epoch, flags, subject_identity: 0 };
        self.kernel.set("sl_policy_info", policy_id, info);
    }

    /// A frame from one party to another, as it looks on the sender's device.
    pub fn frame(&self, family: Family, from: Who, to: Who, l4: L4) -> Frame {
        let mut frame = Frame::new(from.address(family), to.address(family), l4);
        frame.src_mac = from.mac();
        frame.dst_mac = ROUTER_MAC;
        frame
    }

    pub fn device(&self, who: Who) -> u32 {
        match who {
            Who::Alice => self.alice,
            Who::Bob => self.bob,
            _ => self.uplink,
        }
    }

    /// What `who` sends, on the hook where this node meets it first.
    pub fn send_from(&mut self, who: Who, frame: &Frame) -> Outcome {
        let hook = match who {
            Who::Alice | Who::Bob => Hook::FromContainer,
            Who::Carol | Who::OtherNode | Who::World => Hook::FromNetwork,
            Who::Host => Hook::ToNetwork,
        };
        self.run(hook, self.device(who), frame)
    }

    /// What the node's stack sends to a pod.
    pub fn send_to_pod(&mut self, pod: Who, frame: &Frame) -> Outcome {
        self.run(Hook::ToContainer, self.device(pod), frame)
    }

    pub fn run(&mut self, hook: Hook, ifindex: u32, frame: &Frame) -> Outcome {
        self.kernel.run(hook, &frame.bytes(), Context { ifindex, mark: 0, arrived_by: 0 })
    }

    pub fn send(&mut self, family: Family, from: Who, to: Who, l4: L4) -> Outcome {
        let frame = self.frame(family, from, to, l4);
        if from == Who::Host && matches!(to, Who::Alice | Who::Bob) {
            return self.send_to_pod(to, &frame);
        }
        self.send_from(from, &frame)
    }
}

pub fn tcp(sport: u16, dport: u16, flags: TcpFlags) -> L4 {
    L4::Tcp { sport, dport, flags }
}

pub fn syn(dport: u16) -> L4 {
    tcp(40000, dport, TcpFlags::SYN)
}

pub fn udp(sport: u16, dport: u16) -> L4 {
    L4::Udp { sport, dport }
}

pub fn ping(family: Family, id: u16) -> L4 {
    L4::Icmp { kind: if family == Family::IPv4 { 8 } else { 128 }, code: 0, id }
}

pub fn pong(family: Family, id: u16) -> L4 {
    L4::Icmp { kind: if family == Family::IPv4 { 0 } else { 129 }, code: 0, id }
}

#[track_caller]
pub fn assert_dropped(outcome: &Outcome, reason: DropReason) {
    let name = |number: u8| DropReason::ALL.iter().find(|r| **r as u8 == number).map(|r| r.name());
    let got = match outcome.action {
        Action::Drop(number) => format!("drop {:?}", name(number)),
        other => format!("{other:?}"),
    };
    assert_eq!(got, format!("drop {:?}", Some(reason.name())));
}

#[track_caller]
pub fn assert_delivered(outcome: &Outcome, to: Who) {
    assert_eq!(outcome.action, Action::Redirect, "{:?}", outcome.events);
    let seen = outcome.seen();
    assert_eq!(seen.dst_mac, to.mac(), "destination MAC");
    assert_eq!(seen.src_mac, ROUTER_MAC, "source MAC");
    assert_eq!(seen.ttl, 63, "TTL");
}

#[track_caller]
pub fn assert_passed(outcome: &Outcome) {
    assert_eq!(outcome.action, Action::Pass, "{:?}", outcome.events);
}
