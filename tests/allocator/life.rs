//! A pod's branch interface from its beginning to its end.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::json;
use sgp::api::names::POD_ENI;

use crate::shared;
use crate::stage::{Setting, Stage, phase, until};

#[tokio::test]
async fn pod_runs_with_a_branch_that_ec2_and_kubectl_show() {
    let stage = shared().await;
    let node = stage.add_node("m5.large").await;
    let scene = stage.scene().await;
    let green = &stage.groups().green;
    scene.policy("green", &[green]).await;

    let running = scene.run("green", &node).await;

    let branch = &running.interface;
    let trunk = stage.trunk_of(&node).unwrap();
    let place = branch.association.as_ref().unwrap();
    assert_eq!(branch.description, "aws-k8s-branch-eni");
    assert_eq!(trunk.description, "aws-k8s-trunk-eni");
    assert_eq!(place.trunk_interface_id, trunk.id);
    assert_eq!(branch.groups, [green.as_str()]);
    assert_eq!(trunk.groups, [stage.groups().nodes.as_str()]);
    assert_eq!(branch.subnet_id, stage.network().zones[0].subnet_id);
    assert!(trunk.attachment.as_ref().unwrap().delete_on_termination);
    let (uid, vlan) = (running.uid(), place.vlan_id.to_string());
    let both = [
        ("eks:eni:owner", "eks-vpc-resource-controller"),
        ("kubernetes.io/cluster/sgp-dev", "owned"),
        ("cluster.k8s.amazonaws.com/name", "sgp-dev"),
        ("node.k8s.amazonaws.com/instance_id", &node.instance.id),
    ];
    let own = [
        ("vpcresources.k8s.aws/vlan-id", vlan.as_str()),
        ("vpcresources.k8s.aws/trunk-eni-id", &trunk.id),
        ("vpcresources.k8s.aws/pod-uid", &uid),
    ];
    assert_eq!(tags(&trunk.tags), both.into());
    assert_eq!(tags(&branch.tags), both.into_iter().chain(own).collect());

    let annotation = format!(
        r#"[{{"eniId":"{}","ifAddress":"{}","privateIp":"{}","ipv6Addr":"","vlanId":{vlan},"subnetCidr":"10.0.0.0/19","subnetV6Cidr":"","associationID":"{}"}}]"#,
        branch.id,
        branch.mac_address,
        branch.address(),
        place.id
    );
    assert_eq!(running.pod.annotations()[POD_ENI], annotation);
    let event = stage.until_event(&uid, "ResourceAllocated").await;
    assert_eq!(event.type_.as_deref(), Some("Normal"));
    let note = event.note.unwrap();
    assert!(note.contains(&branch.id) && note.contains(green), "{note}");
    let requested = stage.until_event(&uid, "SecurityGroupRequested").await;
    assert!(requested.note.unwrap().contains(green));

    let mut kubectl = stage.sandbox().control_plane().kubectl();
    let list = kubectl.args(["get", "pods", "-o", "wide", "-n", &scene.name]);
    let list = String::from_utf8(list.output().unwrap().stdout).unwrap();
    assert!(list.contains(&format!(" {} ", branch.address())), "{list}");
}

fn tags(tags: &BTreeMap<String, String>) -> BTreeMap<&str, &str> {
    let pairs = tags.iter();
    pairs.map(|(key, value)| (&**key, &**value)).collect()
}

#[tokio::test]
async fn pod_without_a_policy_is_left_to_its_node() {
    let stage = shared().await;
    let node = stage.add_node("m5.large").await;
    let scene = stage.scene().await;

    scene.pod("red", &node).await;
    let runs = |pod: Option<&Pod>| pod.is_some_and(|pod| phase(pod) == "Running");
    let pod = until(&scene.pods, "red", runs).await.unwrap();

    assert_eq!(pod.annotations().get(POD_ENI), None);
    assert_eq!(stage.branches_of(&node), []);
}

#[tokio::test]
async fn one_pod_costs_four_calls_from_its_creation_to_the_end_of_its_interface() {
    let stage = Stage::start(Setting::with_long_lease()).await;
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    // What is asked once for a subnet and once for a group has been asked then.
    scene.run("first", stage.node()).await;
    stage.simulator().reset_calls();

    let running = scene.run("second", stage.node()).await;
    assert_eq!(stage.assert_consistent().await, []);
    scene.delete("second").await;
    stage.until_nothing_idles().await;

    assert_eq!(stage.interface(&running.interface.id), None);
    let expected = [
        "CreateNetworkInterface",
        "AssociateTrunkInterface",
        "DisassociateTrunkInterface",
        "DeleteNetworkInterface",
    ];
    let expected: BTreeMap<_, _> = expected.map(|action| (action.to_owned(), 1)).into();
    assert_eq!(stage.calls(), expected);
    assert!(
        scene
            .until_runs("first")
            .await
            .interface
            .association
            .is_some()
    );
}

#[tokio::test]
async fn pods_that_end_release_their_branches_although_their_objects_stay() {
    let stage = shared().await;
    let node = stage.add_node("m5.large").await;
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    let once = json!({"restartPolicy": "Never"});
    let names = ["Succeeded", "Failed"].map(|outcome| (outcome.to_lowercase(), outcome));
    for (name, _) in &names {
        scene.pod_with(name, &node, json!({}), once.clone()).await;
        scene.until_runs(name).await;
    }
    let stays = scene.run("stays", &node).await;

    for (name, outcome) in &names {
        let annotations = json!({"sgp.dev/outcome": outcome});
        let metadata = json!({"annotations": annotations});
        scene.patch_metadata(name, metadata).await;
        let ended = move |pod: Option<&Pod>| pod.is_some_and(|pod| phase(pod) == *outcome);
        until(&scene.pods, name, ended).await;
    }

    stage.until_nothing_idles_on(&node).await;
    let left = stage.branches_of(&node);
    assert_eq!(left, [stays.interface]);
    for (name, _) in &names {
        scene.pods.get(name).await.unwrap();
    }
}
