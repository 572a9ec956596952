//! A sandbox with nodes: what the API server sees of kubelets, scheduler and simulated EC2.

#[path = "support/waiting.rs"]
mod waiting;

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::{Condition, await_condition};
use kube::{Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sgp::api::ENIConfig;
use sgp::dev::control_plane::Binaries;
use sgp::dev::nodes::{NodeGroup, SandboxNode};
use sgp::dev::{CloudOptions, InstanceFate, Sandbox, SandboxOptions};
use tokio::sync::OnceCell;
use waiting::eventually;

const POD_ENI: &str = "vpc.amazonaws.com/pod-eni";
const OUTCOME: &str = "sgp.dev/outcome";

/// How long anything may take that happens by itself, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// The sandbox that most tests share; it ends with this process.
async fn shared() -> &'static Sandbox {
    static SANDBOX: OnceCell<Sandbox> = OnceCell::const_new();
    let group = [NodeGroup::new("m5.large", 1)];
    SANDBOX.get_or_init(|| start(None, false, &group)).await
}

async fn start(data_dir: Option<&Path>, custom_networking: bool, nodes: &[NodeGroup]) -> Sandbox {
    let options = SandboxOptions {
        data_dir: data_dir.map(Path::to_owned),
        cloud: Some(CloudOptions {
            nodes: Some(nodes.to_vec()),
            custom_networking,
        }),
        ..SandboxOptions::new(env!("CARGO_BIN_EXE_sgp"))
    };
    let binaries = Binaries::find_or_build().unwrap_or_else(|error| panic!("{error}"));
    let sandbox = Sandbox::start(&binaries, options, |_| ()).await;
    sandbox.unwrap_or_else(|error| panic!("{error:#}"))
}

/// A client of the allocator, which alone may write the annotation of an interface.
async fn allocator(sandbox: &Sandbox) -> Client {
    let kubeconfig = Kubeconfig::read_from(sandbox.service_account_kubeconfig()).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
    let mut config = config.unwrap();
    // A proxy in the environment is for the world outside.
    config.proxy_url = None;
    Client::try_from(config).unwrap()
}

/// A namespace of one test.
async fn namespace(client: &Client) -> Api<Pod> {
    let namespace = object::<Namespace>(json!({"metadata": {"generateName": "test-"}}));
    let created = Api::all(client.clone())
        .create(&PostParams::default(), &namespace)
        .await
        .unwrap();
    let name = created.name_any();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &name);
    until(&accounts, "default", |account: Option<&ServiceAccount>| {
        account.is_some()
    })
    .await;
    Api::namespaced(client.clone(), &name)
}

fn object<T: DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).unwrap()
}

/// A pod on one node, with further fields of its metadata and its spec.
fn pod(name: &str, node: &SandboxNode, metadata: Value, spec: Value) -> Pod {
    let mut pod = json!({
        "metadata": {"name": name},
        "spec": {
            "containers": [{"name": "app", "image": "app"}],
            "nodeSelector": {"kubernetes.io/hostname": node.name}
        }
    });
    for (part, added) in [("metadata", metadata), ("spec", spec)] {
        for (key, value) in added.as_object().unwrap() {
            pod[part][key] = value.clone();
        }
    }
    object(pod)
}

/// The spec of a pod that needs a branch interface.
fn with_interface() -> Value {
    let resources = json!({"limits": {POD_ENI: "1"}, "requests": {POD_ENI: "1"}});
    json!({"containers": [{"name": "app", "image": "app", "resources": resources}]})
}

async fn create(api: &Api<Pod>, pod: Pod) {
    api.create(&PostParams::default(), &pod).await.unwrap();
}

/// Waits for a condition of an object, and gives the object; `None` when it is gone.
async fn until<T>(api: &Api<T>, name: &str, condition: impl Condition<T>) -> Option<T>
where
    T: Clone + std::fmt::Debug + DeserializeOwned + Send + kube::Resource + 'static,
{
    let met = await_condition(api.clone(), name, condition);
    let met = tokio::time::timeout(PATIENCE, met).await;
    match met {
        Ok(met) => met.unwrap(),
        Err(_) => panic!("waited in vain; in the end: {:#?}", api.get_opt(name).await),
    }
}

async fn until_phase(api: &Api<Pod>, name: &str, wanted: &'static str) -> Pod {
    let condition = move |pod: Option<&Pod>| pod.is_some_and(|pod| phase(pod) == wanted);
    until(api, name, condition).await.unwrap()
}

fn phase(pod: &Pod) -> &str {
    let status = pod.status.as_ref();
    status
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

fn pod_ip(pod: &Pod) -> &str {
    pod.status.as_ref().unwrap().pod_ip.as_deref().unwrap()
}

async fn set_capacity(nodes: &Api<Node>, node: &str, capacity: Value) {
    let patch = Patch::Merge(json!({"status": {"capacity": capacity}}));
    let parameters = PatchParams::default();
    nodes.patch_status(node, &parameters, &patch).await.unwrap();
}

/// Waits until a node can allocate so much of a resource; `None` means none at all.
async fn until_allocatable(
    nodes: &Api<Node>,
    node: &str,
    resource: &'static str,
    amount: Option<&'static str>,
) -> Node {
    let condition = move |node: Option<&Node>| {
        let status = node.and_then(|node| node.status.as_ref());
        let allocatable = status.and_then(|status| status.allocatable.as_ref());
        let found = allocatable.and_then(|it| it.get(resource));
        found.map(|quantity| quantity.0.as_str()) == amount
    };
    until(nodes, node, condition).await.unwrap()
}

#[tokio::test]
async fn nodes_are_instances_of_the_simulated_ec2() {
    let sandbox = shared().await;
    let [started] = sandbox.nodes() else {
        panic!("one node was asked for");
    };
    let nodes: Api<Node> = Api::all(sandbox.control_plane().client());
    let node = nodes.get(&started.name).await.unwrap();

    let instances = sandbox.cloud().instances().await.unwrap();
    let instance = instances.iter().find(|one| one.id == started.instance.id);
    let instance = instance.expect("EC2 knows the instance");
    assert_eq!(node.name_any(), instance.private_dns_name);
    let address = &node.status.as_ref().unwrap().addresses.as_ref().unwrap()[0];
    assert_eq!(address.type_, "InternalIP");
    assert_eq!(address.address, instance.private_ip);
    let provider_id = node.spec.unwrap().provider_id.unwrap();
    assert_eq!(
        provider_id,
        format!("aws:///{}/{}", instance.zone, instance.id)
    );
}

#[tokio::test]
async fn what_is_allocatable_follows_the_capacity_that_others_patch() {
    let sandbox = shared().await;
    let node = sandbox.add_node("m5.large", "us-west-2b").await.unwrap();
    let nodes: Api<Node> = Api::all(sandbox.control_plane().client());

    set_capacity(&nodes, &node.name, json!({POD_ENI: "9"})).await;
    until_allocatable(&nodes, &node.name, POD_ENI, Some("9")).await;
    set_capacity(&nodes, &node.name, json!({"example.com/other": "2"})).await;
    let both = until_allocatable(&nodes, &node.name, "example.com/other", Some("2")).await;
    let status = both.status.unwrap();
    assert_eq!(
        status.capacity.unwrap()[POD_ENI].0,
        "9",
        "nobody dropped it"
    );
    assert_eq!(status.allocatable.unwrap()["cpu"].0, "2");
    set_capacity(&nodes, &node.name, json!({POD_ENI: "5"})).await;
    until_allocatable(&nodes, &node.name, POD_ENI, Some("5")).await;
    set_capacity(&nodes, &node.name, json!({POD_ENI: null})).await;
    until_allocatable(&nodes, &node.name, POD_ENI, None).await;
}

#[tokio::test]
async fn scheduler_binds_as_many_pods_as_the_node_has_interfaces_for() {
    let sandbox = shared().await;
    let client = sandbox.control_plane().client();
    let node = sandbox.add_node("m5.large", "us-west-2c").await.unwrap();
    let nodes: Api<Node> = Api::all(client.clone());
    set_capacity(&nodes, &node.name, json!({POD_ENI: "9"})).await;
    until_allocatable(&nodes, &node.name, POD_ENI, Some("9")).await;

    let pods = namespace(&client).await;
    for number in 0..10 {
        let name = format!("pod-{number}");
        create(&pods, pod(&name, &node, json!({}), with_interface())).await;
    }
    let scheduled = |wanted: &'static str| {
        let pods = pods.clone();
        async move {
            let all = pods.list(&ListParams::default()).await.unwrap().items;
            let matching = all.into_iter().filter(|pod| {
                let conditions = pod.status.as_ref().unwrap().conditions.iter().flatten();
                let mut conditions = conditions.filter(|it| it.type_ == "PodScheduled");
                conditions.any(|it| it.status == wanted)
            });
            matching.collect::<Vec<_>>()
        }
    };
    let refused = loop_until(async || {
        let bound = scheduled("True").await.len();
        let refused = scheduled("False").await;
        (bound + refused.len() == 10).then_some(refused)
    })
    .await;
    assert_eq!(refused.len(), 1, "{refused:#?}");
    let message = refused[0]
        .status
        .as_ref()
        .unwrap()
        .conditions
        .as_ref()
        .unwrap()[0]
        .message
        .clone();
    assert!(message.unwrap().contains(POD_ENI));

    // Room is made, and the tenth takes it.
    let bound = scheduled("True").await[0].name_any();
    pods.delete(&bound, &DeleteParams::default()).await.unwrap();
    let is_bound =
        |pod: Option<&Pod>| pod.is_some_and(|pod| pod.spec.as_ref().unwrap().node_name.is_some());
    until(&pods, &refused[0].name_any(), is_bound).await;
}

/// Tries until `attempt` gives something.
async fn loop_until<T>(attempt: impl AsyncFn() -> Option<T>) -> T {
    let attempts = async {
        loop {
            if let Some(result) = attempt().await {
                return result;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let result = tokio::time::timeout(PATIENCE, attempts).await;
    result.expect("it comes true in time")
}

#[tokio::test]
async fn pod_with_an_interface_runs_once_that_is_described_and_has_its_addresses() {
    let sandbox = shared().await;
    let client = sandbox.control_plane().client();
    let node = sandbox.add_node("m5.large", "us-west-2a").await.unwrap();
    let nodes: Api<Node> = Api::all(client.clone());
    set_capacity(&nodes, &node.name, json!({POD_ENI: "9"})).await;

    let pods = namespace(&client).await;
    create(&pods, pod("green", &node, json!({}), with_interface())).await;
    let waiting_reason = |pod: &Pod| {
        let status = pod.status.as_ref()?;
        let container = status.container_statuses.as_ref()?.first()?;
        container.state.as_ref()?.waiting.as_ref()?.reason.clone()
    };
    let is_creating = move |pod: Option<&Pod>| {
        pod.and_then(waiting_reason)
            .is_some_and(|reason| reason == "ContainerCreating")
    };
    let waits = until(&pods, "green", is_creating).await.unwrap();
    assert_eq!(phase(&waits), "Pending");
    let namespace = waits.namespace().unwrap();
    assert_eq!(waits.status.unwrap().pod_ip, None);
    // One that waits for nothing runs meanwhile.
    create(&pods, pod("red", &node, json!({}), json!({}))).await;
    until_phase(&pods, "red", "Running").await;
    assert_eq!(phase(&pods.get("green").await.unwrap()), "Pending");

    let interface = json!([{
        "eniId": "eni-0123456789abcdef0", "ifAddress": "02:00:00:00:00:01",
        "privateIp": "100.64.3.7", "ipv6Addr": "2600:1f13::7", "vlanId": 1,
        "subnetCidr": "100.64.0.0/19", "subnetV6Cidr": "", "associationID": ""
    }]);
    let annotations = json!({POD_ENI: interface.to_string()});
    let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
    let parameters = PatchParams::default();
    let pods_of_allocator = Api::<Pod>::namespaced(allocator(sandbox).await, &namespace);
    let written = pods_of_allocator
        .patch_status("green", &parameters, &patch)
        .await;
    written.unwrap();
    let runs = until_phase(&pods, "green", "Running").await;
    assert_eq!(pod_ip(&runs), "100.64.3.7");
    let addresses = runs.status.unwrap().pod_ips.unwrap();
    let addresses: Vec<_> = addresses.iter().map(|one| one.ip.as_str()).collect();
    assert_eq!(addresses, ["100.64.3.7", "2600:1f13::7"]);
}

#[tokio::test]
async fn other_pods_run_at_once_with_addresses_of_the_vpc() {
    let sandbox = shared().await;
    let node = &sandbox.nodes()[0];
    let pods = namespace(&sandbox.control_plane().client()).await;
    let mut addresses = BTreeSet::new();
    for name in ["one", "other"] {
        create(&pods, pod(name, node, json!({}), json!({}))).await;
        let address: Ipv4Addr = pod_ip(&until_phase(&pods, name, "Running").await)
            .parse()
            .unwrap();
        assert!(is_shared(address), "{address}");
        addresses.insert(address);
    }
    assert_eq!(addresses.len(), 2, "each has its own: {addresses:?}");

    let host_network = json!({"hostNetwork": true});
    create(&pods, pod("on-host", node, json!({}), host_network)).await;
    let on_host = until_phase(&pods, "on-host", "Running").await;
    assert_eq!(pod_ip(&on_host), node.instance.private_ip);
}

/// Whether an address is in 10.0.128.0/17.
fn is_shared(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    (a, b) == (10, 0) && c >= 128
}

#[tokio::test]
async fn pods_end_as_their_annotation_says() {
    let sandbox = shared().await;
    let client = sandbox.control_plane().client();
    let node = &sandbox.nodes()[0];
    let pods = namespace(&client).await;
    let never = json!({"restartPolicy": "Never"});
    let outcome = |outcome: &str| json!({"annotations": {OUTCOME: outcome}});

    create(&pods, pod("fails", node, outcome("Failed"), never.clone())).await;
    let failed = until_phase(&pods, "fails", "Failed").await;
    assert_eq!(failed.status.unwrap().reason, None, "its containers failed");
    create(&pods, pod("evicted", node, outcome("Failed"), json!({}))).await;
    let evicted = until_phase(&pods, "evicted", "Failed").await;
    assert_eq!(evicted.status.unwrap().reason.as_deref(), Some("Evicted"));
    // Later, when somebody says so.
    create(&pods, pod("succeeds", node, json!({}), never)).await;
    until_phase(&pods, "succeeds", "Running").await;
    let patch = Patch::Merge(json!({"metadata": outcome("Succeeded")}));
    let parameters = PatchParams::default();
    pods.patch("succeeds", &parameters, &patch).await.unwrap();
    until_phase(&pods, "succeeds", "Succeeded").await;

    let template = json!({
        "metadata": outcome("Succeeded"),
        "spec": {"restartPolicy": "Never", "containers": [{"name": "app", "image": "app"}]}
    });
    let job: Job = object(json!({"metadata": {"name": "job"}, "spec": {"template": template}}));
    let jobs: Api<Job> = Api::namespaced(client, pods.namespace().unwrap());
    jobs.create(&PostParams::default(), &job).await.unwrap();
    let is_complete = |job: Option<&Job>| {
        let conditions = job.and_then(|job| job.status.as_ref()?.conditions.as_ref());
        let mut conditions = conditions.into_iter().flatten();
        conditions.any(|condition| condition.type_ == "Complete" && condition.status == "True")
    };
    until(&jobs, "job", is_complete).await;
}

#[tokio::test]
async fn deleted_pods_come_to_their_end_and_go() {
    let sandbox = shared().await;
    let node = &sandbox.nodes()[0];
    let pods = namespace(&sandbox.control_plane().client()).await;
    // Keeps the object, so that its end can be seen.
    let kept = json!({"finalizers": ["example.com/kept"]});
    create(&pods, pod("runs", node, kept, json!({}))).await;
    until_phase(&pods, "runs", "Running").await;
    pods.delete("runs", &DeleteParams::default()).await.unwrap();
    until_phase(&pods, "runs", "Succeeded").await;

    let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    let parameters = PatchParams::default();
    pods.patch("runs", &parameters, &patch).await.unwrap();
    until(&pods, "runs", |pod: Option<&Pod>| pod.is_none()).await;
}

#[tokio::test]
async fn nodes_go_and_come_back_with_the_same_instance_or_another() {
    let sandbox = shared().await;
    let node = sandbox.add_node("c5.xlarge", "us-west-2a").await.unwrap();
    let nodes: Api<Node> = Api::all(sandbox.control_plane().client());
    let uid = |node: Node| node.uid().unwrap();
    let first = uid(nodes.get(&node.name).await.unwrap());

    sandbox
        .remove_node(&node, InstanceFate::Kept)
        .await
        .unwrap();
    assert!(nodes.get_opt(&node.name).await.unwrap().is_none());
    let instance = node.instance.clone();
    let again = sandbox.register_node(&node.name, instance).await.unwrap();
    assert_eq!(again, node);
    let second = uid(nodes.get(&node.name).await.unwrap());
    assert_ne!(first, second);

    sandbox
        .remove_node(&again, InstanceFate::Terminated)
        .await
        .unwrap();
    let instances = sandbox.cloud().instances().await.unwrap();
    assert!(!instances.contains(&node.instance), "{instances:?}");
    let other = sandbox.cloud().run_instance("m5.large", "us-west-2b").await;
    let other = sandbox
        .register_node(&node.name, other.unwrap())
        .await
        .unwrap();
    let object = nodes.get(&node.name).await.unwrap();
    let provider_id = object.spec.unwrap().provider_id.unwrap();
    assert!(provider_id.ends_with(&other.instance.id), "{provider_id}");
    assert_ne!(other.instance.id, node.instance.id);
}

#[tokio::test]
async fn custom_networking_names_a_subnet_of_its_own_in_each_zone() {
    let sandbox = start(None, true, &[]).await;
    let client = sandbox.control_plane().client();
    let daemon_sets: Api<DaemonSet> = Api::namespaced(client.clone(), "kube-system");
    let aws_node = daemon_sets.get("aws-node").await.unwrap();
    let pod = aws_node.spec.unwrap().template.spec.unwrap();
    let environment = pod.containers[0].env.as_ref().unwrap();
    for (name, value) in [
        ("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "true"),
        ("ENI_CONFIG_LABEL_DEF", "topology.kubernetes.io/zone"),
        ("ENABLE_POD_ENI", "true"),
    ] {
        let set: Vec<_> = environment.iter().filter(|it| it.name == name).collect();
        let values: Vec<_> = set.iter().map(|it| it.value.as_deref()).collect();
        assert_eq!(values, [Some(value)], "{name}");
    }

    let configs: Api<ENIConfig> = Api::all(client);
    let configs = configs.list(&ListParams::default()).await.unwrap().items;
    let zones: Vec<_> = configs.iter().map(ResourceExt::name_any).collect();
    assert_eq!(zones, ["us-west-2a", "us-west-2b", "us-west-2c"]);
    let nodes_group = &sandbox.cloud().network().groups.nodes;
    for config in configs {
        let groups = config.spec.security_groups.as_ref().unwrap();
        assert_eq!(groups, std::slice::from_ref(nodes_group));
        let subnet = config.spec.subnet.as_ref().unwrap();
        let found = sandbox.cloud().client().describe_subnets();
        let found = found.subnet_ids(subnet).send().await.unwrap();
        let found = &found.subnets()[0];
        assert_eq!(found.availability_zone(), Some(config.name_any().as_str()));
        assert!(found.cidr_block().unwrap().starts_with("100.64."));
    }
}

#[tokio::test]
async fn data_folder_keeps_nodes_instances_and_addresses() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let group = [NodeGroup::new("m5.large", 1)];
    let sandbox = start(Some(&data), false, &group).await;
    let nodes = sandbox.nodes().to_vec();
    let pods = namespace(&sandbox.control_plane().client()).await;
    create(&pods, pod("before", &nodes[0], json!({}), json!({}))).await;
    let before = until_phase(&pods, "before", "Running").await;
    // Something that only EC2 knows of. It is saved without an end in order.
    let zone = &sandbox.cloud().network().zones[0];
    let interface = sandbox.cloud().client().create_network_interface();
    let interface = interface
        .subnet_id(&zone.pod_subnet_id)
        .send()
        .await
        .unwrap();
    let interface = interface.network_interface().unwrap();
    let interface = interface.network_interface_id().unwrap().to_owned();
    eventually("the cloud to be saved", || {
        let saved = fs::read_to_string(data.join("ec2.json")).unwrap();
        saved.contains(&interface).then_some(())
    });
    let namespace = pods.namespace().unwrap().to_owned();
    sandbox.stop();

    let sandbox = start(Some(&data), false, &group).await;
    assert_eq!(sandbox.nodes(), nodes, "none was added");
    let found = sandbox.cloud().client().describe_network_interfaces();
    let found = found
        .network_interface_ids(&interface)
        .send()
        .await
        .unwrap();
    assert_eq!(found.network_interfaces().len(), 1);
    let pods: Api<Pod> = Api::namespaced(sandbox.control_plane().client(), &namespace);
    let mut addresses = BTreeSet::from([pod_ip(&before).to_owned()]);
    for name in ["after", "and-another"] {
        create(&pods, pod(name, &nodes[0], json!({}), json!({}))).await;
        let address = pod_ip(&until_phase(&pods, name, "Running").await).to_owned();
        assert!(addresses.insert(address), "{addresses:?}");
    }
}
