//! Reads the steps of a Scenario: one action each.

use std::collections::BTreeSet;

use super::document::{duration_of, external_change};
use super::file::parse_options;
use super::target::{PortRule, destination, dns_name, endpoint};
use super::{
    Action, Apply, ApplyExpect, Because, By, Component, Connect, Destination, DnsTransport, Endpoint, Expect,
    Expected, ExpectedTraps, External, Http, Lookup, Options, Place, ServerName, Step, StepProtocol,
};
use crate::k8s::cursor::{Cursor, Fields};
use crate::k8s::tree::Value;
use crate::k8s::{Origin, Position};
use crate::model::{Direction, Kind, ObjectRef};

/// Names that steps may refer to.
struct Known<'a> {
    externals: BTreeSet<&'a str>,
    connections: BTreeSet<String>,
    options: &'a Options,
}

impl Known<'_> {
    fn external(&self, name: &str, cursor: &Cursor<'_>) {
        if !self.externals.contains(name) {
            cursor.error(format!("no external is named {name:?}"));
        }
    }
}

pub(super) fn read(
    list: &[Cursor<'_>],
    externals: &[External],
    options: &Options,
    document: &Position,
) -> Vec<Step> {
    let externals = externals.iter().map(|external| external.name.as_str()).collect();
    let mut known = Known { externals, connections: BTreeSet::new(), options };
    list.iter()
        .filter_map(|cursor| cursor.object(|fields| step(fields, &mut known, document)).flatten())
        .collect()
}

fn step(fields: &Fields<'_>, known: &mut Known<'_>, document: &Position) -> Option<Step> {
    let node = fields.cursor().node;
    let position = Position { file: document.file.clone(), line: node.line, column: node.column };
    let name = fields.get("name").and_then(|name| name.string()).map(str::to_owned);
    Some(Step { name, position, action: action(fields, known, document)? })
}

/// Which keys a step has says what it does; other keys stay unread and so become problems.
fn action(fields: &Fields<'_>, known: &mut Known<'_>, document: &Position) -> Option<Action> {
    const KINDS: &[&str] = &["from", "open", "send", "apply", "delete", "external", "restart", "wait"];
    let present: Vec<&str> = KINDS.iter().copied().filter(|kind| node_has(fields, kind)).collect();
    match present.as_slice() {
        ["from"] if node_has(fields, "dns") => lookup(fields, known).map(Action::Lookup),
        ["from"] => connect(fields, known).map(Action::Connect),
        ["open"] => fields.get("open").and_then(|open| open.object(|open| opened(open, known)).flatten()),
        ["send"] => send(fields, known),
        ["apply"] => apply(fields, known.options, document).map(Action::Apply),
        ["delete"] => fields.get("delete").and_then(|field| field.object(deleted).flatten()),
        ["external"] => {
            let field = fields.get("external")?;
            let change = external_change(&field)?;
            known.external(&change.name, &field);
            Some(Action::External(change))
        }
        ["restart"] => restart(fields),
        ["wait"] => fields.get("wait").and_then(|wait| duration_of(&wait)).map(Action::Wait),
        [] => {
            fields.accept_all();
            fields.cursor().error(format!("a step has one of {} (or from with dns)", KINDS.join(", ")));
            None
        }
        several => {
            fields.accept_all();
            fields.cursor().error(format!("a step does one thing, this one has {}", several.join(" and ")));
            None
        }
    }
}

fn node_has(fields: &Fields<'_>, key: &str) -> bool {
    fields.cursor().node.get(key).is_some()
}

fn read_endpoint(field: &Cursor<'_>, known: &Known<'_>) -> Option<Endpoint> {
    match endpoint(field.string()?) {
        Ok(endpoint) => {
            if let Endpoint::External(name) = &endpoint {
                known.external(name, field);
            }
            Some(endpoint)
        }
        Err(message) => {
            field.error(message);
            None
        }
    }
}

fn read_destination(field: &Cursor<'_>, rule: PortRule, known: &Known<'_>) -> Option<Destination> {
    match destination(field.string()?, rule) {
        Ok(destination) => {
            if let Place::External(name) = &destination.place {
                known.external(name, field);
            }
            Some(destination)
        }
        Err(message) => {
            field.error(message);
            None
        }
    }
}

fn expected(fields: &Fields<'_>) -> Option<Expected> {
    let expect = fields.require("expect").and_then(|expect| expect.one_of(Expect::ALL));
    let because = fields.get("because").and_then(|because| because.object(because_of));
    Some(Expected { expect: expect?, because })
}

fn because_of(fields: &Fields<'_>) -> Because {
    let direction = fields
        .get("direction")
        .and_then(|field| field.one_of(&[("egress", Direction::Egress), ("ingress", Direction::Ingress)]));
    let by = fields.get("by").and_then(|by| by.string()).map(|by| match by {
        "default-deny" => By::DefaultDeny,
        object => By::Object(object.to_owned()),
    });
    if direction.is_none() && by.is_none() {
        fields.cursor().error("because needs direction, by, or both");
    }
    Because { direction, by }
}

fn connect(fields: &Fields<'_>, known: &Known<'_>) -> Option<Connect> {
    let from = fields.require("from").and_then(|from| read_endpoint(&from, known));
    let transport = fields.get("protocol").map_or(Some(StepProtocol::Tcp), |protocol| {
        protocol.one_of(&[
            ("TCP", StepProtocol::Tcp),
            ("UDP", StepProtocol::Udp),
            ("SCTP", StepProtocol::Sctp),
            ("ICMP", StepProtocol::Icmp),
        ])
    });
    let to = fields.require("to");
    let rule = if transport == Some(StepProtocol::Icmp) { PortRule::Forbidden } else { PortRule::Required };
    let to_text = to.as_ref().and_then(|to| to.node.as_str()).unwrap_or_default().to_owned();
    let destination = to.as_ref().and_then(|to| read_destination(to, rule, known));
    if let (Some(Destination { place: Place::Service { .. }, .. }), Some(StepProtocol::Icmp), Some(to)) =
        (&destination, transport, &to)
    {
        to.error("a Service does not answer ICMP");
    }
    let http = fields.get("http").and_then(|http| http.object(http_of));
    let server_name = fields.get("sni").and_then(|sni| server_name(&sni));
    if let Some(transport) = transport.filter(|transport| *transport != StepProtocol::Tcp) {
        for name in ["http", "sni"].iter().filter(|name| node_has(fields, name)) {
            fields.cursor().error(format!("{name} goes with TCP, not with {transport:?}"));
        }
    }
    let expected = expected(fields);
    Some(Connect {
        from: from?,
        to: destination?,
        to_text,
        transport: transport?,
        http,
        server_name,
        expected: expected?,
    })
}

fn http_of(fields: &Fields<'_>) -> Http {
    let text = |name| fields.get(name).and_then(|field| field.string()).map(str::to_owned);
    let mut headers = Vec::new();
    for (name, value) in fields.get("headers").and_then(|headers| headers.entries()).into_iter().flatten() {
        let values = match value.node.value {
            Value::Sequence(_) => value.list().unwrap_or_default(),
            _ => vec![value],
        };
        headers.extend(values.iter().filter_map(|value| Some((name.to_owned(), value.string()?.to_owned()))));
    }
    let defaults = Http::default();
    Http {
        method: text("method").unwrap_or(defaults.method),
        path: text("path").unwrap_or(defaults.path),
        host: text("host"),
        headers,
    }
}

fn server_name(field: &Cursor<'_>) -> Option<ServerName> {
    match field.string()? {
        "" => Some(ServerName::Absent),
        name => Some(ServerName::Name(name.to_owned())),
    }
}

fn opened(fields: &Fields<'_>, known: &mut Known<'_>) -> Option<Action> {
    let name = fields.require("name").and_then(|name| name.string());
    let connect = connect(fields, known);
    let name = name?.to_owned();
    known.connections.insert(name.clone());
    Some(Action::Open { connection: name, connect: connect? })
}

fn send(fields: &Fields<'_>, known: &Known<'_>) -> Option<Action> {
    let field = fields.get("send")?;
    let connection = field.string();
    if let Some(name) = connection.filter(|name| !known.connections.contains(*name)) {
        field.error(format!("no step before this one opens a connection named {name:?}"));
    }
    let http = fields.get("http").and_then(|http| http.object(http_of));
    let expected = expected(fields);
    Some(Action::Send { connection: connection?.to_owned(), http, expected: expected? })
}

fn lookup(fields: &Fields<'_>, known: &Known<'_>) -> Option<Lookup> {
    let from = fields.require("from").and_then(|from| read_endpoint(&from, known));
    let dns = fields.require("dns").and_then(|dns| dns.object(|dns| question(dns, known)).flatten());
    let expected = expected(fields);
    let (name, record, transport, server) = dns?;
    Some(Lookup { from: from?, name, record, transport, server, expected: expected? })
}

type Question = (String, Option<String>, DnsTransport, Option<Destination>);

fn question(fields: &Fields<'_>, known: &Known<'_>) -> Option<Question> {
    let name = fields.require("name").and_then(|name| {
        let text = name.string()?;
        if dns_name(text).is_none() && text != "." {
            return name.expected("a DNS name");
        }
        Some(text.to_owned())
    });
    let record = fields.get("type").and_then(|kind| {
        let text = kind.string()?;
        let known = text.parse::<hickory_proto::rr::RecordType>().is_ok();
        if known { Some(text.to_owned()) } else { kind.expected("a record type such as A, AAAA or TXT") }
    });
    let transport = fields.get("protocol").map_or(Some(DnsTransport::Udp), |field| {
        field.one_of(&[("UDP", DnsTransport::Udp), ("TCP", DnsTransport::Tcp)])
    });
    let server =
        fields.get("server").and_then(|server| read_destination(&server, PortRule::Default(53), known));
    Some((name?, record, transport?, server))
}

fn apply(fields: &Fields<'_>, options: &Options, document: &Position) -> Option<Apply> {
    let field = fields.get("apply")?;
    let Value::Text(text) = &field.node.value else { return field.expected("a block of YAML documents") };
    let expect = fields.get("expect").map_or(Some(ApplyExpect::Applied), |expect| {
        expect.one_of(&[("invalid", ApplyExpect::Invalid), ("applied", ApplyExpect::Applied)])
    });
    let lint = fields.get("lint").and_then(|lint| lint.list()).map(|codes| ExpectedTraps {
        codes: codes.iter().filter_map(|code| code.string().map(str::to_owned)).collect(),
        parse: parse_options(options),
        enforcement: options.enforcement,
    });
    let origin = Origin {
        file: document.file.clone(),
        lines_before: text.content_line.saturating_sub(1),
        columns_before: text.content_column.saturating_sub(1),
    };
    Some(Apply { text: text.text.to_string(), origin, expect: expect?, lint })
}

const KINDS: &[(&str, Kind)] = &[
    ("NetworkPolicy", Kind::NetworkPolicy),
    ("CiliumNetworkPolicy", Kind::CiliumNetworkPolicy),
    ("CiliumClusterwideNetworkPolicy", Kind::CiliumClusterwideNetworkPolicy),
    ("CiliumCIDRGroup", Kind::CiliumCIDRGroup),
    ("ClusterNetworkPolicy", Kind::ClusterNetworkPolicy),
    ("Namespace", Kind::Namespace),
    ("Pod", Kind::Pod),
    ("Node", Kind::Node),
    ("Service", Kind::Service),
    ("Endpoints", Kind::Endpoints),
    ("EndpointSlice", Kind::EndpointSlice),
    ("Secret", Kind::Secret),
];

fn deleted(fields: &Fields<'_>) -> Option<Action> {
    fields.accept(&["apiVersion"]);
    let kind = fields.require("kind").and_then(|kind| kind.one_of(KINDS));
    let namespace = fields.get("namespace").and_then(|namespace| namespace.string());
    let name = fields.require("name").and_then(|name| name.string());
    let (kind, name) = (kind?, name?);
    let namespace = match (kind.is_namespaced(), namespace) {
        (true, namespace) => namespace.unwrap_or("default"),
        (false, None) => "",
        (false, Some(_)) => {
            fields.cursor().error(format!("a {kind} has no namespace"));
            return None;
        }
    };
    Some(Action::Delete(ObjectRef::new(kind, namespace, name)))
}

fn restart(fields: &Fields<'_>) -> Option<Action> {
    let component = fields.get("restart")?.one_of(&[
        ("agent", Component::Agent),
        ("http-proxy", Component::HttpProxy),
        ("dns-proxy", Component::DnsProxy),
    ]);
    let node = fields.get("node").and_then(|node| node.string()).map(str::to_owned);
    Some(Action::Restart { component: component?, node })
}
