//! From what is known to the next calls.

use std::time::Instant;

use super::{
    Done, GROUP_CHECK_PAUSE, GROUP_PATIENCE, LEFTOVER_PAUSE, NodeWork, TRUNK_GRACE, Who, Work,
    Worker,
};
use crate::allocator::calls::{Circumstances, PodReference};
use crate::allocator::chores::{self, TrunkState};
use crate::allocator::cluster::PodEntry;
use crate::allocator::desired::{self, Network, Rules, Standing, asks, desired};
use crate::allocator::state::NodeState;
use crate::allocator::{Action, DesiredNode, DesiredPod, PodUid, Subject};
use crate::api::SecurityGroupId;
use crate::ec2::calls::Priority;
use crate::ec2::instance_limits::InstanceLimits;

/// Whether a node of some type can take part.
enum Support {
    Yes(InstanceLimits),
    /// The type takes no trunk.
    No,
    /// EC2 is being asked.
    Unknown,
}

impl Worker {
    /// Looks at everything that may have changed, and starts the calls that follow.
    pub(super) fn reconcile(&mut self, now: Instant) {
        let is_held = self.leadership.borrow().is_held();
        let Some(mut work) = self.work.take() else {
            return;
        };
        // Nothing is decided from half of a cluster.
        if is_held && self.cluster.is_complete() {
            self.observe_all(&mut work, now);
            if work.observed {
                self.wake_due(&mut work, now);
                self.check_groups(&mut work, now);
                while !(work.dirty_names.is_empty() && work.dirty.is_empty()) {
                    for name in std::mem::take(&mut work.dirty_names) {
                        self.reconcile_name(&mut work, &name, now);
                    }
                    for instance in std::mem::take(&mut work.dirty) {
                        self.reconcile_instance(&mut work, &instance, now);
                    }
                }
                self.describe_instances(&mut work, now);
            }
        }
        self.work = Some(work);
    }

    fn wake_due(&self, work: &mut Work, now: Instant) {
        while let Some(instance) = work.wakes.take_due(now) {
            if work.nodes.contains_key(&instance) {
                work.dirty.insert(instance);
            } else {
                work.dirty_names.insert(instance);
            }
        }
    }

    /// Observes all interfaces of the cluster, at first and from time to time.
    fn observe_all(&self, work: &mut Work, now: Instant) {
        if work.observing_all || work.audit_at > now {
            return;
        }
        work.observing_all = true;
        work.announced
            .retain(|uid| self.cluster.pods.contains_key(uid));
        work.bound_at
            .retain(|uid, _| self.cluster.pods.contains_key(uid));
        let (cluster, nodes) = (&self.cluster, &work.nodes);
        let is_there = |who: &Who| match who {
            Who::Subject(instance, _) => nodes.contains_key(instance),
            Who::Confirmation(uid) => cluster.pods.contains_key(uid),
            Who::Chore(name, _) => {
                cluster.nodes.contains_key(name) || cluster.cni_nodes.contains_key(name)
            }
            Who::Instances | Who::Observation(_) | Who::Limits(_) => true,
        };
        work.retries.retain(is_there);
        work.pauses.retain(|who, at| *at > now && is_there(who));
        let begun = work.next_tick();
        let calls = self.calls.clone();
        // At first everybody waits for it.
        let priority = match work.observed {
            true => Priority::Audit,
            false => Priority::Allocation,
        };
        work.tasks.spawn(async move {
            let result = calls.interfaces(None, priority).await;
            Done::Observed {
                instance: None,
                begun,
                started: now,
                result,
            }
        });
    }

    fn check_groups(&self, work: &mut Work, now: Instant) {
        if work.lacking_groups.is_empty() || work.checking_groups || work.check_groups_at > now {
            return;
        }
        work.checking_groups = true;
        work.check_groups_at = now + GROUP_CHECK_PAUSE;
        let groups = self.groups.clone();
        work.tasks.spawn(async move {
            let found = groups.recheck().await.unwrap_or_else(|error| {
                tracing::warn!(%error, "missing security groups can't be looked up");
                Vec::new()
            });
            Done::GroupsChecked(found)
        });
    }

    fn describe_instances(&self, work: &mut Work, now: Instant) {
        if work.describing || work.wanted_instances.is_empty() {
            return;
        }
        let first = work.wanted_instances.first().cloned().unwrap_or_default();
        if work.rests(&Who::Instances, now, &first) {
            return;
        }
        work.describing = true;
        let ids: Vec<_> = std::mem::take(&mut work.wanted_instances)
            .into_iter()
            .collect();
        let calls = self.calls.clone();
        work.tasks.spawn(async move {
            let result = calls.instances(ids.clone()).await;
            Done::Described { ids, result }
        });
    }

    /// What is to be done for a node's objects; its instance follows.
    fn reconcile_name(&mut self, work: &mut Work, name: &str, now: Instant) {
        if let Some(cni_node) = self.cluster.cni_nodes.get(name)
            && !cni_node.object.spec.features.is_empty()
        {
            let features = cni_node.object.spec.features.clone();
            work.features.insert(name.to_owned(), features);
        }
        let Some(node) = self.cluster.nodes.get(name) else {
            self.let_go(work, name, now);
            return;
        };
        let Some(instance) = node.instance_id().map(str::to_owned) else {
            return;
        };
        if asks(&self.cluster, node) || work.nodes.contains_key(&instance) {
            let known = work.nodes.entry(instance.clone()).or_default();
            known.name = Some(name.to_owned());
            known.gone_since = None;
            let instances = work.instances_by_name.entry(name.to_owned()).or_default();
            instances.insert(instance.clone());
            work.dirty.insert(instance);
        } else {
            self.do_chores(work, name, TrunkState::Unknown, now);
        }
    }

    /// The node is gone: its CNINode goes once its interfaces are.
    fn let_go(&mut self, work: &mut Work, name: &str, now: Instant) {
        let instances = work
            .instances_by_name
            .get(name)
            .cloned()
            .unwrap_or_default();
        for instance in &instances {
            let is_new = |it: &NodeWork| it.gone_since.is_none();
            if work.nodes.get(instance).is_some_and(is_new) {
                work.dirty.insert(instance.clone());
            }
        }
        // What belongs to an instance that has another name by now is that one's.
        let is_empty = |id: &String| {
            self.cluster.node_of(id).is_some()
                || work.nodes.get(id).is_none_or(|it| it.state.is_empty())
        };
        if !instances.iter().all(is_empty) {
            return;
        }
        match self.cluster.cni_nodes.get(name).and_then(chores::release) {
            Some(chore) => self.start_chore(work, name, chore, now),
            None if !self.cluster.cni_nodes.contains_key(name) => {
                work.features.remove(name);
                work.instances_by_name.remove(name);
            }
            None => {}
        }
    }

    fn do_chores(&mut self, work: &mut Work, name: &str, trunk: TrunkState, now: Instant) {
        let Some(node) = self.cluster.nodes.get(name) else {
            return;
        };
        let features = work
            .features
            .get(name)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let due = chores::due(node, self.cluster.cni_nodes.get(name), trunk, features);
        for chore in due {
            self.start_chore(work, name, chore, now);
        }
    }

    fn start_chore(&self, work: &mut Work, name: &str, chore: chores::Chore, now: Instant) {
        let key = (name.to_owned(), chore.kind());
        let who = Who::Chore(name.to_owned(), chore.kind());
        if work.chores.contains(&key) || work.rests(&who, now, name) {
            return;
        }
        work.chores.insert(key);
        let (client, node) = (self.client.clone(), name.to_owned());
        let cluster_name = self.settings.cluster_name.clone();
        let calls = self.calls.clone();
        work.tasks.spawn(async move {
            let result = match calls.check_leadership() {
                Ok(()) => chore.carry_out(&client, &cluster_name, &node).await,
                error => error,
            };
            Done::Chore {
                node,
                chore,
                result,
            }
        });
    }

    fn support(
        &self,
        work: &mut Work,
        instance_type: &str,
        instance: &str,
        now: Instant,
    ) -> Support {
        let row = match self.settings.limits.get(instance_type) {
            Some(row) => Some(row.clone()),
            None => match work.limits.get(instance_type) {
                Some(row) => row.clone(),
                None => {
                    self.ask_limits(work, instance_type, instance, now);
                    return Support::Unknown;
                }
            },
        };
        match row {
            Some(row) if row.trunking && row.branch_interfaces > 0 => Support::Yes(row),
            _ => Support::No,
        }
    }

    fn ask_limits(&self, work: &mut Work, instance_type: &str, instance: &str, now: Instant) {
        let who = Who::Limits(instance_type.to_owned());
        if work.asking_limits.contains(instance_type) || work.rests(&who, now, instance) {
            return;
        }
        work.asking_limits.insert(instance_type.to_owned());
        let (calls, instance_type) = (self.calls.clone(), instance_type.to_owned());
        work.tasks.spawn(async move {
            let result = calls.limits(&instance_type).await;
            Done::Limits {
                instance_type,
                result,
            }
        });
    }

    fn reconcile_instance(&mut self, work: &mut Work, instance: &str, now: Instant) {
        let Some(mut node_work) = work.nodes.remove(instance) else {
            return;
        };
        self.plan(work, instance, &mut node_work, now);
        if node_work.gone_since.is_some() && node_work.state.is_empty() {
            let trunk = Who::Subject(instance.to_owned(), Subject::Trunk);
            work.retries.remove(&trunk);
            // Only its CNINode may be left.
            if let Some(name) = node_work.name {
                if let Some(instances) = work.instances_by_name.get_mut(&name) {
                    instances.remove(instance);
                }
                self.let_go(work, &name, now);
            }
            return;
        }
        work.nodes.insert(instance.to_owned(), node_work);
    }

    fn plan(&mut self, work: &mut Work, instance: &str, node_work: &mut NodeWork, now: Instant) {
        self.observe_one(work, instance, node_work, now);
        let node = self.cluster.node_of(instance).cloned();
        let mut support = None;
        let mut network: Option<Network> = None;
        if let Some(node) = &node {
            node_work.name = Some(node.name().to_owned());
            node_work.gone_since = None;
            let Some(facts) = node_work.instance.clone() else {
                work.wanted_instances.insert(instance.to_owned());
                return;
            };
            let instance_type = node.instance_type().unwrap_or(&facts.instance_type);
            let asks = asks(&self.cluster, node);
            if asks {
                match self.support(work, instance_type, instance, now) {
                    Support::Yes(limits) => support = Some(limits),
                    Support::No => self.tell_unsupported(node_work, node, instance_type),
                    Support::Unknown => return,
                }
            }
            let trunk = match (&support, &node_work.state.observed.trunk) {
                (Some(limits), Some(trunk)) if trunk.attached => {
                    TrunkState::Attached(limits.branch_interfaces)
                }
                (None, None) if asks => TrunkState::Unsupported,
                _ => TrunkState::Unknown,
            };
            match desired::network(&self.cluster, node, &facts) {
                Ok(found) => network = Some(found),
                Err(problem) if support.is_some() => {
                    self.tell_network_problem(node_work, node, &problem);
                }
                Err(_) => {}
            }
            let trunk_rests = !node_work
                .state
                .observed
                .retry_at
                .contains_key(&Subject::Trunk);
            let is_attached = matches!(trunk, TrunkState::Attached(_));
            if !asks || (is_attached && network.is_some() && trunk_rests) {
                node_work.problem = None;
            }
            let name = node.name().to_owned();
            self.do_chores(work, &name, trunk, now);
        } else {
            node_work.gone_since.get_or_insert(now);
            work.wakes.set(now + LEFTOVER_PAUSE, instance);
        }

        let standing = match (&node, &support, &network) {
            (Some(_), Some(limits), Some(network)) => Standing::TakesPart(limits, network),
            (Some(_), _, _) => Standing::Stays,
            (None, _, _) => Standing::Gone,
        };
        let rules = Rules {
            policies_defined: self.cluster.policies_defined,
            cooldown: self.cluster.cooldown.period,
            warm_limit: self.settings.warm_branches,
        };
        let name = node.as_ref().map(|node| node.name());
        let mut pods: Vec<(&PodUid, &PodEntry)> = Vec::new();
        pods.extend(name.into_iter().flat_map(|name| self.cluster.pods_on(name)));
        // Nothing is made for pods of a node that is gone, or has another name by now; what
        // they have stays theirs.
        let branches = node_work.state.observed.branches.keys();
        let users = branches.filter_map(|id| self.cluster.user_of(id));
        pods.extend(users.filter(|(_, pod)| Some(pod.object.node.as_str()) != name));
        let desired = desired(standing, pods.iter().copied(), &node_work.state, rules);

        let mut held = desired.held;
        held.extend(self.held_by_groups(work, instance, &desired.node, &node_work.state, now));
        let in_grace = node_work
            .gone_since
            .is_some_and(|since| since + TRUNK_GRACE > now);
        if in_grace || (node.is_some() && matches!(standing, Standing::Stays)) {
            held.push(Subject::Trunk);
        }
        for pod in &desired.unconfirmed {
            self.confirm(work, pod, instance, now);
        }
        for (uid, pod) in &pods {
            self.announce(work, uid, pod, now);
        }
        for subject in node_work.state.take_settled(&desired.node) {
            work.retries
                .remove(&Who::Subject(instance.to_owned(), subject));
        }
        let tick = work.next_tick();
        let plan = node_work.state.plan(&desired.node, held, tick, now);
        if let Some(at) = plan.wake_at {
            work.wakes.set(at, instance);
        }
        if let Some(network) = network {
            node_work.subnet_id = network.subnet_id;
        }
        let most_interfaces = support.map_or(0, |limits| limits.default_card_interfaces);
        let mut idle = Vec::new();
        for action in plan.actions {
            if let Action::ConfirmIdle(branch) = &action {
                idle.push(branch.clone());
                let tick = work.next_tick();
                node_work.state.begin(&action, tick, now);
                continue;
            }
            let known = self.circumstances(instance, node_work, &action, most_interfaces);
            let tick = work.next_tick();
            node_work.state.begin(&action, tick, now);
            self.start(work, instance, action, known);
        }
        // What has been planned may have found something that is to be looked for.
        self.observe_one(work, instance, node_work, now);
        if !idle.is_empty() {
            let name = node.as_ref().map(|node| node.name().to_owned());
            let (calls, instance) = (self.calls.clone(), instance.to_owned());
            work.tasks.spawn(async move {
                let result = calls.branches_in_use(name.as_deref()).await;
                Done::Idle {
                    instance,
                    branches: idle,
                    result,
                }
            });
        }
    }

    /// What waits for a security group, as long as it still wants it.
    fn held_by_groups(
        &self,
        work: &mut Work,
        instance: &str,
        desired: &DesiredNode,
        state: &NodeState,
        now: Instant,
    ) -> Vec<Subject> {
        let first = (instance.to_owned(), Subject::Trunk);
        let lacking = work.lacking_groups.range(first..);
        let here = lacking.take_while(|((of, _), _)| of == instance);
        let (held, settled): (Vec<_>, Vec<_>) = here
            .map(|((_, subject), (group, since))| {
                let wanted = groups_of(subject, desired, state);
                let wants = wanted.is_some_and(|all| all.iter().any(|id| id.as_str() == group));
                (subject.clone(), wants && *since + GROUP_PATIENCE > now)
            })
            .partition(|(_, waits)| *waits);
        for (subject, _) in settled {
            work.lacking_groups.remove(&(instance.to_owned(), subject));
        }
        held.into_iter().map(|(subject, _)| subject).collect()
    }

    fn observe_one(&self, work: &mut Work, instance: &str, node_work: &mut NodeWork, now: Instant) {
        if !node_work.state.needs_observation() || node_work.observing {
            return;
        }
        let who = Who::Observation(Some(instance.to_owned()));
        if work.rests(&who, now, instance) {
            return;
        }
        node_work.observing = true;
        let begun = work.next_tick();
        let (calls, instance) = (self.calls.clone(), instance.to_owned());
        work.tasks.spawn(async move {
            let result = calls
                .interfaces(Some(&instance), Priority::Allocation)
                .await;
            Done::Observed {
                instance: Some(instance),
                begun,
                started: now,
                result,
            }
        });
    }

    /// Asks the API server whether really no policy selects a pod.
    fn confirm(&self, work: &mut Work, uid: &PodUid, instance: &str, now: Instant) {
        let Some(pod) = self.cluster.pods.get(uid) else {
            return;
        };
        let who = Who::Confirmation(uid.clone());
        if work.confirming.contains(uid) || work.rests(&who, now, instance) {
            return;
        }
        work.confirming.insert(uid.clone());
        let (calls, uid, pod) = (self.calls.clone(), uid.clone(), pod.object.clone());
        let may_be_undefined = !self.cluster.policies_defined;
        work.tasks.spawn(async move {
            let result = calls.is_unselected(&pod, may_be_undefined).await;
            Done::Confirmed { pod: uid, result }
        });
    }

    fn circumstances(
        &self,
        instance: &str,
        node_work: &NodeWork,
        action: &Action,
        most_interfaces: u32,
    ) -> Circumstances {
        let state = &node_work.state;
        let name = node_work.name.as_deref().unwrap_or_default();
        let cni_node = self.cluster.cni_nodes.get(name);
        let branch = match action {
            Action::Associate { branch, .. } | Action::Annotate { branch, .. } => Some(branch),
            _ => None,
        };
        let observed = branch.and_then(|id| state.observed.branches.get(id));
        let pod = match action {
            Action::Annotate { pod, .. } => self.cluster.pods.get(pod),
            _ => None,
        };
        let facts = branch.and_then(|id| state.facts.get(id));
        Circumstances {
            instance_id: instance.to_owned(),
            subnet_id: node_work.subnet_id.clone(),
            most_interfaces,
            ipv6: self.cluster.plugin.ipv6,
            extra_tags: cni_node
                .map(|it| it.object.spec.tags.clone())
                .unwrap_or_default(),
            trunk: state.observed.trunk.as_ref().map(|trunk| trunk.id.clone()),
            generation: state.generation(&action.subject()),
            pod: pod.map(|pod| PodReference {
                namespace: pod.object.namespace.clone(),
                name: pod.object.name.clone(),
                resource_version: pod.object.resource_version.clone(),
            }),
            facts: facts.cloned().unwrap_or_default(),
            vlan: observed.map(|branch| branch.vlan),
            association: observed.and_then(|branch| branch.association.clone()),
        }
    }

    fn start(&self, work: &mut Work, instance: &str, action: Action, known: Circumstances) {
        let started = Instant::now();
        tracing::debug!(instance, ?action, "starting");
        let (calls, instance) = (self.calls.clone(), instance.to_owned());
        work.tasks.spawn(async move {
            let result = match calls.check_leadership() {
                Ok(()) => calls.carry_out(&action, &known).await,
                Err(error) => Err(error),
            };
            Done::Carried {
                instance,
                action,
                started,
                result,
            }
        });
    }
}

/// The groups that something is to have.
fn groups_of<'a>(
    subject: &Subject,
    desired: &'a DesiredNode,
    state: &NodeState,
) -> Option<&'a Vec<SecurityGroupId>> {
    match subject {
        Subject::Trunk => desired.trunk_groups.as_ref(),
        Subject::Pod(uid) => desired.pods.get(uid).map(|pod| &pod.group_ids),
        Subject::Branch(id) => {
            let named = |pod: &&DesiredPod| pod.annotated.as_ref() == Some(id);
            let claim = || {
                let claimed_by = state.observed.branches.get(id)?.claimed_by.as_ref()?;
                desired.pods.get(claimed_by)
            };
            let owner = desired.pods.values().find(named).or_else(claim);
            owner.map(|pod| &pod.group_ids)
        }
    }
}
