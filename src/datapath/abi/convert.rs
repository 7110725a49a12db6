//! Model types <-> map types: the only code that knows byte order and how IPv4 is stored.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::*;
use crate::model::{Direction, Family, Identity, PortRange, Protocol};
use crate::policy::map_state::{
    Basis, DirectionInfo, PolicyEntry, PolicyKey, PortClass, Precedence, Proxy, RuleSetId, Slot, SlotAction,
};

impl Addr {
    /// No address.
    pub const NONE: Addr = Addr { b: [0; 16] };

    /// `None` for the all-zero "no address".
    pub fn to_ip(self) -> Option<IpAddr> {
        (self != Addr::NONE).then(|| self.to_ip_or_unspecified())
    }

    /// The address, `::` for none.
    pub fn to_ip_or_unspecified(self) -> IpAddr {
        let v6 = Ipv6Addr::from(self.b);
        v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
    }
}

impl From<IpAddr> for Addr {
    fn from(address: IpAddr) -> Addr {
        let v6 = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        Addr { b: v6.octets() }
    }
}

/// Bits in front of an IPv4 address in its IPv4-mapped form.
const MAPPED_BITS: u8 = 96;

impl From<IpNet> for LpmKey {
    fn from(net: IpNet) -> LpmKey {
        let prefix_len = match net {
            IpNet::V4(v4) => MAPPED_BITS + v4.prefix_len(),
            IpNet::V6(v6) => v6.prefix_len(),
        };
        LpmKey { prefix_len: u32::from(prefix_len), addr: net.network().into() }
    }
}

impl LpmKey {
    /// The prefix that is one bit shorter.
    pub fn shorter(&self) -> Option<LpmKey> {
        let prefix_len = self.prefix_len.checked_sub(1)?;
        let mask = u128::MAX.checked_shl(128 - prefix_len).unwrap_or(0);
        let masked = u128::from_be_bytes(self.addr.b) & mask;
        Some(LpmKey { prefix_len, addr: Addr { b: masked.to_be_bytes() } })
    }

    /// The prefix; `None` for lengths that no address has.
    pub fn to_net(self) -> Option<IpNet> {
        let length = u8::try_from(self.prefix_len).ok()?;
        match self.addr.to_ip_or_unspecified() {
            IpAddr::V4(v4) if length >= MAPPED_BITS => {
                Some(IpNet::V4(Ipv4Net::new(v4, length - MAPPED_BITS).ok()?))
            }
            IpAddr::V4(v4) => Some(IpNet::V6(Ipv6Net::new(v4.to_ipv6_mapped(), length).ok()?)),
            // 0.0.0.0/0 to ::ffff:0:0/96 is IPv4-mapped too, so this is IPv6.
            IpAddr::V6(v6) => Some(IpNet::V6(Ipv6Net::new(v6, length).ok()?)),
        }
    }
}

/// A prefix that covers one address only goes to the exact map.
pub fn single_address(net: IpNet) -> Option<IpAddr> {
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

/// Family of a stored address.
pub fn family(addr: Addr) -> Family {
    Family::of(addr.to_ip_or_unspecified())
}

/// `SLUICE_DIR_*`.
pub fn direction_number(direction: Direction) -> u8 {
    match direction {
        Direction::Egress => DIR_EGRESS as u8,
        Direction::Ingress => DIR_INGRESS as u8,
    }
}

/// Direction of a number that the kernel side wrote.
pub fn direction_from_number(number: u8) -> Option<Direction> {
    Direction::BOTH.into_iter().find(|d| direction_number(*d) == number)
}

fn port_class_number(port: PortClass) -> u32 {
    match port {
        PortClass::Any => PORT_ANY,
        PortClass::Exact(port) => PORT_EXACT | u32::from(port),
        PortClass::Class(class) => PORT_CLASS | class,
    }
}

fn port_class_from_number(number: u32) -> PortClass {
    if number & PORT_CLASS != 0 {
        PortClass::Class(number & !PORT_CLASS)
    } else if number & PORT_EXACT != 0 {
        PortClass::Exact((number & 0xffff) as u16)
    } else {
        PortClass::Any
    }
}

impl PolicyMapKey {
    /// The map key of a cell of policy `policy_id`.
    pub fn new(policy_id: u32, key: PolicyKey) -> PolicyMapKey {
        PolicyMapKey {
            policy_id,
            identity: key.identity.0,
            port_class: port_class_number(key.port),
            protocol: key.protocol.map_or(0, Protocol::number),
            direction: direction_number(key.direction),
            pad: 0,
        }
    }

    /// The cell; `None` when the direction is none.
    pub fn cell(self) -> Option<PolicyKey> {
        Some(PolicyKey {
            direction: direction_from_number(self.direction)?,
            identity: Identity(self.identity),
            protocol: (self.protocol != 0).then(|| Protocol::from_number(self.protocol)),
            port: port_class_from_number(self.port_class),
        })
    }
}

impl From<Option<Slot>> for PolicySlot {
    fn from(slot: Option<Slot>) -> PolicySlot {
        let Some(slot) = slot else { return PolicySlot::default() };
        let action = match slot.action {
            SlotAction::Allow => ACTION_ALLOW,
            SlotAction::Deny => ACTION_DENY,
            SlotAction::Pass => ACTION_PASS,
            SlotAction::Redirect(Proxy::Http) => ACTION_REDIRECT_HTTP,
            SlotAction::Redirect(Proxy::Dns) => ACTION_REDIRECT_DNS,
            SlotAction::Redirect(Proxy::Tls) => ACTION_REDIRECT_TLS,
        };
        let basis = match slot.basis {
            Basis::Peer => 0,
            Basis::Name => ACTION_BY_NAME,
        };
        PolicySlot { precedence: slot.precedence.0, rule_set: slot.rules.0, action: action | basis }
    }
}

/// Meaning of a `SLUICE_ACTION_*`; `None` for an empty slot and for numbers that we do not know.
pub fn action_from_number(number: u32) -> Option<SlotAction> {
    match number & ACTION_MASK {
        ACTION_ALLOW => Some(SlotAction::Allow),
        ACTION_DENY => Some(SlotAction::Deny),
        ACTION_PASS => Some(SlotAction::Pass),
        ACTION_REDIRECT_HTTP => Some(SlotAction::Redirect(Proxy::Http)),
        ACTION_REDIRECT_DNS => Some(SlotAction::Redirect(Proxy::Dns)),
        ACTION_REDIRECT_TLS => Some(SlotAction::Redirect(Proxy::Tls)),
        _ => None,
    }
}

impl PolicySlot {
    /// The slot in model types; `None` when empty.
    pub fn slot(self) -> Option<Slot> {
        if self.precedence == 0 {
            return None;
        }
        Some(Slot {
            precedence: Precedence(self.precedence),
            action: action_from_number(self.action)?,
            rules: RuleSetId(self.rule_set),
            basis: if self.action & ACTION_BY_NAME == 0 { Basis::Peer } else { Basis::Name },
        })
    }
}

impl From<PolicyEntry> for PolicyMapEntry {
    fn from(entry: PolicyEntry) -> PolicyMapEntry {
        PolicyMapEntry { admin: entry.admin.into(), normal: entry.normal.into() }
    }
}

impl PolicyMapEntry {
    /// The entry in model types.
    pub fn entry(self) -> PolicyEntry {
        PolicyEntry { admin: self.admin.slot(), normal: self.normal.slot() }
    }
}

/// The cell kinds of `SLUICE_PF_*`: what a lookup may skip when clear.
pub const CELL_FLAGS: u32 = PF_ID_EXACT
    | PF_ID_PROTO
    | PF_ID_ANY
    | PF_GROUP_EXACT
    | PF_GROUP_PROTO
    | PF_GROUP_ANY
    | PF_ANY_EXACT
    | PF_ANY_PROTO
    | PF_ANY_ANY
    | PF_RANGES
    | PF_ADDR_CLASS;

/// `SLUICE_PF_*` of one direction.
pub fn direction_flags(info: DirectionInfo) -> u32 {
    let cells = info.cells;
    let cell_flags = [
        (cells.id_exact, PF_ID_EXACT),
        (cells.id_protocol, PF_ID_PROTO),
        (cells.id_any, PF_ID_ANY),
        (cells.group_exact, PF_GROUP_EXACT),
        (cells.group_protocol, PF_GROUP_PROTO),
        (cells.group_any, PF_GROUP_ANY),
        (cells.any_exact, PF_ANY_EXACT),
        (cells.any_protocol, PF_ANY_PROTO),
        (cells.any_any, PF_ANY_ANY),
        (info.ranges, PF_RANGES),
        (info.address_classes, PF_ADDR_CLASS),
        (info.default_deny, PF_DEFAULT_DENY),
    ];
    let flags = cell_flags.into_iter().filter(|(on, _)| *on).fold(0, |flags, (_, flag)| flags | flag);
    if flags == 0 { 0 } else { flags | PF_ENFORCED }
}

/// Longest prefix of a [`PortClassKey`]: policy id, direction, protocol, port.
const PORT_KEY_BITS: u32 = 64;

/// The fewest prefixes that together are exactly `range`.
pub fn port_prefixes(range: PortRange) -> impl Iterator<Item = (u16, u32)> {
    let last = u32::from(range.last());
    let mut next = u32::from(range.first());
    std::iter::from_fn(move || {
        if next > last {
            return None;
        }
        // The largest block that starts here: limited by alignment and by what is left.
        let aligned = next.trailing_zeros().min(16);
        let fits = (last - next + 1).ilog2();
        let bits = aligned.min(fits);
        let start = next as u16;
        next += 1 << bits;
        Some((start, 16 - bits))
    })
}

impl PortClassKey {
    /// The prefix that covers twice as many ports; the policy, direction and protocol stay.
    pub fn shorter(&self) -> Option<PortClassKey> {
        let prefix_len = self.prefix_len.checked_sub(1).filter(|bits| *bits >= PORT_KEY_BITS - 16)?;
        let mask = u16::MAX.checked_shl(PORT_KEY_BITS - prefix_len).unwrap_or(0);
        let port = u16::from_be_bytes(self.port_be) & mask;
        Some(PortClassKey { prefix_len, port_be: port.to_be_bytes(), ..*self })
    }

    /// Key of one prefix of ports (`bits` leading bits of `port`).
    pub fn new(
        policy_id: u32,
        direction: Direction,
        protocol: Protocol,
        port: u16,
        bits: u32,
    ) -> PortClassKey {
        PortClassKey {
            prefix_len: PORT_KEY_BITS - 16 + bits,
            policy_id,
            direction: direction_number(direction),
            protocol: protocol.number(),
            port_be: port.to_be_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::IdentityGroup;

    proptest! {
        #[test]
        fn port_prefixes_cover_exactly_the_range(a in 1u16.., b in 1u16..) {
            let (first, last) = (a.min(b), a.max(b));
            let range = PortRange::new(first, last).unwrap();
            let mut next = u32::from(first);
            for (port, bits) in port_prefixes(range) {
                prop_assert_eq!(u32::from(port), next);
                prop_assert_eq!(u32::from(port) & ((1 << (16 - bits)) - 1), 0);
                next += 1 << (16 - bits);
            }
            prop_assert_eq!(next, u32::from(last) + 1);
        }

        #[test]
        fn prefixes_survive_the_round_trip(octets: [u8; 4], length in 0u8..=32, wide: [u8; 16], wide_length in 0u8..=128) {
            let v4 = IpNet::new(IpAddr::from(octets), length).unwrap().trunc();
            prop_assert_eq!(LpmKey::from(v4).to_net(), Some(v4));
            let v6 = IpNet::new(IpAddr::from(wide), wide_length).unwrap().trunc();
            prop_assert_eq!(LpmKey::from(v6).to_net(), Some(v6));
        }
    }

    #[test]
    fn ipv4_is_stored_mapped() {
        let addr = Addr::from(IpAddr::from([10, 1, 2, 3]));
        assert_eq!(addr.b, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3]);
        assert_eq!(addr.to_ip(), Some(IpAddr::from([10, 1, 2, 3])));
        assert_eq!(Addr::NONE.to_ip(), None);
        assert_eq!(LpmKey::from("10.0.0.0/8".parse::<IpNet>().unwrap()).prefix_len, 104);
    }

    #[test]
    fn cells_and_slots_survive_the_round_trip() {
        for port in [PortClass::Any, PortClass::Exact(0), PortClass::Exact(65535), PortClass::Class(7)] {
            let key = PolicyKey {
                direction: Direction::Ingress,
                identity: Identity(70000),
                protocol: Some(Protocol::Tcp),
                port,
            };
            assert_eq!(PolicyMapKey::new(3, key).cell(), Some(key));
        }
        let slot = Slot {
            precedence: Precedence(9),
            action: SlotAction::Redirect(Proxy::Dns),
            rules: RuleSetId(4),
            basis: Basis::Name,
        };
        let entry = PolicyEntry { admin: None, normal: Some(slot) };
        assert_eq!(PolicyMapEntry::from(entry).entry(), entry);
    }

    #[test]
    fn groups_have_the_numbers_that_the_programs_know() {
        let numbers = [
            GROUP_PODS,
            GROUP_REMOTE_NODES,
            GROUP_WORLD_IPV4,
            GROUP_WORLD_IPV6,
            GROUP_ADDRESSES_IPV4,
            GROUP_ADDRESSES_IPV6,
        ];
        assert_eq!(IdentityGroup::ALL.map(|group| group.key().0), numbers);
    }

    #[test]
    fn a_direction_without_anything_is_not_enforced() {
        assert_eq!(direction_flags(DirectionInfo::default()), 0);
        let deny = DirectionInfo { default_deny: true, ..Default::default() };
        assert_eq!(direction_flags(deny), PF_DEFAULT_DENY | PF_ENFORCED);
    }
}
