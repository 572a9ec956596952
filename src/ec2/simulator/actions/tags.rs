//! Tags.

use super::super::errors::Ec2Error;
use super::super::filters::{Described, Field, Filters};
use super::super::pages::Page;
use super::super::query::Parameters;
use super::super::tags::{TagLine, TagPattern, Tags, collect};
use super::super::xml::Xml;
use super::{Action, Call, done, many, one, read_tags};

pub(super) const ACTIONS: &[Action] = &[
    Action {
        name: "CreateTags",
        parameters: &["ResourceId", "Tag"],
        run: create,
    },
    Action {
        name: "DeleteTags",
        parameters: &["ResourceId", "Tag"],
        run: delete,
    },
    Action {
        name: "DescribeTags",
        parameters: &["Filter", "MaxResults", "NextToken"],
        run: describe,
    },
];

fn create(call: &mut Call<'_>) -> Result<Xml, Ec2Error> {
    let parameters = call.parameters();
    let resources = read_resources(&parameters)?;
    let tags = collect(read_tags(&parameters)?)?;
    if tags.is_empty() {
        return Err(Ec2Error::missing_parameter("tagSet"));
    }
    call.cloud.create_tags(&resources, &tags, call.now)?;
    Ok(done())
}

fn delete(call: &mut Call<'_>) -> Result<Xml, Ec2Error> {
    let parameters = call.parameters();
    let resources = read_resources(&parameters)?;
    let mut patterns = Vec::new();
    for tag in parameters.structures("Tag") {
        patterns.push(TagPattern {
            key: tag.required("Key")?.to_owned(),
            value: tag.owned("Value"),
        });
    }
    call.cloud.delete_tags(&resources, &patterns, call.now)?;
    Ok(done())
}

fn read_resources(parameters: &Parameters<'_>) -> Result<Vec<String>, Ec2Error> {
    let resources: Vec<String> = parameters
        .list("ResourceId")
        .into_iter()
        .map(str::to_owned)
        .collect();
    if resources.is_empty() {
        return Err(Ec2Error::missing_parameter("resourceIdSet"));
    }
    Ok(resources)
}

/// A line that can be filtered after the cloud is let go.
struct OwnedLine {
    resource_id: String,
    resource_type: &'static str,
    /// One tag; as a map, so that the filter `tag:KEY` finds it.
    tag: Tags,
}

impl From<TagLine<'_>> for OwnedLine {
    fn from(line: TagLine<'_>) -> Self {
        Self {
            resource_id: line.resource_id.to_owned(),
            resource_type: line.resource_type,
            tag: Tags::from([(line.key.to_owned(), line.value.to_owned())]),
        }
    }
}

fn describe(call: &mut Call<'_>) -> Result<Xml, Ec2Error> {
    let parameters = call.parameters();
    let page = Page::read(&parameters, "DescribeTags", "", 1_000)?;
    let filters: Filters<OwnedLine> = Filters::read(&parameters)?;
    let lines = call.cloud.tag_lines(call.now).map(OwnedLine::from);
    let mut found: Vec<OwnedLine> = lines
        .filter(|line| filters.pass(line, call.cloud, call.now))
        .collect();
    found.sort_by_cached_key(sort_key);
    let (lines, next) = page.take(found, sort_key);
    let mut xml = Xml::new();
    xml.items("tagSet", lines, |xml, line| {
        xml.text("resourceId", line.resource_id);
        xml.text("resourceType", line.resource_type);
        for (key, value) in &line.tag {
            xml.text("key", key);
            xml.text("value", value);
        }
    });
    xml.optional("nextToken", next);
    Ok(xml)
}

fn sort_key(line: &OwnedLine) -> String {
    let key = line.tag.keys().next().map_or("", String::as_str);
    format!("{}\n{key}", line.resource_id)
}

impl Described for OwnedLine {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "key" => |line, _, _| many(line.tag.keys()),
            "value" => |line, _, _| many(line.tag.values()),
            "resource-id" => |line, _, _| one(&line.resource_id),
            "resource-type" => |line, _, _| one(line.resource_type),
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&Tags> {
        Some(&self.tag)
    }
}
