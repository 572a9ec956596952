//! `/mutate-v1-pod`: what a pod lacks at its creation.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::Webhook;
use super::body::JsonBody;
use super::cluster::Unknown;
use super::messages;
use super::patch::encoded_patch;
use super::review::{self, Answer, Refusal, Request, Unreadable};
use crate::policy::service_accounts::ServiceAccountLabels;
use crate::policy::{Decision, NamespacePolicies, Pod, ServiceAccount, decide};

/// Answers one AdmissionReview.
pub async fn mutate_pod(State(webhook): State<Arc<Webhook>>, JsonBody(body): JsonBody) -> Response {
    let begin = Instant::now();
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

    /// Decides by what is known. That no policy selects the pod is never said from memory
    /// alone: a policy may have been created a moment ago, together with the pod.
    async fn decide(&self, namespace: &str, pod: &Pod<'_>) -> Result<Answer, Unknown> {
        let cluster = &self.cluster;
        let known = cluster.known_policies(namespace).unwrap_or_default();
        let account = pod.service_account_name();
        let labels = match cluster.known_service_account(namespace, account) {
            Some(labels) => Some(labels),
            None => self.ask_service_account(namespace, pod, &known).await?,
        };
        let decision = decide(pod, &known, service_account(&labels), self.settings);
        if !decision.policies.is_empty() || decision.denial.is_some() {
            return Ok(self.answer_with(namespace, pod, &decision));
        }
        let now = match cluster.ask_policies(namespace).await {
            Ok(now) => now.unwrap_or_default(),
            // As the API server does it when we can't be asked ourselves: only where
            // policies are does a pod have to wait.
            Err(unknown) if known.is_empty() && !cluster.is_enforced(namespace) => {
                self.metrics.admission.unconfirmed.inc();
                tracing::warn!(namespace, %unknown, "pod let in without confirmation");
                return Ok(self.answer_with(namespace, pod, &decision));
            }
            Err(unknown) => return Err(unknown),
        };
        let labels = self.ask_service_account(namespace, pod, &now).await?;
        let decision = decide(pod, &now, service_account(&labels), self.settings);
        Ok(self.answer_with(namespace, pod, &decision))
    }

    /// The labels of the pod's service account as the API server has them, if any policy's
    /// answer hangs on them; `None` if one does and there is no such account.
    async fn ask_service_account(
        &self,
        namespace: &str,
        pod: &Pod<'_>,
        policies: &NamespacePolicies,
    ) -> Result<Option<ServiceAccountLabels>, Unknown> {
        if !policies.ask_for_service_account(pod.labels()) {
            return Ok(Some(ServiceAccountLabels::default()));
        }
        let name = pod.service_account_name();
        self.cluster.ask_service_account(namespace, name).await
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

fn service_account(
    labels: &Option<ServiceAccountLabels>,
) -> ServiceAccount<'_, ServiceAccountLabels> {
    match labels {
        Some(labels) => ServiceAccount::Labels(labels),
        None => ServiceAccount::Missing,
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
