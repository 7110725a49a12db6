//! What was written about an agent: the same keys as flags, in the environment and in the file, none of it checked.

use std::path::{Path, PathBuf};

use super::ConfigError;

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
    /// Addresses of an answer are allowed at most this long [default: 86400]
    #[arg(long, env = "SLUICE_DNS_MAX_TTL", value_name = "SECONDS")]
    pub dns_max_ttl: Option<u64>,
    /// Most addresses that one name may allow at a time [default: 1000]
    #[arg(long, env = "SLUICE_DNS_MAX_ADDRESSES", value_name = "N")]
    pub dns_max_addresses: Option<usize>,
    /// Most names whose addresses are remembered [default: 50000]
    #[arg(long, env = "SLUICE_DNS_MAX_NAMES", value_name = "N")]
    pub dns_max_names: Option<usize>,
    /// Most addresses of all names together [default: 200000]
    #[arg(long, env = "SLUICE_DNS_MAX_ALL_ADDRESSES", value_name = "N")]
    pub dns_max_all_addresses: Option<usize>,
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
            dns_max_ttl,
            dns_max_addresses,
            dns_max_names,
            dns_max_all_addresses,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AgentConfig;

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
