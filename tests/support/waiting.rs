//! Waiting for a condition, as every test does instead of sleeping for luck.

use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take that happens by itself, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// Tries until `attempt` gives something.
#[track_caller]
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(result) = attempt() {
            return result;
        }
        assert!(begin.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(50));
    }
}
