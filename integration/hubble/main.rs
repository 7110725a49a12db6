//! The real `hubble` command line, and our own, against the agents of a lab; a relay over three of them.
//!
//! `scripts/hubble` builds the command line once and keeps it outside the clone. Needs root.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

fn sluice() -> Command {
    Command::new(env!("CARGO_BIN_EXE_sluice"))
}

fn source() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The real client; there is no test without it.
fn hubble() -> &'static Path {
    static HUBBLE: OnceLock<PathBuf> = OnceLock::new();
    HUBBLE.get_or_init(|| {
        let output = Command::new(source().join("scripts/hubble")).output().expect("scripts/hubble");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    })
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until `attempt` gives something.
fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(why) if Instant::now() > end => panic!("{what}: {why}"),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// A lab that goes away with the test.
struct Bench {
    name: &'static str,
}

impl Bench {
    fn up(name: &'static str) -> Bench {
        let said = succeed(
            sluice()
                .args(["lab", "up", "--name", name])
                .arg(source().join("integration/hubble/cluster.yaml")),
        );
        let bench = Bench { name };
        assert!(said.contains(&format!("sluice observe --follow --server {}", bench.relay())), "{said}");
        for node in ["node1", "node2", "node3"] {
            succeed(
                sluice()
                    .args(["status", "--wait", "60", "--socket"])
                    .arg(bench.node(node).join("admin.sock")),
            );
        }
        bench
    }

    fn directory(&self) -> PathBuf {
        Path::new("/run/sluice-lab").join(self.name)
    }

    fn node(&self, node: &str) -> PathBuf {
        self.directory().join("node").join(node)
    }

    fn server(&self, node: &str) -> String {
        format!("unix://{}", self.node(node).join("hubble.sock").display())
    }

    /// The relay that a lab has of its own.
    fn relay(&self) -> String {
        format!("unix://{}", self.directory().join("relay/relay.sock").display())
    }

    fn exec(&self, site: &str) -> Command {
        let mut command = sluice();
        command.args(["lab", "exec", "--name", self.name, site, "--"]);
        command
    }

    /// A request; whether it is answered is another matter.
    fn request(&self, pod: &str, url: &str) -> String {
        let mut command = self.exec(pod);
        command.args(["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "5", url]);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    }

    /// What the flow API is asked about: an allowed and a denied request, and a stranger.
    fn traffic(&self) {
        eventually("an allowed request", || {
            match self.request("shop/frontend", "http://10.244.0.11:8080/public/x") {
                status if status == "200" || status == "404" => Ok(()),
                other => Err(other),
            }
        });
        assert_eq!(self.request("shop/frontend", "http://10.244.0.11:8080/secret"), "403");
        let mut stranger = self.exec("other/stranger");
        stranger.args(["curl", "-s", "-m", "1", "http://10.244.0.11:8080/public/x"]);
        assert!(!stranger.output().unwrap().status.success());
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        sluice().args(["lab", "down", self.name]).output().ok();
    }
}

/// JSON lines of the real client.
fn observe(server: &str, arguments: &[&str]) -> Result<Vec<Value>, String> {
    let output = Command::new(hubble())
        .args(["observe", "--server", server, "-o", "jsonpb"])
        .args(arguments)
        .output()
        .unwrap();
    if !output.status.success() {
        return Err(text(&output));
    }
    let lines = String::from_utf8(output.stdout).map_err(|error| error.to_string())?;
    let mut flows = Vec::new();
    for line in lines.lines() {
        let value: Value = serde_json::from_str(line).map_err(|error| format!("{line}: {error}"))?;
        // A relay also says which nodes it has.
        if value["flow"].is_object() {
            flows.push(value);
        }
    }
    Ok(flows)
}

/// Waits until the filter finds something, and checks every flow that it finds.
fn finds(server: &str, arguments: &[&str], holds: impl Fn(&Value) -> bool) {
    let flows = eventually(&format!("hubble observe {arguments:?}"), || {
        let flows = observe(server, arguments)?;
        if flows.is_empty() { Err("no flow".into()) } else { Ok(flows) }
    });
    for flow in &flows {
        assert!(holds(&flow["flow"]), "hubble observe {arguments:?} found {flow}");
    }
}

#[test]
fn the_real_hubble_command_line_shows_the_right_flows() {
    let bench = Bench::up("hubble");
    bench.traffic();
    let server = bench.server("node2");
    let status = succeed(Command::new(hubble()).args(["status", "--server", &server]));
    assert!(status.contains("Ok") && status.contains("65,536"), "{status}");
    let nodes = succeed(Command::new(hubble()).args(["list", "nodes", "--server", &server]));
    assert!(nodes.contains("node2") && nodes.contains("Connected"), "{nodes}");
    let namespaces = succeed(Command::new(hubble()).args(["list", "namespaces", "--server", &server]));
    assert!(namespaces.contains("shop") && namespaces.contains("other"), "{namespaces}");

    let either = |flow: &Value, member: &str, wanted: &str| {
        flow["source"][member] == wanted || flow["destination"][member] == wanted
    };
    let is = |flow: &Value, pointer: &str, wanted: &str| {
        flow.pointer(pointer).is_some_and(|value| value == wanted)
    };
    finds(&server, &["--namespace", "other"], |flow| either(flow, "namespace", "other"));
    finds(&server, &["--namespace", "shop", "--verdict", "DROPPED", "--last", "50"], |flow| {
        is(flow, "/verdict", "DROPPED") && either(flow, "namespace", "shop")
    });
    finds(&server, &["--pod", "shop/front", "--protocol", "http"], |flow| {
        either(flow, "pod_name", "frontend")
    });
    finds(&server, &["--from-pod", "other/stranger", "--verdict", "DROPPED"], |flow| {
        is(flow, "/drop_reason_desc", "POLICY_DENIED") && is(flow, "/source/pod_name", "stranger")
    });
    finds(&server, &["--protocol", "http", "--to-label", "app=backend"], |flow| {
        flow["l7"]["http"].is_object() && is(flow, "/destination/pod_name", "backend")
    });
    finds(&server, &["--http-status", "4+", "--http-path", "^/secret$", "--http-method", "get"], |flow| {
        is(flow, "/verdict", "DROPPED") && flow["l7"]["http"]["url"].as_str().unwrap().ends_with("/secret")
    });
    finds(&server, &["--to-port", "8080", "--not", "--from-label", "app=frontend"], |flow| {
        !is(flow, "/source/pod_name", "frontend")
    });
    finds(&server, &["--to-workload", "Pod/backend"], |flow| is(flow, "/destination/pod_name", "backend"));
    finds(&server, &["--to-ip", "10.244.0.0/16", "--ip-version", "v4", "--tcp-flags", "SYN"], |flow| {
        is(flow, "/l4/TCP/flags/SYN", "") || flow["l4"]["TCP"]["flags"]["SYN"] == true
    });
    finds(&server, &["--type", "drop", "--drop-reason-desc", "POLICY_DENIED"], |flow| {
        flow["event_type"]["type"] == 1
    });
    finds(&server, &["--type", "policy-verdict", "--traffic-direction", "ingress"], |flow| {
        flow["event_type"]["type"] == 5 && is(flow, "/traffic_direction", "INGRESS")
    });
    finds(&server, &["--node-name", "node2", "--since", "10m", "--first", "3"], |flow| {
        is(flow, "/node_name", "node2")
    });
    let expression =
        "_flow.verdict == Verdict.DROPPED && _flow.source.pod_name.startsWith('stran') && !has(_flow.l7)";
    finds(&server, &["--cel-expression", expression], |flow| {
        is(flow, "/verdict", "DROPPED") && is(flow, "/source/pod_name", "stranger") && flow["l7"].is_null()
    });
    let misspelled = observe(&server, &["--cel-expression", "_flow.sauce == ''"]).unwrap_err();
    assert!(
        misspelled.contains("has no member sauce") || misspelled.contains("undefined field"),
        "{misspelled}"
    );
    assert!(observe(&server, &["--pod", "nobody/nothing", "--all"]).unwrap().is_empty());
    let refused = observe(&server, &["--http-path", "(a{900}){900}"]).unwrap_err();
    assert!(refused.contains("http_path"), "{refused}");
    for (form, wanted) in [
        ("compact", "Policy denied DROPPED (TCP Flags: SYN)"),
        ("dict", "VERDICT: DROPPED"),
        ("table", "SOURCE"),
    ] {
        let mut command = Command::new(hubble());
        let lines = succeed(command.args(["observe", "--server", &server, "-o", form]).args([
            "--type",
            "drop",
            "--from-pod",
            "other/stranger",
            "--last",
            "5",
        ]));
        assert!(lines.contains(wanted) && lines.contains("other/stranger"), "{form}: {lines}");
    }
    let events =
        succeed(Command::new(hubble()).args(["observe", "agent-events", "--server", &server, "--all"]));
    assert!(events.contains("AGENT_STARTED") || events.contains("Agent"), "{events}");

    a_lab_has_a_relay_over_all_of_its_nodes(&bench);
    our_json_is_the_real_client_s(&bench, &server);
    follow_shows_what_comes(&bench, &server);
    ours_has_the_same_flags_and_more(&bench);
}

fn a_lab_has_a_relay_over_all_of_its_nodes(bench: &Bench) {
    let status = succeed(sluice().args(["lab", "status", bench.name]));
    assert!(status.contains("3 of 3 nodes answer") && status.contains(&bench.relay()), "{status}");
    let nodes = succeed(Command::new(hubble()).args(["list", "nodes", "--server", &bench.relay()]));
    assert!(["node1", "node2", "node3"].iter().all(|node| nodes.contains(node)), "{nodes}");
    let ours = || succeed(sluice().args(["observe", "--all", "-o", "jsonpb", "--server", &bench.relay()]));
    eventually("flows of more than one node", || {
        let lines = ours();
        let nodes: std::collections::BTreeSet<String> = lines
            .lines()
            .filter_map(|line| {
                serde_json::from_str::<Value>(line).ok()?["flow"]["node_name"].as_str().map(Into::into)
            })
            .collect();
        if nodes.len() > 1 { Ok(()) } else { Err(format!("{nodes:?}")) }
    });
}

/// Every flow that both print, member by member; what Hubble has no place for is ours alone.
fn our_json_is_the_real_client_s(bench: &Bench, server: &str) {
    let by_uuid = |flows: Vec<Value>| -> std::collections::BTreeMap<String, Value> {
        let name = |line: &Value| line["flow"]["uuid"].as_str().unwrap().to_owned();
        flows.into_iter().map(|line| (name(&line), line)).collect()
    };
    let theirs = by_uuid(observe(server, &["--all"]).unwrap());
    let socket = bench.node("node2").join("admin.sock");
    let lines = [
        succeed(sluice().args(["observe", "--all", "-o", "jsonpb", "--server", server])),
        succeed(
            Command::new("curl").arg("-sf").arg("--unix-socket").arg(socket).arg("http://agent/v1/flows"),
        ),
    ];
    for lines in lines {
        let mut ours = Vec::new();
        for line in lines.lines() {
            let mut line: Value = serde_json::from_str(line).unwrap();
            if let Some(flow) = line["flow"].as_object_mut() {
                flow.remove("sluice");
                ours.push(line);
            }
        }
        let ours = by_uuid(ours);
        let mut kinds = std::collections::BTreeSet::new();
        for (uuid, line) in &theirs {
            let Some(mine) = ours.get(uuid) else { continue };
            assert_eq!(mine, line);
            kinds.insert(line["flow"]["event_type"]["type"].as_i64());
        }
        assert!([Some(1), Some(5), Some(129)].iter().all(|kind| kinds.contains(kind)), "{kinds:?}");
    }
}

/// A client in the background whose output is read at the end.
struct Follower {
    child: Option<Child>,
    output: PathBuf,
}

impl Follower {
    fn start(mut command: Command, output: PathBuf) -> Follower {
        let file = std::fs::File::create(&output).unwrap();
        let child = command.stdout(file).stderr(Stdio::null()).spawn().unwrap();
        Follower { child: Some(child), output }
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

fn follow_shows_what_comes(bench: &Bench, server: &str) {
    let mut command = Command::new(hubble());
    command.args(["observe", "--server", server, "--namespace", "shop", "--verdict", "DROPPED", "--follow"]);
    let follower = Follower::start(command, bench.directory().join("follow.out"));
    eventually("a followed drop", || {
        bench.request("other/stranger", "http://10.244.0.11:8080/");
        let text = follower.text();
        if text.contains("other/stranger") { Ok(()) } else { Err(text) }
    });
}

fn ours_has_the_same_flags_and_more(bench: &Bench) {
    let observe = |arguments: &[&str]| {
        let mut command = sluice();
        command.args(["observe", "--socket"]).arg(bench.node("node2").join("admin.sock")).args(arguments);
        succeed(&mut command)
    };
    let drops = observe(&["--policy", "shop/backend-in", "--verdict", "DROPPED", "--from-pod", "stranger"]);
    assert!(drops.contains("Policy denied DROPPED by default-deny of shop/backend-in"), "{drops}");
    let denied = observe(&["--drop-reason", "PROXY_DENIED", "-o", "json"]);
    let denied: Value = serde_json::from_str(denied.lines().last().unwrap()).unwrap();
    assert_eq!(denied["flow"]["sluice"]["drop_reason"], "PROXY_DENIED");
    assert!(denied["flow"]["l7"]["http"]["url"].as_str().unwrap().ends_with("/secret"), "{denied}");
    let csv = observe(&["--protocol", "http", "-o", "csv"]);
    assert!(csv.starts_with("time,") && csv.lines().count() > 1, "{csv}");
    let stats = observe(&["--stats", "--since", "1h"]);
    assert!(stats.contains("sluice policy explain other/stranger shop/backend:8080"), "{stats}");
    parquet_keeps_its_zero_bytes(bench);
    let not = observe(&["--not", "--to-port", "8080", "--all", "-o", "csv"]);
    assert!(!not.contains(",8080,"), "{not}");
    let mut wrong = sluice();
    wrong.args(["observe", "--http-path", "(", "--socket"]).arg(bench.node("node2").join("admin.sock"));
    assert_eq!(wrong.output().unwrap().status.code(), Some(2));
}

/// They were taken for a terminal's control characters and left out of what was redirected.
fn parquet_keeps_its_zero_bytes(bench: &Bench) {
    let mut command = sluice();
    command.args(["observe", "--all", "-o", "parquet", "--server", &bench.server("node2")]);
    let file = command.output().unwrap().stdout;
    let (footer, end) = file.split_at(file.len() - 8);
    let length = u32::from_le_bytes(end[..4].try_into().unwrap()) as usize;
    assert!(end.ends_with(b"PAR1") && length < footer.len(), "{length} of {}", file.len());
    // `FileMetaData.version`, and the end of the structure.
    let metadata = &footer[footer.len() - length..];
    assert!(metadata.starts_with(&[0x15, 0x02]) && metadata.ends_with(&[0]));
}

#[test]
fn a_relay_over_three_agents_survives_one_of_them() {
    let bench = Bench::up("relay");
    bench.traffic();
    let home = bench.node("node1");
    // In the namespace of node1, whose agent knows the others and whose certificate it shows.
    let mut command = bench.exec("node:node1");
    command.arg(env!("CARGO_BIN_EXE_sluice")).arg("relay").arg("--run-dir").arg(&home);
    command.arg("--credentials-dir").arg(home.join("state/server"));
    command.args(["--listen-address", "127.0.0.1:4255", "--disable-server-tls"]);
    let _relay = Follower::start(command, bench.directory().join("relay.out"));
    let server = format!("unix://{}", home.join("relay.sock").display());
    let status = || -> Result<Value, String> {
        let output =
            Command::new(hubble()).args(["status", "--server", &server, "-o", "json"]).output().unwrap();
        serde_json::from_slice(&output.stdout).map_err(|_| text(&output))
    };
    let connected = |wanted: u64| {
        eventually(&format!("{wanted} connected nodes"), || {
            let status = status()?;
            if status["num_connected_nodes"].as_u64() == Some(wanted) {
                Ok(status)
            } else {
                Err(status.to_string())
            }
        })
    };
    connected(3);
    finds(&server, &["--from-pod", "other/stranger", "--all"], |flow| {
        flow["source"]["pod_name"] == "stranger"
    });
    let times: Vec<jiff::Timestamp> = observe(&server, &["--all"])
        .unwrap()
        .iter()
        .filter_map(|line| line["flow"]["time"].as_str()?.parse().ok())
        .collect();
    assert!(times.len() > 3 && times.is_sorted());
    // Our command line finds the relay beside the agent.
    let nodes = succeed(sluice().args(["nodes", "--socket"]).arg(home.join("admin.sock")));
    assert!(["node1", "node2", "node3"].iter().all(|node| nodes.contains(node)), "{nodes}");

    let mut command = Command::new(hubble());
    command.args(["observe", "--server", &server, "--pod", "shop/backend", "--follow"]);
    let follower = Follower::start(command, bench.directory().join("relay-follow.out"));
    let agent: i32 = agent_of(&bench, "node3");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(agent), nix::sys::signal::Signal::SIGKILL).unwrap();
    let after = connected(2);
    assert!(after["unavailable_nodes"].to_string().contains("node3"), "{after}");
    eventually("flows of the nodes that are left", || {
        bench.request("shop/frontend", "http://10.244.0.11:8080/public/later");
        let text = follower.text();
        if text.contains("/public/later") { Ok(()) } else { Err(text) }
    });
}

/// The process of a node's agent, by its command line.
fn agent_of(bench: &Bench, node: &str) -> i32 {
    let wanted = bench.node(node).display().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let entry = entry.ok()?;
        let id: i32 = entry.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
        let words: Vec<&str> = line.split('\0').collect();
        (words.get(1) == Some(&"agent") && words.contains(&wanted.as_str())).then_some(id)
    });
    processes.min().expect("the agent runs")
}
