//! One machine, as an operator meets it: the real binary, a configuration file, pods in network namespaces, and
//! the commands of the README in their order. Needs root.
//!
//! Everything happens in a network and mount namespace of the test's own, with a /run of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PROGRAM: &str = env!("CARGO_BIN_EXE_sluice");
const PATIENCE: Duration = Duration::from_secs(30);

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: edge-1, containers: [{name: web, ports: [{containerPort: 8080, name: http}]}]}
status: {podIPs: [{ip: 10.244.0.10}, {ip: 'fd00:244::10'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
spec: {nodeName: edge-1}
status: {podIPs: [{ip: 10.244.0.11}, {ip: 'fd00:244::11'}]}
";

const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: web-in}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - {from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: http}]}
";

/// The machine: this thread's namespaces, and what runs in them.
struct Machine {
    directory: tempfile::TempDir,
    children: Vec<Child>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        for child in &mut self.children {
            kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).ok();
            child.wait().ok();
        }
    }
}

fn exit(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Machine {
    /// Moves the calling thread, which must live only for this test, into a machine of its own.
    fn new() -> Machine {
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

    fn ip(&self, arguments: &str) {
        let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
        assert!(status.success(), "ip {arguments}");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        std::fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    fn sluice(&self, arguments: &[&str]) -> Output {
        Command::new(PROGRAM)
            .args(arguments)
            .env("SLUICE_SOCKET", self.path("run/admin.sock"))
            .current_dir(self.directory.path())
            .output()
            .unwrap()
    }

    /// A command that has to succeed; its standard output.
    fn done(&self, arguments: &[&str]) -> String {
        let output = self.sluice(arguments);
        assert_eq!(exit(&output), 0, "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// A command that has to fail with this code; what it says.
    fn refused(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.sluice(arguments);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(exit(&output), code, "{arguments:?}: {said}");
        said
    }

    /// Starts the agent and waits until it answers.
    fn start_agent(&mut self) -> u32 {
        self.start_agent_with("")
    }

    /// The same, with more lines in its configuration.
    fn start_agent_with(&mut self, more: &str) -> u32 {
        let configuration = format!(
            "node-name: edge-1\nuplink: up0\npod-cidr: [10.244.0.0/16, 'fd00:244::/48']\nproxies: off\n\
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

    fn fetch(&self, url: &str) -> bool {
        let arguments = ["netns", "exec", "client", "curl", "-g", "-s", "-o", "/dev/null", "-m", "2", url];
        Command::new("ip").args(arguments).status().unwrap().success()
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}

/// Runs in a thread of its own: it leaves the namespaces of the others.
fn on_a_machine(test: impl FnOnce(Machine) + Send + 'static) {
    let thread = std::thread::spawn(move || test(Machine::new()));
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn serve(machine: &mut Machine, port: &str) {
    let server = Command::new("ip")
        .args(["netns", "exec", "web", "python3", "-m", "http.server", "--bind", "::", port])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    machine.children.push(server);
}

#[test]
fn a_single_machine_from_an_empty_namespace_to_a_reason_for_each_drop() {
    on_a_machine(|mut machine| {
        machine.start_agent();
        machine.write("pods.yaml", PODS);
        machine.write("policy.yaml", POLICY);
        machine.done(&["policy", "apply", "pods.yaml"]);

        let hint = machine.refused(1, &["endpoint", "add", "shop/web", "--netns", "/run/netns/web"]);
        assert!(hint.contains("no device eth0 in /run/netns/web") && hint.contains("--create"), "{hint}");
        for name in ["web", "client"] {
            let (pod, netns) = (format!("shop/{name}"), format!("/run/netns/{name}"));
            machine.done(&["endpoint", "add", &pod, "--netns", &netns, "--create"]);
        }
        let listed = machine.done(&["endpoint", "list"]);
        assert!(
            listed.contains("shop/web") && listed.contains("slc1") && listed.contains("ready"),
            "{listed}"
        );

        serve(&mut machine, "8080");
        serve(&mut machine, "9090");
        let urls =
            |port: u16| [format!("http://10.244.0.10:{port}/"), format!("http://[fd00:244::10]:{port}/")];
        for url in urls(8080).into_iter().chain(urls(9090)) {
            eventually("without a policy everything passes", || machine.fetch(&url));
        }
        machine.done(&["policy", "apply", "policy.yaml"]);
        for (allowed, denied) in urls(8080).into_iter().zip(urls(9090)) {
            assert!(machine.fetch(&allowed), "{allowed}");
            assert!(!machine.fetch(&denied), "{denied}");
        }

        let drops = machine.done(&["observe", "--verdict", "DROPPED", "--last", "20"]);
        assert!(drops.contains("shop/client") && drops.contains("9090"), "{drops}");
        assert!(drops.contains("default-deny of shop/web-in"), "{drops}");
        let why = machine.refused(1, &["policy", "explain", "shop/client", "shop/web:9090"]);
        assert!(why.contains("shop/web-in"), "{why}");
        machine.done(&["policy", "explain", "shop/client", "shop/web:8080"]);
        let entries = machine.done(&["bpf", "policy", "--endpoint", "shop/web"]);
        assert!(entries.contains("8080/TCP") && entries.contains("shop/web-in"), "{entries}");
        assert!(machine.done(&["bpf", "ct"]).contains("10.244.0.10"));
        machine.done(&["bpf", "diff"]);
    });
}

#[test]
fn bad_input_is_refused_with_its_place_and_changes_nothing() {
    on_a_machine(|mut machine| {
        machine.start_agent();
        machine.write("pods.yaml", PODS);
        machine.write("policy.yaml", POLICY);
        machine.done(&["policy", "apply", "pods.yaml", "policy.yaml"]);
        let before = machine.done(&["policy", "get"]);

        let misspelt = POLICY.replace("ingress:", "ingres:").replace("web-in", "web-two");
        machine.write("bad.yaml", &misspelt);
        let said = machine.refused(2, &["policy", "apply", "bad.yaml"]);
        assert!(said.contains("bad.yaml:7:3") && said.contains("spec.ingres"), "{said}");
        machine.write("port.yaml", &POLICY.replace("port: http", "port: 99999"));
        let said = machine.refused(2, &["policy", "apply", "port.yaml"]);
        assert!(said.contains("port.yaml:8:") && said.contains("99999"), "{said}");
        machine.write("twice.yaml", &format!("{POLICY}---{POLICY}"));
        let said = machine.refused(2, &["policy", "apply", "twice.yaml"]);
        assert!(
            said.contains("twice.yaml:10:1") && said.contains("already defined at twice.yaml:2:1"),
            "{said}"
        );
        let bomb: String = std::iter::once("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned())
            .chain(
                (1..12).map(|n| format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(", "))),
            )
            .collect();
        machine.write("bomb.yaml", &bomb);
        machine.refused(2, &["policy", "apply", "bomb.yaml"]);

        assert_eq!(machine.done(&["policy", "get"]), before);
        machine.refused(1, &["policy", "delete", "NetworkPolicy", "shop/none"]);
        assert!(machine.done(&["policy", "get", "NetworkPolicy", "shop/web-in"]).contains("port: http"));
        machine.refused(1, &["endpoint", "add", "shop/web", "--netns", "/run/netns/nowhere"]);
        machine.refused(2, &["endpoint", "add", "web", "--netns", "/run/netns/web"]);
        machine.done(&["bpf", "diff"]);
    });
}

#[test]
fn enforcement_and_endpoints_survive_the_agent() {
    on_a_machine(|mut machine| {
        let agent = machine.start_agent();
        machine.write("all.yaml", &format!("{PODS}---{POLICY}"));
        machine.done(&["policy", "apply", "all.yaml"]);
        for name in ["web", "client"] {
            let (pod, netns) = (format!("shop/{name}"), format!("/run/netns/{name}"));
            machine.done(&["endpoint", "add", &pod, "--netns", &netns, "--create"]);
        }
        serve(&mut machine, "8080");
        serve(&mut machine, "9090");
        eventually("the server answers", || machine.fetch("http://10.244.0.10:8080/"));

        kill(Pid::from_raw(agent as i32), Signal::SIGKILL).unwrap();
        machine.refused(3, &["status"]);
        assert!(machine.fetch("http://10.244.0.10:8080/"));
        assert!(!machine.fetch("http://10.244.0.10:9090/"));

        machine.start_agent();
        assert!(machine.done(&["endpoint", "list"]).contains("shop/client"));
        assert!(machine.fetch("http://10.244.0.10:8080/"));
        assert!(!machine.fetch("http://10.244.0.10:9090/"));
        machine.done(&["endpoint", "remove", "shop/client"]);
        let gone = Command::new("ip").args(["link", "show", "slc2"]).output().unwrap();
        assert!(!gone.status.success(), "the device that was made is still there");
    });
}

#[test]
fn flows_are_counted_exported_and_remembered_and_a_full_disk_stops_history_alone() {
    on_a_machine(|mut machine| {
        let state = machine.path("state");
        std::fs::create_dir(&state).unwrap();
        mount(Some("tmpfs"), &state, Some("tmpfs"), MsFlags::empty(), Some("size=8m")).unwrap();
        let export = machine.path("flows.json");
        let more = format!(
            "export-file: {}\nexport-filter: [to-pod=shop/web]\nexport-fields: [verdict, destination.pod_name]\n\
             metrics-context: labelsContext=source_namespace,destination_workload\n",
            export.display()
        );
        let agent = machine.start_agent_with(&more);
        machine.write("all.yaml", &format!("{PODS}---{POLICY}"));
        machine.done(&["policy", "apply", "all.yaml"]);
        for name in ["web", "client"] {
            let (pod, netns) = (format!("shop/{name}"), format!("/run/netns/{name}"));
            machine.done(&["endpoint", "add", &pod, "--netns", &netns, "--create"]);
        }
        serve(&mut machine, "8080");
        eventually("the server answers", || machine.fetch("http://10.244.0.10:8080/"));
        assert!(!machine.fetch("http://10.244.0.10:9090/"));

        let scrape = |port: u16| {
            let url = format!("http://127.0.0.1:{port}/metrics");
            let page = Command::new("curl").args(["-s", "-m", "5", &url]).output().unwrap();
            text(&page.stdout)
        };
        let labels = "source_namespace=\"shop\",destination_workload=\"web\"";
        let dropped = format!("hubble_drop_total{{reason=\"POLICY_DENIED\",protocol=\"TCP\",{labels}}} ");
        eventually("the drop is counted", || scrape(9965).contains(&dropped));
        for (port, wanted) in [
            (9962, "cilium_drop_count_total{reason=\"Policy denied\",direction=\"INGRESS\"} "),
            (9962, "cilium_endpoint_state{endpoint_state=\"ready\"} 2\n"),
            (9962, "cilium_bpf_map_pressure{map_name=\"policy\"} "),
            (
                9962,
                "sluice_policy_rule_hits_total{kind=\"NetworkPolicy\",namespace=\"shop\",name=\"web-in\"} ",
            ),
            (
                9965,
                "hubble_policy_verdicts_total{direction=\"ingress\",match=\"l3-l4\",action=\"forwarded\",",
            ),
        ] {
            let page = scrape(port);
            assert_eq!(sluice::api::metrics::problems(&page), Vec::<String>::new());
            assert!(page.contains(wanted), "{wanted}\n{page}");
        }

        let line = "\"verdict\":\"DROPPED\",\"destination\":{\"pod_name\":\"web\"}";
        eventually("flows are exported", || {
            std::fs::read_to_string(&export).is_ok_and(|lines| lines.contains(line))
        });

        let past = |machine: &Machine| machine.done(&["observe", "--since", "1h", "--all", "-o", "json"]);
        assert!(past(&machine).contains("\"POLICY_DENIED\""));
        kill(Pid::from_raw(agent as i32), Signal::SIGTERM).unwrap();
        machine.children.remove(0).wait().unwrap();
        machine.start_agent_with(&more);
        assert!(past(&machine).contains("\"POLICY_DENIED\""), "history is gone with the agent");
        assert!(machine.done(&["observe", "--last", "500"]).contains("shop/client"));

        // The disk is full: history says so, and nothing else minds.
        let filler = state.join("filler");
        let mut file = std::fs::File::create(&filler).unwrap();
        while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
        eventually("history says that it has stopped", || {
            machine.fetch("http://10.244.0.10:8080/");
            text(&machine.sluice(&["status"]).stdout).contains("nothing is written")
        });
        assert!(scrape(9962).contains("sluice_history_stopped 1\n"));
        assert!(machine.fetch("http://10.244.0.10:8080/") && !machine.fetch("http://10.244.0.10:9090/"));
        // Space comes back when nobody has the file open any more.
        drop(file);
        std::fs::remove_file(&filler).unwrap();
        eventually("history goes on", || {
            machine.fetch("http://10.244.0.10:8080/");
            scrape(9962).contains("sluice_history_stopped 0\n")
        });
    });
}
