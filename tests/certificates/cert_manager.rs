//! The manifests for cert-manager fit together and fit the others, also on EKS.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::server::{NAME, binaries, succeeded};

#[test]
fn cert_manager_fills_what_the_webhook_serves_and_the_api_server_trusts() {
    let folder = in_repository("certs/cert-manager");
    assert_fits_together(&Objects::of(Path::new(&folder)), "vpc-resource-");
}

#[test]
fn documented_components_for_eks_leave_the_configurations_of_eks_alone() {
    let page = fs::read_to_string(in_repository("certs/README.md")).unwrap();
    let (_, section) = page.split_once("\n## On EKS\n").unwrap();
    let (_, files) = section.split_once("```yaml\n").unwrap();
    let (files, further) = files.split_once("```").unwrap();
    let (_, cert_manager) = further
        .split_once("For cert-manager the component is `")
        .unwrap();
    let (cert_manager, _) = cert_manager.split_once('`').unwrap();

    let folder = tempfile::tempdir().unwrap();
    for beside in ["manifests", "certs"] {
        symlink(in_repository(beside), folder.path().join(beside)).unwrap();
    }
    let own = folder.path().join("my-cluster");
    fs::create_dir(&own).unwrap();
    let kustomize = |kustomization: &str| {
        fs::write(own.join("kustomization.yaml"), kustomization).unwrap();
        Objects::of(&own)
    };

    let objects = kustomize(files);
    assert_serves(&objects, "sgp-webhook-tls");
    assert_eq!(objects.configurations(), of_prefix("sgp-"));
    let objects = kustomize(&files.replace("../certs/files", cert_manager));
    assert_fits_together(&objects, "sgp-");
}

/// What kustomize makes.
struct Objects(Vec<Value>);

impl Objects {
    fn of(folder: &Path) -> Self {
        let mut kubectl = Command::new(binaries().kubectl);
        let rendered = succeeded(kubectl.arg("kustomize").arg(folder));
        let documents = rendered.split("\n---\n");
        let objects = documents.map(|it| serde_saphyr::from_str(it).unwrap());
        Self(objects.collect())
    }

    #[track_caller]
    fn named(&self, kind: &str, name: &str) -> &Value {
        let is = |it: &&Value| it["kind"] == kind && it["metadata"]["name"] == name;
        let found = self.0.iter().find(is);
        found.unwrap_or_else(|| panic!("no {kind} {name}"))
    }

    /// The names of the webhook configurations.
    fn configurations(&self) -> Vec<String> {
        let is = |it: &&Value| text(&it["kind"]).ends_with("WebhookConfiguration");
        let names = self
            .0
            .iter()
            .filter(is)
            .map(|it| text(&it["metadata"]["name"]));
        names.map(str::to_owned).collect()
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn of_prefix(prefix: &str) -> [String; 2] {
    ["mutating", "validating"].map(|kind| format!("{prefix}{kind}-webhook"))
}

fn in_repository(path: &str) -> String {
    format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))
}

/// The webhook serves with the files of this Secret.
#[track_caller]
fn assert_serves(objects: &Objects, secret: &str) {
    let pod = &objects.named("Deployment", "sgp")["spec"]["template"]["spec"];
    let volumes = pod["volumes"].as_array().unwrap();
    assert!(
        volumes
            .iter()
            .any(|it| it["secret"]["secretName"] == secret)
    );
    let arguments = pod["containers"][0]["args"].to_string();
    for argument in ["--tls-cert=/tls/tls.crt", "--tls-key=/tls/tls.key"] {
        assert!(arguments.contains(argument), "{arguments}");
    }
}

/// What cert-manager makes is what the webhook serves, and goes into these configurations and no
/// others.
#[track_caller]
fn assert_fits_together(objects: &Objects, prefix: &str) {
    let certificate = objects.named("Certificate", "sgp-webhook");
    assert_eq!(certificate["spec"]["dnsNames"][0], NAME);
    let issuer = text(&certificate["spec"]["issuerRef"]["name"]);
    let issuer = objects.named("Issuer", issuer);
    let ca = objects.named("Certificate", "sgp-webhook-ca");
    assert_eq!(issuer["spec"]["ca"]["secretName"], ca["spec"]["secretName"]);
    let issuer = text(&ca["spec"]["issuerRef"]["name"]);
    assert!(objects.named("Issuer", issuer)["spec"]["selfSigned"].is_object());
    assert_serves(objects, text(&certificate["spec"]["secretName"]));

    assert_eq!(objects.configurations(), of_prefix(prefix));
    for object in &objects.0 {
        if text(&object["kind"]).ends_with("WebhookConfiguration") {
            let source = &object["metadata"]["annotations"]["cert-manager.io/inject-ca-from"];
            assert_eq!(source, "sgp-system/sgp-webhook", "{object}");
        }
    }
}
