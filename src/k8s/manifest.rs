//! A text with any number of documents -> resources, other documents, notes and problems.
//!
//! `v1` List is unpacked. Kinds that sluice does not read are skipped with a note; a kind that it
//! reads under a version that it does not is an error, because skipping a policy silently would
//! open what the policy closes.

use std::collections::HashMap;
use std::sync::Arc;

use super::cursor::{Cursor, Fields, Report};
use super::near::nearest;
use super::problem::{Note, Position, Problem, Severity};
use super::tree::{Node, Value, printable, quoted};
use super::yaml::{self, Fault};
use super::{ParseOptions, cilium, cluster_network_policy, network_policy, objects, services};
use crate::cluster::Resource;
use crate::model::{Kind, ObjectRef};

/// All that an input holds.
#[derive(Debug, Default)]
pub struct Manifest {
    /// Valid objects, in the order of the text.
    pub documents: Vec<Document>,
    /// Documents for other rooms: `sluice.dev` kinds, such as Scenario.
    pub others: Vec<OtherDocument>,
    /// Objects of kinds that sluice does not read.
    pub skipped: Vec<Note>,
    /// Errors. Not empty: some object is missing from `documents`.
    pub problems: Vec<Problem>,
}

impl Manifest {
    pub fn is_valid(&self) -> bool {
        self.problems.is_empty()
    }

    /// The warnings of all documents.
    pub fn warnings(&self) -> impl Iterator<Item = &Problem> {
        self.documents.iter().flat_map(|document| &document.warnings)
    }
}

/// One valid object.
#[derive(Clone, Debug)]
pub struct Document {
    pub resource: Resource,
    pub position: Position,
    pub warnings: Vec<Problem>,
    /// What was written.
    pub node: Arc<Node>,
}

impl Document {
    /// Where the field with this path is, or its nearest ancestor that exists.
    pub fn locate(&self, field_path: &str) -> Position {
        let (line, column) = self.node.locate(field_path);
        Position { file: self.position.file.clone(), line, column }
    }
}

/// A document of a kind that belongs to another room.
#[derive(Clone, Debug)]
pub struct OtherDocument {
    pub api_version: String,
    pub kind: String,
    pub position: Position,
    pub node: Arc<Node>,
}

/// Where a text begins that is part of another one, such as the `apply` block of a Scenario.
#[derive(Clone, Debug)]
pub struct Origin {
    pub file: Arc<str>,
    /// Lines before the text.
    pub lines_before: u32,
    /// Columns before each line of the text.
    pub columns_before: u32,
}

/// Reads a text.
pub fn parse(file: &str, text: &str, options: &ParseOptions) -> Manifest {
    parse_at(&Origin { file: file.into(), lines_before: 0, columns_before: 0 }, text, options)
}

/// Reads a text that is part of another one: positions count from the beginning of the other.
pub fn parse_at(origin: &Origin, text: &str, options: &ParseOptions) -> Manifest {
    let (documents, fault) = yaml::documents(text);
    let mut reader = Reader::new(origin.file.clone(), options);
    for mut document in documents {
        if origin.lines_before > 0 || origin.columns_before > 0 {
            shift(&mut document.root, origin);
            document.faults.iter_mut().for_each(|fault| {
                fault.line += origin.lines_before;
                fault.column += origin.columns_before;
            });
        }
        reader.document(document.root, &document.faults);
    }
    if let Some(mut fault) = fault {
        fault.line += origin.lines_before;
        fault.column += origin.columns_before;
        reader.fault(&fault);
    }
    reader.manifest
}

/// Reads one object as the API server gives it. `source` stands where a file name would. Positions
/// are zero; problems have the field path.
pub fn parse_object(source: &str, object: &serde_json::Value, options: &ParseOptions) -> Manifest {
    let mut reader = Reader::new(source.into(), options);
    reader.document(Node::from_json(object), &[]);
    reader.manifest
}

fn shift(node: &mut Node, origin: &Origin) {
    node.line += origin.lines_before;
    node.column += origin.columns_before;
    match &mut node.value {
        Value::Text(text) => {
            text.content_line += origin.lines_before;
            text.content_column += origin.columns_before;
        }
        Value::Sequence(items) => items.iter_mut().for_each(|item| shift(item, origin)),
        Value::Mapping(entries) => entries.iter_mut().for_each(|entry| {
            entry.key_line += origin.lines_before;
            entry.key_column += origin.columns_before;
            shift(&mut entry.value, origin);
        }),
        _ => {}
    }
}

/// Kinds that sluice reads: API groups with their versions (the core group is empty).
const KINDS: &[(&str, &[&str], Kind)] = &[
    ("", &["v1"], Kind::Namespace),
    ("", &["v1"], Kind::Pod),
    ("", &["v1"], Kind::Node),
    ("", &["v1"], Kind::Service),
    ("", &["v1"], Kind::Endpoints),
    ("", &["v1"], Kind::Secret),
    ("discovery.k8s.io", &["v1"], Kind::EndpointSlice),
    ("networking.k8s.io", &["v1"], Kind::NetworkPolicy),
    ("cilium.io", &["v2", "v2alpha1"], Kind::CiliumNetworkPolicy),
    ("cilium.io", &["v2", "v2alpha1"], Kind::CiliumClusterwideNetworkPolicy),
    ("cilium.io", &["v2", "v2alpha1"], Kind::CiliumCIDRGroup),
    ("policy.networking.k8s.io", &["v1alpha2"], Kind::ClusterNetworkPolicy),
];

const OWN_GROUP: &str = "sluice.dev";

/// What the header of a document says that it is.
enum Header {
    Known(Kind),
    Other,
    Skipped(String),
}

fn classify(api_version: &str, kind: &str) -> Result<Header, String> {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    if group == OWN_GROUP {
        return Ok(Header::Other);
    }
    let in_group = || KINDS.iter().filter(|(known, _, _)| *known == group);
    if let Some((_, versions, known)) = in_group().find(|(_, _, known)| known.to_string() == kind) {
        return if versions.contains(&version) {
            Ok(Header::Known(*known))
        } else {
            let separator = if group.is_empty() { "" } else { "/" };
            let wanted: Vec<String> =
                versions.iter().map(|version| format!("{group}{separator}{version}")).collect();
            Err(format!("{kind} is read in {}, found {}", wanted.join(" and "), quoted(api_version)))
        };
    }
    let names: Vec<String> = in_group().map(|(_, _, known)| known.to_string()).collect();
    let hint = nearest(kind, names.iter().map(String::as_str))
        .map(|name| format!("; did you mean {name}?"))
        .unwrap_or_default();
    Ok(Header::Skipped(format!("{} {} is not read{hint}", quoted(api_version), quoted(kind))))
}

struct Reader<'o> {
    file: Arc<str>,
    options: &'o ParseOptions,
    manifest: Manifest,
    seen: HashMap<ObjectRef, Position>,
}

impl<'o> Reader<'o> {
    fn new(file: Arc<str>, options: &'o ParseOptions) -> Reader<'o> {
        Reader { file, options, manifest: Manifest::default(), seen: HashMap::new() }
    }

    fn position(&self, node: &Node) -> Position {
        Position { file: self.file.clone(), line: node.line, column: node.column }
    }

    fn fault(&mut self, fault: &Fault) {
        self.manifest.problems.push(Problem {
            position: Position { file: self.file.clone(), line: fault.line, column: fault.column },
            severity: Severity::Error,
            object: None,
            field_path: String::new(),
            code: None,
            message: fault.message.clone(),
        });
    }

    /// One document; `faults` are what reading its text already found.
    fn document(&mut self, root: Node, faults: &[Fault]) {
        faults.iter().for_each(|fault| self.fault(fault));
        if matches!(root.value, Value::Null) {
            return;
        }
        if root.get("kind").and_then(Node::as_str) == Some("List")
            && root.get("apiVersion").and_then(Node::as_str) == Some("v1")
        {
            return self.list(root, faults);
        }
        self.object(root, faults);
    }

    fn list(&mut self, root: Node, faults: &[Fault]) {
        let report = Report::new(self.file.clone(), self.options.unknown_fields);
        Cursor::root(&root, &report).object(|fields| {
            fields.accept(&["apiVersion", "kind", "metadata"]);
            if let Some(items) = fields.get("items") {
                items.list();
            }
        });
        self.manifest.problems.extend(report.into_problems());
        let Value::Mapping(entries) = root.value else { return };
        for entry in entries.into_iter().filter(|entry| entry.key == "items") {
            if let Value::Sequence(items) = entry.value.value {
                items.into_iter().for_each(|item| self.object(item, faults));
            }
        }
    }

    /// One object. Where its document has faults, it is read for its problems only.
    fn object(&mut self, node: Node, faults: &[Fault]) {
        let position = self.position(&node);
        let report = Report::new(self.file.clone(), self.options.unknown_fields);
        let read = Cursor::root(&node, &report).object(|fields| self.read(fields)).flatten();
        let rejected = report.has_errors() || !faults.is_empty();
        let (errors, warnings): (Vec<Problem>, Vec<Problem>) =
            report.into_problems().into_iter().partition(|problem| problem.severity == Severity::Error);
        self.manifest.problems.extend(errors);
        let node = Arc::new(node);
        match read {
            Some(Read::Resources(resources)) if !rejected => {
                for (index, resource) in resources.into_iter().enumerate() {
                    let warnings = if index == 0 { warnings.clone() } else { Vec::new() };
                    let document =
                        Document { resource, position: position.clone(), warnings, node: node.clone() };
                    self.manifest.documents.push(document);
                }
            }
            Some(Read::Other { api_version, kind }) if !rejected => {
                self.manifest.others.push(OtherDocument { api_version, kind, position, node });
            }
            Some(Read::Skipped(message)) => self.manifest.skipped.push(Note { position, message }),
            _ => {}
        }
    }

    fn read(&mut self, fields: &Fields<'_>) -> Option<Read> {
        let api_version = fields.require("apiVersion").and_then(|field| field.string());
        let kind = fields.require("kind").and_then(|field| field.string());
        let (Some(api_version), Some(kind)) = (api_version, kind) else {
            fields.accept_all();
            return None;
        };
        match classify(api_version, kind) {
            Ok(Header::Known(kind)) => {
                self.name(fields, kind);
                Some(Read::Resources(read_kind(fields, kind, self.options)))
            }
            Ok(Header::Other) => {
                fields.accept_all();
                Some(Read::Other { api_version: api_version.to_owned(), kind: kind.to_owned() })
            }
            Ok(Header::Skipped(message)) => {
                fields.accept_all();
                Some(Read::Skipped(message))
            }
            Err(message) => {
                fields.accept_all();
                fields.cursor().error(message);
                None
            }
        }
    }

    /// Names the object in its problems, and refuses a second one of the same name.
    fn name(&mut self, fields: &Fields<'_>, kind: Kind) {
        let meta = fields.cursor().node.get("metadata");
        let text = |key| meta.and_then(|meta| meta.get(key)).and_then(Node::as_str);
        let namespace = if kind.is_namespaced() {
            text("namespace").unwrap_or(&self.options.default_namespace)
        } else {
            ""
        };
        let Some(name) = text("name") else { return };
        let reference = ObjectRef::new(kind, namespace, name);
        let report = fields.cursor().report();
        report.name_object(printable(reference.to_string()));
        let position = self.position(fields.cursor().node);
        if let Some(first) = self.seen.get(&reference) {
            fields.cursor().error(format!("this object is already defined at {first}"));
        } else {
            self.seen.insert(reference, position);
        }
    }
}

enum Read {
    Resources(Vec<Resource>),
    Other { api_version: String, kind: String },
    Skipped(String),
}

fn read_kind(fields: &Fields<'_>, kind: Kind, options: &ParseOptions) -> Vec<Resource> {
    match kind {
        Kind::Namespace => objects::namespace(fields).into_iter().collect(),
        Kind::Pod => objects::pod(fields, options).into_iter().collect(),
        Kind::Node => objects::node(fields).into_iter().collect(),
        Kind::Secret => objects::secret(fields, options).into_iter().collect(),
        Kind::Service => services::service(fields, options).into_iter().collect(),
        Kind::Endpoints => services::endpoints(fields, options),
        Kind::EndpointSlice => services::endpoint_slice(fields, options).into_iter().collect(),
        Kind::NetworkPolicy => network_policy::read(fields, options).into_iter().collect(),
        Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy => {
            cilium::policy(fields, kind, options).into_iter().collect()
        }
        Kind::CiliumCIDRGroup => cilium::cidr_group(fields).into_iter().collect(),
        Kind::ClusterNetworkPolicy => cluster_network_policy::read(fields).into_iter().collect(),
    }
}
