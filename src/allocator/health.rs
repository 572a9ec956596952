//! Whether the allocator lives, and whether it knows the cluster.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::socket::refusal;

/// `/healthz`, 200 while the process answers, and `/readyz`, 200 once it knows the cluster.
///
/// An allocator that follows another is as ready as the one that works.
pub fn router(is_ready: Arc<AtomicBool>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/readyz", get(ready))
        .with_state(is_ready)
}

async fn ready(State(is_ready): State<Arc<AtomicBool>>) -> Response {
    if is_ready.load(Ordering::Relaxed) {
        return "ok".into_response();
    }
    let why = "waiting for the cluster's nodes and pods";
    refusal(StatusCode::SERVICE_UNAVAILABLE, why)
}
