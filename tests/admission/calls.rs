//! What the API server asks the webhook about, by the conditions in our manifests.

use serde_json::{Value, json};

use crate::cluster::{GROUP, Namespace, by_pod, eventually, everything, policy};
use crate::recorder::Recorder;

const NOTHING: [&str; 0] = [];

fn template() -> Value {
    json!({
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "web", "image": "web"}]}
    })
}

/// A workload of this kind by the name `web`.
fn workload(version: &str, kind: &str) -> Value {
    let mut job = template();
    job["spec"]["restartPolicy"] = json!("Never");
    let mut spec = match kind {
        // The template of a suspended one can still be changed.
        "Job" => json!({"suspend": true, "template": job}),
        "CronJob" => json!({"schedule": "@yearly", "jobTemplate": {"spec": {"template": job}}}),
        _ => json!({"selector": {"matchLabels": {"app": "web"}}, "template": template()}),
    };
    if kind == "StatefulSet" {
        spec["serviceName"] = json!("web");
    }
    json!({"apiVersion": version, "kind": kind, "metadata": {"name": "web"}, "spec": spec})
}

fn patch(namespace: &Namespace, kind: &str, patch: &Value) {
    let patch = format!("--patch={patch}");
    let arguments = ["patch", kind, "web", "--type=merge", &patch];
    namespace.kubectl(&arguments).ok();
}

#[test]
fn policies_are_looked_at_when_their_spec_is_written() {
    let namespace = Namespace::new();
    let all = policy("web", &everything(&[GROUP]));
    let recorder = Recorder::start("vsgp.vpc.k8s.aws", &namespace, &all);
    namespace.apply(&all).ok();
    assert_eq!(recorder.take(), ["CREATE SecurityGroupPolicy web"]);

    let policy = "securitygrouppolicy";
    let finalizers = |finalizers: Value| json!({"metadata": {"finalizers": finalizers}});
    patch(
        &namespace,
        policy,
        &json!({"metadata": {"labels": {"team": "red"}}}),
    );
    patch(&namespace, policy, &finalizers(json!(["example.com/wait"])));
    assert_eq!(
        recorder.take(),
        NOTHING,
        "metadata alone is nobody's business"
    );

    patch(
        &namespace,
        policy,
        &json!({ "spec": by_pod(json!({"app": "web"})) }),
    );
    assert_eq!(recorder.take(), ["UPDATE SecurityGroupPolicy web"]);

    let delete = ["delete", policy, "web", "--wait=false"];
    namespace.kubectl(&delete).ok();
    patch(&namespace, policy, &finalizers(json!([])));
    assert_eq!(recorder.take(), NOTHING, "nothing holds up a deletion");
    let gone = namespace.kubectl(&["get", policy, "web", "--ignore-not-found"]);
    assert_eq!(gone.ok().stdout, "");
}

#[test]
fn workloads_are_looked_at_when_their_pod_template_is_written() {
    let namespace = Namespace::new();
    let deployment = workload("apps/v1", "Deployment");
    let recorder = Recorder::start("vworkload.vpc.k8s.aws", &namespace, &deployment);
    let annotated = json!({"metadata": {"annotations": {"changed": "yes"}}});
    for (version, kind, aside) in [
        ("apps/v1", "Deployment", json!({"replicas": 2})),
        ("apps/v1", "StatefulSet", json!({"replicas": 2})),
        ("apps/v1", "DaemonSet", json!({"minReadySeconds": 2})),
        ("apps/v1", "ReplicaSet", json!({"replicas": 2})),
        ("batch/v1", "Job", json!({"parallelism": 2})),
        (
            "batch/v1",
            "CronJob",
            json!({"suspend": true, "jobTemplate": {"spec": {"parallelism": 2}}}),
        ),
    ] {
        namespace.apply(&workload(version, kind)).ok();
        let about = |operation: &str| vec![format!("{operation} {kind} web")];
        assert_eq!(recorder.take(), about("CREATE"));

        patch(&namespace, kind, &json!({ "spec": aside }));
        patch(
            &namespace,
            kind,
            &json!({"metadata": {"labels": {"team": "red"}}}),
        );
        assert_eq!(
            recorder.take(),
            NOTHING,
            "no pod of the {kind} becomes another"
        );

        let spec = json!({ "template": annotated });
        let change = match kind {
            "CronJob" => json!({"spec": {"jobTemplate": {"spec": spec}}}),
            _ => json!({ "spec": spec }),
        };
        patch(&namespace, kind, &change);
        assert_eq!(recorder.take(), about("UPDATE"));

        let gone = ["delete", kind, "web", "--wait=false"];
        namespace.kubectl(&gone).ok();
        assert_eq!(recorder.take(), NOTHING, "the {kind} goes unasked");
    }
}

#[test]
fn what_a_controller_makes_of_a_workload_is_not_looked_at_again() {
    let namespace = Namespace::new();
    let deployment = workload("apps/v1", "Deployment");
    let recorder = Recorder::start("vworkload.vpc.k8s.aws", &namespace, &deployment);
    namespace.apply(&deployment).ok();
    eventually("the Deployment's ReplicaSet", || {
        let sets = namespace
            .kubectl(&["get", "replicasets", "-o", "name"])
            .ok();
        (!sets.stdout.is_empty()).then_some(())
    });
    assert_eq!(recorder.take(), ["CREATE Deployment web"]);

    // An owner that is no controller makes nothing.
    let uid = namespace.kubectl(&["get", "deployment", "web", "-o=jsonpath={.metadata.uid}"]);
    let owner = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": uid.ok().stdout
    });
    let mut owned = workload("batch/v1", "Job");
    owned["metadata"]["ownerReferences"] = json!([owner]);
    namespace.apply(&owned).ok();
    assert_eq!(recorder.take(), ["CREATE Job web"]);
}
