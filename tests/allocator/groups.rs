//! Which security groups a pod's branch interface has, and how it follows changes.

use std::process::Stdio;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::shared;
use crate::stage::{Scene, Setting, Stage, eventually, object, phase, pod, requesting_interface};

/// "Within seconds".
const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn changed_policy_reaches_running_pods_within_seconds() {
    let stage = shared().await;
    let node = stage.add_node("m5.large").await;
    let (green, database) = (&stage.groups().green, &stage.groups().database);
    let scene = stage.scene().await;
    scene.policy("web", &[green]).await;
    let running = scene.run("web", &node).await;
    let other = stage.scene().await;
    other.policy("web", &[green]).await;
    let untouched = other.run("web", &node).await;

    let stopwatch = stage.stopwatch();
    scene.set_groups("web", &[database, green]).await;

    scene.until_groups(&running, &[database, green]).await;
    stopwatch.assert_within(SOON);
    let event = stage
        .until_event(&running.uid(), "SecurityGroupsChanged")
        .await;
    assert_eq!(event.type_.as_deref(), Some("Normal"));
    let note = event.note.unwrap();
    let both = format!("{database}, {green}");
    assert!(
        note.contains(&running.interface.id) && note.contains(&both),
        "{note}"
    );
    let same = other.until_runs("web").await;
    assert_eq!(same.interface, untouched.interface);
}

#[tokio::test]
async fn groups_follow_the_labels_of_the_pod_and_of_its_service_account() {
    let stage = shared().await;
    let node = stage.add_node("m5.large").await;
    let (green, database) = (&stage.groups().green, &stage.groups().database);
    let scene = stage.scene().await;
    let role = |role: &str| json!({"matchLabels": {"role": role}});
    let of_web = json!({"podSelector": role("web")});
    scene.policy_with("of-pods", of_web, &[green]).await;
    let of_reader = json!({"serviceAccountSelector": role("reader")});
    scene
        .policy_with("of-accounts", of_reader, &[database])
        .await;
    let labels = |role: &str| json!({"labels": {"role": role}});
    scene.pod_with("web", &node, labels("web"), json!({})).await;
    let running = scene.until_runs("web").await;
    assert_eq!(running.interface.groups, [green.as_str()]);

    let stopwatch = stage.stopwatch();
    label_default_account(&scene, json!({"role": "reader"})).await;
    scene.until_groups(&running, &[green, database]).await;
    stopwatch.assert_within(SOON);
    let stopwatch = stage.stopwatch();
    scene.patch_metadata("web", labels("job")).await;
    scene.until_groups(&running, &[database]).await;
    stopwatch.assert_within(SOON);
    scene.patch_metadata("web", labels("web")).await;
    label_default_account(&scene, json!({"role": null})).await;
    scene.until_groups(&running, &[green]).await;

    let same = scene.until_runs("web").await;
    assert_eq!(same.annotation, running.annotation);
}

async fn label_default_account(scene: &Scene<'_>, labels: Value) {
    let accounts: Api<ServiceAccount> = Api::namespaced(scene.client.clone(), &scene.name);
    let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
    let parameters = PatchParams::default();
    accounts
        .patch("default", &parameters, &patch)
        .await
        .unwrap();
}

#[tokio::test]
async fn pod_whose_last_policy_goes_gets_its_node_s_groups_and_is_warned() {
    let stage = shared().await;
    let node = stage.add_node("m5.large").await;
    let groups = stage.groups();
    let scene = stage.scene().await;
    scene.policy("green", &[&groups.green]).await;
    scene.policy("database", &[&groups.database]).await;
    let running = scene.run("web", &node).await;

    let parameters = DeleteParams::default();
    scene.policies.delete("green", &parameters).await.unwrap();
    scene.until_groups(&running, &[&groups.database]).await;
    let stopwatch = stage.stopwatch();
    scene
        .policies
        .delete("database", &parameters)
        .await
        .unwrap();
    scene.until_groups(&running, &[&groups.nodes]).await;

    stopwatch.assert_within(SOON);
    let event = stage
        .until_event_that(&running.uid(), "SecurityGroupsChanged", |note| {
            note.contains(&groups.nodes)
        })
        .await;
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    let note = event.note.unwrap();
    assert!(
        note.contains("no SecurityGroupPolicy selects the pod"),
        "{note}"
    );
}

#[tokio::test]
async fn policies_are_united_by_name_then_by_list() {
    let stage = shared().await;
    let node = stage.add_node("m5.large").await;
    let groups = stage.groups();
    let scene = stage.scene().await;
    // Created against the order of their names.
    let second = [groups.nodes.as_str(), &groups.green];
    scene.policy("b", &second).await;
    let first = [groups.green.as_str(), &groups.database];
    scene.policy("a", &first).await;

    let running = scene.run("web", &node).await;

    let united = [&groups.green, &groups.database, &groups.nodes];
    let united: Vec<_> = united.map(String::as_str).into();
    scene.until_groups(&running, &united).await;
    let event = stage
        .until_event(&running.uid(), "SecurityGroupRequested")
        .await;
    let note = event.note.unwrap();
    assert!(note.ends_with(&united.join(", ")), "{note}");
}

#[tokio::test]
async fn pod_that_requests_an_interface_by_hand_gets_its_node_s_groups_and_is_warned() {
    let stage = shared().await;
    let node = stage.add_node("m5.large").await;
    let scene = stage.scene().await;

    let by_hand = requesting_interface();
    scene.pod_with("by-hand", &node, json!({}), by_hand).await;
    let running = scene.until_runs("by-hand").await;

    assert_eq!(running.interface.groups, [stage.groups().nodes.as_str()]);
    let event = stage.until_event(&running.uid(), "ResourceAllocated").await;
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    let note = event.note.unwrap();
    assert!(
        note.contains("no SecurityGroupPolicy selects the pod"),
        "{note}"
    );

    // A policy that comes later is followed as by any other pod.
    scene.policy("late", &[&stage.groups().green]).await;
    scene.until_groups(&running, &[&stage.groups().green]).await;
}

#[tokio::test]
async fn missing_group_is_named_with_its_policy_and_pods_run_once_it_is_there() {
    let stage = Stage::start(Setting::default()).await;
    let scene = stage.scene().await;
    let missing = stage.create_group("late").await;
    let with_group = stage.simulator().save().unwrap();
    let call = stage.sandbox().cloud().client().delete_security_group();
    call.group_id(&missing).send().await.unwrap();
    scene.policy("web", &[&missing]).await;

    let created = scene.pod("waits", stage.node()).await;
    let uid = created.metadata.uid.unwrap();
    let event = stage.until_event(&uid, "BranchAllocationFailed").await;
    let note = event.note.unwrap();
    for part in [
        format!("The securityGroup ID '{missing}' does not exist"),
        "InvalidSecurityGroupID.NotFound".to_owned(),
        "SecurityGroupPolicy \"web\" names it".to_owned(),
    ] {
        assert!(note.contains(&part), "{note}");
    }
    let waits = scene.pods.get("waits").await.unwrap();
    assert_eq!(phase(&waits), "Pending");
    // The webhook gives EC2 a tenth of a second; on a busy machine it may let one go by.
    let warning = eventually("a warning at admission", async || {
        let said = dry_run(&scene, "warned");
        said.contains(&missing).then_some(said)
    })
    .await;
    assert!(warning.contains("\"web\" does not exist"), "{warning}");

    // EC2 chooses ids, so that the group comes back by the state in which it was.
    stage.simulator().load(&with_group).unwrap();
    let running = scene.until_runs("waits").await;
    assert_eq!(running.interface.groups, [missing]);
    assert_eq!(stage.assert_consistent().await, []);
}

/// What kubectl says of a pod that would be created.
fn dry_run(scene: &Scene<'_>, name: &str) -> String {
    let mut manifest = pod(name, json!({}));
    manifest["apiVersion"] = json!("v1");
    manifest["kind"] = json!("Pod");
    let mut kubectl = scene.stage.sandbox().control_plane().kubectl();
    let mut child = kubectl
        .args(["create", "--dry-run=server", "-n", &scene.name, "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    serde_json::to_writer(child.stdin.take().unwrap(), &manifest).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap()
}

#[tokio::test]
async fn corrected_policy_frees_pods_that_wait_for_a_group_that_never_was() {
    let stage = shared().await;
    let node = stage.add_node("m5.large").await;
    let scene = stage.scene().await;
    scene.policy("web", &["sg-0123456789abcdef0"]).await;
    let created = scene.pod("waits", &node).await;
    let uid = created.metadata.uid.unwrap();
    stage.until_event(&uid, "BranchAllocationFailed").await;
    // A second mistake is told as well as the first.
    scene.set_groups("web", &["sg-fedcba98765432100"]).await;
    let names_it = |note: &str| note.contains("sg-fedcba98765432100");
    stage
        .until_event_that(&uid, "BranchAllocationFailed", names_it)
        .await;

    scene.set_groups("web", &[&stage.groups().green]).await;

    let running = scene.until_runs("waits").await;
    assert_eq!(running.interface.groups, [stage.groups().green.as_str()]);
}

#[tokio::test]
async fn more_groups_than_an_interface_takes_are_told_and_fewer_let_the_pod_run() {
    let stage = shared().await;
    let node = stage.add_node("m5.large").await;
    let scene = stage.scene().await;
    let mut groups = Vec::new();
    for number in 0..6 {
        let name = format!("{}-{number}", scene.name);
        groups.push(stage.create_group(&name).await);
    }
    let groups: Vec<_> = groups.iter().map(String::as_str).collect();
    // One policy of six is refused.
    scene.policy("a", &groups[..3]).await;
    scene.policy("b", &groups[3..]).await;

    let created = scene.pod("web", &node).await;
    let uid = created.metadata.uid.unwrap();
    let event = stage.until_event(&uid, "BranchAllocationFailed").await;
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    let note = event.note.unwrap();
    assert!(
        note.contains("SecurityGroupsPerInterfaceLimitExceeded"),
        "{note}"
    );
    assert!(note.contains("name fewer groups"), "{note}");
    scene.set_groups("b", &groups[3..5]).await;

    let running = scene.until_runs("web").await;
    scene.until_groups(&running, &groups[..5]).await;
}

#[tokio::test]
async fn pod_created_before_its_policy_gets_the_policy_s_groups_with_its_interface() {
    let stage = shared().await;
    let node = stage.add_node("m5.large").await;
    let scene = stage.scene().await;
    // The webhook has seen no policy that selects it.
    let mut spec = requesting_interface();
    spec["schedulingGates"] = json!([{"name": "example.com/gate"}]);
    spec["nodeSelector"] = json!({"kubernetes.io/hostname": node.name});
    let gated: Pod = object(pod("gated", spec));
    let parameters = PostParams::default();
    scene.pods.create(&parameters, &gated).await.unwrap();
    scene.policy("green", &[&stage.groups().green]).await;
    let open = Patch::Merge(json!({"spec": {"schedulingGates": null}}));
    let parameters = PatchParams::default();
    scene.pods.patch("gated", &parameters, &open).await.unwrap();

    let running = scene.until_runs("gated").await;
    assert_eq!(running.interface.groups, [stage.groups().green.as_str()]);
    let calls = stage.calls_about(&running.interface);
    assert!(
        !calls.contains(&"ModifyNetworkInterfaceAttribute".to_owned()),
        "{calls:?}"
    );
}
