//! A SecurityGroupPolicy in the form that answers questions: parsed once, when it arrives,
//! so that a bad one is reported once and admission only matches.

use std::collections::HashSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use super::field_error::{FieldError, FieldErrorKind};
use super::groups_per_interface::GroupsPerInterface;
use super::labels::Labels;
use super::selector::{Quote, Selector, SelectorError};
use crate::api::{SecurityGroupId, SecurityGroupPolicySpec};

/// A policy that can select pods.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The policy's name in its namespace.
    pub name: Box<str>,
    /// The groups that the policy gives, in its order; at least one.
    pub group_ids: Vec<SecurityGroupId>,
    /// `None` if the policy leaves pods' labels out of account.
    pub pod_selector: Option<Selector>,
    /// `None` if the policy leaves service accounts out of account.
    pub service_account_selector: Option<Selector>,
}

/// A policy that is stored in the cluster but can't select anything.
#[derive(Clone, Debug)]
pub struct InvalidPolicy {
    /// The policy's name in its namespace.
    pub name: Box<str>,
    /// What is wrong with it; of several problems the first.
    pub problem: PolicyProblem,
}

/// What is wrong with a policy. The text names the field.
#[derive(Clone, Debug, Error)]
pub enum PolicyProblem {
    /// The spec is not of the resource's shape.
    #[error("spec can't be read: {0}")]
    Unreadable(String),
    /// Neither selector is there, so nothing says which pods are meant.
    #[error("spec has neither podSelector nor serviceAccountSelector; give one, {{}} selects all")]
    NoSelector,
    /// The pod selector is malformed.
    #[error("spec.podSelector.{0}")]
    PodSelector(SelectorError),
    /// The service account selector is malformed.
    #[error("spec.serviceAccountSelector.{0}")]
    ServiceAccountSelector(SelectorError),
    /// There is no security group to give.
    #[error("{GROUP_IDS} lists no security group; list 1 to 5")]
    NoGroups,
    /// No group can have this id.
    #[error("{GROUP_IDS}[{index}]: {} is not the id of a security group", Quote(.id.as_str()))]
    MalformedGroup {
        /// Its place in the list.
        index: usize,
        /// The id as written.
        id: SecurityGroupId,
    },
    /// The group stands before in the list.
    #[error("{GROUP_IDS}[{index}]: {id} is listed before")]
    DuplicateGroup {
        /// Its place in the list.
        index: usize,
        /// The id.
        id: SecurityGroupId,
    },
    /// There are more groups than EC2 takes for one interface.
    #[error("{GROUP_IDS} lists {count} security groups; at most {most} are taken")]
    TooManyGroups {
        /// How many different ones there are.
        count: usize,
        /// How many there may be.
        most: GroupsPerInterface,
    },
}

const GROUP_IDS: &str = "spec.securityGroups.groupIds";

impl PolicyProblem {
    /// Whether a policy with this problem has no meaning and is ignored. One with any other
    /// problem selects its pods, so that they wait with a reason instead of starting without
    /// their groups.
    pub fn leaves_no_meaning(&self) -> bool {
        match self {
            Self::Unreadable(_)
            | Self::NoSelector
            | Self::PodSelector(_)
            | Self::ServiceAccountSelector(_)
            | Self::NoGroups => true,
            Self::MalformedGroup { .. }
            | Self::DuplicateGroup { .. }
            | Self::TooManyGroups { .. } => false,
        }
    }

    /// The problem in the form of the API server.
    pub fn field_error(&self) -> FieldError {
        use FieldErrorKind::{Duplicate, Invalid, Required, TooMany};
        let at = |index: &usize| format!("{GROUP_IDS}[{index}]");
        let quoted = |id: &SecurityGroupId| Some(Quote(id.as_str()).to_string());
        let (path, kind, value, detail) = match self {
            Self::PodSelector(error) => return error.field_error("spec.podSelector"),
            Self::ServiceAccountSelector(error) => {
                return error.field_error("spec.serviceAccountSelector");
            }
            Self::Unreadable(problem) => (
                "spec".to_owned(),
                Invalid,
                None,
                format!("it can't be read: {problem}"),
            ),
            Self::NoSelector => (
                "spec".to_owned(),
                Required,
                None,
                "give podSelector or serviceAccountSelector, {} selects all".to_owned(),
            ),
            Self::NoGroups => (
                GROUP_IDS.to_owned(),
                Required,
                None,
                "list the security groups that selected pods get".to_owned(),
            ),
            Self::MalformedGroup { index, id } => (
                at(index),
                Invalid,
                quoted(id),
                "must be the id of a security group: sg- and 8 or 17 of 0-9 and a-f".to_owned(),
            ),
            Self::DuplicateGroup { index, id } => (at(index), Duplicate, quoted(id), String::new()),
            Self::TooManyGroups { count, most } => (
                GROUP_IDS.to_owned(),
                TooMany,
                Some(count.to_string()),
                format!(
                    "must have at most {most} items, which is what EC2 takes for an interface; \
                     where the account's quota was raised, --groups-per-interface of sgp webhook \
                     says so"
                ),
            ),
        };
        FieldError {
            path,
            kind,
            value,
            detail,
        }
    }
}

impl Policy {
    /// Parses the `spec` of a stored policy.
    ///
    /// The spec is raw JSON because a cluster may hold policies older than our definition
    /// of the resource; one that can't be read must not hide the others.
    pub fn parse(name: &str, spec: &Value) -> Result<Self, InvalidPolicy> {
        read(spec)
            .and_then(|spec| Self::compile(name, &spec))
            .map_err(|problems| InvalidPolicy {
                name: name.into(),
                problem: problems.first,
            })
    }

    /// Parses the `spec` of a policy that is to be stored, or says all that is wrong with it.
    ///
    /// What [`Self::parse`] takes is not enough here: ids must be well-formed and different,
    /// and no more than EC2 takes for an interface.
    pub fn check(
        name: &str,
        spec: &Value,
        most: GroupsPerInterface,
    ) -> Result<Self, Vec<PolicyProblem>> {
        let spec = read(spec).map_err(Vec::from)?;
        let unusable = group_problems(&group_ids(&spec), most);
        match Self::compile(name, &spec) {
            Ok(policy) if unusable.is_empty() => Ok(policy),
            Ok(_) => Err(unusable),
            Err(problems) => Err([Vec::from(problems), unusable].concat()),
        }
    }

    fn compile(name: &str, spec: &SecurityGroupPolicySpec) -> Result<Self, Problems> {
        let mut problems = Vec::new();
        let selectors = (&spec.pod_selector, &spec.service_account_selector);
        if let (None, None) = selectors {
            problems.push(PolicyProblem::NoSelector);
        }
        let mut compile = |selector: &Option<LabelSelector>, problem: fn(_) -> PolicyProblem| {
            match Selector::compile(selector.as_ref()?) {
                Ok(selector) => Some(selector),
                Err(errors) => {
                    problems.extend(errors.into_iter().map(problem));
                    None
                }
            }
        };
        let policy = Self {
            name: name.into(),
            group_ids: group_ids(spec),
            pod_selector: compile(selectors.0, PolicyProblem::PodSelector),
            service_account_selector: compile(selectors.1, PolicyProblem::ServiceAccountSelector),
        };
        if policy.group_ids.is_empty() {
            problems.push(PolicyProblem::NoGroups);
        }
        match Problems::of(problems) {
            None => Ok(policy),
            Some(problems) => Err(problems),
        }
    }

    /// Whether the pod's own labels are to the policy's liking.
    pub fn selects_pod(&self, labels: &(impl Labels + ?Sized)) -> bool {
        self.pod_selector
            .as_ref()
            .is_none_or(|selector| selector.matches(labels))
    }

    /// Whether the labels of the pod's service account are to the policy's liking.
    pub fn selects_service_account(&self, labels: &(impl Labels + ?Sized)) -> bool {
        let selector = self.service_account_selector.as_ref();
        selector.is_none_or(|selector| selector.matches(labels))
    }
}

/// What leaves a policy without a meaning: at least one problem.
struct Problems {
    first: PolicyProblem,
    others: Vec<PolicyProblem>,
}

impl Problems {
    fn of(problems: Vec<PolicyProblem>) -> Option<Self> {
        let mut problems = problems.into_iter();
        let first = problems.next()?;
        let others = problems.collect();
        Some(Self { first, others })
    }
}

impl From<Problems> for Vec<PolicyProblem> {
    fn from(problems: Problems) -> Self {
        let mut all = vec![problems.first];
        all.extend(problems.others);
        all
    }
}

fn read(spec: &Value) -> Result<SecurityGroupPolicySpec, Problems> {
    SecurityGroupPolicySpec::deserialize(spec).map_err(|error| Problems {
        first: PolicyProblem::Unreadable(error.to_string()),
        others: Vec::new(),
    })
}

fn group_ids(spec: &SecurityGroupPolicySpec) -> Vec<SecurityGroupId> {
    let groups = spec.security_groups.iter();
    let ids = groups.flat_map(|groups| &groups.group_ids).flatten();
    ids.map(|id| id.as_str().into()).collect()
}

/// What is wrong with groups that are to be given together.
fn group_problems(ids: &[SecurityGroupId], most: GroupsPerInterface) -> Vec<PolicyProblem> {
    let mut problems = Vec::new();
    let mut different = HashSet::new();
    for (index, id) in ids.iter().enumerate() {
        let is_new = different.insert(id);
        let id = id.clone();
        if !is_new {
            problems.push(PolicyProblem::DuplicateGroup { index, id });
        } else if !id.is_well_formed() {
            problems.push(PolicyProblem::MalformedGroup { index, id });
        }
    }
    let count = different.len();
    if count > most.get() {
        problems.push(PolicyProblem::TooManyGroups { count, most });
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn policy_without_a_meaning_is_invalid_and_says_which_field() {
        let groups = json!({"groupIds": ["sg-0123abcd"]});
        let near = json!({"matchExpressions": [{"key": "app", "operator": "Near"}]});
        for (spec, field) in [
            (
                json!({"securityGroups": groups}),
                "neither podSelector nor serviceAccountSelector",
            ),
            (
                json!({"podSelector": null, "securityGroups": groups}),
                "neither podSelector",
            ),
            (
                json!({"podSelector": near, "securityGroups": groups}),
                "spec.podSelector.matchExpre",
            ),
            (
                json!({"podSelector": {}, "serviceAccountSelector": near, "securityGroups": groups}),
                "spec.serviceAccountSelector.matchExpressions[0].operator",
            ),
            (json!({"podSelector": {}}), "spec.securityGroups.groupIds"),
            (
                json!({"podSelector": {}, "securityGroups": {"groupIds": []}}),
                "groupIds",
            ),
            (json!({"podSelector": "all"}), "spec can't be read"),
            (json!(null), "spec can't be read"),
        ] {
            let problem = Policy::parse("database", &spec)
                .unwrap_err()
                .problem
                .to_string();
            assert!(problem.contains(field), "{spec} gave {problem}");
        }
    }

    #[test]
    fn empty_selector_selects_everything_and_an_absent_one_does_not_decide() {
        let groups = json!({"groupIds": ["sg-0123abcd", "sg-0123abcd"]});
        let policy =
            Policy::parse("all", &json!({"podSelector": {}, "securityGroups": groups})).unwrap();

        let nothing = std::collections::BTreeMap::new();
        assert!(policy.selects_pod(&nothing));
        assert!(policy.service_account_selector.is_none());
        assert!(policy.selects_service_account(&nothing));
    }

    fn errors(spec: &Value) -> Vec<String> {
        let problems = Policy::check("web", spec, GroupsPerInterface::default());
        let problems = problems.map(|_| ()).unwrap_err();
        problems
            .iter()
            .map(|problem| problem.field_error().to_string())
            .collect()
    }

    #[test]
    fn every_problem_of_a_new_policy_is_told_with_its_field() {
        let groups = json!({"groupIds": ["sg-0123abcd"]});
        let near = json!({"matchExpressions": [{"key": "app", "operator": "Near"}]});
        let operator = "matchExpressions[0].operator: Invalid value: \"Near\": must be In, NotIn, \
                        Exists or DoesNotExist";
        let no_selector =
            "spec: Required value: give podSelector or serviceAccountSelector, {} selects all";
        let no_groups = "spec.securityGroups.groupIds: Required value: list the security groups \
                         that selected pods get";
        for (spec, expected) in [
            (
                json!({"securityGroups": groups}),
                vec![no_selector.to_owned()],
            ),
            (
                json!({}),
                vec![no_selector.to_owned(), no_groups.to_owned()],
            ),
            (
                json!({"podSelector": near, "serviceAccountSelector": near}),
                vec![
                    format!("spec.podSelector.{operator}"),
                    format!("spec.serviceAccountSelector.{operator}"),
                    no_groups.to_owned(),
                ],
            ),
            (
                json!({"podSelector": {}, "securityGroups": {"groupIds": [
                    "sg-1", "sg-0123abcd", "web\n", "sg-0123abcd", "sg-1"
                ]}}),
                vec![
                    "spec.securityGroups.groupIds[0]: Invalid value: \"sg-1\": must be the id of \
                     a security group: sg- and 8 or 17 of 0-9 and a-f"
                        .to_owned(),
                    "spec.securityGroups.groupIds[2]: Invalid value: \"web\\n\": must be the id \
                     of a security group: sg- and 8 or 17 of 0-9 and a-f"
                        .to_owned(),
                    "spec.securityGroups.groupIds[3]: Duplicate value: \"sg-0123abcd\"".to_owned(),
                    "spec.securityGroups.groupIds[4]: Duplicate value: \"sg-1\"".to_owned(),
                ],
            ),
            (
                json!({"podSelector": 7}),
                vec![
                    "spec: Invalid value: it can't be read: invalid type: integer `7`, expected \
                     LabelSelector"
                        .to_owned(),
                ],
            ),
        ] {
            assert_eq!(errors(&spec), expected, "{spec}");
        }
    }

    #[test]
    fn as_many_groups_are_taken_as_an_interface_takes() {
        let spec = |count| {
            let ids: Vec<_> = (0..count).map(|id| format!("sg-{id:08}")).collect();
            json!({"podSelector": {}, "securityGroups": {"groupIds": ids}})
        };
        let check = |count, most: &str| Policy::check("web", &spec(count), most.parse().unwrap());
        assert!(check(5, "5").is_ok());
        assert!(check(6, "6").is_ok());
        assert!(check(6, "5").is_err());
        assert_eq!(
            errors(&spec(6)),
            [
                "spec.securityGroups.groupIds: Too many: 6: must have at most 5 items, which is \
                 what EC2 takes for an interface; where the account's quota was raised, \
                 --groups-per-interface of sgp webhook says so"
            ]
        );
        // One that is there twice is one.
        let ids = [0, 1, 2, 3, 4, 0].map(|id| format!("sg-{id:08}"));
        let twice = json!({"podSelector": {}, "securityGroups": {"groupIds": ids}});
        assert_eq!(
            errors(&twice),
            ["spec.securityGroups.groupIds[5]: Duplicate value: \"sg-00000000\""]
        );
    }

    fn any_selector() -> impl Strategy<Value = Value> {
        let label = prop_oneof![Just("app"), Just("a/b/c"), Just("tier")];
        let value = prop_oneof![Just("web"), Just("-"), Just("")];
        let operator = prop_oneof![
            Just("In"),
            Just("NotIn"),
            Just("Exists"),
            Just("DoesNotExist"),
            Just("Near")
        ];
        let values = proptest::collection::vec(value.clone(), 0..3);
        let expression = (label.clone(), operator, values).prop_map(
            |(key, operator, values)| json!({"key": key, "operator": operator, "values": values}),
        );
        let labels = proptest::collection::btree_map(label, value, 0..2);
        let expressions = proptest::collection::vec(expression, 0..2);
        prop_oneof![
            1 => Just(Value::Null),
            1 => Just(json!("all")),
            6 => (labels, expressions).prop_map(|(labels, expressions)| {
                json!({"matchLabels": labels, "matchExpressions": expressions})
            }),
        ]
    }

    fn any_spec() -> impl Strategy<Value = Value> {
        let id = prop_oneof![
            4 => "sg-[0-9a-f]{8}",
            1 => "sg-0000000[0-2]",
            1 => Just("web".to_owned())
        ];
        let ids = proptest::collection::vec(id, 0..8);
        (any_selector(), any_selector(), ids).prop_map(|(pod, account, ids)| {
            json!({
                "podSelector": pod,
                "serviceAccountSelector": account,
                "securityGroups": {"groupIds": ids}
            })
        })
    }

    proptest! {
        #[test]
        fn new_policy_is_refused_for_what_the_index_ignores_and_for_groups_alone(
            spec in any_spec()
        ) {
            let checked = Policy::check("web", &spec, GroupsPerInterface::default());
            let problems = checked.map(|_| ()).err().unwrap_or_default();
            let mut meaningless = problems.iter().filter(|problem| problem.leaves_no_meaning());
            match Policy::parse("web", &spec) {
                Ok(_) => prop_assert_eq!(meaningless.count(), 0),
                Err(invalid) => {
                    let first = meaningless.next().map(ToString::to_string);
                    prop_assert_eq!(first, Some(invalid.problem.to_string()));
                }
            }
            // Whatever is refused is refused for a field that is named.
            for problem in problems {
                prop_assert!(problem.field_error().path.starts_with("spec"));
            }
        }
    }
}
