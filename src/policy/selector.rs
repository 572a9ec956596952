//! Label selectors, compiled: which pods and service accounts a policy means.
//!
//! What is a valid selector and what it selects is exactly what Kubernetes makes of it
//! ([`LabelSelector`] in apimachinery), but for a bound of its length;
//! `tests/selector_oracle.rs` asks both and compares.
//! Everything that can be wrong is found by [`Selector::compile`], so that matching cannot
//! fail.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use thiserror::Error;

use super::field_error::{FieldError, FieldErrorKind};
use super::label_syntax::{KeyProblem, ValueProblem, check_key, check_value};
use super::labels::Labels;

/// A valid label selector: requirements that all have to hold.
///
/// Without requirements it selects everything. A selector that is absent altogether is not
/// a `Selector`; what that means is for the policy to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    requirements: Box<[Requirement]>,
}

/// What a selector asks of one label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key.
    pub key: Box<str>,
    /// What has to hold for that label.
    pub condition: Condition,
}

/// What has to hold for the label of a [`Requirement`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The label is there with one of these values.
    In(Values),
    /// The label is not there, or has none of these values.
    NotIn(Values),
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
}

/// The values of a [`Condition`]: at least one, sorted, each once.
pub type Values = Box<[Box<str>]>;

/// The most labels, expressions and values of a selector, all together. Far more than anybody
/// writes by hand.
const MOST_TERMS: usize = 1_000;

impl Selector {
    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        self.requirements
            .iter()
            .all(|requirement| requirement.matches(labels))
    }

    /// The requirements, first those of `matchLabels` by key, then those of
    /// `matchExpressions` as written. Two of them may have the same key.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether there are no requirements, so that everything is selected.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }
}

impl Requirement {
    fn new(key: &str, condition: Condition) -> Self {
        let key = key.into();
        Self { key, condition }
    }

    /// Whether the requirement holds for an object with these labels.
    pub fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        let value = labels.get(&self.key);
        match &self.condition {
            Condition::In(values) => value.is_some_and(|value| contains(values, value)),
            Condition::NotIn(values) => value.is_none_or(|value| !contains(values, value)),
            Condition::Exists => value.is_some(),
            Condition::DoesNotExist => value.is_none(),
        }
    }
}

fn contains(values: &Values, value: &str) -> bool {
    values
        .binary_search_by(|candidate| candidate.as_ref().cmp(value))
        .is_ok()
}

impl TryFrom<&LabelSelector> for Selector {
    type Error = SelectorError;

    /// Compiles a selector. Of several problems the first one is reported.
    fn try_from(selector: &LabelSelector) -> Result<Self, SelectorError> {
        Self::compile(selector).map_err(|problems| {
            let first = problems.into_iter().next();
            first.expect("a selector is refused for a reason")
        })
    }
}

impl Selector {
    /// Compiles a selector, or says all that is wrong with it: at least one problem, in the
    /// order of [`Selector::requirements`] and within an expression in that of its fields.
    pub fn compile(selector: &LabelSelector) -> Result<Self, Vec<SelectorError>> {
        let mut problems = Vec::new();
        let expressions = selector.match_expressions.iter().flatten();
        let lengths = expressions.map(|it| 1 + it.values.as_ref().map_or(0, Vec::len));
        let labels = selector.match_labels.as_ref().map_or(0, BTreeMap::len);
        let count = labels + lengths.sum::<usize>();
        if count > MOST_TERMS {
            let path = match labels > MOST_TERMS {
                true => "matchLabels",
                false => "matchExpressions",
            };
            let problem = SelectorProblem::TooMany { count };
            return Err(vec![SelectorError::new(path, problem)]);
        }
        let mut requirements = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            requirements.extend(compile_label(key, value, &mut problems));
        }
        for (index, expression) in selector.match_expressions.iter().flatten().enumerate() {
            let path = format!("matchExpressions[{index}]");
            requirements.extend(compile_expression(&path, expression, &mut problems));
        }
        if problems.is_empty() {
            let requirements = requirements.into();
            Ok(Self { requirements })
        } else {
            Err(problems)
        }
    }
}

/// The requirement, unless there is a problem with it, which is added to the others.
fn compile_label(key: &str, value: &str, problems: &mut Vec<SelectorError>) -> Option<Requirement> {
    let before = problems.len();
    require_key("matchLabels", key, problems);
    // A key that is none is not repeated as a part of the path.
    let path = match problems.len() > before {
        true => "matchLabels".to_owned(),
        false => format!("matchLabels[{key}]"),
    };
    require_value(|| path, value, problems);
    let condition = Condition::In([value.into()].into());
    (problems.len() == before).then(|| Requirement::new(key, condition))
}

/// The requirement, unless there are problems with it, which are added to the others.
fn compile_expression(
    path: &str,
    expression: &LabelSelectorRequirement,
    problems: &mut Vec<SelectorError>,
) -> Option<Requirement> {
    let before = problems.len();
    let key = &expression.key;
    require_key(&format!("{path}.key"), key, problems);
    let operator = Operator::parse(&expression.operator);
    let values = expression.values.as_deref().unwrap_or_default();
    let count = values.len();
    let problem = match operator {
        None => {
            let written = expression.operator.as_str().into();
            Some(("operator", SelectorProblem::Operator(written)))
        }
        Some(operator) => match (operator.compares_with_values(), operator.name()) {
            (true, operator) if count == 0 => {
                Some(("values", SelectorProblem::NoValues { operator }))
            }
            (false, operator) if count > 0 => {
                Some(("values", SelectorProblem::SomeValues { operator, count }))
            }
            _ => None,
        },
    };
    if let Some((field, problem)) = problem {
        problems.push(SelectorError::new(format!("{path}.{field}"), problem));
    }
    for (index, value) in values.iter().enumerate() {
        require_value(|| format!("{path}.values[{index}]"), value, problems);
    }
    if problems.len() > before {
        return None;
    }
    let condition = match operator? {
        Operator::In => Condition::In(sorted(values)),
        Operator::NotIn => Condition::NotIn(sorted(values)),
        Operator::Exists => Condition::Exists,
        Operator::DoesNotExist => Condition::DoesNotExist,
    };
    Some(Requirement::new(key, condition))
}

#[derive(Clone, Copy)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Operator {
    const ALL: [Self; 4] = [Self::In, Self::NotIn, Self::Exists, Self::DoesNotExist];

    fn parse(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|operator| operator.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::In => "In",
            Self::NotIn => "NotIn",
            Self::Exists => "Exists",
            Self::DoesNotExist => "DoesNotExist",
        }
    }

    fn compares_with_values(self) -> bool {
        matches!(self, Self::In | Self::NotIn)
    }
}

fn require_key(path: &str, key: &str, problems: &mut Vec<SelectorError>) {
    if let Err(problem) = check_key(key) {
        let key = key.into();
        let problem = SelectorProblem::Key { key, problem };
        problems.push(SelectorError::new(path, problem));
    }
}

fn require_value(path: impl FnOnce() -> String, value: &str, problems: &mut Vec<SelectorError>) {
    if let Err(problem) = check_value(value) {
        let value = value.into();
        let problem = SelectorProblem::Value { value, problem };
        problems.push(SelectorError::new(path(), problem));
    }
}

fn sorted(values: &[String]) -> Values {
    let mut values: Vec<Box<str>> = values.iter().map(|value| value.as_str().into()).collect();
    values.sort_unstable();
    values.dedup();
    values.into()
}

/// Why a label selector is not valid, and where.
///
/// Displays as one line such as
/// `matchExpressions[2].operator: "Near" is not In, NotIn, Exists or DoesNotExist`.
/// Control characters in what it quotes are escaped, and long quotes are cut.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{path}: {problem}")]
pub struct SelectorError {
    /// The field at fault, relative to the selector: `matchExpressions[2].values[0]`,
    /// `matchLabels[app]` for the value of the label `app`, `matchLabels` for a key there.
    pub path: String,
    /// What is wrong with that field.
    pub problem: SelectorProblem,
}

impl SelectorError {
    fn new(path: impl Into<String>, problem: SelectorProblem) -> Self {
        let path = path.into();
        Self { path, problem }
    }

    /// The problem in the form of the API server, of the selector in this field.
    pub fn field_error(&self, selector: &str) -> FieldError {
        let (kind, value, detail) = match &self.problem {
            SelectorProblem::Key { key, problem } => (
                FieldErrorKind::Invalid,
                Some(Quote(key).to_string()),
                problem.to_string(),
            ),
            SelectorProblem::Value { value, problem } => (
                FieldErrorKind::Invalid,
                Some(Quote(value).to_string()),
                problem.to_string(),
            ),
            SelectorProblem::Operator(written) => (
                FieldErrorKind::Invalid,
                Some(Quote(written).to_string()),
                "must be In, NotIn, Exists or DoesNotExist".to_owned(),
            ),
            SelectorProblem::TooMany { count } => (
                FieldErrorKind::TooMany,
                Some(count.to_string()),
                format!("labels, expressions and their values are at most {MOST_TERMS} together"),
            ),
            SelectorProblem::NoValues { operator } => (
                FieldErrorKind::Required,
                None,
                format!("{operator} needs at least one"),
            ),
            SelectorProblem::SomeValues { operator, .. } => (
                FieldErrorKind::Forbidden,
                None,
                format!("{operator} takes none"),
            ),
        };
        FieldError {
            path: format!("{selector}.{}", self.path),
            kind,
            value,
            detail,
        }
    }
}

/// What is wrong with a field of a label selector.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SelectorProblem {
    /// No label can have this key.
    #[error("{} is not a label key: {problem}", Quote(key))]
    Key {
        /// The key as written.
        key: Box<str>,
        /// Why it is not a key.
        problem: KeyProblem,
    },
    /// No label can have this value.
    #[error("{} is not a label value: {problem}", Quote(value))]
    Value {
        /// The value as written.
        value: Box<str>,
        /// Why it is not a value.
        problem: ValueProblem,
    },
    /// Every replica keeps all selectors in memory, and a policy can be megabytes long.
    #[error("{count} labels, expressions and values in all, at most {MOST_TERMS} are looked at")]
    TooMany {
        /// How many there are.
        count: usize,
    },
    /// There is no such operator.
    #[error("{} is not In, NotIn, Exists or DoesNotExist", Quote(.0))]
    Operator(Box<str>),
    /// The operator compares with values and none are given.
    #[error("none given, {operator} needs at least one")]
    NoValues {
        /// `In` or `NotIn`.
        operator: &'static str,
    },
    /// The operator does not look at values and some are given.
    #[error("{count} given, {operator} takes none")]
    SomeValues {
        /// `Exists` or `DoesNotExist`.
        operator: &'static str,
        /// How many are given.
        count: usize,
    },
}

/// Text from a custom resource, made fit for one short line.
pub(super) struct Quote<'a>(pub(super) &'a str);

impl Quote<'_> {
    /// Leaves room for the rest of the message in an admission warning, which is cut at
    /// 256 characters.
    const LONGEST: usize = 64;
}

impl Display for Quote<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut length = 0;
        f.write_char('"')?;
        for escaped in self.0.chars().map(char::escape_debug) {
            length += escaped.len();
            if length > Self::LONGEST {
                f.write_char('…')?;
                break;
            }
            write!(f, "{escaped}")?;
        }
        f.write_char('"')
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;
    use proptest::sample::select;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn selector_of_very_many_terms_is_refused() {
        let labels = |count| {
            let labels = (0..count).map(|number| (format!("k{number}"), json!("v")));
            json!({"matchLabels": serde_json::Map::from_iter(labels)})
        };
        let values = |count| {
            let values: Vec<_> = (0..count).map(|number| format!("v{number}")).collect();
            json!({"matchExpressions": [{"key": "app", "operator": "In", "values": values}]})
        };
        let refused = |selector: Value| {
            let selector = serde_json::from_value(selector).unwrap();
            Selector::try_from(&selector)
                .err()
                .map(|error| error.to_string())
        };
        assert_eq!(refused(labels(1_000)), None);
        assert_eq!(refused(values(999)), None);
        let told = "1001 labels, expressions and values in all, at most 1000 are looked at";
        assert_eq!(refused(labels(1_001)), Some(format!("matchLabels: {told}")));
        assert_eq!(
            refused(values(1_000)),
            Some(format!("matchExpressions: {told}"))
        );
    }

    #[test]
    fn selector_selects_by_label() {
        let any = compile(json!({}));
        let db = compile(json!({"matchLabels": {"app": "db"}}));
        let bare = compile(json!({"matchLabels": {"app": ""}}));
        let either = expression(json!({"key": "app", "operator": "In", "values": ["web", "db"]}));
        let not_db = expression(json!({"key": "app", "operator": "NotIn", "values": ["db"]}));
        let has = expression(json!({"key": "app", "operator": "Exists"}));
        let has_not = expression(json!({"key": "app", "operator": "DoesNotExist", "values": []}));
        let both = compile(json!({
            "matchLabels": {"app": "db"},
            "matchExpressions": [{"key": "tier", "operator": "Exists"}],
        }));
        let never = compile(json!({
            "matchLabels": {"app": "db"},
            "matchExpressions": [{"key": "app", "operator": "DoesNotExist"}],
        }));

        for (selector, object, selected) in [
            (&any, "", true),
            (&any, "app=db", true),
            (&db, "", false),
            (&db, "app=", false),
            (&db, "app=web", false),
            (&db, "App=db", false),
            (&db, "app=db,tier=1", true),
            (&bare, "", false), // An empty value is not a label that is absent.
            (&bare, "app=", true),
            (&either, "", false),
            (&either, "app=db", true),
            (&either, "app=web", true),
            (&either, "app=cache", false),
            (&not_db, "", true), // NotIn also holds for an object without the key.
            (&not_db, "app=", true),
            (&not_db, "app=web", true),
            (&not_db, "app=db", false),
            (&has, "", false),
            (&has, "app=", true),
            (&has_not, "", true),
            (&has_not, "tier=1", true),
            (&has_not, "app=", false),
            (&both, "app=db", false),
            (&both, "tier=1", false),
            (&both, "app=db,tier=1", true),
            (&never, "", false),
            (&never, "app=db", false),
        ] {
            let got = selector.matches(&labels(object));
            assert_eq!(got, selected, "{selector:?} on `{object}`");
        }
    }

    #[test]
    fn requirements_keep_their_order_and_values_are_sorted_once_each() {
        let selector = compile(json!({
            "matchLabels": {"b": "2", "a": "1"},
            "matchExpressions": [
                {"key": "z", "operator": "NotIn", "values": ["y", "", "x", "y"]},
                {"key": "a", "operator": "Exists"},
            ],
        }));

        let values = |values: &[&str]| values.iter().map(|&value| value.into()).collect();
        let expected = [
            ("a", Condition::In(values(&["1"]))),
            ("b", Condition::In(values(&["2"]))),
            ("z", Condition::NotIn(values(&["", "x", "y"]))),
            ("a", Condition::Exists),
        ];
        let expected = expected.map(|(key, condition)| Requirement::new(key, condition));
        assert_eq!(selector.requirements(), expected);
    }

    #[test]
    fn only_a_selector_without_requirements_is_empty() {
        for (selector, empty) in [
            (json!({}), true),
            (json!({"matchLabels": null, "matchExpressions": null}), true),
            (json!({"matchLabels": {}, "matchExpressions": []}), true),
            (json!({"matchLabels": {"a": ""}}), false),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}),
                false,
            ),
        ] {
            assert_eq!(compile(selector.clone()).is_empty(), empty, "{selector}");
        }
    }

    #[test]
    fn the_first_problem_is_reported_with_its_field() {
        for (selector, message) in [
            (
                json!({"matchLabels": {"a b": "c", "d/": "e"}}),
                r#"matchLabels: "a b" is not a label key: its name holds ' ', allowed are A-Z, a-z, 0-9, `-`, `_` and `.`"#,
            ),
            (
                json!({"matchLabels": {"app": "d\u{202e}b\n\"", "b/": "c"}}),
                r#"matchLabels[app]: "d\u{202e}b\n\"" is not a label value: it holds '\u{202e}', allowed are A-Z, a-z, 0-9, `-`, `_` and `.`"#,
            ),
            (
                json!({"matchExpressions": [{"key": "", "operator": "in", "values": ["-"]}]}),
                r#"matchExpressions[0].key: "" is not a label key: its name is empty"#,
            ),
            (
                json!({"matchExpressions": [
                    {"key": "a", "operator": "Exists"},
                    {"key": "a", "operator": "DoesNotExist"},
                    {"key": "a", "operator": "Near", "values": ["-"]},
                ]}),
                r#"matchExpressions[2].operator: "Near" is not In, NotIn, Exists or DoesNotExist"#,
            ),
            (
                json!({"matchExpressions": [{"key": "a", "operator": ""}]}),
                r#"matchExpressions[0].operator: "" is not In, NotIn, Exists or DoesNotExist"#,
            ),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "In", "values": []}]}),
                "matchExpressions[0].values: none given, In needs at least one",
            ),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "NotIn"}]}),
                "matchExpressions[0].values: none given, NotIn needs at least one",
            ),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["-", ""]}]}),
                "matchExpressions[0].values: 2 given, Exists takes none",
            ),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "DoesNotExist", "values": [""]}]}),
                "matchExpressions[0].values: 1 given, DoesNotExist takes none",
            ),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["", "-"]}]}),
                r#"matchExpressions[0].values[1]: "-" is not a label value: it begins or ends with '-', only A-Z, a-z and 0-9 may stand there"#,
            ),
        ] {
            let error = Selector::try_from(&parse(selector.clone())).unwrap_err();
            assert_eq!(error.to_string(), message, "{selector}");
        }
    }

    #[test]
    fn all_problems_are_found_and_each_has_its_field() {
        let selector = parse(json!({
            "matchLabels": {"a b": "-", "app": "x y", "good": "1"},
            "matchExpressions": [
                {"key": "good", "operator": "Exists"},
                {"key": "", "operator": "Near", "values": ["a", "."]},
                {"key": "a", "operator": "Exists", "values": ["-"]},
                {"key": "a/", "operator": "In"},
            ],
        }));
        let problems = Selector::compile(&selector).unwrap_err();
        let errors = problems.iter().map(|problem| {
            let error = problem.field_error("spec.podSelector");
            assert!(
                problem
                    .to_string()
                    .starts_with(&error.path["spec.podSelector.".len()..])
            );
            error.to_string()
        });
        let characters = "allowed are A-Z, a-z, 0-9, `-`, `_` and `.`";
        let edges = "only A-Z, a-z and 0-9 may stand there";
        let expected = [
            format!("matchLabels: Invalid value: \"a b\": its name holds ' ', {characters}"),
            format!("matchLabels: Invalid value: \"-\": it begins or ends with '-', {edges}"),
            format!("matchLabels[app]: Invalid value: \"x y\": it holds ' ', {characters}"),
            "matchExpressions[1].key: Invalid value: \"\": its name is empty".to_owned(),
            "matchExpressions[1].operator: Invalid value: \"Near\": must be In, NotIn, Exists or \
             DoesNotExist"
                .to_owned(),
            format!(
                "matchExpressions[1].values[1]: Invalid value: \".\": it begins or ends with '.', \
                 {edges}"
            ),
            "matchExpressions[2].values: Forbidden: Exists takes none".to_owned(),
            format!(
                "matchExpressions[2].values[0]: Invalid value: \"-\": it begins or ends with '-', \
                 {edges}"
            ),
            "matchExpressions[3].key: Invalid value: \"a/\": its name is empty".to_owned(),
            "matchExpressions[3].values: Required value: In needs at least one".to_owned(),
        ];
        let expected = expected.map(|error| format!("spec.podSelector.{error}"));
        assert_eq!(errors.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn an_error_fits_into_a_warning_whatever_the_selector_holds() {
        let worst = "\u{10ffff}".repeat(1000);
        for selector in [
            json!({"matchLabels": {&worst: ""}}),
            json!({"matchLabels": {"app.kubernetes.io/name": &worst}}),
            json!({"matchLabels": {format!("{worst}/a"): ""}}),
            json!({"matchExpressions": [{"key": &worst, "operator": "In"}]}),
            json!({"matchExpressions": [{"key": "a", "operator": &worst}]}),
            json!({"matchExpressions": [{"key": "a", "operator": "In", "values": [&worst]}]}),
        ] {
            let message = Selector::try_from(&parse(selector))
                .unwrap_err()
                .to_string();
            // The rest is for the name of the policy and the field that holds the selector.
            assert!(message.chars().count() <= 200, "{message}");
            assert!(message.contains("…\""), "{message}");
            assert!(!message.contains('\u{10ffff}'), "{message}");
        }
    }

    proptest! {
        #[test]
        fn opposite_operators_disagree_on_every_object(
            key in a_key(),
            values in vec(a_value(), 1..4),
            labels in some_labels(),
        ) {
            let holds = |operator, values: &[&str]| {
                expression(json!({"key": key, "operator": operator, "values": values}))
                    .matches(&labels)
            };
            prop_assert_ne!(holds("In", &values), holds("NotIn", &values));
            prop_assert_ne!(holds("Exists", &[]), holds("DoesNotExist", &[]));
        }

        #[test]
        fn a_match_label_means_in_with_one_value(
            key in a_key(),
            value in a_value(),
        ) {
            let label = compile(json!({"matchLabels": {key: value}}));
            let within = expression(json!({"key": key, "operator": "In", "values": [value]}));
            prop_assert_eq!(label, within);
        }

        #[test]
        fn a_selector_matches_where_each_of_its_expressions_does(
            expressions in vec(an_expression(), 0..4),
            labels in some_labels(),
        ) {
            let each = expressions.iter().all(|one| expression(one.clone()).matches(&labels));
            let together = compile(json!({"matchExpressions": expressions}));
            prop_assert_eq!(together.matches(&labels), each);
        }

        #[test]
        fn order_and_repetition_of_values_do_not_matter(
            values in vec(a_value(), 1..6).prop_flat_map(|values| {
                (Just(values.clone()), Just([&values[..], &values[..1]].concat()).prop_shuffle())
            }),
        ) {
            let (values, others) = values;
            let within = |values| expression(json!({"key": "a", "operator": "In", "values": values}));
            prop_assert_eq!(within(values), within(others));
        }
    }

    fn a_key() -> impl Strategy<Value = &'static str> {
        select(&["app", "tier", "example.com/app"][..])
    }

    fn a_value() -> impl Strategy<Value = &'static str> {
        select(&["", "db", "web", "WEB", "1.0"][..])
    }

    fn an_expression() -> impl Strategy<Value = Value> {
        let operator = select(&["In", "NotIn", "Exists", "DoesNotExist"][..]);
        (a_key(), operator, vec(a_value(), 1..4)).prop_map(|(key, operator, values)| {
            let values = if operator.ends_with("In") {
                values
            } else {
                Vec::new()
            };
            json!({"key": key, "operator": operator, "values": values})
        })
    }

    fn some_labels() -> impl Strategy<Value = BTreeMap<String, String>> {
        btree_map(
            a_key().prop_map(String::from),
            a_value().prop_map(String::from),
            0..4,
        )
    }

    fn expression(expression: Value) -> Selector {
        compile(json!({"matchExpressions": [expression]}))
    }

    fn compile(selector: Value) -> Selector {
        (&parse(selector)).try_into().unwrap()
    }

    fn parse(selector: Value) -> LabelSelector {
        serde_json::from_value(selector).unwrap()
    }

    fn labels(text: &str) -> BTreeMap<String, String> {
        let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
        pairs
            .map(|(key, value)| (key.into(), value.into()))
            .collect()
    }
}
