//! Flows as OpenTelemetry logs, sent over OTLP/gRPC (opentelemetry-proto 1.x, `logs/v1`).
//!
//! Only the members that we fill are declared. The body of a record is the line that `observe` prints as JSON; the
//! attributes follow OpenTelemetry's semantic conventions where there is one, else `sluice.*`.

use std::path::PathBuf;
use std::time::Duration;

use prost::Message;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use super::export::{Mask, line};
use super::hubble::client::causes;
use super::hubble::convert::Naming;
use crate::flow::{Flow, L7, Verdict};
use crate::model::Protocol;

#[derive(Clone, PartialEq, Message)]
pub struct ExportRequest {
    #[prost(message, repeated, tag = "1")]
    pub resource_logs: Vec<ResourceLogs>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ExportResponse {
    #[prost(message, optional, tag = "1")]
    pub partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PartialSuccess {
    #[prost(int64, tag = "1")]
    pub rejected_log_records: i64,
    #[prost(string, tag = "2")]
    pub error_message: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ResourceLogs {
    #[prost(message, optional, tag = "1")]
    pub resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    pub scope_logs: Vec<ScopeLogs>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Resource {
    #[prost(message, repeated, tag = "1")]
    pub attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ScopeLogs {
    #[prost(message, optional, tag = "1")]
    pub scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    pub log_records: Vec<LogRecord>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Scope {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub version: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct LogRecord {
    #[prost(fixed64, tag = "1")]
    pub time_unix_nano: u64,
    #[prost(int32, tag = "2")]
    pub severity_number: i32,
    #[prost(string, tag = "3")]
    pub severity_text: String,
    #[prost(message, optional, tag = "5")]
    pub body: Option<AnyValue>,
    #[prost(message, repeated, tag = "6")]
    pub attributes: Vec<KeyValue>,
    #[prost(fixed64, tag = "11")]
    pub observed_time_unix_nano: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct KeyValue {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(message, optional, tag = "2")]
    pub value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub struct AnyValue {
    #[prost(oneof = "Any", tags = "1, 3, 5")]
    pub value: Option<Any>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Any {
    #[prost(string, tag = "1")]
    String(String),
    #[prost(int64, tag = "3")]
    Int(i64),
    #[prost(message, tag = "5")]
    Array(ArrayValue),
}

#[derive(Clone, PartialEq, Message)]
pub struct ArrayValue {
    #[prost(message, repeated, tag = "1")]
    pub values: Vec<AnyValue>,
}

/// `SEVERITY_NUMBER_INFO` and `SEVERITY_NUMBER_WARN`.
const INFO: i32 = 9;
const WARN: i32 = 13;

fn text(key: &str, value: impl Into<String>) -> KeyValue {
    let value = Some(AnyValue { value: Some(Any::String(value.into())) });
    KeyValue { key: key.to_owned(), value }
}

fn number(key: &str, value: impl Into<i64>) -> KeyValue {
    let value = Some(AnyValue { value: Some(Any::Int(value.into())) });
    KeyValue { key: key.to_owned(), value }
}

/// The keys of a record are unique, so several values are one attribute.
fn texts(key: &str, values: impl Iterator<Item = String>) -> Option<KeyValue> {
    let values: Vec<_> = values.map(|value| AnyValue { value: Some(Any::String(value)) }).collect();
    let value = Some(AnyValue { value: Some(Any::Array(ArrayValue { values: values.clone() })) });
    (!values.is_empty()).then(|| KeyValue { key: key.to_owned(), value })
}

/// A flow as a record.
pub fn record(flow: &Flow, naming: &Naming, mask: &Mask) -> LogRecord {
    let is_bad = !matches!(flow.verdict, Verdict::Forwarded | Verdict::Redirected);
    let mut attributes = vec![
        text("sluice.verdict", flow.verdict.to_string()),
        text("source.address", flow.source.address.to_string()),
        text("destination.address", flow.destination.address.to_string()),
        text(
            "network.transport",
            match flow.protocol {
                Protocol::Tcp => "tcp".to_owned(),
                Protocol::Udp => "udp".to_owned(),
                other => other.to_string().to_lowercase(),
            },
        ),
    ];
    attributes.extend(flow.source_port.map(|port| number("source.port", port)));
    attributes.extend(flow.destination_port.map(|port| number("destination.port", port)));
    for (party, names) in [
        (&flow.source, ["sluice.source.namespace", "sluice.source.pod", "sluice.source.workload"]),
        (
            &flow.destination,
            ["sluice.destination.namespace", "sluice.destination.pod", "sluice.destination.workload"],
        ),
    ] {
        let workload = party.workload.as_ref().map(|workload| &workload.name);
        let values = [party.namespace.as_ref(), party.pod.as_ref(), workload];
        attributes
            .extend(names.into_iter().zip(values).filter_map(|(name, value)| Some(text(name, &**value?))));
    }
    if let Verdict::Dropped(reason) = flow.verdict {
        attributes.push(text("sluice.drop_reason", reason.name()));
    }
    attributes.extend(texts("sluice.policies", flow.policies().map(|object| object.path())));
    match flow.l7.as_deref() {
        Some(L7::Http { method, path, status, version, .. }) => {
            attributes.push(text("http.request.method", &**method));
            attributes.push(text("url.path", &**path));
            attributes.push(number("http.response.status_code", *status));
            // `1.0`, `1.1` or `2`.
            attributes
                .push(text("network.protocol.version", version.to_string().trim_start_matches("HTTP/")));
        }
        Some(L7::Dns { query, .. }) => attributes.push(text("dns.question.name", &**query)),
        Some(L7::Tls { server_name }) => {
            attributes.extend(server_name.as_ref().map(|name| text("tls.client.server_name", &**name)));
        }
        None => {}
    }
    LogRecord {
        time_unix_nano: flow.time_ns,
        observed_time_unix_nano: flow.time_ns,
        severity_number: if is_bad { WARN } else { INFO },
        severity_text: if is_bad { "WARN" } else { "INFO" }.to_owned(),
        body: Some(AnyValue { value: Some(Any::String(line(flow, naming, mask))) }),
        attributes,
    }
}

/// A batch of records of one node.
pub fn request(node: &str, records: Vec<LogRecord>) -> ExportRequest {
    let resource = Resource { attributes: vec![text("service.name", "sluice"), text("k8s.node.name", node)] };
    let scope =
        Some(Scope { name: "sluice.flows".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() });
    let scope_logs = vec![ScopeLogs { scope, log_records: records }];
    ExportRequest { resource_logs: vec![ResourceLogs { resource: Some(resource), scope_logs }] }
}

/// Where a collector is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollectorAddress {
    /// `http://HOST:4317` or `https://HOST:4317`.
    pub url: String,
    /// Who signed an https collector's certificate (PEM); the system's authorities are not asked.
    pub authority: Option<PathBuf>,
}

/// A collector cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    #[error("{path}: {source}", path = .path.display())]
    Authority { path: PathBuf, source: std::io::Error },
    #[error("{url}: {}", causes(.source))]
    Transport { url: String, source: tonic::transport::Error },
}

/// A collector.
#[derive(Debug)]
pub struct Collector {
    client: tonic::client::Grpc<Channel>,
}

/// Longest wait for a collector's answer.
const TIMEOUT: Duration = Duration::from_secs(10);

impl Collector {
    /// Connects when there is something to send.
    ///
    /// # Errors
    /// The text is no URL, or the authority's certificate cannot be read.
    pub fn new(address: &CollectorAddress) -> Result<Collector, CollectorError> {
        let failed = |source| CollectorError::Transport { url: address.url.clone(), source };
        let mut endpoint = Endpoint::from_shared(address.url.clone()).map_err(failed)?;
        if let Some(path) = &address.authority {
            let pem = std::fs::read(path)
                .map_err(|source| CollectorError::Authority { path: path.clone(), source })?;
            let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
            endpoint = endpoint.tls_config(tls).map_err(failed)?;
        }
        let endpoint = endpoint.timeout(TIMEOUT).connect_timeout(TIMEOUT);
        Ok(Collector { client: tonic::client::Grpc::new(endpoint.connect_lazy()) })
    }

    /// Sends a batch; returns how many records the collector refused.
    ///
    /// # Errors
    /// The collector was not reached or failed; the batch may be sent again.
    pub async fn send(&mut self, request: ExportRequest) -> Result<u64, tonic::Status> {
        self.client.ready().await.map_err(|error| tonic::Status::unavailable(causes(&error)))?;
        let path = PathAndQuery::from_static("/opentelemetry.proto.collector.logs.v1.LogsService/Export");
        let codec = tonic_prost::ProstCodec::<ExportRequest, ExportResponse>::default();
        let answer = self.client.unary(tonic::Request::new(request), path, codec).await?.into_inner();
        let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_log_records);
        Ok(u64::try_from(rejected).unwrap_or(0))
    }
}

#[cfg(test)]
#[path = "otlp_tests.rs"]
mod tests;
