//! `ENIConfig`: the VPC CNI plugin's resource for custom networking. We only read it.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The subnet and security groups of a node's secondary interfaces.
///
/// The VPC CNI plugin owns this resource and installs its definition; ours is for local
/// clusters that have no CNI plugin.
#[derive(CustomResource, Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[kube(
    group = "crd.k8s.amazonaws.com",
    version = "v1alpha1",
    kind = "ENIConfig",
    plural = "eniconfigs",
    singular = "eniconfig",
    derive = "PartialEq",
    doc = "ENIConfig names the subnet and the security groups of a node's secondary interfaces."
)]
#[serde(rename_all = "camelCase")]
pub struct ENIConfigSpec {
    /// The id of the subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,

    /// The ids of the security groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_groups: Option<Vec<String>>,
}
