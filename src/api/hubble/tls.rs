//! Credentials of an observer's TCP socket: files that are read again when they change, so that a renewed
//! certificate needs no restart.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

/// PEM files of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and its chain.
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub clients: Clients,
}

/// Who may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Whoever has a certificate of this authority (mutual TLS).
    SignedBy(PathBuf),
    /// Everybody; what they see is still encrypted and the server known.
    Anyone,
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path}: {source}", path = .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}: {detail}", path = .path.display())]
    Content { path: PathBuf, detail: String },
}

/// The newest credentials.
#[derive(Debug)]
pub struct Credentials {
    files: TlsFiles,
    loaded: Mutex<(Vec<Option<SystemTime>>, Arc<ServerConfig>)>,
}

impl Credentials {
    /// Fails if the files cannot be used now.
    pub fn load(files: TlsFiles) -> Result<Credentials, TlsError> {
        let stamp = files.stamp();
        let config = Arc::new(files.config()?);
        Ok(Credentials { files, loaded: Mutex::new((stamp, config)) })
    }

    /// Files that have changed and cannot be used leave the older credentials in force.
    pub fn current(&self) -> Arc<ServerConfig> {
        let stamp = self.files.stamp();
        let mut loaded = self.loaded.lock();
        if loaded.0 != stamp {
            match self.files.config() {
                Ok(config) => {
                    tracing::info!(certificate = %self.files.certificate.display(), "new TLS credentials");
                    loaded.1 = Arc::new(config);
                }
                Err(error) => tracing::error!(%error, "TLS credentials changed and cannot be used"),
            }
            loaded.0 = stamp;
        }
        Arc::clone(&loaded.1)
    }
}

impl TlsFiles {
    fn stamp(&self) -> Vec<Option<SystemTime>> {
        let authority = match &self.clients {
            Clients::SignedBy(path) => Some(path),
            Clients::Anyone => None,
        };
        [Some(&self.certificate), Some(&self.key), authority]
            .into_iter()
            .flatten()
            .map(|path| path.metadata().and_then(|metadata| metadata.modified()).ok())
            .collect()
    }

    fn config(&self) -> Result<ServerConfig, TlsError> {
        let chain = certificates(&self.certificate)?;
        let key =
            PrivateKeyDer::from_pem_slice(&read(&self.key)?).map_err(|error| content(&self.key, &error))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| content(&self.certificate, &error))?;
        let builder = match &self.clients {
            Clients::Anyone => builder.with_no_client_auth(),
            Clients::SignedBy(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    roots.add(certificate).map_err(|error| content(path, &error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .map_err(|error| content(path, &error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config =
            builder.with_single_cert(chain, key).map_err(|error| content(&self.certificate, &error))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn content(path: &Path, detail: &dyn std::fmt::Display) -> TlsError {
    TlsError::Content { path: path.to_owned(), detail: detail.to_string() }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<_, _>>()
        .map_err(|error| content(path, &error))?;
    if found.is_empty() { Err(content(path, &"it holds no certificate")) } else { Ok(found) }
}
