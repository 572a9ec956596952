//! Writes the CA that clients have to trust into the webhook configuration, and keeps it
//! there when somebody applies the configuration anew.

use std::time::Duration;

use futures::{StreamExt, pin_mut};
use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, TestOperation};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::api::{Api, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;

/// Keeps `ca_bundle` (PEM) in every entry of the MutatingWebhookConfiguration `name`, also
/// one that is created later. Never ends by itself.
///
/// Only one process can do this for a configuration; another with a CA of its own would
/// write over it.
pub async fn keep(client: kube::Client, name: &str, ca_bundle: &str) {
    let api = Api::<MutatingWebhookConfiguration>::all(client);
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let events = watcher(api.clone(), only)
        .default_backoff()
        .applied_objects();
    pin_mut!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(configuration) => write_until_done(&api, name, &configuration, ca_bundle).await,
            Err(error) => {
                tracing::warn!(configuration = name, %error, "watch failed, starting it again");
            }
        }
    }
}

async fn write_until_done(
    api: &Api<MutatingWebhookConfiguration>,
    name: &str,
    seen: &MutatingWebhookConfiguration,
    ca_bundle: &str,
) {
    let Some(patch) = patch(seen, ca_bundle) else {
        return;
    };
    let patch = kube::api::Patch::Json::<()>(patch);
    let parameters = PatchParams::default();
    let write = || api.patch(name, &parameters, &patch);
    let retry = backon::ExponentialBuilder::default().with_max_delay(Duration::from_secs(5));
    let written = backon::Retryable::retry(write, retry.with_max_times(5)).await;
    match written {
        Ok(_) => tracing::info!(configuration = name, "CA bundle written"),
        // Somebody changed the entries meanwhile; the watch brings the new ones.
        Err(error) => tracing::warn!(configuration = name, %error, "CA bundle not written"),
    }
}

/// The patch that is needed, if any.
fn patch(configuration: &MutatingWebhookConfiguration, ca_bundle: &str) -> Option<Patch> {
    let wanted = ByteString(ca_bundle.as_bytes().to_vec());
    let webhooks = configuration.webhooks.iter().flatten().enumerate();
    let outdated =
        webhooks.filter(|(_, webhook)| webhook.client_config.ca_bundle.as_ref() != Some(&wanted));
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
                    value: json!(webhook.name),
                }),
                PatchOperation::Add(AddOperation {
                    path: path(&["clientConfig", "caBundle"]),
                    value: json!(wanted),
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
        for webhook in json["webhooks"].as_array_mut().unwrap() {
            webhook["admissionReviewVersions"] = json!(["v1"]);
            webhook["sideEffects"] = json!("None");
        }
        let parse = |json: &serde_json::Value| serde_json::from_value(json.clone()).unwrap();
        let needed = patch(&parse(&json), "new").unwrap();
        assert_eq!(
            needed.0.len(),
            4,
            "a test and an addition for each of two entries"
        );

        json_patch::patch(&mut json, &needed).unwrap();
        for webhook in json["webhooks"].as_array().unwrap() {
            assert_eq!(webhook["clientConfig"]["caBundle"], "bmV3");
        }
        assert!(patch(&parse(&json), "new").is_none());
    }
}
