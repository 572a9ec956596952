//! `/validate-v1-node`: what the CNI plugin may change of a node.

mod guard;
mod node;

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use k8s_openapi::jiff::Timestamp;

use self::node::Node;
use super::Webhook;
use super::body::JsonBody;
use super::review::{Answer, Refusal, Request};
use crate::api::endpoint::Endpoint;
use crate::api::names::CNI_USER;

/// Answers the API server.
pub async fn validate_node(
    State(webhook): State<Arc<Webhook>>,
    JsonBody(body): JsonBody,
) -> Response {
    let exchange = webhook.exchange(Endpoint::ValidateNode);
    match exchange.read::<Node>(&body) {
        Ok(request) => exchange.answer(request.uid.as_str(), &answer(&request)),
        Err(response) => response,
    }
}

fn answer(request: &Request<'_, Node>) -> Answer {
    let is_the_plugins =
        request.operation.as_str() == "UPDATE" && request.user_info.username.as_str() == CNI_USER;
    let (Some(old), Some(new), true) = (&request.old_object, &request.object, is_the_plugins)
    else {
        return Answer::allowed(None, Vec::new());
    };
    match guard::denial(old, new, Timestamp::now()) {
        Some(message) => {
            tracing::info!(node = request.name(), message, "change of a node refused");
            Answer::denied(Refusal::forbidden(message), Vec::new())
        }
        None => Answer::allowed(None, Vec::new()),
    }
}
