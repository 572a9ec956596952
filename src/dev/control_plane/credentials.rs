//! The certificate authority of one control plane and everything it signs.
//!
//! Only two keys are worth keeping from one start to the next: the authority's, so that
//! kubeconfigs handed out earlier still work, and the service accounts', so that their tokens
//! do. All certificates are issued anew at each start, which takes a millisecond each and
//! means that none is ever near its expiry.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

use super::SERVICE_IP;
use crate::dev::private_file;

/// What kubeconfigs of `sgp dev` call their cluster and context.
pub const KUBECONFIG_NAME: &str = "sgp-dev";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Longer than a certificate's, so that a certificate never outlives its authority.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Why credentials could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file could not be read or written.
    #[error("cannot read or write {path}")]
    File {
        /// The file at fault.
        path: PathBuf,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// A kept key is damaged. Removing the file makes a new key.
    #[error("{path} is not a private key; remove it to get a new one")]
    DamagedKey {
        /// The file at fault.
        path: PathBuf,
        /// What the parser says.
        #[source]
        source: rcgen::Error,
    },
    /// A certificate could not be signed.
    #[error("cannot sign a certificate")]
    Sign(#[from] rcgen::Error),
}

/// The files that the components are started with.
#[derive(Debug)]
pub(super) struct Credentials {
    folder: PathBuf,
    authority: Issuer<'static, KeyPair>,
    authority_pem: String,
}

impl Credentials {
    /// Makes the authority, the serving certificate and the service-account keys in `folder`,
    /// from the keys that are there already, if they are.
    pub(super) fn issue(folder: &Path) -> Result<Self, CredentialsError> {
        create_private_folder(folder)?;
        let service_accounts = kept_key(&folder.join("service-accounts.key"))?;
        write_private(
            &folder.join("service-accounts.pub"),
            &service_accounts.public_key_pem(),
        )?;

        let key = kept_key(&folder.join("ca.key"))?;
        let params = authority_params();
        let authority_pem = params.self_signed(&key)?.pem();
        let credentials = Self {
            folder: folder.to_owned(),
            authority: Issuer::new(params, key),
            authority_pem,
        };
        write_private(
            &credentials.authority_certificate(),
            &credentials.authority_pem,
        )?;

        let names = [
            "127.0.0.1",
            "localhost",
            "kubernetes.default.svc",
            SERVICE_IP,
        ];
        let mut params = CertificateParams::new(names.map(String::from))?;
        params
            .distinguished_name
            .push(DnType::CommonName, "kube-apiserver");
        let serving = credentials.sign(params, ExtendedKeyUsagePurpose::ServerAuth)?;
        write_private(&credentials.serving_certificate(), &serving.certificate_pem)?;
        write_private(&credentials.serving_key(), &serving.key_pem)?;
        Ok(credentials)
    }

    pub(super) fn authority_certificate(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    pub(super) fn serving_certificate(&self) -> PathBuf {
        self.folder.join("kube-apiserver.crt")
    }

    pub(super) fn serving_key(&self) -> PathBuf {
        self.folder.join("kube-apiserver.key")
    }

    pub(super) fn service_accounts_private_key(&self) -> PathBuf {
        self.folder.join("service-accounts.key")
    }

    pub(super) fn service_accounts_public_key(&self) -> PathBuf {
        self.folder.join("service-accounts.pub")
    }

    /// Writes a kubeconfig for `user` in `group` with a certificate of its own. One group,
    /// for rcgen writes no second organization into a name.
    pub(super) fn write_kubeconfig(
        &self,
        path: &Path,
        port: u16,
        user: &str,
        group: Option<&str>,
    ) -> Result<(), CredentialsError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            params
                .distinguished_name
                .push(DnType::OrganizationName, group);
        }
        let client = self.sign(params, ExtendedKeyUsagePurpose::ClientAuth)?;
        // A kubeconfig is YAML, and so is JSON.
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": KUBECONFIG_NAME, "cluster": {
                "server": format!("https://127.0.0.1:{port}"),
                "certificate-authority-data": BASE64_STANDARD.encode(&self.authority_pem),
            }}],
            "users": [{"name": user, "user": {
                "client-certificate-data": BASE64_STANDARD.encode(&client.certificate_pem),
                "client-key-data": BASE64_STANDARD.encode(&client.key_pem),
            }}],
            "contexts": [{"name": KUBECONFIG_NAME, "context": {
                "cluster": KUBECONFIG_NAME, "user": user
            }}],
            "current-context": KUBECONFIG_NAME,
        });
        write_private(path, &format!("{kubeconfig:#}\n"))
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<SignedKey, CredentialsError> {
        let key = KeyPair::generate()?;
        (params.not_before, params.not_after) = validity(CERTIFICATE_LIFETIME);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let certificate_pem = params.signed_by(&key, &self.authority)?.pem();
        Ok(SignedKey {
            certificate_pem,
            key_pem: key.serialize_pem(),
        })
    }
}

struct SignedKey {
    certificate_pem: String,
    key_pem: String,
}

/// The same at each start but for the dates, so that what the kept key signed stays valid.
fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "sgp control plane");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = validity(AUTHORITY_LIFETIME);
    params
}

/// From yesterday, because clocks of containers and virtual machines may lag behind.
///
/// Generic only because rcgen does not export the type of its dates.
fn validity<T: From<SystemTime>>(lifetime: Duration) -> (T, T) {
    let now = SystemTime::now();
    ((now - DAY).into(), (now + lifetime).into())
}

/// The key in the file, or a new one that is there from now on.
fn kept_key(path: &Path) -> Result<KeyPair, CredentialsError> {
    match fs::read_to_string(path) {
        Ok(pem) => KeyPair::from_pem(&pem).map_err(|source| CredentialsError::DamagedKey {
            path: path.to_owned(),
            source,
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = KeyPair::generate()?;
            write_private(path, &key.serialize_pem())?;
            Ok(key)
        }
        Err(source) => Err(CredentialsError::File {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Makes a folder that only this user can enter.
pub(super) fn create_private_folder(path: &Path) -> Result<(), CredentialsError> {
    use std::os::unix::fs::DirBuilderExt;

    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| CredentialsError::File {
            path: path.to_owned(),
            source,
        })
}

fn write_private(path: &Path, contents: &str) -> Result<(), CredentialsError> {
    private_file::write(path, contents.as_bytes()).map_err(|source| CredentialsError::File {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::server::WebPkiClientVerifier;
    use rustls::{RootCertStore, crypto::aws_lc_rs};

    use super::*;

    fn roots(credentials: &Credentials) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        let pem = fs::read(credentials.authority_certificate()).unwrap();
        roots
            .add(CertificateDer::from_pem_slice(&pem).unwrap())
            .unwrap();
        Arc::new(roots)
    }

    #[test]
    fn serving_certificate_holds_for_every_name_of_the_api_server() {
        let folder = tempfile::tempdir().unwrap();
        let credentials = Credentials::issue(folder.path()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots(&credentials), provider)
            .build()
            .unwrap();
        let certificate = CertificateDer::from_pem_file(credentials.serving_certificate()).unwrap();

        for (name, holds) in [
            ("127.0.0.1", true),
            ("localhost", true),
            ("kubernetes.default.svc", true),
            ("10.96.0.1", true),
            ("10.96.0.2", false),
            ("example.com", false),
        ] {
            let name = ServerName::try_from(name).unwrap();
            let verified =
                verifier.verify_server_cert(&certificate, &[], &name, &[], UnixTime::now());
            assert_eq!(verified.is_ok(), holds, "{name:?}: {verified:?}");
        }
    }

    #[test]
    fn kubeconfigs_from_before_a_restart_are_still_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().join("credentials");
        let path = folder.path().join("kubeconfig");
        let before = Credentials::issue(&keys).unwrap();
        before
            .write_kubeconfig(&path, 20_000, "admin", Some("system:masters"))
            .unwrap();
        let kubeconfig = kube::config::Kubeconfig::read_from(&path).unwrap();
        let user = kubeconfig.auth_infos[0].auth_info.as_ref().unwrap();
        let pem = BASE64_STANDARD
            .decode(user.client_certificate_data.as_ref().unwrap())
            .unwrap();
        let certificate = CertificateDer::from_pem_slice(&pem).unwrap();

        let after = Credentials::issue(&keys).unwrap();

        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots(&after), provider)
            .build()
            .unwrap();
        verifier
            .verify_client_cert(&certificate, &[], UnixTime::now())
            .unwrap();
    }

    #[test]
    fn service_account_keys_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let key = || {
            let credentials = Credentials::issue(folder.path()).unwrap();
            fs::read_to_string(credentials.service_accounts_private_key()).unwrap()
        };

        assert_eq!(key(), key());
    }

    #[test]
    fn only_the_owner_can_read_keys() {
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().join("credentials");
        let credentials = Credentials::issue(&keys).unwrap();
        let kubeconfig = folder.path().join("kubeconfig");
        credentials
            .write_kubeconfig(&kubeconfig, 20_000, "admin", None)
            .unwrap();

        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&keys), 0o700);
        assert_eq!(mode(&kubeconfig), 0o600);
        for file in fs::read_dir(&keys).unwrap() {
            assert_eq!(mode(&file.unwrap().path()), 0o600);
        }
    }

    #[test]
    fn a_damaged_key_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ca.key"), "not a key").unwrap();

        let error = Credentials::issue(folder.path()).unwrap_err();

        assert!(
            error.to_string().contains("ca.key is not a private key"),
            "{error}"
        );
    }
}
