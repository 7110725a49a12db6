//! The server and its clients over loopback.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;

use super::client::{ClientConfig, ServerClient};
use super::credentials::{Credentials, Join};
use super::state::State;
use super::*;
use crate::cluster::ViewOptions;
use crate::identity::IdentityAllocator;
use crate::store::objects::ApplyMode;
use crate::store::{Clock, NodeReport, OnCorrupt, system_clock};
use support::{Lines, pod_labels};

pub(super) mod support {
    //! A manifest language for tests: one object a line.

    use std::sync::Arc;

    use crate::cluster::Resource;
    use crate::model::{
        Direction, Kind, Label, Labels, Namespace, Object, ObjectRef, Pod, PortRange, Protocol,
    };
    use crate::policy::l7::{HttpRule, L7Rules};
    use crate::policy::rule::{Action, Peers, Policy, PortMatch, Ports, Rule, Spec, Subject, Tier};
    use crate::policy::selector::LabelSelector;
    use crate::store::objects::{ManifestParser, Parsed, ParsedObject, Problem};

    /// `namespace NAME`, `pod NS/NAME ADDRESS APP`, `policy NS/NAME COUNT` (so many large paths that every pod may be asked
    /// for); `# text` belongs to the object after it.
    pub struct Lines;

    impl ManifestParser for Lines {
        fn parse(&self, text: &str) -> Result<Parsed, Vec<Problem>> {
            let mut parsed = Parsed::default();
            let mut problems = Vec::new();
            let mut comment = String::new();
            for (line, number) in text.lines().zip(1..) {
                let resource = match line.split_whitespace().collect::<Vec<_>>()[..] {
                    ["#", ..] => {
                        comment = format!("{line}\n");
                        continue;
                    }
                    ["namespace", name] => Resource::Object(Object::Namespace(namespace(name))),
                    ["pod", path, address, app] => Resource::Object(Object::Pod(pod(path, address, app))),
                    ["policy", path, count] => Resource::Policy(policy(path, count.parse().unwrap())),
                    _ => {
                        let message = format!("not understood: {line}");
                        problems.push(Problem { line: Some(number), message, ..Problem::default() });
                        continue;
                    }
                };
                let manifest = format!("{}{line}\n", std::mem::take(&mut comment)).into();
                parsed.objects.push(ParsedObject { manifest, resource });
            }
            if problems.is_empty() { Ok(parsed) } else { Err(problems) }
        }
    }

    fn namespace(name: &str) -> Namespace {
        let labels = [("kubernetes.io/metadata.name", name)].into();
        Namespace { name: name.to_owned(), labels }
    }

    fn pod(path: &str, address: &str, app: &str) -> Pod {
        let (namespace, name) = path.split_once('/').unwrap();
        Pod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels: [("app", app)].into(),
            node: Some("n1".to_owned()),
            addresses: vec![address.parse().unwrap()],
            host_network: false,
            service_account: "default".to_owned(),
            controller: None,
            ports: Vec::new(),
        }
    }

    fn policy(path: &str, count: usize) -> Policy {
        let (namespace, name) = path.split_once('/').unwrap();
        let expression = |n| format!("/{name}.*a[a-z]{{750}}[a-z]{{750}}N{n}");
        let path = |n| HttpRule { path: Some(expression(n).into()), ..HttpRule::default() };
        let rule = Rule {
            direction: Direction::Ingress,
            action: Action::Allow,
            peers: Peers::Any,
            ports: Ports::OneOf(vec![PortMatch::Range(Protocol::Tcp, PortRange::single(80).unwrap())]),
            l7: Some(Arc::new(L7Rules::Http((0..count).map(path).collect()))),
            path: "spec.ingress[0]".into(),
        };
        let spec = Spec {
            subject: Subject::Pods(Some(LabelSelector::new(Vec::new()))),
            tier: Tier::Normal,
            default_deny_ingress: true,
            default_deny_egress: false,
            rules: vec![rule],
        };
        Policy { object: ObjectRef::new(Kind::CiliumNetworkPolicy, namespace, name), specs: vec![spec] }
    }

    /// The identity labels of such a pod in cluster `test`.
    pub fn pod_labels(namespace: &str, app: &str) -> Labels {
        [
            Label::k8s("app", app),
            Label::k8s("io.kubernetes.pod.namespace", namespace),
            Label::k8s("io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name", namespace),
            Label::k8s("io.cilium.k8s.policy.serviceaccount", "default"),
            Label::k8s("io.cilium.k8s.policy.cluster", "test"),
        ]
        .into_iter()
        .collect()
    }
}

struct Running {
    address: SocketAddr,
    socket: PathBuf,
    token: JoinToken,
    state: Arc<State>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), ServerError>>,
}

impl Running {
    async fn start(directory: &Path) -> Running {
        Self::start_at(directory, "127.0.0.1:0".parse().unwrap(), system_clock()).await
    }

    async fn start_at(directory: &Path, address: SocketAddr, clock: Clock) -> Running {
        // The binary does this in `main`; in a test another test may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = ServerConfig {
            state_dir: directory.join("server"),
            cluster_name: "test".into(),
            advertise: "127.0.0.1".into(),
            on_corrupt: OnCorrupt::Refuse,
            view: ViewOptions::default(),
        };
        let server = Server::open(config, Arc::new(Lines), clock).unwrap();
        let token = std::fs::read_to_string(server.token_file()).unwrap().parse().unwrap();
        let state = server.state.clone();
        let agents = TcpListener::bind(address).await.unwrap();
        let address = agents.local_addr().unwrap();
        let socket = directory.join("server.sock");
        std::fs::remove_file(&socket).ok();
        let admin = UnixListener::bind(&socket).unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(server.serve(agents, admin, stop.clone()));
        Running { address, socket, token, state, stop, task }
    }

    async fn stop(self) -> SocketAddr {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(10), self.task).await.unwrap().unwrap().unwrap();
        self.address
    }

    fn config(&self, directory: &Path, node: &str) -> ClientConfig {
        ClientConfig {
            url: format!("https://{}", self.address),
            node: node.to_owned(),
            token: Some(self.token.clone()),
            directory: directory.join(node),
        }
    }

    async fn join(&self, directory: &Path, node: &str) -> (ServerClient, Receiver<Update>) {
        ServerClient::connect(self.config(directory, node), system_clock()).await.unwrap()
    }

    async fn apply(&self, text: &str) {
        let (state, text) = (self.state.clone(), text.to_owned());
        blocking::blocking(move || state.apply(&text, ApplyMode::Commit)).await.unwrap();
    }

    async fn admin(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "sluice")
            .body(Full::new(bytes::Bytes::from(body.to_owned())))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }
}

async fn next(updates: &mut Receiver<Update>) -> Update {
    tokio::time::timeout(Duration::from_secs(20), updates.recv()).await.expect("an update in time").unwrap()
}

fn report(addresses: &[&str]) -> NodeReport {
    NodeReport {
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        realized_revision: Some(1),
        version: "test".into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_and_sees_the_snapshot_and_every_change() {
    let directory = tempfile::tempdir().unwrap();
    let server = Running::start(directory.path()).await;
    server.apply("namespace shop\npod shop/a 10.0.0.1 web\n").await;
    let (client, mut updates) = server.join(directory.path(), "n1").await;
    let snapshot = next(&mut updates).await;
    assert_eq!((snapshot.kind, snapshot.revision, snapshot.upserts.len()), (UpdateKind::Snapshot, 1, 2));
    assert_eq!(&*snapshot.upserts[1].manifest, "pod shop/a 10.0.0.1 web\n");
    assert_eq!(snapshot.identities.len(), 1);
    server.apply("pod shop/b 10.0.0.2 db\n").await;
    let change = next(&mut updates).await;
    assert_eq!((change.kind, change.revision, change.identities.len()), (UpdateKind::Change, 2, 1));
    client.report(&report(&["192.0.2.7"])).await.unwrap();
    let peers = next(&mut updates).await.nodes;
    assert_eq!(peers, vec![Peer { name: "n1".into(), addresses: vec!["192.0.2.7".parse().unwrap()] }]);
    let status = client.status();
    assert!(status.connected && status.revision == 2, "{status:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_and_a_wrong_authority_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let server = Running::start(directory.path()).await;
    let mut wrong_secret = server.config(directory.path(), "n1");
    wrong_secret.token.as_mut().unwrap().secret[0] ^= 1;
    let error = ServerClient::connect(wrong_secret, system_clock()).await.unwrap_err();
    assert!(matches!(&error, JoinError::Refused { .. }), "{error}");

    let mut wrong_authority = server.config(directory.path(), "n1");
    wrong_authority.token.as_mut().unwrap().authority[0] ^= 1;
    let error = ServerClient::connect(wrong_authority, system_clock()).await.unwrap_err();
    assert!(matches!(&error, JoinError::Connect { .. }), "{error}");
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");

    let mut no_token = server.config(directory.path(), "n1");
    no_token.token = None;
    let error = ServerClient::connect(no_token, system_clock()).await.unwrap_err();
    assert!(matches!(error, JoinError::NoToken { .. }), "{error}");
    assert!(server.state.nodes().is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_to_join_are_limited() {
    let directory = tempfile::tempdir().unwrap();
    let server = Running::start(directory.path()).await;
    let mut config = server.config(directory.path(), "n1");
    config.token.as_mut().unwrap().secret[0] ^= 1;
    let mut outcomes = Vec::new();
    for _ in 0..25 {
        outcomes.push(ServerClient::connect(config.clone(), system_clock()).await.unwrap_err());
    }
    assert!(matches!(&outcomes[0], JoinError::Refused { .. }), "{}", outcomes[0]);
    let last = &outcomes[24];
    assert!(matches!(last, JoinError::Busy { .. }) && last.is_transient(), "{last}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_belongs_to_its_first_key_until_it_is_released() {
    let directory = tempfile::tempdir().unwrap();
    let server = Running::start(directory.path()).await;
    let (first, mut updates) = server.join(directory.path(), "n1").await;
    next(&mut updates).await;
    let mut other = server.config(directory.path(), "n1");
    other.directory = directory.path().join("elsewhere");
    let error = ServerClient::connect(other.clone(), system_clock()).await.unwrap_err();
    assert!(matches!(&error, JoinError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("node remove n1"), "{error}");

    let (status, _) = server.admin("DELETE", "/v1/nodes/n1", "").await;
    assert_eq!(status, 200);
    assert!(first.report(&report(&[])).await.is_err(), "the old certificate is refused at once");
    let (_second, mut updates) = ServerClient::connect(other, system_clock()).await.unwrap();
    next(&mut updates).await;
    let error = first.report(&report(&[])).await.unwrap_err();
    assert!(error.to_string().contains("removed"), "{error}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_calls_is_what_the_certificate_says() {
    let directory = tempfile::tempdir().unwrap();
    let server = Running::start(directory.path()).await;
    let (one, _updates_one) = server.join(directory.path(), "n1").await;
    let (_two, _updates_two) = server.join(directory.path(), "n2").await;
    one.report(&report(&["192.0.2.1"])).await.unwrap();
    let nodes = server.state.nodes();
    assert!(nodes[0].report.is_some() && nodes[1].report.is_none());

    // With n1's certificate, a certificate for n2's key (or any other) is not to be had.
    let url = format!("https://{}", server.address);
    let load = |node: &str| {
        let (url, node, directory) = (url.clone(), node.to_owned(), directory.path().join(node));
        async move {
            let join = Join { url: &url, node: &node, token: None, directory: &directory };
            join.load_or_join(SystemTime::now()).await
        }
    };
    let credentials = load("n1").await.unwrap();
    let mut client = credentials.client(&url).unwrap();
    let other_key = rcgen::KeyPair::generate().unwrap();
    let certificate_request = pki::certificate_request(&other_key).unwrap();
    let status = client.renew(proto::RenewRequest { certificate_request }).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::PermissionDenied);

    // The credentials of one node are not taken for those of another.
    std::fs::rename(directory.path().join("n2"), directory.path().join("n3")).unwrap();
    assert!(matches!(load("n3").await, Err(JoinError::OtherNode { .. })));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_but_join_needs_a_certificate_of_this_authority() {
    let directory = tempfile::tempdir().unwrap();
    let server = Running::start(directory.path()).await;
    let foreign_directory = tempfile::tempdir().unwrap();
    let foreign = Running::start(foreign_directory.path()).await;
    let url = format!("https://{}", server.address);

    let authority = std::fs::read_to_string(directory.path().join("server/ca/ca.crt")).unwrap();
    let tls = tonic::transport::ClientTlsConfig::new()
        .domain_name(SERVER_NAME)
        .ca_certificate(tonic::transport::Certificate::from_pem(&authority));
    let endpoint = tonic::transport::Endpoint::from_shared(url.clone()).unwrap();
    let channel = endpoint.clone().tls_config(tls.clone()).unwrap().connect_lazy();
    let mut nobody = proto::cluster_client::ClusterClient::new(channel);
    let mut codes = vec![
        nobody.watch(proto::WatchRequest::default()).await.unwrap_err().code(),
        nobody.report(proto::NodeReport::default()).await.unwrap_err().code(),
        nobody.renew(proto::RenewRequest::default()).await.unwrap_err().code(),
    ];
    codes.push(
        nobody.allocate_identities(proto::AllocateIdentitiesRequest::default()).await.unwrap_err().code(),
    );
    codes.push(
        nobody.release_identities(proto::ReleaseIdentitiesRequest::default()).await.unwrap_err().code(),
    );
    assert_eq!(codes, [tonic::Code::Unauthenticated; 5]);

    let (_client, _updates) = foreign.join(foreign_directory.path(), "n1").await;
    let read = |name: &str| std::fs::read_to_string(foreign_directory.path().join("n1").join(name)).unwrap();
    let identity = tonic::transport::Identity::from_pem(read("node.crt"), read("node.key"));
    let channel = endpoint.tls_config(tls.identity(identity)).unwrap().connect_lazy();
    let mut stranger = proto::cluster_client::ClusterClient::new(channel);
    assert!(stranger.watch(proto::WatchRequest::default()).await.is_err());
    foreign.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_of_the_server_the_stream_resumes_where_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let server = Running::start(directory.path()).await;
    server.apply("namespace a\n").await;
    let (client, mut updates) = server.join(directory.path(), "n1").await;
    assert_eq!(next(&mut updates).await.kind, UpdateKind::Snapshot);
    let address = server.stop().await;
    let server = Running::start_at(directory.path(), address, system_clock()).await;
    server.apply("namespace b\n").await;
    let mut seen = Vec::new();
    while seen.is_empty() {
        let update = next(&mut updates).await;
        assert_ne!(update.kind, UpdateKind::Snapshot);
        seen.extend(update.upserts);
    }
    assert_eq!(seen.len(), 1);
    assert_eq!(&*seen[0].reference.name, "b");
    assert!(client.status().connected);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_needs_no_token() {
    let directory = tempfile::tempdir().unwrap();
    let server = Running::start(directory.path()).await;
    let (client, mut updates) = server.join(directory.path(), "n1").await;
    next(&mut updates).await;
    drop(client);
    let config = ClientConfig { token: None, ..server.config(directory.path(), "n1") };
    let (_client, mut updates) = ServerClient::connect(config, system_clock()).await.unwrap();
    assert_eq!(next(&mut updates).await.kind, UpdateKind::Snapshot);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_allocator_knows_what_updates_said_and_asks_for_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let server = Running::start(directory.path()).await;
    server.apply("namespace shop\npod shop/a 10.0.0.1 web\n").await;
    let (one, mut updates) = server.join(directory.path(), "n1").await;
    let (two, mut updates_two) = server.join(directory.path(), "n2").await;
    let named = next(&mut updates).await.identities.remove(0);
    next(&mut updates_two).await;
    let (mut first, mut second) = (one.allocator(), two.allocator());
    assert_eq!(first.known(&named.0), Some(named.1));
    let extra = pod_labels("shop", "extra");
    let asked = |mut allocator: RemoteAllocator| {
        let extra = extra.clone();
        blocking::blocking(move || allocator.allocate(&extra))
    };
    let (a, b) = tokio::join!(asked(first.clone()), asked(second.clone()));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(a, b);
    first.release(a);
    second.release(a);
    let released = || server.state.identities().iter().any(|row| row.id == a && row.released.is_some());
    wait_until(released).await;
    server.stop().await;
    let lost = blocking::blocking(move || first.allocate(&pod_labels("shop", "late"))).await;
    assert!(lost.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_a_node_uses_outlives_the_objects_that_made_it() {
    let directory = tempfile::tempdir().unwrap();
    let server = Running::start(directory.path()).await;
    server.apply("namespace shop\npod shop/a 10.0.0.1 web\n").await;
    let (client, mut updates) = server.join(directory.path(), "n1").await;
    let (labels, id) = next(&mut updates).await.identities.remove(0);
    let mut allocator = client.allocator();
    assert_eq!(allocator.allocate(&labels).unwrap(), id, "known: no question is asked");
    client.report(&report(&[])).await.unwrap();
    let (status, _) = server.admin("DELETE", "/v1/objects/pod/shop/a", "").await;
    assert_eq!(status, 200);
    let is_released = || server.state.identities().iter().any(|row| row.released.is_some());
    assert!(!is_released());
    allocator.release(id);
    client.report(&report(&[])).await.unwrap();
    wait_until(is_released).await;
    server.stop().await;
}

async fn wait_until(condition: impl Fn() -> bool) {
    let polling = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), polling).await.expect("the condition in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_before_it_ends() {
    let directory = tempfile::tempdir().unwrap();
    let server = Running::start(directory.path()).await;
    let (client, mut updates) = server.join(directory.path(), "n1").await;
    next(&mut updates).await;
    drop(client);
    let path = directory.path().join("n1/node.crt");
    let before = pki::NodeCertificate::from_pem(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let address = server.stop().await;
    // The server's clock decides how long the next one lives, the agent's when it asks.
    let later: Clock = Arc::new(|| SystemTime::now() + Duration::from_secs(600));
    let server = Running::start_at(directory.path(), address, later).await;
    let almost_over: Clock = Arc::new(|| SystemTime::now() + pki::NODE_LIFETIME * 5 / 6);
    let config = server.config(directory.path(), "n1");
    let (client, _updates) = ServerClient::connect(config, almost_over).await.unwrap();
    let read = || pki::NodeCertificate::from_pem(&std::fs::read_to_string(&path).unwrap()).unwrap();
    wait_until(|| read().not_after > before.not_after).await;
    assert_eq!((read().node, read().key), (before.node, before.key));
    client.report(&report(&[])).await.unwrap();
    server.stop().await;
}

#[test]
fn an_answer_for_another_name_or_key_is_not_stored() {
    let directory = tempfile::tempdir().unwrap();
    let authority = pki::Authority::load_or_create(&directory.path().join("ca"), SystemTime::now()).unwrap();
    let keys = [rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap()];
    let answer = |key: &rcgen::KeyPair, node: &str| {
        let request = pki::NodeRequest::from_der(&pki::certificate_request(key).unwrap()).unwrap();
        proto::Credentials {
            certificate: authority.sign_node(&request, node, SystemTime::now()).unwrap(),
            authority: authority.certificate.clone(),
            cluster: "test".into(),
        }
    };
    let store = |answer| Credentials::store(directory.path(), &keys[0], answer, "n1");
    assert!(store(answer(&keys[0], "n2")).is_err());
    assert!(store(answer(&keys[1], "n1")).is_err());
    assert!(!directory.path().join("node.crt").exists());
    store(answer(&keys[0], "n1")).unwrap();
    assert!(directory.path().join("node.crt").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_api_applies_lists_deletes_and_rejects_whole() {
    let directory = tempfile::tempdir().unwrap();
    let server = Running::start(directory.path()).await;
    let (status, dry) = server.admin("POST", "/v1/objects?dry-run=true", "namespace shop\n").await;
    assert_eq!((status, &dry["revision"]), (200, &Value::from(0)));
    let (_, objects) = server.admin("GET", "/v1/objects", "").await;
    assert_eq!(objects, Value::Array(vec![]));

    let text = "namespace shop\npod shop/a 10.0.0.1 web\n";
    let (status, applied) = server.admin("POST", "/v1/objects", text).await;
    assert_eq!((status, &applied["revision"]), (200, &Value::from(1)));
    assert_eq!(applied["results"][1]["action"], "created");
    assert_eq!(applied["results"][1]["object"]["name"], "a");

    let (status, rejected) = server.admin("POST", "/v1/objects", "namespace b\nwrong\nalso wrong\n").await;
    assert_eq!((status, rejected["problems"].as_array().unwrap().len()), (422, 2));
    let (_, objects) = server.admin("GET", "/v1/objects?kind=pod&namespace=shop", "").await;
    assert_eq!(objects.as_array().unwrap().len(), 1);
    assert_eq!(objects[0]["manifest"], "pod shop/a 10.0.0.1 web\n");

    for (path, expected) in [
        ("/v1/objects/Pod/-/a", 400),
        ("/v1/objects/Namespace/shop/shop", 400),
        ("/v1/objects/Gateway/shop/a", 400),
        ("/v1/objects/pod/shop/b", 404),
        ("/v1/objects/pod/shop/a", 200),
        ("/v1/objects/pod/shop/a", 404),
        ("/v1/nodes/nobody", 404),
        ("/v1/elsewhere", 404),
    ] {
        assert_eq!(server.admin("DELETE", path, "").await.0, expected, "{path}");
    }
    let (_, status) = server.admin("GET", "/v1/status", "").await;
    assert_eq!((&status["revision"], &status["health"]), (&Value::from(2), &Value::from("ok")));
    let (_, identities) = server.admin("GET", "/v1/identities", "").await;
    assert!(identities[0]["released"].is_string(), "{identities}");
    assert_eq!(server.admin("POST", "/v1/objects?dry-run=maybe", "").await.0, 400);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_token_replaces_the_old_one_and_is_never_answered() {
    let directory = tempfile::tempdir().unwrap();
    let server = Running::start(directory.path()).await;
    let (_joined, mut updates) = server.join(directory.path(), "n1").await;
    next(&mut updates).await;
    let (status, answer) = server.admin("POST", "/v1/token/rotate", "").await;
    assert_eq!(status, 200);
    let text = std::fs::read_to_string(answer["tokenFile"].as_str().unwrap()).unwrap();
    let token: JoinToken = text.parse().unwrap();
    assert!(!answer.to_string().contains(text.trim()));
    let old = server.config(directory.path(), "n2");
    assert!(ServerClient::connect(old.clone(), system_clock()).await.is_err());
    ServerClient::connect(ClientConfig { token: Some(token), ..old }, system_clock()).await.unwrap();
    server.apply("namespace a\n").await;
    next(&mut updates).await;
    server.stop().await;
}
