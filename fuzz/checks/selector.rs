//! Selectors: one is valid or its problem is told in a line, and it selects what its text says.
//!
//! The input is JSON: a selector, and the labels of an object.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::{Value, json};
use sgp::policy::{Policy, Selector};

/// Panics if the property does not hold for this input.
pub fn check(json: &[u8]) {
    let Ok((selector, labels)) = serde_json::from_slice::<(Value, BTreeMap<String, String>)>(json)
    else {
        return;
    };
    let spec = json!({"podSelector": selector, "securityGroups": {"groupIds": ["sg-0123abcd"]}});
    let policy = Policy::parse("fuzzed", &spec);
    if let Err(invalid) = &policy {
        assert!(!invalid.problem.to_string().contains(char::is_control));
    }
    let Ok(selector) = serde_json::from_value::<LabelSelector>(selector) else {
        assert!(policy.is_err(), "a policy was made of what is no selector");
        return;
    };
    match Selector::try_from(&selector) {
        Ok(compiled) => {
            let selected = compiled.matches(&labels);
            assert_eq!(selected, selects(&selector, &labels), "{selector:?}");
            let policy = policy.expect("what is a selector is one in a policy");
            assert_eq!(policy.selects_pod(&labels), selected, "{selector:?}");
        }
        Err(error) => {
            assert!(policy.is_err(), "a policy was made of {selector:?}");
            let message = error.to_string();
            // The rest of a warning is for the names of the policy and of the field.
            assert!(message.chars().count() <= 200, "{message}");
            assert!(!message.contains(char::is_control), "{message:?}");
        }
    }
}

/// What a valid selector selects, from its definition.
fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let mut pairs = selector.match_labels.iter().flatten();
    let mut expressions = selector.match_expressions.iter().flatten();
    pairs.all(|(key, value)| labels.get(key) == Some(value))
        && expressions.all(|expression| {
            let value = labels.get(&expression.key);
            let mut values = expression.values.iter().flatten();
            match expression.operator.as_str() {
                "In" => value.is_some_and(|value| values.any(|one| one == value)),
                "NotIn" => value.is_none_or(|value| values.all(|one| one != value)),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                other => panic!("{other} is no operator of a valid selector"),
            }
        })
}
