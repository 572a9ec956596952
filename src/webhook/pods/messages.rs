//! A decision's reasons in the user's words.
//!
//! Every text names the pod, the policy, the field and its value, why it matters and what
//! to write instead.

use std::fmt::Write;

use super::annotation_guard::Act;
use crate::api::SecurityGroupId;
use crate::api::names::{FARGATE_POD_SG, FARGATE_PROFILE, FARGATE_SCHEDULER, POD_ENI};
use crate::policy::{Concern, Decision, Denial, GroupsPerInterface, Pod, Policy, Unsupported};
use crate::webhook::cluster::Unknown;
use crate::webhook::warnings::within_limits;

/// The warnings of a decision, within the API server's limits.
pub fn warnings(pod: &Pod<'_>, decision: &Decision<'_>) -> Vec<String> {
    if decision.concerns.is_empty() {
        return Vec::new();
    }
    within_limits(concerns(&subject(pod), decision))
}

/// The concerns of a decision about a pod, or several that are alike, which is called `pod`.
pub fn concerns(pod: &str, decision: &Decision<'_>) -> Vec<String> {
    let concerns = decision.concerns.iter();
    concerns
        .flat_map(|concern| warning(pod, decision, concern))
        .collect()
}

/// A concern about a pod that is called `pod`.
pub fn warning(pod: &str, decision: &Decision<'_>, concern: &Concern<'_>) -> Vec<String> {
    let policies = || names(&decision.policies);
    let text = match concern {
        Concern::IgnoredPolicy(invalid) => {
            format!(
                "SecurityGroupPolicy \"{}\" is ignored: {}",
                invalid.name, invalid.problem
            )
        }
        Concern::MalformedGroup(policy, id) => format!(
            "SecurityGroupPolicy \"{}\": {:?} is not the id of a security group (sg- and 8 or 17 \
             hexadecimal digits); no interface can be had with it until that is mended",
            policy.name,
            id.as_str()
        ),
        Concern::MissingGroup(id) => format!(
            "{pod}: security group {id} of {} does not exist, and no interface can be had with \
             it; name one that exists in spec.securityGroups.groupIds",
            names(&naming(decision, id))
        ),
        Concern::GroupElsewhere {
            id,
            vpc_id,
            cluster_vpc_id,
        } => format!(
            "{pod}: security group {id} of {} is in {vpc_id}, and no interface can be had with it; \
             name one of the cluster's {cluster_vpc_id}",
            names(&naming(decision, id))
        ),
        Concern::NoFreeInterface(nodes) => format!(
            "{pod} stays Pending until a branch interface is free: pods have all of those of {} \
             ({}); delete such a pod, or add a node",
            match nodes {
                1 => "1 node".to_owned(),
                _ => format!("{nodes} nodes"),
            },
            policies()
        ),
        Concern::TooManyGroups(most) => return too_many_groups(pod, *most, decision),
        Concern::Unsupported(unsupported) => format!(
            "{pod} runs without its security groups: {} ({})",
            explain(*unsupported),
            policies()
        ),
        Concern::GracePeriodSet(seconds) => format!(
            "{pod}: spec.terminationGracePeriodSeconds was 0 and is set to {seconds}: its \
             interface ({}) is removed from the node only while the pod still exists",
            policies()
        ),
        Concern::GracePeriodZero => format!(
            "{pod}: spec.terminationGracePeriodSeconds is 0, so that its interface ({}) may \
             stay behind on the node; write 1 or more, 30 is the default",
            policies()
        ),
    };
    vec![text]
}

/// The pod's policies that name this group.
fn naming<'p>(decision: &Decision<'p>, id: &SecurityGroupId) -> Vec<&'p Policy> {
    let policies = decision.policies.iter().copied();
    policies
        .filter(|policy| policy.group_ids.contains(id))
        .collect()
}

fn too_many_groups(pod: &str, most: GroupsPerInterface, decision: &Decision<'_>) -> Vec<String> {
    let count = decision.group_ids.len();
    let mut lines = vec![format!(
        "{pod} gets {count} security groups; EC2 takes {most} for an interface \
         unless the account's quota was raised, and gives it none otherwise. They come from:"
    )];
    lines.extend(decision.policies.iter().map(|policy| {
        let ids: Vec<_> = policy.group_ids.iter().map(|id| id.as_str()).collect();
        format!(
            "SecurityGroupPolicy \"{}\": {}",
            policy.name,
            ids.join(", ")
        )
    }));
    lines
}

/// The message of a refusal.
pub fn denial(
    pod: &Pod<'_>,
    namespace: &str,
    decision: &Decision<'_>,
    denial: &Denial<'_>,
) -> String {
    let subject = subject(pod);
    let policies = names(&decision.policies);
    match denial {
        Denial::GracePeriodZero => format!(
            "{subject}: {policies} gives it security groups, but \
             spec.terminationGracePeriodSeconds is 0. The VPC CNI plugin asks the API server for \
             the pod's address while it removes the pod's network; a pod that is gone at once \
             leaves its network behind on the node. Write terminationGracePeriodSeconds: 1 or \
             more (30 is the default), or leave it out"
        ),
        Denial::Unsupported(unsupported) => format!(
            "{subject}: {policies} gives it security groups, but {}. {}, or change the policy so \
             that it does not select the pod",
            explain(*unsupported),
            way_out(*unsupported)
        ),
        Denial::MissingServiceAccount(awaiting) => format!(
            "{subject}: spec.serviceAccountName is {:?}, but namespace {namespace:?} has no such \
             ServiceAccount, and {} selects pods by its labels. Create the ServiceAccount first, \
             or name one that exists",
            pod.service_account_name(),
            names(awaiting)
        ),
        Denial::UnusableGroups(concerns) => unusable_groups(&subject, decision, concerns),
        Denial::NoRequest => format!(
            "{subject}: {policies} gives it security groups, but its first container does not request {POD_ENI}, \
             and without that it starts without them. sgp adds the request at the pod's creation: \
             another webhook has taken it away since then, or the pod was selected only later, by \
             a label of another webhook or by a new policy. Try again; if that is of no use, \
             write {POD_ENI}: \"1\" into limits and requests of the first container, or mend the \
             other webhook"
        ),
        Denial::NotOnFargate => format!(
            "{subject}: {policies} gives it security groups, but it has the label \
             {FARGATE_PROFILE} while spec.schedulerName is {:?}, not {FARGATE_SCHEDULER:?}: no \
             Fargate profile has taken it, and it would start on a node without its groups. Leave \
             the label out, or make a Fargate profile select the pod",
            pod.scheduler_name()
        ),
        Denial::NotItsFargateGroups(ids) => format!(
            "{subject}: {policies} gives it security groups, but its annotation {FARGATE_POD_SG} \
             is not {ids:?}, which sgp writes at its creation: another webhook has changed it \
             since then, or the policies have changed. Try again; if that is of no use, mend the \
             other webhook"
        ),
        Denial::FargateGroupsUnselected => format!(
            "{subject}: it has the annotation {FARGATE_POD_SG}, which is for pods that a Fargate \
             profile and a SecurityGroupPolicy of namespace {namespace:?} select. Leave it out, or \
             write such a policy"
        ),
    }
}

/// The message of a refusal for want of knowledge.
pub fn undecided(pod: &Pod<'_>, unknown: &Unknown) -> String {
    format!(
        "{}: it can't be decided whether a SecurityGroupPolicy selects it: {unknown}. Try again; \
         controllers do so by themselves",
        subject(pod)
    )
}

/// The message of a refusal of what this user is about to do with an annotation.
pub fn annotation(pod: &Pod<'_>, name: &str, act: Act, user: &str) -> String {
    let subject = subject(pod);
    let verb = match act {
        Act::BringAlong => "bring along",
        Act::Set => "set",
        Act::Change => "change",
        Act::Remove => "remove",
    };
    let (why, otherwise) = match name {
        FARGATE_POD_SG => (
            "Fargate takes the pod's security groups from it, which follow from the \
             SecurityGroupPolicies at its creation",
            "Leave it as it is; for other groups change the policies and create the pod anew",
        ),
        _ => (
            "the VPC CNI plugin takes the pod's interface from it, and only the allocator knows \
             which that is",
            "Leave it as it is; for another interface create the pod anew",
        ),
    };
    match act {
        Act::BringAlong => format!(
            "{subject}: user {user:?} may not {verb} the annotation {name}: {why}. Leave it out \
             of the pod or its template; the allocator writes it once the pod is on a node"
        ),
        Act::Set | Act::Change | Act::Remove => format!(
            "{subject}: user {user:?} may not {verb} the annotation {name}: {why}. {otherwise}. \
             If the allocator runs as this user, say so to the webhook with --allocator-user"
        ),
    }
}

/// The warning of a deletion by force.
pub fn forced_deletion(pod: &Pod<'_>) -> String {
    format!(
        "{}: deleted with a grace period of 0, it is gone before the VPC CNI plugin can ask for \
         its address, and its network stays behind on the node; leave --grace-period=0 out \
         unless the node is gone",
        subject(pod)
    )
}

/// The warnings of the first three groups.
fn unusable_groups(pod: &str, decision: &Decision<'_>, concerns: &[Concern<'_>]) -> String {
    const TOLD: usize = 3;
    let told = concerns
        .iter()
        .take(TOLD)
        .flat_map(|concern| warning(pod, decision, concern));
    let mut text = told.collect::<Vec<_>>().join(". ");
    if concerns.len() > TOLD {
        // Writing to a string can't fail.
        let _ = write!(
            text,
            ". And {} more groups can't be had",
            concerns.len() - TOLD
        );
    }
    text
}

/// How a message calls the pod, which may have no name yet.
pub fn subject(pod: &Pod<'_>) -> String {
    let given = |name: &Option<crate::policy::pod::Text<'_>>| {
        name.as_ref()
            .map(|name| name.as_str().to_owned())
            .filter(|name| !name.is_empty())
    };
    match (
        given(&pod.metadata.name),
        given(&pod.metadata.generate_name),
    ) {
        (Some(name), _) => format!("pod {name:?}"),
        (None, Some(prefix)) => format!("pod with generateName {prefix:?}"),
        (None, None) => "pod without a name".to_owned(),
    }
}

/// Why such a pod can have no branch interface.
pub fn explain(unsupported: Unsupported) -> &'static str {
    match unsupported {
        Unsupported::HostNetwork => {
            "spec.hostNetwork is true, and a pod on its node's network has no interface of its own"
        }
        Unsupported::Windows => {
            "spec.os.name or spec.nodeSelector[kubernetes.io/os] is \"windows\", and Windows pods \
             get no branch interface"
        }
    }
}

/// What to write instead.
pub fn way_out(unsupported: Unsupported) -> &'static str {
    match unsupported {
        Unsupported::HostNetwork => "Leave hostNetwork out",
        Unsupported::Windows => "Run the pod on Linux",
    }
}

/// The policies by name; the first three if there are many.
pub fn names(policies: &[&Policy]) -> String {
    const NAMED: usize = 3;
    let mut text = match policies {
        [_] => "SecurityGroupPolicy ".to_owned(),
        _ => "SecurityGroupPolicies ".to_owned(),
    };
    let named = policies
        .iter()
        .take(NAMED)
        .map(|policy| format!("\"{}\"", policy.name));
    text += &named.collect::<Vec<_>>().join(", ");
    if policies.len() > NAMED {
        // Writing to a string can't fail.
        let _ = write!(text, " and {} more", policies.len() - NAMED);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::warnings::WARNING_CHARACTERS;

    #[test]
    fn pod_is_called_by_the_name_that_it_has() {
        for (metadata, called) in [
            (r#"{"name": "web"}"#, r#"pod "web""#),
            (
                r#"{"name": "", "generateName": "web-"}"#,
                r#"pod with generateName "web-""#,
            ),
            ("{}", "pod without a name"),
        ] {
            let json = format!(r#"{{"metadata": {metadata}}}"#);
            assert_eq!(subject(&serde_json::from_str(&json).unwrap()), called);
        }
    }

    #[test]
    fn what_ec2_lacks_is_told_in_full_where_names_are_not_very_long() {
        let spec = serde_json::json!({
            "podSelector": {},
            "securityGroups": {"groupIds": ["sg-0123456789abcdef0"]}
        });
        let policy = Policy::parse("database-clients", &spec).unwrap();
        let pod = r#"{"metadata": {"generateName": "payment-7d4b9c6f5-"}}"#;
        let pod: Pod = serde_json::from_str(pod).unwrap();
        let decision = Decision {
            policies: vec![&policy],
            ..Decision::default()
        };
        let id = &policy.group_ids[0];
        for (concern, text) in [
            (
                Concern::MissingGroup(id),
                "pod with generateName \"payment-7d4b9c6f5-\": security group \
                 sg-0123456789abcdef0 of SecurityGroupPolicy \"database-clients\" does not exist, \
                 and no interface can be had with it; name one that exists in \
                 spec.securityGroups.groupIds",
            ),
            (
                Concern::GroupElsewhere {
                    id,
                    vpc_id: "vpc-00000000000000002",
                    cluster_vpc_id: "vpc-00000000000000001",
                },
                "pod with generateName \"payment-7d4b9c6f5-\": security group \
                 sg-0123456789abcdef0 of SecurityGroupPolicy \"database-clients\" is in \
                 vpc-00000000000000002, and no interface can be had with it; name one of the \
                 cluster's vpc-00000000000000001",
            ),
            (
                Concern::NoFreeInterface(1),
                "pod with generateName \"payment-7d4b9c6f5-\" stays Pending until a branch \
                 interface is free: pods have all of those of 1 node (SecurityGroupPolicy \
                 \"database-clients\"); delete such a pod, or add a node",
            ),
        ] {
            assert_eq!(warning(&subject(&pod), &decision, &concern), [text]);
            assert!(text.chars().count() <= WARNING_CHARACTERS, "{text}");
        }
    }

    #[test]
    fn refusal_tells_of_three_groups_and_counts_the_others() {
        let ids = ["sg-1", "sg-2", "sg-3", "sg-4", "sg-5"];
        let spec = serde_json::json!({"podSelector": {}, "securityGroups": {"groupIds": ids}});
        let policy = Policy::parse("all", &spec).unwrap();
        let concerns = policy.group_ids.iter().map(Concern::MissingGroup);
        let unusable = Denial::UnusableGroups(concerns.collect());
        let decision = Decision {
            policies: vec![&policy],
            ..Decision::default()
        };
        let text = denial(&Pod::default(), "shop", &decision, &unusable);
        for told in &ids[..3] {
            assert!(text.contains(&format!("security group {told} of SecurityGroupPolicy")));
        }
        assert!(!text.contains("sg-4"), "{text}");
        assert!(
            text.ends_with("groupIds. And 2 more groups can't be had"),
            "{text}"
        );
    }

    #[test]
    fn many_policies_are_counted_rather_than_listed() {
        let groups = serde_json::json!({"groupIds": ["sg-0123abcd"]});
        let spec = serde_json::json!({"podSelector": {}, "securityGroups": groups});
        let policies: Vec<_> = ["a", "b", "c", "d", "e"]
            .map(|name| Policy::parse(name, &spec).unwrap())
            .into();
        let all: Vec<&Policy> = policies.iter().collect();

        assert_eq!(names(&all[..1]), r#"SecurityGroupPolicy "a""#);
        assert_eq!(names(&all[..2]), r#"SecurityGroupPolicies "a", "b""#);
        assert_eq!(
            names(&all),
            r#"SecurityGroupPolicies "a", "b", "c" and 2 more"#
        );
    }
}
