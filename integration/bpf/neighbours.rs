//! ARP and neighbour discovery of pods.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sluice::datapath::testrun::{Action, Context, Frame, Hook, L4, Outcome};
use sluice::model::DropReason;

use crate::fixture::*;

fn arp(mac: [u8; 6], operation: u16, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut bytes = [[0xff; 6], mac].concat();
    bytes.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4]);
    bytes.extend(operation.to_be_bytes());
    bytes.extend(mac);
    bytes.extend(sender.octets());
    bytes.extend([0; 6]);
    bytes.extend(target.octets());
    bytes
}

fn send(node: &mut Node, bytes: &[u8]) -> Outcome {
    let ifindex = node.alice;
    node.kernel.run(Hook::FromContainer, bytes, Context { ifindex, mark: 0, arrived_by: 0 })
}

fn v4(who: Who) -> Ipv4Addr {
    match who.address(Family::IPv4) {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(_) => unreachable!(),
    }
}

const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

#[test]
fn a_pod_that_asks_is_told_the_routers_mac() {
    let mut node = Node::new();
    let outcome = send(&mut node, &arp(Who::Alice.mac(), 1, v4(Who::Alice), GATEWAY));
    assert_eq!(outcome.action, Action::Redirect);
    let mut expected = arp(ROUTER_MAC, 2, GATEWAY, v4(Who::Alice));
    expected[..6].copy_from_slice(&Who::Alice.mac());
    expected[32..38].copy_from_slice(&Who::Alice.mac());
    assert_eq!(outcome.frame, expected);
}

#[test]
fn a_pod_cannot_claim_an_address_that_is_not_its_own_by_arp() {
    let mut node = Node::new();
    for operation in [1, 2] {
        let claim = arp(Who::Alice.mac(), operation, v4(Who::Bob), v4(Who::Bob));
        assert_dropped(&send(&mut node, &claim), DropReason::InvalidSourceIp);
        let claim = arp(Who::Alice.mac(), operation, GATEWAY, v4(Who::Alice));
        assert_dropped(&send(&mut node, &claim), DropReason::InvalidSourceIp);
        let strange_mac = arp([2, 7, 7, 7, 7, 7], operation, v4(Who::Alice), GATEWAY);
        assert_dropped(&send(&mut node, &strange_mac), DropReason::InvalidSourceMac);
    }
    // Announcing its own address, and probing, are fine.
    assert_passed(&send(&mut node, &arp(Who::Alice.mac(), 1, v4(Who::Alice), v4(Who::Alice))));
    assert_passed(&send(&mut node, &arp(Who::Alice.mac(), 1, Ipv4Addr::UNSPECIFIED, v4(Who::Alice))));
}

fn nd(kind: u8, source: Ipv6Addr, target: Ipv6Addr, option: Option<u8>) -> Frame {
    let mut payload = target.octets().to_vec();
    if let Some(option) = option {
        payload.extend([option, 1]);
        payload.extend(Who::Alice.mac());
    }
    let icmp = L4::Icmp { kind, code: 0, id: 0 };
    let mut frame = Frame::new(source.into(), "ff02::1:ff00:1".parse().unwrap(), icmp);
    frame.ttl = 255;
    frame.payload = payload;
    frame.src_mac = Who::Alice.mac();
    frame
}

fn v6(who: Who) -> Ipv6Addr {
    match who.address(Family::IPv6) {
        IpAddr::V6(v6) => v6,
        IpAddr::V4(_) => unreachable!(),
    }
}

#[test]
fn a_pod_that_solicits_is_told_the_routers_mac() {
    let mut node = Node::new();
    let gateway: Ipv6Addr = "fe80::1".parse().unwrap();
    for source in [v6(Who::Alice), "fe80::abcd".parse().unwrap()] {
        for option in [Some(1), None] {
            let outcome = send(&mut node, &nd(135, source, gateway, option).bytes());
            assert_eq!(outcome.action, Action::Redirect);
            let seen = outcome.seen();
            assert_eq!(seen.icmp, (136, 0));
            assert_eq!((seen.src, seen.dst, seen.ttl), (gateway.into(), source.into(), 255));
            assert_eq!((seen.src_mac, seen.dst_mac), (ROUTER_MAC, Who::Alice.mac()));
            assert_eq!(seen.transport[8..24], gateway.octets());
            if option.is_some() {
                assert_eq!(seen.transport[24..26], [2, 1]);
                assert_eq!(seen.transport[26..32], ROUTER_MAC);
            }
        }
    }
}

#[test]
fn a_pod_cannot_claim_an_address_that_is_not_its_own_by_neighbour_discovery() {
    let mut node = Node::new();
    let gateway: Ipv6Addr = "fe80::1".parse().unwrap();
    for (source, target) in [
        (v6(Who::Bob), v6(Who::Bob)),
        (v6(Who::Alice), v6(Who::Bob)),
        (v6(Who::Alice), gateway),
        (gateway, gateway),
    ] {
        let claim = nd(136, source, target, Some(2)).bytes();
        assert_dropped(&send(&mut node, &claim), DropReason::InvalidSourceIp);
    }
    let own = nd(136, v6(Who::Alice), v6(Who::Alice), Some(2)).bytes();
    assert_passed(&send(&mut node, &own));
    let solicit = nd(135, v6(Who::Bob), gateway, Some(1)).bytes();
    assert_dropped(&send(&mut node, &solicit), DropReason::InvalidSourceIp);
}

#[test]
fn a_pod_is_no_router_and_neighbours_are_near() {
    let mut node = Node::new();
    for kind in [133, 134, 137] {
        let frame = nd(kind, v6(Who::Alice), v6(Who::Alice), None).bytes();
        assert_dropped(&send(&mut node, &frame), DropReason::InvalidPacket);
    }
    let mut far = nd(135, v6(Who::Alice), v6(Who::Bob), Some(1));
    far.ttl = 64;
    assert_dropped(&send(&mut node, &far.bytes()), DropReason::InvalidPacket);
}

#[test]
fn duplicate_address_detection_finds_no_duplicate() {
    let mut node = Node::new();
    let probe = nd(135, Ipv6Addr::UNSPECIFIED, v6(Who::Alice), None).bytes();
    assert_passed(&send(&mut node, &probe));
}
