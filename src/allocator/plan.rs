//! The next actions for one node.

use std::time::Instant;

use super::node::Owners;
use super::{
    AssociationId, Branch, BranchId, DesiredNode, DesiredPod, ObservedNode, PodUid, Subject,
    TrunkId, VlanId,
};
use crate::api::SecurityGroupId;

/// What is to be done now, and when to ask again.
#[derive(Debug, Default)]
pub struct Plan {
    /// To be started now, in any order: no two are about the same subject.
    pub actions: Vec<Action>,
    /// When something will be due although nothing has changed.
    pub wake_at: Option<Instant>,
}

/// One call to EC2 or to the API server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// Create the node's trunk interface.
    CreateTrunk {
        /// Its groups.
        group_ids: Vec<SecurityGroupId>,
    },
    /// Attach the trunk to the instance.
    AttachTrunk(TrunkId),
    /// Replace the trunk's groups.
    SetTrunkGroups(TrunkId, Vec<SecurityGroupId>),
    /// Detach and delete the trunk.
    DeleteTrunk(TrunkId),
    /// Create a branch interface for a pod.
    CreateBranch {
        /// The pod, whose UID makes the client token.
        pod: PodUid,
        /// The id that it will be associated with; a tag keeps it.
        vlan: VlanId,
        /// Its groups.
        group_ids: Vec<SecurityGroupId>,
    },
    /// Associate a branch with the trunk.
    Associate {
        /// The branch.
        branch: BranchId,
        /// The trunk.
        trunk: TrunkId,
        /// The branch's VLAN id.
        vlan: VlanId,
    },
    /// Replace a branch's groups, for the pod that owns it.
    SetGroups {
        /// The branch.
        branch: BranchId,
        /// Its new groups.
        group_ids: Vec<SecurityGroupId>,
    },
    /// Give an idle branch to a pod, with the pod's groups.
    Reuse {
        /// The branch.
        branch: BranchId,
        /// The pod, which claims it from now on.
        pod: PodUid,
        /// Its new groups; `None` if it has them already.
        group_ids: Option<Vec<SecurityGroupId>>,
    },
    /// Write the pod's annotation.
    Annotate {
        /// The pod.
        pod: PodUid,
        /// The branch that it names.
        branch: BranchId,
    },
    /// Ask the API server whether any pod of the node still uses the branch.
    ConfirmIdle(BranchId),
    /// End a branch's association with its trunk.
    Disassociate {
        /// The branch.
        branch: BranchId,
        /// The association.
        association: AssociationId,
    },
    /// Delete a branch interface.
    DeleteBranch(BranchId),
}

impl Action {
    /// What the action is about.
    pub fn subject(&self) -> Subject {
        match self {
            Self::CreateTrunk { .. }
            | Self::AttachTrunk(_)
            | Self::SetTrunkGroups(..)
            | Self::DeleteTrunk(_) => Subject::Trunk,
            Self::CreateBranch { pod, .. } => Subject::Pod(pod.clone()),
            Self::Associate { branch, .. }
            | Self::SetGroups { branch, .. }
            | Self::Reuse { branch, .. }
            | Self::Annotate { branch, .. }
            | Self::ConfirmIdle(branch)
            | Self::Disassociate { branch, .. }
            | Self::DeleteBranch(branch) => Subject::Branch(branch.clone()),
        }
    }
}

/// Plans the next actions for a node. The observed node must have noted what is idle as of
/// `now`.
pub fn plan(desired: &DesiredNode, observed: &ObservedNode, now: Instant) -> Plan {
    let mut planning = Planning {
        desired,
        observed,
        now,
        owners: observed.owners(desired),
        plan: Plan::default(),
    };
    planning.trunk();
    planning.owned_branches();
    let idle = planning.idle_branches();
    planning.waiting_pods(idle);
    planning.plan
}

struct Planning<'a> {
    desired: &'a DesiredNode,
    observed: &'a ObservedNode,
    now: Instant,
    owners: Owners<'a>,
    plan: Plan,
}

impl<'a> Planning<'a> {
    /// Starts an action unless its subject is busy or has to wait after a failure.
    fn act(&mut self, action: Action) {
        let subject = action.subject();
        if self.observed.busy.contains(&subject) {
            return;
        }
        match self.observed.retry_at.get(&subject) {
            Some(at) if *at > self.now => self.wake(*at),
            _ => self.plan.actions.push(action),
        }
    }

    fn wake(&mut self, at: Instant) {
        let earliest = self.plan.wake_at.map_or(at, |other| other.min(at));
        self.plan.wake_at = Some(earliest);
    }

    fn trunk(&mut self) {
        let observed = self.observed;
        match (&self.desired.trunk_groups, &observed.trunk) {
            (Some(group_ids), None) => {
                self.act(Action::CreateTrunk {
                    group_ids: group_ids.clone(),
                });
            }
            (Some(_), Some(trunk)) if !trunk.attached => {
                self.act(Action::AttachTrunk(trunk.id.clone()));
            }
            (Some(wanted), Some(trunk)) if !same(wanted, &trunk.group_ids) => {
                self.act(Action::SetTrunkGroups(trunk.id.clone(), wanted.clone()));
            }
            // Its branches go first; EC2 would leave them behind.
            (None, Some(trunk)) if observed.branches.is_empty() && observed.creating.is_empty() => {
                self.act(Action::DeleteTrunk(trunk.id.clone()));
            }
            _ => {}
        }
    }

    /// Brings each pod's branch closer to what its pod is to have.
    fn owned_branches(&mut self) {
        let observed = self.observed;
        let owned: Vec<_> = self
            .owners
            .by_branch
            .iter()
            .map(|(id, uid)| (*id, *uid))
            .collect();
        for (id, uid) in owned {
            // An annotation may name a branch that EC2 has lost.
            let Some(branch) = observed.branches.get(id) else {
                continue;
            };
            let pod = &self.desired.pods[uid];
            if let Some(action) = self.next_for(id, branch, uid, pod) {
                self.act(action);
            }
        }
    }

    fn next_for(
        &self,
        id: &BranchId,
        branch: &Branch,
        uid: &PodUid,
        pod: &DesiredPod,
    ) -> Option<Action> {
        if !same(&pod.group_ids, &branch.group_ids) {
            let group_ids = pod.group_ids.clone();
            return Some(Action::SetGroups {
                branch: id.clone(),
                group_ids,
            });
        }
        if branch.association.is_none() {
            let trunk = self.attached_trunk()?.clone();
            return Some(Action::Associate {
                branch: id.clone(),
                trunk,
                vlan: branch.vlan,
            });
        }
        pod.annotated.is_none().then(|| Action::Annotate {
            pod: uid.clone(),
            branch: id.clone(),
        })
    }

    fn attached_trunk(&self) -> Option<&'a TrunkId> {
        let trunk = self.observed.trunk.as_ref()?;
        (self.desired.trunk_groups.is_some() && trunk.attached).then_some(&trunk.id)
    }

    /// Confirms that idle branches are idle, and gives those that may be reused. The rest
    /// goes, as far as it has cooled down.
    fn idle_branches(&mut self) -> Vec<(&'a BranchId, &'a Branch)> {
        let mut reusable = Vec::new();
        for (id, branch) in &self.observed.branches {
            let Some(idle_since) = branch.idle_since else {
                continue;
            };
            if !branch.confirmed_idle {
                self.act(Action::ConfirmIdle(id.clone()));
                continue;
            }
            // Held back while the node may still carry the last pod's traffic on its VLAN id;
            // one that was never associated has carried none.
            let node_stays = self.desired.trunk_groups.is_some();
            let cool_at = idle_since + self.desired.cooldown;
            if node_stays && branch.association.is_some() && cool_at > self.now {
                self.wake(cool_at);
                continue;
            }
            if node_stays && branch.association.is_some() && !branch.leaving {
                reusable.push((id, branch));
            } else {
                self.remove(id, branch);
            }
        }
        reusable
    }

    fn remove(&mut self, id: &BranchId, branch: &Branch) {
        let branch_id = id.clone();
        self.act(match branch.association.clone() {
            Some(association) => Action::Disassociate {
                branch: branch_id,
                association,
            },
            None => Action::DeleteBranch(branch_id),
        });
    }

    /// Gives each waiting pod an idle branch or a new one, first come, first served.
    fn waiting_pods(&mut self, mut idle: Vec<(&'a BranchId, &'a Branch)>) {
        let (desired, observed) = (self.desired, self.observed);
        idle.retain(|(id, _)| !observed.busy.contains(&Subject::Branch((*id).clone())));
        let mut waiting: Vec<_> = desired
            .pods
            .iter()
            .filter(|(uid, _)| !self.owners.by_pod.contains_key(uid))
            .filter(|(uid, _)| !observed.creating.contains_key(uid))
            .collect();
        waiting.sort_by_key(|(_, pod)| pod.arrival);

        let mut used = observed.used_vlans();
        let mut count = observed.branches.len() + observed.creating.len();
        if self.attached_trunk().is_some() {
            for (uid, pod) in waiting {
                if observed.busy.contains(&Subject::Pod(uid.clone())) {
                    // Whoever is held takes no place from others and gets nobody else's
                    // branch; but what was asked for may be there already.
                    count += usize::from(observed.reserved.contains_key(uid));
                    continue;
                }
                if let Some((id, branch)) = take_fitting(&mut idle, pod) {
                    let changed = !same(&pod.group_ids, &branch.group_ids);
                    self.act(Action::Reuse {
                        branch: id.clone(),
                        pod: uid.clone(),
                        group_ids: changed.then(|| pod.group_ids.clone()),
                    });
                    continue;
                }
                // Full: a branch that is freed changes the observed node, and that asks anew.
                if count >= desired.branch_limit {
                    break;
                }
                // The same as the last time, so that EC2 takes the call for the same.
                let reserved = observed.reserved.get(uid).copied();
                let Some(vlan) = reserved.or_else(|| VlanId::lowest_free(&used)) else {
                    break;
                };
                used.insert(vlan);
                count += 1;
                let group_ids = pod.group_ids.clone();
                self.act(Action::CreateBranch {
                    pod: uid.clone(),
                    vlan,
                    group_ids,
                });
            }
        }
        let kept = desired.warm_limit.min(self.room_for_warm(idle.len()));
        for (id, branch) in idle.into_iter().skip(kept) {
            self.remove(id, branch);
        }
    }

    /// How many idle branches may stay on the trunk without keeping a pod's branch off it.
    fn room_for_warm(&self, idle: usize) -> usize {
        let branches = &self.observed.branches;
        let mut owned = self
            .owners
            .by_branch
            .keys()
            .filter_map(|id| branches.get(id));
        match owned.any(|branch| branch.association.is_none()) {
            true => (self.desired.branch_limit + idle).saturating_sub(branches.len()),
            false => idle,
        }
    }
}

/// Takes an idle branch, one with the pod's groups if there is one: that needs no call.
fn take_fitting<'a>(
    idle: &mut Vec<(&'a BranchId, &'a Branch)>,
    pod: &DesiredPod,
) -> Option<(&'a BranchId, &'a Branch)> {
    let fitting = idle
        .iter()
        .position(|(_, branch)| same(&pod.group_ids, &branch.group_ids));
    let index = fitting.or((!idle.is_empty()).then_some(0))?;
    Some(idle.remove(index))
}

/// Whether two lists hold the same groups; EC2 keeps no order.
fn same(one: &[SecurityGroupId], other: &[SecurityGroupId]) -> bool {
    let within = |some: &[SecurityGroupId], all: &[SecurityGroupId]| {
        // At most a handful, and compared for each branch in each plan: no set is built.
        some.iter().all(|id| all.contains(id))
    };
    within(one, other) && within(other, one)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::allocator::Trunk;

    #[test]
    fn warm_branch_gives_way_to_a_branch_that_finds_no_place_on_the_trunk() {
        let now = Instant::now();
        let branch = |vlan: u16, pod: &str, is_placed: bool| Branch {
            vlan: VlanId::from(vlan),
            group_ids: Vec::new(),
            association: is_placed.then_some(AssociationId::UNKNOWN),
            claimed_by: Some(PodUid::from(pod)),
            idle_since: (pod == "gone").then_some(now),
            confirmed_idle: pod == "gone",
            leaving: false,
        };
        let pod = DesiredPod {
            group_ids: Vec::new(),
            annotated: None,
            arrival: 0,
        };
        let (one, two) = (PodUid::from("one"), PodUid::from("two"));
        let desired = DesiredNode {
            trunk_groups: Some(Vec::new()),
            branch_limit: 2,
            pods: BTreeMap::from([(one, pod.clone()), (two, pod)]),
            cooldown: Duration::ZERO,
            warm_limit: 1,
        };
        let trunk = Trunk {
            id: TrunkId::from("trunk"),
            attached: true,
            group_ids: Vec::new(),
        };
        for (is_placed, gives_way) in [(false, true), (true, false)] {
            let branches = [
                ("a", branch(1, "one", true)),
                ("b", branch(2, "gone", true)),
                ("c", branch(3, "two", is_placed)),
            ];
            let branches = branches.map(|(id, branch)| (BranchId::from(id), branch));
            let observed = ObservedNode {
                trunk: Some(trunk.clone()),
                branches: branches.into(),
                ..ObservedNode::default()
            };
            let actions = plan(&desired, &observed, now).actions;
            let ends = |action: &Action| matches!(action, Action::Disassociate { branch, .. } if branch.as_str() == "b");
            assert_eq!(actions.iter().any(ends), gives_way, "{actions:?}");
        }
    }
}
