//! Does the compiled state fit the datapath's tables, and which rule is to blame when it does not?

use super::ports;
use super::precedence;
use super::repository::RuleId;
use super::subject::SubjectState;
use super::transaction::Undo;
use super::{Culprit, Engine, EngineError};
use crate::model::{Identity, ObjectRef};
use crate::policy::rule::{PortMatch, Ports};

impl Engine {
    /// The state fits the datapath's tables. Compiles what changed first.
    pub fn check_capacity(&mut self) -> Result<(), EngineError> {
        self.settle();
        let limit = self.options.max_entries;
        let mut total = 0;
        for (id, state) in &self.subjects {
            if state.sides.iter().any(|side| side.settled.overflow) {
                let (limit, most) = (ports::MAX_COVERINGS, self.culprit(*id));
                return Err(EngineError::PortClasses { subject: *id, limit, most });
            }
            let needed = state.entries();
            if needed > limit {
                let most = self.culprit(*id);
                return Err(EngineError::SubjectEntries { subject: *id, needed, limit, most });
            }
            total += needed;
        }
        let limit = self.options.max_total_entries;
        if total > limit {
            let largest = self.subjects.iter().max_by_key(|(_, state)| state.entries());
            let most = largest.and_then(|(id, _)| self.culprit(*id));
            return Err(EngineError::TotalEntries { needed: total, limit, most });
        }
        let (needed, limit) = (self.rule_sets.highest(), self.options.max_rule_sets);
        if needed > limit {
            return Err(EngineError::RuleSets { needed, limit });
        }
        match self.repository.ranks.crowded() {
            Some((priority, rules)) => {
                let limit = precedence::MAX_RULES_PER_PRIORITY;
                Err(EngineError::PriorityCrowded { priority, rules, limit })
            }
            None => Ok(()),
        }
    }

    /// The rule of a subject that needs most entries.
    fn culprit(&self, subject: Identity) -> Option<Culprit> {
        let state = self.subjects.get(&subject)?;
        let is_new = |object: &ObjectRef| {
            let changes = self.journal.iter().flatten();
            changes.into_iter().any(|change| matches!(change, Undo::Policy(changed, _) if changed == object))
        };
        let rules = state.specs.iter().flat_map(|spec| &self.repository.spec(*spec).rules);
        let heaviest = rules.max_by_key(|rule| {
            let reference = self.repository.reference(**rule);
            (is_new(&reference.object), self.weight(**rule, state), std::cmp::Reverse(reference))
        })?;
        let path = self.repository.rule(*heaviest).path.clone();
        Some(Culprit { object: self.repository.reference(*heaviest).object, path })
    }

    /// About the number of entries that a rule needs in a subject.
    fn weight(&self, id: RuleId, subject: &SubjectState) -> usize {
        let (rule, state) = (self.repository.rule(id), self.repository.rule_state(id));
        let classes = &subject.side(rule.direction).classes;
        let peers: usize = state
            .selectors
            .iter()
            .map(|selector| {
                let selector = self.selectors.get(*selector);
                selector.single(&self.identities).count() + selector.wide.covered.iter().count()
            })
            .sum();
        let ports = match &rule.ports {
            Ports::Any => 1,
            Ports::OneOf(ports) => ports
                .iter()
                .map(|port| match port {
                    PortMatch::Range(protocol, range) => classes.cells(*protocol, *range).len().max(1),
                    _ => 1,
                })
                .sum(),
        };
        (peers + usize::from(state.any_peer)) * ports
    }
}
