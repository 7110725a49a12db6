//! The agent's side of the server: credentials, the stream of updates, and reports.
//!
//! [`ServerClient::connect`] returns once there are credentials; from then on a task keeps a stream
//! open, comes back after every failure (with growing pauses) and resumes where it was, so that the
//! agent sees each transaction once and in order. While the server is away the agent keeps what it has.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::credentials::{Client, Credentials, Join, JoinError, chain};
use super::event::{Assembler, Update, UpdateKind, label_set};
use super::proto;
use super::remote::{Known, Question, RemoteAllocator};
use super::token::JoinToken;
use crate::model::Identity;
use crate::store::{Clock, NodeReport};

/// Updates that wait for the agent. Beyond that the stream is not read, and the server waits, and
/// then gives up on it.
const QUEUE: usize = 16;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How often the certificate's age is looked at.
const RENEWAL_CHECK: Duration = Duration::from_secs(3600);
/// A unary call may take this long.
const CALL: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// `https://HOST:PORT`.
    pub url: String,
    /// This node's name.
    pub node: String,
    /// Needed until the node has joined.
    pub token: Option<JoinToken>,
    /// Where the credentials are kept: `<state-dir>/server`.
    pub directory: PathBuf,
}

/// How the connection is doing, for `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionStatus {
    pub connected: bool,
    /// Revision of the newest update that came.
    pub revision: u64,
    pub failures: u64,
    pub last_error: Option<String>,
}

/// A call to the server failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{call}: {detail}")]
pub struct CallError {
    pub call: &'static str,
    pub detail: String,
}

/// The connection to a server. Dropping it ends the stream.
#[derive(Debug)]
pub struct ServerClient {
    shared: Arc<Shared>,
    questions: mpsc::UnboundedSender<Question>,
    _stop: DropGuard,
}

struct Shared {
    config: ClientConfig,
    /// Replaced when the certificate is renewed.
    credentials: Mutex<(Credentials, Client)>,
    known: Arc<Mutex<Known>>,
    /// The numbers in use that the last successful report named.
    told: Mutex<Option<BTreeSet<Identity>>>,
    status: Mutex<ConnectionStatus>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("config", &self.config).finish_non_exhaustive()
    }
}

impl ServerClient {
    /// Loads the node's credentials or joins, and starts the stream. The receiver gets every update in
    /// order; the first one is a snapshot.
    ///
    /// # Errors
    ///
    /// [`JoinError`]; see [`JoinError::is_transient`]. With stored credentials the server need not be
    /// there yet.
    pub async fn connect(
        config: ClientConfig,
        clock: Clock,
    ) -> Result<(ServerClient, mpsc::Receiver<Update>), JoinError> {
        let join = Join {
            url: &config.url,
            node: &config.node,
            token: config.token.as_ref(),
            directory: &config.directory,
        };
        let credentials = join.load_or_join(clock()).await?;
        let client = credentials.client(&config.url)?;
        let shared = Arc::new(Shared {
            config,
            credentials: Mutex::new((credentials, client)),
            known: Arc::default(),
            told: Mutex::default(),
            status: Mutex::default(),
        });
        let (updates, receiver) = mpsc::channel(QUEUE);
        let (questions, asked) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(follow(shared.clone(), updates)));
        tokio::spawn(stop.clone().run_until_cancelled_owned(answer(shared.clone(), asked)));
        tokio::spawn(stop.clone().run_until_cancelled_owned(renew(shared.clone(), clock)));
        Ok((ServerClient { shared, questions, _stop: stop.drop_guard() }, receiver))
    }

    /// An allocator over this connection; clones share what they know.
    pub fn allocator(&self) -> RemoteAllocator {
        RemoteAllocator::new(self.shared.known.clone(), self.questions.clone())
    }

    pub fn status(&self) -> ConnectionStatus {
        self.shared.status.lock().clone()
    }

    /// Tells the server about this node; call it after changes and every 30 seconds or so.
    ///
    /// # Errors
    ///
    /// [`CallError`]; the next report makes up for a lost one.
    pub async fn report(&self, report: &NodeReport) -> Result<(), CallError> {
        let held = self.shared.known.lock().held();
        // Thousands of numbers are not said again and again.
        let is_news = self.shared.told.lock().as_ref() != Some(&held);
        let report = proto::NodeReport {
            addresses: report.addresses.iter().map(ToString::to_string).collect(),
            realized_revision: report.realized_revision,
            version: report.version.clone(),
            held: is_news.then(|| proto::HeldIdentities { ids: held.iter().map(|id| id.0).collect() }),
        };
        let mut client = self.shared.client();
        call("report to the server", client.report(report)).await?;
        if is_news {
            *self.shared.told.lock() = Some(held);
        }
        Ok(())
    }
}

impl Shared {
    fn client(&self) -> Client {
        self.credentials.lock().1.clone()
    }

    /// Before the update is handed over, so that who has it sees a status that knows of it.
    fn received(&self, revision: u64) {
        let mut status = self.status.lock();
        status.connected = true;
        status.last_error = None;
        status.revision = revision;
    }

    fn failed(&self, error: &dyn std::fmt::Display) {
        let mut status = self.status.lock();
        if status.connected || status.last_error.is_none() {
            tracing::warn!(url = self.config.url, %error, "lost the server; this node keeps the state it has");
        }
        status.connected = false;
        status.failures += 1;
        status.last_error = Some(error.to_string());
    }
}

async fn call<T>(
    name: &'static str,
    answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(CALL, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(CallError { call: name, detail: describe(&status) }),
        Err(_) => Err(CallError { call: name, detail: "no answer in time".to_owned() }),
    }
}

fn describe(status: &tonic::Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => chain(source),
        None => format!("{} ({:?})", status.message(), status.code()),
    }
}

/// Keeps a stream open until the receiver is gone.
async fn follow(shared: Arc<Shared>, updates: mpsc::Sender<Update>) {
    let mut position: Option<(Arc<str>, u64)> = None;
    let mut pause = FIRST_PAUSE;
    while !updates.is_closed() {
        let before = position.clone();
        let end = stream(&shared, &updates, &mut position).await;
        match end {
            End::ReceiverGone => return,
            End::Failed(error) => shared.failed(&error),
        }
        if position != before {
            pause = FIRST_PAUSE;
        }
        tokio::select! {
            () = tokio::time::sleep(jittered(pause)) => {}
            () = updates.closed() => return,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Half to all of a pause, so that nodes that lost the server together do not come back together.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [0u8; 1];
    // Without randomness there is no jitter, which is no harm to correctness.
    let _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut byte);
    pause / 2 + pause * u32::from(byte[0]) / 512
}

enum End {
    ReceiverGone,
    Failed(String),
}

async fn stream(
    shared: &Shared,
    updates: &mpsc::Sender<Update>,
    position: &mut Option<(Arc<str>, u64)>,
) -> End {
    let request = proto::WatchRequest {
        revision: position.as_ref().map(|(_, revision)| *revision),
        epoch: position.as_ref().map(|(epoch, _)| epoch.to_string()).unwrap_or_default(),
    };
    let mut client = shared.client();
    let mut events = match call("watch the server", client.watch(request)).await {
        Ok(events) => events,
        Err(error) => return End::Failed(error.to_string()),
    };
    let mut assembler = Assembler::default();
    loop {
        let event = tokio::select! {
            event = events.message() => event,
            () = updates.closed() => return End::ReceiverGone,
        };
        let update = match event {
            Ok(Some(event)) => assembler.push(event),
            Ok(None) => return End::Failed("the server ended the stream".to_owned()),
            Err(status) => return End::Failed(describe(&status)),
        };
        let update = match update {
            Ok(Some(update)) => update,
            Ok(None) => continue,
            Err(error) => return End::Failed(error.to_string()),
        };
        // Nothing was resumed that was not asked for, or a change would be applied to nothing.
        if update.kind == UpdateKind::Resumed && position.is_none() {
            return End::Failed("the server resumed a stream that was new".to_owned());
        }
        shared.known.lock().learn(&update);
        let reached = (update.epoch.clone(), update.revision);
        shared.received(update.revision);
        if updates.send(update).await.is_err() {
            return End::ReceiverGone;
        }
        *position = Some(reached);
    }
}

/// Answers the allocator's questions.
async fn answer(shared: Arc<Shared>, mut questions: mpsc::UnboundedReceiver<Question>) {
    while let Some(question) = questions.recv().await {
        let mut client = shared.client();
        match question {
            Question::Allocate { labels, answer } => {
                let request = proto::AllocateIdentitiesRequest { sets: vec![label_set(&labels)] };
                let outcome = call("allocate an identity", client.allocate_identities(request)).await;
                let outcome = match outcome {
                    Ok(response) => match response.ids[..] {
                        [id] if Identity(id).is_cluster_scope() => Ok(Identity(id)),
                        _ => Err("the server's answer makes no sense".to_owned()),
                    },
                    Err(error) => Err(error.to_string()),
                };
                // Who asked may have lost patience.
                let _ = answer.send(outcome);
            }
            Question::Release(id) => {
                let request = proto::ReleaseIdentitiesRequest { ids: vec![id.0] };
                if let Err(error) = call("release an identity", client.release_identities(request)).await {
                    tracing::debug!(%error, "the next report releases it");
                }
            }
        }
    }
}

/// Renews the certificate in time. A running stream goes on with the old connection.
async fn renew(shared: Arc<Shared>, clock: Clock) {
    loop {
        let (credentials, mut client) = shared.credentials.lock().clone();
        let wait = match until_renewal(&credentials, clock()) {
            Some(wait) => wait.min(RENEWAL_CHECK),
            None => match renewed(&shared, &credentials, &mut client).await {
                Ok(()) => continue,
                Err(error) => {
                    tracing::warn!(%error, "the node's certificate could not be renewed yet");
                    LONGEST_PAUSE
                }
            },
        };
        tokio::time::sleep(wait).await;
    }
}

fn until_renewal(credentials: &Credentials, now: SystemTime) -> Option<Duration> {
    credentials.parsed.renew_at().duration_since(now).ok().filter(|wait| !wait.is_zero())
}

async fn renewed(shared: &Shared, credentials: &Credentials, client: &mut Client) -> Result<(), JoinError> {
    let renewed = credentials.renew(client).await?;
    if renewed.parsed.not_after <= credentials.parsed.not_after {
        return Err(JoinError::Busy {
            url: shared.config.url.clone(),
            message: "the server gave a certificate that ends no later".to_owned(),
        });
    }
    let client = renewed.client(&shared.config.url)?;
    tracing::info!(node = renewed.parsed.node, "renewed the node's certificate");
    *shared.credentials.lock() = (renewed, client);
    Ok(())
}
