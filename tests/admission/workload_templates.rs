//! What whoever writes a workload is told of its pods. The texts come from docs/policies.md.

use serde_json::{Value, json};

use crate::allocator::{ELSEWHERE, FULL, MISSING};
use crate::cluster::{GROUP, LENIENT, Namespace, STRICT, eventually, everything, pod, policy};

/// A Deployment without pods, whose template has this spec.
fn deployment(spec: Value) -> Value {
    let template = pod(json!({}), spec);
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": template["spec"]}
        }
    })
}

/// The warnings of a workload, with the namespace by the name that the docs give it.
#[track_caller]
fn told(namespace: &Namespace, workload: &Value) -> Vec<String> {
    let applied = namespace.dry_run(workload).ok();
    let warnings = applied.warnings().into_iter();
    let quoted = format!("{:?}", namespace.name);
    warnings
        .map(|warning| warning.replace(&quoted, "\"shop\""))
        .collect()
}

fn for_all(namespace: Namespace) -> Namespace {
    namespace.policies(&[("all", everything(&[GROUP]))]);
    namespace
}

fn hasty() -> Value {
    deployment(json!({"terminationGracePeriodSeconds": 0}))
}

fn on_host() -> Value {
    deployment(json!({"hostNetwork": true}))
}

fn windows() -> Value {
    deployment(json!({"nodeSelector": {"kubernetes.io/os": "windows"}}))
}

pub fn refused(texts: &[String]) {
    let namespace = for_all(Namespace::new());
    let by_account = json!({"serviceAccountSelector": {}, "securityGroups": {"groupIds": [GROUP]}});
    let of_accounts = Namespace::new();
    of_accounts.policies(&[("by-account", by_account)]);
    let reader = deployment(json!({"serviceAccountName": "reader"}));
    let told = [told(&namespace, &hasty()), told(&of_accounts, &reader)];
    assert_eq!(told.concat(), texts);
}

pub fn refused_strictly(texts: &[String]) {
    let namespace = for_all(Namespace::of(&STRICT));
    let told = [told(&namespace, &on_host()), told(&namespace, &windows())];
    assert_eq!(told.concat(), texts);
}

pub fn warned(texts: &[String]) {
    let namespace = for_all(Namespace::new());
    let told = [
        told(&namespace, &on_host()),
        told(&namespace, &windows()),
        told(&for_all(Namespace::of(&STRICT)), &hasty()),
        told(&for_all(Namespace::of(&LENIENT)), &hasty()),
    ];
    assert_eq!(told.concat(), texts);
}

pub fn warned_of_policies(texts: &[String]) {
    let many = Namespace::new();
    many.policies(&[
        (
            "one",
            everything(&["sg-00000001", "sg-00000002", "sg-00000003"]),
        ),
        (
            "two",
            everything(&["sg-00000004", "sg-00000005", "sg-00000006"]),
        ),
    ]);
    let old = Namespace::of(&LENIENT);
    old.policies(&[
        ("broken", json!({"securityGroups": {"groupIds": [GROUP]}})),
        ("typo", everything(&["sg-123"])),
    ]);
    let plain = deployment(json!({}));
    assert_eq!([told(&many, &plain), told(&old, &plain)].concat(), texts);
}

pub fn without_groups(texts: &[String]) {
    let namespace = Namespace::of(*FULL);
    namespace.policies(&[("all", everything(&[GROUP, MISSING, ELSEWHERE]))]);
    let plain = deployment(json!({}));
    // Until the allocator answers in time, which it does not on a machine that is very busy.
    let told = eventually("the allocator's answer", || {
        Some(told(&namespace, &plain)).filter(|told| !told.is_empty())
    });
    assert_eq!(told, texts);
}

#[test]
fn every_kind_of_workload_is_warned_about_and_applied() {
    let namespace = for_all(Namespace::new());
    let of_deployment = on_host();
    let template = &of_deployment["spec"]["template"];
    let mut job = template.clone();
    job["spec"]["restartPolicy"] = json!("Never");
    let selector = &of_deployment["spec"]["selector"];
    let plain = json!({"selector": selector, "template": template});
    for (version, kind, spec) in [
        ("apps/v1", "Deployment", plain.clone()),
        ("apps/v1", "ReplicaSet", plain.clone()),
        ("apps/v1", "DaemonSet", plain.clone()),
        (
            "apps/v1",
            "StatefulSet",
            json!({"serviceName": "web", "selector": selector, "template": template}),
        ),
        ("batch/v1", "Job", json!({"suspend": true, "template": job})),
        (
            "batch/v1",
            "CronJob",
            json!({"schedule": "@yearly", "jobTemplate": {"spec": {"template": job}}}),
        ),
    ] {
        let metadata = json!({"name": "web"});
        let workload =
            json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec});
        let applied = namespace.apply(&workload).ok();
        let begin = format!("each pod of {kind} \"web\" runs without its security groups: ");
        let warnings = applied.warnings();
        assert_eq!(warnings.len(), 1, "{applied:#?}");
        assert!(warnings[0].starts_with(&begin), "{applied:#?}");

        let again = namespace.apply(&workload).ok();
        assert!(again.warnings().is_empty(), "it did not change: {again:#?}");
    }
}

#[test]
fn workload_of_pods_that_no_policy_selects_is_applied_without_a_word() {
    let namespace = Namespace::new();
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "other"}},
        "securityGroups": {"groupIds": [GROUP]}
    });
    namespace.policies(&[("other", spec)]);
    assert!(told(&namespace, &hasty()).is_empty());

    // One that comes to select them is nothing that an unchanged template is told of.
    namespace.apply(&hasty()).ok();
    namespace.apply(&policy("all", &everything(&[GROUP]))).ok();
    namespace.settle();
    let scale = ["scale", "deployment", "web", "--replicas=1"];
    assert!(namespace.kubectl(&scale).ok().warnings().is_empty());
    let changed = namespace
        .kubectl(&["set", "image", "deployment/web", "web=other"])
        .ok();
    assert_eq!(changed.warnings().len(), 1, "{changed:#?}");
}
