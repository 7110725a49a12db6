//! A kernel for tests: remembers what it was told, finds every device, fails on request.

use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use super::kernel::{FoundDevice, Kernel};
use crate::api::types::Feature;
use crate::cluster::delta::Delta;
use crate::datapath::{Datapath, DatapathError, Inspector, ProxyState};
use crate::endpoint::DeviceName;

/// What a test sees.
#[derive(Debug, Default)]
pub struct Seen {
    pub applied: Vec<Delta>,
    pub reconciled: Vec<Delta>,
    pub attached: Vec<String>,
    /// Pairs that were made and not deleted.
    pub made: Vec<(DeviceName, Vec<IpAddr>)>,
    pub proxy: Option<ProxyState>,
    /// So many of the next applications fail.
    pub failures: usize,
}

#[derive(Clone, Debug, Default)]
pub struct DoubleKernel(pub Arc<Mutex<Seen>>);

impl Datapath for DoubleKernel {
    fn apply(&mut self, delta: &Delta) -> Result<(), DatapathError> {
        let mut seen = self.0.lock();
        if seen.failures > 0 {
            seen.failures -= 1;
            return Err(DatapathError::Other("the test wants a failure".into()));
        }
        seen.applied.push(delta.clone());
        Ok(())
    }

    fn reconcile(&mut self, full: &Delta) -> Result<crate::datapath::Reconciled, DatapathError> {
        self.0.lock().reconciled.push(full.clone());
        Ok(crate::datapath::Reconciled::default())
    }
}

impl Kernel for DoubleKernel {
    fn started(&mut self) -> Result<(), DatapathError> {
        Ok(())
    }

    fn find(&mut self, device: &DeviceName) -> Result<FoundDevice, DatapathError> {
        let (DeviceName::Host { interface }
        | DeviceName::Netns { interface, .. }
        | DeviceName::Made { host_interface: interface, .. }) = device;
        let number = interface.bytes().fold(7u32, |sum, byte| sum * 31 % 60_000 + u32::from(byte));
        Ok(FoundDevice { interface: interface.clone(), ifindex: number, mac: [2, 0, 0, 0, 0, 1] })
    }

    fn make(&mut self, device: &DeviceName, addresses: &[IpAddr]) -> Result<(), DatapathError> {
        self.0.lock().made.push((device.clone(), addresses.to_vec()));
        Ok(())
    }

    fn unmake(&mut self, device: &DeviceName) -> Result<(), DatapathError> {
        self.0.lock().made.retain(|(made, _)| made != device);
        Ok(())
    }

    fn attach(&mut self, pod: &str, _id: u16, _device: &FoundDevice) -> Result<(), DatapathError> {
        self.0.lock().attached.push(pod.to_owned());
        Ok(())
    }

    fn detach(&mut self, pod: &str) -> Result<(), DatapathError> {
        self.0.lock().attached.retain(|attached| attached != pod);
        Ok(())
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
