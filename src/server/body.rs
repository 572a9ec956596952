//! The body of a request: read whole, within bounds of length and of memory.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;

use axum::body::{Bytes, HttpBody};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What may be taken for bodies: a share of the address that a connection comes from, and with
/// it of what there is for all.
#[derive(Clone, Debug)]
pub(super) struct Allowance {
    /// A permit for each byte.
    pub(super) of_address: Arc<Semaphore>,
    /// The same.
    pub(super) of_all: Arc<Semaphore>,
}

/// Memory for a body, given back when this is dropped.
#[derive(Debug)]
pub(super) struct Memory {
    _of_address: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

/// Why a body was not read.
#[derive(Debug)]
pub(super) enum Unread {
    /// It is longer than it may be, or says so beforehand.
    TooLong,
    /// The client broke it off, or it is malformed.
    Broken,
}

impl Allowance {
    /// Waits until there is so much memory, those of an address in their order.
    async fn take(&self, bytes: usize) -> Memory {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let take = async |memory: &Arc<Semaphore>| {
            let permit = memory.clone().acquire_many_owned(bytes).await;
            permit.expect("never closed")
        };
        // First one's own, so that nothing of all is held meanwhile.
        Memory {
            _of_address: take(&self.of_address).await,
            _of_all: take(&self.of_all).await,
        }
    }
}

/// Reads a body of at most so many bytes. The memory is taken before, as much as the client
/// announces or else as much as there may be, so that none of it is held while waiting for
/// more.
pub(super) async fn read<B>(
    body: B,
    limit: usize,
    allowance: &Allowance,
) -> Result<(Bytes, Option<Memory>), Unread>
where
    B: HttpBody<Data = Bytes>,
{
    let announced = body.size_hint();
    if announced.lower() > limit as u64 {
        return Err(Unread::TooLong);
    }
    if body.is_end_stream() {
        return Ok((Bytes::new(), None));
    }
    let exact = announced.exact().map(|length| length as usize);
    let memory = allowance.take(exact.unwrap_or(limit)).await;

    let mut body = pin!(body);
    let mut whole = Bytes::new();
    // Parts are put together in one piece: each of many small ones would cost more than its
    // bytes.
    let mut joined = Vec::new();
    while let Some(frame) = poll_fn(|context| body.as_mut().poll_frame(context)).await {
        let Ok(part) = frame.map_err(|_| Unread::Broken)?.into_data() else {
            continue;
        };
        if whole.len() + joined.len() + part.len() > limit {
            return Err(Unread::TooLong);
        }
        if joined.is_empty() && whole.is_empty() {
            whole = part;
            continue;
        }
        if joined.is_empty() {
            joined.reserve_exact(exact.unwrap_or(0).max(whole.len() + part.len()));
            joined.extend_from_slice(&whole);
            whole = Bytes::new();
        }
        joined.extend_from_slice(&part);
    }
    let whole = if joined.is_empty() {
        whole
    } else {
        joined.into()
    };
    Ok((whole, Some(memory)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use futures::{FutureExt, StreamExt, stream};
    use std::convert::Infallible;

    fn allowance(of_address: usize, of_all: &Arc<Semaphore>) -> Allowance {
        Allowance {
            of_address: Arc::new(Semaphore::new(of_address)),
            of_all: of_all.clone(),
        }
    }

    /// A body whose length nobody knows before.
    fn in_parts(parts: &'static [&'static str]) -> Body {
        Body::from_stream(stream::iter(parts).map(|part| Ok::<_, Infallible>(*part)))
    }

    #[tokio::test]
    async fn body_is_put_together_whatever_its_parts() {
        let allowance = allowance(10, &Arc::new(Semaphore::new(10)));
        for (body, expected) in [
            (Body::empty(), Ok("")),
            (Body::from("0123456789"), Ok("0123456789")),
            (Body::from("0123456789a"), Err(())),
            (in_parts(&[]), Ok("")),
            (in_parts(&["0123"]), Ok("0123")),
            (in_parts(&["", "01", "", "2", "3456"]), Ok("0123456")),
            (in_parts(&["01234", "5678", "9a"]), Err(())),
        ] {
            let read = read(body, 10, &allowance).await;
            let got = read.as_ref().map(|(bytes, _)| &bytes[..]).map_err(|_| ());
            assert_eq!(got, expected.map(str::as_bytes));
        }
        assert_eq!(allowance.of_all.available_permits(), 10, "all given back");
    }

    #[tokio::test]
    async fn body_that_announces_too_much_is_not_waited_for() {
        let nothing_left = allowance(0, &Arc::new(Semaphore::new(0)));
        let read = read(Body::from("0123456789a"), 10, &nothing_left);
        let unread = read.now_or_never().expect("no waiting").unwrap_err();
        assert!(matches!(unread, Unread::TooLong));
    }

    #[tokio::test]
    async fn bodies_of_one_address_wait_for_each_other_and_not_those_of_others() {
        let all = Arc::new(Semaphore::new(20));
        let (one, other) = (allowance(10, &all), allowance(10, &all));
        let body = || Body::from("01234567");
        let (_, held) = read(body(), 10, &one).await.unwrap();
        assert!(read(body(), 10, &one).now_or_never().is_none());
        let (_, others) = read(body(), 10, &other).now_or_never().unwrap().unwrap();
        let third = allowance(10, &all);
        assert!(
            read(body(), 10, &third).now_or_never().is_none(),
            "all is taken"
        );
        drop(held);
        assert!(read(body(), 10, &one).now_or_never().is_some());
        drop(others);
    }
}
