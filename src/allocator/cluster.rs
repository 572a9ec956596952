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
    /// Which pod's annotation names which branch.
    users: BTreeMap<BranchId, PodUid>,
    /// By names: a node that was renamed is there twice for a while.
    nodes_by_instance: BTreeMap<String, BTreeSet<String>>,
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
                let cooldown = last(of).unwrap_or_default();
                touched.all = cooldown != self.cooldown;
                self.cooldown = cooldown;
            }
            Change::Plugins(of) => {
                // Its status changes with each node.
                let plugin = last(of).unwrap_or_default();
                touched.all = plugin != self.plugin;
                self.plugin = plugin;
            }
        }
        touched
    }

    /// The node that is this instance; of several, the one that was made last.
    pub fn node_of(&self, instance_id: &str) -> Option<&NodeObject> {
        let names = self.nodes_by_instance.get(instance_id)?;
        let nodes = names.iter().filter_map(|name| self.nodes.get(name));
        nodes.max_by_key(|node| node.created())
    }

    fn index_instances(&mut self, touched: &Touched) {
        let is_touched = |name: &String| touched.all || touched.nodes.contains(name);
        self.nodes_by_instance.retain(|_, names| {
            names.retain(|name| !is_touched(name));
            !names.is_empty()
        });
        for (name, node) in self.nodes.iter().filter(|(name, _)| is_touched(name)) {
            if let Some(id) = node.instance_id() {
                let names = self.nodes_by_instance.entry(id.to_owned()).or_default();
                names.insert(name.clone());
            }
        }
    }

    /// The pod whose annotation names a branch, on whatever node the pod is.
    pub fn user_of(&self, branch: &BranchId) -> Option<(&PodUid, &PodEntry)> {
        self.pods.get_key_value(self.users.get(branch)?)
    }

    /// The pods that are bound to a node of this name.
    pub fn pods_on(&self, node: &str) -> impl Iterator<Item = (&PodUid, &PodEntry)> {
        let uids = self.pods_by_node.get(node).into_iter().flatten();
        uids.filter_map(|uid| self.pods.get_key_value(uid))
    }

    /// Notes what the API server has taken before the watch brings it.
    pub fn note_annotation(&mut self, uid: &PodUid, interface: PodEni, resource_version: String) {
        if let Some(pod) = self.pods.get_mut(uid) {
            let branch = BranchId::from(interface.interface_id.as_str());
            self.users.insert(branch, uid.clone());
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
                // A watch lags behind our own write, which is made once; and whatever somebody
                // writes over it, the pod's network stays where it is.
                if !matches!(object.annotation, Annotation::Names(_))
                    && matches!(known.object.annotation, Annotation::Names(_))
                {
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
        if let Some(branch) = entry.annotated() {
            self.users.insert(branch, uid.clone());
        }
        self.pods.insert(uid, entry);
    }

    fn delete_pod(&mut self, uid: &PodUid, touched: &mut Touched) {
        let Some(pod) = self.pods.remove(uid) else {
            return;
        };
        if let Some(branch) = pod.annotated()
            && self.users.get(&branch) == Some(uid)
        {
            self.users.remove(&branch);
        }
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
            // The API server may know them again in a moment, as when it has just started;
            // until it says which there are, those that were seen last hold.
            Of::Undefined => {
                self.policies_defined = false;
                return;
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read<K: serde::de::DeserializeOwned>(object: Value) -> K {
        serde_json::from_value(object).expect("the object can be read")
    }

    fn pod(uid: &str, node: &str, app: &str, branch: Option<&str>) -> WatchedPod {
        let annotation = branch.map(|id| {
            let interface = json!([{
                "eniId": id, "ifAddress": "", "privateIp": "", "ipv6Addr": "", "vlanId": 1,
                "subnetCidr": "", "subnetV6Cidr": "", "associationID": ""
            }]);
            json!({"vpc.amazonaws.com/pod-eni": interface.to_string()})
        });
        read(json!({
            "metadata": {
                "namespace": "shop", "name": uid, "uid": uid, "labels": {"app": app},
                "annotations": annotation
            },
            "spec": {
                "nodeName": node,
                "serviceAccountName": "clerk",
                "containers": [{"resources": {"limits": {"vpc.amazonaws.com/pod-eni": "1"}}}]
            }
        }))
    }

    fn policy(name: &str, spec: Value, ids: &[&str]) -> DynamicObject {
        let mut object = json!({
            "apiVersion": "vpcresources.k8s.aws/v1beta1",
            "kind": "SecurityGroupPolicy",
            "metadata": {"namespace": "shop", "name": name},
            "spec": spec
        });
        object["spec"]["securityGroups"] = json!({"groupIds": ids});
        read(object)
    }

    fn account(tier: &str) -> PartialObjectMeta<ServiceAccount> {
        read(json!({
            "metadata": {"namespace": "shop", "name": "clerk", "labels": {"tier": tier}}
        }))
    }

    fn node(name: &str, instance: &str, second: u32) -> NodeObject {
        read(json!({
            "metadata": {
                "name": name, "uid": name,
                "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")
            },
            "spec": {"providerID": format!("aws:///us-west-2a/{instance}")}
        }))
    }

    fn groups_of(cluster: &Cluster, uid: &str) -> Vec<String> {
        let pod = &cluster.pods[&PodUid::from(uid)];
        pod.groups.iter().map(ToString::to_string).collect()
    }

    fn nodes(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn groups_are_the_union_in_order_of_the_policies_names() {
        let mut cluster = Cluster::default();
        cluster.apply(Change::Pods(Of::Apply(pod("1", "a", "web", None))));
        let by_label = json!({"podSelector": {"matchLabels": {"app": "web"}}});
        let by_account = json!({"serviceAccountSelector": {"matchLabels": {"tier": "gold"}}});
        let changes = [
            Change::Policies(Of::All(vec![
                policy("b", by_label.clone(), &["sg-00000002", "sg-00000001"]),
                policy(
                    "a",
                    json!({"podSelector": {}}),
                    &["sg-00000003", "sg-00000001"],
                ),
                policy("c", by_account, &["sg-00000004"]),
                policy("invalid", json!({}), &["sg-00000005"]),
            ])),
            Change::ServiceAccounts(Of::Apply(account("gold"))),
            Change::ServiceAccounts(Of::Apply(account("silver"))),
            Change::Policies(Of::Delete(policy("a", json!({}), &[]))),
            Change::Policies(Of::Apply(policy("b", by_label, &["sg-00000006"]))),
            Change::Pods(Of::Apply(pod("1", "a", "db", None))),
        ];
        let expected: [&[u8]; 6] = [&[3, 1, 2], &[3, 1, 2, 4], &[3, 1, 2], &[2, 1], &[6], &[]];
        for (change, expected) in changes.into_iter().zip(expected) {
            let case = format!("{change:?}");
            let touched = cluster.apply(change);
            assert_eq!(touched.nodes, nodes(&["a"]), "{case}");
            let expected: Vec<_> = expected
                .iter()
                .map(|id| format!("sg-0000000{id}"))
                .collect();
            assert_eq!(groups_of(&cluster, "1"), expected, "{case}");
        }
    }

    #[test]
    fn change_that_gives_nobody_other_groups_concerns_nobody() {
        let mut cluster = Cluster::default();
        cluster.apply(Change::Pods(Of::Apply(pod("1", "a", "web", None))));
        let other = json!({"podSelector": {"matchLabels": {"app": "db"}}});
        let other = policy("other", other, &["sg-00000001"]);
        for change in [
            Change::Policies(Of::Apply(other)),
            Change::ServiceAccounts(Of::Apply(account("gold"))),
            Change::Policies(Of::Undefined),
        ] {
            let case = format!("{change:?}");
            let touched = cluster.apply(change);
            assert!(!touched.all && touched.nodes.is_empty(), "{case}");
        }
    }

    #[test]
    fn policies_that_were_seen_hold_while_the_api_server_does_not_know_the_kind() {
        let mut cluster = Cluster::default();
        let all = policy("all", json!({"podSelector": {}}), &["sg-00000001"]);
        cluster.apply(Change::Policies(Of::All(vec![all])));
        cluster.apply(Change::Pods(Of::Apply(pod("1", "a", "web", None))));
        cluster.apply(Change::Policies(Of::Undefined));
        assert!(!cluster.policies_defined);
        cluster.apply(Change::Pods(Of::Apply(pod("2", "a", "web", None))));
        for uid in ["1", "2"] {
            assert_eq!(groups_of(&cluster, uid), ["sg-00000001"], "{uid}");
        }
        cluster.apply(Change::Policies(Of::All(Vec::new())));
        assert!(cluster.policies_defined);
        assert_eq!(groups_of(&cluster, "1"), [""; 0]);
    }

    #[test]
    fn pod_that_a_policy_selected_has_to_be_confirmed_anew() {
        let mut cluster = Cluster::default();
        let uid = PodUid::from("1");
        cluster.apply(Change::Pods(Of::Apply(pod("1", "a", "web", None))));
        let confirmed = |cluster: &Cluster| cluster.pods[&uid].confirmed_unselected;
        if let Some(pod) = cluster.pods.get_mut(&uid) {
            pod.confirmed_unselected = true;
        }
        cluster.apply(Change::Pods(Of::Apply(pod("1", "a", "db", None))));
        assert!(confirmed(&cluster), "still nothing selects it");
        let all = policy("all", json!({"podSelector": {}}), &["sg-00000001"]);
        cluster.apply(Change::Policies(Of::Apply(all.clone())));
        cluster.apply(Change::Policies(Of::Delete(all)));
        assert!(!confirmed(&cluster));
    }

    #[test]
    fn list_replaces_the_pods_and_keeps_what_is_known_of_those_that_stay() {
        let mut cluster = Cluster::default();
        for (uid, node) in [("1", "a"), ("2", "b"), ("3", "b")] {
            cluster.apply(Change::Pods(Of::Apply(pod(uid, node, "web", None))));
        }
        let arrival = cluster.pods[&PodUid::from("3")].arrival;
        let list = vec![
            pod("4", "c", "web", None),
            pod("3", "b", "web", Some("eni-3")),
        ];
        let touched = cluster.apply(Change::Pods(Of::All(list)));
        assert_eq!(touched.nodes, nodes(&["a", "b", "c"]));
        let on = |node| {
            let pods = cluster.pods_on(node);
            pods.map(|(uid, _)| uid.as_str().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            (on("a"), on("b"), on("c")),
            (vec![], vec!["3".into()], vec!["4".into()])
        );
        assert_eq!(cluster.pods[&PodUid::from("3")].arrival, arrival);
        let user = cluster.user_of(&BranchId::from("eni-3"));
        assert_eq!(user.map(|(uid, _)| uid.as_str()), Some("3"));
    }

    #[test]
    fn user_of_a_branch_is_known_until_it_is_gone() {
        let mut cluster = Cluster::default();
        let branch = BranchId::from("eni-1");
        let user = |cluster: &Cluster| {
            let user = cluster.user_of(&branch);
            user.map(|(uid, _)| uid.as_str().to_owned())
        };
        cluster.apply(Change::Pods(Of::Apply(pod("1", "a", "web", None))));
        assert_eq!(user(&cluster), None);
        let annotated = pod("1", "a", "web", Some("eni-1"));
        let Annotation::Names(interface) = PodObject::from(annotated).annotation else {
            panic!("it has an annotation");
        };
        cluster.note_annotation(&PodUid::from("1"), *interface, "2".to_owned());
        assert_eq!(user(&cluster).as_deref(), Some("1"));
        // The watch has not seen it yet.
        cluster.apply(Change::Pods(Of::Apply(pod("1", "a", "web", None))));
        assert_eq!(user(&cluster).as_deref(), Some("1"));
        cluster.apply(Change::Pods(Of::Delete(pod("1", "a", "web", None))));
        assert_eq!(user(&cluster), None);
    }

    #[test]
    fn instance_is_the_node_that_was_made_last_among_those_that_are_there() {
        let mut cluster = Cluster::default();
        for (change, expected) in [
            (Of::Apply(node("old", "i-1", 1)), [Some("old"), None]),
            (Of::Apply(node("new", "i-1", 2)), [Some("new"), None]),
            (Of::Apply(node("old", "i-1", 1)), [Some("new"), None]),
            (Of::Delete(node("new", "i-1", 2)), [Some("old"), None]),
            // Made anew under the same name, on another instance.
            (Of::Apply(node("old", "i-2", 3)), [None, Some("old")]),
            (Of::All(vec![node("old", "i-1", 4)]), [Some("old"), None]),
            (Of::Undefined, [None, None]),
        ] {
            let case = format!("{change:?}");
            cluster.apply(Change::Nodes(change));
            let found = ["i-1", "i-2"].map(|id| cluster.node_of(id).map(NodeObject::name));
            assert_eq!(found, expected, "{case}");
        }
    }
}
