//! Patience with slow answers, without waiting on a connection that is dead.
//!
//! EC2 takes several seconds over some calls, and now and then an answer never comes. Nobody
//! can tell one from the other in time, so a request without an answer is sent again beside
//! the first one (a hedged request), and the first answer counts.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, sleep, sleep_until};

use super::error::{Ec2Error, NO_ANSWER};

/// A request is sent again when its last attempt is so old.
///
/// Long enough that ordinary slowness (EC2's calls about interfaces take 0.1 to 2 seconds)
/// costs no second request; short enough that a pod that meets a dead connection still has
/// its interface within five seconds.
pub const AGAIN_AFTER: Duration = Duration::from_millis(2_500);

/// A call ends so long after its first attempt was sent, answered or not.
///
/// It bounds the attempts that are under way together at four. A caller that is told so looks
/// what has come of its call, which a call that waits for ever would keep it from.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(10);

/// Sends a request until it has an answer.
///
/// Each attempt first waits for its turn, which counts as nobody's slowness: the time begins
/// when the first attempt is sent. An attempt's failure that [concludes
/// nothing](Ec2Error::is_conclusive) counts only when no other attempt is under way.
///
/// An attempt may find that an earlier one had its effect: a deletion then fails because
/// there is nothing left to delete. Whoever calls without a client token expects that.
///
/// # Errors
///
/// What the attempt that counts failed with; after [`GIVE_UP_AFTER`] what the last one that
/// ended failed with, or [`NO_ANSWER`] if none ended.
pub async fn ask<T, W, A>(
    call: &'static str,
    turn: impl Fn() -> W,
    send: impl Fn() -> A,
) -> Result<T, Ec2Error>
where
    W: Future<Output = ()>,
    A: Future<Output = Result<T, Ec2Error>>,
{
    turn().await;
    let mut give_up = pin!(sleep_until(Instant::now() + GIVE_UP_AFTER));
    let mut under_way = FuturesUnordered::from_iter([send()]);
    let next_turn = || async {
        sleep(AGAIN_AFTER).await;
        turn().await;
    };
    let mut next = pin!(next_turn());
    let mut last_failure = None;
    let mut is_alone = true;
    let answer = loop {
        tokio::select! {
            biased;
            Some(answer) = under_way.next() => match answer {
                Err(error) if !error.is_conclusive() && !under_way.is_empty() => {
                    last_failure = Some(error);
                }
                answer => break answer,
            },
            () = &mut give_up => {
                break Err(last_failure.unwrap_or_else(|| no_answer(call)));
            }
            () = &mut next => {
                is_alone = false;
                under_way.push(send());
                next.set(next_turn());
            }
        }
    };
    answer.map_err(|mut error| {
        // What became of the other attempts, nobody knows.
        error.had_no_effect &= is_alone;
        error
    })
}

fn no_answer(call: &'static str) -> Ec2Error {
    let message = format!(
        "EC2 did not answer within {} seconds, although it was asked again every {} seconds",
        GIVE_UP_AFTER.as_secs(),
        AGAIN_AFTER.as_secs_f32()
    );
    Ec2Error::new(call, NO_ANSWER, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};

    /// What becomes of one attempt.
    type Attempt = (u64, Result<&'static str, &'static str>);
    const NEVER: Attempt = (1_000_000, Ok("never"));

    /// The answer or error code, when it came, and when attempts were sent, in milliseconds.
    async fn play(
        turns: &[u64],
        attempts: &[Attempt],
    ) -> (Result<&'static str, String>, u64, Vec<u64>) {
        let begin = Instant::now();
        let elapsed = || u64::try_from(begin.elapsed().as_millis()).unwrap();
        let sent = RefCell::new(Vec::new());
        let asked = Cell::new(0);
        let turn = || {
            let wait = turns.get(asked.get()).copied().unwrap_or(0);
            asked.set(asked.get() + 1);
            sleep(Duration::from_millis(wait))
        };
        let send = || {
            let (after, outcome) = attempts[sent.borrow().len()];
            sent.borrow_mut().push(elapsed());
            async move {
                sleep(Duration::from_millis(after)).await;
                outcome.map_err(|code| Ec2Error::new("AnyCall", code, ""))
            }
        };
        let answer = ask("AnyCall", turn, send).await;
        (answer.map_err(|error| error.code), elapsed(), sent.take())
    }

    #[tokio::test(start_paused = true)]
    async fn quick_answer_needs_one_request() {
        let played = play(&[], &[(2_499, Ok("first"))]).await;
        assert_eq!(played, (Ok("first"), 2_499, vec![0]));
    }

    #[tokio::test(start_paused = true)]
    async fn slow_answer_is_waited_for_beside_the_second_request() {
        let played = play(&[], &[(4_000, Ok("first")), (4_000, Ok("second"))]).await;
        assert_eq!(played, (Ok("first"), 4_000, vec![0, 2_500]));
    }

    #[tokio::test(start_paused = true)]
    async fn dead_connection_costs_one_interval() {
        let played = play(&[], &[NEVER, (100, Ok("second"))]).await;
        assert_eq!(played, (Ok("second"), 2_600, vec![0, 2_500]));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_after_four_requests() {
        let played = play(&[], &[NEVER; 4]).await;
        let sent = vec![0, 2_500, 5_000, 7_500];
        assert_eq!(played, (Err("NoAnswer".to_owned()), 10_000, sent));
    }

    #[tokio::test(start_paused = true)]
    async fn failure_on_the_way_counts_only_when_no_request_is_left() {
        let alone = play(&[], &[(10, Err("NoAnswer"))]).await;
        assert_eq!(alone, (Err("NoAnswer".to_owned()), 10, vec![0]));

        for code in ["NoAnswer", "InternalError", "RequestLimitExceeded"] {
            let beside = play(&[], &[(4_000, Ok("first")), (10, Err(code))]).await;
            assert_eq!(beside, (Ok("first"), 4_000, vec![0, 2_500]), "{code}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_was_turned_away_had_no_effect_if_it_was_the_only_attempt() {
        let attempts = RefCell::new(Vec::new());
        for (outcomes, had_no_effect) in [
            (vec![(10, "RequestLimitExceeded")], true),
            (vec![(10, "NotSent")], true),
            (vec![(10, "NoAnswer")], false),
            (vec![(10, "InvalidParameterValue")], false),
            // The first may have been done.
            (
                vec![(3_000, "NoAnswer"), (1_000, "RequestLimitExceeded")],
                false,
            ),
            (
                vec![(3_000, "RequestLimitExceeded"), (1_000, "NotSent")],
                false,
            ),
        ] {
            *attempts.borrow_mut() = outcomes.clone();
            let send = || {
                let (after, code) = attempts.borrow_mut().remove(0);
                async move {
                    sleep(Duration::from_millis(after)).await;
                    Err::<(), _>(Ec2Error::new("AnyCall", code, ""))
                }
            };
            let error = ask("AnyCall", || async {}, send).await.unwrap_err();
            assert_eq!(error.had_no_effect, had_no_effect, "{outcomes:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn refusal_counts_at_once() {
        let gone = "InvalidNetworkInterfaceID.NotFound";
        let played = play(&[], &[NEVER, (10, Err(gone))]).await;
        assert_eq!(played, (Err(gone.to_owned()), 2_510, vec![0, 2_500]));
    }

    #[tokio::test(start_paused = true)]
    async fn last_failure_is_told_when_time_is_up() {
        let failing = (10, Err("InternalError"));
        let played = play(&[], &[NEVER, failing, failing, failing]).await;
        assert_eq!(played.0, Err("InternalError".to_owned()));
        assert_eq!(played.1, 10_000);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_a_turn_is_not_taken_for_silence() {
        let played = play(&[60_000], &[(9_000, Ok("first")), NEVER, NEVER, NEVER]).await;
        assert_eq!(played.0, Ok("first"));
        assert_eq!(played.1, 69_000);

        let played = play(&[0, 3_000], &[(6_000, Ok("first")), NEVER]).await;
        assert_eq!(played, (Ok("first"), 6_000, vec![0, 5_500]));
    }
}
