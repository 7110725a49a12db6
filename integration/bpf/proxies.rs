//! What proxies send, and what comes back to them. Under BPF_PROG_TEST_RUN no socket can be given a packet: one that is
//! a proxy's is dropped as "proxy not found", where a judge would have said something else.

use sluice::datapath::abi::{self, DnsPair};
use sluice::datapath::testrun::{Action, Context, Frame, Hook, L4, Outcome};
use sluice::model::DropReason;

use crate::fixture::*;
use crate::icmp_errors::too_big;
use crate::services::{add_service, frontend};

/// The proxy sends to a local pod.
fn proxy_sends(node: &mut Node, mark: u32, to: Who, frame: &Frame) -> Outcome {
    let ifindex = node.device(to);
    node.kernel.run(Hook::ToContainer, &frame.bytes(), Context { ifindex, mark, arrived_by: 0 })
}

/// A node where nobody may reach anybody, and a proxy has asked Bob in Alice's name.
fn asked(family: Family) -> (Node, Frame) {
    let mut node = Node::new();
    node.set_flags(abi::CFG_PROXY);
    for policy in [ALICE_POLICY, BOB_POLICY] {
        node.policy(policy, [DEFAULT_DENY, DEFAULT_DENY], &[]);
    }
    let query = node.frame(family, Who::Alice, Who::Bob, udp(5000, 53));
    assert_passed(&proxy_sends(&mut node, abi::MARK_PROXY_ASKS, Who::Bob, &query));
    (node, query)
}

#[test]
fn the_reply_to_a_query_is_the_proxys_and_costs_no_entry() {
    for family in FAMILIES {
        let (mut node, _) = asked(family);
        assert_eq!(node.kernel.connections(), []);
        let reply = node.send(family, Who::Bob, Who::Alice, udp(53, 5000));
        assert_dropped(&reply, DropReason::ProxyNotFound);
        // Any port may have been drawn; the proxy knows.
        let reply = node.send(family, Who::Bob, Who::Alice, udp(53, 6000));
        assert_dropped(&reply, DropReason::ProxyNotFound);
        for (from, ports) in [(Who::Bob, udp(54, 5000)), (Who::World, udp(53, 5000))] {
            assert_dropped(&node.send(family, from, Who::Alice, ports), DropReason::PolicyDenied);
        }
        assert_dropped(&node.send(family, Who::Alice, Who::Bob, udp(53, 5000)), DropReason::PolicyDenied);
        let spoofed = node.frame(family, Who::World, Who::Alice, udp(53, 5000));
        assert!(matches!(node.send_from(Who::Bob, &spoofed).action, Action::Drop(_)));
    }
}

#[test]
fn a_server_that_was_asked_long_ago_is_judged() {
    for family in FAMILIES {
        let (mut node, _) = asked(family);
        let pairs = node.kernel.entries::<DnsPair, u32>("sl_dns_pairs");
        let [(pair, last)] = pairs[..] else { panic!("{pairs:?}") };
        node.kernel.put("sl_dns_pairs", pair, last - abi::DNS_PAIR_SECONDS - 2);
        let late = node.send(family, Who::Bob, Who::Alice, udp(53, 5000));
        assert_dropped(&late, DropReason::PolicyDenied);
    }
}

/// A policy with a DNS rule has just gone, and the client talks to the server itself.
#[test]
fn what_the_client_asks_itself_comes_back_to_the_client() {
    for family in FAMILIES {
        let (mut node, query) = asked(family);
        for policy in [ALICE_POLICY, BOB_POLICY] {
            node.policy(policy, [0, 0], &[]);
        }
        assert_delivered(&node.send_from(Who::Alice, &query), Who::Bob);
        assert_delivered(&node.send(family, Who::Bob, Who::Alice, udp(53, 5000)), Who::Alice);
    }
}

/// The proxy draws the port from which the client has just asked through a Service: what the server replies was given
/// the Service's address, and found no query.
#[test]
fn a_reply_keeps_its_address_where_the_client_used_the_port_through_a_service() {
    for family in FAMILIES {
        let mut node = Node::new();
        node.set_flags(abi::CFG_PROXY);
        add_service(&mut node, &[Who::Bob], 8080, 0);
        let redirect = slot(abi::ACTION_REDIRECT_DNS, 10, 7);
        let cell = Cell::normal(BOB, 17, abi::PORT_EXACT | 8080, redirect);
        node.policy(ALICE_POLICY, [DEFAULT_DENY, 0], &[(Direction::Egress, cell)]);
        let mut query = node.frame(family, Who::Alice, Who::Bob, udp(5000, 80));
        query.dst = frontend(family);
        assert_dropped(&node.send_from(Who::Alice, &query), DropReason::ProxyNotFound);
        let asked = node.frame(family, Who::Alice, Who::Bob, udp(5000, 8080));
        assert_passed(&proxy_sends(&mut node, abi::MARK_PROXY_ASKS, Who::Bob, &asked));
        let reply = node.frame(family, Who::Bob, Who::Alice, udp(8080, 5000));
        let outcome = node.send_from(Who::Bob, &reply);
        assert_dropped(&outcome, DropReason::ProxyNotFound);
        assert_eq!((outcome.seen().src, outcome.seen().sport), (Who::Bob.address(family), 8080));
        // The proxy's answer is what the client hears from the Service.
        let outcome = proxy_sends(&mut node, abi::MARK_PROXY_OUT, Who::Alice, &reply);
        assert_passed(&outcome);
        assert_eq!((outcome.seen().src, outcome.seen().sport), (frontend(family), 80));
    }
}

fn goes_up(outcome: &Outcome) {
    assert_passed(outcome);
    assert_eq!(outcome.mark & abi::MARK_MASK, abi::MARK_PROXY);
}

#[test]
fn errors_about_what_a_proxy_sent_go_to_the_proxy() {
    for family in FAMILIES {
        let (mut node, query) = asked(family);
        let (kind, code) = if family == Family::IPv4 { (3, 3) } else { (1, 4) };
        let nobody = |quoted: &Frame| L4::IcmpError { kind, code, quoted: quoted.packet() };
        goes_up(&node.send(family, Who::Bob, Who::Alice, nobody(&query)));
        let other = node.frame(family, Who::Alice, Who::Bob, udp(5000, 54));
        let error = node.send(family, Who::Bob, Who::Alice, nobody(&other));
        assert_dropped(&error, DropReason::PolicyDenied);
        // A connection of the proxy's, on a path with a narrow place.
        let opening = node.frame(family, Who::Alice, Who::Bob, syn(80));
        assert_passed(&proxy_sends(&mut node, abi::MARK_PROXY_OUT, Who::Bob, &opening));
        goes_up(&node.send(family, Who::World, Who::Alice, too_big(family, &opening)));
    }
}

/// Without the rule that keeps it here, the node forwards what is for a proxy: to where no rule of layer 7 has seen it.
#[test]
fn what_was_for_a_proxy_never_leaves() {
    for family in FAMILIES {
        let mut node = Node::new();
        let kernel = |node: &mut Node, hook, ifindex, frame: &Frame, mark| {
            node.kernel.run(hook, &frame.bytes(), Context { ifindex, mark, arrived_by: 0 })
        };
        let inside = node.frame(family, Who::Alice, Who::Bob, syn(80));
        let outside = node.frame(family, Who::Alice, Who::World, syn(80));
        for (hook, ifindex, frame) in
            [(Hook::ToContainer, node.device(Who::Bob), inside), (Hook::ToNetwork, node.uplink, outside)]
        {
            let missed = kernel(&mut node, hook, ifindex, &frame, abi::MARK_PROXY);
            assert_dropped(&missed, DropReason::ProxyNotFound);
            assert_passed(&kernel(&mut node, hook, ifindex, &frame, abi::MARK_PROXY_OUT));
        }
    }
}

/// They were dropped, also where one of the two sides refused nothing; between nodes such flows pass through both proxies.
#[test]
fn sides_that_want_different_proxies_get_the_one_that_judges_for_both() {
    let (http, dns, tls) = (abi::ACTION_REDIRECT_HTTP, abi::ACTION_REDIRECT_DNS, abi::ACTION_REDIRECT_TLS);
    let listeners = [(http, 1), (tls, 2), (dns, 3)];
    let wanted = [(http, tls, tls), (tls, http, tls), (dns, http, dns), (dns, tls, dns), (http, http, http)];
    for family in FAMILIES {
        for (egress, ingress, wanted) in wanted {
            let mut node = Node::new();
            node.set_flags(abi::CFG_PROXY);
            let rule = |peer, action| Cell::normal(peer, 6, abi::PORT_EXACT | 53, slot(action, 10, 7));
            node.policy(ALICE_POLICY, [DEFAULT_DENY, 0], &[(Direction::Egress, rule(BOB, egress))]);
            node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[(Direction::Ingress, rule(ALICE, ingress))]);
            // No socket can be given a packet here. Which one it was to be is in the connection's entry.
            assert_dropped(&node.send(family, Who::Alice, Who::Bob, syn(53)), DropReason::ProxyNotFound);
            let connections = node.kernel.connections();
            let [kept] = connections[..] else { panic!("{egress} and {ingress}: {connections:?}") };
            let listener = (u32::from(kept.entry.flags) & abi::CT_LISTENER) >> abi::CT_LISTENER_SHIFT;
            assert!(listeners.contains(&(wanted, listener)), "{egress} and {ingress}: {listener}");
        }
    }
}
