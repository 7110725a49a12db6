//! The node's own packets to pods that proxies are to have: they are turned to the loopback device where they leave, and
//! given to a proxy there. Under BPF_PROG_TEST_RUN no socket can be given a packet: one for a proxy ends as "proxy not
//! found", where a judge would have said something else.

use sluice::datapath::abi::{self, DnsPair};
use sluice::datapath::testrun::{Action, Context, Hook, Outcome, TcpFlags};
use sluice::model::DropReason;

use crate::fixture::*;
use crate::services::{add_service, frontend};

/// Arrives at the loopback device, as it left.
fn arrives(node: &mut Node, outcome: &Outcome, mark: u32) -> Outcome {
    node.kernel.run(Hook::FromLoopback, &outcome.frame, Context { ifindex: 1, mark, arrived_by: 0 })
}

fn assert_leaves_turned(outcome: &Outcome) {
    assert_eq!(outcome.action, Action::Redirect);
    assert_eq!(outcome.mark & abi::MARK_MASK, abi::MARK_TURNED);
}

fn assert_turned(node: &mut Node, pod: Who, outcome: &Outcome) {
    assert_leaves_turned(outcome);
    assert_dropped(&arrives(node, outcome, outcome.mark), DropReason::ProxyNotFound);
    // What else the node sends to itself.
    let other = arrives(node, outcome, 0);
    assert_passed(&other);
    assert_eq!(other.frame, outcome.frame);
    // The same from the pod itself: where it comes in, no mark helps.
    let ifindex = node.device(pod);
    for mark in [0, outcome.mark] {
        let context = Context { ifindex, mark, arrived_by: 0 };
        let forged = node.kernel.run(Hook::FromContainer, &outcome.frame, context);
        assert_dropped(&forged, DropReason::InvalidSourceIp);
    }
}

/// A node with proxies, and a rule that gives one of them what `identity` and Alice do on this port of TCP and UDP.
fn redirecting(direction: Direction, action: u32, identity: u32, port: u16) -> Node {
    let mut node = Node::new();
    node.set_flags(abi::CFG_PROXY);
    let cells = [6, 17].map(|protocol| {
        let slot = slot(action, 10, 7);
        (direction, Cell::normal(identity, protocol, abi::PORT_EXACT | u32::from(port), slot))
    });
    node.policy(ALICE_POLICY, [DEFAULT_DENY, DEFAULT_DENY], &cells);
    node
}

#[test]
fn what_the_node_calls_at_a_pod_goes_to_the_proxy() {
    for family in FAMILIES {
        let mut node = redirecting(Direction::Ingress, abi::ACTION_REDIRECT_HTTP, abi::ID_HOST, 80);
        let opening = node.send(family, Who::Host, Who::Alice, syn(80));
        assert_turned(&mut node, Who::Alice, &opening);
        let later = node.send(family, Who::Host, Who::Alice, tcp(40000, 80, TcpFlags::ACK));
        assert_leaves_turned(&later);
        // No proxy has such a connection: the stack resets it.
        let arrived = arrives(&mut node, &later, later.mark);
        assert_passed(&arrived);
        assert_eq!(arrived.mark & abi::MARK_MASK, abi::MARK_PROXY);
        assert_dropped(&node.send(family, Who::Host, Who::Alice, syn(81)), DropReason::PolicyDenied);
    }
}

/// Its packets are met where they would leave, and the proxy's answer where it arrives.
#[test]
fn what_the_node_calls_by_a_service_goes_to_the_proxy_and_is_answered_by_the_service() {
    for family in FAMILIES {
        let mut node = redirecting(Direction::Ingress, abi::ACTION_REDIRECT_HTTP, abi::ID_HOST, 8080);
        add_service(&mut node, &[Who::Alice], 8080, 0);
        for flags in [TcpFlags::SYN, TcpFlags::ACK] {
            let mut frame = node.frame(family, Who::Host, Who::World, tcp(40000, 80, flags));
            frame.dst = frontend(family);
            let called = node.send_from(Who::Host, &frame);
            assert_leaves_turned(&called);
            assert_eq!((called.seen().dst, called.seen().dport), (Who::Alice.address(family), 8080));
            let arrived = arrives(&mut node, &called, called.mark);
            match flags {
                TcpFlags::SYN => assert_dropped(&arrived, DropReason::ProxyNotFound),
                _ => assert_eq!(arrived.mark & abi::MARK_MASK, abi::MARK_PROXY),
            }
        }
        let answer = node.frame(family, Who::Alice, Who::Host, tcp(8080, 40000, TcpFlags::SYN_ACK)).bytes();
        let context = |mark| Context { ifindex: 1, mark, arrived_by: 0 };
        let answered = node.kernel.run(Hook::FromLoopback, &answer, context(abi::MARK_PROXY_OUT));
        assert_passed(&answered);
        assert_eq!((answered.seen().src, answered.seen().sport), (frontend(family), 80));
        // Another process's packet with these addresses is its own.
        let other = node.kernel.run(Hook::FromLoopback, &answer, context(0));
        assert_passed(&other);
        assert_eq!(other.seen().src, Who::Alice.address(family));
    }
}

#[test]
fn without_proxies_nothing_is_turned() {
    for family in FAMILIES {
        let mut node = redirecting(Direction::Ingress, abi::ACTION_REDIRECT_HTTP, abi::ID_HOST, 80);
        node.set_flags(0);
        let opening = node.send(family, Who::Host, Who::Alice, syn(80));
        assert_dropped(&opening, DropReason::ProxyNotFound);
    }
}

/// The proxy's own query to the node meets no program: that it was sent is known by the pod's.
#[test]
fn the_reply_of_the_nodes_dns_server_goes_to_the_proxy() {
    for family in FAMILIES {
        let mut node = redirecting(Direction::Egress, abi::ACTION_REDIRECT_DNS, abi::ID_HOST, 53);
        assert_eq!(node.kernel.entries::<DnsPair, u32>("sl_dns_pairs"), []);
        let query = node.send(family, Who::Alice, Who::Host, udp(5000, 53));
        assert_dropped(&query, DropReason::ProxyNotFound);
        assert_eq!(node.kernel.entries::<DnsPair, u32>("sl_dns_pairs").len(), 1);
        for port in [5000, 6000] {
            let reply = node.send(family, Who::Host, Who::Alice, udp(53, port));
            assert_turned(&mut node, Who::Alice, &reply);
        }
        let other = node.send(family, Who::Host, Who::Alice, udp(54, 6000));
        assert_dropped(&other, DropReason::PolicyDenied);
    }
}

/// An address that was not said to be the node's, and that its stack has (169.254.20.10 of NodeLocal DNSCache).
#[test]
fn an_address_of_the_node_that_nobody_told_us_of_may_have_a_dns_server() {
    for family in FAMILIES {
        let mut node = redirecting(Direction::Egress, abi::ACTION_REDIRECT_DNS, abi::ID_WORLD, 53);
        let query = node.send(family, Who::Alice, Who::World, udp(5000, 53));
        assert_dropped(&query, DropReason::ProxyNotFound);
        let reply = node.frame(family, Who::World, Who::Alice, udp(53, 6000));
        let reply = node.send_to_pod(Who::Alice, &reply);
        assert_turned(&mut node, Who::Alice, &reply);
    }
}
