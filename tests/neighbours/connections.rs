//! Connections that strangers open and leave as they are.

use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use crate::client::{
    HTTP1, PATIENCE, client_hello, open_files, stranger, tcp, tcp_with_small_buffer, tls, tls_over,
    until_closed,
};
use crate::webhook::Webhook;

/// The places of a webhook (`Limits::connections`).
const PLACES: u64 = 1_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_lock_nobody_out() {
    let webhook = Webhook::start("idle").await;
    let count = open_files(10_000);
    println!("{count} connections");
    let mut idle = Vec::new();
    for number in 0..count {
        // All of one address first, then from many.
        let addresses = if number < count / 2 { 1 } else { 200 };
        idle.push(tcp(webhook.port, stranger(number, addresses)).await);
        if number % 2_000 == 1_999 {
            webhook.serves_others().await;
        }
    }
    webhook.serves_others().await;
    assert!(webhook.metric("sgp_connections").await <= PLACES);
    assert!(webhook.metric("sgp_connections_evicted_total").await > 0);
    webhook.has_stayed_small();
    drop(idle);
    webhook.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_open_files_are_raised_or_mean_fewer_connections() {
    for (name, limit, places) in [("raised", "-Sn 256", PLACES), ("few-files", "-n 300", 150)] {
        let webhook = Webhook::start_with_open_files(name, limit).await;
        let mut idle = Vec::new();
        for number in 0..400 {
            idle.push(tcp(webhook.port, stranger(number, 3)).await);
        }
        webhook.serves_others().await;
        assert!(webhook.metric("sgp_connections").await <= places);
        let evicted = webhook.metric("sgp_connections_evicted_total").await;
        assert_eq!(evicted > 0, places < 400, "{evicted} of {name}");
        let told = "only 150 connections at a time instead of 1000";
        assert_eq!(
            webhook.log().contains(told),
            places < 400,
            "{}",
            webhook.log()
        );
        drop(idle);
        webhook.is_as_before().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_without_a_request_lock_nobody_out() {
    let webhook = Webhook::start("silent").await;
    let mut silent = Vec::new();
    for number in 0..1_200 {
        silent.push(tls(&webhook.ca, webhook.port, stranger(number, 3), HTTP1).await);
        if number % 400 == 399 {
            webhook.serves_others().await;
        }
    }
    webhook.serves_others().await;
    assert!(webhook.metric("sgp_connections").await <= PLACES);
    webhook.has_stayed_small();
    drop(silent);
    webhook.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshake_that_stops_or_trickles_ends() {
    let webhook = Webhook::start("half-open").await;
    let hello = client_hello(&webhook.ca);
    let neighbours = (0..300).map(|number| {
        let hello = hello.clone();
        let port = webhook.port;
        async move {
            let (reader, mut writer) = tcp(port, stranger(number, 3)).await.into_split();
            let misbehave = async {
                match number % 3 {
                    0 => {}
                    1 => writer.write_all(&hello).await.unwrap_or(()),
                    _ => trickle(&mut writer, &hello).await,
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                _ = until_closed(reader) => {}
                () = misbehave => {}
            }
        }
    });
    let neighbours = tokio::spawn(join_all(neighbours.collect::<Vec<_>>()));
    webhook.serves_others().await;
    webhook.serves_others().await;
    neighbours.await.unwrap();
    webhook.has_stayed_small();
    webhook.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_trickle_hold_up_nobody() {
    let webhook = Webhook::start("headers").await;
    let begin = Instant::now();
    let neighbours: Vec<_> = (0..200)
        .map(|number| {
            let (ca, port) = (webhook.ca.clone(), webhook.port);
            tokio::spawn(async move {
                let stream = tls(&ca, port, stranger(number, 3), HTTP1).await;
                let mut stream = stream.expect("a connection");
                let head = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nX-Long: ".iter();
                let forever: Vec<_> = head.chain(&[b'x'; 10_000]).copied().collect();
                trickle(&mut stream, &forever).await;
            })
        })
        .collect();
    for _ in 0..5 {
        webhook.serves_others().await;
    }
    webhook.has_stayed_small();
    // The server's own limit is 120 s.
    let all_go_on = begin.elapsed() < Duration::from_secs(100);
    for neighbour in &neighbours {
        assert!(
            !all_go_on || !neighbour.is_finished(),
            "it goes on all the time"
        );
        neighbour.abort();
    }
    webhook.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_that_takes_no_answer_is_left() {
    let webhook = Webhook::start("deaf").await;
    let neighbours = (0..5).map(|number| {
        let (ca, port) = (webhook.ca.clone(), webhook.port);
        async move {
            let stream = tcp_with_small_buffer(port, stranger(number, 3)).await;
            let stream = tls_over(stream, &ca, HTTP1).await;
            let mut stream = stream.expect("a connection");
            let request = "GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100);
            // It asks on and on until the connection is closed under it.
            while stream.write_all(request.as_bytes()).await.is_ok() {}
        }
    });
    let neighbours = tokio::spawn(join_all(neighbours.collect::<Vec<_>>()));
    webhook.serves_others().await;
    let ended = timeout(PATIENCE, neighbours).await;
    ended.expect("the webhook closes the connections").unwrap();
    webhook.has_stayed_small();
    webhook.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_are_too_long_are_refused() {
    let webhook = Webhook::start("long-headers").await;
    let stream = tls(&webhook.ca, webhook.port, stranger(0, 1), HTTP1).await;
    let (reader, mut writer) = tokio::io::split(stream.expect("a connection"));
    let head = format!(
        "GET /readyz HTTP/1.1\r\nHost: localhost\r\nX-Long: {}",
        "x".repeat(100_000)
    );
    let (_, said) = tokio::join!(writer.write_all(head.as_bytes()), until_closed(reader));
    let said = String::from_utf8_lossy(&said);
    assert!(
        said.is_empty() || said.starts_with("HTTP/1.1 431"),
        "{said}"
    );
    webhook.has_stayed_small();
    webhook.is_as_before().await;
}

/// Writes byte by byte, until the other side has enough of it.
async fn trickle(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) {
    for byte in bytes {
        if writer.write_all(&[*byte]).await.is_err() || writer.flush().await.is_err() {
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
}
