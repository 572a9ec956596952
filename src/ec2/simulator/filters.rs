//! Filters of the Describe actions: values are alternatives, filters must all hold.

use super::cloud::Cloud;
use super::errors::Ec2Error;
use super::query::Parameters;
use super::tags::Tags;
use super::timestamp::Timestamp;

/// EC2's limit of values in one call.
const MOST_VALUES: usize = 200;

/// What a resource shows in one field; several values where it has several.
pub(super) type Field<T> = fn(&T, &Cloud, Timestamp) -> Vec<String>;

/// Something that a Describe action lists.
pub(super) trait Described {
    /// The field that a filter of this name looks at; `None` when EC2 has no such filter.
    fn field(name: &str) -> Option<Field<Self>>;

    /// Its tags, where it can have some.
    fn tags(&self) -> Option<&Tags>;
}

/// The filters of one call.
pub(super) struct Filters<T: ?Sized> {
    filters: Vec<Filter<T>>,
}

struct Filter<T: ?Sized> {
    name: String,
    looks_at: LooksAt<T>,
    patterns: Vec<Pattern>,
}

enum LooksAt<T: ?Sized> {
    Field(Field<T>),
    Tag(String),
    TagKeys,
    TagValues,
}

impl<T: Described> Filters<T> {
    pub(super) fn read(parameters: &Parameters<'_>) -> Result<Self, Ec2Error> {
        let mut filters = Vec::new();
        for filter in parameters.structures("Filter") {
            let name = filter.required("Name")?;
            let looks_at = match name {
                "tag-key" => LooksAt::TagKeys,
                "tag-value" => LooksAt::TagValues,
                _ => match (name.strip_prefix("tag:"), T::field(name)) {
                    (Some(key), _) => LooksAt::Tag(key.to_owned()),
                    (None, Some(field)) => LooksAt::Field(field),
                    (None, None) => {
                        let message = format!("The filter '{name}' is invalid");
                        return Err(Ec2Error::invalid_value(message));
                    }
                },
            };
            let patterns: Vec<Pattern> =
                filter.list("Value").into_iter().map(Pattern::new).collect();
            if patterns.len() > MOST_VALUES {
                let message = format!(
                    "The maximum number of filter values specified on a single call is \
                     {MOST_VALUES}"
                );
                return Err(Ec2Error::new("FilterLimitExceeded", message));
            }
            if patterns.is_empty() {
                let message = format!("The filter '{name}' has no values");
                return Err(Ec2Error::invalid_value(message));
            }
            filters.push(Filter {
                name: name.to_owned(),
                looks_at,
                patterns,
            });
        }
        Ok(Self { filters })
    }

    pub(super) fn pass(&self, resource: &T, cloud: &Cloud, now: Timestamp) -> bool {
        self.filters
            .iter()
            .all(|filter| filter.passes(resource, cloud, now))
    }

    /// The values of a filter that has no wildcards, to be looked up in an index.
    pub(super) fn exact(&self, name: &str) -> Option<Vec<&str>> {
        let filter = self.filters.iter().find(|filter| filter.name == name)?;
        filter.patterns.iter().map(Pattern::exact).collect()
    }

    /// The tags that are asked for without wildcards.
    pub(super) fn exact_tags(&self) -> impl Iterator<Item = (&str, Vec<&str>)> {
        self.filters.iter().filter_map(|filter| {
            let key = filter.name.strip_prefix("tag:")?;
            let values: Option<Vec<&str>> = filter.patterns.iter().map(Pattern::exact).collect();
            Some((key, values?))
        })
    }
}

impl<T: Described> Filter<T> {
    fn passes(&self, resource: &T, cloud: &Cloud, now: Timestamp) -> bool {
        let any = |value: &str| self.patterns.iter().any(|pattern| pattern.matches(value));
        let tags = resource.tags().into_iter();
        match &self.looks_at {
            LooksAt::Field(field) => field(resource, cloud, now).iter().any(|value| any(value)),
            LooksAt::Tag(key) => tags
                .filter_map(|tags| tags.get(key))
                .any(|value| any(value)),
            LooksAt::TagKeys => tags.flat_map(Tags::keys).any(|key| any(key)),
            LooksAt::TagValues => tags.flat_map(Tags::values).any(|value| any(value)),
        }
    }
}

/// A value with `*` for any text and `?` for any one character; a backslash takes their
/// meaning away.
struct Pattern(Vec<Piece>);

#[derive(Eq, PartialEq)]
enum Piece {
    Text(String),
    One,
    Any,
}

impl Pattern {
    fn new(text: &str) -> Self {
        let mut pieces = Vec::new();
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            let literal = match character {
                '*' => {
                    if pieces.last() != Some(&Piece::Any) {
                        pieces.push(Piece::Any);
                    }
                    continue;
                }
                '?' => {
                    pieces.push(Piece::One);
                    continue;
                }
                '\\' => characters.next().unwrap_or('\\'),
                other => other,
            };
            match pieces.last_mut() {
                Some(Piece::Text(text)) => text.push(literal),
                _ => pieces.push(Piece::Text(literal.to_string())),
            }
        }
        Self(pieces)
    }

    fn exact(&self) -> Option<&str> {
        match self.0.as_slice() {
            [] => Some(""),
            [Piece::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// Goes back to the last `*` only, so that time is at most the product of the lengths.
    fn matches(&self, value: &str) -> bool {
        let (mut piece, mut rest) = (0, value);
        let mut retry: Option<(usize, &str)> = None;
        loop {
            let advanced = match self.0.get(piece) {
                Some(Piece::Any) => {
                    retry = Some((piece + 1, rest));
                    Some(rest)
                }
                Some(Piece::One) => {
                    let mut characters = rest.chars();
                    characters.next().map(|_| characters.as_str())
                }
                Some(Piece::Text(text)) => rest.strip_prefix(text.as_str()),
                None if rest.is_empty() => return true,
                None => None,
            };
            if let Some(after) = advanced {
                (piece, rest) = (piece + 1, after);
                continue;
            }
            let Some((after_any, from)) = retry else {
                return false;
            };
            let mut characters = from.chars();
            if characters.next().is_none() {
                return false;
            }
            retry = Some((after_any, characters.as_str()));
            (piece, rest) = (after_any, characters.as_str());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stand_for_text_as_in_ec2() {
        for (pattern, value, matches) in [
            ("green", "green", true),
            ("green", "Green", false),
            ("green", "greenish", false),
            ("gre*", "green", true),
            ("*een", "green", true),
            ("*e*e*", "green", true),
            ("*e*e*e*", "green", false),
            ("gr??n", "green", true),
            ("gr?n", "green", false),
            ("*", "", true),
            ("?", "", false),
            ("", "", true),
            ("", "x", false),
            (r"a\*b", "a*b", true),
            (r"a\*b", "axb", false),
            ("*ab", "aab", true),
            ("*a?b", "aaab", true),
            ("ü?", "üä", true),
        ] {
            let got = Pattern::new(pattern).matches(value);
            assert_eq!(got, matches, "`{pattern}` on `{value}`");
        }
    }

    #[test]
    fn a_nasty_pattern_ends_soon() {
        let pattern = Pattern::new(&"*a".repeat(200));
        assert!(!pattern.matches(&"a".repeat(199)));
        assert!(pattern.matches(&"a".repeat(200)));
    }
}
