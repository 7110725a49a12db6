//! The node's own traffic: untouched without the host firewall, judged with it.

use sluice::datapath::abi;
use sluice::datapath::testrun::{Fragment, Hook, L4, TcpFlags};
use sluice::model::DropReason;

use crate::fixture::*;

/// World may reach the node on TCP 22; nothing else in either direction. The node routes: what is not for itself goes
/// out of the uplink.
fn firewall() -> Node {
    let mut node = Node::new();
    node.routes();
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

/// Addresses that the node has, or hears, without their being in `sl_endpoints`.
fn unlisted(family: Family) -> Vec<std::net::IpAddr> {
    let addresses: &[&str] = match family {
        // A second address of the uplink, the broadcast of its network, everybody, mDNS.
        Family::IPv4 => &["172.18.0.99", "172.18.255.255", "255.255.255.255", "224.0.0.251"],
        Family::IPv6 => &["fd00:18::99", "ff02::1", "ff02::fb"],
    };
    addresses.iter().map(|address| address.parse().unwrap()).collect()
}

#[test]
fn every_address_of_the_node_is_under_its_policy() {
    let mut node = firewall();
    for family in FAMILIES {
        for own in unlisted(family) {
            let mut arriving = node.frame(family, Who::World, Who::Host, udp(5353, 5353));
            arriving.dst = own;
            node.set_flags(0);
            assert_passed(&node.send_from(Who::World, &arriving));
            node.set_flags(abi::CFG_HOST_FIREWALL);
            assert_dropped(&node.send_from(Who::World, &arriving), DropReason::PolicyDenied);
            // A pod gets there by way of the node's stack.
            let mut from_pod = node.frame(family, Who::Alice, Who::Host, udp(5353, 5353));
            from_pod.dst = own;
            assert_dropped(&node.send_from(Who::Alice, &from_pod), DropReason::PolicyDenied);
            arriving.l4 = tcp(40000, 22, TcpFlags::SYN);
            assert_passed(&node.send_from(Who::World, &arriving));

            let mut leaving = node.frame(family, Who::Host, Who::World, udp(5353, 5353));
            leaving.src = own;
            assert_dropped(&node.send_from(Who::Host, &leaving), DropReason::PolicyDenied);
            let mut to_group = node.frame(family, Who::Host, Who::World, udp(5353, 5353));
            to_group.dst = own;
            assert_dropped(&node.send_from(Who::Host, &to_group), DropReason::PolicyDenied);
        }
    }
}

#[test]
fn what_the_node_only_forwards_is_not_its_own() {
    let mut node = firewall();
    node.set_flags(abi::CFG_HOST_FIREWALL);
    for family in FAMILIES {
        let mut transit = node.frame(family, Who::World, Who::World, syn(80));
        transit.src = if family == Family::IPv4 {
            "198.51.100.7".parse().unwrap()
        } else {
            "2001:db8:7::7".parse().unwrap()
        };
        assert_passed(&node.send_from(Who::World, &transit));
    }
}

#[test]
fn a_pod_sees_the_host_behind_every_address_of_the_node() {
    let mut node = firewall();
    let host = Cell::normal(abi::ID_HOST, 0, abi::PORT_ANY, slot(abi::ACTION_ALLOW, 10, 5));
    node.policy(ALICE_POLICY, [0, DEFAULT_DENY], &[(Direction::Ingress, host)]);
    for family in FAMILIES {
        let mut probe = node.frame(family, Who::Host, Who::Alice, syn(80));
        probe.src = unlisted(family)[0];
        assert_passed(&node.send_to_pod(Who::Alice, &probe));
    }
}

#[test]
fn an_interface_can_be_configured_under_the_strictest_policy() {
    let mut node = firewall();
    node.set_flags(abi::CFG_HOST_FIREWALL);
    let cases = [
        (Family::IPv4, "0.0.0.0", "255.255.255.255", udp(68, 67), Who::Host),
        (Family::IPv4, "172.18.0.1", "255.255.255.255", udp(67, 68), Who::World),
        (Family::IPv4, "172.18.0.1", "172.18.0.2", udp(67, 68), Who::World),
        (Family::IPv6, "fe80::2", "ff02::1:2", udp(546, 547), Who::Host),
        (Family::IPv6, "fe80::9", "fe80::2", udp(547, 546), Who::World),
    ];
    for (family, from, to, l4, sender) in cases {
        let mut frame = node.frame(family, sender, Who::Host, l4);
        (frame.src, frame.dst) = (from.parse().unwrap(), to.parse().unwrap());
        assert_passed(&node.send_from(sender, &frame));
        // The same ports the wrong way round are nobody's business lease.
        let L4::Udp { sport, dport } = frame.l4 else { unreachable!() };
        frame.l4 = udp(dport, sport);
        assert_dropped(&node.send_from(sender, &frame), DropReason::PolicyDenied);
    }
    // A report of the groups that the interface listens to.
    let listener = L4::Icmp { kind: 143, code: 0, id: 0 };
    let mut frame = node.frame(Family::IPv6, Who::Host, Who::World, listener);
    (frame.src, frame.dst, frame.ttl) = ("fe80::2".parse().unwrap(), "ff02::16".parse().unwrap(), 1);
    assert_passed(&node.send_from(Who::Host, &frame));
    frame.ttl = 64;
    assert_dropped(&node.send_from(Who::Host, &frame), DropReason::PolicyDenied);
}
