//! What a churn has come to, as a table.

use std::fmt;
use std::time::Duration;

use super::Options;
use super::audit::{Finding, Wrong};
use crate::ec2::simulator::CallCounts;

/// How many findings of one kind are listed.
const LISTED: usize = 10;

/// What a churn has come to.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was asked for.
    pub options: Options,
    /// How many nodes take part.
    pub nodes: usize,
    /// How long pods came and went.
    pub took: Duration,
    /// Pods that were created.
    pub created: usize,
    /// Of these, those that were deleted.
    pub deleted: usize,
    /// Of the rest, those that came to their end.
    pub finished: usize,
    /// Of the rest, those that run.
    pub running: usize,
    /// Of the rest, those that wait.
    pub waiting: usize,
    /// Trunks in EC2, and how many there are to be.
    pub trunks: (usize, usize),
    /// Branches in EC2, and how many there are to be.
    pub branches: (usize, usize),
    /// Branches beyond those when the last pod had gone.
    pub resting: usize,
    /// How long they took to go.
    pub settled_after: Duration,
    /// How long each pod had a node and no annotation; ascending.
    pub waits: Vec<Duration>,
    /// The allocator's calls to EC2.
    pub calls: CallCounts,
    /// Everything that is wrong.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    fn percentile(&self, percent: usize) -> f64 {
        let index = self.waits.len().saturating_sub(1) * percent / 100;
        self.waits
            .get(index)
            .map_or(f64::NAN, Duration::as_secs_f64)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { pods, kills, seed } = self.options;
        let (nodes, took) = (self.nodes, self.took.as_secs_f64());
        writeln!(
            f,
            "Churn of {pods} pods on {nodes} nodes, allocator killed {kills} times, seed {seed}, \
             {took:.0} s"
        )?;
        writeln!(f, "\n{:42} {:>9}", "Pods", "number")?;
        for (name, number) in [
            ("created", self.created),
            ("deleted", self.deleted),
            ("finished and left", self.finished),
            ("running", self.running),
            ("waiting", self.waiting),
        ] {
            writeln!(f, "  {name:40} {number:9}")?;
        }
        writeln!(
            f,
            "\n{:42} {:>9} {:>9}",
            "Interfaces in EC2", "found", "expected"
        )?;
        for (name, (found, expected)) in [
            ("trunks (nodes that take part)", self.trunks),
            ("branches (living pods that need one)", self.branches),
        ] {
            writeln!(f, "  {name:40} {found:9} {expected:9}")?;
        }
        writeln!(
            f,
            "  {} more branches rested after the last pod had gone; this is {:.1} s later",
            self.resting,
            self.settled_after.as_secs_f64()
        )?;
        writeln!(f, "\n{:42} {:>9}", "What must not be", "number")?;
        for wrong in Wrong::ALL {
            let found: Vec<_> = self
                .findings
                .iter()
                .filter(|it| it.wrong == wrong)
                .collect();
            let number = found.len();
            writeln!(f, "  {wrong:40} {number:9}")?;
            for finding in found.iter().take(LISTED) {
                writeln!(f, "    {}", finding.what)?;
            }
            if number > LISTED {
                writeln!(f, "    ... and {} more", number - LISTED)?;
            }
        }
        writeln!(
            f,
            "\n{:42} {:>9} {:>9}  other outcomes",
            "Calls to EC2", "ok", "other"
        )?;
        for (action, outcomes) in &self.calls.by_action {
            let ok = outcomes.get("ok").copied().unwrap_or(0);
            let other = self.calls.of(action) - ok;
            let codes = outcomes.iter().filter(|(outcome, _)| *outcome != "ok");
            let codes: Vec<_> = codes
                .map(|(code, number)| format!("{code} {number}"))
                .collect();
            let line = format!("  {action:40} {ok:9} {other:9}  {}", codes.join(", "));
            writeln!(f, "{}", line.trim_end())?;
        }
        writeln!(
            f,
            "\n{:42} {:>9}",
            "From a pod's node to its annotation", "seconds"
        )?;
        for (name, percent) in [
            ("half of the pods within", 50),
            ("99 of 100 within", 99),
            ("all within", 100),
        ] {
            writeln!(f, "  {name:40} {:9.3}", self.percentile(percent))?;
        }
        writeln!(
            f,
            "  ({} pods; who comes to a node whose branches all rest waits too, and a kill begins\n  their rest anew)",
            self.waits.len()
        )?;
        match self.findings.len() {
            0 => writeln!(f, "\nNothing is wrong."),
            1 => writeln!(f, "\n1 thing is wrong."),
            number => writeln!(f, "\n{number} things are wrong."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(findings: Vec<Finding>) -> Report {
        let mut calls = CallCounts::default();
        let outcomes = [("ok".to_owned(), 7), ("RequestLimitExceeded".to_owned(), 2)];
        let action = "CreateNetworkInterface".to_owned();
        calls.by_action.insert(action, outcomes.into());
        Report {
            options: Options {
                pods: 10,
                kills: 2,
                seed: 5,
            },
            nodes: 3,
            took: Duration::from_secs(20),
            created: 10,
            deleted: 6,
            finished: 1,
            running: 3,
            waiting: 0,
            trunks: (3, 3),
            branches: (4, 3),
            resting: 5,
            settled_after: Duration::from_secs(31),
            waits: (1..=100).map(Duration::from_millis).collect(),
            calls,
            findings,
        }
    }

    #[test]
    fn table_shows_what_is_wrong_and_only_the_first_of_many() {
        let leak = |number| Finding::new(Wrong::Leaked, format!("branch {number:02} is nobody's"));
        let shown = report((0..12).map(leak).collect()).to_string();

        assert!(
            shown.contains("branch 09 is nobody's\n    ... and 2 more\n"),
            "{shown}"
        );
        assert!(!shown.contains("branch 10"), "{shown}");
        assert!(shown.ends_with("12 things are wrong.\n"), "{shown}");
    }

    #[test]
    fn table_shows_calls_with_their_outcomes_and_waits() {
        let shown = report(Vec::new()).to_string();
        let lines: Vec<Vec<&str>> = shown
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();

        for line in [
            "CreateNetworkInterface 7 2 RequestLimitExceeded 2",
            "99 of 100 within 0.099",
            "all within 0.100",
            "Nothing is wrong.",
        ] {
            let line: Vec<_> = line.split_whitespace().collect();
            assert!(lines.contains(&line), "{line:?} is not in\n{shown}");
        }
    }
}
