//! Learning without an agent: the DNS proxy puts addresses into the kernel itself.
//!
//! An address gets an identity that exists already (each pattern has some before any name was looked up): one of
//! the same CIDR prefix that stands for the patterns that match the name, besides those that the address had.
//! Where none stands for exactly these, the one that stands for most of them is taken: never for more, so that
//! nothing opens that policy keeps closed. What was learned is noted in `<run-dir>/names.spool`; the next agent takes it from there.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::datapath::DatapathError;
use crate::datapath::learned::LearnedAddresses;
use crate::dnsproxy::Reach;
use crate::fqdn::{Learned, TtlBounds};
use crate::model::Identity;
use crate::policy::l7::snapshot::{Scope, Snapshot};
use crate::store::LearnedName;

const SPOOL: &str = "names.spool";
/// The spool while an agent takes it in.
const TAKEN: &str = "names.spool.taken";
/// Bytes of the spool beyond which nothing more is noted: the answers of hours.
const LONGEST_SPOOL: u64 = 32 << 20;

/// One line of the spool.
#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    name: String,
    address: IpAddr,
    /// Milliseconds since 1970.
    expires: u64,
}

/// See the module.
#[derive(Debug)]
pub struct OfflineNames {
    addresses: LearnedAddresses,
    ttl: TtlBounds,
    /// One writer at a time.
    spool: Mutex<PathBuf>,
    /// Answers that the next agent will not know.
    unnoted: AtomicU64,
}

impl OfflineNames {
    pub fn new(run_dir: &Path, addresses: LearnedAddresses, ttl: TtlBounds) -> OfflineNames {
        OfflineNames { addresses, ttl, spool: Mutex::new(run_dir.join(SPOOL)), unnoted: AtomicU64::new(0) }
    }

    /// Answers that were not noted, because the spool was full or could not be written.
    pub fn unnoted(&self) -> u64 {
        self.unnoted.load(Ordering::Relaxed)
    }

    /// Opens what policy allows of an answer, as far as it can.
    pub fn learn(&self, snapshot: &Snapshot, learned: &Learned) -> Reach {
        if let Err(error) = self.note(learned) {
            self.unnoted.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(error = %format!("{error:#}"), "the next agent will not know a learned name");
        }
        let matching: BTreeSet<Arc<str>> = snapshot
            .patterns
            .iter()
            .filter(|pattern| pattern.matches(&learned.name))
            .map(|pattern| pattern.text().clone())
            .collect();
        let mut reach = Reach::Ready;
        for (address, _) in &learned.addresses {
            match self.open(snapshot, *address, &matching) {
                Ok(Reach::Ready) => {}
                Ok(Reach::Closed) => reach = Reach::Closed,
                Err(error) => {
                    tracing::error!(%error, %address, "an address was not opened");
                    reach = Reach::Closed;
                }
            }
        }
        reach
    }

    fn open(
        &self,
        snapshot: &Snapshot,
        address: IpAddr,
        matching: &BTreeSet<Arc<str>>,
    ) -> Result<Reach, DatapathError> {
        // Addresses of the cluster are never opened by a name.
        let Some(here) = self.addresses.identity(address)? else { return Ok(Reach::Ready) };
        let choice = choose(&snapshot.scopes, here, address.is_ipv6(), matching);
        if let Some(identity) = choice.identity {
            self.addresses.assign(address, identity)?;
        }
        Ok(choice.reach)
    }

    fn note(&self, learned: &Learned) -> anyhow::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut lines = Vec::new();
        for (address, ttl) in &learned.addresses {
            let expires = u64::try_from((now + self.ttl.of(*ttl)).as_millis()).unwrap_or(u64::MAX);
            let noted = Noted { name: learned.name.to_string(), address: *address, expires };
            serde_json::to_writer(&mut lines, &noted)?;
            lines.push(b'\n');
        }
        let spool = self.spool.lock();
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.append(true).create(true).mode(0o600).open(&*spool)?;
        anyhow::ensure!(file.metadata()?.len() < LONGEST_SPOOL, "{} is full", spool.display());
        Ok(file.write_all(&lines)?)
    }
}

/// What the proxies noted, out of their way. It stays on disk until somebody says that it is stored: an agent that dies
/// before that leaves it to the next one.
#[derive(Debug)]
pub struct Spooled {
    pub rows: Vec<LearnedName>,
    path: PathBuf,
}

impl Spooled {
    /// What an earlier agent took and did not store comes before what was noted since. `None`: there is nothing.
    ///
    /// # Errors
    /// The spool is there and cannot be moved or read.
    pub fn take(run_dir: &Path) -> anyhow::Result<Option<Spooled>> {
        let path = run_dir.join(TAKEN);
        if !path.try_exists().with_context(|| path.display().to_string())? {
            match std::fs::rename(run_dir.join(SPOOL), &path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                renamed => renamed.context("take the names that were learned without an agent")?,
            }
        }
        let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
        // A line that was cut off in the middle is not understood, and missed by nobody but its own name.
        let lines = text.split(|byte| *byte == b'\n');
        let noted = lines.filter_map(|line| serde_json::from_slice::<Noted>(line).ok());
        let rows = noted.map(|noted| LearnedName {
            name: noted.name,
            address: noted.address,
            expires: UNIX_EPOCH + Duration::from_millis(noted.expires),
        });
        Ok(Some(Spooled { rows: rows.collect(), path }))
    }

    /// The rows are in the store.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn stored(self) -> anyhow::Result<()> {
        std::fs::remove_file(&self.path).with_context(|| self.path.display().to_string())
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Choice {
    /// Absent: the address stays what it is.
    identity: Option<Identity>,
    reach: Reach,
}

/// Which identity an address gets that has the identity `here`.
fn choose(scopes: &[Scope], here: Identity, ipv6: bool, matching: &BTreeSet<Arc<str>>) -> Choice {
    let now = scopes.iter().find(|scope| scope.identity == here);
    let is_plain_world = matches!(here, Identity::WORLD | Identity::WORLD_IPV4 | Identity::WORLD_IPV6);
    // Neither the world nor a part of it that we know: its rules are not ours to guess.
    if now.is_none() && !is_plain_world {
        return Choice { identity: None, reach: Reach::Closed };
    }
    let prefix = now.and_then(|scope| scope.prefix);
    let had = now.map(|scope| scope.patterns.clone()).unwrap_or_default();
    let wanted: BTreeSet<Arc<str>> = had.union(matching).cloned().collect();
    if wanted == had {
        return Choice { identity: None, reach: Reach::Ready };
    }
    let best = scopes
        .iter()
        .filter(|scope| (scope.prefix, scope.ipv6) == (prefix, ipv6))
        .filter(|scope| scope.patterns.is_superset(&had) && scope.patterns.is_subset(&wanted))
        .max_by_key(|scope| scope.patterns.len());
    let reach = if best.is_some_and(|scope| scope.patterns == wanted) { Reach::Ready } else { Reach::Closed };
    Choice { identity: best.map(|scope| scope.identity), reach }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(patterns: &[&str]) -> BTreeSet<Arc<str>> {
        patterns.iter().map(|text| Arc::from(*text)).collect()
    }

    fn scope(number: u32, prefix: Option<&str>, patterns: &[&str]) -> Scope {
        let prefix = prefix.map(|text| text.parse().unwrap());
        Scope { identity: Identity(number), prefix, ipv6: false, patterns: set(patterns) }
    }

    #[test]
    fn an_address_gets_the_identity_of_its_patterns_and_never_more() {
        let scopes = [
            scope(20, None, &["a"]),
            scope(21, None, &["a", "b"]),
            scope(22, Some("10.0.0.0/8"), &[]),
            scope(23, None, &["a", "c"]),
        ];
        let choose = |here, patterns: &[&str]| choose(&scopes, Identity(here), false, &set(patterns));
        let chosen = |number, reach| Choice { identity: Some(Identity(number)), reach };
        assert_eq!(choose(9, &["a"]), chosen(20, Reach::Ready));
        assert_eq!(choose(20, &["b"]), chosen(21, Reach::Ready), "what it had stays");
        assert_eq!(choose(21, &["a"]), Choice { identity: None, reach: Reach::Ready });
        assert_eq!(choose(20, &["z"]), chosen(20, Reach::Closed), "nothing stands for both");
        assert_eq!(choose(22, &["a"]), Choice { identity: Some(Identity(22)), reach: Reach::Closed });
        assert_eq!(choose(9, &["b"]), Choice { identity: None, reach: Reach::Closed });
        assert_eq!(choose(300, &["a"]), Choice { identity: None, reach: Reach::Closed }, "no world at all");
    }

    fn line(name: &str) -> String {
        format!("{{\"name\":\"{name}\",\"address\":\"192.0.2.1\",\"expires\":4102444800000}}\n")
    }

    fn taken(directory: &Path) -> Option<(Vec<String>, Spooled)> {
        let spooled = Spooled::take(directory).unwrap()?;
        Some((spooled.rows.iter().map(|row| row.name.clone()).collect(), spooled))
    }

    #[test]
    fn the_next_agent_finds_what_was_noted_once() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        assert!(taken(directory).is_none());
        std::fs::write(
            directory.join(SPOOL),
            [line("a.example").as_bytes(), b"\xff\n{\"name\":\"b"].concat(),
        )
        .unwrap();
        let (names, spooled) = taken(directory).unwrap();
        assert_eq!(names, ["a.example"]);
        spooled.stored().unwrap();
        assert!(taken(directory).is_none());
    }

    /// The file went before the rows were stored, and nobody read what was left of it.
    #[test]
    fn what_an_agent_took_and_did_not_store_is_left_to_the_next_one() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        std::fs::write(directory.join(SPOOL), line("a.example")).unwrap();
        // This one dies.
        drop(taken(directory));
        std::fs::write(directory.join(SPOOL), line("b.example")).unwrap();
        for expected in ["a.example", "b.example"] {
            let (names, spooled) = taken(directory).unwrap();
            assert_eq!(names, [expected]);
            spooled.stored().unwrap();
        }
        assert!(taken(directory).is_none());
    }
}
