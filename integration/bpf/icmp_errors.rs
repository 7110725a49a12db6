//! ICMP errors belong to the connection that they quote.

use std::net::IpAddr;

use sluice::datapath::abi::{self, Addr};
use sluice::datapath::testrun::{Frame, L4, TcpFlags, checksum};
use sluice::model::DropReason;

use crate::fixture::*;

/// "Fragmentation needed" or "packet too big": what path MTU discovery lives on.
pub fn too_big(family: Family, quoted: &Frame) -> L4 {
    let (kind, code) = if family == Family::IPv4 { (3, 4) } else { (2, 0) };
    L4::IcmpError { kind, code, quoted: quoted.packet() }
}

/// Addresses and ports of a quoted packet; checks the quoted IPv4 header's checksum.
pub fn quoted(transport: &[u8]) -> ((IpAddr, u16), (IpAddr, u16)) {
    let ip = &transport[8..];
    let (src, dst, l4): (IpAddr, IpAddr, usize) = if ip[0] >> 4 == 4 {
        assert_eq!(checksum(&[&ip[..20]]), 0, "quoted header checksum");
        let quad = |at: usize| -> [u8; 4] { ip[at..at + 4].try_into().unwrap() };
        (quad(12).into(), quad(16).into(), 20)
    } else {
        let wide = |at: usize| -> [u8; 16] { ip[at..at + 16].try_into().unwrap() };
        (wide(8).into(), wide(24).into(), 40)
    };
    let word = |at: usize| u16::from_be_bytes([ip[at], ip[at + 1]]);
    ((src, word(l4)), (dst, word(l4 + 2)))
}

#[test]
fn errors_about_an_allowed_connection_pass_and_others_do_not() {
    let mut node = Node::new();
    node.policy(ALICE_POLICY, [0, DEFAULT_DENY], &[]);
    for family in FAMILIES {
        let offending = node.frame(family, Who::Alice, Who::Bob, syn(80));
        let error = node.send(family, Who::Bob, Who::Alice, too_big(family, &offending));
        assert_dropped(&error, DropReason::PolicyDenied);
        node.send_from(Who::Alice, &offending);
        let error = node.send(family, Who::Bob, Who::Alice, too_big(family, &offending));
        assert_delivered(&error, Who::Alice);
        // From a router on the way, and from the node itself.
        let error = node.send(family, Who::World, Who::Alice, too_big(family, &offending));
        assert_delivered(&error, Who::Alice);
        assert_passed(&node.send(family, Who::Host, Who::Alice, too_big(family, &offending)));
        // About another port.
        let other = node.frame(family, Who::Alice, Who::Bob, syn(81));
        let error = node.send(family, Who::Bob, Who::Alice, too_big(family, &other));
        assert_dropped(&error, DropReason::PolicyDenied);
        // To somebody who did not send the packet.
        node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[]);
        let error = node.send(family, Who::World, Who::Bob, too_big(family, &offending));
        assert_dropped(&error, DropReason::PolicyDenied);
        node.policy(BOB_POLICY, [0, 0], &[]);
    }
}

#[test]
fn errors_about_a_connection_that_policy_ended_do_not_pass() {
    let mut node = Node::new();
    node.policy(ALICE_POLICY, [0, DEFAULT_DENY], &[]);
    for family in FAMILIES {
        let offending = node.frame(family, Who::Alice, Who::Bob, syn(80));
        node.send_from(Who::Alice, &offending);
        node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[]);
        assert_dropped(&node.send_from(Who::Alice, &offending), DropReason::PolicyDenied);
        let error = node.send(family, Who::Bob, Who::Alice, too_big(family, &offending));
        assert_dropped(&error, DropReason::PolicyDenied);
        node.policy(BOB_POLICY, [0, 0], &[]);
    }
}

#[test]
fn an_error_cannot_be_sent_with_a_forged_source() {
    let mut node = Node::new();
    for family in FAMILIES {
        let offending = node.frame(family, Who::Alice, Who::Bob, syn(80));
        node.send_from(Who::Alice, &offending);
        let mut frame = node.frame(family, Who::World, Who::Alice, too_big(family, &offending));
        frame.src_mac = Who::Bob.mac();
        assert_dropped(&node.send_from(Who::Bob, &frame), DropReason::InvalidSourceIp);
    }
}

#[test]
fn errors_about_a_translated_connection_are_translated_with_what_they_quote() {
    let mut node = Node::new();
    node.policy(ALICE_POLICY, [0, DEFAULT_DENY], &[]);
    for family in FAMILIES {
        let frontend: IpAddr = if family == Family::IPv4 {
            "10.96.0.10".parse().unwrap()
        } else {
            "fd00:96::10".parse().unwrap()
        };
        let service = abi::ServiceValue { id: 1, backends: 1, flags: 0, affinity_secs: 0 };
        for protocol in [6, 17] {
            let key = abi::ServiceKey { addr: frontend.into(), port: 80, protocol, pad: 0 };
            node.kernel.put("sl_services", key, service);
        }
        let backend = abi::BackendValue {
            addr: Addr::from(Who::Bob.address(family)),
            port: 8080,
            pad: 0,
            backend_id: 1,
        };
        node.kernel.put("sl_backends", abi::BackendKey { svc_id: 1, slot: 0 }, backend);
        for l4 in [tcp(40000, 80, TcpFlags::SYN), udp(40000, 80)] {
            let mut frame = node.frame(family, Who::Alice, Who::Bob, l4.clone());
            frame.dst = frontend;
            node.send_from(Who::Alice, &frame);
            // The backend complains about what it got.
            let mut arrived = frame.clone();
            arrived.dst = Who::Bob.address(family);
            arrived.l4 = match l4 {
                L4::Tcp { flags, .. } => tcp(40000, 8080, flags),
                _ => udp(40000, 8080),
            };
            let error = node.send(family, Who::Bob, Who::Alice, too_big(family, &arrived));
            assert_delivered(&error, Who::Alice);
            let seen = error.seen();
            assert_eq!(seen.src, frontend);
            let client = (Who::Alice.address(family), 40000);
            assert_eq!(quoted(&seen.transport), (client, (frontend, 80)));
            // The client complains about the answer that it saw.
            let mut answer = node.frame(family, Who::Bob, Who::Alice, udp(80, 40000));
            if let L4::Tcp { .. } = frame.l4 {
                answer.l4 = tcp(80, 40000, TcpFlags::ACK);
            }
            answer.src = frontend;
            let mut complaint = node.frame(family, Who::Alice, Who::Bob, too_big(family, &answer));
            complaint.dst = frontend;
            let error = node.send_from(Who::Alice, &complaint);
            assert_delivered(&error, Who::Bob);
            let seen = error.seen();
            assert_eq!(seen.dst, Who::Bob.address(family));
            assert_eq!(quoted(&seen.transport), ((Who::Bob.address(family), 8080), client));
        }
    }
}
