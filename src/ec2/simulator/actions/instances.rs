//! Instances and their types.

use super::super::client_tokens::Made;
use super::super::cloud::Cloud;
use super::super::errors::Ec2Error;
use super::super::filters::{Described, Field, Filters};
use super::super::ids::{InstanceId, InterfaceId, ReservationId, SubnetId};
use super::super::instances::{
    Instance, InstanceState, InterfaceSource, LaunchInterface, NewInstances,
};
use super::super::interfaces::{Interface, InterfaceKind, Place};
use super::super::pages::Page;
use super::super::query::Parameters;
use super::super::tags::Tags;
use super::super::timestamp::Timestamp;
use super::super::xml::Xml;
use super::interfaces::{
    read_addresses_and_groups, write_addresses, write_attachment, write_groups,
};
use super::security_groups::no_default_vpc;
use super::{Action, Call, many, one, tags_for, write_tags};
use crate::ec2::instance_limits::InstanceLimits;

pub(super) const ACTIONS: &[Action] = &[
    Action {
        name: "RunInstances",
        parameters: &[
            "ImageId",
            "InstanceType",
            "MinCount",
            "MaxCount",
            "SubnetId",
            "SecurityGroupId",
            "PrivateIpAddress",
            "Ipv6AddressCount",
            "NetworkInterface",
            "KeyName",
            "TagSpecification",
            "ClientToken",
            // What these change can't be seen from outside of the instance.
            "UserData",
            "IamInstanceProfile",
            "EbsOptimized",
            "Monitoring",
            "MetadataOptions",
            "BlockDeviceMapping",
        ],
        run: run_instances,
    },
    Action {
        name: "TerminateInstances",
        parameters: &["InstanceId"],
        run: terminate,
    },
    Action {
        name: "DescribeInstances",
        parameters: &["InstanceId", "Filter", "MaxResults", "NextToken"],
        run: describe,
    },
    Action {
        name: "DescribeInstanceTypes",
        parameters: &["InstanceType", "Filter", "MaxResults", "NextToken"],
        run: describe_types,
    },
];

/// More than EC2 starts in one call anywhere.
const MOST_INSTANCES: u32 = 1_000;

fn run_instances(call: &mut Call<'_>) -> Result<Xml, Ec2Error> {
    const NAME: &str = "RunInstances";
    let parameters = call.parameters();
    let token = parameters.text("ClientToken");
    let fingerprint = call.query.fingerprint();
    if let Some(token) = token {
        let tokens = &call.cloud.client_tokens;
        if let Some(Made::Reservation(id)) = tokens.earlier(NAME, token, &fingerprint)? {
            return Ok(started(call.cloud, id, call.now));
        }
    }
    let new = read_new_instances(&parameters)?;
    let id = call.cloud.run_instances(&new, call.now)?;
    if let Some(token) = token {
        let made = Made::Reservation(id.clone());
        let tokens = &mut call.cloud.client_tokens;
        tokens.remember(NAME, token, &fingerprint, made, call.now);
    }
    Ok(started(call.cloud, &id, call.now))
}

fn started(cloud: &Cloud, id: &ReservationId, now: Timestamp) -> Xml {
    let of_reservation = |instance: &&Instance| instance.reservation_id == *id;
    let mut instances: Vec<_> = cloud.instances.values().filter(of_reservation).collect();
    instances.sort_by_key(|instance| instance.launch_index);
    let mut xml = Xml::new();
    write_reservation(
        &mut xml,
        cloud,
        id,
        &instances,
        |instance| {
            // EC2 always answers `pending`, however soon the instance runs.
            match cloud.instance_state(instance, now) {
                InstanceState::Running => InstanceState::Pending,
                other => other,
            }
        },
        now,
    );
    xml
}

fn read_new_instances(parameters: &Parameters<'_>) -> Result<NewInstances, Ec2Error> {
    let image_id = parameters.required("ImageId")?.to_owned();
    parameters.required("MinCount")?;
    parameters.required("MaxCount")?;
    let least: u32 = parameters.number("MinCount")?.unwrap_or(1);
    let most: u32 = parameters.number("MaxCount")?.unwrap_or(1);
    if least == 0 || most < least || most > MOST_INSTANCES {
        let expected = format!("Expecting 1 <= MinCount <= MaxCount <= {MOST_INSTANCES}.");
        return Err(Ec2Error::bad_value(most, "maxCount", &expected));
    }
    let specified = parameters.structures("NetworkInterface");
    let mut interfaces = Vec::new();
    if specified.is_empty() {
        if parameters.text("SubnetId").is_none() {
            return Err(no_default_vpc());
        }
        let subnet: SubnetId = parameters.id("SubnetId")?;
        let primary = read_addresses_and_groups(parameters, subnet)?;
        interfaces.push(LaunchInterface {
            source: InterfaceSource::New(Box::new(primary)),
            place: Place {
                device_index: 0,
                network_card_index: 0,
                delete_on_termination: true,
            },
        });
    } else if ["SubnetId", "PrivateIpAddress", "Ipv6AddressCount"]
        .iter()
        .any(|name| parameters.text(name).is_some())
        || !parameters.list("SecurityGroupId").is_empty()
    {
        let message = "Network interfaces and an instance-level subnet, addresses or security \
                       groups may not be specified on the same request";
        return Err(Ec2Error::invalid_combination(message));
    }
    for interface in specified {
        interfaces.push(read_launch_interface(&interface)?);
    }
    let instance_type = parameters.text("InstanceType").unwrap_or("m1.small");
    Ok(NewInstances {
        instance_type: instance_type.to_owned(),
        image_id,
        key_name: parameters.owned("KeyName"),
        count: most,
        client_token: parameters.owned("ClientToken"),
        tags: tags_for(parameters, "instance")?,
        interface_tags: tags_for(parameters, "network-interface")?,
        interfaces,
    })
}

fn read_launch_interface(parameters: &Parameters<'_>) -> Result<LaunchInterface, Ec2Error> {
    let existing = parameters.text("NetworkInterfaceId").is_some();
    let delete = parameters.flag("DeleteOnTermination")?;
    let place = Place {
        device_index: parameters.number("DeviceIndex")?.unwrap_or(0),
        network_card_index: parameters.number("NetworkCardIndex")?.unwrap_or(0),
        delete_on_termination: delete.unwrap_or(!existing),
    };
    let source = if existing {
        InterfaceSource::Existing(parameters.id::<InterfaceId>("NetworkInterfaceId")?)
    } else {
        let subnet: SubnetId = parameters.id("SubnetId")?;
        let mut new = read_addresses_and_groups(parameters, subnet)?;
        new.description = parameters.owned("Description").unwrap_or_default();
        if let Some(kind) = parameters.text("InterfaceType") {
            new.kind = InterfaceKind::parse(kind)?;
        }
        InterfaceSource::New(Box::new(new))
    };
    Ok(LaunchInterface { source, place })
}

fn terminate(call: &mut Call<'_>) -> Result<Xml, Ec2Error> {
    let ids: Vec<InstanceId> = call.parameters().ids("InstanceId")?;
    if ids.is_empty() {
        return Err(Ec2Error::missing_parameter("InstanceId"));
    }
    let state = |cloud: &Cloud, id| {
        let instance = cloud.instances.get(id);
        instance.map(|instance| cloud.instance_state(instance, call.now))
    };
    let before: Vec<_> = ids.iter().map(|id| state(call.cloud, id)).collect();
    call.cloud.terminate(&ids, call.now)?;
    let mut xml = Xml::new();
    xml.items(
        "instancesSet",
        ids.iter().zip(before),
        |xml, (id, before)| {
            xml.text("instanceId", id);
            let after = match before {
                Some(InstanceState::Terminated) => InstanceState::Terminated,
                _ => InstanceState::ShuttingDown,
            };
            write_state(xml, "currentState", after);
            write_state(xml, "previousState", before.unwrap_or(after));
        },
    );
    Ok(xml)
}

fn describe(call: &mut Call<'_>) -> Result<Xml, Ec2Error> {
    let parameters = call.parameters();
    let page = Page::read(&parameters, "DescribeInstances", "InstanceId", 1_000)?;
    let filters: Filters<Instance> = Filters::read(&parameters)?;
    let ids: Vec<InstanceId> = parameters.ids("InstanceId")?;
    let cloud = &*call.cloud;
    for id in &ids {
        cloud.instance(id)?;
    }
    let candidates: Vec<&Instance> = if ids.is_empty() {
        cloud.instances.values().collect()
    } else {
        let mut named: Vec<&Instance> = ids
            .iter()
            .filter_map(|id| cloud.instances.get(id))
            .collect();
        named.sort_by(|one, other| one.id.cmp(&other.id));
        named.dedup_by(|one, other| one.id == other.id);
        named
    };
    let found = candidates
        .into_iter()
        .filter(|instance| filters.pass(instance, cloud, call.now));
    let (instances, next) = page.take(found, |instance| instance.id.to_string());
    let mut reservations: Vec<(&ReservationId, Vec<&Instance>)> = Vec::new();
    for instance in instances {
        let id = &instance.reservation_id;
        match reservations.iter_mut().find(|(own, _)| *own == id) {
            Some((_, own)) => own.push(instance),
            None => reservations.push((id, vec![instance])),
        }
    }
    let mut xml = Xml::new();
    xml.items("reservationSet", reservations, |xml, (id, instances)| {
        let state = |instance: &Instance| cloud.instance_state(instance, call.now);
        write_reservation(xml, cloud, id, &instances, state, call.now);
    });
    xml.optional("nextToken", next);
    Ok(xml)
}

fn describe_types(call: &mut Call<'_>) -> Result<Xml, Ec2Error> {
    let parameters = call.parameters();
    let page = Page::read(&parameters, "DescribeInstanceTypes", "InstanceType", 100)?;
    let filters: Filters<InstanceLimits> = Filters::read(&parameters)?;
    let names = parameters.list("InstanceType");
    let unknown: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| call.cloud.limits.get(name).is_none())
        .collect();
    if !unknown.is_empty() {
        let message = format!(
            "The following supplied instance types do not exist: [{}]",
            unknown.join(", ")
        );
        return Err(Ec2Error::new("InvalidInstanceType", message));
    }
    let found = call.cloud.limits.iter().filter(|one| {
        (names.is_empty() || names.contains(&one.instance_type.as_str()))
            && filters.pass(one, call.cloud, call.now)
    });
    let (types, next) = page.take(found, |one| one.instance_type.clone());
    let mut xml = Xml::new();
    xml.items("instanceTypeSet", types, write_type);
    xml.optional("nextToken", next);
    Ok(xml)
}

fn write_type(xml: &mut Xml, limits: &InstanceLimits) {
    xml.text("instanceType", &limits.instance_type);
    xml.text("bareMetal", limits.bare_metal);
    if !limits.hypervisor.is_empty() {
        xml.text("hypervisor", &limits.hypervisor);
    }
    xml.group("networkInfo", |xml| {
        xml.text("maximumNetworkInterfaces", limits.max_interfaces);
        xml.text("defaultNetworkCardIndex", 0);
        xml.text("ipv4AddressesPerInterface", limits.ipv4_per_interface);
        xml.text("ipv6AddressesPerInterface", limits.ipv4_per_interface);
        xml.text("ipv6Supported", true);
        xml.items("networkCards", [limits], |xml, limits| {
            xml.text("networkCardIndex", 0);
            xml.text("maximumNetworkInterfaces", limits.default_card_interfaces);
        });
    });
}

fn write_reservation(
    xml: &mut Xml,
    cloud: &Cloud,
    id: &ReservationId,
    instances: &[&Instance],
    state: impl Fn(&Instance) -> InstanceState,
    now: Timestamp,
) {
    xml.text("reservationId", id);
    xml.text("ownerId", &cloud.account);
    xml.group("groupSet", |_| {});
    xml.items("instancesSet", instances, |xml, instance| {
        write_instance(xml, cloud, instance, state(instance), now);
    });
}

fn write_instance(
    xml: &mut Xml,
    cloud: &Cloud,
    instance: &Instance,
    state: InstanceState,
    now: Timestamp,
) {
    let primary = cloud.primary_interface(&instance.id);
    xml.text("instanceId", &instance.id);
    xml.text("imageId", &instance.image_id);
    write_state(xml, "instanceState", state);
    xml.text("instanceType", &instance.instance_type);
    xml.optional("keyName", instance.key_name.as_ref());
    xml.text("amiLaunchIndex", instance.launch_index);
    xml.text("launchTime", instance.launched_at.to_iso());
    xml.group("placement", |xml| {
        xml.text("availabilityZone", &instance.availability_zone);
        xml.text(
            "availabilityZoneId",
            cloud.zone_id(&instance.availability_zone),
        );
        xml.text("tenancy", "default");
    });
    xml.group("monitoring", |xml| xml.text("state", "disabled"));
    xml.text("architecture", "x86_64");
    xml.text("virtualizationType", "hvm");
    let limits = cloud.limits_of(&instance.id);
    let hypervisor = limits.map(|limits| limits.hypervisor.as_str());
    // EC2 says `xen` of Nitro instances, too.
    xml.optional(
        "hypervisor",
        hypervisor.filter(|name| !name.is_empty()).map(|_| "xen"),
    );
    xml.optional("clientToken", instance.client_token.as_ref());
    if instance.terminated_at.is_none() {
        xml.text("subnetId", &instance.subnet_id);
        xml.text("vpcId", &instance.vpc_id);
    }
    if let Some(primary) = primary {
        if let Some(&ip) = primary.private_ips.first() {
            xml.text("privateIpAddress", ip);
            xml.text("privateDnsName", cloud.private_dns_name(ip));
        }
        xml.text("sourceDestCheck", primary.source_dest_check);
        write_groups(xml, cloud, primary);
    }
    let attached = cloud.attached_interfaces(&instance.id);
    xml.items("networkInterfaceSet", attached, |xml, interface| {
        write_instance_interface(xml, cloud, interface, now);
    });
    write_tags(xml, &instance.tags);
}

fn write_instance_interface(xml: &mut Xml, cloud: &Cloud, interface: &Interface, now: Timestamp) {
    xml.text("networkInterfaceId", &interface.id);
    xml.text("subnetId", &interface.subnet_id);
    xml.text("vpcId", &interface.vpc_id);
    xml.text("description", &interface.description);
    xml.text("ownerId", &cloud.account);
    xml.text("status", cloud.interface_status(interface, now));
    xml.text("macAddress", &interface.mac_address);
    write_addresses(xml, cloud, interface);
    xml.text("sourceDestCheck", interface.source_dest_check);
    write_groups(xml, cloud, interface);
    xml.group("attachment", |xml| {
        let attachment = interface.attachment.as_ref();
        xml.optional("attachmentId", attachment.map(|attachment| &attachment.id));
        write_attachment(xml, cloud, interface, now);
    });
    xml.text("interfaceType", cloud.interface_type(interface));
}

fn write_state(xml: &mut Xml, name: &str, state: InstanceState) {
    xml.group(name, |xml| {
        xml.text("code", state.code());
        xml.text("name", state.name());
    });
}

impl Described for Instance {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "instance-id" => |own, _, _| one(&own.id),
            "instance-type" => |own, _, _| one(&own.instance_type),
            "instance-state-name" => |own, cloud, now| one(cloud.instance_state(own, now).name()),
            "instance-state-code" => |own, cloud, now| one(cloud.instance_state(own, now).code()),
            "image-id" => |own, _, _| one(&own.image_id),
            "key-name" => |own, _, _| many(&own.key_name),
            "launch-index" => |own, _, _| one(own.launch_index),
            "client-token" => |own, _, _| many(&own.client_token),
            "reservation-id" => |own, _, _| one(&own.reservation_id),
            "owner-id" => |_, cloud, _| one(&cloud.account),
            "availability-zone" => |own, _, _| one(&own.availability_zone),
            "vpc-id" | "network-interface.vpc-id" => |own, _, _| one(&own.vpc_id),
            "subnet-id" => |own, _, _| one(&own.subnet_id),
            "private-ip-address" => |own, cloud, _| {
                let primary = cloud.primary_interface(&own.id);
                many(primary.and_then(|primary| primary.private_ips.first()))
            },
            "private-dns-name" => |own, cloud, _| {
                let primary = cloud.primary_interface(&own.id);
                let ip = primary.and_then(|primary| primary.private_ips.first());
                many(ip.map(|&ip| cloud.private_dns_name(ip)))
            },
            "instance.group-id" => |own, cloud, _| {
                let primary = cloud.primary_interface(&own.id);
                many(primary.into_iter().flat_map(|primary| &primary.groups))
            },
            "network-interface.network-interface-id" => {
                |own, cloud, _| many(cloud.attached_interfaces(&own.id).iter().map(|one| &one.id))
            }
            "network-interface.subnet-id" => |own, cloud, _| {
                let attached = cloud.attached_interfaces(&own.id);
                many(attached.iter().map(|one| &one.subnet_id))
            },
            "network-interface.addresses.private-ip-address" => |own, cloud, _| {
                let attached = cloud.attached_interfaces(&own.id);
                many(attached.iter().flat_map(|one| &one.private_ips))
            },
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&Tags> {
        Some(&self.tags)
    }
}

impl Described for InstanceLimits {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "instance-type" => |own, _, _| one(&own.instance_type),
            "hypervisor" => |own, _, _| one(&own.hypervisor),
            "bare-metal" => |own, _, _| one(own.bare_metal),
            "network-info.maximum-network-interfaces" => |own, _, _| one(own.max_interfaces),
            "network-info.ipv4-addresses-per-interface" => |own, _, _| one(own.ipv4_per_interface),
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&Tags> {
        None
    }
}
