//! A real cluster for the browser: `sluice lab up` with policies, and `sluice lab ui` in front of its agents and its
//! relay.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};

const SLUICE: &str = env!("CARGO_BIN_EXE_sluice");

const POLICIES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: default-deny}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: backend-in}
spec:
  podSelector: {matchLabels: {app: backend}}
  ingress:
  - {from: [{podSelector: {matchLabels: {app: frontend}}}], ports: [{port: 8080}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: frontend-out}
spec:
  podSelector: {matchLabels: {app: frontend}}
  policyTypes: [Egress]
  egress:
  - {to: [{podSelector: {matchLabels: {app: backend}}}], ports: [{port: 8080}]}
";

/// Removed when dropped.
#[derive(Debug)]
pub struct Lab {
    name: String,
    relay: Option<Child>,
    /// URL of each node's page, in order, and of the relay's.
    pub pages: Vec<String>,
}

impl Lab {
    pub fn start() -> Lab {
        let name = format!("ui-{}", std::process::id());
        let mut lab = Lab { name: name.clone(), relay: None, pages: Vec::new() };
        lab.sluice(&["lab", "up", "--name", &name]);
        lab.apply(POLICIES);
        let mut relay = Command::new(SLUICE)
            .args(["lab", "ui", &name, "--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("start sluice lab ui");
        let output = relay.stdout.take().expect("its output");
        lab.relay = Some(relay);
        for line in BufReader::new(output).lines().take(3) {
            let line = line.expect("a line for each page");
            let url = line.split_whitespace().next_back().expect("a URL").trim_end_matches('/');
            lab.pages.push(url.to_owned());
        }
        lab
    }

    /// What the scripts need to act in the lab.
    pub fn environment(&self) -> [(&'static str, String); 4] {
        [
            ("SLUICE_LAB", self.name.clone()),
            ("SLUICE_LAB_SOCKET", self.socket()),
            ("SLUICE_LAB_PAGES", self.pages.join(" ")),
            ("SLUICE_PROGRAM", SLUICE.to_owned()),
        ]
    }

    fn socket(&self) -> String {
        format!("/run/sluice-lab/{}/server/server.sock", self.name)
    }

    fn apply(&self, manifests: &str) {
        let mut child = Command::new(SLUICE)
            .args(["policy", "apply", "--socket", &self.socket(), "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("start sluice policy apply");
        child.stdin.take().expect("its input").write_all(manifests.as_bytes()).expect("write manifests");
        assert!(child.wait().expect("wait for it").success(), "the policies were refused");
    }

    fn sluice(&self, arguments: &[&str]) {
        let status = Command::new(SLUICE).args(arguments).stdout(Stdio::null()).status().expect("run sluice");
        assert!(status.success(), "sluice {arguments:?} failed");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(relay) = &mut self.relay {
            // It may have ended by itself.
            relay.kill().ok();
            relay.wait().ok();
        }
        Command::new(SLUICE).args(["lab", "down", &self.name]).stdout(Stdio::null()).status().ok();
    }
}
