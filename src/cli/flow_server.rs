//! How a command reaches the flow API of an agent or a relay.

use std::path::PathBuf;

use tonic::transport::Channel;

use super::CliError;
use crate::api::hubble::client::{self, ClientTls, ConnectError, MAX_RESPONSE, Security, ServerAddress};
use crate::api::hubble::pb::observer::observer_client::ObserverClient;
use crate::api::hubble::{RELAY_SOCKET, SOCKET};

/// Where flows come from: the relay of this machine if there is one, else its agent.
#[derive(Clone, Debug, clap::Args)]
pub struct FlowServer {
    /// Agent or relay: unix:///PATH, HOST[:PORT] or tls://HOST[:PORT] [default: relay.sock, else hubble.sock, beside
    /// the admin socket]
    #[arg(long, env = "SLUICE_FLOW_SERVER", value_name = "ADDRESS", help_heading = "Server")]
    pub server: Option<ServerAddress>,
    /// The agent's admin socket, whose directory holds the sockets of the flow API
    #[arg(
        long,
        env = "SLUICE_SOCKET",
        default_value = "/run/sluice/admin.sock",
        value_name = "PATH",
        help_heading = "Server"
    )]
    pub socket: PathBuf,
    /// Use TLS, whatever the address says
    #[arg(long, env = "HUBBLE_TLS", help_heading = "Server")]
    pub tls: bool,
    /// Authorities that may have signed the server's certificate
    #[arg(
        long,
        env = "HUBBLE_TLS_CA_CERT_FILES",
        value_name = "FILE",
        value_delimiter = ',',
        help_heading = "Server"
    )]
    pub tls_ca_cert_files: Vec<PathBuf>,
    /// Our certificate, for mutual TLS
    #[arg(
        long,
        env = "HUBBLE_TLS_CLIENT_CERT_FILE",
        value_name = "FILE",
        requires = "tls_client_key_file",
        help_heading = "Server"
    )]
    pub tls_client_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(
        long,
        env = "HUBBLE_TLS_CLIENT_KEY_FILE",
        value_name = "FILE",
        requires = "tls_client_cert_file",
        help_heading = "Server"
    )]
    pub tls_client_key_file: Option<PathBuf>,
    /// Name in the server's certificate, where it is not the host
    #[arg(long, env = "HUBBLE_TLS_SERVER_NAME", value_name = "NAME", help_heading = "Server")]
    pub tls_server_name: Option<String>,
}

impl From<ConnectError> for CliError {
    fn from(error: ConnectError) -> CliError {
        match &error {
            ConnectError::Read { .. } => CliError::Invalid(error.to_string()),
            ConnectError::Socket { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                CliError::NotPermitted(error.to_string())
            }
            ConnectError::Socket { .. } | ConnectError::Transport { .. } => {
                CliError::Unreachable(format!("{error}\nis an agent or a relay running there?"))
            }
        }
    }
}

impl From<tonic::Status> for CliError {
    fn from(status: tonic::Status) -> CliError {
        let text = status.message().to_owned();
        match status.code() {
            tonic::Code::InvalidArgument | tonic::Code::OutOfRange => CliError::Invalid(text),
            tonic::Code::Unavailable | tonic::Code::DeadlineExceeded => {
                CliError::Unreachable(client::causes(&status))
            }
            tonic::Code::PermissionDenied | tonic::Code::Unauthenticated => CliError::NotPermitted(text),
            code => CliError::Failed(anyhow::anyhow!("{code}: {text}")),
        }
    }
}

impl FlowServer {
    fn address(&self) -> ServerAddress {
        let address = self.server.clone().unwrap_or_else(|| {
            let directory = self.socket.parent().unwrap_or_else(|| std::path::Path::new("/run/sluice"));
            let relay = directory.join(RELAY_SOCKET);
            ServerAddress::Unix(if relay.exists() { relay } else { directory.join(SOCKET) })
        });
        match address {
            ServerAddress::Tcp { host, port, .. } if self.tls => {
                ServerAddress::Tcp { host, port, security: Security::Tls }
            }
            address => address,
        }
    }

    pub async fn connect(&self) -> Result<ObserverClient<Channel>, CliError> {
        let tls = ClientTls {
            authorities: self.tls_ca_cert_files.clone(),
            identity: self.tls_client_cert_file.clone().zip(self.tls_client_key_file.clone()),
            server_name: self.tls_server_name.clone(),
        };
        let channel = client::connect(&self.address(), &tls).await?;
        Ok(ObserverClient::new(channel).max_decoding_message_size(MAX_RESPONSE))
    }
}
