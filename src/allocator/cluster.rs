//! What the watches have brought, and what follows from it for each pod and node.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::ResourceExt;
use kube::api::DynamicObject;
use kube::core::PartialObjectMeta;

use super::cooldown::Cooldown;
use super::objects::{Annotation, NodeObject, PluginSettings, PodObject, WatchedPod};
use super::{BranchId, PodUid};
use crate::api::cni_node::FeatureName;
use crate::api::{CNINode, ENIConfig, ENIConfigSpec, PodEni, SecurityGroupId};
use crate::api_server::policies::parse_policy;
use crate::policy::service_accounts::ServiceAccountLabels;
use crate::policy::{InvalidPolicy, Policy, PolicyIndex, ServiceAccountIndex};

/// One thing that a watch has brought.
#[derive(Debug)]
pub enum Change {
    /// Pods, as far as they are bound and not finished.
    Pods(Of<WatchedPod>),
    /// Nodes.
    Nodes(Of<NodeObject>),
    /// CNINodes.
    CniNodes(Of<CNINode>),
    /// ENIConfigs.
    EniConfigs(Of<ENIConfig>),
    /// SecurityGroupPolicies, as raw JSON so that a bad one hides no other.
    Policies(Of<DynamicObject>),
    /// Service accounts.
    ServiceAccounts(Of<PartialObjectMeta<ServiceAccount>>),
    /// What the ConfigMap of the VPC CNI plugin says.
    Cooldowns(Of<Cooldown>),
    /// What the DaemonSet of the VPC CNI plugin says.
    Plugins(Of<PluginSettings>),
}

/// What has become of objects of one kind.
#[derive(Debug)]
pub enum Of<K> {
    /// One is new or has changed.
    Apply(K),
    /// One is gone.
    Delete(K),
    /// These are all.
    All(Vec<K>),
    /// The API server does not know the kind, so there are none.
    Undefined,
}

impl<K> Of<K> {
    /// The same of what `read` makes of each object.
    pub fn map<V>(self, read: impl Fn(K) -> V) -> Of<V> {
        match self {
            Self::Apply(object) => Of::Apply(read(object)),
            Self::Delete(object) => Of::Delete(read(object)),
            Self::All(objects) => Of::All(objects.into_iter().map(read).collect()),
            Self::Undefined => Of::Undefined,
        }
    }
}

/// The kinds that are watched.
const KINDS: usize = 8;

impl Change {
    fn kind(&self) -> usize {
        match self {
            Self::Pods(_) => 0,
            Self::Nodes(_) => 1,
            Self::CniNodes(_) => 2,
            Self::EniConfigs(_) => 3,
            Self::Policies(_) => 4,
            Self::ServiceAccounts(_) => 5,
            Self::Cooldowns(_) => 6,
            Self::Plugins(_) => KINDS - 1,
        }
    }

    fn completes_kind(&self) -> bool {
        fn all<K>(of: &Of<K>) -> bool {
            matches!(of, Of::All(_) | Of::Undefined)
        }
        match self {
            Self::Pods(of) => all(of),
            Self::Nodes(of) => all(of),
            Self::CniNodes(of) => all(of),
            Self::EniConfigs(of) => all(of),
            Self::Policies(of) => all(of),
            Self::ServiceAccounts(of) => all(of),
            Self::Cooldowns(of) => all(of),
            Self::Plugins(of) => all(of),
        }
    }
}

/// Whom a change concerns.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct Touched {
    /// All nodes.
    pub all: bool,
    /// The names of some.
    pub nodes: BTreeSet<String>,
    /// Security groups that new or changed policies name.
    pub groups: BTreeSet<String>,
}

impl Touched {
    fn note_groups(&mut self, policy: &Result<Policy, InvalidPolicy>) {
        let ids = policy.iter().flat_map(|policy| &policy.group_ids);
        self.groups.extend(ids.map(SecurityGroupId::to_string));
    }
}

/// A CNINode, as far as it matters here.
#[derive(Clone, Debug)]
pub struct CniNode {
    /// The object as it was seen last.
    pub object: CNINode,
}

impl CniNode {
    /// Whether the plugin asks for branch interfaces.
    pub fn asks(&self) -> bool {
        let mut features = self.object.spec.features.iter();
        features.any(|feature| feature.name == FeatureName::SecurityGroupsForPods)
    }

    /// The ENIConfig that it names for custom networking.
    pub fn eni_config(&self) -> Option<&str> {
        let mut features = self.object.spec.features.iter();
        let custom = features.find(|feature| feature.name == FeatureName::CustomNetworking)?;
        custom.value.as_deref().filter(|name| !name.is_empty())
    }

    /// Whether it is to go.
    pub fn is_deleted(&self) -> bool {
        self.object.metadata.deletion_timestamp.is_some()
    }
}

/// A pod and what is known of it here.
#[derive(Debug)]
pub struct PodEntry {
    /// The pod.
    pub object: PodObject,
    /// Its place among those that wait.
    pub arrival: u64,
    /// The groups that policies give it; empty if none selects it.
    pub groups: Vec<SecurityGroupId>,
    /// The API server has confirmed that no policy selects it.
    pub confirmed_unselected: bool,
}

impl PodEntry {
    /// The branch that the annotation names. One that can't be read names some branch that
    /// is none of ours.
    pub fn annotated(&self) -> Option<BranchId> {
        match &self.object.annotation {
            Annotation::Absent => None,
            Annotation::Names(interface) => Some(BranchId::from(interface.interface_id.as_str())),
            Annotation::Unreadable => Some(BranchId::from("")),
        }
    }

    /// `namespace/name`, for people.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.object.namespace, self.object.name)
    }
}

/// What is known of the cluster.
#[derive(Debug, Default)]
pub struct Cluster {
    /// Nodes by name.
    pub nodes: BTreeMap<String, NodeObject>,
    /// CNINodes by name.
    pub cni_nodes: BTreeMap<String, CniNode>,
    /// ENIConfigs by name.
    pub eni_configs: BTreeMap<String, ENIConfigSpec>,
    /// Pods that take part.
    pub pods: BTreeMap<PodUid, PodEntry>,
    /// Settings of the VPC CNI plugin.
    pub plugin: PluginSettings,
    /// How long a released branch rests.
    pub cooldown: Cooldown,
    /// Whether the API server knows SecurityGroupPolicies.
    pub policies_defined: bool,
    policies: PolicyIndex,
    service_accounts: ServiceAccountIndex,
    pods_by_node: BTreeMap<String, BTreeSet<PodUid>>,
    nodes_by_instance: BTreeMap<String, String>,
    complete: [bool; KINDS],
    arrivals: u64,
}

impl Cluster {
    /// Whether every watch has brought its first full list.
    pub fn is_complete(&self) -> bool {
        self.complete.iter().all(|complete| *complete)
    }

    /// Takes over what a watch has brought, and says whom it concerns.
    pub fn apply(&mut self, change: Change) -> Touched {
        let mut touched = Touched::default();
        if change.completes_kind() {
            self.complete[change.kind()] = true;
        }
        match change {
            Change::Pods(of) => self.apply_pods(of, &mut touched),
            Change::Nodes(of) => {
                apply_named(&mut self.nodes, of, &mut touched, |node| {
                    (node.name().to_owned(), node)
                });
                self.index_instances(&touched);
            }
            Change::CniNodes(of) => {
                apply_named(&mut self.cni_nodes, of, &mut touched, |object| {
                    (object.name_any(), CniNode { object })
                });
            }
            Change::EniConfigs(of) => {
                apply_named(&mut self.eni_configs, of, &mut touched, |config| {
                    (config.name_any(), config.spec)
                });
                touched.all = true;
            }
            Change::Policies(of) => self.apply_policies(of, &mut touched),
            Change::ServiceAccounts(of) => self.apply_service_accounts(of, &mut touched),
            Change::Cooldowns(of) => {
                self.cooldown = last(of).unwrap_or_default();
                touched.all = true;
            }
            Change::Plugins(of) => {
                self.plugin = last(of).unwrap_or_default();
                touched.all = true;
            }
        }
        touched
    }

    /// The node that is this instance.
    pub fn node_of(&self, instance_id: &str) -> Option<&NodeObject> {
        self.nodes.get(self.nodes_by_instance.get(instance_id)?)
    }

    fn index_instances(&mut self, touched: &Touched) {
        let is_touched = |name: &String| touched.all || touched.nodes.contains(name);
        self.nodes_by_instance.retain(|_, name| !is_touched(name));
        for (name, node) in self.nodes.iter().filter(|(name, _)| is_touched(name)) {
            if let Some(id) = node.instance_id() {
                self.nodes_by_instance.insert(id.to_owned(), name.clone());
            }
        }
    }

    /// The pods that are bound to a node of this name.
    pub fn pods_on(&self, node: &str) -> impl Iterator<Item = (&PodUid, &PodEntry)> {
        let uids = self.pods_by_node.get(node).into_iter().flatten();
        uids.filter_map(|uid| self.pods.get_key_value(uid))
    }

    /// Notes what the API server has taken before the watch brings it.
    pub fn note_annotation(&mut self, uid: &PodUid, interface: PodEni, resource_version: String) {
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.object.annotation = Annotation::Names(interface.into());
            pod.object.resource_version = resource_version;
        }
    }

    fn apply_pods(&mut self, of: Of<WatchedPod>, touched: &mut Touched) {
        match of {
            Of::Apply(pod) => self.apply_pod(pod, touched),
            Of::Delete(pod) => self.delete_pod(&PodUid::from(pod.uid()), touched),
            Of::All(pods) => {
                let there: BTreeSet<_> = pods.iter().map(|pod| PodUid::from(pod.uid())).collect();
                let known = self.pods.keys();
                let gone: Vec<_> = known.filter(|uid| !there.contains(uid)).cloned().collect();
                for uid in gone {
                    self.delete_pod(&uid, touched);
                }
                for pod in pods {
                    self.apply_pod(pod, touched);
                }
            }
            Of::Undefined => {}
        }
    }

    fn apply_pod(&mut self, pod: WatchedPod, touched: &mut Touched) {
        if !pod.takes_part() {
            return;
        }
        let uid = PodUid::from(pod.uid());
        let mut object = PodObject::from(pod);
        touched.nodes.insert(object.node.clone());
        let nodes_pods = self.pods_by_node.entry(object.node.clone()).or_default();
        nodes_pods.insert(uid.clone());

        let mut entry = match self.pods.remove(&uid) {
            Some(mut known) => {
                // A watch lags behind our own write, which is made once.
                if object.annotation == Annotation::Absent {
                    object.annotation = known.object.annotation;
                }
                known.object = object;
                known
            }
            None => {
                self.arrivals += 1;
                PodEntry {
                    object,
                    arrival: self.arrivals,
                    groups: Vec::new(),
                    confirmed_unselected: false,
                }
            }
        };
        self.select(&mut entry);
        self.pods.insert(uid, entry);
    }

    fn delete_pod(&mut self, uid: &PodUid, touched: &mut Touched) {
        let Some(pod) = self.pods.remove(uid) else {
            return;
        };
        if let Some(uids) = self.pods_by_node.get_mut(&pod.object.node) {
            uids.remove(uid);
            if uids.is_empty() {
                self.pods_by_node.remove(&pod.object.node);
            }
        }
        touched.nodes.insert(pod.object.node);
    }

    fn apply_policies(&mut self, of: Of<DynamicObject>, touched: &mut Touched) {
        let namespace = |object: &DynamicObject| object.namespace().unwrap_or_default();
        let concerned = match of {
            Of::Apply(object) => {
                let policy = parse_policy(&object);
                touched.note_groups(&policy);
                self.policies.apply(&namespace(&object), policy);
                Some(namespace(&object))
            }
            Of::Delete(object) => {
                self.policies
                    .delete(&namespace(&object), &object.name_any());
                Some(namespace(&object))
            }
            Of::All(objects) => {
                self.policies = PolicyIndex::default();
                for object in &objects {
                    let policy = parse_policy(object);
                    touched.note_groups(&policy);
                    self.policies.apply(&namespace(object), policy);
                }
                self.policies_defined = true;
                None
            }
            Of::Undefined => {
                self.policies = PolicyIndex::default();
                self.policies_defined = false;
                None
            }
        };
        self.select_again(concerned.as_deref(), None, touched);
    }

    fn apply_service_accounts(
        &mut self,
        of: Of<PartialObjectMeta<ServiceAccount>>,
        touched: &mut Touched,
    ) {
        let labels = |account: &PartialObjectMeta<ServiceAccount>| {
            let labels = account.metadata.labels.as_ref();
            labels.map(ServiceAccountLabels::from).unwrap_or_default()
        };
        match of {
            Of::Apply(account) => {
                let (namespace, name) =
                    (account.namespace().unwrap_or_default(), account.name_any());
                self.service_accounts
                    .apply(&namespace, &name, labels(&account));
                self.select_again(Some(&namespace), Some(&name), touched);
            }
            Of::Delete(account) => {
                let (namespace, name) =
                    (account.namespace().unwrap_or_default(), account.name_any());
                self.service_accounts.delete(&namespace, &name);
                self.select_again(Some(&namespace), Some(&name), touched);
            }
            Of::All(accounts) => {
                self.service_accounts = ServiceAccountIndex::default();
                for account in &accounts {
                    let namespace = account.namespace().unwrap_or_default();
                    self.service_accounts
                        .apply(&namespace, &account.name_any(), labels(account));
                }
                self.select_again(None, None, touched);
            }
            Of::Undefined => {}
        }
    }

    /// Evaluates the pods of a namespace, or all, anew.
    fn select_again(
        &mut self,
        namespace: Option<&str>,
        service_account: Option<&str>,
        touched: &mut Touched,
    ) {
        let mut pods = std::mem::take(&mut self.pods);
        for entry in pods.values_mut() {
            let object = &entry.object;
            if namespace.is_some_and(|namespace| namespace != object.namespace)
                || service_account.is_some_and(|name| name != object.service_account)
            {
                continue;
            }
            let before = std::mem::take(&mut entry.groups);
            self.select(entry);
            if before != entry.groups {
                touched.nodes.insert(entry.object.node.clone());
            }
        }
        self.pods = pods;
    }

    /// The groups that the policies give a pod, in the order of the policies' names and
    /// their lists, each once.
    fn select(&self, entry: &mut PodEntry) {
        let pod = &entry.object;
        let account = self
            .service_accounts
            .labels(&pod.namespace, &pod.service_account)
            .unwrap_or_default();
        let policies = self.policies.namespace(&pod.namespace);
        let selecting = policies
            .as_ref()
            .map(|policies| policies.selecting(&pod.labels, &account))
            .unwrap_or_default();
        let mut groups: Vec<SecurityGroupId> = Vec::new();
        for id in selecting.iter().flat_map(|policy| &policy.group_ids) {
            if !groups.contains(id) {
                groups.push(id.clone());
            }
        }
        if !groups.is_empty() {
            entry.confirmed_unselected = false;
        }
        entry.groups = groups;
    }

    /// The names of the policies that give a pod a group, for people.
    pub fn policies_naming(&self, pod: &PodEntry, group_id: &str) -> Vec<String> {
        let policies = self.policies.namespace(&pod.object.namespace);
        let account = self
            .service_accounts
            .labels(&pod.object.namespace, &pod.object.service_account)
            .unwrap_or_default();
        let selecting = policies
            .as_ref()
            .map(|policies| policies.selecting(&pod.object.labels, &account))
            .unwrap_or_default();
        let naming = selecting
            .iter()
            .filter(|policy| policy.group_ids.iter().any(|id| id.as_str() == group_id));
        naming.map(|policy| policy.name.to_string()).collect()
    }
}

fn apply_named<K, V>(
    map: &mut BTreeMap<String, V>,
    of: Of<K>,
    touched: &mut Touched,
    entry: impl Fn(K) -> (String, V),
) {
    match of {
        Of::Apply(object) => {
            let (name, value) = entry(object);
            touched.nodes.insert(name.clone());
            map.insert(name, value);
        }
        Of::Delete(object) => {
            let (name, _) = entry(object);
            map.remove(&name);
            touched.nodes.insert(name);
        }
        Of::All(objects) => {
            *map = objects.into_iter().map(entry).collect();
            touched.all = true;
        }
        Of::Undefined => {
            map.clear();
            touched.all = true;
        }
    }
}

/// What is there after a change to a kind of which there is one object.
fn last<K>(of: Of<K>) -> Option<K> {
    match of {
        Of::Apply(object) => Some(object),
        Of::All(objects) => objects.into_iter().next(),
        Of::Delete(_) | Of::Undefined => None,
    }
}
