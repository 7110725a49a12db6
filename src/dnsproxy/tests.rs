//! The proxy on loopback sockets: another implementation asks and answers, a test judges and learns.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Message, Query as Asked, ResponseCode as Code};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record as Answer, RecordType};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

use super::batch::Inbox;
use super::outside::{Ask, Decision, Judge, Learner, QueryRecord, Reach, Records, Ruling, Wait};
use super::proxy::{Options, Parts, Proxy};
use super::raw::Datagram;
use super::sockets::{News, Sockets, note_destinations};
use super::worker::Workers;
use crate::admission::Most;
use crate::fqdn::Learned;
use crate::model::{Direction, Identity, Kind, ObjectRef};
use crate::policy::rule::RuleRef;

/// Sends what the pod would have sent to its server to `upstream`, and answers from the listener. Each query has a socket
/// of its own, whose port stands for the one that was drawn.
struct Loopback {
    upstream: SocketAddr,
    listener: Mutex<Option<std::net::UdpSocket>>,
    /// Longest answer that leaves.
    width: AtomicUsize,
    runtime: tokio::runtime::Handle,
    /// Where the proxy believes that its queries leave from.
    asked: Mutex<Vec<SocketAddr>>,
    tell: Arc<UnixDatagram>,
    told: UnixDatagram,
}

impl Loopback {
    fn new(upstream: SocketAddr) -> Loopback {
        let (tell, told) = UnixDatagram::pair().unwrap();
        told.set_nonblocking(true).unwrap();
        Loopback {
            upstream,
            listener: Mutex::default(),
            width: AtomicUsize::new(usize::MAX),
            runtime: tokio::runtime::Handle::current(),
            asked: Mutex::default(),
            tell: Arc::new(tell),
            told,
        }
    }

    fn carry(&self, query: &Datagram<'_>) -> io::Result<()> {
        self.asked.lock().push(query.from);
        let socket = std::net::UdpSocket::bind((query.from.ip(), 0))?;
        socket.connect(self.upstream)?;
        socket.set_nonblocking(true)?;
        socket.send(query.message)?;
        let (tell, from, to) = (Arc::clone(&self.tell), query.from, query.to);
        self.runtime.spawn(async move {
            let socket = UdpSocket::from_std(socket).unwrap();
            let mut buffer = [0; 2048];
            loop {
                // First a byte that says what it is, then both ends.
                let (kind, length) = match socket.recv(&mut buffer).await {
                    Ok(length) => (b'r', length),
                    Err(_) => (b'u', 0),
                };
                let mut told = vec![kind];
                told.extend(format!("{from} {to}\n").into_bytes());
                told.extend(&buffer[..length]);
                if tell.send(&told).is_err() || kind == b'u' {
                    return;
                }
            }
        });
        Ok(())
    }
}

impl Sockets for Loopback {
    fn ask(&self, queries: &[Datagram<'_>], unsent: &mut dyn FnMut(usize, io::Error)) {
        for (index, query) in queries.iter().enumerate() {
            if let Err(error) = self.carry(query) {
                unsent(index, error);
            }
        }
    }

    fn is_own(&self, port: u16) -> bool {
        port % 8 == 3
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.told.as_fd()]
    }

    fn hear(&self, _: usize, _: &mut Inbox, take: &mut dyn FnMut(News<'_>)) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        let Ok(length) = self.told.recv(&mut buffer) else { return Ok(false) };
        let end = buffer.iter().position(|byte| *byte == b'\n').unwrap();
        let (from, to) = std::str::from_utf8(&buffer[1..end]).unwrap().split_once(' ').unwrap();
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        match buffer[0] {
            b'r' => {
                take(News::Replies(&[Datagram { from: to, to: from, message: &buffer[end + 1..length] }]))
            }
            _ => take(News::Undelivered((from, to))),
        }
        Ok(true)
    }

    fn upstream_tcp(&self, client: IpAddr, _server: SocketAddr) -> Wait<'_, io::Result<TcpStream>> {
        Box::pin(async move {
            let socket = if client.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.bind(SocketAddr::new(client, 0))?;
            socket.connect(self.upstream).await
        })
    }

    fn answer(&self, answers: &[Datagram<'_>], unsent: &mut dyn FnMut(usize, io::Error)) {
        let listener = self.listener.lock();
        for (index, answer) in answers.iter().enumerate() {
            let sent = match answer.message.len() > self.width.load(Ordering::Relaxed) {
                true => Err(io::Error::from_raw_os_error(nix::libc::EMSGSIZE)),
                false => listener.as_ref().unwrap().send_to(answer.message, answer.to),
            };
            sent.err().into_iter().for_each(|error| unsent(index, error));
        }
    }
}

/// Refuses names below `evil`; remembers what was learned and recorded.
#[derive(Default)]
struct Sluice {
    learned: Mutex<Vec<Learned>>,
    records: Mutex<Vec<QueryRecord>>,
    /// Learning succeeds only while this is empty.
    trouble: Mutex<Option<Reach>>,
}

fn rule() -> RuleRef {
    RuleRef { object: ObjectRef::new(Kind::CiliumNetworkPolicy, "shop", "names"), spec: 0, rule: 0 }
}

impl Judge for Sluice {
    fn judge(&self, ask: &Ask<'_>) -> Ruling {
        let decision = if ask.name.ends_with("evil") { Decision::Refuse } else { Decision::Release };
        Ruling {
            decision,
            direction: Direction::Egress,
            rules: [rule()].into(),
            client_identity: Identity(300),
            server_identity: Identity(301),
        }
    }
}

impl Learner for Sluice {
    fn known(&self, learned: &Learned, _: IpAddr) -> Option<Reach> {
        let known = self.learned.lock().iter().any(|known| known == learned);
        known.then_some(Reach::Ready)
    }

    fn learn(&self, learned: Learned, _: IpAddr) -> Wait<'_, Reach> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            self.learned.lock().push(learned);
            self.trouble.lock().unwrap_or(Reach::Ready)
        })
    }
}

impl Records for Sluice {
    fn admits(&self) -> bool {
        true
    }

    fn record(&self, record: QueryRecord) {
        self.records.lock().push(record);
    }
}

struct Rig {
    proxy: Arc<Proxy>,
    sluice: Arc<Sluice>,
    udp: SocketAddr,
    tcp: SocketAddr,
    sockets: Arc<Loopback>,
    workers: Option<Workers>,
}

/// What the test's server does with a question.
#[derive(Clone, Copy)]
enum Server {
    /// Gives 192.0.2.1 for every name, after some replies that must be ignored.
    Answers,
    Silent,
    Garbles,
    /// Gives a hundred addresses.
    Talks,
    /// Says that it failed, and gives an address all the same.
    Fails,
    /// Answers, and before that tells 192.0.2.66 to the port of the query before, with everything else right.
    Forges,
}

fn replies(server: Server, wire: &[u8]) -> Vec<Vec<u8>> {
    let query = Message::from_vec(wire).unwrap();
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.add_queries(query.queries.iter().cloned());
    let address = RData::A(A::new(192, 0, 2, 1));
    reply.add_answer(Answer::from_rdata(query.queries[0].name().clone(), 30, address));
    let good = reply.to_vec().unwrap();
    match server {
        Server::Talks => {
            for last in 2..=100 {
                let address = RData::A(A::new(192, 0, 2, last));
                reply.add_answer(Answer::from_rdata(query.queries[0].name().clone(), 30, address));
            }
            vec![reply.to_vec().unwrap()]
        }
        Server::Answers => {
            let mut wrong_id = good.clone();
            wrong_id[0] ^= 0x55;
            let mut unasked = Message::response(query.metadata.id, query.metadata.op_code);
            unasked.add_query(Asked::query(Name::from_ascii("bank.example.").unwrap(), RecordType::A));
            vec![wrong_id, unasked.to_vec().unwrap(), b"noise".to_vec(), good]
        }
        Server::Silent => vec![],
        Server::Fails => {
            reply.metadata.response_code = Code::ServFail;
            vec![reply.to_vec().unwrap()]
        }
        Server::Forges => vec![good],
        Server::Garbles => vec![good[..good.len() - 2].to_vec()],
    }
}

/// The same reply with the forger's address in the place of the right one, which stands at its end.
fn forged(mut reply: Vec<u8>) -> Vec<u8> {
    if let Some(last) = reply.last_mut() {
        *last = 66;
    }
    reply
}

async fn server(at: IpAddr, behaviour: Server) -> SocketAddr {
    let (udp, tcp) = loop {
        let udp = UdpSocket::bind((at, 0)).await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            break (udp, tcp);
        }
    };
    let address = udp.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        let mut last = None;
        while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
            // Two queries in a row may draw the same port: to that one nothing is forged.
            let before = last.replace(from).filter(|before| *before != from);
            if let (Server::Forges, Some(before)) = (behaviour, before) {
                for reply in replies(behaviour, &buffer[..length]) {
                    udp.send_to(&forged(reply), before).await.unwrap();
                }
            }
            for reply in replies(behaviour, &buffer[..length]) {
                udp.send_to(&reply, from).await.unwrap();
            }
        }
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = tcp.accept().await {
            tokio::spawn(async move {
                let mut frames = super::upstream::frames(stream);
                use futures::{SinkExt, StreamExt};
                while let Some(Ok(frame)) = frames.next().await {
                    if let Some(reply) = replies(behaviour, &frame).pop() {
                        frames.send(bytes::Bytes::from(reply)).await.ok();
                    }
                }
            });
        }
    });
    address
}

async fn rig_at(at: IpAddr, behaviour: Server, options: Options) -> Rig {
    rig_before(server(at, behaviour).await, options).await
}

async fn rig_before(upstream: SocketAddr, options: Options) -> Rig {
    let at = upstream.ip();
    let sluice = Arc::new(Sluice::default());
    let sockets = Arc::new(Loopback::new(upstream));
    let proxy = Proxy::new(
        options,
        Parts {
            judge: sluice.clone(),
            learner: sluice.clone(),
            records: sluice.clone(),
            sockets: sockets.clone(),
        },
    );
    let listener = std::net::UdpSocket::bind((at, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let udp = listener.local_addr().unwrap();
    note_destinations(&listener, udp).unwrap();
    *sockets.listener.lock() = Some(listener.try_clone().unwrap());
    let workers = Some(proxy.serve_udp(vec![listener], 2).unwrap());
    let listener = TcpListener::bind((at, 0)).await.unwrap();
    let tcp = listener.local_addr().unwrap();
    tokio::spawn(proxy.clone().serve_tcp(listener));
    Rig { proxy, sluice, udp, tcp, sockets, workers }
}

async fn rig(behaviour: Server) -> Rig {
    let options = Options { upstream_timeout: Duration::from_millis(300), ..Options::default() };
    rig_at(Ipv4Addr::LOCALHOST.into(), behaviour, options).await
}

fn question(name: &str) -> Vec<u8> {
    let mut message = Message::query();
    message.add_query(Asked::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

const PATIENCE: Duration = Duration::from_secs(5);

async fn ask_raw(rig: &Rig, wire: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind((rig.udp.ip(), 0)).await.unwrap();
    socket.send_to(wire, rig.udp).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let received = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await;
    buffer.truncate(received.expect("an answer in time").unwrap());
    buffer
}

async fn ask(rig: &Rig, name: &str) -> Message {
    let wire = question(name);
    let answer = ask_raw(rig, &wire).await;
    assert_eq!(answer[..2], wire[..2], "the client's own id");
    Message::from_vec(&answer).unwrap()
}

#[tokio::test]
async fn a_released_query_is_answered_after_its_address_was_learned() {
    for at in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
        let rig = rig_at(at, Server::Answers, Options::default()).await;
        let answer = ask(&rig, "WwW.Example.").await;
        assert_eq!(answer.answers.len(), 1);
        assert_eq!(answer.queries[0].name().to_ascii(), "WwW.Example.", "letter case is kept");
        let learned = rig.sluice.learned.lock().clone();
        assert_eq!(learned.len(), 1, "what nobody asked for is not learned");
        assert_eq!(&*learned[0].name, "www.example");
        let record = rig.sluice.records.lock()[0].clone();
        assert_eq!((&*record.name, record.kind, record.rcode), ("www.example", 1, Some(0)));
        assert_eq!(record.answers, [IpAddr::from([192, 0, 2, 1])]);
        assert_eq!(record.server, rig.udp, "where the client had sent it");
        assert_eq!(*record.ruling.unwrap().rules, [rule()]);
        assert_eq!(rig.proxy.counters.snapshot().stray_replies, 3);
    }
}

#[tokio::test]
async fn a_refused_query_never_leaves() {
    let rig = rig(Server::Answers).await;
    let answer = ask(&rig, "very.Evil.").await;
    assert_eq!(answer.metadata.response_code, Code::Refused);
    assert_eq!(answer.queries[0].name().to_ascii(), "very.Evil.");
    assert!(rig.sluice.learned.lock().is_empty());
    assert_eq!(rig.sluice.records.lock()[0].rcode, Some(5));
    let counters = rig.proxy.counters.snapshot();
    assert_eq!((counters.refused, counters.released), (1, 0));
}

#[tokio::test]
async fn a_silent_server_gives_servfail_and_keeps_no_one_else_waiting() {
    let options = Options {
        upstream_timeout: Duration::from_millis(200),
        queries: Most { of_one: 2, of_all: 10 },
        ..Options::default()
    };
    let rig = rig_at(Ipv4Addr::LOCALHOST.into(), Server::Silent, options).await;
    let (first, second, third) = tokio::join!(ask(&rig, "a."), ask(&rig, "b."), ask(&rig, "c."));
    for answer in [first, second, third] {
        assert_eq!(answer.metadata.response_code, Code::ServFail);
    }
    let counters = rig.proxy.counters.snapshot();
    assert_eq!((counters.timeouts, counters.over_limit), (2, 1), "the third had no room");
    assert_eq!(ask(&rig, "evil.").await.metadata.response_code, Code::Refused);
    assert_eq!(rig.proxy.open_queries(), 0);
}

#[tokio::test]
async fn a_reply_that_cannot_be_read_is_not_released() {
    let rig = rig(Server::Garbles).await;
    assert_eq!(ask(&rig, "a.").await.metadata.response_code, Code::ServFail);
    assert!(rig.sluice.learned.lock().is_empty());
    assert_eq!(rig.proxy.counters.snapshot().malformed_replies, 1);
}

#[tokio::test]
async fn malformed_queries_are_answered_here_and_noise_is_dropped() {
    let rig = rig(Server::Answers).await;
    let socket = UdpSocket::bind((rig.udp.ip(), 0)).await.unwrap();
    socket.send_to(b"noise", rig.udp).await.unwrap();
    let mut wire = question("a.example.");
    wire.push(0);
    assert_eq!(ask_raw(&rig, &wire).await[3] & 0xf, 1);
    assert_eq!(rig.proxy.counters.snapshot().malformed, 2);
    let records = rig.sluice.records.lock();
    assert!(records.iter().all(|record| record.fault.is_some() && record.ruling.is_none()));
}

#[tokio::test]
async fn an_answer_whose_addresses_stay_closed_is_counted() {
    let rig = rig(Server::Answers).await;
    *rig.sluice.trouble.lock() = Some(Reach::Closed);
    assert_eq!(ask(&rig, "a.").await.metadata.response_code, Code::NoError);
    assert_eq!(rig.proxy.counters.snapshot().closed_answers, 1);
    assert!(rig.sluice.records.lock()[0].fault.is_some());
}

#[tokio::test]
async fn the_address_of_a_server_failure_is_passed_on_and_not_learned() {
    let rig = rig(Server::Fails).await;
    let answer = ask(&rig, "a.").await;
    assert_eq!((answer.metadata.response_code, answer.answers.len()), (Code::ServFail, 1));
    assert!(rig.sluice.learned.lock().is_empty());
    assert_eq!(rig.proxy.counters.snapshot().closed_answers, 0);
}

#[tokio::test]
async fn one_connection_carries_many_queries() {
    use futures::{SinkExt, StreamExt};
    let rig = rig(Server::Answers).await;
    let mut frames = super::upstream::frames(TcpStream::connect(rig.tcp).await.unwrap());
    for name in ["a.example.", "x.evil.", "b.example."] {
        frames.send(bytes::Bytes::from(question(name))).await.unwrap();
    }
    let mut codes = Vec::new();
    for _ in 0..3 {
        let answer = tokio::time::timeout(PATIENCE, frames.next()).await.unwrap().unwrap().unwrap();
        let answer = Message::from_vec(&answer).unwrap();
        codes.push((answer.queries[0].name().to_ascii(), answer.metadata.response_code));
    }
    codes.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(
        codes,
        [
            ("a.example.".into(), Code::NoError),
            ("b.example.".into(), Code::NoError),
            ("x.evil.".into(), Code::Refused)
        ]
    );
    assert_eq!(rig.sluice.learned.lock().len(), 2);
}

#[tokio::test]
async fn a_client_that_finishes_asking_still_gets_its_answers() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let rig = rig(Server::Answers).await;
    let mut stream = TcpStream::connect(rig.tcp).await.unwrap();
    let wire = question("a.example.");
    stream.write_u16(wire.len().try_into().unwrap()).await.unwrap();
    stream.write_all(&wire).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut all = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await.unwrap().unwrap();
    assert_eq!(Message::from_vec(&all[2..]).unwrap().answers.len(), 1);
}

#[tokio::test]
async fn a_client_that_sends_a_byte_now_and_then_is_closed() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let options = Options { idle_timeout: Duration::from_millis(150), ..Options::default() };
    let rig = rig_at(Ipv4Addr::LOCALHOST.into(), Server::Answers, options).await;
    let (mut read, mut write) = TcpStream::connect(rig.tcp).await.unwrap().into_split();
    let drip = tokio::spawn(async move {
        while write.write_all(&[0]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let mut all = Vec::new();
    // The two length bytes that the drip makes are those of an empty message: dropped without an answer.
    tokio::time::timeout(PATIENCE, read.read_to_end(&mut all)).await.unwrap().ok();
    drip.abort();
}

#[tokio::test]
async fn a_name_that_is_known_is_not_learned_again() {
    let rig = rig(Server::Answers).await;
    for _ in 0..5 {
        assert_eq!(ask(&rig, "a.example.").await.answers.len(), 1);
    }
    assert_eq!(rig.sluice.learned.lock().len(), 1);
    assert_eq!(rig.proxy.counters.snapshot().released, 5);
}

/// What is drawn twice is a coincidence.
#[tokio::test]
async fn each_query_leaves_by_a_port_of_its_own() {
    for at in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
        let rig = rig_at(at, Server::Answers, Options::default()).await;
        for _ in 0..60 {
            ask(&rig, "a.example.").await;
        }
        let asked = rig.sockets.asked.lock().clone();
        let mut ports: Vec<u16> = asked.iter().map(SocketAddr::port).collect();
        assert_eq!(ports.len(), 60);
        assert!(asked.iter().all(|from| from.ip() == at), "the client's address stays");
        assert!(ports.iter().all(|port| *port >= 1024 && port % 8 == 3));
        ports.sort_unstable();
        ports.dedup();
        assert!(ports.len() > 55, "{ports:?}");
    }
}

#[tokio::test]
async fn what_comes_to_the_port_of_another_query_is_never_learned() {
    let rig = rig(Server::Forges).await;
    // One in 8192 draws the port of the query before: what comes there came to its own.
    let mut by_chance = Vec::new();
    for n in 0..40 {
        let name = format!("n{n}.example");
        let answer = ask(&rig, &format!("{name}.")).await;
        match &rig.sockets.asked.lock()[..] {
            [.., before, last] if before == last => by_chance.push(name),
            _ => assert_eq!(answer.answers[0].data, RData::A(A::new(192, 0, 2, 1))),
        }
    }
    let mut learned = rig.sluice.learned.lock().clone();
    learned.retain(|learned| !by_chance.iter().any(|name| **name == *learned.name));
    let right = IpAddr::from([192, 0, 2, 1]);
    let addresses = || learned.iter().flat_map(|learned| &learned.addresses);
    assert_eq!(addresses().count() + by_chance.len(), 40);
    assert!(addresses().all(|(address, _)| *address == right), "{learned:?}");
}

#[tokio::test]
async fn an_answer_that_is_too_long_for_its_way_has_the_client_ask_over_tcp() {
    let rig = rig(Server::Talks).await;
    let whole = ask(&rig, "a.example.").await;
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (100, false));
    rig.sockets.width.store(1400, Ordering::Relaxed);
    let cut = ask(&rig, "a.example.").await;
    assert_eq!((cut.answers.len(), cut.metadata.truncation), (0, true));
    rig.sockets.width.store(10, Ordering::Relaxed);
    let socket = UdpSocket::bind((rig.udp.ip(), 0)).await.unwrap();
    socket.send_to(&question("a.example."), rig.udp).await.unwrap();
    while rig.proxy.counters.snapshot().lost_answers < 1 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_known_at_once() {
    let gone = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
    let rig = rig_before(gone, Options::default()).await;
    let begin = std::time::Instant::now();
    assert_eq!(ask(&rig, "a.").await.metadata.response_code, Code::ServFail);
    assert!(begin.elapsed() < Options::default().upstream_timeout);
    assert_eq!(rig.proxy.counters.snapshot().unreachable, 1);
    assert_eq!(rig.proxy.open_queries(), 0);
}

/// One after the other and together.
#[tokio::test]
async fn queries_leave_nothing_behind() {
    let rig = rig(Server::Answers).await;
    for _ in 0..150 {
        assert_eq!(ask(&rig, "a.example.").await.answers.len(), 1);
    }
    let names: Vec<String> = (0..40).map(|n| format!("n{n}.example.")).collect();
    let answers = futures::future::join_all(names.iter().map(|name| ask(&rig, name))).await;
    assert!(answers.iter().all(|answer| answer.answers.len() == 1));
    assert_eq!(rig.proxy.open_queries(), 0);
}

/// What was asked before the workers are told to stop is answered: a successor takes over without a loss.
#[tokio::test]
async fn workers_finish_what_has_begun() {
    let mut rig = rig(Server::Answers).await;
    let socket = UdpSocket::bind((rig.udp.ip(), 0)).await.unwrap();
    for n in 0..20 {
        socket.send_to(&question(&format!("n{n}.example.")), rig.udp).await.unwrap();
    }
    rig.workers.take().unwrap().drain().await;
    let mut buffer = [0; 2048];
    for _ in 0..20 {
        tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await.expect("an answer").unwrap();
    }
    assert_eq!(rig.proxy.counters.snapshot().released, 20);
}
