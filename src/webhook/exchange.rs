//! One AdmissionReview and its answer: what all paths do around their decision.

use std::time::Instant;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::Webhook;
use super::body;
use super::review::{self, Answer, Outcome, Refusal, Request, Unreadable};
use super::warnings::within_limits;
use crate::api::endpoint::Endpoint;
use crate::telemetry::metrics::EndpointMetrics;

/// From a request's body to its answer, which is counted and timed.
pub(super) struct Exchange<'a> {
    endpoint: Endpoint,
    metrics: &'a EndpointMetrics,
    begin: Instant,
}

impl Webhook {
    /// Begins with the whole body at hand.
    pub(super) fn exchange(&self, endpoint: Endpoint) -> Exchange<'_> {
        Exchange {
            endpoint,
            metrics: self.metrics.admission.of(endpoint),
            begin: Instant::now(),
        }
    }
}

impl Exchange<'_> {
    /// Reads the request, or says with which response the exchange ends.
    #[expect(
        clippy::result_large_err,
        reason = "the error is what the caller returns"
    )]
    pub(super) fn read<'b, O: Deserialize<'b>>(
        &self,
        body: &'b [u8],
    ) -> Result<Request<'b, O>, Response> {
        let request = review::read(body).map_err(|error| self.refuse_unreadable(&error))?;
        match self.expect(&request) {
            Ok(()) => Ok(request),
            Err(refusal) => {
                tracing::warn!(
                    path = self.endpoint.path(),
                    message = refusal.message,
                    "request that is not for this path"
                );
                Err(self.refuse(request.uid.as_str(), refusal))
            }
        }
    }

    /// The response to a review that can't be taken: nothing is refused on a path that only
    /// warns, not even if it is our own mistake.
    fn refuse(&self, uid: &str, refusal: Refusal) -> Response {
        if !self.endpoint.only_warns() {
            return self.answer(uid, &Answer::denied(refusal, Vec::new()));
        }
        self.count(Outcome::Failed);
        let warnings = within_limits(vec![refusal.message]);
        Answer::allowed(None, warnings).for_uid(uid)
    }

    /// The response to a review that is too long to be read. A status that is none of a review
    /// would count as a webhook that is away, and whoever makes an object long enough would get
    /// around everything that fails open.
    pub(super) fn refuse_too_long(&self, beginning: &[u8]) -> Response {
        let request = review::read_beginning(beginning);
        let Some(uid) = &request.uid else {
            self.count(Outcome::Failed);
            return body::too_long();
        };
        let kind = request.kind.as_deref().unwrap_or("object");
        let name = request.name.filter(|name| !name.is_empty());
        let name = name.map(|name| format!(" {name:?}")).unwrap_or_default();
        let message = format!(
            "{kind}{name}: what the API server asks about it is longer than 3 MiB, so that it \
             can't be looked at; make it smaller"
        );
        tracing::warn!(
            path = self.endpoint.path(),
            message,
            "request that is too long"
        );
        let only_warns = match self.endpoint {
            Endpoint::ValidateNetwork => ["Service", "NetworkPolicy"].contains(&kind),
            // Whatever it is, it can be deleted.
            Endpoint::ValidatePod => request.operation.as_deref() == Some("DELETE"),
            endpoint => endpoint.only_warns(),
        };
        if only_warns {
            let warnings = within_limits(vec![message]);
            return self.answer(uid, &Answer::allowed(None, warnings));
        }
        self.answer(uid, &Answer::denied(Refusal::too_long(message), Vec::new()))
    }

    /// The response to the review with this uid.
    pub(super) fn answer(&self, uid: &str, answer: &Answer) -> Response {
        self.count(answer.outcome());
        answer.for_uid(uid)
    }

    fn count(&self, outcome: Outcome) {
        let metrics = self.metrics;
        let counter = match outcome {
            Outcome::Unchanged => &metrics.unchanged,
            Outcome::Patched => &metrics.patched,
            Outcome::Denied => &metrics.denied,
            Outcome::Failed => &metrics.failed,
        };
        counter.inc();
        metrics.duration.observe(self.begin.elapsed().as_secs_f64());
    }

    /// Refuses what a wrong webhook configuration sends here.
    fn expect<O>(&self, request: &Request<'_, O>) -> Result<(), Refusal> {
        let (kind, resource) = (&request.kind, &request.resource);
        let is_version = |api_version: &str, group: &str, version: &str| {
            let (in_group, in_version) = api_version.split_once('/').unwrap_or(("", api_version));
            group == in_group && version == in_version
        };
        let is_resource = |taken: &str| {
            let (taken, sub_resource) = taken.split_once('/').unwrap_or((taken, ""));
            resource.resource.as_str() == taken && request.sub_resource() == sub_resource
        };
        let is_taken = self.endpoint.takes().iter().any(|taken| {
            let version = taken.api_version;
            kind.kind.as_str() == taken.kind
                && is_resource(taken.resource)
                && is_version(version, kind.group.as_str(), kind.version.as_str())
                && is_version(version, resource.group.as_str(), resource.version.as_str())
        });
        if is_taken {
            return Ok(());
        }
        let takes = self.endpoint.takes().iter();
        let takes: Vec<_> = takes
            .map(|taken| {
                format!(
                    "kind {} of {} and resource {}",
                    taken.kind, taken.api_version, taken.resource
                )
            })
            .collect();
        Err(Refusal::bad_request(format!(
            "this path takes {}, not kind {:?} of {:?} {:?} and resource {:?} {:?}; correct the \
             rules of the webhook configuration",
            takes.join(", or "),
            kind.kind.as_str(),
            kind.group.as_str(),
            kind.version.as_str(),
            resource.resource.as_str(),
            request.sub_resource(),
        )))
    }

    fn refuse_unreadable(&self, unreadable: &Unreadable) -> Response {
        tracing::warn!(path = self.endpoint.path(), %unreadable, "unreadable request");
        match unreadable {
            Unreadable::Review(_) => {
                self.count(Outcome::Failed);
                (StatusCode::BAD_REQUEST, unreadable.to_string()).into_response()
            }
            Unreadable::Object { uid, .. } => {
                self.refuse(uid, Refusal::bad_request(unreadable.to_string()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Settings;
    use axum::body::{Body, to_bytes};
    use serde_json::{Value, json};
    use std::convert::Infallible;

    async fn answer_too_long(endpoint: Endpoint, kind: &str, operation: &str) -> Value {
        let service = tower::service_fn(async |_: axum::http::Request<kube::client::Body>| {
            Ok::<_, Infallible>(Response::new(Body::empty()))
        });
        let client = kube::Client::new(service, "default");
        let webhook = Webhook::new(client, Settings::default(), None);
        let beginning = format!(
            r#"{{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": {{
                "uid": "1", "kind": {{"group": "", "version": "v1", "kind": "{kind}"}},
                "name": "web", "operation": "{operation}", "object": {{"metadata": "#
        );
        let exchange = webhook.exchange(endpoint);
        let response = exchange.refuse_too_long(beginning.as_bytes());
        assert_eq!(response.status(), StatusCode::OK);
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        serde_json::from_slice::<Value>(&body).unwrap()["response"].take()
    }

    #[tokio::test]
    async fn what_is_too_long_is_refused_where_anything_is() {
        for (endpoint, kind, operation, is_allowed) in [
            (Endpoint::MutatePod, "Pod", "CREATE", false),
            (Endpoint::ValidatePod, "Pod", "CREATE", false),
            (Endpoint::ValidatePod, "Pod", "UPDATE", false),
            (Endpoint::ValidatePod, "Pod", "DELETE", true),
            (Endpoint::ValidateNode, "Node", "UPDATE", false),
            (
                Endpoint::ValidatePolicy,
                "SecurityGroupPolicy",
                "CREATE",
                false,
            ),
            (Endpoint::ValidateWorkload, "Deployment", "CREATE", true),
            (Endpoint::ValidateNetwork, "Service", "CREATE", true),
            (Endpoint::ValidateNetwork, "NetworkPolicy", "UPDATE", true),
            (Endpoint::ValidateNetwork, "PolicyEndpoint", "UPDATE", false),
        ] {
            let told = format!(
                "{kind} \"web\": what the API server asks about it is longer than 3 MiB, so that \
                 it can't be looked at; make it smaller"
            );
            let response = answer_too_long(endpoint, kind, operation).await;
            assert_eq!(response["uid"], "1");
            assert_eq!(response["allowed"], is_allowed, "{response}");
            if is_allowed {
                assert_eq!(response["warnings"], json!([told]));
            } else {
                let status = &response["status"];
                assert_eq!(status["message"], told);
                assert_eq!(status["code"], 413);
                assert_eq!(status["reason"], "RequestEntityTooLarge");
            }
        }
    }
}
