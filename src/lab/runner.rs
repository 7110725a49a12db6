//! `sluice lab test`: a scenario's steps as real traffic.
//!
//! Each family's run has a lab of its own. A step's patience follows from what it expects: silence
//! is waited for briefly, an answer as long as a busy machine may need, because an answer ends the
//! wait and silence does not.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::LabError;
use super::control::ControlError;
use super::dns::Carrier;
use super::listener::sctp_available;
use super::probe::{
    DnsQuestion, HttpRequest, Observed, ServerName as TlsName, Source, TcpFlow, UdpFlow, lookup, ping,
};
use super::scenario::cluster::{Cluster, of_family};
use super::scenario::{
    Action, Apply, ApplyExpect, Component, Connect, Destination, DnsTransport, Endpoint, Expect, Expected,
    Http, Lookup, Place, PreparedScenario, ServerName, Step, StepProtocol,
};
use super::session::{Mode, Session};
use super::topology::{Role, Site};
use super::witness::Witness;
use crate::api::client::ClientError;
use crate::k8s::{self, Document, ParseOptions};
use crate::model::{Family, ObjectRef, Protocol, TargetPort};

/// How long an expected silence is listened to.
const SILENCE: Duration = Duration::from_millis(600);
/// How long an expected answer may take.
const ANSWER: Duration = Duration::from_secs(4);
/// A name that the cluster DNS always knows.
const DNS_PROBE: &str = "kube-dns.kube-system.svc.cluster.local";
const DNS_PORT: u16 = 53;

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    Passed,
    Failed {
        expected: String,
        got: String,
    },
    Skipped {
        reason: String,
    },
    /// A step that judges nothing.
    Done,
    /// Not a step of this family's run.
    OtherFamily,
}

/// One step of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepReport {
    pub title: String,
    pub line: u32,
    pub family: Family,
    pub ending: Ending,
}

/// The run cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error("{0}")]
    Scenario(String),
}

enum Connection {
    Tcp { flow: TcpFlow, host: String },
    Udp(UdpFlow),
}

struct Run {
    parse: ParseOptions,
    family: Family,
    cluster: Cluster,
    session: Session,
    connections: BTreeMap<String, Connection>,
}

/// Runs a scenario for one family in a lab named `lab`, and removes the lab.
pub async fn run(
    prepared: &PreparedScenario,
    family: Family,
    lab: &str,
    mode: &Mode,
    mut each: impl FnMut(StepReport),
) -> Result<(), RunError> {
    let scenario = &prepared.scenario;
    let documents = &prepared.manifest.documents;
    let cluster = Cluster::new(scenario, documents);
    let session = Session::start(lab, mode, &scenario.options, &cluster, documents).await?;
    let parse =
        ParseOptions { empty_rule_lists: scenario.options.empty_rule_lists, ..ParseOptions::default() };
    let mut run = Run { parse, family, cluster, session, connections: BTreeMap::new() };
    let mut result = Ok(());
    for step in &scenario.steps {
        match run.step(step).await {
            Ok(ending) => {
                each(StepReport { title: title(step), line: step.position.line, family, ending });
            }
            Err(error) => {
                result = Err(error);
                break;
            }
        }
    }
    drop(run.connections);
    run.session.stop()?;
    result
}

/// A step in a few words.
fn title(step: &Step) -> String {
    let what = match &step.action {
        Action::Connect(connect) => format!("{} -> {}", connect.from, describe(connect)),
        Action::Open { connection, connect } => {
            format!("open {connection}: {} -> {}", connect.from, describe(connect))
        }
        Action::Send { connection, .. } => format!("send {connection}"),
        Action::Lookup(lookup) => format!("{} asks for {}", lookup.from, lookup.name),
        Action::Apply(_) => "apply".to_owned(),
        Action::Delete(object) => format!("delete {object}"),
        Action::External(change) => format!("external {} changes", change.name),
        Action::Restart { component, node } => {
            format!("restart {component:?} on {}", node.as_deref().unwrap_or("every node"))
        }
        Action::Wait(time) => format!("wait {} s", time.as_secs_f64()),
    };
    match &step.name {
        Some(name) => format!("{what} ({name})"),
        None => what,
    }
}

fn describe(connect: &Connect) -> String {
    let protocol = match connect.transport {
        StepProtocol::Tcp => String::new(),
        other => format!(" over {other:?}").to_uppercase().replace("OVER", "over"),
    };
    match &connect.http {
        Some(http) => format!("{}{protocol} {} {}", connect.to_text, http.method, http.path),
        None => format!("{}{protocol}", connect.to_text),
    }
}

/// Where a step's traffic goes.
enum Target {
    Address(SocketAddr),
    /// There is no such address in this family.
    OtherFamily,
    /// The name did not resolve; that is the step's outcome.
    Outcome(Observed),
    Skip(String),
}

impl Run {
    async fn step(&mut self, step: &Step) -> Result<Ending, RunError> {
        match &step.action {
            Action::Connect(connect) => Ok(self.connect(connect, None).await),
            Action::Open { connection, connect } => Ok(self.connect(connect, Some(connection)).await),
            Action::Send { connection, http, expected } => {
                Ok(self.send(connection, http.as_ref(), expected).await)
            }
            Action::Lookup(lookup) => Ok(self.lookup(lookup).await),
            Action::Apply(apply) => self.apply(apply).await,
            Action::Delete(object) => self.delete(object).await,
            Action::External(change) => {
                self.cluster.change_external(change).map_err(|e| RunError::Scenario(e.to_string()))?;
                self.session.follow(&self.cluster, &[]).await?;
                Ok(Ending::Done)
            }
            Action::Restart { component, node } => self.restart(*component, node.as_deref()).await,
            Action::Wait(time) => {
                tokio::time::sleep(*time).await;
                Ok(Ending::Done)
            }
        }
    }

    async fn connect(&mut self, connect: &Connect, keep: Option<&String>) -> Ending {
        let Some(source) = self.source(&connect.from) else {
            return Ending::Skipped { reason: format!("the lab has no {}", connect.from) };
        };
        if connect.transport == StepProtocol::Sctp && !sctp_available() {
            return Ending::Skipped { reason: "this kernel has no SCTP sockets".to_owned() };
        }
        let patience = patience(connect.expected.expect);
        let witness = Witness::new(&source, self.protocol(connect.transport));
        let target = match self.target(connect, &source, patience).await {
            Target::Address(target) => target,
            Target::OtherFamily => return Ending::OtherFamily,
            Target::Skip(reason) => return Ending::Skipped { reason },
            Target::Outcome(observed) => return self.judge(&connect.expected, observed, &witness).await,
        };
        let (observed, connection) = self.send_first(connect, &source, target, patience).await;
        if let (Some(name), Some(connection)) = (keep, connection) {
            self.connections.insert(name.clone(), connection);
        }
        self.judge(&connect.expected, observed, &witness).await
    }

    async fn send_first(
        &self,
        connect: &Connect,
        source: &Source,
        target: SocketAddr,
        patience: Duration,
    ) -> (Observed, Option<Connection>) {
        let speaks_dns = target.port() == DNS_PORT && self.is_cluster_dns(&connect.to.place);
        let question = |carrier| DnsQuestion { name: DNS_PROBE.to_owned(), kind: "A".to_owned(), carrier };
        match connect.transport {
            StepProtocol::Icmp => (ping(source, target.ip(), patience).await, None),
            StepProtocol::Udp if speaks_dns => {
                (lookup(source, target, &question(Carrier::Udp), patience).await.0, None)
            }
            StepProtocol::Udp => {
                let (observed, flow) = UdpFlow::open(source, target, patience).await;
                (observed, flow.map(Connection::Udp))
            }
            StepProtocol::Tcp if speaks_dns && connect.http.is_none() => {
                (lookup(source, target, &question(Carrier::Tcp), patience).await.0, None)
            }
            StepProtocol::Tcp => {
                let host = connect.to_text.clone();
                let request = request(connect.http.as_ref(), &host);
                let tls = tls_name(connect, target);
                let (observed, flow) = TcpFlow::open(source, target, tls.as_ref(), &request, patience).await;
                (observed, flow.map(|flow| Connection::Tcp { flow, host }))
            }
            StepProtocol::Sctp => (super::probe::sctp(source, target, patience).await, None),
        }
    }

    async fn send(&mut self, name: &str, http: Option<&Http>, expected: &Expected) -> Ending {
        let patience = patience(expected.expect);
        let observed = match self.connections.get_mut(name) {
            None => {
                return Ending::Failed {
                    expected: expected.expect.as_str().to_owned(),
                    got: format!("{name} was never open"),
                };
            }
            Some(Connection::Udp(flow)) => flow.send(patience).await,
            Some(Connection::Tcp { flow, host }) => flow.send(&request(http, host), patience).await,
        };
        self.compare(expected, &observed)
    }

    async fn lookup(&mut self, step: &Lookup) -> Ending {
        let Some(source) = self.source(&step.from) else {
            return Ending::Skipped { reason: format!("the lab has no {}", step.from) };
        };
        let patience = patience(step.expected.expect);
        let protocol = match step.transport {
            DnsTransport::Udp => Protocol::Udp,
            DnsTransport::Tcp => Protocol::Tcp,
        };
        let witness = Witness::new(&source, protocol);
        let server = match &step.server {
            None => self.dns_server(),
            Some(destination) => match self.place(destination) {
                Some(address) => Some(SocketAddr::new(address, destination.port.unwrap_or(DNS_PORT))),
                None => return Ending::OtherFamily,
            },
        };
        let Some(server) = server else {
            return Ending::Skipped { reason: "the cluster has no DNS in this family".to_owned() };
        };
        let question = DnsQuestion {
            name: step.name.clone(),
            kind: step.record.clone().unwrap_or_else(|| self.address_record()),
            carrier: match step.transport {
                DnsTransport::Udp => Carrier::Udp,
                DnsTransport::Tcp => Carrier::Tcp,
            },
        };
        let (observed, _) = lookup(&source, server, &question, patience).await;
        self.judge(&step.expected, observed, &witness).await
    }

    async fn apply(&mut self, apply: &Apply) -> Result<Ending, RunError> {
        let manifest = k8s::parse_at(&apply.origin, &apply.text, &self.parse);
        let refused = match self.session.control_mut() {
            // The server must refuse what the parser refuses, and must not change anything.
            Some((control, _)) if !manifest.is_valid() => match control.apply(apply.text.clone()).await {
                Err(ControlError::Api(ClientError::Refused { status: 422, .. })) => true,
                Ok(_) => false,
                Err(error) => return Err(error.into()),
            },
            _ => !manifest.is_valid(),
        };
        match (apply.expect, refused) {
            (ApplyExpect::Invalid, true) => Ok(Ending::Passed),
            (ApplyExpect::Applied, true) => Ok(Ending::Failed {
                expected: "applied".to_owned(),
                got: format!("invalid: {}", first_problem(&manifest)),
            }),
            (expect, false) => {
                let before = self.cluster.clone();
                self.cluster.apply(&manifest.documents);
                match self.follow(&manifest.documents).await {
                    Ok(()) if expect == ApplyExpect::Applied => Ok(Ending::Done),
                    Ok(()) => {
                        Ok(Ending::Failed { expected: "invalid".to_owned(), got: "applied".to_owned() })
                    }
                    Err(RunError::Control(ControlError::Api(ClientError::Refused {
                        status: 422,
                        error,
                        ..
                    }))) => {
                        self.cluster = before;
                        self.follow(&[]).await?;
                        match expect {
                            ApplyExpect::Invalid => Ok(Ending::Passed),
                            ApplyExpect::Applied => Ok(Ending::Failed {
                                expected: "applied".to_owned(),
                                got: format!("invalid: {error}"),
                            }),
                        }
                    }
                    Err(error) => Err(error),
                }
            }
        }
    }

    async fn follow(&mut self, documents: &[Document]) -> Result<(), RunError> {
        Ok(self.session.follow(&self.cluster, documents).await?)
    }

    async fn delete(&mut self, object: &ObjectRef) -> Result<Ending, RunError> {
        if let Err(absent) = self.cluster.delete(object) {
            return Ok(Ending::Failed { expected: format!("{object} deleted"), got: absent.to_string() });
        }
        self.follow(&[]).await?;
        Ok(Ending::Done)
    }

    async fn restart(&mut self, component: Component, node: Option<&str>) -> Result<Ending, RunError> {
        let nodes: Vec<String> = match node {
            Some(node) => vec![node.to_owned()],
            None => self.cluster.nodes().to_vec(),
        };
        let Some((control, lab)) = self.session.control_mut() else {
            return Ok(Ending::Skipped { reason: "this lab has no agents".to_owned() });
        };
        // The proxies are tasks of the agent: restarting one is restarting it.
        let _: Component = component;
        for node in nodes {
            control.restart_agent(lab, &node).await?;
        }
        Ok(Ending::Done)
    }

    fn source(&self, from: &Endpoint) -> Option<Source> {
        let topology = self.session.lab().topology();
        let (site, owner) = match from {
            Endpoint::Pod { namespace, name } => {
                let pod = topology.pod(namespace, name)?;
                (pod.site(), pod.site())
            }
            Endpoint::Node(name) => (Site::Node(name.clone()), Site::Node(name.clone())),
            Endpoint::External(name) => (Site::External(name.clone()), Site::External(name.clone())),
            Endpoint::Gateway(_) => return None,
        };
        Some(Source {
            netns: self.session.lab().netns(&site),
            address: topology.address(&owner, self.family),
        })
    }

    async fn target(&self, connect: &Connect, source: &Source, patience: Duration) -> Target {
        let Some(port) = connect.to.port.or((connect.transport == StepProtocol::Icmp).then_some(0)) else {
            return Target::Skip("the step has no port".to_owned());
        };
        if source.address.is_none() {
            return Target::OtherFamily;
        }
        match &connect.to.place {
            Place::Name(name) => {
                let Some(server) = self.dns_server() else {
                    return Target::Skip("the cluster has no DNS in this family".to_owned());
                };
                let question =
                    DnsQuestion { name: name.clone(), kind: self.address_record(), carrier: Carrier::Udp };
                let (observed, addresses) = lookup(source, server, &question, patience).await;
                match (observed, addresses.first()) {
                    (Observed::Answered, Some(address)) => Target::Address(SocketAddr::new(*address, port)),
                    (Observed::Answered, None) => {
                        Target::Outcome(Observed::Strange(format!("{name} has no address")))
                    }
                    (observed, _) => Target::Outcome(observed),
                }
            }
            Place::Service { namespace, name } if self.session.control().is_none() => {
                self.open_backend(namespace, name, port)
            }
            _ => match self.place(&connect.to) {
                Some(address) => Target::Address(SocketAddr::new(address, port)),
                None => Target::OtherFamily,
            },
        }
    }

    /// Without agents nobody translates Services: the first backend stands for them.
    fn open_backend(&self, namespace: &str, name: &str, port: u16) -> Target {
        let Some(service) = self.cluster.service(namespace, name) else {
            return Target::Skip(format!("there is no Service {namespace}/{name}"));
        };
        let Some(pod) = self.cluster.backing_pods(service).next() else {
            return Target::Skip("without agents, only Services with pods can be reached".to_owned());
        };
        let Some(entry) = service.ports.iter().find(|entry| entry.port == port) else {
            return Target::Skip(format!("the Service has no port {port}"));
        };
        let target = match &entry.target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => {
                pod.ports.iter().find(|port| port.name.as_ref() == Some(name)).map(|port| port.port)
            }
        };
        match (of_family(&pod.addresses, self.family), target) {
            (Some(address), Some(port)) => Target::Address(SocketAddr::new(address, port)),
            _ => Target::OtherFamily,
        }
    }

    /// The address of a destination that is no DNS name; `None` when it has none in this family.
    fn place(&self, destination: &Destination) -> Option<IpAddr> {
        let topology = self.session.lab().topology();
        match &destination.place {
            Place::Pod { namespace, name } => {
                topology.address(&topology.pod(namespace, name)?.site(), self.family)
            }
            Place::Service { namespace, name } => {
                let service = self.cluster.service(namespace, name)?;
                let pods = self.cluster.backing_pods(service).flat_map(|pod| pod.addresses.iter().copied());
                let addresses: Vec<IpAddr> =
                    if service.headless { pods.collect() } else { service.cluster_ips.clone() };
                of_family(&addresses, self.family)
            }
            Place::Node(name) => topology.address(&Site::Node(name.clone()), self.family),
            Place::External(name) => topology.address(&Site::External(name.clone()), self.family),
            Place::Address(address) => Some(*address).filter(|address| Family::of(*address) == self.family),
            Place::Name(_) => None,
        }
    }

    fn is_cluster_dns(&self, place: &Place) -> bool {
        match place {
            Place::Pod { namespace, name } => {
                let topology = self.session.lab().topology();
                topology.pod(namespace, name).is_some_and(|pod| pod.role == Role::ClusterDns)
            }
            Place::Service { namespace, name } => {
                (namespace.as_str(), name.as_str()) == ("kube-system", "kube-dns")
            }
            _ => false,
        }
    }

    fn dns_server(&self) -> Option<SocketAddr> {
        self.session.lab().state().dns_server(self.family).map(|address| SocketAddr::new(address, DNS_PORT))
    }

    fn address_record(&self) -> String {
        match self.family {
            Family::IPv4 => "A".to_owned(),
            Family::IPv6 => "AAAA".to_owned(),
        }
    }

    fn protocol(&self, transport: StepProtocol) -> Protocol {
        match (transport, self.family) {
            (StepProtocol::Tcp, _) => Protocol::Tcp,
            (StepProtocol::Udp, _) => Protocol::Udp,
            (StepProtocol::Sctp, _) => Protocol::Sctp,
            (StepProtocol::Icmp, Family::IPv4) => Protocol::Icmp,
            (StepProtocol::Icmp, Family::IPv6) => Protocol::Icmpv6,
        }
    }

    async fn judge(&self, expected: &Expected, observed: Observed, witness: &Witness) -> Ending {
        let ending = self.compare(expected, &observed);
        let (Ending::Passed, Some(because), Some(control)) =
            (&ending, &expected.because, self.session.control())
        else {
            return ending;
        };
        match witness.check(control, because, expected.expect == Expect::Allowed).await {
            Ok(()) => Ending::Passed,
            Err(got) => Ending::Failed {
                expected: format!(
                    "{} because of {}",
                    expected.expect.as_str(),
                    super::witness::describe(because)
                ),
                got,
            },
        }
    }

    fn compare(&self, expected: &Expected, observed: &Observed) -> Ending {
        if let Observed::Unsupported(reason) = observed {
            return Ending::Skipped { reason: reason.clone() };
        }
        // Without agents nothing is denied, so only what is allowed can be judged.
        if self.session.control().is_none() && expected.expect != Expect::Allowed {
            return Ending::Skipped { reason: "this lab has no agents".to_owned() };
        }
        let passed = match expected.expect {
            Expect::Allowed => *observed == Observed::Answered,
            Expect::Denied => *observed == Observed::Silence,
            Expect::Rejected => matches!(observed, Observed::Rejected(_)),
            Expect::Http400 => *observed == Observed::HttpStatus(400),
            Expect::Http403 => *observed == Observed::HttpStatus(403),
            Expect::Http307 => *observed == Observed::HttpStatus(307),
            Expect::DnsRefused => *observed == Observed::DnsRefused,
            Expect::TlsReset => *observed == Observed::TlsReset,
        };
        if passed {
            return Ending::Passed;
        }
        Ending::Failed { expected: expected.expect.as_str().to_owned(), got: observed.to_string() }
    }
}

fn patience(expect: Expect) -> Duration {
    match expect {
        Expect::Denied => SILENCE,
        _ => ANSWER,
    }
}

fn request(http: Option<&Http>, target: &str) -> HttpRequest {
    match http {
        None => HttpRequest::get(target),
        Some(http) => HttpRequest {
            method: http.method.clone(),
            path: http.path.clone(),
            host: http.host.clone().unwrap_or_else(|| target.to_owned()),
            headers: http.headers.clone(),
        },
    }
}

/// TLS on 443 and wherever a server name is asked for.
fn tls_name(connect: &Connect, target: SocketAddr) -> Option<TlsName> {
    match (&connect.server_name, &connect.to.place) {
        (Some(ServerName::Absent), _) => Some(TlsName::None),
        (Some(ServerName::Name(name)), _) => Some(TlsName::Name(name.clone())),
        (None, _) if target.port() != 443 => None,
        (None, Place::Name(name)) => Some(TlsName::Name(name.clone())),
        (None, _) => Some(TlsName::None),
    }
}

fn first_problem(manifest: &k8s::Manifest) -> String {
    manifest.problems.first().map_or_else(String::new, ToString::to_string)
}
