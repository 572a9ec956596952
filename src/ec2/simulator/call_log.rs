//! Every call that came, and how it went.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

use super::timestamp::Timestamp;

/// So many calls are kept one by one; the counts go on beyond.
const KEPT: usize = 10_000;

/// One call.
#[derive(Clone, Debug, Serialize)]
pub struct LoggedCall {
    /// Counts from 1 since the last reset.
    pub number: u64,
    /// When it came.
    pub at: Timestamp,
    /// The action; empty when the call named none.
    pub action: String,
    /// `ok`, the error's code, `dropped` or `hung`.
    pub outcome: String,
    /// Whether a fault made the outcome.
    pub injected: bool,
    /// The request id of the answer.
    pub request_id: String,
    /// The access key that the call was signed with; empty when it was not signed.
    pub access_key_id: String,
    /// What was asked for.
    pub parameters: BTreeMap<String, String>,
}

/// The calls since the last reset.
#[derive(Clone, Debug, Default)]
pub(super) struct CallLog {
    total: u64,
    counts: BTreeMap<String, BTreeMap<String, u64>>,
    calls: VecDeque<LoggedCall>,
}

/// How many calls there were, by action and outcome.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct CallCounts {
    /// All of them.
    pub total: u64,
    /// By action, then by outcome.
    pub by_action: BTreeMap<String, BTreeMap<String, u64>>,
}

impl CallCounts {
    /// All calls of an action, whatever came of them.
    pub fn of(&self, action: &str) -> u64 {
        self.by_action
            .get(action)
            .map_or(0, |outcomes| outcomes.values().sum())
    }
}

impl CallLog {
    pub(super) fn add(&mut self, mut call: LoggedCall) {
        self.total += 1;
        call.number = self.total;
        let outcomes = self.counts.entry(call.action.clone()).or_default();
        *outcomes.entry(call.outcome.clone()).or_default() += 1;
        if self.calls.len() == KEPT {
            self.calls.pop_front();
        }
        self.calls.push_back(call);
    }

    pub(super) fn counts(&self) -> CallCounts {
        CallCounts {
            total: self.total,
            by_action: self.counts.clone(),
        }
    }

    /// The last calls, oldest first.
    pub(super) fn calls(&self) -> impl Iterator<Item = &LoggedCall> {
        self.calls.iter()
    }

    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}
