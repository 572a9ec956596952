//! What the webhook knows of the cluster: indexes fed by watches, and bounded live lookups
//! for what they have not seen yet.
//!
//! "Not seen yet" and "does not exist" are different answers. A namespace or service
//! account that the watches have not brought is asked for live, once for all requests that
//! wait for it; only the API server's own "not found" counts as missing.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::{ApiResource, PartialObjectMeta};
use kube::{Client, ResourceExt};
use thiserror::Error;

use super::lookup::{Lookup, LookupError};
use crate::api::SecurityGroupPolicy;
use crate::policy::service_accounts::ServiceAccountLabels;
use crate::policy::{NamespacePolicies, Policy, PolicyIndex, ServiceAccountIndex};
use crate::telemetry::metrics::{LookupMetrics, WatchMetrics};

/// How long a request waits for the API server. With this the API server's own time-out for
/// a webhook (5 s in our manifests) is never used up.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// What the webhook knows of the cluster.
pub struct Cluster {
    client: Client,
    policies: RwLock<PolicyIndex>,
    service_accounts: RwLock<ServiceAccountIndex>,
    namespaces: RwLock<HashSet<Box<str>>>,
    policies_synced: AtomicBool,
    service_accounts_synced: AtomicBool,
    namespaces_synced: AtomicBool,
    definition_installed: AtomicBool,
    policy_lookup: Lookup<String, Option<Arc<NamespacePolicies>>>,
    service_account_lookup: Lookup<(String, String), Option<ServiceAccountLabels>>,
    watch_metrics: WatchMetrics,
}

/// The resource of SecurityGroupPolicies, read object by object as raw JSON so that one that
/// can't be read does not hide the others.
pub(super) fn policy_resource() -> ApiResource {
    ApiResource::erase::<SecurityGroupPolicy>(&())
}

/// Parses a policy as it is stored.
fn parse_policy(object: &DynamicObject) -> Result<Policy, crate::policy::InvalidPolicy> {
    Policy::parse(&object.name_any(), &object.data["spec"])
}

/// The API server could not be asked.
#[derive(Debug, Error)]
#[error("{what} could not be looked up: {error}")]
pub struct Unknown {
    what: String,
    error: LookupError,
}

impl Cluster {
    /// Knows nothing yet; `watch::run` fills it.
    pub fn new(client: Client, lookups: &LookupMetrics, watch_metrics: WatchMetrics) -> Self {
        Self {
            client,
            policies: RwLock::default(),
            service_accounts: RwLock::default(),
            namespaces: RwLock::default(),
            policies_synced: AtomicBool::new(false),
            service_accounts_synced: AtomicBool::new(false),
            namespaces_synced: AtomicBool::new(false),
            definition_installed: AtomicBool::new(true),
            policy_lookup: Lookup::new(LOOKUP_TIMEOUT, lookups.policies.clone()),
            service_account_lookup: Lookup::new(LOOKUP_TIMEOUT, lookups.service_accounts.clone()),
            watch_metrics,
        }
    }

    /// The watches that have not brought their first full list yet.
    pub fn out_of_sync(&self) -> Vec<&'static str> {
        let watches = [
            ("securitygrouppolicies", &self.policies_synced),
            ("serviceaccounts", &self.service_accounts_synced),
            ("namespaces", &self.namespaces_synced),
        ];
        let waiting = watches
            .into_iter()
            .filter(|(_, synced)| !synced.load(Ordering::Relaxed));
        waiting.map(|(name, _)| name).collect()
    }

    /// The policies of a namespace; `None` if it has none.
    pub async fn policies(
        &self,
        namespace: &str,
    ) -> Result<Option<Arc<NamespacePolicies>>, Unknown> {
        if let Some(policies) = self.policies.read().expect(POISONED).namespace(namespace) {
            return Ok(Some(policies));
        }
        let known = self.namespaces.read().expect(POISONED).contains(namespace);
        if known || !self.definition_installed.load(Ordering::Relaxed) {
            return Ok(None);
        }
        // So new that the watches have not brought it: neither may they its policies.
        let resource = policy_resource();
        let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), namespace, &resource);
        let name = namespace.to_owned();
        let list = async move {
            match api.list(&ListParams::default()).await {
                Ok(list) => {
                    let mut index = PolicyIndex::default();
                    for object in list {
                        index.apply(&name, parse_policy(&object));
                    }
                    Ok(index.namespace(&name))
                }
                Err(error) if is_not_found(&error) => Ok(None),
                Err(error) => Err(error),
            }
        };
        let what = || format!("the SecurityGroupPolicies of namespace {namespace:?}");
        let found = self.policy_lookup.run(namespace.to_owned(), list).await;
        found.map_err(|error| Unknown {
            what: what(),
            error,
        })
    }

    /// The labels of a service account; `None` if the API server says that there is none.
    pub async fn service_account_labels(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<ServiceAccountLabels>, Unknown> {
        let seen = self
            .service_accounts
            .read()
            .expect(POISONED)
            .labels(namespace, name);
        if seen.is_some() {
            return Ok(seen);
        }
        let api = Api::<ServiceAccountMeta>::namespaced(self.client.clone(), namespace);
        let key = (namespace.to_owned(), name.to_owned());
        let get = {
            let name = name.to_owned();
            async move {
                let account = api.get_opt(&name).await?;
                Ok(account.map(|account| labels_of(&account)))
            }
        };
        let what = || format!("ServiceAccount {name:?} of namespace {namespace:?}");
        let found = self.service_account_lookup.run(key, get).await;
        found.map_err(|error| Unknown {
            what: what(),
            error,
        })
    }

    /// Notes whether the API server knows SecurityGroupPolicies; true if that is news.
    pub(super) fn set_definition_installed(&self, installed: bool) -> bool {
        self.watch_metrics
            .definition_installed
            .set(i64::from(installed));
        self.definition_installed.swap(installed, Ordering::Relaxed) != installed
    }
}

/// A panic while an index is written leaves it in an unknown state; the process must end.
const POISONED: &str = "no index writer panics";

/// Whether the API server says that it does not know the resource or the object.
pub(super) fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// What a watch feeds.
pub(super) trait Feed<K> {
    /// What is known of all objects.
    type Index: Default;
    /// Puts an object of a list into the index that the list will make.
    fn add(index: &mut Self::Index, object: K);
    /// A new or changed object.
    fn apply(&self, object: K);
    /// An object that is gone.
    fn delete(&self, object: &K);
    /// All objects that there are.
    fn reset(&self, index: Self::Index);
}

/// The SecurityGroupPolicies of a cluster.
pub(super) struct Policies<'a>(pub(super) &'a Cluster);

impl Policies<'_> {
    fn update(&self, change: impl FnOnce(&mut PolicyIndex)) {
        let mut index = self.0.policies.write().expect(POISONED);
        change(&mut index);
        let (valid, invalid) = index.counts();
        self.0.watch_metrics.count_policies(valid, invalid);
    }
}

impl Feed<DynamicObject> for Policies<'_> {
    type Index = PolicyIndex;

    fn add(index: &mut PolicyIndex, object: DynamicObject) {
        let namespace = object.namespace().unwrap_or_default();
        index.apply(&namespace, parse_policy(&object));
    }

    fn apply(&self, object: DynamicObject) {
        let policy = parse_policy(&object);
        let namespace = object.namespace().unwrap_or_default();
        if let Err(invalid) = &policy {
            tracing::warn!(namespace, policy = %invalid.name, problem = %invalid.problem,
                "SecurityGroupPolicy is ignored");
        }
        self.update(|index| index.apply(&namespace, policy));
    }

    fn delete(&self, object: &DynamicObject) {
        let namespace = object.namespace().unwrap_or_default();
        self.update(|index| index.delete(&namespace, &object.name_any()));
    }

    fn reset(&self, fresh: PolicyIndex) {
        self.update(|index| *index = fresh);
        self.0.policies_synced.store(true, Ordering::Relaxed);
    }
}

/// The service accounts of a cluster.
pub(super) struct ServiceAccounts<'a>(pub(super) &'a Cluster);

type ServiceAccountMeta = PartialObjectMeta<ServiceAccount>;

fn labels_of(account: &ServiceAccountMeta) -> ServiceAccountLabels {
    let labels = account.metadata.labels.as_ref();
    labels.map(ServiceAccountLabels::from).unwrap_or_default()
}

impl Feed<ServiceAccountMeta> for ServiceAccounts<'_> {
    type Index = ServiceAccountIndex;

    fn add(index: &mut ServiceAccountIndex, account: ServiceAccountMeta) {
        let namespace = account.namespace().unwrap_or_default();
        index.apply(&namespace, &account.name_any(), labels_of(&account));
    }

    fn apply(&self, account: ServiceAccountMeta) {
        let mut index = self.0.service_accounts.write().expect(POISONED);
        Self::add(&mut index, account);
    }

    fn delete(&self, account: &ServiceAccountMeta) {
        let namespace = account.namespace().unwrap_or_default();
        let mut index = self.0.service_accounts.write().expect(POISONED);
        index.delete(&namespace, &account.name_any());
    }

    fn reset(&self, fresh: ServiceAccountIndex) {
        *self.0.service_accounts.write().expect(POISONED) = fresh;
        self.0
            .service_accounts_synced
            .store(true, Ordering::Relaxed);
    }
}

/// The names of a cluster's namespaces.
pub(super) struct Namespaces<'a>(pub(super) &'a Cluster);

impl Feed<PartialObjectMeta<Namespace>> for Namespaces<'_> {
    type Index = HashSet<Box<str>>;

    fn add(index: &mut HashSet<Box<str>>, namespace: PartialObjectMeta<Namespace>) {
        index.insert(namespace.name_any().into());
    }

    fn apply(&self, namespace: PartialObjectMeta<Namespace>) {
        let mut index = self.0.namespaces.write().expect(POISONED);
        Self::add(&mut index, namespace);
    }

    fn delete(&self, namespace: &PartialObjectMeta<Namespace>) {
        let mut index = self.0.namespaces.write().expect(POISONED);
        index.remove(namespace.name_any().as_str());
    }

    fn reset(&self, fresh: HashSet<Box<str>>) {
        *self.0.namespaces.write().expect(POISONED) = fresh;
        self.0.namespaces_synced.store(true, Ordering::Relaxed);
    }
}
