//! What whoever writes a policy is told, in the user's words.

use crate::api::names::NEVER_ENFORCED;
use crate::policy::{Availability, Concern, FieldError, FieldErrorKind, Policy, PolicyProblem};
use crate::webhook::warnings::within_limits;

/// The most problems of a policy that are told one by one.
const MOST_TOLD: usize = 32;

/// The problems in the form of the API server; the first ones, if there are very many.
pub fn field_errors(problems: &[PolicyProblem]) -> Vec<FieldError> {
    let told = problems.iter().take(MOST_TOLD);
    let mut errors: Vec<_> = told.map(PolicyProblem::field_error).collect();
    if problems.len() > MOST_TOLD {
        errors.push(FieldError {
            path: "spec".to_owned(),
            kind: FieldErrorKind::Invalid,
            value: None,
            detail: format!(
                "it has {} more problems than are told here",
                problems.len() - MOST_TOLD
            ),
        });
    }
    errors
}

/// What the policy will not do, although it is valid.
pub fn warnings(
    namespace: &str,
    policy: &Policy,
    availability: Option<&Availability>,
) -> Vec<String> {
    let name = &policy.name;
    let mut warnings = Vec::new();
    let concerns = policy.group_ids.iter().filter_map(|id| {
        let concern = Concern::of_group(id, availability?)?;
        Some((id, concern))
    });
    for (id, concern) in concerns {
        let what = match concern {
            Concern::GroupElsewhere {
                vpc_id,
                cluster_vpc_id,
                ..
            } => format!(
                "is in {vpc_id}; pods that the policy selects can't start until one of the \
                 cluster's {cluster_vpc_id} is named"
            ),
            _ => "does not exist; pods that the policy selects can't start until it does, or \
                  another one is named"
                .to_owned(),
        };
        warnings.push(format!(
            "SecurityGroupPolicy {name:?}: security group {id} {what} in \
             spec.securityGroups.groupIds"
        ));
    }
    if NEVER_ENFORCED.contains(&namespace) {
        warnings.push(format!(
            "SecurityGroupPolicy {name:?}: while the webhook can't be reached, pods of namespace \
             {namespace:?} start without security groups: it never fails closed"
        ));
    }
    within_limits(warnings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{GroupElsewhere, GroupsPerInterface};
    use crate::webhook::warnings::WARNING_CHARACTERS;
    use serde_json::json;

    #[test]
    fn groups_that_can_not_be_had_are_named_in_full() {
        let ids = [
            "sg-0123456789abcdef0",
            "sg-0123456789abcdef1",
            "sg-0123456789abcdef2",
        ];
        let spec = json!({"podSelector": {}, "securityGroups": {"groupIds": ids}});
        let policy = Policy::parse("clients-of-the-database", &spec).unwrap();
        let availability = Availability {
            missing: vec![ids[0].to_owned()],
            elsewhere: vec![GroupElsewhere {
                id: ids[2].to_owned(),
                vpc_id: "vpc-0123456789abcdef0".to_owned(),
            }],
            vpc_id: Some("vpc-0123456789abcdef1".to_owned()),
            ..Availability::default()
        };
        let told = warnings("shop", &policy, Some(&availability));
        let begin = "SecurityGroupPolicy \"clients-of-the-database\": security group \
                     sg-0123456789abcdef";
        assert_eq!(told.len(), 2);
        assert!(
            told[0].starts_with(&format!("{begin}0 does not exist; ")),
            "{told:#?}"
        );
        assert!(
            told[1].starts_with(&format!("{begin}2 is in vpc-0123456789abcdef0; ")),
            "{told:#?}"
        );
        for text in told {
            assert!(
                text.ends_with(" named in spec.securityGroups.groupIds"),
                "{text}"
            );
            assert!(text.chars().count() < WARNING_CHARACTERS, "{text}");
        }
        assert!(
            warnings("shop", &policy, None).is_empty(),
            "silence is no news"
        );
    }

    #[test]
    fn very_many_problems_are_counted_rather_than_listed() {
        let ids: Vec<_> = (0..100).map(|number| format!("group-{number}")).collect();
        let spec = json!({"podSelector": {}, "securityGroups": {"groupIds": ids}});
        let problems = Policy::check("many", &spec, GroupsPerInterface::default()).unwrap_err();
        let errors = field_errors(&problems);
        assert_eq!(errors.len(), MOST_TOLD + 1);
        assert_eq!(
            errors[MOST_TOLD].to_string(),
            "spec: Invalid value: it has 69 more problems than are told here"
        );
    }
}
