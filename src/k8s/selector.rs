//! Kubernetes label selectors -> [`LabelSelector`]s over identity labels.
//!
//! Where a key ends up depends on what is selected: [`Keys`]. Every selector of pods leaves this
//! room with its namespace scope inside ([`in_namespace`], [`in_some_namespace`]), ANDed, so that no
//! operator can get out of it (CVE-2023-41333 in a peer).

use std::collections::BTreeSet;
use std::sync::Arc;

use super::cursor::{Cursor, Fields};
use super::meta::{checked, label_key, label_value};
use super::tree::quoted;
use crate::model::{Identity, LabelSource};
use crate::policy::lint::Code;
use crate::policy::selector::{LabelSelector, Operator, Requirement, SelectorKey};

/// The identity label that holds a pod's namespace.
pub const NAMESPACE_KEY: &str = "io.kubernetes.pod.namespace";
/// What the identity labels that stand for labels of the namespace begin with.
pub const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";
/// A widespread misprint of the namespace label.
const MISPRINT: &str = "k8s.io.kubernetes.pod.namespace";

/// How the keys of a selector are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// Kubernetes: a pod's own labels.
    Pod,
    /// Kubernetes: labels of the pod's namespace.
    Namespace,
    /// Kubernetes and Cilium: labels of a node.
    Node,
    /// Cilium: `source:key`, or a key of any source.
    Cilium,
    /// Cilium: labels of an object that is no endpoint (a Service, a CIDR group). They have no
    /// source, so what the key says of it means nothing.
    Object,
}

/// Reads a `LabelSelector`. Null `matchLabels` and `matchExpressions` are empty.
pub fn read(cursor: &Cursor<'_>, keys: Keys) -> Option<LabelSelector> {
    cursor.object(|fields| requirements(fields, keys)).map(LabelSelector::new)
}

fn requirements(fields: &Fields<'_>, keys: Keys) -> Vec<Requirement> {
    let mut requirements = Vec::new();
    for (key, value) in fields.get("matchLabels").and_then(|labels| labels.entries()).unwrap_or_default() {
        let key = selector_key(&value, key, keys);
        let value = checked(&value, "a label value", label_value);
        if let (Some(key), Some(value)) = (key, value) {
            requirements.push(Requirement { key, operator: Operator::In([Arc::from(value)].into()) });
        }
    }
    for expression in fields.list("matchExpressions") {
        requirements.extend(expression.object(|fields| requirement(fields, keys)).flatten());
    }
    requirements
}

#[derive(Clone, Copy)]
enum OperatorName {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

const OPERATORS: &[(&str, OperatorName)] = &[
    ("In", OperatorName::In),
    ("NotIn", OperatorName::NotIn),
    ("Exists", OperatorName::Exists),
    ("DoesNotExist", OperatorName::DoesNotExist),
];

fn requirement(fields: &Fields<'_>, keys: Keys) -> Option<Requirement> {
    let key = fields.require("key").and_then(|cursor| {
        let text = cursor.string()?;
        selector_key(&cursor, text, keys)
    });
    let operator = fields.require("operator").and_then(|operator| operator.one_of(OPERATORS));
    let list = fields.list("values");
    let values: BTreeSet<Arc<str>> =
        list.iter().filter_map(|value| checked(value, "a label value", label_value).map(Arc::from)).collect();
    let operator = match operator? {
        OperatorName::In | OperatorName::NotIn if list.is_empty() => {
            fields.cursor().error("In and NotIn need at least one of values");
            return None;
        }
        OperatorName::Exists | OperatorName::DoesNotExist if !list.is_empty() => {
            fields.cursor().error("Exists and DoesNotExist take no values");
            return None;
        }
        OperatorName::In => Operator::In(values),
        OperatorName::NotIn => Operator::NotIn(values),
        OperatorName::Exists => Operator::Exists,
        OperatorName::DoesNotExist => Operator::DoesNotExist,
    };
    Some(Requirement { key: key?, operator })
}

/// The key as identities have it. `cursor` is where to report.
fn selector_key(cursor: &Cursor<'_>, text: &str, keys: Keys) -> Option<SelectorKey> {
    let checked = |key: &str| match label_key(key) {
        Ok(()) => Some(()),
        Err(why) => {
            cursor.error(format!("{} is no label key: {why}", quoted(text)));
            None
        }
    };
    match keys {
        Keys::Pod => checked(text).map(|()| k8s_key(text)),
        Keys::Namespace => checked(text).map(|()| k8s_key(&format!("{NAMESPACE_LABELS}{text}"))),
        Keys::Object => cilium_key(cursor, text).map(|key| SelectorKey { source: None, ..key }),
        Keys::Cilium => cilium_key(cursor, text),
        Keys::Node => {
            let key = cilium_key(cursor, text)?;
            let source = match key.source {
                None | Some(LabelSource::K8s | LabelSource::Node) => Some(LabelSource::Node),
                other => other,
            };
            Some(SelectorKey { source, ..key })
        }
    }
}

fn k8s_key(key: &str) -> SelectorKey {
    SelectorKey { source: Some(LabelSource::K8s), key: key.into() }
}

fn cilium_key(cursor: &Cursor<'_>, text: &str) -> Option<SelectorKey> {
    if text == MISPRINT {
        cursor.trap(
            Code::NamespaceLabel,
            format!("{MISPRINT} is read as k8s:{NAMESPACE_KEY}: a colon separates the source"),
        );
        return Some(k8s_key(NAMESPACE_KEY));
    }
    let key = SelectorKey::parse(text);
    if let Some((prefix, _)) = text.split_once(':')
        && *key.key == *text
    {
        let sources: Vec<&str> = LabelSource::ALL.iter().map(|source| source.as_str()).collect();
        cursor.error(format!(
            "found the label source {}, expected one of {}",
            quoted(prefix),
            sources.join(", ")
        ));
        return None;
    }
    // A namespace's label key may be as long as any, behind its prefix.
    let own = key.key.strip_prefix(NAMESPACE_LABELS).unwrap_or(&key.key);
    // `cidr:10.0.0.0/8` and `fqdn:*.example.com` are values more than keys.
    let free = matches!(key.source, Some(LabelSource::Cidr | LabelSource::Fqdn));
    if !free && let Err(why) = label_key(own) {
        cursor.error(format!("{} is no label key: {why}", quoted(text)));
        return None;
    }
    if key.source == Some(LabelSource::Reserved)
        && !Identity::RESERVED.iter().any(|(_, name)| *name == &*key.key)
    {
        cursor.warning(format!("there is no reserved identity {}", quoted(&key.key)));
    }
    Some(key)
}

/// This key, from Kubernetes or from any source.
fn is_k8s(key: &SelectorKey) -> bool {
    matches!(key.source, None | Some(LabelSource::K8s))
}

fn names_namespace(selector: &LabelSelector) -> bool {
    selector
        .names_key(|key| is_k8s(key) && (&*key.key == NAMESPACE_KEY || key.key.starts_with(NAMESPACE_LABELS)))
}

fn names_reserved(selector: &LabelSelector) -> bool {
    selector.names_key(|key| key.source == Some(LabelSource::Reserved))
}

/// Only pods of this namespace, whatever else the selector says.
pub fn in_namespace(selector: &LabelSelector, namespace: &str) -> LabelSelector {
    let operator = Operator::In([Arc::from(namespace)].into());
    selector.and(Requirement { key: k8s_key(NAMESPACE_KEY), operator })
}

/// Only identities that have a namespace: pods.
pub fn in_some_namespace(selector: &LabelSelector) -> LabelSelector {
    selector.and(Requirement { key: k8s_key(NAMESPACE_KEY), operator: Operator::Exists })
}

/// Both.
pub fn both(one: &LabelSelector, other: &LabelSelector) -> LabelSelector {
    LabelSelector::new(one.requirements().iter().chain(other.requirements()).cloned().collect())
}

/// `endpointSelector` of a CNP: the policy's own namespace always holds. A requirement that only
/// other namespaces meet is ignored with a warning; all others stay and can only narrow.
pub fn subject_in_namespace(cursor: &Cursor<'_>, selector: &LabelSelector, namespace: &str) -> LabelSelector {
    let elsewhere = |requirement: &&Requirement| {
        let Requirement { key, operator: Operator::In(values) } = requirement else { return false };
        is_k8s(key) && &*key.key == NAMESPACE_KEY && !values.contains(namespace)
    };
    if selector.requirements().iter().any(|requirement| elsewhere(&requirement)) {
        cursor.trap(
            Code::ForeignNamespace,
            format!("the policy selects pods of its own namespace only: {NAMESPACE_KEY} is ignored, {namespace} holds"),
        );
    }
    let kept = selector.requirements().iter().filter(|requirement| !elsewhere(requirement)).cloned();
    in_namespace(&LabelSelector::new(kept.collect()), namespace)
}

/// `fromEndpoints`/`toEndpoints`: a selector that names neither a namespace nor a reserved identity
/// stays in the policy's namespace (CNP) or selects pods of any namespace (CCNP: empty).
pub fn cilium_peer(selector: &LabelSelector, namespace: &str) -> LabelSelector {
    if names_reserved(selector) || names_namespace(selector) {
        selector.clone()
    } else if namespace.is_empty() {
        in_some_namespace(selector)
    } else {
        in_namespace(selector, namespace)
    }
}
