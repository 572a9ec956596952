//! What a process used, as the kernel counts it.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Serialize;

/// The time that all threads of a process spent on a CPU. Exact to the few milliseconds
/// that a running thread is ahead of its account.
pub(crate) fn cpu_time(process: u32) -> anyhow::Result<Duration> {
    let folder = format!("/proc/{process}/task");
    let mut nanoseconds = 0;
    for thread in fs::read_dir(&folder).with_context(|| format!("can't read {folder}"))? {
        // A thread that ends between the two looks had nothing to do with the load.
        let Ok(account) = fs::read_to_string(thread?.path().join("schedstat")) else {
            continue;
        };
        let first = account
            .split(' ')
            .next()
            .and_then(|time| time.parse::<u64>().ok());
        nanoseconds += first.with_context(|| format!("{account:?} in {folder}"))?;
    }
    ensure!(
        nanoseconds > 0,
        "this kernel keeps no account in {folder}/*/schedstat"
    );
    Ok(Duration::from_nanos(nanoseconds))
}

/// The memory of a process in MiB.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Memory {
    /// Resident now.
    pub(crate) resident: f64,
    /// Resident at most so far.
    pub(crate) peak: f64,
}

impl Memory {
    pub(crate) fn of(process: u32) -> anyhow::Result<Self> {
        let path = format!("/proc/{process}/status");
        let status = fs::read_to_string(&path).with_context(|| format!("can't read {path}"))?;
        let mebibytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kibibytes =
                line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
            kibibytes
                .map(|kibibytes| kibibytes / 1024.0)
                .with_context(|| format!("no {name} in {path}"))
        };
        Ok(Self {
            resident: mebibytes("VmRSS:")?,
            peak: mebibytes("VmHWM:")?,
        })
    }
}
