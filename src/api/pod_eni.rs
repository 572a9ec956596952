//! The pod annotation [`POD_ENI`](super::names::POD_ENI): a pod's branch interfaces, as the
//! VPC CNI plugin reads them.

use serde::{Deserialize, Serialize};

/// One branch interface of a pod. The annotation is a JSON list of these.
///
/// Names and order are those that the VPC CNI plugin reads and EKS's own controller writes;
/// texts that do not apply are empty.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct PodEni {
    /// The id of the branch interface.
    #[serde(rename = "eniId")]
    pub interface_id: String,
    /// Its MAC address.
    #[serde(rename = "ifAddress", default)]
    pub mac_address: String,
    /// Its IPv4 address.
    #[serde(rename = "privateIp", default)]
    pub private_ip: String,
    /// Its IPv6 address.
    #[serde(rename = "ipv6Addr", default)]
    pub ipv6_address: String,
    /// Its VLAN id on the trunk.
    #[serde(rename = "vlanId", default)]
    pub vlan_id: u16,
    /// The IPv4 block of its subnet.
    #[serde(rename = "subnetCidr", default)]
    pub subnet_cidr: String,
    /// The IPv6 block of its subnet.
    #[serde(rename = "subnetV6Cidr", default)]
    pub subnet_v6_cidr: String,
    /// The id of its association with the trunk.
    #[serde(rename = "associationID", default)]
    pub association_id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotation_has_the_names_and_the_order_that_the_plugin_reads() {
        let interface = PodEni {
            interface_id: "eni-1".into(),
            mac_address: "02:00:00:00:00:01".into(),
            private_ip: "10.0.1.2".into(),
            vlan_id: 3,
            subnet_cidr: "10.0.1.0/24".into(),
            association_id: "trunk-assoc-1".into(),
            ..PodEni::default()
        };
        let json = r#"[{"eniId":"eni-1","ifAddress":"02:00:00:00:00:01","privateIp":"10.0.1.2","ipv6Addr":"","vlanId":3,"subnetCidr":"10.0.1.0/24","subnetV6Cidr":"","associationID":"trunk-assoc-1"}]"#;
        assert_eq!(serde_json::to_string(&[&interface]).unwrap(), json);
        let read: Vec<PodEni> = serde_json::from_str(json).unwrap();
        assert_eq!(read, [interface]);
    }
}
