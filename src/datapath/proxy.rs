//! What a proxy process needs of the kernel: a place for its listeners, and who an address is.
//!
//! Works on the pins alone, so that a proxy goes on, and a new one can take over, while no agent runs.
//! The programs hand a redirected connection to the listener in `sl_proxy_listeners`, a SOCKMAP with
//! one place for each kind of proxy and address family ([`ListenerPlace`]). A socket leaves its place when it
//! is closed or when another one is inserted: what the old one accepted already stays with it.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use super::DatapathError;
use super::abi::*;
use super::pins::Pins;
use super::sys;
use super::table::{KernelTable, Shared};
use super::tables::name;
use crate::model::{Family, Identity};
use crate::policy::engine::PeerView;

/// Pin of the SOCKMAP (key and value `__u32`).
pub const LISTENERS: &str = "sl_proxy_listeners";

/// What a listener takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ListenerKind {
    /// TCP, HTTP rules.
    Http,
    /// TCP, `serverNames`.
    Tls,
    /// DNS over TCP.
    DnsTcp,
    /// DNS over UDP.
    DnsUdp,
}

/// An index of the SOCKMAP: `2 * kind`, plus one for IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerPlace {
    pub kind: ListenerKind,
    pub family: Family,
}

impl ListenerPlace {
    pub fn index(self) -> u32 {
        let kind = match self.kind {
            ListenerKind::Http => 0,
            ListenerKind::Tls => 1,
            ListenerKind::DnsTcp => 2,
            ListenerKind::DnsUdp => 3,
        };
        2 * kind
            + match self.family {
                Family::IPv4 => 0,
                Family::IPv6 => 1,
            }
    }
}

/// The SOCKMAP of listeners.
#[derive(Debug)]
pub struct Listeners(OwnedFd);

impl Listeners {
    /// Opens the pin below an agent's BPF directory.
    ///
    /// # Errors
    /// When no agent of this ABI version ever ran there.
    pub fn open(bpffs: &Path) -> Result<Listeners, DatapathError> {
        Ok(Listeners(Pins::at(bpffs).open_map(LISTENERS)?))
    }

    /// Puts a listening TCP socket, or a bound UDP one, into its place. The one that was there gets no
    /// new connections from now on.
    pub fn insert(&self, place: ListenerPlace, socket: impl AsFd) -> Result<(), DatapathError> {
        let fd = socket.as_fd().as_raw_fd() as u32;
        sys::update(&self.0, &place.index(), &fd)
            .map_err(|source| failed("BPF_MAP_UPDATE_ELEM", place, source))
    }

    /// Takes whatever is in a place out of it; nothing there is fine.
    pub fn remove(&self, place: ListenerPlace) -> Result<(), DatapathError> {
        match sys::delete(&self.0, &place.index()) {
            // A SOCKMAP says EINVAL for a place that is empty.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            result => result.map_err(|source| failed("BPF_MAP_DELETE_ELEM", place, source)),
        }
    }
}

fn failed(operation: &'static str, place: ListenerPlace, source: io::Error) -> DatapathError {
    let object = format!("map {LISTENERS}, {:?} {:?}", place.kind, place.family);
    DatapathError::Syscall { operation, object, source }
}

/// Who an address is, as the programs see it at this moment.
#[derive(Clone, Debug)]
pub struct IdentityLookup {
    exact: Shared<Addr, IpcacheValue>,
    prefixes: Shared<LpmKey, IpcacheValue>,
    classes: Shared<LpmKey, u32>,
}

impl IdentityLookup {
    /// Opens the pins below an agent's BPF directory.
    ///
    /// # Errors
    /// When no agent of this ABI version ever ran there.
    pub fn open(bpffs: &Path) -> Result<IdentityLookup, DatapathError> {
        let pins = Pins::at(bpffs);
        Ok(IdentityLookup {
            exact: KernelTable::open(name::IPCACHE_EXACT, pins.open_map(name::IPCACHE_EXACT)?)?,
            prefixes: KernelTable::open(name::IPCACHE_LPM, pins.open_map(name::IPCACHE_LPM)?)?,
            classes: KernelTable::open(name::ADDR_CLASS, pins.open_map(name::ADDR_CLASS)?)?,
        })
    }

    /// Label identity and address class. What is not known at all is [`Identity::UNKNOWN`].
    pub fn resolve(&self, address: IpAddr) -> Result<PeerView, DatapathError> {
        let addr: Addr = address.into();
        let key = LpmKey { prefix_len: 128, addr };
        let entry = match self.exact.get(&addr)? {
            Some(entry) => Some(entry),
            None => self.prefixes.get(&key)?,
        };
        let class = self.classes.get(&key)?.filter(|class| *class != 0);
        Ok(PeerView {
            identity: entry.map_or(Identity::UNKNOWN, |entry| Identity(entry.identity)),
            address_class: class.map(Identity),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_has_an_index_of_its_own() {
        let kinds = [ListenerKind::Http, ListenerKind::Tls, ListenerKind::DnsTcp, ListenerKind::DnsUdp];
        let indexes: Vec<u32> = kinds
            .into_iter()
            .flat_map(|kind| {
                [Family::IPv4, Family::IPv6].map(|family| ListenerPlace { kind, family }.index())
            })
            .collect();
        assert_eq!(indexes, (0..8).collect::<Vec<_>>());
    }
}
