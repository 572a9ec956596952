//! The cluster's interfaces as the simulated EC2 has them at this moment.
//!
//! They are read from the simulator's saved state: that is no call, so it shows in no count,
//! and no delay of visibility hides anything.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::Deserialize;
use sgp::api::names::{BRANCH_DESCRIPTION, TAG_INSTANCE_ID, TRUNK_DESCRIPTION};
use sgp::ec2::simulator::Simulator;

/// A network interface.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Interface {
    pub id: String,
    pub subnet_id: String,
    pub description: String,
    pub mac_address: String,
    pub private_ips: Vec<Ipv4Addr>,
    pub ipv6_addresses: Vec<Ipv6Addr>,
    pub groups: Vec<String>,
    pub attachment: Option<Attachment>,
    pub tags: BTreeMap<String, String>,
    /// A branch's place on its trunk.
    #[serde(skip)]
    pub association: Option<Association>,
}

/// An interface's place on an instance.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Attachment {
    pub id: String,
    pub instance_id: String,
    pub delete_on_termination: bool,
}

/// A branch's place on a trunk.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Association {
    pub id: String,
    pub branch_interface_id: String,
    pub trunk_interface_id: String,
    pub vlan_id: u16,
}

#[derive(Deserialize)]
struct Saved {
    interfaces: BTreeMap<String, Interface>,
    associations: BTreeMap<String, Association>,
}

impl Interface {
    pub fn is_trunk(&self) -> bool {
        self.description == TRUNK_DESCRIPTION
    }

    pub fn is_branch(&self) -> bool {
        self.description == BRANCH_DESCRIPTION
    }

    /// The primary address.
    pub fn address(&self) -> Ipv4Addr {
        self.private_ips[0]
    }

    /// A tag's value; empty where there is none.
    pub fn tag(&self, key: &str) -> &str {
        self.tags.get(key).map(String::as_str).unwrap_or_default()
    }

    /// The instance that the interface was made for.
    pub fn instance_id(&self) -> &str {
        self.tag(TAG_INSTANCE_ID)
    }
}

/// Every interface in EC2, by id.
pub fn all(simulator: &Simulator) -> BTreeMap<String, Interface> {
    let saved = simulator.save().unwrap();
    let saved: Saved = serde_json::from_slice(&saved).unwrap();
    let mut interfaces = saved.interfaces;
    for association in saved.associations.into_values() {
        let branch = interfaces.get_mut(&association.branch_interface_id);
        branch.expect("a branch that is there").association = Some(association);
    }
    interfaces
}
