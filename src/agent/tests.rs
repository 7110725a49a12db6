//! The agent without root: the real store, view and engine over a kernel that remembers.

use std::sync::Arc;

use super::backend::AgentBackend;
use super::core::{Core, CoreHandle, Parts};
use super::double::DoubleKernel;
use super::hub::Hub;
use super::l7feed::{FeedWriter, follow};
use super::proxies::ProxyProcess;
use super::{manifests, sources, view_options};
use crate::api::backend::{ApplyMode, Backend as _, ExplainQuery, Refusal};
use crate::api::types::{DeviceOrigin, EndpointRequest};
use crate::cluster::{Change, View, ViewOptions};
use crate::config::{AgentConfig, AgentSettings};
use crate::datapath::ProxyState;
use crate::datapath::net::own::OwnDevice;
use crate::endpoint::DeviceName;
use crate::model::{Direction, Kind, ObjectRef, Protocol};
use crate::policy::engine::L4Flow;
use crate::store::objects::ObjectStore;
use crate::store::{DEFAULT_GRACE, Holder, IdentityStore, OpenOptions, Store, StoreAllocator, system_clock};

pub(super) const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: web, labels: {app: web}}
spec: {nodeName: node1}
status: {podIPs: [{ip: 10.244.0.5}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: client, labels: {app: client}}
spec: {nodeName: node1}
status: {podIPs: [{ip: 10.244.0.6}]}
";

pub(super) const DENY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: web-in}
spec: {podSelector: {matchLabels: {app: web}}}
";

pub(super) struct Rig {
    pub(super) backend: AgentBackend,
    pub(super) kernel: DoubleKernel,
    pub(super) directory: tempfile::TempDir,
}

fn open(directory: tempfile::TempDir) -> Rig {
    open_with(directory, |_, _| {})
}

/// With other options of the store and the view.
pub(super) fn open_with(
    directory: tempfile::TempDir,
    adjust: impl FnOnce(&mut OpenOptions, &mut ViewOptions),
) -> Rig {
    open_on(DoubleKernel::default(), directory, adjust)
}

fn open_on(
    kernel: DoubleKernel,
    directory: tempfile::TempDir,
    adjust: impl FnOnce(&mut OpenOptions, &mut ViewOptions),
) -> Rig {
    let settings = AgentSettings {
        node_name: Some("node1".into()),
        node_address: Some(vec!["172.18.0.2".into()]),
        ..AgentSettings::default()
    };
    let config = Arc::new(AgentConfig::resolve(settings, "host").unwrap());
    let mut options = OpenOptions::new(directory.path().join("state.db"));
    let mut view = view_options(&config, 0);
    adjust(&mut options, &mut view);
    let store = Store::open(&options).unwrap();
    let identities = IdentityStore::open(store.clone(), system_clock(), DEFAULT_GRACE).unwrap();
    let allocator = StoreAllocator::new(identities, Holder::Local);
    let hub = Arc::new(Hub::new(16, "default"));
    let mut core = Core::new(Parts {
        view: View::new(view, Box::new(allocator)),
        kernel: Box::new(kernel.clone()),
        objects: Some(ObjectStore::new(store.clone(), Arc::new(manifests(&config)))),
        store,
        hub: Arc::clone(&hub),
        feed: None,
        config: Arc::clone(&config),
    });
    let loaded = core.objects.as_ref().unwrap().load().unwrap();
    sources::start_standalone(&mut core, loaded, &config.node_addresses).unwrap();
    let (core, _thread) = CoreHandle::spawn(core).unwrap();
    Rig { backend: AgentBackend { core, hub, history: None }, kernel, directory }
}

pub(super) fn rig() -> Rig {
    open(tempfile::tempdir().unwrap())
}

pub(super) async fn explain(rig: &Rig, from: &str, to: &str, port: u16) -> String {
    let query = ExplainQuery { from: from.into(), to: to.into(), port, protocol: Protocol::Tcp };
    rig.backend.explain(query).await.unwrap().verdict
}

#[tokio::test]
async fn a_policy_is_stored_enforced_and_deleted() {
    let rig = rig();
    rig.backend.apply(PODS.into(), ApplyMode::Commit).await.unwrap();
    assert_eq!(explain(&rig, "shop/client", "shop/web", 80).await, "allowed");
    let applied = rig.backend.apply(DENY.into(), ApplyMode::Commit).await.unwrap();
    assert_eq!(applied.results[0].action, "created");
    assert_eq!(explain(&rig, "shop/client", "shop/web", 80).await, "denied");
    let status = rig.backend.status().await.unwrap();
    assert_eq!((status.revision.desired, status.revision.realized), (applied.revision, applied.revision));
    rig.backend.delete(ObjectRef::new(Kind::NetworkPolicy, "shop", "web-in")).await.unwrap();
    assert_eq!(explain(&rig, "shop/client", "shop/web", 80).await, "allowed");
}

#[tokio::test]
async fn an_invalid_manifest_changes_nothing() {
    let rig = rig();
    rig.backend.apply(format!("{PODS}---{DENY}"), ApplyMode::Commit).await.unwrap();
    let before = rig.backend.status().await.unwrap().revision;
    let broken = format!(
        "{}---\napiVersion: v1\nkind: Namespace\nmetadata: {{}}\n",
        DENY.replace("app: web", "app: x")
    );
    let refused = rig.backend.apply(broken, ApplyMode::Commit).await;
    assert!(
        matches!(&refused, Err(Refusal::Invalid { problems, .. }) if !problems.is_empty()),
        "{refused:?}"
    );
    assert_eq!(explain(&rig, "shop/client", "shop/web", 80).await, "denied");
    assert_eq!(rig.backend.status().await.unwrap().revision, before);
}

#[tokio::test]
async fn two_pods_with_one_address_are_refused_and_nothing_is_stored() {
    let rig = rig();
    rig.backend.apply(PODS.into(), ApplyMode::Commit).await.unwrap();
    let twin = PODS.replace("name: client", "name: twin").replace("10.244.0.6", "10.244.0.5");
    let refused = rig.backend.apply(twin, ApplyMode::Commit).await;
    assert!(matches!(refused, Err(Refusal::Invalid { .. })), "{refused:?}");
    assert_eq!(rig.backend.objects(Some(Kind::Pod), None).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_dry_run_judges_and_changes_nothing() {
    let rig = rig();
    rig.backend.apply(PODS.into(), ApplyMode::Commit).await.unwrap();
    let deltas = rig.kernel.0.lock().applied.len();
    rig.backend.apply(DENY.into(), ApplyMode::DryRun).await.unwrap();
    assert_eq!(explain(&rig, "shop/client", "shop/web", 80).await, "allowed");
    assert_eq!(rig.kernel.0.lock().applied.len(), deltas);
    assert_eq!(rig.backend.objects(Some(Kind::NetworkPolicy), None).await.unwrap().len(), 0);
}

#[tokio::test]
async fn what_the_kernel_refuses_is_tried_again_and_said() {
    let rig = rig();
    rig.kernel.0.lock().failures = 2;
    rig.backend.apply(PODS.into(), ApplyMode::Commit).await.unwrap();
    let status = rig.backend.status().await.unwrap();
    assert_eq!(status.health, "degraded");
    assert!(status.revision.realized < status.revision.desired);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let status = rig.backend.status().await.unwrap();
        if status.revision.realized == status.revision.desired {
            assert_eq!(status.health, "ok");
            break;
        }
        assert!(std::time::Instant::now() < deadline, "never realized");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_endpoint_and_its_policy_survive_a_restart() {
    let first = rig();
    first.backend.apply(DENY.into(), ApplyMode::Commit).await.unwrap();
    let request = EndpointRequest {
        pod: "shop/web".into(),
        netns: None,
        interface: None,
        host_interface: Some("veth0".into()),
        device: DeviceOrigin::Existing,
        labels: [("app".to_owned(), "web".to_owned())].into(),
        addresses: vec!["10.244.0.5".parse().unwrap()],
    };
    let endpoint = first.backend.add_endpoint(request).await.unwrap();
    assert_eq!((endpoint.state.as_str(), endpoint.ingress.default_deny), ("ready", true));
    let Rig { backend, directory, .. } = first;
    drop(backend);
    let second = loop_open(directory);
    let again = second.backend.endpoints().await.unwrap();
    assert_eq!(again.len(), 1);
    assert_eq!((again[0].id, again[0].identity), (endpoint.id, endpoint.identity));
    assert_eq!(second.kernel.0.lock().reconciled.len(), 1);
    assert!(second.kernel.0.lock().attached.keys().eq(["shop/web"]));
}

pub(super) fn loop_open(directory: tempfile::TempDir) -> Rig {
    wait_for_store(&directory);
    open(directory)
}

/// The store is free once the first core's thread has ended.
pub(super) fn wait_for_store(directory: &tempfile::TempDir) {
    let path = directory.path().join("state.db");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while Store::open(&OpenOptions::new(path.clone())).is_err() {
        assert!(std::time::Instant::now() < deadline, "the first core never let go of its store");
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn one_device_belongs_to_one_pod() {
    let rig = rig();
    rig.backend.apply(PODS.into(), ApplyMode::Commit).await.unwrap();
    let request = |pod: &str| EndpointRequest {
        pod: pod.into(),
        netns: None,
        interface: None,
        host_interface: Some("veth0".into()),
        device: DeviceOrigin::Existing,
        labels: Default::default(),
        addresses: vec![],
    };
    rig.backend.add_endpoint(request("shop/web")).await.unwrap();
    let second = rig.backend.add_endpoint(request("shop/client")).await;
    assert!(matches!(second, Err(Refusal::Conflict(_))), "{second:?}");
    rig.backend.remove_endpoint("shop/web".into()).await.unwrap();
    rig.backend.add_endpoint(request("shop/client")).await.unwrap();
}

#[tokio::test]
async fn a_device_is_made_for_known_addresses_and_goes_with_the_endpoint() {
    let rig = rig();
    let request = |pod: &str| EndpointRequest {
        pod: pod.into(),
        netns: Some("/run/netns/web".into()),
        interface: None,
        host_interface: None,
        device: DeviceOrigin::Create,
        labels: Default::default(),
        addresses: vec![],
    };
    let unknown = rig.backend.add_endpoint(request("shop/web")).await;
    assert!(matches!(unknown, Err(Refusal::Invalid { .. })), "{unknown:?}");
    rig.backend.apply(PODS.into(), ApplyMode::Commit).await.unwrap();
    rig.backend.add_endpoint(request("shop/web")).await.unwrap();
    let made = rig.kernel.0.lock().made.clone();
    let device = DeviceName::made(1, "/run/netns/web".into(), "eth0".into());
    assert_eq!(made, [(device, vec!["10.244.0.5".parse().unwrap()])]);
    let twice = rig.backend.add_endpoint(request("shop/web")).await;
    assert!(matches!(twice, Err(Refusal::Conflict(_))), "{twice:?}");
    rig.backend.remove_endpoint("shop/web".into()).await.unwrap();
    assert_eq!(rig.kernel.0.lock().made, []);
}

const L7: &str = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {namespace: shop, name: web-http}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{method: GET}]}}]
";

/// The kernel redirected by rules that the proxies had not heard of: no side had a say, and all requests passed.
#[tokio::test]
async fn the_proxies_know_all_rules_by_which_the_kernel_may_redirect() {
    let rig = rig();
    let run = rig.directory.path().join("run");
    let feed = FeedWriter::new(&run);
    rig.backend.core.call(move |core| core.use_feed(feed)).await.unwrap();
    rig.backend.apply(PODS.into(), ApplyMode::Commit).await.unwrap();
    let newest = follow(&run, || ()).unwrap();
    let flow = L4Flow { protocol: Protocol::Tcp, port: 80 };
    let refuses = || {
        let known = newest.load();
        let client = known.local("10.244.0.6".parse().unwrap()).unwrap().identity;
        let web = known.subject("10.244.0.5".parse().unwrap(), Direction::Ingress, flow).unwrap();
        let policy = known.policy(web, Direction::Ingress, client.into(), flow)?;
        Some(policy.refuses_requests() && policy.rules.len() == 1)
    };
    let settled = async || {
        let settled = async {
            while rig.backend.core.call(|core| core.waiting()).await.unwrap() > 0
                || !newest.load().before.is_empty()
            {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), settled).await.unwrap();
    };
    assert_eq!(refuses(), None);
    rig.kernel.0.lock().failures = 1;
    rig.backend.apply(L7.into(), ApplyMode::Commit).await.unwrap();
    assert_eq!(refuses(), Some(true), "the kernel does not have it yet");
    // The core tries again by itself.
    settled().await;
    assert_eq!((refuses(), rig.kernel.0.lock().failures), (Some(true), 0));
    rig.kernel.0.lock().failures = 1;
    rig.backend
        .delete(ObjectRef::new(crate::model::Kind::CiliumNetworkPolicy, "shop", "web-http"))
        .await
        .unwrap();
    assert_eq!(refuses(), Some(true), "the kernel still has it");
    settled().await;
    assert_eq!(refuses(), None);
}

#[tokio::test]
async fn policies_whose_rules_are_too_large_together_are_told_of() {
    let rig = rig();
    let feed = FeedWriter::new(&rig.directory.path().join("run"));
    rig.backend.core.call(move |core| core.use_feed(feed)).await.unwrap();
    let policy = |name: &str| {
        let rules: Vec<String> =
            (0..100).map(|n| format!("{{path: '/{name}.*a[a-z]{{750}}[a-z]{{750}}N{n}'}}")).collect();
        let text = L7.replace("web-http", name);
        text.replace("{method: GET}", &format!("{{path: /ok}}, {}", rules.join(", ")))
    };
    let text = format!("{PODS}---{}", policy("one"));
    let applied = rig.backend.apply(text, ApplyMode::Commit).await.unwrap();
    assert_eq!(applied.warnings, [""; 0]);
    let state = async || {
        let status = rig.backend.status().await.unwrap();
        let found = status.components.into_iter().find(|component| component.name == "l7 rules").unwrap();
        (found.state, found.failures)
    };
    assert_eq!(state().await, ("ok".to_owned(), 0));
    let applied = rig.backend.apply(policy("two"), ApplyMode::Commit).await.unwrap();
    let [warning] = &applied.warnings[..] else { panic!("{:?}", applied.warnings) };
    for words in [
        "CiliumNetworkPolicy shop/two: spec.ingress[0]",
        ": ingress, port 80: nothing passes",
        "too large together",
        "together with CiliumNetworkPolicy shop/one",
    ] {
        assert!(warning.contains(words), "{warning}");
    }
    assert!(warning.chars().next().is_some_and(|first| first.is_ascii_digit()), "with its place: {warning}");
    assert_eq!(state().await, ("degraded".to_owned(), 1));
    let dry = rig.backend.apply(policy("two") + "# again\n", ApplyMode::DryRun).await.unwrap();
    assert_eq!(dry.warnings, [""; 0], "it is what is there");
    let dry = rig.backend.apply(policy("three"), ApplyMode::DryRun).await.unwrap();
    assert_eq!(dry.warnings.len(), 1, "{:?}", dry.warnings);
    // As an update of a server brings it.
    let changes = |name: &str| {
        let manifest = crate::k8s::parse("", &policy(name), &crate::k8s::ParseOptions::default());
        vec![Change::Upsert(manifest.documents.into_iter().next().unwrap().resource)]
    };
    let three = changes("three");
    let revision = rig.backend.status().await.unwrap().revision.desired;
    rig.backend.delete(ObjectRef::new(Kind::CiliumNetworkPolicy, "shop", "two")).await.unwrap();
    assert_eq!(state().await, ("ok".to_owned(), 0));
    rig.backend.core.call(move |core| core.transact(three, revision + 2)).await.unwrap().unwrap();
    assert_eq!(state().await, ("degraded".to_owned(), 1), "status says it wherever the policy was applied");
    rig.backend.delete(ObjectRef::new(Kind::CiliumNetworkPolicy, "shop", "one")).await.unwrap();
    assert_eq!(state().await, ("ok".to_owned(), 0));
}

#[tokio::test]
async fn the_kernel_redirects_while_some_proxy_listens() {
    let rig = rig();
    for (listens, state) in [(true, ProxyState::Listening), (false, ProxyState::Absent)] {
        rig.backend.core.call(move |core| core.proxy_listens(ProxyProcess::Http, listens)).await.unwrap();
        assert_eq!(rig.kernel.0.lock().proxy, Some(state));
    }
}

fn own(name: &str, ifindex: u32) -> OwnDevice {
    OwnDevice { name: name.into(), ifindex, addresses: vec!["198.51.100.1".parse().unwrap()] }
}

#[tokio::test]
async fn a_device_that_comes_late_is_told_and_one_that_fails_is_reported_until_it_works() {
    let rig = rig();
    let devices = async || {
        let status = rig.backend.status().await.unwrap();
        status.components.into_iter().find(|component| component.name == "devices").unwrap()
    };
    let tell = async |names: Vec<OwnDevice>| {
        rig.backend.core.call(move |core| core.node_devices(Ok(names))).await.unwrap()
    };
    assert!(tell(vec![own("late0", 9)]).await);
    assert_eq!(rig.kernel.0.lock().node_devices, ["late0"]);
    assert_eq!(devices().await.state, "ok");
    rig.kernel.0.lock().failures = 1;
    assert!(!tell(vec![own("late1", 10)]).await);
    let reported = devices().await;
    assert_eq!((reported.state.as_str(), reported.failures), ("degraded", 1));
    assert!(tell(vec![own("late1", 10)]).await);
    assert_eq!(devices().await.state, "ok");
}

#[tokio::test]
async fn the_nodes_devices_are_judged_also_when_the_kernel_refused_the_first_state_at_first() {
    let kernel = DoubleKernel::default();
    kernel.0.lock().failures = 1;
    let rig = open_on(kernel, tempfile::tempdir().unwrap(), |_, _| {});
    let judged = async {
        while rig.kernel.0.lock().started == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), judged).await.unwrap();
    assert_eq!(rig.kernel.0.lock().started, 1);
}
