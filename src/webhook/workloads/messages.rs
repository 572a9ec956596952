//! What whoever writes a workload is told of its pods, in the user's words.

use crate::policy::{Decision, Denial, Pod};
use crate::webhook::pods::messages::{concerns, explain, names, warning, way_out};
use crate::webhook::warnings::within_limits;

/// How a message calls the pods.
pub fn subject(kind: &str, name: &str) -> String {
    match name {
        "" => format!("each pod of this {kind}"),
        name => format!("each pod of {kind} {name:?}"),
    }
}

/// What would be said at the creation of a pod of the template, as warnings.
pub fn warnings(
    namespace: &str,
    subject: &str,
    pod: &Pod<'_>,
    decision: &Decision<'_>,
) -> Vec<String> {
    let refusal = decision.denial.iter().flat_map(|denial| {
        // Shorter than the refusal itself, of which a warning would lose the end.
        let policies = names(&decision.policies);
        let text = match denial {
            Denial::GracePeriodZero => format!(
                "{subject} will be refused: {policies} gives it security groups, but \
                 spec.terminationGracePeriodSeconds is 0; write 1 or more, 30 is the default"
            ),
            Denial::Unsupported(unsupported) => format!(
                "{subject} will be refused: {policies} gives it security groups, but {}. {}",
                explain(*unsupported),
                way_out(*unsupported)
            ),
            Denial::MissingServiceAccount(awaiting) => format!(
                "{subject} will be refused as long as namespace {namespace:?} has no \
                 ServiceAccount {:?}, which spec.serviceAccountName names: {} selects pods by its \
                 labels",
                pod.service_account_name(),
                names(awaiting)
            ),
            Denial::UnusableGroups(groups) => {
                let groups = groups.iter();
                return groups
                    .flat_map(|concern| warning(subject, decision, concern))
                    .collect();
            }
            // Refused at the last look at a pod only, for what other webhooks made of it.
            Denial::NoRequest
            | Denial::NotOnFargate
            | Denial::NotItsFargateGroups(_)
            | Denial::FargateGroupsUnselected => return Vec::new(),
        };
        vec![text]
    });
    within_limits(refusal.chain(concerns(subject, decision)).collect())
}
