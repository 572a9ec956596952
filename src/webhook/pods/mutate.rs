//! `/mutate-v1-pod`: what a pod lacks at its creation.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;

use super::creation::{Enforcement, Phase};
use crate::api::endpoint::Endpoint;
use crate::policy::Pod;
use crate::webhook::Webhook;
use crate::webhook::body::JsonBody;
use crate::webhook::review::Answer;

/// Answers the API server where pods start even if we can't be asked.
pub async fn mutate_pod(State(webhook): State<Arc<Webhook>>, JsonBody(body): JsonBody) -> Response {
    answer(&webhook, &body, Enforcement::Off).await
}

/// Answers the API server where pods wait until we can be asked.
pub async fn mutate_pod_enforced(
    State(webhook): State<Arc<Webhook>>,
    JsonBody(body): JsonBody,
) -> Response {
    answer(&webhook, &body, Enforcement::On).await
}

async fn answer(webhook: &Webhook, body: &[u8], enforcement: Enforcement) -> Response {
    let exchange = webhook.exchange(Endpoint::MutatePod);
    let request = match exchange.read::<Pod<'_>>(body) {
        Ok(request) => request,
        Err(response) => return response,
    };
    // A pod's containers and labels are looked at once, when it is created.
    let answer = match request.operation.as_str() {
        "CREATE" => {
            let phase = Phase::Mutating;
            webhook.answer_creation(&request, phase, enforcement).await
        }
        _ => Answer::allowed(None, Vec::new()),
    };
    exchange.answer(request.uid.as_str(), &answer)
}
