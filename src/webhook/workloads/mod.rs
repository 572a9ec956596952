//! `/validate-workload`: what will become of the pods of a template; warnings only.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::de::IgnoredAny;

use super::Webhook;
use super::body::JsonBody;
use super::review::Answer;
use crate::api::endpoint::Endpoint;

/// Answers the API server.
pub async fn validate_workload(
    State(webhook): State<Arc<Webhook>>,
    JsonBody(body): JsonBody,
) -> Response {
    let exchange = webhook.exchange(Endpoint::ValidateWorkload);
    match exchange.read::<IgnoredAny>(&body) {
        Ok(request) => exchange.answer(request.uid.as_str(), &Answer::allowed(None, Vec::new())),
        Err(response) => response,
    }
}
