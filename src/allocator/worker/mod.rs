//! The loop: what the watches bring and what calls have come to goes in, the next calls go
//! out.
//!
//! One task owns all state, so nothing is locked. Calls run as tasks of their own and report
//! back. Whatever a leader knows of EC2 goes when it stops leading; the next one, this
//! process or another, observes everything anew.

mod complete;
mod reconcile;
mod show;
mod tell;
mod wakes;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kube::Client;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::wakes::Wakes;
use super::calls::{CallError, Calls, Carried};
use super::chores::Chore;
use super::cluster::{Change, Cluster, Touched};
use super::cooldown::Cooldown;
use super::election::Leadership;
use super::events::EventSink;
use super::groups::GroupDirectory;
use super::objects::NodeObject;
use super::retry::Retries;
use super::state::{NodeState, Tick};
use super::view::View;
use super::{Action, BranchId, PodUid, Subject};
use crate::api::cni_node::Feature;
use crate::ec2::calls::{Instance, Interface};
use crate::ec2::instance_limits::{InstanceLimits, LimitsTable};
use crate::telemetry::allocator::AllocatorMetrics;

/// How often it is asked whether security groups that pods wait for are there by now.
const GROUP_CHECK_PAUSE: Duration = Duration::from_secs(2);
/// After so long it is tried all the same.
const GROUP_PATIENCE: Duration = Duration::from_secs(5 * 60);
/// How often the view is made anew at most.
const VIEW_PAUSE: Duration = Duration::from_millis(100);
/// How often the cluster's VPC is asked for until it is known.
const VPC_LOOKUP_PAUSE: Duration = Duration::from_secs(5);
/// How often what is left of nodes that are gone is looked at.
const LEFTOVER_PAUSE: Duration = Duration::from_secs(5);
/// A node that is made anew, with its instance, keeps its trunk for so long.
const TRUNK_GRACE: Duration = Duration::from_secs(60);
/// How many changes are taken at once before calls are planned.
const CHANGES_AT_ONCE: usize = 1_000;
/// How long running calls may take to end when the process ends.
const FAREWELL: Duration = Duration::from_millis(700);

/// What an operator sets.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The cluster's name, for tags.
    pub cluster_name: String,
    /// How many released branches each node keeps for its next pods.
    pub warm_branches: usize,
    /// How often everything is observed anew.
    pub audit_interval: Duration,
    /// How many interfaces each instance type carries.
    pub limits: LimitsTable,
}

/// What the loop works with.
pub struct Parts {
    /// For the API server.
    pub client: Client,
    /// For single actions.
    pub calls: Calls,
    /// What the watches bring.
    pub changes: UnboundedReceiver<Change>,
    /// Whether to work.
    pub leadership: watch::Receiver<Leadership>,
    /// Which security groups exist.
    pub groups: Arc<GroupDirectory>,
    /// Where people are told.
    pub events: EventSink,
    /// What the socket shows.
    pub view: watch::Sender<Arc<View>>,
    /// Set once all watches are complete.
    pub is_ready: Arc<AtomicBool>,
    /// What is counted.
    pub metrics: AllocatorMetrics,
    /// What an operator sets.
    pub settings: Settings,
}

/// The loop's state.
pub struct Worker {
    client: Client,
    calls: Arc<Calls>,
    changes: UnboundedReceiver<Change>,
    leadership: watch::Receiver<Leadership>,
    groups: Arc<GroupDirectory>,
    events: EventSink,
    view: watch::Sender<Arc<View>>,
    is_ready: Arc<AtomicBool>,
    metrics: AllocatorMetrics,
    settings: Settings,
    cluster: Cluster,
    work: Option<Work>,
    /// Asks for the cluster's VPC while this process does not lead.
    vpc_lookup: JoinSet<Option<String>>,
    vpc_lookup_at: Option<Instant>,
    vpc_id: Option<String>,
    shown_at: Option<Instant>,
    is_view_stale: bool,
}

/// What a leader knows and does.
struct Work {
    /// Which leadership it is: what it knows is outdated when another has led meanwhile.
    term: u64,
    nodes: BTreeMap<String, NodeWork>,
    /// The instances that were seen under a node's name.
    instances_by_name: BTreeMap<String, BTreeSet<String>>,
    tasks: JoinSet<Done>,
    tick: Tick,
    /// Whether EC2 has been asked for all interfaces of the cluster.
    observed: bool,
    observing_all: bool,
    audit_at: Instant,
    dirty: BTreeSet<String>,
    dirty_names: BTreeSet<String>,
    wakes: Wakes,
    wanted_instances: BTreeSet<String>,
    describing: bool,
    retries: Retries<Who>,
    /// What is not about interfaces and waits after a failure.
    pauses: BTreeMap<Who, Instant>,
    /// Whose security groups do not exist, which, and since when it waits for that.
    lacking_groups: BTreeMap<(String, Subject), (String, Instant)>,
    check_groups_at: Instant,
    checking_groups: bool,
    confirming: BTreeSet<PodUid>,
    chores: BTreeSet<(String, &'static str)>,
    /// The features of CNINodes that were there, by node.
    features: BTreeMap<String, Vec<Feature>>,
    announced: BTreeSet<PodUid>,
    bound_at: BTreeMap<PodUid, Instant>,
    limits: BTreeMap<String, Option<InstanceLimits>>,
    asking_limits: BTreeSet<String>,
    /// What was told last.
    cooldown: Cooldown,
}

/// One instance.
#[derive(Default)]
struct NodeWork {
    state: NodeState,
    name: Option<String>,
    instance: Option<Instance>,
    /// Where its interfaces are made.
    subnet_id: String,
    observing: bool,
    gone_since: Option<Instant>,
    problem: Option<String>,
}

/// Who waits after a failure.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
enum Who {
    Subject(String, Subject),
    Chore(String, &'static str),
    Instances,
    Observation(Option<String>),
    Confirmation(PodUid),
    Limits(String),
}

/// What a task has come to.
enum Done {
    Carried {
        instance: String,
        action: Action,
        started: Instant,
        result: Result<Carried, CallError>,
    },
    Idle {
        instance: String,
        branches: Vec<BranchId>,
        result: Result<BTreeSet<BranchId>, CallError>,
    },
    Observed {
        instance: Option<String>,
        begun: Tick,
        started: Instant,
        result: Result<Vec<Interface>, CallError>,
    },
    Described {
        ids: Vec<String>,
        result: Result<Vec<Instance>, CallError>,
    },
    Confirmed {
        pod: PodUid,
        result: Result<bool, CallError>,
    },
    GroupsChecked(Vec<String>),
    Chore {
        node: String,
        chore: Chore,
        result: Result<(), CallError>,
    },
    Limits {
        instance_type: String,
        result: Result<Option<InstanceLimits>, CallError>,
    },
}

impl Work {
    fn new(term: u64, now: Instant, cooldown: Cooldown) -> Self {
        Self {
            term,
            nodes: BTreeMap::new(),
            instances_by_name: BTreeMap::new(),
            tasks: JoinSet::new(),
            tick: 0,
            observed: false,
            observing_all: false,
            audit_at: now,
            dirty: BTreeSet::new(),
            dirty_names: BTreeSet::new(),
            wakes: Wakes::default(),
            wanted_instances: BTreeSet::new(),
            describing: false,
            retries: Retries::default(),
            pauses: BTreeMap::new(),
            lacking_groups: BTreeMap::new(),
            check_groups_at: now,
            checking_groups: false,
            confirming: BTreeSet::new(),
            chores: BTreeSet::new(),
            features: BTreeMap::new(),
            announced: BTreeSet::new(),
            bound_at: BTreeMap::new(),
            limits: BTreeMap::new(),
            asking_limits: BTreeSet::new(),
            cooldown,
        }
    }

    fn next_tick(&mut self) -> Tick {
        self.tick += 1;
        self.tick
    }

    /// Whether someone still waits after a failure; if so, the node is looked at then.
    fn rests(&mut self, who: &Who, now: Instant, wake: &str) -> bool {
        match self.pauses.get(who) {
            Some(at) if *at > now => {
                self.wakes.set(*at, wake);
                true
            }
            Some(_) => {
                self.pauses.remove(who);
                false
            }
            None => false,
        }
    }
}

impl Worker {
    /// Knows nothing yet.
    pub fn new(parts: Parts) -> Self {
        Self {
            client: parts.client,
            calls: Arc::new(parts.calls),
            changes: parts.changes,
            leadership: parts.leadership,
            groups: parts.groups,
            events: parts.events,
            view: parts.view,
            is_ready: parts.is_ready,
            metrics: parts.metrics,
            settings: parts.settings,
            cluster: Cluster::default(),
            work: None,
            vpc_lookup: JoinSet::new(),
            vpc_lookup_at: None,
            vpc_id: None,
            shown_at: None,
            is_view_stale: true,
        }
    }

    /// Works until `shutdown`; calls that run then get a moment to end.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        loop {
            let now = Instant::now();
            self.follow_leadership(now);
            self.reconcile(now);
            self.look_up_vpc(now);
            let wake_at = self.show(now).into_iter().chain(self.next_wake()).min();
            tokio::select! {
                () = &mut shutdown => break,
                changed = self.leadership.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    self.is_view_stale = true;
                }
                change = self.changes.recv() => match change {
                    Some(change) => self.take(change),
                    None => break,
                },
                done = next_done(&mut self.work) => self.complete_all(done),
                Some(found) = self.vpc_lookup.join_next() => {
                    self.vpc_id = found.unwrap_or_default();
                    self.is_view_stale = true;
                }
                () = sleep_until(wake_at) => {}
            }
        }
        self.say_farewell().await;
    }

    /// Starts nothing more, and lets what runs end.
    async fn say_farewell(mut self) {
        let Some(work) = &mut self.work else { return };
        if work.tasks.is_empty() {
            return;
        }
        tracing::info!(calls = work.tasks.len(), "waiting for running calls");
        let rest = async { while work.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(FAREWELL, rest).await.is_err() {
            tracing::info!("running calls are left to whoever leads next");
        }
    }

    /// Leads or stops leading. Without the lease every running call is dropped.
    fn follow_leadership(&mut self, now: Instant) {
        let leadership = self.leadership.borrow_and_update().clone();
        let (is_held, term) = (leadership.is_held(), leadership.transitions);
        if self.work.as_ref().is_some_and(|work| work.term != term) {
            self.work = None;
        }
        match (&self.work, is_held) {
            (None, true) => {
                tracing::info!("leading");
                let mut work = Work::new(term, now, self.cluster.cooldown.clone());
                work.dirty_names = self.cluster.nodes.keys().cloned().collect();
                work.dirty_names
                    .extend(self.cluster.cni_nodes.keys().cloned());
                self.work = Some(work);
            }
            (Some(_), false) => {
                tracing::warn!("not leading any more; everything is left to the next leader");
                self.work = None;
            }
            _ => return,
        }
        self.is_view_stale = true;
    }

    /// Finds out the cluster's VPC where this process does not lead and so learns nothing of
    /// instances: the webhook beside it asks in which VPC a group is.
    fn look_up_vpc(&mut self, now: Instant) {
        let is_due = self.vpc_lookup_at.is_none_or(|at| at <= now);
        if self.vpc_id.is_some() || self.work.is_some() || !is_due || !self.cluster.is_complete() {
            return;
        }
        self.vpc_lookup_at = Some(now + VPC_LOOKUP_PAUSE);
        let nodes = self.cluster.nodes.values();
        let instances = nodes.filter_map(NodeObject::instance_id);
        // One may be gone; of so many hardly all are.
        let ids: Vec<_> = instances.take(5).map(str::to_owned).collect();
        if ids.is_empty() {
            return;
        }
        let calls = self.calls.clone();
        self.vpc_lookup.spawn(async move {
            let found = calls.instances(ids).await;
            let told = |error: &_| tracing::warn!(%error, "the cluster's VPC can't be looked up");
            let found = found.inspect_err(told).ok()?;
            found.into_iter().next().map(|instance| instance.vpc_id)
        });
    }

    /// Takes over a change, and others that wait.
    fn take(&mut self, change: Change) {
        self.apply(change);
        for _ in 0..CHANGES_AT_ONCE {
            match self.changes.try_recv() {
                Ok(change) => self.apply(change),
                Err(_) => break,
            }
        }
    }

    fn apply(&mut self, change: Change) {
        let touched = self.cluster.apply(change);
        self.is_view_stale = true;
        let is_complete = self.cluster.is_complete();
        if is_complete && !self.is_ready.swap(true, Ordering::Relaxed) {
            tracing::info!(
                nodes = self.cluster.nodes.len(),
                pods = self.cluster.pods.len(),
                "the cluster is known"
            );
        }
        self.look_up_groups(&touched);
        self.mark(touched);
        self.note_cooldown();
    }

    /// Lets the directory know groups before the webhook asks for them, whose patience is
    /// shorter than EC2 may take.
    fn look_up_groups(&self, touched: &Touched) {
        if touched.groups.is_empty() {
            return;
        }
        let (groups, ids) = (self.groups.clone(), touched.groups.clone());
        tokio::spawn(async move {
            let ids: Vec<_> = ids.into_iter().collect();
            if let Err(error) = groups.look_up(&ids).await {
                tracing::debug!(%error, "the groups of a policy can't be looked up");
            }
        });
    }

    fn mark(&mut self, touched: Touched) {
        let Some(work) = &mut self.work else { return };
        if touched.all {
            work.dirty.extend(work.nodes.keys().cloned());
            work.dirty_names.extend(self.cluster.nodes.keys().cloned());
            work.dirty_names
                .extend(self.cluster.cni_nodes.keys().cloned());
        }
        for name in touched.nodes {
            if let Some(instances) = work.instances_by_name.get(&name) {
                work.dirty.extend(instances.iter().cloned());
            }
            work.dirty_names.insert(name);
        }
    }

    fn next_wake(&self) -> Option<Instant> {
        if !self.cluster.is_complete() {
            return None;
        }
        let Some(work) = &self.work else {
            return self.vpc_lookup_at.filter(|_| self.vpc_id.is_none());
        };
        let first = work.wakes.first();
        let groups = (!work.lacking_groups.is_empty() && !work.checking_groups)
            .then_some(work.check_groups_at);
        let audit = (!work.observing_all).then_some(work.audit_at);
        let held_until = self.leadership.borrow().held_until;
        let lease_end = held_until.map(tokio::time::Instant::into_std);
        [first, groups, audit, lease_end]
            .into_iter()
            .flatten()
            .min()
    }
}

async fn next_done(work: &mut Option<Work>) -> Done {
    if let Some(work) = work
        && let Some(done) = work.tasks.join_next().await
    {
        return done.expect("tasks are dropped with the work, and panics end the process");
    }
    std::future::pending().await
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
