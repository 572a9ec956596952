//! What a label key, a label value and an object's name may look like.
//!
//! The same strings pass as with Kubernetes: one that only we refused would make a
//! working policy invalid, one that only we let through would select nothing and never
//! say so. Lengths are in bytes. `tests/selector_oracle.rs` holds this file to it.

use thiserror::Error;

/// How many bytes the name in a key may have, and a value.
const MAX_NAME: usize = 63;
/// How many bytes a key's prefix may have. Its parts between dots have no limit of their
/// own, although a DNS label does.
const MAX_PREFIX: usize = 253;

/// Why a string is not a label key.
///
/// Displays as a clause about the key, such as ``its name is empty``.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum KeyProblem {
    /// Two or more slashes.
    #[error("it has {0} slashes, the form is `name` or `prefix/name`")]
    Slashes(usize),
    /// A slash and nothing before it.
    #[error("nothing stands before the slash, the form is `name` or `prefix/name`")]
    NoPrefix,
    /// The prefix has this many bytes, which is too many.
    #[error("its prefix has {0} bytes, {MAX_PREFIX} are allowed")]
    PrefixLength(usize),
    /// The prefix holds this character.
    #[error("its prefix holds {0:?}, allowed are a-z, 0-9, `-` and `.`")]
    PrefixCharacter(char),
    /// A part of the prefix is empty, or begins or ends with a dash.
    #[error("each part of its prefix, between dots, begins and ends with one of a-z or 0-9")]
    PrefixEdge,
    /// The key is empty or ends with its slash.
    #[error("its name is empty")]
    NoName,
    /// The name is not one.
    #[error("its name {0}")]
    Name(NameProblem),
}

/// Why a string is not a label value.
///
/// Displays as a clause about the value, such as ``it has 64 bytes, 63 are allowed``.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("it {0}")]
pub struct ValueProblem(pub NameProblem);

/// Why a string is neither the name in a label key nor a label value.
///
/// Displays as a clause that lacks its subject, such as ``has 64 bytes, 63 are allowed``.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NameProblem {
    /// It has this many bytes, which is too many.
    #[error("has {0} bytes, {MAX_NAME} are allowed")]
    Length(usize),
    /// It holds this character.
    #[error("holds {0:?}, allowed are A-Z, a-z, 0-9, `-`, `_` and `.`")]
    Character(char),
    /// It begins or ends with a character that may only stand inside.
    #[error("begins or ends with {0:?}, only A-Z, a-z and 0-9 may stand there")]
    Edge(char),
}

/// Whether `key` is a label key: a name, or a DNS subdomain, a slash and a name.
pub fn check_key(key: &str) -> Result<(), KeyProblem> {
    let name = match key.split_once('/') {
        None => key,
        Some((_, name)) if name.contains('/') => {
            return Err(KeyProblem::Slashes(key.matches('/').count()));
        }
        Some((prefix, name)) => {
            check_prefix(prefix)?;
            name
        }
    };
    if name.is_empty() {
        return Err(KeyProblem::NoName);
    }
    check_name(name).map_err(KeyProblem::Name)
}

/// Whether `value` is a label value, which may be empty.
pub fn check_value(value: &str) -> Result<(), ValueProblem> {
    check_name(value).map_err(ValueProblem)
}

/// Whether the API server would take `name` as the name of a namespace or a service account,
/// which is also what keeps it one segment of a path.
pub fn is_object_name(name: &str) -> bool {
    check_prefix(name).is_ok()
}

fn check_prefix(prefix: &str) -> Result<(), KeyProblem> {
    if prefix.is_empty() {
        return Err(KeyProblem::NoPrefix);
    }
    if prefix.len() > MAX_PREFIX {
        return Err(KeyProblem::PrefixLength(prefix.len()));
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    if let Some(other) = prefix.chars().find(|&c| !allowed(c)) {
        return Err(KeyProblem::PrefixCharacter(other));
    }
    let is_part = |part: &str| !(part.is_empty() || part.starts_with('-') || part.ends_with('-'));
    if !prefix.split('.').all(is_part) {
        return Err(KeyProblem::PrefixEdge);
    }
    Ok(())
}

/// Whether `name` is empty or a name.
fn check_name(name: &str) -> Result<(), NameProblem> {
    if name.len() > MAX_NAME {
        return Err(NameProblem::Length(name.len()));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if let Some(other) = name.chars().find(|&c| !allowed(c)) {
        return Err(NameProblem::Character(other));
    }
    let mut edges = name.chars().next().into_iter().chain(name.chars().last());
    match edges.find(|c| !c.is_ascii_alphanumeric()) {
        Some(inner) => Err(NameProblem::Edge(inner)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_name_with_an_optional_dns_prefix() {
        let long = |prefix, name| format!("{}/{}", "a".repeat(prefix), "N".repeat(name));
        for key in [
            "a",
            "A",
            "0",
            "App",
            "my.name_with-all",
            "a..b",
            "a--__..b",
            "example.com/app",
            "0.1/A",
            "a--b.c/d",
            &long(253, 63),
        ] {
            assert_eq!(check_key(key), Ok(()), "{key:?}");
        }

        use KeyProblem::*;
        use NameProblem::*;
        for (key, problem) in [
            ("", NoName),
            ("a/", NoName),
            ("a.b/", NoName),
            ("/", NoPrefix),
            ("/a", NoPrefix),
            ("//", Slashes(2)),
            ("a/b/c", Slashes(2)),
            ("a/b/c/", Slashes(3)),
            ("A.b/c", PrefixCharacter('A')),
            ("a_b/c", PrefixCharacter('_')),
            ("a\n/c", PrefixCharacter('\n')),
            ("ä/c", PrefixCharacter('ä')),
            (".a/c", PrefixEdge),
            ("a./c", PrefixEdge),
            ("a..b/c", PrefixEdge),
            ("a-.b/c", PrefixEdge),
            ("a.-b/c", PrefixEdge),
            ("-/c", PrefixEdge),
            (&long(254, 1), PrefixLength(254)),
            (&long(1, 64), Name(Length(64))),
            ("a\n", Name(Character('\n'))),
            ("\0", Name(Character('\0'))),
            ("a b", Name(Character(' '))),
            ("é", Name(Character('é'))),
            ("١", Name(Character('١'))), // A digit, but not an ASCII one.
            ("-a", Name(Edge('-'))),
            ("a_", Name(Edge('_'))),
            ("a/.", Name(Edge('.'))),
        ] {
            assert_eq!(check_key(key), Err(problem), "{key:?}");
        }
    }

    #[test]
    fn a_value_is_empty_or_a_name_without_slash() {
        let long = |bytes| "v".repeat(bytes);
        for value in ["", "a", "Z", "1.0", "a_b-c.d", "a..b", &long(63)] {
            assert_eq!(check_value(value), Ok(()), "{value:?}");
        }

        use NameProblem::*;
        for (value, problem) in [
            ("a/b", Character('/')),
            ("a\n", Character('\n')),
            ("\u{feff}a", Character('\u{feff}')),
            (".a", Edge('.')),
            ("a-", Edge('-')),
            ("_", Edge('_')),
            (&long(64), Length(64)),
            // 32 characters, but 64 bytes.
            (&"é".repeat(32), Length(64)),
        ] {
            assert_eq!(check_value(value), Err(ValueProblem(problem)), "{value:?}");
        }
    }

    #[test]
    fn a_problem_says_what_is_wrong_and_what_is_allowed() {
        for (problem, text) in [
            (
                check_key("a/b/c").unwrap_err().to_string(),
                "it has 2 slashes, the form is `name` or `prefix/name`",
            ),
            (
                check_key("My.app/x").unwrap_err().to_string(),
                "its prefix holds 'M', allowed are a-z, 0-9, `-` and `.`",
            ),
            (
                check_key("app\u{7}").unwrap_err().to_string(),
                "its name holds '\\u{7}', allowed are A-Z, a-z, 0-9, `-`, `_` and `.`",
            ),
            (
                check_value("-").unwrap_err().to_string(),
                "it begins or ends with '-', only A-Z, a-z and 0-9 may stand there",
            ),
        ] {
            assert_eq!(problem, text);
        }
    }
}
