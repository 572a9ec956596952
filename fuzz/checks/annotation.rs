//! The annotation with a pod's interfaces: what can be read is written so that it reads the
//! same, with all names that the CNI plugin looks for.

use serde_json::Value;
use sgp::api::pod_eni::PodEni;

const NAMES: [&str; 8] = [
    "eniId",
    "ifAddress",
    "privateIp",
    "ipv6Addr",
    "vlanId",
    "subnetCidr",
    "subnetV6Cidr",
    "associationID",
];

/// Panics if the property does not hold for this input.
pub fn check(annotation: &[u8]) {
    let Ok(interfaces) = serde_json::from_slice::<Vec<PodEni>>(annotation) else {
        return;
    };
    let written = serde_json::to_string(&interfaces).expect("it is made of texts and numbers");
    let read: Vec<PodEni> = serde_json::from_str(&written).expect("what we write can be read");
    assert_eq!(read, interfaces, "{written}");

    let written: Vec<Value> = serde_json::from_str(&written).expect("it is a list");
    for interface in &written {
        let interface = interface.as_object().expect("of objects");
        assert_eq!(interface.len(), NAMES.len(), "{interface:?}");
        for name in NAMES {
            let value = &interface[name];
            let is_right = if name == "vlanId" {
                value.is_u64()
            } else {
                value.is_string()
            };
            assert!(is_right, "{name} is {value}");
        }
    }
}
