//! The real kernel: the datapath of this node behind the core's [`Kernel`].

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::kernel::{FoundDevice, Kernel};
use crate::api::types::Feature;
use crate::cluster::delta::Delta;
use crate::config::{AgentConfig, Routing};
use crate::datapath::{
    Datapath, DatapathConfig, DatapathError, EndpointDevice, EventReader, Inspector, KernelDatapath, LinkLayer, Mode,
    Reconciled,
};
use crate::endpoint::DeviceName;
use crate::model::Family;

/// Name of the VXLAN device.
const TUNNEL: &str = "sluice_vxlan";
/// UDP port of the tunnel; the one that Linux and Cilium use for it, not IANA's 4789, which a cluster
/// beside this one may use.
const TUNNEL_PORT: u16 = 8472;

#[derive(Debug)]
pub struct LinuxKernel {
    datapath: KernelDatapath,
}

impl LinuxKernel {
    /// Opens the datapath; programs of an earlier run are replaced by ours.
    pub fn open(config: &AgentConfig, addresses: &[IpAddr]) -> Result<LinuxKernel, DatapathError> {
        let mut datapath = DatapathConfig::new(&config.bpffs);
        datapath.uplink.clone_from(&config.uplink);
        datapath.mode = match (config.routing, &config.uplink) {
            (Routing::Tunnel, Some(_)) => {
                crate::datapath::net::ensure_vxlan(TUNNEL, TUNNEL_PORT)?;
                Mode::Tunnel { device: TUNNEL.to_owned(), port: TUNNEL_PORT }
            }
            _ => Mode::Routes,
        };
        if config.masquerade.is_on() && config.uplink.is_some() {
            datapath.masquerade = addresses.iter().map(|address| Family::of(*address)).collect::<BTreeSet<_>>();
        }
        Ok(LinuxKernel { datapath: KernelDatapath::open(datapath)? })
    }

    pub fn events(&self) -> Result<EventReader, DatapathError> {
        self.datapath.events()
    }
}

impl Datapath for LinuxKernel {
    fn apply(&mut self, delta: &Delta) -> Result<(), DatapathError> {
        self.datapath.apply(delta)
    }

    fn reconcile(&mut self, full: &Delta) -> Result<Reconciled, DatapathError> {
        self.datapath.reconcile(full)
    }
}
