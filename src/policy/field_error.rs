//! What is wrong with a field, in the form that the API server gives its own findings.
//!
//! It follows apimachinery's `field.Error`, so that `kubectl` and whoever reads the causes of
//! a refusal can treat ours like any other.

use std::fmt::{self, Display};

/// What is wrong with one field of an object.
///
/// Displays as one line such as
/// `spec.podSelector.matchExpressions[0].operator: Invalid value: "Near": must be In or NotIn`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Where it is, from the object's root: `spec.securityGroups.groupIds[2]`.
    pub path: String,
    /// What kind of mistake it is.
    pub kind: FieldErrorKind,
    /// What stands there, as it is to be printed; `None` if that says nothing.
    pub value: Option<String>,
    /// What is wrong and what to write; empty if the kind says it all.
    pub detail: String,
}

/// The kinds of mistakes that our fields know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldErrorKind {
    /// Something must stand there.
    Required,
    /// What stands there is malformed.
    Invalid,
    /// It stands there already.
    Duplicate,
    /// Nothing may stand there.
    Forbidden,
    /// The list is too long.
    TooMany,
}

impl FieldErrorKind {
    /// The machine-readable reason of a cause (`CauseType` in apimachinery).
    pub fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooMany => "FieldValueTooMany",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid => "Invalid value",
            Self::Duplicate => "Duplicate value",
            Self::Forbidden => "Forbidden",
            Self::TooMany => "Too many",
        }
    }
}

impl FieldError {
    /// The error without its path.
    pub fn body(&self) -> String {
        let value = self.value.as_deref();
        let detail = Some(self.detail.as_str()).filter(|detail| !detail.is_empty());
        let parts: Vec<&str> = [Some(self.kind.text()), value, detail]
            .into_iter()
            .flatten()
            .collect();
        parts.join(": ")
    }
}

impl Display for FieldError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.path, self.body())
    }
}

/// Several errors in one line: one as it is, more as `[a, b]`, none twice.
pub fn aggregate(errors: &[FieldError]) -> String {
    let mut texts: Vec<String> = Vec::new();
    for error in errors {
        let text = error.to_string();
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    match texts.as_slice() {
        [one] => one.clone(),
        _ => format!("[{}]", texts.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(kind: FieldErrorKind, value: Option<&str>, detail: &str) -> FieldError {
        FieldError {
            path: "spec.list[1]".to_owned(),
            kind,
            value: value.map(str::to_owned),
            detail: detail.to_owned(),
        }
    }

    #[test]
    fn error_reads_as_the_api_servers_own() {
        use FieldErrorKind::*;
        for (error, text) in [
            (
                error(Required, None, "give one"),
                "Required value: give one",
            ),
            (
                error(Invalid, Some("\"a\""), "bad"),
                "Invalid value: \"a\": bad",
            ),
            (error(Invalid, None, "bad"), "Invalid value: bad"),
            (
                error(Duplicate, Some("\"a\""), ""),
                "Duplicate value: \"a\"",
            ),
            (
                error(Forbidden, None, "leave it out"),
                "Forbidden: leave it out",
            ),
            (
                error(TooMany, Some("6"), "at most 5"),
                "Too many: 6: at most 5",
            ),
        ] {
            assert_eq!(error.to_string(), format!("spec.list[1]: {text}"));
        }
    }

    #[test]
    fn several_errors_are_a_list_without_repetitions() {
        let one = error(FieldErrorKind::Invalid, None, "bad");
        let two = error(FieldErrorKind::Required, None, "give one");
        let (first, second) = (one.to_string(), two.to_string());
        assert_eq!(aggregate(&[one.clone(), one.clone()]), first);
        assert_eq!(
            aggregate(&[one.clone(), two, one]),
            format!("[{first}, {second}]")
        );
    }
}
