//! Security groups and their rules.

use std::collections::BTreeMap;

use super::super::cloud::Cloud;
use super::super::errors::Ec2Error;
use super::super::filters::{Described, Field, Filters};
use super::super::ids::{GroupId, ResourceId, RuleId, VpcId};
use super::super::pages::Page;
use super::super::query::Parameters;
use super::super::security_groups::{Direction, GroupRule, Peer, RuleSpec, SecurityGroup, Traffic};
use super::super::tags::Tags;
use super::super::xml::Xml;
use super::{Action, Call, done, many, one, tags_only_for, write_tags};

const AUTHORIZE: &[&str] = &[
    "GroupId",
    "GroupName",
    "IpPermissions",
    "IpProtocol",
    "FromPort",
    "ToPort",
    "CidrIp",
    "TagSpecification",
];
const REVOKE: &[&str] = &[
    "GroupId",
    "GroupName",
    "IpPermissions",
    "IpProtocol",
    "FromPort",
    "ToPort",
    "CidrIp",
    "SecurityGroupRuleId",
];

pub(super) const ACTIONS: &[Action] = &[
    Action {
        name: "CreateSecurityGroup",
        parameters: &["GroupName", "GroupDescription", "VpcId", "TagSpecification"],
        run: create,
    },
    Action {
        name: "DeleteSecurityGroup",
        parameters: &["GroupId", "GroupName"],
        run: delete,
    },
    Action {
        name: "DescribeSecurityGroups",
        parameters: &["GroupId", "GroupName", "Filter", "MaxResults", "NextToken"],
        run: describe_groups,
    },
    Action {
        name: "DescribeSecurityGroupRules",
        parameters: &["SecurityGroupRuleId", "Filter", "MaxResults", "NextToken"],
        run: describe_rules,
    },
    Action {
        name: "AuthorizeSecurityGroupIngress",
        parameters: AUTHORIZE,
        run: |call| authorize(call, Direction::Ingress),
    },
    Action {
        name: "AuthorizeSecurityGroupEgress",
        parameters: AUTHORIZE,
        run: |call| authorize(call, Direction::Egress),
    },
    Action {
        name: "RevokeSecurityGroupIngress",
        parameters: REVOKE,
        run: |call| revoke(call, Direction::Ingress),
    },
    Action {
        name: "RevokeSecurityGroupEgress",
        parameters: REVOKE,
        run: |call| revoke(call, Direction::Egress),
    },
];

fn create(call: &mut Call<'_>) -> Result<Xml, Ec2Error> {
    let parameters = call.parameters();
    let name = parameters.required("GroupName")?;
    let description = parameters.required("GroupDescription")?;
    if parameters.text("VpcId").is_none() {
        return Err(no_default_vpc());
    }
    let vpc: VpcId = parameters.id("VpcId")?;
    let tags = tags_only_for(&parameters, "security-group")?;
    let id = call.cloud.create_group(&vpc, name, description, tags)?;
    let group = call.cloud.group(&id)?;
    let mut xml = done();
    xml.text("groupId", &id);
    write_tags(&mut xml, &group.tags);
    xml.text(
        "securityGroupArn",
        call.cloud.arn("security-group", id.as_str()),
    );
    Ok(xml)
}

pub(super) fn no_default_vpc() -> Ec2Error {
    Ec2Error::new("VPCIdNotSpecified", "No default VPC for this user")
}

fn the_group(parameters: &Parameters<'_>) -> Result<GroupId, Ec2Error> {
    if parameters.text("GroupId").is_none() && parameters.text("GroupName").is_some() {
        // A name alone means a group of the default VPC, and there is none.
        return Err(no_default_vpc());
    }
    parameters.id("GroupId")
}

fn delete(call: &mut Call<'_>) -> Result<Xml, Ec2Error> {
    let id = the_group(&call.parameters())?;
    call.cloud.delete_group(&id)?;
    let mut xml = done();
    xml.text("groupId", id);
    Ok(xml)
}

fn authorize(call: &mut Call<'_>, direction: Direction) -> Result<Xml, Ec2Error> {
    let parameters = call.parameters();
    let group = the_group(&parameters)?;
    let tags = tags_only_for(&parameters, "security-group-rule")?;
    let specs = read_rules(&parameters)?;
    let ids = call.cloud.authorize(&group, direction, specs, &tags)?;
    let rules = ids.iter().filter_map(|id| call.cloud.group_rules.get(id));
    let mut xml = done();
    xml.items("securityGroupRuleSet", rules, |xml, rule| {
        write_rule(xml, call.cloud, rule);
    });
    Ok(xml)
}

fn revoke(call: &mut Call<'_>, direction: Direction) -> Result<Xml, Ec2Error> {
    let parameters = call.parameters();
    let group = the_group(&parameters)?;
    let ids: Vec<RuleId> = parameters.ids("SecurityGroupRuleId")?;
    let revoked = if ids.is_empty() {
        let specs = read_rules(&parameters)?;
        call.cloud.revoke_matching(&group, direction, &specs)?
    } else {
        call.cloud.revoke_by_id(&group, direction, &ids)?
    };
    let mut xml = done();
    xml.items("revokedSecurityGroupRuleSet", &revoked, |xml, rule| {
        xml.text("securityGroupRuleId", &rule.id);
        xml.text("groupId", &rule.group_id);
        xml.text("isEgress", rule.direction == Direction::Egress);
        write_traffic(xml, rule);
        match &rule.peer {
            Peer::Ipv4(block) => xml.text("cidrIpv4", block),
            Peer::Ipv6(block) => xml.text("cidrIpv6", block),
            Peer::Group(id) => xml.text("referencedGroupId", id),
            Peer::PrefixList(id) => xml.text("prefixListId", id),
        }
        xml.optional("description", rule.description.as_ref());
    });
    Ok(xml)
}

/// Rules from `IpPermissions`, or from the older parameters for a single one.
fn read_rules(parameters: &Parameters<'_>) -> Result<Vec<RuleSpec>, Ec2Error> {
    let mut specs = Vec::new();
    for permission in parameters.structures("IpPermissions") {
        let traffic = read_traffic(&permission)?;
        let mut add = |peer, from: &Parameters<'_>| {
            specs.push(RuleSpec {
                traffic: traffic.clone(),
                peer,
                description: from.owned("Description"),
            });
        };
        for range in permission.structures("IpRanges") {
            add(Peer::Ipv4(read_block(&range, "CidrIp")?), &range);
        }
        for range in permission.structures("Ipv6Ranges") {
            add(Peer::Ipv6(read_block(&range, "CidrIpv6")?), &range);
        }
        for pair in permission.structures("Groups") {
            add(
                Peer::Group(GroupId::parse(pair.required("GroupId")?)?),
                &pair,
            );
        }
        for list in permission.structures("PrefixListIds") {
            let id = list.required("PrefixListId")?.to_owned();
            add(Peer::PrefixList(id), &list);
        }
    }
    if parameters.text("CidrIp").is_some() {
        specs.push(RuleSpec {
            traffic: read_traffic(parameters)?,
            peer: Peer::Ipv4(read_block(parameters, "CidrIp")?),
            description: None,
        });
    }
    if specs.is_empty() {
        return Err(Ec2Error::missing_parameter("ipPermissions"));
    }
    Ok(specs)
}

fn read_traffic(parameters: &Parameters<'_>) -> Result<Traffic, Ec2Error> {
    Traffic::new(
        parameters.required("IpProtocol")?,
        parameters.number("FromPort")?,
        parameters.number("ToPort")?,
    )
}

fn read_block<B: std::str::FromStr>(
    parameters: &Parameters<'_>,
    name: &str,
) -> Result<B, Ec2Error> {
    let text = parameters.required(name)?;
    text.parse().map_err(|_| {
        let message = format!("CIDR block {text} is malformed");
        Ec2Error::invalid_value(message)
    })
}

fn describe_groups(call: &mut Call<'_>) -> Result<Xml, Ec2Error> {
    let parameters = call.parameters();
    let page = Page::read(&parameters, "DescribeSecurityGroups", "GroupId", 1_000)?;
    let filters: Filters<SecurityGroup> = Filters::read(&parameters)?;
    let ids: Vec<GroupId> = parameters.ids("GroupId")?;
    for id in &ids {
        call.cloud.group(id)?;
    }
    if let Some(name) = parameters.list("GroupName").first() {
        // EC2 looks for names in the default VPC, and there is none.
        let message = format!("The security group '{name}' does not exist in default VPC");
        return Err(Ec2Error::new("InvalidGroup.NotFound", message));
    }
    let found = call.cloud.groups.values().filter(|group| {
        (ids.is_empty() || ids.contains(&group.id)) && filters.pass(group, call.cloud, call.now)
    });
    let (groups, next) = page.take(found, |group| group.id.to_string());
    let mut xml = Xml::new();
    xml.items("securityGroupInfo", groups, |xml, group| {
        write_group(xml, call.cloud, group);
    });
    xml.optional("nextToken", next);
    Ok(xml)
}

fn describe_rules(call: &mut Call<'_>) -> Result<Xml, Ec2Error> {
    let parameters = call.parameters();
    let name = "DescribeSecurityGroupRules";
    let page = Page::read(&parameters, name, "SecurityGroupRuleId", 1_000)?;
    let filters: Filters<GroupRule> = Filters::read(&parameters)?;
    let ids: Vec<RuleId> = parameters.ids("SecurityGroupRuleId")?;
    for id in &ids {
        if !call.cloud.group_rules.contains_key(id) {
            return Err(id.not_found());
        }
    }
    let found = call.cloud.group_rules.values().filter(|rule| {
        (ids.is_empty() || ids.contains(&rule.id)) && filters.pass(rule, call.cloud, call.now)
    });
    let (rules, next) = page.take(found, |rule| rule.id.to_string());
    let mut xml = Xml::new();
    xml.items("securityGroupRuleSet", rules, |xml, rule| {
        write_rule(xml, call.cloud, rule);
    });
    xml.optional("nextToken", next);
    Ok(xml)
}

fn write_group(xml: &mut Xml, cloud: &Cloud, group: &SecurityGroup) {
    xml.text("ownerId", &cloud.account);
    xml.text("groupId", &group.id);
    xml.text("groupName", &group.name);
    xml.text("groupDescription", &group.description);
    xml.text("vpcId", &group.vpc_id);
    xml.text(
        "securityGroupArn",
        cloud.arn("security-group", group.id.as_str()),
    );
    for (name, direction) in [
        ("ipPermissions", Direction::Ingress),
        ("ipPermissionsEgress", Direction::Egress),
    ] {
        // EC2 shows the rules of the same traffic as one permission.
        let mut permissions: BTreeMap<&Traffic, Vec<&GroupRule>> = BTreeMap::new();
        for rule in cloud.rules_of(&group.id) {
            if rule.direction == direction {
                permissions.entry(&rule.traffic).or_default().push(rule);
            }
        }
        xml.items(name, permissions, |xml, (traffic, rules)| {
            write_permission(xml, cloud, traffic, &rules);
        });
    }
    write_tags(xml, &group.tags);
}

fn write_permission(xml: &mut Xml, cloud: &Cloud, traffic: &Traffic, rules: &[&GroupRule]) {
    xml.text("ipProtocol", &traffic.protocol);
    xml.optional("fromPort", traffic.from_port);
    xml.optional("toPort", traffic.to_port);
    let mut list = |name: &str, element: &str, pick: fn(&Peer) -> Option<String>| {
        let picked = rules
            .iter()
            .filter_map(|rule| Some((pick(&rule.peer)?, rule)));
        xml.items(name, picked, |xml, (value, rule)| {
            if element == "groupId" {
                xml.text("userId", &cloud.account);
            }
            xml.text(element, value);
            xml.optional("description", rule.description.as_ref());
        });
    };
    list("groups", "groupId", |peer| match peer {
        Peer::Group(id) => Some(id.to_string()),
        _ => None,
    });
    list("ipRanges", "cidrIp", |peer| match peer {
        Peer::Ipv4(block) => Some(block.to_string()),
        _ => None,
    });
    list("ipv6Ranges", "cidrIpv6", |peer| match peer {
        Peer::Ipv6(block) => Some(block.to_string()),
        _ => None,
    });
    list("prefixListIds", "prefixListId", |peer| match peer {
        Peer::PrefixList(id) => Some(id.clone()),
        _ => None,
    });
}

/// In the rules' own list, and there only, EC2 writes absent ports as -1.
fn write_traffic(xml: &mut Xml, rule: &GroupRule) {
    xml.text("ipProtocol", &rule.traffic.protocol);
    xml.text("fromPort", rule.traffic.from_port.unwrap_or(-1));
    xml.text("toPort", rule.traffic.to_port.unwrap_or(-1));
}

fn write_rule(xml: &mut Xml, cloud: &Cloud, rule: &GroupRule) {
    xml.text("securityGroupRuleId", &rule.id);
    let arn = cloud.arn("security-group-rule", rule.id.as_str());
    xml.text("securityGroupRuleArn", arn);
    xml.text("groupId", &rule.group_id);
    xml.text("groupOwnerId", &cloud.account);
    xml.text("isEgress", rule.direction == Direction::Egress);
    write_traffic(xml, rule);
    match &rule.peer {
        Peer::Ipv4(block) => xml.text("cidrIpv4", block),
        Peer::Ipv6(block) => xml.text("cidrIpv6", block),
        Peer::PrefixList(id) => xml.text("prefixListId", id),
        Peer::Group(id) => xml.group("referencedGroupInfo", |xml| {
            xml.text("groupId", id);
            xml.text("userId", &cloud.account);
        }),
    }
    xml.optional("description", rule.description.as_ref());
    write_tags(xml, &rule.tags);
}

impl Described for SecurityGroup {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "group-id" => |group, _, _| one(&group.id),
            "group-name" => |group, _, _| one(&group.name),
            "description" => |group, _, _| one(&group.description),
            "vpc-id" => |group, _, _| one(&group.vpc_id),
            "owner-id" => |_, cloud, _| one(&cloud.account),
            "ip-permission.cidr" => |group, cloud, _| peers(group, cloud, Direction::Ingress, v4),
            "egress.ip-permission.cidr" => {
                |group, cloud, _| peers(group, cloud, Direction::Egress, v4)
            }
            "ip-permission.group-id" => {
                |group, cloud, _| peers(group, cloud, Direction::Ingress, peer_group)
            }
            "egress.ip-permission.group-id" => {
                |group, cloud, _| peers(group, cloud, Direction::Egress, peer_group)
            }
            "ip-permission.protocol" => |group, cloud, _| {
                let rules = cloud.rules_of(&group.id);
                let rules = rules.filter(|rule| rule.direction == Direction::Ingress);
                many(rules.map(|rule| &rule.traffic.protocol))
            },
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&Tags> {
        Some(&self.tags)
    }
}

fn peers(
    group: &SecurityGroup,
    cloud: &Cloud,
    direction: Direction,
    pick: fn(&Peer) -> Option<String>,
) -> Vec<String> {
    let rules = cloud.rules_of(&group.id);
    let rules = rules.filter(|rule| rule.direction == direction);
    rules.filter_map(|rule| pick(&rule.peer)).collect()
}

fn v4(peer: &Peer) -> Option<String> {
    match peer {
        Peer::Ipv4(block) => Some(block.to_string()),
        _ => None,
    }
}

fn peer_group(peer: &Peer) -> Option<String> {
    match peer {
        Peer::Group(id) => Some(id.to_string()),
        _ => None,
    }
}

impl Described for GroupRule {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "group-id" => |rule, _, _| one(&rule.group_id),
            "security-group-rule-id" => |rule, _, _| one(&rule.id),
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&Tags> {
        Some(&self.tags)
    }
}
