//! The definitions of the custom resources.

use std::fs;
use std::process::Command;

use kube::Api;
use kube::api::{DynamicObject, PostParams};
use kube::core::ApiResource;
use serde_json::{Value, json};
use sgp::api::SecurityGroupPolicy;

use crate::waiting::eventually;
use crate::{apply, in_repository, kubectl, start_control_plane, succeeded};

#[test]
fn definitions_are_what_the_program_prints() {
    for (resource, path) in [
        (
            "securitygrouppolicies",
            "manifests/crds/securitygrouppolicies.yaml",
        ),
        ("cninodes", "manifests/crds/cninodes.yaml"),
        ("eniconfigs", "manifests/sandbox/eniconfigs.yaml"),
    ] {
        let printed =
            succeeded(Command::new(env!("CARGO_BIN_EXE_sgp")).args(["crds", resource])).output;
        let committed = fs::read_to_string(in_repository(path)).unwrap();
        assert!(
            printed == committed,
            "{path} is out of date; write it anew with\n  cargo run -- crds {resource} > {path}"
        );
    }
}

#[tokio::test]
async fn policy_definition_takes_what_clusters_hold_and_nothing_of_another_type() {
    let control_plane = start_control_plane().await;
    apply(&control_plane, &["-k", &in_repository("manifests/crds")]);
    let definition = "crd/securitygrouppolicies.vpcresources.k8s.aws";
    kubectl(
        &control_plane,
        &["wait", "--for=condition=Established", definition],
    );
    // The API server serves a new resource a moment after it says so.
    eventually("policies to be served", || {
        let mut list = control_plane.kubectl();
        let done = list.args(["get", "sgp"]).output().unwrap();
        done.status.success().then_some(())
    });
    let policies = Api::namespaced_with(
        control_plane.client(),
        "default",
        &ApiResource::erase::<SecurityGroupPolicy>(&()),
    );

    let groups = |count| -> Value {
        let ids: Vec<_> = (0..count).map(|n| format!("sg-0000000{n}")).collect();
        json!({"groupIds": ids})
    };
    let one = groups(1);
    let app = json!({"matchLabels": {"app": "web"}});
    let role = json!({"matchLabels": {"role": "web"}});
    let expression = |operator: &str, values: Value| json!({"matchExpressions": [{"key": "app", "operator": operator, "values": values}]});
    for (case, spec) in [
        (
            "pod selector",
            json!({"podSelector": app, "securityGroups": one}),
        ),
        (
            "all pods",
            json!({"podSelector": {}, "securityGroups": one}),
        ),
        (
            "service account selector",
            json!({"serviceAccountSelector": role, "securityGroups": one}),
        ),
        (
            "both selectors",
            json!({"podSelector": app, "serviceAccountSelector": role, "securityGroups": one}),
        ),
        (
            "null selector",
            json!({"podSelector": null, "serviceAccountSelector": {}, "securityGroups": one}),
        ),
        (
            "In",
            json!({"podSelector": expression("In", json!(["a", "b"])), "securityGroups": one}),
        ),
        (
            "NotIn",
            json!({"podSelector": expression("NotIn", json!(["a"])), "securityGroups": one}),
        ),
        (
            "Exists",
            json!({"podSelector": expression("Exists", json!([])), "securityGroups": one}),
        ),
        (
            "DoesNotExist",
            json!({"podSelector": expression("DoesNotExist", json!([])), "securityGroups": one}),
        ),
        // A cluster may hold these from times before us. They are ignored, and said to be.
        (
            "operator that does not exist",
            json!({"podSelector": expression("Near", json!(["a"])), "securityGroups": one}),
        ),
        ("no groups", json!({"podSelector": {}})),
        ("no selector", json!({"securityGroups": one})),
        // More than EC2 takes by default; the account's quota may be higher.
        (
            "six groups",
            json!({"podSelector": {}, "securityGroups": groups(6)}),
        ),
    ] {
        let stored = create(&policies, case, &spec)
            .await
            .unwrap_or_else(|problem| panic!("{case} is refused: {problem}"));
        assert_eq!(stored, spec, "{case} is stored as it was written");
    }

    for (case, spec, problem) in [
        (
            "empty list of groups",
            json!({"podSelector": {}, "securityGroups": {"groupIds": []}}),
            "spec.securityGroups.groupIds in body should have at least 1 items",
        ),
        (
            "number as group",
            json!({"podSelector": {}, "securityGroups": {"groupIds": ["sg-00000000", 7]}}),
            "spec.securityGroups.groupIds[1] in body must be of type string",
        ),
        (
            "text as selector",
            json!({"podSelector": "app=web", "securityGroups": one}),
            "spec.podSelector in body must be of type object",
        ),
    ] {
        let told = create(&policies, case, &spec).await.expect_err(case);
        assert!(told.contains(problem), "{case}: {told}");
    }

    let table = kubectl(&control_plane, &["get", "sgp"]);
    let mut lines = table.lines();
    let columns: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(columns, ["NAME", "SECURITY-GROUP-IDS"]);
    let all_pods = lines.find(|line| line.starts_with("all-pods ")).unwrap();
    assert!(all_pods.ends_with(r#"["sg-00000000"]"#), "{all_pods}");
}

/// The spec as it was stored, or what the API server says instead.
async fn create(policies: &Api<DynamicObject>, case: &str, spec: &Value) -> Result<Value, String> {
    let policy = json!({
        "apiVersion": "vpcresources.k8s.aws/v1beta1",
        "kind": "SecurityGroupPolicy",
        "metadata": {"name": case.to_lowercase().replace(' ', "-")},
        "spec": spec,
    });
    let policy = serde_json::from_value(policy).unwrap();
    match policies.create(&PostParams::default(), &policy).await {
        Ok(mut stored) => Ok(stored.data["spec"].take()),
        Err(kube::Error::Api(status)) => Err(status.message.clone()),
        Err(error) => panic!("{case}: {error}"),
    }
}
