//! The tc programs under BPF_PROG_TEST_RUN: packet in; verdict, reason and packet out. Needs root.

mod conntrack;
mod fixture;
mod fragments;
mod host;
mod icmp_errors;
mod limits;
mod malformed;
mod masquerade;
mod neighbours;
mod overlay;
mod policy;
mod proxies;
mod reject;
mod services;
mod table;
mod ttl;
mod turned;
