//! What the allocator shows of itself: the JSON of its socket.

use serde::{Deserialize, Serialize};

/// What one allocator knows at a moment.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct View {
    /// Whether this process is the one that works; only it knows of trunks and branches.
    pub leading: bool,
    /// The identity of the process that works, as the Lease has it.
    pub leader: Option<String>,
    /// The VPC of the cluster's nodes, once one is known.
    pub vpc_id: Option<String>,
    /// The nodes that take part or did, by name.
    pub nodes: Vec<NodeView>,
}

/// One node.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct NodeView {
    /// Its name; empty if only its interfaces are left.
    pub name: String,
    /// The EC2 instance.
    pub instance_id: String,
    /// Branch interfaces that pods can have on it.
    pub capacity: usize,
    /// Pods bound to it that ask for one.
    pub requested: usize,
    /// Why it makes no progress, if so.
    pub problem: Option<String>,
    /// Its trunk interface.
    pub trunk: Option<TrunkView>,
    /// Its branch interfaces, by VLAN id.
    pub branches: Vec<BranchView>,
}

/// A trunk interface.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TrunkView {
    /// Its id.
    pub id: String,
    /// Whether it is attached to the instance.
    pub attached: bool,
    /// Its security groups.
    pub group_ids: Vec<String>,
}

/// A branch interface.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct BranchView {
    /// Its id.
    pub id: String,
    /// Its VLAN id on the trunk.
    pub vlan: u16,
    /// Its IPv4 address.
    pub private_ip: String,
    /// Its security groups.
    pub group_ids: Vec<String>,
    /// What it is for.
    pub state: BranchState,
    /// `namespace/name` of the pod that has it.
    pub pod: Option<String>,
}

/// What a branch interface is for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BranchState {
    /// It is being made ready for its pod.
    Preparing,
    /// Its pod's annotation names it.
    InUse,
    /// Its pod is gone, and nobody else gets it yet.
    Cooling,
    /// It waits for the node's next pod.
    Warm,
}

impl View {
    /// Branch interfaces that pods can still have, on all nodes.
    pub fn free(&self) -> usize {
        let free = |node: &NodeView| node.capacity.saturating_sub(node.requested);
        self.nodes.iter().map(free).sum()
    }
}
