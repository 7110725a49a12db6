//! The real kernel: the datapath of this node behind the core's [`Kernel`].

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tokio::runtime::Handle;

use super::host_state::HostState;
use super::kernel::{FoundDevice, Kernel};
use crate::api::types::Feature;
use crate::cluster::delta::Delta;
use crate::config::{AgentConfig, FlowEvents, Routing, Switch};
use crate::datapath::attach::device_exists;
use crate::datapath::config::{HostTraffic, ROUTER_MAC};
use crate::datapath::net::own::OwnDevice;
use crate::datapath::net::pod::{self, PodNetwork};
use crate::datapath::net::{Device, Namespace, NetError, Netlink, own, tunnel};
use crate::datapath::{
    Datapath, DatapathConfig, DatapathError, EndpointDevice, EventReader, Inspector, KernelDatapath,
    LinkLayer, Mode, ProxyState, Reconciled, Restored, Trace, preflight,
};
use crate::endpoint::DeviceName;
use crate::model::Family;

/// UDP port of the tunnel: the one that Linux itself defaults to, not IANA's 4789, which another overlay
/// on the machine may hold.
pub(super) const TUNNEL_PORT: u16 = 8472;
/// MTU of pods of a node without an uplink: Ethernet's.
const DEFAULT_MTU: u32 = 1500;

#[derive(Debug)]
pub struct LinuxKernel {
    datapath: KernelDatapath,
    netlink: Netlink,
    uplink: Option<String>,
    host_firewall: Switch,
    host: HostState,
    runtime: Handle,
    features: Vec<Feature>,
}

fn feature(name: &str, state: &str, detail: String) -> Feature {
    Feature { name: name.into(), state: state.into(), detail }
}

pub(super) fn failed(error: NetError) -> DatapathError {
    DatapathError::Other(error.to_string())
}

impl LinuxKernel {
    /// Opens the datapath; programs of an earlier run are replaced by ours. To be called inside the
    /// runtime, in the node's network namespace.
    pub async fn open(config: &AgentConfig, addresses: &[IpAddr]) -> Result<LinuxKernel, DatapathError> {
        let netlink = Netlink::here().map_err(failed)?;
        if !preflight::on_bpffs(&config.bpffs) {
            preflight::mount_bpffs(&config.bpffs).map_err(|source| DatapathError::Syscall {
                operation: "mount a BPF file system",
                object: config.bpffs.display().to_string(),
                source,
            })?;
        }
        let family = addresses.first().map_or(Family::IPv4, |address| Family::of(*address));
        let host = HostState::new(config, family);
        host.ensure(&netlink).await?;
        let mut datapath = DatapathConfig::new(&config.bpffs);
        datapath.uplink.clone_from(&config.uplink);
        datapath.trace = match config.flow_events {
            FlowEvents::Verdicts => Trace::Verdicts,
            FlowEvents::Drops => Trace::Drops,
        };
        let mut features = Vec::new();
        datapath.mode = match (config.routing, &config.uplink) {
            (Routing::Tunnel, Some(_)) => {
                let mtu = host.tunnel_mtu(&netlink).await?.unwrap_or_default();
                features.push(feature(
                    "overlay",
                    "vxlan",
                    format!("{} on port {TUNNEL_PORT}, MTU {mtu}", tunnel::DEVICE),
                ));
                Mode::Tunnel { device: tunnel::DEVICE.to_owned(), port: TUNNEL_PORT }
            }
            (_, None) => {
                features.push(feature("overlay", "off", "no --uplink: this node alone".into()));
                Mode::Routes
            }
            (Routing::Routes, _) => {
                features.push(feature("overlay", "off", "plain routes".into()));
                Mode::Routes
            }
        };
        if config.masquerade.is_on() && config.uplink.is_some() {
            datapath.masquerade =
                addresses.iter().map(|address| Family::of(*address)).collect::<BTreeSet<_>>();
        }
        if config.host_firewall.is_on() {
            datapath.host_traffic = HostTraffic::Judged;
        }
        let mut datapath = KernelDatapath::open(datapath)?;
        datapath.set_node_devices(&own::devices(&netlink).await.map_err(failed)?)?;
        for carried in datapath.carried() {
            let (map, from) = (carried.map, carried.from.display());
            match &carried.outcome {
                Ok(elements) => tracing::info!(map, %from, elements, "taken over into a new map"),
                Err(reason) => {
                    tracing::warn!(map, %from, reason, "not taken over: these flows are judged anew")
                }
            }
        }
        features.push(feature(
            "attachment",
            &format!("{:?}", datapath.mechanism()).to_lowercase(),
            String::new(),
        ));
        features.push(feature("local delivery", "redirect_peer", "past the pod's host side".into()));
        let (uplink, host_firewall) = (config.uplink.clone(), config.host_firewall);
        Ok(LinuxKernel {
            datapath,
            netlink,
            uplink,
            host_firewall,
            host,
            runtime: Handle::current(),
            features,
        })
    }

    pub fn events(&self) -> Result<EventReader, DatapathError> {
        self.datapath.events()
    }

    /// Packets of a pod may have to go through the tunnel: its MTU holds for all.
    async fn pod_mtu(&self) -> Result<u32, NetError> {
        let below = match (&self.uplink, self.netlink.find(tunnel::DEVICE).await?) {
            (Some(_), Some(tunnel)) => Some(tunnel),
            (Some(uplink), None) => self.netlink.find(uplink).await?,
            (None, _) => None,
        };
        Ok(below.map_or(DEFAULT_MTU, |device| device.mtu))
    }

    async fn make_device(
        &self,
        netns: &str,
        interface: &str,
        host_interface: &str,
        addresses: &[IpAddr],
    ) -> Result<(), NetError> {
        let network = PodNetwork {
            namespace: &Namespace::open(Path::new(netns))?,
            host_device: host_interface,
            pod_device: interface,
            addresses,
            mtu: self.pod_mtu().await?,
            router_mac: ROUTER_MAC,
        };
        pod::create(&self.netlink, &network).await.map(drop)
    }

    async fn find_device(&self, device: &DeviceName) -> Result<FoundDevice, NetError> {
        match device {
            DeviceName::Netns { netns, interface } | DeviceName::Made { netns, interface, .. } => {
                let namespace = Namespace::open(Path::new(netns))?;
                let inner = Netlink::inside(&namespace)?.find(interface).await?.ok_or_else(|| {
                    NetError::NoDevice(format!("{interface} in {netns} (`endpoint add --create` makes one)"))
                })?;
                let host = match inner.link {
                    Some(peer) => self.netlink.by_index(peer).await?,
                    None => None,
                };
                let host = host.filter(|host| host.link == Some(inner.ifindex)).ok_or_else(|| {
                    NetError::NoDevice(format!("on the node's side of {interface} in {netns}"))
                })?;
                found(host, &inner)
            }
            DeviceName::Host { interface } => {
                let host = self.netlink.get(interface).await?;
                for path in namespaces() {
                    let Ok(namespace) = Namespace::open(&path) else { continue };
                    let Ok(inside) = Netlink::inside(&namespace) else { continue };
                    let Ok(devices) = inside.devices().await else { continue };
                    let is_peer = |inner: &&Device| {
                        Some(inner.ifindex) == host.link && inner.link == Some(host.ifindex)
                    };
                    if let Some(inner) = devices.iter().find(is_peer) {
                        return found(host.clone(), inner);
                    }
                }
                Err(NetError::NoDevice(format!("on the pod's side of {interface}, in any network namespace")))
            }
        }
    }
}

fn found(host: Device, inner: &Device) -> Result<FoundDevice, NetError> {
    let mac = <[u8; 6]>::try_from(inner.mac.as_slice())
        .map_err(|_| NetError::WrongDevice { device: inner.name.clone(), expected: "Ethernet" })?;
    Ok(FoundDevice { interface: host.name, ifindex: host.ifindex, mac })
}

/// Every network namespace that has a name or a process, once.
fn namespaces() -> Vec<PathBuf> {
    let entries = |directory: &str| {
        std::fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path())
    };
    let of_processes = entries("/proc").map(|process| process.join("ns/net"));
    let mut seen = BTreeSet::new();
    entries("/run/netns")
        .chain(of_processes)
        .filter(|path| std::fs::metadata(path).is_ok_and(|meta| seen.insert((meta.dev(), meta.ino()))))
        .collect()
}

impl Datapath for LinuxKernel {
    fn apply(&mut self, delta: &Delta) -> Result<(), DatapathError> {
        self.datapath.apply(delta)
    }

    fn reconcile(&mut self, full: &Delta) -> Result<Reconciled, DatapathError> {
        self.datapath.reconcile(full)
    }
}

impl Kernel for LinuxKernel {
    fn started(&mut self) -> Result<(), DatapathError> {
        self.datapath.attach_node()
    }

    fn node_devices(&mut self, own: &[OwnDevice]) -> Result<(), DatapathError> {
        self.datapath.set_node_devices(own)
    }

    fn find(&mut self, device: &DeviceName) -> Result<FoundDevice, DatapathError> {
        self.runtime.block_on(self.find_device(device)).map_err(failed)
    }

    fn has_device(&self, ifindex: u32) -> bool {
        device_exists(ifindex)
    }

    fn make(&mut self, device: &DeviceName, addresses: &[IpAddr]) -> Result<(), DatapathError> {
        let DeviceName::Made { netns, interface, host_interface } = device else { return Ok(()) };
        self.runtime.block_on(self.make_device(netns, interface, host_interface, addresses)).map_err(failed)
    }

    fn unmake(&mut self, device: &DeviceName) -> Result<(), DatapathError> {
        let DeviceName::Made { host_interface, .. } = device else { return Ok(()) };
        self.runtime.block_on(pod::delete(&self.netlink, host_interface)).map_err(failed)
    }

    fn attach(&mut self, pod: &str, id: u16, device: &FoundDevice) -> Result<(), DatapathError> {
        let FoundDevice { ifindex, mac, .. } = *device;
        self.datapath
            .attach_endpoint(pod, EndpointDevice { ifindex, mac, id, link_layer: LinkLayer::Ethernet })
    }

    fn detach(&mut self, pod: &str) -> Result<(), DatapathError> {
        self.datapath.detach_endpoint(pod)
    }

    fn restore_programs(&mut self) -> Restored {
        let mut restored = self.datapath.restore_programs();
        match self.runtime.block_on(self.host.ensure(&self.netlink)) {
            Ok(missing) => restored.missing.extend(missing),
            Err(error) => restored.failed = restored.failed.or(Some(error)),
        }
        restored
    }

    fn set_proxy(&mut self, state: ProxyState) -> Result<(), DatapathError> {
        self.datapath.set_proxy(state)
    }

    fn inspect(&self) -> Result<Inspector, DatapathError> {
        self.datapath.inspect()
    }

    fn features(&self) -> Vec<Feature> {
        let mut features = self.features.clone();
        if self.host_firewall.is_on() {
            let mut devices: Vec<&str> = self.uplink.iter().map(String::as_str).collect();
            devices.extend(self.datapath.host_devices());
            features.push(feature("host firewall", "on", format!("devices {}", devices.join(", "))));
        }
        features
    }

    fn lost_events(&mut self) -> u64 {
        self.datapath.inspect().and_then(|inspector| inspector.untold()).unwrap_or_default().lost()
    }

    fn pressure(&mut self) -> Vec<(String, u64, u64)> {
        let rows = self.datapath.pressure().unwrap_or_default();
        rows.into_iter().map(|row| (row.map.to_owned(), row.entries, u64::from(row.max_entries))).collect()
    }
}
