//! Bodies that are too long, too slow, too many or too strange.

use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};

use crate::client::{HTTP1, HTTP2, PATIENCE, stranger, tls, until_closed};
use crate::webhook::{Webhook, pod, post, review};

const MIB: usize = 1024 * 1024;
const LIMIT: usize = 3 * MIB;

fn head(length: &str) -> String {
    format!(
        "POST /mutate-v1-pod HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         {length}\r\n\r\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn body_over_the_limit_is_refused_at_once() {
    let webhook = Webhook::start("too-long").await;
    let announced = head(&format!("Content-Length: {}", LIMIT + 1));
    let mut unannounced = head("Transfer-Encoding: chunked");
    unannounced += &format!("{LIMIT:x}\r\n{}\r\n2\r\n  ", " ".repeat(LIMIT));
    for request in [announced, unannounced] {
        let stream = tls(&webhook.ca, webhook.port, stranger(0, 1), HTTP1).await;
        let (reader, mut writer) = tokio::io::split(stream.expect("a connection"));
        // The rest of the body never comes.
        writer.write_all(request.as_bytes()).await.unwrap();
        writer.flush().await.unwrap();
        let said = until_closed(reader).await;
        let said = String::from_utf8_lossy(&said);
        assert!(said.starts_with("HTTP/1.1 413"), "{said}");
    }
    let too_long = webhook.send(HTTP2, post(vec![b' '; LIMIT + 1])).await;
    assert_eq!(too_long.status, 413, "{too_long:?}");
    webhook.has_stayed_small();
    webhook.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn body_that_trickles_is_given_up() {
    let webhook = Webhook::start("slow-bodies").await;
    let neighbours = (0..100).map(|number| {
        let (ca, port) = (webhook.ca.clone(), webhook.port);
        async move {
            let stream = tls(&ca, port, stranger(number, 3), HTTP1).await;
            let (reader, mut writer) = tokio::io::split(stream.expect("a connection"));
            let misbehave = async {
                let head = head(&format!("Content-Length: {MIB}"));
                let _ = writer.write_all(head.as_bytes()).await;
                while writer.write_all(b" ").await.is_ok() && writer.flush().await.is_ok() {
                    sleep(Duration::from_millis(100)).await;
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                said = until_closed(reader) => {
                    let said = String::from_utf8_lossy(&said);
                    // A byte that was on its way may end the connection before the answer.
                    assert!(said.is_empty() || said.starts_with("HTTP/1.1 408"), "{said}");
                }
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
async fn hundreds_of_large_bodies_at_a_time_take_no_more_memory_than_a_few() {
    let webhook = Webhook::start("large-bodies").await;
    // 900 MiB of them, if all were read.
    let neighbours: Vec<_> = (0..300)
        .map(|number| {
            let (ca, port) = (webhook.ca.clone(), webhook.port);
            tokio::spawn(async move {
                // Again and again, for as long as others want to be served.
                loop {
                    let stream = tls(&ca, port, stranger(number, 20), HTTP1).await;
                    let Some(stream) = stream else { continue };
                    let (reader, mut writer) = tokio::io::split(stream);
                    let misbehave = async {
                        let head = head(&format!("Content-Length: {LIMIT}"));
                        let _ = writer.write_all(head.as_bytes()).await;
                        // All but the last byte.
                        let _ = writer.write_all(&vec![b' '; LIMIT - 1]).await;
                        let _ = writer.flush().await;
                        std::future::pending::<()>().await;
                    };
                    tokio::select! {
                        _ = until_closed(reader) => {}
                        () = misbehave => {}
                    }
                }
            })
        })
        .collect();
    let connected = async {
        while webhook.metric("sgp_connections").await < 100 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, connected).await.expect("connections");
    for _ in 0..5 {
        webhook.serves_others().await;
    }
    webhook.has_stayed_small();
    for neighbour in neighbours {
        neighbour.abort();
    }
    webhook.is_as_before().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_and_strange_reviews_are_answered() {
    let webhook = Webhook::start("strange").await;
    let deep = format!("{}{}", "[".repeat(MIB), "]".repeat(MIB));
    let reviewed = review(&pod(json!({"name": "web"})));
    let with = |place: &str, bytes: &[u8]| {
        let (before, after) = reviewed.split_once(place).expect("it is in the review");
        let mut body = before.as_bytes().to_vec();
        body.extend_from_slice(place.as_bytes());
        body.extend_from_slice(bytes);
        body.extend_from_slice(after.as_bytes());
        body
    };
    let many = json!({"containers": vec![json!({"name": "a", "image": "web"}); 1_000]});
    let mut many_containers = pod(json!({"name": "web"}));
    many_containers["spec"] = many;
    let labels: Value = (0..50_000)
        .map(|n| (format!("label-{n}"), json!("a")))
        .collect();
    for (what, body, status, allowed) in [
        (
            "deep where nothing is read",
            with(r#""spec":{"#, format!(r#""deep":{deep},"#).as_bytes()),
            200,
            Some(true),
        ),
        (
            "deep where something is read",
            with(
                r#""spec":{"#,
                format!(r#""nodeSelector":{deep},"#).as_bytes(),
            ),
            200,
            Some(false),
        ),
        ("deep from the start", deep.clone().into_bytes(), 400, None),
        (
            "no UTF-8 where nothing is read",
            with(r#""spec":{"#, b"\"other\":\"\xff\xfe\","),
            200,
            Some(true),
        ),
        (
            "no UTF-8 where something is read",
            with(r#""spec":{"#, b"\"serviceAccountName\":\"\xff\xfe\","),
            200,
            Some(false),
        ),
        ("no UTF-8 at all", vec![0xff; 1_000], 400, None),
        (
            "an annotation of 1 MiB",
            review(&pod(json!({"annotations": {"long": "x".repeat(MIB)}}))).into_bytes(),
            200,
            Some(true),
        ),
        (
            "50,000 labels",
            review(&pod(json!({"labels": labels}))).into_bytes(),
            200,
            Some(true),
        ),
        (
            "1,000 containers",
            review(&many_containers).into_bytes(),
            200,
            Some(true),
        ),
    ] {
        for protocol in [HTTP1, HTTP2] {
            let answer = webhook.send(protocol, post(body.clone())).await;
            assert_eq!(answer.status, status, "{what}: {answer:?}");
            if let Some(allowed) = allowed {
                let answer: Value = serde_json::from_str(&answer.body).unwrap();
                assert_eq!(answer["response"]["allowed"], allowed, "{what}: {answer}");
            }
        }
    }
    webhook.has_stayed_small();
    webhook.is_as_before().await;
}
