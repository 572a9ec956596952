//! What docs/install.md shows is what works.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sgp::dev::control_plane::ControlPlane;
use tempfile::TempDir;

use crate::{
    Objects, apply, binaries, in_repository, kubectl, kustomize, render, start_control_plane,
    succeeded, text,
};

#[test]
fn each_addition_to_the_kustomization_changes_what_it_is_about() {
    let bare = documented("With kustomize");
    let with_monitoring = format!("{bare}{}", documented("Monitoring"));
    let page = page();
    let keys = ["patches:", "components:", "replicas:\n  - name"];
    let additions: Vec<_> = yaml_blocks(&page)
        .filter(|yaml| keys.iter().any(|key| yaml.starts_with(key)))
        .collect();
    assert_eq!(additions.len(), 6, "{additions:?}");
    for addition in additions {
        let is_of_monitoring = addition.contains("group: monitoring");
        let whole = if is_of_monitoring {
            &with_monitoring
        } else {
            &bare
        };
        let unchanged = with_kustomize(whole);
        let changed = with_kustomize(&format!("{whole}{addition}"));
        let differ = changed
            .iter()
            .filter(|(name, object)| unchanged.get(*name) != Some(object));
        let differ: Vec<_> = differ.map(|(name, _)| name.as_str()).collect();
        let expected: &[&str] = match &addition {
            it if it.contains("kind: NetworkPolicy") => &["NetworkPolicy sgp-system/sgp"],
            it if it.contains("kind: Deployment") => &["Deployment sgp-system/sgp"],
            it if it.contains("count: 3") => &["Deployment sgp-system/sgp"],
            _ if is_of_monitoring => &[
                "PrometheusRule sgp-system/sgp",
                "ServiceMonitor sgp-system/sgp",
            ],
            _ => &[
                "PrometheusRule sgp-system/sgp",
                "Service sgp-system/sgp-metrics",
                "ServiceMonitor sgp-system/sgp",
            ],
        };
        assert_eq!(differ, expected, "{addition}");
    }
}

#[tokio::test]
async fn removal_leaves_the_definitions_and_nothing_else() {
    let control_plane = start_control_plane().await;
    apply(
        &control_plane,
        &["-k", &in_repository("manifests/overlays/ec2")],
    );
    let on = format!("{ENFORCE}=true");
    kubectl(&control_plane, &["label", "namespace", "default", &on]);
    // As the allocator makes it, which by then is gone.
    let cni_node = control_plane.run_dir().join("cni-node.json");
    let finalizer = "networking.k8s.aws/resource-cleanup";
    let object = json!({
        "apiVersion": "vpcresources.k8s.aws/v1alpha1",
        "kind": "CNINode",
        "metadata": {"name": "a", "finalizers": [finalizer]},
        "spec": {}
    });
    fs::write(&cni_node, object.to_string()).unwrap();
    apply(&control_plane, &["-f", cni_node.to_str().unwrap()]);
    assert_ne!(installed(&control_plane), "");

    let commands = commands("## Removal");
    let [_, configurations, objects, labels, finalizers, definitions] = &commands[..] else {
        panic!("six commands: {commands:?}");
    };
    run(&control_plane, &[configurations, objects, labels]);
    assert_eq!(installed(&control_plane), "");
    let namespace = kubectl(
        &control_plane,
        &["get", "namespace", "default", "--output=yaml"],
    );
    assert!(!namespace.contains(ENFORCE), "{namespace}");

    let cni_nodes = || kubectl(&control_plane, &["get", "cninodes", "--output=yaml"]);
    assert!(cni_nodes().contains(finalizer));
    run(&control_plane, &[finalizers]);
    assert!(!cni_nodes().contains(finalizer));
    let crds = || kubectl(&control_plane, &["get", "crds", "--output=name"]);
    assert_eq!(crds().lines().count(), 2);

    run(&control_plane, &[definitions]);
    assert_eq!(crds(), "");
}

#[tokio::test]
async fn removal_on_eks_leaves_what_is_of_eks() {
    let control_plane = start_control_plane().await;
    for of_eks in ["crds", "base/mutating-webhook.yaml"] {
        let path = in_repository(&format!("manifests/{of_eks}"));
        let how = if of_eks == "crds" { "-k" } else { "-f" };
        apply(&control_plane, &[how, &path]);
    }
    let theirs = "mutatingwebhookconfiguration/vpc-resource-mutating-webhook";
    let unlabel = ["label", theirs, "app.kubernetes.io/name-"];
    kubectl(&control_plane, &unlabel);
    apply(
        &control_plane,
        &["-k", &in_repository("manifests/overlays/eks")],
    );

    let commands = commands("### Removal on EKS");
    let commands: Vec<_> = commands.iter().map(String::as_str).collect();
    run(&control_plane, &commands);
    assert_eq!(installed(&control_plane), "");
    let left = kubectl(&control_plane, &["get", theirs, "--output=name"]);
    assert_ne!(left, "");
    let crds = kubectl(&control_plane, &["get", "crds", "--output=name"]);
    assert_eq!(crds.lines().count(), 2);
}

/// The definitions that Helm has made are Helm's, as far as they differ from what is applied.
#[tokio::test]
async fn upgrade_changes_definitions_that_helm_has_created() {
    let control_plane = start_control_plane().await;
    let folder = in_repository("manifests/crds");
    let by_helm = ["create", "--field-manager=helm", "-k", &folder];
    kubectl(&control_plane, &by_helm);
    let newer = TempDir::new().unwrap();
    fs::create_dir_all(newer.path().join("manifests/crds")).unwrap();
    for file in fs::read_dir(&folder).unwrap() {
        let file = file.unwrap();
        let text = fs::read_to_string(file.path()).unwrap();
        let text = text.replace("    - sgp\n", "    - sgp\n    - newer\n");
        let path = newer.path().join("manifests/crds").join(file.file_name());
        fs::write(path, text).unwrap();
    }

    let path = newer.path().join("manifests/crds");
    let tried = ["apply", "--server-side", "-k", path.to_str().unwrap()];
    let tried = control_plane.kubectl().args(tried).output().unwrap();
    let tried = String::from_utf8(tried.stderr).unwrap();
    assert!(tried.contains("conflict with \"helm\""), "{tried}");

    let commands = commands("## Upgrade");
    run_in(newer.path(), &control_plane, &[&commands[0]]);
    let crds = kubectl(&control_plane, &["get", "crds", "--output=yaml"]);
    assert!(crds.contains("- newer\n"), "{crds}");
}

/// The CA in the entry is of somebody else than the one who applies the manifests.
#[tokio::test]
async fn upgrade_to_a_version_without_an_entry_takes_the_entry_away_with_its_ca() {
    let control_plane = start_control_plane().await;
    let older = in_repository("manifests/base/validating-webhook.yaml");
    apply(&control_plane, &["-f", &older]);
    let name = "vpc-resource-validating-webhook";
    let entry = "vnode.vpc.k8s.aws";
    let read = || -> Value {
        let get = ["get", "validatingwebhookconfiguration", name, "-o", "json"];
        serde_json::from_str(&kubectl(&control_plane, &get)).unwrap()
    };
    // Any CA, written as the webhook does it.
    let ca = "jsonpath={.clusters[0].cluster.certificate-authority-data}";
    let ca = ["config", "view", "--raw", "--flatten", "--output", ca];
    let ca = kubectl(&control_plane, &ca);
    let count = read()["webhooks"].as_array().unwrap().len();
    let trust = (0..count).map(|index| {
        let path = format!("/webhooks/{index}/clientConfig/caBundle");
        json!({"op": "add", "path": path, "value": ca})
    });
    let trust = json!(trust.collect::<Vec<_>>()).to_string();
    let patch = ["patch", "validatingwebhookconfiguration", name];
    let patch = [&patch[..], &["--type=json", "--patch", &trust]].concat();
    kubectl(&control_plane, &patch);

    let mut object = render("manifests/overlays/ec2")
        .remove(&format!("ValidatingWebhookConfiguration {name}"))
        .unwrap();
    let entries = object["webhooks"].as_array_mut().unwrap();
    entries.retain(|it| it["name"] != entry);
    assert_eq!(entries.len(), count - 1);
    let newer = control_plane.run_dir().join("newer.json");
    fs::write(&newer, object.to_string()).unwrap();
    let newer = newer.to_str().unwrap();

    apply(&control_plane, &["-f", newer]);
    let object = read();
    let entries = object["webhooks"].as_array().unwrap();
    assert_eq!(entries.len(), count - 1);
    for left in entries {
        assert_ne!(left["name"], entry);
        assert_eq!(left["clientConfig"]["caBundle"], ca);
    }
}

const ENFORCE: &str = "vpcresources.k8s.aws/enforce";

/// What kubectl lists of ours, but for the definitions.
fn installed(control_plane: &ControlPlane) -> String {
    let kinds = "namespaces,clusterroles,clusterrolebindings,roles,rolebindings,\
                 mutatingwebhookconfigurations,validatingwebhookconfigurations,flowschemas";
    let ours = "--selector=app.kubernetes.io/name=sgp";
    let arguments = ["get", kinds, "--all-namespaces", "--output=name", ours];
    kubectl(control_plane, &arguments)
}

/// The commands of a section of the page, without those of its subsections.
fn commands(heading: &str) -> Vec<String> {
    let page = page();
    let (_, section) = page.split_once(&format!("\n{heading}\n")).unwrap();
    let section = section.split("\n#").next().unwrap();
    let lines = section
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .collect::<Vec<_>>()
        .join("\n");
    let lines = lines.replace("\\\n", "");
    lines.lines().map(str::to_owned).collect()
}

#[track_caller]
fn run(control_plane: &ControlPlane, commands: &[&str]) {
    run_in(
        Path::new(env!("CARGO_MANIFEST_DIR")),
        control_plane,
        commands,
    );
}

/// Runs commands in a folder as an operator's shell does.
#[track_caller]
fn run_in(folder: &Path, control_plane: &ControlPlane, commands: &[&str]) {
    let binaries = binaries();
    let folders = [binaries.kubectl.parent().unwrap().to_owned()].into_iter();
    let others = env::var_os("PATH").unwrap();
    let path = env::join_paths(folders.chain(env::split_paths(&others))).unwrap();
    let mut shell = Command::new("sh");
    shell
        .args(["-euc", &commands.join("\n")])
        .current_dir(folder)
        .env("PATH", &path)
        .env("KUBECONFIG", control_plane.kubeconfig());
    succeeded(&mut shell);
}

#[test]
fn every_right_is_documented() {
    let page = page();
    let (_, section) = page.split_once("\n## Rights\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| "));
    let rows: Vec<Vec<&str>> = rows.map(|row| row.split('|').collect()).collect();
    for (name, object) in render("manifests/overlays/ec2") {
        for rule in object["rules"].as_array().into_iter().flatten() {
            for resource in rule["resources"].as_array().unwrap() {
                let resource = format!("`{}`", text(resource));
                let verbs = rule["verbs"].as_array().unwrap().iter();
                let verbs: Vec<_> = verbs.map(|verb| format!("`{}`", text(verb))).collect();
                let is_documented = rows.iter().any(|row| {
                    row[1].contains(&resource) && verbs.iter().all(|verb| row[2].contains(verb))
                });
                assert!(
                    is_documented,
                    "{name}: {verbs:?} of {resource} is in no row of Rights"
                );
            }
        }
    }
}

/// The first YAML in a section of the page.
pub(crate) fn documented(section: &str) -> String {
    let page = page();
    let (_, rest) = page.split_once(&format!("\n## {section}\n")).unwrap();
    yaml_blocks(rest).next().unwrap().to_owned()
}

/// The objects of a kustomization in a folder beside `manifests`.
pub(crate) fn with_kustomize(kustomization: &str) -> Objects {
    let folder = TempDir::new().unwrap();
    symlink(in_repository("manifests"), folder.path().join("manifests")).unwrap();
    let own = folder.path().join("my-cluster");
    fs::create_dir(&own).unwrap();
    fs::write(own.join("kustomization.yaml"), kustomization).unwrap();
    kustomize(&own)
}

fn yaml_blocks(text: &str) -> impl Iterator<Item = &str> {
    let blocks = text.split("\n```yaml\n").skip(1);
    blocks.map(|rest| {
        let end = rest.find("\n```").expect("a block has an end");
        &rest[..=end]
    })
}

fn page() -> String {
    fs::read_to_string(in_repository("docs/install.md")).unwrap()
}
