//! The identity labels of a pod.
//!
//! Contract: namespace, namespace labels, service account and cluster are facts of the cluster. A
//! pod cannot supply or override them by labels of its own (CVE-2023-39347 and CVE-2023-41333 in a
//! peer): its labels under those keys are ignored, and facts are set last.

use std::net::IpAddr;

use crate::model::{ContainerPort, Label, Labels, LabelsBuilder, Namespace, Pod};

use super::LabelFilter;

pub const NAMESPACE_KEY: &str = "io.kubernetes.pod.namespace";
pub const NAMESPACE_LABELS_PREFIX: &str = "io.cilium.k8s.namespace.labels.";
pub const SERVICE_ACCOUNT_KEY: &str = "io.cilium.k8s.policy.serviceaccount";
pub const CLUSTER_KEY: &str = "io.cilium.k8s.policy.cluster";

/// The key says something that only the cluster may say.
pub fn is_meta_key(key: &str) -> bool {
    key == NAMESPACE_KEY || key.starts_with("io.cilium.k8s.") || key.starts_with("io.sluice.")
}

/// What the loaded policies make relevant beyond the filter.
pub trait Relevance {
    /// A selector names this key of pod labels.
    fn names_key(&self, key: &str) -> bool;

    /// Labels of the container ports that some rule uses by name.
    fn port_labels(&self, ports: &[ContainerPort]) -> Vec<Label>;
}

/// The labels under which a pod gets its identity.
pub fn identity_labels(
    pod: &Pod,
    namespace: &Namespace,
    cluster: &str,
    filter: &LabelFilter,
    relevance: &impl Relevance,
) -> Labels {
    let mut labels = LabelsBuilder::default();
    for (key, value) in &pod.labels {
        if !is_meta_key(key) && (filter.is_relevant(key) || relevance.names_key(key)) {
            labels.set(Label::k8s(key, value));
        }
    }
    for label in relevance.port_labels(&pod.ports) {
        labels.set(label);
    }
    for (key, value) in &namespace.labels {
        labels.set(Label::k8s(&format!("{NAMESPACE_LABELS_PREFIX}{key}"), value));
    }
    labels.set(Label::k8s(NAMESPACE_KEY, &namespace.name));
    labels.set(Label::k8s(SERVICE_ACCOUNT_KEY, &pod.service_account));
    labels.set(Label::k8s(CLUSTER_KEY, cluster));
    labels.build()
}

/// The pod has a network namespace and addresses of its own.
pub fn has_own_addresses(pod: &Pod) -> bool {
    !pod.host_network && !pod.addresses.is_empty()
}

/// Addresses at which a pod is reached: its own, or those of its node.
pub fn reachable_addresses<'a>(pod: &'a Pod, node: &'a [IpAddr]) -> &'a [IpAddr] {
    if pod.host_network && pod.addresses.is_empty() { node } else { &pod.addresses }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    struct Named(&'static [&'static str]);

    impl Relevance for Named {
        fn names_key(&self, key: &str) -> bool {
            self.0.contains(&key)
        }

        fn port_labels(&self, ports: &[ContainerPort]) -> Vec<Label> {
            ports.iter().map(|port| Label::k8s("io.sluice.named-port.http", &port.port.to_string())).collect()
        }
    }

    fn pod(labels: &[(&str, &str)]) -> Pod {
        Pod {
            namespace: "shop".into(),
            name: "web".into(),
            labels: labels.iter().copied().collect(),
            node: None,
            addresses: vec![],
            host_network: false,
            service_account: "default".into(),
            controller: None,
            ports: vec![],
        }
    }

    fn namespace() -> Namespace {
        Namespace {
            name: "shop".into(),
            labels: [("kubernetes.io/metadata.name", "shop"), ("team", "a")].into(),
        }
    }

    fn labels(pod: &Pod, named: &'static [&'static str]) -> String {
        identity_labels(pod, &namespace(), "c1", &LabelFilter::default(), &Named(named)).to_string()
    }

    #[test]
    fn a_pod_has_its_own_labels_and_the_facts_of_the_cluster() {
        assert_eq!(
            labels(&pod(&[("app", "web"), ("pod-template-hash", "x")]), &[]),
            "k8s:app=web,k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop,\
             k8s:io.cilium.k8s.namespace.labels.team=a,k8s:io.cilium.k8s.policy.cluster=c1,\
             k8s:io.cilium.k8s.policy.serviceaccount=default,k8s:io.kubernetes.pod.namespace=shop"
        );
    }

    #[test]
    fn a_key_that_a_selector_names_counts() {
        let pod = pod(&[("pod-template-hash", "x")]);
        assert!(labels(&pod, &["pod-template-hash"]).contains("k8s:pod-template-hash=x"));
    }

    #[test]
    fn cve_2023_39347_a_pod_cannot_fake_what_the_cluster_says() {
        let honest = labels(&pod(&[("app", "web")]), &[]);
        for key in [
            "io.kubernetes.pod.namespace",
            "io.cilium.k8s.namespace.labels.team",
            "io.cilium.k8s.namespace.labels.fake",
            "io.cilium.k8s.policy.serviceaccount",
            "io.cilium.k8s.policy.cluster",
            "io.sluice.named-port.http",
        ] {
            let faked = pod(&[("app", "web"), (key, "evil")]);
            assert_eq!(labels(&faked, &[]), honest, "{key}");
            let all: &'static [&'static str] = &[
                "io.kubernetes.pod.namespace",
                "io.cilium.k8s.namespace.labels.fake",
                "io.cilium.k8s.policy.cluster",
                "io.sluice.named-port.http",
            ];
            assert_eq!(labels(&faked, all), honest, "{key}, named by a selector");
        }
    }

    #[test]
    fn a_port_label_is_set_after_the_labels_of_the_pod() {
        let mut pod = pod(&[("io.sluice.named-port.http", "1")]);
        pod.ports.push(ContainerPort { name: Some("http".into()), port: 80, protocol: Protocol::Tcp });
        assert!(labels(&pod, &[]).contains("k8s:io.sluice.named-port.http=80"));
    }
}
