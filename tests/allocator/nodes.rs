//! Nodes that come, go and come back, and the objects that belong to them.

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use sgp::api::CNINode;
use sgp::api::names::{HAS_TRUNK_ATTACHED, POD_ENI};
use sgp::dev::InstanceFate;
use sgp::dev::nodes::SandboxNode;

use crate::shared;
use crate::stage::{Running, Scene, Stage, allocatable, eventually, object, trunk_label, until};

/// Calls that take an interface away from its pod.
const HARMFUL: [&str; 2] = ["DisassociateTrunkInterface", "DeleteNetworkInterface"];

fn cni_nodes(stage: &Stage) -> Api<CNINode> {
    Api::all(stage.client())
}

#[tokio::test]
async fn every_node_has_a_cni_node_of_its_own() {
    let stage = shared().await;
    let node = stage.add_node("m5.large").await;

    let is_there = |object: Option<&CNINode>| object.is_some();
    let cni_node = until(&cni_nodes(stage), &node.name, is_there)
        .await
        .unwrap();

    let nodes: Api<Node> = Api::all(stage.client());
    let object = nodes.get(&node.name).await.unwrap();
    assert_eq!(
        cni_node.finalizers(),
        ["networking.k8s.aws/resource-cleanup"]
    );
    let [owner] = cni_node.owner_references() else {
        panic!("one owner: {cni_node:?}");
    };
    assert_eq!(
        (owner.api_version.as_str(), owner.kind.as_str()),
        ("v1", "Node")
    );
    assert_eq!(owner.name, node.name);
    assert_eq!(Some(&owner.uid), object.metadata.uid.as_ref());
    let tags = [(
        "kubernetes.io/cluster/sgp-dev".to_owned(),
        "owned".to_owned(),
    )];
    assert_eq!(cni_node.spec.tags, tags.into());
    assert_eq!(cni_node.spec.features, []);
    let uid = object.uid().unwrap();
    let event = stage.until_event(&uid, "NodeTrunkInitiated").await;
    assert!(
        event
            .note
            .unwrap()
            .contains(&stage.trunk_of(&node).unwrap().id)
    );
}

#[tokio::test]
async fn the_feature_of_the_cni_node_alone_makes_a_node_take_part() {
    let stage = shared().await;
    let zone = &stage.network().zones[0].name;
    let instance = stage.sandbox().cloud().run_instance("m5.large", zone).await;
    let instance = instance.unwrap();
    let name = instance.private_dns_name.clone();
    let nodes: Api<Node> = Api::all(stage.client());
    let unlabelled: Node = object(json!({
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name,
            "node.kubernetes.io/instance-type": "m5.large",
        }},
        "spec": {"providerID": format!("aws:///{zone}/{}", instance.id)},
        "status": {"capacity": {"cpu": "2", "memory": "8Gi", "pods": "29"}}
    }));
    nodes
        .create(&PostParams::default(), &unlabelled)
        .await
        .unwrap();
    let node = stage
        .sandbox()
        .register_node(&name, instance)
        .await
        .unwrap();
    let is_there = |object: Option<&CNINode>| object.is_some();
    until(&cni_nodes(stage), &name, is_there).await;
    let unasked = nodes.get(&name).await.unwrap();
    assert_eq!(trunk_label(&unasked), None);
    assert_eq!(stage.interfaces_of(&node), []);

    let spec = json!({"features": [{"name": "SecurityGroupsForPods", "value": ""}]});
    let extra = json!({"team": "network"});
    patch_cni_node(stage, &name, json!({"spec": spec})).await;
    patch_cni_node(stage, &name, json!({"spec": {"tags": extra}})).await;

    let settled = stage.until_settled(&node).await;
    assert_eq!(trunk_label(&settled), Some("true"));
    assert_eq!(allocatable(&settled), Some(9));
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    let running = scene.run("green", &node).await;
    assert_eq!(running.interface.tag("team"), "network");
}

async fn patch_cni_node(stage: &Stage, name: &str, patch: serde_json::Value) {
    let parameters = PatchParams::default();
    let patch = Patch::Merge(patch);
    let patched = cni_nodes(stage).patch(name, &parameters, &patch).await;
    patched.unwrap();
}

#[tokio::test]
async fn all_that_was_made_for_a_node_goes_with_it_and_its_instance() {
    let stage = shared().await;
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    let node = stage.add_node("m5.large").await;
    scene.run("one", &node).await;
    scene.run("other", &node).await;

    remove(stage, &node, InstanceFate::Terminated).await;
    // As the pod garbage collector does after a while.
    scene.delete_by_force("one").await;
    scene.delete_by_force("other").await;

    until_all_is_gone(stage, &node).await;
}

#[tokio::test]
async fn all_that_was_made_for_a_node_goes_with_it_although_its_instance_runs_on() {
    let stage = shared().await;
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    let node = stage.add_node("m5.large").await;
    let running = scene.run("green", &node).await;

    remove(stage, &node, InstanceFate::Kept).await;
    let is_deleted = |object: Option<&CNINode>| {
        object.is_none_or(|object| object.metadata.deletion_timestamp.is_some())
    };
    until(&cni_nodes(stage), &node.name, is_deleted).await;
    // A pod that is still there keeps its branch, and the branch its trunk.
    assert_unharmed(stage, &running);
    scene.delete_by_force("green").await;

    until_all_is_gone(stage, &node).await;
}

async fn remove(stage: &Stage, node: &SandboxNode, fate: InstanceFate) {
    stage.sandbox().remove_node(node, fate).await.unwrap();
}

async fn until_all_is_gone(stage: &Stage, node: &SandboxNode) {
    eventually("its interfaces to go", async || {
        stage.interfaces_of(node).is_empty().then_some(())
    })
    .await;
    let is_gone = |object: Option<&CNINode>| object.is_none();
    until(&cni_nodes(stage), &node.name, is_gone).await;
}

/// A pod has the interface that it had, and nobody ever tried to take it.
fn assert_unharmed(stage: &Stage, running: &Running) {
    let now = stage.interface(&running.interface.id);
    assert_eq!(now.as_ref(), Some(&running.interface));
    let calls = stage.calls_about(&running.interface);
    let harmful = calls.iter().find(|call| HARMFUL.contains(&call.as_str()));
    assert_eq!(harmful, None, "{calls:?}");
}

/// A further pod has come and gone, and its branch has cooled down and gone: whatever was to
/// befall others in that time has befallen them.
async fn let_a_pod_come_and_go(scene: &Scene<'_>, name: &str, node: &SandboxNode) -> Running {
    let running = scene.run(name, node).await;
    scene.delete(name).await;
    eventually("the branch of the further pod to go", async || {
        let left = scene.stage.interface(&running.interface.id);
        left.is_none().then_some(())
    })
    .await;
    running
}

#[tokio::test]
async fn node_made_anew_with_its_instance_takes_nothing_from_its_running_pods() {
    let stage = shared().await;
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    let node = stage.add_node("m5.large").await;
    let trunk = stage.trunk_of(&node).unwrap();
    let running = scene.run("green", &node).await;

    remove(stage, &node, InstanceFate::Kept).await;
    let again = stage
        .sandbox()
        .register_node(&node.name, node.instance.clone());
    let again = again.await.unwrap();
    stage.until_settled(&again).await;

    let further = let_a_pod_come_and_go(&scene, "further", &again).await;
    let place = further.interface.association.unwrap();
    assert_eq!(place.trunk_interface_id, trunk.id);
    assert_eq!(stage.trunk_of(&node), Some(trunk));
    assert_unharmed(stage, &running);
    assert_eq!(stage.assert_consistent_on(&node).await, []);
    assert_eq!(
        cni_node_owner(stage, &node).await,
        node_uid(stage, &node).await
    );
}

#[tokio::test]
async fn node_made_anew_with_another_instance_takes_nothing_from_pods_of_the_one_before() {
    let stage = shared().await;
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    let node = stage.add_node("m5.large").await;
    let running = scene.run("green", &node).await;

    remove(stage, &node, InstanceFate::Kept).await;
    let zone = &node.instance.zone;
    let instance = stage.sandbox().cloud().run_instance("m5.large", zone).await;
    let again = stage.sandbox().register_node(&node.name, instance.unwrap());
    let again = again.await.unwrap();
    stage.until_settled(&again).await;

    let further = let_a_pod_come_and_go(&scene, "further", &again).await;
    assert_eq!(further.interface.instance_id(), again.instance.id);
    assert_unharmed(stage, &running);
    // Its pod was of the first instance, and with it goes the last reason for all that.
    scene.delete_by_force("green").await;
    eventually("what the first instance had to go", async || {
        stage.interfaces_of(&node).is_empty().then_some(())
    })
    .await;
    assert!(stage.trunk_of(&again).is_some());
}

async fn cni_node_owner(stage: &Stage, node: &SandboxNode) -> String {
    let wanted = node_uid(stage, node).await;
    let is_owned = move |object: Option<&CNINode>| {
        object.is_some_and(|object| {
            let mut owners = object.owner_references().iter();
            owners.any(|owner| owner.uid == wanted)
        })
    };
    let object = until(&cni_nodes(stage), &node.name, is_owned)
        .await
        .unwrap();
    object.owner_references()[0].uid.clone()
}

async fn node_uid(stage: &Stage, node: &SandboxNode) -> String {
    let nodes: Api<Node> = Api::all(stage.client());
    nodes.get(&node.name).await.unwrap().uid().unwrap()
}

#[tokio::test]
async fn deleted_cni_node_of_a_node_comes_back_with_its_features_and_harms_no_pod() {
    let stage = shared().await;
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    let node = stage.add_node("m5.large").await;
    let feature = json!({"name": "SecurityGroupsForPods", "value": ""});
    let spec = json!({"spec": {"features": [feature]}});
    patch_cni_node(stage, &node.name, spec).await;
    let running = scene.run("green", &node).await;
    let before = cni_nodes(stage).get(&node.name).await.unwrap();

    let parameters = DeleteParams::default();
    let deleted = cni_nodes(stage).delete(&node.name, &parameters).await;
    deleted.unwrap();

    let (uid, features) = (before.uid(), before.spec.features.clone());
    let is_back = move |object: Option<&CNINode>| {
        object.is_some_and(|object| object.uid() != uid && object.spec.features == features)
    };
    let again = until(&cni_nodes(stage), &node.name, is_back).await.unwrap();
    assert_eq!(again.finalizers(), before.finalizers());
    let_a_pod_come_and_go(&scene, "further", &node).await;
    assert_unharmed(stage, &running);
    let settled = stage.until_settled(&node).await;
    assert_eq!(trunk_label(&settled), Some("true"));
}

#[tokio::test]
async fn capacity_and_label_that_others_overwrite_come_back() {
    let stage = shared().await;
    let node = stage.add_node("m5.large").await;
    let nodes: Api<Node> = Api::all(stage.client());
    let parameters = PatchParams::default();
    let reset = |amount: serde_json::Value| {
        let amounts = json!({POD_ENI: amount});
        Patch::Merge(json!({"status": {"capacity": amounts, "allocatable": amounts}}))
    };

    for amount in [json!(null), json!("0"), json!("90")] {
        let patched = nodes
            .patch_status(&node.name, &parameters, &reset(amount))
            .await
            .unwrap();
        assert_ne!(allocatable(&patched), Some(9));
        let is_right = |node: Option<&Node>| node.and_then(allocatable) == Some(9);
        until(&nodes, &node.name, is_right).await;
    }
    // The plugin asks again after it was restarted.
    let labels = json!({"metadata": {"labels": {HAS_TRUNK_ATTACHED: "false"}}});
    let patch = Patch::Merge(labels);
    nodes.patch(&node.name, &parameters, &patch).await.unwrap();
    let is_right = |node: Option<&Node>| node.and_then(trunk_label) == Some("true");
    until(&nodes, &node.name, is_right).await;
}
