//! Many pods at once.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams};
use sgp::dev::nodes::SandboxNode;
use sgp::ec2::simulator::{Fault, FaultOutcome, LoggedCall, Moment, Settings};

use crate::stage::stopwatch::Stopwatch;
use crate::stage::{PATIENCE, Scene, Stage, annotation, phase, requesting_interface};
use serde_json::json;

impl Scene<'_> {
    /// Creates so many pods, spread over the nodes.
    pub async fn burst(&self, prefix: &str, number: usize) {
        let nodes = self.stage.sandbox().nodes();
        self.burst_on(nodes, prefix, number).await;
    }

    /// Creates so many pods, spread over these nodes.
    pub async fn burst_on(&self, nodes: &[SandboxNode], prefix: &str, number: usize) {
        let pods = (0..number).map(|index| async move {
            let node = &nodes[index % nodes.len()];
            // By hand: on a busy machine the webhook may be left out.
            let (name, spec) = (format!("{prefix}-{index}"), requesting_interface());
            self.pod_with(&name, node, json!({}), spec).await;
        });
        futures::future::join_all(pods).await;
    }

    /// The pods of a burst.
    pub async fn burst_pods(&self, prefix: &str) -> Vec<Pod> {
        let list = self.pods.list(&ListParams::default()).await.unwrap();
        let mut pods = list.items;
        pods.retain(|pod| pod.name_any().starts_with(&format!("{prefix}-")));
        pods
    }

    /// How many pods of a burst have their annotation.
    pub async fn annotated(&self, prefix: &str) -> usize {
        let pods = self.burst_pods(prefix).await;
        pods.iter().filter(|pod| annotation(pod).is_some()).count()
    }

    /// Waits until so many pods of a burst are bound to their nodes.
    pub async fn until_bound(&self, prefix: &str, number: usize) {
        self.until_pods(prefix, "be bound", number, |pod| {
            pod.spec
                .as_ref()
                .is_some_and(|spec| spec.node_name.is_some())
        })
        .await;
    }

    /// Waits until so many pods of a burst have their annotation, and gives how long that
    /// took.
    pub async fn until_annotated(&self, prefix: &str, number: usize) -> Duration {
        self.until_pods(prefix, "be annotated", number, |pod| {
            annotation(pod).is_some()
        })
        .await
    }

    /// Waits until so many pods of a burst run.
    pub async fn until_running(&self, prefix: &str, number: usize) -> Duration {
        self.until_pods(prefix, "run", number, |pod| phase(pod) == "Running")
            .await
    }

    async fn until_pods(
        &self,
        prefix: &str,
        what: &str,
        number: usize,
        is_so: impl Fn(&Pod) -> bool,
    ) -> Duration {
        let begin = Instant::now();
        loop {
            let pods = self.burst_pods(prefix).await;
            let (done, rest): (Vec<_>, Vec<_>) = pods.into_iter().partition(&is_so);
            if done.len() == number {
                return begin.elapsed();
            }
            if begin.elapsed() > PATIENCE {
                let mut told = Vec::new();
                for pod in rest.iter().take(3) {
                    let events = self.stage.events(&pod.uid().unwrap()).await;
                    told.extend(events.into_iter().filter_map(|event| event.note));
                }
                panic!(
                    "{} of {number} pods of {prefix} came to {what}; others were told {told:#?}",
                    done.len()
                );
            }
            // A list of pods costs both sides, and many sandboxes look at a time.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Checks that a burst was served in time. A machine that is busy with other things is slow
    /// without any trouble in EC2 too, and then so much more time is in order. Gives how many
    /// pods have come and gone to find that out.
    pub async fn assert_in_time(
        &self,
        stopwatch: Stopwatch,
        limit: Duration,
        number: usize,
    ) -> usize {
        let (took, missed) = stopwatch.stop();
        let limit = limit + missed;
        if took < limit {
            return 0;
        }
        self.burst("ordinary", number).await;
        let ordinary = self.until_annotated("ordinary", number).await;
        println!("{took:?} is beyond {limit:?}; without trouble it takes {ordinary:?}");
        assert!(took < limit + ordinary, "{took:?}, ordinarily {ordinary:?}");
        self.delete_burst("ordinary").await;
        number
    }

    /// Deletes the pods of a burst, and waits until they are gone.
    pub async fn delete_burst(&self, prefix: &str) {
        let names = self.burst_pods(prefix).await.into_iter();
        let deletions = names.map(|pod| async move {
            let parameters = DeleteParams::default();
            self.pods
                .delete(&pod.name_any(), &parameters)
                .await
                .unwrap();
        });
        futures::future::join_all(deletions).await;
        let begin = Instant::now();
        while !self.burst_pods(prefix).await.is_empty() {
            assert!(begin.elapsed() < PATIENCE, "pods of {prefix} do not go");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A namespace that is there already.
pub fn enter<'a>(stage: &'a Stage, name: &str) -> Scene<'a> {
    let client = stage.client();
    Scene {
        stage,
        name: name.to_owned(),
        pods: Api::namespaced(client.clone(), name),
        policies: Api::namespaced(client.clone(), name),
        client,
    }
}

impl Stage {
    /// Changes some of the simulator's settings.
    pub fn set(&self, change: impl FnOnce(&mut Settings)) {
        let mut settings = self.simulator().settings();
        change(&mut settings);
        self.simulator().set(settings).unwrap();
    }

    /// The calls to EC2 since the last reset that change something.
    pub fn changes(&self) -> Vec<LoggedCall> {
        let mut calls = self.simulator().calls();
        calls.retain(|call| !call.action.starts_with("Describe"));
        calls
    }
}

/// Every call of an action fails from now on.
pub fn lasting(action: &str, outcome: FaultOutcome) -> Fault {
    Fault {
        action: action.to_owned(),
        skip: 0,
        times: None,
        moment: Moment::Before,
        outcome,
    }
}

/// The next call of an action fails.
pub fn once(action: &str, moment: Moment, outcome: FaultOutcome) -> Fault {
    Fault {
        moment,
        times: Some(1),
        ..lasting(action, outcome)
    }
}

pub fn error(code: &str) -> FaultOutcome {
    FaultOutcome::Error {
        code: code.to_owned(),
        message: None,
    }
}
