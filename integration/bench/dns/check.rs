//! The promise: who has an answer may connect at once.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::NAMES;
use super::load::question;
use super::site::Site;

/// Clients at the same time.
const CLIENTS: u32 = 8;
/// How long an allowed connection may take on a busy machine; a dropped SYN is repeated after a second.
const PATIENCE: Duration = Duration::from_millis(900);

#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub answers: u32,
    /// Addresses that were not open.
    pub closed: u32,
    pub rate: f64,
}

/// Looks names up and connects to each new address as soon as the answer is there. Nobody listens there: an allowed
/// SYN is reset at once, a dropped one gets nothing.
pub fn connect_at_once(site: &Site, answers: u32) -> anyhow::Result<Outcome> {
    let (next, closed) = (AtomicU32::new(0), AtomicU32::new(0));
    let begin = Instant::now();
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| scope.spawn(|| site.client.namespace.run(|| client(site, answers, &next, &closed))))
            .collect();
        for client in clients {
            client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))??;
        }
        Ok(())
    })?;
    let rate = f64::from(answers) / begin.elapsed().as_secs_f64();
    Ok(Outcome { answers, closed: closed.into_inner(), rate })
}

fn client(site: &Site, answers: u32, next: &AtomicU32, closed: &AtomicU32) -> anyhow::Result<()> {
    let socket = UdpSocket::bind((site.client.address, 0))?;
    socket.connect(site.resolver)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut answer = [0; 512];
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= answers {
            return Ok(());
        }
        socket.send(&question(number as u16, number % NAMES))?;
        let length = socket.recv(&mut answer).context("a lookup was lost")?;
        let address: [u8; 4] = answer[..length].last_chunk().copied().context("no answer")?;
        anyhow::ensure!(answer[3] & 0xf == 0 && address[0] == 20, "not the answer: {:?}", &answer[..length]);
        if !is_open(IpAddr::from(Ipv4Addr::from(address)))? {
            closed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn is_open(address: IpAddr) -> anyhow::Result<bool> {
    match TcpStream::connect_timeout(&SocketAddr::new(address, 443), PATIENCE) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        Err(error) if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => {
            Ok(false)
        }
        Err(error) => Err(error).with_context(|| format!("connect to {address}")),
    }
}
