//! The control plane of a lab: one `sluice server` in the fabric, one `sluice agent` in every node's
//! namespace, each a child process with directories of its own.
//!
//! A change is done when every agent enforces it: [`ControlPlane::settle`] waits for that, and says
//! who is late when it does not happen.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use super::LabError;
use super::fabric::Lab;
use super::links::CONTROL_PLANE;
use super::topology::{PodSpec, Site};
use crate::api::client::{Client, ClientError};
use crate::api::types::{Applied, DeviceOrigin, EndpointRequest, Status};
use crate::model::ObjectRef;

/// Port of `sluice server`.
const SERVER_PORT: u16 = 7443;
/// Options of the agents that the server needs too: it reads manifests the same way.
const SERVER_OPTIONS: &[&str] = &["empty-rule-lists"];
/// How long a process has until its socket answers.
const START: Duration = Duration::from_secs(20);
/// How long a change has until it is enforced everywhere.
const SETTLE: Duration = Duration::from_secs(20);
/// Between two looks at something that is about to happen.
const POLL: Duration = Duration::from_millis(10);
/// Lines of a log that explain a failed start.
const LOG_TAIL: usize = 15;

/// Why the control plane is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error(transparent)]
    Api(#[from] ClientError),
    #[error("{process} {what}; the end of its log {log}:\n{tail}")]
    Process { process: String, what: String, log: String, tail: String },
    #[error("after {} s not every agent enforces revision {revision}: {}", SETTLE.as_secs(), .late.join(", "))]
    Late { revision: u64, late: Vec<String> },
}

/// What is enforced and how, in the words of `sluice agent --help`: long option and value.
pub type AgentOptions = Vec<(String, String)>;

/// One child process and the directory that holds its log and socket.
#[derive(Debug)]
struct Process {
    title: String,
    child: Child,
    log: PathBuf,
    client: Client,
}

/// The server and its agents. Dropping it leaves them running; [`ControlPlane::stop`] ends them, and
/// so does removing the lab.
#[derive(Debug)]
pub struct ControlPlane {
    program: PathBuf,
    directory: PathBuf,
    options: AgentOptions,
    server: Process,
    agents: BTreeMap<String, Process>,
    /// Proxies that took over from the ones that the agents started.
    proxies: Vec<Process>,
    /// Of the newest change.
    revision: u64,
}

impl ControlPlane {
    /// Starts the server, then an agent on every node; returns when all of them answer.
    /// `program` is the `sluice` executable.
    pub async fn start(
        lab: &Lab,
        program: &Path,
        options: AgentOptions,
    ) -> Result<ControlPlane, ControlError> {
        let directory = lab.dir().path().to_owned();
        let state = directory.join("server");
        make_directory(&state)?;
        let mut command = Command::new(program);
        command.arg("server").arg("--state-dir").arg(&state).arg("--run-dir").arg(&state);
        command.args(["--listen", &format!("{}:{SERVER_PORT}", CONTROL_PLANE[0])]);
        for (name, value) in options.iter().filter(|(name, _)| SERVER_OPTIONS.contains(&name.as_str())) {
            command.arg(format!("--{name}={value}"));
        }
        let server = Process::start("the server", command, lab, &Site::Fabric, &state, "server.sock")?;
        let mut control = ControlPlane {
            program: program.to_owned(),
            directory,
            options,
            server,
            agents: BTreeMap::new(),
            proxies: Vec::new(),
            revision: 0,
        };
        control.server.ready().await?;
        for node in &lab.topology().nodes {
            control.launch_agent(lab, &node.name)?;
        }
        for agent in control.agents.values_mut() {
            agent.ready().await?;
        }
        Ok(control)
    }

    fn launch_agent(&mut self, lab: &Lab, node: &str) -> Result<(), ControlError> {
        let home = self.directory.join("node").join(node);
        let (state, bpf) = (home.join("state"), home.join("bpf"));
        for directory in [&home, &state, &bpf] {
            make_directory(directory)?;
        }
        mount_bpffs(&bpf)?;
        let mut command = Command::new(&self.program);
        command.arg("agent").args(["--node-name", node, "--uplink", super::links::CHILD_DEVICE]);
        command
            .arg("--state-dir")
            .arg(&state)
            .arg("--run-dir")
            .arg(&home)
            .arg("--bpffs")
            .arg(bpf.join("sluice"));
        command.arg("--server").arg(format!("https://{}:{SERVER_PORT}", CONTROL_PLANE[0]));
        command.arg("--token-file").arg(self.directory.join("server/token"));
        // Relays ask every node, with the credentials that the server gives out.
        command.args(["--hubble-listen-address", "[::]:4245"]);
        for (name, value) in &self.options {
            command.arg(format!("--{name}={value}"));
        }
        let site = Site::Node(node.to_owned());
        let process =
            Process::start(&format!("the agent of {node}"), command, lab, &site, &home, "admin.sock")?;
        self.agents.insert(node.to_owned(), process);
        Ok(())
    }

    /// Applies manifests: all of them or none.
    pub async fn apply(&mut self, manifests: String) -> Result<Applied, ControlError> {
        let applied: Applied = self.server.client.post("/v1/objects", manifests).await?;
        self.revision = self.revision.max(applied.revision);
        Ok(applied)
    }

    pub async fn delete(&mut self, object: &ObjectRef) -> Result<Applied, ControlError> {
        let namespace = if object.namespace.is_empty() { "-" } else { &*object.namespace };
        let path = format!("/v1/objects/{}/{namespace}/{}", object.kind, object.name);
        let applied: Applied = self.server.client.delete(&path).await?;
        self.revision = self.revision.max(applied.revision);
        Ok(applied)
    }

    /// Tells each node's agent the devices of its pods. Telling twice is harmless.
    pub async fn register(&self, lab: &Lab) -> Result<(), ControlError> {
        for pod in lab.topology().pods.iter().filter(|pod| !pod.host_network) {
            let Some(agent) = self.agents.get(&pod.node) else { continue };
            let request = EndpointRequest {
                pod: pod.path(),
                netns: Some(lab.netns(&pod.site()).path().display().to_string()),
                interface: Some(super::links::CHILD_DEVICE.to_owned()),
                host_interface: None,
                device: DeviceOrigin::Existing,
                labels: BTreeMap::new(),
                addresses: Vec::new(),
            };
            let body = serde_json::to_string(&request).map_err(io::Error::from);
            let body = body.map_err(|e| LabError::io("describe", pod.path(), e))?;
            let _: serde_json::Value = agent.client.put("/v1/endpoints", body).await?;
        }
        Ok(())
    }

    /// Tells a pod's agent that its device is gone.
    pub async fn unregister(&self, pod: &PodSpec) -> Result<(), ControlError> {
        let Some(agent) = self.agents.get(&pod.node) else { return Ok(()) };
        match agent.client.delete::<serde_json::Value>(&format!("/v1/endpoints/{}", pod.path())).await {
            // The agent has seen the device or the object go by itself.
            Ok(_) | Err(ClientError::Refused { status: 404, .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until every agent enforces the newest change for all of its pods.
    pub async fn settle(&mut self, lab: &Lab) -> Result<(), ControlError> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let mut late = Vec::new();
            for (node, agent) in &mut self.agents {
                let pods =
                    lab.topology().pods.iter().filter(|pod| pod.node == *node && !pod.host_network).count();
                match agent.status::<Status>().await? {
                    None => late.push(format!("{node} does not answer")),
                    Some(status) => late.extend(lateness(node, &status, self.revision, pods)),
                }
            }
            if late.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(ControlError::Late { revision: self.revision, late });
            }
            sleep(POLL).await;
        }
    }

    /// Kills one agent without warning and starts it again.
    pub async fn restart_agent(&mut self, lab: &Lab, node: &str) -> Result<(), ControlError> {
        if let Some(mut agent) = self.agents.remove(node) {
            agent.end(Signal::SIGKILL);
        }
        self.launch_agent(lab, node)?;
        if let Some(agent) = self.agents.get_mut(node) {
            agent.ready().await?;
        }
        self.register(lab).await?;
        self.settle(lab).await
    }

    /// Starts a proxy of a node anew: the new process takes over, and the old one finishes what it has begun.
    /// Returns when the new one serves. `subcommand` is that of the process.
    pub async fn restart_proxy(
        &mut self,
        lab: &Lab,
        node: &str,
        subcommand: &str,
    ) -> Result<(), ControlError> {
        let home = self.directory.join("node").join(node);
        let mut command = Command::new(&self.program);
        command.arg(subcommand).arg("--run-dir").arg(&home);
        command.arg("--bpffs").arg(home.join("bpf/sluice"));
        let (title, site) = (format!("the {subcommand} of {node}"), Site::Node(node.to_owned()));
        let mut proxy = Process::start(&title, command, lab, &site, &home, &format!("{subcommand}.sock"))?;
        let announced = home.join(format!("{subcommand}.pid"));
        let deadline = Instant::now() + START;
        while fs::read_to_string(&announced).ok().and_then(|text| text.trim().parse().ok())
            != Some(proxy.child.id())
        {
            if let Ok(Some(status)) = proxy.child.try_wait() {
                return Err(proxy.failure(format!("ended ({status})")));
            }
            if Instant::now() >= deadline {
                return Err(proxy.failure(format!("does not serve after {} s", START.as_secs())));
            }
            sleep(POLL).await;
        }
        self.proxies.push(proxy);
        Ok(())
    }

    /// The admin API of a node's agent.
    pub fn agent(&self, node: &str) -> Option<&Client> {
        self.agents.get(node).map(|agent| &agent.client)
    }

    /// Node names and their agents' APIs.
    pub fn agents(&self) -> impl Iterator<Item = (&str, &Client)> {
        self.agents.iter().map(|(node, agent)| (node.as_str(), &agent.client))
    }

    /// Ends every process.
    pub fn stop(mut self) {
        for agent in self.agents.values_mut() {
            kill_softly(&agent.child, Signal::SIGTERM);
        }
        for agent in self.agents.values_mut() {
            agent.end(Signal::SIGTERM);
        }
        self.server.end(Signal::SIGTERM);
        for proxy in &mut self.proxies {
            proxy.end(Signal::SIGTERM);
        }
    }
}

/// Why a node is not there yet.
fn lateness(node: &str, status: &Status, revision: u64, pods: usize) -> Option<String> {
    if status.revision.desired < revision {
        return Some(format!("{node} has heard of revision {} only", status.revision.desired));
    }
    if status.revision.realized < status.revision.desired {
        return Some(format!("{node} enforces revision {}", status.revision.realized));
    }
    let ready = status.counts.endpoints_ready;
    (ready < pods).then(|| format!("{node} has {ready} of {pods} pods ready"))
}

/// Where the admin socket of a node's agent is.
pub fn agent_socket(lab: &Path, node: &str) -> PathBuf {
    lab.join("node").join(node).join("admin.sock")
}

impl Process {
    /// Starts `command` inside the namespace of `site`; log and admin socket lie in `home`.
    fn start(
        title: &str,
        mut command: Command,
        lab: &Lab,
        site: &Site,
        home: &Path,
        socket: &str,
    ) -> Result<Process, ControlError> {
        let log = home.join("log");
        let failed = |source| LabError::io("start", title, source);
        let out = File::options().create(true).append(true).open(&log).map_err(failed)?;
        let err = out.try_clone().map_err(failed)?;
        use std::os::unix::process::CommandExt as _;
        // A group of its own: Ctrl-C is for the lab, which ends its children in order.
        command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
        let child = lab.netns(site).run(|| command.spawn())?.map_err(failed)?;
        let client = Client::new(&home.join(socket));
        Ok(Process { title: title.to_owned(), child, log, client })
    }

    /// `None` while it does not answer; an error when it has ended.
    async fn status<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ControlError> {
        match self.client.get("/v1/status").await {
            Ok(status) => Ok(Some(status)),
            Err(ClientError::Unreachable { .. }) => match self.child.try_wait() {
                Ok(Some(status)) => Err(self.failure(format!("ended ({status})"))),
                _ => Ok(None),
            },
            Err(error) => Err(error.into()),
        }
    }

    async fn ready(&mut self) -> Result<(), ControlError> {
        let deadline = Instant::now() + START;
        while self.status::<serde_json::Value>().await?.is_none() {
            if Instant::now() >= deadline {
                return Err(self.failure(format!("does not answer after {} s", START.as_secs())));
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    fn failure(&self, what: String) -> ControlError {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n");
        ControlError::Process { process: self.title.clone(), what, log: self.log.display().to_string(), tail }
    }

    /// Sends the signal and waits; what does not end in time is killed.
    fn end(&mut self, signal: Signal) {
        kill_softly(&self.child, signal);
        let deadline = std::time::Instant::now() + Duration::from_secs(3);
        while matches!(self.child.try_wait(), Ok(None)) {
            if std::time::Instant::now() >= deadline {
                // Failing means that it ended meanwhile.
                self.child.kill().ok();
                self.child.wait().ok();
                return;
            }
            std::thread::sleep(POLL);
        }
    }
}

fn kill_softly(child: &Child, signal: Signal) {
    // A child that was not waited for keeps its number, so this hits nobody else.
    kill(Pid::from_raw(child.id() as i32), signal).ok();
}

fn make_directory(path: &Path) -> Result<(), LabError> {
    fs::create_dir_all(path).map_err(|e| LabError::io("create", path, e))
}

/// A BPF file system on `path`, once.
fn mount_bpffs(path: &Path) -> Result<(), LabError> {
    let table = fs::read_to_string("/proc/self/mountinfo")
        .map_err(|e| LabError::io("read", "/proc/self/mountinfo", e))?;
    let mounted = table.lines().any(|line| line.split(' ').nth(4).is_some_and(|at| Path::new(at) == path));
    if mounted {
        return Ok(());
    }
    mount(Some("bpffs"), path, Some("bpf"), MsFlags::empty(), None::<&str>)
        .map_err(|errno| LabError::io("mount a BPF file system on", path, errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::Revision;

    #[test]
    fn an_agent_is_late_until_it_knows_enforces_and_has_its_pods() {
        let status = |desired, realized, ready| {
            let mut status = Status { revision: Revision { desired, realized }, ..Status::default() };
            status.counts.endpoints_ready = ready;
            lateness("n", &status, 7, 2)
        };
        assert_eq!(status(6, 6, 2).as_deref(), Some("n has heard of revision 6 only"));
        assert_eq!(status(8, 7, 2).as_deref(), Some("n enforces revision 7"));
        assert_eq!(status(7, 7, 1).as_deref(), Some("n has 1 of 2 pods ready"));
        assert_eq!(status(8, 8, 2), None);
    }
}
