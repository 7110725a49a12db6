//! Traps of selectors and addresses: nothing selected, namespace labels misspelt, Services by
//! their ClusterIP.

use super::{Code, Finding, KnownObjects, Site};
use crate::model::LabelSource;
use crate::policy::rule::{Peer, Peers, Rule, Subject};
use crate::policy::selector::{LabelSelector, SelectorKey};

const NAMESPACE: &str = "io.kubernetes.pod.namespace";
const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";

pub(super) fn check(site: &Site<'_>, objects: Option<&KnownObjects>, findings: &mut Vec<Finding>) {
    if let Subject::Pods(Some(selector)) = &site.spec.subject {
        let field = if site.is_cilium() { "endpointSelector" } else { "podSelector" };
        let path = format!("{}.{field}", site.path());
        misspelt(site, selector, &path, findings);
        if objects.is_some_and(|objects| selects_nothing(selector, objects)) {
            findings.push(Finding::new(Code::SelectsNothing, site.object, &path, ""));
        }
    }
    for rule in &site.spec.rules {
        let Peers::OneOf(peers) = &rule.peers else { continue };
        for peer in peers {
            if let Peer::Pods(selector) = peer {
                misspelt(site, selector, &rule.path, findings);
                if objects.is_some_and(|objects| selects_nothing(selector, objects)) {
                    findings.push(Finding::new(Code::SelectsNothing, site.object, &rule.path, "as a peer"));
                }
            }
            service_address(site, rule, peer, objects, findings);
        }
    }
}

/// Selectors of reserved identities are left out: those are not pods.
fn selects_nothing(selector: &LabelSelector, objects: &KnownObjects) -> bool {
    objects.pods.as_ref().is_some_and(|pods| {
        !selector.names_key(|key| key.source == Some(LabelSource::Reserved))
            && !pods.iter().any(|labels| selector.matches(labels))
    })
}

fn misspelt(site: &Site<'_>, selector: &LabelSelector, path: &str, findings: &mut Vec<Finding>) {
    for requirement in selector.requirements() {
        if let Some(meant) = meant(site, &requirement.key) {
            let detail = format!("{} instead of {meant}", requirement.key.key);
            findings.push(Finding::new(Code::NamespaceLabel, site.object, path, detail));
        }
    }
}

/// What a key was probably meant to be.
fn meant(site: &Site<'_>, key: &SelectorKey) -> Option<String> {
    let text = &*key.key;
    if !matches!(key.source, None | Some(LabelSource::K8s))
        || text == NAMESPACE
        || text.starts_with(NAMESPACE_LABELS)
    {
        return None;
    }
    if text.starts_with("io.kubernetes.pod.name") || text.starts_with("k8s.io.kubernetes.pod.namespace") {
        return Some(NAMESPACE.to_owned());
    }
    if text == "kubernetes.io/metadata.name" && site.is_cilium() {
        return Some(format!("{NAMESPACE_LABELS}{text}"));
    }
    let rest = text.strip_prefix("io.cilium.k8s.namespace")?;
    let label = rest.trim_start_matches(['.', '-', '/']);
    let label = ["labels", "label"].iter().find_map(|word| label.strip_prefix(word)).unwrap_or(label);
    Some(format!("{NAMESPACE_LABELS}{}", label.trim_start_matches(['.', '-', '/'])))
}

fn service_address(
    site: &Site<'_>,
    rule: &Rule,
    peer: &Peer,
    objects: Option<&KnownObjects>,
    findings: &mut Vec<Finding>,
) {
    let (Peer::Address(set) | Peer::Cidr(set), Some(objects)) = (peer, objects) else { return };
    if set.cidr.prefix_len() != set.cidr.max_prefix_len() {
        return;
    }
    let services = objects.cluster_ips.iter().filter(|(address, _)| set.cidr.contains(address));
    for (address, service) in services {
        let detail = format!("{address} is the Service {service}");
        findings.push(Finding::new(Code::ServiceAddress, site.object, &rule.path, detail));
    }
}
