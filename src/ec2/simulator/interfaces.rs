//! Network interfaces: made, attached, changed, detached, deleted.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::addresses::is_usable_v4;
use super::cloud::Cloud;
use super::errors::Ec2Error;
use super::ids::{AttachmentId, GroupId, InstanceId, InterfaceId, PermissionId, SubnetId, VpcId};
use super::networks::Subnet;
use super::tags::Tags;
use super::timestamp::Timestamp;

/// A network interface.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Interface {
    pub(super) id: InterfaceId,
    pub(super) kind: InterfaceKind,
    pub(super) subnet_id: SubnetId,
    pub(super) vpc_id: VpcId,
    pub(super) description: String,
    pub(super) mac_address: String,
    /// The first one is the primary.
    pub(super) private_ips: Vec<Ipv4Addr>,
    pub(super) ipv6_addresses: Vec<Ipv6Addr>,
    pub(super) groups: Vec<GroupId>,
    pub(super) source_dest_check: bool,
    pub(super) attachment: Option<Attachment>,
    pub(super) permissions: Vec<Permission>,
    pub(super) created_at: Timestamp,
    pub(super) visible_at: Timestamp,
    pub(super) client_token: Option<String>,
    pub(super) tags: Tags,
}

/// What an interface was made as.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum InterfaceKind {
    Interface,
    Trunk,
    Branch,
    Efa,
}

/// An interface's place on an instance.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Attachment {
    pub(super) id: AttachmentId,
    pub(super) instance_id: InstanceId,
    pub(super) device_index: u32,
    pub(super) network_card_index: u32,
    pub(super) delete_on_termination: bool,
    pub(super) attached_at: Timestamp,
    pub(super) detaching_until: Option<Timestamp>,
}

/// What another account may do with an interface.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Permission {
    pub(super) id: PermissionId,
    pub(super) grantee: Grantee,
    pub(super) permission: String,
}

/// Who may do something with an interface.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Grantee {
    Account(String),
    Service(String),
}

/// What CreateNetworkInterface is asked for.
#[derive(Clone, Debug)]
pub(super) struct NewInterface {
    pub(super) kind: InterfaceKind,
    pub(super) subnet_id: SubnetId,
    /// `None` gives the VPC's default group.
    pub(super) groups: Option<Vec<GroupId>>,
    pub(super) description: String,
    /// The primary address first; EC2 chooses when there is none.
    pub(super) private_ips: Vec<Ipv4Addr>,
    pub(super) secondary_ip_count: u32,
    pub(super) ipv6_addresses: Vec<Ipv6Addr>,
    pub(super) ipv6_address_count: u32,
    pub(super) client_token: Option<String>,
    pub(super) tags: Tags,
}

impl NewInterface {
    pub(super) fn in_subnet(subnet_id: SubnetId) -> Self {
        Self {
            kind: InterfaceKind::Interface,
            subnet_id,
            groups: None,
            description: String::new(),
            private_ips: Vec::new(),
            secondary_ip_count: 0,
            ipv6_addresses: Vec::new(),
            ipv6_address_count: 0,
            client_token: None,
            tags: Tags::new(),
        }
    }
}

/// Where AttachNetworkInterface shall put an interface.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) device_index: u32,
    pub(super) network_card_index: u32,
    pub(super) delete_on_termination: bool,
}

impl InterfaceKind {
    pub(super) fn parse(text: &str) -> Result<Self, Ec2Error> {
        Ok(match text {
            "interface" => Self::Interface,
            "trunk" => Self::Trunk,
            "branch" => Self::Branch,
            "efa" => Self::Efa,
            other => {
                let expected = "It must be one of efa, trunk, branch.";
                return Err(Ec2Error::bad_value(other, "interfaceType", expected));
            }
        })
    }
}

impl Interface {
    pub(super) fn is_trunk(&self) -> bool {
        self.kind == InterfaceKind::Trunk
    }

    /// Network card and device index, where it is attached.
    pub(super) fn place(&self) -> Option<(u32, u32)> {
        let attachment = self.attachment.as_ref()?;
        Some((attachment.network_card_index, attachment.device_index))
    }
}

impl Attachment {
    pub(super) fn status(&self, transition_ms: u64, now: Timestamp) -> &'static str {
        if self.detaching_until.is_some() {
            "detaching"
        } else if now < self.attached_at.plus_ms(transition_ms) {
            "attaching"
        } else {
            "attached"
        }
    }
}

impl Cloud {
    /// An interface that callers can see.
    pub(super) fn interface(
        &self,
        id: &InterfaceId,
        now: Timestamp,
    ) -> Result<&Interface, Ec2Error> {
        let found = self.interfaces.get(id);
        found
            .filter(|interface| self.is_visible(interface, now))
            .ok_or_else(|| id.not_found())
    }

    pub(super) fn is_visible(&self, interface: &Interface, now: Timestamp) -> bool {
        interface.visible_at <= now
    }

    pub(super) fn interface_status(&self, interface: &Interface, now: Timestamp) -> &'static str {
        let used = interface.attachment.is_some()
            || self.index.association_of_branch.contains_key(&interface.id);
        if used {
            "in-use"
        } else if now < interface.created_at.plus_ms(self.behaviour.transition_ms) {
            "pending"
        } else {
            "available"
        }
    }

    /// An interface on a trunk shows as a branch, whatever it was made as.
    pub(super) fn interface_type(&self, interface: &Interface) -> &'static str {
        if self.index.association_of_branch.contains_key(&interface.id) {
            return "branch";
        }
        match interface.kind {
            InterfaceKind::Interface => "interface",
            InterfaceKind::Trunk => "trunk",
            InterfaceKind::Branch => "branch",
            InterfaceKind::Efa => "efa",
        }
    }

    pub(super) fn private_dns_name(&self, address: Ipv4Addr) -> String {
        let name = address.to_string().replace('.', "-");
        match self.region.as_str() {
            "us-east-1" => format!("ip-{name}.ec2.internal"),
            region => format!("ip-{name}.{region}.compute.internal"),
        }
    }

    pub(super) fn create_interface(
        &mut self,
        new: NewInterface,
        now: Timestamp,
    ) -> Result<InterfaceId, Ec2Error> {
        let subnet = self.subnet(&new.subnet_id)?.clone();
        let groups = match &new.groups {
            None => vec![self.vpc(&subnet.vpc_id)?.default_group_id.clone()],
            Some(groups) => self.checked_groups(groups, &subnet.vpc_id)?,
        };
        if self.interfaces.len() >= self.behaviour.quotas.network_interfaces {
            return Err(Ec2Error::too_many_interfaces());
        }
        if new.description.chars().count() > 255 {
            let expected = "It has at most 255 characters.";
            return Err(Ec2Error::bad_value("...", "description", expected));
        }
        let private_ips = self.choose_ipv4(&subnet, &new)?;
        let ipv6_addresses = self.choose_ipv6(&subnet, &new)?;
        let id: InterfaceId = self.ids.id();
        let interface = Interface {
            id: id.clone(),
            kind: new.kind,
            subnet_id: new.subnet_id,
            vpc_id: subnet.vpc_id,
            description: new.description,
            mac_address: mac_address(self.ids.number()),
            private_ips,
            ipv6_addresses,
            groups,
            source_dest_check: true,
            attachment: None,
            permissions: Vec::new(),
            created_at: now,
            visible_at: now.plus_ms(self.behaviour.interface_visibility_delay_ms),
            client_token: new.client_token,
            tags: new.tags,
        };
        self.index.add(&interface);
        self.interfaces.insert(id.clone(), interface);
        Ok(id)
    }

    /// The groups without repetition, if an interface of the VPC can have them.
    fn checked_groups(&self, groups: &[GroupId], vpc: &VpcId) -> Result<Vec<GroupId>, Ec2Error> {
        let mut checked: Vec<GroupId> = Vec::new();
        for id in groups {
            let group = self.groups.get(id);
            let group = group.ok_or_else(|| Ec2Error::interface_group_not_found(id))?;
            if group.vpc_id != *vpc {
                return Err(Ec2Error::different_networks());
            }
            if !checked.contains(id) {
                checked.push(id.clone());
            }
        }
        if checked.len() > self.behaviour.quotas.security_groups_per_interface {
            return Err(Ec2Error::too_many_groups());
        }
        Ok(checked)
    }

    fn choose_ipv4(
        &mut self,
        subnet: &Subnet,
        new: &NewInterface,
    ) -> Result<Vec<Ipv4Addr>, Ec2Error> {
        let taken = self.index.taken.entry(subnet.id.clone()).or_default();
        let mut chosen: Vec<Ipv4Addr> = Vec::new();
        for &address in &new.private_ips {
            if !is_usable_v4(subnet.cidr_block, address) {
                let message = "Address does not fall within the subnet's address range";
                return Err(Ec2Error::invalid_value(message));
            }
            if taken.is_taken_v4(address) || chosen.contains(&address) {
                let message = "The specified address is already in use.";
                return Err(Ec2Error::new("InvalidIPAddress.InUse", message));
            }
            chosen.push(address);
        }
        let wanted = new.private_ips.len().max(1) + new.secondary_ip_count as usize;
        let free = taken.free_v4(subnet.cidr_block) as usize;
        if wanted > free {
            return Err(Ec2Error::no_free_addresses());
        }
        while chosen.len() < wanted {
            let address = taken.find_v4(subnet.cidr_block, &chosen);
            chosen.push(address.ok_or_else(Ec2Error::no_free_addresses)?);
        }
        Ok(chosen)
    }

    fn choose_ipv6(
        &mut self,
        subnet: &Subnet,
        new: &NewInterface,
    ) -> Result<Vec<Ipv6Addr>, Ec2Error> {
        let mut chosen = Vec::new();
        if new.ipv6_addresses.is_empty() && new.ipv6_address_count == 0 {
            return Ok(chosen);
        }
        let Some(block) = subnet.ipv6_block else {
            let message = "The specified subnet does not have an associated IPv6 CIDR block";
            return Err(Ec2Error::invalid_value(message));
        };
        if !new.ipv6_addresses.is_empty() && new.ipv6_address_count > 0 {
            let message = "Ipv6AddressCount and Ipv6Addresses can't be given together";
            return Err(Ec2Error::invalid_combination(message));
        }
        // More than any interface of any instance type has.
        if new.ipv6_address_count > 256 {
            let expected = "It is at most 256.";
            let count = new.ipv6_address_count;
            return Err(Ec2Error::bad_value(count, "ipv6AddressCount", expected));
        }
        let taken = self.index.taken.entry(subnet.id.clone()).or_default();
        for &address in &new.ipv6_addresses {
            if !block.contains(address) {
                let message = "Address does not fall within the subnet's address range";
                return Err(Ec2Error::invalid_value(message));
            }
            if taken.is_taken_v6(address) || chosen.contains(&address) {
                let message = "The specified address is already in use.";
                return Err(Ec2Error::new("InvalidIPAddress.InUse", message));
            }
            chosen.push(address);
        }
        for _ in 0..new.ipv6_address_count {
            chosen.push(taken.find_v6(block, &chosen));
        }
        Ok(chosen)
    }

    /// Changes an interface and what the index says of it.
    pub(super) fn change_interface(
        &mut self,
        id: &InterfaceId,
        change: impl FnOnce(&mut Interface),
    ) {
        if let Some(interface) = self.interfaces.get_mut(id) {
            self.index.remove(interface);
            change(interface);
            self.index.add(interface);
        }
    }

    pub(super) fn set_groups(
        &mut self,
        id: &InterfaceId,
        groups: &[GroupId],
        now: Timestamp,
    ) -> Result<(), Ec2Error> {
        let vpc = self.interface(id, now)?.vpc_id.clone();
        let groups = self.checked_groups(groups, &vpc)?;
        self.change_interface(id, |interface| interface.groups = groups);
        Ok(())
    }

    pub(super) fn set_delete_on_termination(
        &mut self,
        id: &InterfaceId,
        attachment: &AttachmentId,
        delete: bool,
        now: Timestamp,
    ) -> Result<(), Ec2Error> {
        let interface = self.interface(id, now)?;
        let own = interface.attachment.as_ref();
        own.filter(|own| own.id == *attachment)
            .ok_or_else(|| attachment.not_found())?;
        self.change_interface(id, |interface| {
            if let Some(own) = &mut interface.attachment {
                own.delete_on_termination = delete;
            }
        });
        Ok(())
    }

    pub(super) fn attach(
        &mut self,
        id: &InterfaceId,
        instance_id: &InstanceId,
        place: Place,
        now: Timestamp,
    ) -> Result<AttachmentId, Ec2Error> {
        let interface = self.interface(id, now)?;
        let instance = self.instance(instance_id)?;
        if instance.terminated_at.is_some() {
            let message = format!("Instance '{instance_id}' is not 'running' or 'stopped'.");
            return Err(Ec2Error::incorrect_state(message));
        }
        if interface.attachment.is_some() || self.index.association_of_branch.contains_key(id) {
            return Err(Ec2Error::attached_elsewhere(id));
        }
        if self.interface_zone(interface) != instance.availability_zone {
            let message = "You may not attach a network interface to an instance if they are \
                           not in the same availability zone";
            return Err(Ec2Error::invalid_combination(message));
        }
        self.check_place(interface, instance_id, place)?;
        let attachment = Attachment {
            id: self.ids.id(),
            instance_id: instance_id.clone(),
            device_index: place.device_index,
            network_card_index: place.network_card_index,
            delete_on_termination: place.delete_on_termination,
            attached_at: now,
            detaching_until: None,
        };
        let attachment_id = attachment.id.clone();
        self.change_interface(id, |interface| interface.attachment = Some(attachment));
        Ok(attachment_id)
    }

    fn check_place(
        &self,
        interface: &Interface,
        instance_id: &InstanceId,
        place: Place,
    ) -> Result<(), Ec2Error> {
        let attached = self.attached_interfaces(instance_id);
        let device = (place.network_card_index, place.device_index);
        if attached.iter().any(|other| other.place() == Some(device)) {
            return Err(Ec2Error::invalid_value(format!(
                "Instance '{instance_id}' already has an interface attached at device index \
                 '{}'.",
                place.device_index
            )));
        }
        let Some(limits) = self.limits_of(instance_id) else {
            return Ok(());
        };
        let full = |count: usize| {
            let kind = &limits.instance_type;
            let message = format!("Interface count {count} exceeds the limit for {kind}");
            Err(Ec2Error::new("AttachmentLimitExceeded", message))
        };
        if attached.len() >= limits.max_interfaces as usize {
            return full(attached.len() + 1);
        }
        let on_card = attached
            .iter()
            .filter_map(|other| other.place())
            .filter(|(card, _)| *card == place.network_card_index)
            .count();
        if place.network_card_index == 0 && on_card >= limits.default_card_interfaces as usize {
            return full(on_card + 1);
        }
        if place.network_card_index > 0 && limits.default_card_interfaces == limits.max_interfaces {
            let card = place.network_card_index;
            let expected = "The instance type has no such network card.";
            return Err(Ec2Error::bad_value(card, "networkCardIndex", expected));
        }
        if interface.is_trunk() {
            if !limits.trunking {
                let kind = &limits.instance_type;
                let message = format!("Instance type {kind} does not support trunk interfaces.");
                return Err(Ec2Error::new("UnsupportedOperation", message));
            }
            if attached.iter().any(|other| other.is_trunk()) {
                let message = format!("Instance '{instance_id}' already has a trunk interface.");
                return Err(Ec2Error::new("AttachmentLimitExceeded", message));
            }
        }
        Ok(())
    }

    pub(super) fn attached_interfaces(&self, instance: &InstanceId) -> Vec<&Interface> {
        let ids = self.index.by_instance.get(instance).into_iter().flatten();
        let attached = ids.filter_map(|id| self.interfaces.get(id));
        attached.collect()
    }

    pub(super) fn interface_zone(&self, interface: &Interface) -> &str {
        let subnet = self.subnets.get(&interface.subnet_id);
        subnet.map_or("", |subnet| &subnet.availability_zone)
    }

    pub(super) fn detach(&mut self, id: &AttachmentId, now: Timestamp) -> Result<(), Ec2Error> {
        let interface = self.index.by_attachment.get(id);
        let interface = interface.ok_or_else(|| id.not_found())?.clone();
        let found = self.interface(&interface, now)?;
        let attachment = found.attachment.as_ref().ok_or_else(|| id.not_found())?;
        if attachment.detaching_until.is_some() {
            let message = format!("Attachment '{id}' is already being detached.");
            return Err(Ec2Error::incorrect_state(message));
        }
        if attachment.device_index == 0 && attachment.network_card_index == 0 {
            let message = "The network interface at device index 0 and networkCard index 0 cannot be \
                 detached.";
            return Err(Ec2Error::new("OperationNotPermitted", message));
        }
        if self.index.vlans_of_trunk.contains_key(&interface) {
            let message =
                format!("Trunk interface '{interface}' has associated branch interfaces.");
            return Err(Ec2Error::new("OperationNotPermitted", message));
        }
        let until = now.plus_ms(self.behaviour.transition_ms);
        self.change_interface(&interface, |interface| {
            if let Some(attachment) = &mut interface.attachment {
                attachment.detaching_until = Some(until);
            }
        });
        self.finish_detachments(now);
        Ok(())
    }

    pub(super) fn finish_detachments(&mut self, now: Timestamp) {
        while let Some((until, id)) = self.index.detaching.first().cloned() {
            if until > now {
                break;
            }
            self.change_interface(&id, |interface| interface.attachment = None);
        }
    }

    pub(super) fn delete_interface(
        &mut self,
        id: &InterfaceId,
        now: Timestamp,
    ) -> Result<(), Ec2Error> {
        let interface = self.interface(id, now)?;
        let used = interface.attachment.is_some()
            || self.index.association_of_branch.contains_key(id)
            || self.index.vlans_of_trunk.contains_key(id);
        if used {
            return Err(Ec2Error::interface_in_use(id));
        }
        self.remove_interface(id);
        Ok(())
    }

    /// Removes an interface, whatever it is tied to; branches of a trunk are left.
    pub(super) fn remove_interface(&mut self, id: &InterfaceId) {
        let branches = self.index.vlans_of_trunk.get(id).cloned();
        let of_trunk = branches.unwrap_or_default().into_values();
        let own = self.index.association_of_branch.get(id).cloned();
        for association in of_trunk.chain(own) {
            self.remove_association(&association);
        }
        if let Some(interface) = self.interfaces.remove(id) {
            self.index.remove(&interface);
            self.client_tokens.interface_deleted(&interface);
        }
    }

    pub(super) fn grant(
        &mut self,
        id: &InterfaceId,
        grantee: Grantee,
        permission: String,
        now: Timestamp,
    ) -> Result<Permission, Ec2Error> {
        self.interface(id, now)?;
        let granted = Permission {
            id: self.ids.id(),
            grantee,
            permission,
        };
        self.change_interface(id, |interface| interface.permissions.push(granted.clone()));
        Ok(granted)
    }
}

/// A locally administered address; as unique as the number's last 40 bits. The multiplier is
/// odd, so that consecutive numbers never collide.
fn mac_address(number: u64) -> String {
    let [_, _, _, a, b, c, d, e] = number.to_be_bytes();
    format!("02:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}")
}
