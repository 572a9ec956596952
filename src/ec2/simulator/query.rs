//! The EC2 Query protocol: a flat form whose names say where a value belongs.
//!
//! `Filter.1.Value.2=green` is the second value of the first filter.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use super::errors::Ec2Error;
use super::ids::ResourceId;

/// What belongs to the call itself and not to what it asks for.
const OF_THE_CALL: [&str; 10] = [
    "Action",
    "Version",
    "DryRun",
    "AWSAccessKeyId",
    "Expires",
    "SecurityToken",
    "Signature",
    "SignatureMethod",
    "SignatureVersion",
    "Timestamp",
];

/// A call as it came in.
#[derive(Clone, Debug, Default)]
pub(super) struct Query {
    values: BTreeMap<String, String>,
}

/// The parameters of a call, or of a structure inside of one.
#[derive(Clone)]
pub(super) struct Parameters<'a> {
    values: &'a BTreeMap<String, String>,
    prefix: String,
}

impl Query {
    /// Reads a form body or a query string.
    pub(super) fn parse(form: &[u8]) -> Result<Self, Ec2Error> {
        let mut values = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(form) {
            let control = |character: char| {
                character.is_control() && !matches!(character, '\n' | '\r' | '\t')
            };
            // Such characters could not be answered in XML 1.0.
            if value.contains(control) || value.contains(['\u{fffe}', '\u{ffff}']) {
                let message = format!("Value for parameter {name} has invalid characters");
                return Err(Ec2Error::invalid_value(message));
            }
            if let Some(before) = values.insert(name.into_owned(), value.into_owned()) {
                let message = format!("A parameter is given twice, once as '{before}'");
                return Err(Ec2Error::new("MalformedQueryString", message));
            }
        }
        // Presigned calls carry their signature in the query string.
        values.retain(|name, _| !name.starts_with("X-Amz-"));
        Ok(Self { values })
    }

    pub(super) fn action(&self) -> Option<&str> {
        self.values.get("Action").map(String::as_str)
    }

    pub(super) fn is_dry_run(&self) -> Result<bool, Ec2Error> {
        Ok(self.parameters().flag("DryRun")?.unwrap_or(false))
    }

    pub(super) fn parameters(&self) -> Parameters<'_> {
        Parameters {
            values: &self.values,
            prefix: String::new(),
        }
    }

    /// Refuses parameters that nothing reads: an answer that ignores half of a call would
    /// teach its caller something wrong.
    pub(super) fn check_names(&self, known: &[&str]) -> Result<(), Ec2Error> {
        let stranger = self.values.keys().find(|name| {
            let first = name.split('.').next().unwrap_or(name);
            !OF_THE_CALL.contains(&first) && !known.contains(&first)
        });
        match stranger {
            None => Ok(()),
            Some(name) => Err(Ec2Error::unknown_parameter(name)),
        }
    }

    /// What the call asks for, for the log.
    pub(super) fn asked(&self) -> BTreeMap<String, String> {
        let asked = self.values.iter();
        asked
            .filter(|(name, _)| !OF_THE_CALL.contains(&name.as_str()))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    /// The same text for calls that ask for the same.
    pub(super) fn fingerprint(&self) -> String {
        let mut text = form_urlencoded::Serializer::new(String::new());
        for (name, value) in &self.values {
            if !OF_THE_CALL.contains(&name.as_str()) {
                text.append_pair(name, value);
            }
        }
        text.finish()
    }
}

impl<'a> Parameters<'a> {
    /// A value; `None` when it is not given.
    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        if self.prefix.is_empty() {
            return self.values.get(name).map(String::as_str);
        }
        let name = format!("{}{name}", self.prefix);
        self.values.get(&name).map(String::as_str)
    }

    pub(super) fn owned(&self, name: &str) -> Option<String> {
        self.text(name).map(str::to_owned)
    }

    pub(super) fn required(&self, name: &str) -> Result<&'a str, Ec2Error> {
        let given = self.text(name).filter(|value| !value.is_empty());
        given.ok_or_else(|| Ec2Error::missing_parameter(&format!("{}{name}", self.prefix)))
    }

    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, Ec2Error> {
        match self.text(name) {
            None => Ok(None),
            Some(text) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
            Some(text) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
            Some(text) => Err(Ec2Error::bad_value(text, name, "Expecting true or false.")),
        }
    }

    pub(super) fn number<N: FromStr>(&self, name: &str) -> Result<Option<N>, Ec2Error> {
        self.parsed(name, "Expecting a number.")
    }

    /// A value of any kind that can be read from text.
    pub(super) fn parsed<V: FromStr>(
        &self,
        name: &str,
        expected: &str,
    ) -> Result<Option<V>, Ec2Error> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        let value = text.parse().ok();
        let value = value.ok_or_else(|| Ec2Error::bad_value(text, name, expected))?;
        Ok(Some(value))
    }

    pub(super) fn id<T: ResourceId>(&self, name: &str) -> Result<T, Ec2Error> {
        T::parse(self.required(name)?)
    }

    pub(super) fn ids<T: ResourceId>(&self, name: &str) -> Result<Vec<T>, Ec2Error> {
        self.list(name).into_iter().map(T::parse).collect()
    }

    /// The values `Name.1`, `Name.2` and so on, in the order of their numbers.
    pub(super) fn list(&self, name: &str) -> Vec<&'a str> {
        let numbers = self.positions(name);
        let value = |number| self.text(&format!("{name}.{number}"));
        numbers.into_iter().filter_map(value).collect()
    }

    /// The structures `Name.1.…`, `Name.2.…` and so on.
    pub(super) fn structures(&self, name: &str) -> Vec<Parameters<'a>> {
        let numbers = self.positions(name).into_iter();
        numbers
            .map(|number| self.structure(&format!("{name}.{number}")))
            .collect()
    }

    /// The structure `Name.…`.
    pub(super) fn structure(&self, name: &str) -> Parameters<'a> {
        Parameters {
            values: self.values,
            prefix: format!("{}{name}.", self.prefix),
        }
    }

    fn positions(&self, name: &str) -> BTreeSet<u32> {
        let start = format!("{}{name}.", self.prefix);
        let found = self.values.range(start.clone()..);
        found
            .map_while(|(key, _)| key.strip_prefix(&start))
            .filter_map(|rest| rest.split('.').next()?.parse().ok())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(form: &str) -> Query {
        Query::parse(form.as_bytes()).unwrap()
    }

    #[test]
    fn lists_and_structures_are_put_together() {
        let query = query(
            "Action=X&Filter.1.Name=vpc-id&Filter.1.Value.1=a&Filter.1.Value.2=b&\
             Filter.10.Name=late&Filter.2.Name=tag%3Aname&Filter.2.Value.1=%C3%BC+*&Id.2=two&\
             Id.1=one&Id.11=eleven&Identity.1=other",
        );
        let parameters = query.parameters();

        assert_eq!(parameters.list("Id"), ["one", "two", "eleven"]);
        let names: Vec<_> = parameters
            .structures("Filter")
            .iter()
            .map(|filter| (filter.text("Name"), filter.list("Value")))
            .collect();
        assert_eq!(names[0], (Some("vpc-id"), vec!["a", "b"]));
        assert_eq!(names[1], (Some("tag:name"), vec!["ü *"]));
        assert_eq!(names[2], (Some("late"), vec![]));
    }

    #[test]
    fn a_fingerprint_is_of_what_is_asked_for() {
        let one = query("Action=X&A=1&B=2&Timestamp=now&DryRun=false");
        let same = query("B=2&A=1&Action=X&Timestamp=later");
        let other = query("B=3&A=1&Action=X");

        assert_eq!(one.fingerprint(), same.fingerprint());
        assert_ne!(one.fingerprint(), other.fingerprint());
    }

    #[test]
    fn parameters_that_nothing_reads_are_refused() {
        let query = query("Action=X&Version=1&Filter.1.Name=a&Colour=red");

        assert!(query.check_names(&["Filter", "Colour"]).is_ok());
        let error = query.check_names(&["Filter"]).unwrap_err();
        assert_eq!(error.code, "UnknownParameter");
    }
}
