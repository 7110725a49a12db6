//! Records of the proxies become flows.
//!
//! They come as datagrams on `<run-dir>/records.sock`, a batch each ([`record_batch`]). A proxy gathers what happens
//! within [`GATHER`] and sends it at once: a request costs no system call for its record, and is not what encodes it. It
//! never waits for the agent: what the socket does not take is counted by the proxy and lost, and so is what exceeds
//! its rate.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::net::UnixDatagram;

use super::enrich::{Enricher, Event, Ground, Known, used_names};
use super::hub::Hub;
use super::pace::Pace;
use crate::cluster::delta::ServiceFrontend;
use crate::flow::directory::Directory;
use crate::flow::record::{Record, RecordVerdict};
use crate::flow::record_batch;
use crate::flow::{EventKind, Flow, L7, Observation, Verdict};
use crate::model::{DropReason, Protocol};
use crate::policy::l7::names::canonical_shared;

const SOCKET: &str = "records.sock";
/// Longest datagram in bytes: a record that is longer is not sent.
const LONGEST: usize = 64 * 1024;
/// Records are sent when there are so many of them, or when the first has waited so long.
const FULL: usize = 256;
const GATHER: Duration = Duration::from_millis(2);
/// Records that wait together when the agent does not keep up: more than a proxy admits between two turns of the agent.
const BEHIND: usize = 64;

/// The agent's end; bound before a proxy starts.
#[derive(Debug)]
pub struct Receiver(UnixDatagram);

impl Receiver {
    /// Takes the place of an earlier agent's socket.
    pub fn bind(run_dir: &Path) -> anyhow::Result<Receiver> {
        let path = run_dir.join(SOCKET);
        let temporary = run_dir.join("records.sock.new");
        super::l7feed::private_directory(run_dir)?;
        if temporary.exists() {
            std::fs::remove_file(&temporary).with_context(|| temporary.display().to_string())?;
        }
        let socket = UnixDatagram::bind(&temporary).with_context(|| temporary.display().to_string())?;
        std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&temporary, &path).with_context(|| path.display().to_string())?;
        Ok(Receiver(socket))
    }

    /// Runs until the core is gone.
    pub async fn run(self, mut enricher: Enricher, hub: Arc<Hub>) {
        let mut buffer = vec![0; LONGEST];
        loop {
            let length = match self.0.recv(&mut buffer).await {
                Ok(length) => length,
                Err(error) => {
                    tracing::error!(%error, "records of the proxies cannot be read; they go on judging");
                    return;
                }
            };
            let mut records = take(&buffer[..length]);
            while records.len() < FULL
                && let Ok(length) = self.0.try_recv(&mut buffer)
            {
                records.extend(take(&buffer[..length]));
            }
            let pace = Pace::of(records.len(), BEHIND);
            let mut records = records.into_iter();
            loop {
                let portion: Vec<Record> = records.by_ref().take(pace.portion()).collect();
                if portion.is_empty() {
                    break;
                }
                let Ok(flows) = enricher.flows(portion).await else { return };
                hub.push(flows);
                pace.pause()();
            }
        }
    }
}

fn take(bytes: &[u8]) -> Vec<Record> {
    record_batch::decode(Bytes::copy_from_slice(bytes)).unwrap_or_else(|error| {
        // Of a proxy of another version, which is about to be replaced.
        tracing::warn!(%error, "a proxy's records were not understood");
        Vec::new()
    })
}

impl Event for Record {
    fn ground(&self) -> Option<Ground> {
        (!self.rules.is_empty()).then(|| Ground::Rules(Arc::clone(&self.rules)))
    }

    fn frontend(&self) -> Option<ServiceFrontend> {
        None
    }

    fn note(&self, directory: &mut Directory) {
        if let L7::Dns { query, answers, .. } = &self.l7 {
            directory.add_used_name(self.client.ip().to_canonical(), &canonical_shared(query), answers);
        }
    }

    fn into_flow(self, known: Known<'_>) -> Flow {
        let denied = match self.l7 {
            L7::Http { .. } => DropReason::ProxyDenied,
            L7::Dns { .. } => DropReason::DnsDenied,
            L7::Tls { .. } => DropReason::SniDenied,
        };
        let directory = known.directory;
        let (client, server) = (self.client.ip().to_canonical(), self.server.ip().to_canonical());
        let (source_name, destination_name) = used_names(directory, client, server);
        Flow {
            time_ns: self.time_ns,
            sequence: 0,
            node: known.node,
            kind: EventKind::L7,
            verdict: match self.verdict {
                RecordVerdict::Forwarded => Verdict::Forwarded,
                RecordVerdict::Denied => Verdict::Dropped(denied),
                RecordVerdict::Failed => Verdict::Error,
            },
            direction: self.direction,
            source: directory.party(client, self.client_identity),
            source_port: Some(self.client.port()),
            source_name,
            destination: directory.party(server, self.server_identity),
            destination_port: Some(self.server.port()),
            destination_name,
            protocol: Protocol::from_number(self.protocol),
            tcp_flags: 0,
            icmp: None,
            is_reply: false,
            is_established: true,
            service: None,
            decision: known.decision,
            length: 0,
            count: 1,
            observation: Observation::Proxy,
            interface: None,
            l7: Some(Box::new(self.l7)),
        }
    }
}

/// A proxy's end.
#[derive(Debug)]
pub struct Sender {
    shared: Arc<Shared>,
    /// Records a second; bursts may be as long.
    rate: u32,
    budget: Mutex<Budget>,
    limited: AtomicU64,
}

#[derive(Debug)]
struct Shared {
    socket: std::os::unix::net::UnixDatagram,
    path: PathBuf,
    gathered: Mutex<Gathered>,
    /// There is something, or nothing will come any more.
    news: Condvar,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct Gathered {
    records: Vec<Record>,
    is_over: bool,
}

#[derive(Debug)]
struct Budget {
    left: f64,
    since: Instant,
}

impl Shared {
    fn send(&self, records: &[Record], pause: fn()) {
        if records.is_empty() {
            return;
        }
        let bytes = record_batch::encode(records, pause);
        match records {
            [_, _, ..] if bytes.len() > LONGEST => {
                let (first, second) = records.split_at(records.len() / 2);
                self.send(first, pause);
                self.send(second, pause);
            }
            _ if bytes.len() > LONGEST || self.socket.send_to(&bytes, &self.path).is_err() => {
                self.lost.fetch_add(records.len() as u64, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    fn put(&self, record: Record) {
        let mut gathered = self.gathered.lock();
        gathered.records.push(record);
        match gathered.records.len() {
            1 => _ = self.news.notify_one(),
            FULL.. => {
                let records = std::mem::take(&mut gathered.records);
                drop(gathered);
                // A thread that serves traffic gives way to nobody.
                self.send(&records, || ());
            }
            _ => {}
        }
    }

    fn run(&self) {
        loop {
            let mut gathered = self.gathered.lock();
            while gathered.records.is_empty() {
                if gathered.is_over {
                    return;
                }
                self.news.wait(&mut gathered);
            }
            drop(gathered);
            std::thread::sleep(GATHER);
            self.flush();
        }
    }

    fn flush(&self) {
        let records = std::mem::take(&mut self.gathered.lock().records);
        self.send(&records, Pace::of(records.len(), BEHIND).pause());
    }
}

impl Sender {
    /// Sends to whichever agent serves `run_dir` at the time.
    pub fn new(run_dir: &Path, rate: u32) -> anyhow::Result<Sender> {
        let socket = std::os::unix::net::UnixDatagram::unbound().context("open a socket for records")?;
        socket.set_nonblocking(true)?;
        let budget = Mutex::new(Budget { left: f64::from(rate), since: Instant::now() });
        let shared = Arc::new(Shared {
            socket,
            path: run_dir.join(SOCKET),
            gathered: Mutex::default(),
            news: Condvar::new(),
            lost: AtomicU64::new(0),
        });
        let sending = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("sluice-records".into())
            .spawn(move || sending.run())
            .context("start the thread for records")?;
        Ok(Sender { shared, rate, budget, limited: AtomicU64::new(0) })
    }

    /// Takes one record from the budget. `false`, counted: there is to be none.
    pub fn admits(&self) -> bool {
        let admitted = self.budget.lock().take(self.rate);
        if !admitted {
            self.limited.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }

    /// Sends a record that was admitted. Never waits.
    pub fn put(&self, record: Record) {
        self.shared.put(record);
    }

    /// Sends a record if the rate allows.
    pub fn send(&self, record: Record) {
        if self.admits() {
            self.put(record);
        }
    }

    /// Sends what was gathered.
    pub fn flush(&self) {
        self.shared.flush();
    }

    /// Records above the rate, and records that the agent did not take.
    pub fn dropped(&self) -> (u64, u64) {
        (self.limited.load(Ordering::Relaxed), self.shared.lost.load(Ordering::Relaxed))
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.flush();
        self.shared.gathered.lock().is_over = true;
        self.shared.news.notify_one();
    }
}

impl Budget {
    fn take(&mut self, rate: u32) -> bool {
        let now = Instant::now();
        let earned = now.duration_since(self.since).as_secs_f64() * f64::from(rate);
        self.left = (self.left + earned).min(f64::from(rate));
        self.since = now;
        let has_one = self.left >= 1.0;
        if has_one {
            self.left -= 1.0;
        }
        has_one
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::model::{Direction, Identity};

    fn record(port: u16) -> Record {
        Record {
            time_ns: 1,
            direction: Direction::Egress,
            verdict: RecordVerdict::Denied,
            protocol: 6,
            client: "10.0.0.1:40000".parse().unwrap(),
            server: SocketAddr::new("10.0.0.2".parse().unwrap(), port),
            client_identity: Identity(300),
            server_identity: Identity(301),
            rules: Arc::from([]),
            l7: L7::Tls { server_name: Some("a.example".into()) },
        }
    }

    #[tokio::test]
    async fn records_arrive_whole_and_those_above_the_rate_are_counted() {
        let directory = tempfile::tempdir().unwrap();
        let receiver = Receiver::bind(directory.path()).unwrap();
        let sender = Sender::new(directory.path(), 1).unwrap();
        sender.send(record(443));
        sender.send(record(444));
        sender.put(record(445));
        let mut buffer = vec![0; LONGEST];
        let length = receiver.0.recv(&mut buffer).await.unwrap();
        let records = take(&buffer[..length]);
        assert_eq!(records, [record(443), record(445)]);
        assert_eq!(sender.dropped(), (1, 0));
    }

    #[test]
    fn without_an_agent_records_are_lost_and_counted() {
        let directory = tempfile::tempdir().unwrap();
        let sender = Sender::new(directory.path(), 10).unwrap();
        sender.send(record(443));
        sender.flush();
        assert_eq!(sender.dropped(), (0, 1));
    }
}
