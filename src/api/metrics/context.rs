//! Which labels flows get besides those of their metric: Hubble's context options.
//!
//! `sourceContext=workload|reserved-identity;destinationContext=pod|dns|ip;labelsContext=source_namespace,...`

use std::str::FromStr;

use super::table::{Text, Values};
use crate::flow::{Flow, Party};
use crate::model::Direction;

/// How an end is named, first that applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Naming {
    Namespace,
    Pod,
    PodName,
    Workload,
    WorkloadName,
    App,
    ReservedIdentity,
    Identity,
    Dns,
    Ip,
}

const NAMINGS: &[(&str, Naming)] = &[
    ("namespace", Naming::Namespace),
    ("pod", Naming::Pod),
    ("pod-name", Naming::PodName),
    ("workload", Naming::Workload),
    ("workload-name", Naming::WorkloadName),
    ("app", Naming::App),
    ("reserved-identity", Naming::ReservedIdentity),
    ("identity", Naming::Identity),
    ("dns", Naming::Dns),
    ("ip", Naming::Ip),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Source(Naming),
    Destination(Naming),
    WorkloadKind(Side),
    TrafficDirection,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

/// Names of `labelsContext` (Hubble's documentation of metrics).
const LABELS: &[(&str, Of)] = &[
    ("source_ip", Of::Source(Naming::Ip)),
    ("source_pod", Of::Source(Naming::PodName)),
    ("source_namespace", Of::Source(Naming::Namespace)),
    ("source_workload", Of::Source(Naming::WorkloadName)),
    ("source_workload_kind", Of::WorkloadKind(Side::Source)),
    ("source_app", Of::Source(Naming::App)),
    ("destination_ip", Of::Destination(Naming::Ip)),
    ("destination_pod", Of::Destination(Naming::PodName)),
    ("destination_namespace", Of::Destination(Naming::Namespace)),
    ("destination_workload", Of::Destination(Naming::WorkloadName)),
    ("destination_workload_kind", Of::WorkloadKind(Side::Destination)),
    ("destination_app", Of::Destination(Naming::App)),
    ("traffic_direction", Of::TrafficDirection),
];

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    source: Vec<Naming>,
    destination: Vec<Naming>,
    labels: Vec<(&'static str, Of)>,
}

/// An option that is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?}: {1}")]
pub struct ContextError(String, String);

fn known<T: Copy>(text: &str, list: &'static [(&'static str, T)]) -> Result<(&'static str, T), ContextError> {
    list.iter().find(|(name, _)| *name == text).copied().ok_or_else(|| {
        let names: Vec<_> = list.iter().map(|(name, _)| *name).collect();
        ContextError(text.to_owned(), format!("expected one of {}", names.join(", ")))
    })
}

impl FromStr for Context {
    type Err = ContextError;

    fn from_str(text: &str) -> Result<Context, ContextError> {
        let mut context = Context::default();
        for option in text.split(';').map(str::trim).filter(|option| !option.is_empty()) {
            let (name, value) = option
                .split_once('=')
                .ok_or_else(|| ContextError(option.to_owned(), "expected OPTION=VALUE".to_owned()))?;
            let naming = |name: &str| known(name.trim(), NAMINGS).map(|(_, naming)| naming);
            match name {
                "sourceContext" => context.source = value.split('|').map(naming).collect::<Result<_, _>>()?,
                "destinationContext" => {
                    context.destination = value.split('|').map(naming).collect::<Result<_, _>>()?;
                }
                "labelsContext" => {
                    let labels = value.split(',').map(|label| known(label.trim(), LABELS));
                    context.labels = labels.collect::<Result<_, _>>()?;
                }
                other => {
                    let expected = "expected sourceContext, destinationContext or labelsContext".to_owned();
                    return Err(ContextError(other.to_owned(), expected));
                }
            }
        }
        Ok(context)
    }
}

impl Context {
    /// Names of the labels, in the order of [`Context::values`].
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        let source = (!self.source.is_empty()).then_some("source");
        let destination = (!self.destination.is_empty()).then_some("destination");
        source.into_iter().chain(destination).chain(self.labels.iter().map(|(name, _)| *name))
    }

    /// Appends the values for this flow.
    pub fn values(&self, flow: &Flow, values: &mut Values) {
        let first = |namings: &[Naming], side| {
            let mut texts = namings.iter().map(|naming| text(*naming, flow, side));
            texts.find(|text| *text != Text::Static("")).unwrap_or(Text::Static(""))
        };
        if !self.source.is_empty() {
            values.push(first(&self.source, Side::Source));
        }
        if !self.destination.is_empty() {
            values.push(first(&self.destination, Side::Destination));
        }
        for (_, of) in &self.labels {
            values.push(match of {
                Of::Source(naming) => text(*naming, flow, Side::Source),
                Of::Destination(naming) => text(*naming, flow, Side::Destination),
                Of::WorkloadKind(side) => {
                    let workload = party(flow, *side).workload.as_ref();
                    Text::from(&workload.map(|workload| workload.kind.clone()))
                }
                Of::TrafficDirection => match flow.direction {
                    Direction::Egress => "egress".into(),
                    Direction::Ingress => "ingress".into(),
                },
            });
        }
    }
}

fn party(flow: &Flow, side: Side) -> &Party {
    match side {
        Side::Source => &flow.source,
        Side::Destination => &flow.destination,
    }
}

fn text(naming: Naming, flow: &Flow, side: Side) -> Text {
    let party = party(flow, side);
    let shared = |text: String| Text::Shared(text.into());
    let in_namespace =
        |name: &str| shared(format!("{}/{name}", party.namespace.as_deref().unwrap_or_default()));
    match naming {
        Naming::Namespace => Text::from(&party.namespace),
        Naming::Pod => party.pod.as_ref().map_or("".into(), |pod| in_namespace(pod)),
        Naming::PodName => Text::from(&party.pod),
        Naming::Workload => {
            party.workload.as_ref().map_or("".into(), |workload| in_namespace(&workload.name))
        }
        Naming::WorkloadName => Text::from(&party.workload.as_ref().map(|workload| workload.name.clone())),
        Naming::App => {
            let keys = ["app.kubernetes.io/name", "app", "k8s-app"];
            let label = keys.iter().find_map(|key| party.labels.get(None, key));
            label.map_or("".into(), |label| Text::Shared(label.value.clone()))
        }
        Naming::ReservedIdentity => {
            party.identity.reserved_name().map_or("".into(), |name| shared(format!("reserved:{name}")))
        }
        Naming::Identity => Text::Number(party.identity.0),
        Naming::Dns => match side {
            Side::Source => flow.source_names().next(),
            Side::Destination => flow.destination_names().next(),
        }
        .map_or("".into(), |name| Text::Shared(name.clone())),
        Naming::Ip => shared(party.address.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests::flow;

    fn values(options: &str) -> Vec<(&'static str, Text)> {
        let context: Context = options.parse().unwrap();
        let mut values = Values::new();
        context.values(&flow(80), &mut values);
        context.names().zip(values).collect()
    }

    #[test]
    fn options_of_hubble_are_read() {
        let found = values(
            "sourceContext=reserved-identity|workload;destinationContext=dns|pod;\
             labelsContext=source_namespace,destination_workload_kind,traffic_direction",
        );
        let shared = |text: &str| Text::Shared(text.into());
        assert_eq!(
            found,
            [
                ("source", shared("shop/frontend")),
                ("destination", shared("shop/backend")),
                ("source_namespace", shared("shop")),
                ("destination_workload_kind", shared("Deployment")),
                ("traffic_direction", Text::Static("egress")),
            ]
        );
        assert_eq!(values(""), []);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for bad in ["sourceContext=podd", "labelsContext=source", "nonsense", "x=y"] {
            assert!(bad.parse::<Context>().is_err(), "{bad}");
        }
    }
}
