//! Creations of pods at an even rate, and what has become of them.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::cluster::{namespace, pod, policy, requests_interface};

const NAMESPACE: &str = "load";
/// Pods that come together, as those of a ReplicaSet do. A policy selects all of them but one.
const TOGETHER: usize = 4;
/// Creations that may run at a time. Who is this late waits, or a machine that is too slow
/// would have more and more to do.
const AT_A_TIME: usize = 256;
/// How long a pod is tried again.
const LONGEST_TRIAL: Duration = Duration::from_secs(60);
/// Pods that are deleted together.
const BATCH: usize = 200;

/// What a load has come to.
#[derive(Debug, Default)]
pub struct Report {
    /// Pods that were created as they should be.
    pub right: usize,
    /// Pods that lack a request for an interface, or have one without a policy.
    pub wrong: Vec<String>,
    /// What the API server said of pods that it did not create.
    pub refused: Vec<String>,
    /// Refusals because the API server did not answer a replica in time, after which a pod was
    /// created again. They say how busy the machine is.
    pub undecided: usize,
    /// How long each creation took.
    waits: Vec<Duration>,
    took: Duration,
}

impl Report {
    fn answered(&self) -> usize {
        self.right + self.wrong.len() + self.refused.len()
    }

    /// Prints rate and waits.
    pub fn print(&mut self) {
        self.waits.sort();
        let longest = |share: f64| {
            let number = (self.waits.len() as f64 * share) as usize;
            self.waits[number.min(self.waits.len() - 1)]
        };
        println!(
            "{} pods created in {:.1?}, {:.1} a second; {} wrong, {} refused, {} tried again since \
             the API server was too slow to be asked; half of them within {:.1?}, 99 % within \
             {:.1?}, all within {:.1?}",
            self.answered(),
            self.took,
            self.answered() as f64 / self.took.as_secs_f64(),
            self.wrong.len(),
            self.refused.len(),
            self.undecided,
            longest(0.5),
            longest(0.99),
            longest(1.0),
        );
    }

    /// Nothing may have been lost.
    #[track_caller]
    pub fn assert_all_right(&self) {
        let first = |texts: &[String]| texts.iter().take(5).cloned().collect::<Vec<_>>();
        assert!(self.refused.is_empty(), "{:#?}", first(&self.refused));
        assert!(self.wrong.is_empty(), "{:#?}", first(&self.wrong));
        assert!(self.right > 0);
    }
}

/// How far a load is, for whoever it goes on for.
#[derive(Clone)]
pub struct Progress(watch::Receiver<usize>);

impl Progress {
    /// Waits for so many answers from now on.
    pub async fn further(&mut self, answers: usize) {
        let enough = *self.0.borrow() + answers;
        self.0
            .wait_for(|answered| *answered >= enough)
            .await
            .unwrap();
    }
}

/// Creates `rate` pods a second, really, for as long as `scenario` runs. They are in a namespace
/// of their own that is enforced, so that none starts if no replica can be asked.
pub async fn run<T>(
    client: &Client,
    rate: usize,
    scenario: impl AsyncFnOnce(Progress) -> T,
) -> (Report, T) {
    namespace(client, NAMESPACE, true, json!({})).await;
    let selection = json!({"podSelector": {"matchLabels": {"app": "selected"}}});
    policy(client, NAMESPACE, "selected", selection).await;
    let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
    let (done, batches) = mpsc::unbounded_channel();
    let cleaning = tokio::spawn(clean(pods.clone(), batches));

    let (note, progress) = watch::channel(0);
    let scenario = scenario(Progress(progress));
    tokio::pin!(scenario);
    let period = Duration::from_secs_f64(TOGETHER as f64 / rate as f64);
    let mut clock = tokio::time::interval(period);
    let (mut report, begin) = (Report::default(), Instant::now());
    let (mut creations, mut started) = (JoinSet::new(), 0);
    let outcome = loop {
        tokio::select! {
            outcome = &mut scenario => break outcome,
            Some(creation) = creations.join_next() => {
                record(&mut report, creation.unwrap());
                note.send_replace(report.answered());
                if report.answered().is_multiple_of(BATCH) {
                    let _ = done.send(());
                }
            }
            _ = clock.tick(), if creations.len() < AT_A_TIME => {
                for _ in 0..TOGETHER {
                    creations.spawn(create(pods.clone(), started));
                    started += 1;
                }
            }
        }
    };
    while let Some(creation) = creations.join_next().await {
        record(&mut report, creation.unwrap());
    }
    report.took = begin.elapsed();
    cleaning.abort();
    (report, outcome)
}

struct Creation {
    is_selected: bool,
    answer: kube::Result<Pod>,
    undecided: usize,
    took: Duration,
}

async fn create(pods: Api<Pod>, number: usize) -> Creation {
    let is_selected = !number.is_multiple_of(TOGETHER);
    let app = if is_selected { "selected" } else { "other" };
    let pod = pod(&format!("pod-{number}"), json!({"app": app}));
    let (begin, mut undecided) = (Instant::now(), 0);
    let answer = loop {
        let answer = pods.create(&PostParams::default(), &pod).await;
        if !answer.as_ref().is_err_and(is_undecided) || begin.elapsed() > LONGEST_TRIAL {
            break answer;
        }
        undecided += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    Creation {
        is_selected,
        answer,
        undecided,
        took: begin.elapsed(),
    }
}

/// Whether a replica could not ask the API server.
fn is_undecided(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status)
        if status.code == 503 && status.message.contains("it can't be decided whether"))
}

fn record(report: &mut Report, creation: Creation) {
    report.waits.push(creation.took);
    report.undecided += creation.undecided;
    match creation.answer {
        Ok(pod) if requests_interface(&pod) == creation.is_selected => report.right += 1,
        Ok(pod) => report.wrong.push(format!("{:?}", pod.metadata.name)),
        Err(error) => report.refused.push(error.to_string()),
    }
}

/// Deletes what has been created, from time to time, so that the API server's memory stays
/// small.
async fn clean(pods: Api<Pod>, mut batches: mpsc::UnboundedReceiver<()>) {
    let at_once = DeleteParams::default().grace_period(0);
    while batches.recv().await.is_some() {
        while batches.try_recv().is_ok() {}
        // What is left now goes the next time.
        let _ = pods
            .delete_collection(&at_once, &ListParams::default())
            .await;
    }
}
