//! The composition root: the only place where everything meets.
//!
//! Order of a start, so that no packet finds a hole:
//!
//! 1. configuration is valid as a whole, the store is sound, the source's credentials are there;
//! 2. the datapath opens: programs of an earlier run are replaced one by one, and go on with the
//!    maps that are there (enforcement does not wait for us);
//! 3. the first full state of the source: devices of known pods are attached, the state is computed,
//!    and the maps are made to hold exactly it; only then are uplink and overlay programs attached;
//! 4. the admin socket opens (it answers `status` already while 3 is waiting for a server).
//!
//! When the agent ends, everything in the kernel stays.

mod attachments;
mod backend;
mod core;
mod directory;
mod dns_judge;
pub mod dns_proxy;
mod enrich;
mod export;
mod history;
mod host_state;
pub mod http_proxy;
mod hub;
mod kernel;
mod kernel_tables;
mod known_names;
pub mod l7feed;
mod l7misfits;
mod linux;
mod manifests;
mod metrics;
mod names;
mod names_client;
mod names_link;
mod node_devices;
mod observer;
mod offline_names;
mod opened_alone;
mod outgoing;
mod pace;
mod proxies;
pub mod proxy_host;
mod pump;
pub mod records;
mod sources;
mod tables;
mod tail;
pub mod telemetry;
mod ui;
mod ui_listener;
mod ui_policies;
#[cfg(test)]
mod ui_tests;
mod ui_why;

#[cfg(test)]
mod described_tests;
#[cfg(test)]
mod double;
#[cfg(test)]
mod refusal_tests;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context as _;

use self::backend::AgentBackend;
use self::core::{Core, CoreHandle, Parts};
use self::enrich::Enricher;
use self::history::Recorder;
use self::hub::Hub;
use self::linux::LinuxKernel;
pub use self::manifests::Manifests;
use crate::api;
use crate::cluster::{MissingNamespaces, View, ViewOptions};
use crate::config::{AgentConfig, EmptyRuleLists, MetricsConfig, Source};
use crate::datapath::net::Netlink;
use crate::datapath::net::watch::DeviceWatch;
use crate::fqdn::NameManagerOptions;
use crate::identity::IdentityAllocator;
use crate::k8s;
use crate::model::Identity;
use crate::policy::engine::{CidrMatch, EngineOptions};
use crate::server::client::{ClientConfig, ServerClient};
use crate::store::objects::ObjectStore;
use crate::store::{
    DEFAULT_GRACE, Holder, IdentityStore, OnCorrupt, OpenOptions, Store, StoreAllocator, system_clock,
};

/// Name of the setting that keeps [`View::local_number_offset`].
const OFFSET_SETTING: &str = "local-number-offset";

/// What the policies of this agent's configuration mean.
pub fn view_options(config: &AgentConfig, local_number_offset: u32) -> ViewOptions {
    ViewOptions {
        node: config.node_name.clone(),
        cluster_name: config.cluster_name.clone(),
        engine: EngineOptions {
            enforcement: config.enforcement,
            cidr_match: if config.cidr_matches_nodes.is_on() {
                CidrMatch::WorldAndNodes
            } else {
                CidrMatch::World
            },
            allow_localhost: config.allow_localhost,
            ..EngineOptions::default()
        },
        host_firewall: config.host_firewall.is_on(),
        deny_response: config.deny_response,
        pod_cidrs: config.pod_cidrs.clone(),
        fixed_addresses: config
            .ingress_addresses
            .iter()
            .map(|address| (*address, Identity::INGRESS))
            .collect(),
        names: NameManagerOptions {
            ttl: config.dns.ttl,
            max_addresses: config.dns.max_addresses,
            max_names: config.dns.max_names,
            max_all_addresses: config.dns.max_all_addresses,
        },
        // People write pods without their namespaces; a server adds them where it knows them.
        missing_namespaces: MissingNamespaces::Exist,
        local_number_offset,
        ..ViewOptions::default()
    }
}

/// The parser with what the configuration says about empty lists.
pub fn manifests(config: &AgentConfig) -> Manifests {
    let empty_rule_lists = match config.empty_rule_lists {
        EmptyRuleLists::Deny => k8s::EmptyRuleLists::Deny,
        EmptyRuleLists::Ignore => k8s::EmptyRuleLists::Ignore,
    };
    Manifests { options: k8s::ParseOptions { empty_rule_lists, ..k8s::ParseOptions::default() } }
}

/// Runs an agent until it is told to stop.
pub fn run(config: AgentConfig, on_corrupt: OnCorrupt) -> anyhow::Result<()> {
    crate::datapath::share_heaps();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("sluice")
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(serve(Arc::new(config), on_corrupt))
}

async fn serve(config: Arc<AgentConfig>, on_corrupt: OnCorrupt) -> anyhow::Result<()> {
    let store =
        Store::open(&OpenOptions { on_corrupt, ..OpenOptions::new(config.state_dir.join("state.db")) })?;
    let addresses = node_addresses(&config)?;
    let mut updates = None;
    let (allocator, objects, client): (Box<dyn IdentityAllocator + Send>, _, _) = match &config.source {
        Source::Standalone => {
            let identities = IdentityStore::open(store.clone(), system_clock(), DEFAULT_GRACE)?;
            let objects = ObjectStore::new(store.clone(), Arc::new(manifests(&config)));
            (Box::new(StoreAllocator::new(identities, Holder::Local)), Some(objects), None)
        }
        Source::Server { url, token_file } => {
            let (client, receiver) = join(&config, url, token_file.as_deref()).await?;
            updates = Some(receiver);
            (Box::new(client.allocator()), None, Some(Arc::new(client)))
        }
    };
    let offset = store.setting(OFFSET_SETTING)?.and_then(|text| text.parse().ok()).unwrap_or(0);
    let view = View::new(view_options(&config, offset), allocator);
    // The kernel verifies programs while we read what is stored.
    let loading = objects.clone().map(|objects| tokio::task::spawn_blocking(move || objects.load()));
    // Before the devices are listed: none comes in between.
    let devices = DeviceWatch::start()?;
    let kernel = LinuxKernel::open(&config, &addresses).await?;
    let events = kernel.events()?;
    let hub = Arc::new(Hub::new(config.flow_buffer, &config.cluster_name));
    let names = store.clone();
    let mut core = Core::new(Parts {
        config: Arc::clone(&config),
        view,
        kernel: Box::new(kernel),
        store,
        objects,
        hub: Arc::clone(&hub),
        feed: config.proxies.is_on().then(|| l7feed::FeedWriter::new(&config.run_dir)),
    });
    let shared = Arc::clone(&core.shared);
    if loading.is_none() {
        core.source_trouble = Some("waiting for the first state of the server".into());
    }
    let (core, thread) = CoreHandle::spawn(core).context("start the core's thread")?;
    if let Some(loading) = loading {
        let (loaded, addresses) = (loading.await??, addresses.clone());
        core.call(move |core| sources::start_standalone(core, loaded, &addresses)).await??;
    }
    let enricher = || Enricher::new(core.clone(), Arc::clone(&shared), &config.node_name);
    tokio::spawn(pump::run(events, enricher(), Arc::clone(&hub)));
    tokio::spawn(node_devices::run(devices, Netlink::here()?, core.clone()));
    tokio::spawn(attachments::run(core.clone()));
    names::serve(&config.run_dir, core.clone(), names).await?;
    if config.proxies.is_on() {
        let receiver = records::Receiver::bind(&config.run_dir)?;
        tokio::spawn(receiver.run(enricher(), Arc::clone(&hub)));
        for process in proxies::ProxyProcess::ALL {
            tokio::spawn(proxies::supervise(process, Arc::clone(&config), core.clone()));
        }
    }
    if let (Some(client), Some(updates)) = (client, updates) {
        let follower =
            sources::Follower::new(core.clone(), Arc::clone(&config), manifests(&config), addresses.clone());
        tokio::spawn(follower.run(updates));
        tokio::spawn(sources::report(client, core.clone(), addresses));
    }
    let shown = Arc::new(ui::AgentUi { core: core.clone(), hub: Arc::clone(&hub) });
    if let Some(ui) = config.ui.clone() {
        ui_listener::start(ui, Arc::clone(&shown)).await;
    }
    let observed = observe(&config, &core, &hub).await?;
    let stop = tokio_util::sync::CancellationToken::new();
    hub.note(crate::flow::journal::AgentEvent::Started);
    observer::serve(&config, Arc::clone(&hub), observed.clone(), shown, stop.clone()).await?;
    let backend = Arc::new(AgentBackend { core: core.clone(), hub, history: observed.clone() });
    let socket = config.run_dir.join("admin.sock");
    let listener = api::unix::bind(&socket).await?;
    tracing::info!(node = config.node_name, socket = %socket.display(), "ready");
    // Not running under systemd is no failure.
    sd_notify::notify(false, &[sd_notify::NotifyState::Ready]).ok();
    tokio::select! {
        served = axum::serve(listener, api::admin::router(backend)) => served.context("serve the admin API")?,
        () = stop_signal() => {}
    }
    tracing::info!("stopping; what is in the kernel goes on enforcing");
    stop.cancel();
    std::fs::remove_file(config.run_dir.join(api::hubble::SOCKET)).ok();
    std::fs::remove_file(&socket).ok();
    if let Some(history) = observed {
        tokio::task::spawn_blocking(move || history.flush()).await.ok();
    }
    drop(core);
    drop(thread);
    Ok(())
}

/// History, export and metrics: whatever of them fails, enforcement and live flows go on.
async fn observe(
    config: &AgentConfig,
    core: &CoreHandle,
    hub: &Arc<Hub>,
) -> anyhow::Result<Option<Arc<Recorder>>> {
    let history = match config.history {
        Some(limits) => Some(Recorder::start(config.state_dir.join("flows.db"), limits, Arc::clone(hub))?),
        None => None,
    };
    let export = export::start(&config.export, &config.node_name, hub)?;
    let MetricsConfig { agent, flows, context, series } = config.metrics.clone();
    let counted = metrics::count_flows(context, series, Arc::clone(hub))?;
    let sources = metrics::Sources { core: core.clone(), history: history.clone(), export, flows: counted };
    if let Some(listen) = agent
        && let Err(error) = metrics::serve_agent(listen, sources.clone()).await
    {
        tracing::error!(error = %format!("{error:#}"), %listen, "the agent's metrics are not served");
    }
    if let Some(listen) = flows
        && let Err(error) = metrics::serve_flows(listen, sources).await
    {
        tracing::error!(error = %format!("{error:#}"), %listen, "metrics of flows are not served");
    }
    let shown = history.clone();
    core.call(move |core| core.history = shown).await?;
    Ok(history)
}

async fn join(
    config: &AgentConfig,
    url: &str,
    token_file: Option<&std::path::Path>,
) -> anyhow::Result<(ServerClient, tokio::sync::mpsc::Receiver<crate::server::Update>)> {
    let mut pause = std::time::Duration::from_millis(100);
    loop {
        let token = match token_file.map(std::fs::read_to_string) {
            None => None,
            Some(Ok(text)) => Some(text.trim().parse().context("the join token")?),
            Some(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => None,
            Some(Err(error)) => return Err(error).context("read the join token"),
        };
        let client = ClientConfig {
            url: url.to_owned(),
            node: config.node_name.clone(),
            token,
            directory: config.state_dir.join("server"),
        };
        match ServerClient::connect(client, system_clock()).await {
            Ok(connected) => return Ok(connected),
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, "cannot join the server yet");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(std::time::Duration::from_secs(10));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn stop_signal() {
    let Ok(mut terminate) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) else {
        return tokio::signal::ctrl_c().await.unwrap_or_default();
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

/// Configured, or the global addresses of the uplink.
fn node_addresses(config: &AgentConfig) -> anyhow::Result<Vec<IpAddr>> {
    if !config.node_addresses.is_empty() {
        return Ok(config.node_addresses.clone());
    }
    let Some(uplink) = &config.uplink else { return Ok(Vec::new()) };
    let addresses: Vec<IpAddr> = nix::ifaddrs::getifaddrs()
        .context("read the addresses of this node")?
        .filter(|interface| interface.interface_name == *uplink)
        .filter_map(|interface| {
            let address = interface.address?;
            if let Some(v4) = address.as_sockaddr_in() {
                return Some(IpAddr::V4(v4.ip()));
            }
            address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()))
        })
        .filter(|address| match address {
            IpAddr::V4(v4) => !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_unicast_link_local(),
        })
        .collect();
    anyhow::ensure!(!addresses.is_empty(), "the uplink {uplink} has no address: give --node-address");
    Ok(addresses)
}
