//! What `endpoint add` says about a pod, beside an object that describes it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::core::Core;
use super::tests::{PODS, Rig, loop_open, open_with, rig};
use crate::api::backend::{ApplyMode, Backend as _, Refusal};
use crate::api::types::{DeviceOrigin, EndpointRequest};
use crate::cluster::delta::EndpointChange;
use crate::model::{Kind, ObjectRef};
use crate::store::testing::ForeignLock;

/// `endpoint add` for a pod of shop, with a label or without.
async fn add(rig: &Rig, pod: &str, address: &str, app: Option<&str>) {
    rig.backend.add_endpoint(request(pod, address, app)).await.unwrap();
}

fn request(pod: &str, address: &str, app: Option<&str>) -> EndpointRequest {
    EndpointRequest {
        pod: format!("shop/{pod}"),
        netns: Some(format!("/run/netns/{pod}")),
        interface: None,
        host_interface: None,
        device: DeviceOrigin::Existing,
        labels: app.map(|app| ("app".to_owned(), app.to_owned())).into_iter().collect(),
        addresses: app.map(|_| address.parse().unwrap()).into_iter().collect(),
    }
}

/// Which pods' devices are under policy, and which were let go meanwhile.
fn devices(rig: &Rig) -> (BTreeMap<String, u32>, Vec<String>) {
    let mut seen = rig.kernel.0.lock();
    (seen.attached.clone(), std::mem::take(&mut seen.detached))
}

/// What the view says that the pod is.
async fn app_of(rig: &Rig, pod: &str) -> Option<String> {
    let pod = pod.to_owned();
    let label = rig.backend.core.call(move |core| {
        let (_, labels) = core.view.pod_identity("shop", &pod)?;
        labels?.iter().find(|label| &*label.key == "app").map(|label| label.value.to_string())
    });
    label.await.unwrap()
}

#[tokio::test]
async fn what_endpoint_add_says_counts_while_no_object_describes_the_pod() {
    let rig = rig();
    add(&rig, "web", "10.244.0.5", Some("said")).await;
    assert_eq!(app_of(&rig, "web").await.as_deref(), Some("said"));
    rig.backend.apply(PODS.into(), ApplyMode::DryRun).await.unwrap();
    assert_eq!(app_of(&rig, "web").await.as_deref(), Some("said"), "a dry run takes nothing away");
    rig.backend.apply(PODS.into(), ApplyMode::Commit).await.unwrap();
    assert_eq!(app_of(&rig, "web").await.as_deref(), Some("web"));
    add(&rig, "web", "10.244.0.5", Some("said again")).await;
    assert_eq!(app_of(&rig, "web").await.as_deref(), Some("web"), "the object stands above it");

    let Rig { backend, directory, .. } = rig;
    drop(backend);
    let rig = loop_open(directory);
    assert_eq!(app_of(&rig, "web").await.as_deref(), Some("web"), "after a restart, too");
    rig.backend.delete(ObjectRef::new(Kind::Pod, "shop", "web")).await.unwrap();
    assert_eq!(app_of(&rig, "web").await.as_deref(), Some("said again"));
    add(&rig, "web", "10.244.0.5", None).await;
    assert_eq!(app_of(&rig, "web").await, None, "what is not said any more does not count");
}

#[tokio::test]
async fn a_description_that_fits_no_longer_holds_nothing_up() {
    let rig = rig();
    add(&rig, "web", "10.244.0.5", Some("said")).await;
    let moved = PODS.replace("10.244.0.5", "10.244.0.9");
    rig.backend.apply(moved, ApplyMode::Commit).await.unwrap();
    let other = PODS.replace("name: client", "name: other").replace("10.244.0.6", "10.244.0.5");
    let other = other.split("---").last().unwrap().to_owned();
    rig.backend.apply(other, ApplyMode::Commit).await.unwrap();
    rig.backend.delete(ObjectRef::new(Kind::Pod, "shop", "web")).await.unwrap();
    assert_eq!(app_of(&rig, "web").await, None, "its address is another pod's");

    let Rig { backend, directory, .. } = rig;
    drop(backend);
    let rig = loop_open(directory);
    assert_eq!(app_of(&rig, "web").await, None);
    assert_eq!(app_of(&rig, "other").await.as_deref(), Some("client"));
}

#[tokio::test]
async fn an_endpoint_that_is_removed_leaves_the_object_of_its_pod() {
    let rig = rig();
    rig.backend.apply(PODS.into(), ApplyMode::Commit).await.unwrap();
    add(&rig, "web", "10.244.0.5", Some("said")).await;
    rig.backend.remove_endpoint("shop/web".into()).await.unwrap();
    assert_eq!(app_of(&rig, "web").await.as_deref(), Some("web"));
    add(&rig, "other", "10.244.0.7", Some("said")).await;
    rig.backend.remove_endpoint("shop/other".into()).await.unwrap();
    assert_eq!(app_of(&rig, "other").await, None);
}

/// Its programs were taken off the device that the pod had, which then sent what it liked.
#[tokio::test]
async fn an_endpoint_that_is_added_again_and_refused_stays_under_policy() {
    let rig = rig();
    rig.backend.apply(PODS.into(), ApplyMode::Commit).await.unwrap();
    add(&rig, "other", "10.244.0.7", Some("said")).await;
    let before = devices(&rig);
    let taken = request("other", "10.244.0.5", Some("more"));
    let elsewhere = EndpointRequest { interface: Some("eth1".to_owned()), ..taken.clone() };
    for (request, let_go) in [(taken, 0), (elsewhere, 1)] {
        let refused = rig.backend.add_endpoint(request).await;
        assert!(matches!(refused, Err(Refusal::Invalid { .. })), "{refused:?}");
        let (attached, detached) = devices(&rig);
        assert_eq!((attached, detached.len()), (before.0.clone(), let_go));
        assert_eq!(app_of(&rig, "other").await.as_deref(), Some("said"));
    }
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_stored_or_forgotten_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let rig = open_with(directory, |store, _| store.busy_timeout = Duration::from_millis(20));
    add(&rig, "web", "10.244.0.5", Some("said")).await;
    let before = devices(&rig).0;
    let lock = ForeignLock::take(&rig.directory.path().join("state.db"));
    // Labels that have a number: nothing else is to be stored.
    let again = request("web", "10.244.0.9", Some("said"));
    let mut later = request("later", "10.244.0.8", Some("said"));
    later.interface = Some("eth1".to_owned());
    for request in [again, later] {
        let refused = rig.backend.add_endpoint(request).await;
        assert!(matches!(&refused, Err(Refusal::Failed(text)) if text.contains("lock")), "{refused:?}");
    }
    let refused = rig.backend.remove_endpoint("shop/web".into()).await;
    assert!(matches!(&refused, Err(Refusal::Failed(text)) if text.contains("lock")), "{refused:?}");
    assert_eq!(devices(&rig).0, before);
    assert_eq!(app_of(&rig, "web").await.as_deref(), Some("said"));
    assert_eq!(app_of(&rig, "later").await, None, "it is no endpoint");
    let places = rig.backend.core.call(|core| core.view.full().endpoints).await.unwrap();
    assert!(
        matches!(&places[..], [EndpointChange::Upsert { addresses, .. }] if *addresses == ["10.244.0.5".parse::<IpAddr>().unwrap()]),
        "{places:?}"
    );
    drop(lock);
    rig.backend.remove_endpoint("shop/web".into()).await.unwrap();
    assert_eq!(app_of(&rig, "web").await, None);
}

/// News that a device is gone took the programs off it, also where they came from a bridge that it was a port of, or where
/// the network namespace that it was added by had lost its name.
#[tokio::test]
async fn a_device_that_is_there_stays_under_policy_whatever_the_news() {
    let rig = rig();
    add(&rig, "web", "10.244.0.5", Some("said")).await;
    let (before, _) = devices(&rig);
    let device = before["shop/web"];
    rig.backend.core.call(move |core| core.find_vanished(|ifindex| ifindex == device)).await.unwrap();
    assert_eq!(devices(&rig), (before, Vec::new()));
    rig.kernel.0.lock().gone.insert(device);
    rig.backend.core.call(move |core| core.find_vanished(|ifindex| ifindex != device)).await.unwrap();
    assert_eq!(rig.backend.endpoints().await.unwrap()[0].state, "ready");
    rig.backend.core.call(move |core| core.find_vanished(|ifindex| ifindex == device)).await.unwrap();
    assert_eq!(devices(&rig), (BTreeMap::new(), vec!["shop/web".to_owned()]));
    rig.backend.core.call(Core::find_missing).await.unwrap();
    assert_eq!(rig.backend.endpoints().await.unwrap()[0].state, "waiting-for-device");
    // Another one under the same names: nobody judged it until the endpoint was added again.
    rig.kernel.0.lock().gone.clear();
    rig.backend.core.call(Core::find_missing).await.unwrap();
    assert_eq!(devices(&rig), (BTreeMap::from([("shop/web".to_owned(), device)]), Vec::new()));
    assert_eq!(rig.backend.endpoints().await.unwrap()[0].state, "ready");
}
