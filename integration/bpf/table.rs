//! The table of connections when its sets are full, and when several CPUs want one of them.

use std::sync::atomic::{AtomicU64, Ordering};

use sluice::datapath::abi;
use sluice::datapath::testrun::{Context, Hook, L4, Seen, TcpFlags};
use sluice::model::DropReason;

use crate::fixture::*;

const TC_ACT_OK: u32 = 0;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;

/// Alice may call Bob at port 80 and the world at port 443.
fn node(sets: u32) -> Node {
    let mut node = Node::with_sets(sets);
    let world = Cell::normal(abi::ID_WORLD, 6, abi::PORT_EXACT | 443, slot(abi::ACTION_ALLOW, 10, 9));
    let calls = [(Direction::Egress, Cell::allow_tcp(BOB, 80)), (Direction::Egress, world)];
    node.policy(ALICE_POLICY, [DEFAULT_DENY, DEFAULT_DENY], &calls);
    node.policy(
        BOB_POLICY,
        [DEFAULT_DENY, DEFAULT_DENY],
        &[(Direction::Ingress, Cell::allow_tcp(ALICE, 80))],
    );
    node
}

fn segment(sport: u16, dport: u16, flags: TcpFlags) -> L4 {
    L4::Tcp { sport, dport, flags }
}

/// More connections than have a place: each packet is judged by its own connection or anew, never by another's entry. One
/// that opens a flow and does not get at the set, because its writer has been stopped, is dropped for that and for nothing else.
#[test]
fn a_set_that_every_cpu_wants_gives_nobody_the_entry_of_another() {
    const FLOWS: u16 = 40;
    const ROUNDS: usize = 400;
    let mut node = node(1);
    let context = Context { ifindex: node.alice, ..Context::default() };
    let mut cases = Vec::new();
    for family in FAMILIES {
        for flow in 0..FLOWS {
            for flags in [TcpFlags::SYN, TcpFlags::ACK, TcpFlags::FIN_ACK] {
                let mut case = |to, dport, action| {
                    let frame = node.frame(family, Who::Alice, to, segment(40000 + flow, dport, flags));
                    cases.push((frame.bytes(), action));
                };
                case(Who::Bob, 80, TC_ACT_REDIRECT);
                case(Who::World, 443, TC_ACT_OK);
                case(Who::Bob, 81, TC_ACT_SHOT);
            }
        }
    }
    let gave_up = AtomicU64::new(0);
    let program = node.kernel.shared(Hook::FromContainer);
    std::thread::scope(|scope| {
        for stride in [1, 7, 11, 13] {
            let (cases, gave_up) = (&cases, &gave_up);
            scope.spawn(move || {
                for n in 0..ROUNDS * cases.len() / 16 {
                    let (frame, action) = &cases[n * stride % cases.len()];
                    let (seen, after) = program.run(frame, context);
                    if seen == TC_ACT_SHOT && *action != TC_ACT_SHOT {
                        gave_up.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    assert_eq!(seen, *action, "{:?}", Seen::parse(frame));
                    if seen == TC_ACT_REDIRECT {
                        assert_eq!(after[..6], Who::Bob.mac());
                    }
                }
            });
        }
    });
    let counted: u64 = [abi::DIR_EGRESS, abi::DIR_INGRESS]
        .map(|direction| direction * abi::MAX_METRIC + DropReason::CtFull as u32)
        .into_iter()
        .flat_map(|index| node.kernel.per_cpu::<abi::Counter>("sl_metrics", index))
        .map(|counter| counter.packets)
        .sum();
    assert_eq!(gave_up.into_inner(), counted);
    let known = node.kernel.connections();
    assert_eq!(known.len(), abi::CT_WAYS as usize);
    let distinct: std::collections::BTreeSet<_> = known.iter().map(|kept| kept.key).collect();
    assert_eq!(distinct.len(), known.len(), "a connection has one place");
}

/// The kernel's hash would forget whoever was quiet the longest.
#[test]
fn a_flood_of_syns_costs_no_established_connection_its_place() {
    let mut node = node(1);
    for family in FAMILIES {
        node.kernel.forget_connections();
        for port in 0..abi::CT_WAYS as u16 - 1 {
            node.send(family, Who::Alice, Who::Bob, segment(30000 + port, 80, TcpFlags::SYN));
            node.send(family, Who::Bob, Who::Alice, segment(80, 30000 + port, TcpFlags::SYN_ACK));
        }
        for port in 0..200 {
            assert_delivered(
                &node.send(family, Who::Alice, Who::Bob, segment(40000 + port, 80, TcpFlags::SYN)),
                Who::Bob,
            );
        }
        // What Bob says is an answer, for as long as the connection is known.
        for port in 0..abi::CT_WAYS as u16 - 1 {
            let answer = node.send(family, Who::Bob, Who::Alice, segment(80, 30000 + port, TcpFlags::ACK));
            assert_delivered(&answer, Who::Alice);
        }
    }
}

#[test]
fn a_closed_connection_gives_its_place_up_first() {
    let mut node = node(1);
    let ports = 30000..30000 + abi::CT_WAYS as u16;
    for port in ports.clone() {
        node.send(Family::IPv4, Who::Alice, Who::Bob, segment(port, 80, TcpFlags::SYN));
        node.send(Family::IPv4, Who::Bob, Who::Alice, segment(80, port, TcpFlags::SYN_ACK));
    }
    node.send(Family::IPv4, Who::Bob, Who::Alice, segment(80, 30007, TcpFlags::RST));
    node.send(Family::IPv4, Who::Alice, Who::Bob, segment(40000, 80, TcpFlags::SYN));
    let ports: std::collections::BTreeSet<u16> =
        node.kernel.connections().iter().map(|kept| kept.key.lo_port.max(kept.key.hi_port)).collect();
    assert!(ports.contains(&40000) && !ports.contains(&30007), "{ports:?}");
    assert_eq!(ports.len(), abi::CT_WAYS as usize);
}

/// The proxies look there.
#[test]
fn user_space_finds_a_connection_where_the_programs_have_put_it() {
    let mut node = Node::with_sets(1021);
    for family in FAMILIES {
        for port in 40000..40100 {
            node.send(family, Who::Alice, Who::Bob, segment(port, 80, TcpFlags::SYN));
        }
    }
    let known = node.kernel.connections();
    assert_eq!(known.len(), 200);
    assert!(known.iter().all(|kept| node.kernel.connection(&kept.key) == Some(*kept)));
}
