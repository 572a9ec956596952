//! A sandbox with replicas, and objects to create in it.

use std::time::{Duration, Instant};

use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::{Client, Resource, ResourceExt};
use serde_json::{Value, json};
use sgp::api::SecurityGroupPolicy;
use sgp::dev::control_plane::Binaries;
use sgp::dev::{Sandbox, SandboxOptions};

/// The ServiceAccount of all pods. One of our own, since a pod is refused until its account is
/// there, and the default one comes at its own time.
pub const ACCOUNT: &str = "app";

/// How long anything may take that happens by itself, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// Starts a sandbox with so many replicas.
///
/// The API server waits for them as long as it can: that a busy machine answers late is not
/// what these tests are about.
pub async fn start(replicas: usize, arguments: &[&str]) -> Sandbox {
    let arguments = arguments.iter().map(|argument| argument.to_string());
    let options = SandboxOptions {
        webhook_arguments: arguments.collect(),
        webhook_replicas: replicas,
        ..SandboxOptions::new(env!("CARGO_BIN_EXE_sgp"))
    };
    let binaries = Binaries::find_or_build().unwrap_or_else(|error| panic!("{error}"));
    let sandbox = Sandbox::start(&binaries, options, |_| ()).await;
    let sandbox = sandbox.unwrap_or_else(|error| panic!("{error:#}"));
    let client = sandbox.control_plane().client();
    wait_long::<MutatingWebhookConfiguration>(&client, "vpc-resource-mutating-webhook").await;
    wait_long::<ValidatingWebhookConfiguration>(&client, "vpc-resource-validating-webhook").await;
    sandbox
}

async fn wait_long<K: Resource<DynamicType = ()>>(client: &Client, name: &str) {
    const LONGEST: u32 = 30;
    let api = Api::<DynamicObject>::all_with(client.clone(), &ApiResource::erase::<K>(&()));
    let entries = api.get(name).await.unwrap().data["webhooks"]
        .as_array()
        .unwrap()
        .len();
    let operations = (0..entries).map(|entry| {
        let path = format!("/webhooks/{entry}/timeoutSeconds");
        json!({"op": "replace", "path": path, "value": LONGEST})
    });
    let patch = serde_json::from_value(operations.collect()).unwrap();
    let patch = Patch::<Value>::Json(patch);
    api.patch(name, &PatchParams::default(), &patch)
        .await
        .unwrap();
}

/// A client that gives every answer to its caller, also that the API server is in trouble.
pub fn plain_client(sandbox: &Sandbox) -> Client {
    let mut config = sandbox.control_plane().client_config().clone();
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

/// A new namespace with our ServiceAccount, whose labels are given.
pub async fn namespace(client: &Client, name: &str, is_enforced: bool, labels: Value) {
    let enforcement = match is_enforced {
        true => json!({"vpcresources.k8s.aws/enforce": "true"}),
        false => json!({}),
    };
    let namespace = json!({"metadata": {"name": name, "labels": enforcement}});
    create::<Namespace>(&Api::all(client.clone()), namespace).await;
    let account = json!({
        "metadata": {"name": ACCOUNT, "labels": labels},
        "automountServiceAccountToken": false
    });
    create::<ServiceAccount>(&Api::namespaced(client.clone(), name), account).await;
}

/// Creates a policy with this selection, and gives its resource version.
pub async fn policy(client: &Client, namespace: &str, name: &str, selection: Value) -> String {
    let mut spec = selection;
    spec["securityGroups"] = json!({"groupIds": ["sg-0123456789abcdef0"]});
    let policy = json!({"metadata": {"name": name}, "spec": spec});
    let api = Api::<SecurityGroupPolicy>::namespaced(client.clone(), namespace);
    create(&api, policy).await
}

async fn create<K>(api: &Api<K>, object: Value) -> String
where
    K: Clone + std::fmt::Debug + Resource + serde::Serialize + serde::de::DeserializeOwned,
{
    let object: K = serde_json::from_value(object).unwrap();
    let created = api.create(&PostParams::default(), &object).await.unwrap();
    created.resource_version().unwrap()
}

/// A pod with labels.
pub fn pod(name: &str, labels: Value) -> Pod {
    let pod = json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "serviceAccountName": ACCOUNT,
            "containers": [{"name": "web", "image": "web"}]
        }
    });
    serde_json::from_value(pod).unwrap()
}

/// Whether the pod's first container requests a branch interface, by the resource's name as
/// users know it.
pub fn requests_interface(pod: &Pod) -> bool {
    let container = &pod.spec.as_ref().unwrap().containers[0];
    let limits = container
        .resources
        .as_ref()
        .and_then(|it| it.limits.as_ref());
    limits.is_some_and(|limits| {
        let quantity = limits.get("vpc.amazonaws.com/pod-eni");
        quantity.is_some_and(|quantity| quantity.0 == "1")
    })
}

/// A number from the environment, or a default.
pub fn number(variable: &str, default: usize) -> usize {
    match std::env::var(variable) {
        Ok(text) => text.parse().expect(variable),
        Err(_) => default,
    }
}

/// Tries until `attempt` gives something.
pub async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(result) = attempt().await {
            return result;
        }
        assert!(begin.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
