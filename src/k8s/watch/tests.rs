//! The watchers against a small API server on loopback that lists and watches NetworkPolicies and
//! has no other kind.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, Stream, StreamExt};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::{WatchEvent, watch};
use crate::cluster::Change;
use crate::k8s::ParseOptions;
use crate::model::{Kind, ObjectRef};

/// How long a test waits for an event before it fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the server holds, and what its watches are still to say.
#[derive(Default)]
struct Server {
    items: Mutex<Vec<Value>>,
    lines: Mutex<VecDeque<String>>,
    more: Notify,
}

impl Server {
    fn set(&self, items: Vec<Value>) {
        *self.items.lock().unwrap() = items;
    }

    fn say(&self, kind: &str, object: Value) {
        self.lines.lock().unwrap().push_back(format!("{}\n", json!({"type": kind, "object": object})));
        self.more.notify_one();
    }

    async fn next_line(self: Arc<Server>) -> String {
        loop {
            let line = self.lines.lock().unwrap().pop_front();
            match line {
                Some(line) => return line,
                None => self.more.notified().await,
            }
        }
    }
}

async fn answer(
    State(server): State<Arc<Server>>,
    uri: Uri,
    Query(query): Query<Vec<(String, String)>>,
) -> Response {
    if uri.path() != "/apis/networking.k8s.io/v1/networkpolicies" {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound",
            "message": "the server could not find the requested resource", "code": 404});
        return (StatusCode::NOT_FOUND, axum::Json(status)).into_response();
    }
    if query.iter().any(|(key, value)| key == "watch" && matches!(&**value, "true" | "1")) {
        let lines = stream::unfold(server, |server| async move {
            let line = server.clone().next_line().await;
            Some((Ok::<_, std::convert::Infallible>(line), server))
        });
        return Body::from_stream(lines).into_response();
    }
    let items = server.items.lock().unwrap().clone();
    axum::Json(json!({"kind": "NetworkPolicyList", "apiVersion": "networking.k8s.io/v1",
        "metadata": {"resourceVersion": "1"}, "items": items}))
    .into_response()
}

async fn start() -> (Arc<Server>, kube::Client) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let server = Arc::new(Server::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri: Uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let router = Router::new().fallback(answer).with_state(server.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let client = kube::Client::try_from(kube::Config::new(uri)).unwrap();
    (server, client)
}

fn object(name: &str, version: u32, spec: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "spec": spec,
        "metadata": {"namespace": "shop", "name": name, "resourceVersion": version.to_string(),
            "managedFields": [{"manager": "kubectl", "operation": "Apply"}]}})
}

fn reference(name: &str) -> ObjectRef {
    ObjectRef::new(Kind::NetworkPolicy, "shop", name)
}

type Events = Pin<Box<dyn Stream<Item = WatchEvent> + Send>>;

fn events(client: &kube::Client, kinds: &[Kind], known: &[&str]) -> Events {
    let known = known.iter().map(|name| reference(name)).collect();
    watch(client, kinds, &ParseOptions::default(), &known).boxed()
}

/// The next event that is not a retry.
async fn next(events: &mut Events) -> WatchEvent {
    let wanted = async {
        loop {
            match events.next().await.expect("the stream does not end") {
                WatchEvent::Failed { .. } => {}
                event => return event,
            }
        }
    };
    tokio::time::timeout(PATIENCE, wanted).await.expect("an event")
}

/// The names that a transaction upserts and deletes.
fn summary(event: WatchEvent) -> (Vec<String>, Vec<String>) {
    let WatchEvent::Synced { kind: Kind::NetworkPolicy, changes } = event else { panic!("{event:?}") };
    let (mut upserts, mut deletes) = (Vec::new(), Vec::new());
    for change in changes {
        match change {
            Change::Upsert(resource) => upserts.push(resource.reference().path()),
            Change::Delete(reference) => deletes.push(reference.path()),
        }
    }
    (upserts, deletes)
}

#[tokio::test]
async fn the_first_list_is_one_transaction_that_deletes_what_is_gone_since_the_restart() {
    let (server, client) = start().await;
    server.set(vec![object("a", 1, json!({"podSelector": {}})), object("b", 1, json!({"podSelector": {}}))]);
    let mut events = events(&client, &[Kind::NetworkPolicy], &["b", "gone"]);
    let (upserts, deletes) = summary(next(&mut events).await);
    assert_eq!(
        (upserts, deletes),
        (vec!["shop/a".to_owned(), "shop/b".into()], vec!["shop/gone".to_owned()])
    );
}

#[tokio::test]
async fn changes_follow_the_list() {
    let (server, client) = start().await;
    let mut events = events(&client, &[Kind::NetworkPolicy], &[]);
    assert_eq!(summary(next(&mut events).await), (vec![], vec![]));
    server.say("ADDED", object("a", 2, json!({"podSelector": {}})));
    let WatchEvent::Changed(Change::Upsert(resource)) = next(&mut events).await else { panic!() };
    assert_eq!(resource.reference(), reference("a"));
    server.say("DELETED", object("a", 3, json!({"podSelector": {}})));
    assert_eq!(next(&mut events).await, WatchEvent::Changed(Change::Delete(reference("a"))));
}

#[tokio::test]
async fn an_invalid_object_is_reported_and_what_was_in_force_stays() {
    let (server, client) = start().await;
    let broken = json!({"podSelector": {}, "ingress": [{"from": [{}]}]});
    server.set(vec![object("a", 1, broken.clone()), object("b", 1, json!({"podSelector": {}}))]);
    let mut events = events(&client, &[Kind::NetworkPolicy], &["a"]);
    let WatchEvent::Rejected { object: rejected, problems } = next(&mut events).await else { panic!() };
    assert_eq!(rejected, reference("a"));
    assert_eq!(problems[0].field_path, "spec.ingress[0].from[0]");
    assert_eq!(summary(next(&mut events).await), (vec!["shop/b".to_owned()], vec![]));
    server.say("MODIFIED", object("b", 2, broken));
    let event = next(&mut events).await;
    assert!(matches!(event, WatchEvent::Rejected { object, .. } if object == reference("b")));
    server.say("MODIFIED", object("b", 3, json!({"podSelector": {}, "policyTypes": ["Egress"]})));
    assert!(matches!(next(&mut events).await, WatchEvent::Changed(Change::Upsert(_))));
}

#[tokio::test]
async fn a_gap_is_closed_by_a_new_list() {
    let (server, client) = start().await;
    server.set(vec![object("a", 1, json!({"podSelector": {}})), object("b", 1, json!({"podSelector": {}}))]);
    let mut events = events(&client, &[Kind::NetworkPolicy], &[]);
    summary(next(&mut events).await);
    // `a` goes and `c` comes while nobody is told.
    server.set(vec![object("b", 1, json!({"podSelector": {}})), object("c", 5, json!({"podSelector": {}}))]);
    server.say(
        "ERROR",
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired",
        "message": "too old resource version", "code": 410}),
    );
    let (upserts, deletes) = summary(next(&mut events).await);
    assert_eq!(upserts, ["shop/b", "shop/c"]);
    assert_eq!(deletes, ["shop/a"]);
}

#[tokio::test]
async fn a_kind_without_a_definition_is_absent_and_deletes_nothing() {
    let (_server, client) = start().await;
    let mut events = events(&client, &[Kind::CiliumNetworkPolicy], &[]);
    assert_eq!(next(&mut events).await, WatchEvent::Absent { kind: Kind::CiliumNetworkPolicy });
}

#[tokio::test]
async fn unknown_fields_of_the_server_are_skipped_and_warnings_are_told() {
    let (server, client) = start().await;
    server.set(vec![object(
        "a",
        1,
        json!({"podSelector": {}, "newField": 1, "policyTypes": ["Egress"], "ingress": [{}]}),
    )]);
    let mut events = events(&client, &[Kind::NetworkPolicy], &[]);
    let WatchEvent::Warned { warnings, .. } = next(&mut events).await else { panic!() };
    assert!(warnings[0].message.contains("policyTypes does not list ingress"));
    assert_eq!(summary(next(&mut events).await).0, ["shop/a"]);
}
