//! Runs the real tc programs on packets made by hand, by BPF_PROG_TEST_RUN: no devices carry traffic, and the
//! kernel reports what the program decided and what became of the bytes.
//!
//! Needs root. The programs see the network namespace of the calling thread: call
//! [`Kernel::isolate`] first, so that device numbers exist and nothing of the machine is touched.
//! For tests and benchmarks; the agent does not use it.

mod connections;
mod frame;

use std::fmt;
use std::os::fd::AsFd as _;
use std::process::Command;
use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, PerCpuArray, RingBuf, lpm_trie::Key};
use aya::programs::{SchedClassifier, TcAttachType, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader, Pod};

pub use self::frame::{Fragment, Frame, L4, Seen, TcpFlags, checksum, crc32c};
use super::connections::sets_for;
use super::loader::OBJECT;
use super::tables::Tables;
use super::{DatapathError, abi};

/// The programs, by the place where they are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    FromContainer,
    ToContainer,
    FromNetwork,
    ToNetwork,
    FromOverlay,
    FromLoopback,
}

impl Hook {
    fn program(self) -> &'static str {
        match self {
            Hook::FromContainer => "from_container",
            Hook::ToContainer => "to_container",
            Hook::FromNetwork => "from_network",
            Hook::ToNetwork => "to_network",
            Hook::FromOverlay => "from_overlay",
            Hook::FromLoopback => "from_loopback",
        }
    }
}

/// What a program returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// TC_ACT_OK: on to the stack or the wire.
    Pass,
    /// TC_ACT_SHOT, with the reason that the drop event gave (0 when there was no event).
    Drop(u8),
    /// TC_ACT_REDIRECT: to another device. Which one, the kernel does not say.
    Redirect,
}

/// One run of one program.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub action: Action,
    /// The packet afterwards.
    pub frame: Vec<u8>,
    /// `skb->mark` afterwards.
    pub mark: u32,
    pub events: Vec<abi::RawFlowEvent>,
}

impl Outcome {
    /// The packet afterwards, taken apart.
    pub fn seen(&self) -> Seen {
        Seen::parse(&self.frame)
    }
}

/// Where a packet enters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context {
    pub ifindex: u32,
    pub mark: u32,
    /// Device by which the packet came in; 0: the node's stack made it.
    pub arrived_by: u32,
}

/// Sets of the table of connections in tests.
const SMALL_SETS: u32 = 1024;

/// A loaded object with its own maps.
pub struct Kernel {
    ebpf: Ebpf,
    secret: abi::CtSecret,
    events: RingBuf<MapData>,
    loaded: Vec<Hook>,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("ebpf", &self.ebpf).finish_non_exhaustive()
    }
}

const TC_ACT_OK: u32 = 0;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;
/// `struct __sk_buff`, and where its members are.
const SK_BUFF_BYTES: usize = 192;
const SK_BUFF_MARK: usize = 8;
const SK_BUFF_INGRESS_IFINDEX: usize = 36;
const SK_BUFF_IFINDEX: usize = 40;
const LARGEST_FRAME: usize = 4096;

impl Kernel {
    /// Moves the calling thread into a new network namespace with these pairs of devices, and returns
    /// the numbers of the first device of each pair.
    ///
    /// # Panics
    /// When not root, or without iproute2: the tests cannot run then.
    pub fn isolate(devices: &[&str]) -> Vec<u32> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .expect("a network namespace (root is needed)");
        devices
            .iter()
            .map(|name| {
                let peer = format!("{name}-p");
                let status = Command::new("ip")
                    .args(["link", "add", name, "type", "veth", "peer", "name", &peer])
                    .status()
                    .expect("ip (iproute2)");
                assert!(status.success(), "ip link add {name}");
                nix::net::if_::if_nametoindex(*name).expect("the new device")
            })
            .collect()
    }

    /// Makes the maps as large as the agent makes them. A program is verified when it is first used.
    pub fn load_whole() -> Result<Kernel, Box<dyn std::error::Error + Send + Sync>> {
        Kernel::load_with(sets_for(abi::MAX_CT), &[])
    }

    /// The same with small maps: tests load the object many times.
    pub fn load() -> Result<Kernel, Box<dyn std::error::Error + Send + Sync>> {
        Kernel::load_with_sets(SMALL_SETS)
    }

    /// The same with so many sets of connections.
    pub fn load_with_sets(sets: u32) -> Result<Kernel, Box<dyn std::error::Error + Send + Sync>> {
        let small = [
            ("sl_policy", 4096),
            ("sl_policy_info", 64),
            ("sl_services", 64),
            ("sl_backends", 64),
            ("sl_ipcache_exact", 4096),
            ("sl_nat", 4096),
            ("sl_rule_hits", 4096),
            ("sl_events", 1 << 20),
            ("sl_affinity", 1024),
            ("sl_frags", 1024),
            ("sl_drops", 4096),
        ];
        Kernel::load_with(sets, &small)
    }

    fn load_with(
        sets: u32,
        sizes: &[(&'static str, u32)],
    ) -> Result<Kernel, Box<dyn std::error::Error + Send + Sync>> {
        let secret = abi::CtSecret::draw()?;
        let mut loader = EbpfLoader::new();
        super::clock::tell(&mut loader)?;
        secret.tell(&mut loader, &sets);
        loader.map_max_entries("sl_ct", sets);
        for (map, entries) in sizes {
            loader.map_max_entries(map, *entries);
        }
        let mut ebpf = loader.load(OBJECT)?;
        let events = RingBuf::try_from(ebpf.take_map("sl_events").expect("sl_events"))?;
        Ok(Kernel { ebpf, secret, events, loaded: Vec::new() })
    }

    /// The maps that user space writes, for [`super::writer::Writer`].
    pub fn tables(&self) -> Result<Tables, DatapathError> {
        Tables::from_kernel(|name| {
            let failed =
                |source| DatapathError::Syscall { operation: "dup", object: format!("map {name}"), source };
            let data = match self.ebpf.map(name) {
                Some(Map::Array(data) | Map::HashMap(data) | Map::LpmTrie(data)) => data,
                _ => return Err(failed(std::io::ErrorKind::NotFound.into())),
            };
            data.fd().as_fd().try_clone_to_owned().map_err(failed)
        })
    }

    /// Sends one packet through one program.
    pub fn run(&mut self, hook: Hook, frame: &[u8], context: Context) -> Outcome {
        let _stale = self.take_events();
        let (action, frame, mark, _) = self.test_run(hook, frame, context, 1);
        let events = self.take_events();
        let action = match action {
            TC_ACT_OK => Action::Pass,
            TC_ACT_REDIRECT => Action::Redirect,
            TC_ACT_SHOT => Action::Drop(
                events.iter().find(|e| u32::from(e.kind) == abi::EVENT_DROP).map_or(0, |e| e.reason),
            ),
            other => panic!("unexpected tc action {other}"),
        };
        Outcome { action, frame, mark, events }
    }

    /// Mean time of one run out of `repeat`. The kernel hands the same packet in again and again, changed
    /// as the last run left it.
    pub fn time(&mut self, hook: Hook, frame: &[u8], context: Context, repeat: u32) -> Duration {
        self.test_run(hook, frame, context, repeat).3
    }

    fn test_run(
        &mut self,
        hook: Hook,
        frame: &[u8],
        context: Context,
        repeat: u32,
    ) -> (u32, Vec<u8>, u32, Duration) {
        self.verify(hook);
        test_run(program(&mut self.ebpf, hook), frame, context, repeat)
    }

    fn verify(&mut self, hook: Hook) {
        if !self.loaded.contains(&hook) {
            program(&mut self.ebpf, hook).load().unwrap_or_else(|e| panic!("{}: {e}", hook.program()));
            self.loaded.push(hook);
        }
    }

    /// Puts a program on the ingress of a real device, for what BPF_PROG_TEST_RUN cannot make: metadata of
    /// a tunnel.
    pub fn attach(&mut self, hook: Hook, device: &str) {
        self.verify(hook);
        program(&mut self.ebpf, hook)
            .attach(device, TcAttachType::Ingress)
            .unwrap_or_else(|e| panic!("{device}: {e}"));
    }

    /// The next event of an attached program, or `None` after `patience`.
    pub fn wait_for_event(&mut self, patience: Duration) -> Option<abi::RawFlowEvent> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(record) = self.events.next() {
                return Some(decode(&record));
            }
            std::thread::yield_now();
        }
        None
    }

    fn take_events(&mut self) -> Vec<abi::RawFlowEvent> {
        let mut events = Vec::new();
        while let Some(record) = self.events.next() {
            events.push(decode(&record));
        }
        events
    }

    /// Writes an entry of a hash map.
    pub fn put<K: Pod, V: Pod>(&mut self, map: &str, key: K, value: V) {
        self.hash::<K, V>(map).insert(key, value, 0).unwrap_or_else(|e| panic!("{map}: {e}"));
    }

    /// Deletes an entry of a hash map, which must exist.
    pub fn remove<K: Pod, V: Pod>(&mut self, map: &str, key: K) {
        self.hash::<K, V>(map).remove(&key).unwrap_or_else(|e| panic!("{map}: {e}"));
    }

    /// Every entry of a hash map.
    pub fn entries<K: Pod, V: Pod>(&mut self, map: &str) -> Vec<(K, V)> {
        self.hash::<K, V>(map).iter().map(|entry| entry.unwrap_or_else(|e| panic!("{map}: {e}"))).collect()
    }

    /// Writes an entry of a longest-prefix map; `data` is what follows the prefix length in its key.
    pub fn put_prefix<K: Pod, V: Pod>(&mut self, map: &str, prefix_len: u32, data: K, value: V) {
        let mut trie: LpmTrie<_, K, V> =
            LpmTrie::try_from(self.ebpf.map_mut(map).expect("map")).unwrap_or_else(|e| panic!("{map}: {e}"));
        trie.insert(&Key::new(prefix_len, data), value, 0).unwrap_or_else(|e| panic!("{map}: {e}"));
    }

    /// Writes an element of an array.
    pub fn set<V: Pod>(&mut self, map: &str, index: u32, value: V) {
        let mut array: Array<_, V> =
            Array::try_from(self.ebpf.map_mut(map).expect("map")).unwrap_or_else(|e| panic!("{map}: {e}"));
        array.set(index, value, 0).unwrap_or_else(|e| panic!("{map}: {e}"));
    }

    /// An element of a per-CPU array, all CPUs.
    pub fn per_cpu<V: Pod>(&self, map: &str, index: u32) -> Vec<V> {
        let array: PerCpuArray<_, V> =
            PerCpuArray::try_from(self.ebpf.map(map).expect("map")).unwrap_or_else(|e| panic!("{map}: {e}"));
        array.get(&index, 0).unwrap_or_else(|e| panic!("{map}: {e}")).iter().copied().collect()
    }

    fn hash<K: Pod, V: Pod>(&mut self, map: &str) -> HashMap<&mut MapData, K, V> {
        HashMap::try_from(self.ebpf.map_mut(map).expect("map")).unwrap_or_else(|e| panic!("{map}: {e}"))
    }
}

fn test_run(
    program: &SchedClassifier,
    frame: &[u8],
    context: Context,
    repeat: u32,
) -> (u32, Vec<u8>, u32, Duration) {
    let mut ctx = [0u8; SK_BUFF_BYTES];
    ctx[SK_BUFF_MARK..][..4].copy_from_slice(&context.mark.to_ne_bytes());
    ctx[SK_BUFF_INGRESS_IFINDEX..][..4].copy_from_slice(&context.arrived_by.to_ne_bytes());
    ctx[SK_BUFF_IFINDEX..][..4].copy_from_slice(&context.ifindex.to_ne_bytes());
    let mut ctx_out = [0u8; SK_BUFF_BYTES];
    let mut out = vec![0u8; LARGEST_FRAME];
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&ctx),
            ctx_out: Some(&mut ctx_out),
            repeat,
            ..TestRunOptions::default()
        })
        .expect("BPF_PROG_TEST_RUN");
    out.truncate(result.data_size_out as usize);
    let mark = u32::from_ne_bytes(ctx_out[SK_BUFF_MARK..][..4].try_into().expect("four bytes"));
    (result.return_value, out, mark, result.duration)
}

fn program(ebpf: &mut Ebpf, hook: Hook) -> &mut SchedClassifier {
    ebpf.program_mut(hook.program())
        .and_then(|program| program.try_into().ok())
        .unwrap_or_else(|| panic!("the object has a classifier {}", hook.program()))
}

/// A record of the ring, copied out.
fn decode(record: &[u8]) -> abi::RawFlowEvent {
    assert_eq!(record.len(), size_of::<abi::RawFlowEvent>(), "size of an event");
    // SAFETY: the record has the size of the struct, which is plain data (see `abi`).
    #[allow(unsafe_code)]
    unsafe {
        std::ptr::read_unaligned(record.as_ptr().cast())
    }
}
