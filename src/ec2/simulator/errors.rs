//! EC2's errors: codes and messages as EC2 words them.
//!
//! The codes are those of the EC2 API Reference, page "Error codes for the Amazon EC2 API".

use std::borrow::Cow;
use std::fmt::Display;

use super::ids::{GroupId, InterfaceId};

/// An error as EC2 answers it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Ec2Error {
    /// Such as `InvalidSubnetID.NotFound`.
    pub code: Cow<'static, str>,
    /// What people read.
    pub message: String,
}

impl Ec2Error {
    /// An error with any code.
    pub fn new(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
        }
    }

    /// The HTTP status that EC2 sends such an error with.
    pub fn http_status(&self) -> u16 {
        match &*self.code {
            "RequestLimitExceeded" | "Unavailable" | "ServiceUnavailable" => 503,
            "InternalError" | "InternalFailure" | "InsufficientInstanceCapacity" => 500,
            "UnauthorizedOperation" => 403,
            "AuthFailure" => 401,
            "DryRunOperation" => 412,
            _ => 400,
        }
    }

    /// The message that EC2 sends with a code, as far as it does not depend on the call.
    pub fn usual_message(code: &str) -> &'static str {
        match code {
            "RequestLimitExceeded" => "Request limit exceeded.",
            "InternalError" => "An internal error has occurred",
            "ServiceUnavailable" | "Unavailable" => {
                "The service is unavailable. Please try again shortly."
            }
            "InsufficientFreeAddressesInSubnet" => {
                "The specified subnet does not have enough free addresses to satisfy the request."
            }
            "UnauthorizedOperation" => "You are not authorized to perform this operation.",
            "NetworkInterfaceLimitExceeded" => {
                "Maximum number of network interfaces has been reached."
            }
            "SecurityGroupsPerInterfaceLimitExceeded" => {
                "The maximum number of security groups per interface has been reached."
            }
            _ => "The request failed because the simulator was told to fail it.",
        }
    }

    fn usual(code: &'static str) -> Self {
        Self::new(code, Self::usual_message(code))
    }

    pub(super) fn invalid_action(action: &str) -> Self {
        let message = format!("The action {action} is not valid for this web service.");
        Self::new("InvalidAction", message)
    }

    pub(super) fn missing_parameter(name: &str) -> Self {
        let message = format!("The request must contain the parameter {name}");
        Self::new("MissingParameter", message)
    }

    pub(super) fn unknown_parameter(name: &str) -> Self {
        let message = format!("The parameter {name} is not recognized by this simulator");
        Self::new("UnknownParameter", message)
    }

    pub(super) fn invalid_value(message: impl Into<String>) -> Self {
        Self::new("InvalidParameterValue", message)
    }

    pub(super) fn bad_value(value: impl Display, name: &str, expected: &str) -> Self {
        Self::invalid_value(format!(
            "Value ({value}) for parameter {name} is invalid. {expected}"
        ))
    }

    pub(super) fn invalid_combination(message: impl Into<String>) -> Self {
        Self::new("InvalidParameterCombination", message)
    }

    pub(super) fn incorrect_state(message: impl Into<String>) -> Self {
        Self::new("IncorrectState", message)
    }

    /// The group of a call that is about groups.
    pub(super) fn group_not_found(id: &GroupId) -> Self {
        let message = format!("The security group '{id}' does not exist");
        Self::new("InvalidGroup.NotFound", message)
    }

    /// The group of a call that is about interfaces.
    pub(super) fn interface_group_not_found(id: &GroupId) -> Self {
        let message = format!("The securityGroup ID '{id}' does not exist");
        Self::new("InvalidSecurityGroupID.NotFound", message)
    }

    pub(super) fn different_networks() -> Self {
        let message = "You have specified two resources that belong to different networks.";
        Self::new("InvalidGroup.NotFound", message)
    }

    pub(super) fn too_many_groups() -> Self {
        Self::usual("SecurityGroupsPerInterfaceLimitExceeded")
    }

    pub(super) fn no_free_addresses() -> Self {
        Self::usual("InsufficientFreeAddressesInSubnet")
    }

    pub(super) fn too_many_interfaces() -> Self {
        Self::usual("NetworkInterfaceLimitExceeded")
    }

    pub(super) fn interface_in_use(id: &InterfaceId) -> Self {
        let message = format!("Network interface '{id}' is currently in use.");
        Self::new("InvalidNetworkInterface.InUse", message)
    }

    pub(super) fn attached_elsewhere(id: &InterfaceId) -> Self {
        let message = format!("Interface: [{id}] in use.");
        Self::new("InvalidNetworkInterface.InUse", message)
    }

    pub(super) fn throttled() -> Self {
        Self::usual("RequestLimitExceeded")
    }

    pub(super) fn dry_run() -> Self {
        let message = "Request would have succeeded, but DryRun flag is set.";
        Self::new("DryRunOperation", message)
    }

    pub(super) fn other_parameters() -> Self {
        let message = "Arguments on this idempotent request are inconsistent with arguments \
                       used in previous request(s).";
        Self::new("IdempotentParameterMismatch", message)
    }

    pub(super) fn unauthorized(action: &str, account: &str, region: &str) -> Self {
        let message = format!(
            "You are not authorized to perform this operation. User: \
             arn:aws:iam::{account}:user/simulator is not authorized to perform: ec2:{action} \
             on resource: arn:aws:ec2:{region}:{account}:* because no identity-based policy \
             allows the ec2:{action} action"
        );
        Self::new("UnauthorizedOperation", message)
    }
}
