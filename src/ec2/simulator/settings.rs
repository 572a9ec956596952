//! What can be set while the simulator runs.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::actions;
use super::cloud::Behaviour;
use super::throttling::Bucket;

/// The name that stands for every action without an entry of its own.
const EVERY: &str = "*";

/// How the simulator treats calls. Nothing is slow, throttled or forbidden by default.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How late answers come, by action; `*` for all others. The effect is not late.
    pub latency_ms: BTreeMap<String, u64>,
    /// Token buckets by action; `*` gives each other action a bucket of its own.
    pub throttling: BTreeMap<String, Bucket>,
    /// The only actions that callers may use; absent means all. Others end with
    /// `UnauthorizedOperation`.
    pub allowed_actions: Option<BTreeSet<String>>,
    /// How slow and big the cloud is.
    pub cloud: Behaviour,
}

impl Settings {
    pub(super) fn latency_ms(&self, action: &str) -> u64 {
        let latency = self.latency_ms.get(action);
        latency
            .or_else(|| self.latency_ms.get(EVERY))
            .copied()
            .unwrap_or(0)
    }

    pub(super) fn bucket(&self, action: &str) -> Option<Bucket> {
        let bucket = self.throttling.get(action);
        bucket.or_else(|| self.throttling.get(EVERY)).copied()
    }

    pub(super) fn allows(&self, action: &str) -> bool {
        let allowed = self.allowed_actions.as_ref();
        allowed.is_none_or(|allowed| allowed.contains(action))
    }

    /// # Errors
    ///
    /// The name of an action that there is not, or a bucket that makes no sense.
    pub(super) fn check(&self) -> Result<(), String> {
        let timed = self.latency_ms.keys().chain(self.throttling.keys());
        let allowed = self.allowed_actions.iter().flatten();
        for name in timed.filter(|name| *name != EVERY).chain(allowed) {
            check_action(name)?;
        }
        for (action, bucket) in &self.throttling {
            let sensible = |number: f64| number.is_finite() && number >= 0.0;
            if !sensible(bucket.rate) || !sensible(bucket.burst) {
                return Err(format!(
                    "the bucket of {action} must have numbers of 0 or more"
                ));
            }
        }
        Ok(())
    }
}

/// # Errors
///
/// When there is no such action.
pub(super) fn check_action(name: &str) -> Result<(), String> {
    match actions::find(name) {
        Some(_) => Ok(()),
        None => Err(format!("there is no action {name}")),
    }
}
