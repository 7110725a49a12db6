//! The real agent: the binary, in a namespace, with a store of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sluice::api::client::Client;
use sluice::api::types::{Applied, Endpoint, EndpointRequest, Status};
use sluice::datapath::net::Namespace;

use super::cluster::{NODE, node_address};

/// The binary that `cargo bench` built beside this one.
pub const BUILT: &str = env!("CARGO_BIN_EXE_sluice");

static CHOSEN: OnceLock<String> = OnceLock::new();

/// Measures this binary instead of [`BUILT`]. Once, before anything is measured.
pub fn choose(program: String) {
    CHOSEN.get_or_init(|| program);
}

/// The binary that is measured.
pub fn program() -> &'static str {
    CHOSEN.get().map_or(BUILT, String::as_str)
}

const PATIENCE: Duration = Duration::from_secs(120);

/// Where an agent keeps what outlives it.
#[derive(Clone, Debug)]
pub struct Home {
    pub state: PathBuf,
    pub run: PathBuf,
    pub bpffs: PathBuf,
}

impl Home {
    pub fn new(dir: &Path, bpffs: PathBuf) -> anyhow::Result<Home> {
        let home = Home { state: dir.join("state"), run: dir.join("run"), bpffs };
        std::fs::create_dir_all(&home.state)?;
        std::fs::create_dir_all(&home.run)?;
        Ok(home)
    }

    pub fn socket(&self) -> PathBuf {
        self.run.join("admin.sock")
    }
}

/// A running agent. Ends with this value; what it left in the kernel stays.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    client: Client,
    runtime: tokio::runtime::Runtime,
}

impl Agent {
    /// Starts an agent in `node` and waits until the kernel enforces what its store holds. Returns
    /// how long that took, from the start of the process.
    pub fn start(node: &Namespace, home: &Home) -> anyhow::Result<(Agent, Duration)> {
        Agent::start_with(node, home, &[])
    }

    /// The same, with more flags.
    pub fn start_with(node: &Namespace, home: &Home, flags: &[&str]) -> anyhow::Result<(Agent, Duration)> {
        let mut command = Command::new(program());
        command.arg("agent").args(flags);
        Agent::spawn(node, home, command)
    }

    /// The same with options, and with everything that it starts, on the last CPU.
    pub fn start_on_last_cpu(
        node: &Namespace,
        home: &Home,
        options: &[&str],
    ) -> anyhow::Result<(Agent, Duration)> {
        let last = std::thread::available_parallelism()?.get() - 1;
        let mut command = Command::new("taskset");
        command.args(["-c", &last.to_string(), program(), "agent"]).args(options);
        Agent::spawn(node, home, command)
    }

    fn spawn(node: &Namespace, home: &Home, mut command: Command) -> anyhow::Result<(Agent, Duration)> {
        let log = std::fs::File::create(home.state.join("log"))?;
        command
            .args(["--node-name", NODE, "--log", "warn", "--node-address"])
            .arg(node_address(0).to_string())
            .arg("--state-dir")
            .arg(&home.state)
            .arg("--run-dir")
            .arg(&home.run)
            .arg("--bpffs")
            .arg(&home.bpffs)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let begin = Instant::now();
        let child = node.run(|| command.spawn())?.context("start the agent")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut agent = Agent { child, client: Client::new(&home.socket()), runtime };
        loop {
            if let Ok(status) = agent.status()
                && status.revision.desired == status.revision.realized
                && status.counts.endpoints == status.counts.endpoints_ready
            {
                return Ok((agent, begin.elapsed()));
            }
            if let Some(status) = agent.child.try_wait()? {
                let log = std::fs::read_to_string(home.state.join("log")).unwrap_or_default();
                anyhow::bail!("the agent ended with {status}: {log}");
            }
            anyhow::ensure!(begin.elapsed() < PATIENCE, "the agent is not ready after {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn status(&self) -> anyhow::Result<Status> {
        Ok(self.runtime.block_on(self.client.get("/v1/status"))?)
    }

    /// Waits until a proxy listens.
    pub fn await_proxy(&self, name: &str) -> anyhow::Result<()> {
        let begin = Instant::now();
        while !self.status()?.proxies.iter().any(|proxy| proxy.name == name) {
            anyhow::ensure!(begin.elapsed() < PATIENCE, "{name} does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Applies a manifest; returns when it is enforced.
    pub fn apply(&self, text: &str) -> anyhow::Result<()> {
        let _applied: Applied =
            self.runtime.block_on(self.client.post("/v1/objects", text.to_owned().into_bytes()))?;
        Ok(())
    }

    /// All that was applied is in the kernel.
    pub fn expect_enforced(&self) -> anyhow::Result<()> {
        let status = self.status()?;
        anyhow::ensure!(
            status.revision.desired == status.revision.realized,
            "the kernel does not have the newest state: {:?}",
            status.components
        );
        Ok(())
    }

    pub fn add_endpoint(&self, request: &EndpointRequest) -> anyhow::Result<()> {
        let _added: Endpoint =
            self.runtime.block_on(self.client.put("/v1/endpoints", serde_json::to_vec(request)?))?;
        Ok(())
    }

    /// Moves every thread of the process to one CPU.
    pub fn move_to(&self, cpu: usize) -> anyhow::Result<()> {
        let mut cpus = nix::sched::CpuSet::new();
        cpus.set(cpu)?;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let task = task?.file_name().to_string_lossy().parse()?;
            nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(task), &cpus)?;
        }
        Ok(())
    }

    /// Processor time so far.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, rest) = stat.rsplit_once(')').context("stat")?;
        let ticks: u64 = rest.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
        // USER_HZ is 100 on every architecture that we run on.
        Ok(Duration::from_millis(ticks * 10))
    }

    /// When the last of these ports was first seen dropped, after `since_ns`.
    pub fn drops_seen_after(&self, since_ns: u64, ports: std::ops::Range<u16>) -> anyhow::Result<Duration> {
        let since = jiff::Timestamp::from_nanosecond(i128::from(since_ns))?;
        let until = since.checked_add(jiff::SignedDuration::from_millis(1500))?;
        let path = format!("/v1/flows?verdict=DROPPED&since={since}&until={until}").replace(':', "%3A");
        let mut first = std::collections::BTreeMap::new();
        self.runtime.block_on(async {
            let mut lines = self.client.lines(&path).await?;
            while let Some(line) = lines.next().await? {
                let flow: serde_json::Value = serde_json::from_str(&line)?;
                let port = flow.pointer("/flow/l4/UDP/destination_port").and_then(|port| port.as_u64());
                let time = flow.pointer("/flow/time").and_then(|time| time.as_str());
                if let (Some(port), Some(time)) = (port, time) {
                    let time = time.parse::<jiff::Timestamp>()?.as_nanosecond() - i128::from(since_ns);
                    let known = first.entry(port).or_insert(time);
                    *known = time.min(*known);
                }
            }
            anyhow::Ok(())
        })?;
        let missing = ports.clone().find(|port| !first.contains_key(&u64::from(*port)));
        anyhow::ensure!(missing.is_none(), "port {missing:?} was never seen dropped");
        let last = first.into_values().max().unwrap_or_default();
        Ok(Duration::from_nanos(u64::try_from(last.max(0))?))
    }

    /// Resident memory in bytes, now and at most.
    pub fn memory(&self) -> anyhow::Result<(u64, u64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name: &str| -> anyhow::Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context("memory")?;
            Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
        };
        Ok((field("VmRSS:")?, field("VmHWM:")?))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
