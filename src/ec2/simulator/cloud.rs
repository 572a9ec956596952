//! The simulated cloud: everything that EC2 would remember.
//!
//! A plain value. It knows no clock (instants are arguments), no sockets and no settings but
//! [`Behaviour`]. What can be derived is in [`Index`] and never stored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::client_tokens::ClientTokens;
use super::ids::{
    AssociationId, GroupId, IdSource, InstanceId, InterfaceId, RouteTableId, RuleId, SubnetId,
    VpcId,
};
use super::index::Index;
use super::instances::Instance;
use super::interfaces::Interface;
use super::networks::{RouteTable, Subnet, Vpc};
use super::security_groups::{GroupRule, SecurityGroup};
use super::timestamp::Timestamp;
use super::trunks::Association;
use crate::ec2::instance_limits::LimitsTable;

/// Everything that EC2 would remember of one account in one region.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Cloud {
    pub(super) region: String,
    pub(super) account: String,
    pub(super) ids: IdSource,
    pub(super) vpcs: BTreeMap<VpcId, Vpc>,
    pub(super) subnets: BTreeMap<SubnetId, Subnet>,
    pub(super) route_tables: BTreeMap<RouteTableId, RouteTable>,
    pub(super) groups: BTreeMap<GroupId, SecurityGroup>,
    pub(super) group_rules: BTreeMap<RuleId, GroupRule>,
    pub(super) instances: BTreeMap<InstanceId, Instance>,
    pub(super) interfaces: BTreeMap<InterfaceId, Interface>,
    pub(super) associations: BTreeMap<AssociationId, Association>,
    pub(super) client_tokens: ClientTokens,
    #[serde(skip)]
    pub(super) behaviour: Behaviour,
    #[serde(skip)]
    pub(super) index: Index,
    #[serde(skip, default = "built_in_limits")]
    pub(super) limits: LimitsTable,
}

/// How slow and how big the simulated cloud is.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    /// How long a new interface can't be seen: lists lack it, and calls that name it end with
    /// `InvalidNetworkInterfaceID.NotFound`.
    pub interface_visibility_delay_ms: u64,
    /// How long things stay in states between: `pending`, `attaching`, `detaching`,
    /// `shutting-down`.
    pub transition_ms: u64,
    /// What an account may have.
    pub quotas: Quotas,
}

/// What an account may have; the defaults are EC2's.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quotas {
    /// Network interfaces in the region.
    pub network_interfaces: usize,
    /// Security groups of one interface.
    pub security_groups_per_interface: usize,
    /// Security groups of one VPC.
    pub security_groups_per_vpc: usize,
    /// Rules of one security group in one direction.
    pub rules_per_security_group: usize,
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            network_interfaces: 5_000,
            security_groups_per_interface: 5,
            security_groups_per_vpc: 2_500,
            rules_per_security_group: 60,
        }
    }
}

fn built_in_limits() -> LimitsTable {
    LimitsTable::built_in().clone()
}

impl Cloud {
    /// An empty region. The same seed gives the same ids.
    pub fn new(region: &str, account: &str, seed: u64) -> Self {
        Self {
            region: region.to_owned(),
            account: account.to_owned(),
            ids: IdSource::new(seed),
            vpcs: BTreeMap::new(),
            subnets: BTreeMap::new(),
            route_tables: BTreeMap::new(),
            groups: BTreeMap::new(),
            group_rules: BTreeMap::new(),
            instances: BTreeMap::new(),
            interfaces: BTreeMap::new(),
            associations: BTreeMap::new(),
            client_tokens: ClientTokens::default(),
            behaviour: Behaviour::default(),
            index: Index::default(),
            limits: built_in_limits(),
        }
    }

    /// Lets what was under way until `now` come to its end.
    pub(super) fn settle(&mut self, now: Timestamp) {
        self.finish_detachments(now);
        self.client_tokens.forget_old(now);
    }

    /// An Amazon Resource Name of this account and region.
    pub(super) fn arn(&self, kind: &str, id: &str) -> String {
        format!("arn:aws:ec2:{}:{}:{kind}/{id}", self.region, self.account)
    }

    /// Fills the index of a cloud that was read from JSON.
    ///
    /// # Errors
    ///
    /// What is wrong with a state that EC2 could not be in.
    pub(super) fn reindex(&mut self) -> Result<(), String> {
        let index = Index::of(self)?;
        self.index = index;
        match self.contradictions().into_iter().next() {
            None => Ok(()),
            Some(contradiction) => Err(contradiction),
        }
    }

    /// What EC2 could never show; empty unless there is a mistake in here or in a state from
    /// outside.
    pub fn contradictions(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut check = |holds: bool, what: String| {
            if !holds {
                found.push(what);
            }
        };
        for (id, interface) in &self.interfaces {
            check(*id == interface.id, format!("{id} is stored as another"));
            let Some(subnet) = self.subnets.get(&interface.subnet_id) else {
                check(false, format!("the subnet of {id} does not exist"));
                continue;
            };
            check(
                subnet.vpc_id == interface.vpc_id,
                format!("{id} is in another VPC than its subnet"),
            );
            check(
                !interface.private_ips.is_empty()
                    && interface
                        .private_ips
                        .iter()
                        .all(|&address| subnet.cidr_block.contains(address)),
                format!("{id} has an address that its subnet has not"),
            );
            for group in &interface.groups {
                check(
                    self.groups
                        .get(group)
                        .is_some_and(|group| group.vpc_id == interface.vpc_id),
                    format!("{group} of {id} is not in its VPC"),
                );
            }
            if let Some(attachment) = &interface.attachment {
                check(
                    self.instances
                        .get(&attachment.instance_id)
                        .is_some_and(|instance| instance.terminated_at.is_none()),
                    format!("{id} is attached to an instance that is gone"),
                );
                check(
                    !self.index.association_of_branch.contains_key(id),
                    format!("{id} is attached and associated"),
                );
            }
        }
        for id in self.instances.keys() {
            let attached = self.attached_interfaces(id);
            let limits = self.limits_of(id);
            let trunks = attached.iter().filter(|one| one.is_trunk()).count();
            let mut places: Vec<_> = attached.iter().filter_map(|one| one.place()).collect();
            places.sort_unstable();
            places.dedup();
            check(
                places.len() == attached.len(),
                format!("{id} has a device index twice"),
            );
            check(trunks <= 1, format!("{id} has {trunks} trunks"));
            if let Some(limits) = limits {
                check(
                    attached.len() <= limits.max_interfaces as usize,
                    format!("{id} has {} interfaces", attached.len()),
                );
                check(
                    trunks == 0 || limits.trunking,
                    format!("{id} has a trunk and can't have one"),
                );
                let branches = attached
                    .iter()
                    .filter_map(|one| self.index.vlans_of_trunk.get(&one.id))
                    .map(BTreeMap::len)
                    .sum::<usize>();
                check(
                    branches <= limits.branch_interfaces as usize,
                    format!("{id} has {branches} branches"),
                );
            }
        }
        for (id, association) in &self.associations {
            check(
                self.interfaces
                    .contains_key(&association.branch_interface_id)
                    && self
                        .interfaces
                        .get(&association.trunk_interface_id)
                        .is_some_and(Interface::is_trunk),
                format!("{id} ties an interface that is no such one"),
            );
        }
        for (id, rule) in &self.group_rules {
            check(
                self.groups.contains_key(&rule.group_id),
                format!("{id} belongs to no group"),
            );
        }
        for (id, vpc) in &self.vpcs {
            check(
                self.groups.contains_key(&vpc.default_group_id),
                format!("{id} has no default group"),
            );
        }
        for (id, instance) in &self.instances {
            check(
                self.subnets.contains_key(&instance.subnet_id),
                format!("{id} is in no subnet"),
            );
        }
        for (id, subnet) in &self.subnets {
            check(
                self.vpcs.contains_key(&subnet.vpc_id),
                format!("{id} is in no VPC"),
            );
        }
        found
    }
}
