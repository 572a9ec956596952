//! The steps of the walkthrough, which stand on five nodes of type m5.large: 45 branch
//! interfaces.

use std::net::IpAddr;
use std::time::Duration;

use super::aws::{Call, Shown};
use super::{Action, Expected, Step};

/// How long a step waits for what controllers and watches bring about.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long, where many pods start, or a cooldown has to pass first.
const LONG_PATIENCE: Duration = Duration::from_secs(150);

const REQUESTED: &str = r#""vpc.amazonaws.com/pod-eni":"1""#;
const GREEN_GROUP: &str = "sg-0c584133ac916ab3c";
/// Well-formed, and in no cloud.
const MISSING_GROUP: &str = "sg-0123456789abcdef0";

const POLICY: &str = include_str!("../../../examples/1-policy.yaml");
const GREEN: &str = include_str!("../../../examples/2-green.yaml");
const RED: &str = include_str!("../../../examples/3-red.yaml");
const HASTY_REPLICA_SET: &str = include_str!("../../../examples/5-hasty.yaml");
const HASTY_POD: &str = "\
apiVersion: v1
kind: Pod
metadata:
  name: hasty
  labels:
    app: green
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: app
      image: registry.k8s.io/pause:3.10
";
const COOLDOWN: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata:
  name: amazon-vpc-cni
  namespace: kube-system
data:
  branch-eni-cooldown: "30"
"#;
const POLICY_OF_MISSING_GROUP: &str = "\
apiVersion: vpcresources.k8s.aws/v1beta1
kind: SecurityGroupPolicy
metadata:
  name: analytics
spec:
  podSelector:
    matchLabels:
      app: blue
  securityGroups:
    groupIds:
      - sg-0123456789abcdef0
";
const BLUE: &str = "\
apiVersion: v1
kind: Pod
metadata:
  name: blue
  labels:
    app: blue
spec:
  containers:
    - name: app
      image: registry.k8s.io/pause:3.10
";
const MANY_GREEN: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: clients
spec:
  replicas: 43
  selector:
    matchLabels:
      app: green
      part: clients
  template:
    metadata:
      labels:
        app: green
        part: clients
    spec:
      containers:
        - name: app
          image: registry.k8s.io/pause:3.10
";
const ONE_MORE: &str = "\
apiVersion: v1
kind: Pod
metadata:
  name: one-more
  labels:
    app: green
spec:
  containers:
    - name: app
      image: registry.k8s.io/pause:3.10
";

const DENIAL: &[&str] = &[
    "denied the request: pod",
    r#"SecurityGroupPolicy "database-clients""#,
    "spec.terminationGracePeriodSeconds is 0",
    "Write terminationGracePeriodSeconds: 1 or more",
];

const RESOURCES: &str = "jsonpath={.spec.containers[0].resources}{\"\\n\"}";

pub(super) const STEPS: &[Step] = &[
    step(
        "A namespace of its own",
        kubectl(&["create", "namespace", "demo"]),
        shows(&["namespace/demo created"]),
    ),
    step(
        "A policy: pods with app=green get a security group",
        apply(POLICY),
        shows(&["securitygrouppolicy.vpcresources.k8s.aws/database-clients created"]),
    ),
    step(
        "What would become of a green pod? A server-side dry run tells, and keeps nothing",
        Action::Kubectl(
            &[
                "apply",
                "--namespace=demo",
                "--dry-run=server",
                "-o",
                RESOURCES,
                "-f",
                "-",
            ],
            Some(GREEN),
        ),
        shows(&[REQUESTED]),
    )
    .patient(PATIENCE),
    step(
        "The green pod: it asks for a branch interface now, in limits and requests",
        Action::Kubectl(APPLY_AND_SHOW_RESOURCES, Some(GREEN)),
        shows(&[r#""limits":{"vpc."#, r#""requests":{"vpc."#, REQUESTED]),
    ),
    step(
        "The red pod: no policy selects it, so it is left as it is",
        Action::Kubectl(APPLY_AND_SHOW_RESOURCES, Some(RED)),
        Expected {
            success: true,
            texts: &["{}"],
            no_texts: &["pod-eni"],
        },
    ),
    step(
        "A green pod that would vanish at once: refused, with the reason",
        apply(HASTY_POD),
        Expected {
            success: false,
            texts: DENIAL,
            no_texts: &["created"],
        },
    ),
    step(
        "The same through a ReplicaSet, which is let in",
        apply(HASTY_REPLICA_SET),
        shows(&["replicaset.apps/hasty created"]),
    ),
    step(
        "... and tells why it has no pod",
        kubectl(&["describe", "--namespace=demo", "replicaset", "hasty"]),
        shows(DENIAL),
    )
    .patient(PATIENCE),
    step(
        "What there is so far",
        kubectl(&[
            "get",
            "--namespace=demo",
            "securitygrouppolicies,replicasets,pods",
        ]),
        Expected {
            success: true,
            texts: &["database-clients", GREEN_GROUP, "pod/green", "pod/red"],
            no_texts: &["pod/hasty"],
        },
    ),
    // From here on it is the allocator's turn.
    step(
        "The green pod runs, with an address that no other pod has",
        kubectl(&["get", "--namespace=demo", "pod", "green", "-o", "wide"]),
        shows(&["Running"]),
    )
    // After an earlier walkthrough on the same data, all interfaces may be resting.
    .patient(LONG_PATIENCE)
    .remembering("address", is_address),
    step(
        "EC2 says whose address that is: a branch interface with the policy's group",
        Action::Aws(Call::DescribeInterfaces(
            &[("addresses.private-ip-address", "{address}")],
            Shown::Lines,
        )),
        shows(&["{address}", "aws-k8s-branch-eni", GREEN_GROUP]),
    ),
    step(
        "An interface rests after its pod, by default for 60 seconds. This demo sets 30, the \
         least that is taken",
        Action::Kubectl(
            &["apply", "--namespace=kube-system", "-f", "-"],
            Some(COOLDOWN),
        ),
        shows(&["configmap/amazon-vpc-cni"]),
    ),
    step(
        "A policy with a mistake: there is no such security group",
        apply(POLICY_OF_MISSING_GROUP),
        shows(&["securitygrouppolicy.vpcresources.k8s.aws/analytics created"]),
    ),
    step(
        "Whoever applies a pod for it is warned, already in a dry run",
        Action::Kubectl(
            &["apply", "--namespace=demo", "--dry-run=server", "-f", "-"],
            Some(BLUE),
        ),
        shows(&[
            "Warning: pod \"blue\": security group ",
            MISSING_GROUP,
            "SecurityGroupPolicy \"analytics\"",
            "does not exist",
        ]),
    )
    .patient(PATIENCE),
    step("The pod itself", apply(BLUE), shows(&["pod/blue created"])),
    step(
        "... which waits, and says for which group of which policy",
        kubectl(&["events", "--namespace=demo", "--for=pod/blue"]),
        shows(&[
            "BranchAllocationFailed",
            "InvalidSecurityGroupID.NotFound",
            "The securityGroup ID 'sg-0123456789abcdef0' does not exist",
            "SecurityGroupPolicy \"analytics\" names it",
        ]),
    )
    .patient(PATIENCE),
    step(
        "The group is created. EC2 itself chooses its id, so it is not the one in the policy",
        Action::Aws(Call::CreateGroup("Clients of the analytics")),
        shows(&["sg-"]),
    )
    .remembering("group", is_group),
    step(
        "... and the policy is corrected. Nobody touches the pod",
        kubectl(&[
            "patch",
            "--namespace=demo",
            "securitygrouppolicy",
            "analytics",
            "--type=merge",
            "--patch={\"spec\":{\"securityGroups\":{\"groupIds\":[\"{group}\"]}}}",
        ]),
        shows(&["analytics patched"]),
    ),
    step(
        "It runs by itself",
        kubectl(&["get", "--namespace=demo", "pod", "blue", "-o", "wide"]),
        shows(&["Running"]),
    )
    .patient(PATIENCE)
    .remembering("blue-address", is_address),
    step(
        "... with the new group",
        Action::Aws(Call::DescribeInterfaces(
            &[("group-id", "{group}")],
            Shown::Lines,
        )),
        shows(&["{blue-address}", "aws-k8s-branch-eni", "{group}"]),
    ),
    step(
        "43 more green pods",
        apply(MANY_GREEN),
        shows(&["deployment.apps/clients created"]),
    ),
    step(
        "They run as well, so that 45 pods do which need a branch interface",
        kubectl(&["get", "--namespace=demo", "deployment", "clients"]),
        shows(&["43/43"]),
    )
    .patient(LONG_PATIENCE),
    step(
        "EC2 has as many",
        Action::Aws(Call::DescribeInterfaces(BRANCHES, Shown::Count)),
        shows(&["45"]),
    ),
    step(
        "... which is all that five nodes of type m5.large take",
        kubectl(&[
            "get",
            "nodes",
            "-o",
            "custom-columns=NAME:.metadata.name,\
             INTERFACES:.status.allocatable.vpc\\.amazonaws\\.com/pod-eni",
        ]),
        shows(&["9\n"]),
    ),
    step(
        "The 46th pod",
        apply(ONE_MORE),
        shows(&["pod/one-more created"]),
    ),
    step(
        "... has no room, and the scheduler says of what",
        kubectl(&["describe", "--namespace=demo", "pod", "one-more"]),
        shows(&[
            "Pending",
            "FailedScheduling",
            "5 Insufficient vpc.amazonaws.com/pod-eni",
        ]),
    )
    .patient(PATIENCE),
    step(
        "The policy of the green pods gets a second group, that of the database",
        kubectl(&[
            "patch",
            "--namespace=demo",
            "securitygrouppolicy",
            "database-clients",
            "--type=merge",
            "--patch={\"spec\":{\"securityGroups\":{\"groupIds\":\
             [\"sg-0c584133ac916ab3c\",\"{database}\"]}}}",
        ]),
        shows(&["database-clients patched"]),
    ),
    step(
        "... and the interfaces of the 44 running pods follow",
        Action::Aws(Call::DescribeInterfaces(BRANCHES_OF_DATABASE, Shown::Count)),
        shows(&["44"]),
    )
    .patient(PATIENCE),
    step(
        "The green pod among them",
        Action::Aws(Call::DescribeInterfaces(
            &[("addresses.private-ip-address", "{address}")],
            Shown::Lines,
        )),
        shows(&["{address}", GREEN_GROUP, "{database}"]),
    ),
    step(
        "Its events tell its life so far",
        kubectl(&["events", "--namespace=demo", "--for=pod/green"]),
        shows(&[
            "SecurityGroupRequested",
            "ResourceAllocated",
            "SecurityGroupsChanged",
        ]),
    )
    .patient(PATIENCE),
    step(
        "It is deleted",
        kubectl(&["delete", "--namespace=demo", "pod", "green"]),
        shows(&["deleted"]),
    ),
    step(
        "... and the 46th pod takes over its interface. That takes 30 seconds, the cooldown: \
         what is still sent to the green pod must not reach the next one",
        kubectl(&["get", "--namespace=demo", "pod", "one-more", "-o", "wide"]),
        shows(&["Running", "{address}"]),
    )
    .patient(LONG_PATIENCE),
];

const APPLY_AND_SHOW_RESOURCES: &[&str] =
    &["apply", "--namespace=demo", "-o", RESOURCES, "-f", "-"];

const BRANCHES: &[(&str, &str)] = &[("description", "aws-k8s-branch-eni")];
const BRANCHES_OF_DATABASE: &[(&str, &str)] = &[
    ("description", "aws-k8s-branch-eni"),
    ("group-id", "{database}"),
];

const fn step(title: &'static str, action: Action, expected: Expected) -> Step {
    Step {
        title,
        action,
        expected,
        patience: Duration::ZERO,
        remembers: None,
    }
}

impl Step {
    const fn patient(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    const fn remembering(mut self, name: &'static str, is_meant: fn(&str) -> bool) -> Self {
        self.remembers = Some((name, is_meant));
        self
    }
}

const fn kubectl(arguments: &'static [&'static str]) -> Action {
    Action::Kubectl(arguments, None)
}

const fn apply(manifest: &'static str) -> Action {
    Action::Kubectl(&["apply", "--namespace=demo", "-f", "-"], Some(manifest))
}

const fn shows(texts: &'static [&'static str]) -> Expected {
    Expected {
        success: true,
        texts,
        no_texts: &[],
    }
}

fn is_address(word: &str) -> bool {
    word.parse::<IpAddr>().is_ok()
}

fn is_group(word: &str) -> bool {
    word.starts_with("sg-")
}
