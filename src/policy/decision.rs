//! What is to be done with a pod at its creation, as a plain function over values.
//!
//! The answer carries reasons as data; whoever asked puts them into words.

use std::collections::HashSet;

use super::availability::Availability;
use super::compiled::{InvalidPolicy, Policy};
use super::groups_per_interface::GroupsPerInterface;
use super::index::NamespacePolicies;
use super::labels::Labels;
use super::pod::{LabelPairs, Pod};
use crate::api::SecurityGroupId;
use crate::api::names::FARGATE_SCHEDULER;

/// The grace period that a pod gets which says none: what the API server defaults to
/// (Pod API reference, `terminationGracePeriodSeconds`).
pub const DEFAULT_GRACE_PERIOD_SECONDS: i64 = 30;

/// How an operator wants doubtful pods treated.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// Pods with security groups and a grace period of 0.
    pub grace_period: GracePeriodPolicy,
    /// Pods that a policy selects but that can have no branch interface.
    pub unsupported_pods: UnsupportedPodPolicy,
    /// Pods with security groups that do not exist.
    pub missing_groups: MissingGroupPolicy,
    /// The most groups that EC2 takes for one interface.
    pub groups_per_interface: GroupsPerInterface,
}

/// What happens to a pod with security groups that would vanish at once.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub enum GracePeriodPolicy {
    /// Refuse the pod.
    #[default]
    Deny,
    /// Give it the default of 30 seconds, with a warning.
    Set,
    /// Leave it, with a warning.
    Warn,
}

/// What happens to a pod that a policy selects but that can have no branch interface.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub enum UnsupportedPodPolicy {
    /// Leave it as it is, with a warning.
    #[default]
    Warn,
    /// Refuse the pod.
    Deny,
}

/// What happens to a pod with security groups that do not exist in the cluster's VPC.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub enum MissingGroupPolicy {
    /// Let it in, with a warning; it waits until its groups can be had.
    #[default]
    Warn,
    /// Refuse the pod.
    Deny,
}

/// What is known of a pod's service account.
#[derive(Clone, Copy, Debug)]
pub enum ServiceAccount<'a, L: ?Sized> {
    /// It exists and has these labels.
    Labels(&'a L),
    /// The API server says that there is none of this name.
    Missing,
}

/// The answer for one pod.
#[derive(Debug, Default)]
pub struct Decision<'p> {
    /// The policies that select the pod, in order of their names.
    pub policies: Vec<&'p Policy>,
    /// The union of their groups: by policy, then by place in its list, each once.
    pub group_ids: Vec<&'p SecurityGroupId>,
    /// What is to be changed in the pod; nothing that is so already.
    pub changes: Vec<Change>,
    /// What whoever creates the pod should know.
    pub concerns: Vec<Concern<'p>>,
    /// Why the pod is refused, if it is.
    pub denial: Option<Denial<'p>>,
}

/// A change of the pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// Request one branch interface in the first container.
    RequestBranchInterface,
    /// Set `terminationGracePeriodSeconds`.
    SetGracePeriod(i64),
    /// Set Fargate's annotation to these group ids, joined by `,`.
    SetFargateGroups(String),
    /// Take Fargate's annotation away.
    RemoveFargateGroups,
}

/// Something that does not keep the pod from starting.
#[derive(Clone, Copy, Debug)]
pub enum Concern<'p> {
    /// A policy of the namespace can't be understood and was left out.
    IgnoredPolicy(&'p InvalidPolicy),
    /// A policy names a group that can't exist.
    MalformedGroup(&'p Policy, &'p SecurityGroupId),
    /// A group does not exist.
    MissingGroup(&'p SecurityGroupId),
    /// A group exists in another VPC than the cluster's, so that no pod can have it.
    GroupElsewhere {
        /// The group.
        id: &'p SecurityGroupId,
        /// The VPC that it is in.
        vpc_id: &'p str,
        /// The VPC of the cluster's nodes.
        cluster_vpc_id: &'p str,
    },
    /// There are more groups than EC2 takes for one interface, which is this many.
    TooManyGroups(GroupsPerInterface),
    /// Pods have all branch interfaces of this many nodes, which are all that there are.
    NoFreeInterface(usize),
    /// The pod can have no branch interface and runs without its groups.
    Unsupported(Unsupported),
    /// The grace period was 0 and has been set.
    GracePeriodSet(i64),
    /// The grace period is 0.
    GracePeriodZero,
}

/// Why a pod can have no branch interface.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unsupported {
    /// It uses its node's network.
    HostNetwork,
    /// It runs on Windows, which the VPC CNI plugin gives no branch interfaces.
    Windows,
}

/// Why a pod is refused.
#[derive(Debug)]
pub enum Denial<'p> {
    /// It would vanish at once, and its network would stay behind on the node.
    GracePeriodZero,
    /// It can have no branch interface, and the operator wants no such pod to start.
    Unsupported(Unsupported),
    /// These policies ask for labels of its service account, which does not exist.
    MissingServiceAccount(Vec<&'p Policy>),
    /// Groups of it can't be had, as these concerns say, and the operator wants no such pod to
    /// wait for them.
    UnusableGroups(Vec<Concern<'p>>),
    /// It requests no branch interface, although all webhooks have had their say.
    NoRequest,
    /// It has the label of Fargate, which would take it past the branch interface, but no
    /// Fargate profile has taken it.
    NotOnFargate,
    /// Fargate's annotation is not these group ids, joined by `,`.
    NotItsFargateGroups(String),
    /// It has Fargate's annotation, but no policy selects it.
    FargateGroupsUnselected,
}

/// Decides about a pod at its creation in the namespace of `policies`.
pub fn decide<'p, L: Labels + ?Sized>(
    pod: &Pod<'_>,
    policies: &'p NamespacePolicies,
    service_account: ServiceAccount<'_, L>,
    settings: Settings,
) -> Decision<'p> {
    let mut decision = decide_by_valid(pod, policies, service_account, settings);
    // Last, because a creator's own pod matters most where not all can be said.
    let ignored = policies.invalid().map(Concern::IgnoredPolicy);
    decision.concerns.extend(ignored);
    decision
}

/// Decides about a pod as it is to be stored, after the last change that anybody can make of
/// it at its creation: what it lacks is a denial now. There is nothing left to warn of.
pub fn check<'p, L: Labels + ?Sized>(
    pod: &Pod<'_>,
    policies: &'p NamespacePolicies,
    service_account: ServiceAccount<'_, L>,
    settings: Settings,
) -> Decision<'p> {
    let mut decision = decide_by_valid(pod, policies, service_account, settings);
    decision.concerns.clear();
    let changes = std::mem::take(&mut decision.changes);
    if decision.denial.is_none() {
        let lacking = changes
            .into_iter()
            .find_map(|change| Denial::of_lacking(change, pod));
        decision.denial = decision.fargate_in_name_only(pod).or(lacking);
    }
    decision
}

fn decide_by_valid<'p, L: Labels + ?Sized>(
    pod: &Pod<'_>,
    policies: &'p NamespacePolicies,
    service_account: ServiceAccount<'_, L>,
    settings: Settings,
) -> Decision<'p> {
    let mut decision = Decision::default();
    match service_account {
        ServiceAccount::Labels(labels) => {
            decision.policies = policies.selecting(pod.labels(), labels);
        }
        ServiceAccount::Missing => {
            let awaiting = policies.awaiting_service_account(pod.labels());
            if !awaiting.is_empty() {
                decision.denial = Some(Denial::MissingServiceAccount(awaiting));
                return decision;
            }
            // No policy is left that would look at these labels.
            decision.policies = policies.selecting(pod.labels(), &LabelPairs::default());
        }
    }
    decision.unite_groups(settings.groups_per_interface);

    if pod.is_fargate() {
        decision.decide_fargate(pod);
    } else {
        // Who gets the label of Fargate afterwards would have the groups that it brought along.
        if pod.fargate_groups().is_some() {
            decision.changes.push(Change::RemoveFargateGroups);
        }
        if !decision.policies.is_empty() {
            decision.decide_branch_interface(pod, settings);
        }
    }
    decision.decide_unusable_groups(settings);
    decision
}

impl<'p> Decision<'p> {
    fn unite_groups(&mut self, most: GroupsPerInterface) {
        // A set allocates, and is worth it only where there are many.
        const MANY: usize = 16;
        let mut seen = HashSet::new();
        for policy in &self.policies {
            for id in &policy.group_ids {
                let is_new = if self.policies.len() < MANY {
                    !self.group_ids.contains(&id)
                } else {
                    seen.insert(id)
                };
                if is_new {
                    self.group_ids.push(id);
                    if !id.is_well_formed() {
                        self.concerns.push(Concern::MalformedGroup(policy, id));
                    }
                }
            }
        }
        if self.group_ids.len() > most.get() {
            self.concerns.push(Concern::TooManyGroups(most));
        }
    }

    /// Whether the pod is let in and is to have its groups.
    pub fn gives_groups(&self) -> bool {
        let is_unsupported = |concern: &Concern<'_>| matches!(concern, Concern::Unsupported(_));
        !self.policies.is_empty()
            && self.denial.is_none()
            && !self.concerns.iter().any(is_unsupported)
    }

    /// Takes into account what there is of what the pod is to have.
    pub fn consider(&mut self, availability: &'p Availability, pod: &Pod<'_>, settings: Settings) {
        if !self.gives_groups() {
            return;
        }
        // One that is malformed is a concern already.
        let well_formed = self.group_ids.iter().filter(|id| id.is_well_formed());
        let mut found: Vec<_> = well_formed
            .filter_map(|id| Concern::of_group(id, availability))
            .collect();
        if availability.free == Some(0) && !pod.is_fargate() {
            found.push(Concern::NoFreeInterface(availability.nodes));
        }
        let is_ignored = |concern: &Concern<'_>| matches!(concern, Concern::IgnoredPolicy(_));
        let place = self.concerns.iter().position(is_ignored);
        let place = place.unwrap_or(self.concerns.len());
        self.concerns.splice(place..place, found);
        self.decide_unusable_groups(settings);
    }

    fn decide_unusable_groups(&mut self, settings: Settings) {
        if settings.missing_groups == MissingGroupPolicy::Warn || !self.gives_groups() {
            return;
        }
        let concerns = std::mem::take(&mut self.concerns).into_iter();
        let (unusable, others): (Vec<_>, _) = concerns.partition(Concern::is_unusable_group);
        self.concerns = others;
        if !unusable.is_empty() {
            self.changes.clear();
            self.denial = Some(Denial::UnusableGroups(unusable));
        }
    }

    fn decide_fargate(&mut self, pod: &Pod<'_>) {
        let present = pod.fargate_groups();
        if self.policies.is_empty() {
            if present.is_some() {
                self.changes.push(Change::RemoveFargateGroups);
            }
            return;
        }
        let ids: Vec<&str> = self.group_ids.iter().map(|id| id.as_str()).collect();
        let wanted = ids.join(",");
        if present.is_none_or(|present| present.as_str() != wanted) {
            self.changes.push(Change::SetFargateGroups(wanted));
        }
    }

    fn fargate_in_name_only(&self, pod: &Pod<'_>) -> Option<Denial<'p>> {
        // Fargate makes a node for each of its pods, after their creation.
        let is_taken = pod.scheduler_name() == FARGATE_SCHEDULER && !pod.is_bound();
        let is_in_name_only = pod.is_fargate() && !is_taken;
        (is_in_name_only && !self.policies.is_empty()).then_some(Denial::NotOnFargate)
    }

    fn decide_branch_interface(&mut self, pod: &Pod<'_>, settings: Settings) {
        if let Some(unsupported) = Unsupported::by(pod) {
            match settings.unsupported_pods {
                UnsupportedPodPolicy::Warn => {
                    self.concerns.push(Concern::Unsupported(unsupported));
                }
                UnsupportedPodPolicy::Deny => {
                    self.denial = Some(Denial::Unsupported(unsupported));
                }
            }
            return;
        }
        if pod.first_container_resources().is_none() {
            // The API server refuses a pod without containers, in its own words.
            return;
        }
        let default = DEFAULT_GRACE_PERIOD_SECONDS;
        match (
            pod.spec.termination_grace_period_seconds,
            settings.grace_period,
        ) {
            (None, _) => self.changes.push(Change::SetGracePeriod(default)),
            (Some(0), GracePeriodPolicy::Deny) => {
                self.denial = Some(Denial::GracePeriodZero);
                return;
            }
            (Some(0), GracePeriodPolicy::Set) => {
                self.changes.push(Change::SetGracePeriod(default));
                self.concerns.push(Concern::GracePeriodSet(default));
            }
            (Some(0), GracePeriodPolicy::Warn) => self.concerns.push(Concern::GracePeriodZero),
            (Some(_), _) => {}
        }
        if !pod.requests_branch_interface() {
            self.changes.push(Change::RequestBranchInterface);
        }
    }
}

impl<'p> Concern<'p> {
    /// Why no pod can have this group, if that is so.
    pub fn of_group(id: &'p SecurityGroupId, availability: &'p Availability) -> Option<Self> {
        if availability
            .missing
            .iter()
            .any(|missing| missing == id.as_str())
        {
            return Some(Self::MissingGroup(id));
        }
        let mut elsewhere = availability.elsewhere.iter();
        let group = elsewhere.find(|group| group.id == id.as_str())?;
        Some(Self::GroupElsewhere {
            id,
            vpc_id: &group.vpc_id,
            cluster_vpc_id: availability.vpc_id.as_deref()?,
        })
    }

    fn is_unusable_group(&self) -> bool {
        use Concern::{GroupElsewhere, MalformedGroup, MissingGroup};
        matches!(
            self,
            MalformedGroup(..) | MissingGroup(_) | GroupElsewhere { .. }
        )
    }
}

impl Denial<'_> {
    /// Why a pod is refused that still lacks this change.
    fn of_lacking(change: Change, pod: &Pod<'_>) -> Option<Self> {
        match change {
            Change::RequestBranchInterface => Some(Self::NoRequest),
            // Absent, the API server sets it to its default.
            Change::SetGracePeriod(_) => pod
                .spec
                .termination_grace_period_seconds
                .map(|_| Self::GracePeriodZero),
            Change::SetFargateGroups(ids) => Some(Self::NotItsFargateGroups(ids)),
            Change::RemoveFargateGroups => Some(Self::FargateGroupsUnselected),
        }
    }
}

impl Unsupported {
    fn by(pod: &Pod<'_>) -> Option<Self> {
        if pod.uses_host_network() {
            Some(Self::HostNetwork)
        } else if pod.is_windows() {
            Some(Self::Windows)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::PolicyIndex;
    use serde_json::{Value, json};
    use std::collections::BTreeMap;
    use std::sync::Arc;

    const GROUP: &str = "sg-0123abcd";

    fn policies(specs: &[(&str, Value)]) -> Arc<NamespacePolicies> {
        let mut index = PolicyIndex::default();
        for (name, spec) in specs {
            index.apply("shop", Policy::parse(name, spec));
        }
        index.namespace("shop").unwrap_or_default()
    }

    fn everything(group_ids: &[&str]) -> Value {
        json!({"podSelector": {}, "securityGroups": {"groupIds": group_ids}})
    }

    fn decide_json<'p>(
        pod: &Value,
        policies: &'p NamespacePolicies,
        settings: Settings,
    ) -> Decision<'p> {
        let pod = pod.to_string();
        let pod: Pod = serde_json::from_str(&pod).unwrap();
        let labels = BTreeMap::new();
        decide(&pod, policies, ServiceAccount::Labels(&labels), settings)
    }

    /// A Linux pod of one container with a grace period; `spec` and `metadata` are added.
    fn pod(metadata: Value, spec: Value) -> Value {
        let mut whole = json!({
            "metadata": {"name": "web"},
            "spec": {"containers": [{"name": "web"}], "terminationGracePeriodSeconds": 30}
        });
        for (part, added) in [("metadata", metadata), ("spec", spec)] {
            for (key, value) in added.as_object().unwrap() {
                whole[part][key] = value.clone();
            }
        }
        whole
    }

    #[test]
    fn selected_pod_gets_what_it_lacks_and_nothing_else() {
        use Change::{RequestBranchInterface, SetGracePeriod};
        let requested = json!([{"resources": {"limits": {"vpc.amazonaws.com/pod-eni": "1"}}}]);
        let all = policies(&[("all", everything(&[GROUP]))]);
        for (spec, changes) in [
            (json!({}), vec![RequestBranchInterface]),
            (
                json!({"terminationGracePeriodSeconds": null}),
                vec![SetGracePeriod(30), RequestBranchInterface],
            ),
            (
                json!({"terminationGracePeriodSeconds": 5}),
                vec![RequestBranchInterface],
            ),
            (json!({"containers": requested}), vec![]),
        ] {
            let decision = decide_json(&pod(json!({}), spec.clone()), &all, Settings::default());
            assert_eq!(decision.changes, changes, "{spec}");
            assert!(
                decision.denial.is_none() && decision.concerns.is_empty(),
                "{spec}"
            );
        }
    }

    #[test]
    fn pod_that_would_vanish_at_once_is_treated_as_the_operator_says() {
        let all = policies(&[("all", everything(&[GROUP]))]);
        let pod = pod(json!({}), json!({"terminationGracePeriodSeconds": 0}));
        let decide_with = |grace_period| {
            decide_json(
                &pod,
                &all,
                Settings {
                    grace_period,
                    ..Settings::default()
                },
            )
        };

        let denied = decide_with(GracePeriodPolicy::Deny);
        assert!(matches!(denied.denial, Some(Denial::GracePeriodZero)));
        assert!(denied.changes.is_empty(), "a refused pod is not changed");

        let set = decide_with(GracePeriodPolicy::Set);
        assert!(set.changes.contains(&Change::SetGracePeriod(30)) && set.denial.is_none());
        assert!(matches!(set.concerns[..], [Concern::GracePeriodSet(30)]));

        let warned = decide_with(GracePeriodPolicy::Warn);
        assert_eq!(warned.changes, [Change::RequestBranchInterface]);
        assert!(matches!(warned.concerns[..], [Concern::GracePeriodZero]));
    }

    #[test]
    fn pod_that_can_have_no_interface_is_left_alone_or_refused() {
        let all = policies(&[("all", everything(&[GROUP]))]);
        let strict = Settings {
            unsupported_pods: UnsupportedPodPolicy::Deny,
            ..Settings::default()
        };
        for (spec, unsupported) in [
            (json!({"hostNetwork": true}), Unsupported::HostNetwork),
            (json!({"os": {"name": "windows"}}), Unsupported::Windows),
            (
                json!({"nodeSelector": {"kubernetes.io/os": "windows"}}),
                Unsupported::Windows,
            ),
            // Its grace period does not matter, for it gets no interface.
            (
                json!({"hostNetwork": true, "terminationGracePeriodSeconds": 0}),
                Unsupported::HostNetwork,
            ),
        ] {
            let pod = pod(json!({}), spec.clone());
            let decision = decide_json(&pod, &all, Settings::default());
            assert!(
                decision.changes.is_empty() && decision.denial.is_none(),
                "{spec}"
            );
            assert!(
                matches!(decision.concerns[..], [Concern::Unsupported(why)] if why == unsupported)
            );
            let decision = decide_json(&pod, &all, strict);
            assert!(
                matches!(decision.denial, Some(Denial::Unsupported(why)) if why == unsupported)
            );
        }
        let linux = pod(
            json!({}),
            json!({"nodeSelector": {"kubernetes.io/os": "linux"}}),
        );
        assert_eq!(
            decide_json(&linux, &all, strict).changes,
            [Change::RequestBranchInterface]
        );
    }

    #[test]
    fn what_ec2_lacks_is_a_concern_of_those_that_are_to_have_it() {
        const ELSEWHERE: &str = "sg-0000000b";
        let specs = [
            ("all", everything(&[GROUP, "sg-1", ELSEWHERE])),
            ("bad", json!({})),
        ];
        let policies = policies(&specs);
        let availability = Availability {
            missing: vec![GROUP.into(), "sg-1".into()],
            elsewhere: vec![crate::policy::GroupElsewhere {
                id: ELSEWHERE.into(),
                vpc_id: "vpc-2".into(),
            }],
            vpc_id: Some("vpc-1".into()),
            free: Some(0),
            nodes: 5,
        };
        let fargate = json!({"labels": {"eks.amazonaws.com/fargate-profile": "a"}});
        let settings = Settings {
            grace_period: GracePeriodPolicy::Set,
            ..Settings::default()
        };
        let tell = |concern: &Concern<'_>| match concern {
            Concern::MalformedGroup(_, id) => format!("malformed {id}"),
            Concern::MissingGroup(id) => format!("missing {id}"),
            Concern::GroupElsewhere {
                id,
                vpc_id,
                cluster_vpc_id,
            } => {
                format!("{id} in {vpc_id}, not {cluster_vpc_id}")
            }
            Concern::NoFreeInterface(nodes) => format!("none free on {nodes}"),
            other => format!("{other:?}").split('(').next().unwrap().to_owned(),
        };
        let groups = ["missing sg-0123abcd", "sg-0000000b in vpc-2, not vpc-1"];
        for (metadata, spec, expected) in [
            (
                json!({}),
                json!({"terminationGracePeriodSeconds": 0}),
                &[
                    "malformed sg-1",
                    "GracePeriodSet",
                    groups[0],
                    groups[1],
                    "none free on 5",
                    "IgnoredPolicy",
                ][..],
            ),
            (
                fargate,
                json!({}),
                &["malformed sg-1", groups[0], groups[1], "IgnoredPolicy"],
            ),
            (
                json!({}),
                json!({"hostNetwork": true}),
                &["malformed sg-1", "Unsupported", "IgnoredPolicy"],
            ),
        ] {
            let pod = pod(metadata, spec).to_string();
            let pod: Pod = serde_json::from_str(&pod).unwrap();
            let labels = BTreeMap::new();
            let account = ServiceAccount::Labels(&labels);
            let mut decision = decide(&pod, &policies, account, settings);
            let changes = decision.changes.clone();
            decision.consider(&availability, &pod, settings);
            let told: Vec<_> = decision.concerns.iter().map(tell).collect();
            assert_eq!(told, expected);
            assert!(decision.denial.is_none());
            assert_eq!(decision.changes, changes);

            let strict = Settings {
                missing_groups: MissingGroupPolicy::Deny,
                ..settings
            };
            let account = ServiceAccount::Labels(&labels);
            let mut decision = decide(&pod, &policies, account, strict);
            decision.consider(&availability, &pod, strict);
            let is_left_alone = pod.uses_host_network();
            assert_eq!(decision.denial.is_none(), is_left_alone);
            assert!(decision.changes.is_empty());
        }
    }

    #[test]
    fn pod_whose_groups_can_not_be_had_is_refused_if_the_operator_says_so() {
        let strict = Settings {
            missing_groups: MissingGroupPolicy::Deny,
            ..Settings::default()
        };
        let pod = pod(json!({}), json!({})).to_string();
        let pod: Pod = serde_json::from_str(&pod).unwrap();
        let labels = BTreeMap::new();
        let missing = Availability {
            missing: vec![GROUP.into()],
            ..Availability::default()
        };
        let full = Availability {
            free: Some(0),
            nodes: 1,
            ..Availability::default()
        };
        for (group, availability, refused) in [
            (GROUP, &missing, true),
            (GROUP, &Availability::default(), false),
            ("sg-0000000b", &missing, false),
            ("sg-1", &Availability::default(), true),
            // The scheduler lets it wait, and interfaces come and go.
            (GROUP, &full, false),
        ] {
            let policies = policies(&[("all", everything(&[group]))]);
            let account = ServiceAccount::Labels(&labels);
            let mut decision = decide(&pod, &policies, account, strict);
            decision.consider(availability, &pod, strict);
            let is_refused = matches!(&decision.denial, Some(Denial::UnusableGroups(groups))
                if groups.len() == 1 && decision.concerns.is_empty());
            assert_eq!(is_refused, refused, "{group} {availability:?}");
            assert_eq!(
                decision.changes.is_empty(),
                refused,
                "{group} {availability:?}"
            );
        }
    }

    #[test]
    fn fargate_pod_gets_its_groups_in_the_annotation() {
        let all = policies(&[("all", everything(&["sg-0000000b", "sg-0000000a"]))]);
        let none = policies(&[]);
        let wanted = Change::SetFargateGroups("sg-0000000b,sg-0000000a".into());
        for (annotations, policies, changes) in [
            (json!(null), &all, vec![wanted.clone()]),
            (
                json!({"fargate.amazonaws.com/pod-sg": "sg-99999999"}),
                &all,
                vec![wanted],
            ),
            (
                json!({"fargate.amazonaws.com/pod-sg": "sg-0000000b,sg-0000000a"}),
                &all,
                vec![],
            ),
            (json!(null), &none, vec![]),
            (json!({"other": "annotation"}), &none, vec![]),
            (
                json!({"fargate.amazonaws.com/pod-sg": "sg-99999999"}),
                &none,
                vec![Change::RemoveFargateGroups],
            ),
        ] {
            let labels = json!({"eks.amazonaws.com/fargate-profile": "default"});
            let metadata = json!({"labels": labels, "annotations": annotations});
            let decision = decide_json(&pod(metadata, json!({})), policies, Settings::default());
            assert_eq!(decision.changes, changes, "{annotations}");
        }
    }

    #[test]
    fn pod_that_is_not_on_fargate_brings_no_groups_along() {
        let metadata = json!({"annotations": {"fargate.amazonaws.com/pod-sg": "sg-99999999"}});
        let all = policies(&[("all", everything(&["sg-0000000a"]))]);
        for (policies, further) in [(&policies(&[]), 0), (&all, 1)] {
            let pod = pod(metadata.clone(), json!({}));
            let decision = decide_json(&pod, policies, Settings::default());
            assert_eq!(decision.changes[0], Change::RemoveFargateGroups);
            assert_eq!(decision.changes.len(), 1 + further);
        }
    }

    #[test]
    fn groups_are_united_by_policy_name_then_by_place() {
        let policies = policies(&[
            ("b", everything(&["sg-00000003", "sg-00000001"])),
            (
                "a",
                everything(&["sg-00000002", "sg-00000003", "sg-00000003"]),
            ),
            (
                "c",
                everything(&["sg-00000004", "sg-00000005", "sg-00000006"]),
            ),
        ]);
        let decision = decide_json(&pod(json!({}), json!({})), &policies, Settings::default());

        let ids: Vec<_> = decision.group_ids.iter().map(|id| id.as_str()).collect();
        let last = ["sg-00000001", "sg-00000004", "sg-00000005", "sg-00000006"];
        assert_eq!(ids[..2], ["sg-00000002", "sg-00000003"]);
        assert_eq!(ids[2..], last);
        assert!(matches!(decision.concerns[..], [Concern::TooManyGroups(_)]));
    }

    #[test]
    fn invalid_policy_is_named_and_the_others_count() {
        let policies = policies(&[
            ("all", everything(&[GROUP])),
            ("broken", json!({"securityGroups": {"groupIds": [GROUP]}})),
        ]);
        let decision = decide_json(&pod(json!({}), json!({})), &policies, Settings::default());

        assert_eq!(decision.policies.len(), 1);
        let [Concern::IgnoredPolicy(ignored)] = decision.concerns[..] else {
            panic!("{:?}", decision.concerns)
        };
        assert_eq!(&*ignored.name, "broken");
    }

    #[test]
    fn malformed_group_keeps_its_pod_from_starting_without_groups() {
        let policies = policies(&[("all", everything(&["sg-typo"]))]);
        let decision = decide_json(&pod(json!({}), json!({})), &policies, Settings::default());

        assert_eq!(decision.changes, [Change::RequestBranchInterface]);
        assert!(matches!(
            decision.concerns[..],
            [Concern::MalformedGroup(_, _)]
        ));
    }

    #[test]
    fn missing_service_account_matters_only_where_a_policy_asks_for_it() {
        let groups = json!({"groupIds": [GROUP]});
        let by_account = |pod_selector: Value| {
            json!({
                "podSelector": pod_selector,
                "serviceAccountSelector": {},
                "securityGroups": groups
            })
        };
        let labels = json!({"matchLabels": {"app": "db"}});
        let json = pod(json!({"labels": {"app": "web"}}), json!({})).to_string();
        let pod: Pod = serde_json::from_str(&json).unwrap();
        for (spec, denied) in [
            (by_account(json!(null)), true),
            (by_account(json!({})), true),
            (by_account(labels), false),
            (everything(&[GROUP]), false),
        ] {
            let policies = policies(&[("policy", spec.clone())]);
            let missing = ServiceAccount::<BTreeMap<String, String>>::Missing;
            let decision = decide(&pod, &policies, missing, Settings::default());
            let denial = decision.denial;
            assert_eq!(
                matches!(denial, Some(Denial::MissingServiceAccount(_))),
                denied,
                "{spec}"
            );
        }
    }

    #[test]
    fn what_a_pod_still_lacks_at_the_end_is_a_denial() {
        let requested = json!([{"resources": {"limits": {"vpc.amazonaws.com/pod-eni": "1"}}}]);
        let label = json!({"eks.amazonaws.com/fargate-profile": "default"});
        let with_groups = |ids: &str| json!({"labels": label, "annotations": {"fargate.amazonaws.com/pod-sg": ids}});
        let on_fargate = json!({"schedulerName": "fargate-scheduler"});
        let set = Settings {
            grace_period: GracePeriodPolicy::Set,
            ..Settings::default()
        };
        let warn = Settings {
            grace_period: GracePeriodPolicy::Warn,
            ..Settings::default()
        };
        let at_once = json!({"containers": requested, "terminationGracePeriodSeconds": 0});
        for (metadata, spec, settings, denial) in [
            (json!({}), json!({"containers": requested}), set, ""),
            (json!({}), json!({}), set, "NoRequest"),
            (json!({}), at_once.clone(), set, "GracePeriodZero"),
            (json!({}), at_once, warn, ""),
            (json!({}), json!({"hostNetwork": true}), set, ""),
            (with_groups(GROUP), on_fargate.clone(), set, ""),
            (
                with_groups("sg-9"),
                on_fargate.clone(),
                set,
                "NotItsFargateGroups(\"sg-0123abcd\")",
            ),
            (
                json!({"labels": label}),
                on_fargate.clone(),
                set,
                "NotItsFargateGroups(\"sg-0123abcd\")",
            ),
            (with_groups(GROUP), json!({}), set, "NotOnFargate"),
            (
                with_groups(GROUP),
                json!({"schedulerName": "fargate-scheduler", "nodeName": "node"}),
                set,
                "NotOnFargate",
            ),
        ] {
            let all = policies(&[("all", everything(&[GROUP]))]);
            let json = pod(metadata, spec).to_string();
            let pod: Pod = serde_json::from_str(&json).unwrap();
            let labels = BTreeMap::new();
            let account = ServiceAccount::Labels(&labels);
            let decision = check(&pod, &all, account, settings);
            let denied = decision.denial.map(|denial| format!("{denial:?}"));
            assert_eq!(denied.unwrap_or_default(), denial, "{json}");
            assert!(decision.changes.is_empty() && decision.concerns.is_empty());
        }
    }

    #[test]
    fn fargates_annotation_is_refused_where_nobody_is_given_groups_by_it() {
        let label = json!({"eks.amazonaws.com/fargate-profile": "default"});
        let annotations = json!({"fargate.amazonaws.com/pod-sg": "sg-9"});
        for (metadata, denied) in [
            (json!({"labels": label}), false),
            (json!({"labels": label, "annotations": annotations}), true),
            (json!({"annotations": annotations}), true),
            (json!({}), false),
        ] {
            let json = pod(metadata, json!({})).to_string();
            let pod: Pod = serde_json::from_str(&json).unwrap();
            let (none, labels) = (policies(&[]), BTreeMap::new());
            let account = ServiceAccount::Labels(&labels);
            let decision = check(&pod, &none, account, Settings::default());
            let denial = decision.denial;
            let is_denied = matches!(denial, Some(Denial::FargateGroupsUnselected));
            assert_eq!(is_denied, denied, "{json}");
            assert_eq!(denial.is_some(), denied, "{json}");
        }
    }
}
