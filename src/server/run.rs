//! Bringing the server up, serving, and stopping it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use super::admin::{self, Admin};
use super::blocking::blocking;
use super::files::{FileError, private_directory};
use super::join_secret::{self, SecretError};
use super::limiter::JoinLimiter;
use super::pki::{Authority, PkiError};
use super::proto::cluster_server::ClusterServer;
use super::service::ClusterService;
use super::state::{State, StateError};
use crate::cluster::ViewOptions;
use crate::store::objects::{ManifestParser, ObjectStore};
use crate::store::{Clock, DEFAULT_GRACE, OnCorrupt, OpenOptions, Store, StoreError};

/// A dead connection is found after this.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How often identities that nobody holds are looked at.
const COLLECT: Duration = Duration::from_secs(60);

/// What a server needs to know.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Holds `server.db`, `token` and `ca/`; an agent may share it.
    pub state_dir: PathBuf,
    /// Label `io.cilium.k8s.policy.cluster` of every pod.
    pub cluster_name: String,
    /// `HOST:PORT` under which agents reach this server, for people to read.
    pub advertise: String,
    pub on_corrupt: OnCorrupt,
    /// What every agent of the cluster derives identities with (`node` and `cluster_name` are set
    /// here).
    pub view: ViewOptions,
}

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("serve agents on {address}: {source}")]
    Serve { address: SocketAddr, source: tonic::transport::Error },
    #[error("serve the admin socket: {0}")]
    Admin(std::io::Error),
    #[error("the listening socket: {0}")]
    Listener(std::io::Error),
}

/// A server that is ready to serve.
#[derive(Debug)]
pub struct Server {
    config: ServerConfig,
    pub(super) state: Arc<State>,
    authority: Arc<Authority>,
    clock: ClockDebug,
}

/// A clock in a type that derives `Debug`.
struct ClockDebug(Clock);

impl std::fmt::Debug for ClockDebug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

impl Server {
    /// Opens state, CA and token, making what is not there yet. Blocks.
    ///
    /// # Errors
    ///
    /// [`ServerError`]; nothing listens yet.
    pub fn open(
        config: ServerConfig,
        parser: Arc<dyn ManifestParser>,
        clock: Clock,
    ) -> Result<Server, ServerError> {
        private_directory(&config.state_dir)?;
        let options = OpenOptions {
            on_corrupt: config.on_corrupt,
            ..OpenOptions::new(config.state_dir.join("server.db"))
        };
        let store = Store::open(&options)?;
        let authority = Arc::new(Authority::load_or_create(&config.state_dir.join("ca"), clock())?);
        let token = config.state_dir.join("token");
        join_secret::ensure(&token, &store, authority.fingerprint, clock())?;
        let objects = ObjectStore::new(store, parser);
        let options = ViewOptions { cluster_name: config.cluster_name.clone(), ..config.view.clone() };
        let state = Arc::new(State::open(objects, options, clock.clone(), DEFAULT_GRACE)?);
        Ok(Server { config, state, authority, clock: ClockDebug(clock) })
    }

    /// Where the join token is.
    pub fn token_file(&self) -> PathBuf {
        self.config.state_dir.join("token")
    }

    /// Serves agents on `agents` and the admin API on `admin` until `shutdown` is cancelled or one of
    /// the two fails.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn serve(
        self,
        agents: TcpListener,
        admin: UnixListener,
        shutdown: CancellationToken,
    ) -> Result<(), ServerError> {
        let address = agents.local_addr().map_err(ServerError::Listener)?;
        let serve = |source| ServerError::Serve { address, source };
        let identity = self.authority.server_identity((self.clock.0)())?;
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(identity.chain, identity.key))
            // Optional, because a node that joins has none yet; every other call asks for it.
            .client_ca_root(Certificate::from_pem(&self.authority.certificate))
            .client_auth_optional(true)
            .timeout(HANDSHAKE);
        let service = ClusterService {
            state: self.state.clone(),
            authority: self.authority.clone(),
            cluster: self.config.cluster_name.clone(),
            clock: self.clock.0.clone(),
            limiter: Mutex::new(JoinLimiter::default()),
            shutdown: shutdown.clone(),
        };
        let agents = tonic::transport::Server::builder()
            .tls_config(tls)
            .map_err(serve)?
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
            .max_concurrent_streams(64)
            .tcp_nodelay(true)
            .add_service(ClusterServer::new(service).max_encoding_message_size(super::event::MESSAGE_BYTES))
            .serve_with_incoming_shutdown(TcpIncoming::from(agents), shutdown.clone().cancelled_owned());
        let router = admin::router(Arc::new(Admin {
            state: self.state.clone(),
            authority: self.authority.clone(),
            config: self.config.clone(),
            listen: address,
            started: Instant::now(),
            clock: self.clock.0.clone(),
        }));
        let admin = axum::serve(admin, router).with_graceful_shutdown(shutdown.clone().cancelled_owned());
        let collector = tokio::spawn(collect(self.state.clone(), self.clock.0.clone(), shutdown.clone()));
        let agents = async { agents.await.map_err(serve) };
        let admin = async { admin.await.map_err(ServerError::Admin) };
        // One that fails takes the other down with it.
        let stop_both = shutdown.clone().drop_guard();
        let outcome = tokio::try_join!(agents, admin).map(|_| ());
        drop(stop_both);
        // It ends by the same token; a panic in it has been reported where it happened.
        collector.await.ok();
        outcome
    }
}

async fn collect(state: Arc<State>, clock: Clock, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(COLLECT);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let (state, now) = (state.clone(), clock());
        // The store counts and reports its errors; the next tick tries again.
        if let Err(error) = blocking(move || state.tend(now)).await {
            tracing::warn!(%error, "identities that nobody holds could not be collected");
        }
    }
}
