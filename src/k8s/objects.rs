//! Namespace, Pod, Node and Secret.
//!
//! Only what the model needs is read; of the rest, field names are checked down to the containers.

use std::collections::BTreeMap;
use std::net::IpAddr;

use base64::Engine;

use super::ParseOptions;
use super::cursor::{Cursor, Fields};
use super::meta::{self, Meta, Scope, checked, port_name};
use super::tree::quoted;
use crate::cluster::{Resource, Secret};
use crate::model::{ContainerPort, Family, Namespace, Node, Object, Pod, Protocol};

const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// `metadata` of an object with a namespace.
pub fn namespaced(fields: &Fields<'_>, options: &ParseOptions) -> Option<Meta> {
    meta::read(fields, Scope::Namespaced { default: &options.default_namespace })
}

pub fn namespace(fields: &Fields<'_>) -> Option<Resource> {
    fields.accept(&["spec", "status"]);
    let Meta { name, mut labels, .. } = meta::read(fields, Scope::Cluster)?;
    if let Err(why) = meta::dns_label(&name) {
        fields.cursor().error(format!("{} is not a namespace name: {why}", quoted(&name)));
    }
    // The API server sets this label on every namespace, whatever the object says.
    if let Some(other) = labels.insert(NAMESPACE_NAME_LABEL.to_owned(), name.clone())
        && other != name
    {
        fields.cursor().warning(format!("the API server sets the label {NAMESPACE_NAME_LABEL} to {name}"));
    }
    Some(Resource::Object(Object::Namespace(Namespace { name, labels })))
}

const POD_SPEC_FIELDS: &[&str] = &[
    "activeDeadlineSeconds",
    "affinity",
    "automountServiceAccountToken",
    "dnsConfig",
    "dnsPolicy",
    "enableServiceLinks",
    "ephemeralContainers",
    "hostAliases",
    "hostIPC",
    "hostPID",
    "hostUsers",
    "hostname",
    "hostnameOverride",
    "imagePullSecrets",
    "nodeSelector",
    "os",
    "overhead",
    "preemptionPolicy",
    "priority",
    "priorityClassName",
    "readinessGates",
    "resourceClaims",
    "resources",
    "restartPolicy",
    "runtimeClassName",
    "schedulerName",
    "schedulingGates",
    "securityContext",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "subdomain",
    "terminationGracePeriodSeconds",
    "tolerations",
    "topologySpreadConstraints",
    "volumes",
    "workloadRef",
];

const CONTAINER_FIELDS: &[&str] = &[
    "name",
    "image",
    "args",
    "command",
    "env",
    "envFrom",
    "imagePullPolicy",
    "lifecycle",
    "livenessProbe",
    "readinessProbe",
    "resizePolicy",
    "resources",
    "restartPolicyRules",
    "securityContext",
    "startupProbe",
    "stdin",
    "stdinOnce",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "tty",
    "volumeDevices",
    "volumeMounts",
    "workingDir",
];

/// What the spec of a pod says that matters here.
#[derive(Default)]
struct PodSpec {
    node: Option<String>,
    host_network: bool,
    service_account: Option<String>,
    ports: Vec<ContainerPort>,
}

pub fn pod(fields: &Fields<'_>, options: &ParseOptions) -> Option<Resource> {
    let meta = namespaced(fields, options);
    let spec = fields.get("spec").and_then(|spec| spec.object(pod_spec)).unwrap_or_default();
    let addresses = fields.get("status").map(|status| pod_addresses(&status)).unwrap_or_default();
    let meta = meta?;
    Some(Resource::Object(Object::Pod(Pod {
        namespace: meta.namespace,
        name: meta.name,
        labels: meta.labels,
        node: spec.node,
        addresses,
        host_network: spec.host_network,
        service_account: spec.service_account.unwrap_or_else(|| "default".to_owned()),
        controller: meta.controller,
        ports: spec.ports,
    })))
}

fn pod_spec(spec: &Fields<'_>) -> PodSpec {
    spec.accept(POD_SPEC_FIELDS);
    let text = |field: Option<Cursor<'_>>| {
        field.and_then(|field| field.string()).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let old_account = text(spec.get("serviceAccount"));
    let mut ports = Vec::new();
    for container in spec.list("containers") {
        container.object(|container| container_ports(container, &mut ports));
    }
    for container in spec.list("initContainers") {
        // Only a restartable init container (a sidecar) serves while the pod runs.
        let mut own = Vec::new();
        let restarts = container.object(|container| container_ports(container, &mut own));
        if restarts == Some(true) {
            ports.append(&mut own);
        }
    }
    PodSpec {
        node: text(spec.get("nodeName")),
        host_network: spec.get("hostNetwork").and_then(|field| field.boolean()).unwrap_or_default(),
        service_account: text(spec.get("serviceAccountName")).or(old_account),
        ports,
    }
}

/// Adds the ports of a container; says whether it has `restartPolicy: Always`.
fn container_ports(container: &Fields<'_>, ports: &mut Vec<ContainerPort>) -> bool {
    container.accept(CONTAINER_FIELDS);
    for port in container.list("ports") {
        port.object(|port| {
            port.accept(&["hostIP", "hostPort"]);
            let name = port.get("name").and_then(|name| checked(&name, "a port name", port_name));
            let number = port.require("containerPort").and_then(|number| number.port());
            let protocol = transport(port);
            if let (Some(port), Some(protocol)) = (number, protocol) {
                ports.push(ContainerPort { name: name.map(str::to_owned), port, protocol });
            }
        });
    }
    container.get("restartPolicy").and_then(|policy| policy.string()) == Some("Always")
}

/// `protocol`: TCP (the default), UDP or SCTP.
pub fn transport(fields: &Fields<'_>) -> Option<Protocol> {
    const TRANSPORTS: &[(&str, Protocol)] =
        &[("TCP", Protocol::Tcp), ("UDP", Protocol::Udp), ("SCTP", Protocol::Sctp)];
    match fields.get("protocol") {
        Some(protocol) => protocol.one_of(TRANSPORTS),
        None => Some(Protocol::Tcp),
    }
}

/// `status.podIPs`, or `status.podIP`. A pod that has finished has none: its addresses may already
/// belong to another one.
fn pod_addresses(status: &Cursor<'_>) -> Vec<IpAddr> {
    let read = |status: &Fields<'_>| {
        status.accept_all();
        let mut addresses: Vec<IpAddr> = Vec::new();
        for entry in status.list("podIPs") {
            entry.object(|entry| {
                if let Some(field) = entry.require("ip")
                    && let Some(address) = address(&field)
                {
                    if addresses.iter().any(|other| Family::of(*other) == Family::of(address)) {
                        field.error(format!(
                            "{address} is a second address of its family, a pod has one of each"
                        ));
                    }
                    addresses.push(address);
                }
            });
        }
        if let Some(single) = status.get("podIP").filter(|field| field.node.as_str() != Some(""))
            && let Some(single) = address(&single)
            && addresses.is_empty()
        {
            addresses.push(single);
        }
        match status.get("phase").and_then(|phase| phase.string()) {
            Some("Succeeded" | "Failed") => Vec::new(),
            _ => addresses,
        }
    };
    status.object(read).unwrap_or_default()
}

/// An IP address in its usual form. IPv4 in IPv6 notation is refused: the two are one address, and
/// a rule for one would miss the other.
pub fn address(cursor: &Cursor<'_>) -> Option<IpAddr> {
    let text = cursor.string()?;
    match text.parse() {
        Ok(IpAddr::V6(address)) if address.to_ipv4_mapped().is_some() => {
            cursor.error(format!("found {}, expected the IPv4 address without ::ffff:", quoted(text)));
            None
        }
        Ok(address) => Some(address),
        Err(_) => {
            cursor.error(format!("found {}, expected an IPv4 or IPv6 address", quoted(text)));
            None
        }
    }
}

pub fn node(fields: &Fields<'_>) -> Option<Resource> {
    fields.accept(&["spec"]);
    let meta = meta::read(fields, Scope::Cluster);
    let mut addresses = Vec::new();
    if let Some(status) = fields.get("status") {
        status.object(|status| {
            status.accept_all();
            for entry in status.list("addresses") {
                entry.object(|entry| {
                    let kind = entry.require("type").and_then(|kind| kind.string());
                    let field = entry.require("address");
                    if let (Some("InternalIP" | "ExternalIP"), Some(field)) = (kind, field) {
                        addresses.extend(address(&field));
                    }
                });
            }
        });
    }
    let meta = meta?;
    addresses.dedup();
    Some(Resource::Object(Object::Node(Node { name: meta.name, labels: meta.labels, addresses })))
}

pub fn secret(fields: &Fields<'_>, options: &ParseOptions) -> Option<Resource> {
    fields.accept(&["type", "immutable"]);
    let meta = namespaced(fields, options);
    let mut data = BTreeMap::new();
    let entries = |name| fields.get(name).and_then(|field| field.entries()).unwrap_or_default();
    for (key, value) in entries("data") {
        let Some(text) = (if value.is_null() { Some("") } else { secret_text(&value) }) else { continue };
        match base64::engine::general_purpose::STANDARD.decode(text) {
            Ok(bytes) => {
                data.insert(key.to_owned(), bytes);
            }
            Err(_) => value.error("expected base64"),
        }
    }
    for (key, value) in entries("stringData") {
        if let Some(text) = secret_text(&value) {
            data.insert(key.to_owned(), text.as_bytes().to_vec());
        }
    }
    let meta = meta?;
    Some(Resource::Secret(Secret { namespace: meta.namespace, name: meta.name, data }))
}

/// A string whose content no message may repeat.
fn secret_text<'a>(value: &Cursor<'a>) -> Option<&'a str> {
    let text = value.node.as_str();
    if text.is_none() {
        value.error("expected a string (put it in quotes)");
    }
    text
}
