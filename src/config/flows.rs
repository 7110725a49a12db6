//! What becomes of flows: history, export and metrics.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::AgentSettings;
use crate::api::export::Mask;
use crate::api::flow_query;
use crate::api::metrics::context::Context;
use crate::api::otlp::CollectorAddress;
use crate::flow::filter::Filter;
use crate::store::history::Limits;

/// Export of flows.
#[derive(Clone, Debug, Default)]
pub struct ExportConfig {
    pub file: Option<PathBuf>,
    pub max_bytes: u64,
    pub max_files: usize,
    pub filter: Filter,
    pub fields: Mask,
    /// An OpenTelemetry collector.
    pub collector: Option<CollectorAddress>,
}

/// Metrics on TCP.
#[derive(Clone, Debug)]
pub struct MetricsConfig {
    /// The agent's own numbers.
    pub agent: Option<SocketAddr>,
    /// Flows.
    pub flows: Option<SocketAddr>,
    pub context: Context,
    /// Most series of a metric of flows.
    pub series: usize,
}

fn duration(problems: &mut Vec<String>, key: &str, text: Option<&str>, default: Duration) -> Duration {
    let Some(text) = text else { return default };
    let days = text.strip_suffix('d').and_then(|days| days.trim().parse::<u64>().ok());
    let parsed = match days {
        Some(days) => days.checked_mul(86_400).map(Duration::from_secs),
        None => text.parse::<jiff::SignedDuration>().ok().and_then(|span| Duration::try_from(span).ok()),
    };
    parsed.filter(|span| !span.is_zero()).unwrap_or_else(|| {
        problems.push(format!("{key}: {text:?}: expected a duration such as 1h or 7d"));
        default
    })
}

/// History, unless it is off.
pub(super) fn history(settings: &AgentSettings, problems: &mut Vec<String>) -> Option<Limits> {
    let default = Limits::default();
    let size = settings.history_size_mib.unwrap_or(default.bytes >> 20);
    if !(1..=1_048_576).contains(&size) {
        problems.push(format!("history-size-mib: {size}: expected 1 to 1048576"));
    }
    let limits = Limits {
        bytes: size << 20,
        age: duration(problems, "history-age", settings.history_age.as_deref(), default.age),
        detail: duration(problems, "history-detail", settings.history_detail.as_deref(), default.detail),
    };
    match settings.history.as_deref() {
        None | Some("on" | "true") => Some(limits),
        Some("off" | "false") => None,
        Some(other) => {
            problems.push(format!("history: {other:?}: expected one of on, off"));
            None
        }
    }
}

pub(super) fn export(settings: &AgentSettings, problems: &mut Vec<String>) -> ExportConfig {
    let mut pairs = Vec::new();
    for text in settings.export_filter.iter().flatten() {
        match text.split_once('=') {
            Some(pair) => pairs.push(pair),
            None => problems
                .push(format!("export-filter: {text:?}: expected FILTER=VALUE, such as verdict=DROPPED")),
        }
    }
    let filter = flow_query::filter(pairs).unwrap_or_else(|error| {
        problems.push(format!("export-filter: {error}"));
        Filter::default()
    });
    let fields =
        settings.export_fields.as_deref().unwrap_or_default().join(",").parse().unwrap_or_else(|error| {
            problems.push(format!("export-fields: {error}"));
            Mask::default()
        });
    let authority = settings.export_otlp_ca_file.clone();
    let collector = settings.export_otlp.clone().map(|url| CollectorAddress { url, authority });
    match &collector {
        Some(CollectorAddress { url, authority: Some(_) }) if !url.starts_with("https://") => {
            problems.push(format!(
                "export-otlp: {url:?}: with export-otlp-ca-file https://HOST:PORT is expected"
            ));
        }
        Some(CollectorAddress { url, authority: None }) if url.starts_with("https://") => {
            problems.push(format!("export-otlp: {url:?}: https needs export-otlp-ca-file"));
        }
        Some(CollectorAddress { url, .. }) if !url.starts_with("http://") && !url.starts_with("https://") => {
            problems.push(format!("export-otlp: {url:?}: expected http://HOST:PORT or https://HOST:PORT"));
        }
        _ => {}
    }
    if let Some(path) = &settings.export_file
        && !path.is_absolute()
    {
        problems.push(format!("export-file: {}: expected an absolute path", path.display()));
    }
    let size = settings.export_size_mib.unwrap_or(10);
    if !(1..=65_536).contains(&size) {
        problems.push(format!("export-size-mib: {size}: expected 1 to 65536"));
    }
    ExportConfig {
        file: settings.export_file.clone(),
        max_bytes: size << 20,
        max_files: settings.export_files.unwrap_or(5).min(1000),
        filter,
        fields,
        collector,
    }
}

fn listen(problems: &mut Vec<String>, key: &str, text: Option<&str>, default: &str) -> Option<SocketAddr> {
    match text.unwrap_or(default) {
        "off" => None,
        text => {
            text.parse().map_err(|_| problems.push(format!("{key}: {text:?}: expected IP:PORT or off"))).ok()
        }
    }
}

pub(super) fn metrics(settings: &AgentSettings, problems: &mut Vec<String>) -> MetricsConfig {
    let agent = listen(problems, "metrics-listen", settings.metrics_listen.as_deref(), "127.0.0.1:9962");
    let flows = listen(
        problems,
        "hubble-metrics-listen",
        settings.hubble_metrics_listen.as_deref(),
        "127.0.0.1:9965",
    );
    let context = settings.metrics_context.as_deref().unwrap_or_default().parse().unwrap_or_else(|error| {
        problems.push(format!("metrics-context: {error}"));
        Context::default()
    });
    let series = settings.metrics_series.unwrap_or(2000);
    if !(10..=1_000_000).contains(&series) {
        problems.push(format!("metrics-series: {series}: expected 10 to 1000000"));
    }
    MetricsConfig { agent, flows, context, series }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AgentConfig;

    #[test]
    fn history_and_metrics_are_on_by_default_and_on_loopback() {
        let config = AgentConfig::resolve(AgentSettings::default(), "node1").unwrap();
        assert_eq!(config.history, Some(Limits::default()));
        assert!(config.metrics.agent.unwrap().ip().is_loopback());
        assert!(config.metrics.flows.unwrap().ip().is_loopback());
        assert!(config.export.file.is_none() && config.export.collector.is_none());
    }

    #[test]
    fn durations_may_be_days() {
        let settings = AgentSettings {
            history_age: Some("3d".into()),
            history_detail: Some("30m".into()),
            history_size_mib: Some(64),
            ..AgentSettings::default()
        };
        let limits = AgentConfig::resolve(settings, "node1").unwrap().history.unwrap();
        assert_eq!((limits.age.as_secs(), limits.detail.as_secs(), limits.bytes), (259_200, 1800, 64 << 20));
    }

    #[test]
    fn a_collector_behind_tls_has_an_authority_and_no_other_has() {
        let problems = |url: &str, authority: Option<&str>| {
            let settings = AgentSettings {
                export_otlp: Some(url.into()),
                export_otlp_ca_file: authority.map(Into::into),
                ..AgentSettings::default()
            };
            AgentConfig::resolve(settings, "node1").map_or_else(|error| error.0.len(), |_| 0)
        };
        assert_eq!(problems("http://127.0.0.1:4317", None), 0);
        assert_eq!(problems("https://collector:4317", Some("/ca")), 0);
        assert_eq!(problems("https://collector:4317", None), 1);
        assert_eq!(problems("http://127.0.0.1:4317", Some("/ca")), 1);
    }

    #[test]
    fn every_key_is_checked() {
        let settings = AgentSettings {
            history: Some("maybe".into()),
            history_age: Some("soon".into()),
            history_size_mib: Some(0),
            export_filter: Some(vec!["verdict=MAYBE".into()]),
            export_fields: Some(vec!["a b".into()]),
            export_otlp: Some("ftp://x".into()),
            metrics_listen: Some("9962".into()),
            metrics_context: Some("sourceContext=x".into()),
            ..AgentSettings::default()
        };
        let error = AgentConfig::resolve(settings, "node1").unwrap_err();
        assert_eq!(error.0.len(), 8, "{error}");
    }
}
