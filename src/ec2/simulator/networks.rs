//! VPCs, their subnets and route tables.

use serde::{Deserialize, Serialize};

use super::addresses::{Ipv4Block, Ipv6Block};
use super::cloud::Cloud;
use super::errors::Ec2Error;
use super::ids::{CidrAssociationId, GroupId, RouteTableId, SubnetId, VpcId};
use super::tags::Tags;

/// A VPC.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Vpc {
    pub(super) id: VpcId,
    /// The first one is the VPC's own.
    pub(super) cidr_blocks: Vec<CidrAssociation<Ipv4Block>>,
    pub(super) ipv6_blocks: Vec<CidrAssociation<Ipv6Block>>,
    pub(super) instance_tenancy: String,
    pub(super) default_group_id: GroupId,
    pub(super) tags: Tags,
}

/// A block of addresses that a VPC has.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct CidrAssociation<B> {
    pub(super) id: CidrAssociationId,
    pub(super) block: B,
}

/// A subnet.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Subnet {
    pub(super) id: SubnetId,
    pub(super) vpc_id: VpcId,
    pub(super) availability_zone: String,
    pub(super) cidr_block: Ipv4Block,
    pub(super) ipv6_block: Option<Ipv6Block>,
    pub(super) tags: Tags,
}

/// A route table; each VPC has one, with the routes inside the VPC.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct RouteTable {
    pub(super) id: RouteTableId,
    pub(super) vpc_id: VpcId,
    pub(super) association_id: String,
    pub(super) tags: Tags,
}

/// What CreateVpc is asked for.
pub(super) struct NewVpc {
    pub(super) cidr_block: Ipv4Block,
    pub(super) with_ipv6: bool,
    pub(super) instance_tenancy: String,
    pub(super) tags: Tags,
}

/// What CreateSubnet is asked for.
pub(super) struct NewSubnet {
    pub(super) vpc_id: VpcId,
    pub(super) cidr_block: Ipv4Block,
    pub(super) ipv6_block: Option<Ipv6Block>,
    pub(super) availability_zone: Option<String>,
    pub(super) tags: Tags,
}

impl Cloud {
    pub(super) fn vpc(&self, id: &VpcId) -> Result<&Vpc, Ec2Error> {
        self.vpcs.get(id).ok_or_else(|| id.not_found())
    }

    pub(super) fn subnet(&self, id: &SubnetId) -> Result<&Subnet, Ec2Error> {
        self.subnets.get(id).ok_or_else(|| id.not_found())
    }

    /// Makes a VPC with its default security group and its main route table.
    pub(super) fn create_vpc(&mut self, new: NewVpc) -> Result<VpcId, Ec2Error> {
        check_block_size(new.cidr_block, "InvalidVpc.Range")?;
        let id: VpcId = self.ids.id();
        let default_group_id = self.insert_group(&id, "default", "default VPC security group");
        let own = CidrAssociation {
            id: self.ids.id(),
            block: new.cidr_block,
        };
        let vpc = Vpc {
            id: id.clone(),
            cidr_blocks: vec![own],
            ipv6_blocks: Vec::new(),
            instance_tenancy: new.instance_tenancy,
            default_group_id,
            tags: new.tags,
        };
        self.vpcs.insert(id.clone(), vpc);
        if new.with_ipv6 {
            self.add_ipv6_block(&id)?;
        }
        let table = RouteTable {
            id: self.ids.id(),
            vpc_id: id.clone(),
            association_id: format!("rtbassoc-0{:016x}", self.ids.number()),
            tags: Tags::new(),
        };
        self.route_tables.insert(table.id.clone(), table);
        Ok(id)
    }

    /// Gives a VPC another block of IPv4 addresses.
    pub(super) fn add_cidr_block(
        &mut self,
        id: &VpcId,
        block: Ipv4Block,
    ) -> Result<CidrAssociation<Ipv4Block>, Ec2Error> {
        let vpc = self.vpc(id)?;
        check_block_size(block, "InvalidVpc.Range")?;
        if vpc.cidr_blocks.iter().any(|own| own.block.overlaps(block)) {
            let message = format!("The CIDR '{block}' conflicts with another block of the VPC");
            return Err(Ec2Error::new("InvalidVpc.Range", message));
        }
        let association = CidrAssociation {
            id: self.ids.id(),
            block,
        };
        let vpc = self.vpcs.get_mut(id).ok_or_else(|| id.not_found())?;
        vpc.cidr_blocks.push(association.clone());
        Ok(association)
    }

    /// Gives a VPC a block of Amazon's IPv6 addresses.
    pub(super) fn add_ipv6_block(
        &mut self,
        id: &VpcId,
    ) -> Result<CidrAssociation<Ipv6Block>, Ec2Error> {
        self.vpc(id)?;
        // Counted, so that no two VPCs have the same block.
        let taken: usize = self.vpcs.values().map(|vpc| vpc.ipv6_blocks.len()).sum();
        let base = 0x2600_1f13_0000_0000_u128 << 64 | (taken as u128 + 1) << 72;
        let association = CidrAssociation {
            id: self.ids.id(),
            block: Ipv6Block::around(base.into(), 56),
        };
        let vpc = self.vpcs.get_mut(id).ok_or_else(|| id.not_found())?;
        vpc.ipv6_blocks.push(association.clone());
        Ok(association)
    }

    pub(super) fn create_subnet(&mut self, new: NewSubnet) -> Result<SubnetId, Ec2Error> {
        let block = new.cidr_block;
        let vpc = self.vpc(&new.vpc_id)?;
        check_block_size(block, "InvalidSubnet.Range")?;
        if !vpc.cidr_blocks.iter().any(|own| own.block.covers(block)) {
            let message = format!("The CIDR '{block}' is invalid.");
            return Err(Ec2Error::new("InvalidSubnet.Range", message));
        }
        if let Some(v6) = new.ipv6_block {
            let inside = vpc.ipv6_blocks.iter().any(|own| own.block.covers(v6));
            if v6.length() != 64 || !inside {
                let message = format!("The CIDR '{v6}' is invalid.");
                return Err(Ec2Error::new("InvalidSubnet.Range", message));
            }
        }
        let conflict = self.subnets.values().any(|other| {
            let v4 = other.cidr_block.overlaps(block);
            let v6 = other.ipv6_block.zip(new.ipv6_block);
            other.vpc_id == new.vpc_id && (v4 || v6.is_some_and(|(one, two)| one.overlaps(two)))
        });
        if conflict {
            let message = format!("The CIDR '{block}' conflicts with another subnet");
            return Err(Ec2Error::new("InvalidSubnet.Conflict", message));
        }
        let zone = match new.availability_zone {
            None => format!("{}a", self.region),
            Some(zone) if is_zone_of(&zone, &self.region) => zone,
            Some(zone) => {
                return Err(Ec2Error::invalid_value(format!(
                    "Value ({zone}) for parameter availabilityZone is invalid. Subnets can \
                     currently only be created in the following availability zones: \
                     {region}a, {region}b, {region}c, {region}d, {region}e, {region}f.",
                    region = self.region
                )));
            }
        };
        let id: SubnetId = self.ids.id();
        let subnet = Subnet {
            id: id.clone(),
            vpc_id: new.vpc_id,
            availability_zone: zone,
            cidr_block: block,
            ipv6_block: new.ipv6_block,
            tags: new.tags,
        };
        self.subnets.insert(id.clone(), subnet);
        Ok(id)
    }

    pub(super) fn free_addresses(&self, subnet: &Subnet) -> u32 {
        match self.index.taken.get(&subnet.id) {
            Some(taken) => taken.free_v4(subnet.cidr_block),
            None => super::addresses::TakenAddresses::default().free_v4(subnet.cidr_block),
        }
    }

    /// The id that EC2 shows beside a zone's name, such as `usw2-az1` for `us-west-2a`.
    pub(super) fn zone_id(&self, zone: &str) -> String {
        let letter = zone.bytes().last().unwrap_or(b'a');
        let mut parts = self.region.split('-');
        let area = parts.next().unwrap_or_default();
        let direction = parts.next().unwrap_or_default();
        let number = parts.next().unwrap_or_default();
        let short: String = direction.chars().take(1).collect();
        format!(
            "{area}{short}{number}-az{}",
            letter.saturating_sub(b'a') + 1
        )
    }
}

fn is_zone_of(zone: &str, region: &str) -> bool {
    let letter = zone.strip_prefix(region);
    letter.is_some_and(|letter| matches!(letter.as_bytes(), [b'a'..=b'f']))
}

fn check_block_size(block: Ipv4Block, code: &'static str) -> Result<(), Ec2Error> {
    if (16..=28).contains(&block.length()) {
        return Ok(());
    }
    let message = format!("The CIDR '{block}' is invalid.");
    Err(Ec2Error::new(code, message))
}
