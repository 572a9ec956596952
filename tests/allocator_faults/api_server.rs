//! The API server refuses what the allocator writes, for a while.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::stage::{Setting, Stage, eventually};

/// What lets it write what has become of interfaces.
const ROLE: &str = "sgp-interfaces";
/// From the end of a fault to the last pod's annotation.
const RECOVERY: Duration = Duration::from_secs(5);

/// Takes a verb on a resource from the allocator's role, and gives the role as it was.
async fn withdraw(stage: &Stage, resource: &str, verb: &str) -> ClusterRole {
    let roles: Api<ClusterRole> = Api::all(stage.client());
    let before = roles.get(ROLE).await.unwrap();
    let mut role = before.clone();
    let mut withdrawn = 0;
    for rule in role.rules.iter_mut().flatten() {
        if rule.resources.iter().flatten().any(|it| it == resource) {
            let verbs = rule.verbs.len();
            rule.verbs.retain(|it| it != verb);
            withdrawn += verbs - rule.verbs.len();
        }
    }
    assert_eq!(withdrawn, 1, "{role:#?}");
    // A rule without verbs is not valid.
    let rules = role.rules.as_mut().unwrap();
    rules.retain(|rule| !rule.verbs.is_empty());
    replace(stage, role).await;
    before
}

/// Puts a role in force, whatever is there.
async fn replace(stage: &Stage, mut role: ClusterRole) {
    let roles: Api<ClusterRole> = Api::all(stage.client());
    role.metadata.resource_version = None;
    let parameters = PostParams::default();
    roles.replace(ROLE, &parameters, &role).await.unwrap();
}

#[tokio::test]
async fn pods_wait_for_the_right_to_be_annotated_and_are_told() {
    let stage = Stage::start(Setting::with_long_lease()).await;
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    let role = withdraw(&stage, "pods/status", "patch").await;
    scene.burst("pod", 5).await;

    for pod in scene.burst_pods("pod").await {
        let uid = pod.uid().unwrap();
        let event = stage.until_event_that(&uid, "BranchENIAnnotationFailed", |note| {
            note.contains("patch pod status") && note.contains("manifests/base/rbac.yaml")
        });
        assert_eq!(event.await.type_.as_deref(), Some("Warning"));
    }
    let stopwatch = stage.stopwatch();
    replace(&stage, role).await;
    scene.until_annotated("pod", 5).await;

    let took = stopwatch.assert_within(RECOVERY);
    println!("right to patch pods/status is back: {took:?}");
    assert_eq!(stage.assert_consistent().await, []);
    assert_eq!(stage.branches_of(stage.node()).len(), 5);
}

#[tokio::test]
async fn nodes_wait_for_the_right_to_offer_interfaces_and_are_told() {
    let stage = Stage::start(Setting::with_long_lease()).await;
    let role = withdraw(&stage, "nodes/status", "patch").await;
    let zone = &stage.network().zones[0].name;
    let node = stage.sandbox().add_node("m5.large", zone).await.unwrap();

    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(stage.client());
    let uid = nodes.get(&node.name).await.unwrap().uid().unwrap();
    let event = stage.until_event_that(&uid, "NodeTrunkFailedInitialization", |note| {
        note.contains("patch node status") && note.contains("manifests/base/rbac.yaml")
    });
    event.await;
    let stopwatch = stage.stopwatch();
    replace(&stage, role).await;
    stage.until_settled(&node).await;

    let took = stopwatch.assert_within(RECOVERY);
    println!("right to patch nodes/status is back: {took:?}");
}

#[tokio::test]
async fn pods_that_never_stop_changing_are_annotated() {
    let stage = Stage::start(Setting::with_long_lease()).await;
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    stage.set(|settings| {
        settings
            .latency_ms
            .insert("CreateNetworkInterface".to_owned(), 500);
    });
    let is_over = AtomicBool::new(false);
    scene.burst("pod", 3).await;
    let change = |pod: Pod| {
        let (pods, is_over) = (scene.pods.clone(), &is_over);
        async move {
            let name = pod.name_any();
            let mut number = 0;
            while !is_over.load(Ordering::Relaxed) {
                number += 1;
                let labels = json!({"number": number.to_string()});
                let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
                let parameters = PatchParams::default();
                pods.patch(&name, &parameters, &patch).await.unwrap();
            }
            number
        }
    };
    let pods = scene.burst_pods("pod").await;
    let changing = futures::future::join_all(pods.into_iter().map(change));
    let stopwatch = stage.stopwatch();
    let annotated = async {
        scene.until_annotated("pod", 3).await;
        is_over.store(true, Ordering::Relaxed);
    };
    let (changes, ()) = tokio::join!(changing, annotated);

    let took = stopwatch.assert_within(Duration::from_millis(500) + RECOVERY);
    println!("annotated after {took:?}, while the pods changed {changes:?} times");
    assert_eq!(stage.assert_consistent().await, []);
}

#[tokio::test]
async fn pod_of_the_same_name_gets_an_interface_of_its_own() {
    let stage = Stage::start(Setting::default()).await;
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    for late in ["CreateNetworkInterface", "AssociateTrunkInterface"] {
        stage.set(|settings| {
            settings.latency_ms.clear();
            settings.latency_ms.insert(late.to_owned(), 1_000);
        });
        stage.simulator().reset_calls();
        scene.pod("pod", stage.node()).await;
        eventually("its call", async || {
            stage.calls().contains_key(late).then_some(())
        })
        .await;
        let at_once = DeleteParams::default().grace_period(0);
        scene.pods.delete("pod", &at_once).await.unwrap();

        let running = scene.run("pod", stage.node()).await;

        let uid = running.interface.tag(sgp::api::names::TAG_POD_UID);
        assert_eq!(uid, running.uid(), "{late}");
        scene.delete("pod").await;
        stage.until_nothing_idles().await;
        assert_eq!(stage.branches_of(stage.node()), []);
    }
}
