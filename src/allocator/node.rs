//! One node as it should be and as it is.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::VlanId;
use crate::api::SecurityGroupId;

/// Defines ids that are text to everyone but EC2 or the API server.
macro_rules! text_id {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name(Cow<'static, str>);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(id: &str) -> Self {
                Self(Cow::Owned(id.to_owned()))
            }
        }
    )*};
}

text_id! {
    /// The UID of a pod: unlike its name, never given out twice.
    PodUid;
    /// The id of a trunk interface.
    TrunkId;
    /// The id of a branch interface.
    BranchId;
    /// The id of a branch's association with its trunk.
    AssociationId;
}

impl AssociationId {
    /// EC2 lists a branch as associated without saying under which id.
    pub const UNKNOWN: Self = Self(Cow::Borrowed(""));

    /// Whether it is an id.
    pub fn is_known(&self) -> bool {
        !self.0.is_empty()
    }
}

/// A node as it should be.
#[derive(Clone, Debug)]
pub struct DesiredNode {
    /// The groups of its trunk; `None` if the node takes no part (any more) and all that was
    /// made for it is to go.
    pub trunk_groups: Option<Vec<SecurityGroupId>>,
    /// The most branches that the instance type takes.
    pub branch_limit: usize,
    /// The pods on it that are to have a branch.
    pub pods: BTreeMap<PodUid, DesiredPod>,
    /// How long a released branch is kept from others.
    pub cooldown: Duration,
    /// How many released branches are kept for the next pods once they have cooled down.
    pub warm_limit: usize,
}

/// A pod as it should be.
#[derive(Clone, Debug)]
pub struct DesiredPod {
    /// The groups of its branch.
    pub group_ids: Vec<SecurityGroupId>,
    /// The branch that its annotation names, which its node's CNI plugin uses.
    pub annotated: Option<BranchId>,
    /// Its place among those that wait; the lowest is served first.
    pub arrival: u64,
}

/// A node as EC2, the API server and the calls under way say that it is.
#[derive(Clone, Debug, Default)]
pub struct ObservedNode {
    /// Its trunk interface.
    pub trunk: Option<Trunk>,
    /// Its branch interfaces, whoever uses them.
    pub branches: BTreeMap<BranchId, Branch>,
    /// VLAN ids of branches whose creation is under way.
    pub creating: BTreeMap<PodUid, VlanId>,
    /// VLAN ids of branches that were asked for and have not been seen since: EC2 may show
    /// them late.
    pub reserved: BTreeMap<PodUid, VlanId>,
    /// What a call is under way for: nothing else is done with it meanwhile.
    pub busy: BTreeSet<Subject>,
    /// What failed, and when it may be tried again.
    pub retry_at: BTreeMap<Subject, Instant>,
}

/// A trunk interface.
#[derive(Clone, Debug)]
pub struct Trunk {
    /// Its id.
    pub id: TrunkId,
    /// Whether it is attached to the instance.
    pub attached: bool,
    /// Its groups.
    pub group_ids: Vec<SecurityGroupId>,
}

/// A branch interface.
#[derive(Clone, Debug)]
pub struct Branch {
    /// What its tag says, which is written at its creation.
    pub vlan: VlanId,
    /// Its groups.
    pub group_ids: Vec<SecurityGroupId>,
    /// Its association with the trunk, if there is one yet.
    pub association: Option<AssociationId>,
    /// The pod that it was made for, or given to since; a claim that counts as long as the
    /// pod is there and its annotation names no other branch.
    pub claimed_by: Option<PodUid>,
    /// Since when no pod has claimed it; for one found at the start, since then.
    pub idle_since: Option<Instant>,
    /// Since it was idle, the API server has confirmed that no pod on the node uses it.
    pub confirmed_idle: bool,
    /// A call that removes it was made. It may take effect late, so nobody gets it any more.
    pub leaving: bool,
}

/// What an action is about.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Subject {
    /// The node's trunk.
    Trunk,
    /// A pod that waits for its branch.
    Pod(PodUid),
    /// A branch.
    Branch(BranchId),
}

/// Which pod owns which branch, one to one.
#[derive(Debug)]
pub(super) struct Owners<'a> {
    pub(super) by_branch: BTreeMap<&'a BranchId, &'a PodUid>,
    pub(super) by_pod: BTreeMap<&'a PodUid, &'a BranchId>,
}

impl ObservedNode {
    /// The owner of each branch that has one: the pod whose annotation names it, or else the
    /// pod that claims it and has no other. Of several that one pod claims, after a creation
    /// whose answer was lost, the one that has come furthest counts; one that can't come
    /// further, because its VLAN id is another's by now, is nobody's.
    pub(super) fn owners<'a>(&'a self, desired: &'a DesiredNode) -> Owners<'a> {
        let mut owners = Owners {
            by_branch: BTreeMap::new(),
            by_pod: BTreeMap::new(),
        };
        for (uid, pod) in &desired.pods {
            if let Some(id) = &pod.annotated {
                owners.by_branch.insert(id, uid);
                owners.by_pod.insert(uid, id);
            }
        }
        let (placed, others): (Vec<_>, Vec<_>) = self.branches.iter().partition(|(id, branch)| {
            branch.association.is_some() || owners.by_branch.contains_key(id)
        });
        let mut vlans: BTreeSet<VlanId> = placed.iter().map(|(_, branch)| branch.vlan).collect();
        let is_placed = placed
            .iter()
            .map(|_| true)
            .chain(others.iter().map(|_| false));
        for ((id, branch), is_placed) in placed.iter().chain(&others).zip(is_placed) {
            let claim = branch.claimed_by.as_ref();
            let Some((uid, _)) = claim.and_then(|uid| desired.pods.get_key_value(uid)) else {
                continue;
            };
            if !owners.by_branch.contains_key(id)
                && !owners.by_pod.contains_key(uid)
                && (is_placed || vlans.insert(branch.vlan))
            {
                owners.by_branch.insert(id, uid);
                owners.by_pod.insert(uid, id);
            }
        }
        owners
    }

    /// Notes for each branch since when it is idle, or that it is not.
    pub fn note_idle(&mut self, desired: &DesiredNode, now: Instant) {
        let owned: BTreeSet<BranchId> = self
            .owners(desired)
            .by_branch
            .into_keys()
            .cloned()
            .collect();
        for (id, branch) in &mut self.branches {
            if owned.contains(id) {
                branch.idle_since = None;
                branch.confirmed_idle = false;
            } else {
                branch.idle_since.get_or_insert(now);
            }
        }
    }

    /// VLAN ids that no other branch may get.
    pub(super) fn used_vlans(&self) -> BTreeSet<VlanId> {
        let existing = self.branches.values().map(|branch| branch.vlan);
        let coming = self.creating.values().chain(self.reserved.values());
        existing.chain(coming.copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_branches_of_one_pod_the_one_that_has_come_furthest_is_its() {
        let pod = |annotated: Option<&str>| DesiredPod {
            group_ids: Vec::new(),
            annotated: annotated.map(BranchId::from),
            arrival: 0,
        };
        let desired = |annotated| DesiredNode {
            trunk_groups: None,
            branch_limit: 9,
            pods: BTreeMap::from([(PodUid::from("pod"), pod(annotated))]),
            cooldown: Duration::ZERO,
            warm_limit: 0,
        };
        let branch = |vlan: u16, is_placed: bool| Branch {
            vlan: VlanId::from(vlan),
            group_ids: Vec::new(),
            association: is_placed.then_some(AssociationId::UNKNOWN),
            claimed_by: Some(PodUid::from("pod")),
            idle_since: None,
            confirmed_idle: false,
            leaving: false,
        };
        for (annotated, branches, owned) in [
            (None, [("a", 1, false), ("b", 2, false)], "a"),
            (None, [("a", 1, false), ("b", 2, true)], "b"),
            (Some("a"), [("a", 1, false), ("b", 2, true)], "a"),
            (
                Some("elsewhere"),
                [("a", 1, false), ("b", 2, true)],
                "elsewhere",
            ),
        ] {
            let branches =
                branches.map(|(id, vlan, is_placed)| (id.into(), branch(vlan, is_placed)));
            let observed = ObservedNode {
                branches: branches.into(),
                ..ObservedNode::default()
            };
            let desired = desired(annotated);
            let owners = observed.owners(&desired);
            let of_pod = owners.by_pod.values().map(|id| id.as_str());
            assert_eq!(of_pod.collect::<Vec<_>>(), [owned], "{annotated:?}");
        }
    }
}
