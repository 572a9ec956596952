//! What is to happen in a churn: each pod's life, and when the allocator is killed. It follows
//! from a seed, so that what went wrong can be played again; only how fast it goes is left to
//! the machine.

use std::time::Duration;

use fastrand::Rng;

/// What a churn is to be like.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many pods are created.
    pub pods: usize,
    /// How often the allocator is killed.
    pub kills: usize,
    /// Another seed is another churn.
    pub seed: u64,
}

/// What is to happen.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Script {
    /// Lives that follow one another have one name, as the pods of a StatefulSet.
    pub(super) sequences: Vec<Vec<Life>>,
    /// By the number of pods that were created before.
    pub(super) kills: Vec<Kill>,
}

/// A pod's life.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Life {
    pub(super) name: String,
    /// Which policies select the pod.
    pub(super) selected: Selected,
    pub(super) course: Course,
}

/// Which of the two policies select a pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Selected {
    pub(super) green: bool,
    pub(super) database: bool,
}

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Course {
    /// It is deleted so long after its creation, whether it has its interface or not.
    Hasty(Duration),
    /// It is deleted after it has run for so long.
    Deleted(Duration),
    /// The same without a grace period.
    Forced(Duration),
    /// It runs for so long, comes to its end, and is deleted so long after that.
    Finished(Duration, Duration),
    /// It runs for so long, comes to its end, and is left there.
    FinishedAndLeft(Duration),
    /// It runs on.
    Stays,
}

/// An end of the allocator.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Kill {
    /// After so many pods were created ...
    pub(super) created: usize,
    /// ... and so long after that.
    pub(super) delay: Duration,
    /// How long it stays away.
    pub(super) away: Duration,
}

impl Script {
    /// Writes a script for a cluster with so many branch interfaces.
    pub(super) fn new(options: &Options, capacity: usize) -> Self {
        let mut random = Rng::with_seed(options.seed);
        // Who stays takes a place for good; the others shall have room.
        let mut may_stay = capacity / 4;
        let mut sequences = Vec::new();
        let mut written = 0;
        while written < options.pods {
            let number = sequences.len();
            let (name, lives) = match random.u8(0..4) {
                0 => (format!("stateful-{number}"), random.usize(2..6)),
                _ => (format!("plain-{number}"), 1),
            };
            let lives = lives.min(options.pods - written);
            written += lives;
            let mut sequence = Vec::new();
            for nth in 1..=lives {
                let is_last = nth == lives;
                let stays = is_last && may_stay > 0 && random.u8(0..8) == 0;
                may_stay -= usize::from(stays);
                sequence.push(Life {
                    name: name.clone(),
                    selected: selected(&mut random),
                    course: match stays {
                        true => Course::Stays,
                        false => course(&mut random, is_last),
                    },
                });
            }
            sequences.push(sequence);
        }
        let mut kills: Vec<_> = (0..options.kills)
            .map(|_| Kill {
                created: random.usize(0..options.pods.max(1)),
                delay: milliseconds(&mut random, 1_500),
                away: milliseconds(&mut random, 1_500),
            })
            .collect();
        kills.sort_by_key(|kill| kill.created);
        Self { sequences, kills }
    }
}

fn selected(random: &mut Rng) -> Selected {
    let (green, database) = match random.u8(0..10) {
        0..4 => (true, false),
        4..7 => (false, true),
        7..9 => (true, true),
        _ => (false, false),
    };
    Selected { green, database }
}

fn course(random: &mut Rng, may_be_left: bool) -> Course {
    let life = milliseconds(random, 8_000);
    match random.u8(0..20) {
        0..3 => Course::Hasty(milliseconds(random, 400)),
        3..5 => Course::Forced(life),
        5..9 => Course::Finished(life, milliseconds(random, 5_000)),
        9 if may_be_left => Course::FinishedAndLeft(life),
        _ => Course::Deleted(life),
    }
}

fn milliseconds(random: &mut Rng, most: u64) -> Duration {
    Duration::from_millis(random.u64(0..=most))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const OPTIONS: Options = Options {
        pods: 500,
        kills: 7,
        seed: 3,
    };

    #[test]
    fn same_seed_writes_the_same_script_and_another_seed_another() {
        let script = Script::new(&OPTIONS, 180);

        assert_eq!(script, Script::new(&OPTIONS, 180));
        let other = Options { seed: 4, ..OPTIONS };
        assert_ne!(script, Script::new(&other, 180));
    }

    #[test]
    fn script_has_all_pods_and_kills_and_every_course() {
        let script = Script::new(&OPTIONS, 180);

        let lives: Vec<_> = script.sequences.iter().flatten().collect();
        assert_eq!(lives.len(), 500);
        assert_eq!(script.kills.len(), 7);
        assert!(script.kills.is_sorted_by_key(|kill| kill.created));
        let courses = lives
            .iter()
            .map(|life| std::mem::discriminant(&life.course));
        let courses: std::collections::HashSet<_> = courses.collect();
        assert_eq!(courses.len(), 6);
        let plain = |life: &&&Life| !life.selected.green && !life.selected.database;
        assert!(lives.iter().any(|life| plain(&life)));
    }

    #[test]
    fn names_are_used_again_only_one_after_the_other() {
        let script = Script::new(&OPTIONS, 180);

        let names = |sequence: &Vec<Life>| sequence.iter().map(|life| life.name.clone()).collect();
        let names: Vec<BTreeSet<String>> = script.sequences.iter().map(names).collect();
        assert!(names.iter().all(|names| names.len() == 1));
        let different: BTreeSet<_> = names.iter().flatten().collect();
        assert_eq!(different.len(), script.sequences.len());
        assert!(script.sequences.iter().any(|sequence| sequence.len() > 1));
        // Whatever stays or is left keeps its name.
        for sequence in &script.sequences {
            let (_, earlier) = sequence.split_last().unwrap();
            let keeps =
                |life: &Life| matches!(life.course, Course::Stays | Course::FinishedAndLeft(_));
            assert!(!earlier.iter().any(keeps), "{sequence:?}");
        }
    }

    #[test]
    fn those_who_stay_leave_room_for_the_others() {
        let script = Script::new(&OPTIONS, 20);

        let lives = script.sequences.iter().flatten();
        let staying = lives.filter(|life| life.course == Course::Stays).count();
        assert!((1..=5).contains(&staying), "{staying}");
    }
}
