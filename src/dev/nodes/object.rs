//! The Node object of an instance, as its kubelet and the CNI plugin's request make it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeSpec, NodeStatus, NodeSystemInfo};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::ObjectMeta;

use super::machine::machine;
use crate::api::names::HAS_TRUNK_ATTACHED;
use crate::dev::cloud::{Instance, REGION};
use crate::ec2::instance_limits::InstanceLimits;

/// The Node of this name for an instance. The CNI plugin asks for a trunk on every type when
/// `ENABLE_POD_ENI` is set, and leaves it to others to find that a type has none.
pub(super) fn node(
    name: &str,
    instance: &Instance,
    limits: &InstanceLimits,
    kubelet_version: &str,
) -> Node {
    let machine = machine(&instance.instance_type);
    let architecture = if machine.arm { "arm64" } else { "amd64" };
    let labels = [
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture),
        ("node.kubernetes.io/instance-type", &instance.instance_type),
        ("topology.kubernetes.io/region", REGION),
        ("topology.kubernetes.io/zone", &instance.zone),
        (HAS_TRUNK_ATTACHED, "false"),
    ];
    let capacity = [
        ("cpu", machine.cpus.to_string()),
        ("memory", format!("{}Gi", machine.memory_gib)),
        ("pods", max_pods(limits).to_string()),
    ];
    let capacity: BTreeMap<_, _> = capacity
        .into_iter()
        .map(|(name, amount)| (name.to_owned(), Quantity(amount)))
        .collect();
    let addresses = [
        ("InternalIP", instance.private_ip.as_str()),
        ("InternalDNS", instance.private_dns_name.as_str()),
        ("Hostname", name),
    ];
    let address = |(type_, address): (&str, &str)| NodeAddress {
        type_: type_.to_owned(),
        address: address.to_owned(),
    };
    Node {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(labels.map(|(key, value)| (key.into(), value.into())).into()),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            provider_id: Some(format!("aws:///{}/{}", instance.zone, instance.id)),
            ..NodeSpec::default()
        }),
        status: Some(NodeStatus {
            addresses: Some(addresses.map(address).into()),
            allocatable: Some(capacity.clone()),
            capacity: Some(capacity),
            node_info: Some(NodeSystemInfo {
                architecture: architecture.to_owned(),
                operating_system: "linux".to_owned(),
                os_image: "simulated".to_owned(),
                container_runtime_version: "kwok://".to_owned(),
                kubelet_version: kubelet_version.to_owned(),
                ..NodeSystemInfo::default()
            }),
            ..NodeStatus::default()
        }),
    }
}

/// Pods that the addresses of all interfaces suffice for: an interface's first address is its
/// own, and two pods are on the node's network. The formula is the CNI plugin's.
fn max_pods(limits: &InstanceLimits) -> u32 {
    limits.max_interfaces * limits.ipv4_per_interface.saturating_sub(1) + 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ec2::instance_limits::LimitsTable;

    #[test]
    fn a_node_says_what_its_instance_is() {
        let instance = Instance {
            id: "i-0123456789abcdef0".into(),
            instance_type: "m5.large".into(),
            zone: "us-west-2b".into(),
            private_ip: "10.0.32.4".into(),
            private_dns_name: "ip-10-0-32-4.us-west-2.compute.internal".into(),
        };
        let limits = LimitsTable::built_in().get("m5.large").unwrap();

        let node = node(&instance.private_dns_name, &instance, limits, "v1.36.3");

        let spec = node.spec.unwrap();
        let provider_id = "aws:///us-west-2b/i-0123456789abcdef0";
        assert_eq!(spec.provider_id.unwrap(), provider_id);
        let labels = node.metadata.labels.unwrap();
        assert_eq!(labels["topology.kubernetes.io/zone"], "us-west-2b");
        assert_eq!(labels["vpc.amazonaws.com/has-trunk-attached"], "false");
        let capacity = node.status.unwrap().capacity.unwrap();
        let amounts = ["cpu", "memory", "pods"].map(|name| capacity[name].0.as_str());
        // 29 is what EKS's list of maximum pods says of an m5.large.
        assert_eq!(amounts, ["2", "8Gi", "29"]);
    }
}
