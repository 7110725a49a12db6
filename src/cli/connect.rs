//! How a command reaches the agent: the admin socket, and what its failures mean for the exit code.

use std::future::Future;
use std::path::PathBuf;

use super::CliError;
use crate::api::client::{Client, ClientError};

/// Where the agent's admin socket is.
#[derive(Clone, Debug, clap::Args)]
pub struct Connection {
    /// The agent's admin socket
    #[arg(
        long,
        env = "SLUICE_SOCKET",
        default_value = "/run/sluice/admin.sock",
        value_name = "PATH",
        global = true
    )]
    pub socket: PathBuf,
}

impl Connection {
    pub fn client(&self) -> Client {
        Client::new(&self.socket)
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> CliError {
        match &error {
            ClientError::Unreachable { .. } | ClientError::Protocol(_) => {
                CliError::Unreachable(error.to_string())
            }
            ClientError::NotPermitted(_) => CliError::NotPermitted(error.to_string()),
            ClientError::Refused { status: 400 | 422, .. } => CliError::Invalid(error.to_string()),
            ClientError::Refused { .. } => CliError::Failed(anyhow::anyhow!(error.to_string())),
        }
    }
}

/// Runs one command's future on a small runtime.
pub fn block_on<T>(future: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from)?;
    runtime.block_on(future)
}

/// Percent-encodes a query value or a path segment.
pub fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte as char);
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
