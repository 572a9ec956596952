//! Single calls to EC2 fail, before or after they took effect: in the end everything is as
//! if they had not.

use std::time::Duration;

use sgp::dev::InstanceFate;
use sgp::dev::nodes::NodeGroup;
use sgp::ec2::simulator::{FaultOutcome, Moment};

use crate::burst::{error, once};
use crate::stage::{Setting, Stage, eventually};

/// Every way in which one call can fail.
fn failures() -> Vec<(Moment, FaultOutcome)> {
    let outcomes = [
        error("InternalError"),
        FaultOutcome::Drop,
        FaultOutcome::Hang,
    ];
    [Moment::Before, Moment::After]
        .into_iter()
        .flat_map(|moment| outcomes.clone().map(|outcome| (moment, outcome)))
        .collect()
}

async fn stage() -> Stage {
    Stage::start(Setting {
        nodes: vec![NodeGroup::new("m5.4xlarge", 1)],
        ..Setting::with_long_lease()
    })
    .await
}

/// All faults that were set have happened.
async fn until_all_happened(stage: &Stage) {
    eventually("the faults to happen", async || {
        stage.simulator().faults().is_empty().then_some(())
    })
    .await;
}

/// For each call of a pod's beginning and each way to fail: one pod.
async fn each_call_of_a_pods_beginning_fails(stage: &Stage, failures: &[(Moment, FaultOutcome)]) {
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    for action in ["CreateNetworkInterface", "AssociateTrunkInterface"] {
        for (index, (moment, outcome)) in failures.iter().enumerate() {
            let fault = once(action, *moment, outcome.clone());
            stage.simulator().add_fault(fault).unwrap();
            let name = format!("{}-{index}", action.to_lowercase());
            scene.run(&name, stage.node()).await;
            assert_eq!(stage.simulator().faults(), [], "{name} met the fault");
            let idle = stage.assert_consistent().await;
            assert_eq!(idle, [], "{action} {moment:?} {outcome:?}");
        }
    }
}

#[tokio::test]
async fn each_call_of_a_pods_life() {
    let stage = stage().await;
    each_call_of_a_pods_beginning_fails(&stage, &failures()).await;
    let scene = stage.scene().await;
    let (green, database) = (&stage.groups().green, &stage.groups().database);
    scene.policy("policy", &[green]).await;

    // Its middle.
    let running = scene.run("changes", stage.node()).await;
    for (index, (moment, outcome)) in failures().into_iter().enumerate() {
        let fault = once("ModifyNetworkInterfaceAttribute", moment, outcome.clone());
        stage.simulator().add_fault(fault).unwrap();
        let groups = [database, green][index % 2];
        let stopwatch = stage.stopwatch();
        scene.set_groups("policy", &[groups]).await;
        scene.until_groups(&running, &[groups]).await;
        let took = stopwatch.assert_within(Duration::from_secs(5));
        println!("groups changed although {moment:?} {outcome:?}: {took:?}");
        until_all_happened(&stage).await;
    }
    assert_eq!(stage.assert_consistent().await, []);

    // Its end, of several at once: each failure is another one's.
    scene.burst("ends", 2 * failures().len()).await;
    scene.until_running("ends", 2 * failures().len()).await;
    for action in ["DisassociateTrunkInterface", "DeleteNetworkInterface"] {
        for (moment, outcome) in failures() {
            stage
                .simulator()
                .add_fault(once(action, moment, outcome))
                .unwrap();
        }
    }
    scene.delete_burst("ends").await;
    until_all_happened(&stage).await;
    stage.until_nothing_idles().await;
}

#[tokio::test]
async fn each_call_of_a_nodes_life() {
    let stage = stage().await;
    let zone = &stage.network().zones[0].name;
    let mut nodes = Vec::new();
    for action in [
        "CreateNetworkInterface",
        "AttachNetworkInterface",
        "ModifyNetworkInterfaceAttribute",
        "DescribeNetworkInterfaces",
        "DescribeInstances",
    ] {
        // Of several nodes at once: each failure is another one's.
        for (moment, outcome) in failures() {
            stage
                .simulator()
                .add_fault(once(action, moment, outcome))
                .unwrap();
        }
        let added = (0..failures().len()).map(|_| stage.sandbox().add_node("m5.large", zone));
        let added = futures::future::try_join_all(added).await.unwrap();
        for node in &added {
            stage.until_settled(node).await;
            let trunk = stage.trunk_of(node).expect("it has a trunk");
            assert!(trunk.attachment.unwrap().delete_on_termination, "{action}");
        }
        assert_eq!(stage.assert_consistent().await, [], "{action}");
        // Those that few nodes need may be left over.
        stage.simulator().clear_faults();
        nodes.extend(added);
    }

    for action in ["DetachNetworkInterface", "DeleteNetworkInterface"] {
        for (moment, outcome) in failures() {
            stage
                .simulator()
                .add_fault(once(action, moment, outcome))
                .unwrap();
        }
    }
    for node in nodes.split_off(nodes.len() - 2 * failures().len()) {
        let removed = stage.sandbox().remove_node(&node, InstanceFate::Kept).await;
        removed.unwrap();
    }
    until_all_happened(&stage).await;
    eventually("the trunks to go", async || {
        (stage.interfaces().len() == nodes.len() + 1).then_some(())
    })
    .await;
    stage.assert_consistent().await;
}

#[tokio::test]
async fn what_ec2_shows_late_and_does_slowly() {
    let stage = stage().await;
    stage.set(|settings| {
        settings.cloud.interface_visibility_delay_ms = 2_000;
        settings.cloud.transition_ms = 500;
    });
    let zone = &stage.network().zones[0].name;
    for action in ["CreateNetworkInterface", "AttachNetworkInterface"] {
        let fault = once(action, Moment::After, FaultOutcome::Drop);
        stage.simulator().add_fault(fault).unwrap();
        let node = stage.sandbox().add_node("m5.large", zone).await.unwrap();
        stage.until_settled(&node).await;
    }
    let lost = [
        (Moment::After, FaultOutcome::Drop),
        (Moment::After, FaultOutcome::Hang),
        (Moment::Before, error("InternalError")),
    ];
    each_call_of_a_pods_beginning_fails(&stage, &lost).await;

    // A pod that is gone before EC2 shows what was made for it.
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    let before = stage.interfaces().len();
    let fault = once("CreateNetworkInterface", Moment::After, FaultOutcome::Hang);
    stage.simulator().add_fault(fault).unwrap();
    scene.pod("short", stage.node()).await;
    until_all_happened(&stage).await;
    assert_eq!(stage.interfaces().len(), before + 1);
    scene.delete("short").await;
    eventually("its interface to go", async || {
        (stage.interfaces().len() == before).then_some(())
    })
    .await;
}
