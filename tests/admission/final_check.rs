//! Pods as other webhooks have left them.

use serde_json::{Value, json};
use sgp::dev::Sandbox;

use crate::cluster::{
    DEFAULT, FARGATE_GROUPS, GROUP, Namespace, Output, POD_ENI, STRICT, by_pod, eventually,
    everything, kubectl, pod, requests_interface,
};
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
    let mut last = None;
    eventually(&format!("{denial}"), || {
        let tried = namespace.dry_run(pod);
        let refused = is_refused(&tried);
        last = Some(tried);
        refused.then_some(())
    });
    let applied = namespace.apply(pod);
    assert!(is_refused(&applied), "{applied:#?}");
    let pods = namespace.kubectl(&["get", "pods", "-o", "name"]).ok();
    assert_eq!(pods.stdout, "");
}

fn lacks_request(policy: &str) -> String {
    format!(
        "pod \"web\": SecurityGroupPolicy \"{policy}\" gives it security groups, but no container \
         requests {POD_ENI}, and without that it starts without them. sgp adds the request at the \
         pod's creation: another webhook has taken it away since then, or the pod was selected \
         only later, by a label of another webhook or by a new policy. Try again; if that is of \
         no use, write {POD_ENI}: \"1\" into limits and requests of the first container, or mend \
         the other webhook"
    )
}

#[test]
fn pod_whose_request_another_webhook_takes_away_is_refused() {
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
    refused(
        &namespace,
        &pod(json!({}), json!({})),
        &lacks_request("all"),
    );

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
    let denial = lacks_request("green");
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
    refused(
        &namespace,
        &pod(json!({}), json!({})),
        "pod \"web\": SecurityGroupPolicy \"all\" gives it security groups, but \
         spec.terminationGracePeriodSeconds is 0. The VPC CNI plugin asks the API server for the \
         pod's address while it removes the pod's network; a pod that is gone at once leaves its \
         network behind on the node. Write terminationGracePeriodSeconds: 1 or more (30 is the \
         default), or leave it out",
    );
}

fn fargate_pod(scheduler: &str) -> Value {
    let labels = json!({"eks.amazonaws.com/fargate-profile": "default"});
    pod(
        json!({"labels": labels}),
        json!({"schedulerName": scheduler}),
    )
}

#[test]
fn label_of_fargate_alone_is_no_way_around_the_groups() {
    let namespace = Namespace::new();
    let fargate = fargate_pod("fargate-scheduler");
    let in_name_only = fargate_pod("default-scheduler");
    namespace.dry_run(&in_name_only).ok();

    namespace.policies(&[("all", everything(&[GROUP]))]);
    namespace.dry_run(&fargate).ok();
    refused(
        &namespace,
        &in_name_only,
        "pod \"web\": SecurityGroupPolicy \"all\" gives it security groups, but it has the label \
         eks.amazonaws.com/fargate-profile while spec.schedulerName is \"default-scheduler\", not \
         \"fargate-scheduler\": no Fargate profile has taken it, and it would start on a node \
         without its groups. Leave the label out, or make a Fargate profile select the pod",
    );
}

#[test]
fn fargate_pod_has_the_groups_of_its_policies_or_none() {
    let namespace = Namespace::new();
    after_ours(&DEFAULT, &namespace.name, &["/annotate"], |_, request| {
        let annotations = &request["object"]["metadata"]["annotations"];
        let mut changed = if annotations.is_null() {
            json!({})
        } else {
            annotations.clone()
        };
        changed[FARGATE_GROUPS] = json!("sg-99999999");
        let path = "/metadata/annotations";
        vec![json!({"op": "add", "path": path, "value": changed})]
    });
    refused(
        &namespace,
        &fargate_pod("fargate-scheduler"),
        &format!(
            "pod \"web\": it has the annotation fargate.amazonaws.com/pod-sg, but no \
             SecurityGroupPolicy of namespace \"{}\" gives it security groups. Leave the \
             annotation out, and write a policy that selects the pod",
            namespace.name
        ),
    );

    namespace.policies(&[("all", everything(&[GROUP]))]);
    refused(
        &namespace,
        &fargate_pod("fargate-scheduler"),
        "pod \"web\": SecurityGroupPolicy \"all\" gives it security groups, but its annotation \
         fargate.amazonaws.com/pod-sg is not \"sg-0123456789abcdef0\", which sgp writes at its \
         creation: another webhook has changed it since then, or the policies have changed. Try \
         again; if that is of no use, mend the other webhook",
    );
}

#[test]
fn pod_that_is_as_it_should_be_is_looked_at_twice_and_told_once() {
    let namespace = Namespace::new();
    namespace.policies(&[("typo", everything(&["sg-123"]))]);
    let created = namespace.apply(&pod(json!({}), json!({}))).ok();
    assert!(requests_interface(&created.json()));
    assert_eq!(created.warnings().len(), 1, "{created:#?}");
}
