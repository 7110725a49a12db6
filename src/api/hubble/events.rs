//! `GetAgentEvents`: what the agent itself did.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::Stream;
use tonic::Status;

use super::convert::timestamp;
use super::filter;
use super::pb::flow as pb;
use super::pb::flow::agent_event::Notification;
use super::pb::observer::{GetAgentEventsRequest, GetAgentEventsResponse};
use super::source::Observed;
use crate::flow::journal::{AgentEvent, Entry};
use crate::model::ObjectRef;

/// Checks the request, and fixes where it begins.
pub fn stream(
    source: Arc<dyn Observed>,
    request: &GetAgentEventsRequest,
) -> Result<impl Stream<Item = Result<GetAgentEventsResponse, Status>> + Send + use<>, Status> {
    if request.first && request.follow {
        return Err(Status::invalid_argument("first cannot be specified with follow"));
    }
    let since = filter::time("since", request.since.as_ref())?.unwrap_or(0);
    let until = filter::time("until", request.until.as_ref())?.unwrap_or(u64::MAX);
    let grown = source.journal_grown();
    let batch = source.journal(0);
    let mut past: VecDeque<_> =
        batch.entries.into_iter().filter(|entry| (since..=until).contains(&entry.time_ns)).collect();
    let nothing_past = request.follow && request.number == 0 && request.since.is_none();
    let number = usize::try_from(request.number).unwrap_or(usize::MAX);
    match (nothing_past, request.number, request.first) {
        (true, ..) => past.clear(),
        (false, 0, _) => {}
        (false, _, true) => past.truncate(number),
        (false, _, false) => drop(past.drain(..past.len().saturating_sub(number))),
    }
    let state = (source, past, batch.cursor, grown, request.follow);
    Ok(futures::stream::unfold(state, move |(source, mut ready, mut cursor, mut grown, follow)| async move {
        loop {
            if let Some(entry) = ready.pop_front() {
                let response = response(&entry, source.as_ref());
                return Some((Ok(response), (source, ready, cursor, grown, follow)));
            }
            if !follow {
                return None;
            }
            grown.mark_unchanged();
            let batch = source.journal(cursor);
            cursor = batch.cursor;
            ready.extend(batch.entries.into_iter().filter(|entry| entry.time_ns <= until));
            if ready.is_empty() {
                grown.changed().await.ok()?;
            }
        }
    }))
}

fn response(entry: &Entry, source: &dyn Observed) -> GetAgentEventsResponse {
    GetAgentEventsResponse {
        agent_event: Some(event(entry)),
        node_name: source.naming().node(source.node()),
        time: Some(timestamp(entry.time_ns)),
    }
}

fn event(entry: &Entry) -> pb::AgentEvent {
    let (kind, notification) = match &entry.event {
        AgentEvent::Started => (
            pb::AgentEventType::AgentStarted,
            Notification::AgentStart(pb::TimeNotification { time: Some(timestamp(entry.time_ns)) }),
        ),
        AgentEvent::PolicyUpdated { object, revision, rules } => {
            (pb::AgentEventType::PolicyUpdated, policy(object, *revision, *rules))
        }
        AgentEvent::PolicyDeleted { object, revision } => {
            (pb::AgentEventType::PolicyDeleted, policy(object, *revision, 0))
        }
        AgentEvent::EndpointCreated { pod, id } => (pb::AgentEventType::EndpointCreated, endpoint(pod, *id)),
        AgentEvent::EndpointDeleted { pod, id } => (pb::AgentEventType::EndpointDeleted, endpoint(pod, *id)),
        AgentEvent::Regenerated { revision } => (
            pb::AgentEventType::EndpointRegenerateSuccess,
            Notification::EndpointRegenerate(pb::EndpointRegenNotification {
                id: 0,
                labels: vec![format!("revision={revision}")],
                error: String::new(),
            }),
        ),
        AgentEvent::RegenerationFailed { revision, error } => (
            pb::AgentEventType::EndpointRegenerateFailure,
            Notification::EndpointRegenerate(pb::EndpointRegenNotification {
                id: 0,
                labels: vec![format!("revision={revision}")],
                error: error.to_string(),
            }),
        ),
        AgentEvent::AddressLearned { prefix, identity } => (
            pb::AgentEventType::IpcacheUpserted,
            Notification::IpcacheUpdate(pb::IpCacheNotification {
                cidr: prefix.to_string(),
                identity: identity.0,
                ..Default::default()
            }),
        ),
        AgentEvent::AddressForgotten { prefix } => (
            pb::AgentEventType::IpcacheDeleted,
            Notification::IpcacheUpdate(pb::IpCacheNotification {
                cidr: prefix.to_string(),
                ..Default::default()
            }),
        ),
    };
    pb::AgentEvent { r#type: kind.into(), notification: Some(notification) }
}

fn policy(object: &ObjectRef, revision: u64, rules: usize) -> Notification {
    Notification::PolicyUpdate(pb::PolicyUpdateNotification {
        labels: vec![
            format!("k8s:io.cilium.k8s.policy.derived-from={}", object.kind),
            format!("k8s:io.cilium.k8s.policy.namespace={}", object.namespace),
            format!("k8s:io.cilium.k8s.policy.name={}", object.name),
        ],
        revision,
        rule_count: i64::try_from(rules).unwrap_or(i64::MAX),
    })
}

fn endpoint(pod: &str, id: u16) -> Notification {
    let (namespace, name) = pod.split_once('/').unwrap_or(("", pod));
    Notification::EndpointUpdate(pb::EndpointUpdateNotification {
        id: u64::from(id),
        labels: Vec::new(),
        error: String::new(),
        pod_name: name.to_owned(),
        namespace: namespace.to_owned(),
    })
}
