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

/// Of each stream's answers, every how manieth is checked in full.
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

/// Connections to a server and what is asked on them.
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
    /// Opens the connections and asks once on each.
    pub(crate) async fn connect(
        target: &Target,
        transport: Transport,
        body: Bytes,
        expectation: Expectation,
    ) -> anyhow::Result<Self> {
        let mut lanes = Vec::new();
        let mut shared = None;
        for _ in 0..transport.concurrency {
            let connection = match &shared {
                Some(Connection::Http2(sender)) => Connection::Http2(sender.clone()),
                _ => Connection::open(target, transport.protocol).await?,
            };
            if let Connection::Http2(sender) = &connection {
                shared = Some(Connection::Http2(sender.clone()));
            }
            let mut lane = Lane {
                connection,
                body: body.clone(),
                uri: match transport.protocol {
                    Protocol::Http1 => format!("{MUTATE_POD_PATH}?timeout=5s").parse()?,
                    Protocol::Http2 => {
                        format!("https://127.0.0.1{MUTATE_POD_PATH}?timeout=5s").parse()?
                    }
                },
                expectation,
                length: None,
            };
            lane.ask(true).await?;
            lanes.push(lane);
        }
        Ok(Self {
            lanes,
            process: target.process,
        })
    }

    /// Asks on all connections for a while.
    pub(crate) async fn burst(&mut self, duration: Duration) -> anyhow::Result<Burst> {
        let cpu = cpu_time(self.process)?;
        let begin = Instant::now();
        let until = begin + duration;
        let lanes = self.lanes.drain(..).map(|mut lane| {
            tokio::spawn(async move { lane.ask_until(until).await.map(|times| (lane, times)) })
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
    body: Bytes,
    expectation: Expectation,
    /// Of every answer, once there was one.
    length: Option<usize>,
}

impl Lane {
    async fn ask_until(&mut self, until: Instant) -> anyhow::Result<Vec<f64>> {
        let mut latencies = Vec::with_capacity(16_384);
        loop {
            let begin = Instant::now();
            if begin >= until {
                return Ok(latencies);
            }
            self.ask(latencies.len() % CHECK_EVERY == 0).await?;
            latencies.push(begin.elapsed().as_secs_f64() * 1e6);
        }
    }

    async fn ask(&mut self, in_full: bool) -> anyhow::Result<()> {
        // The headers of the API server.
        let request = Request::builder()
            .method(Method::POST)
            .uri(self.uri.clone())
            .header(header::HOST, "127.0.0.1")
            .header(header::USER_AGENT, "kube-apiserver-admission")
            .header(header::ACCEPT, "application/json, */*")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT_ENCODING, "gzip");
        let response = self
            .connection
            .send(request.body(Full::new(self.body.clone()))?)
            .await?;
        let status = response.status();
        let answer = response.into_body().collect().await?.to_bytes();
        ensure!(
            status == StatusCode::OK,
            "{status}: {}",
            String::from_utf8_lossy(&answer)
        );
        let length = *self.length.get_or_insert(answer.len());
        ensure!(
            answer.len() == length,
            "the answers differ: {}",
            String::from_utf8_lossy(&answer)
        );
        if in_full {
            self.expectation.check(&self.body, &answer)?;
        }
        Ok(())
    }
}

enum Connection {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Connection {
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
