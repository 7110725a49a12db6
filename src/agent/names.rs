//! Names and addresses that the DNS proxy learned, on the agent's side.
//!
//! The proxy sends each answer over `<run-dir>/names.sock` before it gives it to the pod, one JSON document
//! a line ([`Question`]), and waits for the line that says whether the kernel has it ([`Told`]). What was
//! learned is stored, so that a restart of the agent forgets nothing, and what made room for others is stored no longer;
//! ends of TTLs are deadlines of the core. Answers of one moment share one job, one transaction and one write to the
//! store. To an agent that is new the proxy tells everything that is still fresh: it may have died before it stored.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::core::{Core, CoreHandle};
use super::offline_names::Spooled;
use crate::api;
use crate::fqdn::{Given, Learned, Snapshot};
use crate::store::{LearnedName, NameChange, Store, StoreError};

/// The socket's name in the agent's directory.
pub const SOCKET: &str = "names.sock";
/// Answers that share a job.
const BATCH: usize = 128;
/// Addresses stay this much longer than their TTL, so that those which end together go together.
const SLACK: Duration = Duration::from_millis(100);
/// Batches that wait for the store; behind them, answers wait.
const KEEP: usize = 256;
/// How often the store forgets what has ended.
const SWEEP: Duration = Duration::from_secs(60);

/// An answer that waits to be released.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    pub id: u64,
    pub name: String,
    /// Addresses with their TTLs in milliseconds.
    pub addresses: Vec<(IpAddr, u64)>,
    /// Who is given the answer.
    #[serde(default)]
    pub clients: Vec<IpAddr>,
    /// Addresses that the proxy has put into the kernel itself: there, they are to be what the agent knows of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub opened: Vec<IpAddr>,
}

/// What became of a [`Question`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    pub id: u64,
    /// The kernel allows what policy allows of it, for as long as the answer says. Otherwise it stays closed.
    pub ready: bool,
    /// How many addresses and names that rules want were dropped before their time since the agent started. When it
    /// grows, an address that the proxy knows may be closed.
    pub evictions: u64,
}

impl Question {
    pub fn new(id: u64, given: &Given) -> Question {
        let Given { learned, clients } = given;
        let millis = |ttl: &Duration| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let addresses = learned.addresses.iter().map(|(address, ttl)| (*address, millis(ttl)));
        let (name, addresses) = (learned.name.to_string(), addresses.collect());
        Question { id, name, addresses, clients: clients.clone(), opened: Vec::new() }
    }

    fn given(&self) -> Given {
        let addresses = self.addresses.iter().map(|(address, ttl)| (*address, Duration::from_millis(*ttl)));
        let learned = Learned { name: self.name.as_str().into(), addresses: addresses.collect() };
        Given { learned, clients: self.clients.clone() }
    }
}

/// Serves the proxy until the core is gone.
pub async fn serve(run_dir: &Path, core: CoreHandle, store: Store) -> anyhow::Result<()> {
    let listener: UnixListener = api::unix::bind(&run_dir.join(SOCKET)).await?;
    // From here on the proxy asks; what it noted until now is learned.
    if let Err(error) = learn_spool(run_dir, &core, &store).await {
        tracing::error!(error = %format!("{error:#}"), "what was learned without an agent waits for the next one");
    }
    tokio::spawn(sweep(store.clone()));
    let (keep, changes) = mpsc::channel(KEEP);
    tokio::spawn(keep_all(store, changes));
    tokio::spawn(async move {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::error!(%error, "the DNS proxy cannot be heard");
                    tokio::time::sleep(SLACK).await;
                    continue;
                }
            };
            let (core, keep) = (core.clone(), keep.clone());
            tokio::spawn(async move {
                if let Err(error) = converse(stream, core, keep).await {
                    tracing::warn!(error = %format!("{error:#}"), "the conversation with the DNS proxy ended");
                }
            });
        }
    });
    Ok(())
}

async fn learn_spool(run_dir: &Path, core: &CoreHandle, store: &Store) -> anyhow::Result<()> {
    while let Some(spooled) = Spooled::take(run_dir)? {
        let (rows, store) = (spooled.rows.clone(), store.clone());
        let changes = core.call(move |core| core.learn_spooled(&rows)).await?;
        tokio::task::spawn_blocking(move || store.change_names(changes)).await??;
        spooled.stored()?;
    }
    Ok(())
}

async fn sweep(store: Store) {
    let mut tick = tokio::time::interval(SWEEP);
    loop {
        tick.tick().await;
        let store = store.clone();
        let swept = tokio::task::spawn_blocking(move || store.expire_names(SystemTime::now())).await;
        if let Ok(Err(error)) = swept {
            tracing::warn!(%error, "the store still holds names that have ended");
        }
    }
}

/// Writes what was learned, as much at once as has come.
async fn keep_all(store: Store, mut changes: mpsc::Receiver<Vec<NameChange>>) {
    let mut batches = Vec::new();
    while changes.recv_many(&mut batches, KEEP).await > 0 {
        let (store, changes) = (store.clone(), batches.drain(..).flatten().collect());
        let stored = tokio::task::spawn_blocking(move || store.change_names(changes)).await;
        if let Ok(Err(error)) = stored {
            tracing::warn!(%error, "names that were learned are forgotten when the agent restarts");
        }
    }
}

async fn converse(
    stream: UnixStream,
    core: CoreHandle,
    keep: mpsc::Sender<Vec<NameChange>>,
) -> anyhow::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::with_capacity(64 * 1024, read);
    let mut line = String::new();
    loop {
        let mut questions: Vec<Question> = Vec::new();
        // The first is waited for; the rest is what has come with it.
        while questions.is_empty() || (questions.len() < BATCH && read.buffer().contains(&b'\n')) {
            line.clear();
            if read.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            questions.push(serde_json::from_str(&line)?);
        }
        let answers: Vec<Given> = questions.iter().map(Question::given).collect();
        let opened: Vec<IpAddr> = questions.iter().flat_map(|question| &question.opened).copied().collect();
        let learned = core.call(move |core| {
            let outcome = core.learn_names(&answers);
            core.restate(&opened);
            outcome
        });
        let Ok(outcome) = learned.await else { return Ok(()) };
        let mut told = Vec::new();
        for (question, ready) in questions.iter().zip(outcome.ready) {
            let evictions = outcome.evictions;
            serde_json::to_writer(&mut told, &Told { id: question.id, ready, evictions })?;
            told.push(b'\n');
        }
        write.write_all(&told).await?;
        // After the pod has its answer: what a crash loses here, the proxy tells the next agent.
        keep.send(outcome.changes).await.ok();
    }
}

/// What became of some answers.
#[derive(Debug)]
pub struct Outcome {
    /// See [`Told::ready`]; of each answer.
    pub ready: Vec<bool>,
    /// See [`Told::evictions`].
    pub evictions: u64,
    /// What to store.
    pub changes: Vec<NameChange>,
}

impl Core {
    /// The view's clock.
    fn names_now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Learns answers.
    pub fn learn_names(&mut self, answers: &[Given]) -> Outcome {
        let (now, wall) = (self.names_now(), SystemTime::now());
        let mut deltas = Vec::new();
        let lost = self.view.learn_all(now, answers, |delta| deltas.push(delta));
        for Given { learned: answer, .. } in answers {
            let addresses = answer.addresses.iter().map(|(address, _)| *address);
            self.shared.directory.lock().add_name(&answer.name, addresses);
        }
        for delta in deltas.into_iter().filter(|delta| !delta.is_empty()) {
            self.realize(delta, self.desired);
        }
        self.keep_offset();
        let names = self.view.names();
        let mut changes = Vec::new();
        for (name, address) in lost {
            if names.end_of(&name, address).is_none() {
                changes.push(NameChange::Lost { name: name.to_string(), address });
            }
        }
        for Given { learned, .. } in answers {
            for (address, _) in &learned.addresses {
                // What had no room ends with this run.
                let Some(end) = names.end_of(&learned.name, *address) else { continue };
                let (name, expires) = (learned.name.to_string(), wall + end.saturating_sub(now));
                changes.push(NameChange::Learned(LearnedName { name, address: *address, expires }));
            }
        }
        let has_all = self.waiting() == 0;
        let ready = answers.iter().map(|given| has_all && names.holds(now, &given.learned));
        let stats = names.stats();
        Outcome {
            ready: ready.collect(),
            evictions: stats.evicted + stats.evicted_names + self.view.refused_answers(),
            changes,
        }
    }

    /// Has the kernel know of these addresses what the view does, whoever has changed them there.
    pub fn restate(&mut self, addresses: &[IpAddr]) {
        if !addresses.is_empty() {
            let delta = self.view.restate(addresses);
            self.realize(delta, self.desired);
        }
    }

    fn learn_spooled(&mut self, rows: &[LearnedName]) -> Vec<NameChange> {
        let now = SystemTime::now();
        let answers: Vec<Given> = (rows.iter())
            .filter_map(|row| {
                let left = row.expires.duration_since(now).ok()?;
                let learned =
                    Learned { name: row.name.as_str().into(), addresses: vec![(row.address, left)] };
                Some(Given { learned, clients: Vec::new() })
            })
            .collect();
        self.learn_names(&answers).changes
    }

    /// Takes in what earlier runs learned and is still fresh.
    ///
    /// # Errors
    /// [`StoreError`] of the read.
    pub fn restore_names(&mut self) -> Result<(), StoreError> {
        let wall = SystemTime::now();
        let mut snapshot = Snapshot::default();
        if let Err(error) = self.store_spool() {
            tracing::error!(error = %format!("{error:#}"), "what was learned without an agent");
        }
        // The ceiling may have been higher, and the clock may have been ahead.
        self.store.shorten_names(wall + self.view.options().names.ttl.ceiling())?;
        for row in self.store.learned_names(wall)? {
            let left = row.expires.duration_since(wall).unwrap_or_default();
            snapshot.names.entry(row.name.into()).or_default().insert(row.address, left);
        }
        // Part of the first full state, which comes next.
        self.view.restore_names(self.names_now(), Duration::ZERO, &snapshot);
        let names = self.view.names();
        let all =
            snapshot.names.iter().flat_map(|(name, addresses)| addresses.keys().map(move |a| (name, *a)));
        let lost = all.filter(|(name, address)| names.end_of(name, *address).is_none());
        let lost = lost.map(|(name, address)| NameChange::Lost { name: name.to_string(), address });
        self.store.change_names(lost.collect())
    }

    fn store_spool(&self) -> anyhow::Result<()> {
        while let Some(spooled) = Spooled::take(&self.config.run_dir)? {
            self.store.change_names(spooled.rows.iter().cloned().map(NameChange::Learned).collect())?;
            spooled.stored()?;
        }
        Ok(())
    }

    /// When [`Core::expire_names`] has something to do.
    pub(super) fn names_deadline(&self) -> Option<Instant> {
        self.view.next_expiry().and_then(|end| self.started.checked_add(end.saturating_add(SLACK)))
    }

    /// Closes addresses whose answers have ended to new connections.
    pub(super) fn expire_names(&mut self) {
        let delta = self.view.expire(self.names_now());
        if !delta.is_empty() {
            self.realize(delta, self.desired);
        }
    }
}

#[cfg(test)]
mod tests;
