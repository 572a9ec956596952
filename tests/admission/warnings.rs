//! Pods that are let in with a word to their creator.

use serde_json::{Value, json};

use crate::cluster::{
    GROUP, LENIENT, Namespace, STRICT, everything, knows_no_interface, pod, policy,
    requests_interface,
};

fn without_grace() -> Value {
    pod(json!({}), json!({"terminationGracePeriodSeconds": 0}))
}

#[test]
fn grace_period_of_0_is_set_to_30_if_the_operator_says_so() {
    let namespace = Namespace::of(&STRICT);
    namespace.policies(&[("all", everything(&[GROUP]))]);
    let created = namespace.apply(&without_grace()).ok();

    assert_eq!(created.json()["spec"]["terminationGracePeriodSeconds"], 30);
    assert!(requests_interface(&created.json()));
    assert_eq!(
        created.warnings(),
        [
            "pod \"web\": spec.terminationGracePeriodSeconds was 0 and is set to 30: its interface \
          (SecurityGroupPolicy \"all\") is removed from the node only while the pod still exists"
        ]
    );
}

#[test]
fn grace_period_of_0_is_only_warned_of_if_the_operator_says_so() {
    let namespace = Namespace::of(&LENIENT);
    namespace.policies(&[("all", everything(&[GROUP]))]);
    let created = namespace.apply(&without_grace()).ok();

    assert_eq!(created.json()["spec"]["terminationGracePeriodSeconds"], 0);
    assert!(requests_interface(&created.json()));
    assert_eq!(
        created.warnings(),
        [
            "pod \"web\": spec.terminationGracePeriodSeconds is 0, so that its interface \
          (SecurityGroupPolicy \"all\") may stay behind on the node; write 1 or more, 30 is the \
          default"
        ]
    );
}

#[test]
fn pod_that_can_have_no_interface_is_left_alone_and_its_creator_told() {
    let namespace = Namespace::new();
    namespace.policies(&[("all", everything(&[GROUP]))]);
    let prefix = "runs without its security groups: ";
    let windows = "spec.os.name or spec.nodeSelector[kubernetes.io/os] is \"windows\", and \
                   Windows pods get no branch interface";
    for (name, spec, why) in [
        (
            "host",
            json!({"hostNetwork": true}),
            "spec.hostNetwork is true, and a pod on its node's network has no interface of its \
             own",
        ),
        ("windows", json!({"os": {"name": "windows"}}), windows),
        (
            "selector",
            json!({"nodeSelector": {"kubernetes.io/os": "windows"}}),
            windows,
        ),
    ] {
        let created = namespace.apply(&pod(json!({"name": name}), spec)).ok();
        let policy = "SecurityGroupPolicy \"all\"";
        assert_eq!(
            created.warnings(),
            [format!("pod \"{name}\" {prefix}{why} ({policy})")]
        );
        assert!(knows_no_interface(&created.json()), "{created:#?}");
    }
}

#[test]
fn more_groups_than_an_interface_takes_are_listed_with_their_policies() {
    let namespace = Namespace::new();
    namespace.policies(&[
        (
            "one",
            everything(&["sg-00000001", "sg-00000002", "sg-00000003"]),
        ),
        (
            "two",
            everything(&["sg-00000003", "sg-00000004", "sg-00000005", "sg-00000006"]),
        ),
    ]);
    let created = namespace.apply(&pod(json!({}), json!({}))).ok();

    assert!(requests_interface(&created.json()));
    assert_eq!(
        created.warnings(),
        [
            "pod \"web\" gets 6 security groups; EC2 takes 5 for an interface unless the \
             account's quota was raised, and gives it none otherwise. They come from:",
            "SecurityGroupPolicy \"one\": sg-00000001, sg-00000002, sg-00000003",
            "SecurityGroupPolicy \"two\": sg-00000003, sg-00000004, sg-00000005, sg-00000006",
        ]
    );
}

#[test]
fn invalid_policies_are_named_and_skipped_and_the_others_count() {
    let namespace = Namespace::of(&LENIENT);
    let groups = json!({"groupIds": [GROUP]});
    let near = json!({"matchExpressions": [{"key": "app", "operator": "Near"}]});
    namespace.policies(&[
        ("a-good-one", everything(&[GROUP])),
        (
            "bad-account-selector",
            json!({"serviceAccountSelector": near, "securityGroups": groups}),
        ),
        (
            "bad-selector",
            json!({"podSelector": near, "securityGroups": groups}),
        ),
        ("no-groups", json!({"podSelector": {}})),
        ("no-selector", json!({"securityGroups": groups})),
    ]);
    let created = namespace.apply(&pod(json!({}), json!({}))).ok();

    assert!(requests_interface(&created.json()));
    let operators =
        "matchExpressions[0].operator: \"Near\" is not In, NotIn, Exists or DoesNotExist";
    assert_eq!(
        created.warnings(),
        [
            format!(
                "SecurityGroupPolicy \"bad-account-selector\" is ignored: \
                 spec.serviceAccountSelector.{operators}"
            ),
            format!(
                "SecurityGroupPolicy \"bad-selector\" is ignored: spec.podSelector.{operators}"
            ),
            "SecurityGroupPolicy \"no-groups\" is ignored: spec.securityGroups.groupIds lists no \
             security group; list 1 to 5"
                .to_owned(),
            "SecurityGroupPolicy \"no-selector\" is ignored: spec has neither podSelector nor \
             serviceAccountSelector; give one, {} selects all"
                .to_owned(),
        ]
    );
}

#[test]
fn group_id_that_can_not_exist_is_named_and_the_pod_waits_for_it() {
    let namespace = Namespace::of(&LENIENT);
    namespace.policies(&[("typo", everything(&["sg-123"]))]);
    let created = namespace.apply(&pod(json!({}), json!({}))).ok();

    assert!(requests_interface(&created.json()));
    assert_eq!(
        created.warnings(),
        [
            "SecurityGroupPolicy \"typo\": \"sg-123\" is not the id of a security group (sg- and 8 \
          or 17 hexadecimal digits); no interface can be had with it until that is mended"
        ]
    );
}

#[test]
fn hundred_invalid_policies_fit_into_what_the_api_server_passes_on() {
    let namespace = Namespace::of(&LENIENT);
    let spec = json!({"securityGroups": {"groupIds": [GROUP]}});
    let invalid = (0..100).map(|number| policy(&format!("invalid-{number:03}"), &spec));
    let list = json!({"apiVersion": "v1", "kind": "List", "items": invalid.collect::<Vec<_>>()});
    namespace.apply(&list).ok();
    namespace.settle();

    namespace.policies(&[("all", everything(&[GROUP]))]);
    let pod = pod(json!({}), json!({"hostNetwork": true}));
    let created = namespace.apply(&pod).ok();
    let warnings = created.warnings();
    assert!(
        warnings[0].contains("spec.hostNetwork is true"),
        "its own pod comes first"
    );
    let listed = warnings.len() - 2;
    assert!(listed > 10, "{warnings:#?}");
    assert_eq!(
        warnings.last().unwrap(),
        &format!("and {} more warnings", 100 - listed)
    );
}
