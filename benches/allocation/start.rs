//! What the start of the allocator costs in a big cluster.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Node;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::{Value, json};
use sgp::api::CNINode;
use sgp::api::names::{
    BRANCH_DESCRIPTION, OWNED, OWNER, POD_ENI, TAG_CLUSTER_PREFIX, TAG_INSTANCE_ID, TAG_OWNER,
    TAG_VLAN_ID, TRUNK_DESCRIPTION,
};
use sgp::dev::cloud::{CLUSTER_NAME, SimulatedCloud};
use sgp::dev::control_plane::free_port;
use sgp::dev::{Sandbox, SandboxOptions};
use sgp::ec2::simulator::{Behaviour, Quotas, Settings};

use crate::Bench;
use crate::cluster::{self, CONCURRENCY, PATIENCE};
use crate::process::{Memory, cpu_time};
use crate::report::{Section, seconds};

const INSTANCE_TYPE: &str = "m5.xlarge";
/// What an m5.xlarge carries. With its primary interface and its trunk, 20 in all.
const BRANCHES: usize = 18;
/// Longer than this measurement: all branches rest, and none is deleted.
const COOLDOWN: Duration = Duration::from_secs(86_400);

pub(crate) async fn start(bench: &Bench, nodes: usize) -> anyhow::Result<Section> {
    bench.progress(&format!("a cluster of {nodes} nodes: EC2"));
    let cloud = SimulatedCloud::start(None).await?;
    cloud.simulator().set(Settings {
        cloud: Behaviour {
            quotas: Quotas {
                network_interfaces: 1_000_000,
                ..Quotas::default()
            },
            ..Behaviour::default()
        },
        ..Settings::default()
    })?;
    let instances = fill(&cloud, nodes).await?;
    // Without kubelets: nobody renews thousands of leases on this machine meanwhile.
    let sandbox = Sandbox::start(&bench.binaries, SandboxOptions::new(&bench.sgp), |_| ());
    let sandbox = sandbox.await?;
    bench.progress(&format!("a cluster of {nodes} nodes: nodes"));
    let client = sandbox.control_plane().client();
    cluster::set_cooldown(&client, COOLDOWN).await?;
    create_nodes(&client, &instances).await?;

    bench.progress("starting the allocator");
    cloud.simulator().reset_calls();
    let metrics_port = free_port()?;
    let mut command = Command::new(&bench.sgp);
    cloud.give_to(&mut command);
    command
        .args(["allocator", "--cluster-name", CLUSTER_NAME])
        .arg("--kubeconfig")
        .arg(sandbox.service_account_kubeconfig())
        .arg("--socket")
        .arg(sandbox.control_plane().run_dir().join("allocator.sock"))
        .arg(format!("--metrics-listen=127.0.0.1:{metrics_port}"));
    let begin = Instant::now();
    let mut allocator = sandbox.control_plane().spawn("allocator", command)?;
    loop {
        if trunks(metrics_port).is_some_and(|trunks| trunks >= nodes) {
            break;
        }
        if let Some(status) = allocator.try_wait()? {
            let log = allocator.last_log_lines();
            bail!("the allocator ended with {status}:\n{log}");
        }
        if begin.elapsed() > PATIENCE {
            let (log, calls) = (allocator.last_log_lines(), cloud.simulator().call_counts());
            bail!("the allocator does not know all trunks, after {calls:?}:\n{log}");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let took = begin.elapsed();
    let cpu = cpu_time(allocator.id())?;
    until_quiet(&cloud).await?;
    let calls = cloud.simulator().call_counts();
    let memory = Memory::of(allocator.id())?;
    let interfaces = nodes * (BRANCHES + 2);
    let title = format!("Start with {nodes} nodes and {interfaces} interfaces in EC2");
    let mut section = Section::new(title);
    section.check("calls to EC2 until all is known", calls.total as f64, 120.0);
    section.show("seconds until all trunks are known", seconds(took));
    section.show("seconds of the allocator's CPU until then", seconds(cpu));
    section.show("MiB resident, at rest", memory.resident);
    section.show("MiB resident, peak", memory.peak);
    drop(allocator);
    sandbox.stop();
    Ok(section)
}

/// Waits until EC2 has not been called for a while.
async fn until_quiet(cloud: &SimulatedCloud) -> anyhow::Result<()> {
    const QUIET: Duration = Duration::from_secs(10);
    let begin = Instant::now();
    let mut last = (cloud.simulator().call_counts().total, Instant::now());
    while last.1.elapsed() < QUIET {
        ensure!(
            begin.elapsed() < PATIENCE,
            "the allocator does not come to rest"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
        let total = cloud.simulator().call_counts().total;
        if total != last.0 {
            last = (total, Instant::now());
        }
    }
    Ok(())
}

/// How many trunks the allocator says that it knows; `None` while it says nothing.
fn trunks(metrics_port: u16) -> Option<usize> {
    let mut stream = TcpStream::connect(("127.0.0.1", metrics_port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let line = answer
        .lines()
        .find_map(|line| line.strip_prefix("sgp_trunk_interfaces "));
    line?.trim().parse().ok()
}

/// An instance of the cloud, by its number.
fn instance_id(number: usize) -> String {
    format!("i-{number:017x}")
}

/// Fills the cloud with instances that carry a trunk and branches each, as copies of one that
/// EC2's own actions have made; the actions themselves would take minutes.
async fn fill(cloud: &SimulatedCloud, instances: usize) -> anyhow::Result<Vec<String>> {
    let client = cloud.client();
    let network = cloud.network();
    let mut subnets = Vec::new();
    for number in 65..67 {
        let block = format!("100.{number}.0.0/16");
        let vpc = &network.vpc_id;
        let associate = client.associate_vpc_cidr_block().vpc_id(vpc);
        associate.cidr_block(&block).send().await?;
        let create = client.create_subnet().vpc_id(vpc).cidr_block(&block);
        let create = create.availability_zone(&network.zones[0].name);
        let subnet = create.send().await?.subnet.context("no subnet")?;
        subnets.push(subnet.subnet_id.context("no subnet's id")?);
    }
    let first = cloud
        .run_instance(INSTANCE_TYPE, &network.zones[0].name)
        .await?;
    let zone = &network.zones[0];
    let create = |description: &str| {
        let call = client.create_network_interface();
        let call = call.subnet_id(&zone.subnet_id).description(description);
        call.groups(&network.groups.nodes)
    };
    let trunk = create(TRUNK_DESCRIPTION)
        .interface_type("trunk".into())
        .send()
        .await?;
    let trunk = trunk.network_interface.context("no trunk")?;
    let trunk_id = trunk.network_interface_id.context("no trunk's id")?;
    let attach = client.attach_network_interface().device_index(1);
    let attach = attach
        .network_interface_id(&trunk_id)
        .instance_id(&first.id);
    let attached = attach.send().await?;
    let change = aws_sdk_ec2::types::NetworkInterfaceAttachmentChanges::builder()
        .set_attachment_id(attached.attachment_id)
        .delete_on_termination(true)
        .build();
    let modify = client
        .modify_network_interface_attribute()
        .attachment(change);
    modify.network_interface_id(&trunk_id).send().await?;
    let branch = create(BRANCH_DESCRIPTION).send().await?;
    let branch = branch.network_interface.context("no branch")?;
    let branch_id = branch.network_interface_id.context("no branch's id")?;
    let associate = client.associate_trunk_interface().vlan_id(1);
    let associate = associate.trunk_interface_id(&trunk_id);
    let associate = associate.branch_interface_id(&branch_id).send().await?;
    let association = associate.interface_association.context("no association")?;
    let association_id = association.association_id.context("no association's id")?;

    let mut state: Value = serde_json::from_slice(&cloud.simulator().save()?)?;
    let primary = state["interfaces"]
        .as_object()
        .context("interfaces")?
        .values();
    let primary = primary.filter(|it| it["attachment"]["instance_id"] == json!(first.id));
    let mut primary = primary.filter(|it| it["id"] != json!(trunk_id));
    let primary = primary.next().context("no primary interface")?.clone();
    let original = Original {
        instance: state["instances"][&first.id].clone(),
        primary,
        trunk: state["interfaces"][&trunk_id].clone(),
        branch: state["interfaces"][&branch_id].clone(),
        association: state["associations"][&association_id].clone(),
    };
    let mut copier = Copier {
        subnets,
        addresses: 0,
    };
    for number in 0..instances {
        copier.copy(&original, number, &mut state);
    }
    cloud.simulator().load(&serde_json::to_vec(&state)?)?;
    Ok((0..instances).map(instance_id).collect())
}

/// What is copied.
struct Original {
    instance: Value,
    primary: Value,
    trunk: Value,
    branch: Value,
    association: Value,
}

/// Gives copies addresses of their own.
struct Copier {
    subnets: Vec<String>,
    addresses: usize,
}

impl Copier {
    fn copy(&mut self, original: &Original, number: usize, state: &mut Value) {
        let instance = instance_id(number);
        let interface_id = |nth: usize| format!("eni-{:017x}", number * (BRANCHES + 2) + nth);
        let mut copy = original.instance.clone();
        copy["id"] = json!(instance);
        state["instances"][&instance] = copy;

        let attached = |mut copy: Value, nth: usize| {
            let attachment = format!("eni-attach-{:017x}", number * 2 + nth);
            copy["attachment"]["id"] = json!(attachment);
            copy["attachment"]["instance_id"] = json!(instance);
            copy
        };
        self.add(
            attached(original.primary.clone(), 0),
            interface_id(0),
            state,
        );
        let mut trunk = attached(original.trunk.clone(), 1);
        trunk["tags"] = tags(&instance, None);
        self.add(trunk, interface_id(1), state);
        for vlan in 1..=BRANCHES {
            let mut branch = original.branch.clone();
            branch["tags"] = tags(&instance, Some(vlan));
            self.add(branch, interface_id(vlan + 1), state);
            let id = format!("trunk-assoc-{:017x}", number * BRANCHES + vlan - 1);
            let mut association = original.association.clone();
            association["id"] = json!(id);
            association["branch_interface_id"] = json!(interface_id(vlan + 1));
            association["trunk_interface_id"] = json!(interface_id(1));
            association["vlan_id"] = json!(vlan);
            state["associations"][&id] = association;
        }
    }

    fn add(&mut self, mut interface: Value, id: String, state: &mut Value) {
        const ADDRESSES: usize = 60_000;
        /// EC2 keeps the first four of a subnet for itself.
        const FIRST: usize = 4;
        let (subnet, address) = (
            self.addresses / ADDRESSES,
            self.addresses % ADDRESSES + FIRST,
        );
        self.addresses += 1;
        interface["subnet_id"] = json!(self.subnets[subnet]);
        let address = format!("100.{}.{}.{}", 65 + subnet, address / 256, address % 256);
        interface["private_ips"] = json!([address]);
        interface["id"] = json!(id);
        state["interfaces"][&id] = interface;
    }
}

fn tags(instance: &str, vlan: Option<usize>) -> Value {
    let mut tags = BTreeMap::from([
        (TAG_OWNER.to_owned(), OWNER.to_owned()),
        (
            format!("{TAG_CLUSTER_PREFIX}{CLUSTER_NAME}"),
            OWNED.to_owned(),
        ),
        (TAG_INSTANCE_ID.to_owned(), instance.to_owned()),
    ]);
    if let Some(vlan) = vlan {
        tags.insert(TAG_VLAN_ID.to_owned(), vlan.to_string());
    }
    json!(tags)
}

/// Nodes as an allocator that ran before has left them.
async fn create_nodes(client: &Client, instances: &[String]) -> anyhow::Result<()> {
    let nodes = Api::<Node>::all(client.clone());
    let cni_nodes = Api::<CNINode>::all(client.clone());
    let created = stream::iter(instances).map(|instance| {
        let (nodes, cni_nodes) = (&nodes, &cni_nodes);
        async move {
            let name = format!("node-{instance}");
            let node: Node = serde_json::from_value(json!({
                "metadata": {
                    "name": name,
                    "labels": {
                        "kubernetes.io/os": "linux",
                        "node.kubernetes.io/instance-type": INSTANCE_TYPE,
                        "vpc.amazonaws.com/has-trunk-attached": "true"
                    }
                },
                "spec": {"providerID": format!("aws:///us-west-2a/{instance}")},
                "status": {"capacity": {POD_ENI: BRANCHES.to_string(), "pods": "58"}}
            }))?;
            let parameters = PostParams::default();
            nodes.create(&parameters, &node).await?;
            let cni_node: CNINode = serde_json::from_value(json!({
                "apiVersion": "vpcresources.k8s.aws/v1alpha1",
                "kind": "CNINode",
                "metadata": {"name": name},
                "spec": {"features": [{"name": "SecurityGroupsForPods", "value": ""}]}
            }))?;
            cni_nodes.create(&parameters, &cni_node).await?;
            anyhow::Ok(())
        }
    });
    let created = created.buffer_unordered(CONCURRENCY);
    created.try_for_each(async |()| Ok(())).await
}
