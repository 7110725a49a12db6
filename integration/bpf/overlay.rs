//! What comes out of the tunnel is believed as far as the tunnel proves it. A real VXLAN device and another
//! network namespace in the part of the other node.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Child, Command};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use sluice::datapath::abi;
use sluice::datapath::testrun::{Hook, TcpFlags};
use sluice::model::DropReason;

use crate::fixture::*;

const PATIENCE: Duration = Duration::from_secs(5);

/// The other node: a process that only keeps a network namespace alive.
struct OtherNode(Child);

impl Drop for OtherNode {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(program: &str, arguments: &str) {
    let status = Command::new(program).args(arguments.split(' ')).status().expect(program);
    assert!(status.success(), "{program} {arguments}");
}

impl OtherNode {
    fn join() -> OtherNode {
        let child = Command::new("unshare").args(["-n", "sleep", "60"]).spawn().expect("unshare");
        let node = OtherNode(child);
        let pid = node.0.id();
        let own = std::fs::read_link("/proc/thread-self/ns/net").expect("own namespace");
        let theirs = format!("/proc/{pid}/ns/net");
        while std::fs::read_link(&theirs).expect("their namespace") == own {
            std::thread::yield_now();
        }
        run("ip", &format!("link set bpf-up-p netns {pid}"));
        for step in ["addr add 172.18.0.3/16 dev bpf-up-p", "link set bpf-up-p up"] {
            run("nsenter", &format!("-t {pid} -n ip {step}"));
        }
        node
    }

    /// Sends an inner frame in a VXLAN packet (RFC 7348), from one of the node's addresses.
    fn tunnel(&self, from: &str, vni: u32, inner: &[u8]) {
        let file = std::fs::File::open(format!("/proc/{}/ns/net", self.0.id())).expect("namespace");
        let mut payload = vec![0x08, 0, 0, 0];
        payload.extend((vni << 8).to_be_bytes());
        payload.extend(inner);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                setns(&file, CloneFlags::CLONE_NEWNET).expect("setns");
                let from: SocketAddr = format!("{from}:0").parse().unwrap();
                let socket = UdpSocket::bind(from).expect("bind");
                socket.send_to(&payload, "172.18.0.2:8472").expect("send");
            });
        });
    }
}

fn overlay() -> (Node, OtherNode) {
    let mut node = Node::new();
    let other = OtherNode::join();
    for step in [
        "addr add 172.18.0.2/16 dev bpf-up",
        "link set bpf-up up",
        "link add bpf-vxlan type vxlan external dstport 8472",
        "link set bpf-vxlan address 02:ff:00:00:00:01 up",
    ] {
        run("ip", step);
    }
    let pid = other.0.id();
    run("nsenter", &format!("-t {pid} -n ip addr add 172.18.0.77/16 dev bpf-up-p"));
    node.config.tunnel_ifindex = nix::net::if_::if_nametoindex("bpf-vxlan").unwrap();
    node.set_flags(abi::CFG_TUNNEL | abi::CFG_TRACE);
    node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[(Direction::Ingress, Cell::allow_tcp(CAROL, 80))]);
    node.kernel.attach(Hook::FromOverlay, "bpf-vxlan");
    (node, other)
}

/// Kind and reason of the event that a packet from `source` to Bob's port 80 gives.
fn verdict(
    node: &mut Node,
    other: &OtherNode,
    sender: &str,
    vni: u32,
    source: IpAddr,
    port: u16,
) -> (u32, u8) {
    let family = Family::of(source);
    let mut frame = node.frame(family, Who::Carol, Who::Bob, tcp(port, 80, TcpFlags::SYN));
    frame.src = source;
    other.tunnel(sender, vni, &frame.bytes());
    loop {
        let event = node.kernel.wait_for_event(PATIENCE).expect("an event");
        if event.sport == port {
            return (u32::from(event.kind), event.reason);
        }
    }
}

/// Addresses of the cluster that no pod that we know of has.
const STRANGERS: [&str; 2] = ["10.244.2.99", "fd00:244:0:2::99"];
const DAVE: u32 = 1004;

const DROP: u32 = abi::EVENT_DROP;
const PASS: (u32, u8) = (abi::EVENT_VERDICT, 0);

#[test]
fn the_tunnel_is_believed_about_addresses_behind_that_node_only() {
    let (mut node, other) = overlay();
    let invalid = (DROP, DropReason::InvalidTunnelSource as u8);
    for family in FAMILIES {
        let carol = Who::Carol.address(family);
        assert_eq!(verdict(&mut node, &other, "172.18.0.3", 1003, carol, 1001), PASS);
        // The same pod, out of another machine's tunnel.
        assert_eq!(verdict(&mut node, &other, "172.18.0.77", 1003, carol, 1002), invalid);
        // Local pods, this node and the world are not behind the other node, whatever the tunnel id says.
        for who in [Who::Alice, Who::Host, Who::World] {
            let source = who.address(family);
            assert_eq!(verdict(&mut node, &other, "172.18.0.3", CAROL, source, 1003), invalid);
        }
    }
    // The node itself may speak; policy has the word.
    let itself = Who::OtherNode.address(Family::IPv4);
    let denied = (DROP, DropReason::PolicyDenied as u8);
    assert_eq!(verdict(&mut node, &other, "172.18.0.3", 6, itself, 1004), denied);
}

#[test]
fn a_node_may_name_the_identity_of_a_pod_that_we_have_not_heard_of() {
    let (mut node, other) = overlay();
    let invalid = (DROP, DropReason::InvalidTunnelSource as u8);
    node.know_identity(CAROL);
    for stranger in STRANGERS {
        let stranger: IpAddr = stranger.parse().unwrap();
        assert_eq!(verdict(&mut node, &other, "172.18.0.3", CAROL, stranger, 2001), PASS);
        // But not a reserved identity, and not from a machine that is no node.
        assert_eq!(verdict(&mut node, &other, "172.18.0.3", abi::ID_HOST, stranger, 2002), invalid);
        assert_eq!(verdict(&mut node, &other, "172.18.0.77", CAROL, stranger, 2003), invalid);
    }
}

#[test]
fn an_identity_whose_labels_nobody_told_us_waits_even_where_all_pods_may_speak() {
    let (mut node, other) = overlay();
    let denied = (DROP, DropReason::PolicyDeny as u8);
    let not_learned = (DROP, DropReason::IdentityNotLearned as u8);
    let all_pods = abi::GROUP_PODS;
    node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[(Direction::Ingress, Cell::allow_tcp(all_pods, 80))]);
    for (stranger, port) in STRANGERS.into_iter().zip([3001, 3101]) {
        let stranger: IpAddr = stranger.parse().unwrap();
        // A rule that denies Dave by label has no entry yet: his labels are not known here.
        assert_eq!(verdict(&mut node, &other, "172.18.0.3", DAVE, stranger, port), not_learned);
    }
    node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[(Direction::Ingress, Cell::deny_tcp(DAVE, 80))]);
    node.know_identity(DAVE);
    node.know_identity(CAROL);
    for (stranger, port) in STRANGERS.into_iter().zip([3002, 3102]) {
        let stranger: IpAddr = stranger.parse().unwrap();
        assert_eq!(verdict(&mut node, &other, "172.18.0.3", DAVE, stranger, port), denied);
        assert_eq!(verdict(&mut node, &other, "172.18.0.3", CAROL, stranger, port + 1), PASS);
    }
}

/// What carries a pod's packet is not judged a second time, as the node's own.
#[test]
fn the_uplink_lets_what_the_tunnel_carries_pass() {
    use sluice::datapath::testrun::Context;
    let mut node = Node::new();
    node.set_flags(abi::CFG_HOST_FIREWALL);
    node.policy(HOST_POLICY, [DEFAULT_DENY, DEFAULT_DENY], &[]);
    let frame = node.frame(Family::IPv4, Who::Host, Who::World, udp(40000, 8472)).bytes();
    let ifindex = node.uplink;
    let mut run = |mark| node.kernel.run(Hook::ToNetwork, &frame, Context { ifindex, mark, arrived_by: 0 });
    assert_passed(&run(abi::MARK_TUNNELLED));
    assert_dropped(&run(0), DropReason::PolicyDenied);
}
