//! What the proxies know: `<run-dir>/l7.json`, written by the agent, watched by the proxies.
//!
//! The document is never behind the kernel. A change goes like this:
//!
//! 1. the agent writes a document of the rules after the change and of those before it ([`Snapshot::after`]);
//! 2. the kernel learns of the change, and redirects connections by it;
//! 3. the agent writes the document of the new rules alone.
//!
//! A proxy that has a connection before it looks whether the document is the one that it has read ([`Newest::load`]), so
//! it knows the rules by which the connection was brought to it, however late it hears of news otherwise.
//! If the first document cannot be written (a full disk), the kernel is not told: what was enforced stays enforced, `status`
//! says so, and it is tried again.
//! Documents are written beside the old one and renamed. A proxy that starts while no agent runs reads what the last one
//! left. A document that cannot be read is reported, and the one before it stays in force. Where news may
//! have been missed, it is read again: the kernel's queue was full, or could not be read.

mod content;
mod reader;
mod writer;

use std::path::Path;

use anyhow::Context as _;

pub use self::reader::{Feed, Newest, follow};
pub use self::writer::FeedWriter;
use crate::policy::l7::snapshot::Snapshot;

const FILE: &str = "l7.json";

/// Makes the agent's directory, for root alone, if it is not there.
pub fn private_directory(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| path.display().to_string())
}

fn read(path: &Path) -> anyhow::Result<Snapshot> {
    let text = std::fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&text).with_context(|| path.display().to_string())
}
