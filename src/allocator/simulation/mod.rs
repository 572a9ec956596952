//! Random histories of one node: pods come, go and change, calls fail before or after they
//! took effect or take effect later, EC2 shows late what is and what is gone, people delete
//! and disassociate what they should not, the process dies and starts again, the node leaves
//! and comes back, and the watch lags or goes blind. After every step the invariants hold;
//! once the faults stop, the wanted state is reached.

mod world;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use self::world::{Call, HIDDEN, LIMIT, World};
use super::state::{Effect, Failed, Found, NodeState, Tick, VISIBLE_WITHIN};
use super::*;
use crate::api::SecurityGroupId;
use crate::ec2::calls::Interface;

const COOLDOWN: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(1);
/// How long an observation takes at most.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a node that is gone keeps its trunk.
const TRUNK_GRACE: Duration = Duration::from_secs(60);

/// The allocator's loop, as far as one node goes: see `worker`.
struct Process {
    state: NodeState,
    tick: Tick,
    /// Pods as the watch has brought them.
    seen: BTreeMap<PodUid, DesiredPod>,
    calls: Vec<Call>,
    /// Whether all interfaces have been observed once.
    observed: bool,
    observing: [Option<Observation>; 2],
    gone_since: Option<Instant>,
}

/// EC2 is being asked which interfaces there are.
struct Observation {
    begun: Tick,
    begun_at: Instant,
    /// What it will answer, once that is settled.
    shown: Option<Vec<Interface>>,
}

/// What an observation is for.
#[derive(Clone, Copy, Debug)]
enum Scope {
    /// All nodes, from time to time.
    Audit,
    /// This node, because a call has failed.
    Node,
}

struct History {
    world: World,
    process: Process,
    standing: Standing,
    trunk_groups: Vec<SecurityGroupId>,
    warm_limit: usize,
    /// How often it was planned since nothing fails any more.
    rounds: usize,
}

/// What the node is to the allocator.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Standing {
    TakesPart,
    Stays,
    Gone,
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    Done,
    /// EC2 says that there are too many calls.
    TurnedAway,
    FailedBefore,
    FailedAfter,
    /// There is no answer, and it takes effect some time later.
    Late,
}

#[derive(Clone, Debug)]
enum Step {
    AddPod(u8),
    DeletePod(usize),
    ChangeGroups(usize, u8),
    ChangeTrunkGroups(u8),
    /// The watch brings everything up to date.
    Sync,
    /// The watch shows no pods.
    Blind,
    Stand(Standing),
    Plan,
    Complete(usize, Outcome),
    Audit,
    /// EC2 settles what it will answer.
    Snapshot(Scope),
    Observed(Scope, bool),
    /// From now on EC2 shows changes late by so many seconds.
    Lag(u64),
    /// A call that nobody waits for takes effect.
    Land(usize),
    Disassociate(usize),
    Delete(usize),
    /// Each call under way has taken effect, will, or never does.
    Restart(u32),
    Advance(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let outcome = prop_oneof![
        6 => Just(Outcome::Done),
        2 => Just(Outcome::TurnedAway),
        2 => Just(Outcome::FailedBefore),
        2 => Just(Outcome::FailedAfter),
        1 => Just(Outcome::Late),
    ];
    let standing = prop_oneof![
        3 => Just(Standing::TakesPart),
        1 => Just(Standing::Stays),
        1 => Just(Standing::Gone),
    ];
    let scope = || prop_oneof![Just(Scope::Audit), Just(Scope::Node)];
    let step = prop_oneof![
        6 => (0..3u8).prop_map(Step::AddPod),
        4 => (0..8usize).prop_map(Step::DeletePod),
        2 => (0..8usize, 0..3u8).prop_map(|(pod, groups)| Step::ChangeGroups(pod, groups)),
        1 => (0..3u8).prop_map(Step::ChangeTrunkGroups),
        6 => Just(Step::Sync),
        2 => Just(Step::Blind),
        2 => standing.prop_map(Step::Stand),
        20 => Just(Step::Plan),
        28 => (0..8usize, outcome).prop_map(|(call, outcome)| Step::Complete(call, outcome)),
        2 => Just(Step::Audit),
        2 => scope().prop_map(Step::Snapshot),
        6 => (scope(), any::<bool>()).prop_map(|(scope, ok)| Step::Observed(scope, ok)),
        1 => (0..=HIDDEN.as_secs()).prop_map(Step::Lag),
        2 => (0..3usize).prop_map(Step::Land),
        1 => (0..3usize).prop_map(Step::Disassociate),
        1 => (0..3usize).prop_map(Step::Delete),
        1 => any::<u32>().prop_map(Step::Restart),
        6 => (0..60u64).prop_map(Step::Advance),
    ];
    proptest::collection::vec(step, 0..200)
}

fn groups(kind: u8) -> Vec<SecurityGroupId> {
    let ids: &[&str] = match kind {
        0 => &["sg-00000000"],
        1 => &["sg-00000001", "sg-00000000"],
        _ => &["sg-00000002"],
    };
    ids.iter().map(|id| SecurityGroupId::from(*id)).collect()
}

impl Process {
    fn start(world: &World) -> Self {
        Self {
            state: NodeState::default(),
            tick: 0,
            seen: world.pods.clone(),
            calls: Vec::new(),
            observed: false,
            observing: [None, None],
            gone_since: None,
        }
    }

    fn next_tick(&mut self) -> Tick {
        self.tick += 1;
        self.tick
    }

    fn observe(&mut self, scope: Scope, begun_at: Instant) {
        let begun = self.next_tick();
        self.observing[scope as usize].get_or_insert(Observation {
            begun,
            begun_at,
            shown: None,
        });
    }
}

impl History {
    fn new(warm_limit: usize) -> Self {
        let world = World::new();
        let process = Process::start(&world);
        Self {
            world,
            process,
            standing: Standing::TakesPart,
            trunk_groups: groups(0),
            warm_limit,
            rounds: 0,
        }
    }

    /// As `desired` has it.
    fn desired(&self) -> DesiredNode {
        let observed = &self.process.state.observed;
        let present = observed.trunk.as_ref().map(|it| it.group_ids.clone());
        let (trunk_groups, branch_limit) = match self.standing {
            Standing::TakesPart => (Some(self.trunk_groups.clone()), LIMIT),
            Standing::Stays => (present, 0),
            Standing::Gone => (None, 0),
        };
        let mut pods = self.process.seen.clone();
        if self.standing == Standing::Gone {
            let is_here = |id: &BranchId| observed.branches.contains_key(id);
            pods.retain(|_, pod| pod.annotated.as_ref().is_some_and(is_here));
        }
        DesiredNode {
            trunk_groups,
            branch_limit,
            pods,
            cooldown: COOLDOWN,
            warm_limit: self.warm_limit,
        }
    }

    fn take(&mut self, step: &Step) {
        let (world, process) = (&mut self.world, &mut self.process);
        match *step {
            Step::AddPod(kind) => world.add_pod(groups(kind)),
            Step::DeletePod(index) => {
                if let Some(uid) = world.pods.keys().nth(index).cloned() {
                    world.pods.remove(&uid);
                }
            }
            Step::ChangeGroups(index, kind) => {
                if let Some(pod) = world.pods.values_mut().nth(index) {
                    pod.group_ids = groups(kind);
                }
            }
            Step::ChangeTrunkGroups(kind) => self.trunk_groups = groups(kind),
            Step::Sync => process.seen = world.pods.clone(),
            Step::Blind => process.seen.clear(),
            Step::Stand(standing) => self.standing = standing,
            Step::Plan => {
                self.plan();
            }
            Step::Complete(index, outcome) => self.complete(index, outcome),
            Step::Audit => process.observe(Scope::Audit, world.now),
            Step::Snapshot(scope) => {
                if let Some(observation) = &mut process.observing[scope as usize] {
                    observation.shown.get_or_insert_with(|| world.shown());
                }
            }
            Step::Observed(scope, ok) => self.observed(scope, ok),
            Step::Lag(seconds) => world.lag = Duration::from_secs(seconds),
            Step::Land(index) => world.land(index),
            Step::Disassociate(index) => world.tamper(index, false),
            Step::Delete(index) => world.tamper(index, true),
            Step::Restart(effects) => self.restart(effects),
            Step::Advance(seconds) => world.advance(world.now + Duration::from_secs(seconds)),
        }
        self.world.assert_invariants();
    }

    fn restart(&mut self, effects: u32) {
        let calls = std::mem::take(&mut self.process.calls);
        self.world.forget(&calls);
        for (index, call) in calls.into_iter().enumerate() {
            match effects >> (2 * (index % 16)) & 3 {
                0 => {
                    let _ = self.world.carry_out(&call);
                }
                1 => self.world.leave_to_itself(call),
                _ => {}
            }
        }
        self.process = Process::start(&self.world);
    }

    fn plan(&mut self) -> Plan {
        let (now, desired) = (self.world.now, self.desired());
        let process = &mut self.process;
        if !process.observed {
            process.observe(Scope::Audit, now);
            return Plan::default();
        }
        if process.state.needs_observation() {
            process.observe(Scope::Node, now);
        }
        let mut held = Vec::new();
        match self.standing {
            Standing::TakesPart => process.gone_since = None,
            Standing::Stays => {
                process.gone_since = None;
                held.push(Subject::Trunk);
            }
            Standing::Gone => {
                let since = *process.gone_since.get_or_insert(now);
                if since + TRUNK_GRACE > now {
                    held.push(Subject::Trunk);
                }
            }
        }
        process.state.take_settled(&desired);
        let tick = process.next_tick();
        let plan = process.state.plan(&desired, held, tick, now);
        let mut subjects = Vec::new();
        for action in &plan.actions {
            let subject = action.subject();
            assert!(
                !subjects.contains(&subject),
                "{subject:?} is acted on twice at once"
            );
            let association = match action {
                Action::Annotate { branch, .. } => {
                    process.state.observed.branches[branch].association.clone()
                }
                _ => None,
            };
            let call = Call {
                action: action.clone(),
                generation: process.state.generation(&subject),
                association,
            };
            let tick = process.next_tick();
            process.state.begin(action, tick, now);
            process.calls.push(call);
            subjects.push(subject);
        }
        if self.standing == Standing::Gone && process.state.is_empty() {
            process.state = NodeState::default();
        }
        plan
    }

    fn complete(&mut self, index: usize, outcome: Outcome) {
        if index >= self.process.calls.len() {
            return;
        }
        let call = self.process.calls.remove(index);
        let no_answer = match call.is_elsewhere() {
            true => Failed::Elsewhere,
            false => Failed::Unsure,
        };
        let result = match outcome {
            Outcome::Done => self.world.carry_out(&call),
            Outcome::TurnedAway if call.is_one_call() => Err(Failed::Elsewhere),
            Outcome::TurnedAway => Err(no_answer),
            Outcome::FailedBefore => Err(no_answer),
            Outcome::FailedAfter => {
                let _ = self.world.carry_out(&call);
                Err(no_answer)
            }
            Outcome::Late => {
                self.world.leave_to_itself(call.clone());
                Err(no_answer)
            }
        };
        let now = self.world.now;
        let process = &mut self.process;
        let tick = process.next_tick();
        match result {
            Ok(effect) => {
                if let (Action::Annotate { pod, branch }, Effect::Annotated(_)) =
                    (&call.action, &effect)
                    && let Some(seen) = process.seen.get_mut(pod)
                {
                    seen.annotated = Some(branch.clone());
                }
                process.state.succeed(&call.action, effect, tick, now);
            }
            Err(failed) => {
                let retry_at = now + RETRY;
                process
                    .state
                    .fail(&call.action, failed, retry_at, tick, now);
            }
        }
    }

    fn observed(&mut self, scope: Scope, ok: bool) {
        let process = &mut self.process;
        let Some(observation) = process.observing[scope as usize].take() else {
            return;
        };
        if !ok || observation.begun_at + PATIENCE < self.world.now {
            return;
        }
        let shown = observation.shown.unwrap_or_else(|| self.world.shown());
        let found = Found::by_instance(shown).into_values().next();
        let annotations = &self.world.annotations;
        let (begun, now) = (observation.begun, self.world.now);
        process
            .state
            .observe(found.unwrap_or_default(), annotations, begun, now);
        process.observed |= matches!(scope, Scope::Audit);
    }

    /// Goes on without faults until nothing is left to do, and gives the actions.
    fn settle(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        self.world.lag = Duration::ZERO;
        self.work(&mut actions);
        // What is late or hidden comes to light, and is found by the next audit.
        self.world.advance(self.world.now + VISIBLE_WITHIN);
        self.process.observe(Scope::Audit, self.world.now);
        self.work(&mut actions);
        actions
    }

    fn work(&mut self, actions: &mut Vec<Action>) {
        for _ in 0..200 {
            self.rounds += 1;
            self.take(&Step::Sync);
            while let Some(call) = self.process.calls.first() {
                actions.push(call.action.clone());
                self.take(&Step::Complete(0, Outcome::Done));
            }
            self.take(&Step::Observed(Scope::Audit, true));
            self.take(&Step::Observed(Scope::Node, true));
            self.take(&Step::Sync);
            let plan = self.plan();
            let process = &self.process;
            let observes = process.observing.iter().any(Option::is_some);
            if observes || process.state.needs_observation() || !process.calls.is_empty() {
                continue;
            }
            let leaves = self.standing == Standing::Gone && !process.state.is_empty();
            let later = self.world.now + Duration::from_secs(5);
            match plan.wake_at.or(leaves.then_some(later)) {
                Some(at) => self.world.advance(at),
                None => return,
            }
        }
        panic!(
            "it never comes to rest: {:#?} {:#?}",
            self.process.calls, self.process.state
        );
    }
}

fn wanted_state_is_reached(steps: &[Step], warm_limit: usize) {
    let mut history = History::new(warm_limit);
    for step in steps {
        history.take(step);
    }
    history.standing = Standing::TakesPart;
    history.settle();
    let groups = history.trunk_groups.clone();
    history.world.assert_settled(warm_limit, &groups);

    // And everything goes with the node.
    history.world.pods.clear();
    history.standing = Standing::Gone;
    history.settle();
    history.world.assert_empty();
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases.max(500),
        // What was found once is a test of its own below.
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn wanted_state_is_reached_after_any_history(steps in steps(), warm_limit in 0..3usize) {
        wanted_state_is_reached(&steps, warm_limit);
    }
}

/// A node with an attached trunk and these pods, all annotated.
fn with_pods(kinds: &[u8], warm_limit: usize) -> History {
    let mut history = History::new(warm_limit);
    history.settle();
    for kind in kinds {
        history.take(&Step::AddPod(*kind));
    }
    history.settle();
    history
}

#[test]
fn pods_life_takes_a_creation_an_association_and_their_opposites() {
    let mut history = with_pods(&[], 0);
    history.take(&Step::AddPod(0));
    let calls = history.settle();
    use Action::{Annotate, Associate, ConfirmIdle, CreateBranch, DeleteBranch, Disassociate};
    assert!(matches!(
        calls[..],
        [CreateBranch { .. }, Associate { .. }, Annotate { .. }]
    ));

    history.take(&Step::DeletePod(0));
    let calls = history.settle();
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
        let calls = history.settle();
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
    let released = history.world.now;
    let plan = history.plan();
    assert!(matches!(plan.actions[..], [Action::ConfirmIdle(_)]));
    history.complete(0, Outcome::Done);

    let plan = history.plan();
    assert!(
        plan.actions.is_empty(),
        "the node is full: {:?}",
        plan.actions
    );
    assert_eq!(plan.wake_at, Some(released + COOLDOWN));
    history
        .world
        .advance(released + COOLDOWN - Duration::from_millis(1));
    assert!(history.plan().actions.is_empty(), "not yet");
    history.world.advance(released + COOLDOWN);
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
    let calls = history.settle();
    assert!(matches!(calls[..], [Action::SetGroups { .. }]), "{calls:?}");
}

#[test]
fn running_pod_keeps_its_branch_while_the_watch_is_blind() {
    let mut history = with_pods(&[0], 0);
    let before = history.world.branch_ids();
    history.take(&Step::Blind);
    for _ in 0..100 {
        let wake_at = history.plan().wake_at;
        while let Some(call) = history.process.calls.first() {
            assert!(matches!(call.action, Action::ConfirmIdle(_)), "{call:?}");
            history.complete(0, Outcome::Done);
        }
        let later = history.world.now + COOLDOWN;
        history.world.advance(wake_at.unwrap_or(later));
    }
    assert_eq!(history.world.branch_ids(), before);
}

/// A node with an attached trunk, whose allocator knows of as many pods as there are places.
fn creating_for_three_pods() -> Vec<Step> {
    use Step::{AddPod, Complete, Observed, Plan, Sync};
    vec![
        Plan,
        Observed(Scope::Audit, true),
        Plan,
        Complete(0, Outcome::Done),
        Plan,
        Complete(0, Outcome::Done),
        AddPod(0),
        AddPod(0),
        AddPod(0),
        Sync,
        Plan,
    ]
}

#[test]
fn vlan_id_of_a_creation_whose_outcome_is_open_is_given_to_nobody() {
    use Step::{AddPod, Advance, Complete, DeletePod, Plan, Sync};
    for tail in [
        // Nothing has been observed since.
        vec![
            Complete(2, Outcome::FailedAfter),
            DeletePod(2),
            Advance(30),
            AddPod(0),
            Sync,
            Plan,
        ],
        // It is still under way.
        vec![
            DeletePod(2),
            Advance(30),
            AddPod(0),
            Sync,
            Plan,
            Complete(2, Outcome::FailedAfter),
        ],
        // It took effect after the last observation.
        vec![
            Complete(0, Outcome::Late),
            Plan,
            Step::Observed(Scope::Node, true),
            Advance(30),
            DeletePod(0),
            AddPod(0),
        ],
        // It takes effect after its pod is gone, and nobody has seen it yet.
        vec![
            Complete(0, Outcome::Late),
            DeletePod(0),
            Sync,
            Plan,
            Step::Observed(Scope::Node, true),
            Plan,
            Step::Observed(Scope::Node, true),
            AddPod(0),
            Sync,
            Plan,
            Complete(2, Outcome::Done),
            Step::Land(0),
        ],
    ] {
        wanted_state_is_reached(&[creating_for_three_pods(), tail].concat(), 0);
    }
}

#[test]
fn pod_whose_branch_has_the_vlan_id_of_another_gets_a_new_one() {
    use Step::{AddPod, Complete, DeletePod, Lag, Plan, Restart, Sync};
    let mut history = with_pods(&[], 0);
    // Two branches are made that EC2 does not show yet when the next process looks: that
    // takes their VLAN ids for free, and gives that of the second to the third pod.
    for step in [
        AddPod(0),
        AddPod(0),
        Sync,
        Plan,
        Lag(1),
        Complete(0, Outcome::Done),
        Restart(0),
        DeletePod(0),
        AddPod(0),
    ] {
        history.take(&step);
    }
    history.settle();
    history.world.assert_settled(0, &groups(0));
}

#[test]
fn annotation_waits_for_what_ec2_says_when_its_branch_lost_its_association() {
    let mut history = with_pods(&[], 0);
    for step in [
        Step::AddPod(0),
        Step::Sync,
        Step::Plan,
        Step::Complete(0, Outcome::Done),
        Step::Plan,
        Step::Complete(0, Outcome::FailedAfter),
        Step::Restart(0),
        Step::Plan,
        Step::Observed(Scope::Audit, true),
        Step::Disassociate(0),
    ] {
        history.take(&step);
    }
    let mut actions = Vec::new();
    history.work(&mut actions);
    assert!(
        matches!(
            actions[..],
            [
                Action::Annotate { .. },
                Action::Associate { .. },
                Action::Annotate { .. }
            ]
        ),
        "{actions:?}"
    );
}

#[test]
fn what_a_call_has_brought_outlives_an_older_observation() {
    let mut history = with_pods(&[], 0);
    for step in [
        Step::AddPod(0),
        Step::Sync,
        Step::Plan,
        Step::Complete(0, Outcome::Done),
        Step::Plan,
        Step::Audit,
        Step::Snapshot(Scope::Audit),
        Step::Complete(0, Outcome::Done),
        Step::Observed(Scope::Audit, true),
    ] {
        history.take(&step);
    }
    let plan = history.plan();
    assert!(
        matches!(plan.actions[..], [Action::Annotate { .. }]),
        "{plan:?}"
    );
}

#[test]
fn what_an_observation_has_shown_outlives_one_that_began_before() {
    let mut history = with_pods(&[], 0);
    for step in [
        Step::AddPod(0),
        Step::Sync,
        Step::Plan,
        Step::Complete(0, Outcome::Done),
        Step::Plan,
        Step::Audit,
        Step::Snapshot(Scope::Audit),
        Step::Complete(0, Outcome::FailedAfter),
        Step::Plan,
        Step::Observed(Scope::Node, true),
        Step::Observed(Scope::Audit, true),
        Step::Advance(1),
    ] {
        history.take(&step);
    }
    let plan = history.plan();
    assert!(
        matches!(plan.actions[..], [Action::Annotate { .. }]),
        "{plan:?}"
    );
}

#[test]
fn branch_whose_removal_has_begun_is_given_to_nobody() {
    let end_is_late = [
        Step::Sync,
        Step::Plan,
        Step::Complete(0, Outcome::Done),
        Step::Advance(COOLDOWN.as_secs()),
        Step::Plan,
        Step::Complete(0, Outcome::Late),
        Step::Plan,
        Step::Observed(Scope::Node, true),
        Step::Advance(RETRY.as_secs()),
    ];
    let is_given =
        |action: &Action| matches!(action, Action::Reuse { .. } | Action::Annotate { .. });

    // Neither to the next pod.
    let mut history = with_pods(&[0], 0);
    history.take(&Step::DeletePod(0));
    for step in &end_is_late {
        history.take(step);
    }
    history.take(&Step::AddPod(0));
    history.take(&Step::Sync);
    let plan = history.plan();
    assert!(!plan.actions.iter().any(is_given), "{plan:?}");

    // Nor to the one that it was made for, which the watch had lost.
    let mut history = with_pods(&[], 0);
    for step in [
        Step::AddPod(0),
        Step::Sync,
        Step::Plan,
        Step::Complete(0, Outcome::Done),
        Step::Plan,
        Step::Complete(0, Outcome::Done),
        Step::Blind,
    ] {
        history.take(&step);
    }
    for step in &end_is_late[1..] {
        history.take(step);
    }
    history.take(&Step::Sync);
    let plan = history.plan();
    assert!(!plan.actions.iter().any(is_given), "{plan:?}");
    history.settle();
    history.world.assert_settled(0, &groups(0));
}

/// A node with an attached trunk, whose allocator has made a branch for its one pod, and is
/// to associate it.
fn with_branch_made(warm_limit: usize) -> History {
    let mut history = with_pods(&[], warm_limit);
    for step in [
        Step::AddPod(0),
        Step::Sync,
        Step::Plan,
        Step::Complete(0, Outcome::Done),
        Step::Plan,
    ] {
        history.take(&step);
    }
    history
}

#[test]
fn branch_that_was_given_to_a_pod_since_is_confirmed_anew() {
    let mut history = with_branch_made(0);
    for step in [
        // Its pod has no annotation yet, and can't be seen.
        Step::Complete(0, Outcome::Done),
        Step::Blind,
        Step::Plan,
        Step::Complete(0, Outcome::Done),
        Step::Sync,
        Step::Plan,
        Step::Complete(0, Outcome::Done),
        Step::Plan,
        Step::Blind,
        Step::Plan,
        Step::Advance(COOLDOWN.as_secs()),
    ] {
        history.take(&step);
    }
    let calls: Vec<_> = history.process.calls.iter().map(|it| &it.action).collect();
    assert!(matches!(calls[..], [Action::ConfirmIdle(_)]), "{calls:?}");
}

#[test]
fn creation_whose_answer_was_lost_is_asked_for_again_with_the_same_parameters() {
    let mut history = with_pods(&[], 0);
    history.take(&Step::AddPod(0));
    history.take(&Step::Sync);
    history.take(&Step::Lag(5));
    let first = history.plan().actions;
    // An observation that began before says nothing about it.
    history.take(&Step::Audit);
    history.take(&Step::Complete(0, Outcome::FailedAfter));
    history.take(&Step::Observed(Scope::Audit, true));
    history.take(&Step::Advance(RETRY.as_secs()));
    let unsure = history.plan().actions;
    assert!(unsure.is_empty(), "{unsure:?}");
    history.take(&Step::Observed(Scope::Node, true));
    assert_eq!(history.plan().actions, first);
    history.settle();
    assert_eq!(history.world.branch_ids().len(), 1);
}

#[test]
fn branch_stays_with_the_pod_that_it_was_given_to() {
    let mut history = with_pods(&[0], 1);
    history.take(&Step::DeletePod(0));
    history.settle();
    for step in [
        Step::AddPod(0),
        Step::Sync,
        Step::Plan,
        Step::Complete(0, Outcome::Done),
        Step::Audit,
        Step::Observed(Scope::Audit, true),
    ] {
        history.take(&step);
    }
    let plan = history.plan();
    assert!(
        matches!(plan.actions[..], [Action::Annotate { .. }]),
        "{plan:?}"
    );
}

#[test]
fn trunk_goes_after_all_branches() {
    let mut history = with_pods(&[0, 1, 2], 0);
    history.standing = Standing::Gone;
    history.plan();
    history.take(&Step::Advance(TRUNK_GRACE.as_secs()));
    let actions = history.plan().actions;
    assert!(actions.is_empty(), "pods run: {actions:?}");

    history.world.pods.clear();
    let actions = history.settle();
    let is_trunk = |action: &Action| action.subject() == Subject::Trunk;
    let first = actions.iter().position(is_trunk);
    assert_eq!(first, Some(actions.len() - 1), "{actions:?}");
}

#[test]
fn trunk_that_nobody_needs_is_deleted() {
    let mut history = with_pods(&[0], 0);
    history.world.add_trunk(groups(0));
    history.process.observe(Scope::Audit, history.world.now);
    let actions = history.settle();
    assert!(
        matches!(actions[..], [Action::DeleteTrunk(_)]),
        "{actions:?}"
    );
    history.world.assert_settled(0, &groups(0));
}
