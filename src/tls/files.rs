//! Reading files again when they change.
//!
//! By their contents, every two seconds: a mounted Secret is changed by swapping a symbolic
//! link some folders up, of which a watch of the file itself learns nothing.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustls::pki_types::ServerName;

use super::certificate::{CertificateError, ServingCertificate, instant};
use super::client_ca::ClientCa;
use super::serving::Serving;
use crate::telemetry::metrics::CertificateMetrics;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(2);

/// A certificate chain and its key in files.
#[derive(Clone, Debug)]
pub struct CertificateFiles {
    /// The chain, the serving certificate first.
    pub chain: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The names one of which it must be for; any will do if there are none.
    pub names: Vec<ServerName<'static>>,
}

impl CertificateFiles {
    /// Reads the files and checks that they can be served at this instant.
    pub fn load(&self, now: SystemTime) -> Result<ServingCertificate, CertificateError> {
        ServingCertificate::from_files(&self.chain, &self.key, &self.names, now)
    }

    /// Serves what is in the files when they change. A pair that is refused changes nothing
    /// and is tried again, for its other half may be on its way.
    pub async fn follow(&self, serving: &Serving) -> Infallible {
        let mut failure = Failure::new(serving.metrics());
        loop {
            tokio::time::sleep(INTERVAL).await;
            // Files this small are read at once, wherever they are mounted from.
            match self.load(SystemTime::now()) {
                Ok(certificate) => {
                    failure.is_over();
                    if !certificate.is(&serving.certificate()) {
                        serving.serve(&certificate);
                        let until = instant(certificate.validity().not_after);
                        tracing::info!(file = %self.chain.display(), until, "new certificate");
                    }
                }
                Err(error) => failure.tell(&error.to_string(), "the certificate in use stays"),
            }
        }
    }
}

impl ClientCa {
    /// Reads the file again when it changes.
    pub async fn follow(&self, metrics: &CertificateMetrics) -> Infallible {
        // It may have changed since it was loaded.
        let mut seen = None;
        let mut failure = Failure::new(metrics);
        loop {
            tokio::time::sleep(INTERVAL).await;
            let content = std::fs::read(self.path()).ok();
            if content.is_some() && content == seen {
                failure.is_over();
                continue;
            }
            match self.reload() {
                Ok(()) => {
                    failure.is_over();
                    seen = content;
                    log_new_client_ca(self.path());
                }
                Err(error) => failure.tell(&error.to_string(), "the client CA in use stays"),
            }
        }
    }
}

fn log_new_client_ca(file: &Path) {
    tracing::info!(file = %file.display(), "new client CA");
}

/// Tells of each failure once, however often it is met.
struct Failure<'a> {
    told: Option<String>,
    metrics: &'a CertificateMetrics,
}

impl<'a> Failure<'a> {
    fn new(metrics: &'a CertificateMetrics) -> Self {
        let told = None;
        Self { told, metrics }
    }

    fn tell(&mut self, error: &str, outcome: &str) {
        if self.told.as_deref() != Some(error) {
            tracing::warn!("{error}; {outcome}");
            self.metrics.failures.inc();
            self.told = Some(error.to_owned());
        }
    }

    fn is_over(&mut self) {
        self.told = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::Metrics;
    use crate::tls::Pair;
    use std::os::unix::fs::symlink;

    const LIFETIME: Duration = Duration::from_secs(3600);

    fn made() -> Pair {
        Pair::make(&["localhost".to_owned()], LIFETIME, SystemTime::now()).unwrap()
    }

    /// A folder as the kubelet mounts a Secret: the files are links through `..data`, which is
    /// a link that is swapped.
    struct Mounted(tempfile::TempDir);

    impl Mounted {
        fn new(pair: &Pair) -> Self {
            let mounted = Self(tempfile::tempdir().unwrap());
            for file in ["tls.crt", "tls.key"] {
                let link = mounted.0.path().join(file);
                symlink(Path::new("..data").join(file), link).unwrap();
            }
            mounted.swap("first", &pair.certificate, &pair.key);
            mounted
        }

        fn swap(&self, version: &str, certificate: &str, key: &str) {
            let folder = self.0.path();
            std::fs::create_dir(folder.join(version)).unwrap();
            std::fs::write(folder.join(version).join("tls.crt"), certificate).unwrap();
            std::fs::write(folder.join(version).join("tls.key"), key).unwrap();
            symlink(version, folder.join("..data_tmp")).unwrap();
            std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
        }

        fn files(&self) -> CertificateFiles {
            CertificateFiles {
                chain: self.0.path().join("tls.crt"),
                key: self.0.path().join("tls.key"),
                names: Vec::new(),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn swapped_files_are_served_and_bad_ones_change_nothing() {
        let (old, new, other) = (made(), made(), made());
        let mounted = Mounted::new(&old);
        let files = mounted.files();
        let metrics = Metrics::new();
        let first = files.load(SystemTime::now()).unwrap();
        let serving = Serving::new(first, metrics.certificates.clone());
        let steps = async {
            let pause = || tokio::time::sleep(INTERVAL * 3);
            pause().await;
            assert!(serving.certificate().is(old.serving()));
            mounted.swap("mixed", &new.certificate, &other.key);
            pause().await;
            assert!(serving.certificate().is(old.serving()), "half written");
            mounted.swap("none", "", "");
            pause().await;
            assert!(serving.certificate().is(old.serving()), "empty");
            mounted.swap("new", &new.certificate, &new.key);
            pause().await;
            assert!(serving.certificate().is(new.serving()));
        };
        tokio::select! {
            never = files.follow(&serving) => match never {},
            () = steps => {}
        }
        let text = metrics.encode();
        for line in [
            "sgp_certificate_failures_total 2",
            "sgp_certificate_changes_total 1",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
