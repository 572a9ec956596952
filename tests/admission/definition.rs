//! A cluster that does not know SecurityGroupPolicies, or not yet.

use serde_json::json;

use crate::cluster::{
    GROUP, eventually, everything, knows_no_interface, kubectl, pod, policy, requests_interface,
    start,
};
use crate::https;

#[test]
fn pods_start_without_the_definition_and_policies_count_once_it_is_there() {
    let sandbox = start(&[]);
    let run =
        |arguments: &[&str], input: Option<&serde_json::Value>| kubectl(&sandbox, arguments, input);
    let dry_run = || {
        let pod = pod(json!({}), json!({}));
        run(
            &["create", "--dry-run=server", "-o", "json", "-f", "-"],
            Some(&pod),
        )
        .ok()
        .json()
    };
    let definition = "customresourcedefinition/securitygrouppolicies.vpcresources.k8s.aws";
    run(&["delete", definition], None).ok();

    let metric = |line: &str| {
        https::metrics(sandbox.metrics_port())
            .contains(line)
            .then_some(())
    };
    eventually("the webhook to miss the definition", || {
        metric("sgp_policy_definition_installed 0")
    });
    assert!(knows_no_interface(&dry_run()));
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

    run(&["apply", "-f", "manifests/crds"], None).ok();
    run(
        &[
            "wait",
            "--for=condition=Established",
            "--timeout=60s",
            definition,
        ],
        None,
    )
    .ok();
    run(
        &["apply", "-f", "-"],
        Some(&policy("all", &everything(&[GROUP]))),
    )
    .ok();
    eventually("the policy to count", || {
        requests_interface(&dry_run()).then_some(())
    });
    metric("sgp_policy_definition_installed 1").unwrap();
}
