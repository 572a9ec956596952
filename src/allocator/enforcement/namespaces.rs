//! Which namespaces are to fail closed, and what is to be written for that. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta};
use kube::ResourceExt;
use kube::api::DynamicObject;
use kube::core::PartialObjectMeta;
use tokio::time::Instant;

use crate::allocator::cluster::Of;
use crate::api::names::{ENFORCE_LABEL, ENFORCED_VALUE, FIELD_MANAGER, NEVER_ENFORCED};
use crate::api_server::policies::parse_policy;

/// The same is not written again for a namespace before that: somebody may undo it each time.
const PAUSE: Duration = Duration::from_secs(1);
/// After a failure the pause doubles up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// How many calls run at once at most.
const CALLS_AT_ONCE: usize = 16;

/// One thing that a watch has brought.
#[derive(Debug)]
pub enum Change {
    /// Namespaces.
    Namespaces(Of<SeenNamespace>),
    /// SecurityGroupPolicies.
    Policies(Of<SeenPolicy>),
}

/// A namespace, as far as it matters here.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SeenNamespace {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Whether its label selects the webhook entries that fail closed.
    pub is_labelled: bool,
    /// Whether the label was applied by an allocator, be it another or an earlier one.
    /// Somebody else may have set it besides.
    pub is_ours: bool,
    /// Whether it is on its way out and takes no new pods.
    pub is_terminating: bool,
}

impl From<&ObjectMeta> for SeenNamespace {
    fn from(metadata: &ObjectMeta) -> Self {
        let label = metadata
            .labels
            .as_ref()
            .and_then(|it| it.get(ENFORCE_LABEL));
        let managers = metadata.managed_fields.iter().flatten();
        Self {
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            is_labelled: label.is_some_and(|value| value == ENFORCED_VALUE),
            is_ours: managers.into_iter().any(is_our_label),
            is_terminating: metadata.deletion_timestamp.is_some(),
        }
    }
}

impl From<&PartialObjectMeta<Namespace>> for SeenNamespace {
    fn from(namespace: &PartialObjectMeta<Namespace>) -> Self {
        Self::from(&namespace.metadata)
    }
}

/// Whether an entry says that an allocator has applied the label. The API server drops the
/// label from it when somebody else removes it or writes another value.
fn is_our_label(entry: &ManagedFieldsEntry) -> bool {
    let fields = entry.fields_v1.as_ref();
    entry.manager.as_deref() == Some(FIELD_MANAGER)
        && entry.operation.as_deref() == Some("Apply")
        && fields.is_some_and(|fields| {
            let labels = &fields.0["f:metadata"]["f:labels"];
            labels.get(format!("f:{ENFORCE_LABEL}")).is_some()
        })
}

/// A policy, as far as it matters here.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SeenPolicy {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whether it can select pods at all.
    pub is_valid: bool,
}

impl From<&DynamicObject> for SeenPolicy {
    fn from(object: &DynamicObject) -> Self {
        Self {
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
            is_valid: parse_policy(object).is_ok(),
        }
    }
}

/// What is written for a namespace.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Apply the label.
    Label,
    /// Apply nothing, so that the label goes unless somebody else has set it too.
    Unlabel,
}

/// What a namespace lacks; `None` if it is as it should be.
///
/// `is_exempt`: its pods start whatever becomes of the webhook.
pub fn step(namespace: &SeenNamespace, has_valid_policy: bool, is_exempt: bool) -> Option<Step> {
    if namespace.is_terminating {
        return None;
    }
    if has_valid_policy && !is_exempt {
        // Also where somebody else has set it: it is to stay when they take theirs back.
        let is_done = namespace.is_labelled && namespace.is_ours;
        return (!is_done).then_some(Step::Label);
    }
    namespace.is_ours.then_some(Step::Unlabel)
}

/// A call that is due.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Due {
    /// The namespace as it was seen last.
    pub namespace: SeenNamespace,
    /// What is to be written.
    pub step: Step,
}

/// What has become of a call.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// This is the namespace now.
    Written(SeenNamespace),
    /// Nothing was written: the API server still has a policy, of which the watch will tell,
    /// or the leadership is over.
    NotWritten,
    /// It is to be tried again.
    Failed,
}

/// The last call for a namespace.
#[derive(Debug)]
struct Attempt {
    step: Step,
    is_running: bool,
    failures: u32,
    /// When the same may be written again.
    not_before: Instant,
}

/// What is known of all namespaces, and the calls for them.
#[derive(Debug)]
pub struct Namespaces {
    own_namespace: String,
    known: BTreeMap<String, SeenNamespace>,
    /// The names of the valid policies, by namespace; never an empty set.
    policies: BTreeMap<String, BTreeSet<String>>,
    are_namespaces_listed: bool,
    are_policies_listed: bool,
    attempts: BTreeMap<String, Attempt>,
    /// Those to look at.
    dirty: BTreeSet<String>,
}

impl Namespaces {
    /// Knows nothing yet. `own_namespace` is the one that the webhook runs in.
    pub fn new(own_namespace: &str) -> Self {
        Self {
            own_namespace: own_namespace.to_owned(),
            known: BTreeMap::new(),
            policies: BTreeMap::new(),
            are_namespaces_listed: false,
            are_policies_listed: false,
            attempts: BTreeMap::new(),
            dirty: BTreeSet::new(),
        }
    }

    /// Takes over what a watch has brought.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Namespaces(Of::Apply(namespace)) => {
                self.dirty.insert(namespace.name.clone());
                self.known.insert(namespace.name.clone(), namespace);
            }
            Change::Namespaces(Of::Delete(namespace)) => {
                self.dirty.insert(namespace.name.clone());
                self.known.remove(&namespace.name);
            }
            Change::Namespaces(Of::All(all)) => {
                self.are_namespaces_listed = true;
                self.touch_all();
                let named = all.into_iter().map(|it| (it.name.clone(), it));
                self.known = named.collect();
                self.touch_all();
            }
            // There always are namespaces, so nothing can be said.
            Change::Namespaces(Of::Undefined) => {}
            Change::Policies(Of::Apply(policy)) => self.apply_policy(policy),
            Change::Policies(Of::Delete(mut policy)) => {
                policy.is_valid = false;
                self.apply_policy(policy);
            }
            Change::Policies(Of::All(all)) => {
                self.are_policies_listed = true;
                self.policies.clear();
                for policy in all {
                    self.apply_policy(policy);
                }
                self.touch_all();
            }
            Change::Policies(Of::Undefined) => {
                self.are_policies_listed = true;
                self.policies.clear();
                self.touch_all();
            }
        }
    }

    fn apply_policy(&mut self, policy: SeenPolicy) {
        self.dirty.insert(policy.namespace.clone());
        if policy.is_valid {
            let names = self.policies.entry(policy.namespace).or_default();
            names.insert(policy.name);
        } else if let Some(names) = self.policies.get_mut(&policy.namespace) {
            names.remove(&policy.name);
            if names.is_empty() {
                self.policies.remove(&policy.namespace);
            }
        }
    }

    fn touch_all(&mut self) {
        self.dirty.extend(self.known.keys().cloned());
    }

    /// Whether the webhook entries that fail closed never take the namespace's pods.
    fn is_exempt(&self, name: &str) -> bool {
        NEVER_ENFORCED.contains(&name) || self.own_namespace == name
    }

    fn step(&self, name: &str) -> Option<Step> {
        let namespace = self.known.get(name)?;
        let has_valid_policy = self.policies.contains_key(name);
        step(namespace, has_valid_policy, self.is_exempt(name))
    }

    /// How many namespaces fail closed now, whoever has labelled them.
    pub fn enforced(&self) -> usize {
        let labelled = self.known.values().filter(|it| it.is_labelled);
        labelled.filter(|it| !self.is_exempt(&it.name)).count()
    }

    /// Forgets all calls, and looks at every namespace anew: nobody knows what came of the
    /// calls of an earlier leader.
    pub fn begin_anew(&mut self) {
        self.attempts.clear();
        self.touch_all();
    }

    /// The calls to be made now. What comes of each must be told to [`Self::finished`].
    ///
    /// None before both watches have brought everything, since a policy that is not known yet
    /// is none that is gone.
    pub fn due(&mut self, now: Instant) -> Vec<Due> {
        if !self.are_namespaces_listed || !self.are_policies_listed {
            return Vec::new();
        }
        let rested = self.attempts.iter().filter(|(_, it)| it.is_ripe(now));
        let rested: Vec<_> = rested.map(|(name, _)| name.clone()).collect();
        self.dirty.extend(rested);
        let mut due = Vec::new();
        let dirty = std::mem::take(&mut self.dirty);
        // Who would start unprotected goes first.
        let (labels, others): (Vec<_>, Vec<_>) = dirty
            .into_iter()
            .partition(|name| self.step(name) == Some(Step::Label));
        for name in labels.into_iter().chain(others) {
            let attempt = self.attempts.get(&name);
            // Looked at again when the call ends.
            if attempt.is_some_and(|it| it.is_running) {
                continue;
            }
            let Some(step) = self.step(&name) else {
                if attempt.is_some_and(|it| it.not_before <= now) {
                    self.attempts.remove(&name);
                }
                continue;
            };
            let same = attempt.filter(|it| it.step == step);
            if same.is_some_and(|it| now < it.not_before) {
                continue;
            }
            if self.running() >= CALLS_AT_ONCE {
                self.dirty.insert(name);
                continue;
            }
            let attempt = Attempt {
                step,
                is_running: true,
                failures: same.map_or(0, |it| it.failures),
                not_before: now,
            };
            let namespace = self.known[&name].clone();
            self.attempts.insert(name, attempt);
            due.push(Due { namespace, step });
        }
        due
    }

    fn running(&self) -> usize {
        self.attempts.values().filter(|it| it.is_running).count()
    }

    /// Takes note of what a call has come to.
    pub fn finished(&mut self, name: &str, outcome: Outcome, now: Instant) {
        let Some(attempt) = self.attempts.get_mut(name) else {
            return;
        };
        attempt.is_running = false;
        let pause = match &outcome {
            Outcome::Failed => {
                let pause = PAUSE * 2u32.saturating_pow(attempt.failures.min(10));
                attempt.failures += 1;
                pause.min(LONGEST_PAUSE)
            }
            Outcome::Written(_) | Outcome::NotWritten => {
                attempt.failures = 0;
                PAUSE
            }
        };
        attempt.not_before = now + pause;
        self.dirty.insert(name.to_owned());
        // Before the watch tells of it. If the watch still brings something older, it brings
        // this too before the pause is over.
        if let Outcome::Written(namespace) = outcome
            && let Some(known) = self.known.get_mut(name)
            && known.uid == namespace.uid
        {
            *known = namespace;
        }
    }

    /// When something is due that no change and no end of a call brings up.
    pub fn wakes_at(&self) -> Option<Instant> {
        if self.running() >= CALLS_AT_ONCE {
            return None;
        }
        let resting = self.attempts.values().filter(|it| !it.is_running);
        resting.map(|it| it.not_before).min()
    }
}

impl Attempt {
    fn is_ripe(&self, now: Instant) -> bool {
        !self.is_running && self.not_before <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn namespace(name: &str) -> SeenNamespace {
        SeenNamespace {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            is_labelled: false,
            is_ours: false,
            is_terminating: false,
        }
    }

    fn labelled_by_us(name: &str) -> SeenNamespace {
        SeenNamespace {
            is_labelled: true,
            is_ours: true,
            ..namespace(name)
        }
    }

    fn policy(namespace: &str, name: &str) -> SeenPolicy {
        SeenPolicy {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            is_valid: true,
        }
    }

    fn known(namespaces: &[SeenNamespace], policies: &[SeenPolicy]) -> Namespaces {
        let mut known = Namespaces::new("ours");
        known.apply(Change::Namespaces(Of::All(namespaces.to_vec())));
        known.apply(Change::Policies(Of::All(policies.to_vec())));
        known
    }

    fn steps(namespaces: &mut Namespaces, now: Instant) -> Vec<(String, Step)> {
        let due = namespaces.due(now).into_iter();
        due.map(|it| (it.namespace.name, it.step)).collect()
    }

    fn label(name: &str) -> (String, Step) {
        (name.to_owned(), Step::Label)
    }

    fn unlabel(name: &str) -> (String, Step) {
        (name.to_owned(), Step::Unlabel)
    }

    #[test]
    fn label_follows_the_policies_and_is_taken_from_nobody_else() {
        let (label, unlabel) = (Some(Step::Label), Some(Step::Unlabel));
        for (is_labelled, is_ours, has_policy, is_exempt, expected) in [
            (false, false, true, false, label),
            (true, true, true, false, None),
            // Set by somebody else: kept, whatever becomes of theirs.
            (true, false, true, false, label),
            // Overwritten by somebody else.
            (false, true, true, false, label),
            (true, true, false, false, unlabel),
            (false, true, false, false, unlabel),
            (true, false, false, false, None),
            (false, false, false, false, None),
            (false, false, true, true, None),
            (true, false, true, true, None),
            (true, true, true, true, unlabel),
        ] {
            let mut namespace = SeenNamespace {
                is_labelled,
                is_ours,
                ..namespace("a")
            };
            let case = format!("{namespace:?}, policy {has_policy}, exempt {is_exempt}");
            assert_eq!(step(&namespace, has_policy, is_exempt), expected, "{case}");
            namespace.is_terminating = true;
            assert_eq!(step(&namespace, has_policy, is_exempt), None, "{case}");
        }
    }

    #[test]
    fn label_is_ours_if_it_was_applied_in_our_name() {
        let seen = |manager: &str, operation: &str, fields: Value| {
            let metadata: ObjectMeta = serde_json::from_value(json!({
                "name": "a",
                "uid": "1",
                "labels": {ENFORCE_LABEL: "true"},
                "managedFields": [{
                    "manager": manager,
                    "operation": operation,
                    "fieldsType": "FieldsV1",
                    "fieldsV1": fields,
                }]
            }))
            .unwrap();
            SeenNamespace::from(&metadata)
        };
        let ours = json!({"f:metadata": {"f:labels": {format!("f:{ENFORCE_LABEL}"): {}}}});
        for (manager, operation, fields, is_ours) in [
            ("sgp", "Apply", &ours, true),
            ("sgp", "Update", &ours, false),
            ("kubectl", "Apply", &ours, false),
            (
                "sgp",
                "Apply",
                &json!({"f:metadata": {"f:labels": {}}}),
                false,
            ),
            ("sgp", "Apply", &json!({}), false),
        ] {
            let namespace = seen(manager, operation, fields.clone());
            assert!(namespace.is_labelled);
            assert_eq!(namespace.is_ours, is_ours, "{manager} {operation} {fields}");
        }
        let other: ObjectMeta =
            serde_json::from_value(json!({"labels": {ENFORCE_LABEL: "false"}})).unwrap();
        assert!(!SeenNamespace::from(&other).is_labelled);
    }

    #[test]
    fn nothing_is_done_before_everything_is_known() {
        let now = Instant::now();
        let mut namespaces = Namespaces::new("ours");
        namespaces.apply(Change::Namespaces(Of::All(vec![labelled_by_us("a")])));
        assert_eq!(steps(&mut namespaces, now), []);
        namespaces.apply(Change::Policies(Of::All(Vec::new())));
        assert_eq!(steps(&mut namespaces, now), [unlabel("a")]);
    }

    #[test]
    fn first_policy_labels_and_the_last_that_goes_unlabels() {
        let now = Instant::now();
        let mut namespaces = known(&[namespace("a"), namespace("b")], &[]);
        assert_eq!(steps(&mut namespaces, now), []);

        namespaces.apply(Change::Policies(Of::Apply(policy("a", "one"))));
        assert_eq!(steps(&mut namespaces, now), [label("a")]);
        namespaces.finished("a", Outcome::Written(labelled_by_us("a")), now);
        namespaces.apply(Change::Policies(Of::Apply(policy("a", "two"))));
        namespaces.apply(Change::Policies(Of::Delete(policy("a", "one"))));
        assert_eq!(steps(&mut namespaces, now), []);

        namespaces.apply(Change::Policies(Of::Delete(policy("a", "two"))));
        assert_eq!(steps(&mut namespaces, now), [unlabel("a")]);
    }

    #[test]
    fn policy_that_selects_nothing_does_not_count() {
        let now = Instant::now();
        let invalid = SeenPolicy {
            is_valid: false,
            ..policy("a", "one")
        };
        let mut namespaces = known(&[namespace("a")], std::slice::from_ref(&invalid));
        assert_eq!(steps(&mut namespaces, now), []);
        namespaces.apply(Change::Policies(Of::Apply(policy("a", "one"))));
        assert_eq!(steps(&mut namespaces, now), [label("a")]);
        namespaces.finished("a", Outcome::Written(labelled_by_us("a")), now);
        namespaces.apply(Change::Policies(Of::Apply(invalid)));
        assert_eq!(steps(&mut namespaces, now), [unlabel("a")]);
    }

    #[test]
    fn definition_that_is_gone_takes_all_policies_with_it() {
        let now = Instant::now();
        let mut namespaces = known(&[labelled_by_us("a")], &[policy("a", "one")]);
        assert_eq!(steps(&mut namespaces, now), []);
        namespaces.apply(Change::Policies(Of::Undefined));
        assert_eq!(steps(&mut namespaces, now), [unlabel("a")]);
    }

    #[test]
    fn namespace_may_come_after_its_policy_was_seen() {
        let now = Instant::now();
        let mut namespaces = known(&[], &[policy("late", "one")]);
        assert_eq!(steps(&mut namespaces, now), []);
        namespaces.apply(Change::Namespaces(Of::Apply(namespace("late"))));
        assert_eq!(steps(&mut namespaces, now), [label("late")]);
    }

    #[test]
    fn namespaces_of_the_cluster_and_of_the_webhook_are_left_alone() {
        let names = ["kube-system", "sgp-system", "ours", "others"];
        let all = names.map(namespace);
        let policies = names.map(|name| policy(name, "one"));
        let mut namespaces = known(&all, &policies);
        assert_eq!(steps(&mut namespaces, Instant::now()), [label("others")]);

        // Also if somebody else labels them, and they are not counted.
        let theirs = SeenNamespace {
            is_labelled: true,
            ..namespace("kube-system")
        };
        namespaces.apply(Change::Namespaces(Of::Apply(theirs)));
        assert_eq!(steps(&mut namespaces, Instant::now()), []);
        assert_eq!(namespaces.enforced(), 0);
    }

    #[test]
    fn who_undoes_the_label_each_time_is_answered_once_a_second() {
        let begin = Instant::now();
        let mut namespaces = known(&[namespace("a")], &[policy("a", "one")]);
        assert_eq!(steps(&mut namespaces, begin), [label("a")]);
        assert_eq!(steps(&mut namespaces, begin), [], "it runs");
        namespaces.finished("a", Outcome::Written(labelled_by_us("a")), begin);
        assert_eq!(namespaces.enforced(), 1);

        namespaces.apply(Change::Namespaces(Of::Apply(namespace("a"))));
        assert_eq!(namespaces.enforced(), 0);
        assert_eq!(steps(&mut namespaces, begin), []);
        let at = namespaces.wakes_at().unwrap();
        assert_eq!(at, begin + PAUSE);
        assert_eq!(steps(&mut namespaces, at), [label("a")]);
    }

    #[test]
    fn label_that_goes_later_is_set_again_at_once() {
        let begin = Instant::now();
        let mut namespaces = known(&[namespace("a")], &[policy("a", "one")]);
        assert_eq!(steps(&mut namespaces, begin), [label("a")]);
        namespaces.finished("a", Outcome::Written(labelled_by_us("a")), begin);
        let later = namespaces.wakes_at().unwrap();
        assert_eq!(steps(&mut namespaces, later), []);
        assert_eq!(namespaces.wakes_at(), None, "nothing is left of it");

        namespaces.apply(Change::Namespaces(Of::Apply(namespace("a"))));
        assert_eq!(steps(&mut namespaces, later), [label("a")]);
    }

    #[test]
    fn opposite_step_waits_for_no_pause() {
        let now = Instant::now();
        let mut namespaces = known(&[labelled_by_us("a")], &[]);
        assert_eq!(steps(&mut namespaces, now), [unlabel("a")]);
        // The policy is there again while the call runs.
        namespaces.apply(Change::Policies(Of::Apply(policy("a", "one"))));
        assert_eq!(steps(&mut namespaces, now), []);
        namespaces.finished("a", Outcome::Written(namespace("a")), now);
        assert_eq!(steps(&mut namespaces, now), [label("a")]);
    }

    #[test]
    fn failure_is_tried_again_with_growing_pauses() {
        let mut now = Instant::now();
        let mut namespaces = known(&[namespace("a")], &[policy("a", "one")]);
        let mut pauses = Vec::new();
        for _ in 0..6 {
            assert_eq!(steps(&mut namespaces, now), [label("a")]);
            namespaces.finished("a", Outcome::Failed, now);
            assert_eq!(steps(&mut namespaces, now), []);
            let at = namespaces.wakes_at().unwrap();
            pauses.push((at - now).as_secs());
            now = at;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 15, 15]);

        namespaces.apply(Change::Namespaces(Of::Delete(namespace("a"))));
        assert_eq!(steps(&mut namespaces, now), []);
        assert_eq!(namespaces.wakes_at(), None);
    }

    #[test]
    fn many_calls_take_turns_and_labels_go_first() {
        let now = Instant::now();
        let labelled = (0..20).map(|index| labelled_by_us(&format!("a{index:02}")));
        let bare = (0..20).map(|index| namespace(&format!("b{index:02}")));
        let all: Vec<_> = labelled.chain(bare).collect();
        let policies: Vec<_> = (0..20)
            .map(|index| policy(&format!("b{index:02}"), "one"))
            .collect();
        let mut namespaces = known(&all, &policies);
        let first = steps(&mut namespaces, now);
        assert_eq!(first.len(), CALLS_AT_ONCE);
        assert!(first.iter().all(|(_, step)| *step == Step::Label));

        for (name, _) in &first[..6] {
            namespaces.finished(name, Outcome::Written(labelled_by_us(name)), now);
        }
        let second = steps(&mut namespaces, now);
        let kinds: Vec<_> = second.iter().map(|(_, step)| *step).collect();
        use Step::{Label, Unlabel};
        assert_eq!(kinds, [Label, Label, Label, Label, Unlabel, Unlabel]);
    }

    #[test]
    fn next_leadership_looks_at_everything_anew() {
        let now = Instant::now();
        let mut namespaces = known(&[namespace("a")], &[policy("a", "one")]);
        assert_eq!(steps(&mut namespaces, now), [label("a")]);
        namespaces.begin_anew();
        assert_eq!(steps(&mut namespaces, now), [label("a")]);
        // What comes of a forgotten call is nobody's business.
        namespaces.begin_anew();
        namespaces.finished("a", Outcome::Failed, now);
        assert_eq!(steps(&mut namespaces, now), [label("a")]);
    }

    #[test]
    fn answer_about_a_predecessor_of_the_same_name_is_not_taken_over() {
        let now = Instant::now();
        let mut namespaces = known(&[namespace("a")], &[policy("a", "one")]);
        assert_eq!(steps(&mut namespaces, now), [label("a")]);
        let successor = SeenNamespace {
            uid: "another".to_owned(),
            ..namespace("a")
        };
        namespaces.apply(Change::Namespaces(Of::Apply(successor)));
        namespaces.finished("a", Outcome::Written(labelled_by_us("a")), now);
        assert_eq!(namespaces.enforced(), 0);
        assert_eq!(steps(&mut namespaces, now + PAUSE), [label("a")]);
    }
}
