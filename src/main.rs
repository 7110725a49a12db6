//! The `sluice` executable: hands the arguments to [`sluice::cli`].

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    // rustls has no default provider compiled in; every TLS user of the process relies on this one.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        eprintln!("error: a TLS provider is installed already");
        return ExitCode::FAILURE;
    }
    sluice::cli::main()
}
