//! `SecurityGroupPolicy`: which pods of its namespace get which security groups.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Gives the pods that it selects the security groups that it lists.
///
/// At least one selector must be given; where both are, both must match. Pods that
/// several policies select get the groups of all of them.
#[derive(CustomResource, Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[kube(
    group = "vpcresources.k8s.aws",
    version = "v1beta1",
    kind = "SecurityGroupPolicy",
    plural = "securitygrouppolicies",
    singular = "securitygrouppolicy",
    shortname = "sgp",
    namespaced,
    derive = "PartialEq",
    doc = "SecurityGroupPolicy gives the pods of its namespace that it selects the EC2 security groups that it lists.",
    printcolumn(
        name = "Security-Group-Ids",
        type_ = "string",
        json_path = ".spec.securityGroups.groupIds",
        description = "The security groups of the pods that the policy selects"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct SecurityGroupPolicySpec {
    /// Selects pods by their labels. `{}` selects every pod of the namespace; absent, the
    /// other selector alone decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,

    /// Selects pods by the labels of their ServiceAccount. `{}` selects every service
    /// account of the namespace; absent, the other selector alone decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_selector: Option<LabelSelector>,

    /// The security groups that selected pods get. A policy without any is ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_groups: Option<SecurityGroups>,
}

/// The security groups of a policy.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SecurityGroups {
    /// Ids of security groups of the cluster's VPC: `sg-` and 8 or 17 hexadecimal digits.
    /// EC2 takes 5 for an interface unless the account's quota was raised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub group_ids: Option<Vec<String>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn policy_keeps_its_json_through_a_round_trip() {
        let json = json!({
            "apiVersion": "vpcresources.k8s.aws/v1beta1",
            "kind": "SecurityGroupPolicy",
            "metadata": {"name": "database", "namespace": "default"},
            "spec": {
                "podSelector": {},
                "serviceAccountSelector": {
                    "matchExpressions": [{"key": "role", "operator": "Exists"}]
                },
                "securityGroups": {"groupIds": ["sg-0123456789abcdef0"]}
            }
        });

        let policy: SecurityGroupPolicy = serde_json::from_value(json.clone()).unwrap();

        assert_eq!(policy.spec.pod_selector, Some(LabelSelector::default()));
        assert_eq!(serde_json::to_value(policy).unwrap(), json);
    }
}
