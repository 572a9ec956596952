//! `/mutate-v1-pod`: what a pod lacks at its creation.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use tokio::time::Instant;

use super::messages;
use super::patch::encoded_patch;
use crate::api::endpoint::Endpoint;
use crate::api::names::NEVER_ENFORCED;
use crate::policy::service_accounts::ServiceAccountLabels;
use crate::policy::{Availability, Decision, NamespacePolicies, Pod, ServiceAccount, decide};
use crate::webhook::Webhook;
use crate::webhook::body::JsonBody;
use crate::webhook::cluster::Unknown;
use crate::webhook::review::{Answer, Refusal, Request};

/// How long a request waits for the API server, which itself waits 5 s for us (the time-out in
/// our manifests).
const PATIENCE: Duration = Duration::from_secs(4);

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

/// Whether a namespace wants no pod that has not been decided about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Enforcement {
    Off,
    On,
}

async fn answer(webhook: &Webhook, body: &[u8], enforcement: Enforcement) -> Response {
    let exchange = webhook.exchange(Endpoint::MutatePod);
    match exchange.read::<Pod<'_>>(body) {
        Ok(request) => {
            let answer = webhook.mutate(&request, enforcement).await;
            exchange.answer(request.uid.as_str(), &answer)
        }
        Err(response) => response,
    }
}

impl Webhook {
    async fn mutate(&self, request: &Request<'_, Pod<'_>>, enforcement: Enforcement) -> Answer {
        // A pod's containers and labels are looked at once, when it is created.
        if request.operation.as_str() != "CREATE" {
            return Answer::allowed(None, Vec::new());
        }
        let Some(pod) = &request.object else {
            let message = "the AdmissionReview is of a creation but has no object".to_owned();
            return Answer::denied(Refusal::bad_request(message), Vec::new());
        };
        match self.decide(request.namespace(), pod, enforcement).await {
            Ok(answer) => answer,
            Err(unknown) => {
                tracing::warn!(namespace = request.namespace(), %unknown, "no decision");
                let message = format!(
                    "{}: it can't be decided whether a SecurityGroupPolicy selects it: {unknown}. \
                     Try again; controllers do so by themselves",
                    messages::subject(pod)
                );
                Answer::denied(Refusal::unavailable(message), Vec::new())
            }
        }
    }

    /// Decides by what is known. Only that a pod is selected is said from memory: that none
    /// selects it, or that it is refused, is confirmed, for a policy may have been created or
    /// mended a moment ago, together with the pod.
    async fn decide(
        &self,
        namespace: &str,
        pod: &Pod<'_>,
        enforcement: Enforcement,
    ) -> Result<Answer, Unknown> {
        let cluster = &self.cluster;
        let known = cluster.known_policies(namespace).unwrap_or_default();
        let labels = cluster.known_service_account(namespace, pod.service_account_name());
        let is_account_known = labels.is_some() || !known.ask_for_service_account(pod.labels());
        if is_account_known {
            let labels = labels.unwrap_or_default();
            let account = ServiceAccount::Labels(&labels);
            let mut decision = decide(pod, &known, account, self.settings);
            let availability = self.ask_allocator(&decision).await;
            if let Some(availability) = &availability {
                decision.consider(availability, pod, self.settings);
            }
            if !decision.policies.is_empty() && decision.denial.is_none() {
                return Ok(self.answer_with(namespace, pod, &decision));
            }
        }
        match self.decide_by_asking(namespace, pod).await {
            Err(unknown) if self.may_start_unconfirmed(namespace, &known, enforcement) => {
                self.metrics.admission.unconfirmed.inc();
                tracing::warn!(namespace, %unknown, "pod let in without confirmation");
                Ok(Answer::allowed(None, Vec::new()))
            }
            decided => decided,
        }
    }

    /// Decides by what the API server says now.
    async fn decide_by_asking(&self, namespace: &str, pod: &Pod<'_>) -> Result<Answer, Unknown> {
        let (cluster, deadline) = (&self.cluster, Instant::now() + PATIENCE);
        let policies = cluster.ask_policies(namespace, deadline).await?;
        let policies = policies.unwrap_or_default();
        let labels = if policies.ask_for_service_account(pod.labels()) {
            let name = pod.service_account_name();
            cluster
                .ask_service_account(namespace, name, deadline)
                .await?
        } else {
            Some(ServiceAccountLabels::default())
        };
        let account = match &labels {
            Some(labels) => ServiceAccount::Labels(labels),
            None => ServiceAccount::Missing,
        };
        let mut decision = decide(pod, &policies, account, self.settings);
        let availability = self.ask_allocator(&decision).await;
        if let Some(availability) = &availability {
            decision.consider(availability, pod, self.settings);
        }
        Ok(self.answer_with(namespace, pod, &decision))
    }

    /// What there is of what the pod is to have, if it is to have anything and there is an
    /// allocator that says so.
    async fn ask_allocator(&self, decision: &Decision<'_>) -> Option<Arc<Availability>> {
        let allocator = self.allocator.as_ref()?;
        if !decision.gives_groups() {
            return None;
        }
        allocator.ask(&decision.group_ids).await
    }

    /// Whether a pod starts although the API server can't be asked: as the API server itself
    /// does it when we can't be asked, only where policies are does a pod have to wait.
    fn may_start_unconfirmed(
        &self,
        namespace: &str,
        known: &NamespacePolicies,
        enforcement: Enforcement,
    ) -> bool {
        NEVER_ENFORCED.contains(&namespace)
            || enforcement == Enforcement::Off
                && known.is_empty()
                && self.cluster.out_of_sync().is_empty()
    }

    fn answer_with(&self, namespace: &str, pod: &Pod<'_>, decision: &Decision<'_>) -> Answer {
        let warnings = messages::warnings(pod, decision);
        if let Some(denial) = &decision.denial {
            let message = messages::denial(pod, namespace, decision, denial);
            tracing::info!(namespace, message, "pod refused");
            return Answer::denied(Refusal::forbidden(message), warnings);
        }
        let patch = encoded_patch(pod, &decision.changes);
        tracing::debug!(
            namespace,
            pod = messages::subject(pod),
            policies = decision.policies.len(),
            changes = ?decision.changes,
            "pod let in"
        );
        Answer::allowed(patch, warnings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api_server::Feed;
    use crate::api_server::policies::policy_resource;
    use crate::policy::{MissingGroupPolicy, Settings};
    use crate::webhook::allocator::tests::{response, serve};
    use crate::webhook::cluster::Policies;
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use kube::api::DynamicObject;
    use serde_json::{Value, json};
    use std::convert::Infallible;

    /// A webhook whose API server gives this answer, or none, to whatever it is asked.
    fn webhook(answer: Option<Value>) -> Arc<Webhook> {
        Arc::new(Webhook::new(client(answer), Settings::default(), None))
    }

    fn client(answer: Option<Value>) -> kube::Client {
        let service = tower::service_fn(move |_: Request<kube::client::Body>| {
            let answer = answer.clone();
            async move {
                match answer {
                    Some(answer) => {
                        Ok::<_, Infallible>(Response::new(Body::from(answer.to_string())))
                    }
                    None => std::future::pending().await,
                }
            }
        });
        kube::Client::new(service, "default")
    }

    fn spec() -> Value {
        json!({
            "podSelector": {"matchLabels": {"app": "web"}},
            "securityGroups": {"groupIds": ["sg-0123abcd"]}
        })
    }

    /// Lets the watches bring a policy, if there is one.
    fn know(webhook: &Webhook, namespace: &str, has_policy: bool) {
        crate::webhook::cluster::ServiceAccounts(&webhook.cluster).reset(Default::default());
        Policies(&webhook.cluster).reset(Default::default());
        if has_policy {
            let policy = DynamicObject::new("database", &policy_resource()).within(namespace);
            Policies(&webhook.cluster).apply(policy.data(json!({ "spec": spec() })));
        }
    }

    async fn ask(webhook: &Arc<Webhook>, namespace: &str, labels: Value, grace: i64) -> Value {
        ask_at(webhook, namespace, labels, grace, Enforcement::Off).await
    }

    async fn ask_at(
        webhook: &Arc<Webhook>,
        namespace: &str,
        labels: Value,
        grace: i64,
        enforcement: Enforcement,
    ) -> Value {
        let review = json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": "1",
                "kind": {"group": "", "version": "v1", "kind": "Pod"},
                "resource": {"group": "", "version": "v1", "resource": "pods"},
                "namespace": namespace,
                "operation": "CREATE",
                "object": {
                    "metadata": {"name": "web", "labels": labels},
                    "spec": {
                        "containers": [{"name": "web"}],
                        "terminationGracePeriodSeconds": grace
                    }
                }
            }
        });
        let response = answer(webhook, review.to_string().as_bytes(), enforcement).await;
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        serde_json::from_slice::<Value>(&body).unwrap()["response"].take()
    }

    #[tokio::test(start_paused = true)]
    async fn silent_api_server_keeps_pods_waiting_only_where_policies_are() {
        use Enforcement::{Off, On};
        for (namespace, has_policy, enforcement, allowed) in [
            ("shop", false, Off, true),
            ("shop", true, Off, false),
            ("shop", false, On, false),
            ("kube-system", true, On, true),
            ("sgp-system", true, On, true),
        ] {
            let webhook = webhook(None);
            know(&webhook, namespace, has_policy);
            let begin = Instant::now();
            let labels = json!({"app": "other"});
            let response = ask_at(&webhook, namespace, labels, 30, enforcement).await;

            let case = format!("{namespace} {has_policy} {enforcement:?}: {response:#}");
            assert_eq!(response["allowed"], allowed, "{case}");
            assert!(begin.elapsed() <= PATIENCE, "{case}");
            let unconfirmed = webhook.metrics.admission.unconfirmed.get();
            assert_eq!(unconfirmed, u64::from(allowed), "{case}");
            if !allowed {
                assert_eq!(response["status"]["code"], 503);
                let message = response["status"]["message"].as_str().unwrap();
                assert!(
                    message.contains("did not answer in time. Try again"),
                    "{message}"
                );
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pod_is_not_let_in_unconfirmed_before_the_watches_are_in_sync() {
        let response = ask(&webhook(None), "shop", json!({}), 30).await;
        assert_eq!(response["status"]["code"], 503);
    }

    #[tokio::test(start_paused = true)]
    async fn selected_pod_waits_for_nobody() {
        let webhook = webhook(None);
        know(&webhook, "shop", true);
        let begin = Instant::now();
        let response = ask(&webhook, "shop", json!({"app": "web"}), 30).await;
        assert!(response["patch"].is_string(), "{response:#}");
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn policy_that_the_watch_has_not_brought_yet_counts() {
        let list = json!({
            "metadata": {},
            "items": [{"metadata": {"name": "database"}, "spec": spec()}]
        });
        let webhook = webhook(Some(list));
        know(&webhook, "shop", false);
        let response = ask(&webhook, "shop", json!({"app": "web"}), 30).await;
        assert!(response["patch"].is_string(), "{response:#}");
    }

    #[tokio::test]
    async fn pod_is_not_refused_by_a_policy_that_is_gone() {
        let webhook = webhook(Some(json!({"metadata": {}, "items": []})));
        know(&webhook, "shop", true);
        let response = ask(&webhook, "shop", json!({"app": "web"}), 0).await;
        assert_eq!(response["allowed"], true, "{response:#}");
        assert!(response.get("patch").is_none());
    }

    #[tokio::test]
    async fn pod_is_refused_for_a_missing_group_only_if_its_policy_still_names_it() {
        let settings = Settings {
            missing_groups: MissingGroupPolicy::Deny,
            ..Settings::default()
        };
        let says = json!({
            "missing": ["sg-0123abcd"], "elsewhere": [], "vpc_id": null, "free": null, "nodes": 0
        });
        for (stored, allowed) in [("sg-0123abcd", false), ("sg-0000000b", true)] {
            let mut spec = spec();
            spec["securityGroups"]["groupIds"] = json!([stored]);
            let list = json!({
                "metadata": {},
                "items": [{"metadata": {"name": "database"}, "spec": spec}]
            });
            // Until it answers in time, which it does not on a machine that is very busy.
            let answered = async || loop {
                let folder = tempfile::tempdir().unwrap();
                let socket = folder.path().join("socket");
                let listener = tokio::net::UnixListener::bind(&socket).unwrap();
                serve(listener, response("200 OK", &says.to_string()));
                let client = client(Some(list.clone()));
                let webhook = Arc::new(Webhook::new(client, settings, Some(socket)));
                know(&webhook, "shop", true);
                let answer = ask(&webhook, "shop", json!({"app": "web"}), 30).await;
                let unselected = ask(&webhook, "shop", json!({"app": "other"}), 30).await;
                assert_eq!(unselected["allowed"], true);
                let lookups = &webhook.metrics.allocator;
                if lookups.unanswered.get() == 0 {
                    assert_eq!(lookups.answered.get(), 2, "known and confirmed");
                    return answer;
                }
            };
            let in_time = tokio::time::timeout(Duration::from_secs(60), answered()).await;
            let answer = in_time.expect("the allocator answers");
            assert_eq!(answer["allowed"], allowed, "{answer:#}");
            if !allowed {
                let message = "pod \"web\": security group sg-0123abcd of SecurityGroupPolicy \
                    \"database\" does not exist, and no interface can be had with it; name one \
                    that exists in spec.securityGroups.groupIds";
                assert_eq!(answer["status"]["message"], message);
                assert_eq!(answer["status"]["code"], 403);
                assert!(answer.get("warnings").is_none(), "it is said once");
            }
        }
    }
}
