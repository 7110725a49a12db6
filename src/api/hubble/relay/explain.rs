//! What the agents of a cluster say together: why a connection is allowed or denied, and by which policies.
//!
//! An agent judges the sides of a connection whose pods live with it, and no other. Which nodes those are is not
//! asked of the flows (a denied connection was seen on one side only): every node is asked, and most say that neither
//! end is theirs. A node that does not answer may decide a side, so it is named in the answer.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::pool::{PeerState, Pool};
use crate::api::backend::Refusal;
use crate::api::hubble::client::causes;
use crate::api::hubble::explain;
use crate::api::hubble::pb::sluice::explain::v1::explainer_client::ExplainerClient;
use crate::api::hubble::pb::sluice::explain::v1::{Answer, GovernedRequest, PoliciesRequest};
use crate::api::ui::source::{Governed, PolicyUse, Question, Suggestion, Why};
use crate::model::ObjectRef;

/// Nodes that are asked at once.
const AT_ONCE: usize = 32;
/// How long one of them may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// What became of one question to every node.
#[derive(Debug)]
pub(super) struct Answers<T> {
    /// By node, in order.
    given: Vec<(Arc<str>, T)>,
    /// Nodes without an answer, and why.
    pub missing: BTreeMap<Arc<str>, Missing>,
}

/// Why a node has no answer.
#[derive(Clone, Debug)]
pub(super) enum Missing {
    /// It was not asked: it does not answer at all.
    Unavailable(Arc<str>),
    Failed(Status),
    /// It took too long, or said something else.
    Useless(String),
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Missing::Unavailable(why) => write!(f, "{why}"),
            Missing::Failed(status) if status.code() == Code::Unimplemented => {
                f.write_str("its agent is of a version that explains nothing")
            }
            Missing::Failed(status) => f.write_str(&causes(status)),
            Missing::Useless(why) => f.write_str(why),
        }
    }
}

/// Asks every node.
async fn ask<T, F>(pool: &Pool, question: impl Fn(ExplainerClient<Channel>) -> F) -> Answers<T>
where
    T: DeserializeOwned,
    F: Future<Output = Result<Response<Answer>, Status>>,
{
    let peers = pool.peers();
    let question = &question;
    let one = |peer: super::pool::Peer| async move {
        if let PeerState::Unavailable(why) = &peer.state {
            return (peer.name, Err(Missing::Unavailable(Arc::clone(why))));
        }
        let answer = match timeout(PATIENCE, question(peer.explainer())).await {
            Err(_) => Err(Missing::Useless("no answer in time".into())),
            Ok(Err(status)) => Err(Missing::Failed(status)),
            Ok(Ok(answer)) => explain::read(answer.get_ref()).map_err(Missing::Useless),
        };
        (peer.name, answer)
    };
    let mut answers = Answers { given: Vec::new(), missing: BTreeMap::new() };
    let mut coming = futures::stream::iter(peers.values().cloned().map(one)).buffer_unordered(AT_ONCE);
    while let Some((node, answer)) = coming.next().await {
        match answer {
            Ok(answer) => answers.given.push((node, answer)),
            Err(missing) => {
                answers.missing.insert(node, missing);
            }
        }
    }
    answers.given.sort_by(|(a, _), (b, _)| a.cmp(b));
    answers
}

impl<T> Answers<T> {
    fn missing(&self) -> Vec<String> {
        self.missing.iter().map(|(node, why)| format!("{node}: {why}")).collect()
    }

    /// Nobody said anything.
    fn silence(&self) -> Option<Refusal> {
        self.given.is_empty().then(|| {
            let mut text = "no node answers".to_owned();
            for (node, why) in self.missing.iter().take(3) {
                write!(text, "; {node}: {why}").ok();
            }
            Refusal::Failed(text)
        })
    }
}

pub(super) async fn why(pool: &Pool, question: &Question) -> Answers<Why> {
    let message = explain::question(question);
    ask(pool, |mut client| {
        let message = message.clone();
        async move { client.why(message).await }
    })
    .await
}

pub(super) async fn policies(pool: &Pool) -> Answers<Vec<PolicyUse>> {
    ask(pool, |mut client| async move { client.policies(PoliciesRequest {}).await }).await
}

pub(super) async fn governed(pool: &Pool) -> Answers<Vec<Governed>> {
    ask(pool, |mut client| async move { client.governed(GovernedRequest {}).await }).await
}

pub(super) async fn manifest(pool: &Pool, object: &ObjectRef) -> Answers<String> {
    let key = explain::key(object);
    ask(pool, |mut client| {
        let key = key.clone();
        async move { client.manifest(key).await }
    })
    .await
}

impl Answers<Why> {
    /// Denied where one side is; allowed by nothing less than every side.
    pub fn join(self) -> Result<Why, Refusal> {
        if let Some(silence) = self.silence() {
            return Err(silence);
        }
        let mut whole = Why { verdict: "allowed".into(), missing: self.missing(), ..Why::default() };
        let mut suggestions = Vec::new();
        for (node, why) in self.given {
            if why.verdict == "denied" || (why.verdict == "redirected" && whole.verdict == "allowed") {
                whole.verdict = why.verdict;
            }
            let named = |side| crate::api::types::ExplainSide { node: Some(node.to_string()), ..side };
            whole.sides.extend(why.sides.into_iter().map(named));
            suggestions.extend(why.suggestion);
        }
        whole.sides.sort_by_key(|side| side.direction != crate::model::Direction::Egress);
        whole.suggestion = join_suggestions(suggestions, &whole.missing);
        Ok(whole)
    }
}

/// What opens every side that is denied; a side that nothing opens leaves nothing to apply.
fn join_suggestions(suggestions: Vec<Suggestion>, missing: &[String]) -> Option<Suggestion> {
    let mut notes: Vec<String> = Vec::new();
    for note in suggestions.iter().flat_map(|suggestion| &suggestion.notes) {
        if !notes.contains(note) {
            notes.push(note.clone());
        }
    }
    let verified = missing.is_empty() && suggestions.iter().all(|suggestion| suggestion.verified);
    let texts: Option<Vec<String>> = suggestions.into_iter().map(|suggestion| suggestion.yaml).collect();
    match texts {
        Some(texts) if texts.is_empty() => None,
        Some(texts) => Some(Suggestion { yaml: Some(texts.join("---\n")), notes, verified }),
        None => Some(Suggestion { yaml: None, notes, verified: false }),
    }
}

impl Answers<Vec<PolicyUse>> {
    /// Nodes of one cluster have the same policies, and each its own pods and counts.
    pub fn join(self) -> Result<Vec<PolicyUse>, Refusal> {
        if let Some(silence) = self.silence() {
            return Err(silence);
        }
        let mut whole: BTreeMap<ObjectRef, PolicyUse> = BTreeMap::new();
        for policy in self.given.into_iter().flat_map(|(_, policies)| policies) {
            match whole.get_mut(&policy.object) {
                Some(known) => add(known, policy),
                None => {
                    whole.insert(policy.object.clone(), policy);
                }
            }
        }
        Ok(whole.into_values().collect())
    }
}

fn add(whole: &mut PolicyUse, part: PolicyUse) {
    whole.selects.extend(part.selects);
    for direction in part.default_deny {
        if !whole.default_deny.contains(&direction) {
            whole.default_deny.push(direction);
        }
    }
    for (at, rule) in part.rules.into_iter().enumerate() {
        let is_same = |known: &crate::api::ui::source::RuleUse| {
            known.path == rule.path && known.direction == rule.direction && known.action == rule.action
        };
        // Where the nodes have one revision, and they differ for a moment only, a rule is where it was.
        let known = match whole.rules.get(at).is_some_and(is_same) {
            true => Some(at),
            false => whole.rules.iter().position(is_same),
        };
        match known {
            Some(at) => {
                let known = &mut whole.rules[at];
                known.hits = match (known.hits, rule.hits) {
                    (Some(a), Some(b)) => Some(a.saturating_add(b)),
                    (a, b) => a.or(b),
                };
                known.idle &= rule.idle;
            }
            None => whole.rules.push(rule),
        }
    }
}

impl Answers<Vec<Governed>> {
    pub fn join(self) -> Result<Vec<Governed>, Refusal> {
        match self.silence() {
            Some(silence) => Err(silence),
            None => Ok(self.given.into_iter().flat_map(|(_, pods)| pods).collect()),
        }
    }
}

impl Answers<String> {
    /// Whoever has it.
    pub fn join(mut self, object: &ObjectRef) -> Result<String, Refusal> {
        let unknown =
            |missing: &Missing| matches!(missing, Missing::Failed(status) if status.code() == Code::NotFound);
        match self.silence() {
            None => Ok(self.given.swap_remove(0).1),
            Some(_) if self.missing.values().any(unknown) => Err(Refusal::NotFound(format!("no {object}"))),
            Some(silence) => Err(silence),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::ExplainSide;
    use crate::api::ui::source::RuleUse;
    use crate::model::{Direction, Kind};

    fn answers<T>(given: Vec<(&str, T)>) -> Answers<T> {
        Answers {
            given: given.into_iter().map(|(node, answer)| (node.into(), answer)).collect(),
            missing: BTreeMap::new(),
        }
    }

    fn side(direction: Direction, verdict: &str) -> ExplainSide {
        ExplainSide {
            direction,
            verdict: verdict.into(),
            because: "default-deny".into(),
            objects: Vec::new(),
            rules: Vec::new(),
            near_miss: None,
            node: None,
        }
    }

    fn denied(direction: Direction, yaml: Option<&str>) -> Why {
        let suggestion = Suggestion {
            yaml: yaml.map(str::to_owned),
            notes: vec!["a note".into()],
            verified: yaml.is_some(),
        };
        Why {
            verdict: "denied".into(),
            sides: vec![side(direction, "denied")],
            suggestion: Some(suggestion),
            missing: Vec::new(),
        }
    }

    fn other() -> Why {
        Why { verdict: "allowed".into(), ..Why::default() }
    }

    #[test]
    fn both_nodes_sides_and_both_nodes_manifests_are_in_one_answer() {
        let ingress = denied(Direction::Ingress, Some("kind: B\n"));
        let egress = denied(Direction::Egress, Some("kind: A\n"));
        let why = answers(vec![("n1", ingress), ("n2", other()), ("n3", egress)]).join().unwrap();
        assert_eq!(why.verdict, "denied");
        let sides: Vec<_> = why.sides.iter().map(|s| (s.direction, s.node.as_deref().unwrap())).collect();
        assert_eq!(sides, [(Direction::Egress, "n3"), (Direction::Ingress, "n1")]);
        let suggestion = why.suggestion.unwrap();
        assert_eq!(suggestion.yaml.unwrap(), "kind: B\n---\nkind: A\n");
        assert_eq!((suggestion.notes.len(), suggestion.verified), (1, true));
    }

    #[test]
    fn one_denied_side_denies_and_one_that_nothing_opens_leaves_nothing_to_apply() {
        let redirected = Why { verdict: "redirected".into(), ..other() };
        let join = |given: Vec<(&str, Why)>| answers(given).join().unwrap();
        assert_eq!(join(vec![("n1", redirected.clone()), ("n2", other())]).verdict, "redirected");
        let open = denied(Direction::Egress, Some("kind: A\n"));
        let shut = denied(Direction::Ingress, None);
        let why = join(vec![("n0", redirected), ("n1", open), ("n2", shut), ("n3", other())]);
        assert_eq!(why.verdict, "denied");
        let suggestion = why.suggestion.unwrap();
        assert_eq!((suggestion.yaml, suggestion.verified), (None, false));
    }

    #[test]
    fn a_node_that_does_not_answer_is_named_and_nothing_counts_as_tried() {
        let mut part = answers(vec![("n1", denied(Direction::Egress, Some("kind: A\n")))]);
        part.missing.insert("n2".into(), Missing::Failed(Status::unimplemented("x")));
        let why = part.join().unwrap();
        assert!(!why.suggestion.unwrap().verified);
        assert_eq!(why.missing, ["n2: its agent is of a version that explains nothing"]);
        let mut silence = answers::<Why>(Vec::new());
        silence.missing.insert("n2".into(), Missing::Unavailable("refused".into()));
        assert_eq!(silence.join().unwrap_err().to_string(), "no node answers; n2: refused");
    }

    #[test]
    fn uses_of_a_policy_add_up_over_nodes() {
        let rule = |path: &str, hits, idle| RuleUse {
            path: path.into(),
            direction: Direction::Ingress,
            action: "allow".into(),
            hits,
            idle,
        };
        let used = |pod: &str, rules| PolicyUse {
            object: ObjectRef::new(Kind::NetworkPolicy, "shop", "web"),
            selects: vec![pod.into()],
            default_deny: vec![Direction::Ingress],
            rules,
        };
        let one = vec![used("shop/a", vec![rule("x", Some(1), true), rule("y", None, true)])];
        let two = vec![used("shop/b", vec![rule("y", Some(2), false), rule("x", Some(4), true)])];
        let joined = answers(vec![("n1", one), ("n2", two)]).join().unwrap();
        let [joined] = &joined[..] else { panic!("{joined:?}") };
        assert_eq!((joined.selects.len(), joined.default_deny.len()), (2, 1));
        assert_eq!(joined.rules, [rule("x", Some(5), true), rule("y", Some(2), false)]);
    }
}
