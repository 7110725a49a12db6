//! Services: translation before policy, the way back, hairpin, affinity.

use std::net::IpAddr;

use sluice::datapath::abi::{self, Addr};
use sluice::datapath::testrun::{Action, L4, TcpFlags};
use sluice::model::DropReason;

use crate::fixture::*;

pub fn frontend(family: Family) -> IpAddr {
    match family {
        Family::IPv4 => "10.96.0.10".parse().unwrap(),
        Family::IPv6 => "fd00:96::10".parse().unwrap(),
    }
}

/// Port 80 of the frontend, all protocols, goes to port `port` of these pods.
pub fn add_service(node: &mut Node, backends: &[Who], port: u16, flags: u32) {
    for family in FAMILIES {
        let id = family as u32 + 1;
        for (slot, who) in backends.iter().enumerate() {
            let key = abi::BackendKey { svc_id: id, slot: slot as u32 };
            let addr: Addr = who.address(family).into();
            let value = abi::BackendValue { addr, port, pad: 0, backend_id: 100 + slot as u32 };
            node.kernel.put("sl_backends", key, value);
        }
        for protocol in [6, 17, 132] {
            let key = abi::ServiceKey { addr: frontend(family).into(), port: 80, protocol, pad: 0 };
            let value = abi::ServiceValue { id, backends: backends.len() as u32, flags, affinity_secs: 100 };
            node.kernel.put("sl_services", key, value);
        }
    }
}

fn l4s() -> Vec<(L4, L4)> {
    vec![
        (tcp(40000, 80, TcpFlags::SYN), tcp(8080, 40000, TcpFlags::SYN_ACK)),
        (udp(40000, 80), udp(8080, 40000)),
        (L4::Sctp { sport: 40000, dport: 80 }, L4::Sctp { sport: 8080, dport: 40000 }),
    ]
}

#[test]
fn the_backend_sees_the_client_and_the_client_sees_the_frontend() {
    let mut node = Node::new();
    add_service(&mut node, &[Who::Bob], 8080, 0);
    for family in FAMILIES {
        for (request, reply) in l4s() {
            for _ in 0..2 {
                let mut frame = node.frame(family, Who::Alice, Who::Bob, request.clone());
                frame.dst = frontend(family);
                let outcome = node.send_from(Who::Alice, &frame);
                assert_delivered(&outcome, Who::Bob);
                let seen = outcome.seen();
                assert_eq!((seen.src, seen.sport), (Who::Alice.address(family), 40000));
                assert_eq!((seen.dst, seen.dport), (Who::Bob.address(family), 8080));

                let outcome = node.send(family, Who::Bob, Who::Alice, reply.clone());
                assert_delivered(&outcome, Who::Alice);
                let seen = outcome.seen();
                assert_eq!((seen.src, seen.sport), (frontend(family), 80));
                assert_eq!((seen.dst, seen.dport), (Who::Alice.address(family), 40000));
            }
        }
    }
}

#[test]
fn policy_sees_the_backend_and_its_port() {
    let mut node = Node::new();
    add_service(&mut node, &[Who::Bob], 8080, 0);
    node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[(Direction::Ingress, Cell::allow_tcp(ALICE, 8080))]);
    let egress = Cell::allow_tcp(BOB, 8080);
    node.policy(ALICE_POLICY, [DEFAULT_DENY, 0], &[(Direction::Egress, egress)]);
    for family in FAMILIES {
        let mut frame = node.frame(family, Who::Alice, Who::Bob, syn(80));
        frame.dst = frontend(family);
        assert_delivered(&node.send_from(Who::Alice, &frame), Who::Bob);
    }
    add_service(&mut node, &[Who::Bob], 9090, 0);
    for family in FAMILIES {
        let mut frame = node.frame(family, Who::Alice, Who::Bob, tcp(40001, 80, TcpFlags::SYN));
        frame.dst = frontend(family);
        let outcome = node.send_from(Who::Alice, &frame);
        assert_dropped(&outcome, DropReason::PolicyDenied);
        let event = outcome.events[0];
        assert_eq!(event.flags & abi::EVF_SERVICE as u8, abi::EVF_SERVICE as u8);
        assert_eq!((event.svc_addr, event.svc_port), (frontend(family).into(), 80));
        assert_eq!(event.dport, 9090);
    }
}

#[test]
fn a_connection_stays_with_its_backend() {
    let mut node = Node::new();
    add_service(&mut node, &[Who::Bob, Who::Carol], 8080, 0);
    for family in FAMILIES {
        let mut chosen = [0; 2];
        for port in 41000..41032 {
            let mut frame = node.frame(family, Who::Alice, Who::Bob, tcp(port, 80, TcpFlags::SYN));
            frame.dst = frontend(family);
            let first = node.send_from(Who::Alice, &frame).seen().dst;
            chosen[usize::from(first == Who::Bob.address(family))] += 1;
            frame.l4 = tcp(port, 80, TcpFlags::ACK);
            for _ in 0..4 {
                assert_eq!(node.send_from(Who::Alice, &frame).seen().dst, first);
            }
        }
        assert!(chosen[0] > 0 && chosen[1] > 0, "both backends are used: {chosen:?}");
    }
}

#[test]
fn a_new_connection_on_old_ports_may_get_another_backend() {
    let mut node = Node::new();
    add_service(&mut node, &[Who::Bob], 8080, 0);
    let family = Family::IPv4;
    let mut frame = node.frame(family, Who::Alice, Who::Bob, syn(80));
    frame.dst = frontend(family);
    node.send_from(Who::Alice, &frame);
    node.send(family, Who::Bob, Who::Alice, tcp(8080, 40000, TcpFlags::RST));
    add_service(&mut node, &[Who::Carol], 8080, 0);
    assert_eq!(node.send_from(Who::Alice, &frame).seen().dst, Who::Carol.address(family));
}

#[test]
fn a_client_with_affinity_comes_back_to_its_backend() {
    let mut node = Node::new();
    add_service(&mut node, &[Who::Bob, Who::Carol], 8080, abi::SVC_AFFINITY);
    for family in FAMILIES {
        let mut seen = Vec::new();
        for port in 41000..41016 {
            let mut frame = node.frame(family, Who::Alice, Who::Bob, tcp(port, 80, TcpFlags::SYN));
            frame.dst = frontend(family);
            seen.push(node.send_from(Who::Alice, &frame).seen().dst);
        }
        seen.dedup();
        assert_eq!(seen.len(), 1);
    }
}

#[test]
fn a_pod_reaches_itself_through_its_service_whatever_policy_says() {
    let mut node = Node::new();
    add_service(&mut node, &[Who::Alice], 8080, 0);
    node.policy(ALICE_POLICY, [DEFAULT_DENY, DEFAULT_DENY], &[]);
    for family in FAMILIES {
        for (request, reply) in l4s() {
            for _ in 0..2 {
                let mut frame = node.frame(family, Who::Alice, Who::Alice, request.clone());
                frame.dst = frontend(family);
                let outcome = node.send_from(Who::Alice, &frame);
                assert_delivered(&outcome, Who::Alice);
                let seen = outcome.seen();
                assert_eq!((seen.src, seen.sport), (frontend(family), 40000));
                assert_eq!((seen.dst, seen.dport), (Who::Alice.address(family), 8080));

                let mut frame = node.frame(family, Who::Alice, Who::Alice, reply.clone());
                frame.dst = frontend(family);
                let outcome = node.send_from(Who::Alice, &frame);
                assert_delivered(&outcome, Who::Alice);
                let seen = outcome.seen();
                assert_eq!((seen.src, seen.sport), (frontend(family), 80));
                assert_eq!((seen.dst, seen.dport), (Who::Alice.address(family), 40000));
            }
        }
    }
}

#[test]
fn a_direct_connection_from_the_same_port_is_not_taken_for_the_translated_one() {
    let mut node = Node::new();
    add_service(&mut node, &[Who::Bob], 8080, 0);
    for family in FAMILIES {
        let mut frame = node.frame(family, Who::Alice, Who::Bob, syn(80));
        frame.dst = frontend(family);
        node.send_from(Who::Alice, &frame);
        assert_delivered(&node.send(family, Who::Alice, Who::Bob, syn(8080)), Who::Bob);
        let reply = node.send(family, Who::Bob, Who::Alice, tcp(8080, 40000, TcpFlags::SYN_ACK));
        assert_eq!(reply.seen().src, Who::Bob.address(family));
    }
}

#[test]
fn datagrams_do_not_stay_with_a_backend_that_is_gone() {
    let mut node = Node::new();
    add_service(&mut node, &[Who::Carol], 8080, 0);
    for family in FAMILIES {
        let mut frame = node.frame(family, Who::Alice, Who::Bob, udp(41000, 80));
        frame.dst = frontend(family);
        let first = node.send_from(Who::Alice, &frame);
        assert_eq!(first.seen().dst, Who::Carol.address(family));
        // The pod goes, and another one takes its slot.
        let addr: Addr = Who::Carol.address(family).into();
        node.kernel.remove::<_, abi::IpcacheValue>("sl_ipcache_exact", addr);
        let key = abi::BackendKey { svc_id: family as u32 + 1, slot: 0 };
        let addr: Addr = Who::Bob.address(family).into();
        node.kernel.put("sl_backends", key, abi::BackendValue { addr, port: 8080, pad: 0, backend_id: 7 });
        let outcome = node.send_from(Who::Alice, &frame);
        assert_delivered(&outcome, Who::Bob);
        assert_eq!(outcome.seen().dst, Who::Bob.address(family));
    }
}

/// A process of the node; its packets are met where they would leave the node.
#[test]
fn the_node_itself_reaches_services() {
    let mut node = Node::new();
    add_service(&mut node, &[Who::Bob], 8080, 0);
    let from_host = Cell::allow_tcp(abi::ID_HOST, 8080);
    node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[(Direction::Ingress, from_host)]);
    for family in FAMILIES {
        for flags in [TcpFlags::SYN, TcpFlags::ACK] {
            let mut frame = node.frame(family, Who::Host, Who::World, tcp(40000, 80, flags));
            frame.dst = frontend(family);
            let outcome = node.send_from(Who::Host, &frame);
            assert_eq!(outcome.action, Action::Redirect, "{:?}", outcome.events);
            let seen = outcome.seen();
            assert_eq!((seen.dst, seen.dport), (Who::Bob.address(family), 8080));
            assert_eq!((seen.src, seen.sport), (Who::Host.address(family), 40000));
            assert_eq!((seen.dst_mac, seen.src_mac), (Who::Bob.mac(), ROUTER_MAC));
            let reply = node.send(family, Who::Bob, Who::Host, tcp(8080, 40000, TcpFlags::SYN_ACK));
            assert_passed(&reply);
            assert_eq!((reply.seen().src, reply.seen().sport), (frontend(family), 80));
        }
        // Policy applies after translation, and the frontend is nobody's way around it.
        let mut frame = node.frame(family, Who::Host, Who::World, udp(40000, 80));
        frame.dst = frontend(family);
        assert_dropped(&node.send_from(Who::Host, &frame), DropReason::PolicyDenied);
    }
}

#[test]
fn the_node_itself_reaches_backends_elsewhere() {
    let mut node = Node::new();
    add_service(&mut node, &[Who::OtherNode], 8080, 0);
    for family in FAMILIES {
        for (request, reply) in l4s() {
            let mut frame = node.frame(family, Who::Host, Who::World, request);
            frame.dst = frontend(family);
            let outcome = node.send_from(Who::Host, &frame);
            assert_eq!(outcome.action, Action::Redirect, "{:?}", outcome.events);
            assert_eq!((outcome.seen().dst, outcome.seen().dport), (Who::OtherNode.address(family), 8080));
            let answer = node.send(family, Who::OtherNode, Who::Host, reply);
            assert_passed(&answer);
            assert_eq!((answer.seen().src, answer.seen().sport), (frontend(family), 80));
        }
    }
}

#[test]
fn a_service_without_backends_refuses_the_node_too() {
    let mut node = Node::new();
    add_service(&mut node, &[], 8080, 0);
    for family in FAMILIES {
        let mut frame = node.frame(family, Who::Host, Who::World, syn(80));
        frame.dst = frontend(family);
        let outcome = node.send_from(Who::Host, &frame);
        assert_eq!(outcome.events.last().map(|event| event.reason), Some(DropReason::NoServiceBackend as u8));
    }
}

#[test]
fn the_node_reaches_itself_through_its_service() {
    let mut node = Node::new();
    add_service(&mut node, &[Who::Host], 8080, 0);
    for family in FAMILIES {
        for (request, reply) in l4s() {
            for _ in 0..2 {
                let mut frame = node.frame(family, Who::Host, Who::World, request.clone());
                frame.dst = frontend(family);
                let outcome = node.send_from(Who::Host, &frame);
                assert_eq!(outcome.action, Action::Redirect, "{:?}", outcome.events);
                let seen = outcome.seen();
                assert_eq!((seen.src, seen.sport), (frontend(family), 40000));
                assert_eq!((seen.dst, seen.dport), (Who::Host.address(family), 8080));
                let mut answer = node.frame(family, Who::Host, Who::World, reply.clone());
                answer.dst = frontend(family);
                let outcome = node.send_from(Who::Host, &answer);
                assert_eq!(outcome.action, Action::Redirect, "{:?}", outcome.events);
                let seen = outcome.seen();
                assert_eq!((seen.src, seen.sport), (frontend(family), 80));
                assert_eq!((seen.dst, seen.dport), (Who::Host.address(family), 40000));
            }
        }
    }
}
