//! No webhook answers: where policies are no pod is created, everywhere else pods start.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Event, Namespace, Pod};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use sgp::api::names::{ENFORCE_LABEL, POD_ENI};
use tokio::task::JoinSet;

use crate::stage::{Scene, Setting, Stage, eventually, object, phase, pod, until};

/// How many webhooks there are while pods are rolled out.
const REPLICAS: usize = 3;
/// How many pods are rolled out.
const PODS: usize = 500;
/// As many namespaces have a policy, and as many have none.
const NAMESPACES: usize = 5;
/// The outage begins when so many pods are there.
const BEFORE_THE_OUTAGE: usize = 100;
/// How long controllers may take after the outage.
const RECOVERY: Duration = Duration::from_secs(400);

documented!("allocator.md", webhook_away => refuses_pods_exactly_where_policies_are);

fn kill_webhooks(stage: &mut Stage) {
    for webhook in stage.sandbox_mut().webhooks() {
        webhook.process().kill().unwrap();
    }
}

fn restart_webhooks(stage: &mut Stage) {
    for webhook in stage.sandbox_mut().webhooks() {
        webhook.process().restart().unwrap();
    }
}

/// Whether a pod requests a branch interface, as the webhook has it: in its first container.
fn requests_interface(pod: &Pod) -> bool {
    let container = pod.spec.as_ref().and_then(|spec| spec.containers.first());
    let resources = container.and_then(|container| container.resources.as_ref());
    let limits = resources.and_then(|resources| resources.limits.as_ref());
    limits.is_some_and(|limits| limits.contains_key(POD_ENI))
}

pub async fn until_enforced(client: &Client, namespace: &str) {
    let namespaces = Api::<Namespace>::all(client.clone());
    let is_labelled = |namespace: Option<&Namespace>| {
        namespace.is_some_and(|it| it.labels().contains_key(ENFORCE_LABEL))
    };
    until(&namespaces, namespace, is_labelled).await;
}

async fn label_by_hand(client: &Client, namespace: &str) {
    let namespaces = Api::<Namespace>::all(client.clone());
    let patch = Patch::Merge(json!({"metadata": {"labels": {ENFORCE_LABEL: "true"}}}));
    let parameters = PatchParams::default();
    let patched = namespaces.patch(namespace, &parameters, &patch).await;
    patched.unwrap();
}

fn deployment(name: &str, replicas: usize) -> Deployment {
    object(json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "app", "image": "app"}]}
            }
        }
    }))
}

async fn deploy(client: &Client, namespace: &str, name: &str, replicas: usize) {
    let deployments = Api::<Deployment>::namespaced(client.clone(), namespace);
    let parameters = PostParams::default();
    let deployment = deployment(name, replicas);
    deployments.create(&parameters, &deployment).await.unwrap();
}

/// Waits until a controller was refused a pod of a namespace, and gives what it was told.
async fn until_refused(client: &Client, namespace: &str) -> String {
    let events = Api::<Event>::namespaced(client.clone(), namespace);
    let parameters = ListParams::default().fields("reason=FailedCreate");
    let what = format!("a pod of {namespace} to be refused");
    eventually(&what, async || {
        let events = events.list(&parameters).await.unwrap().items;
        events.into_iter().find_map(|event| event.message)
    })
    .await
}

/// What `kubectl create` prints on standard error, and whether it was successful.
fn create(stage: &Stage, namespace: &str, object: &Value) -> (bool, String) {
    create_with(stage, namespace, object, &[])
}

/// The same with further arguments.
fn create_with(
    stage: &Stage,
    namespace: &str,
    object: &Value,
    arguments: &[&str],
) -> (bool, String) {
    let mut kubectl = stage.sandbox().control_plane().kubectl();
    kubectl.args(["--namespace", namespace, "create", "-f", "-"]);
    kubectl.args(arguments);
    kubectl.stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = kubectl.stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(object.to_string().as_bytes()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    (output.status.success(), text)
}

#[tokio::main]
async fn refuses_pods_exactly_where_policies_are(texts: &[String]) {
    let mut stage = Stage::start(Setting::default()).await;
    let client = stage.client();
    let green = stage.groups().green.clone();
    let (enforced, open) = (stage.scene().await, stage.scene().await);
    enforced.policy("any", &[&green]).await;
    let (enforced, open) = (enforced.name, open.name);
    until_enforced(&client, &enforced).await;
    // Whatever their label says.
    let system = ["kube-system", "sgp-system"];
    for namespace in system {
        label_by_hand(&client, namespace).await;
    }

    kill_webhooks(&mut stage);
    let mut lone = pod("lone", json!({}));
    (lone["apiVersion"], lone["kind"]) = (json!("v1"), json!("Pod"));
    // Our own namespace takes no others.
    lone["spec"]["securityContext"] =
        json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}});
    lone["spec"]["containers"][0]["securityContext"] =
        json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    // The API server learns of the label by a watch of its own.
    eventually("the label to count", async || {
        let dry_run = ["--dry-run=server"];
        let (is_created, _) = create_with(&stage, &enforced, &lone, &dry_run);
        (!is_created).then_some(())
    })
    .await;
    let (is_created, told) = create(&stage, &enforced, &lone);
    assert!(!is_created);
    let [text] = texts else { panic!("{texts:?}") };
    assert!(told.contains(text.as_str()), "{text}\n{told}");
    for namespace in [&*open].into_iter().chain(system) {
        let (is_created, told) = create(&stage, namespace, &lone);
        assert!(is_created, "{namespace}: {told}");
        assert!(!told.contains("Warning"), "{told}");
        let pods = Api::<Pod>::namespaced(client.clone(), namespace);
        let runs = |pod: Option<&Pod>| pod.is_some_and(|pod| phase(pod) == "Running");
        let pod = until(&pods, "lone", runs).await.unwrap();
        assert!(!requests_interface(&pod));
    }
    // One that selects nothing could be made by mistake now, and closes no namespace.
    let idle = stage.scene().await;
    idle.policy_with("idle", json!({}), &[&green]).await;
    let valid = stage.scene().await;
    valid.policy("any", &[&green]).await;
    until_enforced(&client, &valid.name).await;
    let namespaces = Api::<Namespace>::all(client.clone());
    let idle = namespaces.get(&idle.name).await.unwrap();
    assert!(!idle.labels().contains_key(ENFORCE_LABEL), "{idle:#?}");

    deploy(&client, &enforced, "web", 2).await;
    let told = until_refused(&client, &enforced).await;
    assert!(told.contains(text.as_str()), "{told}");
    restart_webhooks(&mut stage);
    let pods = Api::<Pod>::namespaced(client.clone(), &enforced);
    let running = eventually("the pods of the deployment to run", async || {
        let pods = pods.list(&ListParams::default()).await.unwrap().items;
        let mut running = pods.iter().filter(|pod| phase(pod) == "Running");
        (running.clone().count() == 2).then(|| running.all(requests_interface))
    });
    assert!(running.await);
}

/// What a watch has shown of all pods, from before the first was there.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<BTreeMap<String, SeenPod>>>);

#[derive(Clone, Debug)]
struct SeenPod {
    namespace: String,
    app: String,
    requests_interface: bool,
}

impl Seen {
    /// Watches in `tasks`.
    fn start(client: Client, tasks: &mut JoinSet<()>) -> Self {
        let seen = Self::default();
        let shown = seen.clone();
        tasks.spawn(async move {
            let events = watcher(Api::<Pod>::all(client), watcher::Config::default());
            let mut pods = events.default_backoff().applied_objects().boxed();
            while let Some(pod) = pods.next().await {
                // A watch that fails begins anew with a list, and nothing is deleted here.
                let Ok(pod) = pod else { continue };
                let mut seen = shown.0.lock().unwrap_or_else(PoisonError::into_inner);
                let requests_interface = requests_interface(&pod);
                let entry = seen.entry(pod.uid().unwrap()).or_insert_with(|| SeenPod {
                    namespace: pod.namespace().unwrap(),
                    app: pod.labels().get("app").cloned().unwrap_or_default(),
                    requests_interface,
                });
                entry.requests_interface &= requests_interface;
            }
        });
        seen
    }

    /// The pods of these namespaces.
    fn of(&self, namespaces: &BTreeSet<String>) -> Vec<SeenPod> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pods = seen
            .values()
            .filter(|it| namespaces.contains(&it.namespace));
        pods.cloned().collect()
    }
}

/// Does what an operator can do who does not want to wait for the pauses of controllers.
async fn touch_replica_sets(client: &Client, namespace: &str) {
    let api = Api::<ReplicaSet>::namespaced(client.clone(), namespace);
    for set in api.list(&ListParams::default()).await.unwrap() {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {"touched": "true"}}}));
        let parameters = PatchParams::default();
        let name = set.name_any();
        let patched = api.patch_metadata(&name, &parameters, &patch).await;
        patched.unwrap();
    }
}

/// All replicas are killed and restarted. Half of the Deployments are made before the outage, the
/// others in it. The pods of the other namespaces must all come while no webhook answers: how
/// long that is follows from them.
#[tokio::test]
async fn rollout_goes_through_an_outage_of_all_webhooks_and_no_pod_starts_without_its_groups() {
    let setting = Setting {
        webhook_replicas: REPLICAS,
        ..Setting::with_long_lease()
    };
    let mut stage = Stage::start(setting).await;
    assert_eq!(stage.sandbox_mut().webhooks().len(), REPLICAS);
    let client = stage.client();
    let green = stage.groups().green.clone();
    let (mut enforced, mut open) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..NAMESPACES {
        let scene: Scene<'_> = stage.scene().await;
        scene.policy("any", &[&green]).await;
        enforced.insert(scene.name);
        open.insert(stage.scene().await.name);
    }
    for namespace in &enforced {
        until_enforced(&client, namespace).await;
    }
    let mut tasks = JoinSet::new();
    let seen = Seen::start(client.clone(), &mut tasks);

    let replicas = PODS / (4 * NAMESPACES);
    let begin = Instant::now();
    for namespace in enforced.iter().chain(&open) {
        deploy(&client, namespace, "early", replicas).await;
    }
    eventually("the rollout to be under way", async || {
        let number = seen.of(&enforced).len() + seen.of(&open).len();
        (number >= BEFORE_THE_OUTAGE).then_some(())
    })
    .await;
    kill_webhooks(&mut stage);
    let killed = Instant::now();
    for namespace in enforced.iter().chain(&open) {
        deploy(&client, namespace, "late", replicas).await;
    }
    for namespace in &enforced {
        until_refused(&client, namespace).await;
    }
    eventually("all pods elsewhere to be there", async || {
        (seen.of(&open).len() >= PODS / 2).then_some(())
    })
    .await;
    let before = seen.of(&enforced);
    let is_late = |pod: &&SeenPod| pod.app == "late";
    assert_eq!(before.iter().filter(is_late).count(), 0);
    for webhook in stage.sandbox_mut().webhooks() {
        assert!(!webhook.is_ready(), "all were away until now");
    }
    let restarted = Instant::now();
    restart_webhooks(&mut stage);
    // A controller's pauses grow to as long as it was refused, and by far longer where it was
    // called up by its pods meanwhile: those that had some are not waited for.
    until_there(&seen, &enforced, PODS / 4, is_late).await;
    let by_themselves = Instant::now();
    for namespace in &enforced {
        touch_replica_sets(&client, namespace).await;
    }
    until_there(&seen, &enforced, PODS / 2, |_| true).await;

    let without: Vec<_> = seen.of(&enforced);
    let without: Vec<_> = without.iter().filter(|it| !it.requests_interface).collect();
    assert_eq!(without.len(), 0, "{without:#?}");
    println!(
        "no webhook for {:?} from {:?} on; {} pods where policies are before its end, those \
         of later deployments {:?} after it",
        restarted.duration_since(killed),
        killed.duration_since(begin),
        before.len(),
        by_themselves.duration_since(restarted),
    );
}

async fn until_there(
    seen: &Seen,
    namespaces: &BTreeSet<String>,
    number: usize,
    concerned: impl Fn(&&SeenPod) -> bool,
) {
    let begin = Instant::now();
    loop {
        let pods = seen.of(namespaces);
        let there = pods.iter().filter(&concerned).count();
        if there >= number {
            return;
        }
        assert!(begin.elapsed() < RECOVERY, "{there} of {number} pods");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
