//! What is wrong with an input, and where: the one shape in which this room reports anything.

use std::fmt;
use std::sync::Arc;

use crate::policy::lint::Code;

/// A place in an input. Lines and columns count from 1; 0 means that the input has no text (an
/// object from the API server).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub file: Arc<str>,
    pub line: u32,
    pub column: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}", self.file),
            line => write!(f, "{}:{}:{}", self.file, line, self.column),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Accepted, but probably not what the author means.
    Warning,
    /// The object is rejected.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Warning => "warning",
            Severity::Error => "error",
        })
    }
}

/// One thing that is wrong: what was found and what was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub position: Position,
    pub severity: Severity,
    /// `Kind namespace/name`, as far as it could be read.
    pub object: Option<String>,
    /// Such as `spec.ingress[0].toPorts[1].ports[0].port`; empty for the whole document.
    pub field_path: String,
    /// The trap of the linter that this is, if it is one.
    pub code: Option<Code>,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: ", self.position, self.severity)?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.field_path.is_empty() {
            write!(f, "{}: ", self.field_path)?;
        }
        f.write_str(&self.message)
    }
}

/// Something that was left out without being wrong, such as a kind that sluice does not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub position: Position,
    pub message: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: note: {}", self.position, self.message)
    }
}
