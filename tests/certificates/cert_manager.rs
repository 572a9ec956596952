//! The manifests for cert-manager fit together and fit the others.

use std::process::Command;

use serde_json::Value;

use crate::server::{NAME, binaries, succeeded};

#[test]
fn cert_manager_fills_what_the_webhook_serves_and_the_api_server_trusts() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/certs/cert-manager");
    let rendered = succeeded(Command::new(binaries().kubectl).args(["kustomize", folder]));
    let documents = rendered.split("\n---\n");
    let objects: Vec<Value> = documents
        .map(|it| serde_saphyr::from_str(it).unwrap())
        .collect();
    let named = |kind: &str, name: &str| {
        let is = |it: &&Value| it["kind"] == kind && it["metadata"]["name"] == name;
        objects
            .iter()
            .find(is)
            .unwrap_or_else(|| panic!("no {kind} {name}"))
    };

    let certificate = named("Certificate", "sgp-webhook");
    assert_eq!(certificate["spec"]["dnsNames"][0], NAME);
    let issuer = certificate["spec"]["issuerRef"]["name"].as_str().unwrap();
    let issuer = named("Issuer", issuer);
    let ca = named("Certificate", "sgp-webhook-ca");
    assert_eq!(issuer["spec"]["ca"]["secretName"], ca["spec"]["secretName"]);
    let issuer = ca["spec"]["issuerRef"]["name"].as_str().unwrap();
    assert!(named("Issuer", issuer)["spec"]["selfSigned"].is_object());

    let pod = &named("Deployment", "sgp")["spec"]["template"]["spec"];
    let volumes = pod["volumes"].as_array().unwrap();
    let secret = &certificate["spec"]["secretName"];
    assert!(
        volumes
            .iter()
            .any(|it| &it["secret"]["secretName"] == secret)
    );
    let arguments = pod["containers"][0]["args"].to_string();
    for argument in ["--tls-cert=/tls/tls.crt", "--tls-key=/tls/tls.key"] {
        assert!(arguments.contains(argument), "{arguments}");
    }

    for (kind, name) in [
        (
            "MutatingWebhookConfiguration",
            "vpc-resource-mutating-webhook",
        ),
        (
            "ValidatingWebhookConfiguration",
            "vpc-resource-validating-webhook",
        ),
    ] {
        let annotations = &named(kind, name)["metadata"]["annotations"];
        let source = &annotations["cert-manager.io/inject-ca-from"];
        assert_eq!(source, "sgp-system/sgp-webhook", "{kind}");
    }
}
