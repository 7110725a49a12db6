//! Explanations and suggestions over the real view and engine: what is suggested is applied, and the connection is
//! then allowed.

use super::tests::{PODS, rig};
use super::ui::AgentUi;
use crate::api::backend::{ApplyMode, Backend as _};
use crate::api::ui::source::{ProxyRequest, Question, UiSource as _, Why};
use crate::model::Protocol;

const CLIENT: &str = "10.244.0.6";
const WEB: &str = "10.244.0.5";

fn question(from: &str, to: &str, port: u16) -> Question {
    Question {
        from: from.parse().unwrap(),
        to: to.parse().unwrap(),
        port,
        protocol: Protocol::Tcp,
        request: None,
    }
}

/// Applies policies over two pods, asks, applies what is suggested, and asks again.
async fn before_and_after(policies: &str, question: Question) -> (Why, Why) {
    let rig = rig();
    rig.backend.apply(format!("{PODS}---{policies}"), ApplyMode::Commit).await.unwrap();
    let ui = AgentUi { core: rig.backend.core.clone(), hub: rig.backend.hub.clone() };
    let before = ui.why(question.clone()).await.unwrap();
    let again = ui.why(question.clone()).await.unwrap();
    assert_eq!(format!("{:?}", again.sides), format!("{:?}", before.sides), "trying left something behind");
    let suggestion = before.suggestion.clone().expect("denied connections have a suggestion");
    if let Some(yaml) = suggestion.yaml {
        let revision = rig.backend.apply(yaml.clone(), ApplyMode::Commit).await;
        assert!(revision.is_ok(), "{revision:?}\n{yaml}");
    }
    let after = ui.why(question).await.unwrap();
    (before, after)
}

#[tokio::test]
async fn what_is_suggested_for_default_deny_on_both_sides_allows_the_connection() {
    let deny = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: default-deny}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
";
    let (before, after) = before_and_after(deny, question(CLIENT, WEB, 80)).await;
    assert_eq!(before.verdict, "denied");
    let suggestion = before.suggestion.unwrap();
    assert!(suggestion.verified, "{suggestion:?}");
    assert_eq!(suggestion.yaml.unwrap().matches("kind: NetworkPolicy").count(), 2, "one for each side");
    assert_eq!((after.verdict.as_str(), after.suggestion), ("allowed", None));
}

#[tokio::test]
async fn what_is_suggested_opens_nothing_else() {
    let deny = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: default-deny}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
";
    let rig = rig();
    rig.backend.apply(format!("{PODS}---{deny}"), ApplyMode::Commit).await.unwrap();
    let ui = AgentUi { core: rig.backend.core.clone(), hub: rig.backend.hub.clone() };
    let why = ui.why(question(CLIENT, WEB, 80)).await.unwrap();
    rig.backend.apply(why.suggestion.unwrap().yaml.unwrap(), ApplyMode::Commit).await.unwrap();
    for other in [question(CLIENT, WEB, 81), question(WEB, CLIENT, 80), question(CLIENT, "203.0.113.7", 80)] {
        let udp = Question { protocol: Protocol::Udp, ..question(CLIENT, WEB, 80) };
        for other in [other, udp] {
            assert_eq!(ui.why(other.clone()).await.unwrap().verdict, "denied", "{other:?}");
        }
    }
}

#[tokio::test]
async fn the_world_is_allowed_by_address() {
    let deny = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: no-egress}
spec: {podSelector: {}, policyTypes: [Egress]}
";
    let (before, after) = before_and_after(deny, question(CLIENT, "203.0.113.7", 443)).await;
    assert!(before.suggestion.is_some_and(|suggestion| suggestion.verified));
    assert_eq!(after.verdict, "allowed");
}

#[tokio::test]
async fn the_world_that_comes_in_and_ping_are_allowed() {
    let deny = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: web-in}
spec: {podSelector: {matchLabels: {app: web}}}
";
    let (_, after) = before_and_after(deny, question("203.0.113.7", WEB, 80)).await;
    assert_eq!(after.verdict, "allowed");
    let ping = Question { protocol: Protocol::Icmp, ..question(CLIENT, WEB, 8) };
    let (_, after) = before_and_after(deny, ping).await;
    assert_eq!(after.verdict, "allowed");
}

#[tokio::test]
async fn a_deny_rule_is_named_and_not_papered_over() {
    let deny = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {namespace: shop, name: never}
spec:
  endpointSelector: {matchLabels: {app: client}}
  egressDeny: [{toEndpoints: [{matchLabels: {app: web}}]}]
  egress: [{toEntities: [all]}]
";
    let (before, after) = before_and_after(deny, question(CLIENT, WEB, 80)).await;
    let suggestion = before.suggestion.unwrap();
    assert_eq!(suggestion.yaml, None);
    assert!(suggestion.notes.iter().any(|note| note.contains("shop/never")), "{suggestion:?}");
    assert_eq!(after.verdict, "denied");
}

#[tokio::test]
async fn a_refused_request_gets_a_rule_for_that_request() {
    let l7 = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {namespace: shop, name: web-l7}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{method: GET, path: /public}]}}]
";
    let http = |method: &str, path: &str| ProxyRequest::Http {
        method: method.into(),
        path: path.into(),
        host: "web".into(),
    };
    let refused = Question { request: Some(http("POST", "/admin?x=1")), ..question(CLIENT, WEB, 80) };
    let (before, after) = before_and_after(l7, refused).await;
    assert_eq!(before.verdict, "denied");
    assert!(before.suggestion.is_some_and(|suggestion| suggestion.verified));
    assert_eq!(after.verdict, "redirected");
    let passes = Question { request: Some(http("GET", "/public")), ..question(CLIENT, WEB, 80) };
    let rig = rig();
    rig.backend.apply(format!("{PODS}---{l7}"), ApplyMode::Commit).await.unwrap();
    let ui = AgentUi { core: rig.backend.core.clone(), hub: rig.backend.hub.clone() };
    assert_eq!(ui.why(passes).await.unwrap().verdict, "redirected");
}

/// Lifted HTTP rules were said to refuse a ClientHello.
#[tokio::test]
async fn rules_for_another_protocol_are_to_blame_only_where_they_refuse_anything() {
    let policy = |rest: &str| {
        format!(
            "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{namespace: shop, name: web-l7}}
spec:
  endpointSelector: {{matchLabels: {{app: web}}}}
  ingress:
  - fromEndpoints: [{{matchLabels: {{app: client}}}}]
    toPorts: [{{ports: [{{port: '80', protocol: TCP}}], rules: {{http: [{{method: GET}}]}}}}]
{rest}"
        )
    };
    let lifting = "  - toPorts: [{ports: [{port: '80', protocol: TCP}]}]\n";
    let request = Some(ProxyRequest::Tls { server_name: "web.example".into() });
    let hello = Question { request, ..question(CLIENT, WEB, 80) };
    for (rest, verdict) in [("", "denied"), (lifting, "redirected")] {
        let rig = rig();
        rig.backend.apply(format!("{PODS}---{}", policy(rest)), ApplyMode::Commit).await.unwrap();
        let ui = AgentUi { core: rig.backend.core.clone(), hub: rig.backend.hub.clone() };
        assert_eq!(ui.why(hello.clone()).await.unwrap().verdict, verdict, "{rest}");
    }
}

#[tokio::test]
async fn policies_say_whom_they_select_and_which_rules_can_never_match() {
    let policy = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: web-in}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: client}}}]
  - from: [{podSelector: {matchLabels: {app: nobody}}}]
";
    let rig = rig();
    rig.backend.apply(format!("{PODS}---{policy}"), ApplyMode::Commit).await.unwrap();
    let ui = AgentUi { core: rig.backend.core.clone(), hub: rig.backend.hub.clone() };
    let uses = ui.policies().await.unwrap();
    assert_eq!(uses[0].selects, ["shop/web"]);
    assert_eq!(uses[0].rules.iter().map(|rule| rule.idle).collect::<Vec<_>>(), [false, true]);
    // The double has no kernel to count in: that is said, and not shown as zero.
    assert!(uses[0].rules.iter().all(|rule| rule.hits.is_none()));
    let pods = ui.pods().await.unwrap();
    assert_eq!(pods.iter().map(|pod| &*pod.name).collect::<Vec<_>>(), ["client", "web"]);
}
