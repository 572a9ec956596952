//! The certificate that the running server presents, which can change at any time.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::UNIX_EPOCH;

use rustls::ServerConfig;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};

use super::certificate::{ServingCertificate, provider};
use super::client_ca::ClientCa;
use crate::telemetry::metrics::CertificateMetrics;

/// A handle on the certificate in use. Clones are the same handle.
#[derive(Clone)]
pub struct Serving {
    state: Arc<State>,
    metrics: CertificateMetrics,
}

struct State {
    // Read for a moment at each handshake, written a few times in a certificate's life.
    certificate: RwLock<ServingCertificate>,
    is_trusted: AtomicBool,
}

impl Serving {
    /// Begins with a certificate.
    pub fn new(certificate: ServingCertificate, metrics: CertificateMetrics) -> Self {
        note_expiry(&certificate, &metrics);
        let state = State {
            certificate: RwLock::new(certificate),
            is_trusted: AtomicBool::new(false),
        };
        let state = Arc::new(state);
        Self { state, metrics }
    }

    /// Presents this certificate from the next handshake on. Connections that there are go on.
    pub fn serve(&self, certificate: &ServingCertificate) {
        note_expiry(certificate, &self.metrics);
        self.metrics.changes.inc();
        let held = &self.state.certificate;
        *held.write().unwrap_or_else(PoisonError::into_inner) = certificate.clone();
    }

    /// What is presented now.
    pub fn certificate(&self) -> ServingCertificate {
        let held = &self.state.certificate;
        held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says whether those who call trust the certificate, as far as anybody can know.
    pub fn set_trusted(&self, is_trusted: bool) {
        self.state.is_trusted.store(is_trusted, Ordering::Relaxed);
    }

    /// Whether those who call trust the certificate.
    pub fn is_trusted(&self) -> bool {
        self.state.is_trusted.load(Ordering::Relaxed)
    }

    /// What is counted.
    pub fn metrics(&self) -> &CertificateMetrics {
        &self.metrics
    }

    /// A server that presents the certificate over TLS 1.2 or 1.3 and speaks HTTP/2 or
    /// HTTP/1.1. With a CA for clients it asks each for a certificate, and leaves it to whoever
    /// answers requests what becomes of those who have none or another.
    pub fn server_config(&self, client_ca: Option<&ClientCa>) -> Arc<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13, &TLS12])
            .expect("the provider has both versions");
        let builder = match client_ca {
            Some(ca) => builder.with_client_cert_verifier(Arc::new(ca.clone())),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // A session that is resumed checks no certificate. API servers and kubelets resume
        // none, and so it costs nothing that each handshake is a whole one.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Arc::new(config)
    }
}

fn note_expiry(certificate: &ServingCertificate, metrics: &CertificateMetrics) {
    let not_after = certificate.validity().not_after;
    let seconds = not_after.duration_since(UNIX_EPOCH).unwrap_or_default();
    metrics
        .expiry
        .set(i64::try_from(seconds.as_secs()).unwrap_or(i64::MAX));
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certificate().certified_key())
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut printed = formatter.debug_struct("Serving");
        printed
            .field("certificate", &self.certificate())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::Metrics;
    use crate::tls::Pair;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName};
    use rustls::{ClientConfig, RootCertStore};
    use std::time::{Duration, SystemTime};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio_rustls::client::TlsStream;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    fn made() -> Pair {
        let lifetime = Duration::from_secs(60);
        Pair::make(&["localhost".to_owned()], lifetime, SystemTime::now()).unwrap()
    }

    /// Connects a client that trusts one CA, to a server that sends back what it gets.
    async fn connect(
        config: Arc<ServerConfig>,
        ca: &str,
    ) -> std::io::Result<TlsStream<DuplexStream>> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap())
            .unwrap();
        let client = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (here, there) = tokio::io::duplex(16 * 1024);
        tokio::spawn(async move {
            let Ok(mut stream) = TlsAcceptor::from(config).accept(there).await else {
                return;
            };
            let mut byte = [0];
            while stream.read_exact(&mut byte).await.is_ok() {
                stream.write_all(&byte).await.unwrap();
                stream.flush().await.unwrap();
            }
        });
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(client))
            .connect(name, here)
            .await
    }

    async fn echoes(stream: &mut TlsStream<DuplexStream>) {
        stream.write_all(b"x").await.unwrap();
        stream.flush().await.unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).await.unwrap();
        assert_eq!(&byte, b"x");
    }

    #[tokio::test]
    async fn new_certificate_is_for_new_connections_and_the_old_ones_go_on() {
        let (old, new) = (made(), made());
        let metrics = Metrics::new();
        let serving = Serving::new(old.serving().clone(), metrics.certificates.clone());
        let config = serving.server_config(None);
        let mut before = connect(config.clone(), old.ca_bundle()).await.unwrap();
        echoes(&mut before).await;

        serving.serve(new.serving());

        echoes(&mut before).await;
        let mut after = connect(config.clone(), new.ca_bundle()).await.unwrap();
        echoes(&mut after).await;
        connect(config, old.ca_bundle()).await.unwrap_err();

        let not_after = new.serving().validity().not_after;
        let not_after = not_after.duration_since(UNIX_EPOCH).unwrap().as_secs();
        let text = metrics.encode();
        for line in [
            format!("sgp_certificate_expiry_seconds {not_after}"),
            "sgp_certificate_changes_total 1".to_owned(),
        ] {
            assert!(text.contains(&line), "{line} is missing in\n{text}");
        }
    }
}
