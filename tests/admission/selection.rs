//! Which pods a policy selects, and when changes of it count.

use serde_json::{Value, json};

use crate::cluster::{
    DEFAULT, FARGATE_GROUPS, GROUP, Namespace, by_pod, eventually, everything, knows_no_interface,
    kubectl, pod, policy, requests_interface,
};

fn service_account(name: &str, labels: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name, "labels": labels}
    })
}

fn by_account(selector: Value) -> Value {
    json!({"serviceAccountSelector": selector, "securityGroups": {"groupIds": [GROUP]}})
}

#[test]
fn both_selectors_must_match_where_both_are_given() {
    let namespace = Namespace::new();
    namespace
        .apply(&service_account("reader", json!({"role": "reader"})))
        .ok();
    namespace.policies(&[(
        "both",
        json!({
            "podSelector": {"matchLabels": {"app": "web"}},
            "serviceAccountSelector": {"matchLabels": {"role": "reader"}},
            "securityGroups": {"groupIds": [GROUP]}
        }),
    )]);

    for (name, app, account, selected) in [
        ("both", "web", "reader", true),
        ("pod-only", "web", "default", false),
        ("account-only", "other", "reader", false),
        ("neither", "other", "default", false),
    ] {
        let metadata = json!({"name": name, "labels": {"app": app}});
        let created = namespace.apply(&pod(metadata, json!({"serviceAccountName": account})));
        let created = created.ok().json();
        assert_eq!(requests_interface(&created), selected, "{name}");
        assert_eq!(knows_no_interface(&created), !selected, "{name}");
    }
}

#[test]
fn empty_selectors_select_every_pod_and_every_service_account() {
    for spec in [everything(&[GROUP]), by_account(json!({}))] {
        let namespace = Namespace::new();
        namespace.policies(&[("all", spec.clone())]);
        let created = namespace.apply(&pod(json!({}), json!({}))).ok().json();
        assert!(requests_interface(&created), "{spec}");
    }
}

#[test]
fn policy_selects_only_in_its_own_namespace() {
    let (here, elsewhere) = (Namespace::new(), Namespace::new());
    here.policies(&[("all", everything(&[GROUP]))]);

    let created = elsewhere.apply(&pod(json!({}), json!({}))).ok().json();
    assert!(knows_no_interface(&created));
}

#[test]
fn groups_of_several_policies_are_united_in_order_of_their_names() {
    let namespace = Namespace::new();
    namespace.policies(&[
        ("b", everything(&["sg-00000003", "sg-00000001"])),
        ("a", everything(&["sg-00000002", "sg-00000003"])),
        ("c", by_pod(json!({"app": "other"}))),
    ]);
    // Fargate's annotation is where the webhook shows the groups themselves.
    let labels = json!({"eks.amazonaws.com/fargate-profile": "default"});
    let created = namespace
        .apply(&pod(
            json!({"labels": labels}),
            json!({"schedulerName": "fargate-scheduler"}),
        ))
        .ok()
        .json();

    let groups = &created["metadata"]["annotations"][FARGATE_GROUPS];
    assert_eq!(groups, "sg-00000002,sg-00000003,sg-00000001");
}

#[test]
fn changed_policy_counts_for_the_next_pod() {
    let namespace = Namespace::new();
    namespace.policies(&[("database", by_pod(json!({"app": "green"})))]);
    namespace.policies(&[("database", by_pod(json!({"app": "red"})))]);

    for (name, app, selected) in [("green", "green", false), ("red", "red", true)] {
        let created = namespace.apply(&pod(
            json!({"name": name, "labels": {"app": app}}),
            json!({}),
        ));
        assert_eq!(requests_interface(&created.ok().json()), selected, "{name}");
    }
}

#[test]
fn deleted_policy_selects_no_more() {
    let namespace = Namespace::new();
    namespace.policies(&[("all", everything(&[GROUP]))]);
    namespace
        .kubectl(&["delete", "securitygrouppolicy", "all"])
        .ok();
    namespace.settle();

    let created = namespace.apply(&pod(json!({}), json!({}))).ok().json();
    assert!(knows_no_interface(&created));
}

#[test]
fn relabelled_service_account_counts_for_the_next_pod() {
    let namespace = Namespace::new();
    namespace.apply(&service_account("app", json!({}))).ok();
    namespace.policies(&[(
        "readers",
        by_account(json!({"matchLabels": {"role": "reader"}})),
    )]);
    let pod = pod(json!({}), json!({"serviceAccountName": "app"}));
    assert!(knows_no_interface(&namespace.dry_run(&pod).ok().json()));

    namespace
        .kubectl(&["label", "serviceaccount", "app", "role=reader"])
        .ok();
    eventually("the new label to count", || {
        requests_interface(&namespace.dry_run(&pod).ok().json()).then_some(())
    });
    namespace
        .kubectl(&["label", "serviceaccount", "app", "role-"])
        .ok();
    eventually("the label's removal to count", || {
        knows_no_interface(&namespace.dry_run(&pod).ok().json()).then_some(())
    });
}

#[test]
fn service_account_and_pod_can_be_created_in_the_same_breath() {
    let namespace = Namespace::new();
    namespace.policies(&[(
        "readers",
        by_account(json!({"matchLabels": {"role": "reader"}})),
    )]);
    for round in 0..5 {
        let name = format!("app-{round}");
        let pod = pod(json!({"name": name}), json!({"serviceAccountName": name}));
        let account = service_account(&name, json!({"role": "reader"}));
        let both = json!({"apiVersion": "v1", "kind": "List", "items": [account, pod]});
        namespace.apply(&both).ok();

        let created = namespace
            .kubectl(&["get", "pod", &name, "-o", "json"])
            .ok()
            .json();
        assert!(requests_interface(&created), "{name}");
    }
}

#[test]
fn pod_is_selected_by_a_policy_that_is_as_new_as_its_namespace() {
    for round in 0..10 {
        let namespace = format!("race-{}-{round}", std::process::id());
        let within = |mut object: Value| {
            object["metadata"]["namespace"] = json!(namespace);
            object
        };
        let account = service_account("app", json!({"role": "reader"}));
        let spec = json!({
            "podSelector": {},
            "serviceAccountSelector": {"matchLabels": {"role": "reader"}},
            "securityGroups": {"groupIds": [GROUP]}
        });
        let pod = pod(json!({}), json!({"serviceAccountName": "app"}));
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
            within(account),
            within(policy("all", &spec)),
            within(pod)
        ]});
        kubectl(&DEFAULT, &["create", "-f", "-"], Some(&list)).ok();

        let namespace = format!("--namespace={namespace}");
        let arguments = ["get", "pod", "web", "-o", "json", &namespace];
        let created = kubectl(&DEFAULT, &arguments, None).ok().json();
        assert!(requests_interface(&created), "round {round}");
    }
}

#[test]
fn each_namespace_meets_one_entry_by_its_label() {
    let ordinary = Namespace::new();
    let run = |arguments: &[&str], input: Option<&Value>| kubectl(&DEFAULT, arguments, input);
    for (namespace, label, entry) in [
        (ordinary.name.as_str(), "=true", "mpod-enforced.vpc.k8s.aws"),
        (ordinary.name.as_str(), "-", "mpod.vpc.k8s.aws"),
        ("kube-system", "=true", "mpod-system.vpc.k8s.aws"),
        ("kube-system", "-", "mpod.vpc.k8s.aws"),
        ("sgp-system", "=true", "mpod-system.vpc.k8s.aws"),
        ("sgp-system", "-", "mpod.vpc.k8s.aws"),
    ] {
        let within = format!("--namespace={namespace}");
        let spec = by_pod(json!({"app": "labelled"}));
        let policy = policy("labelled", &spec);
        run(&["apply", "-f", "-", &within], Some(&policy)).ok();
        let label = format!("vpcresources.k8s.aws/enforce{label}");
        run(
            &["label", "namespace", namespace, &label, "--overwrite"],
            None,
        )
        .ok();

        // A refusal tells which entry the API server has asked. It learns of the label by a
        // watch of its own.
        let metadata = json!({"labels": {"app": "labelled"}});
        let hasty = pod(metadata, json!({"terminationGracePeriodSeconds": 0}));
        let asked = format!("admission webhook \"{entry}\" denied the request");
        eventually(&format!("{entry} in {namespace}"), || {
            let dry_run = ["create", "--dry-run=server", "-f", "-", &within];
            run(&dry_run, Some(&hasty))
                .stderr
                .contains(&asked)
                .then_some(())
        });
    }
}

#[test]
fn labels_are_selected_by_expressions_too() {
    let namespace = Namespace::new();
    let expressions = json!([
        {"key": "tier", "operator": "In", "values": ["front", "back"]},
        {"key": "team", "operator": "NotIn", "values": ["red"]},
        {"key": "app", "operator": "Exists"},
        {"key": "canary", "operator": "DoesNotExist"}
    ]);
    let spec = json!({
        "podSelector": {"matchExpressions": expressions},
        "securityGroups": {"groupIds": [GROUP]}
    });
    namespace.policies(&[("expressions", spec)]);

    for (name, labels, selected) in [
        ("all-hold", json!({"tier": "back", "app": ""}), true),
        (
            "other-team",
            json!({"tier": "front", "app": "web", "team": "blue"}),
            true,
        ),
        ("no-tier", json!({"app": "web"}), false),
        ("other-tier", json!({"tier": "middle", "app": "web"}), false),
        (
            "red-team",
            json!({"tier": "back", "app": "web", "team": "red"}),
            false,
        ),
        ("no-app", json!({"tier": "back"}), false),
        (
            "canary",
            json!({"tier": "back", "app": "web", "canary": "yes"}),
            false,
        ),
    ] {
        let created = namespace.apply(&pod(json!({"name": name, "labels": labels}), json!({})));
        assert_eq!(requests_interface(&created.ok().json()), selected, "{name}");
    }
}
