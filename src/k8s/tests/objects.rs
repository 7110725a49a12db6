//! Namespace, Pod, Node, Secret, Service, Endpoints and EndpointSlice.

use super::{read, rejected, resource, shown};
use crate::cluster::Resource;
use crate::model::{
    ContainerPort, EndpointSlice, Namespace, Node, Object, Pod, Protocol, Service, TargetPort,
};

fn object(text: &str) -> Object {
    match resource(text) {
        Resource::Object(object) => object,
        other => panic!("{other:?}"),
    }
}

fn pod(lines: &str) -> Pod {
    match object(&format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a, labels: {{app: web}}}}\n{lines}"))
    {
        Object::Pod(pod) => pod,
        other => panic!("{other:?}"),
    }
}

fn reject_pod(lines: &str, words: &[&str]) {
    rejected(&format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\n{lines}"), words);
}

fn service(spec: &str) -> Service {
    match object(&service_text(spec)) {
        Object::Service(service) => service,
        other => panic!("{other:?}"),
    }
}

fn service_text(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {spec}\n")
}

fn slices(text: &str) -> Vec<EndpointSlice> {
    let manifest = read(text);
    assert!(manifest.is_valid(), "{}", shown(&manifest));
    let slice = |document: crate::k8s::Document| match document.resource {
        Resource::Object(Object::EndpointSlice(slice)) => slice,
        other => panic!("{other:?}"),
    };
    manifest.documents.into_iter().map(slice).collect()
}

#[test]
fn a_namespace_always_has_its_name_as_a_label() {
    let Object::Namespace(Namespace { name, labels }) =
        object("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: web}}\n")
    else {
        panic!()
    };
    assert_eq!(name, "shop");
    assert_eq!(&labels["kubernetes.io/metadata.name"], "shop");
    assert_eq!(&labels["team"], "web");
    rejected("apiVersion: v1\nkind: Namespace\nmetadata: {name: a.b}\n", &["not a namespace name"]);
}

#[test]
fn a_namespace_cannot_take_the_name_label_of_another_one() {
    let Object::Namespace(namespace) = object(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: evil, labels: {kubernetes.io/metadata.name: kube-system}}\n",
    ) else {
        panic!()
    };
    assert_eq!(&namespace.labels["kubernetes.io/metadata.name"], "evil");
}

#[test]
fn a_pod_needs_no_spec() {
    let pod = pod("");
    assert_eq!((pod.namespace.as_str(), pod.service_account.as_str()), ("default", "default"));
    assert!(pod.addresses.is_empty() && pod.ports.is_empty() && pod.node.is_none() && !pod.host_network);
}

#[test]
fn a_pod_has_the_ports_of_its_containers_and_sidecars() {
    let pod = pod(
        "spec:\n  nodeName: n1\n  serviceAccountName: sa\n  hostNetwork: true\n  containers:\n  - {name: a, ports: [{name: http, containerPort: 80}, {containerPort: 53, protocol: UDP}]}\n  initContainers:\n  - {name: setup, ports: [{containerPort: 1}]}\n  - {name: proxy, restartPolicy: Always, ports: [{name: mesh, containerPort: 15001}]}\n",
    );
    let port =
        |name: Option<&str>, port, protocol| ContainerPort { name: name.map(str::to_owned), port, protocol };
    assert_eq!(
        pod.ports,
        [
            port(Some("http"), 80, Protocol::Tcp),
            port(None, 53, Protocol::Udp),
            port(Some("mesh"), 15001, Protocol::Tcp)
        ]
    );
    assert_eq!((pod.node.as_deref(), &*pod.service_account, pod.host_network), (Some("n1"), "sa", true));
}

#[test]
fn a_pod_has_one_address_of_each_family() {
    let pod = pod("status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: \"fd00::1\"}]}");
    assert_eq!(pod.addresses, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
    reject_pod(
        "status: {podIPs: [{ip: 10.0.0.1}, {ip: 10.0.0.2}]}",
        &["status.podIPs[1].ip", "second address"],
    );
    reject_pod("status: {podIPs: [{ip: 10.0.0.01}]}", &["expected an IPv4 or IPv6 address"]);
    reject_pod("status: {podIPs: [{ip: \"::ffff:10.0.0.1\"}]}", &["without ::ffff:"]);
    reject_pod("status: {podIPs: [{ip: 10}]}", &["found the number 10"]);
}

#[test]
fn a_finished_pod_has_no_address() {
    assert!(pod("status: {phase: Succeeded, podIPs: [{ip: 10.0.0.1}]}").addresses.is_empty());
    assert!(pod("status: {phase: Failed, podIP: 10.0.0.1}").addresses.is_empty());
    assert_eq!(pod("status: {phase: Running, podIP: 10.0.0.1}").addresses.len(), 1);
}

#[test]
fn pod_fields_are_checked_down_to_the_ports() {
    reject_pod("spec: {hostNetwork: \"yes\"}", &["spec.hostNetwork", "expected true or false"]);
    reject_pod("spec: {hostNetworks: true}", &["did you mean hostNetwork?"]);
    reject_pod("spec: {containers: [{port: []}]}", &["spec.containers[0].port", "unknown field"]);
    reject_pod("spec: {containers: [{ports: [{containerPort: 0}]}]}", &["from 1 to 65535"]);
    reject_pod(
        "spec: {containers: [{ports: [{containerPort: \"80\"}]}]}",
        &["found \"80\", expected a number"],
    );
    reject_pod("spec: {containers: [{ports: [{containerPort: 80, protocol: tcp}]}]}", &["did you mean TCP?"]);
    reject_pod("spec: {containers: [{ports: [{containerPort: 80, name: HTTP}]}]}", &["not a port name"]);
}

#[test]
fn a_node_has_its_internal_and_external_addresses() {
    let Object::Node(Node { addresses, .. }) = object(
        "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nstatus: {addresses: [{type: InternalIP, address: 172.18.0.1}, {type: Hostname, address: n1}, {type: ExternalIP, address: 203.0.113.1}]}\n",
    ) else {
        panic!()
    };
    assert_eq!(addresses.len(), 2);
}

#[test]
fn a_secret_is_decoded_and_never_repeated() {
    let Resource::Secret(secret) = resource(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {token: aHVudGVyMg==}\nstringData: {other: plain}\n",
    ) else {
        panic!()
    };
    assert_eq!(secret.data["token"], b"hunter2");
    assert_eq!(secret.data["other"], b"plain");
    let manifest = read(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {token: hunter2!}\nstringData: {n: 12345}\n",
    );
    let found = shown(&manifest);
    assert!(found.contains("data[token]: expected base64") && found.contains("stringData[n]"), "{found}");
    assert!(!found.contains("hunter2") && !found.contains("12345"), "{found}");
}

#[test]
fn a_service_port_goes_to_its_target() {
    let service = service(
        "{selector: {app: web}, clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, \"fd00:96::1\"], ports: [{name: a, port: 80, targetPort: http}, {name: b, port: 81, targetPort: 8081}, {name: c, port: 53, protocol: UDP}]}",
    );
    let targets: Vec<&TargetPort> = service.ports.iter().map(|port| &port.target).collect();
    assert_eq!(
        targets,
        [&TargetPort::Name("http".into()), &TargetPort::Number(8081), &TargetPort::Number(53)]
    );
    assert_eq!(service.cluster_ips.len(), 2);
    assert!(!service.headless);
}

#[test]
fn headless_and_external_services_have_no_address() {
    assert!(service("{clusterIP: None, ports: [{port: 80}]}").headless);
    assert!(service("{type: ExternalName, externalName: example.com}").headless);
    assert_eq!(service("{ports: [{port: 80}]}").selector, None);
}

#[test]
fn session_affinity_has_upstreams_default() {
    assert_eq!(service("{ports: [{port: 80}], sessionAffinity: ClientIP}").affinity_secs, Some(10_800));
    assert_eq!(
        service("{ports: [{port: 80}], sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}}").affinity_secs,
        Some(60)
    );
    assert_eq!(service("{ports: [{port: 80}], sessionAffinity: None}").affinity_secs, None);
}

#[test]
fn service_ports_are_checked() {
    rejected(
        &service_text("{ports: [{port: 80}, {port: 81}]}"),
        &["spec.ports[0]", "each of several ports needs one"],
    );
    rejected(&service_text("{ports: [{name: a, port: 80}, {name: b, port: 80}]}"), &["listed twice"]);
    rejected(&service_text("{ports: [{name: a, port: 80}, {name: a, port: 81}]}"), &["used by another one"]);
    rejected(&service_text("{ports: [{port: 80, targetPort: 70000}]}"), &["spec.ports[0].targetPort"]);
    rejected(&service_text("{type: Internal}"), &["spec.type", "expected one of"]);
}

#[test]
fn an_endpoint_slice_belongs_to_the_service_of_its_label() {
    let slices = slices(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a-1, labels: {kubernetes.io/service-name: a}}\naddressType: IPv4\nendpoints:\n- {addresses: [10.0.0.1], nodeName: n1}\n- {addresses: [10.0.0.2], conditions: {ready: false}}\nports: [{name: http, port: 8080}, {port: 53, protocol: UDP}]\n",
    );
    assert_eq!(slices[0].service, "a");
    assert_eq!(slices[0].endpoints.iter().map(|endpoint| endpoint.ready).collect::<Vec<_>>(), [true, false]);
    assert_eq!(slices[0].ports.len(), 2);
}

/// As clusters export `default/kubernetes`.
#[test]
fn endpoints_and_a_slice_of_one_name_are_two_objects() {
    let slices = slices(
        "apiVersion: v1\nkind: Endpoints\nmetadata: {name: a}\nsubsets: [{addresses: [{ip: 10.0.0.1}], ports: [{port: 80}]}]\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a, labels: {kubernetes.io/service-name: a}}\naddressType: IPv6\nendpoints: [{addresses: [\"2001:db8::1\"]}]\nports: [{port: 80}]\n",
    );
    let names: Vec<(&str, &str)> = slices.iter().map(|slice| (&*slice.name, &*slice.service)).collect();
    assert_eq!(names, [("a:1", "a"), ("a", "a")]);
}

#[test]
fn endpoints_become_one_slice_for_each_subset() {
    let slices = slices(
        "apiVersion: v1\nkind: Endpoints\nmetadata: {name: a}\nsubsets:\n- {addresses: [{ip: 10.0.0.1}], notReadyAddresses: [{ip: 10.0.0.2}], ports: [{port: 80}]}\n- {addresses: [{ip: 10.0.0.3}], ports: [{port: 81}]}\n",
    );
    let names: Vec<(&str, &str)> = slices.iter().map(|slice| (&*slice.name, &*slice.service)).collect();
    assert_eq!(names, [("a:1", "a"), ("a:2", "a")]);
    assert_eq!(slices[0].endpoints.iter().map(|endpoint| endpoint.ready).collect::<Vec<_>>(), [true, false]);
}
