//! A cluster that does not know SecurityGroupPolicies, or not yet.

use std::process::Command;

use serde_json::{Value, json};
use sgp::dev::Sandbox;
use sgp::dev::control_plane::free_port;

use crate::cluster::{
    GROUP, eventually, everything, knows_no_interface, kubectl, pod, policy, requests_interface,
    start,
};
use crate::https;

const DEFINITION: &str = "customresourcedefinition/securitygrouppolicies.vpcresources.k8s.aws";

fn run(sandbox: &Sandbox, arguments: &[&str], input: Option<&Value>) -> Value {
    let output = kubectl(sandbox, arguments, input).ok();
    serde_json::from_str(&output.stdout).unwrap_or_default()
}

fn dry_run(sandbox: &Sandbox) -> Value {
    let arguments = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
    run(sandbox, &arguments, Some(&pod(json!({}), json!({}))))
}

fn apply_policy(sandbox: &Sandbox) {
    let all = policy("all", &everything(&[GROUP]));
    run(sandbox, &["apply", "-f", "-"], Some(&all));
    assert!(requests_interface(&dry_run(sandbox)), "it counts at once");
}

fn apply_definition(sandbox: &Sandbox) {
    run(sandbox, &["apply", "-k", "manifests/crds"], None);
    let wait = [
        "wait",
        "--for=condition=Established",
        "--timeout=120s",
        DEFINITION,
    ];
    run(sandbox, &wait, None);
    // The API server serves a new resource a moment after it says so.
    eventually("policies to be served", || {
        let list = ["get", "securitygrouppolicies", "--all-namespaces"];
        kubectl(sandbox, &list, None).success.then_some(())
    });
}

fn wait_for_metric(port: u16, line: &str) {
    eventually(line, || https::metrics(port).contains(line).then_some(()));
}

#[test]
fn policies_go_and_come_with_their_definition() {
    let sandbox = start(&[]);
    apply_policy(&sandbox);
    run(&sandbox, &["delete", DEFINITION], None);
    wait_for_metric(sandbox.metrics_port(), "sgp_policy_definition_installed 0");
    assert!(knows_no_interface(&dry_run(&sandbox)));
    assert_eq!(
        https::get(&sandbox, "/readyz").status,
        200,
        "it serves all the same"
    );
    let log = std::fs::read_to_string(sandbox.control_plane().run_dir().join("webhook.log"));
    assert!(
        log.unwrap()
            .contains("SecurityGroupPolicies are not defined in this cluster")
    );

    apply_definition(&sandbox);
    apply_policy(&sandbox);
    wait_for_metric(sandbox.metrics_port(), "sgp_policy_definition_installed 1");
    wait_for_metric(sandbox.metrics_port(), "sgp_policies{state=\"valid\"} 1");
}

#[test]
fn webhook_that_starts_before_the_definition_serves_and_picks_it_up() {
    let sandbox = start(&[]);
    run(&sandbox, &["delete", DEFINITION], None);
    let (port, metrics_port) = (free_port().unwrap(), free_port().unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_sgp"));
    command
        .args(["webhook", "--tls-name=127.0.0.1"])
        .arg("--webhook-configuration=none-of-this-name")
        .arg(format!("--listen=127.0.0.1:{port}"))
        .arg(format!("--metrics-listen=127.0.0.1:{metrics_port}"))
        .arg("--kubeconfig")
        .arg(sandbox.control_plane().kubeconfig());
    let _early = sandbox
        .control_plane()
        .spawn("early-webhook", command)
        .unwrap();
    eventually("the early webhook", || {
        std::net::TcpStream::connect(("127.0.0.1", metrics_port)).ok()
    });
    wait_for_metric(metrics_port, "sgp_policy_definition_installed 0");

    apply_definition(&sandbox);
    apply_policy(&sandbox);
    wait_for_metric(metrics_port, "sgp_policy_definition_installed 1");
    wait_for_metric(metrics_port, "sgp_policies{state=\"valid\"} 1");
}
