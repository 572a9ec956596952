//! The policies of every namespace, laid out so that a pod meets only those that could
//! select it.
//!
//! Each policy hangs on one *anchor*: a label that a pod (or its service account) must
//! carry for the policy to select it, taken from an `In` or `Exists` requirement. A pod
//! looks up its own labels and so meets the policies anchored there, however many others
//! the namespace has. A policy whose selectors require no label at all (`{}`, or only
//! `NotIn` and `DoesNotExist`) is asked every time; such selectors select almost every pod
//! by their nature.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::compiled::{InvalidPolicy, Policy};
use super::labels::Labels;
use super::selector::{Condition, Requirement, Selector};

/// The policies of all namespaces, fed by a watch.
#[derive(Debug, Default)]
pub struct PolicyIndex {
    namespaces: HashMap<Box<str>, Arc<NamespacePolicies>>,
}

impl PolicyIndex {
    /// The policies of `namespace` as they are now; `None` if it has none, valid or not.
    ///
    /// The snapshot stays as it is while the index moves on.
    pub fn namespace(&self, namespace: &str) -> Option<Arc<NamespacePolicies>> {
        self.namespaces.get(namespace).cloned()
    }

    /// Puts a new or changed policy in place.
    pub fn apply(&mut self, namespace: &str, policy: Result<Policy, InvalidPolicy>) {
        let policies = self.namespaces.entry(namespace.into()).or_default();
        Arc::make_mut(policies).apply(policy);
    }

    /// Forgets a policy.
    pub fn delete(&mut self, namespace: &str, name: &str) {
        if let Some(policies) = self.namespaces.get_mut(namespace) {
            Arc::make_mut(policies).delete(name);
            if policies.is_empty() {
                self.namespaces.remove(namespace);
            }
        }
    }

    /// How many policies can select pods, and how many are ignored as invalid.
    pub fn counts(&self) -> (usize, usize) {
        let namespaces = self.namespaces.values();
        namespaces.fold((0, 0), |(valid, invalid), policies| {
            (
                valid + policies.entries.len(),
                invalid + policies.invalid.len(),
            )
        })
    }
}

/// The policies of one namespace.
#[derive(Clone, Debug, Default)]
pub struct NamespacePolicies {
    entries: BTreeMap<Box<str>, Entry>,
    invalid: BTreeMap<Box<str>, InvalidPolicy>,
    by_pod_label: AnchorTable,
    by_service_account_label: AnchorTable,
    unanchored: Vec<Arc<Policy>>,
    with_service_account_selector: usize,
}

#[derive(Clone, Debug)]
struct Entry {
    policy: Arc<Policy>,
    anchor: Option<Anchor>,
}

#[derive(Clone, Copy, Debug)]
enum Side {
    Pod,
    ServiceAccount,
}

/// The requirement that a policy hangs on.
#[derive(Clone, Debug)]
struct Anchor {
    side: Side,
    required: Requirement,
}

/// Policies by the label that they require.
#[derive(Clone, Debug, Default)]
struct AnchorTable(HashMap<Box<str>, AnchoredPolicies>);

#[derive(Clone, Debug, Default)]
struct AnchoredPolicies {
    /// Those that take any value of the label.
    any_value: Vec<Arc<Policy>>,
    /// Those that take certain values, under each of them.
    by_value: HashMap<Box<str>, Vec<Arc<Policy>>>,
}

impl NamespacePolicies {
    /// Whether there is no policy at all, not even an invalid one.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.invalid.is_empty()
    }

    /// The policies that can select pods, in order of their names.
    pub fn valid(&self) -> impl Iterator<Item = &Policy> {
        self.entries.values().map(|entry| entry.policy.as_ref())
    }

    /// The policies that are ignored, in order of their names.
    pub fn invalid(&self) -> impl Iterator<Item = &InvalidPolicy> {
        self.invalid.values()
    }

    /// Whether any policy's answer for a pod with these labels hangs on the labels of its
    /// service account.
    pub fn ask_for_service_account(&self, pod: &(impl Labels + ?Sized)) -> bool {
        self.with_service_account_selector > 0 && !self.awaiting_service_account(pod).is_empty()
    }

    /// The policies that select a pod with these labels and this service account, in order
    /// of their names.
    pub fn selecting(
        &self,
        pod: &(impl Labels + ?Sized),
        service_account: &(impl Labels + ?Sized),
    ) -> Vec<&Policy> {
        let anchored = self.by_pod_label.candidates(pod);
        let candidates = anchored
            .chain(self.by_service_account_label.candidates(service_account))
            .chain(&self.unanchored);
        let mut selecting: Vec<&Policy> = candidates
            .filter(|policy| policy.selects_pod(pod))
            .filter(|policy| policy.selects_service_account(service_account))
            .map(AsRef::as_ref)
            .collect();
        selecting.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        selecting
    }

    /// The policies whose answer for a pod with these labels hangs on its service account,
    /// in order of their names.
    ///
    /// For the rare pod whose service account is not known; its cost grows with the number
    /// of policies.
    pub fn awaiting_service_account(&self, pod: &(impl Labels + ?Sized)) -> Vec<&Policy> {
        self.valid()
            .filter(|policy| policy.service_account_selector.is_some() && policy.selects_pod(pod))
            .collect()
    }

    fn apply(&mut self, policy: Result<Policy, InvalidPolicy>) {
        match policy {
            Ok(policy) => {
                self.delete(&policy.name);
                self.insert(Arc::new(policy));
            }
            Err(invalid) => {
                self.delete(&invalid.name);
                self.invalid.insert(invalid.name.clone(), invalid);
            }
        }
    }

    fn insert(&mut self, policy: Arc<Policy>) {
        let anchor = self.least_crowded_anchor(&policy);
        match &anchor {
            Some(anchor) => self.table(anchor.side).insert(&anchor.required, &policy),
            None => self.unanchored.push(policy.clone()),
        }
        self.with_service_account_selector += asks_for_service_account(&policy);
        self.entries
            .insert(policy.name.clone(), Entry { policy, anchor });
    }

    fn delete(&mut self, name: &str) {
        self.invalid.remove(name);
        if let Some(Entry { policy, anchor }) = self.entries.remove(name) {
            match anchor {
                Some(anchor) => self.table(anchor.side).delete(&anchor.required, &policy),
                None => self.unanchored.retain(|other| !Arc::ptr_eq(other, &policy)),
            }
            self.with_service_account_selector -= asks_for_service_account(&policy);
        }
    }

    fn table(&mut self, side: Side) -> &mut AnchorTable {
        match side {
            Side::Pod => &mut self.by_pod_label,
            Side::ServiceAccount => &mut self.by_service_account_label,
        }
    }

    /// Of all labels that the policy requires, the one where it meets the fewest others, so
    /// that a thousand policies that share `team=x` hang on what tells them apart.
    fn least_crowded_anchor(&self, policy: &Policy) -> Option<Anchor> {
        let sides = [
            (Side::Pod, &policy.pod_selector, &self.by_pod_label),
            (
                Side::ServiceAccount,
                &policy.service_account_selector,
                &self.by_service_account_label,
            ),
        ];
        let anchors = sides.into_iter().flat_map(|(side, selector, table)| {
            let requirements = selector.iter().flat_map(Selector::requirements);
            requirements.filter_map(move |required| Some((table.crowd(required)?, side, required)))
        });
        let (_, side, required) = anchors.min_by_key(|(crowd, ..)| *crowd)?;
        Some(Anchor {
            side,
            required: required.clone(),
        })
    }
}

/// 1 if the policy looks at the labels of service accounts.
fn asks_for_service_account(policy: &Policy) -> usize {
    usize::from(policy.service_account_selector.is_some())
}

impl AnchorTable {
    /// How many policies one anchored at this requirement would meet at most; `None` if the
    /// requirement can hold without the label and so can't be an anchor.
    fn crowd(&self, required: &Requirement) -> Option<usize> {
        let anchored = self.0.get(&required.key);
        match &required.condition {
            Condition::In(values) => {
                let crowds = values
                    .iter()
                    .filter_map(|value| anchored?.by_value.get(value));
                Some(crowds.map(Vec::len).max().unwrap_or(0))
            }
            // Met by every pod with the label, whatever its value.
            Condition::Exists => Some(anchored.map_or(0, |all| all.any_value.len()) + 1),
            Condition::NotIn(_) | Condition::DoesNotExist => None,
        }
    }

    fn candidates<'a>(
        &'a self,
        labels: &(impl Labels + ?Sized),
    ) -> impl Iterator<Item = &'a Arc<Policy>> {
        // Most namespaces anchor nothing here; their pods' labels need not be looked at.
        let labels = (!self.0.is_empty()).then(|| labels.iter());
        labels.into_iter().flatten().flat_map(|(key, value)| {
            let anchored = self.0.get(key);
            let by_value = anchored.and_then(|all| all.by_value.get(value));
            let any_value = anchored.map(|all| &all.any_value);
            by_value.into_iter().chain(any_value).flatten()
        })
    }

    fn insert(&mut self, required: &Requirement, policy: &Arc<Policy>) {
        let anchored = self.0.entry(required.key.clone()).or_default();
        match &required.condition {
            Condition::In(values) => {
                for value in values {
                    anchored
                        .by_value
                        .entry(value.clone())
                        .or_default()
                        .push(policy.clone());
                }
            }
            _ => anchored.any_value.push(policy.clone()),
        }
    }

    fn delete(&mut self, required: &Requirement, policy: &Arc<Policy>) {
        let Some(anchored) = self.0.get_mut(&required.key) else {
            return;
        };
        let is_other = |other: &Arc<Policy>| !Arc::ptr_eq(other, policy);
        anchored.any_value.retain(is_other);
        if let Condition::In(values) = &required.condition {
            for value in values {
                if let Some(policies) = anchored.by_value.get_mut(value) {
                    policies.retain(is_other);
                    if policies.is_empty() {
                        anchored.by_value.remove(value);
                    }
                }
            }
        }
        if anchored.any_value.is_empty() && anchored.by_value.is_empty() {
            self.0.remove(&required.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    type LabelMap = BTreeMap<String, String>;

    fn policy(name: &str, pod: Option<Value>, service_account: Option<Value>) -> Policy {
        let spec = json!({
            "podSelector": pod,
            "serviceAccountSelector": service_account,
            "securityGroups": {"groupIds": ["sg-0123abcd"]}
        });
        Policy::parse(name, &spec).unwrap()
    }

    fn names(policies: &[&Policy]) -> Vec<String> {
        policies
            .iter()
            .map(|policy| policy.name.to_string())
            .collect()
    }

    fn labels() -> impl Strategy<Value = LabelMap> {
        proptest::collection::btree_map("[abc]", "[xyz]", 0..4)
    }

    fn selector() -> impl Strategy<Value = Value> {
        let values = || proptest::collection::vec("[xyz]", 1..3);
        let expression = prop_oneof![
            ("[abc]", values()).prop_map(|(k, v)| json!({"key": k, "operator": "In", "values": v})),
            ("[abc]", values())
                .prop_map(|(k, v)| json!({"key": k, "operator": "NotIn", "values": v})),
            "[abc]".prop_map(|k| json!({"key": k, "operator": "Exists"})),
            "[abc]".prop_map(|k| json!({"key": k, "operator": "DoesNotExist"})),
        ];
        (labels(), proptest::collection::vec(expression, 0..3)).prop_map(
            |(labels, expressions)| json!({"matchLabels": labels, "matchExpressions": expressions}),
        )
    }

    fn any_policy() -> impl Strategy<Value = Policy> {
        let selectors = prop_oneof![
            (selector(), proptest::option::of(selector())).prop_map(|(a, b)| (Some(a), b)),
            selector().prop_map(|a| (None, Some(a))),
        ];
        // Few names, so that policies replace one another.
        ("p[0-9]", selectors).prop_map(|(name, (pod, account))| policy(&name, pod, account))
    }

    proptest! {
        #[test]
        fn index_selects_what_asking_every_policy_would(
            changes in proptest::collection::vec((any_policy(), any::<bool>()), 0..30),
            pod in labels(),
            account in labels(),
        ) {
            let mut index = PolicyIndex::default();
            let mut all = BTreeMap::new();
            for (policy, deleted) in changes {
                if deleted {
                    index.delete("shop", &policy.name);
                    all.remove(&policy.name);
                } else {
                    index.apply("shop", Ok(policy.clone()));
                    all.insert(policy.name.clone(), policy);
                }
            }

            let selecting: Vec<&Policy> = all
                .values()
                .filter(|policy| policy.selects_pod(&pod))
                .filter(|policy| policy.selects_service_account(&account))
                .collect();
            match index.namespace("shop") {
                Some(policies) => {
                    let found = policies.selecting(&pod, &account);
                    prop_assert_eq!(names(&found), names(&selecting));
                }
                None => prop_assert!(all.is_empty(), "a namespace goes with its last policy"),
            }
        }

        #[test]
        fn nothing_is_left_behind_by_deleted_policies(
            policies in proptest::collection::vec(any_policy(), 0..20),
        ) {
            let mut namespace = NamespacePolicies::default();
            for policy in &policies {
                namespace.apply(Ok(policy.clone()));
            }
            for policy in &policies {
                namespace.delete(&policy.name);
            }
            prop_assert!(namespace.is_empty());
            prop_assert!(namespace.by_pod_label.0.is_empty());
            prop_assert!(namespace.by_service_account_label.0.is_empty());
            prop_assert!(namespace.unanchored.is_empty());
            prop_assert_eq!(namespace.with_service_account_selector, 0);
        }
    }

    #[test]
    fn pod_meets_only_policies_that_require_one_of_its_labels() {
        let mut namespace = NamespacePolicies::default();
        for number in 0..1000 {
            let own = format!("app-{number}");
            let shared = json!({"matchLabels": {"team": "x", "app": own}});
            namespace.apply(Ok(policy(&format!("shared-{number}"), Some(shared), None)));
            let account = json!({"matchLabels": {"role": own}});
            namespace.apply(Ok(policy(
                &format!("account-{number}"),
                Some(json!({})),
                Some(account),
            )));
        }

        let labels = |pairs: &[(&str, &str)]| -> LabelMap {
            pairs
                .iter()
                .map(|(key, value)| (key.to_string(), value.to_string()))
                .collect()
        };
        let pod = labels(&[("team", "x"), ("app", "app-7")]);
        let account = labels(&[("role", "app-9")]);
        let met = namespace.by_pod_label.candidates(&pod).count()
            + namespace
                .by_service_account_label
                .candidates(&account)
                .count()
            + namespace.unanchored.len();

        // Of two thousand: the two that select it, and the one that came first, when
        // `team` was no more crowded than `app`.
        assert!(met <= 3, "{met} policies met");
        assert_eq!(
            names(&namespace.selecting(&pod, &account)),
            ["account-9", "shared-7"]
        );
    }

    #[test]
    fn policy_that_turns_invalid_selects_no_more_and_is_reported() {
        let mut index = PolicyIndex::default();
        let pod = LabelMap::new();
        index.apply("shop", Ok(policy("all", Some(json!({})), None)));
        index.apply("shop", Policy::parse("all", &json!({"podSelector": {}})));

        let policies = index.namespace("shop").unwrap();
        assert!(policies.selecting(&pod, &pod).is_empty());
        assert_eq!(policies.invalid().count(), 1);
        assert_eq!(index.counts(), (0, 1));

        index.apply("shop", Ok(policy("all", Some(json!({})), None)));
        assert_eq!(
            index.namespace("shop").unwrap().selecting(&pod, &pod).len(),
            1
        );
        assert_eq!(index.counts(), (1, 0));
    }

    #[test]
    fn snapshot_stays_as_it_is_while_the_index_moves_on() {
        let mut index = PolicyIndex::default();
        index.apply("shop", Ok(policy("all", Some(json!({})), None)));
        let before = index.namespace("shop").unwrap();
        index.delete("shop", "all");

        assert_eq!(
            before.selecting(&LabelMap::new(), &LabelMap::new()).len(),
            1
        );
        assert!(index.namespace("shop").is_none());
    }
}
