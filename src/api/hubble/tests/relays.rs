//! A relay over several observers.

use super::*;
use crate::api::hubble::pb::relay::NodeState;

#[tokio::test]
async fn a_relay_hands_expressions_on_and_says_why_they_are_refused() {
    let bench = Bench::new();
    let doubles: Vec<_> = ["node1", "node2"].iter().map(|node| Double::new(node, 100)).collect();
    for port in 1..=20 {
        doubles[usize::from(port) % 2].push([example(port)]);
    }
    let (server, _gone) = relay(&bench, &doubles).await;
    let request = |source| GetFlowsRequest { whitelist: vec![expression(source)], ..Default::default() };
    let wanted = request("_flow.l4.TCP.destination_port in [7u, 8u] || _flow.node_name == 'node3'");
    assert_eq!(ports(&flows(&server, wanted).await), [7, 8]);
    for (source, message) in [
        ("_flow.sauce == 1", "experimental.cel_expression[0]: flow.Flow has no member sauce"),
        ("(", "experimental.cel_expression[0]: 1:2: "),
    ] {
        let stream = client(&server).await.get_flows(request(source)).await.unwrap().into_inner();
        // The states of the nodes come first.
        let responses: Vec<_> = stream.collect().await;
        let status = responses.into_iter().find_map(Result::err).unwrap();
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(message), "{status:?}");
    }
}

#[tokio::test]
async fn a_relay_joins_nodes_in_time_order() {
    let bench = Bench::new();
    let doubles: Vec<_> = ["node1", "node2", "node3"].iter().map(|node| Double::new(node, 1000)).collect();
    for port in 1..=300 {
        doubles[usize::from(port) % 3].push([example(port)]);
    }
    let (server, _gone) = relay(&bench, &doubles).await;
    let all = flows(&server, GetFlowsRequest::default()).await;
    assert_eq!(ports(&all), (1..=300).collect::<Vec<u32>>());
    let last = flows(&server, GetFlowsRequest { number: 5, ..Default::default() }).await;
    assert_eq!(ports(&last), [296, 297, 298, 299, 300]);
    let first = flows(&server, GetFlowsRequest { number: 3, first: true, ..Default::default() }).await;
    assert_eq!(ports(&first), [1, 2, 3]);
    let status = client(&server).await.server_status(ServerStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.num_connected_nodes, status.num_flows), (Some(3), 300));
    let absurd = pb::FlowFilter { source_port: vec!["x".into()], ..Default::default() };
    let request = GetFlowsRequest { whitelist: vec![absurd], ..Default::default() };
    let mut stream = client(&server).await.get_flows(request).await.unwrap().into_inner();
    let status = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("an absurd filter was accepted"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
}

#[tokio::test]
async fn a_relay_goes_on_without_a_node_that_dies_and_says_so() {
    let bench = Bench::new();
    let doubles: Vec<_> = ["node1", "node2", "node3"].iter().map(|node| Double::new(node, 1000)).collect();
    let (server, gone) = relay(&bench, &doubles).await;
    let request = GetFlowsRequest { follow: true, ..Default::default() };
    let mut stream = client(&server).await.get_flows(request).await.unwrap().into_inner();
    doubles[2].push([Flow { time_ns: now_ns(), ..example(3) }]);
    let mut next = async || stream.message().await.unwrap().unwrap();
    while port(&next().await) != Some(3) {}
    gone.cancel();
    let missing = loop {
        if let Some(ResponseTypes::NodeStatus(status)) = next().await.response_types
            && status.state_change() != NodeState::NodeConnected
        {
            break status.node_names;
        }
    };
    assert_eq!(missing, ["node3"]);
    doubles[0].push([Flow { time_ns: now_ns(), ..example(1) }]);
    while port(&next().await) != Some(1) {}
    let status = client(&server).await.server_status(ServerStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.num_connected_nodes, Some(2));
    assert_eq!(
        (status.num_unavailable_nodes, &status.unavailable_nodes[..]),
        (Some(1), &["node3".to_owned()][..])
    );
    let past = flows(&server, GetFlowsRequest::default()).await;
    assert!(ports(&past).contains(&1));
}

#[tokio::test]
async fn a_node_with_another_clock_delays_nobody_and_is_named() {
    let bench = Bench::new();
    let doubles: Vec<_> = ["node1", "node2", "skewed"].iter().map(|node| Double::new(node, 1000)).collect();
    let (server, _gone) = relay(&bench, &doubles).await;
    let request = GetFlowsRequest { follow: true, ..Default::default() };
    let mut stream = client(&server).await.get_flows(request).await.unwrap().into_inner();
    let hour = 3600 * 1_000_000_000;
    doubles[2].push([Flow { time_ns: now_ns() + hour, ..example(9) }]);
    doubles[0].push([Flow { time_ns: now_ns(), ..example(1) }]);
    let (mut seen, mut said) = (Vec::new(), Vec::new());
    while seen.len() < 2 || said.is_empty() {
        let response = stream.message().await.unwrap().unwrap();
        seen.extend(port(&response));
        if let Some(ResponseTypes::NodeStatus(status)) = response.response_types
            && status.message.contains("ahead of")
        {
            said = status.node_names;
        }
    }
    seen.sort_unstable();
    assert_eq!((seen, said), (vec![1, 9], vec!["skewed".to_owned()]));
}
