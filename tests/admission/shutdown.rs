//! The end of a webhook: others can learn of it, requests that run are answered.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertifiedKey, KeyPair};
use rustix::process::{Pid, Signal, kill_process};
use sgp::dev::control_plane::{Process, free_port};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::cluster::{DEFAULT, eventually};
use crate::https::{Answer, Version, answer, block_on, connect_trusting, post};
use crate::stopwatch::Stopwatch;

/// A question that needs nothing to be answered.
const REVIEW: &str = r#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
    "uid": "1", "operation": "UPDATE", "object": {},
    "kind": {"group": "", "version": "v1", "kind": "Pod"},
    "resource": {"group": "", "version": "v1", "resource": "pods"}}}"#;

/// A webhook beside the default sandbox's own, which reaches the API server as this file says,
/// and the folder of its certificate.
pub fn second_webhook(
    port: u16,
    pair: &CertifiedKey<KeyPair>,
    name: &str,
    kubeconfig: &Path,
    shutdown_delay: &str,
) -> (Process, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    std::fs::write(&certificate, pair.cert.pem()).unwrap();
    std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    let control_plane = DEFAULT.control_plane();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sgp"));
    command
        .arg("webhook")
        .arg(format!("--shutdown-delay={shutdown_delay}"))
        .arg(format!("--listen=127.0.0.1:{port}"))
        .arg("--tls-cert")
        .arg(certificate)
        .arg("--tls-key")
        .arg(key)
        .arg("--kubeconfig")
        .arg(kubeconfig);
    let webhook = control_plane.spawn(name, command).unwrap();
    eventually("the second webhook", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).ok()
    });
    (webhook, folder)
}

fn admin() -> &'static Path {
    DEFAULT.control_plane().kubeconfig()
}

fn terminate(webhook: &Process) {
    let id = Pid::from_raw(webhook.id().cast_signed()).unwrap();
    kill_process(id, Signal::TERM).unwrap();
}

#[test]
fn request_that_runs_at_the_signal_is_answered_and_then_the_process_ends() {
    let port = free_port().unwrap();
    let pair = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (mut webhook, _files) = second_webhook(port, &pair, "busy-webhook", admin(), "0");
    let connect = || std::net::TcpStream::connect(("127.0.0.1", port));

    let review = REVIEW;
    let head = format!(
        "POST /mutate-v1-pod HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nExpect: 100-continue\r\n\r\n",
        review.len()
    );
    block_on(async {
        let mut stream = connect_trusting(&pair.cert.pem(), port, Version::Http1).await;
        stream.write_all(head.as_bytes()).await.unwrap();
        // It asks for the body, so the request runs.
        let mut asks = [0; 25];
        stream.read_exact(&mut asks).await.unwrap();
        assert_eq!(&asks, b"HTTP/1.1 100 Continue\r\n\r\n");

        terminate(&webhook);
        eventually("the port to be closed", || connect().err());
        assert!(
            webhook.try_wait().unwrap().is_none(),
            "it waits for the request"
        );

        stream.write_all(review.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        assert!(answer.contains(r#""allowed":true"#), "{answer}");
    });
    let status = eventually("the process to end", || webhook.try_wait().unwrap());
    assert!(status.success(), "{status}");
}

#[test]
fn connections_without_a_request_do_not_hold_up_the_end() {
    let port = free_port().unwrap();
    let pair = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (mut webhook, _files) = second_webhook(port, &pair, "idle-webhook", admin(), "0.5");
    let silent = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    block_on(async {
        let http1 = connect_trusting(&pair.cert.pem(), port, Version::Http1).await;
        let http2 = connect_trusting(&pair.cert.pem(), port, Version::Http2).await;
        let stopwatch = Stopwatch::start(DEFAULT.control_plane().client_config());
        terminate(&webhook);
        let status = eventually("the process to end", || webhook.try_wait().unwrap());
        assert!(status.success(), "{status}");
        // Well below the limits of a handshake and of running requests.
        stopwatch.assert_within(Duration::from_secs(4));
        drop((http1, http2, silent));
    });
}

/// Longer than any test.
const FOR_EVER: &str = "3600";

#[test]
fn port_stays_open_after_readiness_is_gone_and_connections_are_led_away() {
    let port = free_port().unwrap();
    let pair = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (mut webhook, _files) = second_webhook(port, &pair, "leaving-webhook", admin(), FOR_EVER);
    let certificate = pair.cert.pem();
    let connect = async |version| TokioIo::new(connect_trusting(&certificate, port, version).await);
    let get = || {
        let request = Request::get("https://127.0.0.1/readyz").header("host", "127.0.0.1");
        request.body(Full::<Bytes>::default()).unwrap()
    };
    let ready = async || {
        let stream = connect(Version::Http1).await;
        let (mut sender, connection) = http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        answer(sender.send_request(get()).await.unwrap()).await
    };
    block_on(async {
        let stream = connect(Version::Http1).await;
        let (mut http1, connection) = http1::handshake(stream).await.unwrap();
        let http1_ends = tokio::spawn(connection);
        let stream = connect(Version::Http2).await;
        let executor = TokioExecutor::new();
        let (mut http2, connection) = http2::handshake(executor, stream).await.unwrap();
        let http2_ends = tokio::spawn(connection);
        // Both have been used, and are idle now.
        let before = http1.send_request(question()).await.unwrap();
        assert!(!closes(&before));
        is_allowed(&answer(before).await);
        is_allowed(&answer(http2.send_request(question()).await.unwrap()).await);

        terminate(&webhook);
        loop {
            let ready = ready().await;
            if ready.status == 503 && ready.body == "shutting down" {
                break;
            }
        }
        // GOAWAY ends a connection that is idle.
        http2_ends.await.unwrap().unwrap();
        // To close this one would lose what may be on its way.
        let during = http1.send_request(question()).await.unwrap();
        assert!(closes(&during));
        is_allowed(&answer(during).await);
        http1_ends.await.unwrap().unwrap();
        // And new ones are served as ever.
        for version in [Version::Http1, Version::Http2] {
            let stream = connect(version).await;
            let response = match version {
                Version::Http1 => {
                    let (mut sender, connection) = http1::handshake(stream).await.unwrap();
                    tokio::spawn(connection);
                    sender.send_request(question()).await
                }
                Version::Http2 => {
                    let executor = TokioExecutor::new();
                    let (mut sender, connection) =
                        http2::handshake(executor, stream).await.unwrap();
                    tokio::spawn(connection);
                    sender.send_request(question()).await
                }
            };
            is_allowed(&answer(response.unwrap()).await);
        }
        assert!(webhook.try_wait().unwrap().is_none());
    });

    // A second signal waits for nothing.
    terminate(&webhook);
    let status = eventually("the process to end", || webhook.try_wait().unwrap());
    assert_eq!(status.code(), Some(1));
    let log = std::fs::read_to_string(webhook.log_path()).unwrap();
    assert!(
        log.contains("ended at once by a second signal, SIGTERM"),
        "{log}"
    );
}

fn question() -> Request<Full<Bytes>> {
    post("application/json", REVIEW)
}

fn closes(response: &Response<hyper::body::Incoming>) -> bool {
    response
        .headers()
        .get("connection")
        .is_some_and(|value| value == "close")
}

#[track_caller]
fn is_allowed(answer: &Answer) {
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["response"]["allowed"], true, "{answer:?}");
}
