//! The server's admin API: HTTP/1.1 with JSON on a unix socket that only root can open.
//!
//! | method and path | answer |
//! | --- | --- |
//! | `GET /v1/status` | version, revision, counts, health of the store |
//! | `POST /v1/objects[?dry-run=true]` | manifest in, `{revision, results, warnings}` out; all or nothing |
//! | `GET /v1/objects[?kind=&namespace=]` | stored objects |
//! | `DELETE /v1/objects/{kind}/{namespace or -}/{name}` | `{revision, results, warnings}` |
//! | `GET /v1/nodes`, `DELETE /v1/nodes/{name}` | joined nodes; releasing a name |
//! | `GET /v1/identities` | numbers, labels, holders |
//! | `POST /v1/token/rotate` | a new join token; answers where it is, never what it is |
//!
//! The forms are those of the agent's admin API, so that one client reads both. A failure is
//! `{error, problems}` with 400 (not understood), 404, 422 (invalid objects), 503 (the store is
//! locked), 507 (no space) or 500.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use bytes::Bytes;
use serde_json::{Value, json};

use super::blocking::blocking;
use super::join_secret;
use super::pki::Authority;
use super::run::ServerConfig;
use super::state::State;
use crate::model::{Kind, ObjectRef};
use crate::store::objects::{Applied, ApplyError, ApplyMode, Problem};
use crate::store::{Clock, StoreError};

/// Manifests above this are refused before they are read.
const MAX_BODY: usize = 32 * 1024 * 1024;

pub(super) struct Admin {
    pub(super) state: Arc<State>,
    pub(super) authority: Arc<Authority>,
    pub(super) config: ServerConfig,
    pub(super) listen: SocketAddr,
    pub(super) started: Instant,
    pub(super) clock: Clock,
}

type Context = Shared<Arc<Admin>>;
type Parameters = Query<Vec<(String, String)>>;

pub(super) fn router(admin: Arc<Admin>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/objects", post(apply).get(objects))
        .route("/v1/objects/{kind}/{namespace}/{name}", delete(delete_object))
        .route("/v1/nodes", get(nodes))
        .route("/v1/nodes/{name}", delete(remove_node))
        .route("/v1/identities", get(identities))
        .route("/v1/token/rotate", post(rotate_token))
        .fallback(|| async { failure(StatusCode::NOT_FOUND, "no such path", &[]) })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(admin)
}

fn failure(status: StatusCode, error: impl std::fmt::Display, problems: &[Problem]) -> Response {
    let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
    (status, Json(json!({"error": error.to_string(), "problems": problems}))).into_response()
}

fn store_failure(error: &StoreError) -> Response {
    let status = match error {
        StoreError::Full { .. } => StatusCode::INSUFFICIENT_STORAGE,
        StoreError::Locked { .. } => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    failure(status, error, &[])
}

fn applied(outcome: Result<Option<Applied>, ApplyError>) -> Response {
    match outcome {
        Ok(Some(applied)) => {
            let results: Vec<Value> = applied
                .results
                .iter()
                .map(|(object, action)| json!({"object": object, "action": action}))
                .collect();
            let warnings: Vec<String> = applied.warnings.iter().map(ToString::to_string).collect();
            Json(json!({"revision": applied.revision, "results": results, "warnings": warnings}))
                .into_response()
        }
        Ok(None) => failure(StatusCode::NOT_FOUND, "there is no such object", &[]),
        Err(ApplyError::Rejected(problems)) => {
            failure(StatusCode::UNPROCESSABLE_ENTITY, "rejected; nothing was changed", &problems)
        }
        Err(ApplyError::Store(error)) => store_failure(&error),
    }
}

fn parameter<'a>(parameters: &'a [(String, String)], name: &str) -> Option<&'a str> {
    parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

fn unknown_kind(text: &str) -> Response {
    failure(StatusCode::BAD_REQUEST, format!("{text:?} is no kind that sluice reads"), &[])
}

fn rfc3339(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map(|time| time.to_string()).unwrap_or_default()
}

async fn status(Shared(admin): Context) -> Response {
    let (state, store) = (admin.state.clone(), admin.state.objects().store().clone());
    let revision = match blocking(move || state.objects().store().revision()).await {
        Ok(revision) => json!(revision),
        // The rest of the status says what is wrong.
        Err(_) => Value::Null,
    };
    let health = store.health();
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "cluster": admin.config.cluster_name,
        "listen": admin.listen.to_string(),
        "advertise": admin.config.advertise,
        "tokenFile": admin.config.state_dir.join("token"),
        "uptimeSeconds": admin.started.elapsed().as_secs(),
        "revision": revision,
        "nodes": admin.state.nodes().len(),
        "watchers": admin.state.watchers(),
        "identities": admin.state.identities().len(),
        "health": if health.failing.is_some() { "degraded" } else { "ok" },
        "store": health,
    }))
    .into_response()
}

async fn apply(
    Shared(admin): Context,
    Query(parameters): Parameters,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let mode = match parameter(&parameters, "dry-run") {
        None | Some("false") => ApplyMode::Commit,
        Some("true") => ApplyMode::DryRun,
        Some(other) => {
            let error = format!("dry-run={other}: expected true or false");
            return failure(StatusCode::BAD_REQUEST, error, &[]);
        }
    };
    let body = match body {
        Ok(body) => body,
        Err(rejection) => return failure(rejection.status(), rejection.body_text(), &[]),
    };
    let Ok(text) = String::from_utf8(body.into()) else {
        return failure(StatusCode::BAD_REQUEST, "the manifest is not UTF-8", &[]);
    };
    applied(blocking(move || admin.state.apply(&text, mode).map(Some)).await)
}

async fn objects(Shared(admin): Context, Query(parameters): Parameters) -> Response {
    let kind = match parameter(&parameters, "kind") {
        None => None,
        Some(text) => match Kind::parse(text) {
            Some(kind) => Some(kind),
            None => return unknown_kind(text),
        },
    };
    let namespace = parameter(&parameters, "namespace").map(str::to_owned);
    match blocking(move || admin.state.objects().store().objects()).await {
        Ok(stored) => {
            let objects: Vec<Value> = stored
                .upserts
                .iter()
                .filter(|object| kind.is_none_or(|kind| object.reference.kind == kind))
                .filter(|object| namespace.as_deref().is_none_or(|name| *object.reference.namespace == *name))
                .map(|object| {
                    json!({
                        "object": object.reference,
                        "manifest": &*object.manifest,
                        "revision": object.revision,
                        "generation": object.generation,
                    })
                })
                .collect();
            Json(objects).into_response()
        }
        Err(error) => store_failure(&error),
    }
}

async fn delete_object(
    Shared(admin): Context,
    Path((kind, namespace, name)): Path<(String, String, String)>,
) -> Response {
    let Some(parsed) = Kind::parse(&kind) else { return unknown_kind(&kind) };
    let namespace = if namespace == "-" { "" } else { &namespace };
    if parsed.is_namespaced() == namespace.is_empty() {
        let error = match namespace {
            "" => format!("a {parsed} has a namespace; `-` is for kinds of the cluster"),
            _ => format!("a {parsed} has no namespace: write `-`"),
        };
        return failure(StatusCode::BAD_REQUEST, error, &[]);
    }
    let reference = ObjectRef::new(parsed, namespace, &name);
    applied(blocking(move || admin.state.delete(&reference)).await)
}

async fn nodes(Shared(admin): Context) -> Response {
    let nodes: Vec<Value> = admin
        .state
        .nodes()
        .iter()
        .map(|node| {
            let report = node.report.as_ref();
            json!({
                "name": node.name,
                "joined": rfc3339(node.joined),
                "lastSeen": rfc3339(node.last_seen),
                "addresses": report.map(|report| &report.addresses),
                "realizedRevision": report.and_then(|report| report.realized_revision),
                "version": report.map(|report| &report.version),
            })
        })
        .collect();
    Json(nodes).into_response()
}

async fn remove_node(Shared(admin): Context, Path(name): Path<String>) -> Response {
    let node = name.clone();
    match blocking(move || admin.state.remove_node(&node)).await {
        Ok(true) => Json(json!({"removed": name})).into_response(),
        Ok(false) => failure(StatusCode::NOT_FOUND, format!("no node {name} has joined"), &[]),
        Err(error) => store_failure(&error),
    }
}

async fn identities(Shared(admin): Context) -> Response {
    let identities: Vec<Value> = admin
        .state
        .identities()
        .iter()
        .map(|row| {
            json!({
                "id": row.id,
                "labels": row.labels,
                "scope": "cluster",
                "holders": row.holders.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "released": row.released.map(rfc3339),
            })
        })
        .collect();
    Json(identities).into_response()
}

async fn rotate_token(Shared(admin): Context) -> Response {
    let path = admin.config.state_dir.join("token");
    let file = path.clone();
    let outcome = blocking(move || {
        let store = admin.state.objects().store();
        join_secret::rotate(&path, store, admin.authority.fingerprint, (admin.clock)())
    })
    .await;
    match outcome {
        Ok(()) => Json(json!({"tokenFile": file})).into_response(),
        Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, error, &[]),
    }
}
