//! Trunk and branch interfaces: what each node has, what it should have, and the calls
//! between.
//!
//! Level-triggered: [`plan`] compares the wanted state of one node with what EC2, the API
//! server and the calls under way say, and names the next actions. They are carried out, what
//! has come of them is observed, and it plans anew. Losing the process loses nothing, because
//! everything that counts is observed anew.
//!
//! The pure part, which makes no call and reads no clock: `plan` and the types of `node`;
//! `state`, through failures and late answers; `cluster` and `desired`, what follows from the
//! objects of the API server; `retry`. Around it: `watches` bring objects, `worker` is the
//! loop, `calls` and `chores` carry out. [`election`] says which replica works, [`events`]
//! tells people, [`groups`] asks EC2 for security groups, [`socket`] answers the webhook.
//!
//! Apart from all that, and also where somebody else makes the interfaces, `enforcement`
//! labels the namespaces that fail closed.

mod calls;
mod candidate;
mod chores;
mod cluster;
pub mod cooldown;
mod desired;
pub mod election;
mod enforcement;
pub mod events;
pub mod groups;
pub mod health;
mod messages;
mod node;
mod objects;
mod plan;
mod request_error;
mod retry;
#[cfg(test)]
mod simulation;
pub mod socket;
mod state;
pub mod view;
mod vlan;
mod watches;
mod worker;

pub use node::{
    AssociationId, Branch, BranchId, DesiredNode, DesiredPod, ObservedNode, PodUid, Subject, Trunk,
    TrunkId,
};
pub use plan::{Action, Plan, plan};
pub use vlan::VlanId;
pub use worker::Settings;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use kube::Client;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{mpsc, watch};

use self::calls::Calls;
use self::election::{Election, Leadership};
use self::enforcement::Enforcement;
use self::groups::GroupDirectory;
use self::socket::Known;
use self::view::View;
use self::watches::Listeners;
use self::worker::{Parts, Worker};
use crate::ec2::calls::Ec2;
use crate::telemetry::allocator::AllocatorMetrics;

/// How long everything may take to end.
const FAREWELL: Duration = Duration::from_millis(1_500);

/// What the allocator runs with.
pub struct Allocator {
    /// For the API server.
    pub client: Client,
    /// For EC2. Its calls that change something have to ask `leadership` first.
    pub ec2: Arc<dyn Ec2>,
    /// Who works.
    pub election: Election,
    /// Where the election says whether this process does.
    pub leadership: watch::Sender<Leadership>,
    /// Whether whoever works makes interfaces; if not, because EKS's own controller does, it
    /// only labels namespaces.
    pub makes_interfaces: bool,
    /// The namespace that webhook and allocators run in, which never fails closed.
    pub own_namespace: String,
    /// Where the webhook asks.
    pub socket: socket::Listener,
    /// Set once the cluster is known; see [`health`].
    pub is_ready: Arc<AtomicBool>,
    /// What is counted.
    pub metrics: AllocatorMetrics,
    /// What an operator sets.
    pub settings: Settings,
}

impl Allocator {
    /// Runs until `shutdown`, and gives the lease up at the end.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let (changes, to_worker) = mpsc::unbounded_channel();
        let (seen, to_enforcement) = mpsc::unbounded_channel();
        let (view, shown) = watch::channel(Arc::new(View::default()));
        let identity = self.election.identity();
        let dropped = self.metrics.events_dropped.clone();
        let (events, writer) = events::channel(self.client.clone(), identity, dropped);
        // To be the leader of those who make interfaces.
        let (never, _) = watch::channel(Leadership::default());
        let makes_interfaces = match self.makes_interfaces {
            true => &self.leadership,
            false => &never,
        };
        let enforcement = Enforcement {
            client: self.client.clone(),
            changes: to_enforcement,
            leadership: self.leadership.subscribe(),
            events: events.clone(),
            enforced: self.metrics.enforced_namespaces.clone(),
            own_namespace: self.own_namespace,
        };
        let leading = self.metrics.leading.clone();
        let groups = Arc::new(GroupDirectory::new(self.ec2.clone()));
        let known = Known {
            view: shown,
            groups: groups.clone(),
            is_ready: self.is_ready.clone(),
        };
        let cluster_name = self.settings.cluster_name.clone();
        let worker = Worker::new(Parts {
            client: self.client.clone(),
            calls: Calls::new(
                self.ec2,
                self.client.clone(),
                cluster_name,
                makes_interfaces.subscribe(),
            ),
            changes: to_worker,
            leadership: makes_interfaces.subscribe(),
            groups,
            events,
            view,
            is_ready: self.is_ready,
            metrics: self.metrics,
            settings: self.settings,
        });
        let (stop, stopped) = watch::channel(false);
        let until_stopped = |mut stopped: watch::Receiver<bool>| async move {
            // The sender lives until all is over.
            let _ = stopped.wait_for(|stopped| *stopped).await;
        };
        let work = async {
            tokio::join!(
                worker.run(until_stopped(stopped.clone())),
                enforcement.run(until_stopped(stopped.clone())),
                writer.run(),
                socket::serve(self.socket, known, until_stopped(stopped)),
            );
        };
        let compete = async { match self.election.run(&self.leadership).await {} };
        let listeners = Listeners {
            cluster: changes,
            enforcement: seen,
        };
        let stop_in_order = async {
            shutdown.await;
            tracing::info!("shutting down");
            stop.send_replace(true);
            // Whoever hangs on an API server that does not answer is left behind.
            tokio::time::sleep(FAREWELL).await;
        };
        tokio::select! {
            () = work => {}
            () = stop_in_order => {}
            () = watches::run(self.client, listeners) => {}
            () = compete => {}
            () = show_leadership(self.leadership.subscribe(), leading) => {}
        }
        self.election.release().await;
    }
}

/// Keeps the metric that says whether this process leads.
async fn show_leadership(mut leadership: watch::Receiver<Leadership>, leading: Gauge) {
    loop {
        leading.set(leadership.borrow_and_update().is_held().into());
        if leadership.changed().await.is_err() {
            return;
        }
    }
}
