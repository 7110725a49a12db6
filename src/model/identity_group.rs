//! Groups of identities that the number of an identity and the family of the peer's address give away, so
//! that a rule for all of them is one entry a policy instead of one for each. PURE.
//!
//! Every identity is in at most one group. A group has a number of its own in the place of an identity
//! ([`IdentityGroup::key`], scope 4<<24); `SLUICE_GROUP_*` in `bpf/abi.h` are the same numbers, and
//! `identity_group` in `bpf/lib/policy.h` is [`IdentityGroup::of`].

use super::{Family, Identity, IdentityKind, IdentityRecord};

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum IdentityGroup {
    /// Cluster scope: every pod with an identity of its own.
    Pods,
    /// Every other node.
    RemoteNodes,
    /// CIDR and FQDN identities of IPv4 addresses. The fixed numbers of the world are in no group.
    WorldIpv4,
    WorldIpv6,
    /// Address classes of IPv4 prefixes.
    AddressesIpv4,
    AddressesIpv6,
}

impl IdentityGroup {
    pub const ALL: [IdentityGroup; 6] = [
        IdentityGroup::Pods,
        IdentityGroup::RemoteNodes,
        IdentityGroup::WorldIpv4,
        IdentityGroup::WorldIpv6,
        IdentityGroup::AddressesIpv4,
        IdentityGroup::AddressesIpv6,
    ];

    /// The group of the identity that an address of this family was resolved to.
    pub fn of(id: Identity, family: Family) -> Option<IdentityGroup> {
        let of_family = |ipv4, ipv6| match family {
            Family::IPv4 => Some(ipv4),
            Family::IPv6 => Some(ipv6),
        };
        match id.0 >> 24 {
            0 => id.is_cluster_scope().then_some(IdentityGroup::Pods),
            1 => of_family(IdentityGroup::WorldIpv4, IdentityGroup::WorldIpv6),
            2 => Some(IdentityGroup::RemoteNodes),
            3 => of_family(IdentityGroup::AddressesIpv4, IdentityGroup::AddressesIpv6),
            _ => None,
        }
    }

    /// The groups that addresses with this identity can be in: one, unless the record is not what its number
    /// says.
    pub fn of_record(record: &IdentityRecord) -> GroupSet {
        let family = match &record.kind {
            IdentityKind::Cidr(scope) => Some(match scope.prefix {
                Some(prefix) => Family::of(prefix.addr()),
                None if scope.ipv6 => Family::IPv6,
                None => Family::IPv4,
            }),
            IdentityKind::AddressClass(prefix) => Some(Family::of(prefix.addr())),
            IdentityKind::Labels | IdentityKind::Node { .. } => None,
        };
        let families = family.map_or(&[Family::IPv4, Family::IPv6][..], |family| match family {
            Family::IPv4 => &[Family::IPv4],
            Family::IPv6 => &[Family::IPv6],
        });
        families.iter().filter_map(|family| IdentityGroup::of(record.id, *family)).collect()
    }

    /// What stands for the group where an identity does otherwise.
    pub fn key(self) -> Identity {
        Identity(Identity::GROUP_MIN + self as u32)
    }

    /// The group that a key stands for.
    pub fn of_key(key: Identity) -> Option<IdentityGroup> {
        let index = key.0.checked_sub(Identity::GROUP_MIN)?;
        IdentityGroup::ALL.get(usize::try_from(index).ok()?).copied()
    }

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            IdentityGroup::Pods => "every-pod",
            IdentityGroup::RemoteNodes => "every-remote-node",
            IdentityGroup::WorldIpv4 => "every-world-ipv4",
            IdentityGroup::WorldIpv6 => "every-world-ipv6",
            IdentityGroup::AddressesIpv4 => "every-address-ipv4",
            IdentityGroup::AddressesIpv6 => "every-address-ipv6",
        }
    }
}

/// Some of the groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupSet(u8);

impl GroupSet {
    pub const EMPTY: GroupSet = GroupSet(0);

    pub fn is_empty(self) -> bool {
        self == GroupSet::EMPTY
    }

    pub fn contains(self, group: IdentityGroup) -> bool {
        self.0 & (1 << group as u8) != 0
    }

    /// All of these are in `other`.
    pub fn is_subset(self, other: GroupSet) -> bool {
        self.0 & !other.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = IdentityGroup> {
        IdentityGroup::ALL.into_iter().filter(move |group| self.contains(*group))
    }

    /// The group, where there is exactly one.
    pub fn single(self) -> Option<IdentityGroup> {
        let mut groups = self.iter();
        groups.next().filter(|_| groups.next().is_none())
    }
}

impl FromIterator<IdentityGroup> for GroupSet {
    fn from_iter<I: IntoIterator<Item = IdentityGroup>>(groups: I) -> GroupSet {
        GroupSet(groups.into_iter().fold(0, |set, group| set | 1 << group as u8))
    }
}

impl std::ops::BitAnd for GroupSet {
    type Output = GroupSet;

    fn bitand(self, other: GroupSet) -> GroupSet {
        GroupSet(self.0 & other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_groups_and_fixed_numbers_are_in_none() {
        let of = |id| IdentityGroup::of(Identity(id), Family::IPv4);
        for (id, name) in Identity::RESERVED {
            assert_eq!(of(id.0), None, "{name}");
        }
        assert_eq!(of(Identity::CLUSTER_MIN - 1), None);
        assert_eq!(of(Identity::CLUSTER_MIN), Some(IdentityGroup::Pods));
        assert_eq!(of(Identity::CLUSTER_MAX), Some(IdentityGroup::Pods));
        assert_eq!(of(Identity::CLUSTER_MAX + 1), None);
        assert_eq!(of(Identity::LOCAL_CIDR_MIN - 1), None);
        assert_eq!(of(Identity::LOCAL_CIDR_MIN), Some(IdentityGroup::WorldIpv4));
        assert_eq!(
            IdentityGroup::of(Identity(Identity::REMOTE_NODE_MIN - 1), Family::IPv6),
            Some(IdentityGroup::WorldIpv6)
        );
        assert_eq!(of(Identity::REMOTE_NODE_MIN), Some(IdentityGroup::RemoteNodes));
        assert_eq!(of(Identity::ADDRESS_CLASS_MIN), Some(IdentityGroup::AddressesIpv4));
        assert_eq!(of(Identity::GROUP_MIN), None);
    }

    #[test]
    fn keys_survive_the_round_trip() {
        for group in IdentityGroup::ALL {
            assert_eq!(IdentityGroup::of_key(group.key()), Some(group));
            assert_eq!([group].into_iter().collect::<GroupSet>().single(), Some(group));
        }
        assert_eq!(IdentityGroup::of_key(Identity(Identity::GROUP_MIN + 6)), None);
        assert_eq!(IdentityGroup::of_key(Identity::UNKNOWN), None);
    }
}
