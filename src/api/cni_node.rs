//! `CNINode`: what the VPC CNI plugin asks of a node, one object a node.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a node's VPC CNI plugin asks for. It has the node's name, belongs to the node and
/// is created by us; `aws-node` adds the features.
#[derive(CustomResource, Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[kube(
    group = "vpcresources.k8s.aws",
    version = "v1alpha1",
    kind = "CNINode",
    plural = "cninodes",
    singular = "cninode",
    shortname = "cnd",
    derive = "PartialEq",
    doc = "CNINode says which features the VPC CNI plugin of the node of the same name asks for.",
    printcolumn(
        name = "Features",
        type_ = "string",
        json_path = ".spec.features",
        description = "The features that the node asks for"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct CNINodeSpec {
    /// The features that the node asks for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<Feature>,

    /// EC2 tags for every interface that is made for the node, besides our own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
}

/// One feature of a node.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Feature {
    /// Which feature.
    #[schemars(with = "DefinedFeatureName")]
    pub name: FeatureName,

    /// Empty for `SecurityGroupsForPods`; the ENIConfig's name for `CustomNetworking`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// The features that a node can ask for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum FeatureName {
    /// Branch interfaces for pods that a SecurityGroupPolicy selects.
    SecurityGroupsForPods,
    /// Interfaces in the subnet of an ENIConfig.
    CustomNetworking,
    /// One that a later plugin has brought, which is none of our business.
    #[serde(untagged)]
    Other(String),
}

/// The features that our definition of the resource takes.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
enum DefinedFeatureName {
    /// Branch interfaces for pods that a SecurityGroupPolicy selects.
    SecurityGroupsForPods,
    /// Interfaces in the subnet of an ENIConfig.
    CustomNetworking,
}
