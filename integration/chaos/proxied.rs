//! Requests and lookups that go through the proxies, all the time: allowed ones that must succeed at the first
//! try, and forbidden ones of which the server must never hear.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::bench::Bench;
use crate::load::inside;

pub const HTTP: u16 = 8090;
const DNS: u16 = 53;
/// How long one request or lookup may take, a busy machine considered. Nobody asks twice.
const PATIENCE: Duration = Duration::from_secs(15);
/// A request takes this long at the server, so that restarts come in the middle of some.
const SLOW: Duration = Duration::from_millis(400);

/// The client may `GET /ok...` and look up `ok.example`.
pub fn policy() -> String {
    let server = json!([{"matchLabels": {"app": "server"}}]);
    json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": {"namespace": "shop", "name": "client"},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": "client"}},
            "egress": [
                {"toEndpoints": server, "toPorts": [{
                    "ports": [{"port": HTTP.to_string(), "protocol": "TCP"}],
                    "rules": {"http": [{"method": "GET", "path": "/ok.*"}]},
                }]},
                {"toEndpoints": server, "toPorts": [{
                    "ports": [{"port": DNS.to_string(), "protocol": "ANY"}],
                    "rules": {"dns": [{"matchName": "ok.example"}]},
                }]},
            ],
        },
    })
    .to_string()
}

#[derive(Default)]
struct Counters {
    stop: AtomicBool,
    requests: AtomicU64,
    slow_requests: AtomicU64,
    refused_requests: AtomicU64,
    lookups: AtomicU64,
    refused_lookups: AtomicU64,
    /// The server saw a request or a query that policy forbids.
    forbidden_arrived: AtomicU64,
}

impl Counters {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn all(&self) -> [u64; 5] {
        [&self.requests, &self.slow_requests, &self.refused_requests, &self.lookups, &self.refused_lookups]
            .map(|counter| counter.load(Ordering::Relaxed))
    }
}

/// See the module.
pub struct Proxied {
    counters: Arc<Counters>,
    threads: Vec<JoinHandle<()>>,
}

impl Proxied {
    pub fn start(bench: &Bench) -> Proxied {
        let counters = Arc::<Counters>::default();
        let mut threads = Vec::new();
        for address in bench.server.addresses {
            let (http, dns) = bench
                .server
                .namespace
                .run(|| {
                    let http = TcpListener::bind((address, HTTP)).unwrap();
                    (http, UdpSocket::bind((address, DNS)).unwrap())
                })
                .unwrap();
            let (of_http, of_dns) = (Arc::clone(&counters), Arc::clone(&counters));
            std::thread::spawn(move || serve_http(&http, &of_http));
            std::thread::spawn(move || serve_dns(&dns, &of_dns));
            for work in [requests, slow_requests, refused_requests, lookups, refused_lookups] {
                let counters = Arc::clone(&counters);
                threads.push(inside(&bench.client.namespace, move || {
                    while counters.goes_on() {
                        work(&counters, address);
                    }
                }));
            }
        }
        Proxied { counters, threads }
    }

    /// Everything that may pass has passed anew, and nothing else.
    pub fn expect_progress(&self, when: &str) {
        let (before, deadline) = (self.counters.all(), Instant::now() + 2 * PATIENCE);
        // Two families; and one of two began after this.
        while self.counters.all().iter().zip(before).any(|(now, before)| *now < before + 4) {
            assert!(self.threads.iter().all(|thread| !thread.is_finished()), "{when}: something failed");
            assert!(Instant::now() < deadline, "{when}: stuck at {before:?}, {:?}", self.counters.all());
            std::thread::sleep(Duration::from_millis(1));
        }
        self.expect_nothing_forbidden(when);
    }

    fn expect_nothing_forbidden(&self, when: &str) {
        let arrived = self.counters.forbidden_arrived.load(Ordering::Relaxed);
        assert_eq!(arrived, 0, "{when}: the server saw what policy forbids");
    }

    pub fn finish(self) {
        self.counters.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("no request and no lookup failed");
        }
        let [requests, slow, refused, lookups, refused_lookups] = self.counters.all();
        let arrived = self.counters.forbidden_arrived.load(Ordering::Relaxed);
        assert_eq!(arrived, 0, "the server saw what policy forbids");
        println!(
            "{requests} requests on new connections and {slow} slow ones answered, {refused} answered 403, {lookups} \
             lookups answered, {refused_lookups} refused; none failed, nothing forbidden arrived"
        );
    }
}

fn serve_http(listener: &TcpListener, counters: &Arc<Counters>) {
    for stream in listener.incoming().flatten() {
        let counters = Arc::clone(counters);
        std::thread::spawn(move || answer_http(stream, &counters));
    }
}

fn answer_http(mut stream: TcpStream, counters: &Counters) {
    let mut head = Vec::new();
    let mut byte = [0; 512];
    loop {
        head.clear();
        while !head.windows(4).any(|window| window == b"\r\n\r\n") {
            match stream.read(&mut byte) {
                Ok(read @ 1..) => head.extend_from_slice(&byte[..read]),
                _ => return,
            }
        }
        if !head.starts_with(b"GET /ok") {
            counters.forbidden_arrived.fetch_add(1, Ordering::Relaxed);
        }
        if head.starts_with(b"GET /ok-slow") {
            std::thread::sleep(SLOW);
        }
        if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").is_err() {
            return;
        }
    }
}

/// Answers with one record that says nothing; what is asked besides `ok.example` is counted.
fn serve_dns(socket: &UdpSocket, counters: &Counters) {
    let mut query = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut query) {
        let query = &query[..length];
        if !query.windows(10).any(|window| window.eq_ignore_ascii_case(b"ok\x07example")) {
            counters.forbidden_arrived.fetch_add(1, Ordering::Relaxed);
        }
        let Some(end) = question_end(query) else { continue };
        let mut answer = query[..end].to_vec();
        // A response without errors, recursion available: one question, one answer, nothing else.
        answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
        socket.send_to(&answer, from).ok();
    }
}

fn question_end(query: &[u8]) -> Option<usize> {
    let mut at = 12;
    loop {
        match *query.get(at)? {
            0 => return (at + 5 <= query.len()).then_some(at + 5),
            length => at += 1 + usize::from(length),
        }
    }
}

/// One request on a new connection; the status of the answer.
fn request(address: IpAddr, path: &str) -> u16 {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, HTTP), PATIENCE)
        .unwrap_or_else(|error| panic!("connect for {path}: {error}"));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n")
        .unwrap_or_else(|error| panic!("send {path}: {error}"));
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        panic!("answer to {path}: {error} after {:?}", String::from_utf8_lossy(&answer));
    }
    let text = String::from_utf8_lossy(&answer);
    let status = text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    status.unwrap_or_else(|| panic!("answer to {path}: {text:?}"))
}

fn requests(counters: &Counters, address: IpAddr) {
    assert_eq!(request(address, "/ok"), 200);
    counters.requests.fetch_add(1, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(5));
}

fn slow_requests(counters: &Counters, address: IpAddr) {
    assert_eq!(request(address, "/ok-slow"), 200);
    counters.slow_requests.fetch_add(1, Ordering::Relaxed);
}

fn refused_requests(counters: &Counters, address: IpAddr) {
    assert_eq!(request(address, "/no"), 403);
    counters.refused_requests.fetch_add(1, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(5));
}

/// One question from a new socket; the code of the answer (RFC 1035, section 4.1.1).
fn lookup(address: IpAddr, name: &[u8], id: u16) -> u8 {
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect((address, DNS)).unwrap();
    let mut query = id.to_be_bytes().to_vec();
    query.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    query.extend_from_slice(name);
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    socket.send(&query).unwrap();
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).unwrap_or_else(|error| panic!("answer to a lookup: {error}"));
    assert!(length >= 12 && answer[..2] == id.to_be_bytes());
    answer[3] & 15
}

fn lookups(counters: &Counters, address: IpAddr) {
    let number = counters.lookups.load(Ordering::Relaxed) as u16;
    assert_eq!(lookup(address, b"\x02ok\x07example", number), 0);
    counters.lookups.fetch_add(1, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(2));
}

fn refused_lookups(counters: &Counters, address: IpAddr) {
    let number = counters.refused_lookups.load(Ordering::Relaxed) as u16;
    assert_eq!(lookup(address, b"\x03bad\x07example", number), 5);
    counters.refused_lookups.fetch_add(1, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(5));
}
