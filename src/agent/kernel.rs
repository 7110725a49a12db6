//! What the core needs of the kernel side: the datapath, devices and tables. A trait, so that the
//! agent can be tested without root.

use std::net::IpAddr;

use crate::api::types::Feature;
use crate::datapath::net::own::OwnDevice;
use crate::datapath::{Datapath, DatapathError, Inspector, ProxyState, Restored};
use crate::endpoint::{Device, DeviceName};

/// A device that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundDevice {
    pub interface: String,
    pub ifindex: u32,
    pub mac: [u8; 6],
}

impl From<FoundDevice> for Device {
    fn from(found: FoundDevice) -> Device {
        Device::Found { interface: found.interface, ifindex: found.ifindex, mac: found.mac }
    }
}

impl Device {
    /// The device, unless it is missing.
    pub fn found(&self) -> Option<FoundDevice> {
        match self.clone() {
            Device::Found { interface, ifindex, mac } => Some(FoundDevice { interface, ifindex, mac }),
            Device::Missing(_) => None,
        }
    }
}

/// See the module.
pub trait Kernel: Datapath {
    /// The first full state is in the maps: the node's own devices may be judged from now on.
    fn started(&mut self) -> Result<(), DatapathError>;
    /// How the node's own devices are now; to be told whenever one of them or an address came or went.
    fn node_devices(&mut self, own: &[OwnDevice]) -> Result<(), DatapathError>;
    /// Finds the node's side of a pod's device.
    fn find(&mut self, device: &DeviceName) -> Result<FoundDevice, DatapathError>;
    /// The node has a device with this index. Where that cannot be told, it has.
    fn has_device(&self, ifindex: u32) -> bool;
    /// Makes the pair that a [`DeviceName::Made`] names, with these addresses and routes. A pair that is there
    /// is an error; when anything fails, what was made is deleted.
    fn make(&mut self, device: &DeviceName, addresses: &[IpAddr]) -> Result<(), DatapathError>;
    /// Deletes a pair that [`Kernel::make`] made. One that is gone is fine; other devices are left alone.
    fn unmake(&mut self, device: &DeviceName) -> Result<(), DatapathError>;
    /// Attaches the programs and makes the device that of `pod`.
    fn attach(&mut self, pod: &str, id: u16, device: &FoundDevice) -> Result<(), DatapathError>;
    fn detach(&mut self, pod: &str) -> Result<(), DatapathError>;
    /// Puts back what somebody took away: programs of devices, and what the node needs beside them.
    fn restore_programs(&mut self) -> Restored;
    /// Says whether proxies listen.
    fn set_proxy(&mut self, state: ProxyState) -> Result<(), DatapathError>;
    /// Reads what is really in the kernel.
    fn inspect(&self) -> Result<Inspector, DatapathError>;
    fn features(&self) -> Vec<Feature>;
    /// Events that found the ring full.
    fn lost_events(&mut self) -> u64;
    /// Fill of each map: name, entries, most.
    fn pressure(&mut self) -> Vec<(String, u64, u64)>;
}
