//! What the proxies know: `<run-dir>/l7.json`, written by the agent, watched by the proxies.
//!
//! The agent writes a new document beside the old one and renames it, after the kernel has the state it
//! describes. A proxy that starts while no agent runs reads what the last one left. A document that
//! cannot be read is reported, and the one before it stays in force.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::cluster::View;
use crate::model::IdentityKind;
use crate::policy::l7::snapshot::{Endpoint, Scope, SecretValue, Sides, Snapshot};
use crate::policy::l7::{HeaderValue, L7Rules};

const FILE: &str = "l7.json";

/// The agent's end.
#[derive(Debug)]
pub struct FeedWriter {
    directory: PathBuf,
    written: Option<Snapshot>,
}

impl FeedWriter {
    /// Documents go into `run_dir`.
    pub fn new(run_dir: &Path) -> FeedWriter {
        FeedWriter { directory: run_dir.to_owned(), written: None }
    }

    /// Writes what the view says, if that is news.
    pub fn publish(&mut self, view: &View) -> anyhow::Result<()> {
        let snapshot = snapshot(view);
        let is_old = self
            .written
            .as_ref()
            .is_some_and(|written| Snapshot { revision: snapshot.revision, ..written.clone() } == snapshot);
        if is_old {
            return Ok(());
        }
        let path = self.directory.join(FILE);
        let temporary = self.directory.join("l7.json.new");
        private_directory(&self.directory)?;
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .with_context(|| temporary.display().to_string())?;
        file.write_all(&serde_json::to_vec(&snapshot)?).with_context(|| temporary.display().to_string())?;
        std::fs::rename(&temporary, &path).with_context(|| path.display().to_string())?;
        self.written = Some(snapshot);
        Ok(())
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
            let known = Endpoint { pod: endpoint.pod.path().into(), identity: endpoint.identity };
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

/// A proxy's end: the newest snapshot, at any moment.
pub type Feed = Arc<ArcSwap<Snapshot>>;

/// Reads the document of `run_dir` now and whenever it is replaced. `on_change` is told each time, on the
/// watching thread.
///
/// # Errors
/// There is no document, or it cannot be watched.
pub fn follow(run_dir: &Path, on_change: impl Fn() + Send + 'static) -> anyhow::Result<Feed> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).context("watch the policy feed")?;
    inotify
        .add_watch(
            run_dir,
            AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_DELETE_SELF,
        )
        .with_context(|| format!("watch {}", run_dir.display()))?;
    let path = run_dir.join(FILE);
    let feed: Feed = Arc::new(ArcSwap::from_pointee(read(&path)?));
    let newest = Arc::clone(&feed);
    std::thread::Builder::new()
        .name("sluice-feed".into())
        .spawn(move || {
            while let Ok(events) = inotify.read_events() {
                if events.iter().any(|event| event.name.as_deref() == Some(FILE.as_ref())) {
                    match read(&path) {
                        Ok(snapshot) => newest.store(Arc::new(snapshot)),
                        Err(error) => {
                            tracing::error!(error = %format!("{error:#}"), "the policy feed is not read")
                        }
                    }
                }
                on_change();
            }
        })
        .context("start the feed's thread")?;
    Ok(feed)
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
        let feed = follow(directory.path(), move || told.send(()).unwrap()).unwrap();
        assert_eq!(feed.load().revision, 1);
        for (text, expected) in [(serde_json::to_string(&with(2)).unwrap(), 2), ("{".to_owned(), 2)] {
            put(&text);
            news.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
            assert_eq!(feed.load().revision, expected);
        }
    }
}
