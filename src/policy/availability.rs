//! What there is in EC2 of that which a pod needs, as the allocator says it.

use serde::{Deserialize, Serialize};

/// What there is of a pod's security groups, and of branch interfaces.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Availability {
    /// The groups that do not exist.
    pub missing: Vec<String>,
    /// The groups that exist in another VPC than the cluster's; none while that is unknown.
    pub elsewhere: Vec<GroupElsewhere>,
    /// The VPC of the cluster's nodes, once one is known.
    pub vpc_id: Option<String>,
    /// Branch interfaces that pods can still have; `None` if that is not known, or no node has
    /// any.
    pub free: Option<usize>,
    /// Nodes that have branch interfaces, free or not.
    pub nodes: usize,
}

/// A security group of another VPC than the cluster's.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct GroupElsewhere {
    /// Its id.
    pub id: String,
    /// The VPC that it is in.
    pub vpc_id: String,
}
