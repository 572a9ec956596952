//! One connection, from its first byte to its end.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::Server;
use super::drain::Phase;
use super::impatient::Impatient;
use super::places::{Place, Seat};

/// A TLS record at its longest. rustls by itself reads 4 KiB at a time, which makes three
/// system calls of an AdmissionReview.
const READ_AT_ONCE: usize = 16 * 1024 + 256;

/// What a client without a request has for its handshake, and for its request after that, once
/// the server takes no more connections.
const LAST_HANDSHAKE: Duration = Duration::from_millis(500);

const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The most bytes of HTTP/1.1 headers, and about the most of answers that wait to be sent.
const HTTP1_BUFFER: usize = 64 * 1024;
/// The most bytes of a request's HTTP/2 headers.
const HTTP2_HEADERS: u32 = 8 * 1024;
/// Requests of an HTTP/2 connection at a time, whose headers are held together. Go's clients
/// open another connection for more.
const HTTP2_STREAMS: u32 = 100;
/// Bytes that may come for a request, and for all of an HTTP/2 connection, before they are
/// read.
const HTTP2_STREAM_WINDOW: u32 = 64 * 1024;
const HTTP2_CONNECTION_WINDOW: u32 = 128 * 1024;
/// Requests that were taken back by the client and still have to be cleared away, and those
/// that were reset for its errors, before the connection ends.
const HTTP2_RESETS: usize = 50;

impl Server {
    pub(super) async fn connection(self: Arc<Self>, stream: TcpStream, place: Place) {
        let limits = self.limits;
        // Answers are small and waited for.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "connection lost");
            return;
        }
        let stream = Impatient::new(stream, limits.send);
        let mut stream = BufReader::with_capacity(READ_AT_ONCE, stream);
        if !self.speaks(&mut stream, limits.handshake, b"").await {
            return tracing::debug!("connection without a handshake");
        }
        let handshake = timeout(limits.handshake, self.tls.accept(stream));
        let handshake = tokio::select! {
            handshake = handshake => handshake,
            () = self.end.closing_for(LAST_HANDSHAKE) => return,
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
        let seat = place.seat();
        // Who a client is, is settled with the handshake; whether it may call can change.
        let caller = self.routers.caller(stream.get_ref().1.peer_certificates());
        let service = service_fn(|mut request| {
            let router = self.routers.of(caller.as_ref(), &mut request);
            let (server, seat) = (self.clone(), seat.clone());
            server.answer(router, seat, request)
        });
        let stream = TokioIo::new(stream);
        // For all that a request may take.
        let grace = limits.request + limits.send;
        let ended = if is_http2 {
            // One that comes while we leave has a request, and is led away at the close.
            let led_away = match self.end.phase() {
                Phase::Open => Phase::Leaving,
                Phase::Leaving | Phase::Closing => Phase::Closing,
            };
            let mut builder = http2::Builder::new(Streams { limit: grace });
            builder
                .timer(TokioTimer::new())
                .keep_alive_interval(limits.keep_alive)
                .keep_alive_timeout(limits.handshake)
                .max_concurrent_streams(HTTP2_STREAMS)
                .max_header_list_size(HTTP2_HEADERS)
                .initial_stream_window_size(HTTP2_STREAM_WINDOW)
                .initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
                .max_send_buf_size(HTTP1_BUFFER)
                .max_pending_accept_reset_streams(HTTP2_RESETS)
                .max_local_error_reset_streams(HTTP2_RESETS);
            let connection = builder.serve_connection(stream, service);
            let leave = async {
                tokio::select! {
                    () = self.end.reaches(led_away) => grace,
                    () = idle_for(seat, limits.header) => grace,
                    () = stuck(seat, grace) => Duration::ZERO,
                }
            };
            until(leave, connection).await
        } else {
            let mut builder = http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(limits.header)
                .max_buf_size(HTTP1_BUFFER);
            let connection = builder.serve_connection(stream, service);
            let leave = async {
                self.end.reaches(Phase::Closing).await;
                grace
            };
            until(leave, connection).await
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
        let first = timeout(within, stream.fill_buf());
        tokio::select! {
            biased;
            first = first => match first {
                Ok(Ok(bytes)) => !bytes.is_empty() && bytes.starts_with(opening),
                Ok(Err(_)) | Err(_) => false,
            },
            () = self.end.closing_for(LAST_HANDSHAKE) => false,
        }
    }
}

/// Drives a connection; once `leave` ends, it is asked to end too, and made to after the time
/// that `leave` gives it.
async fn until<C: GracefulConnection>(
    leave: impl Future<Output = Duration>,
    connection: C,
) -> Result<(), C::Error> {
    let mut connection = pin!(connection);
    let grace = tokio::select! {
        // The request that is there is read before anything tells the connection to end.
        biased;
        ended = &mut connection => return ended,
        grace = leave => grace,
    };
    connection.as_mut().graceful_shutdown();
    timeout(grace, connection).await.unwrap_or(Ok(()))
}

/// Waits until there was no request for so long.
async fn idle_for(seat: &Arc<Seat>, limit: Duration) {
    loop {
        let since = seat.idle_since().unwrap_or_else(Instant::now);
        if since.elapsed() >= limit {
            return;
        }
        tokio::time::sleep_until(since + limit).await;
    }
}

/// Waits until a request has run for so long, or up to twice as long: a client can leave the
/// end of an answer where it is for ever.
async fn stuck(seat: &Seat, limit: Duration) {
    while !seat.has_stuck_request() {
        tokio::time::sleep(limit).await;
    }
}

/// Runs the requests of an HTTP/2 connection, each until its answer is handed over, and no
/// longer than this: a client can leave its answers where they are for ever.
#[derive(Clone)]
struct Streams {
    limit: Duration,
}

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        tokio::spawn(timeout(self.limit, stream));
    }
}
