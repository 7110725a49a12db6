//! Documents, Lists, positions, unknown fields, duplicates.

use super::{cnp, knp, problems, read, rejected, shown, warnings};
use crate::cluster::Resource;
use crate::k8s::{Origin, ParseOptions, UnknownFields, parse, parse_at, parse_object};
use crate::model::{Kind, Object};

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {namespace: shop, name: a}\n";

#[test]
fn documents_are_kept_in_order_and_empty_ones_are_skipped() {
    let manifest =
        read(&format!("---\n---\n{POD}---\n# nothing\n---\n{}", POD.replace("name: a", "name: b")));
    assert!(manifest.is_valid());
    let names: Vec<String> =
        manifest.documents.iter().map(|document| document.resource.reference().path()).collect();
    assert_eq!(names, ["shop/a", "shop/b"]);
    assert_eq!(manifest.documents[0].position.line, 3);
}

#[test]
fn a_list_is_unpacked() {
    let manifest = read(
        "apiVersion: v1\nkind: List\nmetadata: {resourceVersion: \"\"}\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: shop}\n- apiVersion: v1\n  kind: Pod\n  metadata: {namespace: shop, name: a}\n",
    );
    assert!(manifest.is_valid(), "{}", shown(&manifest));
    assert_eq!(manifest.documents.len(), 2);
    assert_eq!(manifest.documents[1].position.line, 8);
}

#[test]
fn json_is_read_as_well() {
    let text = "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Pod\",\n\t\"metadata\": {\"name\": \"a\"}\n}\n";
    assert_eq!(read(text).documents.len(), 1);
}

#[test]
fn other_kinds_are_skipped_with_a_note() {
    let manifest = read("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {replicas: 3}\n");
    assert!(manifest.is_valid());
    assert!(manifest.documents.is_empty());
    assert!(manifest.skipped[0].to_string().contains("\"apps/v1\" \"Deployment\" is not read"));
    let manifest = read("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolcy\nmetadata: {name: a}\n");
    assert!(
        manifest.skipped[0].message.contains("did you mean CiliumNetworkPolicy?"),
        "{:?}",
        manifest.skipped
    );
}

#[test]
fn a_known_kind_of_another_version_is_an_error_because_skipping_it_would_open_something() {
    rejected(
        "apiVersion: networking.k8s.io/v1beta1\nkind: NetworkPolicy\nmetadata: {name: a}\n",
        &["NetworkPolicy is read in networking.k8s.io/v1", "v1beta1"],
    );
    rejected("apiVersion: v2\nkind: Pod\nmetadata: {name: a}\n", &["Pod is read in v1"]);
}

#[test]
fn own_kinds_are_handed_on_with_their_tree() {
    let manifest =
        read("apiVersion: sluice.dev/v1alpha1\nkind: Scenario\nmetadata: {name: a}\nspec: {steps: []}\n");
    assert_eq!(manifest.others[0].kind, "Scenario");
    assert!(manifest.others[0].node.get("spec").is_some());
}

#[test]
fn an_unknown_field_is_an_error_with_line_column_path_and_suggestion() {
    let found = problems(&knp("podSelector: {}\ningres: []"));
    assert_eq!(
        found,
        "test.yaml:6:3: error: NetworkPolicy shop/p: spec.ingres: unknown field \"ingres\"; did you mean ingress?\n"
    );
}

#[test]
fn unknown_fields_of_the_api_server_are_skipped() {
    let options = ParseOptions { unknown_fields: UnknownFields::Ignore, ..ParseOptions::default() };
    let manifest = parse("-", &knp("podSelector: {}\ningres: []"), &options);
    assert!(manifest.is_valid());
    assert_eq!(manifest.documents.len(), 1);
}

#[test]
fn every_problem_of_an_object_is_listed_at_once() {
    let found = problems(&cnp(
        "ingress:\n- fromEntities: [internet]\n  toPorts: [{ports: [{port: \"70000\"}]}]\n- fromCIDR: [10.0.0.0/40]\negres: []",
    ));
    assert_eq!(found.lines().count(), 4, "{found}");
    for words in ["internet", "70000", "10.0.0.0/40", "did you mean egress?"] {
        assert!(found.contains(words), "{found}");
    }
}

#[test]
fn one_invalid_object_does_not_take_the_others_with_it() {
    let manifest = read(&format!("{POD}---\n{}", knp("podSelector: {}\ningres: []")));
    assert!(!manifest.is_valid());
    assert_eq!(manifest.documents.len(), 1);
}

#[test]
fn a_second_object_of_the_same_name_is_an_error() {
    let manifest = read(&format!("{POD}---\n{POD}"));
    assert!(
        shown(&manifest)
            .contains("test.yaml:5:1: error: Pod shop/a: this object is already defined at test.yaml:1:1")
    );
    assert_eq!(manifest.documents.len(), 1);
}

#[test]
fn the_default_namespace_counts_for_duplicates() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: default}\n";
    assert!(shown(&read(text)).contains("Pod default/a: this object is already defined"));
}

#[test]
fn a_key_that_is_set_twice_is_an_error() {
    rejected(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels: {app: x, app: y}\n",
        &["test.yaml:5:20", "\"app\" is already set"],
    );
    rejected("kind: Pod\nkind: Node\n", &["test.yaml:2:1", "\"kind\" is already set"]);
}

/// Small mappings are searched, large ones are hashed: the one that is written twice may be on either side of the step.
#[test]
fn a_key_that_is_set_twice_is_an_error_in_a_mapping_of_any_size() {
    for (count, twice) in [(2, 0), (15, 14), (16, 3), (16, 15), (17, 16), (100, 1), (100, 99)] {
        let mut text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels:\n".to_owned();
        (0..count).for_each(|key| text.push_str(&format!("    k{key}: x\n")));
        text.push_str(&format!("    k{twice}: y\n"));
        rejected(&text, &[&format!("test.yaml:{}:5", 6 + count), &format!("\"k{twice}\" is already set")]);
    }
}

#[test]
fn broken_yaml_is_an_error_with_its_place() {
    rejected("a: [1, 2\nb: 3\n", &["test.yaml:2:", "not YAML"]);
    rejected("a: b: c\n", &["test.yaml:1:", "not YAML"]);
    // The documents before it are read, the input is not valid.
    let manifest = read(&format!("{POD}---\na: 'x\n"));
    assert_eq!(manifest.documents.len(), 1);
    assert!(!manifest.is_valid());
}

#[test]
fn a_document_that_is_no_object_is_an_error() {
    rejected("- a\n- b\n", &["found a list, expected a mapping"]);
    rejected("just text\n", &["found \"just text\", expected a mapping"]);
    rejected("kind: Pod\nmetadata: {name: a}\n", &["the field apiVersion is missing"]);
    rejected("apiVersion: v1\nkind: 5\n", &["kind: found the number 5, expected a string"]);
}

#[test]
fn names_and_labels_are_checked() {
    rejected("apiVersion: v1\nkind: Pod\nmetadata: {}\n", &["the field name is missing"]);
    rejected("apiVersion: v1\nkind: Pod\nmetadata: {name: Big_Name}\n", &["metadata.name", "\"Big_Name\""]);
    rejected("apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: a.b}\n", &["metadata.namespace"]);
    rejected("apiVersion: v1\nkind: Node\nmetadata: {name: a, namespace: b}\n", &["belong to the cluster"]);
    rejected(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {on: yes}}\n",
        &["metadata.labels[true]", "found the boolean true, expected a string (put it in quotes)"],
    );
    rejected("apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {\"a b\": c}}\n", &["no label key"]);
    rejected(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a, annotations: {a: 1}}\n",
        &["metadata.annotations[a]"],
    );
}

#[test]
fn control_characters_of_an_input_never_reach_a_message() {
    let found = problems("apiVersion: v1\nkind: Pod\nmetadata: {name: \"a\\e[31m\", \"x\\a\": 1}\n");
    assert!(found.chars().all(|c| c == '\n' || !c.is_control()), "{found:?}");
}

#[test]
fn aliases_and_merge_keys_are_resolved() {
    let manifest = read(
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: a, labels: &labels {app: web, tier: front}}\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: b, labels: {<<: *labels, tier: back}}\n",
    );
    let Resource::Object(Object::Pod(pod)) = &manifest.documents[1].resource else { panic!() };
    let labels: Vec<(&str, &str)> = pod.labels.iter().collect();
    assert_eq!(labels, [("app", "web"), ("tier", "back")]);
}

#[test]
fn a_document_finds_the_place_of_a_field_path() {
    let text = cnp(
        "ingress:\n- fromEntities: [world]\n  toPorts:\n  - ports: [{port: \"80\"}]\n  - ports: [{port: \"81\"}]",
    );
    let manifest = read(&text);
    let document = &manifest.documents[0];
    let place = |path: &str| {
        let position = document.locate(path);
        (position.line, position.column)
    };
    assert_eq!(place("spec.ingress[0].toPorts[1]"), (10, 7));
    assert_eq!(place("spec.ingress[0].toPorts[1].ports[0].port"), (10, 16));
    assert_eq!(place("spec.endpointSelector"), (5, 3));
    assert_eq!(place("spec.ingress[0].toPorts[7].ports"), (8, 5), "the nearest ancestor");
    assert_eq!(place(""), (1, 1));
}

#[test]
fn positions_in_an_embedded_text_count_from_the_file() {
    let origin = Origin { file: "outer.yaml".into(), lines_before: 40, columns_before: 6 };
    let manifest = parse_at(&origin, &knp("podSelector: {}\ningres: []"), &ParseOptions::default());
    assert!(shown(&manifest).starts_with("outer.yaml:46:9: error:"), "{}", shown(&manifest));
}

#[test]
fn an_object_of_the_api_server_needs_no_text() {
    let object = serde_json::json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "p", "managedFields": [{}]},
        "spec": {"podSelector": {}, "policyTypes": ["Sideways"]},
    });
    let manifest = parse_object("kubernetes", &object, &ParseOptions::default());
    assert_eq!(
        shown(&manifest),
        "kubernetes: error: NetworkPolicy shop/p: spec.policyTypes[0]: found \"Sideways\", expected one of Ingress, Egress\n"
    );
}

#[test]
fn a_valid_document_keeps_its_warnings() {
    let text = cnp("ingress: [{toPorts: [{ports: [{port: 80}]}]}]");
    assert!(warnings(&text).contains("write \"80\""));
    assert_eq!(read(&text).documents[0].resource.reference().kind, Kind::CiliumNetworkPolicy);
}
