//! What rules do to the header fields of a request on its way.
//!
//! Contract: edits are done in the order in which they were decided, each to what the one before left. The sender's
//! side decides first, and the receiver's side judges the fields that it would see on a node of its own; so a request
//! means the same to both, wherever they are and whichever protocol carries it.

use std::sync::Arc;

use smallvec::SmallVec;

/// What a matching rule does to the request on its way.
#[derive(Clone, PartialEq, Eq)]
pub enum HeaderEdit {
    /// Recorded only.
    Log {
        name: Arc<str>,
    },
    Add {
        name: Arc<str>,
        value: Vec<u8>,
    },
    Delete {
        name: Arc<str>,
    },
    Replace {
        name: Arc<str>,
        value: Vec<u8>,
    },
}

impl HeaderEdit {
    /// Something is forwarded that was not sent, or the other way round.
    pub fn changes(&self) -> bool {
        !matches!(self, HeaderEdit::Log { .. })
    }
}

impl std::fmt::Debug for HeaderEdit {
    /// Without values: they may come from a Secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (action, name) = match self {
            HeaderEdit::Log { name } => ("log", name),
            HeaderEdit::Add { name, .. } => ("add", name),
            HeaderEdit::Delete { name } => ("delete", name),
            HeaderEdit::Replace { name, .. } => ("replace", name),
        };
        write!(f, "{action} {name}")
    }
}

/// The fields as they are forwarded. Names are equal in any case; what is added or replaced comes last.
pub fn edited<'a>(
    fields: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    edits: &'a [HeaderEdit],
) -> SmallVec<[(&'a str, &'a [u8]); 16]> {
    let mut fields: SmallVec<[(&str, &[u8]); 16]> = fields.into_iter().collect();
    for edit in edits {
        if let HeaderEdit::Delete { name } | HeaderEdit::Replace { name, .. } = edit {
            fields.retain(|(sent, _)| !sent.eq_ignore_ascii_case(name));
        }
        if let HeaderEdit::Add { name, value } | HeaderEdit::Replace { name, value } = edit {
            fields.push((name, value));
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_done_in_their_order() {
        let replace = |value: &str| HeaderEdit::Replace { name: "x-a".into(), value: value.into() };
        let add = |value: &str| HeaderEdit::Add { name: "x-a".into(), value: value.into() };
        let delete = || HeaderEdit::Delete { name: "x-a".into() };
        let log = || HeaderEdit::Log { name: "x-a".into() };
        let sent = [("X-B", &b"b"[..]), ("X-A", b"a")];
        let values = |edits: &[HeaderEdit]| -> Vec<String> {
            let fields = edited(sent, edits);
            assert_eq!(fields[0], sent[0]);
            fields[1..].iter().map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect()
        };
        assert_eq!(values(&[log()]), ["a"]);
        assert_eq!(values(&[replace("1"), replace("2")]), ["2"]);
        assert_eq!(values(&[add("1"), delete()]), [""; 0]);
        assert_eq!(values(&[delete(), add("1"), add("2")]), ["1", "2"]);
    }
}
