//! What people are told: by events on pods and nodes.

use std::time::Instant;

use super::{NodeWork, Work, Worker};
use crate::allocator::calls::CallError;
use crate::allocator::cluster::PodEntry;
use crate::allocator::desired;
use crate::allocator::events::{Event, Reason, Regarding};
use crate::allocator::messages::{self, failure};
use crate::allocator::objects::{Annotation, NodeObject};
use crate::allocator::state::NodeState;
use crate::allocator::{Action, BranchId, PodUid, Subject};
use crate::api::SecurityGroupId;

const NO_POLICY: &str = "no SecurityGroupPolicy selects the pod, so these are its node's groups";

impl Worker {
    pub(super) fn announce(&self, work: &mut Work, uid: &PodUid, pod: &PodEntry, now: Instant) {
        if pod.object.annotation != Annotation::Absent {
            return;
        }
        work.bound_at.entry(uid.clone()).or_insert(now);
        if pod.groups.is_empty() || !work.announced.insert(uid.clone()) {
            return;
        }
        let groups: Vec<_> = pod.groups.iter().map(ToString::to_string).collect();
        let note = format!("Pod will get the security groups {}", groups.join(", "));
        self.tell_pod(uid, pod, Reason::SecurityGroupRequested, "Select", note);
    }

    pub(super) fn tell_unsupported(
        &self,
        node_work: &mut NodeWork,
        node: &NodeObject,
        instance_type: &str,
    ) {
        let note = format!(
            "Instance type {instance_type} takes no trunk interface, so no pod with security \
             groups runs here: use a type that does (docs/allocator.md), or add a row for it \
             with --instance-limits"
        );
        if node_work.problem.as_ref() != Some(&note) {
            self.tell_node(node, Reason::UnsupportedInstanceType, "Trunk", note.clone());
            node_work.problem = Some(note);
        }
    }

    pub(super) fn tell_network_problem(
        &self,
        node_work: &mut NodeWork,
        node: &NodeObject,
        problem: &desired::NetworkProblem,
    ) {
        let note = format!("Interfaces can't be made: {problem}");
        if node_work.problem.as_ref() != Some(&note) {
            let reason = Reason::NodeTrunkFailedInitialization;
            let action = format!("CustomNetworking:{problem}");
            self.tell_node(node, reason, &action, note.clone());
            node_work.problem = Some(note);
        }
    }

    pub(super) fn tell_success(
        &self,
        work: &mut Work,
        instance: &str,
        action: &Action,
        now: Instant,
    ) {
        let Some(node_work) = work.nodes.get_mut(instance) else {
            return;
        };
        let node = self.cluster.node_of(instance);
        match action {
            Action::AttachTrunk(trunk) => {
                node_work.problem = None;
                if let Some(node) = node {
                    let note = format!(
                        "Trunk interface {} is attached: pods with security groups can run here",
                        trunk.as_str()
                    );
                    self.tell_node(node, Reason::NodeTrunkInitiated, "AttachTrunk", note);
                }
            }
            Action::SetTrunkGroups(trunk, group_ids) => {
                if let Some(node) = node {
                    let groups: Vec<_> = group_ids.iter().map(ToString::to_string).collect();
                    let note = format!(
                        "Trunk interface {} has the security groups {} now",
                        trunk.as_str(),
                        groups.join(", ")
                    );
                    let action = format!("SetTrunkGroups:{}", groups.join(","));
                    self.tell_node(node, Reason::SecurityGroupsChanged, &action, note);
                }
            }
            Action::Annotate { pod: uid, branch } => {
                let Some(pod) = self.cluster.pods.get(uid) else {
                    return;
                };
                if let Some(begun) = work.bound_at.remove(uid) {
                    self.metrics
                        .allocation_duration
                        .observe((now - begun).as_secs_f64());
                }
                let facts = node_work
                    .state
                    .facts
                    .get(branch)
                    .cloned()
                    .unwrap_or_default();
                let observed = node_work.state.observed.branches.get(branch);
                let groups = observed.map(|it| &it.group_ids).into_iter().flatten();
                let groups: Vec<_> = groups.map(ToString::to_string).collect();
                let vlan = observed.map_or(0, |it| it.vlan.number());
                let mut note = format!(
                    "Branch interface {} with address {}, VLAN id {vlan} and the security \
                     groups {} is the pod's",
                    branch.as_str(),
                    facts.private_ip,
                    groups.join(", ")
                );
                if pod.groups.is_empty() {
                    note = format!("{note}; {NO_POLICY}");
                    let reference = pod_reference(uid, pod);
                    let event = Event::new(reference, Reason::ResourceAllocated, "NoPolicy", note);
                    self.events.publish(event.into_warning());
                } else {
                    self.tell_pod(uid, pod, Reason::ResourceAllocated, "Allocate", note);
                }
            }
            Action::Associate { branch, .. } => {
                // Of a pod that has its annotation already.
                if let Some((uid, pod)) = self.user_of(instance, branch) {
                    let note = format!(
                        "Branch interface {} had lost its association with the node's trunk, so \
                         that the pod had no network; it is associated again",
                        branch.as_str()
                    );
                    let reference = pod_reference(uid, pod);
                    let event = Event::new(reference, Reason::ResourceAllocated, "Mend", note);
                    self.events.publish(event.into_warning());
                }
            }
            Action::SetGroups { branch, group_ids } => {
                self.tell_changed_groups(instance, branch, group_ids);
            }
            _ => {}
        }
    }

    /// The pod on an instance whose annotation names a branch.
    pub(super) fn user_of(
        &self,
        instance: &str,
        branch: &BranchId,
    ) -> Option<(&PodUid, &PodEntry)> {
        let node = self.cluster.node_of(instance)?;
        self.cluster.pods_on(node.name()).find(|(_, pod)| {
            matches!(&pod.object.annotation,
                Annotation::Names(interface) if interface.interface_id == branch.as_str())
        })
    }

    pub(super) fn tell_changed_groups(
        &self,
        instance: &str,
        branch: &BranchId,
        group_ids: &[SecurityGroupId],
    ) {
        let Some((uid, pod)) = self.user_of(instance, branch) else {
            return;
        };
        let groups: Vec<_> = group_ids.iter().map(ToString::to_string).collect();
        let mut note = format!(
            "Branch interface {} has the security groups {} now",
            branch.as_str(),
            groups.join(", ")
        );
        let action = format!("SetGroups:{}", groups.join(","));
        let reference = pod_reference(uid, pod);
        if pod.groups.is_empty() {
            note = format!("{note}; {NO_POLICY}");
            let event = Event::new(reference, Reason::SecurityGroupsChanged, action, note);
            self.events.publish(event.into_warning());
        } else {
            let event = Event::new(reference, Reason::SecurityGroupsChanged, action, note);
            self.events.publish(event);
        }
    }

    pub(super) fn tell_failure(
        &self,
        work: &mut Work,
        instance: &str,
        action: &Action,
        error: &CallError,
    ) {
        let mut action_word = format!("{}:{}", error.cause.call, error.code);
        // Another missing group is another event, with a note that names it.
        if let Some(group) = messages::group_in(&error.message) {
            action_word = format!("{action_word}:{group}");
        }
        let Some(node_work) = work.nodes.get_mut(instance) else {
            return;
        };
        let pod_uid: Option<PodUid> = match action {
            Action::CreateBranch { pod, .. }
            | Action::Annotate { pod, .. }
            | Action::Reuse { pod, .. } => Some(pod.clone()),
            Action::Associate { branch, .. } | Action::SetGroups { branch, .. } => {
                let branch = node_work.state.observed.branches.get(branch);
                branch.and_then(|branch| branch.claimed_by.clone())
            }
            _ => None,
        };
        if let Some(uid) = pod_uid
            && let Some(pod) = self.cluster.pods.get(&uid)
        {
            let note = failure(error, |group| self.cluster.policies_naming(pod, group));
            let reason = match action {
                Action::Annotate { .. } => Reason::BranchEniAnnotationFailed,
                _ => Reason::BranchAllocationFailed,
            };
            let event = Event::new(pod_reference(&uid, pod), reason, action_word.clone(), note);
            self.events.publish(event.into_warning());
        }
        if action.subject() != Subject::Trunk {
            return;
        }
        let note = failure(error, |_| Vec::new());
        node_work.problem = Some(note.clone());
        let Some(node) = self.cluster.node_of(instance) else {
            return;
        };
        let reason = match action {
            Action::CreateTrunk { .. } => Reason::TrunkEniCreationFailed,
            _ => Reason::NodeTrunkFailedInitialization,
        };
        self.tell_node(node, reason, &action_word, note.clone());
        // Whoever waits here waits for the trunk.
        for (uid, pod) in self.cluster.pods_on(node.name()) {
            if pod.object.annotation == Annotation::Absent {
                let note = format!("The node's trunk interface is not ready: {note}");
                self.tell_pod(uid, pod, Reason::BranchAllocationFailed, &action_word, note);
            }
        }
    }

    /// Tells the pods that wait on an instance, or on all, that it can't be seen what there is.
    pub(super) fn tell_unobserved(&self, instance: Option<&str>, error: &CallError) {
        let pods: Vec<(&PodUid, &PodEntry)> = match instance {
            None => self.cluster.pods.iter().collect(),
            Some(id) => {
                let node = self.cluster.node_of(id).into_iter();
                node.flat_map(|node| self.cluster.pods_on(node.name()))
                    .collect()
            }
        };
        let word = format!("{}:{}", error.cause.call, error.code);
        let note = failure(error, |_| Vec::new());
        for (uid, pod) in pods {
            if pod.object.annotation == Annotation::Absent {
                self.tell_pod(
                    uid,
                    pod,
                    Reason::BranchAllocationFailed,
                    &word,
                    note.clone(),
                );
            }
        }
    }

    /// Tells pods that EC2 does not have what their annotation names. It can't be mended: the
    /// plugin has read the annotation and does not do so again.
    pub(super) fn tell_lost(&self, instance: &str, state: &NodeState) {
        let Some(node) = self.cluster.node_of(instance) else {
            return;
        };
        for (uid, pod) in self.cluster.pods_on(node.name()) {
            let Annotation::Names(interface) = &pod.object.annotation else {
                continue;
            };
            let id = &interface.interface_id;
            let branch = BranchId::from(id.as_str());
            if !state.observed.branches.contains_key(&branch) {
                let note = format!(
                    "Branch interface {id}, which the pod uses, is not in EC2 any more, so the \
                     pod has no network: delete the pod, the next one gets another interface"
                );
                let word = format!("Lost:{id}");
                self.tell_pod(uid, pod, Reason::BranchAllocationFailed, &word, note);
            }
        }
    }

    pub(super) fn tell_unconfirmed(&self, uid: &PodUid, pod: &PodEntry, error: &CallError) {
        let word = format!("{}:{}", error.cause.call, error.code);
        let note = failure(error, |_| Vec::new());
        self.tell_pod(uid, pod, Reason::BranchAllocationFailed, &word, note);
    }

    /// Tells when the cooldown, or what is said of it, has changed while this process leads.
    pub(super) fn note_cooldown(&mut self) {
        let Some(work) = &mut self.work else { return };
        let cooldown = &self.cluster.cooldown;
        if work.cooldown == *cooldown || !self.cluster.is_complete() {
            return;
        }
        work.cooldown = cooldown.clone();
        let seconds = cooldown.period.as_secs();
        let mut note = format!("Branch interfaces rest for {seconds} s after their pod now");
        // Each change is an event of its own.
        let mut action = format!("Cooldown:{seconds}");
        if let Some(refused) = &cooldown.refused {
            note = format!("{note}: {refused}");
            action = format!("Cooldown:{}", refused.given());
        }
        let names = work.nodes.values().filter_map(|it| it.name.as_ref());
        for node in names.filter_map(|name| self.cluster.nodes.get(name)) {
            let reason = Reason::BranchEniCoolDownPeriodUpdated;
            let event = Event::new(node_reference(node), reason, action.clone(), note.clone());
            self.events.publish(match cooldown.refused {
                Some(_) => event.into_warning(),
                None => event,
            });
        }
    }

    pub(super) fn tell_pod(
        &self,
        uid: &PodUid,
        pod: &PodEntry,
        reason: Reason,
        action: &str,
        note: String,
    ) {
        self.events
            .publish(Event::new(pod_reference(uid, pod), reason, action, note));
    }

    pub(super) fn tell_node(&self, node: &NodeObject, reason: Reason, action: &str, note: String) {
        self.events
            .publish(Event::new(node_reference(node), reason, action, note));
    }
}

fn node_reference(node: &NodeObject) -> Regarding {
    Regarding::Node {
        name: node.name().to_owned(),
        uid: node.uid().to_owned(),
    }
}

fn pod_reference(uid: &PodUid, pod: &PodEntry) -> Regarding {
    Regarding::Pod {
        namespace: pod.object.namespace.clone(),
        name: pod.object.name.clone(),
        uid: uid.as_str().to_owned(),
    }
}
