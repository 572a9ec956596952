//! Pods of every shape, by hand and by controllers.

use serde_json::{Map, Value, json};

use crate::cluster::{
    GROUP, Namespace, POD_ENI, by_pod, eventually, everything, pod, requests_interface,
};

/// Waits for the first pod of a controller.
fn first_pod(namespace: &Namespace, label: &str) -> Value {
    let selector = format!("--selector={label}");
    eventually("the controller's pod", || {
        let pods = namespace
            .kubectl(&["get", "pods", &selector, "-o", "json"])
            .ok()
            .json();
        pods["items"].get(0).cloned()
    })
}

#[test]
fn pods_of_controllers_are_selected_like_any_other() {
    let namespace = Namespace::new();
    namespace.policies(&[("green", by_pod(json!({"color": "green"})))]);
    let selector = |name: &str| json!({"matchLabels": {"app": name}});
    let template = |name: &str, restart: &str| {
        json!({
            "metadata": {"labels": {"app": name, "color": "green"}},
            "spec": {
                "restartPolicy": restart,
                "containers": [{"name": "web", "image": "web"}]
            }
        })
    };
    for (name, version, kind, spec) in [
        (
            "deployment",
            "apps/v1",
            "Deployment",
            json!({
                "selector": selector("deployment"), "template": template("deployment", "Always")
            }),
        ),
        (
            "statefulset",
            "apps/v1",
            "StatefulSet",
            json!({
                "selector": selector("statefulset"),
                "serviceName": "statefulset",
                "template": template("statefulset", "Always")
            }),
        ),
        (
            "job",
            "batch/v1",
            "Job",
            json!({"template": template("job", "Never")}),
        ),
    ] {
        let metadata = json!({"name": name});
        let workload =
            json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec});
        namespace.apply(&workload).ok();
        let pod = first_pod(&namespace, &format!("app={name}"));
        assert!(requests_interface(&pod), "{kind}: {pod:#}");
    }
}

#[test]
fn init_containers_and_sidecars_are_left_as_they_are() {
    let namespace = Namespace::new();
    namespace.policies(&[("all", everything(&[GROUP]))]);
    let created = namespace
        .apply(&pod(
            json!({}),
            json!({"initContainers": [
                {"name": "prepare", "image": "prepare"},
                {"name": "mesh", "image": "mesh", "restartPolicy": "Always"}
            ]}),
        ))
        .ok()
        .json();

    assert!(requests_interface(&created));
    for container in created["spec"]["initContainers"].as_array().unwrap() {
        assert_eq!(container["resources"], json!({}), "{container:#}");
    }
}

#[test]
fn pod_without_labels_is_selected_by_what_asks_for_none() {
    let namespace = Namespace::new();
    namespace.policies(&[(
        "not-red",
        json!({
            "podSelector": {"matchExpressions": [
                {"key": "color", "operator": "NotIn", "values": ["red"]}
            ]},
            "securityGroups": {"groupIds": [GROUP]}
        }),
    )]);
    let created = namespace.apply(&pod(json!({}), json!({}))).ok().json();
    assert!(requests_interface(&created));
}

#[test]
fn pod_with_a_hundred_labels_is_selected_by_any_of_them() {
    let namespace = Namespace::new();
    namespace.policies(&[("last", by_pod(json!({"label-099": "value-99"})))]);
    let labels: Map<String, Value> = (0..100)
        .map(|n| (format!("label-{n:03}"), json!(format!("value-{n}"))))
        .collect();
    let created = namespace
        .apply(&pod(json!({"labels": labels}), json!({})))
        .ok()
        .json();
    assert!(requests_interface(&created));
}

#[test]
fn resource_claim_survives_an_update_of_the_pod() {
    let namespace = Namespace::new();
    namespace.policies(&[("all", everything(&[GROUP]))]);
    namespace.apply(&pod(json!({}), json!({}))).ok();
    namespace
        .kubectl(&["label", "pod", "web", "changed=yes"])
        .ok();

    let updated = namespace
        .kubectl(&["get", "pod", "web", "-o", "json"])
        .ok()
        .json();
    assert_eq!(
        updated["spec"]["containers"][0]["resources"]["limits"][POD_ENI],
        "1"
    );
}
