//! `sluice bpf`: kernel tables as rows, with what only user space knows (rules, pods) beside them.

use std::net::SocketAddr;

use serde_json::{Map, Value, json};

use super::core::Core;
use crate::api::backend::{KernelTable, Refusal};
use crate::datapath::inspect::ConnectionFilter;
use crate::datapath::{DatapathError, Inspector};
use crate::model::{Identity, IdentityGroup, Protocol};
use crate::policy::map_state::{PolicyKey, PortClass, RuleSetId, Slot, SlotAction};

/// One row: column -> value, in the order of columns.
type Row = Map<String, Value>;

fn row<const N: usize>(columns: [(&str, Value); N]) -> Row {
    columns.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn failed(error: DatapathError) -> Refusal {
    Refusal::Failed(error.to_string())
}

impl Core {
    pub fn kernel_rows(&mut self, table: KernelTable, endpoint: Option<&str>) -> Result<Vec<Row>, Refusal> {
        let inspector = self.kernel.inspect().map_err(failed)?;
        let local = match endpoint {
            None => None,
            Some(pod) => Some(
                self.view
                    .endpoints()
                    .find(|local| local.pod.path() == pod)
                    .ok_or_else(|| Refusal::NotFound(format!("no endpoint {pod} on this node")))?,
            ),
        };
        let identity = local.map(|local| local.identity);
        let addresses: Vec<_> = local.map(|local| local.addresses.clone()).unwrap_or_default();
        match table {
            KernelTable::Policy => self.policy_rows(&inspector, identity).map_err(failed),
            KernelTable::Conntrack => {
                let mut rows = Vec::new();
                let filters: Vec<ConnectionFilter> = match addresses.is_empty() {
                    true => vec![ConnectionFilter::default()],
                    false => addresses
                        .iter()
                        .map(|address| ConnectionFilter {
                            address: Some(*address),
                            ..ConnectionFilter::default()
                        })
                        .collect(),
                };
                for filter in filters {
                    rows.extend(self.connection_rows(&inspector, &filter).map_err(failed)?);
                }
                Ok(rows)
            }
            KernelTable::Ipcache => ipcache_rows(&inspector).map_err(failed),
            KernelTable::Services => service_rows(&inspector).map_err(failed),
            KernelTable::Metrics => self.metric_rows(&inspector, endpoint).map_err(failed),
            KernelTable::Diff => {
                let full = self.view.full();
                let divergences = inspector.diff(&full).map_err(failed)?;
                Ok(divergences
                    .into_iter()
                    .map(|divergence| {
                        row([("map", json!(divergence.map)), ("difference", json!(divergence.what))])
                    })
                    .collect())
            }
        }
    }

    fn rule_texts(&self, rules: RuleSetId) -> Vec<String> {
        let engine = self.view.engine();
        if rules == crate::policy::engine::LOCALHOST_RULES {
            return vec!["allow-localhost".to_owned()];
        }
        engine
            .rules_of(rules)
            .iter()
            .map(|reference| {
                let path = engine.rule(reference).map(|rule| rule.path.to_string()).unwrap_or_default();
                format!("{} {path}", reference.object.path())
            })
            .collect()
    }

    fn identity_text(&self, identity: Identity) -> String {
        let group = IdentityGroup::of_key(identity).map(IdentityGroup::name);
        match (identity, identity.reserved_name().or(group)) {
            (Identity::UNKNOWN, _) => "any".to_owned(),
            (_, Some(name)) => name.to_owned(),
            _ => identity.to_string(),
        }
    }

    fn policy_rows(
        &self,
        inspector: &Inspector,
        subject: Option<Identity>,
    ) -> Result<Vec<Row>, DatapathError> {
        let policies = inspector.policies(subject)?;
        let sets: Vec<RuleSetId> = policies
            .iter()
            .flat_map(|policy| &policy.entries)
            .flat_map(|(_, entry)| [entry.admin, entry.normal].into_iter().flatten().map(|slot| slot.rules))
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect();
        let hits: std::collections::BTreeMap<RuleSetId, u64> =
            inspector.rule_hits(&sets)?.into_iter().collect();
        let mut rows = Vec::new();
        for policy in &policies {
            for (key, entry) in &policy.entries {
                for (tier, slot) in [("admin", entry.admin), ("normal", entry.normal)] {
                    let Some(slot) = slot else { continue };
                    rows.push(self.policy_row(
                        policy.subject,
                        key,
                        tier,
                        &slot,
                        hits.get(&slot.rules).copied(),
                    ));
                }
            }
            for direction in &policy.default_deny {
                rows.push(row([
                    ("subject", json!(self.identity_text(policy.subject))),
                    ("direction", json!(direction.to_string())),
                    ("peer", json!("any")),
                    ("port", json!("any")),
                    ("tier", json!("default")),
                    ("action", json!("deny")),
                    ("hits", Value::Null),
                    (
                        "rules",
                        json!(
                            self.view
                                .engine()
                                .default_deny_objects(policy.subject, *direction)
                                .iter()
                                .map(|object| object.path())
                                .collect::<Vec<_>>()
                        ),
                    ),
                ]));
            }
        }
        Ok(rows)
    }

    fn policy_row(
        &self,
        subject: Identity,
        key: &PolicyKey,
        tier: &str,
        slot: &Slot,
        hits: Option<u64>,
    ) -> Row {
        row([
            ("subject", json!(self.identity_text(subject))),
            ("direction", json!(key.direction.to_string())),
            ("peer", json!(self.identity_text(key.identity))),
            ("port", json!(port_text(key))),
            ("tier", json!(tier)),
            ("action", json!(action_text(slot.action))),
            ("hits", json!(hits.unwrap_or(0))),
            ("rules", json!(self.rule_texts(slot.rules))),
        ])
    }

    fn connection_rows(
        &self,
        inspector: &Inspector,
        filter: &ConnectionFilter,
    ) -> Result<Vec<Row>, DatapathError> {
        let rows = inspector.connections(filter)?;
        Ok(rows
            .into_iter()
            .map(|connection| {
                let state = match connection {
                    _ if connection.expired => "expired",
                    _ if connection.denied => "denied",
                    _ if connection.closing => "closing",
                    _ if connection.seen_reply => "established",
                    _ => "new",
                };
                row([
                    ("protocol", json!(connection.protocol.to_string())),
                    (
                        "client",
                        json!(SocketAddr::new(connection.client.address, connection.client.port).to_string()),
                    ),
                    (
                        "server",
                        json!(SocketAddr::new(connection.server.address, connection.server.port).to_string()),
                    ),
                    (
                        "service",
                        json!(
                            connection
                                .frontend
                                .map(|(address, port)| SocketAddr::new(address, port).to_string())
                        ),
                    ),
                    ("state", json!(state)),
                    ("proxied", json!(connection.proxied)),
                    ("client identity", json!(self.identity_text(connection.client.identity))),
                    ("server identity", json!(self.identity_text(connection.server.identity))),
                    ("rules", json!(self.rule_texts(connection.rules))),
                ])
            })
            .collect())
    }

    fn metric_rows(&self, inspector: &Inspector, endpoint: Option<&str>) -> Result<Vec<Row>, DatapathError> {
        if let Some(member) = endpoint.and_then(|pod| self.endpoints.get(pod)) {
            let stats = inspector.endpoint_stats(member.registration.id)?;
            let lines = crate::model::Direction::BOTH.into_iter().flat_map(|direction| {
                [("forwarded", stats.forwarded), ("dropped", stats.dropped)].into_iter().map(
                    move |(what, counts)| {
                        let count = counts[direction as usize];
                        row([
                            ("direction", json!(direction.to_string())),
                            ("what", json!(what)),
                            ("packets", json!(count.packets)),
                            ("bytes", json!(count.bytes)),
                        ])
                    },
                )
            });
            return Ok(lines.collect());
        }
        let untold = inspector.untold()?;
        let untold = [
            ("drop events lost: ring full", untold.drops),
            ("verdict events lost: ring full", untold.verdicts),
            ("trace events lost: ring full", untold.traces),
            ("drop events not told: like others of the second", untold.repeated),
            ("drop events not told: over the device's limit", untold.over_limit),
        ];
        let untold = untold.into_iter().filter(|(_, events)| *events > 0).map(|(what, events)| {
            row([
                ("direction", Value::Null),
                ("what", json!(what)),
                ("packets", json!(events)),
                ("bytes", Value::Null),
            ])
        });
        Ok(inspector
            .metrics()?
            .into_iter()
            .map(|metric| {
                row([
                    ("direction", json!(metric.direction.to_string())),
                    (
                        "what",
                        json!(metric.reason.map_or("forwarded".to_owned(), |reason| reason.to_string())),
                    ),
                    ("packets", json!(metric.count.packets)),
                    ("bytes", json!(metric.count.bytes)),
                ])
            })
            .chain(untold)
            .collect())
    }
}

fn port_text(key: &PolicyKey) -> String {
    let Some(protocol) = key.protocol else { return "any".to_owned() };
    let typed = matches!(protocol, Protocol::Icmp | Protocol::Icmpv6);
    match key.port {
        PortClass::Any => format!("any/{protocol}"),
        PortClass::Exact(number) if typed => format!("type {number}/{protocol}"),
        PortClass::Exact(number) => format!("{number}/{protocol}"),
        PortClass::Class(class) => format!("class {class}/{protocol}"),
    }
}

fn action_text(action: SlotAction) -> String {
    match action {
        SlotAction::Allow => "allow".to_owned(),
        SlotAction::Deny => "deny".to_owned(),
        SlotAction::Pass => "pass".to_owned(),
        SlotAction::Redirect(proxy) => format!("redirect to {}", format!("{proxy:?}").to_uppercase()),
    }
}

fn ipcache_rows(inspector: &Inspector) -> Result<Vec<Row>, DatapathError> {
    Ok(inspector
        .ipcache()?
        .into_iter()
        .map(|entry| {
            row([
                ("prefix", json!(entry.prefix.to_string())),
                ("identity", json!(entry.identity.0)),
                ("behind", json!(entry.tunnel_endpoint.map(|address| address.to_string()))),
                ("in cluster", json!(entry.in_cluster)),
            ])
        })
        .collect())
}

fn service_rows(inspector: &Inspector) -> Result<Vec<Row>, DatapathError> {
    Ok(inspector
        .services()?
        .into_iter()
        .map(|service| {
            let frontend = SocketAddr::new(service.frontend.address, service.frontend.port);
            let backends: Vec<String> = service
                .backends
                .iter()
                .map(|backend| SocketAddr::new(backend.address, backend.port).to_string())
                .collect();
            row([
                ("frontend", json!(format!("{frontend}/{}", service.frontend.protocol))),
                ("backends", json!(backends)),
                ("affinity seconds", json!(service.affinity_secs)),
            ])
        })
        .collect())
}
