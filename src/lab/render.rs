//! Completed objects as manifests for the server. PURE.
//!
//! What the lab fills in (addresses, nodes, ports) is written out; policies, groups and secrets are
//! passed on exactly as they were written. JSON is YAML, so documents are JSON behind `---`.

use std::net::IpAddr;

use serde_json::{Map, Value as Json, json};

use crate::k8s::tree::{Node as Tree, Value};
use crate::model::{
    ContainerPort, EndpointSlice, InternalTraffic, Kind, Object, ObjectRef, Pod, Service, TargetPort,
};

/// Documents, one after the other.
pub fn documents(manifests: impl IntoIterator<Item = Json>) -> String {
    manifests.into_iter().map(|manifest| format!("---\n{manifest}\n")).collect()
}

/// A tree as it was written.
pub fn as_written(node: &Tree) -> Json {
    match &node.value {
        Value::Null => Json::Null,
        Value::Bool(value) => json!(value),
        Value::Integer(value) => json!(value),
        Value::Float(value) => json!(value),
        Value::Text(text) => json!(text.text.as_str()),
        Value::Sequence(items) => items.iter().map(as_written).collect(),
        Value::Mapping(entries) => Json::Object(
            entries.iter().map(|entry| (entry.key.to_string(), as_written(&entry.value))).collect(),
        ),
    }
}

/// A cluster object from its model.
pub fn object(object: &Object) -> Json {
    match object {
        Object::Namespace(namespace) => json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": namespace.name, "labels": namespace.labels},
        }),
        Object::Node(node) => json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": node.name, "labels": node.labels},
            "status": {"addresses": node.addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect::<Vec<_>>()},
        }),
        Object::Pod(object) => pod(object),
        Object::Service(object) => service(object),
        Object::EndpointSlice(slice) => endpoint_slice(slice),
    }
}

fn pod(pod: &Pod) -> Json {
    let ports: Vec<Json> = pod.ports.iter().map(container_port).collect();
    let mut spec = json!({
        "serviceAccountName": pod.service_account,
        "hostNetwork": pod.host_network,
        "containers": [{"name": "main", "ports": ports}],
    });
    if let Some(node) = &pod.node {
        spec["nodeName"] = json!(node);
    }
    let mut manifest = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": pod.namespace, "name": pod.name, "labels": pod.labels},
        "spec": spec,
    });
    if !pod.addresses.is_empty() {
        let addresses: Vec<Json> = pod.addresses.iter().map(|address| json!({"ip": address})).collect();
        manifest["status"] = json!({"podIPs": addresses});
    }
    manifest
}

fn container_port(port: &ContainerPort) -> Json {
    let mut value = json!({"containerPort": port.port, "protocol": port.protocol.to_string()});
    if let Some(name) = &port.name {
        value["name"] = json!(name);
    }
    value
}

fn service(service: &Service) -> Json {
    let ports: Vec<Json> = service
        .ports
        .iter()
        .map(|port| {
            let target = match &port.target {
                TargetPort::Number(number) => json!(number),
                TargetPort::Name(name) => json!(name),
            };
            let mut value =
                json!({"port": port.port, "protocol": port.protocol.to_string(), "targetPort": target});
            if let Some(name) = &port.name {
                value["name"] = json!(name);
            }
            value
        })
        .collect();
    let mut spec = Map::from_iter([("ports".to_owned(), json!(ports))]);
    if service.headless {
        spec.insert("clusterIP".to_owned(), json!("None"));
    } else if let Some(first) = service.cluster_ips.first() {
        spec.insert("clusterIP".to_owned(), json!(first));
        spec.insert("clusterIPs".to_owned(), json!(service.cluster_ips));
    }
    if let Some(selector) = &service.selector {
        spec.insert("selector".to_owned(), json!(selector));
    }
    if service.internal_traffic == InternalTraffic::Local {
        spec.insert("internalTrafficPolicy".to_owned(), json!("Local"));
    }
    if let Some(seconds) = service.affinity_secs {
        spec.insert("sessionAffinity".to_owned(), json!("ClientIP"));
        spec.insert("sessionAffinityConfig".to_owned(), json!({"clientIP": {"timeoutSeconds": seconds}}));
    }
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": service.namespace, "name": service.name, "labels": service.labels},
        "spec": spec,
    })
}

/// The object as a server knows it that was told of [`object`].
pub fn reference(object: &ObjectRef) -> ObjectRef {
    match object.kind {
        Kind::EndpointSlice => ObjectRef { name: slice_name(&object.name).into(), ..object.clone() },
        _ => object.clone(),
    }
}

/// A slice of Endpoints is told as a slice of its own, which needs a name that objects can have.
fn slice_name(name: &str) -> String {
    match EndpointSlice::subset_of(name) {
        Some((endpoints, subset)) => format!("{endpoints}.endpoints-subset-{subset}"),
        None => name.to_owned(),
    }
}

fn endpoint_slice(slice: &EndpointSlice) -> Json {
    let first: Option<&IpAddr> = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses).next();
    let endpoints: Vec<Json> = slice
        .endpoints
        .iter()
        .map(|endpoint| {
            let mut value = json!({"addresses": endpoint.addresses, "conditions": {"ready": endpoint.ready}});
            if let Some(node) = &endpoint.node {
                value["nodeName"] = json!(node);
            }
            value
        })
        .collect();
    let ports: Vec<Json> = slice
        .ports
        .iter()
        .map(|port| {
            let mut value = json!({"port": port.port, "protocol": port.protocol.to_string()});
            if let Some(name) = &port.name {
                value["name"] = json!(name);
            }
            value
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": slice.namespace, "name": slice_name(&slice.name),
            "labels": {"kubernetes.io/service-name": slice.service},
        },
        "addressType": if first.is_some_and(IpAddr::is_ipv6) { "IPv6" } else { "IPv4" },
        "endpoints": endpoints,
        "ports": ports,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Resource;
    use crate::k8s::{ParseOptions, parse};

    /// What is rendered means what was read.
    #[test]
    fn a_rendered_object_is_read_back_as_the_same_object() {
        let text = r#"
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: p, labels: {app: p}}
spec: {nodeName: n1, serviceAccountName: robot, containers: [{name: c, ports: [{name: http, containerPort: 80}, {containerPort: 53, protocol: UDP}]}]}
status: {podIPs: [{ip: 10.1.0.1}, {ip: "fd00::1"}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: a, name: s, labels: {tier: data}}
spec: {clusterIP: 10.96.0.7, selector: {app: p}, sessionAffinity: ClientIP, ports: [{name: web, port: 80, targetPort: http}, {name: dns, port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: a, name: headless}
spec: {clusterIP: None, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: a, name: headless-1, labels: {kubernetes.io/service-name: headless}}
addressType: IPv6
endpoints: [{addresses: ["2001:db8::1"], nodeName: n1}, {addresses: ["2001:db8::2"], conditions: {ready: false}}]
ports: [{port: 80, protocol: TCP}]
---
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {zone: z}}
status: {addresses: [{type: InternalIP, address: 172.18.0.11}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: a, labels: {team: red}}
"#;
        let written = parse("f", text, &ParseOptions::default());
        assert_eq!(written.problems, []);
        let rendered = documents(written.documents.iter().map(|document| match &document.resource {
            Resource::Object(model) => object(model),
            other => panic!("{other:?}"),
        }));
        let read = parse("rendered", &rendered, &ParseOptions::default());
        assert_eq!(read.problems, [], "{rendered}");
        let resources = |manifest: &crate::k8s::Manifest| -> Vec<Resource> {
            manifest.documents.iter().map(|document| document.resource.clone()).collect()
        };
        assert_eq!(resources(&read), resources(&written));
    }

    #[test]
    fn a_policy_is_passed_on_as_it_was_written() {
        let text = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: a, name: p}\nspec: {podSelector: {}, ingress: [{ports: [{port: 80}, {port: \"http\"}]}]}\n";
        let tree = parse("f", text, &ParseOptions::default());
        let rendered: Vec<Json> = tree.documents.iter().map(|document| as_written(&document.node)).collect();
        assert_eq!(rendered[0]["spec"]["ingress"][0]["ports"], json!([{"port": 80}, {"port": "http"}]));
    }
}
