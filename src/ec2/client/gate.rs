//! The last moment at which a call that changes something can be held back.
//!
//! Whether this process may still change anything is asked where the connection takes the
//! request's body, and no earlier: finding credentials, signing and connecting come before,
//! and a process can be stopped for any length of time meanwhile. A request whose body never
//! comes changes nothing.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use aws_sdk_ec2::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_ec2::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_ec2::error::BoxError;
use aws_smithy_types::body::SdkBody;
use axum::body::{Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};

/// Whether a call that changes something may be sent now.
#[derive(Clone)]
pub(super) struct Gate(Arc<dyn Fn() -> bool + Send + Sync>);

/// The gate was closed when the request was about to be sent.
#[derive(Debug, thiserror::Error)]
#[error("this process may not change anything (any more)")]
pub(super) struct Closed;

impl Gate {
    pub(super) fn new(is_open: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(is_open))
    }

    pub(super) fn pass(&self) -> Result<(), Closed> {
        if (self.0)() { Ok(()) } else { Err(Closed) }
    }
}

impl Default for Gate {
    /// One that is always open.
    fn default() -> Self {
        Self::new(|| true)
    }
}

impl Closed {
    /// Whether this is what an error came from.
    pub(super) fn is_cause_of(error: &(dyn Error + 'static)) -> bool {
        std::iter::successors(Some(error), |&error| error.source()).any(|cause| cause.is::<Self>())
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Gate")
    }
}

impl Intercept for Gate {
    fn name(&self) -> &'static str {
        "Gate"
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let body = context.request_mut().body_mut();
        // The Query protocol names the action first, in a body that is there as a whole.
        let Some(bytes) = body.bytes() else {
            return Ok(());
        };
        if !bytes.starts_with(b"Action=Describe") {
            let gated = Gated {
                gate: self.clone(),
                body: Some(Bytes::copy_from_slice(bytes)),
            };
            *body = SdkBody::from_body_1_x(gated);
        }
        Ok(())
    }
}

/// A body that can be had only while the gate is open.
struct Gated {
    gate: Gate,
    body: Option<Bytes>,
}

impl HttpBody for Gated {
    type Data = Bytes;
    type Error = Closed;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Closed>>> {
        let frame = self.body.take().map(|body| {
            self.gate.pass()?;
            Ok(Frame::data(body))
        });
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let length = self.body.as_ref().map_or(0, Bytes::len);
        SizeHint::with_exact(u64::try_from(length).unwrap_or(u64::MAX))
    }
}
