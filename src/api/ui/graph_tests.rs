use super::*;
use crate::flow::tests::flow;
use crate::model::{DropReason, Workload};

fn from_to(source: &str, target: &str, port: u16) -> Flow {
    let mut flow = flow(port);
    for (party, pod) in [(&mut flow.source, source), (&mut flow.destination, target)] {
        let party = Arc::make_mut(party);
        party.pod = Some(pod.into());
        party.workload = None;
    }
    flow
}

fn graph(flows: impl IntoIterator<Item = Flow>) -> Graph {
    let mut graph = Graph::new(1);
    flows.into_iter().for_each(|flow| graph.add(&Arc::new(flow)));
    graph
}

fn edges(graph: &Graph) -> Vec<Value> {
    graph.since(Cursor::default()).unwrap()["edges"].as_array().unwrap().clone()
}

#[test]
fn replicas_are_one_workload_and_both_ends_one_connection() {
    let of = |pod: &str| {
        let mut flow = from_to(pod, "db-0", 5432);
        Arc::make_mut(&mut flow.source).workload = Some(Workload::new("Deployment", "web"));
        Arc::make_mut(&mut flow.destination).workload = Some(Workload::new("StatefulSet", "db"));
        flow
    };
    let ingress = Flow { direction: crate::model::Direction::Ingress, ..of("web-6d4b75cb6d-x2kqp") };
    let graph = graph([of("web-6d4b75cb6d-hlkzn"), ingress]);
    let map = graph.since(Cursor::default()).unwrap();
    let names: Vec<_> = map["nodes"].as_array().unwrap().iter().map(|node| &node["name"]).collect();
    assert_eq!(names, ["web", "db"]);
    assert_eq!((edges(&graph).len(), &edges(&graph)[0][5]), (1, &json!(1)));
}

#[test]
fn a_pod_that_says_nothing_is_where_its_flows_will_be() {
    let mut graph = Graph::new(1);
    let known = |name: &str, workload: &str| KnownPod {
        namespace: "shop".into(),
        name: name.into(),
        workload: workload.into(),
    };
    // The name looks as if a Deployment had made it, and none has: who knows the pod says so.
    graph.know_pod(&known("cart-redis-x2kqp", "cart-redis-x2kqp"));
    graph.know_pod(&known("web-6d4b75cb6d-x2kqp", "web"));
    let mut flow = from_to("web-6d4b75cb6d-hlkzn", "cart-redis-x2kqp", 80);
    Arc::make_mut(&mut flow.source).workload = Some(Workload::new("Deployment", "web"));
    graph.add(&Arc::new(flow));
    let map = graph.since(Cursor::default()).unwrap();
    let names: Vec<_> = map["nodes"].as_array().unwrap().iter().map(|node| &node["name"]).collect();
    assert_eq!(names, ["cart-redis-x2kqp", "web"]);
    assert_eq!(map["nodes"][1]["pods"].as_array().unwrap().len(), 2);
}

#[test]
fn drops_are_counted_with_their_reason_and_a_sample() {
    let mut denied = from_to("a", "b", 80);
    denied.verdict = Verdict::Dropped(DropReason::ALL[0]);
    denied.kind = EventKind::Drop;
    let graph = graph([denied, from_to("a", "b", 80)]);
    let edge = &edges(&graph)[0];
    assert_eq!((&edge[5], &edge[6], &edge[8]), (&json!(1), &json!(1), &json!(DropReason::ALL[0].text())));
    assert!(graph.samples(0).unwrap().iter().all(Option::is_some));
    assert!(graph.samples(7).is_none());
}

#[test]
fn what_one_side_lets_go_and_the_other_drops_is_not_allowed() {
    let dropped = Flow {
        kind: EventKind::Drop,
        verdict: Verdict::Dropped(DropReason::PolicyDenied),
        direction: Direction::Ingress,
        ..from_to("a", "b", 80)
    };
    let arrived = Flow { direction: Direction::Ingress, ..from_to("a", "b", 80) };
    let graph = graph([from_to("a", "b", 80), dropped, from_to("a", "b", 80), arrived]);
    assert_eq!((&edges(&graph)[0][5], &edges(&graph)[0][6]), (&json!(1), &json!(1)));
}

#[test]
fn a_reader_gets_what_changed_and_the_whole_map_after_another_epoch() {
    let mut graph = graph([from_to("a", "b", 80), from_to("c", "d", 80)]);
    let cursor = graph.cursor();
    assert!(graph.since(cursor).is_none());
    graph.add(&Arc::new(from_to("a", "b", 80)));
    let change = graph.since(cursor).unwrap();
    assert_eq!((change["whole"].as_bool(), change["edges"].as_array().unwrap().len()), (Some(false), 1));
    let other = Cursor { epoch: 9, ..cursor };
    let whole = graph.since(other).unwrap();
    assert_eq!((whole["whole"].as_bool(), whole["edges"].as_array().unwrap().len()), (Some(true), 2));
}

#[test]
fn replies_and_packets_of_known_connections_do_not_count() {
    let reply = Flow { is_reply: true, ..from_to("b", "a", 40000) };
    let trace = Flow { kind: EventKind::Trace, ..from_to("a", "b", 80) };
    assert_eq!(edges(&graph([reply, trace])), [] as [Value; 0]);
}

#[test]
fn a_port_scan_is_a_bounded_number_of_edges() {
    let graph = graph((1..=60_000).map(|port| from_to("scanner", "victim", port)));
    let edges = edges(&graph);
    assert_eq!(edges.len(), usize::from(MAX_PORTS) + 1);
    let counted: u64 = edges.iter().filter_map(|edge| edge[5].as_u64()).sum();
    assert_eq!(counted, 60_000);
}

#[test]
fn a_full_map_forgets_what_was_silent_and_says_so() {
    let mut graph = Graph::new(1);
    for index in 0..=MAX_EDGES as u64 {
        let target = format!("w{}", index % 200);
        let mut flow = from_to(&format!("s{}", index / 200), &target, 80);
        flow.time_ns = index;
        graph.add(&Arc::new(flow));
    }
    assert!(graph.edges.len() <= MAX_EDGES);
    assert_eq!(graph.cursor().epoch, 2);
    let newest = graph.edges.iter().map(|edge| edge.last_ns).max();
    assert_eq!(newest, Some(MAX_EDGES as u64));
    assert!(graph.edges.iter().all(|edge| edge.last_ns >= MAX_EDGES as u64 / 10 - 1));
}

#[test]
fn the_world_is_told_apart_by_name_then_prefix_and_bounded() {
    let mut graph = Graph::new(1);
    for index in 0..MAX_OUTSIDERS + 50 {
        let mut flow = from_to("a", "", 443);
        let destination = Arc::make_mut(&mut flow.destination);
        destination.pod = None;
        destination.identity = Identity::WORLD_IPV4;
        destination.names = vec![format!("h{index}.example").into()];
        graph.add(&Arc::new(flow));
    }
    // The names, the caller, and the world for those that found no room.
    assert_eq!(graph.nodes.len(), MAX_OUTSIDERS + 2);
}
