//! Plain calls to the webhook, as the API server would make them or never would.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use sgp::dev::Sandbox;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::cluster::{eventually, kubectl};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Version {
    Http1,
    Http2,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Answer {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// The CA of the sandbox's webhook, as its configuration has it.
pub fn ca_bundle(sandbox: &Sandbox) -> String {
    let configuration = "mutatingwebhookconfiguration/vpc-resource-mutating-webhook";
    let path = "-o=jsonpath={.webhooks[0].clientConfig.caBundle}";
    // base64 by kubectl's own template function.
    let template = "-o=go-template={{(index .webhooks 0).clientConfig.caBundle | base64decode}}";
    eventually("the CA bundle", || {
        let written = kubectl(sandbox, &["get", configuration, path], None).ok();
        (!written.stdout.is_empty()).then(|| {
            kubectl(sandbox, &["get", configuration, template], None)
                .ok()
                .stdout
        })
    })
}

/// A connection to the sandbox's webhook that trusts the CA of its configuration.
pub async fn connect(
    sandbox: &Sandbox,
    port: u16,
    version: Version,
) -> TlsStream<tokio::net::TcpStream> {
    connect_trusting(&ca_bundle(sandbox), port, version).await
}

pub async fn connect_trusting(
    ca_bundle: &str,
    port: u16,
    version: Version,
) -> TlsStream<tokio::net::TcpStream> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_bundle.as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = match version {
        Version::Http1 => vec![b"http/1.1".to_vec()],
        Version::Http2 => vec![b"h2".to_vec()],
    };
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .unwrap()
}

/// Sends one request over a connection of its own.
#[track_caller]
pub fn send(sandbox: &Sandbox, version: Version, request: Request<Full<Bytes>>) -> Answer {
    try_send(sandbox, version, request).unwrap()
}

/// The same where the webhook may answer before it has the whole request, and close the
/// connection.
pub fn try_send(
    sandbox: &Sandbox,
    version: Version,
    request: Request<Full<Bytes>>,
) -> hyper::Result<Answer> {
    block_on(async {
        let stream = TokioIo::new(connect(sandbox, sandbox.webhook_port(), version).await);
        let response = match version {
            Version::Http1 => {
                let (mut sender, connection) = http1::handshake(stream).await.unwrap();
                tokio::spawn(connection);
                sender.send_request(request).await
            }
            Version::Http2 => {
                let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream)
                    .await
                    .unwrap();
                tokio::spawn(connection);
                sender.send_request(request).await
            }
        };
        try_answer(response?).await
    })
}

pub async fn answer(response: Response<hyper::body::Incoming>) -> Answer {
    try_answer(response).await.unwrap()
}

async fn try_answer(response: Response<hyper::body::Incoming>) -> hyper::Result<Answer> {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await?.to_bytes();
    Ok(Answer {
        status,
        body: String::from_utf8(body.into()).unwrap(),
    })
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

pub fn get(sandbox: &Sandbox, path: &str) -> Answer {
    let uri = format!("https://127.0.0.1{path}");
    let request = Request::get(uri)
        .header("host", "127.0.0.1")
        .body(Full::default())
        .unwrap();
    send(sandbox, Version::Http1, request)
}

/// A POST to the webhook's path.
pub fn post(content_type: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post("https://127.0.0.1/mutate-v1-pod")
        .header("host", "127.0.0.1")
        .header("content-type", content_type)
        .body(Full::new(body.into()))
        .unwrap()
}

/// The webhook's metrics, which are served without TLS.
pub fn metrics(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}
