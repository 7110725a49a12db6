//! Conditions that another room evaluates: those on the messages that clients see are none of this room's business.

use std::fmt;
use std::sync::Arc;

use crate::flow::Flow;

/// Says of any flow whether it is wanted, in bounded time. Nothing can be told of it without asking, so who
/// narrows a search by conditions has to take every flow for one that may match.
pub trait Predicate: fmt::Debug + Send + Sync {
    fn matches(&self, flow: &Flow) -> bool;
}

/// A predicate in a condition; equal to its own clones alone.
#[derive(Clone)]
pub struct SharedPredicate(Arc<dyn Predicate>);

impl SharedPredicate {
    pub fn new(predicate: impl Predicate + 'static) -> SharedPredicate {
        SharedPredicate(Arc::new(predicate))
    }

    pub fn matches(&self, flow: &Flow) -> bool {
        self.0.matches(flow)
    }
}

impl fmt::Debug for SharedPredicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl PartialEq for SharedPredicate {
    fn eq(&self, other: &SharedPredicate) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for SharedPredicate {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::filter::Condition;
    use crate::flow::tests::flow;

    #[derive(Debug)]
    struct ToPort(u16);

    impl Predicate for ToPort {
        fn matches(&self, flow: &Flow) -> bool {
            flow.destination_port == Some(self.0)
        }
    }

    #[test]
    fn a_predicate_is_a_condition_that_equals_its_clones() {
        let condition = |port| Condition::Predicate(SharedPredicate::new(ToPort(port)));
        let one = condition(80);
        assert!(one.matches(&flow(80)) && !one.matches(&flow(81)));
        assert_eq!(one, one.clone());
        assert_ne!(one, condition(80));
    }
}
