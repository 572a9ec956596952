//! When to look at nodes again although nothing has happened.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// One time for each node: whoever is woken finds out when to be woken next.
#[derive(Debug, Default)]
pub(super) struct Wakes {
    by_time: BTreeSet<(Instant, String)>,
    by_name: BTreeMap<String, Instant>,
}

impl Wakes {
    /// Wakes someone then, or earlier if that was wanted before.
    pub(super) fn set(&mut self, at: Instant, who: &str) {
        match self.by_name.get(who) {
            Some(earlier) if *earlier <= at => return,
            Some(later) => {
                self.by_time.remove(&(*later, who.to_owned()));
            }
            None => {}
        }
        self.by_name.insert(who.to_owned(), at);
        self.by_time.insert((at, who.to_owned()));
    }

    /// When the next is due.
    pub(super) fn first(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes one that is due.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<String> {
        if self.first()? > now {
            return None;
        }
        let (_, who) = self.by_time.pop_first()?;
        self.by_name.remove(&who);
        Some(who)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn each_is_woken_once_at_the_earliest_time_that_was_wanted() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut wakes = Wakes::default();
        for seconds in [5, 3, 7] {
            wakes.set(at(seconds), "a");
        }
        wakes.set(at(4), "b");
        assert_eq!(wakes.first(), Some(at(3)));
        assert_eq!(wakes.take_due(at(2)), None);
        assert_eq!(wakes.take_due(at(9)).as_deref(), Some("a"));
        assert_eq!(wakes.take_due(at(9)).as_deref(), Some("b"));
        assert_eq!(wakes.take_due(at(9)), None);
        assert_eq!(wakes.first(), None);
    }
}
