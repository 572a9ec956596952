//! How an instance's interfaces should be, from what is known of the cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use super::cluster::{Cluster, PodEntry};
use super::node::DesiredNode;
use super::objects::{Annotation, NodeObject};
use super::state::NodeState;
use super::{Branch, BranchId, DesiredPod, PodUid, Subject};
use crate::api::{ENIConfigSpec, SecurityGroupId};
use crate::ec2::calls::Instance;
use crate::ec2::instance_limits::InstanceLimits;

/// Where a node's interfaces are made, and the groups of what is the node's own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Network {
    /// The subnet.
    pub subnet_id: String,
    /// The groups of the trunk, and of pods that no policy selects.
    pub group_ids: Vec<SecurityGroupId>,
}

/// Why it can't be said where a node's interfaces are made.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NetworkProblem {
    /// Nothing names the ENIConfig.
    #[error(
        "custom networking is on, and the node names no ENIConfig: give it the label or \
         annotation {label}"
    )]
    ConfigNotNamed {
        /// The label's key.
        label: String,
    },
    /// The ENIConfig is not there.
    #[error("ENIConfig {0:?}, which the node names, does not exist: create it")]
    ConfigMissing(String),
    /// The ENIConfig names no subnet.
    #[error("ENIConfig {0:?}, which the node names, has no spec.subnet: write one")]
    SubnetMissing(String),
}

/// Where a node's interfaces are made.
///
/// # Errors
///
/// With custom networking, when the node's ENIConfig can't be used.
pub fn network(
    cluster: &Cluster,
    node: &NodeObject,
    instance: &Instance,
) -> Result<Network, NetworkProblem> {
    let by_cni_node = cluster
        .cni_nodes
        .get(node.name())
        .and_then(|it| it.eni_config());
    let own_groups = || {
        instance
            .group_ids
            .iter()
            .map(|id| id.as_str().into())
            .collect()
    };
    if !cluster.plugin.custom_networking && by_cni_node.is_none() {
        return Ok(Network {
            subnet_id: instance.subnet_id.clone(),
            group_ids: own_groups(),
        });
    }
    let Some(name) = by_cni_node.or_else(|| node.eni_config(&cluster.plugin)) else {
        let label = cluster.plugin.eni_config_label.clone();
        return Err(NetworkProblem::ConfigNotNamed { label });
    };
    let Some(config) = cluster.eni_configs.get(name) else {
        return Err(NetworkProblem::ConfigMissing(name.to_owned()));
    };
    let Some(subnet_id) = config.subnet.clone().filter(|id| !id.is_empty()) else {
        return Err(NetworkProblem::SubnetMissing(name.to_owned()));
    };
    let group_ids = groups_of(config).unwrap_or_else(own_groups);
    Ok(Network {
        subnet_id,
        group_ids,
    })
}

fn groups_of(config: &ENIConfigSpec) -> Option<Vec<SecurityGroupId>> {
    let ids = config
        .security_groups
        .as_ref()
        .filter(|ids| !ids.is_empty())?;
    Some(ids.iter().map(|id| id.as_str().into()).collect())
}

/// Whether a node's plugin asks for branch interfaces.
pub fn asks(cluster: &Cluster, node: &NodeObject) -> bool {
    let by_cni_node = cluster
        .cni_nodes
        .get(node.name())
        .is_some_and(|it| it.asks());
    !node.is_windows() && (node.asks_by_label() || by_cni_node)
}

/// How a node should be, and what can't go on yet.
#[derive(Debug)]
pub struct Desired {
    /// For `plan`.
    pub node: DesiredNode,
    /// What waits for something else.
    pub held: Vec<Subject>,
    /// Pods of which the API server has to confirm that no policy selects them.
    pub unconfirmed: Vec<PodUid>,
}

/// What a node is to the allocator.
#[derive(Clone, Copy, Debug)]
pub enum Standing<'a> {
    /// It takes part.
    TakesPart(&'a InstanceLimits, &'a Network),
    /// It is there, but can't get anything new: what it has stays.
    Stays,
    /// It is gone, and what it had goes.
    Gone,
}

/// What holds for all nodes.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Whether the API server knows SecurityGroupPolicies. While it does not, that it lists
    /// none is no reason to change the groups of a pod that has a branch.
    pub policies_defined: bool,
    /// How long a released branch rests.
    pub cooldown: Duration,
    /// How many released branches are kept.
    pub warm_limit: usize,
}

/// How a node's interfaces should be.
pub fn desired<'a>(
    standing: Standing<'_>,
    pods: impl Iterator<Item = (&'a PodUid, &'a PodEntry)>,
    state: &NodeState,
    rules: Rules,
) -> Desired {
    let present = || {
        state
            .observed
            .trunk
            .as_ref()
            .map(|trunk| trunk.group_ids.clone())
    };
    let (trunk_groups, branch_limit) = match standing {
        Standing::TakesPart(limits, network) => (
            Some(network.group_ids.clone()),
            usize::try_from(limits.branch_interfaces).unwrap_or(usize::MAX),
        ),
        Standing::Stays => (present(), 0),
        Standing::Gone => (None, 0),
    };
    let mut claimed: BTreeMap<&PodUid, (&BranchId, &Branch)> = BTreeMap::new();
    for (id, branch) in &state.observed.branches {
        if let Some(uid) = &branch.claimed_by
            && (branch.association.is_some() || !claimed.contains_key(uid))
        {
            claimed.insert(uid, (id, branch));
        }
    }
    let (mut held, mut unconfirmed) = (Vec::new(), Vec::new());
    let mut desired_pods = BTreeMap::new();
    for (uid, pod) in pods {
        let claim = claimed.get(uid).copied();
        let annotated = match (&pod.object.annotation, claim) {
            // Whatever was written over its name, the branch that was made for it stays its.
            (Annotation::Unreadable, Some((id, _))) => Some(id.clone()),
            _ => pod.annotated(),
        };
        let named = annotated
            .as_ref()
            .and_then(|id| state.observed.branches.get(id));
        let branch = named.or(claim.map(|(_, branch)| branch));
        let group_ids = if !pod.groups.is_empty() {
            pod.groups.clone()
        } else if let (true, Standing::TakesPart(_, network)) = (pod.confirmed_unselected, standing)
        {
            network.group_ids.clone()
        } else {
            if !pod.confirmed_unselected && (rules.policies_defined || branch.is_none()) {
                unconfirmed.push(uid.clone());
            }
            // Until it is certain that no policy selects it, what it has stays, and what is
            // being made for it goes no further.
            if annotated.is_none() {
                held.extend(claim.map(|(id, _)| Subject::Branch(id.clone())));
            }
            match branch {
                Some(branch) => branch.group_ids.clone(),
                None => {
                    held.push(Subject::Pod(uid.clone()));
                    Vec::new()
                }
            }
        };
        let pod = DesiredPod {
            group_ids,
            annotated,
            arrival: pod.arrival,
        };
        desired_pods.insert(uid.clone(), pod);
    }
    Desired {
        node: DesiredNode {
            trunk_groups,
            branch_limit,
            pods: desired_pods,
            cooldown: rules.cooldown,
            warm_limit: rules.warm_limit,
        },
        held,
        unconfirmed,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::allocator::cluster::{Change, Of};
    use crate::allocator::{AssociationId, VlanId};

    fn read<K: serde::de::DeserializeOwned>(object: Value) -> K {
        serde_json::from_value(object).expect("the object can be read")
    }

    fn pod(annotation: Option<&str>) -> Change {
        let annotations = annotation.map(|text| json!({"vpc.amazonaws.com/pod-eni": text}));
        Change::Pods(Of::Apply(read(json!({
            "metadata": {"namespace": "shop", "name": "web", "uid": "1", "annotations": annotations},
            "spec": {
                "nodeName": "a",
                "containers": [{"resources": {"limits": {"vpc.amazonaws.com/pod-eni": "1"}}}]
            }
        }))))
    }

    fn annotation(branch: &str) -> String {
        json!([{
            "eniId": branch, "ifAddress": "", "privateIp": "", "ipv6Addr": "", "vlanId": 1,
            "subnetCidr": "", "subnetV6Cidr": "", "associationID": ""
        }])
        .to_string()
    }

    fn groups(ids: &[&str]) -> Vec<SecurityGroupId> {
        ids.iter().map(|id| SecurityGroupId::from(*id)).collect()
    }

    /// One branch, made for the pod.
    fn with_branch() -> NodeState {
        let branch = Branch {
            vlan: VlanId::from(1),
            group_ids: groups(&["sg-of-policy"]),
            association: Some(AssociationId::from("association")),
            claimed_by: Some(PodUid::from("1")),
            idle_since: None,
            confirmed_idle: false,
            leaving: false,
        };
        let mut state = NodeState::default();
        state.observed.branches.insert("eni-1".into(), branch);
        state
    }

    fn limits() -> InstanceLimits {
        InstanceLimits {
            instance_type: "m5.large".to_owned(),
            max_interfaces: 3,
            ipv4_per_interface: 10,
            trunking: true,
            branch_interfaces: 9,
            default_card_interfaces: 3,
            hypervisor: "nitro".to_owned(),
            bare_metal: false,
        }
    }

    fn desired_of(cluster: &Cluster, state: &NodeState, policies_defined: bool) -> Desired {
        let network = Network {
            subnet_id: "subnet-1".to_owned(),
            group_ids: groups(&["sg-of-node"]),
        };
        let rules = Rules {
            policies_defined,
            cooldown: Duration::from_secs(30),
            warm_limit: 0,
        };
        let standing = Standing::TakesPart(&limits(), &network);
        desired(standing, cluster.pods_on("a"), state, rules)
    }

    #[test]
    fn pod_that_no_policy_seems_to_select_keeps_what_it_has_until_that_is_certain() {
        let kept = Some("sg-of-policy");
        for (has_branch, defined, confirmed, wanted, asks) in [
            (false, true, false, None, true),
            (false, true, true, Some("sg-of-node"), false),
            (false, false, false, None, true),
            (true, true, false, kept, true),
            (true, true, true, Some("sg-of-node"), false),
            // While the API server does not know the kind, nothing is certain.
            (true, false, false, kept, false),
        ] {
            let mut cluster = Cluster::default();
            let named = has_branch.then(|| annotation("eni-1"));
            cluster.apply(pod(named.as_deref()));
            let uid = PodUid::from("1");
            if let Some(pod) = cluster.pods.get_mut(&uid) {
                pod.confirmed_unselected = confirmed;
            }
            let state = match has_branch {
                true => with_branch(),
                false => NodeState::default(),
            };
            let case = (has_branch, defined, confirmed);
            let found = desired_of(&cluster, &state, defined);
            let wanted_groups = groups(wanted.as_slice());
            assert_eq!(found.node.pods[&uid].group_ids, wanted_groups, "{case:?}");
            assert_eq!(found.unconfirmed.contains(&uid), asks, "{case:?}");
            let waits = found.held.contains(&Subject::Pod(uid));
            assert_eq!(waits, wanted.is_none(), "{case:?}");
        }
    }

    #[test]
    fn pod_keeps_its_branch_whatever_is_written_over_the_name() {
        let uid = PodUid::from("1");
        for (history, branch) in [
            (vec![Some("[]")], "eni-1"),
            (vec![Some("nonsense")], "eni-1"),
            (
                vec![Some(annotation("eni-2").as_str()), Some("nonsense")],
                "eni-2",
            ),
            (vec![Some(annotation("eni-2").as_str()), None], "eni-2"),
        ] {
            let mut cluster = Cluster::default();
            for annotation in &history {
                cluster.apply(pod(*annotation));
            }
            let found = desired_of(&cluster, &with_branch(), true);
            let named = found.node.pods[&uid].annotated.as_ref();
            assert_eq!(named, Some(&BranchId::from(branch)), "{history:?}");
        }
    }

    #[test]
    fn pod_with_an_annotation_that_names_nothing_gets_no_branch() {
        let mut cluster = Cluster::default();
        cluster.apply(pod(Some("nonsense")));
        let found = desired_of(&cluster, &NodeState::default(), true);
        assert!(found.node.pods[&PodUid::from("1")].annotated.is_some());
    }

    #[test]
    fn node_that_is_gone_or_stays_gets_nothing_new() {
        let mut state = with_branch();
        for (trunk, standing, wanted) in [
            (true, Standing::Stays, Some(groups(&["sg-of-trunk"]))),
            (false, Standing::Stays, None),
            (true, Standing::Gone, None),
        ] {
            state.observed.trunk = trunk.then(|| crate::allocator::Trunk {
                id: "eni-0".into(),
                attached: true,
                group_ids: groups(&["sg-of-trunk"]),
            });
            let rules = Rules {
                policies_defined: true,
                cooldown: Duration::ZERO,
                warm_limit: 0,
            };
            let found = desired(standing, std::iter::empty(), &state, rules).node;
            assert_eq!(found.trunk_groups, wanted, "{standing:?}");
            assert_eq!(found.branch_limit, 0, "{standing:?}");
        }
    }

    /// A node with this CNINode, these labels and annotations, and what is found for it.
    fn network_of(features: Value, labels: Value, annotations: Value, custom: bool) -> String {
        let mut cluster = Cluster::default();
        cluster.plugin.custom_networking = custom;
        for (name, spec) in [
            (
                "by-feature",
                json!({"subnet": "subnet-feature", "securityGroups": ["sg-f"]}),
            ),
            (
                "by-cni",
                json!({"subnet": "subnet-cni", "securityGroups": ["sg-c"]}),
            ),
            ("by-annotation", json!({"subnet": "subnet-annotation"})),
            (
                "by-label",
                json!({"subnet": "subnet-label", "securityGroups": []}),
            ),
            ("without-subnet", json!({"subnet": ""})),
        ] {
            let config = json!({"metadata": {"name": name}, "spec": spec});
            cluster.apply(Change::EniConfigs(Of::Apply(read(config))));
        }
        let cni_node = json!({"metadata": {"name": "a"}, "spec": {"features": features}});
        cluster.apply(Change::CniNodes(Of::Apply(read(cni_node))));
        let node: NodeObject = read(json!({
            "metadata": {"name": "a", "labels": labels, "annotations": annotations},
            "spec": {"providerID": "aws:///us-west-2a/i-1"}
        }));
        let instance = Instance {
            id: "i-1".to_owned(),
            instance_type: "m5.large".to_owned(),
            alive: true,
            subnet_id: "subnet-own".to_owned(),
            vpc_id: "vpc-1".to_owned(),
            group_ids: vec!["sg-own".to_owned()],
            device_indexes: vec![0],
        };
        match network(&cluster, &node, &instance) {
            Ok(network) => {
                let ids: Vec<_> = network.group_ids.iter().map(ToString::to_string).collect();
                format!("{} {}", network.subnet_id, ids.join(","))
            }
            Err(problem) => problem.to_string(),
        }
    }

    #[test]
    fn interfaces_are_made_where_the_first_of_feature_plugin_annotation_and_label_says() {
        let feature = |value: &str| json!([{"name": "CustomNetworking", "value": value}]);
        let none = || json!([]);
        let cni = || json!({"vpc.amazonaws.com/eniConfig": "by-cni", "k8s.amazonaws.com/eniConfig": "by-label"});
        let label = || json!({"k8s.amazonaws.com/eniConfig": "by-label"});
        let annotation = || json!({"k8s.amazonaws.com/eniConfig": "by-annotation"});
        for (features, labels, annotations, custom, expected) in [
            (none(), cni(), annotation(), false, "subnet-own sg-own"),
            (
                feature("by-feature"),
                cni(),
                annotation(),
                true,
                "subnet-feature sg-f",
            ),
            (
                feature("by-feature"),
                json!({}),
                json!({}),
                false,
                "subnet-feature sg-f",
            ),
            (feature(""), cni(), annotation(), true, "subnet-cni sg-c"),
            (
                none(),
                label(),
                annotation(),
                true,
                "subnet-annotation sg-own",
            ),
            (none(), label(), json!({}), true, "subnet-label sg-own"),
        ] {
            let case = format!("{features} {labels} {annotations} {custom}");
            assert_eq!(
                network_of(features, labels, annotations, custom),
                expected,
                "{case}"
            );
        }
        let named = |name: &str| json!({"k8s.amazonaws.com/eniConfig": name});
        for (labels, reason) in [
            (json!({}), "names no ENIConfig"),
            (named("missing"), "does not exist"),
            (named("without-subnet"), "has no spec.subnet"),
        ] {
            let problem = network_of(none(), labels.clone(), json!({}), true);
            assert!(problem.contains(reason), "{labels}: {problem}");
        }
    }

    #[test]
    fn node_takes_part_by_its_label_or_its_cni_nodes_feature() {
        let feature = json!([{"name": "SecurityGroupsForPods"}]);
        let other = json!([{"name": "CustomNetworking", "value": "x"}]);
        let label = |value: &str| json!({"vpc.amazonaws.com/has-trunk-attached": value});
        let windows = json!({"kubernetes.io/os": "windows"});
        for (labels, features, expected) in [
            (json!({}), json!([]), false),
            (json!({}), other, false),
            (json!({}), feature.clone(), true),
            (label("false"), json!([]), true),
            (label("true"), json!([]), true),
            (label("not-supported"), json!([]), false),
            (windows, feature, false),
        ] {
            let mut cluster = Cluster::default();
            let cni_node = json!({"metadata": {"name": "a"}, "spec": {"features": features}});
            cluster.apply(Change::CniNodes(Of::Apply(read(cni_node))));
            let node = read(json!({"metadata": {"name": "a", "labels": labels}}));
            assert_eq!(asks(&cluster, &node), expected, "{labels} {features}");
        }
    }
}
