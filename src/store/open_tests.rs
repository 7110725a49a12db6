use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::super::{OnCorrupt, OpenOptions, Store, StoreError};
use super::*;

fn options(directory: &tempfile::TempDir) -> OpenOptions {
    OpenOptions::new(directory.path().join("state/state.db"))
}

fn corrupt_after_writing(options: &OpenOptions) {
    let store = Store::open(options).unwrap();
    for index in 0..200 {
        store.set_setting(&format!("name-{index}"), &"value".repeat(100)).unwrap();
    }
    drop(store);
    let mut bytes = fs::read(&options.path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4096].fill(0xa5);
    fs::write(&options.path, bytes).unwrap();
}

#[test]
fn the_file_and_its_directory_are_private() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(&directory);
    let store = Store::open(&options).unwrap();
    store.set_setting("a", "b").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&options.path), 0o600);
    assert_eq!(mode(&with_suffix(&options.path, "-wal")), 0o600);
    assert_eq!(mode(options.path.parent().unwrap()), 0o700);
}

#[test]
fn what_was_stored_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(&directory);
    let epoch = {
        let store = Store::open(&options).unwrap();
        store.set_setting("cluster", "one").unwrap();
        store.epoch().unwrap()
    };
    let store = Store::open(&options).unwrap();
    assert_eq!(store.setting("cluster").unwrap().as_deref(), Some("one"));
    assert_eq!(store.epoch().unwrap(), epoch);
    assert_eq!(store.setting("other").unwrap(), None);
}

#[test]
fn a_second_process_is_kept_out() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(&directory);
    let store = Store::open(&options).unwrap();
    assert!(matches!(Store::open(&options), Err(StoreError::InUse { .. })));
    drop(store);
    Store::open(&options).unwrap();
}

#[test]
fn a_corrupt_file_is_moved_aside_and_every_later_start_is_refused_too() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(&directory);
    corrupt_after_writing(&options);
    let Err(StoreError::Corrupt { aside, .. }) = Store::open(&options) else {
        panic!("a corrupt file was opened");
    };
    assert!(aside.exists() && !options.path.exists());
    let error = Store::open(&options).unwrap_err();
    assert!(matches!(&error, StoreError::Corrupt { aside: again, .. } if *again == aside), "{error}");
    assert!(error.to_string().contains("--reset-corrupt-state"), "{error}");
    assert!(!options.path.exists(), "the refusal must not leave an empty store behind");

    let fresh = OpenOptions { on_corrupt: OnCorrupt::StartFresh, ..options.clone() };
    assert_eq!(Store::open(&fresh).unwrap().setting("name-1").unwrap(), None);
    assert!(aside.exists(), "the old file is kept");
    Store::open(&options).unwrap();
}

#[test]
fn a_fresh_start_on_a_corrupt_file_keeps_it() {
    let directory = tempfile::tempdir().unwrap();
    let options = OpenOptions { on_corrupt: OnCorrupt::StartFresh, ..options(&directory) };
    corrupt_after_writing(&options);
    let store = Store::open(&options).unwrap();
    assert_eq!(store.setting("name-1").unwrap(), None);
    assert!(moved_aside(&options.path).unwrap().is_some());
}

#[test]
fn garbage_truncation_and_a_damaged_header_are_corruption() {
    for damage in ["garbage", "truncate", "header"] {
        let directory = tempfile::tempdir().unwrap();
        let options = options(&directory);
        drop(Store::open(&options).unwrap());
        let mut bytes = fs::read(&options.path).unwrap();
        match damage {
            "garbage" => bytes = b"this is not a database at all, it is a text\n".repeat(50),
            "truncate" => bytes.truncate(bytes.len() / 2 + 100),
            _ => bytes[..16].fill(0),
        }
        fs::write(&options.path, bytes).unwrap();
        let outcome = Store::open(&options).map(drop);
        assert!(matches!(outcome, Err(StoreError::Corrupt { .. })), "{damage}: {outcome:?}");
    }
}

#[test]
fn the_database_of_another_program_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let options = OpenOptions::new(directory.path().join("state.db"));
    let foreign = Connection::open(&options.path).unwrap();
    foreign.execute_batch("CREATE TABLE theirs (x)").unwrap();
    drop(foreign);
    assert!(matches!(Store::open(&options), Err(StoreError::NotOurs { .. })));
    assert!(options.path.exists());
}

#[test]
fn a_lock_held_by_another_program_is_reported_and_counted_and_passes() {
    let directory = tempfile::tempdir().unwrap();
    let options = OpenOptions { busy_timeout: Duration::from_millis(20), ..options(&directory) };
    let store = Store::open(&options).unwrap();
    let other = Connection::open(&options.path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = store.set_setting("a", "1").unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }) && error.is_transient(), "{error}");
    assert_eq!(store.setting("a").unwrap(), None, "readers go on");
    let _ = store.set_setting("a", "1");
    assert_eq!(store.health().errors["locked"], 2);
    assert!(store.health().failing.is_some());
    assert_eq!(store.setting("a").unwrap(), None);
    assert!(store.health().failing.is_some(), "a read says nothing about writes");
    other.execute_batch("ROLLBACK").unwrap();
    store.probe(std::time::SystemTime::now()).unwrap();
    assert_eq!(store.health().failing, None);
}

#[test]
fn a_full_disk_is_reported_and_nothing_is_half_written() {
    let directory = tempfile::tempdir().unwrap();
    let options = OpenOptions { max_pages: Some(64), ..options(&directory) };
    let store = Store::open(&options).unwrap();
    store.set_setting("before", "1").unwrap();
    let error = store.set_setting("big", &"x".repeat(1 << 20)).unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }) && error.is_transient(), "{error}");
    assert_eq!(store.health().errors["full"], 1);
    assert_eq!(store.setting("big").unwrap(), None);
    assert_eq!(store.setting("before").unwrap().as_deref(), Some("1"));
    store.set_setting("after", "1").unwrap();
}
