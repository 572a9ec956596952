//! The actions: what each one reads from a call, and how its answer is written.
//!
//! No rules of EC2 here; they are in the cloud.

mod instances;
mod interfaces;
mod networks;
mod security_groups;
mod tags;
mod trunks;

use super::cloud::Cloud;
use super::errors::Ec2Error;
use super::query::{Parameters, Query};
use super::tags::{Tags, collect};
use super::timestamp::Timestamp;
use super::xml::Xml;

/// One action of the API.
pub(super) struct Action {
    pub(super) name: &'static str,
    /// The first parts of the parameters' names.
    pub(super) parameters: &'static [&'static str],
    pub(super) run: fn(&mut Call<'_>) -> Result<Xml, Ec2Error>,
}

/// One call of an action.
pub(super) struct Call<'a> {
    pub(super) cloud: &'a mut Cloud,
    pub(super) query: &'a Query,
    pub(super) now: Timestamp,
}

impl<'a> Call<'a> {
    fn parameters(&self) -> Parameters<'a> {
        self.query.parameters()
    }
}

/// The action of this name.
pub(super) fn find(name: &str) -> Option<&'static Action> {
    all().find(|action| action.name == name)
}

/// Every action that is simulated.
pub(super) fn all() -> impl Iterator<Item = &'static Action> {
    [
        networks::ACTIONS,
        security_groups::ACTIONS,
        instances::ACTIONS,
        interfaces::ACTIONS,
        trunks::ACTIONS,
        tags::ACTIONS,
    ]
    .into_iter()
    .flatten()
}

/// The tags that a call gives to what it makes, where that is a `resource`.
fn tags_for(parameters: &Parameters<'_>, resource: &str) -> Result<Tags, Ec2Error> {
    let mut tags = Vec::new();
    for specification in parameters.structures("TagSpecification") {
        if specification.required("ResourceType")? == resource {
            tags.extend(read_tags(&specification)?);
        }
    }
    collect(tags)
}

/// The same where nothing but a `resource` is made.
fn tags_only_for(parameters: &Parameters<'_>, resource: &str) -> Result<Tags, Ec2Error> {
    for specification in parameters.structures("TagSpecification") {
        let kind = specification.required("ResourceType")?;
        if kind != resource {
            let message = format!("'{kind}' is not a valid taggable resource type for this call.");
            return Err(Ec2Error::invalid_value(message));
        }
    }
    tags_for(parameters, resource)
}

fn read_tags(parameters: &Parameters<'_>) -> Result<Vec<(String, String)>, Ec2Error> {
    let mut tags = Vec::new();
    for tag in parameters.structures("Tag") {
        let value = tag.owned("Value").unwrap_or_default();
        tags.push((tag.required("Key")?.to_owned(), value));
    }
    Ok(tags)
}

fn write_tags(xml: &mut Xml, tags: &Tags) {
    xml.items("tagSet", tags, |xml, (key, value)| {
        xml.text("key", key);
        xml.text("value", value);
    });
}

/// `<return>true</return>`, which many actions answer.
fn done() -> Xml {
    let mut xml = Xml::new();
    xml.text("return", true);
    xml
}

/// One value of a field.
fn one(value: impl ToString) -> Vec<String> {
    vec![value.to_string()]
}

/// Values of a field that has several.
fn many<T: ToString>(values: impl IntoIterator<Item = T>) -> Vec<String> {
    values.into_iter().map(|value| value.to_string()).collect()
}
