//! What a proxy process needs of the kernel: a place for its listeners, and who an address is.
//!
//! Works on the pins alone, so that a proxy goes on, and a new one can take over, while no agent runs.
//! The programs hand a redirected connection to the listener in `sl_proxy_listeners`, a SOCKMAP with
//! one place for each kind of proxy and address family ([`ListenerPlace`]). A socket leaves its place when it
//! is closed or when another one is inserted: what the old one accepted already stays with it. Replies to a DNS proxy's
//! datagrams have places of their own ([`ReplyPlace`]), one for each process, so that a process which is replaced hears
//! of what it asked before.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::DatapathError;
use super::abi::*;
use super::connections::Connections;
use super::pins::Pins;
use super::sys;
use super::table::{KernelTable, Shared};
use super::tables::name;
use crate::model::{Family, Identity, Protocol};
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

/// Says which ports of DNS queries belong to which process: `port_key` of `sl_config`. Nobody who does not know it can
/// tell which ports a process draws from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortKey(u32);

impl PortKey {
    /// # Errors
    /// The kernel has no random numbers.
    pub fn draw() -> Result<PortKey, DatapathError> {
        use ring::rand::{SecureRandom as _, SystemRandom};
        loop {
            let mut bytes = [0; 4];
            SystemRandom::new().fill(&mut bytes).map_err(|_| DatapathError::Syscall {
                operation: "getrandom",
                object: "the key of DNS ports".into(),
                source: io::Error::other("the kernel has no random numbers"),
            })?;
            let key = PortKey(u32::from_ne_bytes(bytes) | 1);
            if key.is_fair() {
                return Ok(key);
            }
        }
    }

    /// Each place has at least half of its share. A few keys, small ones for instance, give nearly all to one place.
    fn is_fair(self) -> bool {
        let mut counts = [0_u32; 1 << PROXY_REPLY_BITS];
        (0..=u16::MAX).for_each(|port| counts[self.owner(port) as usize] += 1);
        counts.iter().all(|count| *count >= (1 << 16 >> PROXY_REPLY_BITS) / 2)
    }

    pub fn number(self) -> u32 {
        self.0
    }

    /// As in `datagram_place` of `bpf/lib/proxy.h`.
    fn owner(self, port: u16) -> u32 {
        u32::from(port).wrapping_mul(self.0) >> (u32::BITS - PROXY_REPLY_BITS)
    }
}

/// The ports of one process: what is sent to them is brought to its sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyPlace {
    number: u32,
    key: PortKey,
}

impl ReplyPlace {
    /// Whether replies to this port arrive here.
    pub fn has(self, port: u16) -> bool {
        self.key.owner(port) == self.number
    }

    fn index(self, family: Family) -> u32 {
        PROXY_REPLIES
            + 2 * self.number
            + match family {
                Family::IPv4 => 0,
                Family::IPv6 => 1,
            }
    }
}

/// The SOCKMAP of listeners.
#[derive(Debug)]
pub struct Listeners {
    places: OwnedFd,
    config: Shared<u32, NodeConfig>,
}

impl Listeners {
    /// Opens the pin below an agent's BPF directory.
    ///
    /// # Errors
    /// When no agent of this ABI version ever ran there.
    pub fn open(bpffs: &Path) -> Result<Listeners, DatapathError> {
        let pins = Pins::at(bpffs);
        let config = KernelTable::open(name::CONFIG, pins.open_map(name::CONFIG)?)?;
        Ok(Listeners { places: pins.open_map(LISTENERS)?, config })
    }

    /// Puts a listening TCP socket, or a bound UDP one, into its place. The one that was there gets no
    /// new connections from now on.
    pub fn insert(&self, place: ListenerPlace, socket: impl AsFd) -> Result<(), DatapathError> {
        let fd = socket.as_fd().as_raw_fd() as u32;
        sys::update(&self.places, &place.index(), &fd)
            .map_err(|source| failed("BPF_MAP_UPDATE_ELEM", place, source))
    }

    /// Takes a place for replies that no living process has, for bound UDP sockets of both families. `None`: all are
    /// taken. It is free again when the sockets are closed.
    ///
    /// # Errors
    /// No agent has said whose the ports are.
    pub fn claim(&self, v4: impl AsFd, v6: impl AsFd) -> Result<Option<ReplyPlace>, DatapathError> {
        let key = PortKey(self.config.get(&0)?.unwrap_or_default().port_key);
        if !key.is_fair() {
            return Err(DatapathError::Syscall {
                operation: "BPF_MAP_LOOKUP_ELEM",
                object: format!("map {}, port_key", name::CONFIG),
                source: io::Error::new(io::ErrorKind::InvalidData, "no agent has drawn it"),
            });
        }
        let put = |place: ReplyPlace, family, fd: BorrowedFd<'_>| {
            let fd = fd.as_raw_fd() as u32;
            sys::insert(&self.places, &place.index(family), &fd).map_err(|source| {
                let object = format!("map {LISTENERS}, replies {} {family:?}", place.number);
                DatapathError::Syscall { operation: "BPF_MAP_UPDATE_ELEM", object, source }
            })
        };
        for place in (0..1 << PROXY_REPLY_BITS).map(|number| ReplyPlace { number, key }) {
            if !put(place, Family::IPv4, v4.as_fd())? {
                continue;
            }
            if put(place, Family::IPv6, v6.as_fd())? {
                return Ok(Some(place));
            }
            // Of a process that is just closing its sockets: whoever comes next finds both free.
            sys::delete(&self.places, &place.index(Family::IPv4)).ok();
        }
        Ok(None)
    }

    /// Takes whatever is in a place out of it; nothing there is fine.
    pub fn remove(&self, place: ListenerPlace) -> Result<(), DatapathError> {
        match sys::delete(&self.places, &place.index()) {
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
    connections: Connections,
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
            connections: Connections::of_pins(&pins)?,
        })
    }

    /// Who the server of a redirected TCP connection is. One that belonged to a name when the connection began
    /// still does, although the answer with its address has ended; what denies it today has ended the
    /// connection already.
    pub fn resolve_server(&self, client: SocketAddr, server: SocketAddr) -> Result<PeerView, DatapathError> {
        let view = self.resolve(server.ip().to_canonical())?;
        if !is_of_the_world(view.identity) {
            return Ok(view);
        }
        let (key, server_side) = connection_of(client, server);
        let began = self.connections.get(&key)?.filter(|entry| u32::from(entry.flags) & CT_FQDN != 0);
        let identity = began.map(|entry| match server_side {
            Side::Low => entry.lo.identity,
            Side::High => entry.hi.identity,
        });
        Ok(PeerView { identity: identity.map_or(view.identity, Identity), ..view })
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

fn is_of_the_world(identity: Identity) -> bool {
    let local = Identity::LOCAL_CIDR_MIN..Identity::REMOTE_NODE_MIN;
    [Identity::WORLD, Identity::WORLD_IPV4, Identity::WORLD_IPV6].contains(&identity)
        || local.contains(&identity.0)
}

/// An end of a connection in its conntrack entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Low,
    High,
}

/// The key of a TCP connection's entry, and which side the server is.
fn connection_of(client: SocketAddr, server: SocketAddr) -> (CtKey, Side) {
    let end = |end: SocketAddr| (Addr::from(end.ip().to_canonical()), end.port());
    let (client, server) = (end(client), end(server));
    let (low, high, side) = match (client.0.b, client.1) <= (server.0.b, server.1) {
        true => (client, server, Side::High),
        false => (server, client, Side::Low),
    };
    let key = CtKey {
        lo_addr: low.0,
        hi_addr: high.0,
        lo_port: low.1,
        hi_port: high.1,
        protocol: Protocol::Tcp.number(),
        pad: [0; 3],
    };
    (key, side)
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

    /// Each has a good part of all, and no port has two.
    #[test]
    fn the_ports_are_divided_among_the_places() {
        let key = PortKey::draw().unwrap();
        let places: Vec<_> = (0..1 << PROXY_REPLY_BITS).map(|number| ReplyPlace { number, key }).collect();
        let of = |place: &ReplyPlace| (0..=u16::MAX).filter(|port| place.has(*port)).count();
        let counts: Vec<usize> = places.iter().map(of).collect();
        assert_eq!(counts.iter().sum::<usize>(), 1 << 16, "{key:?}");
        assert!(counts.iter().all(|count| *count >= 4096), "{key:?}: {counts:?}");
        assert!(!PortKey(0).is_fair() && !PortKey(4097).is_fair() && !PortKey(u32::MAX).is_fair());
        let indexes: Vec<u32> = places.iter().map(|place| place.index(Family::IPv6)).collect();
        assert_eq!(indexes.last(), Some(&(PROXY_PLACES - 1)));
    }

    #[test]
    fn a_connection_has_one_key_whoever_is_the_client() {
        let (a, b): (SocketAddr, SocketAddr) =
            ("10.0.0.1:40000".parse().unwrap(), "10.0.0.2:80".parse().unwrap());
        let ((one, server_of_one), (other, server_of_other)) = (connection_of(a, b), connection_of(b, a));
        assert_eq!(one, other);
        assert_eq!((server_of_one, server_of_other), (Side::High, Side::Low));
        assert_eq!((one.lo_port, one.hi_port), (40000, 80));
        assert!(is_of_the_world(Identity::WORLD_IPV6) && is_of_the_world(Identity((1 << 24) + 5)));
        assert!(!is_of_the_world(Identity(1001)) && !is_of_the_world(Identity(2 << 24)));
    }
}
