//! Why a connection is allowed or denied, and the smallest policy that would allow it, tried in the engine.
//!
//! A suggestion is applied to the view as a transaction, the connection is judged again, and the transaction is taken
//! back: nothing reaches the kernel, all of it inside one job of the core.

use std::net::IpAddr;

use super::core::Core;
use super::manifests;
use crate::api::ui::source::{ProxyRequest, Question, Suggestion, Why};
use crate::cluster::Change;
use crate::identity::pod::is_meta_key;
use crate::k8s::suggest::{Need, Peer, PodLabel, Refused, Subject};
use crate::model::{Direction, Identity, Kind, LabelSource, ObjectRef};
use crate::policy::decision::{Because, Outcome, SideDecision};
use crate::policy::engine::{L4Flow, PeerView};
use crate::policy::l7::L7Rules;
use crate::policy::l7::http::{HttpRules, Request};
use crate::store::objects::ManifestParser as _;

/// Where one question leads, after everything that the node knows.
struct Asked {
    from: IpAddr,
    to: IpAddr,
    flow: L4Flow,
    request: Option<ProxyRequest>,
}

impl Core {
    pub fn why(&mut self, question: &Question) -> Why {
        let answer = self.explain(question.from, question.to, question.port, question.protocol);
        let asked = Asked {
            from: question.from,
            to: question.to,
            flow: L4Flow { protocol: question.protocol, port: question.port },
            request: question.request.clone(),
        };
        let refused = self.refused_sides(&asked);
        let is_denied = answer.verdict == "denied" || !refused.is_empty();
        let suggestion = is_denied.then(|| self.suggest(&asked, &refused));
        let verdict = if is_denied { "denied".to_owned() } else { answer.verdict };
        Why { verdict, sides: answer.sides, suggestion, missing: Vec::new() }
    }

    /// Sides that refuse: at L3/L4, or what a proxy was asked.
    fn refused_sides(&self, asked: &Asked) -> Vec<SideDecision> {
        let sides = self.view.decide(asked.from, asked.to, asked.flow);
        let refuses = |side: &SideDecision| match side.outcome {
            Outcome::Deny => true,
            Outcome::Allow => false,
            Outcome::Redirect(_) => {
                asked.request.as_ref().is_some_and(|request| !self.admits(asked, side.direction, request))
            }
        };
        sides.iter().filter(|side| refuses(side)).cloned().collect()
    }

    /// A side's L7 rules admit this request. Headers are not known here: a rule that asks for one does not count.
    fn admits(&self, asked: &Asked, direction: Direction, request: &ProxyRequest) -> bool {
        let (source, destination) = (self.view.resolve(asked.from), self.view.resolve(asked.to));
        let (subject, peer) = match direction {
            Direction::Egress => (source.identity, PeerView::from(&destination)),
            Direction::Ingress => (destination.identity, PeerView::from(&source)),
        };
        let policy = self.view.engine().l7(subject, direction, peer, asked.flow);
        // Rules for another protocol list nothing of what was asked.
        if !policy.refuses() {
            return true;
        }
        let mut rules = policy.rules.iter().filter_map(|(_, rules)| rules.as_deref());
        match request {
            ProxyRequest::Http { method, path, host } => {
                let http = rules.filter_map(|rules| match rules {
                    L7Rules::Http(rules) => Some(rules),
                    _ => None,
                });
                let compiled = HttpRules::compile(http.flatten().map(|rule| ((), rule)), &|_, _, _| None);
                let request = Request { method, path, host, headers: &[] };
                compiled.is_ok_and(|compiled| matches!(compiled.decide(&request), Ok(Some(_))))
            }
            ProxyRequest::Dns { query } => {
                let name = crate::policy::l7::names::canonical(query);
                rules.any(|rules| match rules {
                    L7Rules::Dns(patterns) => patterns.iter().any(|pattern| pattern.matches(&name)),
                    _ => false,
                })
            }
            ProxyRequest::Tls { server_name } => {
                let name = crate::policy::l7::names::canonical(server_name);
                rules.any(|rules| match rules {
                    L7Rules::Tls(patterns) => patterns.iter().any(|pattern| pattern.matches(&name)),
                    _ => false,
                })
            }
        }
    }

    fn suggest(&mut self, asked: &Asked, refused: &[SideDecision]) -> Suggestion {
        let mut notes = Vec::new();
        let mut documents = Vec::new();
        let mut possible = true;
        for side in refused {
            if let (Outcome::Deny, Because::Rules(rules)) = (side.outcome, &side.because) {
                possible = false;
                let objects: Vec<String> = rules.iter().map(|rule| rule.object.to_string()).collect();
                notes.push(format!(
                    "A deny rule decides the {} side, and no allow overrules a deny: change {} itself, if it is wrong.",
                    side.direction,
                    objects.join(", ")
                ));
                continue;
            }
            match self.need(asked, side) {
                Some(need) => {
                    let name = self.free_name(&need);
                    notes.extend(remarks(&need));
                    documents.push(need.manifest(&name));
                }
                None => {
                    possible = false;
                    notes.push(format!(
                        "The labels of the {} side are not known yet, so there is nothing to select it by.",
                        side.direction
                    ));
                }
            }
        }
        if !possible || documents.is_empty() {
            return Suggestion { yaml: None, notes, verified: false };
        }
        let yaml = documents.join("---\n");
        let verified = self.would_allow(asked, &yaml);
        if !verified {
            notes.push(
                "The engine did not allow the connection with it: look at the rules above first.".into(),
            );
        }
        Suggestion { yaml: Some(yaml), notes, verified }
    }

    /// What a side lacks.
    fn need(&self, asked: &Asked, side: &SideDecision) -> Option<Need> {
        let (subject, peer) = match side.direction {
            Direction::Egress => (asked.from, asked.to),
            Direction::Ingress => (asked.to, asked.from),
        };
        let resolved = self.view.resolve(subject);
        let owner = resolved.owner.as_ref()?;
        let subject = match owner.kind {
            Kind::Pod => Subject::Pod {
                namespace: owner.namespace.to_string(),
                name: owner.name.to_string(),
                labels: self.own_labels(resolved.identity)?,
            },
            _ => Subject::Node { name: owner.name.to_string() },
        };
        let refused = asked.request.as_ref().map(|request| match request {
            ProxyRequest::Http { method, path, .. } => {
                Refused::Http { method: method.to_string(), path: path.to_string() }
            }
            ProxyRequest::Dns { query } => Refused::Dns { name: crate::policy::l7::names::canonical(query) },
            ProxyRequest::Tls { server_name } => {
                Refused::ServerName(crate::policy::l7::names::canonical(server_name))
            }
        });
        Some(Need {
            direction: side.direction,
            subject,
            peer: self.peer(peer, side.direction),
            protocol: asked.flow.protocol,
            port: asked.flow.port,
            refused,
        })
    }

    fn peer(&self, address: IpAddr, direction: Direction) -> Peer {
        let resolved = self.view.resolve(address);
        let name = self.view.names().names_of(address).next().map(ToString::to_string);
        match (&resolved.owner, resolved.identity.reserved_name()) {
            (Some(owner), _) if owner.kind == Kind::Pod => Peer::Pod {
                namespace: owner.namespace.to_string(),
                name: owner.name.to_string(),
                labels: self.own_labels(resolved.identity).unwrap_or_default(),
            },
            (Some(_), _) => {
                let local = resolved.identity == Identity::HOST;
                Peer::Entity(if local { "host" } else { "remote-node" }.to_owned())
            }
            (None, Some("world" | "world-ipv4" | "world-ipv6" | "unknown") | None) => match (name, direction)
            {
                (Some(name), Direction::Egress) => Peer::Name(name),
                _ => Peer::Address(address),
            },
            (None, Some(entity)) => Peer::Entity(entity.to_owned()),
        }
    }

    /// The labels of a pod that its object has and its identity keeps. `None`: the identity is not known.
    fn own_labels(&self, identity: Identity) -> Option<Vec<PodLabel>> {
        let record = self.view.engine().identity(identity)?;
        let own = |label: &&crate::model::Label| label.source == LabelSource::K8s && !is_meta_key(&label.key);
        let pairs =
            record.labels.iter().filter(own).map(|label| (label.key.to_string(), label.value.to_string()));
        Some(pairs.collect())
    }

    fn free_name(&self, need: &Need) -> String {
        let taken = |name: &str| self.view.engine().policies().any(|policy| *policy.object.name == *name);
        (0..).map(|serial| need.name(serial)).find(|name| !taken(name)).unwrap_or_default()
    }

    /// Applies to the view, asks again, takes back.
    fn would_allow(&mut self, asked: &Asked, yaml: &str) -> bool {
        let Ok(parsed) = manifests(&self.config).parse(yaml) else { return false };
        let references: Vec<ObjectRef> =
            parsed.objects.iter().map(|object| object.resource.reference()).collect();
        let changes = parsed.objects.into_iter().map(|object| Change::Upsert(object.resource)).collect();
        if self.view.apply(changes).is_err() {
            return false;
        }
        let allowed = self.refused_sides(asked).is_empty();
        if let Err(errors) = self.view.apply(references.into_iter().map(Change::Delete).collect()) {
            let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
            tracing::error!(errors = texts.join("; "), "a tried suggestion could not be taken back");
        }
        allowed
    }
}

/// What a reader should know about a suggestion.
fn remarks(need: &Need) -> Vec<String> {
    let mut notes = Vec::new();
    if matches!(&need.subject, Subject::Pod { labels, .. } if labels.is_empty()) {
        notes.push("The pod has no labels: the policy selects every pod of its namespace.".to_owned());
    }
    if matches!(&need.peer, Peer::Pod { labels, .. } if labels.is_empty()) {
        notes.push("The peer has no labels: the rule names every pod of its namespace.".to_owned());
    }
    match &need.peer {
        Peer::Name(name) => notes.push(format!(
            "{name} is followed by name: the lookup through kube-dns is allowed beside it, and seen by the DNS proxy."
        )),
        Peer::Address(_) => notes.push(
            "This one address: if its name is what is meant, look it up under a DNS rule first and use toFQDNs.".to_owned(),
        ),
        Peer::Pod { .. } | Peer::Entity(_) => {}
    }
    notes
}
