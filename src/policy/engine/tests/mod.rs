//! Tests of the engine: `semantics`, `peers`, `ports`, `layer7` and `tiers` have a test for each sentence of the policy
//! semantics that the engine decides, `random` compares it with a naive reading of the rules and with itself.

mod groups;
mod layer7;
mod naive;
mod peers;
mod ports;
mod random;
mod semantics;
mod support;
mod tiers;
mod transactions;
