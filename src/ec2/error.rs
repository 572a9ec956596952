//! Why a call to EC2 failed, and what that means for who made it.

use std::fmt;

/// A call to EC2 that failed.
///
/// Whether it took effect is not known unless its class or `had_no_effect` says so.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{call}: {code}: {message}")]
pub struct Ec2Error {
    /// The action, such as `CreateNetworkInterface`.
    pub call: &'static str,
    /// What it means.
    pub class: ErrorClass,
    /// EC2's code; for a call without an answer [`NO_ANSWER`], for one that could not even be
    /// signed [`NO_CREDENTIALS`], for one that nobody knows where to send [`NO_REGION`].
    pub code: String,
    /// EC2's words, and what to do where they don't say it.
    pub message: String,
    /// Whether EC2 has certainly done nothing of what was asked for: it was turned away, or
    /// never sent, and there was no other attempt.
    pub had_no_effect: bool,
}

/// The code of a call that got no answer: none in time, a connection that was refused or
/// broke off, an answer that can't be read.
pub const NO_ANSWER: &str = "NoAnswer";

/// The code of a call that was never sent, because there are no credentials to sign it with.
pub const NO_CREDENTIALS: &str = "NoCredentials";

/// The code of a call that was never sent, because no region is known to send it to.
pub const NO_REGION: &str = "NoRegion";

/// The code of a call that was not sent because its process may change nothing any more.
pub const NOT_SENT: &str = "NotSent";

/// Codes that speak of EC2's own troubles. From the section on server errors of the page
/// that [`ErrorClass`] names.
const INSIDE_EC2: [&str; 7] = [
    "InternalError",
    "InternalFailure",
    "RequestTimeout",
    "RequestTimeoutException",
    "ServerInternal",
    "ServiceUnavailable",
    "Unavailable",
];

impl Ec2Error {
    /// A failure with the class of its code.
    pub fn new(call: &'static str, code: impl Into<String>, message: impl Into<String>) -> Self {
        let code = code.into();
        let class = classify(&code);
        Self {
            call,
            class,
            had_no_effect: class == ErrorClass::Throttled || code == NO_REGION || code == NOT_SENT,
            code,
            message: message.into(),
        }
    }

    /// Whether it tells something about what was asked for, rather than only that EC2 (or the
    /// way to it) can't deal with any call now.
    pub fn is_conclusive(&self) -> bool {
        self.class != ErrorClass::Throttled
            && self.code != NO_ANSWER
            && self.code != NO_REGION
            && !INSIDE_EC2.contains(&self.code.as_str())
    }
}

/// What a failure means.
///
/// Codes are those of the Amazon EC2 API Reference, "Error codes for the Amazon EC2 API".
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ErrorClass {
    /// It may go well the next time: no answer, an error inside of EC2, a state that passes.
    Retry,
    /// More calls than EC2 takes.
    Throttled,
    /// Something that the call needs is not there: a security group, a subnet.
    Missing,
    /// What the call is about is not there (any more).
    Gone,
    /// The role may not make this call, or there is none.
    Forbidden,
    /// A limit is reached: addresses of a subnet, interfaces of an account or an instance.
    Full,
    /// The call itself is wrong.
    Bug,
}

/// What an error code means; [`ErrorClass::Bug`] for one that is not known here.
pub fn classify(code: &str) -> ErrorClass {
    match code {
        "IdempotentParameterMismatch"
        | "IncorrectInstanceState"
        | "IncorrectState"
        | "InvalidNetworkInterface.InUse"
        | "OperationNotPermitted"
        | NO_ANSWER
        | NO_REGION
        | NOT_SENT => ErrorClass::Retry,

        "BandwidthLimitExceeded"
        | "EC2ThrottledException"
        | "RequestLimitExceeded"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "SlowDown"
        | "ThrottledException"
        | "TooManyRequestsException" => ErrorClass::Throttled,

        // People write ids of groups and subnets; one that is malformed names nothing.
        "InvalidGroup.NotFound"
        | "InvalidGroupId.Malformed"
        | "InvalidSecurityGroupID.NotFound"
        | "InvalidSecurityGroupId.Malformed"
        | "InvalidSubnetID.NotFound"
        | "InvalidSubnetId.Malformed"
        | "InvalidVpcID.NotFound" => ErrorClass::Missing,

        "InvalidAssociationID.NotFound"
        | "InvalidAttachmentID.NotFound"
        | "InvalidInstanceID.NotFound"
        | "InvalidNetworkInterfaceID.NotFound" => ErrorClass::Gone,

        "AccessDenied"
        | "AccessDeniedException"
        | "AuthFailure"
        | "Blocked"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "IncompleteSignature"
        | "InvalidClientTokenId"
        | "MissingAuthenticationToken"
        | "OptInRequired"
        | "PendingVerification"
        | "RequestExpired"
        | "SignatureDoesNotMatch"
        | "UnauthorizedOperation"
        | "UnrecognizedClientException"
        | NO_CREDENTIALS => ErrorClass::Forbidden,

        "AttachmentLimitExceeded"
        | "InsufficientFreeAddressesInSubnet"
        | "NetworkInterfaceLimitExceeded"
        | "PrivateIpAddressLimitExceeded"
        | "ResourceLimitExceeded"
        | "SecurityGroupsPerInterfaceLimitExceeded"
        | "TagLimitExceeded" => ErrorClass::Full,

        code if INSIDE_EC2.contains(&code) => ErrorClass::Retry,
        code if code.starts_with("Throttling") => ErrorClass::Throttled,
        _ => ErrorClass::Bug,
    }
}

impl ErrorClass {
    /// One word, for logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Throttled => "throttled",
            Self::Missing => "missing",
            Self::Gone => "gone",
            Self::Forbidden => "forbidden",
            Self::Full => "full",
            Self::Bug => "bug",
        }
    }
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_says_what_to_do() {
        use ErrorClass::*;
        for (code, class) in [
            ("NoAnswer", Retry),
            ("NoRegion", Retry),
            ("InternalError", Retry),
            ("InternalFailure", Retry),
            ("RequestTimeout", Retry),
            ("ServiceUnavailable", Retry),
            ("Unavailable", Retry),
            ("IncorrectState", Retry),
            ("InvalidNetworkInterface.InUse", Retry),
            ("IdempotentParameterMismatch", Retry),
            ("OperationNotPermitted", Retry),
            ("RequestLimitExceeded", Throttled),
            ("Throttling", Throttled),
            ("ThrottlingException", Throttled),
            ("RequestThrottled", Throttled),
            ("SlowDown", Throttled),
            ("EC2ThrottledException", Throttled),
            ("InvalidGroup.NotFound", Missing),
            ("InvalidSecurityGroupID.NotFound", Missing),
            ("InvalidSecurityGroupId.Malformed", Missing),
            ("InvalidSubnetID.NotFound", Missing),
            ("InvalidNetworkInterfaceID.NotFound", Gone),
            ("InvalidAssociationID.NotFound", Gone),
            ("InvalidAttachmentID.NotFound", Gone),
            ("InvalidInstanceID.NotFound", Gone),
            ("UnauthorizedOperation", Forbidden),
            ("AuthFailure", Forbidden),
            ("OptInRequired", Forbidden),
            ("RequestExpired", Forbidden),
            ("ExpiredToken", Forbidden),
            ("NoCredentials", Forbidden),
            ("NetworkInterfaceLimitExceeded", Full),
            ("AttachmentLimitExceeded", Full),
            ("InsufficientFreeAddressesInSubnet", Full),
            ("SecurityGroupsPerInterfaceLimitExceeded", Full),
            ("InvalidParameterValue", Bug),
            ("DryRunOperation", Bug),
            ("SomethingNew", Bug),
        ] {
            assert_eq!(classify(code), class, "{code}");
        }
    }

    #[test]
    fn answers_that_any_call_would_get_conclude_nothing() {
        let conclusive = |code| Ec2Error::new("AnyCall", code, "").is_conclusive();
        for code in [
            "NoAnswer",
            "NoRegion",
            "InternalError",
            "Unavailable",
            "SlowDown",
        ] {
            assert!(!conclusive(code), "{code}");
        }
        for code in [
            "IncorrectState",
            "InvalidGroup.NotFound",
            "NoCredentials",
            "X",
        ] {
            assert!(conclusive(code), "{code}");
        }
    }
}
