//! The end of a webhook: requests that run are answered.

use std::process::Command;

use sgp::dev::control_plane::free_port;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::cluster::{DEFAULT, eventually};
use crate::https::{Version, block_on, connect_trusting};

#[test]
fn request_that_runs_at_the_signal_is_answered_and_then_the_process_ends() {
    let port = free_port().unwrap();
    let pair = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    std::fs::write(&certificate, pair.cert.pem()).unwrap();
    std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    let control_plane = DEFAULT.control_plane();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sgp"));
    command
        .arg("webhook")
        .arg(format!("--listen=127.0.0.1:{port}"));
    command
        .arg("--tls-cert")
        .arg(certificate)
        .arg("--tls-key")
        .arg(key);
    command.arg("--kubeconfig").arg(control_plane.kubeconfig());
    let mut webhook = control_plane.spawn("second-webhook", command).unwrap();
    let connect = || std::net::TcpStream::connect(("127.0.0.1", port));
    eventually("the second webhook", || connect().ok());

    let review = r#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "1", "operation": "UPDATE", "object": {},
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"}}}"#;
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

        let id = rustix::process::Pid::from_raw(webhook.id().cast_signed()).unwrap();
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
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
