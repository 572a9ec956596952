//! What can be done with HTTP/2 alone.

use std::time::Duration;

use futures::future::join_all;
use http_body_util::BodyExt;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::client::{HTTP2, PATIENCE, stranger, tls, until_closed};
use crate::webhook::{Webhook, get, pod, post, review};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_never_taken_are_dropped() {
    let webhook = Webhook::start("untaken").await;
    // The uid comes back in the answer, which then is longer than what the client lets come.
    let uid = format!(r#""uid":"{}""#, "1".repeat(500_000));
    let body = review(&pod(serde_json::json!({}))).replacen(r#""uid":"1""#, &uid, 1);
    let neighbours = (0..4).map(|number| {
        let (ca, port, body) = (webhook.ca.clone(), webhook.port, body.clone());
        async move {
            let stream = tls(&ca, port, stranger(number, 2), HTTP2).await;
            let stream = TokioIo::new(stream.expect("a connection"));
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .initial_stream_window_size(65_535)
                .initial_connection_window_size(65_535);
            let (mut sender, connection) = builder.handshake(stream).await.unwrap();
            tokio::spawn(connection);
            let mut untaken = Vec::new();
            for _ in 0..5 {
                sender.ready().await.unwrap();
                untaken.push(sender.send_request(post(body.clone())));
            }
            // Their headers come, and they are held from then on.
            let untaken = join_all(untaken).await;
            let (first, others) = {
                let mut answers = untaken.into_iter().flatten();
                (
                    answers.next().expect("an answer"),
                    answers.collect::<Vec<_>>(),
                )
            };
            drop_when_reset(first).await;
            drop(others);
        }
    });
    let neighbours = tokio::spawn(join_all(neighbours.collect::<Vec<_>>()));
    webhook.serves_others().await;
    neighbours.await.unwrap();
    webhook.has_stayed_small();
    webhook.is_as_before().await;
}

/// Waits, without taking anything, for longer than the webhook may; what is taken then breaks
/// off.
async fn drop_when_reset(answer: hyper::Response<hyper::body::Incoming>) {
    tokio::time::sleep(Duration::from_secs(25)).await;
    let taken = timeout(PATIENCE, answer.into_body().collect()).await;
    taken.expect("an end").expect_err("the rest is gone");
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
