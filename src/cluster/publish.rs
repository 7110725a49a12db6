//! What the datapath was told, and the delta from that to the state that was derived.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::delta::{Delta, EndpointChange, IpcacheEntry, NodeSettings, ServiceEntry, ServiceFrontend};
use super::derive::Derived;
use super::dirty::Dirty;
use super::objects::Objects;
use super::options::ViewOptions;
use crate::identity::pod::reachable_addresses;
use crate::ipcache::PrefixMap;
use crate::model::{Identity, InternalTraffic, Kind, ObjectRef};
use crate::policy::map_state::SubjectDelta;
use crate::service::{ReachablePod, resolve};

/// A local pod that policy governs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalEndpoint {
    pub pod: ObjectRef,
    pub addresses: Vec<IpAddr>,
    pub identity: Identity,
}

impl LocalEndpoint {
    fn upsert(&self) -> EndpointChange {
        EndpointChange::Upsert {
            pod: self.pod.path(),
            addresses: self.addresses.clone(),
            identity: self.identity,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Published {
    pub(super) ipcache: PrefixMap<IpcacheEntry>,
    pub(super) classes: PrefixMap<Identity>,
    pub(super) endpoints: BTreeMap<ObjectRef, LocalEndpoint>,
    pub(super) services: BTreeMap<ServiceFrontend, ServiceEntry>,
    frontends: HashMap<ObjectRef, Vec<ServiceFrontend>>,
    pub(super) node: Option<NodeSettings>,
}

impl Published {
    /// Takes over what changed and returns it.
    pub(super) fn advance(
        &mut self,
        derived: &Derived,
        objects: &Objects,
        options: &ViewOptions,
        dirty: &Dirty,
        policies: Vec<SubjectDelta>,
    ) -> Delta {
        let mut delta = Delta::default();
        for prefix in &dirty.ipcache {
            let new = derived.layers.best(*prefix).map(|claim| claim.value);
            if self.ipcache.get(*prefix).copied() != new {
                match new {
                    Some(new) => self.ipcache.insert(*prefix, new),
                    None => self.ipcache.remove(*prefix),
                };
                delta.ipcache.push((*prefix, new));
            }
        }
        for prefix in &dirty.classes {
            let new = derived.class(*prefix);
            if self.classes.get(*prefix).copied() != new {
                match new {
                    Some(new) => self.classes.insert(*prefix, new),
                    None => self.classes.remove(*prefix),
                };
                delta.address_classes.push((*prefix, new));
            }
        }
        self.endpoints(derived, dirty, &mut delta);
        self.services(objects, options, dirty, &mut delta);
        self.node(objects, options, &mut delta);
        delta.policies = policies;
        delta.identities = dirty.identities.iter().map(|(id, presence)| (*id, *presence)).collect();
        delta
    }

    fn endpoints(&mut self, derived: &Derived, dirty: &Dirty, delta: &mut Delta) {
        for pod in &dirty.pods {
            let state = derived.pods.get(pod).filter(|state| state.is_endpoint);
            let new = state.map(|state| LocalEndpoint {
                pod: pod.clone(),
                addresses: state.pod.addresses.clone(),
                identity: state.identity,
            });
            if self.endpoints.get(pod) == new.as_ref() {
                continue;
            }
            match new {
                Some(new) => {
                    delta.endpoints.push(new.upsert());
                    self.endpoints.insert(pod.clone(), new);
                }
                None => {
                    self.endpoints.remove(pod);
                    delta.endpoints.push(EndpointChange::Remove { pod: pod.path() });
                }
            }
        }
    }

    fn services(&mut self, objects: &Objects, options: &ViewOptions, dirty: &Dirty, delta: &mut Delta) {
        // A frontend can move from one Service to another in one transaction.
        let mut changed: BTreeMap<ServiceFrontend, Option<ServiceEntry>> = BTreeMap::new();
        for service in &dirty.services {
            changed.extend(
                self.frontends.remove(service).into_iter().flatten().map(|frontend| (frontend, None)),
            );
        }
        for service in &dirty.services {
            let entries = entries_of(service, objects, &options.node);
            if !entries.is_empty() {
                self.frontends
                    .insert(service.clone(), entries.iter().map(|(frontend, _)| *frontend).collect());
            }
            changed.extend(entries.into_iter().map(|(frontend, entry)| (frontend, Some(entry))));
        }
        for (frontend, new) in changed {
            if self.services.get(&frontend) != new.as_ref() {
                match &new {
                    Some(new) => self.services.insert(frontend, new.clone()),
                    None => self.services.remove(&frontend),
                };
                delta.services.push((frontend, new));
            }
        }
    }

    fn node(&mut self, objects: &Objects, options: &ViewOptions, delta: &mut Delta) {
        let node = objects.node(&options.node);
        let new = NodeSettings {
            addresses: node.map(|node| node.addresses.clone()).unwrap_or_default(),
            host_firewall: options.host_firewall,
            deny_response: options.deny_response,
        };
        if self.node.as_ref() != Some(&new) {
            self.node = Some(new.clone());
            delta.node = Some(new);
        }
    }

    /// Everything but policies and identities, as a delta from nothing.
    pub(super) fn full(&self) -> Delta {
        Delta {
            ipcache: self.ipcache.iter().map(|(prefix, entry)| (prefix, Some(*entry))).collect(),
            address_classes: self.classes.iter().map(|(prefix, id)| (prefix, Some(*id))).collect(),
            endpoints: self.endpoints.values().map(LocalEndpoint::upsert).collect(),
            services: self
                .services
                .iter()
                .map(|(frontend, entry)| (*frontend, Some(entry.clone())))
                .collect(),
            node: self.node.clone(),
            ..Delta::default()
        }
    }
}

/// The address is of a pod on this node, or the node's own.
fn is_here(address: IpAddr, objects: &Objects, node: &str) -> bool {
    objects.owners(address).any(|owner| match owner.kind {
        Kind::Node => &*owner.name == node,
        _ => objects.pod(owner).is_some_and(|pod| pod.node.as_deref() == Some(node)),
    })
}

fn entries_of(reference: &ObjectRef, objects: &Objects, node: &str) -> Vec<(ServiceFrontend, ServiceEntry)> {
    let Some(service) = objects.service(reference) else { return vec![] };
    let pods = objects.pods_in(&reference.namespace).filter_map(|pod| {
        let pod = objects.pod(pod)?;
        let node = pod.node.as_deref().and_then(|node| objects.node(node)).map(|node| &node.addresses[..]);
        Some(ReachablePod { pod, addresses: reachable_addresses(pod, node.unwrap_or_default()) })
    });
    resolve(service, &objects.slices_of(reference), pods)
        .into_iter()
        .map(|resolved| {
            let frontend = ServiceFrontend {
                address: resolved.address,
                port: resolved.port,
                protocol: resolved.protocol,
            };
            let mut backends = resolved.backends;
            if service.internal_traffic == InternalTraffic::Local {
                backends.retain(|backend| is_here(backend.address, objects, node));
            }
            let entry =
                ServiceEntry { service: reference.path(), backends, affinity_secs: service.affinity_secs };
            (frontend, entry)
        })
        .collect()
}
