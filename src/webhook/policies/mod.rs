//! `/validate-v1beta1-securitygrouppolicy`: policies that can work.

mod messages;

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use serde_json::Value;

use super::Webhook;
use super::body::JsonBody;
use super::review::{Answer, Refusal, Request};
use crate::api::endpoint::Endpoint;
use crate::policy::Policy;
use crate::policy::pod::Text;

/// Answers the API server.
pub async fn validate_policy(
    State(webhook): State<Arc<Webhook>>,
    JsonBody(body): JsonBody,
) -> Response {
    let exchange = webhook.exchange(Endpoint::ValidatePolicy);
    match exchange.read::<WrittenPolicy<'_>>(&body) {
        Ok(request) => {
            let answer = webhook.validate_policy(&request).await;
            exchange.answer(request.uid.as_str(), &answer)
        }
        Err(response) => response,
    }
}

/// A policy as it was written.
#[derive(Debug, Default, Deserialize)]
struct WrittenPolicy<'a> {
    #[serde(borrow, default)]
    metadata: Metadata<'a>,
    #[serde(default)]
    spec: Value,
}

#[derive(Debug, Default, Deserialize)]
struct Metadata<'a> {
    #[serde(borrow)]
    name: Option<Text<'a>>,
}

impl Webhook {
    async fn validate_policy(&self, request: &Request<'_, WrittenPolicy<'_>>) -> Answer {
        if !matches!(request.operation.as_str(), "CREATE" | "UPDATE") {
            return Answer::allowed(None, Vec::new());
        }
        let Some(policy) = &request.object else {
            let message = "the AdmissionReview has no object".to_owned();
            return Answer::denied(Refusal::bad_request(message), Vec::new());
        };
        // Whoever labels an old policy, or lets it go, did not make its mistakes.
        let old = request.old_object.as_ref();
        if old.is_some_and(|old| old.spec == policy.spec) {
            return Answer::allowed(None, Vec::new());
        }
        let name = policy.metadata.name.as_ref().map_or("", Text::as_str);
        match Policy::check(name, &policy.spec, self.settings.groups_per_interface) {
            Ok(policy) => {
                let warnings = self.warnings_of_policy(request.namespace(), &policy).await;
                Answer::allowed(None, warnings)
            }
            Err(problems) => {
                let refusal =
                    Refusal::invalid(&request.kind, name, &messages::field_errors(&problems));
                let namespace = request.namespace();
                tracing::info!(namespace, message = refusal.message, "policy refused");
                Answer::denied(refusal, Vec::new())
            }
        }
    }

    async fn warnings_of_policy(&self, namespace: &str, policy: &Policy) -> Vec<String> {
        let availability = match &self.allocator {
            Some(allocator) => {
                let ids: Vec<_> = policy.group_ids.iter().collect();
                allocator.ask_for_author(&ids).await
            }
            None => None,
        };
        messages::warnings(namespace, policy, availability.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Settings;
    use axum::body::to_bytes;
    use axum::http::Request;
    use serde_json::json;

    async fn ask(operation: &str, object: Value, old: Value) -> Value {
        let service = tower::service_fn(async |_: Request<kube::client::Body>| {
            Err::<Response, _>("nobody is asked")
        });
        let client = kube::Client::new(service, "default");
        let webhook = Arc::new(Webhook::new(client, Settings::default(), None));
        let group = "vpcresources.k8s.aws";
        let review = json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": "1",
                "kind": {"group": group, "version": "v1beta1", "kind": "SecurityGroupPolicy"},
                "resource": {
                    "group": group, "version": "v1beta1", "resource": "securitygrouppolicies"
                },
                "namespace": "shop",
                "operation": operation,
                "object": object,
                "oldObject": old
            }
        });
        let body = JsonBody(review.to_string().into());
        let response = validate_policy(State(webhook), body).await;
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        serde_json::from_slice::<Value>(&body).unwrap()["response"].take()
    }

    fn policy(spec: Value) -> Value {
        json!({"metadata": {"name": "database"}, "spec": spec})
    }

    #[tokio::test]
    async fn only_who_changes_a_policy_to_something_wrong_is_refused() {
        let good = json!({"podSelector": {}, "securityGroups": {"groupIds": ["sg-0123abcd"]}});
        let bad = json!({"podSelector": {}});
        let other_bad = json!({"securityGroups": {"groupIds": ["sg-0123abcd"]}});
        let unreadable = json!({"podSelector": 7});
        for (operation, new, old, allowed) in [
            ("CREATE", Some(&good), None, true),
            ("CREATE", Some(&bad), None, false),
            ("CREATE", Some(&unreadable), None, false),
            ("UPDATE", Some(&bad), Some(&good), false),
            ("UPDATE", Some(&good), Some(&bad), true),
            ("UPDATE", Some(&bad), Some(&bad), true),
            ("UPDATE", Some(&unreadable), Some(&unreadable), true),
            ("UPDATE", Some(&other_bad), Some(&bad), false),
            ("DELETE", None, Some(&bad), true),
            ("CREATE", None, None, false),
        ] {
            let of = |spec: Option<&Value>| spec.map_or(Value::Null, |spec| policy(spec.clone()));
            let response = ask(operation, of(new), of(old)).await;
            let case = format!("{operation} {new:?} {old:?}: {response:#}");
            assert_eq!(response["allowed"], allowed, "{case}");
        }
    }

    #[tokio::test]
    async fn refusal_is_what_the_api_server_says_of_its_own_objects() {
        let spec = json!({"podSelector": {}, "securityGroups": {"groupIds": ["web", "web"]}});
        let response = ask("CREATE", policy(spec), Value::Null).await;
        let (first, second) = (
            "Invalid value: \"web\": must be the id of a security group: sg- and 8 or 17 of 0-9 \
             and a-f",
            "Duplicate value: \"web\"",
        );
        let path = "spec.securityGroups.groupIds";
        assert_eq!(
            response["status"],
            json!({
                "code": 422,
                "reason": "Invalid",
                "message": format!(
                    "SecurityGroupPolicy.vpcresources.k8s.aws \"database\" is invalid: \
                     [{path}[0]: {first}, {path}[1]: {second}]"
                ),
                "details": {
                    "name": "database",
                    "group": "vpcresources.k8s.aws",
                    "kind": "SecurityGroupPolicy",
                    "causes": [
                        {
                            "reason": "FieldValueInvalid", "message": first,
                            "field": format!("{path}[0]")
                        },
                        {
                            "reason": "FieldValueDuplicate", "message": second,
                            "field": format!("{path}[1]")
                        }
                    ]
                }
            })
        );
    }
}
