//! Packets through the real programs. They cannot crash the kernel; but what they pass is checked by a
//! reading of the packet that shares nothing with them: nothing that policy forbids, whatever it looks like.

use sluice::datapath::testrun::{Action, Context, Fragment, Hook, L4};

use crate::Target;
use crate::fixture::{ALICE, BOB_POLICY, Cell, DEFAULT_DENY, Direction, FAMILIES, Node, Who, ping, syn, udp};

/// Bob takes TCP 80 from Alice, and nothing else. Alice takes everything.
pub struct Packets {
    node: Node,
}

const HOOKS: [Hook; 3] = [Hook::FromContainer, Hook::FromNetwork, Hook::FromOverlay];

impl Packets {
    pub fn new() -> Packets {
        let mut node = Node::new();
        node.policy(BOB_POLICY, [0, DEFAULT_DENY], &[(Direction::Ingress, Cell::allow_tcp(ALICE, 80))]);
        Packets { node }
    }
}

impl Target for Packets {
    fn name(&self) -> &'static str {
        "packets"
    }

    /// The first byte is the hook.
    fn seeds(&self) -> Vec<Vec<u8>> {
        let mut seeds = Vec::new();
        let options = vec![0, 0, 1, 4, 0, 0, 0, 0];
        for family in FAMILIES {
            for (hook, from) in [(0, Who::Alice), (1, Who::World), (1, Who::Carol), (2, Who::Carol)] {
                for l4 in [syn(80), syn(81), udp(5000, 53), ping(family, 3), L4::Sctp { sport: 9, dport: 80 }]
                {
                    let plain = self.node.frame(family, from, Who::Bob, l4);
                    let mut first = plain.clone();
                    first.payload = vec![7; 64];
                    first.fragment = Some(Fragment { id: 77, offset: 0, more: true });
                    let mut later = first.clone();
                    later.fragment = Some(Fragment { id: 77, offset: 64, more: false });
                    let mut dressed = plain.clone();
                    dressed.options = vec![1, 1, 1, 0];
                    dressed.extensions = vec![(0, options.clone()), (60, options.clone())];
                    for frame in [plain, first, later, dressed] {
                        seeds.push([&[hook], frame.bytes().as_slice()].concat());
                    }
                }
            }
        }
        seeds
    }

    fn longest(&self) -> usize {
        2048
    }

    fn check(&mut self, input: &[u8]) {
        let Some((first, frame)) = input.split_first() else { return };
        // BPF_PROG_TEST_RUN refuses less than Ethernet and IP headers.
        if frame.len() < 14 + 40 {
            return;
        }
        let hook = HOOKS[usize::from(*first) % HOOKS.len()];
        let ifindex = if hook == Hook::FromContainer { self.node.alice } else { self.node.uplink };
        let outcome = self.node.kernel.run(hook, frame, Context { ifindex, mark: 0, arrived_by: 0 });
        let is_dropped = matches!(outcome.action, Action::Drop(_));
        if let Some(why) = forbidden(hook, frame)
            && !is_dropped
        {
            panic!("{why} passed {hook:?}: {:?}", outcome.action);
        }
    }
}

/// Why this packet must not pass, as far as it can be told from its headers alone.
fn forbidden(hook: Hook, frame: &[u8]) -> Option<&'static str> {
    let packet = Packet::read(frame)?;
    let is = |address: &[u8], who: Who| {
        FAMILIES.iter().any(|family| match who.address(*family) {
            std::net::IpAddr::V4(v4) => v4.octets() == *address,
            std::net::IpAddr::V6(v6) => v6.octets() == *address,
        })
    };
    let local = [Who::Alice, Who::Bob, Who::Host];
    match hook {
        // The packets here came through no tunnel.
        Hook::FromOverlay => return Some("a packet without a tunnel"),
        Hook::FromContainer if !is(packet.source, Who::Alice) => return Some("a forged source"),
        Hook::FromNetwork
            if local.iter().any(|who| is(packet.source, *who))
                && local.iter().any(|who| is(packet.destination, *who)) =>
        {
            return Some("a source of this node, from outside");
        }
        _ => {}
    }
    if !is(packet.destination, Who::Bob) {
        return None;
    }
    match packet.port {
        Some((6, 80)) if hook == Hook::FromContainer => None,
        Some((6 | 17 | 132, _)) => Some("a port that policy forbids"),
        // Later fragments and ICMP errors belong to flows; the tests of the programs have them.
        _ => None,
    }
}

/// The members of a packet that a verdict depends on.
struct Packet<'a> {
    source: &'a [u8],
    destination: &'a [u8],
    /// Protocol and destination port, where the packet has the transport header.
    port: Option<(u8, u16)>,
}

impl Packet<'_> {
    fn read(frame: &[u8]) -> Option<Packet<'_>> {
        let ip = frame.get(14..)?;
        match (frame.get(12..14)?, ip.first()? >> 4) {
            ([0x08, 0x00], 4) => {
                let header = usize::from(ip[0] & 15) * 4;
                let fragment = u16::from_be_bytes([*ip.get(6)?, *ip.get(7)?]) & 0x1fff;
                let port = (fragment == 0).then(|| port(ip, *ip.get(9)?, header)).flatten();
                Some(Packet { source: ip.get(12..16)?, destination: ip.get(16..20)?, port })
            }
            ([0x86, 0xdd], 6) => Some(Packet {
                source: ip.get(8..24)?,
                destination: ip.get(24..40)?,
                port: behind_extensions(ip),
            }),
            _ => None,
        }
    }
}

fn port(ip: &[u8], protocol: u8, at: usize) -> Option<(u8, u16)> {
    let bytes = ip.get(at + 2..at + 4)?;
    Some((protocol, u16::from_be_bytes([bytes[0], bytes[1]])))
}

/// Walks the extension headers (RFC 8200), as a lenient receiver would.
fn behind_extensions(ip: &[u8]) -> Option<(u8, u16)> {
    let (mut next, mut at) = (*ip.get(6)?, 40);
    loop {
        let length = match next {
            0 | 43 | 60 => 8 + usize::from(*ip.get(at + 1)?) * 8,
            51 => (usize::from(*ip.get(at + 1)?) + 2) * 4,
            44 if u16::from_be_bytes([*ip.get(at + 2)?, *ip.get(at + 3)?]) & 0xfff8 != 0 => return None,
            44 => 8,
            protocol => return port(ip, protocol, at),
        };
        next = *ip.get(at)?;
        at += length;
    }
}
