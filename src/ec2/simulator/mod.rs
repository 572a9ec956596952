//! A simulated Amazon EC2, as a server.
//!
//! It speaks the EC2 Query protocol with XML answers, so that EC2's ordinary clients (the AWS
//! CLI, boto3, the SDKs) work against it by endpoint URL, and it keeps EC2's rules. What it
//! covers is what networking of Kubernetes nodes and pods needs: VPCs, subnets, security
//! groups, instances, network interfaces, trunks. Delays, throttling, faults and missing
//! permissions can be set while it runs.
//!
//! In reading order:
//!
//! * `cloud`: the state, with the rules of each concept in a file beside it (`networks`,
//!   `security_groups`, `instances`, `interfaces`, `trunks`, `tags`). Pure.
//! * `query`, `actions`, `filters`, `pages`, `xml`: from a call's parameters to the
//!   state's functions, and back to an answer. Pure.
//! * `world`: what stands before the state: throttling, permissions, faults, the log. Pure.
//! * `server` and `control`: sockets, clocks and waiting.
//!
//! Signatures are not verified. Nothing here may be taken for what real EC2 costs in time.

mod actions;
mod addresses;
mod call_log;
mod client_tokens;
mod cloud;
mod control;
mod errors;
mod faults;
mod filters;
mod ids;
mod index;
mod instances;
mod interfaces;
mod networks;
mod pages;
mod query;
mod security_groups;
mod server;
mod settings;
mod tags;
mod throttling;
mod timestamp;
mod trunks;
mod world;
mod xml;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

pub use call_log::{CallCounts, LoggedCall};
pub use cloud::{Behaviour, Cloud, Quotas};
pub use errors::Ec2Error;
pub use faults::{Fault, FaultOutcome, Moment};
pub use server::serve;
pub use settings::Settings;
pub use throttling::Bucket;
pub use timestamp::Timestamp;

use world::{Reply, ReplyKind, World};

/// A simulated EC2 that several tasks share. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Simulator {
    /// Held for the length of one call and never across an await.
    world: Arc<Mutex<World>>,
}

/// Why a setting or a state can't be taken.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The text is not the JSON that it should be.
    #[error("not understood")]
    Json(#[from] serde_json::Error),
    /// It contradicts itself, or names what there is not.
    #[error("{0}")]
    Nonsense(String),
}

impl Default for Simulator {
    /// An empty cloud in us-west-2.
    fn default() -> Self {
        Self::new(Cloud::new("us-west-2", "123456789012", 0))
    }
}

impl Simulator {
    /// A simulator of this cloud, with default settings.
    pub fn new(cloud: Cloud) -> Self {
        let world = World::new(cloud, Settings::default());
        Self {
            world: Arc::new(Mutex::new(world)),
        }
    }

    /// The settings in force.
    pub fn settings(&self) -> Settings {
        self.lock().settings.clone()
    }

    /// Puts other settings in force, from the next call on.
    ///
    /// # Errors
    ///
    /// When they name an action that there is not; nothing changes then.
    pub fn set(&self, settings: Settings) -> Result<(), Refused> {
        settings.check().map_err(Refused::Nonsense)?;
        self.lock().set(settings);
        Ok(())
    }

    /// Makes calls go wrong.
    ///
    /// # Errors
    ///
    /// When the fault is of an action that there is not.
    pub fn add_fault(&self, fault: Fault) -> Result<(), Refused> {
        if fault.action != "*" {
            settings::check_action(&fault.action).map_err(Refused::Nonsense)?;
        }
        self.lock().faults.add(fault);
        Ok(())
    }

    /// Faults that are still to happen.
    pub fn faults(&self) -> Vec<Fault> {
        self.lock().faults.list().to_vec()
    }

    /// Lets calls go well again.
    pub fn clear_faults(&self) {
        self.lock().faults.clear();
    }

    /// How many calls came since the last reset.
    pub fn call_counts(&self) -> CallCounts {
        self.lock().calls.counts()
    }

    /// The last 10,000 calls since the last reset, oldest first.
    pub fn calls(&self) -> Vec<LoggedCall> {
        self.lock().calls.calls().cloned().collect()
    }

    /// Forgets all calls, and counts from zero.
    pub fn reset_calls(&self) {
        self.lock().calls.reset();
    }

    /// All of the cloud as JSON.
    ///
    /// # Errors
    ///
    /// Never in practice: everything in there can be written as JSON.
    pub fn save(&self) -> Result<Vec<u8>, Refused> {
        // Written after the lock is let go, so that calls don't wait for it.
        let cloud = self.lock().cloud.clone();
        Ok(serde_json::to_vec(&cloud)?)
    }

    /// Takes a saved cloud in place of the present one. Settings, faults and counts stay.
    ///
    /// # Errors
    ///
    /// When it is no saved cloud or contradicts EC2's rules; nothing changes then.
    pub fn load(&self, json: &[u8]) -> Result<(), Refused> {
        let mut cloud: Cloud = serde_json::from_slice(json)?;
        cloud.reindex().map_err(Refused::Nonsense)?;
        self.lock().replace_cloud(cloud);
        Ok(())
    }

    /// What EC2 could never show, for tests; always empty.
    pub fn contradictions(&self) -> Vec<String> {
        self.lock().cloud.contradictions()
    }

    /// What a call with these parameters, as a form, is answered: HTTP status and XML. `None`
    /// if a fault leaves it without an answer.
    ///
    /// For callers without a socket, who wait for nothing.
    pub fn answer(&self, form: &[u8]) -> Option<(u16, Vec<u8>)> {
        match self.call(form, "").kind {
            ReplyKind::Answer { status, body, .. } => Some((status, body)),
            ReplyKind::Drop | ReplyKind::Hang => None,
        }
    }

    fn call(&self, form: &[u8], access_key_id: &str) -> Reply {
        let now = now();
        self.lock().call(form, access_key_id, now)
    }

    /// A panic in one call must not end all others; each call checks before it changes.
    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let milliseconds = since.unwrap_or_default().as_millis();
    Timestamp(u64::try_from(milliseconds).unwrap_or(u64::MAX))
}
