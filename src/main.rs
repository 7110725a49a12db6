//! The `sluice` executable: hands the arguments to `sluice::cli`.

#![forbid(unsafe_code)]

fn main() {}
