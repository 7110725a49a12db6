//! Addresses that the DNS proxy opens by itself while no agent runs.
//!
//! Works on the pins alone. Only addresses of the world are touched: what belongs to the cluster keeps the
//! identity that it has. An entry stays until the next agent makes the maps hold what it knows.

use std::net::IpAddr;
use std::path::Path;

use super::DatapathError;
use super::abi::*;
use super::pins::Pins;
use super::table::{KernelTable, Shared};
use super::tables::name;
use crate::model::Identity;

/// See the module.
#[derive(Clone, Debug)]
pub struct LearnedAddresses {
    exact: Shared<Addr, IpcacheValue>,
    prefixes: Shared<LpmKey, IpcacheValue>,
}

impl LearnedAddresses {
    /// Opens the pins below an agent's BPF directory.
    ///
    /// # Errors
    /// When no agent of this ABI version ever ran there.
    pub fn open(bpffs: &Path) -> Result<LearnedAddresses, DatapathError> {
        let pins = Pins::at(bpffs);
        Ok(LearnedAddresses {
            exact: KernelTable::open(name::IPCACHE_EXACT, pins.open_map(name::IPCACHE_EXACT)?)?,
            prefixes: KernelTable::open(name::IPCACHE_LPM, pins.open_map(name::IPCACHE_LPM)?)?,
        })
    }

    /// The identity of an address of the world; `None` for all others.
    pub fn identity(&self, address: IpAddr) -> Result<Option<Identity>, DatapathError> {
        let addr: Addr = address.into();
        let entry = match self.exact.get(&addr)? {
            Some(entry) => Some(entry),
            None => self.prefixes.get(&LpmKey { prefix_len: 128, addr })?,
        };
        let of_the_world = |entry: &IpcacheValue| entry.flags & !IPC_LEARNED == 0;
        Ok(entry.filter(of_the_world).map(|entry| Identity(entry.identity)))
    }

    /// Gives an address of the world an identity that names which policy means have.
    pub fn assign(&self, address: IpAddr, identity: Identity) -> Result<(), DatapathError> {
        let value = IpcacheValue { identity: identity.0, flags: IPC_LEARNED, tunnel_ep: Addr::NONE };
        self.exact.upsert(&[address.into()], &[value])
    }
}
