//! What a candidate does next about the lease that makes it the leader. Pure.
//!
//! Two rules make sure that no two candidates hold the lease at a time:
//!
//! * Who holds it counts its time from before it sent the write that the API server
//!   accepted, and stops a margin early.
//! * Others write only over the very version that they know, and only when they have known
//!   that version for the whole time that the lease names. They first saw it after it was
//!   written, so their wait ends after the holder's time. If the holder has renewed
//!   meanwhile and they have not heard of it, the API server refuses their write.
//!
//! Each measures time on its own monotonic clock. The wall-clock times in a Lease are for
//! people; nobody compares them, as in client-go's `leaderelection`.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

/// What part of the lease's time its holder leaves unused. Clocks may run at rates that
/// differ this much; those of computers differ by less than a thousandth.
const MARGIN_DIVISOR: u32 = 10;
/// A holder renews when this part of the lease's time is over, so that two attempts may
/// fail or time out before it has to stop.
const RENEWAL_DIVISOR: u32 = 4;

/// Who leads, as one candidate knows it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Leadership {
    /// The identity in the lease, as last heard; not necessarily that of this candidate.
    pub holder: Option<String>,
    /// Until when this candidate leads, unless it renews; `None` when it does not lead.
    pub held_until: Option<Instant>,
    /// How many times the lease had gone from one holder to another.
    pub transitions: u64,
}

impl Leadership {
    /// Whether this candidate leads now. To be asked anew right before each call that only
    /// the leader may start, because time passes without a change of this value, also while
    /// the process is stopped (SIGSTOP).
    ///
    /// Not when a whole machine is suspended: the monotonic clock (`CLOCK_MONOTONIC`) then
    /// stands still. Nodes of a cluster are not suspended while their pods run.
    pub fn is_held(&self) -> bool {
        self.held_until.is_some_and(|until| Instant::now() < until)
    }
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// Read the lease: it is not known, or what is known is outdated.
    Read,
    /// Write the lease: it is free, or it is this candidate's and due.
    Write,
    /// It is this candidate's. Nothing to do before `until`.
    Rest {
        /// When it is to be renewed.
        until: Instant,
    },
    /// It is another's. Follow its changes.
    Follow {
        /// When it is free if it does not change.
        until: Instant,
    },
}

/// One candidate and what it knows.
#[derive(Debug)]
pub(super) struct Candidate {
    name: String,
    identity: String,
    duration: Duration,
    /// As last read or written; `None` also when there is none.
    lease: Option<Lease>,
    /// Whether `lease` may be out of date for a reason that time does not mend.
    is_outdated: bool,
    /// When the lease is free if it does not change; `None` before the first look.
    free_from: Option<Instant>,
    held_until: Option<Instant>,
    renewal_due: Option<Instant>,
    /// As last seen, to be counted on from when the lease was deleted.
    transitions: Option<i32>,
}

impl Candidate {
    /// Knows nothing yet. `name` is the lease's, `identity` is this candidate's alone.
    pub(super) fn new(name: &str, identity: &str, duration: Duration) -> Self {
        Self {
            name: name.to_owned(),
            identity: identity.to_owned(),
            duration,
            lease: None,
            is_outdated: true,
            free_from: None,
            held_until: None,
            renewal_due: None,
            transitions: None,
        }
    }

    pub(super) fn next_step(&self, now: Instant) -> Step {
        let Some(free_from) = self.free_from.filter(|_| !self.is_outdated) else {
            return Step::Read;
        };
        if self.is_ours() {
            return match self.renewal_due {
                Some(until) if now < until => Step::Rest { until },
                _ => Step::Write,
            };
        }
        let was_deleted_from_us = self.lease.is_none() && self.is_held(now);
        if was_deleted_from_us || free_from <= now {
            Step::Write
        } else {
            Step::Follow { until: free_from }
        }
    }

    /// Takes note of the lease as the API server has it; `now` is after its answer.
    pub(super) fn observe(&mut self, lease: Option<Lease>, now: Instant) {
        self.is_outdated = false;
        self.free_from = match &lease {
            Some(lease) if self.is_known(lease) => self.free_from,
            Some(lease) => Some(now + self.wait_for(lease)),
            // Whoever held it may believe so still, for it learns of the deletion later.
            None => self.free_from.or(Some(now)),
        };
        if let Some(spec) = lease.as_ref().and_then(|lease| lease.spec.as_ref()) {
            self.transitions = Some(spec.lease_transitions.unwrap_or(0));
        }
        self.lease = lease;
        if self.lease.is_some() && !self.is_ours() {
            self.held_until = None;
        }
    }

    /// Takes note that the API server has accepted a write; `sent` is before it was sent.
    pub(super) fn accepted(&mut self, lease: Lease, sent: Instant) {
        self.observe(Some(lease), sent);
        self.held_until = Some(sent + self.duration - self.duration / MARGIN_DIVISOR);
        self.renewal_due = Some(sent + self.duration / RENEWAL_DIVISOR);
    }

    /// Takes note that the API server has another version of the lease.
    pub(super) fn refused(&mut self) {
        self.is_outdated = true;
    }

    /// Takes note that the time to lead may be over.
    pub(super) fn lapse(&mut self, now: Instant) {
        if !self.is_held(now) {
            self.held_until = None;
        }
    }

    /// How long an attempt that starts now may take: a lapse is to be noticed on time.
    pub(super) fn patience(&self, now: Instant, longest: Duration) -> Duration {
        match self.held_until {
            Some(until) if now < until => longest.min(until - now),
            _ => longest,
        }
    }

    /// The lease as this candidate wants it, and whether there is one to be replaced.
    pub(super) fn wanted(&self, wall_clock: Timestamp) -> (Lease, bool) {
        let mut lease = self.lease.clone().unwrap_or_else(|| Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                ..ObjectMeta::default()
            },
            ..Lease::default()
        });
        let spec = lease.spec.get_or_insert_default();
        if !self.is_ours() {
            spec.acquire_time = Some(MicroTime(wall_clock));
            let transitions = self.transitions.map_or(0, |seen| seen.saturating_add(1));
            spec.lease_transitions = Some(transitions);
        }
        spec.holder_identity = Some(self.identity.clone());
        spec.lease_duration_seconds = Some(whole_seconds(self.duration));
        spec.renew_time = Some(MicroTime(wall_clock));
        (lease, self.lease.is_some())
    }

    pub(super) fn leadership(&self) -> Leadership {
        Leadership {
            holder: self.holder().map(str::to_owned),
            held_until: self.held_until,
            transitions: self
                .transitions
                .and_then(|seen| seen.try_into().ok())
                .unwrap_or(0),
        }
    }

    fn holder(&self) -> Option<&str> {
        self.lease.as_ref().and_then(holder)
    }

    fn is_ours(&self) -> bool {
        self.holder() == Some(&self.identity)
    }

    fn is_held(&self, now: Instant) -> bool {
        self.held_until.is_some_and(|until| now < until)
    }

    fn is_known(&self, lease: &Lease) -> bool {
        let known = self.lease.as_ref().map(|known| &known.metadata);
        known.is_some_and(|known| known.resource_version == lease.metadata.resource_version)
    }

    /// How long the lease has to stay as it is before it is free.
    fn wait_for(&self, lease: &Lease) -> Duration {
        if holder(lease).is_none() {
            return Duration::ZERO;
        }
        let spec = lease.spec.as_ref();
        let seconds = spec
            .and_then(|spec| spec.lease_duration_seconds)
            .filter(|seconds| *seconds > 0)
            .unwrap_or_else(|| whole_seconds(self.duration));
        Duration::from_secs(seconds.unsigned_abs().into())
    }
}

/// Whom the lease belongs to; `None` when it is free.
pub(super) fn holder(lease: &Lease) -> Option<&str> {
    let spec: Option<&LeaseSpec> = lease.spec.as_ref();
    spec.and_then(|spec| spec.holder_identity.as_deref())
        .filter(|identity| !identity.is_empty())
}

/// The API has whole seconds. Rounded up, so that nobody waits less than the holder's time.
fn whole_seconds(duration: Duration) -> i32 {
    let up = u64::from(duration.subsec_nanos() > 0);
    let seconds = duration.as_secs().saturating_add(up).max(1);
    i32::try_from(seconds).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEASE_TIME: Duration = Duration::from_millis(2500);

    /// How the API server keeps one lease.
    #[derive(Default)]
    struct Server {
        lease: Option<Lease>,
        versions: u64,
    }

    impl Server {
        /// Accepts a write on the conditions of the API, or gives `None`.
        fn write(&mut self, (lease, exists): &(Lease, bool)) -> Option<Lease> {
            let version = |lease: &Lease| lease.metadata.resource_version.clone();
            let is_current = match &self.lease {
                Some(current) => *exists && version(current) == version(lease),
                None => !*exists,
            };
            is_current.then(|| self.store(lease.clone()))
        }

        fn store(&mut self, mut lease: Lease) -> Lease {
            self.versions += 1;
            lease.metadata.resource_version = Some(self.versions.to_string());
            self.lease = Some(lease.clone());
            lease
        }

        fn spec(&self) -> &LeaseSpec {
            self.lease.as_ref().and_then(|it| it.spec.as_ref()).unwrap()
        }
    }

    fn candidate(identity: &str) -> Candidate {
        Candidate::new("lease", identity, LEASE_TIME)
    }

    fn stored(server: &mut Server, holder: Option<&str>, seconds: Option<i32>) -> Lease {
        server.store(Lease {
            spec: Some(LeaseSpec {
                holder_identity: holder.map(str::to_owned),
                lease_duration_seconds: seconds,
                ..LeaseSpec::default()
            }),
            ..Lease::default()
        })
    }

    /// Writes and hears of the success at once.
    fn write(candidate: &mut Candidate, server: &mut Server, now: Instant) {
        let lease = server.write(&candidate.wanted(Timestamp::now()));
        candidate.accepted(lease.expect("the version is current"), now);
    }

    fn after(start: Instant, milliseconds: u64) -> Instant {
        start + Duration::from_millis(milliseconds)
    }

    #[test]
    fn nothing_is_written_before_the_first_look() {
        assert_eq!(candidate("a").next_step(Instant::now()), Step::Read);
    }

    #[test]
    fn how_long_an_unchanged_lease_is_left_alone() {
        let own_time = 3000;
        for (holder, seconds, wait) in [
            (None, Some(15), 0),
            (Some(""), Some(15), 0),
            (None, None, 0),
            (Some("b"), Some(15), 15_000),
            (Some("b"), Some(1), 1000),
            (Some("b"), None, own_time),
            (Some("b"), Some(0), own_time),
            (Some("b"), Some(-1), own_time),
            (Some("a"), Some(15), 0),
        ] {
            let now = Instant::now();
            let mut a = candidate("a");
            a.observe(Some(stored(&mut Server::default(), holder, seconds)), now);

            let case = format!("{holder:?} {seconds:?}");
            assert_eq!(a.next_step(after(now, wait)), Step::Write, "{case}");
            if wait > 0 {
                let until = after(now, wait);
                let just_before = after(now, wait - 1);
                assert_eq!(a.next_step(just_before), Step::Follow { until }, "{case}");
            }
        }
    }

    #[test]
    fn no_lease_and_an_empty_lease_are_free_at_once() {
        for lease in [None, Some(Lease::default())] {
            let now = Instant::now();
            let mut a = candidate("a");
            a.observe(lease, now);

            assert_eq!(a.next_step(now), Step::Write);
        }
    }

    #[test]
    fn a_lease_that_changes_is_left_alone_anew_and_one_that_does_not_is_not() {
        let start = Instant::now();
        let mut server = Server::default();
        let mut a = candidate("a");
        let lease = stored(&mut server, Some("b"), Some(2));
        a.observe(Some(lease.clone()), start);
        a.observe(Some(lease), after(start, 1500));
        let until = after(start, 2000);
        assert_eq!(a.next_step(after(start, 1500)), Step::Follow { until });

        a.observe(
            Some(stored(&mut server, Some("b"), Some(2))),
            after(start, 1900),
        );

        let until = after(start, 3900);
        assert_eq!(a.next_step(after(start, 2000)), Step::Follow { until });
    }

    #[test]
    fn the_time_of_the_holder_runs_from_before_its_write_and_ends_early() {
        let sent = Instant::now();
        let (mut a, mut server) = (candidate("a"), Server::default());
        a.observe(None, sent);

        write(&mut a, &mut server, sent);

        assert_eq!(a.leadership().held_until, Some(after(sent, 2250)));
        assert_eq!(server.spec().lease_duration_seconds, Some(3));
        let until = after(sent, 625);
        assert_eq!(a.next_step(sent), Step::Rest { until });
        assert_eq!(a.next_step(until), Step::Write);
        a.lapse(after(sent, 2249));
        assert!(a.leadership().held_until.is_some());
        a.lapse(after(sent, 2250));
        assert_eq!(a.leadership().held_until, None);
    }

    #[test]
    fn an_attempt_of_the_holder_ends_with_its_time() {
        let sent = Instant::now();
        let (mut a, longest) = (candidate("a"), Duration::from_secs(1));
        assert_eq!(a.patience(sent, longest), longest);
        a.observe(None, sent);
        write(&mut a, &mut Server::default(), sent);

        for (passed, patience) in [(625, 1000), (1250, 1000), (2000, 250), (2250, 1000)] {
            let patience = Duration::from_millis(patience);
            assert_eq!(a.patience(after(sent, passed), longest), patience);
        }
    }

    #[test]
    fn a_refused_write_is_followed_by_a_look() {
        let now = Instant::now();
        let mut server = Server::default();
        let (mut a, mut b) = (candidate("a"), candidate("b"));
        a.observe(None, now);
        b.observe(None, now);
        write(&mut b, &mut server, now);
        assert!(server.write(&a.wanted(Timestamp::now())).is_none());

        a.refused();
        assert_eq!(a.next_step(now), Step::Read);
        a.observe(server.lease.clone(), now);

        let until = after(now, 3000);
        assert_eq!(a.next_step(now), Step::Follow { until });
    }

    #[test]
    fn whose_lease_another_has_taken_stops_at_once() {
        let start = Instant::now();
        let mut server = Server::default();
        let mut a = candidate("a");
        a.observe(None, start);
        write(&mut a, &mut server, start);

        a.observe(
            Some(stored(&mut server, Some("b"), Some(3))),
            after(start, 1),
        );

        assert_eq!(a.leadership().held_until, None);
        assert_eq!(a.leadership().holder.as_deref(), Some("b"));
    }

    #[test]
    fn a_deleted_lease_goes_to_its_holder_first() {
        let start = Instant::now();
        let mut server = Server::default();
        let (mut a, mut b) = (candidate("a"), candidate("b"));
        a.observe(None, start);
        write(&mut a, &mut server, start);
        b.observe(server.lease.clone(), start);
        server.lease = None;

        let now = after(start, 700);
        a.observe(None, now);
        b.observe(None, now);

        let until = after(start, 3000);
        assert_eq!(b.next_step(now), Step::Follow { until });
        assert_eq!(a.next_step(now), Step::Write);
        write(&mut a, &mut server, now);
        assert_eq!(a.leadership().transitions, 1, "never the same number twice");
    }

    #[test]
    fn renewals_keep_what_acquisitions_set() {
        let start = Instant::now();
        let mut server = Server::default();
        let (mut a, mut b) = (candidate("a"), candidate("b"));
        a.observe(None, start);
        write(&mut a, &mut server, start);
        let acquired = server.spec().clone();
        assert_eq!(acquired.lease_transitions, Some(0));
        assert_eq!(acquired.acquire_time, acquired.renew_time);

        // What others have put there is left alone.
        let mut labelled = server.lease.clone().unwrap();
        let label = ("team".to_owned(), "network".to_owned());
        labelled.metadata.labels = Some([label].into());
        let labelled = server.store(labelled);
        a.observe(Some(labelled), after(start, 100));
        write(&mut a, &mut server, after(start, 700));

        assert_eq!(server.spec().acquire_time, acquired.acquire_time);
        assert_ne!(server.spec().renew_time, acquired.renew_time);
        assert_eq!(server.spec().lease_transitions, Some(0));
        let labels = server.lease.as_ref().unwrap().metadata.labels.clone();
        assert_eq!(labels.unwrap()["team"], "network");

        b.observe(server.lease.clone(), after(start, 700));
        write(&mut b, &mut server, after(start, 3700));

        assert_eq!(server.spec().holder_identity.as_deref(), Some("b"));
        assert_ne!(server.spec().acquire_time, acquired.acquire_time);
        assert_eq!(server.spec().lease_transitions, Some(1));
        assert_eq!(b.leadership().transitions, 1);
    }

    #[test]
    fn seconds_are_rounded_up() {
        for (milliseconds, seconds) in [
            (0, 1),
            (1, 1),
            (1000, 1),
            (1001, 2),
            (2500, 3),
            (15_000, 15),
            (u64::MAX, i32::MAX),
        ] {
            let duration = Duration::from_millis(milliseconds);
            assert_eq!(whole_seconds(duration), seconds, "{milliseconds}");
        }
    }

    /// One thing that happens in a history of several candidates.
    #[derive(Clone, Debug)]
    enum Happening {
        /// Milliseconds pass.
        Pass(u64),
        /// A candidate takes its next step; a write is sent and is on its way from then on.
        /// A candidate whose turn does not come stands still, as a stopped process does.
        Turn(usize),
        /// The newest or the oldest write of a candidate arrives, and it hears the answer or
        /// does not, if it still waits for it.
        Arrival {
            candidate: usize,
            newest: bool,
            heard: bool,
        },
        /// A candidate no longer waits for the answer to its write.
        GivingUp(usize),
    }

    fn happening() -> impl Strategy<Value = Happening> {
        prop_oneof![
            3 => (1_u64..900).prop_map(Happening::Pass),
            6 => (0_usize..3).prop_map(Happening::Turn),
            5 => (0_usize..3, prop::bool::weighted(0.8), prop::bool::weighted(0.9)).prop_map(
                |(candidate, newest, heard)| Happening::Arrival { candidate, newest, heard }
            ),
            1 => (0_usize..3).prop_map(Happening::GivingUp),
        ]
    }

    struct Player {
        candidate: Candidate,
        /// Thousandths of the true rate at which its clock runs.
        rate: u64,
        /// Writes on their way, with the time at which they were sent.
        sent: Vec<((Lease, bool), Instant)>,
        waits_for_answer: bool,
    }

    impl Player {
        fn now(&self, start: Instant, passed: u64) -> Instant {
            start + Duration::from_micros(passed * self.rate)
        }

        fn leads(&self, now: Instant) -> bool {
            let until = self.candidate.leadership().held_until;
            until.is_some_and(|until| now < until)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn never_do_two_lead(
            history in prop::collection::vec(happening(), 1..200),
            rates in prop::array::uniform3(950_u64..1050),
        ) {
            let start = Instant::now();
            let mut server = Server::default();
            let mut players: Vec<Player> = ["a", "b", "c"].iter().zip(rates).map(|(it, rate)| Player {
                // Whole seconds, so that rounding adds no margin of its own.
                candidate: Candidate::new("lease", it, Duration::from_secs(3)),
                rate,
                sent: Vec::new(),
                waits_for_answer: false,
            }).collect();
            let mut passed = 0;
            for happening in history {
                match happening {
                    Happening::Pass(milliseconds) => passed += milliseconds,
                    Happening::Turn(index) => {
                        let player = &mut players[index];
                        let now = player.now(start, passed);
                        if player.waits_for_answer {
                            continue;
                        }
                        match player.candidate.next_step(now) {
                            Step::Read | Step::Follow { .. } => {
                                player.candidate.observe(server.lease.clone(), now);
                            }
                            Step::Write => {
                                let write = player.candidate.wanted(Timestamp::now());
                                player.sent.push((write, now));
                                player.waits_for_answer = true;
                            }
                            Step::Rest { .. } => {}
                        }
                    }
                    Happening::Arrival { candidate, newest, heard } => {
                        let player = &mut players[candidate];
                        let last = player.sent.len().saturating_sub(1);
                        let index = if newest { last } else { 0 };
                        if player.sent.is_empty() {
                            continue;
                        }
                        let (write, sent) = player.sent.remove(index);
                        let answer = server.write(&write);
                        if index == last && player.waits_for_answer && heard {
                            player.waits_for_answer = false;
                            match answer {
                                Some(lease) => player.candidate.accepted(lease, sent),
                                None => player.candidate.refused(),
                            }
                        }
                    }
                    Happening::GivingUp(index) => players[index].waits_for_answer = false,
                }
                let leaders = players.iter().filter(|it| it.leads(it.now(start, passed)));
                prop_assert!(leaders.count() <= 1);
            }
        }
    }
}
