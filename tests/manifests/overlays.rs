//! The overlays, on a real API server.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use axum::http::Request;
use kube::client::Body;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::Value;
use sgp::dev::control_plane::{ControlPlane, free_port};
use sgp::dev::{Sandbox, SandboxOptions};

use crate::waiting::eventually;
use crate::{
    Objects, apply, binaries, chart, generations, in_repository, kubectl, render,
    start_control_plane, text,
};

/// The configuration that EKS's own webhook has.
const OF_EKS: &str = "manifests/base/mutating-webhook.yaml";

/// What differs between an overlay as it is and a chart that knows the cluster.
const CONFIG_MAP: &str = "ConfigMap sgp-system/sgp";

#[tokio::test]
async fn ec2_can_be_applied_twice_and_leaves_what_the_webhook_has_written() {
    let control_plane = start_control_plane().await;
    let installed = install(&control_plane, "manifests/overlays/ec2", "");
    let definition = "CustomResourceDefinition securitygrouppolicies.vpcresources.k8s.aws";
    assert!(installed.contains_key(definition));
    assert_eq!(
        configurations(&installed),
        [
            "vpc-resource-mutating-webhook",
            "vpc-resource-validating-webhook"
        ]
    );
}

#[tokio::test]
async fn eks_can_be_applied_twice_beside_the_webhook_and_the_definitions_of_eks() {
    let control_plane = start_control_plane().await;
    let [theirs, definitions] = [OF_EKS, "manifests/crds"].map(in_repository);
    apply(&control_plane, &["-k", &definitions]);
    apply(&control_plane, &["-f", &theirs]);
    let before = [
        generations(&control_plane, &["-k", &definitions]),
        generations(&control_plane, &["-f", &theirs]),
    ];

    let installed = install(&control_plane, "manifests/overlays/eks", "backend: eks");
    assert!(
        !installed
            .keys()
            .any(|name| name.starts_with("CustomResourceDefinition"))
    );
    assert_eq!(
        configurations(&installed),
        ["sgp-mutating-webhook", "sgp-validating-webhook"]
    );

    let after = [
        generations(&control_plane, &["-k", &definitions]),
        generations(&control_plane, &["-f", &theirs]),
    ];
    assert_eq!(before, after);
}

#[tokio::test]
async fn dev_is_what_a_sandbox_has_applied() {
    let options = SandboxOptions::new(env!("CARGO_BIN_EXE_sgp"));
    let sandbox = Sandbox::start(&binaries(), options, |_| {}).await.unwrap();
    let dev = in_repository("manifests/overlays/dev");
    let before = generations(sandbox.control_plane(), &["-k", &dev]);
    assert_eq!(before.len(), render("manifests/overlays/dev").len());

    apply(sandbox.control_plane(), &["-k", &dev]);
    assert_eq!(generations(sandbox.control_plane(), &["-k", &dev]), before);
}

#[tokio::test]
async fn variant_with_certificate_files_differs_in_the_deployment_only() {
    let control_plane = start_control_plane().await;
    let [ec2, with_files] = ["manifests/overlays/ec2", "certs"].map(in_repository);
    apply(&control_plane, &["-k", &ec2]);
    let before = generations(&control_plane, &["-k", &ec2]);

    apply(&control_plane, &["-k", &with_files]);
    let after = generations(&control_plane, &["-k", &with_files]);
    let changed = after
        .iter()
        .filter(|(name, generation)| before.get(*name) != Some(generation));
    let changed: Vec<_> = changed.map(|(name, _)| name.as_str()).collect();
    assert_eq!(changed, ["Deployment sgp-system/sgp"]);
}

#[tokio::test]
async fn requests_of_the_service_account_have_flow_schemas_of_their_own() {
    let control_plane = start_control_plane().await;
    let schemas = in_repository("manifests/base/flow-schemas.yaml");
    apply(&control_plane, &["-f", &schemas]);
    let uid = |kind: &str, name: &str| {
        let output = "--output=jsonpath={.metadata.uid}";
        kubectl(&control_plane, &["get", kind, name, output])
    };
    let lease = "/apis/coordination.k8s.io/v1/namespaces/sgp-system/leases/sgp-allocator";
    let policies = "/apis/vpcresources.k8s.aws/v1beta1/namespaces/any/securitygrouppolicies";
    let (sgp, other) = ("sgp-system:sgp", "sgp-system:other");
    for (account, path, schema, level) in [
        (sgp, lease, "sgp-leader-election", "leader-election"),
        (sgp, policies, "sgp", "workload-high"),
        (sgp, "/api/v1/nodes", "sgp", "workload-high"),
        (other, policies, "service-accounts", "workload-low"),
        (other, lease, "service-accounts", "workload-low"),
    ] {
        let wanted = [
            uid("flowschema", schema),
            uid("prioritylevelconfiguration", level),
        ];
        // The API server takes new ones into account a moment later.
        let begin = Instant::now();
        loop {
            let got = flow(&control_plane, account, path).await;
            if got == wanted {
                break;
            }
            let is_in_time = begin.elapsed() < Duration::from_secs(120);
            assert!(is_in_time, "{account} {path}: {got:?}, not {schema}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// The UIDs of the flow schema and the priority level that a request of a service account has,
/// as its answer says, whether or not the account may make it.
async fn flow(control_plane: &ControlPlane, account: &str, path: &str) -> [String; 2] {
    let mut kubeconfig = Kubeconfig::read_from(control_plane.kubeconfig()).unwrap();
    for user in &mut kubeconfig.auth_infos {
        let user = user.auth_info.as_mut().unwrap();
        user.impersonate = Some(format!("system:serviceaccount:{account}"));
    }
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
    let client = Client::try_from(config.unwrap()).unwrap();
    let request = Request::get(path).body(Body::empty()).unwrap();
    let answer = client.send(request).await.unwrap();
    ["flowschema", "prioritylevel"].map(|kind| {
        let name = format!("x-kubernetes-pf-{kind}-uid");
        let value = answer.headers().get(name);
        value.unwrap().to_str().unwrap().to_owned()
    })
}

/// Applies an overlay, lets a webhook with the flags and the rights that it gives write its CA,
/// and applies everything again, also as Helm makes it with these values. Returns what was
/// applied.
fn install(control_plane: &ControlPlane, overlay: &str, values: &str) -> Objects {
    let objects = render(overlay);
    let overlay = in_repository(overlay);
    let source = ["-k", overlay.as_str()];
    let applied: BTreeSet<_> = apply(control_plane, &source).into_iter().collect();
    let all: BTreeSet<_> = objects.values().map(name_of).collect();
    assert_eq!(applied, all, "each object, and nothing else");

    let webhook = webhook_command(control_plane, &objects["Deployment sgp-system/sgp"]);
    let mut webhook = control_plane.spawn("webhook", webhook).unwrap();
    let bundles = eventually("a CA in every entry", || {
        if let Some(status) = webhook.try_wait().unwrap() {
            panic!(
                "the webhook ended with {status}:\n{}",
                webhook.last_log_lines()
            );
        }
        let bundles = ca_bundles(control_plane, &objects);
        bundles
            .iter()
            .all(|bundle| bundle.len() > 100)
            .then_some(bundles)
    });
    // Whoever writes on would be taken for what is applied.
    webhook.stop(Duration::from_secs(15)).unwrap();

    let before = generations(control_plane, &source);
    apply(control_plane, &source);
    assert_eq!(generations(control_plane, &source), before);

    // What makes it the same is the cluster's name, which Helm does not do without.
    let chart = control_plane.run_dir().join("chart.yaml");
    let values = format!("createNamespace: true\ncluster: {{name: my-cluster}}\n{values}");
    fs::write(&chart, chart::templated(&values)).unwrap();
    apply(control_plane, &["-f", chart.to_str().unwrap()]);
    let mut after = generations(control_plane, &source);
    let [old, new] = [&before, &after].map(|it| it[CONFIG_MAP].clone());
    assert_ne!(old, new);
    after.insert(CONFIG_MAP.to_owned(), old);
    assert_eq!(after, before);
    assert_eq!(ca_bundles(control_plane, &objects), bundles);
    objects
}

/// `sgp webhook` with the arguments of the Deployment, but on ports of this machine, and with
/// the rights of the Deployment's ServiceAccount.
fn webhook_command(control_plane: &ControlPlane, deployment: &Value) -> Command {
    let spec = &deployment["spec"]["template"]["spec"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_sgp"));
    for argument in spec["containers"][0]["args"].as_array().unwrap() {
        let argument = text(argument);
        match argument.split_once("listen=") {
            Some((flag, _)) => {
                command.arg(format!("{flag}listen=127.0.0.1:{}", free_port().unwrap()))
            }
            None => command.arg(argument),
        };
    }

    let account = text(&spec["serviceAccountName"]);
    let token = kubectl(
        control_plane,
        &["create", "token", "--namespace=sgp-system", &account],
    );
    let mut kubeconfig = Kubeconfig::read_from(control_plane.kubeconfig()).unwrap();
    for user in &mut kubeconfig.auth_infos {
        user.auth_info = Some(AuthInfo {
            token: Some(token.trim().to_owned().into()),
            ..AuthInfo::default()
        });
    }
    for context in &mut kubeconfig.contexts {
        // Where a pod finds its own namespace.
        let context = context.context.as_mut().unwrap();
        context.namespace = Some("sgp-system".to_owned());
    }
    let path = control_plane.run_dir().join("webhook.kubeconfig");
    fs::write(&path, serde_json::to_vec(&kubeconfig).unwrap()).unwrap();
    command.arg("--kubeconfig").arg(path);
    command
}

/// The bundle of each entry of each webhook configuration; empty if there is none.
fn ca_bundles(control_plane: &ControlPlane, objects: &Objects) -> Vec<String> {
    let mut bundles = Vec::new();
    for object in objects.values() {
        let kind = text(&object["kind"]);
        if kind.ends_with("WebhookConfiguration") {
            let name = text(&object["metadata"]["name"]);
            let found = kubectl(control_plane, &["get", &kind, &name, "--output=json"]);
            let found: Value = serde_json::from_str(&found).unwrap();
            for entry in found["webhooks"].as_array().unwrap() {
                let bundle = entry["clientConfig"]["caBundle"].as_str();
                bundles.push(bundle.unwrap_or_default().to_owned());
            }
        }
    }
    assert!(!bundles.is_empty());
    bundles
}

/// The names of the webhook configurations among objects.
fn configurations(objects: &Objects) -> Vec<&str> {
    let names = objects.keys().filter_map(|name| {
        let (kind, name) = name.split_once(' ')?;
        kind.ends_with("WebhookConfiguration").then_some(name)
    });
    names.collect()
}

/// An object's name as kubectl prints it when it applies.
fn name_of(object: &Value) -> String {
    let mut kind = text(&object["kind"]).to_lowercase();
    if let Some((group, _)) = text(&object["apiVersion"]).split_once('/') {
        kind = format!("{kind}.{group}");
    }
    format!("{kind}/{}", text(&object["metadata"]["name"]))
}
