//! Clusters with nodes, policies and pods.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, ServiceAccount};
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use serde_json::json;
use sgp::api::SecurityGroupPolicy;
use sgp::api::names::{CNI_CONFIG_MAP, CNI_NAMESPACE, COOLDOWN_KEY, POD_ENI};
use sgp::dev::allocator::AllocatorOptions;
use sgp::dev::nodes::NodeGroup;
use sgp::dev::{CloudOptions, Sandbox, SandboxOptions};

use crate::Bench;

/// How long anything may take before the measurement is given up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);
/// Requests to the API server at a time.
pub(crate) const CONCURRENCY: usize = 64;

const FIELD_MANAGER: &str = "allocation-bench";
const NAMESPACE: &str = "default";

/// Labels of pods, each of which a policy of the same name selects.
pub(crate) const GREEN: &str = "green";
pub(crate) const DATABASE: &str = "database";

/// A cluster whose nodes all take pods with security groups, and its policies.
pub(crate) async fn start(bench: &Bench, nodes: NodeGroup) -> anyhow::Result<Sandbox> {
    let options = SandboxOptions {
        cloud: Some(CloudOptions {
            nodes: Some(vec![nodes]),
            ..CloudOptions::default()
        }),
        allocator: Some(AllocatorOptions::default()),
        ..SandboxOptions::new(&bench.sgp)
    };
    let sandbox = Sandbox::start(&bench.binaries, options, |_| ()).await?;
    let client = sandbox.control_plane().client();
    let groups = &sandbox.cloud().network().groups;
    for (name, group) in [(GREEN, &groups.green), (DATABASE, &groups.database)] {
        let policy: SecurityGroupPolicy = serde_json::from_value(json!({
            "apiVersion": "vpcresources.k8s.aws/v1beta1",
            "kind": "SecurityGroupPolicy",
            "metadata": {"name": name},
            "spec": {
                "podSelector": {"matchLabels": {"app": name}},
                "securityGroups": {"groupIds": [group]}
            }
        }))?;
        let api = Api::<SecurityGroupPolicy>::namespaced(client.clone(), NAMESPACE);
        api.create(&PostParams::default(), &policy).await?;
    }
    for node in sandbox.nodes() {
        let api = Api::<Node>::all(client.clone());
        let takes_pods = await_condition(api, &node.name, |node: Option<&Node>| {
            let status = node.and_then(|node| node.status.as_ref());
            let allocatable = status.and_then(|status| status.allocatable.as_ref());
            allocatable.is_some_and(|resources| resources.contains_key(POD_ENI))
        });
        let waited = tokio::time::timeout(PATIENCE, takes_pods).await;
        waited.with_context(|| format!("{} takes no pods", node.name))??;
    }
    let accounts = Api::<ServiceAccount>::namespaced(client, NAMESPACE);
    let is_there = |account: Option<&ServiceAccount>| account.is_some();
    let account = await_condition(accounts, "default", is_there);
    tokio::time::timeout(PATIENCE, account).await??;
    Ok(sandbox)
}

/// The pods of the cluster that a scenario creates.
pub(crate) fn pods(sandbox: &Sandbox) -> Api<Pod> {
    Api::namespaced(sandbox.control_plane().client(), NAMESPACE)
}

/// Creates pods with this label, many at a time, and gives their names.
pub(crate) async fn create_pods(
    api: &Api<Pod>,
    label: &str,
    numbers: std::ops::Range<usize>,
) -> anyhow::Result<Vec<String>> {
    let created = stream::iter(numbers).map(|number| async move {
        let name = format!("{label}-{number}");
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"app": label}},
            "spec": {
                "terminationGracePeriodSeconds": 5,
                "containers": [{"name": "app", "image": "app"}]
            }
        }))?;
        api.create(&PostParams::default(), &pod).await?;
        anyhow::Ok(name)
    });
    created.buffer_unordered(CONCURRENCY).try_collect().await
}

/// Sets how long branches rest after their pod.
pub(crate) async fn set_cooldown(client: &Client, cooldown: Duration) -> anyhow::Result<()> {
    let config = ConfigMap {
        metadata: kube::api::ObjectMeta {
            name: Some(CNI_CONFIG_MAP.into()),
            ..kube::api::ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(
            COOLDOWN_KEY.to_owned(),
            cooldown.as_secs().to_string(),
        )])),
        ..ConfigMap::default()
    };
    let api = Api::<ConfigMap>::namespaced(client.clone(), CNI_NAMESPACE);
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(CNI_CONFIG_MAP, &parameters, &Patch::Apply(&config))
        .await?;
    Ok(())
}
