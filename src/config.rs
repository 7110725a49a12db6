//! The agent's configuration: flags over environment over file over defaults, parsed in two steps.
//!
//! Step one collects text ([`AgentSettings`], the same keys everywhere: a flag `--node-name` is the
//! environment variable `SLUICE_NODE_NAME` and the key `node-name` of the file). Step two
//! ([`AgentConfig::resolve`]) validates the whole and reports every problem before a socket is bound or
//! a program loaded.

mod dns;
mod flows;
mod ui;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::IpNet;

pub use self::dns::{DnsConfig, DnsRefusal, default_workers};
pub use self::flows::{ExportConfig, MetricsConfig};
pub use self::ui::{UiConfig, UiSettings, UiTls};
use crate::api::hubble::tls::{Clients, TlsFiles};
use crate::cluster::delta::DenyResponse;
use crate::httpproxy::options::Options;
pub use crate::policy::engine::{AllowLocalhost, Enforcement};
use crate::store::history::Limits;

/// What was written, before validation. An absent member is not set at this level.
#[derive(Clone, Debug, Default, clap::Args, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct AgentSettings {
    /// Name of this node as the cluster knows it [default: the host name]
    #[arg(long, env = "SLUICE_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Name of the cluster (label io.cilium.k8s.policy.cluster) [default: default]
    #[arg(long, env = "SLUICE_CLUSTER_NAME", value_name = "NAME")]
    pub cluster_name: Option<String>,
    /// Where state is kept [default: /var/lib/sluice]
    #[arg(long, env = "SLUICE_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where sockets are [default: /run/sluice]
    #[arg(long, env = "SLUICE_RUN_DIR", value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// BPF file system directory for pinned programs and maps [default: /sys/fs/bpf/sluice]
    #[arg(long, env = "SLUICE_BPFFS", value_name = "DIR")]
    pub bpffs: Option<PathBuf>,
    /// Join this sluice server (https://HOST:7443) instead of keeping state alone
    #[arg(long, env = "SLUICE_URL", value_name = "URL")]
    pub server: Option<String>,
    /// File with the join token of the server
    #[arg(long, env = "SLUICE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Device towards other nodes and the world
    #[arg(long, env = "SLUICE_UPLINK", value_name = "DEVICE")]
    pub uplink: Option<String>,
    /// How pods of other nodes are reached: tunnel (VXLAN) or routes [default: tunnel]
    #[arg(long, env = "SLUICE_ROUTING", value_name = "MODE")]
    pub routing: Option<String>,
    /// Pod traffic to the outside gets the node's address: on or off [default: on]
    #[arg(long, env = "SLUICE_MASQUERADE", value_name = "on|off")]
    pub masquerade: Option<String>,
    /// Address ranges of all pods of the cluster (repeat or comma separated)
    #[arg(long, env = "SLUICE_POD_CIDR", value_name = "CIDR", value_delimiter = ',')]
    pub pod_cidr: Option<Vec<String>>,
    /// The node's own addresses [default: those of the uplink]
    #[arg(long, env = "SLUICE_NODE_ADDRESS", value_name = "IP", value_delimiter = ',')]
    pub node_address: Option<Vec<String>>,
    /// Addresses of the gateways (entity `ingress`) of all nodes (repeat or comma separated)
    #[arg(long, env = "SLUICE_INGRESS_ADDRESS", value_name = "IP", value_delimiter = ',')]
    pub ingress_address: Option<Vec<String>>,
    /// default, always (every pod is default-deny) or never [default: default]
    #[arg(long, env = "SLUICE_POLICY_ENFORCEMENT", value_name = "MODE")]
    pub policy_enforcement: Option<String>,
    /// Traffic of the node to its own pods: always allowed, or under policy [default: always]
    #[arg(long, env = "SLUICE_ALLOW_LOCALHOST", value_name = "always|policy")]
    pub allow_localhost: Option<String>,
    /// What CIDR rules of Cilium policies select besides the world: nothing, or nodes
    #[arg(long, env = "SLUICE_CIDR_MATCH_MODE", value_name = "nodes", value_delimiter = ',')]
    pub cidr_match_mode: Option<Vec<String>>,
    /// What the sender of a denied packet gets: drop (silence) or reject (RST, ICMP) [default: drop]
    #[arg(long, env = "SLUICE_DENY_RESPONSE", value_name = "drop|reject")]
    pub deny_response: Option<String>,
    /// `ingress: []` of a Cilium policy turns default deny on (deny) or does nothing (ignore) [default: deny]
    #[arg(long, env = "SLUICE_EMPTY_RULE_LISTS", value_name = "deny|ignore")]
    pub empty_rule_lists: Option<String>,
    /// Enforce CiliumClusterwideNetworkPolicies with a nodeSelector on this node: on or off [default: off]
    #[arg(long, env = "SLUICE_HOST_FIREWALL", value_name = "on|off", num_args = 0..=1, default_missing_value = "on")]
    pub host_firewall: Option<String>,
    /// Run the L7 proxies; without them what L7 rules govern is dropped: on or off [default: on]
    #[arg(long, env = "SLUICE_PROXIES", value_name = "on|off")]
    pub proxies: Option<String>,
    /// Settings of the HTTP proxy, NAME=VALUE (`sluice http-proxy --help` lists them; repeat or comma separated)
    #[arg(long, env = "SLUICE_HTTP_PROXY", value_name = "NAME=VALUE", value_delimiter = ',')]
    pub http_proxy: Option<Vec<String>>,
    /// Where the web UI is served: IP:PORT or off [default: 127.0.0.1:4246]
    #[arg(long, env = "SLUICE_UI_LISTEN", value_name = "IP:PORT|off")]
    pub ui_listen: Option<String>,
    /// Names, besides addresses and localhost, under which browsers reach the web UI
    #[arg(long, env = "SLUICE_UI_HOST_NAME", value_name = "NAME", value_delimiter = ',')]
    pub ui_host_name: Option<Vec<String>>,
    /// File with the token that the web UI asks for (16 characters at least)
    #[arg(long, env = "SLUICE_UI_TOKEN_FILE", value_name = "FILE")]
    pub ui_token_file: Option<PathBuf>,
    /// Certificate chain of the web UI (PEM); needed where it is not on loopback
    #[arg(long, env = "SLUICE_UI_CERT", value_name = "FILE")]
    pub ui_cert: Option<PathBuf>,
    /// Private key of that certificate (PEM)
    #[arg(long, env = "SLUICE_UI_KEY", value_name = "FILE")]
    pub ui_key: Option<PathBuf>,
    /// Only browsers with a certificate that this CA signed reach the web UI (PEM)
    #[arg(long, env = "SLUICE_UI_CLIENT_CA", value_name = "FILE")]
    pub ui_client_ca: Option<PathBuf>,
    /// What a refused DNS query is answered with: refused or nxdomain [default: refused]
    #[arg(long, env = "SLUICE_DNS_REFUSAL", value_name = "refused|nxdomain")]
    pub dns_refusal: Option<String>,
    /// Milliseconds after which a query that the DNS server does not answer gets SERVFAIL [default: 4000]
    #[arg(long, env = "SLUICE_DNS_TIMEOUT", value_name = "MS")]
    pub dns_timeout: Option<u64>,
    /// Most DNS queries of one pod that wait for an answer [default: 512]
    #[arg(long, env = "SLUICE_DNS_QUERIES_PER_POD", value_name = "N")]
    pub dns_queries_per_pod: Option<usize>,
    /// Most DNS queries of all pods that wait for an answer [default: 16384]
    #[arg(long, env = "SLUICE_DNS_QUERIES", value_name = "N")]
    pub dns_queries: Option<usize>,
    /// Most DNS connections (TCP) of one pod [default: 64]
    #[arg(long, env = "SLUICE_DNS_CONNECTIONS_PER_POD", value_name = "N")]
    pub dns_connections_per_pod: Option<usize>,
    /// Most DNS connections (TCP) of all pods [default: 4096]
    #[arg(long, env = "SLUICE_DNS_CONNECTIONS", value_name = "N")]
    pub dns_connections: Option<usize>,
    /// Threads that serve DNS datagrams [default: the number of cores, 4 at most]
    #[arg(long, env = "SLUICE_DNS_WORKERS", value_name = "N")]
    pub dns_workers: Option<usize>,
    /// Most flow records of DNS queries a second; more are counted and dropped [default: 10000]
    #[arg(long, env = "SLUICE_DNS_RECORDS", value_name = "N")]
    pub dns_records: Option<u64>,
    /// Addresses of an answer are allowed at least this long [default: 0]
    #[arg(long, env = "SLUICE_DNS_MIN_TTL", value_name = "SECONDS")]
    pub dns_min_ttl: Option<u64>,
    /// Most addresses that one name may allow at a time [default: 1000]
    #[arg(long, env = "SLUICE_DNS_MAX_ADDRESSES", value_name = "N")]
    pub dns_max_addresses: Option<usize>,
    /// Most names whose addresses are remembered [default: 50000]
    #[arg(long, env = "SLUICE_DNS_MAX_NAMES", value_name = "N")]
    pub dns_max_names: Option<usize>,
    /// Flows kept in memory [default: 65536]
    #[arg(long, env = "SLUICE_FLOW_BUFFER", value_name = "COUNT")]
    pub flow_buffer: Option<usize>,
    /// What is observed: verdicts (new connections and drops), or drops alone [default: verdicts]
    #[arg(long, env = "SLUICE_FLOW_EVENTS", value_name = "verdicts|drops")]
    pub flow_events: Option<String>,
    /// Keep flows on disk (state-dir/flows.db): on or off [default: on]
    #[arg(long, env = "SLUICE_HISTORY", value_name = "on|off")]
    pub history: Option<String>,
    /// Most that history takes on disk [default: 512]
    #[arg(long, env = "SLUICE_HISTORY_SIZE_MIB", value_name = "MIB")]
    pub history_size_mib: Option<u64>,
    /// How long history is kept [default: 7d]
    #[arg(long, env = "SLUICE_HISTORY_AGE", value_name = "DURATION")]
    pub history_age: Option<String>,
    /// How long flows are kept one by one, before they are counted by edge and hour [default: 1h]
    #[arg(long, env = "SLUICE_HISTORY_DETAIL", value_name = "DURATION")]
    pub history_detail: Option<String>,
    /// Write flows as JSON lines into this file
    #[arg(long, env = "SLUICE_EXPORT_FILE", value_name = "FILE")]
    pub export_file: Option<PathBuf>,
    /// Size at which that file is rotated [default: 10]
    #[arg(long, env = "SLUICE_EXPORT_SIZE_MIB", value_name = "MIB")]
    pub export_size_mib: Option<u64>,
    /// Rotated files that are kept [default: 5]
    #[arg(long, env = "SLUICE_EXPORT_FILES", value_name = "COUNT")]
    pub export_files: Option<usize>,
    /// Export only these flows: filters of `sluice observe`, such as verdict=DROPPED (repeat)
    #[arg(long, env = "SLUICE_EXPORT_FILTER", value_name = "FILTER=VALUE", value_delimiter = ',')]
    pub export_filter: Option<Vec<String>>,
    /// Export only these fields, such as verdict,source.namespace [default: all]
    #[arg(long, env = "SLUICE_EXPORT_FIELDS", value_name = "FIELDS", value_delimiter = ',')]
    pub export_fields: Option<Vec<String>>,
    /// Send flows as OpenTelemetry logs (OTLP/gRPC) to this collector, such as http://127.0.0.1:4317
    #[arg(long, env = "SLUICE_EXPORT_OTLP", value_name = "URL")]
    pub export_otlp: Option<String>,
    /// Authority of an https collector (PEM)
    #[arg(long, env = "SLUICE_EXPORT_OTLP_CA_FILE", value_name = "FILE")]
    pub export_otlp_ca_file: Option<PathBuf>,
    /// Where the agent's metrics (cilium_*) are served: IP:PORT or off [default: 127.0.0.1:9962]
    #[arg(long, env = "SLUICE_METRICS_LISTEN", value_name = "IP:PORT|off")]
    pub metrics_listen: Option<String>,
    /// Where metrics of flows (hubble_*) are served: IP:PORT or off [default: 127.0.0.1:9965]
    #[arg(long, env = "SLUICE_HUBBLE_METRICS_LISTEN", value_name = "IP:PORT|off")]
    pub hubble_metrics_listen: Option<String>,
    /// Labels of metrics of flows, as Hubble's options: sourceContext=workload;labelsContext=source_namespace
    #[arg(long, env = "SLUICE_METRICS_CONTEXT", value_name = "OPTIONS")]
    pub metrics_context: Option<String>,
    /// Most series of one metric of flows; others are counted as "overflow" [default: 2000]
    #[arg(long, env = "SLUICE_METRICS_SERIES", value_name = "COUNT")]
    pub metrics_series: Option<usize>,
    /// Serve the flow API (Hubble's) on this address too, such as 0.0.0.0:4245 [default: the unix socket alone]
    #[arg(long, env = "SLUICE_HUBBLE_LISTEN_ADDRESS", value_name = "IP:PORT")]
    pub hubble_listen_address: Option<String>,
    /// Certificate of the flow API [default with a server: this node's own]
    #[arg(long, env = "SLUICE_HUBBLE_TLS_CERT_FILE", value_name = "FILE")]
    pub hubble_tls_cert_file: Option<PathBuf>,
    /// Key of that certificate
    #[arg(long, env = "SLUICE_HUBBLE_TLS_KEY_FILE", value_name = "FILE")]
    pub hubble_tls_key_file: Option<PathBuf>,
    /// Clients of the flow API need a certificate of this authority
    #[arg(long, env = "SLUICE_HUBBLE_TLS_CLIENT_CA_FILE", value_name = "FILE")]
    pub hubble_tls_client_ca_file: Option<PathBuf>,
    /// Clients of the flow API: verified (mutual TLS), or anyone who can connect [default: verified]
    #[arg(long, env = "SLUICE_HUBBLE_TLS_CLIENTS", value_name = "verified|anyone")]
    pub hubble_tls_clients: Option<String>,
    /// The flow API in plain text; on a loopback address only: on or off [default: off]
    #[arg(long, env = "SLUICE_HUBBLE_DISABLE_TLS", value_name = "on|off", num_args = 0..=1, default_missing_value = "on")]
    pub hubble_disable_tls: Option<String>,
    /// Log lines: text or json [default: text]
    #[arg(long, env = "SLUICE_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Log level or filter, such as info or sluice=debug [default: info]
    #[arg(long, env = "SLUICE_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}

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

/// The flow API on TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowApi {
    pub listen: SocketAddr,
    pub security: FlowApiSecurity,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlowApiSecurity {
    /// On loopback, and asked for.
    Plain,
    Files(TlsFiles),
    /// What the server gave this node; clients need a certificate of the same authority.
    NodeCertificate,
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

impl AgentSettings {
    /// Reads the file. Unknown keys are errors with line and column.
    pub fn read(path: &Path) -> Result<AgentSettings, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError(vec![format!("{}: {error}", path.display())]))?;
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Ok(AgentSettings::default());
        }
        serde_saphyr::from_str(&text)
            .map_err(|error| ConfigError(vec![format!("{}: {error}", path.display())]))
    }

    /// What is set here, else what is set in `lower`.
    pub fn over(self, lower: AgentSettings) -> AgentSettings {
        macro_rules! layered {
            ($($field:ident),* $(,)?) => { AgentSettings { $($field: self.$field.or(lower.$field)),* } };
        }
        layered!(
            node_name,
            cluster_name,
            state_dir,
            run_dir,
            bpffs,
            server,
            token_file,
            uplink,
            routing,
            masquerade,
            pod_cidr,
            node_address,
            ingress_address,
            policy_enforcement,
            allow_localhost,
            cidr_match_mode,
            deny_response,
            empty_rule_lists,
            host_firewall,
            proxies,
            http_proxy,
            ui_listen,
            ui_host_name,
            ui_token_file,
            ui_cert,
            ui_key,
            ui_client_ca,
            dns_refusal,
            dns_timeout,
            dns_queries_per_pod,
            dns_queries,
            dns_connections_per_pod,
            dns_connections,
            dns_workers,
            dns_records,
            dns_min_ttl,
            dns_max_addresses,
            dns_max_names,
            flow_buffer,
            flow_events,
            history,
            history_size_mib,
            history_age,
            history_detail,
            export_file,
            export_size_mib,
            export_files,
            export_filter,
            export_fields,
            export_otlp,
            export_otlp_ca_file,
            metrics_listen,
            hubble_metrics_listen,
            metrics_context,
            metrics_series,
            hubble_listen_address,
            hubble_tls_cert_file,
            hubble_tls_key_file,
            hubble_tls_client_ca_file,
            hubble_tls_clients,
            hubble_disable_tls,
            log_format,
            log,
        )
    }
}

/// Collects problems while values are looked up.
struct Problems(Vec<String>);

impl Problems {
    fn choice<T: Copy>(&mut self, key: &str, value: Option<&str>, choices: &[(&str, T)]) -> T {
        let Some(text) = value else { return choices[0].1 };
        match choices.iter().find(|(name, _)| *name == text) {
            Some((_, chosen)) => *chosen,
            None => {
                let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
                self.0.push(format!("{key}: {text:?}: expected one of {}", names.join(", ")));
                choices[0].1
            }
        }
    }

    fn list<T: FromStr>(&mut self, key: &str, values: Option<&[String]>, expected: &str) -> Vec<T> {
        let mut parsed = Vec::new();
        for text in values.unwrap_or_default() {
            match text.trim().parse() {
                Ok(value) => parsed.push(value),
                Err(_) => self.0.push(format!("{key}: {text:?}: expected {expected}")),
            }
        }
        parsed
    }
}

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
        let flow_api = flow_api(p, &settings);
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

/// No flow leaves the machine in plain text or to a stranger unless that is asked for in so many words.
fn flow_api(p: &mut Problems, settings: &AgentSettings) -> Option<FlowApi> {
    let off = &[("off", Switch::Off), ("on", Switch::On), ("true", Switch::On), ("false", Switch::Off)];
    let plain = p.choice("hubble-disable-tls", settings.hubble_disable_tls.as_deref(), off);
    let anyone = p.choice(
        "hubble-tls-clients",
        settings.hubble_tls_clients.as_deref(),
        &[("verified", Switch::Off), ("anyone", Switch::On)],
    );
    let text = settings.hubble_listen_address.as_deref()?;
    let Ok(listen) = text.parse::<SocketAddr>() else {
        p.0.push(format!("hubble-listen-address: {text:?}: expected IP:PORT, such as 0.0.0.0:4245"));
        return None;
    };
    let files = (&settings.hubble_tls_cert_file, &settings.hubble_tls_key_file);
    let security = match (plain, files, &settings.hubble_tls_client_ca_file) {
        (Switch::On, (None, None), None) if listen.ip().is_loopback() => FlowApiSecurity::Plain,
        (Switch::On, (None, None), None) => {
            p.0.push(format!("hubble-disable-tls: {listen} is not a loopback address"));
            return None;
        }
        (Switch::On, ..) => {
            p.0.push("hubble-disable-tls: not together with hubble-tls-*-file".into());
            return None;
        }
        (Switch::Off, (Some(certificate), Some(key)), authority) => {
            let clients = match (authority, anyone) {
                (Some(authority), Switch::Off) => Clients::SignedBy(authority.clone()),
                (None, Switch::On) => Clients::Anyone,
                (Some(_), Switch::On) => {
                    p.0.push("hubble-tls-clients: anyone, and hubble-tls-client-ca-file: one of them".into());
                    return None;
                }
                (None, Switch::Off) => {
                    p.0.push(
                        "hubble-tls-client-ca-file is needed (or hubble-tls-clients: anyone, which shows flows to \
                         everybody who can connect)"
                            .into(),
                    );
                    return None;
                }
            };
            FlowApiSecurity::Files(TlsFiles { certificate: certificate.clone(), key: key.clone(), clients })
        }
        (Switch::Off, (None, None), None) if settings.server.is_some() => FlowApiSecurity::NodeCertificate,
        (Switch::Off, ..) => {
            p.0.push(
                "hubble-listen-address needs hubble-tls-cert-file and hubble-tls-key-file (with a server, the \
                 node's own certificate is used), or hubble-disable-tls on a loopback address"
                    .into(),
            );
            return None;
        }
    };
    Some(FlowApi { listen, security })
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

    #[test]
    fn flows_are_not_shown_to_strangers_or_in_plain_text_by_accident() {
        let settings = |edit: fn(&mut AgentSettings)| {
            let mut settings = AgentSettings {
                hubble_listen_address: Some("192.0.2.1:4245".into()),
                ..AgentSettings::default()
            };
            edit(&mut settings);
            AgentConfig::resolve(settings, "node1").map(|config| config.flow_api.unwrap().security)
        };
        let files = |s: &mut AgentSettings| {
            s.hubble_tls_cert_file = Some("/c".into());
            s.hubble_tls_key_file = Some("/k".into());
        };
        assert!(settings(|_| {}).is_err());
        assert!(settings(|s| s.hubble_disable_tls = Some("on".into())).is_err());
        assert!(settings(files).is_err());
        let plain = settings(|s| {
            s.hubble_listen_address = Some("127.0.0.1:4245".into());
            s.hubble_disable_tls = Some("on".into());
        });
        assert_eq!(plain.unwrap(), FlowApiSecurity::Plain);
        let node = settings(|s| s.server = Some("https://s:7443".into()));
        assert_eq!(node.unwrap(), FlowApiSecurity::NodeCertificate);
        let mutual = settings(|s| {
            s.hubble_tls_cert_file = Some("/c".into());
            s.hubble_tls_key_file = Some("/k".into());
            s.hubble_tls_client_ca_file = Some("/ca".into());
        });
        let Ok(FlowApiSecurity::Files(files)) = mutual else { panic!("{mutual:?}") };
        assert_eq!(files.clients, Clients::SignedBy("/ca".into()));
    }

    #[test]
    fn flags_stand_above_the_file() {
        let flags = AgentSettings { node_name: Some("flag".into()), ..AgentSettings::default() };
        let file: AgentSettings = serde_saphyr::from_str("node-name: file\ncluster-name: lab\n").unwrap();
        let config = AgentConfig::resolve(flags.over(file), "host").unwrap();
        assert_eq!((config.node_name.as_str(), config.cluster_name.as_str()), ("flag", "lab"));
    }

    #[test]
    fn an_unknown_key_of_the_file_is_an_error_with_its_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yaml");
        std::fs::write(&path, "node-name: a\nnode-nam: b\n").unwrap();
        let error = AgentSettings::read(&path).unwrap_err().to_string();
        assert!(error.contains("node-nam") && error.contains("line 2"), "{error}");
    }
}
