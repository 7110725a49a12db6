//! Open queries of one worker and the sockets that carry them.
//!
//! Contract: every query has a port and an id of its own, both drawn for it, and nothing that was sent to another
//! query's port reaches it. Making a socket costs more than a query, so one that has its reply gets another port
//! ([`draw_port`]) when the worker has sent its answers, and waits with it for the next query of the same client to the
//! same server; which of those that wait is taken is drawn, too. One whose query found no reply is closed: what may
//! still come has nowhere to go.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use super::limits::Permit;
use super::message::{Query, set_id};
use super::outside::Ruling;
use super::proxy::Received;
use super::random::Random;
use super::sockets::draw_port;

/// Age at which a socket gets no further query.
const LONGEST_LIFE: Duration = Duration::from_secs(5);
/// Sockets without a query.
const MOST_IDLE: usize = 1024;

/// Whose queries a socket may carry.
pub(super) type Lane = (IpAddr, SocketAddr);

/// A query that waits for its reply.
#[derive(Debug)]
pub(super) struct Open {
    pub received: Received,
    pub query: Query,
    pub ruling: Ruling,
    /// Under which it went to the server.
    pub id: u16,
    pub permit: Permit,
}

#[derive(Debug)]
enum State {
    /// Nothing ever left from its port.
    Fresh,
    Open(Box<Open>),
    /// It has its reply, and the port of the query still.
    Used,
}

#[derive(Debug)]
struct Carrier {
    socket: UdpSocket,
    lane: Lane,
    /// Where the socket is connected to.
    peer: SocketAddr,
    until: Instant,
    state: State,
    /// Tells its queries apart in the list of deadlines.
    serial: u64,
}

/// See the module. Sockets are known by their places, which are also what epoll tells.
#[derive(Debug, Default)]
pub(super) struct Exchanges {
    carriers: Vec<Option<Carrier>>,
    free: Vec<usize>,
    /// Fresh ones.
    idle: HashMap<Lane, Vec<usize>>,
    idle_count: usize,
    used: Vec<usize>,
    open: usize,
    serial: u64,
}

/// A query that could not be sent.
#[derive(Debug)]
pub(super) struct Unsent {
    pub open: Box<Open>,
    pub error: io::Error,
}

/// A query that was sent: its place, and what tells it from others there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub place: usize,
    serial: u64,
}

impl Exchanges {
    /// Queries that wait.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// Sends a query. On failure it comes back.
    pub(super) fn send(
        &mut self,
        mut open: Open,
        random: &mut Random,
        epoll: &Epoll,
        first_token: u64,
        make: impl Fn(IpAddr, SocketAddr) -> io::Result<UdpSocket>,
    ) -> Result<Sent, Unsent> {
        let lane = (open.received.client.ip(), open.received.server);
        let now = open.received.since;
        loop {
            let (place, is_new) = match self.take_idle(lane, now, random) {
                Some(place) => (place, false),
                None => match self.add(lane, now, epoll, first_token, &make) {
                    Ok(place) => (place, true),
                    Err(error) => return Err(Unsent { open: Box::new(open), error }),
                },
            };
            let Some(carrier) = self.carriers.get_mut(place).and_then(Option::as_mut) else { continue };
            open.id = random.next();
            let client_id = open.query.id;
            set_id(&mut open.received.message, open.id);
            let sent = carrier.socket.send(&open.received.message);
            set_id(&mut open.received.message, client_id);
            match sent {
                Ok(_) => {
                    self.serial += 1;
                    carrier.serial = self.serial;
                    carrier.state = State::Open(Box::new(open));
                    self.open += 1;
                    return Ok(Sent { place, serial: self.serial });
                }
                Err(error) => {
                    self.close(place);
                    // An old socket may have an error of old: a new one knows better.
                    if is_new {
                        return Err(Unsent { open: Box::new(open), error });
                    }
                }
            }
        }
    }

    fn take_idle(&mut self, lane: Lane, now: Instant, random: &mut Random) -> Option<usize> {
        loop {
            let places = self.idle.get_mut(&lane)?;
            if places.is_empty() {
                return None;
            }
            let place = places.swap_remove(usize::from(random.next()) % places.len());
            self.idle_count -= 1;
            match self.carriers.get(place).and_then(Option::as_ref) {
                Some(carrier) if carrier.until > now => return Some(place),
                _ => self.close(place),
            }
        }
    }

    fn add(
        &mut self,
        lane: Lane,
        now: Instant,
        epoll: &Epoll,
        first_token: u64,
        make: impl Fn(IpAddr, SocketAddr) -> io::Result<UdpSocket>,
    ) -> io::Result<usize> {
        let socket = make(lane.0, lane.1)?;
        let peer = socket.peer_addr()?;
        let place = self.free.pop().unwrap_or_else(|| {
            self.carriers.push(None);
            self.carriers.len() - 1
        });
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, first_token + place as u64);
        if let Err(error) = epoll.add(socket.as_fd(), event) {
            self.free.push(place);
            return Err(error.into());
        }
        self.carriers[place] =
            Some(Carrier { socket, lane, peer, until: now + LONGEST_LIFE, state: State::Fresh, serial: 0 });
        Ok(place)
    }

    /// The socket of a place, and the query that waits there.
    pub(super) fn at(&self, place: usize) -> Option<(&UdpSocket, Option<&Open>)> {
        let carrier = self.carriers.get(place)?.as_ref()?;
        let open = match &carrier.state {
            State::Open(open) => Some(&**open),
            State::Fresh | State::Used => None,
        };
        Some((&carrier.socket, open))
    }

    /// The query has its reply; the socket may carry another one after [`Exchanges::renew`].
    pub(super) fn finish(&mut self, place: usize) -> Option<Open> {
        let open = self.take_open(place)?;
        self.used.push(place);
        Some(open)
    }

    /// The query has no reply; its socket goes.
    pub(super) fn abandon(&mut self, place: usize) -> Option<Open> {
        let open = self.take_open(place)?;
        self.close(place);
        Some(open)
    }

    fn take_open(&mut self, place: usize) -> Option<Open> {
        let carrier = self.carriers.get_mut(place)?.as_mut()?;
        match std::mem::replace(&mut carrier.state, State::Used) {
            State::Open(open) => {
                self.open -= 1;
                Some(*open)
            }
            other => {
                carrier.state = other;
                None
            }
        }
    }

    /// Gives sockets whose query has its reply another port. Says how much had come to their old ones.
    pub(super) fn renew(&mut self, now: Instant) -> u64 {
        let mut late = 0;
        while let Some(place) = self.used.pop() {
            let Some(carrier) = self.carriers.get_mut(place).and_then(Option::as_mut) else { continue };
            if carrier.until <= now || self.idle_count >= MOST_IDLE {
                self.close(place);
                continue;
            }
            match draw_port(&carrier.socket, carrier.peer) {
                Ok(count) => {
                    late += count;
                    carrier.state = State::Fresh;
                    self.idle.entry(carrier.lane).or_default().push(place);
                    self.idle_count += 1;
                }
                Err(_) => self.close(place),
            }
        }
        late
    }

    /// [`Exchanges::abandon`], if this very query still waits.
    pub(super) fn expire(&mut self, sent: Sent) -> Option<Open> {
        self.is_open(sent).then(|| self.abandon(sent.place)).flatten()
    }

    pub(super) fn is_open(&self, sent: Sent) -> bool {
        let carrier = self.carriers.get(sent.place).and_then(Option::as_ref);
        carrier
            .is_some_and(|carrier| matches!(carrier.state, State::Open(_)) && carrier.serial == sent.serial)
    }

    /// Closes sockets that are old and have no query, so that nothing stays of a client that is gone.
    pub(super) fn sweep(&mut self, now: Instant) {
        let carriers = &mut self.carriers;
        let (free, idle_count) = (&mut self.free, &mut self.idle_count);
        self.idle.retain(|_, places| {
            places.retain(|place| {
                let keep = carriers[*place].as_ref().is_some_and(|carrier| carrier.until > now);
                if !keep {
                    carriers[*place] = None;
                    free.push(*place);
                    *idle_count -= 1;
                }
                keep
            });
            !places.is_empty()
        });
    }

    /// Closing takes a socket out of the epoll set.
    fn close(&mut self, place: usize) {
        if let Some(carrier) = self.carriers.get_mut(place)
            && carrier.take().is_some()
        {
            self.free.push(place);
        }
    }
}
