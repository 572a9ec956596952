//! Network interfaces.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Bound;

use super::super::client_tokens::Made;
use super::super::cloud::Cloud;
use super::super::errors::Ec2Error;
use super::super::filters::{Described, Field, Filters};
use super::super::ids::{AttachmentId, GroupId, InterfaceId, SubnetId};
use super::super::interfaces::{Grantee, Interface, InterfaceKind, NewInterface, Place};
use super::super::pages::Page;
use super::super::query::Parameters;
use super::super::tags::Tags;
use super::super::timestamp::Timestamp;
use super::super::xml::Xml;
use super::{Action, Call, done, many, one, tags_only_for, write_tags};

pub(super) const ACTIONS: &[Action] = &[
    Action {
        name: "CreateNetworkInterface",
        parameters: &[
            "SubnetId",
            "SecurityGroupId",
            "Description",
            "InterfaceType",
            "PrivateIpAddress",
            "PrivateIpAddresses",
            "SecondaryPrivateIpAddressCount",
            "Ipv6AddressCount",
            "Ipv6Addresses",
            "TagSpecification",
            "ClientToken",
        ],
        run: create,
    },
    Action {
        name: "AttachNetworkInterface",
        parameters: &[
            "NetworkInterfaceId",
            "InstanceId",
            "DeviceIndex",
            "NetworkCardIndex",
        ],
        run: attach,
    },
    Action {
        name: "DetachNetworkInterface",
        parameters: &["AttachmentId", "Force"],
        run: detach,
    },
    Action {
        name: "DeleteNetworkInterface",
        parameters: &["NetworkInterfaceId"],
        run: delete,
    },
    Action {
        name: "DescribeNetworkInterfaces",
        parameters: &["NetworkInterfaceId", "Filter", "MaxResults", "NextToken"],
        run: describe,
    },
    Action {
        name: "ModifyNetworkInterfaceAttribute",
        parameters: &[
            "NetworkInterfaceId",
            "SecurityGroupId",
            "Description",
            "SourceDestCheck",
            "Attachment",
        ],
        run: modify,
    },
    Action {
        name: "CreateNetworkInterfacePermission",
        parameters: &[
            "NetworkInterfaceId",
            "AwsAccountId",
            "AwsService",
            "Permission",
        ],
        run: create_permission,
    },
];

fn create(call: &mut Call<'_>) -> Result<Xml, Ec2Error> {
    const NAME: &str = "CreateNetworkInterface";
    let parameters = call.parameters();
    let token = parameters.text("ClientToken");
    let fingerprint = call.query.fingerprint();
    if let Some(token) = token {
        let tokens = &call.cloud.client_tokens;
        match tokens.earlier(NAME, token, &fingerprint)? {
            Some(Made::Interface(id)) => {
                let interface = call.cloud.interfaces.get(id);
                let interface = interface.ok_or_else(|| id.not_found())?;
                return Ok(created(call, interface, Some(token)));
            }
            Some(Made::DeletedInterface(interface)) => {
                return Ok(created(call, interface, Some(token)));
            }
            _ => {}
        }
    }
    let new = read_new_interface(&parameters)?;
    let id = call.cloud.create_interface(new, call.now)?;
    if let Some(token) = token {
        let made = Made::Interface(id.clone());
        let tokens = &mut call.cloud.client_tokens;
        tokens.remember(NAME, token, &fingerprint, made, call.now);
    }
    let interface = call.cloud.interfaces.get(&id);
    let interface = interface.ok_or_else(|| id.not_found())?;
    Ok(created(call, interface, token))
}

/// EC2 always answers `pending`, however soon the interface is there.
fn created(call: &Call<'_>, interface: &Interface, token: Option<&str>) -> Xml {
    let mut xml = Xml::new();
    xml.group("networkInterface", |xml| {
        write_interface(xml, call.cloud, interface, "pending", call.now);
    });
    xml.optional("clientToken", token);
    xml
}

fn read_new_interface(parameters: &Parameters<'_>) -> Result<NewInterface, Ec2Error> {
    let subnet: SubnetId = parameters.id("SubnetId")?;
    let kind = parameters.text("InterfaceType");
    Ok(NewInterface {
        kind: kind.map_or(Ok(InterfaceKind::Interface), InterfaceKind::parse)?,
        description: parameters.owned("Description").unwrap_or_default(),
        client_token: parameters.owned("ClientToken"),
        tags: tags_only_for(parameters, "network-interface")?,
        ..read_addresses_and_groups(parameters, subnet)?
    })
}

/// What CreateNetworkInterface and RunInstances have in common.
pub(super) fn read_addresses_and_groups(
    parameters: &Parameters<'_>,
    subnet: SubnetId,
) -> Result<NewInterface, Ec2Error> {
    let groups: Vec<GroupId> = parameters.ids("SecurityGroupId")?;
    let an_address = "Expecting an IP address.";
    let single: Option<Ipv4Addr> = parameters.parsed("PrivateIpAddress", an_address)?;
    let mut private_ips: Vec<Ipv4Addr> = single.into_iter().collect();
    for address in parameters.structures("PrivateIpAddresses") {
        let primary = address.flag("Primary")?.unwrap_or(false);
        let ip = address.parsed("PrivateIpAddress", an_address)?;
        let ip = ip.ok_or_else(|| Ec2Error::missing_parameter("privateIpAddress"))?;
        let place = if primary { 0 } else { private_ips.len() };
        private_ips.insert(place, ip);
    }
    let mut ipv6_addresses = Vec::new();
    for address in parameters.structures("Ipv6Addresses") {
        let ip: Option<Ipv6Addr> = address.parsed("Ipv6Address", an_address)?;
        ipv6_addresses.extend(ip);
    }
    let secondary = parameters.number("SecondaryPrivateIpAddressCount")?;
    Ok(NewInterface {
        groups: (!groups.is_empty()).then_some(groups),
        private_ips,
        secondary_ip_count: secondary.unwrap_or(0),
        ipv6_addresses,
        ipv6_address_count: parameters.number("Ipv6AddressCount")?.unwrap_or(0),
        ..NewInterface::in_subnet(subnet)
    })
}

fn attach(call: &mut Call<'_>) -> Result<Xml, Ec2Error> {
    let parameters = call.parameters();
    parameters.required("DeviceIndex")?;
    let place = Place {
        device_index: parameters.number("DeviceIndex")?.unwrap_or(0),
        network_card_index: parameters.number("NetworkCardIndex")?.unwrap_or(0),
        // EC2's default here; ModifyNetworkInterfaceAttribute changes it.
        delete_on_termination: false,
    };
    let interface = parameters.id("NetworkInterfaceId")?;
    let instance = parameters.id("InstanceId")?;
    let id = call.cloud.attach(&interface, &instance, place, call.now)?;
    let mut xml = Xml::new();
    xml.text("attachmentId", id);
    xml.text("networkCardIndex", place.network_card_index);
    Ok(xml)
}

fn detach(call: &mut Call<'_>) -> Result<Xml, Ec2Error> {
    let id: AttachmentId = call.parameters().id("AttachmentId")?;
    call.cloud.detach(&id, call.now)?;
    Ok(done())
}

fn delete(call: &mut Call<'_>) -> Result<Xml, Ec2Error> {
    let id: InterfaceId = call.parameters().id("NetworkInterfaceId")?;
    call.cloud.delete_interface(&id, call.now)?;
    Ok(done())
}

fn modify(call: &mut Call<'_>) -> Result<Xml, Ec2Error> {
    let parameters = call.parameters();
    let id: InterfaceId = parameters.id("NetworkInterfaceId")?;
    let groups: Vec<GroupId> = parameters.ids("SecurityGroupId")?;
    let description = parameters.structure("Description").owned("Value");
    let check = parameters.structure("SourceDestCheck").flag("Value")?;
    let attachment = parameters.structure("Attachment");
    let delete = attachment.flag("DeleteOnTermination")?;
    let given = [
        !groups.is_empty(),
        description.is_some(),
        check.is_some(),
        delete.is_some(),
    ];
    call.cloud.interface(&id, call.now)?;
    match given.iter().filter(|given| **given).count() {
        1 => {}
        0 => {
            let message = "No attributes specified.";
            return Err(Ec2Error::invalid_combination(message));
        }
        _ => {
            let message = "Fields for multiple attribute types specified: only one attribute \
                           can be changed in a call.";
            return Err(Ec2Error::invalid_combination(message));
        }
    }
    if let Some(delete) = delete {
        let attachment: AttachmentId = attachment.id("AttachmentId")?;
        call.cloud
            .set_delete_on_termination(&id, &attachment, delete, call.now)?;
    } else if groups.is_empty() {
        call.cloud.change_interface(&id, |interface| {
            if let Some(description) = description {
                interface.description = description;
            }
            if let Some(check) = check {
                interface.source_dest_check = check;
            }
        });
    } else {
        call.cloud.set_groups(&id, &groups, call.now)?;
    }
    Ok(done())
}

fn create_permission(call: &mut Call<'_>) -> Result<Xml, Ec2Error> {
    let parameters = call.parameters();
    let id: InterfaceId = parameters.id("NetworkInterfaceId")?;
    let permission = parameters.required("Permission")?;
    if !matches!(permission, "INSTANCE-ATTACH" | "EIP-ASSOCIATE") {
        let expected = "It must be INSTANCE-ATTACH or EIP-ASSOCIATE.";
        return Err(Ec2Error::bad_value(permission, "permission", expected));
    }
    let account = parameters.owned("AwsAccountId").map(Grantee::Account);
    let service = parameters.owned("AwsService").map(Grantee::Service);
    let grantee = account.or(service);
    let grantee = grantee.ok_or_else(|| Ec2Error::missing_parameter("awsAccountId"))?;
    let permission = permission.to_owned();
    let granted = call.cloud.grant(&id, grantee, permission, call.now)?;
    let mut xml = Xml::new();
    xml.group("interfacePermission", |xml| {
        xml.text("networkInterfacePermissionId", &granted.id);
        xml.text("networkInterfaceId", &id);
        match &granted.grantee {
            Grantee::Account(account) => xml.text("awsAccountId", account),
            Grantee::Service(service) => xml.text("awsService", service),
        }
        xml.text("permission", &granted.permission);
        xml.group("permissionState", |xml| xml.text("state", "granted"));
    });
    Ok(xml)
}

fn describe(call: &mut Call<'_>) -> Result<Xml, Ec2Error> {
    let parameters = call.parameters();
    let name = "DescribeNetworkInterfaces";
    let page = Page::read(&parameters, name, "NetworkInterfaceId", 1_000)?;
    let filters: Filters<Interface> = Filters::read(&parameters)?;
    let ids: Vec<InterfaceId> = parameters.ids("NetworkInterfaceId")?;
    for id in &ids {
        call.cloud.interface(id, call.now)?;
    }
    let cloud = &*call.cloud;
    let candidates = candidates(cloud, &filters, ids, page.after());
    let found = candidates.filter(|interface| {
        cloud.is_visible(interface, call.now) && filters.pass(interface, cloud, call.now)
    });
    let (interfaces, next) = page.take(found, |interface| interface.id.to_string());
    let mut xml = Xml::new();
    xml.items("networkInterfaceSet", interfaces, |xml, interface| {
        let status = cloud.interface_status(interface, call.now);
        write_interface(xml, cloud, interface, status, call.now);
    });
    xml.optional("nextToken", next);
    Ok(xml)
}

/// The interfaces that can pass the filters, sorted, found by the best index that serves.
fn candidates<'a>(
    cloud: &'a Cloud,
    filters: &Filters<Interface>,
    ids: Vec<InterfaceId>,
    after: Option<&str>,
) -> Box<dyn Iterator<Item = &'a Interface> + 'a> {
    let index = &cloud.index;
    let mut best: Option<Vec<&'a BTreeSet<InterfaceId>>> = None;
    let mut offer = |sets: Vec<&'a BTreeSet<InterfaceId>>| {
        let size =
            |sets: &[&BTreeSet<InterfaceId>]| sets.iter().map(|set| set.len()).sum::<usize>();
        if best.as_ref().is_none_or(|best| size(&sets) < size(best)) {
            best = Some(sets);
        }
    };
    let mut named: Option<BTreeSet<InterfaceId>> =
        (!ids.is_empty()).then(|| ids.into_iter().collect());
    if named.is_none()
        && let Some(values) = filters.exact("network-interface-id")
    {
        let ids = values
            .into_iter()
            .map(|id| InterfaceId::from(id.to_owned()));
        named = Some(ids.collect());
    }
    if let Some(named) = named {
        return Box::new(named.into_iter().filter_map(|id| cloud.interfaces.get(&id)));
    }
    if let Some(values) = filters.exact("attachment.instance-id") {
        let sets = values
            .into_iter()
            .filter_map(|id| index.by_instance.get(id));
        offer(sets.collect());
    }
    if let Some(values) = filters.exact("subnet-id") {
        offer(
            values
                .into_iter()
                .filter_map(|id| index.by_subnet.get(id))
                .collect(),
        );
    }
    if let Some(values) = filters.exact("group-id") {
        offer(
            values
                .into_iter()
                .filter_map(|id| index.by_group.get(id))
                .collect(),
        );
    }
    for (key, values) in filters.exact_tags() {
        let by_value = index.by_tag.get(key);
        let sets = by_value.into_iter().flat_map(|by_value| {
            let values = values.iter();
            values
                .filter_map(|value| by_value.get(*value))
                .collect::<Vec<_>>()
        });
        offer(sets.collect());
    }
    let from: Bound<&str> = after.map_or(Bound::Unbounded, Bound::Excluded);
    let range = (from, Bound::Unbounded);
    match best.as_deref() {
        None => Box::new(cloud.interfaces.range::<str, _>(range).map(|(_, one)| one)),
        Some([set]) => {
            let ids = set.range::<str, _>(range);
            Box::new(ids.filter_map(|id| cloud.interfaces.get(id)))
        }
        Some(sets) => {
            let union: BTreeSet<&InterfaceId> = sets
                .iter()
                .flat_map(|set| set.range::<str, _>(range))
                .collect();
            Box::new(union.into_iter().filter_map(|id| cloud.interfaces.get(id)))
        }
    }
}

fn write_interface(
    xml: &mut Xml,
    cloud: &Cloud,
    interface: &Interface,
    status: &str,
    now: Timestamp,
) {
    let zone = cloud.interface_zone(interface);
    xml.text("networkInterfaceId", &interface.id);
    xml.text("subnetId", &interface.subnet_id);
    xml.text("vpcId", &interface.vpc_id);
    xml.text("availabilityZone", zone);
    xml.text("availabilityZoneId", cloud.zone_id(zone));
    xml.text("description", &interface.description);
    xml.text("ownerId", &cloud.account);
    xml.text("requesterManaged", false);
    xml.text("status", status);
    xml.text("macAddress", &interface.mac_address);
    write_addresses(xml, cloud, interface);
    xml.text("sourceDestCheck", interface.source_dest_check);
    write_groups(xml, cloud, interface);
    if let Some(attachment) = &interface.attachment {
        xml.group("attachment", |xml| {
            xml.text("attachmentId", &attachment.id);
            xml.text("instanceId", &attachment.instance_id);
            xml.text("instanceOwnerId", &cloud.account);
            write_attachment(xml, cloud, interface, now);
        });
    }
    write_tags(xml, &interface.tags);
    xml.text("interfaceType", cloud.interface_type(interface));
}

/// What interfaces show in their own list and in that of instances.
pub(super) fn write_addresses(xml: &mut Xml, cloud: &Cloud, interface: &Interface) {
    if let Some(&primary) = interface.private_ips.first() {
        xml.text("privateIpAddress", primary);
        xml.text("privateDnsName", cloud.private_dns_name(primary));
    }
    let addresses = interface.private_ips.iter().enumerate();
    xml.items(
        "privateIpAddressesSet",
        addresses,
        |xml, (position, &ip)| {
            xml.text("privateIpAddress", ip);
            xml.text("privateDnsName", cloud.private_dns_name(ip));
            xml.text("primary", position == 0);
        },
    );
    xml.items("ipv6AddressesSet", &interface.ipv6_addresses, |xml, ip| {
        xml.text("ipv6Address", ip);
    });
    xml.optional("ipv6Address", interface.ipv6_addresses.first());
}

pub(super) fn write_groups(xml: &mut Xml, cloud: &Cloud, interface: &Interface) {
    xml.items("groupSet", &interface.groups, |xml, id| {
        xml.text("groupId", id);
        let group = cloud.groups.get(id);
        xml.optional("groupName", group.map(|group| &group.name));
    });
}

pub(super) fn write_attachment(
    xml: &mut Xml,
    cloud: &Cloud,
    interface: &Interface,
    now: Timestamp,
) {
    if let Some(attachment) = &interface.attachment {
        let transition = cloud.behaviour.transition_ms;
        xml.text("deviceIndex", attachment.device_index);
        xml.text("networkCardIndex", attachment.network_card_index);
        xml.text("status", attachment.status(transition, now));
        xml.text("attachTime", attachment.attached_at.to_iso());
        xml.text("deleteOnTermination", attachment.delete_on_termination);
    }
}

impl Described for Interface {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "network-interface-id" => |own, _, _| one(&own.id),
            "subnet-id" => |own, _, _| one(&own.subnet_id),
            "vpc-id" => |own, _, _| one(&own.vpc_id),
            "availability-zone" => |own, cloud, _| one(cloud.interface_zone(own)),
            "availability-zone-id" => |own, cloud, _| one(cloud.zone_id(cloud.interface_zone(own))),
            "description" => |own, _, _| one(&own.description),
            "status" => |own, cloud, now| one(cloud.interface_status(own, now)),
            "interface-type" => |own, cloud, _| one(cloud.interface_type(own)),
            "mac-address" => |own, _, _| one(&own.mac_address),
            "owner-id" => |_, cloud, _| one(&cloud.account),
            "requester-managed" => |_, _, _| one(false),
            // Nothing here is made by another AWS service.
            "requester-id" => |_, _, _| Vec::new(),
            "source-dest-check" => |own, _, _| one(own.source_dest_check),
            "group-id" => |own, _, _| many(&own.groups),
            "group-name" => |own, cloud, _| {
                let groups = own.groups.iter().filter_map(|id| cloud.groups.get(id));
                many(groups.map(|group| &group.name))
            },
            "private-ip-address" => |own, _, _| many(own.private_ips.first()),
            "addresses.private-ip-address" => |own, _, _| many(&own.private_ips),
            "addresses.primary" => |own, _, _| {
                let several = own.private_ips.len() > 1;
                many([true].into_iter().chain(several.then_some(false)))
            },
            "private-dns-name" => |own, cloud, _| {
                let primary = own.private_ips.first();
                many(primary.map(|&ip| cloud.private_dns_name(ip)))
            },
            "ipv6-addresses.ipv6-address" => |own, _, _| many(&own.ipv6_addresses),
            "attachment.attachment-id" => |own, _, _| of_attachment(own, |one| one.id.to_string()),
            "attachment.instance-id" => {
                |own, _, _| of_attachment(own, |one| one.instance_id.to_string())
            }
            "attachment.instance-owner-id" => {
                |own, cloud, _| of_attachment(own, |_| cloud.account.clone())
            }
            "attachment.device-index" => {
                |own, _, _| of_attachment(own, |one| one.device_index.to_string())
            }
            "attachment.attach-time" => {
                |own, _, _| of_attachment(own, |one| one.attached_at.to_iso())
            }
            "attachment.delete-on-termination" => {
                |own, _, _| of_attachment(own, |one| one.delete_on_termination.to_string())
            }
            "attachment.status" => |own, cloud, now| {
                let transition = cloud.behaviour.transition_ms;
                of_attachment(own, |one| one.status(transition, now).to_owned())
            },
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&Tags> {
        Some(&self.tags)
    }
}

fn of_attachment(
    interface: &Interface,
    value: impl FnOnce(&super::super::interfaces::Attachment) -> String,
) -> Vec<String> {
    interface
        .attachment
        .as_ref()
        .map(value)
        .into_iter()
        .collect()
}
