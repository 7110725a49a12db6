use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

use super::*;

/// A CA with a server and a client certificate, as files.
struct Certificates {
    directory: tempfile::TempDir,
}

impl Certificates {
    fn make() -> Certificates {
        let certificates = Certificates { directory: tempfile::tempdir().unwrap() };
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&ca_key).unwrap();
        certificates.write("ca", &ca_certificate.pem());
        let issuer = Issuer::from_ca_cert_der(ca_certificate.der(), ca_key).unwrap();
        for name in ["server", "client"] {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            certificates.write(name, &params.signed_by(&key, &issuer).unwrap().pem());
            certificates.write(&format!("{name}.key"), &key.serialize_pem());
        }
        certificates
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn chain(&self, name: &str) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(self.path(name)).unwrap().map(Result::unwrap).collect()
    }

    fn client(&self, shows: Option<&str>) -> TlsConnector {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.chain("ca").remove(0)).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match shows {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let key = PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key"))).unwrap();
                builder.with_client_auth_cert(self.chain(name), key).unwrap()
            }
        };
        TlsConnector::from(Arc::new(config))
    }
}

/// The head of the answer to a request, or nothing where the server ends the connection.
async fn get(address: SocketAddr, client: TlsConnector) -> String {
    let stream = TcpStream::connect(address).await.unwrap();
    let Ok(mut stream) = client.connect(ServerName::try_from("localhost").unwrap(), stream).await else {
        return String::new();
    };
    let request = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let mut answer = Vec::new();
    if stream.write_all(request).await.is_ok() {
        // A refused client learns of it when it reads.
        stream.read_to_end(&mut answer).await.ok();
    }
    String::from_utf8_lossy(&answer).into_owned()
}

async fn open(certificates: &Certificates, client_ca: Option<&str>) -> SocketAddr {
    let client_ca = client_ca.map(|name| certificates.path(name));
    let tls =
        tls(&certificates.path("server"), &certificates.path("server.key"), client_ca.as_deref()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(|| async { "here" });
    tokio::spawn(serve(listener, Some(tls), router));
    address
}

#[tokio::test]
async fn with_a_client_ca_only_its_certificates_are_let_in() {
    let certificates = Certificates::make();
    let address = open(&certificates, Some("ca")).await;
    assert!(get(address, certificates.client(Some("client"))).await.starts_with("HTTP/1.1 200"));
    assert_eq!(get(address, certificates.client(None)).await, "");
    let stranger = Certificates::make();
    for name in ["client", "client.key"] {
        let text = std::fs::read_to_string(stranger.path(name)).unwrap();
        certificates.write(&name.replace("client", "stranger"), &text);
    }
    assert_eq!(get(address, certificates.client(Some("stranger"))).await, "");
}

#[tokio::test]
async fn without_a_client_ca_tls_serves_and_plain_text_does_not() {
    let certificates = Certificates::make();
    let address = open(&certificates, None).await;
    assert!(get(address, certificates.client(None)).await.ends_with("here"));
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    plain.read_to_end(&mut answer).await.ok();
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}

#[test]
fn a_file_that_is_no_key_is_named() {
    let certificates = Certificates::make();
    let wrong = tls(&certificates.path("server"), &certificates.path("ca"), None);
    assert!(wrong.is_err_and(|error| error.to_string().contains("/ca")));
}
