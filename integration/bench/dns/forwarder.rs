//! Peers from Debian that forward without a cache and refuse all but one suffix.

use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::SUFFIX;
use super::load::{Cpu, question};
use super::site::Site;

const PATIENCE: Duration = Duration::from_secs(20);

/// Ends with this value.
pub struct Forwarder {
    child: Child,
    _directory: tempfile::TempDir,
}

impl Forwarder {
    pub fn unbound(site: &Site) -> anyhow::Result<Forwarder> {
        let directory = tempfile::tempdir()?;
        let (at, server) = (site.resolver.ip(), site.server_pod.address);
        let file = directory.path().join("unbound.conf");
        std::fs::write(
            &file,
            format!(
                "server:\n interface: {at}\n port: 53\n do-daemonize: no\n username: \"\"\n chroot: \"\"\n directory: \"{}\"\n pidfile: \"\"\n use-syslog: no\n verbosity: 0\n num-threads: 1\n module-config: \"iterator\"\n access-control: 0.0.0.0/0 allow\n outgoing-range: 8192\n num-queries-per-thread: 4096\n so-rcvbuf: 4m\n so-sndbuf: 4m\n msg-cache-size: 0\n rrset-cache-size: 0\n local-zone: \".\" refuse\n local-zone: \"{SUFFIX}.\" transparent\nremote-control:\n control-enable: no\nforward-zone:\n name: \".\"\n forward-addr: {server}\n forward-no-cache: yes\n",
                directory.path().display()
            ),
        )?;
        let mut command = Command::new("taskset");
        command.args(["-c", &Cpu::Proxy.number()?.to_string(), "unbound", "-d", "-c"]).arg(&file);
        Forwarder::start(site, command, directory)
    }

    pub fn dnsdist(site: &Site) -> anyhow::Result<Forwarder> {
        let directory = tempfile::tempdir()?;
        let (at, server) = (site.resolver.ip(), site.server_pod.address);
        let file = directory.path().join("dnsdist.conf");
        std::fs::write(
            &file,
            format!(
                "setLocal('{at}:53')\nsetACL({{'0.0.0.0/0'}})\nsetMaxUDPOutstanding(65535)\nsetUDPSocketBufferSizes(4194304, 4194304)\nsetSecurityPollSuffix('')\nnewServer({{address='{server}:53', useClientSubnet=false}}):setUp()\naddAction(NotRule(makeRule('{SUFFIX}.')), RCodeAction(DNSRCode.REFUSED))\n"
            ),
        )?;
        let mut command = Command::new("taskset");
        command.args([
            "-c",
            &Cpu::Proxy.number()?.to_string(),
            "dnsdist",
            "--supervised",
            "--disable-syslog",
            "-C",
        ]);
        command.arg(&file);
        Forwarder::start(site, command, directory)
    }

    fn start(site: &Site, mut command: Command, directory: tempfile::TempDir) -> anyhow::Result<Forwarder> {
        let log = directory.path().join("log");
        let output = std::fs::File::create(&log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = site.node.run(|| command.spawn())?.context("start a forwarder (scripts/setup)")?;
        let mut forwarder = Forwarder { child, _directory: directory };
        let socket = site.client.namespace.run(|| UdpSocket::bind((site.client.address, 0)))??;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let begin = Instant::now();
        loop {
            socket.send_to(&question(1, 1), site.resolver)?;
            let mut answer = [0; 512];
            if let Ok(length) = socket.recv(&mut answer)
                && length > 12
                && answer[3] & 0xf == 0
            {
                return Ok(forwarder);
            }
            let ended = forwarder.child.try_wait()?;
            anyhow::ensure!(
                ended.is_none() && begin.elapsed() < PATIENCE,
                "the forwarder does not answer: {ended:?} {}",
                std::fs::read_to_string(&log)?
            );
        }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
