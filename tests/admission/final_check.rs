//! Pods as other webhooks have left them. The texts are those of docs/webhook.md.

use serde_json::{Value, json};
use sgp::dev::Sandbox;

use crate::cluster::{
    DEFAULT, FARGATE_GROUPS, GROUP, LENIENT, Namespace, Output, POD_ENI, STRICT, by_pod,
    eventually, everything, kubectl, pod, requests_interface,
};
use crate::documented::block;
use crate::neighbour::{Neighbour, mutating, rule};

/// Registers another webhook, which comes after ours and is called again after our changes,
/// for pods of a namespace.
fn after_ours(
    sandbox: &Sandbox,
    namespace: &str,
    paths: &[&str],
    change: impl Fn(&str, &Value) -> Vec<Value> + Send + Sync + 'static,
) {
    let neighbour = Neighbour::that_changes(change);
    let pods = rule("CREATE", "pods");
    let entries = paths
        .iter()
        .map(|path| neighbour.mutating_entry(path, &pods, Some(namespace)));
    let configuration = mutating(namespace, &entries.collect::<Vec<_>>());
    kubectl(sandbox, &["apply", "-f", "-"], Some(&configuration)).ok();
}

/// Tries a pod until the other webhook has its way, and then really.
#[track_caller]
fn refused(namespace: &Namespace, pod: &Value, message: &str) {
    let denial =
        format!("admission webhook \"vpod-enforced.vpc.k8s.aws\" denied the request: {message}\n");
    let is_refused = |tried: &Output| !tried.success && tried.stderr.ends_with(&denial);
    eventually(&denial, || {
        is_refused(&namespace.dry_run(pod)).then_some(())
    });
    let applied = namespace.apply(pod);
    assert!(is_refused(&applied), "{applied:#?}");
    let pods = namespace.kubectl(&["get", "pods", "-o", "name"]).ok();
    assert_eq!(pods.stdout, "");
}

pub fn pod_whose_request_another_webhook_takes_away(text: &str) {
    let namespace = Namespace::new();
    namespace.policies(&[("all", everything(&[GROUP]))]);
    after_ours(&DEFAULT, &namespace.name, &["/take"], |_, request| {
        let resources = "/spec/containers/0/resources";
        match &request["object"].pointer(resources) {
            Some(resources) if resources.to_string().contains(POD_ENI) => {
                vec![json!({"op": "remove", "path": "/spec/containers/0/resources"})]
            }
            _ => Vec::new(),
        }
    });
    refused(&namespace, &pod(json!({}), json!({})), text);

    // One that has no interface to lose starts as ever.
    let host = pod(json!({}), json!({"hostNetwork": true}));
    assert_eq!(namespace.apply(&host).ok().warnings().len(), 1, "said once");
}

#[test]
fn pod_that_gets_its_label_after_our_last_look_is_refused() {
    let namespace = Namespace::new();
    namespace.policies(&[("green", by_pod(json!({"app": "green"})))]);
    // The API server calls webhooks a second time at most. The first entry adds the label only
    // then, when we have been called for the last time, and the second one brings that about.
    let paths = ["/label-at-last", "/annotate"];
    after_ours(&DEFAULT, &namespace.name, &paths, |path, request| {
        let metadata = &request["object"]["metadata"];
        let add =
            |path: &str, value: Value| vec![json!({"op": "add", "path": path, "value": value})];
        let is_second = metadata["annotations"]["seen"] == "yes";
        match path {
            "/annotate" if !is_second => add("/metadata/annotations", json!({"seen": "yes"})),
            "/label-at-last" if is_second && metadata["labels"].is_null() => {
                add("/metadata/labels", json!({"app": "green"}))
            }
            _ => Vec::new(),
        }
    });
    // Without kubectl's own annotation.
    let denial = block("webhook.md", "pods_that_lack_their_groups_at_last")[0].clone();
    let denial = denial.replace("\"all\"", "\"green\"");
    eventually("the label to be added", || {
        let arguments = ["create", "--dry-run=server", "-f", "-"];
        let created = namespace.kubectl_with(&arguments, Some(&pod(json!({}), json!({}))));
        (!created.success).then(|| assert!(created.stderr.contains(&denial), "{created:#?}"))
    });
}

#[test]
fn grace_period_that_another_webhook_takes_away_is_refused_where_we_would_set_it() {
    let namespace = Namespace::of(&STRICT);
    namespace.policies(&[("all", everything(&[GROUP]))]);
    after_ours(&STRICT, &namespace.name, &["/hurry"], |_, _| {
        let path = "/spec/terminationGracePeriodSeconds";
        vec![json!({"op": "replace", "path": path, "value": 0})]
    });
    let denial = block("webhook.md", "grace_period_of_0")[0].clone();
    let denial = denial
        .replace("hasty", "web")
        .replace("database-clients", "all");
    refused(&namespace, &pod(json!({}), json!({})), &denial);
}

fn fargate_pod(scheduler: &str) -> Value {
    let labels = json!({"eks.amazonaws.com/fargate-profile": "default"});
    pod(
        json!({"labels": labels}),
        json!({"schedulerName": scheduler}),
    )
}

/// The label of Fargate alone is no way around the groups.
pub fn pod_of_fargate_in_name_only(text: &str) {
    let namespace = Namespace::new();
    let fargate = fargate_pod("fargate-scheduler");
    let in_name_only = fargate_pod("default-scheduler");
    namespace.dry_run(&in_name_only).ok();

    namespace.policies(&[("all", everything(&[GROUP]))]);
    namespace.dry_run(&fargate).ok();
    refused(&namespace, &in_name_only, text);
}

/// A Fargate pod has the groups of its policies, or none.
pub fn fargate_pod_whose_groups_another_webhook_changes(selected: &str, unselected: &str) {
    let namespace = Namespace::new();
    after_ours(&DEFAULT, &namespace.name, &["/annotate"], |_, request| {
        let metadata = &request["object"]["metadata"];
        if metadata["labels"]["eks.amazonaws.com/fargate-profile"].is_null() {
            return Vec::new();
        }
        let annotations = &metadata["annotations"];
        let mut changed = if annotations.is_null() {
            json!({})
        } else {
            annotations.clone()
        };
        changed[FARGATE_GROUPS] = json!("sg-99999999");
        let path = "/metadata/annotations";
        vec![json!({"op": "add", "path": path, "value": changed})]
    });
    let pod = fargate_pod("fargate-scheduler");
    refused(
        &namespace,
        &pod,
        &unselected.replace("shop", &namespace.name),
    );

    namespace.policies(&[("all", everything(&[GROUP]))]);
    refused(&namespace, &pod, selected);
}

#[test]
fn pod_that_is_as_it_should_be_is_looked_at_twice_and_told_once() {
    let namespace = Namespace::of(&LENIENT);
    namespace.policies(&[("typo", everything(&["sg-123"]))]);
    let created = namespace.apply(&pod(json!({}), json!({}))).ok();
    assert!(requests_interface(&created.json()));
    assert_eq!(created.warnings().len(), 1, "{created:#?}");
}
