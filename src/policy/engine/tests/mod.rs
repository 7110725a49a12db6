//! Tests of the engine: `semantics` has a test for each sentence of the policy semantics that the
//! engine decides, `random` compares it with a naive reading of the rules and with itself.

mod groups;
mod naive;
mod random;
mod semantics;
mod support;
mod transactions;
