//! Who a client is, and whether it may call.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::{CertificateError as Invalid, DistinguishedName, Error};
use webpki::EndEntityCert;
use yasna::BERReaderSeq;
use yasna::models::ObjectIdentifier;
use yasna::tags::{TAG_PRINTABLESTRING, TAG_UTF8STRING};

use super::certificate::{instant, unix_time};
use super::client_ca::ClientCa;

/// How long it counts that a client may call, or may not, while the CA is the same. A
/// certificate can expire meanwhile.
const COUNTS_FOR: Duration = Duration::from_secs(60);

/// The most characters of a name that are repeated. X.509 allows no more (RFC 5280, appendix A:
/// ub-common-name).
const LONGEST_NAME: usize = 64;

/// The client of a connection, by the certificates that it has shown.
#[derive(Debug)]
pub struct Caller {
    ca: ClientCa,
    /// Its own first; empty if it has shown none.
    shown: Vec<CertificateDer<'static>>,
    last_look: Mutex<Option<Look>>,
}

#[derive(Debug)]
struct Look {
    at: SystemTime,
    verifier: Arc<dyn ClientCertVerifier>,
    outcome: Result<(), CallerRefusal>,
}

/// Why a client may not call, with the way out.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CallerRefusal {
    /// It has shown no certificate.
    #[error(
        "this webhook answers only callers with a client certificate of the CA in --client-ca; \
         give the API server one for it, in a kubeconfig that its AdmissionConfiguration names"
    )]
    NoCertificate,
    /// Another CA has signed it.
    #[error("{0} is not of the CA in --client-ca; give the API server one that this CA has signed")]
    OtherCa(ClientName),
    /// Its time is over.
    #[error("{0} expired at {at}; renew it", at = instant(*.1))]
    Expired(ClientName, SystemTime),
    /// Its time has not begun.
    #[error(
        "{0} is not valid before {at}; wait, or set the clock of the webhook's machine",
        at = instant(*.1)
    )]
    NotYetValid(ClientName, SystemTime),
    /// It may not be used by clients.
    #[error("{0} is not for clients; make one with the extended key usage clientAuth")]
    OtherPurpose(ClientName),
    /// Something else is wrong with it.
    #[error("{0} can't be verified: {1}; make another one with the CA in --client-ca")]
    Unusable(ClientName, Error),
    /// The CA has signed it for somebody else.
    #[error(
        "{0} is of the CA in --client-ca, but --client-name lets in only {names}; give the API \
         server one with such a common name",
        names = quoted(.1)
    )]
    OtherName(ClientName, Vec<String>),
}

/// What a client's certificate says who it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ClientName {
    /// It has this common name and no other.
    One(String),
    /// It has none that can be read.
    None,
    /// It has several, of which everybody could take another one for it.
    Several,
}

impl Caller {
    pub(super) fn new(ca: ClientCa, shown: &[CertificateDer<'_>]) -> Self {
        Self {
            ca,
            shown: shown.iter().map(|it| it.clone().into_owned()).collect(),
            last_look: Mutex::new(None),
        }
    }

    /// Whether it may call at this instant.
    ///
    /// # Errors
    ///
    /// Why it may not.
    pub fn check(&self, now: SystemTime) -> Result<(), CallerRefusal> {
        let verifier = self.ca.verifier();
        let mut last = self
            .last_look
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(look) = &*last
            && Arc::ptr_eq(&look.verifier, &verifier)
            && now.duration_since(look.at).is_ok_and(|it| it < COUNTS_FOR)
        {
            return look.outcome.clone();
        }
        let outcome = self.look(&*verifier, now);
        *last = Some(Look {
            at: now,
            verifier,
            outcome: outcome.clone(),
        });
        outcome
    }

    fn look(
        &self,
        verifier: &dyn ClientCertVerifier,
        now: SystemTime,
    ) -> Result<(), CallerRefusal> {
        let Some((own, further)) = self.shown.split_first() else {
            return Err(CallerRefusal::NoCertificate);
        };
        let name = ClientName::of(own);
        if let Err(error) = verifier.verify_client_cert(own, further, unix_time(now)) {
            return Err(CallerRefusal::new(name, error));
        }
        match (self.ca.names(), &name) {
            ([], _) => Ok(()),
            (names, ClientName::One(common_name)) if names.contains(common_name) => Ok(()),
            (names, _) => Err(CallerRefusal::OtherName(name, names.to_vec())),
        }
    }
}

impl CallerRefusal {
    /// What rustls found wrong with a certificate.
    fn new(name: ClientName, error: Error) -> Self {
        let time = |time: UnixTime| UNIX_EPOCH + Duration::from_secs(time.as_secs());
        match error {
            // A bad signature has the certificate of another CA with the same name.
            Error::InvalidCertificate(Invalid::UnknownIssuer | Invalid::BadSignature) => {
                Self::OtherCa(name)
            }
            Error::InvalidCertificate(Invalid::ExpiredContext { not_after, .. }) => {
                Self::Expired(name, time(not_after))
            }
            Error::InvalidCertificate(Invalid::NotValidYetContext { not_before, .. }) => {
                Self::NotYetValid(name, time(not_before))
            }
            Error::InvalidCertificate(
                Invalid::InvalidPurpose | Invalid::InvalidPurposeContext { .. },
            ) => Self::OtherPurpose(name),
            error => Self::Unusable(name, error),
        }
    }
}

impl ClientName {
    /// Reads the common name: the API server itself knows its clients by nothing else, and who
    /// approves certificates for it need not have looked at alternative names.
    fn of(certificate: &CertificateDer<'_>) -> Self {
        match &*common_names(certificate).unwrap_or_default() {
            [Some(name)] => Self::One(name.clone()),
            [None] | [] => Self::None,
            _ => Self::Several,
        }
    }
}

/// The common names of a certificate's subject (RFC 5280, section 4.1.2.4); one that is no plain
/// text is `None`. Anybody can have made the certificate.
fn common_names(certificate: &CertificateDer<'_>) -> Option<Vec<Option<String>>> {
    let parsed = EndEntityCert::try_from(certificate).ok()?;
    let subject = DistinguishedName::in_sequence(parsed.subject());
    let oid = ObjectIdentifier::from_slice(&[2, 5, 4, 3]);
    let mut names = Vec::new();
    let mut attribute = |reader: &mut BERReaderSeq<'_, '_>| {
        let is_common_name = reader.next().read_oid()? == oid;
        let value = reader.next();
        let text = match value.lookahead_tag()? {
            TAG_UTF8STRING if is_common_name => Some(value.read_utf8string()?),
            TAG_PRINTABLESTRING if is_common_name => Some(value.read_printable_string()?),
            // As bytes, because what yasna has for a value that is skipped trusts its length.
            tag => {
                value.read_tagged_implicit(tag, |bytes| bytes.read_bytes())?;
                None
            }
        };
        if is_common_name {
            names.push(text);
        }
        Ok(())
    };
    yasna::parse_der(subject.as_ref(), |subject| {
        subject.read_sequence_of(|part| part.read_set_of(|one| one.read_sequence(&mut attribute)))
    })
    .ok()?;
    Some(names)
}

impl fmt::Display for ClientName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Whoever made the certificate can have written anything.
            Self::One(name) => {
                let name: String = name.chars().take(LONGEST_NAME).collect();
                write!(formatter, "the client certificate of {name:?}")
            }
            Self::None => formatter.write_str("the client certificate without a common name"),
            Self::Several => {
                formatter.write_str("the client certificate with several common names")
            }
        }
    }
}

fn quoted(names: &[String]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("{name:?}")).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue,
        ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };

    /// A CA in a file.
    struct Ca {
        folder: tempfile::TempDir,
        issuer: Issuer<'static, KeyPair>,
    }

    impl Ca {
        /// They all have the same name.
        fn new() -> Self {
            let ca = Self {
                folder: tempfile::tempdir().unwrap(),
                issuer: Issuer::new(CertificateParams::default(), KeyPair::generate().unwrap()),
            };
            ca.renew()
        }

        /// With another key.
        fn renew(self) -> Self {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let pem = params.self_signed(&key).unwrap().pem();
            std::fs::write(self.folder.path().join("ca.crt"), pem).unwrap();
            let issuer = Issuer::new(params, key);
            Self { issuer, ..self }
        }

        fn only(&self, names: &[&str]) -> ClientCa {
            let names: Vec<_> = names.iter().map(|name| name.to_string()).collect();
            ClientCa::from_file(&self.folder.path().join("ca.crt"), &names).unwrap()
        }

        fn signs(&self, change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
            let mut params = named("kube-apiserver");
            change(&mut params);
            let key = KeyPair::generate().unwrap();
            let signed = params.signed_by(&key, &self.issuer).unwrap();
            signed.der().clone()
        }
    }

    /// For a client of this name, valid from 1,000 to 2,000.
    fn named(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = (at(1_000).into(), at(2_000).into());
        params
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn may_call(ca: &ClientCa, certificate: &CertificateDer<'_>, now: u64) -> Result<(), String> {
        let caller = ca.caller(Some(std::slice::from_ref(certificate)));
        caller.check(at(now)).map_err(|it| it.to_string())
    }

    #[test]
    fn client_of_the_ca_may_call_and_others_are_told_why_not() {
        let (ours, others) = (Ca::new(), Ca::new());
        let ca = ours.only(&[]);
        assert_eq!(may_call(&ca, &ours.signs(|_| ()), 1_500), Ok(()));

        let told = |certificate, now, text: &str| {
            assert_eq!(may_call(&ca, &certificate, now), Err(text.to_owned()));
        };
        told(
            others.signs(|_| ()),
            1_500,
            "the client certificate of \"kube-apiserver\" is not of the CA in --client-ca; give \
             the API server one that this CA has signed",
        );
        told(
            ours.signs(|_| ()),
            2_001,
            "the client certificate of \"kube-apiserver\" expired at 1970-01-01T00:33:20Z; renew \
             it",
        );
        told(
            ours.signs(|_| ()),
            999,
            "the client certificate of \"kube-apiserver\" is not valid before \
             1970-01-01T00:16:40Z; wait, or set the clock of the webhook's machine",
        );
        told(
            ours.signs(|it| it.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            1_500,
            "the client certificate of \"kube-apiserver\" is not for clients; make one with the \
             extended key usage clientAuth",
        );
        let nobody = ca.caller(None).check(at(1_500)).unwrap_err();
        assert_eq!(nobody, CallerRefusal::NoCertificate);
        assert_eq!(
            nobody.to_string(),
            "this webhook answers only callers with a client certificate of the CA in \
             --client-ca; give the API server one for it, in a kubeconfig that its \
             AdmissionConfiguration names"
        );
    }

    #[test]
    fn common_name_is_found_among_others_whatever_they_hold() {
        let ca = Ca::new();
        let named = |attributes: Vec<(DnType, DnValue)>| {
            let certificate = ca.signs(|it| {
                it.distinguished_name = DistinguishedName::new();
                for (kind, value) in attributes {
                    it.distinguished_name.push(kind, value);
                }
            });
            ClientName::of(&certificate)
        };
        let name = || {
            (
                DnType::CommonName,
                DnValue::Utf8String("kube-apiserver".into()),
            )
        };
        let bmp = DnValue::BmpString("kube-apiserver".try_into().unwrap());
        let one = ClientName::One("kube-apiserver".into());
        let group = DnValue::Utf8String("system:masters & others".into());
        assert_eq!(named(vec![name()]), one);
        assert_eq!(named(vec![(DnType::OrganizationName, group), name()]), one);
        assert_eq!(named(vec![(DnType::CommonName, bmp)]), ClientName::None);

        // A length with which a sum of places in memory begins anew.
        let good = ca.signs(|it| {
            it.distinguished_name
                .push(DnType::LocalityName, "0123456789")
        });
        let place = good.windows(10).position(|it| it == b"0123456789").unwrap();
        let mut bad = good.to_vec();
        bad[place - 1..place + 8].copy_from_slice(b"\x88\xff\xff\xff\xff\xff\xff\xff\xf0");
        assert_eq!(ClientName::of(&bad.into()), ClientName::None);
        assert_eq!(ClientName::of(&vec![0x30, 0x80].into()), ClientName::None);
    }

    #[test]
    fn of_all_clients_of_the_ca_only_those_with_the_name_may_call() {
        let ca = Ca::new();
        let only = ca.only(&["kube-apiserver", "other-apiserver"]);
        assert_eq!(may_call(&only, &ca.signs(|_| ()), 1_500), Ok(()));
        let other =
            ca.signs(|it| it.distinguished_name = named("other-apiserver").distinguished_name);
        assert_eq!(may_call(&only, &other, 1_500), Ok(()));

        let told = |change: fn(&mut CertificateParams), who: &str| {
            let refused = may_call(&only, &ca.signs(change), 1_500).unwrap_err();
            let text = format!(
                "{who} is of the CA in --client-ca, but --client-name lets in only \
                 \"kube-apiserver\", \"other-apiserver\"; give the API server one with such a \
                 common name"
            );
            assert_eq!(refused, text);
        };
        told(
            |it| it.distinguished_name = named("system:node:one").distinguished_name,
            "the client certificate of \"system:node:one\"",
        );
        // As nobody may pick a name that is only like it.
        told(
            |it| it.distinguished_name = named("Kube-Apiserver").distinguished_name,
            "the client certificate of \"Kube-Apiserver\"",
        );
        told(
            |it| it.distinguished_name = named("a\n\"b").distinguished_name,
            r#"the client certificate of "a\n\"b""#,
        );
        told(
            |it| it.distinguished_name = DistinguishedName::new(),
            "the client certificate without a common name",
        );
        // An alternative name is none that counts.
        told(
            |it| {
                let names = CertificateParams::new(["kube-apiserver".to_owned()]).unwrap();
                it.subject_alt_names = names.subject_alt_names;
                it.distinguished_name = named("system:node:one").distinguished_name;
            },
            "the client certificate of \"system:node:one\"",
        );
    }

    #[test]
    fn long_name_is_told_only_in_part() {
        let name = ClientName::One("x".repeat(100));
        let told = format!("the client certificate of \"{}\"", "x".repeat(64));
        assert_eq!(name.to_string(), told);
    }

    #[test]
    fn open_connection_is_judged_anew_when_the_ca_changes_and_when_a_certificate_expires() {
        let ca = Ca::new();
        let handle = ca.only(&[]);
        let certificate = ca.signs(|_| ());
        let caller = handle.caller(Some(&[certificate]));
        assert_eq!(caller.check(at(1_990)), Ok(()));
        let refused = caller.check(at(2_060)).unwrap_err();
        assert!(matches!(refused, CallerRefusal::Expired(..)), "{refused}");
        assert_eq!(caller.check(at(1_500)), Ok(()), "the clock was set back");

        let ca = ca.renew();
        assert_eq!(caller.check(at(1_501)), Ok(()), "nobody has read it yet");
        handle.reload().unwrap();
        let refused = caller.check(at(1_501)).unwrap_err();
        assert!(matches!(refused, CallerRefusal::OtherCa(_)), "{refused}");
        let new = ca.signs(|_| ());
        assert_eq!(may_call(&handle, &new, 1_501), Ok(()));
    }
}
