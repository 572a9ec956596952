//! The watches that keep [`Cluster`](super::cluster::Cluster) and the
//! [`enforcement`](super::enforcement) up to date. They never end by themselves.

use std::fmt::Debug;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kube::api::DynamicObject;
use kube::core::{ApiResource, PartialObjectMeta};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::UnboundedSender;

use super::cluster::{Change, Of};
use super::cooldown::Cooldown;
use super::enforcement::{self, SeenNamespace, SeenPolicy};
use super::objects::PluginSettings;
use crate::api::names::{CNI_CONFIG_MAP, CNI_DAEMON_SET, CNI_NAMESPACE};
use crate::api::{ENIConfig, ENIConfigSpec};
use crate::api_server::policies::policy_resource;
use crate::api_server::{Feed, follow};

/// Pods that have a place on a node and may still use it.
pub(super) const BOUND_AND_ALIVE: &str =
    "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed";

/// Who is told of what changes.
pub struct Listeners {
    /// Who makes interfaces.
    pub cluster: UnboundedSender<Change>,
    /// Who labels namespaces.
    pub enforcement: UnboundedSender<enforcement::Change>,
}

/// Runs all watches.
pub async fn run(client: Client, listeners: Listeners) {
    // Pods can have more than a megabyte each, and a page is held as text and as objects.
    let config = watcher::Config::default().page_size(50);
    let named = |name: &str| config.clone().fields(&format!("metadata.name={name}"));
    let policies = Api::all_with(client.clone(), &policy_resource());
    let accounts = Api::<PartialObjectMeta<ServiceAccount>>::all(client.clone());
    let config_maps = Api::<ConfigMap>::namespaced(client.clone(), CNI_NAMESPACE);
    let plugins = Api::<DaemonSet>::namespaced(client.clone(), CNI_NAMESPACE);
    let alive = config.clone().fields(BOUND_AND_ALIVE);
    let resource = ApiResource::erase::<ENIConfig>(&());
    let eni_configs = Api::all_with(client.clone(), &resource);
    let namespaces = Api::<PartialObjectMeta<Namespace>>::all(client.clone());
    let to = &listeners.cluster;
    let enforcement = listeners.enforcement;
    let policies_feed = Policies {
        cluster: to.clone(),
        enforcement: enforcement.clone(),
    };
    tokio::join!(
        each(Api::all(client.clone()), alive, "pods", to, Change::Pods),
        each(
            Api::all(client.clone()),
            config.clone(),
            "nodes",
            to,
            Change::Nodes
        ),
        each(
            Api::all(client.clone()),
            config.clone(),
            "cninodes",
            to,
            Change::CniNodes
        ),
        each(eni_configs, config.clone(), "eniconfigs", to, eni_config),
        follow(policies_feed, || watcher(policies.clone(), config.clone())),
        follow(Namespaces(enforcement), || watcher(
            namespaces.clone(),
            config.clone()
        )),
        each(
            accounts,
            config.clone(),
            "serviceaccounts",
            to,
            Change::ServiceAccounts
        ),
        each(
            config_maps,
            named(CNI_CONFIG_MAP),
            "configmaps",
            to,
            cooldown
        ),
        each(plugins, named(CNI_DAEMON_SET), "daemonsets", to, plugin),
    );
}

/// Read object by object: the plugin's definition takes more than ours, and one that can't be
/// read must not hide the others. It counts as one that says nothing.
fn eni_config(configs: Of<DynamicObject>) -> Change {
    Change::EniConfigs(configs.map(|config| {
        let name = config.name_any();
        let spec = serde_json::from_value(config.data["spec"].clone());
        let spec = spec.unwrap_or_else(|error| {
            tracing::warn!(name, %error, "the spec of an ENIConfig can't be read");
            ENIConfigSpec::default()
        });
        ENIConfig::new(&name, spec)
    }))
}

fn cooldown(maps: Of<ConfigMap>) -> Change {
    Change::Cooldowns(maps.map(|map| Cooldown::from_config_map(map.data.as_ref())))
}

fn plugin(plugins: Of<DaemonSet>) -> Change {
    Change::Plugins(plugins.map(|plugin| PluginSettings::from(&plugin)))
}

/// Follows one resource.
async fn each<K>(
    api: Api<K>,
    config: watcher::Config,
    resource: &'static str,
    changes: &UnboundedSender<Change>,
    wrap: fn(Of<K>) -> Change,
) where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let feed = ToChannel {
        resource,
        changes: changes.clone(),
        wrap,
    };
    follow(feed, || watcher(api.clone(), config.clone())).await;
}

/// Hands on what a watch brings. Whoever reads it may be gone when the process ends.
struct ToChannel<K> {
    resource: &'static str,
    changes: UnboundedSender<Change>,
    wrap: fn(Of<K>) -> Change,
}

impl<K> ToChannel<K> {
    fn send(&self, of: Of<K>) {
        let _ = self.changes.send((self.wrap)(of));
    }
}

/// Without what takes the most memory, and is nobody's business here.
fn slim<K: Resource>(mut object: K) -> K {
    object.meta_mut().managed_fields = None;
    object
}

impl<K: Clone + Debug + Resource> Feed<K> for ToChannel<K> {
    type Index = Vec<K>;

    fn add(index: &mut Vec<K>, object: K) {
        index.push(slim(object));
    }

    fn apply(&self, object: K) {
        self.send(Of::Apply(slim(object)));
    }

    fn delete(&self, object: &K) {
        self.send(Of::Delete(object.clone()));
    }

    fn reset(&self, index: Vec<K>) {
        self.send(Of::All(index));
    }

    fn undefined(&self, _: &watcher::Error) {
        self.send(Of::Undefined);
    }

    fn failed(&self, error: &watcher::Error) {
        warn_of_failure(self.resource, error);
    }
}

fn warn_of_failure(resource: &'static str, error: &watcher::Error) {
    tracing::warn!(watch = resource, %error, "watch failed, starting it again");
}

/// Policies say which groups pods get, and which namespaces fail closed.
struct Policies {
    cluster: UnboundedSender<Change>,
    enforcement: UnboundedSender<enforcement::Change>,
}

impl Policies {
    fn send(&self, policies: Of<DynamicObject>, seen: Of<SeenPolicy>) {
        let _ = self.enforcement.send(enforcement::Change::Policies(seen));
        let _ = self.cluster.send(Change::Policies(policies));
    }
}

impl Feed<DynamicObject> for Policies {
    type Index = Vec<DynamicObject>;

    fn add(index: &mut Vec<DynamicObject>, policy: DynamicObject) {
        index.push(slim(policy));
    }

    fn apply(&self, policy: DynamicObject) {
        let seen = SeenPolicy::from(&policy);
        self.send(Of::Apply(slim(policy)), Of::Apply(seen));
    }

    fn delete(&self, policy: &DynamicObject) {
        let seen = SeenPolicy::from(policy);
        self.send(Of::Delete(policy.clone()), Of::Delete(seen));
    }

    fn reset(&self, index: Vec<DynamicObject>) {
        let seen = index.iter().map(SeenPolicy::from).collect();
        self.send(Of::All(index), Of::All(seen));
    }

    fn undefined(&self, _: &watcher::Error) {
        self.send(Of::Undefined, Of::Undefined);
    }

    fn failed(&self, error: &watcher::Error) {
        warn_of_failure("securitygrouppolicies", error);
    }
}

/// Of namespaces only a few facts are kept.
struct Namespaces(UnboundedSender<enforcement::Change>);

impl Namespaces {
    fn send(&self, of: Of<SeenNamespace>) {
        let _ = self.0.send(enforcement::Change::Namespaces(of));
    }
}

impl Feed<PartialObjectMeta<Namespace>> for Namespaces {
    type Index = Vec<SeenNamespace>;

    fn add(index: &mut Vec<SeenNamespace>, namespace: PartialObjectMeta<Namespace>) {
        index.push(SeenNamespace::from(&namespace));
    }

    fn apply(&self, namespace: PartialObjectMeta<Namespace>) {
        self.send(Of::Apply(SeenNamespace::from(&namespace)));
    }

    fn delete(&self, namespace: &PartialObjectMeta<Namespace>) {
        self.send(Of::Delete(SeenNamespace::from(namespace)));
    }

    fn reset(&self, index: Vec<SeenNamespace>) {
        self.send(Of::All(index));
    }

    /// The API server always has namespaces.
    fn undefined(&self, error: &watcher::Error) {
        self.failed(error);
    }

    fn failed(&self, error: &watcher::Error) {
        warn_of_failure("namespaces", error);
    }
}
