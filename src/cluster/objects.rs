//! The objects of the cluster as they were last told, with the indexes that find what a change
//! touches without looking at everything.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::{Resource, Secret};
use crate::identity::pod::has_own_addresses;
use crate::model::{EndpointSlice, Kind, Namespace, Node, Object, ObjectRef, Pod, Service};
use crate::policy::rule::{CidrGroup, Policy};

/// An object behind an `Arc`: taking one out and putting it back copies nothing.
#[derive(Clone, Debug)]
pub(super) enum Stored {
    Namespace(Arc<Namespace>),
    Pod(Arc<Pod>),
    Node(Arc<Node>),
    Service(Arc<Service>),
    Slice(Arc<EndpointSlice>),
    Policy(Arc<Policy>),
    Group(Arc<CidrGroup>),
    Secret(Arc<Secret>),
}

impl From<Resource> for Stored {
    fn from(resource: Resource) -> Stored {
        match resource {
            Resource::Object(Object::Namespace(o)) => Stored::Namespace(o.into()),
            Resource::Object(Object::Pod(o)) => Stored::Pod(o.into()),
            Resource::Object(Object::Node(o)) => Stored::Node(o.into()),
            Resource::Object(Object::Service(o)) => Stored::Service(o.into()),
            Resource::Object(Object::EndpointSlice(o)) => Stored::Slice(o.into()),
            Resource::Policy(o) => Stored::Policy(o.into()),
            Resource::CidrGroup(o) => Stored::Group(o.into()),
            Resource::Secret(o) => Stored::Secret(o.into()),
        }
    }
}

type Index<K> = HashMap<K, Members>;

/// Mostly one object has an address: a set would be ten times as large.
#[derive(Debug)]
enum Members {
    One(ObjectRef),
    Many(BTreeSet<ObjectRef>),
}

impl Members {
    fn insert(&mut self, reference: &ObjectRef) {
        match self {
            Members::One(only) if only == reference => {}
            Members::One(only) => *self = Members::Many([only.clone(), reference.clone()].into()),
            Members::Many(all) => {
                all.insert(reference.clone());
            }
        }
    }

    /// Returns whether none is left.
    fn remove(&mut self, reference: &ObjectRef) -> bool {
        match self {
            Members::One(only) => only == reference,
            Members::Many(all) => {
                all.remove(reference);
                all.is_empty()
            }
        }
    }

    /// In the order of names.
    fn iter(&self) -> impl Iterator<Item = &ObjectRef> + Clone {
        let (one, many) = match self {
            Members::One(only) => (Some(only), None),
            Members::Many(all) => (None, Some(all)),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Objects {
    all: BTreeMap<ObjectRef, Stored>,
    /// Pods and Services of a namespace.
    in_namespace: Index<(Kind, Arc<str>)>,
    pods_on: Index<Arc<str>>,
    slices_of: Index<ObjectRef>,
    /// Pods (with addresses of their own) and nodes by address.
    owners: Index<IpAddr>,
    cluster_ips: Index<IpAddr>,
}

#[derive(Clone, Copy)]
enum Edit {
    Put,
    Take,
}

fn edit<K: std::hash::Hash + Eq>(index: &mut Index<K>, edit: Edit, key: K, reference: &ObjectRef) {
    match (index.entry(key), edit) {
        (Entry::Occupied(mut entry), Edit::Put) => entry.get_mut().insert(reference),
        (Entry::Vacant(entry), Edit::Put) => {
            entry.insert(Members::One(reference.clone()));
        }
        (Entry::Occupied(mut entry), Edit::Take) => {
            if entry.get_mut().remove(reference) {
                entry.remove();
            }
        }
        (Entry::Vacant(_), Edit::Take) => {}
    }
}

fn members<'a, K, Q>(
    index: &'a Index<K>,
    key: &Q,
) -> impl Iterator<Item = &'a ObjectRef> + Clone + use<'a, K, Q>
where
    K: std::hash::Hash + Eq + std::borrow::Borrow<Q>,
    Q: std::hash::Hash + Eq + ?Sized,
{
    index.get(key).into_iter().flat_map(Members::iter)
}

pub(super) fn service_of(slice: &EndpointSlice) -> ObjectRef {
    ObjectRef::new(Kind::Service, &slice.namespace, &slice.service)
}

impl Objects {
    /// Replaces (or with `None` removes) an object and returns what was there.
    pub(super) fn swap(&mut self, reference: &ObjectRef, new: Option<Stored>) -> Option<Stored> {
        let old = match &new {
            Some(new) => self.all.insert(reference.clone(), new.clone()),
            None => self.all.remove(reference),
        };
        if let Some(old) = &old {
            self.reindex(Edit::Take, reference, old);
        }
        if let Some(new) = &new {
            self.reindex(Edit::Put, reference, new);
        }
        old
    }

    fn reindex(&mut self, how: Edit, reference: &ObjectRef, object: &Stored) {
        let namespace = (reference.kind, reference.namespace.clone());
        match object {
            Stored::Pod(pod) => {
                edit(&mut self.in_namespace, how, namespace, reference);
                if let Some(node) = &pod.node {
                    edit(&mut self.pods_on, how, node.as_str().into(), reference);
                }
                for address in pod.addresses.iter().filter(|_| has_own_addresses(pod)) {
                    edit(&mut self.owners, how, *address, reference);
                }
            }
            Stored::Node(node) => {
                for address in &node.addresses {
                    edit(&mut self.owners, how, *address, reference);
                }
            }
            Stored::Service(service) => {
                edit(&mut self.in_namespace, how, namespace, reference);
                for address in &service.cluster_ips {
                    edit(&mut self.cluster_ips, how, *address, reference);
                }
            }
            Stored::Slice(slice) => edit(&mut self.slices_of, how, service_of(slice), reference),
            Stored::Namespace(_) | Stored::Policy(_) | Stored::Group(_) | Stored::Secret(_) => {}
        }
    }

    pub(super) fn pod(&self, reference: &ObjectRef) -> Option<&Arc<Pod>> {
        match self.all.get(reference)? {
            Stored::Pod(pod) => Some(pod),
            _ => None,
        }
    }

    pub(super) fn namespace(&self, name: &str) -> Option<&Arc<Namespace>> {
        match self.all.get(&ObjectRef::new(Kind::Namespace, "", name))? {
            Stored::Namespace(namespace) => Some(namespace),
            _ => None,
        }
    }

    pub(super) fn node(&self, name: &str) -> Option<&Arc<Node>> {
        match self.all.get(&ObjectRef::new(Kind::Node, "", name))? {
            Stored::Node(node) => Some(node),
            _ => None,
        }
    }

    pub(super) fn service(&self, reference: &ObjectRef) -> Option<&Arc<Service>> {
        match self.all.get(reference)? {
            Stored::Service(service) => Some(service),
            _ => None,
        }
    }

    pub(super) fn policy(&self, reference: &ObjectRef) -> Option<&Arc<Policy>> {
        match self.all.get(reference)? {
            Stored::Policy(policy) => Some(policy),
            _ => None,
        }
    }

    pub(super) fn secret(&self, namespace: &str, name: &str) -> Option<&Arc<Secret>> {
        match self.all.get(&ObjectRef::new(Kind::Secret, namespace, name))? {
            Stored::Secret(secret) => Some(secret),
            _ => None,
        }
    }

    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&ObjectRef, &Stored)> {
        self.all
            .range(ObjectRef::new(kind, "", "")..)
            .take_while(move |(reference, _)| reference.kind == kind)
    }

    pub(super) fn pods(&self) -> impl Iterator<Item = (&ObjectRef, &Arc<Pod>)> {
        self.of_kind(Kind::Pod).filter_map(|(reference, stored)| match stored {
            Stored::Pod(pod) => Some((reference, pod)),
            _ => None,
        })
    }

    pub(super) fn groups(&self) -> impl Iterator<Item = &Arc<CidrGroup>> {
        self.of_kind(Kind::CiliumCIDRGroup).filter_map(|(_, stored)| match stored {
            Stored::Group(group) => Some(group),
            _ => None,
        })
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.of_kind(Kind::Node).filter_map(|(_, stored)| match stored {
            Stored::Node(node) => Some(node),
            _ => None,
        })
    }

    pub(super) fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.of_kind(Kind::Service).filter_map(|(_, stored)| match stored {
            Stored::Service(service) => Some(service),
            _ => None,
        })
    }

    pub(super) fn pods_in(&self, namespace: &Arc<str>) -> impl Iterator<Item = &ObjectRef> + Clone {
        members(&self.in_namespace, &(Kind::Pod, namespace.clone()))
    }

    pub(super) fn services_in(&self, namespace: &Arc<str>) -> impl Iterator<Item = &ObjectRef> + Clone {
        members(&self.in_namespace, &(Kind::Service, namespace.clone()))
    }

    pub(super) fn pods_on(&self, node: &Arc<str>) -> impl Iterator<Item = &ObjectRef> + Clone {
        members(&self.pods_on, node)
    }

    /// The objects that a reference means: `v1` Endpoints are kept as EndpointSlices.
    pub(super) fn kept_as(&self, reference: ObjectRef) -> SmallVec<[ObjectRef; 1]> {
        if reference.kind != Kind::Endpoints {
            return smallvec![reference];
        }
        let service = ObjectRef { kind: Kind::Service, ..reference.clone() };
        members(&self.slices_of, &service)
            .filter(|slice| {
                EndpointSlice::subset_of(&slice.name).is_some_and(|(name, _)| *name == *reference.name)
            })
            .cloned()
            .collect()
    }

    pub(super) fn slices_of(&self, service: &ObjectRef) -> Vec<&EndpointSlice> {
        members(&self.slices_of, service)
            .filter_map(|reference| match self.all.get(reference)? {
                Stored::Slice(slice) => Some(&**slice),
                _ => None,
            })
            .collect()
    }

    /// Pods and nodes that have this address (pods first).
    pub(super) fn owners(&self, address: IpAddr) -> impl Iterator<Item = &ObjectRef> + Clone {
        members(&self.owners, &address)
    }

    /// Services that have this ClusterIP.
    pub(super) fn services_at(&self, address: IpAddr) -> impl Iterator<Item = &ObjectRef> + Clone {
        members(&self.cluster_ips, &address)
    }
}
