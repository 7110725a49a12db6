//! Fragments are judged like the datagram that they are part of.

use sluice::datapath::abi;
use sluice::datapath::testrun::{Fragment, Frame, L4};
use sluice::model::DropReason;

use crate::fixture::*;

fn piece(node: &Node, family: Family, l4: L4, offset: u16, more: bool) -> Frame {
    let mut frame = node.frame(family, Who::Alice, Who::Bob, l4);
    frame.payload = vec![0xab; 64];
    frame.fragment = Some(Fragment { id: 0x1234, offset, more });
    frame
}

/// Bob lets Alice in on UDP 53 only.
fn server() -> Node {
    let mut node = Node::new();
    let dns = Cell::normal(ALICE, 17, abi::PORT_EXACT | 53, slot(abi::ACTION_ALLOW, 10, 8));
    node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[(Direction::Ingress, dns)]);
    node
}

#[test]
fn later_fragments_follow_the_first() {
    for family in FAMILIES {
        let mut node = server();
        for (port, allowed) in [(53, true), (54, false)] {
            for (offset, more) in [(0, true), (72, true), (144, false)] {
                let frame = piece(&node, family, udp(5000, port), offset, more);
                let outcome = node.send_from(Who::Alice, &frame);
                if allowed {
                    assert_delivered(&outcome, Who::Bob);
                } else {
                    assert_dropped(&outcome, DropReason::PolicyDenied);
                    assert_eq!(outcome.events[0].dport, 54);
                }
            }
        }
    }
}

#[test]
fn without_the_first_fragment_the_others_are_dropped() {
    for family in FAMILIES {
        let mut node = server();
        let frame = piece(&node, family, udp(5000, 53), 72, false);
        assert_dropped(&node.send_from(Who::Alice, &frame), DropReason::FragNoFirst);
    }
}

#[test]
fn fragments_that_could_overwrite_a_judged_header_are_dropped() {
    for family in FAMILIES {
        let mut node = Node::new();
        let frame = piece(&node, family, syn(80), 0, true);
        assert_delivered(&node.send_from(Who::Alice, &frame), Who::Bob);
        for offset in [8, 16] {
            let frame = piece(&node, family, syn(80), offset, false);
            assert_dropped(&node.send_from(Who::Alice, &frame), DropReason::FragOverlap);
        }
    }
}

#[test]
fn first_fragments_too_small_for_the_header_are_dropped() {
    for family in FAMILIES {
        let mut node = Node::new();
        let tiny = L4::Raw { protocol: 6, bytes: vec![0x9c, 0x40, 0, 80, 0, 0, 0, 0] };
        let mut frame = piece(&node, family, tiny, 0, true);
        frame.payload.clear();
        assert_dropped(&node.send_from(Who::Alice, &frame), DropReason::FragOverlap);
    }
}

#[test]
fn echo_fragments_are_part_of_the_echo() {
    for family in FAMILIES {
        let mut node = Node::new();
        node.policy(ALICE_POLICY, [0, DEFAULT_DENY], &[]);
        for (offset, more) in [(0, true), (72, false)] {
            let frame = piece(&node, family, ping(family, 9), offset, more);
            assert_delivered(&node.send_from(Who::Alice, &frame), Who::Bob);
        }
        for (offset, more) in [(0, true), (72, false)] {
            let mut frame = piece(&node, family, pong(family, 9), offset, more);
            (frame.src, frame.dst) = (frame.dst, frame.src);
            frame.src_mac = Who::Bob.mac();
            assert_delivered(&node.send_from(Who::Bob, &frame), Who::Alice);
        }
    }
}

#[test]
fn an_atomic_fragment_is_a_whole_packet() {
    let mut node = server();
    let frame = piece(&node, Family::IPv6, udp(5000, 53), 0, false);
    assert_delivered(&node.send_from(Who::Alice, &frame), Who::Bob);
}

#[test]
fn headers_behind_the_fragment_header_are_refused() {
    let mut node = server();
    let mut frame = node.frame(Family::IPv6, Who::Alice, Who::Bob, udp(5000, 53));
    frame.extensions = vec![(44, vec![0, 0, 0, 1, 0, 0, 0, 9]), (60, vec![0, 0, 1, 4, 0, 0, 0, 0])];
    assert_dropped(&node.send_from(Who::Alice, &frame), DropReason::InvalidExtensionHeader);
}
