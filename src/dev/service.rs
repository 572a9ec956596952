//! What stands for the Service in front of the webhook's replicas, and for the kubelets that
//! probe them.
//!
//! ```text
//! API server ─▶ Service sgp-webhook (ExternalName localhost) ─▶ our port ─▶ a ready replica
//! ```
//!
//! By the reference to a Service the API server speaks HTTP/1.1, checks the certificate for the
//! Service's name and opens a connection for each request that runs, as in a cluster. To a URL
//! on the loopback address it would speak HTTP/2 over a single connection, and only one replica
//! would ever be asked. A Service of type ExternalName needs no cluster network.
//!
//! Connections go to the replicas that are ready in turn, byte by byte. As with kube-proxy, one
//! that is open stays where it is, and nobody tries a second replica.

use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use axum::body::{Body, to_bytes};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;

use crate::accept::accept;

/// Between two probes of a replica. Kubelets probe less often, but a cluster takes a pod that
/// it ends out of its Services at once.
const PROBE_PERIOD: Duration = Duration::from_millis(100);
/// How long an answer to a probe may take. Kubelets give it 1 s, but here many clusters share a
/// machine, and a cluster without its one replica lets pods in unasked.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// After so many probes without an answer a replica is not ready any more, as with kubelets.
/// That nobody listens, or that it says so itself, counts at once.
const SILENT_PROBES: u32 = 3;
/// No answer to a probe is longer, in bytes.
const LONGEST_ANSWER: usize = 64 * 1024;

/// A port behind which are the replicas that are ready. Nobody is any more when it is dropped.
#[derive(Debug)]
pub(super) struct Service {
    port: u16,
    endpoints: Arc<Endpoints>,
    probes: Arc<Probes>,
    /// Dropping it ends the thread.
    running: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What makes probes.
#[derive(Debug)]
struct Probes {
    /// The thread's, which outlives the runtime of whoever adds a replica.
    runtime: Handle,
    tls: Arc<ClientConfig>,
}

/// The replicas, ready or not.
#[derive(Debug, Default)]
struct Endpoints {
    all: Mutex<Vec<(u16, watch::Receiver<Probed>)>>,
    turn: AtomicUsize,
}

/// What the last probe has shown.
#[derive(Clone, Copy, Debug, Default)]
struct Probed {
    is_ready: bool,
    probes: u64,
}

/// A replica's place behind the Service, until it is dropped.
#[derive(Debug)]
pub(super) struct Endpoint {
    port: u16,
    probed: watch::Receiver<Probed>,
    endpoints: Arc<Endpoints>,
    probing: AbortHandle,
}

impl Service {
    /// Listens on a free port of 127.0.0.1 from now on, with no replica.
    pub(super) fn start() -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .context("no TCP port is free on 127.0.0.1")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let endpoints = Arc::<Endpoints>::default();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let probes = Probes {
            runtime: runtime.handle().clone(),
            tls: Arc::new(tls_of_probes()?),
        };
        let (running, ended) = oneshot::channel::<()>();
        let serving = serve(listener, endpoints.clone());
        let serve = async move {
            tokio::select! {
                () = serving => {}
                _ = ended => {}
            }
        };
        let thread = thread::Builder::new().name("webhook-service".to_owned());
        let thread = thread.spawn(move || runtime.block_on(serve))?;
        Ok(Self {
            port,
            endpoints,
            probes: Arc::new(probes),
            running: Some(running),
            thread: Some(thread),
        })
    }

    /// The port on 127.0.0.1.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Adds the replica that listens, or will, on this port of 127.0.0.1.
    pub(super) fn add(&self, port: u16) -> Endpoint {
        let (note, probed) = watch::channel(Probed::default());
        let probing = probe_again_and_again(port, self.probes.tls.clone(), note);
        let probing = self.probes.runtime.spawn(probing).abort_handle();
        self.endpoints.lock().push((port, probed.clone()));
        Endpoint {
            port,
            probed,
            endpoints: self.endpoints.clone(),
            probing,
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.running = None;
        if let Some(thread) = self.thread.take() {
            // A panic in it has been reported by itself.
            let _ = thread.join();
        }
    }
}

impl Endpoints {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(u16, watch::Receiver<Probed>)>> {
        self.all.lock().expect("no one panics while it is locked")
    }

    /// The port of the ready replica whose turn it is.
    fn next(&self) -> Option<u16> {
        let all = self.lock();
        let ready = all.iter().filter(|(_, probed)| probed.borrow().is_ready);
        let ready: Vec<u16> = ready.map(|(port, _)| *port).collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let number = turn.checked_rem(ready.len())?;
        Some(ready[number])
    }
}

impl Endpoint {
    pub(super) fn is_ready(&self) -> bool {
        self.probed.borrow().is_ready
    }

    /// Waits until a probe that begins from now on finds the replica ready.
    pub(super) async fn wait_until_ready(&self) {
        let mut probed = self.probed.clone();
        // The next one may have begun already.
        let earliest = probed.borrow().probes + 2;
        let ready = probed.wait_for(|probed| probed.is_ready && probed.probes >= earliest);
        if ready.await.is_err() {
            // The Service has ended, so nobody will ever be ready.
            std::future::pending().await
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.probing.abort();
        self.endpoints.lock().retain(|(port, _)| *port != self.port);
    }
}

async fn serve(listener: std::net::TcpListener, endpoints: Arc<Endpoints>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the webhook's Service can't listen"),
    };
    loop {
        let client = accept(&listener).await;
        // Where no replica is ready, or the one whose turn it is has just gone, the client
        // meets a closed connection.
        if let Some(port) = endpoints.next() {
            tokio::spawn(async move {
                if let Err(error) = pass_on(client, port).await {
                    tracing::debug!(%error, port, "connection to a replica lost");
                }
            });
        }
    }
}

async fn pass_on(mut client: TcpStream, port: u16) -> io::Result<()> {
    let mut replica = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    client.set_nodelay(true)?;
    replica.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut replica).await?;
    Ok(())
}

async fn probe_again_and_again(port: u16, tls: Arc<ClientConfig>, note: watch::Sender<Probed>) {
    let mut connection = None;
    let mut silent = 0;
    loop {
        let probe = probe(port, &tls, &mut connection);
        let answer = tokio::time::timeout(PROBE_TIMEOUT, probe).await;
        let is_silent = answer.is_err();
        silent = if is_silent { silent + 1 } else { 0 };
        if is_silent {
            connection = None;
        }
        note.send_modify(|probed| {
            probed.probes += 1;
            probed.is_ready = match answer {
                Ok(answer) => answer.unwrap_or(false),
                Err(_) => probed.is_ready && silent < SILENT_PROBES,
            };
        });
        tokio::time::sleep(PROBE_PERIOD).await;
    }
}

/// Whether the replica says that it is ready. Its connection is kept, which costs a busy machine
/// less than a handshake for each probe.
async fn probe(
    port: u16,
    tls: &Arc<ClientConfig>,
    connection: &mut Option<SendRequest<String>>,
) -> anyhow::Result<bool> {
    if let Some(mut kept) = connection.take()
        && let Ok(is_ready) = ask(&mut kept).await
    {
        *connection = Some(kept);
        return Ok(is_ready);
    }
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    let name = ServerName::from(std::net::IpAddr::from(Ipv4Addr::LOCALHOST));
    let stream = TlsConnector::from(tls.clone())
        .connect(name, stream)
        .await?;
    let (mut sender, driver) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(driver);
    let is_ready = ask(&mut sender).await?;
    *connection = Some(sender);
    Ok(is_ready)
}

async fn ask(sender: &mut SendRequest<String>) -> anyhow::Result<bool> {
    let request = Request::get("/readyz").header("host", "127.0.0.1");
    sender.ready().await?;
    let answer = sender.send_request(request.body(String::new())?).await?;
    let is_ready = answer.status().is_success();
    // Read to its end, or the connection can't be used again.
    to_bytes(Body::new(answer.into_body()), LONGEST_ANSWER).await?;
    Ok(is_ready)
}

/// Probes look at no certificate, as those of kubelets.
fn tls_of_probes() -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
