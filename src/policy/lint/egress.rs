//! Traps of egress: DNS, names, the metadata service, and what default deny takes with it.

use ipnet::IpNet;

use super::{Code, DefaultDeny, Finding, Linter, Site, covers};
use crate::model::{Direction, PortRange, Protocol};
use crate::policy::l7::{DnsPattern, L7Rules};
use crate::policy::rule::{Action, CidrSet, Entity, Peer, Peers, PortMatch, Ports, Rule, Subject, Tier};

const EGRESS: Direction = Direction::Egress;

pub(super) fn check(linter: &Linter<'_>, site: &Site<'_>, findings: &mut Vec<Finding>) {
    let pods = matches!(site.spec.subject, Subject::Pods(Some(_)));
    if site.spec.tier != Tier::Normal || !pods {
        return;
    }
    let bearing = linter.bearing_on(site);
    let allows = || bearing.iter().flat_map(|other| other.rules(EGRESS, Action::Allow));
    let own = || site.rules(EGRESS, Action::Allow);
    let path = format!("{}.egress", site.path());
    if linter.default_deny(site, EGRESS) != DefaultDeny::Off {
        if !allows().any(allows_dns) {
            findings.push(Finding::new(Code::NoDns, site.object, &path, ""));
        }
        let some = allows().next().is_some();
        if some && own().next().is_some() && !allows().any(reaches_pods) {
            findings.push(Finding::new(Code::InternalDenied, site.object, &path, ""));
        }
    }
    let dns_rules: Vec<&DnsPattern> = allows()
        .filter_map(|rule| match rule.l7.as_deref() {
            Some(L7Rules::Dns(patterns)) => Some(patterns),
            _ => None,
        })
        .flatten()
        .collect();
    for rule in own() {
        for name in fqdns(rule).filter(|name| !dns_rules.iter().any(|dns| dns_covers(dns, name))) {
            let detail = format!("{} is not covered", name.text());
            findings.push(Finding::new(Code::FqdnWithoutDns, site.object, &rule.path, detail));
        }
        let denied = bearing.iter().flat_map(|other| other.rules(EGRESS, Action::Deny)).any(denies_metadata);
        if reaches_metadata(rule) && !denied {
            findings.push(Finding::new(Code::MetadataReachable, site.object, &rule.path, ""));
        }
    }
}

fn port(protocol: Protocol, number: u16) -> Option<Ports> {
    Some(Ports::OneOf(vec![PortMatch::Range(protocol, PortRange::single(number)?)]))
}

fn covers_port(ports: &Ports, protocol: Protocol, number: u16) -> bool {
    port(protocol, number).is_some_and(|wanted| covers::ports(ports, &wanted))
}

/// To whom does not matter: clusters have DNS in pods, on nodes and outside. Names are not
/// resolved before DNS works.
fn allows_dns(rule: &Rule) -> bool {
    let named = match &rule.ports {
        Ports::Any => false,
        Ports::OneOf(ports) => ports
            .iter()
            .any(|port| matches!(port, PortMatch::Named(Protocol::Udp, name) if name.starts_with("dns"))),
    };
    let someone = match &rule.peers {
        Peers::Any => true,
        Peers::OneOf(peers) => {
            peers.iter().any(|peer| !matches!(peer, Peer::Fqdn(_) | Peer::Entity(Entity::None)))
        }
    };
    someone && (named || covers_port(&rule.ports, Protocol::Udp, 53))
}

/// The rule allows more than DNS to something inside the cluster.
fn reaches_pods(rule: &Rule) -> bool {
    let only_dns = match &rule.ports {
        Ports::Any => false,
        Ports::OneOf(ports) => ports.iter().all(|port| match port {
            PortMatch::Range(_, range) => (range.first(), range.last()) == (53, 53),
            PortMatch::Named(_, name) => name.starts_with("dns"),
            PortMatch::Protocol(_) | PortMatch::IcmpType(..) => false,
        }),
    };
    let inside = match &rule.peers {
        Peers::Any => true,
        Peers::OneOf(peers) => peers.iter().any(|peer| {
            matches!(
                peer,
                Peer::Pods(_)
                    | Peer::Service(_)
                    | Peer::Address(_)
                    | Peer::Entity(Entity::All | Entity::Cluster)
            )
        }),
    };
    inside && !only_dns
}

fn fqdns(rule: &Rule) -> impl Iterator<Item = &DnsPattern> {
    let peers = match &rule.peers {
        Peers::Any => &[][..],
        Peers::OneOf(peers) => peers,
    };
    peers.iter().filter_map(|peer| match peer {
        Peer::Fqdn(pattern) => Some(pattern),
        _ => None,
    })
}

/// The DNS rule answers for what the `toFQDNs` element names. For a pattern: for names that it
/// stands for, tried with samples.
fn dns_covers(dns: &DnsPattern, wanted: &DnsPattern) -> bool {
    match wanted {
        DnsPattern::Name(name) => dns.matches(name),
        DnsPattern::Pattern(text) => {
            dns.text() == text
                || ["x", "a-long-one"].iter().all(|sample| {
                    let deep = text.replace("**.", &format!("{sample}.{sample}."));
                    dns.matches(&deep.replace('*', sample))
                        && dns.matches(&text.replace("**", "*").replace('*', sample))
                })
        }
    }
}

fn metadata() -> CidrSet {
    let address = std::net::Ipv4Addr::new(169, 254, 169, 254);
    CidrSet { cidr: IpNet::from(std::net::IpAddr::from(address)), except: Vec::new() }
}

/// Names the metadata service by a range or entity that is wider than it: who names the address
/// itself means it.
fn reaches_metadata(rule: &Rule) -> bool {
    let wide = match &rule.peers {
        Peers::Any => true,
        Peers::OneOf(peers) => peers.iter().any(|peer| match peer {
            Peer::Cidr(set) | Peer::Address(set) => {
                set.cidr.prefix_len() < 16 && covers::peer(&Peer::Cidr(set.clone()), &Peer::Cidr(metadata()))
            }
            Peer::Entity(Entity::World | Entity::WorldIpv4 | Entity::All) => true,
            _ => false,
        }),
    };
    wide && covers_port(&rule.ports, Protocol::Tcp, 80)
}

fn denies_metadata(rule: &Rule) -> bool {
    covers_port(&rule.ports, Protocol::Tcp, 80)
        && covers::peers(&rule.peers, &Peers::OneOf(vec![Peer::Cidr(metadata())]))
}
