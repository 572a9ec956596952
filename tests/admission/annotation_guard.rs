//! Who may write the annotations that name a pod's interface and its groups.

use serde_json::{Value, json};

use crate::cluster::{
    AS_ALLOCATOR, DEFAULT, FARGATE_GROUPS, Namespace, Output, POD_ENI, STRICT, empower, eventually,
    kubectl, node, pod,
};
use crate::documented::block;

/// What is said to whoever may not do this with the pod's interface.
fn may_not(act: &str) -> String {
    let text = block("webhook.md", "annotations_that_others_write")[0].clone();
    text.replace("may not set", &format!("may not {act}"))
}

#[track_caller]
fn assert_refused(output: &Output, message: &str) {
    assert!(!output.success, "{output:#?}");
    assert!(
        output.stderr.contains(message),
        "{message}\n{}",
        output.stderr
    );
    assert!(output.stderr.contains("(Forbidden)"), "{}", output.stderr);
    // A word for nobody else than the guard.
    let entry = "admission webhook \"vpod-annotations.vpc.k8s.aws\"";
    assert!(output.stderr.contains(entry), "{}", output.stderr);
}

/// `kubectl annotate pod web`, once as a dry run and once really, with the same end.
fn annotate(namespace: &Namespace, arguments: &[&str]) -> Output {
    let annotate = [&["annotate", "pod", "web", "--overwrite"], arguments].concat();
    let tried = namespace.kubectl(&[&annotate[..], &["--dry-run=server"]].concat());
    let done = namespace.kubectl(&annotate);
    assert_eq!(tried.success, done.success, "{tried:#?} {done:#?}");
    assert_eq!(tried.stderr, done.stderr);
    done
}

/// A namespace with the pod `web`.
fn with_pod() -> Namespace {
    let namespace = Namespace::new();
    namespace.apply(&pod(json!({}), json!({}))).ok();
    namespace
}

#[test]
fn interface_of_a_pod_is_the_allocators_to_write() {
    let namespace = with_pod();
    let [set, change] = ["[]", "[{}]"].map(|value| format!("{POD_ENI}={value}"));
    let remove = format!("{POD_ENI}-");
    let by_admin = |change: &str| annotate(&namespace, &[change]);
    let by_allocator = |value: Option<&str>| {
        for arguments in [&["--dry-run=server"][..], &[]] {
            namespace
                .annotate_as_allocator("web", value, arguments)
                .ok();
        }
    };

    assert_refused(&by_admin(&set), &may_not("set"));
    by_allocator(Some("[]"));
    assert_refused(&by_admin(&change), &may_not("change"));
    assert_refused(&by_admin(&remove), &may_not("remove"));
    // Whatever else of the pod is anybody's.
    by_admin("note=yes").ok();
    namespace.kubectl(&["label", "pod", "web", "note=yes"]).ok();
    by_admin(&set).ok();
    by_allocator(Some("[{}]"));
    by_allocator(None);

    for user in [
        "system:serviceaccount:kube-system:eks-vpc-resource-controller",
        "eks:vpc-resource-controller",
    ] {
        empower(&DEFAULT, user);
        let user = format!("--as={user}");
        annotate(&namespace, &[&set, &user]).ok();
        annotate(&namespace, &[&remove, &user]).ok();
    }
}

pub fn others_write(texts: &[String]) {
    let [interface, groups, new] = texts else {
        panic!("three texts");
    };
    let namespace = with_pod();
    let by_admin = |name: &str| annotate(&namespace, &[&format!("{name}=a")]);
    assert_refused(&by_admin(POD_ENI), interface);
    assert_refused(&by_admin(FARGATE_GROUPS), groups);

    let namespace = Namespace::new();
    let metadata = json!({"annotations": {POD_ENI: "[]"}});
    let brings = pod(metadata, json!({}));
    let message = format!(
        "Error from server (Forbidden): error when creating \"STDIN\": admission webhook \
         \"vpod-enforced.vpc.k8s.aws\" denied the request: {new}\n"
    );
    for refused in [namespace.dry_run(&brings), namespace.apply(&brings)] {
        assert!(!refused.success);
        assert_eq!(refused.stderr, message);
    }
}

#[test]
fn allocator_can_annotate_pods_and_change_nothing_that_they_run() {
    let namespace = with_pod();
    let patch = json!({
        "metadata": {"annotations": {POD_ENI: "[]"}},
        "spec": {"containers": [{"name": "web", "image": "other"}], "activeDeadlineSeconds": 1}
    });
    namespace.patch_as_allocator("web", &patch, &[]).ok();
    let read = ["get", "pod", "web", "-o", "json"];
    let pod = namespace.kubectl(&read).ok().json();
    assert_eq!(pod["metadata"]["annotations"][POD_ENI], "[]");
    assert_eq!(pod["spec"]["containers"][0]["image"], "web");
    assert!(pod["spec"]["activeDeadlineSeconds"].is_null(), "{pod:#}");

    let can = |what: &[&str]| {
        let ask = [&["auth", "can-i", AS_ALLOCATOR], what].concat();
        namespace.kubectl(&ask).stdout == "yes\n"
    };
    for resource in ["pods", "nodes"] {
        assert!(can(&["patch", resource, "--subresource=status"]));
        for verb in ["create", "update", "patch", "delete"] {
            assert!(!can(&[verb, resource]), "{verb} {resource}");
        }
    }
}

#[test]
fn there_is_no_way_around_the_guard() {
    let namespace = with_pod();
    let annotations = json!({"metadata": {"annotations": {POD_ENI: "[]"}}}).to_string();
    let status = ["patch", "pod", "web", "--subresource=status", "--patch"];
    let by_status = [&status[..], &[annotations.as_str()]].concat();
    assert_refused(&namespace.kubectl(&by_status), &may_not("set"));

    kubectl(&DEFAULT, &["apply", "-f", "-"], Some(&node("guarded"))).ok();
    let binding = |annotations: Value| {
        json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {
                "name": "web", "namespace": namespace.name, "annotations": annotations
            },
            "target": {"kind": "Node", "name": "guarded"}
        })
    };
    let namespaced = format!("/api/v1/namespaces/{}", namespace.name);
    let paths = ["pods/web/binding", "bindings"].map(|path| format!("{namespaced}/{path}"));
    let bind = |path: &str, annotations: Value| {
        let arguments = ["create", "--raw", path, "-f", "-"];
        namespace.kubectl_with(&arguments, Some(&binding(annotations)))
    };
    for path in &paths {
        assert_refused(&bind(path, json!({POD_ENI: "[]"})), &may_not("set"));
    }
    let read = || {
        namespace
            .kubectl(&["get", "pod", "web", "-o", "json"])
            .ok()
            .json()
    };
    assert!(read()["metadata"]["annotations"][POD_ENI].is_null());
    // What it guards against does happen: the pod gets the annotations of its binding.
    bind(&paths[0], json!({"note": "yes"})).ok();
    assert_eq!(read()["metadata"]["annotations"]["note"], "yes");

    // The other sub-resources leave annotations as they are.
    for subresource in ["ephemeralcontainers", "resize"] {
        let path = format!("{namespaced}/pods/web/{subresource}");
        let replace = ["replace", "--raw", &path, "-f", "-"];
        // Again where somebody wrote in between, as every client has to.
        let replaced = eventually("a write that nobody else's write meets", || {
            let mut changed = read();
            changed["metadata"]["annotations"][POD_ENI] = json!("[]");
            let output = namespace.kubectl_with(&replace, Some(&changed));
            let conflict = output.stderr.starts_with("Error from server (Conflict)");
            (!conflict).then_some(output)
        });
        replaced.ok();
        assert!(read()["metadata"]["annotations"][POD_ENI].is_null());
    }
}

#[test]
fn allocator_is_who_the_operator_says() {
    let namespace = Namespace::of(&STRICT);
    namespace.apply(&pod(json!({}), json!({}))).ok();
    for user in ["carol", "dave"] {
        empower(&STRICT, user);
    }
    let set = format!("{POD_ENI}=[]");
    annotate(&namespace, &[&set, "--as=carol"]).ok();
    let refused = annotate(&namespace, &[&format!("{POD_ENI}-"), "--as=dave"]);
    assert!(
        refused.stderr.contains("user \"dave\" may not remove"),
        "{refused:#?}"
    );
}
