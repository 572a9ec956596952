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
pub(super) const VISIBLE_WITHIN: Duration = Duration::from_secs(30);

/// A moment in the order of calls and observations of this process.
pub type Tick = u64;

/// How long EC2 may remember a client token. Ours are about pods, which seldom come back after
/// they have been gone for a while; one that does meets its old token, and waits until it is
/// clear what that stands for.
const TOKEN_REMEMBERED: Duration = Duration::from_secs(60 * 60);

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
    /// When the observation began that was taken over last.
    observed_at: Tick,
    /// Interfaces that this process made, and when.
    made_at: BTreeMap<String, Instant>,
    /// When a reserved VLAN id was asked for.
    reserved_at: BTreeMap<PodUid, Instant>,
    /// How many client tokens were used up by interfaces that are gone or are to go, and when
    /// that was last.
    generations: BTreeMap<Subject, (u32, Instant)>,
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
    /// Something that the call was about is not in EC2, or not yet.
    Gone,
    /// The client token stands for other parameters.
    TokenMismatch,
    /// It was a call to the API server, or none, or EC2 has turned it away: nothing in EC2 has
    /// changed.
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
        self.generations.get(subject).map_or(0, |(count, _)| *count)
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

    /// Plans the next actions. `held` are subjects that wait for something else; `tick` is no
    /// later than any observation that begins after.
    pub fn plan(
        &mut self,
        desired: &DesiredNode,
        held: impl IntoIterator<Item = Subject>,
        tick: Tick,
        now: Instant,
    ) -> Plan {
        let next_expiry = self.expire(desired, tick, now);
        self.observed.busy = self.in_flight.clone();
        self.observed.busy.extend(self.unsure.keys().cloned());
        self.observed.busy.extend(held);
        self.observed.note_idle(desired, now);
        let mut plan = plan(desired, &self.observed, now);
        let is_idle = !self.observed.busy.contains(&Subject::Trunk)
            && !plan
                .actions
                .iter()
                .any(|action| action.subject() == Subject::Trunk);
        let retry_at = self.observed.retry_at.get(&Subject::Trunk);
        let rests_until = retry_at.copied().filter(|at| *at > now);
        if let Some(surplus) = self.surplus_trunks.first()
            && is_idle
        {
            match rests_until {
                Some(at) => plan.wake_at = plan.wake_at.into_iter().chain([at]).min(),
                None => plan.actions.push(Action::DeleteTrunk(surplus.clone())),
            }
        }
        plan.wake_at = plan.wake_at.into_iter().chain(next_expiry).min();
        plan
    }

    /// A pod that is gone, or has a branch from elsewhere, needs its reserved VLAN id no more
    /// once what was asked for would be seen and is not. Pods that are gone need no generation.
    /// Says when the next reservation ends.
    fn expire(&mut self, desired: &DesiredNode, tick: Tick, now: Instant) -> Option<Instant> {
        let owners = self.observed.owners(desired);
        let waits =
            |uid: &PodUid| desired.pods.contains_key(uid) && !owners.by_pod.contains_key(uid);
        let overdue = self
            .reserved_at
            .extract_if(.., |uid, at| !waits(uid) && *at + VISIBLE_WITHIN <= now);
        for (uid, _) in overdue {
            self.unsure.insert(Subject::Pod(uid), tick);
        }
        let unneeded = self.reserved_at.iter().filter(|(uid, _)| !waits(uid));
        let next = unneeded.map(|(_, at)| *at + VISIBLE_WITHIN).min();
        let (reserved_at, in_flight, unsure) = (&self.reserved_at, &self.in_flight, &self.unsure);
        let waiting: BTreeSet<PodUid> = self
            .observed
            .reserved
            .keys()
            .filter(|uid| waits(uid))
            .cloned()
            .collect();
        self.observed.reserved.retain(|uid, _| {
            let subject = Subject::Pod(uid.clone());
            waiting.contains(uid)
                || reserved_at.contains_key(uid)
                || in_flight.contains(&subject)
                || unsure.contains_key(&subject)
        });
        self.generations
            .retain(|subject, (_, since)| match subject {
                Subject::Pod(uid) => {
                    desired.pods.contains_key(uid) || *since + TOKEN_REMEMBERED > now
                }
                _ => true,
            });
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
        if let Action::Disassociate { branch, .. } | Action::DeleteBranch(branch) = action
            && let Some(branch) = self.observed.branches.get_mut(branch)
        {
            branch.leaving = true;
            if let Some(pod) = branch.claimed_by.take() {
                self.use_up_token(Subject::Pod(pod), now);
            }
        }
        self.touched.insert(subject.clone(), tick);
        self.in_flight.insert(subject);
    }

    /// A call has ended well.
    pub fn succeed(&mut self, action: &Action, effect: Effect, tick: Tick, now: Instant) {
        self.end(action, tick, now);
        let subject = action.subject();
        self.observed.retry_at.remove(&subject);
        let observed = &mut self.observed;
        match (action, effect) {
            (Action::CreateTrunk { .. }, Effect::TrunkCreated(interface)) => {
                self.made_at.insert(interface.id.clone(), now);
                self.mismatched_since.remove(&subject);
                observed.trunk = Some(trunk(&interface));
            }
            (Action::AttachTrunk(id), _) => with_trunk(observed, id, |it| it.attached = true),
            (Action::SetTrunkGroups(id, group_ids), _) => {
                with_trunk(observed, id, |it| it.group_ids.clone_from(group_ids));
            }
            (Action::DeleteTrunk(id), _) => {
                self.surplus_trunks.remove(id);
                if observed.trunk.as_ref().is_some_and(|trunk| trunk.id == *id) {
                    self.lose_trunk(now);
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
                    leaving: false,
                };
                self.facts.insert(id.clone(), facts(&interface));
                self.observed.branches.insert(id, branch);
            }
            (Action::Associate { branch, .. }, Effect::Associated(association)) => {
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
            (Action::DeleteBranch(branch), _) => self.forget_branch(branch),
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
        self.end(action, tick, now);
        let subject = action.subject();
        self.observed.retry_at.insert(subject.clone(), retry_at);
        match (failed, action) {
            (Failed::Elsewhere, _) => {}
            // What is too young to be known to EC2 would come back.
            (Failed::Gone, Action::DeleteBranch(id)) if !self.is_young(id.as_str(), now) => {
                self.forget_branch(id);
            }
            // Whether it is the branch or the trunk that is gone, or too young, will be seen.
            (Failed::Unsure | Failed::Gone, _) => {
                self.unsure.insert(subject, tick);
            }
            (Failed::TokenMismatch, _) => {
                // What the token stands for is not shown yet, or is gone for good.
                let since = *self.mismatched_since.entry(subject.clone()).or_insert(now);
                if since + VISIBLE_WITHIN < now {
                    self.mismatched_since.remove(&subject);
                    self.use_up_token(subject.clone(), now);
                }
                self.unsure.insert(subject, tick);
            }
        }
    }

    fn lose_branch(&mut self, id: &BranchId, now: Instant) {
        let branch = self.observed.branches.get(id);
        if let Some(pod) = branch.and_then(|branch| branch.claimed_by.clone()) {
            self.use_up_token(Subject::Pod(pod), now);
        }
        self.forget_branch(id);
    }

    fn lose_trunk(&mut self, now: Instant) {
        if self.observed.trunk.take().is_some() {
            self.use_up_token(Subject::Trunk, now);
        }
    }

    fn use_up_token(&mut self, subject: Subject, now: Instant) {
        let (count, since) = self.generations.entry(subject).or_insert((0, now));
        *count += 1;
        *since = now;
    }

    fn is_young(&self, id: &str, now: Instant) -> bool {
        self.made_at
            .get(id)
            .is_some_and(|at| *at + VISIBLE_WITHIN > now)
    }

    fn end(&mut self, action: &Action, tick: Tick, now: Instant) {
        let subject = action.subject();
        if let Action::CreateBranch { pod, .. } = action {
            self.observed.creating.remove(pod);
            self.reserved_at.insert(pod.clone(), now);
        }
        self.in_flight.remove(&subject);
        self.touched.insert(subject, tick);
    }

    fn forget_reservation(&mut self, pod: &PodUid) {
        self.observed.reserved.remove(pod);
        self.reserved_at.remove(pod);
    }

    fn forget_branch(&mut self, id: &BranchId) {
        self.observed.branches.remove(id);
        self.facts.remove(id);
        self.made_at.remove(id.as_str());
        self.unsure.remove(&Subject::Branch(id.clone()));
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
        // One that ends after a later one has nothing new to say.
        if begun < self.observed_at {
            return;
        }
        self.observed_at = begun;
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
                self.lose_branch(&id, now);
            }
        }
        for (id, interface) in found {
            if self.counts(&Subject::Branch(id.clone()), begun) {
                self.observe_branch(id, &interface, annotated, begun);
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
            Some(interface) => {
                self.mismatched_since.remove(&Subject::Trunk);
                self.observed.trunk = Some(trunk(&interface));
            }
            None => {
                let current = self.observed.trunk.as_ref();
                let young = current.is_some_and(|it| self.is_young(it.id.as_str(), now));
                if !young {
                    self.lose_trunk(now);
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
            leaving: known.is_some_and(|branch| branch.leaving),
        };
        // What was known before is not what the reservation is for.
        if let (None, Some(pod)) = (known, &claimed_by) {
            self.mismatched_since.remove(&Subject::Pod(pod.clone()));
            self.forget_reservation(pod);
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
        state.plan(&desired(pods), [], 100, at(seconds))
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
        plan_at(&mut state, &[], 30);
        assert!(state.needs_observation());
        observe(&mut state, &[branch("eni-1", "a", 1, false)], 101, 31);
        let actions = plan_at(&mut state, &[], 31).actions;
        assert_eq!(actions, [Action::ConfirmIdle(BranchId::from("eni-1"))]);
    }
}
