//! What the API server and the simulated EC2 say at one moment.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use serde::Deserialize;

use super::audit::{AssociationFacts, Facts, InterfaceFacts, Kind, NodeFacts, PodFacts};
use crate::api::names::{
    BRANCH_DESCRIPTION, HAS_TRUNK_ATTACHED, POD_ENI, TAG_POD_UID, TRUNK_DESCRIPTION,
};
use crate::ec2::simulator::Simulator;

/// The part of the simulator's state that matters here. Read directly, so that looking does
/// not count among the calls.
#[derive(Deserialize)]
struct State {
    interfaces: BTreeMap<String, Interface>,
    associations: BTreeMap<String, Association>,
}

#[derive(Deserialize)]
struct Interface {
    id: String,
    description: String,
    mac_address: String,
    private_ips: Vec<String>,
    groups: BTreeSet<String>,
    attachment: Option<Attachment>,
    tags: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Attachment {
    instance_id: String,
}

#[derive(Deserialize)]
struct Association {
    id: String,
    branch_interface_id: String,
    trunk_interface_id: String,
    vlan_id: u16,
}

/// Gathers the facts. `wanted` says which groups a pod is to have, where that is known: no
/// groups if it is to have no interface.
pub(super) async fn facts(
    client: &Client,
    simulator: &Simulator,
    wanted: impl Fn(&Pod) -> Option<BTreeSet<String>>,
) -> anyhow::Result<Facts> {
    let all = ListParams::default();
    let nodes = Api::<Node>::all(client.clone()).list(&all).await?;
    let pods = Api::<Pod>::all(client.clone()).list(&all).await?;
    let state: State = serde_json::from_slice(&simulator.save()?)?;
    let pods = pods.iter().map(|pod| pod_facts(pod, wanted(pod)));
    let associations = state.associations.into_values();
    Ok(Facts {
        nodes: nodes.iter().filter_map(node_facts).collect(),
        pods: pods.collect(),
        interfaces: state
            .interfaces
            .into_values()
            .filter_map(interface_facts)
            .collect(),
        associations: associations
            .map(|it| AssociationFacts {
                id: it.id,
                branch: it.branch_interface_id,
                trunk: it.trunk_interface_id,
                vlan: it.vlan_id,
            })
            .collect(),
    })
}

fn node_facts(node: &Node) -> Option<NodeFacts> {
    let trunk = node.labels().get(HAS_TRUNK_ATTACHED)?;
    let provider_id = node.spec.as_ref()?.provider_id.as_ref()?;
    let (_, instance_id) = provider_id.rsplit_once('/')?;
    (trunk != "not-supported").then(|| NodeFacts {
        name: node.name_any(),
        instance_id: instance_id.to_owned(),
    })
}

fn pod_facts(pod: &Pod, wanted: Option<BTreeSet<String>>) -> PodFacts {
    let spec = pod.spec.as_ref();
    let containers = spec.map(|it| it.containers.as_slice()).unwrap_or_default();
    let requests = containers.iter().any(|container| {
        let resources = container.resources.as_ref();
        let limits = resources.and_then(|it| it.limits.as_ref());
        limits.is_some_and(|limits| limits.contains_key(POD_ENI))
    });
    let phase = pod.status.as_ref().and_then(|it| it.phase.as_deref());
    PodFacts {
        name: format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any()),
        uid: pod.uid().unwrap_or_default(),
        node: spec
            .and_then(|spec| spec.node_name.clone())
            .unwrap_or_default(),
        finished: matches!(phase, Some("Succeeded" | "Failed")),
        // Whoever escaped the webhook is found to lack its interface.
        asks: requests || wanted.as_ref().is_some_and(|groups| !groups.is_empty()),
        annotation: pod.annotations().get(POD_ENI).cloned(),
        groups: wanted,
    }
}

fn interface_facts(interface: Interface) -> Option<InterfaceFacts> {
    let kind = match interface.description.as_str() {
        TRUNK_DESCRIPTION => Kind::Trunk,
        BRANCH_DESCRIPTION => Kind::Branch,
        _ => return None,
    };
    Some(InterfaceFacts {
        id: interface.id,
        kind,
        mac_address: interface.mac_address,
        private_ip: interface.private_ips.into_iter().next().unwrap_or_default(),
        groups: interface.groups,
        attached_to: interface.attachment.map(|it| it.instance_id),
        made_for: interface.tags.get(TAG_POD_UID).cloned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::cloud::SimulatedCloud;

    #[tokio::test]
    async fn state_of_the_simulator_has_what_is_read_of_it() {
        let cloud = SimulatedCloud::start(None).await.unwrap();
        let instance = cloud.run_instance("m5.large", "us-west-2a").await.unwrap();
        let zone = cloud.network().zone("us-west-2a").unwrap();
        let client = cloud.client();
        let create = |description: &str| {
            let call = client.create_network_interface();
            call.subnet_id(&zone.subnet_id).description(description)
        };
        let trunk = create(TRUNK_DESCRIPTION).interface_type("trunk".into());
        let trunk = trunk.send().await.unwrap().network_interface.unwrap();
        let trunk = trunk.network_interface_id().unwrap().to_owned();
        let attach = client.attach_network_interface().device_index(1);
        let attach = attach.network_interface_id(&trunk);
        attach.instance_id(&instance.id).send().await.unwrap();
        let branch = create(BRANCH_DESCRIPTION).send().await.unwrap();
        let branch = branch.network_interface.unwrap();
        let branch_id = branch.network_interface_id().unwrap();
        let associate = client.associate_trunk_interface().vlan_id(5);
        let associate = associate.trunk_interface_id(&trunk);
        let associate = associate
            .branch_interface_id(branch_id)
            .send()
            .await
            .unwrap();

        let state = cloud.simulator().save().unwrap();
        let state: State = serde_json::from_slice(&state).unwrap();

        let associations: Vec<_> = state.associations.into_values().collect();
        let association = associate.interface_association.unwrap();
        assert_eq!(associations.len(), 1);
        assert_eq!(
            Some(associations[0].id.as_str()),
            association.association_id()
        );
        assert_eq!(associations[0].vlan_id, 5);
        assert_eq!(associations[0].trunk_interface_id, trunk);
        let interfaces = state.interfaces.into_values();
        let ours: Vec<_> = interfaces.filter_map(interface_facts).collect();
        assert_eq!(
            ours.len(),
            2,
            "the instance's own interface is none of ours"
        );
        let found = ours.iter().find(|it| it.kind == Kind::Trunk).unwrap();
        assert_eq!(found.attached_to.as_ref(), Some(&instance.id));
        let found = ours.iter().find(|it| it.kind == Kind::Branch).unwrap();
        assert_eq!(Some(found.private_ip.as_str()), branch.private_ip_address());
        assert_eq!(Some(found.mac_address.as_str()), branch.mac_address());
        let groups: BTreeSet<_> = branch
            .groups()
            .iter()
            .filter_map(|it| it.group_id())
            .collect();
        assert_eq!(
            found
                .groups
                .iter()
                .map(String::as_str)
                .collect::<BTreeSet<_>>(),
            groups
        );
    }
}
