//! Network policies that the VPC CNI plugin can't enforce as they are written, or that cut
//! pods off from their credentials.
//!
//! Source: the EKS user guide, "Limit Pod traffic with Kubernetes network policies", under
//! "Considerations". Nothing here is refused: another plugin may enforce the policies, and what
//! cuts pods off may be meant to.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The most combinations of a port and a protocol that the plugin's agent keeps for a range of
/// addresses.
const MOST_COMBINATIONS: usize = 24;

/// The most comparisons and ports that are worth a warning: milliseconds. A policy can be long
/// enough to take minutes.
const MOST_STEPS: usize = 250_000;

const INGRESS: &str = "Ingress";
const EGRESS: &str = "Egress";

/// The instance metadata service (Amazon EC2 User Guide), where pods get the credentials of
/// their node's instance role; its IPv6 address counts in clusters of that family.
const INSTANCE_METADATA: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// The agent of EKS Pod Identity (Amazon EKS User Guide, "Set up the Amazon EKS Pod Identity
/// Agent"), on each node.
const POD_IDENTITY: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
];

/// The port of both.
const CREDENTIALS_PORT: i32 = 80;

/// What whoever writes this policy should know.
pub fn warnings(policy: &NetworkPolicy) -> Vec<String> {
    let Some(spec) = &policy.spec else {
        return Vec::new();
    };
    let name = policy.metadata.name.as_deref().unwrap_or_default();
    let directions = [ingress(spec), egress(spec)];
    let crowded = directions.iter().filter_map(|rules| rules.most_crowded());
    let crowded = crowded.map(|crowded| too_many_ports(name, &crowded));
    let cut_off = CutOff::by(spec).map(|cut_off| cut_off.warning(name));
    crowded.chain(cut_off).collect()
}

/// The rules of one direction.
#[derive(Debug)]
struct Rules<'a> {
    field: &'static str,
    peers_field: &'static str,
    rules: Vec<Rule<'a>>,
}

/// A rule: these peers on these ports.
#[derive(Clone, Copy, Debug)]
struct Rule<'a> {
    /// None of them means all.
    peers: &'a [NetworkPolicyPeer],
    /// None of them means all.
    ports: &'a [NetworkPolicyPort],
}

fn ingress(spec: &NetworkPolicySpec) -> Rules<'_> {
    let rules = spec.ingress.iter().flatten().map(|rule| Rule {
        peers: rule.from.as_deref().unwrap_or_default(),
        ports: rule.ports.as_deref().unwrap_or_default(),
    });
    Rules {
        field: "ingress",
        peers_field: "from",
        rules: if has_type(spec, INGRESS) {
            rules.collect()
        } else {
            Vec::new()
        },
    }
}

fn egress(spec: &NetworkPolicySpec) -> Rules<'_> {
    let rules = spec.egress.iter().flatten().map(|rule| Rule {
        peers: rule.to.as_deref().unwrap_or_default(),
        ports: rule.ports.as_deref().unwrap_or_default(),
    });
    Rules {
        field: "egress",
        peers_field: "to",
        rules: if has_type(spec, EGRESS) {
            rules.collect()
        } else {
            Vec::new()
        },
    }
}

/// Whether the policy is about this direction; the API server defaults to ingress, and to
/// egress where there are rules for it.
fn has_type(spec: &NetworkPolicySpec, direction: &str) -> bool {
    match spec.policy_types.as_deref() {
        None | Some([]) => direction == INGRESS || spec.egress.iter().flatten().next().is_some(),
        Some(types) => types.iter().any(|one| one == direction),
    }
}

/// What a rule is for: one peer, or everybody.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Target<'a> {
    Anywhere,
    Peer(&'a NetworkPolicyPeer),
}

impl Target<'_> {
    /// Whether a rule for this target is also one for the other: the agent looks only at the
    /// narrowest range that an address is in, and so adds to it what wider ones allow.
    fn includes(self, other: Self) -> bool {
        let (Self::Peer(wide), Self::Peer(narrow)) = (self, other) else {
            return self == Self::Anywhere;
        };
        if wide == narrow {
            return true;
        }
        match (&wide.ip_block, &narrow.ip_block) {
            (Some(wide), Some(narrow)) => {
                let narrow = narrow.cidr.parse::<IpNet>();
                narrow.is_ok_and(|narrow| allows(wide, |range| range.contains(&narrow)))
            }
            _ => false,
        }
    }
}

/// Whether what `contains` looks for is in the block and in none of its exceptions.
fn allows(block: &IPBlock, contains: impl Fn(&IpNet) -> bool) -> bool {
    let is_in = |cidr: &String| cidr.parse().is_ok_and(|range| contains(&range));
    is_in(&block.cidr) && !block.except.iter().flatten().any(is_in)
}

/// The target of a policy that has the most ports, if these are too many.
#[derive(Debug, PartialEq)]
struct Crowded {
    /// For example `spec.egress[0].to[1]`.
    path: String,
    combinations: usize,
}

impl<'a> Rules<'a> {
    fn most_crowded(&self) -> Option<Crowded> {
        let all = self.rules.iter().map(|rule| rule.ports.len().max(1));
        // By far most policies end here.
        if all.sum::<usize>() <= MOST_COMBINATIONS || self.steps() > MOST_STEPS {
            return None;
        }
        let counted = self.targets().map(|(path, target)| Crowded {
            path,
            combinations: self.combinations(target),
        });
        let crowded = counted.filter(|counted| counted.combinations > MOST_COMBINATIONS);
        // Of several, the first as the policy has them.
        crowded.reduce(|most, next| {
            if next.combinations > most.combinations {
                next
            } else {
                most
            }
        })
    }

    /// What it takes to count the combinations of all targets.
    fn steps(&self) -> usize {
        let sum = |of: fn(&Rule<'_>) -> usize| self.rules.iter().map(of).sum::<usize>();
        let targets = sum(|rule| rule.peers.len().max(1));
        targets.saturating_mul(targets + sum(|rule| rule.ports.len()))
    }

    /// All targets with their paths.
    fn targets(&self) -> impl Iterator<Item = (String, Target<'a>)> {
        self.rules
            .iter()
            .enumerate()
            .flat_map(move |(index, rule)| {
                let path = format!("spec.{}[{index}]", self.field);
                let anywhere = rule.peers.is_empty();
                let anywhere = anywhere.then(|| (path.clone(), Target::Anywhere));
                let peers = rule.peers.iter().enumerate().map(move |(index, peer)| {
                    let path = format!("{path}.{}[{index}]", self.peers_field);
                    (path, Target::Peer(peer))
                });
                anywhere.into_iter().chain(peers)
            })
    }

    /// How many combinations of port and protocol are allowed for a target.
    fn combinations(&self, target: Target<'a>) -> usize {
        let rules = self.rules.iter().filter(|rule| {
            let mut peers = rule.peers.iter().map(Target::Peer);
            rule.peers.is_empty() || peers.any(|peer| peer.includes(target))
        });
        let combinations: HashSet<_> = rules.flat_map(|rule| combinations(rule.ports)).collect();
        combinations.len()
    }
}

/// Protocol, first and last port; one without a protocol stands for everything.
type Combination<'a> = (Option<&'a str>, Option<PortName<'a>>, Option<i32>);

#[derive(Debug, Eq, Hash, PartialEq)]
enum PortName<'a> {
    Number(i32),
    Name(&'a str),
}

fn combinations(ports: &[NetworkPolicyPort]) -> Vec<Combination<'_>> {
    if ports.is_empty() {
        return vec![(None, None, None)];
    }
    let ports = ports.iter().map(|port| {
        let name = port.port.as_ref().map(|name| match name {
            IntOrString::Int(number) => PortName::Number(*number),
            IntOrString::String(name) => PortName::Name(name),
        });
        (Some(protocol(port)), name, port.end_port)
    });
    ports.collect()
}

fn protocol(port: &NetworkPolicyPort) -> &str {
    port.protocol.as_deref().unwrap_or("TCP")
}

fn too_many_ports(name: &str, crowded: &Crowded) -> String {
    let Crowded { path, combinations } = crowded;
    format!(
        "NetworkPolicy {name:?}: {path} gets {combinations} combinations of port and protocol; \
         the VPC CNI plugin keeps {MOST_COMBINATIONS} for an address, and the others stay \
         closed. Join ports into ranges (endPort), or leave some out"
    )
}

/// Which credentials a policy keeps its pods from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum CutOff {
    InstanceRole,
    PodIdentity,
    Both,
}

impl CutOff {
    fn by(spec: &NetworkPolicySpec) -> Option<Self> {
        if !has_type(spec, EGRESS) {
            return None;
        }
        let rules = egress(spec).rules;
        let reaches = |addresses: &[IpAddr]| {
            let mut rules = rules.iter().filter(|rule| rule.allows_credentials_port());
            rules.any(|rule| addresses.iter().any(|address| rule.reaches(address)))
        };
        match (reaches(&INSTANCE_METADATA), reaches(&POD_IDENTITY)) {
            (true, true) => None,
            (true, false) => Some(Self::PodIdentity),
            (false, true) => Some(Self::InstanceRole),
            (false, false) => Some(Self::Both),
        }
    }

    fn warning(self, name: &str) -> String {
        let (addresses, whose) = match self {
            Self::InstanceRole => ("169.254.169.254", "the node's instance role"),
            Self::PodIdentity => ("169.254.170.23", "EKS Pod Identity"),
            Self::Both => (
                "169.254.169.254 and 169.254.170.23",
                "the node's instance role or EKS Pod Identity",
            ),
        };
        format!(
            "NetworkPolicy {name:?} keeps its pods from {addresses} (TCP 80): those that use \
             {whose} get no credentials unless another policy allows it. Allow it with an ipBlock \
             in spec.egress"
        )
    }
}

impl Rule<'_> {
    /// Whether it is for an address. Pods are never at those that matter here, so that only
    /// blocks are looked at.
    fn reaches(&self, address: &IpAddr) -> bool {
        let mut blocks = self.peers.iter().filter_map(|peer| peer.ip_block.as_ref());
        self.peers.is_empty() || blocks.any(|block| allows(block, |range| range.contains(address)))
    }

    fn allows_credentials_port(&self) -> bool {
        let mut tcp = self.ports.iter().filter(|port| protocol(port) == "TCP");
        self.ports.is_empty()
            || tcp.any(|port| match &port.port {
                None => true,
                Some(IntOrString::Int(first)) => {
                    let last = port.end_port.unwrap_or(*first);
                    (*first..=last).contains(&CREDENTIALS_PORT)
                }
                // Names are those of containers' ports.
                Some(IntOrString::String(_)) => false,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::warnings::WARNING_CHARACTERS;
    use serde_json::{Value, json};

    fn policy(spec: Value) -> NetworkPolicy {
        let policy = json!({"metadata": {"name": "limits"}, "spec": spec});
        serde_json::from_value(policy).unwrap()
    }

    fn ports(protocol: &str, numbers: std::ops::Range<i32>) -> Vec<Value> {
        numbers
            .map(|port| json!({"port": port, "protocol": protocol}))
            .collect()
    }

    fn block(cidr: &str) -> Value {
        json!({"ipBlock": {"cidr": cidr}})
    }

    /// Each peer is compared with each other one.
    #[test]
    fn policy_that_would_take_minutes_is_not_looked_at() {
        let blocks = |count: u32| -> Vec<Value> {
            let addresses = (0..count).map(std::net::Ipv4Addr::from_bits);
            addresses
                .map(|address| block(&format!("{address}/32")))
                .collect()
        };
        let crowded = |count| {
            let rule = json!({"from": blocks(count), "ports": ports("TCP", 0..25)});
            warnings(&policy(json!({"ingress": [rule]})))
        };
        assert_eq!(crowded(100).len(), 1);
        assert_eq!(crowded(20_000), [""; 0]);
    }

    #[test]
    fn ports_are_counted_for_each_selector_whatever_rules_they_are_in() {
        let web = || json!({"podSelector": {"matchLabels": {"app": "web"}}});
        let db = || json!({"podSelector": {"matchLabels": {"app": "db"}}});
        let tcp = |numbers| ports("TCP", numbers);
        let both = [tcp(1..14), ports("UDP", 1..13)].concat();
        let twice = [tcp(1..25), tcp(1..25)].concat();
        let default = [tcp(1..25), vec![json!({"port": 1})]].concat();
        let crowded = |path: &str, combinations| {
            Some(Crowded {
                path: path.to_owned(),
                combinations,
            })
        };
        for (case, ingress, found) in [
            (
                "as many as fit",
                json!([{"from": [web()], "ports": tcp(1..25)}]),
                None,
            ),
            (
                "one too many",
                json!([{"from": [db(), web()], "ports": tcp(1..26)}]),
                crowded("spec.ingress[0].from[0]", 25),
            ),
            (
                "two protocols",
                json!([{"from": [web()], "ports": both}]),
                crowded("spec.ingress[0].from[0]", 25),
            ),
            (
                "the same port again",
                json!([{"from": [web()], "ports": twice}]),
                None,
            ),
            (
                "protocol left to the default",
                json!([{"from": [web()], "ports": default}]),
                None,
            ),
            (
                "rules for different selectors",
                json!([
                    {"from": [web()], "ports": tcp(1..20)},
                    {"from": [db()], "ports": tcp(20..40)}
                ]),
                None,
            ),
            (
                "rules for the same selector",
                json!([
                    {"from": [web()], "ports": tcp(1..20)},
                    {"from": [db(), web()], "ports": tcp(20..30)}
                ]),
                crowded("spec.ingress[0].from[0]", 29),
            ),
            (
                "a rule for everybody counts for each",
                json!([
                    {"from": [web()], "ports": tcp(1..20)},
                    {"ports": tcp(20..30)}
                ]),
                crowded("spec.ingress[0].from[0]", 29),
            ),
            (
                "too many for everybody",
                json!([{"ports": tcp(1..31)}]),
                crowded("spec.ingress[0]", 30),
            ),
            (
                "a range within another",
                json!([
                    {"from": [block("10.1.0.0/16")], "ports": tcp(1..20)},
                    {"from": [block("10.0.0.0/8")], "ports": tcp(20..30)}
                ]),
                crowded("spec.ingress[0].from[0]", 29),
            ),
            (
                "a range that another excepts",
                json!([
                    {"from": [block("10.1.0.0/16")], "ports": tcp(1..20)},
                    {
                        "from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}],
                        "ports": tcp(20..30)
                    }
                ]),
                None,
            ),
            (
                "all ports count as one",
                json!([{"from": [web()], "ports": tcp(1..25)}, {"from": [web()]}]),
                crowded("spec.ingress[0].from[0]", 25),
            ),
            (
                "a range of ports counts as one",
                json!([{"from": [web()], "ports": [{"port": 1, "endPort": 30000}]}]),
                None,
            ),
        ] {
            let policy = policy(json!({"podSelector": {}, "ingress": ingress}));
            let rules = super::ingress(policy.spec.as_ref().unwrap());
            assert_eq!(rules.most_crowded(), found, "{case}");
        }
    }

    #[test]
    fn too_many_ports_are_warned_of_for_each_direction_that_is_in_effect() {
        let many = ports("TCP", 1..27);
        let mut spec = json!({
            "podSelector": {}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"ports": many}],
            "egress": [{}, {"to": [block("10.0.0.0/8")], "ports": many}]
        });
        let found = warnings(&policy(spec.clone()));
        assert_eq!(
            found,
            [
                "NetworkPolicy \"limits\": spec.ingress[0] gets 26 combinations of port and \
                 protocol; the VPC CNI plugin keeps 24 for an address, and the others stay \
                 closed. Join ports into ranges (endPort), or leave some out",
                "NetworkPolicy \"limits\": spec.egress[1].to[0] gets 27 combinations of port and \
                 protocol; the VPC CNI plugin keeps 24 for an address, and the others stay \
                 closed. Join ports into ranges (endPort), or leave some out",
            ]
        );
        assert!(
            found
                .iter()
                .all(|text| text.chars().count() <= WARNING_CHARACTERS)
        );

        spec["policyTypes"] = json!(["Ingress"]);
        assert_eq!(warnings(&policy(spec)).len(), 1);
    }

    #[test]
    fn policy_cuts_pods_off_from_credentials_unless_a_rule_of_its_egress_allows_them() {
        let metadata = || block("169.254.169.254/32");
        let identity = || block("169.254.170.23/32");
        let tcp = |port: Value| json!([{"port": port, "protocol": "TCP"}]);
        let all_but = |except: &str| json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": [except]}});
        for (egress, cut_off) in [
            (json!([]), Some(CutOff::Both)),
            (json!([{}]), None),
            (json!([{"to": []}]), None),
            (json!([{"to": [block("0.0.0.0/0")]}]), None),
            (json!([{"to": [block("169.254.0.0/16")]}]), None),
            (json!([{"to": [block("10.0.0.0/8")]}]), Some(CutOff::Both)),
            (json!([{"to": [{"podSelector": {}}]}]), Some(CutOff::Both)),
            (json!([{"to": [metadata()]}]), Some(CutOff::PodIdentity)),
            (json!([{"to": [identity()]}]), Some(CutOff::InstanceRole)),
            (json!([{"to": [metadata()]}, {"to": [identity()]}]), None),
            (
                json!([{"to": [metadata(), block("fd00:ec2::23/128")]}]),
                None,
            ),
            (
                json!([{"to": [all_but("169.254.169.254/32")]}]),
                Some(CutOff::InstanceRole),
            ),
            (
                json!([{"to": [all_but("169.254.0.0/16")]}]),
                Some(CutOff::Both),
            ),
            (
                json!([{"to": [metadata(), identity()], "ports": tcp(json!(80))}]),
                None,
            ),
            (
                json!([{"to": [metadata(), identity()], "ports": tcp(json!(443))}]),
                Some(CutOff::Both),
            ),
            (
                json!([{"to": [metadata(), identity()], "ports": tcp(json!("http"))}]),
                Some(CutOff::Both),
            ),
            (
                json!([{
                    "to": [metadata(), identity()],
                    "ports": [{"port": 80, "protocol": "UDP"}]
                }]),
                Some(CutOff::Both),
            ),
            (
                json!([{
                    "to": [metadata(), identity()],
                    "ports": [{"port": 53, "protocol": "UDP"}, {"protocol": "TCP"}]
                }]),
                None,
            ),
            (json!([{"ports": [{"port": 1, "endPort": 1023}]}]), None),
            (
                json!([{"ports": [{"port": 81, "endPort": 1023}]}]),
                Some(CutOff::Both),
            ),
        ] {
            let spec = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": egress});
            let policy = policy(spec);
            assert_eq!(
                CutOff::by(policy.spec.as_ref().unwrap()),
                cut_off,
                "{policy:?}"
            );
        }
    }

    #[test]
    fn policy_without_egress_cuts_nobody_off() {
        for (spec, is_cut_off) in [
            (json!({"podSelector": {}}), false),
            (
                json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
                false,
            ),
            (
                json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
                true,
            ),
            (json!({"podSelector": {}, "egress": []}), false),
            (
                json!({"podSelector": {}, "egress": [{"ports": [{"port": 443}]}]}),
                true,
            ),
        ] {
            let policy = policy(spec);
            let found = CutOff::by(policy.spec.as_ref().unwrap());
            assert_eq!(found.is_some(), is_cut_off, "{policy:?}");
        }
    }

    #[test]
    fn warning_names_the_addresses_and_for_whom_they_matter() {
        for (cut_off, text) in [
            (
                CutOff::InstanceRole,
                "NetworkPolicy \"limits\" keeps its pods from 169.254.169.254 (TCP 80): those that \
                 use the node's instance role get no credentials unless another policy allows it. \
                 Allow it with an ipBlock in spec.egress",
            ),
            (
                CutOff::PodIdentity,
                "NetworkPolicy \"limits\" keeps its pods from 169.254.170.23 (TCP 80): those that \
                 use EKS Pod Identity get no credentials unless another policy allows it. Allow it \
                 with an ipBlock in spec.egress",
            ),
            (
                CutOff::Both,
                "NetworkPolicy \"limits\" keeps its pods from 169.254.169.254 and 169.254.170.23 \
                 (TCP 80): those that use the node's instance role or EKS Pod Identity get no \
                 credentials unless another policy allows it. Allow it with an ipBlock in \
                 spec.egress",
            ),
        ] {
            assert_eq!(cut_off.warning("limits"), text);
            assert!(text.chars().count() <= WARNING_CHARACTERS);
        }
    }
}
