//! A proxy's end of the feed: the newest document, at any moment, and news of it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};
use parking_lot::Mutex;

use super::{FILE, read};
use crate::policy::l7::snapshot::Snapshot;

/// Between attempts to read events.
const PAUSE: Duration = Duration::from_secs(1);

/// The newest snapshot that was read, at any moment.
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
    pub(in crate::agent) fn open(path: PathBuf) -> anyhow::Result<Newest> {
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
