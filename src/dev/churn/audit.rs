//! What must hold between the pods of a cluster and the interfaces in EC2 once all is at rest.
//!
//! Pure, and not written with the allocator's own types: what it misunderstands must not be
//! misunderstood here too.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::api::PodEni;

/// What there is, in the API server and in EC2.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) nodes: Vec<NodeFacts>,
    pub(super) pods: Vec<PodFacts>,
    pub(super) interfaces: Vec<InterfaceFacts>,
    pub(super) associations: Vec<AssociationFacts>,
}

/// A node that takes part.
#[derive(Clone, Debug)]
pub(super) struct NodeFacts {
    pub(super) name: String,
    pub(super) instance_id: String,
}

/// A pod.
#[derive(Clone, Debug)]
pub(super) struct PodFacts {
    /// With its namespace.
    pub(super) name: String,
    pub(super) uid: String,
    /// Empty before it is bound.
    pub(super) node: String,
    /// Whether it has come to its end.
    pub(super) finished: bool,
    /// Whether it is to have an interface.
    pub(super) asks: bool,
    pub(super) annotation: Option<String>,
    /// The groups that it is to have, where that is known.
    pub(super) groups: Option<BTreeSet<String>>,
}

/// What an interface of ours was made as.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Trunk,
    Branch,
}

/// An interface of ours.
#[derive(Clone, Debug)]
pub(super) struct InterfaceFacts {
    pub(super) id: String,
    pub(super) kind: Kind,
    pub(super) mac_address: String,
    pub(super) private_ip: String,
    pub(super) groups: BTreeSet<String>,
    /// The instance that it is attached to.
    pub(super) attached_to: Option<String>,
    /// The pod that it was made for.
    pub(super) made_for: Option<String>,
}

/// A branch's place on a trunk.
#[derive(Clone, Debug)]
pub(super) struct AssociationFacts {
    pub(super) id: String,
    pub(super) branch: String,
    pub(super) trunk: String,
    pub(super) vlan: u16,
}

/// What can be wrong.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Wrong {
    /// An interface that nobody needs.
    Leaked,
    /// A pod without its interface, or a node without its trunk.
    Missing,
    /// A VLAN id that two branches of one trunk have.
    DoubleVlan,
    /// An annotation that says what is not so.
    Lie,
    /// A pod with two interfaces.
    TwoInterfaces,
    /// An interface of two pods.
    Shared,
    /// An interface with other groups than its pod is to have.
    Groups,
    /// An annotation that was written more than once.
    Rewritten,
    /// The allocator ended although nobody killed it.
    Ended,
}

impl Wrong {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Leaked,
        Self::Missing,
        Self::DoubleVlan,
        Self::Lie,
        Self::TwoInterfaces,
        Self::Shared,
        Self::Groups,
        Self::Rewritten,
        Self::Ended,
    ];
}

impl fmt::Display for Wrong {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Leaked => "leaked interfaces",
            Self::Missing => "missing interfaces",
            Self::DoubleVlan => "VLAN ids used twice on a trunk",
            Self::Lie => "annotations that lie",
            Self::TwoInterfaces => "pods with two interfaces",
            Self::Shared => "interfaces of two pods",
            Self::Groups => "interfaces with wrong security groups",
            Self::Rewritten => "annotations that changed",
            Self::Ended => "ends of the allocator without a kill",
        })
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Finding {
    /// What kind of thing.
    pub wrong: Wrong,
    /// The thing, and why.
    pub what: String,
}

impl Finding {
    pub(super) fn new(wrong: Wrong, what: String) -> Self {
        Self { wrong, what }
    }
}

impl PodFacts {
    /// Whether it is to have an interface now.
    pub(super) fn needs_interface(&self) -> bool {
        self.asks && !self.finished && !self.node.is_empty()
    }

    /// The interfaces that its annotation names; an error if it can't be read.
    fn named(&self) -> Result<Vec<PodEni>, serde_json::Error> {
        let json = self.annotation.as_deref();
        json.map_or(Ok(Vec::new()), serde_json::from_str)
    }
}

impl Facts {
    /// How many interfaces of a kind there are.
    pub(super) fn count(&self, kind: Kind) -> usize {
        let all = self.interfaces.iter();
        all.filter(|interface| interface.kind == kind).count()
    }

    /// How many branches there are to be.
    pub(super) fn needed_branches(&self) -> usize {
        self.pods.iter().filter(|pod| pod.needs_interface()).count()
    }
}

/// Finds everything that is wrong.
pub(super) fn audit(facts: &Facts) -> Vec<Finding> {
    let mut findings = Findings::default();
    let owners = owners(facts);
    findings.trunks(facts);
    findings.branches(facts, &owners);
    findings.vlans(facts);
    for pod in facts.pods.iter().filter(|pod| pod.needs_interface()) {
        findings.pod(pod, facts, &owners);
    }
    findings.0.sort();
    findings.0
}

/// The pods whose annotations name each interface, and which still need it.
fn owners(facts: &Facts) -> BTreeMap<String, Vec<&PodFacts>> {
    let mut owners: BTreeMap<String, Vec<&PodFacts>> = BTreeMap::new();
    for pod in facts.pods.iter().filter(|pod| pod.needs_interface()) {
        for interface in pod.named().unwrap_or_default() {
            owners.entry(interface.interface_id).or_default().push(pod);
        }
    }
    owners
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, wrong: Wrong, what: String) {
        self.0.push(Finding::new(wrong, what));
    }

    fn trunks(&mut self, facts: &Facts) {
        let mut by_instance: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for trunk in facts.interfaces.iter().filter(|it| it.kind == Kind::Trunk) {
            match &trunk.attached_to {
                Some(instance) => by_instance.entry(instance).or_default().push(&trunk.id),
                None => self.add(
                    Wrong::Leaked,
                    format!("trunk {} is attached to no instance", trunk.id),
                ),
            }
        }
        for node in &facts.nodes {
            let trunks = by_instance.remove(node.instance_id.as_str());
            match trunks.unwrap_or_default().split_first() {
                None => {
                    let (name, instance) = (&node.name, &node.instance_id);
                    let what = format!("node {name}, instance {instance}, has no trunk");
                    self.add(Wrong::Missing, what);
                }
                Some((_, more)) => {
                    for id in more {
                        let what = format!("trunk {id} of node {} is one too many", node.name);
                        self.add(Wrong::Leaked, what);
                    }
                }
            }
        }
        for (instance, trunks) in by_instance {
            for id in trunks {
                let what = format!("trunk {id} is of instance {instance}, which is no node");
                self.add(Wrong::Leaked, what);
            }
        }
    }

    fn branches(&mut self, facts: &Facts, owners: &BTreeMap<String, Vec<&PodFacts>>) {
        for branch in facts.interfaces.iter().filter(|it| it.kind == Kind::Branch) {
            match owners.get(&branch.id).map(Vec::as_slice) {
                None => {
                    let id = &branch.id;
                    let what = match &branch.made_for {
                        Some(uid) => format!("branch {id}, made for pod {uid}, is nobody's"),
                        None => format!("branch {id} is nobody's"),
                    };
                    self.add(Wrong::Leaked, what);
                }
                Some([_]) => {}
                Some(pods) => {
                    let names: Vec<_> = pods.iter().map(|pod| pod.name.as_str()).collect();
                    let what = format!("branch {} is that of {}", branch.id, names.join(", "));
                    self.add(Wrong::Shared, what);
                }
            }
        }
    }

    fn vlans(&mut self, facts: &Facts) {
        let mut users: BTreeMap<(&str, u16), Vec<&str>> = BTreeMap::new();
        for association in &facts.associations {
            let key = (association.trunk.as_str(), association.vlan);
            users.entry(key).or_default().push(&association.branch);
        }
        for ((trunk, vlan), branches) in users.into_iter().filter(|(_, it)| it.len() > 1) {
            let branches = branches.join(", ");
            let what = format!("VLAN id {vlan} on trunk {trunk} is that of {branches}");
            self.add(Wrong::DoubleVlan, what);
        }
    }

    fn pod(&mut self, pod: &PodFacts, facts: &Facts, owners: &BTreeMap<String, Vec<&PodFacts>>) {
        let named = match pod.named() {
            Ok(named) => named,
            Err(error) => {
                let what = format!("the annotation of {} can't be read: {error}", pod.name);
                return self.add(Wrong::Lie, what);
            }
        };
        let made = facts.interfaces.iter().filter(|interface| {
            interface.made_for.as_ref() == Some(&pod.uid) && !owners.contains_key(&interface.id)
        });
        let named_ids = named
            .iter()
            .map(|interface| interface.interface_id.as_str());
        let all: BTreeSet<&str> = named_ids.chain(made.map(|it| it.id.as_str())).collect();
        if all.len() > 1 {
            let all: Vec<_> = all.into_iter().collect();
            let what = format!("{} has {}", pod.name, all.join(", "));
            self.add(Wrong::TwoInterfaces, what);
        }
        if named.is_empty() {
            let what = format!("{} on {} has no interface", pod.name, pod.node);
            self.add(Wrong::Missing, what);
        }
        for said in &named {
            self.annotation(pod, said, facts);
        }
    }

    /// What an annotation says of an interface, beside the interface.
    fn annotation(&mut self, pod: &PodFacts, said: &PodEni, facts: &Facts) {
        let (name, id) = (&pod.name, &said.interface_id);
        let of_branch = |it: &&InterfaceFacts| it.id == *id && it.kind == Kind::Branch;
        let Some(branch) = facts.interfaces.iter().find(of_branch) else {
            let what = format!("{name} names {id}, which EC2 does not have");
            return self.add(Wrong::Lie, what);
        };
        let mut compare = |what: &str, said: &str, is: &str| {
            if said != is {
                let what = format!("{name} says that the {what} of {id} is {said}; it is {is}");
                self.add(Wrong::Lie, what);
            }
        };
        compare("MAC address", &said.mac_address, &branch.mac_address);
        compare("address", &said.private_ip, &branch.private_ip);
        let association = facts.associations.iter().find(|it| it.branch == *id);
        let (vlan, association_id, trunk) = match association {
            Some(it) => (it.vlan.to_string(), it.id.as_str(), it.trunk.as_str()),
            None => ("none".to_owned(), "none", "none"),
        };
        compare("VLAN id", &said.vlan_id.to_string(), &vlan);
        compare("association", &said.association_id, association_id);
        let node = facts.nodes.iter().find(|node| node.name == pod.node);
        let trunk_of_node = facts.interfaces.iter().find(|it| {
            it.kind == Kind::Trunk
                && node.is_some_and(|node| it.attached_to.as_ref() == Some(&node.instance_id))
        });
        let trunk_of_node = trunk_of_node.map_or("none", |it| it.id.as_str());
        compare("trunk (that of the pod's node)", trunk_of_node, trunk);
        if let Some(wanted) = pod.groups.as_ref().filter(|it| **it != branch.groups) {
            let list = |ids: &BTreeSet<String>| Vec::from_iter(ids.clone()).join(", ");
            let (has, wanted) = (list(&branch.groups), list(wanted));
            let what = format!("{id} of {name} has {has}; it should have {wanted}");
            self.add(Wrong::Groups, what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|id| id.to_string()).collect()
    }

    fn pod(name: &str, branch: Option<(&str, u16)>) -> PodFacts {
        PodFacts {
            name: format!("shop/{name}"),
            uid: format!("uid-{name}"),
            node: "node-1".into(),
            finished: false,
            asks: true,
            annotation: branch.map(|(id, vlan)| {
                let interface = PodEni {
                    interface_id: id.into(),
                    mac_address: format!("mac of {id}"),
                    private_ip: format!("address of {id}"),
                    vlan_id: vlan,
                    association_id: format!("association of {id}"),
                    ..PodEni::default()
                };
                serde_json::to_string(&[interface]).unwrap()
            }),
            groups: Some(groups(&["sg-1"])),
        }
    }

    fn interface(kind: Kind, id: &str) -> InterfaceFacts {
        InterfaceFacts {
            id: id.into(),
            kind,
            mac_address: format!("mac of {id}"),
            private_ip: format!("address of {id}"),
            groups: groups(&["sg-1"]),
            attached_to: None,
            made_for: None,
        }
    }

    fn trunk(id: &str, instance: &str) -> InterfaceFacts {
        InterfaceFacts {
            attached_to: Some(instance.into()),
            ..interface(Kind::Trunk, id)
        }
    }

    fn on_trunk(branch: &str, trunk: &str, vlan: u16) -> AssociationFacts {
        AssociationFacts {
            id: format!("association of {branch}"),
            branch: branch.into(),
            trunk: trunk.into(),
            vlan,
        }
    }

    /// A node with two pods, each with its interface, and a pod that has come to its end.
    fn at_rest() -> Facts {
        let ended = PodFacts {
            finished: true,
            ..pod("ended", Some(("gone", 7)))
        };
        let plain = PodFacts {
            asks: false,
            groups: None,
            ..pod("plain", None)
        };
        Facts {
            nodes: vec![NodeFacts {
                name: "node-1".into(),
                instance_id: "i-1".into(),
            }],
            pods: vec![
                pod("a", Some(("a", 1))),
                pod("b", Some(("b", 2))),
                ended,
                plain,
            ],
            interfaces: vec![
                trunk("trunk-1", "i-1"),
                interface(Kind::Branch, "a"),
                interface(Kind::Branch, "b"),
            ],
            associations: vec![on_trunk("a", "trunk-1", 1), on_trunk("b", "trunk-1", 2)],
        }
    }

    #[track_caller]
    fn finds(facts: &Facts, expected: &[(Wrong, &str)]) {
        let found = audit(facts);
        let found: Vec<_> = found
            .iter()
            .map(|it| (it.wrong, it.what.as_str()))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn nothing_is_wrong_where_each_pod_has_what_it_needs() {
        let facts = at_rest();
        finds(&facts, &[]);
        assert_eq!(
            (facts.count(Kind::Trunk), facts.count(Kind::Branch)),
            (1, 2)
        );
        assert_eq!(facts.needed_branches(), 2);
    }

    #[test]
    fn branch_that_no_living_pod_names_is_a_leak() {
        let mut facts = at_rest();
        facts.interfaces.push(interface(Kind::Branch, "gone"));
        finds(&facts, &[(Wrong::Leaked, "branch gone is nobody's")]);

        let mut facts = at_rest();
        facts.pods.remove(0);
        facts.interfaces[1].made_for = Some("uid-a".into());
        finds(
            &facts,
            &[(Wrong::Leaked, "branch a, made for pod uid-a, is nobody's")],
        );
    }

    #[test]
    fn trunk_without_a_node_is_a_leak_and_a_node_without_a_trunk_lacks_one() {
        let mut facts = at_rest();
        facts.interfaces.push(trunk("trunk-2", "i-2"));
        facts.interfaces.push(interface(Kind::Trunk, "trunk-3"));
        facts.interfaces.push(trunk("trunk-4", "i-1"));
        facts.nodes.push(NodeFacts {
            name: "node-5".into(),
            instance_id: "i-5".into(),
        });
        finds(
            &facts,
            &[
                (
                    Wrong::Leaked,
                    "trunk trunk-2 is of instance i-2, which is no node",
                ),
                (Wrong::Leaked, "trunk trunk-3 is attached to no instance"),
                (
                    Wrong::Leaked,
                    "trunk trunk-4 of node node-1 is one too many",
                ),
                (Wrong::Missing, "node node-5, instance i-5, has no trunk"),
            ],
        );
    }

    #[test]
    fn pod_that_waits_on_its_node_lacks_its_interface() {
        let mut facts = at_rest();
        facts.pods.push(pod("c", None));
        finds(
            &facts,
            &[(Wrong::Missing, "shop/c on node-1 has no interface")],
        );
        facts.pods.last_mut().unwrap().node.clear();
        finds(&facts, &[]);
    }

    #[test]
    fn vlan_id_of_two_branches_of_one_trunk_is_found() {
        let mut facts = at_rest();
        facts.associations[1].vlan = 1;
        facts.pods[1] = pod("b", Some(("b", 1)));
        finds(
            &facts,
            &[(
                Wrong::DoubleVlan,
                "VLAN id 1 on trunk trunk-1 is that of a, b",
            )],
        );
        facts.associations[1].trunk = "trunk-2".into();
        let found = audit(&facts);
        assert!(
            found.iter().all(|it| it.wrong != Wrong::DoubleVlan),
            "{found:?}"
        );
    }

    #[test]
    fn every_lie_of_an_annotation_is_found() {
        let of = |field: &str, value: serde_json::Value| {
            let mut facts = at_rest();
            let annotation = facts.pods[0].annotation.as_deref().unwrap();
            let mut said: serde_json::Value = serde_json::from_str(annotation).unwrap();
            said[0][field] = value;
            facts.pods[0].annotation = Some(said.to_string());
            audit(&facts)
        };
        for (field, value, what) in [
            (
                "ifAddress",
                "x".into(),
                "MAC address of a is x; it is mac of a",
            ),
            (
                "privateIp",
                "x".into(),
                "address of a is x; it is address of a",
            ),
            ("vlanId", 9.into(), "VLAN id of a is 9; it is 1"),
            (
                "associationID",
                "x".into(),
                "association of a is x; it is association of a",
            ),
        ] {
            let what = format!("shop/a says that the {what}");
            assert_eq!(of(field, value), [Finding::new(Wrong::Lie, what)]);
        }
        let gone = of("eniId", "gone".into());
        let what = "shop/a names gone, which EC2 does not have".to_owned();
        assert!(gone.contains(&Finding::new(Wrong::Lie, what)), "{gone:?}");
    }

    #[test]
    fn annotation_that_names_a_branch_of_another_node_lies() {
        let mut facts = at_rest();
        facts.associations[0].trunk = "trunk-2".into();
        facts.interfaces.push(trunk("trunk-2", "i-2"));
        facts.nodes.push(NodeFacts {
            name: "node-2".into(),
            instance_id: "i-2".into(),
        });
        let what = "shop/a says that the trunk (that of the pod's node) of a is trunk-1; it is \
                    trunk-2";
        finds(&facts, &[(Wrong::Lie, what)]);
    }

    #[test]
    fn annotation_that_is_no_list_of_interfaces_is_found() {
        let mut facts = at_rest();
        facts.pods[0].annotation = Some("eni-1".into());
        let found = audit(&facts);
        assert!(found.iter().any(|it| it.wrong == Wrong::Lie), "{found:?}");
    }

    #[test]
    fn pod_with_two_interfaces_and_interface_of_two_pods_are_found() {
        let mut facts = at_rest();
        let mut second = interface(Kind::Branch, "c");
        second.made_for = Some("uid-a".into());
        facts.interfaces.push(second);
        finds(
            &facts,
            &[
                (Wrong::Leaked, "branch c, made for pod uid-a, is nobody's"),
                (Wrong::TwoInterfaces, "shop/a has a, c"),
            ],
        );

        let mut facts = at_rest();
        facts.pods.push(pod("c", Some(("a", 1))));
        finds(
            &facts,
            &[(Wrong::Shared, "branch a is that of shop/a, shop/c")],
        );
    }

    #[test]
    fn branch_that_was_made_for_one_pod_and_is_now_anothers_is_only_the_others() {
        let mut facts = at_rest();
        facts.interfaces[2].made_for = Some("uid-a".into());
        finds(&facts, &[]);
    }

    #[test]
    fn groups_that_no_policy_gives_are_found() {
        let mut facts = at_rest();
        facts.pods[0].groups = Some(groups(&["sg-1", "sg-2"]));
        let what = "a of shop/a has sg-1; it should have sg-1, sg-2";
        finds(&facts, &[(Wrong::Groups, what)]);
    }
}
