//! What is known of one instance's interfaces, and how calls and observations change it.
//!
//! Pure: time and what EC2 says come in as values. A call that failed may have taken effect,
//! so its subject rests until EC2 has been asked again. What EC2 shows may be older than an
//! answer that came meanwhile, so each subject counts only observations that were begun
//! after its last call ended.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::{
    Action, AssociationId, Branch, BranchId, DesiredNode, ObservedNode, Plan, PodUid, Subject,
    Trunk, TrunkId, VlanId, plan,
};
use crate::api::SecurityGroupId;
use crate::api::names::{
    BRANCH_DESCRIPTION, TAG_INSTANCE_ID, TAG_POD_UID, TAG_VLAN_ID, TRUNK_DESCRIPTION,
};
use crate::ec2::calls::{Interface, InterfaceKind};

/// How long EC2 may take to show what it has made (Amazon EC2 API Reference, "Eventual
/// consistency", which names no bound).
const VISIBLE_WITHIN: Duration = Duration::from_secs(30);

/// A moment in the order of calls and observations of this process.
pub type Tick = u64;

/// An instance's interfaces, as far as they are ours.
#[derive(Debug, Default)]
pub struct NodeState {
    /// What `plan` reads.
    pub observed: ObservedNode,
    /// What is fixed at a branch's creation.
    pub facts: BTreeMap<BranchId, BranchFacts>,
    /// Trunks that nobody needs: a creation whose answer was lost was repeated.
    surplus_trunks: BTreeSet<TrunkId>,
    in_flight: BTreeSet<Subject>,
    /// What has to be observed anew, by an observation begun after this.
    unsure: BTreeMap<Subject, Tick>,
    /// When a call about a subject began or ended last.
    touched: BTreeMap<Subject, Tick>,
    /// Interfaces and associations that this process made, and when.
    made_at: BTreeMap<String, Instant>,
    /// When a reserved VLAN id was asked for.
    reserved_at: BTreeMap<PodUid, Instant>,
    /// How many client tokens were used up by interfaces and associations that are gone.
    generations: BTreeMap<Subject, u32>,
    /// Since when EC2 says that a token stands for other parameters.
    mismatched_since: BTreeMap<Subject, Instant>,
}

/// What is fixed at a branch's creation.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct BranchFacts {
    /// Its MAC address.
    pub mac_address: String,
    /// Its IPv4 address.
    pub private_ip: String,
    /// Its IPv6 address; empty if it has none.
    pub ipv6_address: String,
    /// Its subnet.
    pub subnet_id: String,
}

/// What a call has brought.
#[derive(Clone, Debug)]
pub enum Effect {
    /// There is a trunk: a new one or one that the instance had.
    TrunkCreated(Box<Interface>),
    /// A branch was created.
    BranchCreated(Box<Interface>),
    /// A branch was associated.
    Associated(AssociationId),
    /// A pod's annotation names its branch now.
    Annotated(AssociationId),
    /// Whether no pod uses the branch.
    Idle(bool),
    /// What was asked for is so.
    Done,
}

/// How a call failed, as far as the state of interfaces goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failed {
    /// EC2 may or may not have done it.
    Unsure,
    /// What the call was about is not in EC2.
    Gone,
    /// The client token stands for other parameters.
    TokenMismatch,
    /// It was a call to the API server, or none: nothing in EC2 has changed.
    Elsewhere,
}

/// Interfaces of one instance, as EC2 lists them.
#[derive(Debug, Default)]
pub struct Found {
    trunks: Vec<Interface>,
    branches: Vec<Interface>,
}

impl Found {
    /// Sorts a cluster's interfaces by the instance that their tag names.
    pub fn by_instance(interfaces: Vec<Interface>) -> BTreeMap<String, Found> {
        let mut all: BTreeMap<String, Found> = BTreeMap::new();
        for interface in interfaces {
            let Some(instance_id) = interface.tags.get(TAG_INSTANCE_ID) else {
                tracing::warn!(
                    interface = interface.id,
                    "interface without {TAG_INSTANCE_ID}"
                );
                continue;
            };
            let found = all.entry(instance_id.clone()).or_default();
            if interface.kind == InterfaceKind::Trunk || interface.description == TRUNK_DESCRIPTION
            {
                found.trunks.push(interface);
            } else if interface.description == BRANCH_DESCRIPTION {
                found.branches.push(interface);
            }
        }
        all
    }
}

impl NodeState {
    /// Whether nothing of ours is left.
    pub fn is_empty(&self) -> bool {
        self.observed.trunk.is_none()
            && self.observed.branches.is_empty()
            && self.surplus_trunks.is_empty()
            && self.in_flight.is_empty()
            && self.unsure.is_empty()
            && self.observed.reserved.is_empty()
    }

    /// Whether a failed call waits for what EC2 says.
    pub fn needs_observation(&self) -> bool {
        !self.unsure.is_empty()
    }

    /// The part of a client token that tells apart what was made for one subject: interfaces
    /// that are gone for good keep their tokens for themselves.
    pub fn generation(&self, subject: &Subject) -> u32 {
        self.generations.get(subject).copied().unwrap_or(0)
    }

    /// What has failed and is not wanted any more: its pod or branch is gone.
    pub fn take_settled(&mut self, desired: &DesiredNode) -> Vec<Subject> {
        let observed = &mut self.observed;
        let branches = &observed.branches;
        let mut settled = Vec::new();
        observed.retry_at.retain(|subject, _| {
            let wanted = match subject {
                Subject::Trunk => true,
                Subject::Pod(uid) => desired.pods.contains_key(uid),
                Subject::Branch(id) => branches.contains_key(id),
            };
            if !wanted {
                settled.push(subject.clone());
            }
            wanted
        });
        settled
    }

    /// Plans the next actions. `held` are subjects that wait for something else.
    pub fn plan(
        &mut self,
        desired: &DesiredNode,
        held: impl IntoIterator<Item = Subject>,
        now: Instant,
    ) -> Plan {
        let reservations_end = self.expire_reservations(desired, now);
        self.observed.busy = self.in_flight.clone();
        self.observed.busy.extend(self.unsure.keys().cloned());
        self.observed.busy.extend(held);
        self.observed.note_idle(desired, now);
        let mut plan = plan(desired, &self.observed, now);
        plan.wake_at = plan.wake_at.into_iter().chain(reservations_end).min();
        let trunk_rests = !self.observed.busy.contains(&Subject::Trunk)
            && !plan
                .actions
                .iter()
                .any(|action| action.subject() == Subject::Trunk)
            && !self.observed.retry_at.contains_key(&Subject::Trunk);
        if let Some(surplus) = self.surplus_trunks.first()
            && trunk_rests
        {
            plan.actions.push(Action::DeleteTrunk(surplus.clone()));
        }
        plan
    }

    /// A pod that is gone needs its VLAN id no more, once its branch would be seen: then it is
    /// looked for a last time. Says when that is the case next.
    fn expire_reservations(&mut self, desired: &DesiredNode, now: Instant) -> Option<Instant> {
        let (reserved_at, unsure) = (&self.reserved_at, &mut self.unsure);
        let mut next = None;
        self.observed.reserved.retain(|uid, _| {
            if desired.pods.contains_key(uid) {
                return true;
            }
            match reserved_at.get(uid).map(|at| *at + VISIBLE_WITHIN) {
                Some(end) if end > now => {
                    next = next.into_iter().chain([end]).min();
                    true
                }
                _ => {
                    unsure.insert(Subject::Pod(uid.clone()), 0);
                    next = Some(now);
                    false
                }
            }
        });
        let reserved = &self.observed.reserved;
        self.reserved_at.retain(|uid, _| reserved.contains_key(uid));
        next
    }

    /// A call begins.
    pub fn begin(&mut self, action: &Action, tick: Tick, now: Instant) {
        let subject = action.subject();
        if let Action::CreateBranch { pod, vlan, .. } = action {
            self.observed.creating.insert(pod.clone(), *vlan);
            self.observed.reserved.insert(pod.clone(), *vlan);
            self.reserved_at.insert(pod.clone(), now);
        }
        if let Action::Reuse { branch, pod, .. } = action
            && let Some(branch) = self.observed.branches.get_mut(branch)
        {
            // From now on, so that nobody else gets it while the groups change.
            branch.claimed_by = Some(pod.clone());
        }
        self.touched.insert(subject.clone(), tick);
        self.in_flight.insert(subject);
    }

    /// A call has ended well.
    pub fn succeed(&mut self, action: &Action, effect: Effect, tick: Tick, now: Instant) {
        self.end(action, tick);
        let subject = action.subject();
        self.observed.retry_at.remove(&subject);
        let observed = &mut self.observed;
        match (action, effect) {
            (Action::CreateTrunk { .. }, Effect::TrunkCreated(interface)) => {
                self.made_at.insert(interface.id.clone(), now);
                observed.trunk = Some(trunk(&interface));
            }
            (Action::AttachTrunk(id), _) => with_trunk(observed, id, |it| it.attached = true),
            (Action::SetTrunkGroups(id, group_ids), _) => {
                with_trunk(observed, id, |it| it.group_ids.clone_from(group_ids));
            }
            (Action::DeleteTrunk(id), _) => {
                self.surplus_trunks.remove(id);
                if observed.trunk.as_ref().is_some_and(|trunk| trunk.id == *id) {
                    observed.trunk = None;
                    *self.generations.entry(Subject::Trunk).or_default() += 1;
                }
            }
            (
                Action::CreateBranch {
                    pod,
                    vlan,
                    group_ids,
                },
                Effect::BranchCreated(interface),
            ) => {
                self.forget_reservation(pod);
                self.mismatched_since.remove(&subject);
                self.made_at.insert(interface.id.clone(), now);
                let id = BranchId::from(interface.id.as_str());
                self.touched.insert(Subject::Branch(id.clone()), tick);
                let branch = Branch {
                    vlan: *vlan,
                    group_ids: group_ids.clone(),
                    association: None,
                    claimed_by: Some(pod.clone()),
                    idle_since: None,
                    confirmed_idle: false,
                };
                self.facts.insert(id.clone(), facts(&interface));
                self.observed.branches.insert(id, branch);
            }
            (Action::Associate { branch, .. }, Effect::Associated(association)) => {
                // EC2 gives the same answer again to the same token.
                let made_at = self.made_at.entry(association.as_str().to_owned());
                made_at.or_insert(now);
                with_branch(observed, branch, |it| it.association = Some(association));
            }
            (Action::SetGroups { branch, group_ids }, _)
            | (
                Action::Reuse {
                    branch,
                    group_ids: Some(group_ids),
                    ..
                },
                _,
            ) => {
                with_branch(observed, branch, |it| it.group_ids.clone_from(group_ids));
            }
            (Action::Annotate { branch, .. }, Effect::Annotated(association)) => {
                with_branch(observed, branch, |it| it.association = Some(association));
            }
            (Action::ConfirmIdle(branch), Effect::Idle(idle)) => {
                with_branch(observed, branch, |it| it.confirmed_idle = idle);
            }
            (Action::Disassociate { branch, .. }, _) => {
                with_branch(observed, branch, |it| it.association = None);
            }
            (Action::DeleteBranch(id), _) => {
                let branch = observed.branches.get(id);
                match branch.is_some_and(|branch| branch.idle_since.is_none()) {
                    // Its pod gets another.
                    true => self.lose_branch(id),
                    false => self.forget_branch(id),
                }
            }
            _ => {}
        }
    }

    /// A call has failed; it may be tried again at `retry_at`.
    pub fn fail(
        &mut self,
        action: &Action,
        failed: Failed,
        retry_at: Instant,
        tick: Tick,
        now: Instant,
    ) {
        self.end(action, tick);
        let subject = action.subject();
        self.observed.retry_at.insert(subject.clone(), retry_at);
        match failed {
            Failed::Elsewhere => {}
            Failed::Unsure => {
                self.unsure.insert(subject, tick);
            }
            Failed::Gone => self.unsure_or_gone(action, tick, now),
            Failed::TokenMismatch => {
                // What the token stands for is not shown yet, or is gone for good.
                let since = *self.mismatched_since.entry(subject.clone()).or_insert(now);
                if since + VISIBLE_WITHIN < now {
                    self.mismatched_since.remove(&subject);
                    *self.generations.entry(subject.clone()).or_default() += 1;
                }
                self.unsure.insert(subject, tick);
            }
        }
    }

    /// What EC2 does not know may be too young to be known; else it is gone, and so is its
    /// client token.
    fn unsure_or_gone(&mut self, action: &Action, tick: Tick, now: Instant) {
        let subject = action.subject();
        let id = match (&subject, &self.observed.trunk) {
            (Subject::Branch(id), _) => id.as_str().to_owned(),
            (Subject::Trunk, Some(trunk)) => trunk.id.as_str().to_owned(),
            _ => String::new(),
        };
        self.unsure.insert(subject.clone(), tick);
        if self.is_young(&id, now) {
            return;
        }
        match subject {
            Subject::Branch(id) => self.lose_branch(&id),
            Subject::Trunk => self.lose_trunk(),
            Subject::Pod(_) => {}
        }
    }

    fn lose_branch(&mut self, id: &BranchId) {
        if let Some(pod) = self
            .observed
            .branches
            .get(id)
            .and_then(|it| it.claimed_by.clone())
        {
            *self.generations.entry(Subject::Pod(pod)).or_default() += 1;
        }
        self.forget_branch(id);
    }

    fn lose_trunk(&mut self) {
        if self.observed.trunk.take().is_some() {
            *self.generations.entry(Subject::Trunk).or_default() += 1;
        }
    }

    fn is_young(&self, id: &str, now: Instant) -> bool {
        self.made_at
            .get(id)
            .is_some_and(|at| *at + VISIBLE_WITHIN > now)
    }

    fn end(&mut self, action: &Action, tick: Tick) {
        let subject = action.subject();
        if let Action::CreateBranch { pod, .. } = action {
            self.observed.creating.remove(pod);
        }
        self.in_flight.remove(&subject);
        self.touched.insert(subject, tick);
    }

    fn forget_reservation(&mut self, pod: &PodUid) {
        self.observed.reserved.remove(pod);
        self.reserved_at.remove(pod);
    }

    fn forget_branch(&mut self, id: &BranchId) {
        let branch = self.observed.branches.remove(id);
        if let Some(association) = branch.and_then(|branch| branch.association) {
            self.made_at.remove(association.as_str());
        }
        self.facts.remove(id);
        self.made_at.remove(id.as_str());
        let subject = Subject::Branch(id.clone());
        self.unsure.remove(&subject);
        self.generations.remove(&subject);
    }

    /// Takes over what EC2 has shown to an observation that began at `begun`, with the
    /// associations that pods' annotations name.
    pub fn observe(
        &mut self,
        found: Found,
        annotated: &BTreeMap<BranchId, AssociationId>,
        begun: Tick,
        now: Instant,
    ) {
        self.observe_trunk(found.trunks, begun, now);

        let found: BTreeMap<BranchId, Interface> = found
            .branches
            .into_iter()
            .map(|interface| (BranchId::from(interface.id.as_str()), interface))
            .collect();
        let known: Vec<BranchId> = self.observed.branches.keys().cloned().collect();
        for id in known {
            let missing = !found.contains_key(&id);
            if missing
                && self.counts(&Subject::Branch(id.clone()), begun)
                && !self.is_young(id.as_str(), now)
            {
                self.lose_branch(&id);
            }
        }
        for (id, interface) in found {
            if self.counts(&Subject::Branch(id.clone()), begun) {
                self.observe_branch(id, &interface, annotated, begun, now);
            }
        }
        self.unsure.retain(|_, tick| *tick > begun);
        self.touched.retain(|_, tick| *tick > begun);
    }

    /// Whether an observation that began then says something about a subject.
    fn counts(&self, subject: &Subject, begun: Tick) -> bool {
        let touched_before = self.touched.get(subject).is_none_or(|tick| *tick <= begun);
        touched_before && !self.in_flight.contains(subject)
    }

    fn observe_trunk(&mut self, mut trunks: Vec<Interface>, begun: Tick, now: Instant) {
        if !self.counts(&Subject::Trunk, begun) {
            return;
        }
        trunks.sort_by_key(|interface| (interface.attachment.is_none(), interface.id.clone()));
        let mut trunks = trunks.into_iter();
        match trunks.next() {
            Some(interface) => self.observed.trunk = Some(trunk(&interface)),
            None => {
                let current = self.observed.trunk.as_ref();
                let young = current.is_some_and(|it| self.is_young(it.id.as_str(), now));
                if !young {
                    self.lose_trunk();
                }
            }
        }
        self.surplus_trunks = trunks.map(|it| TrunkId::from(it.id.as_str())).collect();
    }

    fn observe_branch(
        &mut self,
        id: BranchId,
        interface: &Interface,
        annotated: &BTreeMap<BranchId, AssociationId>,
        begun: Tick,
        now: Instant,
    ) {
        let claimed_by = interface
            .tags
            .get(TAG_POD_UID)
            .map(|uid| PodUid::from(uid.as_str()));
        let known = self.observed.branches.get(&id);
        if let (None, Some(pod)) = (known, &claimed_by)
            && !self.counts(&Subject::Pod(pod.clone()), begun)
        {
            // The call that makes it is on its way and will tell.
            return;
        }
        let associated = known.and_then(|branch| branch.association.as_ref());
        let somebody_ended_it =
            associated.is_some_and(|id| !interface.in_use && !self.is_young(id.as_str(), now));
        let association = interface.in_use.then(|| {
            let known = known.and_then(|branch| branch.association.clone());
            known
                .filter(AssociationId::is_known)
                .or_else(|| annotated.get(&id).cloned())
                .unwrap_or(AssociationId::UNKNOWN)
        });
        let vlan = interface
            .tags
            .get(TAG_VLAN_ID)
            .and_then(|id| id.parse().ok());
        let branch = Branch {
            vlan: VlanId::from(vlan.unwrap_or(0u16)),
            group_ids: group_ids(interface),
            association,
            claimed_by: known.map_or(claimed_by.clone(), |branch| branch.claimed_by.clone()),
            idle_since: known.and_then(|branch| branch.idle_since),
            confirmed_idle: known.is_some_and(|branch| branch.confirmed_idle),
        };
        if let Some(pod) = &claimed_by {
            self.forget_reservation(pod);
        }
        if somebody_ended_it {
            let subject = Subject::Branch(id.clone());
            *self.generations.entry(subject).or_default() += 1;
        }
        self.facts.insert(id.clone(), facts(interface));
        self.observed.branches.insert(id, branch);
    }
}

fn trunk(interface: &Interface) -> Trunk {
    let attachment = interface.attachment.as_ref();
    Trunk {
        id: TrunkId::from(interface.id.as_str()),
        // Until it goes with its instance, its attachment is not finished.
        attached: attachment.is_some_and(|it| it.attached && it.delete_on_termination),
        group_ids: group_ids(interface),
    }
}

fn facts(interface: &Interface) -> BranchFacts {
    BranchFacts {
        mac_address: interface.mac_address.clone(),
        private_ip: interface.private_ip.clone(),
        ipv6_address: interface.ipv6_address.clone().unwrap_or_default(),
        subnet_id: interface.subnet_id.clone(),
    }
}

fn group_ids(interface: &Interface) -> Vec<SecurityGroupId> {
    let ids = interface.group_ids.iter();
    ids.map(|id| SecurityGroupId::from(id.as_str())).collect()
}

fn with_trunk(observed: &mut ObservedNode, id: &TrunkId, change: impl FnOnce(&mut Trunk)) {
    if let Some(trunk) = observed.trunk.as_mut().filter(|trunk| trunk.id == *id) {
        change(trunk);
    }
}

fn with_branch(observed: &mut ObservedNode, id: &BranchId, change: impl FnOnce(&mut Branch)) {
    if let Some(branch) = observed.branches.get_mut(id) {
        change(branch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocator::DesiredPod;

    fn at(seconds: u64) -> Instant {
        static BEGIN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        *BEGIN + Duration::from_secs(seconds)
    }

    fn branch(id: &str, pod: &str, vlan: u16, in_use: bool) -> Interface {
        let tags = [
            (TAG_POD_UID, pod.to_owned()),
            (TAG_VLAN_ID, vlan.to_string()),
        ];
        Interface {
            id: id.to_owned(),
            kind: InterfaceKind::Other,
            description: BRANCH_DESCRIPTION.to_owned(),
            in_use,
            mac_address: String::new(),
            private_ip: String::new(),
            ipv6_address: None,
            subnet_id: String::new(),
            vpc_id: String::new(),
            group_ids: Vec::new(),
            attachment: None,
            tags: tags.map(|(key, value)| (key.to_owned(), value)).into(),
        }
    }

    /// A state with an attached trunk and these branches.
    fn state(branches: &[Interface]) -> NodeState {
        let mut state = NodeState::default();
        state.observed.trunk = Some(Trunk {
            id: TrunkId::from("trunk"),
            attached: true,
            group_ids: Vec::new(),
        });
        observe(&mut state, branches, 1, 0);
        state
    }

    fn observe(state: &mut NodeState, branches: &[Interface], begun: Tick, seconds: u64) {
        let found = Found {
            trunks: Vec::new(),
            branches: branches.to_vec(),
        };
        // Only branches are looked at here.
        let trunk = state.observed.trunk.clone();
        state.observe(found, &BTreeMap::new(), begun, at(seconds));
        state.observed.trunk = trunk;
    }

    fn desired(pods: &[&str]) -> DesiredNode {
        let pod = |(arrival, uid): (usize, &&str)| {
            let pod = DesiredPod {
                group_ids: Vec::new(),
                annotated: None,
                arrival: arrival as u64,
            };
            (PodUid::from(*uid), pod)
        };
        DesiredNode {
            trunk_groups: Some(Vec::new()),
            branch_limit: 9,
            pods: pods.iter().enumerate().map(pod).collect(),
            cooldown: Duration::from_secs(30),
            warm_limit: 0,
        }
    }

    fn plan_at(state: &mut NodeState, pods: &[&str], seconds: u64) -> Plan {
        state.plan(&desired(pods), [], at(seconds))
    }

    #[test]
    fn branch_whose_vlan_id_another_has_makes_room_and_its_pod_gets_another() {
        let shown_late = [
            branch("eni-1", "a", 3, false),
            branch("eni-2", "b", 3, false),
            branch("eni-3", "c", 4, true),
            branch("eni-4", "d", 4, false),
        ];
        let mut state = state(&shown_late);
        let actions = plan_at(&mut state, &["a", "b", "c", "d"], 0).actions;
        let delete = |id: &str| Action::DeleteBranch(BranchId::from(id));
        let deleted: Vec<_> = actions
            .iter()
            .filter(|action| matches!(action, Action::DeleteBranch(_)))
            .collect();
        assert_eq!(deleted, [&delete("eni-2"), &delete("eni-4")]);

        state.begin(&delete("eni-2"), 2, at(0));
        state.succeed(&delete("eni-2"), Effect::Done, 3, at(0));
        let pod = Subject::Pod(PodUid::from("b"));
        assert_eq!(state.generation(&pod), 1, "the old token is used up");
        let actions = plan_at(&mut state, &["a", "b", "c", "d"], 0).actions;
        let created = actions.iter().find_map(|action| match action {
            Action::CreateBranch { pod, vlan, .. } => Some((pod.as_str(), vlan.number())),
            _ => None,
        });
        assert_eq!(created, Some(("b", 1)));
    }

    #[test]
    fn what_a_pod_that_is_gone_may_have_got_is_looked_for_once_it_must_show() {
        let mut state = state(&[]);
        let [create] = &plan_at(&mut state, &["a"], 0).actions[..] else {
            panic!("one pod waits");
        };
        state.begin(create, 2, at(0));
        state.fail(create, Failed::Unsure, at(1), 3, at(0));
        observe(&mut state, &[], 4, 1);
        assert!(!state.needs_observation());

        assert_eq!(plan_at(&mut state, &[], 1).wake_at, Some(at(30)));
        assert!(!state.needs_observation() && !state.is_empty());
        assert_eq!(plan_at(&mut state, &[], 30).wake_at, Some(at(30)));
        assert!(state.needs_observation());
        observe(&mut state, &[branch("eni-1", "a", 1, false)], 5, 31);
        let actions = plan_at(&mut state, &[], 31).actions;
        assert_eq!(actions, [Action::ConfirmIdle(BranchId::from("eni-1"))]);
    }

    #[test]
    fn association_that_somebody_has_ended_is_made_anew_under_another_token() {
        let mut state = state(&[branch("eni-1", "a", 1, false)]);
        let [associate] = &plan_at(&mut state, &["a"], 0).actions[..] else {
            panic!("one branch waits");
        };
        let subject = associate.subject();
        let made = || Effect::Associated(AssociationId::from("association-1"));
        state.begin(associate, 2, at(0));
        state.succeed(associate, made(), 3, at(0));

        // EC2 may still have to show it: the same token brings the same answer.
        observe(&mut state, &[branch("eni-1", "a", 1, false)], 4, 10);
        assert_eq!(
            &plan_at(&mut state, &["a"], 10).actions[..],
            std::slice::from_ref(associate)
        );
        assert_eq!(state.generation(&subject), 0);
        state.begin(associate, 5, at(10));
        state.succeed(associate, made(), 6, at(10));

        observe(&mut state, &[branch("eni-1", "a", 1, false)], 7, 31);
        assert_eq!(
            &plan_at(&mut state, &["a"], 31).actions[..],
            std::slice::from_ref(associate)
        );
        assert_eq!(state.generation(&subject), 1);
    }
}
