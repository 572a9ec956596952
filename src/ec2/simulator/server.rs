//! EC2 and the control API over plain HTTP, every step bounded.

use std::future::Future;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, header};
use axum::routing::get;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tower::ServiceExt;
use tower_http::timeout::RequestBodyTimeoutLayer;

use super::world::ReplyKind;
use super::{Simulator, control};
use crate::accept::accept;

/// EC2 takes forms of at most so many bytes, give or take.
const LARGEST_CALL: usize = 1 << 20;
/// A hundred thousand interfaces are about 100 MB.
const LARGEST_STATE: usize = 1 << 30;
/// From a connection's start, or the end of an answer, to the end of the next headers.
const HEADERS_WITHIN: Duration = Duration::from_secs(120);
/// From the headers to the end of a call's body; for the control API between its parts.
const BODY_WITHIN: Duration = Duration::from_secs(30);
/// How long the running calls have at the end.
const DRAIN: Duration = Duration::from_millis(300);

/// Serves until `shutdown` ends; connections that hang are cut off then.
pub async fn serve(
    listener: TcpListener,
    simulator: Simulator,
    shutdown: impl Future<Output = ()>,
) {
    let router = router(simulator);
    let graceful = GracefulShutdown::new();
    // Dropped at the end, and with it what still runs.
    let mut connections = JoinSet::new();
    let accepting = async {
        loop {
            // Tasks that ended are let go; the set would grow for ever otherwise.
            while connections.try_join_next().is_some() {}
            let stream = accept(&listener).await;
            connections.spawn(connection(stream, router.clone(), graceful.watcher()));
        }
    };
    tokio::select! {
        () = accepting => {}
        () = shutdown => {}
    }
    drop(listener);
    if tokio::time::timeout(DRAIN, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::debug!("calls still ran at the end and were cut off");
    }
}

/// Marks an answer that must not be sent: the connection closes instead.
#[derive(Clone, Copy)]
struct NoAnswer;

#[derive(Debug, thiserror::Error)]
#[error("the simulator was told to give no answer")]
struct Unanswered;

async fn connection(stream: TcpStream, router: Router, watcher: Watcher) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "connection lost");
        return;
    }
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let router = router.clone();
        async move {
            let answer = router.oneshot(request.map(Body::new)).await;
            let answer = answer.unwrap_or_else(|never| match never {});
            match answer.extensions().get::<NoAnswer>() {
                Some(_) => Err(Unanswered),
                None => Ok(answer),
            }
        }
    });
    // HTTP/1.1 is what EC2's endpoints speak.
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%error, "connection ended early");
    }
}

fn router(simulator: Simulator) -> Router {
    let calls = get(control::get_counts).delete(control::delete_calls);
    let settings = get(control::get_settings)
        .put(control::put_settings)
        .patch(control::patch_settings);
    let faults = get(control::get_faults)
        .post(control::post_fault)
        .delete(control::delete_faults);
    let state = get(control::get_state)
        .put(control::put_state)
        .layer(DefaultBodyLimit::max(LARGEST_STATE));
    Router::new()
        .route("/simulator/", get(control::overview))
        .route("/simulator/settings", settings)
        .route("/simulator/faults", faults)
        .route("/simulator/calls", calls)
        .route("/simulator/calls/log", get(control::get_log))
        .route("/simulator/state", state)
        .layer(RequestBodyTimeoutLayer::new(BODY_WITHIN))
        .route("/", get(ec2).post(ec2))
        .with_state(simulator)
}

/// One call of EC2's API.
async fn ec2(State(simulator): State<Simulator>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    // One that announces its size need not send it.
    if body.size_hint().lower() > LARGEST_CALL as u64 {
        return status(StatusCode::PAYLOAD_TOO_LARGE);
    }
    let body = axum::body::to_bytes(body, LARGEST_CALL);
    let body = match tokio::time::timeout(BODY_WITHIN, body).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return status(StatusCode::PAYLOAD_TOO_LARGE),
        Err(_) => return status(StatusCode::REQUEST_TIMEOUT),
    };
    let form = form(&parts.method, &parts.uri, &body);
    let reply = simulator.call(&form, access_key_id(&parts.headers));
    if reply.delay_ms > 0 {
        tokio::time::sleep(Duration::from_millis(reply.delay_ms)).await;
    }
    match reply.kind {
        ReplyKind::Answer {
            status: code,
            request_id,
            body,
        } => {
            let mut answer = Response::new(Body::from(body));
            *answer.status_mut() =
                StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let headers = answer.headers_mut();
            let content_type = HeaderValue::from_static("text/xml;charset=UTF-8");
            headers.insert(header::CONTENT_TYPE, content_type);
            if let Ok(request_id) = HeaderValue::from_str(&request_id) {
                headers.insert("x-amzn-requestid", request_id);
            }
            answer
        }
        ReplyKind::Drop => {
            let mut answer = status(StatusCode::INTERNAL_SERVER_ERROR);
            answer.extensions_mut().insert(NoAnswer);
            answer
        }
        // Until the caller gives up or the server ends.
        ReplyKind::Hang => std::future::pending().await,
    }
}

/// The access key in the `Authorization` header of Signature Version 4, which names it as
/// `Credential=<access key id>/<date>/...` (AWS IAM User Guide, "Elements of an AWS API
/// request signature").
fn access_key_id(headers: &HeaderMap) -> &str {
    let signed = headers.get(header::AUTHORIZATION);
    let signed = signed.and_then(|value| value.to_str().ok());
    let credential = signed.and_then(|signed| signed.split_once("Credential="));
    let id = credential.and_then(|(_, credential)| credential.split('/').next());
    id.unwrap_or_default()
}

/// Parameters come in a body, in the query string, or in both.
fn form(method: &Method, uri: &Uri, body: &Bytes) -> Vec<u8> {
    let query = uri.query().unwrap_or_default().as_bytes();
    match (query, body.as_ref()) {
        (query, _) if *method == Method::GET => query.to_vec(),
        (b"", body) => body.to_vec(),
        (query, body) => [query, b"&", body].concat(),
    }
}

fn status(code: StatusCode) -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = code;
    answer
}
