//! Steps that send: probes of what the step asks for, and whether they saw what it expects.
//!
//! A step's patience follows from what it expects: silence is waited for briefly, an answer as long
//! as a busy machine may need, because an answer ends the wait and silence does not.

use std::net::SocketAddr;
use std::time::Duration;

use super::places::Target;
use super::{DNS_PORT, Run, failed, skipped};
use crate::lab::dns::Carrier;
use crate::lab::listener::sctp_available;
use crate::lab::probe::{
    DnsQuestion, HttpRequest, Observed, ServerName as TlsName, Source, TcpFlow, UdpFlow, lookup, ping, sctp,
};
use crate::lab::report::Status;
use crate::lab::scenario::{
    Because, Connect, DnsTransport, Expect, Expected, Http, Lookup, Place, ServerName, StepProtocol,
};
use crate::lab::witness::{Unproven, Witness, describe};
use crate::model::Protocol;

/// How long an expected silence is listened to.
const SILENCE: Duration = Duration::from_millis(600);
/// How long an expected answer may take.
const ANSWER: Duration = Duration::from_secs(4);
/// A name that the cluster DNS always knows.
const DNS_PROBE: &str = "kube-dns.kube-system.svc.cluster.local";

/// A connection that a step keeps open.
pub(super) struct Kept {
    connection: Connection,
    source: Source,
    protocol: Protocol,
    /// Since it was opened.
    witness: Witness,
}

enum Connection {
    Tcp { flow: TcpFlow, host: String },
    Udp(UdpFlow),
}

impl Run {
    pub(super) async fn connect(&mut self, connect: &Connect, keep: Option<&String>) -> Option<Status> {
        let Some(source) = self.source(&connect.from) else {
            return skipped(format!("the lab has no {}", connect.from));
        };
        if connect.transport == StepProtocol::Sctp && !sctp_available() {
            return skipped("this kernel has no SCTP sockets");
        }
        let patience = patience(connect.expected.expect);
        let witness = Witness::new(&source, self.protocol(connect.transport));
        let target = match self.target(connect, &source, patience).await {
            Target::Address(target) => target,
            Target::OtherFamily => return None,
            Target::Skip(reason) => return skipped(reason),
            // It ended with the lookup, so that is what the agents saw.
            Target::Outcome(observed) => {
                let witness = witness.of(Protocol::Udp);
                return self.judge(&connect.expected, observed, &[&witness]).await;
            }
        };
        let (observed, connection) = self.send_first(connect, &source, target, patience).await;
        let status = self.judge(&connect.expected, observed, &[&witness]).await;
        if let (Some(name), Some(connection)) = (keep, connection) {
            let protocol = self.protocol(connect.transport);
            self.connections.insert(name.clone(), Kept { connection, source, protocol, witness });
        }
        status
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
            StepProtocol::Sctp => (sctp(source, target, patience).await, None),
        }
    }

    pub(super) async fn send(
        &mut self,
        name: &str,
        http: Option<&Http>,
        expected: &Expected,
    ) -> Option<Status> {
        let patience = patience(expected.expect);
        let Some(mut kept) = self.connections.remove(name) else {
            return Some(failed(expected.expect.as_str(), "nothing", format!("{name} was never open")));
        };
        let now = Witness::new(&kept.source, kept.protocol);
        let observed = match &mut kept.connection {
            Connection::Udp(flow) => flow.send(patience).await,
            Connection::Tcp { flow, host } => flow.send(&request(http, host), patience).await,
        };
        // What passes under a verdict that still holds makes no event of its own.
        let status = match expected.expect {
            Expect::Allowed => self.judge(expected, observed, &[&now, &kept.witness]).await,
            _ => self.judge(expected, observed, &[&now]).await,
        };
        self.connections.insert(name.to_owned(), kept);
        status
    }

    pub(super) async fn lookup(&mut self, step: &Lookup) -> Option<Status> {
        let Some(source) = self.source(&step.from) else {
            return skipped(format!("the lab has no {}", step.from));
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
                None => return None,
            },
        };
        let Some(server) = server else {
            return skipped("the cluster has no DNS in this family");
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
        self.judge(&step.expected, observed, &[&witness]).await
    }

    /// The outcome, and why: the first of `witnesses` that has seen anything tells.
    async fn judge(&self, expected: &Expected, observed: Observed, witnesses: &[&Witness]) -> Option<Status> {
        let status = self.compare(expected, &observed);
        let (Status::Passed, Some(control)) = (&status, self.session.control()) else {
            return Some(status);
        };
        let anything = Because { direction: None, by: None };
        let because = match &expected.because {
            Some(because) => because,
            // Silence is a policy's doing only if an agent dropped something.
            None if expected.expect == Expect::Denied => &anything,
            None => return Some(status),
        };
        let allowed = expected.expect == Expect::Allowed;
        let mut verdict = Ok(());
        for witness in witnesses {
            verdict = witness.check(control, because, allowed).await;
            if !matches!(verdict, Err(Unproven::NothingSeen)) {
                break;
            }
        }
        Some(match verdict {
            Ok(()) => Status::Passed,
            Err(seen) => {
                let wanted = match &expected.because {
                    Some(because) => format!("{} because of {}", expected.expect.as_str(), describe(because)),
                    None => expected.expect.as_str().to_owned(),
                };
                failed(wanted, observed.to_string(), seen.to_string())
            }
        })
    }

    fn compare(&self, expected: &Expected, observed: &Observed) -> Status {
        if let Observed::Unsupported(reason) = observed {
            return Status::Skipped { reason: reason.clone() };
        }
        // Without agents nothing is denied, so only what is allowed can be judged.
        if self.session.control().is_none() && expected.expect != Expect::Allowed {
            return Status::Skipped { reason: "this lab has no agents".to_owned() };
        }
        let passed = match expected.expect {
            Expect::Allowed => *observed == Observed::Answered,
            Expect::Denied => *observed == Observed::Silence,
            Expect::Rejected => matches!(observed, Observed::Rejected(_) | Observed::Reset),
            Expect::Http400 => *observed == Observed::HttpStatus(400),
            Expect::Http403 => *observed == Observed::HttpStatus(403),
            Expect::Http307 => *observed == Observed::HttpStatus(307),
            Expect::DnsRefused => *observed == Observed::DnsRefused,
            // What is not TLS is reset, too, where TLS is wanted.
            Expect::TlsReset => matches!(observed, Observed::TlsReset | Observed::Reset),
        };
        if passed {
            return Status::Passed;
        }
        failed(expected.expect.as_str(), observed.to_string(), "that is what the sender saw")
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
