//! What an operator can set, and what the metrics show of it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::Api;
use kube::api::DeleteParams;
use serde_json::json;
use sgp::api::CNINode;
use tempfile::NamedTempFile;

use crate::enforcement;
use crate::stage::{Setting, Stage, allocatable, ask, eventually};

#[tokio::test]
async fn warm_branches_spare_the_next_pods_their_calls_and_metrics_show_it() {
    let setting = Setting {
        arguments: vec!["--warm-branches=1".to_owned()],
        ..Setting::with_long_lease()
    };
    let stage = Stage::start(setting).await;
    let (green, database) = (&stage.groups().green, &stage.groups().database);
    let scene = stage.scene().await;
    scene.policy("web", &[green]).await;
    for line in [
        "sgp_allocator_leading 1",
        "sgp_trunk_interfaces 1",
        "sgp_branch_interface_capacity 9",
        "sgp_pods_waiting 0",
    ] {
        stage.until_metric(line).await;
    }
    let first = scene.run("first", stage.node()).await;
    scene.run("second", stage.node()).await;
    for line in [
        "sgp_branch_interfaces{state=\"in_use\"} 2",
        "sgp_allocation_duration_seconds_count 2",
        "sgp_ec2_requests_total{action=\"AssociateTrunkInterface\",outcome=\"ok\"} 2",
    ] {
        stage.until_metric(line).await;
    }

    scene.delete("first").await;
    stage
        .until_metric("sgp_branch_interfaces{state=\"cooling\"} 1")
        .await;
    stage
        .until_metric("sgp_branch_interfaces{state=\"warm\"} 1")
        .await;
    stage.simulator().reset_calls();
    let third = scene.run("third", stage.node()).await;
    assert_eq!(third.interface, first.interface);
    assert_eq!(third.annotation, first.annotation);
    assert_eq!(stage.calls(), BTreeMap::new());

    // One more than may be kept, and the one that is kept gets other groups.
    scene.delete("second").await;
    scene.delete("third").await;
    eventually("one branch to be left", async || {
        (stage.branches_of(stage.node()).len() == 1).then_some(())
    })
    .await;
    stage.simulator().reset_calls();
    scene.set_groups("web", &[database]).await;
    let fourth = scene.run("fourth", stage.node()).await;
    // Who watches policies and pods may see the pod first.
    scene.until_groups(&fourth, &[database]).await;
    let calls = stage.calls_about(&fourth.interface);
    assert_eq!(calls, ["ModifyNetworkInterfaceAttribute"]);
    assert_eq!(stage.assert_consistent().await, []);

    // No group of that id exists, so that its pods wait.
    let lost = stage.scene().await;
    lost.policy("lost", &["sg-0123456789abcdef0"]).await;
    lost.pod("waits", stage.node()).await;
    stage.until_metric("sgp_pods_waiting 1").await;
    let waits = lost.pods.get("waits").await.unwrap();
    let conditions = waits.status.unwrap().conditions.unwrap();
    let bound = conditions.iter().find(|it| it.type_ == "PodScheduled");
    let since = bound.unwrap().last_transition_time.as_ref().unwrap();
    let since = since.0.as_second();
    let metric = "sgp_pods_waiting_since_seconds";
    stage.until_metric(&format!("{metric} {since}")).await;
    lost.delete("waits").await;
    stage.until_metric(&format!("{metric} 0")).await;
}

#[tokio::test]
async fn table_of_the_operator_sets_how_many_branches_a_type_takes() {
    let header = include_str!("../../src/ec2/instance-types.csv");
    let header = header.lines().next().unwrap();
    let mut table = NamedTempFile::new().unwrap();
    writeln!(table, "{header}\nm5.large,3,10,true,2,3,nitro,false").unwrap();
    let setting = Setting {
        arguments: vec![format!("--instance-limits={}", table.path().display())],
        ..Setting::default()
    };
    let stage = Stage::start(setting).await;

    let nodes: Api<Node> = Api::all(stage.client());
    let node = nodes.get(&stage.node().name).await.unwrap();
    assert_eq!(allocatable(&node), Some(2));
}

#[tokio::test]
async fn beside_the_controller_of_eks_it_answers_and_only_labels_namespaces() {
    let mut stage = Stage::start(Setting::default()).await;
    let allocator = stage.sandbox_mut().allocator().unwrap();
    allocator.process().stop(Duration::from_secs(5)).unwrap();
    // The overlay for EKS has no such role.
    let bindings = Api::<ClusterRoleBinding>::all(stage.client());
    let default = DeleteParams::default();
    bindings.delete("sgp-interfaces", &default).await.unwrap();
    let arguments = ["--eni-backend=eks"];
    let eks = stage.sandbox().spawn_allocator("eks", &arguments);
    let mut eks = eks.unwrap();
    eks.wait_until_it_listens().await.unwrap();
    stage.simulator().reset_calls();
    let zone = &stage.network().zones[0].name;
    let node = stage.sandbox().add_node("m5.large", zone).await.unwrap();

    let green = &stage.groups().green;
    let path = format!("/v1/admission?id={green}&id=sg-00000000");
    let answer = eventually("the cluster to be known", async || {
        let answer = ask(eks.socket(), &path).await;
        answer["vpc_id"].is_string().then_some(answer)
    })
    .await;
    assert_eq!(answer["missing"], json!(["sg-00000000"]));
    assert_eq!(answer["elsewhere"], json!([]));

    enforcement::assert_labels(&stage).await;

    let calls = stage.calls();
    let is_harmless = |call: &&String| call.starts_with("Describe") || *call == "RunInstances";
    assert!(calls.keys().all(|call| is_harmless(&call)), "{calls:?}");
    let cni_nodes = Api::<CNINode>::all(stage.client());
    assert!(cni_nodes.get_opt(&node.name).await.unwrap().is_none());
    let log = fs::read_to_string(eks.process().log_path()).unwrap();
    assert!(!log.contains("forbidden"), "{log}");
}
