//! The allocator dies at any moment and starts again.

use std::time::{Duration, Instant};

use sgp::dev::control_plane::Process;
use sgp::dev::nodes::NodeGroup;

use crate::burst::enter;
use crate::stage::{Setting, Stage, eventually};

async fn stage(nodes: NodeGroup) -> Stage {
    Stage::start(Setting {
        nodes: vec![nodes],
        ..Setting::default()
    })
    .await
}

fn process(stage: &mut Stage) -> &mut Process {
    stage.sandbox_mut().allocator().unwrap().process()
}

/// Kills the allocator in the middle of a burst of 45 pods, so long after its first change in
/// EC2, and then again and again while further pods come; in the end everything is right.
async fn burst_survives_kills(visibility_delay_ms: u64, lifetimes_ms: &[u64]) {
    let mut stage = stage(NodeGroup::new("m5.2xlarge", 5)).await;
    stage.set(|settings| {
        settings.latency_ms.insert("*".to_owned(), 200);
        settings.cloud.interface_visibility_delay_ms = visibility_delay_ms;
    });
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    let namespace = scene.name.clone();
    let mut pods = 0;
    for (life, lifetime) in lifetimes_ms.iter().enumerate() {
        let further = if life == 0 { 45 } else { 9 };
        stage.simulator().reset_calls();
        let scene = enter(&stage, &namespace);
        scene.burst(&format!("pod-{life}"), further).await;
        pods += further;
        eventually("a change", async || stage.changes().pop()).await;
        tokio::time::sleep(Duration::from_millis(*lifetime)).await;
        process(&mut stage).kill().unwrap();
        process(&mut stage).restart().unwrap();
    }
    let begin = Instant::now();
    let scene = enter(&stage, &namespace);
    scene.until_running("pod", pods).await;
    println!("all run {:?} after the last restart", begin.elapsed());
    stage.until_nothing_idles().await;
    assert_eq!(stage.interfaces().len(), pods + 5);
}

#[tokio::test]
async fn burst_survives_kills_at_any_moment() {
    burst_survives_kills(0, &[10, 150, 250, 330, 420, 30]).await;
}

#[tokio::test]
async fn burst_survives_kills_while_ec2_shows_things_late() {
    burst_survives_kills(2_000, &[10, 150, 330]).await;
}

#[tokio::test]
async fn start_with_many_pods_changes_nothing_and_asks_little() {
    const PODS: usize = 200;
    let mut stage = Stage::start(Setting {
        nodes: vec![NodeGroup::new("m5.24xlarge", 2)],
        ..Setting::with_long_lease()
    })
    .await;
    let node = stage.node().clone();
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    scene.burst("pod", PODS).await;
    let took = scene.until_running("pod", PODS).await;
    println!("{PODS} pods run after {took:?}");
    let namespace = scene.name.clone();
    let before = stage.interfaces();
    let status = process(&mut stage).stop(Duration::from_secs(5)).unwrap();
    assert!(status.success());
    stage.simulator().reset_calls();

    let stopwatch = stage.stopwatch();
    process(&mut stage).restart().unwrap();
    let scene = enter(&stage, &namespace);
    scene.run("further", &node).await;
    let took = stopwatch.assert_within(Duration::from_secs(5));

    println!(
        "{took:?} from the start to the next pod, with {:?}",
        stage.calls()
    );
    let changes: Vec<_> = stage.changes().into_iter().map(|it| it.action).collect();
    assert_eq!(
        changes,
        ["CreateNetworkInterface", "AssociateTrunkInterface"]
    );
    let asked: u64 = stage.calls().values().sum::<u64>() - 2;
    assert!(asked <= 4, "{:?}", stage.calls());
    let mut after = stage.interfaces();
    after.retain(|id, _| before.contains_key(id));
    assert_eq!(after, before);
    assert_eq!(stage.assert_consistent().await, []);
}
