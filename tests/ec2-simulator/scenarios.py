"""What boto3 makes of the simulator: scenarios.py SCENARIO ENDPOINT.

Each function whose name is a scenario's runs on a simulator of its own. boto3's parsers decide
whether an answer has EC2's shape; the assertions look at what they made of it.
"""

import json
import sys
import threading
import time
import urllib.request

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError

ENDPOINT = sys.argv[2]


def client(**config):
    config.setdefault("retries", {"total_max_attempts": 1})
    return boto3.client(
        "ec2",
        endpoint_url=ENDPOINT,
        region_name="us-west-2",
        aws_access_key_id="any",
        aws_secret_access_key="any",
        config=Config(**config),
    )


ec2 = client()


def control(method, path, value=None):
    body = None if value is None else json.dumps(value).encode()
    request = urllib.request.Request(f"{ENDPOINT}/simulator/{path}", data=body, method=method)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def refused(code, call, message=None, **parameters):
    """The call ends with this error; EC2's words where `message` is given."""
    try:
        answer = call(**parameters)
    except ClientError as error:
        found = error.response["Error"]
        assert found["Code"] == code, found
        assert message is None or found["Message"] == message, found
        assert error.response["ResponseMetadata"]["RequestId"], error.response
        return error.response["ResponseMetadata"]["HTTPStatusCode"]
    raise AssertionError(f"{code} was expected, not {answer}")


def same(found, wanted):
    assert found == wanted, f"\nfound  {found}\nwanted {wanted}"


def tags(**pairs):
    return [{"Key": key, "Value": value} for key, value in pairs.items()]


def tagged(resource, **pairs):
    return [{"ResourceType": resource, "Tags": tags(**pairs)}]


def only(**filters):
    names = {name: name.replace("_", "-") for name in filters}
    return [
        {"Name": names[name], "Values": values if isinstance(values, list) else [values]}
        for name, values in filters.items()
    ]


class Network:
    """A VPC with two zones, a group and what a node needs."""

    def __init__(self):
        self.vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        self.subnet = self.make_subnet("10.0.0.0/24", "us-west-2a")
        self.other_subnet = self.make_subnet("10.0.1.0/24", "us-west-2b")
        self.group = self.make_group("green")

    def make_subnet(self, block, zone):
        made = ec2.create_subnet(VpcId=self.vpc, CidrBlock=block, AvailabilityZone=zone)
        return made["Subnet"]["SubnetId"]

    def make_group(self, name):
        made = ec2.create_security_group(GroupName=name, Description=name, VpcId=self.vpc)
        return made["GroupId"]

    def run(self, kind="m5.large", **parameters):
        made = ec2.run_instances(
            ImageId="ami-1", InstanceType=kind, MinCount=1, MaxCount=1,
            **{"SubnetId": self.subnet, **parameters},
        )
        return made["Instances"][0]["InstanceId"]

    def interface(self, **parameters):
        parameters = {"SubnetId": self.subnet, "Groups": [self.group], **parameters}
        return ec2.create_network_interface(**parameters)["NetworkInterface"]["NetworkInterfaceId"]

    def trunk(self, instance):
        trunk = self.interface(InterfaceType="trunk", Description="aws-k8s-trunk-eni")
        attachment = ec2.attach_network_interface(
            NetworkInterfaceId=trunk, InstanceId=instance, DeviceIndex=1
        )["AttachmentId"]
        return trunk, attachment

    def branch(self, trunk, vlan):
        branch = self.interface(Description="aws-k8s-branch-eni")
        made = ec2.associate_trunk_interface(
            BranchInterfaceId=branch, TrunkInterfaceId=trunk, VlanId=vlan
        )
        return branch, made["InterfaceAssociation"]["AssociationId"]


def described(interface):
    found = ec2.describe_network_interfaces(NetworkInterfaceIds=[interface])
    return found["NetworkInterfaces"][0]


def interface_ids(**filters):
    found = ec2.describe_network_interfaces(Filters=only(**filters))
    return sorted(one["NetworkInterfaceId"] for one in found["NetworkInterfaces"])


def vpcs_and_subnets():
    vpc = ec2.create_vpc(
        CidrBlock="10.0.0.0/16",
        AmazonProvidedIpv6CidrBlock=True,
        TagSpecifications=tagged("vpc", Name="one"),
    )["Vpc"]
    same(vpc["CidrBlock"], "10.0.0.0/16")
    same(vpc["Tags"], tags(Name="one"))
    ec2.get_waiter("vpc_available").wait(VpcIds=[vpc["VpcId"]])
    v6 = vpc["Ipv6CidrBlockAssociationSet"][0]["Ipv6CidrBlock"]
    assert v6.endswith("/56"), v6

    second = ec2.associate_vpc_cidr_block(VpcId=vpc["VpcId"], CidrBlock="100.64.0.0/16")
    same(second["CidrBlockAssociation"]["CidrBlockState"]["State"], "associated")

    subnet = ec2.create_subnet(
        VpcId=vpc["VpcId"],
        CidrBlock="100.64.0.0/24",
        Ipv6CidrBlock=v6.replace("/56", "/64"),
        AvailabilityZone="us-west-2b",
        TagSpecifications=tagged("subnet", zone="b"),
    )["Subnet"]
    same(subnet["AvailableIpAddressCount"], 251)
    same(subnet["AvailabilityZoneId"], "usw2-az2")
    same(subnet["State"], "available")
    ec2.get_waiter("subnet_available").wait(SubnetIds=[subnet["SubnetId"]])

    found = ec2.describe_subnets(Filters=only(vpc_id=vpc["VpcId"], cidr_block="100.64.*"))
    same(found["Subnets"], [subnet])
    found = ec2.describe_vpcs(Filters=[{"Name": "tag:Name", "Values": ["o?e"]}])
    same([one["VpcId"] for one in found["Vpcs"]], [vpc["VpcId"]])
    same(len(found["Vpcs"][0]["CidrBlockAssociationSet"]), 2)

    tables = ec2.describe_route_tables(Filters=only(vpc_id=vpc["VpcId"]))["RouteTables"]
    same(len(tables), 1)
    same(tables[0]["Associations"][0]["Main"], True)
    same(tables[0]["Routes"][0]["GatewayId"], "local")
    same(tables[0]["Routes"][0]["DestinationCidrBlock"], "10.0.0.0/16")

    make = ec2.create_subnet
    refused("InvalidSubnet.Conflict", make, "The CIDR '100.64.0.0/25' conflicts with another subnet",
            VpcId=vpc["VpcId"], CidrBlock="100.64.0.0/25")
    refused("InvalidSubnet.Range", make, VpcId=vpc["VpcId"], CidrBlock="192.168.0.0/24")
    refused("InvalidSubnet.Range", make, VpcId=vpc["VpcId"], CidrBlock="10.0.0.0/29")
    refused("InvalidParameterValue", make, VpcId=vpc["VpcId"], CidrBlock="10.0.1.0/24",
            AvailabilityZone="eu-central-1a")
    refused("InvalidVpcID.NotFound", make, "The vpc ID 'vpc-0123' does not exist",
            VpcId="vpc-0123", CidrBlock="10.0.1.0/24")
    refused("InvalidVpc.Range", ec2.create_vpc, CidrBlock="10.0.0.0/8")
    refused("InvalidSubnetID.NotFound", ec2.describe_subnets,
            "The subnet ID 'subnet-0123' does not exist", SubnetIds=["subnet-0123"])
    refused("InvalidVpcID.NotFound", ec2.describe_vpcs, VpcIds=["vpc-0123"])
    refused("InvalidRouteTableID.NotFound", ec2.describe_route_tables, RouteTableIds=["rtb-01"])


def security_groups():
    network = Network()
    group, database = network.group, network.make_group("database")
    ec2.get_waiter("security_group_exists").wait(GroupIds=[group])

    permission = {"IpProtocol": "tcp", "FromPort": 5432, "ToPort": 5432}
    from_green = {**permission, "UserIdGroupPairs": [{"GroupId": group, "Description": "green"}]}
    made = ec2.authorize_security_group_ingress(
        GroupId=database,
        IpPermissions=[from_green, {**permission, "IpRanges": [{"CidrIp": "10.0.0.0/16"}],
                                    "Ipv6Ranges": [{"CidrIpv6": "2600::/16"}]}],
        TagSpecifications=tagged("security-group-rule", why="test"),
    )["SecurityGroupRules"]
    same(len(made), 3)
    same(made[0]["ReferencedGroupInfo"]["GroupId"], group)
    same((made[1]["CidrIpv4"], made[2]["CidrIpv6"]), ("10.0.0.0/16", "2600::/16"))
    same(made[0]["Tags"], tags(why="test"))

    shown = ec2.describe_security_groups(GroupIds=[database])["SecurityGroups"][0]
    same(len(shown["IpPermissions"]), 1)
    same(shown["IpPermissions"][0]["FromPort"], 5432)
    same(shown["IpPermissions"][0]["UserIdGroupPairs"][0]["GroupId"], group)
    same(shown["IpPermissionsEgress"][0]["IpProtocol"], "-1")
    same((shown["GroupName"], shown["VpcId"]), ("database", network.vpc))

    rules = ec2.describe_security_group_rules(Filters=only(group_id=database))
    same(len(rules["SecurityGroupRules"]), 4)
    out = [rule for rule in rules["SecurityGroupRules"] if rule["IsEgress"]]
    same((out[0]["FromPort"], out[0]["CidrIpv4"]), (-1, "0.0.0.0/0"))

    refused("InvalidPermission.Duplicate", ec2.authorize_security_group_ingress,
            GroupId=database, IpPermissions=[from_green])
    ec2.authorize_security_group_egress(
        GroupId=database, IpPermissions=[{**permission, "IpRanges": [{"CidrIp": "10.0.0.0/8"}]}])
    refused("DependencyViolation", ec2.delete_security_group,
            f"resource {group} has a dependent object", GroupId=group)
    ec2.revoke_security_group_ingress(GroupId=database, IpPermissions=[from_green])
    refused("InvalidPermission.NotFound", ec2.revoke_security_group_ingress,
            "The specified rule does not exist in this security group.",
            GroupId=database, IpPermissions=[from_green])
    gone = ec2.revoke_security_group_ingress(
        GroupId=database, SecurityGroupRuleIds=[made[1]["SecurityGroupRuleId"]])
    same(gone["RevokedSecurityGroupRules"][0]["CidrIpv4"], "10.0.0.0/16")
    ec2.revoke_security_group_egress(
        GroupId=database, SecurityGroupRuleIds=[out[0]["SecurityGroupRuleId"]])
    ec2.delete_security_group(GroupId=group)

    missing = f"The security group '{group}' does not exist"
    refused("InvalidGroup.NotFound", ec2.delete_security_group, missing, GroupId=group)
    refused("InvalidGroup.NotFound", ec2.describe_security_groups, missing, GroupIds=[group])
    refused("InvalidSecurityGroupRuleId.NotFound", ec2.describe_security_group_rules,
            SecurityGroupRuleIds=["sgr-0123"])
    refused("InvalidGroup.Duplicate", ec2.create_security_group,
            GroupName="database", Description="again", VpcId=network.vpc)
    default = ec2.describe_security_groups(Filters=only(vpc_id=network.vpc, group_name="default"))
    default = default["SecurityGroups"][0]["GroupId"]
    refused("CannotDelete", ec2.delete_security_group, GroupId=default)


def instances():
    network = Network()
    made = ec2.run_instances(
        ImageId="ami-1", InstanceType="m5.large", MinCount=2, MaxCount=3,
        SubnetId=network.subnet, SecurityGroupIds=[network.group],
        TagSpecifications=tagged("instance", Name="node")
        + tagged("network-interface", of="node"),
    )
    ids = [one["InstanceId"] for one in made["Instances"]]
    same(len(set(ids)), 3)
    same(made["Instances"][2]["AmiLaunchIndex"], 2)
    same(made["Instances"][0]["State"], {"Code": 0, "Name": "pending"})
    for waiter in ["instance_exists", "instance_running"]:
        ec2.get_waiter(waiter).wait(InstanceIds=ids)

    found = ec2.describe_instances(Filters=only(
        instance_state_name="running", subnet_id=network.subnet, instance_type="m5.*"))
    same(len(found["Reservations"]), 1)
    node = found["Reservations"][0]["Instances"][0]
    same(node["Placement"]["AvailabilityZone"], "us-west-2a")
    same(node["SecurityGroups"], [{"GroupId": network.group, "GroupName": "green"}])
    same(node["Tags"], tags(Name="node"))
    primary = node["NetworkInterfaces"][0]
    same(primary["PrivateIpAddress"], node["PrivateIpAddress"])
    same(primary["Attachment"]["DeviceIndex"], 0)
    same(primary["Attachment"]["DeleteOnTermination"], True)
    same(described(primary["NetworkInterfaceId"])["TagSet"], tags(of="node"))
    same(interface_ids(**{"attachment.instance_id": node["InstanceId"]}),
         [primary["NetworkInterfaceId"]])
    same(node["LaunchTime"].year >= 2024, True)

    kept = network.interface()
    attachment = ec2.attach_network_interface(
        NetworkInterfaceId=kept, InstanceId=node["InstanceId"], DeviceIndex=1)
    same(described(kept)["Status"], "in-use")
    ended = ec2.terminate_instances(InstanceIds=ids)["TerminatingInstances"]
    same((ended[0]["PreviousState"]["Name"], ended[0]["CurrentState"]["Name"]),
         ("running", "shutting-down"))
    ec2.get_waiter("instance_terminated").wait(InstanceIds=ids)
    same(interface_ids(), [kept])
    same(described(kept)["Status"], "available")
    refused("InvalidAttachmentID.NotFound", ec2.detach_network_interface,
            AttachmentId=attachment["AttachmentId"])
    refused("IncorrectState", ec2.attach_network_interface,
            NetworkInterfaceId=kept, InstanceId=ids[0], DeviceIndex=1)

    own = network.run(SubnetId=network.subnet, PrivateIpAddress="10.0.0.77")
    shown = ec2.describe_instances(Filters=only(private_ip_address="10.0.0.77"))
    same(shown["Reservations"][0]["Instances"][0]["InstanceId"], own)
    launched = ec2.run_instances(
        ImageId="ami-1", InstanceType="m5.large", MinCount=1, MaxCount=1,
        NetworkInterfaces=[
            {"DeviceIndex": 0, "SubnetId": network.subnet, "Groups": [network.group]},
            {"DeviceIndex": 1, "NetworkInterfaceId": kept},
        ],
    )["Instances"][0]
    same(len(launched["NetworkInterfaces"]), 2)

    missing = "The instance ID 'i-0123' does not exist"
    refused("InvalidInstanceID.NotFound", ec2.describe_instances, missing, InstanceIds=["i-0123"])
    refused("InvalidInstanceID.NotFound", ec2.terminate_instances,
            "The instance IDs 'i-0123, i-0124' do not exist", InstanceIds=["i-0123", own, "i-0124"])
    refused("InvalidInstanceID.Malformed", ec2.describe_instances, InstanceIds=["node"])
    refused("InvalidParameterValue", network.run, kind="m5.gigantic")
    refused("VPCIdNotSpecified", ec2.run_instances, ImageId="ami-1", MinCount=1, MaxCount=1)


def instance_types():
    pages = ec2.get_paginator("describe_instance_types").paginate(PaginationConfig={"PageSize": 100})
    found = {one["InstanceType"]: one for page in pages for one in page["InstanceTypes"]}
    same(len(found), 1164)
    same(found["m5.large"]["NetworkInfo"]["MaximumNetworkInterfaces"], 3)
    same(found["m5.large"]["NetworkInfo"]["NetworkCards"][0]["MaximumNetworkInterfaces"], 3)
    same(found["m5.metal"]["BareMetal"], True)
    same(found["t2.small"]["Hypervisor"], "xen")
    some = ec2.describe_instance_types(InstanceTypes=["m5.large"])["InstanceTypes"]
    same(some, [found["m5.large"]])
    refused("InvalidInstanceType", ec2.describe_instance_types, InstanceTypes=["m5.gigantic"])


def interfaces():
    network = Network()
    made = ec2.create_network_interface(
        SubnetId=network.subnet, Groups=[network.group], Description="mine",
        SecondaryPrivateIpAddressCount=2, TagSpecifications=tagged("network-interface", a="1"),
    )["NetworkInterface"]
    interface = made["NetworkInterfaceId"]
    same(len(interface), len("eni-") + 17)
    same((made["Status"], made["InterfaceType"]), ("pending", "interface"))
    same(len(made["MacAddress"].split(":")), 6)
    same([one["Primary"] for one in made["PrivateIpAddresses"]], [True, False, False])
    same(made["PrivateDnsName"],
         f"ip-{made['PrivateIpAddress'].replace('.', '-')}.us-west-2.compute.internal")
    ec2.get_waiter("network_interface_available").wait(NetworkInterfaceIds=[interface])
    same(described(interface)["Groups"], [{"GroupId": network.group, "GroupName": "green"}])

    instance = network.run()
    attached = ec2.attach_network_interface(
        NetworkInterfaceId=interface, InstanceId=instance, DeviceIndex=2, NetworkCardIndex=0)
    shown = described(interface)["Attachment"]
    same((shown["AttachmentId"], shown["InstanceId"], shown["DeviceIndex"], shown["Status"]),
         (attached["AttachmentId"], instance, 2, "attached"))
    same(shown["DeleteOnTermination"], False)

    other = network.make_group("other")
    modify = ec2.modify_network_interface_attribute
    modify(NetworkInterfaceId=interface, Groups=[other, network.group])
    modify(NetworkInterfaceId=interface, Description={"Value": "yours"})
    modify(NetworkInterfaceId=interface, SourceDestCheck={"Value": False})
    modify(NetworkInterfaceId=interface, Attachment={
        "AttachmentId": attached["AttachmentId"], "DeleteOnTermination": True})
    shown = described(interface)
    same([group["GroupId"] for group in shown["Groups"]], [other, network.group])
    same((shown["Description"], shown["SourceDestCheck"]), ("yours", False))
    same(shown["Attachment"]["DeleteOnTermination"], True)

    granted = ec2.create_network_interface_permission(
        NetworkInterfaceId=interface, AwsAccountId="210987654321", Permission="INSTANCE-ATTACH",
    )["InterfacePermission"]
    same((granted["AwsAccountId"], granted["PermissionState"]["State"]),
         ("210987654321", "granted"))

    delete = ec2.delete_network_interface
    refused("InvalidNetworkInterface.InUse", delete,
            f"Network interface '{interface}' is currently in use.", NetworkInterfaceId=interface)
    ec2.detach_network_interface(AttachmentId=attached["AttachmentId"], Force=True)
    same(described(interface)["Status"], "available")
    delete(NetworkInterfaceId=interface)
    missing = f"The networkInterface ID '{interface}' does not exist"
    for call in [delete, modify]:
        parameters = {} if call is delete else {"Description": {"Value": "x"}}
        refused("InvalidNetworkInterfaceID.NotFound", call, missing,
                NetworkInterfaceId=interface, **parameters)
    refused("InvalidNetworkInterfaceID.NotFound", ec2.describe_network_interfaces, missing,
            NetworkInterfaceIds=[interface])
    refused("InvalidNetworkInterfaceId.Malformed", delete, NetworkInterfaceId="eni-hello")
    refused("InvalidParameterCombination", modify, NetworkInterfaceId=network.interface())


def interface_rules():
    network = Network()
    create = ec2.create_network_interface
    missing = "The securityGroup ID 'sg-0123456789abcdef0' does not exist"
    refused("InvalidSecurityGroupID.NotFound", create, missing,
            SubnetId=network.subnet, Groups=[network.group, "sg-0123456789abcdef0"])
    elsewhere = Network()
    refused("InvalidGroup.NotFound", create,
            "You have specified two resources that belong to different networks.",
            SubnetId=network.subnet, Groups=[elsewhere.group])
    six = [network.make_group(f"group-{number}") for number in range(6)]
    refused("SecurityGroupsPerInterfaceLimitExceeded", create, SubnetId=network.subnet, Groups=six)
    interface = network.interface(Groups=six[:5])
    modify = ec2.modify_network_interface_attribute
    refused("SecurityGroupsPerInterfaceLimitExceeded", modify,
            NetworkInterfaceId=interface, Groups=six)
    refused("InvalidSecurityGroupID.NotFound", modify, missing,
            NetworkInterfaceId=interface, Groups=["sg-0123456789abcdef0"])
    refused("InvalidSubnetID.NotFound", create, SubnetId="subnet-0123")
    default = described(ec2.create_network_interface(
        SubnetId=network.subnet)["NetworkInterface"]["NetworkInterfaceId"])
    same(default["Groups"][0]["GroupName"], "default")

    address = "10.0.0.99"
    refused("InvalidParameterValue", create, SubnetId=network.subnet, PrivateIpAddress="10.9.9.9")
    refused("InvalidParameterValue", create, SubnetId=network.subnet, PrivateIpAddress="10.0.0.3")
    same(described(network.interface(PrivateIpAddress=address))["PrivateIpAddress"], address)
    refused("InvalidIPAddress.InUse", create, SubnetId=network.subnet, PrivateIpAddress=address)

    # An m5.large carries three interfaces.
    instance = network.run()
    attach = ec2.attach_network_interface
    first = network.interface()
    attach(NetworkInterfaceId=first, InstanceId=instance, DeviceIndex=1)
    refused("InvalidNetworkInterface.InUse", attach, f"Interface: [{first}] in use.",
            NetworkInterfaceId=first, InstanceId=instance, DeviceIndex=2)
    refused("InvalidParameterValue", attach,
            f"Instance '{instance}' already has an interface attached at device index '1'.",
            NetworkInterfaceId=network.interface(), InstanceId=instance, DeviceIndex=1)
    attach(NetworkInterfaceId=network.interface(), InstanceId=instance, DeviceIndex=2)
    refused("AttachmentLimitExceeded", attach, "Interface count 4 exceeds the limit for m5.large",
            NetworkInterfaceId=network.interface(), InstanceId=instance, DeviceIndex=3)
    refused("InvalidParameterCombination", attach, InstanceId=instance, DeviceIndex=3,
            NetworkInterfaceId=network.interface(SubnetId=network.other_subnet))
    refused("InvalidInstanceID.NotFound", attach, NetworkInterfaceId=network.interface(),
            InstanceId="i-0123", DeviceIndex=1)
    primary = ec2.describe_network_interfaces(Filters=only(**{
        "attachment.instance_id": instance, "attachment.device_index": "0"}))
    refused("OperationNotPermitted", ec2.detach_network_interface,
            AttachmentId=primary["NetworkInterfaces"][0]["Attachment"]["AttachmentId"])

    small = network.make_subnet("10.0.2.0/28", "us-west-2a")
    for _ in range(11):
        network.interface(SubnetId=small)
    same(ec2.describe_subnets(SubnetIds=[small])["Subnets"][0]["AvailableIpAddressCount"], 0)
    refused("InsufficientFreeAddressesInSubnet", create,
            "The specified subnet does not have enough free addresses to satisfy the request.",
            SubnetId=small)
    refused("DependencyViolation", ec2.delete_security_group, GroupId=network.group)
    number = len(interface_ids())
    control("PATCH", "settings", {"cloud": {"quotas": {"network_interfaces": number}}})
    refused("NetworkInterfaceLimitExceeded", create, SubnetId=network.subnet)


def ipv6():
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16", AmazonProvidedIpv6CidrBlock=True)["Vpc"]
    block = vpc["Ipv6CidrBlockAssociationSet"][0]["Ipv6CidrBlock"].replace("/56", "/64")
    subnet = ec2.create_subnet(VpcId=vpc["VpcId"], CidrBlock="10.0.0.0/24", Ipv6CidrBlock=block)
    subnet = subnet["Subnet"]["SubnetId"]
    plain = ec2.create_subnet(VpcId=vpc["VpcId"], CidrBlock="10.0.1.0/24")["Subnet"]["SubnetId"]
    found = [
        ec2.create_network_interface(SubnetId=subnet, Ipv6AddressCount=1)["NetworkInterface"]
        for _ in range(2)
    ]
    addresses = [one["Ipv6Addresses"][0]["Ipv6Address"] for one in found]
    same(len(set(addresses)), 2)
    assert all(one.startswith(block.split("::")[0]) for one in addresses), addresses
    same(interface_ids(**{"ipv6-addresses.ipv6-address": addresses[0]}),
         [found[0]["NetworkInterfaceId"]])
    refused("InvalidParameterValue", ec2.create_network_interface,
            SubnetId=plain, Ipv6AddressCount=1)


def trunks():
    network = Network()
    instance = network.run()
    trunk, attachment = network.trunk(instance)
    same(described(trunk)["InterfaceType"], "trunk")
    branch, association = network.branch(trunk, 7)
    shown = described(branch)
    same((shown["Status"], shown["InterfaceType"]), ("in-use", "branch"))
    found = ec2.describe_trunk_interface_associations(AssociationIds=[association])
    found = found["InterfaceAssociations"][0]
    same((found["BranchInterfaceId"], found["TrunkInterfaceId"], found["VlanId"],
          found["InterfaceProtocol"]), (branch, trunk, 7, "VLAN"))

    associate = ec2.associate_trunk_interface
    free = network.interface()
    refused("InvalidParameterValue", associate,
            f"VLAN id '7' is already in use on trunk '{trunk}'.",
            BranchInterfaceId=free, TrunkInterfaceId=trunk, VlanId=7)
    for vlan in [0, 4095]:
        refused("InvalidParameterValue", associate,
                BranchInterfaceId=free, TrunkInterfaceId=trunk, VlanId=vlan)
    refused("InvalidNetworkInterface.InUse", associate,
            BranchInterfaceId=branch, TrunkInterfaceId=trunk, VlanId=8)
    refused("InvalidParameterValue", associate,
            BranchInterfaceId=free, TrunkInterfaceId=network.interface(), VlanId=8)
    refused("IncorrectState", associate, BranchInterfaceId=free, VlanId=8,
            TrunkInterfaceId=network.interface(InterfaceType="trunk"))
    refused("MissingParameter", associate, BranchInterfaceId=free, TrunkInterfaceId=trunk)

    # An m5.large carries nine branches.
    rest = [network.branch(trunk, vlan) for vlan in [1, 2, 3, 4, 5, 6, 8, 4094]]
    refused("AttachmentLimitExceeded", associate,
            BranchInterfaceId=free, TrunkInterfaceId=trunk, VlanId=9)
    for id in [branch, trunk]:
        refused("InvalidNetworkInterface.InUse", ec2.delete_network_interface,
                NetworkInterfaceId=id)
    refused("OperationNotPermitted", ec2.detach_network_interface, AttachmentId=attachment)
    refused("InvalidNetworkInterface.InUse", ec2.attach_network_interface,
            NetworkInterfaceId=branch, InstanceId=instance, DeviceIndex=2)

    same(ec2.disassociate_trunk_interface(AssociationId=association)["Return"], True)
    same(described(branch)["Status"], "available")
    refused("InvalidAssociationID.NotFound", ec2.disassociate_trunk_interface,
            f"The association ID '{association}' does not exist", AssociationId=association)
    refused("InvalidAssociationID.NotFound", ec2.describe_trunk_interface_associations,
            AssociationIds=[association])
    ec2.delete_network_interface(NetworkInterfaceId=branch)
    associate(BranchInterfaceId=free, TrunkInterfaceId=trunk, VlanId=7)

    second = network.interface(InterfaceType="trunk")
    refused("AttachmentLimitExceeded", ec2.attach_network_interface,
            NetworkInterfaceId=second, InstanceId=instance, DeviceIndex=2)
    refused("UnsupportedOperation", ec2.attach_network_interface,
            NetworkInterfaceId=second, InstanceId=network.run("t3.medium"), DeviceIndex=1)

    ec2.modify_network_interface_attribute(NetworkInterfaceId=trunk, Attachment={
        "AttachmentId": attachment, "DeleteOnTermination": True})
    ec2.terminate_instances(InstanceIds=[instance])
    refused("InvalidNetworkInterfaceID.NotFound", ec2.describe_network_interfaces,
            NetworkInterfaceIds=[trunk])
    left = [id for id, _ in rest] + [free]
    same([described(id)["Status"] for id in left], ["available"] * 9)
    same(ec2.describe_trunk_interface_associations()["InterfaceAssociations"], [])


def tag_calls():
    network = Network()
    interface, instance = network.interface(), network.run()
    ec2.create_tags(Resources=[interface, instance, network.vpc, network.subnet, network.group],
                    Tags=tags(team="red", empty=""))
    same(described(interface)["TagSet"], tags(empty="", team="red"))
    same(interface_ids(**{"tag:team": "r*"}), [interface])
    same(interface_ids(tag_key="team"), [interface])
    found = ec2.describe_tags(Filters=only(key="team"))["Tags"]
    same({one["ResourceType"] for one in found},
         {"network-interface", "instance", "vpc", "subnet", "security-group"})
    found = ec2.describe_tags(Filters=only(resource_id=interface, value="red"))["Tags"]
    same(found, [{"Key": "team", "ResourceId": interface,
                  "ResourceType": "network-interface", "Value": "red"}])
    pages = ec2.get_paginator("describe_tags").paginate(PaginationConfig={"PageSize": 5})
    same(sum(len(page["Tags"]) for page in pages), 10)

    ec2.delete_tags(Resources=[interface], Tags=[{"Key": "team", "Value": "blue"}])
    same(interface_ids(**{"tag:team": "red"}), [interface])
    ec2.delete_tags(Resources=[interface], Tags=[{"Key": "team"}])
    same(interface_ids(**{"tag:team": "red"}), [])
    ec2.delete_tags(Resources=[interface])
    same(described(interface)["TagSet"], [])

    refused("InvalidNetworkInterfaceID.NotFound", ec2.create_tags,
            Resources=[interface, "eni-0123"], Tags=tags(a="b"))
    same(described(interface)["TagSet"], [])
    refused("InvalidParameterValue", ec2.create_tags,
            Resources=[interface], Tags=[{"Key": "aws:x", "Value": ""}])
    refused("InvalidID", ec2.create_tags, Resources=["nothing"], Tags=tags(a="b"))
    many = [{"Key": str(number), "Value": ""} for number in range(51)]
    refused("TagLimitExceeded", ec2.create_tags, Resources=[interface], Tags=many)


def filters():
    network = Network()
    instance = network.run()
    ids = [network.interface(Description=f"pod-{number}") for number in range(3)]
    other = network.interface(SubnetId=network.other_subnet, Description="db*")
    ec2.attach_network_interface(NetworkInterfaceId=ids[2], InstanceId=instance, DeviceIndex=1)
    same(interface_ids(description="pod-?"), sorted(ids))
    same(interface_ids(description=["pod-0", "pod-2"]), sorted([ids[0], ids[2]]))
    same(interface_ids(description="POD-0"), [])
    same(interface_ids(description=r"db\*"), [other])
    same(interface_ids(subnet_id=network.other_subnet), [other])
    same(interface_ids(availability_zone="us-west-2b"), [other])
    same(interface_ids(status="available", group_name="gre*"), sorted([*ids[:2], other]))
    same(interface_ids(**{"attachment.status": "attached", "group_id": network.group}), [ids[2]])
    same(interface_ids(network_interface_id=[ids[0], "eni-0123"]), [ids[0]])
    same(interface_ids(vpc_id="vpc-0123"), [])
    same(interface_ids(interface_type="trunk"), [])
    address = described(other)["PrivateIpAddress"]
    same(interface_ids(private_ip_address=address), [other])
    refused("InvalidParameterValue", ec2.describe_network_interfaces,
            "The filter 'colour' is invalid", Filters=only(colour="red"))
    refused("FilterLimitExceeded", ec2.describe_network_interfaces,
            Filters=only(status=[str(number) for number in range(201)]))
    refused("UnknownParameter", ec2.create_network_interface,
            SubnetId=network.subnet, Ipv4PrefixCount=1)


def pagination():
    network = Network()
    ids = sorted(network.interface() for _ in range(23))
    pages = ec2.get_paginator("describe_network_interfaces").paginate(
        Filters=only(subnet_id=network.subnet), PaginationConfig={"PageSize": 5})
    pages = [[one["NetworkInterfaceId"] for one in page["NetworkInterfaces"]] for page in pages]
    same([len(page) for page in pages], [5, 5, 5, 5, 3])
    same(sum(pages, []), ids)
    found = {
        name: sum(1 for page in ec2.get_paginator(name).paginate(PaginationConfig={"PageSize": 5})
                  for _ in page[key])
        for name, key in [
            ("describe_vpcs", "Vpcs"), ("describe_subnets", "Subnets"),
            ("describe_security_groups", "SecurityGroups"),
            ("describe_security_group_rules", "SecurityGroupRules"),
            ("describe_route_tables", "RouteTables"), ("describe_instances", "Reservations"),
            ("describe_trunk_interface_associations", "InterfaceAssociations"),
        ]
    }
    same(found, {
        "describe_vpcs": 1, "describe_subnets": 2, "describe_security_groups": 2,
        "describe_security_group_rules": 3, "describe_route_tables": 1, "describe_instances": 0,
        "describe_trunk_interface_associations": 0,
    })
    # boto3 would not even send such a call by itself.
    unchecked = client(parameter_validation=False)
    for size in [4, 1001]:
        refused("InvalidParameterValue", unchecked.describe_network_interfaces, MaxResults=size)
    refused("InvalidParameterValue", ec2.describe_network_interfaces, NextToken="nonsense")
    refused("InvalidParameterCombination", ec2.describe_network_interfaces,
            MaxResults=5, NetworkInterfaceIds=ids[:1])
    token = ec2.describe_network_interfaces(MaxResults=5)["NextToken"]
    refused("InvalidParameterValue", ec2.describe_instances, NextToken=token)


def idempotency():
    network = Network()
    parameters = {"SubnetId": network.subnet, "Groups": [network.group], "ClientToken": "pod-1"}
    first = ec2.create_network_interface(**parameters)
    again = ec2.create_network_interface(**parameters)
    same(again["NetworkInterface"], first["NetworkInterface"])
    same(again["ClientToken"], "pod-1")
    interface = first["NetworkInterface"]["NetworkInterfaceId"]
    same(interface_ids(), [interface])
    refused("IdempotentParameterMismatch", ec2.create_network_interface,
            **{**parameters, "Description": "other"})
    ec2.delete_network_interface(NetworkInterfaceId=interface)
    gone = ec2.create_network_interface(**parameters)["NetworkInterface"]["NetworkInterfaceId"]
    same((gone, interface_ids()), (interface, []))

    run = {"ImageId": "ami-1", "InstanceType": "m5.large", "MinCount": 1, "MaxCount": 1,
           "SubnetId": network.subnet, "ClientToken": "node-1"}
    node = ec2.run_instances(**run)["Instances"][0]["InstanceId"]
    same(ec2.run_instances(**run)["Instances"][0]["InstanceId"], node)
    refused("IdempotentParameterMismatch", ec2.run_instances, **{**run, "MaxCount": 2})

    trunk, _ = network.trunk(node)
    associate = {"BranchInterfaceId": network.interface(), "TrunkInterfaceId": trunk,
                 "VlanId": 3, "ClientToken": "pod-1"}
    one = ec2.associate_trunk_interface(**associate)["InterfaceAssociation"]
    same(ec2.associate_trunk_interface(**associate)["InterfaceAssociation"], one)
    refused("IdempotentParameterMismatch", ec2.associate_trunk_interface,
            **{**associate, "VlanId": 4})
    end = {"AssociationId": one["AssociationId"], "ClientToken": "end-1"}
    same(ec2.disassociate_trunk_interface(**end)["Return"], True)
    same(ec2.disassociate_trunk_interface(**end)["Return"], True)


def dry_run_and_permissions():
    network = Network()
    create = ec2.create_network_interface
    status = refused("DryRunOperation", create,
                     "Request would have succeeded, but DryRun flag is set.",
                     SubnetId=network.subnet, DryRun=True)
    same(status, 412)
    same(interface_ids(), [])
    control("PATCH", "settings", {"allowed_actions": ["DescribeNetworkInterfaces"]})
    for dry in [True, False]:
        status = refused("UnauthorizedOperation", create, SubnetId=network.subnet, DryRun=dry)
        same(status, 403)
    same(interface_ids(), [])
    control("PATCH", "settings", {"allowed_actions": None})
    network.interface()


def faults():
    network = Network()
    create = ec2.create_network_interface
    fault = {"action": "CreateNetworkInterface", "skip": 1, "times": 1,
             "outcome": {"error": {"code": "InternalError"}}}
    control("POST", "faults", fault)
    network.interface()
    status = refused("InternalError", create, "An internal error has occurred",
                     SubnetId=network.subnet)
    same(status, 500)
    same(len(interface_ids()), 1)
    same(control("GET", "faults"), [])

    control("POST", "faults", {**fault, "skip": 0, "moment": "after",
                               "outcome": {"error": {"code": "Unavailable", "message": "no"}}})
    refused("Unavailable", create, "no", SubnetId=network.subnet)
    same(len(interface_ids()), 2)

    for moment, number in [("before", 2), ("after", 3)]:
        control("POST", "faults", {**fault, "skip": 0, "moment": moment, "outcome": "drop"})
        try:
            create(SubnetId=network.subnet)
            raise AssertionError("an answer came")
        except ConnectionClosedError:
            pass
        same(len(interface_ids()), number)

    control("POST", "faults", {**fault, "skip": 0, "times": None, "outcome": "hang"})
    impatient = client(read_timeout=0.5)
    try:
        impatient.create_network_interface(SubnetId=network.subnet)
        raise AssertionError("an answer came")
    except ReadTimeoutError:
        pass
    same(len(interface_ids()), 3)
    control("DELETE", "faults")
    network.interface()
    counts = control("GET", "calls")["by_action"]["CreateNetworkInterface"]
    same(counts, {"ok": 2, "InternalError": 1, "Unavailable": 1, "dropped": 2, "hung": 1})


def throttling():
    network = Network()
    control("PATCH", "settings",
            {"throttling": {"CreateNetworkInterface": {"rate": 0.001, "burst": 2}}})
    network.interface()
    network.interface()
    status = refused("RequestLimitExceeded", ec2.create_network_interface,
                     "Request limit exceeded.", SubnetId=network.subnet)
    same(status, 503)
    same(len(interface_ids()), 2)
    control("PATCH", "settings", {"throttling": {"CreateNetworkInterface": None}})
    network.interface()

    # boto3 itself takes the error for a throttle, and tries again until there is a token.
    control("PATCH", "settings",
            {"throttling": {"DescribeVpcs": {"rate": 2, "burst": 1}}})
    patient = client(retries={"mode": "standard", "total_max_attempts": 10})
    for _ in range(3):
        patient.describe_vpcs()
    counts = control("GET", "calls")["by_action"]["DescribeVpcs"]
    same(counts["ok"], 3)
    assert counts["RequestLimitExceeded"] >= 1, counts


def delays():
    network = Network()
    instance = network.run()
    control("PATCH", "settings", {"cloud": {"interface_visibility_delay_ms": 60_000}})
    made = ec2.create_network_interface(SubnetId=network.subnet)["NetworkInterface"]
    same(len(interface_ids(subnet_id=network.subnet)), 1)
    for call, parameters in [
        (ec2.describe_network_interfaces, {"NetworkInterfaceIds": [made["NetworkInterfaceId"]]}),
        (ec2.delete_network_interface, {"NetworkInterfaceId": made["NetworkInterfaceId"]}),
        (ec2.create_tags, {"Resources": [made["NetworkInterfaceId"]], "Tags": tags(a="b")}),
    ]:
        refused("InvalidNetworkInterfaceID.NotFound", call, **parameters)
    control("PATCH", "settings", {"cloud": {"interface_visibility_delay_ms": 0}})

    control("PATCH", "settings", {"cloud": {"transition_ms": 60_000}})
    second = network.interface()
    same(described(second)["Status"], "pending")
    attachment = ec2.attach_network_interface(
        NetworkInterfaceId=second, InstanceId=instance, DeviceIndex=1)["AttachmentId"]
    same(described(second)["Attachment"]["Status"], "attaching")
    ec2.detach_network_interface(AttachmentId=attachment)
    same(described(second)["Attachment"]["Status"], "detaching")
    refused("InvalidNetworkInterface.InUse", ec2.delete_network_interface,
            NetworkInterfaceId=second)
    refused("IncorrectState", ec2.detach_network_interface, AttachmentId=attachment)

    control("PATCH", "settings", {"latency_ms": {"DescribeVpcs": 300}})
    begin = time.monotonic()
    answers = [threading.Thread(target=ec2.describe_vpcs) for _ in range(5)]
    [one.start() for one in answers]
    [one.join() for one in answers]
    took = time.monotonic() - begin
    assert took >= 0.3, took
    ec2.describe_subnets()


def log():
    network = Network()
    control("DELETE", "calls")
    interface = network.interface(ClientToken="t")
    refused("InvalidNetworkInterfaceID.NotFound", ec2.delete_network_interface,
            NetworkInterfaceId="eni-0123")
    counts = control("GET", "calls")
    same(counts, {"total": 2, "by_action": {
        "CreateNetworkInterface": {"ok": 1},
        "DeleteNetworkInterface": {"InvalidNetworkInterfaceID.NotFound": 1},
    }})
    first, second = control("GET", "calls/log")
    same(first["parameters"]["ClientToken"], "t")
    same((first["action"], first["outcome"], first["number"]), ("CreateNetworkInterface", "ok", 1))
    same(second["parameters"], {"NetworkInterfaceId": "eni-0123"})
    assert interface not in json.dumps(first)
    for path, value in [
        ("settings", {"latency_ms": {"NoSuchAction": 1}}),
        ("settings", {"latency": {}}),
        ("state", {"region": "us-west-2"}),
    ]:
        try:
            control("PUT", path, value)
            raise AssertionError(f"{value} was taken")
        except urllib.error.HTTPError as error:
            same(error.code, 400)
            assert json.load(error)["error"]


def state():
    network = Network()
    instance = network.run()
    trunk, _ = network.trunk(instance)
    branch, association = network.branch(trunk, 5)
    parameters = {"SubnetId": network.subnet, "ClientToken": "kept"}
    kept = ec2.create_network_interface(**parameters)["NetworkInterface"]["NetworkInterfaceId"]
    saved = control("GET", "state")
    before = ec2.describe_network_interfaces()["NetworkInterfaces"]

    ec2.disassociate_trunk_interface(AssociationId=association)
    ec2.delete_network_interface(NetworkInterfaceId=branch)
    control("PUT", "state", saved)
    same(ec2.describe_network_interfaces()["NetworkInterfaces"], before)
    again = ec2.create_network_interface(**parameters)["NetworkInterface"]["NetworkInterfaceId"]
    same(again, kept)
    refused("InvalidParameterValue", ec2.associate_trunk_interface,
            BranchInterfaceId=kept, TrunkInterfaceId=trunk, VlanId=5)

    saved["associations"][association]["trunk_interface_id"] = branch
    try:
        control("PUT", "state", saved)
        raise AssertionError("a branch was taken for a trunk")
    except urllib.error.HTTPError as error:
        same(error.code, 400)
    same(described(branch)["InterfaceType"], "branch")


def parallel_callers():
    network = Network()
    results = []

    def create():
        own = client()
        for _ in range(10):
            made = own.create_network_interface(SubnetId=network.subnet, ClientToken="same")
            results.append(made["NetworkInterface"]["NetworkInterfaceId"])
            made = own.create_network_interface(SubnetId=network.subnet)["NetworkInterface"]
            results.append(made["PrivateIpAddress"])

    threads = [threading.Thread(target=create) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    same(len(results), 80)
    same(len(set(results)), 41)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
