//! Ways into the cloud's maps that calls need often. All of it follows from the maps.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::addresses::TakenAddresses;
use super::cloud::Cloud;
use super::ids::{AssociationId, AttachmentId, GroupId, InstanceId, InterfaceId, RuleId, SubnetId};
use super::interfaces::Interface;
use super::security_groups::GroupRule;
use super::timestamp::Timestamp;
use super::trunks::Association;

type Interfaces = BTreeSet<InterfaceId>;

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Index {
    pub(super) by_subnet: HashMap<SubnetId, Interfaces>,
    pub(super) by_group: HashMap<GroupId, Interfaces>,
    pub(super) by_instance: HashMap<InstanceId, Interfaces>,
    /// By key, then by value.
    pub(super) by_tag: HashMap<String, HashMap<String, Interfaces>>,
    pub(super) by_attachment: HashMap<AttachmentId, InterfaceId>,
    pub(super) detaching: BTreeSet<(Timestamp, InterfaceId)>,
    pub(super) taken: HashMap<SubnetId, TakenAddresses>,
    pub(super) association_of_branch: HashMap<InterfaceId, AssociationId>,
    pub(super) vlans_of_trunk: HashMap<InterfaceId, BTreeMap<u16, AssociationId>>,
    pub(super) rules_of_group: HashMap<GroupId, BTreeSet<RuleId>>,
}

impl Index {
    /// The index of a cloud from outside.
    ///
    /// # Errors
    ///
    /// When two things claim what only one can have.
    pub(super) fn of(cloud: &Cloud) -> Result<Self, String> {
        let mut index = Self::default();
        for interface in cloud.interfaces.values() {
            let taken = index.taken.entry(interface.subnet_id.clone()).or_default();
            let v4 = &interface.private_ips;
            let v6 = &interface.ipv6_addresses;
            if v4.iter().any(|one| taken.is_taken_v4(*one))
                || v6.iter().any(|one| taken.is_taken_v6(*one))
            {
                return Err(format!("an address of {} is taken twice", interface.id));
            }
            index.add(interface);
        }
        for association in cloud.associations.values() {
            index.add_association(association)?;
        }
        cloud
            .group_rules
            .values()
            .for_each(|rule| index.add_rule(rule));
        Ok(index)
    }

    pub(super) fn add(&mut self, interface: &Interface) {
        let id = &interface.id;
        let subnet = &interface.subnet_id;
        insert(&mut self.by_subnet, subnet, id);
        for group in &interface.groups {
            insert(&mut self.by_group, group, id);
        }
        for (key, value) in &interface.tags {
            insert(self.by_tag.entry(key.clone()).or_default(), value, id);
        }
        if let Some(attachment) = &interface.attachment {
            insert(&mut self.by_instance, &attachment.instance_id, id);
            self.by_attachment.insert(attachment.id.clone(), id.clone());
            if let Some(until) = attachment.detaching_until {
                self.detaching.insert((until, id.clone()));
            }
        }
        let taken = self.taken.entry(subnet.clone()).or_default();
        taken.take(&interface.private_ips, &interface.ipv6_addresses);
    }

    pub(super) fn remove(&mut self, interface: &Interface) {
        let id = &interface.id;
        remove(&mut self.by_subnet, &interface.subnet_id, id);
        for group in &interface.groups {
            remove(&mut self.by_group, group, id);
        }
        for (key, value) in &interface.tags {
            if let Some(values) = self.by_tag.get_mut(key) {
                remove(values, value, id);
                if values.is_empty() {
                    self.by_tag.remove(key);
                }
            }
        }
        if let Some(attachment) = &interface.attachment {
            remove(&mut self.by_instance, &attachment.instance_id, id);
            self.by_attachment.remove(&attachment.id);
            if let Some(until) = attachment.detaching_until {
                self.detaching.remove(&(until, id.clone()));
            }
        }
        if let Some(taken) = self.taken.get_mut(&interface.subnet_id) {
            taken.release(&interface.private_ips, &interface.ipv6_addresses);
        }
    }

    pub(super) fn add_association(&mut self, association: &Association) -> Result<(), String> {
        let (id, branch) = (&association.id, &association.branch_interface_id);
        let before = self
            .association_of_branch
            .insert(branch.clone(), id.clone());
        if before.is_some() {
            return Err(format!("{branch} is on two trunks"));
        }
        let trunk = &association.trunk_interface_id;
        let vlans = self.vlans_of_trunk.entry(trunk.clone()).or_default();
        match vlans.insert(association.vlan_id, id.clone()) {
            None => Ok(()),
            Some(_) => Err(format!(
                "VLAN id {} is used twice on {trunk}",
                association.vlan_id
            )),
        }
    }

    pub(super) fn remove_association(&mut self, association: &Association) {
        self.association_of_branch
            .remove(&association.branch_interface_id);
        let trunk = &association.trunk_interface_id;
        if let Some(vlans) = self.vlans_of_trunk.get_mut(trunk) {
            vlans.remove(&association.vlan_id);
            if vlans.is_empty() {
                self.vlans_of_trunk.remove(trunk);
            }
        }
    }

    pub(super) fn add_rule(&mut self, rule: &GroupRule) {
        let rules = self.rules_of_group.entry(rule.group_id.clone());
        rules.or_default().insert(rule.id.clone());
    }

    pub(super) fn remove_rule(&mut self, rule: &GroupRule) {
        if let Some(rules) = self.rules_of_group.get_mut(&rule.group_id) {
            rules.remove(&rule.id);
        }
    }
}

fn insert<K>(map: &mut HashMap<K, Interfaces>, key: &K, id: &InterfaceId)
where
    K: Clone + Eq + std::hash::Hash,
{
    match map.get_mut(key) {
        Some(set) => {
            set.insert(id.clone());
        }
        None => {
            map.insert(key.clone(), BTreeSet::from([id.clone()]));
        }
    }
}

fn remove<K>(map: &mut HashMap<K, Interfaces>, key: &K, id: &InterfaceId)
where
    K: Eq + std::hash::Hash,
{
    if let Some(set) = map.get_mut(key) {
        set.remove(id);
        if set.is_empty() {
            map.remove(key);
        }
    }
}
