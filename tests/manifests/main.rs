//! The manifests are what the program prints and what a real API server takes, and kustomize
//! and Helm make the same of them.

mod chart;
mod definitions;
mod deployment;
mod image;
mod install_page;
mod monitoring;
mod overlays;
#[path = "../support/waiting.rs"]
mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use sgp::dev::control_plane::{Binaries, ControlPlane, Options};

/// Objects by kind, namespace and name, as in `Service sgp-system/sgp-webhook`.
type Objects = BTreeMap<String, Value>;

/// The objects in YAML documents.
fn parse(documents: &str) -> Objects {
    let mut objects = Objects::new();
    for object in serde_saphyr::from_multiple::<Value>(documents).unwrap() {
        let key = key(&object);
        assert!(!objects.contains_key(&key), "{key} is there twice");
        objects.insert(key, object);
    }
    assert!(!objects.is_empty(), "no objects in:\n{documents}");
    objects
}

/// The objects that kustomize makes of a folder of the repository.
fn render(folder: &str) -> Objects {
    kustomize(Path::new(&in_repository(folder)))
}

/// The objects that kustomize makes of a folder.
fn kustomize(folder: &Path) -> Objects {
    let mut kubectl = Command::new(binaries().kubectl);
    let done = succeeded(kubectl.arg("kustomize").arg(folder));
    assert_eq!(done.warnings, "", "kustomize {}", folder.display());
    parse(&done.output)
}

/// Compares with a message that names what differs.
#[track_caller]
fn assert_same(ours: &Objects, theirs: &Objects) {
    let names = |objects: &Objects| objects.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(ours), names(theirs));
    for (name, object) in ours {
        assert_eq!(object, &theirs[name], "{name}");
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
    // Of one object there is no list.
    let objects = list["items"].as_array().cloned().unwrap_or(vec![list]);
    let objects = objects.iter().map(|object| {
        let metadata = &object["metadata"];
        let generation = match &metadata["generation"] {
            Value::Null => format!("version {}", metadata["resourceVersion"]),
            generation => format!("generation {generation}"),
        };
        (key(object), generation)
    });
    let objects: BTreeMap<_, _> = objects.collect();
    assert!(!objects.is_empty());
    objects
}

/// An object's kind, namespace and name.
fn key(object: &Value) -> String {
    let metadata = &object["metadata"];
    let namespace = metadata["namespace"].as_str();
    let namespace = namespace.map_or(String::new(), |name| format!("{name}/"));
    format!(
        "{} {namespace}{}",
        text(&object["kind"]),
        text(&metadata["name"])
    )
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

async fn start_control_plane() -> ControlPlane {
    ControlPlane::start(&binaries(), Options::default())
        .await
        .unwrap_or_else(|error| panic!("{error}"))
}

fn binaries() -> Binaries {
    Binaries::find_or_build().unwrap_or_else(|error| panic!("{error}"))
}

fn kubectl(control_plane: &ControlPlane, arguments: &[&str]) -> String {
    succeeded(control_plane.kubectl().args(arguments)).output
}

struct Done {
    output: String,
    warnings: String,
}

#[track_caller]
fn succeeded(command: &mut Command) -> Done {
    let done = command.output().unwrap();
    let warnings = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.success(), "{command:?}:\n{warnings}");
    let output = String::from_utf8(done.stdout).unwrap();
    Done { output, warnings }
}

fn in_repository(path: &str) -> String {
    format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))
}
