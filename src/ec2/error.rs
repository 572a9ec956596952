//! Why a call to EC2 failed, and what that means for who made it.

use std::fmt;

/// A call to EC2 that failed.
///
/// Whether it took effect is not known unless its class says so.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{call}: {code}: {message}")]
pub struct Ec2Error {
    /// The action, such as `CreateNetworkInterface`.
    pub call: &'static str,
    /// What it means.
    pub class: ErrorClass,
    /// EC2's code; for a call without an answer `NoAnswer`.
    pub code: String,
    /// EC2's words.
    pub message: String,
}

/// What a failure means.
///
/// Codes are those of the Amazon EC2 API Reference, "Error codes for the Amazon EC2 API".
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum ErrorClass {
    /// It may go well the next time: no answer, an error inside of EC2, a state that passes.
    Retry,
    /// More calls than EC2 takes.
    Throttled,
    /// Something that the call needs is not there: a security group, a subnet.
    Missing,
    /// What the call is about is not there (any more).
    Gone,
    /// The role may not make this call.
    Forbidden,
    /// A limit is reached: addresses of a subnet, interfaces of an account or an instance.
    Full,
    /// The call itself is wrong.
    Bug,
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Retry => "retry",
            Self::Throttled => "throttled",
            Self::Missing => "missing",
            Self::Gone => "gone",
            Self::Forbidden => "forbidden",
            Self::Full => "full",
            Self::Bug => "bug",
        })
    }
}
