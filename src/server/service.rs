//! The gRPC calls: who is calling, may they, and what the state answers.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::blocking::blocking;
use super::event::{self, Update};
use super::join_secret;
use super::limiter::JoinLimiter;
use super::pki::{Authority, NodeCertificate, NodeRequest, check_node_name};
use super::proto::{self, cluster_server::Cluster};
use super::state::{State, Subscription};
use crate::model::{Identity, Labels};
use crate::store::{Clock, IdentityStoreError, NodeReport, StoreError};

/// Encoded events that wait for a stream's flow control, on top of the state's backlog.
const STREAM_QUEUE: usize = 4;
/// Label sets in one request.
const MAX_SETS: usize = 65_536;

pub(super) struct ClusterService {
    pub(super) state: Arc<State>,
    pub(super) authority: Arc<Authority>,
    pub(super) cluster: String,
    pub(super) clock: Clock,
    pub(super) limiter: Mutex<JoinLimiter>,
    /// Ends the streams, so that a graceful shutdown does not wait for them.
    pub(super) shutdown: CancellationToken,
}

impl ClusterService {
    /// The node that calls, by the certificate that TLS has verified, if its name is still bound to
    /// its key.
    fn caller<T>(&self, request: &Request<T>) -> Result<NodeCertificate, Status> {
        let certificates = request.peer_certs();
        let certificate = certificates
            .as_deref()
            .and_then(|chain| chain.first())
            .ok_or_else(|| Status::unauthenticated("this call needs a node's certificate: join first"))?;
        let certificate = NodeCertificate::from_der(certificate)
            .map_err(|error| Status::unauthenticated(error.to_string()))?;
        if certificate.not_after <= (self.clock)() {
            return Err(Status::unauthenticated("the node's certificate has expired"));
        }
        self.current(&certificate)?;
        Ok(certificate)
    }

    fn current(&self, certificate: &NodeCertificate) -> Result<(), Status> {
        if self.state.is_current(&certificate.node, &certificate.key) {
            Ok(())
        } else {
            Err(Status::unauthenticated(format!("node {} has been removed", certificate.node)))
        }
    }

    fn credentials(&self, request: &NodeRequest, node: &str) -> Result<proto::Credentials, Status> {
        let certificate = self
            .authority
            .sign_node(request, node, (self.clock)())
            .map_err(|error| Status::internal(error.to_string()))?;
        Ok(proto::Credentials {
            certificate,
            authority: self.authority.certificate.clone(),
            cluster: self.cluster.clone(),
        })
    }
}

fn of_store(error: &StoreError) -> Status {
    // The path of the file is no business of the nodes.
    tracing::error!(%error, "a node's call failed");
    Status::unavailable(format!("the server's state store failed ({})", error.class()))
}

fn of_identities(error: IdentityStoreError) -> Status {
    match error {
        IdentityStoreError::Exhausted => Status::resource_exhausted(error.to_string()),
        IdentityStoreError::NotAPod(_) => Status::invalid_argument(error.to_string()),
        IdentityStoreError::Store(error) => of_store(&error),
    }
}

fn invalid(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(error.to_string())
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn join(
        &self,
        request: Request<proto::JoinRequest>,
    ) -> Result<Response<proto::Credentials>, Status> {
        let address = request.remote_addr().map(|address| address.ip());
        if let Err(wait) = self.limiter.lock().attempt(address, Instant::now()) {
            return Err(Status::resource_exhausted(format!(
                "too many attempts to join from this address; next one in {} s",
                wait.as_secs() + 1
            )));
        }
        let request = request.into_inner();
        let store = self.state.objects().store().clone();
        let secret = request.secret;
        let accepted = blocking(move || join_secret::accepts(&store, &secret))
            .await
            .map_err(|error| of_store(&error))?;
        if !accepted {
            tracing::warn!(?address, "refused to join: wrong token");
            return Err(Status::permission_denied("the token is wrong or has been replaced"));
        }
        let node = request.node;
        check_node_name(&node).map_err(invalid)?;
        let certificate = NodeRequest::from_der(&request.certificate_request).map_err(invalid)?;
        let (state, name, key) = (self.state.clone(), node.clone(), certificate.key_digest());
        let bound = blocking(move || state.join(&name, key)).await.map_err(|error| of_store(&error))?;
        if !bound {
            tracing::warn!(node, ?address, "refused to join: the name belongs to another key");
            return Err(Status::already_exists(format!(
                "node {node} has joined with another key; if it was rebuilt, run \
                 `sluice server node remove {node}` on the server"
            )));
        }
        tracing::info!(node, ?address, "node joined");
        Ok(Response::new(self.credentials(&certificate, &node)?))
    }

    async fn renew(
        &self,
        request: Request<proto::RenewRequest>,
    ) -> Result<Response<proto::Credentials>, Status> {
        let caller = self.caller(&request)?;
        let certificate =
            NodeRequest::from_der(&request.into_inner().certificate_request).map_err(invalid)?;
        if certificate.key_digest() != caller.key {
            return Err(Status::permission_denied("a certificate is renewed for the same key only"));
        }
        Ok(Response::new(self.credentials(&certificate, &caller.node)?))
    }

    type WatchStream = ReceiverStream<Result<proto::Event, Status>>;

    async fn watch(
        &self,
        request: Request<proto::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let state = self.state.clone();
        let subscription = blocking(move || {
            state.subscribe(request.revision.map(|revision| (request.epoch.as_str(), revision)))
        })
        .await
        .map_err(|error| of_store(&error))?;
        let (events, stream) = mpsc::channel(STREAM_QUEUE);
        let (state, shutdown) = (self.state.clone(), self.shutdown.clone());
        let is_current = move || state.is_current(&caller.node, &caller.key);
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {
                    let _ = events.try_send(Err(Status::unavailable("the server is stopping")));
                }
                () = events.closed() => {}
                () = feed(&events, subscription, is_current) => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn allocate_identities(
        &self,
        request: Request<proto::AllocateIdentitiesRequest>,
    ) -> Result<Response<proto::AllocateIdentitiesResponse>, Status> {
        let caller = self.caller(&request)?;
        let sets = request.into_inner().sets;
        if sets.len() > MAX_SETS {
            return Err(invalid(format!("{} label sets; at most {MAX_SETS} in one request", sets.len())));
        }
        let sets: Vec<Labels> =
            sets.iter().map(event::parse_labels).collect::<Result<_, _>>().map_err(invalid)?;
        let state = self.state.clone();
        let ids = blocking(move || state.allocate(&caller.node, &sets)).await.map_err(of_identities)?;
        let ids = ids.into_iter().map(|id| id.0).collect();
        Ok(Response::new(proto::AllocateIdentitiesResponse { ids }))
    }

    async fn release_identities(
        &self,
        request: Request<proto::ReleaseIdentitiesRequest>,
    ) -> Result<Response<proto::ReleaseIdentitiesResponse>, Status> {
        let caller = self.caller(&request)?;
        let ids: Vec<Identity> = request.into_inner().ids.into_iter().map(Identity).collect();
        let state = self.state.clone();
        blocking(move || state.release(&caller.node, &ids)).await.map_err(|error| of_store(&error))?;
        Ok(Response::new(proto::ReleaseIdentitiesResponse {}))
    }

    async fn report(
        &self,
        request: Request<proto::NodeReport>,
    ) -> Result<Response<proto::ReportResponse>, Status> {
        let caller = self.caller(&request)?;
        let report = request.into_inner();
        let held: Option<BTreeSet<Identity>> =
            report.held.map(|held| held.ids.into_iter().map(Identity).collect());
        let addresses: Vec<IpAddr> = event::parse_addresses(&report.addresses).map_err(invalid)?;
        let row = NodeReport {
            addresses,
            realized_revision: report.realized_revision,
            version: report.version.chars().take(100).collect(),
        };
        let (state, node) = (self.state.clone(), caller.node.clone());
        let known = blocking(move || state.report(&node, row, held.as_ref())).await.map_err(of_identities)?;
        if !known {
            self.current(&caller)?;
        }
        Ok(Response::new(proto::ReportResponse {}))
    }
}

/// Sends the state and then every update, until the receiver is gone, too slow, or not welcome any
/// more.
async fn feed(
    events: &mpsc::Sender<Result<proto::Event, Status>>,
    (snapshot, mut updates): Subscription,
    is_current: impl Fn() -> bool,
) {
    let mut next = Arc::new(snapshot);
    loop {
        if send(events, &next).await.is_err() {
            return;
        }
        next = match updates.recv().await {
            Ok(update) => update,
            Err(RecvError::Lagged(missed)) => {
                let status = Status::resource_exhausted(format!("too slow: {missed} updates were missed"));
                let _ = events.send(Err(status)).await;
                return;
            }
            Err(RecvError::Closed) => return,
        };
        if !is_current() {
            let _ = events.send(Err(Status::unauthenticated("the node has been removed"))).await;
            return;
        }
    }
}

async fn send(events: &mpsc::Sender<Result<proto::Event, Status>>, update: &Update) -> Result<(), ()> {
    for part in event::encode(update, event::PART_BYTES) {
        events.send(Ok(part)).await.map_err(|_| ())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast;

    use super::*;

    #[tokio::test]
    async fn a_slow_stream_ends_with_an_error_and_bounded_memory() {
        let (updates, receiver) = broadcast::channel(8);
        let (events, mut stream) = mpsc::channel(STREAM_QUEUE);
        let task = tokio::spawn(async move { feed(&events, (Update::default(), receiver), || true).await });
        // The first event proves that the stream runs; then nobody reads for a while.
        stream.recv().await.unwrap().unwrap();
        for revision in 0..100 {
            updates.send(Arc::new(Update { revision, ..Update::default() })).unwrap();
            tokio::task::yield_now().await;
        }
        let mut received = 0;
        let status = loop {
            match stream.recv().await.expect("the stream says why it ends") {
                Ok(_) => received += 1,
                Err(status) => break status,
            }
        };
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert!(received <= STREAM_QUEUE + 8, "{received}");
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_removed_node_hears_nothing_more() {
        let (updates, receiver) = broadcast::channel(8);
        let (events, mut stream) = mpsc::channel(STREAM_QUEUE);
        let task = tokio::spawn(async move { feed(&events, (Update::default(), receiver), || false).await });
        stream.recv().await.unwrap().unwrap();
        updates.send(Arc::new(Update::default())).unwrap();
        let status = stream.recv().await.unwrap().unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unauthenticated);
        task.await.unwrap();
    }
}
