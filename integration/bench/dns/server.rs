//! The DNS server of the bench: knows every name, and gives each addresses by its number.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use sluice::datapath::net::Namespace;

/// Addresses of one answer.
const ADDRESSES: u32 = 5;
const HEADER: usize = 12;
const RECEIVE_BUFFER: usize = 4 << 20;
const PATIENCE: Duration = Duration::from_millis(100);

/// Which addresses a name has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// The same five until [`Server::next_addresses`].
    Fixed { ttl: u32 },
    /// One that no answer had before.
    EveryAnswer { ttl: u32 },
}

#[derive(Debug)]
struct State {
    /// Added to a name's number: 65,536 addresses a step.
    generation: AtomicU32,
    /// Zero: fixed addresses.
    rotating_ttl: AtomicU32,
    serial: AtomicU32,
    stop: AtomicBool,
}

#[derive(Debug)]
pub struct Server {
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `address` inside the namespace, on the first CPU.
    pub fn start(namespace: &Namespace, address: SocketAddr) -> anyhow::Result<Server> {
        let socket = namespace.run(|| UdpSocket::bind(address))??;
        socket.set_read_timeout(Some(PATIENCE))?;
        // All that dnsperf has out may come at once: what is lost here is nobody's fault who is measured.
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
        let state = Arc::new(State {
            generation: AtomicU32::new(0),
            rotating_ttl: AtomicU32::new(0),
            serial: AtomicU32::new(0),
            stop: AtomicBool::new(false),
        });
        let shared = Arc::clone(&state);
        let thread = std::thread::Builder::new().name("dns-server".into()).spawn(move || {
            super::load::pin(super::load::Cpu::Load).expect("pin to a CPU");
            serve(&socket, &shared);
        })?;
        Ok(Server { state, thread: Some(thread) })
    }

    /// From now on every name has other addresses.
    pub fn next_addresses(&self) {
        self.state.generation.fetch_add(1, Ordering::Relaxed);
    }

    pub fn rotate(&self, rotation: Rotation) {
        let ttl = match rotation {
            Rotation::Fixed { .. } => 0,
            Rotation::EveryAnswer { ttl } => ttl,
        };
        self.state.rotating_ttl.store(ttl, Ordering::Relaxed);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn serve(socket: &UdpSocket, state: &State) {
    let mut query = [0; 2048];
    let mut answer = Vec::with_capacity(512);
    while !state.stop.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut query) else { continue };
        if respond(&query[..length], state, &mut answer).is_some() {
            socket.send_to(&answer, from).ok();
        }
    }
}

/// The answer to one question of type A for a name that begins with `n` and a number.
fn respond(query: &[u8], state: &State, answer: &mut Vec<u8>) -> Option<()> {
    let mut end = HEADER;
    while *query.get(end)? != 0 {
        end += 1 + usize::from(query[end]);
    }
    end += 5;
    let question = query.get(HEADER..end)?;
    let label = query.get(HEADER + 2..HEADER + 1 + usize::from(query[HEADER]))?;
    let number: u32 = std::str::from_utf8(label).ok()?.parse().ok()?;
    let rotating = state.rotating_ttl.load(Ordering::Relaxed);
    let (first, count, ttl) = if rotating > 0 {
        (state.serial.fetch_add(1, Ordering::Relaxed), 1, rotating)
    } else {
        let Rotation::Fixed { ttl } = super::site::FIXED else { return None };
        ((state.generation.load(Ordering::Relaxed) << 16) + number * ADDRESSES, ADDRESSES, ttl)
    };
    answer.clear();
    answer.extend_from_slice(query.get(..2)?);
    // A response, authoritative, recursion as asked and available.
    answer.extend_from_slice(&[0x84 | query[2] & 1, 0x80, 0, 1, 0, count as u8, 0, 0, 0, 0]);
    answer.extend_from_slice(question);
    for index in 0..count {
        answer.extend_from_slice(&[0xc0, HEADER as u8, 0, 1, 0, 1]);
        answer.extend_from_slice(&ttl.to_be_bytes());
        answer.extend_from_slice(&[0, 4]);
        answer.extend_from_slice(&(super::site::WORLD + (first + index) % (1 << 24)).to_be_bytes());
    }
    Some(())
}
