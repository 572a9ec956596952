//! Interfaces in the subnets that ENIConfigs name, and with IPv6 addresses.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use sgp::api::ENIConfig;
use sgp::dev::cloud::Instance;

use crate::stage::{
    Setting, Stage, annotation, eventually, phase, requesting_interface, trunk_label, until,
};

#[tokio::test]
async fn interfaces_are_in_the_zone_s_subnet_for_pods_and_follow_its_eni_config() {
    let setting = Setting {
        custom_networking: true,
        ..Setting::default()
    };
    let stage = Stage::start(setting).await;
    let (node, groups) = (stage.node(), stage.groups());
    let scene = stage.scene().await;
    scene.policy("green", &[&groups.green]).await;
    let running = scene.run("green", node).await;
    let other = stage.scene().await;
    let by_hand = requesting_interface();
    other.pod_with("by-hand", node, json!({}), by_hand).await;
    let with_nodes_groups = other.until_runs("by-hand").await;
    other.pod("red", node).await;
    let runs = |pod: Option<&Pod>| pod.is_some_and(|pod| phase(pod) == "Running");
    let red = until(&other.pods, "red", runs).await.unwrap();

    let zone = stage.network().zone(&node.instance.zone).unwrap();
    let trunk = stage.trunk_of(node).unwrap();
    assert_eq!(trunk.subnet_id, zone.pod_subnet_id);
    assert_eq!(trunk.groups, [groups.nodes.as_str()]);
    for (branch, group) in [
        (&running.interface, &groups.green),
        (&with_nodes_groups.interface, &groups.nodes),
    ] {
        assert_eq!(branch.subnet_id, zone.pod_subnet_id);
        let [a, b, ..] = branch.address().octets();
        assert_eq!((a, b), (100, 64), "{branch:?}");
        assert_eq!(branch.groups, [group.as_str()]);
    }
    assert_eq!(running.annotation.subnet_cidr, "100.64.0.0/19");
    assert_eq!(annotation(&red), None);
    let address = red.status.unwrap().pod_ip.unwrap();
    assert!(address.starts_with("10.0."), "{address}");

    // The groups of the ENIConfig are those of what is the node's own, and of nothing else.
    let configs: Api<ENIConfig> = Api::all(scene.client.clone());
    let nodes: Api<Node> = Api::all(scene.client.clone());
    let uid = nodes.get(&node.name).await.unwrap().uid().unwrap();
    for group in [&groups.database, &groups.nodes] {
        let patch = Patch::Merge(json!({"spec": {"securityGroups": [group]}}));
        let parameters = PatchParams::default();
        let patched = configs.patch(&zone.name, &parameters, &patch).await;
        patched.unwrap();
        other.until_groups(&with_nodes_groups, &[group]).await;
        eventually("the trunk to follow", async || {
            (stage.trunk_of(node)?.groups == [group.as_str()]).then_some(())
        })
        .await;
        let names_it = |note: &str| note.contains(group.as_str());
        stage
            .until_event_that(&uid, "SecurityGroupsChanged", names_it)
            .await;
    }
    let same = scene.until_runs("green").await;
    assert_eq!(same.interface, running.interface);

    // A zone whose ENIConfig is missing.
    let zone = &stage.network().zones[1];
    let config = configs.get(&zone.name).await.unwrap();
    let parameters = DeleteParams::default();
    configs.delete(&zone.name, &parameters).await.unwrap();
    let late = stage.sandbox().add_node("m5.large", &zone.name);
    let late = late.await.unwrap();
    let object = nodes.get(&late.name).await.unwrap();
    let event = stage
        .until_event(&object.uid().unwrap(), "NodeTrunkFailedInitialization")
        .await;
    let note = event.note.unwrap();
    assert!(
        note.contains(&format!("ENIConfig {:?}", zone.name)) && note.contains("create it"),
        "{note}"
    );
    assert_eq!(trunk_label(&object), Some("false"));
    assert_eq!(stage.interfaces_of(&late), []);
    let again = ENIConfig::new(&zone.name, config.spec);
    configs
        .create(&PostParams::default(), &again)
        .await
        .unwrap();
    stage.until_settled(&late).await;
    let trunk = stage.trunk_of(&late).unwrap();
    assert_eq!(trunk.subnet_id, zone.pod_subnet_id);
    assert_eq!(stage.assert_consistent().await, []);
}

#[tokio::test]
async fn branches_have_ipv6_addresses_where_the_plugin_gives_them_to_pods() {
    let setting = Setting {
        nodes: Vec::new(),
        ..Setting::default()
    };
    let stage = Stage::start(setting).await;
    let ec2 = stage.sandbox().cloud().client();
    let zone = &stage.network().zones[0].name;
    let vpc = &stage.network().vpc_id;
    let call = ec2.associate_vpc_cidr_block().vpc_id(vpc);
    let block = call.amazon_provided_ipv6_cidr_block(true).send().await;
    let block = block.unwrap().ipv6_cidr_block_association.unwrap();
    let block = block.ipv6_cidr_block.unwrap().replace("/56", "/64");
    let call = ec2.create_subnet().vpc_id(vpc).availability_zone(zone);
    let call = call.cidr_block("10.0.96.0/24").ipv6_cidr_block(&block);
    let subnet = call.send().await.unwrap().subnet.unwrap();
    let call = ec2.run_instances().image_id("ami-0123456789abcdef0");
    let call = call.instance_type("m5.large".into());
    let call = call.min_count(1).max_count(1);
    let call = call.subnet_id(subnet.subnet_id.unwrap());
    let started = call.send().await.unwrap().instances.unwrap();
    let started = started.into_iter().next().unwrap();
    let instance = Instance {
        id: started.instance_id.unwrap(),
        instance_type: "m5.large".to_owned(),
        zone: zone.clone(),
        private_ip: started.private_ip_address.unwrap(),
        private_dns_name: started.private_dns_name.unwrap(),
    };
    let plugins: Api<DaemonSet> = Api::namespaced(stage.client(), "kube-system");
    let environment = json!([{"name": "ENABLE_IPv6", "value": "true"}]);
    let container = json!([{"name": "aws-node", "env": environment}]);
    let template = json!({"spec": {"containers": container}});
    let patch = Patch::Strategic(json!({"spec": {"template": template}}));
    let parameters = PatchParams::default();
    plugins
        .patch("aws-node", &parameters, &patch)
        .await
        .unwrap();

    let name = instance.private_dns_name.clone();
    let node = stage
        .sandbox()
        .register_node(&name, instance)
        .await
        .unwrap();
    stage.until_settled(&node).await;
    let scene = stage.scene().await;
    scene.policy("green", &[&stage.groups().green]).await;
    let running = scene.run("green", &node).await;

    let [address] = running.interface.ipv6_addresses[..] else {
        panic!("one IPv6 address: {:?}", running.interface);
    };
    assert_eq!(running.annotation.ipv6_address, address.to_string());
    assert_eq!(running.annotation.subnet_v6_cidr, block);
    let addresses = running.pod.status.unwrap().pod_ips.unwrap();
    let addresses: Vec<_> = addresses.into_iter().map(|one| one.ip).collect();
    let expected = [running.annotation.private_ip, address.to_string()];
    assert_eq!(addresses, expected);
}
