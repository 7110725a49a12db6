//! What the sender of a refused packet is told.

use std::net::IpAddr;

use sluice::datapath::abi::{self, Addr};
use sluice::datapath::testrun::{Action, Fragment, Hook, L4, Outcome, TcpFlags};
use sluice::model::DropReason;

use crate::fixture::*;
use crate::icmp_errors::{quoted, too_big};

/// Nobody may reach Bob, and Alice may reach nobody but Bob.
fn node() -> Node {
    let mut node = Node::new();
    node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[]);
    let bob = Cell::normal(BOB, 0, abi::PORT_ANY, slot(abi::ACTION_ALLOW, 10, 3));
    node.policy(ALICE_POLICY, [DEFAULT_DENY, 0], &[(Direction::Egress, bob)]);
    node.policy(HOST_POLICY, [DEFAULT_DENY, DEFAULT_DENY], &[]);
    node.set_flags(abi::CFG_REJECT);
    node
}

#[track_caller]
fn assert_answered(outcome: &Outcome, reason: DropReason) {
    assert_eq!(outcome.action, Action::Redirect, "{:?}", outcome.events);
    assert_eq!(outcome.mark & abi::MARK_MASK, abi::MARK_ANSWER);
    let event = outcome.events[0];
    assert_eq!((u32::from(event.kind), event.reason), (abi::EVENT_DROP, reason as u8));
    assert_ne!(u32::from(event.flags) & abi::EVF_REJECTED, 0);
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

#[test]
fn a_refused_syn_is_reset() {
    let mut node = node();
    for family in FAMILIES {
        for to in [Who::Bob, Who::World, Who::Carol, Who::Host] {
            let outcome = node.send(family, Who::Alice, to, syn(80));
            assert_answered(&outcome, DropReason::PolicyDenied);
            let seen = outcome.seen();
            assert_eq!((seen.src, seen.sport), (to.address(family), 80));
            assert_eq!((seen.dst, seen.dport), (Who::Alice.address(family), 40000));
            assert_eq!((seen.src_mac, seen.dst_mac), (ROUTER_MAC, Who::Alice.mac()));
            assert_eq!(seen.tcp_flags, 0x14, "RST, ACK");
            // The frame's own number is 1, and it carries a SYN and 12 bytes.
            assert_eq!((word(&seen.transport, 4), word(&seen.transport, 8)), (0, 1 + 1 + 12));
            assert_eq!(seen.transport.len(), 20);
        }
    }
}

#[test]
fn a_refused_packet_of_a_stream_is_reset_with_the_number_that_the_sender_expects() {
    let mut node = node();
    for family in FAMILIES {
        let outcome = node.send(family, Who::Alice, Who::Bob, tcp(40000, 80, TcpFlags::ACK));
        assert_answered(&outcome, DropReason::PolicyDenied);
        let seen = outcome.seen();
        assert_eq!(seen.tcp_flags, 0x04, "RST");
        assert_eq!(word(&seen.transport, 4), 2, "what the frame acknowledged");
    }
}

#[test]
fn other_protocols_get_an_icmp_error_that_quotes_the_packet() {
    let mut node = node();
    for family in FAMILIES {
        let l4s = [udp(40000, 53), L4::Sctp { sport: 40000, dport: 53 }, ping(family, 53)];
        for l4 in l4s {
            let outcome = node.send(family, Who::Alice, Who::Bob, l4.clone());
            assert_answered(&outcome, DropReason::PolicyDenied);
            let seen = outcome.seen();
            assert_eq!(seen.icmp, if family == Family::IPv4 { (3, 13) } else { (1, 1) });
            assert_eq!((seen.src, seen.dst), (Who::Bob.address(family), Who::Alice.address(family)));
            let (source, destination) = quoted(&seen.transport);
            assert_eq!((source.0, destination.0), (seen.dst, seen.src));
            if !matches!(l4, L4::Icmp { .. }) {
                assert_eq!((source.1, destination.1), (40000, 53));
            }
        }
    }
}

#[test]
fn every_place_answers() {
    let mut node = node();
    node.routes();
    node.set_flags(abi::CFG_REJECT | abi::CFG_HOST_FIREWALL);
    for family in FAMILIES {
        for (from, to) in [
            (Who::World, Who::Bob),
            (Who::World, Who::Host),
            (Who::Host, Who::Bob),
            (Who::Host, Who::World),
            (Who::OtherNode, Who::Host),
        ] {
            let frame = node.frame(family, from, to, syn(80));
            let outcome = node.send(family, from, to, syn(80));
            assert_answered(&outcome, DropReason::PolicyDenied);
            let seen = outcome.seen();
            assert_eq!((seen.src, seen.dst), (to.address(family), from.address(family)));
            assert_eq!((seen.src_mac, seen.dst_mac), (frame.dst_mac, frame.src_mac));
        }
    }
}

#[test]
fn answers_pass_the_programs_on_their_way() {
    let mut node = node();
    for family in FAMILIES {
        let frame = node.frame(family, Who::World, Who::Bob, syn(80)).bytes();
        for hook in [Hook::FromContainer, Hook::ToContainer, Hook::FromNetwork, Hook::ToNetwork] {
            let context = sluice::datapath::testrun::Context {
                ifindex: node.bob,
                mark: abi::MARK_ANSWER,
                arrived_by: 0,
            };
            assert_passed(&node.kernel.run(hook, &frame, context));
        }
    }
}

#[test]
fn some_packets_are_never_answered() {
    let mut node = node();
    for family in FAMILIES {
        let reset = node.send(family, Who::Alice, Who::Bob, tcp(40000, 80, TcpFlags::RST));
        assert_dropped(&reset, DropReason::PolicyDenied);
        let quoted = node.frame(family, Who::Bob, Who::Alice, syn(80));
        let error = node.send(family, Who::Alice, Who::Bob, too_big(family, &quoted));
        assert_dropped(&error, DropReason::PolicyDenied);
        let mut many = node.frame(family, Who::Alice, Who::World, udp(1, 2));
        many.dst =
            if family == Family::IPv4 { "224.0.0.5".parse().unwrap() } else { "ff02::5".parse().unwrap() };
        assert_dropped(&node.send_from(Who::Alice, &many), DropReason::PolicyDenied);
        let mut first = node.frame(family, Who::Alice, Who::Bob, udp(1, 2));
        first.fragment = Some(Fragment { id: 1, offset: 0, more: true });
        node.send_from(Who::Alice, &first);
        first.fragment = Some(Fragment { id: 1, offset: 64, more: false });
        assert_dropped(&node.send_from(Who::Alice, &first), DropReason::PolicyDenied);
        let mut forged = node.frame(family, Who::Carol, Who::Bob, syn(80));
        forged.src_mac = Who::Alice.mac();
        assert_dropped(&node.send_from(Who::Alice, &forged), DropReason::InvalidSourceIp);
    }
}

#[test]
fn silence_is_the_default() {
    let mut node = node();
    node.set_flags(0);
    for family in FAMILIES {
        assert_dropped(&node.send(family, Who::Alice, Who::Bob, syn(80)), DropReason::PolicyDenied);
        assert_dropped(&node.send(family, Who::Alice, Who::Bob, udp(1, 2)), DropReason::PolicyDenied);
    }
}

#[test]
fn a_service_without_backends_answers_in_its_own_name() {
    let mut node = Node::new();
    for family in FAMILIES {
        let frontend: IpAddr = if family == Family::IPv4 {
            "10.96.0.10".parse().unwrap()
        } else {
            "fd00:96::10".parse().unwrap()
        };
        for protocol in [6, 17] {
            let key = abi::ServiceKey { addr: Addr::from(frontend), port: 80, protocol, pad: 0 };
            node.kernel.put("sl_services", key, abi::ServiceValue { id: 1, ..Default::default() });
        }
        let mut frame = node.frame(family, Who::Alice, Who::World, syn(80));
        frame.dst = frontend;
        let outcome = node.send_from(Who::Alice, &frame);
        assert_answered(&outcome, DropReason::NoServiceBackend);
        assert_eq!((outcome.seen().src, outcome.seen().tcp_flags), (frontend, 0x14));
        frame.l4 = udp(40000, 80);
        let outcome = node.send_from(Who::Alice, &frame);
        assert_answered(&outcome, DropReason::NoServiceBackend);
        assert_eq!(outcome.seen().icmp, if family == Family::IPv4 { (3, 3) } else { (1, 4) });
    }
}
