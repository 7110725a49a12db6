//! What `endpoint add` says about a pod, beside an object that describes it.

use super::tests::{PODS, Rig, loop_open, rig};
use crate::api::backend::{ApplyMode, Backend as _};
use crate::api::types::{DeviceOrigin, EndpointRequest};
use crate::model::{Kind, ObjectRef};

/// `endpoint add` for a pod of shop, with a label or without.
async fn add(rig: &Rig, pod: &str, address: &str, app: Option<&str>) {
    let request = EndpointRequest {
        pod: format!("shop/{pod}"),
        netns: Some(format!("/run/netns/{pod}")),
        interface: None,
        host_interface: None,
        device: DeviceOrigin::Existing,
        labels: app.map(|app| ("app".to_owned(), app.to_owned())).into_iter().collect(),
        addresses: app.map(|_| address.parse().unwrap()).into_iter().collect(),
    };
    rig.backend.add_endpoint(request).await.unwrap();
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
