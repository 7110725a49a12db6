//! Services in the kernel: `sl_services` and the backends' slots.
//!
//! Nothing is remembered here but two counters: the kernel's entry says which slots exist. A backend
//! keeps its slot and its number as long as it lives, so that session affinity (which stores both)
//! survives changes of its neighbours.
//!
//! Order of a change: new slots, then the entry with the new count, then the slots beyond it: a count
//! never names a slot that is empty.

use super::DatapathError;
use super::abi::*;
use super::tables::Tables;
use crate::cluster::delta::{ServiceEntry, ServiceFrontend};
use crate::model::Backend;

impl From<&ServiceFrontend> for ServiceKey {
    fn from(frontend: &ServiceFrontend) -> ServiceKey {
        ServiceKey {
            addr: frontend.address.into(),
            port: frontend.port,
            protocol: frontend.protocol.number(),
            pad: 0,
        }
    }
}

/// Numbers for Services and backends.
#[derive(Debug)]
pub struct Services {
    next_service: u32,
    next_backend: u32,
}

/// One frontend's writes.
#[derive(Debug, PartialEq)]
pub struct ServicePlan {
    key: ServiceKey,
    slots: Vec<(BackendKey, BackendValue)>,
    /// `None`: the frontend goes.
    entry: Option<ServiceValue>,
    stale: Vec<BackendKey>,
}

impl Services {
    /// Goes on after the highest numbers in use.
    pub fn read_back(tables: &Tables) -> Result<Services, DatapathError> {
        let (mut service, mut backend) = (0, 0);
        tables.services.for_each(&mut |_, value| service = service.max(value.id))?;
        tables.backends.for_each(&mut |key, value| {
            service = service.max(key.svc_id);
            backend = backend.max(value.backend_id);
        })?;
        Ok(Services { next_service: service + 1, next_backend: backend + 1 })
    }

    /// Slots of a Service as the kernel has them.
    fn slots(tables: &Tables, entry: &ServiceValue) -> Result<Vec<Option<BackendValue>>, DatapathError> {
        (0..entry.backends).map(|slot| tables.backends.get(&BackendKey { svc_id: entry.id, slot })).collect()
    }

    /// What is to be written for a frontend. Empty plans are `None`.
    pub fn plan(
        &mut self,
        tables: &Tables,
        frontend: &ServiceFrontend,
        entry: Option<&ServiceEntry>,
    ) -> Result<Option<ServicePlan>, DatapathError> {
        let key = ServiceKey::from(frontend);
        let old = tables.services.get(&key)?;
        let old_slots = old.as_ref().map_or(Ok(Vec::new()), |old| Self::slots(tables, old))?;
        let stale = |id: u32, from: u32| -> Vec<BackendKey> {
            (from..old_slots.len() as u32).map(|slot| BackendKey { svc_id: id, slot }).collect()
        };
        let Some(entry) = entry else {
            return Ok(old.map(|old| ServicePlan {
                key,
                slots: Vec::new(),
                entry: None,
                stale: stale(old.id, 0),
            }));
        };
        let id = old.map_or_else(
            || {
                self.next_service += 1;
                self.next_service - 1
            },
            |old| old.id,
        );
        let wanted = self.place(&old_slots, &entry.backends);
        let slots: Vec<_> = (wanted.iter().enumerate())
            .filter(|(slot, value)| old_slots.get(*slot).copied().flatten() != Some(**value))
            .map(|(slot, value)| (BackendKey { svc_id: id, slot: slot as u32 }, *value))
            .collect();
        let value = ServiceValue {
            id,
            backends: wanted.len() as u32,
            flags: if entry.affinity_secs.is_some() { SVC_AFFINITY } else { 0 },
            affinity_secs: entry.affinity_secs.unwrap_or(0),
        };
        let stale = stale(id, value.backends);
        if slots.is_empty() && stale.is_empty() && old == Some(value) {
            return Ok(None);
        }
        Ok(Some(ServicePlan { key, slots, entry: Some(value), stale }))
    }

    /// Backends in their slots: those that stay keep theirs, new ones fill the gaps, and when there
    /// are more gaps than new ones, the last backends move down.
    fn place(&mut self, old: &[Option<BackendValue>], backends: &[Backend]) -> Vec<BackendValue> {
        let is = |value: &BackendValue, backend: &Backend| {
            value.addr == backend.address.into() && value.port == backend.port
        };
        let mut kept: Vec<Option<BackendValue>> =
            old.iter().map(|slot| slot.filter(|value| backends.iter().any(|b| is(value, b)))).collect();
        let mut fresh: Vec<BackendValue> = Vec::new();
        for backend in backends {
            if !kept.iter().flatten().chain(&fresh).any(|value| is(value, backend)) {
                let backend_id = self.next_backend;
                self.next_backend += 1;
                fresh.push(BackendValue {
                    addr: backend.address.into(),
                    port: backend.port,
                    pad: 0,
                    backend_id,
                });
            }
        }
        let count = kept.iter().flatten().count() + fresh.len();
        let mut moving: Vec<BackendValue> = kept.drain(count.min(kept.len())..).flatten().collect();
        moving.append(&mut fresh);
        kept.resize(count, None);
        let mut moving = moving.into_iter();
        kept.into_iter().filter_map(|slot| slot.or_else(|| moving.next())).collect()
    }
}

impl ServicePlan {
    /// Keys that may be new.
    pub fn keys(&self) -> (ServiceKey, impl Iterator<Item = BackendKey>) {
        (self.key, self.slots.iter().map(|(key, _)| *key))
    }

    /// The frontend goes: to be applied after everything else.
    pub fn is_removal(&self) -> bool {
        self.entry.is_none()
    }

    /// Writes in the order of the module's contract.
    pub fn apply(&self, tables: &Tables) -> Result<(), DatapathError> {
        let (keys, values): (Vec<_>, Vec<_>) = self.slots.iter().copied().unzip();
        tables.backends.upsert(&keys, &values)?;
        match self.entry {
            Some(entry) => tables.services.upsert(&[self.key], &[entry])?,
            None => tables.services.delete(&[self.key])?,
        }
        tables.backends.delete(&self.stale)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::datapath::config::Capacity;
    use crate::model::Protocol;

    fn frontend() -> ServiceFrontend {
        ServiceFrontend { address: IpAddr::from([10, 96, 0, 1]), port: 80, protocol: Protocol::Tcp }
    }

    fn entry(hosts: &[u8]) -> ServiceEntry {
        let backend = |host: &u8| Backend { address: IpAddr::from([10, 244, 0, *host]), port: 8080 };
        ServiceEntry {
            service: "shop/frontend".into(),
            backends: hosts.iter().map(backend).collect(),
            affinity_secs: None,
        }
    }

    /// (host, backend id) by slot.
    fn set(services: &mut Services, tables: &Tables, hosts: &[u8]) -> Vec<(u8, u32)> {
        if let Some(plan) = services.plan(tables, &frontend(), Some(&entry(hosts))).unwrap() {
            plan.apply(tables).unwrap();
        }
        let value = tables.services.get(&(&frontend()).into()).unwrap().unwrap();
        assert_eq!(value.backends as u64, tables.backends.count().unwrap(), "no stale slots");
        let slots = Services::slots(tables, &value).unwrap();
        slots.into_iter().map(|slot| slot.unwrap()).map(|v| (v.addr.b[15], v.backend_id)).collect()
    }

    #[test]
    fn backends_keep_slot_and_number() {
        let tables = Tables::in_memory(&Capacity::default());
        let mut services = Services::read_back(&tables).unwrap();
        assert_eq!(set(&mut services, &tables, &[1, 2, 3]), [(1, 1), (2, 2), (3, 3)]);
        assert_eq!(set(&mut services, &tables, &[3, 4, 1]), [(1, 1), (4, 4), (3, 3)]);
        assert_eq!(set(&mut services, &tables, &[3]), [(3, 3)]);
        let mut restarted = Services::read_back(&tables).unwrap();
        assert_eq!(restarted.plan(&tables, &frontend(), Some(&entry(&[3]))).unwrap(), None);
        assert_eq!(set(&mut restarted, &tables, &[3, 5]), [(3, 3), (5, 4)]);
        assert_eq!(set(&mut restarted, &tables, &[]), []);
    }

    #[test]
    fn a_removed_service_leaves_nothing() {
        let tables = Tables::in_memory(&Capacity::default());
        let mut services = Services::read_back(&tables).unwrap();
        set(&mut services, &tables, &[1, 2]);
        let plan = services.plan(&tables, &frontend(), None).unwrap().unwrap();
        plan.apply(&tables).unwrap();
        assert_eq!((tables.services.count().unwrap(), tables.backends.count().unwrap()), (0, 0));
        assert_eq!(services.plan(&tables, &frontend(), None).unwrap(), None);
    }
}
