//! The chart makes what kustomize makes. Helm's own library says what it makes.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use tempfile::TempDir;

use crate::install_page::{documented, with_kustomize};
use crate::{Objects, assert_same, in_repository, parse, render, succeeded};

/// The folder that `helm install` is given.
const CHART: &str = "manifests/chart";

/// The namespace comes from Helm, unless it is asked for.
const WITH_NAMESPACE: &str = "\ncreateNamespace: true\n";

#[test]
fn chart_makes_what_the_overlay_for_ec2_makes() {
    let objects = template(&(documented("With Helm") + WITH_NAMESPACE));
    let all = objects.into_iter().chain(definitions()).collect();
    assert_same(&all, &with_kustomize(&documented("With kustomize")));
}

#[test]
fn chart_makes_what_the_overlay_for_eks_makes() {
    let objects = template(&(documented("With Helm") + WITH_NAMESPACE + "backend: eks\n"));
    let kustomization = documented("With kustomize").replace("overlays/ec2", "overlays/eks");
    assert_same(&objects, &with_kustomize(&kustomization));
}

#[test]
fn chart_has_the_monitoring_of_the_component() {
    let values = documented("With Helm") + WITH_NAMESPACE + "monitoring:\n  enabled: true\n";
    let objects = template(&values).into_iter().chain(definitions()).collect();
    let kustomization =
        documented("With kustomize") + "components:\n  - ../manifests/components/monitoring\n";
    assert_same(&objects, &with_kustomize(&kustomization));
}

#[test]
fn chart_takes_certificates_as_the_variant_with_files_does() {
    let values = "cluster: {name: my-cluster}\ncertificateSecret: sgp-webhook-tls\n";
    let deployment = "Deployment sgp-system/sgp";
    assert_eq!(template(values)[deployment], render("certs")[deployment]);
}

#[test]
fn package_holds_all_that_the_chart_refers_to() {
    let values = documented("With Helm") + "monitoring:\n  enabled: true\n";
    let folder = TempDir::new().unwrap();
    let done = helm(
        "package",
        &in_repository(CHART),
        folder.path().to_str().unwrap(),
    );
    let archive = output(done);
    let archive = archive.trim_end();

    let packed = parse(&output(helm("template", archive, &values)));
    assert_same(&packed, &template(&values));
    let packed = parse(&output(helm("definitions", archive, "")));
    assert_same(&packed, &definitions());
}

#[test]
fn helm_finds_nothing_to_complain_of() {
    let values = documented("With Helm");
    for further in ["", "backend: eks", "monitoring: {enabled: true}"] {
        let values = format!("{values}\n{further}\n");
        assert_eq!(output(helm("lint", &in_repository(CHART), &values)), "");
    }
}

#[test]
fn definitions_of_the_chart_are_those_of_the_overlay() {
    let overlay = render("manifests/crds");
    assert_same(&definitions(), &overlay);
}

#[test]
fn values_reach_the_objects_that_they_are_for() {
    let values = documented("With Helm")
        + r#"
serviceAccount:
  annotations:
    eks.amazonaws.com/role-arn: arn:aws:iam::111122223333:role/sgp
imagePullSecrets:
  - name: registry
replicas: 3
environment:
  AWS_ENDPOINT_URL_EC2: http://127.0.0.1:4566
webhook:
  extraArgs: [--missing-groups=deny, --log-format=text]
allocator:
  extraArgs: [--warm-branches=2]
  resources:
    limits:
      memory: 2Gi
webhookConfigurationPrefix: ours-
networkPolicy:
  enabled: false
"#;
    let objects = template(&values);

    let account = &objects["ServiceAccount sgp-system/sgp"];
    let annotation = &account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"];
    assert_eq!(annotation, "arn:aws:iam::111122223333:role/sgp");
    let environment = &objects["ConfigMap sgp-system/sgp"]["data"];
    assert_eq!(environment["AWS_ENDPOINT_URL_EC2"], "http://127.0.0.1:4566");
    assert_eq!(environment["AWS_REGION"], "us-west-2");
    assert!(!objects.contains_key("NetworkPolicy sgp-system/sgp"));
    assert!(!objects.contains_key("Namespace sgp-system"));
    for kind in ["Mutating", "Validating"] {
        let name = format!("ours-{}-webhook", kind.to_lowercase());
        assert!(objects.contains_key(&format!("{kind}WebhookConfiguration {name}")));
    }

    let spec = &objects["Deployment sgp-system/sgp"]["spec"];
    assert_eq!(spec["replicas"], 3);
    let pod = &spec["template"]["spec"];
    assert_eq!(pod["imagePullSecrets"][0]["name"], "registry");
    let base = &render("manifests/base")["Deployment sgp-system/sgp"]["spec"]["template"]["spec"];
    let further = [
        vec![
            "--webhook-configuration=ours-mutating-webhook",
            "--validating-webhook-configuration=ours-validating-webhook",
            "--missing-groups=deny",
            // After that of the base, which it replaces.
            "--log-format=text",
        ],
        vec!["--warm-branches=2"],
    ];
    for (index, further) in further.into_iter().enumerate() {
        let arguments = |pod: &serde_json::Value| {
            let list = pod["containers"][index]["args"].as_array();
            list.unwrap().clone()
        };
        let (ours, theirs) = (arguments(pod), arguments(base));
        assert_eq!(ours[..theirs.len()], theirs);
        assert_eq!(ours[theirs.len()..], further);
        assert_eq!(
            pod["containers"][index]["image"],
            "registry.example.com/sgp:0.1.0"
        );
    }
    let [webhook, allocator] = [0, 1].map(|index| &pod["containers"][index]["resources"]);
    assert_eq!(webhook, &base["containers"][0]["resources"]);
    assert_eq!(allocator["limits"]["memory"], "2Gi");
    assert!(allocator["requests"].is_null());
}

#[test]
fn values_that_can_not_be_meant_are_refused() {
    for (values, problem) in [
        ("{}", "cluster.name is needed"),
        (
            "{cluster: {name: c}, backend: gke}",
            "value must be one of 'ec2', 'eks'",
        ),
        (
            "{cluster: {nam: c}}",
            "additional properties 'nam' not allowed",
        ),
        (
            "{cluster: {name: c}, webhook: {extraArgs: [deny]}}",
            "does not match pattern",
        ),
    ] {
        let refused = helm("template", &in_repository(CHART), values);
        assert!(!refused.status.success(), "{values}");
        let told = String::from_utf8(refused.stderr).unwrap();
        assert!(told.contains(problem), "{values}: {told}");
    }
}

/// What is written in a condition of a webhook, Helm can't follow.
#[test]
fn namespace_that_the_conditions_of_the_webhooks_do_not_name_is_refused() {
    let chart = in_repository(CHART);
    let values = "cluster: {name: my-cluster}\n";
    let in_namespace = |namespace| helm_with(&["template", &chart, values, namespace]);
    assert_eq!(parse(&output(in_namespace("sgp-system"))), template(values));

    let refused = in_namespace("security");
    assert!(!refused.status.success());
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(told.contains("add --namespace sgp-system"), "{told}");
}

#[test]
fn helm_shares_the_modules_that_are_built_for_the_control_plane() {
    let versions = |path: &str| {
        let text = fs::read_to_string(in_repository(path)).unwrap();
        let mut versions = BTreeMap::new();
        for line in text.lines() {
            let line = line.trim().trim_start_matches("require ");
            let words: Vec<_> = line.trim_start_matches("replace ").split(' ').collect();
            match words[..] {
                // Below what is required, and wins.
                [module, "=>", _, version] | [module, version, ..] if version.starts_with('v') => {
                    versions.insert(module.to_owned(), version.to_owned());
                }
                _ => {}
            }
        }
        versions
    };
    let ours = versions("tests/chart-renderer/go.mod");
    let mut theirs = versions("src/dev/control_plane/modules/go.mod");
    theirs.retain(|module, _| ours.contains_key(module));
    assert!(theirs.contains_key("k8s.io/client-go"), "{theirs:?}");
    for (module, version) in theirs {
        assert_eq!(
            ours[&module], version,
            "{module}: write the control plane's version into tests/chart-renderer/go.mod \
             (a `replace` where Helm asks for a newer one), or all of it is built twice"
        );
    }
}

/// The objects that `helm template` prints.
pub(crate) fn template(values: &str) -> Objects {
    parse(&templated(values))
}

/// What `helm template` prints.
pub(crate) fn templated(values: &str) -> String {
    output(helm("template", &in_repository(CHART), values))
}

fn definitions() -> Objects {
    parse(&output(helm("definitions", &in_repository(CHART), "")))
}

fn output(done: Output) -> String {
    let told = String::from_utf8_lossy(&done.stderr);
    let printed = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{printed}{told}");
    assert_eq!(told, "");
    printed.into_owned()
}

/// Runs Helm's library.
fn helm(command: &str, chart: &str, argument: &str) -> Output {
    helm_with(&[command, chart, argument])
}

fn helm_with(arguments: &[&str]) -> Output {
    static PROGRAM: LazyLock<PathBuf> = LazyLock::new(build);
    Command::new(&*PROGRAM).args(arguments).output().unwrap()
}

/// With the flags of the control plane, which Go has built most of this for already.
fn build() -> PathBuf {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("chart-renderer");
    let mut go = Command::new("go");
    go.args(["build", "-trimpath", "-ldflags=-s -w", "-o"])
        .arg(&program)
        .current_dir(in_repository("tests/chart-renderer"))
        .env("GOFLAGS", "-mod=readonly -buildvcs=false")
        .env("CGO_ENABLED", "0");
    if matches!(go.status(), Err(error) if error.kind() == ErrorKind::NotFound) {
        panic!("there is no `go` on the PATH: install Go 1.26 or newer, to build Helm's library");
    }
    succeeded(&mut go);
    program
}
