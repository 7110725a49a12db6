//! Where the web UI is opened and who may use it: what an agent and a relay have in common.
//!
//! A [`UiConfig`] was validated by whoever made it: an address beyond loopback has TLS, and a token or client
//! certificates.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::guard::{Guard, Token, Transport};
use super::listen::{self, TlsError};
use super::source::UiSource;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UiConfig {
    pub listen: SocketAddr,
    /// Names of ours besides addresses and `localhost`.
    pub host_names: Vec<String>,
    pub token_file: Option<PathBuf>,
    pub tls: Option<UiTls>,
}

/// Files of the server's side of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UiTls {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub client_ca: Option<PathBuf>,
}

/// Why the page could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{path}: {source}", path = .path.display())]
    Token { path: PathBuf, source: std::io::Error },
    #[error("{path}: the token is too short: 16 characters at least", path = .0.display())]
    ShortToken(PathBuf),
    #[error("listen on {listen}: {source}")]
    Listen { listen: SocketAddr, source: std::io::Error },
}

/// A page that listens already.
pub struct Opened {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    guard: Guard,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").field("guard", &self.guard).finish_non_exhaustive()
    }
}

impl UiConfig {
    /// What a browser on this machine is told to open.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        match self.host_names.first() {
            Some(name) => format!("{scheme}://{name}:{}/", self.listen.port()),
            None => format!("{scheme}://{}/", self.listen),
        }
    }

    /// Reads the files and binds.
    ///
    /// # Errors
    /// A file is not usable, or the address is not free.
    pub async fn open(&self) -> Result<Opened, OpenError> {
        let tls = match &self.tls {
            None => None,
            Some(tls) => Some(listen::tls(&tls.certificate, &tls.key, tls.client_ca.as_deref())?),
        };
        let token = match &self.token_file {
            None => None,
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| OpenError::Token { path: path.clone(), source })?;
                Some(Token::new(&text).ok_or_else(|| OpenError::ShortToken(path.clone()))?)
            }
        };
        let guard = Guard {
            transport: if tls.is_some() { Transport::Tls } else { Transport::Plain },
            token,
            names: self.host_names.clone(),
        };
        let listener = TcpListener::bind(self.listen)
            .await
            .map_err(|source| OpenError::Listen { listen: self.listen, source })?;
        Ok(Opened { listener, tls, guard })
    }
}

impl Opened {
    /// Shows what `source` has, for as long as it is polled.
    pub async fn serve(self, source: Arc<dyn UiSource>) {
        listen::serve(self.listener, self.tls, super::router(source, self.guard)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_page_is_not_opened_with_a_token_that_can_be_guessed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let config = UiConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            host_names: Vec::new(),
            token_file: Some(path.clone()),
            tls: None,
        };
        assert!(matches!(config.open().await, Err(OpenError::Token { .. })));
        std::fs::write(&path, "short\n").unwrap();
        assert!(matches!(config.open().await, Err(OpenError::ShortToken(_))));
        std::fs::write(&path, "0123456789abcdef\n").unwrap();
        let opened = config.open().await.unwrap();
        assert!(opened.guard.token.as_ref().is_some_and(|token| token.is("0123456789abcdef")));
        let taken = UiConfig { listen: opened.listener.local_addr().unwrap(), ..config };
        assert!(taken.open().await.unwrap_err().to_string().starts_with("listen on 127.0.0.1:"));
    }
}
