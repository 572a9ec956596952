//! A proxy between a replica and the API server. What watches bring it holds back for a while,
//! different each time; all else it passes on at once, or not at all for as long as it is shut.

use std::collections::HashSet;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::State;
use axum::http::header::{CONNECTION, HOST, TRANSFER_ENCODING};
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use sgp::dev::Sandbox;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// A running proxy. It ends when dropped.
pub struct Proxy {
    /// Leads to the proxy, without credentials: those are added on the way.
    pub kubeconfig: PathBuf,
    brought: Brought,
    open: watch::Sender<bool>,
    serving: JoinHandle<()>,
}

/// The resource versions that watches have brought.
type Brought = Arc<Mutex<HashSet<String>>>;

#[derive(Clone)]
struct Upstream {
    client: Client,
    lateness: Duration,
    brought: Brought,
    open: watch::Receiver<bool>,
}

impl Proxy {
    /// Starts a proxy that asks the API server with the webhook's rights, and brings what
    /// watches bring up to `lateness` late.
    pub async fn start(sandbox: &Sandbox, name: &str, lateness: Duration) -> Self {
        let kubeconfig = Kubeconfig::read_from(sandbox.service_account_kubeconfig()).unwrap();
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
        let mut config = config.unwrap();
        config.proxy_url = None;
        config.default_retry = false;
        let brought = Brought::default();
        let (open, is_open) = watch::channel(true);
        let upstream = Upstream {
            client: Client::try_from(config).unwrap(),
            lateness,
            brought: brought.clone(),
            open: is_open,
        };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = Router::new().fallback(forward).with_state(upstream);
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });

        let context = json!({"cluster": name, "user": name, "namespace": "sgp-system"});
        let file = format!("{name}.kubeconfig");
        let kubeconfig = sandbox.control_plane().run_dir().join(file);
        let content = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": {"server": format!("http://127.0.0.1:{port}")}}],
            "users": [{"name": name, "user": {}}],
            "contexts": [{"name": name, "context": context}],
            "current-context": name,
        });
        std::fs::write(&kubeconfig, content.to_string()).unwrap();
        Self {
            kubeconfig,
            brought,
            open,
            serving,
        }
    }

    /// Whether the replica's watch has been brought this version of an object. While it has
    /// not, the replica can know it only by asking.
    pub fn has_brought(&self, resource_version: &str) -> bool {
        self.brought.lock().unwrap().contains(resource_version)
    }

    /// Lets no request pass until it is opened.
    pub fn shut(&self) {
        self.open.send_replace(false);
    }

    /// Lets requests pass.
    pub fn open(&self) {
        self.open.send_replace(true);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn forward(State(upstream): State<Upstream>, request: Request<Body>) -> Response {
    let mut open = upstream.open.clone();
    if open.wait_for(|is_open| *is_open).await.is_err() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let is_watch = request.uri().query().unwrap_or("").contains("watch=true");
    let (mut parts, body) = request.into_parts();
    for header in [HOST, CONNECTION, TRANSFER_ENCODING] {
        parts.headers.remove(header);
    }
    let body = to_bytes(body, usize::MAX).await.unwrap().to_vec();
    let request = Request::from_parts(parts, kube::client::Body::from(body));
    let mut response = match upstream.client.send(request).await {
        Ok(response) => response.map(Body::new),
        Err(error) => return (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    };
    for header in [CONNECTION, TRANSFER_ENCODING] {
        response.headers_mut().remove(header);
    }
    if is_watch {
        response.map(|body| Body::from_stream(late(body, upstream.lateness, upstream.brought)))
    } else {
        response
    }
}

/// The lines of a watch in their order, each so much later that it is never later than
/// `lateness`.
fn late(
    body: Body,
    lateness: Duration,
    brought: Brought,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let (queue, lines) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let read = async move {
        let mut chunks = body.into_data_stream();
        let (mut rest, mut due) = (Vec::new(), Instant::now());
        while let Some(Ok(chunk)) = chunks.next().await {
            rest.extend_from_slice(&chunk);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = rest.drain(..=end).collect();
                due = due.max(Instant::now() + lateness.mul_f64(fastrand::f64()));
                if queue.send((due, line)).is_err() {
                    return;
                }
            }
        }
    };
    tokio::spawn(read);
    futures::stream::unfold((lines, brought), |(mut lines, brought)| async move {
        let (due, line) = lines.recv().await?;
        tokio::time::sleep_until(due).await;
        let event: Value = serde_json::from_slice(&line).unwrap_or_default();
        if let Some(version) = event["object"]["metadata"]["resourceVersion"].as_str() {
            brought.lock().unwrap().insert(version.to_owned());
        }
        Some((Ok(Bytes::from(line)), (lines, brought)))
    })
}
