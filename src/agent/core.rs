//! The agent's state and its one owner: a thread that runs jobs in order.
//!
//! Everything that changes what is enforced is a job on this thread, so that there is one order of
//! events: objects, devices, DNS answers. A change goes to the view first (pure, whole or not at
//! all), then to the kernel. What the kernel refuses is kept and tried again, oldest first, with
//! backoff; until then the kernel enforces the older state, and `status` says so.

mod endpoints;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::attachments::Attachments;
use super::directory;
use super::enrich::Shared;
use super::history::Recorder;
use super::hub::Hub;
use super::kernel::Kernel;
use super::l7feed::FeedWriter;
use super::observer::Notes;
use super::proxies::ProxyProcess;
use super::telemetry::Telemetry;
use crate::api::backend::Refusal;
use crate::cluster::View;
use crate::cluster::delta::{Cause, Delta};
use crate::cluster::{Change, Resource};
use crate::config::AgentConfig;
use crate::datapath::{DatapathError, ProxyState, give_back_memory};
use crate::endpoint::Registry;
use crate::flow::journal::AgentEvent;
use crate::model::{Node, Object, ObjectRef};
use crate::store::Store;
use crate::store::objects::ObjectStore;

/// First and longest pause between attempts to realize a delta.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// A transaction of this many changes leaves much free memory behind.
const LARGE: usize = 1000;

/// Work for the core's thread.
pub type Job = Box<dyn FnOnce(&mut Core) + Send>;

/// A delta that the kernel has not taken yet, with the revision of its source.
#[derive(Debug)]
struct Pending {
    delta: Delta,
    revision: u64,
    /// When it was known.
    since: Instant,
}

/// Whether the node's own devices are judged: that begins after the first state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NodeDevices {
    /// There was no state yet.
    Early,
    /// There was one, and the kernel did not take all of it at once.
    Waiting,
    Judged,
}

/// See the module.
pub struct Core {
    pub config: Arc<AgentConfig>,
    pub view: View,
    pub kernel: Box<dyn Kernel>,
    pub store: Store,
    /// Only where this agent keeps the objects itself.
    pub objects: Option<ObjectStore>,
    pub endpoints: Registry,
    pub hub: Arc<Hub>,
    /// What enrichment reads.
    pub shared: Arc<Shared>,
    /// Addresses of the pods and nodes in the directory.
    pub(super) placed: HashMap<ObjectRef, Vec<IpAddr>>,
    pub started: Instant,
    /// Revision of the objects that the view holds, as their source counts.
    pub desired: u64,
    /// Revision that the kernel enforces.
    pub realized: u64,
    /// The source of the objects, for `status`: `None` is well, else what is wrong.
    pub source_trouble: Option<String>,
    pub source_failures: u64,
    pending: VecDeque<Pending>,
    retry_at: Option<Instant>,
    retry_pause: Duration,
    pub kernel_trouble: Option<String>,
    pub kernel_failures: u64,
    node: NodeDevices,
    /// The last list of the node's devices: `None` is well, else what is wrong.
    pub devices_trouble: Option<String>,
    pub devices_failures: u64,
    pub attachments: Attachments,
    /// Where the web UI is, or why it is nowhere.
    pub ui: Option<Result<String, String>>,
    pub telemetry: Telemetry,
    /// For `status`; none is kept where it is off.
    pub history: Option<Arc<Recorder>>,
    kept_offset: Option<u32>,
    /// The store failed to write: when to try whether it works again, and the pause after that.
    store_probe: Option<(Instant, Duration)>,
    /// What the proxies read; none without proxies.
    feed: Option<FeedWriter>,
    /// The view has changed since the feed was written.
    feed_is_old: bool,
    listening: BTreeSet<ProxyProcess>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("desired", &self.desired)
            .field("realized", &self.realized)
            .finish_non_exhaustive()
    }
}

/// What a core starts with.
pub struct Parts {
    pub config: Arc<AgentConfig>,
    pub view: View,
    pub kernel: Box<dyn Kernel>,
    pub store: Store,
    pub objects: Option<ObjectStore>,
    pub hub: Arc<Hub>,
    /// Present where proxies run.
    pub feed: Option<FeedWriter>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

/// A transaction was refused; nothing changed.
pub type Refused = Vec<String>;

impl Core {
    pub fn new(parts: Parts) -> Core {
        let Parts { config, view, kernel, store, objects, hub, feed } = parts;
        Core {
            config,
            view,
            kernel,
            store,
            objects,
            endpoints: Registry::default(),
            hub,
            shared: Arc::default(),
            placed: HashMap::new(),
            started: Instant::now(),
            desired: 0,
            realized: 0,
            source_trouble: None,
            source_failures: 0,
            pending: VecDeque::new(),
            retry_at: None,
            retry_pause: RETRY.0,
            kernel_trouble: None,
            kernel_failures: 0,
            node: NodeDevices::Early,
            devices_trouble: None,
            devices_failures: 0,
            attachments: Attachments::default(),
            ui: None,
            telemetry: Telemetry::default(),
            history: None,
            kept_offset: None,
            store_probe: None,
            feed,
            feed_is_old: true,
            listening: BTreeSet::new(),
        }
    }

    /// Loads a first state: no packet is judged differently before all of it is in the kernel.
    pub fn start(&mut self, changes: Vec<Change>, revision: u64) -> Result<(), Refused> {
        // What pods were told before a restart; without it, they would be told again.
        if let Err(error) = self.restore_names() {
            tracing::error!(%error, "learned names were not restored: pods must look them up again");
        }
        let touched = directory::touched(&changes);
        let notes = Notes::of(&changes, revision);
        // The full state, below, tells more.
        drop(self.view.apply(changes).map_err(texts)?);
        self.tell(notes);
        self.keep_offset();
        self.desired = revision;
        let full = self.view.full();
        self.note_owners(touched);
        self.note_identities(&full);
        self.note_names();
        self.feed_is_old = true;
        let told = self.announce();
        match told.and_then(|()| Ok(self.kernel.reconcile(&full).and_then(|_| self.kernel.started())?)) {
            Ok(()) => {
                self.node = NodeDevices::Judged;
                self.realized = revision;
                self.telemetry.bootstrap = Some(self.started.elapsed());
                self.drain();
            }
            Err(error) => {
                self.node = NodeDevices::Waiting;
                self.trouble(error.to_string());
                self.pending.push_back(Pending { delta: full.clone(), revision, since: Instant::now() });
                self.schedule();
            }
        }
        drop(full);
        self.store.give_back_memory(give_back_memory);
        Ok(())
    }

    /// One transaction of the source.
    pub fn transact(&mut self, changes: Vec<Change>, revision: u64) -> Result<(), Refused> {
        let is_large = changes.len() >= LARGE;
        let (touched, notes) = (directory::touched(&changes), Notes::of(&changes, revision));
        let delta = self.view.apply(changes).map_err(|errors| {
            self.telemetry.changes_refused += 1;
            texts(errors)
        })?;
        self.telemetry.changes += 1;
        self.note_owners(touched);
        self.tell(notes);
        self.desired = revision;
        self.keep_offset();
        self.realize(delta, revision);
        if is_large {
            self.store.give_back_memory(give_back_memory);
        }
        Ok(())
    }

    /// Node-local identity numbers of this run must not be given another meaning by the next one.
    pub fn keep_offset(&mut self) {
        let offset = self.view.local_number_offset();
        if self.kept_offset == Some(offset) {
            return;
        }
        match self.store.set_setting(super::OFFSET_SETTING, &offset.to_string()) {
            Ok(()) => self.kept_offset = Some(offset),
            Err(error) => tracing::warn!(%error, "the position of local identities was not stored"),
        }
    }

    /// Hands a delta to the kernel, after those that wait.
    pub fn realize(&mut self, delta: Delta, revision: u64) {
        // Rules that change no entry of the kernel may still change what proxies do. Of names they need to know
        // what rules do: an address that gets an identity which was there before is no news.
        self.feed_is_old |= delta.cause != Cause::Names || !delta.policies.is_empty();
        self.note_identities(&delta);
        self.note_delta(&delta);
        self.pending.push_back(Pending { delta, revision, since: Instant::now() });
        if self.retry_at.is_none() {
            self.drain();
        }
    }

    fn drain(&mut self) {
        if let Err(error) = self.announce() {
            self.trouble(format!("{error:#}"));
            self.schedule();
            return;
        }
        while let Some(next) = self.pending.front() {
            let (begun, revision) = (Instant::now(), next.revision);
            if let Err(error) = self.kernel.apply(&next.delta) {
                self.telemetry.regenerations_failed += 1;
                self.hub.note(AgentEvent::RegenerationFailed { revision, error: error.to_string().into() });
                self.trouble(error.to_string());
                self.schedule();
                return;
            }
            self.telemetry.regenerated(begun.elapsed(), next.since.elapsed());
            if revision > self.realized {
                self.hub.note(AgentEvent::Regenerated { revision });
            }
            self.realized = self.realized.max(revision);
            self.pending.pop_front();
        }
        if let Err(error) = self.judge_node() {
            self.trouble(error.to_string());
            self.schedule();
            return;
        }
        if let Err(error) = self.settle() {
            self.trouble(format!("{error:#}"));
            self.schedule();
            return;
        }
        self.kernel_trouble = None;
        self.retry_at = None;
        self.retry_pause = RETRY.0;
    }

    /// The node's own devices wait for the first state that the kernel took, which may not be the first attempt.
    fn judge_node(&mut self) -> Result<(), DatapathError> {
        if self.node == NodeDevices::Waiting {
            self.kernel.started()?;
            self.node = NodeDevices::Judged;
        }
        Ok(())
    }

    /// Writes for proxies from now on.
    #[cfg(test)]
    pub fn use_feed(&mut self, feed: FeedWriter) {
        self.feed = Some(feed);
    }

    /// Tells the proxies what is to come. The kernel may hear of it when they know.
    fn announce(&mut self) -> anyhow::Result<()> {
        match self.feed.as_mut().filter(|_| self.feed_is_old) {
            Some(feed) => feed.announce(&self.view).context("the policy feed of the proxies"),
            None => Ok(()),
        }
    }

    /// Tells the proxies that the kernel has everything.
    fn settle(&mut self) -> anyhow::Result<()> {
        if let Some(feed) = self.feed.as_mut().filter(|_| self.feed_is_old) {
            feed.settle().context("the policy feed of the proxies")?;
        }
        self.feed_is_old = false;
        Ok(())
    }

    /// Where the proxies admit nothing, because rules are too large together.
    pub fn misfits(&self) -> &[String] {
        self.feed.as_ref().map(FeedWriter::misfits).unwrap_or_default()
    }

    /// A proxy has its listeners in their places, or has ended. While none listens, the kernel drops what
    /// it would redirect.
    pub fn proxy_listens(&mut self, process: ProxyProcess, listens: bool) {
        match listens {
            true => self.listening.insert(process),
            false => self.listening.remove(&process),
        };
        let state = if self.listening.is_empty() { ProxyState::Absent } else { ProxyState::Listening };
        if let Err(error) = self.kernel.set_proxy(state) {
            self.trouble(error.to_string());
        }
    }

    /// The view goes back to what it held before a change that was judged and is not to stay. Numbers of this
    /// node may be others afterwards than the kernel was told, so the kernel is compared with all of it.
    pub fn take_back(&mut self, inverse: Vec<Change>, judged: &Delta) {
        let inverse = self.with_descriptions(inverse);
        let back = match self.view.apply(inverse) {
            Ok(back) => back,
            Err(errors) => {
                tracing::error!(errors = texts(errors).join("; "), "a judged change was not taken back");
                return;
            }
        };
        if judged.is_empty() && back.is_empty() {
            return;
        }
        self.keep_offset();
        let full = self.view.full();
        self.feed_is_old = true;
        let told = self.announce();
        match told.and_then(|()| Ok(self.kernel.reconcile(&full)?)) {
            // What waited is part of it.
            Ok(_) => {
                self.pending.clear();
                self.realized = self.desired;
                self.drain();
            }
            Err(error) => {
                self.trouble(format!("{error:#}"));
                self.pending.push_back(Pending {
                    delta: full,
                    revision: self.desired,
                    since: Instant::now(),
                });
                self.schedule();
            }
        }
    }

    fn trouble(&mut self, message: String) {
        tracing::error!(error = %message, "the kernel does not have the newest state");
        self.kernel_trouble = Some(message);
        self.kernel_failures += 1;
    }

    fn schedule(&mut self) {
        self.retry_at = Some(Instant::now() + self.retry_pause);
        self.retry_pause = (self.retry_pause * 2).min(RETRY.1);
    }

    /// Deltas that wait for the kernel.
    pub fn waiting(&self) -> usize {
        self.pending.len()
    }

    /// Runs jobs until every sender has gone.
    pub fn run(mut self, jobs: &mpsc::Receiver<Job>) {
        loop {
            let probe = self.store_probe.map(|(at, _)| at);
            let due = [self.retry_at, self.names_deadline(), probe].into_iter().flatten().min();
            let job = match due {
                None => jobs.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
                Some(at) => jobs.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            match job {
                Ok(job) => job(&mut self),
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            // Also after a job: one follows the other for as long as there is work.
            self.do_what_is_due(Instant::now());
        }
    }
}

impl Core {
    fn do_what_is_due(&mut self, now: Instant) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.drain();
        }
        if self.names_deadline().is_some_and(|at| at <= now) {
            self.expire_names();
        }
        self.watch_store(now);
    }

    /// A full disk or a locked file refuses changes while it lasts. Whether it is over is tried with backoff, so
    /// that `status` does not go on complaining until somebody changes something.
    fn watch_store(&mut self, now: Instant) {
        if !self.store.is_failing() {
            self.store_probe = None;
            return;
        }
        let pause = match self.store_probe {
            Some((at, _)) if at > now => return,
            Some((_, pause)) => {
                if self.store.probe(std::time::SystemTime::now()).is_ok() {
                    self.store_probe = None;
                    self.keep_offset();
                    return;
                }
                (pause * 2).min(RETRY.1)
            }
            None => RETRY.0,
        };
        self.store_probe = Some((now + pause, pause));
    }
}

fn texts<E: std::fmt::Display>(errors: Vec<E>) -> Refused {
    errors.iter().map(ToString::to_string).collect()
}

/// The local node as an object, for a source that does not describe nodes.
pub fn local_node(config: &AgentConfig, addresses: &[std::net::IpAddr]) -> Change {
    Change::Upsert(Resource::Object(Object::Node(Node {
        name: config.node_name.clone(),
        labels: [("kubernetes.io/hostname".to_owned(), config.node_name.clone())].into(),
        addresses: addresses.to_vec(),
    })))
}

/// How other threads reach the core.
#[derive(Clone, Debug)]
pub struct CoreHandle {
    jobs: mpsc::Sender<Job>,
}

impl CoreHandle {
    /// Starts the core on a thread of its own.
    pub fn spawn(core: Core) -> std::io::Result<(CoreHandle, std::thread::JoinHandle<()>)> {
        let (jobs, receiver) = mpsc::channel();
        let thread =
            std::thread::Builder::new().name("sluice-core".into()).spawn(move || core.run(&receiver))?;
        Ok((CoreHandle { jobs }, thread))
    }

    /// Runs `job` on the core's thread and waits for what it returns.
    pub async fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Core) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let (answer, wait) = tokio::sync::oneshot::channel();
        let job: Job = Box::new(move |core| {
            // The caller may have given up; the work is done all the same.
            answer.send(job(core)).ok();
        });
        self.jobs.send(job).map_err(|_| Refusal::Failed("the agent is stopping".into()))?;
        wait.await.map_err(|_| Refusal::Failed("the agent is stopping".into()))
    }
}
