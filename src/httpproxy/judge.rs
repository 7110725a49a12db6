//! Who decides: the newest snapshot, and who the addresses are at this moment.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};

use super::Counters;
use super::policy::{ConnectionPolicy, SidePolicy};
use crate::model::{Direction, Identity, Protocol};
use crate::policy::engine::{L4Flow, L7Policy, PeerView};
use crate::policy::l7::snapshot::Snapshot;
use crate::policy::l7::{HeaderValue, L7Rules};

/// An address keeps its identity so long before it is looked up again on a connection.
const IDENTITY_LIFE: Duration = Duration::from_millis(50);
/// Compiled sides that are remembered by who meets whom: the world has many addresses.
const MOST_SIDES: usize = 65_536;

/// Gives the policy of connections.
pub trait Judge: Send + Sync + 'static {
    /// What a connection is under now. `server` is where the client wants to go, after Service translation.
    fn policy(&self, client: SocketAddr, server: SocketAddr) -> Judged;

    /// `judged` still holds, so that it may be used for another request.
    fn is_current(&self, judged: &Judged) -> bool;
}

/// A policy, and what it rests on.
#[derive(Clone, Debug)]
pub struct Judged {
    pub policy: ConnectionPolicy,
    /// Grows with every new state of the rules.
    pub generation: u64,
    pub at: Instant,
}

/// Gives the newest snapshot, read from its document if need be: one that is not behind the kernel.
pub type Newest = dyn Fn() -> Arc<Snapshot> + Send + Sync;
/// Looks an address up. Fails closed: an address that cannot be looked up is unknown.
pub type Lookup = dyn Fn(IpAddr) -> PeerView + Send + Sync;
/// Looks the server of a connection up, given the client.
pub type ServerLookup = dyn Fn(SocketAddr, SocketAddr) -> PeerView + Send + Sync;

type Side = (Identity, Direction, PeerView, u16);

/// Judges by the feed.
pub struct SnapshotJudge {
    feed: Arc<ArcSwap<Snapshot>>,
    newest: Box<Newest>,
    lookup: Box<Lookup>,
    server_lookup: Box<ServerLookup>,
    counters: Arc<Counters>,
    generation: AtomicU64,
    /// Address of the snapshot that `compiled` keeps.
    known: AtomicUsize,
    compiled: Mutex<Compiled>,
}

/// Sides compiled for one snapshot, and by their rules those of the two before: what did not change is
/// not compiled again.
struct Compiled {
    /// Kept, so that no later snapshot can have its address.
    snapshot: Arc<Snapshot>,
    sides: HashMap<Side, Arc<SidePolicy>>,
    sets: Vec<(L7Policy, Arc<SidePolicy>)>,
    before: Vec<(L7Policy, Arc<SidePolicy>)>,
    /// The same of the one before that: a change is two documents, and between them there may have been no connection.
    long_before: Vec<(L7Policy, Arc<SidePolicy>)>,
}

impl std::fmt::Debug for SnapshotJudge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotJudge").field("revision", &self.feed.load().revision).finish_non_exhaustive()
    }
}

impl SnapshotJudge {
    /// `feed` is what `newest` gave last.
    pub fn new(
        feed: Arc<ArcSwap<Snapshot>>,
        newest: impl Fn() -> Arc<Snapshot> + Send + Sync + 'static,
        lookup: impl Fn(IpAddr) -> PeerView + Send + Sync + 'static,
        server_lookup: impl Fn(SocketAddr, SocketAddr) -> PeerView + Send + Sync + 'static,
        counters: Arc<Counters>,
    ) -> SnapshotJudge {
        let compiled = Compiled {
            snapshot: feed.load_full(),
            sides: HashMap::new(),
            sets: Vec::new(),
            before: Vec::new(),
            long_before: Vec::new(),
        };
        let known = AtomicUsize::new(Arc::as_ptr(&compiled.snapshot) as usize);
        let (lookup, server_lookup) = (Box::new(lookup), Box::new(server_lookup));
        let (newest, generation) = (Box::new(newest), AtomicU64::new(0));
        let compiled = Mutex::new(compiled);
        SnapshotJudge { feed, newest, lookup, server_lookup, counters, generation, known, compiled }
    }

    /// The newest snapshot and its number; the tables are those for it.
    fn current(&self) -> (u64, Arc<Snapshot>) {
        let newest = (self.newest)();
        let mut compiled = self.compiled.lock();
        if !Arc::ptr_eq(&newest, &compiled.snapshot) {
            compiled.snapshot = newest;
            compiled.sides.clear();
            compiled.grow_old();
            self.generation.fetch_add(1, Ordering::Release);
            self.known.store(Arc::as_ptr(&compiled.snapshot) as usize, Ordering::Release);
        }
        (self.generation.load(Ordering::Acquire), Arc::clone(&compiled.snapshot))
    }

    /// The tables, if they are still those of this snapshot.
    fn tables(&self, snapshot: &Arc<Snapshot>) -> Option<MutexGuard<'_, Compiled>> {
        let compiled = self.compiled.lock();
        Arc::ptr_eq(snapshot, &compiled.snapshot).then_some(compiled)
    }

    /// One side of a connection. Rules are compiled while nobody waits for the tables: a large set takes its time,
    /// and two threads that need it may both make it.
    fn side(&self, snapshot: &Arc<Snapshot>, key: Side) -> Arc<SidePolicy> {
        if let Some(side) = self.tables(snapshot).and_then(|tables| tables.sides.get(&key).cloned()) {
            return side;
        }
        let (subject, direction, peer, port) = key;
        let Some(policy) =
            snapshot.policy(subject, direction, peer, L4Flow { protocol: Protocol::Tcp, port })
        else {
            let side = Arc::new(SidePolicy::open());
            if let Some(mut tables) = self.tables(snapshot) {
                tables.remember(key, &side);
            }
            return side;
        };
        let known = self.tables(snapshot).and_then(|tables| tables.known(&policy));
        let side = known.unwrap_or_else(|| {
            let secrets =
                |namespace: &str, name: &str, key: Option<&str>| snapshot.secret(namespace, name, key);
            Arc::new(SidePolicy::compile(&policy, &secrets).unwrap_or_else(|error| {
                tracing::error!(%error, "HTTP rules are not usable: nothing passes");
                self.counters.rules_unusable.one();
                SidePolicy::closed(&policy)
            }))
        });
        // For another snapshot by now: it serves this connection, which is asked about again.
        match self.tables(snapshot) {
            Some(mut tables) => tables.keep(key, policy, side),
            None => side,
        }
    }

    /// Who an address is: a local pod by the snapshot, which knows it together with its rules; others by
    /// the kernel's tables.
    fn peer(snapshot: &Snapshot, address: IpAddr, view: PeerView) -> PeerView {
        snapshot.local(address).map_or(view, |local| PeerView { identity: local.identity, ..view })
    }
}

impl Compiled {
    /// There is another snapshot.
    fn grow_old(&mut self) {
        self.long_before = std::mem::take(&mut self.before);
        self.before = std::mem::take(&mut self.sets);
    }

    /// The same rules, compiled for this snapshot or the two before.
    fn known(&self, policy: &L7Policy) -> Option<Arc<SidePolicy>> {
        // Values of Secrets are compiled in, and may have changed though the rules have not.
        let refers = policy.rules.iter().filter_map(|(_, l7)| l7.as_deref()).any(refers_to_secrets);
        let before = self.before.iter().chain(&self.long_before).filter(|_| !refers);
        let same = self.sets.iter().chain(before).find(|(known, _)| known == policy);
        same.map(|(_, side)| Arc::clone(side))
    }

    /// Keeps what was compiled, unless another thread was first.
    fn keep(&mut self, key: Side, policy: L7Policy, compiled: Arc<SidePolicy>) -> Arc<SidePolicy> {
        let side = match self.sets.iter().find(|(known, _)| *known == policy) {
            Some((_, first)) => Arc::clone(first),
            None => {
                self.sets.push((policy, Arc::clone(&compiled)));
                compiled
            }
        };
        self.remember(key, &side);
        side
    }

    fn remember(&mut self, key: Side, side: &Arc<SidePolicy>) {
        if self.sides.len() >= MOST_SIDES {
            self.sides.clear();
        }
        self.sides.insert(key, Arc::clone(side));
    }
}

fn refers_to_secrets(rules: &L7Rules) -> bool {
    let L7Rules::Http(rules) = rules else { return false };
    rules
        .iter()
        .flat_map(|rule| &rule.headers)
        .any(|header| matches!(header.value, HeaderValue::Secret { .. }))
}

impl Judge for SnapshotJudge {
    fn policy(&self, client: SocketAddr, server: SocketAddr) -> Judged {
        let (generation, snapshot) = self.current();
        let (from, to) = (client.ip().to_canonical(), server.ip().to_canonical());
        let view = (self.server_lookup)(client, server);
        let destination = Self::peer(&snapshot, to, view);
        let source = Self::peer(&snapshot, from, (self.lookup)(from));
        let flow = L4Flow { protocol: Protocol::Tcp, port: server.port() };
        let side = |subject, direction, peer| match snapshot.subject(subject, direction, flow) {
            Some(subject) => self.side(&snapshot, (subject, direction, peer, server.port())),
            None => Arc::new(SidePolicy::open()),
        };
        let egress = side(from, Direction::Egress, destination);
        let ingress = side(to, Direction::Ingress, source);
        let policy = ConnectionPolicy {
            client_identity: source.identity,
            server_identity: destination.identity,
            egress,
            ingress,
        };
        Judged { policy, generation, at: Instant::now() }
    }

    fn is_current(&self, judged: &Judged) -> bool {
        let newest = self.feed.load();
        // A snapshot that the tables do not know yet is newer than anything judged.
        judged.generation == self.generation.load(Ordering::Acquire)
            && judged.at.elapsed() < IDENTITY_LIFE
            && self.known.load(Ordering::Acquire) == Arc::as_ptr(&newest) as usize
    }
}
