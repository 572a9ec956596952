//! Random histories of three replicas: they look late, act on what is no longer so, meet
//! conflicts, lose answers, crash and start; somebody deletes or spoils the Secret and applies
//! configurations without bundles. After every step each certificate that a ready replica
//! serves is trusted by every entry, and has been for as long as an API server may lag behind;
//! once the faults stop, renewals go on as they should.

use proptest::prelude::*;

use super::*;

const SCHEDULE: Schedule = Schedule {
    lifetime: Duration::from_secs(120),
};
const REPLICAS: usize = 3;
const CONFIGURATIONS: usize = 2;
const ENTRIES: usize = 2;
const SECOND: u64 = 1_000;
/// Longer than any API server lags behind, in milliseconds.
const LONGEST_MEMORY: u64 = 60 * SECOND;

#[derive(Clone, Copy, Debug)]
enum Step {
    Advance(u64),
    Look(usize),
    /// Only so many configurations can be read.
    LookFails(usize, usize),
    Decide(usize),
    Land(usize, Landing),
    Crash(usize),
    DeleteSecret,
    SpoilSecret,
    Reapply(usize),
}

/// What becomes of a write that is on its way.
#[derive(Clone, Copy, Debug)]
enum Landing {
    Done,
    /// It has no effect, and the replica learns of a failure.
    Lost,
    /// It has its effect, and the replica learns of a failure.
    Unanswered,
}

fn step() -> impl Strategy<Value = Step> {
    let replica = 0..REPLICAS;
    let landing = prop_oneof![
        6 => Just(Landing::Done),
        1 => Just(Landing::Lost),
        1 => Just(Landing::Unanswered),
    ];
    prop_oneof![
        8 => (0..20 * SECOND).prop_map(Step::Advance),
        20 => replica.clone().prop_map(Step::Look),
        2 => (replica.clone(), 0..CONFIGURATIONS).prop_map(|(it, read)| Step::LookFails(it, read)),
        20 => replica.clone().prop_map(Step::Decide),
        20 => (replica.clone(), landing).prop_map(|(it, landing)| Step::Land(it, landing)),
        1 => replica.prop_map(Step::Crash),
        1 => Just(Step::DeleteSecret),
        1 => Just(Step::SpoilSecret),
        2 => (0..CONFIGURATIONS).prop_map(Step::Reapply),
    ]
}

#[derive(Clone, Debug)]
struct Look {
    sight: Sight,
    secret_version: Option<u64>,
}

#[derive(Clone, Debug)]
enum Write {
    Secret(Stored),
    Bundles(usize, Vec<Vec<Authority>>),
}

#[derive(Clone, Debug, Default)]
struct Process {
    replica: Replica,
    look: Option<Look>,
    /// What is on its way, each as its look has seen the object.
    writes: Vec<(Look, Write)>,
}

/// An object that others may change.
#[derive(Clone, Debug)]
struct Bundles {
    version: u64,
    entries: Vec<Vec<Authority>>,
    /// What it was before, with the time until when.
    before: Vec<(u64, Vec<Vec<Authority>>)>,
    /// Applied without bundles, and not whole again yet.
    is_excused: bool,
}

struct World {
    now: u64,
    start: Instant,
    version: u64,
    made: u64,
    promotions: usize,
    secret: Option<(u64, Stored)>,
    configurations: Vec<Bundles>,
    processes: Vec<Process>,
}

impl World {
    fn new() -> Self {
        let bundles = Bundles {
            version: 0,
            entries: vec![Vec::new(); ENTRIES],
            before: Vec::new(),
            is_excused: true,
        };
        Self {
            now: 0,
            start: Instant::now(),
            version: 0,
            made: 0,
            promotions: 0,
            secret: None,
            configurations: vec![bundles; CONFIGURATIONS],
            processes: vec![Process::default(); REPLICAS],
        }
    }

    fn now(&self) -> Now {
        Now {
            date: self.date(),
            instant: self.start + Duration::from_millis(self.now),
        }
    }

    fn date(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000_000) + Duration::from_millis(self.now)
    }

    fn fresh(&mut self) -> Issued {
        self.made += 1;
        let not_after = self.date() + SCHEDULE.lifetime;
        Issued {
            authority: Authority {
                der: self.made.to_be_bytes().into(),
                not_after,
            },
            at: self.date(),
            not_before: self.date(),
            not_after,
            has_all_names: true,
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Advance(time) => self.now += time,
            Step::Look(replica) => self.processes[replica].look = Some(self.look()),
            Step::LookFails(replica, read) => {
                let look = self.look();
                let process = &mut self.processes[replica];
                let seen = &look.sight.configurations[..read];
                process.replica.note_lacking(&look.sight.stored, seen);
                process.look = None;
            }
            Step::Decide(replica) => self.decide(replica),
            Step::Land(replica, landing) => self.land(replica, landing),
            Step::Crash(replica) => self.processes[replica] = Process::default(),
            Step::DeleteSecret => self.secret = None,
            Step::SpoilSecret => self.write_secret(Stored::default()),
            Step::Reapply(configuration) => {
                let empty = vec![Vec::new(); ENTRIES];
                self.write_bundles(configuration, empty);
                self.configurations[configuration].is_excused = true;
            }
        }
    }

    fn look(&self) -> Look {
        let configuration = |it: &Bundles| Configuration {
            version: it.version.to_string(),
            entries: it.entries.clone(),
        };
        let stored = self.secret.as_ref().map(|(_, stored)| stored.clone());
        Look {
            sight: Sight {
                stored: stored.unwrap_or_default(),
                configurations: self.configurations.iter().map(configuration).collect(),
            },
            secret_version: self.secret.as_ref().map(|(version, _)| *version),
        }
    }

    /// As `self_managed` does with what it has seen.
    fn decide(&mut self, replica: usize) {
        let now = self.now();
        // One thing at a time.
        if !self.processes[replica].writes.is_empty() {
            return;
        }
        let Some(look) = self.processes[replica].look.take() else {
            return;
        };
        let (current, next) = loop {
            let process = &mut self.processes[replica];
            process.replica.see(&look.sight, now);
            match process.replica.next(&look.sight, SCHEDULE, now) {
                Action::Serve(source) => process.replica.serve(&look.sight.stored, source),
                Action::Store { current, next } => break (current, next),
                Action::Trust(changes) => {
                    let write = |(index, bundles)| (look.clone(), Write::Bundles(index, bundles));
                    process.writes = changes.into_iter().map(write).collect();
                    return;
                }
                Action::Wait(_) => return,
            }
        };
        let in_use = self.processes[replica].replica.in_use.clone();
        let mut pair = |source| match source {
            Source::Nothing => None,
            Source::Current => look.sight.stored.current.clone(),
            Source::Next => look.sight.stored.next.clone(),
            Source::InUse => in_use.as_ref().map(|it| it.issued.clone()),
            Source::Fresh => Some(self.fresh()),
        };
        let stored = Stored {
            current: pair(current),
            next: pair(next),
        };
        let write = (look, Write::Secret(stored));
        self.processes[replica].writes.push(write);
    }

    fn land(&mut self, replica: usize, landing: Landing) {
        let Some((look, write)) = self.processes[replica].writes.pop() else {
            return;
        };
        if !matches!(landing, Landing::Done) {
            self.processes[replica].writes.clear();
        }
        if matches!(landing, Landing::Lost) {
            return;
        }
        match write {
            Write::Secret(stored) => {
                if self.secret.as_ref().map(|(version, _)| *version) == look.secret_version {
                    let was = look.sight.stored.next.as_ref();
                    let is_promotion = was.is_some() && stored.current.as_ref() == was;
                    self.promotions += usize::from(is_promotion);
                    self.write_secret(stored);
                }
            }
            Write::Bundles(index, bundles) => {
                let version = self.configurations[index].version.to_string();
                if look.sight.configurations[index].version == version {
                    self.write_bundles(index, bundles);
                }
            }
        }
    }

    fn write_secret(&mut self, stored: Stored) {
        self.version += 1;
        self.secret = Some((self.version, stored));
    }

    fn write_bundles(&mut self, index: usize, bundles: Vec<Vec<Authority>>) {
        self.version += 1;
        let (version, now) = (self.version, self.now);
        let configuration = &mut self.configurations[index];
        let before = std::mem::replace(&mut configuration.entries, bundles);
        // What no API server can know any more.
        configuration
            .before
            .retain(|(until, _)| until + LONGEST_MEMORY > now);
        configuration.before.push((now, before));
        configuration.version = version;
    }

    /// Checks that what ready replicas serve is trusted, whichever of the last states of a
    /// configuration an API server knows.
    fn check(&mut self) -> Result<(), TestCaseError> {
        let date = self.date();
        let is_live = |it: &&Authority| date <= it.not_after;
        // One whose certificate has expired serves the next one before its time, for that can't
        // make it worse.
        let ready = self.processes.iter().filter(|it| it.replica.is_trusted());
        let in_use = ready.filter_map(|it| it.replica.in_use.as_ref());
        let served = in_use.filter(|it| it.was_current);
        let served = served.map(|it| it.issued.authority.clone());
        let served: Vec<_> = served.filter(|it| is_live(&it)).collect();
        let current = self.secret.as_ref().and_then(|(_, it)| it.current.as_ref());
        let current = current.map(|it| &it.authority).filter(is_live).cloned();
        let lag = u64::try_from(SCHEDULE.grace().as_millis()).unwrap();
        let known_since = self.now.saturating_sub(lag);
        for configuration in &mut self.configurations {
            let before = configuration.before.iter();
            let known = before
                .filter(|(until, _)| *until > known_since)
                .map(|(_, entries)| entries)
                .chain([&configuration.entries]);
            let entries: Vec<_> = known.flatten().collect();
            let lacks = |it: &Authority| {
                entries.iter().any(|trusted| {
                    // Where no CA is trusted, no call succeeds that could fail.
                    trusted.iter().any(|it| is_live(&it)) && !trusted.contains(it)
                })
            };
            let lacking = served.iter().find(|it| lacks(it));
            if !configuration.is_excused {
                prop_assert!(lacking.is_none(), "{lacking:?} is not trusted");
            }
            let now_trusted = |it: &Authority| configuration.entries.iter().all(|e| e.contains(it));
            let is_whole = current
                .as_ref()
                .is_some_and(|it| now_trusted(it) && !lacks(it))
                && served.iter().all(|it| now_trusted(it) && !lacks(it));
            configuration.is_excused &= !is_whole;
        }
        Ok(())
    }

    /// All that all replicas do if nothing fails.
    fn calm_second(&mut self) -> Result<(), TestCaseError> {
        self.take(Step::Advance(SECOND));
        self.check()?;
        for replica in 0..REPLICAS {
            // More steps in a row would be a circle.
            for _ in 0..10 {
                self.take(Step::Look(replica));
                self.take(Step::Decide(replica));
                self.check()?;
                if self.processes[replica].writes.is_empty() {
                    break;
                }
                while !self.processes[replica].writes.is_empty() {
                    self.take(Step::Land(replica, Landing::Done));
                    self.check()?;
                }
            }
            self.take(Step::Look(replica));
            self.take(Step::Decide(replica));
            prop_assert!(self.processes[replica].writes.is_empty(), "a circle");
        }
        Ok(())
    }

    /// Whether all serve the Secret's current pair, are ready, and the pair is valid.
    fn is_settled(&self) -> bool {
        let Some(current) = self.secret.as_ref().and_then(|(_, it)| it.current.clone()) else {
            return false;
        };
        let serves = |it: &Process| {
            let in_use = it.replica.in_use.as_ref();
            it.replica.is_trusted() && in_use.is_some_and(|it| it.issued == current)
        };
        self.date() <= current.not_after && self.processes.iter().all(serves)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_is_served_is_trusted_and_renewals_go_on(
        steps in proptest::collection::vec(step(), 0..400),
    ) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
            world.check()?;
        }
        for replica in 0..REPLICAS {
            world.take(Step::Land(replica, Landing::Lost));
        }
        // What faults have left behind is over after a lifetime and two graces at most.
        for _ in 0..145 {
            world.calm_second()?;
        }
        let before = world.promotions;
        let mut unsettled = 0;
        for second in 0..240 {
            world.calm_second()?;
            // The first replica switches a moment before the last.
            unsettled = if world.is_settled() { 0 } else { unsettled + 1 };
            prop_assert!(unsettled <= 30, "at second {second}");
        }
        // Each takes 80 seconds, and a grace.
        let renewals = world.promotions - before;
        prop_assert!((2..=3).contains(&renewals), "{renewals} renewals");
        for configuration in &world.configurations {
            prop_assert!(!configuration.is_excused);
            for entry in &configuration.entries {
                prop_assert!(entry.len() <= 2, "{} CAs", entry.len());
            }
        }
    }
}
