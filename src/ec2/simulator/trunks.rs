//! Trunks: which branch is on which one, and with which VLAN id.

use serde::{Deserialize, Serialize};

use super::cloud::Cloud;
use super::errors::Ec2Error;
use super::ids::{AssociationId, InterfaceId};
use super::timestamp::Timestamp;

/// A branch's place on a trunk.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Association {
    pub(super) id: AssociationId,
    pub(super) branch_interface_id: InterfaceId,
    pub(super) trunk_interface_id: InterfaceId,
    pub(super) vlan_id: u16,
}

impl Cloud {
    pub(super) fn associate(
        &mut self,
        branch_id: &InterfaceId,
        trunk_id: &InterfaceId,
        vlan_id: u16,
        now: Timestamp,
    ) -> Result<Association, Ec2Error> {
        let branch = self.interface(branch_id, now)?;
        let trunk = self.interface(trunk_id, now)?;
        if !trunk.is_trunk() {
            let message = format!("Interface '{trunk_id}' is not a trunk interface.");
            return Err(Ec2Error::invalid_value(message));
        }
        if branch.is_trunk() {
            let message = format!("Interface '{branch_id}' is a trunk interface.");
            return Err(Ec2Error::invalid_value(message));
        }
        if !(1..=4_094).contains(&vlan_id) {
            let expected = "VLAN ids are between 1 and 4094.";
            return Err(Ec2Error::bad_value(vlan_id, "vlanId", expected));
        }
        let associated = self.index.association_of_branch.contains_key(branch_id);
        if associated || branch.attachment.is_some() {
            return Err(Ec2Error::attached_elsewhere(branch_id));
        }
        let attachment = trunk.attachment.as_ref();
        let attachment = attachment.filter(|attachment| attachment.detaching_until.is_none());
        let Some(attachment) = attachment else {
            let message = format!("Trunk interface '{trunk_id}' is not attached to an instance.");
            return Err(Ec2Error::incorrect_state(message));
        };
        if self.interface_zone(branch) != self.interface_zone(trunk) {
            let message = "The branch and the trunk interface must be in the same availability \
                           zone.";
            return Err(Ec2Error::invalid_combination(message));
        }
        let vlans = self.index.vlans_of_trunk.get(trunk_id);
        if vlans.is_some_and(|vlans| vlans.contains_key(&vlan_id)) {
            let message = format!("VLAN id '{vlan_id}' is already in use on trunk '{trunk_id}'.");
            return Err(Ec2Error::invalid_value(message));
        }
        let branches = vlans.map_or(0, |vlans| vlans.len());
        if let Some(limits) = self.limits_of(&attachment.instance_id)
            && branches >= limits.branch_interfaces as usize
        {
            let message = format!(
                "Branch interface count {} exceeds the limit for {}",
                branches + 1,
                limits.instance_type
            );
            return Err(Ec2Error::new("AttachmentLimitExceeded", message));
        }
        let association = Association {
            id: self.ids.id(),
            branch_interface_id: branch_id.clone(),
            trunk_interface_id: trunk_id.clone(),
            vlan_id,
        };
        self.index
            .add_association(&association)
            .map_err(Ec2Error::invalid_value)?;
        let id = association.id.clone();
        self.associations.insert(id, association.clone());
        Ok(association)
    }

    pub(super) fn disassociate(&mut self, id: &AssociationId) -> Result<(), Ec2Error> {
        match self.remove_association(id) {
            Some(_) => Ok(()),
            None => Err(id.not_found()),
        }
    }

    pub(super) fn remove_association(&mut self, id: &AssociationId) -> Option<Association> {
        let association = self.associations.remove(id)?;
        self.index.remove_association(&association);
        Some(association)
    }
}
