//! The proxies that are compared, each between a client and a server in namespaces of their own.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sluice::api::types::EndpointRequest;
use sluice::datapath::net::Namespace;

use super::load::{self, Answers, last_cpu, pin};
use super::{HTTP2, LARGE, Owned, PATH, SMALL, answers};
use crate::agent::{Agent, Home};
use crate::cluster::NODE;
use crate::place::{self, Place, command};
use crate::pods::{self, Pod};

/// The port of large answers that no L7 rule names.
pub const LARGE_DIRECT: u16 = 8083;
const PATIENCE: Duration = Duration::from_secs(20);
/// Where the peers listen.
const GATEWAY: [u8; 4] = [172, 31, 0, 1];

fn wait_for(what: &str, mut ready: impl FnMut() -> bool) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !ready() {
        anyhow::ensure!(begun.elapsed() < PATIENCE, "{what} is not ready after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn connects(from: &Namespace, to: SocketAddr) -> bool {
    from.run(|| std::net::TcpStream::connect(to).is_ok()).unwrap_or(false)
}

/// The server of HTTP/2: nginx.
fn http2_server(place: &Place, name: &str, pod: &Pod) -> anyhow::Result<Owned> {
    let directory = place.dir().join(format!("server-{name}"));
    let text = nginx_config(
        &directory,
        &format!(
            "server {{ listen {}:{HTTP2} http2; location / {{ default_type text/plain; return 200 \"ok\\n\"; }} }}",
            pod.address
        ),
    );
    let server = nginx(&pod.namespace, &directory, &text, last_cpu()?)?;
    let address = SocketAddr::new(pod.address, HTTP2);
    wait_for("the HTTP/2 server", || connects(&pod.namespace, address))?;
    Ok(server)
}

fn nginx_config(directory: &Path, servers: &str) -> String {
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|what| format!("{what}_temp_path {}/{what};\n", directory.display()))
        .collect();
    format!(
        "worker_processes 1; daemon off; pid {0}/pid; error_log stderr crit; worker_rlimit_nofile 65536;\n\
         events {{ worker_connections 20000; }}\n\
         http {{ access_log off; keepalive_requests 100000000; keepalive_timeout 600s; tcp_nodelay on;\n\
         http2_max_concurrent_streams 256; {temporary}{servers} }}\n",
        directory.display()
    )
}

fn nginx(space: &Namespace, directory: &Path, text: &str, cpu: usize) -> anyhow::Result<Owned> {
    std::fs::create_dir_all(directory)?;
    let config = directory.join("nginx.conf");
    std::fs::write(&config, text)?;
    let mut command = Command::new("nginx");
    command.arg("-p").arg(directory).arg("-c").arg(&config).args(["-g", "master_process off;"]);
    spawn(space, command, cpu)
}

fn spawn(space: &Namespace, mut command: Command, cpu: usize) -> anyhow::Result<Owned> {
    let program = command.get_program().to_string_lossy().into_owned();
    let child = space.run(|| -> anyhow::Result<_> {
        pin(cpu)?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context(program)
    })??;
    Ok(Owned(child))
}

/// Ours: an agent, its proxy process, a pod that asks and one that answers.
pub struct Sluice {
    pub client: Namespace,
    server: IpAddr,
    run: PathBuf,
    agent: Option<Agent>,
    _servers: (Answers, Owned, Namespace, Namespace),
}

fn address(node: u8, pod: u8) -> IpAddr {
    IpAddr::from([10, 101, node, pod])
}

fn policy(rules: usize) -> String {
    let paths: String = (1..rules)
        .map(|rule| format!("        - {{method: GET, path: \"/api/v1/others{rule}/[0-9]+\"}}\n"))
        .collect();
    format!(
        "---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{namespace: bench, name: http}}\nspec:\n  endpointSelector: {{matchLabels: {{app: server}}}}\n  ingress:\n  - fromEndpoints: [{{matchLabels: {{app: client}}}}]\n    toPorts:\n    - ports: [{{port: \"{SMALL}\", protocol: TCP}}, {{port: \"{LARGE}\", protocol: TCP}}, {{port: \"{HTTP2}\", protocol: TCP}}]\n      rules:\n        http:\n{paths}        - {{method: GET, path: \"/api/v1/items/[0-9]+\"}}\n  - fromEndpoints: [{{matchLabels: {{app: client}}}}]\n    toPorts: [{{ports: [{{port: \"{LARGE_DIRECT}\", protocol: TCP}}]}}]\n"
    )
}

impl Sluice {
    pub fn start(place: &Place, name: &str, rules: usize) -> anyhow::Result<Sluice> {
        let number = if rules == 1 { 1 } else { 2 };
        let node = place::new_node()?;
        let client = pods::add(&node, 1, address(number, 10))?;
        let server = pods::add(&node, 2, address(number, 20))?;
        let answers = answers(&server.namespace, server.address)?;
        let http2 = http2_server(place, name, &server)?;
        let home = Home::new(&place.dir().join(name), place.bpffs(name))?;
        // The proxy inherits the CPU of the agent, which then goes to the other one.
        let (agent, _) = std::thread::scope(|scope| {
            let started = scope.spawn(|| -> anyhow::Result<_> {
                pin(0)?;
                Agent::start(&node, &home)
            });
            started.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        let sluice = Sluice {
            client: client.namespace,
            server: server.address,
            run: home.run.clone(),
            agent: Some(agent),
            _servers: (answers, http2, server.namespace, node),
        };
        let agent = sluice.agent.as_ref().context("an agent")?;
        let object = |name: &str, address: IpAddr| {
            format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{namespace: bench, name: {name}, labels: {{app: {name}}}}}\nspec: {{nodeName: {NODE}, containers: [{{name: main}}]}}\nstatus: {{podIPs: [{{ip: {address}}}]}}\n"
            )
        };
        agent.apply(&(object("client", client.address) + &object("server", server.address)))?;
        for (name, pod) in [("client", &sluice.client), ("server", &sluice._servers.2)] {
            agent.add_endpoint(&EndpointRequest {
                pod: format!("bench/{name}"),
                netns: Some(place::path_of(pod).display().to_string()),
                interface: None,
                host_interface: None,
                device: Default::default(),
                labels: Default::default(),
                addresses: Vec::new(),
            })?;
        }
        agent.apply(&policy(rules))?;
        agent.move_to(last_cpu()?)?;
        wait_for("the proxy", || sluice.pid().is_ok())?;
        wait_for("the policy", || {
            load::status(&sluice.client, sluice.address(SMALL), "GET", PATH).is_ok_and(|s| s == 200)
        })?;
        Ok(sluice)
    }

    fn pid(&self) -> anyhow::Result<u32> {
        Ok(std::fs::read_to_string(self.run.join("http-proxy.pid"))?.trim().parse()?)
    }

    pub fn pids(&self) -> anyhow::Result<Vec<u32>> {
        Ok(vec![self.pid()?])
    }

    pub fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.server, port)
    }

    pub fn url(&self, port: u16) -> String {
        format!("http://{}{PATH}", self.address(port))
    }

    /// The rules hold.
    pub fn expect_policy(&self) -> anyhow::Result<()> {
        expect_policy(&self.client, self.address(SMALL))
    }

    pub fn download(&self, port: u16) -> anyhow::Result<f64> {
        load::download(&self.client, self.address(port))
    }

    fn memory(&self, field: &str) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)).context("memory")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    }

    /// Bytes of the proxy process.
    pub fn resident(&self) -> anyhow::Result<u64> {
        self.memory("VmRSS:")
    }

    /// Most so far.
    pub fn peak(&self) -> anyhow::Result<u64> {
        self.memory("VmHWM:")
    }
}

impl Drop for Sluice {
    fn drop(&mut self) {
        // The agent first, or it would start its proxies again.
        self.agent = None;
        for name in ["http-proxy", "dns-proxy"] {
            let pid = std::fs::read_to_string(self.run.join(format!("{name}.pid")));
            if let Some(pid) = pid.ok().and_then(|text| text.trim().parse().ok()) {
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
                    .ok();
            }
        }
    }
}

fn expect_policy(client: &Namespace, to: SocketAddr) -> anyhow::Result<()> {
    for (method, path, expected) in [("GET", PATH, 200), ("POST", PATH, 403), ("GET", "/api/v1/items/x", 403)]
    {
        let status = load::status(client, to, method, path)?;
        anyhow::ensure!(status == expected, "{method} {path} at {to}: {status} instead of {expected}");
    }
    Ok(())
}

/// Another proxy.
pub struct Peer {
    pub client: Namespace,
    pub url: String,
    address: SocketAddr,
    process: Owned,
}

/// All others, on one node.
pub struct Peers {
    /// nginx, haproxy.
    pub http1: [Peer; 2],
    pub http2: [Peer; 2],
    _servers: (Answers, Owned, Namespace, Namespace),
}

impl Peer {
    pub fn start(place: &Place) -> anyhow::Result<Peers> {
        let node = place::new_node()?;
        let gateway = IpAddr::from(GATEWAY);
        command(&node, "ip", &["addr", "add", &format!("{gateway}/32"), "dev", "lo"], "")?;
        let client = pods::add(&node, 1, address(3, 10))?;
        let server = pods::add(&node, 2, address(3, 20))?;
        client.routed_by_stack(&node)?;
        server.routed_by_stack(&node)?;
        let answers = answers(&server.namespace, server.address)?;
        let h2server = http2_server(place, "peers", &server)?;
        let peer = |port: u16, process: Owned| -> anyhow::Result<Peer> {
            let address = SocketAddr::new(gateway, port);
            let client = client.namespace.clone();
            wait_for("a peer", || connects(&client, address))?;
            Ok(Peer { client, url: format!("http://{address}{PATH}"), address, process })
        };
        let start_nginx = |port: u16, flavour: &str| -> anyhow::Result<Owned> {
            let directory = place.dir().join(format!("nginx-{port}"));
            let servers = format!(
                "upstream pods {{ server {}:{SMALL}; keepalive 128; }}\n\
                 server {{ listen {gateway}:{port} {flavour};\n\
                 location ~ ^/api/v1/items/[0-9]+$ {{ limit_except GET {{ deny all; }}\n\
                 proxy_pass http://pods; proxy_http_version 1.1; proxy_set_header Connection \"\"; }}\n\
                 location / {{ return 403 \"Access denied\\r\\n\"; }} }}",
                server.address
            );
            nginx(&node, &directory, &nginx_config(&directory, &servers), 0)
        };
        let start_haproxy = |port: u16, flavour: &str, to: u16| -> anyhow::Result<Owned> {
            let config = place.dir().join(format!("haproxy-{port}.cfg"));
            let text = format!(
                "global\n maxconn 8000\n nbthread 1\n\
                 defaults\n mode http\n timeout client 60s\n timeout server 60s\n timeout connect 5s\n option http-keep-alive\n http-reuse always\n\
                 frontend f\n bind {gateway}:{port} {flavour}\n acl get method GET\n acl items path_reg ^/api/v1/items/[0-9]+$\n\
                 http-request deny deny_status 403 unless get items\n default_backend b\n\
                 backend b\n server s {}:{to} {flavour} pool-max-conn 128\n",
                server.address
            );
            std::fs::write(&config, text)?;
            let mut command = Command::new("haproxy");
            command.arg("-db").arg("-q").arg("-f").arg(&config).stderr(Stdio::null());
            spawn(&node, command, 0)
        };
        let http1 = [peer(9001, start_nginx(9001, "")?)?, peer(9002, start_haproxy(9002, "", SMALL)?)?];
        let http2 =
            [peer(9003, start_nginx(9003, "http2")?)?, peer(9004, start_haproxy(9004, "proto h2", HTTP2)?)?];
        Ok(Peers { http1, http2, _servers: (answers, h2server, server.namespace, node) })
    }

    pub fn pids(&self) -> anyhow::Result<Vec<u32>> {
        Ok(vec![self.process.0.id()])
    }

    /// The rules hold.
    pub fn expect_policy(&self) -> anyhow::Result<()> {
        expect_policy(&self.client, self.address)
    }
}
