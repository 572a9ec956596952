//! The SDK's errors, in our words.

use std::error::Error;
use std::fmt::Write;

use aws_sdk_ec2::config::http::HttpResponse;
use aws_sdk_ec2::error::{ConnectorError, ProvideErrorMetadata, SdkError};

use super::gate::Closed;
use crate::ec2::error::{Ec2Error, ErrorClass, NO_ANSWER, NO_CREDENTIALS, NOT_SENT};

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
    // The SDK's own errors name only their kind; what they were made of tells the rest.
    let causes = |error: Option<&(dyn Error + 'static)>| error.map(reasons).unwrap_or_default();
    match &error {
        SdkError::ServiceError(refused) => {
            let meta = refused.err();
            let status = refused.raw().status().as_u16();
            refusal(call, status, meta.code(), meta.message())
        }
        SdkError::ConstructionFailure(_) => {
            let message = format!("it can't be written: {}", causes(error.source()));
            Ec2Error::new(call, "InvalidCall", message)
        }
        SdkError::DispatchFailure(unsent) => {
            let connector = unsent.as_connector_error();
            if connector.is_some_and(|error| Closed::is_cause_of(error)) {
                return Ec2Error::new(call, NOT_SENT, Closed.to_string());
            }
            let causes = causes(connector.and_then(Error::source));
            // The SDK finds credentials only when it is about to send. Failures of the
            // connection are of its other kinds, or come from hyper.
            if unsent.is_other() && !connector.is_some_and(is_from_hyper) {
                let message = format!("no AWS credentials: {causes}; {GIVE_CREDENTIALS}");
                return Ec2Error::new(call, NO_CREDENTIALS, message);
            }
            let message = format!("EC2 can't be reached, or the connection broke: {causes}");
            Ec2Error::new(call, NO_ANSWER, message)
        }
        SdkError::TimeoutError(_) => {
            let message = format!("EC2 did not answer in time: {}", causes(error.source()));
            Ec2Error::new(call, NO_ANSWER, message)
        }
        _ => {
            let message = format!("EC2's answer can't be read: {}", causes(error.source()));
            Ec2Error::new(call, NO_ANSWER, message)
        }
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

fn is_from_hyper(error: &ConnectorError) -> bool {
    causes_of(error).any(|cause| cause.is::<hyper::Error>())
}

fn causes_of<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
}

/// The error and what caused it, each said once.
fn reasons(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in causes_of(error) {
        let words = cause.to_string();
        if !text.contains(&words) {
            let _ = write!(text, ": {words}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_keeps_the_words_of_ec2_and_says_what_to_do_about_credentials() {
        let refused = |status, code, message| refusal("AnyCall", status, code, message);
        let error = refused(400, Some("InvalidGroup.NotFound"), Some("no such group"));
        assert_eq!(error.class, ErrorClass::Missing);
        assert_eq!(
            error.to_string(),
            "AnyCall: InvalidGroup.NotFound: no such group"
        );

        let error = refused(403, Some("UnauthorizedOperation"), Some("not you"));
        assert_eq!(error.class, ErrorClass::Forbidden);
        assert_eq!(error.message, "not you");

        let error = refused(400, Some("RequestExpired"), Some("too old"));
        assert_eq!(error.class, ErrorClass::Forbidden);
        assert_eq!(error.message, format!("too old; {CHECK_CREDENTIALS}"));
    }

    #[test]
    fn unknown_troubles_of_the_server_pass_and_those_of_the_call_do_not() {
        let class = |status, code| refusal("AnyCall", status, code, None).class;
        assert_eq!(class(500, Some("SomethingNew")), ErrorClass::Retry);
        assert_eq!(class(400, Some("SomethingNew")), ErrorClass::Bug);
        assert_eq!(
            class(503, Some("RequestLimitExceeded")),
            ErrorClass::Throttled
        );
        assert_eq!(class(502, None), ErrorClass::Retry);
    }

    #[test]
    fn causes_are_told_once_each() {
        #[derive(Debug, thiserror::Error)]
        #[error("{words}")]
        struct Layer {
            words: &'static str,
            source: Option<Box<Layer>>,
        }
        let layer = |words, source| Some(Box::new(Layer { words, source }));
        let error = layer("refused", None);
        let error = layer("connect: refused", error);
        let error = layer("client error", error).unwrap();
        assert_eq!(reasons(&error), "client error: connect: refused");
    }
}
