//! The SDK's types, in ours.
//!
//! Everything is optional in the SDK. What is absent becomes empty, and a thing without an id
//! is left out, for nothing can be done about it.

use aws_sdk_ec2::types::{
    AttachmentStatus, GroupIdentifier, Instance as SdkInstance, InstanceNetworkInterface,
    InstanceStateName, InstanceTypeInfo, NetworkInterface, NetworkInterfaceAttachment,
    NetworkInterfaceStatus, NetworkInterfaceType, SecurityGroup as SdkSecurityGroup,
    Subnet as SdkSubnet, SubnetCidrBlockStateCode, TrunkInterfaceAssociation,
};

use crate::ec2::calls::{
    Association, Attachment, Instance, Interface, InterfaceKind, SecurityGroup, Subnet,
};
use crate::ec2::instance_limits::InstanceLimits;

pub(super) fn interface(sdk: NetworkInterface) -> Option<Interface> {
    let in_use = matches!(
        sdk.status,
        Some(
            NetworkInterfaceStatus::Associated
                | NetworkInterfaceStatus::Attaching
                | NetworkInterfaceStatus::Detaching
                | NetworkInterfaceStatus::InUse
        )
    );
    let tags = sdk.tag_set.unwrap_or_default().into_iter();
    Some(Interface {
        id: sdk.network_interface_id?,
        kind: match sdk.interface_type {
            Some(NetworkInterfaceType::Trunk) => InterfaceKind::Trunk,
            Some(NetworkInterfaceType::Branch) => InterfaceKind::Branch,
            _ => InterfaceKind::Other,
        },
        description: sdk.description.unwrap_or_default(),
        in_use,
        mac_address: sdk.mac_address.unwrap_or_default(),
        private_ip: sdk.private_ip_address.unwrap_or_default(),
        ipv6_address: sdk
            .ipv6_addresses
            .unwrap_or_default()
            .into_iter()
            .find_map(|address| address.ipv6_address),
        subnet_id: sdk.subnet_id.unwrap_or_default(),
        vpc_id: sdk.vpc_id.unwrap_or_default(),
        group_ids: group_ids(sdk.groups),
        attachment: sdk.attachment.and_then(attachment),
        tags: tags
            .filter_map(|tag| Some((tag.key?, tag.value.unwrap_or_default())))
            .collect(),
    })
}

/// Interfaces of AWS's own services are attached to no instance that anyone can see.
fn attachment(sdk: NetworkInterfaceAttachment) -> Option<Attachment> {
    Some(Attachment {
        id: sdk.attachment_id?,
        instance_id: sdk.instance_id.unwrap_or_default(),
        attached: sdk.status == Some(AttachmentStatus::Attached),
        delete_on_termination: sdk.delete_on_termination.unwrap_or_default(),
    })
}

fn group_ids(sdk: Option<Vec<GroupIdentifier>>) -> Vec<String> {
    let groups = sdk.unwrap_or_default().into_iter();
    groups.filter_map(|group| group.group_id).collect()
}

pub(super) fn instance(sdk: SdkInstance) -> Option<Instance> {
    let state = sdk.state.and_then(|state| state.name);
    let interfaces = sdk.network_interfaces.unwrap_or_default();
    Some(Instance {
        id: sdk.instance_id?,
        instance_type: sdk
            .instance_type
            .map(|name| name.as_str().to_owned())
            .unwrap_or_default(),
        alive: matches!(
            state,
            Some(InstanceStateName::Pending | InstanceStateName::Running)
        ),
        subnet_id: sdk.subnet_id.unwrap_or_default(),
        vpc_id: sdk.vpc_id.unwrap_or_default(),
        group_ids: group_ids(sdk.security_groups),
        device_indexes: interfaces.iter().filter_map(device_index).collect(),
    })
}

/// Of an interface on the first network card; an index is taken until the interface is off.
fn device_index(sdk: &InstanceNetworkInterface) -> Option<i32> {
    let attachment = sdk.attachment.as_ref()?;
    let on_first_card = attachment.network_card_index.unwrap_or_default() == 0;
    attachment.device_index.filter(|_| on_first_card)
}

pub(super) fn subnet(sdk: SdkSubnet) -> Option<Subnet> {
    let ipv6 = sdk.ipv6_cidr_block_association_set.unwrap_or_default();
    let associated = ipv6.into_iter().filter(|block| {
        let state = block.ipv6_cidr_block_state.as_ref();
        state.and_then(|state| state.state.as_ref()) == Some(&SubnetCidrBlockStateCode::Associated)
    });
    Some(Subnet {
        id: sdk.subnet_id?,
        vpc_id: sdk.vpc_id.unwrap_or_default(),
        ipv4_cidr: sdk.cidr_block.unwrap_or_default(),
        ipv6_cidr: associated
            .into_iter()
            .find_map(|block| block.ipv6_cidr_block)
            .unwrap_or_default(),
    })
}

pub(super) fn security_group(sdk: SdkSecurityGroup) -> Option<SecurityGroup> {
    Some(SecurityGroup {
        id: sdk.group_id?,
        vpc_id: sdk.vpc_id.unwrap_or_default(),
    })
}

/// `None` also for an association over GRE, which has no VLAN id.
pub(super) fn association(sdk: TrunkInterfaceAssociation) -> Option<Association> {
    Some(Association {
        id: sdk.association_id?,
        trunk_id: sdk.trunk_interface_id?,
        branch_id: sdk.branch_interface_id?,
        vlan: sdk.vlan_id.and_then(|vlan| u16::try_from(vlan).ok())?,
    })
}

/// EC2's API does not say which types take a trunk, nor with how many branches; so none.
pub(super) fn instance_limits(sdk: InstanceTypeInfo) -> Option<InstanceLimits> {
    let number = |number: Option<i32>| number.and_then(|number| u32::try_from(number).ok());
    let network = sdk.network_info?;
    let max_interfaces = number(network.maximum_network_interfaces)?;
    let default_card = network.default_network_card_index.unwrap_or_default();
    let default_card = network
        .network_cards
        .unwrap_or_default()
        .into_iter()
        .find(|card| card.network_card_index == Some(default_card));
    Some(InstanceLimits {
        instance_type: sdk.instance_type?.as_str().to_owned(),
        max_interfaces,
        ipv4_per_interface: number(network.ipv4_addresses_per_interface).unwrap_or_default(),
        trunking: false,
        branch_interfaces: 0,
        default_card_interfaces: default_card
            .and_then(|card| number(card.maximum_network_interfaces))
            .unwrap_or(max_interfaces),
        hypervisor: sdk
            .hypervisor
            .map(|hypervisor| hypervisor.as_str().to_owned())
            .unwrap_or_default(),
        bare_metal: sdk.bare_metal.unwrap_or_default(),
    })
}
