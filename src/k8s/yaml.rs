//! YAML (or JSON, its subset) text -> positioned trees, one for each document.
//!
//! Read as Kubernetes reads it: one value for a key (a second one is a problem), YAML 1.1 scalars
//! (`scalar`), aliases and merge keys. Budgets bound what a hostile text can cost: the text itself,
//! one document, nesting, and what aliases multiply.

use std::collections::{HashMap, HashSet};

use compact_str::{CompactString, ToCompactString as _};
use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span};

use super::scalar;
use super::tree::{Entry, Node, Text, Value};

/// Bytes of one input. A dump of a large cluster fits.
pub const MAX_INPUT_BYTES: usize = 64 << 20;
/// Bytes of one object, whether it is a document or an item of a List: what the API server takes
/// in one request.
pub const MAX_OBJECT_BYTES: usize = 3 << 20;
/// Collections inside each other.
pub const MAX_DEPTH: usize = 64;
/// Values of one input, aliased ones included.
pub const MAX_NODES: usize = 5_000_000;
/// Values that anchors may keep and that aliases may add, each.
pub const MAX_ALIASED_NODES: usize = 100_000;

/// One document of an input.
#[derive(Debug)]
pub struct YamlDocument {
    pub root: Node,
    /// Duplicate keys and the like. Not empty: the document must not be used.
    pub faults: Vec<Fault>,
}

/// A place and what is wrong there.
#[derive(Debug)]
pub struct Fault {
    pub line: u32,
    pub column: u32,
    pub message: String,
}

/// The documents up to the first error that makes the rest unreadable, and that error.
pub fn documents(text: &str) -> (Vec<YamlDocument>, Option<Fault>) {
    if text.len() > MAX_INPUT_BYTES {
        let message = format!("the input has {} bytes, at most {MAX_INPUT_BYTES} are read", text.len());
        return (Vec::new(), Some(Fault { line: 1, column: 1, message }));
    }
    // A byte order mark belongs to no value.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut builder = Builder {
        nodes_left: MAX_NODES,
        anchored_left: MAX_ALIASED_NODES,
        aliased_left: MAX_ALIASED_NODES,
        offsets: Offsets::of(text),
        done: Vec::new(),
        open: Vec::new(),
        items: Vec::new(),
        entries: Vec::new(),
        faults: Vec::new(),
        anchors: HashMap::new(),
    };
    for event in Parser::new_from_str(text) {
        let step = match event {
            Ok((event, span)) => builder.event(event, span),
            Err(error) => Err(syntax_fault(&error)),
        };
        if let Err(fault) = step {
            return (builder.done, Some(fault));
        }
    }
    (builder.done, None)
}

fn syntax_fault(error: &ScanError) -> Fault {
    let marker = error.marker();
    Fault {
        line: number(marker.line()),
        column: number(marker.col() + 1),
        message: format!("not YAML: {}", error.info()),
    }
}

fn number(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// A collection that is still open.
enum Frame {
    /// Its items are [`Builder::items`] from this one on.
    Sequence { first: usize },
    /// Its entries are [`Builder::entries`] from this one on.
    Mapping { first: usize, hashed: Hashed, key: Option<Key>, merges: Vec<Node> },
}

/// Mappings with fewer keys are searched.
const FEW_KEYS: usize = 16;

/// The keys of a mapping that has many; of others it is empty. Nearly all are small, and a search costs less than a
/// table and a copy of each key; a large one, which may be hostile, costs what it weighs.
#[derive(Default)]
struct Hashed(HashSet<CompactString>);

impl Hashed {
    /// Whether the mapping with these entries has no such key; the caller adds it.
    fn admits(&mut self, entries: &[Entry], key: &str) -> bool {
        if entries.len() < FEW_KEYS {
            return entries.iter().all(|entry| entry.key != key);
        }
        if self.0.is_empty() {
            self.0.extend(entries.iter().map(|entry| entry.key.clone()));
        }
        self.0.insert(key.into())
    }
}

enum Key {
    Field {
        text: CompactString,
        line: u32,
        column: u32,
    },
    Merge,
    /// A second value for a key, or a key that is no scalar: its value is read and dropped.
    Dropped,
}

struct Open {
    frame: Frame,
    line: u32,
    column: u32,
    start: usize,
    anchor: usize,
}

/// Where characters are in a text: the parser counts these, budgets count bytes. Asked in order, all answers together cost
/// one walk through the text; in ASCII nothing.
struct Offsets<'a> {
    /// What is not walked through yet; none of an ASCII text.
    rest: Option<std::str::CharIndices<'a>>,
    characters: usize,
}

impl<'a> Offsets<'a> {
    fn of(text: &'a str) -> Offsets<'a> {
        Offsets { rest: (!text.is_ascii()).then(|| text.char_indices()), characters: 0 }
    }

    /// The offset of a character; of one that is behind, where the walk is.
    fn byte(&mut self, character: usize) -> usize {
        let Some(rest) = &mut self.rest else { return character };
        while self.characters < character && rest.next().is_some() {
            self.characters += 1;
        }
        rest.offset()
    }
}

struct Builder<'a> {
    offsets: Offsets<'a>,
    done: Vec<YamlDocument>,
    open: Vec<Open>,
    /// Of all open sequences: a closed one takes its own along, and no room for more.
    items: Vec<Node>,
    /// The same of mappings.
    entries: Vec<Entry>,
    faults: Vec<Fault>,
    /// Anchored values and how many values each holds; only as many as the budget takes.
    anchors: HashMap<usize, (Node, usize)>,
    nodes_left: usize,
    anchored_left: usize,
    aliased_left: usize,
}

impl Builder<'_> {
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Fault> {
        let (line, column) = (number(span.start.line()), number(span.start.col() + 1));
        let at = self.offsets.byte(span.start.index());
        match event {
            Event::DocumentStart(..) => self.anchors.clear(),
            Event::Scalar(text, style, anchor, tag) => {
                let (content_line, content_column) = match style {
                    // The parser's span begins at the first line that is not blank.
                    ScalarStyle::Literal | ScalarStyle::Folded => {
                        let blank = text.bytes().take_while(|byte| *byte == b'\n').count();
                        (line.saturating_sub(number(blank)).max(1), column)
                    }
                    _ => (line, column),
                };
                let is_text = tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str");
                let plain = style == ScalarStyle::Plain && !is_text;
                let value = if plain {
                    scalar::resolve(&text)
                } else {
                    Value::Text(Text { text: text.into(), content_line, content_column })
                };
                let value = match value {
                    Value::Text(text) => Value::Text(Text { content_line, content_column, ..text }),
                    other => other,
                };
                self.value(Node { value, line, column }, anchor, plain, at..at)?;
            }
            Event::SequenceStart(anchor, _) => {
                self.begin(Frame::Sequence { first: self.items.len() }, line, column, at, anchor)?;
            }
            Event::MappingStart(anchor, _) => {
                let frame = Frame::Mapping {
                    first: self.entries.len(),
                    hashed: Hashed::default(),
                    key: None,
                    merges: Vec::new(),
                };
                self.begin(frame, line, column, at, anchor)?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let end = self.offsets.byte(span.end.index());
                self.close(end)?;
            }
            Event::Alias(anchor) => {
                let Some((node, size)) = self.anchors.get(&anchor) else {
                    let message = format!(
                        "an alias inside the value that it names, or of more than {MAX_ALIASED_NODES} values"
                    );
                    return Err(fault(line, column, message));
                };
                let Some(left) = self.aliased_left.checked_sub(*size) else {
                    let message = format!("aliases add more than {MAX_ALIASED_NODES} values to this input");
                    return Err(fault(line, column, message));
                };
                self.aliased_left = left;
                let node = Node { line, column, ..node.clone() };
                self.value(node, 0, false, at..at)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn begin(
        &mut self,
        frame: Frame,
        line: u32,
        column: u32,
        start: usize,
        anchor: usize,
    ) -> Result<(), Fault> {
        if self.open.len() >= MAX_DEPTH {
            return Err(fault(line, column, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        self.open.push(Open { frame, line, column, start, anchor });
        Ok(())
    }

    fn close(&mut self, end: usize) -> Result<(), Fault> {
        let Some(Open { frame, line, column, start, anchor }) = self.open.pop() else { return Ok(()) };
        let value = match frame {
            Frame::Sequence { first } => Value::Sequence(self.items.drain(first..).collect()),
            Frame::Mapping { first, mut hashed, merges, .. } => {
                let mut entries: Vec<Entry> = self.entries.drain(first..).collect();
                for merge in merges {
                    self.merge(&mut entries, &mut hashed, merge);
                }
                Value::Mapping(entries)
            }
        };
        self.value(Node { value, line, column }, anchor, false, start..end)
    }

    /// `<<`: entries of other mappings, for keys that this one has not.
    fn merge(&mut self, entries: &mut Vec<Entry>, hashed: &mut Hashed, source: Node) {
        match source.value {
            Value::Mapping(merged) => {
                for entry in merged {
                    if hashed.admits(entries, &entry.key) {
                        entries.push(entry);
                    }
                }
            }
            Value::Sequence(sources) => {
                sources.into_iter().for_each(|source| self.merge(entries, hashed, source))
            }
            _ => self.faults.push(fault(
                source.line,
                source.column,
                format!("a merge key (<<) takes a mapping, found {}", source.describe()),
            )),
        }
    }

    /// A finished value goes to the open collection, or ends the document.
    fn value(
        &mut self,
        node: Node,
        anchor: usize,
        plain: bool,
        bytes: std::ops::Range<usize>,
    ) -> Result<(), Fault> {
        let Some(left) = self.nodes_left.checked_sub(1) else {
            let message = format!("the input holds more than {MAX_NODES} values");
            return Err(fault(node.line, node.column, message));
        };
        self.nodes_left = left;
        if anchor != 0 {
            let size = count(&node);
            if let Some(left) = self.anchored_left.checked_sub(size) {
                self.anchored_left = left;
                self.anchors.insert(anchor, (node.clone(), size));
            }
        }
        let Some(open) = self.open.last_mut() else {
            if !is_list(&node) {
                check_size(&node, &bytes)?;
            }
            self.done.push(YamlDocument { root: node, faults: std::mem::take(&mut self.faults) });
            return Ok(());
        };
        match &mut open.frame {
            Frame::Sequence { .. } => {
                check_size(&node, &bytes)?;
                self.items.push(node);
            }
            Frame::Mapping { first, hashed, key, merges } => match key.take() {
                None => {
                    let entries = &self.entries[*first..];
                    *key = Some(self::key(node, plain, entries, hashed, &mut self.faults));
                }
                Some(Key::Field { text, line, column }) => {
                    self.entries.push(Entry { key: text, key_line: line, key_column: column, value: node });
                }
                Some(Key::Merge) => merges.push(node),
                Some(Key::Dropped) => {}
            },
        }
        Ok(())
    }
}

/// What a key node stands for. Kubernetes turns numbers and booleans into text.
fn key(node: Node, plain: bool, entries: &[Entry], hashed: &mut Hashed, faults: &mut Vec<Fault>) -> Key {
    let Node { value, line, column } = node;
    let text = match value {
        Value::Text(text) if plain && text.text == "<<" => return Key::Merge,
        Value::Text(text) => text.text,
        Value::Bool(value) => value.to_compact_string(),
        Value::Integer(value) => value.to_compact_string(),
        Value::Float(value) => value.to_string().into(),
        Value::Null | Value::Sequence(_) | Value::Mapping(_) => {
            faults.push(fault(line, column, "a key must be a string"));
            return Key::Dropped;
        }
    };
    if !hashed.admits(entries, &text) {
        faults.push(fault(
            line,
            column,
            format!("the key {} is already set in this mapping", super::tree::quoted(&text)),
        ));
        return Key::Dropped;
    }
    Key::Field { text, line, column }
}

fn fault(line: u32, column: u32, message: impl Into<String>) -> Fault {
    Fault { line, column, message: message.into() }
}

fn is_list(root: &Node) -> bool {
    root.get("kind").and_then(Node::as_str) == Some("List")
}

fn check_size(node: &Node, bytes: &std::ops::Range<usize>) -> Result<(), Fault> {
    let size = bytes.end.saturating_sub(bytes.start);
    if size > MAX_OBJECT_BYTES {
        let message = format!("this object has {size} bytes, at most {MAX_OBJECT_BYTES} are read");
        return Err(fault(node.line, node.column, message));
    }
    Ok(())
}

fn count(node: &Node) -> usize {
    1 + match &node.value {
        Value::Sequence(items) => items.iter().map(count).sum(),
        Value::Mapping(entries) => entries.iter().map(|entry| 1 + count(&entry.value)).sum(),
        _ => 0,
    }
}
