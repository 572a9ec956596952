//! How long pods wait: many at once, and one at a time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use sgp::dev::Sandbox;
use sgp::dev::nodes::NodeGroup;
use sgp::dev::pod_watch::{PodWatch, SeenPod};
use sgp::ec2::simulator::Settings;

use crate::Bench;
use crate::cluster::{self, GREEN, PATIENCE};
use crate::process::cpu_time;
use crate::report::{Section, milliseconds, percentile, seconds};

/// Many pods at once.
pub(crate) struct Burst {
    pods: usize,
    nodes: usize,
    instance_type: &'static str,
    /// Seconds from the first binding to the last annotation at most.
    from_binding: Option<f64>,
    /// Seconds from the first creation to the last annotation at most.
    from_creation: Option<f64>,
}

/// As many as five nodes take. Today's controller takes 6 to 10 s.
pub(crate) const BURST: Burst = Burst {
    pods: 45,
    nodes: 5,
    instance_type: "m5.large",
    from_binding: Some(1.0),
    from_creation: None,
};

/// A thousand on big nodes. Today's controller takes 165 s.
pub(crate) const THOUSAND: Burst = Burst {
    pods: 1_000,
    nodes: 10,
    instance_type: "m5.metal",
    from_binding: None,
    from_creation: Some(15.0),
};

/// How one burst went.
struct Times {
    creation_to_last_binding: Duration,
    creation_to_last_annotation: Duration,
    binding_to_last_annotation: Duration,
    /// From each pod's binding to its own annotation.
    waits: Vec<Duration>,
    calls_a_pod: f64,
    cpu_a_pod: Duration,
}

pub(crate) async fn burst(bench: &Bench, burst: &Burst, rounds: u32) -> anyhow::Result<Section> {
    let Burst {
        pods,
        nodes,
        instance_type,
        ..
    } = burst;
    let mut times = Vec::new();
    for round in 1..=rounds {
        bench.progress(&format!(
            "{pods} pods on {nodes} nodes, round {round} of {rounds}"
        ));
        times.push(burst_once(bench, burst).await?);
    }
    let median = |figure: fn(&Times) -> Duration| {
        let all: Vec<_> = times.iter().map(figure).collect();
        percentile(&all, 50)
    };
    let title = format!("{pods} pods at once on {nodes} {instance_type}, EC2 answers at once");
    let mut section = Section::new(title);
    let mut add = |what: &str, duration, budget| match budget {
        Some(budget) => section.check(what, seconds(duration), budget),
        None => section.show(what, seconds(duration)),
    };
    let what = "seconds from the first creation to the last binding";
    add(what, median(|it| it.creation_to_last_binding), None);
    let what = "seconds from the first creation to the last annotation";
    let figure = median(|it| it.creation_to_last_annotation);
    add(what, figure, burst.from_creation);
    let what = "seconds from the first binding to the last annotation";
    let figure = median(|it| it.binding_to_last_annotation);
    add(what, figure, burst.from_binding);
    let what = "seconds from a pod's binding to its annotation, median";
    add(what, median(|it| percentile(&it.waits, 50)), None);
    let what = "seconds from a pod's binding to its annotation, slowest";
    add(what, median(|it| percentile(&it.waits, 100)), None);
    let cpu = milliseconds(median(|it| it.cpu_a_pod));
    section.show("milliseconds of the allocator's CPU for each pod", cpu);
    let calls = times.iter().map(|it| it.calls_a_pod).fold(0.0, f64::max);
    section.show("calls to EC2 for each pod, most of all rounds", calls);
    Ok(section)
}

async fn burst_once(bench: &Bench, burst: &Burst) -> anyhow::Result<Times> {
    let nodes = NodeGroup::new(burst.instance_type, burst.nodes);
    let mut sandbox = cluster::start(bench, nodes).await?;
    sandbox.simulator().reset_calls();
    let allocator = sandbox.allocator().context("an allocator was started")?;
    let allocator = allocator.process().id();
    let cpu_before = cpu_time(allocator)?;
    let api = cluster::pods(&sandbox);
    let watch = PodWatch::start(api.clone());
    let begin = Instant::now();
    let creation = cluster::create_pods(&api, GREEN, 0..burst.pods);
    let annotated = annotated(&watch, burst.pods);
    let (created, seen) = tokio::join!(creation, annotated);
    created?;
    let seen: Vec<SeenPod> = seen?.into_values().collect();
    let calls = sandbox.simulator().call_counts().total;
    let cpu = cpu_time(allocator)? - cpu_before;
    sandbox.stop();
    let bound = || seen.iter().filter_map(|pod| pod.bound_at);
    let first_binding = bound().min().context("no pod was bound")?;
    let last_binding = bound().max().context("no pod was bound")?;
    let last = seen.iter().filter_map(|pod| pod.annotated_at).max();
    let last = last.context("no pod was annotated")?;
    Ok(Times {
        creation_to_last_binding: last_binding - begin,
        creation_to_last_annotation: last - begin,
        binding_to_last_annotation: last - first_binding,
        waits: seen.iter().filter_map(SeenPod::waited).collect(),
        calls_a_pod: calls as f64 / burst.pods as f64,
        cpu_a_pod: cpu / burst.pods as u32,
    })
}

/// Waits until so many pods have their annotation.
pub(crate) async fn annotated(
    watch: &PodWatch,
    pods: usize,
) -> anyhow::Result<BTreeMap<String, SeenPod>> {
    let all = watch.until(|seen| {
        let annotated = seen.values().filter(|pod| pod.annotated_at.is_some());
        (annotated.count() >= pods).then(|| seen.clone())
    });
    let all = tokio::time::timeout(PATIENCE, all).await;
    all.with_context(|| format!("not all {pods} pods get their annotation"))
}

/// Pods that come one after the other, each when the last has its interface.
pub(crate) async fn idle(bench: &Bench) -> anyhow::Result<Section> {
    const PODS: usize = 20;
    /// What each of EC2's answers takes besides, in milliseconds.
    const EC2_LATENCIES: [u64; 2] = [0, 100];
    /// A pod's interface is created, then associated.
    const CALLS: u64 = 2;
    const BUDGET: f64 = 10.0;

    bench.progress("one pod at a time");
    let sandbox = cluster::start(bench, NodeGroup::new("m5.large", 5)).await?;
    let watch = PodWatch::start(cluster::pods(&sandbox));
    let mut section = Section::new("One pod at a time, binding to annotation");
    for (round, latency) in EC2_LATENCIES.into_iter().enumerate() {
        sandbox.simulator().set(Settings {
            latency_ms: BTreeMap::from([("*".to_owned(), latency)]),
            ..Settings::default()
        })?;
        let numbers = round * PODS..(round + 1) * PODS;
        let (waits, patches) = one_at_a_time(&sandbox, &watch, numbers).await?;
        let beyond = |percent| milliseconds(percentile(&waits, percent)) - (CALLS * latency) as f64;
        let what = format!("milliseconds beyond {CALLS} calls of {latency} ms");
        section.check(format!("{what}, median"), beyond(50), BUDGET);
        section.show(format!("{what}, slowest"), beyond(100));
        let patch = milliseconds(percentile(&patches, 50));
        section.show(
            "  of these a patch of a pod by the API server, median",
            patch,
        );
    }
    sandbox.stop();
    Ok(section)
}

/// How long each pod waited, and how long the API server took over a patch of it afterwards.
async fn one_at_a_time(
    sandbox: &Sandbox,
    watch: &PodWatch,
    numbers: std::ops::Range<usize>,
) -> anyhow::Result<(Vec<Duration>, Vec<Duration>)> {
    let api = cluster::pods(sandbox);
    let before: Vec<String> = watch.seen().keys().cloned().collect();
    let mut patches = Vec::new();
    for number in numbers {
        let names = cluster::create_pods(&api, GREEN, number..number + 1).await?;
        annotated(watch, number + 1).await?;
        let patch = Patch::Merge(json!({"metadata": {"annotations": {"bench": "patched"}}}));
        let begin = Instant::now();
        api.patch(&names[0], &PatchParams::default(), &patch)
            .await?;
        patches.push(begin.elapsed());
    }
    let seen = watch.seen();
    let new = seen.iter().filter(|(uid, _)| !before.contains(uid));
    Ok((new.filter_map(|(_, pod)| pod.waited()).collect(), patches))
}
