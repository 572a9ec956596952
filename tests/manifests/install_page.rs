//! What docs/install.md shows is what works.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

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
    let additions: Vec<_> = yaml_blocks(&page)
        .filter(|yaml| keys.iter().any(|key| yaml.starts_with(key)))
        .collect();
    let keys = ["patches:", "components:", "replicas:\n  - name"];
    assert_eq!(additions.len(), 6, "{additions:?}");
    for addition in additions {
        let changed = with_kustomize(&format!("{whole}{addition}"));
        let differ = changed
            .iter()
        let is_of_monitoring = addition.contains("group: monitoring");
        let whole = if is_of_monitoring {
            &with_monitoring
        } else {
            &bare
        };
        let unchanged = with_kustomize(whole);
            .filter(|(name, object)| unchanged.get(*name) != Some(object));
        let differ: Vec<_> = differ.map(|(name, _)| name.as_str()).collect();
        let expected: &[&str] = match &addition {
            it if it.contains("kind: NetworkPolicy") => &["NetworkPolicy sgp-system/sgp"],
            it if it.contains("kind: Deployment") => &["Deployment sgp-system/sgp"],
            _ => &[
                "PrometheusRule sgp-system/sgp",
                "Service sgp-system/sgp-metrics",
            it if it.contains("count: 3") => &["Deployment sgp-system/sgp"],
            _ if is_of_monitoring => &[
                "PrometheusRule sgp-system/sgp",
                "ServiceMonitor sgp-system/sgp",
            ],
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
    let label = "vpcresources.k8s.aws/enforce";
    let on = format!("{label}=true");
    kubectl(&control_plane, &["label", "namespace", "default", &on]);
    let left = || {
        let kinds = "namespaces,clusterroles,clusterrolebindings,roles,rolebindings,\
                     mutatingwebhookconfigurations,validatingwebhookconfigurations";
        let ours = "--selector=app.kubernetes.io/name=sgp";
        kubectl(
            &control_plane,
            &["get", kinds, "--all-namespaces", "--output=name", ours],
        )
    };
    assert_ne!(left(), "");

    let page = page();
    let (_, section) = page.split_once("\n## Removal\n").unwrap();
    let commands: Vec<_> = section
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .collect();
    let [configurations, objects, labels, definitions] = commands[..] else {
        panic!("four commands: {commands:?}");
    };
    let binaries = binaries();
    let folders = [binaries.kubectl.parent().unwrap().to_owned()].into_iter();
    let others = env::var_os("PATH").unwrap();
    let path = env::join_paths(folders.chain(env::split_paths(&others))).unwrap();
    let run = |commands: &[&str]| {
        let mut shell = Command::new("sh");
        shell
            .args(["-euc", &commands.join("\n")])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("PATH", &path)
            .env("KUBECONFIG", control_plane.kubeconfig());
        succeeded(&mut shell);
    };

    run(&[configurations, objects, labels]);
    assert_eq!(left(), "");
    let namespace = kubectl(
        &control_plane,
        &["get", "namespace", "default", "--output=yaml"],
    );
    assert!(!namespace.contains(label), "{namespace}");
    let crds = || kubectl(&control_plane, &["get", "crds", "--output=name"]);
    assert_eq!(crds().lines().count(), 2);

    run(&[definitions]);
    assert_eq!(crds(), "");
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
