//! A machine for one test: a network and a mount namespace with a /run of its own, the real binary, pods in network
//! namespaces. Needs root.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PROGRAM: &str = env!("CARGO_BIN_EXE_sluice");
const PATIENCE: Duration = Duration::from_secs(30);

/// The machine: this thread's namespaces, and what runs in them.
pub struct Machine {
    pub directory: tempfile::TempDir,
    pub children: Vec<Child>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(self.path("agent.log")).unwrap_or_default());
            for arguments in [&["status"][..], &["observe", "--last", "40"]] {
                eprintln!("{}", text(&self.sluice(arguments).stdout));
            }
        }
        for child in &mut self.children {
            kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).ok();
            child.wait().ok();
        }
        // Proxies outlive their agent.
        for name in ["http-proxy.pid", "dns-proxy.pid"] {
            let pid = std::fs::read_to_string(self.path("run").join(name)).unwrap_or_default();
            if let Ok(pid) = pid.trim().parse() {
                kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
            }
        }
    }
}

pub fn exit(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Machine {
    /// Moves the calling thread, which must live only for this test, into a machine of its own.
    pub fn new() -> Machine {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        for (kind, place) in [("tmpfs", "/run"), ("sysfs", "/sys"), ("bpf", "/sys/fs/bpf")] {
            mount(Some(kind), place, Some(kind), MsFlags::empty(), none).unwrap();
        }
        std::fs::create_dir_all("/run/netns").unwrap();
        let machine = Machine { directory: tempfile::tempdir().unwrap(), children: Vec::new() };
        for command in [
            "link set lo up",
            "netns add web",
            "netns add client",
            "netns add wire",
            "link add up0 type veth peer name up1 netns wire",
            "addr add 192.0.2.1/24 dev up0",
            "link set up0 up",
            "-n wire link set up1 up",
        ] {
            machine.ip(command);
        }
        machine
    }

    pub fn ip(&self, arguments: &str) {
        let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
        assert!(status.success(), "ip {arguments}");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        std::fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    pub fn sluice(&self, arguments: &[&str]) -> Output {
        Command::new(PROGRAM)
            .args(arguments)
            .env("SLUICE_SOCKET", self.path("run/admin.sock"))
            .current_dir(self.directory.path())
            .output()
            .unwrap()
    }

    /// A command that has to succeed; its standard output.
    pub fn done(&self, arguments: &[&str]) -> String {
        let output = self.sluice(arguments);
        assert_eq!(exit(&output), 0, "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// A command that has to fail with this code; what it says.
    pub fn refused(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.sluice(arguments);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(exit(&output), code, "{arguments:?}: {said}");
        said
    }

    /// Starts the agent and waits until it answers.
    pub fn start_agent(&mut self) -> u32 {
        self.start_agent_with("")
    }

    /// The same, with more lines in its configuration.
    pub fn start_agent_with(&mut self, more: &str) -> u32 {
        self.start_agent_configured(&format!("proxies: off\n{more}"))
    }

    /// An agent with its proxies.
    pub fn start_agent_and_proxies(&mut self) -> u32 {
        self.start_agent_configured("")
    }

    fn start_agent_configured(&mut self, more: &str) -> u32 {
        let configuration = format!(
            "node-name: edge-1\nuplink: up0\npod-cidr: [10.244.0.0/16, 'fd00:244::/48']\n\
             state-dir: {0}/state\nrun-dir: {0}/run\nbpffs: /sys/fs/bpf/sluice\n{more}",
            self.directory.path().display()
        );
        let file = self.write("config.yaml", &configuration);
        let log = std::fs::File::create(self.path("agent.log")).unwrap();
        let child = Command::new(PROGRAM)
            .args([Path::new("agent"), Path::new("--config"), &file])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let pid = child.id();
        self.children.push(child);
        eventually("the agent is ready", || exit(&self.sluice(&["status"])) == 0);
        pid
    }

    pub fn fetch(&self, url: &str) -> bool {
        self.fetch_from("client", url)
    }

    pub fn fetch_from(&self, netns: &str, url: &str) -> bool {
        let arguments = ["netns", "exec", netns, "curl", "-g", "-s", "-f", "-o", "/dev/null", "-m", "2", url];
        Command::new("ip").args(arguments).status().unwrap().success()
    }

    /// An HTTP server of the machine itself.
    pub fn serve_here(&mut self, port: &str) {
        let server = Command::new("python3")
            .args(["-m", "http.server", "--bind", "0.0.0.0", port])
            .current_dir(self.directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.children.push(server);
    }

    /// What `status` says of the host firewall and the node's devices.
    pub fn devices(&self) -> (String, String) {
        let status = text(&self.sluice(&["status", "-o", "json"]).stdout);
        let status: sluice::api::types::Status = serde_json::from_str(&status).unwrap();
        let firewall = status.features.into_iter().find(|feature| feature.name == "host firewall");
        let devices = status.components.into_iter().find(|component| component.name == "devices");
        (firewall.unwrap().detail, devices.unwrap().state)
    }
}

pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}

/// Runs in a thread of its own: it leaves the namespaces of the others.
pub fn on_a_machine(test: impl FnOnce(Machine) + Send + 'static) {
    let thread = std::thread::spawn(move || test(Machine::new()));
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

pub fn serve(machine: &mut Machine, port: &str) {
    let server = Command::new("ip")
        .args(["netns", "exec", "web", "python3", "-m", "http.server", "--bind", "::", port])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    machine.children.push(server);
}
