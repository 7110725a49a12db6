//! Bare events become flows: who the addresses are, which policies decided.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::core::Core;
use crate::flow::{DecidedBy, Party, PolicyPart};
use crate::model::{Direction, Identity, Kind, ObjectRef};
use crate::policy::map_state::RuleSetId;
use crate::policy::rule::RuleRef;

impl Core {
    /// Everything that the node knows about one end.
    pub fn party(&self, address: IpAddr, port: Option<u16>, identity: Identity) -> Party {
        let resolved = self.view.resolve(address);
        let labels =
            self.view.engine().identity(identity).map(|record| record.labels.clone()).unwrap_or_default();
        let (mut namespace, mut pod, mut node) = (None, None, None);
        if let Some(owner) = resolved.owner {
            match owner.kind {
                Kind::Pod => (namespace, pod) = (Some(owner.namespace), Some(owner.name)),
                _ => node = Some(owner.name),
            }
        }
        let names = self.view.names().names_of(address).cloned().collect();
        Party { address, port, identity, labels, namespace, pod, node, names }
    }

    /// The policies behind a rule set.
    pub fn decided_by_rules(&self, rules: RuleSetId) -> DecidedBy {
        let parts = self.policy_parts(self.view.engine().rules_of(rules));
        if parts.is_empty() { DecidedBy::NoPolicy } else { DecidedBy::Rules(parts) }
    }

    pub fn policy_parts(&self, rules: &[RuleRef]) -> Vec<PolicyPart> {
        let mut parts: BTreeMap<&ObjectRef, Vec<Arc<str>>> = BTreeMap::new();
        for reference in rules {
            let paths = parts.entry(&reference.object).or_default();
            paths.extend(self.view.engine().rule(reference).map(|rule| Arc::clone(&rule.path)));
        }
        parts.into_iter().map(|(object, rules)| PolicyPart { object: object.clone(), rules }).collect()
    }

    /// The objects that make a direction of a subject default-deny.
    pub fn default_deny(&self, subject: Identity, direction: Direction) -> DecidedBy {
        DecidedBy::DefaultDeny(self.view.engine().default_deny_objects(subject, direction))
    }
}
