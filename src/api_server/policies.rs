//! SecurityGroupPolicies as the API server has them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use kube::api::{DynamicObject, ListParams};
use kube::core::ApiResource;
use kube::{Client, Resource, ResourceExt};
use serde::Deserialize;
use serde_json::Value;

use crate::api::SecurityGroupPolicy;
use crate::policy::{InvalidPolicy, Policy, PolicyIndex};

/// The resource of SecurityGroupPolicies, read object by object as raw JSON so that one that
/// can't be read does not hide the others.
pub fn policy_resource() -> ApiResource {
    ApiResource::erase::<SecurityGroupPolicy>(&())
}

/// Parses a policy as it is stored.
pub fn parse_policy(object: &DynamicObject) -> Result<Policy, InvalidPolicy> {
    Policy::parse(&object.name_any(), &object.data["spec"])
}

/// A page of policies, of which only names and specs are read.
#[derive(Deserialize)]
struct PolicyPage {
    #[serde(default)]
    metadata: ListMeta,
    items: Vec<StoredPolicy>,
}

#[derive(Deserialize)]
struct StoredPolicy {
    metadata: StoredName,
    #[serde(default)]
    spec: Value,
}

#[derive(Deserialize)]
struct StoredName {
    name: String,
}

/// Policies in an answer. Each can have more than a megabyte, and is held several times.
const PAGE: u32 = 20;

/// All policies of a namespace, consistently: without a resource version the API server
/// never answers from a cache that lags behind.
pub async fn list_policies(client: &Client, namespace: &str) -> kube::Result<PolicyIndex> {
    let mut index = PolicyIndex::default();
    let path = DynamicObject::url_path(&policy_resource(), Some(namespace));
    let mut parameters = ListParams::default().limit(PAGE);
    loop {
        let request = kube::core::Request::new(&path).list(&parameters);
        let request = request.map_err(kube::Error::BuildRequest)?;
        let page: PolicyPage = client.request(request).await?;
        for stored in page.items {
            index.apply(
                namespace,
                Policy::parse(&stored.metadata.name, &stored.spec),
            );
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => return Ok(index),
        }
    }
}
