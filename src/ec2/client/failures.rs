//! The SDK's errors, in our words.

use std::error::Error;
use std::fmt::Write;

use aws_sdk_ec2::config::http::HttpResponse;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};

use crate::ec2::error::{Ec2Error, ErrorClass, NO_ANSWER, NO_CREDENTIALS};

/// What to do where there are no credentials.
const GIVE_CREDENTIALS: &str = "give the pod's service account a role (IRSA or EKS Pod \
     Identity), the instance a role, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";

/// What to do where EC2 does not take the credentials.
const CHECK_CREDENTIALS: &str =
    "check that the role or key still exists and that this machine's clock is right";

/// What became of a call, as the SDK tells it.
pub(super) fn failure<E>(call: &'static str, error: SdkError<E, HttpResponse>) -> Ec2Error
where
    E: Error + ProvideErrorMetadata + 'static,
{
    match &error {
        SdkError::ServiceError(refused) => {
            let status = refused.raw().status().as_u16();
            let meta = refused.err();
            refusal(call, status, meta.code(), meta.message())
        }
        SdkError::ConstructionFailure(_) => Ec2Error::new(call, "InvalidCall", reasons(&error)),
        // The SDK finds credentials only when it is about to send. Failures of the connection
        // are of its other kinds, or say that they pass.
        SdkError::DispatchFailure(unsent) if unsent.is_other() && unsent.as_other().is_none() => {
            let message = format!("{}; {GIVE_CREDENTIALS}", reasons(&error));
            Ec2Error::new(call, NO_CREDENTIALS, message)
        }
        _ => Ec2Error::new(call, NO_ANSWER, reasons(&error)),
    }
}

fn refusal(call: &'static str, status: u16, code: Option<&str>, message: Option<&str>) -> Ec2Error {
    let Some(code) = code else {
        // From a proxy, or from what stands before EC2.
        let message = format!("an answer with HTTP status {status} that does not say why");
        return Ec2Error::new(call, NO_ANSWER, message);
    };
    let mut message = message.unwrap_or("EC2 does not say why").to_owned();
    let mut error = Ec2Error::new(call, code, "");
    // EC2 may well invent codes, but not that a server's error is the caller's.
    if error.class == ErrorClass::Bug && status >= 500 {
        error.class = ErrorClass::Retry;
    }
    let permission = ["UnauthorizedOperation", "AccessDenied", "OptInRequired"];
    if error.class == ErrorClass::Forbidden && !permission.contains(&code) {
        message = format!("{message}; {CHECK_CREDENTIALS}");
    }
    error.message = message;
    error
}

/// The error and what caused it, each said once.
fn reasons(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            let _ = write!(text, ": {words}");
        }
        cause = error.source();
    }
    text
}
