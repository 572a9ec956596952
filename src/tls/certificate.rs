//! A serving certificate, from files or made at start.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};
use thiserror::Error;

/// A certificate that is made at start lives as long as the process that alone knows its
/// key; it only has to outlast that.
const LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// For clients whose clock is behind ours.
const BACKDATED: Duration = Duration::from_secs(60 * 60);

/// A certificate chain with its key.
pub struct ServingCertificate {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    ca_bundle: Option<String>,
}

/// Why a certificate can't be served.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// A file can't be read as PEM.
    #[error("{what} {}: {error}", path.display())]
    File {
        /// What the file should hold.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        error: pem::Error,
    },
    /// The file holds no certificate.
    #[error("certificate {}: the file holds no PEM block CERTIFICATE", .0.display())]
    Empty(PathBuf),
    /// rustls refuses the pair, for example because the key is another certificate's.
    #[error("the certificate can't be served with its key: {0}")]
    Refused(#[from] rustls::Error),
    /// A certificate could not be made.
    #[error("no certificate could be made: {0}")]
    NotMade(#[from] rcgen::Error),
}

impl ServingCertificate {
    /// Reads a chain, the serving certificate first, and its key from PEM files.
    pub fn from_files(chain: &Path, key: &Path) -> Result<Self, CertificateError> {
        let file = |what, path: &Path| {
            let path = path.to_owned();
            move |error| CertificateError::File { what, path, error }
        };
        let certificates = CertificateDer::pem_file_iter(chain)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(file("certificate", chain))?;
        if certificates.is_empty() {
            return Err(CertificateError::Empty(chain.to_owned()));
        }
        let key = PrivateKeyDer::from_pem_file(key).map_err(file("private key", key))?;
        Ok(Self {
            chain: certificates,
            key,
            ca_bundle: None,
        })
    }

    /// Makes a CA and, with it, a certificate for these DNS names and IP addresses. The CA's
    /// key is forgotten at once.
    pub fn make(names: &[String]) -> Result<Self, CertificateError> {
        let now = std::time::SystemTime::now();
        let (not_before, not_after) = ((now - BACKDATED).into(), (now + LIFETIME).into());

        let mut ca = CertificateParams::new([])?;
        ca.distinguished_name
            .push(DnType::CommonName, "sgp webhook CA");
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        (ca.not_before, ca.not_after) = (not_before, not_after);
        let ca_key = KeyPair::generate()?;
        let ca_bundle = ca.self_signed(&ca_key)?.pem();

        let mut serving = CertificateParams::new(names)?;
        serving
            .distinguished_name
            .push(DnType::CommonName, "sgp webhook");
        serving.use_authority_key_identifier_extension = true;
        serving.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        serving.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        (serving.not_before, serving.not_after) = (not_before, not_after);
        let key = KeyPair::generate()?;
        let certificate = serving.signed_by(&key, &Issuer::from_params(&ca, &ca_key))?;

        Ok(Self {
            chain: vec![certificate.der().clone()],
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            ca_bundle: Some(ca_bundle),
        })
    }

    /// The CA that clients have to trust, as PEM, if it was made here.
    pub fn ca_bundle(&self) -> Option<&str> {
        self.ca_bundle.as_deref()
    }

    /// A server that presents this certificate over TLS 1.2 or 1.3 and speaks HTTP/2 or
    /// HTTP/1.1.
    ///
    /// # Errors
    ///
    /// If rustls refuses the certificate or the key is another one's.
    pub fn into_server_config(self) -> Result<Arc<ServerConfig>, CertificateError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13, &TLS12])?
            .with_no_client_auth()
            .with_single_cert(self.chain, self.key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(certificate: &str, key: &str) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let paths = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
        std::fs::write(&paths.0, certificate).unwrap();
        std::fs::write(&paths.1, key).unwrap();
        (folder, paths.0, paths.1)
    }

    fn pair() -> (String, String) {
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (pair.cert.pem(), pair.signing_key.serialize_pem())
    }

    #[test]
    fn certificate_from_files_is_served() {
        let (certificate, key) = pair();
        let (_folder, certificate, key) = files(&certificate, &key);
        let certificate = ServingCertificate::from_files(&certificate, &key).unwrap();

        assert!(certificate.ca_bundle().is_none());
        certificate.into_server_config().unwrap();
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_its_path() {
        let (certificate, key) = pair();
        for (certificate, key, message) in [
            (
                "",
                key.as_str(),
                "tls.crt: the file holds no PEM block CERTIFICATE",
            ),
            (certificate.as_str(), "", "private key"),
            (certificate.as_str(), certificate.as_str(), "tls.key"),
        ] {
            let (_folder, certificate, key) = files(certificate, key);
            let error = ServingCertificate::from_files(&certificate, &key)
                .err()
                .unwrap();
            assert!(error.to_string().contains(message), "{error}");
        }
        let missing = Path::new("no/such/file");
        let error = ServingCertificate::from_files(missing, missing)
            .err()
            .unwrap();
        assert!(error.to_string().contains("no/such/file"), "{error}");
    }

    #[test]
    fn key_of_another_certificate_is_refused() {
        let (_folder, certificate, key) = files(&pair().0, &pair().1);
        let certificate = ServingCertificate::from_files(&certificate, &key).unwrap();
        let error = certificate.into_server_config().unwrap_err();
        assert!(matches!(error, CertificateError::Refused(_)), "{error}");
    }

    #[test]
    fn made_certificate_brings_the_ca_to_trust() {
        let names = [
            "sgp-webhook.sgp-system.svc".to_owned(),
            "127.0.0.1".to_owned(),
        ];
        let certificate = ServingCertificate::make(&names).unwrap();

        assert!(
            certificate
                .ca_bundle()
                .unwrap()
                .contains("BEGIN CERTIFICATE")
        );
        certificate.into_server_config().unwrap();
    }
}
