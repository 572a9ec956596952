//! The watches that keep [`Cluster`] up to date. They never end by themselves.

use std::fmt::Debug;
use std::time::Duration;

use futures::{Stream, StreamExt, pin_mut};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::Api;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event, ExponentialBackoff};
use kube::runtime::{WatchStreamExt, watcher as watch_objects};

use super::cluster::{
    Cluster, Feed, Namespaces, Policies, ServiceAccounts, is_not_found, policy_resource,
};

/// Runs all watches.
pub async fn run(cluster: &Cluster, client: kube::Client) {
    // A page is held as text and as objects; small ones keep the memory's peak low.
    let config = watcher::Config::default().page_size(100);
    let resource = policy_resource();
    let policies = watch_objects(Api::all_with(client.clone(), &resource), config.clone());
    let service_accounts = Api::<PartialObjectMeta<ServiceAccount>>::all(client.clone());
    let namespaces = Api::<PartialObjectMeta<Namespace>>::all(client);
    tokio::join!(
        follow_policies(cluster, policies.backoff(backoff())),
        follow(
            "serviceaccounts",
            ServiceAccounts(cluster),
            watch_objects(service_accounts, config.clone()).backoff(backoff()),
        ),
        follow(
            "namespaces",
            Namespaces(cluster),
            watch_objects(namespaces, config).backoff(backoff()),
        ),
    );
}

/// Short enough that a resource that appears, or an API server that comes back, is noticed
/// within seconds.
fn backoff() -> ExponentialBackoff {
    let longest = Duration::from_secs(3);
    let builder = backon::ExponentialBuilder::default().with_min_delay(longest / 16);
    builder
        .with_max_delay(longest)
        .without_max_times()
        .with_jitter()
        .into()
}

async fn follow<K: Debug>(
    name: &'static str,
    feed: impl Feed<K>,
    events: impl Stream<Item = watcher::Result<Event<K>>>,
) {
    let mut feeding = Feeding::new(feed);
    pin_mut!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => feeding.take(event),
            Err(error) => tracing::warn!(watch = name, %error, "watch failed, starting it again"),
        }
    }
}

/// Follows the policies, whose resource may not be defined yet: then there are none, and
/// the watch is tried again until there are.
async fn follow_policies(
    cluster: &Cluster,
    events: impl Stream<Item = watcher::Result<Event<kube::api::DynamicObject>>>,
) {
    let mut feeding = Feeding::new(Policies(cluster));
    pin_mut!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if matches!(event, Event::InitDone) && cluster.set_definition_installed(true) {
                    tracing::info!("SecurityGroupPolicies are defined now");
                }
                feeding.take(event);
            }
            Err(error) if is_undefined(&error) => {
                if cluster.set_definition_installed(false) {
                    tracing::warn!(
                        "SecurityGroupPolicies are not defined in this cluster: every pod is let \
                         in unchanged until the definition is applied (manifests/crds)"
                    );
                }
                feeding.feed.reset(Default::default());
            }
            Err(error) => {
                tracing::warn!(watch = "securitygrouppolicies", %error,
                    "watch failed, starting it again");
            }
        }
    }
}

fn is_undefined(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => is_not_found(error),
        _ => false,
    }
}

/// A feed and the index of a list that is not complete yet.
struct Feeding<K, F: Feed<K>> {
    feed: F,
    listed: F::Index,
}

impl<K, F: Feed<K>> Feeding<K, F> {
    fn new(feed: F) -> Self {
        Self {
            feed,
            listed: F::Index::default(),
        }
    }

    fn take(&mut self, event: Event<K>) {
        match event {
            Event::Init => self.listed = F::Index::default(),
            // Only what the index keeps stays in memory, not the objects of a whole cluster.
            Event::InitApply(object) => F::add(&mut self.listed, object),
            Event::InitDone => self.feed.reset(std::mem::take(&mut self.listed)),
            Event::Apply(object) => self.feed.apply(object),
            Event::Delete(object) => self.feed.delete(&object),
        }
    }
}
