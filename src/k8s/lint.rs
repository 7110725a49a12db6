//! The linter over a text: findings with their place in it.
//!
//! Traps that only the text shows come from the reader, the others from [`policy::lint`](crate::policy::lint),
//! which knows field paths and no lines.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::Manifest;
use super::problem::{Position, Problem};
use crate::cluster::Resource;
use crate::model::{Label, LabelSource, Labels, Object, ObjectRef};
use crate::policy::engine::Enforcement;
use crate::policy::lint::{Code, KnownObjects, lint};

/// One trap, with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trap {
    pub position: Position,
    pub code: Code,
    /// `Kind namespace/name`.
    pub object: String,
    pub field_path: String,
    /// What is special about this case.
    pub detail: String,
}

impl fmt::Display for Trap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}: {}", self.position, self.code.severity(), self.code, self.object)?;
        if !self.field_path.is_empty() {
            write!(f, " {}", self.field_path)?;
        }
        write!(f, ": {}", self.code.explanation())?;
        if !self.detail.is_empty() {
            write!(f, " ({})", self.detail)?;
        }
        write!(f, " Suggestion: {}.", self.code.fix())
    }
}

fn from_reader(problem: &Problem) -> Option<Trap> {
    Some(Trap {
        position: problem.position.clone(),
        code: problem.code?,
        object: problem.object.clone().unwrap_or_default(),
        field_path: problem.field_path.clone(),
        detail: problem.message.clone(),
    })
}

/// Every trap of the policies in a text that an agent with this enforcement has, in the order of the text. The pods of the text are taken for all of the cluster when
/// it holds any; a Service's address is what it is, whatever else the text holds.
pub fn traps(manifest: &Manifest, enforcement: Enforcement) -> Vec<Trap> {
    let mut policies = Vec::new();
    let mut documents = BTreeMap::new();
    for document in &manifest.documents {
        if let Resource::Policy(policy) = &document.resource {
            policies.push(Arc::new(policy.clone()));
            documents.insert(policy.object.clone(), document);
        }
    }
    let objects = known(manifest);
    let found = lint(&policies, enforcement, Some(&objects)).into_iter().map(|finding| {
        let position = documents.get(&finding.object).map(|document| document.locate(&finding.path));
        Trap {
            position: position.unwrap_or_default(),
            code: finding.code,
            object: ObjectRef::to_string(&finding.object),
            field_path: finding.path.to_string(),
            detail: finding.detail,
        }
    });
    let mut traps: Vec<Trap> =
        manifest.warnings().chain(&manifest.problems).filter_map(from_reader).chain(found).collect();
    traps.sort_by(|a, b| (&a.position, a.code, &a.field_path).cmp(&(&b.position, b.code, &b.field_path)));
    traps.dedup();
    traps
}

/// Pods with the labels that selectors see, and ClusterIPs, as far as the text tells them.
fn known(manifest: &Manifest) -> KnownObjects {
    let objects = || {
        manifest.documents.iter().filter_map(|document| match &document.resource {
            Resource::Object(object) => Some(object),
            _ => None,
        })
    };
    let namespaces: BTreeMap<&str, _> = objects()
        .filter_map(|object| match object {
            Object::Namespace(namespace) => Some((namespace.name.as_str(), &namespace.labels)),
            _ => None,
        })
        .collect();
    let pods: Vec<Labels> = objects()
        .filter_map(|object| match object {
            Object::Pod(pod) => Some(pod),
            _ => None,
        })
        .map(|pod| {
            let own = pod.labels.iter().map(|(key, value)| Label::k8s(key, value));
            let mut of_namespace: Vec<Label> = namespaces
                .get(pod.namespace.as_str())
                .into_iter()
                .flat_map(|labels| labels.iter())
                .map(|(key, value)| Label::k8s(&format!("io.cilium.k8s.namespace.labels.{key}"), value))
                .collect();
            of_namespace.push(Label::k8s(
                "io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name",
                &pod.namespace,
            ));
            of_namespace.push(Label::new(LabelSource::K8s, "io.kubernetes.pod.namespace", &pod.namespace));
            own.chain(of_namespace).collect()
        })
        .collect();
    let cluster_ips = objects()
        .filter_map(|object| match object {
            Object::Service(service) => Some(service),
            _ => None,
        })
        .flat_map(|service| {
            let name = format!("{}/{}", service.namespace, service.name);
            service.cluster_ips.iter().map(move |address| (*address, name.clone()))
        })
        .collect();
    KnownObjects { pods: (!pods.is_empty()).then_some(pods), cluster_ips }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::{ParseOptions, parse};

    fn codes(text: &str) -> Vec<(u32, &'static str)> {
        let manifest = parse("policy.yaml", text, &ParseOptions::default());
        traps(&manifest, Enforcement::Default)
            .iter()
            .map(|trap| (trap.position.line, trap.code.as_str()))
            .collect()
    }

    #[test]
    fn a_trap_of_the_text_and_a_trap_of_the_meaning_have_their_lines() {
        let text = "\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {namespace: shop, name: web}
spec:
  endpointSelector: {}
  egress:
  - toEndpoints: [{}]
    toPorts: [{ports: [{port: 80, protocol: TCP}]}]
";
        let found = codes(text);
        assert!(found.contains(&(8, "SL009")), "{found:?}");
        assert!(found.iter().any(|(_, code)| *code == "SL001"), "{found:?}");
    }

    #[test]
    fn a_rejected_object_still_gives_its_code() {
        let text = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: range}
spec:
  podSelector: {}
  ingress:
  - ports: [{port: 8080, endPort: 8000}]
";
        assert_eq!(codes(text), [(7, "SL010")]);
    }

    /// The reader takes it for what it was meant to be, so that the compiled policy no longer shows it.
    #[test]
    fn the_misprint_of_the_namespace_label_gives_its_code() {
        let text = "\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {namespace: shop, name: web}
spec:
  endpointSelector: {}
  ingress:
  - fromEndpoints:
    - matchLabels: {k8s.io.kubernetes.pod.namespace: web}
";
        assert_eq!(codes(text), [(8, "SL015")]);
    }

    #[test]
    fn a_cluster_ip_is_named_without_any_pod_in_the_text() {
        let text = "\
apiVersion: v1
kind: Service
metadata: {namespace: default, name: kubernetes}
spec: {clusterIP: 10.96.0.1, ports: [{port: 443}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: api}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
  egress:
  - to: [{ipBlock: {cidr: 10.96.0.1/32}}]
  - ports: [{port: 53, protocol: UDP}]
";
        let found = codes(text);
        assert!(found.contains(&(13, "SL008")), "{found:?}");
        assert!(found.iter().all(|(_, code)| *code != "SL006"), "no pods are known: {found:?}");
    }

    #[test]
    fn an_empty_list_is_named() {
        let text = "\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {namespace: shop, name: deny}
spec: {endpointSelector: {}, ingress: []}
";
        assert!(codes(text).iter().any(|(_, code)| *code == "SL005"));
    }
}
