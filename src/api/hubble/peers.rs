//! `peer.Peer`: which observers the cluster has, for relays.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::convert::Naming;
use super::observer::Responses;
use super::pb::peer::peer_server::Peer;
use super::pb::peer::{ChangeNotification, ChangeNotificationType, NotifyRequest, Tls};
use super::source::{PeerInfo, PeerTls};

type Peers = Arc<Vec<PeerInfo>>;

/// See the module.
#[derive(Clone, Debug)]
pub struct PeerService {
    peers: watch::Receiver<Peers>,
    naming: Naming,
}

impl PeerService {
    pub fn new(peers: watch::Receiver<Peers>, naming: Naming) -> PeerService {
        PeerService { peers, naming }
    }

    fn notification(&self, peer: &PeerInfo, kind: ChangeNotificationType) -> ChangeNotification {
        ChangeNotification {
            name: self.naming.node(&peer.node),
            address: SocketAddr::new(peer.address, peer.port).to_string(),
            r#type: kind.into(),
            tls: (peer.tls == PeerTls::ByNodeName).then(|| Tls { server_name: peer.node.clone() }),
        }
    }

    /// What leads from the peers that were told to those that are.
    fn changes(
        &self,
        told: &mut BTreeMap<String, PeerInfo>,
        now: &[PeerInfo],
    ) -> VecDeque<ChangeNotification> {
        let current: BTreeMap<String, PeerInfo> =
            now.iter().map(|peer| (peer.node.clone(), peer.clone())).collect();
        let mut changes = VecDeque::new();
        for (name, peer) in told.iter().filter(|(name, _)| !current.contains_key(*name)) {
            tracing::debug!(node = name, "peer is gone");
            changes.push_back(self.notification(peer, ChangeNotificationType::PeerDeleted));
        }
        for (name, peer) in &current {
            match told.get(name) {
                None => changes.push_back(self.notification(peer, ChangeNotificationType::PeerAdded)),
                Some(before) if before != peer => {
                    changes.push_back(self.notification(peer, ChangeNotificationType::PeerUpdated));
                }
                Some(_) => {}
            }
        }
        *told = current;
        changes
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    type NotifyStream = Responses<ChangeNotification>;

    async fn notify(&self, _: Request<NotifyRequest>) -> Result<Response<Self::NotifyStream>, Status> {
        let mut peers = self.peers.clone();
        peers.mark_changed();
        let state = (self.clone(), peers, BTreeMap::new(), VecDeque::new());
        Ok(Response::new(Box::pin(futures::stream::unfold(
            state,
            |(service, mut peers, mut told, mut ready)| async move {
                loop {
                    if let Some(change) = ready.pop_front() {
                        return Some((Ok(change), (service, peers, told, ready)));
                    }
                    peers.changed().await.ok()?;
                    let now = Arc::clone(&peers.borrow_and_update());
                    ready = service.changes(&mut told, &now);
                }
            },
        ))))
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;

    fn peer(node: &str, port: u16) -> PeerInfo {
        PeerInfo { node: node.into(), address: "10.0.0.1".parse().unwrap(), port, tls: PeerTls::ByNodeName }
    }

    #[tokio::test]
    async fn all_peers_come_first_and_then_each_change() {
        let (sender, receiver) = watch::channel(Arc::new(vec![peer("a", 1), peer("b", 2)]));
        let service = PeerService::new(receiver, Naming { cluster: "default".into() });
        let mut stream = service.notify(Request::new(NotifyRequest {})).await.unwrap().into_inner();
        let mut next = async || {
            let change = stream.next().await.unwrap().unwrap();
            (change.name.clone(), change.address.clone(), change.r#type())
        };
        assert_eq!(next().await, ("a".into(), "10.0.0.1:1".into(), ChangeNotificationType::PeerAdded));
        assert_eq!(next().await, ("b".into(), "10.0.0.1:2".into(), ChangeNotificationType::PeerAdded));
        sender.send_replace(Arc::new(vec![peer("b", 3)]));
        assert_eq!(next().await, ("a".into(), "10.0.0.1:1".into(), ChangeNotificationType::PeerDeleted));
        assert_eq!(next().await, ("b".into(), "10.0.0.1:3".into(), ChangeNotificationType::PeerUpdated));
    }
}
