//! Pods that are deleted by force while they have an interface.

use serde_json::json;

use crate::cluster::{DEFAULT, Namespace, empower, kubectl, node, pod};
use crate::documented::block;

/// The pod garbage collector deletes pods of a node that is not there.
fn make_node() {
    kubectl(&DEFAULT, &["apply", "-f", "-"], Some(&node("forced"))).ok();
}

/// A pod on a node, with an interface.
fn with_interface(namespace: &Namespace, name: &str) {
    make_node();
    let pod = pod(json!({"name": name}), json!({"nodeName": "forced"}));
    namespace.apply(&pod).ok();
    namespace.annotate_as_allocator(name, Some("[]"), &[]).ok();
}

/// Whether whoever deletes the pod is told that its network stays behind.
fn is_warned(namespace: &Namespace, name: &str, arguments: &[&str]) -> bool {
    let delete = [&["delete", "pod", name, "--wait=false"], arguments].concat();
    let tried = namespace.kubectl(&delete).ok();
    let warning = block("webhook.md", "deletions_by_force")[0].replace("web", name);
    let warned = tried.warnings().contains(&warning.as_str());
    assert_eq!(tried.stderr.contains("VPC CNI"), warned, "{tried:#?}");
    warned
}

const BY_FORCE: [&str; 2] = ["--grace-period=0", "--force"];
const DRY_RUN: &str = "--dry-run=server";

pub fn whoever_deletes_a_pod_by_force_is_told_what_stays_behind(_: &[String]) {
    let namespace = Namespace::new();
    with_interface(&namespace, "web");
    let [grace, force] = BY_FORCE;
    let alice = "alice";
    empower(&DEFAULT, alice);
    let alice = format!("--as={alice}");

    assert!(is_warned(&namespace, "web", &[grace, force, DRY_RUN]));
    assert!(is_warned(
        &namespace,
        "web",
        &[grace, force, DRY_RUN, &alice]
    ));
    assert!(!is_warned(
        &namespace,
        "web",
        &["--grace-period=1", DRY_RUN]
    ));
    assert!(!is_warned(&namespace, "web", &[DRY_RUN]));

    // The same when it ends already and is not waited for any more.
    assert!(!is_warned(&namespace, "web", &[]));
    assert!(is_warned(&namespace, "web", &BY_FORCE));
    let pods = namespace.kubectl(&["get", "pods", "-o", "name"]).ok();
    assert_eq!(pods.stdout, "", "nobody is refused");
}

#[test]
fn kubelets_and_controllers_are_told_nothing() {
    let namespace = Namespace::new();
    with_interface(&namespace, "web");
    empower(&DEFAULT, "system:node:forced");
    let [grace, force] = BY_FORCE;
    for user in [
        "system:node:forced",
        "system:serviceaccount:kube-system:pod-garbage-collector",
    ] {
        let user = format!("--as={user}");
        assert!(!is_warned(
            &namespace,
            "web",
            &[grace, force, DRY_RUN, &user]
        ));
    }
}

#[test]
fn pods_without_a_network_to_remove_go_without_a_word() {
    let namespace = Namespace::new();
    make_node();
    let [grace, force] = BY_FORCE;
    let none = pod(json!({"name": "none"}), json!({"nodeName": "forced"}));
    namespace.apply(&none).ok();
    assert!(!is_warned(&namespace, "none", &[grace, force]));

    // The API server deletes these two at once whatever anybody says.
    namespace
        .apply(&pod(json!({"name": "unbound"}), json!({})))
        .ok();
    namespace
        .annotate_as_allocator("unbound", Some("[]"), &[])
        .ok();
    assert!(!is_warned(&namespace, "unbound", &[]));

    with_interface(&namespace, "finished");
    let phase = json!({"status": {"phase": "Succeeded"}}).to_string();
    let finish = [
        "patch",
        "pod",
        "finished",
        "--subresource=status",
        "--patch",
        &phase,
    ];
    namespace.kubectl(&finish).ok();
    assert!(!is_warned(&namespace, "finished", &[]));
}
