//! One leader among the replicas, by a Lease of `coordination.k8s.io/v1`.
//!
//! What a candidate does next is decided in `candidate`, which also says why no two lead at
//! a time. Here it is carried out.
//!
//! A lease says who may start a call, not when calls that were started come to an end: one
//! that was sent right before the process was stopped can still take effect when another
//! leads. What the leader does has to bear that, by client tokens and by conditions on
//! what it changes.
//!
//! Deleting the Lease by hand frees it at once for a candidate that starts then, while its
//! holder may not know yet. Candidates that run already wait for the holder's time to end.

use std::collections::hash_map::RandomState;
use std::convert::Infallible;
use std::hash::BuildHasher;
use std::pin::pin;
use std::time::Duration;

use backon::{BackoffBuilder, ConstantBuilder};
use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::runtime::watcher::watch_object;
use kube::{Client, Error};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use super::candidate::{Candidate, Step, holder};
use super::request_error::{RequestError, in_time};

pub use super::candidate::Leadership;

/// A request takes at most this part of the lease's time.
const TIMEOUT_DIVISOR: u32 = 3;
/// The pause after a failure is this part of the lease's time, up to twice as long.
const PAUSE_DIVISOR: u32 = 20;

/// One candidate for the leadership.
#[derive(Debug)]
pub struct Election {
    leases: Api<Lease>,
    name: String,
    identity: String,
    duration: Duration,
}

impl Election {
    /// A candidate for the Lease `namespace`/`name`.
    ///
    /// `identity` is for people, usually the pod's name. A random part is added to it, so
    /// that a restarted process never takes the lease of its predecessor, or of another of
    /// the same name, for its own.
    ///
    /// Who has not renewed for `duration` is replaced. The API knows whole seconds: others
    /// wait for the next higher number of them.
    pub fn new(
        client: Client,
        namespace: &str,
        name: &str,
        identity: &str,
        duration: Duration,
    ) -> Self {
        let random = RandomState::new().hash_one(identity);
        Self {
            leases: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity: format!("{identity}_{random:016x}"),
            duration,
        }
    }

    /// What stands in the Lease while this candidate leads.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Acquires the lease, renews it, loses it and acquires it again, for as long as the
    /// future is polled. Each change is sent to `state`.
    ///
    /// Dropping the future ends the renewals and nothing else: what `state` says stays true
    /// until its time is over. To be run once at a time.
    pub async fn run(&self, state: &watch::Sender<Leadership>) -> Infallible {
        let mut candidate = Candidate::new(&self.name, &self.identity, self.duration);
        let mut pauses = ConstantBuilder::new()
            .with_delay(self.duration / PAUSE_DIVISOR)
            .with_jitter()
            .without_max_times()
            .build();
        let mut is_failing = false;
        loop {
            let attempt = match candidate.next_step(Instant::now()) {
                Step::Rest { until } => {
                    sleep_until(until).await;
                    continue;
                }
                Step::Follow { .. } => self.follow(&mut candidate, state).await,
                Step::Read => self.read(&mut candidate).await,
                Step::Write => self.write(&mut candidate).await,
            };
            self.publish(&mut candidate, state);
            let Err(error) = attempt else {
                is_failing = false;
                continue;
            };
            // Once in a row; the retries are many.
            if is_failing {
                debug!(lease = self.name, "cannot use the lease: {error}");
            } else {
                warn!(
                    lease = self.name,
                    "cannot use the lease, trying on: {error}"
                );
            }
            is_failing = true;
            sleep(pauses.next().expect("an endless row of pauses")).await;
            self.publish(&mut candidate, state);
        }
    }

    /// Gives the lease up, if it is still this candidate's, so that another leads at once.
    ///
    /// To be called when [`run`](Self::run) is over and no call that only the leader may
    /// make is started any more, whatever the last state says. A failure is logged; another
    /// then leads when the lease's time is over.
    pub async fn release(&self) {
        match in_time(self.request_timeout(), self.try_release()).await {
            Ok(true) => info!(lease = self.name, "gave up the lease"),
            Ok(false) => {}
            Err(error) => warn!(
                lease = self.name,
                "cannot give up the lease, which ends by itself in {:?}: {error}", self.duration
            ),
        }
    }

    async fn try_release(&self) -> kube::Result<bool> {
        loop {
            let Some(mut lease) = self.leases.get_opt(&self.name).await? else {
                return Ok(false);
            };
            if holder(&lease) != Some(&self.identity) {
                return Ok(false);
            }
            // As client-go leaves it.
            let now = MicroTime(Timestamp::now());
            let spec = lease.spec.get_or_insert_default();
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
            spec.acquire_time = Some(now.clone());
            spec.renew_time = Some(now);
            match self.replace(&lease).await {
                // A renewal that was under way has arrived.
                Err(Error::Api(status)) if status.code == 409 => {}
                outcome => return outcome.map(|_| true),
            }
        }
    }

    async fn read(&self, candidate: &mut Candidate) -> Result<(), RequestError> {
        let patience = candidate.patience(Instant::now(), self.request_timeout());
        let lease = in_time(patience, self.leases.get_opt(&self.name)).await?;
        candidate.observe(lease, Instant::now());
        Ok(())
    }

    async fn write(&self, candidate: &mut Candidate) -> Result<(), RequestError> {
        // Before anything else: from here on the lease's time runs.
        let sent = Instant::now();
        let patience = candidate.patience(sent, self.request_timeout());
        let (lease, exists) = candidate.wanted(Timestamp::now());
        let answer = in_time(patience, async {
            if exists {
                self.replace(&lease).await
            } else {
                self.leases.create(&PostParams::default(), &lease).await
            }
        });
        match answer.await {
            Ok(lease) => candidate.accepted(lease, sent),
            Err(error) if error.is_conflict() => candidate.refused(),
            Err(error) if exists && error.is_not_found() => candidate.refused(),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Follows the changes of the lease until it is time for something else.
    async fn follow(
        &self,
        candidate: &mut Candidate,
        state: &watch::Sender<Leadership>,
    ) -> Result<(), RequestError> {
        let mut changes = pin!(watch_object(self.leases.clone(), &self.name));
        while let Step::Follow { until } = candidate.next_step(Instant::now()) {
            tokio::select! {
                () = sleep_until(until) => {}
                change = changes.next() => match change {
                    Some(Ok(lease)) => candidate.observe(lease, Instant::now()),
                    Some(Err(error)) => {
                        debug!(lease = self.name, "cannot follow the lease: {error}");
                        sleep(self.duration / PAUSE_DIVISOR).await;
                    }
                    None => changes.set(watch_object(self.leases.clone(), &self.name)),
                },
            }
            self.publish(candidate, state);
        }
        Ok(())
    }

    /// Replaces the lease if it still has the version that `lease` carries.
    async fn replace(&self, lease: &Lease) -> kube::Result<Lease> {
        let params = PostParams::default();
        self.leases.replace(&self.name, &params, lease).await
    }

    fn request_timeout(&self) -> Duration {
        self.duration / TIMEOUT_DIVISOR
    }

    fn publish(&self, candidate: &mut Candidate, state: &watch::Sender<Leadership>) {
        candidate.lapse(Instant::now());
        let next = candidate.leadership();
        state.send_if_modified(|last| {
            let (led, leads) = (last.held_until.is_some(), next.held_until.is_some());
            let Self { name, identity, .. } = self;
            if !led && leads {
                info!(lease = name, identity, "leads");
            } else if led && !leads {
                warn!(lease = name, holder = next.holder, "leads no longer");
            } else if last.holder != next.holder {
                info!(lease = name, holder = next.holder, "follows");
            }
            let is_modified = *last != next;
            *last = next;
            is_modified
        });
    }
}
