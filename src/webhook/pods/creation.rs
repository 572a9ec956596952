//! A pod's creation, in both phases of admission: what it lacks, and whether it lacks anything
//! once all webhooks have had their say.
//!
//! In both, only that a pod is selected is said from memory. That none selects it, or that it
//! is refused, is confirmed by the API server, for a policy may have been created or mended a
//! moment ago, together with the pod.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::messages;
use super::patch::encoded_patch;
use crate::api::names::NEVER_ENFORCED;
use crate::policy::service_accounts::ServiceAccountLabels;
use crate::policy::{
    Availability, Decision, NamespacePolicies, Pod, ServiceAccount, check, decide,
};
use crate::webhook::Webhook;
use crate::webhook::cluster::Unknown;
use crate::webhook::review::{Answer, Refusal, Request};

/// How long a request waits for the API server, which itself waits 5 s for us (the time-out in
/// our manifests).
const PATIENCE: Duration = Duration::from_secs(4);

/// When in a pod's creation we are asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Phase {
    /// While webhooks change the pod: what it lacks is added, and its creator is told what
    /// there is to know.
    Mutating,
    /// When nobody changes it any more: what it lacks is a denial, and all else has been said.
    Validating,
}

/// Whether a namespace wants no pod that has not been decided about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Enforcement {
    Off,
    On,
}

/// What is said of a namespace's policies and of the pod's service account.
struct Evidence {
    policies: Arc<NamespacePolicies>,
    /// `None` if there is no such service account.
    account: Option<ServiceAccountLabels>,
}

impl Evidence {
    fn account(&self) -> ServiceAccount<'_, ServiceAccountLabels> {
        match &self.account {
            Some(labels) => ServiceAccount::Labels(labels),
            None => ServiceAccount::Missing,
        }
    }
}

impl Webhook {
    /// Decides about the pod of a creation.
    pub(super) async fn answer_creation(
        &self,
        request: &Request<'_, Pod<'_>>,
        phase: Phase,
        enforcement: Enforcement,
    ) -> Answer {
        let Some(pod) = &request.object else {
            let message = "the AdmissionReview is of a creation but has no object".to_owned();
            return Answer::denied(Refusal::bad_request(message), Vec::new());
        };
        let namespace = request.namespace();
        // The groups of a Fargate pod are settled for good at its creation.
        let known = (!pod.is_fargate()).then(|| self.known(namespace, pod));
        if let Some(known) = known.flatten() {
            let mut decision = self.judge(phase, pod, &known);
            let availability = self.ask_allocator(phase, &decision).await;
            if let Some(availability) = &availability {
                decision.consider(availability, pod, self.settings);
            }
            if !decision.policies.is_empty() && decision.denial.is_none() {
                return answer_with(namespace, phase, pod, &decision);
            }
        }
        let asked = match self.ask(namespace, pod).await {
            Ok(asked) => asked,
            Err(unknown) => return self.answer_unknown(namespace, pod, enforcement, &unknown),
        };
        let mut decision = self.judge(phase, pod, &asked);
        let availability = self.ask_allocator(phase, &decision).await;
        if let Some(availability) = &availability {
            decision.consider(availability, pod, self.settings);
        }
        answer_with(namespace, phase, pod, &decision)
    }

    fn judge<'p>(&self, phase: Phase, pod: &Pod<'_>, evidence: &'p Evidence) -> Decision<'p> {
        let decide = match phase {
            Phase::Mutating => decide,
            Phase::Validating => check,
        };
        decide(pod, &evidence.policies, evidence.account(), self.settings)
    }

    /// What the watches have brought; `None` if they lack the pod's service account and a
    /// policy asks for it.
    fn known(&self, namespace: &str, pod: &Pod<'_>) -> Option<Evidence> {
        let policies = self.cluster.known_policies(namespace).unwrap_or_default();
        let account = self
            .cluster
            .known_service_account(namespace, pod.service_account_name());
        if account.is_none() && policies.ask_for_service_account(pod.labels()) {
            return None;
        }
        let account = Some(account.unwrap_or_default());
        Some(Evidence { policies, account })
    }

    /// What the API server says now.
    async fn ask(&self, namespace: &str, pod: &Pod<'_>) -> Result<Evidence, Unknown> {
        let (cluster, deadline) = (&self.cluster, Instant::now() + PATIENCE);
        let policies = cluster.ask_policies(namespace, deadline).await?;
        let policies = policies.unwrap_or_default();
        let account = if policies.ask_for_service_account(pod.labels()) {
            let name = pod.service_account_name();
            cluster
                .ask_service_account(namespace, name, deadline)
                .await?
        } else {
            Some(ServiceAccountLabels::default())
        };
        Ok(Evidence { policies, account })
    }

    /// What there is of what the pod is to have, if it is to have anything and there is an
    /// allocator that says so. Asked in one phase only.
    async fn ask_allocator(
        &self,
        phase: Phase,
        decision: &Decision<'_>,
    ) -> Option<Arc<Availability>> {
        let allocator = self.allocator.as_ref()?;
        if phase == Phase::Validating || !decision.gives_groups() {
            return None;
        }
        allocator.ask(&decision.group_ids).await
    }

    /// A pod starts although the API server can't be asked, as the API server itself does it
    /// when we can't be asked, except where policies are.
    fn answer_unknown(
        &self,
        namespace: &str,
        pod: &Pod<'_>,
        enforcement: Enforcement,
        unknown: &Unknown,
    ) -> Answer {
        let may_start = NEVER_ENFORCED.contains(&namespace)
            || enforcement == Enforcement::Off
                && self.cluster.known_policies(namespace).is_none()
                && self.cluster.out_of_sync().is_empty();
        if may_start {
            self.metrics.admission.unconfirmed.inc();
            tracing::warn!(namespace, %unknown, "pod let in without confirmation");
            return Answer::allowed(None, Vec::new());
        }
        tracing::warn!(namespace, %unknown, "no decision");
        let message = messages::undecided(pod, unknown);
        Answer::denied(Refusal::unavailable(message), Vec::new())
    }
}

fn answer_with(namespace: &str, phase: Phase, pod: &Pod<'_>, decision: &Decision<'_>) -> Answer {
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
        ?phase,
        changes = ?decision.changes,
        "pod let in"
    );
    Answer::allowed(patch, warnings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::endpoint::Endpoint;
    use crate::api_server::Feed;
    use crate::api_server::policies::policy_resource;
    use crate::policy::{MissingGroupPolicy, Settings};
    use crate::webhook::allocator::tests::{response, serve};
    use crate::webhook::cluster::Policies;
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use axum::response::Response;
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
        let (phase, enforcement) = (Phase::Mutating, Enforcement::Off);
        ask_at(webhook, namespace, labels, grace, phase, enforcement).await
    }

    async fn ask_at(
        webhook: &Arc<Webhook>,
        namespace: &str,
        labels: Value,
        grace: i64,
        phase: Phase,
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
        let review = review.to_string();
        let exchange = webhook.exchange(Endpoint::MutatePod);
        let request = exchange.read::<Pod<'_>>(review.as_bytes()).unwrap();
        let answer = webhook.answer_creation(&request, phase, enforcement).await;
        let response = exchange.answer(request.uid.as_str(), &answer);
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
            for phase in [Phase::Mutating, Phase::Validating] {
                let webhook = webhook(None);
                know(&webhook, namespace, has_policy);
                let begin = Instant::now();
                let labels = json!({"app": "other"});
                let response = ask_at(&webhook, namespace, labels, 30, phase, enforcement).await;

                let case =
                    format!("{namespace} {has_policy} {enforcement:?} {phase:?}: {response:#}");
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
    }

    #[tokio::test]
    async fn pod_without_its_request_is_refused_at_the_end_only_by_policies_that_are_stored() {
        let stored = json!([{"metadata": {"name": "database"}, "spec": spec()}]);
        // What the watch has brought of a policy, and what the API server has.
        for (known, items, allowed) in [
            (true, stored.clone(), false),
            (true, json!([]), true),
            (false, stored, false),
            (false, json!([]), true),
        ] {
            let webhook = webhook(Some(json!({"metadata": {}, "items": items})));
            know(&webhook, "shop", known);
            let (phase, enforcement) = (Phase::Validating, Enforcement::Off);
            let labels = json!({"app": "web"});
            let response = ask_at(&webhook, "shop", labels, 30, phase, enforcement).await;
            assert_eq!(
                response["allowed"], allowed,
                "{known} {items}: {response:#}"
            );
            assert!(response.get("patch").is_none());
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
