//! Objects of which the API server asks more than the webhook reads: they must not get around it.

use serde_json::{Value, json};

use crate::cluster::{DEFAULT, Namespace, Output, empower, eventually, kubectl, node, pod};

/// The API server writes each of these characters as six.
fn padding() -> String {
    "<".repeat(600_000)
}

fn long_spec() -> Value {
    let probe = json!({"exec": {"command": [padding()]}});
    json!({"containers": [{"name": "web", "image": "web", "readinessProbe": probe}]})
}

/// Creates an object from JSON as it is: kubectl's own would be as long as the API server's.
fn create_raw(namespace: &Namespace, resources: &str, object: &Value) -> Output {
    let path = format!("/{resources}").replace("/{}/", &format!("/namespaces/{}/", namespace.name));
    let arguments = ["create", "--raw", &path, "-f", "-"];
    kubectl(&DEFAULT, &arguments, Some(object))
}

#[track_caller]
fn assert_refused(output: &Output, entry: &str, text: &str) {
    let told = format!("admission webhook \"{entry}\" denied the request: {text}");
    assert!(
        !output.success && output.stderr.contains(&told),
        "{told}\n{output:#?}"
    );
}

pub fn refused_or_warned_of(texts: &[String]) {
    let [of_pod, of_workload] = texts else {
        panic!("two texts");
    };
    let namespace = Namespace::new();
    let long = pod(json!({}), long_spec());
    let create = || create_raw(&namespace, "api/v1/{}/pods", &long);
    assert_refused(&create(), "mpod-enforced.vpc.k8s.aws", of_pod);
    // Also where pods are let in while the webhook is away.
    let open = [
        "label",
        "namespace",
        &namespace.name,
        "vpcresources.k8s.aws/enforce-",
    ];
    kubectl(&DEFAULT, &open, None).ok();
    let entry = "mpod.vpc.k8s.aws";
    let refused = eventually("the namespace to be open", || {
        let refused = create();
        let is_open = refused.stderr.contains(&format!("{entry:?}"));
        is_open.then_some(refused)
    });
    assert_refused(&refused, entry, of_pod);

    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": long_spec()}
        }
    });
    let created = create_raw(&namespace, "apis/apps/v1/{}/deployments", &deployment).ok();
    assert_eq!(created.warnings(), [of_workload]);
}

/// The field is no longer stored, and so leaves no trace.
#[test]
fn cni_plugin_can_not_get_around_the_guard_by_a_long_update() {
    let plugin = "system:serviceaccount:kube-system:aws-node";
    empower(&DEFAULT, plugin);
    let mut long = node("long");
    long["metadata"]["labels"] = json!({"pool": "a"});
    kubectl(&DEFAULT, &["create", "-f", "-"], Some(&long)).ok();
    let patch = json!({"metadata": {"selfLink": padding(), "labels": {"pool": "b"}}});
    let as_plugin = format!("--as={plugin}");
    let arguments = [
        "patch",
        "node",
        "long",
        "--type=merge",
        "--patch-file=/dev/stdin",
        &as_plugin,
    ];
    let refused = kubectl(&DEFAULT, &arguments, Some(&patch));
    let text = "Node \"long\": what the API server asks about it is longer than 3 MiB";
    assert_refused(&refused, "vnode.vpc.k8s.aws", text);
    let read = kubectl(&DEFAULT, &["get", "node", "long", "-o", "json"], None).ok();
    assert_eq!(read.json()["metadata"]["labels"]["pool"], "a");
}
