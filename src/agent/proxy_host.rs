//! The frame around a proxy process: its policy feed, its records, and how it is found and replaced.
//!
//! In `<run-dir>` a proxy leaves `<name>.pid` and the socket `<name>.sock`, both only when its listeners are in
//! their places. Whoever connects gets one line of JSON ([`Hello`]) and may hold the connection: it ends with
//! the process. A proxy stops when it is told to (SIGTERM), and when its pid file names another
//! process or is gone: then a new process has taken over the listeners, or the agent's directory has been
//! deleted. What runs is finished first. One that is told to stop says [`LEAVING`] to whoever holds a connection,
//! and goes on accepting while it finishes: the agent starts another one in that time, so that nobody is refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::l7feed::{self, Feed, Newest};
use super::records::Sender;
use crate::api;

/// Second line on a connection: this process goes, but listens until another one does.
pub const LEAVING: &str = "leaving";

/// What a proxy says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    pub pid: u32,
    /// Which program it runs; see [`build`].
    pub build: String,
    /// How it was started.
    #[serde(default)]
    pub arguments: Vec<String>,
    /// Counters by name.
    pub counters: serde_json::Value,
}

/// Tells one installed program from another.
pub fn build() -> String {
    use std::os::unix::fs::MetadataExt as _;
    let file = std::fs::metadata("/proc/self/exe").map(|meta| (meta.dev(), meta.ino(), meta.mtime_nsec()));
    match file {
        Ok((device, inode, time)) => format!("{} {device}-{inode}-{time}", env!("CARGO_PKG_VERSION")),
        Err(_) => env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// As many open files as the system lets us have: each connection takes two.
pub fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// The files by which a proxy is found.
#[derive(Clone, Debug)]
pub struct Place {
    pub pid: PathBuf,
    pub socket: PathBuf,
}

impl Place {
    pub fn new(run_dir: &Path, name: &str) -> Place {
        Place { pid: run_dir.join(format!("{name}.pid")), socket: run_dir.join(format!("{name}.sock")) }
    }

    /// The process that serves here, as its file says.
    pub fn pid(&self) -> Option<u32> {
        std::fs::read_to_string(&self.pid).ok()?.trim().parse().ok()
    }
}

/// See the module.
#[derive(Debug)]
pub struct ProxyHost {
    pub feed: Feed,
    /// The same for those who may not be behind the kernel.
    pub newest: Arc<Newest>,
    /// Moves whenever the feed has a new snapshot.
    pub changes: watch::Receiver<u64>,
    pub records: Arc<Sender>,
    place: Place,
    /// Something in the directory changed: is it still ours?
    touched: watch::Receiver<u64>,
    leaving: watch::Sender<bool>,
}

impl ProxyHost {
    /// # Errors
    /// There is no policy feed in `run_dir`.
    pub fn start(name: &str, run_dir: &Path, records_per_second: u32) -> anyhow::Result<ProxyHost> {
        let (tell, touched) = watch::channel(0);
        let newest = l7feed::follow(run_dir, move || tell.send_modify(|count| *count += 1))?;
        let records = Arc::new(Sender::new(run_dir, records_per_second)?);
        let (leaving, _) = watch::channel(false);
        let place = Place::new(run_dir, name);
        let feed = newest.feed();
        Ok(ProxyHost { feed, newest, changes: touched.clone(), records, place, touched, leaving })
    }

    /// The listeners are in their places: an earlier process learns that it is replaced.
    pub async fn announce(
        &self,
        counters: impl Fn() -> serde_json::Value + Send + Sync + 'static,
    ) -> anyhow::Result<()> {
        let pid = std::process::id();
        // An earlier process may still answer on the socket: its name goes first.
        std::fs::remove_file(&self.place.socket).ok();
        let listener = api::unix::bind(&self.place.socket).await?;
        let temporary = self.place.pid.with_extension(format!("pid.{pid}"));
        std::fs::write(&temporary, format!("{pid}\n")).with_context(|| temporary.display().to_string())?;
        std::fs::rename(&temporary, &self.place.pid).with_context(|| self.place.pid.display().to_string())?;
        let build = build();
        let counters = Arc::new(counters);
        let leaving = self.leaving.subscribe();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (build, counters, mut leaving) = (build.clone(), Arc::clone(&counters), leaving.clone());
                tokio::spawn(async move {
                    let hello = Hello {
                        pid,
                        build,
                        arguments: std::env::args().skip(1).collect(),
                        counters: counters(),
                    };
                    let Ok(mut line) = serde_json::to_vec(&hello) else { return };
                    line.push(b'\n');
                    if stream.write_all(&line).await.is_err() {
                        return;
                    }
                    tokio::select! {
                        () = closed(&stream) => {}
                        true = async { leaving.wait_for(|leaving| *leaving).await.is_ok() } => {
                            stream.write_all(format!("{LEAVING}\n").as_bytes()).await.ok();
                        }
                    }
                });
            }
        });
        Ok(())
    }

    /// Waits until another process has taken over, for so long at most.
    pub async fn succeeded(&self, longest: std::time::Duration) {
        let mut touched = self.touched.clone();
        let succeeded = async {
            while self.place.pid().is_none_or(|pid| pid == std::process::id()) {
                if touched.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(longest, succeeded).await.ok();
    }

    /// Waits until this process is to stop.
    pub async fn stopped(&self) -> anyhow::Result<()> {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut touched = self.touched.clone();
        loop {
            tokio::select! {
                _ = terminate.recv() => {
                    if self.place.pid() == Some(std::process::id()) {
                        std::fs::remove_file(&self.place.pid).ok();
                        std::fs::remove_file(&self.place.socket).ok();
                    }
                    self.leaving.send_replace(true);
                    return Ok(());
                }
                changed = touched.changed() => {
                    if changed.is_err() || self.place.pid() != Some(std::process::id()) {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// The other side has enough.
async fn closed(stream: &UnixStream) {
    // "Readable" may be said too early.
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut [0; 16]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncBufReadExt as _, BufReader};

    use super::*;
    use crate::policy::l7::snapshot::Snapshot;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn who_holds_a_connection_learns_that_a_proxy_leaves_and_another_one_takes_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let feed = serde_json::to_vec(&Snapshot::default()).unwrap();
        std::fs::write(directory.path().join("l7.json"), feed).unwrap();
        let host = ProxyHost::start("x-proxy", directory.path(), 1).unwrap();
        host.announce(|| serde_json::json!({"requests": 7})).await.unwrap();
        let mut stream = BufReader::new(UnixStream::connect(&host.place.socket).await.unwrap());
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        let hello: Hello = serde_json::from_str(&line).unwrap();
        assert_eq!((hello.pid, hello.build), (std::process::id(), build()));
        assert_eq!(hello.counters["requests"], 7);
        host.leaving.send_replace(true);
        line.clear();
        tokio::time::timeout(PATIENCE, stream.read_line(&mut line)).await.unwrap().unwrap();
        assert_eq!(line.trim_end(), LEAVING);
        // Another process announces itself.
        let stopped = host.stopped();
        let temporary = directory.path().join("other");
        std::fs::write(&temporary, "1\n").unwrap();
        std::fs::rename(&temporary, &host.place.pid).unwrap();
        tokio::time::timeout(PATIENCE, stopped).await.unwrap().unwrap();
    }
}
