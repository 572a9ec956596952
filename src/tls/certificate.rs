//! What a certificate says, and whether it can be served.
//!
//! Nothing in here asks what time it is. Parsing and checking are rustls' own, so that what is
//! accepted here is what a client of the same library would accept.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::jiff::Timestamp;
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError as Invalid, Error, InconsistentKeys, RootCertStore};
use thiserror::Error as ThisError;

/// What stands in front of all that this process signs and verifies.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A certificate chain with its key, in a form that rustls serves.
#[derive(Clone)]
pub struct ServingCertificate {
    certified: Arc<CertifiedKey>,
    validity: Validity,
}

/// From when until when a certificate may be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Validity {
    /// Its first instant.
    pub not_before: SystemTime,
    /// Its last instant.
    pub not_after: SystemTime,
}

/// Why a certificate can't be served.
#[derive(Debug, ThisError)]
pub enum CertificateError {
    /// A file can't be read as PEM.
    #[error("{what} {}: {error}. Give a file in PEM that this program may read", path.display())]
    File {
        /// What the file should hold.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        error: pem::Error,
    },
    /// The file holds no certificate.
    #[error("{what} {}: the file holds no PEM block CERTIFICATE", path.display())]
    Empty {
        /// What the file should hold.
        what: &'static str,
        /// Its path.
        path: PathBuf,
    },
    /// The pair of files is of no use.
    #[error("certificate {}: {reason}", path.display())]
    Refused {
        /// The path of the certificate.
        path: PathBuf,
        /// What is wrong with it.
        reason: Refusal,
    },
}

/// Why a certificate is refused, with the way out.
#[derive(Debug, ThisError)]
pub enum Refusal {
    /// Its time is over.
    #[error("it expired at {}; renew it", instant(*.0))]
    Expired(SystemTime),
    /// Its time has not begun.
    #[error("it is not valid before {}; wait, or set this machine's clock", instant(*.0))]
    NotYetValid(SystemTime),
    /// The name is none that it was made for.
    #[error("it is not for {0}; make one with that name in its subjectAltName{has}", has = has_names(.1))]
    OtherNames(String, Vec<String>),
    /// It may not be used by servers.
    #[error("it is not for servers; make one with the extended key usage serverAuth")]
    OtherPurpose,
    /// The key is another certificate's.
    #[error("the private key in {} is another certificate's; give the one that it was made with", .0.display())]
    OtherKey(PathBuf),
    /// rustls can't use it.
    #[error("it can't be served: {0}; make another one, for example with certs/make.sh")]
    Unusable(Error),
}

fn has_names(names: &[String]) -> String {
    match names {
        [] => String::new(),
        names => format!("; it is for {}", names.join(", ")),
    }
}

impl ServingCertificate {
    /// Reads a chain, the serving certificate first, and its key from PEM files, and checks
    /// that it can be served at this instant under one of these names, if any are given.
    pub fn from_files(
        chain: &Path,
        key: &Path,
        names: &[ServerName<'static>],
        now: SystemTime,
    ) -> Result<Self, CertificateError> {
        let certificates = read_certificates("certificate", chain)?;
        let key_der =
            PrivateKeyDer::from_pem_file(key).map_err(|error| CertificateError::File {
                what: "private key",
                path: key.to_owned(),
                error,
            })?;
        let refused = |reason| CertificateError::Refused {
            path: chain.to_owned(),
            reason,
        };
        let certificate = Self::new(certificates, key_der).map_err(|error| {
            refused(match error {
                Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                    Refusal::OtherKey(key.to_owned())
                }
                error => Refusal::Unusable(error),
            })
        })?;
        certificate.check(names, now).map_err(refused)?;
        Ok(certificate)
    }

    /// A chain, the serving certificate first, with its key.
    ///
    /// # Errors
    ///
    /// If rustls can't serve it, or the key is another one's.
    pub(super) fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, Error> {
        let certified = CertifiedKey::from_der(chain, key, &provider())?;
        let validity = Validity::of(certified.end_entity_cert()?)?;
        let certified = Arc::new(certified);
        Ok(Self {
            certified,
            validity,
        })
    }

    /// What rustls serves.
    pub(super) fn certified_key(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }

    /// From when until when it may be used.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Whether it is the same certificate.
    pub fn is(&self, other: &Self) -> bool {
        self.certified.cert == other.certified.cert
    }

    /// Whether it was made for all these names.
    pub(super) fn is_for_all(&self, names: &[ServerName<'static>]) -> bool {
        self.end_entity().is_ok_and(|certificate| {
            let is_for = |name| verify_server_name(&certificate, name).is_ok();
            names.iter().all(is_for)
        })
    }

    /// Whether it can be served at this instant, to clients that call by one of these names.
    fn check(&self, names: &[ServerName<'static>], now: SystemTime) -> Result<(), Refusal> {
        for certificate in &self.certified.cert {
            // Certificates in between have to be valid as well.
            let validity = Validity::of(certificate).map_err(Refusal::Unusable)?;
            if now > validity.not_after {
                return Err(Refusal::Expired(validity.not_after));
            }
            if now < validity.not_before {
                return Err(Refusal::NotYetValid(validity.not_before));
            }
        }
        let certificate = self.end_entity().map_err(Refusal::Unusable)?;
        if let Error::InvalidCertificate(
            Invalid::InvalidPurpose | Invalid::InvalidPurposeContext { .. },
        ) = examine(&certificate, unix_time(now))
        {
            return Err(Refusal::OtherPurpose);
        }
        let mut has = Vec::new();
        for name in names {
            match verify_server_name(&certificate, name) {
                Ok(()) => return Ok(()),
                Err(Error::InvalidCertificate(Invalid::NotValidForNameContext {
                    presented,
                    ..
                })) => has = presented,
                Err(_) => {}
            }
        }
        let asked: Vec<_> = names.iter().map(|name| name.to_str()).collect();
        match asked.is_empty() {
            true => Ok(()),
            false => Err(Refusal::OtherNames(asked.join(" or "), has)),
        }
    }

    fn end_entity(&self) -> Result<ParsedCertificate<'_>, Error> {
        ParsedCertificate::try_from(self.certified.end_entity_cert()?)
    }
}

impl Validity {
    /// Reads it from a certificate.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Result<Self, Error> {
        let certificate = ParsedCertificate::try_from(certificate)?;
        // rustls tells the dates only to those who come too early or too late.
        let latest = UnixTime::since_unix_epoch(Duration::from_secs(u64::MAX));
        let earliest = UnixTime::since_unix_epoch(Duration::ZERO);
        let not_after = match examine(&certificate, latest) {
            Error::InvalidCertificate(Invalid::ExpiredContext { not_after, .. }) => not_after,
            error => return Err(error),
        };
        let not_before = match examine(&certificate, earliest) {
            Error::InvalidCertificate(Invalid::NotValidYetContext { not_before, .. }) => not_before,
            // Since before 1970, then.
            _ => earliest,
        };
        let time = |time: UnixTime| UNIX_EPOCH + Duration::from_secs(time.as_secs());
        Ok(Self {
            not_before: time(not_before),
            not_after: time(not_after),
        })
    }
}

/// What is wrong with a certificate at an instant for somebody who trusts nobody: its dates,
/// which come first, then its purpose, and that nobody known has signed it.
fn examine(certificate: &ParsedCertificate<'_>, now: UnixTime) -> Error {
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
    let nobody = RootCertStore::empty();
    verify_server_cert_signed_by_trust_anchor(certificate, &nobody, &[], now, algorithms.all)
        .expect_err("nobody is trusted")
}

/// The certificates of a PEM file, one at least.
pub(super) fn read_certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| CertificateError::File {
            what,
            path: path.to_owned(),
            error,
        })?;
    if certificates.is_empty() {
        let path = path.to_owned();
        return Err(CertificateError::Empty { what, path });
    }
    Ok(certificates)
}

pub(super) fn unix_time(instant: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(instant.duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// For people.
pub(super) fn instant(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(|_| "a time that is far away".into(), |it| it.to_string())
}

// By hand, so that no key is ever printed.
impl std::fmt::Debug for ServingCertificate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut printed = formatter.debug_struct("ServingCertificate");
        printed
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair};

    const NAME: &str = "sgp-webhook.sgp-system.svc";

    struct Files {
        _folder: tempfile::TempDir,
        certificate: PathBuf,
        key: PathBuf,
    }

    impl Files {
        fn new(certificate: &str, key: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let files = Self {
                certificate: folder.path().join("tls.crt"),
                key: folder.path().join("tls.key"),
                _folder: folder,
            };
            std::fs::write(&files.certificate, certificate).unwrap();
            std::fs::write(&files.key, key).unwrap();
            files
        }

        fn load(&self, names: &[&str], now: u64) -> Result<ServingCertificate, CertificateError> {
            let names: Vec<_> = names.iter().map(|it| name(it)).collect();
            ServingCertificate::from_files(&self.certificate, &self.key, &names, at(now))
        }
    }

    fn name(name: &str) -> ServerName<'static> {
        ServerName::try_from(name.to_owned()).unwrap()
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// A certificate for [`NAME`], valid from 1,000 to 2,000, with changes.
    fn pair(change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let mut wanted = CertificateParams::new([NAME.to_owned(), "10.0.0.1".to_owned()]).unwrap();
        (wanted.not_before, wanted.not_after) = (at(1_000).into(), at(2_000).into());
        change(&mut wanted);
        let key = KeyPair::generate().unwrap();
        let certificate = wanted.self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    #[test]
    fn certificate_is_refused_for_its_dates_names_and_purpose() {
        let good = pair(|_| ());
        let for_clients = pair(|wanted| {
            wanted.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        });
        for (pair, names, now, problem) in [
            (&good, &[][..], 1_500, None),
            (&good, &[], 1_000, None),
            (&good, &[], 2_000, None),
            (&good, &[NAME], 1_500, None),
            (&good, &["10.0.0.1"], 1_500, None),
            (&good, &["elsewhere.svc", NAME], 1_500, None),
            (
                &good,
                &[],
                999,
                Some(
                    "it is not valid before 1970-01-01T00:16:40Z; wait, or set this machine's clock",
                ),
            ),
            (
                &good,
                &[],
                2_001,
                Some("it expired at 1970-01-01T00:33:20Z; renew it"),
            ),
            (
                &good,
                &["elsewhere.svc"],
                1_500,
                Some(
                    "it is not for elsewhere.svc; make one with that name in its subjectAltName; it is for DnsName(\"sgp-webhook.sgp-system.svc\"), IpAddress(10.0.0.1)",
                ),
            ),
            (
                &good,
                &["a.svc", "10.0.0.2"],
                1_500,
                Some("it is not for a.svc or 10.0.0.2;"),
            ),
            (
                &for_clients,
                &[],
                1_500,
                Some("it is not for servers; make one with the extended key usage serverAuth"),
            ),
        ] {
            let files = Files::new(&pair.0, &pair.1);
            let said = files.load(names, now).err().map(|error| error.to_string());
            match (problem, said) {
                (None, None) => {}
                (Some(problem), Some(said)) => {
                    let start = format!("certificate {}: ", files.certificate.display());
                    let reason = said.strip_prefix(&start).unwrap();
                    assert!(reason.starts_with(problem), "{names:?} at {now}: {reason}");
                }
                (problem, said) => panic!("{names:?} at {now}: {said:?}, not {problem:?}"),
            }
        }
    }

    #[test]
    fn certificate_that_is_its_own_ca_can_be_served() {
        let (certificate, key) = pair(|wanted| {
            wanted.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        });
        let loaded = Files::new(&certificate, &key).load(&[NAME], 1_500).unwrap();
        let validity = loaded.validity();
        assert_eq!(
            (validity.not_before, validity.not_after),
            (at(1_000), at(2_000))
        );
    }

    #[test]
    fn certificate_in_between_has_to_be_valid_too() {
        let (certificate, key) = pair(|_| ());
        let (expired, _) = pair(|wanted| wanted.not_after = at(1_200).into());
        let files = Files::new(&format!("{certificate}{expired}"), &key);
        files.load(&[], 1_200).unwrap();
        let error = files.load(&[], 1_500).unwrap_err().to_string();
        assert!(
            error.contains("it expired at 1970-01-01T00:20:00Z"),
            "{error}"
        );
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_its_path() {
        let (certificate, key) = pair(|_| ());
        for (certificate, key, message) in [
            (
                "",
                key.as_str(),
                "tls.crt: the file holds no PEM block CERTIFICATE",
            ),
            (certificate.as_str(), "", "private key"),
            (certificate.as_str(), certificate.as_str(), "tls.key"),
        ] {
            let error = Files::new(certificate, key).load(&[], 1_500).unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
        }
        let missing = Path::new("no/such/file");
        let error = ServingCertificate::from_files(missing, missing, &[], at(0)).unwrap_err();
        assert!(error.to_string().contains("no/such/file"), "{error}");
    }

    #[test]
    fn key_of_another_certificate_is_refused_and_never_printed() {
        let (certificate, key) = (pair(|_| ()).0, pair(|_| ()).1);
        let files = Files::new(&certificate, &key);
        let error = files.load(&[], 1_500).unwrap_err();
        let wanted = format!(
            "certificate {}: the private key in {} is another certificate's; give the one that \
             it was made with",
            files.certificate.display(),
            files.key.display()
        );
        assert_eq!(error.to_string(), wanted);
        assert!(!format!("{error:?}").contains(key.lines().nth(1).unwrap()));
    }
}
