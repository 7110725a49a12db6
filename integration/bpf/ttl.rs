//! A packet whose life ends on this node: dropped, and its sender is told by which hop (RFC 792, RFC 4443), so that
//! traceroute sees the node.

use std::net::IpAddr;

use sluice::datapath::abi::{self, Addr};
use sluice::datapath::testrun::{Action, Frame, L4, Outcome, TcpFlags, checksum};
use sluice::model::DropReason;

use crate::fixture::*;
use crate::icmp_errors::quoted;

fn at_its_end(node: &Node, family: Family, from: Who, to: Who, l4: L4) -> Frame {
    let mut frame = node.frame(family, from, to, l4);
    frame.ttl = 1;
    frame
}

/// The outcome is "time exceeded" from the node to the sender of `frame`.
#[track_caller]
fn assert_told(outcome: &Outcome, family: Family, frame: &Frame) {
    assert_eq!(outcome.action, Action::Redirect, "{:?}", outcome.events);
    assert_eq!(outcome.mark & abi::MARK_MASK, abi::MARK_ANSWER);
    let drop = outcome.events.iter().find(|event| u32::from(event.kind) == abi::EVENT_DROP).expect("a drop");
    assert_eq!(drop.reason, DropReason::TtlExceeded as u8);
    assert_ne!(u32::from(drop.flags) & abi::EVF_REJECTED, 0);
    let seen = outcome.seen();
    assert_eq!(seen.icmp, if family == Family::IPv4 { (11, 0) } else { (3, 0) });
    assert_eq!((seen.src, seen.dst), (Who::Host.address(family), frame.src));
    assert_eq!((seen.src_mac, seen.dst_mac), (frame.dst_mac, frame.src_mac));
    assert!(seen.ttl > 1);
    // `quoted` and `seen` check the checksums.
    let (source, destination) = quoted(&seen.transport);
    assert_eq!((source.0, destination.0), (frame.src, frame.dst));
}

#[test]
fn traceroute_sees_the_node() {
    let mut node = Node::new();
    for family in FAMILIES {
        // The three kinds of traceroute, and both of the places where this node is the router.
        for l4 in [udp(50000, 33434), syn(80), tcp(50001, 80, TcpFlags::ACK), ping(family, 7)] {
            for (from, to) in [(Who::Alice, Who::Bob), (Who::World, Who::Bob)] {
                let frame = at_its_end(&node, family, from, to, l4.clone());
                let outcome = node.send_from(from, &frame);
                assert_told(&outcome, family, &frame);
                // And again, when the connection is known.
                let outcome = node.send_from(from, &frame);
                assert_told(&outcome, family, &frame);
            }
        }
        let mut frame = at_its_end(&node, family, Who::Alice, Who::Bob, udp(50000, 33435));
        frame.ttl = 2;
        let outcome = node.send_from(Who::Alice, &frame);
        assert_eq!((outcome.action, outcome.seen().ttl), (Action::Redirect, 1));
    }
}

#[test]
fn the_sender_recognizes_what_it_sent_to_a_service() {
    let mut node = Node::new();
    for family in FAMILIES {
        let frontend: IpAddr = if family == Family::IPv4 {
            "10.96.0.10".parse().unwrap()
        } else {
            "fd00:96::10".parse().unwrap()
        };
        let key = abi::ServiceKey { addr: Addr::from(frontend), port: 80, protocol: 6, pad: 0 };
        let id = 1 + family as u32;
        node.kernel.put("sl_services", key, abi::ServiceValue { id, backends: 1, ..Default::default() });
        let backend =
            abi::BackendValue { addr: Who::Bob.address(family).into(), port: 8080, ..Default::default() };
        node.kernel.put("sl_backends", abi::BackendKey { svc_id: id, slot: 0 }, backend);
        let mut frame = at_its_end(&node, family, Who::Alice, Who::World, syn(80));
        frame.dst = frontend;
        for _ in 0..2 {
            assert_told(&node.send_from(Who::Alice, &frame), family, &frame);
        }
    }
}

#[test]
fn what_policy_refuses_is_refused_whatever_its_life() {
    let mut node = Node::new();
    node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[]);
    for family in FAMILIES {
        let frame = at_its_end(&node, family, Who::Alice, Who::Bob, syn(80));
        assert_dropped(&node.send_from(Who::Alice, &frame), DropReason::PolicyDenied);
    }
}

#[test]
fn errors_and_resets_at_their_end_are_not_answered() {
    let mut node = Node::new();
    for family in FAMILIES {
        let offending = node.frame(family, Who::Bob, Who::Alice, udp(1, 2));
        let error = L4::IcmpError {
            kind: if family == Family::IPv4 { 3 } else { 1 },
            code: 1,
            quoted: offending.packet(),
        };
        let frame = at_its_end(&node, family, Who::Alice, Who::Bob, error);
        assert_dropped(&node.send_from(Who::Alice, &frame), DropReason::TtlExceeded);
        let reset = at_its_end(&node, family, Who::Alice, Who::Bob, tcp(50003, 80, TcpFlags::RST));
        assert_dropped(&node.send_from(Who::Alice, &reset), DropReason::TtlExceeded);
    }
}

#[test]
fn a_node_without_an_address_of_the_family_is_silent() {
    let mut node = Node::new();
    (node.config.node_v4, node.config.node_v6) = (Addr::NONE, Addr::NONE);
    node.set_flags(0);
    for family in FAMILIES {
        let frame = at_its_end(&node, family, Who::Alice, Who::Bob, udp(1, 2));
        assert_dropped(&node.send_from(Who::Alice, &frame), DropReason::TtlExceeded);
    }
}

#[test]
fn a_flood_of_dying_packets_is_not_answered_one_by_one() {
    let mut node = Node::new();
    let frame = at_its_end(&node, Family::IPv4, Who::Alice, Who::Bob, udp(1, 2)).bytes();
    let context = sluice::datapath::testrun::Context { ifindex: node.alice, mark: 0, arrived_by: 0 };
    // The second may turn over meanwhile, more than once on a busy machine: the flood goes on until it is noticed.
    let mut sent = 0;
    let silenced = loop {
        let outcome = node.kernel.run(sluice::datapath::testrun::Hook::FromContainer, &frame, context);
        sent += 1;
        if matches!(outcome.action, Action::Drop(_)) {
            break outcome;
        }
        assert!(sent < 200_000, "never silenced");
    };
    assert_dropped(&silenced, DropReason::TtlExceeded);
    assert!(sent > abi::ICMP_PER_SECOND / 2, "silenced after {sent}");
    // Bob's device has an allowance of its own.
    let frame = at_its_end(&node, Family::IPv4, Who::Bob, Who::Alice, udp(1, 2));
    assert_told(&node.send_from(Who::Bob, &frame), Family::IPv4, &frame);
    assert_eq!(checksum(&[&frame.packet()[..20]]), 0);
}
