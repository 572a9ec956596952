//! The pod that is installed.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use sgp::api::names::ALLOCATOR_USER;

use crate::{in_repository, kubectl, render, start_control_plane, text, waiting::eventually};

#[test]
fn webhook_and_allocator_share_a_socket_and_answer_their_probes() {
    let deployment = deployment();
    let spec = &deployment["spec"]["template"]["spec"];
    let [webhook, allocator] = &spec["containers"].as_array().unwrap()[..] else {
        panic!("two containers");
    };

    let socket = flag(webhook, "allocator-socket");
    assert_eq!(socket, flag(allocator, "socket"));
    let folder = Path::new(&socket).parent().unwrap();
    let volume = |container: &Value| {
        let mounts = container["volumeMounts"].as_array().unwrap().iter();
        let mut here =
            mounts.filter(|mount| Path::new(mount["mountPath"].as_str().unwrap()) == folder);
        text(&here.next().unwrap()["name"])
    };
    assert_eq!(volume(webhook), volume(allocator));
    let mut volumes = spec["volumes"].as_array().unwrap().iter();
    let shared = volumes.find(|it| it["name"] == volume(webhook).as_str());
    assert!(shared.unwrap()["emptyDir"].is_object());

    for (container, probe, listen) in [
        (webhook, "readinessProbe", "listen"),
        (webhook, "livenessProbe", "listen"),
        (allocator, "startupProbe", "metrics-listen"),
        (allocator, "livenessProbe", "metrics-listen"),
    ] {
        let wanted = &container[probe]["httpGet"]["port"];
        let mut ports = container["ports"].as_array().unwrap().iter();
        let port = ports.find(|port| &port["name"] == wanted).unwrap();
        let address = flag(container, listen);
        let (_, number) = address.rsplit_once(':').unwrap();
        assert_eq!(port["containerPort"].to_string(), number, "{probe}");
    }
}

/// The value of a flag in a container's arguments.
fn flag(container: &Value, name: &str) -> String {
    let mut arguments = container["args"].as_array().unwrap().iter();
    let prefix = format!("--{name}=");
    let value = arguments.find_map(|it| it.as_str().unwrap().strip_prefix(&prefix));
    value.unwrap_or_else(|| panic!("no {prefix}")).to_owned()
}

/// Whoever a condition names is not asked about: another name would let somebody else past the
/// guards.
#[test]
fn webhook_entries_name_the_service_account_and_the_namespace_of_the_pods() {
    for overlay in ["ec2", "eks"] {
        let objects = render(&format!("manifests/overlays/{overlay}"));
        let deployment = &objects["Deployment sgp-system/sgp"];
        let namespace = text(&deployment["metadata"]["namespace"]);
        let account = text(&deployment["spec"]["template"]["spec"]["serviceAccountName"]);
        let user = format!("system:serviceaccount:{namespace}:{account}");
        assert_eq!(user, ALLOCATOR_USER);

        let configurations = objects
            .iter()
            .filter(|(name, _)| name.contains("WebhookConfiguration"));
        let entries: Vec<_> = configurations
            .flat_map(|(_, object)| object["webhooks"].as_array().unwrap())
            .collect();
        assert!(
            entries
                .iter()
                .all(|it| it["clientConfig"]["service"]["namespace"] == *namespace)
        );
        let conditions = entries
            .iter()
            .flat_map(|entry| entry["matchConditions"].as_array().into_iter().flatten());
        let names_us = format!("'{user}'");
        let naming: Vec<_> = conditions
            .map(|condition| text(&condition["expression"]))
            .filter(|expression| expression.contains("system:serviceaccount:sgp"))
            .collect();
        assert!(!naming.is_empty());
        assert!(naming.iter().all(|it| it.contains(&names_us)), "{naming:?}");
    }
}

#[test]
fn programs_understand_the_flags_of_every_overlay() {
    let understood = |arguments: &[String]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sgp"));
        // What comes before this flag is read first.
        command.args(arguments).arg("--help");
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.status().unwrap().success()
    };
    for overlay in ["ec2", "eks"] {
        let objects = render(&format!("manifests/overlays/{overlay}"));
        let spec = &objects["Deployment sgp-system/sgp"]["spec"]["template"]["spec"];
        for container in spec["containers"].as_array().unwrap() {
            let arguments = container["args"].as_array().unwrap().iter().map(text);
            let mut arguments: Vec<_> = arguments
                .map(|it| it.replace("$(CLUSTER_NAME)", "my-cluster"))
                .collect();
            assert!(understood(&arguments), "{overlay}: {arguments:?}");

            arguments.push("--unknown".to_owned());
            assert!(!understood(&arguments), "any flag is understood");
        }
    }
}

#[tokio::test]
async fn replicas_run_where_only_restricted_pods_may() {
    let control_plane = start_control_plane().await;
    // With no flag that would apply on the server's side.
    let ec2 = in_repository("manifests/overlays/ec2");
    kubectl(&control_plane, &["apply", "-k", &ec2]);

    // It is the controller manager who makes them, without nodes to run on.
    let pods = ["get", "pods", "--namespace=sgp-system", "--output=name"];
    eventually("two replicas", || {
        (kubectl(&control_plane, &pods).lines().count() == 2).then_some(())
    });

    let run = ["run", "any", "--namespace=sgp-system", "--image=any"];
    let refused = control_plane.kubectl().args(run).output().unwrap();
    let problem = String::from_utf8(refused.stderr).unwrap();
    assert!(problem.contains("violates PodSecurity"), "{problem}");
}

#[test]
fn the_token_is_mounted_where_it_is_asked_for_only() {
    let objects = render("manifests/overlays/ec2");
    let account = &objects["ServiceAccount sgp-system/sgp"];
    assert_eq!(account["automountServiceAccountToken"], json!(false));
    let pod = &deployment()["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], json!(true));
    assert_eq!(pod["serviceAccountName"], account["metadata"]["name"]);
}

#[test]
fn network_policy_and_budget_select_the_pods_and_let_all_their_ports_be_reached() {
    let objects = render("manifests/overlays/ec2");
    let template = &deployment()["spec"]["template"];
    let labels = &template["metadata"]["labels"];
    let policy = &objects["NetworkPolicy sgp-system/sgp"]["spec"];
    assert_eq!(&policy["podSelector"]["matchLabels"], labels);
    let budget = &objects["PodDisruptionBudget sgp-system/sgp"]["spec"];
    assert_eq!(&budget["selector"]["matchLabels"], labels);
    for constraint in template["spec"]["topologySpreadConstraints"]
        .as_array()
        .unwrap()
    {
        assert_eq!(&constraint["labelSelector"]["matchLabels"], labels);
    }

    let all = |list: &Value, inner: &str, field: &str| -> Vec<String> {
        let items = list.as_array().unwrap().iter();
        let items = items.flat_map(|item| item[inner].as_array().unwrap());
        items.map(|item| text(&item[field])).collect()
    };
    let reachable = all(&policy["ingress"], "ports", "port");
    let open = all(&template["spec"]["containers"], "ports", "name");
    assert_eq!(reachable, open);
}

/// The Deployment of the base.
fn deployment() -> Value {
    let manifest = fs::read_to_string(in_repository("manifests/base/deployment.yaml")).unwrap();
    serde_saphyr::from_str(&manifest).unwrap()
}
