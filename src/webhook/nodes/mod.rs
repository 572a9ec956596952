//! `/validate-v1-node`: what the CNI plugin may change of a node.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::de::IgnoredAny;

use super::Webhook;
use super::body::JsonBody;
use super::review::Answer;
use crate::api::endpoint::Endpoint;

/// Answers the API server.
pub async fn validate_node(
    State(webhook): State<Arc<Webhook>>,
    JsonBody(body): JsonBody,
) -> Response {
    let exchange = webhook.exchange(Endpoint::ValidateNode);
    match exchange.read::<IgnoredAny>(&body) {
        Ok(request) => exchange.answer(request.uid.as_str(), &Answer::allowed(None, Vec::new())),
        Err(response) => response,
    }
}
