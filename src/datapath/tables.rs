//! Every map of `bpf/lib/maps.h` that outlives the agent, by name and shape, and typed handles to them.

use std::os::fd::OwnedFd;

use super::DatapathError;
use super::abi::*;
use super::config::Capacity;
use super::connections::sets_for;
use super::table::{KernelTable, Key, MemoryTable, Observer, Shared, Value};

/// Shape of a map, as this version of sluice creates it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSpec {
    pub name: &'static str,
    /// `BPF_MAP_TYPE_*`.
    pub kind: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
}

impl MapSpec {
    /// The maps differ in nothing but their room.
    pub fn same_elements(&self, other: &MapSpec) -> bool {
        MapSpec { max_entries: 0, ..*self } == MapSpec { max_entries: 0, ..*other }
    }
}

impl std::fmt::Display for MapSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let MapSpec { kind, key_size, value_size, max_entries, .. } = self;
        write!(f, "type {kind}, key {key_size} bytes, value {value_size} bytes, {max_entries} entries")
    }
}

/// `BPF_MAP_TYPE_*` of `include/uapi/linux/bpf.h`, those that we use.
pub mod kind {
    pub const HASH: u32 = 1;
    pub const ARRAY: u32 = 2;
    pub const PERCPU_ARRAY: u32 = 6;
    pub const LRU_HASH: u32 = 9;
    pub const LPM_TRIE: u32 = 11;
    pub const SOCKMAP: u32 = 15;
    pub const RINGBUF: u32 = 27;
}

const fn spec<K, V>(name: &'static str, kind: u32, max_entries: u32) -> MapSpec {
    let (key_size, value_size) = (size_of::<K>() as u32, size_of::<V>() as u32);
    MapSpec { name, kind, key_size, value_size, max_entries }
}

/// Names of the pinned maps.
pub mod name {
    pub const CONFIG: &str = "sl_config";
    pub const ENDPOINTS: &str = "sl_endpoints";
    pub const IPCACHE_EXACT: &str = "sl_ipcache_exact";
    pub const IPCACHE_LPM: &str = "sl_ipcache_lpm";
    pub const ADDR_CLASS: &str = "sl_addr_class";
    pub const POLICY: &str = "sl_policy";
    pub const POLICY_INFO: &str = "sl_policy_info";
    pub const PORT_CLASS: &str = "sl_port_class";
    pub const IDENTITIES: &str = "sl_identities";
    pub const SERVICES: &str = "sl_services";
    pub const BACKENDS: &str = "sl_backends";
    pub const CT: &str = "sl_ct";
    pub const CT_SECRET: &str = "sl_ct_secret";
    pub const FRAGS: &str = "sl_frags";
    pub const NAT: &str = "sl_nat";
    pub const AFFINITY: &str = "sl_affinity";
    pub const DROPS: &str = "sl_drops";
    pub const ALLOWANCES: &str = "sl_allowances";
    pub const DNS_PAIRS: &str = "sl_dns_pairs";
    pub const METRICS: &str = "sl_metrics";
    pub const EP_STATS: &str = "sl_ep_stats";
    pub const RULE_HITS: &str = "sl_rule_hits";
    pub const EVENT_LOST: &str = "sl_event_lost";
    pub const EVENTS: &str = "sl_events";
}

/// The pinned maps with this capacity.
pub fn specs(capacity: &Capacity) -> Vec<MapSpec> {
    use kind::*;
    vec![
        spec::<u32, NodeConfig>(name::CONFIG, ARRAY, 1),
        spec::<Addr, EndpointInfo>(name::ENDPOINTS, HASH, MAX_ENDPOINTS * 2),
        spec::<Addr, IpcacheValue>(name::IPCACHE_EXACT, HASH, capacity.ipcache),
        spec::<LpmKey, IpcacheValue>(name::IPCACHE_LPM, LPM_TRIE, MAX_IPCACHE_LPM),
        spec::<LpmKey, u32>(name::ADDR_CLASS, LPM_TRIE, MAX_ADDR_CLASSES),
        spec::<PolicyMapKey, PolicyMapEntry>(name::POLICY, HASH, capacity.policy_entries),
        spec::<u32, PolicyInfoValue>(name::POLICY_INFO, ARRAY, MAX_POLICIES),
        spec::<PortClassKey, u32>(name::PORT_CLASS, LPM_TRIE, MAX_PORT_CLASSES),
        spec::<u32, u64>(name::IDENTITIES, ARRAY, IDENTITY_WORDS),
        spec::<ServiceKey, ServiceValue>(name::SERVICES, HASH, MAX_SERVICES),
        spec::<BackendKey, BackendValue>(name::BACKENDS, HASH, MAX_BACKENDS),
        spec::<u32, CtSecret>(name::CT_SECRET, ARRAY, 1),
        spec::<u32, CtSet>(name::CT, ARRAY, sets_for(capacity.connections)),
        spec::<FragKey, FragValue>(name::FRAGS, LRU_HASH, MAX_FRAGS),
        spec::<NatKey, NatValue>(name::NAT, LRU_HASH, MAX_NAT),
        spec::<AffinityKey, AffinityValue>(name::AFFINITY, LRU_HASH, MAX_AFFINITY),
        spec::<DropTuple, DropTold>(name::DROPS, LRU_HASH, MAX_DROP_TUPLES),
        spec::<AllowanceKey, AllowanceUsed>(name::ALLOWANCES, LRU_HASH, MAX_ALLOWANCES),
        spec::<DnsPair, u32>(name::DNS_PAIRS, LRU_HASH, MAX_DNS_PAIRS),
        spec::<u32, Counter>(name::METRICS, PERCPU_ARRAY, 2 * MAX_METRIC),
        spec::<u32, EndpointCounter>(name::EP_STATS, PERCPU_ARRAY, MAX_ENDPOINTS),
        spec::<u32, u64>(name::RULE_HITS, PERCPU_ARRAY, MAX_RULE_SETS),
        spec::<u32, u64>(name::EVENT_LOST, PERCPU_ARRAY, LOST_CAUSES),
        spec::<u32, u32>(super::proxy::LISTENERS, SOCKMAP, PROXY_PLACES),
        MapSpec {
            name: name::EVENTS,
            kind: RINGBUF,
            key_size: 0,
            value_size: 0,
            max_entries: capacity.event_bytes,
        },
    ]
}

/// The maps that user space writes.
#[derive(Clone, Debug)]
pub struct Tables {
    pub config: Shared<u32, NodeConfig>,
    pub endpoints: Shared<Addr, EndpointInfo>,
    pub ipcache_exact: Shared<Addr, IpcacheValue>,
    pub ipcache_lpm: Shared<LpmKey, IpcacheValue>,
    pub address_classes: Shared<LpmKey, u32>,
    pub policy: Shared<PolicyMapKey, PolicyMapEntry>,
    pub policy_info: Shared<u32, PolicyInfoValue>,
    pub port_classes: Shared<PortClassKey, u32>,
    pub identities: Shared<u32, u64>,
    pub services: Shared<ServiceKey, ServiceValue>,
    pub backends: Shared<BackendKey, BackendValue>,
}

impl Tables {
    /// Typed handles to kernel maps that `open` finds by name.
    pub fn from_kernel(
        mut open: impl FnMut(&'static str) -> Result<OwnedFd, DatapathError>,
    ) -> Result<Tables, DatapathError> {
        fn table<K: Key, V: Value>(
            name: &'static str,
            open: &mut impl FnMut(&'static str) -> Result<OwnedFd, DatapathError>,
        ) -> Result<Shared<K, V>, DatapathError> {
            KernelTable::open(name, open(name)?)
        }
        let open = &mut open;
        Ok(Tables {
            config: table(name::CONFIG, open)?,
            endpoints: table(name::ENDPOINTS, open)?,
            ipcache_exact: table(name::IPCACHE_EXACT, open)?,
            ipcache_lpm: table(name::IPCACHE_LPM, open)?,
            address_classes: table(name::ADDR_CLASS, open)?,
            policy: table(name::POLICY, open)?,
            policy_info: table(name::POLICY_INFO, open)?,
            port_classes: table(name::PORT_CLASS, open)?,
            identities: table(name::IDENTITIES, open)?,
            services: table(name::SERVICES, open)?,
            backends: table(name::BACKENDS, open)?,
        })
    }

    /// Empty maps in this process, with the limits of the kernel's.
    pub fn in_memory(capacity: &Capacity) -> Tables {
        Self::in_memory_observed(capacity, &Observer::default())
    }

    /// The same, and every write is told.
    pub fn in_memory_observed(capacity: &Capacity, observer: &Observer) -> Tables {
        let specs = specs(capacity);
        struct Maker<'a> {
            specs: &'a [MapSpec],
            observer: &'a Observer,
        }
        impl Maker<'_> {
            fn make<K: Key, V: Value>(
                &self,
                name: &'static str,
                shorter: Option<fn(&K) -> Option<K>>,
            ) -> Shared<K, V> {
                let room =
                    self.specs.iter().find(|spec| spec.name == name).map_or(0, |spec| spec.max_entries);
                MemoryTable::create(name, room, shorter, self.observer.clone())
            }
        }
        let maker = Maker { specs: &specs, observer };
        Tables {
            config: maker.make(name::CONFIG, None),
            endpoints: maker.make(name::ENDPOINTS, None),
            ipcache_exact: maker.make(name::IPCACHE_EXACT, None),
            ipcache_lpm: maker.make(name::IPCACHE_LPM, Some(LpmKey::shorter)),
            address_classes: maker.make(name::ADDR_CLASS, Some(LpmKey::shorter)),
            policy: maker.make(name::POLICY, None),
            policy_info: maker.make(name::POLICY_INFO, None),
            port_classes: maker.make(name::PORT_CLASS, Some(PortClassKey::shorter)),
            identities: maker.make(name::IDENTITIES, None),
            services: maker.make(name::SERVICES, None),
            backends: maker.make(name::BACKENDS, None),
        }
    }
}
