//! Which namespaces fail closed: the label that picks the webhook entries.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use sgp::api::SecurityGroupPolicy;
use sgp::api::names::{ENFORCE_LABEL, FIELD_MANAGER};

use crate::shared;
use crate::stage::{Scene, Setting, Stage, object, until};

/// The value of the label; `None` where it is not set.
fn label(namespace: &Namespace) -> Option<&str> {
    namespace.labels().get(ENFORCE_LABEL).map(String::as_str)
}

/// Who has set the label, in order.
fn label_managers(namespace: &Namespace) -> Vec<&str> {
    let has_label = |fields: &Value| {
        let labels = &fields["f:metadata"]["f:labels"];
        labels.get(format!("f:{ENFORCE_LABEL}")).is_some()
    };
    let entries = namespace.managed_fields().iter();
    let mut managers: Vec<_> = entries
        .filter(|entry| entry.fields_v1.as_ref().is_some_and(|it| has_label(&it.0)))
        .filter_map(|entry| entry.manager.as_deref())
        .collect();
    managers.sort_unstable();
    managers
}

/// A namespace of the API server, and what tests do with it.
struct Watched {
    api: Api<Namespace>,
    name: String,
}

impl Watched {
    fn new(client: Client, name: &str) -> Self {
        Self {
            api: Api::all(client),
            name: name.to_owned(),
        }
    }

    fn of(scene: &Scene<'_>) -> Self {
        Self::new(scene.client.clone(), &scene.name)
    }

    async fn get(&self) -> Namespace {
        self.api.get(&self.name).await.unwrap()
    }

    async fn until_label(&self, value: Option<&str>) -> Namespace {
        let is_wanted =
            |namespace: Option<&Namespace>| namespace.is_some_and(|it| label(it) == value);
        until(&self.api, &self.name, is_wanted).await.unwrap()
    }

    async fn until_managers(&self, managers: &[&str]) -> Namespace {
        let is_wanted = |namespace: Option<&Namespace>| {
            namespace.is_some_and(|it| label_managers(it) == managers)
        };
        until(&self.api, &self.name, is_wanted).await.unwrap()
    }

    /// Sets the label, or removes it with `null`, as `kubectl label` does.
    async fn set_by_hand(&self, value: Value) -> Namespace {
        let patch = Patch::Merge(json!({"metadata": {"labels": {ENFORCE_LABEL: value}}}));
        let parameters = PatchParams {
            field_manager: Some("operator".to_owned()),
            ..PatchParams::default()
        };
        let patched = self.api.patch(&self.name, &parameters, &patch).await;
        patched.unwrap()
    }
}

/// Lets everything that was done before in this stage be seen by the allocator: what a
/// policy that is made now leads to has been done.
async fn until_caught_up(stage: &Stage) {
    let scene = stage.scene().await;
    scene.policy("any", &[&stage.groups().green]).await;
    Watched::of(&scene).until_label(Some("true")).await;
}

#[tokio::test]
async fn namespace_is_labelled_with_its_first_policy_and_unlabelled_with_its_last() {
    let stage = shared().await;
    let green = &stage.groups().green;
    let scene = stage.scene().await;
    let namespace = Watched::of(&scene);
    until_caught_up(stage).await;
    assert_eq!(label(&namespace.get().await), None, "it has no policy");

    let begin = Instant::now();
    scene.policy("first", &[green]).await;
    let labelled = namespace.until_label(Some("true")).await;
    println!("labelled {:?} after its policy was there", begin.elapsed());
    assert_eq!(label_managers(&labelled), [FIELD_MANAGER]);
    let uid = labelled.uid().unwrap();
    let event = stage.until_event(&uid, "NamespaceEnforced").await;
    assert_eq!(event.metadata.namespace.as_deref(), Some(&*scene.name));

    scene.policy("second", &[green]).await;
    let parameters = DeleteParams::default();
    scene.policies.delete("first", &parameters).await.unwrap();
    until_caught_up(stage).await;
    assert_eq!(label(&namespace.get().await), Some("true"));

    scene.policies.delete("second", &parameters).await.unwrap();
    namespace.until_label(None).await;
    stage.until_event(&uid, "NamespaceUnenforced").await;
}

#[tokio::test]
async fn metric_says_how_many_namespaces_fail_closed() {
    let stage = Stage::start(Setting::default()).await;
    stage.until_metric("sgp_enforced_namespaces 0").await;
    let (one, two) = (stage.scene().await, stage.scene().await);
    for scene in [&one, &two] {
        scene.policy("any", &[&stage.groups().green]).await;
    }
    stage.until_metric("sgp_enforced_namespaces 2").await;
    let parameters = DeleteParams::default();
    one.policies.delete("any", &parameters).await.unwrap();
    stage.until_metric("sgp_enforced_namespaces 1").await;
}

#[tokio::test]
async fn label_that_is_removed_or_changed_by_hand_is_set_again() {
    let stage = shared().await;
    let scene = stage.scene().await;
    let namespace = Watched::of(&scene);
    scene.policy("any", &[&stage.groups().green]).await;
    namespace.until_label(Some("true")).await;

    for by_hand in [json!(null), json!("false")] {
        let changed = namespace.set_by_hand(by_hand.clone()).await;
        assert_eq!(json!(label(&changed)), by_hand);
        let restored = namespace.until_label(Some("true")).await;
        assert!(label_managers(&restored).contains(&FIELD_MANAGER));
    }
}

#[tokio::test]
async fn label_that_an_operator_has_set_stays_without_policies() {
    let stage = shared().await;
    let scene = stage.scene().await;
    let namespace = Watched::of(&scene);
    namespace.set_by_hand(json!("true")).await;
    until_caught_up(stage).await;
    assert_eq!(label_managers(&namespace.get().await), ["operator"]);

    scene.policy("any", &[&stage.groups().green]).await;
    namespace.until_managers(&["operator", FIELD_MANAGER]).await;
    let parameters = DeleteParams::default();
    scene.policies.delete("any", &parameters).await.unwrap();
    let left = namespace.until_managers(&["operator"]).await;
    assert_eq!(label(&left), Some("true"));
}

#[tokio::test]
async fn namespaces_of_the_cluster_and_of_the_webhook_are_never_labelled() {
    let stage = shared().await;
    let names = ["kube-system", "sgp-system"];
    let policy: SecurityGroupPolicy = object(json!({
        "metadata": {"name": "never"},
        "spec": {
            "podSelector": {"matchLabels": {"nobody": "has-this"}},
            "securityGroups": {"groupIds": [&stage.groups().green]}
        }
    }));
    for name in names {
        let policies = Api::<SecurityGroupPolicy>::namespaced(stage.client(), name);
        let parameters = PostParams::default();
        policies.create(&parameters, &policy).await.unwrap();
    }
    until_caught_up(stage).await;
    for name in names {
        let namespace = Watched::new(stage.client(), name);
        assert_eq!(label(&namespace.get().await), None, "{name}");
        let policies = Api::<SecurityGroupPolicy>::namespaced(stage.client(), name);
        let parameters = DeleteParams::default();
        policies.delete("never", &parameters).await.unwrap();
    }
}

#[tokio::test]
async fn namespace_that_is_on_its_way_out_is_left_alone() {
    let stage = shared().await;
    let scene = stage.scene().await;
    let namespace = Watched::of(&scene);
    scene.policy("any", &[&stage.groups().green]).await;
    namespace.until_label(Some("true")).await;
    let config_maps = Api::<ConfigMap>::namespaced(scene.client.clone(), &scene.name);
    let holding: ConfigMap = object(json!({
        "metadata": {"name": "holds", "finalizers": ["example.com/held"]}
    }));
    let parameters = PostParams::default();
    config_maps.create(&parameters, &holding).await.unwrap();

    let parameters = DeleteParams::default();
    namespace
        .api
        .delete(&namespace.name, &parameters)
        .await
        .unwrap();
    let is_gone = |policy: Option<&SecurityGroupPolicy>| policy.is_none();
    until(&scene.policies, "any", is_gone).await;
    until_caught_up(stage).await;
    let left = namespace.get().await;
    assert_eq!(label_managers(&left), [FIELD_MANAGER], "{left:#?}");

    let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    let parameters = PatchParams::default();
    let released = config_maps.patch("holds", &parameters, &patch).await;
    released.unwrap();
    let is_gone = |namespace: Option<&Namespace>| namespace.is_none();
    until(&namespace.api, &namespace.name, is_gone).await;
}

#[tokio::test]
async fn what_changed_while_nobody_led_is_put_right_by_the_next_leader() {
    let mut stage = Stage::start(Setting {
        nodes: Vec::new(),
        ..Setting::default()
    })
    .await;
    let green = stage.groups().green.clone();
    let (left, joined, opened) = (
        stage.scene().await.name,
        stage.scene().await.name,
        stage.scene().await.name,
    );
    let client = stage.client();
    let policies = |name: &str| Api::<SecurityGroupPolicy>::namespaced(client.clone(), name);
    let policy: SecurityGroupPolicy = object(json!({
        "metadata": {"name": "any"},
        "spec": {"podSelector": {}, "securityGroups": {"groupIds": [green]}}
    }));
    let create = async |name: &str| {
        let parameters = PostParams::default();
        policies(name).create(&parameters, &policy).await.unwrap();
    };
    let namespace = |name: &str| Watched::new(client.clone(), name);
    for name in [&left, &opened] {
        create(name).await;
        namespace(name).until_label(Some("true")).await;
    }

    let process = stage.sandbox_mut().allocator().unwrap().process();
    process.kill().unwrap();
    let parameters = DeleteParams::default();
    policies(&left).delete("any", &parameters).await.unwrap();
    create(&joined).await;
    namespace(&opened).set_by_hand(json!(null)).await;
    process.restart().unwrap();
    namespace(&left).until_label(None).await;
    namespace(&joined).until_label(Some("true")).await;
    namespace(&opened).until_label(Some("true")).await;

    // And one that takes over while it runs.
    let other = stage.sandbox().spawn_allocator("other", &[]);
    let mut other = other.unwrap();
    other.wait_until_it_listens().await.unwrap();
    let process = stage.sandbox_mut().allocator().unwrap().process();
    process.stop(Duration::from_secs(5)).unwrap();
    create(&left).await;
    policies(&joined).delete("any", &parameters).await.unwrap();
    namespace(&left).until_label(Some("true")).await;
    namespace(&joined).until_label(None).await;
}

/// Server-side apply makes what is not there, so a namespace that goes at the wrong moment
/// must not come back by its label.
#[tokio::test]
async fn label_for_a_namespace_that_is_gone_makes_none() {
    let stage = shared().await;
    let api = Api::<Namespace>::all(stage.client());
    let wanted = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": "gone",
            "uid": "8a1f1a5e-0000-4000-8000-000000000000",
            "labels": {ENFORCE_LABEL: "true"}
        }
    });
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let applied = api.patch("gone", &parameters, &Patch::Apply(&wanted)).await;
    let Err(kube::Error::Api(status)) = applied else {
        panic!("{applied:?}")
    };
    assert_eq!(status.code, 409, "{status:?}");
    assert!(api.get_opt("gone").await.unwrap().is_none());
}

/// What the allocator beside EKS's controller does for a namespace.
pub async fn assert_labels(stage: &Stage) {
    let scene = stage.scene().await;
    let namespace = Watched::of(&scene);
    scene.policy("any", &[&stage.groups().green]).await;
    namespace.until_label(Some("true")).await;
    let parameters = DeleteParams::default();
    scene.policies.delete("any", &parameters).await.unwrap();
    namespace.until_label(None).await;
}
