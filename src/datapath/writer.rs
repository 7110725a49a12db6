//! Writes deltas into maps: the kernel's or the in-memory twin's. The order is the contract.
//!
//! 1. Everything is encoded, ids are given out, room is checked: what cannot fit changes nothing.
//! 2. Identities that go are forgotten; policies settle, addresses move, policies finish (see
//!    [`super::transition`]); new identities are made known.
//! 3. Endpoints appear or change; Services (slots, entry, stale slots).
//! 4. Removals: endpoints, Services, subjects.
//! 5. The node's switches; the host firewall only when the host's policy is loaded.
//!
//! A failure after step 1 leaves a mixture that passes only what the old or the new state passes; the
//! caller applies the same delta again.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hashbrown::HashMap;

use super::DatapathError;
use super::abi::convert::family;
use super::abi::*;
use super::addresses::AddressPlan;
use super::endpoints::{EndpointDevice, Endpoints};
use super::identities;
use super::policies::Policies;
use super::services::{ServicePlan, Services};
use super::tables::Tables;
use super::transition::{Moves, Transition};
use crate::cluster::delta::{Cause, Delta, DenyResponse, EndpointChange, NodeSettings};
use crate::model::{Family, Identity};

/// Trie keys of ports to be deleted, by policy id: what a comparison with the kernel found.
pub(super) type StalePorts = HashMap<u32, Vec<PortClassKey>>;

/// Everything that writing needs to know.
#[derive(Debug)]
pub struct Writer {
    pub(super) tables: Tables,
    pub(super) policies: Policies,
    pub(super) services: Services,
    pub(super) endpoints: Endpoints,
    /// What does not come with deltas: devices, modes, ports.
    pub(super) base: NodeConfig,
    settings: Option<NodeSettings>,
    /// Addresses of the node beside those of the settings.
    host_addresses: BTreeSet<IpAddr>,
}

/// Flags of `sl_config` that come with deltas.
const SETTINGS_FLAGS: u32 = CFG_HOST_FIREWALL | CFG_REJECT;

impl Writer {
    /// Takes over what the maps hold. `base` is written at once; switches and node addresses stay as
    /// they are until the first [`NodeSettings`].
    pub fn take_over(tables: Tables, base: NodeConfig) -> Result<Writer, DatapathError> {
        AddressPlan::missing_defaults(&tables)?.apply(&tables)?;
        let policies = Policies::read_back(&tables)?;
        let services = Services::read_back(&tables)?;
        let mut writer = Writer {
            tables,
            policies,
            services,
            endpoints: Endpoints::default(),
            base,
            settings: None,
            host_addresses: BTreeSet::new(),
        };
        writer.write_config()?;
        Ok(writer)
    }

    /// See the module's contract.
    pub fn apply(&mut self, delta: &Delta) -> Result<(), DatapathError> {
        let addresses = AddressPlan::new(&delta.ipcache, &delta.address_classes);
        self.apply_with(delta, addresses, &StalePorts::new())
    }

    /// Applies `delta` with its addresses already encoded.
    pub(super) fn apply_with(
        &mut self,
        delta: &Delta,
        addresses: AddressPlan,
        stale_ports: &StalePorts,
    ) -> Result<(), DatapathError> {
        addresses.check_room(&self.tables)?;
        let services = self.plan_services(delta)?;
        let judged_again = delta.cause == Cause::Objects && addresses.changes_a_peer(&self.tables)?;
        let transitions = self.plan_policies(delta, &addresses, stale_ports)?;

        identities::forget(&self.tables, &delta.identities)?;
        for transition in &transitions {
            transition.settle(&self.tables, &mut self.policies)?;
        }
        self.move_all(&addresses, &transitions)?;
        for transition in &transitions {
            transition.finish(&self.tables, &mut self.policies, delta.cause)?;
        }
        identities::make_known(&self.tables, &delta.identities)?;
        if judged_again {
            self.policies.rejudge_all(&self.tables)?;
        }

        for change in &delta.endpoints {
            if let EndpointChange::Upsert { pod, addresses, identity } = change {
                self.endpoints.place(&self.tables, &mut self.policies, pod, addresses, *identity)?;
            }
        }
        let (removed, kept): (Vec<ServicePlan>, _) = services.into_iter().partition(ServicePlan::is_removal);
        kept.iter().try_for_each(|plan: &ServicePlan| plan.apply(&self.tables))?;

        for change in &delta.endpoints {
            if let EndpointChange::Remove { pod } = change {
                self.endpoints.remove(&self.tables, pod)?;
            }
        }
        removed.iter().try_for_each(|plan| plan.apply(&self.tables))?;
        for gone in delta.policies.iter().filter(|policy| policy.removed) {
            let in_use = self.endpoints.uses(gone.subject);
            self.policies.clear(&self.tables, gone.subject, in_use)?;
        }
        if let Some(settings) = &delta.node {
            self.settings = Some(settings.clone());
        }
        self.write_config()
    }

    /// Says where a pod is attached.
    pub fn set_device(&mut self, pod: &str, device: EndpointDevice) -> Result<(), DatapathError> {
        self.endpoints.set_device(&self.tables, &mut self.policies, pod, device)
    }

    /// Forgets where a pod was attached.
    pub fn clear_device(&mut self, pod: &str) -> Result<Option<EndpointDevice>, DatapathError> {
        self.endpoints.clear_device(&self.tables, pod)
    }

    /// Pods with their devices.
    pub fn devices(&self) -> impl Iterator<Item = (&str, EndpointDevice)> {
        self.endpoints.devices()
    }

    /// Subject identities with their policy ids.
    pub fn subjects(&self) -> impl Iterator<Item = (Identity, u32)> {
        self.policies.subjects()
    }

    /// Addresses of the node that the cluster does not know. They are written at once, or with the first
    /// [`NodeSettings`].
    pub fn set_host_addresses(&mut self, addresses: BTreeSet<IpAddr>) -> Result<(), DatapathError> {
        self.host_addresses = addresses;
        self.write_config()
    }

    /// What does not come with deltas.
    pub fn base(&self) -> NodeConfig {
        self.base
    }

    /// Changes what does not come with deltas.
    pub fn set_base(&mut self, base: NodeConfig) -> Result<(), DatapathError> {
        self.base = base;
        self.write_config()
    }

    fn plan_services(&mut self, delta: &Delta) -> Result<Vec<ServicePlan>, DatapathError> {
        let mut plans = Vec::new();
        for (frontend, entry) in &delta.services {
            plans.extend(self.services.plan(&self.tables, frontend, entry.as_ref())?);
        }
        let added = || plans.iter().filter(|plan| !plan.is_removal()).map(ServicePlan::keys);
        let frontends: Vec<_> = added().map(|(key, _)| key).collect();
        let slots: Vec<_> = added().flat_map(|(_, slots)| slots).collect();
        self.tables.services.check_room(&frontends, &|| format!("{} Service frontends", frontends.len()))?;
        self.tables.backends.check_room(&slots, &|| format!("{} Service backends", slots.len()))?;
        Ok(plans)
    }

    fn plan_policies(
        &mut self,
        delta: &Delta,
        addresses: &AddressPlan,
        stale_ports: &StalePorts,
    ) -> Result<Vec<Transition>, DatapathError> {
        let subjects = || delta.policies.iter().filter(|policy| !policy.removed);
        for policy in subjects() {
            self.policies.id_or_new(&self.tables, policy.subject)?;
        }
        let live = |subject: Identity| {
            let id = self.policies.id(subject)?;
            self.policies.state(id).filter(|state| state.is_live())
        };
        let moves = if subjects().any(|policy| live(policy.subject).is_some()) {
            addresses.moves(&self.tables)?
        } else {
            Moves::default()
        };
        let mut transitions = Vec::new();
        for policy in subjects() {
            let id = self.policies.id_or_new(&self.tables, policy.subject)?;
            let mut transition = Transition::plan(&self.tables, &self.policies, id, policy, &moves)?;
            transition.port_deletes.extend(stale_ports.get(&id).into_iter().flatten());
            transitions.push(transition);
        }
        let new: usize = transitions.iter().map(|t| t.new_cells(&self.policies)).sum();
        let room = self.tables.policy.max_entries();
        if self.policies.cells() + new > room as usize {
            return Err(DatapathError::MapFull {
                map: self.tables.policy.name(),
                entries: room,
                what: format!("{new} more policy entries beside {}", self.policies.cells()),
            });
        }
        let ports: Vec<_> = transitions.iter().flat_map(|t| t.ports.iter().map(|(key, _)| *key)).collect();
        self.tables.port_classes.check_room(&ports, &|| format!("{} port prefixes", ports.len()))?;
        Ok(transitions)
    }

    /// The move of [`super::transition`].
    fn move_all(&mut self, addresses: &AddressPlan, transitions: &[Transition]) -> Result<(), DatapathError> {
        for transition in transitions {
            transition.move_ports(&self.tables, &mut self.policies)?;
        }
        addresses.apply(&self.tables)
    }

    /// Writes the node's configuration when it differs; the host firewall goes on in a write of its
    /// own, after everything else is in place.
    pub(super) fn write_config(&mut self) -> Result<(), DatapathError> {
        let old = self.tables.config.get(&0)?.unwrap_or_default();
        let mut config = NodeConfig { flags: self.base.flags | (old.flags & SETTINGS_FLAGS), ..self.base };
        config.node_v4 = old.node_v4;
        config.node_v6 = old.node_v6;
        config.host_policy_id = old.host_policy_id;
        if old.port_key != 0 {
            // Proxies that outlive the agent work with it.
            config.port_key = old.port_key;
        }
        let mut firewall = old.flags & CFG_HOST_FIREWALL;
        if let Some(settings) = &self.settings {
            let first = |wanted| {
                let mut all = settings.addresses.iter().map(|a| Addr::from(*a));
                all.find(|addr| family(*addr) == wanted).unwrap_or(Addr::NONE)
            };
            config.node_v4 = first(Family::IPv4);
            config.node_v6 = first(Family::IPv6);
            config.flags &= !SETTINGS_FLAGS;
            if settings.deny_response == DenyResponse::Reject {
                config.flags |= CFG_REJECT;
            }
            let host = self.policies.id(Identity::HOST);
            let loaded = host.and_then(|id| self.policies.state(id)).is_some_and(|state| state.is_live());
            config.host_policy_id = host.unwrap_or(0);
            firewall = if settings.host_firewall && loaded { CFG_HOST_FIREWALL } else { 0 };
            let addresses = settings.addresses.iter().chain(&self.host_addresses).copied();
            self.endpoints.set_host(&self.tables, config.host_policy_id, addresses)?;
        }
        // What is on stays on through this write; what comes on waits for the next.
        config.flags = (config.flags & !CFG_HOST_FIREWALL) | (firewall & old.flags);
        if config != old {
            self.tables.config.upsert(&[0], &[config])?;
        }
        if config.flags & CFG_HOST_FIREWALL != firewall {
            config.flags |= firewall;
            self.tables.config.upsert(&[0], &[config])?;
        }
        Ok(())
    }
}
