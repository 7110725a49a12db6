//! Rows of tables: what [`super::Inspector`] returns.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::cluster::delta::ServiceFrontend;
use crate::datapath::DatapathError;
use crate::datapath::abi::Counter;
use crate::datapath::table::{Key, Table, Value};
use crate::model::{Backend, Direction, DropReason, Identity, Protocol};
use crate::policy::map_state::{PolicyEntry, PolicyKey, RuleSetId};

/// A policy as the kernel has it.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyRow {
    pub policy_id: u32,
    pub subject: Identity,
    /// 0: not loaded, its endpoints drop everything.
    pub epoch: u32,
    pub default_deny: Vec<Direction>,
    /// In key order.
    pub entries: Vec<(PolicyKey, PolicyEntry)>,
}

/// One side of a tracked connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionSide {
    pub address: IpAddr,
    pub port: u16,
    pub identity: Identity,
    /// Device of the local pod on this side; 0 if none.
    pub ifindex: u32,
}

/// A conntrack entry, seen from the side that opened the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    pub protocol: Protocol,
    pub client: ConnectionSide,
    pub server: ConnectionSide,
    pub seen_reply: bool,
    pub closing: bool,
    pub denied: bool,
    pub proxied: bool,
    /// Frontend that the client named, for connections through a Service.
    pub frontend: Option<(IpAddr, u16)>,
    pub rules: RuleSetId,
    /// Seconds since boot.
    pub last_seen: u32,
    /// No packet for so long that the entry vouches for nothing any more.
    pub expired: bool,
}

/// Which connections to list. `None` members match everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionFilter {
    /// On either side.
    pub address: Option<IpAddr>,
    /// On either side.
    pub identity: Option<Identity>,
    pub protocol: Option<Protocol>,
    /// On either side.
    pub port: Option<u16>,
}

impl ConnectionFilter {
    pub(super) fn passes(&self, connection: &Connection) -> bool {
        let sides = [connection.client, connection.server];
        let any = |test: &dyn Fn(&ConnectionSide) -> bool| sides.iter().any(test);
        self.protocol.is_none_or(|wanted| wanted == connection.protocol)
            && self.address.is_none_or(|wanted| any(&|side| side.address == wanted))
            && self.identity.is_none_or(|wanted| any(&|side| side.identity == wanted))
            && self.port.is_none_or(|wanted| any(&|side| side.port == wanted))
    }
}

/// An ipcache entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpcacheRow {
    pub prefix: IpNet,
    pub identity: Identity,
    pub tunnel_endpoint: Option<IpAddr>,
    /// Belongs to the cluster (a pod, a node, or the pods' range).
    pub in_cluster: bool,
}

/// A local address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointRow {
    pub address: IpAddr,
    /// 0 is the node itself.
    pub endpoint_id: u16,
    pub identity: Identity,
    pub policy_id: u32,
    pub ifindex: u32,
    pub mac: [u8; 6],
}

/// A Service frontend with its backends in slot order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRow {
    pub frontend: ServiceFrontend,
    pub affinity_secs: Option<u32>,
    pub backends: Vec<Backend>,
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

impl From<Counter> for Count {
    fn from(counter: Counter) -> Count {
        Count { packets: counter.packets, bytes: counter.bytes }
    }
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Count) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// What passed (`None`) and what was dropped, by direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricRow {
    pub direction: Direction,
    pub reason: Option<DropReason>,
    pub count: Count,
}

/// Counters of one endpoint, by direction (`Direction as usize`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointStats {
    pub forwarded: [Count; 2],
    pub dropped: [Count; 2],
}

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapPressure {
    pub map: &'static str,
    pub entries: u64,
    pub max_entries: u32,
}

impl MapPressure {
    /// Counts only where an upper bound says that the map could be nearly full: a count reads all of it.
    pub(super) fn of<K: Key, V: Value>(table: &dyn Table<K, V>) -> Result<MapPressure, DatapathError> {
        let max_entries = table.max_entries();
        let nearly_full = table.bound() > u64::from(max_entries) / 10 * 9;
        let entries = if nearly_full { table.count()? } else { table.bound() };
        Ok(MapPressure { map: table.name(), entries, max_entries })
    }
}

/// A difference between the kernel and what should be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    pub map: &'static str,
    pub what: String,
}
