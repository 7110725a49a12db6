//! What goes on while agents die: allowed connections that must live, forbidden packets that must not
//! arrive, and somebody who counts at the receiver.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};
use sluice::datapath::net::Namespace;
use socket2::{Domain, Socket, Type};

use crate::bench::{ALLOWED, Bench, DENIED_TCP, DENIED_UDP};

/// How long an exchange may take: TCP repeats what is lost, and a machine may be busy.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Counters {
    stop: AtomicBool,
    /// Requests answered on the connections that stay open.
    exchanges: AtomicU64,
    /// Connections made, used and closed.
    connections: AtomicU64,
    forbidden_sent: AtomicU64,
    /// Seen on the receiver's device.
    forbidden_arrived: AtomicU64,
    allowed_arrived: AtomicU64,
}

/// See the module.
pub struct Load {
    counters: Arc<Counters>,
    threads: Vec<JoinHandle<()>>,
}

/// A thread inside a namespace.
pub fn inside(namespace: &Namespace, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let namespace = namespace.clone();
    std::thread::spawn(move || namespace.run(work).unwrap())
}

impl Load {
    pub fn start(bench: &Bench) -> Load {
        let counters = Arc::<Counters>::default();
        let mut threads = Vec::new();
        let addresses = bench.server.addresses;
        for address in addresses {
            let listener =
                bench.server.namespace.run(|| TcpListener::bind((address, ALLOWED)).unwrap()).unwrap();
            std::thread::spawn(move || echo(&listener));
        }
        let watched = Arc::clone(&counters);
        threads.push(inside(&bench.server.namespace, move || watch(&watched)));
        for address in addresses {
            let of = |work: fn(&Counters, IpAddr)| {
                let counters = Arc::clone(&counters);
                inside(&bench.client.namespace, move || work(&counters, address))
            };
            threads.extend([of(converse), of(come_and_go), of(trespass)]);
        }
        Load { counters, threads }
    }

    /// Everybody goes on: requests are answered, new connections come about, forbidden packets are
    /// sent, and none of them arrived.
    pub fn expect_progress(&self, when: &str) {
        let c = &self.counters;
        let values = || {
            [&c.exchanges, &c.connections, &c.forbidden_sent, &c.allowed_arrived]
                .map(|counter| counter.load(Ordering::Relaxed))
        };
        let (before, deadline) = (values(), Instant::now() + PATIENCE);
        // Two more than now: one of them began after this.
        while values().iter().zip(before).any(|(now, before)| *now < before + 2) {
            assert!(Instant::now() < deadline, "{when}: stuck at {before:?}, {:?}", values());
            assert!(self.threads.iter().all(|thread| !thread.is_finished()), "{when}: a connection broke");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(c.forbidden_arrived.load(Ordering::Relaxed), 0, "{when}: forbidden packets arrived");
    }

    pub fn finish(self) {
        self.counters.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("no connection broke");
        }
        let c = &self.counters;
        assert_eq!(c.forbidden_arrived.load(Ordering::Relaxed), 0);
        println!(
            "{} requests answered on two connections, {} connections made, {} forbidden packets sent, none arrived",
            c.exchanges.load(Ordering::Relaxed),
            c.connections.load(Ordering::Relaxed),
            c.forbidden_sent.load(Ordering::Relaxed),
        );
    }
}

impl Counters {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
}

/// Answers on every connection, until the process ends.
fn echo(listener: &TcpListener) {
    for mut stream in listener.incoming().flatten() {
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok(read @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..read]).is_err() {
                    return;
                }
            }
        });
    }
}

fn exchange(stream: &mut TcpStream, number: u64) {
    let request = number.to_be_bytes();
    let mut answer = [0; 8];
    stream.write_all(&request).expect("the connection takes a request");
    stream.read_exact(&mut answer).expect("a request is answered");
    assert_eq!(answer, request);
}

fn connect(address: IpAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&SocketAddr::new(address, ALLOWED), PATIENCE)
        .expect("a new allowed connection");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// One connection from the first round to the last.
fn converse(counters: &Counters, address: IpAddr) {
    let mut stream = connect(address);
    for number in 0.. {
        if !counters.goes_on() {
            return;
        }
        exchange(&mut stream, number);
        counters.exchanges.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// One connection after the other.
fn come_and_go(counters: &Counters, address: IpAddr) {
    while counters.goes_on() {
        exchange(&mut connect(address), 1);
        counters.connections.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Datagrams and SYNs to ports that nobody may reach.
fn trespass(counters: &Counters, address: IpAddr) {
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let target = SocketAddr::new(address, DENIED_TCP);
    while counters.goes_on() {
        // A flow is judged once: a new one is a new chance.
        let udp = UdpSocket::bind(any).unwrap();
        udp.connect((address, DENIED_UDP)).unwrap();
        let mut sent = 0;
        for _ in 0..20 {
            sent += u64::from(udp.send(b"forbidden").is_ok());
        }
        let syn = Socket::new(Domain::for_address(target), Type::STREAM, None).unwrap();
        syn.set_nonblocking(true).unwrap();
        // In progress, for ever.
        sent += u64::from(syn.connect(&target.into()).is_err());
        counters.forbidden_sent.fetch_add(sent, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Counts what the pod's device receives.
fn watch(counters: &Counters) {
    let all = SockProtocol::EthAll;
    let packets = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK, all).unwrap();
    let mut frame = [0; 128];
    // What was sent before the end may still be on its way when the senders stop.
    let mut last = None;
    loop {
        use std::os::fd::AsRawFd as _;
        match recv(packets.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            Ok(length) => {
                let counter = match destination_port(&frame[..length]) {
                    Some((6, DENIED_TCP) | (17, DENIED_UDP)) => &counters.forbidden_arrived,
                    Some((6, ALLOWED)) => &counters.allowed_arrived,
                    _ => continue,
                };
                counter.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) if last.is_some_and(|end: Instant| Instant::now() > end) => return,
            Err(_) => {
                if !counters.goes_on() && last.is_none() {
                    last = Some(Instant::now() + Duration::from_millis(200));
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }
}

/// Protocol and destination port of a frame without IP options.
fn destination_port(frame: &[u8]) -> Option<(u8, u16)> {
    let (protocol, at) = match frame.get(12..14)? {
        [0x08, 0x00] => (*frame.get(23)?, 14 + 20 + 2),
        [0x86, 0xdd] => (*frame.get(20)?, 14 + 40 + 2),
        _ => return None,
    };
    let port = frame.get(at..at + 2)?;
    Some((protocol, u16::from_be_bytes([port[0], port[1]])))
}
