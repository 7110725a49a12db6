//! Connections to observers and relays.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::PORT;

const CONNECT: Duration = Duration::from_secs(5);
/// Longest response in bytes.
pub const MAX_RESPONSE: usize = 4 * 1024 * 1024;

/// Where an observer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerAddress {
    Unix(PathBuf),
    Tcp { host: String, port: u16, security: Security },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    Plain,
    Tls,
}

impl std::fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ServerAddress::Unix(path) => write!(f, "unix://{}", path.display()),
            ServerAddress::Tcp { host, port, security } => {
                let scheme = if *security == Security::Tls { "tls://" } else { "" };
                let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
                write!(f, "{scheme}{open}{host}{close}:{port}")
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?}: expected unix:///PATH, HOST[:PORT] or tls://HOST[:PORT]")]
pub struct AddressError(String);

impl FromStr for ServerAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<ServerAddress, AddressError> {
        let error = || AddressError(text.to_owned());
        if let Some(path) = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")) {
            let path = PathBuf::from(path);
            return if path.is_absolute() { Ok(ServerAddress::Unix(path)) } else { Err(error()) };
        }
        if text.starts_with('/') {
            return Ok(ServerAddress::Unix(PathBuf::from(text)));
        }
        let (security, rest) = match text.strip_prefix("tls://") {
            Some(rest) => (Security::Tls, rest),
            None => (Security::Plain, text.strip_prefix("tcp://").unwrap_or(text)),
        };
        let authority: http::uri::Authority = rest.parse().map_err(|_| error())?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = match authority.port() {
            Some(port) => port.as_u16(),
            None if rest.ends_with(authority.host()) => PORT,
            None => return Err(error()),
        };
        if host.is_empty() || authority.as_str().contains('@') {
            return Err(error());
        }
        Ok(ServerAddress::Tcp { host, port, security })
    }
}

/// PEM files of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// Authorities that may have signed the server's certificate.
    pub authorities: Vec<PathBuf>,
    /// Certificate and key, for mutual TLS.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Name in the server's certificate, where it is not the host.
    pub server_name: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{server}: {}", causes(.source))]
    Transport { server: String, source: tonic::transport::Error },
    #[error("{path}: {source}", path = .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{server}: {source}")]
    Socket { server: String, source: std::io::Error },
}

/// A transport error says what went wrong in its last cause only.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text
}

/// A channel that connects when it is used, and again when the connection is lost.
pub fn lazy(server: &ServerAddress, tls: &ClientTls) -> Result<Channel, ConnectError> {
    match server {
        ServerAddress::Unix(path) => {
            let path = path.clone();
            let connector = tower::service_fn(move |_: http::Uri| {
                let path = path.clone();
                async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
            });
            Ok(base(Endpoint::from_static("http://localhost")).connect_with_connector_lazy(connector))
        }
        ServerAddress::Tcp { .. } => Ok(endpoint(server, tls)?.connect_lazy()),
    }
}

/// Connects, or says why not.
pub async fn connect(server: &ServerAddress, tls: &ClientTls) -> Result<Channel, ConnectError> {
    match server {
        ServerAddress::Unix(path) => {
            // Tried once, so that the kernel's answer is the error and not a layer above it.
            tokio::net::UnixStream::connect(path)
                .await
                .map_err(|source| ConnectError::Socket { server: server.to_string(), source })?;
            lazy(server, tls)
        }
        ServerAddress::Tcp { .. } => endpoint(server, tls)?
            .connect()
            .await
            .map_err(|source| ConnectError::Transport { server: server.to_string(), source }),
    }
}

fn base(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(Duration::from_secs(15))
        .keep_alive_timeout(Duration::from_secs(15))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(1024 * 1024)
        .initial_connection_window_size(2 * 1024 * 1024)
        .tcp_nodelay(true)
}

fn endpoint(server: &ServerAddress, tls: &ClientTls) -> Result<Endpoint, ConnectError> {
    let ServerAddress::Tcp { host, port, security } = server else {
        return Ok(Endpoint::from_static("http://localhost"));
    };
    let failed = |source| ConnectError::Transport { server: server.to_string(), source };
    let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let scheme = if *security == Security::Tls { "https" } else { "http" };
    let endpoint = base(Endpoint::from_shared(format!("{scheme}://{authority}")).map_err(failed)?);
    if *security == Security::Plain {
        return Ok(endpoint);
    }
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|source| ConnectError::Read { path: path.clone(), source })
    };
    let mut config = ClientTlsConfig::new();
    for authority in &tls.authorities {
        config = config.ca_certificate(Certificate::from_pem(read(authority)?));
    }
    if let Some((certificate, key)) = &tls.identity {
        config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    config = config.domain_name(tls.server_name.clone().unwrap_or_else(|| host.clone()));
    endpoint.tls_config(config).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_sockets_and_hosts() {
        let tcp = |host: &str, port, security| ServerAddress::Tcp { host: host.into(), port, security };
        for (text, wanted) in [
            ("unix:///run/x.sock", ServerAddress::Unix("/run/x.sock".into())),
            ("/run/x.sock", ServerAddress::Unix("/run/x.sock".into())),
            ("localhost", tcp("localhost", 4245, Security::Plain)),
            ("localhost:80", tcp("localhost", 80, Security::Plain)),
            ("tls://[fd00::1]:443", tcp("fd00::1", 443, Security::Tls)),
        ] {
            let parsed: ServerAddress = text.parse().unwrap();
            assert_eq!(parsed, wanted, "{text}");
            assert_eq!(parsed.to_string().parse::<ServerAddress>().unwrap(), wanted);
        }
        for text in ["", "unix://run/x", "a b", "host:port", "host:99999", "user@host", "tls://"] {
            assert!(text.parse::<ServerAddress>().is_err(), "{text:?}");
        }
    }
}
