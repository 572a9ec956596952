//! The shapes and names that other programs see.
//!
//! Everything here is fixed by the systems around us: the Kubernetes API, the VPC CNI
//! plugin (`aws-node`) and Amazon EKS. No behaviour, no clients, no defaults that a flag
//! could change.

pub mod cni_node;
pub mod endpoint;
pub mod eni_config;
pub mod names;
pub mod pod_eni;
pub mod security_group_id;
pub mod security_group_policy;

pub use cni_node::{CNINode, CNINodeSpec};
pub use eni_config::{ENIConfig, ENIConfigSpec};
pub use pod_eni::PodEni;
pub use security_group_id::SecurityGroupId;
pub use security_group_policy::{SecurityGroupPolicy, SecurityGroupPolicySpec};
