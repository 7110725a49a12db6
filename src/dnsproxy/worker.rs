//! Queries in datagrams: worker threads, each with an event loop, that share the listeners.
//!
//! A worker judges what it receives and sends on what is released ([`Exchanges`]); replies whose addresses are
//! open already leave with the others of the same round. Those that have to be learned first wait in a task
//! of the runtime. Nothing here blocks but the wait for events.

use std::collections::VecDeque;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::mpsc;

use super::batch::{Datagram, Inbox, Outbox};
use super::exchange::{Exchanges, Open, Sent, Unsent};
use super::message::{Reply, Stray, set_id};
use super::proxy::{Proxy, Received, Released, Sorted};
use super::random::Random;
use super::upstream::{Failure, MAX_MESSAGE, Replied};
use crate::model::Protocol;

const STOP: u64 = 0;
const FIRST_LISTENER: u64 = 1;
const FIRST_SOCKET: u64 = 1 << 16;
/// Events of one round.
const EVENTS: usize = 128;
/// Rounds of a listener before replies have their turn.
const READS: usize = 4;
/// How often old sockets are looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// What is on its way to a listener when another process takes over has arrived after this.
const GRACE: Duration = Duration::from_millis(300);

/// The threads that serve datagrams.
#[derive(Debug)]
pub struct Workers {
    stop: Arc<Stop>,
    ends: mpsc::UnboundedReceiver<io::Result<()>>,
    running: usize,
}

#[derive(Debug)]
struct Stop {
    told: AtomicBool,
    /// Wakes every worker.
    event: EventFd,
}

impl Workers {
    /// Waits until one ends, which only a failure makes it do.
    pub async fn failed(&mut self) -> io::Error {
        let ended = self.ends.recv().await;
        self.running = self.running.saturating_sub(1);
        match ended {
            Some(Err(error)) => error,
            _ => io::Error::other("a worker ended"),
        }
    }

    /// Tells them to finish what has begun, and waits for that: it takes as long as a silent server may.
    pub async fn drain(mut self) {
        self.stop.told.store(true, Ordering::Release);
        self.stop.event.write(1).ok();
        while self.running > 0 && self.ends.recv().await.is_some() {
            self.running -= 1;
        }
    }
}

/// Starts `count` workers on these listeners. Called inside a runtime.
pub(super) fn start(proxy: &Arc<Proxy>, listeners: Vec<UdpSocket>, count: usize) -> io::Result<Workers> {
    let stop = Arc::new(Stop {
        told: AtomicBool::new(false),
        event: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
    });
    let listeners: Arc<[UdpSocket]> = listeners.into();
    let (tell, ends) = mpsc::unbounded_channel();
    for number in 0..count {
        let worker = Worker::new(Arc::clone(proxy), Arc::clone(&listeners), Arc::clone(&stop))?;
        let tell = tell.clone();
        std::thread::Builder::new().name(format!("sluice-dns-{number}")).spawn(move || {
            // Nobody listens any more when the process ends.
            tell.send(worker.run()).ok();
        })?;
    }
    Ok(Workers { stop, ends, running: count })
}

struct Worker {
    proxy: Arc<Proxy>,
    runtime: tokio::runtime::Handle,
    epoll: Epoll,
    listeners: Arc<[UdpSocket]>,
    stop: Arc<Stop>,
    exchanges: Exchanges,
    /// In the order of their ends: every query may take equally long.
    deadlines: VecDeque<(Instant, Sent)>,
    random: Random,
    outbox: Outbox,
    reply: Vec<u8>,
}

impl Worker {
    fn new(proxy: Arc<Proxy>, listeners: Arc<[UdpSocket]>, stop: Arc<Stop>) -> io::Result<Worker> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        epoll.add(stop.event.as_fd(), EpollEvent::new(edge, STOP))?;
        for (token, listener) in (FIRST_LISTENER..).zip(listeners.iter()) {
            // One of the workers is enough for a datagram.
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE;
            epoll.add(listener.as_fd(), EpollEvent::new(flags, token))?;
        }
        Ok(Worker {
            proxy,
            runtime: tokio::runtime::Handle::current(),
            epoll,
            listeners,
            stop,
            exchanges: Exchanges::default(),
            deadlines: VecDeque::new(),
            random: Random::new()?,
            outbox: Outbox::default(),
            reply: vec![0; MAX_MESSAGE],
        })
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let mut inbox = Inbox::new();
        let mut swept = Instant::now();
        let mut stopping: Option<Instant> = None;
        loop {
            let patience = self.patience(stopping);
            let ready = match self.epoll.wait(&mut events, patience) {
                Ok(ready) => ready,
                Err(nix::Error::EINTR) => 0,
                Err(error) => return Err(error.into()),
            };
            for event in &events[..ready] {
                match event.data() {
                    STOP => {}
                    token if token >= FIRST_SOCKET => self.replied((token - FIRST_SOCKET) as usize),
                    token => self.received((token - FIRST_LISTENER) as usize, &mut inbox)?,
                }
            }
            let now = Instant::now();
            self.expire(now);
            self.flush();
            let late = self.exchanges.renew(now);
            self.proxy.counters.stray_replies.add_many(late);
            if now.duration_since(swept) > SWEEP {
                self.exchanges.sweep(now);
                swept = now;
            }
            if self.stop.told.load(Ordering::Acquire) {
                let since = *stopping.get_or_insert(now);
                let is_quiet = ready == 0 && self.exchanges.open() == 0;
                if now.duration_since(since) > GRACE && is_quiet {
                    return Ok(());
                }
            }
        }
    }

    /// How long the next event may take.
    fn patience(&mut self, stopping: Option<Instant>) -> EpollTimeout {
        while self.deadlines.front().is_some_and(|(_, sent)| !self.exchanges.is_open(*sent)) {
            self.deadlines.pop_front();
        }
        let end = self.deadlines.front().map(|(end, _)| end.saturating_duration_since(Instant::now()));
        let wait = if stopping.is_some() { Some(Duration::from_millis(20)) } else { end };
        // Rounded up: a deadline is not looked at before it is over. A sweep may be due.
        let wait = wait.map_or(SWEEP, |wait| (wait + Duration::from_millis(1)).min(SWEEP));
        EpollTimeout::try_from(wait).unwrap_or(EpollTimeout::ZERO)
    }

    fn received(&mut self, listener: usize, inbox: &mut Inbox) -> io::Result<()> {
        let listeners = Arc::clone(&self.listeners);
        let Some(socket) = listeners.get(listener) else { return Ok(()) };
        let now = Instant::now();
        for _ in 0..READS {
            if !inbox.receive(socket, |datagram| self.query(&datagram, now))? {
                break;
            }
        }
        Ok(())
    }

    fn query(&mut self, datagram: &Datagram<'_>, since: Instant) {
        let Datagram { client, server, .. } = *datagram;
        let received =
            Received { message: datagram.message.to_vec(), client, server, protocol: Protocol::Udp, since };
        let (query, ruling) = match self.proxy.sort(&received) {
            Sorted::Done(None) => return,
            Sorted::Done(Some(answer)) => return self.outbox.put(server, client, answer),
            Sorted::Released(query, ruling) => (query, ruling),
        };
        let Some(permit) = self.proxy.queries.enter(client.ip()) else {
            let answer = self.proxy.overflow(&received, &query, ruling);
            return self.outbox.put(server, client, answer);
        };
        let open = Open { received, query, ruling, id: 0, permit };
        let sockets = Arc::clone(&self.proxy.sockets);
        let make = |client, server| sockets.upstream_udp(client, server);
        match self.exchanges.send(open, &mut self.random, &self.epoll, FIRST_SOCKET, make) {
            Ok(sent) => self.deadlines.push_back((since + self.proxy.options.upstream_timeout, sent)),
            Err(Unsent { open, error }) => self.failed(*open, &Failure::Io(error)),
        }
    }

    /// Something came to a socket that asked, or an error.
    fn replied(&mut self, place: usize) {
        loop {
            let Some((socket, open)) = self.exchanges.at(place) else { return };
            let received = match socket.recv(&mut self.reply) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    if let Some(open) = self.exchanges.abandon(place) {
                        self.failed(open, &Failure::Io(error));
                    }
                    return;
                }
            };
            let message = &self.reply[..received];
            match open.map(|open| Reply::parse(&open.query, open.id, message)) {
                None | Some(Err(Stray::Mismatch)) => self.proxy.counters.stray_replies.add(),
                Some(Err(malformed)) => {
                    if let Some(open) = self.exchanges.abandon(place) {
                        self.failed(open, &Failure::Malformed(malformed));
                    }
                    return;
                }
                Some(Ok(reply)) => {
                    let mut message = message.to_vec();
                    if let Some(open) = self.exchanges.finish(place) {
                        set_id(&mut message, open.query.id);
                        self.release(open, Replied { message, reply });
                    }
                    return;
                }
            }
        }
    }

    fn release(&mut self, open: Open, replied: Replied) {
        let Open { received, query, ruling, permit, .. } = open;
        match self.proxy.try_release(&received, &query, ruling, replied) {
            Released::Now(answer) => self.outbox.put(received.server, received.client, answer),
            Released::AfterLearning(held) => {
                let proxy = Arc::clone(&self.proxy);
                self.runtime.spawn(async move {
                    let answer = proxy.release(&received, &query, held).await;
                    let sent = proxy.sockets.answer_socket(received.server);
                    if sent.and_then(|socket| socket.0.send_to(&answer, received.client)).is_err() {
                        proxy.counters.lost_answers.add();
                    }
                    drop(permit);
                });
            }
        }
    }

    fn failed(&mut self, open: Open, failure: &Failure) {
        let answer = self.proxy.failed(&open.received, &open.query, open.ruling, failure);
        self.outbox.put(open.received.server, open.received.client, answer);
    }

    /// Queries that no server answered in time.
    fn expire(&mut self, now: Instant) {
        while let Some((_, sent)) = self.deadlines.front().copied().filter(|(end, _)| *end <= now) {
            self.deadlines.pop_front();
            if let Some(open) = self.exchanges.expire(sent) {
                self.failed(open, &Failure::Silence);
            }
        }
    }

    fn flush(&mut self) {
        let proxy = &self.proxy;
        self.outbox.flush(
            |server| proxy.sockets.answer_socket(server),
            |client, error| {
                proxy.counters.lost_answers.add();
                tracing::debug!(%error, %client, "an answer was not sent");
            },
        );
    }
}
