//! A node with an agent process and two pods, in namespaces that end with the test.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use sluice::api::client::Client;
use sluice::api::types::Status;
use sluice::datapath::config::ROUTER_MAC;
use sluice::datapath::net::pod::{PodNetwork, create};
use sluice::datapath::net::{Namespace, Netlink, sysctl};

pub const ALLOWED: u16 = 8080;
pub const DENIED_TCP: u16 = 8081;
pub const DENIED_UDP: u16 = 7001;
/// For an agent on a busy machine to start, verified programs included.
const START: Duration = Duration::from_secs(30);

/// See the module.
pub struct Bench {
    pub client: Pod,
    pub server: Pod,
    home: PathBuf,
    agent: Option<Child>,
    /// Proxies that this test started, in order.
    proxies: Vec<(&'static str, Child)>,
    api: Client,
}

/// A pod on the node.
pub struct Pod {
    name: &'static str,
    pub namespace: Namespace,
    /// Keeps the namespace reachable by a path for the agent.
    file: File,
    pub addresses: [IpAddr; 2],
}

impl Pod {
    async fn new(name: &'static str, last: u8) -> Pod {
        let (namespace, file) = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            (Namespace::current().unwrap(), File::open("/proc/thread-self/ns/net").unwrap())
        })
        .join()
        .unwrap();
        let addresses =
            [IpAddr::from([10, 244, 0, last]), IpAddr::from([0xfd00, 0x244, 0, 0, 0, 0, 0, last.into()])];
        let host_device = format!("chaos{last}");
        let network = PodNetwork {
            namespace: &namespace,
            host_device: &host_device,
            pod_device: "eth0",
            addresses: &addresses,
            mtu: 1450,
            router_mac: ROUTER_MAC,
        };
        let node = Netlink::here().unwrap();
        let made = create(&node, &network).await.unwrap();
        // Plain routing would work too: what does not pass was dropped by a program.
        node.set_mac(made.host_ifindex, ROUTER_MAC).await.unwrap();
        Pod { name, namespace, file, addresses }
    }

    fn registration(&self, app: &str) -> Value {
        json!({
            "pod": self.name,
            "netns": format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()),
            "interface": "eth0",
            "labels": {"app": app},
            "addresses": self.addresses,
        })
    }
}

/// The server takes TCP on one port, and on one more that no test uses.
fn policy(other_port: u32) -> String {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "server"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "server"}},
            "ingress": [{
                "from": [{"podSelector": {"matchLabels": {"app": "client"}}}],
                "ports": [{"port": ALLOWED}, {"port": 9000 + other_port}],
            }],
        },
    })
    .to_string()
}

impl Bench {
    /// Runs `test` on a thread with network and mount namespaces of its own.
    pub fn isolated(test: impl AsyncFnOnce(Bench) + Send) {
        let home = tempfile::Builder::new().prefix("chaos-").tempdir().unwrap();
        std::thread::scope(|scope| {
            let home = home.path();
            let thread = scope.spawn(move || {
                unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
                let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
                mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
                let bpf = home.join("bpf");
                std::fs::create_dir(&bpf).unwrap();
                mount(Some("bpf"), &bpf, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async { test(Bench::new(home).await).await });
            });
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        });
    }

    async fn new(home: &Path) -> Bench {
        sysctl::prepare_node().unwrap();
        let node = Netlink::here().unwrap();
        node.set_up(node.get("lo").await.unwrap().ifindex).await.unwrap();
        Bench {
            client: Pod::new("shop/client", 1).await,
            server: Pod::new("shop/server", 2).await,
            home: home.to_owned(),
            agent: None,
            proxies: Vec::new(),
            api: Client::new(&home.join("run/admin.sock")),
        }
    }

    /// Starts an agent.
    pub fn start(&mut self) {
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        command.args(["agent", "--node-name", "node1", "--node-address", "172.18.0.1,fd00:18::1"]);
        command.args(["--pod-cidr", "10.244.0.0/16,fd00:244::/48", "--routing", "routes"]);
        for (flag, directory) in [("--state-dir", "state"), ("--run-dir", "run"), ("--bpffs", "bpf/sluice")] {
            command.arg(flag).arg(self.home.join(directory));
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        assert!(self.agent.is_none(), "one agent at a time");
        self.agent = Some(command.spawn().unwrap());
    }

    fn log(&self) -> PathBuf {
        self.home.join("agent.log")
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().unwrap();
            agent.wait().unwrap();
        }
    }

    /// Waits until the agent enforces what it knows.
    pub async fn ready(&mut self) {
        let deadline = Instant::now() + START;
        loop {
            let status = self.api.get::<Status>("/v1/status").await;
            if let Ok(status) = &status
                && status.revision.realized >= status.revision.desired
            {
                return;
            }
            let ended = self.agent.as_mut().and_then(|agent| agent.try_wait().unwrap());
            if ended.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(self.log()).unwrap_or_default();
                panic!("the agent is not ready ({ended:?}): {status:?}\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Registers the pods and applies the policy.
    pub async fn describe(&self) {
        self.register().await;
        let _: Value = self.api.post("/v1/objects", policy(0)).await.unwrap();
        self.expect_consistent().await;
    }

    async fn register(&self) {
        for (pod, app) in [(&self.client, "client"), (&self.server, "server")] {
            let _: Value = self.api.put("/v1/endpoints", pod.registration(app).to_string()).await.unwrap();
        }
    }

    /// Registers the pods, applies `policy`, and waits until its proxies serve.
    pub async fn describe_proxied(&self, policy: String) {
        self.register().await;
        let _: Value = self.api.post("/v1/objects", policy).await.unwrap();
        self.expect_consistent().await;
        let deadline = Instant::now() + START;
        while ["http-proxy", "dns-proxy"].iter().any(|name| self.serving(name).is_none()) {
            assert!(Instant::now() < deadline, "no proxies:\n{}", self.read_log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The process that serves.
    fn serving(&self, proxy: &str) -> Option<u32> {
        std::fs::read_to_string(self.home.join(format!("run/{proxy}.pid"))).ok()?.trim().parse().ok()
    }

    /// A new process takes over from the one that serves, which then finishes what it has begun and ends.
    pub async fn replace_proxy(&mut self, proxy: &'static str) {
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        let old = self.serving(proxy).expect("one that serves");
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        command.arg(proxy).arg("--run-dir").arg(self.home.join("run"));
        command.arg("--bpffs").arg(self.home.join("bpf/sluice"));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut child = command.spawn().unwrap();
        let deadline = Instant::now() + START;
        while self.serving(proxy) != Some(child.id()) {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "{ended:?}:\n{}", self.read_log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.proxies.push((proxy, child));
        // Gone, or a zombie that its parent has not asked about.
        while std::fs::read_to_string(format!("/proc/{old}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(Instant::now() < deadline, "{proxy} {old} does not end:\n{}", self.read_log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.proxies.retain_mut(|(_, child)| child.try_wait().unwrap().is_none());
    }

    /// Takes the `sk_lookup` program away.
    pub fn remove_find_proxy(&self) {
        let pin =
            self.home.join(format!("bpf/sluice/v{}/links/find_proxy", sluice::datapath::abi::ABI_VERSION));
        // Removing the pin alone detaches it some time later, when the kernel frees the file.
        let detached = Command::new("bpftool").args(["link", "detach", "pinned"]).arg(&pin).status().unwrap();
        assert!(detached.success(), "bpftool link detach: {detached}");
        std::fs::remove_file(pin).unwrap();
    }

    pub fn read_log(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Kills the agent while it has a policy to apply: the later, the further it has got.
    pub async fn apply_and_kill(&mut self, round: u32, after: Duration) {
        // The answer may never come.
        let post = self.api.post::<Value>("/v1/objects", policy(round + 1));
        let _ = tokio::time::timeout(after, post).await;
        self.kill();
    }

    /// Healthy, both pods ready, and the kernel holds exactly what the agent wants.
    pub async fn expect_consistent(&self) {
        let status: Status = self.api.get("/v1/status").await.unwrap();
        assert_eq!(status.health, "ok", "{:#?}", status.components);
        assert_eq!((status.counts.endpoints, status.counts.endpoints_ready), (2, 2));
        let diff: Vec<Value> = self.api.get("/v1/kernel/diff").await.unwrap();
        assert_eq!(diff, Vec::<Value>::new());
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.kill();
        for (_, child) in &mut self.proxies {
            child.kill().ok();
            child.wait().ok();
        }
    }
}
