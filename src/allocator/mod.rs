//! Trunk and branch interfaces: what a node has, what it should have, and the steps between.
//!
//! Level-triggered: [`plan`] compares the wanted state of one node with what EC2, the API
//! server and the calls under way say, and names the next actions. Whoever carries them out
//! observes what came of them and asks again. Losing the process loses nothing, because
//! everything that counts is observed anew.
//!
//! Pure: nothing in here makes a call, reads a clock or sleeps.

mod calls;
mod candidate;
mod chores;
mod cluster;
pub mod cooldown;
mod desired;
pub mod election;
pub mod groups;
mod messages;
pub mod events;
mod node;
mod objects;
mod plan;
mod retry;
mod request_error;
#[cfg(test)]
mod simulation;
pub mod socket;
mod state;
pub mod view;
mod vlan;
mod watches;

pub use node::{
    AssociationId, Branch, BranchId, DesiredNode, DesiredPod, ObservedNode, PodUid, Subject, Trunk,
    TrunkId,
};
pub use plan::{Action, Plan, plan};
pub use vlan::VlanId;
