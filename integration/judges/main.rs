//! Three judges, one verdict: the naive evaluator, the compiled view, and the kernel's own programs under
//! BPF_PROG_TEST_RUN agree on verdict and reason, for every connection of every scenario and of
//! random clusters. Needs root.

mod kernel;
mod random;
mod scenarios;
mod startup;
mod travel;
