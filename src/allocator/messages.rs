//! What people are told: on the pod, on the node, in the log.

use super::calls::CallError;
use crate::ec2::error::ErrorClass;

/// The managed policy that lets a role do the allocator's work.
const MANAGED_POLICY: &str = "AmazonEKSVPCResourceController";

/// A failure with its reason and the way out. `policies` gives the names of the policies
/// that name a group.
pub fn failure(error: &CallError, policies: impl Fn(&str) -> Vec<String>) -> String {
    let said = format!("{}: {}", error.code, error.message.trim_end_matches('.'));
    let way_out = match (error.class, error.code.as_str()) {
        (ErrorClass::Missing, _) => match group_in(&error.message) {
            Some(id) => missing_group(id, &policies(id)),
            None => "correct what names it; the pod waits".to_owned(),
        },
        (ErrorClass::Forbidden, _) if error.cause.call.contains(' ') => {
            "give the allocator's service account the rights of manifests/base/rbac.yaml".to_owned()
        }
        (ErrorClass::Forbidden, _) => format!(
            "the allocator's role needs the managed policy {MANAGED_POLICY} and the statement \
             in docs/allocator.md; it goes on by itself once they are granted"
        ),
        (ErrorClass::Full, "InsufficientFreeAddressesInSubnet") => format!(
            "{} has no free address: free some, or let an ENIConfig name another subnet",
            error.cause.scope
        ),
        (ErrorClass::Full, "NetworkInterfaceLimitExceeded") => {
            "delete interfaces that nobody needs, or ask AWS for a higher quota".to_owned()
        }
        (ErrorClass::Full, "SecurityGroupsPerInterfaceLimitExceeded") => {
            "name fewer groups in the policies that select the pod, or ask AWS for a higher quota"
                .to_owned()
        }
        (ErrorClass::Full, _) => "it goes on by itself when there is room".to_owned(),
        (ErrorClass::Throttled, _) => {
            "EC2 takes fewer calls than are wanted; it goes on by itself".to_owned()
        }
        (ErrorClass::Retry | ErrorClass::Gone, _) => "it is tried again".to_owned(),
        (ErrorClass::Bug, _) => {
            "it is tried again, but will hardly go well by itself; please report it".to_owned()
        }
    };
    format!("{} failed with {said}; {way_out}", error.cause.call)
}

fn missing_group(id: &str, policies: &[String]) -> String {
    let named = match policies {
        [] => "the node's settings name it".to_owned(),
        [one] => format!("SecurityGroupPolicy {one:?} names it"),
        many => format!("SecurityGroupPolicies {} name it", many.join(", ")),
    };
    format!("{named}: create the group {id} or correct the id")
}

/// The security group that an error of EC2 names.
pub fn group_in(message: &str) -> Option<&str> {
    let start = message.find("sg-")?;
    let id = &message[start..];
    let end = id.find(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    Some(&id[..end.unwrap_or(id.len())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocator::retry::Cause;
    use crate::allocator::state::Failed;

    fn error(call: &'static str, class: ErrorClass, code: &str, message: &str) -> CallError {
        CallError {
            cause: Cause {
                call,
                scope: "subnet-1".to_owned(),
            },
            class,
            failed: Failed::Unsure,
            code: code.to_owned(),
            message: message.to_owned(),
        }
    }

    #[test]
    fn every_failure_names_the_reason_and_the_way_out() {
        let create = "CreateNetworkInterface";
        for (error, expected) in [
            (
                error(
                    create,
                    ErrorClass::Missing,
                    "InvalidSecurityGroupID.NotFound",
                    "The securityGroup ID 'sg-0123abcd' does not exist",
                ),
                "CreateNetworkInterface failed with InvalidSecurityGroupID.NotFound: The \
                 securityGroup ID 'sg-0123abcd' does not exist; SecurityGroupPolicy \"db\" names \
                 it: create the group sg-0123abcd or correct the id",
            ),
            (
                error(
                    create,
                    ErrorClass::Forbidden,
                    "UnauthorizedOperation",
                    "No.",
                ),
                "CreateNetworkInterface failed with UnauthorizedOperation: No; the allocator's \
                 role needs the managed policy AmazonEKSVPCResourceController and the statement \
                 in docs/allocator.md; it goes on by itself once they are granted",
            ),
            (
                error("patch pod status", ErrorClass::Forbidden, "Forbidden", "no"),
                "patch pod status failed with Forbidden: no; give the allocator's service account the \
                 rights of manifests/base/rbac.yaml",
            ),
            (
                error(
                    create,
                    ErrorClass::Full,
                    "InsufficientFreeAddressesInSubnet",
                    "none",
                ),
                "CreateNetworkInterface failed with InsufficientFreeAddressesInSubnet: none; \
                 subnet-1 has no free address: free some, or let an ENIConfig name another subnet",
            ),
        ] {
            assert_eq!(failure(&error, |_| vec!["db".to_owned()]), expected);
        }
    }

    #[test]
    fn group_is_found_in_the_words_of_ec2() {
        assert_eq!(
            group_in("The securityGroup ID 'sg-1a' does not exist"),
            Some("sg-1a")
        );
        assert_eq!(group_in("sg-1"), Some("sg-1"));
        assert_eq!(group_in("The subnet ID 'subnet-1' does not exist"), None);
    }
}
