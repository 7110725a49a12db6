//! The agent's end of the feed: documents in the order of its module.

use std::collections::VecDeque;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::content::snapshot;
use super::{FILE, private_directory, read};
use crate::agent::l7misfits::misfits;
use crate::cluster::View;
use crate::policy::l7::fields;
use crate::policy::l7::snapshot::Snapshot;

/// See the module.
#[derive(Debug)]
pub struct FeedWriter {
    directory: PathBuf,
    written: Option<Snapshot>,
    /// What the kernel is about to have.
    next: Option<Snapshot>,
    /// The files of the latest documents: as long as they are open, none of theirs has the number of another one.
    files: VecDeque<std::fs::File>,
    misfits: Vec<String>,
}

/// Documents that have inode numbers of their own.
const TOLD_APART: usize = 4;

impl FeedWriter {
    /// Documents go into `run_dir`. What an earlier agent wrote is what the kernel has.
    pub fn new(run_dir: &Path) -> FeedWriter {
        let written = read(&run_dir.join(FILE)).ok();
        FeedWriter {
            directory: run_dir.to_owned(),
            written,
            next: None,
            files: VecDeque::new(),
            misfits: Vec::new(),
        }
    }

    /// Writes what the view says beside what was said, if that is news. To be called before the kernel hears of it.
    pub fn announce(&mut self, view: &View) -> anyhow::Result<()> {
        let next = snapshot(view);
        let both = self.written.as_ref().map_or_else(|| next.clone(), |written| next.after(written));
        self.next = Some(next);
        self.write(both)
    }

    /// Writes what was announced alone: the kernel has it.
    pub fn settle(&mut self) -> anyhow::Result<()> {
        let Some(next) = self.next.take() else { return Ok(()) };
        let written = self.write(next.clone());
        if written.is_err() {
            self.next = Some(next);
        }
        written
    }

    fn write(&mut self, snapshot: Snapshot) -> anyhow::Result<()> {
        if self.written.as_ref().is_some_and(|written| written.says_what(&snapshot)) && !self.files.is_empty()
        {
            return Ok(());
        }
        let path = self.directory.join(FILE);
        let temporary = self.directory.join("l7.json.new");
        private_directory(&self.directory)?;
        // Never one that was there: its inode may be that of a document.
        std::fs::remove_file(&temporary).ok();
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .with_context(|| temporary.display().to_string())?;
        file.write_all(&serde_json::to_vec(&snapshot)?).with_context(|| temporary.display().to_string())?;
        std::fs::rename(&temporary, &path).with_context(|| path.display().to_string())?;
        self.misfits = misfits(&snapshot);
        let before = self.written.replace(snapshot);
        let known = before.as_ref().map(|before| &before.secrets[..]).unwrap_or_default();
        for secret in self.written.iter().flat_map(|written| &written.secrets) {
            if fields::of_secret(&secret.value).is_none() && !known.contains(secret) {
                tracing::warn!(
                    "Secret {}/{}: no header can have this value (control characters, or space around it): rules \
                     that name it find it missing",
                    secret.namespace,
                    secret.name
                );
            }
        }
        self.files.push_back(file);
        if self.files.len() > TOLD_APART {
            self.files.pop_front();
        }
        Ok(())
    }

    /// Where nothing passes by the document that was written last, because rules are too large together.
    pub fn misfits(&self) -> &[String] {
        &self.misfits
    }
}
