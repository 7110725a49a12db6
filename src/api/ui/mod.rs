//! The web UI: its files, its API and who may use them. Read only: nothing here changes anything.
//!
//! | method and path | answer |
//! | --- | --- |
//! | `GET /`, `/assets/...` | the page |
//! | `GET /api/v1/live?[cursor=][rows=off][filter]` | server-sent events, see [`live`] |
//! | `GET /api/v1/edge/{id}?epoch=` | the newest flows of an edge of the map |
//! | `GET /api/v1/why?from=&to=&port=&protocol=` | [`source::Why`]; with `http-method` and `http-path`, `dns-query` or `server-name`: what a proxy refused |
//! | `GET /api/v1/policies`, `/api/v1/governed` | [`source::PolicyUse`], [`source::Governed`] |
//! | `GET /api/v1/manifest/{kind}/{namespace or -}/{name}` | an object's text |
//! | `POST /login`, `/logout` | the token in, a cookie out |
//!
//! The filter is that of [`super::flow_query`]. What a [`source::UiSource`] has, any server can show: an agent
//! its node's flows and policies, a relay those of all nodes, whose agents it asks.

pub mod feeder;
mod files;
pub mod graph;
pub mod guard;
pub mod listen;
pub mod live;
pub mod open;
pub mod source;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use self::feeder::Feeder;
use self::graph::Cursor;
use self::guard::Guard;
use self::live::{Live, Rows};
use self::source::{ProxyRequest, Question, UiSource};
use super::admin::{self, answer};
use super::flow_query;
use super::types::Failure;
use crate::model::{Kind, ObjectRef};

/// A wrong token is answered after this long.
const WRONG_TOKEN: Duration = Duration::from_millis(500);
/// Longest filter, in parameters.
const MAX_PARAMETERS: usize = 64;

struct Ui {
    source: Arc<dyn UiSource>,
    feeder: Arc<Feeder>,
    guard: Arc<Guard>,
    /// One wrong token at a time is answered.
    wrong: tokio::sync::Mutex<()>,
}

type Shared = State<Arc<Ui>>;
type Parameters = Query<Vec<(String, String)>>;

/// Everything under [`Guard`]'s checks.
pub fn router(source: Arc<dyn UiSource>, guard: Guard) -> Router {
    let guard = Arc::new(guard);
    let ui = Ui {
        feeder: Feeder::new(Arc::clone(&source)),
        source,
        guard: Arc::clone(&guard),
        wrong: tokio::sync::Mutex::new(()),
    };
    Router::new()
        .route("/api/v1/live", get(stream))
        .route("/api/v1/edge/{id}", get(edge))
        .route("/api/v1/why", get(why))
        .route("/api/v1/policies", get(policies))
        .route("/api/v1/governed", get(governed))
        .route("/api/v1/manifest/{kind}/{namespace}/{name}", get(manifest))
        .route("/login", post(login))
        .route("/logout", post(logout))
        .fallback(get(files::file))
        .layer(DefaultBodyLimit::max(4096))
        .layer(axum::middleware::from_fn_with_state(guard, guard::guard))
        .with_state(Arc::new(ui))
}

fn refuse(status: StatusCode, error: impl Into<String>) -> Response {
    (status, Json(Failure { error: error.into(), problems: Vec::new() })).into_response()
}

fn parameter<'a>(parameters: &'a [(String, String)], name: &str) -> Option<&'a str> {
    parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

async fn stream(State(ui): Shared, Query(parameters): Parameters) -> Response {
    if parameters.len() > MAX_PARAMETERS {
        return refuse(StatusCode::BAD_REQUEST, "the filter has too many members");
    }
    let reserved = ["cursor", "rows"];
    let filter = parameters.iter().filter(|(key, _)| !reserved.contains(&key.as_str()));
    let filter = match flow_query::filter(filter.map(|(key, value)| (key.as_str(), value.as_str()))) {
        Ok(filter) => filter,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, error.to_string()),
    };
    let cursor = parameter(&parameters, "cursor").and_then(|text| text.split_once('.')).and_then(
        |(epoch, version)| Some(Cursor { epoch: epoch.parse().ok()?, version: version.parse().ok()? }),
    );
    let rows = if parameter(&parameters, "rows") == Some("off") { Rows::None } else { Rows::Of(filter) };
    let reader = ui.feeder.read().await;
    let live = Live::new(Arc::clone(&ui.source), reader, cursor.unwrap_or_default(), rows);
    let body = Body::from_stream(futures::stream::unfold(live, Live::step));
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}

async fn edge(State(ui): Shared, Path(id): Path<u32>, Query(parameters): Parameters) -> Response {
    let epoch = parameter(&parameters, "epoch").and_then(|epoch| epoch.parse().ok());
    let samples =
        ui.feeder.with(|graph| if epoch == Some(graph.cursor().epoch) { graph.samples(id) } else { None });
    match samples.flatten() {
        Some([denied, allowed]) => {
            let row =
                |flow: Option<Arc<crate::flow::Flow>>| flow.map_or(Value::Null, |flow| live::row(&flow));
            Json(json!({"denied": row(denied), "allowed": row(allowed)})).into_response()
        }
        None => refuse(StatusCode::NOT_FOUND, "the map has changed; look again"),
    }
}

/// What a page asks about a connection.
fn question(parameters: &[(String, String)]) -> Result<Question, String> {
    let address = |name: &str| -> Result<IpAddr, String> {
        let text = parameter(parameters, name).unwrap_or_default();
        text.parse().map_err(|_| format!("{name}={text}: expected an address"))
    };
    let port = parameter(parameters, "port").unwrap_or("0");
    let port = port.parse().map_err(|_| format!("port={port}: expected a number below 65536"))?;
    let name = parameter(parameters, "protocol").unwrap_or("TCP");
    let protocol = admin::protocol(name)
        .ok_or_else(|| format!("protocol={name}: expected TCP, UDP, SCTP, ICMP or ICMPv6"))?;
    let text = |name: &str| parameter(parameters, name).unwrap_or_default();
    let request = match (
        parameter(parameters, "http-method"),
        parameter(parameters, "dns-query"),
        parameter(parameters, "server-name"),
    ) {
        (Some(method), ..) => Some(ProxyRequest::Http {
            method: method.into(),
            path: text("http-path").into(),
            host: text("http-host").into(),
        }),
        (_, Some(query), _) => Some(ProxyRequest::Dns { query: query.into() }),
        (.., Some(name)) => Some(ProxyRequest::Tls { server_name: name.into() }),
        _ => None,
    };
    Ok(Question { from: address("from")?, to: address("to")?, port, protocol, request })
}

async fn why(State(ui): Shared, Query(parameters): Parameters) -> Response {
    match question(&parameters) {
        Ok(question) => answer(ui.source.why(question).await),
        Err(error) => refuse(StatusCode::BAD_REQUEST, error),
    }
}

async fn policies(State(ui): Shared) -> Response {
    answer(ui.source.policies().await)
}

async fn governed(State(ui): Shared) -> Response {
    answer(ui.source.governed().await)
}

async fn manifest(
    State(ui): Shared,
    Path((kind, namespace, name)): Path<(String, String, String)>,
) -> Response {
    // Secrets are objects, too, and nothing of them is shown.
    let Some(kind) = Kind::parse(&kind).filter(|kind| *kind != Kind::Secret) else {
        return refuse(StatusCode::NOT_FOUND, "no such kind of object");
    };
    let namespace = if namespace == "-" { "" } else { &namespace };
    match ui.source.manifest(ObjectRef::new(kind, namespace, &name)).await {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response(),
        Err(refusal) => answer::<Value>(Err(refusal)),
    }
}

async fn login(State(ui): Shared, body: Bytes) -> Response {
    let Some(token) = &ui.guard.token else { return StatusCode::NO_CONTENT.into_response() };
    if !std::str::from_utf8(&body).is_ok_and(|text| token.is(text)) {
        let _one = ui.wrong.lock().await;
        tokio::time::sleep(WRONG_TOKEN).await;
        return refuse(StatusCode::UNAUTHORIZED, "that is not the token");
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    if let Ok(cookie) = HeaderValue::from_str(&token.set_cookie(ui.guard.transport)) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

async fn logout() -> Response {
    let cookie = HeaderValue::from_static("sluice-ui=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0");
    ([(header::SET_COOKIE, cookie)], StatusCode::NO_CONTENT).into_response()
}
