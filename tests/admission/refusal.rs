//! Pods that are not let in, and how their creators learn why.

use serde_json::json;

use crate::cluster::{GROUP, Namespace, STRICT, eventually, everything, pod, requests_interface};

const WHY_AT_ONCE: &str = "denied the request: pod \"web\": SecurityGroupPolicy \"all\" gives it \
    security groups, but spec.terminationGracePeriodSeconds is 0. The VPC CNI plugin asks the \
    API server for the pod's address while it removes the pod's network; a pod that is gone at \
    once leaves its network behind on the node. Write terminationGracePeriodSeconds: 1 or more \
    (30 is the default), or leave it out";

#[test]
fn selected_pod_that_would_vanish_at_once_is_refused_with_the_reason() {
    let namespace = Namespace::new();
    namespace.policies(&[("all", everything(&[GROUP]))]);
    let refused = namespace.apply(&pod(json!({}), json!({"terminationGracePeriodSeconds": 0})));

    assert!(!refused.success);
    assert!(
        refused.stderr.contains("Error from server (Forbidden)"),
        "{}",
        refused.stderr
    );
    assert!(refused.stderr.contains(WHY_AT_ONCE), "{}", refused.stderr);
    let pods = namespace.kubectl(&["get", "pods", "-o", "name"]).ok();
    assert_eq!(pods.stdout, "");
}

#[test]
fn one_second_of_grace_is_enough() {
    let namespace = Namespace::new();
    namespace.policies(&[("all", everything(&[GROUP]))]);
    let pod = pod(json!({}), json!({"terminationGracePeriodSeconds": 1}));
    let created = namespace.apply(&pod).ok().json();

    assert!(requests_interface(&created));
    assert_eq!(created["spec"]["terminationGracePeriodSeconds"], 1);
}

#[test]
fn refusal_shows_in_the_description_of_the_replica_set() {
    let namespace = Namespace::new();
    namespace.policies(&[("all", everything(&[GROUP]))]);
    let template = pod(
        json!({"labels": {"app": "web"}}),
        json!({
            "terminationGracePeriodSeconds": 0
        }),
    );
    let replica_set = json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {"name": "web"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": template["spec"]
            }
        }
    });
    namespace.apply(&replica_set).ok();

    let why = WHY_AT_ONCE.replace("pod \"web\"", "pod with generateName \"web-\"");
    eventually("the reason in the ReplicaSet's events", || {
        let described = namespace.kubectl(&["describe", "replicaset", "web"]).ok();
        described.stdout.contains(&why).then_some(())
    });
}

#[test]
fn strict_webhook_refuses_pods_that_can_have_no_interface() {
    let namespace = Namespace::of(&STRICT);
    namespace.policies(&[("all", everything(&[GROUP]))]);
    for (spec, why) in [
        (
            json!({"hostNetwork": true}),
            "denied the request: pod \"web\": SecurityGroupPolicy \"all\" gives it security \
             groups, but spec.hostNetwork is true, and a pod on its node's network has no \
             interface of its own. Leave hostNetwork out, or change the policy so that it does \
             not select the pod",
        ),
        (
            json!({"nodeSelector": {"kubernetes.io/os": "windows"}}),
            "denied the request: pod \"web\": SecurityGroupPolicy \"all\" gives it security \
             groups, but spec.os.name or spec.nodeSelector[kubernetes.io/os] is \"windows\", and \
             Windows pods get no branch interface. Run the pod on Linux, or change the policy so \
             that it does not select the pod",
        ),
    ] {
        let refused = namespace.apply(&pod(json!({}), spec));
        assert!(!refused.success);
        assert!(refused.stderr.contains(why), "{}", refused.stderr);
    }
}

#[test]
fn strict_webhook_leaves_pods_that_no_policy_selects_alone() {
    let namespace = Namespace::of(&STRICT);
    let pod = pod(
        json!({}),
        json!({"hostNetwork": true, "terminationGracePeriodSeconds": 0}),
    );
    let created = namespace.apply(&pod).ok();
    assert!(created.warnings().is_empty(), "{created:#?}");
}
