//! The file that a simulated EC2 survives restarts in.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context;

use crate::dev::private_file;
use crate::ec2::simulator::Simulator;

/// Written in one step and only when something has changed.
#[derive(Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    /// What was written last. Locked while it is written, so that no older state comes last.
    written: Mutex<Option<Vec<u8>>>,
}

impl StateFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            written: Mutex::default(),
        }
    }

    /// Saves the cloud if it is not what was saved last.
    pub(super) fn save(&self, simulator: &Simulator) -> anyhow::Result<()> {
        self.write(simulator, &mut self.lock())
    }

    /// The same, but only after a first [`Self::save`]: a cloud that is still being set up is
    /// of no use to anybody.
    pub(super) fn save_again(&self, simulator: &Simulator) -> anyhow::Result<()> {
        let mut written = self.lock();
        match *written {
            None => Ok(()),
            Some(_) => self.write(simulator, &mut written),
        }
    }

    fn write(&self, simulator: &Simulator, written: &mut Option<Vec<u8>>) -> anyhow::Result<()> {
        let json = simulator.save()?;
        if written.as_ref() != Some(&json) {
            let result = private_file::write(&self.path, &json);
            result.with_context(|| format!("can't write {}", self.path.display()))?;
            *written = Some(json);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<u8>>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
