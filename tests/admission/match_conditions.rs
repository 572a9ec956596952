//! What the API server asks the guards about, by the conditions of the manifest: a webhook in
//! their place notes it.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sgp::dev::Sandbox;
use sgp::dev::control_plane::free_port;

use crate::cluster::{
    DEFAULT, Namespace, Output, POD_ENI, STRICT, by_pod, empower, eventually, kubectl, node, pod,
};
use crate::neighbour::Neighbour;

/// The entries of the manifest of this name and beginning with it and a hyphen, calling the
/// other webhook at a path of their name.
fn entries(names: &[&str], neighbour: &Neighbour) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/base/validating-webhook.yaml");
    let manifest = fs::read_to_string(path).unwrap();
    let configuration: Value = serde_saphyr::from_str(&manifest).unwrap();
    let entries = configuration["webhooks"].as_array().unwrap().iter();
    let entries = entries.filter_map(|entry| {
        let name = entry["name"]
            .as_str()
            .unwrap()
            .strip_suffix(".vpc.k8s.aws")
            .unwrap();
        names.contains(&name).then(|| {
            let mut entry = entry.clone();
            entry["clientConfig"] = neighbour.client_config(&format!("/{name}"));
            entry
        })
    });
    let entries: Vec<_> = entries.collect();
    assert_eq!(entries.len(), names.len());
    entries
}

fn register(sandbox: &Sandbox, name: &str, entries: &[Value]) {
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        // Before ours, which would refuse some of it first.
        "metadata": {"name": format!("aa-{name}")},
        "webhooks": entries
    });
    kubectl(sandbox, &["apply", "-f", "-"], Some(&configuration)).ok();
}

fn unregister(sandbox: &Sandbox, name: &str) {
    let configuration = format!("validatingwebhookconfiguration/aa-{name}");
    kubectl(sandbox, &["delete", &configuration], None).ok();
}

/// What was asked about objects of a namespace, or of this name, since the last time: entry,
/// operation, resource. The API server may ask twice for one change, if another comes in
/// between; that is one here.
fn asked(neighbour: &Neighbour, about: &str) -> Vec<String> {
    let asked = neighbour.asked().into_iter();
    let asked = asked.filter(|(_, request)| {
        [&request["namespace"], &request["name"]]
            .iter()
            .any(|it| **it == about)
    });
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let asked = asked.map(|(path, request)| {
        let resource = text(&request["resource"]["resource"]);
        let sub_resource = text(&request["subResource"]);
        let resource = match sub_resource.as_str() {
            "" => resource,
            sub_resource => format!("{resource}/{sub_resource}"),
        };
        format!(
            "{} {} {resource}",
            path.trim_start_matches('/'),
            text(&request["operation"])
        )
    });
    let mut asked: Vec<_> = asked.collect();
    asked.dedup();
    asked
}

#[test]
fn guard_of_annotations_is_asked_where_somebody_else_touches_them() {
    let neighbour = Neighbour::that_notes();
    let namespace = Namespace::new();
    let name = namespace.name.clone();
    let mut entries = entries(&["vpod-annotations", "vpod-annotations-system"], &neighbour);
    for entry in &mut entries {
        // Without this the other tests would be asked about too, which is slow.
        let only = json!({
            "key": "kubernetes.io/metadata.name", "operator": "In",
            "values": [name, "kube-system"]
        });
        entry["namespaceSelector"]["matchExpressions"]
            .as_array_mut()
            .unwrap()
            .push(only);
    }
    register(&DEFAULT, &name, &entries);
    namespace.apply(&pod(json!({}), json!({}))).ok();
    let set = format!("{POD_ENI}=[]");
    eventually("the condition to count", || {
        namespace.kubectl(&["annotate", "pod", "web", "--dry-run=server", &set]);
        (!asked(&neighbour, &name).is_empty()).then_some(())
    });

    // The webhook itself refuses exactly what it is asked about.
    let status = |patch: Value| {
        let patch = patch.to_string();
        let arguments = [
            "patch",
            "pod",
            "web",
            "--subresource=status",
            "--patch",
            &patch,
        ];
        namespace.kubectl(&arguments)
    };
    let bind = |path: &str, annotations: Value| {
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding",
            "metadata": {"name": "web", "namespace": name, "annotations": annotations},
            "target": {"kind": "Node", "name": "conditions"}
        });
        let path = format!("/api/v1/namespaces/{name}/{path}");
        namespace.kubectl_with(&["create", "--raw", &path, "-f", "-"], Some(&binding))
    };
    let eks = "eks:vpc-resource-controller";
    empower(&DEFAULT, eks);
    let eks = format!("--as={eks}");
    let groups = "fargate.amazonaws.com/pod-sg=sg-1";
    let remove = format!("{POD_ENI}-");
    let noted = json!({"metadata": {"annotations": {POD_ENI: "other"}}});
    let check = |done: Output, refused: Option<&str>| {
        assert_eq!(!done.success, refused.is_some(), "{done:#?}");
        let expected = refused.map(|what| format!("vpod-annotations {what}"));
        let asked = asked(&neighbour, &name);
        assert_eq!(asked, Vec::from_iter(expected), "{done:#?}");
    };
    let annotate =
        |arguments: &[&str]| namespace.kubectl(&[&["annotate", "pod", "web"], arguments].concat());
    check(namespace.kubectl(&["label", "pod", "web", "a=b"]), None);
    check(annotate(&["a=b"]), None);
    check(annotate(&[&set]), Some("UPDATE pods"));
    check(annotate(&[groups]), Some("UPDATE pods"));
    let by_allocator = namespace.annotate_as_allocator("web", Some("[]"), &[]);
    check(by_allocator, None);
    check(annotate(&["a-"]), None);
    check(annotate(&[&remove]), Some("UPDATE pods"));
    check(annotate(&[&remove, &eks]), None);
    check(status(noted), Some("UPDATE pods/status"));
    let pending = json!({"status": {"phase": "Pending", "message": "a"}});
    check(status(pending), None);
    let brings = || json!({POD_ENI: "[]"});
    check(bind("bindings", brings()), Some("CREATE bindings"));
    let binding = "pods/web/binding";
    check(bind(binding, brings()), Some("CREATE pods/binding"));
    check(bind(binding, json!({"a": "b"})), None);
    let delete = ["delete", "pod", "web", "--wait=false"];
    check(namespace.kubectl(&delete), None);

    let system = "--namespace=kube-system";
    let in_system = |arguments: &[&str], input: Option<&Value>| {
        kubectl(&DEFAULT, &[arguments, &[system]].concat(), input)
    };
    let probe = pod(json!({"name": "conditions"}), json!({}));
    eventually("the service account", || {
        in_system(&["apply", "-f", "-"], Some(&probe))
            .success
            .then_some(())
    });
    assert!(!in_system(&["annotate", "pod", "conditions", &set], None).success);
    assert_eq!(
        asked(&neighbour, "conditions"),
        ["vpod-annotations-system UPDATE pods"]
    );
    in_system(&["delete", "pod", "conditions", "--wait=false"], None).ok();
    unregister(&DEFAULT, &name);
}

#[test]
fn guard_of_annotations_that_is_away_holds_up_nobody_who_does_not_touch_them() {
    let namespace = Namespace::of(&STRICT);
    let name = namespace.name.clone();
    namespace.policies(&[("fargate", by_pod(json!({"on": "fargate"})))]);
    namespace.apply(&pod(json!({}), json!({}))).ok();
    let nobody = free_port().unwrap();
    let guards = ["vpod-annotations", "vpod-creation"];
    let mut entries = entries(&guards, &Neighbour::that_notes());
    for entry in &mut entries {
        entry["clientConfig"]["url"] = json!(format!("https://127.0.0.1:{nobody}/"));
        entry["namespaceSelector"] = json!({"matchLabels": {"kubernetes.io/metadata.name": name}});
    }
    register(&STRICT, &name, &entries);
    // One of the allocators of this sandbox's webhook, of whom the conditions know nothing.
    empower(&STRICT, "carol");
    let set = format!("{POD_ENI}=[]");
    let refused = eventually("the entry to count", || {
        let tried = [
            "annotate",
            "pod",
            "web",
            "--dry-run=server",
            "--as=carol",
            &set,
        ];
        let tried = namespace.kubectl(&tried);
        (!tried.success).then_some(tried)
    });
    let why = "failed calling webhook \"vpod-annotations.vpc.k8s.aws\"";
    assert!(refused.stderr.contains(why), "{refused:#?}");

    let brings = pod(
        json!({"name": "brought", "annotations": {POD_ENI: "[]"}}),
        json!({}),
    );
    // What a pod of Fargate brings along is what our own first look has given it.
    let of_fargate = pod(
        json!({
            "name": "brought",
            "labels": {"on": "fargate", "eks.amazonaws.com/fargate-profile": "default"}
        }),
        json!({"schedulerName": "fargate-scheduler"}),
    );
    for brings in [brings, of_fargate] {
        let refused = namespace.apply(&brings);
        let why = "failed calling webhook \"vpod-creation.vpc.k8s.aws\"";
        assert!(refused.stderr.contains(why), "{refused:#?}");
    }
    namespace
        .apply(&pod(json!({"name": "plain"}), json!({})))
        .ok();

    namespace.annotate_as_allocator("web", Some("[]"), &[]).ok();
    let status = json!({"status": {"phase": "Running"}}).to_string();
    for arguments in [
        &[
            "patch",
            "pod",
            "web",
            "--subresource=status",
            "--patch",
            &status,
        ][..],
        &["label", "pod", "web", "a=b"],
        &["delete", "pod", "web", "--wait=false"],
    ] {
        namespace.kubectl(arguments).ok();
    }
    unregister(&STRICT, &name);
}

#[test]
fn webhook_is_asked_about_deletions_by_force_that_leave_something_behind() {
    let neighbour = Neighbour::that_notes();
    let namespace = Namespace::new();
    let name = namespace.name.clone();
    let mut entries = entries(&["vpod-deletion"], &neighbour);
    entries[0]["namespaceSelector"] = json!({"matchLabels": {"kubernetes.io/metadata.name": name}});
    register(&DEFAULT, &name, &entries);
    kubectl(&DEFAULT, &["apply", "-f", "-"], Some(&node("conditions"))).ok();
    let create = |pod_name: &str, spec: Value, annotated: bool| {
        namespace.apply(&pod(json!({"name": pod_name}), spec)).ok();
        if annotated {
            let annotated = namespace.annotate_as_allocator(pod_name, Some("[]"), &[]);
            annotated.ok();
        }
    };
    let bound = json!({"nodeName": "conditions"});
    create("web", bound.clone(), true);
    create("plain", bound, false);
    create("unbound", json!({}), true);
    let delete = |pod_name: &str, arguments: &[&str]| {
        let delete = [
            "delete",
            "pod",
            pod_name,
            "--wait=false",
            "--dry-run=server",
        ];
        namespace.kubectl(&[&delete[..], arguments].concat()).ok();
        asked(&neighbour, &name).len()
    };
    let by_force = ["--grace-period=0", "--force"];
    eventually("the conditions to count", || {
        (delete("web", &by_force) > 0).then_some(())
    });
    assert_eq!(delete("web", &by_force), 1);
    assert_eq!(delete("web", &[]), 0);
    assert_eq!(delete("web", &["--grace-period=1"]), 0);
    assert_eq!(delete("plain", &by_force), 0);
    assert_eq!(delete("unbound", &by_force), 0);
    assert_eq!(delete("unbound", &[]), 0);
    let collector = "--as=system:serviceaccount:kube-system:pod-garbage-collector";
    assert_eq!(delete("web", &[by_force[0], by_force[1], collector]), 0);

    let phase = json!({"status": {"phase": "Failed"}}).to_string();
    let fail = [
        "patch",
        "pod",
        "web",
        "--subresource=status",
        "--patch",
        &phase,
    ];
    namespace.kubectl(&fail).ok();
    assert_eq!(delete("web", &by_force), 0);
    unregister(&DEFAULT, &name);
}

#[test]
fn webhook_is_asked_about_nodes_that_the_cni_plugin_changes() {
    let neighbour = Neighbour::that_notes();
    register(&DEFAULT, "nodes", &entries(&["vnode"], &neighbour));
    kubectl(&DEFAULT, &["apply", "-f", "-"], Some(&node("asked-about"))).ok();
    let cni = "system:serviceaccount:kube-system:aws-node";
    empower(&DEFAULT, cni);
    let cni = format!("--as={cni}");
    let label = |value: &str, arguments: &[&str]| {
        let label = format!("vpc.amazonaws.com/has-trunk-attached={value}");
        let arguments = [
            &["label", "node", "asked-about", "--overwrite", &label],
            arguments,
        ];
        kubectl(&DEFAULT, &arguments.concat(), None).ok();
        asked(&neighbour, "asked-about")
    };
    eventually("the condition to count", || {
        let asked = [label("true", &[&cni]), label("false", &[&cni])].concat();
        (!asked.is_empty()).then_some(())
    });
    assert_eq!(label("true", &[&cni]), ["vnode UPDATE nodes"]);
    assert!(label("false", &[]).is_empty());
    let status = json!({"status": {"capacity": {"example.com/thing": "1"}}}).to_string();
    let patch = [
        "patch",
        "node",
        "asked-about",
        "--subresource=status",
        "--patch",
        &status,
        &cni,
    ];
    kubectl(&DEFAULT, &patch, None).ok();
    assert!(asked(&neighbour, "asked-about").is_empty());
    unregister(&DEFAULT, "nodes");
}
