//! The VPC of the sandbox: three zones, each with a subnet for nodes and one for pods, and
//! the security groups that the examples name.
//!
//! It is made, and found again, by EC2's own actions. What a saved cloud holds is what the
//! user left there, so a network that is found is taken as it is.

use anyhow::Context;
use aws_sdk_ec2::types::{IpPermission, IpRange, ResourceType, UserIdGroupPair};
use aws_sdk_ec2::{Client, Error};

use super::{CLUSTER_NAME, REGION, filter, of_cluster, tags};

/// Where the VPC's routable addresses are.
const BLOCK: &str = "10.0.0.0/16";
/// Addresses for pods alone, as custom networking has them; EC2 takes no block above /16.
const POD_BLOCK: &str = "100.64.0.0/16";
/// What pods without an interface of their own get an address of. In [`BLOCK`], since a node
/// gives them secondary addresses of its interfaces; in no subnet, since EC2 is not asked.
pub(in crate::dev) const SHARED_POD_BLOCK: &str = "10.0.128.0/17";

/// The zones' last letters, their subnets for nodes and those for pods.
const ZONES: [(&str, &str, &str); 3] = [
    ("a", "10.0.0.0/19", "100.64.0.0/19"),
    ("b", "10.0.32.0/19", "100.64.32.0/19"),
    ("c", "10.0.64.0/19", "100.64.64.0/19"),
];

/// The names of subnets after the cluster's.
const NODE_SUBNET: &str = "nodes";
const POD_SUBNET: &str = "pods";

const GREEN: &str = "green";
const DATABASE: &str = "database";
const POSTGRES: i32 = 5432;
const DNS: i32 = 53;

/// Ids of what the sandbox's VPC has.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Network {
    /// The VPC.
    pub vpc_id: String,
    /// By name.
    pub zones: Vec<Zone>,
    /// The security groups.
    pub groups: GroupIds,
}

/// An availability zone.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Zone {
    /// Such as `us-west-2a`.
    pub name: String,
    /// The subnet of the zone's nodes.
    pub subnet_id: String,
    /// The subnet in 100.64.0.0/16 that custom networking uses.
    pub pod_subnet_id: String,
}

/// Ids of security groups.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GroupIds {
    /// What every node has, and what reaches every pod: the cluster security group.
    pub nodes: String,
    /// What `examples/` give to green pods.
    pub green: String,
    /// What lets nobody in but `green`.
    pub database: String,
}

impl Network {
    /// The zone of this name.
    ///
    /// # Errors
    ///
    /// When there is none; the message lists those that there are.
    pub fn zone(&self, name: &str) -> anyhow::Result<&Zone> {
        let names = || {
            let names: Vec<_> = self.zones.iter().map(|zone| zone.name.as_str()).collect();
            format!("there is no zone {name}, only {}", names.join(", "))
        };
        let zone = self.zones.iter().find(|zone| zone.name == name);
        zone.with_context(names)
    }

    /// The network that [`create`] made; `None` in a cloud without.
    pub(super) async fn find(client: &Client) -> anyhow::Result<Option<Self>> {
        let vpcs = client.describe_vpcs().filters(of_cluster()).send();
        let vpcs = vpcs.await.map_err(Error::from)?;
        let Some(vpc_id) = vpcs.vpcs().first().and_then(|vpc| vpc.vpc_id()) else {
            return Ok(None);
        };
        let of_vpc = || filter("vpc-id", [vpc_id.to_owned()]);

        let subnets = client.describe_subnets().filters(of_vpc()).send();
        let subnets = subnets.await.map_err(Error::from)?;
        let subnet = |purpose: &str, zone: &str| {
            let name = subnet_name(purpose, zone);
            let named = subnets.subnets().iter().find(|subnet| {
                let mut tags = subnet.tags().iter();
                tags.any(|tag| tag.key() == Some("Name") && tag.value() == Some(&full(&name)))
            });
            let id = named.and_then(|subnet| subnet.subnet_id());
            id.map(str::to_owned)
                .with_context(|| format!("the subnet {} is missing", full(&name)))
        };
        let zones = ZONES.iter().map(|(letter, _, _)| {
            let name = zone_name(letter);
            anyhow::Ok(Zone {
                subnet_id: subnet(NODE_SUBNET, &name)?,
                pod_subnet_id: subnet(POD_SUBNET, &name)?,
                name,
            })
        });
        let zones = zones.collect::<Result<_, _>>()?;

        let groups = client.describe_security_groups().filters(of_vpc()).send();
        let groups = groups.await.map_err(Error::from)?;
        let group = |name: &str| {
            let mut groups = groups.security_groups().iter();
            let named = groups.find(|group| group.group_name() == Some(name));
            let id = named.and_then(|group| group.group_id());
            id.map(str::to_owned)
                .with_context(|| format!("the security group {name} is missing"))
        };
        Ok(Some(Self {
            vpc_id: vpc_id.to_owned(),
            zones,
            groups: GroupIds {
                nodes: group(&nodes_group_name())?,
                green: group(GREEN)?,
                database: group(DATABASE)?,
            },
        }))
    }
}

/// Makes everything, in an order that does not change: ids follow from it, and the examples
/// name some of them.
pub(super) async fn create(client: &Client) -> Result<(), Error> {
    let vpc = client
        .create_vpc()
        .cidr_block(BLOCK)
        .tag_specifications(tags(ResourceType::Vpc, "vpc"))
        .send()
        .await?;
    let vpc_id = vpc.vpc().and_then(|vpc| vpc.vpc_id()).unwrap_or_default();

    let green = create_group(client, vpc_id, GREEN, "Clients of the database").await?;
    let description = "Databases; lets nobody in but green";
    let database = create_group(client, vpc_id, DATABASE, description).await?;
    let description = "The cluster security group: nodes, and pods without groups of their own";
    let nodes = create_group(client, vpc_id, &nodes_group_name(), description).await?;
    allow(client, &database, permission("tcp", POSTGRES, &green)).await?;
    allow(client, &nodes, permission(ALL, ALL_PORTS, &nodes)).await?;
    for protocol in ["tcp", "udp"] {
        allow(client, &nodes, permission(protocol, DNS, &green)).await?;
    }
    // The kubelets' probes.
    allow(client, &green, permission("tcp", ALL_PORTS, &nodes)).await?;

    let associate = client.associate_vpc_cidr_block();
    let associate = associate.vpc_id(vpc_id).cidr_block(POD_BLOCK);
    associate.send().await?;
    for (letter, node_block, pod_block) in ZONES {
        let zone = zone_name(letter);
        for (purpose, block) in [(NODE_SUBNET, node_block), (POD_SUBNET, pod_block)] {
            client
                .create_subnet()
                .vpc_id(vpc_id)
                .availability_zone(&zone)
                .cidr_block(block)
                .tag_specifications(tags(ResourceType::Subnet, &subnet_name(purpose, &zone)))
                .send()
                .await?;
        }
    }
    Ok(())
}

async fn create_group(
    client: &Client,
    vpc_id: &str,
    name: &str,
    description: &str,
) -> Result<String, Error> {
    let created = client
        .create_security_group()
        .vpc_id(vpc_id)
        .group_name(name)
        .description(description)
        .tag_specifications(tags(ResourceType::SecurityGroup, name))
        .send()
        .await?;
    Ok(created.group_id().unwrap_or_default().to_owned())
}

/// EC2's name for all protocols.
const ALL: &str = "-1";
/// No one port.
const ALL_PORTS: i32 = -1;

/// Traffic to a port from the interfaces of a group.
fn permission(protocol: &str, port: i32, from: &str) -> IpPermission {
    let ports = match (protocol, port) {
        (ALL, _) => None,
        (_, ALL_PORTS) => Some((0, 65_535)),
        (_, port) => Some((port, port)),
    };
    IpPermission::builder()
        .ip_protocol(protocol)
        .set_from_port(ports.map(|ports| ports.0))
        .set_to_port(ports.map(|ports| ports.1))
        .user_id_group_pairs(UserIdGroupPair::builder().group_id(from).build())
        .set_ip_ranges(None::<Vec<IpRange>>)
        .build()
}

async fn allow(client: &Client, group: &str, permission: IpPermission) -> Result<(), Error> {
    let call = client.authorize_security_group_ingress().group_id(group);
    call.ip_permissions(permission).send().await?;
    Ok(())
}

fn zone_name(letter: &str) -> String {
    format!("{REGION}{letter}")
}

fn subnet_name(purpose: &str, zone: &str) -> String {
    format!("{purpose}-{zone}")
}

/// As the tag `Name` has it.
fn full(name: &str) -> String {
    format!("{CLUSTER_NAME}-{name}")
}

/// As EKS calls it.
fn nodes_group_name() -> String {
    format!("eks-cluster-sg-{CLUSTER_NAME}")
}
