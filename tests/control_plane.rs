//! Real control planes are started, stopped and killed, and must work and leave nothing.

#[path = "support/processes.rs"]
mod processes;
#[path = "support/waiting.rs"]
mod waiting;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::{env, fs, panic, process};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, api::ObjectMeta, api::PostParams};
use processes::processes_of;
use sgp::dev::control_plane::{Binaries, ControlPlane, Options, StartError};
use waiting::eventually;

/// Names the folder where a process started by [`Owner`] finds what to do.
const OWNER_FOLDER: &str = "SGP_TEST_OWNER_FOLDER";

#[tokio::test]
async fn an_instance_answers_kubectl() {
    let control_plane = start(None).await;

    let answer = kubectl(&control_plane, &["get", "--raw", "/readyz"]);

    assert_eq!(answer, "ok");
}

#[tokio::test]
async fn kubectl_can_parse_the_server_version() {
    let control_plane = start(None).await;

    let answer = kubectl(&control_plane, &["version", "-o", "json"]);

    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    for side in ["clientVersion", "serverVersion"] {
        assert!(
            answer[side]["gitVersion"]
                .as_str()
                .unwrap()
                .starts_with("v1."),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn instances_run_side_by_side() {
    let (one, other) = tokio::join!(start(None), start(None));
    create_config_map(&one).await;

    assert!(has_config_map(&one).await);
    assert!(!has_config_map(&other).await, "each has its own objects");
}

#[tokio::test]
async fn stop_leaves_no_process_and_no_folder() {
    let control_plane = start(None).await;
    let run_dir = control_plane.run_dir().to_owned();
    assert!(
        processes_of(&run_dir).len() >= 4,
        "{:?}",
        processes_of(&run_dir)
    );

    control_plane.stop();

    assert_eq!(processes_of(&run_dir), NOTHING);
    assert!(!run_dir.exists());
}

#[tokio::test]
async fn a_further_process_ends_with_the_instance() {
    let control_plane = start(None).await;
    let mut command = Command::new("sleep");
    command.arg("1000");
    let mut process = control_plane.spawn("sleeper", command).unwrap();
    assert!(process.try_wait().unwrap().is_none());

    control_plane.stop();

    eventually("the end of the process", || process.try_wait().unwrap());
}

#[test]
fn a_panic_leaves_nothing() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let failing_test = thread::spawn(move || {
        runtime().block_on(async {
            let control_plane = start(None).await;
            sender.send(control_plane.run_dir().to_owned()).unwrap();
            // Without the hook, so that the output shows no failure.
            panic::resume_unwind(Box::new("an assertion of a test"));
        })
    });

    failing_test.join().unwrap_err();

    let run_dir = receiver.recv().unwrap();
    assert_eq!(processes_of(&run_dir), NOTHING);
    assert!(!run_dir.exists());
}

#[test]
fn an_exit_without_destructors_leaves_nothing() {
    let mut owner = Owner::start("exits", None);

    owner.child.wait().unwrap();

    owner.wait_until_nothing_is_left();
}

#[test]
fn a_killed_owner_leaves_nothing() {
    let mut owner = Owner::start("waits", None);

    owner.kill();

    owner.wait_until_nothing_is_left();
}

#[tokio::test]
async fn a_data_folder_keeps_objects_and_the_kubeconfig_path() {
    let folder = tempfile::tempdir().unwrap();
    let before = start(Some(folder.path())).await;
    create_config_map(&before).await;
    let kubeconfig = before.kubeconfig().to_owned();
    before.stop();

    let after = start(Some(folder.path())).await;

    assert!(has_config_map(&after).await);
    assert_eq!(after.kubeconfig(), kubeconfig);
}

#[tokio::test]
async fn a_data_folder_survives_the_kill_of_its_owner() {
    let folder = tempfile::tempdir().unwrap();
    let mut owner = Owner::start("waits", Some(folder.path()));
    owner.kill();

    // At once, while the predecessor's watchdog still cleans up.
    let after = start(Some(folder.path())).await;

    assert!(has_config_map(&after).await);
}

#[tokio::test]
async fn a_data_folder_belongs_to_one_instance_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let first = start(Some(folder.path())).await;

    let second = try_start(Some(folder.path())).await;

    let error = second.err().unwrap();
    assert!(matches!(error, StartError::InUse { .. }), "{error}");
    assert!(
        error.to_string().contains(folder.path().to_str().unwrap()),
        "{error}"
    );
    first.stop();
}

#[tokio::test]
async fn a_component_that_fails_shows_its_log() {
    let folder = tempfile::tempdir().unwrap();
    // etcd does not start on what is no database.
    fs::write(folder.path().join("etcd"), "not a folder").unwrap();

    let error = try_start(Some(folder.path())).await.unwrap_err();

    let text = error.to_string();
    assert!(
        matches!(error, StartError::Exited { component, .. } if component == "etcd"),
        "{text}"
    );
    assert!(text.contains("not a directory"), "{text}");
}

/// Not a test: what a process started by [`Owner`] does. Without its variable it does nothing.
#[test]
fn owner_process() {
    let Some(folder) = env::var_os(OWNER_FOLDER).map(PathBuf::from) else {
        return;
    };
    let data_dir = fs::read_to_string(folder.join("data-dir")).unwrap();
    let data_dir = Some(Path::new(&data_dir)).filter(|path| path.is_dir());
    let control_plane = runtime().block_on(async {
        let control_plane = start(data_dir).await;
        create_config_map(&control_plane).await;
        control_plane
    });
    let run_dir = control_plane.run_dir().to_str().unwrap();
    fs::write(folder.join("run-dir.new"), run_dir).unwrap();
    fs::rename(folder.join("run-dir.new"), folder.join("run-dir")).unwrap();
    if fs::read_to_string(folder.join("then")).unwrap() == "exits" {
        process::exit(0);
    }
    loop {
        thread::park();
    }
}

/// Another process that has a control plane: this test program again.
struct Owner {
    child: Child,
    run_dir: PathBuf,
}

impl Owner {
    fn start(then: &str, data_dir: Option<&Path>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = data_dir.map_or("", |path| path.to_str().unwrap());
        fs::write(folder.path().join("data-dir"), data_dir).unwrap();
        fs::write(folder.path().join("then"), then).unwrap();
        // Before the owner starts, so that it does not wait in silence for a build.
        binaries();
        let child = Command::new(env::current_exe().unwrap())
            .args(["owner_process", "--exact", "--nocapture"])
            .env(OWNER_FOLDER, folder.path())
            .spawn()
            .unwrap();
        let mut owner = Self {
            child,
            run_dir: PathBuf::new(),
        };
        let run_dir = folder.path().join("run-dir");
        eventually("the owner's control plane", || {
            let ended = owner.child.try_wait().unwrap();
            assert!(
                run_dir.exists() || ended.is_none(),
                "the owner failed: {ended:?}"
            );
            run_dir.exists().then_some(())
        });
        owner.run_dir = fs::read_to_string(run_dir).unwrap().into();
        owner
    }

    fn kill(&mut self) {
        assert!(processes_of(&self.run_dir).len() >= 4);
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn wait_until_nothing_is_left(&self) {
        eventually("the end of all processes", || {
            processes_of(&self.run_dir).is_empty().then_some(())
        });
        assert!(!self.run_dir.exists());
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const NOTHING: [String; 0] = [];

fn binaries() -> Binaries {
    Binaries::find_or_build().unwrap_or_else(|error| panic!("{error}"))
}

async fn try_start(data_dir: Option<&Path>) -> Result<ControlPlane, StartError> {
    let options = Options {
        data_dir: data_dir.map(Path::to_owned),
        ..Options::default()
    };
    ControlPlane::start(&binaries(), options).await
}

async fn start(data_dir: Option<&Path>) -> ControlPlane {
    try_start(data_dir)
        .await
        .unwrap_or_else(|error| panic!("{error}"))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

fn kubectl(control_plane: &ControlPlane, arguments: &[&str]) -> String {
    let output = control_plane.kubectl().args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn config_maps(control_plane: &ControlPlane) -> Api<ConfigMap> {
    Api::namespaced(control_plane.client(), "default")
}

async fn create_config_map(control_plane: &ControlPlane) {
    let metadata = ObjectMeta {
        name: Some("kept".to_owned()),
        ..ObjectMeta::default()
    };
    let data = BTreeMap::from([("key".to_owned(), "value".to_owned())]);
    let config_map = ConfigMap {
        metadata,
        data: Some(data),
        ..ConfigMap::default()
    };
    config_maps(control_plane)
        .create(&PostParams::default(), &config_map)
        .await
        .unwrap();
}

async fn has_config_map(control_plane: &ControlPlane) -> bool {
    config_maps(control_plane)
        .get_opt("kept")
        .await
        .unwrap()
        .is_some()
}
