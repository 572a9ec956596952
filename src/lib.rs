//! Security groups for Kubernetes pods.
//!
//! Map of the crate, in reading order:
//!
//! * [`policy`]: which security groups a pod gets, and why.
//! * [`dev`]: the control plane and sandbox on one machine.

pub mod dev;
pub mod policy;
