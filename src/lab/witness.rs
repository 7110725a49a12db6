//! Why a step ended as it did: what the agents' flow events say.
//!
//! Events reach the flow buffer a moment after the packet, so the agents are asked again until a
//! matching event shows up or [`PATIENCE`] ends.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use serde_json::Value as Json;
use tokio::time::{Instant, sleep};

use super::control::ControlPlane;
use super::probe::Source;
use super::scenario::{Because, By};
use crate::model::{Direction, Protocol};

/// How long an event may take from the packet to the API.
const PATIENCE: Duration = Duration::from_millis(1500);
const POLL: Duration = Duration::from_millis(20);

/// Remembers when a step began and what its packets look like.
#[derive(Debug)]
pub struct Witness {
    since: jiff::Timestamp,
    source: Option<IpAddr>,
    protocol: Protocol,
}

/// Why the agents' events do not prove a reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unproven {
    #[error("the right outcome, but no agent reports a flow for it")]
    NothingSeen,
    #[error("the right outcome because of {}", .0.join("; "))]
    Otherwise(Vec<String>),
}

/// What one event says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Testimony {
    direction: Direction,
    allowed: bool,
    /// `default-deny`, `none`, `rule`, or why a packet was dropped that no policy judged.
    basis: String,
    /// `NAME` or `NS/NAME`.
    objects: Vec<String>,
}

impl Witness {
    /// Starts watching; everything that is sent from now on counts.
    pub fn new(source: &Source, protocol: Protocol) -> Witness {
        let since = jiff::Timestamp::try_from(SystemTime::now()).unwrap_or_default();
        Witness { since, source: source.address, protocol }
    }

    /// The same moment and sender, another protocol.
    pub fn of(&self, protocol: Protocol) -> Witness {
        Witness { protocol, ..*self }
    }

    /// `Err` says what the agents saw instead.
    pub async fn check(
        &self,
        control: &ControlPlane,
        because: &Because,
        allowed: bool,
    ) -> Result<(), Unproven> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.testimonies(control).await;
            if seen.iter().any(|testimony| testimony.allowed == allowed && proves(testimony, because)) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(if seen.is_empty() {
                    Unproven::NothingSeen
                } else {
                    Unproven::Otherwise(seen.iter().map(Testimony::to_string).collect())
                });
            }
            sleep(POLL).await;
        }
    }

    async fn testimonies(&self, control: &ControlPlane) -> Vec<Testimony> {
        let mut found: Vec<Testimony> = Vec::new();
        let mut path = format!("/v1/flows?follow=false&last=500&since={}", self.since);
        path.push_str(&format!("&protocol={}", self.protocol.to_string().to_ascii_lowercase()));
        if let Some(source) = self.source {
            path.push_str(&format!("&from-ip={source}"));
        }
        for (_, agent) in control.agents() {
            // An agent that restarts has nothing to say yet; it is asked again.
            let Ok(mut lines) = agent.lines(&path).await else { continue };
            while let Ok(Some(line)) = lines.next().await {
                let testimony = serde_json::from_str(&line).ok().and_then(|json: Json| read(&json["flow"]));
                if let Some(testimony) = testimony.filter(|testimony| !found.contains(testimony)) {
                    found.push(testimony);
                }
            }
        }
        found
    }
}

/// The testimony of a flow; replies and events without a verdict have none.
fn read(flow: &Json) -> Option<Testimony> {
    if flow["is_reply"].as_bool() == Some(true) {
        return None;
    }
    let allowed = match flow["verdict"].as_str()? {
        "FORWARDED" | "REDIRECTED" => true,
        "DROPPED" => false,
        _ => return None,
    };
    let direction = match flow["traffic_direction"].as_str()? {
        "EGRESS" => Direction::Egress,
        "INGRESS" => Direction::Ingress,
        _ => return None,
    };
    let key = format!("{direction}_{}_by", if allowed { "allowed" } else { "denied" });
    let objects = flow[&key].as_array().into_iter().flatten().filter_map(|object| {
        let name = object["name"].as_str()?;
        Some(match object["namespace"].as_str() {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name.to_owned(),
        })
    });
    let basis = match flow["sluice"]["decision"].as_str() {
        Some("DECISION_RULES") => "rule",
        Some("DECISION_DEFAULT_DENY") => "default-deny",
        // No policy had a say: allowed, or a drop for another reason.
        _ => flow["sluice"]["drop_reason"].as_str().unwrap_or("none"),
    }
    .to_owned();
    Some(Testimony { direction, allowed, basis, objects: objects.collect() })
}

fn proves(testimony: &Testimony, because: &Because) -> bool {
    because.direction.is_none_or(|direction| direction == testimony.direction)
        && match &because.by {
            None => true,
            Some(By::DefaultDeny) => testimony.basis == "default-deny",
            Some(By::Object(name)) => testimony.basis == "rule" && testimony.objects.contains(name),
        }
}

/// A reason as people write it.
pub fn describe(because: &Because) -> String {
    let direction = because.direction.map(|direction| direction.to_string());
    let by = because.by.as_ref().map(|by| match by {
        By::DefaultDeny => "default-deny".to_owned(),
        By::Object(name) => name.clone(),
    });
    direction.into_iter().chain(by).collect::<Vec<_>>().join(" ")
}

impl std::fmt::Display for Testimony {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.direction, if self.allowed { "allowed" } else { "denied" })?;
        match self.basis.as_str() {
            "rule" => write!(f, " by {}", self.objects.join(", ")),
            other => write!(f, " by {other}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_proves_its_own_direction_and_object_only() {
        let flow = json!({
            "verdict": "DROPPED", "traffic_direction": "INGRESS", "is_reply": false, "sluice": {"decision": "DECISION_RULES"},
            "ingress_denied_by": [{"name": "deny-all", "namespace": "shop", "kind": "NetworkPolicy"}],
        });
        let testimony = read(&flow).unwrap();
        let because =
            |direction, by: &str| Because { direction: Some(direction), by: Some(By::Object(by.into())) };
        assert!(proves(&testimony, &because(Direction::Ingress, "shop/deny-all")));
        assert!(!proves(&testimony, &because(Direction::Egress, "shop/deny-all")));
        assert!(!proves(&testimony, &because(Direction::Ingress, "deny-all")));
        assert!(!proves(&testimony, &Because { direction: None, by: Some(By::DefaultDeny) }));
        assert_eq!(testimony.to_string(), "ingress denied by shop/deny-all");
    }

    #[test]
    fn replies_prove_nothing() {
        let flow = json!({"verdict": "FORWARDED", "traffic_direction": "EGRESS", "is_reply": true});
        assert_eq!(read(&flow), None);
    }
}
