//! Which flows an answer holds.

use super::*;
use crate::api::hubble::convert::timestamp;

#[tokio::test]
async fn first_last_since_until_and_all() {
    let bench = Bench::new();
    let double = Double::new("node1", 5000);
    double.push((1..=3000).map(example));
    let server = bench.observer(&double).await;
    let at = |port: u64| Some(timestamp(1_700_000_000_000_000_000 + port));
    let request = GetFlowsRequest::default();
    assert_eq!(flows(&server, request.clone()).await.len(), 3000);
    let last = flows(&server, GetFlowsRequest { number: 2, ..request.clone() }).await;
    assert_eq!(ports(&last), [2999, 3000]);
    let first = flows(&server, GetFlowsRequest { number: 2, first: true, ..request.clone() }).await;
    assert_eq!(ports(&first), [1, 2]);
    let range = GetFlowsRequest { since: at(10), until: at(12), ..request.clone() };
    assert_eq!(ports(&flows(&server, range.clone()).await), [10, 11, 12]);
    assert_eq!(ports(&flows(&server, GetFlowsRequest { number: 1, ..range }).await), [12]);
    let filter = pb::FlowFilter { destination_port: vec!["5".into(), "7".into()], ..Default::default() };
    let only = GetFlowsRequest { number: 20, whitelist: vec![filter.clone()], ..request.clone() };
    assert_eq!(ports(&flows(&server, only).await), [5, 7]);
    let without = GetFlowsRequest { blacklist: vec![filter], until: at(8), ..request };
    assert_eq!(ports(&flows(&server, without).await), [1, 2, 3, 4, 6, 8]);
}

#[tokio::test]
async fn history_goes_before_what_is_in_memory() {
    let bench = Bench::new();
    let double = Double::new("node1", 100);
    *double.history.lock() = (1..=50).map(example).collect();
    double.push((41..=60).map(example));
    let server = bench.observer(&double).await;
    let at = |port: u64| Some(timestamp(1_700_000_000_000_000_000 + port));
    let request = GetFlowsRequest::default();
    // What is in both is in the answer once.
    let since = flows(&server, GetFlowsRequest { since: at(38), ..request.clone() }).await;
    assert_eq!(ports(&since), (38..=60).collect::<Vec<u32>>());
    let last = flows(&server, GetFlowsRequest { number: 22, ..request.clone() }).await;
    assert_eq!(ports(&last), (39..=60).collect::<Vec<u32>>());
    let first = GetFlowsRequest { since: at(10), number: 2, first: true, ..request.clone() };
    assert_eq!(ports(&flows(&server, first).await), [10, 11]);
    // Everything in memory is just that.
    assert_eq!(flows(&server, request).await.len(), 20);
}

#[tokio::test]
async fn expressions_select_flows_in_memory_and_in_history() {
    let bench = Bench::new();
    let double = Double::new("node1", 1000);
    *double.history.lock() = (1..=50).map(example).collect();
    double.push((51..=600).map(example));
    let server = bench.observer(&double).await;
    let source = "_flow.l4.TCP.destination_port % 100u == 7u && _flow.verdict == Verdict.FORWARDED";
    let only = GetFlowsRequest { whitelist: vec![expression(source)], ..Default::default() };
    assert_eq!(ports(&flows(&server, only.clone()).await), [107, 207, 307, 407, 507]);
    let last = GetFlowsRequest { number: 2, ..only.clone() };
    assert_eq!(ports(&flows(&server, last).await), [407, 507]);
    let since = GetFlowsRequest { since: Some(timestamp(1)), ..only.clone() };
    assert_eq!(ports(&flows(&server, since).await), [7, 107, 207, 307, 407, 507]);
    let late = expression("_flow.l4.TCP.destination_port < 599u");
    let without = GetFlowsRequest { blacklist: vec![late], ..Default::default() };
    assert_eq!(ports(&flows(&server, without).await), [599, 600]);
}

#[tokio::test]
async fn a_mask_leaves_out_what_nobody_wants() {
    let bench = Bench::new();
    let double = Double::new("node1", 100);
    double.push([example(80)]);
    let server = bench.observer(&double).await;
    let mask = |path: &str| Some(prost_types::FieldMask { paths: vec![path.to_owned()] });
    let request = GetFlowsRequest { field_mask: mask("source.pod_name"), ..Default::default() };
    let response = flows(&server, request).await.remove(0);
    let Some(ResponseTypes::Flow(flow)) = response.response_types else { panic!("no flow") };
    assert_eq!(flow.source.unwrap().pod_name, "frontend");
    assert!(flow.destination.is_none() && response.node_name == "node1");
    let request = GetFlowsRequest { field_mask: mask("nothing"), ..Default::default() };
    let status = client(&server).await.get_flows(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
}
