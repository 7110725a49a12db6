//! Deltas, transactions and limits.

use std::collections::BTreeMap;

use super::support::*;
use crate::model::{Direction, Identity};
use crate::policy::engine::{Culprit, Engine, EngineError, EngineOptions};
use crate::policy::map_state::{PolicyEntry, PolicyKey, SlotAction, SubjectDelta};
use crate::policy::rule::{Action, Peer, Peers, Tier};

fn client_on(ports: &[(u16, u16)]) -> std::sync::Arc<crate::policy::rule::Policy> {
    let ports: Vec<_> = ports.iter().map(|(first, last)| tcp(*first, *last)).collect();
    let peers = Peers::OneOf(vec![pods(&["app=client"])]);
    policy("p", vec![spec(vec![ingress(Action::Allow, peers, &ports)])])
}

#[test]
fn the_first_delta_of_a_subject_comes_even_when_it_is_empty() {
    let mut engine = with(vec![]);
    let deltas = engine.take_delta();
    assert_eq!(deltas.len(), 1);
    assert_eq!((deltas[0].subject, deltas[0].removed), (SERVER, false));
    assert_eq!(engine.take_delta(), []);
}

#[test]
fn a_change_gives_only_what_changed() {
    let mut engine = with(vec![client_on(&[(80, 80), (81, 81)])]);
    assert_eq!(engine.take_delta()[0].upserts.len(), 3);
    engine.upsert_policy(client_on(&[(80, 80), (82, 82)]));
    let deltas = engine.take_delta();
    assert_eq!((deltas[0].upserts.len(), deltas[0].deletes.len()), (1, 1));
    engine.upsert_policy(client_on(&[(80, 80), (82, 82)]));
    assert_eq!(engine.take_delta(), []);
}

#[test]
fn an_identity_that_nothing_selects_gives_no_delta() {
    let mut engine = with(vec![client_on(&[(80, 80)])]);
    engine.take_delta();
    engine.upsert_identity(pod(Identity(5000), &["k8s:app=unrelated"]));
    assert_eq!(engine.take_delta(), []);
    engine.upsert_identity(pod(Identity(5000), &["k8s:app=client"]));
    assert_eq!(engine.take_delta()[0].upserts.len(), 1);
    engine.remove_identity(Identity(5000));
    assert_eq!(engine.take_delta()[0].deletes.len(), 1);
}

#[test]
fn a_removed_subject_is_said_to_be_gone() {
    let mut engine = with(vec![client_on(&[(80, 80)])]);
    engine.take_delta();
    engine.remove_subject(SERVER);
    let deltas = engine.take_delta();
    assert!(deltas.len() == 1 && deltas[0].removed && deltas[0].deletes.is_empty());
    assert!(engine.info(SERVER).is_none());
    engine.add_subject(SERVER);
    engine.remove_subject(SERVER);
    assert_eq!(engine.take_delta(), [], "it was never announced");
}

#[test]
fn a_subject_that_goes_and_comes_back_gives_no_delta() {
    let mut engine = with(vec![client_on(&[(80, 80), (100, 200)])]);
    engine.take_delta();
    engine.remove_subject(SERVER);
    engine.add_subject(SERVER);
    assert_eq!(engine.take_delta(), []);
}

#[test]
fn a_transaction_that_is_taken_back_leaves_nothing() {
    let mut engine = with(vec![client_on(&[(80, 80), (100, 200)])]);
    engine.take_delta();
    engine.begin();
    engine.upsert_policy(client_on(&[(90, 150)]));
    engine.remove_policy(&object("p"));
    engine.upsert_policy(policy("q", vec![tiered(Tier::Admin { priority: 1 }, vec![])]));
    engine.remove_identity(CLIENT);
    engine.upsert_identity(pod(OTHER, &["k8s:app=client"]));
    engine.remove_subject(SERVER);
    engine.add_subject(OTHER);
    engine.rollback();
    assert_eq!(engine.take_delta(), []);
    assert!(allowed(&from(&engine, CLIENT, 150)) && !allowed(&from(&engine, OTHER, 150)));
    assert_eq!(engine.subjects().collect::<Vec<_>>(), [SERVER]);
}

#[test]
fn a_policy_that_does_not_fit_is_refused_whole() {
    let mut engine =
        cluster(EngineOptions { max_entries: 10, max_total_entries: 100, ..EngineOptions::default() });
    engine.upsert_policy(client_on(&[(80, 80)]));
    engine.take_delta();
    engine.begin();
    let many: Vec<(u16, u16)> = (1..20).map(|port| (port, port)).collect();
    engine.upsert_policy(client_on(&many));
    let error = engine.commit().unwrap_err();
    let most = Some(Culprit { object: client_on(&many).object.clone(), path: "spec.rule".into() });
    assert_eq!(error, EngineError::SubjectEntries { subject: SERVER, needed: 20, limit: 10, most });
    assert_eq!(engine.take_delta(), []);
    assert!(allowed(&from(&engine, CLIENT, 80)) && !allowed(&from(&engine, CLIENT, 5)));
}

#[test]
fn a_thicket_of_ranges_is_refused_and_closed() {
    let mut engine = cluster(EngineOptions::default());
    let thicket: Vec<(u16, u16)> = (1..2000).map(|port| (port, 30_000 + port)).collect();
    engine.begin();
    engine.upsert_policy(client_on(&thicket));
    assert!(matches!(engine.check_capacity(), Err(EngineError::PortClasses { .. })));
    assert!(!allowed(&from(&engine, CLIENT, 5000)));
    engine.rollback();
    assert!(allowed(&from(&engine, CLIENT, 5000)));
    assert_eq!(engine.check_capacity(), Ok(()));
}

#[test]
fn a_crowded_priority_is_refused() {
    let rules = vec![ingress(Action::Deny, Peers::OneOf(vec![]), &[]); 20_000];
    let mut engine = with(vec![policy("a", vec![tiered(Tier::Admin { priority: 3 }, rules.clone())])]);
    assert_eq!(engine.check_capacity(), Ok(()));
    engine.upsert_policy(policy("b", vec![tiered(Tier::Admin { priority: 3 }, rules)]));
    assert!(matches!(engine.check_capacity(), Err(EngineError::PriorityCrowded { priority: 3, .. })));
}

#[test]
fn denies_are_written_first() {
    let mut engine = with(vec![client_on(&[(80, 80)])]);
    engine.take_delta();
    let deny = ingress(Action::Deny, Peers::OneOf(vec![pods(&["app=other"])]), &[]);
    let allow = ingress(Action::Allow, Peers::OneOf(vec![Peer::Pods(Default::default())]), &[]);
    engine.upsert_policy(policy("q", vec![spec(vec![allow, deny])]));
    let upserts = &engine.take_delta()[0].upserts;
    let denies: Vec<bool> = upserts
        .iter()
        .map(|(_, entry)| entry.normal.is_some_and(|slot| slot.action == SlotAction::Deny))
        .collect();
    assert!(denies[0] && denies.is_sorted_by(|a, b| a >= b));
}

/// The datapath's side of deltas: what a twin holds after them.
#[derive(Default)]
pub(super) struct Twin(BTreeMap<(Identity, PolicyKey), PolicyEntry>);

impl Twin {
    pub(super) fn apply(&mut self, deltas: &[SubjectDelta]) {
        for delta in deltas {
            if delta.removed {
                self.0.retain(|(subject, _), _| *subject != delta.subject);
            }
            for (key, entry) in &delta.upserts {
                self.0.insert((delta.subject, *key), *entry);
            }
            for key in &delta.deletes {
                assert!(self.0.remove(&(delta.subject, *key)).is_some(), "deletes what is not there");
            }
        }
    }

    pub(super) fn assert_holds(&self, engine: &Engine) {
        let wanted: BTreeMap<_, _> = engine
            .subjects()
            .flat_map(|subject| engine.entries(subject))
            .map(|view| ((view.subject, view.key), view.entry))
            .collect();
        assert_eq!(self.0, wanted);
    }
}

#[test]
fn deltas_add_up_to_the_entries() {
    let mut engine = with(vec![client_on(&[(80, 80), (100, 200)])]);
    let mut twin = Twin::default();
    twin.apply(&engine.take_delta());
    twin.assert_holds(&engine);
    engine.upsert_policy(client_on(&[(90, 150)]));
    engine.add_subject(CLIENT);
    twin.apply(&engine.take_delta());
    twin.assert_holds(&engine);
    assert!(engine.info(SERVER).unwrap().ingress.default_deny);
    assert!(
        engine.decide(CLIENT, Direction::Ingress, OTHER.into(), flow(crate::model::Protocol::Tcp, 1)).outcome
            == crate::policy::decision::Outcome::Allow
    );
}
