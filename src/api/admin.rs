//! The admin API: routes, status codes and JSON over a [`Backend`].
//!
//! | method and path | answer |
//! | --- | --- |
//! | `GET /v1/status` | [`types::Status`](super::types::Status) |
//! | `POST /v1/objects[?dry-run=true]` | manifest in, [`types::Applied`](super::types::Applied) out; all or nothing |
//! | `GET /v1/objects[?kind=&namespace=]` | stored objects |
//! | `DELETE /v1/objects/{kind}/{namespace or -}/{name}` | |
//! | `GET`, `PUT /v1/endpoints`, `DELETE /v1/endpoints/{namespace}/{pod}` | local pods |
//! | `GET /v1/identities`, `/v1/ipcache`, `/v1/names`, `/v1/services` | what user space knows |
//! | `GET /v1/kernel/{policy,ct,ipcache,services,metrics,diff}[?endpoint=]` | what the kernel holds |
//! | `GET /v1/explain?from=&to=&port=&protocol=` | verdict and reasons |
//! | `GET /v1/flows[?follow=true&last=N&...]` | JSON lines, see [`super::flow_query`] |
//!
//! Failures are [`types::Failure`](super::types::Failure) with 400 (not understood), 404, 409, 422 (invalid objects) or 500.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use futures::StreamExt as _;
use serde::Serialize;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio_stream::wrappers::ReceiverStream;

use super::backend::{ApplyMode, Backend, ExplainQuery, KernelTable, Refusal};
use super::hubble::convert::Naming;
use super::past::{Past, PastQuery};
use super::types::{EndpointRequest, Failure};
use super::{flow_json, flow_query};
use crate::flow::Flow;
use crate::flow::filter::Filter;
use crate::model::{Kind, ObjectRef, Protocol};

/// Manifests above this are refused before they are read.
const MAX_BODY: usize = 32 * 1024 * 1024;
/// Texts of refusals by axum are a line long.
const MAX_REFUSAL: usize = 4096;

type Shared = State<Arc<dyn Backend>>;
type Parameters = Query<Vec<(String, String)>>;

/// The router; serve it with [`axum::serve`] on a socket from [`super::unix`].
pub fn router(backend: Arc<dyn Backend>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/objects", post(apply).get(objects))
        .route("/v1/objects/{kind}/{namespace}/{name}", delete(delete_object))
        .route("/v1/endpoints", get(endpoints).put(add_endpoint))
        .route("/v1/endpoints/{namespace}/{pod}", delete(remove_endpoint))
        .route("/v1/identities", get(identities))
        .route("/v1/ipcache", get(ipcache))
        .route("/v1/names", get(names))
        .route("/v1/services", get(services))
        .route("/v1/kernel/{table}", get(kernel))
        .route("/v1/explain", get(explain))
        .route("/v1/flows", get(flows))
        .fallback(|| async {
            failure(StatusCode::NOT_FOUND, "no such path; see `sluice --help`".into(), vec![])
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(map_response(refusal_as_json))
        .with_state(backend)
}

/// What axum itself refuses (a bad escape in a path, a body that is too large) comes as text: in our form.
async fn refusal_as_json(response: Response) -> Response {
    let json = HeaderValue::from_static("application/json");
    if !response.status().is_client_error() || response.headers().get(header::CONTENT_TYPE) == Some(&json) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let text = axum::body::to_bytes(body, MAX_REFUSAL).await.unwrap_or_default();
    let reason = parts.status.canonical_reason().unwrap_or("refused");
    let error = if text.is_empty() { reason.into() } else { String::from_utf8_lossy(&text).into_owned() };
    let (_, body) = failure(parts.status, error, Vec::new()).into_parts();
    parts.headers.insert(header::CONTENT_TYPE, json);
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, body)
}

fn failure(status: StatusCode, error: String, problems: Vec<String>) -> Response {
    (status, Json(Failure { error, problems })).into_response()
}

fn bad_request(error: impl Into<String>) -> Response {
    failure(StatusCode::BAD_REQUEST, error.into(), Vec::new())
}

pub(super) fn answer<T: Serialize>(result: Result<T, Refusal>) -> Response {
    match result {
        Ok(value) => Json(value).into_response(),
        Err(Refusal::Invalid { message, problems }) => {
            failure(StatusCode::UNPROCESSABLE_ENTITY, message, problems)
        }
        Err(Refusal::NotFound(message)) => failure(StatusCode::NOT_FOUND, message, Vec::new()),
        Err(Refusal::Conflict(message)) => failure(StatusCode::CONFLICT, message, Vec::new()),
        Err(Refusal::Failed(message)) => failure(StatusCode::INTERNAL_SERVER_ERROR, message, Vec::new()),
    }
}

fn parameter<'a>(parameters: &'a [(String, String)], name: &str) -> Option<&'a str> {
    parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

async fn status(State(backend): Shared) -> Response {
    answer(backend.status().await)
}

async fn apply(State(backend): Shared, Query(parameters): Parameters, body: Bytes) -> Response {
    let Ok(manifest) = String::from_utf8(body.to_vec()) else {
        return bad_request("the manifest is not UTF-8");
    };
    let mode = match parameter(&parameters, "dry-run") {
        None | Some("false") => ApplyMode::Commit,
        Some("true") => ApplyMode::DryRun,
        Some(other) => return bad_request(format!("dry-run={other}: expected true or false")),
    };
    answer(backend.apply(manifest, mode).await)
}

async fn objects(State(backend): Shared, Query(parameters): Parameters) -> Response {
    let kind = match parameter(&parameters, "kind") {
        None => None,
        Some(text) => match Kind::parse(text) {
            Some(kind) => Some(kind),
            None => return bad_request(format!("kind={text}: not a kind that sluice knows")),
        },
    };
    answer(backend.objects(kind, parameter(&parameters, "namespace").map(str::to_owned)).await)
}

async fn delete_object(
    State(backend): Shared,
    Path((kind, namespace, name)): Path<(String, String, String)>,
) -> Response {
    let Some(kind) = Kind::parse(&kind) else {
        return bad_request(format!("{kind}: not a kind that sluice knows"));
    };
    let namespace = if kind.is_namespaced() && namespace != "-" { namespace.as_str() } else { "" };
    answer(backend.delete(ObjectRef::new(kind, namespace, &name)).await)
}

async fn endpoints(State(backend): Shared) -> Response {
    answer(backend.endpoints().await)
}

async fn add_endpoint(State(backend): Shared, body: Bytes) -> Response {
    match serde_json::from_slice::<EndpointRequest>(&body) {
        Ok(request) => answer(backend.add_endpoint(request).await),
        Err(error) => bad_request(error.to_string()),
    }
}

async fn remove_endpoint(State(backend): Shared, Path((namespace, pod)): Path<(String, String)>) -> Response {
    answer(backend.remove_endpoint(format!("{namespace}/{pod}")).await)
}

async fn identities(State(backend): Shared) -> Response {
    answer(backend.identities().await)
}

async fn ipcache(State(backend): Shared) -> Response {
    answer(backend.ipcache().await)
}

async fn names(State(backend): Shared) -> Response {
    answer(backend.names().await)
}

async fn services(State(backend): Shared) -> Response {
    answer(backend.services().await)
}

async fn kernel(
    State(backend): Shared,
    Path(table): Path<String>,
    Query(parameters): Parameters,
) -> Response {
    let table = match table.as_str() {
        "policy" => KernelTable::Policy,
        "ct" => KernelTable::Conntrack,
        "ipcache" => KernelTable::Ipcache,
        "services" => KernelTable::Services,
        "metrics" => KernelTable::Metrics,
        "diff" => KernelTable::Diff,
        other => {
            return bad_request(format!("{other}: expected policy, ct, ipcache, services, metrics or diff"));
        }
    };
    answer(backend.kernel(table, parameter(&parameters, "endpoint").map(str::to_owned)).await)
}

async fn explain(State(backend): Shared, Query(parameters): Parameters) -> Response {
    let (Some(from), Some(to)) = (parameter(&parameters, "from"), parameter(&parameters, "to")) else {
        return bad_request("from and to are needed");
    };
    let Ok(port) = parameter(&parameters, "port").unwrap_or("0").parse() else {
        return bad_request("port: expected a number below 65536");
    };
    let name = parameter(&parameters, "protocol").unwrap_or("TCP");
    let Some(protocol) = protocol(name) else {
        return bad_request(format!("protocol={name}: expected TCP, UDP, SCTP, ICMP or ICMPv6"));
    };
    answer(backend.explain(ExplainQuery { from: from.to_owned(), to: to.to_owned(), port, protocol }).await)
}

/// A protocol that a connection may have, by name in any case.
pub(super) fn protocol(name: &str) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Icmp, Protocol::Icmpv6]
        .into_iter()
        .find(|protocol| protocol.to_string().eq_ignore_ascii_case(name))
}

async fn flows(State(backend): Shared, Query(parameters): Parameters) -> Response {
    let reserved = ["follow", "last"];
    let others = parameters.iter().filter(|(key, _)| !reserved.contains(&key.as_str()));
    let filter = match flow_query::filter(others.map(|(key, value)| (key.as_str(), value.as_str()))) {
        Ok(filter) => filter,
        Err(error) => return bad_request(error.to_string()),
    };
    let last = match parameter(&parameters, "last").map(str::parse::<usize>) {
        None => usize::MAX,
        Some(Ok(last)) => last,
        Some(Err(_)) => return bad_request("last: expected a number"),
    };
    // Subscribed before the past is read, so that nothing falls between the two.
    let live = (parameter(&parameters, "follow") == Some("true")).then(|| backend.follow());
    let memory = backend.flows(0, usize::MAX).flows;
    let mut matching: Vec<_> = memory.iter().rev().filter(|flow| filter.matches(flow)).take(last).collect();
    matching.reverse();
    let naming = backend.naming();
    let head: String = matching.iter().map(|flow| line(flow, &naming)).collect();
    let older = match older(&*backend, &filter, last, &memory, matching.len()) {
        None => futures::stream::empty().left_stream(),
        Some(query) => match backend.history() {
            None => futures::stream::empty().left_stream(),
            Some(history) => {
                let naming = naming.clone();
                ReceiverStream::new(history.past(query))
                    .map(move |past| past_lines(past, &naming))
                    .right_stream()
            }
        },
    };
    let head = older.chain(futures::stream::once(async { Ok(head) }));
    let body = match live {
        None => Body::from_stream(head),
        Some(live) => {
            let seen_ns = memory.last().map(|flow| flow.time_ns).unwrap_or(0);
            let live = futures::stream::unfold((live, filter, seen_ns, naming), follow_step);
            Body::from_stream(head.chain(live))
        }
    };
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

/// What to ask history for: a time before the oldest flow in memory is meant, or more flows than memory has.
fn older(
    backend: &dyn Backend,
    filter: &Filter,
    last: usize,
    memory: &[Arc<Flow>],
    found: usize,
) -> Option<PastQuery> {
    backend.history()?;
    let oldest_ns = memory.first().map_or(u64::MAX, |flow| flow.time_ns);
    let is_timed = filter.since_ns.or(filter.until_ns).is_some_and(|time| time < oldest_ns);
    let wants_more = last != usize::MAX && found < last;
    let newest = (last != usize::MAX).then(|| last - found);
    (is_timed || wants_more).then(|| PastQuery::of(filter, oldest_ns, newest)).filter(|_| newest != Some(0))
}

fn line(flow: &Flow, naming: &Naming) -> String {
    format!("{}\n", flow_json::to_json(flow, naming))
}

fn past_lines(past: Past, naming: &Naming) -> Result<String, Refusal> {
    Ok(past?.iter().map(|flow| line(flow, naming)).collect())
}

type FollowState = (tokio::sync::broadcast::Receiver<Arc<Flow>>, Filter, u64, Naming);

async fn follow_step(
    (mut live, filter, seen_ns, naming): FollowState,
) -> Option<(Result<String, Refusal>, FollowState)> {
    loop {
        match live.recv().await {
            // Between subscribing and reading the past a flow is in both.
            Ok(flow) if flow.time_ns <= seen_ns || !filter.matches(&flow) => {}
            Ok(flow) => {
                return Some((Ok(line(&flow, &naming)), (live, filter, seen_ns, naming)));
            }
            Err(RecvError::Lagged(lost)) => {
                let lost = json!({"source": "HUBBLE_RING_BUFFER", "num_events_lost": lost.to_string()});
                let line = format!("{}\n", json!({"lost_events": lost}));
                return Some((Ok(line), (live, filter, seen_ns, naming)));
            }
            Err(RecvError::Closed) => return None,
        }
    }
}
