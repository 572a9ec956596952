//! `/validate-v1-pod`: pods as they are about to be stored, and their deletion.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;

use super::annotation_guard;
use super::creation::{Enforcement, Phase};
use super::forced_deletion;
use crate::api::endpoint::Endpoint;
use crate::policy::Pod;
use crate::webhook::Webhook;
use crate::webhook::body::JsonBody;
use crate::webhook::review::{Answer, Refusal, Request};
use crate::webhook::warnings::within_limits;

/// Answers the API server where pods start even if we can't be asked.
pub async fn validate_pod(
    State(webhook): State<Arc<Webhook>>,
    JsonBody(body): JsonBody,
) -> Response {
    answer(&webhook, &body, Enforcement::Off).await
}

/// Answers the API server where pods wait until we can be asked.
pub async fn validate_pod_enforced(
    State(webhook): State<Arc<Webhook>>,
    JsonBody(body): JsonBody,
) -> Response {
    answer(&webhook, &body, Enforcement::On).await
}

async fn answer(webhook: &Webhook, body: &[u8], enforcement: Enforcement) -> Response {
    let exchange = webhook.exchange(Endpoint::ValidatePod);
    match exchange.read::<Pod<'_>>(body) {
        Ok(request) => {
            let answer = webhook.validate(&request, enforcement).await;
            exchange.answer(request.uid.as_str(), &answer)
        }
        Err(response) => response,
    }
}

impl Webhook {
    /// A Binding is read as a pod too: it has the pod's name, and annotations that the pod
    /// gets.
    async fn validate(&self, request: &Request<'_, Pod<'_>>, enforcement: Enforcement) -> Answer {
        let operation = request.operation.as_str();
        if operation == "DELETE" {
            let warnings = forced_deletion::warning(request).into_iter().collect();
            return Answer::allowed(None, within_limits(warnings));
        }
        if let Some(message) = annotation_guard::denial(request, &self.editors.pod_annotations) {
            let namespace = request.namespace();
            tracing::info!(namespace, message, "annotation refused");
            return Answer::denied(Refusal::forbidden(message), Vec::new());
        }
        if operation == "CREATE" && request.kind.kind.as_str() == "Pod" {
            let phase = Phase::Validating;
            return self.answer_creation(request, phase, enforcement).await;
        }
        Answer::allowed(None, Vec::new())
    }
}
