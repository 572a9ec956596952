//! What a pod looks like after its creation.

use serde_json::json;

use crate::cluster::{
    FARGATE_GROUPS, GROUP, Namespace, POD_ENI, by_pod, everything, knows_no_interface, kubectl,
    pod, requests_interface,
};

#[test]
fn selected_pod_requests_one_branch_interface_in_limits_and_requests() {
    let namespace = Namespace::new();
    namespace.policies(&[("database", by_pod(json!({"app": "green"})))]);

    let created = namespace
        .apply(&pod(json!({"labels": {"app": "green"}}), json!({})))
        .ok();
    assert!(created.warnings().is_empty(), "{created:#?}");
    let resources = &created.json()["spec"]["containers"][0]["resources"];
    assert_eq!(
        *resources,
        json!({"limits": {POD_ENI: "1"}, "requests": {POD_ENI: "1"}})
    );
}

#[test]
fn pod_that_no_policy_selects_is_left_as_it_is() {
    let namespace = Namespace::new();
    let red = pod(
        json!({"labels": {"app": "red"}}),
        json!({"terminationGracePeriodSeconds": 0}),
    );
    let before = namespace.dry_run(&red).ok().json();
    namespace.policies(&[("database", by_pod(json!({"app": "green"})))]);

    let created = namespace.apply(&red).ok();
    assert!(created.warnings().is_empty(), "{created:#?}");
    let mut spec = created.json()["spec"].clone();
    // The token volume has a random name.
    let mut spec_before = before["spec"].clone();
    for spec in [&mut spec, &mut spec_before] {
        spec.as_object_mut().unwrap().remove("volumes");
        spec["containers"][0]
            .as_object_mut()
            .unwrap()
            .remove("volumeMounts");
    }
    assert_eq!(spec, spec_before);
    assert_eq!(
        created.json()["metadata"]["labels"],
        before["metadata"]["labels"]
    );
}

#[test]
fn what_the_first_container_has_is_kept() {
    let namespace = Namespace::new();
    namespace.policies(&[("all", everything(&[GROUP]))]);
    let resources = json!({"limits": {"cpu": "2"}, "requests": {"cpu": "1", "memory": "1Mi"}});
    let containers = json!([
        {"name": "web", "image": "web", "resources": resources},
        {"name": "second", "image": "second"}
    ]);

    let created = namespace
        .apply(&pod(json!({}), json!({"containers": containers})))
        .ok()
        .json();
    let containers = &created["spec"]["containers"];
    assert_eq!(
        containers[0]["resources"],
        json!({
            "limits": {"cpu": "2", POD_ENI: "1"},
            "requests": {"cpu": "1", "memory": "1Mi", POD_ENI: "1"}
        })
    );
    assert_eq!(containers[1]["resources"], json!({}));
}

#[test]
fn interface_that_another_container_requests_is_requested_by_the_first_alone() {
    let namespace = Namespace::new();
    namespace.policies(&[("all", everything(&[GROUP]))]);
    let requesting = json!({"limits": {POD_ENI: "1"}});
    for (name, spec) in [
        (
            "second-container",
            json!({"containers": [
                {"name": "web", "image": "web"},
                {"name": "second", "image": "second", "resources": requesting}
            ]}),
        ),
        (
            "sidecar",
            json!({"initContainers": [
                {"name": "mesh", "image": "mesh", "restartPolicy": "Always", "resources": requesting}
            ]}),
        ),
    ] {
        let created = namespace
            .apply(&pod(json!({"name": name}), spec))
            .ok()
            .json();
        assert!(requests_interface(&created), "{name}: {created:#}");
        let requests = created["spec"].to_string().matches(POD_ENI).count();
        assert_eq!(requests, 2, "{name}: limits and requests of one container");
    }
}

#[test]
fn request_for_no_interface_does_not_shed_the_groups() {
    let namespace = Namespace::new();
    namespace.policies(&[("all", everything(&[GROUP]))]);
    let none = json!({"limits": {POD_ENI: "0", "cpu": "1"}});
    let containers = json!([{"name": "web", "image": "web", "resources": none}]);
    let created = namespace
        .apply(&pod(json!({}), json!({"containers": containers})))
        .ok()
        .json();
    assert!(requests_interface(&created), "{created:#}");
}

#[test]
fn container_that_another_webhook_puts_in_front_does_not_bring_a_second_interface() {
    let namespace = Namespace::new();
    namespace.policies(&[("all", everything(&[GROUP]))]);
    // Stands for a service mesh: it puts its container first, after our first call, so that
    // the API server calls us again.
    let name = format!("mesh-{}", namespace.name);
    let insert = "[JSONPatch{op: 'add', path: '/spec/containers/0', \
                  value: Object.spec.containers{name: 'mesh', image: 'mesh'}}]";
    let mutation = json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingAdmissionPolicy",
            "metadata": {"name": name},
            "spec": {
                "matchConstraints": {
                    "namespaceSelector": {
                        "matchLabels": {"kubernetes.io/metadata.name": namespace.name}
                    },
                    "resourceRules": [{
                        "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"],
                        "operations": ["CREATE"]
                    }]
                },
                "matchConditions": [{
                    "name": "once",
                    "expression": "!object.spec.containers.exists(c, c.name == 'mesh')"
                }],
                "failurePolicy": "Fail",
                "reinvocationPolicy": "IfNeeded",
                "mutations": [{
                    "patchType": "JSONPatch",
                    "jsonPatch": {"expression": insert}
                }]
            }
        },
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {"policyName": name}
        }
    ]});
    kubectl(
        &crate::cluster::DEFAULT,
        &["apply", "-f", "-"],
        Some(&mutation),
    )
    .ok();

    let created = crate::cluster::eventually("the mesh to be put in front", || {
        let created = namespace.dry_run(&pod(json!({}), json!({}))).ok().json();
        (created["spec"]["containers"].as_array().unwrap().len() == 2).then_some(created)
    });
    let containers = &created["spec"]["containers"];
    let requests = containers.to_string().matches(POD_ENI).count();
    assert_eq!(
        requests, 2,
        "one container's limits and requests: {containers:#}"
    );
}

#[test]
fn fargate_pod_gets_its_groups_in_an_annotation_and_no_interface() {
    let namespace = Namespace::new();
    namespace.policies(&[("all", everything(&["sg-0000000b", "sg-0000000a"]))]);
    for (name, brought) in [
        ("none", json!({})),
        ("own", json!({FARGATE_GROUPS: "sg-99999999"})),
    ] {
        let labels = json!({"eks.amazonaws.com/fargate-profile": "default"});
        let metadata = json!({"name": name, "labels": labels, "annotations": brought});
        let spec = json!({"schedulerName": "fargate-scheduler"});
        let created = namespace.apply(&pod(metadata, spec)).ok().json();

        assert_eq!(
            created["metadata"]["annotations"][FARGATE_GROUPS],
            "sg-0000000b,sg-0000000a"
        );
        assert!(knows_no_interface(&created), "{created:#}");
    }
}

#[test]
fn fargate_pod_that_no_policy_selects_loses_an_annotation_that_it_brought_along() {
    let namespace = Namespace::new();
    let labels = json!({"eks.amazonaws.com/fargate-profile": "default"});
    let annotations = json!({FARGATE_GROUPS: "sg-99999999", "kept": "yes"});
    let metadata = json!({"labels": labels, "annotations": annotations});
    let created = namespace.apply(&pod(metadata, json!({}))).ok().json();

    let annotations = &created["metadata"]["annotations"];
    assert_eq!(annotations["kept"], "yes");
    assert!(annotations.get(FARGATE_GROUPS).is_none(), "{annotations:#}");
}

#[test]
fn dry_run_shows_the_same_and_leaves_no_trace() {
    let namespace = Namespace::new();
    namespace.policies(&[("all", everything(&[GROUP]))]);
    let tried = namespace.dry_run(&pod(json!({}), json!({}))).ok();
    assert!(requests_interface(&tried.json()));

    let hasty = pod(json!({}), json!({"terminationGracePeriodSeconds": 0}));
    let refused = namespace.dry_run(&hasty);
    assert!(
        refused
            .stderr
            .contains("terminationGracePeriodSeconds is 0"),
        "{refused:#?}"
    );

    let host = namespace
        .dry_run(&pod(json!({}), json!({"hostNetwork": true})))
        .ok();
    assert_eq!(host.warnings().len(), 1, "{host:#?}");

    let pods = namespace.kubectl(&["get", "pods", "-o", "name"]).ok();
    assert_eq!(pods.stdout, "");
}
