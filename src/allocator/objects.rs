//! What the watches keep of pods and nodes.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use kube::api::ObjectMeta;
use serde::Deserialize;

use crate::api::PodEni;
use crate::api::names::{
    CNI_DAEMON_SET, ENI_CONFIG_BY_CNI, ENI_CONFIG_BY_USER, HAS_TRUNK_ATTACHED, OS_LABEL,
    OS_WINDOWS, POD_ENI,
};
use crate::policy::pod::Resources;

/// A pod, as far as it matters here.
#[derive(Resource, Clone, Debug, Deserialize)]
#[resource(inherit = "Pod")]
pub struct WatchedPod {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: WatchedPodSpec,
    #[serde(default)]
    status: WatchedPodStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WatchedPodSpec {
    node_name: Option<String>,
    service_account_name: Option<String>,
    #[serde(default)]
    containers: Vec<WatchedContainer>,
    #[serde(default)]
    init_containers: Vec<WatchedContainer>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct WatchedPodStatus {
    #[serde(default)]
    conditions: Vec<WatchedCondition>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WatchedCondition {
    #[serde(rename = "type")]
    kind: String,
    last_transition_time: Option<Time>,
}

#[derive(Clone, Debug, Deserialize)]
struct WatchedContainer {
    resources: Option<Resources>,
}

impl WatchedPod {
    /// Whether it is bound to a node and requests a branch interface.
    pub fn takes_part(&self) -> bool {
        let spec = &self.spec;
        let mut containers = spec.containers.iter().chain(&spec.init_containers);
        spec.node_name.is_some()
            && containers.any(|container| {
                container
                    .resources
                    .is_some_and(Resources::request_branch_interface)
            })
    }

    /// Its UID; empty for an object that the API server has not stored.
    pub fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    /// Since when it is bound: the scheduler says so, and a pod that it did not bind was so from
    /// its creation on.
    fn bound_at(&self) -> Option<Timestamp> {
        let mut conditions = self.status.conditions.iter();
        let scheduled = conditions.find(|it| it.kind == "PodScheduled");
        let scheduled = scheduled.and_then(|it| it.last_transition_time.as_ref());
        let created = self.metadata.creation_timestamp.as_ref();
        scheduled.or(created).map(|time| time.0)
    }
}

/// A pod that is bound to a node and requests a branch interface.
#[derive(Clone, Debug)]
pub struct PodObject {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The node that it is bound to.
    pub node: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The name of its service account.
    pub service_account: String,
    /// Since when it is.
    pub bound_at: Option<Timestamp>,
    /// What its annotation says.
    pub annotation: Annotation,
    /// The state that was seen last, for writes that must not overtake others.
    pub resource_version: String,
}

/// What the annotation of a pod says about its branch interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Annotation {
    /// There is none yet.
    Absent,
    /// It names this one.
    Names(Box<PodEni>),
    /// Somebody wrote something else; the pod is left alone.
    Unreadable,
}

impl Annotation {
    /// Reads the annotation of an object.
    pub fn of(metadata: &ObjectMeta) -> Self {
        let annotations = metadata.annotations.as_ref();
        let Some(json) = annotations.and_then(|all| all.get(POD_ENI)) else {
            return Self::Absent;
        };
        let interfaces = serde_json::from_str::<Vec<PodEni>>(json);
        match interfaces.ok().and_then(|all| all.into_iter().next()) {
            Some(interface) if !interface.interface_id.is_empty() => Self::Names(interface.into()),
            _ => Self::Unreadable,
        }
    }
}

impl From<WatchedPod> for PodObject {
    fn from(pod: WatchedPod) -> Self {
        let bound_at = pod.bound_at();
        let service_account = pod
            .spec
            .service_account_name
            .filter(|name| !name.is_empty());
        Self {
            bound_at,
            annotation: Annotation::of(&pod.metadata),
            namespace: pod.metadata.namespace.unwrap_or_default(),
            name: pod.metadata.name.unwrap_or_default(),
            node: pod.spec.node_name.unwrap_or_default(),
            labels: pod.metadata.labels.unwrap_or_default(),
            service_account: service_account.unwrap_or_else(|| "default".to_owned()),
            resource_version: pod.metadata.resource_version.unwrap_or_default(),
        }
    }
}

/// A node, as far as it matters here.
#[derive(Resource, Clone, Debug, Deserialize)]
#[resource(inherit = "Node")]
pub struct NodeObject {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: NodeObjectSpec,
    #[serde(default)]
    status: NodeObjectStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeObjectSpec {
    #[serde(rename = "providerID")]
    provider_id: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct NodeObjectStatus {
    #[serde(default)]
    capacity: BTreeMap<String, String>,
}

impl NodeObject {
    /// Its name.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// Its UID.
    pub fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    /// When it was made.
    pub fn created(&self) -> Option<&Time> {
        self.metadata.creation_timestamp.as_ref()
    }

    /// The EC2 instance: `spec.providerID` is `aws:///<zone>/<instance id>` (Kubernetes
    /// cloud provider for AWS). `None` for a node that is no EC2 instance, Fargate's
    /// included.
    pub fn instance_id(&self) -> Option<&str> {
        let path = self.spec.provider_id.as_deref()?.strip_prefix("aws://")?;
        let id = path.rsplit('/').next()?;
        id.starts_with("i-").then_some(id)
    }

    /// The instance type by the well-known label.
    pub fn instance_type(&self) -> Option<&str> {
        self.label("node.kubernetes.io/instance-type")
    }

    /// A label's value.
    pub fn label(&self, key: &str) -> Option<&str> {
        let labels = self.metadata.labels.as_ref()?;
        labels.get(key).map(String::as_str)
    }

    /// Whether it runs Windows, whose pods can't have branch interfaces.
    pub fn is_windows(&self) -> bool {
        self.label(OS_LABEL) == Some(OS_WINDOWS)
    }

    /// Whether its CNI plugin asks for a trunk by the label.
    pub fn asks_by_label(&self) -> bool {
        self.label(HAS_TRUNK_ATTACHED)
            .is_some_and(|value| value != "not-supported")
    }

    /// How many branch interfaces it offers to the scheduler.
    pub fn capacity(&self) -> Option<&str> {
        self.status.capacity.get(POD_ENI).map(String::as_str)
    }

    /// The name of the ENIConfig that it uses with custom networking (VPC CNI plugin,
    /// "Custom networking"): what the plugin has chosen, else the user's annotation, else
    /// the user's label.
    pub fn eni_config(&self, plugin: &PluginSettings) -> Option<&str> {
        let annotations = self.metadata.annotations.as_ref();
        let annotation = annotations.and_then(|all| all.get(&plugin.eni_config_annotation));
        self.label(ENI_CONFIG_BY_CNI)
            .or(annotation.map(String::as_str))
            .or_else(|| self.label(&plugin.eni_config_label))
            .filter(|name| !name.is_empty())
    }
}

/// The settings of the VPC CNI plugin that count here, from the environment of the
/// DaemonSet `aws-node` (README of the plugin, "CNI Configuration Variables").
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PluginSettings {
    /// Interfaces are made in the subnets of ENIConfigs.
    pub custom_networking: bool,
    /// The node label that names the ENIConfig.
    pub eni_config_label: String,
    /// The node annotation that names the ENIConfig.
    pub eni_config_annotation: String,
    /// Pods have IPv6 addresses.
    pub ipv6: bool,
}

impl Default for PluginSettings {
    fn default() -> Self {
        Self {
            custom_networking: false,
            eni_config_label: ENI_CONFIG_BY_USER.to_owned(),
            eni_config_annotation: ENI_CONFIG_BY_USER.to_owned(),
            ipv6: false,
        }
    }
}

impl From<&DaemonSet> for PluginSettings {
    fn from(plugin: &DaemonSet) -> Self {
        let pod = plugin
            .spec
            .as_ref()
            .and_then(|spec| spec.template.spec.as_ref());
        let container = pod
            .into_iter()
            .flat_map(|pod| &pod.containers)
            .find(|container| container.name == CNI_DAEMON_SET);
        let variable = |name: &str| {
            let variables = container?.env.as_ref()?;
            let variable = variables.iter().find(|variable| variable.name == name)?;
            variable.value.as_deref().filter(|value| !value.is_empty())
        };
        let is_on = |name| variable(name).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let or_default = |name| variable(name).unwrap_or(ENI_CONFIG_BY_USER).to_owned();
        Self {
            custom_networking: is_on("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG"),
            eni_config_label: or_default("ENI_CONFIG_LABEL_DEF"),
            eni_config_annotation: or_default("ENI_CONFIG_ANNOTATION_DEF"),
            ipv6: is_on("ENABLE_IPv6"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn pod_is_bound_since_the_scheduler_says_so_or_else_since_its_creation() {
        let (created, scheduled) = ("2026-01-15T09:30:00Z", "2026-01-15T09:31:00Z");
        let bound_at = |conditions: Value| {
            let pod = json!({
                "metadata": {"creationTimestamp": created},
                "status": {"conditions": conditions},
            });
            let pod: WatchedPod = serde_json::from_value(pod).unwrap();
            PodObject::from(pod).bound_at.unwrap().to_string()
        };
        let other = json!({"type": "Ready", "lastTransitionTime": "2026-01-15T09:32:00Z"});
        let bound = json!({"type": "PodScheduled", "lastTransitionTime": scheduled});
        assert_eq!(bound_at(json!([other, bound])), scheduled);
        assert_eq!(bound_at(json!([other])), created);
        assert_eq!(bound_at(json!([{"type": "PodScheduled"}])), created);
    }
}
