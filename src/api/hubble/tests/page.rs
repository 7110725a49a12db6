//! The web UI of a relay: real observers behind it, a browser's requests in front.

use super::*;
use crate::api::backend::{Answer, Refusal};
use crate::api::hubble::relay::page::RelayPage;
use crate::api::types::{Enforcement, ExplainSide};
use crate::api::ui::source::{
    About, Governed, KnownPod, PolicyUse, ProxyRequest, Question, Scope, UiSource, Why,
};
use crate::model::{Direction, Kind, ObjectRef, Protocol};

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
        (about.nodes, &*about.health, about.scope),
        (vec!["node1".into(), "node2".into()], "ok", Scope::Cluster)
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

/// What the double of a node decides: the side of the pod that lives with it.
impl UiSource for Double {
    fn about(&self) -> Answer<'_, About> {
        Box::pin(async { Ok(About::default()) })
    }

    fn pods(&self) -> Answer<'_, Vec<KnownPod>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn recent(&self, _: usize) -> Vec<Arc<Flow>> {
        Vec::new()
    }

    fn follow(&self) -> tokio::sync::broadcast::Receiver<Arc<Flow>> {
        tokio::sync::broadcast::channel(1).1
    }

    fn why(&self, question: Question) -> Answer<'_, Why> {
        Box::pin(async move {
            let Some(ProxyRequest::Http { method, path, host }) = question.request else {
                return Err(Refusal::Failed("the double expects a request".into()));
            };
            let direction = if self.node == "node1" { Direction::Egress } else { Direction::Ingress };
            let asked = format!(
                "{} {} {} {} {method} {path} {host}",
                question.from, question.to, question.port, question.protocol
            );
            let side = ExplainSide {
                direction,
                verdict: "redirected".into(),
                because: "rules".into(),
                objects: Vec::new(),
                rules: vec![asked],
                near_miss: None,
                node: None,
            };
            Ok(Why { verdict: "redirected".into(), sides: vec![side], ..Why::default() })
        })
    }

    fn policies(&self) -> Answer<'_, Vec<PolicyUse>> {
        let object = ObjectRef::new(Kind::NetworkPolicy, "shop", "web");
        let selects = vec![format!("shop/on-{}", self.node)];
        let policy = PolicyUse { object, selects, default_deny: vec![Direction::Egress], rules: Vec::new() };
        Box::pin(async { Ok(vec![policy]) })
    }

    fn manifest(&self, object: ObjectRef) -> Answer<'_, String> {
        let is_known = self.node == "node2" && &*object.name == "web";
        Box::pin(async move {
            if is_known {
                Ok(format!("text of {object}"))
            } else {
                Err(Refusal::NotFound(format!("no {object}")))
            }
        })
    }

    fn governed(&self) -> Answer<'_, Vec<Governed>> {
        let governed = Governed {
            pod: format!("shop/on-{}", self.node),
            identity: 300,
            labels: vec!["k8s:app=web".into()],
            ingress: Enforcement::default(),
            egress: Enforcement::default(),
        };
        Box::pin(async { Ok(vec![governed]) })
    }
}

#[tokio::test]
async fn a_relay_asks_the_agents_why_and_by_which_policies() {
    let bench = Bench::new();
    let doubles: Vec<_> = ["node1", "node2"].iter().map(|node| Double::new(node, 1000)).collect();
    let (page, gone) = page(&bench, &doubles).await;
    let question = Question {
        from: "10.244.0.5".parse().unwrap(),
        to: "fd00::7".parse().unwrap(),
        port: 80,
        protocol: Protocol::Tcp,
        request: Some(ProxyRequest::Http { method: "GET".into(), path: "/x".into(), host: "h".into() }),
    };
    let why = page.why(question.clone()).await.unwrap();
    let sides: Vec<_> = why.sides.iter().map(|s| (s.node.as_deref().unwrap(), s.direction)).collect();
    assert_eq!(sides, [("node1", Direction::Egress), ("node2", Direction::Ingress)]);
    assert_eq!(why.sides[0].rules, ["10.244.0.5 fd00::7 80 TCP GET /x h"]);
    assert_eq!((&*why.verdict, why.missing), ("redirected", Vec::new()));
    let uses = page.policies().await.unwrap();
    assert_eq!(uses[0].selects, ["shop/on-node1", "shop/on-node2"]);
    let object = uses[0].object.clone();
    assert_eq!(page.manifest(object.clone()).await.unwrap(), format!("text of {object}"));
    let other = ObjectRef::new(Kind::NetworkPolicy, "shop", "other");
    assert!(matches!(page.manifest(other).await, Err(Refusal::NotFound(_))));
    let secret = ObjectRef::new(Kind::Secret, "shop", "web");
    assert!(matches!(page.manifest(secret).await, Err(Refusal::NotFound(_))));
    let pods: Vec<_> = page.governed().await.unwrap().into_iter().map(|governed| governed.pod).collect();
    assert_eq!(pods, ["shop/on-node1", "shop/on-node2"]);
    // What cannot be asked is said in the page's status, and by name where it decides.
    let trouble = page.why(Question { request: None, ..question.clone() }).await.unwrap_err().to_string();
    assert!(trouble.contains("node1: ") && trouble.contains("the double expects a request"), "{trouble}");
    let about = page.about().await.unwrap();
    assert!(about.trouble[0].starts_with("node1 does not tell of its policies"), "{:?}", about.trouble);
    gone.cancel();
    let part = loop {
        let why = page.why(question.clone()).await.unwrap();
        if !why.missing.is_empty() {
            break why;
        }
    };
    assert_eq!(part.sides.len(), 1);
    assert!(part.missing[0].starts_with("node2: "), "{:?}", part.missing);
}
