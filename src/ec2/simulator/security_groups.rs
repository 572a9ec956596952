//! Security groups and their rules.

use serde::{Deserialize, Serialize};

use super::addresses::{Ipv4Block, Ipv6Block};
use super::cloud::Cloud;
use super::errors::Ec2Error;
use super::ids::{GroupId, RuleId, VpcId};
use super::tags::Tags;

/// A security group.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct SecurityGroup {
    pub(super) id: GroupId,
    pub(super) name: String,
    pub(super) description: String,
    pub(super) vpc_id: VpcId,
    pub(super) tags: Tags,
}

/// One rule of a group, with one peer.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct GroupRule {
    pub(super) id: RuleId,
    pub(super) group_id: GroupId,
    pub(super) direction: Direction,
    pub(super) traffic: Traffic,
    pub(super) peer: Peer,
    pub(super) description: Option<String>,
    pub(super) tags: Tags,
}

/// Which way traffic goes, seen from the interface.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Direction {
    Ingress,
    Egress,
}

/// A protocol and ports; for ICMP type and code.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub(super) struct Traffic {
    /// `tcp`, `udp`, `icmp`, `icmpv6`, a number, or `-1` for all.
    pub(super) protocol: String,
    pub(super) from_port: Option<i32>,
    pub(super) to_port: Option<i32>,
}

/// Whom a rule lets through.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Peer {
    Ipv4(Ipv4Block),
    Ipv6(Ipv6Block),
    Group(GroupId),
    PrefixList(String),
}

/// A rule as a caller writes it.
pub(super) struct RuleSpec {
    pub(super) traffic: Traffic,
    pub(super) peer: Peer,
    pub(super) description: Option<String>,
}

impl Traffic {
    /// Checks what a caller sent, and writes the protocol as EC2 does.
    pub(super) fn new(
        protocol: &str,
        from_port: Option<i32>,
        to_port: Option<i32>,
    ) -> Result<Self, Ec2Error> {
        let protocol = match protocol.to_ascii_lowercase().as_str() {
            "-1" | "all" => "-1",
            "6" | "tcp" => "tcp",
            "17" | "udp" => "udp",
            "1" | "icmp" => "icmp",
            "58" | "icmpv6" => "icmpv6",
            other if other.parse::<u8>().is_ok() => other,
            other => {
                let message = format!("Invalid value '{other}' for IP protocol. Unknown protocol.");
                return Err(Ec2Error::invalid_value(message));
            }
        }
        .to_owned();
        let ports = (from_port, to_port);
        match protocol.as_str() {
            "tcp" | "udp" => match ports {
                (Some(from), Some(to)) if (0..=65_535).contains(&from) && from <= to => {
                    if to > 65_535 {
                        return Err(invalid_ports(&protocol, from, to));
                    }
                }
                (Some(from), Some(to)) => return Err(invalid_ports(&protocol, from, to)),
                _ => {
                    let message = format!(
                        "Invalid value 'Must specify both from and to ports with {}.' for \
                         portRange.",
                        protocol.to_uppercase()
                    );
                    return Err(Ec2Error::invalid_value(message));
                }
            },
            "icmp" | "icmpv6" => {}
            // EC2 ignores ports of protocols that have none.
            _ => {
                return Ok(Self {
                    protocol,
                    from_port: None,
                    to_port: None,
                });
            }
        }
        Ok(Self {
            protocol,
            from_port,
            to_port,
        })
    }
}

fn invalid_ports(protocol: &str, from: i32, to: i32) -> Ec2Error {
    let protocol = protocol.to_uppercase();
    Ec2Error::invalid_value(format!("Invalid {protocol} port range: {from}-{to}"))
}

impl Peer {
    fn describe(&self) -> String {
        match self {
            Self::Ipv4(block) => block.to_string(),
            Self::Ipv6(block) => block.to_string(),
            Self::Group(id) => id.to_string(),
            Self::PrefixList(id) => id.clone(),
        }
    }
}

impl Cloud {
    pub(super) fn group(&self, id: &GroupId) -> Result<&SecurityGroup, Ec2Error> {
        let group = self.groups.get(id);
        group.ok_or_else(|| Ec2Error::group_not_found(id))
    }

    pub(super) fn group_named(&self, vpc: &VpcId, name: &str) -> Option<&SecurityGroup> {
        self.groups
            .values()
            .find(|group| group.vpc_id == *vpc && group.name == name)
    }

    pub(super) fn create_group(
        &mut self,
        vpc_id: &VpcId,
        name: &str,
        description: &str,
        tags: Tags,
    ) -> Result<GroupId, Ec2Error> {
        self.vpc(vpc_id)?;
        if name.to_ascii_lowercase().starts_with("sg-") || name.len() > 255 {
            let message = format!(
                "Value ({name}) for parameter GroupName is invalid. It can't begin with sg- \
                 and has at most 255 characters."
            );
            return Err(Ec2Error::invalid_value(message));
        }
        if name == "default" {
            let message = "Cannot use reserved security group name: default";
            return Err(Ec2Error::invalid_value(message));
        }
        if self.group_named(vpc_id, name).is_some() {
            let message = format!("The security group '{name}' already exists for VPC '{vpc_id}'");
            return Err(Ec2Error::new("InvalidGroup.Duplicate", message));
        }
        let of_vpc = |group: &&SecurityGroup| group.vpc_id == *vpc_id;
        let number = self.groups.values().filter(of_vpc).count();
        if number >= self.behaviour.quotas.security_groups_per_vpc {
            let message = "The maximum number of security groups for this VPC has been reached.";
            return Err(Ec2Error::new("SecurityGroupLimitExceeded", message));
        }
        let id = self.insert_group(vpc_id, name, description);
        if let Some(group) = self.groups.get_mut(&id) {
            group.tags = tags;
        }
        Ok(id)
    }

    /// A group that lets everything out, as new ones do.
    pub(super) fn insert_group(&mut self, vpc: &VpcId, name: &str, description: &str) -> GroupId {
        let id: GroupId = self.ids.id();
        let group = SecurityGroup {
            id: id.clone(),
            name: name.to_owned(),
            description: description.to_owned(),
            vpc_id: vpc.clone(),
            tags: Tags::new(),
        };
        self.groups.insert(id.clone(), group);
        let everything = Traffic {
            protocol: "-1".to_owned(),
            from_port: None,
            to_port: None,
        };
        let everywhere = Peer::Ipv4(Ipv4Block::around([0, 0, 0, 0].into(), 0));
        let out = RuleSpec {
            traffic: everything.clone(),
            peer: everywhere,
            description: None,
        };
        self.insert_rule(&id, Direction::Egress, out, Tags::new());
        if name == "default" {
            let from_itself = RuleSpec {
                traffic: everything,
                peer: Peer::Group(id.clone()),
                description: None,
            };
            self.insert_rule(&id, Direction::Ingress, from_itself, Tags::new());
        }
        id
    }

    fn insert_rule(
        &mut self,
        group: &GroupId,
        direction: Direction,
        spec: RuleSpec,
        tags: Tags,
    ) -> RuleId {
        let rule = GroupRule {
            id: self.ids.id(),
            group_id: group.clone(),
            direction,
            traffic: spec.traffic,
            peer: spec.peer,
            description: spec.description,
            tags,
        };
        self.index.add_rule(&rule);
        let id = rule.id.clone();
        self.group_rules.insert(id.clone(), rule);
        id
    }

    pub(super) fn delete_group(&mut self, id: &GroupId) -> Result<(), Ec2Error> {
        let group = self.group(id)?;
        if group.name == "default" {
            let message = format!(
                "the specified group: \"{id}\" name: \"default\" cannot be deleted by a user"
            );
            return Err(Ec2Error::new("CannotDelete", message));
        }
        let named_elsewhere = self
            .group_rules
            .values()
            .any(|rule| rule.peer == Peer::Group(id.clone()) && rule.group_id != *id);
        if named_elsewhere || self.index.by_group.contains_key(id) {
            let message = format!("resource {id} has a dependent object");
            return Err(Ec2Error::new("DependencyViolation", message));
        }
        for rule in self.index.rules_of_group.remove(id).unwrap_or_default() {
            self.group_rules.remove(&rule);
        }
        self.groups.remove(id);
        Ok(())
    }

    pub(super) fn rules_of(&self, id: &GroupId) -> impl Iterator<Item = &GroupRule> {
        let ids = self.index.rules_of_group.get(id).into_iter().flatten();
        ids.filter_map(|rule| self.group_rules.get(rule))
    }

    /// Adds all the rules, or none.
    pub(super) fn authorize(
        &mut self,
        id: &GroupId,
        direction: Direction,
        specs: Vec<RuleSpec>,
        tags: &Tags,
    ) -> Result<Vec<RuleId>, Ec2Error> {
        let vpc = self.group(id)?.vpc_id.clone();
        for (position, spec) in specs.iter().enumerate() {
            if let Peer::Group(peer) = &spec.peer
                && self.group(peer)?.vpc_id != vpc
            {
                return Err(Ec2Error::different_networks());
            }
            let twice = specs[..position].iter().any(|other| is_same(other, spec));
            if twice || self.find_rule(id, direction, spec).is_some() {
                let message = format!(
                    "the specified rule \"peer: {}, {}, ALLOW\" already exists",
                    spec.peer.describe(),
                    describe(&spec.traffic),
                );
                return Err(Ec2Error::new("InvalidPermission.Duplicate", message));
            }
        }
        let same_way = |rule: &&GroupRule| rule.direction == direction;
        let before = self.rules_of(id).filter(same_way).count();
        if before + specs.len() > self.behaviour.quotas.rules_per_security_group {
            let message = "The maximum number of rules per security group has been reached.";
            return Err(Ec2Error::new("RulesPerSecurityGroupLimitExceeded", message));
        }
        let insert = |spec| self.insert_rule(id, direction, spec, tags.clone());
        Ok(specs.into_iter().map(insert).collect())
    }

    /// Removes rules that are written out; all of them, or none.
    pub(super) fn revoke_matching(
        &mut self,
        id: &GroupId,
        direction: Direction,
        specs: &[RuleSpec],
    ) -> Result<Vec<GroupRule>, Ec2Error> {
        self.group(id)?;
        let find = |spec| {
            self.find_rule(id, direction, spec).ok_or_else(|| {
                let message = "The specified rule does not exist in this security group.";
                Ec2Error::new("InvalidPermission.NotFound", message)
            })
        };
        let rules: Vec<RuleId> = specs.iter().map(find).collect::<Result<_, _>>()?;
        Ok(self.remove_rules(&rules))
    }

    /// Removes rules by their ids; all of them, or none.
    pub(super) fn revoke_by_id(
        &mut self,
        id: &GroupId,
        direction: Direction,
        rules: &[RuleId],
    ) -> Result<Vec<GroupRule>, Ec2Error> {
        self.group(id)?;
        for rule in rules {
            let found = self.group_rules.get(rule);
            let fits = |one: &&GroupRule| one.group_id == *id && one.direction == direction;
            found.filter(fits).ok_or_else(|| rule.not_found())?;
        }
        Ok(self.remove_rules(rules))
    }

    fn remove_rules(&mut self, rules: &[RuleId]) -> Vec<GroupRule> {
        let take = |id: &RuleId| {
            let rule = self.group_rules.remove(id)?;
            self.index.remove_rule(&rule);
            Some(rule)
        };
        rules.iter().filter_map(take).collect()
    }

    fn find_rule(&self, id: &GroupId, direction: Direction, spec: &RuleSpec) -> Option<RuleId> {
        self.rules_of(id)
            .find(|rule| {
                rule.direction == direction
                    && rule.traffic == spec.traffic
                    && rule.peer == spec.peer
            })
            .map(|rule| rule.id.clone())
    }
}

fn is_same(one: &RuleSpec, other: &RuleSpec) -> bool {
    one.traffic == other.traffic && one.peer == other.peer
}

fn describe(traffic: &Traffic) -> String {
    let protocol = match traffic.protocol.as_str() {
        "-1" => "ALL".to_owned(),
        other => other.to_uppercase(),
    };
    match (traffic.from_port, traffic.to_port) {
        (Some(from), Some(to)) => format!("{protocol}, from port: {from}, to port: {to}"),
        _ => protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_and_ports_are_read_as_ec2_reads_them() {
        for (protocol, from, to, read) in [
            ("6", Some(80), Some(80), Some(("tcp", Some(80)))),
            ("UDP", Some(53), Some(53), Some(("udp", Some(53)))),
            ("-1", Some(1), Some(2), Some(("-1", None))),
            ("icmp", Some(-1), Some(-1), Some(("icmp", Some(-1)))),
            ("50", None, None, Some(("50", None))),
            ("tcp", None, None, None),
            ("tcp", Some(90), Some(80), None),
            ("tcp", Some(-1), Some(80), None),
            ("tcp", Some(1), Some(65_536), None),
            ("quic", Some(1), Some(1), None),
        ] {
            let traffic = Traffic::new(protocol, from, to).ok();
            let found = traffic
                .as_ref()
                .map(|one| (one.protocol.as_str(), one.from_port));
            assert_eq!(found, read, "{protocol} {from:?} {to:?}");
        }
    }
}
