//! When what failed is tried again.
//!
//! Retries never end while something is wanted. The pause is short, so that whoever waits is
//! served within seconds of a fault's end. Where many fail for one reason, which may be
//! common to all of them, they take turns, so that a fault is not answered with a storm of
//! calls; and the first who succeeds wakes others.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::ec2::error::ErrorClass;

/// The pause after the first failure; it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause of something that fails alone.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The longest pause after a failure that no passing of time mends.
const LONGEST_PAUSE_AFTER_BUG: Duration = Duration::from_secs(15);
/// So many may fail for one reason and be tried again without taking turns.
const WITHOUT_TURNS: u32 = 20;
/// So many others are woken by each success.
const WOKEN_BY_SUCCESS: usize = 2;

/// What a failure may have in common with others: the call, and the subnet or instance that
/// it depends on.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Cause {
    /// The call that failed.
    pub call: &'static str,
    /// What it depends on.
    pub scope: String,
}

/// Everything that has failed and is to be tried again.
#[derive(Debug)]
pub struct Retries<W> {
    waiting: BTreeMap<W, Waiting>,
    by_cause: BTreeMap<Cause, BTreeMap<W, Instant>>,
}

#[derive(Debug)]
struct Waiting {
    failures: u32,
    cause: Cause,
}

impl<W> Default for Retries<W> {
    fn default() -> Self {
        Self {
            waiting: BTreeMap::new(),
            by_cause: BTreeMap::new(),
        }
    }
}

impl<W: Clone + Ord + Hash> Retries<W> {
    /// Notes a failure, and says when to try again. `jitter` is between 0 and 1.
    pub fn failed(
        &mut self,
        who: &W,
        cause: Cause,
        class: ErrorClass,
        now: Instant,
        jitter: f64,
    ) -> Instant {
        let failures = self.forget(who).map_or(0, |waiting| waiting.failures);
        let longest = match class {
            ErrorClass::Bug => LONGEST_PAUSE_AFTER_BUG,
            _ => LONGEST_PAUSE,
        };
        let pause = (FIRST_PAUSE * 2u32.saturating_pow(failures.min(10))).min(longest);
        let alike = self.by_cause.entry(cause.clone()).or_default();
        alike.insert(who.clone(), now);
        let turns = u32::try_from(alike.len())
            .unwrap_or(u32::MAX)
            .div_ceil(WITHOUT_TURNS);
        let failures = failures + 1;
        self.waiting
            .insert(who.clone(), Waiting { failures, cause });
        now + (pause * turns).mul_f64(0.8 + 0.2 * jitter)
    }

    /// Notes a success in a call, and gives others that failed in the same one, or in the one
    /// that this failed in before, those first that have waited longest: they may be tried
    /// again now. Nobody is woken twice, so that the number of those who are tried doubles with
    /// each round of successes.
    pub fn succeeded(&mut self, who: &W, cause: &Cause) -> Vec<W> {
        let own = self.forget(who).map(|waiting| waiting.cause);
        let mut woken = self.wake(cause);
        if let Some(own) = own.filter(|own| own != cause) {
            woken.extend(self.wake(&own));
        }
        woken
    }

    /// Notes a success of something that may have failed before, as [`Self::succeeded`].
    pub fn recovered(&mut self, who: &W) -> Vec<W> {
        match self.forget(who) {
            Some(waiting) => self.wake(&waiting.cause),
            None => Vec::new(),
        }
    }

    fn wake(&mut self, cause: &Cause) -> Vec<W> {
        let Some(alike) = self.by_cause.get_mut(cause) else {
            return Vec::new();
        };
        let mut others: Vec<_> = alike.iter().map(|(who, at)| (*at, who.clone())).collect();
        others.sort();
        others.truncate(WOKEN_BY_SUCCESS);
        let woken: Vec<W> = others.into_iter().map(|(_, who)| who).collect();
        alike.retain(|who, _| !woken.contains(who));
        if alike.is_empty() {
            self.by_cause.remove(cause);
        }
        woken
    }

    /// Forgets those who want nothing any more.
    pub fn retain(&mut self, wanted: impl Fn(&W) -> bool) {
        let unwanted = self.waiting.keys().filter(|who| !wanted(who));
        for who in unwanted.cloned().collect::<Vec<_>>() {
            self.forget(&who);
        }
    }

    /// How often it has failed in a row.
    pub fn failures(&self, who: &W) -> u32 {
        self.waiting.get(who).map_or(0, |waiting| waiting.failures)
    }

    /// Forgets someone who wants nothing any more.
    pub fn remove(&mut self, who: &W) {
        self.forget(who);
    }

    fn forget(&mut self, who: &W) -> Option<Waiting> {
        let waiting = self.waiting.remove(who)?;
        if let Some(alike) = self.by_cause.get_mut(&waiting.cause) {
            alike.remove(who);
            if alike.is_empty() {
                self.by_cause.remove(&waiting.cause);
            }
        }
        Some(waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(scope: &str) -> Cause {
        Cause {
            call: "CreateNetworkInterface",
            scope: scope.to_owned(),
        }
    }

    #[test]
    fn one_that_fails_alone_is_never_made_to_wait_long() {
        let (mut retries, now) = (Retries::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..100 {
            let at = retries.failed(&1, cause("a"), ErrorClass::Retry, now, 1.0);
            pauses.push((at - now).as_millis());
        }
        assert_eq!(pauses[..5], [200, 400, 800, 1600, 2000]);
        assert!(pauses[5..].iter().all(|pause| *pause == 2000));
        assert_eq!(retries.failures(&1), 100);

        retries.succeeded(&1, &cause("a"));
        let at = retries.failed(&1, cause("a"), ErrorClass::Retry, now, 0.0);
        assert_eq!((at - now).as_millis(), 160, "a success starts anew");
    }

    #[test]
    fn many_that_fail_for_one_reason_take_turns() {
        let (mut retries, now) = (Retries::default(), Instant::now());
        for _ in 0..6 {
            for who in 0..1_000 {
                retries.failed(&who, cause("a"), ErrorClass::Full, now, 1.0);
            }
        }
        let at = retries.failed(&0, cause("a"), ErrorClass::Full, now, 1.0);
        let calls_a_second = 1_000.0 / (at - now).as_secs_f64();
        assert!(calls_a_second <= 10.0, "{calls_a_second}");
        let other = retries.failed(&5_000, cause("b"), ErrorClass::Full, now, 1.0);
        assert_eq!(
            (other - now).as_millis(),
            200,
            "another subnet is not concerned"
        );
    }

    #[test]
    fn success_wakes_those_that_wait_longest() {
        let (mut retries, now) = (Retries::default(), Instant::now());
        for who in [3, 1, 2, 4] {
            let at = now + Duration::from_millis(who);
            retries.failed(&who, cause("a"), ErrorClass::Full, at, 1.0);
        }
        retries.failed(&9, cause("b"), ErrorClass::Full, now, 1.0);
        assert_eq!(retries.succeeded(&1, &cause("a")), [2, 3]);
        assert_eq!(retries.succeeded(&2, &cause("a")), [4], "3 is under way");
        retries.failed(&3, cause("a"), ErrorClass::Full, now, 1.0);
        assert_eq!(retries.failures(&3), 2, "being woken is no success");
        assert_eq!(retries.succeeded(&4, &cause("a")), [3]);
        assert_eq!(retries.succeeded(&3, &cause("a")), [0u64; 0]);
    }

    #[test]
    fn those_who_wait_are_all_woken_within_a_few_rounds_of_successes() {
        let (mut retries, now) = (Retries::default(), Instant::now());
        for who in 0..1_000 {
            retries.failed(&who, cause("a"), ErrorClass::Full, now, 1.0);
        }
        let (mut under_way, mut rounds) = (vec![0], 0);
        while !under_way.is_empty() {
            let succeed = |who| retries.succeeded(who, &cause("a"));
            under_way = under_way.iter().flat_map(succeed).collect();
            rounds += 1;
        }
        assert!(rounds <= 10, "{rounds}");
        assert!((0..1_000).all(|who| retries.failures(&who) == 0));
    }

    #[test]
    fn recovery_wakes_those_that_failed_as_this_one_did_and_the_gone_are_forgotten() {
        let (mut retries, now) = (Retries::default(), Instant::now());
        for who in 1..=4 {
            retries.failed(&who, cause("a"), ErrorClass::Full, now, 1.0);
        }
        retries.retain(|who| *who != 2);
        assert_eq!(retries.failures(&2), 0);
        assert_eq!(retries.recovered(&1), [3, 4]);
        assert_eq!(retries.recovered(&1), [0u64; 0]);

        retries.failed(&5, cause("b"), ErrorClass::Full, now, 1.0);
        retries.failed(&6, cause("b"), ErrorClass::Full, now, 1.0);
        assert_eq!(retries.succeeded(&5, &cause("c")), [6]);
    }
}
