//! Open queries, and where their replies are expected.
//!
//! Contract: every query has a port and an id of its own, both drawn for it. A reply counts only if it came to that port
//! from the server that was asked, with that id, and answers the question; anything else finds no query. What a query
//! holds here goes with its end: its reply, its failure or its time. Every query may take equally long, so the order in
//! which they begin is that of their ends.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use parking_lot::Mutex;

use super::message::{Query, Reply, Stray};
use super::outside::Ruling;
use super::proxy::Received;
use super::random::Random;
use crate::admission::Permit;

/// Ports below are other services', and some firewalls let no query leave from them.
const FIRST_PORT: u16 = 1024;
/// Draws after which no port is taken to be free. Of the few thousand that a process has (an eighth of all), a client
/// with the usual limit has a tenth in use at most.
const DRAWS: usize = 4096;
/// Threads seldom wait for each other.
const SHARDS: usize = 16;

/// A query that waits for its reply.
#[derive(Debug)]
pub(super) struct Open {
    pub received: Received,
    pub query: Query,
    pub ruling: Ruling,
    pub permit: Permit,
}

/// Where a query's reply goes, and whom it has to be from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ticket {
    pub client: IpAddr,
    pub port: u16,
    pub server: SocketAddr,
}

impl Ticket {
    /// Where the query leaves from.
    pub(super) fn from(&self) -> SocketAddr {
        SocketAddr::new(self.client, self.port)
    }
}

/// A query that was sent: its ticket, and what tells it from a later one that drew the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub ticket: Ticket,
    serial: u64,
}

/// What a message from a server was.
#[derive(Debug)]
pub(super) enum Heard {
    /// Nobody's.
    Stray,
    Reply(Box<Open>, Reply),
    /// The reply, but not one that can be read.
    Malformed(Box<Open>, Stray),
}

#[derive(Debug)]
struct Waiting {
    open: Box<Open>,
    /// Under which it went to the server.
    id: u16,
    serial: u64,
}

/// See the module. Shared by all workers: a reply may reach another one than its query did.
#[derive(Debug)]
pub(super) struct Exchanges {
    shards: [Mutex<HashMap<Ticket, Waiting>>; SHARDS],
    count: AtomicUsize,
    serial: AtomicU64,
    ends: Mutex<VecDeque<(Instant, Sent)>>,
    timeout: Duration,
}

impl Exchanges {
    /// For queries that wait so long.
    pub(super) fn new(timeout: Duration) -> Exchanges {
        Exchanges {
            shards: Default::default(),
            count: AtomicUsize::new(0),
            serial: AtomicU64::new(0),
            ends: Mutex::default(),
            timeout,
        }
    }

    /// Queries that wait.
    pub(super) fn open(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    fn shard(&self, ticket: &Ticket) -> &Mutex<HashMap<Ticket, Waiting>> {
        &self.shards[usize::from(ticket.port) % SHARDS]
    }

    /// Draws a port among those that may be used, and an id. The query is to leave from the ticket's port, under the id.
    /// Where no port is free it comes back.
    pub(super) fn begin(
        &self,
        open: Box<Open>,
        random: &mut Random,
        may_use: impl Fn(u16) -> bool,
    ) -> Result<(Sent, u16), Box<Open>> {
        let (client, server) = (open.received.client.ip(), open.received.server);
        let end = open.received.since + self.timeout;
        for _ in 0..DRAWS {
            let port = random.next();
            if port < FIRST_PORT || !may_use(port) {
                continue;
            }
            let ticket = Ticket { client, port, server };
            if let Entry::Vacant(place) = self.shard(&ticket).lock().entry(ticket) {
                let (id, serial) = (random.next(), self.serial.fetch_add(1, Ordering::Relaxed));
                place.insert(Waiting { open, id, serial });
                self.count.fetch_add(1, Ordering::AcqRel);
                let sent = Sent { ticket, serial };
                self.ends.lock().push_back((end, sent));
                return Ok((sent, id));
            }
        }
        Err(open)
    }

    /// Something came to a port from somebody.
    pub(super) fn hear(&self, ticket: &Ticket, message: &[u8]) -> Heard {
        let mut shard = self.shard(ticket).lock();
        let Entry::Occupied(place) = shard.entry(*ticket) else { return Heard::Stray };
        let Waiting { open, id, .. } = place.get();
        let parsed = Reply::parse(&open.query, *id, message);
        if parsed == Err(Stray::Mismatch) {
            return Heard::Stray;
        }
        let open = place.remove().open;
        self.count.fetch_sub(1, Ordering::AcqRel);
        match parsed {
            Ok(reply) => Heard::Reply(open, reply),
            Err(malformed) => Heard::Malformed(open, malformed),
        }
    }

    /// The query that waits under a ticket has failed.
    pub(super) fn fail(&self, ticket: &Ticket) -> Option<Box<Open>> {
        self.end(ticket, |_| true)
    }

    /// [`Exchanges::fail`], if this very query still waits.
    pub(super) fn expire(&self, sent: Sent) -> Option<Box<Open>> {
        self.end(&sent.ticket, |waiting| waiting.serial == sent.serial)
    }

    fn end(&self, ticket: &Ticket, is_it: impl Fn(&Waiting) -> bool) -> Option<Box<Open>> {
        let mut shard = self.shard(ticket).lock();
        let Entry::Occupied(place) = shard.entry(*ticket) else { return None };
        if !is_it(place.get()) {
            return None;
        }
        let waiting = place.remove();
        self.count.fetch_sub(1, Ordering::AcqRel);
        Some(waiting.open)
    }

    /// When the time of a query is over that waits now.
    pub(super) fn next_end(&self) -> Option<Instant> {
        let mut ends = self.ends.lock();
        while ends.front().is_some_and(|(_, sent)| !self.is_open(*sent)) {
            ends.pop_front();
        }
        ends.front().map(|(end, _)| *end)
    }

    /// Takes a query whose time is over.
    pub(super) fn overdue(&self, now: Instant) -> Option<Box<Open>> {
        let mut ends = self.ends.lock();
        while let Some((_, sent)) = ends.pop_front_if(|(end, _)| *end <= now) {
            if let Some(open) = self.expire(sent) {
                return Some(open);
            }
        }
        None
    }

    fn is_open(&self, sent: Sent) -> bool {
        let shard = self.shard(&sent.ticket).lock();
        shard.get(&sent.ticket).is_some_and(|waiting| waiting.serial == sent.serial)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::admission::{Limiter, Most};
    use crate::dnsproxy::outside::Decision;
    use crate::model::{Direction, Identity, Protocol};

    fn open(limiter: &Arc<Limiter>) -> Box<Open> {
        let message = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01".to_vec();
        let query = Query::parse(&message).unwrap();
        let client: SocketAddr = "10.0.0.1:40000".parse().unwrap();
        let server = "10.0.0.2:53".parse().unwrap();
        let received = Received { message, client, server, protocol: Protocol::Udp, since: Instant::now() };
        let ruling = Ruling {
            decision: Decision::Release,
            direction: Direction::Egress,
            rules: [].into(),
            client_identity: Identity(300),
            server_identity: Identity(301),
        };
        Box::new(Open { received, query, ruling, permit: limiter.enter(client.ip()).unwrap() })
    }

    /// It waited for ever for a port that nobody gave back.
    #[test]
    fn a_client_without_a_free_port_is_told_so() {
        let limiter = Limiter::new(Most { of_one: 10, of_all: 10 });
        let (exchanges, mut random) = (Exchanges::new(Duration::from_secs(4)), Random::new().unwrap());
        let few = |port: u16| port >= 65_000;
        let (sent, _) = exchanges.begin(open(&limiter), &mut random, few).unwrap();
        assert!(few(sent.ticket.port) && exchanges.is_open(sent));
        assert!(exchanges.begin(open(&limiter), &mut random, |_| false).is_err());
        assert!(exchanges.expire(sent).is_some() && exchanges.expire(sent).is_none());
        assert_eq!(exchanges.open(), 0);
    }
}
