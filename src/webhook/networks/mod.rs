//! `/validate-network`: Services, NetworkPolicies and PolicyEndpoints.
//!
//! What is said of them is found by plain functions over the objects. Only of PolicyEndpoints
//! is anything refused; of the others an answer is never more than a warning, so that one that
//! can't be read, or decided about in time, is let in without a word.

pub mod network_policies;
pub mod policy_endpoints;
pub mod services;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use k8s_openapi::api::core::v1::Service;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use self::policy_endpoints::Edit;
use super::Webhook;
use super::body::JsonBody;
use super::review::{Answer, Refusal, Request};
use super::warnings::within_limits;
use crate::api::endpoint::Endpoint;

/// How long a Service waits for the API server, which has its own questions to answer
/// meanwhile: a warning is not worth more.
const PATIENCE: Duration = Duration::from_secs(1);

/// Answers the API server.
pub async fn validate_network(
    State(webhook): State<Arc<Webhook>>,
    JsonBody(body): JsonBody,
) -> Response {
    let exchange = webhook.exchange(Endpoint::ValidateNetwork);
    match exchange.read::<Value>(&body) {
        Ok(request) => {
            let answer = webhook.validate_network(&request).await;
            exchange.answer(request.uid.as_str(), &answer)
        }
        Err(response) => response,
    }
}

impl Webhook {
    async fn validate_network(&self, request: &Request<'_, Value>) -> Answer {
        let warnings = match (request.kind.kind.as_str(), &request.object) {
            ("PolicyEndpoint", _) => return self.validate_policy_endpoint(request),
            ("NetworkPolicy", Some(object)) => {
                read(request, object).map(|policy| network_policies::warnings(&policy))
            }
            ("Service", Some(object)) => match read(request, object) {
                Some(service) => Some(self.service_warnings(request.namespace(), &service).await),
                None => None,
            },
            _ => None,
        };
        Answer::allowed(None, within_limits(warnings.unwrap_or_default()))
    }

    fn validate_policy_endpoint(&self, request: &Request<'_, Value>) -> Answer {
        let edit = Edit {
            user: request.user_info.username.as_str(),
            operation: request.operation.as_str(),
            old: request.old_object.as_ref(),
            new: request.object.as_ref(),
        };
        match edit.refusal(&self.editors.policy_endpoints) {
            None => Answer::allowed(None, Vec::new()),
            Some(message) => {
                tracing::info!(namespace = request.namespace(), message, "edit refused");
                Answer::denied(Refusal::forbidden(message), Vec::new())
            }
        }
    }

    async fn service_warnings(&self, namespace: &str, service: &Service) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let node_local = async {
            let service = services::node_local(service)?;
            let policies = match self.cluster.ask_policies(namespace, deadline).await {
                Ok(policies) => policies,
                Err(unknown) => {
                    tracing::info!(namespace, %unknown, "a Service is checked by what is known");
                    self.cluster.known_policies(namespace)
                }
            };
            service.warning(policies?.as_ref())
        };
        let translating = async {
            let service = services::translating(service)?;
            match self.cluster.ask_network_policies(namespace, deadline).await {
                Ok(policies) => service.warning(&policies),
                Err(unknown) => {
                    tracing::info!(namespace, %unknown, "a Service's ports are not checked");
                    None
                }
            }
        };
        let (node_local, translating) = tokio::join!(node_local, translating);
        node_local.into_iter().chain(translating).collect()
    }
}

/// The object as its type; `None`, with a line in the log, if it is not of that shape.
fn read<T: for<'de> Deserialize<'de>>(request: &Request<'_, Value>, object: &Value) -> Option<T> {
    T::deserialize(object)
        .inspect_err(|error| {
            tracing::warn!(
                kind = request.kind.kind.as_str(),
                namespace = request.namespace(),
                name = request.name(),
                %error,
                "let in unread"
            );
        })
        .ok()
}

/// The objects by name; the first three if there are many.
fn quoted_names(kind: &str, kinds: &str, names: &[&str]) -> String {
    const NAMED: usize = 3;
    let kind = if names.len() == 1 { kind } else { kinds };
    let named = names.iter().take(NAMED).map(|name| format!("{name:?}"));
    let named = named.collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => format!("{kind} {named}"),
        more => format!("{kind} {named} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Settings;
    use axum::body::{Body, to_bytes};
    use kube::Client;
    use serde_json::json;
    use std::convert::Infallible;

    /// A webhook whose API server gives these answers by the end of the path it is asked at,
    /// and none at others.
    fn webhook(answers: &[(&'static str, Value)]) -> Arc<Webhook> {
        let answers = answers.to_vec();
        let service = tower::service_fn(move |request: axum::http::Request<kube::client::Body>| {
            let path = request.uri().path();
            let answer = answers.iter().find(|(end, _)| path.ends_with(end));
            let answer = answer.map(|(_, answer)| Body::from(answer.to_string()));
            async {
                match answer {
                    Some(body) => Ok::<_, Infallible>(Response::new(body)),
                    None => std::future::pending().await,
                }
            }
        });
        let client = Client::new(service, "default");
        Arc::new(Webhook::new(client, Settings::default(), None))
    }

    async fn ask(
        webhook: &Arc<Webhook>,
        resource: (&str, &str, &str, &str),
        object: Value,
    ) -> Value {
        let (group, version, kind, resource) = resource;
        let review = json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": "1",
                "kind": {"group": group, "version": version, "kind": kind},
                "resource": {"group": group, "version": version, "resource": resource},
                "namespace": "shop",
                "operation": "CREATE",
                "userInfo": {"username": "alice"},
                "object": object
            }
        });
        let body = JsonBody(review.to_string().into());
        let response = validate_network(State(webhook.clone()), body).await;
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let review: Value = serde_json::from_slice(&body).unwrap();
        review["response"].clone()
    }

    const SERVICES: (&str, &str, &str, &str) = ("", "v1", "Service", "services");
    const NETWORK_POLICIES: (&str, &str, &str, &str) = (
        "networking.k8s.io",
        "v1",
        "NetworkPolicy",
        "networkpolicies",
    );
    const POLICY_ENDPOINTS: (&str, &str, &str, &str) = (
        "networking.k8s.aws",
        "v1alpha1",
        "PolicyEndpoint",
        "policyendpoints",
    );

    fn service() -> Value {
        json!({
            "metadata": {"name": "web"},
            "spec": {
                "type": "NodePort", "externalTrafficPolicy": "Local", "selector": {"app": "web"},
                "ports": [{"port": 80, "targetPort": 8080}]
            }
        })
    }

    fn list(name: &str, spec: Value) -> Value {
        let metadata = json!({"name": name, "namespace": "shop"});
        json!({"metadata": {}, "items": [{"metadata": metadata, "spec": spec}]})
    }

    fn groups() -> Value {
        let spec = json!({"podSelector": {}, "securityGroups": {"groupIds": ["sg-0123abcd"]}});
        list("all", spec)
    }

    #[tokio::test(start_paused = true)]
    async fn service_is_let_in_with_as_many_warnings_as_can_be_had_in_time() {
        let limits = list("limits", json!({"podSelector": {}}));
        for (answers, warnings) in [
            (
                vec![
                    ("securitygrouppolicies", groups()),
                    ("networkpolicies", limits.clone()),
                ],
                2,
            ),
            (vec![("securitygrouppolicies", groups())], 1),
            (vec![("networkpolicies", limits)], 1),
            (vec![], 0),
        ] {
            let begin = Instant::now();
            let response = ask(&webhook(&answers), SERVICES, service()).await;
            assert!(begin.elapsed() <= PATIENCE);
            assert_eq!(response["allowed"], true);
            let told = response["warnings"].as_array().map_or(0, Vec::len);
            assert_eq!(told, warnings, "{response}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_read_is_let_in_except_policy_endpoints() {
        let webhook = webhook(&[]);
        for object in [
            json!({}),
            json!({"spec": 7}),
            json!([]),
            json!(7),
            Value::Null,
        ] {
            for (resource, allowed) in [
                (SERVICES, true),
                (NETWORK_POLICIES, true),
                (POLICY_ENDPOINTS, false),
            ] {
                let response = ask(&webhook, resource, object.clone()).await;
                assert_eq!(response["allowed"], allowed, "{resource:?} {object}");
                assert_eq!(response["warnings"], Value::Null);
            }
        }
    }

    #[test]
    fn many_objects_are_counted_rather_than_listed() {
        let names = ["a", "b", "c", "d", "e"];
        for (count, text) in [
            (1, r#"Pet "a""#),
            (2, r#"Pets "a", "b""#),
            (3, r#"Pets "a", "b", "c""#),
            (5, r#"Pets "a", "b", "c" and 2 more"#),
        ] {
            assert_eq!(quoted_names("Pet", "Pets", &names[..count]), text);
        }
    }
}
