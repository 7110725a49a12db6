//! A kernel for tests: remembers what it was told, finds every device, fails on request.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use super::kernel::{FoundDevice, Kernel};
use crate::api::types::Feature;
use crate::cluster::delta::Delta;
use crate::datapath::net::own::OwnDevice;
use crate::datapath::{Datapath, DatapathError, Inspector, ProxyState, Restored};
use crate::endpoint::DeviceName;

/// What a test sees.
#[derive(Debug, Default)]
pub struct Seen {
    pub applied: Vec<Delta>,
    pub reconciled: Vec<Delta>,
    /// Pods with the indexes of their devices.
    pub attached: BTreeMap<String, u32>,
    /// Pods whose devices were let go.
    pub detached: Vec<String>,
    /// What somebody took away.
    pub missing: Vec<String>,
    /// Indexes of devices that the node has no more.
    pub gone: BTreeSet<u32>,
    /// Pairs that were made and not deleted.
    pub made: Vec<(DeviceName, Vec<IpAddr>)>,
    pub proxy: Option<ProxyState>,
    pub node_devices: Vec<String>,
    /// How often the node's own devices were to be judged.
    pub started: usize,
    /// So many of the next writes fail.
    pub failures: usize,
}

impl Seen {
    fn fail_if_wanted(&mut self) -> Result<(), DatapathError> {
        match self.failures.checked_sub(1) {
            None => Ok(()),
            Some(left) => {
                self.failures = left;
                Err(DatapathError::Other("the test wants a failure".into()))
            }
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct DoubleKernel(pub Arc<Mutex<Seen>>);

impl Datapath for DoubleKernel {
    fn apply(&mut self, delta: &Delta) -> Result<(), DatapathError> {
        let mut seen = self.0.lock();
        seen.fail_if_wanted()?;
        seen.applied.push(delta.clone());
        Ok(())
    }

    fn reconcile(&mut self, full: &Delta) -> Result<crate::datapath::Reconciled, DatapathError> {
        let mut seen = self.0.lock();
        seen.fail_if_wanted()?;
        seen.reconciled.push(full.clone());
        Ok(crate::datapath::Reconciled::default())
    }
}

impl Kernel for DoubleKernel {
    fn started(&mut self) -> Result<(), DatapathError> {
        let mut seen = self.0.lock();
        seen.fail_if_wanted()?;
        seen.started += 1;
        Ok(())
    }

    fn node_devices(&mut self, own: &[OwnDevice]) -> Result<(), DatapathError> {
        let mut seen = self.0.lock();
        seen.fail_if_wanted()?;
        seen.node_devices = own.iter().map(|device| device.name.clone()).collect();
        Ok(())
    }

    fn find(&mut self, device: &DeviceName) -> Result<FoundDevice, DatapathError> {
        let (DeviceName::Host { interface }
        | DeviceName::Netns { interface, .. }
        | DeviceName::Made { host_interface: interface, .. }) = device;
        let number = interface.bytes().fold(7u32, |sum, byte| sum * 31 % 60_000 + u32::from(byte));
        if !self.has_device(number) {
            return Err(DatapathError::Other(format!("no device {interface}")));
        }
        Ok(FoundDevice { interface: interface.clone(), ifindex: number, mac: [2, 0, 0, 0, 0, 1] })
    }

    fn has_device(&self, ifindex: u32) -> bool {
        !self.0.lock().gone.contains(&ifindex)
    }

    fn make(&mut self, device: &DeviceName, addresses: &[IpAddr]) -> Result<(), DatapathError> {
        self.0.lock().made.push((device.clone(), addresses.to_vec()));
        Ok(())
    }

    fn unmake(&mut self, device: &DeviceName) -> Result<(), DatapathError> {
        self.0.lock().made.retain(|(made, _)| made != device);
        Ok(())
    }

    fn attach(&mut self, pod: &str, _id: u16, device: &FoundDevice) -> Result<(), DatapathError> {
        self.0.lock().attached.insert(pod.to_owned(), device.ifindex);
        Ok(())
    }

    fn detach(&mut self, pod: &str) -> Result<(), DatapathError> {
        let mut seen = self.0.lock();
        seen.attached.remove(pod);
        seen.detached.push(pod.to_owned());
        Ok(())
    }

    fn restore_programs(&mut self) -> Restored {
        let mut seen = self.0.lock();
        Restored { failed: seen.fail_if_wanted().err(), missing: std::mem::take(&mut seen.missing) }
    }

    fn set_proxy(&mut self, state: ProxyState) -> Result<(), DatapathError> {
        self.0.lock().proxy = Some(state);
        Ok(())
    }

    fn inspect(&self) -> Result<Inspector, DatapathError> {
        Err(DatapathError::Other("the double has no kernel".into()))
    }

    fn features(&self) -> Vec<Feature> {
        Vec::new()
    }

    fn lost_events(&mut self) -> u64 {
        0
    }

    fn pressure(&mut self) -> Vec<(String, u64, u64)> {
        Vec::new()
    }
}
