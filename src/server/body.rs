//! The body of a request: read whole, within bounds of length and of memory.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use tokio::time::{Instant, timeout_at};

use super::memory::{Held, Memory};

/// How long a body may take while others wait for its memory. One whose sender means it is
/// there much sooner.
const WHILE_WANTED: Duration = Duration::from_secs(1);

/// Why a body was not read.
#[derive(Debug)]
pub(super) enum Unread {
    /// It is longer than it may be, or says so beforehand.
    TooLong,
    /// The client broke it off, or it is malformed.
    Broken,
    /// It took too long, or long while others waited for its memory.
    TooSlow,
    /// Too many requests of its address wait for memory already.
    TooMany,
}

/// Reads a body of at most so many bytes. The memory is taken before, as much as the client
/// announces or else as much as there may be, so that none of it is held while waiting for
/// more.
pub(super) async fn read<B>(
    body: B,
    limit: usize,
    memory: &Arc<Memory>,
    address: IpAddr,
) -> Result<(Bytes, Option<Held>), Unread>
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
    let held = memory.take(address, exact.unwrap_or(limit)).await;
    let held = held.ok_or(Unread::TooMany)?;

    let mut body = pin!(body);
    let mut whole = Bytes::new();
    // Parts are put together in one piece: each of many small ones would cost more than its
    // bytes.
    let mut joined = Vec::new();
    let mut next_look = Instant::now() + WHILE_WANTED;
    loop {
        let frame = poll_fn(|context| body.as_mut().poll_frame(context));
        let frame = match timeout_at(next_look, frame).await {
            Ok(Some(frame)) => frame,
            Ok(None) => break,
            Err(_) if memory.is_wanted() => return Err(Unread::TooSlow),
            Err(_) => {
                next_look += WHILE_WANTED;
                continue;
            }
        };
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
    Ok((whole, Some(held)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use futures::{FutureExt, StreamExt, stream};
    use std::convert::Infallible;
    use std::net::Ipv4Addr;
    use tokio::sync::oneshot;
    use tokio::time::timeout;

    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// A body whose length nobody knows before.
    fn in_parts(parts: &'static [&'static str]) -> Body {
        Body::from_stream(stream::iter(parts).map(|part| Ok::<_, Infallible>(*part)))
    }

    #[tokio::test]
    async fn body_is_put_together_whatever_its_parts() {
        let memory = Memory::new(10);
        for (body, expected) in [
            (Body::empty(), Ok("")),
            (Body::from("0123456789"), Ok("0123456789")),
            (Body::from("0123456789a"), Err(())),
            (in_parts(&[]), Ok("")),
            (in_parts(&["0123"]), Ok("0123")),
            (in_parts(&["", "01", "", "2", "3456"]), Ok("0123456")),
            (in_parts(&["01234", "5678", "9a"]), Err(())),
        ] {
            let read = read(body, 10, &memory, ADDRESS).await;
            let got = read.as_ref().map(|(bytes, _)| &bytes[..]).map_err(|_| ());
            assert_eq!(got, expected.map(str::as_bytes));
        }
        let all = memory.take(ADDRESS, 10).now_or_never();
        assert!(all.is_some(), "all is given back");
    }

    #[tokio::test]
    async fn body_that_announces_too_much_is_not_waited_for() {
        let memory = Memory::new(10);
        let _nothing_left = memory.take(ADDRESS, 10).await;
        let read = read(Body::from("0123456789a"), 10, &memory, ADDRESS);
        let unread = read.now_or_never().expect("no waiting").unwrap_err();
        assert!(matches!(unread, Unread::TooLong));
    }

    #[tokio::test(start_paused = true)]
    async fn slow_body_is_waited_for_only_while_nobody_wants_its_memory() {
        let memory = Memory::new(10);
        let (finish, finished) = oneshot::channel();
        let rest = stream::once(async { finished.await.map(|()| "rest") });
        let slow = Body::from_stream(stream::iter([Ok("0")]).chain(rest));
        let mut slow = pin!(read(slow, 10, &memory, ADDRESS));
        let long = Duration::from_secs(60);
        assert!(timeout(long, &mut slow).await.is_err(), "waited for");

        let mut other = pin!(memory.take(ADDRESS, 1));
        assert!(other.as_mut().now_or_never().is_none());
        let unread = slow.await.unwrap_err();
        assert!(matches!(unread, Unread::TooSlow), "{unread:?}");
        other.await;
        drop(finish);
    }
}
