//! Real packets through the loaded programs: two pods of one node, in namespaces of their own. Needs root.
//!
//! Every test runs on a thread with a network and a mount namespace of its own: whatever it makes is
//! gone when it ends, however it ends.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use sluice::cluster::delta::{AddressKind, Delta, EndpointChange, IpcacheEntry};
use sluice::datapath::abi;
use sluice::datapath::attach::{Mechanism, device_exists};
use sluice::datapath::config::{Capacity, ROUTER_MAC};
use sluice::datapath::connections::Connections;
use sluice::datapath::inspect::ConnectionFilter;
use sluice::datapath::net::pod::{PodNetwork, create};
use sluice::datapath::net::watch::{DeviceEvent, DeviceWatch};
use sluice::datapath::net::{Namespace, Netlink, sysctl, tunnel};
use sluice::datapath::{
    AttachMode, Datapath, DatapathConfig, DatapathError, EndpointDevice, FlowEventKind, KernelDatapath,
    LinkLayer,
};
use sluice::model::{Direction, DropReason, Identity, Protocol};
use sluice::policy::map_state::{
    Basis, CellKinds, DirectionInfo, PolicyEntry, PolicyInfo, PolicyKey, PortClass, Precedence, RuleSetId,
    Slot, SlotAction, SubjectDelta,
};

const CLIENT: Identity = Identity(300);
const SERVER: Identity = Identity(301);
const ALLOWED: u16 = 8080;
const DENIED: u16 = 8081;
/// Long enough for a packet on this machine, short enough to wait for one that never comes.
const PATIENCE: Duration = Duration::from_millis(400);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Runs a test in namespaces of its own, with a BPF file system of its own.
fn isolated<F: Future<Output = ()>>(test: impl FnOnce(PathBuf) -> F + Send) {
    let dir = tempfile::Builder::new().prefix("dp-").tempdir().unwrap();
    std::thread::scope(|scope| {
        let path = dir.path().to_owned();
        let thread = scope.spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                sysctl::prepare_node().unwrap();
                let node = Netlink::here().unwrap();
                node.set_up(node.get("lo").await.unwrap().ifindex).await.unwrap();
                test(path.join("sluice")).await;
            });
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn new_namespace() -> Namespace {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        Namespace::current().unwrap()
    })
    .join()
    .unwrap()
}

struct Pod {
    name: &'static str,
    namespace: Namespace,
    addresses: Vec<IpAddr>,
    device: EndpointDevice,
    identity: Identity,
}

impl Pod {
    async fn new(name: &'static str, id: u16, identity: Identity) -> Pod {
        let namespace = new_namespace();
        let addresses = vec![ip(&format!("10.244.0.{id}")), ip(&format!("fd00:244::{id}"))];
        let network = PodNetwork {
            namespace: &namespace,
            host_device: &format!("dp-{id}"),
            pod_device: "eth0",
            addresses: &addresses,
            mtu: 1450,
            router_mac: ROUTER_MAC,
        };
        let node = Netlink::here().unwrap();
        let made = create(&node, &network).await.unwrap();
        // With the router's MAC on the host side, plain routing works too: what does not pass was
        // dropped by a program, and by nothing else.
        node.set_mac(made.host_ifindex, ROUTER_MAC).await.unwrap();
        let device = EndpointDevice {
            ifindex: made.host_ifindex,
            mac: made.pod_mac,
            id,
            link_layer: LinkLayer::Ethernet,
        };
        Pod { name, namespace, addresses, device, identity }
    }

    /// A listener inside the pod that echoes, until the end of the process.
    fn echo(&self, address: IpAddr, port: u16) {
        let listener = self.namespace.run(|| TcpListener::bind((address, port)).unwrap()).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                std::thread::spawn(move || {
                    let mut buffer = [0; 64];
                    while let Ok(read @ 1..) = stream.read(&mut buffer) {
                        if stream.write_all(&buffer[..read]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
    }

    fn connect(&self, to: IpAddr, port: u16) -> std::io::Result<TcpStream> {
        self.namespace.run(|| TcpStream::connect_timeout(&SocketAddr::new(to, port), PATIENCE)).unwrap()
    }
}

fn ping(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

fn subject(subject: Identity, info: PolicyInfo, upserts: Vec<(PolicyKey, PolicyEntry)>) -> SubjectDelta {
    SubjectDelta {
        subject,
        info,
        upserts,
        deletes: Vec::new(),
        class_upserts: Vec::new(),
        class_deletes: Vec::new(),
        removed: false,
    }
}

fn allow(port: u16) -> (PolicyKey, PolicyEntry) {
    let key = PolicyKey {
        direction: Direction::Ingress,
        identity: CLIENT,
        protocol: Some(Protocol::Tcp),
        port: PortClass::Exact(port),
    };
    let slot = Slot {
        precedence: Precedence(10),
        action: SlotAction::Allow,
        rules: RuleSetId(7),
        basis: Basis::Peer,
    };
    (key, PolicyEntry { admin: None, normal: Some(slot) })
}

fn default_deny_ingress() -> PolicyInfo {
    let cells = CellKinds { id_exact: true, ..Default::default() };
    let ingress = DirectionInfo { default_deny: true, cells, ..Default::default() };
    PolicyInfo { ingress, ..Default::default() }
}

/// The server takes connections of the client to [`ALLOWED`] only; the client may do anything.
fn state(pods: &[&Pod]) -> Delta {
    let entry =
        |pod: &Pod| IpcacheEntry { identity: pod.identity, tunnel_endpoint: None, class: AddressKind::Pod };
    Delta {
        revision: 1,
        ipcache: pods
            .iter()
            .flat_map(|pod| pod.addresses.iter().map(|address| ((*address).into(), Some(entry(pod)))))
            .collect(),
        policies: vec![
            subject(CLIENT, PolicyInfo::default(), Vec::new()),
            subject(SERVER, default_deny_ingress(), vec![allow(ALLOWED)]),
        ],
        endpoints: pods
            .iter()
            .map(|pod| EndpointChange::Upsert {
                pod: pod.name.to_owned(),
                addresses: pod.addresses.clone(),
                identity: pod.identity,
            })
            .collect(),
        ..Default::default()
    }
}

struct Bench {
    client: Pod,
    server: Pod,
    config: DatapathConfig,
}

impl Bench {
    async fn new(bpffs: &Path, attach: AttachMode) -> Bench {
        let client = Pod::new("shop/client", 1, CLIENT).await;
        let server = Pod::new("shop/server", 2, SERVER).await;
        for address in &server.addresses {
            server.echo(*address, ALLOWED);
            server.echo(*address, DENIED);
        }
        let config = DatapathConfig { attach, ..DatapathConfig::new(bpffs) };
        Bench { client, server, config }
    }

    fn state(&self) -> Delta {
        state(&[&self.client, &self.server])
    }

    /// What an agent does when it starts.
    fn start(&self) -> KernelDatapath {
        self.start_with(&self.state())
    }

    fn start_with(&self, state: &Delta) -> KernelDatapath {
        let mut datapath = KernelDatapath::open(self.config.clone()).unwrap();
        for pod in [&self.client, &self.server] {
            datapath.attach_endpoint(pod.name, pod.device).unwrap();
        }
        datapath.reconcile(state).unwrap();
        datapath.attach_node().unwrap();
        datapath
    }

    fn expect_policy(&self) {
        for address in &self.server.addresses {
            let mut allowed = self.client.connect(*address, ALLOWED).unwrap();
            ping(&mut allowed).unwrap();
            let refused = self.client.connect(*address, DENIED).unwrap_err();
            assert!(is_timeout(&refused), "{address}: {refused}");
        }
    }
}

#[test]
fn what_policy_allows_passes_and_the_rest_is_dropped_and_told() {
    isolated(|bpffs| async move {
        let bench = Bench::new(&bpffs, AttachMode::Auto).await;
        let datapath = bench.start();
        bench.expect_policy();

        let mut reader = datapath.events().unwrap();
        let mut events = Vec::new();
        let told = |event: &sluice::datapath::FlowEvent| {
            event.kind == FlowEventKind::Dropped(DropReason::PolicyDenied)
                && event.destination_port == DENIED
                && event.destination == bench.server.addresses[0]
        };
        let deadline = Instant::now() + Duration::from_secs(5);
        while !events.iter().any(told) {
            assert!(Instant::now() < deadline, "no event for the drop: {events:#?}");
            let _ = tokio::time::timeout(PATIENCE, reader.read(&mut events)).await;
        }
        let drop = events.iter().find(|event| told(event)).unwrap();
        assert_eq!((drop.source_identity, drop.destination_identity), (CLIENT, SERVER));
        assert_eq!((drop.direction, drop.default_deny), (Direction::Ingress, true));
        assert_eq!((drop.endpoint_id, drop.policy_subject), (2, Some(SERVER)));
        assert_eq!(reader.undecodable(), 0);

        let inspector = datapath.inspect().unwrap();
        assert_eq!(inspector.diff(&bench.state()).unwrap(), []);
        let rows = inspector.policies(Some(SERVER)).unwrap();
        assert_eq!((rows.len(), rows[0].default_deny.clone()), (1, vec![Direction::Ingress]));
        assert_eq!(rows[0].entries, [allow(ALLOWED)]);
        let filter = ConnectionFilter { port: Some(ALLOWED), ..Default::default() };
        let connections = inspector.connections(&filter).unwrap();
        assert!(connections.iter().any(|c| c.server.address == bench.server.addresses[0] && c.seen_reply));
        let denied =
            inspector.metrics().unwrap().into_iter().find(|row| {
                (row.direction, row.reason) == (Direction::Ingress, Some(DropReason::PolicyDenied))
            });
        assert!(denied.is_some_and(|row| row.count.packets >= 2));
        let hits = inspector.rule_hits(&[RuleSetId(7)]).unwrap();
        assert!(hits[0].1 >= 2, "{hits:?}");
        assert!(inspector.endpoint_stats(2).unwrap().dropped[Direction::Ingress as usize].packets >= 2);
    });
}

#[test]
fn a_flood_of_drops_hides_no_other_and_is_counted_whole() {
    isolated(|bpffs| async move {
        let bench = Bench::new(&bpffs, AttachMode::Auto).await;
        let datapath = bench.start();
        let mut reader = datapath.events().unwrap();
        let server = bench.server.addresses[0];
        let socket = || bench.client.namespace.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
        let (flood, quiet) = (socket(), socket());
        let stop = Arc::new(AtomicBool::new(false));
        let flooding = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let mut sent = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    sent += u64::from(flood.send_to(b"x", (server, DENIED)).is_ok());
                }
                sent
            }
        });
        let mut events = Vec::new();
        let dropped = |event: &sluice::datapath::FlowEvent| {
            event.kind == FlowEventKind::Dropped(DropReason::PolicyDenied)
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        // The flood is cut when it was told that there is more than is told.
        while !events.iter().any(|event: &sluice::datapath::FlowEvent| event.repeats > 1000) {
            assert!(Instant::now() < deadline, "{} events", events.len());
            let _ = tokio::time::timeout(PATIENCE, reader.read(&mut events)).await;
        }
        let others = 9000..9100_u16;
        let asked = std::time::SystemTime::now();
        for port in others.clone() {
            quiet.send_to(b"x", (server, port)).unwrap();
        }
        let missing = |events: &[sluice::datapath::FlowEvent]| {
            let told = |port: &u16| events.iter().any(|e| dropped(e) && e.destination_port == *port);
            others.clone().filter(|port| !told(port)).collect::<Vec<_>>()
        };
        while !missing(&events).is_empty() {
            assert!(Instant::now() < deadline, "hidden by the flood: {:?}", missing(&events));
            let _ = tokio::time::timeout(PATIENCE, reader.read(&mut events)).await;
        }
        for event in events.iter().filter(|event| others.contains(&event.destination_port)) {
            let late = event.time.duration_since(asked).unwrap_or_default();
            assert!(late < Duration::from_secs(1), "{late:?}");
        }
        stop.store(true, Ordering::Relaxed);
        let sent = flooding.join().unwrap();
        while tokio::time::timeout(PATIENCE, reader.read(&mut events)).await.is_ok() {}
        let told = events.iter().filter(|event| dropped(event)).count() as u64;
        let untold = reader.untold().unwrap();
        let counted = datapath.inspect().unwrap().metrics().unwrap();
        let counted = counted
            .iter()
            .find(|row| (row.direction, row.reason) == (Direction::Ingress, Some(DropReason::PolicyDenied)));
        let counted = counted.unwrap().count.packets;
        println!("{sent} sent, {counted} dropped, {told} told, {untold:?}");
        assert_eq!((untold.lost(), untold.over_limit), (0, 0));
        assert_eq!(counted, told + untold.repeated);
        assert!(counted >= sent);
    });
}

#[test]
fn a_restart_neither_opens_a_hole_nor_disturbs_a_connection() {
    isolated(|bpffs| async move {
        let bench = Bench::new(&bpffs, AttachMode::Auto).await;
        let mut datapath = bench.start();
        let server = bench.server.addresses[0];
        let mut established = bench.client.connect(server, ALLOWED).unwrap();
        let epochs = |datapath: &KernelDatapath| -> Vec<u32> {
            datapath.inspect().unwrap().policies(None).unwrap().iter().map(|row| row.epoch).collect()
        };
        let before = epochs(&datapath);
        for _ in 0..5 {
            drop(datapath);
            // No agent runs: what it left in the kernel judges.
            ping(&mut established).unwrap();
            ping(&mut bench.client.connect(server, ALLOWED).unwrap()).unwrap();
            assert!(is_timeout(&bench.client.connect(server, DENIED).unwrap_err()));
            datapath = bench.start();
            ping(&mut established).unwrap();
        }
        assert_eq!(epochs(&datapath), before, "nothing changed, so no flow is judged again");
        bench.expect_policy();
    });
}

/// The kernel's numbers of the pinned programs.
fn programs(bpffs: &Path) -> Vec<u32> {
    let pins = std::fs::read_dir(bpffs.join(pin_version()).join("programs")).unwrap().flatten();
    let mut ids: Vec<u32> =
        pins.map(|pin| aya::programs::ProgramInfo::from_pin(pin.path()).unwrap().id()).collect();
    ids.sort_unstable();
    ids
}

/// Two on pods' devices, two on the node's, one on the tunnel's, one on loopback, the look-up of sockets, and what keeps
/// connections.
const PROGRAMS: usize = 8;

#[test]
fn a_restart_uses_the_programs_that_are_there_and_another_size_does_not() {
    isolated(|bpffs| async move {
        let mut bench = Bench::new(&bpffs, AttachMode::Auto).await;
        drop(bench.start());
        let first = programs(&bpffs);
        assert_eq!(first.len(), PROGRAMS);
        drop(bench.start());
        assert_eq!(programs(&bpffs), first);
        bench.expect_policy();

        // Programs know their maps: with another map they would judge by what nobody writes any more.
        bench.config.capacity.connections *= 2;
        drop(bench.start());
        let second = programs(&bpffs);
        assert!(
            second.len() == PROGRAMS && first.iter().all(|id| !second.contains(id)),
            "{first:?} {second:?}"
        );
        bench.expect_policy();

        // One that is missing: all are loaded anew, so that all are of one load.
        let dir = bpffs.join(pin_version()).join("programs");
        let one = std::fs::read_dir(&dir).unwrap().flatten().next().unwrap().path();
        std::fs::remove_file(one).unwrap();
        let datapath = bench.start();
        let third = programs(&bpffs);
        assert!(
            third.len() == PROGRAMS && second.iter().all(|id| !third.contains(id)),
            "{second:?} {third:?}"
        );
        bench.expect_policy();
        datapath.uninstall().unwrap();
    });
}

#[test]
fn traffic_flows_through_every_moment_of_a_restart() {
    isolated(|bpffs| async move {
        let bench = Bench::new(&bpffs, AttachMode::Auto).await;
        drop(bench.start());
        let server = bench.server.addresses[0];
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let traffic = scope.spawn(|| {
                let mut established = bench.client.connect(server, ALLOWED).unwrap();
                established.set_nodelay(true).unwrap();
                let mut slowest = Duration::ZERO;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let start = Instant::now();
                    ping(&mut established).unwrap();
                    ping(&mut bench.client.connect(server, ALLOWED).unwrap()).unwrap();
                    slowest = slowest.max(start.elapsed());
                }
                slowest
            });
            let holes = scope.spawn(|| {
                let mut tries = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    assert!(is_timeout(&bench.client.connect(server, DENIED).unwrap_err()));
                    tries += 1;
                }
                tries
            });
            for _ in 0..10 {
                drop(bench.start());
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            // A lost packet would cost a retransmission timeout: 200 ms, or 1 s for a SYN.
            let slowest = traffic.join().unwrap();
            assert!(slowest < Duration::from_millis(190), "a round trip took {slowest:?}");
            assert!(holes.join().unwrap() > 0);
        });
    });
}

#[test]
fn a_change_of_policy_cuts_an_established_connection() {
    isolated(|bpffs| async move {
        let bench = Bench::new(&bpffs, AttachMode::Auto).await;
        let mut datapath = bench.start();
        for address in bench.server.addresses.clone() {
            let mut stream = bench.client.connect(address, ALLOWED).unwrap();
            ping(&mut stream).unwrap();
            let mut change = subject(SERVER, default_deny_ingress(), Vec::new());
            change.deletes = vec![allow(ALLOWED).0];
            datapath.apply(&Delta { policies: vec![change], ..Default::default() }).unwrap();
            assert!(is_timeout(&ping(&mut stream).unwrap_err()), "{address}");
            assert!(is_timeout(&bench.client.connect(address, ALLOWED).unwrap_err()), "{address}");
            datapath.apply(&bench.state()).unwrap();
            ping(&mut bench.client.connect(address, ALLOWED).unwrap()).unwrap();
        }
    });
}

#[test]
fn a_relabelled_client_loses_its_connections() {
    isolated(|bpffs| async move {
        let bench = Bench::new(&bpffs, AttachMode::Auto).await;
        let mut datapath = bench.start();
        let server = bench.server.addresses[0];
        let mut stream = bench.client.connect(server, ALLOWED).unwrap();
        ping(&mut stream).unwrap();
        let mut state = bench.state();
        let stranger = Identity(302);
        for (net, entry) in &mut state.ipcache {
            if bench.client.addresses.contains(&net.addr()) {
                entry.as_mut().unwrap().identity = stranger;
            }
        }
        state.policies = vec![subject(stranger, PolicyInfo::default(), Vec::new())];
        state.endpoints.truncate(1);
        let EndpointChange::Upsert { identity, .. } = &mut state.endpoints[0] else { unreachable!() };
        *identity = stranger;
        datapath.apply(&state).unwrap();
        assert!(is_timeout(&ping(&mut stream).unwrap_err()));
    });
}

#[test]
fn clsact_enforces_like_tcx_and_survives_a_restart() {
    isolated(|bpffs| async move {
        let bench = Bench::new(&bpffs, AttachMode::Clsact).await;
        let datapath = bench.start();
        assert_eq!(datapath.mechanism(), Mechanism::Clsact);
        drop(datapath);
        // What a kernel before 6.6 has: filters, and no links.
        for side in ["ingress", "egress"] {
            let shown = Command::new("tc").args(["filter", "show", "dev", "dp-2", side]).output().unwrap();
            let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
            assert!(shown.contains("_container"), "{side}: {shown}");
        }
        let links = std::fs::read_dir(bpffs.join(pin_version()).join("links")).unwrap().flatten();
        let on_devices = |name: String| name.contains("_container") || name.contains("_network");
        assert!(!links.map(|link| link.file_name().into_string().unwrap()).any(on_devices));
        bench.expect_policy();
        let mut established = bench.client.connect(bench.server.addresses[0], ALLOWED).unwrap();
        let datapath = bench.start();
        ping(&mut established).unwrap();
        bench.expect_policy();
        datapath.uninstall().unwrap();
        ping(&mut bench.client.connect(bench.server.addresses[0], DENIED).unwrap()).unwrap();
    });
}

/// Somebody cleans a device up, or the file system of the pins.
#[test]
fn programs_that_others_take_off_are_put_back() {
    for attach in [AttachMode::Auto, AttachMode::Clsact] {
        isolated(move |bpffs| async move {
            let bench = Bench::new(&bpffs, attach).await;
            let mut datapath = bench.start();
            bench.expect_policy();
            for _ in 0..2 {
                let restored = datapath.restore_programs();
                assert!(restored.missing.is_empty() && restored.failed.is_none(), "{restored:?}");
            }
            if datapath.mechanism() == Mechanism::Tcx {
                std::fs::remove_dir_all(&bpffs).unwrap();
            } else {
                for pod in [&bench.client, &bench.server] {
                    let device = pod.device.ifindex.to_string();
                    let name = Command::new("ip").args(["-o", "link", "show"]).output().unwrap();
                    let name = String::from_utf8_lossy(&name.stdout).into_owned();
                    let line = name.lines().find(|line| line.starts_with(&format!("{device}:"))).unwrap();
                    let name = line.split([':', '@']).nth(1).unwrap().trim();
                    let ran = Command::new("tc").args(["qdisc", "del", "dev", name, "clsact"]).status();
                    assert!(ran.unwrap().success(), "{name}");
                }
            }
            // A link lives on for a moment after its pin.
            let (address, begin) = (bench.server.addresses[0], Instant::now());
            while let Err(error) = bench.client.connect(address, DENIED) {
                assert!(begin.elapsed().as_secs() < 20, "the programs are still there: {error}");
            }
            let restored = datapath.restore_programs();
            assert!(restored.failed.is_none() && restored.missing.len() >= 2, "{restored:?}");
            bench.expect_policy();
            assert!(datapath.restore_programs().missing.is_empty());
        });
    }
}

#[test]
fn a_detached_endpoint_is_not_judged_and_an_uninstall_leaves_nothing() {
    isolated(|bpffs| async move {
        let bench = Bench::new(&bpffs, AttachMode::Auto).await;
        let mut datapath = bench.start();
        bench.expect_policy();
        datapath.detach_endpoint(bench.client.name).unwrap();
        datapath.uninstall().unwrap();
        ping(&mut bench.client.connect(bench.server.addresses[0], DENIED).unwrap()).unwrap();
        assert!(!bpffs.exists());
    });
}

/// A connection on which the server may speak first: nobody may call the client.
struct OneSided {
    client: TcpStream,
    server: TcpStream,
}

impl OneSided {
    fn open(bench: &Bench, server: IpAddr) -> OneSided {
        let listener = bench.server.namespace.run(|| TcpListener::bind((server, 0)).unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = bench.client.connect(server, port).unwrap();
        let (server, _) = listener.accept().unwrap();
        OneSided { client, server }
    }

    /// The server's word reaches the client, whose policy would not let it in as a call.
    fn server_speaks(&mut self) -> std::io::Result<()> {
        self.server.write_all(b"x")?;
        self.client.set_read_timeout(Some(PATIENCE)).unwrap();
        self.client.read_exact(&mut [0])
    }
}

/// Nobody may call the client, and anybody the server.
fn closed_client(bench: &Bench) -> Delta {
    let mut state = bench.state();
    state.policies = vec![
        subject(CLIENT, default_deny_ingress(), Vec::new()),
        subject(SERVER, PolicyInfo::default(), Vec::new()),
    ];
    state
}

/// The directory of this ABI version.
fn pin_version() -> String {
    format!("v{}", sluice::datapath::abi::ABI_VERSION)
}

fn connections_carried(datapath: &KernelDatapath) -> Result<usize, String> {
    let carried = datapath.carried().iter().find(|carried| carried.map == "sl_ct");
    carried.expect("something is said about connections").outcome.clone()
}

/// What an agent of ABI version 4 leaves: its connections were in a hash of the kernel's. (The programs are those of today, and
/// go on with the table that they have.)
struct Version4 {
    table: Connections,
    map: PathBuf,
}

impl Version4 {
    fn of(bpffs: &Path) -> Version4 {
        let table = Connections::open(bpffs).unwrap();
        let dir = bpffs.join("v4");
        std::fs::rename(bpffs.join(pin_version()), &dir).unwrap();
        let map = dir.join("maps/sl_ct");
        std::fs::rename(&map, dir.join("maps/sl_ct_of_today")).unwrap();
        std::fs::remove_file(dir.join("maps/sl_ct_secret")).unwrap();
        let shape = ["type", "lru_hash", "key", "40", "value", "104", "entries", "4096", "name", "sl_ct"];
        bpftool(&["map", "create", map.to_str().unwrap()], &shape);
        let version = Version4 { table, map };
        version.write();
        version
    }

    fn write(&self) {
        self.table
            .for_each(&mut |kept| {
                let (key, entry) = (&kept.key, &kept.entry);
                let mut name = [key.lo_addr.b, key.hi_addr.b].concat();
                name.extend([key.lo_port.to_ne_bytes(), key.hi_port.to_ne_bytes()].concat());
                name.extend([key.protocol, 0, 0, 0]);
                let mut value = Vec::new();
                for side in [entry.lo, entry.hi] {
                    value.extend(side.epoch.to_ne_bytes());
                    value.extend([side.policy_id.to_ne_bytes(), side.endpoint_id.to_ne_bytes()].concat());
                    value.extend([side.ifindex.to_ne_bytes(), side.identity.to_ne_bytes()].concat());
                }
                // Answered TCP connections.
                value.extend((kept.expires - abi::CT_SECONDS_TCP).to_ne_bytes());
                value.extend([entry.flags.to_ne_bytes(), entry.svc_port.to_ne_bytes()].concat());
                value.extend(entry.svc_addr.b);
                value.extend([entry.lo_mac, entry.hi_mac].concat());
                value.extend(entry.rule_set.to_ne_bytes());
                value.extend([0; 32]);
                let hex = |bytes: &[u8]| -> Vec<String> {
                    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
                };
                let words = [
                    vec!["key".into(), "hex".into()],
                    hex(&name),
                    vec!["value".into(), "hex".into()],
                    hex(&value),
                ];
                let words: Vec<&str> = words.iter().flatten().map(String::as_str).collect();
                bpftool(&["map", "update", "pinned", self.map.to_str().unwrap()], &words);
            })
            .unwrap();
    }
}

fn bpftool(command: &[&str], words: &[&str]) {
    let done = Command::new("bpftool").args(command).args(words).output().expect("bpftool");
    assert!(done.status.success(), "{command:?} {words:?}: {}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn an_upgrade_across_abi_versions_costs_no_connection() {
    isolated(|bpffs| async move {
        let bench = Bench::new(&bpffs, AttachMode::Auto).await;
        let state = closed_client(&bench);
        drop(bench.start_with(&state));
        let mut connections: Vec<OneSided> =
            bench.server.addresses.iter().map(|address| OneSided::open(&bench, *address)).collect();
        let old = Version4::of(&bpffs);

        let mut datapath = KernelDatapath::open(bench.config.clone()).unwrap();
        for pod in [&bench.client, &bench.server] {
            datapath.attach_endpoint(pod.name, pod.device).unwrap();
        }
        // The new maps hold no policy yet: the old programs still judge.
        for connection in &mut connections {
            connection.server_speaks().unwrap();
        }
        connections.push(OneSided::open(&bench, bench.server.addresses[0]));
        old.write();
        datapath.reconcile(&state).unwrap();
        datapath.attach_node().unwrap();
        assert!(!bpffs.join("v4").exists());
        for connection in &mut connections {
            connection.server_speaks().unwrap();
        }
        assert!(connections_carried(&datapath).unwrap() >= 3);

        // Judged again under the policies of today: what they forbid ends.
        drop(datapath);
        Version4::of(&bpffs);
        drop(bench.start_with(&bench.state()));
        for connection in &mut connections {
            assert!(is_timeout(&connection.server_speaks().unwrap_err()));
        }
    });
}

#[test]
fn connections_of_an_unknown_layout_stay_behind_and_it_is_said() {
    isolated(|bpffs| async move {
        let bench = Bench::new(&bpffs, AttachMode::Auto).await;
        let state = closed_client(&bench);
        drop(bench.start_with(&state));
        let mut connection = OneSided::open(&bench, bench.server.addresses[0]);
        std::fs::rename(bpffs.join(pin_version()), bpffs.join("v99")).unwrap();
        let datapath = bench.start_with(&state);
        assert!(!bpffs.join("v99").exists());
        assert!(connections_carried(&datapath).is_err());
        // The server's word is nobody's answer now; the client's makes it one.
        assert!(is_timeout(&connection.server_speaks().unwrap_err()));
        connection.client.write_all(b"x").unwrap();
        connection.server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        connection.server.read_exact(&mut [0]).unwrap();
        connection.client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        connection.client.read_exact(&mut [0]).unwrap();
    });
}

#[test]
fn a_map_of_another_size_is_replaced_and_costs_no_connection() {
    isolated(|bpffs| async move {
        let mut bench = Bench::new(&bpffs, AttachMode::Auto).await;
        let state = closed_client(&bench);
        let datapath = bench.start_with(&state);
        let epochs = |datapath: &KernelDatapath| -> Vec<u32> {
            datapath.inspect().unwrap().policies(None).unwrap().iter().map(|row| row.epoch).collect()
        };
        let before = epochs(&datapath);
        drop(datapath);
        let mut connection = OneSided::open(&bench, bench.server.addresses[0]);
        for factor in [2, 1] {
            bench.config.capacity = Capacity {
                connections: 65536 * factor,
                policy_entries: 4096 * factor,
                ipcache: 4096 * factor,
                event_bytes: (1 << 20) * factor,
            };
            let datapath = bench.start_with(&state);
            assert_eq!(epochs(&datapath), before, "no flow is judged again");
            connection.server_speaks().unwrap();
            let inspector = datapath.inspect().unwrap();
            assert_eq!(inspector.diff(&state).unwrap(), []);
            let pressure = inspector.pressure().unwrap();
            let ct = pressure.iter().find(|row| row.map == "sl_ct").unwrap();
            assert_eq!(ct.max_entries, 65536 * factor);
            assert!(connections_carried(&datapath).unwrap() >= 1);
            let maps = std::fs::read_dir(bpffs.join(pin_version()).join("maps")).unwrap().flatten();
            let left: Vec<_> = maps.map(|map| map.file_name().into_string().unwrap()).collect();
            assert!(
                !left.iter().any(|name| name.ends_with("_before") || name.ends_with("_between")),
                "{left:?}"
            );
        }
    });
}

#[test]
fn an_agent_killed_while_it_replaces_a_map_loses_nothing() {
    isolated(|bpffs| async move {
        let mut bench = Bench::new(&bpffs, AttachMode::Auto).await;
        let state = closed_client(&bench);
        drop(bench.start_with(&state));
        let mut connection = OneSided::open(&bench, bench.server.addresses[0]);
        // Twice in the middle, with another size each time.
        for connections in [4096, 8192] {
            bench.config.capacity.connections = connections;
            drop(KernelDatapath::open(bench.config.clone()).unwrap());
            connection.server_speaks().unwrap();
        }
        drop(bench.start_with(&state));
        connection.server_speaks().unwrap();
    });
}

#[test]
fn links_of_another_abi_version_are_taken_over_and_their_maps_removed() {
    isolated(|bpffs| async move {
        let bench = Bench::new(&bpffs, AttachMode::Auto).await;
        drop(bench.start());
        let (current, other) = (bpffs.join(pin_version()), bpffs.join("v0"));
        std::fs::rename(&current, &other).unwrap();
        bench.expect_policy();
        let datapath = bench.start();
        assert!(current.exists() && !other.exists());
        bench.expect_policy();
        let server = bench.server.device.ifindex;
        let links = std::fs::read_dir(current.join("links")).unwrap().flatten();
        let names: Vec<String> = links.map(|link| link.file_name().into_string().unwrap()).collect();
        assert!(names.contains(&format!("to_container_{server}")), "{names:?}");
        datapath.uninstall().unwrap();
    });
}

#[test]
fn a_large_state_is_applied_and_taken_over_in_time() {
    isolated(|bpffs| async move {
        let mut bench = Bench::new(&bpffs, AttachMode::Auto).await;
        bench.config.capacity.policy_entries = 200_000;
        let mut datapath = bench.start();
        let mut state = bench.state();
        let world = |n: u32| IpcacheEntry {
            identity: Identity(Identity::LOCAL_CIDR_MIN + n),
            tunnel_endpoint: None,
            class: AddressKind::World,
        };
        state.ipcache.extend((0..10_000_u32).map(|n| {
            let address = IpAddr::from((0x0b00_0000 + n).to_be_bytes());
            (address.into(), Some(world(n)))
        }));
        let cells = |subject: u32| {
            (0..500).map(move |n| {
                let (mut key, entry) = allow(ALLOWED);
                key.identity = Identity(Identity::LOCAL_CIDR_MIN + subject * 40 + n);
                (key, entry)
            })
        };
        state.policies.extend(
            (0..200_u32).map(|n| subject(Identity(1000 + n), default_deny_ingress(), cells(n).collect())),
        );
        let start = Instant::now();
        datapath.apply(&state).unwrap();
        let applied = start.elapsed();
        drop(datapath);
        let start = Instant::now();
        let mut datapath = KernelDatapath::open(bench.config.clone()).unwrap();
        let opened = start.elapsed();
        let reconciled = datapath.reconcile(&state).unwrap();
        let taken_over = start.elapsed();
        assert_eq!((reconciled.policies_changed, reconciled.addresses), (0, 0));
        println!(
            "100,000 cells and 10,000 addresses: applied in {applied:?}, opened in {opened:?}, taken over in {taken_over:?}"
        );
        // Loose: the bars are measured by the benchmarks, on the optimized build.
        assert!(applied < Duration::from_secs(10) && taken_over < Duration::from_secs(10));
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        println!("{}", status.lines().find(|line| line.starts_with("VmRSS")).unwrap());
    });
}

#[test]
fn a_size_that_would_not_hold_what_is_in_use_is_refused_and_enforcement_goes_on() {
    isolated(|bpffs| async move {
        let bench = Bench::new(&bpffs, AttachMode::Auto).await;
        drop(bench.start());
        let mut config = bench.config.clone();
        config.capacity.connections /= 2;
        config.capacity.ipcache = 2;
        let error = KernelDatapath::open(config).unwrap_err();
        assert!(
            matches!(error, DatapathError::MapFull { map: "sl_ipcache_exact", entries: 2, .. }),
            "{error}"
        );
        bench.expect_policy();
        let datapath = bench.start();
        assert_eq!(datapath.carried(), [], "nothing was set aside");
        bench.expect_policy();
    });
}

#[test]
fn a_pinned_map_of_another_shape_is_refused_and_enforcement_goes_on() {
    isolated(|bpffs| async move {
        let bench = Bench::new(&bpffs, AttachMode::Auto).await;
        drop(bench.start());
        let maps = bpffs.join(pin_version()).join("maps");
        std::fs::rename(maps.join("sl_nat"), maps.join("aside")).unwrap();
        std::fs::rename(maps.join("sl_frags"), maps.join("sl_nat")).unwrap();
        let error = KernelDatapath::open(bench.config.clone()).unwrap_err();
        assert!(matches!(error, DatapathError::MapShape { map: "sl_nat", .. }), "{error}");
        bench.expect_policy();
    });
}

#[test]
fn a_directory_outside_bpffs_is_refused_and_left_clean() {
    isolated(|_| async move {
        let elsewhere = tempfile::tempdir().unwrap();
        let error = KernelDatapath::open(DatapathConfig::new(elsewhere.path().join("sluice"))).unwrap_err();
        assert!(error.to_string().contains("BPF file system"), "{error}");
        assert!(!elsewhere.path().join("sluice").join(pin_version()).exists());
    });
}

#[test]
fn a_full_map_is_reported_and_changes_nothing() {
    isolated(|bpffs| async move {
        let mut bench = Bench::new(&bpffs, AttachMode::Auto).await;
        bench.config.capacity.policy_entries = 4;
        let mut datapath = bench.start();
        let many = (9000..9010).map(allow).collect();
        let change = subject(SERVER, default_deny_ingress(), many);
        let error = datapath.apply(&Delta { policies: vec![change], ..Default::default() }).unwrap_err();
        assert!(matches!(error, DatapathError::MapFull { map: "sl_policy", entries: 4, .. }), "{error}");
        assert_eq!(datapath.failures(), 1);
        assert_eq!(datapath.inspect().unwrap().diff(&bench.state()).unwrap(), []);
        bench.expect_policy();
    });
}

/// The kernel tells the end of a port as it tells that of a device (`RTM_DELLINK`): a pod's device that was taken out of a
/// bridge lost its programs.
#[test]
fn a_device_that_leaves_a_bridge_is_not_gone() {
    isolated(|_| async move {
        let node = Netlink::here().unwrap();
        let command = |line: &str| {
            let ran = std::process::Command::new("ip").args(line.split(' ')).status().unwrap();
            assert!(ran.success(), "ip {line}");
        };
        command("link add br0 type bridge");
        command("link add pod0 type veth peer name eth0");
        let pod = node.get("pod0").await.unwrap().ifindex;
        let mut watch = DeviceWatch::start().unwrap();
        for line in ["link set pod0 master br0", "link set pod0 nomaster", "link del br0"] {
            command(line);
        }
        let mut told = Vec::new();
        let until_the_bridge_is_gone = async {
            while !matches!(told.last(), Some(DeviceEvent::Gone { name, .. }) if name == "br0") {
                told.push(watch.next().await.expect("the subscription lives"));
            }
        };
        tokio::time::timeout(Duration::from_secs(5), until_the_bridge_is_gone)
            .await
            .expect("its end is told");
        let gone =
            |event: &&DeviceEvent| matches!(event, DeviceEvent::Gone { ifindex, .. } if *ifindex == pod);
        assert_eq!(told.iter().find(gone), None, "{told:?}");
        assert!(device_exists(pod));
        command("link del pod0");
        assert!(!device_exists(pod));
    });
}

#[test]
fn the_tunnel_device_is_made_once_and_its_end_is_told() {
    isolated(|_| async move {
        let node = Netlink::here().unwrap();
        let mut watch = DeviceWatch::start().unwrap();
        let first = tunnel::ensure(&node, tunnel::PORT, 1450, ROUTER_MAC).await.unwrap();
        assert_eq!((first.mac.as_slice(), first.mtu, first.up), (ROUTER_MAC.as_slice(), 1450, true));
        assert!(first.vxlan.unwrap().external);
        let again = tunnel::ensure(&node, tunnel::PORT, 1450, ROUTER_MAC).await.unwrap();
        assert_eq!(first.ifindex, again.ifindex);
        let moved = tunnel::ensure(&node, 8472, 1450, ROUTER_MAC).await.unwrap();
        assert_eq!(moved.vxlan.unwrap().port, 8472);
        node.delete(moved.ifindex).await.unwrap();
        node.delete(moved.ifindex).await.unwrap();
        let gone = DeviceEvent::Gone { ifindex: moved.ifindex, name: tunnel::DEVICE.to_owned() };
        let told = async { while watch.next().await.expect("the subscription lives") != gone {} };
        tokio::time::timeout(Duration::from_secs(5), told).await.expect("the end of the device is told");
    });
}
