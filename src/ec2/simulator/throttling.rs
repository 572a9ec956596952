//! Token buckets by action, as EC2 throttles.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::timestamp::Timestamp;

/// How many calls of an action EC2 takes.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// Tokens that come back in a second.
    pub rate: f64,
    /// Tokens that the full bucket has.
    pub burst: f64,
}

/// How full each action's bucket is.
#[derive(Clone, Debug, Default)]
pub(super) struct Throttling {
    levels: BTreeMap<String, Level>,
}

#[derive(Clone, Copy, Debug)]
struct Level {
    tokens: f64,
    at: Timestamp,
}

impl Throttling {
    /// Fills every bucket.
    pub(super) fn reset(&mut self) {
        self.levels.clear();
    }

    /// Takes a token; `false` when there is none and the call is to be refused.
    pub(super) fn admit(&mut self, action: &str, bucket: Bucket, now: Timestamp) -> bool {
        let full = Level {
            tokens: bucket.burst,
            at: now,
        };
        let level = self.levels.entry(action.to_owned()).or_insert(full);
        let elapsed = now.0.saturating_sub(level.at.0) as f64 / 1_000.0;
        level.tokens = (level.tokens + elapsed * bucket.rate).min(bucket.burst);
        level.at = level.at.max(now);
        let admitted = level.tokens >= 1.0;
        if admitted {
            level.tokens -= 1.0;
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_admitted_and_then_the_rate() {
        let bucket = Bucket {
            rate: 2.0,
            burst: 3.0,
        };
        let mut throttling = Throttling::default();
        for (at, admitted) in [
            (0, true),
            (0, true),
            (0, true),
            (0, false),
            (499, false),
            (500, true),
            (500, false),
            (60_000, true),
            (60_000, true),
            (60_000, true),
            (60_000, false),
        ] {
            let got = throttling.admit("A", bucket, Timestamp(at));
            assert_eq!(got, admitted, "at {at} ms");
        }
        assert!(
            throttling.admit("B", bucket, Timestamp(60_000)),
            "its own bucket"
        );
    }
}
