//! Flows as columns for programs: CSV and Parquet have the same ones.

use super::parquet::{Column, Writer};
use super::text;
use crate::api::hubble::convert::nanoseconds;
use crate::api::hubble::pb::flow as pb;
use crate::api::hubble::pb::flow::layer7::Record;

/// A cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    Text(String),
    Number(i64),
}

impl From<&str> for Cell {
    fn from(text: &str) -> Cell {
        Cell::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Cell {
        Cell::Text(text)
    }
}

impl From<u32> for Cell {
    fn from(number: u32) -> Cell {
        Cell::Number(i64::from(number))
    }
}

impl From<u64> for Cell {
    fn from(number: u64) -> Cell {
        Cell::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

/// A column's name, and how a flow fills it.
pub type NamedColumn = (&'static str, fn(&pb::Flow) -> Cell);

/// Columns are only ever added.
pub const COLUMNS: &[NamedColumn] = &[
    ("time", |f| f.time.as_ref().map(rfc3339).unwrap_or_default().into()),
    ("time_ns", |f| f.time.as_ref().and_then(nanoseconds).unwrap_or(0).into()),
    ("node", |f| f.node_name.as_str().into()),
    ("type", |f| Cell::Number(f.event_type.map_or(0, |event| i64::from(event.r#type)))),
    ("verdict", |f| f.verdict().as_str_name().into()),
    ("drop_reason", |f| text::drop_reason(f).unwrap_or_default().into()),
    ("direction", |f| f.traffic_direction().as_str_name().into()),
    ("is_reply", |f| f.is_reply.map_or("", |reply| if reply { "true" } else { "false" }).into()),
    ("source_ip", |f| f.ip.as_ref().map(|ip| ip.source.clone()).unwrap_or_default().into()),
    ("source_port", |f| text::ports(f).map_or(0, |(port, _)| port).into()),
    ("source_identity", |f| f.source.as_ref().map_or(0, |end| end.identity).into()),
    ("source_namespace", |f| f.source.as_ref().map(|end| end.namespace.clone()).unwrap_or_default().into()),
    ("source_pod", |f| f.source.as_ref().map(|end| end.pod_name.clone()).unwrap_or_default().into()),
    ("source_workload", |f| workload(f.source.as_ref()).into()),
    ("destination_ip", |f| f.ip.as_ref().map(|ip| ip.destination.clone()).unwrap_or_default().into()),
    ("destination_port", |f| text::ports(f).map_or(0, |(_, port)| port).into()),
    ("destination_identity", |f| f.destination.as_ref().map_or(0, |end| end.identity).into()),
    ("destination_namespace", |f| {
        f.destination.as_ref().map(|end| end.namespace.clone()).unwrap_or_default().into()
    }),
    ("destination_pod", |f| {
        f.destination.as_ref().map(|end| end.pod_name.clone()).unwrap_or_default().into()
    }),
    ("destination_workload", |f| workload(f.destination.as_ref()).into()),
    ("destination_name", |f| f.destination_names.first().cloned().unwrap_or_default().into()),
    ("destination_service", |f| {
        let service = f.destination_service.as_ref();
        service.map(|service| format!("{}/{}", service.namespace, service.name)).unwrap_or_default().into()
    }),
    ("protocol", |f| text::protocol(f).into()),
    ("policies", |f| text::policies(f).map(text::policy_path).collect::<Vec<_>>().join(";").into()),
    ("http_method", |f| http(f).map(|http| http.method.clone()).unwrap_or_default().into()),
    ("http_url", |f| http(f).map(|http| http.url.clone()).unwrap_or_default().into()),
    ("http_status", |f| http(f).map_or(0, |http| http.code).into()),
    ("dns_query", |f| match f.l7.as_ref().and_then(|l7| l7.record.as_ref()) {
        Some(Record::Dns(dns)) => dns.query.as_str().into(),
        _ => "".into(),
    }),
    ("latency_ns", |f| f.l7.as_ref().map_or(0, |l7| l7.latency_ns).into()),
    ("length", |f| f.sluice.as_ref().map_or(0, |detail| detail.length).into()),
    ("uuid", |f| f.uuid.as_str().into()),
];

fn rfc3339(time: &prost_types::Timestamp) -> String {
    nanoseconds(time).map(crate::api::flow_json::rfc3339).unwrap_or_default()
}

fn workload(end: Option<&pb::Endpoint>) -> String {
    end.and_then(|end| end.workloads.first())
        .map(|workload| format!("{}/{}", workload.kind, workload.name))
        .unwrap_or_default()
}

fn http(flow: &pb::Flow) -> Option<&pb::Http> {
    match flow.l7.as_ref()?.record.as_ref()? {
        Record::Http(http) => Some(http),
        _ => None,
    }
}

/// The first line.
pub fn csv_header() -> String {
    COLUMNS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(",")
}

/// RFC 4180; text that a spreadsheet would take for a formula is quoted as text.
pub fn csv_row(flow: &pb::Flow) -> String {
    let cells = COLUMNS.iter().map(|(_, cell)| match cell(flow) {
        Cell::Number(number) => number.to_string(),
        Cell::Text(text) => quoted(&text),
    });
    cells.collect::<Vec<_>>().join(",")
}

fn quoted(text: &str) -> String {
    let text =
        if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

/// Flows on their way into a Parquet file.
#[derive(Debug)]
pub struct Table(Writer);

impl Default for Table {
    fn default() -> Table {
        let empty = pb::Flow::default();
        Table(Writer::new(COLUMNS.iter().map(|(name, cell)| {
            let column = match cell(&empty) {
                Cell::Text(_) => Column::Text(Vec::new()),
                Cell::Number(_) => Column::Number(Vec::new()),
            };
            ((*name).to_owned(), column)
        })))
    }
}

impl Table {
    /// Bytes of the file that are complete, once a row group is full.
    pub fn push(&mut self, flow: &pb::Flow) -> Option<Vec<u8>> {
        self.0.push(COLUMNS.iter().map(|(_, cell)| cell(flow)))
    }

    /// The rest of the file.
    pub fn finish(self) -> Vec<u8> {
        self.0.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::hubble::convert::{self, Naming};
    use crate::flow::tests::flow as example;

    #[test]
    fn a_row_has_as_many_cells_as_the_header() {
        let flow = convert::flow(&example(80), &Naming { cluster: "default".into() });
        let row = csv_row(&flow);
        assert_eq!(row.split(',').count(), csv_header().split(',').count(), "{row}");
        assert!(row.contains(",shop,frontend,Deployment/frontend,10.244.0.6,80,300,shop,backend,"), "{row}");
    }

    #[test]
    fn text_is_never_a_formula_or_a_second_cell() {
        assert_eq!(quoted("=1+1"), "'=1+1");
        assert_eq!(quoted("a,\"b\""), "\"a,\"\"b\"\"\"");
    }
}
