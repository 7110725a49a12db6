//! Learning over the agent's socket, with a kernel that remembers.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use super::super::tests::{PODS, Rig, loop_open, open_with, rig, wait_for_store};
use super::*;
use crate::api::backend::{ApplyMode, Backend as _};
use crate::cluster::delta::Cause;

const POLICY: &str = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {namespace: shop, name: names}
spec:
  endpointSelector: {}
  egress: [{toFQDNs: [{matchPattern: '*.example'}]}]
";

async fn prepared(rig: Rig) -> Rig {
    rig.backend.apply(PODS.into(), ApplyMode::Commit).await.unwrap();
    rig.backend.apply(POLICY.into(), ApplyMode::Commit).await.unwrap();
    listen(&rig).await;
    rig
}

async fn listen(rig: &Rig) {
    let store = rig.backend.core.call(|core| core.store.clone()).await.unwrap();
    serve(rig.directory.path(), rig.backend.core.clone(), store).await.unwrap();
}

/// Sends the answers at once, and returns what came back.
async fn tell(rig: &Rig, questions: &[Question]) -> Vec<Told> {
    let mut stream = BufReader::new(UnixStream::connect(rig.directory.path().join(SOCKET)).await.unwrap());
    let lines: Vec<String> =
        questions.iter().map(|question| serde_json::to_string(question).unwrap() + "\n").collect();
    stream.write_all(lines.concat().as_bytes()).await.unwrap();
    let mut told = Vec::new();
    for _ in questions {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        told.push(serde_json::from_str(&line).unwrap());
    }
    told
}

fn question(id: u64, name: &str, address: &str, ttl: Duration) -> Question {
    question_of(id, "10.244.0.6", name, address, ttl)
}

fn question_of(id: u64, client: &str, name: &str, address: &str, ttl: Duration) -> Question {
    let learned = Learned { name: name.into(), addresses: vec![(address.parse().unwrap(), ttl)] };
    Question::new(id, &Given { learned, clients: vec![client.parse().unwrap()] })
}

/// What the kernel was told about the address last.
fn in_kernel(rig: &Rig, address: &str) -> Option<u32> {
    let address: IpAddr = address.parse().unwrap();
    let seen = rig.kernel.0.lock();
    let mut all = seen.reconciled.iter().chain(&seen.applied).flat_map(|delta| &delta.ipcache);
    let last = all.rfind(|(prefix, _)| prefix.addr() == address && prefix.prefix_len() == 32)?;
    last.1.map(|entry| entry.identity.0)
}

/// The agent closes what it learned. Of this it had not heard, so it stayed open.
#[tokio::test]
async fn what_the_proxy_opened_while_the_agent_hung_is_what_the_agent_knows_of_it() {
    let rig = prepared(rig()).await;
    let mut ended = question(1, "a.example", "192.0.2.1", Duration::ZERO);
    let mut fresh = question(2, "b.example", "192.0.2.2", Duration::from_secs(60));
    ended.opened = ended.addresses.drain(..).map(|(address, _)| address).collect();
    fresh.opened = vec![fresh.addresses[0].0];
    tell(&rig, &[ended, fresh]).await;
    let seen = rig.kernel.0.lock();
    let last = seen.applied.last().unwrap();
    let told: Vec<_> =
        last.ipcache.iter().map(|(prefix, entry)| (prefix.to_string(), entry.is_some())).collect();
    assert_eq!(told, [("192.0.2.1/32".to_owned(), false), ("192.0.2.2/32".to_owned(), true)]);
}

#[tokio::test]
async fn the_kernel_has_an_address_before_the_proxy_is_told() {
    let rig = prepared(rig()).await;
    let minute = Duration::from_secs(60);
    let told = tell(
        &rig,
        &[question(7, "a.example", "192.0.2.1", minute), question(8, "other.org", "192.0.2.2", minute)],
    )
    .await;
    assert_eq!(told.iter().map(|told| (told.id, told.ready)).collect::<Vec<_>>(), [(7, true), (8, true)]);
    assert!(in_kernel(&rig, "192.0.2.1").is_some());
    assert_eq!(in_kernel(&rig, "192.0.2.2"), None, "no rule names it");
    assert!(rig.kernel.0.lock().applied.iter().any(|delta| delta.cause == Cause::Names));
    let listed = rig.backend.names().await.unwrap();
    assert_eq!((&*listed[0].name, &*listed[0].patterns[0]), ("a.example", "*.example"));
}

#[tokio::test]
async fn what_the_kernel_refuses_is_not_called_ready() {
    let rig = prepared(rig()).await;
    rig.kernel.0.lock().failures = 1;
    let told = tell(&rig, &[question(1, "a.example", "192.0.2.1", Duration::from_secs(60))]).await;
    assert_eq!(told.iter().map(|told| (told.id, told.ready)).collect::<Vec<_>>(), [(1, false)]);
}

#[tokio::test]
async fn an_address_is_closed_when_its_answer_ends() {
    let rig = prepared(rig()).await;
    tell(&rig, &[question(1, "a.example", "192.0.2.1", Duration::from_millis(200))]).await;
    assert!(in_kernel(&rig, "192.0.2.1").is_some());
    let closed = async {
        while in_kernel(&rig, "192.0.2.1").is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), closed).await.expect("the core keeps the time itself");
}

#[tokio::test]
async fn a_restart_forgets_nothing_that_is_fresh() {
    let rig = rig();
    rig.backend.apply(PODS.into(), ApplyMode::Commit).await.unwrap();
    rig.backend.apply(POLICY.into(), ApplyMode::Commit).await.unwrap();
    let fresh = question(1, "a.example", "192.0.2.1", Duration::from_secs(600)).given();
    let short = question(2, "b.example", "192.0.2.2", Duration::ZERO).given();
    let learned = rig.backend.core.call(move |core| {
        let outcome = core.learn_names(&[fresh, short]);
        core.store.change_names(outcome.changes)
    });
    learned.await.unwrap().unwrap();
    let Rig { backend, directory, .. } = rig;
    drop(backend);
    let again = loop_open(directory);
    assert!(in_kernel(&again, "192.0.2.1").is_some(), "part of the first full state");
    assert_eq!(in_kernel(&again, "192.0.2.2"), None);
}

#[tokio::test]
async fn noise_ends_the_conversation_and_nothing_else() {
    let rig = prepared(rig()).await;
    let mut stream = UnixStream::connect(rig.directory.path().join(SOCKET)).await.unwrap();
    stream.write_all(b"noise\n").await.unwrap();
    stream.readable().await.unwrap();
    assert_eq!(stream.try_read(&mut [0]).unwrap(), 0);
    assert_eq!(tell(&rig, &[question(1, "a.example", "192.0.2.1", Duration::from_secs(9))]).await.len(), 1);
}

fn with_room_for(names: usize, directory: tempfile::TempDir) -> Rig {
    open_with(directory, |_, view| view.names.max_names = names)
}

/// Waits until the store holds these names.
async fn stored(rig: &Rig, expected: &[&str]) {
    let store = rig.backend.core.call(|core| core.store.clone()).await.unwrap();
    let until = async {
        loop {
            let rows = store.learned_names(SystemTime::now()).unwrap();
            if rows.iter().map(|row| &*row.name).eq(expected.iter().copied()) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), until).await.expect("the store follows")
}

/// A pod with a DNS rule for every name looked up 52,000 of them: a name that another pod's rule wanted was released, stayed
/// closed, and nothing said so. The rows stayed in the store for decades.
#[tokio::test]
async fn one_pod_that_looks_up_every_name_closes_nothing_for_another() {
    let rig = prepared(with_room_for(3, tempfile::tempdir().unwrap())).await;
    let decades = Duration::from_secs(2_000_000_000);
    let flood: Vec<Question> = (1..=9)
        .map(|n| question_of(n, "10.244.0.5", &format!("n{n}.org"), &format!("198.51.100.{n}"), decades))
        .collect();
    tell(&rig, &flood).await;
    let told = tell(&rig, &[question(10, "a.example", "192.0.2.1", decades)]).await;
    assert!(told[0].ready && in_kernel(&rig, "192.0.2.1").is_some());
    stored(&rig, &["a.example", "n8.org", "n9.org"]).await;
    let store = rig.backend.core.call(|core| core.store.clone()).await.unwrap();
    let rows = store.learned_names(SystemTime::now()).unwrap();
    let day = SystemTime::now() + Duration::from_secs(86_400);
    assert!(rows.iter().all(|row| row.expires <= day), "{rows:?}");
}

#[tokio::test]
async fn an_answer_without_room_is_not_called_ready() {
    let rig = prepared(with_room_for(2, tempfile::tempdir().unwrap())).await;
    let minute = Duration::from_secs(60);
    let ask =
        |n: u64, client| question_of(n, client, &format!("n{n}.example"), &format!("192.0.2.{n}"), minute);
    let told = tell(&rig, &[1, 2, 3].map(|n| ask(n, "10.244.0.5"))).await;
    assert_eq!(
        told.iter().map(|told| told.ready).collect::<Vec<_>>(),
        [true, true, false],
        "each for itself"
    );
    assert_eq!(in_kernel(&rig, "192.0.2.3"), None);
    let other = tell(&rig, &[ask(4, "10.244.0.6")]).await;
    assert!(other[0].ready && in_kernel(&rig, "192.0.2.4").is_some(), "another pod has its part");
    assert_eq!(in_kernel(&rig, "192.0.2.1"), None, "the pod that had the most gave its oldest up");
    assert!(other[0].evictions > told[0].evictions, "so that the proxy believes no more in what it was told");
    stored(&rig, &["n2.example", "n4.example"]).await;
}

/// A database of an earlier version, or one of an agent with other limits.
#[tokio::test]
async fn a_start_takes_no_more_from_the_store_than_it_has_room_for() {
    let Rig { backend, directory, .. } = rig();
    let store = backend.core.call(|core| core.store.clone()).await.unwrap();
    let expires = SystemTime::now() + Duration::from_secs(2_000_000_000);
    let rows = (1..=5u8).map(|n| LearnedName {
        name: format!("n{n}.example"),
        address: IpAddr::from([192, 0, 2, n]),
        expires,
    });
    store.change_names(rows.map(NameChange::Learned).collect()).unwrap();
    drop((backend, store));
    wait_for_store(&directory);
    let again = with_room_for(2, directory);
    let rows =
        again.backend.core.call(|core| core.store.learned_names(SystemTime::now())).await.unwrap().unwrap();
    assert_eq!(rows.len(), 2);
    let day = SystemTime::now() + Duration::from_secs(86_400);
    assert!(rows.iter().all(|row| row.expires <= day), "{rows:?}");
}

#[tokio::test]
async fn what_an_agent_that_died_had_taken_from_the_spool_is_learned() {
    let rig = rig();
    let line = r#"{"name":"a.example","address":"192.0.2.1","expires":4102444800000}"#;
    std::fs::write(rig.directory.path().join("names.spool.taken"), line).unwrap();
    let rig = prepared(rig).await;
    assert!(in_kernel(&rig, "192.0.2.1").is_some());
    stored(&rig, &["a.example"]).await;
    assert!(!rig.directory.path().join("names.spool.taken").exists());
}
