//! The web UI of a relay: real observers behind it, a browser's requests in front.

use super::*;
use crate::api::backend::Refusal;
use crate::api::hubble::relay::page::RelayPage;
use crate::api::ui::source::{Question, UiSource as _};
use crate::flow::{DecidedBy, Decision, PolicyPart};
use crate::model::{Kind, ObjectRef, Protocol};

async fn page(bench: &Bench, doubles: &[Arc<Double>]) -> (RelayPage, CancellationToken) {
    let (pool, gone) = pool(bench, doubles).await;
    let mut peers = pool.watch();
    let connected = |peer: &crate::api::hubble::relay::pool::Peer| {
        matches!(peer.state, crate::api::hubble::relay::pool::PeerState::Connected(_))
    };
    peers.wait_for(|peers| peers.values().all(connected)).await.unwrap();
    (RelayPage::new(pool, "test".into()), gone)
}

fn seen(flow: &Flow) -> (String, u16) {
    (flow.node.to_string(), flow.destination_port.unwrap_or_default())
}

#[tokio::test]
async fn a_page_begins_with_the_past_of_all_nodes_and_goes_on_with_what_comes() {
    let bench = Bench::new();
    let doubles: Vec<_> = ["node1", "node2"].iter().map(|node| Double::new(node, 1000)).collect();
    doubles[0].push([example(1)]);
    doubles[1].push([example(2)]);
    let (page, _gone) = page(&bench, &doubles).await;
    // Nobody looks: nothing is gathered.
    assert!(page.recent(10).is_empty());
    let mut live = page.follow();
    assert!(page.pods().await.unwrap().is_empty());
    let past: Vec<_> = page.recent(10).iter().map(|flow| seen(flow)).collect();
    assert_eq!(past, [("node1".to_owned(), 1), ("node2".to_owned(), 2)]);
    doubles[1].push([Flow { time_ns: now_ns(), ..example(3) }]);
    assert_eq!(seen(&live.recv().await.unwrap()), ("node2".to_owned(), 3));
    let about = page.about().await.unwrap();
    assert_eq!(
        (about.nodes, &*about.health, about.explains),
        (vec!["node1".into(), "node2".into()], "ok", false)
    );
}

#[tokio::test]
async fn a_page_names_the_node_that_is_missing_and_shows_the_others() {
    let bench = Bench::new();
    let doubles: Vec<_> = ["node1", "node2"].iter().map(|node| Double::new(node, 1000)).collect();
    let (page, gone) = page(&bench, &doubles).await;
    let mut live = page.follow();
    page.pods().await.unwrap();
    gone.cancel();
    let about = loop {
        let about = page.about().await.unwrap();
        if about.nodes.len() == 1 {
            break about;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(about.health, "degraded");
    assert!(about.trouble[0].starts_with("node2 does not answer"), "{:?}", about.trouble);
    doubles[0].push([Flow { time_ns: now_ns(), ..example(7) }]);
    assert_eq!(seen(&live.recv().await.unwrap()), ("node1".to_owned(), 7));
}

#[tokio::test]
async fn a_relay_says_what_flows_say_of_policies_and_who_knows_the_rest() {
    let bench = Bench::new();
    let double = Double::new("node1", 1000);
    let object = ObjectRef::new(Kind::NetworkPolicy, "shop", "web");
    let part = PolicyPart { object: object.clone(), rules: vec!["spec.egress[0]".into()] };
    let decision = Arc::new(Decision { by: DecidedBy::Rules(vec![part]), revision: 4, matched: None });
    double.push([Flow { decision, ..example(80) }]);
    let (page, _gone) = page(&bench, &[double]).await;
    let _live = page.follow();
    page.pods().await.unwrap();
    let uses = page.policies().await.unwrap();
    assert_eq!((&uses[0].object, &uses[0].selects[..]), (&object, &["shop/frontend".to_owned()][..]));
    let from = "10.244.0.5".parse().unwrap();
    let question = Question { from, to: from, port: 80, protocol: Protocol::Tcp, l7: None };
    let Err(Refusal::Conflict(why)) = page.why(question).await else { panic!("a relay explains nothing") };
    assert!(why.contains("sluice ui"), "{why}");
    assert!(page.manifest(object).await.is_err() && page.governed().await.is_err());
}
