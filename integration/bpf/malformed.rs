//! Packets that are not what they should be, each with its own reason.

use sluice::datapath::testrun::{Context, Hook, L4, Outcome};
use sluice::model::DropReason;

use crate::fixture::*;

fn send(node: &mut Node, bytes: &[u8]) -> Outcome {
    let ifindex = node.alice;
    node.kernel.run(Hook::FromContainer, bytes, Context { ifindex, mark: 0, arrived_by: 0 })
}

#[test]
fn every_truncation_of_a_packet_is_dropped() {
    let mut node = Node::new();
    for family in FAMILIES {
        for l4 in [syn(80), udp(1, 2), ping(family, 1), L4::Sctp { sport: 1, dport: 2 }] {
            let mut frame = node.frame(family, Who::Alice, Who::Bob, l4);
            frame.payload.clear();
            let bytes = frame.bytes();
            assert_delivered(&send(&mut node, &bytes), Who::Bob);
            // BPF_PROG_TEST_RUN itself refuses less than an IP header.
            let least = if family == Family::IPv4 { 14 + 20 } else { 14 + 40 };
            for length in least..bytes.len() {
                let outcome = send(&mut node, &bytes[..length]);
                assert_dropped(&outcome, DropReason::InvalidPacket);
            }
        }
    }
}

#[test]
fn a_transport_header_that_the_ip_length_cuts_off_is_dropped() {
    let mut node = Node::new();
    for family in FAMILIES {
        let raw = L4::Raw { protocol: 6, bytes: vec![0; 10] };
        let mut frame = node.frame(family, Who::Alice, Who::Bob, raw);
        frame.payload.clear();
        assert_dropped(&send(&mut node, &frame.bytes()), DropReason::CtTruncated);
    }
}

#[test]
fn ethernet_padding_is_not_a_transport_header() {
    let mut node = Node::new();
    for family in FAMILIES {
        let raw = L4::Raw { protocol: 17, bytes: vec![0; 4] };
        let mut frame = node.frame(family, Who::Alice, Who::Bob, raw);
        frame.payload.clear();
        let mut bytes = frame.bytes();
        bytes.extend([0; 40]);
        assert_dropped(&send(&mut node, &bytes), DropReason::CtTruncated);
    }
}

#[test]
fn wrong_versions_and_header_lengths_are_dropped() {
    let mut node = Node::new();
    let good = node.frame(Family::IPv4, Who::Alice, Who::Bob, syn(80)).bytes();
    for first in [0x65, 0x44, 0x4f] {
        let mut bytes = good.clone();
        bytes[14] = first;
        let outcome = send(&mut node, &bytes);
        assert!(matches!(outcome.action, sluice::datapath::testrun::Action::Drop(_)), "{first:#x}");
    }
    let mut bytes = node.frame(Family::IPv6, Who::Alice, Who::Bob, syn(80)).bytes();
    bytes[14] = 0x45;
    assert_dropped(&send(&mut node, &bytes), DropReason::InvalidPacket);
}

#[test]
fn vlan_tags_and_other_protocols_of_pods_are_dropped() {
    let mut node = Node::new();
    let good = node.frame(Family::IPv4, Who::Alice, Who::Bob, syn(80)).bytes();
    for tag in [[0x81, 0x00], [0x88, 0xa8]] {
        let tagged = [&good[..12], &tag, &[0, 5], &good[12..]].concat();
        assert_dropped(&send(&mut node, &tagged), DropReason::VlanFiltered);
    }
    let mut lldp = good;
    lldp[12..14].copy_from_slice(&[0x88, 0xcc]);
    assert_dropped(&send(&mut node, &lldp), DropReason::UnsupportedL3);
}

#[test]
fn ipv4_options_are_skipped_but_source_routes_are_dropped() {
    let mut node = Node::new();
    let mut frame = node.frame(Family::IPv4, Who::Alice, Who::Bob, syn(80));
    frame.options = vec![1, 1, 148, 4, 0, 0, 0, 0]; // two no-ops, router alert, end
    let outcome = send(&mut node, &frame.bytes());
    assert_delivered(&outcome, Who::Bob);
    for kind in [131, 137] {
        frame.options = vec![1, kind, 7, 4, 10, 0, 0, 1];
        assert_dropped(&send(&mut node, &frame.bytes()), DropReason::InvalidPacket);
    }
    frame.options = vec![148, 0, 0, 0];
    assert_dropped(&send(&mut node, &frame.bytes()), DropReason::InvalidPacket);
}

#[test]
fn extension_headers_are_walked_and_the_port_behind_them_counts() {
    let mut node = Node::new();
    node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[(Direction::Ingress, Cell::allow_tcp(ALICE, 80))]);
    let options = || vec![0, 0, 1, 4, 0, 0, 0, 0];
    let chains: [Vec<(u8, Vec<u8>)>; 4] = [
        vec![(60, options())],
        vec![(0, options()), (60, options())],
        vec![(43, vec![0, 0, 2, 0, 0, 0, 0, 0])],
        vec![(60, options()), (51, vec![0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1])],
    ];
    for chain in chains {
        for (port, allowed) in [(80, true), (81, false)] {
            let mut frame = node.frame(Family::IPv6, Who::Alice, Who::Bob, syn(port));
            frame.extensions = chain.clone();
            let outcome = send(&mut node, &frame.bytes());
            if allowed {
                assert_eq!(outcome.action, sluice::datapath::testrun::Action::Redirect);
            } else {
                assert_dropped(&outcome, DropReason::PolicyDenied);
            }
        }
    }
}

#[test]
fn bad_chains_of_extension_headers_are_dropped() {
    let mut node = Node::new();
    let options = || vec![0, 0, 1, 4, 0, 0, 0, 0];
    let chains: [Vec<(u8, Vec<u8>)>; 4] = [
        // A route that goes on after us.
        vec![(43, vec![0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])],
        // Hop-by-hop options that are not first.
        vec![(60, options()), (0, options())],
        // Too many.
        (0..9).map(|_| (60, options())).collect(),
        // Longer than the packet.
        vec![(60, vec![0, 200, 1, 4, 0, 0, 0, 0])],
    ];
    for chain in chains {
        let mut frame = node.frame(Family::IPv6, Who::Alice, Who::Bob, syn(80));
        frame.extensions = chain.clone();
        let outcome = send(&mut node, &frame.bytes());
        let reason =
            if chain[0].1[1] == 200 { DropReason::CtTruncated } else { DropReason::InvalidExtensionHeader };
        assert_dropped(&outcome, reason);
    }
}

#[test]
fn ipv4_mapped_addresses_do_not_exist_on_the_wire() {
    let mut node = Node::new();
    let mut frame = node.frame(Family::IPv6, Who::Alice, Who::Bob, syn(80));
    frame.src = "::ffff:10.244.1.10".parse().unwrap();
    assert_dropped(&send(&mut node, &frame.bytes()), DropReason::InvalidPacket);
    let mut frame = node.frame(Family::IPv6, Who::Alice, Who::Bob, syn(80));
    frame.dst = "::ffff:10.244.1.11".parse().unwrap();
    assert_dropped(&send(&mut node, &frame.bytes()), DropReason::InvalidPacket);
}

#[test]
fn the_icmp_of_the_other_family_is_dropped() {
    let mut node = Node::new();
    for (family, protocol) in [(Family::IPv4, 58), (Family::IPv6, 1)] {
        let frame = node.frame(family, Who::Alice, Who::Bob, L4::Raw { protocol, bytes: vec![0; 16] });
        assert_dropped(&send(&mut node, &frame.bytes()), DropReason::UnknownL4);
    }
}

#[test]
fn a_source_that_is_not_the_pods_own_is_dropped() {
    let mut node = Node::new();
    for family in FAMILIES {
        for who in [Who::Bob, Who::Carol, Who::Host, Who::OtherNode, Who::World] {
            let mut frame = node.frame(family, who, Who::Bob, syn(80));
            frame.src_mac = Who::Alice.mac();
            assert_dropped(&send(&mut node, &frame.bytes()), DropReason::InvalidSourceIp);
        }
    }
}

#[test]
fn martians_from_the_network_are_dropped() {
    let mut node = Node::new();
    for (source, family) in [
        ("127.0.0.1", Family::IPv4),
        ("224.0.0.1", Family::IPv4),
        ("255.255.255.255", Family::IPv4),
        ("::1", Family::IPv6),
        ("ff02::1", Family::IPv6),
        ("172.18.0.2", Family::IPv4),
        ("10.244.1.10", Family::IPv4),
    ] {
        let mut frame = node.frame(family, Who::World, Who::Bob, syn(80));
        frame.src = source.parse().unwrap();
        assert_dropped(&node.send_from(Who::World, &frame), DropReason::InvalidSourceIp);
    }
}
