//! Real HTTP clients and servers with the proxy between them: curl, nghttp and h2load, and Node.js for what these do
//! not say precisely. The client's policy allows `/ok...` of one port, and paths of the other; the server writes down
//! what arrives. Needs root, and the packages of `scripts/setup test`.

mod machine;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use self::machine::{Machine, eventually, on_a_machine, text};

const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/integration/l7");
const HOSTS: [&str; 2] = ["10.244.0.10", "fd00:244::10"];

const CLUSTER: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: edge-1}
status: {podIPs: [{ip: 10.244.0.10}, {ip: 'fd00:244::10'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
spec: {nodeName: edge-1}
status: {podIPs: [{ip: 10.244.0.11}, {ip: 'fd00:244::11'}]}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {namespace: shop, name: web-http}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts:
    - ports: [{port: '8080', protocol: TCP}]
      rules: {http: [{path: /ok.*}]}
    - ports: [{port: '8081', protocol: TCP}]
      rules: {http: [{path: /ok.*}, {method: POST, path: /shop.Cart/Get}]}
";

/// A program in the client's namespace.
fn client(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", "client", program]).args(arguments);
    command
}

fn run(program: &str, arguments: &[&str]) -> Output {
    client(program, arguments).output().unwrap()
}

fn url(host: &str, port: u16, path: &str) -> String {
    match host.contains(':') {
        true => format!("http://[{host}]:{port}{path}"),
        false => format!("http://{host}:{port}{path}"),
    }
}

/// Runs with agent, proxies, server and policy in place. Whatever a test does, nothing that policy refuses arrives.
fn with_a_server(test: impl FnOnce(&Machine) + Send + 'static) {
    on_a_machine(|mut machine| {
        machine.start_agent_and_proxies();
        machine.write("cluster.yaml", CLUSTER);
        machine.done(&["policy", "apply", "cluster.yaml"]);
        for name in ["web", "client"] {
            let (pod, netns) = (format!("shop/{name}"), format!("/run/netns/{name}"));
            machine.done(&["endpoint", "add", &pod, "--netns", &netns, "--create"]);
        }
        let seen = machine.path("seen");
        let server = Command::new("ip")
            .args(["netns", "exec", "web", "node"])
            .args([&Path::new(HERE).join("server.mjs"), &seen])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        machine.children.push(server);
        for host in HOSTS {
            eventually("the server answers through the proxy", || {
                machine.fetch(&url(host, 8080, "/ok/ready"))
            });
        }
        test(&machine);
        let seen = std::fs::read_to_string(seen).unwrap();
        assert!(!seen.contains("/no") && !seen.contains("Drop"), "policy refuses what arrived: {seen}");
    });
}

/// A case of `client.mjs`, in both families.
fn node(case: &'static str) {
    with_a_server(move |_| {
        for host in HOSTS {
            let done = run("node", &[&format!("{HERE}/client.mjs"), case, host]);
            assert!(done.status.success(), "{case} to {host}: {}{}", text(&done.stdout), text(&done.stderr));
        }
    });
}

/// What systemd-networkd does to rules that are not its own, when it starts.
#[test]
fn without_the_rule_that_brings_it_to_the_proxy_nothing_passes_and_the_rule_comes_back() {
    with_a_server(|machine| {
        for host in HOSTS {
            let family = if host.contains(':') { "-6" } else { "-4" };
            machine.ip(&format!("{family} rule del pref 10"));
            // The server writes down what arrives.
            run(
                "curl",
                &["-g", "-s", "-m", "1", &url(host, 8080, "/no/rule"), &url(host, 8080, "/no/second")],
            );
            eventually("the proxy gets its packets again", || machine.fetch(&url(host, 8080, "/ok/again")));
        }
        let status = machine.done(&["status"]);
        assert!(status.contains("taken away and put back: 2"), "{status}");
    });
}

#[test]
fn pipelined_requests_are_judged_one_by_one() {
    node("pipelining");
}

#[test]
fn a_websocket_carries_data_both_ways() {
    node("websocket");
}

#[test]
fn a_refused_websocket_leaves_its_connection_usable() {
    node("refused_websocket");
}

#[test]
fn trailers_pass_both_ways() {
    node("trailers");
}

#[test]
fn a_denied_grpc_call_has_status_7_and_others_go_on() {
    node("grpc");
}

#[test]
fn http2_clients_with_prior_knowledge_are_served_and_refused() {
    with_a_server(|_| {
        for host in HOSTS {
            let got = run("nghttp", &[&url(host, 8081, "/ok/nghttp")]);
            assert_eq!(text(&got.stdout), "/ok/nghttp", "{}", text(&got.stderr));
            let refused = text(&run("nghttp", &["-v", &url(host, 8081, "/no/nghttp")]).stdout);
            assert!(refused.contains(":status: 403") && refused.contains("Access denied"), "{refused}");
            let code = |path: &str| {
                let curl = ["-g", "-s", "-o", "/dev/null", "-w", "%{http_version} %{http_code}"];
                let url = url(host, 8081, path);
                text(&run("curl", &[&curl[..], &["--http2-prior-knowledge", &url]].concat()).stdout)
            };
            assert_eq!(code("/ok/curl"), "2 200");
            assert_eq!(code("/no/curl"), "2 403");
            // h2load itself leaves out the brackets of an IPv6 address, and a malformed authority is refused.
            let authority = ":authority: web:8081";
            let target = url(host, 8081, "/ok/load");
            let load = run("h2load", &["-n", "600", "-c", "4", "-m", "10", "-H", authority, &target]);
            let load = text(&load.stdout);
            assert!(load.contains("status codes: 600 2xx, 0 3xx, 0 4xx, 0 5xx"), "{load}");
        }
    });
}

#[test]
fn an_upload_waits_for_100_continue_and_a_refused_one_is_not_sent() {
    with_a_server(|machine| {
        let body = "0123456789abcdef".repeat(20_000);
        let file = machine.write("upload", &body).display().to_string();
        for host in HOSTS {
            let upload = |path: &str| {
                let curl =
                    ["-g", "-s", "-v", "-m", "20", "-H", "Expect: 100-continue", "--expect100-timeout", "10"];
                run("curl", &[&curl[..], &["-T", &file, &url(host, 8080, path)]].concat())
            };
            let sent = upload("/ok/echo");
            assert!(text(&sent.stderr).contains("< HTTP/1.1 100 Continue"), "{}", text(&sent.stderr));
            assert!(text(&sent.stdout) == body, "{} bytes came back", sent.stdout.len());
            let refused = upload("/no/echo");
            let said = text(&refused.stderr);
            assert!(said.contains("< HTTP/1.1 403") && !said.contains("100 Continue"), "{said}");
            assert!(!said.contains("We are completely uploaded"), "{said}");
        }
    });
}

#[test]
fn chunked_bodies_pass_both_ways_whole() {
    with_a_server(|_| {
        let body: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for host in HOSTS {
            let chunked = ["-g", "-s", "-m", "30", "-H", "Transfer-Encoding: chunked", "-T", "-"];
            let mut curl = client("curl", &[&chunked[..], &[&url(host, 8080, "/ok/echo")]].concat())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut input = curl.stdin.take().unwrap();
            let sent = body.clone();
            let writer = std::thread::spawn(move || input.write_all(&sent));
            let output = curl.wait_with_output().unwrap();
            writer.join().unwrap().unwrap();
            assert!(
                output.status.success() && output.stdout == body,
                "{} bytes came back",
                output.stdout.len()
            );
        }
    });
}
