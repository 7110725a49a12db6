//! The peers of a relay: where they are, whether they answer, and what they say of themselves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tonic::transport::Channel;

use crate::api::hubble::client::{self, ClientTls, Security, ServerAddress, causes};
use crate::api::hubble::explain;
use crate::api::hubble::pb::observer::observer_client::ObserverClient;
use crate::api::hubble::pb::observer::{ServerStatusRequest, ServerStatusResponse};
use crate::api::hubble::pb::peer::peer_client::PeerClient;
use crate::api::hubble::pb::peer::{ChangeNotification, ChangeNotificationType, NotifyRequest};
use crate::api::hubble::pb::sluice::explain::v1::explainer_client::ExplainerClient;

/// Peers that one relay keeps.
const PEERS: usize = 5000;
const PROBE: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_secs(2);
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// Where a peer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    pub server: ServerAddress,
    /// Name in its certificate.
    pub server_name: Option<String>,
}

/// Whether a peer answers.
#[derive(Clone, Debug, PartialEq)]
pub enum PeerState {
    /// Not asked yet.
    Unknown,
    Connected(Box<ServerStatusResponse>),
    Unavailable(Arc<str>),
}

/// One peer.
#[derive(Clone, Debug)]
pub struct Peer {
    pub name: Arc<str>,
    pub address: PeerAddress,
    pub state: PeerState,
    channel: Channel,
    probe: AbortHandle,
}

impl Peer {
    pub fn client(&self) -> ObserverClient<Channel> {
        ObserverClient::new(self.channel.clone()).max_decoding_message_size(client::MAX_RESPONSE)
    }

    pub fn explainer(&self) -> ExplainerClient<Channel> {
        ExplainerClient::new(self.channel.clone()).max_decoding_message_size(explain::MAX_ANSWER)
    }

    pub fn is_available(&self) -> bool {
        !matches!(self.state, PeerState::Unavailable(_))
    }
}

/// See the module.
#[derive(Debug)]
pub struct Pool {
    tls: ClientTls,
    peers: watch::Sender<Arc<BTreeMap<Arc<str>, Peer>>>,
    /// Serialises changes of the map.
    writing: Mutex<()>,
}

impl Pool {
    pub fn new(tls: ClientTls) -> Arc<Pool> {
        Arc::new(Pool { tls, peers: watch::channel(Arc::default()).0, writing: Mutex::new(()) })
    }

    /// Peers by name; changes when one comes, goes or changes its state.
    pub fn watch(&self) -> watch::Receiver<Arc<BTreeMap<Arc<str>, Peer>>> {
        self.peers.subscribe()
    }

    pub fn peers(&self) -> Arc<BTreeMap<Arc<str>, Peer>> {
        Arc::clone(&self.peers.borrow())
    }

    fn edit(&self, edit: impl FnOnce(&mut BTreeMap<Arc<str>, Peer>)) {
        let _writing = self.writing.lock();
        let mut peers = BTreeMap::clone(&self.peers.borrow());
        edit(&mut peers);
        self.peers.send_replace(Arc::new(peers));
    }

    /// Adds a peer, or moves it.
    pub fn put(self: &Arc<Pool>, name: &str, address: PeerAddress) {
        let name: Arc<str> = name.into();
        let peers = self.peers();
        match peers.get(&name) {
            Some(known) if known.address == address => return,
            Some(known) => known.probe.abort(),
            None if peers.len() >= PEERS => {
                tracing::warn!(node = %name, "more than {PEERS} peers: this one is left out");
                return;
            }
            None => {}
        }
        let tls = ClientTls {
            server_name: address.server_name.clone().or_else(|| self.tls.server_name.clone()),
            ..self.tls.clone()
        };
        let channel = match client::lazy(&address.server, &tls) {
            Ok(channel) => channel,
            Err(error) => {
                tracing::error!(node = %name, %error, "a peer cannot be connected to");
                return;
            }
        };
        let probe = tokio::spawn(Arc::clone(self).probe(Arc::clone(&name), channel.clone())).abort_handle();
        let state = PeerState::Unknown;
        self.edit(|peers| {
            peers.insert(Arc::clone(&name), Peer { name, address, state, channel, probe });
        });
    }

    pub fn remove(&self, name: &str) {
        self.edit(|peers| {
            if let Some(peer) = peers.remove(name) {
                peer.probe.abort();
            }
        });
    }

    fn set_state(&self, name: &str, state: PeerState) {
        let same = |old: &PeerState| match (old, &state) {
            (PeerState::Unavailable(_), PeerState::Unavailable(_)) => true,
            (old, new) => old == new,
        };
        if self.peers().get(name).is_none_or(|peer| same(&peer.state)) {
            return;
        }
        self.edit(|peers| {
            if let Some(peer) = peers.get_mut(name) {
                match (&peer.state, &state) {
                    (PeerState::Connected(_), PeerState::Unavailable(error)) => {
                        tracing::warn!(node = name, %error, "a peer does not answer any more");
                    }
                    (PeerState::Unknown | PeerState::Unavailable(_), PeerState::Connected(_)) => {
                        tracing::info!(node = name, "a peer answers");
                    }
                    _ => {}
                }
                peer.state = state;
            }
        });
    }

    async fn probe(self: Arc<Pool>, name: Arc<str>, channel: Channel) {
        let mut pause = RETRY.0;
        loop {
            let mut client = ObserverClient::new(channel.clone());
            let answer = tokio::time::timeout(ANSWER, client.server_status(ServerStatusRequest {})).await;
            let state = match answer {
                Ok(Ok(status)) => PeerState::Connected(Box::new(status.into_inner())),
                Ok(Err(status)) => PeerState::Unavailable(causes(&status).into()),
                Err(_) => PeerState::Unavailable("no answer in time".into()),
            };
            pause = match &state {
                PeerState::Connected(_) => RETRY.0,
                _ => (pause * 2).min(RETRY.1),
            };
            let wait = if matches!(state, PeerState::Connected(_)) { PROBE } else { pause };
            self.set_state(&name, state);
            tokio::time::sleep(wait).await;
        }
    }

    /// Follows the peer service of one observer for as long as the relay runs; while that is gone, the peers
    /// that were told stay.
    pub async fn discover(self: Arc<Pool>, service: ServerAddress) {
        let mut pause = RETRY.0;
        loop {
            match self.follow(&service).await {
                Ok(()) => pause = RETRY.0,
                Err(error) => tracing::warn!(%service, error, "the peer service cannot be followed"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }

    async fn follow(self: &Arc<Pool>, service: &ServerAddress) -> Result<(), String> {
        let channel = client::connect(service, &self.tls).await.map_err(|error| error.to_string())?;
        let mut client = PeerClient::new(channel);
        let stream = client.notify(NotifyRequest {}).await.map_err(|status| causes(&status))?;
        let mut stream = stream.into_inner();
        while let Some(change) = stream.message().await.map_err(|status| causes(&status))? {
            self.take(&change);
        }
        Ok(())
    }

    fn take(self: &Arc<Pool>, change: &ChangeNotification) {
        match change.r#type() {
            ChangeNotificationType::PeerDeleted => self.remove(&change.name),
            ChangeNotificationType::PeerAdded | ChangeNotificationType::PeerUpdated => {
                let scheme = if change.tls.is_some() { "tls://" } else { "" };
                match format!("{scheme}{}", change.address).parse() {
                    Ok(server) => {
                        let server_name = change.tls.as_ref().map(|tls| tls.server_name.clone());
                        self.put(&change.name, PeerAddress { server, server_name });
                    }
                    Err(error) => tracing::warn!(node = change.name, %error, "a peer's address"),
                }
            }
            ChangeNotificationType::Unknown => {}
        }
    }
}

/// `NAME=ADDRESS`.
pub fn parse_peer(text: &str) -> Result<(String, PeerAddress), String> {
    let (name, address) = text.split_once('=').ok_or_else(|| format!("{text:?}: expected NAME=ADDRESS"))?;
    if name.is_empty() {
        return Err(format!("{text:?}: the name is empty"));
    }
    let server: ServerAddress = address.parse().map_err(|error: client::AddressError| error.to_string())?;
    let is_tls = matches!(server, ServerAddress::Tcp { security: Security::Tls, .. });
    Ok((name.to_owned(), PeerAddress { server, server_name: is_tls.then(|| name.to_owned()) }))
}
