//! The manifests are what the program prints and what a real API server takes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kube::Api;
use kube::api::{DynamicObject, PostParams};
use kube::core::ApiResource;
use serde_json::{Value, json};
use sgp::api::SecurityGroupPolicy;
use sgp::dev::control_plane::{Binaries, ControlPlane, Options};

#[test]
fn definitions_are_what_the_program_prints() {
    for (resource, path) in [
        (
            "securitygrouppolicies",
            "manifests/crds/securitygrouppolicies.yaml",
        ),
        ("cninodes", "manifests/crds/cninodes.yaml"),
        ("eniconfigs", "manifests/sandbox/eniconfigs.yaml"),
    ] {
        let printed =
            succeeded(Command::new(env!("CARGO_BIN_EXE_sgp")).args(["crds", resource])).output;
        let committed = fs::read_to_string(in_repository(path)).unwrap();
        assert!(
            printed == committed,
            "{path} is out of date; write it anew with\n  cargo run -- crds {resource} > {path}"
        );
    }
}

#[tokio::test]
async fn api_server_takes_every_manifest_and_a_second_time_changes_nothing() {
    let control_plane = start().await;
    let manifests = in_repository("manifests/base");
    let manifests = manifests.to_str().unwrap();
    let sandbox = in_repository("manifests/sandbox");
    let sandbox = sandbox.to_str().unwrap();
    let sources = [["-k", manifests], ["-f", sandbox]];

    let applied: BTreeSet<String> = sources
        .iter()
        .flat_map(|source| apply(&control_plane, source))
        .collect();
    assert_eq!(applied, documents(), "each document, and nothing else");

    let before = sources.map(|source| generations(&control_plane, &source));
    for source in &sources {
        apply(&control_plane, source);
    }
    let after = sources.map(|source| generations(&control_plane, &source));
    assert_eq!(before, after);

    // The variant of certs/README.md, which differs in the Deployment only.
    let with_files = in_repository("certs");
    let with_files = ["-k", with_files.to_str().unwrap()];
    let applied: BTreeSet<String> = apply(&control_plane, &with_files).into_iter().collect();
    assert!(applied.is_subset(&documents()), "{applied:?}");
    let before = &before[0];
    let after = generations(&control_plane, &with_files);
    let changed = before
        .keys()
        .filter(|object| before[*object] != after[*object]);
    assert_eq!(changed.collect::<Vec<_>>(), ["Deployment/sgp"]);
}

#[test]
fn webhook_and_allocator_share_a_socket_and_answer_their_probes() {
    let manifest = fs::read_to_string(in_repository("manifests/base/deployment.yaml")).unwrap();
    let deployment: Value = serde_saphyr::from_str(&manifest).unwrap();
    let spec = &deployment["spec"]["template"]["spec"];
    let [webhook, allocator] = &spec["containers"].as_array().unwrap()[..] else {
        panic!("two containers");
    };

    let socket = flag(webhook, "allocator-socket");
    assert_eq!(socket, flag(allocator, "socket"));
    let folder = Path::new(&socket).parent().unwrap();
    let volume = |container: &Value| {
        let mounts = container["volumeMounts"].as_array().unwrap().iter();
        let mut here =
            mounts.filter(|mount| Path::new(mount["mountPath"].as_str().unwrap()) == folder);
        text(&here.next().unwrap()["name"])
    };
    assert_eq!(volume(webhook), volume(allocator));
    let mut volumes = spec["volumes"].as_array().unwrap().iter();
    let shared = volumes.find(|it| it["name"] == volume(webhook).as_str());
    assert!(shared.unwrap()["emptyDir"].is_object());

    for (container, probe, listen) in [
        (webhook, "readinessProbe", "listen"),
        (webhook, "livenessProbe", "listen"),
        (allocator, "livenessProbe", "metrics-listen"),
    ] {
        let wanted = &container[probe]["httpGet"]["port"];
        let mut ports = container["ports"].as_array().unwrap().iter();
        let port = ports.find(|port| &port["name"] == wanted).unwrap();
        let address = flag(container, listen);
        let (_, number) = address.rsplit_once(':').unwrap();
        assert_eq!(port["containerPort"].to_string(), number, "{probe}");
    }
}

/// The value of a flag in a container's arguments.
fn flag(container: &Value, name: &str) -> String {
    let mut arguments = container["args"].as_array().unwrap().iter();
    let prefix = format!("--{name}=");
    let value = arguments.find_map(|it| it.as_str().unwrap().strip_prefix(&prefix));
    value.unwrap_or_else(|| panic!("no {prefix}")).to_owned()
}

#[tokio::test]
async fn policy_definition_takes_what_clusters_hold_and_nothing_of_another_type() {
    let control_plane = start().await;
    apply(
        &control_plane,
        &["-k", in_repository("manifests/base").to_str().unwrap()],
    );
    let definition = "crd/securitygrouppolicies.vpcresources.k8s.aws";
    kubectl(
        &control_plane,
        &["wait", "--for=condition=Established", definition],
    );
    let policies = Api::namespaced_with(
        control_plane.client(),
        "default",
        &ApiResource::erase::<SecurityGroupPolicy>(&()),
    );

    let groups = |count| -> Value {
        let ids: Vec<_> = (0..count).map(|n| format!("sg-0000000{n}")).collect();
        json!({"groupIds": ids})
    };
    let one = groups(1);
    let app = json!({"matchLabels": {"app": "web"}});
    let role = json!({"matchLabels": {"role": "web"}});
    let expression = |operator: &str, values: Value| json!({"matchExpressions": [{"key": "app", "operator": operator, "values": values}]});
    for (case, spec) in [
        (
            "pod selector",
            json!({"podSelector": app, "securityGroups": one}),
        ),
        (
            "all pods",
            json!({"podSelector": {}, "securityGroups": one}),
        ),
        (
            "service account selector",
            json!({"serviceAccountSelector": role, "securityGroups": one}),
        ),
        (
            "both selectors",
            json!({"podSelector": app, "serviceAccountSelector": role, "securityGroups": one}),
        ),
        (
            "null selector",
            json!({"podSelector": null, "serviceAccountSelector": {}, "securityGroups": one}),
        ),
        (
            "In",
            json!({"podSelector": expression("In", json!(["a", "b"])), "securityGroups": one}),
        ),
        (
            "NotIn",
            json!({"podSelector": expression("NotIn", json!(["a"])), "securityGroups": one}),
        ),
        (
            "Exists",
            json!({"podSelector": expression("Exists", json!([])), "securityGroups": one}),
        ),
        (
            "DoesNotExist",
            json!({"podSelector": expression("DoesNotExist", json!([])), "securityGroups": one}),
        ),
        // A cluster may hold these from times before us. They are ignored, and said to be.
        (
            "operator that does not exist",
            json!({"podSelector": expression("Near", json!(["a"])), "securityGroups": one}),
        ),
        ("no groups", json!({"podSelector": {}})),
        ("no selector", json!({"securityGroups": one})),
        // More than EC2 takes by default; the account's quota may be higher.
        (
            "six groups",
            json!({"podSelector": {}, "securityGroups": groups(6)}),
        ),
    ] {
        let stored = create(&policies, case, &spec)
            .await
            .unwrap_or_else(|problem| panic!("{case} is refused: {problem}"));
        assert_eq!(stored, spec, "{case} is stored as it was written");
    }

    for (case, spec, problem) in [
        (
            "empty list of groups",
            json!({"podSelector": {}, "securityGroups": {"groupIds": []}}),
            "spec.securityGroups.groupIds in body should have at least 1 items",
        ),
        (
            "number as group",
            json!({"podSelector": {}, "securityGroups": {"groupIds": ["sg-00000000", 7]}}),
            "spec.securityGroups.groupIds[1] in body must be of type string",
        ),
        (
            "text as selector",
            json!({"podSelector": "app=web", "securityGroups": one}),
            "spec.podSelector in body must be of type object",
        ),
    ] {
        let told = create(&policies, case, &spec).await.expect_err(case);
        assert!(told.contains(problem), "{case}: {told}");
    }

    let table = kubectl(&control_plane, &["get", "sgp"]);
    let mut lines = table.lines();
    let columns: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(columns, ["NAME", "SECURITY-GROUP-IDS"]);
    let all_pods = lines.find(|line| line.starts_with("all-pods ")).unwrap();
    assert!(all_pods.ends_with(r#"["sg-00000000"]"#), "{all_pods}");
}

/// The spec as it was stored, or what the API server says instead.
async fn create(policies: &Api<DynamicObject>, case: &str, spec: &Value) -> Result<Value, String> {
    let policy = json!({
        "apiVersion": "vpcresources.k8s.aws/v1beta1",
        "kind": "SecurityGroupPolicy",
        "metadata": {"name": case.to_lowercase().replace(' ', "-")},
        "spec": spec,
    });
    let policy = serde_json::from_value(policy).unwrap();
    match policies.create(&PostParams::default(), &policy).await {
        Ok(mut stored) => Ok(stored.data["spec"].take()),
        Err(kube::Error::Api(status)) => Err(status.message.clone()),
        Err(error) => panic!("{case}: {error}"),
    }
}

/// Applies and returns the names of the objects, as in `namespace/sgp-system`.
fn apply(control_plane: &ControlPlane, source: &[&str; 2]) -> Vec<String> {
    let arguments = [&["apply", "--server-side"], &source[..]].concat();
    let done = succeeded(control_plane.kubectl().args(&arguments));
    assert_eq!(done.warnings, "", "kubectl {arguments:?}");
    let lines = done.output.lines().map(|line| {
        let name = line.strip_suffix(" serverside-applied");
        name.unwrap_or_else(|| panic!("unexpected: {line}"))
    });
    lines.map(str::to_owned).collect()
}

/// What changes in an object when, and only when, what was applied does. The resource version
/// also moves with the status, which the controllers write.
fn generations(control_plane: &ControlPlane, source: &[&str; 2]) -> BTreeMap<String, String> {
    let arguments = [&["get", "-o", "json"], &source[..]].concat();
    let list: Value = serde_json::from_str(&kubectl(control_plane, &arguments)).unwrap();
    let objects = list["items"].as_array().unwrap().iter().map(|object| {
        let metadata = &object["metadata"];
        let generation = match &metadata["generation"] {
            Value::Null => format!("version {}", metadata["resourceVersion"]),
            generation => format!("generation {generation}"),
        };
        (
            format!("{}/{}", text(&object["kind"]), text(&metadata["name"])),
            generation,
        )
    });
    let objects: BTreeMap<_, _> = objects.collect();
    assert!(!objects.is_empty());
    objects
}

/// All documents in the manifests, named as kubectl names what it applies.
fn documents() -> BTreeSet<String> {
    let mut documents = BTreeSet::new();
    for folder in ["manifests/base", "manifests/crds", "manifests/sandbox"] {
        for entry in fs::read_dir(in_repository(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() && !path.ends_with("kustomization.yaml") {
                let text = fs::read_to_string(&path).unwrap();
                let parsed = serde_saphyr::from_multiple::<Value>(&text);
                documents.extend(parsed.unwrap().iter().map(name_of));
            }
        }
    }
    documents
}

fn name_of(document: &Value) -> String {
    let mut kind = text(&document["kind"]).to_lowercase();
    if let Some((group, _)) = text(&document["apiVersion"]).split_once('/') {
        kind = format!("{kind}.{group}");
    }
    format!("{kind}/{}", text(&document["metadata"]["name"]))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

async fn start() -> ControlPlane {
    let binaries = Binaries::find_or_build().unwrap_or_else(|error| panic!("{error}"));
    ControlPlane::start(&binaries, Options::default())
        .await
        .unwrap_or_else(|error| panic!("{error}"))
}

fn kubectl(control_plane: &ControlPlane, arguments: &[&str]) -> String {
    succeeded(control_plane.kubectl().args(arguments)).output
}

struct Done {
    output: String,
    warnings: String,
}

fn succeeded(command: &mut Command) -> Done {
    let done = command.output().unwrap();
    let warnings = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.success(), "{command:?}:\n{warnings}");
    let output = String::from_utf8(done.stdout).unwrap();
    Done { output, warnings }
}

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
