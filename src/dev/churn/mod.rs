//! Pods come and go while the allocator is killed again and again: in the end exactly what the
//! living pods need must be left.
//!
//! `script` says what is to happen, here it is carried out, `observe` gathers what there is
//! when all is at rest, and `audit`, which is pure, finds what is wrong.

mod audit;
mod observe;
mod report;
mod script;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::{StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::wait::await_condition;
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::sync::watch;

pub use audit::{Finding, Wrong};
pub use report::Report;
pub use script::Options;

use audit::{Facts, Kind, audit};
use script::{Course, Kill, Life, Script, Selected};

use super::Sandbox;
use super::allocator::Allocator;
use super::manifests::FIELD_MANAGER;
use super::pod_watch::{PodWatch, SeenPod};
use crate::allocator::cooldown;
use crate::api::names::{CNI_CONFIG_MAP, CNI_NAMESPACE, COOLDOWN_KEY};
use crate::api::security_group_policy::SecurityGroups;
use crate::api::{SecurityGroupPolicy, SecurityGroupPolicySpec};
use crate::ec2::instance_limits::LimitsTable;
use crate::ec2::simulator::Simulator;

/// Labels of pods and names of the policies that select them.
const GREEN: &str = "green";
const DATABASE: &str = "database";

/// How long one step of a pod's life may take, on a machine that is busy, before the pod is left
/// as it is; the audit says then what it lacks.
const STEP_TIMEOUT: Duration = Duration::from_secs(300);
/// How long branches may take to go beyond their cooldown.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(90);
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Plays a churn and audits what it leaves. The pods that live on in the end stay.
///
/// # Errors
///
/// When the cluster can't be set up or does not take pods. What the allocator does wrong is in
/// the report.
pub async fn run(
    sandbox: &mut Sandbox,
    options: &Options,
    progress: &ProgressBar,
) -> anyhow::Result<Report> {
    let client = sandbox.control_plane().client();
    let simulator = sandbox.simulator().clone();
    let limits = sandbox.nodes().iter();
    let limits = limits.filter_map(|it| LimitsTable::built_in().get(&it.instance.instance_type));
    let limits = limits.filter(|it| it.trunking);
    let capacity = limits.map(|it| it.branch_interfaces as usize).sum();
    if capacity == 0 {
        bail!("no node takes pods with security groups; give --nodes, such as m5.large=5");
    }
    let script = Script::new(options, capacity);
    let groups = &sandbox.cloud().network().groups;
    let cluster = Cluster {
        policies: Policies {
            green: vec![groups.green.clone()],
            database: vec![groups.database.clone()],
            added: groups.nodes.clone(),
        },
        namespace: prepare(&client).await?,
        client,
        simulator,
    };
    let allocator = sandbox
        .allocator()
        .context("the sandbox has no allocator")?;
    cluster
        .play(options, script, capacity, allocator, progress)
        .await
}

/// A namespace for the churn, and the shortest cooldown.
async fn prepare(client: &Client) -> anyhow::Result<String> {
    let namespace = Namespace {
        metadata: ObjectMeta {
            generate_name: Some("churn-".into()),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    };
    let namespaces = Api::<Namespace>::all(client.clone());
    let namespace = namespaces
        .create(&PostParams::default(), &namespace)
        .await?;
    let namespace = namespace.name_any();
    let config = ConfigMap {
        metadata: ObjectMeta {
            name: Some(CNI_CONFIG_MAP.into()),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(
            COOLDOWN_KEY.to_owned(),
            cooldown::MINIMUM.as_secs().to_string(),
        )])),
        ..ConfigMap::default()
    };
    let configs = Api::<ConfigMap>::namespaced(client.clone(), CNI_NAMESPACE);
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    configs
        .patch(CNI_CONFIG_MAP, &parameters, &Patch::Apply(&config))
        .await?;
    // Without its service account no pod is let in.
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), &namespace);
    let is_there = |account: Option<&ServiceAccount>| account.is_some();
    let account = await_condition(accounts, "default", is_there);
    let account = tokio::time::timeout(STEP_TIMEOUT, account).await;
    account.context("the namespace gets no service account")??;
    Ok(namespace)
}

/// Groups of the two policies.
struct Policies {
    green: Vec<String>,
    database: Vec<String>,
    /// What the second policy gets besides, halfway through.
    added: String,
}

impl Policies {
    /// The groups that a pod with these labels has in the end.
    fn of(&self, labels: &BTreeMap<String, String>) -> BTreeSet<String> {
        let mut groups = BTreeSet::new();
        if labels.contains_key(GREEN) {
            groups.extend(self.green.iter().cloned());
        }
        if labels.contains_key(DATABASE) {
            groups.extend(self.database.iter().cloned());
            groups.insert(self.added.clone());
        }
        groups
    }
}

/// How far the lives have come.
#[derive(Clone, Copy, Debug, Default)]
struct Advance {
    created: usize,
    over: bool,
}

impl Advance {
    /// Whether so many pods were created, or as many as there will be.
    fn is_at(self, created: usize) -> bool {
        self.over || self.created >= created
    }
}

struct Cluster {
    client: Client,
    simulator: Simulator,
    namespace: String,
    policies: Policies,
}

impl Cluster {
    async fn play(
        &self,
        options: &Options,
        script: Script,
        capacity: usize,
        allocator: &mut Allocator,
        progress: &ProgressBar,
    ) -> anyhow::Result<Report> {
        self.apply_policy(GREEN, &self.policies.green).await?;
        self.apply_policy(DATABASE, &self.policies.database).await?;
        self.simulator.reset_calls();
        let pods = PodWatch::start(Api::namespaced(self.client.clone(), &self.namespace));
        let (advance, advances) = watch::channel(Advance::default());

        let begin = Instant::now();
        // More at a time than the branches that are free once others rest: that is where they
        // are used again.
        let at_once = (capacity * 2 / 3).max(1);
        let lives = stream::iter(script.sequences).map(anyhow::Ok);
        let lives = lives.try_for_each_concurrent(at_once, |sequence| {
            let player = Player {
                cluster: self,
                pods: &pods,
                advance: &advance,
                progress,
            };
            async move {
                for life in sequence {
                    if !player.live(&life).await? {
                        break;
                    }
                }
                Ok(())
            }
        });
        let lives = async {
            lives.await?;
            advance.send_modify(|advance| advance.over = true);
            Ok(())
        };
        let change = self.change_policy(options.pods / 2, advances.clone());
        let kills = kill_again_and_again(script.kills, advances.clone(), allocator);
        let ((), (), mut has_ended) = tokio::try_join!(lives, change, kills)?;
        let took = begin.elapsed();

        progress.set_message("waiting until branches that rest are gone");
        let since = Instant::now();
        let first = self.facts().await?;
        let resting = first
            .count(Kind::Branch)
            .saturating_sub(first.needed_branches());
        let facts = self.settle().await?;
        let settled_after = since.elapsed();
        has_ended |= allocator.process().try_wait()?.is_some();

        let mut findings = audit(&facts);
        let seen = pods.seen().clone();
        findings.extend(seen.values().filter(|pod| pod.rewritten).map(|pod| {
            let what = format!("that of {}/{}", self.namespace, pod.name);
            Finding::new(Wrong::Rewritten, what)
        }));
        if has_ended {
            let log = allocator.process().last_log_lines();
            findings.push(Finding::new(
                Wrong::Ended,
                format!("its log ends with\n{log}"),
            ));
        }
        let mut waits: Vec<_> = seen.values().filter_map(SeenPod::waited).collect();
        waits.sort();
        let left = || seen.values().filter(|pod| pod.gone_at.is_none());
        let finished = left().filter(|pod| pod.is_finished()).count();
        let running = left().filter(|pod| pod.phase == "Running").count();
        Ok(Report {
            options: *options,
            nodes: facts.nodes.len(),
            took,
            created: advances.borrow().created,
            deleted: seen.len() - left().count(),
            finished,
            running,
            waiting: left().count() - finished - running,
            trunks: (facts.count(Kind::Trunk), facts.nodes.len()),
            branches: (facts.count(Kind::Branch), facts.needed_branches()),
            resting,
            settled_after,
            waits,
            calls: self.simulator.call_counts(),
            findings,
        })
    }

    /// Looks until nothing is wrong, or for as long as branches may take to go.
    async fn settle(&self) -> anyhow::Result<Facts> {
        let since = Instant::now();
        loop {
            let facts = self.facts().await?;
            if audit(&facts).is_empty() || since.elapsed() > cooldown::MINIMUM + SETTLE_TIMEOUT {
                return Ok(facts);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn facts(&self) -> anyhow::Result<Facts> {
        let wanted = |pod: &Pod| {
            let is_ours = pod.namespace().as_ref() == Some(&self.namespace);
            is_ours.then(|| self.policies.of(pod.labels()))
        };
        observe::facts(&self.client, &self.simulator, wanted).await
    }

    async fn apply_policy(&self, name: &str, group_ids: &[String]) -> anyhow::Result<()> {
        let spec = SecurityGroupPolicySpec {
            pod_selector: Some(LabelSelector {
                match_labels: Some(BTreeMap::from([(name.to_owned(), "yes".to_owned())])),
                ..LabelSelector::default()
            }),
            security_groups: Some(SecurityGroups {
                group_ids: Some(group_ids.to_vec()),
            }),
            ..SecurityGroupPolicySpec::default()
        };
        let api = Api::<SecurityGroupPolicy>::namespaced(self.client.clone(), &self.namespace);
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let policy = Patch::Apply(SecurityGroupPolicy::new(name, spec));
        let applied = api.patch(name, &parameters, &policy).await;
        applied.with_context(|| format!("the policy {name} can't be applied"))?;
        Ok(())
    }

    /// Gives the second policy one more group, which pods that run by then get too.
    async fn change_policy(
        &self,
        after: usize,
        mut advances: watch::Receiver<Advance>,
    ) -> anyhow::Result<()> {
        advances.wait_for(|advance| advance.is_at(after)).await?;
        let mut groups = self.policies.database.clone();
        groups.push(self.policies.added.clone());
        self.apply_policy(DATABASE, &groups).await
    }

    fn pod(&self, life: &Life) -> anyhow::Result<Pod> {
        let Selected { green, database } = life.selected;
        let labels = [(GREEN, green), (DATABASE, database)].into_iter();
        let labels = labels
            .filter(|(_, has)| *has)
            .map(|(name, _)| (name, "yes"));
        Ok(serde_json::from_value(json!({
            "metadata": {"name": life.name, "labels": BTreeMap::from_iter(labels)},
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 5,
                "containers": [{"name": "app", "image": "app"}]
            }
        }))?)
    }
}

/// Kills the allocator at each of these moments and starts it again. True if it had ended by
/// itself before.
async fn kill_again_and_again(
    kills: Vec<Kill>,
    mut advances: watch::Receiver<Advance>,
    allocator: &mut Allocator,
) -> anyhow::Result<bool> {
    let mut has_ended = false;
    for kill in kills {
        advances
            .wait_for(|advance| advance.is_at(kill.created))
            .await?;
        tokio::time::sleep(kill.delay).await;
        let process = allocator.process();
        has_ended |= process.try_wait()?.is_some();
        process.kill()?;
        tokio::time::sleep(kill.away).await;
        process.restart()?;
    }
    Ok(has_ended)
}

/// Plays lives of pods.
#[derive(Clone, Copy)]
struct Player<'a> {
    cluster: &'a Cluster,
    pods: &'a PodWatch,
    advance: &'a watch::Sender<Advance>,
    progress: &'a ProgressBar,
}

impl Player<'_> {
    /// Plays a life. False if its pod does not come to what it should: its name is not free
    /// then.
    async fn live(&self, life: &Life) -> anyhow::Result<bool> {
        let api = Api::namespaced(self.cluster.client.clone(), &self.cluster.namespace);
        let pod = self.cluster.pod(life)?;
        let created = api.create(&PostParams::default(), &pod).await;
        let created = created.with_context(|| format!("the pod {} can't be created", life.name))?;
        let uid = created.uid().context("a pod without a UID")?;
        self.advance.send_modify(|advance| advance.created += 1);
        self.progress.inc(1);

        if let Course::Hasty(patience) = life.course {
            tokio::time::sleep(patience).await;
            return self.delete(&api, life, &uid, None).await;
        }
        if !self.comes(&uid, |pod| pod.phase == "Running").await {
            return Ok(false);
        }
        match life.course {
            Course::Hasty(_) | Course::Stays => Ok(true),
            Course::Deleted(after) => {
                tokio::time::sleep(after).await;
                self.delete(&api, life, &uid, None).await
            }
            Course::Forced(after) => {
                tokio::time::sleep(after).await;
                self.delete(&api, life, &uid, Some(0)).await
            }
            Course::FinishedAndLeft(after) => {
                tokio::time::sleep(after).await;
                self.finish(&api, life, &uid).await
            }
            Course::Finished(after, left) => {
                tokio::time::sleep(after).await;
                self.finish(&api, life, &uid).await?;
                tokio::time::sleep(left).await;
                self.delete(&api, life, &uid, None).await
            }
        }
    }

    async fn finish(&self, api: &Api<Pod>, life: &Life, uid: &str) -> anyhow::Result<bool> {
        let patch = json!({
            "metadata": {"uid": uid, "annotations": {"sgp.dev/outcome": "Succeeded"}}
        });
        let parameters = PatchParams::default();
        let patched = api
            .patch(&life.name, &parameters, &Patch::Merge(patch))
            .await;
        unless_gone(patched).with_context(|| format!("the pod {} can't be finished", life.name))?;
        Ok(self.comes(uid, SeenPod::is_finished).await)
    }

    /// Deletes the pod, and waits until it is gone and its name free.
    async fn delete(
        &self,
        api: &Api<Pod>,
        life: &Life,
        uid: &str,
        grace_period_seconds: Option<u32>,
    ) -> anyhow::Result<bool> {
        let parameters = DeleteParams {
            grace_period_seconds,
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                ..Preconditions::default()
            }),
            ..DeleteParams::default()
        };
        let deleted = api.delete(&life.name, &parameters).await;
        unless_gone(deleted).with_context(|| format!("the pod {} can't be deleted", life.name))?;
        Ok(self.comes(uid, |_| false).await)
    }

    /// Waits until a pod is as wanted, or gone; false if that takes too long.
    async fn comes(&self, uid: &str, wanted: impl Fn(&SeenPod) -> bool) -> bool {
        let seen = self.pods.until(|pods| {
            let pod = pods.get(uid)?;
            (pod.gone_at.is_some() || wanted(pod)).then_some(())
        });
        tokio::time::timeout(STEP_TIMEOUT, seen).await.is_ok()
    }
}

/// Takes it for done that a pod is not there any more, or another of its name is: kwok removes
/// pods by their name alone, so that who is deleted right after its predecessor of the same
/// name may go before its time.
fn unless_gone<T>(done: kube::Result<T>) -> kube::Result<()> {
    match done {
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        done => done.map(|_| ()),
    }
}
