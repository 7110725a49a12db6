//! A node's credentials: loaded from its state directory, or got by joining.
//!
//! Files, all 0600, in `<state-dir>/server/`: `node.key` (made before the first attempt, so that an
//! attempt whose answer was lost is repeated with the same key), `node.crt`, `ca.crt`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{KeyPair, PublicKeyData};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::event::MESSAGE_BYTES;
use super::files::{FileError, private_directory, read_private, write_private};
use super::pki::{NodeCertificate, PkiError, SERVER_NAME, certificate_der, certificate_request};
use super::proto::{self, cluster_client::ClusterClient};
use super::token::{Digest, JoinToken, sha256};

const CONNECT: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a node has no credentials.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("{url:?} is no server address: expected https://HOST:PORT")]
    Url { url: String },
    #[error("this node has not joined {url} yet, or its certificate has expired, and there is no join token")]
    NoToken { url: String },
    /// The credentials in the state directory are for another node name.
    #[error("{directory} holds credentials of node {found}, but this node is {node}", directory = directory.display())]
    OtherNode { directory: PathBuf, found: String, node: String },
    /// Network trouble, or a server whose CA is not the one that the token names.
    #[error("join {url}: {detail}")]
    Connect { url: String, detail: String },
    /// The server said no; trying again does not help.
    #[error("join {url}: {message}")]
    Refused { url: String, message: String },
    /// Try again later.
    #[error("join {url}: {message}")]
    Busy { url: String, message: String },
}

impl JoinError {
    /// The same attempt may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, JoinError::Connect { .. } | JoinError::Busy { .. })
    }
}

/// What mutual TLS needs.
#[derive(Clone)]
pub(super) struct Credentials {
    directory: PathBuf,
    key: String,
    certificate: String,
    authority: String,
    pub(super) parsed: NodeCertificate,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("parsed", &self.parsed).finish_non_exhaustive()
    }
}

/// Where and as whom to join.
pub(super) struct Join<'a> {
    pub(super) url: &'a str,
    pub(super) node: &'a str,
    pub(super) token: Option<&'a JoinToken>,
    pub(super) directory: &'a Path,
}

impl Join<'_> {
    /// The stored credentials while they are valid, or new ones.
    pub(super) async fn load_or_join(&self, now: SystemTime) -> Result<Credentials, JoinError> {
        if let Some(credentials) = Credentials::load(self.directory)? {
            if credentials.parsed.node != self.node {
                return Err(JoinError::OtherNode {
                    directory: self.directory.to_owned(),
                    found: credentials.parsed.node,
                    node: self.node.to_owned(),
                });
            }
            if credentials.parsed.not_after > now {
                return Ok(credentials);
            }
        }
        self.join().await
    }

    async fn join(&self) -> Result<Credentials, JoinError> {
        let url = || self.url.to_owned();
        let token = self.token.ok_or_else(|| JoinError::NoToken { url: url() })?;
        private_directory(self.directory)?;
        let key = node_key(self.directory)?;
        let detail =
            |detail: &dyn std::fmt::Display| JoinError::Connect { url: url(), detail: detail.to_string() };
        let verifier = FingerprintVerifier::new(token.authority);
        let channel = endpoint(self.url)?
            .tls_config_with_verifier(tls(), Arc::new(verifier))
            .map_err(|error| detail(&chain(&error)))?
            .connect()
            .await
            .map_err(|error| detail(&chain(&error)))?;
        let request = proto::JoinRequest {
            secret: token.secret.to_vec(),
            node: self.node.to_owned(),
            certificate_request: certificate_request(&key)?,
        };
        let answer = ClusterClient::new(channel).join(request).await.map_err(|status| {
            let message = status.message().to_owned();
            match status.code() {
                tonic::Code::PermissionDenied | tonic::Code::AlreadyExists | tonic::Code::InvalidArgument => {
                    JoinError::Refused { url: url(), message }
                }
                _ => JoinError::Busy { url: url(), message },
            }
        })?;
        Credentials::store(self.directory, &key, answer.into_inner(), self.node)
    }
}

fn node_key(directory: &Path) -> Result<KeyPair, JoinError> {
    let path = directory.join("node.key");
    let parse =
        |what| move |error: rcgen::Error| JoinError::Pki(PkiError::Parse { what, detail: error.to_string() });
    if let Some(text) = read_private(&path)? {
        return KeyPair::from_pem(&text).map_err(parse("the node's key"));
    }
    let key = KeyPair::generate().map_err(parse("a new key"))?;
    write_private(&path, &key.serialize_pem())?;
    Ok(key)
}

impl Credentials {
    fn load(directory: &Path) -> Result<Option<Credentials>, JoinError> {
        let read = |name: &str| read_private(&directory.join(name));
        let (Some(key), Some(certificate), Some(authority)) =
            (read("node.key")?, read("node.crt")?, read("ca.crt")?)
        else {
            return Ok(None);
        };
        let parsed = NodeCertificate::from_pem(&certificate)?;
        Ok(Some(Credentials { directory: directory.to_owned(), key, certificate, authority, parsed }))
    }

    /// Stores what the server gave, once it is what was asked for.
    pub(super) fn store(
        directory: &Path,
        key: &KeyPair,
        answer: proto::Credentials,
        node: &str,
    ) -> Result<Credentials, JoinError> {
        let parsed = NodeCertificate::from_pem(&answer.certificate)?;
        certificate_der("the CA's certificate", &answer.authority)?;
        if parsed.node != node || parsed.key != sha256(key.der_bytes()) {
            let detail = "it is for another name or key".to_owned();
            return Err(PkiError::Parse { what: "the certificate from the server", detail }.into());
        }
        write_private(&directory.join("ca.crt"), &answer.authority)?;
        // Last: with it the credentials are complete.
        write_private(&directory.join("node.crt"), &answer.certificate)?;
        Ok(Credentials {
            directory: directory.to_owned(),
            key: key.serialize_pem(),
            certificate: answer.certificate,
            authority: answer.authority,
            parsed,
        })
    }

    /// A certificate for another period, over a connection that uses this one.
    pub(super) async fn renew(&self, client: &mut Client) -> Result<Credentials, JoinError> {
        let key = node_key(&self.directory)?;
        let request = proto::RenewRequest { certificate_request: certificate_request(&key)? };
        let answer = client.renew(request).await.map_err(|status| JoinError::Busy {
            url: "the server".to_owned(),
            message: status.message().to_owned(),
        })?;
        let answer = proto::Credentials { authority: self.authority.clone(), ..answer.into_inner() };
        Credentials::store(&self.directory, &key, answer, &self.parsed.node)
    }

    /// A client that connects when it is used first.
    pub(super) fn client(&self, url: &str) -> Result<Client, JoinError> {
        let tls = tls()
            .ca_certificate(Certificate::from_pem(&self.authority))
            .identity(Identity::from_pem(&self.certificate, &self.key));
        let channel = endpoint(url)?
            .tls_config(tls)
            .map_err(|error| JoinError::Connect { url: url.to_owned(), detail: chain(&error) })?
            .connect_lazy();
        Ok(ClusterClient::new(channel).max_decoding_message_size(MESSAGE_BYTES))
    }
}

pub(super) type Client = ClusterClient<Channel>;

/// The server is always asked for by its one name, whatever address it has.
fn tls() -> ClientTlsConfig {
    ClientTlsConfig::new().domain_name(SERVER_NAME).timeout(CONNECT)
}

fn endpoint(url: &str) -> Result<Endpoint, JoinError> {
    let wrong = || JoinError::Url { url: url.to_owned() };
    let uri: http::Uri = url.parse().map_err(|_| wrong())?;
    if uri.scheme_str() != Some("https") || uri.host().is_none() || !matches!(uri.path(), "" | "/") {
        return Err(wrong());
    }
    Ok(Endpoint::from(uri)
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// An error with what caused it: tonic's own text is only "transport error".
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Trusts one CA certificate, known by its SHA-256 alone: the server sends it in its chain. What it
/// signed is then verified as usual (signature, name, time, usage).
#[derive(Debug)]
struct FingerprintVerifier {
    fingerprint: Digest,
    provider: Arc<CryptoProvider>,
}

impl FingerprintVerifier {
    fn new(fingerprint: Digest) -> FingerprintVerifier {
        FingerprintVerifier { fingerprint, provider: Arc::new(rustls::crypto::ring::default_provider()) }
    }
}

impl ServerCertVerifier for FingerprintVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates
            .iter()
            .find(|certificate| sha256(certificate) == self.fingerprint)
            .ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
