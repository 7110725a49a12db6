//! What is really in the kernel, decoded ([`rows`]) and compared with what should be there. Works on the
//! pins alone: no agent need run.

mod diff;
pub mod rows;

use std::path::Path;

use hashbrown::HashMap;
use ipnet::IpNet;

use super::DatapathError;
use super::abi::convert::{direction_from_number, direction_number};
use super::abi::*;
use super::clock;
use super::connections::{Connections, Kept, timeout};
use super::events::Untold;
use super::pins::Pins;
use super::sys;
use super::table::{KernelTable, Key, Shared, Value};
use super::tables::{Tables, kind, name, specs};
use crate::cluster::delta::ServiceFrontend;
use crate::datapath::config::Capacity;
use crate::model::{Backend, Direction, DropReason, Identity, Protocol};
use crate::policy::map_state::RuleSetId;

pub use rows::{
    Connection, ConnectionFilter, ConnectionSide, Count, Divergence, EndpointRow, EndpointStats, IpcacheRow,
    MapPressure, MetricRow, PolicyRow, ServiceRow,
};

/// Reads pinned maps.
#[derive(Clone, Debug)]
pub struct Inspector {
    pins: Pins,
    tables: Tables,
    cpus: usize,
}

impl Inspector {
    /// Opens the maps below an agent's BPF directory.
    ///
    /// # Errors
    /// When no agent of this ABI version ever ran there.
    pub fn open(bpffs: &Path) -> Result<Inspector, DatapathError> {
        Self::of_pins(&Pins::at(bpffs))
    }

    pub(super) fn of_pins(pins: &Pins) -> Result<Inspector, DatapathError> {
        let tables = Tables::from_kernel(|name| pins.open_map(name))?;
        let cpus = sys::possible_cpus().map_err(|source| DatapathError::Syscall {
            operation: "read",
            object: "/sys/devices/system/cpu/possible".to_owned(),
            source,
        })?;
        Ok(Inspector { pins: pins.clone(), tables, cpus })
    }

    fn table<K: Key, V: Value>(&self, name: &'static str) -> Result<Shared<K, V>, DatapathError> {
        KernelTable::open(name, self.pins.open_map(name)?)
    }

    /// Policies, with the entries of `subject` or of all.
    pub fn policies(&self, subject: Option<Identity>) -> Result<Vec<PolicyRow>, DatapathError> {
        let mut rows: HashMap<u32, PolicyRow> = HashMap::new();
        self.tables.policy_info.for_each(&mut |id, info| {
            let identity = Identity(info.subject_identity);
            if info.subject_identity == 0 || subject.is_some_and(|wanted| wanted != identity) {
                return;
            }
            let denies = |d: &Direction| info.flags[usize::from(direction_number(*d))] & PF_DEFAULT_DENY != 0;
            let row = PolicyRow {
                policy_id: *id,
                subject: identity,
                epoch: info.epoch,
                default_deny: Direction::BOTH.into_iter().filter(denies).collect(),
                entries: Vec::new(),
            };
            rows.insert(*id, row);
        })?;
        self.tables.policy.for_each(&mut |key, entry| {
            if let Some((row, cell)) = rows.get_mut(&key.policy_id).zip(key.cell()) {
                row.entries.push((cell, entry.entry()));
            }
        })?;
        let mut rows: Vec<PolicyRow> = rows.into_values().collect();
        rows.sort_by_key(|row| row.policy_id);
        rows.iter_mut().for_each(|row| row.entries.sort_by_key(|(key, _)| *key));
        Ok(rows)
    }

    /// Tracked connections.
    pub fn connections(&self, filter: &ConnectionFilter) -> Result<Vec<Connection>, DatapathError> {
        let mut rows = Vec::new();
        let now = clock::seconds_since_boot()?;
        Connections::of_pins(&self.pins)?.for_each(&mut |kept| {
            let connection = connection(kept, now);
            if filter.passes(&connection) {
                rows.push(connection);
            }
        })?;
        Ok(rows)
    }

    /// The ipcache in prefix order.
    pub fn ipcache(&self) -> Result<Vec<IpcacheRow>, DatapathError> {
        let mut rows = Vec::new();
        let mut add = |key: LpmKey, value: &IpcacheValue| {
            rows.extend(key.to_net().map(|prefix| IpcacheRow {
                prefix,
                identity: Identity(value.identity),
                tunnel_endpoint: value.tunnel_ep.to_ip(),
                in_cluster: value.flags & IPC_CLUSTER != 0,
            }));
        };
        self.tables.ipcache_lpm.for_each(&mut |key, value| add(*key, value))?;
        self.tables
            .ipcache_exact
            .for_each(&mut |addr, value| add(LpmKey { prefix_len: 128, addr: *addr }, value))?;
        rows.sort_by_key(|row| row.prefix);
        Ok(rows)
    }

    /// Address classes in prefix order.
    pub fn address_classes(&self) -> Result<Vec<(IpNet, Identity)>, DatapathError> {
        let mut rows = Vec::new();
        self.tables.address_classes.for_each(&mut |key, class| {
            rows.extend(key.to_net().filter(|_| *class != 0).map(|net| (net, Identity(*class))));
        })?;
        rows.sort();
        Ok(rows)
    }

    /// Addresses of local pods and of the node.
    pub fn endpoints(&self) -> Result<Vec<EndpointRow>, DatapathError> {
        let mut rows = Vec::new();
        self.tables.endpoints.for_each(&mut |addr, info| {
            rows.push(EndpointRow {
                address: addr.to_ip_or_unspecified(),
                endpoint_id: info.id,
                identity: Identity(info.identity),
                policy_id: info.policy_id,
                ifindex: info.ifindex,
                mac: info.mac,
            });
        })?;
        rows.sort_by_key(|row| row.address);
        Ok(rows)
    }

    /// Service frontends.
    pub fn services(&self) -> Result<Vec<ServiceRow>, DatapathError> {
        let mut backends: HashMap<u32, Vec<(u32, Backend)>> = HashMap::new();
        self.tables.backends.for_each(&mut |key, value| {
            let backend = Backend { address: value.addr.to_ip_or_unspecified(), port: value.port };
            backends.entry(key.svc_id).or_default().push((key.slot, backend));
        })?;
        let mut rows = Vec::new();
        self.tables.services.for_each(&mut |key, value| {
            let mut slots = backends.remove(&value.id).unwrap_or_default();
            slots.sort();
            rows.push(ServiceRow {
                frontend: ServiceFrontend {
                    address: key.addr.to_ip_or_unspecified(),
                    port: key.port,
                    protocol: Protocol::from_number(key.protocol),
                },
                affinity_secs: (value.flags & SVC_AFFINITY != 0).then_some(value.affinity_secs),
                backends: slots.into_iter().map(|(_, backend)| backend).collect(),
            });
        })?;
        rows.sort_by_key(|row| row.frontend);
        Ok(rows)
    }

    fn per_cpu<V: Value>(&self, map: &'static str, index: u32) -> Result<Vec<V>, DatapathError> {
        let fd = self.pins.open_map(map)?;
        self.per_cpu_at(&fd, map, index)
    }

    fn per_cpu_at<V: Value>(
        &self,
        fd: &std::os::fd::OwnedFd,
        map: &'static str,
        index: u32,
    ) -> Result<Vec<V>, DatapathError> {
        let values = sys::lookup_per_cpu(fd, &index, self.cpus).map_err(|source| DatapathError::Syscall {
            operation: "BPF_MAP_LOOKUP_ELEM",
            object: format!("map {map}"),
            source,
        })?;
        Ok(values.unwrap_or_default())
    }

    /// What passed and what was dropped, by reason and direction; zeros are left out.
    pub fn metrics(&self) -> Result<Vec<MetricRow>, DatapathError> {
        let fd = self.pins.open_map(name::METRICS)?;
        let reasons = std::iter::once(None).chain(DropReason::ALL.iter().copied().map(Some));
        let mut rows = Vec::new();
        for reason in reasons {
            for direction in Direction::BOTH {
                let number = reason.map_or(METRIC_FORWARDED, |reason| u32::from(reason as u8));
                let index = u32::from(direction_number(direction)) * MAX_METRIC + number;
                let mut count = Count::default();
                for counter in self.per_cpu_at::<Counter>(&fd, name::METRICS, index)? {
                    count += counter.into();
                }
                if count != Count::default() {
                    rows.push(MetricRow { direction, reason, count });
                }
            }
        }
        Ok(rows)
    }

    /// Counters of an endpoint.
    pub fn endpoint_stats(&self, endpoint_id: u16) -> Result<EndpointStats, DatapathError> {
        let mut stats = EndpointStats::default();
        for counter in self.per_cpu::<EndpointCounter>(name::EP_STATS, u32::from(endpoint_id))? {
            for number in 0..2_u8 {
                let Some(direction) = direction_from_number(number) else { continue };
                stats.forwarded[direction as usize] += counter.forwarded[usize::from(number)].into();
                stats.dropped[direction as usize] += counter.dropped[usize::from(number)].into();
            }
        }
        Ok(stats)
    }

    /// How often each of these rule sets decided.
    pub fn rule_hits(&self, rules: &[RuleSetId]) -> Result<Vec<(RuleSetId, u64)>, DatapathError> {
        let fd = self.pins.open_map(name::RULE_HITS)?;
        let hits = |rule: &RuleSetId| -> Result<(RuleSetId, u64), DatapathError> {
            Ok((*rule, self.per_cpu_at::<u64>(&fd, name::RULE_HITS, rule.0)?.iter().sum()))
        };
        rules.iter().map(hits).collect()
    }

    /// Events that the kernel did not tell, by cause.
    pub fn untold(&self) -> Result<Untold, DatapathError> {
        Untold::read(|cause| Ok(self.per_cpu::<u64>(name::EVENT_LOST, cause)?.iter().sum()))
    }

    /// The host firewall is on.
    pub fn host_firewall(&self) -> Result<bool, DatapathError> {
        Ok(self.tables.config.get(&0)?.is_some_and(|config| config.flags & CFG_HOST_FIREWALL != 0))
    }

    /// How full the maps are (hashes and tries; reads each of them whole).
    pub fn pressure(&self) -> Result<Vec<MapPressure>, DatapathError> {
        self.pressure_of(&self.tables)
    }

    /// The same, with what those who write `tables` know about them.
    pub(super) fn pressure_of(&self, tables: &Tables) -> Result<Vec<MapPressure>, DatapathError> {
        Ok(vec![
            MapPressure::of(&*tables.policy)?,
            MapPressure::of(&*tables.port_classes)?,
            MapPressure::of(&*tables.ipcache_exact)?,
            MapPressure::of(&*tables.ipcache_lpm)?,
            MapPressure::of(&*tables.address_classes)?,
            MapPressure::of(&*tables.endpoints)?,
            MapPressure::of(&*tables.services)?,
            MapPressure::of(&*tables.backends)?,
            self.connection_pressure()?,
            MapPressure::of(&*self.table::<NatKey, NatValue>(name::NAT)?)?,
        ])
    }

    /// Connections that have not expired: the others' places are free.
    fn connection_pressure(&self) -> Result<MapPressure, DatapathError> {
        let connections = Connections::of_pins(&self.pins)?;
        let now = clock::seconds_since_boot()?;
        let mut entries = 0;
        connections.for_each(&mut |kept| entries += u64::from(u64::from(kept.expires) >= now))?;
        Ok(MapPressure { map: name::CT, entries, max_entries: connections.room() })
    }

    /// Bytes of kernel memory that maps of fixed size take (`max_entries` times key and value).
    pub fn fixed_bytes(&self) -> Result<u64, DatapathError> {
        let mut bytes = 0;
        for spec in specs(&Capacity::default()) {
            let Some(info) = self.pins.map_info(spec.name)? else { continue };
            let per_cpu = if info.kind == kind::PERCPU_ARRAY { self.cpus as u64 } else { 1 };
            let element = u64::from(info.key_size) + u64::from(info.value_size.next_multiple_of(8)) * per_cpu;
            if matches!(info.kind, kind::ARRAY | kind::PERCPU_ARRAY | kind::LRU_HASH) {
                bytes += element * u64::from(info.max_entries);
            }
            if info.kind == kind::RINGBUF {
                bytes += u64::from(info.max_entries);
            }
        }
        Ok(bytes)
    }
}

fn connection(kept: &Kept, now: u64) -> Connection {
    let Kept { key, entry, expires } = kept;
    let flags = u32::from(entry.flags);
    let side = |addr: Addr, port, side: CtSide| ConnectionSide {
        address: addr.to_ip_or_unspecified(),
        port,
        identity: Identity(side.identity),
        ifindex: side.ifindex,
    };
    let lo = side(key.lo_addr, key.lo_port, entry.lo);
    let hi = side(key.hi_addr, key.hi_port, entry.hi);
    let (client, server) = if flags & CT_INIT_HI != 0 { (hi, lo) } else { (lo, hi) };
    let protocol = Protocol::from_number(key.protocol);
    Connection {
        protocol,
        client,
        server,
        seen_reply: flags & CT_SEEN_REPLY != 0,
        closing: flags & (CT_FIN_LO | CT_FIN_HI | CT_RST) != 0,
        denied: flags & CT_DENIED != 0,
        proxied: flags & CT_PROXY != 0,
        frontend: (flags & CT_REV_NAT != 0).then(|| (entry.svc_addr.to_ip_or_unspecified(), entry.svc_port)),
        rules: RuleSetId(entry.rule_set),
        last_seen: expires.saturating_sub(timeout(protocol, flags)),
        expired: now > u64::from(*expires),
    }
}
