//! Writes the CA that clients have to trust into the webhook configuration, and keeps it
//! there when somebody applies the configuration anew.

use std::time::Duration;

use futures::{StreamExt, pin_mut};
use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, TestOperation};
use k8s_openapi::ByteString;
use kube::api::{Api, DynamicObject, PatchParams};
use kube::core::ApiResource;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

/// Keeps `ca_bundle` (PEM) in every entry of the webhook configuration `name`, which is of
/// kind `K`, also one that is created later. Never ends by itself.
///
/// Only one process can do this for a configuration; another with a CA of its own would
/// write over it.
pub async fn keep<K: Resource<DynamicType = ()>>(
    client: kube::Client,
    name: &str,
    ca_bundle: &str,
) {
    let api = Api::<DynamicObject>::all_with(client, &ApiResource::erase::<K>(&()));
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let events = watcher(api.clone(), only)
        .default_backoff()
        .applied_objects();
    pin_mut!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(configuration) => write_until_done(&api, &configuration, ca_bundle).await,
            Err(error) => {
                tracing::warn!(configuration = name, %error, "watch failed, starting it again");
            }
        }
    }
}

async fn write_until_done(api: &Api<DynamicObject>, seen: &DynamicObject, ca_bundle: &str) {
    let Some(patch) = patch(&seen.data, ca_bundle) else {
        return;
    };
    let name = seen.name_any();
    let patch = kube::api::Patch::Json::<()>(patch);
    let parameters = PatchParams::default();
    let write = || api.patch(&name, &parameters, &patch);
    let retry = backon::ExponentialBuilder::default().with_max_delay(Duration::from_secs(5));
    let written = backon::Retryable::retry(write, retry.with_max_times(5)).await;
    match written {
        Ok(_) => tracing::info!(configuration = name, "CA bundle written"),
        // Somebody changed the entries meanwhile; the watch brings the new ones.
        Err(error) => tracing::warn!(configuration = name, %error, "CA bundle not written"),
    }
}

/// The patch that is needed, if any.
fn patch(configuration: &Value, ca_bundle: &str) -> Option<Patch> {
    let wanted = json!(ByteString(ca_bundle.as_bytes().to_vec()));
    let webhooks = configuration["webhooks"].as_array().into_iter().flatten();
    let outdated = webhooks
        .enumerate()
        .filter(|(_, webhook)| webhook["clientConfig"]["caBundle"] != wanted);
    let operations: Vec<_> = outdated
        .flat_map(|(index, webhook)| {
            let index = index.to_string();
            let path = |rest: &[&str]| {
                PointerBuf::from_tokens(["webhooks", &index].iter().chain(rest).copied())
            };
            [
                // Entries are known by name; their places may have changed meanwhile.
                PatchOperation::Test(TestOperation {
                    path: path(&["name"]),
                    value: webhook["name"].clone(),
                }),
                PatchOperation::Add(AddOperation {
                    path: path(&["clientConfig", "caBundle"]),
                    value: wanted.clone(),
                }),
            ]
        })
        .collect();
    (!operations.is_empty()).then_some(Patch(operations))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_entries_with_another_bundle_are_patched() {
        let mut json = json!({
            "metadata": {"name": "webhooks"},
            "webhooks": [
                {"name": "a", "clientConfig": {"url": "https://a"}},
                {"name": "b", "clientConfig": {"url": "https://b", "caBundle": "b2xk"}},
                {"name": "c", "clientConfig": {"url": "https://c", "caBundle": "bmV3"}}
            ]
        });
        let needed = patch(&json, "new").unwrap();
        assert_eq!(
            needed.0.len(),
            4,
            "a test and an addition for each of two entries"
        );

        json_patch::patch(&mut json, &needed).unwrap();
        for webhook in json["webhooks"].as_array().unwrap() {
            assert_eq!(webhook["clientConfig"]["caBundle"], "bmV3");
        }
        assert!(patch(&json, "new").is_none());
    }
}
