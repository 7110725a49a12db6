//! What the agent tells the datapath once, at start.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::abi;
use crate::model::Family;

/// How pods of other nodes are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// VXLAN through this device (see [`super::net::tunnel`]).
    Tunnel {
        /// Name of the VXLAN device in external mode.
        device: String,
        /// UDP port of the outer packets.
        port: u16,
    },
    /// The fabric routes pod addresses.
    Routes,
}

/// Whether the node's own traffic meets a program wherever it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostTraffic {
    /// On the uplink only, where the pods' traffic is judged anyway.
    #[default]
    Unjudged,
    /// On every device with an address that others can reach: what the host firewall needs.
    Judged,
}

/// How programs are attached to devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// tcx where the kernel has it (6.6 and later), clsact otherwise.
    #[default]
    Auto,
    Tcx,
    Clsact,
}

/// How a packet reaches a local pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LocalDelivery {
    /// `bpf_redirect_peer`: straight into the pod's namespace.
    #[default]
    RedirectPeer,
    /// Through the host side's device queue.
    Stack,
}

/// Which packets make events besides drops, which always do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trace {
    /// Drops only.
    Drops,
    /// Drops and the first packet of every flow.
    #[default]
    Verdicts,
    /// The same, and one in `n` packets of established flows (`n` of at least 1).
    Sampled(u32),
}

/// How often the kernel says the same about drops. Counters count every packet all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropLimits {
    /// Drops with the same addresses, destination port, protocol and reason that are told in a second; 0 tells
    /// every drop.
    pub repeats: u32,
    /// Drops told in a second about one device and one reason.
    pub per_device: u32,
}

impl Default for DropLimits {
    /// Every retry of a person or a program is told; a flood is told once a tenth of a second. Half a CPU
    /// names about as many events in a second as two devices may tell.
    fn default() -> DropLimits {
        DropLimits { repeats: 10, per_device: 32768 }
    }
}

/// Elements that maps have room for. The defaults are those of `bpf/abi.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub policy_entries: u32,
    pub ipcache: u32,
    pub connections: u32,
    pub event_bytes: u32,
}

impl Default for Capacity {
    fn default() -> Capacity {
        Capacity {
            policy_entries: abi::MAX_POLICY_ENTRIES,
            ipcache: abi::MAX_IPCACHE_EXACT,
            connections: abi::MAX_CT,
            // Its reader maps it twice, and all of it is resident.
            event_bytes: abi::EVENTS_BYTES / 4,
        }
    }
}

/// Configuration of a node's datapath.
#[derive(Clone, Debug)]
pub struct DatapathConfig {
    /// Directory on a BPF file system that belongs to this agent alone.
    pub bpffs: PathBuf,
    /// Device towards other nodes and the world.
    pub uplink: Option<String>,
    pub host_traffic: HostTraffic,
    pub mode: Mode,
    /// Families whose pod traffic to the outside gets the node's address.
    pub masquerade: BTreeSet<Family>,
    /// Source ports of masqueraded connections.
    pub nat_ports: RangeInclusive<u16>,
    /// MAC address of the pods' gateway; the source of every frame to a pod.
    pub router_mac: [u8; 6],
    pub local_delivery: LocalDelivery,
    pub trace: Trace,
    pub drop_limits: DropLimits,
    pub attach: AttachMode,
    pub capacity: Capacity,
}

/// Locally administered, the same on every node: pods keep it as a permanent neighbour.
pub const ROUTER_MAC: [u8; 6] = [0x02, 0x5c, 0x00, 0x00, 0x00, 0x01];

impl DatapathConfig {
    /// The defaults, for an agent that owns `bpffs`.
    pub fn new(bpffs: impl Into<PathBuf>) -> DatapathConfig {
        DatapathConfig {
            bpffs: bpffs.into(),
            uplink: None,
            host_traffic: HostTraffic::default(),
            mode: Mode::Routes,
            masquerade: BTreeSet::new(),
            nat_ports: 32768..=60999,
            router_mac: ROUTER_MAC,
            local_delivery: LocalDelivery::default(),
            trace: Trace::default(),
            drop_limits: DropLimits::default(),
            attach: AttachMode::default(),
            capacity: Capacity::default(),
        }
    }
}
