//! Which groups a selector covers: all their identities match it, so that its rules have their cells under
//! the group.
//!
//! Two conditions, so that neither a word nor an accident makes a group cell. The *form* of the selector says
//! that it means everybody of a group ([`wide`]): `app=web` never does, even where every pod is a web
//! server. And every *known* identity of the group matches it indeed ([`Wide::covered`]); an identity that does
//! not (a record that is not what its number says, an FQDN identity outside every prefix while a rule on
//! 0.0.0.0/0 arrives) takes the group away from the selector, which has one cell for each member again.

use ipnet::IpNet;

use super::identities::{IdentityTable, Known};
use super::selectors::SelectorKey;
use crate::model::{Family, GroupSet, IdentityGroup, LabelSource};
use crate::policy::rule::{CidrSet, Entity, Peer};
use crate::policy::selector::{LabelSelector, Operator};

/// Groups that a selector may cover, with what is known of them.
#[derive(Debug)]
pub(super) struct Wide {
    /// By form.
    pub(super) groups: GroupSet,
    /// Members in each group.
    counts: [usize; IdentityGroup::ALL.len()],
    /// By form and fact.
    pub(super) covered: GroupSet,
}

impl Wide {
    pub(super) fn of(key: &SelectorKey) -> Wide {
        Wide { groups: wide(key), counts: Default::default(), covered: GroupSet::EMPTY }
    }

    /// The members of a selector are in two lists: this one goes with those of groups.
    pub(super) fn holds(&self, known: &Known) -> bool {
        !(self.groups & known.groups).is_empty()
    }

    /// One member more, or less.
    pub(super) fn count(&mut self, known: &Known, change: isize) {
        if let Some(group) = known.groups.single() {
            let count = &mut self.counts[group as usize];
            *count = count.wrapping_add_signed(change);
        }
    }

    /// Finds anew what is covered. `true` when that changed.
    pub(super) fn refresh(&mut self, identities: &IdentityTable) -> bool {
        let all = |group: &IdentityGroup| self.counts[*group as usize] == identities.group_size(*group);
        let covered = self.groups.iter().filter(all).collect();
        std::mem::replace(&mut self.covered, covered) != covered
    }

    /// The cells of the group reach this identity.
    pub(super) fn covers(&self, known: &Known) -> bool {
        !(self.covered & known.groups).is_empty()
    }
}

/// The groups all of whose identities the selector means.
fn wide(key: &SelectorKey) -> GroupSet {
    use IdentityGroup::{AddressesIpv4, AddressesIpv6, Pods, RemoteNodes, WorldIpv4, WorldIpv6};
    let SelectorKey::Peer(peer) = key else { return GroupSet::EMPTY };
    let groups: &[IdentityGroup] = match peer {
        Peer::Pods(selector) if is_every_pod(selector) => &[Pods],
        Peer::Nodes(selector) if selector.requirements().is_empty() => &[RemoteNodes],
        Peer::Entity(Entity::Cluster) => &[Pods, RemoteNodes],
        Peer::Entity(Entity::RemoteNode) => &[RemoteNodes],
        Peer::Entity(Entity::World) => &[WorldIpv4, WorldIpv6],
        Peer::Entity(Entity::WorldIpv4) => &[WorldIpv4],
        Peer::Entity(Entity::WorldIpv6) => &[WorldIpv6],
        Peer::Cidr(set) => match every_address(set) {
            Some(Family::IPv4) => &[WorldIpv4],
            Some(Family::IPv6) => &[WorldIpv6],
            None => &[],
        },
        Peer::Address(set) => match every_address(set) {
            Some(Family::IPv4) => &[AddressesIpv4],
            Some(Family::IPv6) => &[AddressesIpv6],
            None => &[],
        },
        _ => &[],
    };
    groups.iter().copied().collect()
}

/// No requirement, or none but that the peer is in a namespace, as every pod is.
fn is_every_pod(selector: &LabelSelector) -> bool {
    selector.requirements().iter().all(|requirement| {
        requirement.operator == Operator::Exists
            && &*requirement.key.key == "io.kubernetes.pod.namespace"
            && matches!(requirement.key.source, None | Some(LabelSource::K8s))
    })
}

fn every_address(set: &CidrSet) -> Option<Family> {
    let all = set.cidr.prefix_len() == 0 && set.except.is_empty();
    all.then_some(match set.cidr {
        IpNet::V4(_) => Family::IPv4,
        IpNet::V6(_) => Family::IPv6,
    })
}
