//! What leaves the cluster leaves with the node's address, and what comes back finds its pod.

use sluice::datapath::abi;
use sluice::datapath::testrun::{Fragment, Hook, L4, TcpFlags};
use sluice::model::DropReason;

use crate::fixture::*;
use crate::icmp_errors::{quoted, too_big};

fn node() -> Node {
    let mut node = Node::new();
    node.policy(ALICE_POLICY, [0, DEFAULT_DENY], &[]);
    node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[]);
    node.set_flags(abi::CFG_MASQUERADE_V4 | abi::CFG_MASQUERADE_V6);
    node
}

/// Out through both hooks; the packet as it is on the wire.
fn out(node: &mut Node, family: Family, from: Who, l4: L4) -> sluice::datapath::testrun::Seen {
    let frame = node.frame(family, from, Who::World, l4);
    assert_passed(&node.send_from(from, &frame));
    let outcome = node.run(Hook::ToNetwork, node.uplink, &frame);
    assert_passed(&outcome);
    outcome.seen()
}

fn back(node: &mut Node, family: Family, l4: L4) -> sluice::datapath::testrun::Outcome {
    node.send(family, Who::World, Who::Host, l4)
}

#[test]
fn tcp_udp_and_sctp_go_out_and_come_back() {
    let mut node = node();
    for family in FAMILIES {
        for (request, reply) in [
            (tcp(40000, 443, TcpFlags::SYN), tcp(443, 40000, TcpFlags::SYN_ACK)),
            (udp(40000, 53), udp(53, 40000)),
            (L4::Sctp { sport: 40000, dport: 99 }, L4::Sctp { sport: 99, dport: 40000 }),
        ] {
            for _ in 0..2 {
                let seen = out(&mut node, family, Who::Alice, request.clone());
                assert_eq!(seen.src, Who::Host.address(family));
                assert_eq!(seen.sport, 40000, "the pod's own port is free");
                let outcome = back(&mut node, family, reply.clone());
                assert_delivered(&outcome, Who::Alice);
                assert_eq!(outcome.seen().dst, Who::Alice.address(family));
            }
        }
    }
}

#[test]
fn two_pods_with_the_same_port_get_different_ones() {
    let mut node = node();
    for family in FAMILIES {
        for l4 in
            [|sport, dport| tcp(sport, dport, TcpFlags::SYN), udp, |sport, dport| L4::Sctp { sport, dport }]
        {
            let alice = out(&mut node, family, Who::Alice, l4(40000, 443));
            let bob = out(&mut node, family, Who::Bob, l4(40000, 443));
            assert_eq!(alice.src, bob.src);
            assert_ne!(alice.sport, bob.sport);
            let reply = |port| match l4(443, port) {
                L4::Tcp { sport, dport, .. } => tcp(sport, dport, TcpFlags::SYN_ACK),
                other => other,
            };
            let outcome = back(&mut node, family, reply(bob.sport));
            assert_delivered(&outcome, Who::Bob);
            assert_eq!(outcome.seen().dport, 40000);
            assert_delivered(&back(&mut node, family, reply(alice.sport)), Who::Alice);
        }
    }
}

#[test]
fn pings_go_out_and_come_back() {
    let mut node = node();
    for family in FAMILIES {
        let alice = out(&mut node, family, Who::Alice, ping(family, 40001));
        let bob = out(&mut node, family, Who::Bob, ping(family, 40001));
        assert_ne!(alice.sport, bob.sport);
        let outcome = back(&mut node, family, pong(family, bob.sport));
        assert_delivered(&outcome, Who::Bob);
        assert_eq!(outcome.seen().sport, 40001);
        // A ping to the node with the same id is the node's.
        assert_passed(&back(&mut node, family, ping(family, alice.sport)));
    }
}

#[test]
fn a_port_of_the_nodes_own_connection_is_not_taken() {
    let mut node = node();
    for family in FAMILIES {
        assert_passed(&node.send(family, Who::Host, Who::World, tcp(40000, 443, TcpFlags::SYN)));
        let seen = out(&mut node, family, Who::Alice, tcp(40000, 443, TcpFlags::SYN));
        assert_ne!(seen.sport, 40000);
        let reply = back(&mut node, family, tcp(443, 40000, TcpFlags::SYN_ACK));
        assert_passed(&reply);
        assert_eq!(reply.seen().dst, Who::Host.address(family));
    }
}

#[test]
fn unsolicited_packets_to_the_node_stay_there() {
    let mut node = node();
    for family in FAMILIES {
        out(&mut node, family, Who::Alice, udp(40000, 53));
        let outcome = back(&mut node, family, udp(54, 40000));
        assert_passed(&outcome);
        assert_eq!(outcome.seen().dst, Who::Host.address(family));
    }
}

#[test]
fn cluster_traffic_and_answers_to_the_outside_keep_their_address() {
    let mut node = node();
    node.policy(ALICE_POLICY, [0, 0], &[]);
    for family in FAMILIES {
        for to in [Who::Carol, Who::OtherNode] {
            let frame = node.frame(family, Who::Alice, to, syn(80));
            assert_passed(&node.send_from(Who::Alice, &frame));
            let outcome = node.run(Hook::ToNetwork, node.uplink, &frame);
            assert_passed(&outcome);
            assert_eq!(outcome.seen().src, Who::Alice.address(family));
        }
        assert_delivered(&node.send(family, Who::World, Who::Alice, syn(80)), Who::Alice);
        let seen = out(&mut node, family, Who::Alice, tcp(80, 40000, TcpFlags::SYN_ACK));
        assert_eq!(seen.src, Who::Alice.address(family));
    }
}

#[test]
fn protocols_that_cannot_be_masqueraded_do_not_leave() {
    let mut node = node();
    for family in FAMILIES {
        let frame = node.frame(family, Who::Alice, Who::World, L4::Raw { protocol: 112, bytes: vec![0; 8] });
        assert_passed(&node.send_from(Who::Alice, &frame));
        let outcome = node.run(Hook::ToNetwork, node.uplink, &frame);
        assert_dropped(&outcome, DropReason::NatUnsupportedProto);
    }
}

#[test]
fn errors_come_back_through_the_mapping() {
    let mut node = node();
    for family in FAMILIES {
        for l4 in [udp(40000, 53), tcp(40000, 53, TcpFlags::SYN)] {
            out(&mut node, family, Who::Bob, l4.clone());
            let seen = out(&mut node, family, Who::Alice, l4.clone());
            let mut on_the_wire = node.frame(family, Who::Host, Who::World, l4.clone());
            on_the_wire.l4 = match l4 {
                L4::Tcp { flags, .. } => tcp(seen.sport, 53, flags),
                _ => udp(seen.sport, 53),
            };
            let outcome = back(&mut node, family, too_big(family, &on_the_wire));
            assert_delivered(&outcome, Who::Alice);
            let expected = ((Who::Alice.address(family), 40000), (Who::World.address(family), 53));
            assert_eq!(quoted(&outcome.seen().transport), expected);
        }
    }
}

#[test]
fn errors_go_out_through_the_mapping() {
    let mut node = node();
    for family in FAMILIES {
        out(&mut node, family, Who::Bob, udp(40000, 53));
        let port = out(&mut node, family, Who::Alice, udp(40000, 53)).sport;
        let answer = node.frame(family, Who::World, Who::Alice, udp(53, 40000));
        let seen = out(&mut node, family, Who::Alice, too_big(family, &answer));
        assert_eq!(seen.src, Who::Host.address(family));
        let expected = ((Who::World.address(family), 53), (Who::Host.address(family), port));
        assert_eq!(quoted(&seen.transport), expected);
    }
}

#[test]
fn fragments_go_out_and_come_back() {
    let mut node = node();
    for family in FAMILIES {
        for (offset, more) in [(0, true), (24, false)] {
            let mut frame = node.frame(family, Who::Alice, Who::World, udp(40000, 53));
            frame.payload = vec![1; 16];
            frame.fragment = Some(Fragment { id: 77, offset, more });
            assert_passed(&node.send_from(Who::Alice, &frame));
            let outcome = node.run(Hook::ToNetwork, node.uplink, &frame);
            assert_passed(&outcome);
            assert_eq!(outcome.seen().src, Who::Host.address(family));
        }
        for (offset, more) in [(0, true), (24, false)] {
            let mut frame = node.frame(family, Who::World, Who::Host, udp(53, 40000));
            frame.payload = vec![1; 16];
            frame.fragment = Some(Fragment { id: 78, offset, more });
            let outcome = node.send_from(Who::World, &frame);
            assert_delivered(&outcome, Who::Alice);
            assert_eq!(outcome.seen().dst, Who::Alice.address(family));
        }
    }
}

#[test]
fn without_the_switch_addresses_stay() {
    let mut node = node();
    node.set_flags(0);
    for family in FAMILIES {
        let seen = out(&mut node, family, Who::Alice, udp(40000, 53));
        assert_eq!(seen.src, Who::Alice.address(family));
    }
}

#[test]
fn answers_from_outside_are_judged_once_with_a_tunnel_too() {
    let mut node = node();
    let out_rule = Cell::normal(abi::ID_WORLD, 0, abi::PORT_ANY, slot(abi::ACTION_ALLOW, 10, 31));
    node.policy(ALICE_POLICY, [DEFAULT_DENY, DEFAULT_DENY], &[(Direction::Egress, out_rule)]);
    node.set_flags(abi::CFG_MASQUERADE_V4 | abi::CFG_TUNNEL);
    let family = Family::IPv4;
    out(&mut node, family, Who::Alice, tcp(40000, 443, TcpFlags::SYN));
    for _ in 0..3 {
        assert_delivered(&back(&mut node, family, tcp(443, 40000, TcpFlags::SYN_ACK)), Who::Alice);
    }
    assert_eq!(node.kernel.per_cpu::<u64>("sl_rule_hits", 31).iter().sum::<u64>(), 1);
}
