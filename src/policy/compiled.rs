//! A SecurityGroupPolicy in the form that answers questions: parsed once, when it arrives,
//! so that a bad one is reported once and admission only matches.

use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use super::labels::Labels;
use super::selector::{Selector, SelectorError};
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
    /// What is wrong with it.
    pub problem: PolicyProblem,
}

/// Why a policy is ignored. The text names the field.
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
    #[error("spec.securityGroups.groupIds lists no security group; list 1 to 5")]
    NoGroups,
}

impl Policy {
    /// Parses the `spec` of a stored policy.
    ///
    /// The spec is raw JSON because a cluster may hold policies older than our definition
    /// of the resource; one that can't be read must not hide the others.
    pub fn parse(name: &str, spec: &Value) -> Result<Self, InvalidPolicy> {
        let invalid = |problem| InvalidPolicy {
            name: name.into(),
            problem,
        };
        let spec = SecurityGroupPolicySpec::deserialize(spec)
            .map_err(|error| invalid(PolicyProblem::Unreadable(error.to_string())))?;
        Self::compile(name, &spec).map_err(invalid)
    }

    fn compile(name: &str, spec: &SecurityGroupPolicySpec) -> Result<Self, PolicyProblem> {
        if spec.pod_selector.is_none() && spec.service_account_selector.is_none() {
            return Err(PolicyProblem::NoSelector);
        }
        let groups = spec.security_groups.iter();
        let ids = groups.flat_map(|groups| &groups.group_ids).flatten();
        let group_ids = ids.map(|id| id.as_str().into()).collect();
        let pod_selector = spec.pod_selector.as_ref().map(Selector::try_from);
        let service_account_selector = spec
            .service_account_selector
            .as_ref()
            .map(Selector::try_from);
        let policy = Self {
            name: name.into(),
            group_ids,
            pod_selector: pod_selector
                .transpose()
                .map_err(PolicyProblem::PodSelector)?,
            service_account_selector: service_account_selector
                .transpose()
                .map_err(PolicyProblem::ServiceAccountSelector)?,
        };
        if policy.group_ids.is_empty() {
            return Err(PolicyProblem::NoGroups);
        }
        Ok(policy)
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

#[cfg(test)]
mod tests {
    use super::*;
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
}
