//! Runs the steps of a scenario, once for each IP family, each time from a fresh state.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::check::check;
use super::layer7::Payload;
use super::names::address_record;
use super::traffic::{Got, Seen, Sender, Trouble, flow_to};
use super::world::{Impossible, World};
use super::{DISAGREE, ThirdJudge};
use crate::k8s::{self, Problem, Severity};
use crate::lab::dns::Carrier;
use crate::lab::lint;
use crate::lab::report::{ScenarioResult, Status, StepResult};
use crate::lab::scenario::cluster::{Cluster, DNS_NAME, DNS_NAMESPACE};
use crate::lab::scenario::{
    Action, Apply, ApplyExpect, Component, Connect, Destination, DnsTransport, Expect, Http, Lookup, Place,
    PreparedScenario, Scenario, ServerName, Step, StepProtocol, parse_options,
};
use crate::model::Family;
use crate::policy::decision::Outcome;
use crate::policy::map_state::Proxy;
use crate::policy::oracle::Flow;

/// The file describes a cluster that cannot be.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Refused {
    pub problems: Vec<Problem>,
}

/// Judges a scenario.
pub fn run(file: &str, prepared: &PreparedScenario) -> Result<ScenarioResult, Refused> {
    judged(file, prepared, None)
}

/// Judges a scenario, and has every connection judged by `third` too.
pub fn run_with(
    file: &str,
    prepared: &PreparedScenario,
    third: Rc<dyn ThirdJudge>,
) -> Result<ScenarioResult, Refused> {
    judged(file, prepared, Some(third))
}

fn judged(
    file: &str,
    prepared: &PreparedScenario,
    third: Option<Rc<dyn ThirdJudge>>,
) -> Result<ScenarioResult, Refused> {
    let scenario = &prepared.scenario;
    let cluster = Cluster::new(scenario, &prepared.manifest.documents);
    let mut steps = Vec::new();
    let mut ran: BTreeSet<usize> = BTreeSet::new();
    for family in &scenario.options.families {
        let mut world =
            World::new(&scenario.options, cluster.clone()).map_err(|why| refused(scenario, &why))?;
        world.third.clone_from(&third);
        let mut run = Run { family: *family, scenario, world, connections: BTreeMap::new() };
        for (index, step) in scenario.steps.iter().enumerate() {
            if let Some(status) = run.step(step) {
                ran.insert(index);
                steps.push(result(index, *family, step, status));
            }
        }
    }
    for (index, step) in scenario.steps.iter().enumerate().filter(|(index, _)| !ran.contains(index)) {
        let status = Status::Failed {
            expected: "one IP family that both ends have".to_owned(),
            got: "none".to_owned(),
            because: "the step runs in no family of this scenario".to_owned(),
        };
        steps.push(result(index, scenario.options.families[0], step, status));
    }
    Ok(ScenarioResult { file: file.to_owned(), name: scenario.name.clone(), steps })
}

fn result(index: usize, family: Family, step: &Step, status: Status) -> StepResult {
    StepResult { number: index + 1, family, title: step.title(), position: step.position.clone(), status }
}

fn refused(scenario: &Scenario, why: &Impossible) -> Refused {
    let problem = |message: &String| Problem {
        position: scenario.position.clone(),
        severity: Severity::Error,
        object: Some(format!("Scenario {}", scenario.name)),
        code: None,
        field_path: String::new(),
        message: message.clone(),
    };
    Refused { problems: why.iter().map(problem).collect() }
}

/// What left the sender.
struct Sent {
    sender: Sender,
    flow: Flow,
    payload: Payload,
}

/// A connection that stays open.
struct Connection {
    sender: Sender,
    flow: Flow,
    /// Names that owned the destination when it was opened.
    names: BTreeSet<String>,
    connect: Connect,
    payload: Payload,
    state: ConnectionState,
}

enum ConnectionState {
    Open,
    /// It never came about, or ended; why.
    Closed(String),
}

struct Run<'s> {
    family: Family,
    scenario: &'s Scenario,
    world: World,
    connections: BTreeMap<String, Connection>,
}

fn failed(expected: &str, got: impl Into<String>, because: impl Into<String>) -> Status {
    Status::Failed { expected: expected.to_owned(), got: got.into(), because: because.into() }
}

impl Run<'_> {
    /// `None`: the step does not run in this family.
    fn step(&mut self, step: &Step) -> Option<Status> {
        let (expected, seen) = match &step.action {
            Action::Connect(connect) => (&connect.expected, self.connect(connect).map(|(seen, _)| seen)),
            Action::Open { connection, connect } => (&connect.expected, self.open(connection, connect)),
            Action::Send { connection, http, expected } => (expected, self.send(connection, http.as_ref())?),
            Action::Lookup(lookup) => (&lookup.expected, self.lookup(lookup)),
            action => return Some(self.change(action)),
        };
        match seen {
            Ok(seen) => Some(check(expected, &seen)),
            Err(Trouble::OtherFamily) => None,
            Err(Trouble::Broken(what)) => Some(failed(expected.expect.as_str(), "nothing to judge", what)),
            Err(Trouble::Disagree(disagreement)) => {
                Some(failed(expected.expect.as_str(), DISAGREE, disagreement.to_string()))
            }
        }
    }

    /// Steps that change something.
    fn change(&mut self, action: &Action) -> Status {
        let done = match action {
            Action::Apply(apply) => return self.apply(apply),
            Action::Delete(reference) => {
                let mut next = self.world.cluster.clone();
                match next.delete(reference) {
                    Ok(()) => self.world.change(next),
                    Err(absent) => Err(vec![absent.to_string()]),
                }
            }
            Action::External(change) => {
                let mut next = self.world.cluster.clone();
                match next.change_external(change) {
                    Ok(()) => {
                        self.world.replace_externals(next);
                        Ok(())
                    }
                    Err(absent) => Err(vec![absent.to_string()]),
                }
            }
            Action::Restart { component, node } => self.restart(*component, node.as_deref()),
            Action::Wait(time) => {
                self.world.pass(*time);
                Ok(())
            }
            Action::Connect(_) | Action::Open { .. } | Action::Send { .. } | Action::Lookup(_) => Ok(()),
        };
        match done {
            Ok(()) => Status::Passed,
            Err(problems) => failed("it is done", "refused", problems.join("; ")),
        }
    }

    /// A proxy keeps no policy and no names of its own: its restart changes nothing here.
    fn restart(&mut self, component: Component, node: Option<&str>) -> Result<(), Impossible> {
        let nodes: Vec<String> = match node {
            Some(node) if self.world.cluster.node(node).is_none() => {
                return Err(vec![format!("node {node} does not exist")]);
            }
            Some(node) => vec![node.to_owned()],
            None => self.world.cluster.nodes().to_vec(),
        };
        match component {
            Component::Agent => self.world.restart(&nodes),
            Component::HttpProxy | Component::DnsProxy => Ok(()),
        }
    }

    fn apply(&mut self, apply: &Apply) -> Status {
        let manifest = k8s::parse_at(&apply.origin, &apply.text, &parse_options(&self.scenario.options));
        let mut problems: Vec<String> = manifest.problems.iter().map(ToString::to_string).collect();
        let foreign =
            |other: &k8s::OtherDocument| format!("{}: a {} cannot be applied", other.position, other.kind);
        problems.extend(manifest.others.iter().map(foreign));
        if problems.is_empty() {
            let mut next = self.world.cluster.clone();
            next.apply(&manifest.documents);
            problems = self.world.change(next).err().unwrap_or_default();
        }
        match (apply.expect, problems.is_empty()) {
            (ApplyExpect::Applied, true) => {}
            (ApplyExpect::Invalid, false) => {}
            (ApplyExpect::Applied, false) => return failed("applied", "invalid", problems.join("; ")),
            (ApplyExpect::Invalid, true) => {
                return failed(
                    "invalid",
                    "applied",
                    "every object is valid, and the transaction went through",
                );
            }
        }
        match &apply.lint {
            None => Status::Passed,
            Some(codes) => lint::check(&apply.text, codes),
        }
    }

    fn connect(&mut self, connect: &Connect) -> Result<(Seen, Option<Sent>), Trouble> {
        let sender = self.world.sender(&connect.from, self.family)?;
        let address = match &connect.to.place {
            Place::Name(name) => match self.resolve(&sender, name)? {
                Ok(address) => address,
                Err(seen) => return Ok((seen, None)),
            },
            place => self.world.address_of(place, self.family)?,
        };
        let flow = match flow_to(&self.world, &sender, address, connect.to.port, connect.transport) {
            Ok(flow) => flow,
            Err(seen) => return Ok((seen, None)),
        };
        let payload = self.payload(connect, &flow);
        let seen = self.world.exchange(&flow, &payload, &BTreeSet::new())?;
        Ok((seen, Some(Sent { sender, flow, payload })))
    }

    /// What the sender says: a request, a ClientHello, a query to the cluster's DNS, or an echo.
    fn payload(&self, connect: &Connect, flow: &Flow) -> Payload {
        if let Some(server_name) = &connect.server_name {
            let name = match server_name {
                ServerName::Absent => None,
                ServerName::Name(name) => Some(name.clone()),
            };
            return Payload::Tls { name };
        }
        if let Some(http) = &connect.http {
            return request(http, &connect.to_text);
        }
        if flow.port == 53
            && matches!(connect.transport, StepProtocol::Tcp | StepProtocol::Udp)
            && self.world.is_cluster_dns(flow.destination)
        {
            return Payload::Dns { name: format!("{DNS_NAME}.{DNS_NAMESPACE}.svc.cluster.local") };
        }
        match (connect.transport, connect.to.port, &connect.to.place) {
            (StepProtocol::Tcp, Some(443), Place::Name(name)) => Payload::Tls { name: Some(name.clone()) },
            (StepProtocol::Tcp, Some(443), _) => Payload::Tls { name: None },
            (StepProtocol::Tcp, _, _) => request(&Http::default(), &connect.to_text),
            (StepProtocol::Udp | StepProtocol::Sctp | StepProtocol::Icmp, _, _) => Payload::Bytes,
        }
    }

    fn open(&mut self, name: &str, connect: &Connect) -> Result<Seen, Trouble> {
        let (seen, made) = self.connect(connect)?;
        if let Some(Sent { sender, flow, payload }) = made {
            let names = match &sender.node {
                Some(node) => self.world.oracle.fresh_names(node, flow.destination),
                None => BTreeSet::new(),
            };
            let state = state_after(&seen, ConnectionState::Closed("it was never established".to_owned()));
            let connect = connect.clone();
            self.connections
                .insert(name.to_owned(), Connection { sender, flow, names, connect, payload, state });
        } else {
            self.connections.remove(name);
        }
        Ok(seen)
    }

    /// `None`: the connection was opened in the other family's run only.
    fn send(&mut self, name: &str, http: Option<&Http>) -> Option<Result<Seen, Trouble>> {
        let Some(connection) = self.connections.get_mut(name) else {
            let opened = self.scenario.steps.iter().find_map(|step| match &step.action {
                Action::Open { connection, connect } if connection == name => Some(connect),
                _ => None,
            })?;
            let other_family =
                matches!(self.world.sender(&opened.from, self.family), Err(Trouble::OtherFamily))
                    || matches!(
                        self.world.address_of(&opened.to.place, self.family),
                        Err(Trouble::OtherFamily)
                    );
            return (!other_family)
                .then(|| Err(Trouble::Broken(format!("the connection {name} was never opened"))));
        };
        if let ConnectionState::Closed(why) = &connection.state {
            return Some(Err(Trouble::Broken(format!("the connection {name} is closed: {why}"))));
        }
        let payload = match http {
            None => connection.payload.clone(),
            Some(http) if connection.connect.transport == StepProtocol::Tcp => {
                request(http, &connection.connect.to_text)
            }
            Some(_) => return Some(Err(Trouble::Broken("http goes with TCP".to_owned()))),
        };
        // Both ends are still who they were.
        if self.world.sender(&connection.connect.from, self.family).as_ref() != Ok(&connection.sender) {
            return Some(Ok(Seen { got: Got::NoAnswer("the sender is gone".to_owned()), sides: Vec::new() }));
        }
        let seen = self.world.exchange(&connection.flow, &payload, &connection.names);
        if let Ok(seen) = &seen {
            connection.state = state_after(seen, ConnectionState::Open);
        }
        Some(seen)
    }

    /// Asks the cluster's DNS for an address of the run's family.
    fn resolve(&mut self, sender: &Sender, name: &str) -> Result<Result<std::net::IpAddr, Seen>, Trouble> {
        let other = match self.family {
            Family::IPv4 => Family::IPv6,
            Family::IPv6 => Family::IPv4,
        };
        let known = |family| {
            let answer = self.world.ask(name, address_record(family), Carrier::Tcp);
            answer.is_some_and(|answer| !answer.addresses.is_empty())
        };
        if !known(self.family) && known(other) {
            return Err(Trouble::OtherFamily);
        }
        let server = self.world.cluster_dns();
        let record = address_record(self.family);
        let (seen, addresses) = self.query(sender, &server, name, record, DnsTransport::Udp)?;
        if !seen.is_allowed() {
            return Ok(Err(seen));
        }
        match addresses.first() {
            Some(address) => Ok(Ok(*address)),
            None => Ok(Err(Seen {
                got: Got::NoAnswer(format!("{name} has no {record} record")),
                sides: seen.sides,
            })),
        }
    }

    fn lookup(&mut self, lookup: &Lookup) -> Result<Seen, Trouble> {
        let sender = self.world.sender(&lookup.from, self.family)?;
        let server = lookup.server.clone().unwrap_or_else(|| self.world.cluster_dns());
        let record = lookup.record.as_deref().unwrap_or(address_record(self.family));
        self.query(&sender, &server, &lookup.name, record, lookup.transport).map(|(seen, _)| seen)
    }

    /// One question, asked again over TCP where the answer was cut.
    fn query(
        &mut self,
        sender: &Sender,
        server: &Destination,
        name: &str,
        record: &str,
        transport: DnsTransport,
    ) -> Result<(Seen, Vec<std::net::IpAddr>), Trouble> {
        let server_address = match &server.place {
            Place::Name(server_name) => match self.resolve(sender, server_name)? {
                Ok(address) => address,
                Err(seen) => return Ok((seen, Vec::new())),
            },
            place => self.world.address_of(place, self.family)?,
        };
        let (protocol, carrier) = match transport {
            DnsTransport::Udp => (StepProtocol::Udp, Carrier::Udp),
            DnsTransport::Tcp => (StepProtocol::Tcp, Carrier::Tcp),
        };
        let flow = match flow_to(&self.world, sender, server_address, server.port, protocol) {
            Ok(flow) => flow,
            Err(seen) => return Ok((seen, Vec::new())),
        };
        let payload = Payload::Dns { name: name.to_owned() };
        let seen = self.world.exchange(&flow, &payload, &BTreeSet::new())?;
        if !seen.is_allowed() || !self.world.is_cluster_dns(flow.destination) {
            return Ok((seen, Vec::new()));
        }
        let Some(answer) = self.world.ask(name, record, carrier) else {
            return Err(Trouble::Broken(format!("{name} {record} is no question")));
        };
        if answer.truncated && transport == DnsTransport::Udp {
            return self.query(sender, server, name, record, DnsTransport::Tcp);
        }
        let egress = self.world.judge(&flow, &BTreeSet::new())?.egress;
        let by_proxy = egress.is_some_and(|side| side.decision.outcome == Outcome::Redirect(Proxy::Dns));
        if let (true, Some(node)) = (by_proxy, &sender.node) {
            self.world.release(node, name, &answer);
        }
        Ok((seen, answer.addresses))
    }
}

fn request(http: &Http, to_text: &str) -> Payload {
    Payload::Http { http: http.clone(), authority: http.host.clone().unwrap_or_else(|| to_text.to_owned()) }
}

/// A connection ends with the answers that close it, and does not begin with silence.
fn state_after(seen: &Seen, after_silence: ConnectionState) -> ConnectionState {
    match &seen.got {
        Got::Expectable(Expect::Allowed | Expect::Http403 | Expect::Http307) => ConnectionState::Open,
        Got::Expectable(Expect::Http400) => ConnectionState::Closed("it was answered 400".to_owned()),
        Got::Expectable(Expect::TlsReset) => ConnectionState::Closed("it was reset".to_owned()),
        Got::Expectable(Expect::Denied | Expect::Rejected | Expect::DnsRefused) | Got::NoAnswer(_) => {
            after_silence
        }
    }
}
