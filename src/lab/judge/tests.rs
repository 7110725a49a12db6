//! The offline judge on small scenarios: what it must not get wrong itself.

use super::run;
use crate::lab::report::{ScenarioResult, Status};
use crate::lab::scenario;

const POLICY: &str = "
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: client, labels: {app: client}}
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: server, labels: {app: server}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: a, name: server-in}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: client}}}]
    ports: [{port: 80}, {port: 81}]
";

fn judge_with(options: &str, steps: &str, objects: &str) -> ScenarioResult {
    let text = format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: Scenario\nmetadata: {{name: s}}\nspec:\n  options: {{{options}}}\n  \
         externals:\n  - {{name: web, addresses: [203.0.113.5], names: [web.example], ttl: 10s}}\n  steps:\n{steps}\n{objects}"
    );
    let file = scenario::read("s.yaml", &text);
    assert_eq!(file.problems, []);
    run("s.yaml", &file.scenarios[0]).unwrap()
}

fn judge(steps: &str) -> ScenarioResult {
    judge_with("ipFamilies: [IPv4]", steps, POLICY)
}

/// What came of the last step, as text: empty when it passed.
fn last(result: &ScenarioResult) -> String {
    match &result.steps.last().unwrap().status {
        Status::Passed => String::new(),
        Status::Failed { expected, got, because } => format!("{expected} | {got} | {because}"),
        Status::Skipped { reason } => reason.clone(),
    }
}

#[test]
fn a_port_that_nobody_listens_on_is_neither_allowed_nor_denied() {
    for expect in ["allowed", "denied", "rejected"] {
        let result = judge(&format!("  - {{from: a/client, to: \"a/server:81\", expect: {expect}}}"));
        assert!(last(&result).contains("no answer: nothing listens on"), "{}", last(&result));
    }
}

#[test]
fn a_wrong_reason_fails_a_right_verdict() {
    let step = |by: &str, direction: &str| {
        let result = judge(&format!(
            "  - {{from: \"external:web\", to: \"a/server:80\", expect: denied, because: {{direction: {direction}, by: {by}}}}}"
        ));
        last(&result)
    };
    assert_eq!(step("default-deny", "ingress"), "");
    assert!(step("default-deny", "egress").starts_with("denied at egress by default-deny | denied"));
    assert!(step("a/server-in", "ingress").contains("default-deny, turned on by a/server-in"));
}

#[test]
fn a_rejecting_cluster_answers() {
    let reject = |expect| {
        let steps = format!("  - {{from: \"external:web\", to: \"a/server:80\", expect: {expect}}}");
        last(&judge_with("ipFamilies: [IPv4], denyResponse: reject", &steps, POLICY))
    };
    assert_eq!(reject("rejected"), "");
    assert!(reject("denied").contains("denied | rejected"));
}

#[test]
fn an_answer_with_ttl_zero_is_good_for_the_connection_that_follows() {
    let text = include_str!("../../../integration/scenarios/l7/29-tofqdns-ttl-zero.yaml");
    let file = scenario::read("29-tofqdns-ttl-zero.yaml", text);
    assert_eq!(file.problems, []);
    let result = run("29-tofqdns-ttl-zero.yaml", &file.scenarios[0]).unwrap();
    assert!(result.steps.iter().all(|step| step.status == Status::Passed), "{:?}", result.steps);
}

#[test]
fn a_service_without_backends_rejects() {
    let objects = "
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: client}
---
apiVersion: v1
kind: Service
metadata: {namespace: a, name: empty}
spec: {selector: {app: none}, ports: [{port: 80}]}
";
    let steps = "  - {from: a/client, to: \"svc:a/empty:80\", expect: rejected}";
    assert_eq!(last(&judge_with("", steps, objects)), "");
}

#[test]
fn a_step_with_an_address_runs_in_its_family_only() {
    let result = judge_with("", "  - {from: a/client, to: \"203.0.113.5:80\", expect: allowed}", POLICY);
    assert_eq!((result.steps.len(), last(&result)), (1, String::new()));
    let result = judge_with(
        "ipFamilies: [IPv6]",
        "  - {from: a/client, to: \"203.0.113.5:80\", expect: allowed}",
        POLICY,
    );
    assert!(last(&result).contains("the step runs in no family"), "{}", last(&result));
}

#[test]
fn a_transaction_with_one_invalid_object_changes_nothing() {
    let result = judge(
        r#"  - apply: |
      apiVersion: v1
      kind: Namespace
      metadata: {name: a, labels: {x: "y"}}
      ---
      apiVersion: networking.k8s.io/v1
      kind: NetworkPolicy
      metadata: {namespace: a, name: server-in}
      spec: {podSelector: {}, ingress: [{from: [{}]}]}
    expect: invalid
  - {from: a/client, to: "a/server:80", expect: allowed, because: {direction: ingress, by: a/server-in}}"#,
    );
    assert_eq!(result.steps.iter().filter(|step| step.status == Status::Passed).count(), 2, "{result:?}");
}

#[test]
fn two_pods_with_one_address_make_a_file_invalid() {
    let pod = |name: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{namespace: a, name: {name}}}\nstatus: {{podIPs: [{{ip: 10.9.9.9}}]}}\n"
        )
    };
    let text = format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: Scenario\nmetadata: {{name: s}}\nspec: {{steps: []}}\n{}{}",
        pod("x"),
        pod("y")
    );
    let file = scenario::read("s.yaml", &text);
    let refused = run("s.yaml", &file.scenarios[0]).unwrap_err();
    assert!(refused.to_string().starts_with("s.yaml:1:1: error: Scenario s: "), "{refused}");
}

#[test]
fn a_restarted_agent_remembers_what_its_pods_looked_up() {
    let policy = r#"
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: client, labels: {app: client}}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {namespace: a, name: out}
spec:
  endpointSelector: {}
  egress:
  - toEndpoints: [{matchLabels: {"k8s:io.kubernetes.pod.namespace": kube-system, k8s-app: kube-dns}}]
    toPorts: [{ports: [{port: "53", protocol: ANY}], rules: {dns: [{matchPattern: "*"}]}}]
  - toFQDNs: [{matchName: web.example}]
"#;
    let steps = r#"  - {from: a/client, to: "web.example:443", expect: allowed}
  - {restart: agent}
  - {restart: dns-proxy, node: node1}
  - {from: a/client, to: "203.0.113.5:443", expect: allowed, because: {direction: egress, by: a/out}}
  - open: {name: c, from: a/client, to: "203.0.113.5:80", expect: allowed}
  - {wait: 10s}
  - {from: a/client, to: "203.0.113.5:443", expect: denied, because: {direction: egress, by: default-deny}}
  - {send: c, expect: allowed}
  - {delete: {kind: CiliumNetworkPolicy, namespace: a, name: out}}
  - {send: c, expect: allowed}
  - {external: {name: web, addresses: [203.0.113.6]}}
  - {from: a/client, to: "web.example:80", http: {path: /x}, expect: allowed}"#;
    let result = judge_with("ipFamilies: [IPv4]", steps, policy);
    let failed: Vec<String> =
        result.steps.iter().filter(|step| step.status != Status::Passed).map(|step| step.line()).collect();
    assert_eq!(failed, Vec::<String>::new());
}

#[test]
fn a_connection_ends_with_the_policy_that_allowed_its_name() {
    let policy = r#"
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: client, labels: {app: client}}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {namespace: a, name: out}
spec:
  endpointSelector: {}
  egress:
  - toEndpoints: [{matchLabels: {"k8s:io.kubernetes.pod.namespace": kube-system, k8s-app: kube-dns}}]
    toPorts: [{ports: [{port: "53", protocol: ANY}], rules: {dns: [{matchPattern: "*"}]}}]
  - toFQDNs: [{matchName: web.example}]
"#;
    let steps = r#"  - open: {name: c, from: a/client, to: "web.example:80", expect: allowed}
  - apply: |
      apiVersion: cilium.io/v2
      kind: CiliumNetworkPolicy
      metadata: {namespace: a, name: out}
      spec:
        endpointSelector: {}
        egress: [{toFQDNs: [{matchName: other.example}]}]
  - {send: c, expect: denied, because: {direction: egress, by: default-deny}}"#;
    assert_eq!(last(&judge_with("ipFamilies: [IPv4]", steps, policy)), "");
}

/// Every scenario below a directory of the repository passes.
fn all_pass(directory: &str) -> usize {
    let mut pending = vec![std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(directory)];
    let (mut passed, mut failed) = (0, Vec::new());
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let name = path.display().to_string();
        let file = scenario::read(&name, &std::fs::read_to_string(&path).unwrap());
        failed.extend(file.problems.iter().map(ToString::to_string));
        for prepared in &file.scenarios {
            for step in run(&name, prepared).unwrap().steps {
                match step.status {
                    Status::Passed => passed += 1,
                    _ => failed.push(step.line()),
                }
            }
        }
    }
    assert_eq!(failed, Vec::<String>::new());
    passed
}

#[test]
fn the_scenarios_of_the_project_pass_offline() {
    assert!(all_pass("integration/scenarios/l4") > 500);
    assert!(all_pass("integration/scenarios/l7") > 200);
}

#[test]
fn the_tour_passes_offline() {
    assert!(all_pass("assets/lab") > 150);
}
