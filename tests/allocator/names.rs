//! Pods that follow one another under one name, and pods that go before they have begun.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use serde_json::json;

use crate::shared;
use crate::stage::{Setting, Stage, eventually, object, phase, pod, until};

/// That of the shared stage.
const COOLDOWN: Duration = Duration::from_secs(30);

#[tokio::test]
async fn pod_made_anew_under_its_name_has_one_interface_and_never_that_of_the_one_before() {
    let stage = shared().await;
    let node = stage.add_node("m5.large").await;
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    let labels = json!({"app": "web"});
    let on_node = json!({"kubernetes.io/hostname": node.name});
    let mut template = pod("", json!({"nodeSelector": on_node}));
    template["metadata"] = json!({"labels": labels});
    let set: StatefulSet = object(json!({
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 1, "serviceName": "web",
            "selector": {"matchLabels": labels}, "template": template
        }
    }));
    let sets: Api<StatefulSet> = Api::namespaced(scene.client.clone(), &scene.name);
    sets.create(&PostParams::default(), &set).await.unwrap();

    let is_there = |pod: Option<&Pod>| pod.is_some();
    let (mut interfaces, mut vlans) = (BTreeSet::new(), BTreeSet::new());
    let mut released = Vec::new();
    for round in 0..4 {
        until(&scene.pods, "web-0", is_there).await;
        let running = scene.until_runs("web-0").await;
        let uid = running.uid();
        assert!(
            interfaces.insert(running.annotation.interface_id.clone()),
            "an interface that still cools down was given to {uid}"
        );
        assert!(vlans.insert(running.annotation.vlan_id));
        assert_eq!(running.interface.tag("vpcresources.k8s.aws/pod-uid"), uid);
        if round < 3 {
            released.push((running.annotation.interface_id.clone(), Instant::now()));
            match round % 2 {
                0 => scene.delete("web-0").await,
                _ => scene.delete_by_force("web-0").await,
            }
            let is_next =
                move |pod: Option<&Pod>| pod.is_some_and(|pod| pod.uid() != Some(uid.clone()));
            until(&scene.pods, "web-0", is_next).await;
        }
    }

    // All of them rest, but on a machine so slow that the first have rested already.
    let idle = stage.assert_consistent_on(&node).await;
    let idle: BTreeSet<_> = idle.iter().map(|branch| branch.id.as_str()).collect();
    for (id, since) in &released {
        assert!(idle.contains(id.as_str()) || since.elapsed() > COOLDOWN);
    }
    assert!(idle.len() <= released.len(), "{idle:#?}");
    stage.until_nothing_idles_on(&node).await;
    assert_eq!(stage.branches_of(&node).len(), 1);
}

#[tokio::test]
async fn pod_that_goes_while_its_interface_is_made_leaves_none_behind() {
    let stage = Stage::start(Setting::default()).await;
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    let mut settings = stage.simulator().settings();
    let create = "CreateNetworkInterface".to_owned();
    settings.latency_ms.insert(create.clone(), 3_000);
    stage.simulator().set(settings).unwrap();
    stage.simulator().reset_calls();

    let gone = scene.pod("gone", stage.node()).await;
    eventually("the call", async || stage.calls().get(&create).copied()).await;
    scene.delete_by_force("gone").await;
    // The same name at once, and this one stays.
    let stays = scene.pod("gone", stage.node()).await;
    assert_ne!(gone.uid(), stays.uid());

    let running = scene.until_runs("gone").await;
    assert_eq!(running.pod.uid(), stays.uid());
    eventually("the other interface to go", async || {
        let left = stage.assert_consistent().await;
        left.is_empty().then_some(())
    })
    .await;
    let branches = stage.branches_of(stage.node());
    assert_eq!(branches, [running.interface]);
    assert_eq!(phase(&running.pod), "Running");
}
