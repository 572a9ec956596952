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

/// The scheduler of pods that run on Fargate. EKS's own webhook names it in each pod that a
/// Fargate profile takes, beside the label [`FARGATE_PROFILE`], which anybody may write.
pub const FARGATE_SCHEDULER: &str = "fargate-scheduler";

/// The well-known label for a node's operating system.
pub const OS_LABEL: &str = "kubernetes.io/os";

/// The value of [`OS_LABEL`] and of `spec.os.name` for Windows.
pub const OS_WINDOWS: &str = "windows";

/// The MutatingWebhookConfiguration that registers [`MUTATE_POD_PATH`].
pub const MUTATING_WEBHOOK_CONFIGURATION: &str = "vpc-resource-mutating-webhook";

/// The ValidatingWebhookConfiguration that registers the paths that validate.
pub const VALIDATING_WEBHOOK_CONFIGURATION: &str = "vpc-resource-validating-webhook";

/// The Secret that the webhook's replicas share their certificates in, in our namespace.
pub const CERTIFICATE_SECRET: &str = "sgp-webhook-certificates";

/// The path that mutates pods at their creation.
pub const MUTATE_POD_PATH: &str = "/mutate-v1-pod";

/// The path that looks at pods as they are about to be stored, and at their deletion.
pub const VALIDATE_POD_PATH: &str = "/validate-v1-pod";

/// The path that looks at changes of nodes.
pub const VALIDATE_NODE_PATH: &str = "/validate-v1-node";

/// The path that looks at SecurityGroupPolicies.
pub const VALIDATE_POLICY_PATH: &str = "/validate-v1beta1-securitygrouppolicy";

/// The path that looks at what makes pods from a template.
pub const VALIDATE_WORKLOAD_PATH: &str = "/validate-workload";

/// The path that looks at Services, NetworkPolicies and PolicyEndpoints.
pub const VALIDATE_NETWORK_PATH: &str = "/validate-network";

/// What the fail-closed twin of a webhook entry has after its path, so that the API server
/// itself says whether the namespace is enforced.
pub const ENFORCED: &str = "/enforced";

/// The namespace label that selects the fail-closed twin of each webhook entry.
pub const ENFORCE_LABEL: &str = "vpcresources.k8s.aws/enforce";

/// The value of [`ENFORCE_LABEL`] that counts.
pub const ENFORCED_VALUE: &str = "true";

/// In whose name fields are applied (server-side apply), which says whose they are.
pub const FIELD_MANAGER: &str = "sgp";

/// Where pods start whatever becomes of us: the cluster's own namespace and ours.
pub const NEVER_ENFORCED: [&str; 2] = ["kube-system", "sgp-system"];

/// The node label that says what becomes of the trunk: `false`, the CNI asks for one;
/// `true`, it is attached; `not-supported`, the instance type has none.
pub const HAS_TRUNK_ATTACHED: &str = "vpc.amazonaws.com/has-trunk-attached";

/// Custom networking: the node label with the ENIConfig that the CNI has chosen.
pub const ENI_CONFIG_BY_CNI: &str = "vpc.amazonaws.com/eniConfig";

/// Custom networking: the node annotation or label with the ENIConfig that a user has
/// chosen. `ENI_CONFIG_ANNOTATION_DEF` and `ENI_CONFIG_LABEL_DEF` of [`CNI_DAEMON_SET`]
/// put another name in its place.
pub const ENI_CONFIG_BY_USER: &str = "k8s.amazonaws.com/eniConfig";

/// Service annotation of the AWS Load Balancer Controller: `ip` or `instance`.
pub const LOAD_BALANCER_TARGET_TYPE: &str =
    "service.beta.kubernetes.io/aws-load-balancer-nlb-target-type";

/// Service annotation for who makes the load balancer; once `nlb-ip` meant targets of type
/// `ip` too.
pub const LOAD_BALANCER_TYPE: &str = "service.beta.kubernetes.io/aws-load-balancer-type";

/// Who edits PolicyEndpoints: EKS's network policy controller, as EKS runs it or as its chart
/// installs it, and the controllers that delete what has lost its owner or its namespace, with
/// users of their own or that of their process.
pub const POLICY_ENDPOINT_EDITORS: [&str; 5] = [
    "eks:network-policy-controller",
    "system:serviceaccount:kube-system:amazon-network-policy-controller-k8s",
    "system:serviceaccount:kube-system:generic-garbage-collector",
    "system:serviceaccount:kube-system:namespace-controller",
    "system:kube-controller-manager",
];

/// Keeps a CNINode until its interfaces are gone from EC2.
pub const CNI_NODE_FINALIZER: &str = "networking.k8s.aws/resource-cleanup";

/// The user that the VPC CNI plugin is to the API server.
pub const CNI_USER: &str = "system:serviceaccount:kube-system:aws-node";

/// The users that EKS's own controller is to the API server: in the cluster, under the name
/// that its own manifests give it or the one of EKS, and as a part of EKS's control plane.
pub const EKS_CONTROLLER_USERS: [&str; 3] = [
    "system:serviceaccount:kube-system:vpc-resource-controller",
    "system:serviceaccount:kube-system:eks-vpc-resource-controller",
    "eks:vpc-resource-controller",
];

/// The user that our allocator is to the API server where it is installed as our manifests do.
pub const ALLOCATOR_USER: &str = "system:serviceaccount:sgp-system:sgp";

/// Where the VPC CNI plugin and its settings live.
pub const CNI_NAMESPACE: &str = "kube-system";

/// The DaemonSet of the VPC CNI plugin, whose environment holds settings that count here.
pub const CNI_DAEMON_SET: &str = "aws-node";

/// The ConfigMap with settings for all nodes.
pub const CNI_CONFIG_MAP: &str = "amazon-vpc-cni";

/// In [`CNI_CONFIG_MAP`]: how long a branch interface rests after its pod, in seconds.
pub const COOLDOWN_KEY: &str = "branch-eni-cooldown";

/// EC2 tag on trunks and branches; its value is [`OWNER`].
pub const TAG_OWNER: &str = "eks:eni:owner";

/// Who makes trunks and branches. EKS's own controller writes the same, so that either can
/// follow the other.
pub const OWNER: &str = "eks-vpc-resource-controller";

/// EC2 tag on trunks and branches, and in the `spec.tags` of a CNINode: this and the
/// cluster's name; its value is [`OWNED`].
pub const TAG_CLUSTER_PREFIX: &str = "kubernetes.io/cluster/";

/// The value of the tag [`TAG_CLUSTER_PREFIX`]: the interface goes with its cluster.
pub const OWNED: &str = "owned";

/// EC2 tag on trunks and branches: the cluster's name.
pub const TAG_CLUSTER_NAME: &str = "cluster.k8s.amazonaws.com/name";

/// EC2 tag on trunks and branches: the id of the node's instance.
pub const TAG_INSTANCE_ID: &str = "node.k8s.amazonaws.com/instance_id";

/// EC2 tag on branches: the VLAN id, decimal.
pub const TAG_VLAN_ID: &str = "vpcresources.k8s.aws/vlan-id";

/// EC2 tag on branches: the id of the trunk interface.
pub const TAG_TRUNK_ID: &str = "vpcresources.k8s.aws/trunk-eni-id";

/// EC2 tag on branches: the UID of the pod that the interface was made for, which finds it
/// again after a crash. Ours alone; EKS's own controller neither writes nor reads it.
pub const TAG_POD_UID: &str = "vpcresources.k8s.aws/pod-uid";

/// The description of a trunk interface in EC2.
pub const TRUNK_DESCRIPTION: &str = "aws-k8s-trunk-eni";

/// The description of a branch interface in EC2.
pub const BRANCH_DESCRIPTION: &str = "aws-k8s-branch-eni";
