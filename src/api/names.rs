//! Every name that other programs see, byte for byte.
//!
//! Sources: the VPC CNI plugin's documentation, the EKS user guide ("Assign security
//! groups to individual Pods") and the objects that EKS's own controller creates.

/// The extended resource that stands for one branch interface, and the pod annotation
/// that describes it once it is made.
pub const POD_ENI: &str = "vpc.amazonaws.com/pod-eni";

/// Fargate: the pod annotation with the security group ids, joined by `,`.
pub const FARGATE_POD_SG: &str = "fargate.amazonaws.com/pod-sg";

/// The label that marks a Fargate pod; its value is the profile's name.
pub const FARGATE_PROFILE: &str = "eks.amazonaws.com/fargate-profile";

/// The well-known label for a node's operating system.
pub const OS_LABEL: &str = "kubernetes.io/os";

/// The value of [`OS_LABEL`] and of `spec.os.name` for Windows.
pub const OS_WINDOWS: &str = "windows";

/// The MutatingWebhookConfiguration that registers `/mutate-v1-pod`.
pub const MUTATING_WEBHOOK_CONFIGURATION: &str = "vpc-resource-mutating-webhook";

/// The path that mutates pods at their creation.
pub const MUTATE_POD_PATH: &str = "/mutate-v1-pod";

/// The namespace label that selects the fail-closed twin of each webhook entry.
pub const ENFORCE_LABEL: &str = "vpcresources.k8s.aws/enforce";

/// Where pods start whatever becomes of us: the cluster's own namespace and ours.
pub const NEVER_ENFORCED: [&str; 2] = ["kube-system", "sgp-system"];
