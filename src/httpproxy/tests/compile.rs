//! Rules are compiled when the first connection needs them, which is nobody else's business.

use std::net::IpAddr;

use arc_swap::ArcSwap;

use super::*;
use crate::httpproxy::judge::SnapshotJudge;
use crate::model::Direction;
use crate::policy::engine::PeerView;
use crate::policy::l7::http::Request;
use crate::policy::l7::snapshot::{Endpoint, PeerSet, PortSpan, RuleTier, Side, SideRule, Sides, Snapshot};
use crate::policy::map_state::{Precedence, SlotAction};

const HEAVY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
const LIGHT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

fn paths(paths: impl Iterator<Item = String>) -> Arc<L7Rules> {
    let rule = |path: String| HttpRule { path: Some(path.into()), ..HttpRule::default() };
    Arc::new(L7Rules::Http(paths.map(rule).collect()))
}

/// Two pods with egress rules for port 80, one of which has many.
fn snapshot() -> Snapshot {
    let port = PortSpan { protocol: 6, first: 80, last: 80 };
    let side = |subject: u32, l7: usize| Side {
        subject: Identity(subject),
        direction: Direction::Egress,
        default_deny: true,
        localhost: false,
        ports: vec![port],
        rules: vec![SideRule {
            rule: rule_ref(),
            path: "spec.egress[0]".into(),
            tier: RuleTier::Normal,
            action: SlotAction::Redirect(Proxy::Http),
            precedence: Precedence(1),
            peers: PeerSet::Any,
            ports: vec![port],
            l7: Some(l7),
        }],
    };
    let heavy = (0..60).map(|n| format!("/.*a[a-z]{{1000}}N{n}"));
    let pod =
        |identity| Endpoint { pod: "shop/pod".into(), identity: Identity(identity), before: Vec::new() };
    Snapshot {
        endpoints: [(HEAVY, pod(300)), (LIGHT, pod(301))].into(),
        sides: Sides {
            all: vec![side(300, 0), side(301, 1)],
            peers: Vec::new(),
            l7: vec![paths(heavy), paths(["/ok".to_owned()].into_iter())],
        },
        ..Snapshot::default()
    }
}

fn newest(feed: &Arc<ArcSwap<Snapshot>>) -> impl Fn() -> Arc<Snapshot> + use<> {
    let feed = Arc::clone(feed);
    move || feed.load_full()
}

#[test]
fn rules_that_take_long_to_compile_hold_no_other_pod_up() {
    let (begun, begins) = std::sync::mpsc::channel();
    let view = PeerView { identity: Identity::WORLD_IPV4, address_class: None };
    let lookup = move |address: IpAddr| {
        if address == HEAVY {
            begun.send(()).ok();
        }
        view
    };
    let feed = Arc::new(ArcSwap::from_pointee(snapshot()));
    let newest = newest(&feed);
    let judge = Arc::new(SnapshotJudge::new(feed, newest, lookup, move |_, _| view, Arc::default()));
    let server = "192.0.2.1:80".parse().unwrap();
    let slow = std::thread::spawn({
        let judge = Arc::clone(&judge);
        move || judge.policy(SocketAddr::new(HEAVY, 1), server)
    });
    begins.recv_timeout(PATIENCE).unwrap();
    let mut judged = 0;
    while !slow.is_finished() {
        judge.policy(SocketAddr::new(LIGHT, 1), server);
        judged += 1;
    }
    // As many as fit into the time, not the one that waited for it.
    assert!(judged > 100, "{judged}");
    let again = judge.policy(SocketAddr::new(HEAVY, 2), server);
    assert!(Arc::ptr_eq(&again.policy.egress, &slow.join().unwrap().policy.egress));
}

#[test]
fn rules_that_are_too_large_together_admit_nothing_and_are_counted() {
    let mut snapshot = snapshot();
    snapshot.sides.l7[0] = paths((0..200).map(|n| format!("/.*a[a-z]{{750}}[a-z]{{750}}N{n}")));
    let view = PeerView { identity: Identity::WORLD_IPV4, address_class: None };
    let counters: Arc<Counters> = Arc::default();
    let feed = Arc::new(ArcSwap::from_pointee(snapshot));
    let newest = newest(&feed);
    let judge = SnapshotJudge::new(feed, newest, move |_| view, move |_, _| view, Arc::clone(&counters));
    for (client, passes, unusable) in [(LIGHT, true, 0), (HEAVY, false, 1)] {
        let judged = judge.policy(SocketAddr::new(client, 1), "192.0.2.1:80".parse().unwrap());
        let request = Request { method: "GET", path: "/ok", host: "a", headers: &[] };
        assert_eq!(judged.policy.request(&request).passes, passes);
        assert_eq!(counters.rules_unusable.get(), unusable);
    }
}

#[tokio::test]
async fn a_path_that_would_take_too_much_work_is_refused_and_counted() {
    let heavy = paths((0..100).map(|n| format!("/.*a[a-z]{{1000}}N{n}")));
    let rig = Rig::new(under(Proxy::Http, L7Rules::clone(&heavy))).await;
    let mut client = rig.client().await;
    for (path, too_much) in [("a".repeat(9000), 1), ("b".to_owned(), 1)] {
        send(&mut client, &format!("GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        expect(&mut client, DENIED).await;
        assert_eq!(rig.counters.too_much_work.get(), too_much);
    }
    assert_eq!(rig.counters.denied.get(), 2);
}
