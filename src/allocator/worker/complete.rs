//! What calls have come to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::{Done, Who, Work, Worker};
use crate::allocator::calls::{CallError, Carried};
use crate::allocator::chores::Chore;
use crate::allocator::cluster::PodEntry;
use crate::allocator::events::Reason;
use crate::allocator::messages::{self, failure};
use crate::allocator::objects::Annotation;
use crate::allocator::retry::Cause;
use crate::allocator::state::{Effect, Failed, Found, Tick};
use crate::allocator::{Action, AssociationId, BranchId, PodUid};
use crate::ec2::calls::{Instance, Interface};
use crate::ec2::error::{ErrorClass, NOT_SENT};

/// How soon it is asked again whether a pod, which a policy selects by now, is known as such.
const WATCH_LAG: Duration = Duration::from_secs(1);

impl Worker {
    /// Takes over what a task has come to, and others that have ended meanwhile.
    pub(super) fn complete_all(&mut self, first: Done) {
        let now = Instant::now();
        let Some(mut work) = self.work.take() else {
            return;
        };
        self.complete(&mut work, first, now);
        while let Some(done) = work.tasks.try_join_next() {
            let done = done.expect("tasks are dropped with the work, and panics end the process");
            self.complete(&mut work, done, now);
        }
        self.work = Some(work);
        self.is_view_stale = true;
    }

    fn complete(&mut self, work: &mut Work, done: Done, now: Instant) {
        match done {
            Done::Carried {
                instance,
                action,
                started,
                result,
            } => match result {
                Ok(carried) => self.succeeded(work, &instance, &action, carried, now),
                Err(error) => self.failed(work, &instance, &action, &error, started, now),
            },
            Done::Idle {
                instance,
                branches,
                result,
            } => {
                for branch in branches {
                    let action = Action::ConfirmIdle(branch.clone());
                    match &result {
                        Ok(in_use) if !in_use.contains(&branch) => {
                            let carried = Carried::from(Effect::Idle(true));
                            self.succeeded(work, &instance, &action, carried, now);
                        }
                        Ok(_) => {
                            let error = still_used(&branch);
                            self.failed(work, &instance, &action, &error, now, now);
                        }
                        Err(error) => self.failed(work, &instance, &action, error, now, now),
                    }
                }
            }
            Done::Observed {
                instance,
                begun,
                started,
                result,
            } => self.observed(work, instance, (begun, started), result, now),
            Done::Described { ids, result } => self.described(work, ids, result, now),
            Done::Confirmed { pod, result } => self.confirmed(work, pod, result, now),
            Done::GroupsChecked(found) => {
                work.checking_groups = false;
                let dirty = &mut work.dirty;
                work.lacking_groups.retain(|(instance, _), (group, _)| {
                    let lacks = !found.contains(group);
                    if !lacks {
                        dirty.insert(instance.clone());
                    }
                    lacks
                });
            }
            Done::Chore {
                node,
                chore,
                result,
            } => self.chore_done(work, node, &chore, result, now),
            Done::Limits {
                instance_type,
                result,
            } => {
                work.asking_limits.remove(&instance_type);
                let who = Who::Limits(instance_type.clone());
                match result {
                    Ok(row) => {
                        work.retries.remove(&who);
                        work.limits.insert(instance_type, row);
                    }
                    Err(error) => {
                        self.pause(work, who, &error, now, now);
                    }
                }
                work.dirty.extend(work.nodes.keys().cloned());
            }
        }
    }

    fn succeeded(
        &mut self,
        work: &mut Work,
        instance: &str,
        action: &Action,
        carried: Carried,
        now: Instant,
    ) {
        let tick = work.next_tick();
        let who = Who::Subject(instance.to_owned(), action.subject());
        let cause = cause_of(action, work, instance);
        let others = work.retries.succeeded(&who, &cause);
        self.wake(work, others, now);
        if let Some((interface, resource_version)) = carried.annotation
            && let Action::Annotate { pod, .. } = action
        {
            self.cluster
                .note_annotation(pod, interface, resource_version);
        }
        work.dirty.insert(instance.to_owned());
        let Some(node_work) = work.nodes.get_mut(instance) else {
            return;
        };
        node_work.state.succeed(action, carried.effect, tick, now);
        self.tell_success(work, instance, action, now);
    }

    /// Lets others try again who may have waited for what somebody has just seen to be over.
    fn wake(&self, work: &mut Work, others: Vec<Who>, now: Instant) {
        for who in others {
            work.pauses.remove(&who);
            match who {
                Who::Subject(instance, subject) => {
                    if let Some(node_work) = work.nodes.get_mut(&instance) {
                        node_work.state.observed.retry_at.insert(subject, now);
                        work.dirty.insert(instance);
                    }
                }
                Who::Chore(node, _) => {
                    work.dirty_names.insert(node);
                }
                Who::Confirmation(uid) => {
                    let pod = self.cluster.pods.get(&uid);
                    work.dirty_names
                        .extend(pod.map(|pod| pod.object.node.clone()));
                }
                Who::Observation(instance) => work.dirty.extend(instance),
                Who::Instances | Who::Limits(_) => {}
            }
        }
    }

    fn failed(
        &mut self,
        work: &mut Work,
        instance: &str,
        action: &Action,
        error: &CallError,
        started: Instant,
        now: Instant,
    ) {
        let tick = work.next_tick();
        let subject = action.subject();
        let who = Who::Subject(instance.to_owned(), subject.clone());
        let jitter = jitter(tick);
        let retry_at = retry_at(work, &who, error, started, now, jitter);
        match work.retries.failures(&who) {
            1 => tracing::warn!(instance, ?action, %error, "call failed, it is tried again"),
            _ => tracing::debug!(instance, ?action, %error, "call failed again"),
        }
        work.dirty.insert(instance.to_owned());
        let Some(node_work) = work.nodes.get_mut(instance) else {
            return;
        };
        node_work
            .state
            .fail(action, error.failed, retry_at, tick, now);
        if error.class == ErrorClass::Missing
            && let Some(group) = messages::group_in(&error.message)
        {
            // It waits until the group is there, which one call finds out for all.
            self.groups.note_missing(group);
            work.lacking_groups
                .insert((instance.to_owned(), subject), (group.to_owned(), now));
            if work.check_groups_at < now {
                work.check_groups_at = now + super::GROUP_CHECK_PAUSE;
            }
        }
        // That another process leads is no news for people.
        if error.code != NOT_SENT {
            self.tell_failure(work, instance, action, error);
        }
    }

    fn observed(
        &mut self,
        work: &mut Work,
        instance: Option<String>,
        (begun, started): (Tick, Instant),
        result: Result<Vec<Interface>, CallError>,
        now: Instant,
    ) {
        let who = Who::Observation(instance.clone());
        match &instance {
            None => work.observing_all = false,
            Some(id) => {
                if let Some(node_work) = work.nodes.get_mut(id) {
                    node_work.observing = false;
                }
                work.dirty.insert(id.clone());
            }
        }
        let interfaces = match result {
            Ok(interfaces) => interfaces,
            Err(error) => {
                let at = self.pause(work, who, &error, started, now);
                if instance.is_none() {
                    work.audit_at = at;
                }
                if instance.is_some() || !work.observed {
                    self.tell_unobserved(instance.as_deref(), &error);
                }
                return;
            }
        };
        let others = work.retries.recovered(&who);
        self.wake(work, others, now);
        let name = instance
            .as_ref()
            .and_then(|id| work.nodes.get(id)?.name.clone());
        let annotated = self.annotated_associations(name.as_deref());
        // What a predecessor has just made may be shown late at first.
        let shows_all = work.observed;
        let mut found = Found::by_instance(interfaces);
        let concerned: Vec<String> = match &instance {
            Some(id) => vec![id.clone()],
            None => {
                work.audit_at = now + self.settings.audit_interval;
                if !work.observed {
                    tracing::info!(instances = found.len(), "all interfaces are known");
                    work.observed = true;
                    work.dirty_names.extend(self.cluster.nodes.keys().cloned());
                    work.dirty_names
                        .extend(self.cluster.cni_nodes.keys().cloned());
                }
                for id in found.keys() {
                    work.nodes.entry(id.clone()).or_default();
                }
                // Their groups may have been changed.
                let there = work
                    .nodes
                    .keys()
                    .filter(|id| self.cluster.node_of(id).is_some());
                work.wanted_instances.extend(there.cloned());
                work.nodes.keys().cloned().collect()
            }
        };
        for id in concerned {
            if let Some(node_work) = work.nodes.get_mut(&id) {
                let found = found.remove(&id).unwrap_or_default();
                node_work.state.observe(found, &annotated, begun, now);
                if shows_all {
                    self.tell_lost(&id, &node_work.state);
                }
                work.dirty.insert(id);
            }
        }
    }

    /// The associations that pods' annotations name, of one node or of all: EC2 lists them
    /// only all at once.
    fn annotated_associations(&self, node: Option<&str>) -> BTreeMap<BranchId, AssociationId> {
        let named = |pod: &PodEntry| match &pod.object.annotation {
            Annotation::Names(interface) if !interface.association_id.is_empty() => Some((
                BranchId::from(interface.interface_id.as_str()),
                AssociationId::from(interface.association_id.as_str()),
            )),
            _ => None,
        };
        match node {
            Some(name) => {
                let pods = self.cluster.pods_on(name);
                pods.filter_map(|(_, pod)| named(pod)).collect()
            }
            None => self.cluster.pods.values().filter_map(named).collect(),
        }
    }

    fn described(
        &mut self,
        work: &mut Work,
        ids: Vec<String>,
        result: Result<Vec<Instance>, CallError>,
        now: Instant,
    ) {
        work.describing = false;
        match result {
            Ok(instances) => {
                work.retries.remove(&Who::Instances);
                let mut unknown: BTreeSet<String> = ids.into_iter().collect();
                for instance in instances {
                    unknown.remove(&instance.id);
                    work.dirty.insert(instance.id.clone());
                    if let Some(node_work) = work.nodes.get_mut(&instance.id) {
                        node_work.instance = Some(instance);
                    }
                }
                for id in unknown {
                    let note = format!(
                        "EC2 does not know the instance {id}, which the node's spec.providerID \
                         names: is the allocator's account or region another?"
                    );
                    if let Some(node) = self.cluster.node_of(&id) {
                        let reason = Reason::NodeTrunkFailedInitialization;
                        let action = "DescribeInstances:Unknown";
                        self.tell_node(node, reason, action, note.clone());
                    }
                    if let Some(node_work) = work.nodes.get_mut(&id) {
                        node_work.problem = Some(note);
                    }
                    work.wakes.set(now + super::LEFTOVER_PAUSE, &id);
                }
            }
            Err(error) => {
                self.pause(work, Who::Instances, &error, now, now);
                for id in &ids {
                    if let (Some(node), Some(node_work)) =
                        (self.cluster.node_of(id), work.nodes.get_mut(id))
                    {
                        let note = failure(&error, |_| Vec::new());
                        node_work.problem = Some(note.clone());
                        let word = format!("{}:{}", error.cause.call, error.code);
                        self.tell_node(node, Reason::NodeTrunkFailedInitialization, &word, note);
                    }
                }
                work.wanted_instances.extend(ids);
            }
        }
    }

    fn confirmed(
        &mut self,
        work: &mut Work,
        uid: PodUid,
        result: Result<bool, CallError>,
        now: Instant,
    ) {
        work.confirming.remove(&uid);
        let who = Who::Confirmation(uid.clone());
        match result {
            Ok(true) => {
                let others = work.retries.recovered(&who);
                self.wake(work, others, now);
                if let Some(pod) = self.cluster.pods.get_mut(&uid) {
                    // A policy that came meanwhile has been seen, or will be.
                    pod.confirmed_unselected = pod.groups.is_empty();
                }
            }
            Ok(false) => {
                work.pauses.insert(who, now + WATCH_LAG);
            }
            Err(error) => {
                self.pause(work, who, &error, now, now);
                if let Some(pod) = self.cluster.pods.get(&uid) {
                    self.tell_unconfirmed(&uid, pod, &error);
                }
            }
        }
        if let Some(pod) = self.cluster.pods.get(&uid) {
            work.dirty_names.insert(pod.object.node.clone());
        }
    }

    fn chore_done(
        &mut self,
        work: &mut Work,
        node: String,
        chore: &Chore,
        result: Result<(), CallError>,
        now: Instant,
    ) {
        work.chores.remove(&(node.clone(), chore.kind()));
        let who = Who::Chore(node.clone(), chore.kind());
        match result {
            Ok(()) => {
                let others = work.retries.recovered(&who);
                self.wake(work, others, now);
                // Until the watch shows what was written, it looks as if it were still due.
                work.pauses.insert(who, now + WATCH_LAG);
            }
            Err(error) => {
                self.pause(work, who, &error, now, now);
                if let Some(object) = self.cluster.nodes.get(&node)
                    && error.code != NOT_SENT
                    && error.code != "Conflict"
                {
                    let word = format!("{}:{}", error.cause.call, error.code);
                    let note = failure(&error, |_| Vec::new());
                    let reason = Reason::NodeTrunkFailedInitialization;
                    self.tell_node(object, reason, &word, note);
                }
            }
        }
        work.dirty_names.insert(node);
    }

    /// Lets someone wait after a failure that is not about a single interface.
    fn pause(
        &self,
        work: &mut Work,
        who: Who,
        error: &CallError,
        started: Instant,
        now: Instant,
    ) -> Instant {
        tracing::warn!(?who, %error, "call failed");
        let jitter = jitter(work.next_tick());
        let at = retry_at(work, &who, error, started, now, jitter);
        work.pauses.insert(who, at);
        at
    }
}

/// When to try again. The pause counts from the call's start: who has waited in vain for an
/// answer has paused already.
fn retry_at(
    work: &mut Work,
    who: &Who,
    error: &CallError,
    started: Instant,
    now: Instant,
    jitter: f64,
) -> Instant {
    let cause = error.cause.clone();
    let at = work
        .retries
        .failed(who, cause, error.class, started, jitter);
    at.max(now)
}

/// A branch that looked idle names a pod that the watch has not shown.
fn still_used(branch: &BranchId) -> CallError {
    CallError {
        cause: Cause {
            call: "list pods",
            scope: branch.as_str().to_owned(),
        },
        class: ErrorClass::Retry,
        failed: Failed::Elsewhere,
        code: "InUse".to_owned(),
        message: format!(
            "the annotation of a pod names branch interface {}",
            branch.as_str()
        ),
    }
}

/// What a failure of the same kind would have named.
fn cause_of(action: &Action, work: &Work, instance: &str) -> Cause {
    let subnet = || {
        let node = work.nodes.get(instance);
        node.map(|it| it.subnet_id.clone()).unwrap_or_default()
    };
    let (call, scope) = match action {
        Action::CreateTrunk { .. } | Action::CreateBranch { .. } => {
            ("CreateNetworkInterface", subnet())
        }
        Action::AttachTrunk(_) => ("AttachNetworkInterface", instance.to_owned()),
        Action::SetTrunkGroups(..) => ("ModifyNetworkInterfaceAttribute", instance.to_owned()),
        Action::Reuse { .. } | Action::SetGroups { .. } => {
            ("ModifyNetworkInterfaceAttribute", String::new())
        }
        Action::DeleteTrunk(_) | Action::DeleteBranch(_) => {
            ("DeleteNetworkInterface", String::new())
        }
        Action::Associate { .. } => ("AssociateTrunkInterface", instance.to_owned()),
        Action::Disassociate { .. } => ("DisassociateTrunkInterface", String::new()),
        Action::Annotate { .. } => ("patch pod status", String::new()),
        Action::ConfirmIdle(_) => ("list pods", String::new()),
    };
    Cause { call, scope }
}

/// Spreads retries; no randomness is needed for that.
fn jitter(tick: Tick) -> f64 {
    let spread = u32::try_from(tick.wrapping_mul(2_654_435_761) % 1_000).unwrap_or_default();
    f64::from(spread) / 1_000.0
}
