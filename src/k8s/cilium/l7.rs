//! The L7 part of a `toPorts` element: `rules` with one protocol, or `serverNames`.

use super::ports::{PortEntry, PortNumbers, WireProtocol};
use super::{Context, HostPolicy, http};
use crate::k8s::cursor::{Cursor, Fields};
use crate::k8s::tree::quoted;
use crate::model::{Direction, Protocol};
use crate::policy::l7::http::check_size;
use crate::policy::l7::{DnsPattern, HttpRule, L7Rules};

/// L7 rules and the transports that carry them: of `protocol: ANY` the others are left out.
#[derive(Debug)]
pub(super) struct L7 {
    pub rules: L7Rules,
    pub carriers: &'static [Protocol],
}

const TCP: &[Protocol] = &[Protocol::Tcp];
const DNS: &[Protocol] = &[Protocol::Tcp, Protocol::Udp];

/// Kinds of rules that exist upstream, or did, and that sluice refuses.
const NOT_SUPPORTED: &[&str] = &["kafka", "l7proto", "l7"];

pub(super) fn read(fields: &Fields<'_>, entries: &[PortEntry<'_>], context: Context<'_>) -> Option<L7> {
    let names = fields.get("serverNames");
    let rules = fields.get("rules").and_then(|cursor| read_rules(&cursor, entries, context));
    for field in [&names, &fields.get("rules")].into_iter().flatten() {
        if context.host == HostPolicy::Yes {
            field.error("a policy with nodeSelector takes no L7 rules");
        }
        if entries.is_empty() {
            field.error("L7 rules need ports");
        }
        for entry in entries.iter().filter(|entry| entry.numbers == PortNumbers::All) {
            entry.cursor.error("L7 rules need a port, \"0\" is every port");
        }
    }
    match (names, rules) {
        (Some(names), Some(_)) => {
            names.error("serverNames and rules may not stand in one element");
            None
        }
        (Some(names), None) => server_names(&names, entries),
        (None, rules) => rules,
    }
}

fn read_rules(cursor: &Cursor<'_>, entries: &[PortEntry<'_>], context: Context<'_>) -> Option<L7> {
    cursor.object(|fields| {
        for name in NOT_SUPPORTED {
            if let Some(field) = fields.get(name) {
                field.error(format!("{name} rules are not supported"));
            }
        }
        match (fields.get("http"), fields.get("dns")) {
            (Some(http), None) => {
                for entry in entries.iter().filter(|entry| entry.protocol != WireProtocol::One(Protocol::Tcp))
                {
                    entry.cursor.error("HTTP rules need protocol: TCP on each port");
                }
                let read =
                    |rule: &Cursor<'_>| rule.object(|fields| http::rule(fields, context.namespace)).flatten();
                let rules: Vec<HttpRule> = non_empty(&http)?.iter().filter_map(read).collect();
                if let Err(problem) = check_size(&rules) {
                    http.error(problem.to_string());
                    return None;
                }
                Some(L7 { rules: L7Rules::Http(sorted(rules)), carriers: TCP })
            }
            (None, Some(dns)) => {
                dns_ports(&dns, entries, context);
                let patterns = non_empty(&dns)?.iter().filter_map(name_or_pattern).collect();
                Some(L7 { rules: L7Rules::Dns(sorted(patterns)), carriers: DNS })
            }
            (Some(_), Some(_)) => {
                cursor.error("http and dns rules may not stand in one element");
                None
            }
            (None, None) => None,
        }
    })?
}

/// DNS rules: egress, and one port for each entry.
fn dns_ports(dns: &Cursor<'_>, entries: &[PortEntry<'_>], context: Context<'_>) {
    if context.direction != Direction::Egress {
        dns.error("dns rules are for egress only");
    }
    for entry in entries {
        match (&entry.numbers, entry.protocol) {
            (_, WireProtocol::One(protocol)) if !DNS.contains(&protocol) => {
                entry.cursor.error(format!("dns rules need protocol UDP, TCP or ANY, found {protocol}"));
            }
            (PortNumbers::Range(range), _) if range.first() == range.last() => {}
            // Reported for all L7 rules.
            (PortNumbers::All, _) => {}
            _ => entry.cursor.error("dns rules need a single port number, such as \"53\""),
        }
    }
}

fn server_names(cursor: &Cursor<'_>, entries: &[PortEntry<'_>]) -> Option<L7> {
    for entry in entries {
        match entry.protocol {
            WireProtocol::One(Protocol::Tcp) => {}
            WireProtocol::Any => {
                entry.cursor.warning("serverNames are for TLS: of protocol ANY only TCP is allowed here");
            }
            WireProtocol::One(protocol) => {
                entry.cursor.error(format!("serverNames need protocol: TCP, found {protocol}"));
            }
        }
    }
    let names = non_empty(cursor)?
        .iter()
        .filter_map(|item| {
            let text = item.string()?;
            parsed(item, text, DnsPattern::parse_pattern(text))
        })
        .collect();
    Some(L7 { rules: L7Rules::Tls(sorted(names)), carriers: TCP })
}

/// A list of rules that is there must have some: an empty one would mean nothing or everything.
fn non_empty<'a>(cursor: &Cursor<'a>) -> Option<Vec<Cursor<'a>>> {
    let items = cursor.list()?;
    if items.is_empty() {
        cursor.error("found an empty list, expected at least one rule");
        return None;
    }
    Some(items)
}

/// The order of ORed rules means nothing: equal sets are equal values.
fn sorted<T: Ord>(mut rules: Vec<T>) -> Vec<T> {
    rules.sort_unstable();
    rules.dedup();
    rules
}

/// `{matchName: ...}` or `{matchPattern: ...}`.
pub(super) fn name_or_pattern(cursor: &Cursor<'_>) -> Option<DnsPattern> {
    cursor.object(|fields| match (fields.get("matchName"), fields.get("matchPattern")) {
        (Some(name), None) => {
            name.string().and_then(|text| parsed(&name, text, DnsPattern::parse_name(text)))
        }
        (None, Some(pattern)) => {
            pattern.string().and_then(|text| parsed(&pattern, text, DnsPattern::parse_pattern(text)))
        }
        (Some(_), Some(_)) => {
            cursor.error("only one of matchName and matchPattern may be given");
            None
        }
        (None, None) => {
            cursor.error("one of matchName and matchPattern is needed");
            None
        }
    })?
}

fn parsed(
    cursor: &Cursor<'_>,
    text: &str,
    result: Result<DnsPattern, crate::fqdn::DnsPatternError>,
) -> Option<DnsPattern> {
    match result {
        Ok(pattern) => Some(pattern),
        Err(why) => {
            cursor.error(format!("found {}, expected a DNS name: {why}", quoted(text)));
            None
        }
    }
}
