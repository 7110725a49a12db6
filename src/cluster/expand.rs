//! References in policies to CIDR groups and Services, replaced by what they stand for now.
//!
//! Contract: a reference to something that does not exist stands for nothing, so its element
//! matches nothing; the list around it stays a list ("none of these"), never "any".

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;

use super::objects::Objects;
use crate::identity::pod::NAMESPACE_KEY;
use crate::model::{CidrScope, Kind, KubeLabels, Label, LabelSource, Labels, ObjectRef, Service};
use crate::policy::rule::{CidrGroupRef, CidrSet, GroupSelect, Peer, Peers, Policy, ServiceRef};
use crate::policy::selector::{LabelSelector, Operator, Requirement, SelectorKey};
use crate::service::slice_addresses;

/// What a policy refers to by name or label.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct References {
    pub(super) groups: Vec<GroupSelect>,
    pub(super) services: Vec<ServiceRef>,
}

impl References {
    pub(super) fn of(policy: &Policy) -> References {
        let mut references = References::default();
        for peer in peers(policy) {
            match peer {
                Peer::CidrGroup(group) => references.groups.push(group.groups.clone()),
                Peer::Service(service) => references.services.push(service.clone()),
                _ => {}
            }
        }
        references
    }

    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.services.is_empty()
    }

    /// A change of this group can change what the policy says. References by label always can.
    pub(super) fn may_name_group(&self, name: &str) -> bool {
        self.groups.iter().any(|group| match group {
            GroupSelect::Name(wanted) => **wanted == *name,
            GroupSelect::Labels(_) => true,
        })
    }

    pub(super) fn may_name_service(&self, service: &ObjectRef) -> bool {
        self.services.iter().any(|wanted| match wanted {
            ServiceRef::Name { namespace, name } => *name == service.name && is_in(service, namespace),
            ServiceRef::Labels { namespace, .. } => is_in(service, namespace),
        })
    }
}

fn is_in(service: &ObjectRef, namespace: &Option<Arc<str>>) -> bool {
    namespace.as_ref().is_none_or(|namespace| *namespace == service.namespace)
}

/// Every peer element of a policy.
pub(super) fn peers(policy: &Policy) -> impl Iterator<Item = &Peer> {
    policy.specs.iter().flat_map(|spec| &spec.rules).flat_map(|rule| match &rule.peers {
        Peers::Any => [].iter(),
        Peers::OneOf(peers) => peers.iter(),
    })
}

/// The policy without references.
pub(super) fn expand(policy: &Arc<Policy>, references: &References, objects: &Objects) -> Arc<Policy> {
    if references.is_empty() {
        return policy.clone();
    }
    let mut expanded = Policy::clone(policy);
    for rule in expanded.specs.iter_mut().flat_map(|spec| &mut spec.rules) {
        if let Peers::OneOf(peers) = &mut rule.peers {
            *peers = std::mem::take(peers).into_iter().flat_map(|peer| expand_peer(peer, objects)).collect();
        }
    }
    Arc::new(expanded)
}

fn expand_peer(peer: Peer, objects: &Objects) -> Vec<Peer> {
    match peer {
        Peer::CidrGroup(reference) => expand_group(&reference, objects),
        Peer::Service(reference) => expand_service(&reference, objects),
        other => vec![other],
    }
}

fn kube_labels(labels: &KubeLabels) -> Labels {
    labels.iter().map(|(key, value)| Label::k8s(key, value)).collect()
}

fn expand_group(reference: &CidrGroupRef, objects: &Objects) -> Vec<Peer> {
    let wanted = objects.groups().filter(|group| match &reference.groups {
        GroupSelect::Name(name) => **name == *group.name,
        GroupSelect::Labels(selector) => selector.matches(&kube_labels(&group.labels)),
    });
    let cidrs: BTreeSet<IpNet> = wanted.flat_map(|group| group.cidrs.iter().copied()).collect();
    cidrs.into_iter().filter_map(|cidr| minus(cidr, &reference.except)).map(Peer::Cidr).collect()
}

/// `cidr` without what `except` covers; `None` when nothing is left.
fn minus(cidr: IpNet, except: &[IpNet]) -> Option<CidrSet> {
    if except.iter().any(|except| except.contains(&cidr)) {
        return None;
    }
    let mut except: Vec<IpNet> = except.iter().copied().filter(|except| cidr.contains(except)).collect();
    except.sort_unstable();
    except.dedup();
    Some(CidrSet { cidr, except })
}

fn expand_service(reference: &ServiceRef, objects: &Objects) -> Vec<Peer> {
    let wanted = objects.services().filter(|service| match reference {
        ServiceRef::Name { namespace, name } => {
            **name == *service.name && namespace.as_ref().is_none_or(|ns| **ns == *service.namespace)
        }
        ServiceRef::Labels { namespace, selector } => {
            namespace.as_ref().is_none_or(|ns| **ns == *service.namespace)
                && selector.matches(&kube_labels(&service.labels))
        }
    });
    let peers: BTreeSet<Peer> = wanted.flat_map(|service| service_peers(service, objects)).collect();
    peers.into_iter().collect()
}

fn service_peers(service: &Service, objects: &Objects) -> Vec<Peer> {
    match &service.selector {
        Some(selector) if selector.is_empty() => vec![],
        Some(selector) => {
            let equals = |key: &str, value: &str| Requirement {
                key: SelectorKey { source: Some(LabelSource::K8s), key: key.into() },
                operator: Operator::In(BTreeSet::from([value.into()])),
            };
            let mut requirements = vec![equals(NAMESPACE_KEY, &service.namespace)];
            requirements.extend(selector.iter().map(|(key, value)| equals(key, value)));
            vec![Peer::Pods(LabelSelector::new(requirements))]
        }
        None => {
            let reference = ObjectRef::new(Kind::Service, &service.namespace, &service.name);
            slice_addresses(&objects.slices_of(&reference))
                .into_iter()
                .map(|address| Peer::Cidr(CidrSet { cidr: IpNet::from(address), except: vec![] }))
                .collect()
        }
    }
}

/// A prefix as the scope of the addresses for which no longer prefix is named.
pub(super) fn prefix_scope(prefix: IpNet) -> CidrScope {
    CidrScope { prefix: Some(prefix), fqdns: BTreeSet::new(), ipv6: matches!(prefix, IpNet::V6(_)) }
}
