//! The webhook, what others get of it, and what it costs.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use sgp::dev::control_plane::{Process, free_port};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use crate::client::{HTTP1, HTTP2, PATIENCE, tcp, tls};
use crate::shared_control_plane::CONTROL_PLANE;
use crate::waiting::eventually;

/// What the process may have in memory at most, built without optimization.
const MOST_MEMORY_KIB: u64 = 256 * 1024;

const PROGRAM: &str = env!("CARGO_BIN_EXE_sgp");

/// A webhook of one's own. It ends with this.
pub struct Webhook {
    process: Process,
    pub port: u16,
    metrics_port: u16,
    pub ca: String,
    _files: tempfile::TempDir,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Webhook {
    /// Starts one and waits until it is ready.
    pub async fn start(name: &str) -> Self {
        Self::start_by(name, Command::new(PROGRAM)).await
    }

    /// The same with such a limit of open files, as the shell's `ulimit` takes it.
    pub async fn start_with_open_files(name: &str, limit: &str) -> Self {
        let mut shell = Command::new("sh");
        let script = format!("ulimit {limit} && exec \"$0\" \"$@\"");
        shell.args(["-c", &script, PROGRAM]);
        Self::start_by(name, shell).await
    }

    async fn start_by(name: &str, mut command: Command) -> Self {
        let pair = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let files = tempfile::tempdir().unwrap();
        let (certificate, key) = (files.path().join("tls.crt"), files.path().join("tls.key"));
        std::fs::write(&certificate, pair.cert.pem()).unwrap();
        std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
        let (port, metrics_port) = (free_port().unwrap(), free_port().unwrap());
        command
            .args(["webhook", "--shutdown-delay=0"])
            .arg(format!("--listen=127.0.0.1:{port}"))
            .arg(format!("--metrics-listen=127.0.0.1:{metrics_port}"))
            .arg("--tls-cert")
            .arg(certificate)
            .arg("--tls-key")
            .arg(key)
            .arg("--kubeconfig")
            .arg(CONTROL_PLANE.kubeconfig());
        let webhook = Self {
            process: CONTROL_PLANE.spawn(name, command).unwrap(),
            port,
            metrics_port,
            ca: pair.cert.pem(),
            _files: files,
        };
        eventually("the webhook", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()
        });
        let ready = async {
            while webhook.send(HTTP1, get("/readyz")).await.status != 200 {
                sleep(Duration::from_millis(50)).await;
            }
        };
        let ready = timeout(PATIENCE, ready).await;
        ready.expect("the webhook gets ready");
        webhook
    }

    /// Asks as the kubelet and the API server do: each time over a new connection, and all
    /// must be answered.
    pub async fn serves_others(&self) {
        for protocol in [HTTP1, HTTP2] {
            let ready = self.send(protocol, get("/readyz")).await;
            assert_eq!(ready.status, 200, "{ready:?}");
            let answer = self.send(protocol, post(review(&pod(json!({}))))).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            let answer: Value = serde_json::from_str(&answer.body).unwrap();
            assert_eq!(answer["response"]["allowed"], true, "{answer}");
        }
    }

    /// Sends one request over a connection of its own.
    pub async fn send(&self, protocol: &[u8], request: Request<Full<Bytes>>) -> Answer {
        let send = async {
            let stream = tls(&self.ca, self.port, Ipv4Addr::LOCALHOST, protocol).await;
            let stream = TokioIo::new(stream.expect("a connection"));
            if protocol == HTTP1 {
                let (mut sender, connection) = http1::handshake(stream).await.unwrap();
                tokio::spawn(connection);
                answer(sender.send_request(request).await.unwrap()).await
            } else {
                let executor = TokioExecutor::new();
                let (mut sender, connection) = http2::handshake(executor, stream).await.unwrap();
                tokio::spawn(connection);
                answer(sender.send_request(request).await.unwrap()).await
            }
        };
        timeout(PATIENCE, send).await.expect("an answer in time")
    }

    /// The most memory that the process has had so far is within its bound.
    pub fn has_stayed_small(&self) {
        let peak = self.peak_memory_kib();
        println!("{}: {} MiB at most", self.process.name(), peak / 1024);
        assert!(peak <= MOST_MEMORY_KIB, "{peak} KiB");
    }

    fn peak_memory_kib(&self) -> u64 {
        let status = format!("/proc/{}/status", self.process.id());
        let status = std::fs::read_to_string(status).expect("the webhook runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|peak| peak.split_whitespace().next());
        peak.expect("Linux says so").parse().unwrap()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.process.log_path()).unwrap()
    }

    /// The value of a metric without labels.
    pub async fn metric(&self, name: &str) -> u64 {
        let mut stream = tcp(self.metrics_port, Ipv4Addr::LOCALHOST).await;
        let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value
            .unwrap_or_else(|| panic!("no {name} in {text}"))
            .parse()
            .unwrap()
    }

    /// Waits until all strangers are gone; others are served, and nothing is left of it.
    pub async fn is_as_before(&self) {
        let begin = tokio::time::Instant::now();
        while self.metric("sgp_connections").await > 0 {
            assert!(begin.elapsed() < PATIENCE, "connections are left");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        self.serves_others().await;
    }
}

async fn answer(response: Response<hyper::body::Incoming>) -> Answer {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Answer {
        status,
        body: String::from_utf8_lossy(&body).into_owned(),
    }
}

pub fn get(path: &str) -> Request<Full<Bytes>> {
    let uri = format!("https://127.0.0.1{path}");
    let request = Request::get(uri).header("host", "127.0.0.1");
    request.body(Full::default()).unwrap()
}

pub fn post(body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post("https://127.0.0.1/mutate-v1-pod")
        .header("host", "127.0.0.1")
        .header("content-type", "application/json")
        .body(Full::new(body.into()))
        .unwrap()
}

/// A pod of one container; `metadata` is added.
pub fn pod(metadata: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": [{"name": "web", "image": "web"}]}
    })
}

/// The review of a pod's creation, as text.
pub fn review(pod: &Value) -> String {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "1",
            "operation": "CREATE",
            "namespace": "default",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "object": pod
        }
    })
    .to_string()
}
