//! `assets/crds`: what the definitions keep of an object is all that the parser reads of it.

use std::collections::BTreeMap;
use std::path::Path;

use super::read;
use crate::k8s::tree::{Node, Value};
use crate::k8s::{watch, yaml};
use crate::model::Kind;

/// The definitions, by kind.
fn definitions() -> BTreeMap<String, Node> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/crds");
    let load = |entry: Result<std::fs::DirEntry, std::io::Error>| {
        let path = entry.unwrap().path();
        let (mut documents, fault) = yaml::documents(&std::fs::read_to_string(&path).unwrap());
        assert!(fault.is_none() && documents.len() == 1, "{}: {fault:?}", path.display());
        let document = documents.remove(0);
        assert!(document.faults.is_empty(), "{:?}", document.faults);
        let kind = at(&document.root, &["spec", "names", "kind"]).as_str().unwrap().to_owned();
        (kind, document.root)
    };
    std::fs::read_dir(folder).unwrap().map(load).collect()
}

fn at<'a>(node: &'a Node, path: &[&str]) -> &'a Node {
    path.iter().fold(node, |node, key| node.get(key).unwrap_or_else(|| panic!("no {key}")))
}

fn items(node: &Node) -> &[Node] {
    match &node.value {
        Value::Sequence(items) => items,
        other => panic!("{other:?}"),
    }
}

fn schema(definition: &Node) -> &Node {
    at(&items(at(definition, &["spec", "versions"]))[0], &["schema", "openAPIV3Schema"])
}

/// The path of a field that an API server with this schema would prune.
fn pruned(schema: &Node, object: &Node) -> Option<String> {
    if schema.get("x-kubernetes-preserve-unknown-fields").is_some() {
        return None;
    }
    match &object.value {
        Value::Mapping(entries) => entries.iter().find_map(|entry| {
            let under = schema.get("properties").and_then(|properties| properties.get(&entry.key));
            match under.or_else(|| schema.get("additionalProperties")) {
                // The API server knows `metadata` by itself.
                _ if entry.key == "metadata" => None,
                Some(under) => pruned(under, &entry.value).map(|path| format!(".{}{path}", entry.key)),
                None => Some(format!(".{}", entry.key)),
            }
        }),
        Value::Sequence(elements) => elements.iter().find_map(|element| match schema.get("items") {
            Some(under) => pruned(under, element),
            None => Some("[]".to_owned()),
        }),
        _ => None,
    }
}

#[test]
fn every_custom_kind_has_a_definition_where_the_watcher_looks_for_it() {
    let definitions = definitions();
    assert_eq!(definitions.len(), 4);
    for kind in [
        Kind::CiliumNetworkPolicy,
        Kind::CiliumClusterwideNetworkPolicy,
        Kind::CiliumCIDRGroup,
        Kind::ClusterNetworkPolicy,
    ] {
        let definition = &definitions[&kind.to_string()];
        let resource = watch::api_resource(kind);
        let text = |path: &[&str]| at(definition, path).as_str().unwrap().to_owned();
        assert_eq!(text(&["spec", "group"]), resource.group);
        assert_eq!(text(&["spec", "names", "plural"]), resource.plural);
        assert_eq!(text(&["metadata", "name"]), format!("{}.{}", resource.plural, resource.group));
        assert_eq!(text(&["spec", "scope"]) == "Namespaced", kind.is_namespaced());
        let first = &items(at(definition, &["spec", "versions"]))[0];
        assert_eq!(at(first, &["name"]).as_str(), Some(&*resource.version));
    }
}

#[test]
fn no_field_of_a_valid_policy_would_be_pruned() {
    let definitions = definitions();
    let mut checked = 0;
    for file in super::scenarios::files() {
        let manifest = read(&std::fs::read_to_string(&file).unwrap());
        for document in &manifest.documents {
            let Some(definition) = definitions.get(&document.resource.reference().kind.to_string()) else {
                continue;
            };
            assert_eq!(pruned(schema(definition), &document.node), None, "{}", document.position);
            checked += 1;
        }
    }
    assert!(checked >= 60, "{checked}");
}

/// A refused field must reach the agent: pruned, it would be ignored.
#[test]
fn fields_that_are_refused_by_name_are_kept() {
    let definitions = definitions();
    for kind in ["CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"] {
        let rule = at(schema(&definitions[kind]), &["properties", "spec", "properties"]);
        assert!(rule.get("nodeSelector").is_some(), "{kind}");
        let members = |section: &str| at(rule, &[section, "items", "properties"]);
        for (section, names) in [
            ("ingress", ["fromGroups", "fromRequires", "authentication"]),
            ("egressDeny", ["toGroups", "toRequires", "toFQDNs"]),
        ] {
            for name in names {
                assert!(members(section).get(name).is_some(), "{kind} {section} {name}");
            }
        }
        let element = at(members("ingress"), &["toPorts", "items", "properties"]);
        for name in ["listener", "terminatingTLS", "originatingTLS"] {
            assert!(element.get(name).is_some(), "{kind} {name}");
        }
        for name in ["kafka", "l7proto", "l7"] {
            assert!(at(element, &["rules", "properties"]).get(name).is_some(), "{kind} {name}");
        }
    }
}
