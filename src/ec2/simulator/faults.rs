//! Faults on demand: which calls go wrong, how, and before or after they took effect.

use serde::{Deserialize, Serialize};

/// Calls that shall go wrong.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// The action, or `*` for every one.
    pub action: String,
    /// So many calls go well first; 2 lets the third be the first that fails.
    #[serde(default)]
    pub skip: u64,
    /// So many calls fail then; without it every one does, until the fault is removed.
    #[serde(default)]
    pub times: Option<u64>,
    /// Whether the call has its effect although its caller learns of none.
    #[serde(default)]
    pub moment: Moment,
    /// What the caller meets.
    pub outcome: FaultOutcome,
}

/// When a call goes wrong.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// Nothing has happened.
    #[default]
    Before,
    /// All has happened, only the answer is wrong.
    After,
}

/// What the caller of a failing call meets.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FaultOutcome {
    /// An error of EC2.
    Error {
        /// Such as `InternalError`.
        code: String,
        /// EC2's usual one where none is given.
        #[serde(default)]
        message: Option<String>,
    },
    /// The connection closes without an answer.
    Drop,
    /// The connection stays open without an answer.
    Hang,
}

/// The faults that are set.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    faults: Vec<Fault>,
}

impl Faults {
    pub(super) fn add(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    pub(super) fn clear(&mut self) {
        self.faults.clear();
    }

    /// What is left to happen.
    pub(super) fn list(&self) -> &[Fault] {
        &self.faults
    }

    /// What happens to this call. Every fault of its action counts it; the first that is due
    /// has its way.
    pub(super) fn meet(&mut self, action: &str) -> Option<(Moment, FaultOutcome)> {
        let mut met = None;
        for fault in &mut self.faults {
            if fault.action != "*" && fault.action != action {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if met.is_none() {
                met = Some((fault.moment, fault.outcome.clone()));
                fault.times = fault.times.map(|times| times.saturating_sub(1));
            }
        }
        self.faults.retain(|fault| fault.times != Some(0));
        met
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(action: &str, skip: u64, times: Option<u64>) -> Fault {
        Fault {
            action: action.to_owned(),
            skip,
            times,
            moment: Moment::Before,
            outcome: FaultOutcome::Drop,
        }
    }

    fn meets(faults: &mut Faults, actions: &[&str]) -> Vec<bool> {
        let meet = |action: &&str| faults.meet(action).is_some();
        actions.iter().map(meet).collect()
    }

    #[test]
    fn the_nth_call_of_its_action_fails_and_no_other() {
        let mut faults = Faults::default();
        faults.add(fault("A", 1, Some(2)));

        let met = meets(&mut faults, &["A", "B", "A", "B", "A", "A"]);

        assert_eq!(met, [false, false, true, false, true, false]);
        assert_eq!(faults.list(), []);
    }

    #[test]
    fn a_fault_without_end_lasts_until_it_is_removed() {
        let mut faults = Faults::default();
        faults.add(fault("*", 0, None));

        assert_eq!(meets(&mut faults, &["A", "B", "A"]), [true; 3]);
        faults.clear();
        assert_eq!(meets(&mut faults, &["A"]), [false]);
    }

    #[test]
    fn faults_are_written_as_the_documentation_says() {
        let fault: Fault = serde_json::from_str(
            r#"{"action": "A", "skip": 2, "times": 1, "moment": "after",
                "outcome": {"error": {"code": "InternalError"}}}"#,
        )
        .unwrap();
        assert_eq!(fault.moment, Moment::After);
        let fault: Fault = serde_json::from_str(r#"{"action": "A", "outcome": "hang"}"#).unwrap();
        assert_eq!((fault.times, fault.outcome), (None, FaultOutcome::Hang));
        let typo = r#"{"action": "A", "tims": 1, "outcome": "hang"}"#;
        assert!(serde_json::from_str::<Fault>(typo).is_err());
    }
}
