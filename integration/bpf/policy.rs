//! Who may reach whom, cell by cell.

use sluice::datapath::abi;
use sluice::datapath::testrun::L4;
use sluice::model::DropReason;

use crate::fixture::*;

#[test]
fn without_policy_pods_reach_each_other_with_rewritten_macs() {
    let mut node = Node::new();
    for family in FAMILIES {
        assert_delivered(&node.send(family, Who::Alice, Who::Bob, syn(80)), Who::Bob);
        assert_delivered(&node.send(family, Who::Alice, Who::Bob, udp(5000, 53)), Who::Bob);
        assert_delivered(&node.send(family, Who::Alice, Who::Bob, ping(family, 7)), Who::Bob);
        assert_delivered(
            &node.send(family, Who::Alice, Who::Bob, L4::Sctp { sport: 9, dport: 99 }),
            Who::Bob,
        );
        assert_delivered(
            &node.send(family, Who::Alice, Who::Bob, L4::Raw { protocol: 112, bytes: vec![0; 8] }),
            Who::Bob,
        );
    }
}

#[test]
fn a_pod_without_loaded_policy_gets_nothing() {
    let mut node = Node::new();
    node.kernel.set("sl_policy_info", BOB_POLICY, abi::PolicyInfoValue::default());
    for family in FAMILIES {
        let outcome = node.send(family, Who::Alice, Who::Bob, syn(80));
        assert_dropped(&outcome, DropReason::EndpointNotReady);
        let outcome = node.send(family, Who::Bob, Who::Alice, syn(80));
        assert_dropped(&outcome, DropReason::EndpointNotReady);
    }
}

#[test]
fn default_deny_drops_what_no_cell_allows_and_says_which_side() {
    let mut node = Node::new();
    node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[(Direction::Ingress, Cell::allow_tcp(ALICE, 80))]);
    for family in FAMILIES {
        assert_delivered(&node.send(family, Who::Alice, Who::Bob, syn(80)), Who::Bob);
        let outcome = node.send(family, Who::Alice, Who::Bob, syn(81));
        assert_dropped(&outcome, DropReason::PolicyDenied);
        let event = outcome.events[0];
        assert_eq!(event.direction, abi::DIR_INGRESS as u8);
        assert_eq!((event.src_identity, event.dst_identity), (ALICE, BOB));
        assert_eq!(event.flags & abi::EVF_DEFAULT_DENY as u8, abi::EVF_DEFAULT_DENY as u8);
        assert_eq!((event.policy_id, event.endpoint_id, event.dport), (BOB_POLICY, 11, 81));
        assert_dropped(&node.send(family, Who::Alice, Who::Bob, udp(5000, 80)), DropReason::PolicyDenied);
        assert_dropped(&node.send(family, Who::World, Who::Bob, syn(80)), DropReason::PolicyDenied);
    }
}

#[test]
fn egress_is_judged_before_ingress() {
    let mut node = Node::new();
    node.policy(ALICE_POLICY, [DEFAULT_DENY, 0], &[]);
    node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[]);
    for family in FAMILIES {
        let outcome = node.send(family, Who::Alice, Who::Bob, syn(80));
        assert_dropped(&outcome, DropReason::PolicyDenied);
        assert_eq!(outcome.events[0].direction, abi::DIR_EGRESS as u8);
        assert_eq!(outcome.events[0].endpoint_id, 10);
    }
}

/// Every cell can decide, alone.
#[test]
fn each_cell_is_found() {
    let mut node = Node::new();
    const CLASS: u32 = 3 << 24;
    node.class_prefix("10.244.1.10", 128, CLASS);
    node.class_prefix("fd00:244:0:1::10", 128, CLASS);
    let flags = DEFAULT_DENY | abi::PF_ADDR_CLASS;
    for identity in [ALICE, abi::GROUP_PODS, CLASS, abi::GROUP_ADDRESSES_IPV4, abi::GROUP_ADDRESSES_IPV6, 0] {
        for (protocol, port_class) in [(6, abi::PORT_EXACT | 80), (6, abi::PORT_ANY), (0, abi::PORT_ANY)] {
            let cell = Cell::normal(identity, protocol, port_class, slot(abi::ACTION_ALLOW, 10, 3));
            node.policy(BOB_POLICY, [0, flags], &[(Direction::Ingress, cell)]);
            for family in FAMILIES {
                let group = [abi::GROUP_ADDRESSES_IPV4, abi::GROUP_ADDRESSES_IPV6];
                if group.contains(&identity) && identity != group_of_class(family) {
                    assert_dropped(
                        &node.send(family, Who::Alice, Who::Bob, syn(80)),
                        DropReason::PolicyDenied,
                    );
                    continue;
                }
                assert_delivered(&node.send(family, Who::Alice, Who::Bob, syn(80)), Who::Bob);
                let other_port = node.send(family, Who::Alice, Who::Bob, syn(81));
                let other_protocol = node.send(family, Who::Alice, Who::Bob, udp(1, 80));
                match (protocol, port_class) {
                    (6, abi::PORT_ANY) => {
                        assert_delivered(&other_port, Who::Bob);
                        assert_dropped(&other_protocol, DropReason::PolicyDenied);
                    }
                    (0, _) => {
                        assert_delivered(&other_port, Who::Bob);
                        assert_delivered(&other_protocol, Who::Bob);
                    }
                    _ => {
                        assert_dropped(&other_port, DropReason::PolicyDenied);
                        assert_dropped(&other_protocol, DropReason::PolicyDenied);
                    }
                }
            }
            let key = abi::PolicyMapKey {
                policy_id: BOB_POLICY,
                identity,
                port_class,
                protocol,
                direction: 1,
                pad: 0,
            };
            node.kernel.remove::<_, abi::PolicyMapEntry>("sl_policy", key);
        }
    }
}

fn group_of_class(family: Family) -> u32 {
    match family {
        Family::IPv4 => abi::GROUP_ADDRESSES_IPV4,
        Family::IPv6 => abi::GROUP_ADDRESSES_IPV6,
    }
}

/// The number of an identity and the family of its address say in which group a peer is.
#[test]
fn a_group_is_everybody_of_a_scope_and_nobody_else() {
    let mut node = Node::new();
    let other_node: abi::Addr = Who::OtherNode.address(Family::IPv4).into();
    let scopes = [
        (255, 0, 0),
        (256, abi::GROUP_PODS, abi::GROUP_PODS),
        (65535, abi::GROUP_PODS, abi::GROUP_PODS),
        (65536, 0, 0),
        (1 << 24, abi::GROUP_WORLD_IPV4, abi::GROUP_WORLD_IPV6),
        ((2 << 24) - 1, abi::GROUP_WORLD_IPV4, abi::GROUP_WORLD_IPV6),
        (2 << 24, abi::GROUP_REMOTE_NODES, abi::GROUP_REMOTE_NODES),
        (abi::ID_WORLD, 0, 0),
        (abi::ID_HOST, 0, 0),
    ];
    let groups = [abi::GROUP_PODS, abi::GROUP_REMOTE_NODES, abi::GROUP_WORLD_IPV4, abi::GROUP_WORLD_IPV6];
    for group in groups {
        for (identity, v4, v6) in scopes {
            for (family, wanted) in [(Family::IPv4, v4), (Family::IPv6, v6)] {
                // Loaded anew for each, so that no connection of the last one is known.
                let cell = Cell::normal(group, 6, abi::PORT_EXACT | 80, slot(abi::ACTION_ALLOW, 10, 3));
                node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[(Direction::Ingress, cell)]);
                node.know(
                    Who::Carol.address(family),
                    identity,
                    abi::IPC_REMOTE | abi::IPC_CLUSTER,
                    other_node,
                );
                let outcome = node.send(family, Who::Carol, Who::Bob, syn(80));
                match wanted == group {
                    true => assert_delivered(&outcome, Who::Bob),
                    false => assert_dropped(&outcome, DropReason::PolicyDenied),
                }
            }
        }
        // Without the flags nothing is looked up.
        node.policy(BOB_POLICY, [0, DEFAULT_DENY & !GROUP_CELLS], &[]);
        node.know(Who::Carol.address(Family::IPv4), 256, abi::IPC_REMOTE | abi::IPC_CLUSTER, other_node);
        assert_dropped(&node.send(Family::IPv4, Who::Carol, Who::Bob, syn(80)), DropReason::PolicyDenied);
        let key = abi::PolicyMapKey {
            policy_id: BOB_POLICY,
            identity: group,
            port_class: abi::PORT_EXACT | 80,
            protocol: 6,
            direction: 1,
            pad: 0,
        };
        node.kernel.remove::<_, abi::PolicyMapEntry>("sl_policy", key);
    }
}

#[test]
fn the_highest_precedence_wins_wherever_it_is_found() {
    let mut node = Node::new();
    let deny = Cell::normal(0, 0, abi::PORT_ANY, slot(abi::ACTION_DENY, 20, 9));
    node.policy(
        BOB_POLICY,
        [0, ALL_CELLS],
        &[(Direction::Ingress, Cell::allow_tcp(ALICE, 80)), (Direction::Ingress, deny)],
    );
    for family in FAMILIES {
        let outcome = node.send(family, Who::Alice, Who::Bob, syn(80));
        assert_dropped(&outcome, DropReason::PolicyDeny);
        assert_eq!(outcome.events[0].rule_set, 9);
    }
    // A narrower allow of higher precedence than the wide deny.
    let allow = Cell::normal(ALICE, 6, abi::PORT_EXACT | 80, slot(abi::ACTION_ALLOW, 30, 7));
    node.policy(BOB_POLICY, [0, ALL_CELLS], &[(Direction::Ingress, allow)]);
    for family in FAMILIES {
        assert_delivered(&node.send(family, Who::Alice, Who::Bob, syn(80)), Who::Bob);
    }
}

#[test]
fn the_admin_tier_decides_before_the_normal_one_unless_it_passes() {
    let mut node = Node::new();
    let admin = |action| Cell {
        admin: slot(action, 1, 5),
        ..Cell::normal(ALICE, 0, abi::PORT_ANY, slot(abi::ACTION_DENY, 99, 6))
    };
    node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[(Direction::Ingress, admin(abi::ACTION_ALLOW))]);
    assert_delivered(&node.send(Family::IPv4, Who::Alice, Who::Bob, syn(80)), Who::Bob);
    node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[(Direction::Ingress, admin(abi::ACTION_PASS))]);
    let outcome = node.send(Family::IPv4, Who::Alice, Who::Bob, syn(81));
    assert_dropped(&outcome, DropReason::PolicyDeny);
    assert_eq!(outcome.events[0].rule_set, 6);
    node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[(Direction::Ingress, admin(abi::ACTION_DENY))]);
    let outcome = node.send(Family::IPv4, Who::Alice, Who::Bob, syn(82));
    assert_dropped(&outcome, DropReason::PolicyDeny);
    assert_eq!(outcome.events[0].rule_set, 5);
}

#[test]
fn a_port_class_stands_for_the_ports_of_its_range() {
    let mut node = Node::new();
    // 8000-8007 of TCP are class 5.
    let data = {
        let key = abi::PortClassKey {
            prefix_len: 0,
            policy_id: BOB_POLICY,
            direction: 1,
            protocol: 6,
            port_be: 8000u16.to_be_bytes(),
        };
        let mut data = [0u8; 8];
        data[..4].copy_from_slice(&key.policy_id.to_ne_bytes());
        data[4..].copy_from_slice(&[key.direction, key.protocol, key.port_be[0], key.port_be[1]]);
        data
    };
    node.kernel.put_prefix("sl_port_class", 48 + 13, data, 5u32);
    let cell = Cell::normal(ALICE, 6, abi::PORT_CLASS | 5, slot(abi::ACTION_ALLOW, 10, 3));
    node.policy(BOB_POLICY, [0, DEFAULT_DENY | abi::PF_RANGES], &[(Direction::Ingress, cell)]);
    for family in FAMILIES {
        for port in [8000, 8007] {
            assert_delivered(&node.send(family, Who::Alice, Who::Bob, syn(port)), Who::Bob);
        }
        for port in [7999, 8008] {
            assert_dropped(&node.send(family, Who::Alice, Who::Bob, syn(port)), DropReason::PolicyDenied);
        }
    }
}

#[test]
fn icmp_types_stand_where_ports_do() {
    let mut node = Node::new();
    for family in FAMILIES {
        let (protocol, echo) = if family == Family::IPv4 { (1, 8) } else { (58, 128) };
        let cell = Cell::normal(ALICE, protocol, abi::PORT_EXACT | echo, slot(abi::ACTION_ALLOW, 10, 3));
        node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[(Direction::Ingress, cell)]);
        assert_delivered(&node.send(family, Who::Alice, Who::Bob, ping(family, 1)), Who::Bob);
        assert_delivered(&node.send(family, Who::Bob, Who::Alice, pong(family, 1)), Who::Alice);
        let unasked = node.send(family, Who::Alice, Who::Bob, pong(family, 2));
        assert_dropped(&unasked, DropReason::PolicyDenied);
    }
}

#[test]
fn unknown_addresses_are_refused_once_policy_applies() {
    let mut node = Node::new();
    for family in FAMILIES {
        let stranger = if family == Family::IPv4 {
            "10.244.9.9".parse().unwrap()
        } else {
            "fd00:244:0:9::9".parse().unwrap()
        };
        let mut frame = node.frame(family, Who::World, Who::Bob, syn(80));
        frame.src = stranger;
        node.policy(BOB_POLICY, [0, 0], &[]);
        assert_delivered(&node.send_from(Who::World, &frame), Who::Bob);
        let allow_all = Cell::normal(0, 0, abi::PORT_ANY, slot(abi::ACTION_ALLOW, 10, 3));
        node.policy(BOB_POLICY, [0, ALL_CELLS], &[(Direction::Ingress, allow_all)]);
        assert_dropped(&node.send_from(Who::World, &frame), DropReason::UnknownIdentity);
    }
}

#[test]
fn audit_mode_reports_and_passes() {
    let mut node = Node::new();
    node.policy(BOB_POLICY, [0, DEFAULT_DENY | abi::PF_AUDIT], &[]);
    for family in FAMILIES {
        let outcome = node.send(family, Who::Alice, Who::Bob, syn(80));
        assert_delivered(&outcome, Who::Bob);
        assert_eq!(u32::from(outcome.events[0].kind), abi::EVENT_VERDICT);
        assert_eq!(u32::from(outcome.events[0].action), abi::ACTION_DENY);
    }
}

#[test]
fn redirects_without_a_proxy_drop() {
    let mut node = Node::new();
    let cell = Cell::normal(ALICE, 6, abi::PORT_EXACT | 80, slot(abi::ACTION_REDIRECT_HTTP, 10, 3));
    node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[(Direction::Ingress, cell)]);
    for family in FAMILIES {
        assert_dropped(&node.send(family, Who::Alice, Who::Bob, syn(80)), DropReason::ProxyNotFound);
    }
}

#[test]
fn rules_are_counted_once_a_flow() {
    let mut node = Node::new();
    node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[(Direction::Ingress, Cell::allow_tcp(ALICE, 80))]);
    for _ in 0..3 {
        node.send(Family::IPv4, Who::Alice, Who::Bob, syn(80));
    }
    let hits: u64 = node.kernel.per_cpu::<u64>("sl_rule_hits", 7).iter().sum();
    assert_eq!(hits, 1);
}

#[test]
fn drops_and_passes_are_counted_by_endpoint_and_reason() {
    let mut node = Node::new();
    node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[(Direction::Ingress, Cell::allow_tcp(ALICE, 80))]);
    node.send(Family::IPv4, Who::Alice, Who::Bob, syn(80));
    node.send(Family::IPv4, Who::Alice, Who::Bob, syn(80));
    node.send(Family::IPv4, Who::Alice, Who::Bob, syn(81));
    let bob: Vec<abi::EndpointCounter> = node.kernel.per_cpu("sl_ep_stats", 11);
    assert_eq!(bob.iter().map(|c| c.forwarded[1].packets).sum::<u64>(), 2);
    assert_eq!(bob.iter().map(|c| c.dropped[1].packets).sum::<u64>(), 1);
    let denied = abi::MAX_METRIC + DropReason::PolicyDenied as u32;
    let dropped: Vec<abi::Counter> = node.kernel.per_cpu("sl_metrics", denied);
    assert_eq!(dropped.iter().map(|c| c.packets).sum::<u64>(), 1);
}

/// The rest of the baseline tier is skipped, and no tier comes after it.
#[test]
fn pass_in_a_normal_slot_leaves_it_to_the_default() {
    let pass = Cell::normal(0, 0, abi::PORT_ANY, slot(abi::ACTION_PASS, 10, 9));
    for (flags, allowed) in [(ALL_CELLS, true), (DEFAULT_DENY, false)] {
        let mut node = Node::new();
        node.policy(BOB_POLICY, [0, flags], &[(Direction::Ingress, pass)]);
        for family in FAMILIES {
            let outcome = node.send(family, Who::Alice, Who::Bob, syn(80));
            if allowed {
                assert_delivered(&outcome, Who::Bob);
            } else {
                assert_dropped(&outcome, DropReason::PolicyDenied);
            }
        }
    }
}
