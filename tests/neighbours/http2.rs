//! What can be done with HTTP/2 alone.

use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use futures::future::join_all;
use http_body_util::BodyExt;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sgp::server::{Limits, serve};
use sgp::telemetry::metrics::{CertificateMetrics, ConnectionMetrics};
use sgp::tls::{Pair, Serving};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::client::{HTTP2, PATIENCE, stranger, tls, until_closed};
use crate::webhook::{Webhook, get, pod, post, review};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_whose_answers_are_never_taken_ends() {
    let webhook = Webhook::start("untaken").await;
    // More answers than the client lets come.
    let neighbours = (0..4).map(|number| {
        let (ca, port) = (webhook.ca.clone(), webhook.port);
        async move {
            let stream = tls(&ca, port, stranger(number, 2), HTTP2).await;
            let stream = TokioIo::new(stream.expect("a connection"));
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder.initial_stream_window_size(8);
            let (mut sender, connection) = builder.handshake(stream).await.unwrap();
            let ended = tokio::spawn(connection);
            let mut untaken = Vec::new();
            for _ in 0..100 {
                sender.ready().await.unwrap();
                let body = review(&pod(serde_json::json!({})));
                untaken.push(sender.send_request(post(body)));
            }
            // Their headers come, and they are held from then on.
            let untaken = join_all(untaken).await;
            let ended = timeout(PATIENCE, ended).await;
            let _ = ended.expect("the webhook closes the connection");
            for answer in untaken {
                let taken = answer.unwrap().into_body().collect();
                taken.await.expect_err("the rest is gone");
            }
        }
    });
    let neighbours = tokio::spawn(join_all(neighbours.collect::<Vec<_>>()));
    webhook.serves_others().await;
    neighbours.await.unwrap();
    webhook.has_stayed_small();
    webhook.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_taken_back_at_once_cost_others_nothing() {
    let webhook = Webhook::start("resets").await;
    let neighbours: Vec<_> = (0..4)
        .map(|number| {
            let (ca, port) = (webhook.ca.clone(), webhook.port);
            tokio::spawn(async move {
                // Over new connections when one is closed for it.
                loop {
                    let Some(stream) = tls(&ca, port, stranger(number, 2), HTTP2).await else {
                        continue;
                    };
                    let executor = TokioExecutor::new();
                    let handshake = http2::handshake(executor, TokioIo::new(stream)).await;
                    let Ok((mut sender, connection)) = handshake else {
                        continue;
                    };
                    tokio::spawn(connection);
                    while sender.ready().await.is_ok() {
                        let mut request = Box::pin(sender.send_request(get("/readyz")));
                        let _ = futures::poll!(&mut request);
                        tokio::task::yield_now().await;
                        // Dropped, which takes it back.
                    }
                }
            })
        })
        .collect();
    for _ in 0..10 {
        webhook.serves_others().await;
    }
    webhook.has_stayed_small();
    for neighbour in neighbours {
        neighbour.abort();
    }
    webhook.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_are_continued_for_ever_end_the_connection() {
    /// RFC 9113, 6.
    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const CONTINUATION: u8 = 9;

    let webhook = Webhook::start("continued").await;
    let stream = tls(&webhook.ca, webhook.port, stranger(0, 1), HTTP2).await;
    let (reader, mut writer) = tokio::io::split(stream.expect("a connection"));
    let misbehave = async {
        let mut start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        start.extend(frame(SETTINGS, 0, 0, &[]));
        start.extend(frame(HEADERS, 0, 1, &[]));
        let _ = writer.write_all(&start).await;
        // A header of its own in each: a literal that is not indexed (RFC 7541, 6.2.2).
        let mut header = vec![0, 1, b'x', 127, 0x81, 0x7e];
        header.extend([b'x'; 16_256]);
        let continued = frame(CONTINUATION, 0, 1, &header);
        for _ in 0..10_000 {
            if writer.write_all(&continued).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = until_closed(reader) => {}
        () = misbehave => {}
    }
    webhook.serves_others().await;
    webhook.has_stayed_small();
    webhook.is_as_before().await;
}

/// In this process, for its limits are shorter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_that_takes_its_answers_stays() {
    let limits = Limits {
        request: Duration::from_secs(1),
        send: Duration::from_secs(1),
        ..Limits::default()
    };
    let (day, now) = (Duration::from_secs(24 * 60 * 60), SystemTime::now());
    let pair = Pair::make(&["127.0.0.1".to_owned()], day, now).unwrap();
    let ca = pair.ca_bundle();
    let serving = Serving::new(pair.serving().clone(), CertificateMetrics::default());
    let tls_config = serving.server_config(None);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = axum::routing::get(async || "an answer that is longer than nothing at all");
    let router = axum::Router::new().route("/readyz", answer);
    let for_ever = std::future::pending();
    let metrics = ConnectionMetrics::default();
    tokio::spawn(serve(
        listener, tls_config, router, limits, metrics, for_ever,
    ));

    let stream = tls(ca, port, Ipv4Addr::LOCALHOST, HTTP2).await;
    let stream = TokioIo::new(stream.expect("a connection"));
    let executor = TokioExecutor::new();
    let (mut sender, connection) = http2::handshake(executor, stream).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..2 {
        let answer = sender.send_request(get("/readyz")).await.unwrap();
        answer.into_body().collect().await.unwrap();
        // More than twice as long as a request may take in all.
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    assert!(!sender.is_closed());
}
