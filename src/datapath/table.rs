//! One map, typed: the kernel's, or the in-memory twin's.
//!
//! The kernel is the only store of what is enforced. There is no shadow of the elements: a full
//! comparison reads the map back (a few million elements a second through batch calls), and the
//! capacity check counts only when an upper bound says that it could be needed.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::Pod;
use parking_lot::Mutex;

use super::DatapathError;
use super::sys::{self, BatchStep, MapInfo};

/// What a key of a table can do.
pub trait Key: Pod + Default + Ord + Debug + Send + Sync {}
impl<T: Pod + Default + Ord + Debug + Send + Sync> Key for T {}

/// What a value of a table can do.
pub trait Value: Pod + Default + PartialEq + Debug + Send + Sync {}
impl<T: Pod + Default + PartialEq + Debug + Send + Sync> Value for T {}

/// A map shared between the kernel and everybody who holds it: methods take `&self`.
pub trait Table<K: Key, V: Value>: Debug + Send + Sync {
    /// Name in `bpf/abi.h`.
    fn name(&self) -> &'static str;

    /// Room for this many elements.
    fn max_entries(&self) -> u32;

    /// Looks up as the kernel does: a trie answers with the longest prefix that covers the key.
    fn get(&self, key: &K) -> Result<Option<V>, DatapathError>;

    /// Inserts or replaces all. When it fails, a prefix of the elements was written.
    fn upsert(&self, keys: &[K], values: &[V]) -> Result<(), DatapathError>;

    /// Deletes all; absent keys are no error.
    fn delete(&self, keys: &[K]) -> Result<(), DatapathError>;

    /// Calls `visit` for every element. Elements that come or go meanwhile may be missed, or met
    /// twice.
    fn for_each(&self, visit: &mut dyn FnMut(&K, &V)) -> Result<(), DatapathError>;

    /// At least the number of elements; exact after [`Table::count`].
    fn bound(&self) -> u64;

    /// Somebody counted.
    fn learn(&self, count: u64);

    /// The number of elements now (reads the whole map).
    fn count(&self) -> Result<u64, DatapathError> {
        let mut count = 0;
        self.for_each(&mut |_, _| count += 1)?;
        self.learn(count);
        Ok(count)
    }

    /// Fails with [`DatapathError::MapFull`] when inserting `keys` could not succeed.
    fn check_room(&self, keys: &[K], what: &dyn Fn() -> String) -> Result<(), DatapathError> {
        let room = u64::from(self.max_entries());
        if self.bound() + keys.len() as u64 <= room {
            return Ok(());
        }
        let mut new: std::collections::BTreeSet<&K> = keys.iter().collect();
        let mut present = 0;
        self.for_each(&mut |key, _| {
            present += 1;
            new.remove(key);
        })?;
        self.learn(present);
        if present + new.len() as u64 <= room {
            return Ok(());
        }
        Err(DatapathError::MapFull { map: self.name(), entries: self.max_entries(), what: what() })
    }
}

/// A table that several parts of the program hold.
pub type Shared<K, V> = Arc<dyn Table<K, V>>;

/// Below this number single calls are as fast as a batch.
const BATCH_MIN: usize = 4;
/// Elements read at a time, and bytes that they may take.
const READ_CHUNK: usize = 4096;
const READ_BYTES: usize = 1 << 20;
/// `ENOTSUPP` of the kernel: the map type has no batch operations.
const ENOTSUPP: i32 = 524;

fn syscall(operation: &'static str, map: &'static str, source: io::Error) -> DatapathError {
    DatapathError::Syscall { operation, object: format!("map {map}"), source }
}

/// A map in the kernel.
#[derive(Debug)]
pub struct KernelTable {
    name: &'static str,
    fd: OwnedFd,
    info: MapInfo,
    bound: AtomicU64,
}

impl KernelTable {
    /// Takes over a map whose element sizes are those of `K` and `V`.
    ///
    /// # Errors
    /// When the sizes differ, or the kernel cannot say.
    pub fn open<K: Key, V: Value>(name: &'static str, fd: OwnedFd) -> Result<Shared<K, V>, DatapathError> {
        let info = sys::map_info(&fd).map_err(|e| syscall("BPF_OBJ_GET_INFO_BY_FD", name, e))?;
        let (key, value) = (size_of::<K>() as u32, size_of::<V>() as u32);
        if (info.key_size, info.value_size) != (key, value) {
            return Err(DatapathError::MapShape {
                map: name,
                expected: format!("key {key}, value {value} bytes"),
                found: format!("key {}, value {} bytes", info.key_size, info.value_size),
            });
        }
        // Nothing is known about what a pinned map holds: full, until somebody counts.
        let bound = AtomicU64::new(u64::from(info.max_entries));
        Ok(Arc::new(KernelTable { name, fd, info, bound }))
    }

    fn failed<K>(
        &self,
        operation: &'static str,
        error: io::Error,
        written: usize,
        keys: &[K],
    ) -> DatapathError {
        match error.raw_os_error() {
            // Hashes say E2BIG, tries ENOSPC.
            Some(libc::E2BIG | libc::ENOSPC) => DatapathError::MapFull {
                map: self.name,
                entries: self.info.max_entries,
                what: format!("{written} of {} elements were written", keys.len()),
            },
            _ => syscall(operation, self.name, error),
        }
    }

    fn read_one_by_one<K: Key, V: Value>(&self, visit: &mut dyn FnMut(&K, &V)) -> Result<(), DatapathError> {
        let fail = |operation| move |error| syscall(operation, self.name, error);
        let mut key: Option<K> = None;
        while let Some(next) = sys::next_key(&self.fd, key.as_ref()).map_err(fail("BPF_MAP_GET_NEXT_KEY"))? {
            if let Some(value) = sys::lookup(&self.fd, &next).map_err(fail("BPF_MAP_LOOKUP_ELEM"))? {
                visit(&next, &value);
            }
            key = Some(next);
        }
        Ok(())
    }
}

fn no_batch(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(ENOTSUPP | libc::EOPNOTSUPP | libc::EINVAL))
}

impl AsFd for KernelTable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<K: Key, V: Value> Table<K, V> for KernelTable {
    fn name(&self) -> &'static str {
        self.name
    }

    fn max_entries(&self) -> u32 {
        self.info.max_entries
    }

    fn get(&self, key: &K) -> Result<Option<V>, DatapathError> {
        sys::lookup(&self.fd, key).map_err(|e| syscall("BPF_MAP_LOOKUP_ELEM", self.name, e))
    }

    fn upsert(&self, keys: &[K], values: &[V]) -> Result<(), DatapathError> {
        let mut done = 0;
        if keys.len() >= BATCH_MIN {
            match sys::update_batch(&self.fd, keys, values) {
                Ok(()) => done = keys.len(),
                Err((_, error)) if no_batch(&error) => {}
                Err((written, error)) => {
                    self.bound.fetch_add(written as u64, Ordering::Relaxed);
                    return Err(self.failed("BPF_MAP_UPDATE_BATCH", error, written, keys));
                }
            }
        }
        for (index, (key, value)) in keys.iter().zip(values).enumerate().skip(done) {
            sys::update(&self.fd, key, value)
                .map_err(|error| self.failed("BPF_MAP_UPDATE_ELEM", error, index, keys))?;
        }
        self.bound.fetch_add(keys.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn delete(&self, keys: &[K]) -> Result<(), DatapathError> {
        let mut rest = keys;
        while rest.len() >= BATCH_MIN {
            match sys::delete_batch(&self.fd, rest) {
                Ok(()) => return Ok(()),
                Err((_, error)) if no_batch(&error) => break,
                // A batch stops at an absent key: go on after it.
                Err((done, error)) if error.raw_os_error() == Some(libc::ENOENT) => rest = &rest[done + 1..],
                Err((_, error)) => return Err(syscall("BPF_MAP_DELETE_BATCH", self.name, error)),
            }
        }
        for key in rest {
            sys::delete(&self.fd, key).map_err(|e| syscall("BPF_MAP_DELETE_ELEM", self.name, e))?;
        }
        Ok(())
    }

    fn for_each(&self, visit: &mut dyn FnMut(&K, &V)) -> Result<(), DatapathError> {
        let mut count = 0;
        self.read(&mut |key, value| {
            count += 1;
            visit(key, value);
        })?;
        // Who writes the map and reads it whole knows how much is in it.
        self.bound.store(count, Ordering::Relaxed);
        Ok(())
    }

    fn bound(&self) -> u64 {
        self.bound.load(Ordering::Relaxed)
    }

    fn learn(&self, count: u64) {
        self.bound.store(count, Ordering::Relaxed);
    }
}

impl KernelTable {
    fn read<K: Key, V: Value>(&self, visit: &mut dyn FnMut(&K, &V)) -> Result<(), DatapathError> {
        let mut chunk = READ_CHUNK.min(READ_BYTES / (size_of::<K>() + size_of::<V>()).max(1)).max(1);
        let (mut keys, mut values) = (vec![K::default(); chunk], vec![V::default(); chunk]);
        let mut cursor = None;
        loop {
            match sys::lookup_batch(&self.fd, cursor, &mut keys, &mut values) {
                Ok(BatchStep::More(read, next)) => {
                    keys.iter().zip(&values).take(read).for_each(|(key, value)| visit(key, value));
                    cursor = Some(next);
                }
                Ok(BatchStep::Last(read)) => {
                    keys.iter().zip(&values).take(read).for_each(|(key, value)| visit(key, value));
                    return Ok(());
                }
                Ok(BatchStep::NoRoom) => {
                    chunk *= 2;
                    keys.resize(chunk, K::default());
                    values.resize(chunk, V::default());
                }
                Err(error) if cursor.is_none() && no_batch(&error) => return self.read_one_by_one(visit),
                Err(error) => return Err(syscall("BPF_MAP_LOOKUP_BATCH", self.name, error)),
            }
        }
    }
}

/// A map in this process, with the same limits.
#[derive(Debug)]
pub struct MemoryTable<K, V> {
    name: &'static str,
    max_entries: u32,
    elements: Mutex<BTreeMap<K, V>>,
    /// Tries: the prefix that is one bit shorter.
    shorter: fn(&K) -> Option<K>,
    observer: Observer,
}

/// Told after every single write to an in-memory map: a test looks at each state in between.
#[derive(Clone, Default)]
pub struct Observer(Option<Arc<dyn Fn() + Send + Sync>>);

impl Observer {
    /// Calls `see` after every write.
    pub fn new(see: impl Fn() + Send + Sync + 'static) -> Observer {
        Observer(Some(Arc::new(see)))
    }

    fn tell(&self) {
        if let Some(see) = &self.0 {
            see();
        }
    }
}

impl Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Observer" } else { "no Observer" })
    }
}

impl<K: Key, V: Value> MemoryTable<K, V> {
    /// An empty map; `shorter` makes it a longest-prefix-match trie.
    pub fn create(
        name: &'static str,
        max_entries: u32,
        shorter: Option<fn(&K) -> Option<K>>,
        observer: Observer,
    ) -> Shared<K, V> {
        let shorter = shorter.unwrap_or(|_| None);
        Arc::new(MemoryTable { name, max_entries, elements: Mutex::default(), shorter, observer })
    }
}

impl<K: Key, V: Value> Table<K, V> for MemoryTable<K, V> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn max_entries(&self) -> u32 {
        self.max_entries
    }

    fn get(&self, key: &K) -> Result<Option<V>, DatapathError> {
        let elements = self.elements.lock();
        let prefixes = std::iter::successors(Some(*key), |key| (self.shorter)(key));
        Ok(prefixes.into_iter().find_map(|key| elements.get(&key).copied()))
    }

    fn upsert(&self, keys: &[K], values: &[V]) -> Result<(), DatapathError> {
        for (written, (key, value)) in keys.iter().zip(values).enumerate() {
            let mut elements = self.elements.lock();
            if elements.len() >= self.max_entries as usize && !elements.contains_key(key) {
                return Err(DatapathError::MapFull {
                    map: self.name,
                    entries: self.max_entries,
                    what: format!("{written} of {} elements were written", keys.len()),
                });
            }
            elements.insert(*key, *value);
            drop(elements);
            self.observer.tell();
        }
        Ok(())
    }

    fn delete(&self, keys: &[K]) -> Result<(), DatapathError> {
        for key in keys {
            self.elements.lock().remove(key);
            self.observer.tell();
        }
        Ok(())
    }

    fn for_each(&self, visit: &mut dyn FnMut(&K, &V)) -> Result<(), DatapathError> {
        // A copy: `visit` may use the table.
        let elements = self.elements.lock().clone();
        elements.iter().for_each(|(key, value)| visit(key, value));
        Ok(())
    }

    fn bound(&self) -> u64 {
        self.elements.lock().len() as u64
    }

    fn learn(&self, _count: u64) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_counted_in_new_keys_only() {
        let table = MemoryTable::<u32, u32>::create("sl_test", 3, None, Observer::default());
        table.upsert(&[1, 2], &[1, 2]).unwrap();
        let what = || "a test".to_owned();
        table.check_room(&[1, 2, 3], &what).unwrap();
        let error = table.check_room(&[3, 4], &what).unwrap_err();
        assert!(matches!(error, DatapathError::MapFull { map: "sl_test", entries: 3, .. }), "{error}");
        table.delete(&[2, 9]).unwrap();
        table.check_room(&[3, 4], &what).unwrap();
    }
}
