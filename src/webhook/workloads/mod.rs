//! `/validate-workload`: what will become of the pods of a template; warnings only.
//!
//! Nothing here refuses a workload, and nothing that goes wrong here does.

mod messages;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::Webhook;
use super::body::JsonBody;
use super::review::{Answer, Request};
use crate::api::endpoint::Endpoint;
use crate::policy::pod::Text;
use crate::policy::service_accounts::ServiceAccountLabels;
use crate::policy::{NamespacePolicies, Pod, ServiceAccount, decide};

/// How long a request waits for the API server to say whether a ServiceAccount exists.
const PATIENCE: Duration = Duration::from_secs(2);

/// Answers the API server.
pub async fn validate_workload(
    State(webhook): State<Arc<Webhook>>,
    JsonBody(body): JsonBody,
) -> Response {
    let exchange = webhook.exchange(Endpoint::ValidateWorkload);
    match exchange.read::<Workload<'_>>(&body) {
        Ok(request) => {
            let warnings = webhook.warnings_of_workload(&request).await;
            exchange.answer(request.uid.as_str(), &Answer::allowed(None, warnings))
        }
        Err(response) => response,
    }
}

/// Something that makes pods from a template.
#[derive(Debug, Default, Deserialize)]
struct Workload<'a> {
    #[serde(borrow, default)]
    metadata: Metadata<'a>,
    /// Kept whole, for it is the comparison with the one before that counts.
    #[serde(default)]
    spec: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    #[serde(borrow)]
    name: Option<Text<'a>>,
    owner_references: Option<Vec<OwnerReference>>,
}

#[derive(Debug, Deserialize)]
struct OwnerReference {
    controller: Option<bool>,
}

impl Workload<'_> {
    /// The template of the pods, which a CronJob has in its template of Jobs.
    fn template(&self) -> Option<&Value> {
        let spec = match self.spec.get("jobTemplate") {
            Some(job) => job.get("spec")?,
            None => &self.spec,
        };
        spec.get("template")
    }

    /// Whether it was made by another workload, whose author has been told already.
    fn has_controller(&self) -> bool {
        let owners = self.metadata.owner_references.iter().flatten();
        owners
            .into_iter()
            .any(|owner| owner.controller == Some(true))
    }
}

impl Webhook {
    async fn warnings_of_workload(&self, request: &Request<'_, Workload<'_>>) -> Vec<String> {
        let is_written = matches!(request.operation.as_str(), "CREATE" | "UPDATE");
        let Some(workload) = request.object.as_ref().filter(|_| is_written) else {
            return Vec::new();
        };
        let Some(template) = workload.template().filter(|_| !workload.has_controller()) else {
            return Vec::new();
        };
        let old = request.old_object.as_ref().and_then(Workload::template);
        if old == Some(template) {
            return Vec::new();
        }
        // What a policy that comes later means for these pods, they are told themselves.
        let Some(policies) = self.cluster.known_policies(request.namespace()) else {
            return Vec::new();
        };
        let pod = match Pod::deserialize(template) {
            Ok(pod) => pod,
            Err(error) => {
                let kind = request.kind.kind.as_str();
                tracing::warn!(namespace = request.namespace(), kind, %error,
                    "pod template that can't be read");
                return Vec::new();
            }
        };
        let name = workload.metadata.name.as_ref().map_or("", Text::as_str);
        let subject = messages::subject(request.kind.kind.as_str(), name);
        self.warnings_of_template(request.namespace(), &subject, &pod, &policies)
            .await
    }

    async fn warnings_of_template(
        &self,
        namespace: &str,
        subject: &str,
        pod: &Pod<'_>,
        policies: &NamespacePolicies,
    ) -> Vec<String> {
        let name = pod.service_account_name();
        let labels = if policies.ask_for_service_account(pod.labels()) {
            let known = self.cluster.known_service_account(namespace, name);
            match known {
                Some(labels) => Some(labels),
                None => {
                    let deadline = Instant::now() + PATIENCE;
                    let asked = self.cluster.ask_service_account(namespace, name, deadline);
                    match asked.await {
                        Ok(labels) => labels,
                        Err(unknown) => {
                            tracing::info!(namespace, %unknown, "workload let in without a look");
                            return Vec::new();
                        }
                    }
                }
            }
        } else {
            Some(ServiceAccountLabels::default())
        };
        let account = match &labels {
            Some(labels) => ServiceAccount::Labels(labels),
            None => ServiceAccount::Missing,
        };
        let mut decision = decide(pod, policies, account, self.settings);
        let availability = match &self.allocator {
            Some(allocator) if decision.gives_groups() => {
                allocator.ask_for_author(&decision.group_ids).await
            }
            _ => None,
        };
        if let Some(availability) = &availability {
            decision.consider(availability, pod, self.settings);
        }
        messages::warnings(namespace, subject, pod, &decision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api_server::Feed;
    use crate::api_server::policies::policy_resource;
    use crate::policy::Settings;
    use crate::webhook::cluster::{Policies, ServiceAccounts};
    use axum::body::{Body, to_bytes};
    use axum::http::{Request, StatusCode};
    use kube::api::DynamicObject;
    use serde_json::json;
    use std::convert::Infallible;

    /// A webhook that knows one policy of the namespace `shop`, whose API server has nothing
    /// of what it is asked for, or does not answer.
    fn webhook(selectors: Value, is_silent: bool) -> Arc<Webhook> {
        let service = tower::service_fn(move |_: Request<kube::client::Body>| async move {
            if is_silent {
                return std::future::pending().await;
            }
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
                "reason": "NotFound", "message": "there is none"
            });
            let response = Response::builder().status(StatusCode::NOT_FOUND);
            Ok::<_, Infallible>(response.body(Body::from(status.to_string())).unwrap())
        });
        let client = kube::Client::new(service, "default");
        let webhook = Arc::new(Webhook::new(client, Settings::default(), None));
        ServiceAccounts(&webhook.cluster).reset(Default::default());
        Policies(&webhook.cluster).reset(Default::default());
        let policy = DynamicObject::new("all", &policy_resource()).within("shop");
        let mut spec = selectors;
        spec["securityGroups"] = json!({"groupIds": ["sg-0123abcd"]});
        Policies(&webhook.cluster).apply(policy.data(json!({ "spec": spec })));
        webhook
    }

    fn everything() -> Arc<Webhook> {
        webhook(json!({"podSelector": {}}), false)
    }

    async fn ask(webhook: &Arc<Webhook>, kind: &str, object: &Value, old: &Value) -> Vec<String> {
        let taken = Endpoint::ValidateWorkload.takes().iter();
        let taken = taken.clone().find(|taken| taken.kind == kind).unwrap();
        let (group, version) = taken.api_version.split_once('/').unwrap();
        ask_raw(
            webhook,
            &json!({
                "uid": "1",
                "kind": {"group": group, "version": version, "kind": kind},
                "resource": {"group": group, "version": version, "resource": taken.resource},
                "namespace": "shop",
                "operation": if old.is_null() { "CREATE" } else { "UPDATE" },
                "object": object,
                "oldObject": old
            }),
        )
        .await
    }

    async fn ask_raw(webhook: &Arc<Webhook>, request: &Value) -> Vec<String> {
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request
        });
        let body = JsonBody(review.to_string().into());
        let response = validate_workload(State(webhook.clone()), body).await;
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let response = serde_json::from_slice::<Value>(&body).unwrap()["response"].take();
        assert_eq!(response["allowed"], true, "{response:#}");
        let warnings = response.get("warnings").cloned().unwrap_or(json!([]));
        serde_json::from_value(warnings).unwrap()
    }

    /// The spec of a workload of this kind whose pods have a spec like this.
    fn workload(kind: &str, pod: Value) -> Value {
        let mut spec = pod;
        spec["containers"] = json!([{"name": "web"}]);
        let mut spec = json!({"template": {
            "metadata": {"creationTimestamp": null, "labels": {"app": "web"}},
            "spec": spec
        }});
        if kind == "CronJob" {
            spec = json!({"schedule": "@daily", "jobTemplate": {"spec": spec}});
        }
        json!({"metadata": {"name": "web"}, "spec": spec})
    }

    #[tokio::test]
    async fn every_kind_of_workload_is_told_what_its_pods_would_be() {
        for taken in Endpoint::ValidateWorkload.takes() {
            let kind = taken.kind;
            let hasty = workload(kind, json!({"terminationGracePeriodSeconds": 0}));
            assert_eq!(
                ask(&everything(), kind, &hasty, &Value::Null).await,
                [format!(
                    "each pod of {kind} \"web\" will be refused: SecurityGroupPolicy \"all\" gives \
                     it security groups, but spec.terminationGracePeriodSeconds is 0; write 1 or \
                     more, 30 is the default"
                )]
            );
            let fine = workload(kind, json!({"terminationGracePeriodSeconds": 30}));
            assert!(
                ask(&everything(), kind, &fine, &Value::Null)
                    .await
                    .is_empty()
            );
        }
    }

    #[tokio::test]
    async fn only_a_new_template_of_an_author_is_looked_at() {
        for kind in ["Deployment", "CronJob"] {
            let on_host = workload(kind, json!({"hostNetwork": true}));
            let other = workload(kind, json!({"hostNetwork": true, "nodeName": "a"}));
            let mut scaled = on_host.clone();
            scaled["spec"]["replicas"] = json!(7);
            let owned = |controller: Value| {
                let mut owned = on_host.clone();
                owned["metadata"]["ownerReferences"] = json!([{"controller": controller}]);
                owned
            };
            for (object, old, told) in [
                (&on_host, &Value::Null, 1),
                (&scaled, &on_host, 0),
                (&on_host, &other, 1),
                (&owned(json!(true)), &Value::Null, 0),
                (&owned(json!(false)), &Value::Null, 1),
                (&owned(Value::Null), &Value::Null, 1),
                (&json!({"metadata": {"name": "web"}}), &Value::Null, 0),
                (
                    &json!({"metadata": {}, "spec": {"jobTemplate": {}}}),
                    &Value::Null,
                    0,
                ),
            ] {
                let warnings = ask(&everything(), kind, object, old).await;
                assert_eq!(
                    warnings.len(),
                    told,
                    "{kind} {object:#} {old:#} {warnings:#?}"
                );
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn service_account_is_missing_only_if_the_api_server_says_so() {
        let pod = workload("Deployment", json!({"serviceAccountName": "reader"}));
        for (is_silent, told) in [(false, 1), (true, 0)] {
            let webhook = webhook(json!({"serviceAccountSelector": {}}), is_silent);
            let begin = Instant::now();
            let warnings = ask(&webhook, "Deployment", &pod, &Value::Null).await;
            assert_eq!(warnings.len(), told, "{warnings:#?}");
            assert!(begin.elapsed() <= PATIENCE);
            for warning in warnings {
                assert_eq!(
                    warning,
                    "each pod of Deployment \"web\" will be refused as long as namespace \"shop\" \
                     has no ServiceAccount \"reader\", which spec.serviceAccountName names: \
                     SecurityGroupPolicy \"all\" selects pods by its labels"
                );
            }
        }
    }

    #[tokio::test]
    async fn nothing_is_refused_whatever_comes() {
        let strange_pod = json!({"metadata": {"name": "web"}, "spec": {"template": {"spec": 7}}});
        let told = ask(&everything(), "Deployment", &strange_pod, &Value::Null).await;
        assert!(told.is_empty());

        let of = |kind: &str, object: Value| {
            json!({
                "uid": "1",
                "kind": {"group": "apps", "version": "v1", "kind": kind},
                "resource": {"group": "apps", "version": "v1", "resource": "deployments"},
                "namespace": "shop",
                "operation": "CREATE",
                "object": object
            })
        };
        for (request, told) in [
            (of("Deployment", json!(7)), "can't be read"),
            (
                of("Rollout", json!({})),
                "this path takes kind Deployment of apps/v1",
            ),
        ] {
            let warnings = ask_raw(&everything(), &request).await;
            assert!(warnings[0].contains(told), "{warnings:#?}");
        }
    }
}
