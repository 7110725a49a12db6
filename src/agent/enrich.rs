//! Bare events become flows, without a burden on the core.
//!
//! Who an address is stands in the [`Directory`], which the core keeps up to date. Which policies stand
//! behind a number, and which Service behind a frontend, is asked of the core once and kept. After a change
//! the answers are asked for again; a flow waits for that a moment and otherwise takes the older answer (the
//! engine gives a number another meaning as late as it can). Only what was never known is waited for.

use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;

use super::core::{Core, CoreHandle};
use crate::api::backend::Refusal;
use crate::cluster::delta::ServiceFrontend;
use crate::flow::directory::Directory;
use crate::flow::{DecidedBy, Decision, Flow, PolicyPart, ServiceRef};
use crate::model::{Direction, Identity, ObjectRef};
use crate::policy::map_state::RuleSetId;
use crate::policy::rule::RuleRef;

/// How long a flow waits for a fresher answer than the one there is.
const PATIENCE: Duration = Duration::from_millis(50);
/// Answers that are kept; above it they are asked for anew.
const KEPT: usize = 16_384;
/// Flows that are made under one lock, so that the core never waits long for it.
const AT_ONCE: usize = 128;

/// What a verdict rests on, as the kernel or a proxy names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Ground {
    RuleSet(RuleSetId),
    /// Nothing matched.
    DefaultDeny(Identity, Direction),
    /// A proxy's own list.
    Rules(Arc<[RuleRef]>),
}

impl Ground {
    /// Surely the same; neighbouring events often rest on the same.
    fn is(&self, other: &Ground) -> bool {
        match (self, other) {
            (Ground::Rules(one), Ground::Rules(other)) => Arc::ptr_eq(one, other),
            (Ground::Rules(_), _) | (_, Ground::Rules(_)) => false,
            _ => self == other,
        }
    }
}

/// What the core and enrichment share.
#[derive(Debug, Default)]
pub struct Shared {
    pub directory: Mutex<Directory>,
    /// Grows whenever policies or Services may have changed.
    pub changes: AtomicU64,
}

impl Shared {
    /// Answers of the core may be different from now on.
    pub fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }
}

/// Answers of the core, with the state of its knowledge that they belong to.
#[derive(Debug)]
struct Answers<K, V>(HashMap<K, (u64, V)>);

impl<K: Hash + Eq + Clone, V: Clone> Answers<K, V> {
    fn learn(&mut self, state: u64, answers: Vec<(K, V)>) {
        if self.0.len() + answers.len() > KEPT {
            self.0.clear();
        }
        self.0.extend(answers.into_iter().map(|(key, value)| (key, (state, value))));
    }

    fn get(&self, key: &K) -> Option<V> {
        self.0.get(key).map(|(_, value)| value.clone())
    }

    /// Whether there is an answer, and whether it is of this state.
    fn state(&self, key: &K, state: u64) -> Knowledge {
        match self.0.get(key) {
            None => Knowledge::None,
            Some((of, _)) if *of == state => Knowledge::Fresh,
            Some(_) => Knowledge::Old,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Knowledge {
    None,
    Old,
    Fresh,
}

/// An event that can become a flow.
pub trait Event {
    /// What its verdict rests on; `None` when no policy had a say.
    fn ground(&self) -> Option<Ground>;
    fn frontend(&self) -> Option<ServiceFrontend>;
    /// Names that this event tells of are noted before it is enriched.
    fn note(&self, directory: &mut Directory);
    fn into_flow(self, known: Known<'_>) -> Flow;
}

/// What an event is enriched from.
#[derive(Debug)]
pub struct Known<'a> {
    pub node: Arc<str>,
    pub directory: &'a mut Directory,
    pub decision: Arc<Decision>,
    pub service: Option<Arc<ServiceRef>>,
}

/// See the module.
#[derive(Debug)]
pub struct Enricher {
    core: CoreHandle,
    shared: Arc<Shared>,
    node: Arc<str>,
    decisions: Answers<Ground, Arc<Decision>>,
    services: Answers<ServiceFrontend, Arc<ServiceRef>>,
    no_policy: Arc<Decision>,
}

impl Enricher {
    pub fn new(core: CoreHandle, shared: Arc<Shared>, node: &str) -> Enricher {
        Enricher {
            core,
            shared,
            node: node.into(),
            decisions: Answers(HashMap::new()),
            services: Answers(HashMap::new()),
            no_policy: Arc::new(Decision::none()),
        }
    }

    /// Flows of these events, in their order.
    ///
    /// # Errors
    /// The core is gone.
    pub async fn flows<E: Event>(&mut self, events: Vec<E>) -> Result<Vec<Flow>, Refusal> {
        self.ask(&events).await?;
        let mut flows = Vec::with_capacity(events.len());
        let mut events = events.into_iter().peekable();
        let mut last: Option<(Ground, Arc<Decision>)> = None;
        while events.peek().is_some() {
            let mut directory = self.shared.directory.lock();
            for event in events.by_ref().take(AT_ONCE) {
                event.note(&mut directory);
                let decision = event.ground().map(|ground| match &last {
                    Some((before, decision)) if before.is(&ground) => Arc::clone(decision),
                    _ => {
                        let decision = self.decisions.get(&ground);
                        let decision = decision.unwrap_or_else(|| Arc::clone(&self.no_policy));
                        last = Some((ground, Arc::clone(&decision)));
                        decision
                    }
                });
                let known = Known {
                    node: Arc::clone(&self.node),
                    decision: decision.unwrap_or_else(|| Arc::clone(&self.no_policy)),
                    service: event.frontend().and_then(|frontend| self.services.get(&frontend)),
                    directory: &mut directory,
                };
                flows.push(event.into_flow(known));
            }
        }
        Ok(flows)
    }

    /// Gets the answers that these events need.
    async fn ask<E: Event>(&mut self, events: &[E]) -> Result<(), Refusal> {
        let state = self.shared.changes.load(Ordering::Acquire);
        let mut is_new = false;
        let mut grounds = HashSet::new();
        let mut frontends = HashSet::new();
        let mut last: Option<Ground> = None;
        for event in events {
            if let Some(ground) = event.ground()
                && !last.as_ref().is_some_and(|last| last.is(&ground))
            {
                last = Some(ground.clone());
                let knowledge = self.decisions.state(&ground, state);
                is_new |= knowledge == Knowledge::None;
                if knowledge != Knowledge::Fresh {
                    grounds.insert(ground);
                }
            }
            if let Some(frontend) = event.frontend() {
                let knowledge = self.services.state(&frontend, state);
                is_new |= knowledge == Knowledge::None;
                if knowledge != Knowledge::Fresh {
                    frontends.insert(frontend);
                }
            }
        }
        if grounds.is_empty() && frontends.is_empty() {
            return Ok(());
        }
        let asked = self.core.call(move |core| {
            let decisions: Vec<_> = (grounds.into_iter())
                .map(|ground| {
                    let decision = Arc::new(core.decision(&ground));
                    (ground, decision)
                })
                .collect();
            let services: Vec<_> =
                frontends.into_iter().map(|frontend| (frontend, Arc::new(core.service(frontend)))).collect();
            (decisions, services)
        });
        let (decisions, services) = if is_new {
            asked.await?
        } else {
            match tokio::time::timeout(PATIENCE, asked).await {
                Ok(answers) => answers?,
                // The core is at work: the older answers do, and the next batch asks again.
                Err(_) => return Ok(()),
            }
        };
        self.decisions.learn(state, decisions);
        self.services.learn(state, services);
        Ok(())
    }
}

impl Core {
    /// The policies behind a verdict.
    pub fn decision(&self, ground: &Ground) -> Decision {
        let engine = self.view.engine();
        let by_rules = |rules: &[RuleRef]| {
            let parts = self.policy_parts(rules);
            let matched = rules.iter().filter_map(|rule| Some(engine.rule(rule)?.matches_on())).max();
            (if parts.is_empty() { DecidedBy::NoPolicy } else { DecidedBy::Rules(parts) }, matched)
        };
        let (by, matched) = match ground {
            Ground::RuleSet(number) => by_rules(engine.rules_of(*number)),
            Ground::Rules(rules) => by_rules(rules),
            Ground::DefaultDeny(subject, direction) => {
                (DecidedBy::DefaultDeny(engine.default_deny_objects(*subject, *direction)), None)
            }
        };
        Decision { by, revision: self.realized, matched }
    }

    fn policy_parts(&self, rules: &[RuleRef]) -> Vec<PolicyPart> {
        let mut parts: std::collections::BTreeMap<&ObjectRef, Vec<Arc<str>>> = Default::default();
        for reference in rules {
            let paths = parts.entry(&reference.object).or_default();
            paths.extend(self.view.engine().rule(reference).map(|rule| Arc::clone(&rule.path)));
        }
        parts.into_iter().map(|(object, rules)| PolicyPart { object: object.clone(), rules }).collect()
    }

    fn service(&self, frontend: ServiceFrontend) -> ServiceRef {
        let ServiceFrontend { address, port, protocol } = frontend;
        let entry = self.view.translate(address, port, protocol);
        ServiceRef { name: entry.map(|entry| entry.service.as_str().into()), address, port }
    }
}

/// Names that the two ends used for each other.
pub fn used_names(
    directory: &mut Directory,
    source: IpAddr,
    destination: IpAddr,
) -> (Option<Arc<str>>, Option<Arc<str>>) {
    (directory.used_name(destination, source), directory.used_name(source, destination))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tests::{PODS, rig};
    use crate::api::backend::{ApplyMode, Backend as _};
    use crate::flow::record::{Record, RecordVerdict};
    use crate::flow::{EventKind, L7};
    use crate::model::Identity;

    const WEB: &str = "10.244.0.5:443";

    fn record(client: &str, server: &str, l7: L7) -> Record {
        Record {
            time_ns: 1,
            direction: Direction::Egress,
            verdict: RecordVerdict::Forwarded,
            protocol: 6,
            client: client.parse().unwrap(),
            server: server.parse().unwrap(),
            client_identity: Identity(300),
            server_identity: Identity(301),
            rules: Arc::from([]),
            l7,
        }
    }

    fn tls() -> L7 {
        L7::Tls { server_name: None }
    }

    #[tokio::test]
    async fn parties_are_known_by_the_objects_of_the_moment_and_names_by_the_answers_of_the_pod() {
        let rig = rig();
        let core = rig.backend.core.clone();
        let shared = core.call(|core| Arc::clone(&core.shared)).await.unwrap();
        let mut enricher = Enricher::new(core, shared, "node1");
        let before = enricher.flows(vec![record("10.244.0.6:1", WEB, tls())]).await.unwrap();
        assert_eq!(before[0].source.pod, None);
        rig.backend.apply(PODS.into(), ApplyMode::Commit).await.unwrap();
        let answer = L7::Dns {
            query: "API.example.".into(),
            query_type: "A".into(),
            rcode: "NOERROR".into(),
            answers: vec!["203.0.113.9".parse().unwrap()],
            latency_us: 5,
        };
        let flows = enricher
            .flows(vec![
                record("10.244.0.6:1", WEB, answer),
                record("10.244.0.6:2", "203.0.113.9:443", tls()),
                record("10.244.0.5:2", "203.0.113.9:443", tls()),
            ])
            .await
            .unwrap();
        assert_eq!(flows[0].source.display(), "shop/client");
        assert_eq!(flows[0].source.workload.as_ref().unwrap().to_string(), "Pod/client");
        assert_eq!((flows[0].kind, &*flows[0].node), (EventKind::L7, "node1"));
        assert_eq!(flows[1].destination_name.as_deref(), Some("api.example"));
        // Another pod asked for nothing: the name is known, but it is not the one that it used.
        assert_eq!(flows[2].destination_name, None);
        assert_eq!(flows[2].destination_names().map(|name| &**name).collect::<Vec<_>>(), ["api.example"]);
        assert!(Arc::ptr_eq(&flows[0].source, &flows[1].source));
        rig.backend.delete(ObjectRef::new(crate::model::Kind::Pod, "shop", "client")).await.unwrap();
        let after = enricher.flows(vec![record("10.244.0.6:1", WEB, tls())]).await.unwrap();
        assert_eq!(after[0].source.pod, None);
    }

    #[tokio::test]
    async fn verdicts_name_their_policies_and_the_revision() {
        let rig = rig();
        rig.backend.apply(PODS.into(), ApplyMode::Commit).await.unwrap();
        let deny = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: web-in}
spec: {podSelector: {matchLabels: {app: web}}}
";
        let applied = rig.backend.apply(deny.into(), ApplyMode::Commit).await.unwrap();
        let decision = rig
            .backend
            .core
            .call(|core| {
                let (identity, _) = core.view.pod_identity("shop", "web").unwrap();
                core.decision(&Ground::DefaultDeny(identity, Direction::Ingress))
            })
            .await
            .unwrap();
        let object = ObjectRef::new(crate::model::Kind::NetworkPolicy, "shop", "web-in");
        assert_eq!(decision.by, DecidedBy::DefaultDeny(vec![object]));
        assert_eq!(decision.revision, applied.revision);
    }
}
