//! The load client: round trips on one connection, connections with one round trip each, and a
//! stream. Client and server are pinned to one CPU, so that what is measured is the path and not the
//! scheduler's choice of CPUs; every run is bounded in count or time.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use sluice::datapath::net::Namespace;

use super::stats::percentile;

/// TCP port of the server: what the policies of the bench allow.
pub const PORT: u16 = 8080;
const WARM_UP: usize = 500;
const ROUND_TRIPS: usize = 12_000;
/// Of one run. Small against the range of ephemeral ports: closed connections keep theirs a while.
const CONNECTIONS: usize = 1_200;
const STREAM: Duration = Duration::from_millis(300);
const CHUNK: usize = 128 * 1024;
const PATIENCE: Duration = Duration::from_secs(5);

/// The CPU that both ends share: the last one, which gets fewer interrupts.
fn pin() -> anyhow::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(std::thread::available_parallelism()?.get() - 1)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cpus)?)
}

/// Latencies of one run, in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
}

impl Latency {
    fn of(mut samples: Vec<f64>) -> Latency {
        Latency { p50: percentile(&mut samples, 0.5), p99: percentile(&mut samples, 0.99) }
    }
}

/// A client and a server in the namespaces of two pods.
pub struct Pair<'a> {
    pub client: &'a Namespace,
    pub server: &'a Namespace,
    pub address: IpAddr,
}

fn micros(begin: Instant) -> f64 {
    begin.elapsed().as_nanos() as f64 / 1e3
}

fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

/// One byte there, one byte back.
fn round_trip(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"q")?;
    stream.read_exact(&mut [0])
}

fn answer(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

impl Pair<'_> {
    /// Runs `serve` on a thread with the listener and `call` on another, both pinned, each in its pod.
    fn run<T: Send>(
        &self,
        serve: impl FnOnce(&TcpListener) -> anyhow::Result<()> + Send,
        call: impl FnOnce(SocketAddr) -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        let listener = self.server.run(|| TcpListener::bind((self.address, PORT)))??;
        // A client that cannot connect ends the run, not only itself.
        socket2::SockRef::from(&listener).set_read_timeout(Some(PATIENCE))?;
        std::thread::scope(|scope| {
            let server = scope.spawn(|| -> anyhow::Result<()> {
                pin()?;
                serve(&listener)
            });
            let result = self.client.run(|| {
                pin()?;
                call(SocketAddr::new(self.address, PORT))
            })??;
            server.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok(result)
        })
    }

    /// TCP_RR: one connection, one byte there and back at a time.
    pub fn round_trips(&self) -> anyhow::Result<Latency> {
        self.run(
            |listener| {
                let (mut stream, _) = listener.accept()?;
                prepare(&stream)?;
                Ok(answer(&mut stream)?)
            },
            |to| {
                let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
                prepare(&stream)?;
                (0..WARM_UP).try_for_each(|_| round_trip(&mut stream))?;
                let mut samples = Vec::with_capacity(ROUND_TRIPS);
                for _ in 0..ROUND_TRIPS {
                    let begin = Instant::now();
                    round_trip(&mut stream)?;
                    samples.push(micros(begin));
                }
                Ok(Latency::of(samples))
            },
        )
    }

    /// Connect, one round trip, close: everything that a new flow costs.
    pub fn connections(&self) -> anyhow::Result<Latency> {
        let total = WARM_UP / 10 + CONNECTIONS;
        self.run(
            |listener| {
                for _ in 0..total {
                    let (mut stream, _) = listener.accept()?;
                    prepare(&stream)?;
                    answer(&mut stream)?;
                }
                Ok(())
            },
            |to| {
                let mut samples = Vec::with_capacity(total);
                for _ in 0..total {
                    let begin = Instant::now();
                    let mut stream = TcpStream::connect(to)?;
                    prepare(&stream)?;
                    round_trip(&mut stream)?;
                    samples.push(micros(begin));
                }
                Ok(Latency::of(samples.split_off(WARM_UP / 10)))
            },
        )
    }

    /// TCP stream: gigabits a second that arrive.
    pub fn stream(&self) -> anyhow::Result<f64> {
        let (told, rate) = std::sync::mpsc::channel();
        self.run(
            move |listener| {
                let (mut stream, _) = listener.accept()?;
                prepare(&stream)?;
                let mut buffer = vec![0; CHUNK];
                let (begin, mut bytes) = (Instant::now(), 0);
                loop {
                    match stream.read(&mut buffer)? {
                        0 => break,
                        read => bytes += read,
                    }
                }
                told.send(bytes as f64 * 8.0 / begin.elapsed().as_nanos() as f64)?;
                Ok(())
            },
            |to| {
                let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
                prepare(&stream)?;
                let (chunk, begin) = (vec![0; CHUNK], Instant::now());
                while begin.elapsed() < STREAM {
                    stream.write_all(&chunk)?;
                }
                Ok(())
            },
        )?;
        Ok(rate.recv()?)
    }
}
