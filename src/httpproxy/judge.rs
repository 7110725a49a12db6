//! Who decides: the newest snapshot, and who the addresses are at this moment.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};

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
    generation: AtomicU64,
    /// Address of the snapshot that `compiled` keeps.
    known: AtomicUsize,
    compiled: Mutex<Compiled>,
}

/// Sides compiled for one snapshot, and by their rules those of the one before: what did not change is
/// not compiled again.
struct Compiled {
    /// Kept, so that no later snapshot can have its address.
    snapshot: Arc<Snapshot>,
    sides: HashMap<Side, Arc<SidePolicy>>,
    sets: Vec<(L7Policy, Arc<SidePolicy>)>,
    before: Vec<(L7Policy, Arc<SidePolicy>)>,
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
    ) -> SnapshotJudge {
        let compiled = Compiled {
            snapshot: feed.load_full(),
            sides: HashMap::new(),
            sets: Vec::new(),
            before: Vec::new(),
        };
        let known = AtomicUsize::new(Arc::as_ptr(&compiled.snapshot) as usize);
        let (lookup, server_lookup) = (Box::new(lookup), Box::new(server_lookup));
        let (newest, generation) = (Box::new(newest), AtomicU64::new(0));
        SnapshotJudge {
            feed,
            newest,
            lookup,
            server_lookup,
            generation,
            known,
            compiled: Mutex::new(compiled),
        }
    }

    /// The newest snapshot's number, and the tables for it.
    fn current(&self) -> (u64, MutexGuard<'_, Compiled>) {
        let newest = (self.newest)();
        let mut compiled = self.compiled.lock();
        if !Arc::ptr_eq(&newest, &compiled.snapshot) {
            compiled.snapshot = newest;
            compiled.sides.clear();
            compiled.before = std::mem::take(&mut compiled.sets);
            self.generation.fetch_add(1, Ordering::Release);
            self.known.store(Arc::as_ptr(&compiled.snapshot) as usize, Ordering::Release);
        }
        (self.generation.load(Ordering::Acquire), compiled)
    }

    /// Who an address is: a local pod by the snapshot, which knows it together with its rules; others by
    /// the kernel's tables.
    fn peer(snapshot: &Snapshot, address: IpAddr, view: PeerView) -> PeerView {
        snapshot.local(address).map_or(view, |local| PeerView { identity: local.identity, ..view })
    }
}

impl Compiled {
    fn side(
        &mut self,
        subject: Identity,
        direction: Direction,
        peer: PeerView,
        flow: L4Flow,
    ) -> Arc<SidePolicy> {
        let key = (subject, direction, peer, flow.port);
        if let Some(side) = self.sides.get(&key) {
            return Arc::clone(side);
        }
        let side = match self.snapshot.policy(subject, direction, peer, flow) {
            None => Arc::new(SidePolicy::open()),
            Some(policy) => self.compile(policy),
        };
        if self.sides.len() >= MOST_SIDES {
            self.sides.clear();
        }
        self.sides.insert(key, Arc::clone(&side));
        side
    }

    fn compile(&mut self, policy: L7Policy) -> Arc<SidePolicy> {
        if let Some((_, side)) = self.sets.iter().find(|(known, _)| *known == policy) {
            return Arc::clone(side);
        }
        // Values of Secrets are compiled in, and may have changed though the rules have not.
        let refers = policy.rules.iter().filter_map(|(_, l7)| l7.as_deref()).any(refers_to_secrets);
        let known = self.before.iter().find(|(known, _)| !refers && *known == policy);
        let side = match known {
            Some((_, side)) => Arc::clone(side),
            None => {
                let secrets = |namespace: &str, name: &str, key: Option<&str>| {
                    self.snapshot.secret(namespace, name, key)
                };
                Arc::new(SidePolicy::compile(&policy, &secrets))
            }
        };
        self.sets.push((policy, Arc::clone(&side)));
        side
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
        let (generation, mut compiled) = self.current();
        let snapshot = Arc::clone(&compiled.snapshot);
        let (from, to) = (client.ip().to_canonical(), server.ip().to_canonical());
        let view = (self.server_lookup)(client, server);
        let destination = Self::peer(&snapshot, to, view);
        let source = Self::peer(&snapshot, from, (self.lookup)(from));
        let flow = L4Flow { protocol: Protocol::Tcp, port: server.port() };
        let mut side = |subject, direction, peer| match snapshot.subject(subject, direction, flow) {
            Some(subject) => compiled.side(subject, direction, peer, flow),
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
