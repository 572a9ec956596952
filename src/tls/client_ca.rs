//! The CA of those who may call, from a file that is read again when it changes.
//!
//! A handshake only shows that a client has the key of its certificate. Whether it may call is
//! asked for each request ([`Caller`]): so a refusal is an answer that gives the reason, and a
//! file that changes counts for connections that are open.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{
    CertificateError as Invalid, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};

use super::caller::Caller;
use super::certificate::{CertificateError, provider, read_certificates};

/// The most bytes of a client's certificates, which are kept as long as its connection.
const LONGEST_CHAIN: usize = 16 * 1024;

/// A handle on the CA of those who may call, and on their names. Clones are the same handle.
#[derive(Clone)]
pub struct ClientCa {
    path: Arc<PathBuf>,
    names: Arc<[String]>,
    verifier: Arc<RwLock<Arc<dyn ClientCertVerifier>>>,
}

/// Why a file can't say who may call.
#[derive(Debug, thiserror::Error)]
pub enum ClientCaError {
    /// It can't be read.
    #[error(transparent)]
    File(#[from] CertificateError),
    /// It holds a certificate that can't be a CA.
    #[error("client CA {}: {error}; give the certificate of a CA", path.display())]
    Certificate {
        /// The file's path.
        path: PathBuf,
        /// What is wrong with it.
        error: Error,
    },
    /// No client can be checked with it.
    #[error("client CA {}: {error}; give the certificate of a CA", path.display())]
    Verifier {
        /// The file's path.
        path: PathBuf,
        /// What is wrong with it.
        error: VerifierBuilderError,
    },
}

impl ClientCa {
    /// Reads the CA, or several, from a PEM file. Of its clients those with one of these common
    /// names may call, or all if there are none.
    pub fn from_file(path: &Path, names: &[String]) -> Result<Self, ClientCaError> {
        let verifier = read(path)?;
        Ok(Self {
            path: Arc::new(path.to_owned()),
            names: names.into(),
            verifier: Arc::new(RwLock::new(verifier)),
        })
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file again. What was read before stays if that fails.
    pub(super) fn reload(&self) -> Result<(), ClientCaError> {
        let verifier = read(&self.path)?;
        *self
            .verifier
            .write()
            .unwrap_or_else(PoisonError::into_inner) = verifier;
        Ok(())
    }

    /// Who has shown these certificates, its own first, or none.
    pub fn caller(&self, shown: Option<&[CertificateDer<'_>]>) -> Caller {
        Caller::new(self.clone(), shown.unwrap_or_default())
    }

    /// The common names one of which a client must have, if there are any.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// What says whether a certificate is of the CA. The same until the file changes.
    pub(super) fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        self.verifier
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

fn read(path: &Path) -> Result<Arc<dyn ClientCertVerifier>, ClientCaError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates("client CA", path)? {
        let added = roots.add(certificate);
        added.map_err(|error| ClientCaError::Certificate {
            path: path.to_owned(),
            error,
        })?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| ClientCaError::Verifier {
            path: path.to_owned(),
            error,
        })
}

/// What a handshake asks for. Probes show no certificate.
impl ClientCertVerifier for ClientCa {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // They change with the file. Without any, a client presents what it has.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let further: usize = intermediates.iter().map(|it| it.len()).sum();
        if end_entity.len() + further > LONGEST_CHAIN {
            return Err(Invalid::ApplicationVerificationFailure.into());
        }
        // That a certificate was shown means nothing yet: see `Caller`.
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl fmt::Debug for ClientCa {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut printed = formatter.debug_struct("ClientCa");
        printed
            .field("path", &self.path)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_without_a_ca_is_refused_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clients.crt");
        for (content, problem) in [
            ("", "clients.crt: the file holds no PEM block CERTIFICATE"),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                "clients.crt: invalid peer certificate",
            ),
        ] {
            std::fs::write(&path, content).unwrap();
            let error = ClientCa::from_file(&path, &[]).unwrap_err().to_string();
            assert!(error.starts_with("client CA "), "{error}");
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn handshake_takes_any_certificates_but_not_endlessly_many() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clients.crt");
        let made = rcgen::generate_simple_self_signed(["ca".to_owned()]).unwrap();
        std::fs::write(&path, made.cert.pem()).unwrap();
        let ca = ClientCa::from_file(&path, &[]).unwrap();
        let half = CertificateDer::from(vec![0; LONGEST_CHAIN / 2]);
        let now = UnixTime::now();
        assert!(
            ca.verify_client_cert(&half, std::slice::from_ref(&half), now)
                .is_ok()
        );
        let more = [half.clone(), CertificateDer::from(vec![0])];
        assert!(ca.verify_client_cert(&half, &more, now).is_err());
    }
}
