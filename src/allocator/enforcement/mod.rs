//! Namespaces that hold a policy fail closed: the leader labels them.
//!
//! Each webhook entry for the creation of pods has a twin that fails closed, and the API
//! server picks between the two by the label [`ENFORCE_LABEL`] of the namespace. The label is
//! applied in our name (server-side apply, [`FIELD_MANAGER`]), so that the API server itself
//! remembers whose it is: to take it back is to apply nothing, and a label that somebody else
//! has set stays. Nothing is kept here: what an earlier leader left behind is seen in the
//! namespaces.
//!
//! What is to be done is decided in `namespaces`, which is pure. Nothing here knows of
//! interfaces, nodes or pods.

mod namespaces;

use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Error};
use prometheus_client::metrics::gauge::Gauge;
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

pub use self::namespaces::{Change, SeenNamespace, SeenPolicy};

use self::namespaces::{Due, Namespaces, Outcome, Step};
use super::election::Leadership;
use super::events::{Event, EventSink, Reason, Regarding};
use super::request_error::{RequestError, in_time};
use crate::api::names::{ENFORCE_LABEL, ENFORCED_VALUE, FIELD_MANAGER};
use crate::api_server::is_not_found;
use crate::api_server::policies::list_policies;

/// How long the API server may take for one request.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What labels the namespaces.
pub struct Enforcement {
    /// For the API server.
    pub client: Client,
    /// What the watches bring.
    pub changes: UnboundedReceiver<Change>,
    /// Whether to write.
    pub leadership: watch::Receiver<Leadership>,
    /// Where people are told.
    pub events: EventSink,
    /// How many namespaces fail closed.
    pub enforced: Gauge,
    /// The namespace that the webhook runs in.
    pub own_namespace: String,
}

/// A call that has ended.
struct Done {
    due: Due,
    result: Result<Outcome, RequestError>,
}

impl Enforcement {
    /// Works until `shutdown`.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut namespaces = Namespaces::new(&self.own_namespace);
        let mut calls = JoinSet::new();
        let mut term = None;
        let mut is_failing = false;
        loop {
            let leadership = self.leadership.borrow_and_update().clone();
            let led = leadership.is_held().then_some(leadership.transitions);
            if term != led {
                term = led;
                calls = JoinSet::new();
                namespaces.begin_anew();
            }
            let mut wakes_at = None;
            if term.is_some() {
                for due in namespaces.due(Instant::now()) {
                    let (client, leadership) = (self.client.clone(), self.leadership.clone());
                    calls.spawn(carry_out(client, leadership, due));
                }
                wakes_at = namespaces.wakes_at();
            }
            let rest = async {
                match wakes_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = &mut shutdown => break,
                changed = self.leadership.changed() => {
                    if changed.is_err() {
                        break;
                    }
                }
                change = self.changes.recv() => {
                    let Some(change) = change else { break };
                    namespaces.apply(change);
                    while let Ok(change) = self.changes.try_recv() {
                        namespaces.apply(change);
                    }
                }
                Some(done) = calls.join_next() => {
                    match done {
                        Ok(Done { due, result }) => {
                            let outcome = self.tell(&due, result, &mut is_failing);
                            namespaces.finished(&due.namespace.name, outcome, Instant::now());
                        }
                        // A bug, which must not leave a namespace alone for good.
                        Err(error) => {
                            tracing::error!(%error, "labelling a namespace was ended by a bug");
                            calls = JoinSet::new();
                            namespaces.begin_anew();
                        }
                    }
                }
                () = rest => {}
            }
            let enforced = i64::try_from(namespaces.enforced());
            self.enforced.set(enforced.unwrap_or(i64::MAX));
        }
    }

    /// Says what has become of a call.
    fn tell(
        &self,
        due: &Due,
        result: Result<Outcome, RequestError>,
        is_failing: &mut bool,
    ) -> Outcome {
        let Due { namespace, step } = due;
        let name = &namespace.name;
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(error) => {
                let what = match step {
                    Step::Label => {
                        "can't label a namespace, where pods still start without \
                                    their security groups while no webhook answers"
                    }
                    Step::Unlabel => {
                        "can't unlabel a namespace, which still gets no pods \
                                      while no webhook answers"
                    }
                };
                // Once in a row; the retries are many.
                if *is_failing {
                    debug!(namespace = name, %error, "{what}");
                } else {
                    warn!(namespace = name, %error, "{what}; trying on");
                }
                *is_failing = true;
                return Outcome::Failed;
            }
        };
        *is_failing = false;
        let Outcome::Written(now) = &outcome else {
            return outcome;
        };
        match (namespace.is_labelled, now.is_labelled) {
            (false, true) => {
                info!(
                    namespace = name,
                    "a namespace with a policy fails closed now"
                );
                let note = format!(
                    "The namespace has a SecurityGroupPolicy and is labelled \
                     {ENFORCE_LABEL}={ENFORCED_VALUE}: while no webhook answers, no pod is created here"
                );
                self.publish(namespace, Reason::NamespaceEnforced, "Label", note);
            }
            (true, false) => {
                info!(
                    namespace = name,
                    "a namespace without policies fails open again"
                );
                let note = format!(
                    "No valid SecurityGroupPolicy is left and the label {ENFORCE_LABEL} is taken back: \
                     while no webhook answers, pods are created as they are"
                );
                self.publish(namespace, Reason::NamespaceUnenforced, "Unlabel", note);
            }
            (true, true) if *step == Step::Unlabel => {
                info!(
                    namespace = name,
                    "a namespace without policies fails closed on, by a label of somebody else"
                );
            }
            _ => debug!(
                namespace = name,
                ?step,
                "the label of a namespace is as it was"
            ),
        }
        outcome
    }

    fn publish(&self, namespace: &SeenNamespace, reason: Reason, action: &str, note: String) {
        let regarding = Regarding::Namespace {
            name: namespace.name.clone(),
            uid: namespace.uid.clone(),
        };
        self.events
            .publish(Event::new(regarding, reason, action, note));
    }
}

async fn carry_out(client: Client, leadership: watch::Receiver<Leadership>, due: Due) -> Done {
    let result = write(&client, &leadership, &due).await;
    Done { due, result }
}

async fn write(
    client: &Client,
    leadership: &watch::Receiver<Leadership>,
    due: &Due,
) -> Result<Outcome, RequestError> {
    let Due { namespace, step } = due;
    // A namespace that is opened too early starts pods without their groups, so the watch is
    // not enough.
    if *step == Step::Unlabel && in_time(TIMEOUT, has_valid_policy(client, &namespace.name)).await?
    {
        return Ok(Outcome::NotWritten);
    }
    // Time has passed.
    if !leadership.borrow().is_held() {
        return Ok(Outcome::NotWritten);
    }
    // The UID, so that a namespace that is gone is not created, nor its successor changed.
    let mut wanted = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": namespace.name, "uid": namespace.uid},
    });
    if *step == Step::Label {
        wanted["metadata"]["labels"] = json!({ENFORCE_LABEL: ENFORCED_VALUE});
    }
    // By force: another value is taken over.
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let api = Api::<Namespace>::all(client.clone());
    let patch = Patch::Apply(&wanted);
    let written = in_time(
        TIMEOUT,
        api.patch_metadata(&namespace.name, &parameters, &patch),
    );
    Ok(Outcome::Written(SeenNamespace::from(&written.await?)))
}

/// Whether the API server has a policy of the namespace that can select pods.
async fn has_valid_policy(client: &Client, namespace: &str) -> Result<bool, Error> {
    match list_policies(client, namespace).await {
        Ok(policies) => Ok(policies.counts().0 > 0),
        Err(error) if is_not_found(&error) => Ok(false),
        Err(error) => Err(error),
    }
}
