//! Flows as they come, and what is lost of them.

use super::*;

#[tokio::test]
async fn following_goes_on_where_the_past_ends() {
    let bench = Bench::new();
    let double = Double::new("node1", 100);
    double.push((1..=10).map(example));
    let server = bench.observer(&double).await;
    let request = GetFlowsRequest { number: 2, follow: true, ..Default::default() };
    let mut stream = client(&server).await.get_flows(request).await.unwrap().into_inner();
    let mut next = async || port(&stream.message().await.unwrap().unwrap()).unwrap();
    assert_eq!([next().await, next().await], [9, 10]);
    double.push((11..=12).map(example));
    assert_eq!([next().await, next().await], [11, 12]);
}

#[tokio::test]
async fn a_slow_reader_loses_flows_is_told_how_many_and_costs_no_memory() {
    let bench = Bench::new();
    let double = Double::new("node1", 1000);
    let server = bench.observer(&double).await;
    let request = GetFlowsRequest { follow: true, ..Default::default() };
    let mut stream = client(&server).await.get_flows(request).await.unwrap().into_inner();
    let total = 60_000_u64;
    // Nothing is read meanwhile, and everybody else goes on.
    for _ in 0..total / 1000 {
        double.push((1..=1000).map(example));
        tokio::task::yield_now().await;
        flows(&server, GetFlowsRequest { number: 1, ..Default::default() }).await;
    }
    let (mut seen, mut lost) = (0, 0);
    while seen + lost < total {
        match stream.message().await.unwrap().unwrap().response_types.unwrap() {
            ResponseTypes::Flow(_) => seen += 1,
            ResponseTypes::LostEvents(event) => {
                assert_eq!(event.source(), pb::LostEventSource::HubbleRingBuffer);
                lost += event.num_events_lost;
            }
            ResponseTypes::NodeStatus(_) => panic!("from a node"),
        }
    }
    assert!(lost > 0, "all of {seen} were buffered somewhere");
    assert_eq!(seen + lost, total);
}

#[tokio::test]
async fn what_the_kernel_lost_is_said() {
    let bench = Bench::new();
    let double = Double::new("node1", 100);
    let server = bench.observer(&double).await;
    let request = GetFlowsRequest { follow: true, ..Default::default() };
    let mut stream = client(&server).await.get_flows(request).await.unwrap().into_inner();
    double.lost.store(7, std::sync::atomic::Ordering::Relaxed);
    double.push([example(80)]);
    let Some(ResponseTypes::LostEvents(lost)) = stream.message().await.unwrap().unwrap().response_types
    else {
        panic!("nothing was said to be lost")
    };
    assert_eq!((lost.num_events_lost, lost.source()), (7, pb::LostEventSource::PerfEventRingBuffer));
}
