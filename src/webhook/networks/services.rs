//! Services that do not reach pods with security groups, or that the VPC CNI plugin's network
//! policies can't follow.
//!
//! Sources: the EKS user guide, "Assign security groups to individual Pods" and "Limit Pod
//! traffic with Kubernetes network policies", both under "Considerations".

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::quoted_names;
use crate::api::names::{LOAD_BALANCER_TARGET_TYPE, LOAD_BALANCER_TYPE};
use crate::policy::{NamespacePolicies, Overlap, Selector};

/// The labels of the pods that a Service picks; `None` if it picks none, or gives them no
/// address of its own.
fn picked(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    let is_external_name = spec.type_.as_deref() == Some("ExternalName");
    let is_headless = spec.cluster_ip.as_deref() == Some("None");
    let selector = spec.selector.as_ref()?;
    (!is_external_name && !is_headless && !selector.is_empty()).then_some(selector)
}

/// A Service whose traffic stays on the node where it comes in, so that it must be handed on
/// by the node's own network.
#[derive(Debug)]
pub struct NodeLocal<'a> {
    service: &'a Service,
    picked: &'a BTreeMap<String, String>,
    is_load_balancer: bool,
}

/// The Service as one that is node-local and has nodes as targets.
pub fn node_local(service: &Service) -> Option<NodeLocal<'_>> {
    let picked = picked(service)?;
    let spec = service.spec.as_ref()?;
    if spec.external_traffic_policy.as_deref() != Some("Local") {
        return None;
    }
    let is_load_balancer = match spec.type_.as_deref()? {
        "LoadBalancer" if has_address_targets(service) => return None,
        "LoadBalancer" => true,
        "NodePort" => false,
        _ => return None,
    };
    Some(NodeLocal {
        service,
        picked,
        is_load_balancer,
    })
}

/// Whether the load balancer sends to the pods' addresses rather than to nodes.
fn has_address_targets(service: &Service) -> bool {
    let annotation = |key: &str| {
        let annotations = service.metadata.annotations.as_ref();
        annotations.and_then(|all| all.get(key)).map(String::as_str)
    };
    annotation(LOAD_BALANCER_TARGET_TYPE) == Some("ip")
        || annotation(LOAD_BALANCER_TYPE) == Some("nlb-ip")
}

impl NodeLocal<'_> {
    /// What is said if the Service's pods have, or may have, security groups.
    pub fn warning(&self, policies: &NamespacePolicies) -> Option<String> {
        let overlap = |overlap| {
            let policies = policies.valid();
            let such = policies.filter(move |policy| policy.overlap(self.picked) == overlap);
            such.map(|policy| policy.name.as_ref()).collect::<Vec<_>>()
        };
        let (certain, possible) = (overlap(Overlap::Certain), overlap(Overlap::Possible));
        let (names, verb) = match (certain.as_slice(), possible.as_slice()) {
            ([], []) => return None,
            ([], _) => (possible, "may select"),
            ([_], _) => (certain, "selects"),
            _ => (certain, "select"),
        };
        let (targets, way_out) = if self.is_load_balancer {
            ("instance targets", ", or have targets of type ip")
        } else {
            ("node ports", "")
        };
        Some(format!(
            "{}: externalTrafficPolicy Local with {targets} does not reach pods with security \
             groups (except in standard enforcing mode); {} {verb} its pods. Write Cluster{way_out}",
            subject(self.service),
            quoted_names("SecurityGroupPolicy", "SecurityGroupPolicies", &names),
        ))
    }
}

/// A Service some of whose ports are not those of its containers.
#[derive(Debug)]
pub struct Translating<'a> {
    service: &'a Service,
    picked: &'a BTreeMap<String, String>,
    ports: Vec<&'a ServicePort>,
}

/// The Service as one that translates ports.
pub fn translating(service: &Service) -> Option<Translating<'_>> {
    let picked = picked(service)?;
    let ports = service.spec.as_ref()?.ports.iter().flatten();
    let ports: Vec<_> = ports.filter(|port| translates(port)).collect();
    (!ports.is_empty()).then_some(Translating {
        service,
        picked,
        ports,
    })
}

fn translates(port: &ServicePort) -> bool {
    match &port.target_port {
        None => false,
        Some(IntOrString::Int(number)) => *number != port.port,
        Some(IntOrString::String(name)) => port.name.as_ref() != Some(name),
    }
}

impl Translating<'_> {
    /// What is said if a network policy bears on traffic to the Service's pods.
    pub fn warning(&self, policies: &[NetworkPolicy]) -> Option<String> {
        let bearing = policies.iter().filter(|policy| self.is_borne_on_by(policy));
        let names: Vec<_> = bearing
            .map(|policy| policy.metadata.name.as_deref().unwrap_or_default())
            .collect();
        if names.is_empty() {
            return None;
        }
        let ports: Vec<_> = self.ports.iter().map(|port| translation(port)).collect();
        Some(format!(
            "{}: the VPC CNI plugin's network policies (here {}) need a Service's port to be its \
             container port, by number or by name; spec.ports has {}. Write the same on both sides",
            subject(self.service),
            quoted_names("NetworkPolicy", "NetworkPolicies", &names),
            ports.join(", "),
        ))
    }

    /// Whether the policy limits what reaches the Service's pods, or lets others reach them.
    /// In doubt it does.
    fn is_borne_on_by(&self, policy: &NetworkPolicy) -> bool {
        let Some(spec) = &policy.spec else {
            return false;
        };
        let to = spec.egress.iter().flatten().flat_map(|rule| &rule.to);
        self.may_be_selected(spec.pod_selector.as_ref())
            || to.flatten().any(|peer| self.may_be_peer(peer))
    }

    fn may_be_peer(&self, peer: &NetworkPolicyPeer) -> bool {
        peer.ip_block.is_none() && self.may_be_selected(peer.pod_selector.as_ref())
    }

    /// Without a selector, all pods are.
    fn may_be_selected(&self, selector: Option<&LabelSelector>) -> bool {
        let selector = selector.map(Selector::try_from).and_then(Result::ok);
        selector.is_none_or(|selector| selector.overlap(self.picked) != Overlap::Never)
    }
}

/// For example `80 -> 8080`, or `"http" -> "web"`.
fn translation(port: &ServicePort) -> String {
    let (number, name) = (port.port, port.name.as_ref());
    match &port.target_port {
        Some(IntOrString::String(target)) => match name {
            Some(name) => format!("{name:?} -> {target:?}"),
            None => format!("{number} -> {target:?}"),
        },
        Some(IntOrString::Int(target)) => format!("{number} -> {target}"),
        None => number.to_string(),
    }
}

fn subject(service: &Service) -> String {
    let name = service.metadata.name.as_deref().unwrap_or_default();
    format!("Service {name:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Policy, PolicyIndex};
    use crate::webhook::warnings::WARNING_CHARACTERS;
    use serde_json::{Value, json};

    fn service(spec: Value) -> Service {
        annotated(json!({}), spec)
    }

    fn annotated(annotations: Value, spec: Value) -> Service {
        let mut object = json!({
            "metadata": {"name": "web", "annotations": annotations},
            "spec": {"selector": {"app": "web"}, "type": "NodePort", "clusterIP": "10.0.0.1"}
        });
        for (key, value) in spec.as_object().unwrap() {
            object["spec"][key] = value.clone();
        }
        serde_json::from_value(object).unwrap()
    }

    /// The policies of a namespace, by name and pod selector.
    fn policies(policies: &[(&str, Value)]) -> std::sync::Arc<NamespacePolicies> {
        let mut index = PolicyIndex::default();
        for (name, selector) in policies {
            let spec = json!({
                "podSelector": selector, "securityGroups": {"groupIds": ["sg-0123abcd"]}
            });
            index.apply("shop", Policy::parse(name, &spec));
        }
        index.namespace("shop").unwrap_or_default()
    }

    #[test]
    fn only_services_that_hand_traffic_to_nodes_of_their_own_pods_are_node_local() {
        let target_type = "service.beta.kubernetes.io/aws-load-balancer-nlb-target-type";
        let kind = "service.beta.kubernetes.io/aws-load-balancer-type";
        let local = |kind: &str| json!({"type": kind, "externalTrafficPolicy": "Local"});
        let with = |key: &str, value: Value| {
            let mut spec = local("NodePort");
            spec[key] = value;
            service(spec)
        };
        for (service, is_node_local) in [
            (service(local("NodePort")), true),
            (service(local("LoadBalancer")), true),
            (service(json!({"type": "LoadBalancer"})), false),
            (service(json!({"externalTrafficPolicy": "Cluster"})), false),
            (with("type", json!("ClusterIP")), false),
            (with("type", json!("ExternalName")), false),
            (with("selector", json!({})), false),
            (with("selector", Value::Null), false),
            (with("clusterIP", json!("None")), false),
            (
                annotated(json!({target_type: "ip"}), local("LoadBalancer")),
                false,
            ),
            (
                annotated(json!({target_type: "instance"}), local("LoadBalancer")),
                true,
            ),
            (
                annotated(json!({kind: "nlb-ip"}), local("LoadBalancer")),
                false,
            ),
            (
                annotated(json!({kind: "external"}), local("LoadBalancer")),
                true,
            ),
            // What a load balancer would do means nothing where there is none.
            (
                annotated(json!({target_type: "ip"}), local("NodePort")),
                true,
            ),
        ] {
            assert_eq!(node_local(&service).is_some(), is_node_local, "{service:?}");
        }
    }

    #[test]
    fn node_local_service_is_warned_of_where_its_pods_have_or_may_have_groups() {
        let node_port = service(json!({"externalTrafficPolicy": "Local"}));
        let balancer = service(json!({"externalTrafficPolicy": "Local", "type": "LoadBalancer"}));
        let web = || json!({"matchLabels": {"app": "web"}});
        let tier = || json!({"matchLabels": {"tier": "1"}});
        let other = || json!({"matchLabels": {"app": "db"}});
        for (service, policies, text) in [
            (&node_port, policies(&[]), None),
            (&node_port, policies(&[("db", other())]), None),
            (
                &node_port,
                policies(&[("clients", web()), ("db", other()), ("tier", tier())]),
                Some(
                    "Service \"web\": externalTrafficPolicy Local with node ports does not reach \
                     pods with security groups (except in standard enforcing mode); \
                     SecurityGroupPolicy \"clients\" selects its pods. Write Cluster",
                ),
            ),
            (
                &node_port,
                policies(&[("all", json!({})), ("clients", web())]),
                Some(
                    "Service \"web\": externalTrafficPolicy Local with node ports does not reach \
                     pods with security groups (except in standard enforcing mode); \
                     SecurityGroupPolicies \"all\", \"clients\" select its pods. Write Cluster",
                ),
            ),
            (
                &balancer,
                policies(&[("db", other()), ("tier", tier())]),
                Some(
                    "Service \"web\": externalTrafficPolicy Local with instance targets does not \
                     reach pods with security groups (except in standard enforcing mode); \
                     SecurityGroupPolicy \"tier\" may select its pods. Write Cluster, or have \
                     targets of type ip",
                ),
            ),
        ] {
            let warning = node_local(service).unwrap().warning(&policies);
            assert_eq!(warning.as_deref(), text);
            assert!(warning.is_none_or(|text| text.chars().count() <= WARNING_CHARACTERS));
        }
    }

    #[test]
    fn service_translates_unless_each_port_is_its_target_by_number_or_by_name() {
        for (ports, translations) in [
            (json!([{"port": 80, "targetPort": 80}]), vec![]),
            (json!([{"port": 80}]), vec![]),
            (
                json!([{"name": "http", "port": 80, "targetPort": "http"}]),
                vec![],
            ),
            (
                json!([{"port": 80, "targetPort": 8080}, {"port": 443, "targetPort": 443}]),
                vec!["80 -> 8080"],
            ),
            (
                json!([
                    {"name": "http", "port": 80, "targetPort": "web"},
                    {"name": "https", "port": 443, "targetPort": 8443}
                ]),
                vec!["\"http\" -> \"web\"", "443 -> 8443"],
            ),
            (
                json!([{"port": 80, "targetPort": "web"}]),
                vec!["80 -> \"web\""],
            ),
        ] {
            let service = service(json!({ "ports": ports }));
            let ports = translating(&service).map(|it| it.ports).unwrap_or_default();
            let found: Vec<_> = ports.into_iter().map(translation).collect();
            assert_eq!(found, translations, "{service:?}");
        }
        let headless = json!({"clusterIP": "None", "ports": [{"port": 80, "targetPort": 8080}]});
        assert!(translating(&service(headless)).is_none());
    }

    #[test]
    fn translating_service_is_warned_of_where_a_network_policy_bears_on_its_pods() {
        let service = service(json!({"ports": [{"port": 80, "targetPort": 8080}]}));
        let web = json!({"matchLabels": {"app": "web"}});
        let other = json!({"matchLabels": {"app": "db"}});
        let to = |peer: Value| json!({"podSelector": other, "egress": [{"to": [peer]}]});
        for (spec, is_warned_of) in [
            (json!({"podSelector": {}}), true),
            (json!({"podSelector": web}), true),
            (json!({"podSelector": {"matchLabels": {"tier": "1"}}}), true),
            (json!({"podSelector": other}), false),
            (to(json!({"podSelector": web})), true),
            (to(json!({"podSelector": other})), false),
            (to(json!({"namespaceSelector": {}})), true),
            (to(json!({"ipBlock": {"cidr": "10.0.0.0/8"}})), false),
            (
                json!({"podSelector": other, "ingress": [{"from": [{"podSelector": web}]}]}),
                false,
            ),
        ] {
            let policy = json!({"metadata": {"name": "allow"}, "spec": spec});
            let policy: NetworkPolicy = serde_json::from_value(policy).unwrap();
            let warning = translating(&service)
                .unwrap()
                .warning(std::slice::from_ref(&policy));
            let text = "Service \"web\": the VPC CNI plugin's network policies (here NetworkPolicy \
                        \"allow\") need a Service's port to be its container port, by number or \
                        by name; spec.ports has 80 -> 8080. Write the same on both sides";
            assert_eq!(
                warning.as_deref(),
                is_warned_of.then_some(text),
                "{policy:?}"
            );
            assert!(text.chars().count() <= WARNING_CHARACTERS);
        }
        assert!(translating(&service).unwrap().warning(&[]).is_none());
    }
}
