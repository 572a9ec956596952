//! The image, as far as it shows without a container engine.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::{in_repository, succeeded, text};

/// What gcr.io/distroless/cc-debian12 has of what programs in Rust link to.
const LIBRARIES: [&str; 5] = [
    "ld-linux-aarch64.so.1",
    "ld-linux-x86-64.so.2",
    "libc.so.6",
    "libgcc_s.so.1",
    "libm.so.6",
];

#[test]
fn program_needs_no_library_that_the_image_lacks() {
    let mut readelf = Command::new("readelf");
    readelf.args(["--dynamic", "--wide", env!("CARGO_BIN_EXE_sgp")]);
    let output = succeeded(readelf.env("LC_ALL", "C")).output;
    let needed: BTreeSet<_> = output
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .map(|line| {
            let (_, name) = line.split_once('[').unwrap();
            name.trim_end_matches(']')
        })
        .collect();

    assert!(needed.contains("libc.so.6"), "{output}");
    let all = BTreeSet::from(LIBRARIES);
    let missing: Vec<_> = needed.difference(&all).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn files_that_are_built_into_the_program_are_not_kept_from_the_image() {
    let ignored = fs::read_to_string(in_repository(".dockerignore")).unwrap();
    let ignored: Vec<_> = ignored
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    let is_ignored = |path: &Path| {
        let path = path.to_str().unwrap();
        ignored.iter().any(|pattern| match pattern.split_once('*') {
            None => Path::new("/").join(path).starts_with(pattern),
            Some(("/", ending)) => !path.contains('/') && path.ends_with(ending),
            Some(("", _)) => path.ends_with(pattern.trim_start_matches("**/*")),
            _ => panic!("this test can't read {pattern}"),
        })
    };
    assert!(is_ignored(Path::new("docs/install.md")));
    assert!(is_ignored(Path::new("README.md")));

    let mut included =
        BTreeSet::from(["Cargo.toml", "Cargo.lock", "src/main.rs"].map(PathBuf::from));
    for source in sources(Path::new(&in_repository("src"))) {
        let code = fs::read_to_string(&source).unwrap();
        let code = code.split("mod tests {").next().unwrap();
        for rest in code.split("include_str!(\"").skip(1) {
            let (path, _) = rest.split_once('"').unwrap();
            included.insert(in_source_tree(&source, path));
        }
    }
    assert!(
        included.contains(Path::new("manifests/base/rbac.yaml")),
        "{included:?}"
    );
    let kept: Vec<_> = included.iter().filter(|path| is_ignored(path)).collect();
    assert!(
        kept.is_empty(),
        "in .dockerignore, and in the program: {kept:?}"
    );
}

#[test]
fn dockerfile_copies_what_there_is_and_runs_as_the_deployment_does() {
    let dockerfile = fs::read_to_string(in_repository("Dockerfile")).unwrap();
    let lines = |instruction: &str| -> Vec<&str> {
        let lines = dockerfile.lines().filter_map(|line| {
            let rest = line.strip_prefix(instruction)?;
            rest.strip_prefix(' ')
        });
        lines.collect()
    };
    // All of the folder to build, and of that what is built.
    assert_eq!(lines("COPY"), [". .", "--from=build /sgp /sgp"]);
    assert!(dockerfile.contains("&& cp target/release/sgp /sgp\n"));
    assert_eq!(lines("ENTRYPOINT"), [r#"["/sgp"]"#]);

    let manifest = fs::read_to_string(in_repository("manifests/base/deployment.yaml")).unwrap();
    let deployment: Value = serde_saphyr::from_str(&manifest).unwrap();
    let pod = &deployment["spec"]["template"]["spec"];
    let user = &pod["securityContext"];
    let user = format!("{}:{}", user["runAsUser"], user["runAsGroup"]);
    assert_eq!(lines("USER"), [user]);
    let containers = pod["containers"].as_array().unwrap();
    let ports = containers
        .iter()
        .flat_map(|it| it["ports"].as_array().unwrap());
    let ports: Vec<_> = ports
        .map(|port| port["containerPort"].to_string())
        .collect();
    assert_eq!(lines("EXPOSE"), [ports.join(" ")]);
    // The entry point, and then the subcommand.
    for container in containers {
        assert!(container["command"].is_null());
        assert_eq!(text(&container["args"][0]), text(&container["name"]));
    }
}

/// All Rust files below a folder but those of tests.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut sources = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources.extend(self::sources(&path));
        } else if path.extension().is_some_and(|it| it == "rs") && !path.ends_with("tests.rs") {
            sources.push(path);
        }
    }
    sources
}

/// A path that a source file names, from the top of the repository.
fn in_source_tree(source: &Path, path: &str) -> PathBuf {
    let mut whole = PathBuf::new();
    for part in source.parent().unwrap().join(path).components() {
        match part {
            Component::ParentDir => assert!(whole.pop()),
            part => whole.push(part),
        }
    }
    let top = in_repository("");
    whole.strip_prefix(top).unwrap().to_owned()
}
