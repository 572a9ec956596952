//! How often EC2 is called for a pod, from its creation until nothing of it is left.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use kube::api::DeleteParams;
use sgp::allocator::cooldown;
use sgp::dev::Sandbox;
use sgp::dev::nodes::NodeGroup;
use sgp::dev::pod_watch::PodWatch;
use sgp::ec2::simulator::CallCounts;

use crate::Bench;
use crate::cluster::{self, DATABASE, GREEN, PATIENCE};
use crate::latency::annotated;
use crate::report::Section;

const PODS: usize = 9;

pub(crate) async fn calls(bench: &Bench) -> anyhow::Result<Section> {
    bench.progress("a pod's life with a new interface");
    let mut sandbox = cluster::start(bench, NodeGroup::new("m5.large", 1)).await?;
    cluster::set_cooldown(&sandbox.control_plane().client(), cooldown::MINIMUM).await?;
    let watch = PodWatch::start(cluster::pods(&sandbox));
    let mut section = Section::new(format!("Calls to EC2 for each of {PODS} pods"));

    sandbox.simulator().reset_calls();
    live(&sandbox, &watch, GREEN, 0).await?;
    until_calls(&sandbox, "DeleteNetworkInterface", PODS).await?;
    let cold = sandbox.simulator().call_counts();
    let what = "new interface, deleted after its pod";
    add(&mut section, what, 4.0, &cold);

    bench.progress("a pod's life with an interface that was another's");
    let process = sandbox.allocator().context("an allocator was started")?;
    process.process().stop(Duration::from_secs(2))?;
    let argument = format!("--warm-branches={PODS}");
    let mut warm = sandbox.spawn_allocator("warm", &[&argument])?;
    warm.wait_until_it_listens().await?;
    live(&sandbox, &watch, GREEN, PODS).await?;
    rest().await;
    sandbox.simulator().reset_calls();
    live(&sandbox, &watch, DATABASE, 2 * PODS).await?;
    let other_groups = sandbox.simulator().call_counts();
    let what = "interface of an earlier pod with other groups";
    add(&mut section, what, 1.0, &other_groups);
    rest().await;
    sandbox.simulator().reset_calls();
    live(&sandbox, &watch, DATABASE, 3 * PODS).await?;
    rest().await;
    let same_groups = sandbox.simulator().call_counts();
    let what = "interface of an earlier pod with the same groups";
    add(&mut section, what, 1.0, &same_groups);
    drop(warm);
    sandbox.stop();
    Ok(section)
}

/// Creates pods, waits for their interfaces, and deletes them.
async fn live(
    sandbox: &Sandbox,
    watch: &PodWatch,
    label: &str,
    before: usize,
) -> anyhow::Result<()> {
    let api = cluster::pods(sandbox);
    let names = cluster::create_pods(&api, label, before..before + PODS).await?;
    annotated(watch, before + PODS).await?;
    for name in names {
        api.delete(&name, &DeleteParams::default()).await?;
    }
    let gone = watch.until(|seen| {
        let gone = seen.values().filter(|pod| pod.gone_at.is_some()).count();
        (gone == before + PODS).then_some(())
    });
    let gone = tokio::time::timeout(PATIENCE, gone).await;
    gone.context("the pods don't go")
}

/// Nothing tells that a branch has rested, but its next pod.
async fn rest() {
    tokio::time::sleep(cooldown::MINIMUM + Duration::from_secs(2)).await;
}

async fn until_calls(sandbox: &Sandbox, action: &str, calls: usize) -> anyhow::Result<()> {
    let since = Instant::now();
    while sandbox.simulator().call_counts().of(action) < calls as u64 {
        if since.elapsed() > PATIENCE {
            bail!("EC2 does not get its {calls} calls of {action}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Adds a pod's own calls to the section, and those for what all pods share.
fn add(section: &mut Section, what: &str, budget: f64, calls: &CallCounts) {
    let shared = calls.by_action.keys();
    let shared = shared.filter(|action| action.starts_with("Describe"));
    let shared: u64 = shared.map(|action| calls.of(action)).sum();
    section.check(what, (calls.total - shared) as f64 / PODS as f64, budget);
    section.show("  looked up besides, for all pods together", shared as f64);
}
