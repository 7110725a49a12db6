use std::io::{Seek as _, SeekFrom, Write as _};
use std::ops::ControlFlow;

use super::*;
use crate::flow::tests::flow;
use crate::flow::{Flow, Party};
use crate::model::Identity;

const HOUR: u64 = 3_600_000_000_000;
/// Some hour of 2023.
const START: u64 = 472_222 * HOUR;

fn wall(ns: u64) -> Duration {
    Duration::from_nanos(ns)
}

fn by(pod: &str, time_ns: u64, sequence: u64) -> Arc<Flow> {
    let mut flow = Flow { time_ns, sequence, ..flow(80) };
    flow.source = Arc::new(Party { pod: Some(pod.into()), ..(*flow.source).clone() });
    Arc::new(flow)
}

struct Place {
    directory: tempfile::TempDir,
    status: SharedStatus,
}

impl Place {
    fn new() -> Place {
        Place { directory: tempfile::tempdir().unwrap(), status: SharedStatus::default() }
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("flows.db")
    }

    fn open(&self, limits: Limits) -> History {
        History::open(&self.path(), limits, Arc::clone(&self.status)).unwrap()
    }
}

fn read(archive: &Archive, since: u64, until: u64, pod: Option<&str>, newest: Option<usize>) -> Vec<Flow> {
    let pods = |_: &str, name: &str| Some(name) == pod;
    let query = Query {
        since_ns: since,
        until_ns: until,
        pods: pod.is_some().then_some(&pods as &dyn Fn(&str, &str) -> bool),
        matches: &|flow: &Flow| pod.is_none_or(|pod| flow.source.pod.as_deref() == Some(pod)),
        newest,
    };
    let mut found = Vec::new();
    archive
        .read(&query, &mut |flows| {
            found.extend(flows);
            ControlFlow::Continue(())
        })
        .unwrap();
    found
}

fn packets(flows: &[Flow]) -> u64 {
    flows.iter().map(|flow| u64::from(flow.count)).sum()
}

#[test]
fn flows_are_found_by_time_and_pod_after_a_restart() {
    let place = Place::new();
    let mut history = place.open(Limits::default());
    for batch in 0..10_u64 {
        let flows: Vec<_> = (0..100)
            .map(|n| by(if n == 0 { "rare" } else { "usual" }, START + batch * 1000 + n, batch * 100 + n))
            .collect();
        history.append(&flows, || ()).unwrap();
    }
    drop(history);
    let archive = place.open(Limits::default()).archive();
    let all = read(&archive, 0, u64::MAX, None, None);
    assert_eq!(all.len(), 1000);
    assert!(all.is_sorted_by_key(|flow| flow.time_ns));
    assert_eq!(read(&archive, START + 2000, START + 2099, None, None).len(), 100);
    assert_eq!(read(&archive, 0, u64::MAX, Some("rare"), None).len(), 10);
    assert_eq!(read(&archive, 0, u64::MAX, Some("nobody"), None).len(), 0);
    let newest = read(&archive, 0, START + 8050, None, Some(3));
    assert_eq!(newest.iter().map(|flow| flow.time_ns - START).collect::<Vec<_>>(), [8048, 8049, 8050]);
}

#[test]
fn blocks_that_overlap_are_read_in_the_order_of_time() {
    let place = Place::new();
    let mut history = place.open(Limits::default());
    history.append(&[by("a", START, 1), by("a", START + 10, 2)], || ()).unwrap();
    history.append(&[by("a", START + 5, 3), by("a", START + 20, 4)], || ()).unwrap();
    let found = read(&history.archive(), 0, u64::MAX, None, None);
    assert_eq!(found.iter().map(|flow| flow.sequence).collect::<Vec<_>>(), [1, 3, 2, 4]);
}

#[test]
fn after_an_hour_flows_are_counted_by_edge_and_after_a_week_they_go() {
    let place = Place::new();
    let mut history = place.open(Limits::default());
    for batch in 0..100_u64 {
        let flows: Vec<_> = (0..50).map(|n| by("a", START + batch * HOUR / 50 + n, batch * 50 + n)).collect();
        history.append(&flows, || ()).unwrap();
    }
    let archive = history.archive();
    let mut monotonic = Duration::ZERO;
    let mut tidy = |history: &mut History, now| {
        let mut total = Tidied::default();
        loop {
            monotonic += Duration::from_secs(7200);
            let done = history.tidy(wall(now), monotonic).unwrap();
            total.folded += done.folded;
            total.expired += done.expired;
            if !done.is_unfinished {
                return total;
            }
        }
    };
    // The first of two hours is over for more than an hour.
    assert_eq!(tidy(&mut history, START + 2 * HOUR).folded, 2500);
    let found = read(&archive, 0, u64::MAX, None, None);
    assert_eq!((packets(&found), found.len()), (5000, 2501));
    assert_eq!((found[0].count, found[0].source_port), (2500, None));
    assert_eq!(found[0].source.pod.as_deref(), Some("a"));
    assert_eq!(read(&archive, 0, u64::MAX, Some("a"), None).len(), 2501);
    assert_eq!(tidy(&mut history, START + 4 * HOUR).folded, 2500);
    assert_eq!(read(&archive, 0, u64::MAX, None, None).len(), 2);
    // The clock is four days ahead of the time that passed: believed when it stays so.
    tidy(&mut history, START + 8 * 24 * HOUR);
    tidy(&mut history, START + 8 * 24 * HOUR);
    assert_eq!(read(&archive, 0, u64::MAX, None, None).len(), 0);
    let status = place.status.lock().clone();
    assert_eq!((status.written, status.folded, status.unreadable), (5000, 5000, 0));
}

#[test]
fn the_file_stays_within_its_size_and_every_packet_is_kept_counted_or_expired() {
    let place = Place::new();
    let limits = Limits { bytes: 512 * 1024, ..Limits::default() };
    let mut history = place.open(limits);
    let mut written = 0;
    for batch in 0..300_u64 {
        let flows: Vec<_> = (0..200)
            .map(|n| {
                let mut flow =
                    Flow { time_ns: START + batch * 1_000_000 + n, sequence: batch * 200 + n, ..flow(80) };
                let address = std::net::Ipv4Addr::from((batch * 200 + n) as u32);
                flow.destination = Arc::new(Party::unknown(address.into(), Identity::WORLD_IPV4));
                Arc::new(flow)
            })
            .collect();
        if history.append(&flows, || ()).is_ok() {
            written += 200;
        }
        while history
            .tidy(wall(START + batch * 1_000_000), Duration::from_millis(batch))
            .unwrap()
            .is_unfinished
        {}
    }
    assert!(std::fs::metadata(place.path()).unwrap().len() <= limits.bytes);
    let status = place.status.lock().clone();
    assert!(written > 30_000 && status.folded + status.expired > 0, "{written} written, {status:?}");
    assert!(packets(&read(&history.archive(), 0, u64::MAX, None, None)) > 0);
}

#[test]
fn a_full_disk_stops_history_says_so_and_ends_when_there_is_room() {
    let place = Place::new();
    let mut history = place.open(Limits::default());
    history.append(&[by("a", START, 1)], || ()).unwrap();
    let pages: u64 = history.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
    history.connection.pragma_update(None, "max_page_count", pages).unwrap();
    let many: Vec<_> = (0..4000_u64).map(|n| by(&format!("pod-{n}"), START + n * n * 977, n * 31)).collect();
    let error = history.append(&many, || ()).unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    let status = place.status.lock().clone();
    assert_eq!((status.lost, status.written), (4000, 1));
    assert!(status.stopped.is_some_and(|why| why.contains("no space left")));
    history.connection.pragma_update(None, "max_page_count", 1_000_000).unwrap();
    history.append(&many, || ()).unwrap();
    assert_eq!(place.status.lock().stopped, None);
    assert_eq!(read(&history.archive(), 0, u64::MAX, None, None).len(), 4001);
}

#[test]
fn a_corrupt_file_is_moved_aside_and_a_new_one_begun() {
    for damage in ["no database", "cut", "of somebody else"] {
        let place = Place::new();
        let mut history = place.open(Limits::default());
        history.append(&[by("a", START, 1)], || ()).unwrap();
        drop(history);
        let path = place.path();
        match damage {
            "no database" => std::fs::write(&path, vec![7; 4096]).unwrap(),
            "cut" => {
                let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
                file.set_len(1000).unwrap();
            }
            _ => {
                std::fs::remove_file(&path).unwrap();
                Connection::open(&path)
                    .unwrap()
                    .execute_batch("CREATE TABLE x (y); PRAGMA user_version = 3")
                    .unwrap();
            }
        }
        let mut history = place.open(Limits::default());
        let aside = place.status.lock().moved_aside.clone().unwrap();
        assert!(aside.exists(), "{damage}");
        history.append(&[by("b", START, 2)], || ()).unwrap();
        assert_eq!(read(&history.archive(), 0, u64::MAX, None, None).len(), 1, "{damage}");
    }
}

#[test]
fn corruption_met_while_running_replaces_the_file() {
    let place = Place::new();
    let mut history = place.open(Limits::default());
    let many: Vec<_> = (0..4000_u64).map(|n| by(&format!("pod-{n}"), START + n * n * 977, n)).collect();
    history.append(&many, || ()).unwrap();
    drop(history);
    let mut file = std::fs::OpenOptions::new().write(true).open(place.path()).unwrap();
    let length = file.metadata().unwrap().len();
    // All but the first page, which holds the schema.
    file.seek(SeekFrom::Start(4096)).unwrap();
    file.write_all(&vec![0xa5; (length - 4096) as usize]).unwrap();
    drop(file);
    let mut history = place.open(Limits::default());
    let mut attempts = 0;
    while history.append(&[by("a", START, 1)], || ()).is_err() {
        attempts += 1;
        assert!(attempts < 3);
    }
    assert!(place.status.lock().moved_aside.is_some());
    assert_eq!(read(&history.archive(), 0, u64::MAX, None, None).len(), 1);
}

#[test]
fn a_damaged_block_is_left_out_and_counted() {
    let place = Place::new();
    let mut history = place.open(Limits::default());
    history.append(&[by("a", START, 1)], || ()).unwrap();
    history.append(&[by("a", START + 1, 2)], || ()).unwrap();
    history.connection.execute("UPDATE block SET data = x'00112233' WHERE id = 1", []).unwrap();
    assert_eq!(read(&history.archive(), 0, u64::MAX, None, None).len(), 1);
    assert_eq!(place.status.lock().unreadable, 1);
}

#[test]
fn a_crash_in_the_middle_of_a_batch_leaves_whole_batches() {
    let place = Place::new();
    let mut history = place.open(Limits::default());
    history.append(&[by("a", START, 1)], || ()).unwrap();
    // A copy of the files as they are while the writer is alive is what a crash leaves.
    let crashed = place.directory.path().join("crashed.db");
    std::fs::copy(place.path(), &crashed).unwrap();
    std::fs::copy(place.directory.path().join("flows.db-wal"), place.directory.path().join("crashed.db-wal"))
        .unwrap();
    let wal = std::fs::OpenOptions::new().append(true).open(place.directory.path().join("crashed.db-wal"));
    wal.unwrap().write_all(&[0x5a; 5000]).unwrap();
    let mut recovered = History::open(&crashed, Limits::default(), SharedStatus::default()).unwrap();
    assert_eq!(read(&recovered.archive(), 0, u64::MAX, None, None).len(), 1);
    recovered.append(&[by("a", START + 1, 2)], || ()).unwrap();
}

#[test]
fn a_clock_that_jumps_ahead_deletes_nothing() {
    let place = Place::new();
    let mut history = place.open(Limits::default());
    history.append(&[by("a", START, 1)], || ()).unwrap();
    history.tidy(wall(START), Duration::ZERO).unwrap();
    let next_year = START + 365 * 24 * HOUR;
    history.append(&[by("a", next_year, 2)], || ()).unwrap();
    history.tidy(wall(next_year), Duration::from_secs(10)).unwrap();
    assert_eq!(read(&history.archive(), 0, u64::MAX, None, None).len(), 2);
    // And back: flows of either time are found where they say they were.
    history.append(&[by("a", START + 20, 3)], || ()).unwrap();
    history.tidy(wall(START + 20), Duration::from_secs(20)).unwrap();
    assert_eq!(read(&history.archive(), START, START + 100, None, None).len(), 2);
    assert_eq!(place.status.lock().clock_jumps, 1);
}

#[test]
fn two_writers_cannot_share_a_file() {
    let place = Place::new();
    let _first = place.open(Limits::default());
    let second = History::open(&place.path(), Limits::default(), SharedStatus::default());
    assert!(matches!(second, Err(StoreError::InUse { .. })));
}
