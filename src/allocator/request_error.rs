//! Why a request to the API server came to nothing.

use std::time::Duration;

use kube::Error;
use thiserror::Error as ThisError;
use tokio::time::timeout;

/// No answer, or one that is no success.
#[derive(Debug, ThisError)]
pub(super) enum RequestError {
    /// The API server did not answer in time.
    #[error("the API server did not answer in time")]
    TimedOut,
    /// The API server could not be asked, or refused to answer.
    #[error("{}", in_words(.0))]
    Failed(#[from] Error),
}

/// What the API server says, without the rest of its answer.
fn in_words(error: &Error) -> String {
    match error {
        Error::Api(status) if status.code == 403 => format!(
            "{}; give the allocator's service account the rights of manifests/base/rbac.yaml",
            status.message
        ),
        Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

impl RequestError {
    /// Whether the object has another version than the request names, or exists already.
    pub(super) fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// Whether the object, or the namespace that it is to be in, does not exist.
    pub(super) fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    fn code(&self) -> Option<u16> {
        match self {
            Self::Failed(Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }
}

/// The answer to a request, if it comes in time.
pub(super) async fn in_time<T>(
    patience: Duration,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, RequestError> {
    match timeout(patience, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(RequestError::TimedOut),
    }
}
