//! Queries in datagrams: worker threads, each with an event loop, that share the listeners.
//!
//! One of them waits for datagrams at a time, the leader ([`Lead`]). A worker judges what it receives and sends on what is
//! released, as much in one call as came in one; replies whose addresses are open already leave with the others of the
//! same round. Those that have to be learned first wait in a task of the runtime. A reply may reach another worker than
//! its query did ([`Exchanges`] is shared). Nothing here blocks but the wait for events.

use std::io;
use std::net::UdpSocket;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::mpsc;

use super::answers::{self, Answer};
use super::batch::{BATCH, Inbox};
use super::exchange::{Exchanges, Heard, Open, Sent, Ticket};
use super::lead::{Lead, Leader};
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
/// Queries are short; one that is longer than this is answered FORMERR.
const LONGEST_QUERY: usize = 4096;
/// Longest wait for events.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// The same while the workers come to their end.
const LAST_WAIT: Duration = Duration::from_millis(20);
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
    /// Wakes the leader.
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
    let shared = Arc::new(Shared {
        lead: Lead::new(watched(proxy, &listeners, &stop)?),
        proxy: Arc::clone(proxy),
        runtime: tokio::runtime::Handle::current(),
        listeners,
        stop: Arc::clone(&stop),
        exchanges: Exchanges::new(proxy.options.upstream_timeout),
    });
    let (tell, ends) = mpsc::unbounded_channel();
    for number in 0..count {
        let worker = Worker {
            shared: Arc::clone(&shared),
            random: Random::new()?,
            asking: Asking::default(),
            outbox: Vec::new(),
        };
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

/// What all workers have in common.
struct Shared {
    proxy: Arc<Proxy>,
    runtime: tokio::runtime::Handle,
    lead: Lead,
    listeners: Vec<UdpSocket>,
    stop: Arc<Stop>,
    exchanges: Exchanges,
}

struct Worker {
    shared: Arc<Shared>,
    random: Random,
    asking: Asking,
    /// Answers of this round.
    outbox: Vec<Answer>,
}

fn watched(proxy: &Proxy, listeners: &[UdpSocket], stop: &Stop) -> io::Result<Epoll> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
    epoll.add(stop.event.as_fd(), EpollEvent::new(edge, STOP))?;
    for (token, listener) in (FIRST_LISTENER..).zip(listeners.iter()) {
        epoll.add(listener.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, token))?;
    }
    for (token, source) in (FIRST_SOURCE..).zip(proxy.sockets.sources()) {
        epoll.add(source, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
    }
    Ok(epoll)
}

impl Worker {
    fn run(mut self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let mut events = [EpollEvent::empty(); EVENTS];
        let (mut queries, mut replies) = (Inbox::new(LONGEST_QUERY), Inbox::new(MAX_MESSAGE));
        loop {
            let mut leader = shared.lead.take();
            let is_ending = shared.stop.told.load(Ordering::Acquire);
            let ready = leader.wait(&mut events, shared.patience(is_ending))?;
            let now = Instant::now();
            if is_ending {
                let is_quiet = ready == 0 && shared.exchanges.open() == 0;
                if is_quiet && leader.ending_for(now) > GRACE {
                    return Ok(());
                }
            }
            let mut leader = Some(leader);
            for event in &events[..ready] {
                match event.data() {
                    STOP => {}
                    token if token >= FIRST_SOURCE => {
                        self.heard((token - FIRST_SOURCE) as usize, &mut replies, &mut leader)?;
                    }
                    token => {
                        self.received((token - FIRST_LISTENER) as usize, &mut queries, &mut leader)?;
                    }
                }
                if leader.is_none() {
                    // The one after this sees what is still there.
                    break;
                }
            }
            while let Some(open) = shared.exchanges.overdue(now) {
                self.failed(*open, &Failure::Silence);
            }
            self.flush();
        }
    }

    fn received(
        &mut self,
        listener: usize,
        inbox: &mut Inbox,
        leader: &mut Option<Leader<'_>>,
    ) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let Some(socket) = shared.listeners.get(listener) else { return Ok(()) };
        let now = Instant::now();
        inbox.receive(socket, |datagrams| {
            hand_over(leader, datagrams.len());
            datagrams.iter().for_each(|datagram| self.query(datagram, now));
        })?;
        self.ask();
        Ok(())
    }

    fn query(&mut self, datagram: &Datagram<'_>, since: Instant) {
        let Datagram { from: client, to: server, message } = *datagram;
        let received = Received { message: message.to_vec(), client, server, protocol: Protocol::Udp, since };
        let (query, ruling) = match self.shared.proxy.sort(&received) {
            Sorted::Done(None) => return,
            Sorted::Done(Some(answer)) => return self.outbox.push(Answer::new(&received, answer)),
            Sorted::Released(query, ruling) => (query, ruling),
        };
        let Ok(permit) = self.shared.proxy.queries.enter(client.ip()) else {
            let answer = self.shared.proxy.overflow(&received, &query, ruling);
            return self.outbox.push(Answer::new(&received, answer));
        };
        let open = Box::new(Open { received, query, ruling, permit });
        let sockets = &self.shared.proxy.sockets;
        let begun = self.shared.exchanges.begin(open, &mut self.random, |port| sockets.is_own(port));
        let (sent, id) = match begun {
            Ok(begun) => begun,
            Err(open) => return self.failed(*open, &Failure::Io(io::ErrorKind::AddrInUse.into())),
        };
        let start = self.asking.messages.len();
        self.asking.messages.extend_from_slice(message);
        set_id(&mut self.asking.messages[start..], id);
        self.asking.queries.push((sent, start..self.asking.messages.len()));
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
        let sockets = Arc::clone(&self.shared.proxy.sockets);
        sockets.ask(&datagrams, &mut |index, error| {
            let Some(open) = self.shared.exchanges.expire(queries[index].0) else { return };
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
    fn heard(&mut self, source: usize, inbox: &mut Inbox, leader: &mut Option<Leader<'_>>) -> io::Result<()> {
        let sockets = Arc::clone(&self.shared.proxy.sockets);
        sockets.hear(source, inbox, &mut |news| match news {
            News::Replies(replies) => {
                hand_over(leader, replies.len());
                replies.iter().for_each(|reply| self.reply(reply));
            }
            News::Undelivered((from, to)) => {
                let ticket = Ticket { client: from.ip(), port: from.port(), server: to };
                if let Some(open) = self.shared.exchanges.fail(&ticket) {
                    self.failed(*open, &Failure::Io(io::ErrorKind::ConnectionRefused.into()));
                }
            }
        })?;
        Ok(())
    }

    fn reply(&mut self, Datagram { from, to, message }: &Datagram<'_>) {
        let ticket = Ticket { client: to.ip(), port: to.port(), server: *from };
        match self.shared.exchanges.hear(&ticket, message) {
            Heard::Stray => self.shared.proxy.counters.stray_replies.add(),
            Heard::Malformed(open, fault) => self.failed(*open, &Failure::Malformed(fault)),
            Heard::Reply(open, reply) => {
                let mut message = message.to_vec();
                set_id(&mut message, open.query.id);
                self.release(*open, Replied { message, reply });
            }
        }
    }

    fn release(&mut self, open: Open, replied: Replied) {
        let Open { received, query, ruling, permit, .. } = open;
        match self.shared.proxy.try_release(&received, &query, ruling, replied) {
            Released::Now(answer) => self.outbox.push(Answer::of_reply(&received, &query, answer)),
            Released::AfterLearning(held) => {
                let proxy = Arc::clone(&self.shared.proxy);
                self.shared.runtime.spawn(async move {
                    let answer = proxy.release(&received, &query, held).await;
                    proxy.send(&[Answer::of_reply(&received, &query, answer)]);
                    drop(permit);
                });
            }
        }
    }

    fn failed(&mut self, open: Open, failure: &Failure) {
        let answer = self.shared.proxy.failed(&open.received, &open.query, open.ruling, failure);
        self.outbox.push(Answer::new(&open.received, answer));
    }

    fn flush(&mut self) {
        self.shared.proxy.send(&self.outbox);
        self.outbox.clear();
    }
}

impl Shared {
    /// How long the next event may take.
    fn patience(&self, is_ending: bool) -> Duration {
        let longest =
            if is_ending { LAST_WAIT } else { LONGEST_WAIT.min(self.proxy.options.upstream_timeout / 4) };
        // Rounded up: a query is not looked at before its time is over.
        let next = self
            .exchanges
            .next_end()
            .map(|end| end.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        next.map_or(longest, |next| next.min(longest))
    }
}

/// There is more than one worker can do at once: the next one goes on waiting.
fn hand_over(leader: &mut Option<Leader<'_>>, datagrams: usize) {
    if datagrams == BATCH {
        *leader = None;
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
