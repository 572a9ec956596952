//! EC2 takes few calls: everybody is served all the same, and few calls are refused.

use std::time::Duration;

use sgp::dev::nodes::NodeGroup;
use sgp::ec2::simulator::Bucket;

use crate::stage::{Setting, Stage};

const PODS: usize = 20;

#[tokio::test]
async fn throttled_to_two_calls_a_second_all_are_served_and_then_quickly() {
    let stage = Stage::start(Setting {
        nodes: vec![NodeGroup::new("m5.2xlarge", 4)],
        cooldown: Some(600),
        ..Setting::with_long_lease()
    })
    .await;
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    stage.set(|settings| {
        let bucket = Bucket {
            rate: 2.0,
            burst: 2.0,
        };
        settings.throttling.insert("*".to_owned(), bucket);
    });
    stage.simulator().reset_calls();

    scene.burst("throttled", PODS).await;
    let stopwatch = stage.stopwatch();
    scene.until_annotated("throttled", PODS).await;
    // 20 creations at two a second take 9 seconds at the least.
    let took = stopwatch.assert_within(Duration::from_secs(30));

    let counts = stage.simulator().call_counts();
    let refused: u64 = counts
        .by_action
        .values()
        .filter_map(|outcomes| outcomes.get("RequestLimitExceeded"))
        .sum();
    println!(
        "throttled: {took:?}, {refused} of {} calls refused: {counts:?}",
        counts.total
    );
    assert!(refused * 2 < counts.total, "{counts:?}");

    scene.burst("waiting", PODS).await;
    scene.until_bound("waiting", PODS).await;
    let stopwatch = stage.stopwatch();
    stage.set(|settings| settings.throttling.clear());
    let took = scene.until_annotated("waiting", PODS).await;
    println!("after throttling: {took:?}");
    let gone = scene
        .assert_in_time(stopwatch, Duration::from_secs(5), PODS)
        .await;
    scene.until_running("throttled", PODS).await;
    scene.until_running("waiting", PODS).await;
    assert_eq!(stage.assert_consistent().await.len(), gone);
}
