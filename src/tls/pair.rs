//! A CA and the one certificate that it has signed.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ParsedCertificate;

use super::certificate::{ServingCertificate, provider, unix_time};
use super::rotation::{Authority, Issued};

/// For clients whose clock is behind ours.
const BACKDATED: Duration = Duration::from_secs(60 * 60);

/// A serving certificate with its key, and the CA that signed it. The CA's key is gone: each
/// CA signs one certificate.
#[derive(Clone)]
pub struct Pair {
    /// The CA as PEM.
    pub(super) ca: String,
    /// The serving certificate as PEM.
    pub(super) certificate: String,
    /// The serving certificate's key as PEM.
    pub(super) key: String,
    serving: ServingCertificate,
    authority: Authority,
}

/// Why there is no pair.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// A part is not there.
    #[error("{part} is missing")]
    Missing {
        /// Its name.
        part: String,
    },
    /// A part is no PEM of its kind.
    #[error("{part} can't be read: {error}")]
    Unreadable {
        /// Its name.
        part: String,
        /// What is wrong with it.
        error: rustls::pki_types::pem::Error,
    },
    /// The parts do not fit together, or rustls can't use them.
    #[error("{0}")]
    Unusable(#[from] rustls::Error),
    /// It could not be made.
    #[error("{0}")]
    NotMade(#[from] rcgen::Error),
}

impl Pair {
    /// Makes a CA and, with it, a certificate for these DNS names and IP addresses.
    pub fn make(names: &[String], lifetime: Duration, now: SystemTime) -> Result<Self, PairError> {
        let (not_before, not_after) = ((now - BACKDATED).into(), (now + lifetime).into());

        let ca_key = KeyPair::generate()?;
        let mut ca = CertificateParams::new([])?;
        // A name of its own for each, so that clients who trust several try the right one.
        let number = fastrand::u64(..);
        let name = format!("sgp webhook CA {number:016x}");
        ca.distinguished_name.push(DnType::CommonName, name);
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        (ca.not_before, ca.not_after) = (not_before, not_after);
        let ca_pem = ca.self_signed(&ca_key)?.pem();

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
        let (certificate, key) = (certificate.pem(), key.serialize_pem());
        Self::read("", Some(&ca_pem), Some(&certificate), Some(&key))
    }

    /// Reads a pair from PEM. `prefix` is what the parts' names begin with in messages.
    pub(super) fn read(
        prefix: &str,
        ca: Option<&str>,
        certificate: Option<&str>,
        key: Option<&str>,
    ) -> Result<Self, PairError> {
        let part = |name: &str| format!("{prefix}{name}");
        let present = |name, value: Option<&str>| {
            let value = value.map(str::to_owned);
            value.ok_or_else(|| PairError::Missing { part: part(name) })
        };
        let unreadable = |name| {
            let part = part(name);
            move |error| PairError::Unreadable { part, error }
        };
        let ca = present("ca.crt", ca)?;
        let certificate = present("tls.crt", certificate)?;
        let key = present("tls.key", key)?;
        let ca_der = CertificateDer::from_pem_slice(ca.as_bytes()).map_err(unreadable("ca.crt"))?;
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(unreadable("tls.crt"))?;
        let key_der =
            PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(unreadable("tls.key"))?;

        let mut roots = RootCertStore::empty();
        roots.add(ca_der.clone())?;
        let serving = ServingCertificate::new(vec![der.clone()], key_der)?;
        // Whether it is signed by that CA; its dates are another matter.
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(&der)?,
            &roots,
            &[],
            unix_time(serving.validity().not_after),
            provider().signature_verification_algorithms.all,
        )?;
        Ok(Self {
            ca,
            certificate,
            key,
            serving,
            authority: Authority::read(&ca_der),
        })
    }

    /// What the webhook serves.
    pub fn serving(&self) -> &ServingCertificate {
        &self.serving
    }

    /// The CA that clients have to trust, as PEM.
    pub fn ca_bundle(&self) -> &str {
        &self.ca
    }

    /// What its rotation has to know of it.
    pub(super) fn issued(&self, names: &[ServerName<'static>]) -> Issued {
        let validity = self.serving.validity();
        Issued {
            authority: self.authority.clone(),
            at: validity.not_before + BACKDATED,
            not_before: validity.not_before,
            not_after: validity.not_after,
            has_all_names: self.serving.is_for_all(names),
        }
    }
}

// By hand, so that no key is ever printed.
impl std::fmt::Debug for Pair {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut printed = formatter.debug_struct("Pair");
        printed
            .field("serving", &self.serving)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn made() -> Pair {
        let names = [
            "sgp-webhook.sgp-system.svc".to_owned(),
            "127.0.0.1".to_owned(),
        ];
        Pair::make(&names, Duration::from_secs(20), now()).unwrap()
    }

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000_000_000)
    }

    fn names(names: &[&str]) -> Vec<ServerName<'static>> {
        let name = |name: &&str| ServerName::try_from(name.to_string()).unwrap();
        names.iter().map(name).collect()
    }

    #[test]
    fn pair_knows_when_and_for_which_names_it_was_made() {
        let made = made();
        let issued = made.issued(&names(&["127.0.0.1"]));
        assert_eq!(issued.at, now());
        assert_eq!(issued.not_after, now() + Duration::from_secs(20));
        assert!(issued.has_all_names);
        assert!(
            !made
                .issued(&names(&["127.0.0.1", "elsewhere"]))
                .has_all_names
        );
        assert_eq!(issued.authority.not_after(), issued.not_after);
    }

    #[test]
    fn each_pair_has_a_ca_of_its_own() {
        let (one, other) = (made(), made());
        assert_ne!(one.ca, other.ca);
        assert_ne!(one.issued(&[]).authority, other.issued(&[]).authority);
    }

    #[test]
    fn parts_that_do_not_belong_together_are_no_pair() {
        let (one, other) = (made(), made());
        for (ca, certificate, key, problem) in [
            (
                None,
                Some(&one.certificate),
                Some(&one.key),
                "next-ca.crt is missing",
            ),
            (
                Some(&one.ca),
                None,
                Some(&one.key),
                "next-tls.crt is missing",
            ),
            (
                Some(&one.ca),
                Some(&one.certificate),
                None,
                "next-tls.key is missing",
            ),
            (
                Some(&one.key),
                Some(&one.certificate),
                Some(&one.key),
                "next-ca.crt can't be read",
            ),
            (
                Some(&one.ca),
                Some(&one.certificate),
                Some(&one.ca),
                "next-tls.key can't be read",
            ),
            (
                Some(&other.ca),
                Some(&one.certificate),
                Some(&one.key),
                "UnknownIssuer",
            ),
            (
                Some(&one.ca),
                Some(&one.certificate),
                Some(&other.key),
                "keys",
            ),
        ] {
            let text = |part: Option<&String>| part.cloned();
            let (ca, certificate, key) = (text(ca), text(certificate), text(key));
            let (ca, certificate, key) = (ca.as_deref(), certificate.as_deref(), key.as_deref());
            let error = Pair::read("next-", ca, certificate, key).unwrap_err();
            assert!(
                error.to_string().contains(problem),
                "{error} lacks {problem}"
            );
        }
        let again = Pair::read("", Some(&one.ca), Some(&one.certificate), Some(&one.key)).unwrap();
        assert!(again.serving().is(one.serving()));
    }

    #[test]
    fn key_is_not_printed() {
        let made = made();
        let secret = made.key.lines().nth(1).unwrap();
        assert!(!format!("{made:?}").contains(secret));
    }
}
