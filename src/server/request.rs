//! One request: its body, its answer, and the time that it has.

use std::any::Any;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, Request, Response, StatusCode, Version, header};
use axum::response::IntoResponse;
use futures::FutureExt;
use hyper::body::{Buf, Frame, Incoming, SizeHint};
use tokio::time::timeout;
use tower::Service;

use super::Server;
use super::body::{self, Unread};
use super::drain::Phase;
use super::memory::Held;
use super::places::{Running, Seat};

impl Server {
    /// The answer to a request of the connection in this seat.
    pub(super) async fn answer(
        self: Arc<Self>,
        router: Router,
        seat: Arc<Seat>,
        request: Request<Incoming>,
    ) -> Result<Response<Answer>, Infallible> {
        let running = seat.begin_request();
        let version = request.version();
        let (parts, body) = request.into_parts();
        let read = body::read(body, self.limits.body_bytes, &self.memory, seat.address());
        let (mut response, mut held) = match timeout(self.limits.body, read).await {
            Ok(Ok((body, held))) => {
                let request = Request::from_parts(parts, Body::from(body));
                let limit = self.limits.request;
                (route(router, request, limit).await, held)
            }
            // Whoever answers may have to say no in words of its own.
            Ok(Err(Unread::TooLong(beginning))) => {
                let mut request = Request::from_parts(parts, Body::empty());
                request.extensions_mut().insert(beginning);
                (route(router, request, self.limits.request).await, None)
            }
            Ok(Err(unread)) => (refuse(&unread), None),
            Err(_) => (refuse(&Unread::TooSlow), None),
        };
        // HTTP/2 has GOAWAY for that.
        if version <= Version::HTTP_11 && self.end.phase() >= Phase::Leaving {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        if let Some(held) = &mut held {
            let length = response.body().size_hint().upper();
            held.shrink(length.map_or(usize::MAX, |length| length as usize));
        }
        let until_sent = Arc::new(UntilSent {
            _running: running,
            _held: held,
        });
        Ok(response.map(|body| Answer { body, until_sent }))
    }
}

fn refuse(unread: &Unread) -> Response<Body> {
    let answer = match unread {
        Unread::TooLong(_) => (
            StatusCode::PAYLOAD_TOO_LARGE,
            "the body is longer than it may be",
        ),
        Unread::TooSlow => (
            StatusCode::REQUEST_TIMEOUT,
            "the body could not be read in time",
        ),
        Unread::TooMany => (
            StatusCode::SERVICE_UNAVAILABLE,
            "too many requests of this address wait for memory",
        ),
        Unread::Broken => (StatusCode::BAD_REQUEST, "the body can't be read"),
    };
    answer.into_response()
}

/// The body of an answer.
pub(super) struct Answer {
    body: Body,
    until_sent: Arc<UntilSent>,
}

/// A part of an answer, which is dropped when it has been sent.
pub(super) struct Part {
    bytes: Bytes,
    _until_sent: Arc<UntilSent>,
}

/// Until the answer is sent, its request counts as running and holds memory.
struct UntilSent {
    _running: Running,
    _held: Option<Held>,
}

impl HttpBody for Answer {
    type Data = Part;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Part>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let part = |bytes| Part {
            bytes,
            _until_sent: self.until_sent.clone(),
        };
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Buf for Part {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

/// The router's answer, bounded in time; a bug ends its request and nothing else.
///
/// Here rather than in layers of the router, each of which would allocate for every request.
pub(super) async fn route(
    mut router: Router,
    request: Request<Body>,
    limit: Duration,
) -> Response<Body> {
    let answer = AssertUnwindSafe(async { router.call(request).await }).catch_unwind();
    // Looks at the answer before it sets its timer, so that a request that waits for nothing
    // sets none.
    match timeout(limit, answer).await {
        Ok(Ok(Ok(response))) => response,
        Ok(Err(cause)) => panicked(cause),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

fn panicked(cause: Box<dyn Any + Send>) -> Response<Body> {
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
            let response = route(router.clone(), request, limit).await;
            assert_eq!(response.status(), expected, "{path}");
        }
    }
}
