//! Tests of whole manifests: text in, model types or problems out.

mod scenarios;
