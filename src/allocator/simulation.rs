//! Random histories of one node: pods come, go and change, calls fail before or after they
//! took effect, the process dies and starts again, and the watch goes blind for a while.
//! After every step the invariants hold; once the faults stop, the wanted state is reached.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::api::SecurityGroupId;

const LIMIT: usize = 3;
const COOLDOWN: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(1);

/// EC2 and the API server, as they really are.
#[derive(Default)]
struct World {
    trunk: Option<Trunk>,
    branches: BTreeMap<BranchId, Branch>,
    /// Client tokens that EC2 remembers.
    tokens: BTreeMap<PodUid, BranchId>,
    pods: BTreeMap<PodUid, DesiredPod>,
    made: u64,
}

/// The allocator: what it believes, and the calls that it waits for.
struct Process {
    observed: ObservedNode,
    /// The pods as the watch has brought them.
    seen: BTreeMap<PodUid, DesiredPod>,
    calls: Vec<Action>,
}

struct History {
    world: World,
    process: Process,
    now: Instant,
    node_stays: bool,
    warm_limit: usize,
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    Done,
    FailedBefore,
    FailedAfter,
}

#[derive(Clone, Debug)]
enum Step {
    AddPod(u8),
    DeletePod(usize),
    ChangeGroups(usize, u8),
    /// The watch brings everything up to date.
    Sync,
    /// The watch shows no pods, as when the Node object is made anew.
    Blind,
    Plan,
    Complete(usize, Outcome),
    /// Each call under way may or may not have taken effect.
    Restart(u16),
    Advance(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let outcome = prop_oneof![
        3 => Just(Outcome::Done),
        1 => Just(Outcome::FailedBefore),
        1 => Just(Outcome::FailedAfter),
    ];
    let step = prop_oneof![
        3 => (0..3u8).prop_map(Step::AddPod),
        2 => (0..8usize).prop_map(Step::DeletePod),
        1 => (0..8usize, 0..3u8).prop_map(|(pod, groups)| Step::ChangeGroups(pod, groups)),
        2 => Just(Step::Sync),
        2 => Just(Step::Blind),
        8 => Just(Step::Plan),
        12 => (0..8usize, outcome).prop_map(|(call, outcome)| Step::Complete(call, outcome)),
        1 => any::<u16>().prop_map(Step::Restart),
        3 => (0..60u64).prop_map(Step::Advance),
    ];
    proptest::collection::vec(step, 0..150)
}

fn groups(kind: u8) -> Vec<SecurityGroupId> {
    let ids: &[&str] = match kind {
        0 => &["sg-00000000"],
        1 => &["sg-00000001", "sg-00000000"],
        _ => &["sg-00000002"],
    };
    ids.iter().map(|id| SecurityGroupId::from(*id)).collect()
}

impl World {
    fn fresh_id(&mut self, prefix: &str) -> String {
        self.made += 1;
        format!("{prefix}-{:04}", self.made)
    }

    /// Does what a call asks for, as far as EC2's rules allow. True if it is done.
    fn apply(&mut self, action: &Action) -> bool {
        match action {
            Action::CreateTrunk { group_ids } => {
                assert!(self.trunk.is_none(), "one trunk a node");
                let id = TrunkId::from(self.fresh_id("trunk").as_str());
                self.trunk = Some(Trunk {
                    id,
                    attached: false,
                    group_ids: group_ids.clone(),
                });
                true
            }
            Action::AttachTrunk(_) => self.with_trunk(|trunk| trunk.attached = true),
            Action::SetTrunkGroups(_, group_ids) => {
                self.with_trunk(|trunk| trunk.group_ids.clone_from(group_ids))
            }
            Action::DeleteTrunk(_) => {
                assert!(self.branches.is_empty(), "no branch is left behind");
                self.trunk = None;
                true
            }
            Action::CreateBranch {
                pod,
                vlan,
                group_ids,
            } => {
                if let Some(known) = self.tokens.get(pod).and_then(|id| self.branches.get(id)) {
                    // Equal parameters give the same interface, others are refused.
                    return known.vlan == *vlan && known.group_ids == *group_ids;
                }
                let id = BranchId::from(self.fresh_id("branch").as_str());
                self.tokens.insert(pod.clone(), id.clone());
                self.branches.insert(
                    id,
                    Branch {
                        vlan: *vlan,
                        group_ids: group_ids.clone(),
                        association: None,
                        claimed_by: Some(pod.clone()),
                        idle_since: None,
                        confirmed_idle: false,
                    },
                );
                true
            }
            Action::Associate { branch, vlan, .. } => {
                assert!(self.trunk.as_ref().is_some_and(|trunk| trunk.attached));
                let association = AssociationId::from(self.fresh_id("association").as_str());
                let taken = self.branches.iter().any(|(id, other)| {
                    id != branch && other.association.is_some() && other.vlan == *vlan
                });
                assert!(!taken, "VLAN id {vlan} is used once on a trunk");
                self.with_branch(branch, |branch| branch.association = Some(association))
            }
            Action::SetGroups { branch, group_ids } => {
                self.with_branch(branch, |branch| branch.group_ids.clone_from(group_ids))
            }
            Action::Reuse {
                branch, group_ids, ..
            } => {
                let user = self
                    .pods
                    .iter()
                    .find(|(_, pod)| pod.annotated.as_ref() == Some(branch));
                assert!(user.is_none(), "a branch in use is given to nobody else");
                let group_ids = group_ids.clone();
                self.with_branch(branch, |branch| {
                    if let Some(group_ids) = group_ids {
                        branch.group_ids = group_ids;
                    }
                })
            }
            Action::Annotate { pod, branch } => {
                assert!(
                    self.branches[branch].association.is_some(),
                    "an annotation is true"
                );
                // The precondition: this very pod, without an annotation.
                let pod = self.pods.get_mut(pod).filter(|pod| pod.annotated.is_none());
                pod.map(|pod| pod.annotated = Some(branch.clone()))
                    .is_some()
            }
            Action::ConfirmIdle(branch) => !self
                .pods
                .values()
                .any(|pod| pod.annotated.as_ref() == Some(branch)),
            Action::Disassociate { branch, .. } => {
                self.assert_unused(branch);
                self.with_branch(branch, |branch| branch.association = None)
            }
            Action::DeleteBranch(branch) => {
                self.assert_unused(branch);
                self.branches.remove(branch);
                true
            }
        }
    }

    fn with_trunk(&mut self, change: impl FnOnce(&mut Trunk)) -> bool {
        self.trunk.as_mut().map(change).is_some()
    }

    fn with_branch(&mut self, id: &BranchId, change: impl FnOnce(&mut Branch)) -> bool {
        self.branches.get_mut(id).map(change).is_some()
    }

    fn assert_unused(&self, branch: &BranchId) {
        let user = self
            .pods
            .iter()
            .find(|(_, pod)| pod.annotated.as_ref() == Some(branch));
        assert!(
            user.is_none(),
            "{branch:?} is taken from the running pod {user:?}"
        );
    }

    fn assert_invariants(&self) {
        let vlans: BTreeSet<_> = self.branches.values().map(|branch| branch.vlan).collect();
        assert_eq!(vlans.len(), self.branches.len(), "a VLAN id is used twice");
        assert!(
            self.branches.len() <= LIMIT,
            "more branches than the instance takes"
        );
        let annotated: Vec<_> = self
            .pods
            .values()
            .filter_map(|pod| pod.annotated.as_ref())
            .collect();
        let distinct: BTreeSet<_> = annotated.iter().collect();
        assert_eq!(distinct.len(), annotated.len(), "two pods share a branch");
        for branch in annotated {
            let exists = self
                .branches
                .get(branch)
                .is_some_and(|b| b.association.is_some());
            assert!(exists, "an annotation lies");
        }
    }
}

impl Process {
    fn start(world: &World) -> Self {
        let mut process = Self {
            observed: ObservedNode::default(),
            seen: BTreeMap::new(),
            calls: Vec::new(),
        };
        process.observe(world);
        process.seen = world.pods.clone();
        process
    }

    /// Describes the node's interfaces; what only this process knows is kept.
    fn observe(&mut self, world: &World) {
        let mut branches = world.branches.clone();
        for (id, branch) in &mut branches {
            if let Some(known) = self.observed.branches.get(id) {
                branch.claimed_by.clone_from(&known.claimed_by);
                branch.idle_since = known.idle_since;
                branch.confirmed_idle = known.confirmed_idle;
            }
        }
        self.observed.branches = branches;
        self.observed.trunk = world.trunk.clone();
    }
}

impl History {
    fn new(warm_limit: usize) -> Self {
        let world = World::default();
        let process = Process::start(&world);
        Self {
            world,
            process,
            now: Instant::now(),
            node_stays: true,
            warm_limit,
        }
    }

    fn desired(&self) -> DesiredNode {
        DesiredNode {
            trunk_groups: self.node_stays.then(|| groups(0)),
            branch_limit: LIMIT,
            pods: self.process.seen.clone(),
            cooldown: COOLDOWN,
            warm_limit: self.warm_limit,
        }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::AddPod(kind) => {
                let uid = PodUid::from(self.world.fresh_id("pod").as_str());
                let arrival = self.world.made;
                let pod = DesiredPod {
                    group_ids: groups(kind),
                    annotated: None,
                    arrival,
                };
                self.world.pods.insert(uid, pod);
            }
            Step::DeletePod(index) => {
                if let Some(uid) = self.world.pods.keys().nth(index).cloned() {
                    self.world.pods.remove(&uid);
                }
            }
            Step::ChangeGroups(index, kind) => {
                if let Some(pod) = self.world.pods.values_mut().nth(index) {
                    pod.group_ids = groups(kind);
                }
            }
            Step::Sync => self.process.seen = self.world.pods.clone(),
            Step::Blind => self.process.seen = BTreeMap::new(),
            Step::Plan => {
                self.plan();
            }
            Step::Complete(index, outcome) => {
                if index < self.process.calls.len() {
                    let call = self.process.calls.remove(index);
                    self.complete(&call, outcome);
                }
            }
            Step::Restart(effects) => {
                for (bit, call) in std::mem::take(&mut self.process.calls).iter().enumerate() {
                    if effects >> (bit % 16) & 1 == 1 {
                        self.world.apply(call);
                    }
                }
                self.process = Process::start(&self.world);
            }
            Step::Advance(seconds) => self.now += Duration::from_secs(seconds),
        }
        self.world.assert_invariants();
    }

    fn plan(&mut self) -> Plan {
        let desired = self.desired();
        self.process.observed.note_idle(&desired, self.now);
        let plan = plan(&desired, &self.process.observed, self.now);
        let mut subjects = BTreeSet::new();
        for action in &plan.actions {
            let subject = action.subject();
            assert!(
                subjects.insert(subject.clone()),
                "{subject:?} is acted on twice at once"
            );
            if let Action::CreateBranch { pod, vlan, .. } = action {
                self.process.observed.creating.insert(pod.clone(), *vlan);
            }
            self.process.observed.busy.insert(subject);
            self.process.calls.push(action.clone());
        }
        plan
    }

    fn complete(&mut self, call: &Action, outcome: Outcome) {
        let done = match outcome {
            Outcome::Done => self.world.apply(call),
            Outcome::FailedBefore => false,
            Outcome::FailedAfter => {
                self.world.apply(call);
                false
            }
        };
        let (observed, subject) = (&mut self.process.observed, call.subject());
        observed.busy.remove(&subject);
        if let Action::CreateBranch { pod, .. } = call {
            observed.creating.remove(pod);
        }
        if done {
            observed.retry_at.remove(&subject);
        } else {
            observed.retry_at.insert(subject, self.now + RETRY);
        }
        // Whatever the answer was, or whether there was one: what counts is what is.
        self.process.observe(&self.world);
        let observed = &mut self.process.observed;
        match call {
            Action::ConfirmIdle(id) if done => {
                if let Some(branch) = observed.branches.get_mut(id) {
                    branch.confirmed_idle = true;
                }
            }
            Action::Reuse { branch, pod, .. } if done => {
                if let Some(branch) = observed.branches.get_mut(branch) {
                    branch.claimed_by = Some(pod.clone());
                }
            }
            _ => {}
        }
    }

    /// Goes on without faults until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..1000 {
            self.take(&Step::Sync);
            for call in std::mem::take(&mut self.process.calls) {
                self.complete(&call, Outcome::Done);
                self.world.assert_invariants();
            }
            self.take(&Step::Sync);
            let plan = self.plan();
            if self.process.calls.is_empty() {
                match plan.wake_at {
                    Some(at) => self.now = at,
                    None => return,
                }
            }
        }
        panic!("it never comes to rest: {:?}", self.process.calls);
    }

    fn assert_settled(&self) {
        let pods = &self.world.pods;
        let annotated = pods.values().filter(|pod| pod.annotated.is_some()).count();
        assert_eq!(
            annotated,
            pods.len().min(LIMIT),
            "a pod waits although there is room"
        );
        for pod in pods.values() {
            if let Some(branch) = &pod.annotated {
                let has: BTreeSet<_> = ids(&self.world.branches[branch].group_ids);
                assert_eq!(has, ids(&pod.group_ids), "a branch has its pod's groups");
            }
        }
        let idle = self.world.branches.len() - annotated;
        assert!(idle <= self.warm_limit, "{idle} idle branches are left");
    }
}

fn ids(group_ids: &[SecurityGroupId]) -> BTreeSet<&str> {
    group_ids.iter().map(SecurityGroupId::as_str).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn wanted_state_is_reached_after_any_history(steps in steps(), warm_limit in 0..3usize) {
        let mut history = History::new(warm_limit);
        for step in &steps {
            history.take(step);
        }
        history.settle();
        history.assert_settled();

        // And everything goes with the node.
        history.world.pods.clear();
        history.node_stays = false;
        history.settle();
        prop_assert!(history.world.branches.is_empty());
        prop_assert!(history.world.trunk.is_none());
    }
}

/// A node with an attached trunk and these pods, all annotated.
fn with_pods(kinds: &[u8], warm_limit: usize) -> History {
    let mut history = History::new(warm_limit);
    for kind in kinds {
        history.take(&Step::AddPod(*kind));
    }
    history.settle();
    history
}

/// The calls for branches from here until nothing is left to do.
fn calls_until_settled(history: &mut History) -> Vec<Action> {
    let mut calls = Vec::new();
    for _ in 0..100 {
        history.take(&Step::Sync);
        let wake_at = history.plan().wake_at;
        if history.process.calls.is_empty() {
            let Some(at) = wake_at else { return calls };
            history.now = at;
        }
        for call in std::mem::take(&mut history.process.calls) {
            history.complete(&call, Outcome::Done);
            calls.push(call);
        }
    }
    panic!("it never comes to rest");
}

#[test]
fn pods_life_takes_a_creation_an_association_and_their_opposites() {
    let mut history = with_pods(&[], 0);
    history.take(&Step::AddPod(0));
    let calls = calls_until_settled(&mut history);
    use Action::{Annotate, Associate, ConfirmIdle, CreateBranch, DeleteBranch, Disassociate};
    assert!(matches!(
        calls[..],
        [CreateBranch { .. }, Associate { .. }, Annotate { .. }]
    ));

    history.take(&Step::DeletePod(0));
    let calls = calls_until_settled(&mut history);
    assert!(matches!(
        calls[..],
        [ConfirmIdle(_), Disassociate { .. }, DeleteBranch(_)]
    ));
}

#[test]
fn warm_branch_takes_one_call_for_other_groups_and_none_for_the_same() {
    for (kind, needs_groups) in [(0, false), (2, true)] {
        let mut history = with_pods(&[0], 1);
        history.take(&Step::DeletePod(0));
        history.settle();
        history.take(&Step::AddPod(kind));
        let calls = calls_until_settled(&mut history);
        let [Action::Reuse { group_ids, .. }, Action::Annotate { .. }] = &calls[..] else {
            panic!("{calls:?}")
        };
        assert_eq!(group_ids.is_some(), needs_groups);
    }
}

#[test]
fn released_branch_is_kept_from_others_until_it_has_cooled_down() {
    let mut history = with_pods(&[0, 0, 0], 3);
    history.take(&Step::DeletePod(0));
    history.take(&Step::AddPod(0));
    history.take(&Step::Sync);
    let released = history.now;
    let plan = history.plan();
    assert!(matches!(plan.actions[..], [Action::ConfirmIdle(_)]));
    let call = history.process.calls.remove(0);
    history.complete(&call, Outcome::Done);

    let plan = history.plan();
    assert!(
        plan.actions.is_empty(),
        "the node is full: {:?}",
        plan.actions
    );
    assert_eq!(plan.wake_at, Some(released + COOLDOWN));
    history.now = released + COOLDOWN - Duration::from_millis(1);
    assert!(history.plan().actions.is_empty(), "not yet");
    history.now = released + COOLDOWN;
    assert!(matches!(history.plan().actions[..], [Action::Reuse { .. }]));
}

#[test]
fn pods_that_came_first_are_served_first() {
    let mut history = with_pods(&[], 0);
    for _ in 0..5 {
        history.take(&Step::AddPod(0));
    }
    history.settle();
    let served: Vec<_> = history
        .world
        .pods
        .values()
        .map(|pod| pod.annotated.is_some())
        .collect();
    assert_eq!(served, [true, true, true, false, false]);
}

#[test]
fn changed_groups_reach_the_branch_of_a_running_pod() {
    let mut history = with_pods(&[0], 0);
    history.take(&Step::ChangeGroups(0, 2));
    let calls = calls_until_settled(&mut history);
    assert!(matches!(calls[..], [Action::SetGroups { .. }]), "{calls:?}");
}

#[test]
fn running_pod_keeps_its_branch_while_the_watch_is_blind() {
    let mut history = with_pods(&[0], 0);
    let before = history.world.branches.keys().cloned().collect::<Vec<_>>();
    history.take(&Step::Blind);
    for _ in 0..100 {
        let wake_at = history.plan().wake_at;
        for call in std::mem::take(&mut history.process.calls) {
            assert!(matches!(call, Action::ConfirmIdle(_)), "{call:?}");
            history.complete(&call, Outcome::Done);
        }
        history.now = wake_at.unwrap_or(history.now + COOLDOWN);
    }
    assert_eq!(
        history.world.branches.keys().cloned().collect::<Vec<_>>(),
        before
    );
}
