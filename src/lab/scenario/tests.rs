//! What a file says and what it leaves out.

use super::*;
use crate::cluster::Resource;
use crate::lab::topology::Role;
use crate::model::Object;

fn problems(text: &str) -> Vec<String> {
    read("f.yaml", text).problems.iter().map(ToString::to_string).collect()
}

fn scenario(spec: &str) -> String {
    format!("apiVersion: sluice.dev/v1alpha1\nkind: Scenario\nmetadata: {{name: s}}\nspec:\n{spec}")
}

fn cluster_of(text: &str) -> cluster::Cluster {
    let file = read("f.yaml", text);
    assert_eq!(file.problems, []);
    let prepared = &file.scenarios[0];
    cluster::Cluster::new(&prepared.scenario, &prepared.manifest.documents)
}

#[test]
fn every_kind_of_step_is_read() {
    let text = scenario(
        r#"  nodes: [node1, {name: node2, labels: {role: worker}}]
  externals:
  - name: stripe
    addresses: [203.0.113.10, "2001:db8:1::10"]
    names: [API.stripe.com.]
    cnames: [{name: pay.example.com, target: api.stripe.com}]
    ttl: 30s
    ports: [443/TCP, 53/UDP]
  options: {policyEnforcement: always, emptyRuleLists: ignore, hostFirewall: true, allowLocalhost: policy,
            cidrMatchMode: [nodes], denyResponse: reject, ipFamilies: [IPv4]}
  steps:
  - {from: a/b, to: "c/d:80", expect: allowed}
  - {name: n, from: a/b, to: "svc:c/d:80", http: {method: PUT, path: /x, host: h, headers: {X-A: "1", X-B: ["2", "3"]}}, expect: http-403}
  - {from: a/b, dns: {name: x.example, type: AAAA, protocol: TCP, server: 10.0.0.1}, expect: dns-refused}
  - {from: a/b, to: "api.stripe.com:443", sni: "", expect: tls-reset, because: {direction: egress, by: default-deny}}
  - open: {name: c1, from: "node:node1", to: "external:stripe:443", expect: allowed}
  - {send: c1, http: {path: /y}, expect: denied}
  - {external: {name: stripe, addresses: [203.0.113.99]}}
  - {restart: agent, node: node1}
  - {delete: {kind: NetworkPolicy, namespace: a, name: x}}
  - {wait: 1m5s}
  - apply: |
      kind: nothing
    expect: invalid
    lint: [SL001]
"#,
    );
    let file = read("f.yaml", &text);
    assert_eq!(file.problems, []);
    let scenario = &file.scenarios[0].scenario;
    assert_eq!(scenario.steps.len(), 11);
    assert_eq!(scenario.externals[0].names, ["api.stripe.com"]);
    let Action::Connect(put) = &scenario.steps[1].action else { panic!() };
    assert_eq!(put.http.as_ref().unwrap().headers.len(), 3);
    let Action::Apply(apply) = &scenario.steps[10].action else { panic!() };
    assert_eq!((apply.origin.lines_before, apply.origin.columns_before), (26, 6));
    assert_eq!(scenario.options.families, [Family::IPv4]);
}

#[test]
fn unknown_keys_and_wrong_values_are_problems_with_their_place() {
    let found = problems(&scenario(
        "  steps:\n  - {from: a/b, to: \"c/d:80\", expect: allow}\n  - {from: a/b, too: x, to: \"c/d:80\", expect: allowed}\n  \
         - {send: nobody, expect: allowed}\n  - {from: \"external:none\", to: \"c/d\", expect: denied}\n  - {name: x}\n",
    ));
    assert_eq!(found.len(), 6, "{found:#?}");
    assert!(found[0].starts_with("f.yaml:6:31: error: Scenario s: spec.steps[0].expect: "), "{}", found[0]);
    assert!(found[1].contains("spec.steps[1].too: unknown field"), "{}", found[1]);
}

#[test]
fn a_file_without_a_scenario_is_noted() {
    let file = read("f.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n");
    assert!(file.problems.is_empty() && file.scenarios.is_empty());
    assert_eq!(file.notes.len(), 1);
}

#[test]
fn what_a_file_leaves_out_is_filled_in() {
    let cluster = cluster_of(&format!(
        "{}\n---\napiVersion: v1\nkind: Pod\nmetadata: {{namespace: shop, name: web, labels: {{app: web}}}}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{namespace: shop, name: web}}\nspec: {{selector: {{app: web}}, ports: [{{port: 80}}]}}\n",
        scenario("  steps: []\n")
    ));
    assert_eq!(cluster.nodes(), ["node1"]);
    let pod = cluster.pod("shop", "web").unwrap();
    assert_eq!((pod.node.as_deref(), pod.addresses.len(), pod.ports[0].port), (Some("node1"), 2, 80));
    assert_eq!(cluster.service("shop", "web").unwrap().cluster_ips.len(), 2);
    let namespaces: Vec<String> = cluster
        .resources()
        .values()
        .filter_map(|resource| match resource {
            Resource::Object(Object::Namespace(namespace)) => Some(namespace.name.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(namespaces, ["kube-system", "shop"]);
    let topology = cluster.topology();
    assert_eq!(topology.problems(), Vec::<String>::new());
    assert_eq!(topology.pods.iter().filter(|pod| pod.role == Role::ClusterDns).count(), 1);
}

#[test]
fn a_file_may_bring_its_own_dns() {
    let cluster = cluster_of(&format!(
        "{}\n---\napiVersion: v1\nkind: Pod\nmetadata: {{namespace: kube-system, name: coredns-x, labels: {{k8s-app: kube-dns}}}}\n",
        scenario("  steps: []\n")
    ));
    let dns: Vec<_> =
        cluster.topology().pods.into_iter().filter(|pod| pod.role == Role::ClusterDns).collect();
    assert_eq!(dns.len(), 1);
    assert_eq!(dns[0].name, "coredns-x");
    assert!(dns[0].ports.iter().any(|port| port.port == 53));
}

#[test]
fn a_dump_names_nodes_that_it_does_not_hold() {
    let cluster = cluster_of(&format!(
        "{}\n---\napiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {{namespace: a, name: x}}\n  \
         spec: {{nodeName: worker-7}}\n  status: {{hostIP: 192.168.1.7, podIPs: [{{ip: 10.1.2.3}}]}}\n",
        scenario("  steps: []\n")
    ));
    assert_eq!(cluster.nodes(), ["node1", "worker-7"]);
    assert_eq!(cluster.node("worker-7").unwrap().addresses, ["192.168.1.7".parse::<IpAddr>().unwrap()]);
}

#[test]
fn a_replaced_pod_is_the_same_pod_and_a_deleted_default_stays_deleted() {
    let mut cluster = cluster_of(&format!(
        "{}\n---\napiVersion: v1\nkind: Pod\nmetadata: {{namespace: a, name: x}}\nspec: {{nodeName: node2, containers: [{{name: c, ports: [{{containerPort: 7}}]}}]}}\n",
        scenario("  nodes: [node1, node2]\n  steps: []\n")
    ));
    let before = cluster.pod("a", "x").unwrap().clone();
    let again = crate::k8s::parse(
        "a",
        "apiVersion: v1\nkind: Pod\nmetadata: {namespace: a, name: x, labels: {l: v}}\n",
        &crate::k8s::ParseOptions::default(),
    );
    let resources = cluster.resources().clone();
    cluster.apply(&again.documents);
    let after = cluster.pod("a", "x").unwrap();
    assert_eq!(
        (&after.node, &after.addresses, &after.ports),
        (&before.node, &before.addresses, &before.ports)
    );
    assert_eq!(cluster.changes_from(&resources).len(), 1);
    let other = crate::k8s::parse(
        "a",
        "apiVersion: v1\nkind: Pod\nmetadata: {namespace: a, name: x}\nspec: {containers: [{name: c}]}\n",
        &crate::k8s::ParseOptions::default(),
    );
    cluster.apply(&other.documents);
    let after = cluster.pod("a", "x").unwrap();
    assert_eq!(after.addresses, before.addresses);
    assert_eq!(after.ports[0].port, 80, "its containers are written out, without the port that it had");
    let dns = ObjectRef::new(crate::model::Kind::Pod, "kube-system", "kube-dns");
    cluster.delete(&dns).unwrap();
    assert!(cluster.pod("kube-system", "kube-dns").is_none());
    assert!(cluster.delete(&ObjectRef::new(crate::model::Kind::Pod, "a", "none")).is_err());
}
