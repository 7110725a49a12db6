//! The node's own packets to pods that proxies are to have: they are turned back where they leave, and given to a proxy
//! where they arrive. Under BPF_PROG_TEST_RUN no socket can be given a packet: one for a proxy ends as "proxy not
//! found", where a judge would have said something else.

use sluice::datapath::abi::{self, DnsPair};
use sluice::datapath::testrun::{Action, Context, Hook, Outcome, TcpFlags};
use sluice::model::DropReason;

use crate::fixture::*;

/// Arrives once more, as it left.
fn arrives(node: &mut Node, pod: Who, outcome: &Outcome, mark: u32) -> Outcome {
    let ifindex = node.device(pod);
    node.kernel.run(Hook::FromContainer, &outcome.frame, Context { ifindex, mark, arrived_by: 0 })
}

fn assert_leaves_turned(outcome: &Outcome) {
    assert_eq!(outcome.action, Action::Redirect);
    assert_eq!(outcome.mark & abi::MARK_MASK, abi::MARK_TURNED);
}

fn assert_turned(node: &mut Node, pod: Who, outcome: &Outcome) {
    assert_leaves_turned(outcome);
    assert_dropped(&arrives(node, pod, outcome, outcome.mark), DropReason::ProxyNotFound);
    // The same from the pod itself, which can set no mark.
    assert_dropped(&arrives(node, pod, outcome, 0), DropReason::InvalidSourceIp);
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
        let arrived = arrives(&mut node, Who::Alice, &later, later.mark);
        assert_passed(&arrived);
        assert_eq!(arrived.mark & abi::MARK_MASK, abi::MARK_PROXY);
        assert_dropped(&node.send(family, Who::Host, Who::Alice, syn(81)), DropReason::PolicyDenied);
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
