//! Transactions: a journal of inverse changes.
//!
//! Taking a change back costs what the change cost; columns are compiled from what is there at the
//! next settlement, so a transaction that was taken back leaves no delta.

use std::sync::Arc;

use super::{Engine, EngineError};
use crate::model::{Identity, IdentityRecord, ObjectRef};
use crate::policy::map_state::SubjectDelta;
use crate::policy::rule::Policy;

/// What was there before a change.
#[derive(Debug)]
pub(super) enum Undo {
    Identity(Identity, Option<IdentityRecord>),
    Policy(ObjectRef, Option<Arc<Policy>>),
    /// Whether it was a subject.
    Subject(Identity, bool),
}

impl Engine {
    /// Starts a transaction; one that was open goes on as part of it.
    pub fn begin(&mut self) {
        self.journal.get_or_insert_default();
    }

    /// Takes back every change since [`Engine::begin`]. Without a transaction there is nothing to
    /// take back.
    pub fn rollback(&mut self) {
        for undo in self.journal.take().into_iter().flatten().rev() {
            match undo {
                Undo::Identity(id, record) => {
                    self.put_identity(id, record);
                }
                Undo::Policy(object, policy) => {
                    self.put_policy(&object, policy);
                }
                Undo::Subject(id, alive) => {
                    self.put_subject(id, alive);
                }
            }
        }
        self.settle();
    }

    /// Ends the transaction with the delta, or takes it back when the state would not fit the
    /// datapath's tables.
    pub fn commit(&mut self) -> Result<Vec<SubjectDelta>, EngineError> {
        match self.check_capacity() {
            Ok(()) => Ok(self.take_delta()),
            Err(error) => {
                self.rollback();
                Err(error)
            }
        }
    }

    pub(super) fn note(&mut self, undo: Undo) {
        if let Some(journal) = &mut self.journal {
            journal.push(undo);
        }
    }
}
