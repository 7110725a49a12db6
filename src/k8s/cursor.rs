//! Reading a tree: a [`Cursor`] is a value that knows its field path and where to report problems.
//!
//! Reading never stops at a problem: a reader that returns `None` has reported why, and its caller
//! reads on, so that one pass lists everything that is wrong with an object. Whether the object is
//! accepted is asked at the end ([`Report::has_errors`]).

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::sync::Arc;

use compact_str::CompactString;
use smallvec::SmallVec;

use super::UnknownFields;
use super::near::nearest;
use super::problem::{Position, Problem, Severity};
use super::tree::{Entry, Node, Value, printable, quoted};
use crate::policy::lint::{self, Code};

/// Collects the problems of one object.
#[derive(Debug)]
pub struct Report {
    file: Arc<str>,
    unknown_fields: UnknownFields,
    object: RefCell<Option<String>>,
    problems: RefCell<Vec<Problem>>,
    paths: RefCell<Vec<Step>>,
}

impl Report {
    pub fn new(file: Arc<str>, unknown_fields: UnknownFields) -> Report {
        Report {
            file,
            unknown_fields,
            object: RefCell::default(),
            problems: RefCell::default(),
            paths: RefCell::default(),
        }
    }

    /// How problems from now on, and those so far, name the object.
    pub fn name_object(&self, name: String) {
        for problem in self.problems.borrow_mut().iter_mut() {
            problem.object.get_or_insert_with(|| name.clone());
        }
        *self.object.borrow_mut() = Some(name);
    }

    pub fn has_errors(&self) -> bool {
        self.problems.borrow().iter().any(|problem| problem.severity == Severity::Error)
    }

    /// In the order of the text.
    pub fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| (problem.position.line, problem.position.column));
        problems
    }

    pub fn add(
        &self,
        (line, column): (u32, u32),
        severity: Severity,
        code: Option<Code>,
        field_path: String,
        message: String,
    ) {
        self.problems.borrow_mut().push(Problem {
            position: Position { file: self.file.clone(), line, column },
            severity,
            object: self.object.borrow().clone(),
            code,
            field_path,
            message,
        });
    }
}

/// A field path: a place in the list of steps that its [`Report`] keeps, and nothing for the root. Cheap to extend;
/// becomes text only when somebody asks.
#[derive(Clone, Copy, Debug)]
struct FieldPath(Option<u32>);

/// The last step of a path.
#[derive(Debug)]
struct Step {
    parent: FieldPath,
    segment: Segment,
}

#[derive(Debug)]
enum Segment {
    Field(&'static str),
    /// A field that is not known here.
    Unknown(CompactString),
    /// A key of a free mapping, such as a label.
    Key(CompactString),
    Index(usize),
}

impl Report {
    fn child(&self, parent: FieldPath, segment: Segment) -> FieldPath {
        let mut paths = self.paths.borrow_mut();
        paths.push(Step { parent, segment });
        // An object of 3 MiB has fewer values.
        FieldPath(u32::try_from(paths.len() - 1).ok())
    }

    fn text(&self, path: FieldPath) -> String {
        let paths = self.paths.borrow();
        let mut steps = SmallVec::<[&Segment; 16]>::new();
        let mut next = path.0;
        while let Some(step) = next.and_then(|index| paths.get(index as usize)) {
            steps.push(&step.segment);
            next = step.parent.0;
        }
        let mut text = String::new();
        for segment in steps.into_iter().rev() {
            let name = match segment {
                Segment::Field(name) => name,
                Segment::Unknown(name) => name.as_str(),
                Segment::Key(name) => {
                    write!(text, "[{name}]").ok();
                    continue;
                }
                Segment::Index(index) => {
                    write!(text, "[{index}]").ok();
                    continue;
                }
            };
            if !text.is_empty() {
                text.push('.');
            }
            text.push_str(name);
        }
        text
    }
}

/// A value, its field path and the place of its key.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a> {
    pub node: &'a Node,
    path: FieldPath,
    place: (u32, u32),
    report: &'a Report,
}

impl<'a> Cursor<'a> {
    pub fn root(node: &'a Node, report: &'a Report) -> Cursor<'a> {
        Cursor { node, path: FieldPath(None), place: (node.line, node.column), report }
    }

    /// The field path; keys are as they were written, but for control characters.
    pub fn path(&self) -> String {
        printable(self.report.text(self.path))
    }

    pub fn report(&self) -> &'a Report {
        self.report
    }

    fn child(&self, node: &'a Node, segment: Segment) -> Cursor<'a> {
        let path = self.report.child(self.path, segment);
        Cursor { node, path, place: (node.line, node.column), report: self.report }
    }

    /// Reports that the object is not valid.
    pub fn error(&self, message: impl Into<String>) {
        self.report.add(self.place, Severity::Error, None, self.path(), message.into());
    }

    /// Reports something that is accepted but probably not meant.
    pub fn warning(&self, message: impl Into<String>) {
        self.report.add(self.place, Severity::Warning, None, self.path(), message.into());
    }

    /// Reports a trap that the linter has a code for; its severity decides whether the object is valid.
    pub fn trap(&self, code: Code, message: impl Into<String>) {
        let severity = match code.severity() {
            lint::Severity::Error => Severity::Error,
            lint::Severity::Warning | lint::Severity::Info => Severity::Warning,
        };
        self.report.add(self.place, severity, Some(code), self.path(), message.into());
    }

    /// Reports a value of the wrong type or content; always `None`.
    pub fn expected<T>(&self, what: &str) -> Option<T> {
        self.error(format!("found {}, expected {what}", self.node.describe()));
        None
    }

    pub fn is_null(&self) -> bool {
        matches!(self.node.value, Value::Null)
    }

    /// A string. Numbers and booleans are not strings: they need quotes, as for the API server.
    pub fn string(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Text(text) => Some(&text.text),
            Value::Bool(_) | Value::Integer(_) | Value::Float(_) => {
                self.expected("a string (put it in quotes)")
            }
            _ => self.expected("a string"),
        }
    }

    pub fn boolean(&self) -> Option<bool> {
        match self.node.value {
            Value::Bool(value) => Some(value),
            _ => self.expected("true or false"),
        }
    }

    pub fn integer(&self, range: RangeInclusive<i64>) -> Option<i64> {
        match self.node.value {
            Value::Integer(value) if range.contains(&value) => Some(value),
            _ => self.expected(&format!("a number from {} to {}", range.start(), range.end())),
        }
    }

    /// A port number, 1 to 65535.
    pub fn port(&self) -> Option<u16> {
        self.integer(1..=65535).and_then(|value| u16::try_from(value).ok())
    }

    /// One of a set of names.
    pub fn one_of<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let text = self.string()?;
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return Some(*value);
        }
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let hint = nearest(text, names.iter().copied());
        self.error(format!(
            "found {}, expected one of {}{}",
            quoted(text),
            names.join(", "),
            hint.map(|name| format!("; did you mean {name}?")).unwrap_or_default()
        ));
        None
    }

    /// The elements of a list.
    pub fn list(&self) -> Option<Vec<Cursor<'a>>> {
        match &self.node.value {
            Value::Sequence(items) => Some(
                items
                    .iter()
                    .enumerate()
                    .map(|(index, item)| self.child(item, Segment::Index(index)))
                    .collect(),
            ),
            _ => self.expected("a list"),
        }
    }

    /// The entries of a mapping with free keys, such as labels.
    pub fn entries(&self) -> Option<Vec<(&'a str, Cursor<'a>)>> {
        match &self.node.value {
            Value::Mapping(entries) => Some(
                entries
                    .iter()
                    .map(|entry| (&*entry.key, self.entry(entry, Segment::Key(entry.key.clone()))))
                    .collect(),
            ),
            _ => self.expected("a mapping"),
        }
    }

    fn entry(&self, entry: &'a Entry, segment: Segment) -> Cursor<'a> {
        Cursor { place: (entry.key_line, entry.key_column), ..self.child(&entry.value, segment) }
    }

    /// Reads a mapping with fixed fields. Fields that `read` did not ask for are unknown, and
    /// reported once it is done.
    pub fn object<T>(&self, read: impl FnOnce(&Fields<'a>) -> T) -> Option<T> {
        let Value::Mapping(entries) = &self.node.value else { return self.expected("a mapping") };
        let fields = Fields { cursor: *self, entries, known: RefCell::default(), open: Cell::new(false) };
        let result = read(&fields);
        fields.report_unknown();
        Some(result)
    }
}

/// The fields of a mapping that is being read by [`Cursor::object`].
#[derive(Debug)]
pub struct Fields<'a> {
    cursor: Cursor<'a>,
    entries: &'a [Entry],
    known: RefCell<SmallVec<[&'static str; 16]>>,
    open: Cell<bool>,
}

impl<'a> Fields<'a> {
    /// The mapping itself, to report about it.
    pub fn cursor(&self) -> &Cursor<'a> {
        &self.cursor
    }

    /// The field; null is absent, as for the API server.
    pub fn get(&self, name: &'static str) -> Option<Cursor<'a>> {
        self.get_or_null(name).filter(|field| !field.is_null())
    }

    /// The field, null included.
    pub fn get_or_null(&self, name: &'static str) -> Option<Cursor<'a>> {
        self.known.borrow_mut().push(name);
        let entry = self.entries.iter().find(|entry| entry.key == name)?;
        Some(self.cursor.entry(entry, Segment::Field(name)))
    }

    /// The field; its absence is a problem.
    pub fn require(&self, name: &'static str) -> Option<Cursor<'a>> {
        let field = self.get(name);
        if field.is_none() {
            self.cursor.error(format!("the field {name} is missing"));
        }
        field
    }

    /// The list under a field; absent is empty.
    pub fn list(&self, name: &'static str) -> Vec<Cursor<'a>> {
        self.get(name).and_then(|field| field.list()).unwrap_or_default()
    }

    /// Fields that exist and that nobody here reads.
    pub fn accept(&self, names: &[&'static str]) {
        self.known.borrow_mut().extend_from_slice(names);
    }

    /// Any field may be there: the content of this mapping is not ours to check.
    pub fn accept_all(&self) {
        self.open.set(true);
    }

    fn report_unknown(&self) {
        if self.open.get() || self.cursor.report.unknown_fields == UnknownFields::Ignore {
            return;
        }
        let known = self.known.borrow();
        for entry in self.entries.iter().filter(|entry| !known.contains(&&*entry.key)) {
            let hint = nearest(&entry.key, known.iter().copied())
                .map(|name| format!("; did you mean {name}?"))
                .unwrap_or_default();
            let field = self.cursor.entry(entry, Segment::Unknown(entry.key.clone()));
            field.error(format!("unknown field {}{hint}", quoted(&entry.key)));
        }
    }
}
