//! The paths that the API server calls, what each is for, and what it takes.

use super::names;

/// One path of the webhook; its fail-closed twin, where it has one, is the same endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Endpoint {
    /// What a pod lacks at its creation.
    MutatePod,
    /// Pods as they are about to be stored, and their deletion.
    ValidatePod,
    /// Changes of nodes.
    ValidateNode,
    /// SecurityGroupPolicies.
    ValidatePolicy,
    /// What makes pods from a template.
    ValidateWorkload,
    /// Services, NetworkPolicies and PolicyEndpoints.
    ValidateNetwork,
}

/// A resource that an endpoint takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Taken {
    /// The API group and version, as `apiVersion` has them.
    pub api_version: &'static str,
    /// For example `Pod`.
    pub kind: &'static str,
    /// With its sub-resource, as the rules of a webhook configuration have it: for example
    /// `pods` or `pods/status`.
    pub resource: &'static str,
}

const fn taken(api_version: &'static str, kind: &'static str, resource: &'static str) -> Taken {
    Taken {
        api_version,
        kind,
        resource,
    }
}

impl Endpoint {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::MutatePod,
        Self::ValidatePod,
        Self::ValidateNode,
        Self::ValidatePolicy,
        Self::ValidateWorkload,
        Self::ValidateNetwork,
    ];

    /// What the entries of the webhook configuration begin with: `mpod` for
    /// `mpod.vpc.k8s.aws` and its twin `mpod-enforced.vpc.k8s.aws`.
    pub fn name(self) -> &'static str {
        match self {
            Self::MutatePod => "mpod",
            Self::ValidatePod => "vpod",
            Self::ValidateNode => "vnode",
            Self::ValidatePolicy => "vsgp",
            Self::ValidateWorkload => "vworkload",
            Self::ValidateNetwork => "vnetwork",
        }
    }

    /// The path without [`names::ENFORCED`].
    pub fn path(self) -> &'static str {
        match self {
            Self::MutatePod => names::MUTATE_POD_PATH,
            Self::ValidatePod => names::VALIDATE_POD_PATH,
            Self::ValidateNode => names::VALIDATE_NODE_PATH,
            Self::ValidatePolicy => names::VALIDATE_POLICY_PATH,
            Self::ValidateWorkload => names::VALIDATE_WORKLOAD_PATH,
            Self::ValidateNetwork => names::VALIDATE_NETWORK_PATH,
        }
    }

    /// The endpoint of a path, or of its fail-closed twin's.
    pub fn of_path(path: &str) -> Option<Self> {
        let path = path.strip_suffix(names::ENFORCED).unwrap_or(path);
        Self::ALL
            .into_iter()
            .find(|endpoint| endpoint.path() == path)
    }

    /// Whether it lets everything in, whatever may be wrong.
    pub fn only_warns(self) -> bool {
        self == Self::ValidateWorkload
    }

    /// What the path takes.
    pub fn takes(self) -> &'static [Taken] {
        match self {
            Self::MutatePod => &PODS[..1],
            Self::ValidatePod => &PODS,
            Self::ValidateNode => &NODES,
            Self::ValidatePolicy => &POLICIES,
            Self::ValidateWorkload => &WORKLOADS,
            Self::ValidateNetwork => &NETWORKS,
        }
    }
}

/// Pods, and all the ways to write a pod's annotations: those of a Binding are copied to its
/// pod.
const PODS: [Taken; 4] = [
    taken("v1", "Pod", "pods"),
    taken("v1", "Pod", "pods/status"),
    taken("v1", "Binding", "pods/binding"),
    taken("v1", "Binding", "bindings"),
];
const NODES: [Taken; 1] = [taken("v1", "Node", "nodes")];
const POLICIES: [Taken; 1] = [taken(
    "vpcresources.k8s.aws/v1beta1",
    "SecurityGroupPolicy",
    "securitygrouppolicies",
)];
const WORKLOADS: [Taken; 6] = [
    taken("apps/v1", "Deployment", "deployments"),
    taken("apps/v1", "ReplicaSet", "replicasets"),
    taken("apps/v1", "StatefulSet", "statefulsets"),
    taken("apps/v1", "DaemonSet", "daemonsets"),
    taken("batch/v1", "Job", "jobs"),
    taken("batch/v1", "CronJob", "cronjobs"),
];
const NETWORKS: [Taken; 3] = [
    taken("v1", "Service", "services"),
    taken("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    taken(
        "networking.k8s.aws/v1alpha1",
        "PolicyEndpoint",
        "policyendpoints",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_documented() {
        let page = include_str!("../../docs/webhook.md");
        for endpoint in Endpoint::ALL {
            let path = endpoint.path();
            assert!(page.contains(&format!("`POST {path}`")), "{path}");
        }
    }
}
