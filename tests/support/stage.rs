//! A sandbox with nodes and an allocator, and what tests of the allocator do with it.

#![allow(dead_code, reason = "each test program uses a part")]

pub mod interfaces;
pub mod stopwatch;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, ServiceAccount};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::{Condition, await_condition};
use kube::{Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sgp::api::names::{
    CNI_CONFIG_MAP, CNI_NAMESPACE, COOLDOWN_KEY, HAS_TRUNK_ATTACHED, POD_ENI, TAG_POD_UID,
};
use sgp::api::{PodEni, SecurityGroupPolicy};
use sgp::dev::allocator::AllocatorOptions;
use sgp::dev::cloud::{GroupIds, Network};
use sgp::dev::control_plane::Binaries;
use sgp::dev::nodes::{NodeGroup, SandboxNode};
use sgp::dev::{CloudOptions, Sandbox, SandboxOptions};
use sgp::ec2::simulator::Simulator;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Semaphore, SemaphorePermit};

use interfaces::Interface;
use stopwatch::Stopwatch;

/// How long anything may take that happens by itself, on a machine that is busy.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Room for sandboxes. Each is a handful of processes that mostly wait: 6 at a time keep two
/// processors busy.
static PLACES: LazyLock<Semaphore> = LazyLock::new(|| {
    /// What a sandbox takes, and something for others.
    const MEMORY_KIB: u64 = 800 * 1024;
    let memory = std::fs::read_to_string("/proc/meminfo").expect("Linux");
    let available = memory
        .lines()
        .find_map(|it| it.strip_prefix("MemAvailable:"));
    let available = available.and_then(|it| it.split_whitespace().next()?.parse::<u64>().ok());
    let room = available.expect("Linux says so") / MEMORY_KIB;
    Semaphore::new(room.clamp(2, 6).try_into().expect("a small number"))
});

/// Waits until there is room for a sandbox, and keeps it for as long as this lives.
pub async fn place() -> SemaphorePermit<'static> {
    PLACES.acquire().await.expect("it is never closed")
}

/// What a stage starts with.
pub struct Setting {
    pub nodes: Vec<NodeGroup>,
    pub custom_networking: bool,
    /// Further arguments of the allocator.
    pub arguments: Vec<String>,
    /// How many replicas of the webhook there are.
    pub webhook_replicas: usize,
    /// How long a silent allocator stays the leader.
    pub lease_duration: Duration,
    /// The cooldown in the plugin's ConfigMap, in seconds; `None` for no ConfigMap.
    pub cooldown: Option<u32>,
}

impl Setting {
    /// For tests that count calls or measure time: on a machine that is too busy for the
    /// allocator to renew a short lease, it would give up, and look at everything anew.
    pub fn with_long_lease() -> Self {
        Self {
            lease_duration: Duration::from_secs(60),
            ..Self::default()
        }
    }
}

impl Default for Setting {
    /// One m5.large, and the shortest cooldown that there is.
    fn default() -> Self {
        Self {
            nodes: vec![NodeGroup::new("m5.large", 1)],
            custom_networking: false,
            arguments: Vec::new(),
            webhook_replicas: 1,
            lease_duration: AllocatorOptions::default().lease_duration,
            cooldown: Some(30),
        }
    }
}

/// A running sandbox whose nodes are ready for pods with security groups.
pub struct Stage {
    sandbox: Sandbox,
    metrics_port: u16,
    _place: SemaphorePermit<'static>,
}

/// A namespace of one test, in which policies are made and pods run.
pub struct Scene<'a> {
    pub stage: &'a Stage,
    pub client: Client,
    pub name: String,
    pub pods: Api<Pod>,
    pub policies: Api<SecurityGroupPolicy>,
}

/// A pod that runs with a branch interface.
#[derive(Clone, Debug)]
pub struct Running {
    pub pod: Pod,
    /// What its annotation says.
    pub annotation: PodEni,
    /// The interface in EC2.
    pub interface: Interface,
}

impl Stage {
    /// Starts, and waits until every node whose type takes a trunk has one.
    pub async fn start(setting: Setting) -> Self {
        let place = place().await;
        let options = SandboxOptions {
            cloud: Some(CloudOptions {
                nodes: Some(setting.nodes),
                custom_networking: setting.custom_networking,
            }),
            allocator: Some(AllocatorOptions {
                arguments: setting.arguments,
                lease_duration: setting.lease_duration,
            }),
            webhook_replicas: setting.webhook_replicas,
            ..SandboxOptions::new(env!("CARGO_BIN_EXE_sgp"))
        };
        let binaries = Binaries::find_or_build().unwrap_or_else(|error| panic!("{error}"));
        let sandbox = Sandbox::start(&binaries, options, |_| ()).await;
        let mut sandbox = sandbox.unwrap_or_else(|error| panic!("{error:#}"));
        let allocator = sandbox.allocator().expect("it was asked for");
        let stage = Self {
            metrics_port: allocator.metrics_port(),
            sandbox,
            _place: place,
        };
        if let Some(seconds) = setting.cooldown {
            stage.set_cooldown(&seconds.to_string()).await;
        }
        for node in stage.sandbox.nodes() {
            stage.until_settled(node).await;
        }
        stage
    }

    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    pub fn sandbox_mut(&mut self) -> &mut Sandbox {
        &mut self.sandbox
    }

    pub fn simulator(&self) -> &Simulator {
        self.sandbox.simulator()
    }

    pub fn network(&self) -> &Network {
        self.sandbox.cloud().network()
    }

    pub fn groups(&self) -> &GroupIds {
        &self.network().groups
    }

    /// The node that there was at the start, or the first of them.
    pub fn node(&self) -> &SandboxNode {
        &self.sandbox.nodes()[0]
    }

    /// A new client of the administrator, for the runtime that asks.
    pub fn client(&self) -> Client {
        self.sandbox.control_plane().client()
    }

    /// Measures a time from now on.
    pub fn stopwatch(&self) -> Stopwatch {
        Stopwatch::start(self.sandbox.control_plane().client_config())
    }

    /// Writes the plugin's ConfigMap.
    pub async fn set_cooldown(&self, value: &str) {
        let map: ConfigMap = object(json!({
            "metadata": {"name": CNI_CONFIG_MAP},
            "data": {COOLDOWN_KEY: value}
        }));
        let api: Api<ConfigMap> = Api::namespaced(self.client(), CNI_NAMESPACE);
        let parameters = PatchParams::apply("stage").force();
        let patch = Patch::Apply(&map);
        api.patch(CNI_CONFIG_MAP, &parameters, &patch)
            .await
            .unwrap();
    }

    /// Adds a node of a test's own, and waits until it takes pods with security groups.
    pub async fn add_node(&self, instance_type: &str) -> SandboxNode {
        let zone = &self.network().zones[0].name;
        let node = self.sandbox.add_node(instance_type, zone).await.unwrap();
        self.until_settled(&node).await;
        node
    }

    /// Waits until the allocator has said on a node what became of its trunk, and offers its
    /// branch interfaces.
    pub async fn until_settled(&self, node: &SandboxNode) -> Node {
        let api: Api<Node> = Api::all(self.client());
        let condition = |node: Option<&Node>| {
            node.is_some_and(|node| match trunk_label(node) {
                Some("true") => allocatable(node).is_some_and(|number| number > 0),
                Some("not-supported") => true,
                _ => false,
            })
        };
        until(&api, &node.name, condition).await.unwrap()
    }

    /// A new namespace.
    pub async fn scene(&self) -> Scene<'_> {
        let client = self.client();
        let namespace: Namespace = object(json!({"metadata": {"generateName": "test-"}}));
        let created = Api::all(client.clone())
            .create(&PostParams::default(), &namespace)
            .await
            .unwrap();
        let name = created.name_any();
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &name);
        let is_there = |account: Option<&ServiceAccount>| account.is_some();
        until(&accounts, "default", is_there).await;
        Scene {
            stage: self,
            pods: Api::namespaced(client.clone(), &name),
            policies: Api::namespaced(client.clone(), &name),
            client,
            name,
        }
    }

    /// A further security group in EC2.
    pub async fn create_group(&self, name: &str) -> String {
        let call = self.sandbox.cloud().client().create_security_group();
        let call = call.vpc_id(&self.network().vpc_id).group_name(name);
        let created = call.description("of a test").send().await.unwrap();
        created.group_id().unwrap().to_owned()
    }

    /// The trunks and branches in EC2, by id.
    pub fn interfaces(&self) -> BTreeMap<String, Interface> {
        let mut all = interfaces::all(self.simulator());
        all.retain(|_, interface| interface.is_trunk() || interface.is_branch());
        all
    }

    pub fn interface(&self, id: &str) -> Option<Interface> {
        interfaces::all(self.simulator()).remove(id)
    }

    /// What was made for a node.
    pub fn interfaces_of(&self, node: &SandboxNode) -> Vec<Interface> {
        let all = self.interfaces().into_values();
        all.filter(|interface| interface.instance_id() == node.instance.id)
            .collect()
    }

    pub fn trunk_of(&self, node: &SandboxNode) -> Option<Interface> {
        let mut all = self.interfaces_of(node).into_iter();
        all.find(Interface::is_trunk)
    }

    pub fn branches_of(&self, node: &SandboxNode) -> Vec<Interface> {
        let all = self.interfaces_of(node).into_iter();
        all.filter(Interface::is_branch).collect()
    }

    /// How many calls to EC2 there were, by action, since the simulator's last reset. Whether
    /// a security group exists is asked for the webhook, now and then and not for each pod, so
    /// that is left out.
    pub fn calls(&self) -> BTreeMap<String, u64> {
        let mut counts = self.simulator().call_counts().by_action;
        counts.remove("DescribeSecurityGroups");
        let counts = counts.into_iter();
        counts
            .map(|(action, outcomes)| (action, outcomes.values().sum()))
            .collect()
    }

    /// The calls that named an interface or its association, in order.
    pub fn calls_about(&self, interface: &Interface) -> Vec<String> {
        let association = interface.association.as_ref();
        let ids: Vec<_> = association
            .map(|it| it.id.as_str())
            .into_iter()
            .chain([interface.id.as_str()])
            .collect();
        let calls = self.simulator().calls().into_iter();
        calls
            .filter(|call| call.parameters.values().any(|it| ids.contains(&&**it)))
            .map(|call| call.action)
            .collect()
    }

    /// What the allocator serves as metrics.
    pub async fn metrics(&self) -> String {
        let address = (Ipv4Addr::LOCALHOST, self.metrics_port);
        let mut connection = TcpStream::connect(address).await.unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        connection.write_all(request).await.unwrap();
        let mut text = String::new();
        connection.read_to_string(&mut text).await.unwrap();
        text
    }

    /// Waits until the metrics have this line.
    pub async fn until_metric(&self, line: &str) {
        let what = format!("the metric {line}");
        eventually(&what, async || {
            let metrics = self.metrics().await;
            metrics.lines().any(|it| it == line).then_some(())
        })
        .await;
    }

    /// The events about an object, by its UID.
    pub async fn events(&self, uid: &str) -> Vec<Event> {
        let api: Api<Event> = Api::all(self.client());
        let fields = format!("regarding.uid={uid}");
        let list = api.list(&ListParams::default().fields(&fields)).await;
        list.unwrap().items
    }

    /// Waits for an event about an object.
    pub async fn until_event(&self, uid: &str, reason: &str) -> Event {
        self.until_event_that(uid, reason, |_| true).await
    }

    /// Waits for an event about an object whose note is as asked for.
    pub async fn until_event_that(
        &self,
        uid: &str,
        reason: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> Event {
        let begin = Instant::now();
        loop {
            let events = self.events(uid).await;
            let is_wanted = |event: &&Event| {
                event.reason.as_deref() == Some(reason)
                    && wanted(event.note.as_deref().unwrap_or_default())
            };
            if let Some(event) = events.iter().find(is_wanted) {
                return event.clone();
            }
            let told: Vec<_> = events.iter().map(|it| (&it.reason, &it.note)).collect();
            assert!(
                begin.elapsed() < PATIENCE,
                "waited in vain for {reason} about {uid}; there are {told:#?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until what EC2 has and what pods say agree, and gives the branches that belong
    /// to no pod any more.
    ///
    /// Between two calls they may differ for a moment; not for longer.
    pub async fn assert_consistent(&self) -> Vec<Interface> {
        self.assert_agreement(None).await
    }

    /// The same of what was made for one node.
    pub async fn assert_consistent_on(&self, node: &SandboxNode) -> Vec<Interface> {
        self.assert_agreement(Some(&node.instance.id)).await
    }

    /// Waits until no branch is left that belongs to no pod; that takes the cooldown.
    pub async fn until_nothing_idles(&self) {
        let is_left = async || self.assert_consistent().await.is_empty();
        let what = "branches without a pod to go";
        eventually(what, async || is_left().await.then_some(())).await;
    }

    /// The same of what was made for one node.
    pub async fn until_nothing_idles_on(&self, node: &SandboxNode) {
        let is_left = async || self.assert_consistent_on(node).await.is_empty();
        let what = "branches without a pod to go";
        eventually(what, async || is_left().await.then_some(())).await;
    }

    async fn assert_agreement(&self, instance: Option<&str>) -> Vec<Interface> {
        let pods: Api<Pod> = Api::all(self.client());
        let begin = Instant::now();
        loop {
            // Pods before interfaces: a pod is there before its branch and after it.
            let list = pods.list(&ListParams::default()).await.unwrap().items;
            match self.compare(&list, instance) {
                Ok(idle) => {
                    let contradictions = self.simulator().contradictions();
                    assert_eq!(contradictions, Vec::<String>::new());
                    return idle;
                }
                Err(difference) => assert!(begin.elapsed() < PATIENCE, "{difference}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn compare(&self, pods: &[Pod], instance: Option<&str>) -> Result<Vec<Interface>, String> {
        let all = self.interfaces();
        let concerns = |it: &Interface| instance.is_none_or(|id| it.instance_id() == id);
        let concerned = || all.values().filter(|interface| concerns(interface));
        let mut trunks: BTreeMap<&str, &Interface> = BTreeMap::new();
        for trunk in concerned().filter(|it| it.is_trunk()) {
            let attached = trunk.attachment.as_ref().map(|it| it.instance_id.as_str());
            if attached != Some(trunk.instance_id()) {
                return Err(format!("not attached where its tag says: {trunk:?}"));
            }
            if let Some(other) = trunks.insert(trunk.instance_id(), trunk) {
                return Err(format!("two trunks: {other:?} and {trunk:?}"));
            }
        }
        let alive: Vec<_> = pods.iter().filter(|pod| is_alive(pod)).collect();
        let uids: BTreeSet<_> = alive.iter().filter_map(|pod| pod.uid()).collect();
        let mut owners: BTreeMap<String, &Pod> = BTreeMap::new();
        for pod in &alive {
            let Some(annotation) = annotation(pod) else {
                continue;
            };
            let id = annotation.interface_id.clone();
            let found = all.get(&id);
            let interface = found.ok_or_else(|| format!("{id} is not in EC2: {pod:?}"))?;
            is_true(&annotation, interface)?;
            if let Some(other) = owners.insert(id, pod) {
                return Err(format!("one branch, two pods: {other:?} and {pod:?}"));
            }
        }
        let mut vlans = BTreeSet::new();
        let mut idle = Vec::new();
        for branch in concerned().filter(|it| it.is_branch()) {
            let trunk = trunks.get(branch.instance_id());
            if let Some(place) = &branch.association {
                if trunk.is_none_or(|trunk| trunk.id != place.trunk_interface_id) {
                    return Err(format!("not on the trunk of its instance: {branch:?}"));
                }
                if !vlans.insert((&place.trunk_interface_id, place.vlan_id)) {
                    return Err(format!("its VLAN id is another's too: {branch:?}"));
                }
            }
            if owners.contains_key(&branch.id) {
                continue;
            }
            let made_for = branch.tag(TAG_POD_UID);
            if uids.contains(made_for) && !owners.values().any(|pod| has_uid(pod, made_for)) {
                return Err(format!("its pod still waits for it: {branch:?}"));
            }
            idle.push(branch.clone());
        }
        Ok(idle)
    }
}

impl Scene<'_> {
    /// A policy that selects every pod of the namespace.
    pub async fn policy(&self, name: &str, groups: &[&str]) -> SecurityGroupPolicy {
        self.policy_with(name, json!({"podSelector": {}}), groups)
            .await
    }

    /// A policy with these selectors.
    pub async fn policy_with(
        &self,
        name: &str,
        selectors: Value,
        groups: &[&str],
    ) -> SecurityGroupPolicy {
        let mut policy = json!({"metadata": {"name": name}, "spec": selectors});
        policy["spec"]["securityGroups"] = json!({"groupIds": groups});
        let policy = object(policy);
        let parameters = PostParams::default();
        self.policies.create(&parameters, &policy).await.unwrap()
    }

    /// Writes another list of groups into a policy.
    pub async fn set_groups(&self, policy: &str, groups: &[&str]) {
        let spec = json!({"securityGroups": {"groupIds": groups}});
        let patch = Patch::Merge(json!({"spec": spec}));
        let parameters = PatchParams::default();
        let patched = self.policies.patch(policy, &parameters, &patch);
        patched.await.unwrap();
    }

    /// Creates a pod for a node.
    pub async fn pod(&self, name: &str, node: &SandboxNode) -> Pod {
        self.pod_with(name, node, json!({}), json!({})).await
    }

    /// Creates a pod for a node, with further fields of its metadata and its spec. It is done
    /// again where the webhook did not decide in time, which happens on a machine that is very
    /// busy.
    pub async fn pod_with(
        &self,
        name: &str,
        node: &SandboxNode,
        metadata: Value,
        spec: Value,
    ) -> Pod {
        let on_node = json!({"kubernetes.io/hostname": node.name});
        let mut pod = pod(name, json!({"nodeSelector": on_node}));
        for (part, added) in [("metadata", metadata), ("spec", spec)] {
            for (key, value) in added.as_object().unwrap() {
                pod[part][key] = value.clone();
            }
        }
        let pod = object(pod);
        eventually("the pod's creation", async || {
            match self.pods.create(&PostParams::default(), &pod).await {
                Ok(created) => Some(created),
                Err(kube::Error::Api(status)) if status.code >= 500 => None,
                Err(error) => panic!("{name}: {error}"),
            }
        })
        .await
    }

    /// Waits until a pod runs, and looks at its branch interface in EC2.
    pub async fn until_runs(&self, name: &str) -> Running {
        let runs = |pod: Option<&Pod>| pod.is_some_and(|pod| phase(pod) == "Running");
        let pod = until(&self.pods, name, runs).await.unwrap();
        let annotation = annotation(&pod).expect("it has a branch interface");
        let interface = self.stage.interface(&annotation.interface_id);
        let interface = interface.expect("EC2 has the interface that the annotation names");
        is_true(&annotation, &interface).unwrap();
        let address = pod.status.as_ref().and_then(|it| it.pod_ip.as_deref());
        assert_eq!(address, Some(annotation.private_ip.as_str()));
        Running {
            pod,
            annotation,
            interface,
        }
    }

    /// Creates a pod for a node, and waits until it runs.
    pub async fn run(&self, name: &str, node: &SandboxNode) -> Running {
        self.pod(name, node).await;
        self.until_runs(name).await
    }

    /// Deletes a pod, and waits until it is gone.
    pub async fn delete(&self, name: &str) {
        let pod = self.pods.get(name).await.unwrap();
        self.pods
            .delete(name, &DeleteParams::default())
            .await
            .unwrap();
        let uid = pod.uid();
        let is_gone = |pod: Option<&Pod>| pod.is_none_or(|pod| pod.uid() != uid);
        until(&self.pods, name, is_gone).await;
    }

    /// Removes a pod at once, as the pod garbage collector does.
    pub async fn delete_by_force(&self, name: &str) {
        let parameters = DeleteParams::default().grace_period(0);
        match self.pods.delete(name, &parameters).await {
            Ok(_) => {}
            // The pod garbage collector was quicker.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => panic!("{name}: {error}"),
        }
    }

    /// Writes further fields into a pod's metadata.
    pub async fn patch_metadata(&self, name: &str, metadata: Value) {
        let patch = Patch::Merge(json!({"metadata": metadata}));
        let parameters = PatchParams::default();
        self.pods.patch(name, &parameters, &patch).await.unwrap();
    }

    /// Waits until a pod's branch interface has exactly these groups in EC2.
    pub async fn until_groups(&self, running: &Running, groups: &[&str]) {
        let wanted: BTreeSet<_> = groups.iter().map(|id| (*id).to_owned()).collect();
        let id = &running.interface.id;
        eventually(&format!("{id} to have {wanted:?}"), async || {
            let interface = self.stage.interface(id)?;
            (interface.groups.into_iter().collect::<BTreeSet<_>>() == wanted).then_some(())
        })
        .await;
    }
}

impl Running {
    pub fn uid(&self) -> String {
        self.pod.uid().unwrap()
    }
}

/// The JSON of a pod with these further fields in its spec.
pub fn pod(name: &str, spec: Value) -> Value {
    let mut pod = json!({
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "app", "image": "app"}]}
    });
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    pod
}

/// The fields of a spec that request a branch interface by hand.
pub fn requesting_interface() -> Value {
    let resources = json!({"limits": {POD_ENI: "1"}, "requests": {POD_ENI: "1"}});
    json!({"containers": [{"name": "app", "image": "app", "resources": resources}]})
}

pub fn object<T: DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).unwrap()
}

pub fn phase(pod: &Pod) -> &str {
    let status = pod.status.as_ref();
    status
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

/// Whether a pod may still use its interface.
pub fn is_alive(pod: &Pod) -> bool {
    !matches!(phase(pod), "Succeeded" | "Failed")
}

/// What the annotation of a pod says.
pub fn annotation(pod: &Pod) -> Option<PodEni> {
    let json = pod.annotations().get(POD_ENI)?;
    let list: Vec<PodEni> = serde_json::from_str(json).expect("a list of interfaces");
    let [interface] = list.try_into().expect("one interface");
    Some(interface)
}

/// What the node's label says of its trunk.
pub fn trunk_label(node: &Node) -> Option<&str> {
    let label = node.labels().get(HAS_TRUNK_ATTACHED);
    label.map(String::as_str)
}

/// How many branch interfaces the scheduler may give away on a node.
pub fn allocatable(node: &Node) -> Option<u32> {
    let allocatable = node.status.as_ref()?.allocatable.as_ref()?;
    allocatable.get(POD_ENI)?.0.parse().ok()
}

fn has_uid(pod: &Pod, uid: &str) -> bool {
    pod.metadata.uid.as_deref() == Some(uid)
}

/// Whether an annotation says of an interface what EC2 says.
fn is_true(annotation: &PodEni, interface: &Interface) -> Result<(), String> {
    let place = interface.association.as_ref();
    let said = (
        annotation.private_ip.as_str(),
        annotation.mac_address.as_str(),
        annotation.vlan_id,
        annotation.association_id.as_str(),
    );
    let address = interface.address().to_string();
    let so = (
        address.as_str(),
        interface.mac_address.as_str(),
        place.map_or(0, |place| place.vlan_id),
        place.map(|place| place.id.as_str()).unwrap_or_default(),
    );
    match said == so {
        true => Ok(()),
        false => Err(format!("{annotation:?} is not true: {interface:?}")),
    }
}

/// The JSON that an allocator answers on its socket.
pub async fn ask(socket: &Path, path: &str) -> Value {
    serde_json::from_str(&ask_for_text(socket, path).await).unwrap()
}

/// What an allocator answers on its socket.
pub async fn ask_for_text(socket: &Path, path: &str) -> String {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    body.to_owned()
}

/// Waits for a condition of an object, and gives the object; `None` when it is gone.
pub async fn until<T>(api: &Api<T>, name: &str, condition: impl Condition<T>) -> Option<T>
where
    T: Clone + Debug + DeserializeOwned + Send + kube::Resource + 'static,
{
    let met = await_condition(api.clone(), name, condition);
    match tokio::time::timeout(PATIENCE, met).await {
        Ok(met) => met.unwrap(),
        Err(_) => panic!(
            "waited in vain for {name}; in the end: {:#?}",
            api.get_opt(name).await
        ),
    }
}

/// Tries until `attempt` gives something.
pub async fn eventually<T>(what: &str, attempt: impl AsyncFn() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(result) = attempt().await {
            return result;
        }
        assert!(begin.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
