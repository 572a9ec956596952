//! What is applied to a sandbox's cluster before anything else.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::EnvVar;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::wait::{await_condition, conditions};

use super::cloud::Network;
use super::control_plane::ControlPlane;
use crate::api::eni_config::ENIConfigSpec;
use crate::api::{CNINode, ENIConfig, SecurityGroupPolicy};

/// The manifests that the sandbox shares with a real installation, and the definition that
/// EKS brings.
const MANIFESTS: [&str; 6] = [
    include_str!("../../manifests/base/namespace.yaml"),
    include_str!("../../manifests/crds/securitygrouppolicies.yaml"),
    include_str!("../../manifests/crds/cninodes.yaml"),
    include_str!("../../manifests/base/rbac.yaml"),
    include_str!("../../manifests/base/flow-schemas.yaml"),
    include_str!("../../manifests/sandbox/eniconfigs.yaml"),
];
/// What stands for the CNI plugin's own manifest.
const AWS_NODE: &str = include_str!("../../manifests/sandbox/aws-node.yaml");

/// In whose name objects are applied.
pub(super) const FIELD_MANAGER: &str = "sgp-dev";

/// How long the API server may take to serve a definition.
const DEFINITION_TIMEOUT: Duration = Duration::from_secs(120);

/// What makes pods' interfaces come from the subnets that ENIConfigs name, and the node label
/// that names the ENIConfig.
/// <https://docs.aws.amazon.com/eks/latest/userguide/cni-custom-network-tutorial.html>
const CUSTOM_NETWORKING: [(&str, &str); 2] = [
    ("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "true"),
    ("ENI_CONFIG_LABEL_DEF", "topology.kubernetes.io/zone"),
];

/// Applies everything and waits until the custom resources are served.
pub(super) async fn apply(
    control_plane: &ControlPlane,
    custom_networking: bool,
) -> anyhow::Result<()> {
    let aws_node = aws_node(custom_networking)?;
    let documents = [MANIFESTS.join("\n---\n"), aws_node].join("\n---\n");
    let mut kubectl = control_plane
        .kubectl()
        .args(["apply", "--server-side", "--force-conflicts", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("kubectl can't be started")?;
    let mut input = kubectl
        .stdin
        .take()
        .context("kubectl has no standard input")?;
    input.write_all(documents.as_bytes())?;
    drop(input);
    let output = kubectl.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "the manifests can't be applied:\n{said}"
    );
    wait_for_definitions(control_plane).await
}

async fn wait_for_definitions(control_plane: &ControlPlane) -> anyhow::Result<()> {
    let api = Api::<CustomResourceDefinition>::all(control_plane.client());
    for name in [
        SecurityGroupPolicy::crd_name(),
        CNINode::crd_name(),
        ENIConfig::crd_name(),
    ] {
        let established = await_condition(api.clone(), name, conditions::is_crd_established());
        let established = tokio::time::timeout(DEFINITION_TIMEOUT, established).await;
        established.with_context(|| format!("{name} is not served by the API server"))??;
    }
    Ok(())
}

/// The CNI plugin's DaemonSet.
fn aws_node(custom_networking: bool) -> anyhow::Result<String> {
    if !custom_networking {
        return Ok(AWS_NODE.to_owned());
    }
    let mut daemon_set: DaemonSet = serde_saphyr::from_str(AWS_NODE)?;
    let pod = daemon_set
        .spec
        .as_mut()
        .and_then(|it| it.template.spec.as_mut());
    let container = pod.and_then(|pod| pod.containers.first_mut());
    let container = container.context("aws-node has no container")?;
    let environment = container.env.get_or_insert_default();
    for (name, value) in CUSTOM_NETWORKING {
        environment.retain(|variable| variable.name != name);
        environment.push(EnvVar {
            name: name.to_owned(),
            value: Some(value.to_owned()),
            ..EnvVar::default()
        });
    }
    // JSON is YAML.
    Ok(serde_json::to_string(&daemon_set)?)
}

/// Applies an ENIConfig for each zone, named by it: the zone's subnet for pods, and the nodes'
/// group.
pub(super) async fn apply_eni_configs(
    control_plane: &ControlPlane,
    network: &Network,
) -> anyhow::Result<()> {
    let api = Api::<ENIConfig>::all(control_plane.client());
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    for zone in &network.zones {
        let spec = ENIConfigSpec {
            subnet: Some(zone.pod_subnet_id.clone()),
            security_groups: Some(vec![network.groups.nodes.clone()]),
        };
        let config = Patch::Apply(ENIConfig::new(&zone.name, spec));
        let applied = api.patch(&zone.name, &parameters, &config).await;
        applied.with_context(|| format!("the ENIConfig {} can't be applied", zone.name))?;
    }
    Ok(())
}
