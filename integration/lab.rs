//! The lab's own plumbing, without agents: what is allowed everywhere has to arrive everywhere, or
//! a scenario would blame policy for a broken lab. Needs root.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use sluice::lab::dns::Carrier;
use sluice::lab::fabric::Lab;
use sluice::lab::links::PodRoutes;
use sluice::lab::listener::Workloads;
use sluice::lab::probe::{
    DnsQuestion, HttpRequest, Observed, ServerName, Source, TcpFlow, UdpFlow, lookup, ping,
};
use sluice::lab::state;
use sluice::lab::topology::{
    ExternalSpec, ListenPort, NodeSpec, PodSpec, Role, ServiceAnswer, ServiceSpec, Site, Topology, Transport,
};

const PATIENCE: Duration = Duration::from_secs(3);

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn tcp(port: u16) -> ListenPort {
    ListenPort { port, transport: Transport::Tcp }
}

fn udp(port: u16) -> ListenPort {
    ListenPort { port, transport: Transport::Udp }
}

fn pod(name: &str, node: &str, last: u8) -> PodSpec {
    PodSpec {
        namespace: "shop".into(),
        name: name.into(),
        node: node.into(),
        addresses: addresses(&[&format!("10.244.0.{last}"), &format!("fd00:244::{last}")]),
        host_network: false,
        ports: vec![tcp(80), tcp(443), udp(7)],
        role: Role::Workload,
    }
}

fn topology() -> Topology {
    let node = |name: &str, last: u8| NodeSpec {
        name: name.into(),
        addresses: addresses(&[&format!("172.18.0.{last}"), &format!("fd00:18::{last}")]),
    };
    let dns = PodSpec {
        namespace: "kube-system".into(),
        ports: vec![tcp(53), udp(53)],
        role: Role::ClusterDns,
        ..pod("dns", "node2", 53)
    };
    let kubelet = PodSpec {
        host_network: true,
        addresses: vec![],
        ports: vec![tcp(10250)],
        ..pod("kubelet", "node2", 0)
    };
    Topology {
        nodes: vec![node("node1", 11), node("node2", 12)],
        pods: vec![pod("a", "node1", 1), pod("b", "node1", 2), pod("c", "node2", 3), kubelet, dns],
        externals: vec![ExternalSpec {
            name: "internet".into(),
            addresses: addresses(&["203.0.113.7", "2001:db8:7::7"]),
            ports: vec![tcp(80), tcp(443)],
            names: vec!["www.example.com".into()],
            aliases: vec![],
            ttl: 30,
        }],
        services: vec![ServiceSpec {
            namespace: "shop".into(),
            name: "c".into(),
            answer: ServiceAnswer::Addresses(addresses(&["10.96.0.9"])),
        }],
    }
}

/// A lab that goes away with the test, passed or failed.
struct Bench {
    lab: Option<Lab>,
    workloads: Workloads,
}

impl Bench {
    fn new(name: &str, topology: Topology) -> Bench {
        let lab = Lab::create(name, PodRoutes::FromAnywhere).unwrap();
        let mut bench = Bench { lab: Some(lab), workloads: Workloads::new().unwrap() };
        bench.converge(topology);
        bench
    }

    fn lab(&self) -> &Lab {
        self.lab.as_ref().unwrap()
    }

    fn converge(&mut self, topology: Topology) {
        self.lab.as_mut().unwrap().converge(topology).unwrap();
        let lab = self.lab.as_ref().unwrap();
        self.workloads.converge(lab.topology(), |site| lab.netns(site)).unwrap();
    }

    fn source(&self, site: &str) -> Source {
        Source { netns: self.lab().netns(&Site::parse(site).unwrap()), address: None }
    }

    async fn get(&self, from: &str, to: &str) -> Observed {
        self.get_within(from, to, PATIENCE).await
    }

    async fn get_within(&self, from: &str, to: &str, patience: Duration) -> Observed {
        let to: SocketAddr = to.parse().unwrap();
        let tls = (to.port() == 443).then(|| ServerName::Name("www.example.com".into()));
        TcpFlow::open(&self.source(from), to, tls.as_ref(), &HttpRequest::get("x"), patience).await.0
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(lab) = self.lab.take() {
            lab.remove().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_reaches_everything_in_both_families() {
    let started = Instant::now();
    let bench = Bench::new("lab-t1", topology());
    println!("built in {:?}", started.elapsed());
    for from in ["shop/a", "shop/c", "node:node1", "node:node2", "external:internet"] {
        for to in [
            "10.244.0.2:80",
            "[fd00:244::2]:80",
            "10.244.0.3:443",
            "[fd00:244::3]:443",
            "172.18.0.12:10250",
            "[fd00:18::12]:10250",
            "203.0.113.7:443",
            "[2001:db8:7::7]:80",
        ] {
            assert_eq!(bench.get(from, to).await, Observed::Answered, "{from} to {to}");
        }
        for to in ["10.244.0.3:7", "[fd00:244::2]:7"] {
            let observed = UdpFlow::open(&bench.source(from), to.parse().unwrap(), PATIENCE).await.0;
            assert_eq!(observed, Observed::Answered, "{from} to {to} over UDP");
        }
        for to in addresses(&["10.244.0.3", "fd00:244::2", "172.18.0.11", "203.0.113.7", "2001:db8:7::7"]) {
            assert_eq!(
                ping(&bench.source(from), to, PATIENCE).await,
                Observed::Answered,
                "{from} pings {to}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_and_silence_are_told_apart() {
    let bench = Bench::new("lab-t2", topology());
    let patience = Duration::from_millis(300);
    assert!(matches!(bench.get("shop/a", "10.244.0.3:81").await, Observed::Rejected(_)));
    assert!(matches!(bench.get("shop/a", "[fd00:244::3]:81").await, Observed::Rejected(_)));
    // Nobody has these addresses; the fabric swallows what it cannot deliver.
    for to in ["198.51.100.1:80", "[2001:db8:ffff::1]:80"] {
        assert_eq!(bench.get_within("shop/a", to, patience).await, Observed::Silence, "{to}");
    }
    let (source, request) = (bench.source("shop/a"), HttpRequest::get("x"));
    let to = "203.0.113.7:443".parse().unwrap();
    let nameless = TcpFlow::open(&source, to, Some(&ServerName::None), &request, PATIENCE);
    assert_eq!(nameless.await.0, Observed::Answered, "a ClientHello without a name");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_dns_answers_over_udp_and_tcp() {
    let bench = Bench::new("lab-t3", topology());
    let server: SocketAddr = "10.244.0.53:53".parse().unwrap();
    for carrier in [Carrier::Udp, Carrier::Tcp] {
        let ask = |name: &str, kind: &str| {
            let question = DnsQuestion { name: name.into(), kind: kind.into(), carrier };
            let source = bench.source("shop/a");
            async move { lookup(&source, server, &question, PATIENCE).await }
        };
        let found = ask("www.example.com", "AAAA").await;
        assert_eq!(found, (Observed::Answered, addresses(&["2001:db8:7::7"])));
        assert_eq!(
            ask("c.shop.svc.cluster.local.", "A").await,
            (Observed::Answered, addresses(&["10.96.0.9"]))
        );
        assert_eq!(ask("nowhere.example", "A").await, (Observed::Answered, vec![]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_touches_only_what_changed() {
    let mut bench = Bench::new("lab-t4", topology());
    let source = bench.source("shop/a");
    let to = "10.244.0.3:80".parse().unwrap();
    let (_, flow) = TcpFlow::open(&source, to, None, &HttpRequest::get("c"), PATIENCE).await;
    let mut flow = flow.unwrap();
    let mut changed = topology();
    changed.externals[0].addresses = addresses(&["203.0.113.99"]);
    changed.pods.retain(|pod| pod.name != "b");
    changed.pods.push(pod("new", "node2", 9));
    bench.converge(changed);
    assert_eq!(bench.get("shop/a", "203.0.113.99:80").await, Observed::Answered);
    assert_eq!(bench.get("external:internet", "10.244.0.9:80").await, Observed::Answered);
    let patience = Duration::from_millis(300);
    for gone in ["203.0.113.7:80", "10.244.0.2:80"] {
        assert_ne!(bench.get_within("shop/c", gone, patience).await, Observed::Answered, "{gone}");
    }
    assert_eq!(flow.send(&HttpRequest::get("c"), PATIENCE).await, Observed::Answered, "an open connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn labs_live_side_by_side_and_leave_nothing() {
    let one = Bench::new("lab-t5", topology());
    let two = Bench::new("lab-t6", topology());
    assert_eq!(two.get("shop/a", "10.244.0.3:80").await, Observed::Answered);
    let source = two.source("shop/a");
    drop(one);
    assert!(!Path::new("/run/sluice-lab/lab-t5").exists());
    assert_eq!(two.get("shop/a", "10.244.0.3:80").await, Observed::Answered);
    drop(two);
    assert!(!state::list().unwrap().iter().any(|name| name == "lab-t5" || name == "lab-t6"));
    assert!(source.netns.enter().is_err(), "the namespace is gone");
}

#[test]
fn nothing_leads_out() {
    let lab = Lab::create("lab-t7", PodRoutes::FromExternals).unwrap();
    let interfaces = lab.netns(&Site::Fabric).run(|| {
        let output = std::process::Command::new("ip").args(["-br", "link"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    });
    let interfaces = interfaces.unwrap();
    assert_eq!(interfaces.lines().count(), 1, "{interfaces}");
    assert!(interfaces.starts_with("lo "));
    lab.remove().unwrap();
}

fn sluice(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sluice")).args(arguments).output().unwrap()
}

/// Starts a scenario that takes a minute, and waits until its lab is built.
fn long_test() -> (Child, PathBuf) {
    let file = std::env::temp_dir().join(format!(
        "sluice-lab-{}-{:?}.yaml",
        std::process::id(),
        std::thread::current().id()
    ));
    let text = "apiVersion: sluice.dev/v1alpha1\nkind: Scenario\nmetadata: {name: long}\nspec: {steps: [{wait: 60s}]}\n";
    std::fs::write(&file, text).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(["lab", "test", "--no-agent"])
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lab = PathBuf::from(format!("/run/sluice-lab/test-{}", child.id()));
    let deadline = Instant::now() + Duration::from_secs(10);
    while !lab.join("ns/pod.kube-system.kube-dns").exists() {
        assert!(Instant::now() < deadline, "{} is not built", lab.display());
        std::thread::sleep(Duration::from_millis(10));
    }
    (child, lab)
}

#[test]
fn a_lab_that_is_left_running_serves_and_can_be_entered() {
    let up = sluice(&["lab", "up", "--no-agent", "--name", "lab-t8"]);
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    let again = sluice(&["lab", "up", "--no-agent", "--name", "lab-t8"]);
    let found = sluice(&[
        "lab",
        "exec",
        "--name",
        "lab-t8",
        "shop/frontend",
        "--",
        "getent",
        "hosts",
        "www.example.com",
    ]);
    let down = sluice(&["lab", "down", "lab-t8"]);
    assert!(!again.status.success(), "a second lab with the same name");
    assert!(String::from_utf8_lossy(&found.stdout).contains("2001:db8:7::7"), "{found:?}");
    assert!(down.status.success() && !Path::new("/run/sluice-lab/lab-t8").exists());
}

#[test]
fn an_interrupted_test_leaves_nothing() {
    let (mut child, lab) = long_test();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(!lab.exists());
}

#[test]
fn what_a_killed_test_leaves_is_found_and_removed() {
    let (mut child, lab) = long_test();
    let name = lab.file_name().unwrap().to_str().unwrap().to_owned();
    let refused = sluice(&["lab", "down", &name]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!refused.status.success(), "a lab in use is not removed");
    assert!(state::list().unwrap().contains(&name));
    assert!(sluice(&["lab", "down", &name]).status.success());
    assert!(!lab.exists());
}

const TWO_NODES: &str = "
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: shop}
spec: {nodeName: node1, containers: [{name: c}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: shop}
spec: {nodeName: node2, containers: [{name: c, ports: [{containerPort: 8080}]}]}
---
apiVersion: sluice.dev/v1alpha1
kind: Scenario
metadata: {name: two-nodes}
spec:
  description: Two pods.
  steps: [{name: they meet, from: shop/a, to: 'shop/b:8080', expect: allowed}]
";

/// Goes with the value, whatever becomes of the test.
struct Up(&'static str);

impl Drop for Up {
    fn drop(&mut self) {
        sluice(&["lab", "down", self.0]);
    }
}

/// The tunnel's device and forwarding, from one node of two: they were gone until the agent's next start.
#[test]
fn what_others_take_away_from_a_node_is_put_back() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("two-nodes.yaml");
    std::fs::write(&file, TWO_NODES).unwrap();
    let lab = Up("lab-t9");
    let up = sluice(&["lab", "up", "--name", lab.0, file.to_str().unwrap()]);
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    let status = sluice(&["lab", "status", lab.0]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    let line = status.lines().find(|line| line.contains("shop/b")).unwrap();
    let address = line.split_whitespace().find(|word| word.starts_with("10.")).unwrap();
    let url = format!("http://{address}:8080/");
    let curl = ["--", "curl", "-s", "-f", "-m", "1", "-o", "/dev/null", &url];
    let meets =
        || sluice(&[&["lab", "exec", "--name", lab.0, "shop/a"], &curl[..]].concat()).status.success();
    assert!(meets());

    let on_the_node = |program: &str, arguments: &[&str]| {
        let namespace = format!("--net=/run/sluice-lab/{}/ns/node.node1", lab.0);
        let ran = Command::new("nsenter").arg(namespace).arg(program).args(arguments).status().unwrap();
        assert!(ran.success(), "{program} {arguments:?}");
    };
    on_the_node("ip", &["link", "del", "sluice_vxlan"]);
    on_the_node("sysctl", &["-q", "-w", "net.ipv4.ip_forward=0"]);
    let deadline = Instant::now() + Duration::from_secs(30);
    while !meets() {
        assert!(Instant::now() < deadline, "the pods never meet again");
    }
    let socket = format!("/run/sluice-lab/{}/node/node1/admin.sock", lab.0);
    let status = sluice(&["status", "--socket", &socket]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("taken away and put back: 2"), "{status}");
}
