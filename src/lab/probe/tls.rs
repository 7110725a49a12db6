//! TLS from a client that trusts everybody: the lab tests who may talk, not who is who.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName as TlsName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::http::parse_head;
use super::{Observed, ServerName};

/// More than the head of an answer that a proxy makes itself.
const HEARD: usize = 256;

/// A TLS session over `stream`, with exactly the server name that is asked for.
pub(super) async fn handshake(
    stream: TcpStream,
    name: &ServerName,
    address: IpAddr,
) -> Result<TlsStream<Heard>, Failed> {
    let (config, server) = client(name, address).map_err(|error| Failed { error, heard: Vec::new() })?;
    let connecting =
        TlsConnector::from(Arc::new(config)).connect(server, Heard { stream, first: Vec::new() });
    connecting.into_fallible().await.map_err(|(error, heard)| Failed { error, heard: heard.first })
}

fn client(name: &ServerName, address: IpAddr) -> io::Result<(ClientConfig, TlsName<'static>)> {
    let provider = Arc::new(ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let server = match name {
        ServerName::Name(name) => TlsName::try_from(name.clone()).map_err(io::Error::other)?,
        ServerName::None => {
            config.enable_sni = false;
            TlsName::from(address)
        }
    };
    Ok((config, server))
}

/// A handshake that came to nothing, and what was heard instead.
#[derive(Debug)]
pub(super) struct Failed {
    error: io::Error,
    heard: Vec<u8>,
}

impl Failed {
    pub(super) fn observed(self) -> io::Result<Observed> {
        let Failed { error, heard } = self;
        // A proxy that wants HTTP says so in HTTP.
        if let Ok((status, _)) = parse_head(&heard) {
            return Ok(Observed::HttpStatus(status));
        }
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => {
                Ok(Observed::TlsReset)
            }
            _ => Err(error),
        }
    }
}

/// A stream that keeps the first bytes that came on it.
#[derive(Debug)]
pub(super) struct Heard {
    stream: TcpStream,
    first: Vec<u8>,
}

impl AsyncRead for Heard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, into);
        let kept = HEARD - self.first.len();
        self.first.extend(into.filled()[before..].iter().take(kept));
        read
    }
}

impl AsyncWrite for Heard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &TlsName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
