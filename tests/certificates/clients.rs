//! Clients with certificates, and who signs these.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair,
};
use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ConfigBuilder};

/// What a client `kube-apiserver` of another CA is told.
pub const OTHER_CA: &str = "the client certificate of \"kube-apiserver\" is not of the CA in \
     --client-ca; give the API server one that this CA has signed";

/// A CA for clients. All have the same name, as those of clusters often have.
pub struct Authority {
    /// Its certificate, as PEM.
    pub ca: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What a client has, as PEM.
pub struct Client {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self {
            ca: params.self_signed(&key).unwrap().pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// A client of this common name.
    pub fn client(&self, name: &str) -> Client {
        self.sign(name, |_| ())
    }

    /// One whose certificate expired an hour ago.
    pub fn expired_client(&self, name: &str) -> Client {
        let hour = Duration::from_secs(60 * 60);
        self.sign(name, |it| it.not_after = (SystemTime::now() - hour).into())
    }

    fn sign(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Client {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        Client {
            certificate: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }
}

/// Shows what the client has, or nothing.
pub fn with_client(
    config: ConfigBuilder<ClientConfig, WantsClientCert>,
    client: Option<&Client>,
) -> ClientConfig {
    let Some(client) = client else {
        return config.with_no_client_auth();
    };
    let chain = CertificateDer::from_pem_slice(client.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(client.key.as_bytes()).unwrap();
    config.with_client_auth_cert(vec![chain], key).unwrap()
}
