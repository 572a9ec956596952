//! What a selector makes of objects of which only some labels are known: whatever a Service's
//! selector picks carries those labels, and may carry others.

use super::compiled::Policy;
use super::labels::Labels;
use super::selector::{Requirement, Selector};

/// Whether what carries certain labels is selected.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Overlap {
    /// It can't be, whatever else it carries.
    Never,
    /// That hangs on what else it carries.
    Possible,
    /// It is, whatever else it carries.
    Certain,
}

impl Selector {
    /// Whether objects that carry at least these labels are selected.
    ///
    /// Requirements are looked at one by one, so that `Possible` is also said of a selector
    /// that contradicts itself about some other label.
    pub fn overlap(&self, known: &(impl Labels + ?Sized)) -> Overlap {
        let requirements = self.requirements().iter();
        requirements
            .map(|requirement| overlap(requirement, known))
            .min()
            .unwrap_or(Overlap::Certain)
    }
}

fn overlap(requirement: &Requirement, known: &(impl Labels + ?Sized)) -> Overlap {
    match known.get(&requirement.key) {
        None => Overlap::Possible,
        Some(_) if requirement.matches(known) => Overlap::Certain,
        Some(_) => Overlap::Never,
    }
}

impl Policy {
    /// Whether pods that carry at least these labels get the policy's groups. Of their
    /// ServiceAccounts nothing is known.
    pub fn overlap(&self, known: &(impl Labels + ?Sized)) -> Overlap {
        let selector = self.pod_selector.as_ref();
        let by_pod = selector.map_or(Overlap::Certain, |selector| selector.overlap(known));
        match &self.service_account_selector {
            Some(selector) if !selector.is_empty() => by_pod.min(Overlap::Possible),
            _ => by_pod,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::collections::BTreeMap;

    fn policy(spec: Value) -> Policy {
        let mut spec = spec;
        spec["securityGroups"] = json!({"groupIds": ["sg-0123abcd"]});
        Policy::parse("policy", &spec).unwrap()
    }

    fn expression(key: &str, operator: &str, values: &[&str]) -> Value {
        json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]})
    }

    #[test]
    fn policy_selects_what_a_service_picks_never_possibly_or_certainly() {
        let known = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        for (selector, overlap) in [
            (json!({}), Overlap::Certain),
            (json!({"matchLabels": {"app": "web"}}), Overlap::Certain),
            (json!({"matchLabels": {"app": "db"}}), Overlap::Never),
            (json!({"matchLabels": {"tier": "1"}}), Overlap::Possible),
            (
                json!({"matchLabels": {"app": "web", "tier": "1"}}),
                Overlap::Possible,
            ),
            (
                json!({"matchLabels": {"app": "db", "tier": "1"}}),
                Overlap::Never,
            ),
            (expression("app", "In", &["db", "web"]), Overlap::Certain),
            (expression("app", "NotIn", &["web"]), Overlap::Never),
            (expression("app", "NotIn", &["db"]), Overlap::Certain),
            (expression("app", "Exists", &[]), Overlap::Certain),
            (expression("app", "DoesNotExist", &[]), Overlap::Never),
            (expression("tier", "NotIn", &["1"]), Overlap::Possible),
            (expression("tier", "DoesNotExist", &[]), Overlap::Possible),
        ] {
            let policy = policy(json!({ "podSelector": selector }));
            assert_eq!(policy.overlap(&known), overlap, "{policy:?}");
        }
    }

    #[test]
    fn selector_of_service_accounts_leaves_it_open_unless_it_takes_all() {
        let known = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        let role = json!({"matchLabels": {"role": "reader"}});
        for (spec, overlap) in [
            (json!({"serviceAccountSelector": role}), Overlap::Possible),
            (json!({"serviceAccountSelector": {}}), Overlap::Certain),
            (
                json!({"serviceAccountSelector": role, "podSelector": {}}),
                Overlap::Possible,
            ),
            (
                json!({
                    "serviceAccountSelector": role,
                    "podSelector": {"matchLabels": {"app": "db"}}
                }),
                Overlap::Never,
            ),
        ] {
            let policy = policy(spec);
            assert_eq!(policy.overlap(&known), overlap, "{policy:?}");
        }
    }
}
