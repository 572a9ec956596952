//! How many pods with branch interfaces a node takes, and nodes that take none yet.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use sgp::dev::nodes::NodeGroup;

use crate::shared;
use crate::stage::{
    Setting, Stage, allocatable, annotation, eventually, object, phase, pod, trunk_label, until,
};

#[tokio::test]
async fn five_m5_large_run_45_pods_and_the_46th_runs_once_another_has_gone() {
    let setting = Setting {
        nodes: vec![NodeGroup::new("m5.large", 5)],
        ..Setting::default()
    };
    let stage = Stage::start(setting).await;
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    let create = async |number: usize| {
        let pod: Pod = object(pod(&format!("pod-{number:02}"), json!({})));
        let parameters = PostParams::default();
        let created = scene.pods.create(&parameters, &pod).await;
        created.unwrap().name_any()
    };
    for number in 1..=45 {
        create(number).await;
    }
    eventually("45 pods to run", async || {
        let all = scene.pods.list(&ListParams::default()).await.unwrap();
        let running = all.items.iter().filter(|pod| phase(pod) == "Running");
        (running.count() == 45).then_some(())
    })
    .await;
    assert_eq!(stage.assert_consistent().await, []);
    for node in stage.sandbox().nodes() {
        assert_eq!(stage.branches_of(node).len(), 9);
    }

    let last = create(46).await;
    let is_refused = |pod: Option<&Pod>| {
        let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.clone());
        let mut conditions = conditions.into_iter().flatten();
        conditions.any(|it| it.type_ == "PodScheduled" && it.status == "False")
    };
    let pending = until(&scene.pods, &last, is_refused).await.unwrap();
    assert_eq!(phase(&pending), "Pending");
    assert_eq!(pending.spec.unwrap().node_name, None);

    let first = scene.until_runs("pod-01").await;
    scene.delete("pod-01").await;
    let running = scene.until_runs(&last).await;
    // The node carries no more, so that it is the branch of the pod before or in its place.
    assert_eq!(
        running.interface.instance_id(),
        first.interface.instance_id()
    );
    assert_eq!(stage.assert_consistent().await, []);
    assert_eq!(stage.interfaces().len(), 45 + 5);
}

#[tokio::test]
async fn node_of_a_type_without_trunks_says_so_and_takes_no_such_pod() {
    let stage = shared().await;
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;

    let node = stage.add_node("t3.medium").await;

    let nodes: Api<Node> = Api::all(scene.client.clone());
    let object = nodes.get(&node.name).await.unwrap();
    assert_eq!(trunk_label(&object), Some("not-supported"));
    assert_eq!(allocatable(&object), None);
    assert_eq!(stage.interfaces_of(&node), []);
    let uid = object.uid().unwrap();
    let event = stage.until_event(&uid, "UnsupportedInstanceType").await;
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    assert!(event.note.unwrap().contains("t3.medium"));
    scene.pod("green", &node).await;
    let is_refused = |pod: Option<&Pod>| {
        let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.clone());
        let mut conditions = conditions.into_iter().flatten();
        conditions.any(|it| it.type_ == "PodScheduled" && it.status == "False")
    };
    until(&scene.pods, "green", is_refused).await;
}

#[tokio::test]
async fn full_instance_gets_its_trunk_and_waiting_pods_their_branches_once_a_slot_is_free() {
    let stage = shared().await;
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    let zone = &stage.network().zones[0];
    let cloud = stage.sandbox().cloud();
    let instance = cloud.run_instance("m5.large", &zone.name).await.unwrap();
    let ec2 = cloud.client();
    let mut attachments = Vec::new();
    // With the primary one these are all that the type has.
    for index in [1, 2] {
        let call = ec2.create_network_interface().subnet_id(&zone.subnet_id);
        let created = call.send().await.unwrap();
        let id = created.network_interface().unwrap();
        let id = id.network_interface_id().unwrap();
        let call = ec2.attach_network_interface().network_interface_id(id);
        let call = call.instance_id(&instance.id).device_index(index);
        let attached = call.send().await.unwrap();
        attachments.push(attached.attachment_id().unwrap().to_owned());
    }

    let name = instance.private_dns_name.clone();
    let node = stage
        .sandbox()
        .register_node(&name, instance)
        .await
        .unwrap();
    let nodes: Api<Node> = Api::all(scene.client.clone());
    let object = nodes.get(&node.name).await.unwrap();
    let uid = object.uid().unwrap();
    let event = stage
        .until_event(&uid, "NodeTrunkFailedInitialization")
        .await;
    let note = event.note.unwrap();
    assert!(note.contains("AttachmentLimitExceeded"), "{note}");
    assert!(note.contains("when there is room"), "{note}");
    // The scheduler would not bind it; other schedulers and static pods know no better.
    let bound = json!({"nodeName": node.name});
    scene.pod_with("early", &node, json!({}), bound).await;
    let early = scene.pods.get("early").await.unwrap();
    let told = stage
        .until_event(&early.uid().unwrap(), "BranchAllocationFailed")
        .await;
    let note = told.note.unwrap();
    assert!(note.contains("trunk interface is not ready"), "{note}");
    assert_eq!(annotation(&early), None);
    let object = nodes.get(&node.name).await.unwrap();
    assert_eq!(trunk_label(&object), Some("false"));

    let stopwatch = stage.stopwatch();
    let call = ec2.detach_network_interface();
    call.attachment_id(&attachments[0]).send().await.unwrap();

    scene.until_runs("early").await;
    stopwatch.assert_within(Duration::from_secs(10));
    let settled = stage.until_settled(&node).await;
    assert_eq!(allocatable(&settled), Some(9));
    stage.until_event(&uid, "NodeTrunkInitiated").await;
    assert_eq!(stage.assert_consistent_on(&node).await, []);
}
