//! Queries in datagrams: worker threads, each with an event loop, that share the listeners.
//!
//! A worker judges what it receives and sends on what is released, as much in one call as came in one; replies whose
//! addresses are open already leave with the others of the same round. Those that have to be learned first wait in a
//! task of the runtime. A reply may reach another worker than its query did ([`Exchanges`] is shared). Nothing here
//! blocks but the wait for events.

use std::collections::VecDeque;
use std::io;
use std::net::UdpSocket;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::mpsc;

use super::answers::{self, Answer};
use super::batch::Inbox;
use super::exchange::{Exchanges, Heard, Open, Sent, Ticket};
use super::message::set_id;
use super::proxy::{Proxy, Received, Released, Sorted};
use super::random::Random;
use super::raw::Datagram;
use super::sockets::News;
use super::upstream::{Failure, MAX_MESSAGE, Replied};
use crate::model::Protocol;

const STOP: u64 = 0;
const FIRST_LISTENER: u64 = 1;
const FIRST_SOURCE: u64 = 1 << 16;
/// Events of one round.
const EVENTS: usize = 16;
/// Calls at one socket before others have their turn.
const READS: usize = 4;
/// Queries are short; one that is longer than this is answered FORMERR.
const LONGEST_QUERY: usize = 4096;
/// Longest wait for events.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
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
    let exchanges = Arc::new(Exchanges::default());
    let (tell, ends) = mpsc::unbounded_channel();
    for number in 0..count {
        let worker = Worker::new(
            Arc::clone(proxy),
            Arc::clone(&listeners),
            Arc::clone(&exchanges),
            Arc::clone(&stop),
        )?;
        let tell = tell.clone();
        std::thread::Builder::new().name(format!("sluice-dns-{number}")).spawn(move || {
            // Nobody listens any more when the process ends.
            tell.send(worker.run()).ok();
        })?;
    }
    Ok(Workers { stop, ends, running: count })
}

/// Queries that are about to leave.
#[derive(Debug, Default)]
struct Asking {
    messages: Vec<u8>,
    /// With the place of its message.
    queries: Vec<(Sent, Range<usize>)>,
}

struct Worker {
    proxy: Arc<Proxy>,
    runtime: tokio::runtime::Handle,
    epoll: Epoll,
    listeners: Arc<[UdpSocket]>,
    stop: Arc<Stop>,
    exchanges: Arc<Exchanges>,
    /// In the order of their ends: every query may take equally long.
    deadlines: VecDeque<(Instant, Sent)>,
    random: Random,
    asking: Asking,
    /// Answers of this round.
    outbox: Vec<Answer>,
}

impl Worker {
    fn new(
        proxy: Arc<Proxy>,
        listeners: Arc<[UdpSocket]>,
        exchanges: Arc<Exchanges>,
        stop: Arc<Stop>,
    ) -> io::Result<Worker> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        epoll.add(stop.event.as_fd(), EpollEvent::new(edge, STOP))?;
        // One of the workers is enough for a datagram.
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE;
        for (token, listener) in (FIRST_LISTENER..).zip(listeners.iter()) {
            epoll.add(listener.as_fd(), EpollEvent::new(flags, token))?;
        }
        for (token, source) in (FIRST_SOURCE..).zip(proxy.sockets.sources()) {
            epoll.add(source, EpollEvent::new(flags, token))?;
        }
        Ok(Worker {
            proxy,
            runtime: tokio::runtime::Handle::current(),
            epoll,
            listeners,
            stop,
            exchanges,
            deadlines: VecDeque::new(),
            random: Random::new()?,
            asking: Asking::default(),
            outbox: Vec::new(),
        })
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let (mut queries, mut replies) = (Inbox::new(LONGEST_QUERY), Inbox::new(MAX_MESSAGE));
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
                    token if token >= FIRST_SOURCE => {
                        self.heard((token - FIRST_SOURCE) as usize, &mut replies)?;
                    }
                    token => self.received((token - FIRST_LISTENER) as usize, &mut queries)?,
                }
            }
            let now = Instant::now();
            self.expire(now);
            self.flush();
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
        // Rounded up: a deadline is not looked at before it is over.
        let wait = wait.map_or(LONGEST_WAIT, |wait| (wait + Duration::from_millis(1)).min(LONGEST_WAIT));
        EpollTimeout::try_from(wait).unwrap_or(EpollTimeout::ZERO)
    }

    fn received(&mut self, listener: usize, inbox: &mut Inbox) -> io::Result<()> {
        let listeners = Arc::clone(&self.listeners);
        let Some(socket) = listeners.get(listener) else { return Ok(()) };
        let now = Instant::now();
        for _ in 0..READS {
            let more = inbox.receive(socket, |datagram| self.query(&datagram, now))?;
            self.ask();
            if !more {
                break;
            }
        }
        Ok(())
    }

    fn query(&mut self, datagram: &Datagram<'_>, since: Instant) {
        let Datagram { from: client, to: server, message } = *datagram;
        let received = Received { message: message.to_vec(), client, server, protocol: Protocol::Udp, since };
        let (query, ruling) = match self.proxy.sort(&received) {
            Sorted::Done(None) => return,
            Sorted::Done(Some(answer)) => return self.outbox.push(Answer::new(&received, answer)),
            Sorted::Released(query, ruling) => (query, ruling),
        };
        let Some(permit) = self.proxy.queries.enter(client.ip()) else {
            let answer = self.proxy.overflow(&received, &query, ruling);
            return self.outbox.push(Answer::new(&received, answer));
        };
        let open = Box::new(Open { received, query, ruling, permit });
        let sockets = &self.proxy.sockets;
        let begun = self.exchanges.begin(open, &mut self.random, |port| sockets.is_own(port));
        let (sent, id) = match begun {
            Ok(begun) => begun,
            Err(open) => return self.failed(*open, &Failure::Io(io::ErrorKind::AddrInUse.into())),
        };
        let start = self.asking.messages.len();
        self.asking.messages.extend_from_slice(message);
        set_id(&mut self.asking.messages[start..], id);
        self.asking.queries.push((sent, start..self.asking.messages.len()));
        self.deadlines.push_back((since + self.proxy.options.upstream_timeout, sent));
    }

    /// Sends the queries that are about to leave.
    fn ask(&mut self) {
        let Asking { messages, queries } = std::mem::take(&mut self.asking);
        let datagrams: Vec<Datagram<'_>> = queries
            .iter()
            .map(|(Sent { ticket, .. }, place)| Datagram {
                from: ticket.from(),
                to: ticket.server,
                message: &messages[place.clone()],
            })
            .collect();
        let sockets = Arc::clone(&self.proxy.sockets);
        sockets.ask(&datagrams, &mut |index, error| {
            let Some(open) = self.exchanges.expire(queries[index].0) else { return };
            if error.raw_os_error() == Some(libc::EMSGSIZE) {
                // Longer than the way is wide: a connection carries it.
                return self.outbox.push(Answer::new(&open.received, open.query.truncation()));
            }
            self.failed(*open, &Failure::Io(error));
        });
        drop(datagrams);
        // Their room is used again.
        self.asking = Asking { messages, queries };
        self.asking.messages.clear();
        self.asking.queries.clear();
    }

    /// Something came to the ports that queries left from.
    fn heard(&mut self, source: usize, inbox: &mut Inbox) -> io::Result<()> {
        let sockets = Arc::clone(&self.proxy.sockets);
        for _ in 0..READS {
            if !sockets.hear(source, inbox, &mut |news| self.news(&news))? {
                break;
            }
        }
        Ok(())
    }

    fn news(&mut self, news: &News<'_>) {
        match news {
            News::Reply(Datagram { from, to, message }) => {
                let ticket = Ticket { client: to.ip(), port: to.port(), server: *from };
                match self.exchanges.hear(&ticket, message) {
                    Heard::Stray => self.proxy.counters.stray_replies.add(),
                    Heard::Malformed(open, fault) => self.failed(*open, &Failure::Malformed(fault)),
                    Heard::Reply(open, reply) => {
                        let mut message = message.to_vec();
                        set_id(&mut message, open.query.id);
                        self.release(*open, Replied { message, reply });
                    }
                }
            }
            News::Undelivered((from, to)) => {
                let ticket = Ticket { client: from.ip(), port: from.port(), server: *to };
                if let Some(open) = self.exchanges.fail(&ticket) {
                    self.failed(*open, &Failure::Io(io::ErrorKind::ConnectionRefused.into()));
                }
            }
        }
    }

    fn release(&mut self, open: Open, replied: Replied) {
        let Open { received, query, ruling, permit, .. } = open;
        match self.proxy.try_release(&received, &query, ruling, replied) {
            Released::Now(answer) => self.outbox.push(Answer::of_reply(&received, &query, answer)),
            Released::AfterLearning(held) => {
                let proxy = Arc::clone(&self.proxy);
                self.runtime.spawn(async move {
                    let answer = proxy.release(&received, &query, held).await;
                    proxy.send(&[Answer::of_reply(&received, &query, answer)]);
                    drop(permit);
                });
            }
        }
    }

    fn failed(&mut self, open: Open, failure: &Failure) {
        let answer = self.proxy.failed(&open.received, &open.query, open.ruling, failure);
        self.outbox.push(Answer::new(&open.received, answer));
    }

    /// Queries that no server answered in time.
    fn expire(&mut self, now: Instant) {
        while let Some((_, sent)) = self.deadlines.front().copied().filter(|(end, _)| *end <= now) {
            self.deadlines.pop_front();
            if let Some(open) = self.exchanges.expire(sent) {
                self.failed(*open, &Failure::Silence);
            }
        }
    }

    fn flush(&mut self) {
        self.proxy.send(&self.outbox);
        self.outbox.clear();
    }
}

impl Proxy {
    fn send(&self, answers: &[Answer]) {
        answers::send(&*self.sockets, answers, &mut |answer, error| {
            self.counters.lost_answers.add();
            tracing::debug!(%error, %answer, "not sent");
        });
    }
}
