//! The proxies' connections to servers: from the client's address, and a port that is drawn here.
//!
//! The kernel would draw one that nobody else has, whatever the server: after some 14,000 connections of one client within
//! a minute (closed ones keep their ports for that long) it searched for milliseconds, and at 28,000 open ones it had none
//! left. So ports may be shared (`SO_REUSEADDR`), as long as the servers differ, which the kernel checks when the
//! connection is made.
//!
//! Contract: the ports lie below those that clients' kernels draw (`net.ipv4.ip_local_port_range`). The datapath
//! knows a connection by its addresses and ports, and a proxy's leg has the client's: a port of the client's own
//! would make one of two. Both proxies draw from the same ports; where they meet, the kernel's check has the second one
//! draw again.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use socket2::{Domain, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use crate::datapath::abi::MARK_PROXY_OUT;
use crate::model::Family;

/// From above what services are reserved for to where Linux begins to draw.
const PORTS: Range<u16> = 1024..32768;
/// Coprime to their number, so that every port has its turn, and neighbours in time are none in number.
const STEP: u32 = 12_289;
/// Ports that are tried: some may belong to listeners of the node, or to connections that ended a moment ago.
const TRIES: usize = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct Ports(AtomicU32);

impl Ports {
    pub(super) fn new() -> Ports {
        Ports(AtomicU32::new(RandomState::new().hash_one(()) as u32 % u32::from(PORTS.end - PORTS.start)))
    }

    fn next(&self) -> u16 {
        let number = u32::from(PORTS.end - PORTS.start);
        let advance = |at: u32| Some((at + STEP) % number);
        let at = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, advance).unwrap_or_else(|at| at);
        PORTS.start + at as u16
    }

    /// Connects to the server from the client's address, as a proxy.
    ///
    /// # Errors
    /// No port is free, and what `socket(2)` and `connect(2)` say.
    pub(super) async fn connect(&self, client: IpAddr, server: SocketAddr) -> io::Result<TcpStream> {
        self.connect_by(client, server, || transparent(Family::of(client))).await
    }

    async fn connect_by(
        &self,
        client: IpAddr,
        server: SocketAddr,
        socket: impl Fn() -> io::Result<Socket>,
    ) -> io::Result<TcpStream> {
        let mut refusal = io::Error::from(io::ErrorKind::AddrInUse);
        for _ in 0..TRIES {
            let socket = socket()?;
            socket.set_reuse_address(true)?;
            let from = SocketAddr::new(client, self.next());
            let connected = match socket.bind(&from.into()) {
                Ok(()) => TcpSocket::from_std_stream(socket.into()).connect(server).await,
                Err(error) => Err(error),
            };
            match connected {
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) =>
                {
                    refusal = error;
                }
                connected => return connected,
            }
        }
        Err(refusal)
    }
}

/// A socket that is marked as a proxy's, and may have any address.
pub(super) fn transparent(family: Family) -> io::Result<Socket> {
    let domain = match family {
        Family::IPv4 => Domain::IPV4,
        Family::IPv6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None)?;
    match family {
        Family::IPv4 => socket.set_ip_transparent_v4(true)?,
        Family::IPv6 => {
            socket.set_only_v6(true)?;
            socket.set_ip_transparent_v6(true)?;
        }
    }
    socket.set_mark(MARK_PROXY_OUT)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn every_port_has_its_turn_and_none_is_a_clients() {
        let ports = Ports::new();
        let drawn: BTreeSet<u16> = PORTS.map(|_| ports.next()).collect();
        assert_eq!(drawn, PORTS.collect());
    }

    /// The kernel gave each connection of a client a port of its own, until there were none.
    #[tokio::test]
    async fn connections_to_two_servers_may_leave_from_one_port() {
        let ports = Ports(AtomicU32::new(30_000));
        let socket = || Socket::new(Domain::IPV4, Type::STREAM.nonblocking().cloexec(), None);
        let client = IpAddr::from([127, 0, 0, 1]);
        let mut kept = Vec::new();
        for _ in 0..2 {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            ports.0.store(30_000, Ordering::Relaxed);
            let stream = ports.connect_by(client, listener.local_addr().unwrap(), socket).await.unwrap();
            assert_eq!(stream.local_addr().unwrap().port(), PORTS.start + 30_000);
            // To the same server, the next one is taken.
            ports.0.store(30_000, Ordering::Relaxed);
            let other = ports.connect_by(client, listener.local_addr().unwrap(), socket).await.unwrap();
            assert_ne!(other.local_addr().unwrap().port(), PORTS.start + 30_000);
            kept.push((listener, stream, other));
        }
    }
}
