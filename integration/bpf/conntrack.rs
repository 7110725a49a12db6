//! Connections: what an entry lets pass, and what ends it.

use sluice::datapath::abi;
use sluice::datapath::connections::Kept;
use sluice::datapath::testrun::{Action, Hook, L4, TcpFlags};
use sluice::model::DropReason;

use crate::fixture::*;

/// Bob's ingress allows Alice on TCP 80 and UDP 53; Alice's ingress allows nobody.
fn client_and_server() -> Node {
    let mut node = Node::new();
    let dns = Cell::normal(ALICE, 17, abi::PORT_EXACT | 53, slot(abi::ACTION_ALLOW, 10, 8));
    node.policy(
        BOB_POLICY,
        [DEFAULT_DENY, DEFAULT_DENY],
        &[(Direction::Ingress, Cell::allow_tcp(ALICE, 80)), (Direction::Ingress, dns)],
    );
    node.policy(ALICE_POLICY, [0, DEFAULT_DENY], &[]);
    node
}

#[test]
fn replies_pass_whatever_policy_says() {
    let mut node = client_and_server();
    for family in FAMILIES {
        let denied = node.send(family, Who::Bob, Who::Alice, tcp(80, 40000, TcpFlags::SYN_ACK));
        assert_dropped(&denied, DropReason::PolicyDenied);
        assert_delivered(&node.send(family, Who::Alice, Who::Bob, syn(80)), Who::Bob);
        let reply = node.send(family, Who::Bob, Who::Alice, tcp(80, 40000, TcpFlags::SYN_ACK));
        assert_delivered(&reply, Who::Alice);
        assert_delivered(&node.send(family, Who::Alice, Who::Bob, udp(5000, 53)), Who::Bob);
        assert_delivered(&node.send(family, Who::Bob, Who::Alice, udp(53, 5000)), Who::Alice);
        assert_dropped(&node.send(family, Who::Bob, Who::Alice, udp(53, 5001)), DropReason::PolicyDenied);
    }
}

#[test]
fn being_allowed_to_answer_is_not_being_allowed_to_call() {
    let mut node = client_and_server();
    for family in FAMILIES {
        assert_delivered(&node.send(family, Who::Alice, Who::Bob, syn(80)), Who::Bob);
        let call = node.send(family, Who::Bob, Who::Alice, tcp(80, 40000, TcpFlags::SYN));
        assert_dropped(&call, DropReason::PolicyDenied);
    }
}

#[test]
fn a_policy_change_cuts_the_flow_at_its_next_packet_in_both_directions() {
    let mut node = client_and_server();
    for family in FAMILIES {
        node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[(Direction::Ingress, Cell::allow_tcp(ALICE, 80))]);
        assert_delivered(&node.send(family, Who::Alice, Who::Bob, syn(80)), Who::Bob);
        let deny = Cell::normal(ALICE, 6, abi::PORT_EXACT | 80, slot(abi::ACTION_DENY, 20, 9));
        node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[(Direction::Ingress, deny)]);
        let data = tcp(40000, 80, TcpFlags::ACK);
        assert_dropped(&node.send(family, Who::Alice, Who::Bob, data.clone()), DropReason::PolicyDeny);
        let reply = node.send(family, Who::Bob, Who::Alice, tcp(80, 40000, TcpFlags::ACK));
        assert_dropped(&reply, DropReason::PolicyDeny);
        assert_dropped(&node.send(family, Who::Alice, Who::Bob, data.clone()), DropReason::PolicyDeny);
        // And it goes on when the policy allows it again.
        node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[(Direction::Ingress, Cell::allow_tcp(ALICE, 80))]);
        assert_delivered(&node.send(family, Who::Alice, Who::Bob, data), Who::Bob);
    }
}

#[test]
fn a_policy_change_that_still_allows_the_flow_is_not_felt() {
    let mut node = client_and_server();
    for family in FAMILIES {
        assert_delivered(&node.send(family, Who::Alice, Who::Bob, syn(80)), Who::Bob);
        node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[]);
        // The reply comes first: it is judged as the reply that it is.
        let reply = node.send(family, Who::Bob, Who::Alice, tcp(80, 40000, TcpFlags::SYN_ACK));
        assert_delivered(&reply, Who::Alice);
        let data = node.send(family, Who::Alice, Who::Bob, tcp(40000, 80, TcpFlags::ACK));
        assert_delivered(&data, Who::Bob);
    }
}

#[test]
fn a_stray_packet_in_the_middle_of_a_stream_is_judged_as_a_new_flow() {
    let mut node = client_and_server();
    for family in FAMILIES {
        let allowed = node.send(family, Who::Alice, Who::Bob, tcp(41000, 80, TcpFlags::ACK));
        assert_delivered(&allowed, Who::Bob);
        for flags in [TcpFlags::ACK, TcpFlags::RST, TcpFlags::SYN_ACK, TcpFlags::FIN_ACK] {
            let denied = node.send(family, Who::Alice, Who::Bob, tcp(41000, 81, flags));
            assert_dropped(&denied, DropReason::PolicyDenied);
        }
    }
}

#[test]
fn a_closed_connection_is_followed_by_a_new_one_on_the_same_ports() {
    let mut node = client_and_server();
    for family in FAMILIES {
        node.send(family, Who::Alice, Who::Bob, syn(80));
        node.send(family, Who::Bob, Who::Alice, tcp(80, 40000, TcpFlags::FIN_ACK));
        node.send(family, Who::Alice, Who::Bob, tcp(40000, 80, TcpFlags::FIN_ACK));
        let flags = connection(&mut node).flags;
        assert_eq!(u32::from(flags) & (abi::CT_FIN_LO | abi::CT_FIN_HI), abi::CT_FIN_LO | abi::CT_FIN_HI);
        assert_delivered(&node.send(family, Who::Alice, Who::Bob, syn(80)), Who::Bob);
        let flags = connection(&mut node).flags;
        assert_eq!(u32::from(flags) & (abi::CT_FIN_LO | abi::CT_FIN_HI), 0);
        node.kernel.forget_connections();
    }
}

fn connection(node: &mut Node) -> abi::CtEntry {
    the_one(node).entry
}

fn the_one(node: &mut Node) -> Kept {
    let connections = node.kernel.connections();
    assert_eq!(connections.len(), 1, "{connections:?}");
    connections[0]
}

#[test]
fn a_forged_reset_does_not_end_a_connection_that_goes_on() {
    let mut node = client_and_server();
    node.send(Family::IPv4, Who::Alice, Who::Bob, syn(80));
    node.send(Family::IPv4, Who::Bob, Who::Alice, tcp(80, 40000, TcpFlags::RST));
    assert_ne!(u32::from(connection(&mut node).flags) & abi::CT_RST, 0);
    node.send(Family::IPv4, Who::Alice, Who::Bob, tcp(40000, 80, TcpFlags::ACK));
    assert_eq!(u32::from(connection(&mut node).flags) & abi::CT_RST, 0);
}

/// The programs count jiffies; the agent's clock says the same.
#[test]
fn entries_are_dated_in_seconds_since_boot() {
    let mut node = client_and_server();
    node.send(Family::IPv4, Who::Alice, Who::Bob, udp(5000, 53));
    let seen = i64::from(the_one(&mut node).expires - abi::CT_SECONDS_OPENING);
    // "now at 3677221249105 nsecs", of CLOCK_MONOTONIC.
    let timers = std::fs::read_to_string("/proc/timer_list").unwrap();
    let now = timers.lines().find_map(|line| line.strip_prefix("now at ")).unwrap();
    let now = now.split(' ').next().unwrap().parse::<i64>().unwrap() / 1_000_000_000;
    assert!((seen - now).abs() <= 2, "{seen} seconds, {now} by the kernel");
}

#[test]
fn an_old_entry_vouches_for_nothing() {
    let mut node = client_and_server();
    node.send(Family::IPv4, Who::Alice, Who::Bob, udp(5000, 53));
    let mut kept = the_one(&mut node);
    kept.expires -= 100;
    node.kernel.keep_connection(&kept);
    let late = node.send(Family::IPv4, Who::Bob, Who::Alice, udp(53, 5000));
    assert_dropped(&late, DropReason::PolicyDenied);
}

#[test]
fn a_pod_cannot_use_the_connection_of_another() {
    let mut node = client_and_server();
    for family in FAMILIES {
        node.send(family, Who::Alice, Who::Bob, syn(80));
        // Bob sends with Alice's address, on his own device.
        let mut forged = node.frame(family, Who::Alice, Who::Bob, tcp(40000, 80, TcpFlags::ACK));
        forged.src_mac = Who::Bob.mac();
        let outcome = node.run(Hook::FromContainer, node.bob, &forged);
        assert_dropped(&outcome, DropReason::InvalidSourceIp);
        // Alice with a strange MAC.
        let mut forged = node.frame(family, Who::Alice, Who::Bob, tcp(40000, 80, TcpFlags::ACK));
        forged.src_mac = [2, 9, 9, 9, 9, 9];
        let outcome = node.run(Hook::FromContainer, node.alice, &forged);
        assert_dropped(&outcome, DropReason::InvalidSourceMac);
        // Somebody on the wire.
        let forged = node.frame(family, Who::Alice, Who::Bob, tcp(40000, 80, TcpFlags::ACK));
        let outcome = node.run(Hook::FromNetwork, node.uplink, &forged);
        assert_dropped(&outcome, DropReason::InvalidSourceIp);
    }
}

#[test]
fn the_node_reaches_its_pods_and_their_answers_reach_the_stack() {
    let mut node = client_and_server();
    let cell = Cell::normal(abi::ID_HOST, 0, abi::PORT_ANY, slot(abi::ACTION_ALLOW, 50, 2));
    node.policy(ALICE_POLICY, [DEFAULT_DENY, DEFAULT_DENY], &[(Direction::Ingress, cell)]);
    for family in FAMILIES {
        assert_passed(&node.send(family, Who::Host, Who::Alice, syn(8080)));
        let answer = node.send(family, Who::Alice, Who::Host, tcp(8080, 40000, TcpFlags::SYN_ACK));
        assert_passed(&answer);
        assert_eq!(answer.mark & abi::MARK_MASK, abi::MARK_VERDICT);
        // Its own calls to the node are under its egress policy.
        let call = node.send(family, Who::Alice, Who::Host, tcp(4444, 22, TcpFlags::SYN));
        assert_dropped(&call, DropReason::PolicyDenied);
    }
}

#[test]
fn traffic_to_the_world_and_other_nodes_goes_to_the_stack_under_egress_policy() {
    let mut node = client_and_server();
    for family in FAMILIES {
        for to in [Who::World, Who::OtherNode, Who::Carol] {
            let outcome = node.send(family, Who::Alice, to, syn(443));
            assert_passed(&outcome);
            assert_eq!(outcome.mark & abi::MARK_MASK, abi::MARK_VERDICT);
            assert_dropped(&node.send(family, Who::Bob, to, syn(443)), DropReason::PolicyDenied);
        }
    }
}

#[test]
fn remote_pods_are_reached_through_the_tunnel_where_there_is_one() {
    let mut node = client_and_server();
    node.config.tunnel_ifindex = node.uplink;
    node.set_flags(abi::CFG_TUNNEL);
    for family in FAMILIES {
        for _ in 0..2 {
            let outcome = node.send(family, Who::Alice, Who::Carol, syn(443));
            assert_eq!(outcome.action, Action::Redirect);
            assert_eq!(outcome.seen().ttl, 63);
        }
        // A remote pod's address without a tunnel around it is a forgery.
        let forged = node.send(family, Who::Carol, Who::Alice, tcp(443, 40000, TcpFlags::SYN_ACK));
        assert_dropped(&forged, DropReason::InvalidSourceIp);
    }
}

#[test]
fn a_pod_reaches_itself_whatever_policy_says() {
    let mut node = client_and_server();
    for family in FAMILIES {
        let outcome = node.send(family, Who::Bob, Who::Bob, syn(80));
        assert_delivered(&outcome, Who::Bob);
    }
}

#[test]
fn protocols_without_ports_are_tracked_by_address() {
    let mut node = client_and_server();
    let vrrp = || L4::Raw { protocol: 112, bytes: vec![0; 8] };
    let cell = Cell::normal(ALICE, 112, abi::PORT_ANY, slot(abi::ACTION_ALLOW, 10, 3));
    node.policy(BOB_POLICY, [DEFAULT_DENY, DEFAULT_DENY], &[(Direction::Ingress, cell)]);
    for family in FAMILIES {
        assert_dropped(&node.send(family, Who::Bob, Who::Alice, vrrp()), DropReason::PolicyDenied);
        assert_delivered(&node.send(family, Who::Alice, Who::Bob, vrrp()), Who::Bob);
        assert_delivered(&node.send(family, Who::Bob, Who::Alice, vrrp()), Who::Alice);
    }
}

/// An identity of names.
const API_EXAMPLE_COM: u32 = (1 << 24) + 7;

/// Alice may reach TCP 443 of what `API_EXAMPLE_COM` stands for, by a rule about the name, and nothing else; the
/// world's address has it by `flags`.
fn client_of_a_name(flags: u32) -> Node {
    client_by(abi::ACTION_ALLOW | abi::ACTION_BY_NAME, flags)
}

fn client_by(action: u32, flags: u32) -> Node {
    let mut node = Node::new();
    for family in FAMILIES {
        node.know(Who::World.address(family), API_EXAMPLE_COM, flags, abi::Addr::NONE);
    }
    node.policy(ALICE_POLICY, [DEFAULT_DENY, 0], &[(Direction::Egress, https(action))]);
    node
}

fn https(action: u32) -> Cell {
    Cell::normal(API_EXAMPLE_COM, 6, abi::PORT_EXACT | 443, slot(action, 10, 7))
}

/// Some other rule comes or goes: every flow of Alice is judged again.
fn another_change(node: &mut Node) {
    node.policy(ALICE_POLICY, [DEFAULT_DENY, 0], &[]);
}

#[test]
fn a_connection_outlives_the_answer_that_opened_it_whatever_else_changes() {
    let mut node = client_of_a_name(abi::IPC_LEARNED);
    for family in FAMILIES {
        let data = tcp(40000, 443, TcpFlags::ACK);
        assert_passed(&node.send(family, Who::Alice, Who::World, syn(443)));
        node.know(Who::World.address(family), abi::ID_WORLD, 0, abi::Addr::NONE);
        assert_passed(&node.send(family, Who::Alice, Who::World, data.clone()));
        for _ in 0..2 {
            another_change(&mut node);
            // The answer comes first: it is judged as the answer that it is.
            let reply = node.send(family, Who::World, Who::Alice, tcp(443, 40000, TcpFlags::ACK));
            assert_delivered(&reply, Who::Alice);
            assert_passed(&node.send(family, Who::Alice, Who::World, data.clone()));
        }
        let new = node.send(family, Who::Alice, Who::World, tcp(40001, 443, TcpFlags::SYN));
        assert_dropped(&new, DropReason::PolicyDenied);
        // The same ports again are a new connection.
        node.send(family, Who::World, Who::Alice, tcp(443, 40000, TcpFlags::FIN_ACK));
        node.send(family, Who::Alice, Who::World, tcp(40000, 443, TcpFlags::FIN_ACK));
        let again = node.send(family, Who::Alice, Who::World, syn(443));
        assert_dropped(&again, DropReason::PolicyDenied);
    }
}

#[test]
fn a_deny_rule_ends_a_connection_that_outlived_its_answer() {
    let mut node = client_of_a_name(abi::IPC_LEARNED);
    for family in FAMILIES {
        assert_passed(&node.send(family, Who::Alice, Who::World, syn(443)));
        node.know(Who::World.address(family), abi::ID_WORLD, 0, abi::Addr::NONE);
    }
    let deny = Cell::normal(abi::ID_WORLD, 0, abi::PORT_ANY, slot(abi::ACTION_DENY, 20, 9));
    node.policy(ALICE_POLICY, [DEFAULT_DENY, 0], &[(Direction::Egress, deny)]);
    for family in FAMILIES {
        let data = node.send(family, Who::Alice, Who::World, tcp(40000, 443, TcpFlags::ACK));
        assert_dropped(&data, DropReason::PolicyDeny);
    }
}

#[test]
fn the_end_of_the_rule_about_its_name_ends_a_connection_too() {
    let mut node = client_of_a_name(abi::IPC_LEARNED);
    for family in FAMILIES {
        assert_passed(&node.send(family, Who::Alice, Who::World, syn(443)));
        node.know(Who::World.address(family), abi::ID_WORLD, 0, abi::Addr::NONE);
    }
    let gone = Cell::normal(API_EXAMPLE_COM, 6, abi::PORT_EXACT | 443, abi::PolicySlot::default());
    node.policy(ALICE_POLICY, [DEFAULT_DENY, 0], &[(Direction::Egress, gone)]);
    for family in FAMILIES {
        let data = node.send(family, Who::Alice, Who::World, tcp(40000, 443, TcpFlags::ACK));
        assert_dropped(&data, DropReason::PolicyDenied);
    }
}

/// Identities of CIDR rules are of the same scope; what they allowed ends with them.
#[test]
fn an_identity_that_no_name_gave_is_not_outlived() {
    let mut node = client_of_a_name(0);
    for family in FAMILIES {
        assert_passed(&node.send(family, Who::Alice, Who::World, syn(443)));
        node.know(Who::World.address(family), abi::ID_WORLD, 0, abi::Addr::NONE);
    }
    another_change(&mut node);
    for family in FAMILIES {
        let data = node.send(family, Who::Alice, Who::World, tcp(40000, 443, TcpFlags::ACK));
        assert_dropped(&data, DropReason::PolicyDenied);
    }
}

/// Another pod's names gave the address an identity, of which Alice's policy knows a prefix only.
#[test]
fn what_a_cidr_rule_allowed_does_not_live_on_by_a_name_of_somebody_elses_policy() {
    let mut node = client_by(abi::ACTION_ALLOW, abi::IPC_LEARNED);
    for family in FAMILIES {
        assert_passed(&node.send(family, Who::Alice, Who::World, syn(443)));
        // The rule still speaks of the identity, and no longer of the address.
        node.know(Who::World.address(family), abi::ID_WORLD, 0, abi::Addr::NONE);
    }
    another_change(&mut node);
    for family in FAMILIES {
        let data = node.send(family, Who::Alice, Who::World, tcp(40000, 443, TcpFlags::ACK));
        assert_dropped(&data, DropReason::PolicyDenied);
    }
}

#[test]
fn a_connection_does_not_live_on_by_a_rule_that_is_no_longer_about_its_name() {
    let mut node = client_of_a_name(abi::IPC_LEARNED);
    for family in FAMILIES {
        assert_passed(&node.send(family, Who::Alice, Who::World, syn(443)));
        node.know(Who::World.address(family), abi::ID_WORLD, 0, abi::Addr::NONE);
    }
    node.policy(ALICE_POLICY, [DEFAULT_DENY, 0], &[(Direction::Egress, https(abi::ACTION_ALLOW))]);
    for family in FAMILIES {
        let data = node.send(family, Who::Alice, Who::World, tcp(40000, 443, TcpFlags::ACK));
        assert_dropped(&data, DropReason::PolicyDenied);
    }
}

/// Rules of equal precedence in several cells: the one about the name counts wherever it stands.
#[test]
fn a_rule_about_the_name_counts_beside_another_of_the_same_precedence() {
    let mut node = client_by(abi::ACTION_ALLOW, abi::IPC_LEARNED);
    let every_port =
        Cell::normal(API_EXAMPLE_COM, 0, abi::PORT_ANY, slot(abi::ACTION_ALLOW | abi::ACTION_BY_NAME, 10, 8));
    node.policy(ALICE_POLICY, [DEFAULT_DENY, 0], &[(Direction::Egress, every_port)]);
    for family in FAMILIES {
        assert_passed(&node.send(family, Who::Alice, Who::World, syn(443)));
        node.know(Who::World.address(family), abi::ID_WORLD, 0, abi::Addr::NONE);
    }
    another_change(&mut node);
    for family in FAMILIES {
        assert_passed(&node.send(family, Who::Alice, Who::World, tcp(40000, 443, TcpFlags::ACK)));
    }
}

#[test]
fn a_rule_about_the_name_that_comes_while_the_answer_is_fresh_is_enough() {
    let mut node = client_by(abi::ACTION_ALLOW, abi::IPC_LEARNED);
    for family in FAMILIES {
        assert_passed(&node.send(family, Who::Alice, Who::World, syn(443)));
    }
    let by_name = https(abi::ACTION_ALLOW | abi::ACTION_BY_NAME);
    node.policy(ALICE_POLICY, [DEFAULT_DENY, 0], &[(Direction::Egress, by_name)]);
    for family in FAMILIES {
        let data = tcp(40000, 443, TcpFlags::ACK);
        assert_passed(&node.send(family, Who::Alice, Who::World, data.clone()));
        node.know(Who::World.address(family), abi::ID_WORLD, 0, abi::Addr::NONE);
        another_change(&mut node);
        assert_passed(&node.send(family, Who::Alice, Who::World, data));
    }
}
