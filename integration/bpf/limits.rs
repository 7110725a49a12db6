//! What is told about drops when there are too many: every different one, a few of the same, and the number of
//! those that were not.

use std::time::{Duration, Instant};

use sluice::datapath::abi;
use sluice::datapath::testrun::{Context, Hook};
use sluice::model::DropReason;

use crate::fixture::*;

const REPEATS: u32 = 10;
const PER_DEVICE: u32 = 400;
const CAUSES: [u32; 5] =
    [abi::LOST_DROP, abi::LOST_VERDICT, abi::LOST_TRACE, abi::LOST_REPEATED, abi::LOST_LIMIT];

/// Bob may be reached by nobody, and drops are limited.
fn node() -> Node {
    let mut node = Node::new();
    node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[]);
    (node.config.drop_repeats, node.config.drop_events) = (REPEATS, PER_DEVICE);
    node.set_flags(0);
    node
}

fn untold(node: &Node, cause: u32) -> u64 {
    node.kernel.per_cpu::<u64>("sl_event_lost", cause).iter().sum()
}

/// Packets that the metrics say were dropped by policy.
fn dropped(node: &Node) -> u64 {
    let index = abi::DIR_INGRESS * abi::MAX_METRIC + DropReason::PolicyDenied as u32;
    node.kernel.per_cpu::<abi::Counter>("sl_metrics", index).iter().map(|count| count.packets).sum()
}

#[test]
fn a_flood_of_one_drop_is_told_a_few_times_a_second_and_counted_whole() {
    let mut node = node();
    let frame = node.frame(Family::IPv4, Who::Alice, Who::Bob, udp(40000, 53)).bytes();
    let context = Context { ifindex: node.alice, mark: 0, arrived_by: 0 };
    let (mut sent, mut told, mut repeats) = (0_u64, 0_u64, 0_u64);
    let deadline = Instant::now() + Duration::from_secs(60);
    // Until a later second has told how many of an earlier one were not.
    while repeats == 0 {
        assert!(Instant::now() < deadline, "{sent} sent, {told} told, none of them says how many were not");
        let outcome = node.kernel.run(Hook::FromContainer, &frame, context);
        sent += 1;
        told += outcome.events.len() as u64;
        repeats += outcome.events.iter().map(|event| u64::from(event.repeats)).sum::<u64>();
    }
    assert_eq!(dropped(&node), sent, "counters know every packet");
    assert_eq!(told + untold(&node, abi::LOST_REPEATED), sent, "what was not told is counted");
    assert_eq!(repeats, untold(&node, abi::LOST_REPEATED), "and told with the next");
    for cause in CAUSES.into_iter().filter(|cause| *cause != abi::LOST_REPEATED) {
        assert_eq!(untold(&node, cause), 0);
    }
}

#[test]
fn a_flood_hides_no_other_drop() {
    let mut node = node();
    let flood = node.frame(Family::IPv4, Who::Alice, Who::Bob, udp(40000, 53));
    for _ in 0..100 {
        node.send_from(Who::Alice, &flood);
    }
    for family in FAMILIES {
        // Other ports, protocols, addresses, reasons, senders.
        for l4 in [udp(40000, 54), syn(53), ping(family, 1)] {
            assert_dropped(&node.send(family, Who::Alice, Who::Bob, l4), DropReason::PolicyDenied);
        }
        assert_dropped(&node.send(family, Who::World, Who::Bob, udp(40000, 53)), DropReason::PolicyDenied);
        let mut forged = node.frame(family, Who::Carol, Who::Bob, udp(40000, 53));
        forged.src_mac = Who::Alice.mac();
        assert_dropped(&node.send_from(Who::Alice, &forged), DropReason::InvalidSourceIp);
    }
}

#[test]
fn a_scan_uses_up_the_allowance_of_its_own_device_only() {
    let mut node = node();
    let mut told = 0;
    let mut port = 0_u16;
    // The second may turn over meanwhile: the scan goes on until it is cut.
    while untold(&node, abi::LOST_LIMIT) == 0 {
        port = port.checked_add(1).expect("cut before all ports are scanned");
        told += node.send(Family::IPv4, Who::Alice, Who::Bob, udp(40000, port)).events.len();
    }
    assert!(told >= PER_DEVICE as usize, "cut after {told}");
    assert_eq!(dropped(&node), u64::from(port));
    assert_dropped(&node.send(Family::IPv4, Who::World, Who::Bob, udp(40000, 53)), DropReason::PolicyDenied);
    assert_dropped(
        &node.send_from(Who::Bob, &node.frame(Family::IPv4, Who::Carol, Who::Alice, udp(1, 2))),
        DropReason::InvalidSourceIp,
    );
}

#[test]
fn traces_leave_room_for_drops() {
    let mut node = node();
    (node.config.drop_repeats, node.config.trace_sample) = (0, 1);
    node.set_flags(abi::CFG_TRACE);
    let mut passing = node.frame(Family::IPv4, Who::Bob, Who::Alice, udp(1, 2));
    passing.dst_mac = Who::Bob.mac();
    // Every run is traced, and nobody reads; the frame may go round 64 times before its life ends.
    node.config.router_mac = Who::Bob.mac();
    node.set_flags(abi::CFG_TRACE);
    passing.ttl = 255;
    let context = Context { ifindex: node.bob, mark: 0, arrived_by: 0 };
    for _ in 0..200 {
        node.kernel.time(Hook::FromContainer, &passing.bytes(), context, 250);
    }
    assert!(untold(&node, abi::LOST_TRACE) > 0, "the ring is smaller than 50,000 events");
    let drop = node.frame(Family::IPv4, Who::Alice, Who::Bob, udp(40000, 53));
    node.kernel.time(
        Hook::FromContainer,
        &drop.bytes(),
        Context { ifindex: node.alice, mark: 0, arrived_by: 0 },
        250,
    );
    assert_eq!((dropped(&node), untold(&node, abi::LOST_DROP)), (250, 0));
}

#[test]
fn a_drop_before_the_addresses_are_read_does_not_tell_those_of_the_packet_before() {
    let mut node = node();
    assert_dropped(&node.send(Family::IPv4, Who::Alice, Who::Bob, udp(40000, 53)), DropReason::PolicyDenied);
    let mut frame = node.frame(Family::IPv4, Who::Alice, Who::Bob, udp(40000, 53)).bytes();
    frame[12..14].copy_from_slice(&[0x81, 0x00]);
    let outcome =
        node.kernel.run(Hook::FromContainer, &frame, Context { ifindex: node.alice, mark: 0, arrived_by: 0 });
    assert_dropped(&outcome, DropReason::VlanFiltered);
    let event = outcome.events[0];
    assert_eq!((event.saddr, event.daddr, event.dport), (abi::Addr::NONE, abi::Addr::NONE, 0));
}
