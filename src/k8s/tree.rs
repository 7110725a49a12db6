//! A document as a tree in which every value knows its line and column. YAML text and JSON objects
//! from the API server both become this tree; everything else in this room reads from it.

use std::fmt;

use compact_str::CompactString;

/// A value and where it starts. Lines and columns count from 1; both are 0 in objects that have no
/// text.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub value: Value,
    pub line: u32,
    pub column: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    /// Numbers that are no 64-bit integer.
    Float(f64),
    Text(Text),
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

/// A string and, for block scalars (`|`, `>`), where its own first line starts.
#[derive(Clone, Debug, PartialEq)]
pub struct Text {
    pub text: CompactString,
    /// Line and column of the content; differs from the node's own for block scalars.
    pub content_line: u32,
    pub content_column: u32,
}

/// One key of a mapping. Keys are unique: duplicates are problems and only the first one is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub key: CompactString,
    pub key_line: u32,
    pub key_column: u32,
    pub value: Node,
}

impl Node {
    /// The value under a key of a mapping.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.value)
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Mapping(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// The string, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(&text.text),
            _ => None,
        }
    }

    /// Line and column of the field with this path (`spec.ingress[0].toPorts`), or of its nearest
    /// ancestor that exists. A field is where its key is, an element where its value is.
    pub fn locate(&self, path: &str) -> (u32, u32) {
        let (mut node, mut place) = (self, (self.line, self.column));
        for segment in segments(path) {
            let next = match segment {
                Segment::Key(key) => {
                    node.entry(key).map(|entry| (&entry.value, (entry.key_line, entry.key_column)))
                }
                Segment::Index(index) => match &node.value {
                    Value::Sequence(items) => items.get(index).map(|item| (item, (item.line, item.column))),
                    _ => None,
                },
            };
            let Some(found) = next else { break };
            (node, place) = found;
        }
        place
    }

    /// The tree of a JSON value, without positions.
    pub fn from_json(json: &serde_json::Value) -> Node {
        let value = match json {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(value) => Value::Bool(*value),
            serde_json::Value::Number(number) => match number.as_i64() {
                Some(integer) => Value::Integer(integer),
                None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(text) => {
                Value::Text(Text { text: text.into(), content_line: 0, content_column: 0 })
            }
            serde_json::Value::Array(items) => Value::Sequence(items.iter().map(Node::from_json).collect()),
            serde_json::Value::Object(fields) => Value::Mapping(
                fields
                    .iter()
                    .map(|(key, value)| Entry {
                        key: key.into(),
                        key_line: 0,
                        key_column: 0,
                        value: Node::from_json(value),
                    })
                    .collect(),
            ),
        };
        Node { value, line: 0, column: 0 }
    }

    /// What a problem says that it found.
    pub(super) fn describe(&self) -> Description<'_> {
        Description(self)
    }
}

/// A short text for a value: its type, and the value itself where it is short.
pub(super) struct Description<'a>(&'a Node);

impl fmt::Display for Description<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.value {
            Value::Null => f.write_str("null"),
            Value::Bool(value) => write!(f, "the boolean {value}"),
            Value::Integer(value) => write!(f, "the number {value}"),
            Value::Float(value) => write!(f, "the number {value}"),
            Value::Text(text) => write!(f, "{}", quoted(&text.text)),
            Value::Sequence(_) => f.write_str("a list"),
            Value::Mapping(_) => f.write_str("a mapping"),
        }
    }
}

/// The text in quotes with control characters escaped, cut where it is long: what was found in an
/// input never reaches a terminal raw.
pub(super) fn quoted(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// The text without control characters.
pub(super) fn printable(text: impl Into<String> + AsRef<str>) -> String {
    if !text.as_ref().contains(char::is_control) {
        return text.into();
    }
    text.as_ref().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

enum Segment<'a> {
    Key(&'a str),
    Index(usize),
}

/// Splits a field path. A number in brackets is an index, anything else in brackets a key.
fn segments(path: &str) -> impl Iterator<Item = Segment<'_>> {
    let mut rest = path;
    std::iter::from_fn(move || {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if rest.is_empty() {
            return None;
        }
        if let Some(inner) = rest.strip_prefix('[')
            && let Some((segment, after)) = inner.split_once(']')
        {
            rest = after;
            return Some(match segment.parse() {
                Ok(index) => Segment::Index(index),
                Err(_) => Segment::Key(segment),
            });
        }
        let end = rest[1..].find(['.', '[']).map_or(rest.len(), |at| at + 1);
        let (segment, after) = rest.split_at(end);
        rest = after;
        Some(Segment::Key(segment))
    })
}
