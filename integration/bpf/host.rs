//! The node's own traffic: untouched without the host firewall, judged with it.

use sluice::datapath::abi;
use sluice::datapath::testrun::{Fragment, Hook, TcpFlags};
use sluice::model::DropReason;

use crate::fixture::*;

/// World may reach the node on TCP 22; nothing else in either direction.
fn firewall() -> Node {
    let mut node = Node::new();
    node.policy(
        HOST_POLICY,
        [DEFAULT_DENY, DEFAULT_DENY],
        &[(Direction::Ingress, Cell::allow_tcp(abi::ID_WORLD, 22))],
    );
    node
}

#[test]
fn without_the_switch_the_host_policy_judges_nothing() {
    let mut node = firewall();
    for family in FAMILIES {
        assert_passed(&node.send(family, Who::World, Who::Host, syn(23)));
        assert_passed(&node.send(family, Who::Host, Who::World, syn(443)));
        assert_passed(&node.send(family, Who::Host, Who::Alice, syn(80)));
        assert_passed(&node.send(family, Who::Alice, Who::Host, syn(23)));
    }
}

#[test]
fn the_firewall_judges_both_directions() {
    let mut node = firewall();
    node.set_flags(abi::CFG_HOST_FIREWALL);
    for family in FAMILIES {
        assert_passed(&node.send(family, Who::World, Who::Host, syn(22)));
        let reply = node.send(family, Who::Host, Who::World, tcp(22, 40000, TcpFlags::SYN_ACK));
        assert_passed(&reply);
        assert_dropped(&node.send(family, Who::World, Who::Host, syn(23)), DropReason::PolicyDenied);
        assert_dropped(&node.send(family, Who::Host, Who::World, syn(443)), DropReason::PolicyDenied);
        assert_dropped(&node.send(family, Who::OtherNode, Who::Host, syn(22)), DropReason::PolicyDenied);
        assert_dropped(&node.send(family, Who::Alice, Who::Host, syn(22)), DropReason::PolicyDenied);
        assert_dropped(&node.send(family, Who::Host, Who::Alice, syn(80)), DropReason::PolicyDenied);
    }
}

#[test]
fn pods_are_not_the_firewalls_business() {
    let mut node = firewall();
    node.set_flags(abi::CFG_HOST_FIREWALL);
    for family in FAMILIES {
        assert_delivered(&node.send(family, Who::World, Who::Alice, syn(80)), Who::Alice);
        let frame = node.frame(family, Who::Alice, Who::World, syn(80));
        assert_passed(&node.send_from(Who::Alice, &frame));
        assert_passed(&node.run(Hook::ToNetwork, node.uplink, &frame));
    }
}

#[test]
fn sessions_that_were_open_when_the_firewall_came_are_judged_as_what_they_are() {
    let mut node = firewall();
    for family in FAMILIES {
        // Seen in the middle, and the node's packet first: the port tells who opened it.
        let node_first = node.send(family, Who::Host, Who::World, tcp(22, 40000, TcpFlags::ACK));
        assert_passed(&node_first);
        assert_passed(&node.send(family, Who::World, Who::Host, tcp(41000, 23, TcpFlags::ACK)));
    }
    node.set_flags(abi::CFG_HOST_FIREWALL);
    for family in FAMILIES {
        assert_passed(&node.send(family, Who::Host, Who::World, tcp(22, 40000, TcpFlags::ACK)));
        assert_passed(&node.send(family, Who::World, Who::Host, tcp(40000, 22, TcpFlags::ACK)));
        let telnet = node.send(family, Who::World, Who::Host, tcp(41000, 23, TcpFlags::ACK));
        assert_dropped(&telnet, DropReason::PolicyDenied);
    }
}

#[test]
fn the_tunnel_passes_between_nodes_only() {
    let mut node = firewall();
    node.set_flags(abi::CFG_HOST_FIREWALL | abi::CFG_TUNNEL);
    for family in FAMILIES {
        assert_passed(&node.send(family, Who::OtherNode, Who::Host, udp(50000, 8472)));
        assert_passed(&node.send(family, Who::Host, Who::OtherNode, udp(50000, 8472)));
        assert_dropped(&node.send(family, Who::World, Who::Host, udp(50000, 8472)), DropReason::PolicyDenied);
        assert_dropped(&node.send(family, Who::Host, Who::World, udp(50000, 8472)), DropReason::PolicyDenied);
    }
}

#[test]
fn fragments_of_the_node_in_any_order_are_its_own_business_until_there_is_a_firewall() {
    let mut node = firewall();
    for family in FAMILIES {
        let mut frame = node.frame(family, Who::World, Who::Host, udp(53, 40000));
        frame.fragment = Some(Fragment { id: 5, offset: 64, more: false });
        node.set_flags(0);
        assert_passed(&node.send_from(Who::World, &frame));
        node.set_flags(abi::CFG_HOST_FIREWALL);
        assert_dropped(&node.send_from(Who::World, &frame), DropReason::FragNoFirst);
    }
}
