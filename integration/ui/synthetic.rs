//! A cluster that exists only as flows: as many workloads and flows a second as a test or a measurement wants,
//! the same ones each time (a counter is the only chance). Some of its text is hostile.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use sluice::api::backend::{Answer, Refusal};
use sluice::api::types::{Enforcement, ExplainSide};
use sluice::api::ui::source::{
    About, Governed, KnownPod, PolicyUse, Question, RuleUse, Suggestion, UiSource, Why,
};
use sluice::flow::ring::Ring;
use sluice::flow::{
    DecidedBy, Decision, EventKind, Flow, HttpVersion, L7, Observation, Party, PolicyPart, Verdict,
};
use sluice::model::{Direction, DropReason, Identity, Kind, Label, ObjectRef, Protocol};
use tokio::sync::broadcast;

/// What must never become markup, leave its line, or change direction unseen.
pub const HOSTILE: &str = "<img src=x onerror=\"document.title='owned'\">\u{202e}\u{1b}[31m</script>&lt;";

const SERVICES: [&str; 10] =
    ["frontend", "cart", "checkout", "catalog", "payments", "search", "users", "db", "queue", "mailer"];
/// Caller and called, by index into [`SERVICES`], with a port and an HTTP method.
const CALLS: [(usize, usize, u16, Option<&str>); 11] = [
    (0, 1, 8080, Some("GET")),
    (0, 2, 8080, Some("POST")),
    (0, 3, 8080, Some("GET")),
    (0, 5, 9200, None),
    (1, 7, 5432, None),
    (2, 4, 8443, Some("POST")),
    (2, 8, 5672, None),
    (3, 7, 5432, None),
    (4, 6, 8080, Some("GET")),
    (8, 9, 25, None),
    (5, 7, 5432, None),
];

#[derive(Clone, Debug)]
pub struct Pod {
    namespace: Arc<str>,
    name: Arc<str>,
    address: IpAddr,
}

/// See the module.
#[derive(Debug)]
pub struct Synthetic {
    pods: Vec<Pod>,
    ring: Mutex<Ring>,
    live: broadcast::Sender<Arc<Flow>>,
}

impl Synthetic {
    /// `count` workloads, ten to a namespace, and one round of flows.
    pub fn new(count: usize) -> Arc<Synthetic> {
        let teams = ["shop", "billing", "media", "search", "ops", "data", "edge", "auth"];
        let pods = (0..count)
            .map(|index| {
                let team = index / SERVICES.len();
                let namespace = match team / teams.len() {
                    0 => teams[team].to_owned(),
                    more => format!("{}-{more}", teams[team % teams.len()]),
                };
                let [_, a, b, c] = (index as u32 + 10).to_be_bytes();
                Pod {
                    namespace: namespace.into(),
                    name: SERVICES[index % SERVICES.len()].into(),
                    address: Ipv4Addr::new(10, 244 ^ a, b, c).into(),
                }
            })
            .collect();
        let synthetic = Arc::new(Synthetic {
            pods,
            ring: Mutex::new(Ring::new(65_536)),
            live: broadcast::channel(8192).0,
        });
        for step in 0..synthetic.round() {
            synthetic.push(step);
        }
        synthetic
    }

    /// Flows after which they repeat.
    fn round(&self) -> u64 {
        (self.pods.len().div_ceil(SERVICES.len()) * 16) as u64
    }

    /// Flows at this rate, for good.
    pub async fn run(self: Arc<Synthetic>, per_second: u64) {
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        let (mut step, mut owed) = (0, 0);
        loop {
            tick.tick().await;
            owed += per_second * 50;
            while owed >= 1000 {
                owed -= 1000;
                self.push(step);
                step += 1;
            }
        }
    }

    fn push(&self, step: u64) {
        let flow = Arc::new(self.flow(step));
        self.ring.lock().push(Arc::clone(&flow));
        // Nobody may be listening.
        self.live.send(flow).ok();
    }

    fn flow(&self, step: u64) -> Flow {
        let teams = self.pods.len().div_ceil(SERVICES.len()) as u64;
        let (kind, team) = (step % 16, (step / 16) % teams);
        let pod = |service: usize| {
            let index = (team as usize * SERVICES.len() + service).min(self.pods.len() - 1);
            self.party(&self.pods[index])
        };
        match kind {
            0..=10 => {
                let (from, to, port, method) = CALLS[kind as usize];
                let mut flow = connection(pod(from), pod(to), port, step);
                if let Some(method) = method {
                    flow.kind = EventKind::L7;
                    let path =
                        if team == 0 && step.is_multiple_of(3) { HOSTILE } else { "/api/v1/items?page=2" };
                    flow.l7 = Some(Box::new(L7::Http {
                        method: method.into(),
                        path: path.into(),
                        host: "backend".into(),
                        status: 200,
                        latency_us: 1200,
                        version: HttpVersion::default(),
                        mismatches: Vec::new(),
                    }));
                }
                allowed(flow)
            }
            11 => denied(connection(pod(0), pod(7), 5432, step)),
            12 => allowed(connection(pod(4), name("api.stripe.com", 10), 443, step)),
            13 => denied(connection(
                pod(9),
                name(if team % 2 == 0 { "paste.example" } else { HOSTILE }, 20),
                443,
                step,
            )),
            14 => {
                let mut flow = connection(pod(3), world(), 80, step);
                flow.direction = Direction::Egress;
                denied(flow)
            }
            _ => {
                let mut flow = connection(world(), pod(0), 443, step);
                flow.direction = Direction::Ingress;
                allowed(flow)
            }
        }
    }

    fn party(&self, pod: &Pod) -> Party {
        Party {
            labels: [Label::k8s("app", &pod.name)].into_iter().collect(),
            namespace: Some(Arc::clone(&pod.namespace)),
            pod: Some(Arc::clone(&pod.name)),
            ..Party::unknown(pod.address, Identity(300))
        }
    }
}

fn name(name: &str, last: u8) -> Party {
    Party { names: vec![name.into()], address: Ipv4Addr::new(203, 0, 113, last).into(), ..world() }
}

fn world() -> Party {
    Party {
        labels: [Label::reserved("world-ipv4")].into_iter().collect(),
        ..Party::unknown(Ipv4Addr::new(198, 51, 100, 7).into(), Identity::WORLD_IPV4)
    }
}

fn connection(source: Party, destination: Party, port: u16, step: u64) -> Flow {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Flow {
        time_ns: now.as_nanos() as u64,
        node: "node1".into(),
        kind: EventKind::PolicyVerdict,
        verdict: Verdict::Forwarded,
        direction: Direction::Egress,
        sequence: step,
        source: Arc::new(source),
        source_port: Some(32_768 + (step % 20_000) as u16),
        source_name: None,
        destination: Arc::new(destination),
        destination_port: Some(port),
        destination_name: None,
        protocol: Protocol::Tcp,
        tcp_flags: 2,
        icmp: None,
        is_reply: false,
        is_established: false,
        service: None,
        decision: Arc::new(Decision::none()),
        length: 60,
        count: 1,
        observation: Observation::FromEndpoint,
        interface: None,
        l7: None,
    }
}

fn policy(name: &str) -> ObjectRef {
    ObjectRef::new(Kind::NetworkPolicy, "shop", name)
}

fn allowed(mut flow: Flow) -> Flow {
    let rules = vec!["spec.ingress[0]".into()];
    let by = DecidedBy::Rules(vec![PolicyPart { object: policy("intended"), rules }]);
    flow.decision = Arc::new(Decision { by, revision: 1, matched: None });
    flow
}

fn denied(mut flow: Flow) -> Flow {
    flow.kind = EventKind::Drop;
    flow.verdict = Verdict::Dropped(DropReason::PolicyDenied);
    let by = DecidedBy::DefaultDeny(vec![policy("default-deny")]);
    flow.decision = Arc::new(Decision { by, revision: 1, matched: None });
    flow
}

fn ready<T: Send + 'static>(value: T) -> Answer<'static, T> {
    Box::pin(std::future::ready(Ok(value)))
}

impl UiSource for Synthetic {
    fn about(&self) -> Answer<'_, About> {
        ready(About {
            version: "0.0.0".into(),
            cluster: "synthetic".into(),
            nodes: vec!["node1".into()],
            health: "ok".into(),
            ..About::default()
        })
    }

    fn pods(&self) -> Answer<'_, Vec<KnownPod>> {
        let known = |pod: &Pod| KnownPod {
            namespace: Arc::clone(&pod.namespace),
            name: Arc::clone(&pod.name),
            workload: Arc::clone(&pod.name),
        };
        ready(self.pods.iter().map(known).collect())
    }

    fn recent(&self, limit: usize) -> Vec<Arc<Flow>> {
        let ring = self.ring.lock();
        let mut flows: Vec<_> = ring.newest().take(limit).cloned().collect();
        flows.reverse();
        flows
    }

    fn follow(&self) -> broadcast::Receiver<Arc<Flow>> {
        self.live.subscribe()
    }

    fn why(&self, question: Question) -> Answer<'_, Why> {
        ready(Why {
            verdict: "denied".into(),
            sides: vec![ExplainSide {
                direction: Direction::Egress,
                verdict: "denied".into(),
                because: "default-deny".into(),
                objects: vec![policy("default-deny")],
                rules: Vec::new(),
                near_miss: Some(format!("NetworkPolicy shop/intended spec.egress[0]: {HOSTILE}")),
                node: None,
            }],
            suggestion: Some(Suggestion {
                yaml: Some(format!(
                    "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n# port {}\n# {HOSTILE}\n",
                    question.port
                )),
                notes: vec!["This one address.".into()],
                verified: true,
            }),
            missing: Vec::new(),
        })
    }

    fn policies(&self) -> Answer<'_, Vec<PolicyUse>> {
        let rule = |path: &str, hits| RuleUse {
            path: path.into(),
            direction: Direction::Ingress,
            action: "allow".into(),
            hits: Some(hits),
            idle: hits == 0,
        };
        let default_deny = vec![Direction::Ingress, Direction::Egress];
        ready(vec![
            PolicyUse {
                object: policy("default-deny"),
                selects: vec!["shop/frontend".into(), "shop/db".into()],
                default_deny,
                rules: Vec::new(),
            },
            PolicyUse {
                object: policy("intended"),
                selects: vec!["shop/db".into()],
                default_deny: vec![Direction::Ingress],
                rules: vec![rule("spec.ingress[0]", 1234), rule("spec.ingress[1]", 0)],
            },
        ])
    }

    fn manifest(&self, object: ObjectRef) -> Answer<'_, String> {
        if &*object.name == "absent" {
            return Box::pin(std::future::ready(Err(Refusal::NotFound(format!("no {object}")))));
        }
        ready(format!("kind: {}\nmetadata: {{name: {}}}\n# {HOSTILE}\n", object.kind, object.name))
    }

    fn governed(&self) -> Answer<'_, Vec<Governed>> {
        let side = Enforcement { default_deny: true, policies: vec![policy("default-deny")] };
        let governed = |pod: &Pod| Governed {
            pod: format!("{}/{}", pod.namespace, pod.name),
            identity: 300,
            labels: vec![format!("k8s:app={}", pod.name)],
            ingress: side.clone(),
            egress: side.clone(),
        };
        ready(self.pods.iter().map(governed).collect())
    }
}
