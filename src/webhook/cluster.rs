//! What the webhook knows of the cluster, from watches, and what it asks the API server live.
//!
//! What the watches have brought may be a moment old. What is known is told apart from what
//! the API server says when it is asked, and only the latter can say that something is not
//! there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use prometheus_client::metrics::counter::Counter;
use thiserror::Error;
use tokio::time::Instant;

use super::lookup::{Lookup, LookupError};
use crate::api_server::policies::{list_policies, parse_policy};
use crate::api_server::{Feed, is_not_found};
use crate::policy::label_syntax::is_object_name;
use crate::policy::service_accounts::ServiceAccountLabels;
use crate::policy::{NamespacePolicies, PolicyIndex, ServiceAccountIndex};
use crate::telemetry::metrics::{LookupMetrics, WatchMetrics};

/// How long the API server may take for one question. What a request waits for all of its
/// questions is bounded by its deadline.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// Network policies in an answer. Each can have more than a megabyte, and is held several
/// times.
const NETWORK_POLICIES_AT_A_TIME: u32 = 10;

/// Bytes of network policies after which no more are asked for: hundreds of ordinary ones. They
/// are for warnings only, and whoever may write some must not be able to use up the memory.
const ENOUGH_NETWORK_POLICIES: usize = 512 * 1024;

/// The most bytes of a ServiceAccount's labels that are kept. The API server is asked for
/// longer ones each time.
const LONGEST_KEPT_LABELS: usize = 16 * 1024;

/// What the webhook knows of the cluster.
pub struct Cluster {
    client: Client,
    policies: RwLock<PolicyIndex>,
    service_accounts: RwLock<ServiceAccountIndex>,
    policies_synced: AtomicBool,
    service_accounts_synced: AtomicBool,
    definition_installed: AtomicBool,
    policy_lookup: Lookup<String, Option<Arc<NamespacePolicies>>>,
    service_account_lookup: Lookup<(String, String), Option<ServiceAccountLabels>>,
    network_policy_lookup: Lookup<String, Arc<[NetworkPolicy]>>,
    watch_metrics: WatchMetrics,
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
            policies_synced: AtomicBool::new(false),
            service_accounts_synced: AtomicBool::new(false),
            definition_installed: AtomicBool::new(true),
            policy_lookup: Lookup::new(LOOKUP_TIMEOUT, lookups.policies.clone()),
            service_account_lookup: Lookup::new(LOOKUP_TIMEOUT, lookups.service_accounts.clone()),
            network_policy_lookup: Lookup::new(LOOKUP_TIMEOUT, lookups.network_policies.clone()),
            watch_metrics,
        }
    }

    /// The watches that have not brought their first full list yet.
    pub fn out_of_sync(&self) -> Vec<&'static str> {
        let watches = [
            ("securitygrouppolicies", &self.policies_synced),
            ("serviceaccounts", &self.service_accounts_synced),
        ];
        let waiting = watches
            .into_iter()
            .filter(|(_, synced)| !synced.load(Ordering::Relaxed));
        waiting.map(|(name, _)| name).collect()
    }

    /// The policies of a namespace that the watch has brought; `None` if it has none.
    pub fn known_policies(&self, namespace: &str) -> Option<Arc<NamespacePolicies>> {
        self.policies.read().expect(POISONED).namespace(namespace)
    }

    /// The labels of a service account that the watch has brought.
    pub fn known_service_account(
        &self,
        namespace: &str,
        name: &str,
    ) -> Option<ServiceAccountLabels> {
        let index = self.service_accounts.read().expect(POISONED);
        index.labels(namespace, name)
    }

    /// The policies of a namespace as the API server has them now; `None` if it has none.
    pub async fn ask_policies(
        &self,
        namespace: &str,
        deadline: Instant,
    ) -> Result<Option<Arc<NamespacePolicies>>, Unknown> {
        if !is_object_name(namespace) {
            return Ok(None);
        }
        // A cluster without policies has no such resource; but while the watch knows it, that
        // it is not found is a fault that passes.
        let may_be_undefined = !self.definition_installed.load(Ordering::Relaxed);
        let (client, name) = (self.client.clone(), namespace.to_owned());
        let list = async move {
            match list_policies(&client, &name).await {
                Err(error) if may_be_undefined && is_not_found(&error) => Ok(None),
                listed => listed.map(|index| index.namespace(&name)),
            }
        };
        let key = namespace.to_owned();
        let found = self.policy_lookup.run(key, deadline, list).await;
        found.map_err(|error| Unknown {
            what: format!("the SecurityGroupPolicies of namespace {namespace:?}"),
            error,
        })
    }

    /// The labels of a service account as the API server has them now; `None` if there is
    /// none.
    pub async fn ask_service_account(
        &self,
        namespace: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<Option<ServiceAccountLabels>, Unknown> {
        if !is_object_name(namespace) || !is_object_name(name) {
            return Ok(None);
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
        let found = self.service_account_lookup.run(key, deadline, get).await;
        found.map_err(|error| Unknown {
            what: format!("ServiceAccount {name:?} of namespace {namespace:?}"),
            error,
        })
    }

    /// The network policies of a namespace as the API server has them now, with what selects
    /// pods in them and nothing else; of a namespace with very many or very long ones, the
    /// first.
    pub async fn ask_network_policies(
        &self,
        namespace: &str,
        deadline: Instant,
    ) -> Result<Arc<[NetworkPolicy]>, Unknown> {
        if !is_object_name(namespace) {
            return Ok(Arc::default());
        }
        let api = Api::<NetworkPolicy>::namespaced(self.client.clone(), namespace);
        let list = async move {
            let mut parameters = ListParams::default().limit(NETWORK_POLICIES_AT_A_TIME);
            let (mut policies, mut bytes) = (Vec::new(), 0);
            loop {
                let page = api.list(&parameters).await?;
                for policy in page.items.into_iter().map(selectors_of) {
                    bytes += serde_json::to_vec(&policy).map_or(0, |json| json.len());
                    policies.push(policy);
                }
                match page.metadata.continue_.filter(|token| !token.is_empty()) {
                    Some(token) if bytes < ENOUGH_NETWORK_POLICIES => {
                        parameters = parameters.continue_token(&token);
                    }
                    _ => return Ok(policies.into()),
                }
            }
        };
        let key = namespace.to_owned();
        let found = self.network_policy_lookup.run(key, deadline, list).await;
        found.map_err(|error| Unknown {
            what: format!("the NetworkPolicies of namespace {namespace:?}"),
            error,
        })
    }
}

impl Cluster {
    fn note_failure(&self, resource: &str, failures: &Counter, error: &watcher::Error) {
        failures.inc();
        tracing::warn!(watch = resource, %error, "watch failed, starting it again");
    }
}

/// A panic while an index is written leaves it in an unknown state; the process must end.
const POISONED: &str = "no index writer panics";

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
        if !self.0.definition_installed.swap(true, Ordering::Relaxed) {
            tracing::info!("SecurityGroupPolicies are defined now");
        }
        self.0.watch_metrics.definition_installed.set(1);
    }

    fn undefined(&self, _: &watcher::Error) {
        self.update(|index| *index = PolicyIndex::default());
        self.0.policies_synced.store(true, Ordering::Relaxed);
        if self.0.definition_installed.swap(false, Ordering::Relaxed) {
            tracing::warn!(
                "SecurityGroupPolicies are not defined in this cluster: every pod is let in \
                 unchanged until the definition is applied (manifests/crds)"
            );
        }
        self.0.watch_metrics.definition_installed.set(0);
    }

    fn failed(&self, error: &watcher::Error) {
        self.0.note_failure(
            "securitygrouppolicies",
            &self.0.watch_metrics.policies,
            error,
        );
    }
}

/// The service accounts of a cluster.
pub(super) struct ServiceAccounts<'a>(pub(super) &'a Cluster);

/// The policy with its name and what selects pods in it.
fn selectors_of(mut policy: NetworkPolicy) -> NetworkPolicy {
    policy.metadata = ObjectMeta {
        name: policy.metadata.name,
        ..ObjectMeta::default()
    };
    if let Some(spec) = &mut policy.spec {
        spec.ingress = None;
        for rule in spec.egress.iter_mut().flatten() {
            rule.ports = None;
            let peers = rule.to.iter_mut();
            peers.for_each(|peers| peers.retain(|peer| peer.ip_block.is_none()));
        }
    }
    policy
}

type ServiceAccountMeta = PartialObjectMeta<ServiceAccount>;

fn labels_of(account: &ServiceAccountMeta) -> ServiceAccountLabels {
    let labels = account.metadata.labels.as_ref();
    labels.map(ServiceAccountLabels::from).unwrap_or_default()
}

impl Feed<ServiceAccountMeta> for ServiceAccounts<'_> {
    type Index = ServiceAccountIndex;

    fn add(index: &mut ServiceAccountIndex, account: ServiceAccountMeta) {
        let namespace = account.namespace().unwrap_or_default();
        let (name, labels) = (account.name_any(), labels_of(&account));
        match labels.bytes() <= LONGEST_KEPT_LABELS {
            true => index.apply(&namespace, &name, labels),
            // As if it had not been seen, for which the API server is asked.
            false => index.delete(&namespace, &name),
        }
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

    /// Every API server knows them; what it says must pass.
    fn undefined(&self, error: &watcher::Error) {
        self.failed(error);
    }

    fn failed(&self, error: &watcher::Error) {
        self.0.note_failure(
            "serviceaccounts",
            &self.0.watch_metrics.service_accounts,
            error,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api_server::policies::policy_resource;
    use crate::policy::labels::Labels;
    use crate::telemetry::metrics::Metrics;
    use axum::body::Body;
    use axum::http::{Request, Response, StatusCode};
    use serde_json::Value;
    use serde_json::json;
    use std::convert::Infallible;
    use std::sync::Mutex;

    /// A cluster whose API server gives this answer to whatever it is asked, and the paths
    /// of the questions.
    fn cluster(status: u16, answer: Value) -> (Cluster, Arc<Mutex<Vec<String>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let note = asked.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            note.lock().unwrap().push(request.uri().path().to_owned());
            let response = Response::builder().status(StatusCode::from_u16(status).unwrap());
            let response = response.body(Body::from(answer.to_string())).unwrap();
            async { Ok::<_, Infallible>(response) }
        });
        let metrics = Metrics::new();
        let client = Client::new(service, "default");
        (
            Cluster::new(client, &metrics.lookups, metrics.watches),
            asked,
        )
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(4)
    }

    fn one_policy() -> Value {
        json!({"metadata": {}, "items": [{
            "metadata": {"name": "all", "namespace": "shop"},
            "spec": {"podSelector": {}, "securityGroups": {"groupIds": ["sg-0123abcd"]}}
        }]})
    }

    fn not_found() -> Value {
        json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404})
    }

    #[tokio::test]
    async fn api_server_is_asked_for_one_namespaces_policies() {
        let (cluster, asked) = cluster(200, one_policy());
        let policies = cluster.ask_policies("shop", soon()).await.unwrap();

        assert!(policies.is_some_and(|policies| !policies.is_empty()));
        let path = "/apis/vpcresources.k8s.aws/v1beta1/namespaces/shop/securitygrouppolicies";
        assert_eq!(*asked.lock().unwrap(), [path]);
        assert!(
            cluster.known_policies("shop").is_none(),
            "the watch will bring them"
        );
    }

    #[tokio::test]
    async fn names_that_no_object_can_have_are_not_asked_for() {
        let (cluster, asked) = cluster(200, one_policy());
        for name in ["", "..", "a/b", "shop/../../secrets", "a?b", "A", "a%2fb"] {
            assert!(
                cluster.ask_policies(name, soon()).await.unwrap().is_none(),
                "{name}"
            );
            let account = cluster
                .ask_service_account("shop", name, soon())
                .await
                .unwrap();
            assert!(account.is_none(), "{name}");
        }
        assert!(asked.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn there_are_no_policies_where_they_are_not_defined() {
        let (cluster, _) = cluster(404, not_found());
        let unknown = cluster.ask_policies("shop", soon()).await;
        assert!(unknown.is_err(), "it may be a fault that passes");

        let gone = watcher::Error::NoResourceVersion;
        Policies(&cluster).undefined(&gone);
        let policies = cluster.ask_policies("shop", soon()).await.unwrap();
        assert!(policies.is_none());
    }

    #[tokio::test]
    async fn policies_that_the_watch_brought_are_known_without_asking() {
        let (cluster, asked) = cluster(500, json!({}));
        let spec = one_policy()["items"][0]["spec"].clone();
        let mut policy = DynamicObject::new("all", &policy_resource()).within("shop");
        policy.data = json!({ "spec": spec });
        Policies(&cluster).apply(policy.clone());
        assert!(cluster.known_policies("shop").is_some());

        Policies(&cluster).delete(&policy);
        assert!(cluster.known_policies("shop").is_none());
        assert!(asked.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn service_account_that_the_api_server_does_not_know_is_missing() {
        let (absent, _) = cluster(404, not_found());
        assert_eq!(
            absent
                .ask_service_account("shop", "app", soon())
                .await
                .unwrap(),
            None
        );

        let metadata = json!({"name": "app", "namespace": "shop", "labels": {"role": "reader"}});
        let answer = json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata
        });
        let (present, _) = cluster(200, answer);
        let labels = present
            .ask_service_account("shop", "app", soon())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(labels.get("role"), Some("reader"));
    }

    #[tokio::test]
    async fn api_server_that_can_not_answer_is_no_answer() {
        let fault = json!({"kind": "Status", "status": "Failure", "code": 500, "message": "oops"});
        let (cluster, _) = cluster(500, fault);

        let unknown = cluster
            .ask_policies("shop", soon())
            .await
            .unwrap_err()
            .to_string();
        assert!(
            unknown.contains("the SecurityGroupPolicies of namespace \"shop\""),
            "{unknown}"
        );
        let unknown = cluster
            .ask_service_account("shop", "app", soon())
            .await
            .unwrap_err()
            .to_string();
        assert!(
            unknown.contains("ServiceAccount \"app\" of namespace \"shop\""),
            "{unknown}"
        );
    }
}
