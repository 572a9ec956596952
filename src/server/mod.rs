//! HTTP/1.1 and HTTP/2 over TLS, every step bounded in time.

use std::any::Any;
use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::{Bytes, HttpBody};
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustls::ServerConfig;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tower::Service;

use crate::accept::accept;

/// A TLS record at its longest. rustls by itself reads 4 KiB at a time, which makes three
/// system calls of an AdmissionReview.
const READ_AT_ONCE: usize = 16 * 1024 + 256;

/// What a client has for the rest of its handshake once the server ends.
const LAST_HANDSHAKE: Duration = Duration::from_millis(500);

const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bounds of one server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; more wait in the kernel's backlog.
    pub connections: usize,
    /// From a connection's start to its first byte, and from there to the end of its TLS
    /// handshake.
    pub handshake: Duration,
    /// From one HTTP/1.1 request's end to the end of the next one's headers. Longer than the
    /// API server keeps idle connections (90 s), so that it never meets one that we close.
    pub header: Duration,
    /// From a request's headers to its answer.
    pub request: Duration,
    /// Between a silent HTTP/2 connection's last sign of life and the ping that asks for one.
    pub keep_alive: Duration,
    /// Until a shutdown stops to wait for running requests.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            handshake: Duration::from_secs(5),
            header: Duration::from_secs(120),
            request: Duration::from_secs(10),
            keep_alive: Duration::from_secs(30),
            drain: Duration::from_secs(10),
        }
    }
}

/// Who answers which client.
#[derive(Clone, Debug)]
pub struct Routers {
    /// For those with a certificate that was asked for, or for all.
    pub clients: Router,
    /// For those without a certificate, if there is a difference.
    pub strangers: Option<Router>,
}

impl From<Router> for Routers {
    fn from(router: Router) -> Self {
        Self {
            clients: router,
            strangers: None,
        }
    }
}

/// Serves until `shutdown` ends, then finishes the requests that run.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    routers: impl Into<Routers>,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let (ending, is_ending) = watch::channel(false);
    let server = Server {
        tls: TlsAcceptor::from(tls),
        routers: routers.into(),
        limits,
        is_ending,
    };
    let places = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    let accepting = async {
        loop {
            let place = places.clone().acquire_owned().await.expect("never closed");
            let stream = accept(&listener).await;
            tokio::spawn(server.clone().connection(stream, graceful.watcher(), place));
        }
    };
    tokio::select! {
        () = accepting => {}
        () = shutdown => {}
    }
    // No new connections from here on; the port is free for a successor.
    drop(listener);
    ending.send_replace(true);
    if tokio::time::timeout(limits.drain, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("requests still ran at the end of the drain time and were cut off");
    }
}

/// Serves without TLS and one request a connection, for metrics. Never ends by itself.
pub async fn serve_plain(listener: TcpListener, router: Router, limits: Limits) {
    loop {
        let (stream, router) = (accept(&listener).await, router.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| answer(router.clone(), request, limits.request));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limits.handshake)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection for metrics ended early");
            }
        });
    }
}

#[derive(Clone)]
struct Server {
    tls: TlsAcceptor,
    routers: Routers,
    limits: Limits,
    is_ending: watch::Receiver<bool>,
}

impl Server {
    async fn connection(self, stream: TcpStream, watcher: Watcher, _place: OwnedSemaphorePermit) {
        let limits = self.limits;
        // Answers are small and waited for.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "connection lost");
            return;
        }
        let mut stream = BufReader::with_capacity(READ_AT_ONCE, stream);
        if !self.speaks(&mut stream, limits.handshake, b"").await {
            return tracing::debug!("connection without a handshake");
        }
        let handshake = tokio::time::timeout(limits.handshake, self.tls.accept(stream));
        let handshake = tokio::select! {
            handshake = handshake => handshake,
            () = self.ending_since(LAST_HANDSHAKE) => return,
        };
        let mut stream = match handshake {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
            Err(_) => return tracing::debug!("TLS handshake took too long"),
        };
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        // Clients send the preface in one piece, and hyper would wait for it without a limit.
        let opening: &[u8] = if is_http2 { HTTP2_PREFACE } else { b"" };
        if !self.speaks(&mut stream, limits.header, opening).await {
            return tracing::debug!("connection without a request");
        }
        // Who a client is, is settled with the handshake.
        let is_known = stream.get_ref().1.peer_certificates().is_some();
        let router = match &self.routers.strangers {
            Some(strangers) if !is_known => strangers,
            _ => &self.routers.clients,
        };
        let service = service_fn(|request| answer(router.clone(), request, limits.request));
        let stream = TokioIo::new(stream);
        let ended = if is_http2 {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .keep_alive_interval(limits.keep_alive)
                .keep_alive_timeout(limits.handshake)
                .max_concurrent_streams(1_000);
            watcher
                .watch(builder.serve_connection(stream, service))
                .await
        } else {
            let mut builder = http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(limits.header);
            let mut connection = builder.serve_connection(stream, service);
            // The request that is there is read before anything tells the connection to end.
            match futures::poll!(&mut connection) {
                Poll::Ready(ended) => ended,
                Poll::Pending => watcher.watch(connection).await,
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "connection ended early");
        }
    }

    /// Waits for the client's first bytes, which have to be this opening. A client that says
    /// nothing while the server ends has nothing to lose.
    async fn speaks(
        &self,
        stream: &mut (impl AsyncBufRead + Unpin),
        within: Duration,
        opening: &[u8],
    ) -> bool {
        let first = tokio::time::timeout(within, stream.fill_buf());
        tokio::select! {
            biased;
            first = first => match first {
                Ok(Ok(bytes)) => !bytes.is_empty() && bytes.starts_with(opening),
                Ok(Err(_)) | Err(_) => false,
            },
            () = self.ending_since(Duration::ZERO) => false,
        }
    }

    /// Ends so long after the server's end has begun.
    async fn ending_since(&self, grace: Duration) {
        // The sender lives as long as the server.
        let _ = self
            .is_ending
            .clone()
            .wait_for(|is_ending| *is_ending)
            .await;
        tokio::time::sleep(grace).await;
    }
}

/// The router's answer, bounded in time; a bug ends its request and nothing else.
///
/// Here rather than in layers of the router, each of which would allocate for every request.
async fn answer<B>(
    mut router: Router,
    request: Request<B>,
    limit: Duration,
) -> Result<Response, Infallible>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    let answer = AssertUnwindSafe(async { router.call(request).await }).catch_unwind();
    // Looks at the answer before it sets its timer, so that a request that waits for nothing
    // sets none.
    Ok(match tokio::time::timeout(limit, answer).await {
        Ok(Ok(Ok(response))) => response,
        Ok(Err(cause)) => panicked(cause),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    })
}

fn panicked(cause: Box<dyn Any + Send>) -> Response {
    let text = cause.downcast_ref::<&str>().copied();
    let cause = text.or_else(|| cause.downcast_ref::<String>().map(String::as_str));
    tracing::error!(cause, "a request was ended by a bug");
    (
        StatusCode::INTERNAL_SERVER_ERROR,
        "a bug in sgp ended this request; its log says more",
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::routing::get;

    #[tokio::test(start_paused = true)]
    async fn request_that_fails_or_hangs_is_answered_all_the_same() {
        async fn fails() {
            // Without the hook, so that the output shows no failure.
            std::panic::resume_unwind(Box::new("a bug"))
        }
        let router = Router::new()
            .route("/works", get(async || "ok"))
            .route("/fails", get(fails))
            .route("/hangs", get(std::future::pending::<()>));
        for (path, expected) in [
            ("/works", StatusCode::OK),
            ("/fails", StatusCode::INTERNAL_SERVER_ERROR),
            ("/hangs", StatusCode::SERVICE_UNAVAILABLE),
        ] {
            let request = Request::get(path).body(Body::empty()).unwrap();
            let limit = Duration::from_secs(10);
            let Ok(response) = answer(router.clone(), request, limit).await;
            assert_eq!(response.status(), expected, "{path}");
        }
    }
}
