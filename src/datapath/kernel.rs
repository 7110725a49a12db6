//! The datapath of a node: programs on devices, maps in the kernel.
//!
//! Life of an agent: [`KernelDatapath::open`] (programs of an earlier agent are replaced, enforcement
//! goes on with what its maps hold) -> [`KernelDatapath::attach_endpoint`] for every local pod ->
//! [`Datapath::reconcile`] with the full state -> [`KernelDatapath::attach_node`] -> deltas. When the
//! agent ends, everything stays and goes on judging packets.

use std::collections::BTreeSet;

use super::abi::*;
use super::attach::{Attached, Attacher, Hook, Mechanism, device_exists, device_index, device_name};
use super::carry::{Carried, Carry};
use super::config::{DatapathConfig, LocalDelivery, Mode, Trace};
use super::endpoints::EndpointDevice;
use super::events::{EventReader, PolicySubjects};
use super::host_devices::HostDevices;
use super::inspect::{Inspector, MapPressure};
use super::net::own::OwnDevice;
use super::net::sysctl;
use super::pins::Pins;
use super::reconcile::Reconciled;
use super::tables::Tables;
use super::writer::Writer;
use super::{Datapath, DatapathError, loader, sockets};
use crate::cluster::delta::Delta;
use crate::model::Family;

/// Others reach no address of the node by this device.
const LOOPBACK: &str = "lo";
/// The first device of each network namespace (the kernel's `LOOPBACK_IFINDEX`).
const LOOPBACK_IFINDEX: u32 = 1;

/// What L7 traffic meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyState {
    /// Redirects are dropped: "proxy not available".
    Absent,
    /// Redirects are handed to the proxies' sockets.
    Listening,
}

/// What [`KernelDatapath::restore_programs`] did.
#[derive(Debug, Default)]
pub struct Restored {
    /// What was put back, for people.
    pub missing: Vec<String>,
    /// The first failure; it kept nothing else from it.
    pub failed: Option<DatapathError>,
}

/// See the module's contract.
#[derive(Debug)]
pub struct KernelDatapath {
    writer: Writer,
    attacher: Attacher,
    pins: Pins,
    config: DatapathConfig,
    subjects: PolicySubjects,
    carry: Carry,
    host_devices: HostDevices,
    /// The uplink and the VXLAN device as they were attached; they may be made anew under the same names.
    node_devices: BTreeSet<u32>,
    /// The first full state is in place.
    settled: bool,
    failures: u64,
    revision: u64,
}

/// `sl_config` as far as it does not come with deltas.
fn base_config(config: &DatapathConfig) -> Result<NodeConfig, DatapathError> {
    let mut flags = 0;
    for family in &config.masquerade {
        flags |= match family {
            Family::IPv4 => CFG_MASQUERADE_V4,
            Family::IPv6 => CFG_MASQUERADE_V6,
        };
    }
    if config.local_delivery == LocalDelivery::RedirectPeer {
        flags |= CFG_REDIRECT_PEER;
    }
    let trace_sample = match config.trace {
        Trace::Drops => 0,
        Trace::Verdicts => {
            flags |= CFG_TRACE;
            0
        }
        Trace::Sampled(n) => {
            flags |= CFG_TRACE;
            n.max(1)
        }
    };
    let (tunnel_ifindex, tunnel_port) = match &config.mode {
        Mode::Tunnel { device, port } => {
            flags |= CFG_TUNNEL;
            (device_index(device)?, *port)
        }
        Mode::Routes => (0, 0),
    };
    Ok(NodeConfig {
        flags,
        uplink_ifindex: config.uplink.as_deref().map_or(Ok(0), device_index)?,
        tunnel_ifindex,
        trace_sample,
        nat_port_min: *config.nat_ports.start(),
        nat_port_max: *config.nat_ports.end(),
        router_mac: config.router_mac,
        tunnel_port,
        drop_repeats: config.drop_limits.repeats,
        drop_events: config.drop_limits.per_device,
        port_key: super::proxy::PortKey::draw()?.number(),
        ..Default::default()
    })
}

impl KernelDatapath {
    /// Loads programs and maps, takes over what an earlier agent left, and replaces its programs.
    ///
    /// # Errors
    /// No BPF file system, a device that is not there, a pinned map of another shape, or a program
    /// that the kernel refuses. What was enforced before goes on.
    pub fn open(config: DatapathConfig) -> Result<KernelDatapath, DatapathError> {
        let base = base_config(&config)?;
        let pins = Pins::at(&config.bpffs);
        let (mut programs, mut carry) = loader::load(&pins, &config.capacity)?;
        let tables = Tables::from_kernel(|name| pins.open_map(name))?;
        // Proxies outlive the agent: what they serve must not stop while it starts.
        let proxy = tables.config.get(&0)?.map_or(0, |config| config.flags & CFG_PROXY);
        let writer = Writer::take_over(tables, NodeConfig { flags: base.flags | proxy, ..base })?;
        sockets::attach(programs.sockets(), &pins)?;
        let mut attacher = Attacher::new(programs, pins.clone(), config.attach);
        attach_loopback(&mut attacher)?;
        attacher.replace_all()?;
        carry.catch_up(&pins, attacher.programs())?;
        let left = attacher.devices_with(Hook::FromNetwork).into_iter();
        let left = left.filter_map(|ifindex| Some((ifindex, device_name(ifindex).ok()?))).collect();
        let host_devices = HostDevices::new(config.host_traffic, left);
        let mut datapath = KernelDatapath {
            writer,
            attacher,
            pins,
            config,
            subjects: PolicySubjects::default(),
            carry,
            host_devices,
            node_devices: BTreeSet::new(),
            settled: false,
            failures: 0,
            revision: 0,
        };
        datapath.publish_subjects();
        Ok(datapath)
    }

    /// Judges a pod's device from now on, and tells where the pod is.
    pub fn attach_endpoint(&mut self, pod: &str, device: EndpointDevice) -> Result<(), DatapathError> {
        // The map first: a program that judges packets of an unknown endpoint drops them.
        self.writer.set_device(pod, device)?;
        self.attach_pod(device.ifindex)?;
        if self.host_devices.judged().any(|(ifindex, _)| ifindex == device.ifindex) {
            self.judge_host_devices()?;
        }
        Ok(())
    }

    /// A program of another ABI version judges by its own maps, which are whole; ours are not yet. It goes on until
    /// [`KernelDatapath::attach_node`].
    fn attach_pod(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        for hook in Hook::POD {
            if self.settled || !self.attacher.judged_by_other_version(hook, ifindex) {
                self.attacher.attach(hook, ifindex)?;
            }
        }
        Ok(())
    }

    /// Forgets a pod's device and takes the programs off it.
    pub fn detach_endpoint(&mut self, pod: &str) -> Result<(), DatapathError> {
        let Some(device) = self.writer.clear_device(pod)? else { return Ok(()) };
        self.attacher.detach(&Hook::POD, device.ifindex)?;
        self.judge_host_devices()
    }

    /// Judges the uplink, the VXLAN device and the node's other devices from now on. To be called when the first full
    /// state is in place; calling it again is harmless.
    pub fn attach_node(&mut self) -> Result<(), DatapathError> {
        self.settled = true;
        self.attacher.attach(Hook::FromLoopback, LOOPBACK_IFINDEX)?;
        let pods: Vec<u32> = self.writer.devices().map(|(_, device)| device.ifindex).collect();
        for ifindex in pods {
            for hook in Hook::POD {
                if self.attacher.judged_by_other_version(hook, ifindex) {
                    self.attacher.attach(hook, ifindex)?;
                }
            }
        }
        let base = base_config(&self.config)?;
        let proxy = self.writer.base().flags & CFG_PROXY;
        self.writer.set_base(NodeConfig { flags: base.flags | proxy, ..base })?;
        if let Some(uplink) = &self.config.uplink {
            let ifindex = device_index(uplink)?;
            Hook::UPLINK.into_iter().try_for_each(|hook| self.attacher.attach(hook, ifindex))?;
        }
        if let Mode::Tunnel { device, .. } = &self.config.mode {
            self.attacher.attach(Hook::FromOverlay, device_index(device)?)?;
        }
        self.node_devices = self.own_devices()?;
        self.judge_host_devices()?;
        self.carry.finish(&self.pins, self.attacher.programs())?;
        self.attacher.retire_other_versions()
    }

    /// Puts programs back that somebody took off the devices: by `tc qdisc del` or `bpftool link detach`, or with a pin.
    pub fn restore_programs(&mut self) -> Restored {
        let mut restored = Restored::default();
        if !self.settled {
            return restored;
        }
        restored.failed = self.pins.create().err();
        for (hook, ifindex) in self.judging() {
            match self.attacher.ensure(hook, ifindex) {
                Ok(Attached::Before) => {}
                Ok(Attached::Now) => {
                    restored.missing.extend(device_name(ifindex).map(|name| format!("programs of {name}")))
                }
                // It went away in the meantime, and that is told.
                Err(_) if !device_exists(ifindex) => {}
                Err(error) => restored.failed = restored.failed.or(Some(error)),
            }
        }
        restored.missing.dedup();
        restored
    }

    /// Hooks with the devices that they judge.
    fn judging(&self) -> Vec<(Hook, u32)> {
        let named = |name: &String| device_index(name).ok();
        let pods = self.writer.devices().map(|(_, device)| device.ifindex);
        let tunnel = match &self.config.mode {
            Mode::Tunnel { device, .. } => named(device),
            Mode::Routes => None,
        };
        let uplink = self.config.uplink.iter().filter_map(named);
        let nodes: BTreeSet<u32> =
            self.host_devices.judged().map(|(ifindex, _)| ifindex).chain(uplink).collect();
        let on = |hooks: &'static [Hook]| move |ifindex| hooks.iter().map(move |hook| (*hook, ifindex));
        pods.flat_map(on(&Hook::POD))
            .chain(nodes.into_iter().flat_map(on(&Hook::UPLINK)))
            .chain(tunnel.map(|ifindex| (Hook::FromOverlay, ifindex)))
            .chain([(Hook::FromLoopback, LOOPBACK_IFINDEX)])
            .collect()
    }

    /// The uplink and the VXLAN device, which have to be there.
    fn own_devices(&self) -> Result<BTreeSet<u32>, DatapathError> {
        let tunnel = match &self.config.mode {
            Mode::Tunnel { device, .. } => Some(device),
            Mode::Routes => None,
        };
        self.config.uplink.iter().chain(tunnel).map(|name| device_index(name)).collect()
    }

    /// Tells which devices of this namespace have addresses now: they are the node's, and their traffic is judged
    /// where the configuration wants that. To be called whenever a device or an address came or went.
    ///
    /// # Errors
    /// The uplink or the VXLAN device is missing, or a program could not be attached. The rest was done.
    pub fn set_node_devices(&mut self, own: &[OwnDevice]) -> Result<(), DatapathError> {
        let addresses = own.iter().flat_map(|device| &device.addresses).copied().collect();
        self.writer.set_host_addresses(addresses)?;
        let others = own.iter().filter(|device| device.name != LOOPBACK);
        self.host_devices.list(others.map(|device| (device.ifindex, device.name.clone())).collect());
        if !self.settled {
            return Ok(());
        }
        match self.own_devices() {
            Ok(devices) if devices == self.node_devices => self.judge_host_devices(),
            Ok(_) => self.attach_node(),
            Err(error) => self.judge_host_devices().and(Err(error)),
        }
    }

    /// Attaches to devices that came to qualify and detaches from those that ceased to. One that fails keeps no other
    /// from it; the first failure is returned.
    fn judge_host_devices(&mut self) -> Result<(), DatapathError> {
        if !self.settled {
            return Ok(());
        }
        let pods = self.writer.devices().map(|(_, device)| device.ifindex);
        let never = pods.chain(self.node_devices.iter().copied()).collect();
        let work = self.host_devices.work(&never, device_exists);
        let mut result = Ok(());
        for ifindex in work.attach {
            let attached = Hook::UPLINK.into_iter().try_for_each(|hook| self.attacher.attach(hook, ifindex));
            match attached {
                Ok(()) => self.host_devices.attached(ifindex),
                // It went away in the meantime, and that is told too.
                Err(_) if !device_exists(ifindex) => {}
                Err(error) => result = result.and(Err(error)),
            }
        }
        for ifindex in work.detach {
            // The uplink keeps the same programs, as the uplink.
            let detached = match self.node_devices.contains(&ifindex) {
                true => Ok(()),
                false => self.attacher.detach(&Hook::UPLINK, ifindex),
            };
            match detached {
                Ok(()) => self.host_devices.detached(ifindex),
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }

    /// The devices beside the uplink that are judged for the host firewall.
    pub fn host_devices(&self) -> Vec<&str> {
        self.host_devices.judged().map(|(_, name)| name).collect()
    }

    /// What was carried over from maps of another size or ABI version.
    pub fn carried(&self) -> &[Carried] {
        self.carry.carried()
    }

    /// Says whether proxies listen.
    pub fn set_proxy(&mut self, state: ProxyState) -> Result<(), DatapathError> {
        let flag = match state {
            ProxyState::Absent => 0,
            ProxyState::Listening => CFG_PROXY,
        };
        let base = self.writer.base();
        self.writer.set_base(NodeConfig { flags: (base.flags & !CFG_PROXY) | flag, ..base })
    }

    /// A reader of the events. The ring has one consumer: a second reader takes events from the first.
    pub fn events(&self) -> Result<EventReader, DatapathError> {
        EventReader::open(&self.pins, self.subjects.clone())
    }

    /// What is really in the kernel.
    pub fn inspect(&self) -> Result<Inspector, DatapathError> {
        Inspector::of_pins(&self.pins)
    }

    /// Fill of the maps: at most so many entries, and room for how many.
    pub fn pressure(&self) -> Result<Vec<MapPressure>, DatapathError> {
        self.inspect()?.pressure_of(&self.writer.tables)
    }

    /// How programs are attached.
    pub fn mechanism(&self) -> Mechanism {
        self.attacher.mechanism()
    }

    /// Deltas that could not be applied, since the start.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// Policy revision of the last delta that was applied.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Pods with the devices that were told.
    pub fn endpoint_devices(&self) -> Vec<(String, EndpointDevice)> {
        self.writer.devices().map(|(pod, device)| (pod.to_owned(), device)).collect()
    }

    /// Takes all programs off all devices and removes all pins: nothing is enforced any more.
    pub fn uninstall(self) -> Result<(), DatapathError> {
        let KernelDatapath { mut attacher, pins, writer, config, host_devices, .. } = self;
        for (_, device) in writer.devices() {
            attacher.detach(&Hook::POD, device.ifindex)?;
        }
        for (ifindex, _) in host_devices.judged() {
            attacher.detach(&Hook::UPLINK, ifindex)?;
        }
        let mut node: Vec<(&str, &[Hook])> =
            config.uplink.iter().map(|device| (device.as_str(), &Hook::UPLINK[..])).collect();
        node.push((LOOPBACK, &[Hook::FromLoopback]));
        if let Mode::Tunnel { device, .. } = &config.mode {
            node.push((device, &[Hook::FromOverlay]));
        }
        for (device, hooks) in node {
            if let Ok(ifindex) = device_index(device) {
                attacher.detach(hooks, ifindex)?;
            }
        }
        pins.remove_all()
    }

    fn publish_subjects(&mut self) {
        self.subjects.set(self.writer.subjects());
    }

    fn counted<T>(&mut self, revision: u64, result: Result<T, DatapathError>) -> Result<T, DatapathError> {
        match &result {
            Ok(_) => self.revision = revision,
            Err(_) => self.failures += 1,
        }
        self.publish_subjects();
        result
    }
}

/// Before the programs that turn packets there. One of another ABI version goes on as pods' programs do.
fn attach_loopback(attacher: &mut Attacher) -> Result<(), DatapathError> {
    if let Err(error) = sysctl::accept_own_address_on_loopback() {
        tracing::warn!(%error, "what the node itself sends to pods with L7 rules is dropped");
    }
    match attacher.judged_by_other_version(Hook::FromLoopback, LOOPBACK_IFINDEX) {
        true => Ok(()),
        false => attacher.attach(Hook::FromLoopback, LOOPBACK_IFINDEX),
    }
}

impl Datapath for KernelDatapath {
    fn apply(&mut self, delta: &Delta) -> Result<(), DatapathError> {
        let result = self.writer.apply(delta);
        self.counted(delta.revision, result)
    }

    fn reconcile(&mut self, full: &Delta) -> Result<Reconciled, DatapathError> {
        let result = self.writer.reconcile(full);
        self.counted(full.revision, result)
    }
}
