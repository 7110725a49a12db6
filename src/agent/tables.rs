//! The agent's knowledge in the forms of the admin API.

use crate::api::types::{
    Component, Counts, Endpoint, Enforcement, ExplainAnswer, ExplainSide, IdentityInfo, IpcacheInfo,
    NameInfo, Names, Revision, ServiceInfo, Status,
};
use crate::config::Source;
use crate::endpoint::{Device, DeviceName};
use crate::model::{Direction, Identity, IdentityKind, ObjectRef, Protocol};
use crate::policy::decision::{Because, Outcome, SideDecision};
use crate::policy::engine::{L4Flow, PeerView};
use crate::policy::rule::Subject;

use super::core::Core;

impl Core {
    pub fn status(&mut self) -> Status {
        let features = self.kernel.features();
        let lost = self.kernel.lost_events();
        self.hub.set_lost(lost);
        let components = self.components();
        let health = ["failed", "degraded"]
            .into_iter()
            .find(|state| components.iter().any(|component| component.state == *state))
            .unwrap_or("ok");
        let ready = self.endpoints.iter().filter(|(pod, _)| self.endpoint_state(pod) == "ready").count();
        let engine = self.view.engine();
        let entries = engine.subjects().map(|subject| engine.entries(subject).len()).sum();
        Status {
            version: format!("{} ({})", env!("CARGO_PKG_VERSION"), env!("SLUICE_COMMIT")),
            node: self.config.node_name.clone(),
            cluster: self.config.cluster_name.clone(),
            source: match &self.config.source {
                Source::Standalone => "standalone".to_owned(),
                Source::Server { url, .. } => format!("server {url}"),
            },
            uptime_seconds: self.started.elapsed().as_secs(),
            revision: Revision { desired: self.desired, realized: self.realized },
            health: health.to_owned(),
            components,
            counts: Counts {
                endpoints: self.endpoints.len(),
                endpoints_ready: ready,
                identities: self.view.identities().count(),
                policies: engine.policies().count(),
                services: self.view.services().count(),
                ipcache: self.view.ipcache().count(),
                policy_entries: entries,
                flows_seen: self.hub.seen(),
                flows_lost: self.hub.lost(),
            },
            features,
            options: self.options(),
            proxies: Vec::new(),
            resident_bytes: resident_bytes(),
            ui: self.ui.as_ref().and_then(|ui| ui.clone().ok()),
            names: self.name_counts(),
        }
    }

    fn name_counts(&self) -> Names {
        let names = self.view.names();
        let stats = names.stats();
        Names {
            names: names.names().count(),
            addresses: names.names().map(|(_, addresses)| addresses.len()).sum(),
            expired: stats.expired,
            evicted_addresses: stats.evicted,
            evicted_names: stats.evicted_names,
            evicted_spare_names: stats.evicted_spares,
            refused_names: stats.refused_names,
            refused_addresses: stats.refused_addresses,
            refused_answers: self.view.refused_answers(),
        }
    }

    fn options(&self) -> std::collections::BTreeMap<String, String> {
        let config = &self.config;
        let lower = |value: &dyn std::fmt::Debug| format!("{value:?}").to_lowercase();
        [
            ("policy-enforcement", lower(&config.enforcement)),
            ("allow-localhost", lower(&config.allow_localhost)),
            ("deny-response", lower(&config.deny_response)),
            ("empty-rule-lists", lower(&config.empty_rule_lists)),
            ("host-firewall", lower(&config.host_firewall)),
            ("routing", lower(&config.routing)),
            ("masquerade", lower(&config.masquerade)),
            ("dns-refusal", lower(&config.dns.refusal)),
            ("dns-min-ttl", format!("{} s", config.dns.ttl.floor().as_secs())),
            ("dns-max-ttl", format!("{} s", config.dns.ttl.ceiling().as_secs())),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }

    fn components(&mut self) -> Vec<Component> {
        let component = |name: &str, trouble: &Option<String>, well: String, failures: u64| Component {
            name: name.to_owned(),
            state: if trouble.is_some() { "degraded" } else { "ok" }.to_owned(),
            message: trouble.clone().unwrap_or(well),
            failures,
        };
        let waiting = self.waiting();
        let health = self.store.health();
        let store_trouble = health.failing.clone();
        let missing: Vec<String> = self
            .endpoints
            .iter()
            .filter_map(|(pod, member)| match &member.device {
                Device::Missing(reason) => Some(format!("{pod}: {reason}")),
                Device::Found { .. } => None,
            })
            .collect();
        let full: Vec<String> = self
            .kernel
            .pressure()
            .into_iter()
            .filter(|(_, entries, most)| entries * 10 > most * 9)
            .map(|(name, entries, most)| format!("map {name} holds {entries} of {most}"))
            .collect();
        let misfits = self.misfits();
        let list = |items: &[String]| (!items.is_empty()).then(|| items.join("; "));
        let ui = self.ui.as_ref().map(|ui| match ui {
            Ok(url) => component("web ui", &None, url.clone(), 0),
            Err(problem) => component("web ui", &Some(problem.clone()), String::new(), 1),
        });
        let mut components = vec![
            component("source", &self.source_trouble, "connected".into(), self.source_failures),
            component(
                "datapath",
                &self.kernel_trouble.as_ref().map(|trouble| format!("{trouble} ({waiting} changes wait)")),
                "the kernel enforces the newest revision".into(),
                self.kernel_failures,
            ),
            component("maps", &list(&full), "none is nearly full".into(), 0),
            component("endpoints", &list(&missing), "every device is there".into(), missing.len() as u64),
            component(
                "devices",
                &self.devices_trouble,
                "the node's own are known".into(),
                self.devices_failures,
            ),
            component(
                "programs",
                &self.attachments.trouble,
                self.attachments.to_string(),
                self.attachments.restored,
            ),
            component("l7 rules", &list(misfits), "the proxies can use all".into(), misfits.len() as u64),
            component("store", &store_trouble, "healthy".into(), health.errors.values().sum()),
            self.history_component(),
        ];
        components.extend(ui);
        components
    }

    fn history_component(&self) -> Component {
        let Some(recorder) = &self.history else {
            return Component {
                name: "history".into(),
                state: "ok".into(),
                message: "off".into(),
                failures: 0,
            };
        };
        let status = recorder.status();
        let kept = format!("{} MiB of flows", status.bytes >> 20);
        let (state, message) = match (&status.stopped, &status.moved_aside) {
            (Some(why), _) => ("degraded", format!("nothing is written: {why}; {} flows lost", status.lost)),
            (None, Some(aside)) => {
                ("degraded", format!("{kept}; the file was corrupt and is kept as {}", aside.display()))
            }
            (None, None) => ("ok", kept),
        };
        Component { name: "history".into(), state: state.into(), message, failures: status.lost }
    }

    pub(super) fn endpoint_state(&self, pod: &str) -> &'static str {
        let found =
            matches!(self.endpoints.get(pod).map(|member| &member.device), Some(Device::Found { .. }));
        match (found, self.view.endpoints().any(|local| local.pod.path() == pod)) {
            (true, true) => "ready",
            (true, false) => "waiting-for-identity",
            (false, _) => "waiting-for-device",
        }
    }

    pub fn endpoint_list(&self) -> Vec<Endpoint> {
        self.endpoints.iter().map(|(pod, _)| pod).filter_map(|pod| self.endpoint(pod)).collect()
    }

    pub fn endpoint(&self, pod: &str) -> Option<Endpoint> {
        let member = self.endpoints.get(pod)?;
        let local = self.view.endpoints().find(|local| local.pod.path() == pod);
        let identity = local.map(|local| local.identity).unwrap_or_default();
        let engine = self.view.engine();
        let labels = engine.identity(identity).map(|record| record.labels.clone()).unwrap_or_default();
        let (interface, ifindex, mac) = match &member.device {
            Device::Found { interface, ifindex, mac } => (interface.clone(), *ifindex, mac_text(mac)),
            Device::Missing(_) => match &member.registration.device {
                DeviceName::Host { interface }
                | DeviceName::Netns { interface, .. }
                | DeviceName::Made { host_interface: interface, .. } => (interface.clone(), 0, String::new()),
            },
        };
        Some(Endpoint {
            id: member.registration.id,
            pod: pod.to_owned(),
            interface,
            ifindex,
            mac,
            addresses: local.map(|local| local.addresses.clone()).unwrap_or_default(),
            identity: identity.0,
            labels,
            state: self.endpoint_state(pod).to_owned(),
            ingress: self.enforcement(identity, Direction::Ingress),
            egress: self.enforcement(identity, Direction::Egress),
            policy_entries: engine.entries(identity).len(),
        })
    }

    fn enforcement(&self, identity: Identity, direction: Direction) -> Enforcement {
        let engine = self.view.engine();
        let info = engine.info(identity).unwrap_or_default();
        let side = match direction {
            Direction::Ingress => info.ingress,
            Direction::Egress => info.egress,
        };
        Enforcement { default_deny: side.default_deny, policies: self.governing(identity, direction) }
    }

    /// Objects with rules or default deny in this direction that select the identity.
    fn governing(&self, identity: Identity, direction: Direction) -> Vec<ObjectRef> {
        let engine = self.view.engine();
        let Some(record) = engine.identity(identity) else { return Vec::new() };
        let selects = |subject: &Subject| match subject {
            Subject::Pods(selector) => {
                selector.as_ref().is_some_and(|selector| selector.matches(&record.labels))
            }
            Subject::Nodes(_) => false,
        };
        engine
            .policies()
            .filter(|policy| {
                policy.specs.iter().any(|spec| {
                    selects(&spec.subject)
                        && (spec.default_deny(direction)
                            || spec.rules.iter().any(|rule| rule.direction == direction))
                })
            })
            .map(|policy| policy.object.clone())
            .collect()
    }

    pub fn identity_list(&self) -> Vec<IdentityInfo> {
        self.view
            .identities()
            .map(|record| IdentityInfo {
                id: record.id.0,
                labels: record.labels.clone(),
                scope: match &record.kind {
                    IdentityKind::Node { .. } => "node",
                    IdentityKind::Cidr(_) => "cidr",
                    IdentityKind::AddressClass(_) => "address-class",
                    IdentityKind::Labels if record.id.is_cluster_scope() => "cluster",
                    IdentityKind::Labels => "reserved",
                }
                .to_owned(),
            })
            .collect()
    }

    pub fn ipcache_list(&self) -> Vec<IpcacheInfo> {
        self.view
            .ipcache()
            .map(|(prefix, entry)| IpcacheInfo {
                prefix: prefix.to_string(),
                identity: entry.identity.0,
                labels: self
                    .view
                    .engine()
                    .identity(entry.identity)
                    .map(|record| record.labels.clone())
                    .unwrap_or_default(),
                tunnel_endpoint: entry.tunnel_endpoint,
            })
            .collect()
    }

    pub fn name_list(&self) -> Vec<NameInfo> {
        let now = self.started.elapsed();
        let mut names: Vec<NameInfo> = (self.view.names().names())
            .flat_map(|(name, addresses)| addresses.iter().map(move |(address, end)| (name, *address, *end)))
            .map(|(name, address, end)| NameInfo {
                name: name.to_string(),
                address,
                ttl_seconds: end.saturating_sub(now).as_secs(),
                patterns: self.view.names().patterns_of(address).iter().map(ToString::to_string).collect(),
                identity: self.view.resolve(address).identity.0,
            })
            .collect();
        names.sort_by(|a, b| (&a.name, a.address).cmp(&(&b.name, b.address)));
        names
    }

    pub fn service_list(&self) -> Vec<ServiceInfo> {
        self.view
            .services()
            .map(|(frontend, entry)| ServiceInfo {
                service: entry.service.clone(),
                frontend: std::net::SocketAddr::new(frontend.address, frontend.port).to_string(),
                protocol: frontend.protocol.to_string(),
                backends: entry
                    .backends
                    .iter()
                    .map(|backend| std::net::SocketAddr::new(backend.address, backend.port).to_string())
                    .collect(),
                affinity_seconds: entry.affinity_secs,
            })
            .collect()
    }

    /// How many local endpoints the policy selects.
    pub fn selected_here(&self, object: &ObjectRef) -> Option<usize> {
        let engine = self.view.engine();
        let policy = engine.policies().find(|policy| policy.object == *object)?;
        let selects = |identity: Identity| {
            let Some(record) = engine.identity(identity) else { return false };
            policy.specs.iter().any(|spec| match &spec.subject {
                Subject::Pods(selector) => {
                    selector.as_ref().is_some_and(|selector| selector.matches(&record.labels))
                }
                Subject::Nodes(_) => false,
            })
        };
        Some(self.view.endpoints().filter(|local| selects(local.identity)).count())
    }

    /// What this node decides about a connection, with reasons.
    pub fn explain(
        &self,
        from: std::net::IpAddr,
        to: std::net::IpAddr,
        port: u16,
        protocol: Protocol,
    ) -> ExplainAnswer {
        let (to, port) =
            match self.view.translate(to, port, protocol).and_then(|entry| entry.backends.first()) {
                Some(backend) => (backend.address, backend.port),
                None => (to, port),
            };
        let flow = L4Flow { protocol, port };
        let sides = self.view.decide(from, to, flow);
        let (source, destination) = (self.view.resolve(from), self.view.resolve(to));
        let explained = sides
            .iter()
            .map(|side| {
                let (subject, peer) = match side.direction {
                    Direction::Egress => (source.identity, PeerView::from(&destination)),
                    Direction::Ingress => (destination.identity, PeerView::from(&source)),
                };
                self.explain_side(side, subject, peer, flow)
            })
            .collect::<Vec<_>>();
        let verdict = if sides.denied().is_some() {
            "denied"
        } else if sides.iter().any(|side| matches!(side.outcome, Outcome::Redirect(_))) {
            "redirected"
        } else {
            "allowed"
        };
        ExplainAnswer { verdict: verdict.to_owned(), sides: explained }
    }

    fn explain_side(
        &self,
        side: &SideDecision,
        subject: Identity,
        peer: PeerView,
        flow: L4Flow,
    ) -> ExplainSide {
        let engine = self.view.engine();
        let (because, objects, rules) = match &side.because {
            Because::Rules(rules) => {
                let mut objects: Vec<ObjectRef> = rules.iter().map(|rule| rule.object.clone()).collect();
                objects.dedup();
                let texts = rules
                    .iter()
                    .map(|reference| {
                        let path =
                            engine.rule(reference).map(|rule| rule.path.to_string()).unwrap_or_default();
                        format!("{} {path}", reference.object)
                    })
                    .collect();
                ("rules", objects, texts)
            }
            Because::DefaultDeny(objects) => ("default-deny", objects.clone(), Vec::new()),
            Because::NoPolicy => ("no-policy", Vec::new(), Vec::new()),
            Because::AllowLocalhost => ("allow-localhost", Vec::new(), Vec::new()),
            Because::Hairpin => ("hairpin", Vec::new(), Vec::new()),
        };
        let near_miss = (side.outcome == Outcome::Deny)
            .then(|| engine.explain(subject, side.direction, peer, flow).near_miss)
            .flatten()
            .map(|near| format!("{} {}: {}", near.rule.object, near.path, near.missed));
        ExplainSide {
            direction: side.direction,
            verdict: match side.outcome {
                Outcome::Allow => "allowed",
                Outcome::Deny => "denied",
                Outcome::Redirect(_) => "redirected",
            }
            .to_owned(),
            because: because.to_owned(),
            objects,
            rules,
            near_miss,
            node: None,
        }
    }
}

pub fn mac_text(mac: &[u8; 6]) -> String {
    mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// Resident memory of this process; 0 where /proc is not there.
pub(super) fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096);
    pages * u64::try_from(size).unwrap_or(4096)
}
