//! The CA of those who may call, from a file that is read again when it changes.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};

use super::certificate::{CertificateError, provider, read_certificates};

/// A handle on the CA of those who may call. Clones are the same handle.
#[derive(Clone)]
pub struct ClientCa {
    path: Arc<PathBuf>,
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
    /// Reads the CA, or several, from a PEM file.
    pub fn from_file(path: &Path) -> Result<Self, ClientCaError> {
        let verifier = read(path)?;
        Ok(Self {
            path: Arc::new(path.to_owned()),
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

    fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
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
    // Probes present no certificate; what they may ask for is the router's matter.
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| ClientCaError::Verifier {
            path: path.to_owned(),
            error,
        })
}

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
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verifier()
            .verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier().verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier().verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier().supported_verify_schemes()
    }
}

impl fmt::Debug for ClientCa {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("ClientCa").field(&self.path).finish()
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
            let error = ClientCa::from_file(&path).unwrap_err().to_string();
            assert!(error.starts_with("client CA "), "{error}");
            assert!(error.contains(problem), "{error}");
        }
    }
}
