//! Trunk and branch interfaces: what a node has, what it should have, and the steps between.
//!
//! Level-triggered: [`plan`] compares the wanted state of one node with what EC2, the API
//! server and the calls under way say, and names the next actions. Whoever carries them out
//! observes what came of them and asks again. Losing the process loses nothing, because
//! everything that counts is observed anew.
//!
//! The plan is pure: it makes no call, reads no clock and does not sleep. Around it are
//! [`groups`], which asks EC2 for security groups, and [`socket`], which shows others what is
//! known.

pub mod groups;
mod node;
mod plan;
#[cfg(test)]
mod simulation;
pub mod socket;
pub mod view;
mod vlan;

pub use node::{
    AssociationId, Branch, BranchId, DesiredNode, DesiredPod, ObservedNode, PodUid, Subject, Trunk,
    TrunkId,
};
pub use plan::{Action, Plan, plan};
pub use vlan::VlanId;
