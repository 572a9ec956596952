//! What the CNI plugin may change of a node, told from what other webhooks change besides.

use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::cluster::{DEFAULT, Output, empower, eventually, kubectl, node};
use crate::documented::block;
use crate::neighbour::{Neighbour, mutating, rule};

const AWS_NODE: &str = "system:serviceaccount:kube-system:aws-node";
const TRUNK: &str = "vpc.amazonaws.com/has-trunk-attached";
const ENI_CONFIG: &str = "vpc.amazonaws.com/eniConfig";

static RIGHTS: LazyLock<()> = LazyLock::new(|| empower(&DEFAULT, AWS_NODE));

/// A new node with a label, an annotation and a taint of its kubelet.
fn create(name: &str) {
    LazyLock::force(&RIGHTS);
    let mut node = node(name);
    node["metadata"]["labels"] = json!({"pool": "a"});
    node["metadata"]["annotations"] = json!({"note": "a"});
    node["spec"] = json!({"taints": [{"key": "a", "effect": "NoSchedule"}]});
    kubectl(&DEFAULT, &["create", "-f", "-"], Some(&node)).ok();
}

/// Patches a node as the CNI plugin.
fn patch(name: &str, patch: &Value) -> Output {
    patch_as(AWS_NODE, name, patch, &[])
}

fn patch_as(user: &str, name: &str, patch: &Value, arguments: &[&str]) -> Output {
    let (user, patch) = (format!("--as={user}"), patch.to_string());
    let all = [
        "patch",
        "node",
        name,
        &user,
        "--type=merge",
        "--patch",
        &patch,
    ];
    kubectl(&DEFAULT, &[&all[..], arguments].concat(), None)
}

fn label(key: &str, value: impl Into<Value>) -> Value {
    let value: Value = value.into();
    json!({"metadata": {"labels": {key: value}}})
}

/// The message of a denial, which names what was to be changed.
fn denial(name: &str, changes: &str) -> String {
    let text = block("webhook.md", "nodes_that_the_cni_plugin_changes")[0].clone();
    let text = text.replace("\"one\"", &format!("\"{name}\""));
    let text = text.replace("label pool, annotation note, spec.taints", changes);
    format!("admission webhook \"vnode.vpc.k8s.aws\" denied the request: {text}\n")
}

#[track_caller]
fn assert_refused(output: &Output, name: &str, changes: &str) {
    assert!(!output.success, "{output:#?}");
    let denial = denial(name, changes);
    assert!(
        output.stderr.ends_with(&denial),
        "{denial}\n{}",
        output.stderr
    );
}

pub fn cni_plugin_changes_its_two_labels_and_nothing_else(texts: &[String]) {
    create("one");
    let changes = json!({
        "metadata": {"labels": {TRUNK: "false", "pool": "b"}, "annotations": {"note": null}},
        "spec": {"taints": null}
    });
    let refused = patch("one", &changes);
    assert!(
        refused
            .stderr
            .ends_with(&format!("request: {}\n", texts[0])),
        "{refused:#?}"
    );
    create("limited");
    patch("limited", &label(TRUNK, "false")).ok();
    patch("limited", &label(TRUNK, "true")).ok();
    patch("limited", &label(ENI_CONFIG, "zone-a")).ok();
    patch("limited", &label(ENI_CONFIG, Value::Null)).ok();
    // What the API server does not even store.
    patch("limited", &label("pool", "a")).ok();

    for (change, told) in [
        (label("pool", "b"), "label pool"),
        (label("pool", Value::Null), "label pool"),
        (label("new", "b"), "label new"),
        (
            json!({"metadata": {"annotations": {"note": "b"}}}),
            "annotation note",
        ),
        (
            json!({"metadata": {"annotations": {"note": null}}}),
            "annotation note",
        ),
        (
            json!({"metadata": {"annotations": {"new": "b"}}}),
            "annotation new",
        ),
        (json!({"spec": {"taints": null}}), "spec.taints"),
        (
            json!({"spec": {"taints": [{"key": "b", "effect": "NoExecute"}]}}),
            "spec.taints",
        ),
        (
            json!({"spec": {"unschedulable": true}}),
            "spec.unschedulable",
        ),
        (
            json!({"spec": {"providerID": "aws:///a/i-1"}}),
            "spec.providerID",
        ),
        (
            json!({"metadata": {"labels": {TRUNK: "false", "pool": "b"}, "annotations": {"x": "y"}}}),
            "label pool, annotation x",
        ),
    ] {
        assert_refused(&patch("limited", &change), "limited", told);
        let dry_run = patch_as(AWS_NODE, "limited", &change, &["--dry-run=server"]);
        assert_refused(&dry_run, "limited", told);
        // Under whatever name it writes.
        let named = patch_as(
            AWS_NODE,
            "limited",
            &change,
            &["--field-manager=kubectl-create"],
        );
        assert_refused(&named, "limited", told);
    }
    let status = json!({"status": {"capacity": {"example.com/thing": "1"}}});
    patch_as(AWS_NODE, "limited", &status, &["--subresource=status"]).ok();
    patch_as(
        "admin",
        "limited",
        &label("pool", "b"),
        &["--as-group=system:masters"],
    )
    .ok();
}

#[test]
fn whole_updates_and_server_side_apply_are_looked_at_too() {
    create("whole");
    let user = format!("--as={AWS_NODE}");
    // Again where somebody wrote in between, as every client has to: controllers of the
    // cluster write nodes too.
    let replace = |change: &dyn Fn(&mut Value)| {
        eventually("a write that nobody else's write meets", || {
            let mut node = kubectl(&DEFAULT, &["get", "node", "whole", "-o", "json"], None)
                .ok()
                .json();
            change(&mut node);
            let output = kubectl(&DEFAULT, &["replace", &user, "-f", "-"], Some(&node));
            let conflict = output.stderr.starts_with("Error from server (Conflict)");
            (!conflict).then_some(output)
        })
    };

    replace(&|node| node["metadata"]["labels"][TRUNK] = json!("false")).ok();
    let others = |node: &mut Value| {
        node["metadata"]["labels"]["pool"] = json!("b");
        let annotations = node["metadata"]["annotations"].as_object_mut();
        annotations.unwrap().remove("note");
    };
    assert_refused(&replace(&others), "whole", "label pool, annotation note");
    // Whoever wipes out what is noted of who wrote what has nothing to show for himself.
    let unseen = |node: &mut Value| {
        others(node);
        node["metadata"]["managedFields"] = json!([{}]);
    };
    assert_refused(
        &replace(&unseen),
        "whole",
        "label pool, annotation note, metadata.managedFields",
    );

    let apply = |labels: Value| {
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "whole", "labels": labels}
        });
        let arguments = [
            "apply",
            "--server-side",
            "--force-conflicts",
            &user,
            "-f",
            "-",
        ];
        kubectl(&DEFAULT, &arguments, Some(&node))
    };
    apply(json!({ENI_CONFIG: "zone-a"})).ok();
    assert_refused(
        &apply(json!({ENI_CONFIG: "zone-a", "pool": "b"})),
        "whole",
        "label pool",
    );
}

/// The caller says as which manager he writes, times are of whole seconds, and what is noted can
/// be written like any field.
#[test]
fn changes_can_not_be_hidden_behind_who_has_written_what() {
    create("hidden");
    let owner = "--field-manager=kubectl-create";
    let as_owner = |change: &Value| patch_as(AWS_NODE, "hidden", change, &[owner]);
    // Its own label renews the owner's entry; what it changes within the same second does not.
    let own = |value: &str| as_owner(&label(TRUNK, value)).ok();
    for value in ["true", "false", "true"] {
        own(value);
        assert_refused(&as_owner(&label("pool", "b")), "hidden", "label pool");
    }
    let wipe = json!({"metadata": {"managedFields": [{}]}});
    assert_refused(&patch("hidden", &wipe), "hidden", "metadata.managedFields");
    let written = kubectl(&DEFAULT, &["get", "node", "hidden", "-o", "json"], None).ok();
    assert_eq!(written.json()["metadata"]["labels"]["pool"], "a");
}

/// Whether it has the taint of the test's other webhook.
fn has_their_taint(node: &Value) -> bool {
    let taints = node["spec"]["taints"].as_array();
    taints.is_some_and(|taints| taints.iter().any(|taint| taint["key"] == "theirs"))
}

#[test]
fn what_another_webhook_changes_besides_does_not_count() {
    // What controllers of the cluster write is left as it is, whenever they do.
    let neighbour = Neighbour::that_changes(|_, request| {
        let is_plugin = request["userInfo"]["username"] == AWS_NODE;
        if !is_plugin || request["object"]["metadata"]["name"] != "meddled" {
            return Vec::new();
        }
        let metadata = &request["object"]["metadata"];
        let counted = metadata["annotations"]["count"].as_str().unwrap_or("0");
        let count = counted.parse::<u64>().unwrap() + 1;
        let mut changes = vec![
            json!({"op": "add", "path": "/metadata/annotations/count", "value": count.to_string()}),
            json!({"op": "add", "path": "/metadata/labels/theirs", "value": count.to_string()}),
            json!({"op": "add", "path": "/metadata/labels/pool", "value": "theirs"}),
            json!({"op": "add", "path": "/spec/unschedulable", "value": true}),
        ];
        // Beside those of the cluster's controllers, which would set theirs again for ever.
        if !has_their_taint(&request["object"]) {
            let taint = json!({"key": "theirs", "effect": "NoSchedule"});
            changes.push(json!({"op": "add", "path": "/spec/taints/0", "value": taint}));
        }
        if !metadata["annotations"]["note"].is_null() {
            changes.push(json!({"op": "remove", "path": "/metadata/annotations/note"}));
        }
        changes
    });
    create("meddled");
    let entry = neighbour.mutating_entry("/meddle", &rule("UPDATE", "nodes"), None);
    let configuration = mutating("nodes", &[entry]);
    kubectl(&DEFAULT, &["apply", "-f", "-"], Some(&configuration)).ok();
    let read = || {
        kubectl(&DEFAULT, &["get", "node", "meddled", "-o", "json"], None)
            .ok()
            .json()
    };
    let own = label(TRUNK, "true");
    // Dry runs, so that there is everything left to change. Refused while what the other
    // webhook changes has been written just now, also by controllers of the cluster.
    eventually("the other webhook to be called", || {
        let tried = patch_as(AWS_NODE, "meddled", &own, &["--dry-run=server", "-o=json"]);
        (tried.success && tried.json()["metadata"]["labels"]["theirs"] == "1").then_some(())
    });
    assert_eq!(read()["metadata"]["annotations"]["note"], "a");
    let change = |change: &Value| {
        eventually("the plugin's change to be let through", || {
            patch("meddled", change).success.then_some(())
        });
    };
    change(&own);
    let node = read();
    assert_eq!(node["metadata"]["labels"][TRUNK], "true");
    assert_eq!(node["metadata"]["labels"]["pool"], "theirs");
    assert!(node["metadata"]["annotations"]["note"].is_null());
    assert!(has_their_taint(&node), "{node:#}");
    // And again, now that it changes what it has set itself; also where the plugin's change is
    // the removal of a label, or none.
    for own in [label(TRUNK, "false"), label(TRUNK, Value::Null), json!({})] {
        change(&own);
    }
    assert_ne!(read()["metadata"]["labels"]["theirs"], "1");

    // Beside all that the plugin's own changes count.
    let refused = |change: &Value, told: &str| {
        let denial = denial("meddled", told);
        eventually(&denial, || {
            let refused = patch("meddled", change);
            assert!(!refused.success, "{refused:#?}");
            refused.stderr.ends_with(&denial).then_some(())
        });
    };
    for (change, told) in [
        (label("new", "b"), "label new"),
        (label("cluster", "b"), "label cluster"),
        (
            json!({"metadata": {"annotations": {"new": "b"}}}),
            "annotation new",
        ),
        (
            json!({"spec": {"providerID": "aws:///a/i-1"}}),
            "spec.providerID",
        ),
    ] {
        refused(&change, told);
    }
    // What is the administrator's own change now, and the plugin's to remove in vain.
    patch_as(
        "admin",
        "meddled",
        &label("cluster", "a"),
        &["--as-group=system:masters"],
    )
    .ok();
    refused(&label("cluster", Value::Null), "label cluster");
    let configuration = "mutatingwebhookconfiguration/zz-nodes";
    kubectl(&DEFAULT, &["delete", configuration], None).ok();
}
