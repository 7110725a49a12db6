//! Local pods and the node itself in `sl_endpoints`: address -> device, identity, policy.
//!
//! Two sources meet here by pod name: the policy half says which addresses and which identity a pod
//! has ([`EndpointChange`](crate::cluster::delta::EndpointChange)), the endpoint room says which
//! device it is behind ([`EndpointDevice`]). A pod is written when both are known; until then its
//! packets meet "unknown endpoint".

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hashbrown::HashMap;

use super::DatapathError;
use super::abi::*;
use super::policies::Policies;
use super::tables::Tables;
use crate::model::Identity;

/// Framing of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkLayer {
    #[default]
    Ethernet,
    /// No Ethernet header.
    Ip,
}

/// The node's side of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointDevice {
    /// Of the host side device, in the agent's network namespace.
    pub ifindex: u32,
    /// Of the pod's side.
    pub mac: [u8; 6],
    /// Number for counters and events; below `SLUICE_MAX_ENDPOINTS`, 0 is the host.
    pub id: u16,
    pub link_layer: LinkLayer,
}

#[derive(Debug, Default)]
struct Endpoint {
    device: Option<EndpointDevice>,
    place: Option<(BTreeSet<IpAddr>, Identity)>,
}

/// All local endpoints.
#[derive(Debug, Default)]
pub struct Endpoints {
    pods: BTreeMap<String, Endpoint>,
    owners: HashMap<Addr, String>,
    host: BTreeSet<IpAddr>,
    host_policy_id: u32,
}

impl Endpoints {
    /// Some pod of this node has the identity.
    pub fn uses(&self, identity: Identity) -> bool {
        let used = |pod: &Endpoint| pod.place.as_ref().is_some_and(|(_, place)| *place == identity);
        self.pods.values().any(used)
    }

    /// The pods with a device, for events and tables.
    pub fn devices(&self) -> impl Iterator<Item = (&str, EndpointDevice)> {
        self.pods.iter().filter_map(|(pod, endpoint)| Some((pod.as_str(), endpoint.device?)))
    }

    /// Says where a pod is attached.
    ///
    /// # Errors
    /// When the endpoint id is 0, too large, or another pod's.
    pub fn set_device(
        &mut self,
        tables: &Tables,
        policies: &mut Policies,
        pod: &str,
        device: EndpointDevice,
    ) -> Result<(), DatapathError> {
        if device.id == 0 || u32::from(device.id) >= MAX_ENDPOINTS {
            return Err(DatapathError::Other(format!(
                "{pod}: endpoint id {} is not in 1..{MAX_ENDPOINTS}",
                device.id
            )));
        }
        if let Some((other, _)) = self.devices().find(|(other, d)| *other != pod && d.id == device.id) {
            return Err(DatapathError::Other(format!("{pod}: endpoint id {} belongs to {other}", device.id)));
        }
        self.pods.entry(pod.to_owned()).or_default().device = Some(device);
        self.write(tables, policies, pod, &BTreeSet::new())
    }

    /// Forgets the device, and says which it was; the pod's addresses are not local any more.
    pub fn clear_device(
        &mut self,
        tables: &Tables,
        pod: &str,
    ) -> Result<Option<EndpointDevice>, DatapathError> {
        let Some(endpoint) = self.pods.get_mut(pod) else { return Ok(None) };
        let device = endpoint.device.take();
        let addresses = endpoint.place.as_ref().map(|(addresses, _)| addresses.clone()).unwrap_or_default();
        if endpoint.place.is_none() {
            self.pods.remove(pod);
        }
        self.release(tables, pod, &addresses)?;
        Ok(device)
    }

    /// Says who a pod is. Flows are judged again when its identity changes.
    pub fn place(
        &mut self,
        tables: &Tables,
        policies: &mut Policies,
        pod: &str,
        addresses: &[IpAddr],
        identity: Identity,
    ) -> Result<(), DatapathError> {
        policies.id_or_new(tables, identity)?;
        let endpoint = self.pods.entry(pod.to_owned()).or_default();
        let old = endpoint.place.replace((addresses.iter().copied().collect(), identity));
        let before = old.map(|(addresses, _)| addresses).unwrap_or_default();
        self.write(tables, policies, pod, &before)
    }

    /// The pod is gone.
    pub fn remove(&mut self, tables: &Tables, pod: &str) -> Result<(), DatapathError> {
        let Some(endpoint) = self.pods.get_mut(pod) else { return Ok(()) };
        let addresses = endpoint.place.take().map(|(addresses, _)| addresses).unwrap_or_default();
        if endpoint.device.is_none() {
            self.pods.remove(pod);
        }
        self.release(tables, pod, &addresses)
    }

    /// Writes a pod's addresses, and then deletes those of `before` that it has no longer.
    fn write(
        &mut self,
        tables: &Tables,
        policies: &mut Policies,
        pod: &str,
        before: &BTreeSet<IpAddr>,
    ) -> Result<(), DatapathError> {
        let Some(endpoint) = self.pods.get(pod) else { return Ok(()) };
        let Some((addresses, identity)) = endpoint.place.clone() else { return Ok(()) };
        let gone: BTreeSet<IpAddr> = before.difference(&addresses).copied().collect();
        for address in &addresses {
            self.owners.insert((*address).into(), pod.to_owned());
        }
        if let Some(device) = endpoint.device {
            let info = EndpointInfo {
                ifindex: device.ifindex,
                identity: identity.0,
                policy_id: policies.id_or_new(tables, identity)?,
                flags: match device.link_layer {
                    LinkLayer::Ethernet => 0,
                    LinkLayer::Ip => EP_L3DEV,
                },
                id: device.id,
                mac: device.mac,
                pad: 0,
            };
            let keys: Vec<Addr> = addresses.iter().map(|a| Addr::from(*a)).collect();
            tables.endpoints.check_room(&keys, &|| format!("addresses of {pod}"))?;
            // The kernel knows best under which policy flows were judged so far, also after a restart.
            let mut left = BTreeSet::new();
            for key in &keys {
                left.extend(tables.endpoints.get(key)?.map(|old| old.policy_id));
            }
            left.remove(&info.policy_id);
            tables.endpoints.upsert(&keys, &vec![info; keys.len()])?;
            left.into_iter().try_for_each(|id| policies.rejudge(tables, id))?;
        }
        self.release(tables, pod, &gone)
    }

    /// Deletes addresses, unless another pod has them by now.
    fn release(
        &mut self,
        tables: &Tables,
        pod: &str,
        addresses: &BTreeSet<IpAddr>,
    ) -> Result<(), DatapathError> {
        let ours: Vec<Addr> = (addresses.iter().map(|a| Addr::from(*a)))
            .filter(|addr| self.owners.get(addr).is_some_and(|owner| owner == pod))
            .collect();
        tables.endpoints.delete(&ours)?;
        for addr in &ours {
            self.owners.remove(addr);
        }
        Ok(())
    }

    /// The node's own addresses, under policy `policy_id`.
    pub fn set_host(
        &mut self,
        tables: &Tables,
        policy_id: u32,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Result<(), DatapathError> {
        let addresses: BTreeSet<IpAddr> = addresses.into_iter().collect();
        if (&self.host, self.host_policy_id) == (&addresses, policy_id) {
            return Ok(());
        }
        let info =
            EndpointInfo { identity: Identity::HOST.0, policy_id, flags: EP_HOST, ..Default::default() };
        let keys: Vec<Addr> = addresses.iter().map(|a| Addr::from(*a)).collect();
        tables.endpoints.upsert(&keys, &vec![info; keys.len()])?;
        let gone: Vec<Addr> = self.host.difference(&addresses).map(|a| Addr::from(*a)).collect();
        tables.endpoints.delete(&gone)?;
        self.host = addresses;
        self.host_policy_id = policy_id;
        Ok(())
    }

    /// The pod's device was told.
    pub fn has_device(&self, pod: &str) -> bool {
        self.pods.get(pod).is_some_and(|endpoint| endpoint.device.is_some())
    }

    /// Deletes every address in the map that neither a pod with a device, nor the node, nor `known`
    /// has. To be called when all pods are known: see [`super::writer::Writer::reconcile`].
    pub fn delete_strangers(&self, tables: &Tables, known: &[Addr]) -> Result<usize, DatapathError> {
        let mut strangers = Vec::new();
        tables.endpoints.for_each(&mut |addr, _| {
            let host = self.host.contains(&addr.to_ip_or_unspecified());
            if !host && !self.owners.contains_key(addr) && !known.contains(addr) {
                strangers.push(*addr);
            }
        })?;
        tables.endpoints.delete(&strangers)?;
        Ok(strangers.len())
    }

    /// Names of the pods that have addresses.
    pub fn placed(&self) -> impl Iterator<Item = &str> {
        self.pods.iter().filter(|(_, e)| e.place.is_some()).map(|(pod, _)| pod.as_str())
    }
}
