//! `/mutate-v1-pod`: what a pod lacks at its creation.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;

use super::Webhook;
use super::body::JsonBody;
use super::cluster::Unknown;
use super::messages;
use super::patch::encoded_patch;
use super::review::{self, Answer, Refusal, Request, Unreadable};
use crate::api::names::NEVER_ENFORCED;
use crate::policy::service_accounts::ServiceAccountLabels;
use crate::policy::{Availability, Decision, NamespacePolicies, Pod, ServiceAccount, decide};

/// How long a request waits for the API server, which itself waits 5 s for us (the time-out in
/// our manifests).
const PATIENCE: Duration = Duration::from_secs(4);

/// Answers one AdmissionReview.
pub async fn mutate_pod(State(webhook): State<Arc<Webhook>>, JsonBody(body): JsonBody) -> Response {
    let begin = std::time::Instant::now();
    let response = match review::read::<Pod<'_>>(&body) {
        Ok(request) => {
            let answer = webhook.answer(&request).await;
            answer.for_uid(request.uid.as_str())
        }
        Err(unreadable) => webhook.refuse_unreadable(&unreadable),
    };
    webhook
        .metrics
        .admission
        .duration
        .observe(begin.elapsed().as_secs_f64());
    response
}

impl Webhook {
    async fn answer(&self, request: &Request<'_, Pod<'_>>) -> Answer {
        let metrics = &self.metrics.admission;
        if let Err(refusal) = expect_pod(request) {
            metrics.failed.inc();
            tracing::warn!(
                message = refusal.message,
                "request that is not for this path"
            );
            return Answer::denied(refusal, Vec::new());
        }
        // A pod's containers and labels are looked at once, when it is created.
        if request.operation.as_str() != "CREATE" {
            metrics.unchanged.inc();
            return Answer::allowed(None, Vec::new());
        }
        let Some(pod) = &request.object else {
            metrics.failed.inc();
            let message = "the AdmissionReview is of a creation but has no object".to_owned();
            return Answer::denied(Refusal::bad_request(message), Vec::new());
        };
        match self.decide(request.namespace(), pod).await {
            Ok(answer) => answer,
            Err(unknown) => {
                metrics.failed.inc();
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
    async fn decide(&self, namespace: &str, pod: &Pod<'_>) -> Result<Answer, Unknown> {
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
            Err(unknown) if self.may_start_unconfirmed(namespace, &known) => {
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
    fn may_start_unconfirmed(&self, namespace: &str, known: &NamespacePolicies) -> bool {
        let cluster = &self.cluster;
        NEVER_ENFORCED.contains(&namespace)
            || known.is_empty()
                && cluster.out_of_sync().is_empty()
                && !cluster.is_enforced(namespace)
    }

    fn answer_with(&self, namespace: &str, pod: &Pod<'_>, decision: &Decision<'_>) -> Answer {
        let metrics = &self.metrics.admission;
        let warnings = messages::warnings(pod, decision);
        if let Some(denial) = &decision.denial {
            let message = messages::denial(pod, namespace, decision, denial);
            metrics.denied.inc();
            tracing::info!(namespace, message, "pod refused");
            return Answer::denied(Refusal::forbidden(message), warnings);
        }
        let patch = encoded_patch(pod, &decision.changes);
        let counter = if patch.is_none() {
            &metrics.unchanged
        } else {
            &metrics.patched
        };
        counter.inc();
        tracing::debug!(
            namespace,
            pod = messages::subject(pod),
            policies = decision.policies.len(),
            changes = ?decision.changes,
            "pod let in"
        );
        Answer::allowed(patch, warnings)
    }

    fn refuse_unreadable(&self, unreadable: &Unreadable) -> Response {
        self.metrics.admission.failed.inc();
        tracing::warn!(%unreadable, "unreadable request");
        match unreadable {
            Unreadable::Review(_) => {
                (StatusCode::BAD_REQUEST, unreadable.to_string()).into_response()
            }
            Unreadable::Object { uid, .. } => {
                let refusal = Refusal::bad_request(unreadable.to_string());
                Answer::denied(refusal, Vec::new()).for_uid(uid)
            }
        }
    }
}

/// Refuses what a wrong webhook configuration sends here.
fn expect_pod(request: &Request<'_, Pod<'_>>) -> Result<(), Refusal> {
    let (kind, resource) = (&request.kind, &request.resource);
    let is_pod = kind.group.as_str().is_empty()
        && kind.version.as_str() == "v1"
        && kind.kind.as_str() == "Pod"
        && resource.group.as_str().is_empty()
        && resource.version.as_str() == "v1"
        && resource.resource.as_str() == "pods"
        && request.sub_resource().is_empty();
    if is_pod {
        return Ok(());
    }
    Err(Refusal::bad_request(format!(
        "this path takes kind Pod of v1 and resource pods, not kind {:?} of {:?} {:?} and \
         resource {:?} {:?}; correct the rules of the MutatingWebhookConfiguration",
        kind.kind.as_str(),
        kind.group.as_str(),
        kind.version.as_str(),
        resource.resource.as_str(),
        request.sub_resource(),
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api_server::Feed;
    use crate::api_server::policies::policy_resource;
    use crate::policy::{MissingGroupPolicy, Settings};
    use crate::webhook::allocator::tests::{response, serve};
    use crate::webhook::cluster::{EnforcedNamespaces, Policies};
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

    /// Lets the watches bring a policy, and the label of the namespace.
    fn know(webhook: &Webhook, namespace: &str, has_policy: bool, is_enforced: bool) {
        let mut known = std::collections::HashSet::new();
        if is_enforced {
            known.insert(namespace.into());
        }
        EnforcedNamespaces(&webhook.cluster).reset(known);
        crate::webhook::cluster::ServiceAccounts(&webhook.cluster).reset(Default::default());
        Policies(&webhook.cluster).reset(Default::default());
        if has_policy {
            let policy = DynamicObject::new("database", &policy_resource()).within(namespace);
            Policies(&webhook.cluster).apply(policy.data(json!({ "spec": spec() })));
        }
    }

    async fn ask(webhook: &Arc<Webhook>, namespace: &str, labels: Value, grace: i64) -> Value {
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
        let body = JsonBody(review.to_string().into());
        let response = mutate_pod(State(webhook.clone()), body).await;
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        serde_json::from_slice::<Value>(&body).unwrap()["response"].take()
    }

    #[tokio::test(start_paused = true)]
    async fn silent_api_server_keeps_pods_waiting_only_where_policies_are() {
        for (namespace, has_policy, is_enforced, allowed) in [
            ("shop", false, false, true),
            ("shop", true, false, false),
            ("shop", false, true, false),
            ("kube-system", true, true, true),
            ("sgp-system", true, true, true),
        ] {
            let webhook = webhook(None);
            know(&webhook, namespace, has_policy, is_enforced);
            let begin = Instant::now();
            let response = ask(&webhook, namespace, json!({"app": "other"}), 30).await;

            let case = format!("{namespace} {has_policy} {is_enforced}: {response:#}");
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
        know(&webhook, "shop", true, true);
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
        know(&webhook, "shop", false, false);
        let response = ask(&webhook, "shop", json!({"app": "web"}), 30).await;
        assert!(response["patch"].is_string(), "{response:#}");
    }

    #[tokio::test]
    async fn pod_is_not_refused_by_a_policy_that_is_gone() {
        let webhook = webhook(Some(json!({"metadata": {}, "items": []})));
        know(&webhook, "shop", true, true);
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
                know(&webhook, "shop", true, true);
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
