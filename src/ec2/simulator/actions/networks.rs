//! VPCs, subnets and route tables.

use super::super::addresses::{Ipv4Block, Ipv6Block};
use super::super::cloud::Cloud;
use super::super::errors::Ec2Error;
use super::super::filters::{Described, Field, Filters};
use super::super::ids::{RouteTableId, SubnetId, VpcId};
use super::super::networks::{CidrAssociation, NewSubnet, NewVpc, RouteTable, Subnet, Vpc};
use super::super::pages::Page;
use super::super::tags::Tags;
use super::super::xml::Xml;
use super::{Action, Call, many, one, tags_only_for, write_tags};

pub(super) const ACTIONS: &[Action] = &[
    Action {
        name: "CreateVpc",
        parameters: &[
            "CidrBlock",
            "AmazonProvidedIpv6CidrBlock",
            "InstanceTenancy",
            "TagSpecification",
        ],
        run: create_vpc,
    },
    Action {
        name: "AssociateVpcCidrBlock",
        parameters: &["VpcId", "CidrBlock", "AmazonProvidedIpv6CidrBlock"],
        run: associate_vpc_cidr_block,
    },
    Action {
        name: "DescribeVpcs",
        parameters: &["VpcId", "Filter", "MaxResults", "NextToken"],
        run: describe_vpcs,
    },
    Action {
        name: "CreateSubnet",
        parameters: &[
            "VpcId",
            "CidrBlock",
            "Ipv6CidrBlock",
            "AvailabilityZone",
            "TagSpecification",
        ],
        run: create_subnet,
    },
    Action {
        name: "DescribeSubnets",
        parameters: &["SubnetId", "Filter", "MaxResults", "NextToken"],
        run: describe_subnets,
    },
    Action {
        name: "DescribeRouteTables",
        parameters: &["RouteTableId", "Filter", "MaxResults", "NextToken"],
        run: describe_route_tables,
    },
];

const A_BLOCK: &str = "This is not a valid CIDR block.";

fn create_vpc(call: &mut Call<'_>) -> Result<Xml, Ec2Error> {
    let parameters = call.parameters();
    let block: Option<Ipv4Block> = parameters.parsed("CidrBlock", A_BLOCK)?;
    let new = NewVpc {
        cidr_block: block.ok_or_else(|| Ec2Error::missing_parameter("cidrBlock"))?,
        with_ipv6: parameters
            .flag("AmazonProvidedIpv6CidrBlock")?
            .unwrap_or(false),
        instance_tenancy: parameters
            .owned("InstanceTenancy")
            .unwrap_or_else(|| "default".to_owned()),
        tags: tags_only_for(&parameters, "vpc")?,
    };
    let id = call.cloud.create_vpc(new)?;
    let vpc = call.cloud.vpc(&id)?;
    let mut xml = Xml::new();
    xml.group("vpc", |xml| write_vpc(xml, call.cloud, vpc));
    Ok(xml)
}

fn associate_vpc_cidr_block(call: &mut Call<'_>) -> Result<Xml, Ec2Error> {
    let parameters = call.parameters();
    let id: VpcId = parameters.id("VpcId")?;
    let block: Option<Ipv4Block> = parameters.parsed("CidrBlock", A_BLOCK)?;
    let v6 = parameters.flag("AmazonProvidedIpv6CidrBlock")?;
    let mut xml = Xml::new();
    match (block, v6.unwrap_or(false)) {
        (Some(block), false) => {
            let own = call.cloud.add_cidr_block(&id, block)?;
            xml.group("cidrBlockAssociation", |xml| write_v4(xml, &own));
        }
        (None, true) => {
            let own = call.cloud.add_ipv6_block(&id)?;
            xml.group("ipv6CidrBlockAssociation", |xml| write_v6(xml, &own));
        }
        _ => {
            let message = "Either CidrBlock or AmazonProvidedIpv6CidrBlock must be given.";
            return Err(Ec2Error::invalid_combination(message));
        }
    }
    xml.text("vpcId", id);
    Ok(xml)
}

fn describe_vpcs(call: &mut Call<'_>) -> Result<Xml, Ec2Error> {
    let parameters = call.parameters();
    let page = Page::read(&parameters, "DescribeVpcs", "VpcId", 1_000)?;
    let filters: Filters<Vpc> = Filters::read(&parameters)?;
    let ids: Vec<VpcId> = parameters.ids("VpcId")?;
    for id in &ids {
        call.cloud.vpc(id)?;
    }
    let found = call.cloud.vpcs.values().filter(|vpc| {
        (ids.is_empty() || ids.contains(&vpc.id)) && filters.pass(vpc, call.cloud, call.now)
    });
    let (vpcs, next) = page.take(found, |vpc| vpc.id.to_string());
    let mut xml = Xml::new();
    xml.items("vpcSet", vpcs, |xml, vpc| write_vpc(xml, call.cloud, vpc));
    xml.optional("nextToken", next);
    Ok(xml)
}

fn create_subnet(call: &mut Call<'_>) -> Result<Xml, Ec2Error> {
    let parameters = call.parameters();
    let block: Option<Ipv4Block> = parameters.parsed("CidrBlock", A_BLOCK)?;
    let v6: Option<Ipv6Block> = parameters.parsed("Ipv6CidrBlock", A_BLOCK)?;
    let new = NewSubnet {
        vpc_id: parameters.id("VpcId")?,
        cidr_block: block.ok_or_else(|| Ec2Error::missing_parameter("cidrBlock"))?,
        ipv6_block: v6,
        availability_zone: parameters.owned("AvailabilityZone"),
        tags: tags_only_for(&parameters, "subnet")?,
    };
    let id = call.cloud.create_subnet(new)?;
    let subnet = call.cloud.subnet(&id)?;
    let mut xml = Xml::new();
    xml.group("subnet", |xml| write_subnet(xml, call.cloud, subnet));
    Ok(xml)
}

fn describe_subnets(call: &mut Call<'_>) -> Result<Xml, Ec2Error> {
    let parameters = call.parameters();
    let page = Page::read(&parameters, "DescribeSubnets", "SubnetId", 1_000)?;
    let filters: Filters<Subnet> = Filters::read(&parameters)?;
    let ids: Vec<SubnetId> = parameters.ids("SubnetId")?;
    for id in &ids {
        call.cloud.subnet(id)?;
    }
    let found = call.cloud.subnets.values().filter(|subnet| {
        (ids.is_empty() || ids.contains(&subnet.id)) && filters.pass(subnet, call.cloud, call.now)
    });
    let (subnets, next) = page.take(found, |subnet| subnet.id.to_string());
    let mut xml = Xml::new();
    xml.items("subnetSet", subnets, |xml, subnet| {
        write_subnet(xml, call.cloud, subnet);
    });
    xml.optional("nextToken", next);
    Ok(xml)
}

fn describe_route_tables(call: &mut Call<'_>) -> Result<Xml, Ec2Error> {
    let parameters = call.parameters();
    // EC2's own bound for this action.
    let page = Page::read(&parameters, "DescribeRouteTables", "RouteTableId", 100)?;
    let filters: Filters<RouteTable> = Filters::read(&parameters)?;
    let ids: Vec<RouteTableId> = parameters.ids("RouteTableId")?;
    for id in &ids {
        if !call.cloud.route_tables.contains_key(id) {
            return Err(id.not_found());
        }
    }
    let found = call.cloud.route_tables.values().filter(|table| {
        (ids.is_empty() || ids.contains(&table.id)) && filters.pass(table, call.cloud, call.now)
    });
    let (tables, next) = page.take(found, |table| table.id.to_string());
    let mut xml = Xml::new();
    xml.items("routeTableSet", tables, |xml, table| {
        write_route_table(xml, call.cloud, table);
    });
    xml.optional("nextToken", next);
    Ok(xml)
}

fn write_vpc(xml: &mut Xml, cloud: &Cloud, vpc: &Vpc) {
    xml.text("vpcId", &vpc.id);
    xml.text("ownerId", &cloud.account);
    xml.text("state", "available");
    xml.optional("cidrBlock", vpc.cidr_blocks.first().map(|own| own.block));
    xml.items("cidrBlockAssociationSet", &vpc.cidr_blocks, write_v4);
    xml.items("ipv6CidrBlockAssociationSet", &vpc.ipv6_blocks, write_v6);
    xml.text("dhcpOptionsId", "default");
    write_tags(xml, &vpc.tags);
    xml.text("instanceTenancy", &vpc.instance_tenancy);
    xml.text("isDefault", false);
}

fn write_v4(xml: &mut Xml, own: &CidrAssociation<Ipv4Block>) {
    xml.text("associationId", &own.id);
    xml.text("cidrBlock", own.block);
    xml.group("cidrBlockState", |xml| xml.text("state", "associated"));
}

fn write_v6(xml: &mut Xml, own: &CidrAssociation<Ipv6Block>) {
    xml.text("associationId", &own.id);
    xml.text("ipv6CidrBlock", own.block);
    xml.group("ipv6CidrBlockState", |xml| xml.text("state", "associated"));
    xml.text("ipv6Pool", "Amazon");
}

fn write_subnet(xml: &mut Xml, cloud: &Cloud, subnet: &Subnet) {
    let zone = &subnet.availability_zone;
    xml.text("subnetId", &subnet.id);
    xml.text("subnetArn", cloud.arn("subnet", subnet.id.as_str()));
    xml.text("state", "available");
    xml.text("ownerId", &cloud.account);
    xml.text("vpcId", &subnet.vpc_id);
    xml.text("cidrBlock", subnet.cidr_block);
    xml.items(
        "ipv6CidrBlockAssociationSet",
        subnet.ipv6_block,
        |xml, block| {
            let suffix = subnet.id.as_str().trim_start_matches("subnet-");
            xml.text("associationId", format!("subnet-cidr-assoc-{suffix}"));
            xml.text("ipv6CidrBlock", block);
            xml.group("ipv6CidrBlockState", |xml| xml.text("state", "associated"));
        },
    );
    xml.text("availableIpAddressCount", cloud.free_addresses(subnet));
    xml.text("availabilityZone", zone);
    xml.text("availabilityZoneId", cloud.zone_id(zone));
    xml.text("defaultForAz", false);
    xml.text("mapPublicIpOnLaunch", false);
    xml.text("mapCustomerOwnedIpOnLaunch", false);
    xml.text("assignIpv6AddressOnCreation", false);
    xml.text("enableDns64", false);
    xml.text("ipv6Native", false);
    write_tags(xml, &subnet.tags);
}

fn write_route_table(xml: &mut Xml, cloud: &Cloud, table: &RouteTable) {
    xml.text("routeTableId", &table.id);
    xml.text("vpcId", &table.vpc_id);
    xml.text("ownerId", &cloud.account);
    let vpc = cloud.vpcs.get(&table.vpc_id);
    xml.group("routeSet", |xml| {
        let local = |xml: &mut Xml, name: &str, block: String| {
            xml.group("item", |xml| {
                xml.text(name, block);
                xml.text("gatewayId", "local");
                xml.text("state", "active");
                xml.text("origin", "CreateRouteTable");
            });
        };
        for own in vpc.iter().flat_map(|vpc| &vpc.cidr_blocks) {
            local(xml, "destinationCidrBlock", own.block.to_string());
        }
        for own in vpc.iter().flat_map(|vpc| &vpc.ipv6_blocks) {
            local(xml, "destinationIpv6CidrBlock", own.block.to_string());
        }
    });
    xml.items("associationSet", [table], |xml, table| {
        xml.text("routeTableAssociationId", &table.association_id);
        xml.text("routeTableId", &table.id);
        xml.text("main", true);
        xml.group("associationState", |xml| xml.text("state", "associated"));
    });
    xml.group("propagatingVgwSet", |_| {});
    write_tags(xml, &table.tags);
}

impl Described for Vpc {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "vpc-id" => |vpc, _, _| one(&vpc.id),
            "cidr" | "cidr-block" => |vpc, _, _| many(vpc.cidr_blocks.first().map(|own| own.block)),
            "cidr-block-association.cidr-block" => {
                |vpc, _, _| many(vpc.cidr_blocks.iter().map(|own| own.block))
            }
            "ipv6-cidr-block-association.ipv6-cidr-block" => {
                |vpc, _, _| many(vpc.ipv6_blocks.iter().map(|own| own.block))
            }
            "state" => |_, _, _| one("available"),
            "owner-id" => |_, cloud, _| one(&cloud.account),
            "is-default" | "isDefault" => |_, _, _| one(false),
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&Tags> {
        Some(&self.tags)
    }
}

impl Described for Subnet {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "subnet-id" => |subnet, _, _| one(&subnet.id),
            "vpc-id" => |subnet, _, _| one(&subnet.vpc_id),
            "availability-zone" | "availabilityZone" => {
                |subnet, _, _| one(&subnet.availability_zone)
            }
            "availability-zone-id" | "availabilityZoneId" => {
                |subnet, cloud, _| one(cloud.zone_id(&subnet.availability_zone))
            }
            "available-ip-address-count" => |subnet, cloud, _| one(cloud.free_addresses(subnet)),
            "cidr" | "cidr-block" | "cidrBlock" => |subnet, _, _| one(subnet.cidr_block),
            "ipv6-cidr-block-association.ipv6-cidr-block" => |subnet, _, _| many(subnet.ipv6_block),
            "default-for-az" | "defaultForAz" | "map-public-ip-on-launch" => |_, _, _| one(false),
            "owner-id" => |_, cloud, _| one(&cloud.account),
            "subnet-arn" => |subnet, cloud, _| one(cloud.arn("subnet", subnet.id.as_str())),
            "state" => |_, _, _| one("available"),
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&Tags> {
        Some(&self.tags)
    }
}

impl Described for RouteTable {
    fn field(name: &str) -> Option<Field<Self>> {
        Some(match name {
            "route-table-id" | "association.route-table-id" => |table, _, _| one(&table.id),
            "vpc-id" => |table, _, _| one(&table.vpc_id),
            "owner-id" => |_, cloud, _| one(&cloud.account),
            "association.main" => |_, _, _| one(true),
            "association.route-table-association-id" => |table, _, _| one(&table.association_id),
            // No subnet is tied to a route table of its own.
            "association.subnet-id" | "association.gateway-id" => |_, _, _| Vec::new(),
            "route.gateway-id" => |_, _, _| one("local"),
            "route.state" => |_, _, _| one("active"),
            _ => return None,
        })
    }

    fn tags(&self) -> Option<&Tags> {
        Some(&self.tags)
    }
}
