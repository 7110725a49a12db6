//! Learning over the agent's socket, with a kernel that remembers.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use super::super::tests::{PODS, Rig, loop_open, rig};
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
    let learned = Learned { name: name.into(), addresses: vec![(address.parse().unwrap(), ttl)] };
    Question::new(id, &learned)
}

/// What the kernel was told about the address last.
fn in_kernel(rig: &Rig, address: &str) -> Option<u32> {
    let address: IpAddr = address.parse().unwrap();
    let seen = rig.kernel.0.lock();
    let mut all = seen.reconciled.iter().chain(&seen.applied).flat_map(|delta| &delta.ipcache);
    let last = all.rfind(|(prefix, _)| prefix.addr() == address && prefix.prefix_len() == 32)?;
    last.1.map(|entry| entry.identity.0)
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
    let fresh = question(1, "a.example", "192.0.2.1", Duration::from_secs(600)).learned();
    let short = question(2, "b.example", "192.0.2.2", Duration::ZERO).learned();
    let learned = rig.backend.core.call(move |core| {
        let outcome = core.learn_names(&[fresh, short]);
        core.store.learn_names(outcome.rows)
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
