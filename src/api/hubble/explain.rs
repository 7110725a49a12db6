//! What an agent tells relays beside the flow API: why it decides as it does, and by which policies.
//!
//! Questions are messages; answers are the JSON that the agent's own page gets, whose members are only ever added, so that
//! a relay and its agents need not be of one version. An agent that is older than this service answers
//! `UNIMPLEMENTED`. Whoever may read flows may read this: texts of policies, and of no `Secret`.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::pb::sluice::explain::v1 as wire;
use super::pb::sluice::explain::v1::explainer_server::{Explainer, ExplainerServer};
use super::pb::sluice::explain::v1::question::Asked;
use super::serve;
use crate::api::admin;
use crate::api::backend::Refusal;
use crate::api::ui::source::{ProxyRequest, Question, UiSource};
use crate::model::{Kind, ObjectRef};

/// Questions that the engine works on at once; others wait, as its other work goes first.
const AT_ONCE: usize = 2;
/// Longest answer in bytes: some 100,000 rules.
pub const MAX_ANSWER: usize = 16 * 1024 * 1024;

struct ExplainService {
    source: Arc<dyn UiSource>,
    places: Semaphore,
}

/// The service, ready to stand beside [`super::observer_services`].
pub fn service(source: Arc<dyn UiSource>) -> ExplainerServer<impl Explainer> {
    let service = ExplainService { source, places: Semaphore::new(AT_ONCE) };
    ExplainerServer::new(service)
        .max_decoding_message_size(serve::MAX_REQUEST)
        .max_encoding_message_size(MAX_ANSWER)
}

/// A question as it travels.
pub(super) fn question(question: &Question) -> wire::Question {
    let asked = question.request.as_ref().map(|request| match request {
        ProxyRequest::Http { method, path, host } => Asked::Http(wire::HttpRequest {
            method: method.to_string(),
            path: path.to_string(),
            host: host.to_string(),
        }),
        ProxyRequest::Dns { query } => Asked::DnsQuery(query.to_string()),
        ProxyRequest::Tls { server_name } => Asked::ServerName(server_name.to_string()),
    });
    wire::Question {
        from: question.from.to_string(),
        to: question.to.to_string(),
        port: question.port.into(),
        protocol: question.protocol.to_string(),
        asked,
    }
}

/// An object's name as it travels.
pub(super) fn key(object: &ObjectRef) -> wire::ObjectKey {
    wire::ObjectKey {
        kind: object.kind.to_string(),
        namespace: object.namespace.to_string(),
        name: object.name.to_string(),
    }
}

/// What an answer holds.
///
/// # Errors
/// It is not what was asked for.
pub(super) fn read<T: DeserializeOwned>(answer: &wire::Answer) -> Result<T, String> {
    serde_json::from_slice(&answer.json).map_err(|error| format!("an answer that is not understood: {error}"))
}

fn parse(question: wire::Question) -> Result<Question, Status> {
    let address = |name: &str, text: &str| {
        text.parse().map_err(|_| Status::invalid_argument(format!("{name}: {text:?} is not an address")))
    };
    let protocol = admin::protocol(&question.protocol).ok_or_else(|| {
        let name = &question.protocol;
        Status::invalid_argument(format!("protocol: {name:?} is none of TCP, UDP, SCTP, ICMP and ICMPv6"))
    })?;
    let port = u16::try_from(question.port)
        .map_err(|_| Status::invalid_argument(format!("port: {} is above 65535", question.port)))?;
    let request = question.asked.map(|asked| match asked {
        Asked::Http(http) => {
            ProxyRequest::Http { method: http.method.into(), path: http.path.into(), host: http.host.into() }
        }
        Asked::DnsQuery(query) => ProxyRequest::Dns { query: query.into() },
        Asked::ServerName(name) => ProxyRequest::Tls { server_name: name.into() },
    });
    Ok(Question {
        from: address("from", &question.from)?,
        to: address("to", &question.to)?,
        port,
        protocol,
        request,
    })
}

fn refused(refusal: Refusal) -> Status {
    match refusal {
        Refusal::Invalid { message, .. } => Status::invalid_argument(message),
        Refusal::NotFound(message) => Status::not_found(message),
        Refusal::Conflict(message) => Status::failed_precondition(message),
        Refusal::Failed(message) => Status::internal(message),
    }
}

impl ExplainService {
    async fn answer<T: Serialize>(
        &self,
        answer: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<Response<wire::Answer>, Status> {
        let closed = |_| Status::unavailable("the agent is stopping");
        let _place = self.places.acquire().await.map_err(closed)?;
        let value = answer.await.map_err(refused)?;
        let json = serde_json::to_vec(&value).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(wire::Answer { json }))
    }
}

#[tonic::async_trait]
impl Explainer for ExplainService {
    async fn why(&self, request: Request<wire::Question>) -> Result<Response<wire::Answer>, Status> {
        let question = parse(request.into_inner())?;
        self.answer(self.source.why(question)).await
    }

    async fn policies(&self, _: Request<wire::PoliciesRequest>) -> Result<Response<wire::Answer>, Status> {
        self.answer(self.source.policies()).await
    }

    async fn governed(&self, _: Request<wire::GovernedRequest>) -> Result<Response<wire::Answer>, Status> {
        self.answer(self.source.governed()).await
    }

    async fn manifest(&self, request: Request<wire::ObjectKey>) -> Result<Response<wire::Answer>, Status> {
        let key = request.into_inner();
        let kind = Kind::parse(&key.kind).filter(|kind| *kind != Kind::Secret);
        let kind = kind.ok_or_else(|| Status::not_found(format!("no kind of object {:?}", key.kind)))?;
        self.answer(self.source.manifest(ObjectRef::new(kind, &key.namespace, &key.name))).await
    }
}
