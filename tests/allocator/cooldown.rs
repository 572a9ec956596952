//! How long a branch interface rests after its pod.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt};

use crate::stage::{Setting, Stage};

const UPDATED: &str = "BranchENICoolDownPeriodUpdated";

#[tokio::test]
async fn cooldown_follows_the_config_map_and_says_what_it_makes_of_it() {
    let setting = Setting {
        cooldown: None,
        ..Setting::default()
    };
    let stage = Stage::start(setting).await;
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    let nodes: Api<Node> = Api::all(scene.client.clone());
    let node = nodes.get(&stage.node().name).await.unwrap();
    let uid = node.uid().unwrap();

    // Of two bad values neither changes the default, and both are told of.
    stage.set_cooldown("soon").await;
    let told = |part: &'static str| move |note: &str| note.contains(part);
    let event = stage
        .until_event_that(&uid, UPDATED, told("\"soon\""))
        .await;
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    assert!(event.note.unwrap().contains("rest for 60 s"));
    stage.set_cooldown("later").await;
    stage
        .until_event_that(&uid, UPDATED, told("\"later\""))
        .await;
    stage.set_cooldown("10").await;
    let event = stage
        .until_event_that(&uid, UPDATED, told("less than 30 s"))
        .await;
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    stage.set_cooldown("3600").await;
    let event = stage.until_event_that(&uid, UPDATED, told("3600 s")).await;
    assert_eq!(event.type_.as_deref(), Some("Normal"));

    // A branch that rests already follows too.
    scene.run("green", stage.node()).await;
    let released = Instant::now();
    scene.delete("green").await;
    stage.set_cooldown("30").await;
    stage
        .until_event_that(&uid, UPDATED, told("30 s after"))
        .await;
    assert_eq!(stage.assert_consistent().await.len(), 1);
    stage.until_nothing_idles().await;
    let took = released.elapsed();
    assert!(took >= Duration::from_secs(30), "{took:?}");
}
