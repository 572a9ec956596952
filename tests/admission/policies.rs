//! What whoever writes a policy or a workload is told, word for word as docs/policies.md has
//! it.

use kube::Resource;
use kube::api::{Api, ApiResource, DynamicObject, PostParams};
use serde_json::{Value, json};
use sgp::api::SecurityGroupPolicy;

use crate::allocator::{ELSEWHERE, FULL, MISSING};
use crate::cluster::{
    DEFAULT, GROUP, LENIENT, Namespace, by_pod, eventually, everything, kubectl, policy,
};
use crate::https::{self, block_on};
use crate::recorder::Registration;
use crate::workload_templates;

documented!("policies.md",
    denied => one_problem_each,
    several => several_at_once,
    as_others_see_it => message_of_the_status,
    groups => unusable_groups,
    never_closed => namespaces_that_stay_open,
    pods_refused => workload_templates::refused,
    pods_refused_strictly => workload_templates::refused_strictly,
    pods_warned => workload_templates::warned,
    pods_warned_of_policies => workload_templates::warned_of_policies,
    pods_without_groups => workload_templates::without_groups,
);

/// The spec of a policy with this expression in its pod selector.
fn with_expression(expression: Value) -> Value {
    json!({
        "podSelector": {"matchExpressions": [expression]},
        "securityGroups": {"groupIds": [GROUP]}
    })
}

fn with_account_label(key: &str, value: &str) -> Value {
    json!({
        "serviceAccountSelector": {"matchLabels": {key: value}},
        "securityGroups": {"groupIds": [GROUP]}
    })
}

fn six_groups() -> Value {
    let ids: Vec<_> = (1..=6)
        .map(|number| format!("sg-0000000{number}"))
        .collect();
    json!({"podSelector": {}, "securityGroups": {"groupIds": ids}})
}

fn broken() -> Value {
    let mut spec = with_expression(json!({"key": "app", "operator": "Near"}));
    spec["securityGroups"]["groupIds"] = json!([GROUP, GROUP]);
    spec
}

fn one_problem_each(texts: &[String]) {
    let specs = [
        json!({"securityGroups": {"groupIds": [GROUP]}}),
        with_expression(json!({"key": "app", "operator": "Near"})),
        with_expression(json!({"key": "app", "operator": "In"})),
        with_expression(json!({"key": "app", "operator": "Exists", "values": ["web"]})),
        with_expression(json!({"key": "app", "operator": "In", "values": vec!["a"; 1_001]})),
        with_expression(json!({"key": "a/b/c", "operator": "Exists"})),
        with_expression(json!({"key": "app", "operator": "NotIn", "values": ["web", "-"]})),
        with_account_label("a role", "reader"),
        with_account_label("role", "a reader"),
        json!({"podSelector": {}}),
        six_groups(),
        everything(&["web-servers"]),
        everything(&[GROUP, GROUP]),
    ];
    assert_eq!(texts.len(), specs.len());
    let namespace = Namespace::new();
    for (text, spec) in texts.iter().zip(specs) {
        let refused = namespace.apply(&policy("database", &spec));
        assert!(!refused.success, "{refused:#?}");
        let expected = format!("The SecurityGroupPolicy \"database\" is invalid: {text}\n");
        assert_eq!(refused.stderr, expected);
    }
}

fn several_at_once(texts: &[String]) {
    let refused = Namespace::new().apply(&policy("database", &broken()));
    assert!(!refused.success, "{refused:#?}");
    let lines: Vec<_> = refused.stderr.lines().map(str::trim_end).collect();
    assert_eq!(lines, texts);
}

fn message_of_the_status(texts: &[String]) {
    let namespace = Namespace::new();
    let created = block_on(async {
        let client = DEFAULT.control_plane().client();
        let resource = ApiResource::erase::<SecurityGroupPolicy>(&());
        let policies = Api::<DynamicObject>::namespaced_with(client, &namespace.name, &resource);
        let broken = serde_json::from_value(policy("database", &broken())).unwrap();
        policies.create(&PostParams::default(), &broken).await
    });
    let Err(kube::Error::Api(status)) = created else {
        panic!("{created:#?}");
    };
    assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"));
    assert_eq!(texts.concat(), status.message);
    let details = status.details.as_ref().unwrap();
    assert_eq!(details.kind, SecurityGroupPolicy::kind(&()));
    let causes = details.causes.iter();
    let causes: Vec<_> = causes
        .map(|cause| (cause.reason.as_str(), cause.field.as_str()))
        .collect();
    assert_eq!(
        causes,
        [
            (
                "FieldValueInvalid",
                "spec.podSelector.matchExpressions[0].operator"
            ),
            ("FieldValueDuplicate", "spec.securityGroups.groupIds[1]"),
        ]
    );
}

fn unusable_groups(texts: &[String]) {
    let namespace = Namespace::of(*FULL);
    let policy = policy("database", &everything(&[GROUP, MISSING, ELSEWHERE]));
    // Until the allocator answers in time, which it does not on a machine that is very busy.
    let warnings = eventually("the allocator's answer", || {
        let applied = namespace.dry_run(&policy).ok();
        let warnings = applied.warnings().into_iter().map(str::to_owned);
        Some(warnings.collect::<Vec<_>>()).filter(|warnings| !warnings.is_empty())
    });
    assert_eq!(warnings, texts);
}

fn namespaces_that_stay_open(texts: &[String]) {
    let policy = policy("database", &by_pod(json!({"app": "nobody"})));
    let arguments = ["apply", "--dry-run=server", "-n=kube-system", "-f", "-"];
    assert_eq!(
        kubectl(&DEFAULT, &arguments, Some(&policy)).ok().warnings(),
        texts
    );
    assert!(Namespace::new().dry_run(&policy).ok().warnings().is_empty());
}

#[test]
fn valid_policies_are_stored_without_a_word() {
    let namespace = Namespace::new();
    let long = "sg-".to_owned() + &"0".repeat(17);
    for (name, spec) in [
        ("all-pods", everything(&[GROUP])),
        (
            "all-accounts",
            json!({"serviceAccountSelector": {}, "securityGroups": {"groupIds": [GROUP]}}),
        ),
        (
            "five-groups",
            everything(&[
                "sg-00000001",
                "sg-00000002",
                "sg-00000003",
                "sg-00000004",
                &long,
            ]),
        ),
        (
            "none-of",
            with_expression(json!({"key": "example.com/app", "operator": "DoesNotExist"})),
        ),
    ] {
        let applied = namespace.apply(&policy(name, &spec)).ok();
        assert!(applied.warnings().is_empty(), "{applied:#?}");
    }
}

#[test]
fn policy_that_was_invalid_before_us_can_be_labelled_mended_and_deleted() {
    let namespace = Namespace::of(&LENIENT);
    let invalid = json!({"securityGroups": {"groupIds": [GROUP]}});
    for name in ["kept", "mended"] {
        let mut policy = policy(name, &invalid);
        policy["metadata"]["finalizers"] = json!(["example.com/wait"]);
        namespace.apply(&policy).ok();
    }
    let bundle = https::ca_bundle(&LENIENT);
    let port = LENIENT.webhook_port();
    let _vsgp = Registration::new("vsgp.vpc.k8s.aws", &namespace, port, &bundle);
    eventually("the webhook to be asked", || {
        let tried = namespace.dry_run(&policy("new", &invalid));
        (!tried.success).then_some(())
    });

    let patch = |name: &str, patch: Value| {
        let patch = format!("--patch={patch}");
        namespace.kubectl(&["patch", "securitygrouppolicy", name, "--type=merge", &patch])
    };
    let metadata = |metadata: Value| json!({ "metadata": metadata });
    patch("kept", metadata(json!({"labels": {"team": "red"}}))).ok();
    let worse = patch(
        "kept",
        json!({"spec": {"securityGroups": {"groupIds": ["web"]}}}),
    );
    assert!(worse.stderr.contains("is invalid"), "{worse:#?}");
    patch("mended", json!({"spec": {"podSelector": {}}})).ok();

    let delete = [
        "delete",
        "securitygrouppolicy",
        "kept",
        "mended",
        "--wait=false",
    ];
    namespace.kubectl(&delete).ok();
    for name in ["kept", "mended"] {
        patch(name, metadata(json!({"finalizers": []}))).ok();
    }
    let left = namespace
        .kubectl(&["get", "securitygrouppolicies", "-o", "name"])
        .ok();
    assert_eq!(left.stdout, "");
}

#[test]
fn policy_whose_name_the_api_server_makes_is_told_by_that() {
    let namespace = Namespace::new();
    let mut unnamed = policy("", &json!({"podSelector": {}}));
    unnamed["metadata"] = json!({"generateName": "database-"});
    let created = namespace.create(&unnamed);
    assert!(
        created
            .stderr
            .starts_with("The SecurityGroupPolicy \"database-"),
        "{created:#?}"
    );
    assert!(
        created.stderr.contains("groupIds: Required value"),
        "{created:#?}"
    );
}
