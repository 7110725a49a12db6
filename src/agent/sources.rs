//! Where objects come from: the agent's own store, or a server's stream of updates.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::core::{Core, CoreHandle, local_node};
use super::manifests::Manifests;
use crate::cluster::{Change, Resource};
use crate::config::AgentConfig;
use crate::model::{Kind, Node, Object, ObjectRef};
use crate::server::client::ServerClient;
use crate::server::{Peer, Update, UpdateKind};
use crate::store::NodeReport;
use crate::store::objects::{Loaded, Reader};

/// How often a node reports to the server even if nothing has changed.
const REPORT: Duration = Duration::from_secs(20);

/// Starts with what the agent's own store holds, and the local node if no object describes it.
pub fn start_standalone(core: &mut Core, loaded: Loaded, addresses: &[IpAddr]) -> anyhow::Result<()> {
    let mut changes: Vec<Change> = Vec::new();
    let own = ObjectRef::new(Kind::Node, "", &core.config.node_name);
    if !loaded.resources.iter().any(|resource| resource.reference() == own) {
        changes.push(local_node(&core.config, addresses));
    }
    changes.extend(core.restore_endpoints()?);
    // What an object says about a pod stands above what `endpoint add` said.
    let first = changes.len();
    changes.extend(loaded.resources.into_iter().map(Change::Upsert));
    core.note_objects(&changes[first..]);
    core.start(changes, loaded.revision)
        .map_err(|problems| anyhow::anyhow!("the stored objects: {}", problems.join("; ")))
}

/// Follows a server until the core or the stream is gone.
pub struct Follower {
    core: CoreHandle,
    config: Arc<AgentConfig>,
    parser: Manifests,
    addresses: Vec<IpAddr>,
    /// Objects of the newest update, without those that stand for joined nodes.
    known: BTreeSet<ObjectRef>,
    peers: BTreeMap<String, Vec<IpAddr>>,
    /// Changes that the view refused: they come again with the next update.
    backlog: Vec<Change>,
    has_started: bool,
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower").field("known", &self.known.len()).finish_non_exhaustive()
    }
}

impl Follower {
    pub fn new(
        core: CoreHandle,
        config: Arc<AgentConfig>,
        parser: Manifests,
        addresses: Vec<IpAddr>,
    ) -> Follower {
        Follower {
            core,
            config,
            parser,
            addresses,
            known: BTreeSet::new(),
            peers: BTreeMap::new(),
            backlog: Vec::new(),
            has_started: false,
        }
    }

    /// Applies updates as they come; each is one transaction.
    pub async fn run(mut self, mut updates: mpsc::Receiver<Update>) {
        while let Some(update) = updates.recv().await {
            let revision = update.revision;
            let trouble = match self.changes(&update) {
                Ok(changes) => self.hand_over(changes, revision).await,
                Err(problem) => Some(problem),
            };
            let told = self
                .core
                .call(move |core| {
                    core.source_failures += u64::from(trouble.is_some());
                    if let Some(trouble) = &trouble {
                        tracing::error!(error = %trouble, revision, "an update of the server was not applied");
                    }
                    core.source_trouble = trouble;
                })
                .await;
            if told.is_err() {
                return;
            }
        }
    }

    /// What an update changes, in the words of the view.
    fn changes(&mut self, update: &Update) -> Result<Vec<Change>, String> {
        let mut reader = Reader::new(&self.parser);
        let mut upserts = Vec::with_capacity(update.upserts.len());
        for object in &update.upserts {
            let resource =
                reader.find(&object.reference, &object.manifest).map_err(|error| error.to_string())?;
            upserts.push(Change::Upsert(resource));
        }
        let mut changes = std::mem::take(&mut self.backlog);
        let named: BTreeSet<ObjectRef> =
            update.upserts.iter().map(|object| object.reference.clone()).collect();
        if update.kind == UpdateKind::Snapshot {
            changes.clear();
            changes.extend(self.known.difference(&named).cloned().map(Change::Delete));
            self.known.clear();
        }
        for reference in &update.deletes {
            self.known.remove(reference);
            changes.push(Change::Delete(reference.clone()));
        }
        self.known.extend(named);
        changes.extend(upserts);
        self.peer_changes(update, &mut changes);
        Ok(changes)
    }

    /// A joined node that no Node object describes is known by its report.
    fn peer_changes(&mut self, update: &Update, changes: &mut Vec<Change>) {
        let before: BTreeSet<String> = self.peers.keys().cloned().collect();
        if update.kind != UpdateKind::Change {
            self.peers.clear();
        }
        for Peer { name, addresses } in &update.nodes {
            self.peers.insert(name.clone(), addresses.clone());
        }
        for name in &update.removed_nodes {
            self.peers.remove(name);
        }
        self.peers.insert(self.config.node_name.clone(), self.addresses.clone());
        let is_described = |name: &str| self.known.contains(&ObjectRef::new(Kind::Node, "", name));
        for name in before.iter().filter(|name| !self.peers.contains_key(*name) && !is_described(name)) {
            changes.push(Change::Delete(ObjectRef::new(Kind::Node, "", name)));
        }
        for (name, addresses) in self.peers.iter().filter(|(name, _)| !is_described(name)) {
            let node = if *name == self.config.node_name {
                local_node(&self.config, addresses)
            } else {
                let labels = [("kubernetes.io/hostname".to_owned(), name.clone())].into();
                let node = Node { name: name.clone(), labels, addresses: addresses.clone() };
                Change::Upsert(Resource::Object(Object::Node(node)))
            };
            changes.push(node);
        }
    }

    /// Gives the changes to the core; returns what went wrong.
    async fn hand_over(&mut self, changes: Vec<Change>, revision: u64) -> Option<String> {
        let first = !self.has_started;
        let kept = changes.clone();
        let outcome = self
            .core
            .call(move |core| {
                if first {
                    let mut all = core.restore_endpoints().map_err(|error| vec![error.to_string()])?;
                    core.note_objects(&changes);
                    all.extend(changes);
                    core.start(all, revision)
                } else {
                    core.transact_objects(changes, revision)
                }
            })
            .await;
        match outcome {
            Ok(Ok(())) => {
                self.has_started = true;
                None
            }
            Ok(Err(problems)) => {
                self.backlog = kept;
                Some(problems.join("; "))
            }
            Err(refusal) => Some(refusal.to_string()),
        }
    }
}

/// Tells the server about this node until the core is gone.
pub async fn report(client: Arc<ServerClient>, core: CoreHandle, addresses: Vec<IpAddr>) {
    let mut told: Option<u64> = None;
    let mut told_at = tokio::time::Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    loop {
        tick.tick().await;
        let connection = client.status();
        let realized = core
            .call(move |core| {
                if !connection.connected {
                    core.source_trouble = Some(
                        connection.last_error.unwrap_or_else(|| "not connected to the server yet".to_owned()),
                    );
                    core.source_failures = connection.failures;
                } else if core.desired == connection.revision {
                    core.source_trouble = None;
                }
                core.realized
            })
            .await;
        let Ok(realized) = realized else { return };
        if told == Some(realized) && told_at.elapsed() < REPORT {
            continue;
        }
        let report = NodeReport {
            addresses: addresses.clone(),
            realized_revision: Some(realized),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        match client.report(&report).await {
            Ok(()) => {
                told = Some(realized);
                told_at = tokio::time::Instant::now();
            }
            Err(error) => tracing::debug!(%error, "the next report makes up for this one"),
        }
    }
}
