//! Deletions after which the CNI plugin finds no pod any more whose network it could remove.
//!
//! Whoever asks is warned, never refused: a pod whose node is gone has no other way to go.

use super::messages;
use crate::policy::Pod;
use crate::webhook::review::Request;

/// The parts of the cluster that delete pods by force in the course of their work, and read
/// no warnings: kubelets, and the controllers, which the control plane runs as service accounts
/// of this namespace or as one user.
const CLUSTER_USERS: [&str; 3] = [
    "system:node:",
    "system:serviceaccount:kube-system:",
    "system:kube-controller-manager",
];

/// What whoever asks should know of this deletion, if anything.
pub fn warning(request: &Request<'_, Pod<'_>>) -> Option<String> {
    let pod = request.old_object.as_ref()?;
    let annotations = pod.metadata.annotations.as_ref()?;
    annotations.pod_eni.as_ref()?;
    let grace = request.options.and_then(|it| it.grace_period_seconds);
    let user = request.user_info.username.as_str();
    let is_of_the_cluster = CLUSTER_USERS.iter().any(|it| user.starts_with(it));
    // The API server itself sets the grace of a pod to 0 that has no containers to wait for.
    let runs = pod.is_bound() && !pod.is_finished();
    (grace == Some(0) && runs && !is_of_the_cluster).then(|| messages::forced_deletion(pod))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::review;
    use serde_json::{Value, json};

    fn is_warned(user: &str, grace: Value, pod: Value) -> bool {
        let body = json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": "1",
                "operation": "DELETE",
                "userInfo": {"username": user},
                "object": null,
                "oldObject": pod,
                "options": {"kind": "DeleteOptions", "gracePeriodSeconds": grace}
            }
        });
        let body = body.to_string();
        warning(&review::read(body.as_bytes()).unwrap()).is_some()
    }

    fn pod(annotation: &str, node: &str, phase: &str) -> Value {
        json!({
            "metadata": {"name": "web", "annotations": {annotation: "[]"}},
            "spec": {"nodeName": node},
            "status": {"phase": phase}
        })
    }

    #[test]
    fn only_somebody_who_leaves_a_network_behind_is_warned() {
        let eni = "vpc.amazonaws.com/pod-eni";
        let running = || pod(eni, "node", "Running");
        for (user, grace, pod, warned) in [
            ("alice", json!(0), running(), true),
            (
                "system:serviceaccount:ci:deployer",
                json!(0),
                running(),
                true,
            ),
            ("alice", json!(1), running(), false),
            ("alice", json!(null), running(), false),
            ("alice", json!(0), pod("other", "node", "Running"), false),
            ("alice", json!(0), pod(eni, "", "Pending"), false),
            ("alice", json!(0), pod(eni, "node", "Pending"), true),
            ("alice", json!(0), pod(eni, "node", "Succeeded"), false),
            ("alice", json!(0), pod(eni, "node", "Failed"), false),
            ("system:node:ip-10-0-0-1", json!(0), running(), false),
            (
                "system:serviceaccount:kube-system:pod-garbage-collector",
                json!(0),
                running(),
                false,
            ),
            ("system:kube-controller-manager", json!(0), running(), false),
            ("alice", json!(0), json!(null), false),
        ] {
            let case = format!("{user} {grace} {pod}");
            assert_eq!(is_warned(user, grace, pod), warned, "{case}");
        }
    }
}
