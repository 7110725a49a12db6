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

use std::collections::VecDeque;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};
use parking_lot::Mutex;

use super::l7misfits::misfits;
use crate::cluster::View;
use crate::model::IdentityKind;
use crate::policy::l7::snapshot::{Endpoint, Scope, SecretValue, Sides, Snapshot};
use crate::policy::l7::{HeaderValue, L7Rules, fields};

const FILE: &str = "l7.json";
/// Between attempts to read events.
const PAUSE: Duration = Duration::from_secs(1);

/// The agent's end.
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

/// Makes the agent's directory, for root alone, if it is not there.
pub fn private_directory(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| path.display().to_string())
}

fn snapshot(view: &View) -> Snapshot {
    let sides = view.engine().l7_sides();
    let secrets = secrets(&sides, view);
    let endpoints = view
        .endpoints()
        .flat_map(|endpoint| {
            let known =
                Endpoint { pod: endpoint.pod.path().into(), identity: endpoint.identity, before: Vec::new() };
            endpoint.addresses.iter().map(move |address| (*address, known.clone()))
        })
        .collect();
    Snapshot {
        revision: view.revision(),
        patterns: view.names().patterns().cloned().collect(),
        scopes: scopes(view),
        node: view.options().node.as_str().into(),
        endpoints,
        sides,
        before: Vec::new(),
        secrets,
    }
}

/// What identities of the world stand for, where names matter at all.
fn scopes(view: &View) -> Vec<Scope> {
    if view.names().patterns().next().is_none() {
        return Vec::new();
    }
    let scopes = view.identities().filter_map(|record| match &record.kind {
        IdentityKind::Cidr(scope) => Some(Scope {
            identity: record.id,
            prefix: scope.prefix,
            ipv6: scope.ipv6,
            patterns: scope.fqdns.clone(),
        }),
        IdentityKind::Labels | IdentityKind::Node { .. } | IdentityKind::AddressClass(_) => None,
    });
    scopes.collect()
}

/// Values of the Secrets that some rule names. One that is not there is left out, and nothing equals it.
fn secrets(sides: &Sides, view: &View) -> Vec<SecretValue> {
    let http = sides.l7.iter().filter_map(|rules| match &**rules {
        L7Rules::Http(rules) => Some(rules),
        L7Rules::Dns(_) | L7Rules::Tls(_) => None,
    });
    let mut found: Vec<SecretValue> = Vec::new();
    for header in http.flatten().flat_map(|rule| &rule.headers) {
        let HeaderValue::Secret { namespace, name, key } = &header.value else { continue };
        let Some(secret) = view.secret(namespace, name) else { continue };
        let value = match key {
            Some(key) => secret.data.get(&**key),
            None if secret.data.len() == 1 => secret.data.values().next(),
            None => None,
        };
        let known =
            |other: &SecretValue| (&other.namespace, &other.name, &other.key) == (namespace, name, key);
        if let Some(value) = value.filter(|_| !found.iter().any(known)) {
            found.push(SecretValue {
                namespace: namespace.clone(),
                name: name.clone(),
                key: key.clone(),
                value: value.clone(),
            });
        }
    }
    found
}

/// A proxy's end: the newest snapshot that was read, at any moment.
pub type Feed = Arc<ArcSwap<Snapshot>>;

/// A proxy's end, for those who may not be behind the kernel.
#[derive(Debug)]
pub struct Newest {
    feed: Feed,
    path: PathBuf,
    /// Which file was read last.
    known: Mutex<Option<Version>>,
}

/// Tells documents apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    inode: u64,
    modified: (i64, i64),
    length: u64,
}

impl Newest {
    /// Nobody watches: news are read by [`Newest::load`] alone.
    pub(super) fn open(path: PathBuf) -> anyhow::Result<Newest> {
        // In this order: what is replaced in between is read again.
        let version = version(&path);
        let feed = Arc::new(ArcSwap::from_pointee(read(&path)?));
        Ok(Newest { feed, path, known: Mutex::new(version) })
    }

    /// The newest snapshot that is read.
    pub fn feed(&self) -> Feed {
        Arc::clone(&self.feed)
    }

    /// The snapshot of the document that is there now; one that cannot be read leaves the last one in force.
    pub fn load(&self) -> Arc<Snapshot> {
        let mut known = self.known.lock();
        let version = version(&self.path);
        if *known != version {
            *known = version;
            match read(&self.path) {
                Ok(snapshot) => self.feed.store(Arc::new(snapshot)),
                Err(error) => tracing::error!(error = %format!("{error:#}"), "the policy feed is not read"),
            }
        }
        self.feed.load_full()
    }
}

fn version(path: &Path) -> Option<Version> {
    let file = std::fs::metadata(path).ok()?;
    Some(Version { inode: file.ino(), modified: (file.mtime(), file.mtime_nsec()), length: file.len() })
}

/// Reads the document of `run_dir` now and whenever it is replaced. `on_change` is told each time, on the
/// watching thread.
///
/// # Errors
/// There is no document, or it cannot be watched.
pub fn follow(run_dir: &Path, on_change: impl Fn() + Send + 'static) -> anyhow::Result<Arc<Newest>> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).context("watch the policy feed")?;
    inotify
        .add_watch(
            run_dir,
            AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_DELETE_SELF,
        )
        .with_context(|| format!("watch {}", run_dir.display()))?;
    let newest = Arc::new(Newest::open(run_dir.join(FILE))?);
    let watched = Arc::clone(&newest);
    std::thread::Builder::new()
        .name("sluice-feed".into())
        .spawn(move || {
            loop {
                if news(inotify.read_events()) == News::Document {
                    watched.load();
                }
                on_change();
            }
        })
        .context("start the feed's thread")?;
    Ok(newest)
}

/// What happened in the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    /// The document is new, or may be.
    Document,
    Other,
}

/// Waits a moment where events could not be read: that may last.
fn news(events: nix::Result<Vec<InotifyEvent>>) -> News {
    let is_document = |event: &InotifyEvent| {
        // Nobody knows what was dropped: an overflow has no name.
        event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) || event.name.as_deref() == Some(FILE.as_ref())
    };
    match events {
        Ok(events) if events.iter().any(is_document) => News::Document,
        Ok(_) => News::Other,
        Err(error) => {
            tracing::error!(%error, "the policy feed is not watched: it is read every second");
            std::thread::sleep(PAUSE);
            News::Document
        }
    }
}

fn read(path: &Path) -> anyhow::Result<Snapshot> {
    let text = std::fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&text).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_has_the_newest_document_and_keeps_it_when_the_next_is_broken() {
        let directory = tempfile::tempdir().unwrap();
        assert!(follow(directory.path(), || ()).is_err());
        let put = |text: &str| {
            let temporary = directory.path().join("new");
            std::fs::write(&temporary, text).unwrap();
            std::fs::rename(&temporary, directory.path().join(FILE)).unwrap();
        };
        let with = |revision| Snapshot { revision, ..Snapshot::default() };
        put(&serde_json::to_string(&with(1)).unwrap());
        let (told, news) = std::sync::mpsc::channel();
        let newest = follow(directory.path(), move || told.send(()).unwrap()).unwrap();
        let feed = newest.feed();
        assert_eq!(feed.load().revision, 1);
        for (text, expected) in [(serde_json::to_string(&with(2)).unwrap(), 2), ("{".to_owned(), 2)] {
            put(&text);
            news.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
            assert_eq!(feed.load().revision, expected);
        }
    }

    /// An overflow has no name: the document before it stayed in force until the next one.
    #[test]
    fn a_document_whose_event_was_dropped_is_read() {
        use std::sync::mpsc;

        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let put = |revision| {
            let text = serde_json::to_string(&Snapshot { revision, ..Snapshot::default() }).unwrap();
            std::fs::write(path("new"), text).unwrap();
            std::fs::rename(path("new"), path(FILE)).unwrap();
        };
        put(1);
        // The watching thread goes on only when it is told to.
        let ((told, news), (go, may_go)) = (mpsc::channel(), mpsc::channel::<()>());
        let feed = follow(directory.path(), move || {
            told.send(()).ok();
            may_go.recv().ok();
        })
        .unwrap();
        let wait = || news.recv_timeout(Duration::from_secs(30)).unwrap();
        std::fs::write(path("a"), "").unwrap();
        std::fs::rename(path("a"), path("b")).unwrap();
        wait();
        let queue = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        for _ in 0..=queue.trim().parse::<u32>().unwrap() / 2 {
            // Two events that are not the same one twice, which would be told once.
            std::fs::rename(path("b"), path("a")).unwrap();
            std::fs::rename(path("a"), path("b")).unwrap();
        }
        put(2);
        drop(go);
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while feed.load().revision != 2 {
            wait();
            assert!(std::time::Instant::now() < deadline);
        }
    }

    #[test]
    fn events_that_cannot_be_read_do_not_end_the_watch() {
        assert_eq!(news(Err(nix::errno::Errno::EIO)), News::Document);
        assert_eq!(news(Ok(Vec::new())), News::Other);
    }
}
