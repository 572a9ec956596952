//! The CAs in a webhook configuration: reading them, and the patch that changes them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, TestOperation};
use kube::ResourceExt;
use kube::api::DynamicObject;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use super::rotation::{Authority, Configuration};

/// Characters in a line of PEM.
const LINE: usize = 64;

/// What a configuration trusts.
pub(super) fn read(configuration: &DynamicObject) -> Configuration {
    let webhooks = configuration.data["webhooks"].as_array();
    let trusted = |webhook: &Value| -> Vec<Authority> {
        let bundle = webhook["clientConfig"]["caBundle"].as_str();
        let pem = bundle.and_then(|bundle| STANDARD.decode(bundle).ok());
        let pem = pem.unwrap_or_default();
        // The API server takes no bundle that it can't read.
        let certificates = CertificateDer::pem_slice_iter(&pem).flatten();
        certificates.map(|it| Authority::read(&it)).collect()
    };
    Configuration {
        version: configuration.resource_version().unwrap_or_default(),
        entries: webhooks.into_iter().flatten().map(trusted).collect(),
    }
}

/// Puts these CAs into the entries, which are in the order of [`read`], provided that the
/// configuration is as it was read.
pub(super) fn patch(configuration: &DynamicObject, bundles: &[Vec<Authority>]) -> Patch {
    let before = read(configuration);
    let test = |path: &[&str], value| {
        let path = PointerBuf::from_tokens(path.iter().copied());
        PatchOperation::Test(TestOperation { path, value })
    };
    let version = json!(configuration.resource_version());
    let mut operations = vec![test(&["metadata", "resourceVersion"], version)];
    for (index, bundle) in bundles.iter().enumerate() {
        if before.entries.get(index) == Some(bundle) {
            continue;
        }
        let name = configuration.data["webhooks"][index]["name"].clone();
        let index = index.to_string();
        operations.push(test(&["webhooks", &index, "name"], name));
        operations.push(PatchOperation::Add(AddOperation {
            path: PointerBuf::from_tokens(["webhooks", &index, "clientConfig", "caBundle"]),
            value: json!(STANDARD.encode(pem(bundle))),
        }));
    }
    Patch(operations)
}

fn pem(bundle: &[Authority]) -> String {
    let mut pem = String::new();
    for authority in bundle {
        let body = STANDARD.encode(authority.der());
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let mut rest = body.as_str();
        while !rest.is_empty() {
            // Base64 is ASCII.
            let (line, after) = rest.split_at(LINE.min(rest.len()));
            pem.push_str(line);
            pem.push('\n');
            rest = after;
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    pem
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Pair;
    use std::time::{Duration, SystemTime};

    fn authority() -> Authority {
        let lifetime = Duration::from_secs(60);
        let pair = Pair::make(&["localhost".to_owned()], lifetime, SystemTime::now()).unwrap();
        pair.issued(&[]).authority
    }

    fn configuration(bundles: &[Option<String>]) -> DynamicObject {
        let entries = bundles.iter().enumerate().map(|(index, bundle)| {
            let mut client = json!({"url": "https://webhook"});
            if let Some(bundle) = bundle {
                client["caBundle"] = json!(STANDARD.encode(bundle));
            }
            json!({"name": format!("entry-{index}"), "clientConfig": client})
        });
        let entries: Vec<_> = entries.collect();
        serde_json::from_value(json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "webhooks", "resourceVersion": "7"},
            "webhooks": entries
        }))
        .unwrap()
    }

    #[test]
    fn entries_get_the_bundles_that_they_lack_and_no_other_is_touched() {
        let (old, new) = (authority(), authority());
        let both = vec![old.clone(), new.clone()];
        let before = configuration(&[
            None,
            Some(pem(std::slice::from_ref(&old))),
            Some(pem(&both)),
        ]);
        assert_eq!(
            read(&before).entries,
            [vec![], vec![old.clone()], both.clone()]
        );
        let wanted = vec![both.clone(), both.clone(), both.clone()];

        let patch = patch(&before, &wanted);

        assert_eq!(
            patch.0.len(),
            5,
            "the version, and a name and a bundle of two"
        );
        let mut json = serde_json::to_value(&before).unwrap();
        json_patch::patch(&mut json, &patch).unwrap();
        let after: DynamicObject = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(read(&after).entries, wanted);
        assert_eq!(
            after.data["webhooks"][0]["clientConfig"]["url"],
            "https://webhook"
        );

        json["metadata"]["resourceVersion"] = json!("8");
        json_patch::patch(&mut json, &patch).unwrap_err();
    }

    #[test]
    fn bundle_that_is_no_pem_counts_as_none() {
        let broken = configuration(&[Some("nonsense".into())]);
        assert_eq!(read(&broken).entries, [vec![]]);
    }
}
