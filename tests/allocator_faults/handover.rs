//! Two allocators: who leads ends, dies or freezes, and the other goes on.

use std::fs;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::Api;
use rustix::process::Signal;
use sgp::dev::allocator::Allocator;
use sgp::dev::control_plane::Process;
use sgp::dev::nodes::NodeGroup;

use crate::burst::enter;
use crate::stage::{PATIENCE, Setting, Stage, eventually};

/// The second's name, which also signs its calls to EC2.
const SECOND: &str = "standby";
/// How long the first one's lease lasts when nobody renews it.
const LEASE: Duration = Duration::from_secs(3);
const PODS: usize = 20;

async fn stage() -> (Stage, Allocator) {
    let stage = Stage::start(Setting {
        nodes: vec![NodeGroup::new("m5.2xlarge", 2)],
        ..Setting::default()
    })
    .await;
    let arguments = ["--identity", SECOND];
    let mut second = stage.sandbox().spawn_allocator(SECOND, &arguments).unwrap();
    second.wait_until_it_listens().await.unwrap();
    let log = second.process().log_path().to_owned();
    until_logged(&log, "the cluster is known").await;
    (stage, second)
}

async fn until_logged(log: &Path, words: &str) {
    eventually(words, async || {
        let log = fs::read_to_string(log).unwrap_or_default();
        log.contains(words).then_some(())
    })
    .await;
}

fn first(stage: &mut Stage) -> &mut Process {
    stage.sandbox_mut().allocator().unwrap().process()
}

/// Waits until the lease is the second's.
async fn until_second_leads(stage: &Stage) {
    let leases: Api<Lease> = Api::namespaced(stage.client(), "sgp-system");
    eventually("the second to lead", async || {
        let lease = leases.get("sgp-allocator").await.unwrap();
        let holder = lease.spec.and_then(|spec| spec.holder_identity);
        holder?.starts_with(SECOND).then_some(())
    })
    .await;
}

/// Lets EC2 answer late and a burst begin, so that the first has calls under way.
async fn begin_work(stage: &Stage) -> String {
    stage.set(|settings| {
        settings.latency_ms.insert("*".to_owned(), 500);
    });
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    stage.simulator().reset_calls();
    scene.burst("pod", PODS).await;
    eventually("some pods to be halfway", async || {
        let calls = stage.calls();
        calls.contains_key("AssociateTrunkInterface").then_some(())
    })
    .await;
    scene.name
}

/// All pods run, each with one interface, and nothing else is there.
async fn assert_all_served(stage: &Stage, namespace: &str, pods: usize) {
    enter(stage, namespace).until_running("pod", pods).await;
    assert_eq!(stage.assert_consistent().await, []);
    assert_eq!(stage.interfaces().len(), pods + 2);
}

#[tokio::test]
async fn second_takes_over_within_the_lease_from_a_first_that_is_killed() {
    let (mut stage, _second) = stage().await;
    let namespace = begin_work(&stage).await;

    let stopwatch = stage.stopwatch();
    first(&mut stage).kill().unwrap();
    until_second_leads(&stage).await;
    let led = stopwatch.assert_within(LEASE + Duration::from_secs(1));
    let stopwatch = stage.stopwatch();
    assert_all_served(&stage, &namespace, PODS).await;
    let served = stopwatch.assert_within(Duration::from_secs(10));

    println!("it led after {led:?}, and all ran {served:?} later");
}

#[tokio::test]
async fn first_that_was_frozen_past_its_lease_changes_nothing_when_it_goes_on() {
    let (mut stage, _second) = stage().await;
    let namespace = begin_work(&stage).await;

    first(&mut stage).signal(Signal::STOP).unwrap();
    until_second_leads(&stage).await;
    assert_all_served(&stage, &namespace, PODS).await;
    stage.simulator().reset_calls();
    first(&mut stage).signal(Signal::CONT).unwrap();
    let log = first(&mut stage).log_path().to_owned();
    until_logged(&log, "not leading any more").await;
    // It sees what the second sees, and leaves it alone.
    let scene = enter(&stage, &namespace);
    scene.burst("pod-later", 5).await;
    assert_all_served(&stage, &namespace, PODS + 5).await;
    scene.delete_burst("pod-later").await;
    eventually("the later branches to go", async || {
        (stage.interfaces().len() == PODS + 2).then_some(())
    })
    .await;

    let changes = stage.changes();
    assert!(changes.len() >= 20, "{changes:#?}");
    for call in changes {
        assert_eq!(call.access_key_id, SECOND, "{call:#?}");
    }
}

#[tokio::test]
async fn terminated_leader_ends_at_once_and_the_second_leads_at_once() {
    let (mut stage, _second) = stage().await;

    let (until_end, until_lead) = (stage.stopwatch(), stage.stopwatch());
    let status = first(&mut stage).stop(PATIENCE).unwrap();
    let ended = until_end.assert_within(Duration::from_secs(1));
    until_second_leads(&stage).await;
    let led = until_lead.assert_within(Duration::from_millis(1_500));

    println!("idle: it ended after {ended:?}, the second led after {led:?}");
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn terminated_leader_hands_its_work_over() {
    let (mut stage, _second) = stage().await;
    let namespace = begin_work(&stage).await;

    let until_all_run = stage.stopwatch();
    let (until_end, until_lead) = (stage.stopwatch(), stage.stopwatch());
    let status = first(&mut stage).stop(PATIENCE).unwrap();
    let ended = until_end.assert_within(Duration::from_secs(2));
    until_second_leads(&stage).await;
    let led = until_lead.assert_within(Duration::from_millis(2_500));
    assert_all_served(&stage, &namespace, PODS).await;
    let all_ran = until_all_run.assert_within(Duration::from_secs(10));

    println!(
        "at work: it ended after {ended:?}, the second led after {led:?}, all ran after \
         {all_ran:?}"
    );
    assert!(status.success(), "{status}");
}
