//! The server's own certificate authority (ECDSA P-256) and what it signs.
//!
//! - Nodes get certificates for 30 days: SAN = node name, which is never the server's; for calls to the server
//!   and to each other's flow API, and to serve it.
//! - The server makes itself a certificate for the name [`SERVER_NAME`] at each start; its key never
//!   touches the disk.
//! - A node is its key: the registry binds a name to the SHA-256 of the public key.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::extensions::GeneralName;

use super::files::{FileError, private_directory, read_private, write_private};
use super::token::{Digest, sha256};

/// The name that every client expects in the server's certificate, whatever address it dials.
pub const SERVER_NAME: &str = "sluice-server";

/// How long a node's certificate is valid. It is renewed when a third is left.
pub const NODE_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// Clocks of two machines may differ by this.
const SKEW: Duration = Duration::from_secs(3600);

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{what}: {source}")]
    Generate { what: &'static str, source: rcgen::Error },
    #[error("{what} cannot be read: {detail}")]
    Parse { what: &'static str, detail: String },
    /// One of the two files of the CA is there without the other. Creating a new one would lock all
    /// nodes out.
    #[error("{missing} is missing beside {present}: restore it from a backup, or remove both and join all nodes again", present = present.display(), missing = missing.display())]
    Incomplete { present: std::path::PathBuf, missing: std::path::PathBuf },
    #[error("{0:?} is no node name: expected an RFC 1123 subdomain other than {SERVER_NAME}")]
    NodeName(String),
}

fn generate(what: &'static str) -> impl FnOnce(rcgen::Error) -> PkiError {
    move |source| PkiError::Generate { what, source }
}

fn parse(what: &'static str) -> impl FnOnce(&dyn std::fmt::Display) -> PkiError {
    move |detail| PkiError::Parse { what, detail: detail.to_string() }
}

/// A name that a node may have: it becomes a DNS name in a certificate.
///
/// # Errors
///
/// [`PkiError::NodeName`].
pub(super) fn check_node_name(name: &str) -> Result<(), PkiError> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() <= 253 && name != SERVER_NAME && name.split('.').all(label) {
        Ok(())
    } else {
        Err(PkiError::NodeName(name.chars().take(300).collect()))
    }
}

/// The CA.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// PEM.
    pub(super) certificate: String,
    pub(super) fingerprint: Digest,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// A certificate chain and its key, both PEM.
pub(super) struct Identity {
    pub(super) chain: String,
    pub(super) key: String,
}

impl Authority {
    /// Reads the CA from `directory`, or makes one there on the first start.
    pub(super) fn load_or_create(directory: &Path, now: SystemTime) -> Result<Authority, PkiError> {
        private_directory(directory)?;
        let (key_path, certificate_path) = (directory.join("ca.key"), directory.join("ca.crt"));
        let (key, certificate) = match (read_private(&key_path)?, read_private(&certificate_path)?) {
            (Some(key), Some(certificate)) => (key, certificate),
            (None, None) => {
                let (key, certificate) = Self::create(now)?;
                write_private(&key_path, &key)?;
                write_private(&certificate_path, &certificate)?;
                (key, certificate)
            }
            (Some(_), None) => {
                return Err(PkiError::Incomplete { present: key_path, missing: certificate_path });
            }
            (None, Some(_)) => {
                return Err(PkiError::Incomplete { present: certificate_path, missing: key_path });
            }
        };
        let key = KeyPair::from_pem(&key).map_err(|error| parse("the CA's key")(&error))?;
        let der = certificate_der("the CA's certificate", &certificate)?;
        if public_key("the CA's certificate", &der)? != sha256(key.der_bytes()) {
            return Err(parse("the CA's certificate")(&"its key is another one"));
        }
        let issuer =
            Issuer::from_ca_cert_der(&der, key).map_err(|error| parse("the CA's certificate")(&error))?;
        Ok(Authority { issuer, fingerprint: sha256(&der), certificate })
    }

    fn create(now: SystemTime) -> Result<(String, String), PkiError> {
        let key = KeyPair::generate().map_err(generate("make the CA's key"))?;
        let mut params = CertificateParams::default();
        valid(&mut params, now, AUTHORITY_LIFETIME);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "sluice cluster CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(generate("make the CA's certificate"))?;
        Ok((key.serialize_pem(), certificate.pem()))
    }

    /// The server's certificate, with the CA's behind it so that a joining node sees what the token's
    /// fingerprint names.
    pub(super) fn server_identity(&self, now: SystemTime) -> Result<Identity, PkiError> {
        let key = KeyPair::generate().map_err(generate("make the server's key"))?;
        let mut params = leaf(SERVER_NAME, &[ExtendedKeyUsagePurpose::ServerAuth])?;
        // It lives as long as the process at most, and clients trust it by the CA.
        valid(&mut params, now, AUTHORITY_LIFETIME);
        let certificate =
            params.signed_by(&key, &self.issuer).map_err(generate("make the server's certificate"))?;
        Ok(Identity { chain: format!("{}{}", certificate.pem(), self.certificate), key: key.serialize_pem() })
    }

    /// A client certificate (PEM) for the key of this request. Everything else that the request asks
    /// for is ignored.
    pub(super) fn sign_node(
        &self,
        request: &NodeRequest,
        node: &str,
        now: SystemTime,
    ) -> Result<String, PkiError> {
        check_node_name(node)?;
        let mut params =
            leaf(node, &[ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth])?;
        valid(&mut params, now, NODE_LIFETIME);
        let certificate = params
            .signed_by(&request.0.public_key, &self.issuer)
            .map_err(generate("make a node's certificate"))?;
        Ok(certificate.pem())
    }
}

/// A certificate request whose signature has been verified: the sender has the key.
#[derive(Debug)]
pub(super) struct NodeRequest(CertificateSigningRequestParams);

impl NodeRequest {
    pub(super) fn from_der(der: &[u8]) -> Result<NodeRequest, PkiError> {
        CertificateSigningRequestParams::from_der(&der.into())
            .map(NodeRequest)
            .map_err(|error| parse("the certificate request")(&error))
    }

    pub(super) fn key_digest(&self) -> Digest {
        sha256(self.0.public_key.der_bytes())
    }
}

/// The node's side: a key and the request for it.
pub(super) fn certificate_request(key: &KeyPair) -> Result<Vec<u8>, PkiError> {
    let request = CertificateParams::default()
        .serialize_request(key)
        .map_err(generate("make a certificate request"))?;
    Ok(request.der().to_vec())
}

/// What a node's certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeCertificate {
    pub(super) node: String,
    pub(super) key: Digest,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl NodeCertificate {
    /// Reads a certificate that TLS (or the caller) has verified.
    pub(super) fn from_der(der: &[u8]) -> Result<NodeCertificate, PkiError> {
        let what = "the node's certificate";
        let (_, certificate) =
            x509_parser::parse_x509_certificate(der).map_err(|error| parse(what)(&error))?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|error| parse(what)(&error))?
            .map(|extension| &extension.value.general_names[..])
            .unwrap_or_default();
        let [GeneralName::DNSName(node)] = names else {
            return Err(parse(what)(&"it does not hold exactly one name"));
        };
        check_node_name(node)?;
        let time = |time: x509_parser::time::ASN1Time| {
            UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
        };
        Ok(NodeCertificate {
            node: (*node).to_owned(),
            key: sha256(&certificate.public_key().subject_public_key.data),
            not_before: time(certificate.validity().not_before),
            not_after: time(certificate.validity().not_after),
        })
    }

    pub(super) fn from_pem(pem: &str) -> Result<NodeCertificate, PkiError> {
        Self::from_der(&certificate_der("the node's certificate", pem)?)
    }

    /// When to ask for the next one: a third of the lifetime is left.
    pub(super) fn renew_at(&self) -> SystemTime {
        let lifetime = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_after - lifetime / 3
    }
}

fn public_key(what: &'static str, der: &[u8]) -> Result<Digest, PkiError> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).map_err(|error| parse(what)(&error))?;
    Ok(sha256(&certificate.public_key().subject_public_key.data))
}

pub(super) fn certificate_der(what: &'static str, pem: &str) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| parse(what)(&error))
}

fn leaf(name: &str, usages: &[ExtendedKeyUsagePurpose]) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    // X.520 bounds a common name at 64 characters; the name that counts is the SAN.
    if name.len() <= 64 {
        params.distinguished_name.push(DnType::CommonName, name);
    }
    let name = name.try_into().map_err(generate("put the name into a certificate"))?;
    params.subject_alt_names = vec![SanType::DnsName(name)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages.to_vec();
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn valid(params: &mut CertificateParams, now: SystemTime, lifetime: Duration) {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(SKEW);
    params.not_after = epoch + now + lifetime;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    #[test]
    fn the_authority_is_made_once_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca");
        let first = Authority::load_or_create(&path, now()).unwrap();
        let again = Authority::load_or_create(&path, now()).unwrap();
        assert_eq!(first.fingerprint, again.fingerprint);
        std::fs::remove_file(path.join("ca.key")).unwrap();
        let error = Authority::load_or_create(&path, now()).unwrap_err();
        assert!(matches!(error, PkiError::Incomplete { .. }), "{error}");
    }

    #[test]
    fn a_key_of_another_authority_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (directory.path().join("one"), directory.path().join("two"));
        Authority::load_or_create(&one, now()).unwrap();
        Authority::load_or_create(&two, now()).unwrap();
        std::fs::rename(one.join("ca.key"), two.join("ca.key")).unwrap();
        assert!(Authority::load_or_create(&two, now()).is_err());
    }

    #[test]
    fn a_node_certificate_says_name_key_and_time_whatever_the_request_wants() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(&directory.path().join("ca"), now()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut wish = CertificateParams::new(vec!["sluice-server".to_owned()]).unwrap();
        wish.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        wish.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let request = NodeRequest::from_der(wish.serialize_request(&key).unwrap().der()).unwrap();
        let pem = authority.sign_node(&request, "node-1.example", now()).unwrap();
        let certificate = NodeCertificate::from_pem(&pem).unwrap();
        assert_eq!(certificate.node, "node-1.example");
        assert_eq!(certificate.key, sha256(key.der_bytes()));
        assert_eq!(certificate.not_after, now() + NODE_LIFETIME);
        assert!(certificate.renew_at() > now() + NODE_LIFETIME / 2);
        let der = certificate_der("test", &pem).unwrap();
        let (_, x509) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert!(!x509.is_ca());
        let usage = x509.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && usage.server_auth && !usage.code_signing);
    }

    #[test]
    fn a_request_with_a_forged_signature_is_refused() {
        let key = KeyPair::generate().unwrap();
        let mut der = certificate_request(&key).unwrap();
        NodeRequest::from_der(&der).unwrap();
        let last = der.len() - 1;
        der[last] ^= 1;
        assert!(NodeRequest::from_der(&der).is_err());
    }

    #[test]
    fn node_names_are_subdomains() {
        for good in ["a", "node-1", "ip-10-0-0-1.eu.internal", &"a".repeat(63)] {
            check_node_name(good).unwrap();
        }
        for bad in ["", SERVER_NAME, "A", "a..b", "-a", "a-", "a b", "*.x", "a/b", &"a".repeat(64), "é"] {
            assert!(check_node_name(bad).is_err(), "{bad}");
        }
    }
}
