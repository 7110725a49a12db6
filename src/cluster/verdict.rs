//! Questions to a view: who an address is, where a Service leads, what this node decides.

use std::net::IpAddr;

use super::delta::{AddressKind, ServiceEntry, ServiceFrontend};
use super::view::View;
use crate::model::{Direction, Identity, Kind, ObjectRef, Pod, Protocol};
use crate::policy::decision::{Because, Outcome, SideDecision};
use crate::policy::engine::{L4Flow, PeerView};

/// Everything that is known about an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub identity: Identity,
    /// Class of the address among the prefixes of `ipBlock` and `networks` rules.
    pub address_class: Option<Identity>,
    pub kind: AddressKind,
    /// The pod or node that has the address.
    pub owner: Option<ObjectRef>,
}

impl From<&Resolved> for PeerView {
    fn from(resolved: &Resolved) -> PeerView {
        PeerView { identity: resolved.identity, address_class: resolved.address_class }
    }
}

/// What this node decides about a connection: a side is there when its endpoint is local.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sides {
    pub egress: Option<SideDecision>,
    pub ingress: Option<SideDecision>,
}

impl Sides {
    /// The first side that denies; egress first.
    pub fn denied(&self) -> Option<&SideDecision> {
        self.iter().find(|side| side.outcome == Outcome::Deny)
    }

    /// Egress first.
    pub fn iter(&self) -> impl Iterator<Item = &SideDecision> {
        self.egress.iter().chain(&self.ingress)
    }
}

impl View {
    /// Who an address is. What nothing is known about is unknown, never allowed by accident.
    pub fn resolve(&self, address: IpAddr) -> Resolved {
        let entry = self.published.ipcache.lookup(address).map(|(_, entry)| *entry);
        Resolved {
            identity: entry.map(|entry| entry.identity).unwrap_or_default(),
            address_class: self.published.classes.lookup(address).map(|(_, class)| *class),
            kind: entry.map_or(AddressKind::World, |entry| entry.class),
            owner: self.owner(address).cloned(),
        }
    }

    /// A pod that is known.
    pub fn pod(&self, reference: &ObjectRef) -> Option<&Pod> {
        self.objects.pod(reference).map(|pod| &**pod)
    }

    /// Own addresses of a pod or a node.
    pub fn addresses_of(&self, reference: &ObjectRef) -> &[IpAddr] {
        match reference.kind {
            Kind::Pod => self.objects.pod(reference).map(|pod| &pod.addresses[..]),
            Kind::Node => self.objects.node(&reference.name).map(|node| &node.addresses[..]),
            _ => None,
        }
        .unwrap_or_default()
    }

    /// Pods come before nodes, as in the ipcache.
    fn owner(&self, address: IpAddr) -> Option<&ObjectRef> {
        let mut owners = self.objects.owners(address);
        owners.clone().find(|owner| owner.kind == Kind::Pod).or_else(|| owners.next())
    }

    /// The Service at a frontend address, with all its backends.
    pub fn translate(&self, address: IpAddr, port: u16, protocol: Protocol) -> Option<&ServiceEntry> {
        self.published.services.get(&ServiceFrontend { address, port, protocol })
    }

    /// Judges a connection after Service translation, as the datapath of this node does.
    ///
    /// A pod that reaches itself and a node that reaches itself are never judged. A local pod
    /// whose labels are not known yet is denied.
    pub fn decide(&self, source: IpAddr, destination: IpAddr, flow: L4Flow) -> Sides {
        let (from, to) = (self.resolve(source), self.resolve(destination));
        let is_hairpin = source == destination || (from.owner.is_some() && from.owner == to.owner);
        let side = |direction, subject: &Resolved, peer: &Resolved| {
            let judge = self.subject(subject)?;
            if is_hairpin {
                let because = Because::Hairpin;
                return Some(SideDecision { direction, outcome: Outcome::Allow, because });
            }
            Some(match judge {
                Judge::Engine(identity) => self.engine.decide(identity, direction, peer.into(), flow),
                Judge::NotReady => {
                    SideDecision { direction, outcome: Outcome::Deny, because: Because::DefaultDeny(vec![]) }
                }
            })
        };
        Sides { egress: side(Direction::Egress, &from, &to), ingress: side(Direction::Ingress, &to, &from) }
    }

    /// Who judges for this address here; `None` when it is not local.
    fn subject(&self, resolved: &Resolved) -> Option<Judge> {
        let owner = resolved.owner.as_ref()?;
        if owner.kind == Kind::Node {
            let is_governed = *owner.name == *self.options.node && self.options.host_firewall;
            return is_governed.then_some(Judge::Engine(Identity::HOST));
        }
        let state = self.derived.pods.get(owner)?;
        if state.pod.node.as_deref() != Some(&*self.options.node) {
            return None;
        }
        Some(if state.is_endpoint { Judge::Engine(state.identity) } else { Judge::NotReady })
    }
}

enum Judge {
    Engine(Identity),
    /// Local, and its policy is not known yet.
    NotReady,
}
