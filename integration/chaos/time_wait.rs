//! A client that uses a port again which the proxy's side still has in TIME_WAIT.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::bench::Bench;
use crate::proxied::HTTP;

const PATIENCE: Duration = Duration::from_secs(15);
const PORT: u16 = 41_000;

/// A connection from [`PORT`]. This side's end of the last one is there until its last ACK has come: then the port is taken.
fn connect(address: IpAddr) -> Socket {
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let target = SocketAddr::new(address, HTTP);
    let begun = Instant::now();
    loop {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        let connected = socket
            .bind(&SocketAddr::new(any, PORT).into())
            .and_then(|()| socket.connect_timeout(&target.into(), PATIENCE));
        match connected {
            Ok(()) => return socket,
            Err(error)
                if matches!(error.kind(), ErrorKind::AddrNotAvailable | ErrorKind::AddrInUse)
                    && begun.elapsed() < PATIENCE =>
            {
                std::thread::yield_now();
            }
            Err(error) => panic!("connect to {target}: {error}"),
        }
    }
}

/// One request from [`PORT`]; the proxy closes first.
fn request(address: IpAddr) {
    let socket = connect(address);
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut stream = std::net::TcpStream::from(socket);
    stream.write_all(b"GET /ok HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&answer));
}

/// SYNs that were sent more than once in this thread's namespace.
fn syns_sent_again() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let names = lines.next().unwrap().split(' ');
    let values = lines.next().unwrap().split(' ');
    let (_, value) = names.zip(values).find(|(name, _)| *name == "TCPSynRetrans").unwrap();
    value.parse().unwrap()
}

/// What [`reuse`] saw.
#[derive(Clone, Copy, Debug)]
pub struct Reuse {
    /// SYNs that needed a second try.
    pub sent_again: u64,
    /// The longest and the median of all requests.
    #[expect(dead_code, reason = "printed")]
    pub longest: Duration,
    #[expect(dead_code, reason = "printed")]
    pub median: Duration,
}

/// Uses the port again and again.
pub fn reuse(bench: &Bench, times: u32) -> Reuse {
    let addresses = bench.server.addresses;
    bench
        .client
        .namespace
        .run(|| {
            let before = syns_sent_again();
            let mut took: Vec<Duration> = Vec::new();
            for address in addresses {
                for _ in 0..times {
                    let begun = Instant::now();
                    request(address);
                    took.push(begun.elapsed());
                }
            }
            took.sort_unstable();
            let (longest, median) = (took[took.len() - 1], took[took.len() / 2]);
            Reuse { sent_again: syns_sent_again() - before, longest, median }
        })
        .unwrap()
}
