//! The end of a webhook: requests that run are answered.

use std::process::Command;
use std::time::Duration;

use http_body_util::StreamBody;
use hyper::Request;
use hyper::body::{Bytes, Frame};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use sgp::dev::control_plane::free_port;
use tokio::sync::mpsc;

use crate::cluster::{DEFAULT, eventually};
use crate::https::{Version, answer, block_on, connect_trusting};

#[test]
fn request_that_runs_at_the_signal_is_answered_and_then_the_process_ends() {
    let port = free_port().unwrap();
    let pair = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    std::fs::write(&certificate, pair.cert.pem()).unwrap();
    std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sgp"));
    command
        .arg("webhook")
        .arg(format!("--listen=127.0.0.1:{port}"));
    command
        .arg("--tls-cert")
        .arg(certificate)
        .arg("--tls-key")
        .arg(key);
    command
        .arg("--kubeconfig")
        .arg(DEFAULT.control_plane().kubeconfig());
    let mut webhook = DEFAULT
        .control_plane()
        .spawn("second-webhook", command)
        .unwrap();
    eventually("the second webhook", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).ok()
    });

    block_on(async {
        let stream = connect_trusting(&pair.cert.pem(), port, Version::Http1).await;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let (body, chunks) = mpsc::channel::<Result<Frame<Bytes>, hyper::Error>>(1);
        let chunks = futures::stream::unfold(chunks, async |mut chunks| {
            Some((chunks.recv().await?, chunks))
        });
        let request = Request::post("/mutate-v1-pod")
            .header("host", "127.0.0.1")
            .header("content-type", "application/json")
            .body(StreamBody::new(Box::pin(chunks)))
            .unwrap();
        let response = tokio::spawn(sender.send_request(request));
        // The second half of a body is only asked for once the first was read.
        let chunk = |text: &'static str| Ok(Frame::data(Bytes::from_static(text.as_bytes())));
        body.send(chunk("{\"apiVersion\": \"admission.k8s.io/v1\", "))
            .await
            .unwrap();
        body.send(chunk("\"kind\": \"AdmissionReview\", "))
            .await
            .unwrap();

        let id = rustix::process::Pid::from_raw(webhook.id().cast_signed()).unwrap();
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        eventually("the port to be closed", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).err()
        });
        assert!(
            webhook.try_wait().unwrap().is_none(),
            "it waits for the request"
        );

        body.send(chunk(
            "\"request\": {\"uid\": \"1\", \"operation\": \"UPDATE\"}}",
        ))
        .await
        .unwrap();
        drop(body);
        let response = tokio::time::timeout(Duration::from_secs(10), response).await;
        let answer = answer(response.unwrap().unwrap().unwrap()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    });
    let status = eventually("the process to end", || webhook.try_wait().unwrap());
    assert!(status.success(), "{status}");
}
