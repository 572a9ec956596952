//! Nodes of a sandbox: instances of the simulated EC2, Node objects for them as a kubelet
//! registers them, and what kwok does in the kubelets' place from then on.

mod group;
mod machine;
mod object;

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{ListParams, PostParams};

pub use group::{NodeGroup, NodeGroupError};

use super::cloud::{Instance, SHARED_POD_BLOCK, SimulatedCloud};
use super::control_plane::{ControlPlane, Kubelets};
use crate::ec2::instance_limits::LimitsTable;

/// What kwok does for nodes and pods.
pub(super) const KUBELETS: Kubelets = Kubelets {
    stages: include_str!("kubelet.yaml"),
    pod_block: SHARED_POD_BLOCK,
};

/// How long nodes may take until they are Ready, on a machine that runs many sandboxes.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(25);
const REGISTERED_AT_ONCE: usize = 8;

/// A node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SandboxNode {
    /// The Node object's name.
    pub name: String,
    /// The instance that it names in its provider ID.
    pub instance: Instance,
}

/// Sees to it that there are as many instances as the groups want, spread over the zones, and
/// a Node for every instance. What is there already is used, also where it is more. Without
/// groups that is all, but a cloud that has no instances gets some.
pub(super) async fn provide(
    control_plane: &ControlPlane,
    cloud: &SimulatedCloud,
    groups: Option<&[NodeGroup]>,
) -> anyhow::Result<Vec<SandboxNode>> {
    let mut instances = cloud.instances().await?;
    let by_default = [NodeGroup::new(
        "m5.large",
        if instances.is_empty() { 5 } else { 0 },
    )];
    for group in groups.unwrap_or(&by_default) {
        let of_type = |instance: &&Instance| instance.instance_type == group.instance_type;
        let there = instances.iter().filter(of_type).count();
        for _ in there..group.count {
            let zones = &cloud.network().zones;
            let zone = &zones[instances.len() % zones.len()];
            instances.push(cloud.run_instance(&group.instance_type, &zone.name).await?);
        }
    }
    let register = |instance: Instance| async move {
        let name = instance.private_dns_name.clone();
        register(control_plane, &name, instance).await
    };
    // Dozens of nodes take their time one by one.
    let nodes = stream::iter(instances).map(register);
    let mut nodes: Vec<_> = nodes.buffered(REGISTERED_AT_ONCE).try_collect().await?;
    nodes.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(nodes)
}

/// Creates a Node object of this name for an instance, unless there is one.
pub(super) async fn register(
    control_plane: &ControlPlane,
    name: &str,
    instance: Instance,
) -> anyhow::Result<SandboxNode> {
    let instance_type = &instance.instance_type;
    let limits = LimitsTable::built_in().get(instance_type);
    let limits = limits.with_context(|| format!("nothing is known of {instance_type}"))?;
    let client = control_plane.client();
    let version = client.apiserver_version().await?.git_version;
    let node = object::node(name, &instance, limits, &version);
    match Api::<Node>::all(client)
        .create(&PostParams::default(), &node)
        .await
    {
        Err(kube::Error::Api(status)) if status.is_already_exists() => {}
        created => {
            created.with_context(|| format!("the node {name} can't be registered"))?;
        }
    }
    Ok(SandboxNode {
        name: name.to_owned(),
        instance,
    })
}

/// Waits until all these nodes are Ready and take pods.
pub(super) async fn wait_until_ready(
    control_plane: &ControlPlane,
    nodes: &[SandboxNode],
) -> anyhow::Result<()> {
    let api = Api::<Node>::all(control_plane.client());
    let since = Instant::now();
    loop {
        let objects = api.list(&ListParams::default()).await?.items;
        let is_ready = |node: &&SandboxNode| {
            let named = |object: &&Node| object.metadata.name.as_ref() == Some(&node.name);
            objects.iter().find(named).is_some_and(takes_pods)
        };
        let Some(missing) = nodes.iter().find(|node| !is_ready(node)) else {
            return Ok(());
        };
        if since.elapsed() > READY_TIMEOUT {
            let (name, seconds) = (&missing.name, READY_TIMEOUT.as_secs());
            let logs = control_plane.run_dir().display();
            bail!("the node {name} is not Ready after {seconds} s; the logs are in {logs}");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Ready, and no longer tainted as a node that is not.
fn takes_pods(node: &Node) -> bool {
    let status = node.status.as_ref();
    let mut conditions = status
        .and_then(|it| it.conditions.as_ref())
        .into_iter()
        .flatten();
    let taints = node.spec.as_ref().and_then(|it| it.taints.as_ref());
    let mut taints = taints.into_iter().flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
        && !taints.any(|taint| taint.key.starts_with("node.kubernetes.io/not-ready"))
}
