//! The proxy's sockets: transparent ones, that speak with addresses of others.
//!
//! The answer to a datagram leaves from the address that the client had written to; the query leaves
//! from the client's address with a random port of the kernel's choice. Both need `CAP_NET_ADMIN`
//! (`IP_TRANSPARENT`), and the datapath, which leads the packets of both legs here.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;

use hashbrown::HashMap;
use nix::sys::socket::{setsockopt, sockopt};
use parking_lot::Mutex;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::outside::Wait;

/// Most reply sockets that are kept: one for each DNS server in use.
const MOST_REPLY_SOCKETS: usize = 256;
/// Connections that wait for `accept`.
const BACKLOG: i32 = 1024;
/// Bytes of queries that wait for the proxy.
const RECEIVE_BUFFER: usize = 4 << 20;

/// A shared socket that answers.
#[derive(Clone, Debug)]
pub struct Answering(pub Arc<UdpSocket>);

impl AsRef<UdpSocket> for Answering {
    fn as_ref(&self) -> &UdpSocket {
        &self.0
    }
}

/// How the proxy speaks for others.
pub trait Sockets: Send + Sync + 'static {
    /// A socket at the client's address with a port of its own, connected to the server, that does not block.
    fn upstream_udp(&self, client: IpAddr, server: SocketAddr) -> io::Result<UdpSocket>;

    /// A connection from the client's address to the server.
    fn upstream_tcp(&self, client: IpAddr, server: SocketAddr) -> Wait<'_, io::Result<TcpStream>>;

    /// The socket that speaks from the server's address; it does not block.
    fn answer_socket(&self, server: SocketAddr) -> io::Result<Answering>;
}

#[derive(Debug, Default)]
struct ReplySockets {
    by_server: HashMap<SocketAddr, Answering>,
    /// In the order in which they were made.
    age: VecDeque<SocketAddr>,
}

/// See the module.
#[derive(Debug)]
pub struct TransparentSockets {
    /// Packet mark of what the proxy sends, by which the datapath knows it.
    mark: u32,
    replies: Mutex<ReplySockets>,
}

impl TransparentSockets {
    pub fn new(mark: u32) -> TransparentSockets {
        TransparentSockets { mark, replies: Mutex::default() }
    }

    fn bound(&self, kind: Type, protocol: Protocol, address: SocketAddr) -> io::Result<Socket> {
        let socket = transparent(kind, protocol, address)?;
        set_mark(&socket, self.mark)?;
        socket.bind(&SockAddr::from(address))?;
        Ok(socket)
    }

    fn reply_socket(&self, server: SocketAddr) -> io::Result<Answering> {
        let mut replies = self.replies.lock();
        if let Some(socket) = replies.by_server.get(&server) {
            return Ok(socket.clone());
        }
        let socket = self.bound(Type::DGRAM, Protocol::UDP, server)?;
        let socket = Answering(Arc::new(socket.into()));
        if replies.age.len() >= MOST_REPLY_SOCKETS
            && let Some(oldest) = replies.age.pop_front()
        {
            replies.by_server.remove(&oldest);
        }
        replies.age.push_back(server);
        replies.by_server.insert(server, socket.clone());
        Ok(socket)
    }
}

impl Sockets for TransparentSockets {
    fn upstream_udp(&self, client: IpAddr, server: SocketAddr) -> io::Result<UdpSocket> {
        let own = SocketAddr::new(client, 0);
        let socket = transparent(Type::DGRAM, Protocol::UDP, own)?;
        // Or the kernel might draw the port of another one of ours, and its replies would come here.
        socket.set_reuse_address(false)?;
        set_mark(&socket, self.mark)?;
        socket.bind(&SockAddr::from(own))?;
        socket.connect(&SockAddr::from(server))?;
        Ok(socket.into())
    }

    fn upstream_tcp(&self, client: IpAddr, server: SocketAddr) -> Wait<'_, io::Result<TcpStream>> {
        Box::pin(async move {
            let socket = self.bound(Type::STREAM, Protocol::TCP, SocketAddr::new(client, 0))?;
            TcpSocket::from_std_stream(socket.into()).connect(server).await
        })
    }

    fn answer_socket(&self, server: SocketAddr) -> io::Result<Answering> {
        self.reply_socket(server)
    }
}

/// Has the kernel draw another port for a datagram socket that was bound to an address without one. What had come to the
/// old port is thrown away; says how much. The address and the options stay, which makes it cheaper than a new socket.
pub(super) fn draw_port(socket: &UdpSocket, server: SocketAddr) -> io::Result<u64> {
    // The port goes, because it was not asked for by number; now nothing can arrive.
    rustix::net::connect_unspec(socket)?;
    let mut late = 0;
    loop {
        match socket.recv(&mut []) {
            Ok(_) => late += 1,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // An error of the old port, told once.
            Err(_) => {}
        }
    }
    socket.connect(server)?;
    Ok(late)
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

fn set_mark(socket: &Socket, mark: u32) -> io::Result<()> {
    Ok(setsockopt(socket, sockopt::Mark, &mark)?)
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
    set_mark(&socket, mark)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}
