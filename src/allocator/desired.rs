//! How an instance's interfaces should be, from what is known of the cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use super::cluster::{Cluster, PodEntry};
use super::node::DesiredNode;
use super::objects::NodeObject;
use super::state::NodeState;
use super::{DesiredPod, PodUid, Subject};
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

/// What an operator has set.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
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
    let current: BTreeMap<&PodUid, &Vec<SecurityGroupId>> = state
        .observed
        .branches
        .values()
        .filter_map(|branch| Some((branch.claimed_by.as_ref()?, &branch.group_ids)))
        .collect();
    let (mut held, mut unconfirmed) = (Vec::new(), Vec::new());
    let mut desired_pods = BTreeMap::new();
    for (uid, pod) in pods {
        let annotated = pod.annotated();
        let branch = annotated
            .as_ref()
            .and_then(|id| state.observed.branches.get(id));
        let group_ids = if !pod.groups.is_empty() {
            pod.groups.clone()
        } else if let (true, Standing::TakesPart(_, network)) = (pod.confirmed_unselected, standing)
        {
            network.group_ids.clone()
        } else {
            if !pod.confirmed_unselected {
                unconfirmed.push(uid.clone());
            }
            // Until it is certain that no policy selects it, what it has stays.
            let present = branch.map(|branch| &branch.group_ids);
            match present.or_else(|| current.get(uid).copied()) {
                Some(group_ids) => group_ids.clone(),
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
