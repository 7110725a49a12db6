//! The agent's configuration: flags over environment over file over defaults, parsed in two steps.
//!
//! Step one collects text ([`AgentSettings`], the same keys everywhere: a flag `--node-name` is the
//! environment variable `SLUICE_NODE_NAME` and the key `node-name` of the file). Step two
//! ([`AgentConfig::resolve`]) validates the whole and reports every problem before a socket is bound or
//! a program loaded.

mod dns;
mod flow_api;
mod flows;
mod problems;
mod settings;
mod ui;

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

pub use self::dns::{DnsConfig, DnsRefusal, default_workers};
pub use self::flow_api::{FlowApi, FlowApiSecurity};
pub use self::flows::{ExportConfig, MetricsConfig};
use self::problems::Problems;
pub use self::settings::AgentSettings;
pub use self::ui::{UiConfig, UiSettings, UiTls};
use crate::cluster::delta::DenyResponse;
use crate::httpproxy::options::Options;
pub use crate::policy::engine::{AllowLocalhost, Enforcement};
use crate::store::history::Limits;

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// This agent alone: `sluice policy apply` writes into its own store.
    Standalone,
    Server {
        url: String,
        /// Needed for the first join only.
        token_file: Option<PathBuf>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    Tunnel,
    Routes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmptyRuleLists {
    Deny,
    Ignore,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    On,
    Off,
}

impl Switch {
    pub fn is_on(self) -> bool {
        self == Switch::On
    }
}

/// Which packets become flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowEvents {
    /// The first packet of every connection, and drops.
    Verdicts,
    Drops,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// The validated configuration of an agent.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    pub node_name: String,
    pub cluster_name: String,
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
    pub bpffs: PathBuf,
    pub source: Source,
    pub uplink: Option<String>,
    pub routing: Routing,
    pub masquerade: Switch,
    pub pod_cidrs: Vec<IpNet>,
    pub node_addresses: Vec<IpAddr>,
    pub ingress_addresses: Vec<IpAddr>,
    pub enforcement: Enforcement,
    pub allow_localhost: AllowLocalhost,
    pub cidr_matches_nodes: Switch,
    pub deny_response: DenyResponse,
    pub empty_rule_lists: EmptyRuleLists,
    pub host_firewall: Switch,
    pub proxies: Switch,
    /// See [`crate::httpproxy::options::Options`]; known to be valid.
    pub http_proxy: Vec<String>,
    pub ui: Option<UiConfig>,
    pub dns: DnsConfig,
    pub flow_buffer: usize,
    pub flow_events: FlowEvents,
    /// None: no history is kept.
    pub history: Option<Limits>,
    pub export: ExportConfig,
    pub metrics: MetricsConfig,
    /// The flow API beyond its unix socket.
    pub flow_api: Option<FlowApi>,
    pub log_format: LogFormat,
    pub log: String,
}

/// Everything that is wrong, one line each.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

impl AgentConfig {
    /// Validates everything; on failure every problem is listed.
    pub fn resolve(settings: AgentSettings, host_name: &str) -> Result<AgentConfig, ConfigError> {
        let mut problems = Problems(Vec::new());
        let p = &mut problems;
        let routing = p.choice(
            "routing",
            settings.routing.as_deref(),
            &[("tunnel", Routing::Tunnel), ("routes", Routing::Routes)],
        );
        let on = &[("on", Switch::On), ("off", Switch::Off), ("true", Switch::On), ("false", Switch::Off)];
        let off = &[("off", Switch::Off), ("on", Switch::On), ("true", Switch::On), ("false", Switch::Off)];
        let masquerade = p.choice("masquerade", settings.masquerade.as_deref(), on);
        let proxies = p.choice("proxies", settings.proxies.as_deref(), on);
        let dns = DnsConfig::resolve(&settings, p);
        let host_firewall = p.choice("host-firewall", settings.host_firewall.as_deref(), off);
        let enforcement = p.choice(
            "policy-enforcement",
            settings.policy_enforcement.as_deref(),
            &[
                ("default", Enforcement::Default),
                ("always", Enforcement::Always),
                ("never", Enforcement::Never),
            ],
        );
        let allow_localhost = p.choice(
            "allow-localhost",
            settings.allow_localhost.as_deref(),
            &[("always", AllowLocalhost::Always), ("policy", AllowLocalhost::Policy)],
        );
        let deny_response = p.choice(
            "deny-response",
            settings.deny_response.as_deref(),
            &[("drop", DenyResponse::Drop), ("reject", DenyResponse::Reject)],
        );
        let empty_rule_lists = p.choice(
            "empty-rule-lists",
            settings.empty_rule_lists.as_deref(),
            &[("deny", EmptyRuleLists::Deny), ("ignore", EmptyRuleLists::Ignore)],
        );
        let log_format = p.choice(
            "log-format",
            settings.log_format.as_deref(),
            &[("text", LogFormat::Text), ("json", LogFormat::Json)],
        );
        let ui = ui::resolve(&settings.ui(), ui::AGENT_DEFAULT, &mut p.0);
        let history = flows::history(&settings, &mut p.0);
        let export = flows::export(&settings, &mut p.0);
        let metrics = flows::metrics(&settings, &mut p.0);
        let flow_api = flow_api::resolve(p, &settings);
        let http_proxy = settings.http_proxy.unwrap_or_default();
        if let Err(wrong) = Options::parse(&http_proxy) {
            p.0.extend(wrong.into_iter().map(|problem| format!("http-proxy: {problem}")));
        }
        let mut cidr_matches_nodes = Switch::Off;
        for mode in settings.cidr_match_mode.iter().flatten().filter(|mode| !mode.is_empty()) {
            cidr_matches_nodes = p.choice("cidr-match-mode", Some(mode), &[("nodes", Switch::On)]);
        }
        let pod_cidrs = p.list("pod-cidr", settings.pod_cidr.as_deref(), "a CIDR such as 10.244.0.0/16");
        let node_addresses = p.list("node-address", settings.node_address.as_deref(), "an IP address");
        let ingress_addresses =
            p.list("ingress-address", settings.ingress_address.as_deref(), "an IP address");
        let source = match &settings.server {
            Some(url) => {
                if !url.starts_with("https://") {
                    p.0.push(format!("server: {url:?}: expected https://HOST:PORT"));
                }
                Source::Server { url: url.clone(), token_file: settings.token_file.clone() }
            }
            None => Source::Standalone,
        };
        let flow_events = p.choice(
            "flow-events",
            settings.flow_events.as_deref(),
            &[("verdicts", FlowEvents::Verdicts), ("drops", FlowEvents::Drops)],
        );
        let node_name = settings.node_name.clone().unwrap_or_else(|| host_name.to_owned());
        if node_name.is_empty() || node_name.len() > 253 {
            p.0.push(format!("node-name: {node_name:?}: expected 1 to 253 characters"));
        }
        let flow_buffer = settings.flow_buffer.unwrap_or(65_536);
        if !(1..=16_777_216).contains(&flow_buffer) {
            p.0.push(format!("flow-buffer: {flow_buffer}: expected 1 to 16777216"));
        }
        let log = settings.log.clone().unwrap_or_else(|| "info".to_owned());
        if let Err(error) = log.parse::<tracing_subscriber::filter::Targets>() {
            p.0.push(format!("log: {log:?}: {error}"));
        }
        let absolute = |p: &mut Problems, key: &str, path: Option<PathBuf>, default: &str| {
            let path = path.unwrap_or_else(|| PathBuf::from(default));
            if !path.is_absolute() {
                p.0.push(format!("{key}: {}: expected an absolute path", path.display()));
            }
            path
        };
        let state_dir = absolute(p, "state-dir", settings.state_dir, "/var/lib/sluice");
        let run_dir = absolute(p, "run-dir", settings.run_dir, "/run/sluice");
        let bpffs = absolute(p, "bpffs", settings.bpffs, "/sys/fs/bpf/sluice");
        if !problems.0.is_empty() {
            return Err(ConfigError(problems.0));
        }
        Ok(AgentConfig {
            node_name,
            cluster_name: settings.cluster_name.unwrap_or_else(|| "default".to_owned()),
            state_dir,
            run_dir,
            bpffs,
            source,
            uplink: settings.uplink,
            routing,
            masquerade,
            pod_cidrs,
            node_addresses,
            ingress_addresses,
            enforcement,
            allow_localhost,
            cidr_matches_nodes,
            deny_response,
            empty_rule_lists,
            host_firewall,
            proxies,
            http_proxy,
            ui,
            dns,
            flow_buffer,
            flow_events,
            history,
            export,
            metrics,
            flow_api,
            log_format,
            log,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        let config = AgentConfig::resolve(AgentSettings::default(), "node1").unwrap();
        assert_eq!(config.node_name, "node1");
        assert_eq!(config.source, Source::Standalone);
        assert_eq!(config.host_firewall, Switch::Off);
    }

    #[test]
    fn every_problem_is_listed_at_once() {
        let settings = AgentSettings {
            routing: Some("carrier-pigeon".into()),
            pod_cidr: Some(vec!["10.244.0.0/99".into()]),
            state_dir: Some("relative".into()),
            ..AgentSettings::default()
        };
        let ConfigError(problems) = AgentConfig::resolve(settings, "node1").unwrap_err();
        assert_eq!(problems.len(), 3, "{problems:?}");
    }
}
