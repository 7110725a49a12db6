//! What this agent shows to those who watch flows: the hub behind the flow API, on a unix socket and, where
//! that is configured, on TCP.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::core::Core;
use super::history::Recorder;
use super::hub::Hub;
use crate::api;
use crate::api::hubble::convert::Naming;
use crate::api::hubble::serve::{self, Places};
use crate::api::hubble::source::{Observed, PeerInfo, PeerTls, RingCounts};
use crate::api::hubble::tls::{Clients, Credentials, TlsFiles};
use crate::api::hubble::{PORT, SOCKET, explain, observer_services};
use crate::api::past::PastFlows;
use crate::api::ui::source::UiSource;
use crate::cluster::delta::{Delta, EndpointChange};
use crate::cluster::{Change, Resource};
use crate::config::{AgentConfig, FlowApiSecurity};
use crate::flow::journal::{self, AgentEvent};
use crate::flow::ring::Batch;
use crate::model::{Kind, Object};

/// See the module.
#[derive(Debug)]
struct AgentObserver {
    naming: Naming,
    node: String,
    started: Instant,
    hub: Arc<Hub>,
    history: Option<Arc<Recorder>>,
}

impl Observed for AgentObserver {
    fn naming(&self) -> &Naming {
        &self.naming
    }

    fn node(&self) -> &str {
        &self.node
    }

    fn version(&self) -> String {
        concat!("sluice v", env!("CARGO_PKG_VERSION")).to_owned()
    }

    fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    fn read(&self, cursor: u64, limit: usize) -> Batch {
        self.hub.read(cursor, limit)
    }

    fn counts(&self) -> RingCounts {
        self.hub.counts()
    }

    fn past(&self) -> Option<Arc<dyn PastFlows>> {
        self.history.clone().map(|history| history as Arc<dyn PastFlows>)
    }

    fn grown(&self) -> watch::Receiver<u64> {
        self.hub.grown()
    }

    fn journal(&self, cursor: u64) -> journal::Batch {
        self.hub.journal(cursor)
    }

    fn journal_grown(&self) -> watch::Receiver<u64> {
        self.hub.journal_grown()
    }

    fn peers(&self) -> watch::Receiver<Arc<Vec<PeerInfo>>> {
        self.hub.peers()
    }
}

/// The flow API's sockets, open and in service until `stop`; beside it `explainer`, for relays.
pub async fn serve(
    config: &AgentConfig,
    hub: Arc<Hub>,
    history: Option<Arc<Recorder>>,
    explainer: Arc<dyn UiSource>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let observer = Arc::new(AgentObserver {
        naming: hub.naming().clone(),
        node: config.node_name.clone(),
        started: Instant::now(),
        hub,
        history,
    });
    let mut services = observer_services(observer);
    services.add_service(explain::service(explainer));
    let routes = serve::routes(services).await;
    let places = Places::default();
    if let Some(api) = &config.flow_api {
        let credentials = match &api.security {
            FlowApiSecurity::Plain => None,
            FlowApiSecurity::Files(files) => Some(files.clone()),
            FlowApiSecurity::NodeCertificate => Some(node_files(config)),
        };
        let credentials = credentials.map(Credentials::load).transpose().context("TLS of the flow API")?;
        let listener =
            TcpListener::bind(api.listen).await.with_context(|| format!("listen on {}", api.listen))?;
        tracing::info!(listen = %api.listen, tls = credentials.is_some(), "flow API");
        let serving = serve::tcp(listener, credentials, routes.clone(), places.clone(), stop.clone());
        tokio::spawn(log_end(serving));
    }
    let listener = api::unix::bind(&config.run_dir.join(SOCKET)).await?;
    tokio::spawn(log_end(serve::unix(listener, routes, places, stop)));
    Ok(())
}

/// What the server gave this node when it joined; the server renews it.
fn node_files(config: &AgentConfig) -> TlsFiles {
    let directory = config.state_dir.join("server");
    TlsFiles {
        certificate: directory.join("node.crt"),
        key: directory.join("node.key"),
        clients: Clients::SignedBy(directory.join("ca.crt")),
    }
}

async fn log_end(serving: impl Future<Output = Result<(), tonic::transport::Error>>) {
    if let Err(error) = serving.await {
        tracing::error!(%error, "the flow API has ended; enforcement goes on");
    }
}

/// What a transaction is for those who watch; taken before it, told when it was accepted.
#[derive(Debug, Default)]
pub struct Notes {
    events: Vec<AgentEvent>,
    nodes_changed: bool,
}

impl Notes {
    pub fn of(changes: &[Change], revision: u64) -> Notes {
        let mut notes = Notes::default();
        for change in changes {
            match change {
                Change::Upsert(Resource::Policy(policy)) => {
                    let (object, rules) = (policy.object.clone(), policy.specs.len());
                    notes.events.push(AgentEvent::PolicyUpdated { object, revision, rules });
                }
                Change::Delete(object) if object.kind == Kind::Node => notes.nodes_changed = true,
                Change::Delete(object)
                    if matches!(
                        object.kind,
                        Kind::NetworkPolicy
                            | Kind::CiliumNetworkPolicy
                            | Kind::CiliumClusterwideNetworkPolicy
                            | Kind::ClusterNetworkPolicy
                    ) =>
                {
                    notes.events.push(AgentEvent::PolicyDeleted { object: object.clone(), revision });
                }
                Change::Upsert(Resource::Object(Object::Node(_))) => notes.nodes_changed = true,
                Change::Upsert(_) | Change::Delete(_) => {}
            }
        }
        notes
    }
}

impl Core {
    /// The transaction was accepted.
    pub fn tell(&self, notes: Notes) {
        for event in notes.events {
            self.hub.note(event);
        }
        if notes.nodes_changed {
            self.publish_peers();
        }
    }

    /// Tells those who watch what the kernel is going to have.
    pub fn note_delta(&self, delta: &Delta) {
        for (prefix, entry) in &delta.ipcache {
            self.hub.note(match entry {
                Some(entry) => AgentEvent::AddressLearned { prefix: *prefix, identity: entry.identity },
                None => AgentEvent::AddressForgotten { prefix: *prefix },
            });
        }
        for change in &delta.endpoints {
            let event = |pod: &str, make: fn(Arc<str>, u16) -> AgentEvent| {
                let id = self.endpoints.get(pod).map_or(0, |member| member.registration.id);
                make(pod.into(), id)
            };
            self.hub.note(match change {
                EndpointChange::Upsert { pod, .. } => {
                    event(pod, |pod, id| AgentEvent::EndpointCreated { pod, id })
                }
                EndpointChange::Remove { pod } => {
                    event(pod, |pod, id| AgentEvent::EndpointDeleted { pod, id })
                }
            });
        }
    }

    /// Every node's agent listens on the same port with the same kind of credentials as this one.
    fn publish_peers(&self) {
        let (port, tls) = match &self.config.flow_api {
            None => (PORT, PeerTls::Plain),
            Some(api) if api.security == FlowApiSecurity::Plain => (api.listen.port(), PeerTls::Plain),
            Some(api) => (api.listen.port(), PeerTls::ByNodeName),
        };
        let mut peers: Vec<PeerInfo> = self
            .view
            .nodes()
            .filter_map(|node| {
                let address = *node.addresses.first()?;
                Some(PeerInfo { node: node.name.clone(), address, port, tls })
            })
            .collect();
        peers.sort();
        self.hub.set_peers(peers);
    }
}
