//! Filters of the flow API, as JSON (`--allowlist`) and as protobuf: whatever is asked, the answer is a filter of
//! bounded cost or a refusal with a reason.

use prost::Message as _;
use sluice::api::hubble::convert::Naming;
use sluice::api::hubble::filter::selection;
use sluice::api::hubble::json;
use sluice::api::hubble::pb::flow::FlowFilter;

use crate::Target;

const TEXTS: [&str; 6] = [
    r#"{"source_pod":["shop/frontend"],"verdict":["DROPPED"],"http_status_code":["5+"]}"#,
    r#"{"destination_label":["k8s:app in (web,db),!canary"],"protocol":["http"],"http_path":["^/api/v\\d+"]}"#,
    r#"{"source_ip":["10.0.0.0/8","fd00::1"],"destination_port":["53"],"dns_query":["(a|b)*\\.example\\.com"]}"#,
    r#"{"event_type":[{"type":4,"match_sub_type":true,"sub_type":5}],"tcp_flags":[{"SYN":true,"ACK":true}]}"#,
    r#"{"node_name":["default/node*"],"source_fqdn":["*.example.com"],"destination_workload":[{"kind":"Pod"}]}"#,
    r#"{"sluice":{"policy":["shop/x"],"drop_reason":["SNI_DENIED"],"tls_server_name":["*"]},"reply":[true]}"#,
];

fn check(filter: FlowFilter) {
    let naming = Naming { cluster: "default".into() };
    if let Err(status) = selection(&[filter], &[], &naming) {
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(!status.message().is_empty());
    }
}

/// Filters as text.
pub struct FilterTexts;

impl Target for FilterTexts {
    fn name(&self) -> &'static str {
        "filter-texts"
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        TEXTS.iter().map(|text| text.as_bytes().to_vec()).collect()
    }

    fn check(&mut self, input: &[u8]) {
        if let Ok(filter) = json::from_json::<FlowFilter>(&String::from_utf8_lossy(input)) {
            check(filter);
        }
    }
}

/// Filters as messages.
pub struct FilterMessages;

impl Target for FilterMessages {
    fn name(&self) -> &'static str {
        "filter-messages"
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        let filter = |text: &&str| json::from_json::<FlowFilter>(text).expect("a valid seed");
        TEXTS.iter().map(|text| filter(text).encode_to_vec()).collect()
    }

    fn check(&mut self, input: &[u8]) {
        if let Ok(filter) = FlowFilter::decode(input) {
            check(filter);
        }
    }
}
