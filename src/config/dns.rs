//! Options of the DNS proxy and of learning names.

use std::time::Duration;

use super::{AgentSettings, Problems};
use crate::fqdn::TtlBounds;

/// Seconds: a week, which RFC 8767 (section 4) recommends as the most that a TTL should count for.
const LONGEST_TTL: u64 = 604_800;

/// What a refused query is answered with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsRefusal {
    #[default]
    Refused,
    NxDomain,
}

/// See the module. Limits are numbers of things at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsConfig {
    pub refusal: DnsRefusal,
    /// From a query to SERVFAIL.
    pub timeout: Duration,
    pub queries_per_pod: usize,
    pub queries: usize,
    pub connections_per_pod: usize,
    pub connections: usize,
    /// Threads that serve datagrams.
    pub workers: usize,
    /// Records a second.
    pub records: u32,
    /// How long answers are fresh.
    pub ttl: TtlBounds,
    /// Addresses of one name.
    pub max_addresses: usize,
    pub max_names: usize,
    /// Addresses of all names.
    pub max_all_addresses: usize,
}

impl Default for DnsConfig {
    fn default() -> DnsConfig {
        DnsConfig {
            refusal: DnsRefusal::Refused,
            timeout: Duration::from_millis(4000),
            queries_per_pod: 512,
            queries: 16_384,
            connections_per_pod: 64,
            connections: 4096,
            workers: default_workers(),
            records: 10_000,
            ttl: TtlBounds::default(),
            max_addresses: 1000,
            max_names: 50_000,
            max_all_addresses: 200_000,
        }
    }
}

/// More do not help before the machine is busy with DNS alone.
pub fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, |all| all.get().min(4))
}

impl DnsConfig {
    pub(super) fn resolve(settings: &AgentSettings, problems: &mut Problems) -> DnsConfig {
        let default = DnsConfig::default();
        let refusal = problems.choice(
            "dns-refusal",
            settings.dns_refusal.as_deref(),
            &[("refused", DnsRefusal::Refused), ("nxdomain", DnsRefusal::NxDomain)],
        );
        let mut within = |key: &str, value: Option<u64>, default: u64, most: u64, least: u64| {
            let value = value.unwrap_or(default);
            if !(least..=most).contains(&value) {
                problems.0.push(format!("{key}: {value}: expected {least} to {most}"));
            }
            value
        };
        let timeout = within("dns-timeout", settings.dns_timeout, 4000, 60_000, 1);
        let min_ttl = within("dns-min-ttl", settings.dns_min_ttl, 0, 86_400, 0);
        let max_ttl = within("dns-max-ttl", settings.dns_max_ttl, 86_400, LONGEST_TTL, min_ttl.max(1));
        let records = within("dns-records", settings.dns_records, default.records.into(), 1_000_000, 0);
        let mut count = |key: &str, value: Option<usize>, default: usize, most: u64| {
            within(key, value.map(|value| value as u64), default as u64, most, 1) as usize
        };
        DnsConfig {
            refusal,
            timeout: Duration::from_millis(timeout),
            queries_per_pod: count(
                "dns-queries-per-pod",
                settings.dns_queries_per_pod,
                default.queries_per_pod,
                1_000_000,
            ),
            queries: count("dns-queries", settings.dns_queries, default.queries, 1_000_000),
            connections_per_pod: count(
                "dns-connections-per-pod",
                settings.dns_connections_per_pod,
                default.connections_per_pod,
                100_000,
            ),
            connections: count("dns-connections", settings.dns_connections, default.connections, 100_000),
            workers: count("dns-workers", settings.dns_workers, default.workers, 64),
            records: records.try_into().unwrap_or(u32::MAX),
            ttl: TtlBounds::new(Duration::from_secs(min_ttl), Duration::from_secs(max_ttl)),
            max_addresses: count(
                "dns-max-addresses",
                settings.dns_max_addresses,
                default.max_addresses,
                100_000,
            ),
            max_names: count("dns-max-names", settings.dns_max_names, default.max_names, 10_000_000),
            max_all_addresses: count(
                "dns-max-all-addresses",
                settings.dns_max_all_addresses,
                default.max_all_addresses,
                10_000_000,
            ),
        }
    }

    /// Arguments of `sluice dns-proxy`.
    pub fn arguments(&self) -> Vec<String> {
        let refusal = match self.refusal {
            DnsRefusal::Refused => "refused",
            DnsRefusal::NxDomain => "nxdomain",
        };
        [
            ("refusal", refusal.to_owned()),
            ("upstream-timeout", self.timeout.as_millis().to_string()),
            ("queries-per-pod", self.queries_per_pod.to_string()),
            ("queries", self.queries.to_string()),
            ("connections-per-pod", self.connections_per_pod.to_string()),
            ("connections", self.connections.to_string()),
            ("workers", self.workers.to_string()),
            ("records-per-second", self.records.to_string()),
            ("min-ttl", self.ttl.floor().as_secs().to_string()),
            ("max-ttl", self.ttl.ceiling().as_secs().to_string()),
        ]
        .into_iter()
        .map(|(name, value)| format!("--{name}={value}"))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AgentConfig, ConfigError};

    #[test]
    fn limits_are_checked_together_and_handed_on() {
        let settings = AgentSettings {
            dns_refusal: Some("shrug".into()),
            dns_timeout: Some(0),
            dns_max_names: Some(0),
            dns_min_ttl: Some(600),
            dns_max_ttl: Some(60),
            ..AgentSettings::default()
        };
        let ConfigError(problems) = AgentConfig::resolve(settings, "n").unwrap_err();
        assert_eq!(problems.len(), 4, "{problems:?}");
        let settings = AgentSettings {
            dns_refusal: Some("nxdomain".into()),
            dns_timeout: Some(250),
            dns_max_ttl: Some(3600),
            ..AgentSettings::default()
        };
        let arguments = AgentConfig::resolve(settings, "n").unwrap().dns.arguments();
        assert!(arguments.contains(&"--refusal=nxdomain".to_owned()), "{arguments:?}");
        assert!(arguments.contains(&"--upstream-timeout=250".to_owned()));
        assert!(arguments.contains(&"--max-ttl=3600".to_owned()), "the proxy counts as the agent does");
    }
}
