//! The bpf(2) calls that aya does not offer: element and batch operations on raw bytes.
//!
//! Commands and attribute layout: `include/uapi/linux/bpf.h`. Batch commands exist since Linux 5.6.
//! Everything here is generic over key and value types that are plain bytes ([`aya::Pod`]); whether
//! they fit the map was checked when the map was opened ([`super::table::KernelTable::open`]).

#![allow(unsafe_code, reason = "bpf(2) and its attributes, which nothing else wraps")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use aya::Pod;

const BPF_MAP_LOOKUP_ELEM: u32 = 1;
const BPF_MAP_UPDATE_ELEM: u32 = 2;
const BPF_MAP_DELETE_ELEM: u32 = 3;
const BPF_MAP_GET_NEXT_KEY: u32 = 4;
const BPF_OBJ_GET: u32 = 7;
const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
const BPF_MAP_LOOKUP_BATCH: u32 = 24;
const BPF_MAP_UPDATE_BATCH: u32 = 26;
const BPF_MAP_DELETE_BATCH: u32 = 27;
const BPF_LINK_UPDATE: u32 = 29;
const BPF_LINK_DETACH: u32 = 34;
/// Flag of an update.
const BPF_NOEXIST: u64 = 1;

/// `union bpf_attr` for element commands.
#[derive(Default)]
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value_or_next: u64,
    flags: u64,
}

/// `union bpf_attr` for batch commands.
#[derive(Default)]
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// `union bpf_attr` for pins.
#[derive(Default)]
#[repr(C)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// `union bpf_attr` for the update of a link.
#[derive(Default)]
#[repr(C)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_program_fd: u32,
    flags: u32,
    old_program_fd: u32,
}

/// `union bpf_attr` for information.
#[derive(Default)]
#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

/// The head of `struct bpf_map_info` (the kernel fills as much as it is given room for).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct MapInfo {
    /// `BPF_MAP_TYPE_*`.
    pub kind: u32,
    pub id: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
}

/// The head of `struct bpf_link_info` of a tcx link, or of a network namespace's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LinkInfo {
    /// `BPF_LINK_TYPE_*`.
    pub kind: u32,
    pub id: u32,
    pub program_id: u32,
    pad: u32,
    /// 0 when the device is gone.
    pub ifindex: u32,
    pub attach_type: u32,
}

impl LinkInfo {
    /// Of a link on a network namespace: its inode, which stands where others have their device; 0 when the
    /// namespace is gone.
    pub fn namespace_inode(&self) -> u32 {
        self.ifindex
    }
}

fn bpf<A>(command: u32, attr: &mut A) -> io::Result<i64> {
    // SAFETY: `attr` is a live, initialized, exclusively borrowed attribute block of the stated size
    // in the layout of `command`; the pointers inside it are made by the callers below from slices
    // and references that outlive the call and have the sizes that the map was opened with.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn address<T>(reference: &T) -> u64 {
    std::ptr::from_ref(reference) as u64
}

fn element<K>(fd: impl AsFd, key: &K) -> ElementAttr {
    ElementAttr { map_fd: fd.as_fd().as_raw_fd() as u32, key: address(key), ..Default::default() }
}

/// `None` when the key is absent.
fn absent_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Value of `key`.
pub fn lookup<K: Pod, V: Pod + Default>(fd: impl AsFd, key: &K) -> io::Result<Option<V>> {
    let mut value = V::default();
    let mut attr = element(fd, key);
    attr.value_or_next = std::ptr::from_mut(&mut value) as u64;
    absent_is_none(bpf(BPF_MAP_LOOKUP_ELEM, &mut attr).map(|_| value))
}

/// Values of `key` on every possible CPU. `V` has a size that is a multiple of 8, which is what the
/// kernel rounds to.
pub fn lookup_per_cpu<K: Pod, V: Pod + Default>(
    fd: impl AsFd,
    key: &K,
    cpus: usize,
) -> io::Result<Option<Vec<V>>> {
    const { assert!(size_of::<V>().is_multiple_of(8)) };
    let mut values = vec![V::default(); cpus];
    let mut attr = element(fd, key);
    attr.value_or_next = values.as_mut_ptr() as u64;
    absent_is_none(bpf(BPF_MAP_LOOKUP_ELEM, &mut attr).map(|_| values))
}

/// Inserts or replaces.
pub fn update<K: Pod, V: Pod>(fd: impl AsFd, key: &K, value: &V) -> io::Result<()> {
    let mut attr = element(fd, key);
    attr.value_or_next = address(value);
    bpf(BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Inserts; `false` when the key is there already.
pub fn insert<K: Pod, V: Pod>(fd: impl AsFd, key: &K, value: &V) -> io::Result<bool> {
    let mut attr = element(fd, key);
    attr.value_or_next = address(value);
    attr.flags = BPF_NOEXIST;
    match bpf(BPF_MAP_UPDATE_ELEM, &mut attr) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Deletes; an absent key is no error.
pub fn delete<K: Pod>(fd: impl AsFd, key: &K) -> io::Result<()> {
    absent_is_none(bpf(BPF_MAP_DELETE_ELEM, &mut element(fd, key))).map(drop)
}

/// The key after `key` in the map's own order; the first one for `None`.
pub fn next_key<K: Pod + Default>(fd: impl AsFd, key: Option<&K>) -> io::Result<Option<K>> {
    let mut next = K::default();
    let mut attr = ElementAttr {
        map_fd: fd.as_fd().as_raw_fd() as u32,
        key: key.map_or(0, address),
        value_or_next: std::ptr::from_mut(&mut next) as u64,
        ..Default::default()
    };
    absent_is_none(bpf(BPF_MAP_GET_NEXT_KEY, &mut attr).map(|_| next))
}

/// Inserts or replaces `keys[i] = values[i]`; how many were done when it failed.
pub fn update_batch<K: Pod, V: Pod>(
    fd: impl AsFd,
    keys: &[K],
    values: &[V],
) -> Result<(), (usize, io::Error)> {
    assert_eq!(keys.len(), values.len());
    let mut attr = BatchAttr {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: keys.len() as u32,
        map_fd: fd.as_fd().as_raw_fd() as u32,
        ..Default::default()
    };
    bpf(BPF_MAP_UPDATE_BATCH, &mut attr).map(drop).map_err(|error| (attr.count as usize, error))
}

/// Deletes `keys`; how many were done when it failed (it stops at an absent key).
pub fn delete_batch<K: Pod>(fd: impl AsFd, keys: &[K]) -> Result<(), (usize, io::Error)> {
    let mut attr = BatchAttr {
        keys: keys.as_ptr() as u64,
        count: keys.len() as u32,
        map_fd: fd.as_fd().as_raw_fd() as u32,
        ..Default::default()
    };
    bpf(BPF_MAP_DELETE_BATCH, &mut attr).map(drop).map_err(|error| (attr.count as usize, error))
}

/// Where a batch read goes on: a bucket number for hashes, a key for tries. No key is longer.
#[derive(Clone, Copy, Debug)]
pub struct Cursor([u64; 8]);

/// One step of a batch read of a hash map.
#[derive(Debug)]
pub enum BatchStep {
    /// This many elements were read, and there are more.
    More(usize, Cursor),
    /// This many elements were read, and that was all.
    Last(usize),
    /// The next bucket holds more elements than there was room for: call again with more.
    NoRoom,
}

/// Reads as many elements as fit into `keys` and `values`.
pub fn lookup_batch<K: Pod, V: Pod>(
    fd: impl AsFd,
    cursor: Option<Cursor>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<BatchStep> {
    const { assert!(size_of::<K>() <= size_of::<Cursor>()) };
    let mut from = cursor.map_or([0; 8], |c| c.0);
    let mut next = [0_u64; 8];
    let mut attr = BatchAttr {
        in_batch: if cursor.is_some() { std::ptr::from_mut(&mut from) as u64 } else { 0 },
        out_batch: std::ptr::from_mut(&mut next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: keys.len().min(values.len()) as u32,
        map_fd: fd.as_fd().as_raw_fd() as u32,
        ..Default::default()
    };
    match bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) {
        Ok(_) => Ok(BatchStep::More(attr.count as usize, Cursor(next))),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(BatchStep::Last(attr.count as usize)),
        Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => Ok(BatchStep::NoRoom),
        Err(error) => Err(error),
    }
}

fn c_path(path: &Path) -> io::Result<std::ffi::CString> {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Opens a pinned object; `None` when there is no such pin.
pub fn open_pin(path: &Path) -> io::Result<Option<OwnedFd>> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, ..Default::default() };
    let fd = absent_is_none(bpf(BPF_OBJ_GET, &mut attr))?;
    // SAFETY: BPF_OBJ_GET returned a new file descriptor that nobody else owns.
    Ok(fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) }))
}

/// Detaches a link's program now; without this it happens some time after the last pin and file
/// descriptor are gone.
pub fn detach_link(fd: impl AsFd) -> io::Result<()> {
    let mut attr = fd.as_fd().as_raw_fd() as u32;
    bpf(BPF_LINK_DETACH, &mut attr).map(drop)
}

/// Replaces the program inside a link, in one step.
pub fn update_link(link: impl AsFd, program: impl AsFd) -> io::Result<()> {
    let mut attr = LinkUpdateAttr {
        link_fd: link.as_fd().as_raw_fd() as u32,
        new_program_fd: program.as_fd().as_raw_fd() as u32,
        ..Default::default()
    };
    bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// `I` is one of the two structs above: plain integers in `repr(C)`.
fn info<I: Default + Copy>(fd: impl AsFd) -> io::Result<I> {
    let mut info = I::default();
    let mut attr = InfoAttr {
        fd: fd.as_fd().as_raw_fd() as u32,
        len: size_of::<I>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr).map(|_| info)
}

/// Shape of a map.
pub fn map_info(fd: impl AsFd) -> io::Result<MapInfo> {
    info(fd)
}

/// What a link is attached to.
pub fn link_info(fd: impl AsFd) -> io::Result<LinkInfo> {
    info(fd)
}

/// Copies a value out of bytes; `None` when there are too few. Bytes beyond it are ignored.
pub fn from_bytes<T: Pod>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: there are enough bytes, the read does not need alignment, and every byte pattern is a
    // valid `T` (`Pod`).
    Some(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) })
}

/// The bytes of a value.
pub fn as_bytes<T: Pod>(value: &T) -> &[u8] {
    // SAFETY: the abi structs that this is called with have no padding (asserted where they are
    // declared), so all bytes are initialized; the slice borrows `value`.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// Number of CPUs that per-CPU maps have values for (`/sys/devices/system/cpu/possible`).
pub fn possible_cpus() -> io::Result<usize> {
    aya::util::nr_cpus().map_err(|(_, error)| error)
}

/// Gives pages that the allocator holds and nobody uses back to the system: a start, or a change of thousands of
/// objects, needs several times the memory of what stays. Takes milliseconds. (glibc keeps such pages otherwise:
/// `malloc_trim(3)`; other C libraries do not.)
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes the allocator's own locks and touches free memory alone.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Heaps that the threads of a process share. With glibc's default each thread may have its own, and each keeps free room
/// of its own: 4 MiB of an agent with 10,000 pods. Two are enough where one thread does nearly all of the work.
#[cfg(target_env = "gnu")]
const HEAPS: libc::c_int = 2;

/// Bounds the number of heaps. To be called before other threads start: a thread that has a heap keeps it.
pub fn share_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes the allocator's own lock and sets a number.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
    }
}

/// CLOCK_MONOTONIC, which `bpf_ktime_get_ns` reads.
pub fn monotonic_now() -> io::Result<std::time::Duration> {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a live timespec that the call fills in.
    match unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) } {
        0 => Ok(std::time::Duration::new(now.tv_sec as u64, now.tv_nsec as u32)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How long the kernel's ticks are: what its coarse clocks advance by.
pub fn tick() -> io::Result<std::time::Duration> {
    let mut tick = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `tick` is a live timespec that the call fills in.
    match unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut tick) } {
        0 => Ok(std::time::Duration::new(tick.tv_sec as u64, tick.tv_nsec as u32)),
        _ => Err(io::Error::last_os_error()),
    }
}
