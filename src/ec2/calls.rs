//! The calls to EC2 that this crate makes, and what it reads of their answers.

use std::collections::BTreeMap;

use futures::future::BoxFuture;

use super::error::Ec2Error;
use super::instance_limits::InstanceLimits;

/// What a call will bring.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, Ec2Error>>;

/// The part of EC2 that trunk and branch interfaces need.
///
/// Every call is bounded in time, and waits for its turn where EC2 allows fewer calls than
/// are wanted. One that changes something is not repeated after a failure: whether it took
/// effect is for the caller to find out. While there is no answer it may be sent several times,
/// so that what has no client token can fail because it took effect already: a deletion for
/// there is nothing to delete, an attachment for the interface is in use.
pub trait Ec2: Send + Sync {
    /// The interfaces that all filters select, from all pages.
    fn interfaces(&self, filters: Vec<Filter>, priority: Priority) -> Answer<'_, Vec<Interface>>;

    /// The instances of these ids; those that EC2 does not know are left out.
    fn instances(&self, ids: Vec<String>, priority: Priority) -> Answer<'_, Vec<Instance>>;

    /// The subnets of these ids; those that EC2 does not know are left out.
    fn subnets(&self, ids: Vec<String>) -> Answer<'_, Vec<Subnet>>;

    /// The security groups of these ids; those that EC2 does not know are left out.
    fn security_groups(&self, ids: Vec<String>) -> Answer<'_, Vec<SecurityGroup>>;

    /// The limits of an instance type; `None` if EC2 does not know it.
    fn instance_limits(&self, instance_type: String) -> Answer<'_, Option<InstanceLimits>>;

    /// Every association of a branch with a trunk in the region.
    fn associations(&self) -> Answer<'_, Vec<Association>>;

    /// Creates an interface.
    fn create_interface(&self, interface: NewInterface) -> Answer<'_, Interface>;

    /// Attaches an interface to an instance, and gives the attachment's id.
    fn attach(
        &self,
        interface_id: String,
        instance_id: String,
        device_index: i32,
    ) -> Answer<'_, String>;

    /// Lets an attached interface go with its instance.
    fn delete_on_termination(&self, interface_id: String, attachment_id: String) -> Answer<'_, ()>;

    /// Replaces an interface's groups.
    fn set_groups(&self, interface_id: String, group_ids: Vec<String>) -> Answer<'_, ()>;

    /// Associates a branch with a trunk, and gives the association's id.
    fn associate(&self, association: NewAssociation) -> Answer<'_, String>;

    /// Ends the association of a branch with a trunk.
    fn disassociate(&self, association_id: String) -> Answer<'_, ()>;

    /// Detaches an interface.
    fn detach(&self, attachment_id: String) -> Answer<'_, ()>;

    /// Adds tags to an interface, or replaces their values.
    fn tag_interface(&self, interface_id: String, tags: BTreeMap<String, String>)
    -> Answer<'_, ()>;

    /// Deletes an interface.
    fn delete_interface(&self, interface_id: String) -> Answer<'_, ()>;
}

/// Who goes first when EC2 takes fewer calls than there are.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Priority {
    /// A pod waits for it.
    Allocation,
    /// Something is given back.
    Deletion,
    /// Nothing waits for it.
    Audit,
}

/// A filter of EC2's: one of the values must match.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Filter {
    /// Such as `tag:Name` or `vpc-id`.
    pub name: String,
    /// At most 200.
    pub values: Vec<String>,
}

impl Filter {
    /// A filter with one value.
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            values: vec![value.into()],
        }
    }
}

/// What a network interface is to its instance.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum InterfaceKind {
    /// It carries branches.
    Trunk,
    /// It hangs on a trunk; EC2 calls it so only while it is associated.
    Branch,
    /// Any other, a branch without its association included.
    Other,
}

/// A network interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Interface {
    /// Its id.
    pub id: String,
    /// What EC2 says that it is.
    pub kind: InterfaceKind,
    /// The description that it was created with.
    pub description: String,
    /// Whether it is attached to an instance or associated with a trunk.
    pub in_use: bool,
    /// Its MAC address.
    pub mac_address: String,
    /// Its primary IPv4 address; empty if it has none.
    pub private_ip: String,
    /// Its first IPv6 address, if it has one.
    pub ipv6_address: Option<String>,
    /// The subnet that it is in.
    pub subnet_id: String,
    /// The VPC that it is in.
    pub vpc_id: String,
    /// Its security groups.
    pub group_ids: Vec<String>,
    /// Its attachment to an instance; a branch has none.
    pub attachment: Option<Attachment>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// The attachment of an interface to an instance.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Attachment {
    /// Its id.
    pub id: String,
    /// The instance.
    pub instance_id: String,
    /// Whether it is complete and not about to end.
    pub attached: bool,
    /// Whether the interface goes with the instance.
    pub delete_on_termination: bool,
}

/// An interface that is to be made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NewInterface {
    /// Whether it is to carry branches.
    pub trunk: bool,
    /// The subnet that it is to be in.
    pub subnet_id: String,
    /// Its security groups.
    pub group_ids: Vec<String>,
    /// Its description.
    pub description: String,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Whether it gets an IPv6 address besides.
    pub ipv6: bool,
    /// Makes a repeated call give the same interface; at most 64 characters of ASCII.
    pub client_token: String,
}

/// An instance.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Instance {
    /// Its id.
    pub id: String,
    /// Such as `m5.large`.
    pub instance_type: String,
    /// Whether it is pending or running, rather than on its way to its end.
    pub alive: bool,
    /// The subnet of its primary interface.
    pub subnet_id: String,
    /// The VPC that it is in.
    pub vpc_id: String,
    /// The security groups of its primary interface.
    pub group_ids: Vec<String>,
    /// The device indexes that are taken on the first network card, one for each attached
    /// interface there.
    pub device_indexes: Vec<i32>,
}

/// A subnet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Subnet {
    /// Its id.
    pub id: String,
    /// The VPC that it is in.
    pub vpc_id: String,
    /// Its IPv4 block.
    pub ipv4_cidr: String,
    /// Its IPv6 block; empty if it has none.
    pub ipv6_cidr: String,
}

/// A security group.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SecurityGroup {
    /// Its id.
    pub id: String,
    /// The VPC that it is in.
    pub vpc_id: String,
}

/// The association of a branch with a trunk.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Association {
    /// Its id.
    pub id: String,
    /// The trunk.
    pub trunk_id: String,
    /// The branch.
    pub branch_id: String,
    /// The VLAN id.
    pub vlan: u16,
}

/// An association that is to be made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NewAssociation {
    /// The trunk.
    pub trunk_id: String,
    /// The branch.
    pub branch_id: String,
    /// The VLAN id.
    pub vlan: u16,
    /// Makes a repeated call give the same association; at most 64 characters of ASCII.
    pub client_token: String,
}
