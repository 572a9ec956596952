//! The order of a renewal: what a replica does next, by what it sees.
//!
//! Pure: nothing in here reads a clock, a Secret or a configuration, or makes a key.
//!
//! All replicas share one Secret with a *current* pair and, during a renewal, the *next* one.
//! A renewal goes in steps, each of which any replica may do, or none for a while:
//!
//! ```text
//! due        the next pair is stored beside the current one
//! stored     its CA is added to every entry of every webhook configuration
//! added      nothing, for a grace, in which every API server gets to know it
//! known      the next pair becomes the current one, and each replica serves it when it sees that
//! expired    a CA leaves the configurations once no certificate of it can be valid
//! ```
//!
//! What keeps calls from failing:
//!
//! * The current pair of the Secret has been trusted everywhere for a grace. A pair that never
//!   was is *next*, also if it is the only one, as at the very first start.
//! * Nobody takes out a CA that has not expired, whoever put it in, so that it does not matter
//!   how late a replica hears of a change: what it serves is trusted for as long as it is valid.
//! * Secret and configurations are changed only as they were seen, by `resourceVersion`.
//! * A replica that saw the CA of the current pair lacking waits for the grace as well, whatever
//!   came of its own attempts to add it.

#[cfg(test)]
mod history;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;

use super::certificate::Validity;

/// Everything is looked at this often at least, even if no watch tells of a change.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// A CA that clients trust or should trust.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Authority {
    der: Vec<u8>,
    not_after: SystemTime,
}

impl Authority {
    /// Reads its dates. One that can't be read is never over, as far as we know.
    pub(super) fn read(certificate: &CertificateDer<'_>) -> Self {
        let validity = Validity::of(certificate);
        Self {
            der: certificate.to_vec(),
            not_after: validity.map_or(
                UNIX_EPOCH + Duration::from_secs(u32::MAX.into()) * 16,
                |validity| validity.not_after,
            ),
        }
    }

    /// The certificate.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The last instant at which anything that it has signed can be valid.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

/// What is known of a pair of CA and certificate without its key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Issued {
    /// The CA, which has signed nothing else and so stands for the pair.
    pub authority: Authority,
    /// When it was made.
    pub at: SystemTime,
    /// The certificate's first instant.
    pub not_before: SystemTime,
    /// The certificate's last instant.
    pub not_after: SystemTime,
    /// Whether it is for all names that the webhook is called by.
    pub has_all_names: bool,
}

/// What the Secret holds.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Stored {
    /// The pair to serve.
    pub current: Option<Issued>,
    /// The pair to serve as soon as it is trusted.
    pub next: Option<Issued>,
}

/// A webhook configuration, as far as trust goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Configuration {
    /// Differs whenever anything in it has changed.
    pub version: String,
    /// The CAs that each entry trusts.
    pub entries: Vec<Vec<Authority>>,
}

impl Configuration {
    fn trusts(&self, authority: &Authority) -> bool {
        self.entries
            .iter()
            .all(|trusted| trusted.contains(authority))
    }
}

/// What a replica sees when it looks.
#[derive(Clone, Debug)]
pub struct Sight {
    /// The Secret.
    pub stored: Stored,
    /// The configurations that there are.
    pub configurations: Vec<Configuration>,
}

/// How long things last.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// How long a new certificate is valid.
    pub lifetime: Duration,
}

impl Schedule {
    /// How long all API servers may take to learn of a changed configuration.
    pub fn grace(self) -> Duration {
        (self.lifetime / 10).clamp(Duration::from_secs(1), Duration::from_secs(30))
    }

    /// When a pair is to be replaced: after two thirds of its life, or of the life that it
    /// would have if it were made now.
    fn due(self, issued: &Issued) -> SystemTime {
        let life = issued
            .not_after
            .duration_since(issued.at)
            .unwrap_or_default();
        issued.at + life.min(self.lifetime) * 2 / 3
    }

    /// The longest time without a look.
    fn longest_wait(self) -> Duration {
        (self.lifetime / 6).min(LONGEST_WAIT)
    }
}

/// Now, by the clock that certificates go by and by one that nobody sets.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For dates.
    pub date: SystemTime,
    /// For durations.
    pub instant: Instant,
}

/// A pair of the Secret or of memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Source {
    /// No pair.
    Nothing,
    /// The Secret's current one.
    Current,
    /// The Secret's next one.
    Next,
    /// The one that this replica serves.
    InUse,
    /// A new one.
    Fresh,
}

/// What to do next.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// Serve with this pair of the Secret.
    Serve(Source),
    /// Write the Secret, if it is still as it was seen.
    Store {
        /// The pair to serve.
        current: Source,
        /// The pair to serve as soon as it is trusted.
        next: Source,
    },
    /// Have these CAs trusted: by configuration, as they were seen, and entry.
    Trust(Vec<(usize, Vec<Vec<Authority>>)>),
    /// Look again when anything changes, and after this time in any case.
    Wait(Duration),
}

/// The pair that a replica serves.
#[derive(Clone, Debug)]
struct InUse {
    issued: Issued,
    /// Whether it was the Secret's current one.
    was_current: bool,
}

/// What a replica remembers from one look to the next.
#[derive(Clone, Debug, Default)]
pub struct Replica {
    in_use: Option<InUse>,
    /// The configurations' versions at the last look.
    versions: Vec<String>,
    /// CAs that all entries trust, since when they were seen to. Forgotten when a
    /// configuration changes, for it may have lacked one in between.
    trusted_since: BTreeMap<Authority, Instant>,
    /// CAs that an entry was seen to lack.
    lacked: BTreeSet<Authority>,
    is_trusted: bool,
}

impl Replica {
    /// Whether the pair in use has been trusted by all that call.
    pub fn is_trusted(&self) -> bool {
        self.is_trusted
    }

    /// Whether a pair of the Secret is in use, be it trusted or not.
    pub fn serves(&self) -> bool {
        self.in_use.is_some()
    }

    /// Notes what a look has shown. To be called before anything is done about it, so that
    /// nothing is forgotten if that fails.
    pub fn see(&mut self, sight: &Sight, now: Now) {
        let versions = sight.configurations.iter().map(|it| it.version.clone());
        let versions: Vec<_> = versions.collect();
        if versions != self.versions {
            self.trusted_since.clear();
            self.versions = versions;
        }
        let relevant = self.relevant(&sight.stored);
        self.trusted_since.retain(|it, _| relevant.contains(it));
        self.lacked.retain(|it| relevant.contains(it));
        self.note_lacking(&sight.stored, &sight.configurations);
        for authority in relevant {
            if sight.configurations.iter().all(|it| it.trusts(&authority)) {
                self.trusted_since.entry(authority).or_insert(now.instant);
            }
        }
        let entries = || sight.configurations.iter().flat_map(|it| &it.entries);
        let mut entries_now = entries().peekable();
        if let Some(in_use) = self.in_use.as_ref().filter(|it| it.was_current) {
            let is_trusted = |trusted: &Vec<_>| trusted.contains(&in_use.issued.authority);
            // Without any entry, nobody calls. It stays so even if somebody takes the CA out:
            // a replica that is not ready would serve nobody better.
            self.is_trusted |= entries_now.peek().is_some() && entries_now.all(is_trusted);
        }
    }

    /// Notes what a look that failed halfway has shown.
    pub fn note_lacking(&mut self, stored: &Stored, configurations: &[Configuration]) {
        for authority in self.relevant(stored) {
            if !configurations.iter().all(|it| it.trusts(&authority)) {
                self.trusted_since.remove(&authority);
                self.lacked.insert(authority);
            }
        }
    }

    /// Notes that a pair is served now, which the Secret has as `source`.
    pub fn serve(&mut self, stored: &Stored, source: Source) {
        let (issued, was_current) = match source {
            Source::Current => (&stored.current, true),
            _ => (&stored.next, false),
        };
        self.in_use = issued.clone().map(|issued| InUse {
            issued,
            was_current,
        });
    }

    /// The CAs that entries have to trust, as far as the Secret and this replica say.
    fn relevant(&self, stored: &Stored) -> BTreeSet<Authority> {
        let in_use = self.in_use.as_ref().filter(|it| it.was_current);
        let stored = [&stored.current, &stored.next].into_iter().flatten();
        let all = stored.chain(in_use.map(|it| &it.issued));
        all.map(|it| it.authority.clone()).collect()
    }

    /// What to do next. A look has to precede it, and whatever is done is followed by another.
    pub fn next(&self, sight: &Sight, schedule: Schedule, now: Now) -> Action {
        let is_live = |it: &&Issued| now.date <= it.not_after;
        let current = sight.stored.current.as_ref().filter(is_live);
        let next = sight.stored.next.as_ref().filter(is_live);
        let in_use = self.in_use.as_ref().filter(|it| is_live(&&it.issued));
        let proven = in_use.filter(|it| it.was_current);

        let lacks_names = current.is_some_and(|it| !it.has_all_names) && has_room(sight, now);
        self.serve_another(current, next, in_use, schedule, now)
            .or_else(|| store_another(current, next, proven, lacks_names, schedule, now))
            .or_else(|| self.trust_others(sight, schedule, now))
            .or_else(|| {
                self.promote(
                    sight,
                    next,
                    current.is_some() || proven.is_some(),
                    schedule,
                    now,
                )
            })
            .unwrap_or_else(|| Action::Wait(self.pause(sight, schedule, now)))
    }

    fn serve_another(
        &self,
        current: Option<&Issued>,
        next: Option<&Issued>,
        in_use: Option<&InUse>,
        schedule: Schedule,
        now: Now,
    ) -> Option<Action> {
        let Some(current) = current else {
            // Nobody trusts it, but a server that answers probes is better than none.
            let next = next?;
            let is_needed =
                in_use.is_none_or(|it| !it.was_current && it.issued.authority != next.authority);
            return is_needed.then_some(Action::Serve(Source::Next));
        };
        let may = match in_use {
            // A replica whose clock is ahead has made it. What is served is good for a while.
            Some(_) if now.date < current.not_before => false,
            Some(it) if it.issued.authority == current.authority => !it.was_current,
            Some(it) if it.was_current => match self.trusted_since.get(&current.authority) {
                // Trusted when it was first seen, and as a current pair for a grace before.
                Some(_) if !self.lacked.contains(&current.authority) => true,
                Some(since) => now.instant >= *since + schedule.grace(),
                None => false,
            },
            _ => true,
        };
        may.then_some(Action::Serve(Source::Current))
    }

    fn trust_others(&self, sight: &Sight, schedule: Schedule, now: Now) -> Option<Action> {
        let mut wanted = self.relevant(&sight.stored);
        wanted.retain(|it| now.date <= it.not_after);
        let changed = sight
            .configurations
            .iter()
            .enumerate()
            .filter_map(|(index, it)| {
                let entries = it.entries.iter();
                let bundles: Vec<_> = entries
                    .map(|entry| bundle(entry, &wanted, schedule, now.date))
                    .collect();
                (bundles != it.entries).then_some((index, bundles))
            });
        let changed: Vec<_> = changed.collect();
        (!changed.is_empty()).then_some(Action::Trust(changed))
    }

    fn promote(
        &self,
        sight: &Sight,
        next: Option<&Issued>,
        is_another_served: bool,
        schedule: Schedule,
        now: Now,
    ) -> Option<Action> {
        let next = next.filter(|next| now.date >= next.not_before)?;
        let since = *self.trusted_since.get(&next.authority)?;
        let mut entries = sight.configurations.iter().flat_map(|it| &it.entries);
        // Where no other CA is trusted, no call succeeds that could fail.
        let is_first = !is_another_served
            && entries.all(|trusted| {
                let mut live = trusted.iter().filter(|it| now.date <= it.not_after);
                live.all(|it| it == &next.authority)
            });
        (is_first || now.instant >= since + schedule.grace()).then_some(Action::Store {
            current: Source::Next,
            next: Source::Nothing,
        })
    }

    /// How long nothing changes by itself.
    fn pause(&self, sight: &Sight, schedule: Schedule, now: Now) -> Duration {
        let stored = &sight.stored;
        let in_use = self.in_use.as_ref().map(|it| &it.issued);
        let pairs = [stored.current.as_ref(), stored.next.as_ref(), in_use];
        let entries = sight.configurations.iter().flat_map(|it| &it.entries);
        let due = match (&stored.current, &stored.next) {
            (Some(current), None) => Some(schedule.due(current)),
            _ => None,
        };
        let ends = pairs.into_iter().flatten().map(|it| it.not_after);
        let leaves = entries.flatten().map(|it| leaves(it, schedule));
        let dates = ends.chain(leaves).chain(due);
        let by_date = dates.filter_map(|date| date.duration_since(now.date).ok());

        let known = self
            .trusted_since
            .values()
            .map(|since| *since + schedule.grace());
        let by_instant = known.filter_map(|known| known.checked_duration_since(now.instant));
        // Right after that instant: a certificate is valid until its last one.
        let after = by_date
            .chain(by_instant)
            .map(|pause| pause + Duration::from_millis(1));
        after.fold(schedule.longest_wait(), Duration::min)
    }
}

/// The most CAs that an entry trusts before a certificate is replaced only because it lacks a
/// name. Replicas that are called by different names replace each other's for ever, and no
/// bundle may outgrow what the API server stores.
const MOST_AUTHORITIES: usize = 8;

fn has_room(sight: &Sight, now: Now) -> bool {
    let mut entries = sight.configurations.iter().flat_map(|it| &it.entries);
    entries.all(|entry| {
        let live = entry.iter().filter(|it| now.date <= it.not_after);
        live.count() < MOST_AUTHORITIES
    })
}

/// Whether and how the Secret is to be written for a renewal.
fn store_another(
    current: Option<&Issued>,
    next: Option<&Issued>,
    proven: Option<&InUse>,
    lacks_names: bool,
    schedule: Schedule,
    now: Now,
) -> Option<Action> {
    // A Secret that lost its current pair gets it back from whoever serves it, so that those
    // who start meanwhile can serve, too.
    let restored = current.is_none() && proven.is_some();
    let is_due = current.is_none_or(|current| now.date >= schedule.due(current));
    let fresh = next.is_none() && (is_due || lacks_names);
    (restored || fresh).then_some(Action::Store {
        current: match (current, proven) {
            (Some(_), _) => Source::Current,
            (None, Some(_)) => Source::InUse,
            (None, None) => Source::Nothing,
        },
        next: if fresh { Source::Fresh } else { Source::Next },
    })
}

/// When a CA leaves the configurations: when nothing that it has signed is valid any more by
/// any clock.
fn leaves(authority: &Authority, schedule: Schedule) -> SystemTime {
    authority.not_after + schedule.grace()
}

/// What an entry should trust: what it does as long as that is valid, and the wanted CAs.
fn bundle(
    trusted: &[Authority],
    wanted: &BTreeSet<Authority>,
    schedule: Schedule,
    now: SystemTime,
) -> Vec<Authority> {
    let stays = |it: &&Authority| now <= leaves(it, schedule);
    let lacking = wanted.iter().filter(|it| !trusted.contains(it));
    trusted
        .iter()
        .filter(stays)
        .chain(lacking)
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: u64 = 120;
    /// A tenth of the lifetime.
    const GRACE: u64 = 12;
    const SCHEDULE: Schedule = Schedule {
        lifetime: Duration::from_secs(LIFE),
    };

    /// The pair that is made at this second.
    fn issued(at: u64) -> Issued {
        let at_date = date(at);
        let not_after = date(at + LIFE);
        Issued {
            authority: authority(at),
            at: at_date,
            not_before: at_date,
            not_after,
            has_all_names: true,
        }
    }

    fn authority(at: u64) -> Authority {
        Authority {
            der: at.to_be_bytes().into(),
            not_after: date(at + LIFE),
        }
    }

    fn date(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
    }

    /// A replica and what it sees.
    struct Scene {
        replica: Replica,
        sight: Sight,
        start: Instant,
    }

    impl Scene {
        /// The Secret's pairs and the CAs of two configurations with two entries each.
        fn new(current: Option<u64>, next: Option<u64>, trusted: &[u64]) -> Self {
            let stored = Stored {
                current: current.map(issued),
                next: next.map(issued),
            };
            let mut scene = Self {
                replica: Replica::default(),
                sight: Sight {
                    stored,
                    configurations: Vec::new(),
                },
                start: Instant::now(),
            };
            scene.trusted("1", [trusted, trusted, trusted, trusted]);
            scene
        }

        fn trusted(&mut self, version: &str, trusted: [&[u64]; 4]) {
            let trusted = trusted.map(|it| it.iter().copied().map(authority).collect());
            let configuration = |entries: &[Vec<_>]| Configuration {
                version: version.into(),
                entries: entries.to_vec(),
            };
            self.sight.configurations =
                vec![configuration(&trusted[..2]), configuration(&trusted[2..])];
        }

        fn now(&self, second: u64) -> Now {
            Now {
                date: date(second),
                instant: self.start + Duration::from_secs(second),
            }
        }

        /// Looks at this second.
        fn at(&mut self, second: u64) -> Action {
            let now = self.now(second);
            self.replica.see(&self.sight, now);
            let action = self.replica.next(&self.sight, SCHEDULE, now);
            if let Action::Serve(source) = action {
                self.replica.serve(&self.sight.stored, source);
            }
            action
        }

        /// Looks until there is nothing more to serve.
        fn settled_at(&mut self, second: u64) -> Action {
            loop {
                match self.at(second) {
                    Action::Serve(_) => {}
                    other => return other,
                }
            }
        }

        fn in_use(&self) -> Option<Authority> {
            let in_use = self.replica.in_use.as_ref();
            in_use.map(|it| it.issued.authority.clone())
        }
    }

    fn store(current: Source, next: Source) -> Action {
        Action::Store { current, next }
    }

    fn trust(bundles: [&[u64]; 4]) -> Action {
        let bundles = bundles.map(|it| it.iter().copied().map(authority).collect::<Vec<_>>());
        let [a, b, c, d] = bundles;
        Action::Trust(vec![(0, vec![a, b]), (1, vec![c, d])])
    }

    #[test]
    fn each_state_has_its_next_step() {
        use Source::{Current, Fresh, Next, Nothing};
        for (case, current, next, trusted, second, expected) in [
            ("first start", None, None, &[][..], 0, store(Nothing, Fresh)),
            ("stored", None, Some(0), &[], 0, trust([&[0]; 4])),
            (
                "only one trusted",
                None,
                Some(0),
                &[0],
                0,
                store(Next, Nothing),
            ),
            (
                "before it is due",
                Some(0),
                None,
                &[0],
                79,
                Action::Wait(Duration::from_millis(1_001)),
            ),
            ("due", Some(0), None, &[0], 80, store(Current, Fresh)),
            (
                "next stored",
                Some(0),
                Some(80),
                &[0],
                80,
                trust([&[0, 80]; 4]),
            ),
            (
                "added",
                Some(0),
                Some(80),
                &[0, 80],
                80,
                Action::Wait(Duration::from_millis(12_001)),
            ),
            (
                "before expiry",
                Some(80),
                None,
                &[0, 80],
                132,
                Action::Wait(Duration::from_millis(1)),
            ),
            ("expired", Some(80), None, &[0, 80], 133, trust([&[80]; 4])),
            (
                "all expired",
                Some(0),
                None,
                &[0],
                125,
                store(Nothing, Fresh),
            ),
            (
                "next expired",
                Some(60),
                Some(0),
                &[60],
                145,
                store(Current, Fresh),
            ),
            (
                "somebody else's",
                None,
                Some(80),
                &[0],
                80,
                trust([&[0, 80]; 4]),
            ),
            (
                "after somebody else's",
                None,
                Some(80),
                &[0, 80],
                80,
                Action::Wait(Duration::from_millis(12_001)),
            ),
        ] {
            let mut scene = Scene::new(current, next, trusted);
            let action = scene.settled_at(second);
            // Of several instants that are near, the wait is for the first.
            assert_eq!(action, expected, "{case}");
        }
    }

    #[test]
    fn pair_becomes_current_a_grace_after_it_was_seen_trusted() {
        let mut scene = Scene::new(Some(0), Some(80), &[0]);
        assert_eq!(scene.settled_at(80), trust([&[0, 80]; 4]));
        scene.trusted("2", [&[0, 80], &[0, 80], &[0, 80], &[0]]);
        assert!(
            matches!(scene.at(85), Action::Trust(_)),
            "one entry lacks it"
        );
        scene.trusted("3", [&[0, 80]; 4]);
        assert!(matches!(scene.at(90), Action::Wait(_)));
        assert!(matches!(scene.at(90 + GRACE - 1), Action::Wait(_)));
        assert_eq!(scene.at(90 + GRACE), store(Source::Next, Source::Nothing));
    }

    #[test]
    fn grace_begins_anew_when_a_configuration_has_changed() {
        let mut scene = Scene::new(Some(0), Some(80), &[0, 80]);
        scene.settled_at(80);
        // It may have lacked the CA in between.
        scene.trusted("2", [&[0, 80]; 4]);
        assert!(matches!(scene.at(85), Action::Wait(_)));
        assert!(matches!(scene.at(85 + GRACE - 1), Action::Wait(_)));
        assert!(matches!(scene.at(85 + GRACE), Action::Store { .. }));
    }

    #[test]
    fn replica_switches_when_the_next_pair_is_the_current_one() {
        let mut scene = Scene::new(Some(0), Some(80), &[0, 80]);
        scene.settled_at(80);
        assert_eq!(scene.in_use(), Some(authority(0)));
        scene.sight.stored = Stored {
            current: Some(issued(80)),
            next: None,
        };
        assert_eq!(scene.at(92), Action::Serve(Source::Current));
        assert_eq!(scene.in_use(), Some(authority(80)));
    }

    #[test]
    fn replica_that_saw_the_ca_lacking_waits_for_the_grace_whatever_fails_meanwhile() {
        let mut scene = Scene::new(Some(0), None, &[0]);
        scene.settled_at(80);
        scene.sight.stored.current = Some(issued(80));
        // A look that fails halfway has seen it.
        let (stored, seen) = (
            scene.sight.stored.clone(),
            scene.sight.configurations.clone(),
        );
        scene.replica.note_lacking(&stored, &seen[..1]);
        // A conflict: somebody else has added it.
        scene.trusted("2", [&[0, 80]; 4]);
        assert!(matches!(scene.at(91), Action::Wait(_)));
        assert!(matches!(scene.at(91 + GRACE - 1), Action::Wait(_)));
        assert_eq!(scene.at(91 + GRACE), Action::Serve(Source::Current));
    }

    #[test]
    fn replica_whose_certificate_has_expired_serves_the_current_one_at_once() {
        let mut scene = Scene::new(Some(0), None, &[0]);
        scene.settled_at(10);
        scene.sight.stored.current = Some(issued(100));
        assert!(matches!(scene.at(115), Action::Trust(_)));
        assert_eq!(scene.in_use(), Some(authority(0)));
        assert_eq!(scene.at(121), Action::Serve(Source::Current));
    }

    #[test]
    fn lost_secret_gets_back_what_is_served_and_is_renewed() {
        let mut scene = Scene::new(Some(0), None, &[0]);
        scene.settled_at(10);
        scene.sight.stored = Stored::default();
        assert_eq!(scene.at(20), store(Source::InUse, Source::Fresh));
        // Another replica, which has nothing, was first.
        scene.sight.stored.next = Some(issued(20));
        assert_eq!(scene.at(20), store(Source::InUse, Source::Next));
        assert_eq!(scene.in_use(), Some(authority(0)), "meanwhile");
        // Whatever the Secret says, what is served stays trusted.
        scene.sight.stored = Stored {
            current: Some(issued(20)),
            next: None,
        };
        scene.trusted("2", [&[20]; 4]);
        scene.sight.stored.current = Some(issued(21));
        assert_eq!(scene.at(21), trust([&[20, 0, 21]; 4]));
    }

    #[test]
    fn configuration_that_was_applied_anew_gets_all_cas_again() {
        let mut scene = Scene::new(Some(0), Some(80), &[0, 80]);
        scene.settled_at(80);
        scene.trusted("2", [&[0, 80], &[], &[0, 80], &[0, 80]]);
        let both = || vec![authority(0), authority(80)];
        assert_eq!(scene.at(81), Action::Trust(vec![(0, vec![both(), both()])]));
    }

    #[test]
    fn certificate_for_other_names_is_renewed_at_once_and_served_meanwhile() {
        let mut scene = Scene::new(Some(0), None, &[0]);
        scene.sight.stored.current.as_mut().unwrap().has_all_names = false;
        assert_eq!(scene.at(1), Action::Serve(Source::Current));
        assert_eq!(scene.at(1), store(Source::Current, Source::Fresh));
    }

    #[test]
    fn replicas_with_different_names_do_not_fill_the_bundles() {
        let trusted: Vec<u64> = (0..8).collect();
        let mut scene = Scene::new(Some(0), None, &trusted);
        scene.sight.stored.current.as_mut().unwrap().has_all_names = false;
        assert!(matches!(scene.settled_at(9), Action::Wait(_)));
        // But it is still renewed when it is due.
        assert_eq!(scene.settled_at(80), store(Source::Current, Source::Fresh));
    }

    #[test]
    fn certificate_of_a_replica_whose_clock_is_ahead_is_not_served_before_its_time() {
        let mut scene = Scene::new(Some(0), None, &[0]);
        assert!(matches!(scene.settled_at(1), Action::Wait(_)));
        scene.sight.stored.next = Some(issued(50));
        scene.trusted("2", [&[0, 50]; 4]);
        assert!(matches!(scene.settled_at(2), Action::Wait(_)));
        assert!(matches!(scene.settled_at(2 + GRACE), Action::Wait(_)));
        // The other replica makes it the current one all the same.
        scene.sight.stored = Stored {
            current: Some(issued(50)),
            next: None,
        };
        assert!(matches!(scene.at(40), Action::Wait(_)));
        assert_eq!(scene.at(50), Action::Serve(Source::Current));
    }

    #[test]
    fn certificate_with_a_longer_life_than_wanted_is_renewed_early() {
        let mut scene = Scene::new(Some(0), None, &[0]);
        let current = scene.sight.stored.current.as_mut().unwrap();
        current.not_after = date(1_000_000);
        assert!(matches!(scene.settled_at(79), Action::Wait(_)));
        assert_eq!(scene.at(80), store(Source::Current, Source::Fresh));
    }

    #[test]
    fn replica_is_trusted_once_a_current_pair_is_in_every_entry() {
        let mut scene = Scene::new(None, None, &[]);
        scene.sight.stored.next = Some(issued(0));
        scene.settled_at(0);
        assert!(scene.replica.serves() && !scene.replica.is_trusted());
        scene.trusted("2", [&[0], &[0], &[0], &[]]);
        scene.settled_at(1);
        assert!(!scene.replica.is_trusted());
        scene.trusted("3", [&[0]; 4]);
        scene.settled_at(2);
        assert!(!scene.replica.is_trusted(), "not before it is current");
        scene.sight.stored = Stored {
            current: Some(issued(0)),
            next: None,
        };
        scene.settled_at(3);
        scene.settled_at(3);
        assert!(scene.replica.is_trusted());

        // Without configurations nobody can trust it.
        let mut scene = Scene::new(Some(0), None, &[]);
        scene.sight.configurations.clear();
        scene.settled_at(1);
        scene.settled_at(1);
        assert!(!scene.replica.is_trusted());
    }

    #[test]
    fn grace_goes_with_the_lifetime_within_limits() {
        for (lifetime, grace) in [(10, 1), (20, 2), (120, 12), (90 * 24 * 60 * 60, 30)] {
            let lifetime = Duration::from_secs(lifetime);
            assert_eq!(Schedule { lifetime }.grace(), Duration::from_secs(grace));
        }
    }
}
