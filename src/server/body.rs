//! The body of a request: read whole, within bounds of length and of memory.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use tokio::time::{Instant, timeout, timeout_at};

use super::memory::{Held, Memory};

/// How long a body may take while others wait for its memory. One whose sender means it is
/// there much sooner.
const WHILE_WANTED: Duration = Duration::from_secs(1);

/// How much of a body that is too long is given to whoever has to answer it.
const BEGINNING: usize = 8 * 1024;

/// The most bytes of a body that are received without being kept, so that the client comes to
/// read the answer. The longest AdmissionReview is shorter: two objects of 3 MiB, which Go can
/// write with six times as many characters.
const MOST_PASSED: usize = 64 * 1024 * 1024;

/// In the extensions of a request instead of its body, which is longer than it may be: its
/// first bytes, as far as they came.
#[derive(Clone, Debug)]
pub struct TooLong(pub Bytes);

/// Why a body was not read.
#[derive(Debug)]
pub(super) enum Unread {
    /// It is longer than it may be.
    TooLong(TooLong),
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
        return Err(pass(pin!(body), Vec::new()).await);
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
            let read = if joined.is_empty() {
                &whole
            } else {
                &joined[..]
            };
            let mut beginning = read[..read.len().min(BEGINNING)].to_vec();
            beginning.extend_from_slice(&part[..part.len().min(BEGINNING - beginning.len())]);
            drop((whole, joined, held));
            return Err(pass(body, beginning).await);
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

/// Receives the rest of a body that is too long, and keeps only its beginning. One that does
/// not come is not waited for.
async fn pass<B>(mut body: Pin<&mut B>, mut beginning: Vec<u8>) -> Unread
where
    B: HttpBody<Data = Bytes>,
{
    let mut passed = 0;
    while passed <= MOST_PASSED {
        let frame = poll_fn(|context| body.as_mut().poll_frame(context));
        let Ok(Some(frame)) = timeout(WHILE_WANTED, frame).await else {
            break;
        };
        let Ok(frame) = frame else {
            return Unread::Broken;
        };
        if let Ok(part) = frame.into_data() {
            passed += part.len();
            beginning.extend_from_slice(&part[..part.len().min(BEGINNING - beginning.len())]);
        }
    }
    Unread::TooLong(TooLong(beginning.into()))
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
        assert!(matches!(unread, Unread::TooLong(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn beginning_of_a_body_that_is_too_long_is_kept_and_its_end_waited_for() {
        let memory = Memory::new(10);
        let long = "0123456789".repeat(BEGINNING / 5);
        let parts =
            [&long[..3], &long[3..9], &long[9..]].map(|part| Ok::<_, Infallible>(part.to_owned()));
        let in_parts = Body::from_stream(stream::iter(parts));
        let more = stream::pending::<Result<&str, Infallible>>();
        let rest_never_comes = Body::from_stream(stream::iter([Ok("0123456789a")]).chain(more));
        for (body, expected) in [
            (Body::from(long.clone()), &long[..BEGINNING]),
            (in_parts, &long[..BEGINNING]),
            (rest_never_comes, "0123456789a"),
        ] {
            let unread = read(body, 10, &memory, ADDRESS).await.unwrap_err();
            let Unread::TooLong(TooLong(beginning)) = unread else {
                panic!("{unread:?}");
            };
            assert_eq!(beginning, expected);
        }
        assert!(
            memory.take(ADDRESS, 10).now_or_never().is_some(),
            "all is given back"
        );
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
