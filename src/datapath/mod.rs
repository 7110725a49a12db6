//! The kernel side: the only room that knows aya, byte order and `unsafe`.

pub mod abi;

use crate::cluster::delta::Delta;

/// Where deltas go: the kernel, or an in-memory twin for tests.
pub trait Datapath: Send {
    /// Applies every change or reports which failed; what failed is retried by the caller with the
    /// same delta (all changes are keyed), and is closed meanwhile.
    fn apply(&mut self, delta: &Delta) -> Result<(), DatapathError>;
}

/// A failed kernel operation, with the operation and the object.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    #[error("map {map} is full ({entries} entries): {what}")]
    MapFull { map: &'static str, entries: u32, what: String },
    #[error("{operation} on {object}: {source}")]
    Syscall { operation: &'static str, object: String, source: std::io::Error },
    #[error("program {program} was refused by the kernel: {reason}")]
    Load { program: String, reason: String },
    #[error("{0}")]
    Other(String),
}
