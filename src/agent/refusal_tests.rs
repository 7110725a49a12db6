//! What cannot be done is refused with its reason, and what was enforced stays enforced.

use std::time::{Duration, Instant};

use super::tests::{DENY, PODS, Rig, explain, open_with};
use crate::api::backend::{ApplyMode, Backend as _, Refusal};
use crate::api::types::{Component, DeviceOrigin, EndpointRequest};
use crate::store::testing::ForeignLock;

/// Prefixes for a pod that is an endpoint here.
fn cidrs(prefixes: &[&str]) -> String {
    format!(
        "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{namespace: shop, name: out}}
spec:
  endpointSelector: {{matchLabels: {{app: web}}}}
  egress:
  - toPorts: [{{ports: [{{port: '53', protocol: UDP}}]}}]
  - toCIDR: [{}]
",
        prefixes.join(", ")
    )
}

async fn with_endpoint(rig: &Rig) {
    rig.backend.apply(PODS.into(), ApplyMode::Commit).await.unwrap();
    let request = EndpointRequest {
        pod: "shop/web".into(),
        netns: None,
        interface: None,
        host_interface: Some("veth0".into()),
        device: DeviceOrigin::Existing,
        labels: Default::default(),
        addresses: vec![],
    };
    rig.backend.add_endpoint(request).await.unwrap();
}

async fn store(rig: &Rig) -> Component {
    let status = rig.backend.status().await.unwrap();
    status.components.into_iter().find(|component| component.name == "store").unwrap()
}

async fn until_the_store_is_well(rig: &Rig) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while rig.backend.status().await.unwrap().health != "ok" {
        assert!(Instant::now() < deadline, "the store is never found well: {:?}", store(rig).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_policy_that_exceeds_the_map_is_refused_with_its_rule_and_the_reason() {
    let rig = open_with(tempfile::tempdir().unwrap(), |_, view| view.engine.max_entries = 5);
    with_endpoint(&rig).await;
    rig.backend.apply(cidrs(&["192.0.2.0/24"]), ApplyMode::Commit).await.unwrap();
    let before = rig.backend.status().await.unwrap().revision;
    let told = rig.kernel.0.lock().applied.len();

    let many = ["192.0.3.0/24", "192.0.4.0/24", "192.0.5.0/24", "192.0.6.0/24", "192.0.7.0/24"];
    let refused = rig.backend.apply(cidrs(&many), ApplyMode::Commit).await;
    let Err(Refusal::Invalid { problems, .. }) = refused else { panic!("{refused:?}") };
    let [problem] = &problems[..] else { panic!("{problems:?}") };
    for part in ["9:5: ", "shop/out", "spec.egress[1]", "map entries", "the limit is 5"] {
        assert!(problem.contains(part), "{part}: {problem}");
    }
    assert_eq!(explain(&rig, "shop/web", "192.0.2.1", 80).await, "allowed");
    assert_eq!(explain(&rig, "shop/web", "192.0.3.1", 80).await, "denied");
    assert_eq!(rig.backend.status().await.unwrap().revision, before);
    assert_eq!(rig.kernel.0.lock().applied.len(), told);
}

#[tokio::test]
async fn a_locked_store_refuses_changes_and_is_found_well_again() {
    let directory = tempfile::tempdir().unwrap();
    let rig = open_with(directory, |store, _| store.busy_timeout = Duration::from_millis(20));
    rig.backend.apply(format!("{PODS}---{DENY}"), ApplyMode::Commit).await.unwrap();
    let lock = ForeignLock::take(&rig.directory.path().join("state.db"));
    let open_up = DENY.replace("app: web", "app: nobody");
    let refused = rig.backend.apply(open_up.clone(), ApplyMode::Commit).await;
    assert!(matches!(&refused, Err(Refusal::Failed(text)) if text.contains("lock")), "{refused:?}");
    assert_eq!(explain(&rig, "shop/client", "shop/web", 80).await, "denied");
    let status = rig.backend.status().await.unwrap();
    assert_eq!((status.health.as_str(), status.revision.desired), ("degraded", status.revision.realized));
    assert!(store(&rig).await.failures > 0);
    drop(lock);
    until_the_store_is_well(&rig).await;
    rig.backend.apply(open_up, ApplyMode::Commit).await.unwrap();
    assert_eq!(explain(&rig, "shop/client", "shop/web", 80).await, "allowed");
}

#[tokio::test]
async fn a_full_disk_refuses_changes_and_is_found_well_again() {
    let rig = open_with(tempfile::tempdir().unwrap(), |store, _| store.max_pages = Some(64));
    rig.backend.apply(format!("{PODS}---{DENY}"), ApplyMode::Commit).await.unwrap();
    let large =
        format!("{}  # {}\n", DENY.replace("app: web", "app: nobody").trim_end(), "x".repeat(1 << 20));
    let refused = rig.backend.apply(large, ApplyMode::Commit).await;
    assert!(matches!(&refused, Err(Refusal::Failed(_))), "{refused:?}");
    assert_eq!(explain(&rig, "shop/client", "shop/web", 80).await, "denied");
    assert!(store(&rig).await.failures > 0);
    until_the_store_is_well(&rig).await;
}

/// Numbers of this node are given anew when a judged change is taken back: the kernel has to be told.
#[tokio::test]
async fn a_dry_run_leaves_the_kernel_with_the_numbers_that_the_view_has() {
    let rig = open_with(tempfile::tempdir().unwrap(), |_, _| {});
    with_endpoint(&rig).await;
    rig.backend.apply(cidrs(&["192.0.2.0/24"]), ApplyMode::Commit).await.unwrap();
    rig.backend.apply(cidrs(&["198.51.100.0/24"]), ApplyMode::DryRun).await.unwrap();
    let full = rig.backend.core.call(|core| core.view.full()).await.unwrap();
    let seen = rig.kernel.0.lock();
    let last = seen.reconciled.last().unwrap();
    assert_eq!((&last.ipcache, &last.policies), (&full.ipcache, &full.policies));
}
