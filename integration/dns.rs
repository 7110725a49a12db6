//! The DNS proxy with real clients: `dig` and `curl` in the pods of a lab, agents that die, processes that take
//! over. Needs root, and the packages of `scripts/setup test`.

use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const CLUSTER: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: reader, namespace: feed, labels: {app: reader}}
spec: {nodeName: node1}
---
apiVersion: v1
kind: Pod
metadata: {name: writer, namespace: feed, labels: {app: writer}}
spec: {nodeName: node1}
---
apiVersion: v1
kind: Pod
metadata: {name: third, namespace: feed, labels: {app: writer}}
spec: {nodeName: node1}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: names, namespace: feed}
spec:
  endpointSelector: {}
  egress:
  - toEndpoints:
    - matchLabels: {"k8s:io.kubernetes.pod.namespace": kube-system, "k8s:k8s-app": kube-dns}
    toPorts:
    - ports: [{port: "53", protocol: ANY}]
      rules: {dns: [{matchPattern: "**.example"}, {matchPattern: "**.cluster.local"}]}
  - toEndpoints:
    - matchLabels: {app: writer}
    toPorts:
    - ports: [{port: "53", protocol: UDP}]
      rules: {dns: [{matchPattern: "**.example"}]}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: mirrors, namespace: feed}
spec:
  endpointSelector: {matchLabels: {app: reader}}
  egress:
  - toFQDNs: [{matchPattern: "*.mirror.example"}, {matchName: "c.mirror.example"}]
    toPorts: [{ports: [{port: "80", protocol: TCP}]}]
---
apiVersion: sluice.dev/v1alpha1
kind: Scenario
metadata: {name: names}
spec:
  nodes: [node1]
  externals:
  - {name: a, addresses: [203.0.113.1, "2001:db8::1"], names: [a.mirror.example], ttl: 60s}
  - {name: b, addresses: [203.0.113.2, "2001:db8::2"], names: [b.mirror.example], ttl: 60s}
  - {name: c, addresses: [203.0.113.3, "2001:db8::3"], names: [c.mirror.example], ttl: 60s}
  - name: crowd
    addresses: [BIG]
    names: [big.example]
    ttl: 60s
  steps:
  - {from: feed/reader, to: "a.mirror.example:80", expect: allowed}
"#;

fn sluice(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sluice")).args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A lab that goes away with the test, passed or failed.
struct Lab {
    name: &'static str,
    directory: PathBuf,
}

impl Lab {
    fn up(name: &'static str) -> Lab {
        let file = std::env::temp_dir().join(format!("sluice-{name}-{}.yaml", std::process::id()));
        let crowd: Vec<String> = (1..=100).map(|n| format!("198.51.100.{n}")).collect();
        std::fs::write(&file, CLUSTER.replace("BIG", &crowd.join(", "))).unwrap();
        let up = sluice(&["lab", "up", file.to_str().unwrap(), "--name", name]);
        std::fs::remove_file(&file).unwrap();
        assert!(up.status.success(), "{}", text(&up));
        let lab = Lab { name, directory: Path::new("/run/sluice-lab").join(name) };
        lab.wait("the proxies listen", || lab.node().join("dns-proxy.pid").exists());
        lab
    }

    fn node(&self) -> PathBuf {
        self.directory.join("node/node1")
    }

    fn socket(&self) -> String {
        self.node().join("admin.sock").display().to_string()
    }

    fn exec(&self, pod: &str, program: &[&str]) -> Output {
        let mut arguments = vec!["lab", "exec", "--name", self.name, pod, "--"];
        arguments.extend(program);
        sluice(&arguments)
    }

    fn dig(&self, pod: &str, arguments: &[&str]) -> String {
        let mut program = vec!["dig", "+tries=2", "+time=5"];
        program.extend(arguments);
        text(&self.exec(pod, &program))
    }

    /// Whether a pod reaches the web server of an address.
    fn reaches(&self, pod: &str, address: &str) -> bool {
        let url = format!("http://{address}/");
        self.exec(pod, &["curl", "-s", "-o", "/dev/null", "-m", "2", &url]).status.success()
    }

    /// One of each family.
    fn addresses(&self, pod: &str) -> Vec<IpAddr> {
        let show = text(&self.exec(pod, &["ip", "-j", "address", "show", "scope", "global"]));
        let devices: Value = serde_json::from_str(&show).unwrap();
        let addresses: Vec<IpAddr> = (devices.as_array().unwrap().iter())
            .flat_map(|device| device["addr_info"].as_array().unwrap())
            .filter_map(|info| info["local"].as_str()?.parse().ok())
            .collect();
        assert_eq!(addresses.len(), 2, "{show}");
        addresses
    }

    fn status(&self) -> Option<Value> {
        let output = sluice(&["status", "-o", "json", "--socket", &self.socket()]);
        serde_json::from_slice(&output.stdout).ok()
    }

    fn wait(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !is_so() {
            assert!(Instant::now() < deadline, "{what}: not in time");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The agent of the node, found by its directory.
    fn agent(&self) -> Pid {
        let state = self.node().join("state").display().to_string();
        let is_agent = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
            words.get(1).is_some_and(|word| word == "agent") && words.iter().any(|word| *word == state)
        };
        let processes = std::fs::read_dir("/proc").unwrap();
        let pids = processes.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<i32>().ok());
        Pid::from_raw(pids.filter(is_agent).min().expect("an agent"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let down = sluice(&["lab", "down", self.name]);
        if !down.status.success() && !std::thread::panicking() {
            panic!("{}", text(&down));
        }
    }
}

#[test]
fn dig_gets_what_the_server_says_however_it_asks() {
    let lab = Lab::up("dns-t1");
    let dig = |arguments: &[&str]| lab.dig("feed/reader", arguments);
    let plain = dig(&["A.MirroR.eXample", "A"]);
    assert!(plain.contains("A.MirroR.eXample.") && plain.contains("203.0.113.1"), "case is kept: {plain}");
    assert!(dig(&["+tcp", "+noedns", "a.mirror.example", "AAAA"]).contains("2001:db8::1"));
    assert!(dig(&["-x", "203.0.113.1"]).contains("REFUSED"), "no rule names it");
    for kind in ["TXT", "MX", "HTTPS", "SVCB", "SOA", "ANY", "TYPE65280"] {
        let answer = dig(&["a.mirror.example", kind]);
        assert!(answer.contains("NOERROR"), "{kind}: {answer}");
    }
    // A hundred addresses do not fit into a datagram: dig comes again over TCP.
    let big = dig(&["big.example", "A"]);
    assert!(big.contains("ANSWER: 100") && big.contains("(TCP)"), "{big}");
    let cut = dig(&["+ignore", "+bufsize=512", "big.example", "A"]);
    assert!(cut.contains(" tc ") && cut.contains("(UDP)"), "{cut}");
    // The search list of the pod, one refused-by-nobody name after the other.
    assert!(dig(&["+search", "kube-dns.kube-system"]).contains("kube-dns.kube-system.svc.cluster.local."));
    let refused = dig(&["+edns=0", "evil.test", "TXT"]);
    assert!(refused.contains("REFUSED") && refused.contains(";evil.test."), "{refused}");
    assert!(refused.contains("OPT PSEUDOSECTION"), "EDNS is answered with EDNS: {refused}");
    let flows = sluice(&["observe", "--protocol", "dns", "--all", "-o", "json", "--socket", &lab.socket()]);
    let flows = String::from_utf8_lossy(&flows.stdout).into_owned();
    assert!(flows.contains("evil.test") && flows.contains("203.0.113.1"), "{flows}");
    let lines = sluice(&["observe", "--protocol", "dns", "--all", "--socket", &lab.socket()]);
    let lines = String::from_utf8_lossy(&lines.stdout).into_owned();
    assert!(
        lines.contains("DNS A a.mirror.example NOERROR 203.0.113.1, ") && lines.contains(" us)"),
        "{lines}"
    );
    let status = lab.status().unwrap();
    let proxy =
        status["proxies"].as_array().unwrap().iter().find(|proxy| proxy["name"] == "dns-proxy").unwrap();
    assert!(proxy["counters"]["refused"].as_u64().unwrap() >= 2, "{proxy}");
    assert!(proxy["counters"]["released"].as_u64().unwrap() >= 10, "{proxy}");
}

/// Its kernel says that nobody listens, and the proxy hears it.
#[test]
fn a_server_that_is_not_there_is_told_at_once() {
    let lab = Lab::up("dns-t4");
    let addresses = lab.addresses("feed/writer");
    for address in addresses {
        let begin = Instant::now();
        let answer =
            lab.dig("feed/reader", &["+tries=1", "+time=4", &format!("@{address}"), "a.mirror.example"]);
        assert!(answer.contains("SERVFAIL"), "{address}: {answer}");
        // Before the timeout of a server that is silent.
        assert!(begin.elapsed() < Duration::from_secs(3), "{address}: {:?}", begin.elapsed());
    }
    let status = lab.status().unwrap();
    let proxies = status["proxies"].as_array().unwrap();
    let proxy = proxies.iter().find(|proxy| proxy["name"] == "dns-proxy").unwrap();
    assert_eq!(proxy["counters"]["unreachable"], 2, "{proxy}");
}

/// Replies to every question with so many addresses, in one datagram, in the network namespace of a pod.
fn talkative_server(namespace: &Path, at: IpAddr, addresses: u8) {
    use hickory_proto::op::Message;
    use hickory_proto::rr::{RData, Record, rdata::A};
    let namespace = std::fs::File::open(namespace).unwrap();
    let (tell, bound) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let socket = UdpSocket::bind((at, 53)).unwrap();
        tell.send(()).unwrap();
        let mut buffer = [0; 2048];
        // Until the test's process ends.
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let query = Message::from_vec(&buffer[..length]).unwrap();
            let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
            reply.add_queries(query.queries.iter().cloned());
            for last in 1..=addresses {
                let data = RData::A(A::new(198, 51, 100, last));
                reply.add_answer(Record::from_rdata(query.queries[0].name().clone(), 60, data));
            }
            socket.send_to(&reply.to_vec().unwrap(), from).unwrap();
        }
    });
    bound.recv().unwrap();
}

/// Bytes: 33 for header and question, 16 an address.
#[test]
fn a_long_answer_arrives_whole_where_it_fits_and_truncated_where_it_does_not() {
    let lab = Lab::up("dns-t5");
    let namespace = lab.directory.join("ns/pod.feed.writer");
    let addresses = lab.addresses("feed/writer");
    let ask = |at: IpAddr| {
        let at = format!("@{at}");
        lab.dig("feed/reader", &[&at, "+tries=1", "+ignore", "+bufsize=4096", "a.mirror.example", "A"])
    };
    for address in addresses {
        // 1,313 bytes: less than the MTU, and more than every way of IPv6 carries.
        talkative_server(&namespace, address, 80);
        let answer = ask(address);
        if address.is_ipv4() {
            assert!(answer.contains("ANSWER: 80") && !answer.contains(" tc "), "{answer}");
        } else {
            assert!(answer.contains("ANSWER: 0") && answer.contains(" tc "), "{answer}");
        }
    }
    let other = lab.addresses("feed/third");
    for address in other {
        // 1,633 bytes: the reply comes in fragments.
        talkative_server(&lab.directory.join("ns/pod.feed.third"), address, 100);
        let answer = ask(address);
        assert!(answer.contains("ANSWER: 0") && answer.contains(" tc "), "{answer}");
    }
}

/// The proxy goes on alone: what it learns then is open at once, and the next agent keeps it.
#[test]
fn without_an_agent_a_name_never_seen_before_is_opened() {
    let lab = Lab::up("dns-t2");
    assert!(lab.dig("feed/reader", &["a.mirror.example", "A"]).contains("203.0.113.1"));
    assert!(lab.reaches("feed/reader", "203.0.113.1"));
    let agent = lab.agent();
    kill(agent, Signal::SIGKILL).unwrap();
    lab.wait("the agent is gone", || lab.status().is_none());
    for (name, address, kind) in [
        ("b.mirror.example", "203.0.113.2", "A"),
        // Two patterns match this one.
        ("c.mirror.example", "203.0.113.3", "A"),
        ("b.mirror.example", "[2001:db8::2]", "AAAA"),
    ] {
        assert!(!lab.reaches("feed/reader", address), "{address} before its answer");
        let answer = lab.dig("feed/reader", &["+short", name, kind]);
        assert!(answer.contains(address.trim_matches(['[', ']'])), "{name}: {answer}");
        assert!(lab.reaches("feed/reader", address), "{address} after its answer");
        assert!(!lab.reaches("feed/writer", address), "{address} from a pod without the rule");
    }
    assert!(lab.dig("feed/reader", &["evil.test"]).contains("REFUSED"));
    assert!(lab.reaches("feed/reader", "203.0.113.1"), "what was known stays");
}

/// New processes take over one after the other while a pod asks: no lookup fails.
#[test]
fn a_new_process_takes_over_without_a_failed_lookup() {
    let lab = Lab::up("dns-t3");
    let file = lab.node().join("dns-proxy.pid");
    let pid = || std::fs::read_to_string(&file).unwrap_or_default().trim().parse::<i32>().unwrap_or(0);
    let names = lab.directory.join("names");
    std::fs::write(&names, "a.mirror.example A\nb.mirror.example A\nbig.example TXT\n").unwrap();
    let names = names.display().to_string();
    let load = std::thread::spawn(move || {
        let resolver = "10.96.0.10";
        let program =
            ["dnsperf", "-s", resolver, "-d", &names, "-l", "5", "-Q", "1000", "-t", "4", "-c", "4"];
        let mut arguments = vec!["lab", "exec", "--name", "dns-t3", "feed/reader", "--"];
        arguments.extend(program);
        text(&sluice(&arguments))
    });
    let mut last = pid();
    let mut children = Vec::new();
    for _ in 0..5 {
        let line = std::fs::read(format!("/proc/{last}/cmdline")).unwrap();
        let words: Vec<String> = line
            .split(|byte| *byte == 0)
            .filter(|word| !word.is_empty())
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        let netns = format!("/proc/{last}/ns/net");
        let child = Command::new("nsenter")
            .arg(format!("--net={netns}"))
            .args(&words)
            .stdin(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let (before, next) = (last, i32::try_from(child.id()).unwrap());
        // nsenter becomes the proxy.
        lab.wait("the next process listens", || pid() == next);
        lab.wait("the old process has ended", || {
            std::fs::read_to_string(format!("/proc/{before}/stat")).map_or(true, |stat| stat.contains(") Z "))
        });
        last = next;
        children.push(child);
    }
    let load = load.join().unwrap();
    assert!(load.contains("Queries lost:         0 "), "{load}");
    assert!(!load.contains("SERVFAIL") && load.contains("NOERROR"), "{load}");
    kill(Pid::from_raw(last), Signal::SIGTERM).unwrap();
    for mut child in children {
        child.wait().unwrap();
    }
}
