//! Flows that are no longer in memory: what history offers to those who serve flows.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::backend::Refusal;
use crate::flow::filter::{Condition, Filter, PartyMatch};
use crate::flow::{DecidedBy, Decision, EventKind, Flow, Observation, Party, Verdict};
use crate::model::{Direction, Identity, Protocol};

/// Flows in the order of time, or why there are none; the channel ends after either.
pub type Past = Result<Vec<Flow>, Refusal>;

/// Whether a pod (namespace, name) is among those that are wanted.
pub type WantedPods = Arc<dyn Fn(&str, &str) -> bool + Send + Sync>;

/// A question to history.
#[derive(Clone)]
pub struct PastQuery {
    /// Nanoseconds since 1970; both inclusive.
    pub since_ns: u64,
    pub until_ns: u64,
    /// Where every wanted flow has one of these pods at an end: history has an index for that.
    pub pods: Option<WantedPods>,
    pub matches: Arc<dyn Fn(&Flow) -> bool + Send + Sync>,
    /// Only so many, the newest.
    pub newest: Option<usize>,
}

impl std::fmt::Debug for PastQuery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PastQuery")
            .field("since_ns", &self.since_ns)
            .field("until_ns", &self.until_ns)
            .field("newest", &self.newest)
            .finish_non_exhaustive()
    }
}

/// Implemented by the agent that keeps history.
pub trait PastFlows: Send + Sync + 'static {
    /// Flows of the past, batch by batch, until the receiver is dropped.
    fn past(&self, query: PastQuery) -> mpsc::Receiver<Past>;
}

impl PastQuery {
    /// Everything that a filter takes, before `until_ns` (exclusive).
    pub fn of(filter: &Filter, before_ns: u64, newest: Option<usize>) -> PastQuery {
        let wanted = filter.clone();
        PastQuery {
            since_ns: filter.since_ns.unwrap_or(0),
            until_ns: filter.until_ns.unwrap_or(u64::MAX).min(before_ns.saturating_sub(1)),
            pods: pods(filter),
            matches: Arc::new(move |flow| wanted.matches(flow)),
            newest,
        }
    }
}

/// Pods that a filter demands: a group of it that speaks of pods and namespaces alone.
pub fn pods(filter: &Filter) -> Option<WantedPods> {
    let is_about_pods = |condition: &Condition| {
        matches!(condition, Condition::Party(_, PartyMatch::Pod(_) | PartyMatch::Namespace(_)))
    };
    let group = filter.all.iter().find(|group| !group.is_empty() && group.iter().all(is_about_pods))?;
    let probe = Filter { all: vec![group.clone()], ..Filter::default() };
    Some(Arc::new(move |namespace, pod| probe.matches(&between(namespace, pod))))
}

/// A flow from a pod to itself: what any condition about pods takes if it takes the pod.
fn between(namespace: &str, pod: &str) -> Flow {
    let party = Arc::new(Party {
        namespace: Some(namespace.into()),
        pod: Some(pod.into()),
        ..Party::unknown(std::net::Ipv4Addr::UNSPECIFIED.into(), Identity::UNKNOWN)
    });
    Flow {
        time_ns: 0,
        sequence: 0,
        node: "".into(),
        kind: EventKind::Trace,
        verdict: Verdict::Forwarded,
        direction: Direction::Egress,
        source: Arc::clone(&party),
        source_port: None,
        source_name: None,
        destination: party,
        destination_port: None,
        destination_name: None,
        protocol: Protocol::Tcp,
        tcp_flags: 0,
        icmp: None,
        is_reply: false,
        is_established: false,
        service: None,
        decision: Arc::new(Decision { by: DecidedBy::NoPolicy, revision: 0, matched: None }),
        length: 0,
        count: 1,
        observation: Observation::FromEndpoint,
        interface: None,
        l7: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::flow_query;

    #[test]
    fn a_filter_by_pod_or_namespace_names_the_pods_that_matter() {
        let filter = |query: &[(&str, &str)]| flow_query::filter(query.iter().copied()).unwrap();
        let wanted = pods(&filter(&[("pod", "shop/front"), ("port", "80")])).unwrap();
        assert!(wanted("shop", "frontend-1") && !wanted("shop", "backend") && !wanted("other", "frontend-1"));
        let wanted = pods(&filter(&[("to-namespace", "shop")])).unwrap();
        assert!(wanted("shop", "x") && !wanted("other", "x"));
        assert!(pods(&filter(&[("port", "80")])).is_none());
        assert!(pods(&filter(&[("not-pod", "shop/front")])).is_none());
    }
}
