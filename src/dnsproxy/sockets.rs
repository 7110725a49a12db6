//! The proxy's sockets: transparent ones, that speak with addresses of others.
//!
//! The answer to a datagram leaves from the address that the client had written to; the query leaves from the client's
//! address, and a port that was drawn. Both leave by raw sockets ([`raw`](super::raw)): no socket of ours has a server's
//! address, which may be this node's own, with a DNS server that listens there. Needs `CAP_NET_ADMIN`
//! (`IP_TRANSPARENT`) and `CAP_NET_RAW`, and the datapath, which leads the packets of both legs here: queries to the
//! listeners, replies to the sockets of [`Replies`]. Connections to servers leave from ports that are drawn elsewhere
//! ([`Outgoing`]), for the HTTP proxy's have the addresses of the same clients.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use super::batch::Inbox;
use super::outside::Wait;
use super::raw::{Datagram, Fragments, RawSockets};
use super::unreachable::{self, Undelivered};

/// Connections that wait for `accept`.
const BACKLOG: i32 = 1024;
/// Of an ICMP message as much as says what it is about.
const LONGEST_ERROR: usize = 256;
/// Bytes of queries or replies that wait for the proxy.
const RECEIVE_BUFFER: usize = 4 << 20;

/// What comes to the ports that queries left from.
#[derive(Debug)]
pub enum News<'a> {
    /// From their servers, by all appearances.
    Replies(&'a [Datagram<'a>]),
    /// A query did not arrive.
    Undelivered(Undelivered),
}

/// How the proxy speaks for others.
pub trait Sockets: Send + Sync + 'static {
    /// Sends queries in datagrams from the addresses of clients. `unsent` hears of those that cannot leave, by index.
    fn ask(&self, queries: &[Datagram<'_>], unsent: &mut dyn FnMut(usize, io::Error));

    /// Whether queries may leave from this port.
    fn is_own(&self, port: u16) -> bool;

    /// What becomes readable when there are news of queries.
    fn sources(&self) -> Vec<BorrowedFd<'_>>;

    /// Takes what has come to one of the sources. Never waits; returns whether more may be there.
    fn hear(&self, source: usize, inbox: &mut Inbox, take: &mut dyn FnMut(News<'_>)) -> io::Result<bool>;

    /// A connection from the client's address to the server.
    fn upstream_tcp(&self, client: IpAddr, server: SocketAddr) -> Wait<'_, io::Result<TcpStream>>;

    /// Sends answers in datagrams from the addresses of servers. `unsent` hears of those that cannot leave, by index;
    /// one that is too long is `EMSGSIZE`.
    fn answer(&self, answers: &[Datagram<'_>], unsent: &mut dyn FnMut(usize, io::Error));
}

/// Where the datapath brings the replies to this process's queries.
pub struct Replies {
    /// Packet mark of the queries, by which it knows them.
    pub mark: u32,
    /// Ports whose replies come here, and not to another process.
    pub is_own: Box<dyn Fn(u16) -> bool + Send + Sync>,
    /// A listener of each family ([`listen_udp`]).
    pub listeners: [UdpSocket; 2],
}

/// Connects to a server from a client's address.
pub type Outgoing = Box<dyn Fn(IpAddr, SocketAddr) -> Wait<'static, io::Result<TcpStream>> + Send + Sync>;

/// See the module.
pub struct TransparentSockets {
    queries: RawSockets,
    answers: RawSockets,
    replies: Replies,
    outgoing: Outgoing,
    errors: [Socket; 2],
}

impl std::fmt::Debug for Replies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replies").field("listeners", &self.listeners).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for TransparentSockets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TransparentSockets").field("replies", &self.replies).finish_non_exhaustive()
    }
}

impl TransparentSockets {
    /// `mark` is on what the proxy sends beside queries: the datapath knows it by that.
    ///
    /// # Errors
    /// No `CAP_NET_RAW`, or a kernel without IPv6.
    pub fn new(mark: u32, replies: Replies, outgoing: Outgoing) -> io::Result<TransparentSockets> {
        Ok(TransparentSockets {
            queries: RawSockets::new(replies.mark, Fragments::Never)?,
            answers: RawSockets::new(mark, Fragments::OnTheWay)?,
            replies,
            outgoing,
            errors: [unreachable::listen(Domain::IPV4)?, unreachable::listen(Domain::IPV6)?],
        })
    }

    /// Takes one ICMP message.
    fn undelivered(&self, which: usize, take: &mut dyn FnMut(News<'_>)) -> io::Result<bool> {
        use std::io::Read as _;
        let mut buffer = [0; LONGEST_ERROR];
        match (&self.errors[which]).read(&mut buffer) {
            Ok(length) => {
                let read = [unreachable::read_v4, unreachable::read_v6][which];
                read(&buffer[..length]).map(News::Undelivered).into_iter().for_each(take);
                Ok(true)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

impl Sockets for TransparentSockets {
    fn ask(&self, queries: &[Datagram<'_>], unsent: &mut dyn FnMut(usize, io::Error)) {
        self.queries.send(queries, unsent);
    }

    fn is_own(&self, port: u16) -> bool {
        (self.replies.is_own)(port)
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        let replies = self.replies.listeners.iter().map(AsFd::as_fd);
        replies.chain(self.errors.iter().map(AsFd::as_fd)).collect()
    }

    fn hear(&self, source: usize, inbox: &mut Inbox, take: &mut dyn FnMut(News<'_>)) -> io::Result<bool> {
        match self.replies.listeners.get(source) {
            Some(socket) => inbox.receive(socket, |replies| take(News::Replies(replies))),
            None => self.undelivered(source - self.replies.listeners.len(), take),
        }
    }

    fn upstream_tcp(&self, client: IpAddr, server: SocketAddr) -> Wait<'_, io::Result<TcpStream>> {
        (self.outgoing)(client, server)
    }

    fn answer(&self, answers: &[Datagram<'_>], unsent: &mut dyn FnMut(usize, io::Error)) {
        self.answers.send(answers, unsent);
    }
}

/// A transparent socket that does not block. `SO_REUSEADDR`: a successor may bind before we end.
fn transparent(kind: Type, protocol: Protocol, address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    // An IPv6 socket takes this option too; both families share the flag.
    setsockopt(&socket, sockopt::IpTransparent, &true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// Has datagrams bring along the address that they were sent to.
pub fn note_destinations(socket: &impl AsFd, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => setsockopt(socket, sockopt::Ipv4OrigDstAddr, &true)?,
        SocketAddr::V6(_) => setsockopt(socket, sockopt::Ipv6OrigDstAddr, &true)?,
    }
    Ok(())
}

/// The listener for redirected datagrams of one family.
pub fn listen_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = transparent(Type::DGRAM, Protocol::UDP, address)?;
    // `net.core.rmem_max` bounds what is asked for politely, and was 208 KiB, 200 queries, before Linux 6.16.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    note_destinations(&socket, address)?;
    socket.bind(&SockAddr::from(address))?;
    Ok(socket.into())
}

/// The listener for redirected connections of one family. What it accepts bears the mark, too.
pub fn listen_tcp(address: SocketAddr, mark: u32) -> io::Result<TcpListener> {
    let socket = transparent(Type::STREAM, Protocol::TCP, address)?;
    setsockopt(&socket, sockopt::Mark, &mark)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}
