//! Tags of all kinds of resources.

use std::collections::BTreeMap;

use super::cloud::Cloud;
use super::errors::Ec2Error;
use super::ids::{GroupId, InstanceId, InterfaceId, RouteTableId, RuleId, SubnetId, VpcId};
use super::timestamp::Timestamp;

/// Tags by key.
pub(super) type Tags = BTreeMap<String, String>;

const MOST_TAGS: usize = 50;
const LONGEST_KEY: usize = 128;
const LONGEST_VALUE: usize = 256;

/// A tag to be removed; without a value whatever its value is.
pub(super) struct TagPattern {
    pub(super) key: String,
    pub(super) value: Option<String>,
}

/// One line of DescribeTags.
pub(super) struct TagLine<'a> {
    pub(super) resource_id: &'a str,
    pub(super) resource_type: &'static str,
    pub(super) key: &'a str,
    pub(super) value: &'a str,
}

/// Puts tags together that one call gives to one resource.
pub(super) fn collect(tags: impl IntoIterator<Item = (String, String)>) -> Result<Tags, Ec2Error> {
    let mut collected = Tags::new();
    for (key, value) in tags {
        check(&key, &value)?;
        if let Some(before) = collected.insert(key.clone(), value.clone())
            && before != value
        {
            let message = format!("Duplicate tag key '{key}' specified.");
            return Err(Ec2Error::invalid_value(message));
        }
    }
    if collected.len() > MOST_TAGS {
        return Err(too_many());
    }
    Ok(collected)
}

fn check(key: &str, value: &str) -> Result<(), Ec2Error> {
    if key.is_empty() || key.chars().count() > LONGEST_KEY {
        let message = format!("Tag key must be between 1 and {LONGEST_KEY} characters: '{key}'");
        return Err(Ec2Error::invalid_value(message));
    }
    if value.chars().count() > LONGEST_VALUE {
        let message = format!("Tag value exceeds the maximum length of {LONGEST_VALUE} characters");
        return Err(Ec2Error::invalid_value(message));
    }
    if key.to_ascii_lowercase().starts_with("aws:") {
        let message = "Tag keys starting with 'aws:' are reserved for internal use";
        return Err(Ec2Error::invalid_value(message));
    }
    Ok(())
}

fn too_many() -> Ec2Error {
    let message = format!("The maximum number of tags per resource is {MOST_TAGS}.");
    Ec2Error::new("TagLimitExceeded", message)
}

impl Cloud {
    /// Adds or replaces tags of all the resources, or of none.
    pub(super) fn create_tags(
        &mut self,
        resources: &[String],
        tags: &Tags,
        now: Timestamp,
    ) -> Result<(), Ec2Error> {
        for id in resources {
            let mut merged = self.tags_of(id, now)?.clone();
            merged.extend(tags.clone());
            if merged.len() > MOST_TAGS {
                return Err(too_many());
            }
        }
        for id in resources {
            self.change_tags(id, |own| own.extend(tags.clone()));
        }
        Ok(())
    }

    /// Removes tags; all of them when no pattern is given. What is not there is no error.
    pub(super) fn delete_tags(
        &mut self,
        resources: &[String],
        patterns: &[TagPattern],
        now: Timestamp,
    ) -> Result<(), Ec2Error> {
        for id in resources {
            self.tags_of(id, now)?;
        }
        let goes = |key: &str, value: &str| {
            let hit = |pattern: &TagPattern| {
                pattern.key == key && pattern.value.as_deref().is_none_or(|one| one == value)
            };
            patterns.is_empty() || patterns.iter().any(hit)
        };
        for id in resources {
            self.change_tags(id, |own| own.retain(|key, value| !goes(key, value)));
        }
        Ok(())
    }

    fn tags_of(&self, id: &str, now: Timestamp) -> Result<&Tags, Ec2Error> {
        let found = match prefix(id) {
            "eni" => {
                let interface = self.interfaces.get(id);
                interface
                    .filter(|one| self.is_visible(one, now))
                    .map(|one| &one.tags)
            }
            "i" => self.instances.get(id).map(|one| &one.tags),
            "sg" => self.groups.get(id).map(|one| &one.tags),
            "sgr" => self.group_rules.get(id).map(|one| &one.tags),
            "subnet" => self.subnets.get(id).map(|one| &one.tags),
            "vpc" => self.vpcs.get(id).map(|one| &one.tags),
            "rtb" => self.route_tables.get(id).map(|one| &one.tags),
            _ => {
                let message = format!("The ID '{id}' is not valid");
                return Err(Ec2Error::new("InvalidID", message));
            }
        };
        found.ok_or_else(|| {
            let id = id.to_owned();
            match prefix(&id) {
                "eni" => InterfaceId::from(id).not_found(),
                "i" => InstanceId::from(id).not_found(),
                "sg" => Ec2Error::group_not_found(&GroupId::from(id)),
                "sgr" => RuleId::from(id).not_found(),
                "subnet" => SubnetId::from(id).not_found(),
                "vpc" => VpcId::from(id).not_found(),
                _ => RouteTableId::from(id).not_found(),
            }
        })
    }

    fn change_tags(&mut self, id: &str, change: impl FnOnce(&mut Tags)) {
        let tags = match prefix(id) {
            "eni" => {
                let id = InterfaceId::from(id.to_owned());
                self.change_interface(&id, |interface| change(&mut interface.tags));
                return;
            }
            "i" => self.instances.get_mut(id).map(|one| &mut one.tags),
            "sg" => self.groups.get_mut(id).map(|one| &mut one.tags),
            "sgr" => self.group_rules.get_mut(id).map(|one| &mut one.tags),
            "subnet" => self.subnets.get_mut(id).map(|one| &mut one.tags),
            "vpc" => self.vpcs.get_mut(id).map(|one| &mut one.tags),
            _ => self.route_tables.get_mut(id).map(|one| &mut one.tags),
        };
        if let Some(tags) = tags {
            change(tags);
        }
    }

    /// Every tag of every resource that can be seen.
    pub(super) fn tag_lines(&self, now: Timestamp) -> impl Iterator<Item = TagLine<'_>> {
        let vpcs = self
            .vpcs
            .values()
            .map(|one| (one.id.as_str(), "vpc", &one.tags));
        let subnets = self.subnets.values();
        let subnets = subnets.map(|one| (one.id.as_str(), "subnet", &one.tags));
        let tables = self.route_tables.values();
        let tables = tables.map(|one| (one.id.as_str(), "route-table", &one.tags));
        let groups = self.groups.values();
        let groups = groups.map(|one| (one.id.as_str(), "security-group", &one.tags));
        let rules = self.group_rules.values();
        let rules = rules.map(|one| (one.id.as_str(), "security-group-rule", &one.tags));
        let instances = self.instances.values();
        let instances = instances.map(|one| (one.id.as_str(), "instance", &one.tags));
        let interfaces = self.interfaces.values();
        let interfaces = interfaces
            .filter(move |one| self.is_visible(one, now))
            .map(|one| (one.id.as_str(), "network-interface", &one.tags));
        vpcs.chain(subnets)
            .chain(tables)
            .chain(groups)
            .chain(rules)
            .chain(instances)
            .chain(interfaces)
            .flat_map(|(resource_id, resource_type, tags)| {
                tags.iter().map(move |(key, value)| TagLine {
                    resource_id,
                    resource_type,
                    key,
                    value,
                })
            })
    }
}

fn prefix(id: &str) -> &str {
    id.split_once('-').map_or("", |(prefix, _)| prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collected(tags: &[(&str, &str)]) -> Result<Tags, Ec2Error> {
        let owned = tags
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()));
        collect(owned)
    }

    #[test]
    fn tags_are_bound_as_in_ec2() {
        assert_eq!(collected(&[("a", "1"), ("b", "")]).unwrap().len(), 2);
        for tags in [
            &[("aws:mine", "1")][..],
            &[("AWS:mine", "1")],
            &[("", "1")],
            &[("a", "1"), ("a", "2")],
            &[(&"k".repeat(129), "1")],
            &[("a", &"v".repeat(257))],
        ] {
            let error = collected(tags).unwrap_err();
            assert_eq!(error.code, "InvalidParameterValue", "{tags:?}");
        }
        let many = (0..51).map(|number| (number.to_string(), String::new()));
        assert_eq!(collect(many).unwrap_err().code, "TagLimitExceeded");
    }
}
