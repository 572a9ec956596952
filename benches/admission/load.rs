//! Requests over TLS, one after another on each stream or connection, from one thread.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use axum::body::Bytes;
use futures::future::try_join_all;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper::{Method, Request, Response, StatusCode, Uri, body::Incoming, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use sgp::api::names::MUTATE_POD_PATH;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::constant;
use crate::process::cpu_time;

/// One of so many answers of a stream is checked in full, whatever its length.
pub(crate) const CHECK_EVERY: usize = 64;

/// A server to ask.
pub(crate) struct Target {
    /// On 127.0.0.1.
    port: u16,
    tls: ClientConfig,
    /// Its process id.
    pub(crate) process: u32,
}

impl Target {
    /// A server whose certificate is signed by this CA.
    pub(crate) fn new(port: u16, ca: &str, process: u32) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes())?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { port, tls, process })
    }

    /// Whether the server says that it is ready.
    pub(crate) async fn is_ready(&self) -> anyhow::Result<bool> {
        let mut connection = Connection::open(self, Protocol::Http1).await?;
        let request = Request::get("/readyz").header(header::HOST, "127.0.0.1");
        let response = connection.send(request.body(Full::default())?).await?;
        Ok(response.status() == StatusCode::OK)
    }
}

/// What is spoken over TLS.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub(crate) enum Protocol {
    /// Any number of streams on one connection.
    #[serde(rename = "HTTP/2")]
    Http2,
    /// One request at a time on a connection.
    #[serde(rename = "HTTP/1.1")]
    Http1,
}

/// How the requests reach a server.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct Transport {
    /// What is spoken.
    pub(crate) protocol: Protocol,
    /// Requests at a time.
    pub(crate) concurrency: usize,
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (protocol, lane) = match self.protocol {
            Protocol::Http2 => ("HTTP/2", "stream"),
            Protocol::Http1 => ("HTTP/1.1", "connection"),
        };
        let plural = if self.concurrency == 1 { "" } else { "s" };
        write!(f, "{protocol}, {} {lane}{plural}", self.concurrency)
    }
}

/// What an answer has to be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expectation {
    /// The constant handler's.
    Constant,
    /// An admission, with or without a patch.
    Admission {
        /// Whether there must be a patch.
        patch: bool,
    },
}

impl Expectation {
    fn check(self, asked: &Bytes, answer: &[u8]) -> anyhow::Result<()> {
        let text = || String::from_utf8_lossy(answer);
        let Self::Admission { patch } = self else {
            ensure!(
                answer == constant::ANSWER.as_bytes(),
                "wrong answer {}",
                text()
            );
            return Ok(());
        };
        let review: serde_json::Value = serde_json::from_slice(answer)?;
        let asked: serde_json::Value = serde_json::from_slice(asked)?;
        let response = &review["response"];
        ensure!(response["allowed"] == true, "refused: {}", text());
        ensure!(
            response["uid"] == asked["request"]["uid"],
            "answers another call: {}",
            text()
        );
        ensure!(
            response["patch"].is_string() == patch,
            "patch? {patch}: {}",
            text()
        );
        ensure!(response["warnings"].is_null(), "warns: {}", text());
        Ok(())
    }
}

/// What is asked, again and again.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    /// The AdmissionReview.
    pub(crate) body: Bytes,
    /// What comes back.
    pub(crate) answer: Expectation,
}

/// Connections to a server.
pub(crate) struct Load {
    lanes: Vec<Lane>,
    process: u32,
}

/// What came of the requests of a while.
#[derive(Clone, Debug)]
pub(crate) struct Burst {
    /// Requests a second.
    pub(crate) throughput: f64,
    /// Microseconds of the server's process for one request.
    pub(crate) cpu: f64,
    /// Microseconds from a request to the whole answer, sorted.
    pub(crate) latencies: Vec<f64>,
}

impl Load {
    /// Opens the connections.
    pub(crate) async fn connect(target: &Target, transport: Transport) -> anyhow::Result<Self> {
        let Transport {
            protocol,
            concurrency,
        } = transport;
        let host = match protocol {
            Protocol::Http1 => "",
            Protocol::Http2 => "https://127.0.0.1",
        };
        let uri: Uri = format!("{host}{MUTATE_POD_PATH}?timeout=5s").parse()?;
        let mut lanes = Vec::<Lane>::new();
        for _ in 0..concurrency {
            let shared = lanes
                .first()
                .and_then(|lane| lane.connection.another_stream());
            let connection = match shared {
                Some(stream) => stream,
                None => Connection::open(target, protocol).await?,
            };
            let uri = uri.clone();
            lanes.push(Lane { connection, uri });
        }
        Ok(Self {
            lanes,
            process: target.process,
        })
    }

    /// Asks on all connections for a while.
    pub(crate) async fn burst(
        &mut self,
        question: &Question,
        duration: Duration,
    ) -> anyhow::Result<Burst> {
        let cpu = cpu_time(self.process)?;
        let begin = Instant::now();
        let until = begin + duration;
        let lanes = self.lanes.drain(..).map(|mut lane| {
            let question = question.clone();
            tokio::spawn(async move {
                let times = lane.ask_until(until, &question).await?;
                anyhow::Ok((lane, times))
            })
        });
        let mut latencies = Vec::new();
        for done in try_join_all(lanes.collect::<Vec<_>>()).await? {
            let (lane, times) = done?;
            self.lanes.push(lane);
            latencies.extend(times);
        }
        let elapsed = begin.elapsed();
        let cpu = cpu_time(self.process)?.saturating_sub(cpu);

        latencies.sort_by(f64::total_cmp);
        let requests = latencies.len() as f64;
        Ok(Burst {
            throughput: requests / elapsed.as_secs_f64(),
            cpu: cpu.as_secs_f64() * 1e6 / requests,
            latencies,
        })
    }
}

/// A stream or a connection with one request at a time.
struct Lane {
    connection: Connection,
    uri: Uri,
}

impl Lane {
    /// The microseconds that each answer took.
    async fn ask_until(&mut self, until: Instant, question: &Question) -> anyhow::Result<Vec<f64>> {
        let mut latencies = Vec::with_capacity(16_384);
        let mut length = None;
        loop {
            let begin = Instant::now();
            if begin >= until && length.is_some() {
                return Ok(latencies);
            }
            let answer = self.ask(&question.body).await?;
            let in_full = latencies.len() % CHECK_EVERY == 0;
            latencies.push(begin.elapsed().as_secs_f64() * 1e6);
            if in_full || length != Some(answer.len()) {
                question.answer.check(&question.body, &answer)?;
            }
            length = Some(answer.len());
        }
    }

    async fn ask(&mut self, body: &Bytes) -> anyhow::Result<Bytes> {
        // The headers of the API server.
        let request = Request::builder()
            .method(Method::POST)
            .uri(self.uri.clone())
            .header(header::HOST, "127.0.0.1")
            .header(header::USER_AGENT, "kube-apiserver-admission")
            .header(header::ACCEPT, "application/json, */*")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT_ENCODING, "gzip");
        let request = request.body(Full::new(body.clone()))?;
        let response = self.connection.send(request).await?;
        let status = response.status();
        let answer = response.into_body().collect().await?.to_bytes();
        ensure!(
            status == StatusCode::OK,
            "{status}: {}",
            String::from_utf8_lossy(&answer)
        );
        Ok(answer)
    }
}

enum Connection {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Connection {
    /// One more stream of an HTTP/2 connection.
    fn another_stream(&self) -> Option<Self> {
        match self {
            Self::Http1(_) => None,
            Self::Http2(sender) => Some(Self::Http2(sender.clone())),
        }
    }

    async fn open(target: &Target, protocol: Protocol) -> anyhow::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, target.port)).await?;
        stream.set_nodelay(true)?;
        let mut tls = target.tls.clone();
        tls.alpn_protocols = match protocol {
            Protocol::Http1 => vec![b"http/1.1".to_vec()],
            Protocol::Http2 => vec![b"h2".to_vec()],
        };
        let name = ServerName::from(std::net::IpAddr::from(Ipv4Addr::LOCALHOST));
        let connector = TlsConnector::from(Arc::new(tls));
        let stream = connector
            .connect(name, stream)
            .await
            .context("no TLS connection")?;
        let stream = TokioIo::new(stream);
        // A connection that ends shows in the request that waits for it.
        Ok(match protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::handshake(stream).await?;
                tokio::spawn(connection);
                Self::Http1(sender)
            }
            Protocol::Http2 => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
                tokio::spawn(connection);
                Self::Http2(sender)
            }
        })
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => sender.send_request(request).await,
        }
    }
}
